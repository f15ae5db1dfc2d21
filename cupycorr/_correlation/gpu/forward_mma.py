"""The calls of ``forward_mma.cu``: which tile takes a problem, and at what cost. Nothing here is launched or compiled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import gcd, prod

from ..._dtypes import ELEMENT_TYPES, LONGEST_CHAIN
from ..._gpu.call import Call, Pointer, Signature, kernel
from ..._gpu.costs import LAUNCH, machine, matrix_rate
from ..._gpu.device import Device
from ..._gpu.layout import CHANNELS_LAST, Layout, Numbers, ceil_div
from ..._gpu.limits import REGISTERS, REGISTERS_OF_A_THREAD, SECTOR_BYTES, VECTOR_BYTES, WARP
from ..._gpu.source import Kernel
from ..._sharing import CachedProperty
from ..problem import lattice_inside
from . import forward_phases
from .axes import Line
from .forward_phases import (
    CHANNELWISE,
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

# The scalars that kernels with these tiles begin with.
SCALARS = {
    **forward_phases.SCALARS,
    **dict.fromkeys(("passes", "stages1", "leading_displacements", "patch_columns"), "int"),
}
SIGNATURE = Signature("correlation/forward_mma", forward_phases.POINTERS, {**SCALARS, "vector_stores": "int", "scale": "Sum"})

DTYPES = ("float16", "bfloat16", "float32")

_GROUP, _GROUPS1 = 8, 4  # columns of a group, and groups of a warp's row of input1, as in forward_mma.cuh
_WARP_COLUMNS = _GROUP * _GROUPS1  # positions along x of a warp
_PASS_BYTES = 92  # of shared memory, for the PassTile of a pass
_MATRIX_BYTES = 128  # of shared memory, for a matrix of 8 columns and 16 bytes of channels
_COUNTED = 1024  # tiles along an axis that the cost model counts; of more, one in so many stands for its neighbours
_PASSES = (2, 3, 4, 6)  # numbers of tiles of input2 that a block may take in turn while it keeps input1 in shared memory

# The cost model, fitted to simulations of 12 problems and up to 9 plans for each.
_TILE_SECONDS = 2.5e-6  # seconds of a pass beside its products: setup, first loads and epilogue
_REACHED_BY_8_WARPS, _MOST_REACHED = 0.9, 1.5  # the fraction of peak rates, and how much more warps raise it
_SERIAL = 0.5  # the fraction of loads, stores and products that do not overlap each other
_OTHER_REGISTERS = {2: 88, 4: 76}  # element size in bytes -> registers of a thread beside its sums

_WITHOUT_SPILLS = ((9, 0),)  # the compute capabilities for which 168 registers are enough for the tile of 384 threads


# Tiles ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tile:
    """A thread block tile that forward_mma.cu can be built for.

    Attributes
    ----------
    band_mmas
        MMA instructions that cover the band of 8 columns of input1, each with 16 columns of input2.
    rows1, rows2
        Rows of either image of a warp.
    row_warps1, row_warps2
        Warps along the rows of either image.
    skewed
        Whether a warp's rows of input2 follow its row of input1, else those of the block are the same for all.
    warp_splits
        Groups of warps with the same tile, which take slices of each stage's channels in turn.
    channels
        Channels of a pipeline stage, of 16-bit types.
    stages
        Pipeline stages.
    staging
        How shared memory is filled.
    phases
        1, or 2 where both phases of the columns are in one block.
    planes
        Planes of columns in shared memory: one for each phase, or 1 where columns stay as they are.
    column_warps
        Warps along the columns of a plane.
    blocks
        Blocks of 16-bit types that the registers leave room for on a multiprocessor.
    capabilities
        Compute capabilities of the devices that the tile is built for, None for all.
    result_bytes
        Sizes of the elements of results that the tile is built for.
    """

    band_mmas: int
    rows1: int
    rows2: int
    row_warps1: int
    row_warps2: int
    skewed: bool
    warp_splits: int
    channels: int
    stages: int
    staging: int
    phases: int = 1
    planes: int = 1
    column_warps: int = 1
    blocks: int = 1
    capabilities: tuple[tuple[int, int], ...] | None = None
    result_bytes: tuple[int, ...] = (2, 4)

    @property
    def tile_rows(self) -> int:
        """The rows of input1 of a block."""
        return self.rows1 * self.row_warps1

    @property
    def pass_rows(self) -> int:
        """The rows of input2 from one pass to the next."""
        return self.rows2 * self.row_warps2

    @property
    def tile_rows2(self) -> int:
        """The rows of input2 of a block and a pass."""
        return self.tile_rows + self.pass_rows - 1 if self.skewed else self.pass_rows

    @property
    def threads(self) -> int:
        """The threads of a block."""
        return WARP * self.planes * self.column_warps * self.row_warps1 * self.row_warps2 * self.warp_splits

    @property
    def columns(self) -> tuple[int, int]:
        """The columns of either image of a block, of all its planes."""
        width = _WARP_COLUMNS * self.column_warps
        return self.planes * width, self.planes * (width + _GROUP * (2 * self.band_mmas - 1))

    @property
    def displacements(self) -> int:
        """The most displacements along x of a block: all of a band, or every second if columns are not parted."""
        return _GROUP * (2 * self.band_mmas - 1) * self.planes // self.phases + 1

    def results(self, dtype: str) -> tuple[str, ...]:
        """Return the dtypes of results that the tile is built for with inputs of a dtype.

        There is none where rows of both phases are parted although they have 16-bit types, or not parted although they have not.
        """
        if self.staging != CHANNELWISE and self.phases > 1 and (self.planes > 1) != (dtype == "float32"):
            return ()
        stored = dict.fromkeys((dtype, ELEMENT_TYPES[dtype].accumulator))
        return tuple(each for each in stored if ELEMENT_TYPES[each].itemsize in self.result_bytes)

    def is_built_for(self, device: Device) -> bool:
        """Return whether the tile is built for a device."""
        return self.capabilities is None or device.compute_capability in self.capabilities

    def stage_channels(self, itemsize: int) -> int:
        """Return the channels of a pipeline stage."""
        return self.channels * 2 // itemsize

    def stage_bytes(self, itemsize: int) -> tuple[int, int]:
        """Return the bytes of shared memory of a pipeline stage of either image."""
        columns1, columns2 = self.columns
        return self._stage(self.tile_rows * columns1, itemsize), self._stage(self.tile_rows2 * columns2, itemsize)

    def _stage(self, pixels: int, itemsize: int) -> int:
        vector, channels = VECTOR_BYTES // itemsize, self.stage_channels(itemsize)
        if self.staging == CHANNELWISE:
            return pixels * (channels + vector) * itemsize
        pitch = (pixels // vector | 1) * vector if itemsize == 2 else ceil_div(pixels, WARP) * WARP + _GROUP
        return channels * pitch * itemsize

    def shared(self, itemsize: int, stages1: int) -> int:
        """Return the bytes of shared memory, with so many stages of input1."""
        first, second = self.stage_bytes(itemsize)
        return stages1 * first + self.stages * second + max(_PASSES) * _PASS_BYTES

    def macros(self, dtype: str, stored: str) -> dict[str, object]:
        """Return the macros of the build for inputs of a dtype that stores elements of a C type."""
        itemsize = ELEMENT_TYPES[dtype].itemsize
        first, second = self.stage_bytes(itemsize)
        return {
            "INPUT": ELEMENT_TYPES[dtype].c_type,
            "OUTPUT": stored,
            "STAGING": self.staging,
            "PHASES": self.phases,
            "PLANES": self.planes,
            "BAND_MMAS": self.band_mmas,
            "WARP_ROWS1": self.rows1,
            "WARP_ROWS2": self.rows2,
            "ROW_WARPS1": self.row_warps1,
            "ROW_WARPS2": self.row_warps2,
            "COLUMN_WARPS": self.column_warps,
            "SKEWED": int(self.skewed),
            "WARP_SPLITS": self.warp_splits,
            "CHANNELS": self.stage_channels(itemsize),
            "STAGES": self.stages,
            "THREADS": self.threads,
            "BYTES1": first,
            "BYTES2": second,
            "PASS_BYTES": _PASS_BYTES,
            "BLOCKS": self.blocks if itemsize == 2 else 1,
            "INDEX": "int",
        }


# Narrow patches (up to 9 displacements a row, band_mmas 1) take all their rows at once, wide ones some: every row of input2 that
# a block loads is multiplied with all of its rows of input1. Patches of one row take many displacements. For few pixels there are
# small tiles, whose warps split the channels. Where both phases of columns are in one block, float32 is parted into planes, and
# columns of 16-bit types stay as they are. Each kind of one phase has one that fits into 64 KiB.
#
# 384 threads leave each of them 168 registers, which are just enough for results of 16 bits on 9.0. Elsewhere the assembler of
# CUDA 12.9 or 13.5 spills some to memory: 8 bytes on 9.0 where results are float32, 8 on 8.0, up to 204 on 10.0, 10.1 and 10.3.
# Most other devices have too little shared memory for this tile.
# fmt: off
TILES = tile_table(
    Tile,
    "band_mmas rows1 rows2 row_warps1 row_warps2 skewed warp_splits channels stages staging phases planes column_warps blocks "
    "capabilities result_bytes",
    (1,       1,    3,    4,         3,         True,  1,          16,      4,     COPIED),
    (1,       1,    9,    8,         1,         True,  1,          16,      3,     COPIED),
    (1,       1,    3,    2,         3,         True,  2,          32,      3,     COPIED),
    (1,       1,    4,    4,         2,         True,  1,          16,      3,     COPIED),
    (1,       1,    3,    8,         1,         True,  1,          16,      3,     COPIED),
    (2,       2,    2,    2,         4,         False, 1,          16,      4,     COPIED),
    (2,       1,    2,    2,         2,         False, 2,          32,      3,     COPIED),
    (5,       1,    1,    4,         1,         True,  1,          16,      4,     COPIED,      1,   1,     1,   3),
    (1,       1,    3,    4,         3,         True,  1,          16,      3,     CHANNELWISE),
    (1,       1,    5,    4,         2,         True,  1,          16,      3,     CHANNELWISE),
    (1,       1,    3,    2,         3,         True,  2,          32,      3,     CHANNELWISE),
    (1,       1,    4,    4,         2,         True,  1,          16,      2,     CHANNELWISE),
    (1,       1,    3,    8,         1,         True,  1,          16,      3,     CHANNELWISE),
    (2,       2,    2,    2,         4,         False, 1,          16,      3,     CHANNELWISE),
    (2,       1,    2,    2,         2,         False, 2,          32,      2,     CHANNELWISE),
    (5,       1,    1,    4,         1,         True,  1,          16,      4,     CHANNELWISE),
    (2,       2,    2,    2,         2,         False, 1,          16,      3,     CHANNELWISE, 2,   2),
    (2,       2,    2,    2,         2,         False, 1,          64,      2,     COPIED,      2,   2),
    (2,       2,    2,    2,         2,         False, 1,          32,      2,     COPIED,      2,   2),
    (1,       1,    3,    2,         3,         True,  1,          16,      3,     COPIED,      2,   2),
    (1,       1,    3,    2,         1,         True,  4,          64,      2,     COPIED),
    (1,       1,    3,    2,         1,         True,  4,          64,      2,     CHANNELWISE),
    (3,       1,    2,    4,         1,         False, 1,          64,      2,     COPIED,      2,   1,     2),
    (2,       1,    3,    2,         3,         True,  1,          16,      3,     COPIED,      2,   1),
    (3,       1,    2,    3,         2,         False, 1,          64,      2,     COPIED,   2, 1, 2, 1, _WITHOUT_SPILLS, (2,)),
)
# fmt: on


# Tilings ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Loads:
    """Loads along one axis, summed over its tiles.

    Attributes
    ----------
    blocks
        Blocks with something to multiply.
    passes
        Passes with something to multiply.
    first, second
        Positions inside each image that blocks and passes load.
    """

    blocks: int
    passes: int
    first: int
    second: int


@dataclass(frozen=True)
class Tiling(SplitTiling):
    """A plan for a problem with one thread block tile.

    A block makes ``passes`` over tiles of input2; it holds ``stages1`` stages of input1 in shared memory.
    """

    tile: Tile
    passes: int
    stages1: int

    @property
    def split_channels(self) -> int:
        """The channels of a split: whole stages."""
        channels, stage = self.arrays.input1.shape[1], self.tile.stage_channels(self.arrays.input1.itemsize)
        return ceil_div(ceil_div(max(channels, 1), self.splits), stage) * stage

    @property
    def how(self) -> str:
        """The plan in words."""
        passes = f", {self.passes} tiles of input2 for one of input1" if self.passes > 1 else ""
        split = f", channels split in {self.splits}" if self.splits > 1 else ""
        rows, columns = self.tile.tile_rows, self.tile.columns[0]
        return f"tiles of {rows} x {columns} positions and {self.patch_columns} displacements on tensor cores{passes}{split}"

    def _call(self, pointers: tuple[Pointer, ...], out_strides: Numbers, scale: float) -> Call:
        arrays, stored = self.arrays, self.stored
        vector = VECTOR_BYTES // ELEMENT_TYPES[stored].itemsize
        aligned = not any(stride % vector for stride in out_strides[1:-1])
        return SIGNATURE.call(
            macros=self.macros(ELEMENT_TYPES[stored].c_type),
            pointers=dict(zip(SIGNATURE.pointers, pointers, strict=True)),
            scalars={
                **self.arguments(out_strides),
                "vector_stores": int(self.horizontal.output_phase_stride == 1 and out_strides[-1] <= 1 and aligned),
                "scale": scale,
            },
            accumulator=arrays.input1.accumulator,
            blocks=self.blocks,
            threads=self.threads,
            shared=self.shared,
        )

    def macros(self, stored: str) -> dict[str, object]:
        """Return the macros of the build that stores elements of a C type."""
        return self.tile.macros(self.arrays.input1.dtype, stored)

    def arguments(self, out_strides: Numbers) -> dict[str, int]:
        """Return the scalars of the kernel, except for those of its epilogue."""
        return {
            **self.scalars(self.vector_width, out_strides),
            "passes": self.passes,
            "stages1": self.stages1,
            "leading_displacements": self.leading_displacements,
            "patch_columns": self.patch_columns,
        }

    @property
    def threads(self) -> int:
        """The threads of a block."""
        return self.tile.threads

    @property
    def shared(self) -> int:
        """The bytes of shared memory of a block."""
        return self.tile.shared(self.arrays.input1.itemsize, self.stages1)

    @property
    def finished_tiles(self) -> int:
        """The tiles of displacements for the same outputs, each of which a block finishes by itself: one in each pass."""
        return self.parts * self.passes

    @property
    def rows(self) -> Numbers:
        """The positions and patch indices of a block along y."""
        return self.tile.tile_rows, self.tile.pass_rows * self.passes

    @property
    def columns(self) -> Numbers:
        """The positions and patch indices of a block along x."""
        return self.tile.columns[0], self.patch_columns

    @property
    def tiles2(self) -> int:
        """The tiles of input2's rows for one of input1's; if they are not skewed, each row of input1 starts elsewhere in them."""
        patch = self.vertical.phase_patch
        return ceil_div(patch + (0 if self.tile.skewed else self.tile.tile_rows - 1), self.tile.pass_rows)

    @property
    def patch_tiles_y(self) -> int:
        """The blocks for the patch indices of one phase along y."""
        return ceil_div(self.tiles2, self.passes)

    @property
    def patch_columns(self) -> int:
        """The displacements of a block along x; blocks share a patch evenly."""
        patch, most = self.horizontal.phase_patch, self.tile.displacements
        if patch <= most:
            return patch
        each = ceil_div(patch, ceil_div(patch, most))
        return min(ceil_div(each, _GROUP) * _GROUP, most // _GROUP * _GROUP)

    @property
    def vector_width(self) -> int:
        """The elements that one access can move if the first of each image is aligned: all distances before it are multiples."""
        return self._vector_width(self.leading_displacements)

    @CachedProperty
    def leading_displacements(self) -> int:
        """The displacements by which input2's tile begins before the first one's column, so that one access moves most."""
        spare = self.tile.displacements - self.patch_columns
        return (
            0 if self.tile.staging == CHANNELWISE else max(range(spare + 1), key=lambda lead: (self._vector_width(lead), -lead))
        )

    def _vector_width(self, leading_displacements: int) -> int:
        arrays, horizontal = self.arrays, self.horizontal
        images, vector = (arrays.input1, arrays.input2), VECTOR_BYTES // arrays.input1.itemsize
        if self.tile.staging == CHANNELWISE:
            strides = (stride for image in images for axis, stride in enumerate(image.strides) if axis != 1)
            return gcd(vector, arrays.input1.shape[1], *strides)
        if horizontal.spacing > 1 or any(image.strides[3] != 1 for image in images):
            return 1
        displaced = horizontal.shift * self.patch_columns if horizontal.patch_tiles(self.patch_columns) > 1 else 0
        numbers = [horizontal.origin1, horizontal.origin2 - leading_displacements * horizontal.shift, displaced]
        numbers += (number for image in images for number in (*image.strides[:3], image.shape[3]))
        return gcd(vector, *numbers)

    # Cost model ---------------------------------------------------------------------------------------------------------------

    @CachedProperty
    def _loads_y(self) -> _Loads:
        tile = self.tile
        return _loads(self.vertical, tile.tile_rows, tile.tile_rows2, tile.pass_rows, self.tiles2, self.passes)

    @CachedProperty
    def _loads_x(self) -> _Loads:
        (columns, width2), patch_columns = self.tile.columns, self.patch_columns
        tiles = self.horizontal.patch_tiles(patch_columns)
        apart = patch_columns * self.horizontal.shift
        return _loads(self.horizontal, columns, width2, apart, tiles, leading=self.leading_displacements)

    @property
    def loaded(self) -> int:
        """The bytes of both images that all blocks load together, estimated from one phase of each axis."""
        y, x, arrays = self._loads_y, self._loads_x, self.arrays
        batch, channels = arrays.input1.shape[:2]
        elements = y.first * x.first + y.second * x.second
        return elements * self._phases * batch * channels * arrays.input1.itemsize

    @property
    def _phases(self) -> int:
        return prod(axis.output_phases * axis.patch_phases for axis in (self.vertical, self.horizontal))

    def seconds(self, device: Device) -> float:
        """Return the seconds that the cost model expects."""
        arrays, x, y = self.arrays, self._loads_x, self._loads_y
        rates, rate = machine(device, "float32"), matrix_rate(device, arrays.input1.dtype)
        busy = y.blocks * x.blocks * self._phases * arrays.out.shape[0] * self.splits
        passes = y.passes / max(y.blocks, 1)  # of a busy block
        blocks, resident = ceil_div(busy, rates.multiprocessors), self._resident_blocks(device)  # of a multiprocessor
        multiplying = passes * max(self._multiply_adds / rate, self._shared_bytes / rates.cache)
        parallel = (
            blocks * multiplying / _reached(min(max(blocks, 1), resident) * self.tile.threads // WARP),
            rates.loaded(self.loaded * self._sector_reads),
            rates.moved(self._moved),
        )
        seconds = LAUNCH + ceil_div(blocks, resident) * passes * _TILE_SECONDS
        seconds += (1 - _SERIAL) * max(parallel) + _SERIAL * sum(parallel)
        if self.workspace:
            seconds += LAUNCH + rates.moved((2 * self.splits + 1) * prod(arrays.out.shape) * arrays.sum_bytes)
        return seconds

    def _resident_blocks(self, device: Device) -> int:
        """Return the blocks that a multiprocessor runs at once."""
        tile, itemsize = self.tile, self.arrays.input1.itemsize
        sums = tile.rows1 * tile.rows2 * _GROUPS1 * tile.band_mmas * _GROUP * 2 * _GROUP // WARP
        registers = min(sums + _OTHER_REGISTERS[itemsize], REGISTERS_OF_A_THREAD)
        fitting = min(REGISTERS // (tile.threads * registers), device.shared_memory // tile.shared(itemsize, self.stages1))
        return max(fitting, tile.blocks if itemsize == 2 else 1)

    @property
    def _steps(self) -> float:
        """The depths of MMA instructions in channels that the warps of a block take in a pass, all together."""
        depth = 2 * VECTOR_BYTES // self.arrays.input1.itemsize
        return ceil_div(self.split_channels, depth) * self.tile.threads / WARP / self.tile.warp_splits

    @property
    def _multiply_adds(self) -> float:
        """The multiply-adds of a block and a pass."""
        tile, product = self.tile, 2 * _GROUP * _GROUP * 2 * VECTOR_BYTES // self.arrays.input1.itemsize
        return self._steps * tile.rows1 * tile.rows2 * _GROUPS1 * tile.band_mmas * product

    @property
    def _shared_bytes(self) -> float:
        """The bytes of shared memory that a block and a pass move.

        They are fragments read, stages filled (each access costs about as much as one of 16 bytes), and the band stored and read.
        """
        tile, itemsize = self.tile, self.arrays.input1.itemsize
        fragments = self._steps * (tile.rows1 * _GROUPS1 + tile.rows2 * (_GROUPS1 + 2 * tile.band_mmas - 1)) * 2 * _MATRIX_BYTES
        stages = sum(tile.stage_bytes(itemsize)) * self.split_channels / tile.stage_channels(itemsize)
        band = tile.threads / WARP * tile.rows1 * tile.rows2 * tile.displacements * _WARP_COLUMNS * self.arrays.sum_bytes
        return fragments + stages * VECTOR_BYTES / itemsize / self.vector_width + 2 * band

    @property
    def _sector_reads(self) -> int:
        """The times that a sector of an image is read, as the blocks of a phase use only some of its columns."""
        sector = SECTOR_BYTES // self.arrays.input1.itemsize
        return 1 if self.tile.staging == CHANNELWISE else min(self.horizontal.spacing, sector)

    @property
    def _moved(self) -> float:
        """The bytes moved to and from global memory, in whole sectors of which the blocks of a phase use a part."""
        images, out = (self.arrays.input1, self.arrays.input2), self.arrays.out
        read = sum(prod(image.shape) * image.itemsize for image in images) * self._sector_reads
        return read + prod(out.shape) * out.itemsize * min(self.horizontal.output_phase_stride, SECTOR_BYTES // out.itemsize)


def _reached(warps: int) -> float:
    """Return the fraction of the peak rates that so many warps of a multiprocessor reach: more of them hide more latency."""
    return _REACHED_BY_8_WARPS * min((warps / 8) ** 0.5, _MOST_REACHED)


@lru_cache(4096)
def _loads(axis: TiledAxis, length1: int, length2: int, apart: int, tiles: int, passes: int = 1, leading: int = 0) -> _Loads:
    """Return the loads of the first phase, by tiles of so many positions of either image.

    There are ``tiles`` of input2 for each of input1, ``apart`` positions from each other.
    """
    blocks = busy = first = second = 0
    count = axis.tiles(length1)
    every = ceil_div(count, _COUNTED)
    for position in range(0, count * length1, every * length1):
        inside1 = _inside(axis.origin1 + position * axis.spacing, length1, axis.spacing, axis.size1)
        for block in range(0, tiles, passes):
            starts = (position - leading * axis.shift + tile * apart for tile in range(block, min(block + passes, tiles)))
            inside2 = [_inside(axis.origin2 + start * axis.spacing, length2, axis.spacing, axis.size2) for start in starts]
            overlapping = sum(map(bool, inside2)) if inside1 else 0
            blocks += bool(overlapping)
            busy += overlapping
            first += inside1 * bool(overlapping)  # it stays for the block's other passes
            second += sum(inside2) if inside1 else 0
    return _Loads(*(every * number for number in (blocks, busy, first, second)))


def _inside(first: int, count: int, spacing: int, size: int) -> int:
    """Return how many of so many positions are inside an axis."""
    begin, end = lattice_inside(first, spacing, count, 0, size)
    return end - begin


# Choosing ---------------------------------------------------------------------------------------------------------------------


@lru_cache(1024)
def best(vertical: Line, horizontal: Line, arrays: Arrays, device: Device, room: int) -> SplitTiling | None:
    """Return the tiling that the cost model expects to be the fastest, with at most ``room`` bytes of partial sums.

    It is None if no tile supports the problem, for the reason that `why_not` returns, or none fits into ``room``.
    """
    if why_not(vertical, horizontal, arrays) is not None:
        return None
    return fastest(tilings(vertical, horizontal, arrays, device), device, room)


def tilings(vertical: Line, horizontal: Line, arrays: Arrays, device: Device) -> Iterator[Tiling]:
    """Yield every plan with a tile of the table."""
    for tile in TILES:
        yield from _tilings(tile, vertical, horizontal, arrays, device)


def why_not(vertical: Line, horizontal: Line, arrays: Arrays) -> str | None:
    """Return why no tile of the table supports a problem, or None if one does."""
    if arrays.input1.dtype not in DTYPES:
        return f"tensor cores multiply {', '.join(DTYPES)}, not {arrays.input1.dtype}"
    if (vertical.kernel, horizontal.kernel) != (1, 1):
        return f"a window of {vertical.kernel} x {horizontal.kernel} pixels, tensor cores are for windows of one pixel"
    return why_out_of_reach(vertical, horizontal, arrays)


def needed_splits(image: Layout, out: Layout) -> int:
    """Return the least number of splits of the channels that need partial sums, 0 if none are needed."""
    chains = _fewest_splits(image)
    return chains if chains > 1 or out.dtype not in (image.dtype, image.accumulator.name) else 0


def _fewest_splits(image: Layout) -> int:
    depth = 2 * VECTOR_BYTES // image.itemsize
    return ceil_div(max(image.shape[1], 1), LONGEST_CHAIN.tensor_cores * depth)


def _tilings(tile: Tile, vertical: Line, horizontal: Line, arrays: Arrays, device: Device) -> Iterator[Tiling]:
    """Yield plans with a tile that is built for them, and fits shared memory.

    They begin with as few splits of the channels as chains of sums allow, then twice as many, and so on; each of them makes one
    pass, or several with all of input1 in shared memory. A block has a thread for each of its passes.
    """
    if why_not_tiled(vertical, 1) or why_not_tiled(horizontal, tile.phases) or not _supports(tile, arrays):
        return
    if not tile.is_built_for(device):
        return
    axes = tiled_axis(vertical, 1), tiled_axis(horizontal, tile.phases)
    if any(axis.output_step > 1 for axis in axes):
        return
    itemsize, channels = arrays.input1.itemsize, max(arrays.input1.shape[1], 1)
    stage = tile.stage_channels(itemsize)
    splits = _fewest_splits(arrays.input1)
    most = ceil_div(channels, stage)
    while True:
        each = ceil_div(ceil_div(channels, splits), stage)  # stages of a split
        once = Tiling(*axes, arrays, ceil_div(channels, each * stage), tile, passes=1, stages1=tile.stages)
        again = (replace(once, passes=passes, stages1=each) for passes in _PASSES if passes <= min(once.tiles2, tile.threads))
        if once.stored in tile.results(arrays.input1.dtype):
            yield from (tiling for tiling in (once, *again) if tile.shared(itemsize, tiling.stages1) <= device.shared_memory)
        splits *= 2
        if splits > most:
            return


def _supports(tile: Tile, arrays: Arrays) -> bool:
    """Return whether a tile supports the memory layouts of the inputs."""
    images = (arrays.input1, arrays.input2)
    if all(image.order == CHANNELS_LAST for image in images):
        return tile.staging == CHANNELWISE
    return tile.staging != CHANNELWISE


# Builds -----------------------------------------------------------------------------------------------------------------------


def variations(device: Device | None = None) -> Iterator[tuple[str, Tile, str]]:
    """Yield the tiles and input dtypes that builds are made for, on any device or on this one, with words for both."""
    for (number, tile), dtype in product(enumerate(TILES), DTYPES):
        if device is None or (device.has_matrix_product(dtype) and tile.is_built_for(device)):
            yield dtype, tile, f"tile {number}, {STAGINGS[tile.staging]}"


def builds(device: Device | None = None) -> Iterator[tuple[str, Kernel]]:
    """Yield every kernel that a tiling can call, on any device or on this one, with words for it."""
    for dtype, tile, words in variations(device):
        for stored in tile.results(dtype):
            macros = tile.macros(dtype, ELEMENT_TYPES[stored].c_type)
            yield f"forward_mma {dtype} to {stored}, {words}", kernel(SIGNATURE.name, macros)
