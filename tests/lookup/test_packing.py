"""Maps are packed channels last, whatever their dtype and strides, and one that is packed already is used in place."""

import numpy as np
import pytest
from cases import DTYPES
from layouts import LAYOUTS
from memory import GUARD

from cupycorr._cpu import llvm
from cupycorr._lookup.cpu import packing

pytestmark = pytest.mark.skipif(llvm.why_not() is not None, reason=str(llvm.why_not()))

SHAPES = [(2, 5, 3, 4), (1, 40, 7, 19), (1, 1, 1, 16), (2, 33, 5, 70), (1, 17, 2, 131), (1, 0, 3, 20), (1, 64, 1, 1)]


def maps(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(DTYPES[dtype])


def packed(x):
    """Return the packed maps, after a check that nothing outside was written."""
    accumulator = np.dtype(np.float64 if x.dtype == np.float64 else np.float32)
    shape = packing.packed_shape(x.shape, accumulator)
    memory = np.full(np.prod(shape) + 200, GUARD, accumulator)
    inside = memory[100:-100].reshape(shape)
    inside[...] = np.nan
    for part in packing.parts(x, inside):
        packing.pack(part)
    assert (memory[:100] == GUARD).all()
    assert (memory[-100:] == GUARD).all()
    return inside


def assert_packed(found, x):
    channels = x.shape[1]
    np.testing.assert_array_equal(found[..., :channels], x.transpose(0, 2, 3, 1).astype(found.dtype))
    assert (found[..., channels:] == 0).all()
    assert found.shape[-1] * found.itemsize % 64 == 0


@pytest.mark.covering(2)
@pytest.mark.parametrize("part_bytes", [packing.PART_BYTES, 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packed_maps_are_the_maps_with_their_channels_last(monkeypatch, shape, dtype, part_bytes):
    monkeypatch.setattr(packing, "PART_BYTES", part_bytes)
    x = maps(shape, dtype)
    assert_packed(packed(x), x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_maps_of_any_strides_are_packed(dtype, layout):
    x = LAYOUTS[layout](maps((2, 21, 6, 37), dtype))
    assert_packed(packed(x), x)


def channels_last(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


@pytest.mark.parametrize(("dtype", "channels"), [("float32", 16), ("float32", 48), ("float64", 8)])
def test_maps_that_are_packed_already_are_used_in_place(dtype, channels):
    x = channels_last(maps((3, channels, 5, 6), dtype))
    for some in (x, x[1:], x[::2], x[:, :, 2:4], x[:, :, :1]):
        view = packing.in_place(some, x.dtype)
        assert np.shares_memory(view, x)
        np.testing.assert_array_equal(view, some.transpose(0, 2, 3, 1))


NOT_PACKED = {
    "rows of columns": maps((2, 16, 5, 6), "float32"),
    "channels that are no whole vectors": channels_last(maps((2, 15, 5, 6), "float32")),
    "some of the channels": channels_last(maps((2, 32, 5, 6), "float32"))[:, :16],
    "some of the columns": channels_last(maps((2, 16, 5, 6), "float32"))[..., 1:],
    "rows upside down": channels_last(maps((2, 16, 5, 6), "float32"))[:, :, ::-1],
    "another dtype": channels_last(maps((2, 16, 5, 6), "float16")),
}


@pytest.mark.parametrize("x", NOT_PACKED.values(), ids=NOT_PACKED)
def test_maps_of_any_other_form_are_not_used_in_place(x):
    assert packing.in_place(x, np.dtype(np.float32)) is None


def test_packed_memory_begins_at_a_cache_line():
    for size in (1, 5, 1000):
        with packing.scratch((size, 16), np.dtype(np.float32)) as memory:
            assert memory.ctypes.data % 64 == 0
            assert memory.shape == (size, 16)
