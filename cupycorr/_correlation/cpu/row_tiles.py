"""The register tiles of row groups: how many rows share a search row, and how many displacements or channels share a query row.

A tile of ``rows`` x ``width`` sums takes a multiply-add for each sum, a load for each row, and for each of its width a load that
most often crosses two cache lines. At the ends of the displacements a search row is read by fewer rows of a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from ..._cpu.llvm import registers

# Number of registers -> rows of a tile -> its largest width. Wider tiles spill registers, or move them in their loops. A tile of
# the forward map has one address for its loads, one of a gradient has one for each channel.
_FORWARD = {32: {1: 10, 2: 10, 3: 9, 4: 6}, 16: {1: 6, 2: 4, 3: 3}}
_GRADIENT = {32: {1: 10, 2: 10, 3: 7, 4: 6}, 16: {1: 6, 2: 4, 3: 3}}

LOAD_CYCLES = 2.5  # a load of the search row, in the time of a multiply-add


class RowTiles(NamedTuple):
    """The tiles of a row group.

    Attributes
    ----------
    rows
        The rows of a group.
    widths
        The width of each tile: together they are all displacements (forward) or channels (gradient), the larger ones first.
    cycles
        The multiply-adds whose time all tiles of all rows take, for one term of a vector of columns.
    """

    rows: int
    widths: tuple[int, ...]
    cycles: float


def forward_tiles(displacements: int, rows: int, step: int, patch: int) -> RowTiles:
    """Return the tiles for so many displacement columns, and rows of outputs whose displacement rows are ``step`` apart."""
    return _fastest(displacements, rows, step, patch, gradient=False)


def gradient_tiles(channels: int, rows: int, step: int, patch: int) -> RowTiles:
    """Return the tiles for so many channels, and rows of a gradient whose displacement rows are ``step`` apart."""
    return _fastest(channels, rows, step, patch, gradient=True)


@lru_cache(maxsize=256)
def _fastest(count: int, rows: int, step: int, patch: int, *, gradient: bool) -> RowTiles:
    widest = (_GRADIENT if gradient else _FORWARD)[registers().count]
    return min(_candidates(count, rows, step, patch, widest), key=lambda tiles: tiles.cycles)


def _candidates(count: int, rows: int, step: int, patch: int, widest: Mapping[int, int]) -> list[RowTiles]:
    """Return the tiles of each number of rows that all can read the same search row."""
    found = []
    for most in (each for each in widest if each <= patch):
        tiles = -(-count // widest[most])
        widths = tuple(count // tiles + (index < count % tiles) for index in range(tiles))
        groups, rest = divmod(-(-rows // step), most)
        cycles = step * (groups * _group_cycles(most, widths, patch) + _group_cycles(rest, widths, patch))
        found.append(RowTiles(most, widths, cycles))
    return found


def _group_cycles(rows: int, widths: Sequence[int], patch: int) -> float:
    """Return the cycles of a group of so many rows at all displacement rows."""
    if rows == 0:
        return 0
    ends = sum(2 * _cycles(fewer, widths) for fewer in range(1, rows))
    return (patch - rows + 1) * _cycles(rows, widths) + ends


def _cycles(rows: int, widths: Sequence[int]) -> float:
    """Return the cycles of so many rows with one search row."""
    return sum(max(rows * width, rows + LOAD_CYCLES * width) for width in widths)
