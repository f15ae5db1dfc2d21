"""Correlation coefficients from sums over windows.

    score = (N S12 - S1 S2) / sqrt((N S11 - S1^2) (N S22 - S2^2))

N is the number of pixels that are present in both the window and the displaced window; S1, S2, S11, S22 and S12 are the sums over
them of each frame, of its square and of the product. If nothing is missing, only S12 is a sum for every displacement of every
window: S1 and S11 depend on the window alone, and S2 and S22 on the position in frame 2 alone. Every sum of whole numbers here is
exact, so that equal scores of integer frames are equal however they are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .._arguments import Pair
from .._arrays import array_module
from .frames import Pixels
from .tile import Tile
from .window_sums import window_sums

_EPS = float(np.finfo(np.float64).eps)

# Correlates pairs (i, j) of images firsts[i] (n, h, w) and seconds[j] (n, h', w'): one array for each pair, all of one shape.
Correlate = Callable[[Sequence[Any], Sequence[Any], Sequence[Pair]], Sequence[Any]]

# The pairs whose correlations are the sums: image i of frame 1 and image j of frame 2, each (values, squares, mask).
PRODUCT, _COUNT = (0, 0), (2, 2)
_TOTAL1, _TOTAL2 = (0, 2), (2, 0)
SQUARES = _SQUARES1, _SQUARES2 = (1, 2), (2, 1)


class Sums(NamedTuple):
    """The sums that scores are computed from; all broadcast to the shape of ``product``, which is S12.

    ``norm1`` and ``norm2`` are the inverse norms of each frame (`inverse_norm`).
    """

    count: Any
    total1: Any
    total2: Any
    norm1: Any
    norm2: Any
    squares2: Any
    product: Any


def sums_of_tile(tile: Tile, first: Pixels, second: Pixels, correlate: Correlate, *, few_windows: bool = False) -> Sums:
    """Return the sums of a tile. With ``few_windows``, sums over parts of a window cost less than another correlation."""
    if first.present is not None:
        return _sums_of_present(tile, first, second, correlate)
    # Nothing is missing in frame 1: the sums of frame 2 depend on the position alone, and are computed once for each.
    count: Any = tile.area
    if second.present is not None:
        count = window_sums(images_of(second)[2], tile.window, exact=True)
    tables = [tile.window_sums(image) for image in (second.values, second.values * second.values)]
    norms = inverse_norm(count, tables[0], tables[1], tile.area)
    total2, squares2, norm2 = map(tile.displaced, (*tables, norms))
    if second.present is not None:
        count = tile.displaced(count)
    inside = second.inside if few_windows else None
    if second.present is None or inside is not None:
        at_windows = tile.at_windows if inside is None else partial(tile.at_windows_inside, inside)
        total1, squares1 = at_windows(first.values), at_windows(first.values * first.values)
        (product,) = correlate((first.values,), (second.values,), (PRODUCT,))
    else:
        pairs = (PRODUCT, _TOTAL1, _SQUARES1)
        product, total1, squares1 = correlate(images_of(first), images_of(second), pairs)
    norm1 = inverse_norm(count, total1, squares1, tile.area)
    return Sums(count, total1, total2, norm1, norm2, squares2, product)


def _sums_of_present(tile: Tile, first: Pixels, second: Pixels, correlate: Correlate) -> Sums:
    """Return the sums over the pixels that are present in both frames, where some are missing in frame 1."""
    xp = array_module(first.values)
    firsts, seconds = images_of(first), images_of(second)
    if second.present is None:
        product, total2, squares2 = correlate(firsts, seconds, (PRODUCT, _TOTAL2, _SQUARES2))
        total1, squares1, count = (tile.at_windows(image) for image in firsts)
    else:
        pairs = (PRODUCT, _TOTAL1, _SQUARES1, _TOTAL2, _SQUARES2, _COUNT)
        product, total1, squares1, total2, squares2, count = correlate(firsts, seconds, pairs)
    count = xp.rint(count)
    norm1 = inverse_norm(count, total1, squares1, tile.area)
    norm2 = inverse_norm(count, total2, squares2, tile.area)
    return Sums(count, total1, total2, norm1, norm2, squares2, product)


def images_of(pixels: Pixels) -> tuple[Any, Any, Any]:
    """Return the images whose correlations are the sums: values, squares, and the mask of present pixels as float64."""
    xp = array_module(pixels.values)
    mask = xp.ones(pixels.values.shape) if pixels.present is None else pixels.present.astype(xp.float64)
    return pixels.values, pixels.values * pixels.values, mask


def scores(sums: Sums) -> Any:
    """Return the scores in the memory of ``sums.product``; negative infinity where an inverse norm is NaN: no candidate."""
    xp, out = array_module(sums.product), sums.product
    out *= sums.count
    out -= sums.total1 * sums.total2
    out *= sums.norm2
    out *= sums.norm1
    if xp.isnan(sums.norm1).any() or xp.isnan(sums.norm2).any():
        xp.copyto(out, -xp.inf, where=xp.isnan(out))
    return out


def inverse_norm(count: Any, total: Any, squares: Any, area: int) -> Any:
    """Return ``1 / sqrt(N S11 - S1^2)``; NaN where too few pixels are present or there is no texture.

    A window has texture if ``N S11 - S1^2`` is more than `least_texture` of ``N S11``.
    """
    xp = array_module(total)
    variance = count * squares
    least = least_texture(area) * variance
    variance -= total * total
    xp.copyto(variance, xp.nan, where=~((variance > least) & (2 * count >= area)))
    xp.sqrt(variance, out=variance)
    return xp.divide(1, variance, out=variance)


def least_texture(area: int) -> float:
    """Return the fraction of ``N S11`` that ``N S11 - S1^2`` must exceed, since a smaller one may be a rounding error.

    A sum of n terms is accurate to ``4 sqrt(n) eps`` of the sum of magnitudes, so the difference is accurate to three times as
    much of ``N S11``.
    """
    return float(12 * area**0.5 * _EPS)
