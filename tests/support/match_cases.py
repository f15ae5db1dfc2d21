"""Frames and ways to call `cupycorr.match` that its tests share."""

import numpy as np
import pytest

import cupycorr

VARIANTS = ("operator", "fft", "simd")


def some_slow(values, default):
    """Return parameters of which all but the default ones are marked slow."""
    return [pytest.param(each, marks=() if each in default else pytest.mark.slow) for each in values]


def noise(shape=(24, 30), seed=0, dtype=np.uint8):
    """Return a frame with texture at every scale down to the pixel."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


def dots(shape, spacing, seed=0):
    """Return whether each pixel is one of some random pixels, on average one in ``spacing``."""
    return np.random.default_rng(seed).random(shape) < 1 / spacing


def matched(*frames, variant, **options):
    """Return `cupycorr.match` by a variant; the test is skipped where LLVM's kernels cannot run."""
    try:
        return cupycorr.match(*frames, variant=variant, **options)
    except NotImplementedError as reason:
        if variant != "simd":
            raise
        pytest.skip(str(reason))


def assert_same(got, want, atol=0.0):
    """Check that two matches are the same in every field, within a tolerance of everything that is not whole."""
    for name in ("dx", "dy", "score", "peak_ratio", "x", "y"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=atol, atol=atol, err_msg=name)
    for name in ("at_edge", "count"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)
    assert (got.consistency is None) == (want.consistency is None)
    if want.consistency is not None:
        np.testing.assert_allclose(got.consistency, want.consistency, rtol=atol, atol=atol, err_msg="consistency")
