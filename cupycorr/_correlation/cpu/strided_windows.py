"""Gradients of windows whose stride is much larger than a pixel, as in PIV: rows of pixels in the same windows share their sums.

    gradient[b, c, y, x] = sum over m, n of sums[m, n, y1, x1] * other[b, c, y2, x2]
    sums[m, n, y1, x1] = sum of cotangent[b, m, n, i, j] over the windows (i, j) that have the pixel (y1, x1) of input1

Displacement (m, n) pairs the pixel (y1, x1) of input1 with (y2, x2) of input2, and a gradient has one of them as (y, x). A
stretch is a run of rows of input1 that are in the same windows: the sums are computed once for each stretch, not for each row.
One kernel that LLVM compiles multiplies them, and threads share its rows. Values that are not finite are left to `non_finite`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from typing import Any

import numpy as np

from ..._cpu import workers
from ..._cpu.llvm import NUMBER, OFFSETS, VALUES, KernelWriter, address, compiled, in_elements, lock, registers
from ..._dispatch import FORWARD, Request
from ..._dtypes import LONGEST_CHAIN, element_type_called
from ..._sharing import CachedProperty
from ..problem import Axis, Problem
from . import cotangent_kernel
from .blocks import split_range
from .costs import COPIED, CYCLE, STRIDED_CALL, STRIDED_COLUMN, STRIDED_TERM_CYCLES, TASK
from .lattice import Window
from .packing import copy

VECTORS = 4  # vectors of columns that the kernel sums at once
ROWS_AT_ONCE = 16  # rows of a task
_OTHERS, _GRADIENTS = ("input2", "input1"), ("gradient1", "gradient2")  # of the gradient of each input
FEWEST_SHARED = 4  # rows that share sums, on average; with fewer the general plan is as fast


def why_not(request: Request) -> str | None:
    """Return the reason why gradients cannot be computed in this way, or None."""
    problem = request.problem
    if request.pass_name == FORWARD:
        return "only gradients are computed in this way"
    if problem.parameters.dilation != (1, 1):
        return "the window has gaps"
    if not problem.fits_64_bits:
        return "positions do not fit into 64 bits"
    if problem.vertical.stride < FEWEST_SHARED:
        return "windows are too close for rows to share sums"
    if min(problem.out_shape) < 1 or min(*problem.shape1, *problem.shape2) < 1:
        return "there is nothing to sum"
    needed = StridedWindows.of(request).workspace
    return f"the sums take {needed} bytes" if needed > workers.WORKSPACE else None


@dataclass(frozen=True, slots=True)
class Side:
    """The geometry of one gradient: its image, the other one, and the direction of a displacement from it to the other one."""

    image: tuple[int, int]
    other: tuple[int, int]
    sign: int

    def pixel1(self, position: Any, displacement: Any) -> Any:
        """Return the position in input1 of a pixel of the gradient at a displacement."""
        return position if self.sign > 0 else position - displacement

    def partner(self, position: Any, displacement: Any) -> Any:
        """Return the position in the other image of a pixel of the gradient at a displacement."""
        return position + self.sign * displacement


class StridedWindows:
    """The plan of the gradients.

    Parameters
    ----------
    problem
        The problem.
    accumulator
        The dtype of sums.
    needs
        For each input, True if its gradient is needed.
    """

    def __init__(self, problem: Problem, accumulator: np.dtype, needs: tuple[bool, bool]) -> None:
        self.problem, self.dtype = problem, accumulator
        sizes = problem.size1, problem.size2
        self.sides = {number: Side(sizes[number], sizes[1 - number], sign) for number, sign in ((0, 1), (1, -1)) if needs[number]}
        self.block = VECTORS * registers().widths[0] // accumulator.itemsize
        displacements = problem.horizontal.displacements
        self.before = max(-displacements[0], displacements[-1], 0)  # zeros before the columns of packed rows
        widest = max(problem.size1[1], problem.size2[1])
        self.width = 2 * self.before + -(-widest // self.block) * self.block

    @classmethod
    def of(cls, request: Request) -> StridedWindows:
        """Return the plan of a request."""
        accumulator = element_type_called("dtype", request.dtype).accumulator_dtype
        return cls(request.problem, accumulator, (request.needs[0], request.needs[1]))

    @CachedProperty
    def stretches(self) -> tuple[np.ndarray, np.ndarray]:
        """The first row of each stretch, and the number of the stretch of each row of input1."""
        axis = self.problem.vertical
        table = _terms(axis, axis.padding, axis.padding + axis.size1).table
        begins = np.concatenate(([True], (table[1:] != table[:-1]).any(1)))
        return np.flatnonzero(begins), np.cumsum(begins) - 1

    @CachedProperty
    def workspace(self) -> int:
        """The bytes of the sums, the packed image and the rows of a gradient."""
        (_, patch_rows, patch_columns, _, _), problem = self.problem.out_shape, self.problem
        sums = patch_rows * patch_columns * len(self.stretches[0]) * self.width
        rows = self.width * 2 * max(problem.size1[0], problem.size2[0])
        return (sums + rows) * self.dtype.itemsize

    @CachedProperty
    def seconds(self) -> float:
        """The time in one thread by the cost model."""
        batch, channels, height, width = self.problem.shape1
        displacements = prod(self.problem.parameters.patch_size)
        sums = displacements * len(self.stretches[0]) * self.width
        vectors = VECTORS * -(-width // self.block)
        products = channels * len(self.sides) * height * displacements * vectors * STRIDED_TERM_CYCLES * CYCLE
        tasks = channels * len(self.sides) * -(-height // ROWS_AT_ONCE)
        return STRIDED_CALL + batch * (sums * COPIED * STRIDED_COLUMN + products + tasks * TASK)

    def run(self, arrays: Mapping[str, np.ndarray], threads: int) -> None:
        """Write the gradients that are needed."""
        for sample in range(self.problem.batch):
            with ExitStack() as memory:
                sums = self._sums(arrays["cotangent"][sample], threads, memory)
                for number, side in self.sides.items():
                    other, result = (
                        arrays[("input2", "input1")[number]][sample],
                        arrays[("gradient1", "gradient2")[number]][sample],
                    )
                    for image, gradient in zip(other, result, strict=True):
                        self._channel(side, sums, image, gradient, threads)

    def _sums(self, cotangent: np.ndarray, threads: int, memory: ExitStack) -> np.ndarray:
        """Return the sums of each displacement and stretch, ``[m, n, stretch, before + x1]``, 0 outside the columns of input1."""
        vertical, horizontal = self.problem.vertical, self.problem.horizontal
        first, _ = self.stretches
        patch_rows, patch_columns = cotangent.shape[:2]
        if not in_elements(cotangent):
            cotangent = cotangent.copy()
        sums: np.ndarray = memory.enter_context(workers.scratch((patch_rows, patch_columns, len(first), self.width), self.dtype))
        whole = _terms(vertical, vertical.padding, vertical.padding + vertical.size1)
        of_rows = cotangent_kernel.Terms(np.ascontiguousarray(whole.table[first]), whole.step, whole.read)
        rows = cotangent_kernel.Rows(np.array([(0, len(first), 0)], np.int64), 0, of_rows)
        origin = horizontal.padding - self.before
        valid = np.array([(self.before, self.before + horizontal.size1)] * patch_columns, np.int64)
        columns = cotangent_kernel.Columns(valid, origin, _terms(horizontal, origin, origin + self.width))

        def write(m: int) -> None:
            cotangent_kernel.write(cotangent[m : m + 1], rows, columns, sums[m : m + 1])

        workers.run(write, range(patch_rows), threads)
        return sums

    def _channel(self, side: Side, sums: np.ndarray, image: np.ndarray, gradient: np.ndarray, threads: int) -> None:
        """Write the gradient of one channel."""
        height, width = side.image
        with ExitStack() as memory:
            other = memory.enter_context(workers.scratch((side.other[0], self.width), self.dtype))
            inside = min(side.other[1], self.width - self.before)
            other[:, : self.before] = 0
            other[:, self.before + inside :] = 0
            copy(image[:, :inside], other[:, self.before : self.before + inside], compiled=True)
            total = memory.enter_context(workers.scratch((height, -(-width // self.block) * self.block), self.dtype))
            valid, offsets = self._rows(side, sums, other)

            def compute(rows: tuple[int, int]) -> None:
                begin, end = rows
                self._multiply(side, sums, other, valid[begin:end], offsets[begin:end], total[begin:end])
                found = total[begin:end, :width]
                if self.problem.parameters.scale != 1:
                    found *= self.dtype.type(self.problem.parameters.scale)
                copy(found, gradient[begin:end], compiled=True)

            workers.run(compute, split_range(0, height, ROWS_AT_ONCE), threads)

    def _rows(self, side: Side, sums: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return for each row of a gradient the range of its displacement rows, and the offsets of the factors of each of them.

        The offsets are those of column 0 at the first displacement of a row.
        """
        vertical, horizontal = self.problem.vertical, self.problem.horizontal
        y, dy = np.arange(side.image[0])[:, None], np.array(vertical.displacements)
        pixel1, partner = side.pixel1(y, dy), side.partner(y, dy)
        inside = (pixel1 >= 0) & (pixel1 < vertical.size1) & (partner >= 0) & (partner < side.other[0])
        first, count = inside.argmax(1), inside.sum(1)  # displacements ascend, so that those inside are neighbours
        _, stretch = self.stretches
        column1, column = (at(0, horizontal.displacements[0]) + self.before for at in (side.pixel1, side.partner))
        along_m, _, along_row, _ = (stride // sums.itemsize for stride in sums.strides)
        of_sums = np.arange(len(dy)) * along_m + stretch[np.clip(pixel1, 0, vertical.size1 - 1)] * along_row + column1
        of_other = partner * other.shape[1] + column
        valid = np.stack((first, count), 1).astype(np.int64)
        return valid, np.ascontiguousarray(np.stack((of_sums, of_other), 2).astype(np.int64))

    def _multiply(
        self, side: Side, sums: np.ndarray, other: np.ndarray, valid: np.ndarray, offsets: np.ndarray, total: np.ndarray
    ) -> None:
        """Write the sums of products of some rows."""
        step, (_, patch_columns) = self.problem.horizontal.step, self.problem.parameters.patch_size
        along_n = sums.strides[1] // sums.itemsize + side.pixel1(0, step)
        _kernel(self.dtype.itemsize)(
            *map(address, (sums, other, total, valid, offsets)),
            *(len(total), total.shape[1] // self.block, sums.shape[0], patch_columns),
            *(along_n, side.partner(0, step), total.strides[0] // total.itemsize),
        )


def _terms(axis: Axis, begin: int, end: int) -> cotangent_kernel.Terms:
    """Return the windows that have each index ``[begin, end)`` of an axis, counted from the first window's first pixel."""
    return cotangent_kernel.terms(Window(axis.kernel, axis.dilation, axis.stride), axis.out, begin, end)


# The kernel -------------------------------------------------------------------------------------------------------------------

_ARGUMENTS = {
    **dict(sums=VALUES, other=VALUES, total=VALUES, valid=OFFSETS, offsets=OFFSETS),
    **dict.fromkeys(("rows", "blocks", "patch_rows", "patch_columns", "sums_n", "other_n", "total_row"), NUMBER),
}


def _kernel(itemsize: int) -> Callable[..., None]:
    with lock:
        return _compiled(itemsize)


@cache
def _compiled(itemsize: int) -> Callable[..., None]:
    return compiled(partial(_ProductWriter, itemsize))


class _ProductWriter(KernelWriter):
    """A writer of the kernel: for each row and block of columns, the products of all displacements are added up in registers."""

    def __init__(self, itemsize: int) -> None:
        super().__init__("strided_windows", _ARGUMENTS, itemsize)
        self.lanes = registers().widths[0] // itemsize
        named = self.arguments
        self.loop(named["rows"], lambda y, _: self.loop(named["blocks"], lambda block, _: self._block(y, block)))
        self.builder.ret_void()

    def _block(self, y: Any, block: Any) -> None:
        """Write the sums of a block of columns of a row."""
        b, named, vector = self.builder, self.arguments, self.vector(self.lanes)
        x = b.mul(block, self.number(VECTORS * self.lanes))
        first, count = (b.load(self.at(named["valid"], b.add(b.mul(y, self.number(2)), self.number(at)))) for at in (0, 1))

        def displacement_row(index: Any, total: Sequence[Any]) -> list:
            entry = b.add(b.mul(y, named["patch_rows"]), b.add(first, index))
            factors = [
                self.at(named[name], b.load(self.at(named["offsets"], b.add(b.mul(entry, self.number(2)), self.number(at)))), x)
                for at, name in enumerate(("sums", "other"))
            ]
            return self._chains(factors, total)

        total = self.loop(count, displacement_row, [self.zero(vector)] * VECTORS)
        target = self.at(named["total"], b.mul(y, named["total_row"]), x)
        for number, values in enumerate(total):
            self.store(values, self.at(target, self.number(number * self.lanes)))

    def _chains(self, factors: Sequence[Any], total: Sequence[Any]) -> list:
        """Write the products of a row of displacements, in chains that are added to the total."""
        b, longest, vector = self.builder, self.number(LONGEST_CHAIN.registers), self.vector(self.lanes)
        columns = self.arguments["patch_columns"]

        def chain(number: Any, total: Sequence[Any]) -> list:
            begin = b.mul(number, longest)

            def term(n: Any, sums: Sequence[Any]) -> list:
                index = b.add(begin, n)
                left, right = (
                    self.at(factor, b.mul(index, self.arguments[f"{name}_n"]))
                    for factor, name in zip(factors, ("sums", "other"), strict=True)
                )
                offsets = [self.number(each * self.lanes) for each in range(VECTORS)]
                return [
                    self.multiply_add(sum_, self.load(self.at(left, at), vector), self.load(self.at(right, at), vector))
                    for sum_, at in zip(sums, offsets, strict=True)
                ]

            sums = self.loop(self.smaller(b.sub(columns, begin), longest), term, [self.zero(vector)] * VECTORS)
            return [b.fadd(one, other) for one, other in zip(total, sums, strict=True)]

        chains = b.sdiv(b.add(columns, self.number(LONGEST_CHAIN.registers - 1)), longest)
        return self.loop(chains, chain, total)
