"""A kernel that LLVM compiles for copies between arrays of any strides and element types.

    target[i, j, k, x] = source[i, j, k, x - begin]    for begin <= x < end,    else 0

It converts 16-bit numbers several times as fast as NumPy, and runs without the interpreter's lock. Values are rounded to nearest,
ties to even, as by NumPy and `ml_dtypes`, so that both ways give the same bits. This module knows no operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from .._dtypes import ELEMENT_TYPES, dtype_name
from .llvm import NUMBER, VALUES, KernelWriter, address, compiled, in_elements, lock, registers

AXES = 4

_ARGUMENTS = {
    **dict(source=VALUES, target=VALUES),
    **dict.fromkeys((f"length{axis}" for axis in range(AXES)), NUMBER),
    **dict.fromkeys(("begin", "end"), NUMBER),
    **dict.fromkeys((f"{array}{axis}" for array in ("source", "target") for axis in range(AXES)), NUMBER),
}


def takes(source: np.ndarray, target: np.ndarray) -> bool:
    """Return whether the kernel can copy one array to the other: one of their dtypes is the accumulator of the other.

    float64 is not rounded to 16 bits, for which processors have no instruction.
    """
    names = dtype_name(source.dtype), dtype_name(target.dtype)
    return _computed(*names) is not None and in_elements(source) and in_elements(target)


def _computed(source: str, target: str) -> str | None:
    """Return the dtype of the kernel's registers, the accumulator that is one of the two dtypes; None if there is none."""
    if source not in ELEMENT_TYPES or target not in ELEMENT_TYPES:
        return None
    for name, other in ((target, source), (source, target)):
        if ELEMENT_TYPES[other].accumulator == name:
            return name
    return None


def copy(source: np.ndarray, target: np.ndarray, begin: int = 0, end: int | None = None) -> None:
    """Copy an array that `takes` accepts.

    Parameters
    ----------
    source, target
        Arrays of at most four axes with the same lengths but for the last: the source has at least ``end - begin`` columns.
    begin, end
        The range of the target's columns that are copied; the others become 0. By default that is all of them.
    """
    lengths, missing = target.shape, AXES - target.ndim
    end = lengths[-1] if end is None else end
    strides = [
        stride // array.itemsize for array in (source, target) for stride in (*(0,) * missing, *array.strides)
    ]  # of axes that are missing, whose length is 1
    kernel = _kernel(source.dtype, target.dtype)
    kernel(address(source), address(target), *(1,) * missing, *lengths, begin, end, *strides)


def _kernel(source: np.dtype, target: np.dtype) -> Callable[..., None]:
    with lock:
        return _compiled(dtype_name(source), dtype_name(target))


@cache
def _compiled(source: str, target: str) -> Callable[..., None]:
    return compiled(lambda: _CopyWriter(source, target))


class _CopyWriter(KernelWriter):
    """A writer of the loops over the axes."""

    def __init__(self, source: str, target: str) -> None:
        itemsize = ELEMENT_TYPES[_computed(source, target) or target].itemsize
        super().__init__("copy", _ARGUMENTS, itemsize)
        b, named = self.builder, self.arguments
        self.dtypes, self.lanes = (source, target), registers().widths[0] // itemsize
        unit, names = self.number(1), {"source": source, "target": target}
        along = [named[f"{array}{AXES - 1}"] for array in ("source", "target")]
        self.contiguous = b.and_(*(b.icmp_signed("==", each, unit) for each in along))
        # A row of which the copy takes every second element is loaded by whole vectors.
        self.pairs = b.and_(b.icmp_signed("==", along[0], self.number(2)), b.icmp_signed("==", along[1], unit))
        arrays = [b.bitcast(named[name], self.stored(dtype).as_pointer()) for name, dtype in names.items()]
        self._axis(0, arrays)
        b.ret_void()

    def _axis(self, axis: int, arrays: Sequence[Any]) -> None:
        """Write the loop over an axis, and within it those over the later ones."""
        if axis == AXES - 1:
            self._row(*arrays)
            return
        b, named = self.builder, self.arguments

        def index(i: Any, _: Sequence[Any]) -> None:
            strides = named[f"source{axis}"], named[f"target{axis}"]
            self._axis(axis + 1, [self.at(array, b.mul(i, stride)) for array, stride in zip(arrays, strides, strict=True)])

        self.loop(named[f"length{axis}"], index)

    def _row(self, source: Any, target: Any) -> None:
        b, named = self.builder, self.arguments
        begin, end, width = named["begin"], named["end"], named[f"length{AXES - 1}"]
        along_source, along_target = (named[f"{array}{AXES - 1}"] for array in ("source", "target"))
        count = b.sub(end, begin)

        def neighbours(x: Any, lanes: int) -> None:
            self._move(self.at(source, x), self.at(target, begin, x), lanes)

        def single(x: Any, _: Sequence[Any]) -> None:
            self._move(self.at(source, b.mul(x, along_source)), self.at(target, b.mul(b.add(begin, x), along_target)), 1)

        with b.if_else(self.contiguous) as (contiguous, spaced):
            with contiguous:
                self._zeros(target, self.number(0), begin)
                self.by_vectors(count, self.lanes, neighbours)
                self._zeros(target, end, width)
            with spaced:
                self._spaced_zeros(target, self.number(0), begin)
                in_pairs = b.select(self.pairs, b.sub(count, self.number(1)), self.number(0))
                done = self.larger(in_pairs, self.number(0))
                self.by_vectors(done, self.lanes, lambda x, lanes: self._move_firsts(source, self.at(target, begin), x, lanes))
                self.loop(b.sub(count, done), lambda x, _: single(b.add(done, x), ()))
                self._spaced_zeros(target, end, width)

    def _move_firsts(self, source: Any, target: Any, x: Any, lanes: int) -> None:
        """Write the copy of the first elements of pairs. One more element follows them, so that no load leaves the array."""
        pairs = self.widened(self.at(source, self.builder.mul(x, self.number(2))), self.dtypes[0], 2 * lanes)
        self.narrowed(self.shuffled(pairs, pairs, range(0, 2 * lanes, 2)), self.at(target, x), self.dtypes[1])

    def _move(self, source: Any, target: Any, lanes: int) -> None:
        self.narrowed(self.widened(source, self.dtypes[0], lanes), target, self.dtypes[1])

    def _zeros(self, target: Any, begin: Any, end: Any) -> None:
        """Write zeros into a range of columns that adjoin."""

        def columns(x: Any, lanes: int) -> None:
            self.narrowed(self.zero(self.vector(lanes)), self.at(target, begin, x), self.dtypes[1])

        self.by_vectors(self.builder.sub(end, begin), self.lanes, columns)

    def _spaced_zeros(self, target: Any, begin: Any, end: Any) -> None:
        """Write zeros into a range of columns that do not adjoin."""
        b = self.builder

        def column(x: Any, _: Sequence[Any]) -> None:
            at = self.at(target, b.mul(b.add(begin, x), self.arguments[f"target{AXES - 1}"]))
            self.narrowed(self.zero(self.vector(1)), at, self.dtypes[1])

        self.loop(b.sub(end, begin), column)
