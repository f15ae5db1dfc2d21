"""The products of a block through NumPy's BLAS: a search along a row is a band of a matrix product.

For one row of queries and the searched rows it meets,

    (columns x channels) . (channels x searched columns)

holds every score of the search in a band of its diagonals, which a strided view picks out; gradients multiply the cotangent
spread over the same band. With few channels a product has nothing to sum, and shifted rows are multiplied instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..._cpu import workers
from ..._cpu.blas_limits import with_one_blas_thread
from .blocks import COLUMNS, ROWS, overlap
from .engine import Products
from .packing import Block, BlockAxis

FEW_CHANNELS = 4  # up to here shifted products are faster than a matrix product with its band
TERMS = 512  # channels summed in one product
ROWS_TOGETHER = 8  # query rows that share one copy of the searched rows, where they have to be copied


def tile_columns(channels: int) -> int:
    """Queries in one product: wide tiles copy the band in longer runs, narrow ones waste fewer products outside it."""
    return 64 if channels <= 64 else 32


# Estimates for the cost model: operations per second of one thread's products, seconds of a call of NumPy, of a value of a band
# that is copied, and of a product of shifted rows.
_RATE, _CALL, _COPY, _SHIFTED = 4e10, 8e-6, 1.5e-9, 1.5e-9


@dataclass(frozen=True, slots=True)
class _Band:
    """Queries ``begin, begin + step, ...`` of a row and the displacements that read a common set of searched columns.

    Query ``begin + step j`` reads, at displacement index ``ns[k]``, packed column ``column + step (j + k)``: a dense band.
    """

    begin: int
    step: int
    ns: range
    column: int


def _bands(block: Block) -> Iterator[_Band]:
    """Split a search of any pitch and step into dense bands."""
    axis, columns = block.columns, block.region.lengths[COLUMNS]
    for phase in axis.phases:
        ns = range(phase.first, phase.first + axis.pitch * (phase.count - 1) + 1, axis.pitch)
        for begin in range(min(axis.step, columns)):
            yield _Band(begin, axis.step, ns, phase.base + begin)


class BandedProducts:
    """The engine of the ``blas`` variant."""

    name = "blas"

    @property
    def description(self) -> str:
        """The number of threads, in words."""
        return f"banded matrix products in {workers.blas_threads()} thread(s)"

    def threads(self) -> int:
        """Threads that may call BLAS at once."""
        return workers.blas_threads()

    sums_rows = False  # a product has no room for rows of other queries

    def seconds(self, products: Products) -> float:
        """See `engine.Engine`."""
        bytes_each = products.itemsize / 4
        if products.channels <= FEW_CHANNELS:
            calls = products.patch_rows * products.patch_columns * 2 * _CALL
            values = products.row_pairs * products.patch_columns * products.columns * products.channels
            return calls + values * _SHIFTED * bytes_each
        queries = -(-products.columns // products.column_step)
        displacements = -(-products.patch_columns // products.column_phases)
        size = min(tile_columns(products.channels), queries)
        tiles = products.column_phases * products.column_step * -(-queries // size)
        multiplied = 2 * products.channels * size * (size + displacements - 1) / _RATE * bytes_each
        band = displacements * size * _COPY * bytes_each
        calls = products.rows * products.row_phases * 3 * _CALL
        return tiles * (calls + products.row_pairs * (_CALL / 4 + multiplied + band))

    def volume(self, block: Block, query: np.ndarray, total: np.ndarray) -> None:
        """See `engine.Engine`."""
        with_one_blas_thread(self._volume, block, query, total)

    def gradient(self, block: Block, cotangent: np.ndarray, total: np.ndarray) -> None:
        """See `engine.Engine`."""
        with_one_blas_thread(self._gradient, block, cotangent, total)

    def _volume(self, block: Block, query: np.ndarray, total: np.ndarray) -> None:
        if query.shape[1] <= FEW_CHANNELS:
            for out, queries, searched in _shifted(block, query, total):
                out += np.einsum("tcx,tcx->tx", queries, searched)
            return
        for tile in _tiles(block, query.shape[1]):
            size = tile.columns
            for t, searched, ms in tile.rows(channels_first=False):
                scores = _product(query[t, :, tile.queries].T, searched)
                along_m, row, column = scores.strides
                band = as_strided(scores, (len(searched), len(tile.band.ns), size), (along_m, column, row + column))
                total[ms, tile.ns, t, tile.queries] += band

    def _gradient(self, block: Block, cotangent: np.ndarray, total: np.ndarray) -> None:
        if total.shape[1] <= FEW_CHANNELS:
            for values, out, searched in _shifted(block, total, cotangent):
                out += values[:, None] * searched
            return
        for tile in _tiles(block, total.shape[1]):
            size, ns = tile.columns, len(tile.band.ns)
            most = max(phase.count for phase in block.rows.phases)
            spread = np.zeros((most, tile.reach, size), total.dtype)
            row, column, item = spread.strides
            band = as_strided(spread, (most, ns, size), (row, column, column + item))
            for t, searched, ms in tile.rows(channels_first=True):
                values = cotangent[ms, tile.ns, t, tile.queries]
                band[: len(values)] = values
                # One product over all searched rows side by side adds them up as well.
                sums = searched.reshape(len(searched), -1) @ spread[: len(values)].reshape(-1, size)
                if not np.isfinite(sums).all():
                    # Zeros beside the band must not be multiplied with what is not finite: add the band's own products.
                    sums = np.zeros_like(sums)
                    for m, n in np.ndindex(len(values), ns):
                        sums += values[m, n] * searched[:, m, n : n + size]
                total[t, :, tile.queries] += sums


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``left @ right`` in runs of bounded length: BLAS may sum a small product from end to end, which loses digits."""
    product = left[:, :TERMS] @ right[:, :TERMS]
    for begin in range(TERMS, right.shape[1], TERMS):
        product += left[:, begin : begin + TERMS] @ right[:, begin : begin + TERMS]
    return product


