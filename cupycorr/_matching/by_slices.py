"""Matching by slices of the volume, which another function computes: for arrays and tensors of any library and any device.

It is right everywhere, takes little memory, and is no faster than the volume itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from .._arguments import Pair
from .._arrays import array_module, is_tensor
from .._correlation.problem import Axis
from .._correlation.problem import Problem as Correlation
from .problem import Best, Problem, allowed
from .reductions import NONE, Weights, best_of, mean_of, merged, sharpness, weights_of, without_excluded
from .slices import Slice, slices

Scores = Callable[[Slice], Any]  # returns the scores (b, ms, ns, oH, oW) of a slice, in the accumulator
NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # the index pairs around the best displacement: above, below, left, right


def run(problem: Problem, arrays: Mapping[str, Any], scores: Scores, itemsize: int) -> None:
    """Write the results of a problem into the named arrays.

    Parameters
    ----------
    problem
        The problem.
    arrays
        "score", "channel" and perhaps "around" for the best displacements, "dy", "dx" and perhaps "log_sum" for the mean.
    scores
        Computes a slice of the volume.
    itemsize
        The bytes of a score.
    """
    reduce = _best if isinstance(problem.reduction, Best) else _mean
    for samples, parts in groupby(slices(problem.correlation, itemsize), key=lambda part: part.samples):
        reduce(problem, {name: each[samples] for name, each in arrays.items()}, parts, scores)
    if "around" in arrays:
        for part in slices(problem.correlation, itemsize):
            of_part = {name: each[part.samples] for name, each in arrays.items()}
            _write_around(problem, of_part, part, scores(part))


def _best(problem: Problem, arrays: Mapping[str, Any], parts: Iterator[Slice], scores: Scores) -> None:
    count, found = problem.reduction.top_k, None  # type: ignore[union-attr]
    xp = array_module(arrays["score"])
    for part in parts:
        values = scores(part)
        joined = xp.moveaxis(values.reshape(values.shape[0], -1, *values.shape[3:]), 1, 0)
        channels = _channels(problem, part, values)
        if problem.excluding:
            joined, channels = without_excluded(joined, channels, kept(problem, part, values).reshape(-1, 1, *values.shape[3:]))
        mine = best_of(joined, channels, min(count, joined.shape[0]))
        if found is not None:
            joined, channels = (xp.concatenate(pair) for pair in zip(found, mine, strict=True))
            mine = best_of(joined, channels, min(count, joined.shape[0]))
        found = mine
    if found is not None:
        write_best(arrays, xp.moveaxis(found[0], 0, 1), xp.moveaxis(found[1], 0, 1))


def write_best(arrays: Mapping[str, Any], scores: Any, channels: Any) -> None:
    """Write the best scores and their channels into "score" and "channel": NaN and -1 where all others are excluded."""
    xp = array_module(scores)
    none = channels == NONE
    arrays["score"][...] = xp.where(none, np.nan, scores)
    arrays["channel"][...] = xp.where(none, -1, channels)


def scores_around(scores: Any, channel: Any, first: Pair, patch: int, limits: Sequence[tuple[Any, Any]]) -> Iterator[tuple]:
    """Yield for each neighbour of the best displacement where its score is among some scores, and these.

    Parameters
    ----------
    scores
        Scores (ms, ns, ...) of the displacements from the index pair ``first`` on.
    channel
        The channels (...) of the best displacements.
    first, patch
        The index pair of the first displacement, and the columns of the whole patch.
    limits
        For both axes, where the indices begin and end that are candidates.
    """
    xp = array_module(scores)
    rows, columns, *positions = scores.shape
    flat = scores.reshape(rows * columns, *positions)
    for down, right in NEIGHBOURS:
        m, n = channel // patch + down, channel % patch + right
        kept = channel >= 0
        for index, (begin, end), start, count in zip((m, n), limits, first, (rows, columns), strict=True):
            kept = kept & (index >= begin) & (index < end) & (index >= start) & (index < start + count)
        at = xp.where(kept, (m - first[0]) * columns + n - first[1], 0)[None]
        yield kept, (xp.take_along_dim if is_tensor(flat) else xp.take_along_axis)(flat, at, 0)[0]


def _write_around(problem: Problem, arrays: Mapping[str, Any], part: Slice, scores: Any) -> None:
    """Write those scores around the best displacements that are in a slice; negative infinity where none is a candidate."""
    xp, around, channel = array_module(scores), arrays["around"], arrays["channel"][:, 0]
    if part.first == (0, 0):
        around[...] = -np.inf
    patch, limits = problem.correlation.horizontal.patch, _limits(problem, scores)
    neighbours = scores_around(xp.moveaxis(scores, 0, 2), channel, part.first, patch, limits)
    for number, (kept, found) in enumerate(neighbours):
        around[:, number] = xp.where(kept, found, around[:, number])


def _mean(problem: Problem, arrays: Mapping[str, Any], parts: Iterator[Slice], scores: Scores) -> None:
    state: Weights | None = None
    temperature = problem.reduction.temperature  # type: ignore[union-attr]
    sharp = sharpness(temperature)
    for part in parts:
        values = scores(part)
        if problem.excluding:
            values = array_module(values).where(kept(problem, part, values), values, -np.inf)
        mine = weights_of(array_module(values).moveaxis(values, 0, 2), part.first, sharp)
        state = mine if state is None else merged(state, mine, sharp)
    if state is not None:
        write_mean(problem, arrays, state)


def write_mean(problem: Problem, arrays: Mapping[str, Any], state: Weights) -> None:
    """Write the mean into "dy", "dx" and "log_sum", if there is one."""
    found = mean_of(state, problem.ranges, problem.reduction.temperature)  # type: ignore[union-attr]
    for name, values in zip(("dy", "dx", "log_sum"), found, strict=True):
        if name in arrays:
            arrays[name][...] = values


def on_device(array: np.ndarray, like: Any) -> Any:
    """Return a NumPy array as an array of another one's kind, on its device."""
    xp = array_module(like)
    return xp.asarray(array, device=like.device) if is_tensor(like) else xp.asarray(array)


