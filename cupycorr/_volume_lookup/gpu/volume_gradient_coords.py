"""The call of ``volume_gradient_coords.cu``, which computes the gradient of coords."""

from __future__ import annotations

from collections.abc import Iterator

from ..._gpu.call import IMAGE_AXES, Call, Signature, builds_of, strides
from ..._gpu.source import Kernel
from ..._lookup.gpu.operands import EVERY_ELEMENT, element_types
from .operands import AXES, CHUNKS, COORDS, LEVEL_AXES, SLICE_AXES, Operands

SIGNATURE = Signature(
    "volume_lookup/volume_gradient_coords",
    ("cotangent", "volume", "coords", "gradient"),
    {
        "tasks": "Index",
        **CHUNKS,
        **dict.fromkeys(("height", "width"), "Index"),
        **strides("cotangent", LEVEL_AXES, "Index"),
        **strides("volume", SLICE_AXES, "Index"),
        **COORDS,
        **AXES,
        **strides("gradient", IMAGE_AXES, "Index"),
        "scale": "Sum",
    },
)


def gradient_coords(operands: Operands) -> Call:
    """Return the launch for the gradient of coords."""
    (cotangent, of_output), (volume, at), (coords, of_coords), (result, to) = (
        operands.arrays[name] for name in ("cotangent", "volume", "coords", "gradient_coords")
    )
    return SIGNATURE.call(
        macros={
            "INPUT": volume.element,
            "COTANGENT": cotangent.element,
            "COORDINATE": coords.element,
            "GRADIENT": result.element,
        },
        pointers={"cotangent": of_output, "volume": at, "coords": of_coords, "gradient": to},
        scalars={
            "tasks": operands.tiles,
            **operands.of_chunks(),
            **strides("cotangent", LEVEL_AXES, cotangent.strides),
            **strides("volume", SLICE_AXES, volume.strides),
            **operands.scalars(),
            **strides("gradient", IMAGE_AXES, (result.strides[0], *result.strides[2:])),
            "scale": operands.problem.parameters.scale,
        },
        accumulator=operands.accumulator,
        blocks=operands.tiles,
        largest=operands.largest(cotangent, volume, result),
    )


def builds() -> Iterator[tuple[str, Kernel]]:
    """Yield every build that a call can name, with words for it."""
    for row, coordinates in element_types():
        for coordinate in coordinates:
            table = {"INPUT": (row.c_type,), "COTANGENT": EVERY_ELEMENT, "COORDINATE": (coordinate,), "GRADIENT": (coordinate,)}
            yield from builds_of(SIGNATURE.name, table)
