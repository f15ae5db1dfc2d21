"""The lookup on a device, through CuPy itself: the suite's cases, and what only a device has: streams, graphs, several devices.

Without a device these tests are skipped; `test_kernels_emulated` shows what can be shown without one.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import lookup_oracle
import numpy as np
import pytest
from cases import DTYPES
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import FOR_KERNELS, rows, some
from lookup_cases import ALL, NAMED, Case, index, lookups
from lookup_emulated import assert_right, wanted
from on_device import Account, back, cupy, fill, held, here, pooled, sent

import cupycorr
from cupycorr import correlation_lookup, correlation_lookup_vjp
from cupycorr._gpu import compiler, plan
from cupycorr._lookup.gpu import lookup_tiled, planner

pytestmark = pytest.mark.gpu

VARIANTS = ("direct", "tiled", "mma")
LAYOUTS = FOR_KERNELS | some("one element beyond")
INDICES = ("index1", "index2")

PLAIN = Case((2, 20, 9, 11), (2, 20, 9, 11), (2, 2, 9, 11), dict(patch_size=(3, 4), scale=-0.3))
PYRAMID = Case((2, 16, 9, 11), [(3, 16, 9, 11), (3, 16, 4, 5)], (4, 2, 2, 9, 11), dict(patch_size=5, order="dx"), "float16")
PYRAMID = replace(PYRAMID, parameters=dict(PYRAMID.parameters, index1=index(0, 1, 1, 0), index2=index(2, 0, 2, 1)))
EACH = {"plain": PLAIN, "pyramid": PYRAMID}
each = pytest.mark.parametrize("case", EACH.values(), ids=EACH.keys())
variants = pytest.mark.parametrize("variant", ["auto", *VARIANTS])


def lacks_tensor_cores(variant, dtype):
    """Return whether a variant needs tensor cores for a dtype that the current device does not have."""
    return variant == "mma" and not here().has_matrix_product(dtype)


def options_of(variant, dtype):
    """Return the options that name a variant; the test is skipped where the device has no tensor cores for it.

    float32 goes to tensor cores only where it may be rounded to TF32.
    """
    if lacks_tensor_cores(variant, dtype):
        pytest.skip(f"the device has no tensor cores for {dtype}")
    return dict(variant=variant, precision="high") if (variant, dtype) == ("mma", "float32") else dict(variant=variant)


def arrays_of(case, lay=lambda array: array):
    """Return the arrays of a case on the current device: the cotangent, input1, the levels of input2, coords, the indices."""
    x1, x2, coords = case.arrays()
    maps = x2 if isinstance(x2, list) else [x2]
    indices = [sent(case.parameters[name]) for name in INDICES if name in case.parameters]
    return [sent(case.cotangent()), lay(sent(x1)), *(lay(sent(each)) for each in maps), sent(coords), *indices]


def answer(case, arrays, variant="auto"):
    """Return the output and the gradients of input1, each level and coords, from arrays that are on a device."""
    cotangent, x1, *rest = arrays
    maps, (coords, *given) = rest[: len(case.levels)], rest[len(case.levels) :]
    x2 = maps if isinstance(case.shapes2, list) else maps[0]
    names = [name for name in INDICES if name in case.parameters]
    options = {**case.parameters, **dict(zip(names, given, strict=True)), **options_of(variant, case.dtype)}
    out = correlation_lookup(x1, x2, coords, **options)
    first, second, third = correlation_lookup_vjp(cotangent, x1, x2, coords, **options, needs=ALL)
    return [out, first, *(second if isinstance(second, tuple) else [second]), third]


def assert_is_the_oracles(case, results, variant="auto"):
    """Check the results of a variant against the oracle, and their kind, dtypes and memory."""
    for result in results:
        assert type(result) is cupy.ndarray
        assert result.flags.c_contiguous
    features, coords = case.arrays()[0].dtype, case.arrays()[2].dtype
    assert [result.dtype for result in results] == [features] * (len(results) - 1) + [coords]
    rounded = "tf32" if (variant, case.dtype) == ("mma", "float32") else None
    assert_right([back(result) for result in results], wanted(case, case.cotangent()), features, rounded)


def assert_same_bits(results, others):
    for one, two in zip(results, others, strict=True):
        assert back(one).tobytes() == back(two).tobytes()


def check(case, variant="auto", lay=rows):
    """Check the output and all gradients of a case, or that a variant that cannot answer refuses it with its reason."""
    reason = lookup_tiled.why_not(case.problem(), case.dtype, here()) if variant == "tiled" else None
    if reason is None:
        assert_is_the_oracles(case, answer(case, arrays_of(case, lay), variant), variant)
    else:
        with pytest.raises(NotImplementedError, match=reason):
            answer(case, arrays_of(case, lay), variant)


@pytest.fixture
def side():
    """A stream that the default stream neither waits for nor holds up."""
    stream = cupy.cuda.Stream(non_blocking=True)
    yield stream
    stream.synchronize()


# The definition ----------------------------------------------------------------------------------------------------------------


@variants
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("case", NAMED.values(), ids=NAMED.keys())
def test_named_lookups_equal_the_oracle(case, dtype, variant):
    check(case.of(dtype), variant)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("lay", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_memory_order_equals_the_oracle(dtype, lay, variant):
    for channels in (35, 72):  # runs of channels that end in the middle of 16 bytes, and at the end of them
        shapes = [(2, channels, 6, 9), (2, channels, 3, 4)]
        case = Case(shapes[0], shapes, (2, 2, 6, 9), dict(patch_size=(3, 4), dilation_patch=(1, 2), scale=0.25), dtype)
        check(case, variant, lay)


@settings(max_examples=100, deadline=None)
@given(case=lookups(), lay=st.sampled_from(list(LAYOUTS.values())))
def test_drawn_lookups_equal_the_oracle(case, lay):
    for variant in VARIANTS:
        if not lacks_tensor_cores(variant, case.dtype):
            check(case, variant, lay)


@pytest.mark.parametrize("variant", VARIANTS)
@each
def test_the_same_inputs_give_the_same_bits(case, variant):
    arrays = arrays_of(case)
    first, *others = [answer(case, arrays, variant) for _ in range(3)]
    for other in others:
        assert_same_bits(first, other)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_pixel_and_the_weights_are_those_of_the_rounded_product(variant):
    """A third is rounded up: of 3 times it, only the rounded product is the whole number 1, with no weight for pixel 2."""
    x1, x2 = sent(np.ones((1, 1, 1, 1), np.float32)), sent(np.array([0, 1, 2.0**30], np.float32).reshape(1, 1, 1, 3))
    coords = sent(np.full((1, 1, 1, 1), 3, np.float32))
    out = correlation_lookup(x1, [x2, x2], coords, 1, level_step=3, **options_of(variant, "float32"))
    assert back(out).ravel().tolist() == [0, 1]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("wrong", [-1, 3, 2**31 - 1])
def test_an_index_out_of_range_is_nan_in_its_entry_and_has_no_gradient(variant, dtype, wrong):
    right = index(1, 0, 1, dtype=dtype)
    case = Case((3, 5, 6, 7), (3, 5, 6, 7), (3, 2, 6, 7), dict(patch_size=3, index2=right))
    arrays = arrays_of(case)
    cotangent = case.cotangent()
    cotangent[1] = 0  # its entry then adds nothing to the gradients of the oracle
    arrays[-1][1] = wrong
    out, first, second, third = map(back, answer(case, arrays, variant))
    of_out, of_first, of_second, of_third = wanted(case, cotangent)
    assert np.isnan(out[1]).all()
    assert (third[1] == 0).all()
    lookup_oracle.assert_close(out[::2], [part[::2] for part in of_out], "tf32" if variant == "mma" else None)
    for got, triple in ((first, of_first), (second, of_second)):
        lookup_oracle.assert_close(got, triple)
    lookup_oracle.assert_close(third[::2], [part[::2] for part in of_third])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_coordinates_that_are_not_in_the_map_give_nan_or_zero_at_their_query_only(variant, value):
    case = Case((1, 16, 6, 7), [(1, 16, 6, 7), (1, 16, 3, 3)], (1, 2, 6, 7), dict(patch_size=3))
    arrays = arrays_of(case)
    clean = [back(result) for result in answer(case, arrays, variant)]
    arrays[-1][0, 1, 2, 3] = value
    out, first, *_, coords = [back(result) for result in answer(case, arrays, variant)]
    for got, before in ((out, clean[0]), (first, clean[1]), (coords, clean[-1])):
        here_only = got[..., 2, 3]
        assert (np.isnan(here_only) if not np.isfinite(value) else here_only == 0).all()
        got[..., 2, 3] = before[..., 2, 3]
        assert got.tobytes() == before.tobytes()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@each
def test_out_is_written_in_its_own_dtype_and_strides_and_returned_itself(case, dtype, variant):
    case = replace(case, dtype="float32")
    x1, x2, coords = case.arrays()
    x2 = [sent(each) for each in x2] if isinstance(x2, list) else sent(x2)
    options = {name: sent(value) if name in INDICES else value for name, value in case.parameters.items()}
    arguments, options = (sent(x1), x2, sent(coords)), dict(options, **options_of(variant, "float32"))
    want = back(correlation_lookup(*arguments, **options)).astype(DTYPES[dtype])
    shape = want.shape
    for out in (cupy.empty(shape, DTYPES[dtype]), cupy.empty((*shape[:-1], 2 * shape[-1]), DTYPES[dtype])[..., ::2]):
        assert correlation_lookup(*arguments, **options, out=out) is out
        assert np.array_equal(back(out), want)


def test_groups_have_the_bits_of_a_loop_over_them():
    x1, x2, coords = map(sent, NAMED["lookups of each pixel"].arrays())
    out = correlation_lookup(x1, x2, coords, 3, groups=2)
    g = cupy.ones_like(out)
    first, second, third = correlation_lookup_vjp(g, x1, x2, coords, 3, groups=2, needs=ALL)
    gradients = 0
    for group in range(2):
        part = slice(3 * group, 3 * group + 3)
        assert back(out[:, group]).tobytes() == back(correlation_lookup(x1[:, part], x2[:, part], coords, 3)).tobytes()
        one, two, three = correlation_lookup_vjp(g[:, group], x1[:, part], x2[:, part], coords, 3, needs=ALL)
        assert back(first[:, part]).tobytes() == back(one).tobytes()
        assert back(second[:, part]).tobytes() == back(two).tobytes()
        gradients = three + gradients
    assert back(third).tobytes() == back(gradients).tobytes()


# Streams, devices and graphs ---------------------------------------------------------------------------------------------------


@each
def test_a_call_returns_before_its_work_is_done(side, case):
    with side:
        arrays = arrays_of(case)
        answer(case, arrays)  # compiles, and gets the pool its memory
        side.synchronize()
        with held(side) as over:
            results = answer(case, arrays)
            done = side.record()
            assert not over.done
            assert not done.done
        assert_is_the_oracles(case, results)


@each
def test_work_comes_after_what_its_stream_was_given_before(side, case):
    with side:
        fresh = arrays_of(case)
        arrays = [cupy.zeros_like(array) for array in fresh]
        fill(arrays, arrays)
        answer(case, arrays)
        side.synchronize()
        with held(side) as over:
            fill(arrays, fresh)
            results = answer(case, arrays)
            cupy.cuda.Stream.null.synchronize()  # work that went there by mistake saw zeros
            assert not over.done
        assert_is_the_oracles(case, results)


@each
def test_every_stream_gives_the_same_bits(case):
    arrays = arrays_of(case)
    want = answer(case, arrays)
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        got = answer(case, arrays)
        stream.synchronize()
    assert_same_bits(got, want)


@each
def test_another_device_than_the_current_one_answers_for_its_arrays(case):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("fewer than two devices")
    with cupy.cuda.Device(1):
        arrays = arrays_of(case)
    with cupy.cuda.Device(0):
        results = answer(case, arrays)
        assert cupy.cuda.runtime.getDevice() == 0
        assert {result.device.id for result in results} == {1}
    with cupy.cuda.Device(1):
        assert_is_the_oracles(case, results)


@each
def test_a_captured_call_answers_for_new_data_at_every_replay(side, case):
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()  # of other tests, which would all have to be filled
    with side:
        arrays = arrays_of(case)
        answer(case, arrays)
        side.synchronize()
        side.begin_capture()
        results = answer(case, arrays)
        graph = side.end_capture()
        for seed in (1, 2):
            other = replace(case, seed=seed)
            new = arrays_of(other)
            fill(arrays, new)
            for result in results:
                result.fill(0)
            litter = [cupy.full(pool.free_bytes() // 4 + 1, 255, np.uint8) for _ in range(3)]  # in all memory that is free
            graph.launch(side)
            assert_is_the_oracles(other, results)
            assert_same_bits(results, answer(other, new))
            del litter


# Memory ------------------------------------------------------------------------------------------------------------------------


@each
def test_the_output_takes_no_memory_but_its_own_and_gradients_a_workspace_as_planned(case):
    arrays = arrays_of(case)
    answer(case, arrays)
    cupy.cuda.Device().synchronize()
    asked = []
    allocate = plan.allocate_from_cupy

    def counted(size):
        asked.append(size)
        return allocate(size)

    with pytest.MonkeyPatch.context() as patched, Account() as account:
        patched.setattr(plan, "allocate_from_cupy", counted)
        results = answer(case, arrays)
        planned = sum(-(-size // 512) * 512 for size in asked)
        assert account.most <= pooled(*results) + planned
    assert len(asked) == 1  # for the gradients


# What is refused ---------------------------------------------------------------------------------------------------------------


def test_arrays_of_the_host_beside_those_of_a_device_are_refused():
    x, coords = np.ones((1, 4, 6, 7), np.float32), np.ones((1, 2, 6, 7), np.float32)
    with pytest.raises(TypeError, match="same kind"):
        correlation_lookup(sent(x), x, sent(coords))
    with pytest.raises(TypeError, match="coords"):
        correlation_lookup(sent(x), sent(x), coords)


def test_a_cpu_variant_is_refused_with_the_reason():
    x, coords = cupy.ones((1, 4, 6, 7), np.float32), cupy.ones((1, 2, 6, 7), np.float32)
    for variant in ("blas", "reference"):
        with pytest.raises(NotImplementedError, match="input is a CuPy array, needs a NumPy array"):
            correlation_lookup(x, x, coords, variant=variant)


def test_bad_input_is_refused_before_a_kernel_is_made(monkeypatch):
    monkeypatch.setattr(plan, "bind", lambda *_, **__: pytest.fail("a kernel was made before the input was refused"))
    x, coords = cupy.ones((1, 4, 6, 7), np.float32), cupy.ones((1, 2, 6, 7), np.float32)
    for arguments, options in (((x, x[:, :3], coords), {}), ((x, x, coords[..., 1:]), {}), ((x, x, coords), dict(order="xy"))):
        with pytest.raises(ValueError, match=r"must (have|be)"):
            correlation_lookup(*arguments, **options)


def test_explain_names_the_variant_and_a_bound_of_this_device():
    x, coords = cupy.ones((1, 64, 24, 32), np.float32), cupy.ones((1, 2, 24, 32), np.float32)
    told = cupycorr.explain_lookup(x, x, coords)
    assert told.variant in VARIANTS
    assert 0 < told.bound < 1e-3


# What is compiled --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_build_compiles_and_loads():
    device = cupy.cuda.runtime.getDevice()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        loaded = list(pool.map(lambda build: compiler.function(build[1], device), planner.builds(here())))
    assert all(kernel.num_regs <= 255 and kernel.local_size_bytes == 0 for kernel in loaded)
