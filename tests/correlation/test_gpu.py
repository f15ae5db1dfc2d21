"""The cases of the suite on a device, through CuPy itself, and what only a device has: streams, graphs, its memory, its size.

Without a device these tests are skipped. They also run on the software CUDA, which needs none.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import cases
import ml_dtypes
import numpy as np
import oracle
import pytest
from cases import DTYPES, GPU_VARIANTS, NAMED
from fake_cupy import forget_plans
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import FOR_KERNELS, rows, some
from on_device import (
    PLAIN,
    WINDOWED,
    Account,
    able,
    answer,
    assert_right,
    assert_same_bits,
    back,
    cupy,
    each,
    fill,
    fresh_process,
    held,
    pooled,
    sent,
    wanted,
    why_not,
)
from waiting import STUCK

import cupycorr
from cupycorr import spatial_correlation_sample as correlate
from cupycorr import spatial_correlation_sample_vjp as correlate_vjp
from cupycorr._correlation.gpu import planner
from cupycorr._gpu import compiler, plan
from cupycorr._gpu.device import facts
from cupycorr._gpu.limits import WORKSPACE_BYTES

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("able")]


def has_window(case):
    return oracle.pair(case.parameters.get("kernel_size", 1)) != (1, 1)


def check(case, variant="auto", lay=rows):
    """Check that output and gradients are the oracle's, and CuPy arrays of the inputs' dtype in C order."""
    *inputs, cotangent = case.arrays()
    results = answer(case, (*(lay(sent(x)) for x in inputs), sent(cotangent)), variant)
    for result in results:
        assert type(result) is cupy.ndarray
        assert result.dtype == DTYPES[case.dtype]
        assert result.flags.c_contiguous
    assert_right(results, wanted(case))


# The definition ----------------------------------------------------------------------------------------------------------------

RUNS = {
    f"{name}-{dtype}-{variant}": (replace(case, dtype=dtype), variant)
    for name, case in NAMED.items()
    for dtype in ("float32", "float16")
    for variant in ("auto", *GPU_VARIANTS)
    if why_not(variant, replace(case, dtype=dtype)) is None
}
ROUNDED = {name: case for name, case in NAMED.items() if why_not("mma", case, precision="high") is None}

LAYOUTS = FOR_KERNELS | some("one element beyond")


@pytest.mark.parametrize(("case", "variant"), RUNS.values(), ids=RUNS.keys())
def test_named_cases_equal_the_oracle(case, variant):
    check(case, variant)


@pytest.mark.parametrize(("variant", "precision"), [("mma", "high")])
@pytest.mark.parametrize("case", ROUNDED.values(), ids=ROUNDED.keys())
def test_float32_on_tensor_cores_is_as_far_off_as_its_factors_are_rounded(case, variant, precision):
    results = answer(case, [sent(array) for array in case.arrays()], variant, precision)
    assert_right(results, wanted(case), "tf32")


@pytest.mark.parametrize("kernel_size", [1, (2, 3)])
@pytest.mark.parametrize("lay", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_memory_order_equals_the_oracle(dtype, lay, kernel_size):
    parameters = dict(kernel_size=kernel_size, patch_size=(3, 4), stride=(1, 2), padding=1, dilation_patch=2, scale=0.25)
    for channels in (35, 64):  # runs of channels that end in the middle of 16 bytes, and at the end of them
        case = cases.same((2, channels, 6, 9), dtype, **parameters)
        for variant in able(case):
            check(case, variant, lay)


@settings(max_examples=100)
@given(case=cases.problems(), lay=st.sampled_from(list(LAYOUTS.values())))
def test_drawn_problems_equal_the_oracle(case, lay):
    for variant in able(case):
        check(case, variant, lay)


@settings(max_examples=30)
@given(case=cases.wide_problems())
def test_wide_problems_equal_the_oracle(case):
    for variant in able(case):
        check(case, variant)


OTHER_RESULTS = [
    (variant, case, result)
    for dtype in DTYPES
    for case in (cases.same((2, 20, 5, 7), dtype, kernel_size=2, patch_size=3), cases.same((2, 20, 5, 7), dtype, patch_size=3))
    for result in DTYPES
    for variant in GPU_VARIANTS
    if why_not(variant, case, result) is None
]


@pytest.mark.parametrize(("variant", "case", "result"), OTHER_RESULTS)
def test_a_result_of_another_dtype_is_rounded_once_from_the_sum(variant, case, result):
    dtype = case.dtype
    accumulator = "float64" if dtype == "float64" else "float32"
    x1, x2, g = case.arrays()
    g = g.astype(DTYPES[result])
    arrays, options = (sent(x1), sent(x2)), dict(case.parameters, variant=variant)
    out = back(correlate(*arrays, **options, dtype=DTYPES[result]))
    oracle.assert_close(out, oracle.forward(x1, x2, **case.parameters), accumulator)
    if len({cupycorr.explain(*arrays, **options, dtype=dtype).how for dtype in (DTYPES[result], accumulator)}) == 1:
        exact = back(correlate(*arrays, **options, dtype=accumulator))  # the same sums; another plan adds in another order
        assert out.tobytes() == exact.astype(DTYPES[result]).tobytes()
    gradients = correlate_vjp(sent(g), *arrays, **options, dtype=DTYPES[result])
    for gradient, triple in zip(gradients, oracle.vjp(g, x1, x2, **case.parameters), strict=True):
        oracle.assert_close(back(gradient), triple, accumulator)


@pytest.mark.parametrize(("case", "variant"), RUNS.values(), ids=RUNS.keys())
def test_the_same_inputs_give_the_same_bits(case, variant):
    arrays = [sent(array) for array in case.arrays()]
    first, *others = [answer(case, arrays, variant) for _ in range(3)]
    for other in others:
        assert_same_bits(first, other)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan], ids=["inf", "-inf", "nan"])
@each
def test_what_is_not_finite_stays_where_the_definition_puts_it(variant, case, value):
    x1, x2, g = case.arrays()
    x1[0, 1, 0, 3] = x1[0, 0, 6, 20] = x2[0, 1, -1, -1] = g[0, 1, 2, 1, -1] = g[0, 0, 0, 0, 0] = value
    with np.errstate(invalid="ignore"):
        want = [oracle.forward(x1, x2, **case.parameters)[0], *(triple[0] for triple in oracle.vjp(g, x1, x2, **case.parameters))]
    got = map(back, answer(case, [sent(x1), sent(x2), sent(g)], variant))
    for name, one, other in zip(("output", "g1", "g2"), want, got, strict=True):
        assert np.array_equal(np.isfinite(one), np.isfinite(other)), name
        # Sums of cotangents over a window are multiplied once: (1 - 2) inf is inf where 1 inf - 2 inf is not a number.
        if not has_window(case):
            assert np.array_equal(np.isnan(one), np.isnan(other)), name


DENORMAL = {  # dtype -> a denormal number, a normal one, and the product that is found
    "float16": (2.0**-24, 2.0**10, 2.0**-14),
    "bfloat16": (2.0**-130, 2.0**100, 0.0),
    "float32": (2.0**-140, 2.0**100, 0.0),
    "float64": (2.0**-1060, 2.0**100, 2.0**-960),
}


@pytest.mark.parametrize("variant", ["direct", "tiled"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_denormal_numbers_of_eight_exponent_bits_count_as_zero_outside_tensor_cores(dtype, variant):
    denormal, normal, product = DENORMAL[dtype]
    small, large = (sent(np.full((1, 1, 2, 3), value, DTYPES[dtype])) for value in (denormal, normal))
    assert (back(correlate(small, large, variant=variant)) == product).all()
    _, gradient = correlate_vjp(large[:, :, None], small, large, needs=(False, True), variant=variant)
    assert (back(gradient) == product).all()


@pytest.mark.parametrize("dtype", DTYPES)
@each
def test_out_is_written_in_its_own_dtype_and_strides_and_returned_itself(variant, case, dtype):
    x1, x2, _ = map(sent, case.arrays())
    shape = case.out_shape()
    for out in (cupy.empty(shape, DTYPES[dtype]), cupy.empty((*shape[:-1], 2 * shape[-1]), DTYPES[dtype])[..., ::2]):
        assert correlate(x1, x2, **case.parameters, variant=variant, out=out) is out
        oracle.assert_close(back(out), wanted(case)[0], accumulator="float32")


def test_out_may_be_an_input():
    x1, x2, _ = map(sent, cases.same((3, 1, 8, 9)).arrays())
    want = back(correlate(x1, x2))
    shared = x2.copy()
    correlate(x1, shared, out=shared[:, :, None].reshape(3, 1, 1, 8, 9))
    assert np.array_equal(back(shared).reshape(want.shape), want)


# Streams -----------------------------------------------------------------------------------------------------------------------


@each
def test_a_call_returns_before_its_work_is_done(side, variant, case):
    with side:
        arrays = [sent(array) for array in case.arrays()]
        answer(case, arrays, variant)  # compiles, and gets the pool its memory
        side.synchronize()
        with held(side) as over:
            results = answer(case, arrays, variant)
            done = side.record()
            assert not over.done
            assert not done.done
        assert_right(results, wanted(case))


@each
def test_work_comes_after_what_its_stream_was_given_before(side, variant, case):
    with side:
        fresh = [sent(array) for array in case.arrays()]
        zeros = [cupy.zeros_like(array) for array in fresh]
        arrays = [array.copy() for array in zeros]
        fill(arrays, zeros)
        answer(case, arrays, variant)
        side.synchronize()
        with held(side) as over:
            fill(arrays, fresh)
            results = answer(case, arrays, variant)
            cupy.cuda.Stream.null.synchronize()  # work that went there by mistake saw zeros
            assert not over.done
        assert_right(results, wanted(case))


@each
def test_work_does_not_wait_for_the_default_stream(side, variant, case):
    default = cupy.cuda.Stream.null
    with side:
        arrays = [sent(array) for array in case.arrays()]
        out = cupy.full(case.out_shape(), np.nan, DTYPES[case.dtype])  # needs no other kernels than these, which are loaded now:
        answer(case, arrays, variant)
        side.synchronize()
    with held(default) as over:
        with side:
            correlate(*arrays[:2], **case.parameters, variant=variant, out=out)
            gradients = correlate_vjp(arrays[2], *arrays[:2], **case.parameters, variant=variant)
            results = [back(result) for result in (out, *gradients)]
        assert not over.done
    assert_right(results, wanted(case))


@pytest.mark.parametrize("non_blocking", [False, True])
@each
def test_every_stream_gives_the_same_bits(variant, case, non_blocking):
    arrays = [sent(array) for array in case.arrays()]
    want = answer(case, arrays, variant)
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=non_blocking) as stream:
        got = answer(case, arrays, variant)
        stream.synchronize()
    assert_same_bits(got, want)


@each
def test_another_device_than_the_current_one_answers_for_its_arrays(variant, case):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("fewer than two devices")
    if reason := why_not(variant, case, device=facts(1)):
        pytest.skip(f"{variant} on the second device: {reason}")
    with cupy.cuda.Device(1):
        arrays = [sent(array) for array in case.arrays()]
    with cupy.cuda.Device(0):
        results = answer(case, arrays, variant)
        assert cupy.cuda.runtime.getDevice() == 0
        assert {result.device.id for result in results} == {1}
        cupycorr.explain(*arrays[:2], **case.parameters)
        assert cupy.cuda.runtime.getDevice() == 0
    with cupy.cuda.Device(1):
        assert_right(results, wanted(case))


# Graphs ------------------------------------------------------------------------------------------------------------------------


@each
def test_a_captured_call_answers_for_new_data_at_every_replay(side, variant, case):
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()  # of other tests, which would all have to be filled
    with side:
        arrays = [sent(array) for array in case.arrays()]
        answer(case, arrays, variant)
        side.synchronize()
        side.begin_capture()
        results = answer(case, arrays, variant)
        graph = side.end_capture()
        for seed in (1, 2):
            other = replace(case, seed=seed)
            new = [sent(array) for array in other.arrays()]
            fill(arrays, new)
            for result in results:
                result.fill(0)
            litter = [cupy.full(pool.free_bytes() // 4 + 1, 255, np.uint8) for _ in range(3)]  # in all memory that is free
            graph.launch(side)
            assert_right(results, wanted(other))
            assert_same_bits(results, answer(case, new, variant))
            del litter


def test_a_replay_needs_nothing_of_the_stream_it_was_captured_on(side):
    with side:
        arrays = [sent(array) for array in WINDOWED.arrays()]
        answer(WINDOWED, arrays, "box")
        side.synchronize()
        side.begin_capture()
        results = answer(WINDOWED, arrays, "box")
        graph = side.end_capture()
        side.synchronize()
    with cupy.cuda.Stream(non_blocking=True) as other:
        graph.launch(other)
        assert_right(results, wanted(WINDOWED))


# Sizes -------------------------------------------------------------------------------------------------------------------------

FILL = """
    unsigned long long h = (i + seed + 1) * 0x9E3779B97F4A7C15ull;
    h = (h ^ (h >> 29)) * 0xBF58476D1CE4E5B9ull;
    x = T((float)(int)(h >> 52) / 2048.0f - 1.0f);
