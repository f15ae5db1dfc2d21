"""Every variant of `match` against the definition, computed window by window in float64."""

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from match_cases import VARIANTS, dots, matched, noise
from match_oracle import answer, assert_answer

import cupycorr
from cupycorr._cpu import llvm

DTYPES = {"uint8": np.uint8, "float32": np.float32, "float64": np.float64}
CURVES = {"uint8": ("gaussian", False), "float32": ("gaussian",), "float64": ("gaussian", "parabola")}
SHAPE = (24, 30)


def points(count, seed, beyond=9):
    """Return centres in and around a frame, of which about half have a fraction."""
    places = np.random.default_rng(seed).uniform(-beyond, np.array(SHAPE) + beyond, (count, 2))
    return np.where(np.arange(count)[:, None] % 2, np.round(places), places)


def starts(shape, seed, largest=5):
    """Return displacements dy and dx to start from, different for every window."""
    dy, dx = np.random.default_rng(seed).integers(-largest, largest + 1, (2, *shape))
    return dy, dx.astype(np.float64)


SMALL = {"window": 5, "search": ((-3, 3), (-4, 2)), "step": 2}
RANGES = {
    "symmetric": {"window": 5, "search": ((-3, 3), (-3, 3))},
    "stereo, one side": {"window": 5, "search": ((0, 0), (-9, 0))},
    "one side, zero not in it": {"window": (4, 6), "search": ((2, 5), (-7, -3))},
    "rectangular, strided": {"window": (3, 8), "search": ((-4, 2), (-1, 5)), "step": (3, 4)},
    "step larger than the window": {"window": 4, "search": ((-2, 2), (-2, 2)), "step": 7},
    "every window leaves the frame": {"window": (20, 24), "search": ((-5, 5), (-7, 6))},
    "most displacements outside": {"window": 9, "search": ((-17, 22), (-26, 28)), "step": 9},
    "one window": {"window": (24, 30), "search": ((-3, 3), (-3, 3))},
    "one displacement": {"window": 6, "search": ((1, 1), (2, 2))},
    "two displacements": {"window": 6, "search": ((1, 2), (-2, -1))},
    "every place": {"window": (11, 13), "search": None, "step": (6, 8)},
    "windows of one row": {"window": (1, 9), "search": ((-1, 1), (-2, 2)), "step": 3},
}
MISSING = {f"missing in {which}": {**SMALL, "missing": which} for which in ("frame1", "frame2", "both")}
SIZES = {
    "frame 2 is smaller": {**SMALL, "shape2": (17, 21)},
    "frame 2 is larger": {**SMALL, "shape2": (30, 41)},
    "frame 2 is higher and narrower": {**SMALL, "shape2": (31, 19), "missing": "both"},
    "every place in a larger frame": {"window": (20, 28), "search": None, "step": 2, "shape2": (30, 37)},
}
PLACES = {
    "points, even window": {"window": (4, 6), "search": ((-3, 3), (-3, 3)), "points": points(40, 1)},
    "points, odd window": {"window": (5, 7), "search": ((-3, 3), (-3, 3)), "points": points(40, 2)},
    "points, missing": {"window": 6, "search": ((-3, 3), (-2, 4)), "points": points(40, 3), "missing": "both"},
    "points, every place": {"window": 7, "search": None, "points": points(6, 4, beyond=-6)},
    "points far outside": {"window": 5, "points": [(-50, 3), (8.25, 500), (12, 14.5)]},
    "offset of all windows": {**SMALL, "offset": (3, -2)},
    "offset fields": {**SMALL, "offset": starts((10, 13), 5)},
    "offset fields, missing": {**SMALL, "offset": starts((10, 13), 6), "missing": "both"},
    "offset out of the frame": {**SMALL, "offset": (np.full((10, 13), 15), np.zeros((10, 13)))},
    "offset of points": {"window": 5, "search": ((-3, 3), (-3, 3)), "points": points(40, 7), "offset": starts((40,), 8)},
}
CASES = RANGES | MISSING | SIZES | PLACES


@lru_cache(maxsize=2)
def problem(name, dtype):
    """Return the frames and options of a case, and the answers by each curve."""
    options = dict(CASES[name])
    missing, shape2 = options.pop("missing", ""), options.pop("shape2", SHAPE)
    frames = [noise(SHAPE, 1, DTYPES[dtype]), noise(shape2, 2, DTYPES[dtype])]
    if dtype != "uint8":
        frames = [frames[0] / 7 + 1000, frames[1] / 3 - 1e4]
        frames = [frame.astype(dtype) for frame in frames]
    for index, frame in enumerate(frames):
        if missing in (f"frame{index + 1}", "both"):
            lost = dots(frame.shape, 8, seed=index)
            if dtype == "uint8":
                options[f"mask{index + 1}"] = ~lost
            else:
                frame[lost] = np.random.default_rng(3).choice([np.nan, np.inf, -np.inf], lost.sum())
    return frames, options, {curve: answer(*frames, **options, subpixel=curve) for curve in CURVES[dtype]}


