"""Gradients in phases: what ``gradient_phases.cuh`` is called with, for every kernel that answers tiles of them.

The gradients of windows of one pixel, of both inputs in one launch, where the stride divides the step between displacements. A
long sum, or one of a problem too small to fill the device, is cut into parts that blocks of their own make and sum_parts.cu adds
up: the same parts in the same order every time. The kernels and their tiles are known elsewhere.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import Any, ClassVar

import numpy as np

from ..._dtypes import ELEMENT_TYPES
from ..._gpu.call import NOWHERE, Array, Call, Pointer
from ..._gpu.costs import LAUNCH, machine
from ..._gpu.device import Device
from ..._gpu.layout import Layout, ceil_div, new_layout
from ..._gpu.plan import Plan
from ..._gpu.source import Kernel
from ..._gpu.sum_parts import sum_parts
from .axes import Line

LONGEST = 512  # terms that one accumulator adds up: the error of a chain grows with its length, the bound with the root of that
WORKSPACE = 256 * 2**20  # bytes of parts that are only made to fill the device
ALIGNMENT = 256  # bytes, of each operand's parts

_SAFE = 2**29  # two positions below it, and a tile beyond them, have a sum of 32 bits
_PLANE = 2**30  # elements between the first and the last of a plane
_MOST_BLOCKS = 2**30  # of a launch


# Problems ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Operand:
    """The gradient of input ``number``, from the other input.

    One that is not needed is not made, but counts in what is chosen: the other has the same bits with it and without.
    """

    number: int
    other: Array
    result: Array
    needed: bool = True


def reason(vertical: Line, horizontal: Line, cotangent: Layout, operands: Sequence[Operand], way: str) -> str | None:
    """None, or why gradients cannot go through phases, in words; ``way`` says who wants to know."""
    images = [layout for operand in operands for layout, _ in (operand.other, operand.result)]
    axes = [normal(axis) for axis in (vertical, horizontal)]
    names = {layout.dtype for layout in images}
    for axis in axes:
        if axis.kernel != 1:
            return f"a window of {vertical.kernel} x {horizontal.kernel} pixels, {way} are for windows of one pixel"
        if axis.step % axis.stride:
            return f"stride {axis.stride} does not divide dilation_patch {axis.step}"
    if len(names) != 1 or cotangent.dtype not in {each for layout in images for each in (layout.dtype, layout.accumulator.name)}:
        return f"no kernel takes a cotangent in {cotangent.dtype} to gradients in {' and '.join(sorted(names))}"
    if max(axis.reach for axis in axes) >= _SAFE:
        return f"positions of {_SAFE} pixels and more"
    if max(_plane_extent(layout) for layout in (cotangent, *images)) >= _PLANE:
        return f"a plane of {_PLANE} elements and more"
    return None


def reason_of_size(tilings: Iterable[Tiling]) -> str | None:
    """None, or that one of these has more blocks than a launch can count."""
    most = max(tiling.blocks for tiling in tilings)
    return f"{_MOST_BLOCKS} blocks and more" if most >= _MOST_BLOCKS else None


def normal(axis: Line) -> Line:
    """An axis with a step that can be divided by."""
    if axis.step == 0:  # the images do not meet at any displacement
        axis = replace(axis, patch=1)
    return replace(axis, step=axis.stride) if axis.patch == 1 else axis


def phases_together(horizontal: Line) -> int:
    """Phases of the columns that a block has: two where whole rows are read and written that way."""
    return 2 if horizontal.step == 2 and horizontal.stride == 1 else 1


def _plane_extent(layout: Layout) -> int:
    return sum(abs(stride) * (size - 1) for size, stride in zip(layout.shape[-2:], layout.strides[-2:], strict=True))


# Tilings ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parts:
    """How the displacements are shared between blocks: numbers of parts, and displacements of each at most."""

    of_rows: int
    rows: int
    of_columns: int
    columns: int

    @property
    def count(self) -> int:
        """Of a sum."""
        return self.of_rows * self.of_columns


@dataclass(frozen=True, slots=True)
class Tiling:
    """One way to answer a problem, and what it takes by count. Each kernel has a class of its own.

    Attributes
    ----------
    tile
        What a block works on: its ``phases`` of columns, ``channels`` and ``rows``.
    parts
        How the displacements are shared between blocks.
    vertical, horizontal
        The axes, `normal`.
    operands
        The gradients.
    """

    where: ClassVar[str] = "in shared memory"  # products are made of tiles

    tile: Any
    parts: Parts
    vertical: Line
    horizontal: Line
    operands: Sequence[Operand]

    @property
    @abstractmethod
    def columns(self) -> int:
        """Of a block, of all its phases."""

    @property
    @abstractmethod
    def threads(self) -> int:
        """Of a block."""

    @property
    @abstractmethod
    def shared(self) -> int:
        """Bytes of shared memory of a block."""

    @abstractmethod
    def kernel(self, cotangent: str, result: str) -> Kernel:
        """The build for these element types."""

    @abstractmethod
    def numbers(self) -> tuple[int, ...]:
        """Arguments that only this kernel has."""

    @abstractmethod
    def working(self, device: Device) -> float:
        """Seconds that the blocks are expected to take."""

    @property
    def dtype(self) -> str:
        """Of the inputs."""
        return self.operands[0].other[0].dtype

    @property
    def how(self) -> str:
        """The tiling in words."""
        shared = f", each sum made in {self.parts.count} parts" if self.parts.count > 1 else ""
        return f"tiles of {self.tile.channels} channels x {self.tile.rows} x {self.columns} pixels {self.where}{shared}"

    @property
    def blocks(self) -> int:
        """Of the launch."""
        return sum(map(self.blocks_of, self.operands))

    def blocks_of(self, operand: Operand) -> int:
        """Of one operand."""
        batch, channels, height, width = operand.result[0].shape
        rows = tiles_along(height, self.vertical.step, self.tile.rows)
        columns = tiles_along(width, self.horizontal.step // self.tile.phases, self.columns)
        return self.parts.count * batch * ceil_div(channels, self.tile.channels) * rows * columns

    def volumes(self, workspace: Pointer) -> tuple[list[Array], int]:
        """Where the parts of each operand's sums lie in the workspace, and the bytes of all of them."""
        volumes, size = [], 0
        for operand in self.operands if self.parts.count > 1 else ():
            result = operand.result[0]
            volume = new_layout(result.accumulator.name, (self.parts.count, *result.shape))
            volumes.append((volume, replace(workspace, offset=workspace.offset + size)))
            size += ceil_div(volume.shape[0] * volume.strides[0] * volume.itemsize, ALIGNMENT) * ALIGNMENT
        return volumes, size

    def calls(self, cotangent: Array, scale: float, workspace: Pointer) -> Iterator[Call]:
        """The launches, in order."""
        volumes, _ = self.volumes(workspace)
        if not volumes:
            yield self._call(cotangent, [operand.result for operand in self.operands], scale)
            return
        yield self._call(cotangent, volumes, 1.0)
        for volume, operand in zip(volumes, self.operands, strict=True):
            yield sum_parts(volume, operand.result, scale)

    def _call(self, cotangent: Array, targets: Sequence[Array], scale: float) -> Call:
        """The launch of the kernel; it stores to ``targets``, which may have an axis of parts."""
        unused = (Layout(self.dtype, (1,) * 4, (0,) * 4), NOWHERE)
        inputs = {3 - operand.number: operand.other for operand in self.operands}
        gradients = {operand.number: target for operand, target in zip(self.operands, targets, strict=True)}
        arrays = [cotangent, *(inputs.get(k, unused) for k in (1, 2)), *(gradients.get(k, unused) for k in (1, 2))]
        strides = [layout.strides for layout, _ in arrays]
        strides[3:] = [(0,) * (5 - len(each)) + each for each in strides[3:]]  # no step from part to part where there is one
        integers = (
            self.blocks,
            sum(self.blocks_of(operand) for operand in self.operands if operand.number == 1),
            self.operands[0].other[0].shape[1],
            *_numbers(self.vertical),
            *_numbers(self.horizontal),
            *(self.parts.of_rows, self.parts.rows, self.parts.of_columns, self.parts.columns),
            *self.numbers(),
        )
        return Call(
            self.kernel(cotangent[0].dtype, targets[0][0].dtype),
            tuple(pointer for _, pointer in arrays),
            (*map(np.int64, chain(*strides)), *map(np.int32, integers), ELEMENT_TYPES[self.dtype].accumulator_dtype.type(scale)),
            self.blocks,
            self.threads,
            self.shared,
        )

    def seconds(self, device: Device) -> float:
        """What it is expected to take, with the launches and the sums of parts."""
        volumes, size = self.volumes(NOWHERE)
        there = machine(device, ELEMENT_TYPES[self.dtype].accumulator)
        return LAUNCH + self.working(device) + len(volumes) * LAUNCH + there.moved(2 * size)


