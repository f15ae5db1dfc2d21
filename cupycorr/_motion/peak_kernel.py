"""The peaks of windows, by one kernel that LLVM compiles for this machine: `peaks.find_peaks` for contiguous float64 scores.

    highest[x]  = max over d of scores[d, x]
    index[x]    = the shortest displacement d with scores[d, x] >= highest[x] - TIE / unit[x]
    second[x]   = max over d of scores[d, x] where d is outside the 3 x 3 neighbourhood of index[x]

A window is a lane of a vector. Displacements are divided into segments, rectangles of neighbours in the search grid. The kernel
reads all scores once, for the highest score of each segment. It reads again only the segments with a score next to the highest
one, to find the index, and those around the peak, to find the second peak. A block of windows is finished before the next one, so
that what is read again is in the first-level cache. Results are computed with the operations of `peaks.find_peaks` and have the
same bits. Nothing beyond the windows is read: the last block overlaps the one before it. This module knows scores and the search
grid, and not how scores are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from .._arguments import Pair
from .._cpu.llvm import NUMBER, OFFSETS, VALUES, KernelWriter, address, compiled, lock, registers, why_not
from .geometry import Search, order_by_length
from .peaks import TIE, Peaks

__all__ = ["find_peaks", "why_not"]

_FLOAT64 = np.dtype(np.float64)
_VECTORS = 2  # of windows in a block: as many neighbouring scores are read of each displacement
_SEGMENT = 9  # displacements in a segment, at most
# The rows of the kernel's memory: the units, the index, the scores and those of the four neighbours. Scratch memory follows them.
_UNIT, _INDEX, _SCORE, _SECOND, _BESIDE = range(5)
_ROWS = _BESIDE + 4


def find_peaks(scores: np.ndarray, search: Search, count: int, unit: np.ndarray) -> Peaks:
    """Find the peaks of scores, which are not changed. Threads may do so at the same time.

    Parameters
    ----------
    scores : array, float64, (displacements, n), with contiguous rows
        The scores in units of the windows' ``unit``. NaN and negative infinity mean that a displacement is not a candidate.
    search : Search
        The displacements.
    count : int
        The number of pixels compared.
    unit : array, (n,)
        What the results are multiplied by. A window whose unit is NaN has no match.

    Raises
    ------
    ValueError
        An array has another type or shape.
    """
    windows, grid, block = _checked(scores, search, unit), _grid(search), _block(scores.shape[1])
    memory = np.empty(_ROWS * windows + (grid.segments + 1) * block.windows)
    rows = memory[: _ROWS * windows].reshape(_ROWS, windows)
    rows[_UNIT] = unit
    stride = scores.strides[0] // _FLOAT64.itemsize
    _kernel(block)(address(scores), stride, windows, grid.numbers_address, grid.table_address, address(memory))
    return Peaks(rows[_INDEX].view(np.int64), rows[_SCORE], rows[_SECOND], rows[_BESIDE:], count)


def _checked(scores: np.ndarray, search: Search, unit: np.ndarray) -> int:
    """Return the number of windows, after a check of the arrays."""
    if scores.dtype != _FLOAT64 or scores.ndim != 2 or len(scores) != search.count:
        raise ValueError(f"scores must be float64, ({search.count}, n), got {scores.dtype=}, {scores.shape=}")
    windows = scores.shape[1]
    if scores.strides[0] % _FLOAT64.itemsize or (windows > 1 and scores.strides[1] != _FLOAT64.itemsize):
        raise ValueError(f"scores must have contiguous rows, got {scores.strides=}")
    if unit.shape != (windows,):
        raise ValueError(f"unit must have one element per window, got {unit.shape=}, {scores.shape=}")
    return int(windows)


# The search grid: numbers that the kernel loads --------------------------------------------------------------------------------

_FIELDS = ("displacements", "rows", "columns", "segments")
_SEGMENT_FIELDS = 2  # the first displacement and the number of displacements
_AROUND = 4  # the first and the last row, and the first and the last column, of the peaks whose neighbourhood meets a segment


class _Grid(NamedTuple):
    """The search grid as int64 numbers and as a table of float64 values, and their addresses.

    The numbers are `_FIELDS`, then the displacement of each rank and 0 for a window without a match, then the segments. The table
    is the row, the column and the rank of each displacement, then the peaks around each segment. It is float64 since the lanes of
    the scores compare them.
    """

    segments: int
    numbers: np.ndarray
    table: np.ndarray
    numbers_address: int
    table_address: int


@lru_cache(maxsize=32)
def _grid(search: Search) -> _Grid:
    order, rank = order_by_length(search)
    segments = np.array(_segments(search.tried))
    first, rows, columns = segments.T
    count = rows * columns
    numbers = np.concatenate([[search.count, *search.tried, len(segments)], order, [0], np.stack([first, count], 1).ravel()])
    top, left = np.divmod(first, search.tried[1])
    around = np.stack([top - 1, top + rows, left - 1, left + columns], 1).ravel()
    table = np.concatenate([*np.divmod(np.arange(search.count), search.tried[1]), rank, around]).astype(_FLOAT64)
    numbers = numbers.astype(np.int64)
    return _Grid(len(segments), numbers, table, address(numbers), address(table))


def _segments(tried: Pair) -> list[tuple[int, int, int]]:
    """Return the first displacement of each segment, and its rows and columns: whole rows, or a part of one."""
    rows, columns = tried
    if columns > _SEGMENT:
        parts = -(-columns // _SEGMENT)
        cuts = [columns * part // parts for part in range(parts + 1)]
        return [(row * columns + begin, 1, end - begin) for row in range(rows) for begin, end in pairwise(cuts)]
    height = _SEGMENT // columns
    return [(row * columns, min(height, rows - row), columns) for row in range(0, rows, height)]


# The kernel --------------------------------------------------------------------------------------------------------------------


class _Block(NamedTuple):
    """The windows whose peaks are found together: some vectors of so many lanes."""

    lanes: int
    vectors: int

    @property
    def windows(self) -> int:
        """The number of windows."""
        return self.lanes * self.vectors


@cache
def _blocks() -> tuple[_Block, ...]:
    """Return the blocks from the largest to a single window."""
    lanes = registers().widths[0] // _FLOAT64.itemsize
    return _Block(lanes, _VECTORS), _Block(lanes, 1), _Block(1, 1)


def _block(windows: int) -> _Block:
    """Return the largest block that has no more windows than there are, so that nothing beyond them is read or written."""
    return next((block for block in _blocks() if block.windows <= windows), _blocks()[-1])


def _kernel(block: _Block) -> Callable[..., None]:
    with lock:
        return _compiled(block)


@cache
def _compiled(block: _Block) -> Callable[..., None]:
    return compiled(lambda: _PeakWriter(block))


_ARGUMENTS = dict(scores=VALUES, stride=NUMBER, windows=NUMBER, numbers=OFFSETS, table=VALUES, memory=VALUES)


class _PeakWriter(KernelWriter):
    """A writer of the kernel, from the outermost loop to the innermost.

    Scratch memory has the highest score of each segment in each window of a block, then the highest scores of the windows.
    """

    def __init__(self, block: _Block) -> None:
        super().__init__("peaks", _ARGUMENTS, _FLOAT64.itemsize)
        self.block, self.type = block, self.vector(block.lanes)
        self.integers = self.ir.VectorType(self.index, block.lanes)
        b, given = self.builder, SimpleNamespace(**self.arguments)
        grid = SimpleNamespace(**{name: b.load(self.at(given.numbers, self.number(i))) for i, name in enumerate(_FIELDS)})
        grid.order = self.at(given.numbers, self.number(len(_FIELDS)))
        grid.segment_list = self.at(grid.order, grid.displacements, self.number(1))
        grid.row, grid.column, grid.rank, grid.around = (
            self.at(given.table, b.mul(grid.displacements, self.number(i))) for i in range(4)
        )
        self.given, self.grid = given, grid
        self.scratch = self._result(_ROWS, self.number(0))
        self.nowhere = self._everywhere(self.ir.Constant(self.element, -np.inf))
        self._blocks()
        b.ret_void()

    def _blocks(self) -> None:
        """Write a loop over the blocks that cover the windows, of which the first and the last may overlap others.

        All others begin at a multiple of the vector in memory, if the rows of the scores do so too.
        """
        b, given, size = self.builder, self.given, self.number(self.block.windows)
        position = b.lshr(b.ptrtoint(given.scores, self.index), self.number(_FLOAT64.itemsize.bit_length() - 1))
        before = b.and_(position, self.number(self.block.lanes - 1))
        last = b.sub(given.windows, size)
        count = b.sdiv(b.add(b.add(given.windows, before), self.number(self.block.windows - 1)), size)

        def block(i: Any, _: Sequence[Any]) -> None:
            begin = b.sub(b.mul(i, size), before)
            begin = b.select(b.icmp_signed("<", begin, self.number(0)), self.number(0), begin)
            self._block(b.select(b.icmp_signed("<", begin, last), begin, last))

        self.loop(count, block)

    def _block(self, begin: Any) -> None:
        """Write the code for the block of windows that begins at window ``begin``."""
        for v, highest in enumerate(self._highest_of_segments(begin)):
            self.store(highest, self._highest(self.grid.segments, self.number(v)))

        def vector(v: Any, _: Sequence[Any]) -> None:
            window = self.builder.add(begin, self.builder.mul(v, self.number(self.block.lanes)))
            scores, unit = self.at(self.given.scores, window), self.load(self._result(_UNIT, window), self.type)
            peak = self._peak(self._rank(v, scores, unit))
            self.store(peak.index, self._result(_INDEX, window))
            found = [*self._scores_around(scores, peak), self._second(v, scores, peak)]
            for row, each in zip((_SCORE, *range(_BESIDE, _ROWS), _SECOND), found, strict=True):
                self.store(self._in_units(each, unit), self._result(row, window))

        self.loop(self.number(self.block.vectors), vector)

    def _highest_of_segments(self, begin: Any) -> list:
        """Write the highest scores of each segment into scratch memory, for all vectors at once; return those of all scores."""
        starts = [self.at(self.given.scores, begin, self.number(v * self.block.lanes)) for v in range(self.block.vectors)]
        lowest = [self.nowhere] * self.block.vectors

        def segment(s: Any, highest: Sequence[Any]) -> list:
            def displacement(d: Any, found: Sequence[Any]) -> list:
                scores = [self.load(self.at(start, self._row_of(d)), self.type) for start in starts]
                return [self._higher(*each) for each in zip(scores, found, strict=True)]

            found = self._displacements(s, displacement, lowest)
            for v, each in enumerate(found):
                self.store(each, self._highest(s, self.number(v)))
            return [self._higher(*each) for each in zip(found, highest, strict=True)]

        return self.loop(self.grid.segments, segment, lowest)

    def _rank(self, v: Any, scores: Any, unit: Any) -> Any:
        """Return the lowest rank of the scores that are equal to the highest one but for rounding errors.

        It is the number of displacements where no score is: comparisons with NaN are false.
        """
        b, grid = self.builder, self.grid
        tie = b.fdiv(self._everywhere(self.ir.Constant(self.element, TIE)), unit)
        least = b.fsub(self.load(self._highest(grid.segments, v), self.type), tie)
        none = self._everywhere(b.sitofp(grid.displacements, self.element))

        def segment(s: Any, ranks: Sequence[Any]) -> list:
            candidates = b.fcmp_ordered(">=", self.load(self._highest(s, v), self.type), least)

            def displacement(d: Any, ranks: Sequence[Any]) -> list:
                rank = self._everywhere(b.load(self.at(grid.rank, d)))
                lower = b.select(b.fcmp_ordered("<", rank, ranks[0]), rank, ranks[0])
                equal = b.fcmp_ordered(">=", self.load(self.at(scores, self._row_of(d)), self.type), least)
                return [b.select(equal, lower, ranks[0])]

            return self._displacements(s, displacement, ranks, self._any(candidates))

        return self.loop(grid.segments, segment, [none])[0]

    def _peak(self, rank: Any) -> SimpleNamespace:
        """Return the index of the displacement of a rank, and its row and column."""
        grid = self.grid
        index = self._gather(grid.order, self.builder.fptosi(rank, self.integers), self.integers)
        return SimpleNamespace(index=index, row=self._gather(grid.row, index), column=self._gather(grid.column, index))

    def _scores_around(self, scores: Any, peak: SimpleNamespace) -> list:
        """Return the score of the peak, and those above, below, left and right of it."""
        b, given, grid = self.builder, self.given, self.grid
        lanes = self.ir.Constant(self.integers, list(range(self.block.lanes)))
        at = b.add(b.mul(peak.index, self._everywhere(given.stride)), lanes)
        down, across = (self._everywhere(each) for each in (b.mul(grid.columns, given.stride), given.stride))
        bottom, right = (
            self._everywhere(b.sitofp(b.sub(each, self.number(1)), self.element)) for each in (grid.rows, grid.columns)
        )
        neighbours = (
            (b.fcmp_ordered(">", peak.row, self.zero(self.type)), b.sub(at, down)),
            (b.fcmp_ordered("<", peak.row, bottom), b.add(at, down)),
            (b.fcmp_ordered(">", peak.column, self.zero(self.type)), b.sub(at, across)),
            (b.fcmp_ordered("<", peak.column, right), b.add(at, across)),
        )
        found = [self._gather(scores, at)]
        for exists, beside in neighbours:
            found.append(b.select(exists, self._gather(scores, b.select(exists, beside, at)), self.nowhere))
        return found

    def _second(self, v: Any, scores: Any, peak: SimpleNamespace) -> Any:
        """Return the second peaks of a vector of windows."""
        b, grid = self.builder, self.grid

        def segment(s: Any, second: Sequence[Any]) -> list:
            around = self.at(grid.around, b.mul(s, self.number(_AROUND)))
            top, bottom, left, right = (self._everywhere(b.load(self.at(around, self.number(i)))) for i in range(_AROUND))
            rows = b.and_(b.fcmp_ordered(">=", peak.row, top), b.fcmp_ordered("<=", peak.row, bottom))
            columns = b.and_(b.fcmp_ordered(">=", peak.column, left), b.fcmp_ordered("<=", peak.column, right))
            near = self._any(b.and_(rows, columns))
            outside = self._higher(self.load(self._highest(s, v), self.type), second[0])

            def displacement(d: Any, second: Sequence[Any]) -> list:
                dy, dx = (
                    b.fsub(self._everywhere(b.load(self.at(table, d))), centre)
                    for table, centre in ((grid.row, peak.row), (grid.column, peak.column))
                )
                # The square of the distance is 2 at the corners of the neighbourhood, and at least 4 outside it.
                square = self.multiply_add(b.fmul(dy, dy), dx, dx)
                far = b.fcmp_ordered(">", square, self._everywhere(self.ir.Constant(self.element, 2.0)))
                score = self.load(self.at(scores, self._row_of(d)), self.type)
                return [b.select(far, self._higher(score, second[0]), second[0])]

            return self._displacements(s, displacement, [b.select(near, second[0], outside)], near)

        return self.loop(grid.segments, segment, [self.nowhere])[0]

    def _in_units(self, scores: Any, unit: Any) -> Any:
        """Return scores multiplied by the unit; negative infinity where one of them is NaN."""
        b = self.builder
        return b.select(b.fcmp_unordered("uno", scores, unit), self.nowhere, b.fmul(scores, unit))

    def _displacements(
        self, s: Any, body: Callable[[Any, Sequence[Any]], list], carried: Sequence[Any], condition: Any = None
    ) -> list:
        """Write a loop over the displacements of a segment, which is left out unless the condition is true."""
        b = self.builder
        fields = self.at(self.grid.segment_list, b.mul(s, self.number(_SEGMENT_FIELDS)))
        first, count = (b.load(self.at(fields, self.number(i))) for i in range(_SEGMENT_FIELDS))
        if condition is not None:
            count = b.select(condition, count, self.number(0))
        return self.loop(count, lambda i, values: body(b.add(first, i), values), carried)

    def _row_of(self, displacement: Any) -> Any:
        """Return the offset of the scores of a displacement."""
        return self.builder.mul(displacement, self.given.stride)

    def _highest(self, s: Any, v: Any) -> Any:
        """Return the address of the highest scores of a segment, for a vector of the block."""
        b = self.builder
        vector = b.add(b.mul(s, self.number(self.block.vectors)), v)
        return self.at(self.scratch, b.mul(vector, self.number(self.block.lanes)))

    def _result(self, row: int, window: Any) -> Any:
        """Return the address of the element of a window in a row of memory."""
        return self.at(self.given.memory, self.builder.mul(self.given.windows, self.number(row)), window)

    def _higher(self, scores: Any, others: Any) -> Any:
        """Return the larger of two scores, and the second one if the first is NaN."""
        return self.builder.select(self.builder.fcmp_ordered(">", scores, others), scores, others)

    def _any(self, mask: Any) -> Any:
        """Return whether the mask is true in some lane."""
        b, bits = self.builder, self.ir.IntType(self.block.lanes)
        return b.icmp_unsigned("!=", b.bitcast(mask, bits), self.ir.Constant(bits, 0))

    def _everywhere(self, value: Any) -> Any:
        return self.vector_of(value, self.integers if value.type == self.index else self.type)

    def _gather(self, pointer: Any, offsets: Any, vector: Any = None) -> Any:
        """Return the vector of the elements at some offsets."""
        b = self.builder
        found = self.ir.Constant(vector or self.type, self.ir.Undefined)
        for lane in map(self.number, range(self.block.lanes)):
            found = b.insert_element(found, b.load(self.at(pointer, b.extract_element(offsets, lane))), lane)
        return found
