"""`cupycorr.dask` on CuPy chunks equals `cupycorr` on the whole arrays, and its results are CuPy arrays on their device."""

import dataclasses

import dask
import dask.array as da
import numpy as np
import pytest
from match_cases import dots, noise

import cupycorr
import cupycorr.dask

cupy = pytest.importorskip("cupy")

pytestmark = pytest.mark.gpu

SHAPE = (48, 56)
FRAME1 = noise(SHAPE, 1)
FRAME2 = np.roll(FRAME1, (1, -2), (0, 1))
CALLS = {
    "grid": {"step": 4},
    "masks": {"step": 5, "mask1": ~dots(SHAPE, 15, 1)},
    "consistency": {"step": 6, "consistency": True},
    "points": {"points": [(10, 12), (40, 9), (20, 30.5), (5, 50)]},
}


def on_gpu(array, chunks):
    """Return a Dask array of CuPy chunks."""
    return da.from_array(array, chunks=chunks).map_blocks(cupy.asarray, meta=cupy.empty((0,) * array.ndim, array.dtype))


def assert_same(lazy, want, tolerance, scheduler="sync"):
    """Check that a lazy match has CuPy arrays of the values of another match."""
    (found,) = dask.compute(lazy, scheduler=scheduler)
    for field in dataclasses.fields(want):
        promised, values, expected = (getattr(each, field.name) for each in (lazy, found, want))
        assert (values is None) == (expected is None), field.name
        if expected is not None:
            assert isinstance(values, cupy.ndarray), field.name
            assert isinstance(promised._meta, cupy.ndarray), field.name
            assert (promised.shape, promised.dtype) == (values.shape, values.dtype) == (expected.shape, expected.dtype)
            np.testing.assert_allclose(values.get(), expected.get(), rtol=tolerance, atol=tolerance, err_msg=field.name)


@pytest.mark.parametrize(("dtype", "tolerance"), [("uint8", 0), ("float32", 1e-9)])
@pytest.mark.parametrize("call", CALLS)
def test_chunks_on_a_gpu_give_the_answers_of_the_whole(call, dtype, tolerance):
    frames, options = [frame.astype(dtype) for frame in (FRAME1, FRAME2)], dict(CALLS[call], window=8)
    masks = {name: options.pop(name) for name in ("mask1",) if name in options}
    want = cupycorr.match(*map(cupy.asarray, frames), **{name: cupy.asarray(mask) for name, mask in masks.items()}, **options)
    chunked = {name: on_gpu(mask, 20) for name, mask in masks.items()}
    lazy = cupycorr.dask.match(on_gpu(frames[0], 24), on_gpu(frames[1], 30), **chunked, **options)
    assert lazy.dx.npartitions > 1
    assert_same(lazy, want, tolerance)


def test_threads_match_a_stack_on_a_gpu():
    stack = np.stack([FRAME1, FRAME2, FRAME1])
    lazy = on_gpu(stack, (1, 30, 30))
    found = cupycorr.dask.match(lazy[:-1], lazy[1:], window=8, step=6)
    (fields,) = dask.compute(found, scheduler="threads", num_workers=2)
    for time in range(2):
        want = cupycorr.match(*map(cupy.asarray, stack[time : time + 2]), window=8, step=6)
        np.testing.assert_array_equal(fields.dx[time].get(), want.dx.get())


def test_valid_and_flow_are_cupy_arrays():
    frames = [on_gpu(frame, 24) for frame in (FRAME1, FRAME2)]
    want = cupycorr.match(cupy.asarray(FRAME1), cupy.asarray(FRAME2), window=8, step=4)
    lazy = cupycorr.dask.match(*frames, window=8, step=4)
    valid, flow = dask.compute(lazy.valid(max_median_residual=2, min_score=0.5), lazy.flow, scheduler="sync")
    np.testing.assert_array_equal(valid.get(), want.valid(max_median_residual=2, min_score=0.5).get())
    np.testing.assert_array_equal(flow.get(), want.flow.get())


def test_feature_maps_on_a_gpu():
    rng = np.random.default_rng(0)
    features = [rng.integers(-4, 5, (1, 8, 20, 24)).astype(np.float32) for _ in range(2)]
    options = dict(kernel_size=3, patch_size=3, padding=1)
    want = cupycorr.spatial_correlation_sample(*map(cupy.asarray, features), **options)
    found = cupycorr.dask.spatial_correlation_sample(*(on_gpu(each, (1, 5, 12, 13)) for each in features), **options)
    values = found.compute(scheduler="sync")
    assert isinstance(values, cupy.ndarray)
    assert isinstance(found._meta, cupy.ndarray)
    np.testing.assert_array_equal(values.get(), want.get())


def test_chunks_of_another_kind_than_the_meta_are_refused_in_words():
    wrong = da.from_array(FRAME1, chunks=30).map_blocks(cupy.asarray, meta=np.zeros((0, 0), np.uint8))
    with pytest.raises(TypeError, match="cupy chunks in an array of numpy: pass meta="):
        cupycorr.dask.match(wrong, da.from_array(FRAME2, chunks=30)).dx.compute(scheduler="sync")


def test_frames_of_two_kinds_are_refused():
    with pytest.raises(TypeError, match="frame1 on cupy, frame2 on numpy"):
        cupycorr.dask.match(on_gpu(FRAME1, 24), da.from_array(FRAME2, chunks=24))


def test_chunks_are_computed_on_their_own_device():
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one GPU")

    def on_second(block):
        with cupy.cuda.Device(1):
            return cupy.asarray(block)

    def device(block):
        return np.full(block.shape, block.device.id)

    meta = cupy.empty((0, 0), np.uint8)
    lazy = [da.from_array(frame, chunks=24).map_blocks(on_second, meta=meta) for frame in (FRAME1, FRAME2)]
    found = cupycorr.dask.match(*lazy, window=8, step=4).dx
    # Dask itself joins the chunks of a result on the current device.
    devices = found.map_blocks(device, meta=np.zeros((0, 0), int))
    assert (devices.compute(scheduler="threads", num_workers=2) == 1).all()