"""
PAST = 2**31
LARGE_OUT = dict(shape=(1, 8, 2210, 2210), parameters=dict(patch_size=21), wanted=(1, 21, 21, 2210, 2210))
LARGE_INPUTS = dict(shape=(2, 1100, 1000, 1000), parameters=dict(patch_size=3), wanted=(2, 3, 3, 1000, 1000))
large = pytest.mark.parametrize("problem", [LARGE_OUT, LARGE_INPUTS], ids=["output", "inputs"])


def drawn(shape, seed):
    """Return numbers in [-1, 1) that depend on all bits of an element's index."""
    fill = cupy.ElementwiseKernel("int64 seed", "T x", FILL, "fill_with_hash")
    return fill(seed, cupy.empty(shape, np.float16))


def require_memory(*shapes):
    """Skip the test where float16 arrays of these shapes do not fit."""
    cupy.get_default_memory_pool().free_all_blocks()
    needed = sum(2 * int(np.prod(shape, dtype=np.int64)) for shape in shapes) + 2**30
    free = cupy.cuda.runtime.memGetInfo()[0]
    if needed > free:
        pytest.skip(f"needs {needed / 2**30:.1f} GiB of device memory, {free / 2**30:.1f} are free")


@pytest.fixture
def no_leftovers():
    yield
    cupy.get_default_memory_pool().free_all_blocks()


