"""Bad input of matching is refused before anything is computed, with the argument and the value in the message."""

import inspect

import numpy as np
import pytest
from fake_cupy import installed, on_cupy
from matching_cases import CPU_VARIANTS, GPU_VARIANTS

import cupycorr
from cupycorr import _dispatch, correlation_argmax, correlation_soft_argmax, explain_argmax, explain_soft_argmax
from cupycorr._correlation.problem import PARAMETERS

X = np.ones((1, 2, 5, 6), np.float32)
BOTH = {"argmax": correlation_argmax, "soft_argmax": correlation_soft_argmax}
EXPLAIN = {"argmax": explain_argmax, "soft_argmax": explain_soft_argmax}

BAD = {
    "a string": (TypeError, "input1 must be a NumPy or CuPy array, got builtins.str", dict(input1="x.npy")),
    "integers": (TypeError, "input1 must be one of float16, bfloat16, float32, float64", dict(input1=X.astype(int))),
    "two dtypes": (TypeError, "input1 and input2 must have the same dtype", dict(input2=X.astype(np.float64))),
    "two kinds": (TypeError, "input1 and input2 must be arrays of the same kind", dict(input2=on_cupy(X))),
    "a masked array": (TypeError, "input1 must not be a masked array", dict(input1=np.ma.masked_greater(X, 2))),
    "two shapes": (ValueError, "input1 and input2 must have the same shape unless", dict(input2=X[..., 1:])),
    "three axes": (ValueError, "input1 must have 4 dimensions", dict(input1=X[0])),
    "patch_size=0": (ValueError, "patch_size must be at least 1, got patch_size=0", dict(patch_size=0)),
    "stride=1.5": (TypeError, "stride must be an int", dict(stride=1.5)),
    "no output": (ValueError, "the output would have height 0", dict(kernel_size=6)),
    "scale": (ValueError, "scale must be finite", dict(scale=np.inf)),
    "precision": (ValueError, "precision must be one of", dict(precision="low")),
    "variant": (
        ValueError,
        "variant must be 'auto' or one of 'simd', 'blas', 'reference', 'mma', 'tiled', 'slices'",
        dict(variant="box"),
    ),
    "a variant for CuPy": (NotImplementedError, "needs a CuPy array", dict(variant="slices")),
    "outside": (ValueError, "outside must be 'zero' or 'excluded', got outside='skip'", dict(outside="skip")),
    "outside=None": (ValueError, "outside must be 'zero' or 'excluded', got outside=None", dict(outside=None)),
    "too far": (ValueError, "displacements must fit into 64 bits", dict(patch_offset=2**63 - 1)),
}
BAD_BEST = {
    "top_k=0": (ValueError, "top_k must be at least 1, got top_k=0", dict(top_k=0)),
    "top_k=1.0": (TypeError, "top_k must be an int, got top_k=1.0", dict(top_k=1.0)),
    "top_k=True": (TypeError, "top_k must be an int, got top_k=True", dict(top_k=True)),
    "top_k=10": (ValueError, "top_k must be at most the number of displacements, 3 x 3, got top_k=10", dict(top_k=10)),
    "subpixel=1": (TypeError, "subpixel must be a bool, got subpixel=1", dict(subpixel=1)),
    "subpixel of two": (ValueError, "got subpixel=True, top_k=2", dict(subpixel=True, top_k=2)),
    "subpixel of windows": (ValueError, "got subpixel=True, kernel_size=(2, 1)", dict(subpixel=True, kernel_size=(2, 1))),
}
BAD_MEAN = {
    "temperature=0": (ValueError, "temperature must be positive, finite", dict(temperature=0)),
    "temperature is NaN": (ValueError, "temperature must be positive, finite", dict(temperature=np.nan)),
    "temperature is too small": (ValueError, "representable in float32", dict(temperature=1e-39)),
    "temperature is a string": (TypeError, "temperature must be a real number", dict(temperature="1")),
}
ROWS = [
    pytest.param(name, *row, id=f"{name}: {what}")
    for name, mine in (("argmax", BAD_BEST), ("soft_argmax", BAD_MEAN))
    for what, row in {**BAD, **mine}.items()
]


@pytest.mark.parametrize("functions", [BOTH, EXPLAIN], ids=["compute", "explain"])
@pytest.mark.parametrize(("name", "error", "says", "arguments"), ROWS)
def test_bad_input_is_refused(monkeypatch, functions, name, error, says, arguments):
    if "variant" not in arguments:
        monkeypatch.setattr(_dispatch, "choose", lambda *_: pytest.fail("a variant was chosen"))
    with pytest.raises(error) as caught:
        functions[name](**{"input1": X, "input2": X, "patch_size": 3, **arguments})
    assert says in str(caught.value)


@pytest.mark.parametrize("name", BOTH)
def test_signatures_have_the_names_and_defaults_of_the_correlation(name):
    defaults = {parameter.name: parameter.default for parameter in PARAMETERS}
    for functions in (BOTH, EXPLAIN):
        found = inspect.signature(functions[name]).parameters
        assert {key: found[key].default for key in defaults} == defaults
        assert not {"dtype", "out"} & set(found)
    mine = [key for key in inspect.signature(BOTH[name]).parameters if key not in defaults]
    own = ["top_k", "subpixel", "outside"] if name == "argmax" else ["temperature", "outside"]
    assert mine == ["input1", "input2", "groups", "scale", "precision", "variant", *own]


@pytest.mark.parametrize("name", BOTH)
def test_an_explanation_names_what_runs_and_why_not_the_others(name):
    told = EXPLAIN[name](X, X, patch_size=3)
    assert {told.variant, *told.reasons} == {*CPU_VARIANTS, *GPU_VARIANTS}
    for variant in GPU_VARIANTS:
        assert told.reasons[variant].startswith("input is a NumPy array, needs a CuPy array")
    assert "slices of the volume" in EXPLAIN[name](X, X, patch_size=3, variant="reference").how
    assert EXPLAIN[name](X, X, patch_size=3, variant="blas").how.endswith(("in registers", "by array functions"))


@pytest.mark.parametrize("outside", ["zero", "excluded"])
@pytest.mark.parametrize("name", BOTH)
def test_cupy_arrays_are_reduced_in_slices_on_their_device(monkeypatch, name, outside):
    """The volume is that of NumPy arrays here; what is tested is the way to it, and that all arrays are CuPy's."""
    from cupycorr._matching.gpu import planner

    rng = np.random.default_rng(0)
    x1, x2 = rng.standard_normal((2, 2, 3, 6, 7)).astype(np.float32)
    want = BOTH[name](x1, x2, patch_size=5, outside=outside)

    def correlate(a, b, **options):
        assert type(a).__module__ == type(b).__module__ == "cupy"
        plain = (np.asarray(each).view(np.ndarray) for each in (a, b))
        return on_cupy(cupycorr.spatial_correlation_sample(*plain, **options))

    monkeypatch.setattr(planner, "spatial_correlation_sample", correlate)
    with installed(monkeypatch, lambda *_: pytest.fail("a kernel was launched")):
        found = BOTH[name](on_cupy(x1), on_cupy(x2), patch_size=5, outside=outside, variant="slices")
        assert all(type(each).__module__ == "cupy" for each in found)
    for got, each in zip(found, want, strict=True):
        np.testing.assert_allclose(np.asarray(got), each, rtol=1e-5, atol=1e-5)
