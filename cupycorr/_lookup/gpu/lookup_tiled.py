"""The calls of ``lookup_tiled.cu``, which loads the windows of neighbouring queries together, and their expected cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod

from ..._dtypes import ELEMENT_TYPES
from ..._gpu.call import IMAGE_AXES, THREADS, Call, Signature, builds_of, strides
from ..._gpu.costs import LAUNCH, machine
from ..._gpu.device import Device
from ..._gpu.layout import ceil_div
from ..._gpu.limits import SECTOR_BYTES, VECTOR_BYTES, WARP
from ..._gpu.source import Kernel
from ..problem import Axis, Problem
from . import levels as of_levels
from .lookup_boxes import QUERY_TILE, tiles
from .operands import ENTRIES, EVERY_ELEMENT, LEVEL_AXES, SPLITS, Operands, element_types, is_channels_last

SIGNATURE = Signature(
    "lookup/lookup_tiled",
    ("input1", *of_levels.POINTERS, "coords", "index1", "index2", "out"),
    {
        "blocks": "Index",
        "levels": "int",
        **dict.fromkeys(("lookups", "height", "width", "channels"), "Index"),
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

# As in lookup_tiled.cu and union.cuh.
UNION, STRIP, RUN, PLANES, STAGES = 22, 13, 4, 2, 2
_PLANE = UNION * (UNION | 1) + 2  # vectors
_QUERIES = QUERY_TILE * QUERY_TILE

_STATIC_BYTES = 3072  # a bound on the tables of a block, which are in shared memory too, for sums of 4 bytes

# Neighbouring queries of a typical flow are so many pixels apart at the first level.
_APART = 1.2
# The fraction of the tiles at the first level whose windows are too far apart for the part that `_APART` lets expect. Counted on
# a steep smooth flow; on coarser levels the flow is less steep.
_SPLIT = 0.34


# What is supported ------------------------------------------------------------------------------------------------------------


def why_not(problem: Problem, dtype: str, device: Device | None) -> str | None:
    """Return None, or the reason why tiles cannot be used for a problem on a device, or on any if there is none."""
    height, width = _pixels(problem.vertical), _pixels(problem.horizontal)
    if max(height, width) > UNION:
        return f"windows of {height} x {width} pixels do not fit into a rectangle of {UNION} x {UNION} pixels"
    needed = shared_bytes(problem, dtype) + _STATIC_BYTES * ELEMENT_TYPES[dtype].accumulator_dtype.itemsize // 4
    if device is not None and needed > device.shared_memory:
        dots = f"the dots of windows of {height} x {width} pixels"
        return f"{dots} need {needed} bytes of shared memory, a block has {device.shared_memory}"
    return None


def _pixels(axis: Axis) -> int:
    """Return the pixels from the first tap of a window to its last one."""
    return (axis.patch - 1) * axis.step + axis.corners


def shared_bytes(problem: Problem, dtype: str) -> int:
    """Return the bytes of dynamic shared memory of a block: the pipeline stages and the dots of its windows."""
    stage = PLANES * (_QUERIES + _PLANE) * VECTOR_BYTES
    dots = _pixels(problem.vertical) * _pixels(problem.horizontal) | 1
    return STAGES * stage + _QUERIES * dots * ELEMENT_TYPES[dtype].accumulator_dtype.itemsize


# Calls ------------------------------------------------------------------------------------------------------------------------


def forward(operands: Operands) -> Iterator[Call]:
    """Yield the launches for the output: one for every `levels.LEVELS` levels."""
    return (_call(operands, levels) for levels in of_levels.groups(operands))


def _call(operands: Operands, levels: range) -> Call:
    problem = operands.problem
    (input1, at1), ((out, to), level_stride) = operands.input1, of_levels.volumes(operands, levels)
    blocks = tiles(problem) * len(levels)
    channel_strides = (abs(image.strides[1]) for image in (input1, *(operands.level2(level)[0] for level in levels)))
    stage_channels = PLANES * VECTOR_BYTES // operands.accumulator.itemsize
    return SIGNATURE.call(
        macros={
            "INPUT": input1.element,
            "OUTPUT": out.element,
            "COORDINATE": operands.coords[0].element,
            **_ORDERS[_is_channels_last(operands)],
        },
        pointers={"input1": at1, **of_levels.pointers(operands, levels), **operands.pointers(), "out": to},
        scalars={
            "blocks": blocks,
            "levels": len(levels),
            **operands.sizes(),
            "channels": problem.channels,
            **strides("input1", IMAGE_AXES, input1.strides),
            **of_levels.scalars(operands, levels),
            **strides("out", LEVEL_AXES, out.strides),
            "level_stride_out": level_stride,
            "scale": problem.parameters.scale,
        },
        accumulator=operands.accumulator,
        blocks=blocks,
        shared=shared_bytes(problem, input1.dtype),
        largest=max(of_levels.extent(operands, levels), stage_channels * max(channel_strides)),
    )


def _is_channels_last(operands: Operands) -> bool:
    """Return whether channels are contiguous in input1 and every level of input2."""
    images = (operands.input1, *map(operands.level2, range(operands.problem.levels)))
    return all(is_channels_last(layout) for layout, _ in images)


_ORDERS = ({"CHANNELS_LAST": 0, "SPLITS": 1}, {"CHANNELS_LAST": 1, "SPLITS": SPLITS})


def builds() -> Iterator[tuple[str, Kernel]]:
    """Yield every build that a call can name, with words for it."""
    for row, coordinates in element_types():
        for order in _ORDERS:
            table = {"INPUT": (row.c_type,), "OUTPUT": EVERY_ELEMENT, "COORDINATE": coordinates}
            yield from builds_of(SIGNATURE.name, {**table, **{macro: (value,) for macro, value in order.items()}})


# Cost model -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """The queries along each axis of a part of a tile whose windows are loaded together."""

    rows: int
    columns: int

    @property
    def queries(self) -> int:
        return self.rows * self.columns

    def box(self, problem: Problem, factors: tuple[float, float]) -> tuple[int, int]:
        """Return the rows and columns of the box of its windows at a level."""
        along_y, along_x = factors
        height = _pixels(problem.vertical) + ceil((self.rows - 1) * _APART * along_y)
        return height, _pixels(problem.horizontal) + ceil((self.columns - 1) * _APART * along_x)


_PARTS = tuple(_Part(*size) for size in ((8, 8), (4, 8), (8, 4), (4, 4)))  # in the order in which they are tried


def seconds(operands: Operands) -> float:
    """Estimate the seconds of the launches for the output, on a smooth flow."""
    problem, channels = operands.problem, operands.problem.channels
    (input1, _), (out, _) = operands.input1, operands.arrays["out"]
    rates = machine(operands.device, operands.accumulator.name)
    blocks = warps = loaded = direct = 0.0  # passes through the channels, their warps, bytes, products
    for factors in problem.level_scales:
        for part, share in _parts(problem, factors):
            count = tiles(problem) * share
            if part is None:
                direct += count * _QUERIES * problem.vertical.taps * problem.horizontal.taps * channels
                continue
            count *= _QUERIES // part.queries
            strips = _strips(problem, part, factors)
            passes = ceil_div(strips, THREADS)
            blocks += count * passes
            warps += count * ceil_div(strips, WARP)
            loaded += count * passes * _loaded(operands, part, factors)
    products = channels * RUN * STRIP, channels * (RUN + STRIP) * operands.accumulator.itemsize
    arithmetic = rates.tiled(max(round(blocks), 1), max(round(warps / blocks), 1), *products) if blocks else 0.0
    moved = sum(problem.input_bytes(input1.itemsize, operands.coords[0].itemsize)) + prod(out.shape) * out.itemsize
    parallel = arithmetic, rates.loaded(loaded), rates.moved(moved)
    launches = sum(1 for _ in of_levels.groups(operands))
    # They overlap, but not wholly.
    return launches * LAUNCH + 0.75 * max(parallel) + 0.25 * sum(parallel) + rates.from_caches(direct, input1.itemsize)


def _parts(problem: Problem, factors: tuple[float, float]) -> Iterator[tuple[_Part | None, float]]:
    """Yield the parts that tiles of a level are divided into, None where none fits, and the fraction of the tiles."""
    fitting = [part for part in _PARTS if max(part.box(problem, factors)) <= UNION]
    split = min(_SPLIT * max(factors), 1.0)
    yield from zip((*fitting, None, None), (1 - split, split), strict=False)


def _strips(problem: Problem, part: _Part, factors: tuple[float, float]) -> int:
    """Return the strips of a part."""
    rows, columns = _Part(1, RUN).box(problem, factors)
    rows += ceil((RUN - 1) * (_APART - 1) * factors[0])  # neighbours in a row do not look into the same row
    return part.queries // RUN * rows * ceil_div(columns, STRIP)


def _loaded(operands: Operands, part: _Part, factors: tuple[float, float]) -> float:
    """Return the bytes that a part loads."""
    channels, itemsize = operands.problem.channels, operands.input1[0].itemsize
    rows, columns = part.box(operands.problem, factors)
    # Rows begin and end in the middle of a sector.
    row = columns * itemsize + (0 if _is_channels_last(operands) else SECTOR_BYTES)
    return channels * (rows * row + part.queries * itemsize)
