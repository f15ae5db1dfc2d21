"""The way from a call to its launches on a device: streams, memory, replays, devices, arguments, measured variants, and `match`.

Each test is about a promise of the code around the kernels that a wrong number alone would not show.
"""

import gc
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cases
import match_oracle
import numpy as np
import oracle
import pytest
from cases import DTYPES
from fake_cupy import forget_plans
from layouts import LAYOUTS
from on_device import (
    EACH,
    PLAIN,
    WINDOWED,
    Account,
    able,
    answer,
    assert_right,
    assert_same_bits,
    back,
    cupy,
    delay,
    each,
    fill,
    fresh_process,
    here,
    sent,
    wanted,
    why_not,
)
from waiting import STUCK

import cupycorr
from cupycorr import _arrays, _checks, _dispatch, _repeats, _tuning
from cupycorr import spatial_correlation_sample as correlate
from cupycorr import spatial_correlation_sample_vjp as correlate_vjp
from cupycorr._correlation.gpu import planner
from cupycorr._correlation.variants import OPERATOR
from cupycorr._dispatch import FORWARD, VJP, Request
from cupycorr._gpu import call, plan
from cupycorr._gpu.device import facts

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("able")]

# Its gradients need more than 48 KiB of shared memory, and partial sums.
LARGE_TILES = cases.same((1, 64, 12, 33), patch_size=21)
BOTH_PHASES = cases.same((2, 64, 16, 24), patch_size=21, dilation_patch=2)
DEFAULT_SHARED = 48 * 2**10  # bytes of shared memory that a launch gets without opting in


def gradients_plan(variant, case):
    """Return the plan of both gradients of a case on the current device."""
    return planner.plan(variant, Request(VJP, case.problem(), case.dtype, case.dtype).dense(), here())


def workspace_of_gradients(variant, case):
    """Return the bytes of the workspace of both gradients; skip the test where they take none."""
    size = gradients_plan(variant, case).workspace
    return size or pytest.skip(f"{variant} takes no workspace for this on {here().name}")


# Streams ----------------------------------------------------------------------------------------------------------------------


@each
def test_nothing_of_a_call_is_on_the_default_stream(side, variant, case):
    with side:
        arrays = [sent(array) for array in case.arrays()]
        answer(case, arrays, variant)  # compiles
        side.synchronize()
        late = [cupy.full_like(array, np.nan) for array in arrays]
        side.synchronize()
        delay(side)
        fill(late, arrays)
        results = answer(case, late, variant)
        cupy.cuda.Stream.null.synchronize()  # a launch that went there has read NaN
        assert_right(results, wanted(case))


def test_many_threads_on_a_stream_each_give_the_oracles_values():
    count, repeats = 8, 4
    variants = [
        (variant, case) for variant, case in (name_and_case(name) for name in EACH) if not why_not(variant, case, device=here())
    ]
    together = threading.Barrier(count, timeout=STUCK)
    forget_plans()

    def work(thread):
        results = []
        with cupy.cuda.Stream(non_blocking=True) as stream:
            together.wait()
            for repeat in range(repeats):
                variant, case = variants[(thread + repeat) % len(variants)]
                case = replace(case, seed=100 * thread + repeat)
                results.append((case, answer(case, [sent(array) for array in case.arrays()], variant)))
            stream.synchronize()
        return [(case, [back(each) for each in got]) for case, got in results]

    with ThreadPoolExecutor(count) as pool:
        for results in pool.map(work, range(count)):
            for case, got in results:
                assert_right(got, wanted(case))


def name_and_case(name):
    return name.split(",")[0], EACH[name]


class Producer:
    """Another library's array whose memory is written on a stream of the library's own: a consumer's stream is made to wait."""

    def __init__(self, array, stream):
        self.array, self.stream, self.consumers = array, stream, []

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, *, stream=None, **_):
        self.consumers.append(stream)
        if stream not in (None, -1):
            with self.array.device:
                written = self.stream.record()
                cupy.cuda.runtime.streamWaitEvent(stream, written.ptr)
        return self.array.__dlpack__(stream=-1)  # has been ordered


@each
def test_arrays_of_another_library_are_read_after_what_their_own_stream_was_given(side, variant, case):
    maker = cupy.cuda.Stream(non_blocking=True)
    arrays = [sent(array) for array in case.arrays()]
    answer(case, arrays, variant)
    late = [cupy.full_like(array, np.nan) for array in arrays]
    cupy.cuda.Device().synchronize()
    with maker:
        delay(maker)
        fill(late, arrays)
    producers = [Producer(array, maker) for array in late]
    with side:
        results = answer(case, producers, variant)
        assert {stream for producer in producers for stream in producer.consumers} == {side.ptr}
        side.synchronize()  # the other stream is not waited for
        assert_right(results, wanted(case))
    maker.synchronize()


