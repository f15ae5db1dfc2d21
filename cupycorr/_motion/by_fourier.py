"""Scores of a tile by Fourier transforms of each window and its search area, on a CPU and on a GPU."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from .._arguments import Pair
from .._arrays import array_kind, array_module, to_numpy
from . import scores
from .by_operator import by_operator
from .frames import Pixels
from .geometry import steps_of
from .scores import Sums
from .tile import Tile, rectangles

_EPS = float(np.finfo(np.float64).eps)
_LENGTH_FACTORS = (2, 3, 5, 7)  # fast Fourier transforms have lengths that are products of these
_ROUNDING = 4 * _EPS  # of a correlation by Fourier transforms, in units of the product of both images' norms
_WHOLE = 0.25  # an error below this does not keep a whole number from being found by rounding
_LARGEST_ERROR = 1e-12  # of a score
_LARGEST_RATIO = 64.0  # of a search area's norm to that of a displaced window
_BATCH = 2**16  # pixels of search areas that are transformed at a time, so that they stay in a processor's cache
_GPU_BATCH = 2**22  # the same on a GPU, whose memory they must fit into


def by_fourier(tile: Tile, first: Pixels, second: Pixels) -> tuple[Any, Any]:
    """Return the scores of a tile and the number of pixels compared, by Fourier transforms of each window and its search area.

    A Fourier transform spreads the rounding error of the largest value in a search area over all displacements. Sums of whole
    numbers are rounded to whole numbers, which makes them exact. Where the error is too large for that, or else so large in some
    score that sums over the window alone are better, the operator computes the window again.
    """
    errors: dict[Pair, Any] | None = None if _certainly_whole(tile) else {}

    def correlate(firsts: Sequence[Any], seconds: Sequence[Any], pairs: Sequence[Pair]) -> Sequence[Any]:
        return _correlate_by_fourier(tile, firsts, seconds, pairs, errors)

    sums = scores.sums_of_tile(tile, first, second, correlate, few_windows=True)
    found = scores.scores(sums)
    if errors is not None:
        inexact = _too_inexact(tile, sums, errors, second.values)
        for index, _, _, row, column in np.argwhere(to_numpy(inexact)).tolist():
            top, left = row * tile.step[0], column * tile.step[1]
            pixels = (
                each.part(slice(index, index + 1), slice(top, top + height), slice(left, left + width))
                for each, (height, width) in ((first, tile.single.span), (second, tile.single.reach))
            )
            found[index, :, :, row, column] = by_operator(tile.single, *pixels)[0][0, :, :, 0, 0]
    return found, sums.count


def _certainly_whole(tile: Tile) -> bool:
    """Return whether rounding makes every correlation of a tile exact, whatever its pixels are."""
    norms = math.sqrt(tile.area * math.prod(tile.single.reach))
    return tile.whole and _ROUNDING * tile.largest**2 * norms < _WHOLE


def _too_inexact(tile: Tile, sums: Sums, errors: dict[Pair, Any], values2: Any) -> Any:
    """Return the mask (n, 1, 1, windows down, across) of windows with a score that suffers from values beside its window."""
    if tile.whole:
        return sum(error >= _WHOLE for error in errors.values())
    xp = array_module(values2)
    norms = _norms(rectangles(values2, tile.single.reach, tile.step))[:, None, None]
    inexact = sums.count * errors[scores.PRODUCT] * sums.norm1 * sums.norm2 > _LARGEST_ERROR
    inexact &= norms > _LARGEST_RATIO * xp.sqrt(abs(sums.squares2))
    for pair, norm in zip(scores.SQUARES, (sums.norm1, sums.norm2), strict=True):
        if pair in errors:  # a window may also seem to have no texture, or to have some, by the error of its sum of squares
            inexact = inexact | (sums.count * errors[pair] * norm * norm > _LARGEST_ERROR)
            inexact |= xp.isnan(norm) & (2 * sums.count >= tile.area)
    return inexact.any(axis=(1, 2), keepdims=True)


def _correlate_by_fourier(
    tile: Tile, firsts: Sequence[Any], seconds: Sequence[Any], pairs: Sequence[Pair], errors: dict[Pair, Any] | None
) -> list[Any]:
    """Return the correlation of pairs of images (n, span) and (n, reach), and note the bounds of their errors if asked to.

    The transforms are of each window and each search area by itself, some of them at a time.
    """
    xp = array_module(firsts[0])
    lengths = fourier_lengths(tile)
    windows = {i: rectangles(firsts[i], tile.window, tile.step) for i in {i for i, _ in pairs}}
    areas = {j: rectangles(seconds[j], tile.single.reach, tile.step) for j in {j for _, j in pairs}}
    found = [xp.empty((*windows[i].shape[:3], *tile.tried)) for i, _ in pairs]
    most = _BATCH if array_kind(firsts[0]) == "numpy" else _GPU_BATCH
    for batch in _batches(windows[pairs[0][0]].shape[:3], max(most // math.prod(lengths), 1)):
        spectra1 = {i: xp.conjugate(_spectrum(images[batch], lengths)) for i, images in windows.items()}
        spectra2 = {j: _spectrum(images[batch], lengths) for j, images in areas.items()}
        for (i, j), out in zip(pairs, found, strict=True):
            rows = xp.fft.ifft(spectra1[i] * spectra2[j], axis=-2)[..., : tile.tried[0], :]
            out[batch] = xp.fft.irfft(rows, n=lengths[1], axis=-1)[..., : tile.tried[1]]
    if errors is not None:
        norms1, norms2 = ({key: _norms(images) for key, images in each.items()} for each in (windows, areas))
        errors.update({(i, j): (_ROUNDING * norms1[i] * norms2[j])[:, None, None] for i, j in pairs})
    if tile.whole:
        for out in found:
            xp.rint(out, out=out)
    return [out.transpose(0, 3, 4, 1, 2) for out in found]


def _spectrum(images: Any, lengths: Pair) -> Any:
    xp = array_module(images)
    return xp.fft.fft(xp.fft.rfft(images, n=lengths[1], axis=-1), n=lengths[0], axis=-2)


def _batches(shape: tuple[int, ...], most: int) -> Iterator[tuple[slice, ...]]:
    """Divide windows (n, down, across) into batches of at most so many."""
    sizes = [0, 0, 0]
    for axis in (2, 1, 0):
        sizes[axis] = min(shape[axis], most)
        most = max(most // shape[axis], 1) if sizes[axis] == shape[axis] else 1
    yield from product(*(steps_of(count, size) for count, size in zip(shape, sizes, strict=True)))


def _norms(images: Any) -> Any:
    """Return the root of the sum of squares of each of the images (n, down, across, h, w)."""
    xp = array_module(images)
    return xp.sqrt(xp.einsum("nijyx,nijyx->nij", images, images))


def fourier_lengths(tile: Tile) -> Pair:
    """Return the lengths of the transforms of a search area, so that no displaced window wraps around."""
    down, across = tile.single.reach
    return fast_length(down), fast_length(across)


def fast_length(least: int) -> int:
    """Return the smallest number of at least ``least`` without a prime factor above 7."""
    length = least
    while not _is_fast(length):
        length += 1
    return length


def _is_fast(length: int) -> bool:
    for factor in _LENGTH_FACTORS:
        while length % factor == 0:
            length //= factor
    return length == 1
