"""The dot products of windows, by a kernel: a row of taps of one query at a time in vector registers, channels in their lanes.

    dots[q, r, t] = sum over c of  features[q, c] * map[y(q, r), x(q, t), c],   0 where the tap is outside the map

A dot is summed in the same order wherever it is computed: over the vectors of a segment of channels in each lane, then over the
lanes, then over segments. So its bits depend on the query, the position and the channels only, and not on the window, the
rectangle or the thread that computes it.

Neighbouring queries whose windows are at most a column apart are computed together and share what they load. Nothing outside
a map is read: taps outside along x are computed at the nearest position that is inside and then replaced by 0, so that the
innermost loop has no conditions. Queries are visited in small tiles, map row by map row, so that rows of the map stay in the
first-level cache until all queries of the tile have read them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..._cpu.llvm import NUMBER, OFFSETS, VALUES, address, compiled, lock, registers
from ..problem import Axis, Problem
from .rectangles import TABLE, Memory, Rectangle, RectangleWriter, Span

MOST_TAPS = 12  # taps of a row that are summed at once: with the query's features they fit into 16 registers
SEGMENT = 1024  # bytes of the channels that are summed before those of the next segment
TILE = (4, 4)  # rows and columns of queries
SKIP = -(2**62)  # in the place of an origin y: the dots of the query are not touched
SPREAD = 4  # windows that are so many windows apart, along y, are not visited map row by map row


def segment_channels(itemsize: int) -> int:
    """Return the number of channels of a segment."""
    return SEGMENT // itemsize


@dataclass(frozen=True, slots=True)
class DotsLayout:
    """The layout of the dots of a query: rows of taps, each in whole groups of ``width`` taps."""

    rows: int
    taps: int

    @property
    def groups(self) -> int:
        """The number of groups of a row."""
        return -(-self.taps // MOST_TAPS)

    @property
    def width(self) -> int:
        """The taps of a group."""
        return -(-self.taps // self.groups)

    @property
    def pitch(self) -> int:
        """The elements from one row of taps to the next one."""
        return self.groups * self.width

    @property
    def size(self) -> int:
        """The elements of a query."""
        return self.rows * self.pitch


def dots_layout(problem: Problem) -> DotsLayout:
    """Return the layout of the dots of a problem."""
    return DotsLayout(problem.vertical.taps, problem.horizontal.taps)


@cache
def tap_offsets(axis: Axis, padded: int) -> np.ndarray:
    """Return the offsets of taps from the first one; those of padding are the last tap's."""
    taps = [axis.offset(min(tap, axis.taps - 1)) - axis.first for tap in range(padded)]
    return np.array(taps, np.int64)


class DotProducts:
    """The kernel, with what it needs to know about a problem and the size of a level."""

    def __init__(self, problem: Problem, level: int, accumulator: np.dtype) -> None:
        self.layout = dots_layout(problem)
        self._kernel = _kernel(self.layout.width, accumulator.itemsize)
        vertical, horizontal = problem.vertical, problem.horizontal
        self._tables = tap_offsets(vertical, vertical.taps), tap_offsets(horizontal, self.layout.pitch)
        self._addresses = tuple(map(address, self._tables))
        self._width2 = problem.sizes2[level][1]
        # Along x, windows a pixel apart have all taps but one in common if no tap is padding.
        self._contiguous = vertical.step == 1, horizontal.step == 1 and self.layout.pitch == self.layout.taps

    def compute(
        self,
        rectangles: Span,
        features: int,
        image: int,
        channels: tuple[int, int, int],
        rows: tuple[int, int],
        memory: Memory,
        *,
        first: bool = True,
        clear: bool = True,
    ) -> None:
        """Write the dots of rectangles for the taps in some rows of the map, from the addresses of features and of these rows.

        Parameters
        ----------
        channels
            The number of channels to sum, and those of features and of the map in memory: whole vectors.
        rows
            The first and the last row of the map, and one.
        memory
            The windows, and the dots that are written.
        first
            False to add to the dots instead of replacing them.
        clear
            True to write 0 for the taps in other rows.
        """
        low, high = rows
        sizes = (self._width2, low, high - low, *channels, self.layout.rows, self.layout.groups, memory.queries)
        arrays = features, image, memory.origins, memory.dots
        self._kernel(*rectangles, *arrays, *self._addresses, *sizes, *self._contiguous, not first, clear)