@each
def test_an_output_of_another_library_is_written_after_what_its_own_stream_was_given(side, variant, case):
    maker = cupy.cuda.Stream(non_blocking=True)
    x1, x2, _ = (sent(array) for array in case.arrays())
    out = cupy.zeros(case.out_shape(), DTYPES[case.dtype])
    correlate(x1, x2, **case.parameters, variant=variant, out=out)
    cupy.cuda.Device().synchronize()
    with maker:
        delay(maker)
        out.fill(np.nan)
    with side:
        correlate(x1, x2, **case.parameters, variant=variant, out=Producer(out, maker))
        side.synchronize()
    maker.synchronize()
    oracle.assert_close(back(out), wanted(case)[0], accumulator="float32")


def test_a_call_on_the_default_stream_beside_a_capture_says_what_to_do():
    arrays = [sent(array) for array in WINDOWED.arrays()]
    answer(WINDOWED, arrays, "box")
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream()  # a blocking one, which the default stream waits for
    with stream:
        stream.begin_capture()
    try:
        with pytest.raises(RuntimeError, match=r"capture a non-blocking stream"):
            answer(WINDOWED, arrays, "box")
    finally:
        with stream:
            stream.end_capture()  # was not ended by the call that was refused
    assert_right(answer(WINDOWED, arrays, "box"), wanted(WINDOWED))


FIRST_CALL = """
import cupy, numpy
import cupycorr

x = numpy.random.default_rng(0).standard_normal((1, 8, 9, 10), numpy.float32)
want = cupycorr.spatial_correlation_sample(x, x, patch_size=3)
with cupy.cuda.Stream(non_blocking=True) as stream:
    array, out = cupy.asarray(x), cupy.empty(want.shape, want.dtype)
    stream.begin_capture(cupy.cuda.runtime.streamCaptureModeGlobal)
    try:
        cupycorr.spatial_correlation_sample(array, array, patch_size=3, variant="direct", out=out)
    except RuntimeError as error:
        print(error)
    try:
        stream.end_capture()
    except RuntimeError as error:
        print(error)
    cupycorr.spatial_correlation_sample(array, array, patch_size=3, variant="direct", out=out)
    print(abs(out.get() - want).max() < 1e-4)
"""


def test_a_first_call_inside_a_capture_says_what_to_do_and_works_after_the_capture():
    """CUDA permits no capture in its strictest mode to load a kernel, and has invalidated the capture when the call ends."""
    *refusal, invalidated, right = fresh_process(FIRST_CALL).splitlines()
    assert "cannot load kernel" in refusal[0]
    assert "make one such call before the capture begins" in refusal[0]
    assert "Invalidated" in invalidated
    assert right == "True"


# Memory -----------------------------------------------------------------------------------------------------------------------


def everything_free(pool):
    """Return arrays of all bytes that a pool has free, filled with 255 on the current stream."""
    taken, total = [], pool.total_bytes()
    while pool.free_bytes() and pool.total_bytes() == total:
        taken.append(cupy.empty(512, np.uint8))  # the unit of CuPy's pool
        taken[-1].data.memset_async(255, 512)
    return taken


def is_untouched(pieces):
    return all((back(piece) == 255).all() for piece in pieces)


REPLAYED = {"windows": ("box", WINDOWED), "partial sums": ("tiled", LARGE_TILES)}


@pytest.mark.parametrize(("variant", "case"), REPLAYED.values(), ids=REPLAYED)
def test_replays_write_to_no_memory_that_was_given_to_others(side, variant, case):
    pool = cupy.cuda.MemoryPool()
    workspace_of_gradients(variant, case)
    with side, cupy.cuda.using_allocator(pool.malloc):
        arrays = [sent(array) for array in case.arrays()]
        answer(case, arrays, variant)
        side.synchronize()
        side.begin_capture()
        results = answer(case, arrays, variant)
        graph = side.end_capture()
        others = everything_free(pool)
        other = replace(case, seed=1)
        fill(arrays, [sent(array) for array in other.arrays()])
        graph.launch(side)
        assert_right(results, wanted(other))
        assert is_untouched(others)


class Neighbour(cupy.cuda.MemoryHook):
    """Another user of the pool, who takes memory at once when it is freed, and fills it on the current stream."""

    name = "neighbour of a test"

    def __init__(self, least):
        self.least, self.taken, self._busy = least, [], False

    def free_postprocess(self, *, mem_size, **_):
        if mem_size < self.least or self._busy:
            return
        self._busy = True
        self.taken.append(cupy.empty(mem_size, np.uint8))
        self.taken[-1].data.memset_async(255, mem_size)
        self._busy = False


