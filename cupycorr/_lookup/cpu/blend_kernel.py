"""The outputs of queries from the dots of their windows, by a kernel with one query in each lane.

    out[m, n, q] = scale * sum over a of wy(a) * (sum over b of wx(b) * dots[q, row(m, a), tap(n, b)])

The dots of as many queries as a vector has lanes are transposed in registers, a row of taps at a time: that of all queries of a
rectangle, so that outputs of neighbouring queries, which are neighbours in memory, are written soon after each other. The last
vector of a row of queries begins early enough to end with it, and writes some outputs twice; rows that are shorter than a vector
are copied one output at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from ..._cpu.llvm import NUMBER, VALUE, VALUES, compiled, lock, registers
from ..problem import Problem
from .dot_kernel import dots_layout
from .rectangles import TABLE, Memory, Rectangle, RectangleWriter, Span, padding


class Blend:
    """The kernel, with what it needs to know about a problem."""

    def __init__(self, problem: Problem, accumulator: np.dtype) -> None:
        layout = dots_layout(problem)
        self._kernel = _kernel(problem.vertical.corners, layout.pitch, accumulator.itemsize)
        self._sizes = (layout.rows, problem.horizontal.patch, problem.vertical.pitch, problem.horizontal.pitch)
        self._scale = problem.parameters.scale

    @staticmethod
    def scratch_size(problem: Problem, accumulator: np.dtype, rows: int, columns: int) -> int:
        """Return the elements of the scratch memory of a call for rectangles of at most so many rows and columns.

        It holds a row of taps of a vector of queries, and a blended row of taps of all queries of a rectangle.
        """
        lanes = padding(accumulator.itemsize)
        return dots_layout(problem).pitch * lanes + problem.horizontal.patch * rows * (columns + lanes)

    def write(self, rectangles: Span, memory: Memory, out: int, strides: tuple[int, int], scratch: int) -> None:
        """Write the outputs of rectangles to an address, where strides along m and n are in elements."""
        arrays = memory.dots, memory.weights, out, scratch
        self._kernel(*rectangles, *arrays, *self._sizes, memory.queries, *strides, self._scale)


_ARGUMENTS = {
    **TABLE,
    **dict.fromkeys(("dots", "weights", "out", "scratch"), VALUES),
    **dict.fromkeys(("rows", "patch", "pitch_y", "pitch_x", "queries", "out_m", "out_n"), NUMBER),
    **dict(scale=VALUE),
}


def _kernel(corners: int, pitch: int, itemsize: int) -> Callable[..., None]:
    with lock:
        return _compiled(corners, pitch, itemsize)


@cache
def _compiled(corners: int, pitch: int, itemsize: int) -> Callable[..., None]:
    return compiled(lambda: _BlendWriter(corners, pitch, itemsize))


class _BlendWriter(RectangleWriter):
    """A writer of the kernel for windows whose outputs blend one or two rows of taps, each of ``pitch`` taps in memory."""

    def __init__(self, corners: int, pitch: int, itemsize: int) -> None:
        super().__init__("blend", _ARGUMENTS, itemsize)
        self.corners, self.pitch, self.lanes = corners, pitch, registers().widths[0] // itemsize
        b, named = self.builder, self.arguments
        self.type = self.vector(self.lanes)
        self.taps = named["scratch"]
        self.blended = self.at(self.taps, self.number(pitch * self.lanes))
        self.copied = b.alloca(self.element, self.lanes)
        self.scale = self.vector_of(named["scale"], self.type)
        self.each_rectangle(self._rectangle)
        b.ret_void()

    def _rectangle(self, rectangle: Rectangle) -> None:
        b, named = self.builder, self.arguments
        lanes = self.number(self.lanes)
        vectors = b.sdiv(b.add(rectangle.columns, b.sub(lanes, self.number(1))), lanes)
        last = self.larger(b.sub(rectangle.columns, lanes), self.number(0))
        count = self.smaller(rectangle.columns, lanes)

        def row(r: Any, y: Any) -> None:
            out = self.at(named["out"], rectangle.out, b.mul(y, rectangle.out_row))
            slot = b.add(rectangle.slot, b.mul(y, rectangle.columns))

            def vector(index: Any, _: Sequence[Any]) -> None:
                x = self.smaller(b.mul(index, lanes), last)
                number = b.add(b.mul(y, vectors), index)
                self.upper = self.at(self.blended, b.mul(number, b.mul(named["patch"], lanes)))
                self._row_of_taps(r, b.add(slot, x), count, self.at(out, x))

            self.loop(vectors, vector)

        self.loop(named["rows"], lambda r, _: self.loop(rectangle.rows, lambda y, _: row(r, y)))

    def _row_of_taps(self, r: Any, slot: Any, count: Any, out: Any) -> None:
        """Write what a row of taps of ``count`` queries adds, from the address of the first output of the first one."""
        b, named = self.builder, self.arguments
        size = b.mul(named["rows"], self.number(self.pitch))
        dots = self.at(named["dots"], b.mul(r, self.number(self.pitch)))
        rows = []
        for lane in range(self.lanes):
            query = b.add(slot, self.smaller(self.number(lane), b.sub(count, self.number(1))))
            rows.append(self.at(dots, b.mul(query, size)))
        planes = [self.at(named["weights"], b.mul(named["queries"], self.number(plane)), slot) for plane in range(4)]
        vertical, horizontal = ([self.load(plane, self.type) for plane in pair] for pair in (planes[:2], planes[2:]))
        self._transpose_taps(rows)
        if self.corners == 1:
            self._outputs(r, horizontal, (), out, count)
            return
        step = named["pitch_y"]  # 1: each row of taps but the first ends a row of outputs; 2: each second one does
        m = b.sdiv(b.sub(r, self.number(1)), step)
        ends = b.icmp_signed("==", b.add(b.mul(m, step), self.number(1)), r)
        ends = b.and_(b.icmp_signed(">", r, self.number(0)), ends)
        with b.if_else(ends) as (second, first):
            with second:
                self._outputs(m, horizontal, vertical, out, count)
            with first:
                self._each_column(horizontal, lambda n, value: self.store(value, self._of_upper(n)))

    def _transpose_taps(self, rows: list) -> None:
        """Write a row of taps of all queries so that each tap has a vector."""
        b = self.builder
        whole, more = divmod(self.pitch, self.lanes)

        def square(tap: Any, count: int) -> None:
            values = self.transposed([self.load(self.at(each, tap), self.type) for each in rows])
            for number, value in enumerate(values[:count]):
                self.store(value, self.at(self.taps, b.mul(b.add(tap, self.number(number)), self.number(self.lanes))))

        self.loop(self.number(whole), lambda index, _: square(b.mul(index, self.number(self.lanes)), self.lanes))
        if more:
            square(self.number(whole * self.lanes), more)

    def _of_upper(self, n: Any) -> Any:
        return self.at(self.upper, self.builder.mul(n, self.number(self.lanes)))

    def _each_column(self, horizontal: Sequence[Any], body: Callable[[Any, Any], None]) -> None:
        """Write the loop over the displacements n along x, with the row of taps blended along x."""
        b = self.builder

        def column(n: Any, _: Sequence[Any]) -> None:
            tap = b.mul(b.mul(n, self.arguments["pitch_x"]), self.number(self.lanes))
            left, right = (self.load(self.at(self.taps, tap, self.number(side * self.lanes)), self.type) for side in (0, 1))
            body(n, self.multiply_add(b.fmul(horizontal[0], left), horizontal[1], right))

        self.loop(self.arguments["patch"], column)

    def _outputs(self, m: Any, horizontal: Sequence[Any], vertical: Sequence[Any], out: Any, count: Any) -> None:
        b, named = self.builder, self.arguments
        out = self.at(out, b.mul(m, named["out_m"]))

        def column(n: Any, value: Any) -> None:
            if vertical:
                upper = self.load(self._of_upper(n), self.type)
                self.store(value, self._of_upper(n))
                value = self.multiply_add(b.fmul(vertical[0], upper), vertical[1], value)
            self._write(b.fmul(self.scale, value), self.at(out, b.mul(n, named["out_n"])), count)

        self._each_column(horizontal, column)

    def _write(self, values: Any, target: Any, count: Any) -> None:
        b = self.builder
        with b.if_else(b.icmp_signed("==", count, self.number(self.lanes))) as (whole, some):
            with whole:
                self.store(values, target)
            with some:
                self.store(values, self.copied)
                self.loop(count, lambda i, _: self._copy(self.at(self.copied, i), self.at(target, i)))

    def _copy(self, source: Any, target: Any) -> None:
        self.builder.store(self.builder.load(source), target)
