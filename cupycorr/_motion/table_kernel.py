"""Tables over the positions of a window, and the scores of windows with missing pixels, by two kernels that LLVM compiles.

    N[y, x], S[y, x], Q[y, x] = sums over the window at (y, x) of present, pixels and pixels * pixels
    inverse(N, S, Q) = 1 / sqrt(N Q - S S)        NaN unless N Q - S S > 12 sqrt(area) eps N Q and 2 N >= area

The kernel of `write_tables` computes N, S and inverse(N, S, Q) at every position, with N = area where nothing is missing. The
kernel of `IncompleteScores` computes, from sums that depend on the displacement d and the window x,

    out[d, x] = (N product[d, x] - total1[d, x] total2) * inverse2 * inverse(N, total1[d, x], squares1[d, x])

with N, total2 and inverse2 from tables over the positions in frame 2. Pixels are summed over the rows of a window first, in
registers, and then over its columns by doubling. Nothing is subtracted from a sum, so that a huge value affects its own windows
only. All other operations are those of `scores`, without fused ones: where all sums are integers below 2^53, the results are bit
for bit those of NumPy. This module knows arrays and addresses, and no tile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from .._arguments import Pair
from .._cpu.llvm import NUMBER, OFFSETS, VALUE, VALUES, VECTOR_BYTES, KernelWriter, address, compiled, lock, registers, why_not
from .._cpu.workers import scratch
from .row_kernel import PADDING, check_begin, check_rows, row_count, stride_of
from .scores import least_texture

__all__ = ["IncompleteScores", "PositionTables", "why_not", "write_tables"]

_FLOAT64 = np.dtype(np.float64)
_LANES = VECTOR_BYTES // _FLOAT64.itemsize  # float64 values in the widest vector
_CHUNK = 256  # positions whose tables are computed before those of the next ones, so that sums stay in the first-level cache


@dataclass(frozen=True, slots=True, eq=False)
class PositionTables:
    """Tables with one element per position of a window: float64 arrays with contiguous rows, equal strides and padding.

    ``count`` is the number of present pixels; None where nothing is missing. ``inverse`` is the inverse norm.
    """

    total: np.ndarray
    inverse: np.ndarray
    count: np.ndarray | None = None

    def check(self, columns: int) -> int:
        """Return the number of rows that all tables have, after a check that rows have so many columns and padding."""
        arrays = dict(total=self.total, inverse=self.inverse)
        if self.count is not None:
            arrays["count"] = self.count
        rows = min(row_count(name, array, columns) for name, array in arrays.items())
        if len({array.strides for array in arrays.values()}) > 1:
            raise ValueError(f"strides must be equal, got {[array.strides for array in arrays.values()]}")
        return rows


def write_tables(
    pixels: np.ndarray, shape: Pair, window: Pair, tables: PositionTables, present: np.ndarray | None = None
) -> None:
    """Write the tables of an image. Threads may do so at the same time, each with tables of its own.

    Parameters
    ----------
    pixels : array, float64, 2-D, with contiguous rows
        The image, of which the first ``shape`` rows and columns are used; 0 where a pixel is missing.
    shape : (int, int)
        Rows and columns of the image.
    window : (int, int)
        Rows and columns of a window.
    tables : PositionTables
        Where to write. It has a ``count`` if, and only if, there is ``present``.
    present : array, float64, 2-D, with contiguous rows, optional
        1 where a pixel is present, and 0 where it is missing.

    Every row of the arrays must have `PADDING` elements after the last one that is used. The padding of the image does not affect
    the results, and that of the tables may be overwritten.

    Raises
    ------
    ValueError
        An array is not float64, its rows are not contiguous, or it is too small.
    """
    rows, columns = (size - taps + 1 for size, taps in zip(shape, window, strict=True))
    if min(rows, columns, *window) < 1:
        raise ValueError(f"a window must fit into the image, got {shape=}, {window=}")
    if (present is None) is not (tables.count is None):
        raise ValueError("tables must have a count if, and only if, there is present")
    images = dict(pixels=pixels) if present is None else dict(pixels=pixels, present=present)
    for name, array, most in (*((*each, shape) for each in images.items()), ("tables", None, (rows, columns))):
        found = tables.check(most[1]) if array is None else row_count(name, array, most[1])
        if found < most[0]:
            raise ValueError(f"{name} must have {most[0]} rows, got {found}")
    row_length = -(-(_CHUNK + window[1] + 2 * _LANES) // _LANES) * _LANES
    area = window[0] * window[1]
    with scratch((2 * (len(images) + 1) * row_length + _LANES,), _FLOAT64) as memory:
        _kernel(_TableWriter, present is not None)(
            *(rows, columns, *window, window[1].bit_length()),
            *(address(pixels), stride_of(pixels)),
            *((0, 0) if present is None else (address(present), stride_of(present))),
            *_addresses(tables),
            *(stride_of(tables.total), area, least_texture(area)),
            *(_aligned(address(memory)), row_length),
        )


class IncompleteScores:
    """The scores of rows of windows of which pixels are missing in frame 2 only, prepared once for all rows.

    Parameters
    ----------
    tables : PositionTables
        The tables of frame 2, with a ``count``.
    window : (int, int)
        Rows and columns of a window.
    windows : int
        Number of windows in a row.
    rows2, columns2 : sequence of int
        The row and column in frame 2, for each displacement, of what is at row 0 and column 0 in frame 1.

    Raises
    ------
    ValueError
        A table is not float64, its rows are not contiguous, or it is too small.
    """

    def __init__(
        self,
        tables: PositionTables,
        window: Pair,
        windows: int,
        rows2: Sequence[int] | np.ndarray,
        columns2: Sequence[int] | np.ndarray,
    ) -> None:
        rows, columns = np.asarray(rows2, np.int64), np.asarray(columns2, np.int64)
        if rows.ndim != 1 or rows.shape != columns.shape or min(rows.size, windows, *window) < 1:
            raise ValueError(f"there must be a displacement and a window, got {rows2=}, {columns2=}, {window=}, {windows=}")
        if columns.min() < 0 or tables.count is None:
            raise ValueError(f"columns2 must not be negative, and tables must have a count, got {columns2=}")
        self.windows = windows
        self.rows = range(max(0, -int(rows.min())), tables.check(int(columns.max()) + windows) - int(rows.max()))
        self._tables, self._area = tables, window[0] * window[1]
        self._offsets = rows * stride_of(tables.total) + columns
        self._kernel = _kernel(_ScoreWriter, True)

    def into(self, product: np.ndarray, total1: np.ndarray, squares1: np.ndarray) -> Callable[..., None]:
        """Return a function that computes a row of windows in the place of ``product``, as ``compute(row, begin)``.

        With ``compute(row, begin, count, step)``, it computes so many rows at this distance, each behind the one before it. The
        arrays have one row per displacement, float64, contiguous and with equal strides, and hold the sums of the rows of windows
        from column ``begin`` on: of the products of both frames, of frame 1 and of its squares. A score is NaN where a
        displacement is not a candidate. The sums have `PADDING` elements after the windows, which are not overwritten.
        """
        arrays = dict(product=product, total1=total1, squares1=squares1)
        count = min(row_count(name, array, self.windows) for name, array in arrays.items())
        if count < self._offsets.size or len({array.strides for array in arrays.values()}) > 1:
            raise ValueError(f"there must be {self._offsets.size} rows with equal strides, got {count} rows")
        kernel, rows = self._kernel, self.rows
        last = min(array.shape[1] for array in arrays.values()) - self.windows - PADDING
        sums = [address(array) for array in arrays.values()]
        stride, table_stride = stride_of(product), stride_of(self._tables.total)
        given = self._offsets.size, self.windows, address(self._offsets), *_addresses(self._tables)
        constants = self._area, least_texture(self._area)

        def compute(row: int, begin: int, count: int = 1, step: int = 1) -> None:
            check_rows(rows, row, count, step)
            check_begin(last, begin, count, self.windows)
            first, table_rows = begin * _FLOAT64.itemsize, (row * table_stride, count, step * table_stride)
            kernel(*(each + first for each in sums), stride, *table_rows, *given, *constants)

        return compute


def _addresses(tables: PositionTables) -> tuple[int, int, int]:
    return address(tables.total), address(tables.inverse), 0 if tables.count is None else address(tables.count)


def _aligned(begin: int) -> int:
    return -(-begin // VECTOR_BYTES) * VECTOR_BYTES


# The kernels -------------------------------------------------------------------------------------------------------------------

_TABLE_ARGUMENTS = {
    **dict.fromkeys(("rows", "columns", "window_rows", "window_columns", "passes"), NUMBER),
    **dict(pixels=VALUES, stride=NUMBER, present=VALUES, present_stride=NUMBER),
    **dict.fromkeys(("total", "inverse", "count"), VALUES),
    **dict(out_stride=NUMBER, area=VALUE, least=VALUE, scratch=VALUES, row_length=NUMBER),
}
_SCORE_ARGUMENTS = {
    **dict.fromkeys(("product", "total1", "squares1"), VALUES),
    **dict.fromkeys(("stride", "table_row", "rows", "table_step", "displacements", "windows"), NUMBER),
    **dict(offsets=OFFSETS),
    **dict.fromkeys(("total2", "inverse2", "count"), VALUES),
    **dict(area=VALUE, least=VALUE),
}


def _kernel(writer: Callable[[int, bool], _Writer], missing: bool) -> Callable[..., None]:
    with lock:
        return _compiled(writer, missing)


@cache
def _compiled(writer: Callable[[int, bool], _Writer], missing: bool) -> Callable[..., None]:
    return compiled(lambda: writer(registers().widths[0] // _FLOAT64.itemsize, missing))


class _Writer(KernelWriter):
    """The part that both writers share: vectors of columns and the inverse norm."""

    def __init__(self, name: str, arguments: dict[str, str], lanes: int, missing: bool) -> None:
        super().__init__(name, arguments, _FLOAT64.itemsize)
        self.lanes, self.missing, self.type = lanes, missing, self.vector(lanes)
        self.given = SimpleNamespace(**self.arguments)
        self.area, self.least = (self.vector_of(each, self.type) for each in (self.given.area, self.given.least))
        of_vector = self.ir.FunctionType(self.type, [self.type])
        self.square_root = self.ir.Function(self.module, of_vector, f"llvm.sqrt.v{lanes}f64")

    def inverse_norm(self, count: Any, total: Any, squares: Any) -> Any:
        """Write the inverse norm, rounded after each operation as in `scores.inverse_norm`."""
        b = self.builder
        variance = b.fmul(count, squares)
        least = b.fmul(self.least, variance)
        variance = b.fsub(variance, b.fmul(total, total))
        known = b.fcmp_ordered(">", variance, least)
        if self.missing:
            known = b.and_(known, b.fcmp_ordered(">=", b.fadd(count, count), self.area))
        one, unknown = (self.ir.Constant(self.type, [value] * self.lanes) for value in (1.0, float("nan")))
        return b.select(known, b.fdiv(one, b.call(self.square_root, [variance])), unknown)

    def vectors(self, columns: Any, body: Callable[[Any], None]) -> None:
        """Write a loop over the vectors that cover the columns, of which the last one may reach beyond them."""
        b, lanes = self.builder, self.number(self.lanes)
        self.loop(b.sdiv(b.add(columns, self.number(self.lanes - 1)), lanes), lambda i, _: body(b.mul(i, lanes)))


class _TableWriter(_Writer):
    """A writer of the kernel of tables, from the outermost loop to the innermost.

    Scratch memory has two rows for each image: sums of 1, 2, 4, ... columns, and the window's sums of those in the binary digits
    of its number of columns. The images are the pixels, their squares and, with ``missing``, the mask of the present pixels.
    """

    def __init__(self, lanes: int, missing: bool) -> None:
        super().__init__("tables", _TABLE_ARGUMENTS, lanes, missing)
        b, given = self.builder, self.given
        scratch_rows = [self.at(given.scratch, b.mul(given.row_length, self.number(i))) for i in range(6 if missing else 4)]
        self.sums, self.totals = scratch_rows[::2], scratch_rows[1::2]
        chunks = b.sdiv(b.add(given.columns, self.number(_CHUNK - 1)), self.number(_CHUNK))
        self.loop(given.rows, lambda row, _: self._each_chunk(row, chunks))
        b.ret_void()

    def _each_chunk(self, row: Any, chunks: Any) -> None:
        self.loop(chunks, lambda index, _: self._chunk(row, self.builder.mul(index, self.number(_CHUNK))))

    def _chunk(self, row: Any, begin: Any) -> None:
        """Write the code for a chunk of positions of a row, which begins at column ``begin``."""
        b, given = self.builder, self.given
        left = b.sub(given.columns, begin)
        positions = b.select(b.icmp_signed("<", left, self.number(_CHUNK)), left, self.number(_CHUNK))
        pixels = self.at(given.pixels, b.mul(row, given.stride), begin)
        present = self.at(given.present, b.mul(row, given.present_stride), begin) if self.missing else None
        columns = b.add(positions, b.sub(given.window_columns, self.number(1)))
        self.vectors(columns, lambda x: self._sums_of_rows(x, pixels, present))
        self.vectors(positions, self._clear)
        self.loop(given.passes, lambda _, carried: self._pass(carried, columns, positions), [self.number(1), self.number(0)])
        at = b.add(b.mul(row, given.out_stride), begin)
        self.vectors(positions, lambda x: self._results(x, b.add(at, x)))

    def _sums_of_rows(self, x: Any, pixels: Any, present: Any) -> None:
        """Write the sums over the rows of a window, for one vector of columns of each image."""
        b, given = self.builder, self.given

        def step(r: Any, sums: Sequence[Any]) -> list:
            value = self.load(self.at(pixels, b.mul(r, given.stride), x), self.type)
            found = [b.fadd(sums[0], value), self.multiply_add(sums[1], value, value)]
            if self.missing:
                found.append(b.fadd(sums[2], self.load(self.at(present, b.mul(r, given.present_stride), x), self.type)))
            return found

        found = self.loop(given.window_rows, step, [self.zero(self.type)] * len(self.sums))
        for total, to in zip(found, self.sums, strict=True):
            self.store(total, self.at(to, x))

    def _clear(self, x: Any) -> None:
        for to in self.totals:
            self.store(self.zero(self.type), self.at(to, x))

    def _pass(self, carried: Sequence[Any], columns: Any, positions: Any) -> list:
        """Write a pass: add sums of ``width`` columns if the window has this binary digit, then double them in place.

        ``carried`` is the width and the number of columns that are added already.
        """
        b, given, (width, begin) = self.builder, self.given, carried
        digit = b.and_(given.window_columns, width)
        with b.if_then(b.icmp_signed("!=", digit, self.number(0))):
            self.vectors(positions, lambda x: self._add(x, self.totals, begin))
        twice = b.add(width, width)
        with b.if_then(b.icmp_signed("<=", twice, given.window_columns)):
            # The neighbours of a vector are loaded before they are overwritten, since they follow it.
            self.vectors(b.sub(columns, b.sub(twice, self.number(1))), lambda x: self._add(x, self.sums, width))
        return [twice, b.add(begin, digit)]

    def _add(self, x: Any, to: Sequence[Any], shift: Any) -> None:
        """Write ``to[x] += sums[shift + x]`` for each image."""
        for target, source in zip(to, self.sums, strict=True):
            pair = self.load(self.at(target, x), self.type), self.load(self.at(source, shift, x), self.type)
            self.store(self.builder.fadd(*pair), self.at(target, x))

    def _results(self, x: Any, at: Any) -> None:
        total, squares, *counts = (self.load(self.at(each, x), self.type) for each in self.totals)
        self.store(total, self.at(self.given.total, at))
        self.store(self.inverse_norm(counts[0] if counts else self.area, total, squares), self.at(self.given.inverse, at))
        for count in counts:
            self.store(count, self.at(self.given.count, at))


class _ScoreWriter(_Writer):
    """A writer of the kernel of scores with missing pixels."""

    def __init__(self, lanes: int, missing: bool = True) -> None:
        super().__init__("scores", _SCORE_ARGUMENTS, lanes, missing)
        lanes_type = self.ir.VectorType(self.index, lanes)
        self.numbers = self.ir.Constant(lanes_type, list(range(lanes)))
        self.loop(self.given.displacements, lambda d, _: self._displacement(d))
        self.builder.ret_void()

    def _displacement(self, d: Any) -> None:
        b, given = self.builder, self.given
        sums, position = b.mul(d, given.stride), b.add(given.table_row, b.load(self.at(given.offsets, d)))

        def row(i: Any, _: Sequence[Any]) -> None:
            self._windows(b.add(sums, b.mul(i, given.windows)), b.add(position, b.mul(i, given.table_step)))

        self.loop(given.rows, row)

    def _windows(self, row: Any, position: Any) -> None:
        """Write the scores of a row of windows from its place in the sums and in the tables."""
        b, given = self.builder, self.given
        windows = self.vector_of(given.windows, self.numbers.type)

        def scores(x: Any) -> None:
            out = self.at(given.product, row, x)
            product, total1, squares1 = (
                self.load(self.at(each, row, x), self.type) for each in (given.product, given.total1, given.squares1)
            )
            count, total2, inverse2 = (
                self.load(self.at(each, position, x), self.type) for each in (given.count, given.total2, given.inverse2)
            )
            value = b.fsub(b.fmul(count, product), b.fmul(total1, total2))
            value = b.fmul(b.fmul(value, inverse2), self.inverse_norm(count, total1, squares1))
            # What follows the windows is the next row, whose products are not used yet.
            inside = b.icmp_signed("<", b.add(self.vector_of(x, self.numbers.type), self.numbers), windows)
            self.store(b.select(inside, value, product), out)

        self.vectors(given.windows, scores)
