"""Equal scores: the shortest displacement wins, then the first in (dy, dx) order, by every variant."""

import numpy as np
import pytest
from match_cases import VARIANTS, assert_same, matched, noise
from match_oracle import answer, assert_answer

ORDER = [(0, 0), (-4, 0), (0, -4), (0, 4), (4, 0), (-4, -4), (-4, 4), (4, -4), (4, 4), (-8, 0), (0, -8), (0, 8), (8, 0)]


def stripes(shape=(40, 44), period=6):
    return np.broadcast_to((np.arange(shape[1]) % period * 50).astype(np.uint8), shape)


def chessboard(shape=(40, 44), field=3):
    y, x = np.indices(shape)
    return ((y // field + x // field) % 2 * 200).astype(np.uint8)


def lattice_of_points(shape=(40, 44), period=4):
    y, x = np.indices(shape)
    return ((y % period == 0) & (x % period == 0)).astype(np.uint8)


TEXTURES = {"stripes": stripes, "chessboard": chessboard, "points": lattice_of_points, "noise": lambda: noise((40, 44))}
SCALES = {"uint8": lambda f: f, "float32 / 7": lambda f: np.float32(f) / np.float32(7), "float64 / 7": lambda f: f / 7}
SEARCH = ((-7, 7), (-8, 6))


@pytest.mark.covering(2)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("texture", TEXTURES)
def test_a_frame_against_itself_does_not_move(texture, scale, variant):
    frame = SCALES[scale](TEXTURES[texture]())
    for options in ({"step": 1}, {"points": [(y, x) for y in range(3, 40, 5) for x in (4, 7, 11.5, 20, 38)]}):
        found = matched(frame, frame, window=9, search=SEARCH, subpixel=False, variant=variant, **options)
        assert (found.dy == 0).all()
        assert (found.dx == 0).all()
        assert (found.score >= 1 - 1e-12).all()
        assert (found.score <= 1).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scale", SCALES)
def test_of_equal_displacements_of_stripes_the_shortest_wins(scale, variant):
    frame = SCALES[scale](stripes(period=6))
    moved = np.roll(frame, 3, axis=1)
    found = matched(frame, moved, window=9, search=((-2, 3), (-8, 8)), subpixel=False, variant=variant)
    inside = (slice(3, -3), slice(9, -9))  # here, 3 pixels to either side are equal
    assert (found.dy[inside] == 0).all()
    assert (found.dx[inside] == -3).all()
    found = matched(frame, moved, window=9, search=((1, 3), (-2, 8)), subpixel=False, variant=variant)
    assert (found.dy[inside] == 1).all()
    assert (found.dx[inside] == 3).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("scale", SCALES)
def test_among_equal_lengths_the_first_in_dy_dx_order_wins(scale, variant):
    scaled, options = SCALES[scale], {"window": 3, "search": ((-8, 8), (-8, 8)), "step": 9, "subpixel": False, "variant": variant}
    frame1, background = noise((21, 21), 1), noise((21, 21), 2)
    for earlier, later in ((one, two) for index, one in enumerate(ORDER) for two in ORDER[index + 1 : index + 4]):
        frame2 = background.copy()
        for dy, dx in (earlier, later):
            frame2[9 + dy : 12 + dy, 9 + dx : 12 + dx] = frame1[9:12, 9:12]
        found = matched(scaled(frame1), scaled(frame2), **options)
        assert (found.dy[1, 1], found.dx[1, 1]) == earlier, f"{earlier} and {later} are equal"
        assert found.score[1, 1] >= 1 - 1e-12
        assert found.peak_ratio[1, 1] == pytest.approx(1, abs=1e-12)


@pytest.mark.covering(2)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("offset", [None, (2, -3)], ids=["no offset", "offset"])
def test_equal_scores_of_points_are_decided_by_length_and_order(offset, variant, scale):
    frame = lattice_of_points(period=4)
    moved = np.roll(frame, (2, 2), (0, 1))  # all of (-2, -2), (-2, 2), (2, -2) and (2, 2) are equal
    options = {"window": 8, "search": ((-5, 5), (-6, 6)), "step": 3, "subpixel": False}
    if offset is not None:
        options["offset"] = offset
    found = matched(SCALES[scale](frame), SCALES[scale](moved), variant=variant, **options)
    inside = (slice(3, -3), slice(3, -3))
    want = (-2, -2) if offset is None else (2, -2)  # the nearest to the offset
    assert (found.dy[inside] == want[0]).all()
    assert (found.dx[inside] == want[1]).all()
    assert_answer(matched(frame, moved, variant=variant, **options), answer(frame, moved, **options))


@pytest.mark.covering(2)
@pytest.mark.parametrize("texture", ["stripes", "chessboard", "points"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_scores_give_the_same_displacement_by_every_variant_and_at_every_scale(variant, scale, texture):
    frame = TEXTURES[texture]()
    moved = np.roll(frame, (1, -2), (0, 1))
    options = {"window": (8, 9), "search": SEARCH, "subpixel": False}
    want = matched(frame, moved, variant="operator", **options)
    got = matched(SCALES[scale](frame), SCALES[scale](moved), variant=variant, **options)
    for name in ("dy", "dx", "count", "at_edge"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)
    if scale == "uint8":
        assert_same(got, want, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_scores_are_not_refined(variant):
    frame = stripes()
    found = matched(frame, frame, window=9, search=((-2, 2), (0, 0)), variant=variant)
    inside = (slice(3, -3), slice(None))
    assert (found.dy[inside] == 0).all()
    np.testing.assert_allclose(found.peak_ratio[inside], 1, rtol=1e-12)