# A crop of a few pixels at the far end of the images, of some channels: y, x and channels.
ROWS, COLUMNS, CHANNELS = slice(-13, -11), slice(-14, -11), slice(-3, None)


def grown(cut, by):
    return slice(cut.start - by, cut.stop + by)


@pytest.mark.slow
@large
def test_outputs_past_32_bit_indices_equal_the_definition(problem, no_leftovers):
    shape, parameters, out_shape = problem.values()
    require_memory(shape, shape, out_shape)
    x1, x2 = drawn(shape, 0), drawn(shape, 2**40)
    out = correlate(x1, x2, **parameters, scale=1 / 64)
    assert max(out.size, x1.size) > PAST
    radius = parameters["patch_size"] // 2
    near, around = x1[-1:, :, ROWS, COLUMNS], x2[-1:, :, grown(ROWS, radius), grown(COLUMNS, radius)]
    triple = oracle.forward(back(near), back(around), **parameters, patch_offset=radius, scale=1 / 64)
    oracle.assert_close(back(out[-1:, :, :, ROWS, COLUMNS]), triple, "float32")
    # The first pixels too: an offset that wrapped would write there.
    first = x1[:1, :, :2, :2], x2[:1, :, : 2 + radius, : 2 + radius]
    triple = oracle.forward(*map(back, first), **parameters, patch_offset=0, scale=1 / 64)
    oracle.assert_close(back(out[:1, :, :, :2, :2]), triple, "float32")


