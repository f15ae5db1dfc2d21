"""The division of a lookup into batches, whose packed arrays fit into the workspace, and of a batch into rectangles of queries.

    for each group of images of input2, packed together             (or in bands of rows, where one image is too large)
        for each batch of queries that look into them, whose pixels are packed together
            for each level, for each task: some rectangles of queries

The division follows from the sizes and indices, and from which arrays are packed already. No result depends on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import numpy as np

from ..problem import Problem
from ..windows import Block, blocks

TILE_ROWS = 8  # the most rows of a rectangle: neighbours share what they read of a map, and little is kept of each row


class Batch(NamedTuple):
    """Queries that are looked up together: a block of the image of some entries, for some of their lookups.

    More than one entry is in a batch only with whole images and all lookups.
    """

    entries: list[int]
    lookups: range
    block: Block


class Group(NamedTuple):
    """Images of input2 that are packed together, and the entries that look into them."""

    images: list[int]
    entries: list[int]


def groups(index2: Sequence[int], image_bytes: int, limit: int) -> Iterator[Group]:
    """Divide entries into groups whose images have at most so many bytes together, or are one image."""
    image_of = index2.__getitem__
    by_image = [(image, list(entries)) for image, entries in groupby(sorted(range(len(index2)), key=image_of), image_of)]
    most = max(limit // image_bytes, 1) if image_bytes else max(len(by_image), 1)
    for begin in range(0, len(by_image), most):
        part = by_image[begin : begin + most]
        yield Group([image for image, _ in part], [entry for _, entries in part for entry in entries])


def batches(problem: Problem, entries: Sequence[int], queries: int, pixels: int) -> Iterator[Batch]:
    """Divide entries into batches of at most so many queries, that are at so many pixels of input1."""
    height, width = problem.size1
    area = height * width
    together = min(queries // (area * problem.lookups), pixels // area)
    if together:
        whole = slice(0, height), slice(0, width)
        for begin in range(0, len(entries), together):
            yield Batch(list(entries[begin : begin + together]), range(problem.lookups), whole)
        return
    size = max(min(queries, pixels), 1)
    for entry in entries:
        for block in blocks(problem, size, size):
            rows, columns = block
            lookups = max(queries // ((rows.stop - rows.start) * (columns.stop - columns.start)), 1)
            for first in range(0, problem.lookups, lookups):
                yield Batch([entry], range(first, min(first + lookups, problem.lookups)), block)


@dataclass(frozen=True, slots=True, eq=False)
class Rectangles:
    """The rectangles of a block of queries that at most so many queries have, as arrays with a number for each."""

    top: np.ndarray
    left: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


def rectangles(block: Block, queries: int) -> Rectangles:
    """Divide a block into rectangles of at most so many queries (or one)."""
    rows, columns = block
    return _rectangles(rows.start, rows.stop, columns.start, columns.stop, queries)


@lru_cache(64)
def _rectangles(first_row: int, end_row: int, first_column: int, end_column: int, queries: int) -> Rectangles:
    height, width = end_row - first_row, end_column - first_column
    tall = min(height, TILE_ROWS, queries)
    wide = min(width, queries // tall)
    top, left = (each.ravel() for each in np.meshgrid(range(0, height, tall), range(0, width, wide), indexing="ij"))
    rows, columns = np.minimum(tall, height - top), np.minimum(wide, width - left)
    return Rectangles(top + first_row, left + first_column, rows, columns)