_ARGUMENTS = {
    **TABLE,
    **dict(features=VALUES, image=VALUES, origins=OFFSETS, dots=VALUES, by_row=OFFSETS, by_column=OFFSETS),
    **dict.fromkeys(("width2", "low", "height", "channels", "padded1", "padded2", "rows", "groups", "queries"), NUMBER),
    **dict.fromkeys(("contiguous", "shifts", "adds", "clear"), NUMBER),
}


def _kernel(width: int, itemsize: int) -> Callable[..., None]:
    with lock:
        return _compiled(width, itemsize)


@cache
def _compiled(width: int, itemsize: int) -> Callable[..., None]:
    return compiled(lambda: _DotWriter(width, itemsize))


class ProductWriter(RectangleWriter):
    """A writer of a kernel that sums products over channels: the bits of a dot are the same in all of them."""

    def __init__(self, name: str, arguments: dict[str, str], itemsize: int) -> None:
        super().__init__(name, arguments, itemsize)
        self.lanes = registers().widths[0] // itemsize

    def segments(self, channels: Any) -> Any:
        """Write the number of segments of so many channels."""
        segment = segment_channels(self.itemsize)
        return self.builder.sdiv(self.builder.add(channels, self.number(segment - 1)), self.number(segment))

    def segment(self, channels: Any, number: Any) -> tuple[Any, Any]:
        """Write the first channel of a segment, and its vectors."""
        b, segment = self.builder, self.number(segment_channels(self.itemsize))
        first = b.mul(number, segment)
        return first, b.sdiv(self.smaller(b.sub(channels, first), segment), self.number(self.lanes))

    def products(self, features: Sequence[Any], taps: Sequence[Any], vectors: Any) -> list:
        """Write a vector for each query: the sums of its features times those of each tap, over so many vectors of channels."""
        b, vector, count = self.builder, self.vector(self.lanes), len(taps)

        def step(k: Any, sums: Sequence[Any]) -> list:
            at = b.mul(k, self.number(self.lanes))
            values = [self.load(self.at(feature, at), vector) for feature in features]
            new = list(sums)
            for tap, pointer in enumerate(taps):
                other = self.load(self.at(pointer, at), vector)
                for query, value in enumerate(values):
                    new[query * count + tap] = self.multiply_add(sums[query * count + tap], value, other)
            return new

        totals = self.loop(vectors, step, [self.zero(vector)] * (count * len(features)))
        return [self.lane_sums(totals[begin : begin + count]) for begin in range(0, len(totals), count)]


