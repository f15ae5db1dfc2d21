"""Windows that moved: their dots are shifted, and those of the taps that entered are computed, by a kernel.

    dots[q, r, t]  becomes  dots[q, r + dy, t + dx]     where that tap was in the window before,
                            the product as in `dot_kernel`     elsewhere,   0 outside the map

where (dy, dx) is how far the window moved. A window that did not move is not touched. One that keeps too few of its taps
is left to `dot_kernel`. A dot's bits do not depend on which of the two computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ..._cpu.llvm import NUMBER, OFFSETS, VALUES, address, compiled, lock
from ..problem import Problem
from .dot_kernel import SKIP, ProductWriter, dots_layout, tap_offsets
from .rectangles import TABLE, Memory, Rectangle, Span

KEPT = 1, 2  # the fraction of its taps that a window has to keep, or else all of them are computed again
NOWHERE = -(2**60)  # the origin of a window that was never computed


class MovedWindows:
    """The kernel, with what it needs to know about a problem and the size of a level."""

    def __init__(self, problem: Problem, level: int, accumulator: np.dtype) -> None:
        layout = dots_layout(problem)
        self._kernel = _kernel(layout.width, accumulator.itemsize)
        self._tables = tap_offsets(problem.vertical, problem.vertical.taps), tap_offsets(problem.horizontal, layout.taps)
        self._addresses = tuple(map(address, self._tables))
        self._sizes = (*problem.sizes2[level], layout.rows, layout.taps, layout.groups)
        self._contiguous = problem.vertical.step == 1, problem.horizontal.step == 1

    @staticmethod
    def scratch_bytes(problem: Problem) -> int:
        """Return the bytes of scratch memory of a call: a list of taps and their positions."""
        layout = dots_layout(problem)
        return 2 * 8 * layout.rows * layout.taps

    @staticmethod
    def padding(problem: Problem) -> int:
        """Return how many elements before and after the dots the kernel may read."""
        return dots_layout(problem).pitch

    def update(
        self,
        rectangles: Span,
        features: int,
        image: int,
        channels: int,
        memory: Memory,
        kept: int,
        todo: int,
        scratch: int,
    ) -> int:
        """Update the dots of rectangles, and return the number of windows that are left to `dot_kernel`.

        Parameters
        ----------
        features, image
            The addresses of the packed pixels and maps, with so many channels in memory.
        memory
            The new windows, and the dots, which have `padding` around them.
        kept
            The address of the origins of the windows that the dots are those of, which become the new ones.
        todo
            The address of the origins for `dot_kernel`: `SKIP` in all but the windows that are left to it.
        scratch
            The address of `scratch_bytes` bytes.
        """
        count = np.zeros(1, np.int64)
        arrays = features, image, memory.origins, kept, todo, address(count), scratch, memory.dots
        self._kernel(*rectangles, *arrays, *self._addresses, channels, memory.queries, *self._sizes, *self._contiguous)
        return int(count[0])


_ARGUMENTS = {
    **TABLE,
    **dict(
        features=VALUES, image=VALUES, origins=OFFSETS, kept=OFFSETS, todo=OFFSETS, left=OFFSETS, scratch=OFFSETS, dots=VALUES
    ),
    **dict(by_row=OFFSETS, by_column=OFFSETS),
    **dict.fromkeys(("channels", "queries", "height", "width", "rows", "taps", "groups", "contiguous_y", "contiguous_x"), NUMBER),
}


@dataclass(frozen=True, slots=True)
class _Move:
    """A window that moved: its pixel, its dots, where it is now, and how far it moved."""

    feature: Any
    dots: Any
    y: Any
    x: Any
    dy: Any
    dx: Any


def _kernel(width: int, itemsize: int) -> Callable[..., None]:
    with lock:
        return _compiled(width, itemsize)


@cache
def _compiled(width: int, itemsize: int) -> Callable[..., None]:
    return compiled(lambda: _MoveWriter(width, itemsize))


class _MoveWriter(ProductWriter):
    """A writer of the kernel, which computes ``width`` taps at once."""

    def __init__(self, width: int, itemsize: int) -> None:
        super().__init__("moved", _ARGUMENTS, itemsize)
        self.width = width
        b, named = self.builder, self.arguments
        self.rows, self.taps = named["rows"], named["taps"]
        self.pitch = b.mul(named["groups"], self.number(width))
        window = b.mul(self.rows, self.taps)
        # The positions of the taps that entered, and the numbers of these taps.
        self.positions, self.numbers = named["scratch"], self.at(named["scratch"], window)
        self.entered = b.alloca(self.index)
        self.sums = b.alloca(self.vector(width))
        self.each_rectangle(self._rectangle)
        b.ret_void()

    def _rectangle(self, rectangle: Rectangle) -> None:
        """Write the loop over the queries of a rectangle, column by column: neighbours in a column share most of what entered."""
        b, named = self.builder, self.arguments

        def query(x: Any, y: Any) -> None:
            slot = b.add(rectangle.slot, b.add(b.mul(y, rectangle.columns), x))
            feature = b.add(b.mul(y, rectangle.features_row), b.mul(x, named["channels"]))
            self._query(slot, self.at(named["features"], rectangle.features, feature), self.at(named["image"], rectangle.image))

        count = b.mul(rectangle.rows, rectangle.columns)
        self.by_vectors(count, self.lanes, lambda index, lanes: self._skip(b.add(rectangle.slot, index), lanes))
        self.loop(rectangle.columns, lambda x, _: self.loop(rectangle.rows, lambda y, _: query(x, y)))

    def _skip(self, slot: Any, lanes: int) -> None:
        """Write that nothing is left of some queries for `dot_kernel`."""
        skip = self.ir.Constant(self.ir.VectorType(self.index, lanes), [SKIP] * lanes)
        pointer = self.builder.bitcast(self.at(self.arguments["todo"], slot), skip.type.as_pointer())
        self.builder.store(skip, pointer, align=8)

    def _query(self, slot: Any, feature: Any, image: Any) -> None:
        b, named = self.builder, self.arguments
        new, kept, todo = (
            [self.at(named[name], slot), self.at(named[name], named["queries"], slot)] for name in ("origins", "kept", "todo")
        )
        now, was = [b.load(each) for each in new], [b.load(each) for each in kept]
        dy, dx = (b.sub(one, other) for one, other in zip(now, was, strict=True))
        with b.if_then(b.icmp_signed("!=", b.or_(dy, dx), self.number(0)), likely=False):
            for origin, target in zip(now, kept, strict=True):
                b.store(origin, target)
            dots = self.at(named["dots"], b.mul(slot, b.mul(self.rows, self.pitch)))
            with b.if_else(self._keeps_enough(dy, dx)) as (enough, less):
                with enough:
                    self._move(_Move(feature, dots, now[0], now[1], dy, dx), image)
                with less:
                    for origin, target in zip(now, todo, strict=True):
                        b.store(origin, target)
                    b.store(b.add(b.load(named["left"]), self.number(1)), named["left"])

    def _keeps_enough(self, dy: Any, dx: Any) -> Any:
        """Write whether enough taps stay in the window; along an axis with gaps, they do only if it did not move."""
        b, named = self.builder, self.arguments
        staying = []
        for moved, count, axis in ((dy, self.rows, "y"), (dx, self.taps, "x")):
            distance = self.larger(moved, b.neg(moved))
            contiguous = b.icmp_signed("!=", named[f"contiguous_{axis}"], self.number(0))
            possible = b.or_(contiguous, b.icmp_signed("==", moved, self.number(0)))
            staying.append(b.select(possible, self.larger(b.sub(count, distance), self.number(0)), self.number(0)))
        taps = b.mul(self.rows, self.taps)
        return b.icmp_signed(">=", b.mul(b.mul(*staying), self.number(KEPT[1])), b.mul(taps, self.number(KEPT[0])))

    def _move(self, move: _Move, image: Any) -> None:
        self._shift(move)
        self._list_entered(move)
        b = self.builder
        width = self.number(self.width)
        count = b.load(self.entered)
        groups = b.sdiv(b.add(count, b.sub(width, self.number(1))), width)
        last = b.sub(count, self.number(1))
        self.loop(groups, lambda group, _: self._compute(move, image, b.mul(group, width), last))

    def _shift(self, move: _Move) -> None:
        """Write the shift of the taps that stay, where they are. Other taps get values that are replaced afterwards.

        Rows and groups come in the order in which none is overwritten before it is read.
        """
        b, width = self.builder, self.number(self.width)
        groups = self.arguments["groups"]

        def row(index: Any, _: Sequence[Any]) -> None:
            r = self._in_order(move.dy, index, self.rows)
            source = b.add(r, move.dy)
            with b.if_then(b.icmp_unsigned("<", source, self.rows)):
                begin = self.at(move.dots, b.add(b.mul(source, self.pitch), move.dx))
                target = self.at(move.dots, b.mul(r, self.pitch))

                def group(index: Any, _: Sequence[Any]) -> None:
                    at = b.mul(self._in_order(move.dx, index, groups), width)
                    self.store(self.load(self.at(begin, at), self.vector(self.width)), self.at(target, at))

                self.loop(groups, group)

        self.loop(self.rows, row)

    def _in_order(self, moved: Any, index: Any, count: Any) -> Any:
        """Write the index from the first one on, or from the last one on if the window moved backwards."""
        b = self.builder
        backwards = b.sub(b.sub(count, self.number(1)), index)
        return b.select(b.icmp_signed("<", moved, self.number(0)), backwards, index)

    def _list_entered(self, move: _Move) -> None:
        """Write the list of the taps that entered and are inside the map, and 0 into those outside."""
        b, named = self.builder, self.arguments
        zero = self.number(0)
        b.store(zero, self.entered)
        right = b.icmp_signed(">", move.dx, zero)
        begin, end = b.select(right, b.sub(self.taps, move.dx), zero), b.select(right, self.taps, b.neg(move.dx))

        def row(r: Any, _: Sequence[Any]) -> None:
            stays = b.icmp_unsigned("<", b.add(r, move.dy), self.rows)
            first, last = b.select(stays, begin, zero), b.select(stays, end, self.taps)
            y = b.add(move.y, b.load(self.at(named["by_row"], r)))
            self.loop(b.sub(last, first), lambda index, _: tap(r, b.add(first, index), y))

        def tap(r: Any, t: Any, y: Any) -> None:
            x = b.add(move.x, b.load(self.at(named["by_column"], t)))
            number = b.add(b.mul(r, self.pitch), t)
            inside = b.and_(b.icmp_unsigned("<", y, named["height"]), b.icmp_unsigned("<", x, named["width"]))
            with b.if_else(inside) as (in_map, outside):
                with in_map:
                    count = b.load(self.entered)
                    position = b.mul(b.add(b.mul(y, named["width"]), x), named["channels"])
                    b.store(position, self.at(self.positions, count))
                    b.store(number, self.at(self.numbers, count))
                    b.store(b.add(count, self.number(1)), self.entered)
                with outside:
                    b.store(self.ir.Constant(self.element, 0.0), self.at(move.dots, number))

        self.loop(self.rows, row)

    def _compute(self, move: _Move, image: Any, begin: Any, last: Any) -> None:
        """Write the dots of some taps of the list; a group that is not full ends with its last tap again and again."""
        b, channels = self.builder, self.arguments["channels"]
        places = [self.smaller(b.add(begin, self.number(tap)), last) for tap in range(self.width)]
        positions = [self.at(image, b.load(self.at(self.positions, place))) for place in places]

        def segment(number: Any, totals: Sequence[Any]) -> list:
            channel, vectors = self.segment(channels, number)
            taps = [self.at(position, channel) for position in positions]
            return [b.fadd(totals[0], self.products([self.at(move.feature, channel)], taps, vectors)[0])]

        total = self.loop(self.segments(channels), segment, [self.zero(self.vector(self.width))])[0]
        b.store(total, self.sums)
        for tap, place in enumerate(places):
            value = b.load(self.at(b.bitcast(self.sums, self.element.as_pointer()), self.number(tap)))
            b.store(value, self.at(move.dots, b.load(self.at(self.numbers, place))))
