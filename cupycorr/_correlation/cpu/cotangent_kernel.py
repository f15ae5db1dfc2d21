"""The cotangent of the one-pixel volume in a region, written by a kernel where an engine reads it.

    packed[m, n, t, x] = sum of cotangent[m, n, i, j] over the windows (i, j) that have (t, x)    for valid x of n,   else 0

With windows of one pixel that is a copy. Rows t that are not valid are left as they are. A row that has the windows of the one
before is copied from it. The kernel runs without the interpreter's lock, so that threads do not wait for each other, and
converts 16-bit numbers as it reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..._arguments import Pair
from ..._cpu.llvm import NUMBER, OFFSETS, VALUES, KernelWriter, address, compiled, lock, registers
from ..._cpu.workers import scratch
from ..._dtypes import dtype_name
from .lattice import Window

ROW, COLUMN, TERM = 3, 2, 2  # the numbers in a row of each table
MOST_TERMS = 4  # windows that have a pixel, along an axis; with more of them, sums of sums take fewer additions


class Terms(NamedTuple):
    """The windows that have each index of an axis, of a range of indices.

    Attributes
    ----------
    table : ndarray of shape (indices, 2), int64
        The first window, and the number of windows.
    step : int
        The distance from one of these windows to the next.
    read : (int, int)
        The range of windows that are in the table.
    """

    table: np.ndarray
    step: int
    read: Pair


class Rows(NamedTuple):
    """The valid rows of a packed cotangent.

    Attributes
    ----------
    table : ndarray of shape (ms, 3), int64
        For each displacement row, the first valid row, the one after the last, and the row of the volume at the first one,
        counted from ``origin``.
    origin : int
        The first row of the volume that is read.
    terms : Terms or None
        The windows that have the rows of the volume from ``origin`` on; None for windows of one pixel.
    """

    table: np.ndarray
    origin: int
    terms: Terms | None


class Columns(NamedTuple):
    """The valid columns of a packed cotangent.

    Attributes
    ----------
    table : ndarray of shape (ns, 2), int64
        For each displacement column, the first valid column, and the one after the last.
    origin : int
        The column of the volume at the first column; it may be negative.
    terms : Terms or None
        The windows that have each column; None for windows of one pixel.
    """

    table: np.ndarray
    origin: int
    terms: Terms | None


def takes(window: Window) -> bool:
    """Return whether the kernel adds the terms of a window fast."""
    return window.taps <= MOST_TERMS * window.stride


def terms(window: Window, windows: int, begin: int, end: int) -> Terms:
    """Return which of so many windows have the indices ``[begin, end)`` of an axis; the stride and the dilation are coprime.

    Window i has the index t at its tap u if ``i stride + u dilation = t``: taps of one index are ``stride`` apart, and windows
    ``dilation``.
    """
    t, stride, dilation = np.arange(begin, end, dtype=np.int64), window.stride, window.dilation
    first_tap = t * pow(dilation, -1, stride) % stride
    last = np.minimum((window.taps - 1 - first_tap) // stride, (t // dilation - first_tap) // stride)
    first = np.maximum(-((first_tap + (-(t - (windows - 1) * stride)) // dilation) // stride), 0)
    count = np.maximum(last - first + 1, 0)
    at = np.where(count > 0, (t - (first_tap + last * stride) * dilation) // stride, 0)
    ends = np.where(count > 0, at + (count - 1) * dilation + 1, 0)
    read = (int(at[count > 0].min()), int(ends.max())) if count.any() else (0, 0)
    return Terms(np.stack((at, count), 1), dilation, read)


def write(cotangent: np.ndarray, rows: Rows, columns: Columns, packed: np.ndarray) -> None:
    """Fill the valid rows of the packed cotangent.

    Parameters
    ----------
    cotangent : ndarray of shape (ms, ns, oH, oW)
        The cotangent at the displacements of the region, of any strides.
    rows, columns
        The valid ones; both or neither have terms.
    packed : ndarray of shape (ms, ns, rows, columns)
        The memory to fill, C-contiguous in the accumulator's dtype.
    """
    strides = [stride // cotangent.itemsize for stride in cotangent.strides]
    arrays = address(packed), address(rows.table), address(columns.table)
    by_row, by_column = rows.terms, columns.terms
    kernel = _kernel(dtype_name(cotangent.dtype), packed.itemsize, by_row is not None)
    if by_row is None or by_column is None:
        source = address(cotangent) + rows.origin * cotangent.strides[2] + columns.origin * cotangent.strides[3]
        kernel(source, *arrays, *packed.shape, *strides)
        return
    begin, end = by_column.read
    with scratch((max(end, 1),), packed.dtype) as line:
        more = address(line), address(by_row.table), address(by_column.table), by_row.step, by_column.step, begin, end
        kernel(address(cotangent), *arrays, *packed.shape, *strides, *more)


_ARGUMENTS = {
    **dict(source=VALUES, target=VALUES, rows=OFFSETS, columns=OFFSETS),
    **dict.fromkeys(("ms", "ns", "height", "width", "along_m", "along_n", "along_t", "along_x"), NUMBER),
}
_MORE_ARGUMENTS = {  # with windows
    **dict(line=VALUES, row_terms=OFFSETS, column_terms=OFFSETS),
    **dict.fromkeys(("row_step", "column_step", "line_begin", "line_end"), NUMBER),
}


def _kernel(dtype: str, itemsize: int, windowed: bool) -> Callable[..., None]:
    with lock:
        return _compiled(dtype, itemsize, windowed)


@cache
def _compiled(dtype: str, itemsize: int, windowed: bool) -> Callable[..., None]:
    return compiled(lambda: (_SumWriter if windowed else _CopyWriter)(dtype, itemsize))


class _Writer(KernelWriter):
    """A writer of the loops over displacements and rows, and of the zeros of a row, for a cotangent of a dtype."""

    def __init__(self, arguments: Mapping[str, str], dtype: str, itemsize: int) -> None:
        super().__init__("cotangent", arguments, itemsize)
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
                target = self.at(named["target"], b.mul(b.add(b.mul(plane, named["height"]), t), named["width"]))
                self.zeros(target, self.number(0), columns[0], self.lanes)
                self._valid_columns(source, b.add(first, index), index, target, columns)
                self.zeros(target, columns[1], named["width"], self.lanes)

            self.loop(b.sub(end, begin), row)

        self.loop(named["ns"], displacement)

    def _entry(self, table: str, index: Any, size: int) -> list:
        """Write the loads of the numbers in a row of a table."""
        row = self.at(self.arguments[table], self.builder.mul(index, self.number(size)))
        return [self.builder.load(self.at(row, self.number(place))) for place in range(size)]

    def _valid_columns(self, source: Any, row: Any, index: Any, target: Any, columns: Sequence[Any]) -> None:
        """Write the valid columns of a row of the volume, which is that of an index among the valid ones."""
        raise NotImplementedError

    def _along(self, source: Any, begin: Any, end: Any, body: Callable[[Any, Any, int], None]) -> None:
        """Write the loop over a range of columns of the source: ``body(column, address, lanes)``, by vectors if they adjoin."""
        b = self.builder
        count = b.sub(end, begin)

        def neighbours(index: Any, lanes: int) -> None:
            x = b.add(begin, index)
            body(x, self.at(source, x), lanes)

        def single(index: Any, _: Sequence[Any]) -> None:
            x = b.add(begin, index)
            body(x, self.at(source, b.mul(x, self.arguments["along_x"])), 1)

        with b.if_else(self.contiguous) as (contiguous, spaced):
            with contiguous:
                self.by_vectors(count, self.lanes, neighbours)
            with spaced:
                self.loop(count, single)


class _CopyWriter(_Writer):
    """A writer of the kernel for windows of one pixel."""

    def __init__(self, dtype: str, itemsize: int) -> None:
        super().__init__(_ARGUMENTS, dtype, itemsize)

    def _valid_columns(self, source: Any, row: Any, index: Any, target: Any, columns: Sequence[Any]) -> None:
        def copy(x: Any, at: Any, lanes: int) -> None:
            self.store(self.widened(at, self.dtype, lanes), self.at(target, x))

        begin, end = columns
        self._along(self.at(source, self.builder.mul(row, self.arguments["along_t"])), begin, end, copy)


class _SumWriter(_Writer):
    """A writer of the kernel for windows, whose sums are those over rows of windows first."""

    def __init__(self, dtype: str, itemsize: int) -> None:
        super().__init__(_ARGUMENTS | _MORE_ARGUMENTS, dtype, itemsize)

    def _valid_columns(self, source: Any, row: Any, index: Any, target: Any, columns: Sequence[Any]) -> None:
        b = self.builder
        terms = self._entry("row_terms", row, TERM)
        before = self._entry("row_terms", self.larger(b.sub(row, self.number(1)), self.number(0)), TERM)
        same = b.and_(*(b.icmp_signed("==", *pair) for pair in zip(terms, before, strict=True)))
        with b.if_else(b.and_(same, b.icmp_signed(">", index, self.number(0)))) as (again, other):
            with again:
                self._copy_of_row_before(target, columns)
            with other:
                self._line(source, terms)
                self._columns(target, columns)

    def _copy_of_row_before(self, target: Any, columns: Sequence[Any]) -> None:
        b, begin = self.builder, columns[0]
        row_before = self.at(target, b.neg(self.arguments["width"]))

        def copy(x: Any, lanes: int) -> None:
            at = b.add(begin, x)
            self.store(self.load(self.at(row_before, at), self.vector(lanes)), self.at(target, at))

        self.by_vectors(b.sub(columns[1], begin), self.lanes, copy)

    def _line(self, source: Any, terms: Sequence[Any]) -> None:
        """Write the sums over the rows of windows, for each column of windows."""
        b, named = self.builder, self.arguments
        first, count = terms
        step = b.mul(named["row_step"], named["along_t"])

        def column(x: Any, at: Any, lanes: int) -> None:
            begin = self.at(at, b.mul(first, named["along_t"]))

            def add(term: Any, total: Sequence[Any]) -> list:
                return [b.fadd(total[0], self.widened(self.at(begin, b.mul(term, step)), self.dtype, lanes))]

            self.store(self.loop(count, add, [self.zero(self.vector(lanes))])[0], self.at(named["line"], x))

        self._along(source, named["line_begin"], named["line_end"], column)

    def _columns(self, target: Any, columns: Sequence[Any]) -> None:
        """Write the sums of the line over the columns of windows."""
        b, named, single = self.builder, self.arguments, self.vector(1)

        def column(index: Any, _: Sequence[Any]) -> None:
            x = b.add(columns[0], index)
            first, count = self._entry("column_terms", x, TERM)

            def add(term: Any, total: Sequence[Any]) -> list:
                at = b.add(first, b.mul(term, named["column_step"]))
                return [b.fadd(total[0], self.load(self.at(named["line"], at), single))]

            self.store(self.loop(count, add, [self.zero(single)])[0], self.at(target, x))

        self.loop(b.sub(columns[1], columns[0]), column)
