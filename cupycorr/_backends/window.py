"""Sums over windows along one axis, and their transpose, in whichever order costs fewer additions.

A window of w taps is summed by doubling: sums of 2 neighbours, of 4, of 8 and so on, of which the binary digits of w pick
theirs. That is pairwise summation: no running total, so nothing large is ever subtracted again, and what is not finite stays
inside its own windows.
"""

from __future__ import annotations

import numpy as np

from .lattice import Window


def window_sum(values: np.ndarray, axis: int, window: Window) -> np.ndarray:
    """``out[i] = sum over u < taps of values[i stride + u dilation]`` along ``axis``, for every i that fits."""
    if window.taps == 1 and window.stride == 1:
        return values
    count = (values.shape[axis] - 1 - (window.taps - 1) * window.dilation) // window.stride + 1
    doubling_costs_less = _doublings(window) * values.shape[axis] + window.taps.bit_count() * count < window.taps * count
    terms = _doubled(values, axis, window) if doubling_costs_less else _single(values, axis, window)
    total = None
    for term, begin in terms:
        picked = term[_along(axis, begin, begin + (count - 1) * window.stride + 1, window.stride)]
        total = picked.copy() if total is None else np.add(total, picked, out=total)
    return total


def window_spread(values: np.ndarray, axis: int, window: Window, begin: int, end: int) -> np.ndarray:
    """The transpose of `window_sum`: ``out[t - begin] = sum over i, u with i stride + u dilation = t of values[i]``, t < end."""
    if window.taps == 1 and window.stride == 1:
        return values[_along(axis, begin, end, 1)]
    margin = (window.taps - 1) * window.dilation
    if _doublings(window) * (end - begin + margin) + (end - begin) < window.taps * (end - begin) // window.stride:
        stuffed = _stuffed(values, axis, window.stride, begin - margin, end)
        return window_sum(stuffed, axis, Window(window.taps, window.dilation, 1))
    out = _zeros(values, axis, end - begin)
    for u in range(window.taps):
        _add_stuffed(out, values, axis, window.stride, begin - u * window.dilation)
    return out


def _doublings(window: Window) -> int:
    return window.taps.bit_length() - 1


def _single(values: np.ndarray, axis: int, window: Window):
    """Each tap by itself."""
    for u in range(window.taps):
        yield values, u * window.dilation


def _doubled(values: np.ndarray, axis: int, window: Window):
    """The sums of 1, 2, 4, ... neighbours whose lengths add up to the window, each with where it begins in it."""
    width, begin, remaining = 1, 0, window.taps
    while True:
        if remaining & width:
            yield values, begin * window.dilation
            begin += width
            remaining -= width
        if not remaining:
            return
        shift = width * window.dilation
        length = values.shape[axis]
        values = values[_along(axis, 0, length - shift, 1)] + values[_along(axis, shift, length, 1)]
        width *= 2


def _stuffed(values: np.ndarray, axis: int, stride: int, begin: int, end: int) -> np.ndarray:
    """``out[t] = values[t / stride]`` where that is an index, 0 elsewhere, for t in [begin, end)."""
    out = _zeros(values, axis, end - begin)
    _add_stuffed(out, values, axis, stride, begin)
    return out


def _add_stuffed(out: np.ndarray, values: np.ndarray, axis: int, stride: int, begin: int) -> None:
    """``out[t - begin] += values[t / stride]`` wherever both are indices."""
    low = max(-(-begin // stride), 0)
    high = min(-(-(begin + out.shape[axis]) // stride), values.shape[axis])
    if low < high:
        target = out[_along(axis, low * stride - begin, (high - 1) * stride - begin + 1, stride)]
        np.add(target, values[_along(axis, low, high, 1)], out=target)


def _zeros(values: np.ndarray, axis: int, length: int) -> np.ndarray:
    shape = list(values.shape)
    shape[axis] = length
    return np.zeros(shape, values.dtype)


def _along(axis: int, begin: int, end: int, step: int) -> tuple:
    return (*(slice(None),) * axis, slice(begin, end, step))
