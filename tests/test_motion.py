"""`match` against an independent loop over its formula, known motion, ground truth and OpenPIV on real images."""

import ast
import dataclasses
import inspect
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import cupycorr
from cupycorr import motion

rng = np.random.default_rng


def noise(shape=(24, 30), seed=0, dtype=np.uint8):
    """Return a frame with texture at every scale down to the pixel."""
    return rng(seed).integers(0, 256, shape).astype(dtype)


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def zncc(a, b):
    """Return the correlation coefficient in float64; NaN where a side has no texture."""
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt((a * a).sum() * (b * b).sum())
    return (a * b).sum() / norm if norm > 1e-9 * max(abs(a).max(), abs(b).max(), 1e-300) else math.nan


def every_score(frame1, frame2, window, search, step):
    """(windows down, windows across, dy, dx) of scores, NaN for no candidate: the definition as four loops."""
    frame1, frame2 = frame1.astype(np.float64), frame2.astype(np.float64)
    (height, width), (wh, ww), (sy, sx) = frame1.shape, pair(window), pair(step)
    (dy_lo, dy_hi), (dx_lo, dx_hi) = search
    shape = ((height - wh) // sy + 1, (width - ww) // sx + 1, dy_hi - dy_lo + 1, dx_hi - dx_lo + 1)
    scores = np.full(shape, np.nan)
    for i, j, m, n in np.ndindex(shape):
        dy, dx = dy_lo + m, dx_lo + n
        top, bottom = max(i * sy, -dy), min(i * sy + wh, height - dy)
        left, right = max(j * sx, -dx), min(j * sx + ww, width - dx)
        if bottom <= top or right <= left or 2 * (bottom - top) * (right - left) < wh * ww:
            continue
        a, b = frame1[top:bottom, left:right], frame2[top + dy : bottom + dy, left + dx : right + dx]
        if np.isfinite(frame1[i * sy : i * sy + wh, j * sx : j * sx + ww]).all() and np.isfinite(b).all():
            scores[i, j, m, n] = zncc(a, b)
    return scores


def vertex(before, peak, after):
    curvature = 2 * peak - before - after
    return 0.0 if not curvature > 0 else min(max(0.5 * (after - before) / curvature, -0.5), 0.5)


def best(scores, search, subpixel):
    """dy, dx and score from all scores: first maximum in (dy, dx) order, a parabola in each axis."""
    field = np.full((3, *scores.shape[:2]), np.nan)
    field[2] = 0
    for i, j in np.ndindex(scores.shape[:2]):
        volume = scores[i, j]
        if np.isnan(volume).all():
            continue
        m, n = np.unravel_index(np.nanargmax(volume), volume.shape)
        padded = np.pad(volume, 1, constant_values=np.nan)[m : m + 3, n : n + 3]
        across, down = vertex(*padded[1]), vertex(*padded[:, 1])
        field[:, i, j] = search[0][0] + m + down * subpixel, search[1][0] + n + across * subpixel, volume[m, n]
    return field


def assert_field(got, want, atol=1e-9):
    for name, expected in zip(("dy", "dx", "score"), want, strict=True):
        np.testing.assert_allclose(getattr(got, name), expected, rtol=0, atol=atol, err_msg=name)


# The definition ----------------------------------------------------------------------------------------------------------------

DEFINITION = {
    "symmetric": {"window": 5, "search": ((-3, 3), (-3, 3))},
    "stereo, one side": {"window": 5, "search": ((0, 0), (-9, 0))},
    "one side, zero not in it": {"window": (4, 6), "search": ((2, 5), (-7, -3))},
    "rectangular, strided": {"window": (3, 8), "search": ((-4, 2), (-1, 5)), "step": (3, 4)},
    "step larger than the window": {"window": 4, "search": ((-2, 2), (-2, 2)), "step": 7},
    "every window leaves the frame": {"window": (20, 24), "search": ((-5, 5), (-7, 6))},
    "most displacements outside": {"window": 9, "search": ((-22, 22), (-28, 28)), "step": 9},
    "one window": {"window": (24, 30), "search": ((-3, 3), (-3, 3))},
    "one displacement": {"window": 6, "search": ((1, 1), (2, 2))},
    "two displacements": {"window": 6, "search": ((1, 2), (-2, -1))},
}


@pytest.mark.parametrize("case", DEFINITION.values(), ids=DEFINITION)
@pytest.mark.parametrize("dtype", [np.uint8, np.float64], ids=["uint8", "float64"])
def test_field_is_the_best_coefficient_of_an_independent_loop(case, dtype):
    frame1, frame2 = noise(seed=1, dtype=dtype), noise(seed=2, dtype=dtype)
    if dtype is np.float64:
        frame1, frame2 = frame1 / 7 + 1000, frame2 / 3 - 1e4
    scores = every_score(frame1, frame2, case["window"], case["search"], case.get("step", 1))
    for subpixel in (True, False):
        assert_field(cupycorr.match(frame1, frame2, subpixel=subpixel, **case), best(scores, case["search"], subpixel))


@pytest.mark.parametrize("axis", [0, 1], ids=["vertical", "horizontal"])
@pytest.mark.parametrize("sign", [-1, 1], ids=["before", "after"])
def test_a_displaced_window_counts_while_half_of_it_is_inside(axis, sign):
    frame1, frame2 = noise(seed=1), noise(seed=2)
    for displacement, lost in ((2, 0), (3, 1)):
        search = [(0, 0), (0, 0)]
        search[axis] = (sign * displacement,) * 2
        score = cupycorr.match(frame1, frame2, window=4, search=tuple(search)).score
        score = np.moveaxis(score, axis, 0)[::-sign]  # windows that leave the frame first
        assert (score[:lost] == 0).all()
        assert (score[lost:] != 0).all()


def test_of_equal_scores_the_first_displacement_wins():
    stripes = np.tile(noise((1, 40)), (20, 1))  # every dy is as good as any other
    found = cupycorr.match(stripes, stripes, window=5, search=((-2, 3), (-4, 4)))
    inside = found.dy[2:-3, 4:-4]
    assert (inside == -2).all()
    assert (np.rint(found.dx[2:-3, 4:-4]) == 0).all()


def test_search_border_is_not_refined():
    frame = noise((40, 40))
    found = cupycorr.match(frame, np.roll(frame, (3, -3), (0, 1)), window=9, search=((0, 3), (-3, 0)))
    assert (found.dy[5:-5, 5:-5] == 3).all()
    assert (found.dx[5:-5, 5:-5] == -3).all()


def test_scores_are_coefficients():
    frame = noise((40, 40), dtype=np.float64) / 255
    same = cupycorr.match(frame, frame, window=7).score
    opposite = cupycorr.match(frame, -frame, window=7, search=((0, 0), (0, 0))).score
    assert same.max() <= 1
    assert same.min() >= 1 - 1e-12
    assert opposite.min() >= -1
    assert opposite.max() <= -1 + 1e-12


# Known motion ------------------------------------------------------------------------------------------------------------------

DTYPES = ["uint8", "uint16", "int16", "int32", "uint64", "float16", "bfloat16", "float32", "float64", "longdouble"]


@pytest.mark.parametrize("colour", [False, True], ids=["grey", "colour"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_pixel_motion_is_found_exactly_in_every_dtype(dtype, colour):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    frame1 = noise((40, 50, 3) if colour else (40, 50)).astype(dtype)
    frame2 = np.roll(frame1, (2, -5), (0, 1))
    found = cupycorr.match(frame1, frame2, window=(7, 9), search=((-1, 3), (-8, 0)), step=(2, 3), subpixel=False)
    inside = (slice(None, -1), slice(2, None))  # these windows have not been rolled across the frame's border
    assert (found.dy[inside] == 2).all()
    assert (found.dx[inside] == -5).all()
    assert (found.score[inside] > 1 - 1e-12).all()


PERIODS = (8, 12)  # pixels


def waves(y, x):
    """Return waves along each axis; over whole periods their coefficient is the mean of the cosines of the phase lags."""
    return sum(np.cos(2 * np.pi * at / period + period) for at in (y, x) for period in PERIODS)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.25, -0.4), (-1.5, 2.3), (0.5, 0.5), (-2.1, -1.8)], ids=str)
