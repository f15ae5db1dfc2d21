"""The calls of ``lookup_boxes.cu``, which finds the boxes that the windows of tiles of queries are in."""

from __future__ import annotations

from collections.abc import Iterator

from ..._dtypes import ELEMENT_TYPES
from ..._gpu.call import THREADS, Call, Pointer, Signature, builds_of
from ..._gpu.layout import ceil_div
from ..._gpu.limits import WARP
from ..._gpu.source import Kernel
from ..problem import Problem
from .operands import AXES, COORDS, ENTRIES, Operands, element_types, sum_type

QUERY_TILE = 8  # as in tiles.cuh
BOX = 4  # numbers of 8 bytes, as in tiles.cuh

SIGNATURE = Signature(
    "lookup/lookup_boxes",
    ("coords", "index1", "index2", "boxes"),
    {**dict.fromkeys(("tiles", "lookups", "height", "width"), "Index"), **COORDS, **ENTRIES, **AXES},
)


def tiles(problem: Problem) -> int:
    """Return the number of tiles of queries."""
    height, width = problem.size1
    return problem.entries * problem.lookups * ceil_div(height, QUERY_TILE) * ceil_div(width, QUERY_TILE)


def size(problem: Problem) -> int:
    """Return the bytes of the boxes of a level."""
    return tiles(problem) * BOX * 8


def boxes(operands: Operands, level: int, to: Pointer) -> Call:
    """Return the launch that stores the boxes of a level."""
    count = tiles(operands.problem)
    sums = ELEMENT_TYPES[operands.accumulator.name].c_type
    return SIGNATURE.call(
        macros={"INPUT": sums, "COORDINATE": operands.coords[0].element},
        pointers={**operands.pointers(), "boxes": to},
        scalars={"tiles": count, **operands.sizes(), **operands.scalars(level)},
        accumulator=operands.accumulator,
        blocks=ceil_div(count, THREADS // WARP),
        largest=max(operands.largest(level), count * BOX),
    )


def builds() -> Iterator[tuple[str, Kernel]]:
    """Yield every build that a call can name, with words for it."""
    for row, coordinates in element_types():
        if row.c_type == sum_type(row):
            yield from builds_of(SIGNATURE.name, {"INPUT": (row.c_type,), "COORDINATE": coordinates})
