"""Kernels for the gradients of the lookup, which LLVM compiles: factors of dots, a gather and a scatter of windows.

    spread    factors[ty, tx, q]       = sum over the outputs (m, n) that read the tap (ty, tx) of  wy wx cotangent[m, n, q]
    gather    total[q, c]             += sum over taps of  factors[ty, tx, q] * map[y(ty), x(tx), c]
    scatter   map[y(ty), x(tx), c]    += factors[ty, tx, q] * pixels[q, c]        for each query q in ascending order
    slopes    slopes[i, q]            += sum over c of pixels[q, c] * (the sum of the gather for the factors i)
    unpack    result[c, x]             = scale * packed[x, c]

Maps and pixels have their channels last. A kernel computes a slab of channels, which stays in registers while the taps of a query
are walked over: the sums of the gather, or the pixel of the scatter. No sum is over channels, so that the width of a slab has no
effect on any bit. Taps outside the map are neither read nor written.

Factors are kept for groups of queries, (rows of taps, columns of taps, lanes) for each, where the lanes of a vector are the
queries of a group. Groups may have different numbers of taps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from ..._cpu.llvm import NUMBER, OFFSETS, VALUE, VALUES, VECTOR_BYTES, KernelWriter, address, compiled, lock, registers
from ..._dtypes import LONGEST_CHAIN
from ..problem import Axis

REGISTERS_OF_A_SLAB = 4  # of so many vector registers, one is for a slab of each of two queries: others are for loads and factors


def lanes_of(dtype: np.dtype) -> int:
    """Return the number of values of a vector, which is the number of queries of a group."""
    return VECTOR_BYTES // dtype.itemsize


def slab_vectors(vectors: int, threads: int = 1, sums: int = 1) -> list[int]:
    """Divide the vectors of a pixel into slabs of nearly one size, which registers can hold: one for each thread, or more.

    ``sums`` is the number of sums for each channel.
    """
    found = registers()
    most = max(found.count * max(found.widths) // VECTOR_BYTES // (REGISTERS_OF_A_SLAB * sums), 1)
    count = max(-(-vectors // most), min(threads, vectors))
    return [vectors // count + (number < vectors % count) for number in range(count)]


def spread_kernel(vertical: Axis, horizontal: Axis, dtype: np.dtype) -> Callable[..., None]:
    """Return the kernel of factors, which also finds the taps that are inside the map.

    Call it as ``kernel(cotangent, along_m, along_n, weights_y, weights_x, origins, top, bottom, width, queries, factors,
    ranges)``: the cotangents (PH, PW, queries) and the elements from one displacement to the next; the weights (corners, queries)
    of rows and columns; the row and the column of the first tap, (2, queries); the range of rows of the map that counts, and its
    width; the number of queries, in whole groups. It writes the factors, and the ranges of taps inside the map: the first row and
    the number of rows, the first column and the number of columns, (4, queries).
    """
    with lock:
        kernel = _spread(vertical.corners, dtype.itemsize)
    return partial(kernel, *sizes_of_axes(vertical, horizontal))


def gather_kernel(vectors: int, dtype: np.dtype) -> Callable[..., None]:
    """Return the kernel of the gather for slabs of so many vectors; see `_WindowWriter` for its arguments.

    The last of them are the totals, and the elements from one query to the next.
    """
    with lock:
        return _gather(vectors, dtype.itemsize)


def scatter_kernel(vectors: int, dtype: np.dtype) -> Callable[..., None]:
    """Return the kernel of the scatter for slabs of so many vectors; see `_WindowWriter` for its arguments.

    The last of them are the pixels, and the elements from one query to the next.
    """
    with lock:
        return _scatter(vectors, dtype.itemsize)


def slope_kernel(vectors: int, sets: int, dtype: np.dtype) -> Callable[..., None]:
    """Return the kernel of the slopes for slabs of so many vectors and so many sets of factors.

    See `_WindowWriter` for its arguments. The last of them are the pixels, the elements from one query to the next, the elements
    from one set of factors to the next, and the slopes (sets, queries, lanes), whose lanes are still to be added.
    """
    with lock:
        return _slope(vectors, sets, dtype.itemsize)


def unpack(packed: np.ndarray, result: np.ndarray, scale: np.generic) -> None:
    """Write packed sums (rows, columns, padded channels), times a factor, into a result (C, rows, columns).

    The sums are overwritten.
    """
    channels, rows, columns = result.shape
    item = packed.itemsize
    if result.dtype == packed.dtype and result.strides[0] == item:  # the result is channels-last, too
        np.multiply(packed[..., :channels], scale, out=result.transpose(1, 2, 0))
        return
    if columns and result.strides[1] == columns * result.strides[2]:  # the rows are one long row
        rows, columns = 1, rows * columns
    whole = result.dtype == packed.dtype and result.strides[2] == item and result.strides[0] % item == 0
    if not whole or columns < VECTOR_BYTES // item:
        packed *= scale
        np.copyto(result, packed[..., :channels].transpose(2, 0, 1), casting="unsafe")
        return
    with lock:
        kernel = _unpack(item)
    for row in range(rows):
        memory = address(packed) + row * columns * packed.strides[1], address(result) + row * result.strides[1]
        kernel(*memory, scale, channels, packed.shape[2], columns, result.strides[0] // item)


@cache
def _unpack(itemsize: int) -> Callable[..., None]:
    return compiled(lambda: _UnpackWriter(itemsize))


@cache
def _spread(corners: int, itemsize: int) -> Callable[..., None]:
    return compiled(lambda: _SpreadWriter(corners, itemsize))


@cache
def _gather(vectors: int, itemsize: int) -> Callable[..., None]:
    return compiled(lambda: _GatherWriter(vectors, itemsize))


@cache
def _slope(vectors: int, sets: int, itemsize: int) -> Callable[..., None]:
    return compiled(lambda: _SlopeWriter(vectors, sets, itemsize))


@cache
def _scatter(vectors: int, itemsize: int) -> Callable[..., None]:
    return compiled(lambda: _ScatterWriter(vectors, itemsize))


_SIZES = ("patch", "pitch", "step", "taps")
SPREAD_SIZES = {f"{size}_{axis}": NUMBER for axis in "yx" for size in _SIZES}  # the first arguments of a `SpreadWriter`
_SPREAD = {
    **SPREAD_SIZES,
    **dict(cotangent=VALUES, along_m=NUMBER, along_n=NUMBER, weights_y=VALUES, weights_x=VALUES, origins=OFFSETS),
    **dict.fromkeys(("top", "bottom", "width", "queries"), NUMBER),
    **dict(factors=VALUES, ranges=OFFSETS),
}


def sizes_of_axes(vertical: Axis, horizontal: Axis) -> list[int]:
    """Return the first arguments of a kernel that a `SpreadWriter` writes."""
    return [getattr(axis, size) for axis in (vertical, horizontal) for size in _SIZES]


class _AxisSizes(NamedTuple):
    """The sizes of the window along an axis, as arguments of a kernel."""

    patch: Any
    pitch: Any
    step: Any
    taps: Any


class SpreadWriter(KernelWriter):
    """The part that kernels of factors share: each cotangent is added to the factors of its four corners, or of two.

    The arguments begin with `SPREAD_SIZES`, and ``along_m``, ``along_n`` and ``queries`` are among them.
    """

    def __init__(self, name: str, arguments: Mapping[str, str], corners: int, itemsize: int) -> None:
        super().__init__(name, arguments, itemsize)
        b, named = self.builder, self.arguments
        self.vertical, self.horizontal = (_AxisSizes(*(named[f"{size}_{axis}"] for size in _SIZES)) for axis in "yx")
        self.corners = corners, 2
        self.lanes = VECTOR_BYTES // itemsize
        self.type = self.vector(self.lanes)
        self.before_groups()
        groups = b.sdiv(named["queries"], self.number(self.lanes))
        self.loop(groups, lambda group, _: self.group(group, b.mul(group, self.number(self.lanes))))
        b.ret_void()

    def before_groups(self) -> None:
        """Write the code before the loop over groups: none."""

    def group(self, group: Any, first: Any) -> None:
        """Write the code of a group of queries, of which this is the first one."""
        raise NotImplementedError

    def spread(self, cotangent: Any, bases: Sequence[Sequence[Any]], factors: Any) -> None:
        """Write the factors of a group, from the addresses of its cotangent and of the weights of rows and columns."""
        b, named = self.builder, self.arguments
        taps = b.mul(self.vertical.taps, self.horizontal.taps)
        self.loop(taps, lambda tap, _: self.store(self.zero(self.type), self.lane_row(factors, tap)))
        weights = [[self.load(base, self.type) for base in of_axis] for of_axis in bases]

        def row(m: Any, _: Sequence[Any]) -> None:
            values = self.at(cotangent, b.mul(m, named["along_m"]))
            into = self.lane_row(factors, b.mul(b.mul(m, self.vertical.pitch), self.horizontal.taps))

            def column(n: Any, _: Sequence[Any]) -> None:
                value = self.load(self.at(values, b.mul(n, named["along_n"])), self.type)
                self._add_corners(value, weights, self.lane_row(into, b.mul(n, self.horizontal.pitch)))

            self.loop(self.horizontal.patch, column)

        self.loop(self.vertical.patch, row)

    def _add_corners(self, value: Any, weights: Sequence[Sequence[Any]], tap: Any) -> None:
        """Write the additions of a cotangent to the factors of its corners, of which the first has this address."""
        b = self.builder
        for row, weight_y in enumerate(weights[0]):
            product = b.fmul(weight_y, value)
            for column, weight_x in enumerate(weights[1]):
                further = b.add(b.mul(self.horizontal.taps, self.number(row)), self.number(column))
                at = self.lane_row(tap, further)
                self.store(self.multiply_add(self.load(at, self.type), weight_x, product), at)

    def planes(self, pointer: Any, size: Any, count: int) -> list[Any]:
        """Return the addresses of some planes of ``size`` elements."""
        return [self.at(pointer, self.builder.mul(size, self.number(plane))) for plane in range(count)]

    def lane_row(self, factors: Any, tap: Any) -> Any:
        """Return the address of the factors of a group for a tap."""
        return self.at(factors, self.builder.mul(tap, self.number(self.lanes)))


class _SpreadWriter(SpreadWriter):
    """A writer of the kernel of factors, which also finds the taps that are inside the map."""

    def __init__(self, corners: int, itemsize: int) -> None:
        super().__init__("spread", _SPREAD, corners, itemsize)

    def group(self, group: Any, first: Any) -> None:
        """See `SpreadWriter`."""
        b, named = self.builder, self.arguments
        self._range(0, self.vertical, named["top"], named["bottom"], first)
        self._range(1, self.horizontal, self.number(0), named["width"], first)
        taps = b.mul(self.vertical.taps, self.horizontal.taps)
        factors = self.at(named["factors"], b.mul(group, b.mul(taps, self.number(self.lanes))))
        cotangent, *weights = (self.at(named[name], first) for name in ("cotangent", "weights_y", "weights_x"))
        bases = [self.planes(base, named["queries"], corners) for base, corners in zip(weights, self.corners, strict=True)]
        self.spread(cotangent, bases, factors)

    def _range(self, number: int, axis: _AxisSizes, begin: Any, end: Any, first: Any) -> None:
        """Write the first tap of each query from ``begin`` on, and the number of taps from there to ``end``."""
        b, named, numbers = self.builder, self.arguments, self.ir.VectorType(self.index, self.lanes)
        *_, plane = self.planes(named["origins"], named["queries"], number + 1)
        origin = b.load(b.bitcast(self.at(plane, first), numbers.as_pointer()), align=8)
        limits = [self.vector_of(limit, numbers) for limit in (begin, end)]

        def tap(index: Any, counts: Sequence[Any]) -> list:
            displacement = b.sdiv(index, axis.pitch)
            offset = b.add(b.mul(displacement, axis.step), b.srem(index, axis.pitch))
            at = b.add(origin, self.vector_of(offset, numbers))
            return [b.add(n, b.zext(b.icmp_signed("<", at, limit), numbers)) for n, limit in zip(counts, limits, strict=True)]

        none = self.ir.Constant(numbers, [0] * self.lanes)
        before, inside = self.loop(axis.taps, tap, [none, none])
        targets = self.planes(named["ranges"], named["queries"], 4)[2 * number :]
        for plane, values in zip(targets, (before, b.sub(inside, before)), strict=False):
            b.store(values, b.bitcast(self.at(plane, first), numbers.as_pointer()), align=8)


_WINDOWS = {
    **dict.fromkeys(("origins", "ranges", "groups", "row_offsets", "column_offsets"), OFFSETS),
    **dict.fromkeys(("planes", "top", "row_stride", "column_stride", "columns", "contiguous"), NUMBER),
    **dict(factors=VALUES, first=NUMBER, queries=NUMBER, map=VALUES, pixels=VALUES, pixel_stride=NUMBER),
}


class _Query(NamedTuple):
    """A query in a kernel: its number, the addresses of its factors, its pixel and its first tap, and its taps inside the map.

    ``row_length`` is the distance of rows of its factors. Rows and columns are the position of the first tap, the first tap that
    is inside, and the number of those.
    """

    number: Any
    factors: Any
    row_length: Any
    pixel: Any
    window: Any
    rows: tuple[Any, Any, Any]
    columns: tuple[Any, Any, Any]


class _WindowWriter(KernelWriter):
    """The part that the gather, the scatter and the slopes share: the walk over the taps of queries that are inside the map.

    Two neighbouring queries whose windows have the same rows and overlap are computed together: a position of both windows is
    loaded once. Each query has its products added in the same order as alone, and the first query before the second.

    The arguments are: the origins and the ranges of the queries, as for `spread_kernel`; the first factor of each group of
    queries, and the number of columns of its taps, (2, groups); the distance of each row and of each column of taps from the
    first one, in elements of the map; the number of queries in memory; the first row of the map that is there, and the elements
    from a row and from a column to the next; the most columns of any window; whether taps are neighbours in the map, and queries
    may be computed together; the factors; the first query to compute, and the number of those; the map; and what the kernel
    itself takes.
    """

    def __init__(self, name: str, vectors: int, itemsize: int, more: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__(name, {**_WINDOWS, **more}, itemsize)
        b, named = self.builder, self.arguments
        self.vectors, self.lanes = vectors, VECTOR_BYTES // itemsize
        self.type = self.vector(self.lanes)
        pairs = b.sdiv(b.add(named["queries"], self.number(1)), self.number(2))
        self.loop(pairs, lambda pair, _: self._pair(b.mul(pair, self.number(2))))
        b.ret_void()

    def _pair(self, index: Any) -> None:
        """Write the code of two queries, or of the last one."""
        b, named = self.builder, self.arguments
        count = self.smaller(b.sub(named["queries"], index), self.number(2))
        number = b.add(named["first"], index)
        pair = self._query(number), self._query(b.add(number, b.sub(count, self.number(1))))
        two = b.icmp_signed("==", count, self.number(2))
        with b.if_else(b.and_(two, self._overlap(*pair))) as (together, alone):
            with together:
                self.queries(pair)
            with alone:
                self.loop(count, lambda i, _: self.queries((self._query(b.add(number, i)),)))

    def queries(self, queries: Sequence[_Query]) -> None:
        """Write the code of a query, or of two whose windows overlap."""
        raise NotImplementedError

    def _query(self, q: Any) -> _Query:
        b, named = self.builder, self.arguments
        group, lane = b.lshr(q, self.number(self.lanes.bit_length() - 1)), b.and_(q, self.number(self.lanes - 1))
        columns = self.at(named["groups"], b.sdiv(named["planes"], self.number(self.lanes)), group)
        factors = self.at(named["factors"], b.load(self.at(named["groups"], group)), lane)
        row_length = b.mul(b.load(columns), self.number(self.lanes))
        row, column = (self._of_query("origins", plane, q) for plane in range(2))
        ranges = [self._of_query("ranges", plane, q) for plane in range(4)]
        at = b.add(b.mul(b.sub(row, named["top"]), named["row_stride"]), b.mul(column, named["column_stride"]))
        pixel = self.at(named["pixels"], b.mul(q, named["pixel_stride"]))
        window = self.at(named["map"], at)
        return _Query(q, factors, row_length, pixel, window, (row, *ranges[:2]), (column, *ranges[2:]))

    def _of_query(self, name: str, plane: int, q: Any) -> Any:
        b = self.builder
        return b.load(self.at(self.arguments[name], b.add(b.mul(self.arguments["planes"], self.number(plane)), q)))

    def _overlap(self, first: _Query, second: _Query) -> Any:
        """Write whether two queries are computed together."""
        b = self.builder
        begin, end = self._common(first, second)
        neighbours = b.icmp_signed("!=", self.arguments["contiguous"], self.number(0))
        together = b.and_(neighbours, b.icmp_signed("<", begin, end))
        for one, other in zip(first.rows, second.rows, strict=True):
            together = b.and_(together, b.icmp_signed("==", one, other))
        return together

    def _common(self, first: _Query, second: _Query) -> tuple[Any, Any]:
        """Write the range of the columns of taps that both windows have, counted from the first tap of the first one."""
        (a, a_end), (c, c_end) = self._columns(first, first), self._columns(second, first)
        return self.larger(a, c), self.smaller(a_end, c_end)

    def _columns(self, query: _Query, origin: _Query) -> tuple[Any, Any]:
        """Write the range of the columns of taps of a query inside the map, counted from the first tap of another one."""
        b, (column, begin, count) = self.builder, query.columns
        begin = b.add(begin, b.sub(column, origin.columns[0]))
        return begin, b.add(begin, count)

    def each_row(
        self, queries: Sequence[_Query], begin: Any, count: Any, body: Callable[..., Any], carried: Sequence[Any]
    ) -> list:
        """Write the loop over rows of taps; ``body`` takes the addresses in the map and in the factors, and what is carried.

        Columns of taps are counted from the first tap of the first query.
        """
        b, named = self.builder, self.arguments
        shifts = [b.mul(b.sub(queries[0].columns[0], query.columns[0]), self.number(self.lanes)) for query in queries]

        def row(index: Any, values: Sequence[Any]) -> Any:
            ty = b.add(begin, index)
            place = self.at(queries[0].window, b.load(self.at(named["row_offsets"], ty)))
            factors = [
                self.at(query.factors, b.mul(ty, query.row_length), shift) for query, shift in zip(queries, shifts, strict=True)
            ]
            return body(place, factors, values)

        return self.loop(count, row, carried)

    def each_tap(
        self, queries: Sequence[_Query], columns: tuple[Any, Any] | None, body: Callable[..., Any], *arguments: Any
    ) -> Any:
        """Write the loops over the taps of a row, of which a query alone may have a range of ``columns`` only.

        ``arguments`` are the addresses in the map and in the factors of each query, and what is carried. ``body`` takes them for
        a tap, and the number of the only query that has the tap, or None.
        """
        place, factors, carried = arguments
        if columns is not None:
            return self._taps(columns, place, factors, lambda *each: body(*each, 0), carried, offsets=True)
        first, second = queries
        begin, end = self._common(first, second)
        for number, query in enumerate(queries):
            own, _ = self._columns(query, first)
            carried = self._taps((own, begin), place, factors, partial(_numbered, body, number), carried)
        carried = self._taps((begin, end), place, factors, partial(_numbered, body, None), carried)
        for number, query in enumerate(queries):
            _, own_end = self._columns(query, first)
            carried = self._taps((end, own_end), place, factors, partial(_numbered, body, number), carried)
        return carried

    def _taps(
        self,
        columns: tuple[Any, Any],
        row: Any,
        factors: Sequence[Any],
        body: Callable[..., Any],
        carried: Any,
        *,
        offsets: bool = False,
    ) -> list:
        b, named, (begin, end) = self.builder, self.arguments, columns

        def tap(index: Any, values: Sequence[Any]) -> Any:
            tx = b.add(begin, index)
            distance = b.load(self.at(named["column_offsets"], tx)) if offsets else b.mul(tx, named["column_stride"])
            at = b.mul(tx, self.number(self.lanes))
            return body(self.at(row, distance), [self.at(each, at) for each in factors], values)

        return self.loop(b.sub(end, begin), tap, carried)

    def factor(self, pointer: Any, *offset: Any) -> Any:
        """Write the load of a factor into all lanes."""
        return self.vector_of(self.builder.load(self.at(pointer, *offset)), self.type)

    def vectors_at(self, pointer: Any) -> list[Any]:
        """Return the addresses of the vectors of a slab."""
        return [self.at(pointer, self.number(v * self.lanes)) for v in range(self.vectors)]


def _numbered(body: Callable[..., Any], number: int | None, *arguments: Any) -> Any:
    return body(*arguments, number)


class _SummingWriter(_WindowWriter):
    """The part that the gather and the slopes share: sums over taps in chains of bounded length.

    ``sets`` is the number of sets of factors, each with sums of its own.
    """

    sets = 1

    def queries(self, queries: Sequence[_Query]) -> None:
        """See `_WindowWriter`."""
        b, named, longest = self.builder, self.arguments, self.number(LONGEST_CHAIN.registers)
        _, begin, count = queries[0].rows
        rows = self.larger(b.sdiv(longest, named["columns"]), self.number(1))

        def some_rows(index: Any, _: Sequence[Any]) -> None:
            done = b.mul(index, rows)
            taken = b.add(begin, done), self.smaller(b.sub(count, done), rows)
            if len(queries) == 2:
                self._chain(queries, *taken, None)
                return
            first, columns = queries[0].columns[1:]

            def some_columns(index: Any, _: Sequence[Any]) -> None:
                begin = b.add(first, b.mul(index, longest))
                self._chain(queries, *taken, (begin, self.smaller(b.add(begin, longest), b.add(first, columns))))

            self.loop(self._divided(columns, longest), some_columns)

        self.loop(self._divided(count, rows), some_rows)

    def _divided(self, count: Any, size: Any) -> Any:
        b = self.builder
        return b.sdiv(b.add(count, b.sub(size, self.number(1))), size)

    def _chain(self, queries: Sequence[_Query], begin: Any, count: Any, columns: tuple[Any, Any] | None) -> None:
        """Write the sums of some rows of taps, and what becomes of them."""
        size = self.vectors * self.sets

        def tap(place: Any, factors: Sequence[Any], sums: Sequence[Any], only: int | None) -> list:
            values = [self.load(each, self.type) for each in self.vectors_at(place)]
            new = list(sums)
            for number, pointer in enumerate(factors):
                if only is None or only == number:
                    for of_set in range(self.sets):
                        factor = self.factor(pointer, self.set_offset(of_set))
                        for vector, value in enumerate(values):
                            at = number * size + of_set * self.vectors + vector
                            new[at] = self.multiply_add(sums[at], factor, value)
            return new

        def row(place: Any, factors: Sequence[Any], sums: Sequence[Any]) -> list:
            return self.each_tap(queries, columns, tap, place, factors, sums)

        sums = self.each_row(queries, begin, count, row, [self.zero(self.type)] * size * len(queries))
        for number, query in enumerate(queries):
            self.finish(query, sums[number * size : (number + 1) * size])

    def set_offset(self, number: int) -> Any:
        """Return the elements from the first set of factors to another one."""
        return self.number(0)

    def finish(self, query: _Query, sums: Sequence[Any]) -> None:
        """Write the end of a chain of sums: the vectors of a slab for each set."""
        raise NotImplementedError


class _GatherWriter(_SummingWriter):
    """A writer of the gather, which adds its sums to the totals of the queries."""

    def __init__(self, vectors: int, itemsize: int) -> None:
        super().__init__("gather", vectors, itemsize)

    def finish(self, query: _Query, sums: Sequence[Any]) -> None:
        """See `_SummingWriter`."""
        for total, target in zip(sums, self.vectors_at(query.pixel), strict=True):
            self.store(self.builder.fadd(self.load(target, self.type), total), target)


class _SlopeWriter(_SummingWriter):
    """A writer of the slopes: sums of the taps for each set of factors, multiplied with the pixel of the query."""

    def __init__(self, vectors: int, sets: int, itemsize: int) -> None:
        self.sets = sets
        super().__init__("slopes", vectors, itemsize, dict(set_stride=NUMBER, slopes=VALUES))

    def set_offset(self, number: int) -> Any:
        """See `_SummingWriter`."""
        return self.builder.mul(self.arguments["set_stride"], self.number(number))

    def finish(self, query: _Query, sums: Sequence[Any]) -> None:
        """See `_SummingWriter`. The pixel of a window that is wholly outside may be infinite: it has no sums."""
        b, named = self.builder, self.arguments
        values = [self.load(each, self.type) for each in self.vectors_at(query.pixel)]
        for number in range(self.sets):
            of_set = b.mul(named["planes"], self.number(number))
            target = self.at(named["slopes"], b.mul(b.add(of_set, query.number), self.number(self.lanes)))
            total = self.load(target, self.type)
            for value, each in zip(values, sums[number * self.vectors : (number + 1) * self.vectors], strict=True):
                total = self.multiply_add(total, value, each)
            self.store(total, target)


class _ScatterWriter(_WindowWriter):
    """A writer of the scatter, which adds to memory at every tap."""

    def __init__(self, vectors: int, itemsize: int) -> None:
        super().__init__("scatter", vectors, itemsize)

    def queries(self, queries: Sequence[_Query]) -> None:
        """See `_WindowWriter`."""
        pixels = [[self.load(each, self.type) for each in self.vectors_at(query.pixel)] for query in queries]
        _, first, columns = queries[0].columns
        alone = (first, self.builder.add(first, columns)) if len(queries) == 1 else None

        def tap(place: Any, factors: Sequence[Any], _: Sequence[Any], only: int | None) -> list:
            added = [number for number in range(len(queries)) if only is None or only == number]
            loaded = {number: self.factor(factors[number]) for number in added}
            for vector, target in enumerate(self.vectors_at(place)):
                total = self.load(target, self.type)
                for number in added:
                    total = self.multiply_add(total, loaded[number], pixels[number][vector])
                self.store(total, target)
            return []

        def row(place: Any, factors: Sequence[Any], _: Sequence[Any]) -> list:
            return self.each_tap(queries, alone, tap, place, factors, [])

        self.each_row(queries, *queries[0].rows[1:], row, [])


_UNPACK = {
    **dict(packed=VALUES, result=VALUES, scale=VALUE),
    **dict.fromkeys(("channels", "padded", "columns", "along_c"), NUMBER),
}


class _UnpackWriter(KernelWriter):
    """A writer of the kernel that transposes packed sums: squares of columns and channels, in registers.

    There are at least as many columns as lanes of a vector; the last vector of columns begins early enough to end with them.
    """

    def __init__(self, itemsize: int) -> None:
        super().__init__("unpack", _UNPACK, itemsize)
        b, named = self.builder, self.arguments
        self.lanes = VECTOR_BYTES // itemsize
        self.type = self.vector(self.lanes)
        self.scale = self.vector_of(named["scale"], self.type)
        lanes, last = self.number(self.lanes), self.number(self.lanes - 1)
        blocks, vectors = (b.sdiv(b.add(named[name], last), lanes) for name in ("channels", "columns"))

        def block(number: Any, _: Sequence[Any]) -> None:
            def vector(index: Any, _: Sequence[Any]) -> None:
                self._square(b.mul(number, lanes), self.smaller(b.mul(index, lanes), b.sub(named["columns"], lanes)))

            self.loop(vectors, vector)

        self.loop(blocks, block)
        b.ret_void()

    def _square(self, channel: Any, x: Any) -> None:
        b, named = self.builder, self.arguments
        rows = [
            self.at(named["packed"], b.mul(b.add(x, self.number(lane)), named["padded"]), channel) for lane in range(self.lanes)
        ]
        columns = self.transposed([self.load(row, self.type) for row in rows])
        for lane, values in enumerate(columns):
            c = b.add(channel, self.number(lane))
            with b.if_then(b.icmp_signed("<", c, named["channels"])):
                target = self.at(named["result"], b.mul(c, named["along_c"]), x)
                self.store(b.fmul(values, self.scale), target)
