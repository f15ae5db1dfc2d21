"""The gradient of input2 by the variant ``simd``: the pixels of queries are scattered into packed maps.

Queries come in ascending order, chunk by chunk: threads first share the blocks of a chunk to find windows and factors, then the
slabs of channels to add them. The levels and channels that fit into the workspace are computed at once, else a band of rows of
one level after the other. Where chains of additions end depends on the request and the coordinates only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import numpy as np

from ..._cpu.llvm import VECTOR_BYTES, address
from ..._dtypes import LONGEST_CHAIN
from ..problem import Problem
from .gradient_kernels import scatter_kernel, slab_vectors, unpack
from .gradient_queries import Group, Queries, QueryBlocks, Round, most_taps
from .packing import scratch

MAPS = 5 * 2**22  # bytes of the packed gradients that are computed at once, chains and totals
CHUNK = 2**23  # bytes of the queries of a chunk, or one block
LEAST_VECTORS = 8  # channels are not divided further before rows are: threads own some of them


class Pass(NamedTuple):
    """The levels, channels and rows whose gradients are computed at once."""

    levels: list[int]
    group: Group
    band: slice | None


class Chunk(NamedTuple):
    """The queries of some blocks.

    Attributes
    ----------
    pixels
        The packed pixels of all of them, (queries, channels).
    firsts
        The number of the first query of each block.
    queries
        The queries of the blocks that have any, by the number of the block, for each map.
    """

    pixels: np.ndarray
    firsts: list[int]
    queries: list[dict[int, Queries]]


class Scatter:
    """The computation of the gradient of input2."""

    def __init__(self, queries: QueryBlocks) -> None:
        self.of, self.problem = queries, queries.problem

    def gradient2(self, levels: Sequence[int]) -> None:
        """Write the gradients of these levels."""
        for each in self._passes(levels):
            for image in range(self.problem.batch2):
                with ExitStack() as stack:
                    maps = [ScatteredMap(self.of, level, each.group, each.band, stack) for level in each.levels]
                    for entry in self.of.entries(self.of.arrays.index2, image):
                        for adding in self.of.rounds:
                            self._scatter(entry, adding, each.group, maps)
                        self.of.end_entry()
                    self.of.run(_call, [partial(map_.write, image, slab) for map_ in maps for slab in map_.slabs])

    def _passes(self, levels: Sequence[int]) -> Iterator[Pass]:
        sizes = self.problem.sizes2
        most = MAPS // (2 * sum(math.prod(sizes[level]) for level in levels) * VECTOR_BYTES) if levels else 0
        if most >= self.of.vectors:
            yield from (Pass(list(levels), group, None) for group in self.of.groups(most))
            return
        for level in levels:
            height, width = sizes[level]
            most = max(MAPS // (2 * height * width * VECTOR_BYTES), LEAST_VECTORS)
            for group in self.of.groups(min(most, MAPS // (2 * width * VECTOR_BYTES))):
                rows = max(MAPS // (2 * width * group.vectors * VECTOR_BYTES), 1)
                for top in range(0, height, rows):
                    yield Pass([level], group, slice(top, min(top + rows, height)))

    def _scatter(self, entry: int, adding: Round, group: Group, maps: Sequence[ScatteredMap]) -> None:
        """Add the windows of all queries of an entry in a round."""
        width = group.vectors * self.of.lanes
        of_query = len(maps) * query_bytes(self.problem, self.of.accumulator) + width * self.of.accumulator.itemsize
        for blocks in self.of.block_ranges(CHUNK // of_query):
            with ExitStack() as stack:
                chunk = self._chunk(entry, adding, group, maps, blocks, stack)
                tasks = []
                for each, queries in zip(maps, chunk.queries, strict=True):
                    steps = each.steps(queries)
                    tasks += [partial(each.add, slab, steps, queries, chunk) for slab in each.slabs if steps]
                self.of.run(_call, tasks)

    def _chunk(
        self, entry: int, adding: Round, group: Group, maps: Sequence[ScatteredMap], blocks: slice, stack: ExitStack
    ) -> Chunk:
        """Pack the pixels of some blocks, and find their windows and factors."""
        first, accumulator = self.of.firsts[blocks.start], self.of.accumulator
        firsts = [each - first for each in self.of.firsts[blocks.start : blocks.stop + 1]]
        pixels = stack.enter_context(scratch((firsts[-1], group.vectors * self.of.lanes), accumulator))
        found: list[dict[int, Queries]] = [{} for _ in maps]

        def prepare(number: int) -> None:
            block = self.of.blocks[blocks.start + number]
            for each, queries in zip(maps, found, strict=True):
                windows = self.of.factored(adding, entry, each.level, block, each.rows, stack)
                if windows is not None:
                    queries[number] = windows
            if any(number in queries for queries in found):
                self.of.pack_pixels(entry, block, group, pixels[firsts[number] : firsts[number + 1]])

        self.of.run(prepare, range(len(firsts) - 1))
        return Chunk(pixels, firsts, [dict(sorted(queries.items())) for queries in found])


class Slab(NamedTuple):
    """The channels of a map that a thread owns.

    Attributes
    ----------
    begin, vectors
        The first vector of the group, and the number of vectors.
    chains
        The sums of the chains that have not ended, (rows, W2, channels).
    totals
        The sums of those that have; nothing before the first one ends.
    """

    begin: int
    vectors: int
    chains: np.ndarray
    totals: list[np.ndarray]


class Step(NamedTuple):
    """Some queries of a block to add: the first one, and the one after the last."""

    block: int
    first: int
    end: int


END_OF_CHAINS = None


class ScatteredMap:
    """The packed gradient of a level, or of a band of its rows, in slabs of channels.

    A chain of additions to an element is at most `LONGEST_CHAIN.memory` long: it is then added to a total and begun anew.
    """

    def __init__(self, queries: QueryBlocks, level: int, group: Group, band: slice | None, stack: ExitStack) -> None:
        self.of, self.level, self._group, self._stack = queries, level, group, stack
        height, width = queries.problem.sizes2[level]
        self.rows = slice(0, height) if band is None else band
        self._size = self.rows.stop - self.rows.start, width
        self._longest = 0  # a bound of the length of a chain
        self.slabs, begin = [], 0
        for vectors in slab_vectors(group.vectors, queries.threads):
            self.slabs.append(Slab(begin, vectors, self._zeros(vectors), []))
            begin += vectors

    def _zeros(self, vectors: int) -> np.ndarray:
        array = self._stack.enter_context(scratch((*self._size, vectors * self.of.lanes), self.of.accumulator))
        array[...] = 0
        return array

    def steps(self, queries: Mapping[int, Queries]) -> list[Step | None]:
        """Return the steps of adding the queries of some blocks, between which chains end."""
        if not queries:
            return []
        limit = LONGEST_CHAIN.memory
        most = self._most_additions(queries)
        found = self._end_of_chains() if self._longest + most > limit else []
        if most <= limit:
            self._longest += most
            return [*found, *(Step(number, 0, each.size) for number, each in queries.items())]
        for number, each in queries.items():
            first = 0
            while first < each.size:
                count = min(each.size - first, limit - self._longest)
                found.append(Step(number, first, first + count))
                first, self._longest = first + count, self._longest + count
                if self._longest == limit:
                    found += self._end_of_chains()
        return found

    def _end_of_chains(self) -> list[Step | None]:
        if not self._longest:
            return []
        self._longest = 0
        for slab in self.slabs:
            if not slab.totals:
                slab.totals.append(self._zeros(slab.vectors))
        return [END_OF_CHAINS]

    def add(self, slab: Slab, steps: Sequence[Step | None], queries: Mapping[int, Queries], chunk: Chunk) -> None:
        """Add the windows of queries to a slab."""
        kernel = scatter_kernel(slab.vectors, self.of.accumulator)
        stride, item = chunk.pixels.shape[1], chunk.pixels.itemsize
        for step in steps:
            if step is END_OF_CHAINS:
                slab.totals[0][...] += slab.chains
                slab.chains[...] = 0
                continue
            arguments = self.of.kernel_arguments(queries[step.block], slab.chains, self.rows.start)
            pixels = address(chunk.pixels) + chunk.firsts[step.block] * stride * item + slab.begin * VECTOR_BYTES
            kernel(*arguments, step.first, step.end - step.first, address(slab.chains), pixels, stride)

    def write(self, image: int, slab: Slab) -> None:
        """Write a slab into the gradient of an image."""
        found = slab.chains
        for total in slab.totals:
            found += total
        first = self._group.channels.start + slab.begin * self.of.lanes
        last = min(first + slab.vectors * self.of.lanes, self._group.channels.stop)
        result = self.of.named[self.of.problem.gradient2_names[self.level]]
        unpack(found, result[image, first:last, self.rows], self.of.scale)

    def _most_additions(self, queries: Mapping[int, Queries]) -> int:
        """Return the most additions of these queries to one position: the most windows that contain it."""
        origins, ranges = (
            np.concatenate([getattr(each, name)[:, : each.size] for each in queries.values()], 1)
            for name in ("origins", "ranges")
        )
        some = (ranges[1] > 0) & (ranges[3] > 0)
        if not some.any():
            return 0
        edges, sizes = [], []
        for axis, origin in enumerate(origins[:, some]):
            offsets, (first, count) = self.of.offsets(axis, 1), ranges[2 * axis : 2 * axis + 2, some]
            begin, end = origin + offsets[first], origin + offsets[first + count - 1] + 1
            edges.append((begin - begin.min(), end - begin.min()))
            sizes.append(int(edges[axis][1].max()) + 1)
        # Each window adds 1 to the positions after its first corner, and takes it away after its other corners.
        corners = np.zeros(sizes, np.int64)
        (top, bottom), (left, right) = edges
        for y, x, sign in ((top, left, 1), (bottom, left, -1), (top, right, -1), (bottom, right, 1)):
            corners += sign * np.bincount(y * sizes[1] + x, minlength=corners.size).reshape(sizes)
        return int(corners.cumsum(0).cumsum(1).max())


def query_bytes(problem: Problem, accumulator: np.dtype) -> int:
    """Return the bytes of a query at a level, apart from its pixel."""
    windows = 4 * accumulator.itemsize + 6 * 8
    return math.prod(most_taps(problem)) * accumulator.itemsize + windows


def _call(task: partial[None]) -> None:
    task()
