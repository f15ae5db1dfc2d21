"""The definition in NumPy, forward and gradients: one window of one query at a time.

    dots of a query = window of input2 (rows of taps, columns of taps, C) . pixel of input1 (C)

Outputs blend dots; gradients sum over the same windows. Only taps inside a map take part, so that infinities elsewhere in it have
no effect. Queries are divided into blocks and channels into ranges, so that the arrays here are bounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from .._cpu import workers
from .._dispatch import FORWARD, Request
from .._dtypes import ELEMENT_TYPES, LONGEST_CHAIN, element_type
from .._gpu.device import Device
from .chains import Chains
from .problem import Problem
from .windows import Arrays, Block, Windows, blocks, coords_of, of_block, write_block

PART_BYTES = workers.WORKSPACE // 16  # of an array of dots, and of a part of a map

# Estimates for the cost model: seconds of a window of a query, of a product, and of an element that is copied.
_WINDOW, _PRODUCT, _COPIED = 20e-6, 2e-9, 2e-9


class Reference:
    """The computation of one call.

    ``request`` has the problem, ``arrays`` the arrays by their names.
    """

    def __init__(self, request: Request, arrays: Mapping[str, np.ndarray]) -> None:
        self.problem: Problem = request.problem
        self.named, self.arrays = arrays, Arrays(self.problem, arrays)
        self.accumulator = element_type("input1", self.arrays.input1.dtype).accumulator_dtype
        self.scale = self.accumulator.type(self.problem.parameters.scale)

    def forward(self) -> None:
        """Write the output."""
        out = self.arrays.full(self.named["out"])
        for entry, level, lookup in np.ndindex(out.shape[:3]):
            for block in self._blocks():
                windows = self._windows(entry, level, lookup, block)
                blended = windows.blend(self._dots(entry, level, block, windows)) * self.scale
                write_block(blended, out[entry, level, lookup], block)

    def gradient1(self) -> None:
        """Write the gradient of input1: every query sums its own windows."""
        result = self.named["gradient1"]
        for image, block in product(range(len(result)), self._blocks()):
            queries = _size(block[0]) * _size(block[1])
            for channels in self._channel_ranges(queries):
                chains = Chains((_size(channels), queries), self.accumulator)
                for entry in _entries(self.arrays.index1, image):
                    for level, lookup in np.ndindex(self.problem.levels, self.problem.lookups):
                        self._add_to_gradient1(chains.next(), entry, level, lookup, block, channels)
                write_block(chains.sums() * self.scale, result[image, channels], block)

    def _add_to_gradient1(self, total: np.ndarray, entry: int, level: int, lookup: int, block: Block, channels: slice) -> None:
        windows = self._windows(entry, level, lookup, block)
        factors = windows.spread(self._cotangent(entry, level, lookup, block))
        for part in self._parts_of_map(level, channels):
            image = self._channels_last(level, entry, part)
            into = slice(part.start - channels.start, part.stop - channels.start)
            for query, taps, window in _windows_inside(windows):
                total[into, query] += _sum_of_taps(factors[taps[0], taps[1], query], image[window])
        total[:, ~windows.finite] = np.nan

    def gradient2(self, level: int) -> None:
        """Write the gradient of a level of input2: the windows of all queries are added to it, in the order of the queries."""
        result = self.named[self.problem.gradient2_names[level]]
        for image, channels in product(range(len(result)), self._parts_of_map(level, slice(0, self.problem.channels))):
            chains = Chains((*self.problem.sizes2[level], _size(channels)), self.accumulator)
            for entry in _entries(self.arrays.index2, image):
                for lookup, block in product(range(self.problem.lookups), self._blocks()):
                    self._add_to_gradient2(chains, entry, level, lookup, block, channels)
            total = chains.sums() * self.scale
            np.copyto(result[image, channels], total.transpose(2, 0, 1), casting="unsafe")

    def _add_to_gradient2(self, chains: Chains, entry: int, level: int, lookup: int, block: Block, channels: slice) -> None:
        windows = self._windows(entry, level, lookup, block)
        factors = windows.spread(self._cotangent(entry, level, lookup, block))
        pixels = of_block(self.arrays.input1[self.arrays.index1[entry], channels], block, self.accumulator)
        for query, taps, window in _windows_inside(windows):
            chains.next()[window] += factors[taps[0], taps[1], query][:, :, None] * pixels[:, query]

    def gradient_coords(self) -> None:
        """Write the gradient of coords."""
        result = self.named["gradient_coords"].reshape(self.problem.full_coords_shape)
        for entry, lookup in np.ndindex(self.problem.entries, self.problem.lookups):
            for block in self._blocks():
                total = np.zeros_like(coords_of(self.arrays, entry, lookup, block)[0], self.accumulator)
                for level in range(self.problem.levels):
                    windows = self._windows(entry, level, lookup, block)
                    dots = self._dots(entry, level, block, windows)
                    total += windows.slopes(dots, self._cotangent(entry, level, lookup, block))
                write_block(total * self.scale, result[entry, lookup], block)

    def _dots(self, entry: int, level: int, block: Block, windows: Windows) -> np.ndarray:
        """Return the dots of the windows of a block, 0 outside the map."""
        dots = np.zeros(windows.shape, self.accumulator)
        for channels in self._parts_of_map(level, slice(0, self.problem.channels)):
            image = self._channels_last(level, entry, channels)
            pixels = of_block(self.arrays.input1[self.arrays.index1[entry], channels], block, self.accumulator)
            for query, taps, window in _windows_inside(windows):
                dots[taps[0], taps[1], query] += np.einsum("yxc,c->yx", image[window], pixels[:, query])
        return dots

    def _windows(self, entry: int, level: int, lookup: int, block: Block) -> Windows:
        return Windows(self.problem, level, *coords_of(self.arrays, entry, lookup, block), self.accumulator)

    def _cotangent(self, entry: int, level: int, lookup: int, block: Block) -> np.ndarray:
        return of_block(self.arrays.full(self.named["cotangent"])[entry, level, lookup], block, self.accumulator)

    def _blocks(self) -> Iterator[Block]:
        taps = self.problem.vertical.taps * self.problem.horizontal.taps
        return blocks(self.problem, PART_BYTES // (taps * self.accumulator.itemsize), self.problem.size1[0])

    def _parts_of_map(self, level: int, channels: slice) -> Iterator[slice]:
        """Divide a range of channels so that a part of a map is bounded, and chains of sums are short."""
        most = max(PART_BYTES // (math.prod(self.problem.sizes2[level]) * self.accumulator.itemsize), 1)
        return _ranges(channels, min(most, LONGEST_CHAIN.reference))

    def _channel_ranges(self, queries: int) -> Iterator[slice]:
        """Divide all channels so that their sums for so many queries are bounded."""
        return _ranges(slice(0, self.problem.channels), max(PART_BYTES // (queries * self.accumulator.itemsize), 1))

    def _channels_last(self, level: int, entry: int, channels: slice) -> np.ndarray:
        """Return a copy (H2, W2, channels) of a part of the map of an entry."""
        image = self.arrays.levels[level][self.arrays.index2[entry], channels]
        return image.transpose(1, 2, 0).astype(self.accumulator, order="C")


def _sum_of_taps(factors: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Return the sums (C) of a window (rows, columns, C) times its factors, in chains of bounded length."""
    factors, window = factors.ravel(), window.reshape(factors.size, -1)
    parts = _ranges(slice(0, len(factors)), LONGEST_CHAIN.reference)
    return np.sum([np.einsum("p,pc->c", factors[part], window[part]) for part in parts], axis=0)


