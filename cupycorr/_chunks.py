"""Boxes of an array that is divided into blocks: the blocks that cover a box, and the box from these blocks.

A box is a range ``[begin, end)`` along every axis. Nothing here knows Dask or an operator.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, product
from math import prod
from typing import Any

from ._arguments import Pair
from ._arrays import array_module

Chunks = tuple[tuple[int, ...], ...]  # the lengths of the blocks along every axis


@dataclass(frozen=True, slots=True)
class Cover:
    """The blocks that cover a box.

    Attributes
    ----------
    blocks
        The first block along every axis, and the one after the last.
    begin
        The first element of the box, counted from the first element of the first block.
    lengths
        The lengths of the box.
    """

    blocks: tuple[Pair, ...]
    begin: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of blocks."""
        return prod(end - begin for begin, end in self.blocks)

    def indices(self) -> list[tuple[int, ...]]:
        """Return the indices of the blocks, those along the last axis next to each other."""
        return list(product(*(range(*each) for each in self.blocks)))

    def joined(self, blocks: Sequence[Any]) -> Any:
        """Return the box from its blocks, in the order of `indices`: a view of a single block, otherwise a new array."""
        if len(blocks) == 1:
            return blocks[0][tuple(slice(b, b + n) for b, n in zip(self.begin, self.lengths, strict=True))]
        box = array_module(blocks[0]).empty(self.lengths, blocks[0].dtype)
        counts = [end - begin for begin, end in self.blocks]
        strides = [prod(counts[axis + 1 :]) for axis in range(len(counts))]
        ranges = []
        for begin, length, count, stride, axis in zip(self.begin, self.lengths, counts, strides, range(len(counts)), strict=True):
            ends = list(accumulate(blocks[number * stride].shape[axis] for number in range(count)))
            starts = [0, *ends[:-1]]
            ranges.append([_overlap(begin, begin + length, *each) for each in zip(starts, ends, strict=True)])
        for block, overlaps in zip(blocks, product(*ranges), strict=True):
            of_box, of_block = zip(*overlaps, strict=True)
            box[of_box] = block[of_block]
        return box


def cover(chunks: Chunks, box: Sequence[Pair]) -> Cover:
    """Return the blocks of an array of these chunks that cover a box, which has elements."""
    blocks, first = [], []
    for lengths, (begin, end) in zip(chunks, box, strict=True):
        starts = _starts(lengths)
        block = bisect_right(starts, begin) - 1
        blocks.append((block, bisect_left(starts, end)))
        first.append(begin - starts[block])
    return Cover(tuple(blocks), tuple(first), tuple(end - begin for begin, end in box))


@lru_cache(64)
def _starts(lengths: tuple[int, ...]) -> list[int]:
    """Return the first element of each block along an axis."""
    return [0, *accumulate(lengths[:-1])]


def _overlap(begin: int, end: int, start: int, stop: int) -> tuple[slice, slice]:
    """Return what a box ``[begin, end)`` and a block ``[start, stop)`` have in common, counted from each one's first element."""
    first, last = max(begin, start), max(min(end, stop), max(begin, start))
    return slice(first - begin, last - begin), slice(first - start, last - start)
