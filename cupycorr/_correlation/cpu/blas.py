"""The engine of the ``blas`` variant: a search along a row is a band of a matrix product.

For one row of queries and the search rows that it reads,

    (columns x channels) . (channels x search columns)

holds the products of all displacements in a band of its diagonals, which a strided view selects; gradients multiply the cotangent
written into the same band. With few channels a product has little to sum, and shifted rows are multiplied instead. This module
knows packed blocks, and neither windows nor threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..._cpu import workers
from ..._cpu.blas_limits import with_one_blas_thread
from ..._dtypes import LONGEST_CHAIN
from .blocks import COLUMNS, ROWS, intersection
from .costs import BAND_VALUE, PRODUCT_CALL, PRODUCT_RATE, SHIFTED_VALUE
from .engine import Workload
from .packing import Block, BlockAxis, Phase

FEW_CHANNELS = 4  # up to this number products of shifted rows are faster than a matrix product and its band
ROWS_PER_COPY = 8  # query rows that share a copy of the search rows, where these have to be copied


def tile_columns(channels: int) -> int:
    """Return the number of queries of a product: wide tiles copy the band in longer runs, narrow ones waste fewer products."""
    return 64 if channels <= 64 else 32


@dataclass(frozen=True, slots=True)
class _Band:
    """The queries ``begin, begin + step, ...`` of a row, and displacements at which they read the same search columns.

    Query ``begin + step j`` reads, at displacement index ``ns[k]``, packed column ``column + step (j + k)``: a band of diagonals.
    """

    begin: int
    step: int
    ns: range
    column: int


def _bands(block: Block) -> Iterator[_Band]:
    """Divide the queries and displacements of a row, of any pitch and step, into bands."""
    axis, columns = block.columns, block.region.lengths[COLUMNS]
    for phase in axis.phases:
        ns = range(phase.first, phase.first + axis.pitch * (phase.count - 1) + 1, axis.pitch)
        for begin in range(min(axis.step, columns)):
            yield _Band(begin, axis.step, ns, phase.base + begin)


class BandedProducts:
    """The engine of the ``blas`` variant."""

    name = "blas"
    compiles = False
    sums_rows = False

    @property
    def description(self) -> str:
        """See `engine.Engine`."""
        return f"banded matrix products in {workers.blas_threads()} thread(s)"

    def threads(self) -> int:
        """Return how many threads may call BLAS at once."""
        return workers.blas_threads()

    def seconds(self, workload: Workload) -> float:
        """See `engine.Engine`."""
        element = workload.itemsize / 4
        if workload.channels <= FEW_CHANNELS:
            calls = workload.patch_rows * workload.patch_columns * 2 * PRODUCT_CALL
            values = workload.row_pairs * workload.patch_columns * workload.columns * workload.channels
            return calls + values * SHIFTED_VALUE * element
        queries = -(-workload.columns // workload.column_step)
        displacements = -(-workload.patch_columns // workload.column_phases)
        size = min(tile_columns(workload.channels), queries)
        tiles = workload.column_phases * workload.column_step * -(-queries // size)
        multiplied = 2 * workload.channels * size * (size + displacements - 1) / PRODUCT_RATE * element
        band = displacements * size * BAND_VALUE * element
        calls = workload.rows * workload.row_phases * 3 * PRODUCT_CALL
        return tiles * (calls + workload.row_pairs * (PRODUCT_CALL / 4 + multiplied + band))

    def volume(self, block: Block, query: np.ndarray, total: np.ndarray) -> None:
        """See `engine.Engine`."""
        with_one_blas_thread(self._volume, block, query, total)

    def gradient(self, block: Block, cotangent: np.ndarray, total: np.ndarray) -> None:
        """See `engine.Engine`."""
        with_one_blas_thread(self._gradient, block, cotangent, total)

    def _volume(self, block: Block, query: np.ndarray, total: np.ndarray) -> None:
        if query.shape[1] <= FEW_CHANNELS:
            for shifted in _shifted_rows(block, query, total):
                shifted.of_displacement[...] += np.einsum("tcx,tcx->tx", shifted.of_queries, shifted.search)
            return
        for tile in _tiles(block, query.shape[1]):
            for row in tile.rows(channels_first=False):
                products = _product(query[row.t, :, tile.queries].T, row.search)
                along_m, along_query, along_column = products.strides
                shape = len(row.search), len(tile.band.ns), tile.columns
                band = as_strided(products, shape, (along_m, along_column, along_query + along_column))
                total[row.ms, tile.ns, row.t, tile.queries] += band

    def _gradient(self, block: Block, cotangent: np.ndarray, total: np.ndarray) -> None:
        if total.shape[1] <= FEW_CHANNELS:
            for shifted in _shifted_rows(block, total, cotangent):
                shifted.of_queries[...] += shifted.of_displacement[:, None] * shifted.search
            return
        for tile in _tiles(block, total.shape[1]):
            size, ns = tile.columns, len(tile.band.ns)
            most = max(phase.count for phase in block.rows.phases)
            factors = np.zeros((most, tile.search_columns, size), total.dtype)
            along_m, along_column, along_query = factors.strides
            band = as_strided(factors, (most, ns, size), (along_m, along_column, along_column + along_query))
            for row in tile.rows(channels_first=True):
                values = cotangent[row.ms, tile.ns, row.t, tile.queries]
                band[: len(values)] = values
                # One product over all search rows side by side also sums over the displacement rows.
                sums = row.search.reshape(len(row.search), -1) @ factors[: len(values)].reshape(-1, size)
                if not np.isfinite(sums).all():
                    # Zeros beside the band times Inf are NaN: sum the products of the band only.
                    sums = np.zeros_like(sums)
                    for m, n in np.ndindex(len(values), ns):
                        sums += values[m, n] * row.search[:, m, n : n + size]
                total[row.t, :, tile.queries] += sums


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return ``left @ right``, summed in chains of bounded length."""
    product = left[:, : LONGEST_CHAIN.blas] @ right[:, : LONGEST_CHAIN.blas]
    for begin in range(LONGEST_CHAIN.blas, right.shape[1], LONGEST_CHAIN.blas):
        chain = slice(begin, begin + LONGEST_CHAIN.blas)
        product += left[:, chain] @ right[:, chain]
    return product


