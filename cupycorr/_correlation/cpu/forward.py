"""The forward map on the CPU: the plan of its blocks and tasks, and their execution.

The images of a block are packed once for each pass; a pass is one tap of a window that is computed tap by tap, and a range of
channels. The outputs of a block are divided into tasks, which threads share. No array allocated here is larger than a share of
the workspace, whatever the problem. Products are summed by an `Engine`, which this module knows by its interface only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

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


# Execution ------------------------------------------------------------------------------------------------------------


def run(plan: ForwardPlan, input1: np.ndarray, input2: np.ndarray, out: np.ndarray) -> None:
    """Write the correlation of ``input1`` and ``input2`` into ``out``."""
    if plan.transposed:
        input1, input2, out = input1.swapaxes(2, 3), input2.swapaxes(2, 3), out.transpose(0, 2, 1, 4, 3)
    if not plan.computes or plan.whole != plan.outputs:
        out[...] = 0
    if plan.computes:
        for region in plan.blocks():
            _Block(plan, region, input1, input2, out).run()


@dataclass(slots=True)
class _Packed:
    """The packed images of one pass."""

    query: np.ndarray
    layout: PackedSearch
    search: np.ndarray


class _Block:
    """The execution of one block of outputs."""

    def __init__(self, plan: ForwardPlan, region: Region, input1: np.ndarray, input2: np.ndarray, out: np.ndarray) -> None:
        self.plan, self.region, self.inputs = plan, region, (input1, input2)
        self.out = out[tuple(slice(*each) for each in (region.batch, region.ms, region.ns, region.rows, region.columns))]
        self.steps = plan.steps(region)
        self.threads = min(self.steps.threads, plan.engine.threads())

    def run(self) -> None:
        """Pack the images of each pass and add its products to the outputs."""
        passes = self.steps.passes
        with self._sums(len(passes)) as sums:
            for number, (layout, channels) in enumerate(passes):
                with ExitStack() as memory:
                    packed = self._pack(layout, channels, memory)
                    task = partial(self._task, packed, sums, number == 0, number == len(passes) - 1)
                    workers.run(task, self.steps.tasks, self.threads)

    def _sums(self, passes: int) -> AbstractContextManager[np.ndarray]:
        """Return the array for the sums of the passes so far: the result itself where it holds them exactly."""
        if passes < 2 or self.out.dtype == self.plan.dtype:
            return nullcontext(self.out)
        batch, rows, columns, ms, ns = self.region.lengths
        return workers.scratch((batch, ms, ns, rows, columns), self.plan.dtype)

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
        workers.run(pack, split_rectangles(rectangles, self.plan.team.tasks), self.threads)
        return _Packed(query, layout, search)

    def _task(self, packed: _Packed, sums: np.ndarray, first: bool, last: bool, outputs: Region) -> None:
        """Compute the outputs of one task in one pass; the last pass applies the scale and rounds to the result's dtype."""
        plan = self.plan
        region = plan.on_lattice(outputs)
        _, _, columns, ms, ns = region.lengths
        rows = plan.volume_rows(outputs.lengths[ROWS])
        at = _index(outputs, self.region)
        with ExitStack() as memory:
            total = memory.enter_context(workers.scratch((ms, ns, rows, padded(columns)), plan.dtype))
            values = self._volume(region, packed, total)
            if not plan.fused:
                values = window_sum(values, 2, plan.windows[0], memory)
            values = window_sum(values, 3, plan.windows[1], memory)
            if not first:
                values += sums[at]
            if not last:
                sums[at] = values
                return
            if plan.scale != 1:
                values *= plan.scale
            np.copyto(self.out[at], values, casting="unsafe")

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