def _numbers(axis: Line) -> tuple[int, ...]:
    return axis.size1, axis.size2, axis.patch, axis.first, axis.step, axis.stride, axis.padding, axis.out


def tiles_along(size: int, step: int, length: int) -> int:
    """Tiles of an axis: of each phase, as many as the longest has."""
    return min(size, step) * ceil_div(ceil_div(size, step), length)


# Plans ------------------------------------------------------------------------------------------------------------------------


def plan(
    algorithm: str,
    tilings: Callable[[Line, Line, Sequence[Operand]], Iterator[Tiling]],
    vertical: Line,
    horizontal: Line,
    cotangent: Array,
    operands: Sequence[Operand],
    scale: float,
    device: Device,
    workspace: Pointer,
) -> Plan:
    """The fastest of the tilings that there are for operands, which have no `reason` against them."""
    operands = [operand for operand in operands if math.prod(operand.result[0].shape)]
    if not operands:
        return Plan(algorithm, "nothing to do", 0.0, workspace.offset, tuple, device.index)
    found = tilings(normal(vertical), normal(horizontal), operands)
    best = min(_that_fit(found, device), key=lambda tiling: tiling.seconds(device))
    made = replace(best, operands=[operand for operand in operands if operand.needed])
    size = workspace.offset + made.volumes(workspace)[1]
    return Plan(algorithm, best.how, best.seconds(device), size, lambda: made.calls(cotangent, scale, workspace), device.index)


