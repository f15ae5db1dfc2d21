"""Missing pixels take no part, and fill values change only what holds them."""

import numpy as np
import pytest
from match_cases import VARIANTS, assert_same, dots, matched, noise, some_slow
from match_oracle import every_score

import cupycorr

# Missing data -----------------------------------------------------------------------------------------------------------------

MOTION = (3, -2)
SEARCH = ((-5, 5), (-5, 5))


def moving_scene(side=176, margin=8):
    """Return two frames of a texture of several scales, the second moved by `MOTION`."""
    random = np.random.default_rng(7)
    scene = sum(np.kron(random.normal(0, size, (side // size, side // size)), np.ones((size, size))) for size in (1, 2, 4, 8))
    inner = slice(margin, side - margin)
    return scene[inner, inner].copy(), np.roll(scene, MOTION, (0, 1))[inner, inner].copy()


@pytest.mark.covering(2)
@pytest.mark.parametrize("percent", [0.05, 0.2, 0.5, 5])
@pytest.mark.parametrize("window", [16, 32])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_few_missing_pixels_in_both_frames_cost_no_window_and_no_answer_is_wrong(variant, window, percent):
    frames = moving_scene()
    for seed, frame in enumerate(frames):
        frame[dots(frame.shape, 100 / percent, seed)] = np.nan
        assert np.isnan(frame).any()
    found = matched(*frames, window=window, search=SEARCH, step=window // 2, subpixel=False, variant=variant)
    right = (found.dy == MOTION[0]) & (found.dx == MOTION[1])
    assert right.mean() >= 0.99
    assert not (~right & np.isfinite(found.dx)).any()
    assert (found.count[right] < window**2).any()


@pytest.mark.parametrize("kind", ["NaN", "mask"])
@pytest.mark.parametrize("which", [0, 1], ids=["frame1", "frame2"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_half_of_a_window_is_enough_and_less_gives_no_answer(variant, which, kind):
    frame = noise((24, 24), dtype=np.float64)
    for lost, enough in ((32, True), (33, False)):
        frames, options = [frame.copy(), frame.copy()], {}
        missing = np.zeros(frame.shape, bool)
        missing[8:16, 8:16].flat[:lost] = True
        if kind == "NaN":
            frames[which][missing] = np.nan
        else:
            options[f"mask{which + 1}"] = ~missing
        found = matched(*frames, window=8, step=8, search=((0, 0), (0, 0)), subpixel=False, variant=variant, **options)
        answer = tuple(getattr(found, name)[1, 1].item() for name in ("dy", "dx", "score", "count", "peak_ratio"))
        np.testing.assert_allclose(answer, (0, 0, 1, 32, np.inf) if enough else (np.nan, np.nan, 0, 0, np.nan), atol=1e-12)
        assert not found.at_edge.any()
        others = np.ones((3, 3), bool)
        others[1, 1] = False
        assert (found.count[others] == 64).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_pixels_that_are_present_in_both_frames_count(variant):
    frame1, frame2 = noise((16, 16), 1, np.float64), noise((16, 16), 1, np.float64)
    frame1[::2, ::4], frame2[1::2, ::4] = np.nan, np.nan
    found = matched(frame1, frame2, window=16, search=((0, 0), (0, 0)), variant=variant)
    assert found.count.item() == 192
    frame1[:, 1::4] = np.nan
    assert matched(frame1, frame2, window=16, search=((0, 0), (0, 0)), variant=variant).count.item() == 128
    frame1[0, 2] = np.nan
    assert np.isnan(matched(frame1, frame2, window=16, search=((0, 0), (0, 0)), variant=variant).dx.item())


def test_a_colour_pixel_is_missing_if_one_channel_is():
    frame1, frame2 = noise((24, 30, 3), 1, np.float64), noise((24, 30, 3), 2, np.float64)
    for bad in ((np.nan, 0, 0), (0, np.inf, 0), (np.inf, -np.inf, 0)):
        frame1[9, 13] = bad
        found = cupycorr.match(frame1, frame2, window=5)
        assert ((found.count == 24) | (found.count < 20))[7:9, 11:13].any()
        mask = np.ones((24, 30), bool)
        mask[9, 13] = False
        assert_same(found, cupycorr.match(np.where(mask[..., None], frame1, 77.0), frame2, window=5, mask1=mask), atol=1e-9)


# Fill values ------------------------------------------------------------------------------------------------------------------

FILLS = {
    "float32 1e8": (np.float32, 1e8),
    "float32 1e12": (np.float32, 1e12),
    "float32 -3.4e38": (np.float32, -3.4e38),
    "float64 1e8": (np.float64, 1e8),
    "float64 1e12": (np.float64, 1e12),
    "float64 -3.4e38": (np.float64, -3.4e38),
    "float64 1e300": (np.float64, 1e300),
    "int32 -2147483648": (np.int32, -(2**31)),
    "int16 -32768": (np.int16, -(2**15)),
}
TYPICAL = ("float32 -3.4e38", "float64 1e300", "int32 -2147483648", "int16 -32768")
SHAPE = (100, 40)
WINDOW, RANGE, STEP = 7, ((-3, 3), (-3, 3)), 3


def filled(layout):
    """Return the mask of the pixels of a frame that have the fill value."""
    at = np.zeros(SHAPE, bool)
    if layout == "corner":
        at[:12, :15] = True
    elif layout == "pixels":
        at[[17, 50, 51, 80], [20, 3, 30, 11]] = True
    else:
        at[: int(layout.removesuffix(" %"))] = True
    return at


@pytest.mark.covering(2)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("which", some_slow(["frame1", "frame2", "both"], ["both"]))
@pytest.mark.parametrize("layout", some_slow(["corner", "60 %", "93 %", "pixels"], ["corner", "93 %", "pixels"]))
@pytest.mark.parametrize("fill", some_slow(FILLS, TYPICAL))
def test_a_fill_value_changes_only_displacements_that_hold_it(fill, layout, which, variant):
    dtype, value = FILLS[fill]
    clean = [noise(SHAPE, seed).astype(dtype) for seed in (1, 2)]
    if np.dtype(dtype).kind == "f":
        clean = [frame / dtype(7) for frame in clean]
    lost = [filled(layout) & (which in (name, "both")) for name in ("frame1", "frame2")]
    dirty = [np.where(at, dtype(value), frame) for at, frame in zip(lost, clean, strict=True)]
    assert all(frame.dtype == dtype for frame in dirty)
    options = {"window": WINDOW, "search": RANGE, "step": STEP, "subpixel": False}
    got, want = (matched(*frames, **options, variant=variant) for frames in (dirty, clean))

    # The whole answer of a window stays that of the clean frames where neither it nor its search area holds a fill value ...
    scores, _ = every_score(*clean, WINDOW, RANGE, STEP)
    holds = displacements_that_hold(*lost).reshape(scores.shape)
    untouched = ~holds.any(axis=(1, 2)).reshape(got.score.shape)
    assert untouched.any() or layout == "93 %"
    for name in ("dx", "dy", "score", "at_edge", "peak_ratio", "count"):
        np.testing.assert_allclose(getattr(got, name)[untouched], getattr(want, name)[untouched], rtol=1e-9, err_msg=name)

    # ... and in the others, the scores of the displacements that hold none.
    kept = np.where(holds, np.nan, scores)
    assert np.isfinite(kept).any()
    if holds.any(axis=(1, 2)).any():
        highest = np.where(np.isnan(kept), -1, kept).max(axis=(1, 2)).reshape(got.score.shape)
        assert ((got.score >= highest - 1e-9) | (highest == -1)).all()
    known = np.isfinite(got.dx).ravel()
    best = got.dy.ravel()[known].astype(int) - RANGE[0][0], got.dx.ravel()[known].astype(int) - RANGE[1][0]
    of_best = kept[(np.flatnonzero(known), *best)]
    keeps = np.isfinite(of_best)
    assert keeps.any()
    np.testing.assert_allclose(got.score.ravel()[known][keeps], of_best[keeps], rtol=0, atol=1e-9)


def displacements_that_hold(lost1, lost2):
    """Return for every window and displacement whether a pixel of either side is lost."""
    firsts = np.lib.stride_tricks.sliding_window_view(lost1, (WINDOW, WINDOW))[::STEP, ::STEP].any(axis=(2, 3))
    low, tried = RANGE[0][0], RANGE[0][1] - RANGE[0][0] + 1
    padded = np.pad(lost2, -low)
    seconds = np.lib.stride_tricks.sliding_window_view(padded, (WINDOW, WINDOW)).any(axis=(2, 3))
    tops, lefts = (np.arange(n) * STEP for n in firsts.shape)
    at = tops[:, None] + np.arange(tried), lefts[:, None] + np.arange(tried)
    return firsts[:, :, None, None] | seconds[at[0][:, None, :, None], at[1][None, :, None, :]]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", ["93 %", "pixels"])
@pytest.mark.parametrize("fill", some_slow(FILLS, ["float64 1e300", "int16 -32768"]))
def test_a_fill_value_leaves_the_score_of_a_single_displacement_alone(fill, layout, variant):
    dtype, value = FILLS[fill]
    clean = [noise(SHAPE, seed).astype(dtype) for seed in (1, 2)]
    at = filled(layout)
    dirty = [np.where(at, dtype(value), frame) for frame in clean]
    for displacement in ((0, 0), (2, -3), (-1, 1)):
        options = {"window": WINDOW, "search": tuple((each, each) for each in displacement), "step": 1}
        (got, want) = (matched(*frames, **options, variant=variant).score for frames in (dirty, clean))
        inside = np.lib.stride_tricks.sliding_window_view(np.pad(at, 3), (WINDOW, WINDOW)).any(axis=(2, 3))
        (down, across) = got.shape
        holds = inside[3 : 3 + down, 3 : 3 + across].copy()
        holds |= inside[3 + displacement[0] :, 3 + displacement[1] :][:down, :across]
        assert (~holds).any() or displacement[0] < 0
        np.testing.assert_allclose(got[~holds], want[~holds], rtol=0, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("which", [0, 1], ids=["frame1", "frame2"])
def test_frames_that_are_constant_but_for_a_fill_value_give_no_answer_beside_it(which, variant):
    frames = [noise((40, 50), 1, np.float32), noise((40, 50), 2, np.float32)]
    frames[which][:] = 0.3
    frames[which][:9, :9] = -1e30
    found = matched(*frames, window=5, search=((-2, 2), (-2, 2)), variant=variant)
    assert np.isnan(found.dx[12:, 12:]).all()
    assert (found.score[12:, 12:] == 0).all()


# Masks ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [(True, False), (False, True), (True, True)], ids=["frame1", "frame2", "both"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_masked_arrays_are_frames_with_masks(variant, which):
    frames = [noise((30, 40), seed) for seed in (1, 2)]
    lost = [dots((30, 40), 9, seed) for seed in (3, 4)]
    masked = [np.ma.array(frame, mask=at) if do else frame for frame, at, do in zip(frames, lost, which, strict=True)]
    masks = {f"mask{index + 1}": ~lost[index] for index in (0, 1) if which[index]}
    options = {"window": 7, "step": 3, "variant": variant}
    want = matched(*frames, **masks, **options)
    assert (want.count < 49).any()
    got = matched(*masked, **options)
    assert_same(got, want)
    assert not any(isinstance(getattr(got, name), np.ma.MaskedArray) for name in ("dx", "score", "count"))


def test_a_masked_array_without_a_masked_element_is_a_frame():
    frames = [noise(seed=1), noise(seed=2)]
    want = cupycorr.match(*frames, window=5)
    assert_same(cupycorr.match(np.ma.array(frames[0]), np.ma.array(frames[1], mask=False), window=5), want)


def test_a_colour_pixel_is_masked_if_any_channel_is():
    frames = [noise((24, 30, 3), seed) for seed in (1, 2)]
    lost = np.zeros((24, 30, 3), bool)
    lost[3::7, ::4, 0] = lost[5::7, 1::4, 1] = lost[6::7, 2::4, 2] = True
    want = cupycorr.match(*frames, window=5, mask1=~lost.any(axis=2))
    assert (want.count < 25).any()
    assert_same(cupycorr.match(np.ma.array(frames[0], mask=lost), frames[1], window=5), want)


@pytest.mark.parametrize("number", [1, 2])
def test_a_mask_and_that_of_a_masked_array_both_apply(number):
    frames = [noise(seed=1), noise(seed=2)]
    one, two = dots((24, 30), 9, 1), dots((24, 30), 9, 2)
    want = cupycorr.match(*frames, window=5, **{f"mask{number}": ~(one | two)})
    frames[number - 1] = np.ma.array(frames[number - 1], mask=one)
    mask = ~two
    assert_same(cupycorr.match(*frames, window=5, **{f"mask{number}": mask}), want)
    np.testing.assert_array_equal(mask, ~two)
    np.testing.assert_array_equal(frames[number - 1].mask, one)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_a_missing_pixel_holds_does_not_matter(variant):
    random = np.random.default_rng(0)
    frames, masks = [noise((30, 40), seed, np.float64) for seed in (1, 2)], [~dots((30, 40), 9, seed) for seed in (3, 4)]
    options = {"window": 7, "step": 3, "variant": variant, "mask1": masks[0], "mask2": masks[1]}
    want = matched(*frames, **options)
    for frame, mask in zip(frames, masks, strict=True):
        frame[~mask] = random.choice([np.nan, np.inf, -np.inf, 1e300, -1e9, 0], (~mask).sum())
    assert_same(matched(*frames, **options), want, atol=1e-10)


def test_frames_and_masks_are_left_alone():
    frames, masks = [noise(seed=seed, dtype=np.float64) for seed in (1, 2)], [~dots((24, 30), 9, seed) for seed in (3, 4)]
    copies = [each.copy() for each in (*frames, *masks)]
    for each in (*frames, *masks):
        each.flags.writeable = False
    cupycorr.match(*frames, window=5, mask1=masks[0], mask2=masks[1], consistency=True)
    for each, copy in zip((*frames, *masks), copies, strict=True):
        np.testing.assert_array_equal(each, copy)
