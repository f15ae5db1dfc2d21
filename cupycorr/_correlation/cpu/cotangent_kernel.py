"""The cotangent of a region, copied by a kernel to where an engine reads it, with zeros at pairs that are not valid.

    packed[m, n, t, x] = cotangent[m, n, t, x]     for valid x of n,   0 for the others

Rows t that are not valid are left as they are. The kernel runs without the interpreter's lock, so that threads do not wait for
each other, and converts 16-bit numbers as it reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..._cpu.llvm import NUMBER, OFFSETS, VALUES, KernelWriter, address, compiled, lock, registers
from ..._dtypes import dtype_name

ROW, COLUMN = 3, 2  # the numbers in a row of either table


class Tables(NamedTuple):
    """The valid rows and columns of a region.

    Attributes
    ----------
    rows : ndarray, shape (ms, 3), int64
        For each displacement row, the first valid row of the packed cotangent, the one after the last, and the row of the volume
        at the first one.
    columns : ndarray, shape (ns, 2), int64
        For each displacement column, the first valid column of the packed cotangent, and the one after the last.
    origin : int
        The column of the volume at the first column of the packed cotangent; it may be negative.
    """

    rows: np.ndarray
    columns: np.ndarray
    origin: int


def is_readable(cotangent: np.ndarray) -> bool:
    """Return whether the kernel can read an array: each element is aligned."""
    return cotangent.flags.aligned and not any(stride % cotangent.itemsize for stride in cotangent.strides)


def copy(cotangent: np.ndarray, tables: Tables, packed: np.ndarray) -> None:
    """Fill the valid rows of the packed cotangent.

    Parameters
    ----------
    cotangent : ndarray, shape (ms, ns, oH, oW)
        The cotangent at the displacements of the region, of any strides.
    tables
        What of it is valid.
    packed : ndarray, shape (ms, ns, rows, columns)
        The memory to fill, C-contiguous in the accumulator's dtype.
    """
    strides = [stride // cotangent.itemsize for stride in cotangent.strides]
    source = address(cotangent) + tables.origin * cotangent.strides[3]
    ms, ns, rows, width = packed.shape
    kernel = _kernel(dtype_name(cotangent.dtype), packed.itemsize)
    kernel(source, address(packed), address(tables.rows), address(tables.columns), ms, ns, rows, width, *strides)


_ARGUMENTS = {
    **dict(source=VALUES, target=VALUES, rows=OFFSETS, columns=OFFSETS),
    **dict.fromkeys(("ms", "ns", "height", "width", "along_m", "along_n", "along_t", "along_x"), NUMBER),
}


def _kernel(dtype: str, itemsize: int) -> Callable[..., None]:
    with lock:
        return _compiled(dtype, itemsize)


@cache
def _compiled(dtype: str, itemsize: int) -> Callable[..., None]:
    return compiled(lambda: _CopyWriter(dtype, itemsize))


class _CopyWriter(KernelWriter):
    """A writer of the kernel for a cotangent of a dtype."""

    def __init__(self, dtype: str, itemsize: int) -> None:
        super().__init__("cotangent", _ARGUMENTS, itemsize)
        b = self.builder
        self.dtype, self.lanes = dtype, registers().widths[0] // itemsize
        self.source = b.bitcast(self.arguments["source"], self.stored(dtype).as_pointer())
        self.contiguous = b.icmp_signed("==", self.arguments["along_x"], self.number(1))
        self.loop(self.arguments["ms"], self._displacement_row)
        b.ret_void()

    def _displacement_row(self, m: Any, _: Sequence[Any]) -> None:
        b, named = self.builder, self.arguments
        begin, end, first = self._entry("rows", m, ROW)

        def displacement(n: Any, _: Sequence[Any]) -> None:
            columns = self._entry("columns", n, COLUMN)
            source = self.at(self.source, b.mul(m, named["along_m"]), b.mul(n, named["along_n"]))
            plane = b.add(b.mul(m, named["ns"]), n)

            def row(index: Any, _: Sequence[Any]) -> None:
                t = b.add(begin, index)
                target = b.mul(b.add(b.mul(plane, named["height"]), t), named["width"])
                at = b.mul(b.add(first, index), named["along_t"])
                self._row(self.at(source, at), self.at(named["target"], target), columns)

            self.loop(b.sub(end, begin), row)

        self.loop(named["ns"], displacement)

    def _entry(self, table: str, index: Any, size: int) -> list:
        """Write the loads of the numbers in a row of a table."""
        row = self.at(self.arguments[table], self.builder.mul(index, self.number(size)))
        return [self.builder.load(self.at(row, self.number(place))) for place in range(size)]

    def _row(self, source: Any, target: Any, columns: Sequence[Any]) -> None:
        """Write the copy of the valid columns of a row, and the zeros before and behind them."""
        b, width = self.builder, self.arguments["width"]
        begin, end = columns

        def zero(first: Any) -> Callable[[Any, int], None]:
            return lambda x, lanes: self.store(self.zero(self.vector(lanes)), self.at(target, first, x))

        def neighbours(x: Any, lanes: int) -> None:
            at = b.add(begin, x)
            self.store(self.widened(self.at(source, at), self.dtype, lanes), self.at(target, at))

        def single(x: Any, _: Sequence[Any]) -> None:
            at = b.add(begin, x)
            value = self.widened(self.at(source, b.mul(at, self.arguments["along_x"])), self.dtype, 1)
            self.store(value, self.at(target, at))

        self.by_vectors(begin, self.lanes, zero(self.number(0)))
        count = b.sub(end, begin)
        with b.if_else(self.contiguous) as (contiguous, spaced):
            with contiguous:
                self.by_vectors(count, self.lanes, neighbours)
            with spaced:
                self.loop(count, single)
        self.by_vectors(b.sub(width, end), self.lanes, zero(end))
