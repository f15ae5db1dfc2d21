"""The measurement of displacement fields: tasks that threads share, and the field that they write.

Windows on a lattice are computed in tiles that share pixels, other windows in groups, and single windows with a very large search
range in slabs of displacements. `costs` decides which, and how large a task is.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .._arguments import Pair
from .._arrays import array_module, to_numpy
from .._cpu import workers
from . import costs, peak_kernel, peaks
from .by_fourier import by_fourier
from .by_operator import by_operator
from .by_rows import by_complete_rows, by_incomplete_rows, by_rows
from .by_windows import by_windows
from .costs import FOURIER, OPERATOR, ROWS, WINDOWS
from .frames import Frame, Pixels
from .geometry import Lattice, Search, SingleWindows, Windows, candidates, shifted, split_at_border, steps_of
from .peaks import Peaks
from .tile import Tile, split_columns, split_windows

_ALGORITHMS = {OPERATOR: by_operator, FOURIER: by_fourier, ROWS: by_rows, WINDOWS: by_windows}
_SUMS = 3  # sums for each displacement where pixels are missing in frame 2 only

Report = Callable[[float], object]  # called with the fraction of the work that is done
Slabs = Sequence[tuple[Pair, Search]]  # the first index and the displacements of each slab of a search


class Field(NamedTuple):
    """A displacement field: arrays of one shape, as `motion.Match` describes them."""

    dx: Any
    dy: Any
    score: Any
    at_edge: Any
    peak_ratio: Any
    count: Any


@dataclass(frozen=True, slots=True)
class Matcher:
    """A search for windows of frame 1 in frame 2.

    ``fit`` is the curve that fractions of a pixel are found by; None leaves the displacements whole.
    """

    frame1: Frame
    frame2: Frame
    window: Pair
    search: Search
    fit: str | None
    variant: str

    def field(self, windows: Windows, report: Report, way: costs.Way | None = None) -> Field:
        """Return the field of the windows: (H', W') for a lattice, (N,) for single windows.

        ``way`` is how they are computed, by default the cheapest way.
        """
        request = self.request(windows)
        way = costs.cheapest(request, self.variant) if way is None else way
        divided = windows.one_by_one() if isinstance(windows, Lattice) and not way.in_tiles else windows
        field = self._empty(divided.shape)
        slab = None if way.in_tiles else costs.slab(request, way.algorithm)
        threads = costs.task_threads(request)
        if isinstance(divided, Lattice):
            tiles = list(self._tiles(divided, way.algorithm))
            self._run(lambda part: self._tile(field, divided, part, way.algorithm), tiles, threads, report)
        elif slab is None:
            groups = list(steps_of(divided.count, costs.windows_at_once(request, way.algorithm)))
            self._run(lambda part: self._group(field, divided, part, way.algorithm), groups, threads, report)
        else:
            self._in_slabs(field, divided, list(self.search.slabs(*slab)), way.algorithm, threads, report)
        return Field(*(values.reshape(windows.shape) for values in field))

    def _values(self) -> tuple[bool, float]:
        """Return whether all pixels are whole numbers, and a bound of their magnitude."""
        return self.frame1.whole and self.frame2.whole, max(self.frame1.largest, self.frame2.largest)

    def request(self, windows: Windows) -> costs.Request:
        """Return what the cost model knows of the windows' search."""
        return costs.Request(self.frame1.pixels, self.window, self.search.tried, windows)

    def _run(self, task: Callable[[Any], None], parts: Sequence[Any], threads: int, report: Report) -> None:
        """Run a task on every part, and report after each of them."""
        done, reporting = 0, threading.Lock()

        def reported(part: Any) -> None:
            nonlocal done
            with workers.prefer_threads(1 if len(parts) >= threads else None):
                task(part)
            with reporting:
                done += 1
                report(done / len(parts))

        workers.run(reported, parts, threads)

    def _empty(self, shape: tuple[int, ...]) -> Field:
        xp = self.frame1.xp
        dx, dy, score, ratio = (xp.empty(shape) for _ in range(4))
        return Field(dx, dy, score, xp.empty(shape, bool), ratio, xp.empty(shape, xp.int64))

    def _tiles(self, lattice: Lattice, algorithm: str) -> Iterator[tuple[slice, slice]]:
        """Yield the rows and columns of windows of each tile. Windows that leave frame 2 are in tiles of their own."""
        for rows, columns in split_at_border(lattice, self.window, self.search, self.frame2.shape):
            down, across = costs.tile_counts(self.request(lattice.part(rows, columns)), algorithm)
            for v in steps_of(rows.stop - rows.start, down):
                for h in steps_of(columns.stop - columns.start, across):
                    yield shifted(v, rows.start), shifted(h, columns.start)

    # Tasks ---------------------------------------------------------------------------------------------------------------------

    def _tile(self, field: Field, windows: Lattice, part: tuple[slice, slice], algorithm: str) -> None:
        """Write the part of a field for some rows and columns of a lattice."""
        lattice = windows.part(*part)
        search = candidates(lattice, self.window, self.search, self.frame2.shape)
        tile = Tile(self.window, search.tried, lattice.step, lattice.counts, *self._values())
        begin = lattice.first[0] + search.low[0], lattice.first[1] + search.low[1]
        first, second = self.frame1.rectangle(lattice.first, tile.span), self.frame2.rectangle(begin, tile.reach)
        for columns, tile_part, first_part, second_part in split_columns(tile, first, second):
            at = part[0], shifted(columns, part[1].start)
            self._write(field, at, _peaks_of_tile(tile_part, first_part, second_part, search, algorithm), search)

    def _group(self, field: Field, singles: SingleWindows, part: slice, algorithm: str) -> None:
        """Write the part of a field for some single windows."""
        for at, scores, count in self.scores(singles.part(part), self.search, algorithm):
            shape = len(scores), self.search.count
            count = _in_shape(count, scores.shape, shape)
            found = peaks.find_peaks(scores.reshape(shape).T, self.search, count if isinstance(count, int) else count.T)
            self._write(field, part if at is None else part.start + at, found, self.search)

    def scores(self, singles: SingleWindows, search: Search, algorithm: str) -> Iterator[tuple[Any, Any, Any]]:
        """Yield the indices of some single windows, None for all, their scores, and the numbers of pixels compared."""
        tile = Tile(self.window, search.tried, (1, 1), (1, 1), *self._values())
        first = self.frame1.gather(singles.tops1, singles.lefts1, tile.span)
        second = self.frame2.gather(singles.tops2 + search.low[0], singles.lefts2 + search.low[1], tile.reach)
        for at, *pixels in split_windows(tile, first, second):
            yield at, *_ALGORITHMS[algorithm](tile, *pixels)

    def _in_slabs(self, field: Field, singles: SingleWindows, slabs: Slabs, algorithm: str, threads: int, report: Report) -> None:
        """Write a field window by window, each of them slab by slab."""
        xp = self.frame1.xp
        keeps = costs.keeps_scores(self.request(singles))
        for index in range(singles.count):
            at = slice(index, index + 1)
            window = _SlabbedWindow(self, singles.part(at), slabs, algorithm, keeps)
            self._run(window.find_highest, range(len(slabs)), threads, partial(_report_window, report, index, singles.count))
            found = peaks.peak_of_slabs(self.search, slabs, window.highest, window.scores)
            self._write(field, at, Peaks(*(each if isinstance(each, int) else xp.asarray(each) for each in found)), self.search)

    def _write(self, field: Field, at: Any, found: Peaks, search: Search) -> None:
        """Write the peaks of a search into a part of a field."""
        xp = self.frame1.xp
        dy, dx = (each.astype(xp.float64) for each in peaks.displacements(found, search))
        if self.fit is not None:
            for axis, whole in enumerate((dy, dx)):
                if search.tried[axis] > 1:
                    whole += peaks.fractions(found, axis, self.fit)
        has_second = found.second > peaks.TIE
        ratio = xp.where(has_second, found.score / xp.where(has_second, found.second, 1.0), xp.inf)
        known = xp.isfinite(found.score)
        written = Field(dx, dy, found.score.clip(-1, 1), peaks.at_edge(found, self.search), ratio, found.count)
        if not known.all():
            nothing = Field(xp.nan, xp.nan, 0.0, False, xp.nan, 0)
            written = Field(*(xp.where(known, *each) for each in zip(written, nothing, strict=True)))
        shape = tuple(each.stop - each.start for each in at) if isinstance(at, tuple) else (-1,)
        for whole, values in zip(field, written, strict=True):
            whole[at] = values if isinstance(values, int) else values.reshape(shape)


