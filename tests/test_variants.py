"""Variants that users register: they run by their name, are explained, chosen only with an estimate, checked, and removed again.

The refusals are here too. That the example computes the oracle's numbers is tested in `test_own_variants.py`.
"""

import re
import runpy
import sys
from contextlib import contextmanager
from functools import partial
from math import prod

import fake_cupy
import numpy as np
import nvrtc
import pytest
from emulated import BUSY, correlate, launched_by
from emulator import EmulationError, Emulator, require_compiler
from fake_cupy import FACTS, on_cupy
from own_variants import EXAMPLE, as_before

import cupycorr
from cupycorr import _tuning, variants
from cupycorr import spatial_correlation_sample as correlation
from cupycorr import spatial_correlation_sample_vjp as correlation_vjp
from cupycorr._correlation import reference
from cupycorr._correlation.problem import parameters, problem
from cupycorr._correlation.variants import OPERATOR
from cupycorr._dispatch import FORWARD, Place, Request, Workload, choose
from cupycorr._gpu import compiler
from cupycorr.variants import Kernel, Launch, _check
from cupycorr.variants.__main__ import main

X1, X2 = np.random.default_rng(0).standard_normal((2, 1, 4, 6, 7), np.float32)
ON_GPU = Place("cupy", FACTS)


@pytest.fixture(autouse=True)
def _nothing_stays_registered():
    with as_before():
        yield


def defined(p, input1, input2, out):
    """Compute the output by the package's definition."""
    given = parameters(
        p.kernel_size, p.patch_size, p.stride, p.padding, p.dilation, p.dilation_patch, patch_offset=offset(p), scale=p.scale
    )
    reference.forward(problem(given, input1.shape, input2.shape), input1, input2, out)


