"""Where windows begin and which displacements are searched, in whole pixels.

All numbers are plain ints or NumPy arrays, also where the frames are on a GPU. Axis 0 is vertical, axis 1 horizontal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np

from .._arguments import Pair
from .._correlation.problem import lattice_inside


@dataclass(frozen=True, slots=True)
class Search:
    """A search range: along each axis, the displacements from ``low`` to ``low + tried - 1``."""

    low: Pair
    tried: Pair

    @property
    def count(self) -> int:
        """The number of displacements."""
        return self.tried[0] * self.tried[1]

    @property
    def high(self) -> Pair:
        """The largest displacement along each axis."""
        return self.low[0] + self.tried[0] - 1, self.low[1] + self.tried[1] - 1

    def reversed(self) -> Search:
        """Return the search range of the way back: each displacement with the other sign."""
        return Search((-self.high[0], -self.high[1]), self.tried)

    def slabs(self, rows: int, columns: int) -> Iterator[tuple[Pair, Search]]:
        """Divide the range into parts of at most ``rows`` x ``columns``; yields the first index and the part."""
        for m in range(0, self.tried[0], rows):
            for n in range(0, self.tried[1], columns):
                tried = min(rows, self.tried[0] - m), min(columns, self.tried[1] - n)
                yield (m, n), Search((self.low[0] + m, self.low[1] + n), tried)


@lru_cache(maxsize=32)
def order_by_length(search: Search) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the displacements from the shortest to the longest, and the rank of each index in that order.

    Displacements of equal Euclidean length stay in (dy, dx) order. The ranks are int32, which takes less time to search.
    """
    dy = np.arange(search.low[0], search.low[0] + search.tried[0])
    dx = np.arange(search.low[1], search.low[1] + search.tried[1])
    order = np.argsort((dy[:, None] ** 2 + dx**2).ravel(), kind="stable")
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return order, rank


