"""The calls of ``lookup_direct.cu``, which computes one level of the output."""

from __future__ import annotations

from collections.abc import Iterator

from ..._gpu.call import IMAGE_AXES, THREADS, Call, Signature, builds_of, strides
from ..._gpu.layout import ceil_div
from ..._gpu.source import Kernel
from .operands import (
    AXES,
    COORDS,
    ENTRIES,
    EVERY_ELEMENT,
    LEVEL_AXES,
    ORDERS,
    Operands,
    Window,
    channel_order,
    element_types,
)

TAPS = 10  # as in dots.cuh

SIGNATURE = Signature(
    "lookup/lookup_direct",
    ("input1", "input2", "coords", "index1", "index2", "out"),
    {
        **dict.fromkeys(("tasks", "lookups", "height", "width", "channels"), "Index"),
        **strides("input1", IMAGE_AXES, "Index"),
        **strides("input2", IMAGE_AXES, "Index"),
        **COORDS,
        **ENTRIES,
        **strides("out", LEVEL_AXES, "Index"),
        **AXES,
        "scale": "Sum",
    },
)


def forward(operands: Operands, level: int) -> Call:
    """Return the launch for one level of the output."""
    problem = operands.problem
    (input1, at1), (input2, at2), (out, to) = operands.input1, operands.level2(level), operands.volume("out", level)
    tasks = problem.queries * _runs(operands.windows(level)[1])
    order = channel_order(input1, input2, tasks, operands.device)
    return SIGNATURE.call(
        macros={"INPUT": input1.element, "OUTPUT": out.element, "COORDINATE": operands.coords[0].element, **order},
        pointers={"input1": at1, "input2": at2, **operands.pointers(), "out": to},
        scalars={
            "tasks": tasks,
            **operands.sizes(),
            "channels": problem.channels,
            **strides("input1", IMAGE_AXES, input1.strides),
            **strides("input2", IMAGE_AXES, input2.strides),
            **operands.scalars(level),
            **strides("out", LEVEL_AXES, out.strides),
            "scale": problem.parameters.scale,
        },
        accumulator=operands.accumulator,
        blocks=ceil_div(tasks * order["SPLITS"], THREADS),
        largest=operands.largest(level, input1, input2, out),
    )


def _runs(horizontal: Window) -> int:
    """Return the number of runs of displacements that a row of the patch is divided into."""
    return ceil_div(horizontal.patch, TAPS - 1 if horizontal.step == 1 else TAPS // 2)


def builds() -> Iterator[tuple[str, Kernel]]:
    """Yield every build that a call can name, with words for it."""
    for row, coordinates in element_types():
        for order in ORDERS:
            table = {"INPUT": (row.c_type,), "OUTPUT": EVERY_ELEMENT, "COORDINATE": coordinates, **order}
            yield from builds_of(SIGNATURE.name, table)
