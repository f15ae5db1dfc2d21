"""The gradients of input1 and of coords by the variant ``simd``: windows are gathered from packed maps.

    gradient of input1   sums of a window times its factors; a pixel's sums are over its entries, levels and lookups
    gradient of coords   the same sums with the factors of differences, times the pixel of the query; sums are over levels

Threads own blocks of queries. All levels are packed at once where they fit into the workspace for some of the channels, else
a band of rows of one level after the other: a query's windows are added in the same order for any number of threads.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ..._cpu.llvm import VECTOR_BYTES, address
from ..._dtypes import LONGEST_CHAIN
from ..windows import Block
from .gradient_kernels import gather_kernel, slab_vectors, slope_kernel, unpack
from .gradient_queries import Group, Queries, QueryBlocks, block_size
from .packing import scratch

MAPS, TOTALS = 5 * 2**22, 2**23  # bytes of packed maps, and of the totals of queries
PIXELS = 2**20  # bytes of the packed pixels of a block


class Band(NamedTuple):
    """Packed rows of a level."""

    level: int
    rows: slice
    packed: np.ndarray


class Sums:
    """The sums of a block of queries, (queries, channels).

    The sums of a window are added to a chain, and that to a total where chains would become longer than ``longest`` windows.
    """

    def __init__(self, block: Block, memory: Sequence[np.ndarray], longest: int) -> None:
        self.block = block
        self.chain, *self._totals = memory
        self._windows, self._longest = 0, longest
        for each in memory:
            each[...] = 0

    def added(self) -> None:
        """End the chain if the window that was added to it is the last one."""
        self._windows += 1
        if self._windows % self._longest == 0:
            for total in self._totals:
                total += self.chain
                self.chain[...] = 0

    def result(self) -> np.ndarray:
        """Return the sums of all windows."""
        for total in self._totals:
            self.chain += total
        return self.chain


class Gather:
    """The computation of the gradients of input1 and of coords."""

    def __init__(self, queries: QueryBlocks) -> None:
        self.of, self.problem = queries, queries.problem
        positions = sum(map(math.prod, self.problem.sizes2))
        self.vectors = MAPS // (positions * VECTOR_BYTES)  # that fit

    @contextmanager
    def _bands(self, rows: Sequence[tuple[int, slice]], entry: int, group: Group) -> Iterator[list[Band]]:
        """Return a context with packed bands for an entry."""
        with ExitStack() as stack:
            yield [Band(level, each, self.of.packed_map(level, entry, group, each, stack)) for level, each in rows]

    def _rows_at_once(self) -> list[list[tuple[int, slice]]]:
        """Return the rows that are packed at once: those of all levels, or of one where even one vector does not fit."""
        sizes = self.problem.sizes2
        if self.vectors:
            return [[(level, slice(0, height)) for level, (height, _) in enumerate(sizes)]]
        found = []
        for level, (height, width) in enumerate(sizes):
            rows = max(MAPS // (width * VECTOR_BYTES), 1)
            found += [[(level, slice(top, min(top + rows, height)))] for top in range(0, height, rows)]
        return found

    # The gradient of input1.

    def gradient1(self) -> None:
        """Write the gradient of input1."""
        result, largest = self.of.named["gradient1"], max(map(block_size, self.of.blocks), default=1)
        longest = self._windows_of_a_chain()
        arrays = 2 if self._most_windows() > longest else 1
        for group in self.of.groups(min(self.vectors, TOTALS // (arrays * largest * VECTOR_BYTES))):
            for blocks in self.of.block_ranges(TOTALS // (arrays * group.vectors * VECTOR_BYTES)):
                begins = [each - self.of.firsts[blocks.start] for each in self.of.firsts[blocks.start : blocks.stop + 1]]
                with scratch((arrays, begins[-1], group.vectors * self.of.lanes), self.of.accumulator) as memory:
                    parts = [list(memory[:, begin:end]) for begin, end in pairwise(begins)]
                    for image in range(len(result)):
                        sums = [Sums(*each, longest) for each in zip(self.of.blocks[blocks], parts, strict=True)]
                        self._gradient1(image, group, sums)

    def _windows_of_a_chain(self) -> int:
        """Return the number of windows whose sums may be added to a chain, each of them in several steps if it is large."""
        rows_of_taps, columns = self.of.most_taps
        rows = max(LONGEST_CHAIN.registers // columns, 1)
        steps = -(-rows_of_taps // rows) * -(-columns // LONGEST_CHAIN.registers)
        return max(LONGEST_CHAIN.memory // steps, 1)

    def _most_windows(self) -> int:
        """Return the largest number of windows of a pixel of input1."""
        bands = sum(map(len, self._rows_at_once()))
        return max(Counter(self.of.arrays.index1).values(), default=0) * bands * len(self.of.rounds)

    def _gradient1(self, image: int, group: Group, sums: Sequence[Sums]) -> None:
        """Write the gradient of some blocks of an image."""
        for entry in self.of.entries(self.of.arrays.index1, image):
            for rows in self._rows_at_once():
                with self._bands(rows, entry, group) as bands:
                    self.of.run(partial(self._gather, entry, bands), sums)
            self.of.end_entry()
        self.of.run(partial(self._write, image, group), sums)

    def _gather(self, entry: int, bands: Sequence[Band], sums: Sums) -> None:
        """Add the windows of a block to its sums."""
        for band in bands:
            for adding in self.of.rounds:
                with ExitStack() as stack:
                    queries = self.of.factored(adding, entry, band.level, sums.block, band.rows, stack)
                    if queries is not None:
                        self._add(queries, band, sums.chain)
                        sums.chain[~queries.finite] = np.nan
                    sums.added()  # also for no windows: where chains end does not depend on the other queries of the block

    def _add(self, queries: Queries, band: Band, chain: np.ndarray) -> None:
        arguments = self.of.kernel_arguments(queries, band.packed, band.rows.start)
        at = 0
        for vectors in slab_vectors(chain.shape[1] // self.of.lanes):
            kernel = gather_kernel(vectors, self.of.accumulator)
            kernel(*arguments, 0, queries.size, address(band.packed) + at, address(chain) + at, chain.shape[1])
            at += vectors * VECTOR_BYTES

    def _write(self, image: int, group: Group, sums: Sums) -> None:
        rows, columns = sums.block
        place = self.of.named["gradient1"][image, group.channels, rows, columns]
        unpack(sums.result().reshape(*place.shape[1:], -1), place, self.of.scale)

    # The gradient of coords.

    def gradient_coords(self) -> None:
        """Write the gradient of coords."""
        result = self.of.named["gradient_coords"].reshape(self.problem.full_coords_shape)
        largest = max(map(block_size, self.of.blocks), default=1)
        most = min(self.vectors, PIXELS // (largest * VECTOR_BYTES))
        for entry in range(len(result)):
            with scratch(result.shape[1:], self.of.accumulator) as total:
                total[...] = 0
                for group in self.of.groups(most):
                    for rows in self._rows_at_once():
                        with self._bands(rows, entry, group) as bands:
                            self.of.run(partial(self._add_slopes, entry, group, bands, total), self.of.blocks)
                total *= self.of.scale
                np.moveaxis(total, 1, -1)[~np.isfinite(self.of.arrays.coords[entry]).all(1)] = np.nan
                np.copyto(result[entry], total, casting="unsafe")

    def _add_slopes(self, entry: int, group: Group, bands: Sequence[Band], total: np.ndarray, block: Block) -> None:
        """Add the slopes of a block to the total (K, 1 or 2, H, W)."""
        rows, columns = block
        sets, places = total.shape[1], self.of.places(block)
        with (
            scratch((sets, self.of.factors_size(block)), self.of.accumulator) as factors,
            scratch((block_size(block), group.vectors * self.of.lanes), self.of.accumulator) as pixels,
            scratch((sets, places, self.of.lanes), self.of.accumulator) as slopes,
        ):
            self.of.pack_pixels(entry, block, group, pixels)
            for band in bands:
                for lookup in range(self.problem.lookups):
                    slopes[...] = 0
                    windows = self.of.windows(entry, band.level, range(lookup, lookup + 1), block)
                    cotangent = self.of.cotangent(entry, band.level, lookup, block)
                    for number, of_set in enumerate(factors):
                        queries = self.of.queries(band.level, windows, cotangent, of_set, band.rows, differs=1 - number)
                    self._slopes(queries._replace(factors=factors), band, pixels, slopes)
                    found = slopes[:, : windows.size].sum(2).reshape(sets, rows.stop - rows.start, -1)
                    for channel, scale in enumerate(self.problem.level_scales[band.level][::-1][:sets]):
                        total[lookup, channel, rows, columns] += self.of.accumulator.type(scale) * found[channel]

    def _slopes(self, queries: Queries, band: Band, pixels: np.ndarray, slopes: np.ndarray) -> None:
        """Add the slopes of queries, whose lanes are still to be added; the factors are one set after the other."""
        arguments = self.of.kernel_arguments(queries, band.packed, band.rows.start)
        sets, at = len(slopes), 0
        for vectors in slab_vectors(pixels.shape[1] // self.of.lanes, sums=sets):
            kernel = slope_kernel(vectors, sets, self.of.accumulator)
            packed = address(band.packed) + at, address(pixels) + at, pixels.shape[1]
            kernel(*arguments, 0, queries.size, *packed, queries.factors[0].size, address(slopes))
            at += vectors * VECTOR_BYTES
