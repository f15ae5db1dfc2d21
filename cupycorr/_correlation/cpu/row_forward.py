"""The kernel of the outputs of a row group.

    out[b, m, n, i, j] = scale * sum over c of input1[b, c, y, x] * input2[b, c, y + dy(m), x + dx(n)]

The rows of input1 are packed into scratch memory. Then the search rows are taken one by one: row r of the group reads search row
s at displacement row ``s - r``. The sums of all rows with one search row are kept in scratch memory, and stored row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from ..._cpu.llvm import compiled, lock
from .row_kernel import CHAIN, COMMON, Kernel, Range, RowGroupWriter, Tile, TileShape, itemsize_of

NUMBERS = (
    *COMMON,
    *("input1", "input1_b", "input1_c", "input1_y", "input1_x"),
    *("out", "out_b", "out_m", "out_n", "out_i", "out_j"),
    *("padding_y", "height1", "height2", "padding_x", "width1", "width2"),
)


def kernel(shape: TileShape, step_x: int, dtypes: tuple[str, str], accumulator: str) -> Kernel:
    """Return the kernel for displacements ``step_x`` columns apart, and dtypes of input1 and of the output."""
    with lock:
        return _compiled(shape, step_x, dtypes, accumulator)


@cache
def _compiled(shape: TileShape, step_x: int, dtypes: tuple[str, str], accumulator: str) -> Kernel:
    return compiled(lambda: _ForwardWriter(shape, step_x, dtypes, itemsize_of(accumulator)))


class _ForwardWriter(RowGroupWriter):
    """A writer of the kernel of the outputs of a row group."""

    def __init__(self, shape: TileShape, step_x: int, dtypes: tuple[str, str], itemsize: int) -> None:
        super().__init__("row_group_forward", NUMBERS, shape, dtypes, itemsize)
        self.step_x = step_x
        b, named = self.builder, self.named
        first, self.rows = self.rows_of_group()
        self.first_row = b.add(named["first_row"], first)
        self.first_y = b.sub(self.first_row, named["padding_y"])
        self.inside = self.steps_inside(self.first_y, self.number(0), named["height1"], self.rows)  # rows that input1 has
        self.out = self.at(self.pointer("out", dtypes[1]), self.offset((self.sample, "out_b"), (self.first_column, "out_j")))
        searched = b.sub(b.add(named["patch_y"], self.rows), self.number(1))
        first_searched = b.add(self.first_y, named["displacement_y"])
        inside = self.steps_inside(first_searched, self.number(0), named["height2"], searched)
        with b.if_then(b.icmp_signed(">", self.rows, self.number(0))):
            with b.if_then(b.icmp_signed("<", *inside)):
                self._pack_query()
            self.loop(searched, lambda s, _: self._search_row(s))
        b.ret_void()

    def _pack_query(self) -> None:
        """Write the copy of the group's rows of input1 into scratch memory ``[c, r, x]``."""
        b, named = self.builder, self.named
        x = b.sub(self.first_column, named["padding_x"])  # of the chunk's first column
        begin, end = (
            self.clipped(b.sub(edge, x), self.number(0), named["scratch_width"]) for edge in (self.number(0), named["width1"])
        )
        first = self.offset((self.sample, "input1_b"), (b.add(x, begin), "input1_x"))
        image = self.at(self.pointer("input1", self.dtype), first)

        def channel(c: Any, _: Sequence[Any]) -> None:
            def row(index: Any, _: Sequence[Any]) -> None:
                r = b.add(self.inside[0], index)
                y = b.add(self.first_y, b.mul(r, named["step_y"]))
                source = self.at(image, self.offset((c, "input1_c"), (y, "input1_y")))
                target = self.at(self.scratch, self.offset((c, "scratch_plane"), (r, "scratch_width")))
                self.row_between_zeros(source, named["input1_x"], self.dtype, target, (begin, end), named["scratch_width"])

            self.loop(b.sub(self.inside[1], self.inside[0]), row)

        self.loop(named["channels"], channel)

    def _search_row(self, s: Any) -> None:
        """Write the outputs of all rows of the group that read search row ``s``: row r at displacement row ``s - r``."""
        b, named, one = self.builder, self.named, self.number(1)
        y = b.add(b.add(self.first_y, named["displacement_y"]), b.mul(s, named["step_y"]))
        low = self.larger(b.sub(b.add(s, one), named["patch_y"]), self.number(0))
        high = self.smaller(b.add(s, one), self.rows)
        begin = self.clipped(self.inside[0], low, high)
        is_inside = b.icmp_unsigned("<", y, named["height2"])  # a negative number is a large one
        end = b.select(is_inside, self.clipped(self.inside[1], begin, high), begin)
        row = self.at(self.search_row(y), self.first_column)
        query = self.at(self.scratch, self.offset((begin, "scratch_width")))
        self.for_count(b.sub(end, begin), lambda count: self.for_tiles(lambda tile: self._tile(tile, query, row, count)))
        self._store(s, (begin, end), valid=True)
        self._store(s, (low, begin), valid=False)
        self._store(s, (end, high), valid=False)

    def _tile(self, tile: Tile, query: Any, search: Any, count: int) -> None:
        """Write one tile of ``count`` rows: its sums over channels, if any of its pairs is inside the images."""
        b, named, last = self.builder, self.named, self.number(tile.width - 1)
        begin, _ = self._valid_columns(b.add(tile.first, last))  # columns of later displacements begin and end earlier
        _, end = self._valid_columns(tile.first)
        some = b.and_(b.icmp_signed(">", b.add(tile.x, self.number(self.lanes)), begin), b.icmp_signed("<", tile.x, end))
        with b.if_then(some):
            right = self.at(search, tile.x, b.mul(tile.first, self.number(self.step_x)))
            sums = self.at(self.sums, tile.x, self.offset((tile.first, "sums_plane")))
            rows = self.spaced(sums, b.mul(named["patch_x"], named["sums_plane"]), count)
            totals = [total for row in rows for total in self.spaced(row, named["sums_plane"], tile.width)]
            self._sum(self.at(query, tile.x), right, totals, count)

    def _sum(self, query: Any, search: Any, totals: Sequence[Any], count: int) -> None:
        """Write the sums over channels to memory, chain by chain."""
        b, channels, longest, vector = self.builder, self.named["channels"], self.number(CHAIN), self.tile_vector
        row_offsets = [self.offset((self.number(r), "scratch_width")) for r in range(count)]

        def channel(_: Any, carried: Sequence[Any]) -> list:
            left, right, *sums = carried
            lefts = [self.at(left, offset) for offset in row_offsets]
            rights = [self.at(right, self.number(q * self.step_x)) for q in range(len(totals) // count)]
            after = self.at(left, self.named["scratch_plane"]), self.at(right, self.named["packed_width"])
            return [*after, *self.products(lefts, rights, sums)]

        def chain(number: Any, _: Sequence[Any]) -> None:
            first = b.mul(number, longest)
            start = self.at(query, self.offset((first, "scratch_plane"))), self.at(search, self.offset((first, "packed_width")))
            terms = self.smaller(b.sub(channels, first), longest)
            sums = self.loop(terms, channel, [*start, *[self.zero(vector)] * len(totals)])[2:]
            with b.if_else(b.icmp_signed("==", number, self.number(0))) as (begins, continues):
                with begins:
                    for total, found in zip(totals, sums, strict=True):
                        self.store(found, total)
                with continues:
                    for total, found in zip(totals, sums, strict=True):
                        self.store(b.fadd(self.load(total, vector), found), total)

        self.loop(b.sdiv(b.add(channels, self.number(CHAIN - 1)), longest), chain)

    def _store(self, s: Any, rows: Range, *, valid: bool) -> None:
        """Write the outputs of some rows of the group at every displacement column; those that are not valid are zeros.

        The sums of the first valid row are the first ones in memory.
        """
        b, named = self.builder, self.named

        def row(number: Any, _: Sequence[Any]) -> None:
            r = b.add(rows[0], number)
            i = b.add(self.first_row, b.mul(r, named["step_y"]))
            out = self.at(self.out, self.offset((b.sub(s, r), "out_m"), (i, "out_i")))

            def plane(n: Any, _: Sequence[Any]) -> None:
                inside = self._valid_columns(n) if valid else (self.columns, self.columns)
                sums = self.at(self.sums, self.offset((b.add(b.mul(number, named["patch_x"]), n), "sums_plane")))
                self.result_row(sums, inside, self.at(out, self.offset((n, "out_n"))), named["out_j"])

            self.loop(named["patch_x"], plane)

        self.loop(b.sub(rows[1], rows[0]), row)

    def _valid_columns(self, n: Any) -> Range:
        """Write the range of the chunk's columns that have both positions inside the images."""
        b, named = self.builder, self.named
        displacement = b.add(named["displacement_x"], b.mul(n, self.number(self.step_x)))
        low = self.larger(b.neg(displacement), self.number(0))
        high = self.smaller(named["width1"], b.sub(named["width2"], displacement))
        first = b.sub(self.first_column, named["padding_x"])
        begin, end = (self.clipped(b.sub(edge, first), self.number(0), self.columns) for edge in (low, high))
        return begin, self.larger(begin, end)