def test_fractions_of_a_pixel_are_found(shift):
    y, x = np.mgrid[:60.0, :66.0]
    found = cupycorr.match(
        waves(y, x), waves(y - shift[0], x - shift[1]), window=math.lcm(*PERIODS), search=((-4, 4),) * 2, step=4
    )
    for name, want in zip(("dy", "dx"), shift, strict=True):
        error = np.abs(getattr(found, name)[1:-1, 1:-1] - want)  # these windows stay inside frame 2
        assert error.size > 50
        assert error.max() < 0.02, name


# What must not matter ----------------------------------------------------------------------------------------------------------


CHANGES = {
    "uint16 + 30000": lambda f: f.astype(np.uint16) + np.uint16(30000),
    "uint16 * 100 + 30000": lambda f: f.astype(np.uint16) * np.uint16(100) + np.uint16(30000),
    "int32 + 10^9": lambda f: f.astype(np.int32) + 10**9,
    "int64 - 2^48": lambda f: f.astype(np.int64) - 2**48,
    "int32 * 7 - 30000": lambda f: f.astype(np.int32) * 7 - 30000,
    "float32": lambda f: f.astype(np.float32),
    "float32 + 3e4": lambda f: f.astype(np.float32) + np.float32(3e4),
    "float32 * 64 - 3e4": lambda f: f.astype(np.float32) * np.float32(64) - np.float32(3e4),
    "float64 + 3e4": lambda f: f + 3e4,
    "float64 / 300 + 3e4": lambda f: f / 300 + 3e4,
    "float64 * 1e-200": lambda f: f * 1e-200,
    "float64 * 1e200": lambda f: f * 1e200,
}