def _peaks_of_tile(tile: Tile, first: Pixels, second: Pixels, search: Search, algorithm: str) -> Peaks:
    if algorithm == ROWS and first.present is None and second.present is None:
        rows = by_complete_rows(tile, first, second, costs.rows_at_once(tile))
        found = (peak_kernel.find_peaks(scores, search, tile.area, unit) for scores, unit in rows)
        return peaks.joined(found, math.prod(tile.counts))
    if algorithm == ROWS and first.present is None:
        rows = by_incomplete_rows(tile, first, second, costs.rows_at_once(tile, _SUMS))
        found = (_peaks_of_incomplete(scores, search, counts) for scores, counts in rows)
        return peaks.joined(found, math.prod(tile.counts))
    scores, count = _ALGORITHMS[algorithm](tile, first, second)
    shape = search.count, tile.counts[0] * tile.counts[1]
    return peaks.find_peaks(scores.reshape(shape), search, _in_shape(count, scores.shape, shape))


def _peaks_of_incomplete(scores: np.ndarray, search: Search, counts: np.ndarray) -> Peaks:
    """Find the peaks of scores (displacements, n), and the numbers of pixels compared, where pixels are missing in frame 2."""
    found = peak_kernel.find_peaks(scores, search, 0, np.ones(scores.shape[1]))
    window = np.divmod(np.arange(scores.shape[1]), counts.shape[3])
    at = (*np.divmod(found.index, search.tried[1]), *window)
    return found._replace(count=counts[at])


