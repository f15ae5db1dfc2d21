"""Dtype, brightness, contrast, colour of equal channels and strides do not matter; frames without texture have no match."""

import math

import numpy as np
import pytest
from match_cases import VARIANTS, assert_same, matched, noise

import cupycorr

DTYPES = ["uint8", "uint16", "int16", "int32", "uint64", "float16", "bfloat16", "float32", "float64", "longdouble"]


@pytest.mark.covering(2)
@pytest.mark.parametrize("colour", [False, True], ids=["grey", "colour"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_whole_pixel_motion_is_found_exactly_in_every_dtype(variant, dtype, colour):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    frame1 = noise((40, 50, 3) if colour else (40, 50)).astype(dtype)
    frame2 = np.roll(frame1, (2, -5), (0, 1))
    options = {"window": (7, 9), "search": ((-1, 3), (-8, 0)), "step": (2, 3), "subpixel": False, "variant": variant}
    found = matched(frame1, frame2, **options)
    inside = (slice(None, -1), slice(2, None))  # these windows have not been rolled across the frame's border
    assert (found.dy[inside] == 2).all()
    assert (found.dx[inside] == -5).all()
    assert (found.score[inside] > 1 - 1e-12).all()


def quarters(seed):
    """Return a frame of few values, with a flat part."""
    frame = noise((40, 50), seed) // 4 * 4
    at = (slice(5, 18), slice(7, 20)) if seed == 1 else (slice(20, None), slice(30, None))
    frame[at] = 9 if seed == 1 else 200
    return frame


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


@pytest.mark.covering(2)
@pytest.mark.parametrize("which", [(True, False), (False, True), (True, True)], ids=["frame1", "frame2", "both"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_neither_constant_nor_contrast_changes_the_answer(variant, change, which):
    frames = quarters(1), quarters(2)
    want = cupycorr.match(*frames, window=5, step=3, variant="operator")
    changed = [change(frame) if do else frame for frame, do in zip(frames, which, strict=True)]
    assert np.isnan(want.dx).any()
    assert_same(matched(*changed, window=5, step=3, variant=variant), want, atol=1e-7)


@pytest.mark.parametrize("variant", VARIANTS)
def test_grey_frames_are_colour_frames_with_equal_channels(variant):
    frame1, frame2 = noise(seed=1), noise(seed=2)
    grey = cupycorr.match(frame1, frame2, window=5, variant="operator")
    colour = matched(*(np.repeat(f[..., None], 3, axis=2) for f in (frame1, frame2)), window=5, variant=variant)
    assert_same(colour, grey, atol=1e-10)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_colour_is_weighed_by_rec_709(dtype):
    frames = [noise((24, 30, 3), seed).astype(dtype) for seed in (1, 2)]
    luma = [f.astype(np.float64) @ [0.2126, 0.7152, 0.0722] for f in frames]
    assert_same(cupycorr.match(*frames, window=5), cupycorr.match(*luma, window=5), atol=1e-8)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", [{}, {"points": [(7, 8), (20, 11), (3, 28)]}], ids=["grid", "points"])
def test_strides_and_read_only_frames_do_not_matter_and_frames_are_left_alone(options, variant):
    frames = [noise(seed=seed, dtype=np.float64) for seed in (1, 2)]
    want = matched(*frames, window=5, variant=variant, **options)
    views = [np.repeat(np.asfortranarray(f), 2, axis=1)[:, ::2] for f in frames]
    views[1] = views[1][::-1].copy()[::-1]
    for view in views:
        view.flags.writeable = False
    assert_same(matched(*views, window=5, variant=variant, **options), want)
    np.testing.assert_array_equal(views[0], frames[0])
    np.testing.assert_array_equal(views[1], frames[1])


def test_byte_order_does_not_matter():
    frames = [noise(seed=seed, dtype=np.float32) for seed in (1, 2)]
    want = cupycorr.match(*frames, window=5)
    assert_same(cupycorr.match(*(f.astype(">f4") for f in frames), window=5), want)
    assert_same(cupycorr.match(*(f.astype(">i2") for f in frames), window=5), want, atol=1e-10)


# No texture, no number --------------------------------------------------------------------------------------------------------

LEVELS = {"uint8": np.uint8(7), "uint16": np.uint16(65535), "float32": np.float32(0.1), "float64": 3e4 + 0.1}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("window", [5, 16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_flat_window_has_no_displacement_and_score_zero(variant, window, level):
    texture, flat = noise((40, 60), 1).astype(level), (slice(2, 36), slice(10, 50))
    patched = texture.copy()
    patched[flat] = LEVELS[level]
    inside = (slice(2, 37 - window), slice(10, 51 - window))
    search = ((0, 0), (-3, 3))
    found = matched(patched, texture, window=window, search=search, variant=variant)
    expected = np.zeros(found.score.shape, bool)
    expected[inside] = True
    np.testing.assert_array_equal(np.isnan(found.dx), expected)
    np.testing.assert_array_equal(np.isnan(found.dy), expected)
    np.testing.assert_array_equal(found.score == 0, expected)
    # In frame 2 every displacement must be flat, so three columns fewer on each side.
    found = matched(texture, patched, window=window, search=search, variant=variant)
    expected[:] = False
    expected[inside[0], 13 : 48 - window] = True
    np.testing.assert_array_equal(np.isnan(found.dx), expected)
    np.testing.assert_array_equal(found.score == 0, expected)


@pytest.mark.parametrize("value", [0, 0.3, 1e9, math.nan, math.inf], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_frame_without_texture_matches_nothing(variant, value):
    nothing, something = np.full((20, 20), value), noise((20, 20), dtype=np.float64)
    for frames in ((nothing, something), (something, nothing), (nothing, nothing)):
        found = matched(*frames, window=5, consistency=True, variant=variant)
        for values in (found.dx, found.dy, found.peak_ratio, found.consistency):
            assert np.isnan(values).all()
        assert (found.score == 0).all()
        assert (found.count == 0).all()
        assert not found.at_edge.any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_single_pixel_that_is_different_is_texture_in_integer_frames(variant):
    frame = np.full((20, 20), 255, np.uint8)
    frame[10, 10] = 254
    large = frame.astype(np.uint16) * np.uint16(257)
    for each in (frame, large):
        found = matched(each, each, window=20, search=((0, 0), (0, 0)), variant=variant)
        assert found.score.item() >= 1 - 1e-12
