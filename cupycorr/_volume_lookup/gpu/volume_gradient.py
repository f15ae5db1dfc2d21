"""The call of ``volume_gradient.cu``, which computes the gradient of the volume."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from ..._gpu.call import THREADS, Call, Signature, builds_of, strides
from ..._gpu.layout import ceil_div
from ..._gpu.limits import WARP
from ..._gpu.source import Kernel
from ..._lookup.gpu.operands import EVERY_ELEMENT, element_types
from .operands import AXES, COORDS, LEVEL_AXES, SLICE_AXES, Operands

RUN = 1024  # elements that a warp writes, as in volume_gradient.cu

SIGNATURE = Signature(
    "volume_lookup/volume_gradient",
    ("cotangent", "coords", "gradient"),
    {
        **dict.fromkeys(("tasks", "runs", "elements", "height", "width"), "Index"),
        **strides("cotangent", LEVEL_AXES, "Index"),
        **COORDS,
        **AXES,
        **strides("gradient", SLICE_AXES, "Index"),
        "scale": "Sum",
    },
)


def gradient(operands: Operands) -> Call:
    """Return the launch for the gradient of the volume."""
    (cotangent, at), (coords, of_coords), (result, to) = (
        operands.arrays[name] for name in ("cotangent", "coords", "gradient_volume")
    )
    elements = prod(operands.problem.size2)
    runs = ceil_div(elements, RUN)
    tasks = operands.problem.queries * runs
    return SIGNATURE.call(
        macros={"INPUT": result.element, "COTANGENT": cotangent.element, "COORDINATE": coords.element},
        pointers={"cotangent": at, "coords": of_coords, "gradient": to},
        scalars={
            "tasks": tasks,
            "runs": runs,
            "elements": elements,
            **strides("cotangent", LEVEL_AXES, cotangent.strides),
            **operands.scalars(),
            **strides("gradient", SLICE_AXES, result.strides),
            "scale": operands.problem.parameters.scale,
        },
        accumulator=operands.accumulator,
        blocks=ceil_div(tasks, THREADS // WARP),
        largest=max(operands.largest(cotangent, result), runs * RUN),
    )


def builds() -> Iterator[tuple[str, Kernel]]:
    """Yield every build that a call can name, with words for it."""
    for row, coordinates in element_types():
        table = {"INPUT": (row.c_type,), "COTANGENT": EVERY_ELEMENT, "COORDINATE": coordinates}
        yield from builds_of(SIGNATURE.name, table)
