"""The interface between plans and engines: an engine sums the products of one packed block in one thread.

Plans (`forward`, `gradient`) divide, pack, sum windows and share work among threads, and know engines by this interface only. An
engine estimates its own time, so that plans can be compared before anything is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .packing import Block

THREAD_SECONDS = 3e-4  # the estimated work for which waking one more thread pays
TASK_SECONDS = 2e-3  # the estimated work of a task below which finer tasks cost more than threads that end at different times
MOST_TASKS = 64


@dataclass(frozen=True, slots=True)
class Workload:
    """The size of one task, from which an engine estimates its time.

    Attributes
    ----------
    rows, columns
        Query rows and columns, including those that a window reads beyond the outputs.
    patch_rows, patch_columns
        Displacements along each axis.
    channels, taps
        Channels, and the taps of the window over rows that the engine sums.
    row_phases, column_phases, column_step
        Phases along each axis, and the packed columns between neighbouring displacements of a phase.
    valid_fraction
        The fraction of pairs of a query row and a displacement row that are valid.
    row_reuse
        The number of query rows that read the same search row.
    itemsize
        Bytes of an element.
    gradient
        True if the sum is over displacements and leaves channels, False for the reverse.
    """

    rows: int
    columns: int
    patch_rows: int
    patch_columns: int
    channels: int
    taps: int
    row_phases: int
    column_phases: int
    column_step: int
    valid_fraction: float
    row_reuse: int
    itemsize: int
    gradient: bool

    @property
    def row_pairs(self) -> float:
        """The number of valid pairs of a query row and a displacement row."""
        return self.rows * self.patch_rows * self.valid_fraction


@dataclass(frozen=True, slots=True)
class Team:
    """The most threads that share a call, and the least tasks it is divided into. The machine may have fewer threads."""

    threads: int
    tasks: int


def tasks_for(seconds: float) -> int:
    """Return the least number of tasks for work of an estimated duration: a power of two, which threads divide evenly."""
    if seconds < 2 * THREAD_SECONDS:
        return 1
    tasks = 2
    while tasks < MOST_TASKS and seconds >= 2 * tasks * TASK_SECONDS:
        tasks *= 2
    return tasks


class Engine(Protocol):
    """A way to sum the products of one block in one thread."""

    name: str  # of the variant
    compiles: bool  # True if kernels that LLVM compiles can run beside the engine
    sums_rows: bool  # True if `volume` can sum a window over rows; windows over columns are always summed by the plan

    @property
    def description(self) -> str:
        """A description of the engine, with the number of its threads."""

    def threads(self) -> int:
        """Return how many threads may run tasks at once."""

    def __hash__(self) -> int:
        """Return the hash of the engine, which is part of the key of its cached plans."""

    def seconds(self, workload: Workload) -> float:
        """Estimate the seconds of the products of one task in one thread."""

    def volume(self, block: Block, query: np.ndarray, total: np.ndarray) -> None:
        """Add the products of a block, ``total[m, n, i, x] += sum over channels of query[t, c, x] * search``.

        With a window over rows, i are its outputs and the sum is also over the rows t that output i reads; otherwise t = i.

        Parameters
        ----------
        block
            The displacements m, n and the packed search image.
        query
            The packed query image, ``(rows, channels, at least the block's columns)``.
        total
            ``(ms, ns, rows or outputs, at least the block's columns)``.
        """

    def gradient(self, block: Block, cotangent: np.ndarray, total: np.ndarray) -> None:
        """Add the gradient of a block, ``total[t, c, x] += sum over m, n of cotangent[m, n, t, x] * search``.

        Parameters
        ----------
        block
            The displacements m, n and the packed search image.
        cotangent
            ``(ms, ns, rows, at least the block's columns)``.
        total
            ``(rows, channels, at least the block's columns)``.
        """
