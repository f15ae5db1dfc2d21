"""Memory layouts of arrays as kernels see them: dtype, shape and strides in elements. Knows no operator and no data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from .._dtypes import ELEMENT_TYPES, INDEX_TYPES, ElementType, IndexType
from .._sharing import CachedProperty
from .limits import VECTOR_BYTES

Numbers = tuple[int, ...]

ROWS, CHANNELS_LAST = "rows", "channels last"  # memory orders of images (B, C, H, W)


@dataclass(frozen=True)
class Layout:
    """The name of an array's dtype, its shape and its strides in elements, which are 0 along axes of length 1."""

    dtype: str
    shape: Numbers
    strides: Numbers

    def __hash__(self) -> int:
        return self._hash

    @CachedProperty
    def _hash(self) -> int:
        """Computed once: caches of plans hash layouts at every call."""
        return hash((self.dtype, self.shape, self.strides))

    @CachedProperty
    def element(self) -> str:
        """The kernels' name of the element type."""
        return self._row.c_type

    @CachedProperty
    def itemsize(self) -> int:
        """The size of an element in bytes."""
        return self._row.itemsize

    @property
    def _row(self) -> ElementType | IndexType:
        return ELEMENT_TYPES.get(self.dtype) or INDEX_TYPES[self.dtype]

    @CachedProperty
    def accumulator(self) -> np.dtype:
        """The dtype that sums of such elements are kept in."""
        return ELEMENT_TYPES[self.dtype].accumulator_dtype

    @CachedProperty
    def order(self) -> str:
        """The memory order of images (B, C, H, W): channels last where a vector of channels is contiguous, else rows.

        Arrays with another number of axes count as rows.
        """
        images = len(self.shape) == 4 and self.strides[1] == 1 and self.shape[1] * self.itemsize >= VECTOR_BYTES
        return CHANNELS_LAST if images else ROWS

    @property
    def extent(self) -> int:
        """The largest distance in memory between two of its elements, in elements."""
        return sum(abs(stride) * (size - 1) for size, stride in zip(self.shape, self.strides, strict=True) if size)

    def offset(self, *index: int) -> int:
        """Return the bytes from the first element to the one at an index; axes that are not named are at 0."""
        return self.itemsize * sum(i * stride for i, stride in zip(index, self.strides, strict=False))

    def resized(self, *shape: int) -> Layout:
        """Return the layout of a slice with these sizes; axes that are not named keep theirs."""
        return replace(self, shape=(*shape, *self.shape[len(shape) :]))


def layout(name: str, array: Any) -> Layout:
    """Return the layout of a NumPy or CuPy array; ``name`` is the argument's, for the message.

    Raises
    ------
    ValueError
        A stride is not a multiple of the element size.
    """
    shape, itemsize = array.shape, array.dtype.itemsize
    in_bytes = tuple(0 if size <= 1 else stride for size, stride in zip(shape, array.strides, strict=True))
    if any(stride % itemsize for stride in in_bytes):
        raise ValueError(f"{name} must have strides of whole elements, got {name}.strides={array.strides} of {itemsize} bytes")
    return Layout(array.dtype.name, shape, tuple(stride // itemsize for stride in in_bytes))


@lru_cache(1024)
def new_layout(dtype: str, shape: Numbers) -> Layout:
    """Return a C-ordered layout for a volume in the workspace, with rows padded so that each begins at 16 bytes."""
    vector = VECTOR_BYTES // ELEMENT_TYPES[dtype].itemsize
    strides = [1, ceil_div(shape[-1], vector) * vector]
    for size in reversed(shape[1:-1]):
        strides.append(strides[-1] * size)
    return Layout(dtype, tuple(shape), tuple(reversed(strides)))


@lru_cache(1024)
def dense_layout(dtype: str, shape: Numbers, order: str = ROWS) -> Layout:
    """Return the layout of a packed array in C order, or of images (B, C, H, W) whose channels are contiguous."""
    axes = range(len(shape)) if order == ROWS else (0, 2, 3, 1)
    strides, step = [0] * len(shape), 1
    for axis in reversed(axes):
        strides[axis] = 0 if shape[axis] <= 1 else step
        step *= max(shape[axis], 1)
    return Layout(dtype, tuple(shape), tuple(strides))


def ceil_div(number: int, unit: int) -> int:
    """Return the quotient, rounded up."""
    return -(-number // unit)
