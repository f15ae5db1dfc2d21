"""Fractions of a pixel: on waves of known phase, and on rendered particle images, where the bias towards whole pixels shows."""

import math
from functools import lru_cache

import numpy as np
import pytest
from match_cases import VARIANTS, assert_same, matched, noise

import cupycorr

PERIODS = (8, 12)  # pixels


def waves(y, x):
    """Return waves along each axis; over whole periods their coefficient is the mean of the cosines of the phase lags."""
    return sum(np.cos(2 * np.pi * at / period + period) for at in (y, x) for period in PERIODS)


@pytest.mark.covering(2)
@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.25, -0.4), (-1.5, 2.3), (0.5, 0.5), (-2.1, -1.8)], ids=str)
@pytest.mark.parametrize("curve", ["gaussian", "parabola"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_fractions_of_a_pixel_are_found(variant, curve, shift):
    y, x = np.mgrid[:60.0, :66.0]
    frames = waves(y, x), waves(y - shift[0], x - shift[1])
    found = matched(*frames, window=math.lcm(*PERIODS), search=((-4, 4),) * 2, step=4, subpixel=curve, variant=variant)
    for name, want in zip(("dy", "dx"), shift, strict=True):
        error = np.abs(getattr(found, name)[1:-1, 1:-1] - want)  # these windows stay inside frame 2
        assert error.size > 50
        assert error.max() < 0.02, name


# Particle images --------------------------------------------------------------------------------------------------------------

SIDE, DENSITY, DIAMETER = 200, 0.03, 2.8  # pixels, particles per pixel, pixels between the places of e^-2 of the maximum
_erf = np.vectorize(math.erf, otypes=[float])


def particle_image(y, x, brightness):
    """Return an image of Gaussian particles, integrated over each pixel."""
    image, reach, sigma = np.zeros((SIDE, SIDE)), 5, DIAMETER / 4
    around = np.arange(-reach, reach + 2) - 0.5  # borders of pixels
    profiles = []
    for centre in (y, x):
        borders = np.rint(centre)[:, None] + around - centre[:, None]
        profiles.append(np.diff(_erf(borders / (sigma * math.sqrt(2))), axis=1))
    first = [np.rint(centre).astype(int) - reach for centre in (y, x)]
    inside = [(each >= 0) & (each < SIDE - 2 * reach) for each in first]
    for index in np.flatnonzero(inside[0] & inside[1]):
        top, left = first[0][index], first[1][index]
        spot = brightness[index] * profiles[0][index][:, None] * profiles[1][index]
        image[top : top + 2 * reach + 1, left : left + 2 * reach + 1] += spot
    return image


@lru_cache
def biases(curve, variant):
    """Return the mean error of dx over all windows of 32 pixels, for each displacement of 0, 0.1, ... 0.9 pixels."""
    random = np.random.default_rng(5)
    found = []
    for shift in np.arange(10) / 10:
        count = int(DENSITY * SIDE**2)
        y, x, brightness = *random.uniform(0, SIDE, (2, count)), random.uniform(0.3, 1, count)
        frames = particle_image(y, x - shift / 2, brightness), particle_image(y, x + shift / 2, brightness)
        frames = [np.rint(250 / frames[0].max() * frame).astype(np.uint8) for frame in frames]
        match = matched(*frames, window=32, search=((-3, 3), (-3, 3)), step=8, subpixel=curve, variant=variant)
        found.append(np.mean(match.dx[1:-1, 1:-1] - shift))
    return np.array(found)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gaussian_fit_of_particle_images_is_biased_by_at_most_a_hundredth_of_a_pixel(variant):
    gaussian, parabola = (np.abs(biases(curve, variant)).max() for curve in ("gaussian", "parabola"))
    assert gaussian <= 0.01
    assert parabola >= 3 * gaussian


# The parameter ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("yes", [True, np.True_], ids=["bool", "NumPy's bool"])
def test_true_is_the_gaussian_and_so_is_the_default(yes):
    frames = noise(seed=1), noise(seed=2)
    want = cupycorr.match(*frames, window=5, subpixel="gaussian")
    assert_same(cupycorr.match(*frames, window=5, subpixel=yes), want)
    assert_same(cupycorr.match(*frames, window=5), want)
    assert (want.dx != cupycorr.match(*frames, window=5, subpixel="parabola").dx).any()


@pytest.mark.parametrize("no", [False, np.False_], ids=["bool", "NumPy's bool"])
def test_false_keeps_whole_pixels_and_changes_nothing_else(no):
    frames = noise(seed=1), noise(seed=2)
    whole, fine = cupycorr.match(*frames, window=5, subpixel=no), cupycorr.match(*frames, window=5)
    known = np.isfinite(whole.dx)
    for coarse, refined in ((whole.dx, fine.dx), (whole.dy, fine.dy)):
        np.testing.assert_array_equal(coarse[known], np.rint(coarse[known]))
        assert (np.abs(coarse - refined)[known] <= 0.5).all()
        assert (coarse != refined)[known].any()
    for name in ("score", "at_edge", "peak_ratio", "count"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(fine, name))


@pytest.mark.parametrize("variant", VARIANTS)
def test_search_border_is_not_refined(variant):
    frame = noise((40, 40))
    found = matched(frame, np.roll(frame, (3, -3), (0, 1)), window=9, search=((0, 3), (-3, 0)), variant=variant)
    assert (found.dy[5:-5, 5:-5] == 3).all()
    assert (found.dx[5:-5, 5:-5] == -3).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_maximum_beside_a_displacement_that_is_no_candidate_is_not_refined_along_that_axis(variant):
    frame1, frame2 = noise((20, 20), 1, np.float64), noise((30, 30), 3, np.float64)
    frame2[2:22, 2:22] = frame1 + noise((20, 20), 2) / 9  # a displacement of (2, 2)
    frame2[:, 23:] = np.nan  # with the window at column 3, 20 x 20 pixels are present; from column 14 on less than half are
    options = {"window": 20, "search": ((0, 4), (0, 4)), "variant": variant}
    free = matched(frame1, frame2, **options)
    assert not free.at_edge.item()
    assert 0 < abs(free.dx.item() - 2) < 0.5
    flat = frame2.copy()
    flat[:, 13:] = np.nan  # at dx = 3, half of the window is present; at dx = 2, 11 columns of 20 are
    edge = matched(frame1, flat, **(options | {"search": ((0, 4), (0, 3))}))
    assert edge.count.item() == 220
    assert edge.at_edge.item() is False
    flat[:, 12:] = np.nan  # at dx = 3, less than half are; at dx = 2, half
    edge = matched(frame1, flat, **(options | {"search": ((0, 4), (0, 4))}))
    assert edge.count.item() == 200
    assert edge.at_edge.item() is True
    assert edge.dx.item() == 2
    assert 0 < abs(edge.dy.item() - 2) < 0.5
