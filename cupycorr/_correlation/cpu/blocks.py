"""Boxes of a volume, and how they are cut into blocks that fit the workspace and into tasks that fit a core's cache.

Cuts follow from the problem alone, never from the number of threads: the order in which products are summed, and so the bits of a
result, is the same on every machine. Nothing here knows arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from ..._arguments import Pair

LANES = 16  # columns are packed in multiples of this, so that vectors need no tail

BATCH, ROWS, COLUMNS, MS, NS, CHANNELS = range(6)  # the fields of a Region, and the channels beside it

Size = Callable[[Sequence[int]], float]  # of the lengths of a block or task
Order = tuple[tuple[int, int], ...]  # (field, floor): which lengths to halve, the first that is still above its floor


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

    def pieces(self, lengths: Sequence[int]) -> list[Region]:
        """Cut the region into pieces of at most these lengths."""
        if all(length >= whole for length, whole in zip(lengths, self.lengths, strict=True)):
            return [self]
        cuts = [cut(begin, end, length) for (begin, end), length in zip(self, lengths, strict=True)]
        return [Region(*ranges) for ranges in product(*cuts)]


def cut(begin: int, end: int, length: int) -> list[Pair]:
    """Cut a range into ranges of at most ``length``."""
    return [(at, min(at + length, end)) for at in range(begin, end, length)]


def padded(columns: int) -> int:
    """Round a number of columns up to whole vectors."""
    return -(-columns // LANES) * LANES


def count(lengths: Sequence[int], pieces: Sequence[int]) -> int:
    """Return how many pieces of these lengths a box of those lengths is cut into."""
    return prod(-(-length // piece) for length, piece in zip(lengths, pieces, strict=True))


def half(length: int, field: int, floor: int) -> int:
    """Half a length. Columns are cut between vectors, so that no piece's last vector overhangs what is packed."""
    found = max(-(-length // 2), floor)
    return min(padded(found), length) if field == COLUMNS else found


def halved(lengths: Sequence[int], size: Size, limit: float, order: Order) -> tuple[int, ...]:
    """Halve lengths in order until the size is within the limit, or every length is at its floor."""
    found = list(lengths)
    for field, floor in order:
        while size(found) > limit and found[field] > floor:
            found[field] = half(found[field], field, floor)
    return tuple(found)


def cheapest(lengths: Sequence[int], size: Size, limit: float, cost: Size, floors: Order, pieces: int = 1) -> tuple[int, ...]:
    """Halve the length whose cut costs least, until the size is within the limit and there are as many pieces as wanted.

    ``cost`` is that of one piece; a cut that computes something twice costs more in sum. Ties go to the first field.
    """
    found = list(lengths)
    while size(found) > limit or count(lengths, found) < pieces:
        candidates = []
        for field, floor in floors:
            shorter = list(found)
            shorter[field] = half(found[field], field, floor)
            if found[field] > floor and shorter[field] < found[field]:
                candidates.append((count(lengths, shorter) * cost(shorter), shorter))
        if not candidates:
            break
        found = min(candidates, key=lambda candidate: candidate[0])[1]
    return tuple(found)


def overlap(one: Pair, two: Pair) -> Pair:
    """Return the range both have in common; it ends before it begins where there is none."""
    return max(one[0], two[0]), min(one[1], two[1])
