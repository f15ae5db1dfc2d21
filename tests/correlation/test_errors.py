"""Bad input is refused with a message that names the argument and the value, before anything is computed or written.

Every call is made with NumPy arrays and with those of a fake CuPy.
"""

import re
import sys
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from cases import CPU_VARIANTS, GPU_VARIANTS
from fake_cupy import installed, ndarray, on_cupy
from refusals import FOREIGN, INPUTS, OUT_SHAPE, PARAMETERS, ones
from result_refusals import overlapping

import cupycorr
from cupycorr import _dispatch
from cupycorr._correlation.variants import OPERATOR
from cupycorr._cpu import workers


def bind_nothing(*_, **__):
    pytest.fail("a kernel was compiled before the input was refused")


@pytest.fixture(params=["numpy", "cupy"])
def kind(request, monkeypatch):
    """The kind of the arrays that a call is made with."""
    if request.param == "numpy":
        yield "numpy"
    else:
        with installed(monkeypatch, bind_nothing):
            yield "cupy"


ARRAYS = ("input1", "input2", "out", "cotangent")


def moved(kind, arguments):
    """Return the arguments with NumPy arrays as arrays of that kind, unless the case is one of mixed kinds."""
    if kind == "numpy" or any(isinstance(value, ndarray) for value in arguments.values()):
        return arguments
    return {name: on_cupy(value) if name in ARRAYS and type(value) is np.ndarray else value for name, value in arguments.items()}


def forward(input1, input2, **parameters):
    return cupycorr.spatial_correlation_sample(input1, input2, **{"patch_size": 3, **parameters})


def vjp(input1, input2, *, cotangent=None, **parameters):
    g = ones(OUT_SHAPE) if cotangent is None else cotangent
    return cupycorr.spatial_correlation_sample_vjp(g, input1, input2, **{"patch_size": 3, **parameters})


def explain(input1, input2, **parameters):
    return cupycorr.explain(input1, input2, **{"patch_size": 3, **parameters})


CALLS = {"forward": forward, "vjp": vjp, "explain": explain}
calls = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@pytest.fixture
def nothing_runs(monkeypatch, variants):
    """Let the test fail where a variant is called or the machine is measured."""

    def computed(*_, **__):
        pytest.fail("something was computed before the input was refused")

    rows = tuple(replace(row, plan=computed) for row in OPERATOR.variants)
    variants(*rows)
    monkeypatch.setattr(workers, "machine_rates", computed)
    monkeypatch.setattr(workers, "run", computed)


def refused(call, error, *said, kind="numpy", input1=None, input2=None, **parameters):
    """Check that a call raises an error with these words in this order, and leaves ``out`` as it was."""
    arguments = {"input1": ones() if input1 is None else input1, "input2": ones() if input2 is None else input2, **parameters}
    if call is forward:
        arguments.setdefault("out", np.full(OUT_SHAPE, 7, np.float32))
    if call is vjp:
        arguments.setdefault("cotangent", ones(OUT_SHAPE))
    out = arguments.get("out")
    before = out.copy() if isinstance(out, np.ndarray) else None
    with pytest.raises(error, match=".*".join(map(re.escape, said))):
        call(**moved(kind, arguments))
    if before is not None:
        np.testing.assert_array_equal(np.asarray(out), np.asarray(before))


def check(cases):
    """Parametrise a test by a table of (type of the error, words of its message, arguments)."""
    return pytest.mark.parametrize(("error", "said", "arguments"), cases.values(), ids=cases.keys())


# Inputs --------------------------------------------------------------------------------------------------------------


@calls
@check(INPUTS)
def test_a_bad_input_is_refused(nothing_runs, kind, call, error, said, arguments):
    refused(call, error, *said, kind=kind, **arguments)


# Parameters ----------------------------------------------------------------------------------------------------------


@calls
@check(PARAMETERS)
def test_a_bad_parameter_is_refused(nothing_runs, kind, call, error, said, arguments):
    refused(call, error, *said, kind=kind, **arguments)


@calls
def test_what_follows_the_six_sizes_must_be_named(nothing_runs, call):
    function = {forward: cupycorr.spatial_correlation_sample, explain: cupycorr.explain}.get(call)
    function = function or (lambda *rest: cupycorr.spatial_correlation_sample_vjp(ones(OUT_SHAPE), *rest))
    with pytest.raises(TypeError, match="positional"):
        function(ones(), ones(), 1, 3, 1, 0, 1, 1, 0)


