"""The calls of ``gradient_mma.cu``: which tile takes a problem, how the displacements are split, and at what cost.

Gradients on tensor cores, for inputs of 16 bits, and for float32 where products may be rounded to TF32. The thread block tiles
are a table; the cost model chooses the fastest one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import ClassVar

from ..._dtypes import ELEMENT_TYPES
from ..._gpu.call import Signature, kernel
from ..._gpu.costs import machine, matrix_rate
from ..._gpu.device import Device
from ..._gpu.layout import CHANNELS_LAST, Layout, ceil_div
from ..._gpu.limits import ROW_SECONDS, VECTOR_BYTES, WARP
from ..._gpu.source import Kernel
from ..problem import lattice_inside
from . import gradient_phases
from .axes import Line
from .gradient_phases import Splits, Tiling, normal, phases_together, ways_to_split
from .sums import Operand

SIGNATURE = Signature(
    "correlation/gradient_mma", gradient_phases.POINTERS, {**gradient_phases.SCALARS, "width": "int", "scale": "Sum"}
)

_SIDE = 8  # of the matrices that fragments consist of, as in gradient_mma.cu
_FRAGMENT_BYTES = 128  # bytes of one register in all threads of a warp
_STEP_TERMS = 2  # rounding error of one product of fragments, in terms of a plain sum
_STORE_BYTES = 8  # of shared memory's traffic for one cotangent on its way to the band


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
    most
        The most displacements of a row that are taken at once.
    channel_tiles, warp_rows, column_tiles
        The warp tile: units of 16 channels, rows, and units of 8 columns of each phase.
    channel_warps, row_warps
        Warps along channels and rows.
    """

    phases: int
    depths: int
    most: int
    channel_tiles: int
    warp_rows: int
    column_tiles: int
    channel_warps: int
    row_warps: int

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
        return self.phases * _SIDE * self.column_tiles

    @property
    def band(self) -> int:
        """The rows of the band."""
        return 2 * _SIDE * self.depths

    @property
    def groups(self) -> int:
        """The groups of 8 columns of X, the other input, in each phase."""
        return self.column_tiles + self.band // _SIDE - 1

    def width(self, patch: int) -> int:
        """Return the displacements of a row that are taken at once: all, or a number that keeps the alignment of every step."""
        if patch <= self.most:
            return patch
        unit = _SIDE // self.phases
        steps = ceil_div(patch, self.most // unit * unit)
        return ceil_div(ceil_div(patch, steps), unit) * unit

    @property
    def threads(self) -> int:
        """The threads of a block."""
        return WARP * self.phases * self.channel_warps * self.row_warps

    def image(self, itemsize: int, channels_last: bool) -> int:
        """Return the bytes of a row of X in shared memory; its rows there are padded against bank conflicts."""
        vector = VECTOR_BYTES // itemsize
        columns = _SIDE * self.groups
        line, lines = (self.channels, columns) if channels_last else (columns, self.channels)
        pitch = line + _SIDE if channels_last and itemsize == 4 else (ceil_div(line, vector) | 1) * vector
        return self.phases * lines * pitch * itemsize

    def bands(self, itemsize: int) -> int:
        """Return the bytes of the cotangents that are multiplied with a row of X."""
        return self.rows * self.columns * (self.band + 1) * itemsize

    def shared(self, itemsize: int, channels_last: bool) -> int:
        """Return the bytes of shared memory: two buffers, or the sums of one row of each warp in the epilogue."""
        sums = self.row_warps * self.channels * (self.columns + _SIDE) * 4
        return max(2 * (self.image(itemsize, channels_last) + self.bands(itemsize)), sums)

    def macros(self, itemsize: int, channels_last: bool) -> dict[str, object]:
        """Return the macros of the build, without the element types."""
        return {
            "PHASES": self.phases,
            "CHANNELS_LAST": int(channels_last),
            "DEPTHS": self.depths,
            "WIDTH": self.most,
            "CHANNEL_TILES": self.channel_tiles,
            "ROWS": self.warp_rows,
            "COLUMN_TILES": self.column_tiles,
            "CHANNEL_WARPS": self.channel_warps,
            "ROW_WARPS": self.row_warps,
            "THREADS": self.threads,
            "SHARED": self.shared(itemsize, channels_last),
            "INDEX": "int",
        }


_SHORT, _LONG, _FLOWNET = dict(depths=1, most=9), dict(depths=2, most=25), dict(depths=2, most=21)

# Many rows and channels together load least; others waste less where channels or pixels are few. Elements of 32 bits take
# twice the shared memory.
_16_BITS = (
    Tile(phases=1, **_SHORT, channel_tiles=2, warp_rows=4, column_tiles=4, channel_warps=4, row_warps=2),
    Tile(phases=1, **_SHORT, channel_tiles=2, warp_rows=2, column_tiles=4, channel_warps=1, row_warps=4),
    Tile(phases=1, **_LONG, channel_tiles=2, warp_rows=4, column_tiles=4, channel_warps=4, row_warps=2),
    Tile(phases=1, **_LONG, channel_tiles=2, warp_rows=2, column_tiles=4, channel_warps=1, row_warps=4),
    Tile(phases=1, **_SHORT, channel_tiles=2, warp_rows=2, column_tiles=2, channel_warps=2, row_warps=2),
    Tile(phases=2, **_FLOWNET, channel_tiles=2, warp_rows=4, column_tiles=4, channel_warps=4, row_warps=1),
    Tile(phases=2, **_FLOWNET, channel_tiles=2, warp_rows=2, column_tiles=2, channel_warps=2, row_warps=1),
)
_32_BITS = (
    Tile(phases=1, **_SHORT, channel_tiles=2, warp_rows=2, column_tiles=4, channel_warps=2, row_warps=4),
    Tile(phases=1, **_SHORT, channel_tiles=1, warp_rows=2, column_tiles=2, channel_warps=4, row_warps=1),
    Tile(phases=1, **_LONG, channel_tiles=2, warp_rows=2, column_tiles=4, channel_warps=2, row_warps=4),
    Tile(phases=1, **_LONG, channel_tiles=1, warp_rows=2, column_tiles=2, channel_warps=4, row_warps=1),
    Tile(phases=2, **_FLOWNET, channel_tiles=2, warp_rows=2, column_tiles=4, channel_warps=2, row_warps=2),
    Tile(phases=2, **_FLOWNET, channel_tiles=1, warp_rows=2, column_tiles=2, channel_warps=4, row_warps=1),
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
        width = tile.width(horizontal.patch)
        splits = Splits(vertical.patch, 1, ceil_div(horizontal.patch, width), width)
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
    def width(self) -> int:
        """The displacements of a row that are taken at once."""
        return self.tile.width(self.horizontal.patch)

    def macros(self, cotangent: str, result: str) -> Mapping[str, object]:
        return _macros(self.tile, self.dtype, self.channels_last)

    def more_scalars(self) -> Mapping[str, int]:
        return {"width": self.width}

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
        """Return the longest of multiplying, loading through the second cache, and waiting for one row after another."""
        rates = machine(device, ELEMENT_TYPES[self.dtype].accumulator)
        tile, steps = self.tile, ceil_div(self.splits.columns, self.width)
        streamed = steps * (self.splits.rows + tile.rows - 1)  # rows of X, with some of their displacements
        pairs = steps * self.splits.rows * tile.rows  # of a row of X and a row of the tile

        products = pairs * tile.channels * self.columns * tile.band
        warps = self.threads // WARP
        registers = tile.channel_tiles * tile.groups * self.itemsize  # of a group: 2, or 4
        read = streamed * warps * registers * _FRAGMENT_BYTES + pairs // tile.rows * tile.channel_warps * tile.bands(
            self.itemsize
        )
        stored = streamed * tile.image(self.itemsize, self.channels_last) + pairs * self.columns * self.width * _STORE_BYTES
        multiplying = rates.on_tensor_cores(self.blocks, warps, products, read + stored, matrix_rate(device, self.dtype))
        return max(multiplying, rates.loaded(self.loaded()), streamed * ROW_SECONDS)


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
        width = tile.width(horizontal.patch)
        depth = tile.band * ELEMENT_TYPES[dtype].itemsize // 32

        def terms(rows: int, columns: int, width: int = width, depth: int = depth) -> int:
            return _STEP_TERMS * rows * ceil_div(columns, width) * depth

        for splits in ways_to_split(vertical.patch, horizontal.patch, width, terms):
            yield _Tiling(tile, splits, vertical, horizontal, operands, channels_last)