@pytest.mark.parametrize(("variant", "case"), REPLAYED.values(), ids=REPLAYED)
def test_a_workspace_is_not_freed_before_its_launches_are_queued(side, variant, case):
    workspace = workspace_of_gradients(variant, case)
    with side:
        arrays = [sent(array) for array in case.arrays()]
        x1, x2, g = arrays
        with Neighbour(workspace) as neighbour:
            gradients = correlate_vjp(g, x1, x2, **case.parameters, variant=variant)
        assert neighbour.taken
        for gradient, triple in zip(gradients, wanted(case)[1:], strict=True):
            oracle.assert_close(back(gradient), triple)
        assert is_untouched(neighbour.taken)


def test_gradients_with_a_workspace_give_it_back():
    workspace_of_gradients("tiled", LARGE_TILES)
    x1, x2, g = (sent(array) for array in LARGE_TILES.arrays())
    with Account() as account:
        gradients = correlate_vjp(g, x1, x2, **LARGE_TILES.parameters, variant="tiled")
        held = account.held
    assert account.most > held
    assert held <= sum(gradient.nbytes + 512 for gradient in gradients)


# Launches ---------------------------------------------------------------------------------------------------------------------


def test_a_kernel_may_take_more_shared_memory_than_a_launch_gets_without_asking():
    if max(call.shared for call in gradients_plan("tiled", BOTH_PHASES).calls) <= DEFAULT_SHARED:
        pytest.skip(f"no kernel of this takes so much on {here().name}")
    arrays = [sent(array) for array in BOTH_PHASES.arrays()]
    assert_right(answer(BOTH_PHASES, arrays, "tiled"), wanted(BOTH_PHASES))


@each
def test_64_bit_indices_give_the_bits_of_32_bit_indices(monkeypatch, variant, case):
    arrays = [sent(array) for array in case.arrays()]
    want = answer(case, arrays, variant)
    with monkeypatch.context() as patched:
        patched.setattr(call, "SAFE_INDEX", 0)  # nothing is small enough for 32 bits
        forget_plans()
        got = answer(case, arrays, variant)
    forget_plans()
    assert_right(got, wanted(case))
    assert_same_bits(got, want)


@each
def test_a_float64_scale_is_not_rounded_to_float32(variant, case):
    if variant == "mma":
        pytest.skip("mma takes no float64")
    case = replace(case, dtype="float64", parameters={**case.parameters, "scale": 1 / 3})
    assert_right(answer(case, [sent(array) for array in case.arrays()], variant), wanted(case))


LAYS = ("rows", "channels last", "channels reversed", "columns reversed", "every other column", "columns before rows")


@pytest.mark.parametrize("second", LAYS)
@pytest.mark.parametrize("first", ["rows", "channels last", "every other column"])
@each
def test_each_input_is_read_by_its_own_strides(variant, case, first, second):
    x1, x2, g = (sent(array) for array in case.arrays())
    x1, x2 = LAYOUTS[first](x1), LAYOUTS[second](x2)
    g = cupy.ascontiguousarray(g[..., ::-1])[..., ::-1]
    assert_right(answer(case, (x1, x2, g), variant), wanted(case))


@pytest.mark.parametrize("variant", ["direct", "box", "auto"])
@pytest.mark.parametrize("case", [cases.NAMED["template in a larger image"]], ids=["template"])
def test_inputs_of_different_sizes_are_not_exchanged(variant, case):
    assert_right(answer(case, [sent(array) for array in case.arrays()], variant), wanted(case))


# Devices ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def devices():
    """The numbers of the devices, of which there are several."""
    count = cupy.cuda.runtime.getDeviceCount()
    if count < 2:
        pytest.skip("fewer than two devices")
    return range(count)


def on(device, case):
    """Return the arrays of a case on a device."""
    with cupy.cuda.Device(device):
        return [sent(array) for array in case.arrays()]


@each
def test_every_device_answers_for_its_arrays_on_its_own_stream_whichever_is_current(devices, variant, case):
    for device in devices:
        if why_not(variant, case, device=facts(device)):
            continue
        arrays = on(device, case)
        with cupy.cuda.Device(device):
            stream = cupy.cuda.Stream(non_blocking=True)
            late = [cupy.full_like(array, np.nan) for array in arrays]
            answer(case, arrays, variant)
            cupy.cuda.Device(device).synchronize()
            stream.use()
            delay(stream)
            fill(late, arrays)
        try:
            with cupy.cuda.Device((device + 1) % len(devices)) as other:
                results = answer(case, late, variant)
                assert cupy.cuda.runtime.getDevice() == other.id
            assert {result.device.id for result in results} == {device}
            with cupy.cuda.Device(device):
                assert_right(results, wanted(case))
        finally:
            with cupy.cuda.Device(device):
                cupy.cuda.Stream.null.use()