@pytest.mark.slow
@large
def test_gradients_past_32_bit_indices_equal_the_definition(problem, no_leftovers):
    shape, parameters, out_shape = problem.values()
    require_memory(shape, shape, shape, shape, out_shape)
    x1, x2, g = drawn(shape, 0), drawn(shape, 2**40), drawn(out_shape, 2**41)
    g1, g2 = correlate_vjp(g, x1, x2, **parameters, scale=1 / 64)
    radius = parameters["patch_size"] // 2
    rows, columns = grown(ROWS, radius), grown(COLUMNS, radius)
    options = dict(parameters, scale=1 / 64)

    def cut(image, rows, columns):
        return back(image[-1:, CHANNELS, rows, columns])

    crop = back(g[-1:, :, :, ROWS, COLUMNS]), cut(x1, ROWS, COLUMNS), cut(x2, rows, columns)
    oracle.assert_close(cut(g1, ROWS, COLUMNS), oracle.vjp(*crop, **options, patch_offset=radius)[0], "float32", "g1")
    crop = back(g[-1:, :, :, rows, columns]), cut(x1, rows, columns), cut(x2, ROWS, COLUMNS)
    oracle.assert_close(cut(g2, ROWS, COLUMNS), oracle.vjp(*crop, **options, patch_offset=-radius)[1], "float32", "g2")


