"""Which variant answers on a GPU, and why another one does not: by dtype, precision, device and count, without a GPU."""

import re
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import cases
import numpy as np
import pytest
from cases import CPU_VARIANTS, DTYPES, GPU_VARIANTS
from fake_cupy import FACTS, installed, on_cupy
from watched import taking

import cupycorr
from cupycorr import _dispatch
from cupycorr._arguments import effective_precision
from cupycorr._correlation.gpu import gradient_mma, one_pixel, planner
from cupycorr._correlation.problem import parameters, problem
from cupycorr._correlation.variants import OPERATOR
from cupycorr._dispatch import Place, Request
from cupycorr._gpu.layout import CHANNELS_LAST, ROWS

SHAPE = (2, 64, 24, 32)
SIXTEEN_BITS = ("float16", "bfloat16")


def asked(dtype="float16", which="forward", precision="highest", shape=SHAPE, **given):
    given = parameters(**{"patch_size": 9, **given})
    request = Request(which, problem(given, shape, shape), dtype, dtype, precision=effective_precision(precision, dtype))
    return request.dense()


def of(request, which, *orders):
    """The same request for another pass, on arrays in other memory orders."""
    return request._replace(pass_name=which, layouts=()).dense(*orders)


def on(capability=(9, 0)):
    return Place("cupy", replace(FACTS, compute_capability=capability, multiprocessors=132))


def choice(request, where, variant="auto"):
    return _dispatch.choose(OPERATOR, request, where, variant)


# Reasons ----------------------------------------------------------------------------------------------------------------------

REASONS = {
    "float64": (asked("float64", precision="high"), (9, 0), "float64 has no tensor-core product here"),
    "float32": (asked("float32"), (9, 0), "precision is 'highest', tensor cores multiply float32 as TF32"),
    "Volta": (asked("float16"), (7, 0), "compute capability 7.0 has no tensor cores for float16"),
    "bfloat16 on Turing": (asked("bfloat16"), (7, 5), "compute capability 7.5 has no tensor cores for bfloat16"),
    "TF32 on Turing": (asked("float32", precision="high"), (7, 5), "compute capability 7.5 has no tensor cores for float32"),
    "a window": (asked(kernel_size=(1, 3)), (9, 0), "a window of 1 x 3 pixels, tensor cores are for windows of one pixel"),
    "geometry": (asked(padding=2**28, stride=2**28), (9, 0), r"(positions of up to|stride) \d+ (pixels|does not divide .*)\)$"),
    "positions beyond all integers": (asked(shape=(1, 1, 1, 1), padding=2**62, stride=2**61), (9, 0), "64-bit integers"),
}


@pytest.mark.parametrize("which", ["forward", "vjp"])
@pytest.mark.parametrize(("question", "capability", "reason"), REASONS.values(), ids=REASONS)
def test_tensor_cores_are_refused_with_the_reason(question, capability, reason, which):
    with pytest.raises(NotImplementedError) as refusal:
        choice(of(question, which), on(capability), "mma")
    assert "variant='mma' (mma: " in str(refusal.value)
    assert re.search(reason, str(refusal.value))


RUN = {
    "float16": (asked("float16"), (8, 0)),
    "bfloat16": (asked("bfloat16"), (8, 0)),
    "float16 on Turing": (asked("float16"), (7, 5)),
    "high": (asked("float32", precision="high"), (8, 0)),
    "medium": (asked("float32", precision="medium"), (8, 6)),
    "to come": (asked("bfloat16"), (13, 7)),
}


@pytest.mark.parametrize("which", ["forward", "vjp"])
@pytest.mark.parametrize(("question", "capability"), RUN.values(), ids=RUN)
def test_tensor_cores_run_where_there_is_nothing_against_them(question, capability, which):
    assert choice(of(question, which), on(capability), "mma").variant == "mma"


@pytest.mark.parametrize("order", [ROWS, CHANNELS_LAST])
@pytest.mark.parametrize(("question", "capability"), RUN.values(), ids=RUN)
def test_who_asks_for_tensor_cores_gets_them(question, capability, order):
    for which, entry in {"forward": "forward_mma", "vjp": "gradient_mma"}.items():
        plan = planner.plan("mma", of(question, which, order, order), on(capability).device)
        assert plan.calls[0].kernel.entry == entry
        assert plan.algorithm == "mma"
        assert "on tensor cores" in plan.description


def test_without_a_device_the_reasons_are_those_of_all_devices():
    nowhere = Place("cupy", None)
    rows = {row.name: row for row in OPERATOR.variants}
    assert rows["mma"].why_not_at(nowhere, asked("float16")) is None
    assert "precision is 'highest'" in rows["mma"].why_not_at(nowhere, asked("float32"))


