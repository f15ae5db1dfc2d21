"""The problems of matching that the suite runs, with ties, infinities and NaN, and their comparison with the oracle."""

from dataclasses import replace

import matching_oracle
import numpy as np
from cases import NAMED, ascending, problems
from hypothesis import strategies as st

from cupycorr import correlation_argmax, correlation_soft_argmax, spatial_correlation_sample

CPU_VARIANTS = ("simd", "blas", "reference")
GPU_VARIANTS = ("mma", "tiled", "slices")
OUTSIDE = ("zero", "excluded")
EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52}
STRANGE = (np.nan, np.inf, -np.inf)

SOME = {
    name: NAMED[name]
    for name in (
        *("one pixel", "pwcnet-like", "one-sided stereo", "template in a larger image", "even patch"),
        *("window, stride and dilation", "window of many taps", "windows apart", "stride and step coprime"),
        *("negative padding", "search wholly outside", "scale", "empty batch", "no channels", "single row", "single column"),
    )
}


def accumulator(dtype):
    return "float64" if dtype == "float64" else "float32"


def inputs(case, kind="values"):
    """Return the inputs of a case: as they are, as few whole numbers (ties), or with strange values."""
    x1, x2, _ = case.arrays()
    if kind == "ties":
        return (np.round(x1.astype(np.float32)).astype(x1.dtype), np.round(x2.astype(np.float32)).astype(x1.dtype))
    if kind == "strange":
        rng = np.random.default_rng(case.seed + 7)
        for x in (x1, x2):
            at = rng.random(x.shape) < 0.02
            x[at] = rng.choice(STRANGE, int(at.sum())).astype(x.dtype)
    return x1, x2


def volume_of(case, arrays, variant):
    """Return the volume by the same variant in the accumulator."""
    dtype = accumulator(case.dtype)
    with np.errstate(all="ignore"):
        return spatial_correlation_sample(*arrays, **case.parameters, variant=variant, dtype=dtype)


def check_best(case, kind, variant, top_k, outside):
    """Check the best displacements: they are exactly those of the volume by the same variant."""
    arrays = inputs(case, kind)
    volume = volume_of(case, arrays, variant)
    want = matching_oracle.best(volume, case, top_k, outside)
    found = correlation_argmax(*arrays, **case.parameters, variant=variant, top_k=top_k, outside=outside)
    for name, got, each in zip(("dy", "dx", "score", "channel"), found, want, strict=True):
        each = each if top_k > 1 else each[:, 0]
        np.testing.assert_array_equal(got.astype(each.dtype), each, err_msg=name)
    assert found.score.dtype == volume.dtype
    assert found.channel.dtype == np.int64
    assert found.dy.dtype == found.dx.dtype == (np.int64 if outside == "zero" else volume.dtype)
    np.testing.assert_array_equal(found.flow, np.stack((found.dx, found.dy), -1))


def check_subpixel(case, kind, variant, outside):
    """Check subpixel displacements: they are vertices of parabolas through scores of the volume by the same variant."""
    arrays = inputs(case, kind)
    volume = volume_of(case, arrays, variant)
    found = correlation_argmax(*arrays, **case.parameters, variant=variant, subpixel=True, outside=outside)
    scale = max((abs(each) for each in (*found_steps(case), 1)), default=1)
    for name, got, want in zip(("dy", "dx"), found, matching_oracle.subpixel(volume, case, outside), strict=False):
        assert got.dtype == volume.dtype
        tolerance = 64 * EPSILON[volume.dtype.name]
        # The differences of large scores that are nearly equal have few digits, but no fraction exceeds half a step.
        assert (np.isnan(got) == np.isnan(want)).all(), name
        errors = np.abs(np.nan_to_num(got) - np.nan_to_num(want))
        allowed = tolerance * (np.abs(np.nan_to_num(want)) + scale) + scale * cancelled(volume)
        assert (errors <= allowed).all(), (name, errors.max())


def found_steps(case):
    step = case.parameters.get("dilation_patch", 1)
    return step if isinstance(step, tuple) else (step,)


def cancelled(volume):
    """Return an error that rounding the differences of three scores in the accumulator may cause in a fraction."""
    return 1e-3 if volume.dtype == np.float32 else 1e-9


def check_mean(case, kind, variant, outside, temperature=1.0):
    """Check mean displacements against float64 sums over the volume by the same variant."""
    arrays = inputs(case, kind)
    volume = volume_of(case, arrays, variant)
    found = correlation_soft_argmax(*arrays, **case.parameters, variant=variant, temperature=temperature, outside=outside)
    geometry = matching_oracle.Geometry(case, outside)
    largest = [max(map(abs, tried)) + max(tried) - min(tried) for tried in (geometry.dys, geometry.dxs)]
    finite = np.abs(volume[np.isfinite(volume)])
    spread = float(finite.max(initial=0)) / temperature
    for name, got, want, reach in zip(
        ("dy", "dx"), found, matching_oracle.mean(volume, case, temperature, outside), largest, strict=True
    ):
        assert got.dtype == volume.dtype
        assert (np.isnan(got) == np.isnan(want)).all(), name
        # Each weight has a relative error of some units, and of one for each unit of its score; sums have as many terms.
        terms = volume.shape[1] * volume.shape[2]
        relative = EPSILON[volume.dtype.name] * (8 + 4 * np.sqrt(terms) + 2 * spread)
        errors = np.abs(np.nan_to_num(got) - np.nan_to_num(want))
        assert (errors <= relative * (1 + reach)).all(), (name, errors.max(), relative * (1 + reach))
    np.testing.assert_array_equal(found.flow, np.stack((found.dx, found.dy), -1))


@st.composite
def drawn(draw):
    """Draw a case, what its inputs are like, and how many displacements are searched for."""
    case = ascending(draw(problems(most=10)))
    channels = int(np.prod(case.out_shape()[1:3]))
    top_k = draw(st.integers(1, min(channels, 4)))
    return case, draw(st.sampled_from(["values", "ties", "strange"])), top_k, draw(st.sampled_from(OUTSIDE))


def of(case, dtype):
    return replace(case, dtype=dtype)