@pytest.mark.covering(2)
# The variant is the innermost parameter: all variants of a case are compared with one computation of the definition.
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_field_is_that_of_the_definition(case, dtype, variant):
    frames, options, want = problem(case, dtype)
    for curve, expected in want.items():
        assert_answer(matched(*frames, **options, subpixel=curve, variant=variant), expected)


@pytest.mark.covering(2)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("offset", [None, (2, -1), "fields"], ids=str)
@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
def test_consistency_is_the_distance_to_where_matching_back_leads(missing, offset, variant):
    frame1 = noise((26, 32), 1, np.float32)
    frame2 = np.roll(frame1, (2, -3), (0, 1)) + noise((26, 32), 2) / 3
    if missing:
        frame1[dots(frame1.shape, 20, 1)] = np.nan
        frame2[dots(frame1.shape, 20, 2)] = np.nan
    options = {"window": 7, "search": ((-1, 3), (-4, 4)), "step": 3, "consistency": True}
    if offset is not None:
        options["offset"] = starts((7, 9), 3) if offset == "fields" else offset
    want = answer(frame1, frame2, **options)
    assert (want.consistency < 0.5).any()
    assert (want.consistency > 2).any()
    assert_answer(matched(frame1, frame2, variant=variant, **options), want)
    at_points = {**options, "points": [(y, x) for y in want.y for x in want.x], "step": 1}
    if offset == "fields":
        at_points["offset"] = [each.ravel() for each in options["offset"]]
    got = matched(frame1, frame2, variant=variant, **at_points)
    np.testing.assert_allclose(got.consistency, want.consistency.ravel(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"points": [(9, 9)]}, {"offset": (1, 2)}], ids=["grid", "points", "offset"])
def test_simd_runs_for_all_windows_where_it_can_run_at_all(options):
    if llvm.why_not() is not None:
        pytest.skip(llvm.why_not())
    cupycorr.match(noise(seed=1), noise(seed=2), window=5, variant="simd", **options)


# Drawn at random --------------------------------------------------------------------------------------------------------------


@st.composite
def calls(draw):
    """Draw small frames, with few different values so that scores are equal, and any options."""
    whole = st.integers
    sizes = [(draw(whole(1, 16)), draw(whole(1, 18))) for _ in range(2)]
    random = np.random.default_rng(draw(whole(0, 2**32)))
    dtype = draw(st.sampled_from([np.uint8, np.int32, np.float32, np.float64]))
    levels, unit = draw(st.sampled_from([2, 3, 200])), draw(st.sampled_from([1, 7]))
    frames = [(random.integers(0, levels, size) / unit).astype(dtype) for size in sizes]
    window = draw(whole(1, min(6, sizes[0][0]))), draw(whole(1, min(6, sizes[0][1])))
    options = {"window": window, "subpixel": draw(st.sampled_from(["gaussian", "parabola", True, False]))}
    low = draw(whole(-5, 4)), draw(whole(-5, 4))
    options["search"] = tuple((each, each + draw(whole(0, 5))) for each in low)
    if draw(st.booleans()):
        options["points"] = random.uniform(-4, 20, (draw(whole(1, 12)), 2))
        shape = (len(options["points"]),)
    else:
        step = options["step"] = draw(whole(1, 4)), draw(whole(1, 4))
        shape = tuple((size - w) // s + 1 for size, w, s in zip(sizes[0], window, step, strict=True))
    start = draw(st.sampled_from([None, "all", "each"]))
    if start is not None:
        options["offset"] = tuple(random.integers(-4, 5, shape if start == "each" else (2,)[:0]) for _ in range(2))
    for number, frame in enumerate(frames, 1):
        share = draw(st.sampled_from([0, 0, 0.1, 0.6]))
        if draw(st.booleans()) and share:
            options[f"mask{number}"] = random.random(frame.shape) >= share
        elif share and frame.dtype.kind == "f":
            frame[random.random(frame.shape) < share] = np.nan
    return frames, options


def check_drawn(call, variant):
    frames, options = call
    try:
        got = matched(*frames, variant=variant, **options)
    except ValueError as error:
        assert "search must be " in str(error)  # noqa: PT017 - such a range is refused
        assume(False)
    assert_answer(got, answer(*frames, **options))


@pytest.mark.parametrize("variant", [*VARIANTS, "auto"])
@settings(max_examples=60)
@given(calls())
def test_any_call_gives_the_definition(variant, call):
    check_drawn(call, variant)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=500)
@given(calls())
def test_any_of_many_calls_gives_the_definition(variant, call):
    check_drawn(call, variant)