def test_no_reason_asks_for_a_device_on_the_cpu(monkeypatch):
    monkeypatch.setattr(_dispatch, "facts", lambda index: pytest.fail("asked for a device"))
    monkeypatch.setattr("cupycorr._gpu.device.import_cupy", lambda: pytest.fail("asked for CuPy"))
    x = np.ones(SHAPE, np.float16)
    told = cupycorr.explain(x, x, patch_size=9, precision="high")
    assert {told.reasons[name] for name in GPU_VARIANTS} == {"input is a NumPy array, needs a CuPy array"}
    assert cupycorr.spatial_correlation_sample(x, x, precision="high").shape == (2, 1, 1, 24, 32)


# Choices ----------------------------------------------------------------------------------------------------------------------


def counted(**seconds):
    """Return the variants, each taking so long by the cost model."""
    return [taking(row, seconds.get(row.name, 1.0)) for row in OPERATOR.variants]


@pytest.mark.parametrize("which", ["forward", "vjp"])
@pytest.mark.parametrize("name", ["mma", "tiled", "direct"])
def test_the_variant_that_takes_least_by_the_cost_model_is_chosen(variants, name, which):
    variants(*counted(**{name: 0.5}))
    for dtype in SIXTEEN_BITS:
        assert choice(asked(dtype, which), on()).variant == name
        told = _dispatch.explain(OPERATOR, asked(dtype, which), on(), "auto")
        assert told.variant == name
        others = {"mma", "tiled", "direct"} - {name}
        assert {told.reasons[other] for other in others} == {f"by the cost model it takes 1e+03 ms, {name} 500 ms"}


@pytest.mark.parametrize("which", ["forward", "vjp"])
def test_float32_goes_to_tensor_cores_when_asked_to_and_never_otherwise(variants, which):
    variants(*counted(mma=1e-9))
    chosen = {precision: choice(asked("float32", which, precision), on()).variant for precision in ("highest", "high", "medium")}
    assert chosen == {"highest": "tiled", "high": "mma", "medium": "mma"}


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bound_is_that_of_the_unit_that_multiplies(dtype, kernel_size):
    shape = (4, 4096, 48, 64)  # more arithmetic than traffic
    for precision, capability in product(("highest", "high"), ((9, 0), (7, 0))):
        where = on(capability)
        question = asked(dtype, precision=precision, shape=shape, patch_size=41, kernel_size=kernel_size)
        rounded = dtype == "float32" and precision == "high" and kernel_size == 1
        rate = where.device.matrix_rate(dtype) if rounded or dtype in SIXTEEN_BITS else None
        rate = rate or (where.device.float64_rate if dtype == "float64" else where.device.float32_rate)
        assert _dispatch.explain(OPERATOR, question, where, "auto").bound == pytest.approx(question.problem.flops / rate)


@pytest.fixture
def requests(monkeypatch):
    """Every request that public functions make, with CuPy arrays; nothing is launched."""
    seen, candidates = [], _dispatch._candidates

    def noted(operator, request, *rest):
        seen.append(request)
        return candidates(operator, request, *rest)

    with installed(monkeypatch, lambda *_: lambda *_: None):
        monkeypatch.setattr(_dispatch, "_candidates", noted)
        yield seen


@pytest.mark.parametrize(("precision", "reached"), [("highest", "highest"), ("high", "high"), ("medium", "high")])
@pytest.mark.parametrize("call", ["forward", "vjp", "explain"])
def test_precision_reaches_the_request(requests, call, precision, reached):
    x1, x2, g = map(on_cupy, cases.same((1, 4, 6, 7), patch_size=3).arrays())
    calls = {
        "forward": lambda **given: cupycorr.spatial_correlation_sample(x1, x2, **given),
        "vjp": lambda **given: cupycorr.spatial_correlation_sample_vjp(g, x1, x2, **given),
        "explain": lambda **given: cupycorr.explain(x1, x2, **given),
    }
    calls[call](patch_size=3, precision=precision)
    assert {request.precision for request in requests} == {reached}


