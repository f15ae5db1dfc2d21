"""The code that the kernels of row groups share: the numbers of a task, its rows and columns, its tiles, and the result's rows.

A row group has up to `TileShape.rows` rows of the result that are one vertical step apart: at neighbouring displacements they
read the same search row. A tile of sums in vector registers multiplies each vector that is loaded from that row with all rows of
the group that read it, and each vector of a row of the group with several displacements or channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..._cpu.task_kernel import TaskKernel
from ..._dtypes import LONGEST_CHAIN, element_type_called

CHAIN = LONGEST_CHAIN.registers

TILES = ("tiles0", "tiles1")  # the tiles of each width of a `TileShape`

# The numbers of every kernel of a row group.
COMMON = (
    *("scale", "groups", "first_row", "rows", "chunks", "chunk", "columns", *TILES),
    *("search", "packed_rows", "packed_first", "packed_width", "channels"),
    *("displacement_y", "step_y", "patch_y", "displacement_x", "patch_x"),
    *("scratch_width", "scratch_plane", "sums_at", "sums_plane"),
)

Kernel = Callable[..., None]
Range = tuple[Any, Any]  # the first number, and the one after the last


class TileShape(NamedTuple):
    """The most rows of a tile, and the different numbers of displacements (or channels) that tiles have, the larger first."""

    rows: int
    widths: tuple[int, ...]


class Tile(NamedTuple):
    """The place of a tile in a kernel: its first column, its first displacement or channel, and their number."""

    x: Any
    first: Any
    width: int


def itemsize_of(accumulator: str) -> int:
    """Return the bytes of a sum."""
    return element_type_called("dtype", accumulator).itemsize


class RowGroupWriter(TaskKernel):
    """A writer of the code that the kernels share."""

    def __init__(self, name: str, names: Sequence[str], shape: TileShape, dtypes: tuple[str, str], itemsize: int) -> None:
        super().__init__(name, names, itemsize)
        self.shape, (self.dtype, self.result_dtype) = shape, dtypes
        b, named, task = self.builder, self.named, self.arguments["task"]
        chunk = b.srem(task, named["chunks"])
        group = b.sdiv(task, named["chunks"])
        self.sample, self.group = b.sdiv(group, named["groups"]), b.srem(group, named["groups"])
        self.first_column = b.mul(chunk, named["chunk"])
        self.columns = self.smaller(b.sub(named["columns"], self.first_column), named["chunk"])  # of the chunk
        self.tile_vector = self.vector(self.lanes)
        self.scale = self.value("scale")
        self.sums = self.at(self.scratch, named["sums_at"])

    # Rows -------------------------------------------------------------------------------------------------------------

    def rows_of_group(self) -> tuple[Any, Any]:
        """Write the first row of the group among those of its part, and the number of its rows, `step_y` apart."""
        b, step, most = self.builder, self.named["step_y"], self.number(self.shape.rows)
        first = b.add(b.mul(b.sdiv(self.group, step), b.mul(most, step)), b.srem(self.group, step))
        return first, self.smaller(self.steps(b.sub(self.named["rows"], first)), most)

    def steps(self, distance: Any) -> Any:
        """Write the least number of vertical steps that cover a distance."""
        b, step = self.builder, self.named["step_y"]
        rounded = b.sdiv(b.add(distance, b.sub(step, self.number(1))), step)
        return b.select(b.icmp_signed(">", distance, self.number(0)), rounded, self.number(0))

    def steps_inside(self, first: Any, low: Any, high: Any, most: Any) -> Range:
        """Write the range of steps from a first row, up to a number of them, at which rows are in a range."""
        begin, end = (self.smaller(self.steps(self.builder.sub(edge, first)), most) for edge in (low, high))
        return begin, self.larger(begin, end)

    def search_row(self, row: Any) -> Any:
        """Write the address of a packed row of the search image."""
        b, named = self.builder, self.named
        rows = b.add(b.mul(self.sample, named["packed_rows"]), b.sub(row, named["packed_first"]))
        return self.at(self.pointer("search"), b.mul(b.mul(rows, named["channels"]), named["packed_width"]))

    def for_count(self, count: Any, body: Callable[[int], None]) -> None:
        """Write ``body(count)`` for each number of rows that a tile may have."""
        for rows in range(1, self.shape.rows + 1):
            with self.builder.if_then(self.builder.icmp_signed("==", count, self.number(rows))):
                body(rows)

    # Tiles ------------------------------------------------------------------------------------------------------------

    def for_tiles(self, body: Callable[[Tile], None]) -> None:
        """Write ``body(tile)`` for all tiles of the chunk: at each vector of columns those of all displacements or channels."""
        b, lanes = self.builder, self.number(self.lanes)

        def vector(index: Any, _: Sequence[Any]) -> None:
            x, begin = b.mul(index, lanes), self.number(0)
            for name, width in zip(TILES, self.shape.widths, strict=False):  # there may be tiles of one width only
                count = self.named[name]

                def tile(index: Any, _: Sequence[Any], begin: Any = begin, width: int = width) -> None:
                    body(Tile(x, b.add(begin, b.mul(index, self.number(width))), width))

                self.loop(count, tile)
                begin = b.add(begin, b.mul(count, self.number(width)))

        self.loop(b.sdiv(b.add(self.columns, self.number(self.lanes - 1)), lanes), vector)

    def products(self, lefts: Sequence[Any], rights: Sequence[Any], sums: Sequence[Any]) -> list:
        """Write the products of a vector of each row with those of the search row, added to the sums, row by row."""
        found = list(sums)
        values = [self.load(left, self.tile_vector) for left in lefts]
        for q, right in enumerate(rights):
            value = self.load(right, self.tile_vector)
            for r, left_value in enumerate(values):
                at = r * len(rights) + q
                found[at] = self.multiply_add(found[at], left_value, value)
        return found

    def result_row(self, sums: Any, inside: Range, target: Any, along: Any) -> None:
        """Write the chunk's columns of a row of the result: sums times the scale ``inside`` a range, and zeros outside.

        Columns of the result are ``along`` elements apart.
        """
        b, (begin, end), dtype = self.builder, inside, self.result_dtype

        def value(x: Any, lanes: int) -> None:
            vector = self.vector(lanes)
            scaled = b.fmul(self.load(self.at(sums, x), vector), self.vector_of(self.scale, vector))
            self.narrowed(scaled, self.at(target, b.mul(x, along)), dtype)

        def zero(x: Any, lanes: int) -> None:
            self.narrowed(self.zero(self.vector(lanes)), self.at(target, b.mul(x, along)), dtype)

        neighbours = b.icmp_signed("==", along, self.number(1))
        for first, after, body in ((self.number(0), begin, zero), (begin, end, value), (end, self.columns, zero)):

            def part(x: Any, lanes: int, first: Any = first, body: Callable[[Any, int], None] = body) -> None:
                body(b.add(first, x), lanes)

            self.along_row(b.sub(after, first), self.lanes, neighbours, part)
