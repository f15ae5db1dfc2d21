"""The gradient of one image on the CPU: a plan of how it is cut, and its execution block by block.

A gradient is a sum over the lattices that read the image: one for each tap of a window that is computed tap by tap, and for
input2 one for each class of its positions. With a single tap each pixel belongs to one lattice at most, and every task writes
pixels that no other task writes. Otherwise the lattices are computed one after the other and added up. Nothing is summed over
channels, so that blocks hold as many channels as fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..._arguments import Pair
from ..._cpu import workers
from ..._sharing import CachedProperty
from ..problem import Problem
from .blocks import BATCH, CHANNELS, COLUMNS, LANES, MS, NS, ROWS, Order, Region, cheapest, count, cut, halved, overlap, padded
from .engine import THREAD_SECONDS, Engine, Products, Team, tasks_for
from .forward import BLOCK, CALL, COPY, ELEMENT, LOOP, PACKED_BYTES, TASK, TASK_BYTES, TASK_ORDER, zero_but
from .lattice import NOTHING, AxisPlan, Lattice, all_meets, bounds, counted_share
from .packing import Searched, Values, as_they_are, pack, packed_length, shared
from .window_sums import spread_costs, window_spread

_BLOCK_FLOORS: Order = ((BATCH, 1), (CHANNELS, 1), (ROWS, 1), (COLUMNS, LANES), (MS, 1), (NS, 1))
_WINDOW_FLOORS: Order = ((MS, 1), (NS, 1), (ROWS, 1), (COLUMNS, LANES))


@dataclass(frozen=True, slots=True)
class Pixels:
    """A part of a gradient: half-open ranges of samples, channels and rows."""

    batch: Pair
    channels: Pair
    rows: Pair


class GradientPlan:
    """How the gradient of one image is computed, without its arrays, so that the next call of the problem can use it.

    Parameters
    ----------
    engine, problem, dtype, result_dtype, axes, transposed
        As a `ForwardPlan` has them.
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
        self.engine, self.problem, self.axes, self.transposed, self.side = engine, problem, axes, transposed, side
        self.dtype, self.result_dtype = dtype, result_dtype
        self.scale = dtype.type(problem.parameters.scale)
        self.windows = axes[0].window, axes[1].window
        self.lattices = tuple(list(_counting_lattices(axis, side)) for axis in axes)
        self.shape = problem.shape2 if side else problem.shape1
        self.task_lengths: dict[tuple[int, ...], tuple[int, ...]] = {}
        self.adds = len(axes[0].taps) * len(axes[1].taps) > 1
        if self.computes:
            self.largest = max(self.lattices[0], key=_pairs), max(self.lattices[1], key=_pairs)
            if self._cuts_patch() and not self.adds:
                self.adds = True
                self._cuts_patch()

    @property
    def computes(self) -> bool:
        """True if any pixel has a product at all."""
        return min(map(len, self.lattices)) > 0 and min(self.shape) > 0

    @property
    def fits(self) -> bool:
        """True if the plan stays within the workspace."""
        return not self.computes or self._packed_bytes(self.block_lengths) <= self._room

    @property
    def covers(self) -> bool:
        """True if every pixel is known to be written by some task."""
        return self.computes and not self.adds and all(map(_covers, self.lattices))

    def pixels(self) -> list[Pixels]:
        """Cut the gradient into parts whose sums have room: the result itself has it, where it holds them exactly."""
        everything = self._all_pixels
        if not self.adds or self.result_dtype == self.dtype:
            return [everything]
        batch, channels, rows = (
            cut(*whole, length)
            for whole, length in zip(
                (everything.batch, everything.channels, everything.rows), (1, self._pixel_channels, self._pixel_rows), strict=True
            )
        )
        return [Pixels(*each) for each in product(batch, channels, rows)]

    def regions(self, vertical: Lattice, horizontal: Lattice, pixels: Pixels) -> Iterator[tuple[Region, Pair]]:
        """Cut a lattice's queries among some pixels into blocks of a region and a range of channels."""
        whole = self._whole(vertical, horizontal, pixels)
        if min(whole.lengths) < 1:
            return
        for channels in cut(*pixels.channels, self.block_lengths[CHANNELS]):
            for region in whole.pieces(self.block_lengths[:CHANNELS]):
                yield region, channels

    def tasks(self, region: Region, horizontal: Lattice) -> tuple[list[Region], tuple[int, ...]]:
        """Cut a block into pieces for one task each, and return the lengths of the parts of its displacements too."""
        lengths = self._task_lengths(region.lengths, horizontal.skew, self._tasks_of_block)
        return region.pieces((*lengths[:MS], *region.lengths[MS:])), lengths

    def most_threads(self, region: Region, horizontal: Lattice) -> int:
        """Return how many threads may compute a block's tasks at once within the workspace."""
        size = self._task_bytes(horizontal.skew)(self._task_lengths(region.lengths, horizontal.skew, self._tasks_of_block))
        return max((workers.WORKSPACE // 2 - PACKED_BYTES) // size, 1)

    # Cuts -------------------------------------------------------------------------------------------------------------

    def _cuts_patch(self) -> bool:
        """Find the lengths of blocks; return whether displacements had to be cut, which makes pixels sums of several blocks."""
        lengths = (*self._whole(*self.largest, self._all_pixels).lengths, self._pixel_channels)
        self.block_lengths = cheapest(lengths, self._packed_bytes, self._room, self._block_cost, _BLOCK_FLOORS)
        return self.block_lengths[MS : NS + 1] != lengths[MS : NS + 1]

    @property
    def _all_pixels(self) -> Pixels:
        batch, channels, height, _ = self.shape
        return Pixels((0, batch), (0, channels), (0, height))

    @property
    def _room(self) -> int:
        """Bytes that a block's packed image may take."""
        return PACKED_BYTES // 2 if self.adds and self.result_dtype != self.dtype else PACKED_BYTES

    @property
    def _pixel_channels(self) -> int:
        """Channels whose sums fit beside a packed image, where these are kept apart from the result."""
        _, channels, height, width = self.shape
        if not self.adds or self.result_dtype == self.dtype:
            return channels
        return min(max(self._room // (height * width * self.dtype.itemsize), 1), channels)

    @property
    def _pixel_rows(self) -> int:
        _, _, height, width = self.shape
        return min(max(self._room // (self._pixel_channels * width * self.dtype.itemsize), 1), height)

    def _whole(self, vertical: Lattice, horizontal: Lattice, pixels: Pixels) -> Region:
        """Return the queries and displacements of a lattice of which any counts among some pixels."""
        (rows, ms), (columns, ns) = bounds(vertical), bounds(horizontal)
        return Region(pixels.batch, overlap(rows, vertical.queries_inside(*pixels.rows)), columns, ms, ns)

    def _packed_area(self, lengths: Sequence[int]) -> int:
        """Return the elements of one channel of one sample's packed image."""
        vertical, horizontal = self.largest
        rows = packed_length(vertical, lengths[ROWS], lengths[MS])
        return rows * packed_length(horizontal, padded(lengths[COLUMNS]), lengths[NS])

    def _packed_bytes(self, lengths: Sequence[int]) -> int:
        return lengths[BATCH] * lengths[CHANNELS] * self._packed_area(lengths) * self.dtype.itemsize

    def _block_cost(self, lengths: Sequence[int]) -> float:
        """Elements that a block moves: the packed image, the cotangent, and sums that are added to."""
        batch, rows, columns, ms, ns, channels = lengths
        sums = rows * columns * (channels + ms * ns)
        return batch * (channels * self._packed_area(lengths) + sums) + BLOCK / ELEMENT

    def _task_bytes(self, skew: int) -> Callable[[Sequence[int]], int]:
        def size(lengths: Sequence[int]) -> int:
            _, rows, columns, ms, ns = lengths
            cotangent = ms * ns * rows * (padded(columns) + skew * (ns - 1))
            return (cotangent + rows * self.block_lengths[CHANNELS] * padded(columns)) * self.dtype.itemsize

        return size

    @CachedProperty
    def _tasks_of_block(self) -> int:
        """Tasks that a block is cut into at least."""
        lengths = (*self._whole(*self.largest, self._all_pixels).lengths, self.shape[1])
        blocks = len(self.lattices[0]) * len(self.lattices[1]) * count(lengths, self.block_lengths)
        return -(-self.team.tasks // blocks)

    @property
    def spreads(self) -> bool:
        """True if the windows' sums are taken of the cotangent, before the products."""
        return max(window.taps for window in self.windows) > 1

    def _task_lengths(self, lengths: tuple[int, ...], skew: int, tasks: int) -> tuple[int, ...]:
        key = (*lengths, skew, tasks)
        found = self.task_lengths.get(key)
        if found is None:
            one, size = (1, *lengths[1:]), self._task_bytes(skew)
            if self.spreads:
                found = cheapest(one, size, TASK_BYTES, self._part_seconds, _WINDOW_FLOORS)
            else:
                found = halved(one, size, TASK_BYTES, TASK_ORDER)
                pieces = [field for field in TASK_ORDER if field[0] not in (MS, NS)]
                found = halved(found, lambda piece: -count(lengths[:MS], piece[:MS]), -tasks, tuple(pieces))
            self.task_lengths[key] = found
        return found

    # Estimates --------------------------------------------------------------------------------------------------------

    @CachedProperty
    def team(self) -> Team:
        """The team worth waking.

        Spreading windows is many short calls of NumPy: threads would spend their time handing each other the interpreter's lock.
        """
        return Team(1, 1) if self.spreads else Team(1 + int(self.seconds / THREAD_SECONDS), tasks_for(self.seconds))

    @CachedProperty
    def seconds(self) -> float:
        """The estimated seconds of a call in one thread."""
        batch, channels, height, width = self.shape
        written = batch * channels * height * width * ELEMENT
        if not self.computes:
            return CALL + written
        lengths = self._whole(*self.largest, self._all_pixels).lengths
        pairs = len(self.lattices[0]) * len(self.lattices[1])
        block = self.block_lengths
        part = self._task_lengths(block[:CHANNELS], self.largest[1].skew, 1)
        blocks = count((*lengths, channels), block)
        of_block = BLOCK + self._packing_seconds() + count(block[:CHANNELS], part) * self._part_seconds(part)
        return (0 if self.covers else written) + pairs * blocks * of_block

    def _packing_seconds(self) -> float:
        batch, rows, columns, ms, ns, channels = self.block_lengths
        (vertical, horizontal), columns = self.largest, padded(columns)
        runs = [
            min(lattice.pitch, patch) if queries >= lattice.advance else patch
            for lattice, queries, patch in ((vertical, rows, ms), (horizontal, columns, ns))
        ]
        loops = packed_length(vertical, rows, ms) * runs[1]
        return batch * (runs[0] * runs[1] * COPY + channels * (loops * LOOP + self._packed_area(self.block_lengths) * ELEMENT))

    @CachedProperty
    def _share(self) -> float:
        """The part of all pairs of a query row and a displacement row that count."""
        whole = self._whole(*self.largest, self._all_pixels)
        return counted_share(self.largest[0], whole.rows, whole.ms)

    def _part_seconds(self, lengths: Sequence[int]) -> float:
        """Estimate the seconds of a task's part of the displacements: cotangent, products, and its share of storing the sums."""
        _, rows, columns, ms, ns = lengths
        vertical, horizontal = self.largest
        channels = self.block_lengths[CHANNELS]
        products = Products(
            rows=rows,
            columns=columns,
            patch_rows=ms,
            patch_columns=ns,
            channels=channels,
            taps=1,
            row_phases=min(vertical.pitch, ms),
            column_phases=min(horizontal.pitch, ns),
            column_step=min(horizontal.advance, columns),
            share=self._share,
            alike=min(-(-rows // vertical.advance), -(-ms // vertical.pitch)),
            itemsize=self.dtype.itemsize,
            gradient=True,
        )
        width = padded(columns) + horizontal.skew * (ns - 1)
        calls, elements = 6, ns * rows * width
        others = ns * -(-width // self.windows[1].stride)
        for window, length, of_row in ((self.windows[0], rows, others), (self.windows[1], width, ns * rows)):
            more_calls, more = spread_costs(window, length)
            calls, elements = calls + more_calls, elements + more * of_row
        whole = self.block_lengths[MS] * self.block_lengths[NS]
        stored = rows * channels * (LOOP + 3 * columns * ELEMENT) * ms * ns / whole
        copied = ms * (calls * CALL + (elements * ELEMENT * self.dtype.itemsize / 4) + ns * rows * LOOP)
        return TASK + self.engine.seconds(products) + copied + stored


def _counting_lattices(axis: AxisPlan, side: int) -> Iterator[Lattice]:
    """Yield the lattices that read the image of a side, those of which nothing counts left out."""
    for lattice in axis.lattices:
        for seen in lattice.seen_from_input2() if side else (lattice,):
            if bounds(seen) != NOTHING:
                yield seen


def _pairs(lattice: Lattice) -> int:
    (begin, end), (m, m_end) = bounds(lattice)
    return (end - begin) * (m_end - m)


def _covers(lattices: list[Lattice]) -> bool:
    """Return whether the one lattice of an axis has a query at every pixel."""
    if len(lattices) != 1 or lattices[0].stride != 1:
        return False
    (lattice,) = lattices
    begin, end = bounds(lattice)[0]
    return lattice.first + begin <= 0 and lattice.first + end >= lattice.size


# Execution ------------------------------------------------------------------------------------------------------------


def run(
    plan: GradientPlan,
    cotangent: np.ndarray,
    searched: np.ndarray,
    result: np.ndarray,
    threads: int,
    of_cotangent: Values = as_they_are,
    of_searched: Values = as_they_are,
) -> None:
    """Write the gradient of an image, from a function of the cotangent's values and one of the other image's, into ``result``."""
    if plan.transposed:
        cotangent, searched, result = cotangent.transpose(0, 2, 1, 4, 3), searched.swapaxes(2, 3), result.swapaxes(2, 3)
    if not plan.covers:
        result[...] = 0
    if plan.computes and cotangent.size:
        values = of_cotangent, of_searched
        work = _Gradient(plan, cotangent, searched, result, min(threads, plan.team.threads), values)
        for pixels in plan.pixels():
            work.add(pixels) if plan.adds else work.write(pixels)


class _Gradient:
    """One gradient: its arrays, and the steps a block goes through."""

    def __init__(
        self,
        plan: GradientPlan,
        cotangent: np.ndarray,
        searched: np.ndarray,
        result: np.ndarray,
        threads: int,
        values: tuple[Values, Values],
    ) -> None:
        self.plan, self.cotangent, self.searched, self.result, self.threads = plan, cotangent, searched, result, threads
        self.of_cotangent, self.of_searched = values

    def write(self, pixels: Pixels) -> None:
        """Compute pixels of which each has all its sum from one task."""

        def store(at: tuple, sums: np.ndarray) -> None:
            if self.plan.scale != 1:
                sums *= self.plan.scale
            np.copyto(self.result[at], sums, casting="unsafe")

        self._sum(pixels, store)

    def add(self, pixels: Pixels) -> None:
        """Compute pixels whose sums come from several lattices, or from a patch taken in parts."""
        result = self.result[tuple(slice(*each) for each in (pixels.batch, pixels.channels, pixels.rows))]
        with ExitStack() as stack:
            total = result
            if result.dtype != self.plan.dtype:
                total = stack.enter_context(workers.scratch(result.shape, self.plan.dtype))
                total.fill(0)
            firsts = pixels.batch[0], pixels.channels[0], pixels.rows[0]

            def add(at: tuple, sums: np.ndarray) -> None:
                sample, channels, rows, columns = at
                moved = (sample - firsts[0], _moved(channels, firsts[1]), _moved(rows, firsts[2]), columns)
                np.add(total[moved], sums, out=total[moved])

            self._sum(pixels, add)
            if self.plan.scale != 1:
                total *= self.plan.scale
            if total is not result:
                np.copyto(result, total, casting="unsafe")

    def _sum(self, pixels: Pixels, keep: Callable[[tuple, np.ndarray], None]) -> None:
        """Sum what every lattice adds to some pixels, task by task, and hand each piece of it with its index to ``keep``."""
        for vertical, horizontal in product(*self.plan.lattices):
            for region, channels in self.plan.regions(vertical, horizontal, pixels):
                self._block(Searched(vertical, horizontal, region), channels, keep)

    def _block(self, searched: Searched, channels: Pair, keep: Callable[[tuple, np.ndarray], None]) -> None:
        """Pack the image that a block reads and compute its tasks."""
        plan, horizontal, region = self.plan, searched.horizontal, searched.region
        depth = channels[1] - channels[0]
        tasks, lengths = plan.tasks(region, horizontal)
        threads = min(self.threads, plan.most_threads(region, horizontal))

        def task(piece: Region) -> None:
            _, rows, columns, _, _ = piece.lengths
            with workers.scratch((rows, depth, padded(columns)), plan.dtype) as sums:
                sums.fill(0)
                for part in piece.pieces(lengths):
                    block = searched.part(array, part)
                    with self._cotangent(searched, part) as cotangent:
                        plan.engine.gradient(block, cotangent, sums)
                at_rows, at_columns = _positions(searched.vertical, piece.rows), _positions(horizontal, piece.columns)
                keep((piece.batch[0], slice(*channels), at_rows, at_columns), sums[..., :columns].transpose(1, 0, 2))

        with workers.scratch(searched.shape(depth), plan.dtype) as array:
            items = list(searched.packing(array, self.searched[:, slice(*channels)], self.of_searched))
            workers.run(pack, shared(items, plan.team.tasks), threads)
            workers.run(task, tasks, threads)

    @contextmanager
    def _cotangent(self, searched: Searched, region: Region) -> Iterator[np.ndarray]:
        """The cotangent of the one-pixel volume as a block's queries read it, zero where they read nothing.

        Seen from input2 the volume is skewed: query x reads it at ``x + skew n``. Packed with room for the skew, that is a view.
        """
        horizontal = searched.horizontal
        _, rows, columns, ms, ns = region.lengths
        width = padded(columns)
        with workers.scratch((ms, ns, rows, width + horizontal.skew * (ns - 1)), self.plan.dtype) as packed:
            self._pack_cotangent(searched, region, packed)
            along_m, along_n, along_t, along_x = packed.strides
            strides = (along_m, along_n + horizontal.skew * along_x, along_t, along_x)
            view = as_strided(packed, (ms, ns, rows, width), strides)
            if not horizontal.skew:
                for index, counting in enumerate(all_meets(horizontal)[slice(*region.ns)]):
                    zero_but(view[:, index], counting, region.columns)
            yield view

    def _pack_cotangent(self, searched: Searched, region: Region, packed: np.ndarray) -> None:
        """Fill in the cotangent in every row that counts, window sums transposed on the way."""
        vertical, horizontal, windows = searched.vertical, searched.horizontal, self.plan.windows
        x = region.columns[0] + horizontal.skew_first + horizontal.skew * region.ns[0]
        x_range = overlap((x, x + packed.shape[3]), horizontal.volume_inside())
        if x_range[0] >= x_range[1]:
            packed.fill(0)
            return
        packed[..., : x_range[0] - x] = 0
        packed[..., x_range[1] - x :] = 0
        picked = _picked(horizontal, region.ns)
        for index, m in enumerate(range(*region.ms)):
            t = region.rows[0] + vertical.skew_first + vertical.skew * m
            t_range = overlap((t, t + packed.shape[2]), vertical.volume_inside())
            if t_range[0] < t_range[1]:
                at = vertical.patch_first + vertical.patch_step * m
                values = self.of_cotangent(self.cotangent[region.batch[0], at, picked])
                target = packed[index, :, t_range[0] - t : t_range[1] - t, x_range[0] - x : x_range[1] - x]
                with ExitStack() as memory:
                    for axis, window, wanted in ((1, windows[0], t_range), (2, windows[1], x_range)):
                        if window.taps > 1:  # sums are taken in the accumulator
                            values = values.astype(self.plan.dtype, copy=False)
                        values = window_spread(values, axis, window, *wanted, memory)
                    np.copyto(target, values)


def _moved(at: slice, origin: int) -> slice:
    return slice(at.start - origin, at.stop - origin, at.step)


def _picked(lattice: Lattice, ns: Pair) -> slice:
    """Return the cotangent's displacement indices that ``ns`` stand for."""
    first, last = (lattice.patch_first + lattice.patch_step * n for n in (ns[0], ns[1] - 1))
    stop = last + (1 if lattice.patch_step > 0 else -1)
    return slice(first, stop if stop >= 0 else None, lattice.patch_step)


def _positions(lattice: Lattice, queries: Pair) -> slice:
    """Return the pixels that a range of queries stands at."""
    begin = lattice.first + lattice.stride * queries[0]
    return slice(begin, begin + lattice.stride * (queries[1] - queries[0] - 1) + 1, lattice.stride)
