"""The variant ``blas``: matrix products between the queries of a tile and the union of their windows.

    dots (queries, positions)        = input1 (queries, C) . input2 (C, positions)        of which each query's window is taken
    gradient of input1 (C, queries)  = input2 (C, positions) . factors (positions, queries)
    gradient of input2 (C, positions) = input1 (C, queries) . factors (queries, positions)

Factors are 0 where a query does not read a position. Where that meets an infinity or NaN, 0 times which is NaN, the sums are
computed again window by window.

Tasks write disjoint parts of a result: blocks of queries, or rows and channels of the gradient of input2. They and the order of
every sum follow from the request and the coordinates, and not from the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from ..._cpu import workers
from ..._cpu.blas_limits import with_one_blas_thread
from ..._dispatch import FORWARD, Request
from ..._dtypes import ELEMENT_TYPES, LONGEST_CHAIN, element_type
from ..._gpu.device import Device
from ..chains import Chains
from ..problem import Problem
from ..windows import Arrays, Block, Windows, blocks, coords_of, of_block, rows_read, write_block
from .tiles import CALL, COPIED, PRODUCT, ROWS, TILE, Tile, order, tile_queries, tiles

# Bytes of the arrays of a task: dots of a block, its pixels of input1, a part of input2, a part of the gradient of input2.
DOTS, PIXELS, UNION, MAP = 2**19, 2**20, 2**20, 2**22
DOT_ARRAYS = 6  # arrays of the size of the dots that are held at once
CHANNELS = 128  # the most channels of the gradient of input2 that a task owns: enough tasks for several threads
BAND = 24  # the least rows of it: a window that is in two bands is worked out twice
THREAD_SECONDS = 1e-3  # a call that takes less by the cost model runs in one thread


class _Queries(NamedTuple):
    """The queries of a block for one lookup at one level, sorted as `tiles.order` says, and their windows."""

    entry: int
    level: int
    lookup: int
    block: Block
    sorted: np.ndarray
    windows: Windows


class Products:
    """The computation of one call."""

    def __init__(self, request: Request, arrays: Mapping[str, np.ndarray]) -> None:
        self.problem: Problem = request.problem
        self.named, self.arrays = arrays, Arrays(self.problem, arrays)
        self.accumulator = element_type("input1", self.arrays.input1.dtype).accumulator_dtype
        self.scale = self.accumulator.type(self.problem.parameters.scale)
        self.blocks = list(blocks(self.problem, _block_queries(self.problem, self.accumulator.itemsize), ROWS))

    # Passes: the tasks of each, and what one of them writes.

    def forward_tasks(self) -> Iterator[Any]:
        """Yield the entry, the level, the lookup and the block of each task."""
        problem = self.problem
        return product(range(problem.entries), range(problem.levels), range(problem.lookups), self.blocks)

    def forward(self, task: tuple[int, int, int, Block]) -> None:
        """Write the output of a block."""
        queries = self._queries(*task)
        blended = queries.windows.blend(self._dots(queries))
        blended *= self.scale
        entry, level, lookup, block = task
        write_block(_in_rows(blended, queries), self.arrays.full(self.named["out"])[entry, level, lookup], block)

    def coords_tasks(self) -> Iterator[Any]:
        """Yield the entry, the lookup and the block of each task."""
        return product(range(self.problem.entries), range(self.problem.lookups), self.blocks)

    def gradient_coords(self, task: tuple[int, int, Block]) -> None:
        """Write the gradient of the coordinates of a block, a sum over levels."""
        entry, lookup, block = task
        total: Any = 0
        for level in range(self.problem.levels):
            queries = self._queries(entry, level, lookup, block)
            total = total + queries.windows.slopes(self._dots(queries), self._cotangent(queries))
        result = self.named["gradient_coords"].reshape(self.problem.full_coords_shape)
        write_block(_in_rows(total * self.scale, queries), result[entry, lookup], block)

    def gradient1_tasks(self) -> Iterator[Any]:
        """Yield the image, the block and the range of channels of each task."""
        size = max(max((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in self.blocks), 1)
        channels = max(PIXELS // (size * self.accumulator.itemsize), 1)
        return product(range(self.problem.batch1), self.blocks, _ranges(self.problem.channels, channels))

    def gradient1(self, task: tuple[int, Block, slice]) -> None:
        """Write the gradient of some channels of a block of input1, a sum over the entries of its image, levels and lookups."""
        image, block, channels = task
        chains = Chains((channels.stop - channels.start, _size(block)), self.accumulator)
        for entry in _entries(self.arrays.index1, image):
            for level, lookup in np.ndindex(self.problem.levels, self.problem.lookups):
                queries, chain = self._queries(entry, level, lookup, block), chains.next()
                self._add_gradient1(chain, queries, channels)
                chain[:, ~queries.windows.finite] = np.nan
        total = chains.sums() * self.scale
        found = np.empty_like(total)
        found[:, order(*_shape(block))] = total
        write_block(found, self.named["gradient1"][image, channels], block)

    def gradient2_tasks(self, level: int) -> Iterator[Any]:
        """Yield the level, the image, the rows and the range of channels of each task."""
        height, width = self.problem.sizes2[level]
        row = width * self.accumulator.itemsize
        rows = max(MAP // (row * min(self.problem.channels, CHANNELS) or 1), BAND)
        channels = min(max(MAP // (row * min(rows, height)), 1), CHANNELS)
        images, bands = range(self.problem.batch2), _ranges(height, rows)
        return product((level,), images, bands, _ranges(self.problem.channels, channels))

    def gradient2(self, task: tuple[int, int, slice, slice]) -> None:
        """Write the gradient of some rows and channels of a map, a sum over the entries of its image, lookups and queries."""
        level, image, band, channels = task
        width = self.problem.sizes2[level][1]
        chains = Chains((channels.stop - channels.start, band.stop - band.start, width), self.accumulator)
        for entry in _entries(self.arrays.index2, image):
            for lookup, block in product(range(self.problem.lookups), self.blocks):
                low, high = rows_read(self.problem, level, self.arrays.coords[entry, lookup], block)
                if low < band.stop and high >= band.start:
                    self._add_gradient2(chains, self._queries(entry, level, lookup, block, band), channels)
        total = chains.sums()
        total *= self.scale
        np.copyto(self.named[self.problem.gradient2_names[level]][image, channels, band], total, casting="unsafe")

    # Products of tiles.

    def _dots(self, queries: _Queries) -> np.ndarray:
        """Return the dots of the windows of sorted queries, 0 outside the map."""
        dots = np.zeros(queries.windows.shape, self.accumulator)
        for tile in self._tiles(queries):
            products = np.zeros((tile.size, math.prod(tile.shape)), self.accumulator)
            for channels in self._channels(tile):
                products += self._pixels(queries, tile, channels).T @ self._union(queries, tile, channels)
            at = tile.positions() + np.arange(tile.size) * products.shape[1]
            dots[:, :, tile.queries] = np.where(tile.inside(), products.ravel().take(at), 0)
        return dots

    def _add_gradient1(self, total: np.ndarray, queries: _Queries, channels: slice) -> None:
        factors = queries.windows.spread(self._cotangent(queries))
        for tile in self._tiles(queries):
            matrix = _factors_of_positions(tile, factors)
            for part in self._channels(tile, channels):
                union = self._union(queries, tile, part)
                sums = union @ matrix
                if not np.isfinite(sums).all():
                    sums = _window_by_window(tile, factors, union)
                total[part.start - channels.start : part.stop - channels.start, tile.queries] += sums

    def _add_gradient2(self, chains: Chains, queries: _Queries, channels: slice) -> None:
        factors = queries.windows.spread(self._cotangent(queries))
        for tile in self._tiles(queries):
            matrix, chain = _factors_of_positions(tile, factors), chains.next()
            for part in self._channels(tile, channels):
                pixels = self._pixels(queries, tile, part)
                sums = pixels @ matrix.T
                if not np.isfinite(sums).all():
                    sums = _query_by_query(tile, factors, pixels)
                tile.add_to_map(sums, chain[part.start - channels.start : part.stop - channels.start])

    def _tiles(self, queries: _Queries) -> Iterator[Tile]:
        rows, _ = _shape(queries.block)
        return tiles(queries.windows, self.problem.channels, tile_queries(rows))

    def _channels(self, tile: Tile, channels: slice | None = None) -> Iterator[slice]:
        """Divide channels so that chains of sums are short and the part of the map that a tile reads is bounded."""
        whole = channels or slice(0, self.problem.channels)
        most = max(UNION // (max(math.prod(tile.shape), tile.size) * self.accumulator.itemsize), 1)
        for part in _ranges(whole.stop - whole.start, min(most, LONGEST_CHAIN.blas)):
            yield slice(whole.start + part.start, whole.start + part.stop)

    # Copies of the arrays, with sorted queries.

    def _queries(self, entry: int, level: int, lookup: int, block: Block, band: slice | None = None) -> _Queries:
        coords, own_rows = coords_of(self.arrays, entry, lookup, block)
        found = order(*_shape(block))
        windows = Windows(self.problem, level, coords[:, found], own_rows[found], self.accumulator, band)
        return _Queries(entry, level, lookup, block, found, windows)

    def _cotangent(self, queries: _Queries) -> np.ndarray:
        plane = self.arrays.full(self.named["cotangent"])[queries.entry, queries.level, queries.lookup]
        return of_block(plane, queries.block, self.accumulator)[:, :, queries.sorted]

    def _pixels(self, queries: _Queries, tile: Tile, channels: slice) -> np.ndarray:
        """Return the pixels of input1 of a tile, (channels, queries)."""
        image = self.arrays.input1[self.arrays.index1[queries.entry], channels]
        rows, columns = np.divmod(queries.sorted[tile.queries], _shape(queries.block)[1])
        top, left = queries.block[0].start, queries.block[1].start
        return image[:, top + rows, left + columns].astype(self.accumulator, order="C")

    def _union(self, queries: _Queries, tile: Tile, channels: slice) -> np.ndarray:
        """Return the positions of input2 that a tile reads, (channels, positions)."""
        image = self.arrays.levels[queries.level][self.arrays.index2[queries.entry], channels]
        return tile.of_map(image, self.accumulator)


def _factors_of_positions(tile: Tile, factors: np.ndarray) -> np.ndarray:
    """Return the factors (rows of taps, columns of taps, queries) by position in the union, (positions, queries)."""
    matrix = np.zeros((math.prod(tile.shape), tile.size), factors.dtype)
    inside = tile.inside()
    at = tile.positions() * tile.size + np.arange(tile.size)
    matrix.ravel()[at[inside]] = factors[:, :, tile.queries][inside]
    return matrix


def _window_by_window(tile: Tile, factors: np.ndarray, union: np.ndarray) -> np.ndarray:
    """Return the gradient of input1 for a tile, (channels, queries), of the positions of each window only."""
    sums = np.zeros((len(union), tile.size), union.dtype)
    inside, positions = tile.inside(), tile.positions()
    for query in range(tile.size):
        read = inside[:, :, query]
        sums[:, query] = np.einsum("p,cp->c", factors[:, :, tile.queries.start + query][read], union[:, positions[read, query]])
    return sums


def _query_by_query(tile: Tile, factors: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Return the gradient of input2 for a tile, (channels, positions), where each query adds to its own window only."""
    sums = np.zeros((len(pixels), math.prod(tile.shape)), pixels.dtype)
    inside, positions = tile.inside(), tile.positions()
    for query in range(tile.size):
        read = inside[:, :, query]
        sums[:, positions[read, query]] += factors[:, :, tile.queries.start + query][read] * pixels[:, query, None]
    return sums


