"""Chunks of a volume (B, PH, PW, ...): samples and displacements that are computed at once, so that a workspace holds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from ..._gpu.call import Array
from ..._gpu.layout import Layout, ceil_div
from ..._gpu.limits import ALIGNMENT


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some samples and some displacements: where they begin along (B, PH, PW), and how many there are along each axis.

    ``number`` counts the chunks of the same samples from 0; ``last`` is True for the last of them.
    """

    begin: tuple[int, int, int]
    counts: tuple[int, int, int]
    number: int
    last: bool


def chunk_counts(whole: Sequence[int], bytes_each: int, room: int) -> tuple[int, ...]:
    """Return the sizes of a chunk along the axes: as large as fits ``room`` bytes, the last axis first, and at least 1."""
    free = max(room // bytes_each, 1)
    counts = []
    for size in reversed(whole):
        counts.append(max(min(size, free), 1))
        free = free // size if size and counts[-1] == size else 1
    return tuple(reversed(counts))


def chunks(whole: tuple[int, int, int], counts: tuple[int, ...]) -> Iterator[Chunk]:
    """Yield the chunks of all of (B, PH, PW), with at most ``counts`` along each axis."""
    samples, patch_y, patch_x = whole
    batch, rows, columns = counts
    for b in range(0, samples, max(batch, 1)):
        corners = list(product(range(0, patch_y, rows), range(0, patch_x, columns)))
        for number, (m, n) in enumerate(corners):
            size = (min(batch, samples - b), min(rows, patch_y - m), min(columns, patch_x - n))
            yield Chunk((b, m, n), size, number, number == len(corners) - 1)


def samples_of(array: Array, chunk: Chunk) -> Array:
    """Return a chunk's samples of an array (B, ...)."""
    whole, pointer = array
    return whole.resized(chunk.counts[0]), pointer.at(whole.offset(chunk.begin[0]))


def volume_of(array: Array, chunk: Chunk) -> Array:
    """Return a chunk's samples and displacements of an array (B, PH, PW, ...)."""
    whole, pointer = array
    return whole.resized(*chunk.counts), pointer.at(whole.offset(*chunk.begin))


def aligned(count: int) -> int:
    """Round bytes up to the alignment of things in the workspace."""
    return ceil_div(count, ALIGNMENT) * ALIGNMENT


def padded_bytes(volume: Layout) -> int:
    """Return the bytes that a volume made by `new_layout` takes in the workspace."""
    return aligned(volume.shape[0] * volume.strides[0] * volume.itemsize)
