"""The calls of ``lookup_gradient_coords.cu``, which computes what one level adds to the gradient of coords."""

from __future__ import annotations

from collections.abc import Iterator

from ..._gpu.call import IMAGE_AXES, THREADS, Array, Call, Signature, builds_of, strides
from ..._gpu.layout import ceil_div
from ..._gpu.source import Kernel
from .operands import (
    AXES,
    COORDS,
    COORDS_AXES,
    ENTRIES,
    EVERY_ELEMENT,
    LEVEL_AXES,
    ORDERS,
    Operands,
    channel_order,
    element_types,
    sum_type,
)

SIGNATURE = Signature(
    "lookup/lookup_gradient_coords",
    ("cotangent", "input1", "input2", "coords", "index1", "index2", "gradient"),
    {
        **dict.fromkeys(("tasks", "lookups", "height", "width", "channels"), "Index"),
        **strides("cotangent", LEVEL_AXES, "Index"),
        **strides("input1", IMAGE_AXES, "Index"),
        **strides("input2", IMAGE_AXES, "Index"),
        **COORDS,
        **ENTRIES,
        **AXES,
        **strides("gradient", COORDS_AXES, "Index"),
        "scale": "Sum",
    },
)


def gradient_coords(operands: Operands, level: int, result: Array, scale: float) -> Call:
    """Return the launch for what one level adds to the gradient of coords."""
    problem = operands.problem
    (input1, at1), (input2, at2) = operands.input1, operands.level2(level)
    (cotangent, of_output), (gradient, to) = operands.volume("cotangent", level), result
    tasks = problem.queries
    order = channel_order(input1, input2, tasks, operands.device)
    return SIGNATURE.call(
        macros={
            "INPUT": input1.element,
            "COTANGENT": cotangent.element,
            "COORDINATE": operands.coords[0].element,
            "GRADIENT": gradient.element,
            **order,
        },
        pointers={"cotangent": of_output, "input1": at1, "input2": at2, **operands.pointers(), "gradient": to},
        scalars={
            "tasks": tasks,
            **operands.sizes(),
            "channels": problem.channels,
            **strides("cotangent", LEVEL_AXES, cotangent.strides),
            **strides("input1", IMAGE_AXES, input1.strides),
            **strides("input2", IMAGE_AXES, input2.strides),
            **operands.scalars(level),
            **strides("gradient", COORDS_AXES, gradient.strides),
            "scale": scale,
        },
        accumulator=operands.accumulator,
        blocks=ceil_div(tasks * order["SPLITS"], THREADS),
        largest=operands.largest(level, cotangent, input1, input2, gradient),
    )


def builds() -> Iterator[tuple[str, Kernel]]:
    """Yield every build that a call can name, with words for it."""
    for row, coordinates in element_types():
        for coordinate in coordinates:
            results = tuple(dict.fromkeys((coordinate, sum_type(row))))
            for order in ORDERS:
                table = {"INPUT": (row.c_type,), "COTANGENT": EVERY_ELEMENT, "COORDINATE": (coordinate,), "GRADIENT": results}
                yield from builds_of(SIGNATURE.name, {**table, **order})
