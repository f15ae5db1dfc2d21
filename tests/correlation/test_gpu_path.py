"""CuPy arrays through the public functions, without a GPU: a fake CuPy on NumPy arrays, with kernels in the emulator."""

import re
import sys

import cases
import fake_cupy
import numpy as np
import oracle
import pytest
from cases import GPU_VARIANTS
from emulator import Emulator, require_compiler
from fake_cupy import Device, Stream, installed, ndarray, on_cupy

import cupycorr
from cupycorr import _arrays, _dispatch
from cupycorr._correlation.gpu import box
from cupycorr._gpu import plan as plans

require_compiler()

WINDOWED = cases.same((2, 5, 9, 11), kernel_size=3, patch_size=(3, 4), stride=(1, 2), padding=1)
HALVES = cases.same((2, 20, 9, 17), "float16", patch_size=(3, 5))
ANSWERED = {variant: HALVES if variant == "mma" else WINDOWED for variant in GPU_VARIANTS}


class Lender(Emulator):
    """An emulator that is lent whatever array's address is asked for: who asks may pass it to a kernel."""

    def __init__(self):
        super().__init__()
        self.launched_on = []

    def bind(self, kernel, device, *rest):
        launch = super().bind(kernel, device, *rest)

        def recorded(arguments, stream):
            self.launched_on.append((device, kernel.entry))
            launch(arguments, stream)

        return recorded


@pytest.fixture
def gpu(monkeypatch):
    """The emulator in the place of a GPU."""
    emulator = Lender()
    run, allocate = plans.Plan.run, plans.allocate_from_cupy

    def lend_and_run(plan, arrays):
        for name, array in arrays.items():
            emulator.register(np.asarray(array), name, writable=name.startswith(("out", "gradient")))
        try:
            run(plan, arrays)
        finally:
            emulator.forget()

    def lend_workspace(size):
        address, memory = allocate(size)
        emulator.register(np.asarray(memory), "workspace", writable=True)
        return address, memory

    with installed(monkeypatch, emulator.bind):
        monkeypatch.setattr(plans.Plan, "run", lend_and_run)
        monkeypatch.setattr(plans, "allocate_from_cupy", lend_workspace)
        yield emulator


def both(case, **more):
    """Return output and gradients of CuPy arrays by the public functions."""
    x1, x2, g = map(on_cupy, case.arrays())
    out = cupycorr.spatial_correlation_sample(x1, x2, **case.parameters, **more)
    return (out, *cupycorr.spatial_correlation_sample_vjp(g, x1, x2, **case.parameters, **more))


def answers(variant, case):
    """`both`, by a variant, within the oracle's bounds."""
    results = both(case, variant=variant)
    x1, x2, g = case.arrays()
    want = oracle.forward(x1, x2, **case.parameters), *oracle.vjp(g, x1, x2, **case.parameters)
    for name, result, wanted in zip(("output", "g1", "g2"), results, want, strict=True):
        oracle.assert_close(np.asarray(result), wanted, name=name)
    return results


@pytest.mark.parametrize(("variant", "case"), [("auto", WINDOWED), *ANSWERED.items()], ids=["auto", *ANSWERED])
def test_cupy_arrays_in_cupy_arrays_out_with_the_oracles_values(gpu, variant, case):
    results = answers(variant, case)
    assert all(type(result) is ndarray and result.flags.c_contiguous for result in results)


def test_the_route_that_takes_less_work_is_chosen(gpu):
    few_channels = both(cases.same((1, 1, 24, 24), kernel_size=8, patch_size=3))
    assert {entry for _, entry in gpu.launched_on} == {"forward_direct", "box_filter", "gradient_direct"}
    assert few_channels
    gpu.launched_on.clear()
    both(cases.same((1, 1, 24, 24), kernel_size=2, patch_size=3, stride=6))
    assert {entry for _, entry in gpu.launched_on} == {"forward_direct", "gradient_direct"}


def test_results_lie_on_the_inputs_device_which_need_not_be_the_current_one(gpu):
    x1, x2, g = (on_cupy(array, device=3) for array in WINDOWED.arrays())
    out = cupycorr.spatial_correlation_sample(x1, x2, **WINDOWED.parameters)
    gradients = cupycorr.spatial_correlation_sample_vjp(g, x1, x2, **WINDOWED.parameters)
    assert {result.device.id for result in (out, *gradients)} == {3}
    assert Device.current == 0


def test_out_is_written_and_returned_itself(gpu):
    x1, x2, _ = map(on_cupy, WINDOWED.arrays())
    want = cupycorr.spatial_correlation_sample(x1, x2, **WINDOWED.parameters)
    out = on_cupy(np.empty(want.shape, np.float64))
    assert cupycorr.spatial_correlation_sample(x1, x2, out=out, **WINDOWED.parameters) is out
    assert np.allclose(out, want, rtol=1e-6, atol=1e-6)