# Threads and processes ---------------------------------------------------------------------------------------------------------


def test_many_threads_with_different_problems_call_at_once():
    names = [name for name, case in NAMED.items() if min(case.shape1) > 0]
    together = Barrier(len(names), timeout=STUCK)
    forget_plans()

    def work(name):
        with cupy.cuda.Stream(non_blocking=True) as stream:
            arrays = [sent(array) for array in NAMED[name].arrays()]
            together.wait()
            runs = [answer(NAMED[name], arrays) for _ in range(5)]
            stream.synchronize()
            return [[back(result) for result in results] for results in runs]

    with ThreadPoolExecutor(len(names)) as pool:
        for name, runs in zip(names, pool.map(work, names), strict=True):
            for results in runs:
                assert_right(results, wanted(NAMED[name]))


FRESH = """
import cupy, numpy
from cupy.cuda import compiler
import cupycorr

compiled = []
real = compiler._NVRTCProgram.compile
compiler._NVRTCProgram.compile = lambda self, *rest: compiled.append(self.src) or real(self, *rest)
x = cupy.asarray(numpy.ones((1, 8, 9, 10), numpy.float32))
out = cupycorr.spatial_correlation_sample(x, x, kernel_size=3, patch_size=5, variant="box")
gradients = cupycorr.spatial_correlation_sample_vjp(out, x, x, kernel_size=3, patch_size=5, variant="direct")
cupy.cuda.Device().synchronize()
print(sum("kernels_cu" in text for text in compiled))
"""


def test_a_fresh_process_finds_what_another_one_compiled(tmp_path):
    def run():
        compiled = int(fresh_process(FRESH, CUPY_CACHE_DIR=str(tmp_path)))
        return compiled, {path.name for path in tmp_path.iterdir()}

    first, files = run()
    assert first >= 5
    assert files
    second, still = run()
    assert second == 0
    assert still == files


# Memory ------------------------------------------------------------------------------------------------------------------------


SMALL = {"plain": PLAIN, "windows": WINDOWED}
SPACIOUS = {
    "windows": WINDOWED,
    "one part": cases.same((1, 3, 50, 70), kernel_size=5, patch_size=7),
    "many parts": pytest.param(cases.same((1, 1, 369, 511), kernel_size=32, patch_size=25), marks=pytest.mark.slow),
}


@pytest.mark.parametrize("case", SMALL.values(), ids=SMALL)
def test_direct_takes_the_memory_of_its_results_and_no_more(case):
    x1, x2, g = (cupy.ones(shape, np.float32) for shape in (case.shape1, case.shape2, case.out_shape()))
    with Account() as account:
        out = correlate(x1, x2, **case.parameters, variant="direct")
    assert account.most == account.held == pooled(out)
    with Account() as account:
        gradients = correlate_vjp(g, x1, x2, **case.parameters, variant="direct")
    assert account.most == account.held == pooled(*gradients)
    with Account() as account:
        correlate(x1, x2, **case.parameters, variant="direct", out=out)
    assert account.most == 0


@pytest.mark.parametrize("case", SPACIOUS.values(), ids=SPACIOUS)
def test_box_takes_a_bounded_workspace_and_gives_it_back(case):
    x1, x2, g = (cupy.ones(shape, np.float32) for shape in (case.shape1, case.shape2, case.out_shape()))
    told = cupycorr.explain(x1, x2, **case.parameters, variant="box").workspace
    assert 0 < told <= WORKSPACE_BYTES
    with Account() as account:
        out = correlate(x1, x2, **case.parameters, variant="box")
    assert account.held == pooled(out)
    assert account.most - account.held <= told + 512
    with Account() as account:
        gradients = correlate_vjp(g, x1, x2, **case.parameters, variant="box")
    assert account.held == pooled(*gradients)
    # Sums that go from part to part: two of each gradient, its channels in runs of four.
    assert account.most - account.held <= WORKSPACE_BYTES + 8 * pooled(*gradients)


