"""Tiles: neighbouring queries whose windows are computed together, over the union of the positions that they read.

Queries of a block are sorted so that neighbours in the image are neighbours in the order: by tiles of `TILE` queries, and inside
a tile along a Z-order curve. A tile is then a range of queries, and so are its halves and quarters, into which it is divided
where its windows are far apart. Tiles follow from the coordinates alone, so that no result depends on the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..windows import Positions, Windows

TILE = 64  # queries
ROWS = 8  # rows of queries in a tile, and in a block

# The cost model: seconds of a tile apart from its products, of a float32 value that is copied, and of a product.
CALL, COPIED, PRODUCT = 100e-6, 0.8e-9, 0.05e-9


@lru_cache(256)
def order(rows: int, columns: int) -> np.ndarray:
    """Return the queries of a block, as indices in row-major order, sorted by tiles and inside them along a Z-order curve."""
    wide = TILE // min(rows, ROWS)
    row, column = (each.ravel() for each in np.indices((rows, columns)))
    inside = column % wide
    key = column // wide
    for bit in reversed(range(TILE.bit_length())):
        key = (key << 2) | ((row >> bit & 1) << 1) | (inside >> bit & 1)
    return np.argsort(key, kind="stable")


def tile_queries(rows: int) -> int:
    """Return the number of queries of a whole tile in a block of so many rows."""
    return TILE // min(rows, ROWS) * rows


class Lines(NamedTuple):
    """The positions along one axis that the queries of a tile read inside the map.

    Attributes
    ----------
    at
        The positions, in ascending order.
    number
        The index in ``at`` of each tap of each query, (taps, queries); any number for taps outside the map.
    inside
        Whether each tap is inside the map, (taps, queries).
    """

    at: np.ndarray
    number: np.ndarray
    inside: np.ndarray

    @property
    def selection(self) -> slice | np.ndarray:
        """The positions as an index of the map: a slice where there is no gap."""
        first, last = int(self.at[0]), int(self.at[-1])
        return slice(first, last + 1) if last - first + 1 == len(self.at) else self.at


@dataclass(frozen=True, slots=True)
class Tile:
    """Queries of a block, a range in the sorted order, and the rows and columns of the map that they read.

    The positions of the union are numbered row by row.
    """

    queries: slice
    rows: Lines
    columns: Lines

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and columns of the union."""
        return len(self.rows.at), len(self.columns.at)

    @property
    def size(self) -> int:
        """The number of queries."""
        size: int = self.queries.stop - self.queries.start
        return size

    def positions(self) -> np.ndarray:
        """Return the position in the union of each tap, (rows of taps, columns of taps, queries)."""
        found: np.ndarray = self.rows.number[:, None] * len(self.columns.at) + self.columns.number
        return found

    def inside(self) -> np.ndarray:
        """Return whether each tap is inside the map, (rows of taps, columns of taps, queries)."""
        found: np.ndarray = self.rows.inside[:, None] & self.columns.inside
        return found

    def of_map(self, image: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Return a copy (channels, positions) of the union of a map (channels, H2, W2)."""
        rows, columns = self.rows.selection, self.columns.selection
        part = image[:, rows][:, :, columns]
        return part.astype(dtype, order="C").reshape(len(image), -1)

    def add_to_map(self, products: np.ndarray, total: np.ndarray) -> None:
        """Add products (channels, positions) to the union of a map (channels, H2, W2)."""
        rows, columns = self.rows.selection, self.columns.selection
        values = products.reshape(len(products), *self.shape)
        if isinstance(rows, slice) or isinstance(columns, slice):
            total[:, rows, columns] += values
        else:
            total[:, rows[:, None], columns] += values


def tiles(windows: Windows, channels: int, tile: int) -> Iterator[Tile]:
    """Yield the tiles of a block whose queries are sorted: ranges of ``tile`` queries, or parts of these."""
    bounds = _Bounds(windows, channels)
    for begin in range(0, windows.shape[-1], tile):
        for part in bounds.parts(begin, min(begin + tile, windows.shape[-1])):
            yield Tile(part, _lines(windows.rows, part), _lines(windows.columns, part))


class _Bounds:
    """The first and last positions that queries read inside the map, by which tiles are divided."""

    def __init__(self, windows: Windows, channels: int) -> None:
        rows, columns = windows.rows, windows.columns
        some = (rows.begin < rows.end) & (columns.begin < columns.end)
        self._channels, self._some = channels, some
        self._most = windows.shape[:2]
        self._low, self._high = [], []
        for axis in (rows, columns):
            queries = np.arange(len(some))
            last = len(axis.at) - 1
            self._low.append(np.where(some, axis.at[np.minimum(axis.begin, last), queries], np.iinfo(np.int64).max))
            self._high.append(np.where(some, axis.at[np.maximum(axis.end - 1, 0), queries], -1))

    def parts(self, begin: int, end: int) -> Iterator[slice]:
        """Yield ranges of queries from ``begin`` to ``end`` that read something; halves where these take less time."""
        if not self._some[begin:end].any():
            return
        middle = (begin + end) // 2
        if end - begin == 1 or self._seconds(begin, end) <= self._seconds(begin, middle) + self._seconds(middle, end):
            yield slice(begin, end)
            return
        yield from self.parts(begin, middle)
        yield from self.parts(middle, end)

    def _seconds(self, begin: int, end: int) -> float:
        queries, area = end - begin, 1
        for low, high, taps in zip(self._low, self._high, self._most, strict=True):
            extent = int(high[begin:end].max()) - int(low[begin:end].min()) + 1
            if extent <= 0:
                return 0.0
            area *= min(extent, queries * taps)
        return CALL + self._channels * area * (COPIED + PRODUCT * queries)


def _lines(positions: Positions, queries: slice) -> Lines:
    """Return the positions that some queries read along one axis."""
    at = positions.at[:, queries]
    taps = np.arange(len(at))[:, None]
    inside = (taps >= positions.begin[queries]) & (taps < positions.end[queries])
    found = at[inside]
    first = found.min()
    used = np.zeros(int(found.max()) - int(first) + 1, bool)
    used[found - first] = True
    number = np.cumsum(used) - 1
    return Lines(np.flatnonzero(used) + first, number[(at - first).clip(0, len(used) - 1)], inside)
