"""The call of ``forward_tiled.cu``: which tile takes a problem, and at what cost. Nothing here is launched or compiled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import gcd, prod

from ..._dtypes import ELEMENT_TYPES
from ..._gpu.call import Call, Pointer, kernel
from ..._gpu.costs import LAUNCH, machine
from ..._gpu.device import Device
from ..._gpu.layout import ROWS, RUN_BYTES, Layout, Numbers, ceil_div
from ..._gpu.source import Kernel
from ..problem import lattice_inside
from .axes import Line
from .forward_phases import CHANNELWISE, COLUMNWISE, COPIED, Arrays, SplitTiling, TiledAxis, least, out_of_reach, tiled_axis

WARP = 32
LONGEST_CHAIN = 512  # products added one after the other to one number, at most: more may leave the error bound

_SECTOR = 32  # bytes of global memory, read whole

_SHARED = 64 * 1024  # bytes of a block, which every device has
_MOST_DOUBLES = 40  # rows times displacements of a thread


# Tiles ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tile:
    """A shape that forward_tiled.cu can be built for; its macros say what each number is."""

    rows: int
    tile_rows: int
    patch_rows: int
    displacements: int
    groups: int
    lanes_x: int
    shares: int
    channels: int
    phases: int
    stagings: tuple[int, ...]
    shifts: tuple[int, ...] = (0,)

    @property
    def reach(self) -> int:
        """Rows of input2 that the rows of a thread meet."""
        return self.patch_rows + self.rows - 1

    @property
    def threads(self) -> int:
        """Threads of a block."""
        warps = ceil_div(self.tile_rows // self.rows * self.reach, WARP // self.lanes_x)
        return WARP * warps * self.phases * self.groups * self.shares

    def columns(self, sum_bytes: int) -> int:
        """Positions along x of a block."""
        return self.phases * self.lanes_x * (RUN_BYTES // sum_bytes)

    def vectors(self, sum_bytes: int, shift: int) -> int:
        """16-byte loads of a thread's window."""
        columns = RUN_BYTES // sum_bytes
        return ceil_div(shift + columns + self.displacements - 1, columns)

    def widths(self, itemsize: int, sum_bytes: int, shift: int) -> tuple[int, int]:
        """Columns of both images' tiles, of each phase."""
        columns, run = RUN_BYTES // sum_bytes, RUN_BYTES // itemsize
        width1 = self.lanes_x * columns
        reached = width1 - columns + (self.groups - 1) * self.displacements + self.vectors(sum_bytes, shift) * columns
        return width1, ceil_div(reached, run) * run

    def shared(self, itemsize: int, sum_bytes: int, shift: int) -> int:
        """Bytes of shared memory: two stages of channels."""
        rows = (self.tile_rows, self.tile_rows - self.rows + self.reach)
        pitches = (self._pitch(width, RUN_BYTES // sum_bytes) for width in self.widths(itemsize, sum_bytes, shift))
        channel = sum(count * pitch for count, pitch in zip(rows, pitches, strict=True))
        return 2 * self.channels * self.phases * channel * sum_bytes

    def _pitch(self, width: int, vector: int) -> int:
        """As tile.cuh's."""
        vectors = ceil_div(width, vector)
        return vector * (vectors + (6 - vectors % 4) % 4 if self.lanes_x == WARP // 4 else vectors | 1)


_BOTH = (COPIED, COLUMNWISE)
_ANY = (*_BOTH, CHANNELWISE)

# Of a thread's registers, ROWS x DISPLACEMENTS x 16 bytes are sums: up to 168 numbers, beyond which they spill.
TILES = (
    Tile(2, 4, 7, 21, 1, 8, 1, 4, 1, (COPIED,), (0, 2)),
    Tile(2, 4, 7, 21, 1, 8, 1, 4, 2, (COLUMNWISE,)),
    Tile(2, 4, 7, 12, 2, 8, 1, 8, 1, _ANY),
    Tile(2, 4, 15, 16, 1, 8, 1, 4, 1, _BOTH, (0, 1)),
    Tile(2, 8, 9, 9, 1, 8, 1, 8, 1, _BOTH),
    Tile(2, 4, 9, 9, 1, 8, 1, 8, 1, (CHANNELWISE,)),
    Tile(2, 4, 9, 9, 1, 8, 1, 4, 2, (COLUMNWISE,)),
    Tile(2, 4, 9, 9, 1, 4, 4, 8, 1, _ANY),
    Tile(2, 8, 7, 7, 1, 8, 1, 8, 1, _ANY, (0, 1)),
    Tile(2, 4, 7, 7, 1, 8, 1, 4, 2, (COLUMNWISE,), (0, 1)),
    Tile(2, 4, 7, 7, 1, 4, 4, 8, 1, _ANY, (0, 1)),
    Tile(2, 8, 3, 3, 1, 8, 1, 8, 1, _ANY, (0, 3)),
    Tile(1, 8, 1, 16, 4, 8, 1, 4, 1, _BOTH, (0, 1)),
    Tile(1, 4, 1, 16, 4, 8, 1, 8, 1, (CHANNELWISE,)),
)


# Tilings ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tiling(SplitTiling):
    """A way to answer a problem with one shape of tile."""

    tile: Tile
    staging: int
    gathered: bool
    shift: int

    def seconds(self, device: Device) -> float:
        """What it takes by count."""
        return _seconds(self, device)

    @property
    def how(self) -> str:
        """The tiling in words."""
        split = f", channels in {self.splits} parts" if self.splits > 1 else ""
        (rows, patch_rows), (columns, patch_columns) = self.rows, self.columns
        return f"tiles of {rows} x {columns} positions and {patch_rows} x {patch_columns} displacements in shared memory{split}"

    def _call(self, pointers: tuple[Pointer, ...], out_strides: Numbers, scale: float) -> Call:
        arrays, tile = self.arrays, self.tile
        scalars = self._scalars(self.piece, out_strides)
        scalars.append(arrays.input1.accumulator.type(scale))
        stored = arrays.stored if self.parts is None else arrays.input1.accumulator.name
        built = _build(tile, self.staging, arrays.input1.dtype, stored, self.gathered, self.shift)
        shared = tile.shared(arrays.input1.itemsize, arrays.sum_bytes, self.shift)
        return Call(built, pointers, tuple(scalars), self.blocks, tile.threads, shared)

    @property
    def rows(self) -> Numbers:
        """Positions and patch indices of a block along y."""
        return self.tile.tile_rows, self.tile.patch_rows

    @property
    def columns(self) -> Numbers:
        """Likewise along x."""
        return self.tile.columns(self.arrays.sum_bytes), self.tile.groups * self.tile.displacements

    @property
    def piece(self) -> int:
        """Columns that one access can move, if the first of each image is aligned: all that lies before it is whole pieces."""
        if self.horizontal.spacing > 1 or self.staging == CHANNELWISE:
            return 1
        arrays, horizontal = self.arrays, self.horizontal
        images = (arrays.input1, arrays.input2)
        columns, displacements = self.columns
        apart = horizontal.outputs_of(columns) * horizontal.output_step if horizontal.tiles(columns) > 1 else 0
        displaced = horizontal.shift * displacements if horizontal.patch_tiles(displacements) > 1 else 0
        numbers = [horizontal.origin1, horizontal.origin2 - self.shift * horizontal.shift, apart, displaced]
        numbers += (number for image in images for number in (*image.strides[:3], image.shape[3], image.strides[3] - 1))
        return gcd(RUN_BYTES // arrays.input1.itemsize, *numbers)


# Choosing ---------------------------------------------------------------------------------------------------------------------


@lru_cache(1024)
def best(vertical: Line, horizontal: Line, arrays: Arrays, device: Device, room: int) -> SplitTiling | str:
    """The tiling that takes least by count and no more than ``room`` bytes for its parts, or the reason why there is none."""
    return reason(vertical, horizontal, arrays) or least(tilings(vertical, horizontal, arrays), device, room)


def tilings(vertical: Line, horizontal: Line, arrays: Arrays) -> Iterator[Tiling]:
    """Every way to answer with a tile of the table."""
    for tile, axes in _fitting(vertical, horizontal, arrays):
        yield from _tilings(tile, *axes, arrays)


def reason(vertical: Line, horizontal: Line, arrays: Arrays) -> str | None:
    """None, or why no tile of the table answers."""
    far = out_of_reach(vertical, horizontal, arrays)
    if far is not None or next(_fitting(vertical, horizontal, arrays), None):
        return far
    axes = [tiled_axis(line, 1) for line in (vertical, horizontal)]
    words = [axis for axis in axes if isinstance(axis, str)]
    return words[0] if words else f"a window of {vertical.kernel} x {horizontal.kernel} taps does not fit into any tile"


def _fitting(vertical: Line, horizontal: Line, arrays: Arrays) -> Iterator[tuple[Tile, tuple[TiledAxis, TiledAxis]]]:
    """The tiles that fit a problem, with its axes as they see them."""
    for tile in TILES:
        axes = tiled_axis(vertical, 1), tiled_axis(horizontal, tile.phases)
        if not any(isinstance(axis, str) for axis in axes) and _fits(tile, *axes, arrays):
            yield tile, axes


def needed_parts(image: Layout, out: Layout) -> int:
    """How many parts of the channels there must be at least, as sums to be added; 0 if none need be."""
    chains = ceil_div(max(image.shape[1], 1), LONGEST_CHAIN)
    return chains if chains > 1 or out.dtype not in (image.dtype, image.accumulator.name) else 0


def _fits(tile: Tile, vertical: TiledAxis, horizontal: TiledAxis, arrays: Arrays) -> bool:
    windowed = vertical.taps * horizontal.taps > 1
    whole = vertical.outputs_of(tile.tile_rows) > 0 and horizontal.outputs_of(tile.columns(arrays.sum_bytes)) > 0
    return whole and (_gathers(tile, windowed) or not windowed) and _staging(tile, horizontal, arrays) is not None


def _gathers(tile: Tile, windowed: bool) -> bool:
    """Whether outputs go through shared memory: phases and shares meet there; of small patches, windows do."""
    return tile.phases > 1 or tile.shares > 1 or (windowed and tile.displacements < 10)


def _staging(tile: Tile, horizontal: TiledAxis, arrays: Arrays) -> int | None:
    """How a tile is filled, None if it cannot be from such arrays."""
    images = (arrays.input1, arrays.input2)
    if all(image.strides[1] == 1 and image.shape[1] * image.itemsize >= _SECTOR for image in images):
        wanted = CHANNELWISE
    elif images[0].itemsize == arrays.sum_bytes and all(image.strides[3] == 1 for image in images) and horizontal.spacing == 1:
        wanted = COPIED if tile.phases == 1 else COLUMNWISE
    else:
        wanted = COLUMNWISE
    return wanted if wanted in tile.stagings and _is_built(tile, wanted, images[0].dtype) else None


def _shift(tile: Tile, staging: int, horizontal: TiledAxis, arrays: Arrays) -> int:
    """Columns by which input2's tile begins early, so that its rows begin where 16 bytes do; 0 where there is no such build."""
    run = RUN_BYTES // arrays.input1.itemsize
    fitting = (shift for shift in tile.shifts if (horizontal.origin2 - shift * horizontal.shift) % run == 0)
    return next(fitting, 0) if _shifts(tile, staging, arrays.input1.dtype) else 0


def _shifts(tile: Tile, staging: int, dtype: str) -> bool:
    """Whether there are builds that begin early: where runs of columns are as long as vectors."""
    return dtype == "float32" and (staging == COPIED or (tile.phases > 1 and staging == COLUMNWISE))


def _tilings(tile: Tile, vertical: TiledAxis, horizontal: TiledAxis, arrays: Arrays) -> Iterator[Tiling]:
    """The tile with the channels whole, and split in ever more parts while blocks are few."""
    channels = max(arrays.input1.shape[1], 1)
    gathered = _gathers(tile, vertical.taps * horizontal.taps > 1)
    staging = _staging(tile, horizontal, arrays)
    shift = _shift(tile, staging, horizontal, arrays)
    fewest = ceil_div(channels, LONGEST_CHAIN * tile.shares)
    most = ceil_div(channels, tile.channels)
    splits = fewest
    while True:
        count = ceil_div(channels, ceil_div(channels, splits))
        yield Tiling(vertical, horizontal, arrays, count, tile, staging, gathered, shift)
        splits *= 2
        if splits > most:
            return


def _seconds(tiling: Tiling, device: Device) -> float:
    arrays, tile, sum_bytes = tiling.arrays, tiling.tile, tiling.arrays.sum_bytes
    there = machine(device, arrays.input1.accumulator.name)
    loaded = _loaded(tiling) * arrays.input1.itemsize
    channels = ceil_div(ceil_div(arrays.input1.shape[1], tiling.splits), tile.channels) * tile.channels
    outputs = tile.rows * tile.displacements * RUN_BYTES // sum_bytes
    products = channels / tile.shares * outputs
    read = channels / tile.shares * (tile.rows + tile.vectors(sum_bytes, tiling.shift)) * RUN_BYTES
    read += channels * loaded * RUN_BYTES / sum_bytes / tiling.piece / tile.threads  # each access costs about as much as a vector
    if tiling.gathered:
        read += outputs * sum_bytes * (1 + tiling.vertical.taps * tiling.horizontal.taps)
    busy = round(tiling.blocks * _busy(tile, tiling.vertical))
    parallel = (
        there.tiled(busy, tile.threads // WARP, products, read),
        there.loaded(busy * channels * loaded),
        there.moved(_moved(tiling.horizontal, arrays)),
    )
    seconds = LAUNCH + 0.75 * max(parallel) + 0.25 * sum(parallel)  # they hide one another, not wholly
    if tiling.workspace:
        seconds += LAUNCH + there.moved((2 * tiling.splits + 1) * prod(arrays.out.shape) * sum_bytes)
    return seconds


def _loaded(tiling: Tiling) -> int:
    """Elements that a block loads of each channel."""
    tile, arrays = tiling.tile, tiling.arrays
    widths = tile.widths(arrays.input1.itemsize, arrays.sum_bytes, tiling.shift)
    rows = (tile.tile_rows, tile.tile_rows - tile.rows + tile.reach)
    return tile.phases * sum(height * width for height, width in zip(rows, widths, strict=True))


def _moved(horizontal: TiledAxis, arrays: Arrays) -> float:
    """Bytes to and from global memory, with what is in their sectors and of no use to the blocks of a phase."""
    apart = horizontal.spacing if arrays.input1.order == ROWS else 1
    images = (arrays.input1, arrays.input2)
    read = sum(prod(image.shape) * image.itemsize for image in images) * min(apart, _SECTOR // images[0].itemsize)
    outputs = arrays.out
    return read + prod(outputs.shape) * outputs.itemsize * min(horizontal.outputs_apart, _SECTOR // outputs.itemsize)


def _busy(tile: Tile, axis: TiledAxis) -> float:
    """The share of the blocks some of whose rows meet rows of input2; the others only store zeros. Counted in one phase."""
    tiles, patch_tiles = axis.tiles(tile.tile_rows), axis.patch_tiles(tile.patch_rows)
    apart = axis.outputs_of(tile.tile_rows) * axis.output_step * axis.spacing
    height1, height2 = tile.tile_rows * axis.spacing, (tile.tile_rows + tile.patch_rows - 1) * axis.spacing
    busy = 0
    for row_tile in range(*lattice_inside(axis.origin1, apart, tiles, 1 - height1, axis.size1)):
        at2 = axis.origin2 + row_tile * apart
        begin, end = lattice_inside(at2, tile.patch_rows * axis.spacing, patch_tiles, 1 - height2, axis.size2)
        busy += end - begin
    return busy / (tiles * patch_tiles)


# Builds -----------------------------------------------------------------------------------------------------------------------


def _build(tile: Tile, staging: int, dtype: str, stored: str, gathered: bool, shift: int) -> Kernel:
    element = ELEMENT_TYPES[dtype]
    sum_bytes = ELEMENT_TYPES[element.accumulator].itemsize
    macros = dict(
        INPUT=element.c_type,
        OUTPUT=ELEMENT_TYPES[stored].c_type,
        STAGING=staging,
        PHASES=tile.phases,
        ROWS=tile.rows,
        TILE_ROWS=tile.tile_rows,
        PATCH_ROWS=tile.patch_rows,
        DISPLACEMENTS=tile.displacements,
        GROUPS=tile.groups,
        LANES_X=tile.lanes_x,
        SHARES=tile.shares,
        CHANNELS=tile.channels,
        SHIFT=shift,
        GATHERED=int(gathered),
        THREADS=tile.threads,
        SHARED=tile.shared(element.itemsize, sum_bytes, shift),
        INDEX="int",
    )
    return kernel("correlation/forward_tiled", macros)


def _is_built(tile: Tile, staging: int, dtype: str) -> bool:
    """Whether there is such a build.

    Copies do not widen; a run of channels gives each share of them one at least; the largest tiles and both phases of doubles
    take too many registers, some too much shared memory.
    """
    element = ELEMENT_TYPES[dtype]
    sum_bytes = ELEMENT_TYPES[element.accumulator].itemsize
    if sum_bytes > 4 and (tile.phases > 1 or tile.rows * tile.displacements > _MOST_DOUBLES):
        return False
    if max(tile.shared(element.itemsize, sum_bytes, shift) for shift in tile.shifts) > _SHARED:
        return False
    if staging == COPIED:
        return element.itemsize == sum_bytes
    return staging != CHANNELWISE or min(_SECTOR // element.itemsize, tile.channels) % tile.shares == 0


def builds() -> Iterator[tuple[str, Kernel]]:
    """Every kernel that a tiling can call, with words for it."""
    for number, tile in enumerate(TILES):
        for staging, element in product(tile.stagings, ELEMENT_TYPES.values()):
            if not _is_built(tile, staging, element.name):
                continue
            shifts = tile.shifts if _shifts(tile, staging, element.name) else (0,)
            stored = dict.fromkeys((element.name, element.accumulator))
            gathers = dict.fromkeys(_gathers(tile, windowed) for windowed in (False, True))
            for result, gathered, shift in product(stored, gathers, shifts):
                ways = [("copied", "by columns", "by channels")[staging], f"{shift} early" * (shift > 0), "gathered" * gathered]
                what = ", ".join(filter(None, (f"tile {number}", *ways)))
                yield (
                    f"forward_tiled {element.name} to {result}, {what}",
                    _build(tile, staging, element.name, result, gathered, shift),
                )
