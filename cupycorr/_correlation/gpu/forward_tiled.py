"""The calls of ``forward_tiled.cu``: which tile takes a problem, and at what cost. Nothing here is launched or compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import gcd, prod

import numpy as np

from ..._dtypes import ELEMENT_TYPES, LONGEST_CHAIN
from ..._gpu.call import Call, Pointer, Signature, kernel
from ..._gpu.costs import LAUNCH, machine
from ..._gpu.device import Device
from ..._gpu.layout import ROWS, Layout, Numbers, ceil_div
from ..._gpu.limits import REGISTERS, REGISTERS_OF_A_THREAD, SECTOR_BYTES, VECTOR_BYTES, WARP
from ..._gpu.source import Kernel
from ..._sharing import CachedProperty
from . import forward_phases
from .axes import Line
from .forward_phases import (
    CHANNELWISE,
    COLUMNWISE,
    COPIED,
    STAGINGS,
    Arrays,
    SplitTiling,
    TiledAxis,
    fastest,
    tile_table,
    tiled_axis,
    why_not_tiled,
    why_out_of_reach,
)

SIGNATURE = Signature("correlation/forward_tiled", forward_phases.POINTERS, {**forward_phases.SCALARS, "scale": "Sum"})

_SHARED_BYTES = 96 * 1024  # of a block, at most; the smaller tiles fit into the 64 KiB that every device has
_HALF_BANKS_BYTES = 64  # of shared memory
_MOST_DOUBLES = 40  # rows times displacements of a thread


# Tiles ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tile:
    """A thread block tile that forward_tiled.cu can be built for.

    Attributes
    ----------
    rows
        Rows of input1 of a thread.
    tile_rows, patch_rows
        Rows of input1 and of displacements of a block.
    displacements
        Displacements along x of a thread.
    groups
        Groups of warps that take different displacements along x.
    lanes_x
        Lanes of a warp along x.
    warp_splits
        Groups of warps that take turns at the channels.
    channels
        Channels of a pipeline stage.
    phases
        1, or 2 where both phases of the columns are in one block.
    stagings
        Ways to fill shared memory that there are builds for.
    leading_columns
        Numbers of columns of input2 before the first displacement's that there are builds for.
    stages
        Pipeline stages of asynchronous copies of 4 bytes each.
    """

    rows: int
    tile_rows: int
    patch_rows: int
    displacements: int
    groups: int
    lanes_x: int
    warp_splits: int
    channels: int
    phases: int
    stagings: tuple[int, ...]
    leading_columns: tuple[int, ...] = (0,)
    stages: int = 2

    @property
    def thread_rows2(self) -> int:
        """The rows of input2 that are displaced from the rows of a thread."""
        return self.patch_rows + self.rows - 1

    @property
    def threads(self) -> int:
        """The threads of a block."""
        warps = ceil_div(self.tile_rows // self.rows * self.thread_rows2, WARP // self.lanes_x)
        return WARP * warps * self.phases * self.groups * self.warp_splits

    def columns(self, sum_bytes: int) -> int:
        """Return the positions along x of a block."""
        return self.phases * self.lanes_x * (VECTOR_BYTES // sum_bytes)

    def vectors(self, sum_bytes: int, leading_columns: int) -> int:
        """Return the vector loads of a thread's window of input2."""
        columns = VECTOR_BYTES // sum_bytes
        return ceil_div(leading_columns + columns + self.displacements - 1, columns)

    def widths(self, itemsize: int, sum_bytes: int, leading_columns: int) -> tuple[int, int]:
        """Return the columns of both images' tiles, of each phase."""
        columns, vector = VECTOR_BYTES // sum_bytes, VECTOR_BYTES // itemsize
        width1 = self.lanes_x * columns
        width2 = width1 - columns + (self.groups - 1) * self.displacements + self.vectors(sum_bytes, leading_columns) * columns
        return width1, ceil_div(width2, vector) * vector

    def pipeline_stages(self, staging: int, sum_bytes: int) -> int:
        """Return the pipeline stages: 2, or more where copies are asynchronous and there is room."""
        return self.stages if staging == COPIED and sum_bytes == 4 else 2

    def shared(self, itemsize: int, sum_bytes: int, staging: int, leading_columns: int) -> int:
        """Return the bytes of shared memory: all pipeline stages."""
        rows = (self.tile_rows, self.tile_rows - self.rows + self.thread_rows2)
        widths = self.widths(itemsize, sum_bytes, leading_columns)
        pitches = (self._pitch(width, VECTOR_BYTES // sum_bytes) for width in widths)
        channel = sum(self._plane(count * pitch, sum_bytes) for count, pitch in zip(rows, pitches, strict=True))
        return self.pipeline_stages(staging, sum_bytes) * self.channels * self.phases * channel * sum_bytes

    def _plane(self, size: int, sum_bytes: int) -> int:
        """Return the elements from a phase to the next, by the formula of ``plane_size`` in forward_tiled.cuh."""
        half = _HALF_BANKS_BYTES // sum_bytes
        return ceil_div(size - half, 2 * half) * 2 * half + half if self.phases > 1 else size

    def _pitch(self, width: int, vector: int) -> int:
        """Return the elements from row to row, by the formula of ``pitch`` in tile.cuh."""
        vectors = ceil_div(width, vector)
        return vector * (vectors + (6 - vectors % 4) % 4 if self.lanes_x == WARP // 4 else vectors | 1)


_BOTH = (COPIED, COLUMNWISE)
_ANY = (*_BOTH, CHANNELWISE)

# rows x displacements x 16 bytes of a thread's registers are sums: up to 168 numbers, beyond which they spill.
# fmt: off
TILES = tile_table(
    Tile,
    "rows tile_rows patch_rows displacements groups lanes_x warp_splits channels phases stagings leading_columns stages",
    (2,   4,        7,         21,           1,     8,      1,          4,       1,     (COPIED,),      (0, 2)),
    (2,   4,        7,         21,           1,     8,      1,          8,       2,     (COPIED,)),
    (2,   4,        7,         21,           1,     8,      1,          4,       2,     _BOTH),
    (2,   4,        7,         12,           2,     8,      1,          8,       1,     _ANY),
    (2,   4,        15,        16,           1,     8,      1,          4,       1,     _BOTH,          (0, 1)),
    (2,   8,        9,         9,            1,     8,      1,          8,       1,     _BOTH),
    (2,   4,        9,         9,            1,     8,      1,          8,       1,     (CHANNELWISE,)),
    (2,   4,        9,         9,            1,     8,      1,          4,       2,     _BOTH),
    (2,   4,        9,         9,            1,     4,      4,          8,       1,     _ANY,           (0,),           4),
    (2,   8,        7,         7,            1,     8,      1,          8,       1,     _ANY,           (0, 1)),
    (2,   4,        7,         7,            1,     8,      1,          4,       2,     _BOTH),
    (2,   4,        7,         7,            1,     4,      4,          8,       1,     _ANY,           (0, 1),         4),
    (2,   8,        3,         3,            1,     8,      1,          8,       1,     _ANY,           (0, 3)),
    (1,   8,        1,         16,           4,     8,      1,          4,       1,     _BOTH,          (0, 1)),
    (1,   4,        1,         16,           4,     8,      1,          8,       1,     (CHANNELWISE,)),
)
# fmt: on


# Tilings ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tiling(SplitTiling):
    """A plan for a problem with one thread block tile."""

    tile: Tile
    staging: int
    shared_epilogue: bool
    leading_columns: int

    def seconds(self, device: Device) -> float:
        """Return the seconds that the cost model expects."""
        return _seconds(self, device)

    @CachedProperty
    def block(self) -> _Block:
        """The costs that all splits of the channels have in common."""
        return _Block(
            count=super().blocks_of_a_split,
            busy=_busy(self.tile, self.vertical),
            loaded=_loaded(self) * self.arrays.input1.itemsize,
            moved=_moved(self.horizontal, self.arrays),
            vectors=self.tile.rows + self.tile.vectors(self.arrays.sum_bytes, self.leading_columns),
            vector_width=self.vector_width,
            threads=self.tile.threads,
        )

    def with_splits(self, splits: int) -> Tiling:
        """Return the same tiling with another number of splits of the channels, which costs the same per block."""
        other = replace(self, splits=splits)
        vars(other)["block"] = self.block
        return other

    @property
    def blocks_of_a_split(self) -> int:
        return self.block.count

    @property
    def how(self) -> str:
        """The plan in words."""
        split = f", channels split in {self.splits}" if self.splits > 1 else ""
        (rows, patch_rows), (columns, patch_columns) = self.rows, self.columns
        return f"tiles of {rows} x {columns} positions and {patch_rows} x {patch_columns} displacements in shared memory{split}"

    def macros(self, stored: str) -> dict[str, object]:
        """Return the macros of the build that stores elements of a C type."""
        dtype = self.arrays.input1.dtype
        return _macros(self.tile, self.staging, dtype, stored, self.shared_epilogue, self.leading_columns)

    def arguments(self, out_strides: Numbers) -> dict[str, int]:
        """Return the scalars of the kernel, except for the scale."""
        return dict(self.scalars(self.vector_width, out_strides))

    @property
    def threads(self) -> int:
        """The threads of a block."""
        return self.tile.threads

    def _call(self, pointers: tuple[Pointer, ...], out_strides: Numbers, scale: float) -> Call:
        return SIGNATURE.call(
            macros=self.macros(ELEMENT_TYPES[self.stored].c_type),
            pointers=dict(zip(SIGNATURE.pointers, pointers, strict=True)),
            scalars={**self.arguments(out_strides), "scale": scale},
            accumulator=self.arrays.input1.accumulator,
            blocks=self.blocks,
            threads=self.threads,
            shared=self.shared,
        )

    @property
    def shared(self) -> int:
        """The bytes of shared memory of a block."""
        return self.tile.shared(self.arrays.input1.itemsize, self.arrays.sum_bytes, self.staging, self.leading_columns)

    @property
    def rows(self) -> Numbers:
        """The positions and patch indices of a block along y."""
        return self.tile.tile_rows, self.tile.patch_rows

    @property
    def columns(self) -> Numbers:
        """The positions and patch indices of a block along x."""
        return self.tile.columns(self.arrays.sum_bytes), self.tile.groups * self.tile.displacements

    @property
    def vector_width(self) -> int:
        """The columns that one access can move if the first of each image is aligned: all distances before it are multiples."""
        if self.horizontal.spacing > 1 or self.staging == CHANNELWISE or (self.staging == COPIED and self.tile.phases > 1):
            return 1
        arrays, horizontal = self.arrays, self.horizontal
        columns, displacements = self.columns
        apart = horizontal.tile_outputs(columns) * horizontal.output_step if horizontal.tiles(columns) > 1 else 0
        displaced = horizontal.shift * displacements if horizontal.patch_tiles(displacements) > 1 else 0
        numbers = [horizontal.origin1, horizontal.origin2 - self.leading_columns * horizontal.shift, apart, displaced]
        for image in (arrays.input1, arrays.input2):
            if image.strides[3] != 1:
                return 1
            numbers += (*image.strides[:3], image.shape[3])
        return gcd(VECTOR_BYTES // arrays.input1.itemsize, *numbers)


# Choosing ---------------------------------------------------------------------------------------------------------------------


@lru_cache(1024)
def best(vertical: Line, horizontal: Line, arrays: Arrays, device: Device, room: int) -> SplitTiling | None:
    """Return the tiling that the cost model expects to be the fastest, with at most ``room`` bytes of partial sums.

    It is None if no tile supports the problem, for the reason that `why_not` returns, or none fits into ``room``.
    """
    if why_not(vertical, horizontal, arrays) is not None:
        return None
    found = tilings(vertical, horizontal, arrays)
    return fastest((tiling for tiling in found if tiling.shared <= device.shared_memory), device, room)


def tilings(vertical: Line, horizontal: Line, arrays: Arrays) -> Iterator[Tiling]:
    """Yield every plan with a tile of the table."""
    for tile, staging, axes in _supported(vertical, horizontal, arrays):
        yield from _tilings(tile, staging, *axes, arrays)


def why_not(vertical: Line, horizontal: Line, arrays: Arrays) -> str | None:
    """Return why no tile of the table supports a problem, or None if one does."""
    far = why_out_of_reach(vertical, horizontal, arrays)
    if far is not None or next(_supported(vertical, horizontal, arrays), None):
        return far
    reasons = (why_not_tiled(line, 1) for line in (vertical, horizontal))
    large = f"a window of {vertical.kernel} x {horizontal.kernel} taps does not fit into any tile"
    return next(filter(None, reasons), large)


def _supported(vertical: Line, horizontal: Line, arrays: Arrays) -> Iterator[tuple[Tile, int, tuple[TiledAxis, TiledAxis]]]:
    """Yield the tiles that support a problem, how each is filled, and the axes in its positions."""
    if why_not_tiled(vertical, 1):
        return
    along_y = tiled_axis(vertical, 1)
    along_x = {phases: tiled_axis(horizontal, phases) for phases in (1, 2) if not why_not_tiled(horizontal, phases)}
    stagings = {phases: _staging(axis, arrays) for phases, axis in along_x.items()}
    for tile in TILES:
        if tile.phases in along_x and _holds_windows(tile, along_y, along_x[tile.phases], arrays):
            staging = stagings[tile.phases]
            if staging in tile.stagings and _is_built(tile, staging, arrays.input1.dtype):
                yield tile, staging, (along_y, along_x[tile.phases])


def needed_splits(image: Layout, out: Layout) -> int:
    """Return the least number of splits of the channels that need partial sums, 0 if none are needed."""
    chains = ceil_div(max(image.shape[1], 1), LONGEST_CHAIN.cuda)
    return chains if chains > 1 or out.dtype not in (image.dtype, image.accumulator.name) else 0


def _holds_windows(tile: Tile, vertical: TiledAxis, horizontal: TiledAxis, arrays: Arrays) -> bool:
    """Return whether a tile holds whole windows and can sum them."""
    windowed = vertical.taps * horizontal.taps > 1
    whole = vertical.tile_outputs(tile.tile_rows) > 0 and horizontal.tile_outputs(tile.columns(arrays.sum_bytes)) > 0
    return whole and (_shared_epilogue(tile, windowed) or not windowed)


def _shared_epilogue(tile: Tile, windowed: bool) -> bool:
    """Return whether outputs go through shared memory, where phases, splits and, of small patches, windows are combined."""
    return tile.phases > 1 or tile.warp_splits > 1 or (windowed and tile.displacements < 10)


def _staging(horizontal: TiledAxis, arrays: Arrays) -> int:
    """Return how tiles are filled from arrays of these layouts."""
    images = (arrays.input1, arrays.input2)
    if all(image.strides[1] == 1 and image.shape[1] * image.itemsize >= SECTOR_BYTES for image in images):
        return CHANNELWISE
    rows_are_runs = all(image.strides[3] == 1 for image in images) and horizontal.spacing == 1
    return COPIED if rows_are_runs and images[0].itemsize == arrays.sum_bytes else COLUMNWISE


def _leading_columns(tile: Tile, staging: int, horizontal: TiledAxis, arrays: Arrays) -> int:
    """Return the columns by which input2's tile begins early so that its rows are aligned; 0 where there is no such build."""
    vector = VECTOR_BYTES // arrays.input1.itemsize
    aligned = (count for count in tile.leading_columns if (horizontal.origin2 - count * horizontal.shift) % vector == 0)
    return next(aligned, 0) if _may_lead(tile, staging, arrays.input1.dtype) else 0


def _may_lead(tile: Tile, staging: int, dtype: str) -> bool:
    """Return whether there are builds with leading columns: where vectors of inputs and of sums have the same width."""
    return dtype == "float32" and staging == COPIED and tile.phases == 1


def _tilings(tile: Tile, staging: int, vertical: TiledAxis, horizontal: TiledAxis, arrays: Arrays) -> Iterator[Tiling]:
    """Yield plans with a tile: with as few splits of the channels as chains of sums allow, then twice as many, and so on."""
    channels = max(arrays.input1.shape[1], 1)
    whole = Tiling(
        vertical=vertical,
        horizontal=horizontal,
        arrays=arrays,
        splits=1,
        tile=tile,
        staging=staging,
        shared_epilogue=_shared_epilogue(tile, vertical.taps * horizontal.taps > 1),
        leading_columns=_leading_columns(tile, staging, horizontal, arrays),
    )
    splits = ceil_div(channels, LONGEST_CHAIN.cuda * tile.warp_splits)
    most = ceil_div(channels, tile.channels)
    while True:
        yield whole.with_splits(ceil_div(channels, ceil_div(channels, splits)))
        splits *= 2
        if splits > most:
            return


# Cost model -------------------------------------------------------------------------------------------------------------------


# The constants reproduce the times of a simulated H200 within a factor of 1.4 where a tile is the best of the table.
_PIPELINE_SECONDS = 4e-6  # to fill the pipeline of a block and to store its outputs, beside what other blocks hide
_STAGE_SECONDS = 0.2e-6  # of a pipeline stage, which all warps of a block begin together
_SHARED_EPILOGUE_OPERATIONS = 15  # of an output that goes through shared memory, each as long as a multiply-add
_LOADING_EFFICIENCY = 0.5  # of the second-level cache, while warps wait at barriers
_OTHER_REGISTERS = 70  # of a thread, beside its sums
_THREADS = 2048  # the most of a multiprocessor


def _seconds(tiling: Tiling, device: Device) -> float:
    arrays, tile, sum_bytes, block = tiling.arrays, tiling.tile, tiling.arrays.sum_bytes, tiling.block
    rates = machine(device, arrays.input1.accumulator.name)
    stages = ceil_div(tiling.split_channels, tile.channels)
    channels = stages * tile.channels
    outputs = tile.rows * tile.displacements * VECTOR_BYTES // sum_bytes
    products = channels / tile.warp_splits * outputs
    read = channels / tile.warp_splits * block.vectors * VECTOR_BYTES
    # Each access costs about as much as a vector.
    read += channels * block.loaded * VECTOR_BYTES / sum_bytes / block.vector_width / block.threads
    blocks = block.count * tiling.splits
    busy = round(blocks * block.busy)
    seconds = LAUNCH + max(
        rates.computing(busy, block.threads // WARP, products, read),
        rates.loaded(busy * channels * block.loaded) / _LOADING_EFFICIENCY,
        rates.moved(block.moved),
    )
    waves = ceil_div(blocks, rates.multiprocessors * _resident_blocks(tiling, outputs * sum_bytes // 4, device))
    seconds += waves * (_PIPELINE_SECONDS + stages * _STAGE_SECONDS)
    if tiling.shared_epilogue:
        operations = outputs * (_SHARED_EPILOGUE_OPERATIONS + tiling.vertical.taps * tiling.horizontal.taps - 1)
        seconds += ceil_div(blocks, rates.multiprocessors) * block.threads * operations / rates.multiply_adds
    if tiling.needs_partial_sums:
        seconds += LAUNCH + rates.moved((2 * tiling.splits + 1) * prod(arrays.out.shape) * sum_bytes)
    return seconds


def _resident_blocks(tiling: Tiling, sum_registers: int, device: Device) -> int:
    """Return the blocks that a multiprocessor runs at once."""
    registers = min(sum_registers + _OTHER_REGISTERS, REGISTERS_OF_A_THREAD)
    threads = tiling.tile.threads
    return max(min(_THREADS // threads, REGISTERS // (threads * registers), device.shared_memory // tiling.shared), 1)


@dataclass(frozen=True, slots=True)
class _Block:
    """The costs of a thread block that do not depend on the splits of the channels.

    Attributes
    ----------
    count
        Blocks for one split of the channels.
    busy
        The fraction of the pairs of rows of threads that are inside both images; the others only store 0.
    loaded
        Bytes that a block loads of each channel.
    moved
        Bytes moved to and from global memory by all blocks.
    vectors
        16-byte loads of a thread from shared memory for a channel.
    vector_width
        Columns that one access to global memory moves.
    threads
        Threads of a block.
    """

    count: int
    busy: float
    loaded: int
    moved: float
    vectors: int
    vector_width: int
    threads: int


def _loaded(tiling: Tiling) -> int:
    """Return the elements that a block loads of each channel."""
    tile, arrays = tiling.tile, tiling.arrays
    width1, width2 = tile.widths(arrays.input1.itemsize, arrays.sum_bytes, tiling.leading_columns)
    rows2 = tile.tile_rows - tile.rows + tile.thread_rows2
    return tile.phases * (tile.tile_rows * width1 + rows2 * width2)


@lru_cache(1024)
def _moved(horizontal: TiledAxis, arrays: Arrays) -> float:
    """Return the bytes moved to and from global memory, in whole sectors of which the blocks of a phase use a part."""
    apart = horizontal.spacing if arrays.input1.order == ROWS else 1
    images = (arrays.input1, arrays.input2)
    read = sum(prod(image.shape) * image.itemsize for image in images) * min(apart, SECTOR_BYTES // images[0].itemsize)
    out = arrays.out
    return read + prod(out.shape) * out.itemsize * min(horizontal.output_phase_stride, SECTOR_BYTES // out.itemsize)


@lru_cache(1024)
def _busy(tile: Tile, axis: TiledAxis) -> float:
    """Return the fraction of the pairs of rows of threads that are inside both images, estimated from one phase.

    A thread has ``tile.rows`` rows of input1 and one row of input2; threads whose rows are outside only store 0.
    """
    tiles = np.arange(axis.tiles(tile.tile_rows)) * axis.tile_outputs(tile.tile_rows) * axis.output_step
    rows = np.sort(np.add.outer(tiles, np.arange(0, tile.tile_rows, tile.rows)), axis=None) * axis.spacing
    displaced = np.add.outer(np.arange(axis.patch_tiles(tile.patch_rows)) * tile.patch_rows, np.arange(tile.thread_rows2))
    origins2 = axis.origin2 + displaced.ravel() * axis.spacing
    begin = np.maximum(1 - tile.rows * axis.spacing - axis.origin1, -origins2)
    end = np.minimum(axis.size1 - axis.origin1, axis.size2 - origins2)
    inside = np.maximum(np.searchsorted(rows, end) - np.searchsorted(rows, begin), 0)
    return float(inside.sum() / (inside.size * rows.size))


# Builds -----------------------------------------------------------------------------------------------------------------------


def _macros(tile: Tile, staging: int, dtype: str, stored: str, shared_epilogue: bool, leading_columns: int) -> dict[str, object]:
    element = ELEMENT_TYPES[dtype]
    sum_bytes = ELEMENT_TYPES[element.accumulator].itemsize
    return {
        "INPUT": element.c_type,
        "OUTPUT": stored,
        "STAGING": staging,
        "PHASES": tile.phases,
        "ROWS": tile.rows,
        "TILE_ROWS": tile.tile_rows,
        "PATCH_ROWS": tile.patch_rows,
        "DISPLACEMENTS": tile.displacements,
        "GROUPS": tile.groups,
        "LANES_X": tile.lanes_x,
        "WARP_SPLITS": tile.warp_splits,
        "CHANNELS": tile.channels,
        "STAGES": tile.pipeline_stages(staging, sum_bytes),
        "LEADING_COLUMNS": leading_columns,
        "SHARED_EPILOGUE": int(shared_epilogue),
        "THREADS": tile.threads,
        "SHARED": tile.shared(element.itemsize, sum_bytes, staging, leading_columns),
        "INDEX": "int",
    }


@lru_cache
def _is_built(tile: Tile, staging: int, dtype: str) -> bool:
    """Return whether there is a build for a dtype.

    Asynchronous copies do not widen. A vector of channels has at least one for each split of a warp. The largest tiles and both
    phases of float64 take too many registers, some take too much shared memory.
    """
    element = ELEMENT_TYPES[dtype]
    sum_bytes = ELEMENT_TYPES[element.accumulator].itemsize
    if sum_bytes > 4 and (tile.phases > 1 or tile.rows * tile.displacements > _MOST_DOUBLES):
        return False
    if max(tile.shared(element.itemsize, sum_bytes, staging, count) for count in tile.leading_columns) > _SHARED_BYTES:
        return False
    if staging == COPIED:
        return element.itemsize == sum_bytes
    return staging != CHANNELWISE or min(SECTOR_BYTES // element.itemsize, tile.channels) % tile.warp_splits == 0


@dataclass(frozen=True, slots=True)
class Build:
    """The choices that a build is made for, beside the type that it stores."""

    number: int
    staging: int
    dtype: str
    shared_epilogue: bool
    leading_columns: int

    @property
    def words(self) -> str:
        """The choices in words."""
        options = [STAGINGS[self.staging], f"{self.leading_columns} leading columns" * (self.leading_columns > 0)]
        return ", ".join(filter(None, (f"tile {self.number}", *options, "shared epilogue" * self.shared_epilogue)))

    def macros(self, stored: str) -> dict[str, object]:
        """Return the macros of the build that stores elements of a C type."""
        tile = TILES[self.number]
        return _macros(tile, self.staging, self.dtype, stored, self.shared_epilogue, self.leading_columns)


def variations(epilogues: Callable[[Tile], Iterable[bool]]) -> Iterator[Build]:
    """Yield the choices that builds are made for; `epilogues` returns whether a tile's outputs go through shared memory."""
    for number, tile in enumerate(TILES):
        for staging, dtype in product(tile.stagings, ELEMENT_TYPES):
            if not _is_built(tile, staging, dtype):
                continue
            leading = tile.leading_columns if _may_lead(tile, staging, dtype) else (0,)
            for shared, count in product(epilogues(tile), leading):
                yield Build(number, staging, dtype, shared, count)


def builds() -> Iterator[tuple[str, Kernel]]:
    """Yield every kernel that a tiling can call, with words for it."""
    for build in variations(lambda tile: dict.fromkeys(_shared_epilogue(tile, windowed) for windowed in (False, True))):
        for result in dict.fromkeys((build.dtype, ELEMENT_TYPES[build.dtype].accumulator)):
            macros = build.macros(ELEMENT_TYPES[result].c_type)
            yield f"forward_tiled {build.dtype} to {result}, {build.words}", kernel(SIGNATURE.name, macros)
