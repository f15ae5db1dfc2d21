"""How arrays lie in memory, as kernels see them: dtype, shape and strides in elements. Knows no operator and no data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from .._dtypes import ELEMENT_TYPES
from .._sharing import CachedProperty

Numbers = tuple[int, ...]

ROWS, CHANNELS_LAST = "rows", "channels last"  # memory orders of images (B, C, H, W)

RUN_BYTES = 16  # one access moves that much where it can


@dataclass(frozen=True)
class Layout:
    """How an array lies in memory: its dtype's name, its shape and its strides in elements, 0 along an axis of length 1."""

    dtype: str
    shape: Numbers
    strides: Numbers

    def __hash__(self) -> int:
        return self._hash

    @CachedProperty
    def _hash(self) -> int:
        """Worked out once, as a problem's."""
        return hash((self.dtype, self.shape, self.strides))

    @property
    def element(self) -> str:
        """The kernels' name of the element type."""
        return ELEMENT_TYPES[self.dtype].c_type

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return ELEMENT_TYPES[self.dtype].itemsize

    @property
    def accumulator(self) -> np.dtype:
        """dtype that sums of such elements are kept in."""
        return ELEMENT_TYPES[self.dtype].accumulator_dtype

    @CachedProperty
    def order(self) -> str:
        """Of images (B, C, H, W): whether neighbours in memory are columns or channels, enough of them to be loaded together."""
        return CHANNELS_LAST if self.strides[1] == 1 and self.shape[1] * self.itemsize >= RUN_BYTES else ROWS

    @property
    def extent(self) -> int:
        """Elements between the first and the last in memory, at most."""
        return sum(abs(stride) * (size - 1) for size, stride in zip(self.shape, self.strides, strict=True) if size)

    def offset(self, *index: int) -> int:
        """Bytes from the first element to another; axes that are not named are at 0."""
        return self.itemsize * sum(i * stride for i, stride in zip(index, self.strides, strict=False))

    def resized(self, *shape: int) -> Layout:
        """A part of the array that begins elsewhere; axes that are not named stay whole."""
        return replace(self, shape=(*shape, *self.shape[len(shape) :]))


def layout(name: str, array: Any) -> Layout:
    """The layout of a NumPy or CuPy array; ``name`` is the argument's, for the message.

    Raises
    ------
    ValueError
        Its elements do not lie at multiples of their size.
    """
    return _layout(name, array.dtype, array.shape, array.strides)


@lru_cache(1024)  # the same object at every call, which caches of plans recognise at a glance
def _layout(name: str, dtype: np.dtype, shape: Numbers, strides: Numbers) -> Layout:
    itemsize = dtype.itemsize
    steps = tuple(0 if size <= 1 else stride for size, stride in zip(shape, strides, strict=True))
    if any(step % itemsize for step in steps):
        raise ValueError(f"{name} must have strides of whole elements, got {name}.strides={strides} of {itemsize} bytes")
    return Layout(dtype.name, shape, tuple(step // itemsize for step in steps))


def new_layout(dtype: str, shape: Sequence[int]) -> Layout:
    """The layout of a volume of ours, in C order, its rows beginning where 16-byte accesses do."""
    run = RUN_BYTES // ELEMENT_TYPES[dtype].itemsize
    strides = [1, ceil_div(shape[-1], run) * run]
    for size in reversed(shape[1:-1]):
        strides.append(strides[-1] * size)
    return Layout(dtype, tuple(shape), tuple(reversed(strides)))


@lru_cache(1024)
def dense_layout(dtype: str, shape: Numbers, order: str = ROWS) -> Layout:
    """The layout of an array in C order, or of images (B, C, H, W) whose channels are neighbours."""
    axes = range(len(shape)) if order == ROWS else (0, 2, 3, 1)
    strides, step = [0] * len(shape), 1
    for axis in reversed(axes):
        strides[axis] = 0 if shape[axis] <= 1 else step
        step *= max(shape[axis], 1)
    return Layout(dtype, tuple(shape), tuple(strides))


def ceil_div(number: int, unit: int) -> int:
    """How many units hold a number of things."""
    return -(-number // unit)
