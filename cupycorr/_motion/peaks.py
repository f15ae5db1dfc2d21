"""The best displacement of each window: the maximum of its scores, ties, the second peak, and fractions of a pixel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from .._arguments import Pair
from .._arrays import array_module
from .geometry import Search, order_by_length

TIE = 1e-12  # scores closer than this to the maximum are equal to it: they differ by rounding errors only
FITS = GAUSSIAN, PARABOLA = ("gaussian", "parabola")  # the default first
_BESIDE = {(-1, 0): 0, (1, 0): 1, (0, -1): 2, (0, 1): 3}  # the neighbours along each axis -> their rows in `Peaks.beside`


class Peaks(NamedTuple):
    """The peaks of n windows.

    Attributes
    ----------
    index
        int64 (n,): the best displacement in (dy, dx) order; any index where there is none.
    score, second
        float64 (n,): its score, and the best score outside its 3 x 3 neighbourhood; negative infinity where there is none.
    beside
        float64 (4, n): the scores above, below, left and right of it; negative infinity where one is not a candidate.
    count
        The number of pixels compared, (n,) or one for all.
    """

    index: Any
    score: Any
    second: Any
    beside: Any
    count: Any


def find_peaks(scores: Any, search: Search, count: Any) -> Peaks:
    """Find the peaks of scores (displacements, n), which are overwritten.

    ``count`` is the number of pixels compared: one number, or an array of the shape of the scores.
    """
    xp = array_module(scores)
    order, rank = (xp.asarray(each) for each in order_by_length(search))
    highest = scores.max(axis=0)
    windows = xp.arange(scores.shape[1])
    equal = scores >= highest - TIE
    # A window with one highest score gets count + index, one with several gets at least twice the count.
    count_and_index = xp.arange(len(scores), 2 * len(scores), dtype=xp.float32)
    # Not a product of matrices: cuBLAS may round its factors to TF32.
    index = (count_and_index[:, None] * equal).sum(axis=0).astype(xp.int64) - len(scores)
    several = xp.flatnonzero(index >= len(scores))
    if len(several):
        first = xp.where(equal[:, several], rank[:, None], rank.dtype.type(len(rank) - 1)).min(axis=0)
        index[several] = order[first]
    index = xp.maximum(index, 0)
    score = scores[index, windows]
    beside = xp.full((len(_BESIDE), len(windows)), -xp.inf)
    around = []
    for offset, exists, at in _neighbours(index, search):
        if offset in _BESIDE:
            beside[_BESIDE[offset]] = xp.where(exists, scores[at, windows], -xp.inf)
        around.append(at)
    for at in around:
        scores[at, windows] = -xp.inf
    if not isinstance(count, int):
        count = count[index, windows]
    return Peaks(index, score, scores.max(axis=0), beside, count)


def joined(parts: Iterable[Peaks], windows: int) -> Peaks:
    """Return the peaks of several groups of windows, so many in all, as those of one, in NumPy arrays.

    One number of pixels compared is that of all groups. A part is copied before the next one is computed.
    """
    index, values, begin = np.empty(windows, np.int64), np.empty((3 + len(_BESIDE), windows)), 0
    count: Any = values[-1]
    for part in parts:
        at = slice(begin, begin + len(part.index))
        index[at], values[0, at], values[1, at], values[2:-1, at] = part.index, part.score, part.second, part.beside
        if isinstance(part.count, int):
            count = part.count
        else:
            count[at] = part.count
        begin = at.stop
    return Peaks(index, values[0], values[1], values[2:-1], count)


def peak_of_slabs(
    search: Search, slabs: Sequence[tuple[Pair, Search]], highest: np.ndarray, scores_of: Callable[[int], tuple[np.ndarray, Any]]
) -> Peaks:
    """Return the peak of one window whose displacements are divided into slabs, in NumPy arrays.

    A slab is its first index along each axis and its displacements. ``highest`` is the highest score of each slab, and
    ``scores_of`` computes the scores (rows, columns) of a slab again, and the number of pixels compared: one number, or an array
    of the shape of the scores. That is done only for the slabs that may hold the peak or a part of its neighbourhood.
    """
    equal = highest.max() - TIE
    candidates = []
    for number in np.flatnonzero(highest >= equal).tolist() if np.isfinite(equal) else ():
        (m, n), part = slabs[number]
        scores, count = scores_of(number)
        for row, column in np.argwhere(scores >= equal).tolist():
            length = (part.low[0] + row) ** 2 + (part.low[1] + column) ** 2
            compared = count if isinstance(count, int) else int(count[row, column])
            candidates.append((length, m + row, n + column, scores[row, column], compared))
    beside, second = np.full((len(_BESIDE), 1), -np.inf), -math.inf
    if not candidates:
        return Peaks(np.zeros(1, np.int64), np.full(1, -np.inf), np.full(1, -np.inf), beside, 0)
    _, peak_row, peak_column, score, count = min(candidates)
    for number, ((m, n), part) in enumerate(slabs):
        row, column = peak_row - m, peak_column - n
        if not (-1 <= row <= part.tried[0] and -1 <= column <= part.tried[1]):
            second = max(second, float(highest[number]))
            continue
        scores = np.pad(scores_of(number)[0], 1, constant_values=-np.inf)  # the border stands for what is in other slabs
        for (dy, dx), which in _BESIDE.items():
            if 0 <= row + dy < part.tried[0] and 0 <= column + dx < part.tried[1]:
                beside[which] = scores[row + dy + 1, column + dx + 1]
        scores[max(row, 0) : row + 3, max(column, 0) : column + 3] = -np.inf
        second = max(second, float(scores.max()))
    index = peak_row * search.tried[1] + peak_column
    return Peaks(np.array([index]), np.array([score]), np.array([second]), beside, count)


def _neighbours(index: Any, search: Search) -> list[tuple[tuple[int, int], Any, Any]]:
    """Return for each displacement around the peaks: its offset, the mask where it was searched, and its index there.

    Where it was not, the index is that of the peak.
    """
    row = index // search.tried[1]
    column = index - row * search.tried[1]
    rows, columns = (
        {-1: at > 0, 0: True, 1: at < tried - 1} if tried > 1 else {0: True}
        for at, tried in zip((row, column), search.tried, strict=True)
    )
    found = []
    for (dy, row_exists), (dx, column_exists) in product(rows.items(), columns.items()):
        exists = row_exists & column_exists
        found.append(((dy, dx), exists, index + exists * (dy * search.tried[1] + dx)))
    return found


def displacements(peaks: Peaks, search: Search) -> tuple[Any, Any]:
    """Return the whole-pixel displacements dy and dx of the peaks, int64."""
    row = peaks.index // search.tried[1]
    return row + search.low[0], peaks.index - row * search.tried[1] + search.low[1]


def at_edge(peaks: Peaks, search: Search) -> Any:
    """Return the mask (n,) of the peaks next to a displacement that is not a candidate, along an axis that is searched."""
    xp = array_module(peaks.index)
    found = xp.zeros(peaks.index.shape, bool)
    for axis, tried in enumerate(search.tried):
        if tried > 1:
            found |= ~xp.isfinite(peaks.beside[2 * axis]) | ~xp.isfinite(peaks.beside[2 * axis + 1])
    return found & xp.isfinite(peaks.score)


def fractions(peaks: Peaks, axis: int, fit: str) -> Any:
    """Return the fractions of a pixel along an axis, in [-1/2, 1/2], from each peak to the vertex of a curve.

    The curve goes through the score of the peak and of its two neighbours along the axis: a parabola, or a Gaussian, which is a
    parabola through their logarithms. Where a score is not positive it is a parabola in any case. Where a neighbour is not a
    candidate, and where all three scores are equal, the fraction is 0.
    """
    xp = array_module(peaks.score)
    before, peak, after = peaks.beside[2 * axis], peaks.score, peaks.beside[2 * axis + 1]
    known = xp.isfinite(before) & xp.isfinite(after)
    if not known.all():
        before, peak, after = (xp.where(known, each, 0.0) for each in (before, peak, after))
    least = xp.minimum(before, after)
    level = least >= peak - TIE
    positive = (least > TIE) & (peak > TIE)
    if fit == GAUSSIAN and positive.all():
        fraction = _vertex(xp.log(before), xp.log(peak), xp.log(after))
    elif fit == GAUSSIAN:
        logarithms = (xp.log(xp.where(positive, each, 1.0)) for each in (before, peak, after))
        fraction = xp.where(positive, _vertex(*logarithms), _vertex(before, peak, after))
    else:
        fraction = _vertex(before, peak, after)
    fraction[level] = 0
    return fraction


def _vertex(before: Any, peak: Any, after: Any) -> Any:
    """Return the position of the vertex of the parabola through three equidistant values."""
    xp = array_module(peak)
    curvature = (peak - before) + (peak - after)
    fraction = 0.5 * (after - before) / xp.maximum(curvature, np.finfo(np.float64).tiny)
    return fraction.clip(-0.5, 0.5)  # against rounding errors, and where the peak is not the highest of scores that are equal
