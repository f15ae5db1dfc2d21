"""A tile: windows that are computed at once, and the rectangles of pixels that they need.

A tile is n rectangles of frame 1 with a lattice of windows in each, and n rectangles of frame 2 that the displaced windows cover:
either one rectangle with many windows that share pixels, or many rectangles with one window each. All scores of a tile have the
shape (n, displacements down, displacements across, windows down, windows across).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from .._arguments import Pair
from .._arrays import array_module, to_numpy
from .frames import Pixels
from .window_sums import window_sums

_WHOLE_LIMIT = 2.0**53  # float64 holds all whole numbers up to this magnitude


@dataclass(frozen=True, slots=True)
class Tile:
    """The geometry of a tile."""

    window: Pair
    tried: Pair
    step: Pair = (1, 1)
    counts: Pair = (1, 1)
    whole: bool = False  # True if all pixels are whole numbers
    largest: float = math.inf  # a bound of the magnitude of pixels, where one is known

    @property
    def area(self) -> int:
        """The number of pixels of a window."""
        return self.window[0] * self.window[1]

    @property
    def single(self) -> Tile:
        """The tile of one of the windows."""
        return replace(self, counts=(1, 1))

    @property
    def exact_totals(self) -> bool:
        """True if running totals of pixels and of their squares are known to be exact."""
        return self.whole and self.largest**2 * math.prod(self.reach) < _WHOLE_LIMIT

    @property
    def span(self) -> Pair:
        """The size of a rectangle of frame 1."""
        vertical, horizontal = ((n - 1) * s + w for n, s, w in zip(self.counts, self.step, self.window, strict=True))
        return vertical, horizontal

    @property
    def reach(self) -> Pair:
        """The size of a rectangle of frame 2."""
        vertical, horizontal = (span + tried - 1 for span, tried in zip(self.span, self.tried, strict=True))
        return vertical, horizontal

    def at_windows(self, images: Any) -> Any:
        """Sum images (n, span) over each window: (n, 1, 1, windows down, windows across)."""
        if self.counts == (1, 1):
            return images.sum(axis=(1, 2))[:, None, None, None, None]
        return self.window_sums(images)[:, None, None, :: self.step[0], :: self.step[1]]

    def at_windows_inside(self, inside: tuple[Any, Any], images: Any) -> Any:
        """Sum images (n, span) over the part of each window that a displacement leaves inside frame 2.

        ``inside`` are the masks of rows and columns of frame 2's rectangle. The part is a rectangle, so that the sum is a product
        of three matrices: (displacements, rows inside) x window x (columns inside, displacements).
        """
        rows, columns = self._masks_of_displaced(inside)
        windows = rectangles(images, self.window, self.step)
        sums = rows[:, :, None] @ windows @ columns.swapaxes(-1, -2)[:, None]
        return sums.transpose(0, 3, 4, 1, 2)

    def _masks_of_displaced(self, inside: tuple[Any, Any]) -> tuple[Any, Any]:
        """Return for each axis the masks (n, windows, displacements, window) of the displaced windows' pixels, as float64."""
        xp, masks = array_module(inside[0]), []
        for mask, window, tried, step in zip(inside, self.window, self.tried, self.step, strict=True):
            views = xp.lib.stride_tricks.sliding_window_view(mask.astype(xp.float64), tried + window - 1, axis=1)[:, ::step]
            masks.append(xp.lib.stride_tricks.sliding_window_view(views, window, axis=2))
        return masks[0], masks[1]

    def window_sums(self, images: Any) -> Any:
        """Sum images (n, reach), pixels or their squares, over a window at every position."""
        return window_sums(images, self.window, self.exact_totals)

    def displaced(self, table: Any) -> Any:
        """View a table over the positions (n, y, x) in frame 2 as the value for each displacement of each window."""
        views = array_module(table).lib.stride_tricks.sliding_window_view
        shape = tuple((n - 1) * s + 1 for n, s in zip(self.counts, self.step, strict=True))
        return views(table, shape, axis=(1, 2))[:, : self.tried[0], : self.tried[1], :: self.step[0], :: self.step[1]]


def rectangles(images: Any, shape: Pair, step: Pair) -> Any:
    """View the rectangles of a shape at equal distances in images (n, h, w): (n, down, across, *shape)."""
    views = array_module(images).lib.stride_tricks.sliding_window_view(images, shape, axis=(1, 2))
    return views[:, :: step[0], :: step[1]]


# Missing pixels ----------------------------------------------------------------------------------------------------------------


def complete_windows(tile: Tile, first: Pixels, second: Pixels) -> Any | None:
    """Return the mask (n, windows down, windows across) of the windows with no pixel missing in either frame; None if all."""
    if first.present is None and second.present is None:
        return None
    complete: Any = True
    if first.present is not None:
        complete = _covers(first.present, tile.window, tile)
    if second.present is not None:
        area = tile.window[0] + tile.tried[0] - 1, tile.window[1] + tile.tried[1] - 1
        complete = _covers(second.present, area, tile) & complete
    return complete


def _covers(present: Any, shape: Pair, tile: Tile) -> Any:
    """Return the mask of the windows over whose ``shape`` everything is present."""
    missing = window_sums((~present).astype(np.float64), shape, exact=True)
    return (missing == 0)[:, :: tile.step[0], :: tile.step[1]]


def split_columns(tile: Tile, first: Pixels, second: Pixels) -> Iterator[tuple[slice, Tile, Pixels, Pixels]]:
    """Split a tile of one rectangle into ranges of windows across: those where nothing is missing, and the others.

    Yields the range, and its tile and pixels.
    """
    complete = complete_windows(tile, first, second)
    if complete is None:
        yield slice(0, tile.counts[1]), tile, first, second
        return
    columns = complete.all(axis=(0, 1)).tolist()
    for whole, group in groupby(range(len(columns)), key=columns.__getitem__):
        indices = list(group)
        part = replace(tile, counts=(tile.counts[0], len(indices)))
        left = indices[0] * tile.step[1]
        first_part = first.part(columns=slice(left, left + part.span[1]), complete=whole)
        second_part = second.part(columns=slice(left, left + part.reach[1]), complete=whole)
        yield slice(indices[0], indices[-1] + 1), part, first_part, second_part


def split_windows(tile: Tile, first: Pixels, second: Pixels) -> Iterator[tuple[np.ndarray | None, Pixels, Pixels]]:
    """Split a tile of single windows into those where nothing is missing, and the others: their indices, and their pixels.

    The indices are None if these are all windows.
    """
    complete = complete_windows(tile, first, second)
    if complete is None:
        yield None, first, second
        return
    complete = to_numpy(complete)[:, 0, 0]
    for whole in (True, False):
        indices = np.flatnonzero(complete == whole)
        if len(indices):
            on_device = array_module(first.values).asarray(indices)
            yield indices, first.part(on_device, complete=whole), second.part(on_device, complete=whole)