@each
def test_what_does_not_fit_is_a_memory_error_and_the_next_call_works(variant, case):
    arrays = [sent(array) for array in case.arrays()]
    x = cupy.broadcast_to(cupy.zeros((1, 1, 1, 1), case.dtype), (100_000, 1, 100, 100))
    with pytest.raises(MemoryError):
        correlate(x, x, kernel_size=2 if has_window(case) else 1, patch_size=21, variant=variant)  # 0.8 TB at least
    assert_right(answer(case, arrays, variant), wanted(case))


@pytest.mark.parametrize("direction", ["forward", "vjp"])
def test_a_workspace_that_does_not_fit_is_a_memory_error_and_the_next_call_works(direction):
    case, pool = SPACIOUS["one part"], cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        x1, x2, g = (cupy.ones(shape, np.float32) for shape in (case.shape1, case.shape2, case.out_shape()))
        out = cupy.empty(case.out_shape(), np.float32)
        calls = {
            "forward": lambda: correlate(x1, x2, **case.parameters, variant="box", out=out),
            "vjp": lambda: correlate_vjp(g, x1, x2, **case.parameters, variant="box"),
        }
        results = {"forward": 0, "vjp": pooled(x1, x2)}
        pool.set_limit(size=pool.total_bytes() + results[direction])
        with pytest.raises(MemoryError):
            calls[direction]()
        pool.set_limit(size=0)  # no limit
        calls[direction]()
        assert_right(answer(WINDOWED, [sent(array) for array in WINDOWED.arrays()], "box"), wanted(WINDOWED))


# The front door ----------------------------------------------------------------------------------------------------------------

BAD = {
    "rank": ((4, 6, 7), (1, 4, 6, 7), {}),
    "shapes": ((1, 4, 6, 7), (1, 4, 6, 8), {}),
    "channels": ((1, 4, 6, 7), (1, 5, 6, 7), dict(patch_offset=0)),
    "patch": ((1, 4, 6, 7), (1, 4, 6, 7), dict(patch_size=0)),
    "type": ((1, 4, 6, 7), (1, 4, 6, 7), dict(stride=1.5)),
    "window": ((1, 4, 6, 7), (1, 4, 6, 7), dict(kernel_size=9)),
    "scale": ((1, 4, 6, 7), (1, 4, 6, 7), dict(scale=float("nan"))),
    "variant": ((1, 4, 6, 7), (1, 4, 6, 7), dict(variant="fastest")),
    "dtype": ((1, 4, 6, 7), (1, 4, 6, 7), dict(dtype="int32")),
}


def complaint(function, *arguments, **options):
    with pytest.raises((ValueError, TypeError)) as refused:
        function(*arguments, **options)
    return refused.type, str(refused.value)


