"""The geometry of row groups, of the outputs or of one gradient, and how they are divided.

The result is divided into parts, whose packed search rows fit into the workspace, a part into row groups, and a row group into
chunks of columns, whose packed rows fit into a cache. A task computes one chunk of one group. The division follows from the
problem alone, and no sum depends on it.
"""

from __future__ import annotations

from ..._arguments import Pair
from ..._cpu.llvm import LINE, registers
from ..._sharing import CachedProperty
from ..problem import Axis, Problem
from .blocks import split_range
from .costs import COPIED, CYCLE, GROUP_CYCLES
from .row_kernel import TileShape
from .row_tiles import forward_tiles, gradient_tiles

SCRATCH_BYTES = 2**19  # what a task may pack and sum: a fraction of a second-level cache
FEWEST_TASKS, FEWEST_COLUMNS = 16, 32  # columns are divided until there are so many tasks, or so few columns in a chunk
RUN_BYTES = 2**11  # neighbouring bytes of a channel that packing reads at once

Part = tuple[Pair, Pair]  # ranges of samples and of rows


def positions_of_outputs(axis: Axis) -> Pair:
    """Return the range of positions of input1 that are those of outputs."""
    return max(-axis.padding, 0), min(axis.size1, axis.out - axis.padding)


def _first_displacement(axis: Axis, which: int | None) -> int:
    """Return the smallest displacement of a side: those of the gradient of input2 have the other sign."""
    return -axis.displacements[-1] if which == 1 else axis.first_displacement


