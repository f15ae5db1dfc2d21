"""Images packed for an engine: only the rows and columns that a block reads, channels within a row, columns contiguous.

The search image of a lattice falls into phases, as in a polyphase filter. With a stride s and a step e between displacements, the
displacements whose indices differ by a multiple of s / gcd(s, e) search the same rows, every s-th one, and read no other row. So
a phase is packed as one contiguous run of these rows, and rows between phases are not packed. Where the queries are fewer than
the distance between the displacements of a phase, each displacement has a run of its own. The same holds for columns. This module
knows no engine and no thread; it lists rectangles to copy, which threads may share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..._arguments import Pair
from ..._cpu import copy_kernel, workers
from ..problem import lattice_inside
from .blocks import BATCH, Region, padded, split_range
from .lattice import ONE_PIXEL, Lattice, Window, all_valid_queries

PARALLEL_BYTES = 2**22  # bytes from which threads share the zeros of an array
CACHED_REGIONS = 256  # regions whose geometry a plan keeps for its next call
Elementwise = Callable[[np.ndarray], np.ndarray]  # a function of each value of an array


def identity(values: np.ndarray) -> np.ndarray:
    """Return the values unchanged."""
    return values


@dataclass(frozen=True, slots=True)
class Phase:
    """Displacement indices ``first + pitch k``, k < count: at each, query t reads packed index ``base + t + step k``.

    Queries and displacement indices are counted from the first ones of a region; `PackedAxis` and `BlockAxis` have ``pitch`` and
    ``step``.
    """

    first: int
    count: int
    base: int


@dataclass(frozen=True, slots=True)
class Positions:
    """The positions ``first + step i`` of one axis; those outside ``[low, high)`` are packed as zeros."""

    first: int
    step: int
    low: int
    high: int

    def from_index(self, begin: int) -> Positions:
        """Return the positions of index ``begin`` and after."""
        return Positions(self.first + self.step * begin, self.step, self.low, self.high)

    def inside(self, count: int) -> tuple[Pair, slice]:
        """Return the range of the first ``count`` indices whose positions are inside, and the slice of these positions."""
        begin, end = lattice_inside(self.first, self.step, count, self.low, self.high)
        if begin == end:
            return (begin, end), slice(0, 0)
        return (begin, end), slice(self.first + self.step * begin, self.first + self.step * (end - 1) + 1, self.step)


@dataclass(frozen=True, slots=True)
class PackedAxis:
    """One axis of a packed search image: the positions that it holds, and the packed index that each query reads.

    Attributes
    ----------
    pitch, step
        The displacement indices and the packed indices between neighbouring displacements of a phase.
    phases
        The phases of all displacements.
    runs
        Ranges of packed indices, and the positions that each holds.
    length
        The number of packed indices.
    """

    pitch: int
    step: int
    phases: tuple[Phase, ...]
    runs: tuple[tuple[Pair, Positions], ...]
    length: int

    def phases_of(self, query: int, ms: Pair) -> tuple[Phase, ...]:
        """Return the phases of displacement indices ``ms`` for the queries from ``query`` on, both counted from there."""
        found = []
        begin, end = ms
        for phase in self.phases:
            k = max(-((phase.first - begin) // self.pitch), 0)
            k_end = min(phase.count, -((phase.first - end) // self.pitch))
            if k < k_end:
                found.append(Phase(phase.first + self.pitch * k - begin, k_end - k, phase.base + query + self.step * k))
        return tuple(found)


@lru_cache(maxsize=1024)
def packed_axis(lattice: Lattice, first: int, count: int, ms: Pair) -> PackedAxis:
    """Lay out the positions that ``count`` queries from ``first`` on read at displacement indices ``ms``."""
    patch, pitch = ms[1] - ms[0], lattice.pitch
    contiguous = count >= lattice.advance
    step = lattice.advance if contiguous else count
    phases, runs, length = [], [], 0
    for residue in range(min(pitch, patch)):
        members = -((residue - patch) // pitch)
        phases.append(Phase(residue, members, length))
        lengths = [count + step * (members - 1)] if contiguous else [count] * members
        for k, run in enumerate(lengths):
            at = lattice.search_position(first, ms[0] + residue + pitch * k)
            runs.append(((length, length + run), Positions(at, lattice.stride, lattice.low, lattice.high)))
            length += run
    return PackedAxis(pitch, step, tuple(phases), tuple(runs), length)


def packed_length(lattice: Lattice, count: int, patch: int) -> int:
    """Return the `PackedAxis.length` of ``count`` queries and ``patch`` displacements, without laying it out."""
    if count < lattice.advance:
        return count * patch
    return min(lattice.pitch, patch) * (count - lattice.advance) + lattice.advance * patch


def run_count(lattice: Lattice, count: int, patch: int) -> int:
    """Return the number of `PackedAxis.runs` of ``count`` queries and ``patch`` displacements, without laying them out."""
    return min(lattice.pitch, patch) if count >= lattice.advance else patch


@dataclass(frozen=True, slots=True)
class BlockAxis:
    """One axis of a block: its phases, and the displacement and packed indices between neighbours of a phase."""

    pitch: int
    step: int
    phases: tuple[Phase, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """The input of an engine: a region of a volume and the packed search image.

    Attributes
    ----------
    region
        The queries and displacements to compute.
    rows, columns
        The layout of ``search``.
    valid_rows
        For each displacement row of the region, the range of query rows that are valid pairs with it, counted from the region's
        first row.
    search
        The packed search image of one sample, ``(rows, channels, columns)``.
    window
        The window over rows that the engine sums.
    """

    region: Region
    rows: BlockAxis
    columns: BlockAxis
    valid_rows: tuple[Pair, ...]
    search: np.ndarray
    window: Window


@lru_cache(maxsize=1024)
def _valid_rows(lattice: Lattice, rows: Pair, ms: Pair) -> tuple[Pair, ...]:
    """Return `Block.valid_rows`. Blocks inside the image have equal ones, so that they share an engine's tables."""
    all_rows = all_valid_queries(lattice)[slice(*ms)]
    clipped = ((max(low, rows[0]) - rows[0], min(high, rows[1]) - rows[0]) for low, high in all_rows)
    return tuple((low, max(low, high)) for low, high in clipped)


