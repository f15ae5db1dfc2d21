"""Which tiles gradient_tiled.cu works on, how many displacements a block sums, and what that is expected to take.

The gradients of windows of one pixel, of both inputs in one launch. The shapes of tiles are a table; the one that a plan takes is
the one that a model of the device finds fastest. A long sum, or one of a problem too small to fill the device, is cut into parts
that blocks of their own make and sum_parts.cu adds up: the same parts in the same order every time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product

import numpy as np

from .._cuda.device import Device
from .._cuda.source import Kernel
from .._dtypes import ELEMENT_TYPES
from . import kernels
from .costs import LAUNCH, machine
from .kernels import NOWHERE, RUN_BYTES, Call, Layout, Line, Pointer, ceil_div, new_layout

LONGEST = 512  # terms that one accumulator adds up: the error of a chain grows with its length, the bound with the root of that
WORKSPACE = 256 * 2**20  # bytes of parts that are only made to fill the device
ALIGNMENT = 256  # bytes, of each operand's parts

_SAFE = 2**29  # two positions below it, and a tile beyond them, have a sum of 32 bits
_PLANE = 2**30  # elements between the first and the last of a plane
_MOST_BLOCKS = 2**30  # of a launch
_WARP = 32
_ROWS = 2  # of a thread, as gradient_tiled.cu has them
_CHANNELS = 8  # of a thread
_LARGEST_PART = 12  # displacements whose cotangents a thread holds
_ROW_SECONDS = 0.6e-6  # until a row has come, however little is done with it
_BANK_BYTES = 4
_BANKS_BETWEEN_PHASES = 16

Array = tuple[Layout, Pointer]


# Tiles ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tile:
    """One row of the table: the macros of a build that say how a block works.

    Attributes
    ----------
    phases
        1, or 2 where both phases of the columns are in one block.
    column_lanes
        Lanes of a warp along the columns; the others lie along the channels.
    channel_warps, row_warps
        Warps of a phase along channels and rows.
    width
        Displacements of a row that are taken at once, at most.
    exact
        Whether the patch must have just that width, which makes the loop over it a constant one.
    """

    phases: int
    column_lanes: int
    channel_warps: int
    row_warps: int
    width: int
    exact: bool

    @property
    def threads(self) -> int:
        """Of a block."""
        return _WARP * self.phases * self.channel_warps * self.row_warps

    @property
    def channels(self) -> int:
        """Of a block."""
        return _CHANNELS * (_WARP // self.column_lanes) * self.channel_warps

    @property
    def rows(self) -> int:
        """Of a block."""
        return _ROWS * self.row_warps

    def columns(self, itemsize: int) -> int:
        """Of each phase in a block, with sums of so many bytes."""
        return self.column_lanes * RUN_BYTES // itemsize

    def pitch(self, itemsize: int) -> int:
        """Elements from one channel's row in shared memory to the next.

        It holds the columns that all displacements meet, whole accesses of them, and puts two accesses of each of four channels
        side by side in the banks.
        """
        run = RUN_BYTES // itemsize
        wanted = self.columns(itemsize) + ceil_div(self.width - 1, run) * run
        side_by_side = 4 * run  # half of the banks
        return ceil_div(wanted - 2 * run, side_by_side) * side_by_side + 2 * run

    def shared(self, itemsize: int) -> int:
        """Bytes of shared memory: two buffers, each a row of X and the cotangents that meet it, for each phase."""
        gap = _BANKS_BETWEEN_PHASES * _BANK_BYTES if self.phases > 1 else 0
        image = self.channels * self.pitch(itemsize) * itemsize + gap
        cotangent = self.rows * self.width * self.columns(itemsize) * itemsize + gap
        return 2 * self.phases * (image + cotangent)

    def macros(self, itemsize: int) -> dict[str, object]:
        """Of the build."""
        return {
            "PHASES": self.phases,
            "COLUMN_LANES": self.column_lanes,
            "CHANNEL_WARPS": self.channel_warps,
            "ROW_WARPS": self.row_warps,
            "WIDTH": self.width,
            "EXACT": int(self.exact),
            "THREADS": self.threads,
            "SHARED": self.shared(itemsize),
            "INDEX": "int",
        }


# (column lanes, channel warps, row warps) of a phase: many rows and channels together load least; small ones fill a device with
# few pixels, and narrow ones lose little at the end of short rows. What devices of 64 KiB of shared memory have no room for has a
# small one beside it.
_LARGE, _SMALL, _NARROW = (8, 2, 2), (8, 1, 1), (2, 1, 1)
_ANY = 20  # displacements of a row at once, whatever the patch

_GENERAL = tuple(Tile(phases, *shape, _ANY, False) for phases, shape in product((1, 2), (_LARGE, _SMALL)))
_EXACT = (
    *(Tile(1, *shape, width, True) for width, shape in product((7, 9, 21), (_LARGE, _SMALL, _NARROW))),
    *(Tile(2, *shape, 21, True) for shape in (_LARGE, _SMALL)),
)
# Element type of the inputs -> tiles. Where inputs have 16 bits, tensor cores are faster still: few builds will do.
_TILES = {
    "float16": _GENERAL,
    "bfloat16": _GENERAL,
    "float32": (*_EXACT, *_GENERAL, Tile(1, *_NARROW, _ANY, False)),
    "float64": _GENERAL,
}


def _kernel(tile: Tile, dtype: str, cotangent: str, result: str) -> Kernel:
    types = {"INPUT": dtype, "COTANGENT": cotangent, "RESULT": result}
    macros = {name: ELEMENT_TYPES[element].c_type for name, element in types.items()}
    return kernels.kernel("gradient_tiled", macros | tile.macros(_sum_bytes(dtype)))


def _sum_bytes(dtype: str) -> int:
    return ELEMENT_TYPES[dtype].accumulator_dtype.itemsize


def builds() -> Iterator[tuple[str, Kernel]]:
    """Every kernel that a call can name, with words for it."""
    for dtype, tiles in _TILES.items():
        types = dict.fromkeys((dtype, ELEMENT_TYPES[dtype].accumulator))
        for tile, cotangent, result in product(tiles, types, types):
            kernel = _kernel(tile, dtype, cotangent, result)
            yield f"gradient_tiled {' '.join(f'{name}={value}' for name, value in kernel.macros)}", kernel


# Problems ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Operand:
    """The gradient of input ``number``, from the other input.

    One that is not asked for is not made, but counts in what is chosen: the other has the same bits with it and without.
    """

    number: int
    other: Array
    result: Array
    asked: bool = True


def reason(vertical: Line, horizontal: Line, cotangent: Layout, operands: Sequence[Operand]) -> str | None:
    """None, or why these gradients cannot go through tiles, in words."""
    axes = [_normal(axis) for axis in (vertical, horizontal)]
    images = [layout for operand in operands for layout, _ in (operand.other, operand.result)]
    names = {layout.dtype for layout in images}
    for axis in axes:
        if axis.kernel != 1:
            return f"a window of {vertical.kernel} x {horizontal.kernel} pixels, tiles are for windows of one pixel"
        if axis.step % axis.stride:
            return f"stride {axis.stride} does not divide dilation_patch {axis.step}"
    if len(names) != 1 or cotangent.dtype not in {each for layout in images for each in (layout.dtype, layout.accumulator.name)}:
        return f"no kernel takes a cotangent in {cotangent.dtype} to gradients in {' and '.join(sorted(names))}"
    if max(axis.reach for axis in axes) >= _SAFE:
        return f"positions of {_SAFE} pixels and more"
    if max(_plane_extent(layout) for layout in (cotangent, *images)) >= _PLANE:
        return f"a plane of {_PLANE} elements and more"
    smallest = [
        _Tiling(tile, _Parts(axes[0].patch, 1, ceil_div(axes[1].patch, tile.width), tile.width), *axes, operands)
        for tile in _tiles_for(images[0].dtype, axes[1])
    ]
    if max(tiling.blocks for tiling in smallest) >= _MOST_BLOCKS:
        return f"{_MOST_BLOCKS} blocks and more"
    return None


def _tiles_for(dtype: str, horizontal: Line) -> list[Tile]:
    """Those of the table that are for such rows."""
    phases = 2 if horizontal.step == 2 and horizontal.stride == 1 else 1
    return [tile for tile in _TILES[dtype] if tile.phases == phases and (not tile.exact or tile.width == horizontal.patch)]


def _plane_extent(layout: Layout) -> int:
    return sum(abs(stride) * (size - 1) for size, stride in zip(layout.shape[-2:], layout.strides[-2:], strict=True))


def _normal(axis: Line) -> Line:
    """An axis with a step that can be divided by."""
    if axis.step == 0:  # the images do not meet at any displacement
        axis = replace(axis, patch=1)
    return replace(axis, step=axis.stride) if axis.patch == 1 else axis


# Plans ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Parts:
    """How the displacements are shared between blocks: numbers of parts, and displacements of each at most."""

    of_rows: int
    rows: int
    of_columns: int
    columns: int

    @property
    def count(self) -> int:
        return self.of_rows * self.of_columns


@dataclass(frozen=True, slots=True)
class _Tiling:
    """One way to answer a problem, and what it takes by count."""

    tile: Tile
    parts: _Parts
    vertical: Line
    horizontal: Line
    operands: Sequence[Operand]

    @property
    def dtype(self) -> str:
        """Of the inputs."""
        return self.operands[0].other[0].dtype

    @property
    def columns(self) -> int:
        """Of a block, of all its phases."""
        return self.tile.phases * self.tile.columns(_sum_bytes(self.dtype))

    @property
    def how(self) -> str:
        """The tiling in words."""
        shared = f", each sum made in {self.parts.count} parts" if self.parts.count > 1 else ""
        return f"tiles of {self.tile.channels} channels x {self.tile.rows} x {self.columns} pixels in shared memory{shared}"

    @property
    def blocks(self) -> int:
        """Of the launch."""
        return sum(map(self._blocks, self.operands))

    def _blocks(self, operand: Operand) -> int:
        """Of one operand."""
        batch, channels, height, width = operand.result[0].shape
        rows = _tiles(height, self.vertical.step, self.tile.rows)
        columns = _tiles(width, self.horizontal.step // self.tile.phases, self.columns)
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
            yield kernels.sum_parts(volume, operand.result, scale)

    def _call(self, cotangent: Array, targets: Sequence[Array], scale: float) -> Call:
        """The launch of gradient_tiled.cu; it stores to ``targets``, which may have an axis of parts."""
        unused = (Layout(self.dtype, (1,) * 4, (0,) * 4), NOWHERE)
        inputs = {3 - operand.number: operand.other for operand in self.operands}
        gradients = {operand.number: target for operand, target in zip(self.operands, targets, strict=True)}
        arrays = [cotangent, *(inputs.get(k, unused) for k in (1, 2)), *(gradients.get(k, unused) for k in (1, 2))]
        strides = [layout.strides for layout, _ in arrays]
        strides[3:] = [(0,) * (5 - len(each)) + each for each in strides[3:]]  # no step from part to part where there is one
        integers = (
            self.blocks,
            sum(self._blocks(operand) for operand in self.operands if operand.number == 1),
            self.operands[0].other[0].shape[1],
            *_numbers(self.vertical),
            *_numbers(self.horizontal),
            *(self.parts.of_rows, self.parts.rows, self.parts.of_columns, self.parts.columns),
        )
        accumulator = ELEMENT_TYPES[self.dtype].accumulator_dtype
        return Call(
            _kernel(self.tile, self.dtype, cotangent[0].dtype, targets[0][0].dtype),
            tuple(pointer for _, pointer in arrays),
            (*map(np.int64, chain(*strides)), *map(np.int32, integers), accumulator.type(scale)),
            self.blocks,
            self.tile.threads,
            self.tile.shared(accumulator.itemsize),
        )

    def seconds(self, device: Device) -> float:
        """What it is expected to take: to add, to load through the second cache, or to wait for one row after another."""
        element = ELEMENT_TYPES[self.dtype]
        there = machine(device, element.accumulator)
        run = RUN_BYTES // element.accumulator_dtype.itemsize
        displacements = min(self.parts.columns, self.horizontal.patch)
        streamed = self.parts.rows + self.tile.rows - 1  # rows of X

        products = self.parts.rows * displacements * _ROWS * _CHANNELS * run
        windows = ceil_div(displacements, _LARGEST_PART) + ceil_div(displacements, run)
        read = self.parts.rows * (_CHANNELS * windows + _ROWS * displacements) * RUN_BYTES
        adding = there.tiled(self.blocks, self.tile.threads // _WARP, products, read)

        images = self.tile.channels * (self.columns + self.tile.phases * displacements) * streamed
        cotangents = self.tile.rows * self.columns * displacements * self.parts.rows
        loading = there.loaded(self.blocks * (images + cotangents) * element.itemsize)

        waiting = streamed * ceil_div(displacements, self.tile.width) * _ROW_SECONDS
        seconds = LAUNCH + max(adding, loading, waiting)
        volumes, size = self.volumes(NOWHERE)
        return seconds + len(volumes) * LAUNCH + there.moved(2 * size)


def _numbers(axis: Line) -> tuple[int, ...]:
    return axis.size1, axis.size2, axis.patch, axis.first, axis.step, axis.stride, axis.padding, axis.out


def _tiles(size: int, step: int, length: int) -> int:
    """Tiles of an axis: of each phase, as many as the longest has."""
    return min(size, step) * ceil_div(ceil_div(size, step), length)


@dataclass(frozen=True, slots=True)
class Gradients:
    """The calls that make the gradients, in order; the bytes of workspace they take; what they are expected to take, in seconds,
    and in words."""

    calls: tuple[Call, ...]
    workspace: int
    seconds: float
    how: str


def plan(
    vertical: Line,
    horizontal: Line,
    cotangent: Array,
    operands: Sequence[Operand],
    scale: float,
    device: Device,
    workspace: Pointer,
) -> Gradients:
    """The fastest way to gradients that have no `reason` against them."""
    vertical, horizontal = _normal(vertical), _normal(horizontal)
    operands = [operand for operand in operands if math.prod(operand.result[0].shape)]
    if not operands:
        return Gradients((), 0, 0.0, "nothing to do")
    best = min(_tilings(vertical, horizontal, operands, device), key=lambda tiling: tiling.seconds(device))
    made = replace(best, operands=[operand for operand in operands if operand.asked])
    return Gradients(tuple(made.calls(cotangent, scale, workspace)), made.volumes(workspace)[1], best.seconds(device), best.how)


def _tilings(vertical: Line, horizontal: Line, operands: Sequence[Operand], device: Device) -> Iterator[_Tiling]:
    """Every tile that fits, with ever more parts while they keep to their share of the memory."""
    dtype = operands[0].other[0].dtype
    for tile in _tiles_for(dtype, horizontal):
        if tile.shared(_sum_bytes(dtype)) > device.shared_memory:
            continue
        needed = None
        for parts in _ways_to_part(vertical.patch, horizontal.patch, tile.width):
            tiling = _Tiling(tile, parts, vertical, horizontal, operands)
            needed = needed or parts.count
            if parts.count <= needed or tiling.volumes(NOWHERE)[1] <= WORKSPACE:
                yield tiling


def _ways_to_part(patch_y: int, patch_x: int, width: int) -> Iterator[_Parts]:
    """Ways to share the displacements that keep every sum short, in whole rows and in whole widths of a tile."""
    widths = ceil_div(patch_x, width)
    for of_columns, of_rows in product(_powers(widths), _powers(patch_y)):
        columns, rows = ceil_div(widths, of_columns) * width, ceil_div(patch_y, of_rows)
        if rows * min(columns, patch_x) <= LONGEST:
            yield _Parts(ceil_div(patch_y, rows), rows, ceil_div(patch_x, columns), columns)


def _powers(number: int) -> list[int]:
    """1, 2, 4 .. below a number, and the number."""
    return sorted({min(2**k, number) for k in range(number.bit_length() + 1)})
