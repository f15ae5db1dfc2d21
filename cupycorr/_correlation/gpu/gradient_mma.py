"""Which tiles gradient_mma.cu works on, how displacements are taken, and what that is expected to take.

Gradients on tensor cores, for inputs of 16 bits, and for float32 where products may be rounded to TF32. The shapes of tiles are a
table; the one that a plan takes is the one that a model of the device finds fastest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import ClassVar

from ..._dtypes import ELEMENT_TYPES
from ..._gpu.call import kernel
from ..._gpu.costs import machine, matrix_rate
from ..._gpu.device import Device
from ..._gpu.layout import CHANNELS_LAST, RUN_BYTES, Layout, ceil_div
from ..._gpu.source import Kernel
from ..problem import lattice_inside
from . import gradient_phases
from .axes import Line
from .gradient_phases import Operand, Parts, Tiling, normal, phases_together, ways_to_part

_WARP = 32
_SIDE = 8  # of the matrices that fragments are made of, as gradient_mma.cu has them
_FRAGMENT_BYTES = 128  # of one register of a warp
_STEP_TERMS = 2  # rounding errors of one product of fragments, at most, in the terms of a plain sum
_ROW_SECONDS = 0.6e-6  # until a row has come, however little is done with it
_STORE_BYTES = 8  # of the time of shared memory that one cotangent takes on its way to the band


# Tiles ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tile:
    """One row of the table: the macros of a build that say how a block works.

    Attributes
    ----------
    phases
        1, or 2 where both phases of the columns are in one block.
    depths
        Length of the band, in 16 rows.
    most
        Displacements of a row that are taken at once, at most.
    channel_tiles, warp_rows, column_tiles
        Of a warp: 16 channels, rows, and 8 columns of each phase.
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
        """Of a block."""
        return 2 * _SIDE * self.channel_tiles * self.channel_warps

    @property
    def rows(self) -> int:
        """Of a block."""
        return self.warp_rows * self.row_warps

    @property
    def columns(self) -> int:
        """Of a block, of all its phases."""
        return self.phases * _SIDE * self.column_tiles

    @property
    def band(self) -> int:
        """Rows of the band."""
        return 2 * _SIDE * self.depths

    @property
    def groups(self) -> int:
        """Of 8 columns of X in each phase."""
        return self.column_tiles + self.band // _SIDE - 1

    def width(self, patch: int) -> int:
        """Displacements of a row that are taken at once: all, or so many that all steps begin as far from where copies may."""
        if patch <= self.most:
            return patch
        unit = _SIDE // self.phases
        steps = ceil_div(patch, self.most // unit * unit)
        return ceil_div(ceil_div(patch, steps), unit) * unit

    @property
    def threads(self) -> int:
        """Of a block."""
        return _WARP * self.phases * self.channel_warps * self.row_warps

    def image(self, itemsize: int, channels_last: bool) -> int:
        """Bytes of a row of X in shared memory. Its rows there end where the next ones find other banks."""
        run = RUN_BYTES // itemsize
        columns = _SIDE * self.groups
        line, lines = (self.channels, columns) if channels_last else (columns, self.channels)
        pitch = line + _SIDE if channels_last and itemsize == 4 else (ceil_div(line, run) | 1) * run
        return self.phases * lines * pitch * itemsize

    def bands(self, itemsize: int) -> int:
        """Bytes of the cotangents that meet a row of X."""
        return self.rows * self.columns * (self.band + 1) * itemsize

    def shared(self, itemsize: int, channels_last: bool) -> int:
        """Bytes of shared memory: two buffers, or the sums of one row of each warp at the end."""
        sums = self.row_warps * self.channels * (self.columns + _SIDE) * 4
        return max(2 * (self.image(itemsize, channels_last) + self.bands(itemsize)), sums)

    def macros(self, itemsize: int, channels_last: bool) -> dict[str, object]:
        """Of the build."""
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


_SHORT, _LONG, _FLOWNET = (1, 9), (2, 25), (2, 21)  # bands: length, and displacements

# Many rows and channels together load least; others lose less where channels or pixels are few. Where elements have 32 bits, the
# same takes twice the shared memory.
_PAIRED = (
    *(Tile(1, *band, *shape) for band, shape in product((_SHORT, _LONG), ((2, 4, 4, 4, 2), (2, 2, 4, 1, 4)))),
    Tile(1, *_SHORT, 2, 2, 2, 2, 2),
    *(Tile(2, *_FLOWNET, *shape) for shape in ((2, 4, 4, 4, 1), (2, 2, 2, 2, 1))),
)
_SINGLE = (
    *(Tile(1, *band, *shape) for band, shape in product((_SHORT, _LONG), ((2, 2, 4, 2, 4), (1, 2, 2, 4, 1)))),
    *(Tile(2, *_FLOWNET, *shape) for shape in ((2, 2, 4, 2, 2), (1, 2, 2, 4, 1))),
)
# Element type of the inputs -> tiles.
_TILES = {"float16": _PAIRED, "bfloat16": _PAIRED, "float32": _SINGLE}


def _kernel(tile: Tile, dtype: str, channels_last: bool) -> Kernel:
    element = ELEMENT_TYPES[dtype]
    types = dict.fromkeys(("INPUT", "COTANGENT"), element.c_type)
    return kernel("correlation/gradient_mma", types | tile.macros(element.itemsize, channels_last))


def builds() -> Iterator[tuple[str, Kernel]]:
    """Every kernel that a call can name, with words for it."""
    for dtype, tiles in _TILES.items():
        for tile, channels_last in product(tiles, (False, True)):
            kernel = _kernel(tile, dtype, channels_last)
            yield f"gradient_mma {' '.join(f'{name}={value}' for name, value in kernel.macros)}", kernel


# Problems ---------------------------------------------------------------------------------------------------------------------


def reason(vertical: Line, horizontal: Line, cotangent: Layout, operands: Sequence[Operand]) -> str | None:
    """None, or why these gradients cannot go through tensor cores, in words."""
    dtype = operands[0].other[0].dtype
    if dtype not in _TILES:
        return f"tensor cores have no product of {dtype} here"
    if cotangent.dtype != dtype:
        return f"a cotangent in {cotangent.dtype} would be rounded to {dtype}"
    return gradient_phases.reason(vertical, horizontal, cotangent, operands, "tensor cores") or gradient_phases.reason_of_size(
        _smallest_parts(normal(vertical), normal(horizontal), operands)
    )


def _smallest_parts(vertical: Line, horizontal: Line, operands: Sequence[Operand]) -> Iterator[Tiling]:
    for tile in _tiles_for(operands[0].other[0].dtype, horizontal):
        width = tile.width(horizontal.patch)
        parts = Parts(vertical.patch, 1, ceil_div(horizontal.patch, width), width)
        yield _Tiling(tile, parts, vertical, horizontal, operands, False)


def _tiles_for(dtype: str, horizontal: Line) -> list[Tile]:
    """Those of the table that are for such rows."""
    phases = phases_together(horizontal)
    return [tile for tile in _TILES[dtype] if tile.phases == phases]


# Plans ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tiling(Tiling):
    """One way to answer a problem through gradient_mma.cu."""

    where: ClassVar[str] = "on tensor cores"

    channels_last: bool  # of both images

    @property
    def itemsize(self) -> int:
        """Of the inputs."""
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
        """Displacements of a row that are taken at once."""
        return self.tile.width(self.horizontal.patch)

    def kernel(self, cotangent: str, result: str) -> Kernel:
        return _kernel(self.tile, self.dtype, self.channels_last)

    def numbers(self) -> tuple[int, ...]:
        return (self.width,)

    def loaded(self) -> int:
        """Bytes that all blocks load, of what lies inside the images."""
        return sum(map(self._loaded, self.operands))

    def _loaded(self, operand: Operand) -> int:
        batch, channels, *_ = operand.result[0].shape
        rows, met = _streamed(self.vertical, operand.number, self.tile.rows, 1)
        columns, met_x = _streamed(self.horizontal, operand.number, self.columns, self.tile.phases)
        images = channels * rows * columns
        return batch * self.itemsize * (images + ceil_div(channels, self.tile.channels) * met * met_x)

    def working(self, device: Device) -> float:
        """To multiply, to load through the second cache, or to wait for one row after another."""
        there = machine(device, ELEMENT_TYPES[self.dtype].accumulator)
        tile, steps = self.tile, ceil_div(self.parts.columns, self.width)
        streamed = steps * (self.parts.rows + tile.rows - 1)  # rows of X, with some of their displacements
        met = steps * self.parts.rows * tile.rows  # by rows of the tile

        products = met * tile.channels * self.columns * tile.band
        warps = self.threads // _WARP
        registers = tile.channel_tiles * tile.groups * self.itemsize  # of a group: 2, or 4
        read = streamed * warps * registers * _FRAGMENT_BYTES + met // tile.rows * tile.channel_warps * tile.bands(self.itemsize)
        stored = streamed * tile.image(self.itemsize, self.channels_last) + met * self.columns * self.width * _STORE_BYTES
        multiplying = there.on_tensor_cores(self.blocks, warps, products, read + stored, matrix_rate(device, self.dtype))
        return max(multiplying, there.loaded(self.loaded()), streamed * _ROW_SECONDS)


@lru_cache(1024)
def _streamed(axis: Line, operand: int, length: int, together: int) -> tuple[int, int]:
    """Of the tiles along an axis: positions of the other image that they meet, and pairs of positions that meet, inside both."""
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
    """How many of ``count`` positions are inside an image."""
    begin, end = lattice_inside(first, step, count, 0, size)
    return end - begin


def tilings(vertical: Line, horizontal: Line, operands: Sequence[Operand]) -> Iterator[Tiling]:
    """Every tile with every way to share the displacements, the fewest parts first."""
    dtype = operands[0].other[0].dtype
    channels_last = all(operand.other[0].order == CHANNELS_LAST for operand in operands)
    for tile in _tiles_for(dtype, horizontal):
        width = tile.width(horizontal.patch)
        depth = tile.band * ELEMENT_TYPES[dtype].itemsize // 32

        def terms(rows: int, columns: int, width: int = width, depth: int = depth) -> int:
            return _STEP_TERMS * rows * ceil_div(columns, width) * depth

        for parts in ways_to_part(vertical.patch, horizontal.patch, width, terms):
            yield _Tiling(tile, parts, vertical, horizontal, operands, channels_last)