@each
def test_a_plan_runs_on_its_device_and_the_stream_it_is_given_whichever_are_current(devices, variant, case):
    for device in devices:
        if why_not(variant, case, device=facts(device)):
            continue
        x1, x2, _ = on(device, case)
        with cupy.cuda.Device(device):
            request = Request(FORWARD, case.problem(), case.dtype, case.dtype).dense()
            made = planner.plan(variant, request, facts(device))
            out = cupy.full(case.out_shape(), np.nan, x1.dtype)
            workspace = cupy.empty(max(made.workspace, 1), np.uint8)
            stream = cupy.cuda.Stream(non_blocking=True)
            cupy.cuda.Device(device).synchronize()
        addresses = [array.data.ptr for array in (x1, x2, out)]
        with cupy.cuda.Device((device + 1) % len(devices)) as other:  # as a tensor's call leaves it
            plan.run(made, addresses, lambda size, memory=workspace: (memory.data.ptr, memory), stream)
            assert cupy.cuda.runtime.getDevice() == other.id
        stream.synchronize()
        with cupy.cuda.Device(device):
            oracle.assert_close(back(out), wanted(case)[0])


def test_arrays_on_two_devices_are_refused(devices):
    x, y = on(0, PLAIN)[0], on(1, PLAIN)[1]
    with pytest.raises(ValueError, match="must be on the same device, got <CUDA Device 0> and <CUDA Device 1>"):
        correlate(x, y)


def test_threads_on_different_devices_call_at_once(devices):
    count = 3 * len(devices)
    together = threading.Barrier(count, timeout=STUCK)
    forget_plans()

    def work(thread):
        case = replace(WINDOWED, seed=thread)
        with cupy.cuda.Device(thread % len(devices)), cupy.cuda.Stream(non_blocking=True) as stream:
            arrays = [sent(array) for array in case.arrays()]
            together.wait()
            results = answer(case, arrays, "box")
            stream.synchronize()
            return case, [back(result) for result in results]

    with ThreadPoolExecutor(count) as pool:
        for case, results in pool.map(work, range(count)):
            assert_right(results, wanted(case))


# Choice -----------------------------------------------------------------------------------------------------------------------

TUNED = """
import cupy, numpy
import cupycorr
from cupycorr import _tuning

measured, seconds = [], _tuning.seconds
_tuning.seconds = lambda request, *rest: measured.append(request.key) or seconds(request, *rest)
x = cupy.asarray(numpy.random.default_rng(0).standard_normal((1, 8, 9, 10), numpy.float32))
out = cupycorr.spatial_correlation_sample(x, x, patch_size=3)
told = cupycorr.explain(x, x, patch_size=3)
want = cupycorr.spatial_correlation_sample(x.get(), x.get(), patch_size=3)
print(len(measured), told.variant, abs(out.get() - want).max() < 1e-4)
"""


def test_a_variant_is_measured_once_and_other_processes_read_the_answer(tmp_path):
    def run(mode):
        count, variant, right = fresh_process(TUNED, CUPYCORR_AUTOTUNE=mode, CUPYCORR_CACHE_DIR=str(tmp_path)).split()
        assert right == "True"
        return int(count), variant

    count, fastest = run("1")
    assert count == 1
    assert run("1") == run(None) == (0, fastest)
    (file,) = (tmp_path / "tuning").iterdir()
    content = json.loads(file.read_text())
    assert content["fastest"] == fastest == min(content["seconds"], key=content["seconds"].get)
    (other, *_) = (name for name in content["seconds"] if name != fastest)
    file.write_text(json.dumps({**content, "fastest": other}))
    assert run(None) == (0, other)
    assert run("0")[0] == 0


@each
def test_explain_tells_the_variant_its_workspace_and_the_least_work(variant, case):
    x1, x2, _ = (sent(array) for array in case.arrays())
    for gradients in (False, True):
        told = cupycorr.explain(x1, x2, **case.parameters, variant=variant, gradients=gradients)
        assert told.variant == variant
        assert told.flops >= told.flops_inside > 0
        assert 0 < told.bound < 1
        assert told.bound_on == "this machine"
        assert set(cases.CPU_VARIANTS) <= told.reasons.keys()
    forward = cupycorr.explain(x1, x2, **case.parameters, variant=variant).workspace
    with Account() as account:
        out = correlate(x1, x2, **case.parameters, variant=variant)
    assert account.most - account.held <= forward + 512
    assert out.shape == case.out_shape()


# Repeated calls ---------------------------------------------------------------------------------------------------------------

SMALL = cases.same((2, 5, 9, 11), patch_size=3)
GRID = (2, 2, 9, 11)  # of coordinates


@pytest.fixture
def forgotten():
    """Plans and repeated calls are forgotten before and after the test."""
    forget_plans()
    yield
    forget_plans()


