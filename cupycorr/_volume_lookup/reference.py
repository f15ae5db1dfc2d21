"""The definition in NumPy, forward and gradients: the windows of a block of queries at a time.

The taps of the windows are copied from the slices of the volume (0 outside), and blended as the lookup's dots are. The gradient
of the volume spreads cotangents over the taps and writes each of them to its place: every query has a slice of its own, so that
nothing is added there. This needs no compiler, and is what runs where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

from .._cpu import workers
from .._dispatch import FORWARD, Request
from .._dtypes import ELEMENT_TYPES, element_type
from .._gpu.device import Device
from .._lookup.windows import Block, Windows, blocks, of_block, write_block
from .arrays import Arrays
from .problem import Problem

BLOCK_BYTES = 2**18  # of the taps of a block

# Estimates for the cost model: seconds of a tap, and of a byte of the gradient of the volume.
_TAP, _WRITTEN = 30e-9, 0.25e-9


class _Queries(NamedTuple):
    """A block of queries of an entry, the rows and columns (queries) where they are, and their windows."""

    entry: int
    block: Block
    i: np.ndarray
    j: np.ndarray
    windows: Windows

    def positions(self, taps: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Return the index into the slices (H, W, H2, W2) of some taps, an index of (rows of taps, columns of taps, queries)."""
        row, column, query = taps
        return self.i[query], self.j[query], self.windows.rows.at[row, query], self.windows.columns.at[column, query]

    def taps_inside(self) -> tuple[np.ndarray, ...]:
        """Return the index of the taps inside the slices."""
        return np.nonzero(self.windows.rows.inside()[:, None] & self.windows.columns.inside())


class Reference:
    """The computation of one call.

    ``request`` has the problem, ``arrays`` the arrays by their names.
    """

    def __init__(self, request: Request, arrays: Mapping[str, np.ndarray]) -> None:
        self.problem: Problem = request.problem
        self.arrays = Arrays(self.problem, arrays)
        self.accumulator = element_type("volume", arrays["volume"].dtype).accumulator_dtype
        self.scale = self.accumulator.type(self.problem.parameters.scale)

    def run(self, write: Callable[[_Queries], None]) -> None:
        """Let each block of queries write its part of a result."""
        taps = self.problem.taps * self.accumulator.itemsize
        tasks = product(range(self.problem.entries), blocks(self.problem, BLOCK_BYTES // taps, self.problem.size1[0]))
        workers.run(lambda task: write(self._queries(*task)), tasks, workers.thread_count())

    def forward(self, queries: _Queries) -> None:
        """Write the output of a block."""
        blended = queries.windows.blend(self._dots(queries)) * self.scale
        write_block(blended, self.arrays.patches("out")[queries.entry], queries.block)

    def gradient_volume(self, queries: _Queries) -> None:
        """Write the slices of a block of the gradient of the volume."""
        slices = self.arrays.slices("gradient_volume")[queries.entry]
        slices[queries.block] = 0
        factors = queries.windows.spread(self._cotangent(queries)) * self.scale
        taps = queries.taps_inside()
        slices[queries.positions(taps)] = factors[taps].astype(slices.dtype)

    def gradient_coords(self, queries: _Queries) -> None:
        """Write the gradient of the coordinates of a block."""
        slopes = queries.windows.slopes(self._dots(queries), self._cotangent(queries)) * self.scale
        write_block(slopes, self.arrays.named["gradient_coords"][queries.entry], queries.block)

    def _queries(self, entry: int, block: Block) -> _Queries:
        rows, columns = (np.arange(part.start, part.stop) for part in block)
        i, j = np.repeat(rows, len(columns)), np.tile(columns, len(rows))
        coords = self.arrays.named["coords"][entry][:, block[0], block[1]]
        only_row = np.zeros(len(i), np.int64)  # of a slice of a volume of one dimension
        windows = Windows(self.problem, 0, coords.reshape(len(coords), -1), only_row, self.accumulator)
        return _Queries(entry, block, i, j, windows)

    def _dots(self, queries: _Queries) -> np.ndarray:
        """Return the taps of the windows of a block, 0 outside the slices."""
        dots = np.zeros(queries.windows.shape, self.accumulator)
        taps = queries.taps_inside()
        dots[taps] = self.arrays.slices("volume")[queries.entry][queries.positions(taps)]
        return dots

    def _cotangent(self, queries: _Queries) -> np.ndarray:
        return of_block(self.arrays.patches("cotangent")[queries.entry], queries.block, self.accumulator)


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """The definition as the plan of a request."""

    request: Request
    seconds: float
    workspace: int = workers.WORKSPACE
    algorithm: str = "reference"
    description: str = "the definition in NumPy, by blocks of queries"

    def run(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Compute the output or the needed gradients."""
        computation = Reference(self.request, arrays)
        if self.request.pass_name == FORWARD:
            computation.run(computation.forward)
            return
        to_volume, to_coords = self.request.needs
        if to_volume:
            computation.run(computation.gradient_volume)
        if to_coords:
            computation.run(computation.gradient_coords)


def plan(request: Request, device: Device | None) -> ReferencePlan:
    """Return the plan of a request."""
    geometry: Problem = request.problem
    passes = 1 if request.pass_name == FORWARD else sum(request.needs)
    written = request.pass_name != FORWARD and request.needs[0]
    size = geometry.queries * prod(geometry.size2) * ELEMENT_TYPES[request.dtype].itemsize
    return ReferencePlan(request, geometry.queries * geometry.taps * _TAP * passes + size * _WRITTEN * written)
