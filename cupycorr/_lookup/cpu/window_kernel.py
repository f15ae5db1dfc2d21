"""The windows of queries, found by a kernel: the position of the first tap along each axis, and the weights of the corners.

    X = coords[0] px,   x0 = floor(X),   wx(1) = X - x0,   wx(0) = 1 - wx(1),   origin = x0 + offset of tap 0;   y likewise

Each operation rounds to the dtype of the sums. A window that is wholly outside is moved to the nearest place where it still is.
That of a query whose coordinates are not finite is outside too, and all its weights are NaN, from which its outputs become NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from ..._cpu.llvm import NUMBER, OFFSETS, VALUE, VALUES, compiled, lock, registers
from ..problem import Axis, Problem
from .rectangles import TABLE, Memory, Rectangle, RectangleWriter, Span


class WindowFinder:
    """The kernel, with what it needs to know about a level."""

    def __init__(self, problem: Problem, level: int, accumulator: np.dtype) -> None:
        (height, width), (along_y, along_x) = problem.sizes2[level], problem.level_scales[level]
        self._kernel = _kernel(problem.has_rows, accumulator.itemsize)
        self._numbers = (*_limits(problem.vertical, height), *_limits(problem.horizontal, width), along_y, along_x)

    def find(self, rectangles: Span, coords: int, memory: Memory) -> None:
        """Write the windows of rectangles, from the address of coordinates."""
        self._kernel(*rectangles, coords, memory.weights, memory.origins, memory.queries, *self._numbers)


def _limits(axis: Axis, size: int) -> tuple[int, int, int]:
    """Return the offset of the first tap, and the least and the largest origin that are distinguished: windows wholly outside."""
    return axis.first, -(axis.last - axis.first) - 1, size


_ARGUMENTS = {
    **TABLE,
    **dict(coords=VALUES, weights=VALUES, origins=OFFSETS, queries=NUMBER),
    **dict.fromkeys(("first_y", "before_y", "after_y", "first_x", "before_x", "after_x"), NUMBER),
    **dict(along_y=VALUE, along_x=VALUE),
}


def _kernel(has_rows: bool, itemsize: int) -> Callable[..., None]:
    with lock:
        return _compiled(has_rows, itemsize)


@cache
def _compiled(has_rows: bool, itemsize: int) -> Callable[..., None]:
    return compiled(lambda: _WindowWriter(has_rows, itemsize))


class _WindowWriter(RectangleWriter):
    """A writer of the kernel."""

    def __init__(self, has_rows: bool, itemsize: int) -> None:
        super().__init__("windows", _ARGUMENTS, itemsize)
        self.has_rows, self.lanes = has_rows, registers().widths[0] // itemsize
        self.each_rectangle(self._rectangle)
        self.builder.ret_void()

    def _rectangle(self, rectangle: Rectangle) -> None:
        b, named = self.builder, self.arguments

        def row(y: Any, _: Sequence[Any]) -> None:
            coords = self.at(named["coords"], rectangle.coords, b.mul(y, rectangle.coords_row))
            slot = b.add(rectangle.slot, b.mul(y, rectangle.columns))
            own_row = b.add(rectangle.top, y)
            self.by_vectors(
                rectangle.columns,
                self.lanes,
                lambda x, lanes: self._queries(self.at(coords, x), rectangle.coords_channel, b.add(slot, x), own_row, lanes),
            )

        self.loop(rectangle.rows, row)

    def _queries(self, coords: Any, channel: Any, slot: Any, own_row: Any, lanes: int) -> None:
        """Write the code for some neighbouring queries, from the address of their first coordinate."""
        b, named, vector = self.builder, self.arguments, self.vector(lanes)
        x = self.load(coords, vector)
        finite = self._finite(x)
        if self.has_rows:
            y = self.load(self.at(coords, channel), vector)
            finite = b.and_(finite, self._finite(y))
        low, weights = self._corners(x, named["along_x"])
        self._store_weights(2, weights, finite, slot)
        self._store_origins(1, "x", low, slot)
        if self.has_rows:
            low, weights = self._corners(y, named["along_y"])
            self._store_weights(0, weights, finite, slot)
        else:
            low = self.vector_of(b.sitofp(own_row, self.ir.DoubleType()), self._doubles(vector))
        self._store_origins(0, "y", low, slot)

    def _finite(self, values: Any) -> Any:
        infinity = self.ir.Constant(values.type, [float("inf")] * values.type.count)
        magnitude = self.builder.call(self.intrinsic("fabs", values.type), [values])
        return self.builder.fcmp_ordered("<", magnitude, infinity)

    def _corners(self, coordinate: Any, along: Any) -> tuple[Any, tuple[Any, Any]]:
        """Write the pixel that a coordinate is in, and the weights of it and of the next one."""
        b, vector = self.builder, coordinate.type
        scaled = b.fmul(coordinate, self.vector_of(along, vector))
        low = b.call(self.intrinsic("floor", vector), [scaled])
        upper = b.fsub(scaled, low)
        return low, (b.fsub(self.ir.Constant(vector, [1.0] * vector.count), upper), upper)

    def _store_weights(self, first: int, weights: Sequence[Any], finite: Any, slot: Any) -> None:
        b, named = self.builder, self.arguments
        for plane, weight in enumerate(weights, first):
            nan = self.ir.Constant(weight.type, [float("nan")] * weight.type.count)
            target = self.at(named["weights"], b.mul(named["queries"], self.number(plane)), slot)
            self.store(b.select(finite, weight, nan), target)

    def _store_origins(self, plane: int, axis: str, low: Any, slot: Any) -> None:
        """Write the origin along an axis, limited while it still is a float: it may be beyond any integer, infinite or NaN."""
        b, named = self.builder, self.arguments
        doubles = self._doubles(low.type)
        low = low if low.type == doubles else b.fpext(low, doubles)
        first, before, after = (
            self.vector_of(b.sitofp(named[f"{name}_{axis}"], doubles.element), doubles) for name in ("first", "before", "after")
        )
        origin = b.fadd(low, first)
        origin = b.select(b.fcmp_ordered("<", origin, after), origin, after)
        origin = b.select(b.fcmp_ordered(">", origin, before), origin, before)  # NaN is not larger
        whole = b.fptosi(origin, self.ir.VectorType(self.index, doubles.count))
        target = self.at(named["origins"], b.mul(named["queries"], self.number(plane)), slot)
        b.store(whole, b.bitcast(target, whole.type.as_pointer()), align=8)

    def _doubles(self, vector: Any) -> Any:
        return self.ir.VectorType(self.ir.DoubleType(), vector.count)
