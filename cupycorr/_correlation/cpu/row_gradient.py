"""The kernel of one gradient of a row group.

    gradient[b, c, y, x] = scale * sum over m, n of cotangent[b, m, n, i, j] * search[b, c, y + dy(m), x + dx(n)]

The cotangent that the group reads is packed into scratch memory, with zeros at pairs outside an image. Row r of the group reads
search row s at displacement row ``s - r``. Search rows outside the image, and those that a row does not read, are left out: they
are not multiplied by zero, because the product of an infinity and zero is not a number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from ..._cpu.llvm import compiled, lock
from .row_kernel import CHAIN, COMMON, Kernel, Range, RowGroupWriter, Tile, TileShape, itemsize_of

# The ranges of rows and columns of the gradient, and of the search image, at which there are outputs.
LIMITS = (
    ("row_low", "row_high"),
    ("search_low", "search_high"),
    ("column_low", "column_high"),
    ("search_left", "search_right"),
)

NUMBERS = (
    *COMMON,
    *("cotangent", "cotangent_b", "cotangent_m", "cotangent_n", "cotangent_i", "cotangent_j"),
    *("gradient", "gradient_b", "gradient_c", "gradient_y", "gradient_x"),
    *(name for names in LIMITS for name in names),
    *("step_x", "chain_rows"),
    # The row i of the cotangent for row y and search row s is ``y + row_offset + r row_step + s search_step``, and likewise j.
    *("row_offset", "row_step", "search_step", "column_offset", "column_step"),
)


def kernel(shape: TileShape, dtypes: tuple[str, str], accumulator: str) -> Kernel:
    """Return the kernel for dtypes of the cotangent and of the gradient."""
    with lock:
        return _compiled(shape, dtypes, accumulator)


@cache
def _compiled(shape: TileShape, dtypes: tuple[str, str], accumulator: str) -> Kernel:
    return compiled(lambda: _GradientWriter(shape, dtypes, itemsize_of(accumulator)))


class _GradientWriter(RowGroupWriter):
    """A writer of the kernel of the gradient of a row group."""

    def __init__(self, shape: TileShape, dtypes: tuple[str, str], itemsize: int) -> None:
        super().__init__("row_group_gradient", NUMBERS, shape, dtypes, itemsize)
        b, named = self.builder, self.named
        first, self.rows = self.rows_of_group()
        self.first_y = b.add(named["first_row"], first)
        self.first_searched = b.add(self.first_y, named["displacement_y"])
        self.inside = self.steps_inside(self.first_y, named["row_low"], named["row_high"], self.rows)
        searched = b.sub(b.add(named["patch_y"], self.rows), self.number(1))
        self.searched = self.steps_inside(self.first_searched, named["search_low"], named["search_high"], searched)
        all_inside = b.icmp_signed("==", b.sub(self.inside[1], self.inside[0]), self.number(shape.rows))
        one_chain = b.icmp_signed("<=", b.mul(named["patch_y"], named["patch_x"]), self.number(CHAIN))
        self.whole = b.and_(all_inside, one_chain)
        with b.if_then(b.icmp_signed(">", self.rows, self.number(0))):
            any_searched = b.icmp_signed("<", *self.searched)
            with b.if_then(any_searched):
                self._pack_cotangent()
                self.for_tiles(self._tile)
            self._store(any_searched)
        b.ret_void()

    def _rows_at(self, s: Any) -> Range:
        """Write the range of rows of the group that read search row ``s``: row r at displacement row ``s - r``."""
        b, one = self.builder, self.number(1)
        low = self.larger(b.sub(b.add(s, one), self.named["patch_y"]), self.inside[0])
        return low, self.larger(low, self.smaller(b.add(s, one), self.inside[1]))

    def _pack_cotangent(self) -> None:
        """Write the copy of the cotangent into scratch memory ``[s, n, r, x]``, with zeros at pairs outside an image."""
        b, named = self.builder, self.named
        cotangent = self.at(self.pointer("cotangent", self.dtype), self.offset((self.sample, "cotangent_b")))
        first_i = b.add(self.first_y, named["row_offset"])
        width = named["scratch_width"]

        def search_row(index: Any, _: Sequence[Any]) -> None:
            s = b.add(self.searched[0], index)
            begin, end = self._rows_at(s)

            def displacement(n: Any, _: Sequence[Any]) -> None:
                inside = self._valid_columns(n)
                x = b.add(self.first_column, inside[0])
                j = b.add(b.add(x, named["column_offset"]), b.mul(n, named["column_step"]))
                plane = self.at(cotangent, self.offset((n, "cotangent_n"), (j, "cotangent_j")))
                target = self._packed(s, n)

                def row(index: Any, _: Sequence[Any]) -> None:
                    r = b.add(begin, index)
                    i = b.add(b.add(first_i, b.mul(r, named["row_step"])), b.mul(s, named["search_step"]))
                    source = self.at(plane, self.offset((b.sub(s, r), "cotangent_m"), (i, "cotangent_i")))
                    packed = self.at(target, b.mul(r, width))
                    self.row_between_zeros(source, named["cotangent_j"], self.dtype, packed, inside, width)

                self.loop(b.sub(end, begin), row)

            self.loop(named["patch_x"], displacement)

        self.loop(b.sub(self.searched[1], self.searched[0]), search_row)

    def _packed(self, s: Any, n: Any) -> Any:
        """Write the address of the packed cotangent of a displacement column and a search row."""
        b, named = self.builder, self.named
        return self.at(self.scratch, b.mul(b.add(b.mul(s, named["patch_x"]), n), named["scratch_plane"]))

    def _valid_columns(self, n: Any) -> Range:
        """Write the range of columns of the chunk that are valid at a displacement column."""
        b, named = self.builder, self.named
        displacement = b.add(named["displacement_x"], b.mul(n, named["step_x"]))
        low = self.larger(named["column_low"], b.sub(named["search_left"], displacement))
        high = self.smaller(named["column_high"], b.sub(named["search_right"], displacement))
        begin, end = (
            self.clipped(b.sub(edge, self.first_column), self.number(0), named["scratch_width"]) for edge in (low, high)
        )
        return begin, self.larger(begin, end)

    def _tile(self, tile: Tile) -> None:
        """Write one tile: in registers alone if the group is whole and its sums are one chain."""
        with self.builder.if_else(self.whole) as (whole, part):
            with whole:
                self._tile_of_one_chain(tile)
            with part:
                self._tile_in_memory(tile)

    def _tile_of_one_chain(self, tile: Tile) -> None:
        """Write a tile of all rows, whose sums stay in registers from the first search row to the last."""
        rows, patch = self.shape.rows, self.named["patch_y"]
        b, sums = self.builder, [self.zero(self.tile_vector)] * (rows * tile.width)
        # Search rows that the same rows read: each of the first ones, all common ones together, and each of the last ones.
        runs = [(self.number(s), self.number(s + 1), 0, s + 1) for s in range(rows - 1)]
        runs.append((self.number(rows - 1), patch, 0, rows))
        runs += [(b.add(patch, self.number(r - 1)), b.add(patch, self.number(r)), r, rows) for r in range(1, rows)]
        for first, after, r, end in runs:
            searched = self.clipped(first, *self.searched), self.clipped(after, *self.searched)
            part = slice(r * tile.width, end * tile.width)
            sums[part] = self._chain(tile, self.number(r), searched, (self.number(0), self.named["patch_x"]), sums[part])
        for total, found in zip(self._totals(tile, self.number(0), rows), sums, strict=True):
            self.store(found, total)

    def _tile_in_memory(self, tile: Tile) -> None:
        """Write a tile whose sums are in memory: one run for each range of search rows that the same rows read."""
        b, named, one = self.builder, self.named, self.number(1)

        def clear(r: Any, _: Sequence[Any]) -> None:
            for total in self._totals(tile, r, 1):
                self.store(self.zero(self.tile_vector), total)

        self.loop(self.rows, clear)
        before = b.sub(self.rows, one)  # search rows that not all rows of the group read, at each end

        def run(number: Any, _: Sequence[Any]) -> None:
            behind = b.sub(number, before)
            is_behind = b.icmp_signed(">", behind, self.number(0))
            first = b.select(is_behind, b.add(b.sub(named["patch_y"], one), behind), number)
            after = b.select(b.icmp_signed("==", number, before), named["patch_y"], b.add(first, one))
            searched = self.clipped(first, *self.searched), self.clipped(after, *self.searched)
            rows = self._rows_at(first)
            with b.if_then(b.icmp_signed("<", *searched)):
                self.for_count(b.sub(rows[1], rows[0]), lambda count: self._run(tile, rows[0], count, searched))

        self.loop(b.add(b.mul(before, self.number(2)), one), run)

    def _totals(self, tile: Tile, first_row: Any, count: int) -> list:
        """Write the addresses of the sums of a tile, of ``count`` rows of the group."""
        named = self.named
        first = self.at(self._sums_of(first_row, tile.first), tile.x)
        rows = self.spaced(first, self.builder.mul(named["channels"], named["sums_plane"]), count)
        return [total for row in rows for total in self.spaced(row, named["sums_plane"], tile.width)]

    def _sums_of(self, r: Any, c: Any) -> Any:
        """Write the address of the sums of a row of the group and a channel."""
        b = self.builder
        return self.at(self.sums, self.offset((b.add(b.mul(r, self.named["channels"]), c), "sums_plane")))

    def _run(self, tile: Tile, first_row: Any, count: int, searched: Range) -> None:
        """Write the addition of sums over a range of search rows to those in memory, chain by chain."""
        b, named, longest = self.builder, self.named, self.number(CHAIN)
        totals = self._totals(tile, first_row, count)
        vector = self.tile_vector

        def chain(rows: Range, columns: Range) -> None:
            found = self._chain(tile, first_row, rows, columns, [self.zero(vector)] * len(totals))
            for total, value in zip(totals, found, strict=True):
                self.store(b.fadd(self.load(total, vector), value), total)

        def parts(whole: Range, most: Any, body: Callable[[Range], None]) -> None:
            def part(index: Any, _: Sequence[Any]) -> None:
                first = b.add(whole[0], b.mul(index, most))
                body((first, self.smaller(b.add(first, most), whole[1])))

            self.loop(b.sdiv(b.add(b.sub(whole[1], whole[0]), b.sub(most, self.number(1))), most), part)

        all_columns = self.number(0), named["patch_x"]
        parts(searched, named["chain_rows"], lambda rows: parts(all_columns, longest, lambda columns: chain(rows, columns)))

    def _chain(self, tile: Tile, first_row: Any, searched: Range, columns: Range, sums: Sequence[Any]) -> list:
        """Write the products of ranges of search rows and displacement columns, added to sums of rows from ``first_row`` on."""
        b, named, count = self.builder, self.named, len(sums) // tile.width
        packed = self.at(self._packed(searched[0], columns[0]), self.offset((first_row, "scratch_width")), tile.x)
        y = b.add(self.first_searched, b.mul(searched[0], named["step_y"]))
        first = self.offset((tile.first, "packed_width"), (columns[0], "step_x"))
        search = self.at(self.search_row(y), first, b.add(tile.x, self.first_column))
        rights = self.spaced(search, named["packed_width"], tile.width)
        row_offsets = [self.offset((self.number(r), "scratch_width")) for r in range(count)]
        along_row = b.mul(named["channels"], b.mul(named["packed_width"], named["step_y"]))

        def search_row(_: Any, carried: Sequence[Any]) -> list:
            left, offset, *found = carried

            def displacement(_: Any, carried: Sequence[Any]) -> list:
                left, offset, *found = carried
                lefts = [self.at(left, row_offset) for row_offset in row_offsets]
                found = self.products(lefts, [self.at(right, offset) for right in rights], found)
                return [self.at(left, named["scratch_plane"]), b.add(offset, named["step_x"]), *found]

            _, _, *found = self.loop(b.sub(columns[1], columns[0]), displacement, carried)
            return [self.at(left, self.offset((named["patch_x"], "scratch_plane"))), b.add(offset, along_row), *found]

        return self.loop(b.sub(searched[1], searched[0]), search_row, [packed, self.number(0), *sums])[2:]

    def _store(self, any_searched: Any) -> None:
        """Write the rows of the gradient, which are zeros if no search row is inside the image."""
        b, named = self.builder, self.named
        first = self.offset((self.sample, "gradient_b"), (self.first_y, "gradient_y"), (self.first_column, "gradient_x"))
        gradient = self.at(self.pointer("gradient", self.result_dtype), first)
        along_y = b.mul(named["step_y"], named["gradient_y"])
        # Columns of a crop have no product: their sums are those of zeros with values that need not be finite.
        low, high = (b.sub(named[edge], self.first_column) for edge in ("column_low", "column_high"))
        end = b.select(any_searched, self.clipped(high, self.number(0), self.columns), self.number(0))
        inside = self.smaller(self.clipped(low, self.number(0), self.columns), end), end

        def row(r: Any, _: Sequence[Any]) -> None:
            def channel(c: Any, _: Sequence[Any]) -> None:
                target = self.at(gradient, b.mul(r, along_y), self.offset((c, "gradient_c")))
                self.result_row(self._sums_of(r, c), inside, target, named["gradient_x"])

            self.loop(named["channels"], channel)

        self.loop(self.rows, row)