@pytest.mark.parametrize("which", [(True, False), (False, True), (True, True)], ids=["frame1", "frame2", "both"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_neither_constant_nor_contrast_changes_the_answer(change, which):
    frames = [noise((40, 50), seed) // 4 * 4 for seed in (1, 2)]
    frames[0][5:18, 7:20] = 9  # flat stays flat
    frames[1][20:, 30:] = 200
    want = cupycorr.match(*frames, window=5, step=2)
    got = cupycorr.match(*(change(f) if do else f for f, do in zip(frames, which, strict=True)), window=5, step=2)
    assert np.isnan(want.dx).any()
    assert_field(got, (want.dy, want.dx, want.score), atol=1e-7)


def test_grey_frames_are_colour_frames_with_equal_channels():
    frame1, frame2 = noise(seed=1), noise(seed=2)
    grey = cupycorr.match(frame1, frame2, window=5)
    colour = cupycorr.match(*(np.repeat(f[..., None], 3, axis=2) for f in (frame1, frame2)), window=5)
    assert_field(colour, (grey.dy, grey.dx, grey.score), atol=1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32], ids=["uint8", "float32"])
def test_colour_is_weighed_by_rec_709(dtype):
    frame1, frame2 = noise((24, 30, 3), 1).astype(dtype), noise((24, 30, 3), 2).astype(dtype)
    luma = [f.astype(np.float64) @ [0.2126, 0.7152, 0.0722] for f in (frame1, frame2)]
    want = cupycorr.match(*luma, window=5)
    assert_field(cupycorr.match(frame1, frame2, window=5), (want.dy, want.dx, want.score), atol=1e-9)


def test_strides_and_read_only_frames_do_not_matter_and_frames_are_left_alone():
    frame1, frame2 = noise(seed=1, dtype=np.float64), noise(seed=2, dtype=np.float64)
    want = cupycorr.match(frame1, frame2, window=5)
    views = [np.repeat(np.asfortranarray(f), 2, axis=1)[:, ::2] for f in (frame1, frame2)]
    for view in views:
        view.flags.writeable = False
    got = cupycorr.match(*views, window=5)
    assert_field(got, (want.dy, want.dx, want.score), atol=0)
    np.testing.assert_array_equal(views[0], frame1)


# No texture, no number ---------------------------------------------------------------------------------------------------------

LEVELS = {"uint8": np.uint8(7), "uint16": np.uint16(65535), "float32": np.float32(0.1), "float64": 3e4 + 0.1}


@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("window", [5, 16])
def test_a_flat_window_has_no_displacement_and_score_zero(level, window):
    texture, flat = noise((40, 60), 1).astype(level.dtype if hasattr(level, "dtype") else float), (slice(2, 36), slice(10, 50))
    patched = texture.copy()
    patched[flat] = level
    inside = (slice(2, 37 - window), slice(10, 51 - window))
    search = ((0, 0), (-3, 3))
    found = cupycorr.match(patched, texture, window=window, search=search)
    expected = np.zeros(found.score.shape, bool)
    expected[inside] = True
    np.testing.assert_array_equal(np.isnan(found.dx), expected)
    np.testing.assert_array_equal(np.isnan(found.dy), expected)
    np.testing.assert_array_equal(found.score == 0, expected)
    # In frame 2 every displacement must be flat, so three columns fewer on each side.
    found = cupycorr.match(texture, patched, window=window, search=search)
    expected[:] = False
    expected[inside[0], 13 : 48 - window] = True
    np.testing.assert_array_equal(np.isnan(found.dx), expected)
    np.testing.assert_array_equal(found.score == 0, expected)


@pytest.mark.parametrize("value", [0, 0.3, math.nan, math.inf], ids=str)
def test_a_frame_without_texture_matches_nothing(value):
    nothing, something = np.full((20, 20), value), noise((20, 20), dtype=np.float64)
    for frames in ((nothing, something), (something, nothing), (nothing, nothing)):
        found = cupycorr.match(*frames, window=5)
        assert np.isnan(found.dx).all()
        assert np.isnan(found.dy).all()
        assert (found.score == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("which", [0, 1], ids=["frame1", "frame2"])
@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)], ids=["float32", "float64"])
def test_a_pixel_that_is_not_finite_spoils_its_own_windows_only(bad, which, dtype):
    frames = [noise(seed=seed, dtype=dtype) for seed in (1, 2)]
    frames[which][9, 13] = frames[which][0, 0] = bad
    case = {"window": 5, "search": ((-3, 3), (-4, 2))}
    found = cupycorr.match(*frames, **case)
    assert_field(found, best(every_score(*frames, step=1, **case), case["search"], True), atol=1e-7)
    if which == 0:
        assert np.isnan(found.dx).sum() == 5 * 5 + 1
    else:
        assert not np.isnan(found.dx).any()


