"""Windows at points, searches that start from an offset, and templates."""

import numpy as np
import pytest
from match_cases import VARIANTS, assert_same, dots, matched, noise

import cupycorr

FRAMES = noise((40, 50), 1), noise((40, 50), 2)
FIELDS = ("dx", "dy", "score", "at_edge", "peak_ratio", "count")


@pytest.mark.covering(2)
@pytest.mark.parametrize("variant", ["operator", "fft", "auto"])
@pytest.mark.parametrize("window", [5, 6, (3, 8)], ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_points_equal_the_windows_of_a_grid_at_these_centres(dtype, window, variant):
    frames = [np.float32(f) / np.float32(7) if dtype == "float32" else f for f in FRAMES]
    masks = {f"mask{number}": ~dots((40, 50), 40, number) for number in (1, 2)}
    for options in ({}, masks):
        grid = cupycorr.match(*frames, window=window, step=(3, 2), **options)
        at = np.random.default_rng(0).permutation(grid.dx.size)[:60]
        rows, columns = np.unravel_index(at, grid.dx.shape)
        points = np.stack([grid.y[rows], grid.x[columns]], axis=1)
        found = cupycorr.match(*frames, window=window, points=points, variant=variant, **options)
        np.testing.assert_array_equal(found.y, grid.y[rows])
        np.testing.assert_array_equal(found.x, grid.x[columns])
        for name in FIELDS:
            np.testing.assert_allclose(
                getattr(found, name), getattr(grid, name)[rows, columns], rtol=1e-9, atol=1e-9, err_msg=name
            )


def test_points_may_be_any_sequence_of_numbers():
    points = [(7, 8), (20.25, 9.75), (3, 44)]
    want = cupycorr.match(*FRAMES, window=5, points=points)
    for same in (tuple(points), np.array(points), np.array(points, np.float32), np.asfortranarray(points)):
        assert_same(cupycorr.match(*FRAMES, window=5, points=same), want)
    whole = cupycorr.match(*FRAMES, window=5, points=np.array([(7, 8), (20, 10), (3, 44)], np.uint8))
    np.testing.assert_array_equal(whole.dx, want.dx)


def test_windows_at_points_begin_at_the_nearest_whole_pixels():
    odd = cupycorr.match(*FRAMES, window=5, points=[(10.49, 10.5), (10.5, 11.49), (9.51, -0.5)])
    np.testing.assert_array_equal(odd.y, [10, 11, 10])
    np.testing.assert_array_equal(odd.x, [11, 11, 0])
    even = cupycorr.match(*FRAMES, window=6, points=[(10, 10.49), (10.99, 11), (9.51, -0.5)])
    np.testing.assert_array_equal(even.y, [10.5, 10.5, 9.5])
    np.testing.assert_array_equal(even.x, [10.5, 11.5, -0.5])


@pytest.mark.parametrize("variant", ["operator", "fft"])
def test_a_window_at_a_point_may_reach_beyond_frame_1_up_to_half(variant):
    frame = noise((20, 20), 1)
    points = [(y, 10) for y in (-4, -1, 0, 1, 2, 17, 18, 19, 20, 21, 60)]
    found = cupycorr.match(frame, frame, window=5, points=points, search=((0, 0), (0, 0)), variant=variant)
    np.testing.assert_array_equal(found.count, [0, 0, 15, 20, 25, 25, 20, 15, 0, 0, 0])
    np.testing.assert_array_equal(np.isnan(found.dx), found.count == 0)


# Offsets ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["operator", "fft", "auto"])
@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
def test_an_offset_of_all_windows_is_a_search_shifted_by_it(missing, variant):
    options = {"window": 6, "step": 2, "variant": variant}
    if missing:
        options |= {f"mask{number}": ~dots((40, 50), 40, number) for number in (1, 2)}
    want = cupycorr.match(*FRAMES, search=((-1, 5), (-7, -1)), **options)
    field = np.ones(want.dx.shape)
    for offset in ((2, -4), [np.int8(2), -4.0], (2 * field, -4 * field), np.array((2, -4)), np.stack((2 * field, -4 * field))):
        assert_same(cupycorr.match(*FRAMES, search=((-3, 3), (-3, 3)), offset=offset, **options), want, atol=1e-9)


def test_an_offset_that_varies_is_that_of_each_window():
    grid = cupycorr.match(*FRAMES, window=6, step=4)
    random = np.random.default_rng(0)
    dy, dx = random.integers(-6, 7, (2, *grid.dx.shape))
    found = cupycorr.match(*FRAMES, window=6, step=4, offset=(dy, dx))
    points = [(y, x) for y in grid.y for x in grid.x]
    at_points = cupycorr.match(*FRAMES, window=6, points=points, offset=(dy.ravel(), dx.ravel().astype(float)))
    for name in FIELDS:
        np.testing.assert_allclose(getattr(at_points, name), getattr(found, name).ravel(), rtol=1e-12, atol=1e-12)
    for index in ((0, 0), (3, 5), (8, 11)):
        start = dy[index].item(), dx[index].item()
        alone = cupycorr.match(*FRAMES, window=6, step=4, search=tuple((s - 4, s + 4) for s in start))
        for name in FIELDS:
            np.testing.assert_allclose(getattr(found, name)[index], getattr(alone, name)[index], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", ["operator", "fft"])
def test_a_second_pass_from_the_first_finds_motion_beyond_its_own_search(variant):
    frame1 = noise((64, 80), 3)
    frame2 = np.roll(frame1, (9, -11), (0, 1))
    options = {"window": 16, "step": 8, "subpixel": False, "variant": variant}
    coarse = cupycorr.match(frame1, frame2, search=((-12, 12), (-12, 12)), **options)
    start = np.where(np.isfinite(coarse.dy), coarse.dy - 1, 0), np.where(np.isfinite(coarse.dx), coarse.dx + 1, 0)
    fine = cupycorr.match(frame1, frame2, search=((-2, 2), (-2, 2)), offset=start, consistency=True, **options)
    inside = (slice(None, -2), slice(2, None))
    assert (fine.dy[inside] == 9).all()
    assert (fine.dx[inside] == -11).all()
    assert (fine.consistency[inside] == 0).all()


# Templates --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_template_of_other_brightness_is_found_at_its_place(variant):
    coins = pytest.importorskip("skimage.data").coins()
    template = coins[170:220, 75:130] * 0.6 + 60
    found = matched(template, coins.astype(np.float64), window=(50, 55), search=None, subpixel=False, variant=variant)
    assert (found.dy.item(), found.dx.item()) == (170, 75)
    assert found.score.item() >= 1 - 1e-12
    assert found.count.item() == 50 * 55
    assert not found.at_edge.item()
    assert 1 < found.peak_ratio.item() < 2


@pytest.mark.parametrize("place", [(0, 0), (0, 38), (29, 0), (29, 38), (13, 20)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_place_of_a_template_is_searched(variant, place):
    image = noise((40, 50), 5)
    template = image[place[0] : place[0] + 11, place[1] : place[1] + 12]
    found = matched(template, image, window=(11, 12), search=None, variant=variant, subpixel=False)
    assert (found.dy.item(), found.dx.item()) == place


def test_search_none_is_the_range_in_which_some_window_stays_inside_frame_2():
    frame1, frame2 = noise((20, 26), 1), noise((30, 37), 2)
    options = {"window": (6, 9), "step": (4, 5)}  # windows begin at rows 0 to 12 and columns 0 to 15
    assert_same(
        cupycorr.match(frame1, frame2, search=None, **options),
        cupycorr.match(frame1, frame2, search=((-12, 24), (-15, 28)), **options),
    )
    points = [(8, 9), (12, 14)]  # windows of 6 x 9 begin at (6, 5) and (10, 10)
    given = cupycorr.match(frame1, frame2, window=(6, 9), points=points, search=((-10, 18), (-10, 23)))
    assert_same(cupycorr.match(frame1, frame2, window=(6, 9), points=points, search=None), given)


@pytest.mark.parametrize("variant", ["operator", "fft"])
def test_search_none_with_an_offset_still_reaches_every_place(variant):
    image = noise((40, 50), 5)
    for place in ((0, 0), (29, 38), (13, 20)):
        template = image[place[0] : place[0] + 11, place[1] : place[1] + 12]
        found = cupycorr.match(template, image, window=(11, 12), search=None, offset=(10, 10), variant=variant, subpixel=False)
        assert (found.dy.item(), found.dx.item()) == place


def test_a_range_beyond_the_frame_is_reached_from_an_offset():
    frame1, frame2 = noise((40, 40), 1), noise((40, 40), 1)
    near = cupycorr.match(frame1, frame2, 9, ((-9, 11), (0, 4)), points=[(20, 20)])
    far = cupycorr.match(frame1, frame2, 9, ((-60, -40), (0, 4)), points=[(20, 20)], offset=(51, 0))
    assert_same(far, near, atol=1e-12)
    assert abs(far.dy.item()) < 0.5
