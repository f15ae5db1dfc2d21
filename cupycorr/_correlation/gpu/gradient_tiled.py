"""The calls of ``gradient_tiled.cu``: which tile takes a problem, how the displacements are split, and at what cost.

The thread block tiles are a table; the cost model chooses the fastest one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

from ..._dtypes import ELEMENT_TYPES
from ..._gpu.call import Signature, kernel
from ..._gpu.costs import machine
from ..._gpu.device import Device
from ..._gpu.layout import Layout, ceil_div
from ..._gpu.limits import SECTOR_BYTES, VECTOR_BYTES, WARP
from ..._gpu.source import Kernel
from . import gradient_phases
from .axes import Line
from .gradient_phases import Splits, Tiling, normal, phases_together, ways_to_split
from .sums import Operand

SIGNATURE = Signature("correlation/gradient_tiled", gradient_phases.POINTERS, {**gradient_phases.SCALARS, "scale": "Sum"})

_ROWS = 2  # of a thread, as in gradient_tiled.cu
_CHANNELS = 8  # of a thread
_DISPLACEMENTS = 12  # the most whose cotangents a thread holds in registers
_BANK_BYTES = 4

# The cost model, from a simulation of the instructions on an H200: the fraction of the sum of its parts that remains as they
# overlap, the seconds to begin and to end a block, the threads of a multiprocessor that do so at once, and the seconds of the
# barrier of a step.
_OVERLAP, _BLOCK_SECONDS, _RESIDENT_THREADS, _STEP_SECONDS = 0.75, 5e-6, 256, 0.5e-6
_ELEMENT_SECONDS = 0.15e-6  # of a thread for each element that it widens where rows are no whole vectors: one waits for another

_BANKS_BETWEEN_PHASES = 16


# Tiles ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tile:
    """A thread block tile that gradient_tiled.cu can be built for.

    Attributes
    ----------
    phases
        1, or 2 where both phases of the columns are in one block.
    column_lanes
        Lanes of a warp along the columns; the others are along the channels.
    channel_warps, row_warps
        Warps of a phase along channels and rows.
    width
        The most displacements of a row that are taken at once.
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
        """The threads of a block."""
        return WARP * self.phases * self.channel_warps * self.row_warps

    @property
    def channels(self) -> int:
        """The channels of a block."""
        return _CHANNELS * (WARP // self.column_lanes) * self.channel_warps

    @property
    def rows(self) -> int:
        """The rows of a block."""
        return _ROWS * self.row_warps

    def columns(self, itemsize: int) -> int:
        """Return the columns of a block and a phase, with sums of so many bytes."""
        return self.column_lanes * VECTOR_BYTES // itemsize

    def pitch(self, itemsize: int) -> int:
        """Return the elements from one channel's row in shared memory to the next.

        It holds the columns that all displacements read, in whole vectors, and puts two vectors of each of four channels side by
        side in the banks.
        """
        vector = VECTOR_BYTES // itemsize
        wanted = self.columns(itemsize) + ceil_div(self.width - 1, vector) * vector
        side_by_side = 4 * vector  # half of the banks
        return ceil_div(wanted - 2 * vector, side_by_side) * side_by_side + 2 * vector

    def shared(self, itemsize: int) -> int:
        """Return the bytes of shared memory: two buffers, each a row of X and its cotangents, for each phase."""
        gap = _BANKS_BETWEEN_PHASES * _BANK_BYTES if self.phases > 1 else 0
        image = self.channels * self.pitch(itemsize) * itemsize + gap
        cotangent = self.rows * self.width * self.columns(itemsize) * itemsize + gap
        return 2 * self.phases * (image + cotangent)

    def macros(self, itemsize: int) -> dict[str, object]:
        """Return the macros of the build, without the element types."""
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


# Many rows and channels together load least; small tiles fill a device with few pixels, and narrow ones waste little at the end
# of short rows. Each tile that does not fit into 64 KiB of shared memory has a small one beside it.
_LARGE = dict(column_lanes=8, channel_warps=2, row_warps=2)
_SMALL = dict(column_lanes=8, channel_warps=1, row_warps=1)
_NARROW = dict(column_lanes=2, channel_warps=1, row_warps=1)
_ANY = 20  # width of the tiles for every patch

_GENERAL = tuple(Tile(phases=phases, **shape, width=_ANY, exact=False) for phases, shape in product((1, 2), (_LARGE, _SMALL)))
_EXACT = (
    *(Tile(phases=1, **shape, width=width, exact=True) for width, shape in product((7, 9, 21), (_LARGE, _SMALL, _NARROW))),
    *(Tile(phases=2, **shape, width=21, exact=True) for shape in (_LARGE, _SMALL)),
)
# Element type of the inputs -> tiles. Inputs of 16 bits have few builds, as tensor cores are faster for them.
_TILES = {
    "float16": _GENERAL,
    "bfloat16": _GENERAL,
    "float32": (*_EXACT, *_GENERAL, Tile(phases=1, **_NARROW, width=_ANY, exact=False)),
    "float64": _GENERAL,
}


def _macros(tile: Tile, dtype: str, cotangent: str, result: str) -> dict[str, object]:
    types = {"INPUT": dtype, "COTANGENT": cotangent, "RESULT": result}
    return {**{name: ELEMENT_TYPES[element].c_type for name, element in types.items()}, **tile.macros(_sum_bytes(dtype))}


def _sum_bytes(dtype: str) -> int:
    return ELEMENT_TYPES[dtype].accumulator_dtype.itemsize


def builds() -> Iterator[tuple[str, Kernel]]:
    """Yield every kernel that a call can name, with words for it."""
    for dtype, tiles in _TILES.items():
        types = dict.fromkeys((dtype, ELEMENT_TYPES[dtype].accumulator))
        for tile, cotangent, result in product(tiles, types, types):
            build = kernel(SIGNATURE.name, _macros(tile, dtype, cotangent, result))
            yield f"gradient_tiled {' '.join(f'{name}={value}' for name, value in build.macros)}", build


# Problems ---------------------------------------------------------------------------------------------------------------------


def why_not(vertical: Line, horizontal: Line, cotangent: Layout, operands: Sequence[Operand]) -> str | None:
    """Return why no tile of the table supports these gradients, or None if one does."""
    return gradient_phases.why_not(vertical, horizontal, cotangent, operands, "tiles") or gradient_phases.why_too_large(
        _most_splits(normal(vertical), normal(horizontal), operands)
    )


def _most_splits(vertical: Line, horizontal: Line, operands: Sequence[Operand]) -> Iterator[Tiling]:
    """Yield the plan with the most blocks for each tile."""
    for tile in _tiles_for(operands[0].other[0].dtype, horizontal):
        splits = Splits(vertical.patch, 1, ceil_div(horizontal.patch, tile.width), tile.width)
        yield _Tiling(tile, splits, vertical, horizontal, operands)


def _tiles_for(dtype: str, horizontal: Line) -> list[Tile]:
    """Return the tiles of the table for a dtype, the phases of an axis and its patch."""
    phases = phases_together(horizontal)
    return [tile for tile in _TILES[dtype] if tile.phases == phases and (not tile.exact or tile.width == horizontal.patch)]


# Plans ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tiling(Tiling):
    """A plan for a problem with gradient_tiled.cu."""

    signature: ClassVar[Signature] = SIGNATURE

    @property
    def columns(self) -> int:
        return self.tile.phases * self.tile.columns(_sum_bytes(self.dtype))

    @property
    def threads(self) -> int:
        return self.tile.threads

    @property
    def shared(self) -> int:
        return self.tile.shared(_sum_bytes(self.dtype))

    def macros(self, cotangent: str, result: str) -> Mapping[str, object]:
        return _macros(self.tile, self.dtype, cotangent, result)

    def working(self, device: Device) -> float:
        """Return the seconds to add, to load through the second cache and to begin blocks, which overlap, and to wait."""
        element = ELEMENT_TYPES[self.dtype]
        rates = machine(device, element.accumulator)
        vector = VECTOR_BYTES // element.accumulator_dtype.itemsize
        displacements = min(self.splits.columns, self.horizontal.patch)
        streamed = self.splits.rows + self.tile.rows - 1  # rows of X
        takes = ceil_div(displacements, self.tile.width)  # each row of X is loaded so often

        products = self.splits.rows * displacements * _ROWS * _CHANNELS * vector
        windows = ceil_div(displacements, _DISPLACEMENTS) + ceil_div(displacements, vector)
        read = self.splits.rows * (_CHANNELS * windows + _ROWS * displacements) * VECTOR_BYTES
        adding = rates.tiled(self.blocks, self.tile.threads // WARP, products, read)

        sector = SECTOR_BYTES // element.itemsize  # rows begin and end within one
        images = self.tile.channels * (takes * (self.columns + sector) + self.tile.phases * displacements) * streamed
        cotangents = self.tile.rows * self.columns * displacements * self.splits.rows
        loading = rates.loaded(self.blocks * (images + cotangents) * element.itemsize)

        waves = ceil_div(self.blocks * self.tile.threads, rates.multiprocessors * _RESIDENT_THREADS)
        beginning = waves * _BLOCK_SECONDS
        waiting = streamed * takes * (_STEP_SECONDS + waves * self._elements() * _ELEMENT_SECONDS)
        return _OVERLAP * (adding + loading + beginning) + waiting

    def _elements(self) -> float:
        """Return the elements that a thread loads one by one for a step because they are widened and rows are no whole vectors.

        It depends on the shapes alone, so that arrays of other layouts get the same plan and bits.
        """
        itemsize = ELEMENT_TYPES[self.dtype].itemsize
        width = math.gcd(*(operand.other[0].shape[3] for operand in self.operands))
        if itemsize == _sum_bytes(self.dtype) or width * itemsize % VECTOR_BYTES == 0:
            return 0.0
        displacements = min(self.splits.columns, self.horizontal.patch, self.tile.width)
        image = self.tile.channels * ceil_div(self.columns + self.tile.phases * (displacements - 1), WARP)
        cotangents = self.tile.rows * displacements * ceil_div(self.columns, WARP)
        return (image + cotangents) * WARP / self.tile.threads


def tilings(vertical: Line, horizontal: Line, operands: Sequence[Operand]) -> Iterator[Tiling]:
    """Yield every tile with every division of the displacements, the fewest splits first."""
    for tile in _tiles_for(operands[0].other[0].dtype, horizontal):
        for splits in ways_to_split(vertical.patch, horizontal.patch, tile.width, lambda rows, columns: rows * columns):
            yield _Tiling(tile, splits, vertical, horizontal, operands)
