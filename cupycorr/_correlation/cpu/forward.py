"""The forward map on the CPU: a plan of how a problem is cut, and its execution block by block.

A block's inputs are packed once for each pass; a pass is one tap of a window that is computed tap by tap, and a range of
channels. Its outputs are cut into tasks that threads share. No array here is larger than a share of the workspace, whatever the
problem.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from itertools import product

import numpy as np

from ..._arguments import Pair
from ..._cpu import workers
from ..._sharing import CachedProperty
from ..problem import Problem
from .blocks import BATCH, CHANNELS, COLUMNS, LANES, MS, NS, ROWS, Order, Region, cheapest, count, cut, halved, padded
from .engine import THREAD_SECONDS, Engine, Products, Team, tasks_for
from .lattice import NOTHING, ONE_PIXEL, AxisPlan, Window, all_meets, bounds, counted_share
from .packing import MOST_REMEMBERED, Searched, pack, packed_length, packed_query, shared
from .window_sums import sum_costs, window_sum

PACKED_BYTES = workers.WORKSPACE // 4  # what one block's packed images and gradient sums may take
TASK_BYTES = 3 * 2**18  # what one task's own sums should take at most, to stay in a core's second-level cache
TASK_COPIES = 4  # arrays of that size a task may hold at once (window sums of 2, 4, 8 ... neighbours)
FEWEST_CHANNELS = 128  # a pass is not cut finer than this: every pass adds to the sums of all outputs

# Estimates for the cost model: seconds of a task, of a block, of one copy of packing and of its innermost loops, of an element
# copied or added in memory, and of a call of NumPy.
TASK, BLOCK, COPY, LOOP, ELEMENT, CALL = 80e-6, 150e-6, 10e-6, 15e-9, 0.8e-9, 3e-6

_BLOCK_FLOORS: Order = ((BATCH, 1), (ROWS, 1), (MS, 1), (COLUMNS, LANES), (NS, 1))
TASK_ORDER: Order = (
    *((BATCH, 1), (ROWS, 6), (COLUMNS, 512), (MS, 4), (COLUMNS, 64)),
    *((ROWS, 1), (NS, 16), (MS, 1), (COLUMNS, LANES), (NS, 1)),
)
# Where a window is summed in memory, a cut of its axis computes the window's margin twice: what costs least is cut.
_WINDOW_FLOORS: Order = ((BATCH, 1), (MS, 1), (NS, 1), (ROWS, 1), (COLUMNS, LANES))


@dataclass(frozen=True, slots=True)
class Steps:
    """How a block is computed: its passes (what is searched for a tap, and a range of channels), tasks, and threads at most."""

    passes: list[tuple[Searched, Pair]]
    tasks: list[Region]
    threads: int


class ForwardPlan:
    """How a forward call is computed, without its arrays, so that the next call of the problem can use it.

    Parameters
    ----------
    engine
        What sums the products.
    problem
        The problem, height and width exchanged where ``transposed``.
    dtype, result_dtype
        dtypes of the sums and of the result.
    axes
        How the windows of rows and of columns are computed.
    fused
        Whether the engine sums the window's rows.
    transposed
        Whether the arrays have to be seen with height and width exchanged.
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
        self.engine, self.problem, self.axes, self.fused, self.transposed = engine, problem, axes, fused, transposed
        self.dtype, self.result_dtype = dtype, result_dtype
        self.scale = dtype.type(problem.parameters.scale)
        self.windows = axes[0].window, axes[1].window
        batch, patch_h, patch_w, out_h, out_w = problem.out_shape
        self.outputs = Region((0, batch), (0, out_h), (0, out_w), (0, patch_h), (0, patch_w))
        (rows, ms), (columns, ns) = (_bounds_of_outputs(axis) for axis in axes)
        self.whole = Region((0, batch), rows, columns, ms, ns)
        self.task_lengths: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._steps: dict[Region, Steps] = {}
        if self.computes:
            lengths = (*self.whole.lengths, problem.channels)
            floors = (*_BLOCK_FLOORS, (CHANNELS, FEWEST_CHANNELS))
            self.block_lengths = cheapest(lengths, self._packed_bytes, PACKED_BYTES, self._block_cost, floors)

    @property
    def computes(self) -> bool:
        """True if any output has a product at all."""
        return min(*self.whole.lengths, self.problem.channels) > 0

    @property
    def fits(self) -> bool:
        """True if the plan stays within the workspace."""
        return not self.computes or self._packed_bytes(self.block_lengths) <= PACKED_BYTES

    @CachedProperty
    def channel_ranges(self) -> list[Pair]:
        """The ranges of channels that are packed at once."""
        return cut(0, self.problem.channels, self.block_lengths[CHANNELS])

    def blocks(self) -> list[Region]:
        """Cut the outputs into blocks whose packed inputs fit the workspace."""
        return self.whole.pieces(self.block_lengths[:CHANNELS])

    def steps(self, block: Region) -> Steps:
        """Return the passes and tasks of a block."""
        found = self._steps.get(block)
        if found is None:
            lengths = self._task_lengths(block.lengths, self._tasks_of_block)
            task_bytes = self._task_bytes(lengths) * (TASK_COPIES if self._sums_in_memory else 1)
            most = max((workers.WORKSPACE // 2 - PACKED_BYTES) // task_bytes, 1)
            found = Steps(list(self._passes(block)), block.pieces(lengths), min(self.team.threads, most))
            if len(self._steps) < MOST_REMEMBERED and len(found.passes) < MOST_REMEMBERED:
                self._steps[block] = found
        return found

    def _passes(self, block: Region) -> Iterator[tuple[Searched, Pair]]:
        """Yield the passes of which a block's outputs are the sum, those left out of which nothing counts."""
        inner = self.on_lattice(block)
        rows, columns = ([lattice for lattice in axis.lattices if bounds(lattice) != NOTHING] for axis in self.axes)
        for vertical, horizontal in product(rows, columns):
            searched = Searched(vertical, horizontal, inner)
            yield from ((searched, channels) for channels in self.channel_ranges)

    def on_lattice(self, region: Region) -> Region:
        """Return the region of the one-pixel volume that a region of outputs sums."""
        rows, columns = self.windows[0].reach(*region.rows), self.windows[1].reach(*region.columns)
        return Region(region.batch, rows, columns, region.ms, region.ns)

    def volume_rows(self, outputs: int) -> int:
        """Return how many rows the engine leaves behind for so many rows of outputs."""
        return outputs if self.fused else _span(self.windows[0], outputs)

    # Cuts -------------------------------------------------------------------------------------------------------------

    def _packed_area(self, lengths: Sequence[int]) -> int:
        """Return the elements of one channel of one sample's packed images."""
        rows, columns = _span(self.windows[0], lengths[ROWS]), padded(_span(self.windows[1], lengths[COLUMNS]))
        vertical, horizontal = (axis.lattice for axis in self.axes)
        searched = packed_length(vertical, rows, lengths[MS]) * packed_length(horizontal, columns, lengths[NS])
        return rows * columns + searched

    def _packed_bytes(self, lengths: Sequence[int]) -> int:
        batch, rows, columns, ms, ns, channels = lengths
        # Sums of several passes need room of their own where the result does not hold them exactly.
        kept = rows * columns * ms * ns if self._added(channels) and self.result_dtype != self.dtype else 0
        return batch * (channels * self._packed_area(lengths) + kept) * self.dtype.itemsize

    def _block_cost(self, lengths: Sequence[int]) -> float:
        """Elements that a block moves: packed images, and sums added to where there are several passes."""
        batch, rows, columns, ms, ns, channels = lengths
        passes = -(-self.problem.channels // channels)
        added = 2 * rows * columns * ms * ns if self._added(channels) else 0
        return (batch * (channels * self._packed_area(lengths) + added / passes)) + BLOCK / ELEMENT / passes

    def _added(self, channels: int) -> bool:
        """Return whether outputs are sums of several passes, with so many channels in each."""
        return channels < self.problem.channels or len(self.axes[0].taps) * len(self.axes[1].taps) > 1

    def _task_bytes(self, lengths: Sequence[int]) -> int:
        _, rows, columns, ms, ns = lengths
        return ms * ns * self.volume_rows(rows) * padded(_span(self.windows[1], columns)) * self.dtype.itemsize

    @CachedProperty
    def _tasks_of_block(self) -> int:
        """Tasks that a block is cut into at least."""
        return -(-self.team.tasks // count(self.whole.lengths, self.block_lengths[:CHANNELS]))

    @property
    def _sums_in_memory(self) -> bool:
        return self.windows[1].taps > 1 or (self.windows[0].taps > 1 and not self.fused)

    def _task_lengths(self, lengths: tuple[int, ...], tasks: int) -> tuple[int, ...]:
        key = (*lengths, tasks)
        found = self.task_lengths.get(key)
        if found is None:
            one = (1, *lengths[1:])
            if self._sums_in_memory:
                wanted = -(-tasks // lengths[BATCH])
                found = cheapest(one, self._task_bytes, TASK_BYTES, self._task_seconds, _WINDOW_FLOORS, wanted)
            else:
                found = halved(one, self._task_bytes, TASK_BYTES, TASK_ORDER)
                found = halved(found, lambda piece: -count(lengths, piece), -tasks, TASK_ORDER)
            self.task_lengths[key] = found
        return found

    # Estimates --------------------------------------------------------------------------------------------------------

    @CachedProperty
    def team(self) -> Team:
        """The team worth waking."""
        return Team(1 + int(self.seconds / THREAD_SECONDS), tasks_for(self.seconds))

    @CachedProperty
    def seconds(self) -> float:
        """The estimated seconds of a call in one thread."""
        if not self.computes:
            return CALL + ELEMENT * self.problem.outputs
        block = self.block_lengths[:CHANNELS]
        passes = len(self.axes[0].taps) * len(self.axes[1].taps) * len(self.channel_ranges)
        task = self._task_lengths(block, 1)
        of_pass = self._packing_seconds() + count(block, task) * self._task_seconds(task)
        rest = ELEMENT * self.problem.outputs if self.whole != self.outputs else 0
        return count(self.whole.lengths, block) * (BLOCK + passes * of_pass) + rest

    def _packing_seconds(self) -> float:
        batch, rows, columns, ms, ns, channels = self.block_lengths
        rows, columns = _span(self.windows[0], rows), padded(_span(self.windows[1], columns))
        (vertical, horizontal) = (axis.lattice for axis in self.axes)
        runs, lengths = [], []
        for lattice, queries, patch in ((vertical, rows, ms), (horizontal, columns, ns)):
            runs.append(min(lattice.pitch, patch) if queries >= lattice.advance else patch)
            lengths.append(packed_length(lattice, queries, patch))
        loops = batch * channels * (rows + lengths[0] * runs[1])
        elements = batch * channels * self._packed_area(self.block_lengths)
        return batch * (1 + runs[0] * runs[1]) * COPY + loops * LOOP + elements * ELEMENT

    @CachedProperty
    def _share(self) -> float:
        """The part of all pairs of a query row and a displacement row that count."""
        whole = self.on_lattice(self.whole)
        return counted_share(self.axes[0].lattice, whole.rows, whole.ms)

    def _task_seconds(self, lengths: Sequence[int]) -> float:
        """Estimate a task's seconds: products, window sums, and the copy to the result."""
        _, rows, columns, ms, ns = lengths
        on_rows, on_columns = _span(self.windows[0], rows), _span(self.windows[1], columns)
        vertical, horizontal = (axis.lattice for axis in self.axes)
        products = Products(
            rows=rows if self.fused else on_rows,
            columns=on_columns,
            patch_rows=ms,
            patch_columns=ns,
            channels=self.block_lengths[CHANNELS],
            taps=self.windows[0].taps if self.fused else 1,
            row_phases=min(vertical.pitch, ms),
            column_phases=min(horizontal.pitch, ns),
            column_step=min(horizontal.advance, on_columns),
            share=self._share,
            alike=min(-(-on_rows // vertical.advance), -(-ms // vertical.pitch)),
            itemsize=self.dtype.itemsize,
            gradient=False,
        )
        planes = ms * ns
        calls, elements = 4, planes * (rows * columns + self.volume_rows(rows) * on_columns)
        for window, length, others in ((self.windows[0], on_rows, on_columns), (self.windows[1], on_columns, rows)):
            if window.taps > 1 and not (self.fused and window is self.windows[0]):
                more_calls, more = sum_costs(window, length)
                calls, elements = calls + more_calls, elements + more * planes * others
        return TASK + self.engine.seconds(products) + calls * CALL + elements * ELEMENT * self.dtype.itemsize / 4


def _span(window: Window, outputs: int) -> int:
    """Lattice indices that so many outputs read."""
    begin, end = window.reach(0, outputs)
    return end - begin


def _bounds_of_outputs(axis: AxisPlan) -> tuple[Pair, Pair]:
    """Return ranges of outputs and of displacement indices outside which no tap counts."""
    window, lattice = axis.window, axis.lattice
    outputs = (lattice.count - 1 - (window.taps - 1) * window.dilation) // window.stride + 1
    counting = [found for found in map(bounds, axis.lattices) if found != NOTHING]
    if not counting:
        return NOTHING
    queries, ms = ((min(begin for begin, _ in each), max(end for _, end in each)) for each in zip(*counting, strict=True))
    first = max(-((window.reach(0, 1)[1] - 1 - queries[0]) // window.stride), 0)
    end = min((queries[1] - 1) // window.stride + 1, outputs)
    return ((first, end), ms) if first < end else NOTHING


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
    searched: Searched
    array: np.ndarray


class _Block:
    """One block of outputs, and the steps it goes through."""

    def __init__(self, plan: ForwardPlan, region: Region, input1: np.ndarray, input2: np.ndarray, out: np.ndarray) -> None:
        self.plan, self.region, self.inputs = plan, region, (input1, input2)
        self.out = out[tuple(slice(*each) for each in (region.batch, region.ms, region.ns, region.rows, region.columns))]
        self.steps = plan.steps(region)
        self.threads = min(self.steps.threads, plan.engine.threads())

    def run(self) -> None:
        """Pack each pass and add its products to the outputs."""
        passes = self.steps.passes
        with self._sums(len(passes)) as sums:
            for number, (searched, channels) in enumerate(passes):
                first, last = number == 0, number == len(passes) - 1
                with ExitStack() as stack:
                    packed = self._pack(stack, searched, channels)
                    task = lambda piece, p=packed, f=first, last=last: self._task(piece, p, sums, f, last)  # noqa: E731
                    workers.run(task, self.steps.tasks, self.threads)

    def _sums(self, passes: int) -> AbstractContextManager[np.ndarray]:
        """The sums of the passes so far: the result itself where it holds them exactly."""
        if passes < 2 or self.out.dtype == self.plan.dtype:
            return nullcontext(self.out)
        batch, rows, columns, ms, ns = self.region.lengths
        return workers.scratch((batch, ms, ns, rows, columns), self.plan.dtype)

    def _pack(self, stack: ExitStack, searched: Searched, channels: Pair) -> _Packed:
        """Pack what one pass reads of both images."""
        inner, dtype = searched.region, self.plan.dtype
        batch, rows, columns, _, _ = inner.lengths
        count = channels[1] - channels[0]
        query = stack.enter_context(workers.scratch((batch, rows, count, padded(columns)), dtype))
        array = stack.enter_context(workers.scratch(searched.shape(count), dtype))
        image1, image2 = (image[:, slice(*channels)] for image in self.inputs)
        lattices = searched.vertical, searched.horizontal
        items = [*packed_query(lattices, inner, query, image1), *searched.packing(array, image2)]
        workers.run(pack, shared(items, self.plan.team.tasks), self.threads)
        return _Packed(query, searched, array)

    def _task(self, piece: Region, packed: _Packed, sums: np.ndarray, first: bool, last: bool) -> None:
        """Compute one task's outputs of a pass: the volume, its window sums and, after the last pass, the scale and rounding."""
        plan = self.plan
        region = plan.on_lattice(piece)
        _, _, columns, ms, ns = region.lengths
        rows = plan.volume_rows(piece.lengths[ROWS])
        at = _inside(piece, self.region)
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
        """Sum the products of a pass over channels, for a piece of what is packed."""
        searched, whole = packed.searched, packed.searched.region
        sample, row, column = (mine[0] - of[0] for mine, of in zip(list(region)[:MS], list(whole)[:MS], strict=True))
        total.fill(0)
        block = searched.part(packed.array, region, self.plan.windows[0] if self.plan.fused else ONE_PIXEL)
        self.plan.engine.volume(block, packed.query[sample, row:, :, column:], total)
        total = total[..., : region.lengths[COLUMNS]]
        # Zeros that stand for pixels outside were multiplied too; what is not finite times zero is not zero.
        for index, counting in enumerate(all_meets(searched.horizontal)[slice(*region.ns)]):
            zero_but(total[:, index], counting, region.columns)
        return total


def _inside(piece: Region, region: Region) -> tuple:
    """Return the index of a piece of one sample in an array of its region's outputs."""
    batch, rows, columns, ms, ns = (
        slice(begin - first, end - first) for (begin, end), (first, _) in zip(piece, region, strict=True)
    )
    return batch.start, ms, ns, rows, columns


def zero_but(values: np.ndarray, kept: Pair, columns: Pair) -> None:
    """Zero the columns outside ``kept``; ``columns`` says which ones the last axis holds."""
    begin, end = columns
    if kept[0] > begin:
        values[..., : kept[0] - begin] = 0
    if kept[1] < end:
        values[..., max(kept[1] - begin, 0) : end - begin] = 0
