"""The calls of ``lookup_gradient2.cu``, which computes the gradient of one level of input2."""

from __future__ import annotations

from collections.abc import Iterator

from ..._arguments import Shape
from ..._gpu.call import IMAGE_AXES, THREADS, Array, Call, Pointer, Signature, builds_of, strides
from ..._gpu.layout import ceil_div
from ..._gpu.source import Kernel
from . import lookup_boxes
from .operands import AXES, COORDS, ENTRIES, EVERY_ELEMENT, LEVEL_AXES, Operands, element_types, sum_type

TARGET_TILE, CHANNELS = 8, 64  # of a block, as in the kernel
_BLOCKS = 2  # of a multiprocessor: with fewer, the tiles of queries are divided into segments

SIGNATURE = Signature(
    "lookup/lookup_gradient2",
    ("cotangent", "input1", "coords", "index1", "index2", "boxes", "gradient"),
    {
        **dict.fromkeys(("blocks", "segments", "tiles", "lookups", "height", "width", "channels"), "Index"),
        **strides("cotangent", LEVEL_AXES, "Index"),
        **strides("input1", IMAGE_AXES, "Index"),
        **COORDS,
        **ENTRIES,
        **AXES,
        **strides("gradient", ("segment", *IMAGE_AXES), "Index"),
        "scale": "Sum",
    },
)


def _tiles(shape: Shape) -> int:
    """Return the number of tiles of pixels and slices of channels."""
    batch, channels, height, width = shape
    return batch * ceil_div(channels, CHANNELS) * ceil_div(height, TARGET_TILE) * ceil_div(width, TARGET_TILE)


def segments(operands: Operands, shape: Shape, most: int) -> int:
    """Return the number of segments, at most so many, into which the tiles of queries are divided to fill the device."""
    wanted = ceil_div(_BLOCKS * operands.device.multiprocessors, max(_tiles(shape), 1))
    return max(min(wanted, most, lookup_boxes.tiles(operands.problem)), 1)


def gradient2(operands: Operands, level: int, boxes: Pointer, result: Array, scale: float) -> Call:
    """Return the launch for sums (segments, N2, C, H2, W2) of the gradient of a level; one segment is the gradient itself."""
    input1, at1 = operands.input1
    (gradient, to), (cotangent, of_output) = result, operands.volume("cotangent", level)
    parts, *image = gradient.shape
    blocks = parts * _tiles(tuple(image))
    return SIGNATURE.call(
        macros={
            "INPUT": input1.element,
            "COTANGENT": cotangent.element,
            "COORDINATE": operands.coords[0].element,
            "GRADIENT": gradient.element,
        },
        pointers={"cotangent": of_output, "input1": at1, **operands.pointers(), "boxes": boxes, "gradient": to},
        scalars={
            "blocks": blocks,
            "segments": parts,
            "tiles": lookup_boxes.tiles(operands.problem),
            **operands.sizes(),
            "channels": operands.problem.channels,
            **strides("cotangent", LEVEL_AXES, cotangent.strides),
            **strides("input1", IMAGE_AXES, input1.strides),
            **operands.scalars(level),
            **strides("gradient", ("segment", *IMAGE_AXES), gradient.strides),
            "scale": scale,
        },
        accumulator=operands.accumulator,
        blocks=blocks,
        largest=max(
            operands.largest(level, cotangent, input1, gradient),
            lookup_boxes.tiles(operands.problem) * lookup_boxes.BOX + parts + THREADS,
        ),
    )


def builds() -> Iterator[tuple[str, Kernel]]:
    """Yield every build that a call can name, with words for it."""
    for row, coordinates in element_types():
        results = tuple(dict.fromkeys((row.c_type, sum_type(row))))
        table = {"INPUT": (row.c_type,), "COTANGENT": EVERY_ELEMENT, "COORDINATE": coordinates, "GRADIENT": results}
        yield from builds_of(SIGNATURE.name, table)