class Rectangle(NamedTuple):
    """A rectangle to pack: ``target[t, c, x] = function(image[c, y(t), x(x)])``, zero where a position is outside."""

    target: np.ndarray
    image: np.ndarray
    rows: Positions
    columns: Positions
    function: Elementwise


class PackedSearch:
    """The layout of the packed search image of a region, for all its samples and any range of channels."""

    def __init__(self, vertical: Lattice, horizontal: Lattice, region: Region) -> None:
        self.vertical, self.horizontal, self.region = vertical, horizontal, region
        self._layouts: dict[Region, tuple[BlockAxis, BlockAxis, tuple[Pair, ...]]] = {}
        _, rows, columns, _, _ = region.lengths
        self.rows = packed_axis(vertical, region.rows[0], rows, region.ms)
        self.columns = packed_axis(horizontal, region.columns[0], padded(columns), region.ns)

    def shape(self, channels: int) -> tuple[int, int, int, int]:
        """Return the shape of the packed array: samples, rows, channels, columns."""
        return self.region.lengths[BATCH], self.rows.length, channels, self.columns.length

    def rectangles(self, array: np.ndarray, image: np.ndarray, function: Elementwise = identity) -> Iterator[Rectangle]:
        """Yield the rectangles that fill the packed array with a function of the image's values."""
        for sample in range(*self.region.batch):
            target = array[sample - self.region.batch[0]]
            for (row, row_end), rows in self.rows.runs:
                for (column, column_end), columns in self.columns.runs:
                    yield Rectangle(target[row:row_end, :, column:column_end], image[sample], rows, columns, function)

    def block(self, array: np.ndarray, region: Region, window: Window = ONE_PIXEL) -> Block:
        """Return the block of a region inside this one, of a single sample."""
        layout = self._layouts.get(region)
        if layout is None:
            layout = self._layout(region)
            if len(self._layouts) < CACHED_REGIONS:
                self._layouts[region] = layout
        return Block(region, *layout, array[region.batch[0] - self.region.batch[0]], window)

    def _layout(self, region: Region) -> tuple[BlockAxis, BlockAxis, tuple[Pair, ...]]:
        whole = self.region
        ms, ns = ((begin - first, end - first) for (begin, end), (first, _) in ((region.ms, whole.ms), (region.ns, whole.ns)))
        row_phases = self.rows.phases_of(region.rows[0] - whole.rows[0], ms)
        column_phases = self.columns.phases_of(region.columns[0] - whole.columns[0], ns)
        rows = BlockAxis(self.rows.pitch, self.rows.step, row_phases)
        columns = BlockAxis(self.columns.pitch, self.columns.step, column_phases)
        return rows, columns, _valid_rows(self.vertical, region.rows, region.ms)


