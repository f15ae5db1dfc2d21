"""Images packed for an engine: only the rows and columns that a block reads, channels within a row, columns adjoining.

The searched image of a lattice falls into phases. With a stride s and a step e between displacements, displacements that differ
by a multiple of s / gcd(s, e) search the same rows of a phase, and the other rows are never read by them. So a phase is packed as
a dense run of every s-th row, and rows between phases are not packed at all. Where the queries are fewer than the distance
between the displacements of a phase, each displacement has its own run. Columns likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..._arguments import Pair
from ..problem import lattice_inside
from .blocks import BATCH, Region, cut, padded
from .lattice import ONE_PIXEL, Lattice, Window, all_meets

MOST_REMEMBERED = 256  # pieces whose geometry is kept for the next call of the same plan
Values = Callable[[np.ndarray], np.ndarray]  # a function of each value of an array


def as_they_are(values: np.ndarray) -> np.ndarray:
    """Return the values themselves."""
    return values


@dataclass(frozen=True, slots=True)
class Phase:
    """Displacement indices ``first + pitch k``, k < count, of a block: query t reads packed index ``base + t + step k`` there.

    Queries and displacement indices are counted from the block's first ones; ``pitch`` and ``step`` are the `PackedAxis`'.
    """

    first: int
    count: int
    base: int


@dataclass(frozen=True, slots=True)
class Samples:
    """Positions ``first + step i`` of one axis; those outside ``[low, high)`` are packed as zeros."""

    first: int
    step: int
    low: int
    high: int

    def moved(self, begin: int) -> Samples:
        """Return the positions from the one of index ``begin`` on."""
        return Samples(self.first + self.step * begin, self.step, self.low, self.high)

    def inside(self, count: int) -> tuple[Pair, slice]:
        """Return which of the first ``count`` indices lie inside, and the slice of their positions."""
        begin, end = lattice_inside(self.first, self.step, count, self.low, self.high)
        if begin == end:
            return (begin, end), slice(0, 0)
        return (begin, end), slice(self.first + self.step * begin, self.first + self.step * (end - 1) + 1, self.step)


@dataclass(frozen=True, slots=True)
class PackedAxis:
    """One axis of a packed searched image: which positions it holds, and where a query finds what it is multiplied with."""

    pitch: int
    step: int
    phases: tuple[Phase, ...]
    runs: tuple[tuple[Pair, Samples], ...]  # packed indices [begin, end) and their positions
    length: int

    def part(self, queries: int, ms: Pair) -> tuple[Phase, ...]:
        """Return the phases of a piece: queries from that one on, displacement indices [begin, end), each counted from there."""
        found = []
        begin, end = ms
        for phase in self.phases:
            k = max(-((phase.first - begin) // self.pitch), 0)
            k_end = min(phase.count, -((phase.first - end) // self.pitch))
            if k < k_end:
                found.append(Phase(phase.first + self.pitch * k - begin, k_end - k, phase.base + queries + self.step * k))
        return tuple(found)


@lru_cache(maxsize=1024)
def packed_axis(lattice: Lattice, first: int, count: int, ms: Pair) -> PackedAxis:
    """Lay out what ``count`` queries from ``first`` on read at displacement indices ``ms``."""
    patch, pitch = ms[1] - ms[0], lattice.pitch
    dense = count >= lattice.advance
    step = lattice.advance if dense else count
    phases, runs, length = [], [], 0
    for residue in range(min(pitch, patch)):
        members = -((residue - patch) // pitch)
        phases.append(Phase(residue, members, length))
        lengths = [count + step * (members - 1)] if dense else [count] * members
        for k, run in enumerate(lengths):
            at = lattice.position(first, ms[0] + residue + pitch * k)
            runs.append(((length, length + run), Samples(at, lattice.stride, lattice.low, lattice.high)))
            length += run
    return PackedAxis(pitch, step, tuple(phases), tuple(runs), length)


def packed_length(lattice: Lattice, count: int, patch: int) -> int:
    """Return the `PackedAxis.length` of so many queries and displacements, without laying it out."""
    if count < lattice.advance:
        return count * patch
    return min(lattice.pitch, patch) * (count - lattice.advance) + lattice.advance * patch


@dataclass(frozen=True, slots=True)
class BlockAxis:
    """One axis of a block: the phases of its displacements, ``pitch`` displacements and ``step`` packed indices apart."""

    pitch: int
    step: int
    phases: tuple[Phase, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """The input of an engine: a region of a volume, and the packed image that it searches.

    ``searched[row, channel, column]`` is packed by ``rows`` and ``columns``; ``counting[m - ms.begin]`` are the rows of queries
    that count at displacement row ``m``, counted from the region's first; ``window`` is what the engine sums over rows.
    """

    region: Region
    rows: BlockAxis
    columns: BlockAxis
    counting: tuple[Pair, ...]
    searched: np.ndarray
    window: Window


@lru_cache(maxsize=1024)
def _counting(lattice: Lattice, rows: Pair, ms: Pair) -> tuple[Pair, ...]:
    """Return the rows that count at each displacement row, counted from the first: alike in all blocks well inside an image."""
    clipped = ((max(low, rows[0]) - rows[0], min(high, rows[1]) - rows[0]) for low, high in all_meets(lattice)[slice(*ms)])
    return tuple((low, max(low, high)) for low, high in clipped)


class Searched:
    """The packed searched image of one region, for all its samples and a range of channels."""

    def __init__(self, vertical: Lattice, horizontal: Lattice, region: Region) -> None:
        self.vertical, self.horizontal, self.region = vertical, horizontal, region
        self._parts: dict[Region, tuple[BlockAxis, BlockAxis, tuple[Pair, ...]]] = {}
        _, rows, columns, _, _ = region.lengths
        self.rows = packed_axis(vertical, region.rows[0], rows, region.ms)
        self.columns = packed_axis(horizontal, region.columns[0], padded(columns), region.ns)

    def shape(self, channels: int) -> tuple[int, int, int, int]:
        """Return the shape of the packed array: samples, rows, channels, columns."""
        return self.region.lengths[BATCH], self.rows.length, channels, self.columns.length

    def packing(self, array: np.ndarray, image: np.ndarray, values: Values = as_they_are) -> Iterator[tuple]:
        """List what `pack` has to do to fill the packed array with a function of the image's values."""
        for sample in range(*self.region.batch):
            target = array[sample - self.region.batch[0]]
            for (row, row_end), rows in self.rows.runs:
                for (column, column_end), columns in self.columns.runs:
                    yield target[row:row_end, :, column:column_end], image[sample], rows, columns, values

    def part(self, array: np.ndarray, region: Region, window: Window = ONE_PIXEL) -> Block:
        """Return the block of a piece of the region."""
        found = self._parts.get(region)
        if found is None:
            found = self._part(region)
            if len(self._parts) < MOST_REMEMBERED:
                self._parts[region] = found
        return Block(region, *found, array[region.batch[0] - self.region.batch[0]], window)

    def _part(self, region: Region) -> tuple[BlockAxis, BlockAxis, tuple[Pair, ...]]:
        whole = self.region
        ms, ns = ((begin - first, end - first) for (begin, end), (first, _) in ((region.ms, whole.ms), (region.ns, whole.ns)))
        rows = BlockAxis(self.rows.pitch, self.rows.step, self.rows.part(region.rows[0] - whole.rows[0], ms))
        columns = BlockAxis(self.columns.pitch, self.columns.step, self.columns.part(region.columns[0] - whole.columns[0], ns))
        return rows, columns, _counting(self.vertical, region.rows, region.ms)