@pytest.fixture
def ran(monkeypatch, forgotten):
    """The plans that ran, in order, each with True if the call was found."""
    seen, found = [], []
    run, on_cupy = plan.run, _repeats.on_cupy

    def noting(made, *rest):
        seen.append((made, found[-1]))
        run(made, *rest)

    def looking_up(*arguments, **options):
        result = on_cupy(*arguments, **options)
        found.append(result[1] is not None)
        return result

    monkeypatch.setattr(plan, "run", noting)
    monkeypatch.setattr(_repeats, "on_cupy", looking_up)
    return seen


def repeated_calls():
    """Return one call of every function that runs on a GPU and every way to pass results, by name."""
    x1, x2, g = (sent(array) for array in SMALL.arrays())
    coords = sent(np.random.default_rng(0).uniform(0, 9, GRID).astype(np.float32))
    out = cupy.empty_like(g)
    volume = sent(np.random.default_rng(1).standard_normal((2, 9, 11, 9, 11), np.float32))
    every = (True, True, True)
    index = sent(np.array([1, 0]))
    return {
        "forward": lambda: correlate(x1, x2, patch_size=3),
        "forward, pairs": lambda: correlate(x1, x2, (1, 1), patch_size=(3, 3), dtype=np.float64),
        "forward, out": lambda: correlate(x1, x2, patch_size=3, out=out),
        "vjp": lambda: correlate_vjp(g, x1, x2, patch_size=3),
        "one gradient": lambda: correlate_vjp(g, x1, x2, patch_size=3, needs=(False, True)),
        "windows": lambda: correlate_vjp(g, x1, x2, 3, 3, padding=1, variant="box"),
        "lookup": lambda: cupycorr.correlation_lookup(x1, x2, coords, 3),
        "lookup of a pyramid": lambda: cupycorr.correlation_lookup(x1, [x2, x2[:, :, ::2, ::2]], coords, 3, index1=index),
        "lookup_vjp": lambda: cupycorr.correlation_lookup_vjp(g, x1, x2, coords, 3, needs=every),
        "lookup_vjp of a pyramid": lambda: cupycorr.correlation_lookup_vjp(g[:, None], x1, (x2,), coords, 3, needs=every),
        "volume_lookup": lambda: cupycorr.volume_lookup(volume, coords, 3),
        "volume_lookup_vjp": lambda: cupycorr.volume_lookup_vjp(g, volume, coords, 3, needs=(True, True)),
    }


REPEATED = (
    "forward",
    "forward, pairs",
    "forward, out",
    "vjp",
    "one gradient",
    "windows",
    "lookup",
    "lookup of a pyramid",
    "lookup_vjp",
    "lookup_vjp of a pyramid",
    "volume_lookup",
    "volume_lookup_vjp",
)


def leaves(results):
    """Return the arrays in nested tuples as bytes, with None where there is none."""
    if isinstance(results, (tuple, list)):
        return [leaf for each in results for leaf in leaves(each)]
    return [None if results is None else (results.shape, results.dtype, back(results).tobytes())]


@pytest.mark.parametrize("name", REPEATED)
def test_a_repeated_call_gives_the_same_bits_and_checks_and_plans_nothing(monkeypatch, ran, name):
    call = repeated_calls()[name]
    first = call()
    structure, want = shape_of(first), leaves(first)
    for module, function in ((_dispatch, "choose"), (_dispatch, "place"), (_arrays, "known_array"), (_checks, "result_dtype")):
        monkeypatch.setattr(module, function, lambda *_, **__: pytest.fail("a repeated call was checked or planned"))
    for _ in range(2):
        got = call()
        assert (shape_of(got), leaves(got)) == (structure, want)
    ((made, _), *others) = ran
    assert others == [(made, True)] * 2


def shape_of(results):
    """Return the structure of results: the types of nested tuples."""
    return (type(results), *map(shape_of, results)) if isinstance(results, (tuple, list)) else type(results)


# The functions that a repeated call enters: its own, `on_cupy`, `types_of`, `look_up`, `state`, `Repeat.run`, `import_cupy` and
# `run`; those that see whether `out` overlaps an input, order the maps of a lookup, or allocate a workspace; one for each launch.
ENTERED, FOR_OUT, FOR_LOOKUPS, FOR_WORKSPACE = 8, 5, 2, 5
PACKAGE = os.path.dirname(cupycorr.__file__) + os.sep


def entered(call):
    """Return the names of the package's functions that a call enters, without comprehensions."""
    found = []

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<"):
            found.append(code.co_name)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("name", REPEATED)