def test_arrays_with_gaps_get_the_variant_of_dense_arrays_and_only_its_plan(variants):
    """Strides decide nothing, so that the bits of a result do not change with the padding of rows."""
    shape, given = (8, 96, 48, 32), parameters((1, 5), 9, 3, 0, 1, 2)
    request = Request("forward", problem(given, shape, shape), "float32", "float16").dense()
    first, second, out = request.layouts
    repeated = replace(first, strides=(0, *first.strides[1:]))
    padded = replace(second, strides=(96 * 48 * 35, 48 * 35, 35, 1))
    gaps = request._replace(layouts=(repeated, padded, out))
    planned = []

    def noted(row):
        return replace(row, plan=lambda request, device: planned.append((row.name, request.layouts)) or row.plan(request, device))

    variants(*map(noted, OPERATOR.variants))
    dense = choice(request, on())
    planned.clear()
    chosen = choice(gaps, on())
    assert chosen.variant == dense.variant
    assert planned == [(dense.variant, gaps.layouts)]


@pytest.mark.parametrize(
    ("variant", "gradients", "given", "algorithm"),
    [
        ("tiled", True, dict(kernel_size=3), "box"),
        ("tiled", False, dict(kernel_size=3), "tiled"),
        ("mma", True, dict(), "mma"),
    ],
    ids=["gradients of windows", "windows", "gradients on tensor cores"],
)
def test_explain_names_the_algorithm_that_a_variant_runs(monkeypatch, variant, gradients, given, algorithm):
    x = np.zeros(SHAPE, np.float16)
    with installed(monkeypatch, lambda *_: pytest.fail("bound")):
        told = cupycorr.explain(on_cupy(x), on_cupy(x), patch_size=9, **given, variant=variant, gradients=gradients)
    assert (told.variant, told.algorithm) == (variant, algorithm)
    assert (f"runs       {variant} by {algorithm}: " in str(told)) == (variant != algorithm)


# Within the box ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def at_once(monkeypatch):
    """Tensor cores take no time by count; the dtypes that they multiply are noted."""
    multiplied = []

    def best(vertical, horizontal, arrays, device, room):
        multiplied.append(arrays.input1.dtype)
        return SimpleNamespace(calls=lambda *_: [], workspace=0, seconds=lambda device: 0.0, how="at once")

    class Tiling(gradient_mma._Tiling):
        def seconds(self, device):
            return 0.0

    tilings_of = gradient_mma.tilings

    def tilings(vertical, horizontal, operands):
        multiplied.append(operands[0].other[0].dtype)
        return tilings_of(vertical, horizontal, operands)

    forward = SimpleNamespace(best=best, why_not=lambda *_: None, needed_splits=lambda *_: 0)
    monkeypatch.setitem(one_pixel._FORWARDS, "mma", forward)
    monkeypatch.setattr(gradient_mma, "_Tiling", Tiling)
    monkeypatch.setitem(one_pixel._GRADIENTS, "mma", SimpleNamespace(tilings=tilings, why_not=lambda *_: None))
    return multiplied


@pytest.mark.parametrize("which", ["forward", "vjp"])
@pytest.mark.parametrize("capability", [(9, 0), (7, 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_box_multiplies_numbers_of_16_bits_on_tensor_cores_and_no_others(at_once, dtype, capability, which):
    for precision in ("highest", "high"):
        planner.plan("box", asked(dtype, which, precision, kernel_size=3), on(capability).device)
    assert set(at_once) == ({dtype} if dtype in SIXTEEN_BITS and capability == (9, 0) else set())


@pytest.mark.parametrize("which", ["forward", "vjp"])
def test_what_does_not_fit_tensor_cores_goes_through_tiles(at_once, monkeypatch, which):
    monkeypatch.setattr(one_pixel._FORWARDS["mma"], "best", lambda *_: None)
    monkeypatch.setattr(one_pixel._GRADIENTS["mma"], "why_not", lambda *_: "does not fit")
    device = on().device
    plan, tiled = (planner.plan(algorithm, asked(which=which), device) for algorithm in ("mma", "tiled"))
    assert plan.algorithm == "tiled"
    assert plan.calls == tiled.calls


@pytest.mark.parametrize(
    ("capability", "inputs"),
    [(None, {"half", "bfloat16", "float"}), ((8, 6), {"half", "bfloat16", "float"}), ((7, 5), {"half"}), ((7, 0), set())],
)
def test_a_device_is_not_given_builds_for_what_its_tensor_cores_do_not_multiply(capability, inputs):
    builds = [kernel for _, kernel in planner.builds(capability and on(capability).device)]
    assert {dict(kernel.macros)["INPUT"] for kernel in builds if "mma" in kernel.file} == inputs
    assert {kernel for kernel in builds if "mma" not in kernel.file} == {
        kernel for _, kernel in planner.builds() if "mma" not in kernel.file
    }


@pytest.mark.parametrize("name", CPU_VARIANTS)
def test_variants_of_the_cpu_take_every_precision(name):
    question = asked("float32", precision="high")
    assert choice(question._replace(layouts=()), _dispatch.CPU, name).variant == name
