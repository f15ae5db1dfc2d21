"""The fields of a match: names, shapes, `at_edge`, `peak_ratio`, `count`, `valid`, and the forward-backward check."""

import dataclasses
import math

import numpy as np
import pytest
from match_cases import VARIANTS, assert_same, dots, matched, noise

import cupycorr

FRAMES = noise(seed=1), noise(seed=2)


def test_result_names_centres_in_pixels_and_flow_in_u_v_order():
    found = cupycorr.match(noise((24, 31), 1), noise((24, 31), 2), window=(4, 7), step=(5, 3), consistency=True)
    for name in ("dx", "dy", "score", "at_edge", "peak_ratio", "count", "consistency"):
        assert getattr(found, name).shape == (5, 9), name
    np.testing.assert_array_equal(found.y, [1.5, 6.5, 11.5, 16.5, 21.5])
    np.testing.assert_array_equal(found.x, 3 + 3 * np.arange(9))
    np.testing.assert_array_equal(found.flow[..., 0], found.dx)
    np.testing.assert_array_equal(found.flow[..., 1], found.dy)
    dtypes = {"at_edge": np.bool_, "count": np.int64}
    for field in dataclasses.fields(found):
        assert type(getattr(found, field.name)) is np.ndarray
        assert getattr(found, field.name).dtype == dtypes.get(field.name, np.float64), field.name
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.dx = None


def test_results_of_points_are_of_one_axis():
    found = cupycorr.match(*FRAMES, window=(4, 7), points=[(3, 4), (8.2, 9.9), (11.5, 20)], consistency=True)
    for field in dataclasses.fields(found):
        assert getattr(found, field.name).shape == (3,), field.name
    np.testing.assert_array_equal(found.y, [3.5, 8.5, 11.5])  # the windows begin at whole pixels: 3 - 1.5 + 0.5 = 2, ...
    np.testing.assert_array_equal(found.x, [4, 10, 20])
    assert found.flow.shape == (3, 2)
    np.testing.assert_array_equal(found.flow, np.stack([found.dx, found.dy], 1))


def test_no_point_gives_no_result():
    for empty in (np.zeros((0, 2)), np.zeros((0, 2), int)):
        found = cupycorr.match(*FRAMES, window=5, points=empty, consistency=True)
        assert found.dx.shape == found.x.shape == found.count.shape == found.consistency.shape == (0,)
        assert found.valid(min_score=0.5).shape == (0,)


