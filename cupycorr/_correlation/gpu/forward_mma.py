"""The call of ``forward_mma.cu``: which tile takes a problem, and at what cost. Nothing here is launched or compiled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import gcd, prod

import numpy as np

from ..._dtypes import ELEMENT_TYPES
from ..._gpu.call import Call, Pointer, kernel
from ..._gpu.costs import LAUNCH, machine, matrix_rate
from ..._gpu.device import Device
from ..._gpu.layout import CHANNELS_LAST, RUN_BYTES, Layout, Numbers, ceil_div
from ..._gpu.source import Kernel
from ..._sharing import CachedProperty
from ..problem import lattice_inside
from .axes import Line
from .forward_phases import CHANNELWISE, COLUMNWISE, COPIED, Arrays, SplitTiling, TiledAxis, least, out_of_reach, tiled_axis

DTYPES = ("float16", "bfloat16", "float32")
# Products of matrices added one after the other to one number, at most: more may leave the error bound, as tensor cores may cut
# off what others round.
LONGEST_CHAIN = 256

_WARP, _GROUP, _GROUPS = 32, 8, 4
_COLUMNS = _GROUP * _GROUPS  # positions along x of a block, of each phase
_SECTOR = 32  # bytes of global memory, read whole
_MATRIX_BYTES = 128  # of shared memory, that a matrix of 8 columns and 16 bytes of channels takes
_COUNTED = 1024  # tiles along an axis; of more, one in so many stands for its neighbours
_PASSES = (2, 3, 4, 6)  # over tiles of input2, that a block may make while it keeps input1


# Tiles ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tile:
    """A shape that forward_mma.cu can be built for; its macros say what each number is, ``channels`` is that of 16-bit types."""

    matrices: int
    rows: int
    met_rows: int
    row_warps: int
    met_warps: int
    skewed: bool
    shares: int
    channels: int
    stages: int
    staging: int
    phases: int = 1

    @property
    def tile_rows(self) -> int:
        """Rows of input1 of a block."""
        return self.rows * self.row_warps

    @property
    def met(self) -> int:
        """Rows of input2 by which a pass moves on."""
        return self.met_rows * self.met_warps

    @property
    def tile_rows2(self) -> int:
        """Rows of input2 of a block."""
        return self.tile_rows + self.met - 1 if self.skewed else self.met

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return _WARP * self.phases * self.row_warps * self.met_warps * self.shares

    @property
    def groups2(self) -> int:
        """Groups of eight columns of input2, of each phase."""
        return _GROUPS + 2 * self.matrices - 1

    @property
    def displacements(self) -> int:
        """Displacements along x of a block, at most."""
        return _GROUP * (2 * self.matrices - 1) + 1

    def stage_channels(self, itemsize: int) -> int:
        """Channels of a stage."""
        return self.channels * 2 // itemsize

    def stage_bytes(self, itemsize: int) -> tuple[int, int]:
        """Bytes of shared memory of a stage of either image."""
        return self._stage(self.tile_rows, _GROUPS, itemsize), self._stage(self.tile_rows2, self.groups2, itemsize)

    def _stage(self, rows: int, groups: int, itemsize: int) -> int:
        run, channels = RUN_BYTES // itemsize, self.stage_channels(itemsize)
        pixels = rows * self.phases * groups * _GROUP
        if self.staging == CHANNELWISE:
            return pixels * (channels + run) * itemsize
        pitch = (pixels // run | 1) * run if itemsize == 2 else ceil_div(pixels, _WARP) * _WARP + _GROUP
        return channels * pitch * itemsize

    def shared(self, itemsize: int, kept: int) -> int:
        """Bytes of shared memory, with so many stages of input1."""
        first, second = self.stage_bytes(itemsize)
        return kept * first + self.stages * second

    def macros(self, dtype: str, stored: str) -> dict[str, object]:
        """What the kernel is built with."""
        itemsize = ELEMENT_TYPES[dtype].itemsize
        first, second = self.stage_bytes(itemsize)
        return {
            "INPUT": ELEMENT_TYPES[dtype].c_type,
            "OUTPUT": ELEMENT_TYPES[stored].c_type,
            "STAGING": self.staging,
            "PHASES": self.phases,
            "MATRICES": self.matrices,
            "ROWS": self.rows,
            "MET_ROWS": self.met_rows,
            "ROW_WARPS": self.row_warps,
            "MET_WARPS": self.met_warps,
            "SKEWED": int(self.skewed),
            "SHARES": self.shares,
            "CHANNELS": self.stage_channels(itemsize),
            "STAGES": self.stages,
            "THREADS": self.threads,
            "BYTES1": first,
            "BYTES2": second,
            "INDEX": "int",
        }


# Narrow patches (up to 9 displacements a row, MATRICES 1) take all their rows at once, wide ones some: every row of input2 that a
# block loads meets all of its rows of input1. Patches of one row take many displacements. For few pixels there are small tiles,
# whose warps share channels. Each kind has one that fits into 64 KiB.
TILES = (
    Tile(1, 1, 3, 4, 3, True, 1, 16, 4, COPIED),
    Tile(1, 1, 9, 8, 1, True, 1, 16, 3, COPIED),
    Tile(1, 1, 3, 2, 3, True, 2, 32, 3, COPIED),
    Tile(1, 1, 4, 4, 2, True, 1, 16, 3, COPIED),
    Tile(1, 1, 3, 8, 1, True, 1, 16, 3, COPIED),
    Tile(2, 2, 2, 2, 4, False, 1, 16, 4, COPIED),
    Tile(2, 1, 2, 2, 2, False, 2, 32, 3, COPIED),
    Tile(5, 1, 1, 4, 1, True, 1, 16, 4, COPIED),
    Tile(1, 1, 3, 4, 3, True, 1, 16, 3, CHANNELWISE),
    Tile(1, 1, 5, 4, 2, True, 1, 16, 3, CHANNELWISE),
    Tile(1, 1, 3, 2, 3, True, 2, 32, 3, CHANNELWISE),
    Tile(1, 1, 4, 4, 2, True, 1, 16, 2, CHANNELWISE),
    Tile(1, 1, 3, 8, 1, True, 1, 16, 3, CHANNELWISE),
    Tile(2, 2, 2, 2, 4, False, 1, 16, 3, CHANNELWISE),
    Tile(2, 1, 2, 2, 2, False, 2, 32, 2, CHANNELWISE),
    Tile(5, 1, 1, 4, 1, True, 1, 16, 4, CHANNELWISE),
    Tile(2, 2, 2, 2, 2, False, 1, 16, 3, CHANNELWISE, 2),
    Tile(2, 2, 2, 2, 2, False, 1, 32, 2, COLUMNWISE, 2),
    Tile(2, 1, 2, 2, 2, False, 1, 32, 2, COLUMNWISE, 2),
    Tile(1, 1, 3, 2, 3, True, 1, 32, 2, COLUMNWISE, 2),
    Tile(1, 1, 3, 2, 1, True, 4, 64, 2, COPIED),
    Tile(1, 1, 3, 2, 1, True, 4, 64, 2, CHANNELWISE),
)


# Tilings ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Loads:
    """What the blocks along one axis load: how many find something to multiply, and in how many passes over input2; and
    positions inside each image, over all blocks and passes."""

    blocks: int
    passes: int
    first: int
    second: int


@dataclass(frozen=True)
class Tiling(SplitTiling):
    """A way to answer a problem with one shape of tile.

    A block makes ``passes`` over tiles of input2; it keeps ``kept`` stages of input1 in shared memory.
    """

    tile: Tile
    passes: int
    kept: int

    @property
    def split_channels(self) -> int:
        """Channels of a part: whole stages."""
        channels, stage = self.arrays.input1.shape[1], self.tile.stage_channels(self.arrays.input1.itemsize)
        return ceil_div(ceil_div(max(channels, 1), self.splits), stage) * stage

    @property
    def how(self) -> str:
        """The tiling in words."""
        passes = f", {self.passes} tiles of input2 for one of input1" if self.passes > 1 else ""
        split = f", channels in {self.splits} parts" if self.splits > 1 else ""
        rows, columns = self.tile.tile_rows, _COLUMNS * self.tile.phases
        return f"tiles of {rows} x {columns} positions and {self.patch_columns} displacements on tensor cores{passes}{split}"

    def _call(self, pointers: tuple[Pointer, ...], out_strides: Numbers, scale: float) -> Call:
        arrays, tile = self.arrays, self.tile
        scalars = self._scalars(self.piece, out_strides)
        stored = arrays.stored if self.parts is None else arrays.input1.accumulator.name
        run = RUN_BYTES // ELEMENT_TYPES[stored].itemsize
        whole_runs = (
            self.horizontal.outputs_apart == 1 and out_strides[-1] <= 1 and not any(each % run for each in out_strides[1:-1])
        )
        scalars += map(np.int32, (self.passes, self.kept, self.early, self.patch_columns, int(whole_runs)))
        scalars.append(arrays.input1.accumulator.type(scale))
        shared = tile.shared(arrays.input1.itemsize, self.kept)
        built = kernel("correlation/forward_mma", tile.macros(arrays.input1.dtype, stored))
        return Call(built, pointers, tuple(scalars), self.blocks, tile.threads, shared)

    @property
    def rows(self) -> Numbers:
        """Positions and patch indices of a block along y."""
        return self.tile.tile_rows, self.tile.met * self.passes

    @property
    def columns(self) -> Numbers:
        """Likewise along x."""
        return _COLUMNS * self.tile.phases, self.patch_columns

    @property
    def met_tiles(self) -> int:
        """Tiles of input2's rows for one of input1's: where they are not skewed, every row of input1 begins elsewhere in them."""
        patch = ceil_div(self.vertical.patch, self.vertical.patches_apart)
        return ceil_div(patch + (0 if self.tile.skewed else self.tile.tile_rows - 1), self.tile.met)

    @property
    def patch_tiles_y(self) -> int:
        """Blocks for the patch indices of one phase along y."""
        return ceil_div(self.met_tiles, self.passes)

    @property
    def patch_columns(self) -> int:
        """Displacements of a block along x: as many in each as there are."""
        patch, most = ceil_div(self.horizontal.patch, self.horizontal.patches_apart), self.tile.displacements
        if patch <= most:
            return patch
        each = ceil_div(patch, ceil_div(patch, most))
        return min(ceil_div(each, _GROUP) * _GROUP, most // _GROUP * _GROUP)

    @property
    def piece(self) -> int:
        """Neighbours that one access can move, if the first of each image is aligned: all that lies before it is whole pieces."""
        return self._piece(self.early)

    @CachedProperty
    def early(self) -> int:
        """Columns by which input2's tile begins early, so that one access moves most."""
        spare = self.tile.displacements - self.patch_columns
        return 0 if self.tile.staging == CHANNELWISE else max(range(spare + 1), key=lambda early: (self._piece(early), -early))

    def _piece(self, early: int) -> int:
        arrays, horizontal = self.arrays, self.horizontal
        images, run = (arrays.input1, arrays.input2), RUN_BYTES // arrays.input1.itemsize
        if self.tile.staging == CHANNELWISE:
            strides = (stride for image in images for axis, stride in enumerate(image.strides) if axis != 1)
            return gcd(run, arrays.input1.shape[1], *strides)
        if horizontal.spacing > 1:
            return 1
        displaced = horizontal.shift * self.patch_columns if horizontal.patch_tiles(self.patch_columns) > 1 else 0
        numbers = [horizontal.origin1, horizontal.origin2 - early * horizontal.shift, displaced]
        numbers += (number for image in images for number in (*image.strides[:3], image.shape[3], image.strides[3] - 1))
        return gcd(run, *numbers)

    # By count -----------------------------------------------------------------------------------------------------------------

    @CachedProperty
    def _loads_y(self) -> _Loads:
        tile = self.tile
        return _loads(self.vertical, tile.tile_rows, tile.tile_rows2, tile.met, self.met_tiles, self.passes)

    @CachedProperty
    def _loads_x(self) -> _Loads:
        columns, patch_columns = self.columns
        width2 = self.tile.groups2 * _GROUP * self.tile.phases
        tiles = self.horizontal.patch_tiles(patch_columns)
        return _loads(self.horizontal, columns, width2, patch_columns * self.horizontal.shift, tiles, early=self.early)

    @property
    def loaded(self) -> int:
        """Bytes of both images that all blocks load together, in one phase of each axis as in any other."""
        y, x, arrays = self._loads_y, self._loads_x, self.arrays
        batch, channels = arrays.input1.shape[:2]
        elements = y.first * x.first + y.second * x.second
        return elements * self._phases * batch * channels * arrays.input1.itemsize

    @property
    def _phases(self) -> int:
        return prod(axis.residues * axis.rests for axis in (self.vertical, self.horizontal))

    def seconds(self, device: Device) -> float:
        """What it takes by count."""
        arrays, x, y = self.arrays, self._loads_x, self._loads_y
        there, rate = machine(device, "float32"), matrix_rate(device, arrays.input1.dtype)
        busy = y.blocks * x.blocks * self._phases * arrays.out.shape[0] * self.splits
        passes = y.passes / max(y.blocks, 1)  # of a busy block
        work = (passes * self._multiply_adds, passes * self._shared_bytes)
        parallel = (
            there.on_tensor_cores(busy, self.tile.threads // _WARP, *work, rate),
            there.loaded(self.loaded * self._read_apart),
            there.moved(self._moved),
        )
        seconds = LAUNCH + 0.75 * max(parallel) + 0.25 * sum(parallel)  # they hide one another, not wholly
        if self.workspace:
            seconds += LAUNCH + there.moved((2 * self.splits + 1) * prod(arrays.out.shape) * arrays.sum_bytes)
        return seconds

    @property
    def _steps(self) -> float:
        """Depths of channels that the warps of a block take in a pass, all together."""
        depth = 2 * RUN_BYTES // self.arrays.input1.itemsize
        return ceil_div(self.split_channels, depth) * self.tile.threads / _WARP / self.tile.shares

    @property
    def _multiply_adds(self) -> float:
        """Of a block and a pass."""
        tile, product = self.tile, 2 * _GROUP * _GROUP * 2 * RUN_BYTES // self.arrays.input1.itemsize
        return self._steps * tile.rows * tile.met_rows * _GROUPS * tile.matrices * product

    @property
    def _shared_bytes(self) -> float:
        """Of shared memory, of a block and a pass: fragments read, stages filled (each access costs about as much as one of 16
        bytes), and the band stored and read."""
        tile, itemsize = self.tile, self.arrays.input1.itemsize
        fragments = self._steps * (tile.rows * _GROUPS + tile.met_rows * tile.groups2) * 2 * _MATRIX_BYTES
        stages = sum(tile.stage_bytes(itemsize)) * self.split_channels / tile.stage_channels(itemsize)
        band = tile.threads / _WARP * tile.rows * tile.met_rows * tile.displacements * _COLUMNS * self.arrays.sum_bytes
        return fragments + stages * RUN_BYTES / itemsize / self.piece + 2 * band

    @property
    def _read_apart(self) -> int:
        """How often a sector of an image is read, of which the blocks of a phase want some columns."""
        sector = _SECTOR // self.arrays.input1.itemsize
        return 1 if self.tile.staging == CHANNELWISE else min(self.horizontal.spacing, sector)

    @property
    def _moved(self) -> float:
        """Bytes to and from global memory, with what is in their sectors and of no use to the blocks of a phase."""
        images, out = (self.arrays.input1, self.arrays.input2), self.arrays.out
        read = sum(prod(image.shape) * image.itemsize for image in images) * self._read_apart
        return read + prod(out.shape) * out.itemsize * min(self.horizontal.outputs_apart, _SECTOR // out.itemsize)


@lru_cache(4096)
def _loads(axis: TiledAxis, length1: int, length2: int, apart: int, tiles: int, passes: int = 1, early: int = 0) -> _Loads:
    """Of tiles of so many positions of either image, in the first phase; there are ``tiles`` of input2 for each of input1."""
    blocks = busy = first = second = 0
    count = axis.tiles(length1)
    every = ceil_div(count, _COUNTED)
    for position in range(0, count * length1, every * length1):
        inside1 = _inside(axis.origin1 + position * axis.spacing, length1, axis.spacing, axis.size1)
        for block in range(0, tiles, passes):
            places = (position - early * axis.shift + tile * apart for tile in range(block, min(block + passes, tiles)))
            met = [_inside(axis.origin2 + place * axis.spacing, length2, axis.spacing, axis.size2) for place in places]
            meeting = sum(map(bool, met)) if inside1 else 0
            blocks += bool(meeting)
            busy += meeting
            first += inside1 * bool(meeting)  # it stays for the block's other passes
            second += sum(met) if inside1 else 0
    return _Loads(*(every * number for number in (blocks, busy, first, second)))


def _inside(first: int, count: int, spacing: int, size: int) -> int:
    """How many of so many positions are inside an axis."""
    begin, end = lattice_inside(first, spacing, count, 0, size)
    return end - begin


# Choosing ---------------------------------------------------------------------------------------------------------------------


@lru_cache(1024)
def best(vertical: Line, horizontal: Line, arrays: Arrays, device: Device, room: int) -> SplitTiling | str:
    """The tiling that takes least by count and no more than ``room`` bytes for its parts, or the reason why there is none."""
    return reason(vertical, horizontal, arrays) or least(tilings(vertical, horizontal, arrays, device), device, room)


def tilings(vertical: Line, horizontal: Line, arrays: Arrays, device: Device) -> Iterator[Tiling]:
    """Every way to answer with a tile of the table."""
    for tile in TILES:
        yield from _tilings(tile, vertical, horizontal, arrays, device)


def reason(vertical: Line, horizontal: Line, arrays: Arrays) -> str | None:
    """None, or why no tile of the table answers."""
    if arrays.input1.dtype not in DTYPES:
        return f"tensor cores multiply {', '.join(DTYPES)}, not {arrays.input1.dtype}"
    if (vertical.kernel, horizontal.kernel) != (1, 1):
        return f"a window of {vertical.kernel} x {horizontal.kernel} pixels, tensor cores are for windows of one pixel"
    return out_of_reach(vertical, horizontal, arrays)


def needed_parts(image: Layout, out: Layout) -> int:
    """How many parts of the channels there must be at least, as sums to be added; 0 if none need be."""
    chains = _fewest_splits(image)
    return chains if chains > 1 or out.dtype not in (image.dtype, image.accumulator.name) else 0


def _fewest_splits(image: Layout) -> int:
    return ceil_div(max(image.shape[1], 1), LONGEST_CHAIN * RUN_BYTES * 2 // image.itemsize)


def _tilings(tile: Tile, vertical: Line, horizontal: Line, arrays: Arrays, device: Device) -> Iterator[Tiling]:
    """The tile with the channels whole, and in ever more parts while blocks are few; with input1 kept where there is room."""
    axes = tiled_axis(vertical, 1), tiled_axis(horizontal, tile.phases)
    if any(isinstance(axis, str) or axis.output_step > 1 for axis in axes) or not _fits(tile, arrays):
        return
    itemsize, channels = arrays.input1.itemsize, max(arrays.input1.shape[1], 1)
    stage = tile.stage_channels(itemsize)
    splits = _fewest_splits(arrays.input1)
    most = ceil_div(channels, stage)
    while True:
        each = ceil_div(ceil_div(channels, splits), stage)  # stages of a part
        once = Tiling(*axes, arrays, ceil_div(channels, each * stage), tile, passes=1, kept=tile.stages)
        again = (replace(once, passes=passes, kept=each) for passes in _PASSES if passes <= once.met_tiles)
        yield from (tiling for tiling in (once, *again) if tile.shared(itemsize, tiling.kept) <= device.shared_memory)
        splits *= 2
        if splits > most:
            return


def _fits(tile: Tile, arrays: Arrays) -> bool:
    """Whether a tile is for arrays that lie so."""
    images = (arrays.input1, arrays.input2)
    if all(image.order == CHANNELS_LAST for image in images):
        return tile.staging == CHANNELWISE
    return tile.staging != CHANNELWISE


# Builds -----------------------------------------------------------------------------------------------------------------------


def builds() -> Iterator[tuple[str, Kernel]]:
    """Every kernel that a tiling can call, with words for it."""
    for (number, tile), dtype in product(enumerate(TILES), DTYPES):
        for stored in dict.fromkeys((dtype, ELEMENT_TYPES[dtype].accumulator)):
            way = ("copied", "by columns", "by channels")[tile.staging]
            yield (
                f"forward_mma {dtype} to {stored}, tile {number}, {way}",
                kernel("correlation/forward_mma", tile.macros(dtype, stored)),
            )
