"""Reductions of scores by array functions that NumPy, CuPy and torch share.

The best scores are sorted: NaN before all numbers, then from the highest to the lowest, and equal ones by their channels. The
mean is kept as the highest score M and the sums S, Sy, Sx of the weights exp((score - M) / temperature) and of their products
with the displacement indices, so that two such states can be merged. An excluded displacement has the score negative infinity,
and in the place of its channel `NONE`. Every function returns new arrays.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .._arguments import LARGEST
from .._arrays import array_module, converted, is_tensor

NONE = LARGEST  # behind every channel, so that a displacement that is not excluded is found before it


def best_of(scores: Any, channels: Any, count: int) -> tuple[Any, Any]:
    """Return the ``count`` best scores and their channels, each (count, ...), of scores and channels (n, ...)."""
    xp = array_module(scores)
    best = []
    for rank in range(count):
        highest = xp.amax(scores, 0)  # NaN if any is
        at = xp.where((scores == highest) | xp.isnan(scores), channels, NONE)
        channel = xp.amin(at, 0)
        best.append((highest, channel))
        if rank < count - 1:
            taken = channels == channel
            scores, channels = xp.where(taken, -np.inf, scores), xp.where(taken, NONE, channels)
    highests, found = zip(*best, strict=True)
    return xp.stack(highests), xp.stack(found)


def without_excluded(scores: Any, channels: Any, kept: Any) -> tuple[Any, Any]:
    """Return scores and channels in which the displacements that are not kept are marked as excluded."""
    xp = array_module(scores)
    return xp.where(kept, scores, -np.inf), xp.where(kept, channels, NONE)


class Sharpness(NamedTuple):
    """A temperature in two numbers: scores are multiplied by ``factor``, and their differences are divided by ``divisor``.

    The difference of halved scores cannot overflow, but half of a low temperature could underflow.
    """

    factor: float
    divisor: float


def sharpness(temperature: float) -> Sharpness:
    """Return the two numbers of a temperature."""
    factor = 0.5 if temperature >= 1 else 1.0
    return Sharpness(factor, temperature * factor)


class Weights(NamedTuple):
    """The state of a mean at each position: the highest score, the sum of weights, and those weighted with displacement indices.

    Indices count from the first displacement of the whole patch.
    """

    highest: Any
    total: Any
    rows: Any
    columns: Any


def weights_of(scores: Any, first: tuple[int, int], sharp: Sharpness) -> Weights:
    """Return the state of scores (rows, columns, ...) of the displacements from an index pair ``first`` on."""
    xp = array_module(scores)
    highest = xp.amax(scores, (0, 1))
    weights = _exponentials(scores, highest, sharp)
    by_row, by_column = weights.sum(1), weights.sum(0)
    total = by_row.sum(0)
    along = [_weighted(each) for each in (by_row, by_column)]
    return Weights(highest, total, along[0] + first[0] * total, along[1] + first[1] * total)


def merged(one: Weights, other: Weights, sharp: Sharpness) -> Weights:
    """Return the state of the scores of both."""
    xp = array_module(one.highest)
    highest = xp.maximum(one.highest, other.highest)  # NaN if either is
    factors = [_exponentials(each.highest, highest, sharp) for each in (one, other)]
    sums = (a * factors[0] + b * factors[1] for a, b in zip(one[1:], other[1:], strict=True))
    return Weights(highest, *sums)


def _exponentials(scores: Any, highest: Any, sharp: Sharpness) -> Any:
    """Return the weights of scores. Where all scores are negative infinity, so may be the highest one: the weights are 0."""
    xp = array_module(scores)
    subtracted = xp.where(highest == -np.inf, 0, highest) * sharp.factor
    return xp.exp((scores * sharp.factor - subtracted) / sharp.divisor)


def _weighted(weights: Any) -> Any:
    """Return the sum of weights (n, ...) times their indices."""
    options = {"device": weights.device} if is_tensor(weights) else {}
    indices = array_module(weights).arange(weights.shape[0], dtype=weights.dtype, **options)
    return (weights * indices.reshape(-1, *[1] * (weights.ndim - 1))).sum(0)


def mean_of(state: Weights, ranges: tuple[range, range], temperature: float) -> tuple[Any, Any, Any]:
    """Return the mean displacements along y and x, and the logarithm of the sum of exp(score / temperature) in float64."""
    xp = array_module(state.highest)
    # The first displacement is added last: a large one would cost digits of the fraction.
    dy, dx = (
        each / state.total * tried.step + tried.start for each, tried in zip((state.rows, state.columns), ranges, strict=True)
    )
    # In float64: a weight is the exponential of its difference from a score.
    highest, total = (converted(each, "float64") for each in (state.highest, state.total))
    return dy, dx, highest / temperature + xp.log(total)
