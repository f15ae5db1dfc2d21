"""Kernels that compute one task of many: their numbers are in memory, and each thread lends them scratch memory.

`team` calls such a kernel for every task without coming back to Python. This module has what these kernels share: the numbers by
name, addresses of strided elements, and rows that are copied between zeros.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import reduce
from typing import Any

from .llvm import NUMBER, OFFSETS, VALUES, KernelWriter, registers


def bits(value: float) -> int:
    """Return the bits of a float64 as an int64, from which `TaskKernel.value` makes the value again."""
    return struct.unpack("q", struct.pack("d", value))[0]


class TaskKernel(KernelWriter):
    """A writer of a kernel ``(numbers, task, scratch)``; ``named`` has its numbers, which are loaded once.

    A subclass writes the code with ``builder`` and ends it with ``builder.ret_void()``.
    """

    def __init__(self, name: str, names: Sequence[str], itemsize: int) -> None:
        super().__init__(name, {"numbers": OFFSETS, "task": NUMBER, "scratch": VALUES}, itemsize)
        self.lanes = registers().widths[0] // itemsize
        b, table = self.builder, self.arguments["numbers"]
        self.named = {each: b.load(self.at(table, self.number(place))) for place, each in enumerate(names)}
        self.scratch = self.arguments["scratch"]

    def pointer(self, name: str, dtype: str | None = None) -> Any:
        """Write the pointer to `stored` elements of a dtype, by default to values, whose address is a number."""
        element = self.element if dtype is None else self.stored(dtype)
        return self.builder.inttoptr(self.named[name], element.as_pointer())

    def value(self, name: str) -> Any:
        """Write the value whose `bits` are a number."""
        double = self.builder.bitcast(self.named[name], self.ir.DoubleType())
        return double if self.itemsize == 8 else self.builder.fptrunc(double, self.element)

    def offset(self, *terms: tuple[Any, str]) -> Any:
        """Write the sum of indices, each times the number with that name."""
        products = [self.builder.mul(index, self.named[name]) for index, name in terms]
        return reduce(self.builder.add, products)

    def spaced(self, pointer: Any, distance: Any, count: int) -> list:
        """Write ``count`` pointers from one on, each a distance after the one before."""
        found = [pointer]
        for _ in range(count - 1):
            found.append(self.at(found[-1], distance))
        return found

    def clipped(self, value: Any, low: Any, high: Any) -> Any:
        """Write a number limited to a range."""
        return self.smaller(self.larger(value, low), high)

    def row_between_zeros(self, source: Any, along: Any, dtype: str, target: Any, inside: tuple[Any, Any], width: Any) -> None:
        """Write the copy of elements into the columns ``inside`` of a row of values, and zeros into its other columns.

        ``source`` points to the element of the first of these columns, and ``along`` is the distance of the next one.
        """
        b, (begin, end) = self.builder, inside

        def copy(x: Any, lanes: int) -> None:
            self.store(self.widened(self.at(source, b.mul(x, along)), dtype, lanes), self.at(target, begin, x))

        self.zeros(target, self.number(0), begin, self.lanes)
        self.along_row(b.sub(end, begin), self.lanes, b.icmp_signed("==", along, self.number(1)), copy)
        self.zeros(target, end, width, self.lanes)
