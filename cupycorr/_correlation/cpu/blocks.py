"""Boxes of a volume, and their division into blocks that fit the workspace and into tasks that fit a core's cache.

A division follows from the problem alone and never from the number of threads: the order of summation, and with it the bits of a
result, is the same on every machine. This module knows neither arrays nor engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from ..._arguments import Pair
from ..._cpu.register_tile import VECTOR_BYTES

LANES = VECTOR_BYTES // 4  # columns are packed in multiples of this: whole vectors of any register width and element type

BATCH, ROWS, COLUMNS, MS, NS, CHANNELS = range(6)  # indices of the lengths of a Region, and of the channels behind them

Size = Callable[[Sequence[int]], float]  # a size or a cost as a function of lengths
Order = tuple[tuple[int, int], ...]  # (index, minimum) of the lengths that may be halved, in order of preference


@dataclass(frozen=True, slots=True)
class Region:
    """A box of a volume: half-open ranges of samples, rows, columns and displacement indices."""

    batch: Pair
    rows: Pair
    columns: Pair
    ms: Pair
    ns: Pair

    def __iter__(self) -> Iterator[Pair]:
        return iter((self.batch, self.rows, self.columns, self.ms, self.ns))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of the ranges, in the order of the fields."""
        (b, b_end), (y, y_end), (x, x_end), (m, m_end), (n, n_end) = self.batch, self.rows, self.columns, self.ms, self.ns
        return b_end - b, y_end - y, x_end - x, m_end - m, n_end - n

    def split(self, lengths: Sequence[int]) -> list[Region]:
        """Split the region into regions of at most these lengths."""
        if all(length >= whole for length, whole in zip(lengths, self.lengths, strict=True)):
            return [self]
        ranges = [split_range(begin, end, length) for (begin, end), length in zip(self, lengths, strict=True)]
        return [Region(*each) for each in product(*ranges)]


def split_range(begin: int, end: int, length: int) -> list[Pair]:
    """Split a range into ranges of at most ``length``."""
    return [(at, min(at + length, end)) for at in range(begin, end, length)]


def padded(columns: int) -> int:
    """Round a number of columns up to whole vectors."""
    return -(-columns // LANES) * LANES


def grid_size(lengths: Sequence[int], box: Sequence[int]) -> int:
    """Return the number of boxes into which `Region.split` divides a region of these lengths."""
    return prod(-(-length // side) for length, side in zip(lengths, box, strict=True))


def half(length: int, index: int, minimum: int) -> int:
    """Return half a length. Columns are halved to whole vectors, so that no box reads beyond what is packed."""
    found = max(-(-length // 2), minimum)
    return min(padded(found), length) if index == COLUMNS else found


def halve_in_order(lengths: Sequence[int], size: Size, limit: float, order: Order) -> tuple[int, ...]:
    """Halve lengths in the given order until the size is within the limit or every length is at its minimum."""
    found = list(lengths)
    for index, minimum in order:
        while size(found) > limit and found[index] > minimum:
            found[index] = half(found[index], index, minimum)
    return tuple(found)


def halve_at_least_cost(
    lengths: Sequence[int], size: Size, limit: float, cost: Size, order: Order, boxes: int = 1
) -> tuple[int, ...]:
    """Halve the length that costs least to halve, until the size is within the limit and there are at least ``boxes`` boxes.

    ``cost`` is the cost of one box, so that a division that computes something twice has a larger total cost. Of equal costs the
    first in ``order`` is taken.
    """
    found = list(lengths)
    while size(found) > limit or grid_size(lengths, found) < boxes:
        candidates = []
        for index, minimum in order:
            shorter = list(found)
            shorter[index] = half(found[index], index, minimum)
            if found[index] > minimum and shorter[index] < found[index]:
                candidates.append((grid_size(lengths, shorter) * cost(shorter), shorter))
        if not candidates:
            break
        found = min(candidates, key=lambda candidate: candidate[0])[1]
    return tuple(found)


def intersection(one: Pair, two: Pair) -> Pair:
    """Return the range that two ranges have in common; where there is none, its end lies before its begin."""
    return max(one[0], two[0]), min(one[1], two[1])