def test_colour_pixels_of_opposite_infinities_are_missing_pixels():
    frame = noise((24, 30, 3), dtype=np.float64)
    frame[9, 13] = math.inf, -math.inf, 0
    found = cupycorr.match(frame, noise((24, 30, 3), 2, np.float64), window=5)
    assert np.isnan(found.dx).sum() == 5 * 5


def test_one_huge_pixel_spoils_only_windows_that_hold_it():
    frame1, frame2 = noise((40, 60), 1, np.float64), noise((40, 60), 2, np.float64)
    want = cupycorr.match(frame1, frame2, window=5)
    for frame in (frame1, frame2):
        frame[3, 4] = 1e8
    got = cupycorr.match(frame1, frame2, window=5)
    far = (slice(12, None), slice(13, None))
    assert_field(got_part(got, far), (want.dy[far], want.dx[far], want.score[far]), atol=1e-3)


def got_part(found, at):
    return dataclasses.replace(found, dx=found.dx[at], dy=found.dy[at], score=found.score[at])


# Slabs and memory --------------------------------------------------------------------------------------------------------------

SEARCHES = {
    "both axes": ((-4, 5), (-3, 3)),
    "stereo": ((0, 0), (-9, 0)),
    "vertical": ((-5, 6), (0, 0)),
    "two rows": ((0, 1), (-2, 2)),
}


