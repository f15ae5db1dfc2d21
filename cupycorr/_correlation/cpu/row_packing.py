"""The kernel that packs neighbouring rows of the search image, with all channels of a row together, and zeros beside the image.

    packed[b, y, c, x] = search[b, c, y + first_row, x + first_column]    for begin <= x < end,    else 0

A task has several rows, which are neighbours in the memory of a channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from ..._cpu.llvm import compiled, lock
from ..._cpu.task_kernel import TaskKernel
from .row_kernel import Kernel, itemsize_of

NUMBERS = (
    *("source", "source_b", "source_c", "source_y", "source_x", "channels"),
    *("packed", "width", "rows", "tasks", "rows_of_task", "first_row", "first_column", "begin", "end"),
)


def kernel(dtype: str, accumulator: str) -> Kernel:
    """Return the kernel for a dtype of the image, whose values it converts to that of the sums."""
    with lock:
        return _compiled(dtype, accumulator)


@cache
def _compiled(dtype: str, accumulator: str) -> Kernel:
    return compiled(lambda: _PackingWriter(dtype, itemsize_of(accumulator)))


class _PackingWriter(TaskKernel):
    """A writer of the kernel."""

    def __init__(self, dtype: str, itemsize: int) -> None:
        super().__init__("pack_rows", NUMBERS, itemsize)
        b, named, task = self.builder, self.named, self.arguments["task"]
        sample, first_row = b.sdiv(task, named["tasks"]), b.mul(b.srem(task, named["tasks"]), named["rows_of_task"])
        rows = self.smaller(b.sub(named["rows"], first_row), named["rows_of_task"])
        y, x = b.add(named["first_row"], first_row), b.add(named["first_column"], named["begin"])
        first = self.offset((sample, "source_b"), (y, "source_y"), (x, "source_x"))
        source = self.at(self.pointer("source", dtype), first)
        of_row = b.mul(named["channels"], named["width"])
        packed = self.at(self.pointer("packed"), b.mul(b.add(b.mul(sample, named["rows"]), first_row), of_row))

        def channel(c: Any, _: Sequence[Any]) -> None:
            def row(r: Any, _: Sequence[Any]) -> None:
                found = self.at(source, self.offset((c, "source_c"), (r, "source_y")))
                target = self.at(packed, b.mul(r, of_row), self.offset((c, "width")))
                inside = named["begin"], named["end"]
                self.row_between_zeros(found, named["source_x"], dtype, target, inside, named["width"])

            self.loop(rows, row)

        self.loop(named["channels"], channel)
        b.ret_void()