@dataclass(frozen=True, slots=True)
class _Tile:
    """The queries of a band in a range of columns, over all rows of a block."""

    block: Block
    band: _Band
    begin: int
    columns: int

    @property
    def reach(self) -> int:
        """Searched columns that the queries read."""
        return self.columns + len(self.band.ns) - 1

    @property
    def queries(self) -> slice:
        """The queries' columns in the block."""
        first = self.band.begin + self.band.step * self.begin
        return slice(first, first + self.band.step * (self.columns - 1) + 1, self.band.step)

    @property
    def ns(self) -> slice:
        """The displacement indices of the band."""
        return slice(self.band.ns.start, self.band.ns.stop, self.band.ns.step)

    def rows(self, channels_first: bool) -> Iterator[tuple[int, np.ndarray, slice]]:
        """For each row of queries and phase of rows: the row, the searched rows it reads, and their displacement indices.

        The searched rows are (channels, rows, columns) or (rows, channels, columns), neighbouring columns adjoining.
        """
        block, axis = self.block, self.block.rows
        rows, step = block.region.lengths[ROWS], axis.step
        column = self.band.column + self.band.step * self.begin
        columns = slice(column, column + self.band.step * (self.reach - 1) + 1, self.band.step)
        for phase in axis.phases:
            counting = block.counting[phase.first :: axis.pitch][: phase.count]
            for residue in range(min(step, rows)):
                queries = range(residue, rows, step)
                for at in range(0, len(queries), ROWS_TOGETHER):
                    together = queries[at : at + ROWS_TOGETHER]
                    row, reach = phase.base + together[0], len(together) + phase.count - 1
                    searched = block.searched[row : row + step * (reach - 1) + 1 : step, :, columns]
                    if channels_first:
                        searched = np.ascontiguousarray(searched.transpose(1, 0, 2))
                    elif self.band.step > 1:
                        searched = np.ascontiguousarray(searched)
                    for index, t in enumerate(together):
                        counted = [k for k, (low, high) in enumerate(counting) if low <= t < high]
                        if counted:
                            first, last = counted[0], counted[-1]
                            read = slice(index + first, index + last + 1)
                            ms = slice(phase.first + axis.pitch * first, phase.first + axis.pitch * last + 1, axis.pitch)
                            yield t, searched[:, read] if channels_first else searched[read], ms


def _tiles(block: Block, channels: int) -> Iterator[_Tile]:
    columns, size = block.region.lengths[COLUMNS], tile_columns(channels)
    for band in _bands(block):
        queries = len(range(band.begin, columns, band.step))
        for begin in range(0, queries, size):
            yield _Tile(block, band, begin, min(size, queries - begin))


def _shifted(block: Block, by_row: np.ndarray, by_displacement: np.ndarray) -> Iterator[tuple]:
    """For each displacement: its rows in ``by_displacement``, those of ``by_row``, and the searched rows they read."""
    rows, columns = block.region.lengths[ROWS], block.region.lengths[COLUMNS]
    for m, row in _packed_indices(block.rows):
        begin, end = overlap(block.counting[m], (0, rows))
        if begin >= end:
            continue
        for n, column in _packed_indices(block.columns):
            searched = block.searched[row + begin : row + end, :, column : column + columns]
            yield by_displacement[m, n, begin:end, :columns], by_row[begin:end, :, :columns], searched


def _packed_indices(axis: BlockAxis) -> Iterator[tuple[int, int]]:
    """Every displacement index of a block and the packed index that query 0 reads there."""
    for phase in axis.phases:
        for k in range(phase.count):
            yield phase.first + axis.pitch * k, phase.base + axis.step * k


ENGINE = BandedProducts()
