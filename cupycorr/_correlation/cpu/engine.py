"""The interface by which blocks are handed to the CPU's engines, and the estimates of the engines' time.

An engine sums the products of one packed block in one thread. Cutting, packing, windows, threads and memory are the business of
`forward` and `gradient` plans, which know engines only by this interface.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .packing import Block

THREAD_SECONDS = 3e-4  # of work below which waking another thread costs more than it takes over
TASK_SECONDS = 2e-3  # and below which cutting work finer costs more than threads that do not finish together
MOST_TASKS = 64


@dataclass(frozen=True, slots=True)
class Products:
    """The products of one task, counted: what an engine estimates its time from.

    Attributes
    ----------
    rows, columns
        Query rows and columns, those that the window reads included.
    patch_rows, patch_columns
        Displacements along each axis.
    channels, taps
        Channels, and rows of the window that the engine sums.
    row_phases, column_phases, column_step
        Phases along each axis, and the packed columns between the displacements of a phase.
    share
        The part of all pairs of a query row and a displacement row that count.
    alike
        Query rows that read a common searched row.
    itemsize
        Bytes of an element.
    gradient
        Whether the sum is over displacements and leaves channels, or the other way round.
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
    share: float
    alike: int
    itemsize: int
    gradient: bool

    @property
    def row_pairs(self) -> float:
        """Pairs of a query row and a displacement row that count."""
        return self.rows * self.patch_rows * self.share


@dataclass(frozen=True, slots=True)
class Team:
    """How many threads may share work, and into how many tasks it is cut at least. Only the threads depend on the machine."""

    threads: int
    tasks: int


def tasks_for(seconds: float) -> int:
    """Return into how many tasks work of so many estimated seconds is cut at least: a power of two, to divide evenly."""
    if seconds < 2 * THREAD_SECONDS:
        return 1
    tasks = 2
    while tasks < MOST_TASKS and seconds >= 2 * tasks * TASK_SECONDS:
        tasks *= 2
    return tasks


class Engine(Protocol):
    """How the products of one block are summed, in one thread."""

    name: str  # of the variant that it is the engine of
    sums_rows: bool  # whether `volume` can sum a window over rows itself; columns' windows are never its business

    @property
    def description(self) -> str:
        """The engine in words, with the number of its threads."""

    def threads(self) -> int:
        """Return how many threads may run tasks at once."""

    def __hash__(self) -> int:
        """Engines are keys of the plans made for them."""

    def seconds(self, products: Products) -> float:
        """Estimate the seconds that one task's products take in one thread."""

    def volume(self, block: Block, query: np.ndarray, total: np.ndarray) -> None:
        """``total[m, n, i, x] += sum over channels (and the window's rows t of i) of query[t, c, x] * searched``.

        ``total`` is (ms, ns, rows or outputs of the window, >= columns).
        """

    def gradient(self, block: Block, cotangent: np.ndarray, total: np.ndarray) -> None:
        """``total[t, c, x] += sum over m, n of cotangent[m, n, t, x] * searched``; total is (rows, channels, >= columns)."""
