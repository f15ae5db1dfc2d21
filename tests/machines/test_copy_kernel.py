"""The copy kernel moves and converts values like NumPy, at any strides, and writes nothing else."""

import itertools

import ml_dtypes
import numpy as np
import pytest

from cupycorr._cpu import copy_kernel, llvm, register_tile

pytestmark = pytest.mark.skipif(register_tile.why_not() is not None, reason=str(register_tile.why_not()))

DTYPES = {name: np.dtype(name) for name in ("float16", "float32", "float64")} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
SUMS = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}
PAIRS = sorted({pair for name, total in SUMS.items() for pair in ((name, total), (total, name))})
pairs = pytest.mark.parametrize(("source", "target"), PAIRS)


def bits(array):
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")


def laid(array, layout):
    """Return an equal array: dense, with the axes in reverse order in memory, or with gaps and columns in either order."""
    if layout == "reversed":
        return np.ascontiguousarray(array.T).T
    if layout == "pairs":
        wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), 99, array.dtype)
        view = wide[..., ::2]
        view[...] = array
        return view
    if layout == "gaps":
        wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), 99, array.dtype)
        view = wide[..., ::-2]
        view[...] = array
        return view
    return array.copy()


LAYOUTS = ("dense", "reversed", "gaps", "pairs")


@pytest.mark.covering(2)
@pairs
@pytest.mark.parametrize("width", [1, 3, 4, 15, 16, 21, 37, 70])
@pytest.mark.parametrize("layouts", list(itertools.product(LAYOUTS, LAYOUTS)), ids="-".join)
@pytest.mark.parametrize("axes", [2, 3, 4])
def test_a_copy_has_the_values_between_zeros(source, target, width, layouts, axes):
    before, after = 5, 2
    shape = (2, 3, 2, width)[-axes:]
    values = laid(np.random.default_rng(width).standard_normal(shape).astype(DTYPES[source]), layouts[0])
    got = laid(np.full((*shape[:-1], before + width + after), 7, DTYPES[target]), layouts[1])
    around = got.base.copy() if got.base is not None else None
    assert copy_kernel.takes(values, got)
    copy_kernel.copy(values, got, before, before + width)
    want = np.zeros_like(got)
    want[..., before : before + width] = values
    np.testing.assert_array_equal(bits(got), bits(want))
    if layouts[1] in ("gaps", "pairs"):
        between = slice(0 if layouts[1] == "gaps" else 1, None, 2)
        np.testing.assert_array_equal(
            bits(got.base[..., between]), bits(around[..., between]), "columns between those of the view"
        )


def test_the_whole_array_is_copied_by_default():
    values = np.random.default_rng(0).standard_normal((4, 33), dtype=np.float32)
    got = np.empty_like(values)
    copy_kernel.copy(values, got)
    np.testing.assert_array_equal(got, values)


@pytest.fixture(params=[True, False], ids=["instructions for float16", "none"])
def with_or_without_instructions(request, monkeypatch):
    """Have kernels compiled for a processor that converts float16, or for one that does not."""
    if request.param and not llvm.converts_float16():
        pytest.skip("this processor does not convert float16")
    monkeypatch.setattr(llvm, "converts_float16", lambda: request.param)
    copy_kernel._compiled.cache_clear()
    yield
    copy_kernel._compiled.cache_clear()


@pytest.mark.usefixtures("with_or_without_instructions")
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_every_16_bit_number_becomes_its_float32(name):
    values = np.arange(2**16, dtype=np.uint16).view(DTYPES[name])
    got = np.empty(values.shape, np.float32)
    copy_kernel.copy(values[None], got[None])
    want = values.astype(np.float32)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(bits(got)[~np.isnan(want)], bits(want)[~np.isnan(want)])


@pytest.mark.usefixtures("with_or_without_instructions")
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_float32_is_rounded_as_by_numpy(name):
    rng = np.random.default_rng(1)
    neighbours = np.arange(2**16, dtype=np.uint16).view(DTYPES[name]).astype(np.float32).view(np.uint32)[:, None]
    step = {"float16": 2**13, "bfloat16": 2**16}[name]  # from one number to the next, in the bits of float32
    near = (neighbours + np.array([0, 1, step // 2 - 1, step // 2, step // 2 + 1], np.uint32)).ravel().view(np.float32)
    values = np.concatenate((near, rng.integers(0, 2**32, 2**16, dtype=np.uint32).view(np.float32)))
    got = np.empty(values.shape, DTYPES[name])
    copy_kernel.copy(values[None], got[None])
    with np.errstate(all="ignore"):
        want = values.astype(DTYPES[name])
    number = ~np.isnan(values)
    np.testing.assert_array_equal(np.isnan(got), ~number)
    np.testing.assert_array_equal(bits(got)[number], bits(want)[number])


REFUSED = {
    "float64 to 16 bits": (np.zeros((2, 3)), np.zeros((2, 3), np.float16)),
    "integers": (np.zeros((2, 3), np.int32), np.zeros((2, 3), np.int32)),
    "elements that are not aligned": (np.zeros(25, np.uint8)[1:].view(np.float32).reshape(2, 3), np.zeros((2, 3), np.float32)),
}


@pytest.mark.parametrize(("source", "target"), REFUSED.values(), ids=REFUSED)
def test_other_arrays_are_left_to_numpy(source, target):
    assert not copy_kernel.takes(source, target)
