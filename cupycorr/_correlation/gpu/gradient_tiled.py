"""Which tiles gradient_tiled.cu works on, how many displacements a block takes at once, and what that is expected to take.

The shapes of tiles are a table; the one that a plan takes is the one that a model of the device finds fastest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from ..._dtypes import ELEMENT_TYPES
from ..._gpu.call import kernel
from ..._gpu.costs import machine
from ..._gpu.device import Device
from ..._gpu.layout import RUN_BYTES, Layout, ceil_div
from ..._gpu.source import Kernel
from . import gradient_phases
from .axes import Line
from .gradient_phases import Operand, Parts, Tiling, normal, phases_together, ways_to_part

_WARP = 32
_ROWS = 2  # of a thread, as gradient_tiled.cu has them
_CHANNELS = 8  # of a thread
_LARGEST_PART = 12  # displacements whose cotangents a thread holds
_ROW_SECONDS = 0.6e-6  # until a row has come, however little is done with it
_BANK_BYTES = 4
_BANKS_BETWEEN_PHASES = 16


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
    return kernel("correlation/gradient_tiled", macros | tile.macros(_sum_bytes(dtype)))


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


def reason(vertical: Line, horizontal: Line, cotangent: Layout, operands: Sequence[Operand]) -> str | None:
    """None, or why these gradients cannot go through tiles, in words."""
    return gradient_phases.reason(vertical, horizontal, cotangent, operands, "tiles") or gradient_phases.reason_of_size(
        _smallest_parts(normal(vertical), normal(horizontal), operands)
    )


def _smallest_parts(vertical: Line, horizontal: Line, operands: Sequence[Operand]) -> Iterator[Tiling]:
    for tile in _tiles_for(operands[0].other[0].dtype, horizontal):
        parts = Parts(vertical.patch, 1, ceil_div(horizontal.patch, tile.width), tile.width)
        yield _Tiling(tile, parts, vertical, horizontal, operands)


def _tiles_for(dtype: str, horizontal: Line) -> list[Tile]:
    """Those of the table that are for such rows."""
    phases = phases_together(horizontal)
    return [tile for tile in _TILES[dtype] if tile.phases == phases and (not tile.exact or tile.width == horizontal.patch)]


# Plans ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tiling(Tiling):
    """One way to answer a problem through gradient_tiled.cu."""

    @property
    def columns(self) -> int:
        return self.tile.phases * self.tile.columns(_sum_bytes(self.dtype))

    @property
    def threads(self) -> int:
        return self.tile.threads

    @property
    def shared(self) -> int:
        return self.tile.shared(_sum_bytes(self.dtype))

    def kernel(self, cotangent: str, result: str) -> Kernel:
        return _kernel(self.tile, self.dtype, cotangent, result)

    def numbers(self) -> tuple[int, ...]:
        return ()

    def working(self, device: Device) -> float:
        """To add, to load through the second cache, or to wait for one row after another."""
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

        return max(adding, loading, streamed * ceil_div(displacements, self.tile.width) * _ROW_SECONDS)


def tilings(vertical: Line, horizontal: Line, operands: Sequence[Operand]) -> Iterator[Tiling]:
    """Every tile with every way to share the displacements, the fewest parts first."""
    for tile in _tiles_for(operands[0].other[0].dtype, horizontal):
        for parts in ways_to_part(vertical.patch, horizontal.patch, tile.width, lambda rows, columns: rows * columns):
            yield _Tiling(tile, parts, vertical, horizontal, operands)
