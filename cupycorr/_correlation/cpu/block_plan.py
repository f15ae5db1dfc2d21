"""The plan of a map: how it is divided into blocks and tasks, and its estimated time.

`BlockPlan` is what the plans of the forward map and of the gradients have in common. A block is a region whose packed images fit
a share of the workspace; a task is a region of a block whose sums fit the cache of a core and which one thread computes. Plans
know shapes and no arrays, so that a plan is made once for a problem and serves every later call. Estimates follow from the
problem and the constants in `costs`, never from the number of threads, so that the bits of a result do not either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..._cpu.workers import WORKSPACE
from ..._sharing import CachedProperty
from ..problem import Problem
from .blocks import BATCH, CHANNELS, COLUMNS, LANES, MS, NS, ROWS, Order, Region, padded
from .engine import THREAD_SECONDS, Engine, Team, Workload, tasks_for
from .lattice import AxisPlan, Lattice, valid_fraction
from .packing import packed_length

# Shares of the workspace.
PACKED_BYTES = WORKSPACE // 4  # the packed images of one block, and the sums of a gradient that its result cannot hold exactly
SUMS_BYTES = WORKSPACE // 4  # the sums of all tasks that are computed at once

TASK_BYTES = 3 * 2**18  # the sums of one task: three quarters of a second-level cache of 1 MiB

# The order in which a block is divided into tasks where no window is summed in memory: large tasks keep many rows, which share
# search rows, and long runs of columns.
TASK_ORDER: Order = (
    *((BATCH, 1), (ROWS, 6), (COLUMNS, 512), (MS, 4), (COLUMNS, 64)),
    *((ROWS, 1), (NS, 16), (MS, 1), (COLUMNS, LANES), (NS, 1)),
)


class BlockPlan(ABC):
    """A plan of the forward map or of one gradient.

    Parameters
    ----------
    engine
        The engine that sums the products.
    problem
        The problem, with height and width exchanged if ``transposed``.
    dtype, result_dtype
        The dtypes of the sums and of the result.
    axes
        The ways to compute the windows along rows and along columns.
    transposed
        True if the arrays are viewed with height and width exchanged.
    """

    block_lengths: tuple[int, ...]  # of a Region, and the channels

    def __init__(
        self,
        engine: Engine,
        problem: Problem,
        dtype: np.dtype,
        result_dtype: np.dtype,
        axes: tuple[AxisPlan, AxisPlan],
        transposed: bool,
    ) -> None:
        self.engine, self.problem, self.axes, self.transposed = engine, problem, axes, transposed
        self.dtype, self.result_dtype = dtype, result_dtype
        self.scale = dtype.type(problem.parameters.scale)
        self.windows = axes[0].window, axes[1].window
        self._task_lengths_by_key: dict[tuple, tuple[int, ...]] = {}

    @property
    @abstractmethod
    def computes(self) -> bool:
        """True if any element of the result is a sum of products."""

    @property
    def fits(self) -> bool:
        """True if the plan stays within the workspace."""
        return not self.computes or self._packed_bytes(self.block_lengths) <= self._packed_limit

    @CachedProperty
    def team(self) -> Team:
        """The threads and tasks that the estimated time is worth."""
        return Team(1 + int(self.seconds / THREAD_SECONDS), tasks_for(self.seconds))

    @CachedProperty
    def seconds(self) -> float:
        """The estimated seconds of a call in one thread."""
        return self._seconds()

    # For the plans of each map ----------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def _typical(self) -> tuple[Lattice, Lattice]:
        """The vertical and the horizontal lattice for which blocks are divided and estimated."""

    @abstractmethod
    def _queries(self) -> Region:
        """Return the queries and displacements of the typical lattices that contain all valid pairs."""

    @abstractmethod
    def _packed_bytes(self, lengths: Sequence[int]) -> int:
        """Return the bytes of the packed images of a block."""

    @abstractmethod
    def _divide_into_tasks(self, *key: Any) -> tuple[int, ...]:
        """Return the lengths of tasks; the key begins with the lengths of the block."""

    @abstractmethod
    def _seconds(self) -> float:
        """Estimate the seconds of a call in one thread."""

    # For both maps ----------------------------------------------------------------------------------------------------

    @property
    def _packed_limit(self) -> int:
        """The most bytes of the packed images of a block."""
        return PACKED_BYTES

    def _packed_search_area(self, lengths: Sequence[int]) -> int:
        """Return the elements of one channel of one sample's packed search image; the lengths are those of queries."""
        vertical, horizontal = self._typical
        rows = packed_length(vertical, lengths[ROWS], lengths[MS])
        return rows * packed_length(horizontal, padded(lengths[COLUMNS]), lengths[NS])

    def _task_lengths(self, *key: Any) -> tuple[int, ...]:
        """Return `_divide_into_tasks`, computed once for each key."""
        found = self._task_lengths_by_key.get(key)
        if found is None:
            found = self._task_lengths_by_key[key] = self._divide_into_tasks(*key)
        return found

    @CachedProperty
    def _valid_fraction(self) -> float:
        """The fraction of pairs of a query row and a displacement row that are valid."""
        queries = self._queries()
        return valid_fraction(self._typical[0], queries.rows, queries.ms)

    def _workload(self, rows: int, columns: int, ms: int, ns: int, gradient: bool) -> Workload:
        """Return the workload of a task without a window, of these query rows and columns and displacements."""
        vertical, horizontal = self._typical
        return Workload(
            rows=rows,
            columns=columns,
            patch_rows=ms,
            patch_columns=ns,
            channels=self.block_lengths[CHANNELS],
            taps=1,
            row_phases=min(vertical.pitch, ms),
            column_phases=min(horizontal.pitch, ns),
            column_step=min(horizontal.advance, columns),
            valid_fraction=self._valid_fraction,
            row_reuse=min(-(-rows // vertical.advance), -(-ms // vertical.pitch)),
            itemsize=self.dtype.itemsize,
            gradient=gradient,
        )


def threads_within_workspace(task_bytes: int) -> int:
    """Return how many threads may compute tasks of this size at once."""
    return max(SUMS_BYTES // task_bytes, 1)
