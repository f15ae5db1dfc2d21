"""The products of a block through NumPy's BLAS: a search along a row is a band of a matrix product.

For one row of queries and the searched rows it meets,

    (columns x channels) . (channels x searched columns)

holds every score of the search in a band of its diagonals, which a strided view picks out; gradients multiply the cotangent
spread over the same band. With few channels a product has nothing to sum, and shifted rows are multiplied instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .._problem import Pair, Problem
from . import cpu, workers
from .blas_limits import with_one_blas_thread
from .lattice import Lattice, Window

FEW_CHANNELS = 4  # up to here shifted products are faster than a matrix product with its band
TERMS = 512  # channels summed in one product
ROWS_TOGETHER = 8  # query rows that share one copy of the searched rows, where they have to be copied


def tile_columns(channels: int) -> int:
    """Queries in one product: wide tiles copy the band in longer runs, narrow ones waste fewer products outside it."""
    return 64 if channels <= 64 else 32


@dataclass(frozen=True, slots=True)
class _Phase:
    """Queries ``begin, begin + step, ...`` of a row and the displacements that meet a common set of searched columns.

    Query ``begin + step j`` meets, at displacement index ``ns[k]``, packed column ``column + step (j + k)`` of plane ``plane``:
    a dense band.
    """

    begin: int
    step: int
    ns: range
    plane: int
    column: int


def _phases(lattice: Lattice, columns: int, ns: Pair, first: int) -> Iterator[_Phase]:
    """Split a search of any pitch and advance into dense bands; ``first`` is the packed column that query 0 stands over."""
    step = lattice.advance
    for start in range(ns[0], min(ns[0] + lattice.pitch, ns[1])):
        shift, plane = divmod(step * start, lattice.pitch)
        for begin in range(min(step, columns)):
            yield _Phase(begin, step, range(start, ns[1], lattice.pitch), plane, first + begin + shift)


class BandedProducts:
    """The engine of the ``blas`` variant."""

    def threads(self) -> int:
        """Threads that may call BLAS at once."""
        return workers.blas_threads()

    def session(self) -> AbstractContextManager[None]:
        """Nothing to hold: each task holds BLAS to one thread, in the thread that it runs in."""
        return nullcontext()

    def sums_rows(self, window: Window, channels: int) -> bool:
        """Never: a product has no room for rows of other queries."""
        return False

    def volume(self, block: cpu.Block, query: np.ndarray, total: np.ndarray) -> None:
        """See `cpu.Engine`."""
        with_one_blas_thread(self._volume, block, query, total)

    def gradient(self, block: cpu.Block, cotangent: np.ndarray, total: np.ndarray) -> None:
        """See `cpu.Engine`."""
        with_one_blas_thread(self._gradient, block, cotangent, total)

    def _volume(self, block: cpu.Block, query: np.ndarray, total: np.ndarray) -> None:
        if query.shape[1] <= FEW_CHANNELS:
            for out, queries, searched in _shifted(block, query, total):
                out += np.einsum("tcx,tcx->tx", queries, searched)
            return
        for tile in _tiles(block, query.shape[1]):
            size = tile.columns
            for t, searched, ms in tile.rows(channels_first=False):
                scores = _product(query[t, :, tile.queries].T, searched)
                along_m, row, column = scores.strides
                band = as_strided(scores, (len(ms), len(tile.phase.ns), size), (along_m, column, row + column))
                at_ns = slice(tile.phase.ns.start - block.region.ns[0], None, block.horizontal.pitch)
                total[ms.start : ms.stop, at_ns, t, tile.queries] += band

    def _gradient(self, block: cpu.Block, cotangent: np.ndarray, total: np.ndarray) -> None:
        if total.shape[1] <= FEW_CHANNELS:
            for values, out, searched in _shifted(block, total, cotangent):
                out += values[:, None] * searched
            return
        for tile in _tiles(block, total.shape[1]):
            size, ns = tile.columns, len(tile.phase.ns)
            spread = np.zeros((len(range(*block.region.ms)), tile.reach, size), total.dtype)
            row, column, item = spread.strides
            band = as_strided(spread, (len(spread), ns, size), (row, column, column + item))
            at_ns = slice(tile.phase.ns.start - block.region.ns[0], None, block.horizontal.pitch)
            for t, searched, ms in tile.rows(channels_first=True):
                values = cotangent[ms.start : ms.stop, at_ns, t, tile.queries]
                band[: len(ms)] = values
                # One product over all searched rows side by side adds them up as well.
                sums = searched.reshape(len(searched), -1) @ spread[: len(ms)].reshape(-1, size)
                if not np.isfinite(sums).all():
                    # Zeros beside the band must not meet what is not finite: add the band's own products, one by one.
                    sums = np.zeros_like(sums)
                    for m, n in np.ndindex(len(ms), ns):
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
    """One phase's queries in a range of columns, over all rows of a block."""

    block: cpu.Block
    phase: _Phase
    begin: int
    columns: int

    @property
    def reach(self) -> int:
        """Searched columns that the queries meet."""
        return self.columns + len(self.phase.ns) - 1

    @property
    def queries(self) -> slice:
        """The queries' columns in the block."""
        first = self.phase.begin + self.phase.step * self.begin
        return slice(first, first + self.phase.step * (self.columns - 1) + 1, self.phase.step)

    def rows(self, channels_first: bool) -> Iterator[tuple[int, np.ndarray, range]]:
        """For each row of queries: its index in the block, the searched rows it meets, and their ms.

        The searched rows are (channels, rows, columns) or (rows, channels, columns), neighbouring columns adjoining.
        """
        block = self.block
        (t_begin, t_end), (m_begin, m_end) = block.region.rows, block.region.ms
        pitch, advance = block.vertical.pitch, block.vertical.advance
        column = self.phase.column + self.phase.step * self.begin
        columns = slice(column, column + self.phase.step * (self.reach - 1) + 1, self.phase.step)
        for phase in range(min(advance, t_end - t_begin)):
            queries = range(t_begin + phase, t_end, advance)
            for at in range(0, len(queries), ROWS_TOGETHER):
                together = queries[at : at + ROWS_TOGETHER]
                row = pitch * together[0] + advance * m_begin - block.row
                count = pitch * (len(together) - 1) + m_end - m_begin
                rows = block.searched[row : row + advance * count : advance, :, self.phase.plane, columns]
                if channels_first:
                    rows = np.ascontiguousarray(rows.transpose(1, 0, 2))
                elif self.phase.step > 1:
                    rows = np.ascontiguousarray(rows)
                for index, t in enumerate(together):
                    counted = [m for m, (low, high) in enumerate(block.meets) if low <= t < high]
                    if counted:
                        ms = range(counted[0], counted[-1] + 1)
                        first = pitch * index
                        met = slice(first + ms.start, first + ms.stop)
                        yield t - t_begin, rows[:, met] if channels_first else rows[met], ms


