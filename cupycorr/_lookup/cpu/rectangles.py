"""Rectangles of queries: what the kernels of the variant ``simd`` work through, one after the other.

A rectangle is a part of the queries of one lookup of one entry, at one level. It is a row of int64 fields in a table, from which
kernels find everything that belongs to it. Offsets are in elements, counted from the arrays that a kernel is called with. Queries
of a rectangle are numbered row by row from its ``slot`` on, which is their place in the arrays of windows and dots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..._cpu.llvm import NUMBER, OFFSETS, VECTOR_BYTES, KernelWriter


class Rectangle(NamedTuple):
    """The fields of a rectangle.

    Attributes
    ----------
    rows, columns, top
        Its size, and its first row in the image of queries.
    slot
        The number of its first query.
    coords, coords_row, coords_channel
        The offset of the x coordinate of its first query, the distances of rows, and that of the y coordinate.
    features, features_row
        The offset of the features of its first query, and the distance of rows.
    image
        The offset of the image in the packed maps.
    out, out_row
        The offset of its first output, and the distance of rows.
    """

    rows: Any
    columns: Any
    top: Any
    slot: Any
    coords: Any
    coords_row: Any
    coords_channel: Any
    features: Any
    features_row: Any
    image: Any
    out: Any
    out_row: Any


class Span(NamedTuple):
    """Successive rectangles of a table: the address of the first one, and how many they are."""

    address: int
    rectangles: int


class Memory(NamedTuple):
    """The addresses of what is known of some queries, and the number of queries in a plane of it.

    Attributes
    ----------
    queries
        The number of queries, and padding.
    weights
        Planes of the weights wy(0), wy(1), wx(0) and wx(1).
    origins
        Planes of the int64 position y and x of the first tap.
    dots
        The dots of each query, as `dot_kernel.DotsLayout` says, and padding.
    """

    queries: int
    weights: int
    origins: int
    dots: int


WEIGHTS, ORIGINS = 4, 2  # planes


def padding(itemsize: int) -> int:
    """Return how many elements kernels may read after those of the last query of a plane."""
    return VECTOR_BYTES // itemsize


TABLE = {"rectangles": OFFSETS, "count": NUMBER}  # the first arguments of each kernel


class RectangleWriter(KernelWriter):
    """A writer of a kernel that works through a table of rectangles."""

    def each_rectangle(self, body: Callable[[Rectangle], None]) -> None:
        """Write the loop over the rectangles of the table."""
        b, fields = self.builder, len(Rectangle._fields)

        def rectangle(index: Any, _: Sequence[Any]) -> None:
            at = self.at(self.arguments["rectangles"], b.mul(index, self.number(fields)))
            body(Rectangle(*(b.load(self.at(at, self.number(field))) for field in range(fields))))

        self.loop(self.arguments["count"], rectangle)
