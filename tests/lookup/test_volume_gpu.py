"""The lookup in a volume on a device, through CuPy itself: the suite's cases, and what only a device has.

Without a device these tests are skipped; `test_volume_emulated` shows what can be shown without one.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from cases import DTYPES
from hypothesis import given, settings
from on_device import Account, back, cupy, fill, held, here, pooled, sent
from volume_cases import BOTH, NAMED, Case, lookups
from volume_emulated import assert_right, wanted

import cupycorr
from cupycorr import volume_lookup, volume_lookup_vjp
from cupycorr._gpu import compiler, plan
from cupycorr._volume_lookup.gpu import planner

pytestmark = pytest.mark.gpu

FLOW = Case((2, 5, 9, 6, 7), dict(patch_size=(3, 4), order="dx", scale=-0.3))
STEREO = Case((2, 3, 40, 37), dict(patch_size=9), "float16")
EACH = {"flow": FLOW, "stereo": STEREO}
each = pytest.mark.parametrize("case", EACH.values(), ids=EACH.keys())
variants = pytest.mark.parametrize("variant", ["auto", "direct"])


def arrays_of(case):
    """Return the arrays of a case on the current device: the cotangent, the volume and coords."""
    return [sent(case.cotangent()), *map(sent, case.arrays())]


def answer(case, arrays, variant="auto"):
    """Return the output and both gradients, from arrays that are on a device."""
    cotangent, volume, coords = arrays
    out = volume_lookup(volume, coords, **case.parameters, variant=variant)
    return [out, *volume_lookup_vjp(cotangent, volume, coords, **case.parameters, variant=variant, needs=BOTH)]


def assert_is_the_oracles(case, results):
    """Check results against the oracle, and their kind, dtypes and memory."""
    volume, coords = case.arrays()
    for result, dtype in zip(results, (volume.dtype, volume.dtype, coords.dtype), strict=True):
        assert type(result) is cupy.ndarray
        assert result.flags.c_contiguous
        assert result.dtype == dtype
    assert_right([back(result) for result in results], wanted(case, case.cotangent()), volume.dtype)


def assert_same_bits(results, others):
    for one, two in zip(results, others, strict=True):
        assert back(one).tobytes() == back(two).tobytes()


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
    case = replace(case, dtype=dtype)
    assert_is_the_oracles(case, answer(case, arrays_of(case), variant))


@pytest.mark.parametrize("dtype", DTYPES)
@each
def test_every_dtype_equals_the_oracle(case, dtype):
    case = case.of(dtype)
    assert_is_the_oracles(case, answer(case, arrays_of(case)))


@settings(max_examples=100, deadline=None)
@given(case=lookups())
def test_drawn_lookups_equal_the_oracle(case):
    assert_is_the_oracles(case, answer(case, arrays_of(case)))


@each
def test_the_same_inputs_give_the_same_bits(case):
    arrays = arrays_of(case)
    first, *others = [answer(case, arrays) for _ in range(3)]
    for other in others:
        assert_same_bits(first, other)


VIEWS = {
    "permuted": lambda x: cupy.ascontiguousarray(x.transpose(0, 3, 4, 1, 2)).transpose(0, 3, 4, 1, 2),
    "cropped": lambda x: cupy.pad(x, [(0, 0), (1, 2), (2, 1), (3, 0), (0, 4)], constant_values=7)[:, 1:-2, 2:-1, 3:, :-4],
    "reversed": lambda x: cupy.ascontiguousarray(x[::-1, ::-1, ::-1, ::-1, ::-1])[::-1, ::-1, ::-1, ::-1, ::-1],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_any_strides_give_the_same_bits(view):
    cotangent, volume, coords = arrays_of(FLOW)
    want = answer(FLOW, [cotangent, volume, coords])
    assert_same_bits(answer(FLOW, [view(cotangent), view(volume), coords[:, ::-1].copy()[:, ::-1]]), want)


@pytest.mark.parametrize("dtype", DTYPES)
@each
def test_out_is_written_in_its_own_dtype_and_strides_and_returned_itself(case, dtype):
    _, volume, coords = arrays_of(case.of("float32"))
    want = back(volume_lookup(volume, coords, **case.parameters)).astype(DTYPES[dtype])
    shape = want.shape
    for out in (cupy.empty(shape, DTYPES[dtype]), cupy.empty((*shape[:-1], 2 * shape[-1]), DTYPES[dtype])[..., ::2]):
        assert volume_lookup(volume, coords, **case.parameters, out=out) is out
        assert np.array_equal(back(out), want)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_coordinates_that_are_not_in_the_slice_give_nan_or_zero_at_their_query_only(value):
    arrays = arrays_of(FLOW)
    clean = [back(result) for result in answer(FLOW, arrays)]
    arrays[2][0, 1, 2, 3] = value
    out, volume, coords = [back(result) for result in answer(FLOW, arrays)]
    assert (volume[0, 2, 3] == 0).all()
    for got, before in ((out, clean[0]), (coords, clean[2])):
        here_only = got[0, ..., 2, 3]
        assert (np.isnan(here_only) if not np.isfinite(value) else here_only == 0).all()
        got[0, ..., 2, 3] = before[0, ..., 2, 3]
        assert got.tobytes() == before.tobytes()


# Streams, devices and graphs ---------------------------------------------------------------------------------------------------


@each
def test_work_comes_after_what_its_stream_was_given_before(side, case):
    with side:
        fresh = arrays_of(case)
        arrays = [cupy.zeros_like(array) for array in fresh]
        answer(case, arrays)  # compiles, and gets the pool its memory
        side.synchronize()
        with held(side) as over:
            fill(arrays, fresh)
            results = answer(case, arrays)
            assert not over.done
        assert_is_the_oracles(case, results)


@each
def test_another_device_than_the_current_one_answers_for_its_arrays(case):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("fewer than two devices")
    with cupy.cuda.Device(1):
        arrays = arrays_of(case)
    with cupy.cuda.Device(0):
        results = answer(case, arrays)
        assert {result.device.id for result in results} == {1}
    with cupy.cuda.Device(1):
        assert_is_the_oracles(case, results)


@each
def test_a_captured_call_answers_for_new_data_at_every_replay(side, case):
    with side:
        arrays = arrays_of(case)
        answer(case, arrays)
        side.synchronize()
        side.begin_capture()
        results = answer(case, arrays)
        graph = side.end_capture()
        for seed in (1, 2):
            other = replace(case, seed=seed)
            fill(arrays, arrays_of(other))
            for result in results:
                result.fill(0)
            graph.launch(side)
            assert_is_the_oracles(other, results)


@each
def test_a_call_takes_no_memory_but_its_results(case):
    arrays = arrays_of(case)
    answer(case, arrays)
    cupy.cuda.Device().synchronize()
    with pytest.MonkeyPatch.context() as patched, Account() as account:
        patched.setattr(plan, "allocate_from_cupy", lambda size: pytest.fail("a workspace was allocated"))
        results = answer(case, arrays)
        assert account.most <= pooled(*results)


# What is refused ---------------------------------------------------------------------------------------------------------------


def test_what_the_cpu_has_is_refused_beside_arrays_of_a_device():
    volume, coords = (sent(x) for x in FLOW.arrays())
    with pytest.raises(TypeError, match="coords must be of the inputs' kind"):
        volume_lookup(volume, back(coords))
    for variant in ("simd", "reference"):
        with pytest.raises(NotImplementedError, match="input is a CuPy array, needs a NumPy array"):
            volume_lookup(volume, coords, variant=variant)


def test_explain_names_the_variant_and_a_bound_of_this_device():
    told = cupycorr.explain_volume_lookup(*(sent(x) for x in FLOW.arrays()))
    assert told.variant == "direct"
    assert 0 < told.bound < 1e-3
    assert told.workspace == 0


@pytest.mark.slow
def test_every_build_compiles_and_loads():
    device = cupy.cuda.runtime.getDevice()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        loaded = list(pool.map(lambda build: compiler.function(build[1], device), planner.builds(here())))
    assert all(kernel.num_regs <= 128 and kernel.local_size_bytes == 0 for kernel in loaded)