@dataclass(frozen=True, slots=True)
class Lattice:
    """Windows at equal distances: window ``i`` along an axis begins at pixel ``first + step i``, ``i < counts``."""

    first: Pair
    step: Pair
    counts: Pair

    @property
    def count(self) -> int:
        """The number of windows."""
        return self.counts[0] * self.counts[1]

    @property
    def shape(self) -> Pair:
        """The shape of a field of the windows."""
        return self.counts

    def part(self, rows: slice, columns: slice) -> Lattice:
        """Return the windows of the given ranges of indices."""
        begin = rows.start, columns.start
        first = self.first[0] + self.step[0] * begin[0], self.first[1] + self.step[1] * begin[1]
        return replace(self, first=first, counts=(rows.stop - begin[0], columns.stop - begin[1]))

    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the first row of each row of windows, and the first column of each column."""
        tops, lefts = (f + s * np.arange(n) for f, s, n in zip(self.first, self.step, self.counts, strict=True))
        return tops, lefts

    def one_by_one(self) -> SingleWindows:
        """Return every window by itself, row by row."""
        tops, lefts = self.axes()
        tops, lefts = np.repeat(tops, self.counts[1]), np.tile(lefts, self.counts[0])
        return SingleWindows(tops, lefts, tops, lefts)


def split_at_border(lattice: Lattice, window: Pair, search: Search, shape: Pair) -> list[tuple[slice, slice]]:
    """Divide the windows into those that stay inside a frame of this shape at every displacement, and those along its borders.

    Returns up to five pairs of ranges of rows and columns of windows.
    """
    inside, cuts = [], []
    for axis in (0, 1):
        low, high, count = search.low[axis], search.high[axis], lattice.counts[axis]
        begin, end = lattice_inside(lattice.first[axis], lattice.step[axis], count, -low, shape[axis] - window[axis] - high + 1)
        inside.append(slice(begin, end))
        cuts.append([slice(*each) for each in pairwise(sorted({0, begin, end, count}))])
    every = [slice(0, lattice.counts[1])]
    return [(rows, columns) for rows in cuts[0] for columns in (cuts[1] if rows == inside[0] else every)]


def candidates(lattice: Lattice, window: Pair, search: Search, shape: Pair) -> Search:
    """Return the part of a search range that leaves at least half of some window inside a frame of this shape, on each axis.

    Where there is none, it is one displacement.
    """
    low, tried = [], []
    for axis in (0, 1):
        first = lattice.first[axis]
        last = first + lattice.step[axis] * (lattice.counts[axis] - 1)
        half = -(-window[axis] // 2)
        least = min(max(search.low[axis], half - window[axis] - last), search.high[axis])
        most = max(min(search.high[axis], shape[axis] - half - first), least)
        low.append(least)
        tried.append(most - least + 1)
    return Search((low[0], low[1]), (tried[0], tried[1]))


@dataclass(frozen=True, slots=True)
class SingleWindows:
    """Windows that begin anywhere: int64 arrays (N,) of the first row and column in each frame at displacement 0.

    They are different in the two frames where a window has a displacement to start from.
    """

    tops1: np.ndarray
    lefts1: np.ndarray
    tops2: np.ndarray
    lefts2: np.ndarray

    @property
    def count(self) -> int:
        """The number of windows."""
        return len(self.tops1)

    @property
    def shape(self) -> tuple[int]:
        """The shape of a field of the windows."""
        return (self.count,)

    def displaced(self, dy: np.ndarray, dx: np.ndarray) -> SingleWindows:
        """Return the windows with a displacement to start from."""
        return replace(self, tops2=self.tops2 + dy, lefts2=self.lefts2 + dx)

    def part(self, indices: slice | np.ndarray) -> SingleWindows:
        """Return some of the windows."""
        return SingleWindows(self.tops1[indices], self.lefts1[indices], self.tops2[indices], self.lefts2[indices])


Windows = Lattice | SingleWindows


def steps_of(count: int, most: int) -> Iterator[slice]:
    """Divide ``range(count)`` into slices of at most ``most``."""
    for begin in range(0, count, most):
        yield slice(begin, min(begin + most, count))


def shifted(indices: slice, by: int) -> slice:
    """Return a range of indices counted from another origin."""
    return slice(indices.start + by, indices.stop + by)


# Parts of frames and of fields --------------------------------------------------------------------------------------------------

Rectangle = tuple[Pair, Pair]  # the rows [begin, end) and the columns [begin, end)


def pixels_read(
    windows: Windows, window: Pair, search: Search, way_back: bool, shape1: Pair, shape2: Pair
) -> tuple[Rectangle, Rectangle]:
    """Return the rectangles of frames of these shapes that are read for some windows. Each has at least one pixel.

    ``way_back`` says that displaced windows are matched back; one without a match, from where its search starts.
    """
    if not windows.count:
        return ((0, 1), (0, 1)), ((0, 1), (0, 1))
    low, high = np.array(search.low), np.array(search.high)
    low1, high1 = (np.minimum(low, 0) - high, np.maximum(high, 0) - low) if way_back else (0 * low, 0 * high)
    low2, high2 = (np.minimum(low, 0), np.maximum(high, 0)) if way_back else (low, high)
    (first1, last1), (first2, last2) = _extents(windows)
    return (
        _within(first1 + low1, last1 + high1 + window, shape1),
        _within(first2 + low2, last2 + high2 + window, shape2),
    )


def _extents(windows: Windows) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return for each frame the smallest and the largest first pixels of windows at displacement 0, (2,) each."""
    if isinstance(windows, Lattice):
        first = np.array(windows.first)
        extent = first, first + np.array(windows.step) * (np.array(windows.counts) - 1)
        return extent, extent
    frame1, frame2 = (windows.tops1, windows.lefts1), (windows.tops2, windows.lefts2)
    return _extent(frame1), _extent(frame2)


def _extent(axes: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([each.min() for each in axes]), np.array([each.max() for each in axes])


def _within(begin: np.ndarray, end: np.ndarray, shape: Pair) -> Rectangle:
    """Return the part of a rectangle that is inside a frame, or the pixel nearest to it where none is."""
    size = np.array(shape)
    begin = begin.clip(0, size - 1)
    end = np.maximum(end.clip(0, size), begin + 1)
    (top, left), (bottom, right) = begin.tolist(), end.tolist()
    return (top, bottom), (left, right)


def divided(first: int, step: int, count: int, chunks: Sequence[int], least: int) -> list[slice]:
    """Divide windows along an axis as the frame's pixels are divided into chunks of these lengths.

    A window belongs to the chunk with its first pixel. Chunks are joined until the first pixels of their windows are at least
    ``least`` pixels apart, since every part reads the pixels around it, too.
    """
    ends = [lattice_inside(first, step, count, 0, end)[1] for end in accumulate(chunks)]
    parts, begin = [], 0
    for end in ends:
        if (end - begin) * step >= least:
            parts.append(slice(begin, end))
            begin = end
    if begin < count:
        rest = slice(parts.pop().start if parts else 0, count)
        parts.append(rest)
    return parts
