"""CuPy arrays through `match`, without a GPU: on a stand-in that computes by NumPy and, as CuPy does, refuses NumPy's arrays."""

import dataclasses
import functools
import sys

import fake_cupy
import numpy as np
import pytest
from fake_cupy import H100, Fake, installed, ndarray, on_cupy
from match_cases import dots, noise, some_slow

import cupycorr
from cupycorr._motion import by_operator, costs

SHAPE = (30, 36)
MAY_TAKE_NUMPY = ("asarray", "array", "ndarray", "full")


def refuse(values):
    """Fail where CuPy would: it takes no array of NumPy, which it would have to copy to the GPU."""
    for value in values:
        if isinstance(value, (list, tuple)):
            refuse(value)
        elif type(value) is np.ndarray and value.ndim:
            raise TypeError(f"Unsupported type {type(value)}")


class Strict(Fake):
    """A stand-in whose functions refuse NumPy's arrays."""

    def __getattr__(self, name):
        found = super().__getattr__(name)
        if isinstance(found, type) or not callable(found) or name in MAY_TAKE_NUMPY:
            return found

        @functools.wraps(found)
        def function(*arguments, **options):
            refuse(arguments)
            return found(*arguments, **options)

        return function


def array_ufunc(self, ufunc, method, *inputs, out=None, **options):
    """Compute by NumPy what operators and methods of the stand-in's arrays compute."""
    refuse(inputs)
    plain = [np.asarray(each) if isinstance(each, ndarray) else each for each in inputs]
    if out is not None:
        options["out"] = tuple(np.asarray(each) for each in out)
    result = getattr(ufunc, method)(*plain, **options)
    if out is not None:
        return out[0]
    if isinstance(result, tuple):
        return tuple(on_cupy(each, self._device) for each in result)
    return on_cupy(result, self._device)


def by_numpy(input1, input2, **parameters):
    """Compute the operator by NumPy on the memory of the stand-in's arrays."""
    refuse([input1, input2])
    return on_cupy(cupycorr.spatial_correlation_sample(np.asarray(input1), np.asarray(input2), **parameters))


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    """The stand-in with two devices, and the operator by NumPy. It is gone after the test, since the context ends first."""

    def launch(*arguments):
        pytest.fail("a kernel was bound")

    monkeypatch.setattr(by_operator, "spatial_correlation_sample", by_numpy)
    with installed(monkeypatch, launch), monkeypatch.context() as strict:
        strict.setitem(sys.modules, "cupy", Strict(H100, H100))
        strict.setattr(ndarray, "__array_ufunc__", array_ufunc, raising=False)
        yield


def on_gpu(value):
    """Return the arrays of an argument on the stand-in's GPU."""
    if isinstance(value, (tuple, list)):
        return tuple(on_gpu(each) for each in value)
    return on_cupy(value) if isinstance(value, np.ndarray) else value


RANDOM = np.random.default_rng(0)
POINTS = RANDOM.uniform(-3, 36, (25, 2))
FIELD = (8, 10)
CALLS = {
    "grid": {},
    "whole pixels": {"subpixel": False},
    "parabola": {"subpixel": "parabola", "search": ((0, 0), (-5, 3))},
    "masks": {"mask1": ~dots(SHAPE, 9, 1), "mask2": ~dots(SHAPE, 9, 2)},
    "one mask": {"mask2": ~dots(SHAPE, 9, 2)},
    "points": {"points": POINTS},
    "points and masks": {"points": POINTS, "mask1": ~dots(SHAPE, 9, 1), "mask2": ~dots(SHAPE, 9, 2)},
    "offset": {"step": 3, "offset": (2, -3)},
    "offset fields": {"step": 3, "offset": tuple(RANDOM.integers(-3, 4, (2, *FIELD)))},
    "offset of points": {"points": POINTS, "offset": tuple(RANDOM.integers(-3, 4, (2, 25)))},
    "consistency": {"consistency": True},
    "consistency of points": {"consistency": True, "points": POINTS, "mask1": ~dots(SHAPE, 9, 1)},
    "step": {"step": (5, 9), "consistency": True},
}


def same_on_cupy(frames, options):
    """Check that a call on CuPy arrays gives CuPy arrays of NumPy's values; return both matches."""
    want = cupycorr_of_numpy(frames, options)
    got = cupycorr.match(*map(on_cupy, frames), **{name: on_gpu(value) for name, value in options.items()})
    for field in dataclasses.fields(want):
        values, expected = getattr(got, field.name), getattr(want, field.name)
        assert (values is None) == (expected is None), field.name
        if expected is not None:
            assert type(values) is ndarray, field.name
            assert values.dtype == expected.dtype, field.name
            np.testing.assert_allclose(np.asarray(values), expected, rtol=1e-9, atol=1e-9, err_msg=field.name)
    return got, want