class _DotWriter(ProductWriter):
    """A writer of the kernel for groups of ``width`` taps, from the outermost loop to the innermost."""

    def __init__(self, width: int, itemsize: int) -> None:
        super().__init__("dots", _ARGUMENTS, itemsize)
        self.width = width
        b, ir, named = self.builder, self.ir, self.arguments
        self.given = given = _Given(**{name: named[name] for name in _Given.__dataclass_fields__})
        self.bits = ir.VectorType(ir.IntType(8 * itemsize), width)
        self.pitch = b.mul(given.groups, self.number(width))
        self.row_length = b.mul(given.width2, given.padded2)
        size = TILE[0] * TILE[1]
        self.has_pairs = 2 * (width + 1) + 3 <= registers().count
        # For each query of a tile: columns of its taps, masks of those inside, first row, number of rows to wait, features, slot.
        self.columns, self.masks, self.first_row, self.delay, self.feature, self.slot = (
            b.alloca(kind, size * count)
            for kind, count in ((self.index, width), (self.bits.element, width), *[(self.index, 1)] * 4)
        )
        self.unit = b.alloca(self.index, size)
        self.each_rectangle(self._rectangle)
        b.ret_void()

    def _rectangle(self, rectangle: Rectangle) -> None:
        """Write the loops over the tiles of a rectangle: column by column, so that map rows are shared in the second cache."""
        b = self.builder
        rows, columns = (
            b.sdiv(b.add(size, self.number(tile - 1)), self.number(tile))
            for size, tile in zip((rectangle.rows, rectangle.columns), TILE, strict=True)
        )

        def column(x: Any, _: Sequence[Any]) -> None:
            self.loop(rows, lambda y, _: self._tile(rectangle, b.mul(y, self.number(TILE[0])), b.mul(x, self.number(TILE[1]))))

        self.loop(columns, column)

    def _tile(self, rectangle: Rectangle, top: Any, left: Any) -> None:
        b = self.builder
        height = self.smaller(b.sub(rectangle.rows, top), self.number(TILE[0]))
        width = self.smaller(b.sub(rectangle.columns, left), self.number(TILE[1]))
        size = b.mul(height, width)

        def place(index: Any, _: Sequence[Any]) -> None:
            y, x = b.add(top, b.sdiv(index, width)), b.add(left, b.srem(index, width))
            b.store(b.add(rectangle.slot, b.add(b.mul(y, rectangle.columns), x)), self.at(self.slot, index))
            feature = b.add(b.mul(y, rectangle.features_row), b.mul(x, self.given.padded1))
            b.store(b.add(rectangle.features, feature), self.at(self.feature, index))

        self.loop(size, place)
        steps = self._steps(size)
        units = self._units(size, width)
        self.loop(self.given.groups, lambda group, _: self._group(rectangle, group, size, units, steps))

    def _steps(self, size: Any) -> Any:
        """Write how long each query waits for its first row, and return the number of steps until all rows are done."""
        b, given = self.builder, self.given

        def bounds(index: Any, carried: Sequence[Any]) -> list:
            origin = b.load(self.at(given.origins, b.load(self.at(self.slot, index))))
            b.store(origin, self.at(self.first_row, index))
            skipped = b.icmp_signed("==", origin, self.number(SKIP))
            low, high = self.smaller(carried[0], origin), self.larger(carried[1], origin)
            return [b.select(skipped, carried[0], low), b.select(skipped, carried[1], high)]

        most = self.number(2**61)
        low, high = self.loop(size, bounds, [most, b.neg(most)])
        apart = self.larger(b.sub(high, low), self.number(0))
        near = b.icmp_signed("<", apart, b.mul(given.rows, self.number(SPREAD)))
        together = b.and_(near, b.icmp_signed("!=", given.contiguous, self.number(0)))

        def wait(index: Any, _: Sequence[Any]) -> None:
            origin = b.load(self.at(self.first_row, index))
            delay = b.select(together, b.sub(origin, low), self.number(0))
            never = b.icmp_signed("==", origin, self.number(SKIP))
            b.store(b.select(never, most, delay), self.at(self.delay, index))

        self.loop(size, wait)
        return b.add(given.rows, b.select(together, apart, self.number(0)))

    def _units(self, size: Any, width: Any) -> Any:
        """Write the list of units, pairs of neighbouring queries and single ones, and return their number.

        The windows of a pair are in the same rows, and in the same columns or in the next ones, so that they share what is read.
        A unit is ``4 first query + 2 (if it is a pair) + distance of the windows``.
        """
        b, given, one = self.builder, self.given, self.number(1)

        def query(index: Any, carried: Sequence[Any]) -> list:
            count, paired = carried
            following = self.smaller(b.add(index, one), b.sub(size, one))
            (y, x), (next_y, next_x) = (self._origin(each) for each in (index, following))
            same_line = b.icmp_signed("!=", b.srem(following, width), self.number(0))  # False for the last query, too
            same_line = b.and_(same_line, b.icmp_signed(">", following, index))
            distance = b.sub(next_x, x)
            near = b.or_(
                b.icmp_signed("==", distance, self.number(0)),
                b.and_(b.icmp_signed("==", distance, one), b.icmp_signed("!=", given.shifts, self.number(0))),
            )
            pair = b.and_(b.and_(same_line, near), b.icmp_signed("==", y, next_y))
            pair = pair if self.has_pairs else self.ir.Constant(self.ir.IntType(1), 0)
            with b.if_then(b.not_(paired)):
                unit = b.add(b.mul(index, self.number(4)), b.select(pair, b.add(distance, self.number(2)), self.number(0)))
                b.store(unit, self.at(self.unit, count))
            return [b.select(paired, count, b.add(count, one)), b.and_(pair, b.not_(paired))]

        return self.loop(size, query, [self.number(0), self.ir.Constant(self.ir.IntType(1), 0)])[0]

    def _origin(self, index: Any) -> tuple[Any, Any]:
        """Write the position of the first tap of a query of the tile."""
        b, slot = self.builder, self.builder.load(self.at(self.slot, index))
        return b.load(self.at(self.given.origins, slot)), b.load(self.at(self.given.origins, self.given.queries, slot))

    def _group(self, rectangle: Rectangle, group: Any, size: Any, units: Any, steps: Any) -> None:
        """Write the loops over segments, steps and units for a group of taps of all rows."""
        b, given = self.builder, self.given
        first_tap = b.mul(group, self.number(self.width))
        self.loop(size, lambda index, _: self._place_taps(index, first_tap))

        def each_segment(number: Any, _: Sequence[Any]) -> None:
            channel, vectors = self.segment(given.channels, number)
            adds = b.or_(b.icmp_signed("!=", given.adds, self.number(0)), b.icmp_signed(">", number, self.number(0)))
            image = self.at(given.image, rectangle.image, channel)
            features = self.at(given.features, channel)

            def unit(index: Any, step: Any) -> None:
                number = b.load(self.at(self.unit, index))
                query = b.ashr(number, self.number(2))
                row = b.sub(step, b.load(self.at(self.delay, query)))
                with b.if_then(b.icmp_unsigned("<", row, given.rows)):
                    self._row(_Unit(query, b.and_(number, self.number(3))), row, first_tap, image, features, vectors, adds)

            self.loop(steps, lambda step, _: self.loop(units, lambda index, _: unit(index, step)))

        self.loop(self.segments(given.channels), each_segment)

    def _place_taps(self, index: Any, first_tap: Any) -> None:
        """Write where the taps of a query are in a row of the map, and which are inside it."""
        b, given = self.builder, self.given
        origin = b.load(self.at(given.origins, given.queries, b.load(self.at(self.slot, index))))
        first = b.mul(index, self.number(self.width))
        for tap in range(self.width):
            x = b.add(origin, b.load(self.at(given.by_column, first_tap, self.number(tap))))
            inside = b.icmp_unsigned("<", x, given.width2)
            b.store(b.sext(inside, self.bits.element), self.at(self.masks, first, self.number(tap)))
            nearest = self.larger(self.smaller(x, b.sub(given.width2, self.number(1))), self.number(0))
            b.store(b.mul(nearest, given.padded2), self.at(self.columns, first, self.number(tap)))

    def _row(self, unit: _Unit, row: Any, first_tap: Any, image: Any, features: Any, vectors: Any, adds: Any) -> None:
        """Write the dots of a row of taps of a unit: their products where the row is among those of the map, else 0."""
        b, given = self.builder, self.given
        y = b.add(b.load(self.at(self.first_row, unit.query)), b.load(self.at(given.by_row, row)))
        y = b.sub(y, given.low)
        image = self.at(image, b.mul(y, self.row_length))
        is_pair = b.icmp_signed("!=", unit.kind, self.number(0))

        def target(query: Any) -> Any:
            slot = b.load(self.at(self.slot, query))
            return self.at(given.dots, b.mul(b.add(b.mul(slot, given.rows), row), self.pitch), first_tap)

        def write(query: Any, sums: Any) -> None:
            before = self.load(target(query), sums.type)
            self.store(b.fadd(b.select(adds, before, self.zero(sums.type)), self.masked(sums, query)), target(query))

        with b.if_else(b.icmp_unsigned("<", y, given.height)) as (inside, outside):
            with inside:
                if self.has_pairs:
                    with b.if_else(is_pair) as (pair, single):
                        with pair:
                            self._pair(unit, image, features, vectors, write)
                        with single:
                            self._single(unit.query, image, features, vectors, write)
                else:
                    self._single(unit.query, image, features, vectors, write)
            with outside, b.if_then(b.and_(b.icmp_signed("!=", given.clear, self.number(0)), b.not_(adds))):
                self.store(self.zero(self.vector(self.width)), target(unit.query))
                with b.if_then(is_pair):
                    self.store(self.zero(self.vector(self.width)), target(b.add(unit.query, self.number(1))))

    def _single(self, query: Any, image: Any, features: Any, vectors: Any, write: Callable[[Any, Any], None]) -> None:
        """Write the sums over the channels of a segment for one query."""
        taps = [self._tap(query, tap, image) for tap in range(self.width)]
        write(query, self.products([self._feature(query, features)], taps, vectors)[0])

    def _pair(self, unit: _Unit, image: Any, features: Any, vectors: Any, write: Callable[[Any, Any], None]) -> None:
        """Write the sums of a pair: those of the columns of either of them for both, of which each takes its own."""
        b, first, second = self.builder, unit.query, self.builder.add(unit.query, self.number(1))
        taps = [*(self._tap(first, tap, image) for tap in range(self.width)), self._tap(second, self.width - 1, image)]
        of_first, of_second = self.products([self._feature(query, features) for query in (first, second)], taps, vectors)
        write(first, self.shuffled(of_first, of_first, range(self.width)))
        own, next_ones = (self.shuffled(of_second, of_second, range(begin, begin + self.width)) for begin in (0, 1))
        write(second, b.select(b.trunc(unit.kind, self.ir.IntType(1)), next_ones, own))

    def _tap(self, query: Any, tap: int, image: Any) -> Any:
        """Return the address of a tap of a query in a row of the map."""
        return self.at(image, self.builder.load(self.at(self.columns, self._first(query), self.number(tap))))

    def _first(self, query: Any) -> Any:
        return self.builder.mul(query, self.number(self.width))

    def _feature(self, query: Any, features: Any) -> Any:
        return self.at(features, self.builder.load(self.at(self.feature, query)))

    def masked(self, sums: Any, query: Any) -> Any:
        """Write the sums of a query, with 0 for the taps that are outside, whatever their sums are."""
        b = self.builder
        masks = b.load(b.bitcast(self.at(self.masks, self._first(query)), self.bits.as_pointer()), align=self.itemsize)
        return b.bitcast(b.and_(b.bitcast(sums, self.bits), masks), sums.type)


class _Unit(NamedTuple):
    """Queries that are computed at once: the first one, and 0 for it alone, or 2 plus the distance of the next query's window."""

    query: Any
    kind: Any


@dataclass(frozen=True, slots=True)
class _Given:
    """The arguments of the kernel."""

    features: Any
    image: Any
    origins: Any
    dots: Any
    by_row: Any
    by_column: Any
    width2: Any
    low: Any
    height: Any
    channels: Any
    padded1: Any
    padded2: Any
    rows: Any
    groups: Any
    queries: Any
    contiguous: Any
    shifts: Any
    adds: Any
    clear: Any
