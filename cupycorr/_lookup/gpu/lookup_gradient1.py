"""The calls of ``lookup_gradient1.cu``, which computes what one level adds to the gradient of input1."""

from __future__ import annotations

from collections.abc import Iterator

from ..._gpu.call import IMAGE_AXES, THREADS, Array, Call, Signature, builds_of, strides
from ..._gpu.layout import ceil_div
from ..._gpu.limits import VECTOR_BYTES
from ..._gpu.source import Kernel
from .operands import (
    AXES,
    COORDS,
    ENTRIES,
    EVERY_ELEMENT,
    LEVEL_AXES,
    Operands,
    element_types,
    is_channels_last,
    sum_type,
)

SIGNATURE = Signature(
    "lookup/lookup_gradient1",
    ("cotangent", "input2", "coords", "index1", "index2", "gradient"),
    {
        **dict.fromkeys(("threads", "entries", "lookups", "height", "width", "channels"), "Index"),
        **strides("cotangent", LEVEL_AXES, "Index"),
        **strides("input2", IMAGE_AXES, "Index"),
        **COORDS,
        **ENTRIES,
        **AXES,
        **strides("gradient", IMAGE_AXES, "Index"),
        "scale": "Sum",
    },
)


def gradient1(operands: Operands, level: int, input2: Array, result: Array, scale: float) -> Call:
    """Return the launch for what one level adds to the gradient of some channels of input1, from those channels of input2."""
    (layout2, at2), (gradient, to) = input2, result
    cotangent, of_output = operands.volume("cotangent", level)
    batch, channels, height, width = gradient.shape
    vector = VECTOR_BYTES // layout2.itemsize
    threads = batch * ceil_div(channels, vector) * height * width
    return SIGNATURE.call(
        macros={
            "INPUT": layout2.element,
            "COTANGENT": cotangent.element,
            "COORDINATE": operands.coords[0].element,
            "GRADIENT": gradient.element,
            "CHANNELS_LAST": int(is_channels_last(layout2)),
        },
        pointers={"cotangent": of_output, "input2": at2, **operands.pointers(), "gradient": to},
        scalars={
            "threads": threads,
            "entries": operands.problem.entries,
            **operands.sizes(),
            "channels": channels,
            **strides("cotangent", LEVEL_AXES, cotangent.strides),
            **strides("input2", IMAGE_AXES, layout2.strides),
            **operands.scalars(level),
            **strides("gradient", IMAGE_AXES, gradient.strides),
            "scale": scale,
        },
        accumulator=operands.accumulator,
        blocks=ceil_div(threads, THREADS),
        largest=operands.largest(level, cotangent, layout2, gradient),
    )


def builds() -> Iterator[tuple[str, Kernel]]:
    """Yield every build that a call can name, with words for it."""
    for row, coordinates in element_types():
        results = tuple(dict.fromkeys((row.c_type, sum_type(row))))
        table = {"INPUT": (row.c_type,), "COTANGENT": EVERY_ELEMENT, "COORDINATE": coordinates, "GRADIENT": results}
        yield from builds_of(SIGNATURE.name, {**table, "CHANNELS_LAST": (0, 1)})
