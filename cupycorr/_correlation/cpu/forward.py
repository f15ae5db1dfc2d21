"""The forward map on the CPU: the plan of its blocks and tasks, and their execution.

The images of a block are packed once for each pass; a pass is one tap of a window that is computed tap by tap, and a range of
channels. The outputs of a block are divided into tasks, which threads share. A `Destination` takes the values of each task:
`Volume` stores them, and an operator that needs no volume reduces them. No array allocated here is larger than a share of
the workspace, whatever the problem. Products are summed by an `Engine`, which this module knows by its interface only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, product
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..._arguments import Pair
from ..._cpu import workers
from ..._sharing import CachedProperty
from ..problem import Problem
from . import block_plan
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
    padded,
    split_range,
)
from .costs import BLOCK, COPY, ELEMENT, LOOP, NUMPY_CALL, TASK
from .engine import Engine
from .lattice import NO_BOUNDS, ONE_PIXEL, AxisPlan, Lattice, all_valid_queries, valid_bounds
from .packing import (
    CACHED_REGIONS,
    PackedSearch,
    copy,
    pack,
    packed_length,
    query_rectangles,
    run_count,
    split_rectangles,
    zero_outside,
)
from .window_sums import sum_costs, window_sum

FEWEST_CHANNELS = 128  # the least channels of a pass: every pass adds to the sums of all outputs
TASK_COPIES = 4  # arrays as large as a task's sums that window sums of 2, 4, 8, ... neighbours hold at once

_BLOCK_ORDER: Order = ((BATCH, 1), (ROWS, 1), (MS, 1), (COLUMNS, LANES), (NS, 1))
# Where a window is summed in memory, a division along its axis computes the window's halo twice, so that the length which costs
# least to halve is halved; this order decides between equal costs.
_WINDOW_ORDER: Order = ((BATCH, 1), (MS, 1), (NS, 1), (ROWS, 1), (COLUMNS, LANES))


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of a block: its passes (the layout of the search image and a range of channels), tasks, and most threads."""

    passes: list[tuple[PackedSearch, Pair]]
    tasks: list[Region]
    threads: int


@dataclass(frozen=True, slots=True)
class Portion:
    """Tasks that are computed together, on the same packed images.

    Attributes
    ----------
    region
        The outputs of the tasks.
    tasks
        The tasks, which follow each other: those at the same positions are neighbours, in the order of their displacements.
    passes
        The passes, whose layouts have the images that the tasks read.
    threads
        The most threads that may compute the tasks.
    """

    region: Region
    tasks: list[Region]
    passes: list[tuple[PackedSearch, Pair]]
    threads: int


class Limits(NamedTuple):
    """The bytes that a portion may take: of its packed images, of sums that are kept from pass to pass, and of kept results.

    ``kept`` bounds both of the latter together. ``position`` has the bytes of the result of a task for each of its positions.
    """

    packed: int
    kept: int
    position: int


