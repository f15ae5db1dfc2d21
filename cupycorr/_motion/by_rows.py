"""Scores of a tile of one rectangle by the row kernel, which shares the products of neighbouring windows, on a CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from .._arguments import Pair
from . import row_kernel, scores
from .frames import Pixels
from .geometry import steps_of
from .kernel_memory import aligned_rows, padded_copies
from .table_kernel import IncompleteScores, PositionTables, write_tables
from .tile import Tile


def by_rows(tile: Tile, first: Pixels, second: Pixels) -> tuple[Any, Any]:
    """Return the scores of a tile of one rectangle and the number of pixels compared, by the row kernel, on a CPU.

    This is for pixels missing in frame 1: there are faster functions for the other tiles.
    """

    def correlate(firsts: Sequence[Any], seconds: Sequence[Any], pairs: Sequence[Pair]) -> Sequence[Any]:
        shape = 1, *tile.tried, *tile.counts
        found = []
        for i, j in pairs:
            with padded_copies(firsts[i], seconds[j]) as (pixels1, pixels2):
                for _, sums in _rows(tile, [_row_scores(tile, pixels1, pixels2)], None, tile.counts[0]):
                    found.append(sums.copy().reshape(shape))  # the memory is used again
        return found

    sums = scores.sums_of_tile(tile, first, second, correlate)
    return scores.scores(sums), sums.count


def by_complete_rows(tile: Tile, first: Pixels, second: Pixels, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the scores (displacements, n) of so many rows of windows at a time, and the windows' inverse norms (n,).

    Nothing is missing. The scores are in units of the inverse norms, are NaN where a displaced window has no texture, and are
    overwritten by the next ones.
    """
    width = tile.span[1] - tile.window[1] + 1
    with padded_copies(first.values, second.values, tables=4) as (pixels1, pixels2, *memory):
        tables1, tables2 = PositionTables(*memory[:2]), PositionTables(*memory[2:])
        write_tables(pixels1, tile.span, tile.window, tables1)
        write_tables(pixels2, tile.reach, tile.window, tables2)
        kernel = _row_scores(tile, pixels1, pixels2, row_kernel.Tables(tables1.total, tables2.total, tables2.inverse))
        for at, found in _rows(tile, [kernel], None, rows):
            yield found, tables1.inverse[_lines(tile, at), : width : tile.step[1]].ravel()


def by_incomplete_rows(tile: Tile, first: Pixels, second: Pixels, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the scores (displacements, n) of so many rows of windows at a time, and the numbers of pixels compared.

    Pixels are missing in frame 2 only. The scores are NaN where a displacement is not a candidate. The numbers have the shape
    (displacements down, across, windows down, across). Both are overwritten by the next ones.
    """
    images = first.values, first.values * first.values, second.values, second.present
    with padded_copies(*images, tables=3) as (pixels1, squares1, pixels2, present, *memory):
        tables = PositionTables(*memory)
        write_tables(pixels2, tile.reach, tile.window, tables, present)
        pairs = (pixels1, pixels2), (pixels1, present), (squares1, present)
        incomplete = IncompleteScores(tables, tile.window, tile.span[1] - tile.window[1] + 1, *_displacements(tile.tried))
        assert tables.count is not None
        positions = tuple(reach - taps + 1 for reach, taps in zip(tile.reach, tile.window, strict=True))
        counts = tile.displaced(tables.count[None, : positions[0], : positions[1]])[0]
        for at, found in _rows(tile, [_row_scores(tile, *pair) for pair in pairs], incomplete, rows):
            yield found, counts[:, :, at]


def _lines(tile: Tile, rows: slice) -> slice:
    """Return the rows of frame 1 in which some rows of windows begin."""
    return slice(rows.start * tile.step[0], (rows.stop - 1) * tile.step[0] + 1, tile.step[0])


def _displacements(tried: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Return the row and the column of each displacement of a search."""
    rows, columns = np.divmod(np.arange(tried[0] * tried[1]), tried[1])
    return rows, columns


def _row_scores(
    tile: Tile, pixels1: np.ndarray, pixels2: np.ndarray, tables: row_kernel.Tables | None = None
) -> row_kernel.RowScores:
    """Return the kernel for a row of windows of a tile, including those between the windows of the lattice."""
    width = tile.span[1] - tile.window[1] + 1
    return row_kernel.RowScores(pixels1, pixels2, tile.window, width, *_displacements(tile.tried), tables)


def _rows(
    tile: Tile, kernels: Sequence[row_kernel.RowScores], incomplete: IncompleteScores | None, most: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield ranges of at most so many rows of windows, and what is computed for them (displacements, n) in contiguous rows.

    That is the result of the only kernel, or else the scores from the results of three.
    """
    displacements, width = kernels[0].count, kernels[0].windows
    # The padding behind each row of windows is the beginning of the next one, which is computed after it.
    with ExitStack() as stack:
        memory = stack.enter_context(aligned_rows(len(kernels) * displacements, most * width + row_kernel.PADDING))
        outs = memory.reshape(len(kernels), displacements, -1)
        steps = [stack.enter_context(kernel.into(out)) for kernel, out in zip(kernels, outs, strict=True)]
        if incomplete is not None:
            steps.append(incomplete.into(*outs))
        for rows in steps_of(tile.counts[0], most):
            count = rows.stop - rows.start
            for compute in steps:
                compute(rows.start * tile.step[0], 0, count, tile.step[0])
            found = outs[0, :, : count * width]
            if tile.step[1] > 1:
                found = found.reshape(displacements, -1, width)[:, :, :: tile.step[1]]
                found = np.ascontiguousarray(found).reshape(displacements, -1)
            yield rows, found