def _report_window(report: Report, index: int, count: int, part: float) -> None:
    report((index + part) / count)


class _SlabbedWindow:
    """One window whose displacements are divided into slabs; scores that there is no room for are computed again when needed."""

    def __init__(self, matcher: Matcher, window: SingleWindows, slabs: Slabs, algorithm: str, keeps: bool) -> None:
        self.matcher, self.window, self.slabs, self.algorithm, self.keeps = matcher, window, slabs, algorithm, keeps
        self.highest = np.full(len(slabs), -np.inf)
        self._kept: dict[int, tuple[np.ndarray, Any]] = {}

    def find_highest(self, number: int) -> None:
        """Find the highest score of a slab."""
        found = self.scores(number)
        self.highest[number] = found[0].max()
        if self.keeps:
            self._kept[number] = found

    def scores(self, number: int) -> tuple[np.ndarray, Any]:
        """Return the scores (rows, columns) of a slab and the numbers of pixels compared, in NumPy arrays."""
        if number in self._kept:
            return self._kept[number]
        ((_, scores, count),) = self.matcher.scores(self.window, self.slabs[number][1], self.algorithm)
        shape = scores.shape[1:3]
        if not isinstance(count, int):
            count = to_numpy(_in_shape(count, scores.shape, shape))
        return to_numpy(scores.reshape(shape)), count


def _in_shape(count: Any, broadcast: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """Return the numbers of pixels compared, broadcast to the shape of the scores, in another shape; an int as it is."""
    return count if isinstance(count, int) else array_module(count).broadcast_to(count, broadcast).reshape(shape)