class _SearchRows(NamedTuple):
    """A query row ``t``, the search rows that it reads, and the displacement rows ``ms`` at which it reads them."""

    t: int
    search: np.ndarray
    ms: slice


@dataclass(frozen=True, slots=True)
class _Tile:
    """Queries of a band in a range of columns, for all rows of a block."""

    block: Block
    band: _Band
    begin: int
    columns: int

    @property
    def search_columns(self) -> int:
        """The number of search columns that the queries read."""
        return self.columns + len(self.band.ns) - 1

    @property
    def queries(self) -> slice:
        """The columns of the queries in the block."""
        first = self.band.begin + self.band.step * self.begin
        return slice(first, first + self.band.step * (self.columns - 1) + 1, self.band.step)

    @property
    def ns(self) -> slice:
        """The displacement indices of the band."""
        return slice(self.band.ns.start, self.band.ns.stop, self.band.ns.step)

    def rows(self, channels_first: bool) -> Iterator[_SearchRows]:
        """Yield each query row with the search rows that it reads in a phase.

        The search rows are (channels, rows, columns) or (rows, channels, columns), with contiguous columns.
        """
        block, axis = self.block, self.block.rows
        for phase in axis.phases:
            valid_rows = block.valid_rows[phase.first :: axis.pitch][: phase.count]
            for group in _row_groups(block.region.lengths[ROWS], axis.step):
                search = self._search(phase, group, channels_first)
                for index, t in enumerate(group):
                    valid = [k for k, (low, high) in enumerate(valid_rows) if low <= t < high]
                    if valid:
                        first, last = valid[0], valid[-1]
                        read = slice(index + first, index + last + 1)
                        ms = slice(phase.first + axis.pitch * first, phase.first + axis.pitch * last + 1, axis.pitch)
                        yield _SearchRows(t, search[:, read] if channels_first else search[read], ms)

    def _search(self, phase: Phase, group: range, channels_first: bool) -> np.ndarray:
        """Return the search rows that a group of query rows reads in a phase, copied if their columns are not contiguous."""
        step, rows = self.block.rows.step, len(group) + phase.count - 1
        row, column = phase.base + group[0], self.band.column + self.band.step * self.begin
        columns = slice(column, column + self.band.step * (self.search_columns - 1) + 1, self.band.step)
        search = self.block.search[row : row + step * (rows - 1) + 1 : step, :, columns]
        if channels_first:
            return np.ascontiguousarray(search.transpose(1, 0, 2))
        return np.ascontiguousarray(search) if self.band.step > 1 else search


def _row_groups(rows: int, step: int) -> Iterator[range]:
    """Yield groups of query rows that are ``step`` apart, so that neighbours read neighbouring search rows of a phase."""
    for residue in range(min(step, rows)):
        queries = range(residue, rows, step)
        for at in range(0, len(queries), ROWS_PER_COPY):
            yield queries[at : at + ROWS_PER_COPY]


def _tiles(block: Block, channels: int) -> Iterator[_Tile]:
    """Divide the bands of a block into tiles."""
    columns, size = block.region.lengths[COLUMNS], tile_columns(channels)
    for band in _bands(block):
        queries = len(range(band.begin, columns, band.step))
        for begin in range(0, queries, size):
            yield _Tile(block, band, begin, min(size, queries - begin))


class _ShiftedRows(NamedTuple):
    """The valid rows of one displacement: views of two arrays, and the search rows that they read."""

    of_displacement: np.ndarray  # (rows, columns)
    of_queries: np.ndarray  # (rows, channels, columns)
    search: np.ndarray  # (rows, channels, columns)


def _shifted_rows(block: Block, by_query: np.ndarray, by_displacement: np.ndarray) -> Iterator[_ShiftedRows]:
    """Yield the valid rows of each displacement of an array of query rows and one of displacements."""
    rows, columns = block.region.lengths[ROWS], block.region.lengths[COLUMNS]
    for m, row in _packed_indices(block.rows):
        begin, end = intersection(block.valid_rows[m], (0, rows))
        if begin >= end:
            continue
        for n, column in _packed_indices(block.columns):
            search = block.search[row + begin : row + end, :, column : column + columns]
            yield _ShiftedRows(by_displacement[m, n, begin:end, :columns], by_query[begin:end, :, :columns], search)


def _packed_indices(axis: BlockAxis) -> Iterator[tuple[int, int]]:
    """Yield every displacement index of a block and the packed index that query 0 reads there."""
    for phase in axis.phases:
        for k in range(phase.count):
            yield phase.first + axis.pitch * k, phase.base + axis.step * k


ENGINE = BandedProducts()
