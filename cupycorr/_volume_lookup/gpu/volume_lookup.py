"""The call of ``volume_lookup.cu``, which computes the output."""

from __future__ import annotations

from collections.abc import Iterator

from ..._gpu.call import Call, Signature, builds_of, strides
from ..._gpu.source import Kernel
from ..._lookup.gpu.operands import EVERY_ELEMENT, element_types
from .operands import AXES, CHUNKS, COORDS, LEVEL_AXES, SLICE_AXES, Operands

SIGNATURE = Signature(
    "volume_lookup/volume_lookup",
    ("volume", "coords", "out"),
    {
        "tasks": "Index",
        **CHUNKS,
        **dict.fromkeys(("height", "width"), "Index"),
        **strides("volume", SLICE_AXES, "Index"),
        **COORDS,
        **strides("out", LEVEL_AXES, "Index"),
        **AXES,
        "scale": "Sum",
    },
)


def forward(operands: Operands) -> Call:
    """Return the launch for the output."""
    (volume, at), (coords, of_coords), (out, to) = (operands.arrays[name] for name in ("volume", "coords", "out"))
    tasks = operands.tiles * operands.chunks
    return SIGNATURE.call(
        macros={"INPUT": volume.element, "OUTPUT": out.element, "COORDINATE": coords.element},
        pointers={"volume": at, "coords": of_coords, "out": to},
        scalars={
            "tasks": tasks,
            **operands.of_chunks(),
            **strides("volume", SLICE_AXES, volume.strides),
            **operands.scalars(),
            **strides("out", LEVEL_AXES, out.strides),
            "scale": operands.problem.parameters.scale,
        },
        accumulator=operands.accumulator,
        blocks=tasks,
        largest=operands.largest(volume, out),
    )


def builds() -> Iterator[tuple[str, Kernel]]:
    """Yield every build that a call can name, with words for it."""
    for row, coordinates in element_types():
        table = {"INPUT": (row.c_type,), "OUTPUT": EVERY_ELEMENT, "COORDINATE": coordinates}
        yield from builds_of(SIGNATURE.name, table)