@pytest.mark.parametrize(("shape1", "shape2", "options"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_in_the_words_of_numpy_arrays_before_a_kernel_is_made(monkeypatch, shape1, shape2, options):
    monkeypatch.setattr(plan, "bind", lambda *_, **__: pytest.fail("a kernel was made before the input was refused"))
    pair = [np.ones(shape, np.float32) for shape in (shape1, shape2)]
    with Account() as account:
        on_device = [sent(array) for array in pair]
        before = account.most
        assert complaint(correlate, *on_device, **options) == complaint(correlate, *pair, **options)
        assert account.most == before
    cotangent = np.ones((1, 1, 1, 6, 7), np.float32)
    got = complaint(correlate_vjp, sent(cotangent), *on_device, **options)
    assert got == complaint(correlate_vjp, cotangent, *pair, **options)


def test_an_array_of_the_host_beside_one_of_a_device_is_refused():
    x = np.ones((1, 4, 6, 7), np.float32)
    with pytest.raises(TypeError, match="input1 and input2 must be arrays of the same kind, got input1 on cupy, input2 on numpy"):
        correlate(sent(x), x)


@pytest.fixture
def broken_kernels(monkeypatch):
    """Kernels are compiled with a type that no compiler knows."""
    bind = plan.bind

    def bind_nonsense(kernel, *rest):
        return bind(replace(kernel, macros=tuple((dict(kernel.macros) | {"INDEX": "no_such_type"}).items())), *rest)

    with monkeypatch.context() as patched:
        patched.setattr(plan, "bind", bind_nonsense)
        forget_plans()
        yield patched
    forget_plans()


@each
def test_a_kernel_that_does_not_compile_is_a_runtime_error_and_the_next_call_works(broken_kernels, variant, case):
    arrays = [sent(array) for array in case.arrays()]
    with pytest.raises(RuntimeError, match=r"(?s)cannot compile kernel (\w+) of correlation/\1\.cu for sm_.*no_such_type"):
        correlate(*arrays[:2], **case.parameters, variant=variant)
    with pytest.raises(RuntimeError, match="cannot compile kernel"):
        correlate_vjp(arrays[2], *arrays[:2], **case.parameters, variant=variant)
    broken_kernels.undo()
    assert_right(answer(case, arrays, variant), wanted(case))


def test_a_cpu_variant_is_refused_with_the_reason():
    x = cupy.ones((1, 4, 6, 7), np.float32)
    for variant in cases.CPU_VARIANTS:
        with pytest.raises(NotImplementedError, match="input is a CuPy array, needs a NumPy array"):
            correlate(x, x, variant=variant)


def test_explain_names_the_variant_and_a_bound_of_this_device():
    x = cupy.ones((4, 128, 96, 128), np.float32)  # enough for every device: fewer pixels are the direct kernel's on some
    told = cupycorr.explain(x, x, patch_size=9)
    assert told.variant == "tiled"
    assert told.reasons["box"] == "kernel_size is 1"
    assert 0 < told.bound < 0.1
    windowed = cupycorr.explain(x, x, kernel_size=32, patch_size=9, padding=16)
    assert windowed.variant == "box"


@pytest.mark.parametrize("subpixel", [True, False])
@pytest.mark.parametrize("colour", [(), (3,)], ids=["grey", "colour"])
def test_match_finds_what_it_finds_on_numpy_arrays(colour, subpixel):
    frame = np.random.default_rng(0).integers(0, 256, (60, 80, *colour)).astype(np.uint8)
    moved = np.roll(frame, (1, -2), axis=(0, 1))
    search = dict(window=(7, 9), search=((-2, 2), (-3, 3)), step=3, subpixel=subpixel)
    want = cupycorr.match(frame, moved, **search)
    found = cupycorr.match(sent(frame), sent(moved), **search)
    for name in ("dx", "dy", "score", "x", "y"):
        got = getattr(found, name)
        assert type(got) is cupy.ndarray, name
        assert np.allclose(back(got), getattr(want, name), atol=1e-9, equal_nan=True), name


# Other libraries' arrays -------------------------------------------------------------------------------------------------------


class Exported:
    """A tensor that has only the DLPack protocol."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)


@pytest.fixture
def torch():
    found = pytest.importorskip("torch")
    if not found.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    return found


def test_what_exports_device_memory_by_dlpack_gives_cupy_results(torch):
    tensors = [torch.from_numpy(array).cuda() for array in WINDOWED.arrays()]
    torch.cuda.synchronize()
    results = answer(WINDOWED, [Exported(tensor) for tensor in tensors])
    assert all(type(result) is cupy.ndarray for result in results)
    assert_right(results, wanted(WINDOWED))
    out = Exported(torch.full(WINDOWED.out_shape(), torch.nan, device="cuda"))
    torch.cuda.synchronize()
    assert correlate(*(Exported(tensor) for tensor in tensors[:2]), **WINDOWED.parameters, out=out) is out
    cupy.cuda.Device().synchronize()
    oracle.assert_close(out.tensor.cpu().numpy(), wanted(WINDOWED)[0])


def test_a_torch_tensor_is_refused_with_the_way_to_pass_it(torch):
    x = torch.ones((1, 4, 6, 7), device="cuda")
    with pytest.raises(TypeError, match=r"got a torch tensor: .*cupy.from_dlpack\(input1.detach\(\)\)"):
        correlate(x, x)


def test_bfloat16_arrays_of_cupy_are_known():
    x = cupy.ones((1, 16, 4, 4), ml_dtypes.bfloat16)
    assert correlate(x, x).dtype == ml_dtypes.bfloat16
    assert (back(correlate(x, x, dtype="float32")) == 16).all()


# What is compiled --------------------------------------------------------------------------------------------------------------


@pytest.mark.every_build
def test_every_build_compiles_and_loads():
    device = cupy.cuda.runtime.getDevice()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        loaded = list(pool.map(lambda build: compiler.function(build[1], device), planner.builds(facts(device))))
    assert all(kernel.num_regs <= 255 and kernel.local_size_bytes == 0 for kernel in loaded)