def _tiles(block: cpu.Block, channels: int) -> Iterator[_Tile]:
    lattice, columns = block.horizontal, block.region.lengths[cpu.COLUMNS]
    first = block.region.columns[0] - block.column
    for phase in _phases(lattice, columns, block.region.ns, first):
        queries = len(range(phase.begin, columns, phase.step))
        size = tile_columns(channels)
        for begin in range(0, queries, size):
            yield _Tile(block, phase, begin, min(size, queries - begin))


def _shifted(block: cpu.Block, by_row: np.ndarray, by_displacement: np.ndarray) -> Iterator[tuple]:
    """For each displacement: its rows in ``by_displacement``, those of ``by_row``, and the searched rows they meet."""
    columns = block.region.lengths[cpu.COLUMNS]
    (t_begin, _), (x_begin, _) = block.region.rows, block.region.columns
    vertical, horizontal = block.vertical, block.horizontal
    for index, m in enumerate(range(*block.region.ms)):
        begin, end = cpu.overlap(block.meets[index], block.region.rows)
        if begin >= end:
            continue
        row = vertical.pitch * begin + vertical.advance * m - block.row
        rows = slice(row, row + vertical.pitch * (end - begin - 1) + 1, vertical.pitch)
        at = slice(begin - t_begin, end - t_begin)
        for number, n in enumerate(range(*block.region.ns)):
            shift, plane = divmod(horizontal.advance * n, horizontal.pitch)
            column = x_begin + shift - block.column
            searched = block.searched[rows, :, plane, column : column + columns]
            yield by_displacement[index, number, at, :columns], by_row[at, :, :columns], searched


ENGINE = BandedProducts()


def how(problem: Problem) -> str:
    """The route through BLAS, in words."""
    return f"{cpu.how(problem)}, banded matrix products in {workers.blas_threads()} thread(s)"
