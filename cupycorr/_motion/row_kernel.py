"""The scores of a row of windows at many displacements, by one kernel that LLVM compiles for this machine.

    S12[d, x] = sum over r < window rows, c < window columns of
                    pixels1[row + r, x + c] * pixels2[row + rows2[d] + r, columns2[d] + x + c]
    out[d, x] = (area * S12[d, x] - total1[row, x] * total2[row + rows2[d], columns2[d] + x])
                    * inverse2[row + rows2[d], columns2[d] + x]

with ``area = window rows * window columns``, in float64. Products are summed over the rows of a window first, in registers, and
then over its columns by doubling, as in `window_sums`. Nothing is subtracted from a sum, so that a huge value, an infinity or a
NaN affects its own windows only. The formula of ``out`` is computed without fused operations: where all sums are integers below
2^53, the result is bit for bit that of NumPy. This module knows arrays and addresses, and not what pixels and tables mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from .._arguments import Pair
from .._cpu.llvm import NUMBER, OFFSETS, VALUES, VECTOR_BYTES, KernelWriter, address, compiled, lock, registers, why_not
from .._cpu.workers import scratch

__all__ = ["PADDING", "RowScores", "Tables", "check_begin", "check_rows", "row_count", "stride_of", "why_not"]

_FLOAT64 = np.dtype(np.float64)
_LANES = VECTOR_BYTES // _FLOAT64.itemsize  # float64 values in the widest vector


class _Tile(NamedTuple):
    """A number of successive displacements whose products are summed together, so that they share the loaded pixels.

    Neighbouring displacements are in one row and in neighbouring columns, so that they share the pixels of frame 2 too.
    """

    size: int
    neighbouring: bool


_TILES = (_Tile(8, True), _Tile(4, True), _Tile(4, False), _Tile(1, False))
_LARGEST = max(tile.size for tile in _TILES)
# Elements after the last one used in a row, which the kernel may read and, in the result, write: a tile reads whole vectors.
PADDING = max(-(-(tile.size + _LANES - 1) // _LANES) * _LANES - tile.size for tile in _TILES if tile.neighbouring)

_CHUNK = 256  # windows whose scores are computed before those of the next ones, so that sums stay in the first-level cache


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """The tables of `RowScores`: float64 arrays with contiguous rows.

    ``total1`` has one element per window of frame 1. ``total2`` and ``inverse2`` have one element per position of a window in
    frame 2, and equal strides.
    """

    total1: np.ndarray
    total2: np.ndarray
    inverse2: np.ndarray


class RowScores:
    """The scores of rows of windows at a list of displacements, prepared once for all rows.

    Parameters
    ----------
    pixels1, pixels2 : array, float64, 2-D, with contiguous rows
        A row of windows uses ``windows + window[1] - 1`` columns: of ``pixels1`` from column 0 on, and of ``pixels2`` from column
        ``columns2[d]`` on.
    window : (int, int)
        Rows and columns of a window.
    windows : int
        Number of windows in a row.
    rows2, columns2 : sequence of int
        The row and column in frame 2, for each displacement, of what is at row 0 and column 0 in frame 1. Runs of displacements
        in the same row and in neighbouring columns take the least time.
    tables : Tables, optional
        Without tables, the result is ``S12``.

    Every row of ``pixels1``, ``pixels2`` and the tables must have `PADDING` elements after the last one that is used. Their
    values do not affect the results.

    Raises
    ------
    ValueError
        An array is not float64, its rows are not contiguous, or it is too small.
    """

    def __init__(
        self,
        pixels1: np.ndarray,
        pixels2: np.ndarray,
        window: Pair,
        windows: int,
        rows2: Sequence[int] | np.ndarray,
        columns2: Sequence[int] | np.ndarray,
        tables: Tables | None = None,
    ) -> None:
        rows, columns = np.asarray(rows2, np.int64), np.asarray(columns2, np.int64)
        if rows.ndim != 1 or rows.shape != columns.shape or min(rows.size, windows, *window) < 1:
            raise ValueError(f"there must be a displacement and a window, got {rows2=}, {columns2=}, {window=}, {windows=}")
        self.count, self.windows = rows.size, windows
        self.rows = _rows_inside(pixels1, pixels2, window, windows, rows, columns, tables)
        self._arrays = [pixels1, pixels2, *((tables.total1, tables.total2, tables.inverse2) if tables else ())]
        sums, tiles = _column_sums(window[1]), _tiles(rows.tobytes(), columns.tobytes())
        self._scratch_shape = (sums.rows * sums.row_length + _LANES,)
        strides = [stride_of(each) for each in self._arrays] + [0] * (5 - len(self._arrays))
        self._plan = _plan(
            dict(
                windows=windows,
                chunk=_CHUNK,
                window_rows=window[0],
                window_columns=window[1],
                **dict(zip(("stride1", "stride2", "total1_stride", "table_stride"), strides, strict=False)),
                row_length=sums.row_length,
                first_row=(sums.rows - _LARGEST) * sums.row_length,
                tiles=len(tiles),
                passes=len(sums.passes),
                terms=len(sums.terms),
            ),
            dict(
                tile_list=np.ravel(tiles),
                pass_list=np.ravel(sums.passes),
                term_list=sums.terms,
                offsets2=rows * strides[1] + columns,
                table_offsets=rows * strides[3] + columns,
            ),
        )
        self._kernel = _kernel(tables is not None)

    @contextmanager
    def into(self, out: np.ndarray) -> Iterator[Callable[..., None]]:
        """Return a context with a function that computes ``out[d, begin + x]`` for a row of windows, as ``compute(row, begin)``.

        With ``compute(row, begin, count, step)``, it computes so many rows at this distance, each behind the one before it.
        ``rows`` is the range of possible rows. ``out`` is float64, with one row per displacement. Its rows are contiguous and
        have at least ``begin + windows + PADDING`` elements, of which the padding may be overwritten; that they begin at
        multiples of 64 bytes makes the kernel faster. Call the function inside the context only. Threads may compute rows at the
        same time, each with a context and a result of its own.
        """
        if row_count("out", out, self.windows) < self.count:
            raise ValueError(f"out must have {self.count} rows, got {out.shape=}")
        rows, kernel, last = self.rows, self._kernel, out.shape[1] - self.windows - PADDING
        with scratch(self._scratch_shape, _FLOAT64) as memory:
            aligned = -(-address(memory) // VECTOR_BYTES) * VECTOR_BYTES
            addresses = [address(each) for each in self._arrays] + [0] * (5 - len(self._arrays))
            arguments = (address(self._plan), *addresses)
            to, stride = address(out), stride_of(out)

            def compute(row: int, begin: int, count: int = 1, step: int = 1) -> None:
                check_rows(rows, row, count, step)
                check_begin(last, begin, count, self.windows)
                kernel(row, count, step, *arguments, to + begin * _FLOAT64.itemsize, stride, aligned)

            yield compute


def check_rows(rows: range, row: int, count: int, step: int) -> None:
    """Refuse rows of windows that are not possible ones."""
    if row not in rows or row + (count - 1) * step not in rows or min(count, step) < 1:
        raise ValueError(f"row must be in {rows}, got row={row}" + (f", {count=}, {step=}" if count != 1 else ""))


def check_begin(last: int, begin: int, count: int, windows: int) -> None:
    """Refuse a place for some rows of windows that does not leave room for all of them."""
    last -= (count - 1) * windows
    if not 0 <= begin <= last:
        raise ValueError(f"begin must be from 0 to {last}, got {begin=}")


def _rows_inside(
    pixels1: np.ndarray,
    pixels2: np.ndarray,
    window: Pair,
    windows: int,
    rows2: np.ndarray,
    columns2: np.ndarray,
    tables: Tables | None,
) -> range:
    """Return the rows of windows for which all arrays contain what is used; check the arrays."""
    if columns2.min() < 0:
        raise ValueError(f"columns2 must not be negative, got {columns2=}")
    columns, right, bottom = windows + window[1] - 1, int(columns2.max()), int(rows2.max())
    ends = [row_count("pixels1", pixels1, columns) - window[0] + 1]
    ends.append(row_count("pixels2", pixels2, right + columns) - window[0] + 1 - bottom)
    if tables is not None:
        ends.append(row_count("total1", tables.total1, windows))
        ends += [row_count(name, getattr(tables, name), right + windows) - bottom for name in ("total2", "inverse2")]
        if tables.total2.strides != tables.inverse2.strides:
            raise ValueError(f"strides must be equal, got {tables.total2.strides=}, {tables.inverse2.strides=}")
    return range(max(0, -int(rows2.min())), min(ends))


def row_count(name: str, array: np.ndarray, columns: int) -> int:
    """Return the number of rows of an array, after a check that they are contiguous and have ``columns`` elements and padding."""
    contiguous = array.ndim == 2 and array.strides[1] == _FLOAT64.itemsize and array.strides[0] % _FLOAT64.itemsize == 0
    if array.dtype != _FLOAT64 or not contiguous:
        raise ValueError(
            f"{name} must be float64, 2-D, with contiguous rows, got {array.dtype=}, {array.shape=}, {array.strides=}"
        )
    if array.shape[1] < columns + PADDING:
        raise ValueError(f"{name} must have {columns} columns and {PADDING} of padding, got {array.shape=}")
    return int(array.shape[0])


def stride_of(array: np.ndarray) -> int:
    """Return the distance of neighbouring rows in elements."""
    return array.strides[0] // _FLOAT64.itemsize


# The plan: int64 numbers that the kernel loads -------------------------------------------------------------------------------

_LISTS = ("tile_list", "pass_list", "term_list", "offsets2", "table_offsets")
_FIELDS = (
    *("windows", "chunk", "window_rows", "window_columns", "stride1", "stride2", "total1_stride", "table_stride"),
    *("row_length", "first_row", "tiles", "passes", "terms", *_LISTS),
)
_TILE_FIELDS = 3
_PASS_FIELDS = 4


def _plan(numbers: dict[str, int], lists: dict[str, Any]) -> np.ndarray:
    """Return the numbers in the order of `_FIELDS`, then the lists; the field of a list tells where the list begins."""
    begin = len(_FIELDS)
    for name in _LISTS:
        numbers[name] = begin
        begin += len(lists[name])
    return np.concatenate([[numbers[name] for name in _FIELDS], *(lists[name] for name in _LISTS)]).astype(np.int64)


@lru_cache(maxsize=64)
def _tiles(rows: bytes, columns: bytes) -> list[tuple[int, int, int]]:
    """Return the first displacement of each tile, its number in `_TILES` and its size, from the bytes of int64 arrays."""
    rows2, columns2 = (np.frombuffer(each, np.int64) for each in (rows, columns))
    neighbours = (np.diff(rows2) == 0) & (np.diff(columns2) == 1)
    found = []
    free = [range(rows2.size)]  # the displacements that are in no tile yet
    for number, tile in enumerate(_TILES):
        runs = [part for run in free for part in _split(run, neighbours)] if tile.neighbouring else free
        whole = [len(run) // tile.size * tile.size for run in runs]
        found += [(first, number, tile.size) for run, end in zip(runs, whole, strict=True) for first in run[: end : tile.size]]
        free = _joined(run[end:] for run, end in zip(runs, whole, strict=True))
    return sorted(found)


def _split(run: range, neighbours: np.ndarray) -> list[range]:
    """Return the longest runs of neighbouring displacements in a run of successive ones."""
    breaks = (np.flatnonzero(~neighbours[run.start : run.stop - 1]) + run.start + 1).tolist()
    return [range(*ends) for ends in pairwise([run.start, *breaks, run.stop])]


def _joined(runs: Iterable[range]) -> list[range]:
    """Return the runs of successive displacements, with those joined that follow each other."""
    joined: list[range] = []
    for run in filter(len, runs):
        if joined and joined[-1].stop == run.start:
            run = range(joined.pop().start, run.stop)
        joined.append(run)
    return joined


@dataclass(frozen=True, slots=True)
class _ColumnSums:
    """The additions that sum ``n`` neighbouring columns by doubling, as offsets in elements into scratch memory.

    Scratch memory consists of rows. The kernel fills the last ones, one for each displacement of a tile, with sums over the rows
    of a window, and then takes one of them after the other. Offsets count from the row that it takes; the earlier rows are free.
    A pass ``(target, source, width, margin)`` computes ``[target + x] = [source + x] + [source + width + x]``, sums of twice as
    many columns, for ``margin`` columns more than there are windows. A window's sum is ``sum over the terms of [term + x]``.
    """

    passes: list[tuple[int, int, int, int]]
    terms: list[int]
    row_length: int
    rows: int


@lru_cache(maxsize=64)
def _column_sums(n: int) -> _ColumnSums:
    row_length = -(-(_CHUNK + n + 2 * _LANES) // _LANES) * _LANES
    # The widest sums of the last pass have at most half as many columns as the window: adding two as terms is less than a pass.
    passes: list[tuple[int, int, int, int]] = []
    places = {1: 0}
    while 4 * (width := max(places)) <= n:
        target = -(len(passes) + 1) * row_length
        passes.append((target, places[width], width, n - 2 * width))
        places[2 * width] = target
    terms, begin = [], 0
    for width in sorted(places, reverse=True):  # the widest first, so that most of the vectors of terms are aligned
        while begin + width <= n:
            terms.append(places[width] + begin)
            begin += width
    return _ColumnSums(passes, terms, row_length, _LARGEST + len(passes))


# The kernel --------------------------------------------------------------------------------------------------------------------

_ARGUMENTS = {
    **dict(row=NUMBER, rows=NUMBER, step=NUMBER, plan=OFFSETS),
    **dict.fromkeys(("pixels1", "pixels2", "total1", "total2", "inverse2", "out"), VALUES),
    **dict(out_stride=NUMBER, scratch=VALUES),
}


def _kernel(with_tables: bool) -> Callable[..., None]:
    with lock:
        return _compiled(with_tables)


@cache
def _compiled(with_tables: bool) -> Callable[..., None]:
    return compiled(lambda: _RowWriter(registers().widths[0] // _FLOAT64.itemsize, with_tables))


class _RowWriter(KernelWriter):
    """A writer of the kernel, from the outermost loop to the innermost."""

    def __init__(self, lanes: int, with_tables: bool) -> None:
        super().__init__("row", _ARGUMENTS, _FLOAT64.itemsize)
        self.lanes, self.with_tables, self.type = lanes, with_tables, self.vector(lanes)
        b, given = self.builder, SimpleNamespace(**self.arguments)
        plan = SimpleNamespace(**{name: b.load(self.at(given.plan, self.number(i))) for i, name in enumerate(_FIELDS)})
        for name in _LISTS:
            setattr(plan, name, self.at(given.plan, getattr(plan, name)))
        self.given, self.plan = given, plan
        self.first_row = self.at(given.scratch, plan.first_row)
        self.area = self.vector_of(b.sitofp(b.mul(plan.window_rows, plan.window_columns), self.element), self.type)
        chunks = b.sdiv(b.add(plan.windows, b.sub(plan.chunk, self.number(1))), plan.chunk)
        self.loop(given.rows, lambda i, _: self._windows(i, chunks))
        b.ret_void()

    def _windows(self, number: Any, chunks: Any) -> None:
        """Write the code for a row of windows, the one of this number, one chunk after the other."""
        b, given, plan = self.builder, self.given, self.plan
        row = b.add(given.row, b.mul(number, given.step))
        self.out = self.at(given.out, b.mul(number, plan.windows))
        self.pixels1, self.pixels2, self.total1 = (
            self.at(pointer, b.mul(row, stride))
            for pointer, stride in (
                (given.pixels1, plan.stride1),
                (given.pixels2, plan.stride2),
                (given.total1, plan.total1_stride),
            )
        )
        self.table_row = b.mul(row, plan.table_stride)
        self.loop(chunks, self._chunk)

    def _chunk(self, index: Any, _: Sequence[Any]) -> None:
        """Write the code for a chunk of windows at all displacements, one tile after the other."""
        b, plan = self.builder, self.plan
        begin = b.mul(index, plan.chunk)
        left = b.sub(plan.windows, begin)
        windows = b.select(b.icmp_signed("<", left, plan.chunk), left, plan.chunk)
        self.loop(plan.tiles, lambda i, _: self._tile(i, begin, windows))

    def _tile(self, index: Any, begin: Any, windows: Any) -> None:
        """Write the code for a tile: its products, then the results for one displacement after the other."""
        b, plan = self.builder, self.plan
        fields = self.at(plan.tile_list, b.mul(index, self.number(_TILE_FIELDS)))
        first, kind, size = (b.load(self.at(fields, self.number(field))) for field in range(_TILE_FIELDS))
        for number, tile in enumerate(_TILES):
            with b.if_then(b.icmp_signed("==", kind, self.number(number))):
                self._tile_products(first, tile, begin, windows)
        self.loop(size, lambda d, _: self._window_sums(b.add(first, d), self._row(d), begin, windows))

    def _tile_products(self, first: Any, tile: _Tile, begin: Any, windows: Any) -> None:
        """Write the sums of products over the rows of a window for a tile whose first displacement has the number ``first``."""
        b, plan = self.builder, self.plan
        numbers = [b.add(first, self.number(d)) for d in range(1 if tile.neighbouring else tile.size)]
        pixels1 = self.at(self.pixels1, begin)
        pixels2 = [self.at(self.pixels2, b.load(self.at(plan.offsets2, number)), begin) for number in numbers]
        columns = b.add(windows, b.sub(plan.window_columns, self.number(1)))
        self._vectors(columns, lambda x, _: self._products(x, pixels1, pixels2, tile))

    def _row(self, d: Any) -> Any:
        return self.at(self.first_row, self.builder.mul(self.plan.row_length, d))

    def _products(self, x: Any, pixels1: Any, pixels2: Sequence[Any], tile: _Tile) -> None:
        """Write the sums of products over the rows of the window, for one vector of columns at each displacement of a tile."""
        b, plan = self.builder, self.plan
        pixels1, pixels2 = self.at(pixels1, x), [self.at(each, x) for each in pixels2]

        def step(r: Any, sums: Sequence[Any]) -> list:
            value = self.load(self.at(pixels1, b.mul(r, plan.stride1)), self.type)
            starts = [self.at(each, b.mul(r, plan.stride2)) for each in pixels2]
            others = [other for start in starts for other in self._neighbours(start, tile.size // len(starts))]
            return [self.multiply_add(total, value, other) for total, other in zip(sums, others, strict=True)]

        for d, total in enumerate(self.loop(plan.window_rows, step, [self.zero(self.type)] * tile.size)):
            self.store(total, self.at(self._row(self.number(d)), x))

    def _neighbours(self, pointer: Any, count: int) -> list:
        """Return ``count`` vectors that begin at neighbouring elements.

        Most of them are put together from two others, since a load across the border of two cache lines takes twice the time.
        """
        parts = [self.load(self.at(pointer, self.number(i)), self.type) for i in range(0, count + self.lanes - 1, self.lanes)]
        return [self._shifted(parts[i // self.lanes], parts[-(-i // self.lanes)], i % self.lanes) for i in range(count)]

    def _window_sums(self, d: Any, row: Any, begin: Any, windows: Any) -> None:
        """Write the sums over the columns of a window, and the results, for displacement number ``d``."""
        b, plan = self.builder, self.plan
        shifts = [1 << number for number in range(self.lanes.bit_length() - 1)]  # the widths of the first passes
        for number, shift in enumerate(shifts):
            with b.if_then(b.icmp_signed("<", self.number(number), plan.passes)):
                self._short_pass(self.number(number), shift, row, windows)
        first = self.number(len(shifts))
        self.loop(b.sub(plan.passes, first), lambda i, _: self._long_pass(b.add(first, i), row, windows))
        out = self.at(self.out, b.mul(self.given.out_stride, d), begin)
        total1 = self.at(self.total1, begin)
        offset = b.add(b.add(b.load(self.at(plan.table_offsets, d)), self.table_row), begin)
        total2, inverse2 = self.at(self.given.total2, offset), self.at(self.given.inverse2, offset)

        def results(x: Any, _: Sequence[Any]) -> None:
            value = self._sum_of_terms(x, row)
            if self.with_tables:
                means = b.fmul(self.load(self.at(total1, x), self.type), self.load(self.at(total2, x), self.type))
                value = b.fmul(b.fsub(b.fmul(self.area, value), means), self.load(self.at(inverse2, x), self.type))
            self.store(value, self.at(out, x))

        self._vectors(windows, results)

    def _short_pass(self, number: Any, shift: int, row: Any, windows: Any) -> None:
        """Write a pass whose width is shorter than a vector: it puts vectors together, as `_neighbours` does."""
        target, source, _, columns = self._pass(number, row, windows)

        def step(x: Any, carried: Sequence[Any]) -> list:
            following = self.load(self.at(source, x, self.number(self.lanes)), self.type)
            total = self.builder.fadd(carried[0], self._shifted(carried[0], following, shift))
            self.store(total, self.at(target, x))
            return [following]

        self._vectors(columns, step, [self.load(source, self.type)])

    def _long_pass(self, number: Any, row: Any, windows: Any) -> None:
        """Write a pass whose width is a multiple of a vector."""
        target, source, width, columns = self._pass(number, row, windows)

        def step(x: Any, _: Sequence[Any]) -> None:
            pair = self.load(self.at(source, x), self.type), self.load(self.at(source, x, width), self.type)
            self.store(self.builder.fadd(*pair), self.at(target, x))

        self._vectors(columns, step)

    def _pass(self, number: Any, row: Any, windows: Any) -> tuple:
        """Return the addresses of the target and the source of a pass, its width and its number of columns."""
        b = self.builder
        fields = self.at(self.plan.pass_list, b.mul(number, self.number(_PASS_FIELDS)))
        target, source, width, margin = (b.load(self.at(fields, self.number(field))) for field in range(_PASS_FIELDS))
        return self.at(row, target), self.at(row, source), width, b.add(windows, margin)

    def _sum_of_terms(self, x: Any, row: Any) -> Any:
        b, plan = self.builder, self.plan
        row = self.at(row, x)
        first = self.load(self.at(row, b.load(plan.term_list)), self.type)
        further = self.at(plan.term_list, self.number(1))

        def step(i: Any, sums: Sequence[Any]) -> list:
            return [b.fadd(sums[0], self.load(self.at(row, b.load(self.at(further, i))), self.type))]

        return self.loop(b.sub(plan.terms, self.number(1)), step, [first])[0]

    def _vectors(self, columns: Any, body: Callable[[Any, Sequence[Any]], Any], carried: Sequence[Any] = ()) -> None:
        """Write a loop over the vectors that cover the columns, of which the last one may reach beyond them."""
        b, lanes = self.builder, self.number(self.lanes)
        count = b.sdiv(b.add(columns, self.number(self.lanes - 1)), lanes)
        self.loop(count, lambda i, values: body(b.mul(i, lanes), values), carried)

    def _shifted(self, vector: Any, following: Any, shift: int) -> Any:
        """Return the vector that begins at lane ``shift`` of a vector and ends in the following one."""
        if shift == 0:
            return vector
        numbers = self.ir.Constant(self.ir.VectorType(self.ir.IntType(32), self.lanes), list(range(shift, shift + self.lanes)))
        return self.builder.shuffle_vector(vector, following, numbers)