# out, cotangent, needs -----------------------------------------------------------------------------------------------


def sevens(shape=OUT_SHAPE, dtype=np.float32):
    return np.full(shape, 7, dtype)


def read_only(array):
    array.flags.writeable = False
    return array


OUTS = {
    **{
        f"of shape {shape}": (ValueError, ("out must have shape (1, 3, 3, 6, 7)", f"out.shape={shape}"), dict(out=sevens(shape)))
        for shape in ((1, 3, 3, 6, 6), (2, 3, 3, 6, 7), (1, 9, 6, 7), (1, 1, 3, 3, 6, 7), (378,))
    },
    **{
        f"of {dtype}": (TypeError, ("out must be one of", f"out.dtype={dtype}"), dict(out=sevens(dtype=dtype)))
        for dtype in ("int32", "complex64", "object")
    },
    "of foreign bytes": (TypeError, ("out must be in native byte order", FOREIGN.str), dict(out=sevens(dtype=FOREIGN))),
    "a list": (TypeError, ("out must be a NumPy or CuPy array", "builtins.list"), dict(out=sevens().tolist())),
    "a torch tensor": (TypeError, ("out must be a NumPy or CuPy array", "a torch tensor"), dict(out=torch.zeros(OUT_SHAPE))),
    "a tuple of one array": (TypeError, ("out must be a NumPy or CuPy array", "builtins.tuple"), dict(out=(sevens(),))),
    "a masked array": (TypeError, ("out must not be a masked array",), dict(out=np.ma.masked_greater(sevens(), 8))),
    "on another device": (
        TypeError,
        ("out must be of the inputs' kind", "out on cupy", "inputs on numpy"),
        dict(out=on_cupy(sevens())),
    ),
    "read-only": (ValueError, ("out must be writeable", "read-only"), dict(out=read_only(sevens()))),
    **{
        f"elements overlap, {what}": (
            ValueError,
            ("out must have memory of its own for every element", f"out.shape={OUT_SHAPE}", f"out.strides={out.strides}"),
            dict(out=out),
        )
        for what, out in overlapping(OUT_SHAPE).items()
    },
    "not of the dtype asked for": (
        TypeError,
        ("out and dtype must agree", "out.dtype=float32", "dtype=float64"),
        dict(out=sevens(), dtype="float64"),
    ),
    "on the CPU for inputs that are not": (
        TypeError,
        ("out must be of the inputs' kind", "out on numpy", "inputs on cupy"),
        dict(out=sevens(), input1=on_cupy(ones()), input2=on_cupy(ones())),
    ),
}


@check(OUTS)
def test_a_bad_out_is_refused(nothing_runs, kind, error, said, arguments):
    refused(forward, error, *said, kind=kind, **arguments)


COTANGENTS = {
    **{
        f"of shape {shape}": (
            ValueError,
            ("cotangent must have the output's shape (1, 3, 3, 6, 7)", f"cotangent.shape={shape}"),
            dict(cotangent=ones(shape)),
        )
        for shape in ((1, 3, 3, 6, 6), (1, 9, 6, 7), (1, 1, 1, 6, 7), ())
    },
    "of another dtype": (
        TypeError,
        ("cotangent must have the output's dtype float32", "cotangent.dtype=float64"),
        dict(cotangent=ones(OUT_SHAPE, np.float64)),
    ),
    "not of the dtype asked for": (
        TypeError,
        ("cotangent must have the output's dtype float64", "cotangent.dtype=float32"),
        dict(cotangent=ones(OUT_SHAPE), dtype=np.float64),
    ),
    "of integers": (TypeError, ("cotangent must be one of", "cotangent.dtype=int32"), dict(cotangent=ones(OUT_SHAPE, np.int32))),
    "of foreign bytes": (
        TypeError,
        ("cotangent must be in native byte order", FOREIGN.str),
        dict(cotangent=ones(OUT_SHAPE, FOREIGN)),
    ),
    "a list": (TypeError, ("cotangent must be a NumPy or CuPy array", "builtins.list"), dict(cotangent=ones(OUT_SHAPE).tolist())),
    "a torch tensor": (
        TypeError,
        ("cotangent must be a NumPy or CuPy array", "a torch tensor"),
        dict(cotangent=torch.zeros(OUT_SHAPE)),
    ),
    "masked": (
        TypeError,
        ("cotangent must not be a masked array",),
        dict(cotangent=np.ma.masked_greater(ones(OUT_SHAPE), 2)),
    ),
    "on another device": (
        TypeError,
        ("cotangent must be of the inputs' kind", "cotangent on cupy", "inputs on numpy"),
        dict(cotangent=on_cupy(ones(OUT_SHAPE))),
    ),
}
NEEDS = {
    f"needs={value!r}": (TypeError, ("needs must be a pair of bools", f"needs={value!r}"), dict(needs=value))
    for value in (True, None, (True,), (True, True, True), (1, 0), (True, None), "12", {True, False}, np.ones(2, bool))
}


