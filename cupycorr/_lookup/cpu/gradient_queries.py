"""Blocks of queries for the gradients of the variant ``simd``: their windows and factors, packed pixels, and packed maps.

A gradient is computed for some of the channels at a time where packed arrays would not fit into the workspace, and blocks of
queries are computed one after the other. Windows are added in rounds: first the joined windows of many lookups at once, then
those that were not joined, lookup by lookup. Nothing here sums over channels or queries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from ..._arguments import Pair, Shape
from ..._cpu import workers
from ..._cpu.llvm import address
from ..._dtypes import LONGEST_CHAIN, element_type
from ..problem import Axis, Problem
from ..windows import Arrays, Block, blocks
from . import joined_windows
from .gradient_kernels import lanes_of, spread_kernel
from .packing import Part, in_place, pack, parts, scratch
from .rectangles import ORIGINS, WEIGHTS, Memory, Rectangle, Span
from .window_kernel import WindowFinder

ROWS, QUERIES = 8, 1024  # the most rows and queries of a block
KEPT = 2**23  # bytes of the factors that are kept from one gradient to the next
FACTORS = 2**22  # bytes of the factors of a block at all levels: at least one vector of queries is taken
FACTORS_OF_LEVEL = 2**20  # bytes of them at one level
OF_QUERY = 80  # bytes of a query and level that is kept, without its factors
COTANGENTS = 2**21  # bytes of the cotangents of a block whose windows are joined
OUTSIDE = -(2**40)  # the first tap of a query that is not there


class Group(NamedTuple):
    """A range of channels that is computed at once, and the number of their vectors."""

    channels: slice
    vectors: int


class Windows(NamedTuple):
    """The windows of the queries of a block for some lookups at a level.

    Attributes
    ----------
    size, places
        The number of queries, and the number of places for each lookup in the arrays, whole vectors of queries.
    weights, origins
        The weights of the corners, and the position of the first tap, as `window_kernel` writes them, one lookup after the other.
    """

    size: int
    places: int
    weights: np.ndarray
    origins: np.ndarray

    @property
    def finite(self) -> np.ndarray:
        """True for each query whose coordinates are finite in all of the lookups."""
        lookups = self.weights[-1].reshape(-1, self.places)
        found: np.ndarray = ~np.isnan(lookups[:, : self.size]).any(0)
        return found


class Queries(NamedTuple):
    """The queries of a block at a level: their windows, the taps inside the map, and the factors of their dots.

    Attributes
    ----------
    size
        The number of queries.
    finite
        True for each query whose coordinates are finite in all of the lookups.
    origins
        The position of the first tap, y and x, with room for whole vectors of queries.
    ranges, factors, groups
        As `gradient_kernels` describes them.
    unjoined
        True for each query with windows that were not joined; None if there is none.
    """

    size: int
    finite: np.ndarray
    origins: np.ndarray
    ranges: np.ndarray
    factors: np.ndarray
    groups: np.ndarray
    unjoined: np.ndarray | None = None


class Round(NamedTuple):
    """A range of lookups whose windows are added before those of the next round.

    Attributes
    ----------
    lookups
        The lookups: one, unless their windows are joined.
    joins
        True if the windows of a query are joined where that saves work.
    after
        The first lookup of the round in which windows of these lookups were joined, so that only the others are added now.
    """

    lookups: range
    joins: bool = False
    after: int | None = None


class _Kept:
    """Queries that are kept from one gradient to the next, as far as the memory suffices for their factors."""

    def __init__(self, memory: np.ndarray) -> None:
        self._memory, self._used, self._lock = memory, 0, Lock()
        self.queries: dict[tuple[Any, ...], Queries | None] = {}

    def take(self, size: int, more: int) -> np.ndarray | None:
        """Return memory of so many elements, or None. So many more are counted, which are elsewhere."""
        with self._lock:
            begin, end = self._used, self._used + size + more
            if end > len(self._memory):
                return None
            self._used = end
        return self._memory[begin : begin + size]


class QueryBlocks:
    """The queries of one call in blocks, with the arrays of the call, for so many threads.

    ``cotangents`` has a view (E, L, PH, PW, H, W) for each lookup.
    """

    def __init__(
        self, problem: Problem, arrays: Mapping[str, np.ndarray], cotangents: Sequence[np.ndarray], threads: int
    ) -> None:
        self.problem = problem
        self.named, self.arrays, self.threads = arrays, Arrays(problem, arrays), threads
        self.accumulator = element_type("input1", self.arrays.input1.dtype).accumulator_dtype
        self.scale = self.accumulator.type(problem.parameters.scale)
        self.lanes = lanes_of(self.accumulator)
        self.vectors = -(-problem.channels // self.lanes)
        axes = problem.vertical, problem.horizontal
        self.taps = axes[0].taps, axes[1].taps
        queries = block_queries(problem, self.accumulator)
        self.blocks = list(blocks(problem, queries, ROWS))
        self.firsts = np.cumsum([0, *map(block_size, self.blocks)]).tolist()  # the queries before each block
        joins = joined_windows.joins(problem) and all(map(_are_finite, (self.arrays.input1, *self.arrays.levels)))
        self.rounds, self.most_taps = _rounds(problem, queries, self.accumulator.itemsize, joins=joins), most_taps(problem)
        self._cotangents = cotangents
        self._axes = axes
        self._spread, self._join = (make(*axes, self.accumulator) for make in (spread_kernel, joined_windows.join_kernel))
        self._finders = [WindowFinder(problem, level, self.accumulator) for level in range(problem.levels)]
        self._packed = [in_place(each, self.accumulator) for each in self.arrays.levels]
        self._kept: _Kept | None = None
        self._unjoined: dict[tuple[int, ...], np.ndarray | None] = {}  # the queries of a block that were not joined, if any

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Return a context in which factors are computed once for all gradients, as far as they take little memory."""
        with scratch((KEPT // self.accumulator.itemsize,), self.accumulator) as memory:
            self._kept = _Kept(memory)
            yield
            self._kept = None

    def factored(self, adding: Round, entry: int, level: int, block: Block, rows: slice, stack: ExitStack) -> Queries | None:
        """Return the windows of a block, and the factors for the output in these rows of the map; None if there are none.

        The factors are kept, or live in the stack.
        """
        kept = self._kept if rows == slice(0, self.problem.sizes2[level][0]) else None
        key = adding, entry, level, *_corner(block)
        if kept is not None and key in kept.queries:
            return self._noted(adding, key, kept.queries[key])
        is_kept = kept is not None
        more = self.places(block) * OF_QUERY // self.accumulator.itemsize

        def memory(size: int) -> np.ndarray:
            nonlocal is_kept
            found = None if kept is None else kept.take(size, more)
            is_kept = found is not None
            return stack.enter_context(scratch((size,), self.accumulator)) if found is None else found

        compute = self._joined if adding.joins else self._single
        queries = compute(adding, entry, level, block, rows, memory)
        if kept is not None and is_kept:
            kept.queries[key] = queries
        return self._noted(adding, key, queries)

    def _noted(self, adding: Round, key: tuple[Any, ...], queries: Queries | None) -> Queries | None:
        """Note which queries of a block have windows that were not joined, and return the block's."""
        if adding.joins and queries is not None:
            place = adding.lookups.start, *key[1:]
            self._unjoined[place] = queries.unjoined
        return queries

    def end_entry(self) -> None:
        """Forget which queries of an entry were not joined."""
        self._unjoined.clear()

    def _joined(
        self, adding: Round, entry: int, level: int, block: Block, rows: slice, memory: Callable[[int], np.ndarray]
    ) -> Queries:
        """Return the joined windows of some lookups."""
        windows = self.windows(entry, level, adding.lookups, block)
        size, places, lookups = windows.size, windows.places, len(adding.lookups)
        sizes = self.taps, self.problem.sizes2[level], joined_windows.largest(self.problem)
        found = joined_windows.bounds(windows.origins, lookups, *sizes, self.lanes)
        unjoined = found.unjoined[:size] != 0
        ranges, (groups, count) = found.ranges(rows), found.groups(self.lanes)
        factors = memory(count)
        cotangents = [self.cotangent(entry, level, lookup, block) for lookup in adding.lookups]
        if len({each.strides for each in cotangents}) > 1:
            cotangents = [_padded(each[..., :size], places) for each in cotangents]
        addresses = np.array([address(each) for each in cotangents], np.int64)
        with scratch((math.prod(self.taps) * self.lanes,), self.accumulator) as of_group:
            inputs = address(addresses), *_along(cotangents[0]), address(windows.weights), address(windows.origins)
            outputs = map(address, (found.origins, ranges, groups, of_group, factors))
            self._join(*inputs, lookups, places, count, *outputs)
        finite, noted = windows.finite, unjoined if unjoined.any() else None
        return Queries(size, finite, found.origins, ranges, factors, groups, noted)

    def _single(
        self, adding: Round, entry: int, level: int, block: Block, rows: slice, memory: Callable[[int], np.ndarray]
    ) -> Queries | None:
        """Return the windows of a lookup, those that were joined without taps inside the map; None if all were."""
        unjoined = None
        if adding.after is not None:
            place = adding.after, entry, level, *_corner(block)
            unjoined = self._unjoined[place]
            if unjoined is None:
                return None
        (lookup,) = adding.lookups
        windows = self.windows(entry, level, adding.lookups, block)
        factors = memory(self.factors_size(block))
        queries = self.queries(level, windows, self.cotangent(entry, level, lookup, block), factors, rows)
        if unjoined is not None:
            queries.ranges[:, : windows.size] *= unjoined
        return queries

    def run(self, task: Callable[[Any], None], items: Any) -> None:
        """Call a task on every item in the threads of this call."""
        workers.run(task, items, self.threads)

    # Divisions.

    def groups(self, most: int) -> Iterator[Group]:
        """Divide the channels into groups of nearly one size, of at most so many vectors (or one)."""
        count = -(-self.vectors // max(most, 1))
        for number in range(count):
            begin, end = (self.vectors * edge // count for edge in (number, number + 1))
            yield Group(slice(begin * self.lanes, min(end * self.lanes, self.problem.channels)), end - begin)

    def block_ranges(self, queries: int) -> Iterator[slice]:
        """Divide the blocks into ranges of at most so many queries (or one block)."""
        begin = 0
        for end in range(1, len(self.blocks) + 1):
            if end == len(self.blocks) or self.firsts[end + 1] - self.firsts[begin] > queries:
                yield slice(begin, end)
                begin = end

    def entries(self, index: list[int], image: int) -> list[int]:
        """Return the entries that an image belongs to, in ascending order."""
        return [entry for entry, found in enumerate(index) if found == image]

    # Packed arrays.

    def packed_map(self, level: int, entry: int, group: Group, rows: slice, stack: ExitStack) -> np.ndarray:
        """Return rows of the map of an entry, (rows, W2, channels of the group): a view, or a copy that lives in the stack."""
        image, view = self.arrays.index2[entry], self._packed[level]
        if view is not None:
            return view[image, rows, :, group.channels]
        source = self.arrays.levels[level][image, group.channels, rows][None]
        packed = stack.enter_context(scratch((1, *source.shape[2:], group.vectors * self.lanes), self.accumulator))
        self.run(pack, parts(source, packed))
        return packed[0]

    def pack_pixels(self, entry: int, block: Block, group: Group, pixels: np.ndarray) -> None:
        """Pack the pixels of a block, (queries, channels)."""
        source = self.arrays.input1[self.arrays.index1[entry], group.channels, block[0], block[1]]
        pack(Part(source, pixels.reshape(*source.shape[1:], pixels.shape[1])))

    # Windows and factors.

    def factors_size(self, block: Block) -> int:
        """Return the number of the factors of a block for one lookup."""
        return self.places(block) * math.prod(self.taps)

    def places(self, block: Block) -> int:
        """Return the number of queries of a block, in whole vectors."""
        return -(-block_size(block) // self.lanes) * self.lanes

    def windows(self, entry: int, level: int, lookups: range, block: Block) -> Windows:
        """Find the windows of a block for some lookups."""
        (rows, columns), size, places = block, block_size(block), self.places(block)
        part = slice(lookups.start, lookups.stop)
        coords = self.arrays.coords[entry, part, :, rows, columns].astype(self.accumulator, order="C")
        count = len(lookups) * places
        weights, origins = np.ones((WEIGHTS, count), self.accumulator), np.full((ORIGINS, count), OUTSIDE)
        table = _rectangles(rows.start, places, coords.shape)
        memory = Memory(count, address(weights), address(origins), dots=0)
        self._finders[level].find(Span(address(table), len(table)), address(coords), memory)
        return Windows(size, places, weights, origins)

    def cotangent(self, entry: int, level: int, lookup: int, block: Block) -> np.ndarray:
        """Return the cotangent of a block, (PH, PW, queries or places): a view where a kernel can read it.

        A kernel reads whole vectors of queries, so that a view must be followed by other numbers.
        """
        (rows, columns), places, size = block, self.places(block), block_size(block)
        plane = self._cotangents[lookup][entry, level, :, :, rows, columns]
        height, width = self.problem.size1
        item = plane.itemsize
        follow = (height - rows.stop) * width if columns == slice(0, width) else 0
        readable = plane.dtype == self.accumulator and plane.flags.aligned and places - size <= follow
        if readable and plane.strides[2:] == (plane.shape[3] * item, item) and not any(each % item for each in plane.strides):
            return plane.reshape(*plane.shape[:2], size)
        return _padded(plane.reshape(*plane.shape[:2], size).astype(self.accumulator, order="C"), places)

    def queries(
        self,
        level: int,
        windows: Windows,
        cotangent: np.ndarray,
        factors: np.ndarray,
        rows: slice,
        differs: int | None = None,
    ) -> Queries:
        """Compute the factors of the dots of a block in these rows of the map, in memory that is given.

        Factors are those of the output, or those of its derivative along the axis ``differs``: 0 for y, 1 for x.
        """
        weights = [windows.weights[:2], windows.weights[2:]]
        places = windows.places
        if differs is not None:
            weights[differs] = np.repeat(self.accumulator.type((-1, 1)), places)
        ranges = np.empty((4, places), np.int64)
        inputs = address(cotangent), *_along(cotangent), *map(address, weights), address(windows.origins)
        self._spread(*inputs, rows.start, rows.stop, self.problem.sizes2[level][1], places, address(factors), address(ranges))
        groups = _groups(places // self.lanes, math.prod(self.taps) * self.lanes, self.taps[1])
        return Queries(windows.size, windows.finite, windows.origins, ranges, factors, groups)

    def offsets(self, axis: int, stride: int) -> np.ndarray:
        """Return the distance of each tap along an axis from the first one, for positions that are ``stride`` apart."""
        return _offsets(self._axes[axis], stride)

    def kernel_arguments(self, queries: Queries, image: np.ndarray, top: int = 0) -> tuple[Any, ...]:
        """Return the first arguments of a kernel: the windows of queries in a packed map, or in rows of it from ``top`` on."""
        strides = [stride // image.itemsize for stride in image.strides[:2]]
        offsets = [self.offsets(axis, stride) for axis, stride in enumerate(strides)]
        arrays = queries.origins, queries.ranges, queries.groups, *offsets
        _, columns = self.most_taps
        together = all(axis.taps_are_neighbours for axis in self._axes) and columns <= LONGEST_CHAIN.registers
        numbers = queries.ranges.shape[1], top, *strides, columns, together
        return (*map(address, arrays), *numbers, address(queries.factors))


def _rounds(problem: Problem, queries: int, itemsize: int, *, joins: bool) -> list[Round]:
    """Return the rounds in which the windows of all lookups are added, for blocks of so many queries."""
    lookups = range(problem.lookups)
    if not joins:
        return [Round(lookups[k : k + 1]) for k in lookups]
    of_lookup = math.prod(problem.parameters.patch_size) * queries * itemsize
    most = min(max(COTANGENTS // of_lookup, 2), LONGEST_CHAIN.memory)
    joined = [lookups[begin : begin + most] for begin in lookups[::most]]
    single = [Round(part[k : k + 1], after=part.start) for part in joined for k in range(len(part))]
    return [*(Round(part, joins=True) for part in joined), *single]


def block_queries(problem: Problem, accumulator: np.dtype) -> int:
    """Return the most queries of a block."""
    size = min(FACTORS // problem.levels, FACTORS_OF_LEVEL) // (math.prod(most_taps(problem)) * accumulator.itemsize)
    return max(min(size, QUERIES), lanes_of(accumulator))


def most_taps(problem: Problem) -> Pair:
    """Return the most rows and columns of taps of a query whose factors are in memory at once."""
    taps = problem.vertical.taps, problem.horizontal.taps
    if not joined_windows.joins(problem):
        return taps
    rows, columns = map(max, taps, joined_windows.largest(problem))
    return rows, columns


def _are_finite(maps: np.ndarray) -> bool:
    """Return whether all features are finite; a sum that overflows is taken for an infinite one."""
    with np.errstate(all="ignore"):
        return bool(np.isfinite(maps.sum(dtype=np.float64 if maps.dtype == np.float64 else np.float32)))


def _corner(block: Block) -> tuple[int, int]:
    """Return the first row and the first column of a block."""
    rows, columns = block
    return rows.start, columns.start


def block_size(block: Block) -> int:
    """Return the number of queries of a block."""
    rows, columns = block
    return (rows.stop - rows.start) * (columns.stop - columns.start)


def _padded(values: np.ndarray, count: int) -> np.ndarray:
    """Return an array without gaps, with zeros after the values of the last axis, so that there are so many."""
    if values.shape[-1] == count:
        return np.ascontiguousarray(values)
    found = np.zeros((*values.shape[:-1], count), values.dtype)
    found[..., : values.shape[-1]] = values
    return found


def _along(cotangent: np.ndarray) -> tuple[int, int]:
    """Return the elements of a cotangent from one displacement to the next."""
    along_m, along_n, _ = cotangent.strides
    return along_m // cotangent.itemsize, along_n // cotangent.itemsize


@lru_cache(256)
def _rectangles(top: int, places: int, shape: Shape) -> np.ndarray:
    """Return the table of rectangles of a block whose coordinates have this shape, one for each lookup."""
    lookups, channels, height, width = shape
    size = height * width
    unused = dict.fromkeys(("features", "features_row", "image", "out", "out_row"), 0)
    sizes: dict[str, int] = dict(rows=height, columns=width, top=top, coords_row=width, coords_channel=size)
    rectangles = [Rectangle(slot=k * places, coords=k * channels * size, **sizes, **unused) for k in range(lookups)]
    return np.array(rectangles, np.int64)


@lru_cache(256)
def _groups(count: int, size: int, columns: int) -> np.ndarray:
    """Return what `gradient_kernels` asks of so many groups that have the same taps."""
    return np.stack((np.arange(count) * size, np.full(count, columns)))


@lru_cache(256)
def _offsets(axis: Axis, stride: int) -> np.ndarray:
    """Return the distance of each tap from the first one, in elements, also of the further taps of joined windows."""
    taps = max(axis.taps, joined_windows.LARGEST) if axis.taps_are_neighbours else axis.taps
    return np.array([axis.offset(tap) - axis.first for tap in range(taps)], np.int64) * stride