def channels_on_device(volume: Correlation, first: Pair, counts: Pair, like: Any) -> Any:
    """Return `channels_of` as an array of another one's kind, computed on its device."""
    m, n = (_whole_numbers(start, start + count, like) for start, count in zip(first, counts, strict=True))
    return (m * volume.horizontal.patch)[:, None] + n


def allowed_on_device(axis: Axis, like: Any) -> tuple[Any, Any]:
    """Return the begins and the ends of `allowed` as arrays of another one's kind, computed on its device.

    A stream that is captured takes no copy from the host, which only numbers beyond 64 bits need.
    """
    first = (axis.kernel - 1) // 2 * axis.dilation - axis.padding + axis.first_displacement
    if not axis.fits_64_bits:
        begin, end = on_device(allowed(axis).copy(), like)  # torch takes no read-only array
        return begin, end
    position = first + axis.stride * _whole_numbers(0, axis.out, like)  # in input2, at displacement index 0
    if axis.step > 0:
        begin, end = -(position // axis.step), -((position - axis.size2) // axis.step)
    else:
        begin, end = (position - axis.size2) // -axis.step + 1, position // -axis.step + 1
    xp = array_module(like)
    begin = xp.clip(begin, 0, axis.patch)
    return begin, xp.maximum(begin, xp.clip(end, 0, axis.patch))


def _whole_numbers(begin: int, end: int, like: Any) -> Any:
    xp = array_module(like)
    return xp.arange(begin, end, device=like.device) if is_tensor(like) else xp.arange(begin, end)


def _channels(problem: Problem, part: Slice, values: Any) -> Any:
    """Return the channels (n, 1, 1, 1) of the displacements of a slice."""
    return channels_on_device(problem.correlation, part.first, values.shape[1:3], values).reshape(-1, 1, 1, 1)


def _limits(problem: Problem, values: Any) -> list[tuple[Any, Any]]:
    """Return, for both axes, where the displacement indices begin and end that are not excluded, for every position."""
    axes = problem.correlation.vertical, problem.correlation.horizontal
    if not problem.excluding:
        return [(0, axis.patch) for axis in axes]
    rows, columns = (allowed_on_device(axis, values) for axis in axes)
    return [(rows[0][:, None], rows[1][:, None]), (columns[0], columns[1])]


def kept(problem: Problem, part: Slice, values: Any) -> Any:
    """Return whether each displacement of a slice of scores is kept at each position, (ms, ns, oH, oW)."""
    inside = []
    axes = problem.correlation.vertical, problem.correlation.horizontal
    for axis, first, count in zip(axes, part.first, values.shape[1:3], strict=True):
        begin, end = allowed_on_device(axis, values)
        index = _whole_numbers(first, first + count, values)[:, None]
        inside.append((begin <= index) & (index < end))
    return inside[0][:, None, :, None] & inside[1][None, :, None, :]
