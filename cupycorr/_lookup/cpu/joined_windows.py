"""Joined windows: the windows of several lookups of a pixel at a level as one rectangle of taps, whose factors are sums.

    bounds    the smallest rectangle that holds what the windows of a query have inside the map
    join      factors[y, x, q] = sum over the lookups k of  the factor of lookup k for the position (y, x)

A network looks up nearly the same windows in each iteration. Their rectangle has fewer positions than all of them together, and
each position costs a product with every channel. A query is joined where that is so, and where the rectangle is small enough for
the memory; the windows of the other queries are added lookup by lookup. The choice depends on the query's windows alone.

A rectangle may have positions that no window has. Their factors are 0, which is right unless a feature is infinite or NaN: no
windows are joined then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from ..._arguments import Pair
from ..._cpu.llvm import NUMBER, OFFSETS, VALUES, VECTOR_BYTES, KernelWriter, address, compiled, lock
from ..problem import Axis, Problem
from .gradient_kernels import SPREAD_SIZES, SpreadWriter, sizes_of_axes

LARGEST = 32  # rows, and columns, of a rectangle
SPREAD = 1.5  # how much wider and higher a rectangle may be than a square of the area of all windows


def joins(problem: Problem) -> bool:
    """Return whether windows of several lookups may be joined: whether their taps are successive positions."""
    return problem.lookups > 1 and problem.vertical.taps_are_neighbours and problem.horizontal.taps_are_neighbours


def largest(problem: Problem) -> Pair:
    """Return the most rows and columns of a rectangle."""
    grown = SPREAD * math.sqrt(problem.lookups)
    rows, columns = (min(math.ceil(axis.taps * grown), LARGEST) for axis in (problem.vertical, problem.horizontal))
    return rows if problem.has_rows else problem.vertical.taps, columns


class Rectangles(NamedTuple):
    """The rectangles of queries, (queries) in each plane.

    Attributes
    ----------
    origins
        The position y and x of the first tap.
    extents
        The number of rows and of columns: 0 where a query was not joined, or has nothing inside the map.
    unjoined
        1 where a query has something inside the map, but was not joined.
    """

    origins: np.ndarray
    extents: np.ndarray
    unjoined: np.ndarray

    def ranges(self, rows: slice) -> np.ndarray:
        """Return the ranges of taps in some rows of the map, as `gradient_kernels.spread_kernel` does."""
        top, (height, width) = self.origins[0], self.extents
        begin, end = ((edge - top).clip(0, height) for edge in (rows.start, rows.stop))
        return np.stack((begin, end - begin, np.zeros_like(width), width))

    def groups(self, lanes: int) -> tuple[np.ndarray, int]:
        """Return the first factor and the columns of taps of each group, (2, groups), and the number of all factors."""
        taps = self.extents.reshape(2, -1, lanes).max(2)
        ends = np.cumsum(taps.prod(0) * lanes)
        return np.stack((np.append(0, ends[:-1]), taps[1])), int(ends[-1])


def bounds(
    origins: np.ndarray, lookups: int, taps: Sequence[int], size: Sequence[int], most: Sequence[int], lanes: int
) -> Rectangles:
    """Return the rectangles of queries from the origins (2, lookups * queries) of their windows in a map of a size.

    ``taps`` are the rows and columns of a window, ``most`` those of the largest rectangle. The number of queries is a multiple of
    ``lanes``.
    """
    queries = origins.shape[1] // lookups
    found = np.empty((5, queries), np.int64)
    with lock:
        kernel = _bounds(lanes)
    kernel(address(origins), lookups, queries, *taps, *size, *most, address(found))
    return Rectangles(found[:2], found[2:4], found[4])


def join_kernel(vertical: Axis, horizontal: Axis, dtype: np.dtype) -> Callable[..., None]:
    """Return the kernel that adds up the factors of several lookups.

    Call it as ``kernel(cotangents, along_m, along_n, weights, origins, lookups, queries, count, rectangles, ranges, groups,
    memory, factors)``: the address of the cotangents (PH, PW, queries) of each lookup, and the elements from one displacement to
    the next; the weights (4, lookups * queries) and the origins (2, lookups * queries) of all windows; the numbers of lookups, of
    queries in whole groups, and of factors; the origins (2, queries) of the rectangles, and their ranges (4, queries) that count,
    as `gradient_kernels.spread_kernel` describes them; the first factor of each group and the number of columns of its taps,
    (2, groups); memory for the factors of a group for one lookup; and the factors that it writes.
    """
    with lock:
        kernel = _join(vertical.corners, dtype.itemsize)
    return partial(kernel, *sizes_of_axes(vertical, horizontal))


@cache
def _bounds(lanes: int) -> Callable[..., None]:
    return compiled(lambda: _BoundsWriter(lanes))


@cache
def _join(corners: int, itemsize: int) -> Callable[..., None]:
    return compiled(lambda: _JoinWriter(corners, itemsize))


_BOUNDS = {
    "origins": OFFSETS,
    **dict.fromkeys(("lookups", "queries", "taps_y", "taps_x", "height", "width", "most_y", "most_x"), NUMBER),
    "rectangles": OFFSETS,
}


class _BoundsWriter(KernelWriter):
    """A writer of the kernel of bounds, for groups of queries."""

    def __init__(self, lanes: int) -> None:
        super().__init__("bounds", _BOUNDS, VECTOR_BYTES // lanes)
        b = self.builder
        self.lanes, self.numbers = lanes, self.ir.VectorType(self.index, lanes)
        groups = b.sdiv(self.arguments["queries"], self.number(lanes))
        self.loop(groups, lambda group, _: self._group(b.mul(group, self.number(lanes))))
        b.ret_void()

    def _group(self, first: Any) -> None:
        b, named = self.builder, self.arguments
        taps, sizes, most = ([self.vector_of(named[name], self.numbers) for name in names] for names in _NAMES)
        none = self._constant(0)

        def lookup(k: Any, carried: Sequence[Any]) -> list:
            lows, highs, area = carried[:2], carried[2:4], carried[4]
            query = b.add(b.mul(k, named["queries"]), first)
            planes = b.mul(named["lookups"], named["queries"])
            origins = [self._load(named["origins"], b.add(b.mul(planes, self.number(axis)), query)) for axis in range(2)]
            begins = [self.larger(origin, none) for origin in origins]
            ends = [self.smaller(b.add(origin, tap), size) for origin, tap, size in zip(origins, taps, sizes, strict=True)]
            some = b.and_(*(b.icmp_signed("<", *edges) for edges in zip(begins, ends, strict=True)))
            lows = [b.select(some, self.smaller(low, begin), low) for low, begin in zip(lows, begins, strict=True)]
            highs = [b.select(some, self.larger(high, end), high) for high, end in zip(highs, ends, strict=True)]
            own = b.mul(*(b.sub(end, begin) for begin, end in zip(begins, ends, strict=True)))
            return [*lows, *highs, b.add(area, b.select(some, own, none))]

        *edges, area = self.loop(named["lookups"], lookup, [*sizes, none, none, none])
        extents = [b.sub(high, low) for low, high in zip(edges[:2], edges[2:], strict=True)]
        some = b.icmp_signed(">", area, none)
        fits = b.and_(*(b.icmp_signed("<=", extent, limit) for extent, limit in zip(extents, most, strict=True)))
        joined = b.and_(some, b.and_(fits, b.icmp_signed("<=", b.mul(*extents), area)))
        planes = [b.select(joined, value, none) for value in (*edges[:2], *extents)]
        planes.append(b.select(b.and_(some, b.not_(joined)), self._constant(1), none))
        for number, values in enumerate(planes):
            target = self.at(named["rectangles"], b.add(b.mul(named["queries"], self.number(number)), first))
            b.store(values, b.bitcast(target, self.numbers.as_pointer()), align=8)

    def _load(self, pointer: Any, at: Any) -> Any:
        return self.builder.load(self.builder.bitcast(self.at(pointer, at), self.numbers.as_pointer()), align=8)

    def _constant(self, value: int) -> Any:
        return self.ir.Constant(self.numbers, [value] * self.lanes)


_NAMES = ("taps_y", "taps_x"), ("height", "width"), ("most_y", "most_x")
_JOIN = {
    **SPREAD_SIZES,
    **dict(cotangents=OFFSETS, along_m=NUMBER, along_n=NUMBER, weights=VALUES, origins=OFFSETS, lookups=NUMBER, queries=NUMBER),
    **dict(count=NUMBER, rectangles=OFFSETS, ranges=OFFSETS, groups=OFFSETS, memory=VALUES, factors=VALUES),
}


class _JoinWriter(SpreadWriter):
    """A writer of the kernel that joins windows: it computes a group's factors for a lookup, then adds those of each query."""

    def __init__(self, corners: int, itemsize: int) -> None:
        super().__init__("join", _JOIN, corners, itemsize)

    def before_groups(self) -> None:
        """See `SpreadWriter`."""
        vectors = self.builder.sdiv(self.arguments["count"], self.number(self.lanes))
        self.loop(vectors, lambda at, _: self.store(self.zero(self.type), self.lane_row(self.arguments["factors"], at)))

    def group(self, group: Any, first: Any) -> None:
        """See `SpreadWriter`."""
        b, named = self.builder, self.arguments
        factors = self.at(named["factors"], b.load(self.at(named["groups"], group)))
        columns = b.load(self.at(named["groups"], b.sdiv(named["queries"], self.number(self.lanes)), group))
        windows = b.mul(named["lookups"], named["queries"])
        lookups = b.select(b.icmp_signed(">", columns, self.number(0)), named["lookups"], self.number(0))  # none without columns

        def lookup(k: Any, _: Sequence[Any]) -> None:
            window = b.add(b.mul(k, named["queries"]), first)
            cotangent = b.inttoptr(b.load(self.at(named["cotangents"], k)), self.element.as_pointer())
            weights = self.at(named["weights"], window)
            along_x = self.at(weights, b.mul(windows, self.number(2)))
            bases = [self.planes(base, windows, corners) for base, corners in zip((weights, along_x), self.corners, strict=True)]
            self.spread(self.at(cotangent, first), bases, named["memory"])
            origins = self.planes(self.at(named["origins"], window), windows, 2)
            self.loop(self.number(self.lanes), lambda lane, _: self._add(first, lane, origins, factors, columns))

        self.loop(lookups, lookup)

    def _add(self, first: Any, lane: Any, origins: Sequence[Any], factors: Any, columns: Any) -> None:
        """Write the additions of the factors of one query."""
        b, named = self.builder, self.arguments
        query = b.add(first, lane)
        starts = [b.load(self.at(plane, lane)) for plane in origins]
        corners = [b.load(plane) for plane in self.planes(self.at(named["rectangles"], query), named["queries"], 2)]
        ranges = [b.load(plane) for plane in self.planes(self.at(named["ranges"], query), named["queries"], 4)]
        begins, counts = [], []
        for axis, taps in enumerate((self.vertical.taps, self.horizontal.taps)):
            begin = b.add(corners[axis], ranges[2 * axis])
            end = b.add(begin, ranges[2 * axis + 1])
            begins.append(self.larger(starts[axis], begin))
            counts.append(b.sub(self.smaller(b.add(starts[axis], taps), end), begins[axis]))
        source = self._tap(named["memory"], self.horizontal.taps, begins, starts, lane)
        target = self._tap(factors, columns, begins, corners, lane)

        def row(y: Any, _: Sequence[Any]) -> None:
            read, written = (
                self.lane_row(pointer, b.mul(y, length))
                for pointer, length in ((source, self.horizontal.taps), (target, columns))
            )

            def column(x: Any, _: Sequence[Any]) -> None:
                place = self.lane_row(written, x)
                b.store(b.fadd(b.load(place), b.load(self.lane_row(read, x))), place)

            self.loop(counts[1], column)

        self.loop(counts[0], row)

    def _tap(self, factors: Any, columns: Any, begins: Sequence[Any], origins: Sequence[Any], lane: Any) -> Any:
        """Return the address of the factor of a query for a position, in factors that begin at an origin."""
        b = self.builder
        y, x = (b.sub(begin, origin) for begin, origin in zip(begins, origins, strict=True))
        return self.at(self.lane_row(factors, b.add(b.mul(y, columns), x)), lane)
