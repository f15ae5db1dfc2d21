"""One kernel for sums of products: a tile of sums held in vector registers, compiled by LLVM for this machine.

    for each entry e of a table, each column x, each r < rows, each q < width:
        total[total_r(e) + q total_q + x] += sum over k of left[left_r(e) + left_k + x] * right[right(e) + right_q + right_k + x]

The caller's table gives r, q and k their meaning. This module knows neither operators nor arrays, only addresses and offsets in
elements. The kernel keeps ``rows * width`` sums of one vector of columns in registers, so that every loaded value is used several
times. Sums start from zero and are added to ``total`` once: where the table bounds the number of k, that is a two-level
summation. A kernel is compiled when it is first needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from .llvm import NUMBER, OFFSETS, VALUES, VECTOR_BYTES, KernelWriter, compiled, registers, why_not
from .llvm import lock as _lock

__all__ = ["HEADER", "VECTOR_BYTES", "kernel", "registers", "why_not"]

HEADER = 4  # fields of a table entry before those of its rows: offset into right, first q, first k, number of k


def kernel(rows: int, width: int, dtype: np.dtype) -> Callable[..., None]:
    """Return the compiled kernel for a tile of ``rows`` x ``width`` sums of float32 or float64.

    Call it as ``kernel(left, right, total, entries, count, left_k, right_k, right_q, total_q, *vectors)``: four addresses, the
    number of entries, the addresses of three lists of int64 element offsets, the distance of neighbouring q in ``total``, and the
    number of vectors of each of the widths of `registers` that cover the columns. An entry is `HEADER` int64 values, then
    ``rows`` offsets into left, then ``rows`` offsets into total. The kernel runs without the interpreter's lock.
    """
    with _lock:
        return _compiled(rows, width, np.dtype(dtype).itemsize)


@cache
def _compiled(rows: int, width: int, itemsize: int) -> Callable[..., None]:
    return compiled(lambda: _TileWriter(rows, width, itemsize, registers().widths))


class _TileWriter(KernelWriter):
    """A writer of the kernel for one tile, from the outermost loop to the innermost."""

    def __init__(self, rows: int, width: int, itemsize: int, widths: Sequence[int]) -> None:
        counts = [f"vectors of {each} bytes" for each in widths]
        addresses = dict(left=VALUES, right=VALUES, total=VALUES, entries=OFFSETS)
        tables = dict(left_k=OFFSETS, right_k=OFFSETS, right_q=OFFSETS)
        numbers = dict.fromkeys(["total_q", *counts], NUMBER)
        super().__init__("tile", {**addresses, "count": NUMBER, **tables, **numbers}, itemsize)
        self.rows, self.width = rows, width
        named = self.arguments
        self.left, self.right, self.total, self.entries = (named[name] for name in addresses)
        self.left_k, self.right_k, self.right_q = (named[name] for name in tables)
        self.total_q = named["total_q"]
        self.vectors = [(each // itemsize, named[count]) for each, count in zip(widths, counts, strict=True)]
        self.loop(named["count"], self._entry)
        self.builder.ret_void()

    def _entry(self, e: Any, _: Sequence[Any]) -> None:
        """Write the code for one entry of the table: the loops over its vectors of columns."""
        b = self.builder
        at = b.mul(e, self.number(HEADER + 2 * self.rows))
        fields = [b.load(self.at(self.entries, b.add(at, self.number(f)))) for f in range(HEADER + 2 * self.rows)]
        right, first_q, first_k, terms = fields[:HEADER]
        lefts = [self.at(self.left, offset) for offset in fields[HEADER : HEADER + self.rows]]
        totals = [self.at(self.total, offset) for offset in fields[HEADER + self.rows :]]
        rights = []
        for q in range(self.width):
            offset = b.load(self.at(self.right_q, b.add(first_q, self.number(q))))
            rights.append(self.at(self.right, right, offset))
        steps = self.at(self.left_k, first_k), self.at(self.right_k, first_k)
        begin = self.number(0)
        for lanes, count in self.vectors:
            vector = self.vector(lanes)

            def columns(index: Any, _: Sequence[Any], begin: Any = begin, lanes: int = lanes, vector: Any = vector) -> None:
                x = b.add(begin, b.mul(index, self.number(lanes)))
                sums = self._products([self.at(p, x) for p in lefts], [self.at(p, x) for p in rights], steps, terms, vector)
                self._add([self.at(p, x) for p in totals], sums, vector)

            self.loop(count, columns)
            begin = b.add(begin, b.mul(count, self.number(lanes)))

    def _products(self, lefts: list, rights: list, steps: tuple, terms: Any, vector: Any) -> list:
        """Write the loop over k and return the sums of the tile, row by row."""
        b = self.builder

        def step(k: Any, sums: Sequence[Any]) -> list:
            left_k, right_k = (b.load(self.at(table, k)) for table in steps)
            values = [self.load(self.at(p, left_k), vector) for p in lefts]
            new = list(sums)
            for q, pointer in enumerate(rights):
                value = self.load(self.at(pointer, right_k), vector)
                for r in range(self.rows):
                    at = r * self.width + q
                    new[at] = self.multiply_add(sums[at], values[r], value)
            return new

        return self.loop(terms, step, [self.zero(vector)] * (self.rows * self.width))

    def _add(self, totals: list, sums: list, vector: Any) -> None:
        """Write the additions of the sums of the tile to the totals in memory."""
        b = self.builder
        for r, pointer in enumerate(totals):
            for q in range(self.width):
                target = self.at(pointer, b.mul(self.total_q, self.number(q)))
                new = b.fadd(self.load(target, vector), sums[r * self.width + q])
                self.store(new, target)