def test_out_may_be_an_input(gpu):
    x1, x2, _ = map(on_cupy, cases.same((3, 1, 8, 9)).arrays())
    want = cupycorr.spatial_correlation_sample(x1, x2)
    shared = x2.copy()
    cupycorr.spatial_correlation_sample(x1, shared, out=shared[:, :, None].reshape(3, 1, 1, 8, 9))
    assert np.array_equal(shared.reshape(want.shape), want)


OVERLAPS = {
    "the same": (slice(0, 8), slice(0, 8), True),
    "the last byte": (slice(0, 5), slice(4, 8), True),
    "neighbours": (slice(0, 4), slice(4, 8), False),
    "reversed, the last byte": (slice(4, None, -1), slice(4, 8), True),
    "reversed, neighbours": (slice(3, None, -1), slice(4, 8), False),
    "nothing within": (slice(0, 8), slice(4, 4), False),
}


@pytest.mark.parametrize(("first", "second", "shared"), OVERLAPS.values(), ids=OVERLAPS.keys())
def test_memory_is_shared_where_the_addresses_overlap_whoever_owns_them(gpu, first, second, shared):
    memory = np.zeros(8, np.float32)
    arrays = on_cupy(memory[first]), on_cupy(np.frombuffer(memory)[:].view(np.float32)[second])
    assert _arrays.may_share_memory(*arrays) is shared
    assert _arrays.may_share_memory(*reversed(arrays)) is shared


class OnGpu:
    """An array of another library on a GPU."""

    def __init__(self, memory):
        self.memory = memory

    def __dlpack_device__(self):
        return (2, 0)

    def __dlpack__(self, **_):
        pytest.fail("CuPy's from_dlpack does this")


def test_what_exports_gpu_memory_by_dlpack_gives_cupy_results(gpu):
    x1, x2, g = WINDOWED.arrays()
    want = both(WINDOWED)
    out = OnGpu(np.empty(want[0].shape, np.float32))
    got = cupycorr.spatial_correlation_sample(OnGpu(x1), OnGpu(x2), out=out, **WINDOWED.parameters)
    assert got is out
    assert np.array_equal(out.memory, want[0])
    fresh = cupycorr.spatial_correlation_sample(OnGpu(x1), OnGpu(x2), **WINDOWED.parameters)
    gradients = cupycorr.spatial_correlation_sample_vjp(OnGpu(g), OnGpu(x1), OnGpu(x2), **WINDOWED.parameters)
    assert all(type(result) is ndarray for result in (fresh, *gradients))
    assert all(map(np.array_equal, (fresh, *gradients), want))


def test_the_same_arguments_make_one_plan(gpu):
    for _ in range(3):
        both(WINDOWED, variant="box")
    assert _dispatch._planned.cache_info().misses == 2
    assert _dispatch._planned.cache_info().maxsize


def test_what_a_captured_graph_works_in_is_never_freed(gpu, monkeypatch):
    monkeypatch.setattr(plans, "_captured", kept := [])
    both(WINDOWED, variant="box")
    assert kept == []
    monkeypatch.setattr(Stream, "capturing", True)
    both(WINDOWED, variant="box")
    assert len(kept) == 2  # the workspace of each direction
    both(WINDOWED, variant="direct")
    assert len(kept) == 2
    x1, x2, _ = map(on_cupy, cases.same((3, 1, 8, 9)).arrays())
    cupycorr.spatial_correlation_sample(x1, x2, out=x2[:, :, None].reshape(3, 1, 1, 8, 9))
    assert [array.shape for array in kept[2:]] == [(3, 1, 1, 8, 9)]


@pytest.mark.parametrize("name", ["input1", "input2", "out"])
def test_an_array_that_is_not_aligned_is_refused_before_a_launch(gpu, name):
    arrays = {"input1": on_cupy(np.ones((1, 1, 2, 2), np.float32)), "input2": on_cupy(np.ones((1, 1, 2, 2), np.float32))}
    arrays["out"] = on_cupy(np.ones((1, 1, 1, 2, 2), np.float32))
    unaligned = np.frombuffer(bytearray(18), np.float32, count=4, offset=2)
    arrays[name] = on_cupy(unaligned.reshape(arrays[name].shape))
    with pytest.raises(ValueError, match=f"{name} must begin at a multiple of its 4 bytes"):
        cupycorr.spatial_correlation_sample(**arrays)
    assert gpu.launched_on == []


