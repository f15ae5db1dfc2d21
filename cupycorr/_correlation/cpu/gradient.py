"""The gradient of one image on the CPU: the plan of its blocks and tasks, and their execution.

With the image as the query image, its gradient is a sum over lattices: one for each tap of a window that is computed tap by tap,
and for input2 one for each phase of displacements. With a single tap each pixel belongs to at most one lattice, and every task
writes pixels that no other task writes. Otherwise the lattices are computed one after the other and added. Nothing is summed over
channels, so that blocks hold as many channels as fit. Products are summed by an `Engine`, which this module knows by its
interface only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..._arguments import Pair
from ..._cpu import workers
from ..._cpu.llvm import in_elements
from ..._sharing import CachedProperty
from ..problem import Problem
from . import block_plan, cotangent_kernel
from .block_plan import TASK_ORDER, BlockPlan
from .blocks import (
    BATCH,
    CHANNELS,
    COLUMNS,
    LANES,
    MS,
    NS,
    ROWS,
    Order,
    Region,
    grid_size,
    halve_at_least_cost,
    halve_in_order,
    intersection,
    padded,
    split_range,
)
from .costs import BLOCK, COPIED, COPY, COPY_CALL, ELEMENT, LOOP, NUMPY_CALL, TASK
from .engine import Engine, Team
from .lattice import NO_BOUNDS, AxisPlan, Lattice, Window, all_valid_queries, valid_bounds
from .packing import (
    Elementwise,
    PackedSearch,
    copy,
    fill_with_zeros,
    identity,
    pack,
    packed_length,
    run_count,
    split_rectangles,
    zero_outside,
)
from .window_sums import transpose_costs, window_transpose

_BLOCK_ORDER: Order = ((BATCH, 1), (CHANNELS, 1), (ROWS, 1), (COLUMNS, LANES), (MS, 1), (NS, 1))
_WINDOW_ORDER: Order = ((MS, 1), (NS, 1), (ROWS, 1), (COLUMNS, LANES))
_PIXEL_ORDER: Order = tuple((index, minimum) for index, minimum in TASK_ORDER if index not in (MS, NS))


@dataclass(frozen=True, slots=True)
class Pixels:
    """A box of a gradient: half-open ranges of samples, channels and rows."""

    batch: Pair
    channels: Pair
    rows: Pair


class GradientPlan(BlockPlan):
    """The plan of the gradient of one image, which is the query image here.

    Parameters
    ----------
    engine, problem, dtype, result_dtype, axes, transposed
        See `BlockPlan`.
    side
        0 for the gradient of input1, 1 for that of input2.
    """

    def __init__(
        self,
        engine: Engine,
        problem: Problem,
        dtype: np.dtype,
        result_dtype: np.dtype,
        axes: tuple[AxisPlan, AxisPlan],
        transposed: bool,
        side: int,
    ) -> None:
        super().__init__(engine, problem, dtype, result_dtype, axes, transposed)
        self.lattices = tuple(list(_valid_lattices(axis, side)) for axis in axes)
        self.shape = problem.shape2 if side else problem.shape1
        self.adds = len(axes[0].taps) * len(axes[1].taps) > 1  # True if a pixel is a sum over several blocks
        if self.computes:
            self.largest = max(self.lattices[0], key=_pair_bound), max(self.lattices[1], key=_pair_bound)
            if self._divide_into_blocks() and not self.adds:
                self.adds = True
                self._divide_into_blocks()

    @property
    def computes(self) -> bool:
        """True if any pixel's gradient is a sum of products."""
        return min(map(len, self.lattices)) > 0 and min(self.shape) > 0

    @property
    def covers(self) -> bool:
        """True if it is known that tasks write every pixel."""
        return self.computes and not self.adds and all(map(_covers_every_pixel, self.lattices))

    @property
    def uses_window_sums(self) -> bool:
        """True if cotangents are summed over windows before they are multiplied."""
        return max(window.taps for window in self.windows) > 1

    @property
    def copies_cotangent(self) -> bool:
        """True if a kernel can write the cotangent of the one-pixel volume where the engine reads it."""
        return self.engine.compiles and all(map(cotangent_kernel.takes, self.windows))

    def pixels(self) -> list[Pixels]:
        """Divide the gradient into boxes whose sums fit the workspace, unless the result can hold the sums."""
        everything = self._all_pixels
        if self._sums_in_result:
            return [everything]
        batch = split_range(*everything.batch, 1)
        channels = split_range(*everything.channels, self._pixel_channels)
        rows = split_range(*everything.rows, self._pixel_rows)
        return [Pixels(*each) for each in product(batch, channels, rows)]

    def regions(self, vertical: Lattice, horizontal: Lattice, pixels: Pixels) -> Iterator[tuple[Region, Pair]]:
        """Yield the blocks of a lattice's queries among some pixels: a region and a range of channels each."""
        whole = self._valid_region(vertical, horizontal, pixels)
        if min(whole.lengths) < 1:
            return
        for channels in split_range(*pixels.channels, self.block_lengths[CHANNELS]):
            for region in whole.split(self.block_lengths[:CHANNELS]):
                yield region, channels

    def tasks(self, region: Region, horizontal: Lattice) -> tuple[list[Region], tuple[int, ...]]:
        """Divide a block into tasks; return these, and the lengths of the regions that a task computes one after the other.

        A task has all displacements of the block, so that it alone adds to its pixels.
        """
        lengths = self._task_lengths(region.lengths, horizontal.skew, self._tasks_of_block)
        return region.split((*lengths[:MS], *region.lengths[MS:])), lengths

    def most_threads(self, region: Region, horizontal: Lattice) -> int:
        """Return how many threads may compute a block's tasks at once within the workspace."""
        lengths = self._task_lengths(region.lengths, horizontal.skew, self._tasks_of_block)
        return block_plan.threads_within_workspace(self._task_bytes(lengths, horizontal.skew))

    # Blocks and tasks -------------------------------------------------------------------------------------------------

    def _divide_into_blocks(self) -> bool:
        """Find the lengths of blocks; return whether displacements were divided, which makes a pixel a sum of several blocks."""
        lengths = (*self._queries().lengths, self._pixel_channels)
        self.block_lengths = halve_at_least_cost(
            lengths, self._packed_bytes, self._packed_limit, self._elements_moved, _BLOCK_ORDER
        )
        return self.block_lengths[MS : NS + 1] != lengths[MS : NS + 1]

    @property
    def _all_pixels(self) -> Pixels:
        batch, channels, height, _ = self.shape
        return Pixels((0, batch), (0, channels), (0, height))

    @property
    def _sums_in_result(self) -> bool:
        """True if sums need no memory beside the result: each is written once, or the result holds them exactly."""
        return not self.adds or self.result_dtype == self.dtype

    @property
    def _packed_limit(self) -> int:
        """The most bytes of a block's packed image, which shares its memory with sums that the result cannot hold."""
        return block_plan.PACKED_BYTES if self._sums_in_result else block_plan.PACKED_BYTES // 2

    @property
    def _pixel_channels(self) -> int:
        """The number of channels whose sums are in memory at once."""
        _, channels, height, width = self.shape
        if self._sums_in_result:
            return channels
        return min(max(self._packed_limit // (height * width * self.dtype.itemsize), 1), channels)

    @property
    def _pixel_rows(self) -> int:
        """The number of rows whose sums are in memory at once."""
        _, _, height, width = self.shape
        return min(max(self._packed_limit // (self._pixel_channels * width * self.dtype.itemsize), 1), height)

    @property
    def _typical(self) -> tuple[Lattice, Lattice]:
        return self.largest

    def _queries(self) -> Region:
        return self._valid_region(*self.largest, self._all_pixels)

    def _valid_region(self, vertical: Lattice, horizontal: Lattice, pixels: Pixels) -> Region:
        """Return the queries among some pixels, and the displacements, that contain all valid pairs of a lattice."""
        (rows, ms), (columns, ns) = valid_bounds(vertical), valid_bounds(horizontal)
        return Region(pixels.batch, intersection(rows, vertical.queries_inside(*pixels.rows)), columns, ms, ns)

    def _packed_bytes(self, lengths: Sequence[int]) -> int:
        return lengths[BATCH] * lengths[CHANNELS] * self._packed_search_area(lengths) * self.dtype.itemsize

    def _elements_moved(self, lengths: Sequence[int]) -> float:
        """Return the cost of a block in elements: its packed image, cotangent and sums, and its overhead."""
        batch, rows, columns, ms, ns, channels = lengths
        sums = rows * columns * (channels + ms * ns)
        return batch * (channels * self._packed_search_area(lengths) + sums) + BLOCK / ELEMENT

    def _task_bytes(self, lengths: Sequence[int], skew: int) -> int:
        """Return the bytes of the packed cotangent and the sums of a task's region."""
        _, rows, columns, ms, ns = lengths
        cotangent = ms * ns * rows * (padded(columns) + skew * (ns - 1))
        return (cotangent + rows * self.block_lengths[CHANNELS] * padded(columns)) * self.dtype.itemsize

    @CachedProperty
    def _tasks_of_block(self) -> int:
        """The least number of tasks that a block is divided into."""
        lengths = (*self._queries().lengths, self.shape[1])
        blocks = len(self.lattices[0]) * len(self.lattices[1]) * grid_size(lengths, self.block_lengths)
        return -(-self.team.tasks // blocks)

    def _divide_into_tasks(self, lengths: tuple[int, ...], skew: int, tasks: int) -> tuple[int, ...]:
        def size(lengths: Sequence[int]) -> int:
            return self._task_bytes(lengths, skew)

        one_sample, limit = (1, *lengths[1:]), block_plan.TASK_BYTES
        if self.uses_window_sums:
            return halve_at_least_cost(one_sample, size, limit, self._region_seconds, _WINDOW_ORDER)
        small = halve_in_order(one_sample, size, limit, TASK_ORDER)
        return halve_in_order(small, lambda box: -grid_size(lengths[:MS], box[:MS]), -tasks, _PIXEL_ORDER)

    # Estimates --------------------------------------------------------------------------------------------------------

    @CachedProperty
    def team(self) -> Team:
        """The threads and tasks that the estimated time is worth.

        Window sums by NumPy are many short calls, for which threads would wait for each other's interpreter lock.
        """
        return super().team if self.copies_cotangent or not self.uses_window_sums else Team(1, 1)

    def _seconds(self) -> float:
        batch, channels, height, width = self.shape
        zeroing = batch * channels * height * width * ELEMENT
        if not self.computes:
            return NUMPY_CALL + zeroing
        lattices = len(self.lattices[0]) * len(self.lattices[1])
        block = self.block_lengths
        region = self._task_lengths(block[:CHANNELS], self.largest[1].skew, 1)
        blocks = grid_size((*self._queries().lengths, channels), block)
        of_block = BLOCK + self._packing_seconds() + grid_size(block[:CHANNELS], region) * self._region_seconds(region)
        return (0 if self.covers else zeroing) + lattices * blocks * of_block

    def _packing_seconds(self) -> float:
        """Estimate the seconds of packing the search image of a block."""
        batch, rows, columns, ms, ns, channels = self.block_lengths
        vertical, horizontal = self.largest
        row_runs, column_runs = run_count(vertical, rows, ms), run_count(horizontal, padded(columns), ns)
        loops = packed_length(vertical, rows, ms) * column_runs
        elements = self._packed_search_area(self.block_lengths)
        return batch * (row_runs * column_runs * COPY + channels * (loops * LOOP + elements * ELEMENT))

    def _region_seconds(self, lengths: Sequence[int]) -> float:
        """Estimate the seconds of one region of a task: cotangent, products, and a share of storing the sums."""
        _, rows, columns, ms, ns = lengths
        channels, skew = self.block_lengths[CHANNELS], self.largest[1].skew
        workload = self._workload(rows, columns, ms, ns, gradient=True)
        width = padded(columns) + skew * (ns - 1)
        calls, elements = 6, ns * rows * width
        others = ns * -(-width // self.windows[1].stride)
        for window, length, lines in ((self.windows[0], rows, others), (self.windows[1], width, ns * rows)):
            window_calls, window_elements = transpose_costs(window, length)
            calls, elements = calls + window_calls, elements + window_elements * lines
        if self.copies_cotangent:
            copied = COPY_CALL + ms * elements * COPIED * self.dtype.itemsize / 4
        else:
            copied = ms * (calls * NUMPY_CALL + (elements * ELEMENT * self.dtype.itemsize / 4) + ns * rows * LOOP)
        whole = self.block_lengths[MS] * self.block_lengths[NS]
        stored = rows * channels * (LOOP + 3 * columns * ELEMENT) * ms * ns / whole
        return TASK + self.engine.seconds(workload) + copied + stored


def _valid_lattices(axis: AxisPlan, side: int) -> Iterator[Lattice]:
    """Yield the lattices with the image of a side as the query image, except those without a valid pair."""
    for lattice in axis.lattices:
        for found in lattice.with_roles_exchanged() if side else (lattice,):
            if valid_bounds(found) != NO_BOUNDS:
                yield found


def _pair_bound(lattice: Lattice) -> int:
    """Return an upper bound of the number of valid pairs."""
    (begin, end), (m, m_end) = valid_bounds(lattice)
    return (end - begin) * (m_end - m)


def _covers_every_pixel(lattices: list[Lattice]) -> bool:
    """Return whether the lattices of an axis are a single one with a query at every pixel."""
    if len(lattices) != 1 or lattices[0].stride != 1:
        return False
    (lattice,) = lattices
    begin, end = valid_bounds(lattice)[0]
    return lattice.first + begin <= 0 and lattice.first + end >= lattice.size


# Execution ------------------------------------------------------------------------------------------------------------


def run(
    plan: GradientPlan,
    cotangent: np.ndarray,
    search: np.ndarray,
    result: np.ndarray,
    threads: int,
    of_cotangent: Elementwise = identity,
    of_search: Elementwise = identity,
) -> None:
    """Write the gradient of the query image into ``result``.

    Parameters
    ----------
    plan
        The plan of this gradient.
    cotangent, search
        The cotangent of the output, and the other image.
    result
        The array for the gradient.
    threads
        The most threads to use.
    of_cotangent, of_search
        Functions of each value, whose results take the place of the cotangent and of the other image.
    """
    if plan.transposed:
        cotangent, search, result = cotangent.transpose(0, 2, 1, 4, 3), search.swapaxes(2, 3), result.swapaxes(2, 3)
    if not plan.covers:
        fill_with_zeros(result, threads)
    if plan.computes and cotangent.size:
        functions = of_cotangent, of_search
        gradient = _Gradient(plan, cotangent, search, result, min(threads, plan.team.threads), functions)
        for pixels in plan.pixels():
            gradient.add(pixels) if plan.adds else gradient.write(pixels)


class _Gradient:
    """The execution of one gradient."""

    def __init__(
        self,
        plan: GradientPlan,
        cotangent: np.ndarray,
        search: np.ndarray,
        result: np.ndarray,
        threads: int,
        functions: tuple[Elementwise, Elementwise],
    ) -> None:
        self.plan, self.cotangent, self.search, self.result, self.threads = plan, cotangent, search, result, threads
        self.of_cotangent, self.of_search = functions
        readable = self.of_cotangent is identity and in_elements(cotangent)
        self.compiled = plan.copies_cotangent and readable

    def write(self, pixels: Pixels) -> None:
        """Compute pixels each of which is the sum of a single task."""

        def store(at: tuple, sums: np.ndarray) -> None:
            if self.plan.scale != 1:
                sums *= self.plan.scale
            copy(sums, self.result[at], compiled=self.plan.engine.compiles)

        self._sum(pixels, store)

    def add(self, pixels: Pixels) -> None:
        """Compute pixels that are sums over several lattices, or over several blocks of displacements."""
        result = self.result[tuple(slice(*each) for each in (pixels.batch, pixels.channels, pixels.rows))]
        with ExitStack() as memory:
            total = result
            if result.dtype != self.plan.dtype:
                total = memory.enter_context(workers.scratch(result.shape, self.plan.dtype))
                total.fill(0)
            firsts = pixels.batch[0], pixels.channels[0], pixels.rows[0]

            def add(at: tuple, sums: np.ndarray) -> None:
                sample, channels, rows, columns = at
                inside = (sample - firsts[0], _shifted(channels, firsts[1]), _shifted(rows, firsts[2]), columns)
                np.add(total[inside], sums, out=total[inside])

            self._sum(pixels, add)
            if self.plan.scale != 1:
                total *= self.plan.scale
            if total is not result:
                np.copyto(result, total, casting="unsafe")

    def _sum(self, pixels: Pixels, store: Callable[[tuple, np.ndarray], None]) -> None:
        """Compute the sums of every lattice over some pixels, and call ``store(index, sums)`` for each task."""
        for vertical, horizontal in product(*self.plan.lattices):
            for region, channels in self.plan.regions(vertical, horizontal, pixels):
                self._block(PackedSearch(vertical, horizontal, region), channels, store)

    def _block(self, layout: PackedSearch, channels: Pair, store: Callable[[tuple, np.ndarray], None]) -> None:
        """Pack the search image of a block and compute its tasks."""
        plan, horizontal, block = self.plan, layout.horizontal, layout.region
        depth = channels[1] - channels[0]
        tasks, lengths = plan.tasks(block, horizontal)
        threads = min(self.threads, plan.most_threads(block, horizontal))

        def compute(task: Region) -> None:
            _, rows, columns, _, _ = task.lengths
            with workers.scratch((rows, depth, padded(columns)), plan.dtype) as sums:
                sums.fill(0)
                for region in task.split(lengths):
                    with self._cotangent(layout, region) as cotangent:
                        plan.engine.gradient(layout.block(search, region), cotangent, sums)
                at_rows, at_columns = _pixel_slice(layout.vertical, task.rows), _pixel_slice(horizontal, task.columns)
                store((task.batch[0], slice(*channels), at_rows, at_columns), sums[..., :columns].transpose(1, 0, 2))

        with workers.scratch(layout.shape(depth), plan.dtype) as search:
            rectangles = list(layout.rectangles(search, self.search[:, slice(*channels)], self.of_search))
            packing = partial(pack, compiled=plan.engine.compiles)
            workers.run(packing, split_rectangles(rectangles, plan.team.tasks), threads)
            workers.run(compute, tasks, threads)

    @contextmanager
    def _cotangent(self, layout: PackedSearch, region: Region) -> Iterator[np.ndarray]:
        """Return a context with the cotangent of the one-pixel volume for a region, ``[m, n, t, x]``, zero at invalid pairs.

        Where the roles are exchanged, query x reads column ``x + skew n`` of the volume. Packed with room for the skew, that is a
        view with other strides.
        """
        horizontal = layout.horizontal
        _, rows, columns, ms, ns = region.lengths
        width = padded(columns)
        with workers.scratch((ms, ns, rows, width + horizontal.skew * (ns - 1)), self.plan.dtype) as packed:
            if self.compiled:
                self._copy_cotangent(layout, region, packed)
            else:
                self._pack_cotangent(layout, region, packed)
            along_m, along_n, along_t, along_x = packed.strides
            skew = horizontal.skew if ns > 1 else 0  # between displacements; it may be beyond 64 bits
            strides = (along_m, along_n + skew * along_x, along_t, along_x)
            view = as_strided(packed, (ms, ns, rows, width), strides)
            if not horizontal.skew and not self.compiled:
                for index, valid in enumerate(all_valid_queries(horizontal)[slice(*region.ns)]):
                    zero_outside(view[:, index], valid, region.columns)
            yield view

    def _copy_cotangent(self, layout: PackedSearch, region: Region, packed: np.ndarray) -> None:
        """Fill the valid rows of the packed cotangent by a kernel."""
        vertical, horizontal = layout.vertical, layout.horizontal
        cotangent = self.cotangent[region.batch[0], _patch_slice(vertical, region.ms), _patch_slice(horizontal, region.ns)]
        windows = self.plan.windows if self.plan.uses_window_sums else (None, None)
        height, width = cotangent.shape[2:]
        rows = _valid_volume_rows(vertical, region.rows, region.ms, windows[0], height)
        columns = _valid_volume_columns(horizontal, region.columns, region.ns, packed.shape[3], windows[1], width)
        cotangent_kernel.write(cotangent, rows, columns, packed)

    def _pack_cotangent(self, layout: PackedSearch, region: Region, packed: np.ndarray) -> None:
        """Fill the valid rows of the packed cotangent of the one-pixel volume, after the transposed window sums."""
        vertical, horizontal, windows = layout.vertical, layout.horizontal, self.plan.windows
        x = region.columns[0] + horizontal.skew_first + horizontal.skew * region.ns[0]
        x_range = intersection((x, x + packed.shape[3]), horizontal.volume_inside())
        if x_range[0] >= x_range[1]:
            packed.fill(0)
            return
        packed[..., : x_range[0] - x] = 0
        packed[..., x_range[1] - x :] = 0
        patch_columns = _patch_slice(horizontal, region.ns)
        for index, m in enumerate(range(*region.ms)):
            t = region.rows[0] + vertical.skew_first + vertical.skew * m
            t_range = intersection((t, t + packed.shape[2]), vertical.volume_inside())
            if t_range[0] < t_range[1]:
                patch_row = vertical.patch_first + vertical.patch_step * m
                values = self.of_cotangent(self.cotangent[region.batch[0], patch_row, patch_columns])
                target = packed[index, :, t_range[0] - t : t_range[1] - t, x_range[0] - x : x_range[1] - x]
                with ExitStack() as memory:
                    for axis, window, indices in ((1, windows[0], t_range), (2, windows[1], x_range)):
                        if window.taps > 1:  # window sums are kept in the accumulator's dtype
                            values = values.astype(self.plan.dtype, copy=False)
                        values = window_transpose(values, axis, window, *indices, memory)
                    np.copyto(target, values)


@lru_cache(maxsize=1024)
def _valid_volume_rows(vertical: Lattice, rows: Pair, ms: Pair, window: Window | None, outputs: int) -> cotangent_kernel.Rows:
    """Return the rows of the packed cotangent of a region that are rows of the volume."""
    found, inside = [], vertical.volume_inside()
    for m in range(*ms):
        t = rows[0] + vertical.skew_first + vertical.skew * m
        begin, end = intersection((t, t + rows[1] - rows[0]), inside)
        found.append((begin - t, max(begin, end) - t, begin))
    first, end = min(row[2] for row in found), max(row[2] + row[1] - row[0] for row in found)
    terms = None if window is None else cotangent_kernel.terms(window, outputs, first, end)
    return cotangent_kernel.Rows(np.array(found, np.int64) - (0, 0, first), first, terms)


@lru_cache(maxsize=1024)
def _valid_volume_columns(
    horizontal: Lattice, columns: Pair, ns: Pair, width: int, window: Window | None, outputs: int
) -> cotangent_kernel.Columns:
    """Return the columns of the packed cotangent of a region, of this width, that are columns of the volume."""
    x = columns[0] + horizontal.skew_first + horizontal.skew * ns[0]
    found, inside = [], horizontal.volume_inside()
    for n in range(*ns):
        valid = inside if horizontal.skew else intersection(inside, all_valid_queries(horizontal)[n])
        begin, end = intersection((x, x + width), valid)
        begin = min(begin, x + width)
        found.append((begin - x, max(begin, end) - x))
    terms = None if window is None else cotangent_kernel.terms(window, outputs, x, x + width)
    return cotangent_kernel.Columns(np.array(found, np.int64), x, terms)


def _shifted(at: slice, origin: int) -> slice:
    return slice(at.start - origin, at.stop - origin, at.step)


def _patch_slice(lattice: Lattice, ns: Pair) -> slice:
    """Return the displacement indices of the forward volume for a lattice's displacement indices ``ns``."""
    first, last = (lattice.patch_first + lattice.patch_step * n for n in (ns[0], ns[1] - 1))
    stop = last + (1 if lattice.patch_step > 0 else -1)
    return slice(first, stop if stop >= 0 else None, lattice.patch_step)


def _pixel_slice(lattice: Lattice, queries: Pair) -> slice:
    """Return the pixels of the query image at a range of queries."""
    begin = lattice.first + lattice.stride * queries[0]
    return slice(begin, begin + lattice.stride * (queries[1] - queries[0] - 1) + 1, lattice.stride)