def tiling(shape, window, search, step=1):
    return motion._tiling(*motion._axes(shape, window, search, step))


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("kib", [0, 40, pytest.param(16, marks=pytest.mark.slow), pytest.param(80, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64], ids=["uint8", "float64"])
def test_the_answer_does_not_depend_on_bands_and_slabs(search, kib, dtype, monkeypatch):
    frames = [waves(*np.mgrid[:24.0, :30.0]) * 30 + noise(seed=seed) / 100 for seed in (1, 2)]
    frames = [(f / 7 if dtype is np.float64 else f + 130).astype(dtype) for f in frames]
    want = cupycorr.match(*frames, window=5, search=search)
    assert tiling((24, 30), 5, search) == (20, search[0][1] - search[0][0] + 1)  # all at once
    monkeypatch.setattr(motion, "_WORKSPACE", kib * 1024)
    assert tiling((24, 30), 5, search)[0] < 20
    got = cupycorr.match(*frames, window=5, search=search)
    # Sums of whole numbers are exact; those of other numbers may round differently where a tile begins elsewhere.
    assert_field(got, (want.dy, want.dx, want.score), atol=0 if dtype is np.uint8 else 1e-10)


@pytest.mark.parametrize("slab", [1, 2, 3, 4, 9, 10])
def test_parabolas_reach_across_slabs(slab, monkeypatch):
    frames = [noise(seed=seed) for seed in (1, 2)]
    want = cupycorr.match(*frames, window=5, search=((-4, 5), (-3, 3)))
    monkeypatch.setattr(motion, "_tiling", lambda vertical, horizontal: (7, slab))
    got = cupycorr.match(*frames, window=5, search=((-4, 5), (-3, 3)))
    assert_field(got, (want.dy, want.dx, want.score), atol=0)


def test_memory_stays_within_the_workspace(monkeypatch):
    shape, radius, mebi = (300, 400), 12, 2**20
    frames = [noise(shape, seed) for seed in (1, 2)]
    volume = 8 * (2 * radius + 1) ** 2 * 297 * 397
    monkeypatch.setattr(motion, "_WORKSPACE", 8 * mebi)
    # The operator, by its own promise, takes its output and 64 MiB; what is measured here is what match adds.
    monkeypatch.setattr(motion, "spatial_correlation_sample", weightless)
    tracemalloc.start()
    try:
        cupycorr.match(*frames, window=4, search=((-radius, radius),) * 2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    frames_and_results = 8 * 300 * 400 * 7
    assert peak < 8 * mebi + frames_and_results
    assert volume > 20 * peak


def weightless(input1, input2, *, out=None, **parameters):
    """Return ones in the shape of the operator's output."""
    (wh, ww), (ph, pw), (sh, sw) = (parameters[name] for name in ("kernel_size", "patch_size", "stride"))
    (batch, _, height, width) = input1.shape
    if out is None:
        out = np.empty((batch, ph, pw, (height - wh) // sh + 1, (width - ww) // sw + 1))
    out[...] = 1
    return out


@pytest.mark.parametrize("radius", [0, 3, 30])
@pytest.mark.parametrize("step", [1, 8, 32])
def test_large_frames_are_tiled_to_stay_under_two_gibibytes(step, radius):
    vertical, horizontal = motion._axes((4000, 4000), 32, ((-radius, radius),) * 2, step)
    band, slab = motion._tiling(vertical, horizontal)
    tried = 2 * radius + 1
    scores = 8 * min(slab + 2, tried) * tried * band * horizontal.count
    tables = 8 * motion._TABLES * ((band - 1) * step + 32 + slab - 1) * horizontal.reach
    frames = 8 * 4000 * 4000 * 4  # both, and temporaries
    results = 8 * 3 * vertical.count * horizontal.count
    operator = 64 * 2**20
    assert scores + tables <= motion._WORKSPACE
    assert scores + tables + frames + results + operator < 2 * 2**30


# Results -----------------------------------------------------------------------------------------------------------------------


def test_result_names_centres_in_pixels_and_flow_in_u_v_order():
    found = cupycorr.match(noise((24, 31), 1), noise((24, 31), 2), window=(4, 7), step=(5, 3))
    assert found.dx.shape == found.dy.shape == found.score.shape == (5, 9)
    np.testing.assert_array_equal(found.y, [1.5, 6.5, 11.5, 16.5, 21.5])
    np.testing.assert_array_equal(found.x, 3 + 3 * np.arange(9))
    np.testing.assert_array_equal(found.flow[..., 0], found.dx)
    np.testing.assert_array_equal(found.flow[..., 1], found.dy)
    for field in dataclasses.fields(found):
        assert type(getattr(found, field.name)) is np.ndarray
        assert getattr(found, field.name).dtype == np.float64
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.dx = None


def test_repeating_the_call_gives_the_same_bits():
    frames = noise((30, 40), 1, np.float32) / 3, noise((30, 40), 2, np.float32) / 3
    one, two = (cupycorr.match(*frames, window=5) for _ in range(2))
    assert_field(two, (one.dy, one.dx, one.score), atol=0)


# Bad input ---------------------------------------------------------------------------------------------------------------------

GOOD = noise((20, 30))


class Elsewhere(np.ndarray):
    """An array on another device."""

    device = "elsewhere"


BAD = {
    "list": ((GOOD.tolist(), GOOD), {}, TypeError, "frame1 must be a NumPy or CuPy array"),
    "masked": ((GOOD, np.ma.array(GOOD)), {}, TypeError, "frame2 must not be a masked array"),
    "bool frame": ((GOOD > 9, GOOD), {}, TypeError, "frame1.dtype=bool"),
    "complex frame": ((GOOD, GOOD * 1j), {}, TypeError, "frame2.dtype=complex128"),
    "object frame": ((GOOD, GOOD.astype(object)), {}, TypeError, "frame2.dtype=object"),
    "string frame": ((GOOD.astype(str), GOOD), {}, TypeError, "frame1.dtype=str"),
    "time frame": ((GOOD.astype("m8[s]"), GOOD), {}, TypeError, "frame1.dtype=timedelta64"),
    "shapes differ": ((GOOD, GOOD[1:]), {}, ValueError, r"frame1.shape=\(20, 30\), frame2.shape=\(19, 30\)"),
    "grey and colour": ((GOOD, np.stack([GOOD] * 3, 2)), {}, ValueError, r"frame2.shape=\(20, 30, 3\)"),
    "four channels": ((np.stack([GOOD] * 4, 2), GOOD), {}, ValueError, r"frame1.shape=\(20, 30, 4\)"),
    "one row": ((GOOD, GOOD[0]), {}, ValueError, r"frame2.shape=\(30,\)"),
    "batch": ((GOOD[None, None], GOOD), {}, ValueError, r"frame1.shape=\(1, 1, 20, 30\)"),
    "devices differ": ((GOOD, GOOD.view(Elsewhere)), {}, ValueError, "same device, got cpu and elsewhere"),
    "no rows": ((GOOD[:0], GOOD[:0]), {}, ValueError, "window must fit into the frame of 0 x 30"),
    "no columns": ((GOOD[:, :0], GOOD[:, :0]), {}, ValueError, "window must fit into the frame of 20 x 0"),
    "window too high": ((GOOD, GOOD), {"window": (21, 5)}, ValueError, r"window must fit .* got window=\(21, 5\)"),
    "window too wide": ((GOOD, GOOD), {"window": (5, 31)}, ValueError, r"window must fit .* got window=\(5, 31\)"),
    "window zero": ((GOOD, GOOD), {"window": 0}, ValueError, "window must be at least 1, got window=0"),
    "window negative": ((GOOD, GOOD), {"window": (3, -1)}, ValueError, r"window must be at least 1, got window=\(3, -1\)"),
    "window float": ((GOOD, GOOD), {"window": 5.0}, TypeError, "window must be an int .* got window=5.0"),
    "window bool": ((GOOD, GOOD), {"window": True}, TypeError, "window must be an int .* got window=True"),
    "window triple": ((GOOD, GOOD), {"window": (3, 3, 3)}, ValueError, r"window must be an int .* got window=\(3, 3, 3\)"),
    "step zero": ((GOOD, GOOD), {"step": (1, 0)}, ValueError, r"step must be at least 1, got step=\(1, 0\)"),
    "step float": ((GOOD, GOOD), {"step": (1, 2.5)}, TypeError, r"step must be an int .* got step=\(1, 2.5\)"),
    "step none": ((GOOD, GOOD), {"step": None}, TypeError, "step must be an int .* got step=None"),
    "search int": ((GOOD, GOOD), {"search": 4}, TypeError, "search must be .* got search=4"),
    "search flat": ((GOOD, GOOD), {"search": (-4, 4)}, TypeError, r"search must be .* got search=\(-4, 4\)"),
    "search of one": ((GOOD, GOOD), {"search": ((-4, 4),)}, ValueError, r"search must be .* got search=\(\(-4, 4\),\)"),
    "search of three": (
        (GOOD, GOOD),
        {"search": ((-4, 0, 4), (0, 1))},
        ValueError,
        r"search must be .*\(\(-4, 0, 4\)",
    ),
    "search float": (
        (GOOD, GOOD),
        {"search": ((-4, 4), (0, 1.5))},
        TypeError,
        r"whole pixels, got .*\(0, 1.5\)",
    ),
    "search bool": ((GOOD, GOOD), {"search": ((-4, 4), (False, 1))}, TypeError, "whole pixels, got search="),
    "search reversed": ((GOOD, GOOD), {"search": ((4, -4), (0, 0))}, ValueError, r"low to high, got search=\(\(4, -4\)"),
    "search too far up": (
        (GOOD, GOOD),
        {"search": ((-20, 0), (0, 0))},
        ValueError,
        r"the frame of 20 x 30 .*\(\(-20, 0\)",
    ),
    "search too far right": ((GOOD, GOOD), {"search": ((0, 0), (25, 30))}, ValueError, r"within the frame .*\(25, 30\)"),
    "subpixel int": ((GOOD, GOOD), {"subpixel": 1}, TypeError, "subpixel must be a bool, got subpixel=1"),
    "subpixel none": ((GOOD, GOOD), {"subpixel": None}, TypeError, "subpixel must be a bool, got subpixel=None"),
}


@pytest.mark.parametrize(("frames", "options", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_before_any_work(frames, options, error, message, monkeypatch):
    monkeypatch.setattr(motion, "_centred_grey", None)
    monkeypatch.setattr(motion, "spatial_correlation_sample", None)
    with pytest.raises(error, match=message):
        cupycorr.match(*frames, **options)


def test_a_torch_tensor_is_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match="frame1 must be a NumPy or CuPy array, got a torch tensor"):
        cupycorr.match(torch.zeros(20, 20), torch.zeros(20, 20))


# CuPy --------------------------------------------------------------------------------------------------------------------------


def array_module_names(tree):
    """Return the dotted names that are looked up on ``xp``, ``self.xp`` or ``array_module(...)``."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if ast.unparse(node) in ("xp", "self.xp") or (isinstance(node, ast.Call) and ast.unparse(node.func) == "array_module"):
            names = []
            while isinstance(parents.get(node), ast.Attribute):
                node = parents[node]
                names.append(node.attr)
            if names and names != ["xp"]:
                yield ".".join(names)


def test_every_array_function_and_method_used_exists_in_cupy():
    cupy = pytest.importorskip("cupy")
    tree = ast.parse(Path(inspect.getsourcefile(motion)).read_text(encoding="utf-8"))
    names = set(array_module_names(tree))
    assert {"where", "copyto", "lib.stride_tricks.sliding_window_view"} <= names
    for name in names:
        found = cupy
        for part in name.split("."):
            assert hasattr(found, part), f"cupy.{name}"
            found = getattr(found, part)
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & set(dir(np.ndarray))
    assert {"clip", "astype", "reshape"} <= used
    assert used <= set(dir(cupy.ndarray)), used - set(dir(cupy.ndarray))


# Real images -------------------------------------------------------------------------------------------------------------------


def test_motorcycle_disparity_is_within_the_promise():
    data = pytest.importorskip("skimage.data")
    left, right, disparity = data.stereo_motorcycle()
    found = cupycorr.match(left, right, window=11, search=((0, 0), (-64, 0)))
    truth = disparity[5 : 5 + len(found.y), 5 : 5 + len(found.x)]
    known = np.isfinite(truth) & (found.x >= 80)
    error = np.abs(found.dx + truth)[known]  # the left image's (y, x) lies at (y, x - disparity) in the right one
    error[np.isnan(error)] = np.inf
    assert np.mean(error > 2) <= 0.16
    assert np.median(error) <= 0.25


@pytest.mark.filterwarnings("ignore")
def test_particle_images_agree_with_openpiv():
    openpiv = pytest.importorskip("openpiv")
    io, pyprocess = pytest.importorskip("skimage.io"), pytest.importorskip("openpiv.pyprocess")
    folder = Path(openpiv.__path__[0]) / "data" / "test1"
    frame1, frame2 = (io.imread(folder / f"exp1_001_{letter}.bmp") for letter in "ab")
    found = cupycorr.match(frame1, frame2, window=32, step=16, search=((-12, 12), (-12, 12)))
    arguments = {"window_size": 32, "overlap": 16, "search_area_size": 32}
    u, v, _ = pyprocess.extended_search_area_piv(frame1.astype(np.int32), frame2.astype(np.int32), **arguments)
    distance = np.hypot(found.dx - u, found.dy - v)  # both downwards
    assert np.median(distance) <= 0.1
    assert np.mean(distance <= 0.5) >= 0.97


@pytest.mark.parametrize("budget", [2**18, 2**27], ids=["many slabs", "one slab"])
def test_progress_is_told_in_growing_shares_up_to_all(budget, monkeypatch):
    monkeypatch.setattr(motion, "_WORKSPACE", budget)
    frame = np.random.default_rng(0).integers(0, 255, (60, 70), dtype=np.uint8)
    shares = []
    cupycorr.match(frame, frame, window=9, search=((-5, 5), (-5, 5)), progress=shares.append)
    assert shares == sorted(set(shares))
    assert shares[-1] == 1
    assert (len(shares) > 1) == (budget == 2**18)
