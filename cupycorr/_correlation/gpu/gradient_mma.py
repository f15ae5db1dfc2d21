"""The calls of ``gradient_mma.cu``: which tile takes a problem, how the displacements are split, and at what cost.

Gradients on tensor cores, for inputs of 16 bits, and for float32 where products may be rounded to TF32. The thread block tiles
are a table; the cost model chooses the fastest one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import ClassVar

from ..._dtypes import ELEMENT_TYPES
from ..._gpu.call import Signature, kernel
from ..._gpu.costs import SCHEDULERS, machine, matrix_rate
from ..._gpu.device import Device
from ..._gpu.layout import CHANNELS_LAST, Layout, ceil_div
from ..._gpu.limits import VECTOR_BYTES, WARP
from ..._gpu.source import Kernel
from ..problem import lattice_inside
from . import gradient_phases
from .axes import Line
from .gradient_phases import Splits, Tiling, normal, phases_together, tiles_along, ways_to_split
from .sums import Operand

SIGNATURE = Signature(
    "correlation/gradient_mma",
    gradient_phases.POINTERS,
    {**gradient_phases.SCALARS, "displacements_at_once": "int", "scale": "Sum"},
)

_SIDE = 8  # of the matrices that fragments consist of, as in gradient_mma.cu
_STEP_TERMS = 2  # rounding error of one product of fragments, in terms of a plain sum
_SMALLEST_COPY = 4  # bytes of an asynchronous copy
_KEPT_BYTES = 512  # of shared memory, for what a block knows of its tile

# The cost model, from a simulation of the instructions on an H200. Instructions of a warp: of a step without copies and products,
# of a copy, of an element that is too small for one, of a block without steps, and of a sum in the epilogue.
_STEP, _COPY, _ELEMENT, _BLOCK, _SUM = 220, 9.5, 20, 800, 15
_ISSUED = 0.18  # fraction of the cycles in which one warp alone issues an instruction
_REACHED = 0.63  # of the peak of tensor cores


def _odd_vectors(count: int, itemsize: int) -> int:
    """Return a pitch for rows of so many elements: an odd number of vectors."""
    vector = VECTOR_BYTES // itemsize
    return (ceil_div(count, vector) | 1) * vector


# Tiles ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tile:
    """A thread block tile that gradient_mma.cu can be built for.

    Attributes
    ----------
    phases
        1, or 2 where both phases of the columns are in one block.
    depths
        The length of the band, in units of 16 rows.
    channel_tiles, warp_rows, column_tiles
        The warp tile: units of 16 channels, rows, and units of 8 columns.
    channel_warps, row_warps, column_warps
        Warps along channels, rows and columns.
    stages
        The stages of the pipeline.
    blocks
        The blocks of a multiprocessor that registers are limited for.
    """

    phases: int
    depths: int
    channel_tiles: int
    warp_rows: int
    column_tiles: int
    channel_warps: int
    row_warps: int
    column_warps: int
    stages: int
    blocks: int

    @property
    def channels(self) -> int:
        """The channels of a block."""
        return 2 * _SIDE * self.channel_tiles * self.channel_warps

    @property
    def rows(self) -> int:
        """The rows of a block."""
        return self.warp_rows * self.row_warps

    @property
    def columns(self) -> int:
        """The columns of a block, of all its phases."""
        return _SIDE * self.column_tiles * self.column_warps

    @property
    def band(self) -> int:
        """The rows of the band, which are columns of X, the other input."""
        return 2 * _SIDE * self.depths

    @property
    def image_columns(self) -> int:
        """The columns of X that are multiplied for a tile's columns."""
        return self.columns + self.band - _SIDE

    @property
    def most(self) -> int:
        """The most displacements of a row that are taken at once."""
        return (self.band - _SIDE) // self.phases + 1

    def displacements_at_once(self, patch: int) -> int:
        """Return the displacements of a row that are taken at once: all, or a number that keeps the alignment of every step."""
        if patch <= self.most:
            return patch
        unit = _SIDE // self.phases
        steps = ceil_div(patch, self.most // unit * unit)
        return ceil_div(ceil_div(patch, steps), unit) * unit

    @property
    def threads(self) -> int:
        """The threads of a block."""
        return WARP * self.channel_warps * self.row_warps * self.column_warps

    def image(self, itemsize: int, channels_last: bool) -> int:
        """Return the bytes of a row of X in shared memory; its rows there are padded against bank conflicts."""
        line, lines = self.channels, self.image_columns
        if not channels_last:
            line, lines = lines, line
        pitch = line + _SIDE if channels_last and itemsize == 4 else _odd_vectors(line, itemsize)
        return lines * pitch * itemsize

    def cotangents(self, itemsize: int) -> int:
        """Return the bytes of the cotangents that are multiplied with a row of X, with the rows of zeros between them."""
        lines = _SIDE // self.phases - 1 + self.rows * (self.band // self.phases)
        if itemsize == 2:
            return lines * _odd_vectors(self.image_columns, itemsize) * itemsize
        return lines * (ceil_div(self.image_columns + _SIDE, 2 * _SIDE) * 2 * _SIDE - _SIDE) * itemsize

    @property
    def sums(self) -> int:
        """The sums of a thread."""
        return 4 * self.channel_tiles * self.warp_rows * self.column_tiles

    def multiplying(self, itemsize: int) -> float:
        """Return the instructions of a warp that multiply a row of X: fragments of X, of the band, and their products."""
        depth = 2 * _SIDE if itemsize == 2 else _SIDE
        fragments = self.band // depth
        positions = self.column_tiles + (fragments - 1) * depth // _SIDE
        image, band = (1, 3 if self.phases == 1 else 2) if itemsize == 2 else (5, 2)  # of a fragment, of a register
        products = self.column_tiles * fragments * self.warp_rows
        return positions * self.channel_tiles * image + products * (2 * band + self.channel_tiles)

    def stage(self, itemsize: int, channels_last: bool) -> int:
        """Return the bytes of a stage of the pipeline."""
        return self.image(itemsize, channels_last) + self.cotangents(itemsize)

    def shared(self, itemsize: int, channels_last: bool) -> int:
        """Return the bytes of shared memory: the stages, or the sums of one row of each warp in the epilogue."""
        sums = self.row_warps * self.channels * _odd_vectors(self.columns, 4) * 4
        return max(self.stages * self.stage(itemsize, channels_last), sums) + _KEPT_BYTES

    def macros(self, itemsize: int, channels_last: bool) -> dict[str, object]:
        """Return the macros of the build, without the element types."""
        return {
            "PHASES": self.phases,
            "CHANNELS_LAST": int(channels_last),
            "DEPTHS": self.depths,
            "STAGES": self.stages,
            "BLOCKS": self.blocks,
            "CHANNEL_TILES": self.channel_tiles,
            "ROWS": self.warp_rows,
            "COLUMN_TILES": self.column_tiles,
            "CHANNEL_WARPS": self.channel_warps,
            "ROW_WARPS": self.row_warps,
            "COLUMN_WARPS": self.column_warps,
            "THREADS": self.threads,
            "SHARED": self.shared(itemsize, channels_last),
            "INDEX": "int",
        }


def _tile(phases: int, depths: int, warp: tuple[int, int, int], warps: tuple[int, int, int], stages: int, blocks: int) -> Tile:
    """Return a tile: a warp's channel tiles, rows and column tiles, and the warps along channels, rows and columns."""
    return Tile(phases, depths, *warp, *warps, stages, blocks)


# Many rows and channels together load least; others waste less where channels or pixels are few. A long band takes many
# displacements of one row at once, as stereo has them. Elements of 32 bits take twice the shared memory.
_16_BITS = (
    _tile(1, 1, (2, 2, 4), (1, 4, 1), 3, 3),
    _tile(1, 1, (2, 2, 2), (2, 2, 1), 3, 3),
    _tile(1, 2, (2, 2, 4), (1, 4, 1), 2, 3),
    _tile(1, 2, (2, 2, 2), (2, 2, 1), 2, 3),
    _tile(1, 5, (2, 1, 4), (1, 1, 2), 1, 6),
    _tile(2, 3, (4, 2, 4), (2, 2, 2), 3, 1),
    _tile(2, 3, (4, 2, 4), (2, 2, 2), 2, 1),
    _tile(2, 3, (2, 2, 4), (2, 1, 1), 2, 3),
)
_32_BITS = (
    _tile(1, 1, (2, 2, 4), (1, 4, 1), 2, 2),
    _tile(1, 1, (1, 2, 2), (4, 1, 1), 2, 3),
    _tile(1, 2, (2, 2, 4), (1, 4, 1), 2, 2),
    _tile(1, 2, (1, 2, 2), (4, 1, 1), 2, 3),
    _tile(2, 3, (4, 2, 4), (1, 2, 2), 2, 1),
    _tile(2, 3, (1, 2, 4), (2, 1, 1), 2, 3),
)
# Element type of the inputs -> tiles.
_TILES = {"float16": _16_BITS, "bfloat16": _16_BITS, "float32": _32_BITS}


def _macros(tile: Tile, dtype: str, channels_last: bool) -> dict[str, object]:
    element = ELEMENT_TYPES[dtype]
    return {"INPUT": element.c_type, "COTANGENT": element.c_type, **tile.macros(element.itemsize, channels_last)}


def builds() -> Iterator[tuple[str, Kernel]]:
    """Yield every kernel that a call can name, with words for it."""
    for dtype, tiles in _TILES.items():
        for tile, channels_last in product(tiles, (False, True)):
            build = kernel(SIGNATURE.name, _macros(tile, dtype, channels_last))
            yield f"gradient_mma {' '.join(f'{name}={value}' for name, value in build.macros)}", build


# Problems ---------------------------------------------------------------------------------------------------------------------


def why_not(vertical: Line, horizontal: Line, cotangent: Layout, operands: Sequence[Operand]) -> str | None:
    """Return why no tile of the table supports these gradients, or None if one does."""
    dtype = operands[0].other[0].dtype
    if dtype not in _TILES:
        return f"tensor cores have no product of {dtype} here"
    if cotangent.dtype != dtype:
        return f"a cotangent in {cotangent.dtype} would be rounded to {dtype}"
    return gradient_phases.why_not(vertical, horizontal, cotangent, operands, "tensor cores") or gradient_phases.why_too_large(
        _most_splits(normal(vertical), normal(horizontal), operands)
    )


def _most_splits(vertical: Line, horizontal: Line, operands: Sequence[Operand]) -> Iterator[Tiling]:
    """Yield the plan with the most blocks for each tile."""
    for tile in _tiles_for(operands[0].other[0].dtype, horizontal):
        at_once = tile.displacements_at_once(horizontal.patch)
        splits = Splits(vertical.patch, 1, ceil_div(horizontal.patch, at_once), at_once)
        yield _Tiling(tile, splits, vertical, horizontal, operands, False)


def _tiles_for(dtype: str, horizontal: Line) -> list[Tile]:
    """Return the tiles of the table for a dtype and the phases of an axis."""
    phases = phases_together(horizontal)
    return [tile for tile in _TILES[dtype] if tile.phases == phases]


# Plans ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tiling(Tiling):
    """A plan for a problem with gradient_mma.cu."""

    signature: ClassVar[Signature] = SIGNATURE
    where: ClassVar[str] = "on tensor cores"

    channels_last: bool  # of both images

    @property
    def itemsize(self) -> int:
        """The size of an element of the inputs in bytes."""
        return ELEMENT_TYPES[self.dtype].itemsize

    @property
    def columns(self) -> int:
        return self.tile.columns

    @property
    def threads(self) -> int:
        return self.tile.threads

    @property
    def shared(self) -> int:
        return self.tile.shared(self.itemsize, self.channels_last)

    @property
    def displacements_at_once(self) -> int:
        """The displacements of a row that are taken at once."""
        return self.tile.displacements_at_once(self.horizontal.patch)

    def macros(self, cotangent: str, result: str) -> Mapping[str, object]:
        return _macros(self.tile, self.dtype, self.channels_last)

    def more_scalars(self) -> Mapping[str, int]:
        return {"displacements_at_once": self.displacements_at_once}

    def loaded(self) -> int:
        """Return the bytes inside the images that all blocks load."""
        return sum(map(self._loaded, self.operands))

    def _loaded(self, operand: Operand) -> int:
        batch, channels, *_ = operand.result[0].shape
        rows, pairs_y = _streamed(self.vertical, operand.number, self.tile.rows, 1)
        columns, pairs_x = _streamed(self.horizontal, operand.number, self.columns, self.tile.phases)
        images = channels * rows * columns
        return batch * self.itemsize * (images + ceil_div(channels, self.tile.channels) * pairs_y * pairs_x)

    def working(self, device: Device) -> float:
        """Return the longest of issuing instructions, multiplying, and loading through the second cache."""
        rates = machine(device, ELEMENT_TYPES[self.dtype].accumulator)
        tile, warps = self.tile, self.threads // WARP
        most = ceil_div(self.blocks, rates.multiprocessors)  # blocks of a multiprocessor
        resident = max(min(most, tile.blocks, device.shared_memory // self.shared), 1)
        issued = 1 - (1 - _ISSUED) ** (resident * warps / SCHEDULERS)
        counts = [(self.blocks_of(operand), *self._counts(operand)) for operand in self.operands]
        instructions = sum(blocks * each for blocks, each, _ in counts) / self.blocks
        products = sum(blocks * each for blocks, _, each in counts)
        return max(
            ceil_div(most, resident) * resident * warps * instructions / (rates.instructions * issued),
            products / (matrix_rate(device, self.dtype) * rates.multiprocessors * _REACHED),
            rates.loaded(self.loaded()),
        )

    def _counts(self, operand: Operand) -> tuple[float, float]:
        """Return the instructions of a warp, and the products of a block."""
        tile = self.tile
        steps = ceil_div(self.splits.columns, self.displacements_at_once) * self._steps(operand)
        multiplied = min((self.splits.rows + tile.warp_rows - 1) / (self.splits.rows + tile.rows - 1), 1.0)  # steps of a warp
        products = tile.channels * tile.rows * tile.columns * tile.band * multiplied
        step = _STEP + self._copying(operand) + multiplied * tile.multiplying(self.itemsize)
        return steps * step + _BLOCK + _SUM * tile.sums, steps * products

    def _steps(self, operand: Operand) -> float:
        """Return the rows of X that a block streams for one step along the displacements of a row, on average."""
        positions, _ = _streamed(self.vertical, operand.number, self.tile.rows, 1)
        tiles = tiles_along(operand.result[0].shape[2], self.vertical.step, self.tile.rows)
        return min(positions / tiles, self.splits.rows + self.tile.rows - 1)

    def _copying(self, operand: Operand) -> float:
        """Return the instructions of a thread that copy a row of X and the cotangents that are multiplied with it.

        They depend on the shapes alone, as if rows had no gaps, so that arrays of other layouts get the same plan and bits.
        """
        axis, tile = self.horizontal, self.tile
        first = axis.first if operand.number == 1 else -axis.first - (axis.patch - 1) * axis.step
        before = first % (VECTOR_BYTES // self.itemsize)
        if before % tile.phases == 0 and before <= tile.band - _SIDE - tile.phases * (self.displacements_at_once - 1):
            before = 0  # the band begins a few columns earlier
        pixels = self._instructions_of_copies(tile.channels, tile.image_columns, operand.other[0].shape[3], axis.step, before)
        count = tile.rows * min(self.displacements_at_once, self.splits.columns)
        if operand.number == 1:
            return pixels + self._instructions_of_copies(count, tile.columns, axis.out, axis.step // axis.stride, 0)
        cotangents = self._instructions_of_copies(count, tile.image_columns, axis.out, axis.step // axis.stride, before)
        return pixels + cotangents * min(tile.columns / min(tile.image_columns, axis.out), 1.0)

    def _instructions_of_copies(self, rows: int, columns: int, size: int, step: int, before: int) -> float:
        """Return the instructions of a thread that copy rows of so many columns, of an axis of that size."""
        vector = math.gcd(size, before, VECTOR_BYTES // self.itemsize) if step == self.tile.phases else 1
        vectors = ceil_div(min(columns, size), vector)
        lanes = min(1 << (vectors - 1).bit_length(), WARP)
        copies = ceil_div(vectors, lanes) * ceil_div(rows * lanes, self.threads)
        return copies * (_COPY if vector * self.itemsize >= _SMALLEST_COPY else _ELEMENT)


@lru_cache(1024)
def _streamed(axis: Line, operand: int, length: int, together: int) -> tuple[int, int]:
    """Return the positions of the other image that the tiles along an axis load, and the pairs of positions that they multiply.

    Both count what is inside the images only.
    """
    sizes = (axis.size1, axis.size2) if operand == 1 else (axis.size2, axis.size1)
    step = axis.step // together
    first = axis.first if operand == 1 else -axis.first - (axis.patch - 1) * axis.step
    last = first + (axis.patch - 1) * axis.step
    positions = pairs = 0
    for phase in range(min(sizes[0], step)):
        for begin in range(phase, sizes[0], step * length):
            own = range(begin, min(begin + step * length, sizes[0]), step)
            positions += _inside(own[0] + first, step, (own[-1] - own[0] + last - first) // step + 1, sizes[1])
            pairs += sum(_inside(position + first, axis.step, axis.patch, sizes[1]) for position in own)
    return positions, pairs


def _inside(first: int, step: int, count: int, size: int) -> int:
    """Return how many of ``count`` positions are inside an image."""
    begin, end = lattice_inside(first, step, count, 0, size)
    return end - begin


def tilings(vertical: Line, horizontal: Line, operands: Sequence[Operand]) -> Iterator[Tiling]:
    """Yield every tile with every division of the displacements, the fewest splits first."""
    dtype = operands[0].other[0].dtype
    channels_last = all(operand.other[0].order == CHANNELS_LAST for operand in operands)
    for tile in _tiles_for(dtype, horizontal):
        at_once = tile.displacements_at_once(horizontal.patch)
        depth = tile.band * ELEMENT_TYPES[dtype].itemsize // 32

        def terms(rows: int, columns: int, at_once: int = at_once, depth: int = depth) -> int:
            return _STEP_TERMS * rows * ceil_div(columns, at_once) * depth

        for splits in ways_to_split(vertical.patch, horizontal.patch, at_once, terms):
            yield _Tiling(tile, splits, vertical, horizontal, operands, channels_last)