def offset(p):
    """Return the displacement at the centre of the patch."""
    return tuple(each[(len(each) - 1) // 2] for each in p.displacements)


def defined_vjp(p, cotangent, input1, input2, gradient1, gradient2):
    given = parameters(
        p.kernel_size, p.patch_size, p.stride, p.padding, p.dilation, p.dilation_patch, patch_offset=offset(p), scale=p.scale
    )
    geometry = problem(given, input1.shape, input2.shape)
    for side, (gradient, other) in enumerate(((gradient1, input2), (gradient2, input1))):
        if gradient is not None:
            reference.gradient(geometry, cotangent, other, gradient, side)


def nothing(p, input1, input2, out):
    """Write nothing."""


# Running by name ---------------------------------------------------------------------------------------------------------------

PROBLEMS = {
    "plain": dict(patch_size=3),
    "windows": dict(kernel_size=(2, 3), patch_size=(3, 2), stride=2, padding=1, scale=-0.5),
    "groups": dict(patch_size=3, groups=2),
    "descending": dict(patch_size=(2, 4), dilation_patch=(-1, -2), patch_offset=(1, 0)),
}


@pytest.mark.parametrize("given", PROBLEMS.values(), ids=PROBLEMS.keys())
def test_a_registered_function_is_called_for_any_groups_and_displacements(given):
    variants.register("mine", forward=defined, vjp=defined_vjp)
    want = correlation(X1, X2, **given, variant="reference")
    assert np.array_equal(correlation(X1, X2, **given, variant="mine"), want)
    for needs in ((True, True), (False, True)):
        found = correlation_vjp(want, X1, X2, **given, needs=needs, variant="mine")
        expected = correlation_vjp(want, X1, X2, **given, needs=needs, variant="reference")
        assert [each is None for each in found] == [not needed for needed in needs]
        assert all(one is None or np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_function_is_given_the_problem_in_plain_numbers():
    seen = []
    variants.register("mine", forward=lambda p, input1, input2, out: seen.append(p), why_not=lambda p: seen.append(p))
    correlation(X1[..., :5], X2, 1, (2, 3), 2, (1, 0), 1, (1, 2), patch_offset=(0, 4), dtype="float64", variant="mine")
    asked, computed = seen
    assert asked == computed
    assert (asked.pass_name, asked.dtype, asked.result_dtype, asked.batch, asked.channels) == (
        "forward",
        "float32",
        "float64",
        1,
        4,
    )
    assert (asked.size1, asked.size2, asked.out_size) == ((6, 5), (6, 7), (4, 3))
    assert (asked.kernel_size, asked.patch_size, asked.stride, asked.padding) == ((1, 1), (2, 3), (2, 2), (1, 0))
    assert [list(each) for each in asked.displacements] == [[0, 1], [2, 4, 6]]
    assert (asked.first_displacement, asked.shape1, asked.out_shape) == ((0, 2), (1, 4, 6, 5), (1, 2, 3, 4, 3))
    assert (asked.c_type, asked.result_c_type, asked.needs, asked.device) == ("float", "double", (True, True), None)


def test_torch_runs_a_registered_function():
    torch = pytest.importorskip("torch")
    import cupycorr.torch

    variants.register("mine", forward=defined, vjp=defined_vjp)
    x1, x2 = torch.from_numpy(X1).requires_grad_(), torch.from_numpy(X2)
    out = cupycorr.torch.spatial_correlation_sample(x1, x2, patch_size=3, variant="mine")
    out.sum().backward()
    assert np.array_equal(out.detach().numpy(), correlation(X1, X2, patch_size=3, variant="reference"))
    want, _ = correlation_vjp(np.ones(out.shape, np.float32), X1, X2, patch_size=3, variant="reference")
    assert np.array_equal(x1.grad.numpy(), want)


def test_explain_gives_the_reasons_of_a_registered_variant_and_names_it_where_it_runs():
    variants.register("mine", forward=defined, why_not=lambda p: "an even patch" if p.patch_size[0] % 2 == 0 else None)
    assert cupycorr.explain(X1, X2, patch_size=2).reasons["mine"] == "an even patch"
    assert cupycorr.explain(X1, X2, patch_size=3, gradients=True).reasons["mine"] == "it has no gradients"
    assert "only where it is named" in cupycorr.explain(X1, X2, patch_size=3).reasons["mine"]
    told = cupycorr.explain(X1, X2, patch_size=3, variant="mine")
    assert (told.variant, told.reasons["simd"]) == ("mine", "mine was named")
    with pytest.raises(NotImplementedError, match="mine: an even patch"):
        correlation(X1, X2, patch_size=2, variant="mine")
    with pytest.raises(NotImplementedError, match="mine: it has no gradients"):
        correlation_vjp(correlation(X1, X2), X1, X2, variant="mine")


def test_auto_chooses_a_variant_by_its_estimate_only_and_only_while_it_is_registered():
    def chosen():
        return cupycorr.explain(X1, X2, patch_size=3).variant

    ours = chosen()
    variants.register("unknown", forward=nothing)
    variants.register("slow", forward=nothing, seconds=lambda p: 1e3)
    assert chosen() == ours
    variants.register("fast", forward=nothing, seconds=lambda p: 0.0)
    assert chosen() == "fast"
    variants.unregister("fast")
    assert chosen() == ours
    assert variants.registered() == ("unknown", "slow")


# Kernels ------------------------------------------------------------------------------------------------------------------------

FILL = """#include "common/platform.cuh"
KERNEL(WIDE) fill(const float* from, float* out, int first, float value) {
    const int at = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    if (threadIdx.x == 0) store_global(out + at, value + load_global(from + first));
}
"""


def fill(p, *, value=1.0, pointers=("input1", "out"), **more):
    """Return a launch with a block for each output of a problem of one sample and one row of displacements."""
    _, _, columns, height, width = p.out_shape
    return Launch((width, height, columns), 32, [np.int32(3), np.float32(value)], {"WIDE": 32}, pointers=pointers, **more)


def register_fill(name="mine", launch=fill, **more):
    variants.register(name, forward=Kernel(FILL, launch, entry="fill", **more))


def test_a_kernel_has_a_grid_of_three_axes_and_scalars_of_its_own(monkeypatch):
    require_compiler()
    register_fill()
    with launched_by(monkeypatch, emulator := Emulator()):
        out = correlate(emulator, "mine", X1, X2, patch_size=(1, 3))
    assert np.array_equal(out, np.full((1, 1, 3, 6, 7), X1.ravel()[3] + np.float32(1)))


def test_launches_run_one_after_the_other_and_share_a_workspace(monkeypatch):
    require_compiler()

    def launch(p):
        scalars = [np.int32(3), np.float32(1)]
        first = Launch(5, 32, scalars, {"WIDE": 32}, pointers=["input1", ("workspace", 8)])
        return [first, Launch(0, 32), Launch((3, 0, 1), 32), fill(p, pointers=["workspace", "out"])]

    variants.register("mine", forward=Kernel(FILL, launch, entry="fill"), workspace=lambda p: 28)
    with launched_by(monkeypatch, emulator := Emulator()):
        out = correlate(emulator, "mine", X1, X2, patch_size=(1, 3))
    assert np.array_equal(out, np.full((1, 1, 3, 6, 7), X1.ravel()[3] + np.float32(2)))
    assert len(emulator.accounts) == 2


def test_the_emulator_names_the_line_of_a_users_file_that_is_wrong(monkeypatch, tmp_path):
    require_compiler()
    file = tmp_path / "mine.cu"
    file.write_text(FILL.replace("store_global(out + at", "store_global(out + at + 1").replace("fill(", "mine("))
    variants.register("mine", forward=Kernel(file, fill))
    with launched_by(monkeypatch, emulator := Emulator()), pytest.raises(EmulationError, match=r"mine\.cu:4"):
        correlate(emulator, "mine", X1, X2, patch_size=(1, 3))


def test_a_kernel_may_include_the_files_beside_it(monkeypatch, tmp_path):
    require_compiler()
    (tmp_path / "beside.cuh").write_text('#pragma once\n#include "common/platform.cuh"\n')
    (tmp_path / "mine.cu").write_text('#include "beside.cuh"\n' + FILL.replace("fill(", "mine("))
    variants.register("mine", forward=Kernel(tmp_path / "mine.cu", fill))
    with launched_by(monkeypatch, emulator := Emulator()):
        out = correlate(emulator, "mine", X1, X2, patch_size=(1, 3))
    assert np.array_equal(out, np.full((1, 1, 3, 6, 7), X1.ravel()[3] + np.float32(1)))


@nvrtc.needed
def test_a_kernel_that_does_not_compile_is_told_in_the_compilers_words(tmp_path):
    file = tmp_path / "mine.cu"
    file.write_text('#include "common/platform.cuh"\nKERNEL(32) mine(float* out) {\n    store_globally(out, 1.0f);\n}\n')
    variants.register("mine", forward=Kernel(file, lambda p: Launch(1, 32, pointers=["out"])))
    request = Request(FORWARD, problem(parameters(), X1.shape, X2.shape), "float32", "float32").dense()
    (call,) = choose(OPERATOR, request, ON_GPU, "mine").plan.calls
    with pytest.raises(
        RuntimeError, match=r"(?s)cannot compile kernel mine of mine\.cu for sm_90:.*mine\.cu\(3\): error.*store_globally"
    ):
        compiler.cubin(call.kernel, "sm_90")


@contextmanager
def recording(monkeypatch):
    """Put a launcher that computes nothing in the place of the real one, and give the list of the scalars of each launch."""
    launched = []

    def bind(kernel, device, grid, block, shared, scalars):
        return lambda arguments, stream: launched.append((grid, block, *scalars))

    with fake_cupy.installed(monkeypatch, bind):
        yield launched


def test_a_repeated_call_runs_what_is_registered_now(monkeypatch):
    with recording(monkeypatch) as launched:
        x1, x2 = on_cupy(X1), on_cupy(X2)
        for value in (1.0, 2.0):
            register_fill(launch=partial(fill, value=value))
            for _ in range(2):
                correlation(x1, x2, patch_size=(1, 3), variant="mine")
            variants.unregister("mine")
        with pytest.raises(ValueError, match="variant must be 'auto' or one of"):
            correlation(x1, x2, patch_size=(1, 3), variant="mine")
    assert launched == [((7, 6, 3), 32, 3, value) for value in (1.0, 1.0, 2.0, 2.0)]


def test_arrays_with_gaps_go_to_kernels_that_take_strides(monkeypatch):
    with recording(monkeypatch) as launched:
        wide = on_cupy(np.repeat(X1, 2, axis=3))[..., ::2]
        register_fill("dense")
        register_fill("strided", lambda p: fill(p, value=p.strides["input1"][3]), strided=True)
        with pytest.raises(NotImplementedError, match="dense: the kernel takes arrays in C order without gaps"):
            correlation(wide, wide, patch_size=(1, 3), variant="dense")
        with pytest.raises(NotImplementedError, match="dense: the kernel takes no output in reverse"):
            correlation(on_cupy(X1), on_cupy(X2), patch_size=(1, 3), dilation_patch=(1, -1), variant="dense")
        correlation(wide, wide, patch_size=(1, 3), variant="strided")
        correlation(on_cupy(X1), on_cupy(X2), patch_size=(1, 3), variant="dense")
    assert [scalars[-1] for scalars in launched] == [2.0, 1.0]


def test_auto_leaves_arrays_with_gaps_to_variants_that_take_them():
    request = Request(FORWARD, problem(parameters(patch_size=(1, 3)), X1.shape, X2.shape), "float32", "float32").dense()
    ours = choose(OPERATOR, request, ON_GPU).variant
    variants.register("mine", forward=Kernel(FILL, fill, entry="fill"), seconds=lambda p: 0.0)
    assert choose(OPERATOR, request, ON_GPU).variant == "mine"
    x1, x2, out = request.layouts
    gaps = request._replace(layouts=(type(x1)(x1.dtype, x1.shape, tuple(2 * stride for stride in x1.strides)), x2, out))
    assert choose(OPERATOR, gaps, ON_GPU).variant == ours


def test_only_kernels_with_an_estimate_are_measured(monkeypatch):
    measured = []
    monkeypatch.setenv("CUPYCORR_AUTOTUNE", "1")
    monkeypatch.setattr(_tuning, "known", lambda workload, device: None)
    monkeypatch.setattr(_tuning, "measure", lambda workload, device, plans: measured.append(set(plans)))
    request = Request(FORWARD, problem(parameters(patch_size=(1, 3)), X1.shape, X2.shape), "float32", "float32").dense()
    register_fill("unknown")
    variants.register("estimated", forward=Kernel(FILL, fill, entry="fill"), seconds=lambda p: 1.0)
    choose(OPERATOR, request, ON_GPU)
    (names,) = measured
    assert "estimated" in names
    assert "unknown" not in names


def test_measured_answers_hold_for_one_text_of_a_kernel():
    request = Request(FORWARD, problem(parameters(patch_size=(1, 3)), X1.shape, X2.shape), "float32", "float32").dense()

    def key(text):
        with as_before():
            variants.register("mine", forward=Kernel(text, fill, entry="fill"), seconds=lambda p: 0.0)
            return Workload(OPERATOR, request, OPERATOR.variants).key

    assert key(FILL) == key(FILL)
    assert len({key(FILL), key(FILL + "// faster\n"), Workload(OPERATOR, request, OPERATOR.variants).key}) == 3


# Refusals -----------------------------------------------------------------------------------------------------------------------


def wrong_launch(**changed):
    """Register a kernel whose launch is wrong in one place, and run it."""

    def launch(p):
        good = dict(blocks=1, threads=32, scalars=[np.int32(0)], pointers=["out"])
        return Launch(**{**good, **changed}) if "returned" not in changed else changed["returned"]

    register_fill(launch=launch)
    request = Request(FORWARD, problem(parameters(), X1.shape, X2.shape), "float32", "float32").dense()
    return choose(OPERATOR, request, ON_GPU, "mine").plan.calls


def run_mine(**given):
    variants.register("mine", **given)
    return correlation(X1, X2, variant="mine")


REFUSED = {
    "no string": (lambda: variants.register(3, forward=nothing), TypeError, "name must be a str, got name=3"),
    "auto": (lambda: variants.register("auto", forward=nothing), ValueError, "none of auto, none, got name='auto'"),
    "a comma": (
        lambda: variants.register("a,b", forward=nothing),
        ValueError,
        r"letters, digits and _ \. \+ -, .*got name='a,b'",
    ),
    "ours": (lambda: variants.register("simd", forward=nothing), ValueError, "got name='simd', which is of the package"),
    "no pass": (lambda: variants.register("mine"), ValueError, "variant 'mine' must have forward or vjp, got neither"),
    "no function": (
        lambda: variants.register("mine", forward=3),
        TypeError,
        r"forward must be a function of \(problem, input1, input2, out\), got 3",
    ),
    "wrong signature": (
        lambda: variants.register("mine", forward=lambda x1, x2: None),
        TypeError,
        r"forward must be a function of \(problem, input1, input2, out\), got one of \(x1, x2\)",
    ),
    "wrong vjp": (
        lambda: variants.register("mine", vjp=nothing),
        TypeError,
        r"vjp must be a function of \(problem, cotangent, input1, input2, gradient1, gradient2\), got one of",
    ),
    "wrong why_not": (
        lambda: variants.register("mine", forward=nothing, why_not=lambda: None),
        TypeError,
        r"why_not must be a function of \(problem\), got one of \(\)",
    ),
    "two kinds": (
        lambda: variants.register("mine", forward=nothing, vjp=Kernel(FILL, fill, "fill")),
        TypeError,
        "forward and vjp must both be a Kernel, or both be functions of NumPy arrays",
    ),
    "a reason that is no text": (
        lambda: run_mine(forward=nothing, why_not=lambda p: True),
        TypeError,
        "why_not of variant 'mine' must return None or a str, got True",
    ),
    "an estimate that is no number": (
        lambda: run_mine(forward=nothing, seconds=lambda p: "fast"),
        TypeError,
        "seconds of variant 'mine' must be a real number",
    ),
    "an estimate below 0": (
        lambda: run_mine(forward=nothing, seconds=lambda p: -1),
        ValueError,
        "seconds of variant 'mine' must be at least 0, got -1",
    ),
    "a returned array": (
        lambda: run_mine(forward=lambda p, x1, x2, out: x1),
        TypeError,
        "function of variant 'mine' must write into out and return None, got array",
    ),
    "nobody": (lambda: variants.unregister("mine"), ValueError, "of which there is none, got name='mine'"),
    "one of the package": (
        lambda: variants.unregister("simd"),
        ValueError,
        "must be that of a registered variant.*got name='simd'",
    ),
    "nobody to check": (lambda: variants.check("simd"), ValueError, "must be that of a registered variant.*got name='simd'"),
    "no file": (lambda: Kernel("nowhere.cu", fill), ValueError, "got 'nowhere.cu', which is no file"),
    "a text without entry": (lambda: Kernel(FILL, fill), ValueError, "entry must name the kernel's function.*got entry=None"),
    "code of another type": (lambda: Kernel(b"", fill), TypeError, "code must be the path of a .cu file or its text, got b''"),
    "entry that is no name": (
        lambda: Kernel(FILL, fill, "a b"),
        ValueError,
        "entry must be the name of a function, got entry='a b'",
    ),
    "launch of another signature": (
        lambda: Kernel(FILL, lambda: 0, "fill"),
        TypeError,
        r"launch must be a function of \(problem\)",
    ),
    "no launch": (
        lambda: wrong_launch(returned=3),
        TypeError,
        "launch of fill.cu must return a Launch or a sequence of them, got 3",
    ),
    "a float of blocks": (
        lambda: wrong_launch(blocks=1.5),
        ValueError,
        "blocks .* must be an int of at least 0 or three of them",
    ),
    "two axes": (lambda: wrong_launch(threads=(8, 8)), ValueError, r"threads .* or three of them, got threads=\(8, 8\)"),
    "no threads": (lambda: wrong_launch(threads=0), ValueError, "threads .* at least 1 or three of them, got threads=0"),
    "shared memory below 0": (lambda: wrong_launch(shared=-1), ValueError, "shared must be at least 0, got shared=-1"),
    "a scalar without a width": (
        lambda: wrong_launch(scalars=[3]),
        TypeError,
        r"must be NumPy scalars, such as np.int32\(5\), got 3",
    ),
    "an unknown pointer": (
        lambda: wrong_launch(pointers=["in"]),
        ValueError,
        "must be of input1, input2, out, workspace, got 'in'",
    ),
}


@pytest.mark.parametrize(("call", "error", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_wrong_is_refused_in_words_and_nothing_stays_registered(call, error, said):
    with pytest.raises(error, match=said):
        call()


def test_a_name_is_taken_until_it_is_unregistered():
    variants.register("mine", forward=nothing)
    with pytest.raises(ValueError, match="got name='mine', which is registered; unregister it first"):
        variants.register("mine", forward=nothing)
    variants.unregister("mine")
    variants.register("mine", forward=nothing)


# The check ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def few_problems(monkeypatch):
    """A part of the table, which the definition computes in little time."""
    names = ("even patch", "everything", "outside", "groups")
    monkeypatch.setattr(_check, "SMALL", {name: _check.SMALL[name] for name in names})


few = pytest.mark.usefixtures("few_problems")


def quick(p):
    """Return why a problem takes long to check."""
    return None if p.dtype == "float32" else "another dtype"


@few
def test_the_check_passes_a_right_variant_and_counts_what_it_refuses():
    variants.register("mine", forward=defined, vjp=defined_vjp, why_not=quick)
    report = variants.check("mine")
    assert report.passed
    assert len(report.right) > 20
    assert {each.refused for each in report.findings} == {None, "another dtype"}
    refused = len(report.findings) - len(report.right)
    assert str(report).splitlines() == [
        f"mine: {len(report.right)} right, 0 wrong, {refused} refused",
        f"refused {refused} times: another dtype",
    ]


def doubled(p, input1, input2, out):
    defined(p, input1, input2, out)
    out *= 2


def without_last(p, input1, input2, out):
    kept = out[..., -1].copy()
    defined(p, input1, input2, out)
    out[..., -1] = kept


def raising(p, input1, input2, out):
    raise IndexError("off by one")


def in_half_precision(p, input1, input2, out):
    defined(p, input1.astype(np.float16).astype(np.float32), input2, out)


@few
@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (doubled, r"output differs from the reference in \d+ of \d+ numbers, most at"),
        (without_last, "nan instead of"),
        (raising, "IndexError: off by one"),
        (in_half_precision, "times the allowed error"),
    ],
)
def test_the_check_finds_wrong_results(forward, said):
    variants.register("mine", forward=forward, why_not=quick)
    report = variants.check("mine")
    assert not report.passed
    found = {each.what: each.wrong for each in report.wrong}
    assert re.search(said, found["even patch, float32, forward"])
    assert found["even patch, float32, forward"] in str(report)


@few
def test_the_check_finds_a_gradient_that_is_wrong():
    def swapped(p, cotangent, input1, input2, gradient1, gradient2):
        defined_vjp(p, cotangent, input1, input2, gradient2, gradient1)

    variants.register("mine", vjp=swapped, why_not=lambda p: quick(p) or (None if p.size1 == p.size2 else "two sizes"))
    found = {each.what: each.wrong for each in variants.check("mine").wrong}
    assert found["even patch, float32, vjp"].startswith("g1 differs")


@few
def test_the_check_finds_elements_that_are_not_written_also_where_they_should_be_0():
    variants.register("mine", forward=nothing, vjp=lambda *arguments: None, why_not=quick)
    found = {each.what: each.wrong for each in variants.check("mine").wrong}
    for which in ("forward", "vjp"):
        assert "nan instead of 0" in found[f"outside, float32, {which}"]


@few
def test_the_check_ends_where_an_error_has_left_the_device_unusable(monkeypatch):
    monkeypatch.setattr(_check, "_is_usable", lambda kind: False)
    variants.register("mine", forward=raising, why_not=quick)
    (wrong,) = variants.check("mine").wrong
    assert wrong.wrong == "IndexError: off by one; the device cannot be used after this error, and the check ends here"


@few
def test_a_report_has_each_message_once():
    variants.register("mine", forward=raising, why_not=quick)
    report = variants.check("mine")
    first, *others = report.wrong
    assert str(report).splitlines()[1] == f"wrong: {first.what} and {len(others)} others: IndexError: off by one"


@few
def test_a_variant_that_refuses_everything_does_not_pass():
    variants.register("mine", forward=defined, why_not=lambda p: "never")
    report = variants.check("mine")
    assert not report.passed
    assert "nothing is known of it" in str(report)


@few
@pytest.mark.gpu
def test_the_check_of_a_kernel_on_a_device_finds_what_is_wrong():
    cupy = pytest.importorskip("cupy")
    cupy.cuda.runtime.getDeviceCount()
    variants.load(EXAMPLE)
    assert variants.check("mine").passed
    launches = {
        "wrong": lambda p: Launch(prod(p.out_shape), 32, [np.int32(0), np.float32(0)], {"WIDE": 32}, pointers=["input1", "out"]),
        "broken": lambda p: Launch(1, 32, entry="nobody", macros={"WIDE": 32}),
    }
    said = {"wrong": "output differs", "broken": "nobody"}
    for name, launch in launches.items():
        variants.register(
            name, forward=Kernel(FILL, launch, "fill"), why_not=lambda p: quick(p) or (None if p.channels else "empty")
        )
        report = variants.check(name)
        assert report.wrong
        assert all(said[name] in each.wrong for each in report.wrong)


# Files that register ------------------------------------------------------------------------------------------------------------

FILE = """
from cupycorr import variants

def forward(problem, input1, input2, out):
    out[...] = {value}

variants.register("from-a-file", forward=forward, why_not=lambda p: None if p.dtype == "float16" else "float16 only")
"""


def test_a_file_or_a_module_registers_variants(tmp_path, monkeypatch):
    (tmp_path / "some_variants.py").write_text(FILE.format(value=0))
    assert variants.load(tmp_path / "some_variants.py") == ("from-a-file",)
    variants.unregister("from-a-file")
    monkeypatch.syspath_prepend(tmp_path)
    assert variants.load("some_variants") == ("from-a-file",)
    variants.unregister("from-a-file")
    assert variants.load("some_variants") == ("from-a-file",), "a module that was imported before runs again"
    monkeypatch.delitem(sys.modules, "some_variants")


@pytest.mark.parametrize(
    ("name", "text", "error", "said"),
    [
        ("none.py", "x = 1\n", ValueError, "which registers none"),
        ("missing.py", None, ValueError, "which is no file"),
        ("no_such_module", None, ValueError, "there is no such module"),
        (".relative", None, ValueError, "which is no name of a module"),
        ("", None, ValueError, "which is no name of a module"),
        ("failing.py", FILE.format(value=0) + "1 / 0\n", ZeroDivisionError, "division"),
        ("importing.py", "import no_such_module\n", ModuleNotFoundError, "no_such_module"),
    ],
)
def test_a_file_that_registers_nothing_is_refused_and_one_that_fails_leaves_nothing(tmp_path, name, text, error, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=said):
        variants.load(tmp_path / name if name.endswith(".py") else name)
    assert variants.registered() == ()


def test_a_source_that_is_no_text_and_a_name_of_other_letters_are_refused():
    with pytest.raises(TypeError, match="source must be a path or the name of a module, got source=3"):
        variants.load(3)
    with pytest.raises(ValueError, match="name must be letters"):
        variants.register("A\u00b2", forward=defined)


@pytest.mark.parametrize(("value", "code", "said"), [(0, 1, "wrong: "), ("0 / 0", 1, "ZeroDivisionError")])
def test_the_command_checks_what_a_file_registers(tmp_path, capsys, value, code, said):
    (tmp_path / "mine.py").write_text(FILE.format(value=value))
    assert main(["check", "from-a-file", "--load", str(tmp_path / "mine.py")]) == code
    assert said in capsys.readouterr().out


def test_the_command_passes_the_functions_of_the_example(capsys):
    assert main(["check", "mine-numpy", "--load", str(EXAMPLE)]) == 0
    assert re.match(r"mine-numpy: \d+ right, 0 wrong", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["somebody"], "got name='somebody'"), (["mine"], "mine cannot be checked: this needs CuPy")],
)
def test_a_command_that_cannot_check_says_why(monkeypatch, capsys, words, said):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert main(["check", *words, "--load", str(EXAMPLE)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


# The example --------------------------------------------------------------------------------------------------------------------


def test_the_example_needs_at_most_30_lines_for_a_variant():
    code = EXAMPLE.read_text().rpartition('"""\n')[2].strip().splitlines()  # without its description
    (registered,) = (number for number, line in enumerate(code, 1) if line.startswith('variants.register("mine",'))
    assert registered <= 30


def test_the_page_shows_the_code_of_the_example():
    page = (EXAMPLE.parents[1] / "variants.md").read_text()
    blocks = re.findall(r"^```(?:python|cuda)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    code = EXAMPLE.with_suffix(".cu").read_text() + EXAMPLE.read_text()
    assert all(block.removesuffix("    ...\n") in code for block in blocks)


@pytest.mark.parametrize("kind", ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def test_the_example_checks_explains_and_draws(kind, monkeypatch, tmp_path, capsys):
    if kind == "numpy":
        monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr().out
    name = {"numpy": "mine-numpy", "cupy": "mine"}[kind]
    assert re.search(rf"^{name}: \d+ right, 0 wrong, ", printed, re.MULTILINE)
    assert f"runs       {name}: the registered kernel" in printed or f"runs       {name}: a registered function" in printed
    assert ("The kernel cannot run here" in printed) == (kind == "numpy")
    assert (tmp_path / "own_variant.png").read_bytes().startswith(b"\x89PNG")


def test_the_kernel_of_the_example_is_chosen_by_name_with_its_grid():
    variants.load(EXAMPLE)
    request = Request(FORWARD, problem(parameters(patch_size=9), (2, 8, 5, 6), (2, 8, 5, 6)), "float32", "float32").dense()
    (call,) = choose(OPERATOR, request, Place("cupy", BUSY), "mine").plan.calls
    assert (call.blocks, call.threads, call.kernel.macros) == (-(-2 * 9 * 5 * 6 // 128), 128, (("PATCH", "9"),))


@nvrtc.needed
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
def test_the_kernel_of_the_example_compiles_without_warnings_or_spills(architecture):
    variants.load(EXAMPLE)
    request = Request(FORWARD, problem(parameters(patch_size=9), (2, 8, 5, 6), (2, 8, 5, 6)), "float32", "float32").dense()
    (call,) = choose(OPERATOR, request, ON_GPU, "mine").plan.calls
    _, log = compiler.cubin(call.kernel, architecture, "--ptxas-options=-v")
    told = "\n".join(line for line in log.splitlines() if "deprecated" not in line)
    assert "Used" in told
    assert not re.search(r"warning|error|[1-9]\d* bytes (stack|spill)", told), log
