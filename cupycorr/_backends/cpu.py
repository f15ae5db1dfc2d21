"""The CPU answer: a problem cut into blocks that fit the workspace, packed, and shared between threads.

This module knows memory and threads; how a block's products are summed is an engine's business (`blas`, `simd`). Engines see
packed blocks: lattice rows, channels within a row, contiguous columns, in the accumulator's dtype, zeros outside the image.
No array here is larger than a share of the workspace, whatever the problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .._dtypes import element_type
from .._problem import Pair, Problem, lattice_inside
from . import workers
from .lattice import ONE_PIXEL, Lattice, Window, route
from .window import window_spread, window_sum

PACKED_BYTES = workers.WORKSPACE // 4  # what one block's packed images and gradient sums may take
TASK_BYTES = 3 * 2**18  # what one task's own sums should take at most, to stay in a core's second-level cache
TASK_COPIES = 4  # arrays of that size a task may hold at once (window sums of 2, 4, 8 ... neighbours)
FLOPS_PER_THREAD = 2**25  # dense operations below which waking another thread costs more than it takes over
FLOPS_PER_TASK = 2**26  # and below which cutting a thread's share finer costs more than threads that do not finish together
TASKS_PER_THREAD = 4  # how fine that is, at most
MANY_CHANNELS = 8  # sums over so many are the larger part of a gradient's task
LANES = 16  # columns are packed in multiples of this, so that vectors need no tail

BATCH, ROWS, COLUMNS, MS, NS = range(5)  # the fields of a Region


@dataclass(frozen=True, slots=True)
class Region:
    """A box of a volume: half-open ranges of samples, rows, columns and displacement indices."""

    batch: Pair
    rows: Pair
    columns: Pair
    ms: Pair
    ns: Pair

    def __iter__(self) -> Iterator[Pair]:
        return iter((self.batch, self.rows, self.columns, self.ms, self.ns))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of the ranges, in the order of the fields."""
        return tuple(end - begin for begin, end in self)

    def pieces(self, lengths: Sequence[int]) -> list[Region]:
        """The region cut into pieces of at most these lengths."""
        cuts = [_cut(begin, end, length) for (begin, end), length in zip(self, lengths, strict=True)]
        return [Region(*ranges) for ranges in product(*cuts)]


@dataclass(frozen=True, slots=True)
class Block:
    """What an engine is given: a region of a volume in lattice indices, and the packed image it searches.

    ``searched[y - row, channel, x % pitch, x // pitch - column]`` holds the searched indices (y, x) of the two lattices;
    ``meets[m - ms.begin]`` are the lattice rows that count at displacement row ``m``; ``window`` is what it sums over rows.
    """

    vertical: Lattice
    horizontal: Lattice
    region: Region
    meets: tuple[Pair, ...]
    searched: np.ndarray
    row: int
    column: int
    window: Window


@dataclass(frozen=True, slots=True)
class Team:
    """How many threads share a call, and into how many tasks its blocks are cut at least."""

    threads: int
    tasks: int