def packed_query(lattices: tuple[Lattice, Lattice], region: Region, array: np.ndarray, image: np.ndarray) -> Iterator[tuple]:
    """List what `pack` has to do to fill the packed image of a region's queries."""
    rows, columns = (
        Samples(lattice.first + lattice.stride * begin, lattice.stride, 0, lattice.size)
        for lattice, (begin, _) in zip(lattices, (region.rows, region.columns), strict=True)
    )
    for sample in range(*region.batch):
        yield array[sample - region.batch[0]], image[sample], rows, columns, as_they_are


def shared(items: list[tuple], tasks: int) -> list[tuple]:
    """Cut packing items by rows into about as many as there are tasks."""
    found = []
    for target, image, rows, columns, values in items:
        for begin, end in cut(0, len(target), max(-(-len(target) * len(items) // tasks), 1)):
            found.append((target[begin:end], image, rows.moved(begin), columns, values))
    return found


def pack(item: tuple[np.ndarray, np.ndarray, Samples, Samples, Values]) -> None:
    """``target[t, c, x] = values(image[c, y(t), x(x)])`` in every row that counts, zero where x is outside."""
    target, image, rows, columns, values = item
    (t, t_end), at_rows = rows.inside(target.shape[0])
    (x, x_end), at_columns = columns.inside(target.shape[2])
    # Engines leave out the rows outside; columns outside are multiplied with the rest of their vector.
    target[t:t_end, :, :x] = 0
    target[t:t_end, :, x_end:] = 0
    target[t:t_end, :, x:x_end] = values(image[:, at_rows, at_columns]).transpose(1, 0, 2)