def _that_fit(tilings: Iterator[Tiling], device: Device) -> Iterator[Tiling]:
    """Those for which a device has the shared memory, with no more parts than are needed where parts would take much memory."""
    needed: dict[Any, int] = {}
    for tiling in tilings:
        if tiling.shared <= device.shared_memory:
            least = needed.setdefault(tiling.tile, tiling.parts.count)
            if tiling.parts.count <= least or tiling.volumes(NOWHERE)[1] <= WORKSPACE:
                yield tiling


def ways_to_part(patch_y: int, patch_x: int, width: int, terms: Callable[[int, int], int]) -> Iterator[Parts]:
    """Ways to share the displacements that keep every sum short, in whole rows and in whole widths of a tile.

    ``terms`` is how many terms a sum over so many rows and columns of displacements has. The fewest parts come first.
    """
    widths = ceil_div(patch_x, width)
    for of_columns, of_rows in product(_powers(widths), _powers(patch_y)):
        columns, rows = ceil_div(widths, of_columns) * width, ceil_div(patch_y, of_rows)
        if terms(rows, min(columns, patch_x)) <= LONGEST:
            yield Parts(ceil_div(patch_y, rows), rows, ceil_div(patch_x, columns), columns)


def _powers(number: int) -> list[int]:
    """1, 2, 4 .. below a number, and the number."""
    return sorted({min(2**k, number) for k in range(number.bit_length() + 1)})