def cupycorr_of_numpy(frames, options):
    """Return the match of NumPy arrays; the operator by NumPy takes and returns the stand-in's arrays."""
    replaced = by_operator.spatial_correlation_sample
    by_operator.spatial_correlation_sample = cupycorr.spatial_correlation_sample
    try:
        return cupycorr.match(*frames, **options)
    finally:
        by_operator.spatial_correlation_sample = replaced


@pytest.mark.covering(2)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("variant", some_slow(["operator", "fft", "auto"], ["operator", "fft"]))
def test_cupy_arrays_give_cupy_arrays_of_the_same_values(variant, call, dtype):
    frames = [noise(SHAPE, seed) for seed in (1, 2)]
    if dtype == "float32":
        frames = [np.float32(f) / np.float32(7) for f in frames]
        frames[1][dots(SHAPE, 60, 5)] = np.nan
    same_on_cupy(frames, {"window": 7, "variant": variant, **CALLS[call]})


@pytest.mark.parametrize("variant", ["operator", "fft"])
def test_colour_templates_and_flow_on_cupy(variant):
    frames = [noise((*SHAPE, 3), seed) for seed in (1, 2)]
    got, want = same_on_cupy(frames, {"window": 7, "step": 3, "variant": variant})
    assert type(got.flow) is ndarray
    np.testing.assert_allclose(np.asarray(got.flow), want.flow, atol=1e-9)
    image = noise((60, 70), 3)
    same_on_cupy([image[20:31, 30:42], image], {"window": (11, 12), "search": None, "variant": variant})


@pytest.mark.parametrize("variant", ["operator", "fft"])
def test_slabs_on_cupy(variant, monkeypatch):
    monkeypatch.setattr(costs, "_LARGEST_AREA", 70**2)
    monkeypatch.setattr(costs, "_GPU_TASK", 96 * 23**2)
    image, shares = noise((100, 110), 3), []
    frames = [image[20:31, 30:42], image]
    same_on_cupy(frames, {"window": (11, 12), "search": None, "variant": variant, "progress": shares.append})
    assert len(shares) > 4


def test_valid_and_median_residual_on_cupy():
    frames = noise(SHAPE, 1), np.roll(noise(SHAPE, 1), (1, -2), (0, 1))
    got, want = same_on_cupy(frames, {"window": 7, "variant": "fft", "consistency": True})
    tests = {"min_score": 0.5, "min_peak_ratio": 1.2, "min_count": 40, "consistency": 1, "max_median_residual": 2}
    for options in ({}, {"allow_edge": True}, *({name: value} for name, value in tests.items()), tests):
        valid = got.valid(**options)
        assert type(valid) is ndarray
        np.testing.assert_array_equal(np.asarray(valid), want.valid(**options))
    assert want.valid(**tests).any()
    for radius in (1, 2):
        residual = cupycorr.median_residual(got.dy, got.dx, radius)
        assert type(residual) is ndarray
        np.testing.assert_allclose(np.asarray(residual), cupycorr.median_residual(want.dy, want.dx, radius), rtol=1e-9)


def test_points_and_offsets_may_be_of_numpy_or_cupy():
    frames = [on_cupy(noise(SHAPE, seed)) for seed in (1, 2)]
    options = {"window": 7, "variant": "fft"}
    starts = np.ones(25, int)
    want = cupycorr.match(*frames, points=POINTS.tolist(), offset=(1, -1), **options)
    for change in (lambda values: values, on_cupy):
        found = cupycorr.match(*frames, points=change(POINTS), offset=(change(starts), change(-starts)), **options)
        np.testing.assert_array_equal(np.asarray(found.dx), np.asarray(want.dx))
        assert type(found.dx) is ndarray


def test_simd_is_refused_for_cupy():
    frames = [on_cupy(noise(SHAPE, seed)) for seed in (1, 2)]
    with pytest.raises(NotImplementedError, match="simd"):
        cupycorr.match(*frames, window=7, variant="simd")


def test_arrays_are_made_on_the_device_of_the_frames():
    frames = [on_cupy(noise(SHAPE, seed), 1) for seed in (1, 2)]
    found = cupycorr.match(*frames, window=7, variant="fft")
    for field in dataclasses.fields(found):
        values = getattr(found, field.name)
        assert values is None or values.device.id == 1, field.name
    assert fake_cupy.Device.current == 0
    assert found.valid(max_median_residual=2).device.id == 1