class ForwardPlan(BlockPlan):
    """The plan of the forward map.

    Parameters
    ----------
    engine, problem, dtype, result_dtype, axes, transposed
        See `BlockPlan`.
    fused
        True if the engine sums the window over rows.
    """

    def __init__(
        self,
        engine: Engine,
        problem: Problem,
        dtype: np.dtype,
        result_dtype: np.dtype,
        axes: tuple[AxisPlan, AxisPlan],
        fused: bool,
        transposed: bool,
    ) -> None:
        super().__init__(engine, problem, dtype, result_dtype, axes, transposed)
        self.fused = fused
        batch, patch_h, patch_w, out_h, out_w = problem.out_shape
        self.outputs = Region((0, batch), (0, out_h), (0, out_w), (0, patch_h), (0, patch_w))
        (rows, ms), (columns, ns) = (_valid_output_bounds(axis) for axis in axes)
        self.whole = Region((0, batch), rows, columns, ms, ns)
        self._steps: dict[Region, Steps] = {}
        self._portions: dict[tuple[Region, Limits | None], list[Portion]] = {}
        if self.computes:
            lengths = (*self.whole.lengths, problem.channels)
            order = (*_BLOCK_ORDER, (CHANNELS, FEWEST_CHANNELS))
            self.block_lengths = halve_at_least_cost(lengths, self._packed_bytes, self._packed_limit, self._elements_moved, order)

    @property
    def computes(self) -> bool:
        """True if any output is a sum of products."""
        return min(*self.whole.lengths, self.problem.channels) > 0

    @CachedProperty
    def channel_ranges(self) -> list[Pair]:
        """The ranges of channels that are packed at once."""
        return split_range(0, self.problem.channels, self.block_lengths[CHANNELS])

    def blocks(self) -> list[Region]:
        """Divide the outputs into blocks."""
        return self.whole.split(self.block_lengths[:CHANNELS])

    def steps(self, block: Region) -> Steps:
        """Return the passes and tasks of a block."""
        found = self._steps.get(block)
        if found is None:
            lengths = self._task_lengths(block.lengths, self._tasks_of_block)
            task_bytes = self._task_bytes(lengths) * (TASK_COPIES if self._sums_in_memory else 1)
            threads = min(self.team.threads, block_plan.threads_within_workspace(task_bytes))
            found = Steps(list(self._passes(block)), block.split(lengths), threads)
            if len(self._steps) < CACHED_REGIONS and len(found.passes) < CACHED_REGIONS:
                self._steps[block] = found
        return found

    def portions(self, block: Region, limits: Limits | None) -> list[Portion]:
        """Divide a block into portions within the limits; without limits, the whole block is one.

        The tasks are always those of the whole block, so that no bit of a sum depends on the division.
        """
        found = self._portions.get((block, limits))
        if found is None:
            found = self._divide_into_portions(block, limits)
            if len(self._portions) < CACHED_REGIONS and len(found) < CACHED_REGIONS:
                self._portions[block, limits] = found
        return found

    def _divide_into_portions(self, block: Region, limits: Limits | None) -> list[Portion]:
        steps = self.steps(block)
        if limits is None:
            return [Portion(block, steps.tasks, steps.passes, steps.threads)]
        passes = len(steps.passes)
        fits = partial(self._portion_fits, block, limits, passes)
        portions = []
        for tasks in divided_tasks(steps.tasks, fits):
            packed = _packed_region(bounding_region(tasks), block)
            portions.append(Portion(bounding_region(tasks), tasks, list(self._passes(packed)), steps.threads))
        return portions

    def _portion_fits(self, block: Region, limits: Limits, passes: int, tasks: list[Region]) -> bool:
        region = bounding_region(tasks)
        lengths = (*_packed_region(region, block).lengths, self.block_lengths[CHANNELS])
        packed = lengths[BATCH] * lengths[CHANNELS] * self._packed_area(lengths) * self.dtype.itemsize
        batch, rows, columns, ms, ns = region.lengths
        kept = kept_bytes(tasks, limits) + (batch * rows * columns * ms * ns * self.dtype.itemsize if passes > 1 else 0)
        return packed <= limits.packed and kept <= limits.kept

    def _passes(self, block: Region) -> Iterator[tuple[PackedSearch, Pair]]:
        """Yield the passes whose sum is the outputs of a block; lattices without a valid pair are left out."""
        queries = self.on_lattice(block)
        rows, columns = ([lattice for lattice in axis.lattices if valid_bounds(lattice) != NO_BOUNDS] for axis in self.axes)
        for vertical, horizontal in product(rows, columns):
            layout = PackedSearch(vertical, horizontal, queries)
            yield from ((layout, channels) for channels in self.channel_ranges)

    def on_lattice(self, outputs: Region) -> Region:
        """Return the region of the one-pixel volume that a region of outputs sums."""
        rows, columns = self.windows[0].input_range(*outputs.rows), self.windows[1].input_range(*outputs.columns)
        return Region(outputs.batch, rows, columns, outputs.ms, outputs.ns)

    def volume_rows(self, outputs: int) -> int:
        """Return the number of rows of an engine's sums for so many rows of outputs."""
        return outputs if self.fused else self.windows[0].input_length(outputs)

    # Blocks and tasks -------------------------------------------------------------------------------------------------

    @property
    def _typical(self) -> tuple[Lattice, Lattice]:
        return self.axes[0].lattice, self.axes[1].lattice

    def _queries(self) -> Region:
        return self.on_lattice(self.whole)

    def _query_lengths(self, lengths: Sequence[int]) -> tuple[int, ...]:
        """Return the lengths of the region of the one-pixel volume that a region of outputs sums."""
        batch, rows, columns, ms, ns = lengths[:CHANNELS]
        return batch, self.windows[0].input_length(rows), self.windows[1].input_length(columns), ms, ns

    def _packed_area(self, lengths: Sequence[int]) -> int:
        """Return the elements of one channel of one sample's packed images."""
        queries = self._query_lengths(lengths)
        return queries[ROWS] * padded(queries[COLUMNS]) + self._packed_search_area(queries)

    def _packed_bytes(self, lengths: Sequence[int]) -> int:
        batch, rows, columns, ms, ns, channels = lengths
        # The sums of several passes need memory of their own if the result cannot hold them exactly.
        kept = rows * columns * ms * ns if self._has_passes(channels) and self.result_dtype != self.dtype else 0
        return batch * (channels * self._packed_area(lengths) + kept) * self.dtype.itemsize

    def _elements_moved(self, lengths: Sequence[int]) -> float:
        """Return the cost of a block in elements: its packed images, its sums of several passes, and its overhead."""
        batch, rows, columns, ms, ns, channels = lengths
        passes = -(-self.problem.channels // channels)
        added = 2 * rows * columns * ms * ns if self._has_passes(channels) else 0
        return (batch * (channels * self._packed_area(lengths) + added / passes)) + BLOCK / ELEMENT / passes

    def _has_passes(self, channels: int) -> bool:
        """Return whether outputs are sums of several passes if each has so many channels."""
        return channels < self.problem.channels or len(self.axes[0].taps) * len(self.axes[1].taps) > 1

    def _task_bytes(self, lengths: Sequence[int]) -> int:
        """Return the bytes of the sums of a task."""
        _, rows, columns, ms, ns = lengths
        return ms * ns * self.volume_rows(rows) * padded(self.windows[1].input_length(columns)) * self.dtype.itemsize

    @CachedProperty
    def _tasks_of_block(self) -> int:
        """The least number of tasks that a block is divided into."""
        return -(-self.team.tasks // grid_size(self.whole.lengths, self.block_lengths[:CHANNELS]))

    @property
    def _sums_in_memory(self) -> bool:
        """True if a window is summed in memory and not by the engine."""
        return self.windows[1].taps > 1 or (self.windows[0].taps > 1 and not self.fused)

    def _divide_into_tasks(self, lengths: tuple[int, ...], tasks: int) -> tuple[int, ...]:
        one_sample, limit = (1, *lengths[1:]), block_plan.TASK_BYTES
        if self._sums_in_memory:
            boxes = -(-tasks // lengths[BATCH])
            return halve_at_least_cost(one_sample, self._task_bytes, limit, self._task_seconds, _WINDOW_ORDER, boxes)
        small = halve_in_order(one_sample, self._task_bytes, limit, TASK_ORDER)
        return halve_in_order(small, lambda box: -grid_size(lengths, box), -tasks, TASK_ORDER)

    # Estimates --------------------------------------------------------------------------------------------------------

    def _seconds(self) -> float:
        if not self.computes:
            return NUMPY_CALL + ELEMENT * self.problem.outputs
        block = self.block_lengths[:CHANNELS]
        passes = len(self.axes[0].taps) * len(self.axes[1].taps) * len(self.channel_ranges)
        task = self._task_lengths(block, 1)
        of_pass = self._packing_seconds() + grid_size(block, task) * self._task_seconds(task)
        zeroing = ELEMENT * self.problem.outputs if self.whole != self.outputs else 0
        return grid_size(self.whole.lengths, block) * (BLOCK + passes * of_pass) + zeroing

    def _packing_seconds(self) -> float:
        """Estimate the seconds of packing both images for one pass of a block."""
        batch, rows, columns, ms, ns = self._query_lengths(self.block_lengths)
        channels, (vertical, horizontal) = self.block_lengths[CHANNELS], self._typical
        row_runs, column_runs = run_count(vertical, rows, ms), run_count(horizontal, padded(columns), ns)
        loops = batch * channels * (rows + packed_length(vertical, rows, ms) * column_runs)
        elements = batch * channels * self._packed_area(self.block_lengths)
        return batch * (1 + row_runs * column_runs) * COPY + loops * LOOP + elements * ELEMENT

    def _task_seconds(self, lengths: Sequence[int]) -> float:
        """Estimate the seconds of a task: its products, window sums, and the copy to the result."""
        _, rows, columns, ms, ns = lengths
        _, query_rows, query_columns, _, _ = self._query_lengths(lengths)
        workload = self._workload(query_rows, query_columns, ms, ns, gradient=False)
        if self.fused:
            workload = replace(workload, rows=rows, taps=self.windows[0].taps)
        planes = ms * ns
        calls, elements = 4, planes * (rows * columns + self.volume_rows(rows) * query_columns)
        in_memory = []
        if not self.fused:
            in_memory.append((self.windows[0], query_rows, query_columns))
        # A known error: window sums over columns are not counted in a fused plan whose rows have the same geometry. It is kept
        # because the choice of plans, and with it the bits of results, depends on it.
        if not self.fused or self.axes[0] != self.axes[1]:
            in_memory.append((self.windows[1], query_columns, rows))
        for window, length, others in in_memory:
            window_calls, window_elements = sum_costs(window, length)
            calls, elements = calls + window_calls, elements + window_elements * planes * others
        return TASK + self.engine.seconds(workload) + calls * NUMPY_CALL + elements * ELEMENT * self.dtype.itemsize / 4


def _valid_output_bounds(axis: AxisPlan) -> tuple[Pair, Pair]:
    """Return ranges of outputs and of displacement indices that contain all valid pairs of all taps."""
    window, lattice = axis.window, axis.lattice
    of_taps = [found for found in map(valid_bounds, axis.lattices) if found != NO_BOUNDS]
    if not of_taps:
        return NO_BOUNDS
    queries, ms = ((min(begin for begin, _ in each), max(end for _, end in each)) for each in zip(*of_taps, strict=True))
    first = max(-((window.input_length(1) - 1 - queries[0]) // window.stride), 0)
    end = min((queries[1] - 1) // window.stride + 1, window.output_length(lattice.count))
    return ((first, end), ms) if first < end else NO_BOUNDS


# Portions -------------------------------------------------------------------------------------------------------------


def divided_tasks(tasks: list[Region], fits: Callable[[list[Region]], bool]) -> list[list[Region]]:
    """Divide the tasks of a region, in the order of `Region.split`, into parts that fit; a single task is always a part.

    The tasks of each part fill a region, too: parts differ along one axis, in the order of the axes of a `Region`.
    """
    if len(tasks) == 1 or fits(tasks):
        return [tasks]
    ranges = zip(*tasks, strict=True)
    axis = next(axis for axis, each in enumerate(ranges) if len(set(each)) > 1)

    def along(task: Region) -> Pair:
        return tuple(task)[axis]

    groups = [list(group) for _, group in groupby(tasks, key=along)]
    merged = groups[:1]
    for group in groups[1:]:
        if fits(merged[-1] + group):
            merged[-1] = merged[-1] + group
        else:
            merged.append(group)
    return [part for each in merged for part in divided_tasks(each, fits)]


def bounding_region(tasks: Sequence[Region]) -> Region:
    """Return the region that tasks fill."""
    first, last = tasks[0], tasks[-1]
    return Region(*((begin, end) for (begin, _), (_, end) in zip(first, last, strict=True)))


def kept_bytes(tasks: Sequence[Region], limits: Limits) -> int:
    """Return the bytes of the results of some tasks."""
    return sum(task.lengths[ROWS] * task.lengths[COLUMNS] for task in tasks) * limits.position


def same_positions(tasks: Sequence[Region]) -> list[list[int]]:
    """Return the numbers of the tasks at the same positions, which are neighbours."""
    groups = groupby(range(len(tasks)), key=lambda number: tuple(tasks[number])[:MS])
    return [list(group) for _, group in groups]


def _packed_region(region: Region, block: Region) -> Region:
    """Return the part of a block whose images are packed for a region: all of its columns and displacements."""
    return Region(region.batch, region.rows, block.columns, block.ms, block.ns)


# Destinations ---------------------------------------------------------------------------------------------------------


class Destination(Protocol):
    """The receiver of the outputs, of which each task computes a region in the orientation of the plan."""

    @property
    def limits(self) -> Limits | None:
        """The bytes that a portion may take; None if blocks need not be divided."""

    def portion(self, portion: Portion, threads: int) -> AbstractContextManager[np.ndarray | None]:
        """Return the context of a portion, with an array for the sums of several passes in the shape of its outputs.

        Where a portion has one pass, there need not be an array. When the context ends, all tasks of the portion are done.
        """

    def take(self, number: int, outputs: Region, values: np.ndarray) -> None:
        """Take the values (ms, ns, rows, columns) of the task of a number; they are in scratch memory and may be changed."""


class Volume:
    """The destination that stores the outputs in an array."""

    limits = None

    def __init__(self, plan: ForwardPlan, out: np.ndarray) -> None:
        self._plan, self._out = plan, out.transpose(0, 2, 1, 4, 3) if plan.transposed else out
        if not plan.computes or plan.whole != plan.outputs:
            out[...] = 0

    def portion(self, portion: Portion, threads: int) -> AbstractContextManager[np.ndarray]:
        """See `Destination`: the result itself has the sums where it holds them exactly."""
        if len(portion.passes) < 2 or self._out.dtype == self._plan.dtype:
            return nullcontext(self._out[_box(portion.region)])
        batch, rows, columns, ms, ns = portion.region.lengths
        return workers.scratch((batch, ms, ns, rows, columns), self._plan.dtype)

    def take(self, number: int, outputs: Region, values: np.ndarray) -> None:
        """See `Destination`."""
        copy(values, self._out[_box(outputs)][0], compiled=self._plan.engine.compiles)


def _box(region: Region) -> tuple:
    """Return the index of a region of the outputs."""
    return tuple(slice(*each) for each in (region.batch, region.ms, region.ns, region.rows, region.columns))


# Execution ------------------------------------------------------------------------------------------------------------


def run(plan: ForwardPlan, input1: np.ndarray, input2: np.ndarray, destination: Destination) -> None:
    """Compute all outputs that are sums of products and hand them to the destination."""
    if plan.transposed:
        input1, input2 = input1.swapaxes(2, 3), input2.swapaxes(2, 3)
    if plan.computes:
        for block in plan.blocks():
            for portion in plan.portions(block, destination.limits):
                _Portion(plan, portion, input1, input2, destination).run()


@dataclass(slots=True)
class _Packed:
    """The packed images of one pass."""

    query: np.ndarray
    layout: PackedSearch
    search: np.ndarray


class _Portion:
    """The execution of one portion."""

    def __init__(
        self, plan: ForwardPlan, portion: Portion, input1: np.ndarray, input2: np.ndarray, destination: Destination
    ) -> None:
        self.plan, self.portion, self.inputs, self.destination = plan, portion, (input1, input2), destination
        self.threads = min(portion.threads, plan.engine.threads())

    def run(self) -> None:
        """Pack the images of each pass and add its products to the outputs."""
        passes = self.portion.passes
        with self.destination.portion(self.portion, self.threads) as sums:
            for number, (layout, channels) in enumerate(passes):
                with ExitStack() as memory:
                    packed = self._pack(layout, channels, memory)
                    task = partial(self._task, packed, sums, number == 0, number == len(passes) - 1)
                    workers.run(task, enumerate(self.portion.tasks), self.threads)

    def _pack(self, layout: PackedSearch, channels: Pair, memory: ExitStack) -> _Packed:
        """Pack the pixels of both images that one pass reads."""
        queries, dtype = layout.region, self.plan.dtype
        batch, rows, columns, _, _ = queries.lengths
        depth = channels[1] - channels[0]
        query = memory.enter_context(workers.scratch((batch, rows, depth, padded(columns)), dtype))
        search = memory.enter_context(workers.scratch(layout.shape(depth), dtype))
        image1, image2 = (image[:, slice(*channels)] for image in self.inputs)
        lattices = layout.vertical, layout.horizontal
        rectangles = [*query_rectangles(lattices, queries, query, image1), *layout.rectangles(search, image2)]
        packing = partial(pack, compiled=self.plan.engine.compiles)
        workers.run(packing, split_rectangles(rectangles, self.plan.team.tasks), self.threads)
        return _Packed(query, layout, search)

    def _task(self, packed: _Packed, sums: np.ndarray | None, first: bool, last: bool, numbered: tuple[int, Region]) -> None:
        """Compute the outputs of one task in one pass; the last pass applies the scale and hands them to the destination."""
        number, outputs = numbered
        plan = self.plan
        region = plan.on_lattice(outputs)
        _, _, columns, ms, ns = region.lengths
        rows = plan.volume_rows(outputs.lengths[ROWS])
        of_task: Any = None if sums is None else sums[_index(outputs, self.portion.region)]
        with ExitStack() as memory:
            total = memory.enter_context(workers.scratch((ms, ns, rows, padded(columns)), plan.dtype))
            values = self._volume(region, packed, total)
            if not plan.fused:
                values = window_sum(values, 2, plan.windows[0], memory)
            values = window_sum(values, 3, plan.windows[1], memory)
            if not first:
                values += of_task
            if not last:
                of_task[...] = values
                return
            if plan.scale != 1:
                values *= plan.scale
            self.destination.take(number, outputs, values)

    def _volume(self, region: Region, packed: _Packed, total: np.ndarray) -> np.ndarray:
        """Compute a region of the volume in ``total`` and return it without the columns that fill up the last vector."""
        layout = packed.layout
        whole = layout.region
        sample, row, column = (mine[0] - of[0] for mine, of in zip(list(region)[:MS], list(whole)[:MS], strict=True))
        total.fill(0)
        block = layout.block(packed.search, region, self.plan.windows[0] if self.plan.fused else ONE_PIXEL)
        self.plan.engine.volume(block, packed.query[sample, row:, :, column:], total)
        total = total[..., : region.lengths[COLUMNS]]
        for index, valid in enumerate(all_valid_queries(layout.horizontal)[slice(*region.ns)]):
            zero_outside(total[:, index], valid, region.columns)
        return total


def _index(outputs: Region, region: Region) -> tuple:
    """Return the index of the outputs of one sample in an array of a region's outputs."""
    batch, rows, columns, ms, ns = (
        slice(begin - first, end - first) for (begin, end), (first, _) in zip(outputs, region, strict=True)
    )
    return batch.start, ms, ns, rows, columns