def _in_rows(values: np.ndarray, queries: _Queries) -> np.ndarray:
    """Return values (..., sorted queries) in the order of the rows of the block."""
    found = np.empty_like(values)
    found[..., queries.sorted] = values
    return found


def _entries(index: list[int], image: int) -> Iterator[int]:
    """Yield the entries that an image belongs to, in ascending order."""
    return (entry for entry, found in enumerate(index) if found == image)


def _ranges(count: int, size: int) -> Iterator[slice]:
    for begin in range(0, count, size):
        yield slice(begin, min(begin + size, count))


def _shape(block: Block) -> tuple[int, int]:
    rows, columns = block
    return rows.stop - rows.start, columns.stop - columns.start


def _size(block: Block) -> int:
    return math.prod(_shape(block))


# Plans ------------------------------------------------------------------------------------------------------------------------


def _block_queries(problem: Problem, itemsize: int) -> int:
    """Return the most queries of a block: their dots are bounded, and at least a tile is taken where memory allows."""
    taps = problem.vertical.taps * problem.horizontal.taps
    return max(DOTS // (taps * itemsize), 1)


def _task_bytes(problem: Problem, itemsize: int) -> int:
    """Return the most bytes that a task holds."""
    taps = problem.vertical.taps * problem.horizontal.taps * itemsize
    dots = max(DOTS, taps) * DOT_ARRAYS
    band = max(MAP, BAND * max(width for _, width in problem.sizes2) * itemsize)
    return dots + PIXELS + 3 * UNION + 2 * band


@dataclass(frozen=True, slots=True)
class BlasPlan:
    """A request by matrix products."""

    request: Request
    seconds: float
    threads: Callable[[], int]
    workspace: int = workers.WORKSPACE
    algorithm: str = "blas"

    @property
    def description(self) -> str:
        """The algorithm in words."""
        return f"matrix products of tiles of queries and the union of their windows in {self.threads()} thread(s)"

    def run(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Compute the output or the needed gradients."""
        computation = Products(self.request, arrays)
        for compute, tasks in self._passes(computation):
            threads = self.threads() if self.seconds >= THREAD_SECONDS else 1
            workers.run(partial(_in_one_blas_thread, compute), tasks, threads)

    def _passes(self, computation: Products) -> Iterator[tuple[Callable[[Any], None], Iterable[Any]]]:
        """Yield the function of each result and its tasks."""
        if self.request.pass_name == FORWARD:
            yield computation.forward, computation.forward_tasks()
            return
        first, *levels, coords = self.request.needs
        if first:
            yield computation.gradient1, computation.gradient1_tasks()
        needed = [level for level, wanted in enumerate(levels) if wanted]
        yield computation.gradient2, [task for level in needed for task in computation.gradient2_tasks(level)]
        if coords:
            yield computation.gradient_coords, computation.coords_tasks()


def _in_one_blas_thread(compute: Callable[[Any], None], task: Any) -> None:
    with_one_blas_thread(compute, task)


def plan(request: Request, device: Device | None) -> BlasPlan:
    """Return the plan of a request."""
    itemsize = ELEMENT_TYPES[request.dtype].accumulator_dtype.itemsize
    most = max(workers.WORKSPACE // _task_bytes(request.problem, itemsize), 1)
    return BlasPlan(request, _seconds(request, itemsize), lambda: min(workers.blas_threads(), most))


def _seconds(request: Request, itemsize: int) -> float:
    """Estimate the seconds of an answer in one thread, for a smooth flow: windows of neighbours are nearly neighbours."""
    problem = request.problem
    rows, columns = problem.size1
    tile = min(rows, ROWS), min(columns, TILE // min(rows, ROWS))
    area = (problem.vertical.taps + tile[0] - 1) * (problem.horizontal.taps + tile[1] - 1)
    count = problem.entries * problem.lookups * problem.levels * -(-rows // tile[0]) * -(-columns // tile[1])
    products = problem.channels * area * (COPIED + PRODUCT * math.prod(tile)) * itemsize / 4
    first, *levels, coords = request.needs
    passes = 1.0 if request.pass_name == FORWARD else first + sum(levels) / len(levels) + coords
    return passes * count * (2 * CALL + products)