# The edge of the search -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("motion", [(0, 5), (0, -5), (5, 0), (-5, 0), (4, 4), (3, -2)], ids=str)
def test_at_edge_tells_that_the_true_motion_may_be_beyond_the_search(motion, variant):
    frame = sum(
        np.kron(noise((60 // size, 60 // size), size), np.ones((size, size))) for size in (4, 6)
    )  # smooth enough to climb
    frame2 = np.roll(frame, motion, (0, 1))
    found = matched(frame, frame2, window=15, search=((-4, 4), (-4, 4)), step=3, variant=variant)
    inside = (slice(3, -3), slice(3, -3))
    reached = max(map(abs, motion)) >= 4
    assert found.at_edge[inside].all() if reached else not found.at_edge[inside].any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_axis_that_is_not_searched_has_no_edge(variant):
    frame = noise((30, 40))
    found = matched(frame, np.roll(frame, 2, 1), window=7, search=((0, 0), (-4, 4)), variant=variant)
    assert not found.at_edge[:, 4:-4].any()
    alone = matched(frame, frame, window=7, search=((0, 0), (0, 0)), variant=variant)
    assert not alone.at_edge.any()
    assert (alone.peak_ratio == np.inf).all()
    both = matched(frame, frame, window=7, search=((0, 0), (0, 1)), variant=variant)
    assert both.at_edge.all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_peak_ratio_is_infinite_if_no_score_outside_the_neighbourhood_is_positive(variant):
    # All displacements are in the neighbourhood of the best one.
    near = matched(*FRAMES, window=5, search=((-1, 1), (-1, 1)), variant=variant)
    centre = (near.dx.round() == 0) & (near.dy.round() == 0) & ~near.at_edge
    assert centre.any()
    assert (near.peak_ratio[centre] == np.inf).all()
    # The only others are of the opposite contrast, or flat.
    random = np.random.default_rng(0)
    window = random.normal(size=(9, 1)) * np.ones((9, 9))
    opposite = np.concatenate([window, np.zeros((9, 40)), -window], axis=1)
    found = matched(window, opposite, window=9, search=((0, 0), (30, 49)), variant=variant)
    assert found.score.item() < 0
    assert found.peak_ratio.item() == np.inf


@pytest.mark.parametrize("variant", VARIANTS)
def test_peak_ratio_is_the_score_over_the_highest_outside_the_neighbourhood(variant):
    frame1 = noise((9, 9), dtype=np.float64)
    frame2 = noise((30, 40), 2, np.float64)
    frame2[12:21, 5:14] = frame1
    frame2[12:21, 25:34] = frame1 + noise((9, 9), 3)  # a second place that is as good as half of its pixels' variance
    second = np.corrcoef(frame1.ravel(), frame2[12:21, 25:34].ravel())[0, 1]
    found = matched(frame1, frame2, window=9, search=None, variant=variant, subpixel=False)
    assert (found.dy.item(), found.dx.item()) == (12, 5)
    assert found.peak_ratio.item() == pytest.approx(1 / second, rel=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_a_match_all_fields_say_so(variant):
    frame = noise((30, 40), dtype=np.float64)
    frame[:20, :20] = np.nan
    found = matched(frame, frame, window=7, variant=variant)
    nothing = np.isnan(found.dx)
    assert 0 < nothing.sum() < nothing.size
    for values in (found.dy, found.peak_ratio):
        np.testing.assert_array_equal(np.isnan(values), nothing)
    assert (found.score[nothing] == 0).all()
    assert (found.count[nothing] == 0).all()
    assert not found.at_edge[nothing].any()
    assert (found.count[~nothing] >= 25).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("axis", [0, 1], ids=["vertical", "horizontal"])
@pytest.mark.parametrize("sign", [-1, 1], ids=["before", "after"])
def test_a_displaced_window_counts_while_half_of_it_is_inside(sign, axis, variant):
    for displacement, lost in ((2, 0), (3, 1)):
        search = [(0, 0), (0, 0)]
        search[axis] = (sign * displacement,) * 2
        found = matched(*FRAMES, window=4, search=tuple(search), variant=variant)
        score, count = (np.moveaxis(each, axis, 0)[::-sign] for each in (found.score, found.count))  # leaving windows first
        assert (score[:lost] == 0).all()
        assert (count[:lost] == 0).all()
        assert (score[lost:] != 0).all()
        inside = np.arange(len(count) - lost) + lost - displacement
        np.testing.assert_array_equal(count[lost:, 3], 4 * np.minimum(inside + 4, 4))


def test_scores_are_coefficients():
    frame = noise((40, 40), dtype=np.float64) / 255
    same = cupycorr.match(frame, frame, window=7).score
    opposite = cupycorr.match(frame, -frame, window=7, search=((0, 0), (0, 0))).score
    assert same.max() <= 1
    assert same.min() >= 1 - 1e-12
    assert opposite.min() >= -1
    assert opposite.max() <= -1 + 1e-12


# Valid ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def doubtful():
    """Return a match with windows that pass and fail every test of `valid`."""
    frame1 = noise((60, 70), 1, np.float64)
    frame2 = np.roll(frame1, (2, -3), (0, 1)) + noise((60, 70), 2) / 2
    frame2[20:40, 30:50] = noise((20, 20), 3)
    frame1[dots(frame1.shape, 12, 4)] = np.nan
    frame1[45:, :12] = 5
    return cupycorr.match(frame1, frame2, window=8, search=((-4, 4), (-4, 4)), step=3, consistency=True)


def test_without_a_test_those_with_a_match_that_is_not_at_the_edge_are_valid(doubtful):
    found = np.isfinite(doubtful.dx)
    assert 0 < (found & doubtful.at_edge).sum() < found.sum() < found.size
    np.testing.assert_array_equal(doubtful.valid(), found & ~doubtful.at_edge)
    np.testing.assert_array_equal(doubtful.valid(allow_edge=True), found)
    np.testing.assert_array_equal(doubtful.valid(allow_edge=np.False_), doubtful.valid())
    assert doubtful.valid().dtype == np.bool_


def passes(doubtful):
    residual = cupycorr.median_residual(doubtful.dy, doubtful.dx)
    return {
        "min_score": (0.7, doubtful.score >= 0.7),
        "min_peak_ratio": (1.3, doubtful.peak_ratio >= 1.3),
        "min_count": (58, doubtful.count >= 58),
        "consistency": (0.5, doubtful.consistency <= 0.5),
        "max_median_residual": (2, residual <= 2),
    }


@pytest.mark.parametrize("name", ["min_score", "min_peak_ratio", "min_count", "consistency", "max_median_residual"])
def test_each_threshold_of_valid_tests_its_field(doubtful, name):
    threshold, passed = passes(doubtful)[name]
    for edge in (False, True):
        before = doubtful.valid(allow_edge=edge)
        valid = doubtful.valid(**{name: threshold}, allow_edge=edge)
        np.testing.assert_array_equal(valid, before & passed)
        assert valid.any()
        assert (valid != before).any()
    np.testing.assert_array_equal(doubtful.valid(**{name: np.float32(threshold)}) >= 0, True)


def test_thresholds_are_included(doubtful):
    at = tuple(np.argwhere(doubtful.valid() & np.isfinite(doubtful.peak_ratio))[0])
    for name, field in (("min_score", "score"), ("min_peak_ratio", "peak_ratio"), ("min_count", "count")):
        value = getattr(doubtful, field)[at].item()
        assert doubtful.valid(**{name: value})[at]
        assert not doubtful.valid(**{name: np.nextafter(value, np.inf)})[at]
    distance = doubtful.consistency[at].item()
    assert doubtful.valid(consistency=distance)[at]
    assert not doubtful.valid(consistency=np.nextafter(distance, -1))[at]


def test_all_thresholds_must_be_passed(doubtful):
    tests = {name: threshold for name, (threshold, _) in passes(doubtful).items()}
    want = doubtful.valid() & np.all([passed for _, passed in passes(doubtful).values()], axis=0)
    assert want.any()
    np.testing.assert_array_equal(doubtful.valid(**tests), want)
    trusted = np.hypot(doubtful.dx + 3, doubtful.dy - 2)[want]
    assert trusted.max() < 0.5


THRESHOLDS = ("min_score", "min_peak_ratio", "min_count", "consistency", "max_median_residual")
BAD_THRESHOLDS = {
    **{f"{name}={bad!r}": ({name: bad}, TypeError, f"{name} must be") for name in THRESHOLDS for bad in ("1", 1j, [1], True)},
    **{f"{name}=nan": ({name: math.nan}, ValueError, f"{name} must be") for name in THRESHOLDS},
    **{f"allow_edge={bad!r}": ({"allow_edge": bad}, TypeError, "allow_edge must be a bool") for bad in (1, 0, None, "yes")},
}


@pytest.mark.parametrize(("options", "error", "message"), BAD_THRESHOLDS.values(), ids=BAD_THRESHOLDS)
def test_bad_thresholds_are_refused(doubtful, options, error, message):
    with pytest.raises(error, match=message):
        doubtful.valid(**options)


def test_a_test_that_needs_what_was_not_computed_is_refused():
    with pytest.raises(ValueError, match="consistency=1 needs"):
        cupycorr.match(*FRAMES, window=5).valid(consistency=1)
    at_points = cupycorr.match(*FRAMES, window=5, points=[(8, 8), (9, 9)])
    with pytest.raises(ValueError, match=r"max_median_residual.*grid"):
        at_points.valid(max_median_residual=2)


# Forward and backward ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_windows_that_are_occluded_are_inconsistent(variant):
    scene, front = noise((40, 90), 1), noise((40, 90), 2)
    left, right = scene.copy(), np.roll(scene, -2, 1)
    left[10:30, 40:60] = front[10:30, 40:60]
    right[10:30, 30:50] = front[10:30, 40:60]  # nearer: the disparity is 10, and columns 32 to 40 of the left frame are hidden
    found = matched(left, right, window=5, search=((0, 0), (-14, 0)), consistency=True, subpixel=False, variant=variant)
    rows = slice(12, 24)
    hidden = found.consistency[rows, 32:36]  # windows of columns 32 to 40 only
    assert (hidden > 1).mean() > 0.9
    for columns, disparity in ((slice(16, 26), 2), (slice(42, 54), 10), (slice(62, 80), 2)):
        assert (found.dx[rows, columns] == -disparity).all()
        assert (found.consistency[rows, columns] < 0.5).all()
    valid = found.valid(consistency=1, allow_edge=True)
    assert valid[rows, 62:80].all()
    assert not valid[rows, 32:36].all()


@pytest.mark.covering(2)
@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
@pytest.mark.parametrize("step", [1, 3, 9])
@pytest.mark.parametrize("variant", ["operator", "fft", "auto"])
def test_consistency_is_the_same_for_a_grid_and_for_points(variant, step, missing):
    frames = [noise((40, 44), seed, np.float64) for seed in (1, 2)]
    frames[1][8:30, 10:34] = frames[0][6:28, 9:33]
    if missing:
        frames[1][dots((40, 44), 15)] = np.nan
    options = {"window": 7, "search": ((-3, 3), (-4, 2)), "consistency": True, "variant": variant}
    grid = cupycorr.match(*frames, step=step, **options)
    points = [(y, x) for y in grid.y for x in grid.x]
    single = cupycorr.match(*frames, points=points, **options)
    for name in ("dx", "dy", "score", "peak_ratio", "consistency", "count", "at_edge"):
        np.testing.assert_allclose(getattr(single, name), getattr(grid, name).ravel(), rtol=1e-9, atol=1e-9, err_msg=name)
    assert (grid.consistency == 0).any() or (grid.consistency < 0.5).any()


def test_consistency_is_nan_without_a_match_and_none_if_it_was_not_asked_for():
    frame1, frame2 = noise((30, 40), 1, np.float64), noise((30, 40), 2, np.float64)
    frame1[:14, :14] = 3
    assert cupycorr.match(frame1, frame2, window=6).consistency is None
    found = cupycorr.match(frame1, frame2, window=6, consistency=True)
    nothing = np.isnan(found.dx)
    assert nothing.any()
    assert np.isnan(found.consistency[nothing]).all()
    without = cupycorr.match(frame1, frame2, window=6)
    assert_same(dataclasses.replace(found, consistency=None), without)


def test_a_negative_score_has_no_peak_ratio_to_trust():
    frame = noise((9, 9), dtype=np.float64)
    found = cupycorr.match(frame, -frame, window=9, search=((0, 0), (0, 0)))
    assert found.score.item() < -0.99
    assert found.valid().item()
    assert not found.valid(min_peak_ratio=1).item()
