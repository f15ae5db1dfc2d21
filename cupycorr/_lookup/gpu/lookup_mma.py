"""The calls of ``lookup_mma.cu``, which computes the output on tensor cores: which tile takes a problem, and at what cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd, prod

from ..._dtypes import ELEMENT_TYPES
from ..._gpu.call import IMAGE_AXES, THREADS, Call, Signature, builds_of, strides
from ..._gpu.costs import LAUNCH, machine, matrix_rate
from ..._gpu.device import Device
from ..._gpu.layout import Layout, ceil_div
from ..._gpu.limits import SECTOR_BYTES, VECTOR_BYTES, WARP
from ..._gpu.source import Kernel
from ..problem import Axis, Problem
from . import levels as of_levels
from .lookup_boxes import QUERY_TILE, tiles
from .operands import ENTRIES, EVERY_ELEMENT, LEVEL_AXES, Operands, is_channels_last

SIGNATURE = Signature(
    "lookup/lookup_mma",
    ("input1", *of_levels.POINTERS, "coords", "index1", "index2", "out"),
    {
        **dict.fromkeys(("blocks", "tiles", "lookups", "height", "width", "channels"), "Index"),
        "vector_width": "int",
        **dict.fromkeys(("part_y", "part_x"), "Index"),
        **strides("input1", IMAGE_AXES, "Index"),
        **of_levels.OF_EACH_LEVEL,
        **of_levels.COORDS_OF_LEVELS,
        **ENTRIES,
        **strides("out", LEVEL_AXES, "Index"),
        "level_stride_out": "Index",
        **of_levels.AXES_OF_LEVELS,
        "scale": "Sum",
    },
)

DTYPES = ("float16", "bfloat16", "float32")

# As in lookup_mma.cu.
GROUP, PAIR = 8, 16  # pixels and queries of a product of matrices
_QUERIES = QUERY_TILE * QUERY_TILE
_PAIRS = _QUERIES // PAIR
_WARPS = THREADS // WARP

_MOST_PIXELS = 128  # that the displacements of a block reach over, whose dots are in shared memory; blocks divide more of them
_SPREAD = 2  # pixels by which the windows of a tile are farther apart than its queries are, in a typical flow
_DOT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Tile:
    """A thread block tile that lookup_mma.cu can be built for.

    Attributes
    ----------
    groups
        Groups of eight pixels of a pass.
    slots
        Groups of a pass that a warp keeps the products of.
    channels
        Channels of a pipeline stage, of 16-bit types.
    stages
        Pipeline stages.
    """

    groups: int
    slots: int
    channels: int
    stages: int

    def stage_channels(self, itemsize: int) -> int:
        """Return the channels of a pipeline stage."""
        return self.channels * 2 // itemsize

    @property
    def table_bytes(self) -> int:
        """The bytes of the tables of a block, where integers have 64 bits."""
        position, box, index, place = 16, 32, 8, 4
        windows = _QUERIES * 2 * position + (_QUERIES // 4 + 4) * box
        groups = (self.groups * (1 + 3 * GROUP) + _QUERIES) * index + _PAIRS * (_WARPS // _PAIRS) * self.slots * place
        return ceil_div(windows + groups + _WARPS * 3 * place, VECTOR_BYTES) * VECTOR_BYTES

    def line_bytes(self, itemsize: int) -> int:
        """Return the bytes of all stages."""
        pitch = self.stage_channels(itemsize) * itemsize + VECTOR_BYTES
        return self.stages * (_QUERIES + self.groups * GROUP) * pitch

    def shared(self, itemsize: int, pixels: int) -> int:
        """Return the bytes of shared memory for windows over so many pixels."""
        return self.table_bytes + self.line_bytes(itemsize) + _QUERIES * (pixels | 1) * _DOT_BYTES

    def macros(self, dtype: str) -> dict[str, int]:
        """Return the macros of the build for inputs of a dtype, beside those of the types and the memory order."""
        itemsize = ELEMENT_TYPES[dtype].itemsize
        return {
            "CHANNELS": self.stage_channels(itemsize),
            "STAGES": self.stages,
            "GROUPS": self.groups,
            "SLOTS": self.slots,
            "BYTES": self.table_bytes,
            "LINES": self.line_bytes(itemsize),
        }


# Windows of nine displacements a pixel apart and 8 x 8 queries read 17 x 17 pixels: 37 groups, of which two rows of queries need
# 24. The first tile takes them in one pass, with room for some flow; the second one is for windows of few pixels, and fits into
# the shared memory of every device.
TILES = (Tile(groups=44, slots=16, channels=32, stages=2), Tile(groups=20, slots=10, channels=16, stages=2))


@dataclass(frozen=True)
class Tiling:
    """A plan for a problem with one thread block tile; a block has ``parts`` of the displacements along y and x."""

    operands: Operands
    tile: Tile
    parts: tuple[int, int]

    @property
    def how(self) -> str:
        """The plan in words."""
        return f"tiles of {QUERY_TILE} x {QUERY_TILE} queries and the pixels of their windows on tensor cores"

    @property
    def _itemsize(self) -> int:
        return self.operands.input1[0].itemsize

    @property
    def _blocks_of_level(self) -> int:
        patch = self.operands.problem.parameters.patch_size
        return tiles(self.operands.problem) * prod(map(ceil_div, patch, self.parts))

    @property
    def shared(self) -> int:
        """The bytes of shared memory of a block."""
        return self.tile.shared(self._itemsize, _pixels_of_window(self.operands.problem, self.parts))

    def calls(self) -> Iterator[Call]:
        """Yield the launches, each for a few levels."""
        for levels in of_levels.groups(self.operands):
            yield self._call(levels)

    def _call(self, levels: range) -> Call:
        operands, (input1, at1) = self.operands, self.operands.input1
        (out, to), level_stride = of_levels.volumes(operands, levels)
        maps = [operands.level2(level)[0] for level in levels]
        pixels = max(prod(layout.shape[2:]) for layout in maps)
        blocks = self._blocks_of_level * len(levels)
        return SIGNATURE.call(
            macros={
                "INPUT": input1.element,
                "OUTPUT": out.element,
                "COORDINATE": operands.coords[0].element,
                "CHANNELS_LAST": int(all(map(is_channels_last, (input1, *maps)))),
                **self.tile.macros(input1.dtype),
            },
            pointers={"input1": at1, **of_levels.pointers(operands, levels), **operands.pointers(), "out": to},
            scalars={
                "blocks": blocks,
                "tiles": tiles(operands.problem),
                **operands.sizes(),
                "channels": operands.problem.channels,
                "vector_width": _vector_width(input1, *maps),
                "part_y": self.parts[0],
                "part_x": self.parts[1],
                **strides("input1", IMAGE_AXES, input1.strides),
                **of_levels.scalars(operands, levels),
                **strides("out", LEVEL_AXES, out.strides),
                "level_stride_out": level_stride,
                "scale": operands.problem.parameters.scale,
            },
            accumulator=operands.accumulator,
            blocks=blocks,
            shared=self.shared,
            largest=max(of_levels.extent(operands, levels), pixels + 2 * THREADS * GROUP),
        )

    # Cost model ---------------------------------------------------------------------------------------------------------------

    def seconds(self) -> float:
        """Return the seconds that the cost model expects, for a typical flow."""
        operands, problem, itemsize = self.operands, self.operands.problem, self._itemsize
        dtype = operands.input1[0].dtype
        rates, rate = machine(operands.device, "float32"), matrix_rate(operands.device, dtype)
        channels = ceil_div(max(problem.channels, 1), self.tile.stage_channels(itemsize)) * self.tile.stage_channels(itemsize)
        work = loaded = shared = 0.0
        for level in range(problem.levels):
            pixels, of_pair = self._pixels(level, QUERY_TILE), self._pixels(level, PAIR // QUERY_TILE)
            products = _PAIRS * ceil_div(of_pair, GROUP)
            lines = _QUERIES * ceil_div(pixels, self.tile.groups * GROUP) + pixels
            work += products * GROUP * PAIR * channels
            loaded += lines * channels * itemsize * self._sector_reads(level)
            fragments = (products * GROUP + self._passes(level) * _WARPS * PAIR) * channels * itemsize
            stored = lines * channels * (itemsize if self._vectors else WARP // 8)
            shared += fragments + stored + 3 * _DOT_BYTES * _QUERIES * _pixels_of_window(problem, self.parts)
        blocks = self._blocks_of_level
        parallel = (
            rates.on_tensor_cores(blocks, _WARPS, work, shared, rate),
            rates.loaded(blocks * loaded),
            rates.moved(sum(problem.input_bytes(itemsize, operands.coords[0].itemsize)) + self._written),
        )
        launches = sum(1 for _ in of_levels.groups(operands))
        return launches * LAUNCH + 0.75 * max(parallel) + 0.25 * sum(parallel)  # they overlap, but not wholly

    @property
    def _written(self) -> int:
        return self.operands.problem.outputs * self.operands.arrays["out"][0].itemsize

    @property
    def _vectors(self) -> bool:
        """True if channels are contiguous in all maps and in input1."""
        images = (self.operands.input1[0], *(self.operands.level2(k)[0] for k in range(self.operands.problem.levels)))
        return all(map(is_channels_last, images)) and _vector_width(*images) > 1

    def _extents(self, level: int, rows: int) -> tuple[int, int]:
        """Return the rows and the columns of the pixels that the windows of some rows of a tile read."""
        problem = self.operands.problem
        sizes = zip(problem.sizes2[level], problem.size1, strict=True)
        axes = zip((problem.vertical, problem.horizontal), self.parts, (rows, QUERY_TILE), sizes, strict=True)
        height, width = (
            min(_reach(axis, part) + int((queries - 1 + _SPREAD) * size2 / size1), size2)
            for axis, part, queries, (size2, size1) in axes
        )
        return height, width

    def _pixels(self, level: int, rows: int) -> int:
        return prod(self._extents(level, rows))

    def _passes(self, level: int) -> int:
        return ceil_div(self._pixels(level, QUERY_TILE), self.tile.groups * GROUP)

    def _sector_reads(self, level: int) -> float:
        """Return the bytes of the sectors that are read for each byte that is used."""
        row = self._itemsize * (1 if self._vectors else self._extents(level, QUERY_TILE)[1])
        return 1.0 if self._vectors else (row + SECTOR_BYTES - self._itemsize) / row


def _vector_width(*images: Layout) -> int:
    """Return the channels that one access can move if the first of each image is aligned."""
    vector = VECTOR_BYTES // images[0].itemsize
    distances = (image.strides[axis] for image in images for axis in (0, 2, 3))
    return gcd(vector, images[0].shape[1], *distances)


# Choosing ---------------------------------------------------------------------------------------------------------------------


def best(operands: Operands) -> Tiling:
    """Return the tiling that the cost model expects to be the fastest, of those that fit into shared memory."""
    return min(_fitting(operands), key=Tiling.seconds)


def why_not(problem: Problem, dtype: str, device: Device | None) -> str | None:
    """Return None, or the reason why no tile can be used on a device."""
    itemsize, pixels = ELEMENT_TYPES[dtype].itemsize, _pixels_of_window(problem, _parts(problem))
    needed = min(tile.shared(itemsize, pixels) for tile in TILES)
    if device is not None and needed > device.shared_memory:
        return f"a block needs {needed} bytes of shared memory, the device has {device.shared_memory}"
    return None


def _fitting(operands: Operands) -> Iterator[Tiling]:
    parts = _parts(operands.problem)
    for tile in TILES:
        tiling = Tiling(operands, tile, parts)
        if tiling.shared <= operands.device.shared_memory:
            yield tiling


def _parts(problem: Problem) -> tuple[int, int]:
    """Return the displacements of a block along y and x."""
    parts = list(problem.parameters.patch_size)
    while _pixels_of_window(problem, parts) > _MOST_PIXELS:
        longer = int(_reach(problem.horizontal, parts[1]) >= _reach(problem.vertical, parts[0]))
        parts[longer] = ceil_div(parts[longer], 2)
    return parts[0], parts[1]


def _pixels_of_window(problem: Problem, parts: tuple[int, int] | list[int]) -> int:
    return _reach(problem.vertical, parts[0]) * _reach(problem.horizontal, parts[1])


def _reach(axis: Axis, part: int) -> int:
    return axis.step * (part - 1) + axis.corners


def builds(dtype: str) -> Iterator[tuple[str, Kernel]]:
    """Yield every build that a call for inputs of a dtype can name, with words for it."""
    row = ELEMENT_TYPES[dtype]
    for tile in TILES:
        coordinates = tuple(each.c_type for each in ELEMENT_TYPES.values() if each.itemsize <= row.accumulator_dtype.itemsize)
        table = {"INPUT": (row.c_type,), "OUTPUT": EVERY_ELEMENT, "COORDINATE": coordinates, "CHANNELS_LAST": (0, 1)}
        yield from builds_of(SIGNATURE.name, {**table, **{name: (value,) for name, value in tile.macros(dtype).items()}})