def query_rectangles(
    lattices: tuple[Lattice, Lattice], region: Region, array: np.ndarray, image: np.ndarray
) -> Iterator[Rectangle]:
    """Yield the rectangles that fill the packed query image of a region."""
    rows, columns = (
        Positions(lattice.first + lattice.stride * begin, lattice.stride, 0, lattice.size)
        for lattice, (begin, _) in zip(lattices, (region.rows, region.columns), strict=True)
    )
    for sample in range(*region.batch):
        yield Rectangle(array[sample - region.batch[0]], image[sample], rows, columns, identity)


def split_rectangles(rectangles: list[Rectangle], tasks: int) -> list[Rectangle]:
    """Split rectangles by rows into about ``tasks`` rectangles."""
    found = []
    for target, image, rows, columns, function in rectangles:
        for begin, end in split_range(0, len(target), max(-(-len(target) * len(rectangles) // tasks), 1)):
            found.append(Rectangle(target[begin:end], image, rows.from_index(begin), columns, function))
    return found


def pack(rectangle: Rectangle, *, compiled: bool) -> None:
    """Fill a rectangle, except its rows outside the image: engines compute valid rows only, but whole vectors of columns."""
    target, image, rows, columns, function = rectangle
    (t, t_end), at_rows = rows.inside(target.shape[0])
    (x, x_end), at_columns = columns.inside(target.shape[2])
    source, target = image[:, at_rows, at_columns].transpose(1, 0, 2), target[t:t_end]
    if compiled and function is identity and copy_kernel.takes(source, target):
        copy_kernel.copy(source, target, x, x_end)
        return
    target[:, :, :x] = 0
    target[:, :, x_end:] = 0
    target[:, :, x:x_end] = function(source)


def copy(source: np.ndarray, target: np.ndarray, *, compiled: bool) -> None:
    """Copy an array and convert its values, by a kernel if kernels are compiled and one can."""
    if compiled and copy_kernel.takes(source, target):
        copy_kernel.copy(source, target)
    else:
        np.copyto(target, source, casting="unsafe")


def fill_with_zeros(array: np.ndarray, threads: int) -> None:
    """Fill an array with zeros; threads share a large one, because mapping the pages of new memory takes longer than filling."""
    if threads == 1 or array.nbytes < PARALLEL_BYTES:
        array.fill(0)
        return
    axis = 0 if array.shape[0] >= threads else 1
    parts = (
        np.moveaxis(array, axis, 0)[slice(*each)] for each in split_range(0, array.shape[axis], -(-array.shape[axis] // threads))
    )
    workers.run(lambda part: part.fill(0), parts, threads)


def zero_outside(values: np.ndarray, kept: Pair, columns: Pair) -> None:
    """Set to zero the columns outside ``kept``; ``columns`` is the range of columns that the last axis holds.

    Pixels outside an image are packed as zeros. Their products are zero only if the other factor is finite: 0 Inf is NaN.
    """
    begin, end = columns
    if kept[0] > begin:
        values[..., : kept[0] - begin] = 0
    if kept[1] < end:
        values[..., max(kept[1] - begin, 0) : end - begin] = 0
