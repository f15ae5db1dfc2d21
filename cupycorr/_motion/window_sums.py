"""Sums of images over a window at every position, by functions that NumPy and CuPy have.

The correlation on the CPU has sums of its own, with strides and dilation, in scratch memory of its threads.
"""

from __future__ import annotations

from typing import Any

from .._arguments import Pair
from .._arrays import array_module


def window_sums(images: Any, window: Pair, exact: bool = False) -> Any:
    """Sum images (..., h, w) over a window at every position where it fits.

    They are differences of running totals where these are ``exact``. Otherwise neighbours are added in pairs, then pairs of
    pairs, and so on, so that a huge value affects the windows that hold it and no other.
    """
    xp = array_module(images)
    for axis, taps in zip((-2, -1), window, strict=True):
        if exact and taps > 1:
            length = images.shape[axis]
            shape = list(images.shape)
            shape[axis] += 1
            totals = xp.empty(shape)
            _along(totals, axis, 0, 1)[...] = 0
            xp.cumsum(images, axis=axis, out=_along(totals, axis, 1, length + 1))
            images = _along(totals, axis, taps, length + 1) - _along(totals, axis, 0, length + 1 - taps)
        else:
            images = _sums_of_neighbours(images, taps, axis)
    return images


def _sums_of_neighbours(values: Any, taps: int, axis: int) -> Any:
    """Return the sums of ``taps`` neighbours: doubled sums of 1, 2, 4, ..., of which those in the binary digits are added."""
    length = values.shape[axis] - taps + 1
    total, begin, width = None, 0, 1
    while True:
        if taps & width:
            term = _along(values, axis, begin, begin + length)
            total = term if total is None else total + term
            begin += width
        if 2 * width > taps:
            return total
        values = _along(values, axis, 0, values.shape[axis] - width) + _along(values, axis, width, values.shape[axis])
        width *= 2


def _along(values: Any, axis: int, begin: int, end: int) -> Any:
    return values[(..., slice(begin, end), slice(None))] if axis == -2 else values[..., begin:end]
