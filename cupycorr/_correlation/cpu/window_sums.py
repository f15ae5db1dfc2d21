"""Sums over windows along one axis, and their transpose, in whichever order costs fewer additions.

A window of w taps is summed by doubling: sums of 2 neighbours, of 4, of 8 and so on, of which the binary digits of w pick
theirs. That is pairwise summation: no running total, so nothing large is ever subtracted again, and what is not finite stays
inside its own windows. Results live in scratch memory, for as long as the caller's `ExitStack` is open: in fresh memory these
few additions would be lost in page faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np

from ..._cpu.workers import scratch
from .lattice import Window


def window_sum(values: np.ndarray, axis: int, window: Window, memory: ExitStack) -> np.ndarray:
    """``out[i] = sum over u < taps of values[i stride + u dilation]`` along ``axis``, for every i that fits."""
    if window.taps == 1 and window.stride == 1:
        return values
    count = (values.shape[axis] - 1 - (window.taps - 1) * window.dilation) // window.stride + 1
    out = memory.enter_context(_scratch_like(values, axis, count))
    doubling = _doubling_costs_less(window, values.shape[axis], count)
    with ExitStack() as temporary:
        terms = _doubled(values, axis, window, temporary) if doubling else _single(values, window)
        for number, (term, begin) in enumerate(terms):
            picked = term[_along(axis, begin, begin + (count - 1) * window.stride + 1, window.stride)]
            if number:
                np.add(out, picked, out=out)
            else:
                np.copyto(out, picked)
    return out


def sum_costs(window: Window, length: int) -> tuple[int, int]:
    """Return how many calls of NumPy `window_sum` takes along an axis of ``length``, and how many values these write of a row."""
    if window.taps == 1 and window.stride == 1:
        return 0, 0
    count = (length - 1 - (window.taps - 1) * window.dilation) // window.stride + 1
    if not _doubling_costs_less(window, length, count):
        return window.taps, window.taps * count
    calls, picked = _doublings(window), window.taps.bit_count()
    return calls + picked, calls * length + picked * count


def _doubling_costs_less(window: Window, length: int, count: int) -> bool:
    return _doublings(window) * length + window.taps.bit_count() * count < window.taps * count


def window_spread(values: np.ndarray, axis: int, window: Window, begin: int, end: int, memory: ExitStack) -> np.ndarray:
    """The transpose of `window_sum`: ``out[t - begin] = sum over i, u with i stride + u dilation = t of values[i]``, t < end."""
    if window.taps == 1 and window.stride == 1:
        return values[_along(axis, begin, end, 1)]
    margin = (window.taps - 1) * window.dilation
    if _spreads_by_doubling(window, end - begin):
        stuffed = memory.enter_context(_scratch_like(values, axis, end - begin + margin))
        stuffed.fill(0)
        _add_stuffed(stuffed, values, axis, window.stride, begin - margin)
        return window_sum(stuffed, axis, Window(window.taps, window.dilation, 1), memory)
    if window.dilation == 1:
        return _spread_in_blocks(values, axis, window, begin, end, memory)
    out = memory.enter_context(_scratch_like(values, axis, end - begin))
    out.fill(0)
    for u in range(window.taps):
        _add_stuffed(out, values, axis, window.stride, begin - u * window.dilation)
    return out


def _spreads_by_doubling(window: Window, length: int) -> bool:
    margin = (window.taps - 1) * window.dilation
    costs_less = _doublings(window) * (length + margin) + length < window.taps * length // window.stride
    return costs_less and (window.stride == 1 or window.dilation > 1)


def spread_costs(window: Window, length: int) -> tuple[int, int]:
    """Return how many calls of NumPy `window_spread` takes for ``length`` indices, and how many values these write of a row."""
    if window.taps == 1 and window.stride == 1:
        return 0, 0
    if _spreads_by_doubling(window, length):
        stuffed = length + (window.taps - 1) * window.dilation
        calls, written = sum_costs(Window(window.taps, window.dilation, 1), stuffed)
        return calls + 2, written + 2 * stuffed
    if window.dilation == 1:
        added = window.taps // window.stride + 1
        return added + 3, added * -(-length // window.stride) + 2 * length
    return window.taps + 1, window.taps * -(-length // window.stride) + length


def _spread_in_blocks(values: np.ndarray, axis: int, window: Window, begin: int, end: int, memory: ExitStack) -> np.ndarray:
    """`window_spread` of adjoining taps: ``t = block stride + place`` is met by values ``block - j``, place + j stride < taps.

    So a block holds two sums only: one of its first places, which one value more still reaches, and one of the others.
    """
    stride = window.stride
    first, blocks = begin // stride, (end - 1) // stride - begin // stride + 1
    whole, rest = divmod(window.taps, stride)
    sums = memory.enter_context(_scratch_like(values, axis, blocks))
    sums.fill(0)
    out = memory.enter_context(_scratch_like(values, axis, blocks * stride))
    placed = out.reshape(*out.shape[:axis], blocks, stride, *out.shape[axis + 1 :])
    for j in range(whole + 1):
        if j == whole:
            placed[_along(axis + 1, rest, stride, 1)] = np.expand_dims(sums, axis + 1)
        _add_stuffed(sums, values, axis, 1, first - j)
    placed[_along(axis + 1, 0, rest, 1)] = np.expand_dims(sums, axis + 1)
    return out[_along(axis, begin - first * stride, end - first * stride, 1)]


def _doublings(window: Window) -> int:
    return window.taps.bit_length() - 1


def _single(values: np.ndarray, window: Window) -> Iterator[tuple[np.ndarray, int]]:
    """Each tap by itself."""
    for u in range(window.taps):
        yield values, u * window.dilation


def _doubled(values: np.ndarray, axis: int, window: Window, temporary: ExitStack) -> Iterator[tuple[np.ndarray, int]]:
    """The sums of 1, 2, 4, ... neighbours whose lengths add up to the window, each with where it begins in it."""
    # Each level is made from the one before it, so two buffers take turns.
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


def _add_stuffed(out: np.ndarray, values: np.ndarray, axis: int, stride: int, begin: int) -> None:
    """``out[t - begin] += values[t / stride]`` wherever both are indices."""
    low = max(-(-begin // stride), 0)
    high = min(-(-(begin + out.shape[axis]) // stride), values.shape[axis])
    if low < high:
        target = out[_along(axis, low * stride - begin, (high - 1) * stride - begin + 1, stride)]
        np.add(target, values[_along(axis, low, high, 1)], out=target)


def _scratch_like(values: np.ndarray, axis: int, length: int):
    shape = list(values.shape)
    shape[axis] = length
    return scratch(tuple(shape), values.dtype)


def _along(axis: int, begin: int, end: int, step: int) -> tuple:
    return (*(slice(None),) * axis, slice(begin, end, step))