def test_explain_tells_the_reason_of_every_variant(gpu):
    x = on_cupy(np.zeros((1, 64, 24, 32), np.float32))
    told = cupycorr.explain(x, x, patch_size=9)
    assert told.variant == "tiled"
    assert told.reasons["box"] == "kernel_size is 1"
    assert re.fullmatch(r"by the cost model it takes [\d.]+ ms, tiled [\d.]+ ms", told.reasons["direct"])
    assert {told.reasons[name] for name in cases.CPU_VARIANTS} == {"input is a CuPy array, needs a NumPy array"}
    assert told.bound == told.bytes / fake_cupy.FACTS.bandwidth  # more than the arithmetic takes
    windowed = cupycorr.explain(x, x, kernel_size=32, patch_size=9, padding=16)
    assert windowed.variant == "box"
    assert windowed.reasons["tiled"] == "a window of 32 x 32 taps does not fit into any tile"
    assert 0 < windowed.workspace <= box.WORKSPACE_BYTES
    assert gpu.launched_on == []


def test_match_runs_on_cupy_arrays(gpu):
    frame = np.random.default_rng(0).random((30, 40))
    moved = np.roll(frame, (1, -2), axis=(0, 1))
    search = dict(window=7, search=((-2, 2), (-3, 3)), step=3, variant="operator")
    found = cupycorr.match(on_cupy(frame), on_cupy(moved), **search)
    want = cupycorr.match(frame, moved, **search)
    assert gpu.launched_on
    for name in ("dx", "dy", "score", "x", "y"):
        got = getattr(found, name)
        assert type(got) is ndarray
        assert np.allclose(got, getattr(want, name), atol=1e-9, equal_nan=True), name


def test_empty_problems_launch_nothing(gpu):
    out, g1, g2 = both(cases.same((0, 3, 8, 9), patch_size=3))
    assert (out.shape, g1.shape, g2.shape) == ((0, 3, 3, 8, 9), (0, 3, 8, 9), (0, 3, 8, 9))
    assert gpu.launched_on == []


# What can go wrong between the front door and the kernel ------------------------------------------------------------------------


def fails_once(real, *waiting):
    """``real``, whose first calls raise."""
    waiting = list(waiting)

    def function(*arguments, **options):
        if waiting:
            raise waiting.pop()
        return real(*arguments, **options)

    return function


@pytest.mark.parametrize(("variant", "case"), ANSWERED.items(), ids=ANSWERED)
def test_a_kernel_that_cannot_be_compiled_is_one_error_and_the_next_call_works(gpu, monkeypatch, variant, case):
    told = "cannot compile kernel forward_direct of forward_direct.cu for sm_90"
    monkeypatch.setattr(plans, "bind", fails_once(plans.bind, RuntimeError(told)))
    with pytest.raises(RuntimeError, match=told):
        both(case, variant=variant)
    answers(variant, case)


def test_a_kernel_that_cannot_be_compiled_takes_no_workspace(gpu, monkeypatch):
    monkeypatch.setattr(plans, "bind", fails_once(plans.bind, RuntimeError("cannot compile")))
    monkeypatch.setattr(plans, "allocate_from_cupy", lambda size: pytest.fail("allocated before it was compiled"))
    with pytest.raises(RuntimeError, match="cannot compile"):
        both(WINDOWED, variant="box")


@pytest.mark.parametrize(("variant", "case"), ANSWERED.items(), ids=ANSWERED)
def test_a_launch_that_fails_is_one_error_and_the_next_call_works(gpu, monkeypatch, variant, case):
    launch = Emulator._launch
    failing = fails_once(launch, RuntimeError("cannot launch kernel"))
    monkeypatch.setattr(Emulator, "_launch", lambda *arguments: failing(*arguments))
    with pytest.raises(RuntimeError, match="cannot launch kernel"):
        both(case, variant=variant)
    answers(variant, case)


@pytest.mark.parametrize("number", [1, 2, 3], ids=["output", "gradient or workspace", "later"])
@pytest.mark.parametrize(("variant", "case"), ANSWERED.items(), ids=ANSWERED)
def test_a_device_without_memory_is_one_error_and_the_next_call_works(gpu, monkeypatch, variant, case, number):
    empty, made = fake_cupy.Fake(fake_cupy.H100).empty, []

    def runs_out(*arguments):
        made.append(arguments)
        if len(made) == number:
            raise MemoryError("Out of memory allocating 18,446,744 bytes")
        return empty(*arguments)

    monkeypatch.setattr(sys.modules["cupy"], "empty", runs_out, raising=False)
    with pytest.raises(MemoryError, match="Out of memory allocating"):
        both(case, variant=variant)
    answers(variant, case)