def team(problem: Problem, available: int) -> Team:
    """The team worth waking for a problem."""
    threads = min(available, 1 + problem.flops // FLOPS_PER_THREAD)
    return Team(threads, threads * min(TASKS_PER_THREAD, 1 + problem.flops // (threads * FLOPS_PER_TASK)))


class Engine(Protocol):
    """How the products of one block are summed, in one thread."""

    def threads(self) -> int:
        """Threads that may run tasks at once."""

    def session(self) -> AbstractContextManager[None]:
        """Held while tasks run."""

    def sums_rows(self, window: Window, channels: int) -> bool:
        """Whether ``volume`` should sum this window over the rows itself; the columns' window is never its business."""

    def volume(self, block: Block, query: np.ndarray, total: np.ndarray) -> None:
        """``total[m, n, i, x] += sum over channels (and the window's rows t of i) of query[t, c, x] * searched``.

        ``total`` is (ms, ns, rows or outputs of the window, >= columns).
        """

    def gradient(self, block: Block, cotangent: np.ndarray, total: np.ndarray) -> None:
        """``total[t, c, x] += sum over m, n of cotangent[m, n, t, x] * searched``; total is (rows, channels, >= columns)."""


# Forward -------------------------------------------------------------------------------------------------------------


def forward(engine: Engine, problem: Problem, input1: np.ndarray, input2: np.ndarray, out: np.ndarray) -> None:
    """Write the correlation of ``input1`` and ``input2`` into ``out``."""
    if not problem.outputs or not problem.channels:
        out[...] = 0
        return
    dtype = element_type("input1", input1.dtype).accumulator_dtype
    fused = engine.sums_rows(route(problem.vertical).window, problem.channels)
    work = _Forward(engine, _forward_plan(problem, dtype, team(problem, engine.threads()), fused), input1, input2, out)
    with engine.session():
        for region in work.plan.blocks():
            work.run(region)


class _ForwardPlan:
    """The geometry of a forward call: how it is cut, without its arrays, so that the next call of the problem can use it."""

    def __init__(self, problem: Problem, dtype: np.dtype, members: Team, fused: bool) -> None:
        self.problem, self.dtype, self.team, self.fused = problem, dtype, members, fused
        self.scale = dtype.type(problem.parameters.scale)
        vertical, horizontal = route(problem.vertical), route(problem.horizontal)
        self.windows = vertical.window, horizontal.window
        self.taps = list(product(vertical.lattices, horizontal.lattices))
        batch, patch_h, patch_w, out_h, out_w = problem.out_shape
        self.whole = Region((0, batch), (0, out_h), (0, out_w), (0, patch_h), (0, patch_w))
        self.block_lengths = _halved(self.whole.lengths, self._packed_bytes, PACKED_BYTES, _BLOCK_ORDER)
        in_memory = self.windows[0].taps > 1 and not fused, self.windows[1].taps > 1
        self.task_order = _forward_task_order(in_memory, problem.channels)
        self.task_lengths: dict[tuple[int, ...], tuple[int, ...]] = {}

    def blocks(self) -> list[Region]:
        """The whole output in blocks whose packed inputs fit the workspace."""
        return self.whole.pieces(self.block_lengths)

    def tasks(self, block: Region) -> list[Region]:
        """A block's outputs in pieces for one task each."""
        lengths = self.task_lengths.get(block.lengths)
        if lengths is None:
            lengths = _task_lengths(block.lengths, self._task_bytes, self.task_order, self.team)
            self.task_lengths[block.lengths] = lengths
        return block.pieces(lengths)

    def on_lattice(self, region: Region) -> Region:
        """The region of the one-pixel volume that a region of outputs sums."""
        rows, columns = self.windows[0].reach(*region.rows), self.windows[1].reach(*region.columns)
        return Region(region.batch, rows, columns, region.ms, region.ns)

    def _packed_bytes(self, lengths: Sequence[int]) -> int:
        batch, rows, columns, ms, ns = lengths
        rows, columns = _span(self.windows[0], rows), _span(self.windows[1], columns)
        searched = _searched_area(*self.taps[0], rows, columns, ms, ns)
        area = len(self.taps) * (rows * _padded(columns) + searched)
        return batch * self.problem.channels * area * self.dtype.itemsize

    def volume_rows(self, outputs: int) -> int:
        """Rows that the engine leaves behind for so many rows of outputs."""
        return outputs if self.fused else _span(self.windows[0], outputs)

    def _task_bytes(self, lengths: Sequence[int]) -> int:
        _, rows, columns, ms, ns = lengths
        return ms * ns * self.volume_rows(rows) * _padded(_span(self.windows[1], columns)) * self.dtype.itemsize


_forward_plan = lru_cache(maxsize=256)(_ForwardPlan)


class _Forward:
    """One forward call: its arrays, and the steps a block goes through."""

    def __init__(self, engine: Engine, plan: _ForwardPlan, input1: np.ndarray, input2: np.ndarray, out: np.ndarray) -> None:
        self.engine, self.plan = engine, plan
        self.input1, self.input2, self.out = input1, input2, out

    def run(self, region: Region) -> None:
        """Pack a block and compute its outputs."""
        plan = self.plan
        inner = plan.on_lattice(region)
        with ExitStack() as stack:
            packed = [self._room(stack, *lattices, inner) for lattices in plan.taps]
            items = [item for query, searched in packed for item in self._packing(query, searched)]
            workers.run(_pack, _shared(items, plan.team), plan.team.threads)
            workers.run(lambda piece: self._store(piece, packed), plan.tasks(region), plan.team.threads)

    def _room(self, stack: ExitStack, vertical: Lattice, horizontal: Lattice, region: Region) -> tuple[np.ndarray, _Searched]:
        """Room for what one tap reads of both images."""
        batch, rows, columns, _, _ = region.lengths
        channels, dtype = self.plan.problem.channels, self.plan.dtype
        query = workers.scratch((batch, rows, channels, _padded(columns)), dtype)
        searched = _Searched.scratch(vertical, horizontal, region, channels, dtype)
        return stack.enter_context(query), stack.enter_context(searched)

    def _packing(self, query: np.ndarray, searched: _Searched) -> list[tuple]:
        vertical, horizontal, region = searched.vertical, searched.horizontal, searched.region
        rows = _Samples(vertical.first + vertical.stride * region.rows[0], vertical.stride, 0, vertical.size)
        columns = _Samples(horizontal.first + horizontal.stride * region.columns[0], horizontal.stride, 0, horizontal.size)
        return [*_packing(query, self.input1, region, rows, columns), *searched.packing(self.input2)]

    def _store(self, piece: Region, packed: list[tuple[np.ndarray, _Searched]]) -> None:
        """Compute one task's outputs: the volume, its window sums, the scale, the rounding."""
        region = self.plan.on_lattice(piece)
        _, _, columns, ms, ns = region.lengths
        rows = self.plan.volume_rows(piece.lengths[ROWS])
        with ExitStack() as memory:
            total = memory.enter_context(workers.scratch((ms, ns, rows, _padded(columns)), self.plan.dtype))
            sums = self._volume(region, *packed[0], total)
            if len(packed) > 1:
                sums = sums.copy()
                for query, searched in packed[1:]:
                    sums += self._volume(region, query, searched, total)
            if not self.plan.fused:
                sums = window_sum(sums, 2, self.plan.windows[0], memory)
            sums = window_sum(sums, 3, self.plan.windows[1], memory)
            if self.plan.scale != 1:
                sums *= self.plan.scale
            target = self.out[(piece.batch[0], *(slice(*r) for r in (piece.ms, piece.ns, piece.rows, piece.columns)))]
            np.copyto(target, sums, casting="unsafe")

    def _volume(self, region: Region, query: np.ndarray, searched: _Searched, total: np.ndarray) -> np.ndarray:
        """One tap's products summed over channels, for a piece of what is packed."""
        whole = searched.region
        offsets = (region.batch[0] - whole.batch[0], region.rows[0] - whole.rows[0], region.columns[0] - whole.columns[0])
        total.fill(0)
        block = searched.part(region, self.plan.windows[0] if self.plan.fused else ONE_PIXEL)
        self.engine.volume(block, query[offsets[0], offsets[1] :, :, offsets[2] :], total)
        total = total[..., : region.columns[1] - region.columns[0]]
        # Zeros that stand for pixels outside were multiplied too; what is not finite times zero is not zero.
        for index, met in enumerate(_meets(searched.horizontal)[slice(*region.ns)]):
            _zero_but(total[:, index], met, region.columns)
        return total


# Gradients -----------------------------------------------------------------------------------------------------------


def vjp(
    engine: Engine,
    problem: Problem,
    cotangent: np.ndarray,
    input1: np.ndarray,
    input2: np.ndarray,
    needs: tuple[bool, bool],
    gradients: tuple[np.ndarray | None, np.ndarray | None],
) -> None:
    """Fill the ``gradients`` of ``<cotangent, forward(input1, input2)>`` that ``needs`` asks for; the others may be None."""
    vertical, horizontal = route(problem.vertical), route(problem.horizontal)
    from_input2 = [[seen for lattice in r.lattices for seen in lattice.seen_from_input2()] for r in (vertical, horizontal)]
    lattices = (vertical.lattices, horizontal.lattices), from_input2
    windows = vertical.window, horizontal.window
    # Spreading windows is many short NumPy calls: threads would spend their time handing the interpreter's lock to each other.
    spreads = max(window.taps for window in windows) > 1
    members = Team(1, 1) if spreads else team(problem, engine.threads())
    # Two small gradients keep two threads busy with nothing to wait for; a large one is worth all threads.
    side_by_side = all(needs) and 1 < members.threads == members.tasks
    if side_by_side:
        members = Team(members.threads // 2, members.threads // 2)

    def compute(side: int) -> None:
        searched = (input2, input1)[side]
        result = gradients[side]
        result.fill(0)
        if result.size and cotangent.size:
            pairs = list(product(*lattices[side]))
            work = _Gradient(engine, problem, members, cotangent, windows, searched, result, pairs)
            # With one tap, each pixel is on one lattice at most.
            once = len(vertical.taps) == len(horizontal.taps) == 1 and work.block_patch == work.patch
            for region in work.blocks():
                work.run_once(region) if once else work.run_adding(region)

    with engine.session():
        workers.run(compute, [side for side in (0, 1) if needs[side]], 2 if side_by_side else 1)


class _Gradient:
    """The gradient with respect to one image: sums over every lattice that meets it, block by block of its pixels."""

    def __init__(
        self,
        engine: Engine,
        problem: Problem,
        members: Team,
        cotangent: np.ndarray,
        windows: tuple[Window, Window],
        searched: np.ndarray,
        result: np.ndarray,
        lattices: list[tuple[Lattice, Lattice]],
    ) -> None:
        self.engine = engine
        self.cotangent, self.windows, self.searched, self.result = cotangent, windows, searched, result
        self.lattices = lattices
        self.dtype = element_type("input1", result.dtype).accumulator_dtype
        self.scale = self.dtype.type(problem.parameters.scale)
        self.channels = problem.channels
        self.team = members
        self.patch = max(v.patch for v, _ in lattices), max(h.patch for _, h in lattices)
        batch, _, height, width = result.shape
        self.whole = Region((0, batch), (0, height), (0, width), (0, self.patch[0]), (0, self.patch[1]))
        self.block_lengths = _halved(self.whole.lengths, self._packed_bytes, PACKED_BYTES, _BLOCK_ORDER)
        self.block_patch = self.block_lengths[MS:]

    def blocks(self) -> list[Region]:
        """The image in blocks of pixels whose sums and packed searched image fit the workspace."""
        return self.whole.pieces((*self.block_lengths[:MS], *self.patch))

    def _packed_bytes(self, lengths: Sequence[int]) -> int:
        batch, rows, columns, ms, ns = lengths
        searched = max(_searched_area(v, h, rows // v.stride + 1, columns // h.stride + 1, ms, ns) for v, h in self.lattices)
        return batch * self.channels * (rows * _padded(columns) + searched) * self.dtype.itemsize

    def run_once(self, region: Region) -> None:
        """Compute a block of pixels of which each has all its sum from one task."""
        for vertical, horizontal in self.lattices:

            def store(piece: Region, sums: np.ndarray, vertical=vertical, horizontal=horizontal) -> None:
                at = _positions(vertical, piece.rows, 0), _positions(horizontal, piece.columns, 0)
                self._store(sums, piece.batch[0], *at)

            self._sum(vertical, horizontal, region, store)

    def run_adding(self, region: Region) -> None:
        """Compute a block of pixels whose sums come from several taps, or from a patch taken in parts."""
        batch, rows, columns, _, _ = region.lengths
        with workers.scratch((batch, rows, self.channels, columns), self.dtype) as total:
            total.fill(0)
            for vertical, horizontal in self.lattices:

                def add(piece: Region, sums: np.ndarray, vertical=vertical, horizontal=horizontal) -> None:
                    at_rows = _positions(vertical, piece.rows, region.rows[0])
                    at_columns = _positions(horizontal, piece.columns, region.columns[0])
                    target = total[piece.batch[0] - region.batch[0], at_rows, :, at_columns]
                    np.add(target, sums, out=target)

                self._sum(vertical, horizontal, region, add)

            def store(item: tuple[int, Pair]) -> None:
                b, (begin, end) = item
                at = slice(region.rows[0] + begin, region.rows[0] + end), slice(*region.columns)
                self._store(total[b, begin:end], region.batch[0] + b, *at)

            parts = _cut(0, rows, -(-rows * batch // self.team.tasks))
            workers.run(store, list(product(range(batch), parts)), self.team.threads)

    def _store(self, sums: np.ndarray, sample: int, at_rows: slice, at_columns: slice) -> None:
        """Scale and round finished sums (rows, channels, columns) into the result."""
        if self.scale != 1:
            sums *= self.scale
        np.copyto(self.result[sample, :, at_rows, at_columns], sums.transpose(1, 0, 2), casting="unsafe")

    def _sum(self, vertical: Lattice, horizontal: Lattice, pixels: Region, keep: Callable[[Region, np.ndarray], None]) -> None:
        """Sum one lattice's share of a block of pixels, task by task, and hand each piece of it to ``keep``."""
        rows, columns = vertical.queries_inside(*pixels.rows), horizontal.queries_inside(*pixels.columns)
        whole = Region(pixels.batch, rows, columns, (0, vertical.patch), (0, horizontal.patch))
        if min(whole.lengths) < 1:
            return

        def task_bytes(lengths: Sequence[int]) -> int:
            _, rows, columns, ms, ns = lengths
            cotangent = ms * ns * rows * (_padded(columns) + horizontal.skew * (ns - 1))
            return (cotangent + rows * self.channels * _padded(columns)) * self.dtype.itemsize

        def task(piece: Region) -> None:
            _, rows, columns, _, _ = piece.lengths
            with workers.scratch((rows, self.channels, _padded(columns)), self.dtype) as sums:
                sums.fill(0)
                for part in piece.pieces(lengths):
                    block = searched.part(part)
                    with self._cotangent(block) as cotangent:
                        self.engine.gradient(block, cotangent, sums)
                keep(piece, sums[..., :columns])

        order = _gradient_task_order(self.windows, self.channels)
        for region in whole.pieces((*whole.lengths[:MS], *self.block_patch)):
            lengths = _task_lengths(region.lengths, task_bytes, order, self.team, splits=(BATCH, ROWS, COLUMNS))
            with _Searched.scratch(vertical, horizontal, region, self.channels, self.dtype) as searched:
                workers.run(_pack, _shared(searched.packing(self.searched), self.team), self.team.threads)
                workers.run(task, region.pieces((*lengths[:MS], *region.lengths[MS:])), self.team.threads)

    @contextmanager
    def _cotangent(self, block: Block) -> Iterator[np.ndarray]:
        """The cotangent of the one-pixel volume as the block's queries meet it, zero where they meet nothing.

        Seen from input2 the volume is skewed: query x reads it at ``x + skew n``. Packed with room for the skew, that is a view.
        """
        horizontal, region = block.horizontal, block.region
        _, rows, columns, ms, ns = region.lengths
        width = _padded(columns)
        with workers.scratch((ms, ns, rows, width + horizontal.skew * (ns - 1)), self.dtype) as packed:
            self._pack_cotangent(block, packed)
            along_m, along_n, along_t, along_x = packed.strides
            strides = (along_m, along_n + horizontal.skew * along_x, along_t, along_x)
            view = as_strided(packed, (ms, ns, rows, width), strides)
            if not horizontal.skew:
                for index, met in enumerate(_meets(horizontal)[slice(*region.ns)]):
                    _zero_but(view[:, index], met, region.columns)
            yield view

    def _pack_cotangent(self, block: Block, packed: np.ndarray) -> None:
        """Fill in the cotangent in every row that counts, window sums transposed on the way."""
        vertical, horizontal, region = block.vertical, block.horizontal, block.region
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
                values = self.cotangent[region.batch[0], vertical.patch_first + vertical.patch_step * m, picked]
                target = packed[index, :, t_range[0] - t : t_range[1] - t, x_range[0] - x : x_range[1] - x]
                with ExitStack() as memory:
                    for axis, window, wanted in ((1, self.windows[0], t_range), (2, self.windows[1], x_range)):
                        if window.taps > 1:  # sums are taken in the accumulator
                            values = values.astype(self.dtype, copy=False)
                        values = window_spread(values, axis, window, *wanted, memory)
                    np.copyto(target, values)


def _picked(lattice: Lattice, ns: Pair) -> slice:
    """The cotangent's displacement indices that ``ns`` stand for."""
    first, last = (lattice.patch_first + lattice.patch_step * n for n in (ns[0], ns[1] - 1))
    stop = last + (1 if lattice.patch_step > 0 else -1)
    return slice(first, stop if stop >= 0 else None, lattice.patch_step)


def _positions(lattice: Lattice, queries: Pair, origin: int) -> slice:
    """Where a range of queries lies in an array that begins at pixel ``origin``."""
    begin = lattice.first + lattice.stride * queries[0] - origin
    return slice(begin, begin + lattice.stride * (queries[1] - queries[0] - 1) + 1, lattice.stride)


# Packing -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Samples:
    """Positions ``first + step i`` of one axis; those outside ``[low, high)`` are packed as zeros."""

    first: int
    step: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class _Searched:
    """The packed searched image of one region, for all its samples."""

    vertical: Lattice
    horizontal: Lattice
    region: Region
    array: np.ndarray  # (samples, rows, channels, pitch, columns)
    row: int
    column: int

    @classmethod
    @contextmanager
    def scratch(
        cls, vertical: Lattice, horizontal: Lattice, region: Region, channels: int, dtype: np.dtype
    ) -> Iterator[_Searched]:
        """Room for a region's searched image, not yet packed."""
        row, row_end = vertical.searched(*region.rows, *region.ms)
        column, columns = _searched_columns(horizontal, region.columns, region.ns)
        shape = (region.lengths[BATCH], row_end - row, channels, horizontal.pitch, columns)
        with workers.scratch(shape, dtype) as array:
            yield cls(vertical, horizontal, region, array, row, column)

    def packing(self, image: np.ndarray) -> list[tuple]:
        """What has to be packed, for `_pack`."""
        v, h = self.vertical, self.horizontal
        rows = _Samples(v.origin + v.spacing * self.row, v.spacing, v.low, v.high)
        items = []
        for plane in range(h.pitch):
            first = h.origin + h.spacing * (h.pitch * self.column + plane)
            columns = _Samples(first, h.spacing * h.pitch, h.low, h.high)
            items += _packing(self.array[:, :, :, plane], image, self.region, rows, columns)
        return items

    def part(self, region: Region, window: Window = ONE_PIXEL) -> Block:
        """The block of a piece of the region."""
        array = self.array[region.batch[0] - self.region.batch[0]]
        meets = _meets(self.vertical)[slice(*region.ms)]
        return Block(self.vertical, self.horizontal, region, meets, array, self.row, self.column, window)


def _packing(target: np.ndarray, image: np.ndarray, region: Region, rows: _Samples, columns: _Samples) -> list[tuple]:
    """One item for `_pack` for each sample of a region."""
    return [(target[b - region.batch[0]], image[b], rows, columns) for b in range(*region.batch)]


def _shared(items: list[tuple], members: Team) -> list[tuple]:
    """Packing items cut by rows into as many as there are tasks."""
    shared = []
    for target, image, rows, columns in items:
        for begin, end in _cut(0, len(target), -(-len(target) * len(items) // members.tasks)):
            moved = _Samples(rows.first + rows.step * begin, rows.step, rows.low, rows.high)
            shared.append((target[begin:end], image, moved, columns))
    return shared


def _pack(item: tuple[np.ndarray, np.ndarray, _Samples, _Samples]) -> None:
    """``target[t, c, x] = image[c, y(t), x(x)]`` in every row that counts, zero where x is outside."""
    target, image, rows, columns = item
    (t, t_end), at_rows = _inside(rows, target.shape[0])
    (x, x_end), at_columns = _inside(columns, target.shape[2])
    # Engines leave out the rows outside; columns outside are multiplied with the rest of their vector.
    target[t:t_end, :, :x] = 0
    target[t:t_end, :, x_end:] = 0
    target[t:t_end, :, x:x_end] = image[:, at_rows, at_columns].transpose(1, 0, 2)


def _inside(samples: _Samples, count: int) -> tuple[Pair, slice]:
    """The indices whose position counts, and the slice of their positions."""
    first, step = samples.first, samples.step
    begin, end = lattice_inside(first, step, count, samples.low, samples.high)
    if begin == end:
        return (begin, end), slice(0, 0)
    return (begin, end), slice(first + step * begin, first + step * (end - 1) + 1, step)


@lru_cache(maxsize=1024)
def _meets(lattice: Lattice) -> tuple[Pair, ...]:
    """The queries that count at each displacement index."""
    return tuple(lattice.meets(m) for m in range(lattice.patch))


# Sizes ---------------------------------------------------------------------------------------------------------------

# Which lengths to halve until a block or task is small enough: the first in the list that is still above its floor.
_Order = tuple[tuple[int, int], ...]
_BLOCK_ORDER: _Order = (
    *((BATCH, 1), (ROWS, 32), (MS, 16), (ROWS, 8), (MS, 4), (COLUMNS, 256), (NS, 64)),
    *((ROWS, 1), (MS, 1), (COLUMNS, LANES), (NS, 1)),
)
_TASK_ORDER: _Order = (
    *((BATCH, 1), (ROWS, 6), (COLUMNS, 512), (MS, 4), (COLUMNS, 64)),
    *((ROWS, 1), (NS, 16), (MS, 1), (COLUMNS, LANES), (NS, 1)),
)
# Cutting the axis of a window sum computes its margin twice; cutting displacements costs little.
_WINDOW_TASK_ORDER: _Order = ((BATCH, 1), (MS, 1), (NS, 1), (ROWS, 128), (COLUMNS, 512), (ROWS, 1), (COLUMNS, LANES))
_COLUMN_WINDOW_TASK_ORDER: _Order = (
    *((BATCH, 1), (ROWS, 6), (MS, 8), (NS, 7), (MS, 1), (NS, 1), (ROWS, 1)),
    *((COLUMNS, 512), (COLUMNS, LANES)),
)
# Where there are channels to sum, a product is worth its while only for many displacements of a row.
_CHANNEL_WINDOW_TASK_ORDER: _Order = (
    *((BATCH, 1), (MS, 1), (ROWS, 32), (COLUMNS, 256), (ROWS, 8), (NS, 8)),
    *((COLUMNS, LANES), (ROWS, 1), (NS, 1)),
)


def _forward_task_order(in_memory: tuple[bool, bool], channels: int) -> _Order:
    """The order for volumes whose (rows', columns') windows are summed in memory."""
    rows, columns = in_memory
    if rows:
        return _CHANNEL_WINDOW_TASK_ORDER if channels >= MANY_CHANNELS else _WINDOW_TASK_ORDER
    return _COLUMN_WINDOW_TASK_ORDER if columns else _TASK_ORDER


def _gradient_task_order(windows: tuple[Window, Window], channels: int) -> _Order:
    """Pieces of rows and columns much longer than a window's margin, which each of them spreads again; patches in pieces, each of
    which passes over the sums again, before columns where there are few channels to sum, after them where there are many."""
    if max(window.taps for window in windows) == 1:
        return _TASK_ORDER
    margins = [(window.taps - 1) * window.dilation for window in windows]
    patch, columns = ((MS, 1), (NS, 4)), ((COLUMNS, max(128, _padded(4 * margins[1]))),)
    inner = patch + columns if channels < MANY_CHANNELS else columns + patch
    return ((BATCH, 1), (ROWS, max(6, 2 * margins[0])), *inner, (ROWS, 1), (NS, 1), (COLUMNS, LANES))


def _halved(lengths: Sequence[int], size: Callable[[Sequence[int]], int], limit: int, order: _Order) -> tuple[int, ...]:
    """Halve lengths, in order, until the size is within the limit (or every length is at its floor)."""
    lengths = list(lengths)
    for field, floor in order:
        while size(lengths) > limit and lengths[field] > floor:
            lengths[field] = _half(lengths[field], field, floor)
    return tuple(lengths)


def _half(length: int, field: int, floor: int) -> int:
    """Half a length. Columns are cut between vectors, so that no piece's last vector overhangs what is packed."""
    half = max(-(-length // 2), floor)
    return _padded(half) if field == COLUMNS else half


def _task_lengths(
    lengths: Sequence[int],
    size: Callable[[Sequence[int]], int],
    order: _Order,
    members: Team,
    splits: tuple[int, ...] = (BATCH, ROWS, COLUMNS, MS, NS),
) -> tuple[int, ...]:
    """Lengths of tasks that fit the cache and are as many as the team asks for."""
    limit = min(TASK_BYTES, (workers.WORKSPACE // 2 - PACKED_BYTES) // (TASK_COPIES * members.threads))
    found = list(_halved((1, *lengths[1:]), size, limit, order))
    for field, floor in order:
        while field in splits and found[field] > floor and _count(lengths, found, splits) < members.tasks:
            found[field] = _half(found[field], field, floor)
    return tuple(found)


def _count(lengths: Sequence[int], pieces: Sequence[int], fields: tuple[int, ...]) -> int:
    count = 1
    for field in fields:
        count *= -(-lengths[field] // pieces[field])
    return count


def _searched_columns(lattice: Lattice, columns: Pair, ns: Pair) -> Pair:
    """First packed column of the searched image, and how many, room for vectors that overhang included."""
    begin, end = lattice.searched(columns[0], columns[0] + _padded(columns[1] - columns[0]), *ns)
    return begin // lattice.pitch, (end - 1) // lattice.pitch - begin // lattice.pitch + 1


def _searched_area(vertical: Lattice, horizontal: Lattice, rows: int, columns: int, ms: int, ns: int) -> int:
    """Elements of one channel of the packed searched image."""
    row, row_end = vertical.searched(0, rows, 0, ms)
    return (row_end - row) * horizontal.pitch * _searched_columns(horizontal, (0, columns), (0, ns))[1]


def _span(window: Window, outputs: int) -> int:
    """Lattice indices that so many outputs read."""
    begin, end = window.reach(0, outputs)
    return end - begin


def _padded(columns: int) -> int:
    return -(-columns // LANES) * LANES


def _cut(begin: int, end: int, length: int) -> list[Pair]:
    return [(at, min(at + length, end)) for at in range(begin, end, length)]


def overlap(one: Pair, two: Pair) -> Pair:
    """The range both have in common; it ends before it begins where there is none."""
    return max(one[0], two[0]), min(one[1], two[1])


def _zero_but(values: np.ndarray, kept: Pair, columns: Pair) -> None:
    """Zero the columns outside ``kept``; ``columns`` says which ones the last axis holds."""
    begin, end = columns
    if kept[0] > begin:
        values[..., : kept[0] - begin] = 0
    if kept[1] < end:
        values[..., max(kept[1] - begin, 0) : end - begin] = 0


def how(problem: Problem) -> str:
    """The route from windows to products, in words."""
    ways = []
    for name, axis in (("rows", problem.vertical), ("columns", problem.horizontal)):
        r = route(axis)
        if len(r.taps) > 1:
            ways.append(f"{name} tap by tap")
        elif r.window.taps > 1:
            ways.append(f"{name} by window sums of a one-pixel volume")
    return ", ".join(ways) or "one-pixel windows"