def _entries(index: list[int], image: int) -> Iterator[int]:
    """Yield the entries that an image belongs to, in ascending order."""
    return (entry for entry, found in enumerate(index) if found == image)


def _size(part: slice) -> int:
    size: int = part.stop - part.start
    return size


def _ranges(whole: slice, size: int) -> Iterator[slice]:
    for begin in range(whole.start, whole.stop, size):
        yield slice(begin, min(begin + size, whole.stop))


def _windows_inside(windows: Windows) -> Iterator[tuple[int, tuple[slice, slice], tuple[np.ndarray, ...]]]:
    """Yield each query that reads the map, its taps inside the map and their positions, as an index of a map (H2, W2, C)."""
    rows, columns = windows.rows, windows.columns
    some = (rows.begin < rows.end) & (columns.begin < columns.end)
    for query in np.flatnonzero(some).tolist():
        taps = slice(rows.begin[query], rows.end[query]), slice(columns.begin[query], columns.end[query])
        yield query, taps, np.ix_(rows.at[taps[0], query], columns.at[taps[1], query])


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """The definition as the plan of a request."""

    request: Request
    seconds: float
    workspace: int = workers.WORKSPACE
    algorithm: str = "reference"
    description: str = "the definition, window by window"

    @np.errstate(all="ignore")
    def run(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Compute the output or the needed gradients."""
        computation = Reference(self.request, arrays)
        if self.request.pass_name == FORWARD:
            computation.forward()
            return
        first, *levels, coords = self.request.needs
        if first:
            computation.gradient1()
        for level, needed in enumerate(levels):
            if needed:
                computation.gradient2(level)
        if coords:
            computation.gradient_coords()


def plan(request: Request, device: Device | None) -> ReferencePlan:
    """Return the plan of a request."""
    return ReferencePlan(request, _seconds(request))


def _seconds(request: Request) -> float:
    """Estimate the seconds of an answer in one thread."""
    problem = request.problem
    element = ELEMENT_TYPES[ELEMENT_TYPES[request.dtype].accumulator].itemsize / 4
    one = problem.queries * problem.levels * _WINDOW + problem.channels * problem.dots * _PRODUCT * element
    copied = problem.entries * problem.channels * sum(map(math.prod, problem.sizes2)) * _COPIED * element
    first, *levels, coords = request.needs
    passes = 1.0 if request.pass_name == FORWARD else first + sum(levels) / len(levels) + coords
    return passes * (one + copied)