@check({**COTANGENTS, **NEEDS})
def test_a_bad_cotangent_or_need_is_refused(nothing_runs, kind, error, said, arguments):
    refused(vjp, error, *said, kind=kind, **arguments)


# What cannot run here ------------------------------------------------------------------------------------------------


@calls
@pytest.mark.parametrize("variant", [*CPU_VARIANTS, *GPU_VARIANTS])
def test_arrays_a_forced_variant_cannot_run_on_are_refused_with_the_reason(nothing_runs, monkeypatch, call, variant):
    other, needed = ("cupy", "NumPy") if variant in CPU_VARIANTS else ("numpy", "CuPy")
    said = f"variant={variant!r}", f"{variant}: input is a ", f"needs a {needed} array"
    with installed(monkeypatch, bind_nothing) if other == "cupy" else nullcontext():
        refused(call, NotImplementedError, *said, kind=other, variant=variant)


@calls
def test_a_window_of_one_pixel_needs_no_box(nothing_runs, monkeypatch, call):
    with installed(monkeypatch, bind_nothing):
        refused(call, NotImplementedError, "variant='box'", "kernel_size is 1", kind="cupy", variant="box")


@calls
def test_positions_that_no_integer_holds_are_refused_on_a_gpu(nothing_runs, monkeypatch, call):
    images = dict(input1=ones((1, 4, 1, 1)), input2=ones((1, 4, 1, 1)))
    far = dict(images, patch_size=1, padding=2**62 - 1, stride=2**63 - 1, patch_offset=1 - 2**63)
    arguments = {**far, "out": sevens((1, 1, 1, 1, 1)), "cotangent": ones((1, 1, 1, 1, 1))}
    arguments = {
        name: value for name, value in arguments.items() if name in far or {"out": forward, "cotangent": vjp}[name] is call
    }
    with installed(monkeypatch, bind_nothing):
        refused(call, NotImplementedError, "direct: positions of up to", "64-bit", kind="cupy", **arguments)


@pytest.mark.parametrize(
    ("call", "name"),
    [*((call, "input2") for call in CALLS.values()), (forward, "out"), (vjp, "cotangent")],
    ids=[*(f"{call} input2" for call in CALLS), "out", "cotangent"],
)
def test_arrays_on_different_devices_are_refused(nothing_runs, monkeypatch, call, name):
    arguments = dict(input1=on_cupy(ones()), input2=on_cupy(ones()))
    arguments |= {forward: dict(out=on_cupy(sevens())), vjp: dict(cotangent=on_cupy(ones(OUT_SHAPE)))}.get(call, {})
    arguments[name] = on_cupy(arguments[name], device=1)
    with installed(monkeypatch, bind_nothing):
        refused(call, ValueError, name, "device, got", "<CUDA Device 1>", **arguments)


@calls
def test_asking_for_the_gpu_without_cupy_names_the_pip_command(nothing_runs, call, monkeypatch):
    monkeypatch.setattr(_dispatch, "find_spec", lambda name: None)
    refused(call, NotImplementedError, "direct: input is a NumPy array", 'pip install "cupycorr[cuda12]"', variant="direct")


class OnGpu:
    """An array of another library on a GPU."""

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, **_):
        pytest.fail("there is no CuPy to take it")