def test_a_repeated_call_enters_few_functions(ran, name):
    call = repeated_calls()[name]
    call()
    call()
    (made, _), *_ = ran
    names = entered(call)
    allowed = ENTERED + len(made.calls) + bool(made.workspace) * FOR_WORKSPACE
    allowed += ("out" in name) * FOR_OUT + ("lookup" in name) * FOR_LOOKUPS
    assert len(names) <= allowed, names


CHANGES = {
    "channels last": dict(lay="channels last"),
    "every other column": dict(lay="every other column"),
    "float64": dict(case=replace(SMALL, dtype="float64")),
    "another shape": dict(case=cases.same((2, 5, 9, 12), patch_size=3)),
    "a window": dict(case=cases.same((2, 5, 9, 11), kernel_size=3, patch_size=3, padding=1)),
    "a larger patch": dict(case=cases.same((2, 5, 9, 11), patch_size=5)),
    "an offset": dict(case=cases.same((2, 5, 9, 11), patch_size=3, patch_offset=(0, 1))),
    "a pair": dict(case=cases.same((2, 5, 9, 11), patch_size=(3, 1))),
    "an integer of NumPy": dict(case=cases.same((2, 5, 9, 11), patch_size=np.int64(5))),
    "a scale": dict(case=cases.same((2, 5, 9, 11), patch_size=3, scale=2)),
    "groups": dict(case=cases.same((2, 5, 9, 11), patch_size=3, groups=5)),
    "descending displacements": dict(case=cases.same((2, 5, 9, 11), patch_size=3, dilation_patch=-1)),
    "precision": dict(precision="high"),
    "a variant": dict(variant="direct"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_call_that_differs_in_one_thing_is_another_call(forgotten, name):
    change = dict(CHANGES[name])
    case, lay = change.pop("case", SMALL), LAYOUTS[change.pop("lay", "rows")]
    for _ in range(2):
        answer(SMALL, [sent(array) for array in SMALL.arrays()])
    x1, x2, g = (sent(array) for array in case.arrays())
    for _ in range(2):
        got = answer(case, [lay(x1), lay(x2), g], **change)
        assert_right(got, wanted(case), "tf32" if "precision" in change else None)
        assert got[0].dtype == got[1].dtype == x1.dtype


def test_a_list_in_the_place_of_a_pair_is_read_at_every_call(forgotten):
    x1, x2, _ = (sent(array) for array in SMALL.arrays())
    patch_size = [3, 1]
    for _ in range(2):
        assert correlate(x1, x2, patch_size=patch_size).shape == (2, *patch_size, 9, 11)
        patch_size[1] += 2


def test_each_gradient_and_dtype_that_is_asked_for_is_another_call(forgotten):
    x1, x2, g = (sent(array) for array in SMALL.arrays())
    for needs in ((True, True), (True, False), (False, True), (False, False)) * 2:
        assert tuple(found is not None for found in correlate_vjp(g, x1, x2, patch_size=3, needs=needs)) == needs
    for dtype in (None, np.float64, "float16", np.dtype("float64"), np.float32) * 2:
        assert correlate(x1, x2, patch_size=3, dtype=dtype).dtype == (dtype or np.float32)


LOOK_ALIKES = {
    "True": dict(patch_size=True),
    "1.0": dict(patch_size=1.0),
    "a pair with True": dict(patch_size=(1, True)),
    "a list with True": dict(patch_size=[1, True]),
    "NumPy's True": dict(patch_size=np.True_),
    "a scale of True": dict(patch_size=1, scale=True),
    "an offset of False": dict(patch_size=1, patch_offset=False),
    "True as groups": dict(patch_size=1, groups=True),
}


@pytest.mark.parametrize("wrong", LOOK_ALIKES.values(), ids=LOOK_ALIKES)
def test_arguments_that_equal_those_of_an_earlier_call_are_refused_all_the_same(forgotten, wrong):
    x1, x2, _ = (sent(array) for array in SMALL.arrays())
    for patch_size in (1, (1, 1), [1, 1]):
        for offset in (None, 0):
            correlate(x1, x2, patch_size=patch_size, patch_offset=offset)
    with pytest.raises(TypeError, match="must be"):
        correlate(x1, x2, **wrong)


@pytest.mark.parametrize("needs", [(1, 1), (True, 1), 1, True, (True, True, True), (np.True_, True)])
def test_needs_that_equal_those_of_an_earlier_call_are_refused_all_the_same(forgotten, needs):
    x1, x2, g = (sent(array) for array in SMALL.arrays())
    correlate_vjp(g, x1, x2, patch_size=3)
    with pytest.raises(TypeError, match="needs must be a pair of bools"):
        correlate_vjp(g, x1, x2, patch_size=3, needs=needs)


@pytest.mark.parametrize("name", ["input1", "input2", "out"])
def test_an_array_that_is_not_aligned_is_refused_in_a_repeated_call(forgotten, name):
    arrays = {"input1": cupy.ones((1, 1, 2, 2), np.float32), "input2": cupy.ones((1, 1, 2, 2), np.float32)}
    arrays["out"] = cupy.ones((1, 1, 1, 2, 2), np.float32)
    correlate(**arrays)
    memory = cupy.zeros(18, np.uint8)
    arrays[name] = cupy.ndarray(arrays[name].shape, np.float32, memory.data + 2)
    with pytest.raises(ValueError, match=f"{name} must begin at a multiple of its 4 bytes"):
        correlate(**arrays)


def test_a_repeated_call_whose_output_overlaps_an_input_is_right(ran):
    x1, x2, _ = (sent(array) for array in cases.same((3, 1, 8, 9)).arrays())
    for _ in range(2):
        correlate(x1, x2, out=cupy.empty((3, 1, 1, 8, 9), np.float32))
    assert [found for _, found in ran] == [False, True]
    want = x1 * x2
    memory = cupy.empty(x1.size + 2, np.float32)
    for begin in (0, 1, 2):
        second = memory[1:-1].reshape(x2.shape)
        second[...] = x2
        out = memory[begin : begin + x1.size].reshape(3, 1, 1, 8, 9)
        assert correlate(x1, second, out=out) is out
        assert bool((out[:, 0] == want).all())
    assert [found for _, found in ran] == [False, True, False, False, False]


def test_arrays_on_two_devices_are_refused_in_a_repeated_call(devices, forgotten):
    x, y = (cupy.ones((1, 1, 2, 2), np.float32) for _ in range(2))
    correlate(x, y)
    with cupy.cuda.Device(1):
        other = cupy.ones((1, 1, 2, 2), np.float32)
    for arrays in ((x, other), (other, x)):
        with pytest.raises(ValueError, match="must be on the same device"):
            correlate(*arrays)


@each
def test_a_repeated_call_runs_on_the_device_of_its_arrays_whichever_is_current(devices, forgotten, variant, case):
    arrays = on(0, case)
    answer(case, arrays, variant)
    with cupy.cuda.Device(1):
        results = answer(case, arrays, variant)
        assert cupy.cuda.runtime.getDevice() == 1
    assert {result.device.id for result in results} == {0}
    assert_right(results, wanted(case))


def test_arrays_of_the_same_kind_on_another_device_are_another_call(devices, ran):
    for device in (0, 1, 1, 0):
        x1, x2, g = on(device, SMALL)
        with cupy.cuda.Device(device):
            assert_right(answer(SMALL, (x1, x2, g)), wanted(SMALL))
    assert [made.device for made, _ in ran] == [0, 0, 1, 1, 1, 1, 0, 0]


def test_a_variant_that_is_added_later_runs_at_the_next_call(monkeypatch, ran):
    x1, x2, _ = (sent(array) for array in SMALL.arrays())
    for _ in range(2):
        correlate(x1, x2, patch_size=3)
    best = ran[-1][0]
    (direct,) = OPERATOR.named("direct")
    faster = replace(direct, name="added", plan=lambda *given: replace(direct.plan(*given), algorithm="added", seconds=0.0))
    monkeypatch.setattr(OPERATOR, "variants", (*OPERATOR.variants, faster))
    correlate(x1, x2, patch_size=3)
    monkeypatch.undo()
    correlate(x1, x2, patch_size=3)
    assert [made.algorithm for made, _ in ran[:3]] == [best.algorithm, best.algorithm, "added"]


@pytest.fixture
def tuned(monkeypatch, tmp_path):
    """Measured answers are kept in a folder of their own, and those that other tests have found are not known."""
    monkeypatch.setenv("CUPYCORR_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CUPYCORR_AUTOTUNE", raising=False)
    monkeypatch.setattr(_tuning, "_found", {})
    _tuning._read_once.cache_clear()
    yield
    _tuning._read_once.cache_clear()


def test_a_measured_answer_counts_from_the_next_call_on_and_until_tuning_is_off(monkeypatch, tuned, ran):
    x1, x2, _ = (sent(array) for array in SMALL.arrays())

    def runs():
        correlate(x1, x2, patch_size=3)
        return ran[-1][0].algorithm

    by_cost = runs()
    assert runs() == by_cost
    other = next(name for name in able(SMALL) if name != by_cost)
    request = Request(FORWARD, SMALL.problem(), "float32", "float32").dense()
    _tuning.record(_dispatch.Workload(OPERATOR, request), here(), other)
    assert [runs(), runs()] == [other, other]
    monkeypatch.setenv("CUPYCORR_AUTOTUNE", "0")
    assert [runs(), runs()] == [by_cost, by_cost]
    monkeypatch.setenv("CUPYCORR_AUTOTUNE", "2")
    with pytest.raises(ValueError, match="CUPYCORR_AUTOTUNE must be 0 or 1"):
        runs()
    monkeypatch.delenv("CUPYCORR_AUTOTUNE")
    assert [runs(), runs()] == [other, other]


def test_a_call_that_could_not_be_measured_is_measured_later(monkeypatch, tuned, ran):
    x1, x2, _ = (sent(array) for array in SMALL.arrays())
    measured = []
    monkeypatch.setenv("CUPYCORR_AUTOTUNE", "1")
    monkeypatch.setattr(_tuning, "measure", lambda *_: measured.append(None))
    for _ in range(3):
        correlate(x1, x2, patch_size=3)
    assert len(measured) == 3
    assert not any(found for _, found in ran)


def test_the_calls_that_are_kept_are_bounded(monkeypatch, forgotten):
    monkeypatch.setattr(_repeats, "LIMIT", 3)
    for size in (*range(2, 9), 8, 2):
        case = cases.same((1, 2, size, size), patch_size=3)
        x1, x2, _ = (sent(array) for array in case.arrays())
        oracle.assert_close(back(correlate(x1, x2, patch_size=3)), wanted(case)[0])
        assert 0 < len(_repeats._calls) <= 3


def test_a_call_that_is_kept_keeps_no_array(forgotten):
    def call():
        for name, repeated in repeated_calls().items():
            for _ in range(2):
                assert repeated() is not None, name

    with Account() as account:
        call()
        gc.collect()
        assert account.held == 0
    assert len(_repeats._calls) >= len(REPEATED)


def test_threads_that_repeat_a_call_while_calls_are_forgotten_each_get_their_own_result(monkeypatch, forgotten):
    count, repeats = 4, 6
    monkeypatch.setattr(_repeats, "LIMIT", 2)
    together = threading.Barrier(count, timeout=STUCK)

    def work(thread):
        case = replace(cases.same((1, 3, 6 + thread % 3, 7), patch_size=3), seed=thread)
        with cupy.cuda.Stream(non_blocking=True) as stream:
            arrays = [sent(array) for array in case.arrays()]
            together.wait()
            results = [answer(case, arrays) for _ in range(repeats)]
            stream.synchronize()
            return case, [[back(each) for each in got] for got in results]

    with ThreadPoolExecutor(count) as pool:
        for case, results in pool.map(work, range(count)):
            for got in results:
                assert_right(got, wanted(case))


# Displacement fields ----------------------------------------------------------------------------------------------------------

FRAMES = (26, 31)
MATCHES = {
    "whole pixels": dict(subpixel=False),
    "gaussian": dict(subpixel="gaussian"),
    "parabola": dict(subpixel="parabola"),
    "NaN": dict(subpixel="gaussian", missing=True),
    "masks": dict(subpixel=False, masked=True),
    "masks and NaN": dict(subpixel="gaussian", masked=True, missing=True),
}


def _skip_without_cudas_libraries():
    """Skip where CuPy has no sort or no product of matrices, which missing pixels need: cuBLAS is a package of its own."""
    try:
        cupy.sort(cupy.ones((2, 2))) @ cupy.ones((2, 2))
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"CuPy cannot sort or multiply matrices here: {error}")


@pytest.mark.parametrize("wish", MATCHES.values(), ids=MATCHES)
def test_match_by_the_operator_gives_the_oracles_field(wish):
    random = np.random.default_rng(3)
    missing, masked = wish.get("missing"), wish.get("masked")
    frame = random.integers(0, 256, FRAMES).astype(np.uint8)
    moved = np.roll(frame, (1, -2), axis=(0, 1)) // 2 + random.integers(0, 9, FRAMES).astype(np.uint8)
    options = dict(window=(5, 7), search=((-2, 2), (-3, 3)), step=3, subpixel=wish["subpixel"])
    if missing or masked:
        _skip_without_cudas_libraries()
    if missing:
        frame, moved = frame.astype(np.float64), moved.astype(np.float64)
        frame[8, 9] = moved[12, 20] = np.nan
    masks = {name: random.random(FRAMES) > 0.1 for name in ("mask1", "mask2")} if masked else {}
    on_gpu = {name: sent(mask) for name, mask in masks.items()}
    found = cupycorr.match(sent(frame), sent(moved), variant="operator", **options, **on_gpu)
    values = {name: back(value) for name, value in vars_of(found).items()}
    match_oracle.assert_answer(replace(found, **values), match_oracle.answer(frame, moved, **options, **masks), atol=1e-6)


def vars_of(match):
    """Return the arrays of a match by name, each of which is CuPy's."""
    arrays = {name: getattr(match, name) for name in match_oracle.Answer._fields if getattr(match, name) is not None}
    for name, value in arrays.items():
        assert type(value) is cupy.ndarray, name
    return arrays