class Side:
    """The geometry of the outputs, or of one gradient: its rows, and the rows of the search image that they read.

    Row r reads at displacement row m the search row ``r + shift_y + step_y m``, and likewise for columns. Displacements of the
    gradient of input2 are those of the operator in reverse, with the other sign.

    Parameters
    ----------
    problem
        The problem.
    which
        0 for the gradient of input1, 1 for that of input2, None for the outputs.
    itemsize
        Bytes of a sum.
    most_bytes
        The most bytes of packed rows of the search image.
    """

    def __init__(self, problem: Problem, which: int | None, itemsize: int, most_bytes: int) -> None:
        self.problem, self.which, self.itemsize, self.most_bytes = problem, which, itemsize, most_bytes
        self.lanes = registers().widths[0] // itemsize
        vertical, horizontal = problem.vertical, problem.horizontal
        self.step_y, self.patch_y, self.displacement_y = vertical.step, vertical.patch, _first_displacement(vertical, which)
        self.step_x, self.patch_x, self.displacement_x = horizontal.step, horizontal.patch, _first_displacement(horizontal, which)
        before = (vertical.padding, horizontal.padding) if which is None else (0, 0)
        self.shift_y, self.shift_x = self.displacement_y - before[0], self.displacement_x - before[1]
        self.rows, self.columns = problem.out_shape[3:] if which is None else (problem.size1, problem.size2)[which]
        self.search_rows, self.search_columns = problem.size1 if which == 1 else problem.size2
        sums = self.patch_x if which is None else problem.channels
        tiles = forward_tiles if which is None else gradient_tiles
        self.tiles = tiles(sums, self.rows, self.step_y, self.patch_y)
        self.shape = TileShape(self.tiles.rows, tuple(dict.fromkeys(self.tiles.widths)))

    # Columns --------------------------------------------------------------------------------------------------------

    @CachedProperty
    def chunk(self) -> int:
        """The columns of a chunk."""
        of_column = self.tiles.rows * (self.packed_planes + self._sums) * self.itemsize
        most = max(SCRATCH_BYTES // of_column // self.lanes, 1) * self.lanes
        chunk = min(self.covered(self.columns), most)
        while chunk > FEWEST_COLUMNS and self.problem.batch * self.groups(self.rows) * -(-self.columns // chunk) < FEWEST_TASKS:
            chunk = self.covered(chunk // 2)
        return chunk

    @property
    def packed_planes(self) -> int:
        """The packed rows of one row of a group: channels of input1, or displacements of the cotangent."""
        return self.problem.channels if self.which is None else (self.patch_y + self.tiles.rows - 1) * self.patch_x

    @property
    def chunks(self) -> int:
        """The number of chunks."""
        return -(-self.columns // self.chunk)

    def covered(self, columns: int) -> int:
        """Return the columns that the vectors of some columns cover."""
        return -(-columns // self.lanes) * self.lanes

    @CachedProperty
    def scratch_width(self) -> int:
        """The columns of a packed row of a task."""
        return self.covered(min(self.chunk, self.columns))

    @CachedProperty
    def scratch_plane(self) -> int:
        """The elements from one packed plane of a task to the next: an odd number of cache lines, for few planes in each set."""
        lines = -(-self.tiles.rows * self.scratch_width * self.itemsize // LINE)
        return (lines | 1) * LINE // self.itemsize

    @property
    def sums_plane(self) -> int:
        """The elements from the sums of one displacement (or channel) to those of the next: whole cache lines."""
        return -(-self.scratch_width * self.itemsize // LINE) * LINE // self.itemsize

    @property
    def scratch_bytes(self) -> int:
        """The bytes of the packed planes of a task, and of its sums."""
        sums = self.tiles.rows * self._sums * self.sums_plane
        return (self.packed_planes * self.scratch_plane + sums) * self.itemsize

    @property
    def _sums(self) -> int:
        """The sums of one row of a group at a column."""
        return self.patch_x if self.which is None else self.problem.channels

    @CachedProperty
    def packed_width(self) -> int:
        """The columns of a packed row of the search image."""
        begin = (self.chunks - 1) * self.chunk
        return begin + self.covered(self.columns - begin) + self.step_x * (self.patch_x - 1)

    # Rows -----------------------------------------------------------------------------------------------------------

    def groups(self, rows: int) -> int:
        """Return the number of groups of some rows; the last ones may have no row."""
        return min(-(-rows // (self.tiles.rows * self.step_y)) * self.step_y, rows)

    def searched(self, rows: Pair) -> Pair:
        """Return the range of rows of the search image that a range of rows reads."""
        begin, end = rows[0] + self.shift_y, rows[1] + self.shift_y + self.step_y * (self.patch_y - 1)
        first = min(max(begin, 0), self.search_rows)
        return first, max(min(end, self.search_rows), first)

    @property
    def searched_columns(self) -> Pair:
        """The range of columns of the search image that have a product: those of a crop have none."""
        return positions_of_outputs(self.problem.horizontal) if self.which == 1 else (0, self.search_columns)

    def packed_bytes(self, rows: int) -> int:
        """Return the bytes of the search rows that some rows read, wherever they are."""
        searched = min(rows + self.step_y * (self.patch_y - 1), self.search_rows)
        return searched * self.problem.channels * self.packed_width * self.itemsize

    def packed_at_once(self, samples: int, rows: int) -> int:
        """Return how many of some search rows a task packs: enough for long runs of memory, and few enough for several tasks."""
        long_enough = -(-RUN_BYTES // (self.search_columns * self.itemsize))
        return max(min(long_enough, samples * rows // FEWEST_TASKS), 1)

    @property
    def fits(self) -> bool:
        """True if rows of the smallest part, and of a task, fit into their memory."""
        least = self.tiles.rows * self.step_y
        return self.packed_bytes(min(least, self.rows)) <= self.most_bytes and self.scratch_bytes <= 2 * SCRATCH_BYTES

    @CachedProperty
    def parts(self) -> list[Part]:
        """The ranges of samples and of rows that are computed at once: their search rows fit into the memory."""
        of_sample = self.packed_bytes(self.rows)
        if of_sample <= self.most_bytes:
            most = max(self.most_bytes // of_sample, 1)
            count = -(-self.problem.batch // -(-self.problem.batch // most))
            return [(samples, (0, self.rows)) for samples in split_range(0, self.problem.batch, count)]
        least = rows = self.tiles.rows * self.step_y
        while self.packed_bytes(rows + least) <= self.most_bytes:
            rows += least
        bands = split_range(0, self.rows, rows)
        return [(sample, band) for sample in split_range(0, self.problem.batch, 1) for band in bands]

    # Estimate -------------------------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """The estimated seconds in one thread."""
        problem, count = self.problem, self.covered(self.columns) // self.lanes
        terms = problem.channels if self.which is None else self.patch_x
        cycles = count * terms * self.tiles.cycles + self.rows * self.patch_y * GROUP_CYCLES
        packed_bytes = self.packed_bytes(self.rows) + self.groups(self.rows) * self.chunks * self.scratch_bytes
        return problem.batch * (cycles * CYCLE + packed_bytes / 4 * COPIED)
