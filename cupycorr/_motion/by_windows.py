"""Scores of a tile by the window kernel, which computes each window by itself, on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._arguments import Pair
from . import scores, window_kernel
from .frames import Pixels
from .kernel_memory import padded_copies
from .table_kernel import PositionTables, write_tables
from .tile import Tile


def by_windows(tile: Tile, first: Pixels, second: Pixels) -> tuple[Any, Any]:
    """Return the scores of a tile and the number of pixels compared, by the window kernel, on a CPU."""
    if len(first.values) == 1 and first.present is None and second.present is None:
        return _by_complete_windows(tile, first, second), tile.area

    def correlate(firsts: Sequence[Any], seconds: Sequence[Any], pairs: Sequence[Pair]) -> Sequence[Any]:
        return [_products(tile, _with_contiguous_rows(firsts[i]), _with_contiguous_rows(seconds[j])) for i, j in pairs]

    sums = scores.sums_of_tile(tile, first, second, correlate, few_windows=True)
    return scores.scores(sums), sums.count


def _by_complete_windows(tile: Tile, first: Pixels, second: Pixels) -> Any:
    """Return the scores of a tile of one rectangle where nothing is missing; a kernel computes the sums over single frames."""
    with padded_copies(first.values, second.values, tables=4) as (pixels1, pixels2, *memory):
        tables1, tables2 = PositionTables(*memory[:2]), PositionTables(*memory[2:])
        write_tables(pixels1, tile.span, tile.window, tables1)
        write_tables(pixels2, tile.reach, tile.window, tables2)
        total1, norm1 = (
            table[None, None, None, : size[0] : tile.step[0], : size[1] : tile.step[1]]
            for size in (_positions(tile.span, tile.window),)
            for table in (tables1.total, tables1.inverse)
        )
        down, across = _positions(tile.reach, tile.window)
        total2, norm2 = (tile.displaced(table[None, :down, :across]) for table in (tables2.total, tables2.inverse))
        product = _products(tile, pixels1[None], pixels2[None])
        return scores.scores(scores.Sums(tile.area, total1, total2, norm1, norm2, None, product))


def _positions(shape: Pair, window: Pair) -> Pair:
    """Return how many positions a window has in a rectangle."""
    return shape[0] - window[0] + 1, shape[1] - window[1] + 1


def _products(tile: Tile, images1: np.ndarray, images2: np.ndarray) -> np.ndarray:
    """Correlate the windows of images (n, h, w) with contiguous rows, to the shape of scores."""
    offsets1, offsets2 = _offsets(tile, images1), _offsets(tile, images2)
    products = window_kernel.correlate(images1, images2, offsets1, offsets2, tile.window, tile.tried)
    return products.reshape(-1, *tile.counts, *tile.tried).transpose(0, 3, 4, 1, 2)


def _with_contiguous_rows(images: np.ndarray) -> np.ndarray:
    return images if images.strides[-1] == images.itemsize else np.ascontiguousarray(images)


def _offsets(tile: Tile, images: np.ndarray) -> np.ndarray:
    """Return the distance in memory, in elements, of each window's first pixel from the first one of images (n, h, w)."""
    stack, row, _ = (stride // images.itemsize for stride in images.strides)
    starts = (
        np.arange(n) * s for n, s in zip((len(images), *tile.counts), (stack, row * tile.step[0], tile.step[1]), strict=True)
    )
    stacks, rows, columns = np.ix_(*starts)
    return (stacks + rows + columns).astype(np.int64, copy=False).ravel()