@calls
def test_an_array_of_another_library_on_a_gpu_without_cupy_names_the_pip_command(nothing_runs, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    refused(call, ImportError, 'pip install "cupycorr[cuda12]"', input1=OnGpu(), input2=OnGpu())


@calls
def test_a_forced_variant_without_its_package_names_the_pip_command(nothing_runs, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    refused(call, NotImplementedError, "variant='simd'", "llvmlite", 'pip install "cupycorr[cpu]"', variant="simd")


def test_without_its_package_the_next_variant_answers(monkeypatch):
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    x = ones((1, 64, 48, 64))
    told = explain(x, x, patch_size=9)
    assert told.variant == "blas"
    assert "llvmlite" in told.reasons["simd"]
    assert forward(x, x, patch_size=9)[0, 4, 4, 3, 3] == 64


@calls
def test_bfloat16_by_name_without_its_package_names_the_pip_command(nothing_runs, call, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    refused(call, ImportError, "dtype='bfloat16'", "pip install ml_dtypes", dtype="bfloat16")


@pytest.mark.parametrize("value", ["0", "-1", "two", "", " ", "1.5", "2x", "\N{ARABIC-INDIC DIGIT TWO}"])
@pytest.mark.parametrize("variant", ["simd", "blas"])
@calls
def test_a_bad_number_of_threads_is_refused(call, variant, value, monkeypatch):
    def computed(*_, **__):
        pytest.fail("something was computed before the number of threads was refused")

    monkeypatch.setattr(workers, "run", computed)
    monkeypatch.setenv("CUPYCORR_NUM_THREADS", value)
    said = "CUPYCORR_NUM_THREADS must be a positive integer", f"CUPYCORR_NUM_THREADS={value!r}"
    refused(call, ValueError, *said, variant=variant)


# After all that ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", CPU_VARIANTS)
def test_a_legal_call_after_refused_ones_is_right(variant, monkeypatch):
    out = sevens()
    with monkeypatch.context() as patched:
        patched.setenv("CUPYCORR_NUM_THREADS", "none")
        for bad in (dict(stride=0), dict(scale=np.nan), dict(dtype="float64"), dict(variant="fast")):
            with pytest.raises((ValueError, TypeError)):
                forward(ones(), ones(), out=out, **{"variant": variant, **bad})
    assert forward(ones(), ones(), out=out, variant=variant) is out
    assert (out[0, 1, 1] == 4).all()
    assert (out[0, 0, 0, 1:, 1:] == 4).all()
    assert (out[0, 0, 0, 0] == 0).all()
    g1, g2 = vjp(ones(), ones(), variant=variant)
    for gradient in (g1, g2):
        assert gradient[0, :, 0, 0].tolist() == [4] * 4
        assert gradient[0, :, 3, 3].tolist() == [9] * 4


LEGAL = {
    "scale the accumulator holds": (dict(scale=1e300), np.float64),
    "scale of zero": (dict(scale=0), np.float32),
    "scale as a fraction": (dict(scale=Fraction(1, 4)), np.float32),
    "scale of numpy": (dict(scale=np.float16(0.25)), np.float32),
    "scale of ml_dtypes": (dict(scale=ml_dtypes.bfloat16(0.25)), np.float32),
    "scale of ml_dtypes, eight bits": (dict(scale=ml_dtypes.float8_e4m3fn(0.25)), np.float32),
    "scale of ml_dtypes, an integer": (dict(scale=ml_dtypes.int4(3)), np.float32),
    "lists for pairs": (dict(patch_size=[3, 3], padding=[0, 0]), np.float32),
    "no offset": (dict(patch_offset=None), np.float32),
    "python's float for a dtype": (dict(dtype=float), np.float32),
}


@pytest.mark.parametrize(("arguments", "dtype"), LEGAL.values(), ids=LEGAL.keys())
def test_what_is_legal_is_not_refused(arguments, dtype):
    out = forward(ones(dtype=dtype), ones(dtype=dtype), **arguments)
    assert out[0, 1, 1, 3, 3] == 4 * float(arguments.get("scale", 1))
    assert out.dtype == np.dtype(arguments.get("dtype", dtype))


@pytest.mark.parametrize("array", [np.zeros((9, 9, 40, 40)), torch.zeros(9, 9, 40, 40)], ids=["numpy", "torch"])
def test_an_array_in_place_of_a_number_is_told_in_one_short_line(array):
    with pytest.raises(TypeError, match=r"patch_size must be an int or a .* pair of ints, got patch_size=") as refusal:
        forward(ones(), ones(), patch_size=array)
    assert len(str(refusal.value)) < 200
    assert "\n" not in str(refusal.value)
