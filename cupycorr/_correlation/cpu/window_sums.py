"""Sums over windows along one axis of an array, and their transpose, in whichever order takes fewer additions.

A window of w taps is summed by doubling: from sums of 2, 4, 8, ... neighbours, the binary digits of w select those that add up to
the window. That is pairwise summation: there is no running total, so that no large number is subtracted again and an Inf or NaN
affects its own windows only. Results are in scratch memory as long as the caller's `ExitStack` is open, since page faults of
fresh memory would take longer than these few additions. This module knows arrays and `Window` only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack

import numpy as np

from ..._cpu.workers import scratch
from .lattice import Window


def window_sum(values: np.ndarray, axis: int, window: Window, memory: ExitStack) -> np.ndarray:
    """Return ``out[i] = sum over u < taps of values[i stride + u dilation]`` along ``axis``, for every i that fits."""
    if window.taps == 1 and window.stride == 1:
        return values
    count = window.output_length(values.shape[axis])
    out = memory.enter_context(_scratch_like(values, axis, count))
    doubling = _doubling_costs_less(window, values.shape[axis], count)
    with ExitStack() as temporary:
        terms = _doubled_terms(values, axis, window, temporary) if doubling else _single_terms(values, window)
        for number, (term, begin) in enumerate(terms):
            selected = term[_along(axis, begin, begin + (count - 1) * window.stride + 1, window.stride)]
            if number:
                np.add(out, selected, out=out)
            else:
                np.copyto(out, selected)
    return out


def sum_costs(window: Window, length: int) -> tuple[int, int]:
    """Return the number of NumPy calls of `window_sum` along an axis of ``length``, and the number of values they write."""
    if window.taps == 1 and window.stride == 1:
        return 0, 0
    count = window.output_length(length)
    if not _doubling_costs_less(window, length, count):
        return window.taps, window.taps * count
    doublings, terms = _doublings(window), window.taps.bit_count()
    return doublings + terms, doublings * length + terms * count


def _doubling_costs_less(window: Window, length: int, count: int) -> bool:
    return _doublings(window) * length + window.taps.bit_count() * count < window.taps * count


def window_transpose(values: np.ndarray, axis: int, window: Window, begin: int, end: int, memory: ExitStack) -> np.ndarray:
    """Return the transpose of `window_sum`: ``out[t - begin] = sum of values[i]`` over i, u with i stride + u dilation = t."""
    if window.taps == 1 and window.stride == 1:
        return values[_along(axis, begin, end, 1)]
    margin = (window.taps - 1) * window.dilation
    if _transposes_by_doubling(window, end - begin):
        upsampled = memory.enter_context(_scratch_like(values, axis, end - begin + margin))
        upsampled.fill(0)
        _add_upsampled(upsampled, values, axis, window.stride, begin - margin)
        return window_sum(upsampled, axis, Window(window.taps, window.dilation, 1), memory)
    if window.dilation == 1:
        return _transpose_by_strides(values, axis, window, begin, end, memory)
    out = memory.enter_context(_scratch_like(values, axis, end - begin))
    out.fill(0)
    for u in range(window.taps):
        _add_upsampled(out, values, axis, window.stride, begin - u * window.dilation)
    return out


def _transposes_by_doubling(window: Window, length: int) -> bool:
    margin = (window.taps - 1) * window.dilation
    costs_less = _doublings(window) * (length + margin) + length < window.taps * length // window.stride
    return costs_less and (window.stride == 1 or window.dilation > 1)


def transpose_costs(window: Window, length: int) -> tuple[int, int]:
    """Return the number of NumPy calls of `window_transpose` for ``length`` indices, and the number of values they write."""
    if window.taps == 1 and window.stride == 1:
        return 0, 0
    if _transposes_by_doubling(window, length):
        upsampled = length + (window.taps - 1) * window.dilation
        calls, written = sum_costs(Window(window.taps, window.dilation, 1), upsampled)
        return calls + 2, written + 2 * upsampled
    if window.dilation == 1:
        added = window.taps // window.stride + 1
        return added + 3, added * -(-length // window.stride) + 2 * length
    return window.taps + 1, window.taps * -(-length // window.stride) + length


def _transpose_by_strides(values: np.ndarray, axis: int, window: Window, begin: int, end: int, memory: ExitStack) -> np.ndarray:
    """Return the `window_transpose` of a window without dilation.

    Index ``t = q stride + r``, r < stride, is the sum of the values ``q - j`` for all j with ``r + j stride < taps``. So every
    stretch q of ``stride`` indices holds two different sums only: one for r < taps % stride, with one more value, and one for
    the other r.
    """
    stride = window.stride
    first, stretches = begin // stride, (end - 1) // stride - begin // stride + 1
    whole, remainder = divmod(window.taps, stride)
    sums = memory.enter_context(_scratch_like(values, axis, stretches))
    sums.fill(0)
    out = memory.enter_context(_scratch_like(values, axis, stretches * stride))
    by_stretch = out.reshape(*out.shape[:axis], stretches, stride, *out.shape[axis + 1 :])
    for j in range(whole + 1):
        if j == whole:
            by_stretch[_along(axis + 1, remainder, stride, 1)] = np.expand_dims(sums, axis + 1)
        _add_upsampled(sums, values, axis, 1, first - j)
    by_stretch[_along(axis + 1, 0, remainder, 1)] = np.expand_dims(sums, axis + 1)
    return out[_along(axis, begin - first * stride, end - first * stride, 1)]


def _doublings(window: Window) -> int:
    return window.taps.bit_length() - 1


def _single_terms(values: np.ndarray, window: Window) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the array for each tap, and the index where the tap begins."""
    for u in range(window.taps):
        yield values, u * window.dilation


def _doubled_terms(values: np.ndarray, axis: int, window: Window, temporary: ExitStack) -> Iterator[tuple[np.ndarray, int]]:
    """Yield the sums of 1, 2, 4, ... neighbours whose lengths add up to the window, each with the index where it begins."""
    # Each sum is computed from the one before it: double buffering.
    buffers = [temporary.enter_context(_scratch_like(values, axis, values.shape[axis])) for _ in range(2)]
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
        doubled = buffers[0][_along(axis, 0, length - shift, 1)]
        np.add(values[_along(axis, 0, length - shift, 1)], values[_along(axis, shift, length, 1)], out=doubled)
        values = doubled
        buffers.reverse()
        width *= 2


def _add_upsampled(out: np.ndarray, values: np.ndarray, axis: int, stride: int, begin: int) -> None:
    """Add upsampled values: ``out[t - begin] += values[t / stride]`` wherever ``t / stride`` is an index."""
    low = max(-(-begin // stride), 0)
    high = min(-(-(begin + out.shape[axis]) // stride), values.shape[axis])
    if low < high:
        target = out[_along(axis, low * stride - begin, (high - 1) * stride - begin + 1, stride)]
        np.add(target, values[_along(axis, low, high, 1)], out=target)


def _scratch_like(values: np.ndarray, axis: int, length: int) -> AbstractContextManager[np.ndarray]:
    shape = list(values.shape)
    shape[axis] = length
    return scratch(tuple(shape), values.dtype)


def _along(axis: int, begin: int, end: int, step: int) -> tuple:
    return (*(slice(None),) * axis, slice(begin, end, step))
