"""The tasks of the variant ``simd``: tables of rectangles for its kernels, and the memory of each task."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..._cpu.llvm import address
from ..problem import Problem
from . import packing
from .blend_kernel import Blend
from .division import TILE_ROWS, Batch, rectangles
from .dot_kernel import dots_layout
from .rectangles import ORIGINS, WEIGHTS, Memory, Rectangle, Span, padding

BYTE = np.dtype(np.uint8)

# Bytes, at most: packed images of input2, packed pixels of input1, coordinates that are copied, the dots of a batch that are kept
# while bands are packed, and the dots of a task.
MAPS, FEATURES, COORDS, DOTS, TASK = 2**25, 2**23, 2**21, 2**22, 2**20

TASKS = 4  # of each thread, at least: threads begin and end at different times
FEWEST = 128  # queries that a task is worth


class Task(NamedTuple):
    """Rectangles that one thread computes.

    Attributes
    ----------
    level
        The level that they are at.
    fields, span
        The rows of the table, and where they are in memory.
    places
        The entry, the lookup, the first row and the first column of each rectangle.
    queries
        The number of queries.
    blend_bytes
        The bytes of scratch memory for blending them.
    """

    level: int
    fields: np.ndarray
    span: Span
    places: np.ndarray
    queries: int
    blend_bytes: int


class Sizes:
    """The sizes of the arrays of a problem in a dtype of the sums, for so many threads."""

    def __init__(self, problem: Problem, accumulator: np.dtype, threads: int = 1) -> None:
        self.problem, self.accumulator, self.item = problem, accumulator, accumulator.itemsize
        self.layout = dots_layout(problem)
        self.channels = packing.packed_channels(problem.channels, accumulator)
        #: Bytes of the windows and the dots of a query.
        self.query_bytes = self.layout.size * self.item + WEIGHTS * self.item + ORIGINS * 8
        share = max(problem.queries * problem.levels // (TASKS * threads), FEWEST)
        self.task_queries = max(min(TASK // self.query_bytes, share), 1)
        self.batch_queries = max(DOTS // self.query_bytes, 1)

    @property
    def task_bytes(self) -> int:
        """The most bytes that a task holds."""
        queries = self.task_queries
        outputs = queries * math.prod(self.problem.parameters.patch_size) * self.item
        return self.memory_bytes(queries) + outputs + self.blend_bytes(TILE_ROWS, queries // TILE_ROWS + 1)

    @property
    def shared_bytes(self) -> int:
        """The most bytes that all tasks share."""
        return MAPS + FEATURES + COORDS + self.memory_bytes(self.batch_queries)

    def memory_bytes(self, queries: int) -> int:
        """Return the bytes of `memory`."""
        return self.windows_bytes(queries) + (queries * self.layout.size + padding(self.item)) * self.item

    def windows_bytes(self, queries: int) -> int:
        """Return the bytes of `memory` without the dots."""
        return (queries + padding(self.item)) * (WEIGHTS * self.item + ORIGINS * 8)

    def blend_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes of scratch memory for blending rectangles of so many rows and columns."""
        return Blend.scratch_size(self.problem, self.accumulator, rows, columns) * self.item

    def memory(self, array: np.ndarray, queries: int) -> Memory:
        """Return the memory for the windows and the dots of so many queries in an array of `memory_bytes` bytes."""
        planes = queries + padding(self.item)
        origins = address(array)
        weights = origins + planes * ORIGINS * 8
        return Memory(planes, weights, origins, weights + planes * WEIGHTS * self.item)


class Operands(NamedTuple):
    """The places of the arrays of a batch, in elements.

    Attributes
    ----------
    coords, coords_strides
        The number in the array of coordinates of each entry of the batch, and the strides of that array (entries, lookups, 1 or
        2, rows, columns), whose first element is the first one of the batch's block and lookups.
    features, features_columns
        The offset of the pixels of each entry, and the number of columns from row to row.
    images
        The offset of the packed image of each entry.
    out_strides
        The strides of the output (E, L, K, PH, PW, H, W); None where it cannot be written in place, but only through a copy.
    """

    coords: np.ndarray
    coords_strides: tuple[int, ...]
    features: np.ndarray
    features_columns: int
    images: np.ndarray
    out_strides: tuple[int, ...] | None


def tasks_of(sizes: Sizes, batch: Batch, level: int, operands: Operands, *, kept: bool) -> list[Task]:
    """Return the tasks of a batch at a level, with the windows of each in memory of its own or, ``kept``, of all in one."""
    parts = rectangles(batch.block, sizes.task_queries)
    entries, lookups = np.array(batch.entries, np.int64), np.arange(batch.lookups.start, batch.lookups.stop)
    e, k, number = (each.ravel() for each in np.indices((len(entries), len(lookups), len(parts.top))))
    top, left, rows, columns = (each[number] for each in (parts.top, parts.left, parts.rows, parts.columns))
    y, x = top - batch.block[0].start, left - batch.block[1].start
    queries = rows * columns
    first_query = np.cumsum(queries) - queries
    count = max(sizes.task_queries // int(queries.max()), 1)
    first_of_task = np.repeat(first_query[::count], count)[: len(queries)]
    of_coords, of_out = operands.coords_strides, operands.out_strides
    fields = Rectangle(
        rows=rows,
        columns=columns,
        top=top,
        slot=first_query if kept else first_query - first_of_task,
        coords=operands.coords[e] * of_coords[0] + k * of_coords[1] + y * of_coords[3] + x,
        coords_row=of_coords[3],
        coords_channel=of_coords[2],
        features=operands.features[e] + (y * operands.features_columns + x) * sizes.channels,
        features_row=operands.features_columns * sizes.channels,
        image=operands.images[e],
        out=first_query if of_out is None else entries[e] * of_out[0] + lookups[k] * of_out[2] + top * of_out[5] + left,
        out_row=columns if of_out is None else of_out[5],
    )
    array = np.empty((len(number), len(fields)), np.int64)
    for field, values in enumerate(fields):
        array[:, field] = values
    places = np.stack((entries[e], lookups[k], top, left), 1)
    found = []
    first, blend_bytes = address(array), sizes.blend_bytes(int(parts.rows.max()), int(parts.columns.max()))
    for begin in range(0, len(array), count):
        end = min(begin + count, len(array))
        span = Span(first + begin * array.strides[0], end - begin)
        part = slice(begin, end)
        found.append(Task(level, array[part], span, places[part], int(queries[part].sum()), blend_bytes))
    return found
