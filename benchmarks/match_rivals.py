"""Block matching by cupycorr, OpenPIV and OpenCV on the same grid of windows, for the benchmarks of its accuracy and its speed.

OpenPIV needs the whole search area inside the frame and starts its grid with the search area, not with the window. It is called
on frames that are cropped so that its windows are ours, except those whose search leaves the frame. It correlates circularly over
the search area: a displacement within the search does not wrap, but the maximum may lie outside the search. Its ``v`` is positive
downwards like our ``dy``: only OpenPIV's tools turn the axis.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

import cupycorr
from cupycorr._cpu import workers

from .particles import Vectors

Estimator = Callable[[np.ndarray, np.ndarray, "Grid"], Vectors]  # -> the displacements of `Grid.inside`, each (rows, columns)


@dataclass(frozen=True, slots=True)
class Grid:
    """Square windows at ``index * step`` in frames of a shape, each searched by up to ``search`` pixels in every direction."""

    shape: tuple[int, int]
    window: int
    search: int
    step: int

    @property
    def ranges(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The search range as `cupycorr.match` takes it."""
        return (-self.search, self.search), (-self.search, self.search)

    @property
    def area(self) -> int:
        """The side of the search area: the window and the search on both sides."""
        return self.window + 2 * self.search

    @property
    def inside(self) -> tuple[slice, slice]:
        """The rows and the columns of the windows whose search stays inside the frame."""
        first = -(-self.search // self.step)
        ends = ((size - self.window - self.search) // self.step + 1 for size in self.shape)
        rows, columns = (slice(first, max(end, first)) for end in ends)
        return rows, columns

    def origins(self, inside: bool = False) -> tuple[range, range]:
        """Return the first row and the first column of all windows, or of those whose search stays inside the frame."""
        rows, columns = (range(0, size - self.window + 1, self.step) for size in self.shape)
        return (rows[self.inside[0]], columns[self.inside[1]]) if inside else (rows, columns)

    def centres(self) -> Vectors:
        """Return the window centres ``y, x`` of the windows whose search stays inside, each (rows, columns)."""
        y, x = np.meshgrid(*(np.array(first) + (self.window - 1) / 2 for first in self.origins(inside=True)), indexing="ij")
        return y, x


# Ours -------------------------------------------------------------------------------------------------------------------------


def ours(frame1: np.ndarray, frame2: np.ndarray, grid: Grid, **options: Any) -> Vectors:
    """Return the displacements of all windows by `cupycorr.match`, those too whose search leaves the frame."""
    found = cupycorr.match(frame1, frame2, grid.window, grid.ranges, grid.step, **options)
    return found.dy, found.dx


# OpenPIV ----------------------------------------------------------------------------------------------------------------------


def openpiv(frame1: np.ndarray, frame2: np.ndarray, grid: Grid, vectorized: bool = True) -> Vectors:
    """Return the displacements of the windows whose search stays inside, by OpenPIV's extended search and Gaussian fit.

    Its normalisation is the default of the extended search: search areas are standardised before frame 1's are cut to windows.
    The vectorized peak fit is OpenPIV's fastest way; it rounds the correlation to float32.
    """
    extended_search_area_piv = _openpiv_function()
    crop = -grid.search % grid.step  # the search area of the first window begins here
    # It prints how many peaks it could not fit by a Gaussian, and takes the logarithms of negative scores before that.
    with contextlib.redirect_stdout(io.StringIO()), np.errstate(invalid="ignore", divide="ignore"):
        u, v, _ = extended_search_area_piv(
            frame1[crop:, crop:],
            frame2[crop:, crop:],
            window_size=grid.window,
            overlap=grid.area - grid.step,
            search_area_size=grid.area,
            subpixel_method="gaussian",
            sig2noise_method=None,
            use_vectorized=vectorized,
        )
    return v, u


def _openpiv_function() -> Any:
    try:
        from openpiv.pyprocess import extended_search_area_piv
    except ImportError as error:
        raise ImportError("this comparison needs OpenPIV: pip install openpiv") from error
    return extended_search_area_piv


# OpenCV -----------------------------------------------------------------------------------------------------------------------


def opencv_module() -> ModuleType:
    """Return OpenCV, with as many threads as our variants use.

    Raises
    ------
    ImportError
        It is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError("this comparison needs OpenCV: pip install opencv-python-headless") from error
    cv2.setNumThreads(workers.thread_count())
    return cv2


def opencv(frame1: np.ndarray, frame2: np.ndarray, grid: Grid) -> Vectors:
    """Return whole displacements of all windows by a loop over matchTemplate, with the search areas clipped to the frame."""
    cv2 = opencv_module()
    window, search = grid.window, grid.search
    rows, columns = grid.origins()
    dy, dx = np.empty((2, len(rows), len(columns)))
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            top, left = max(y - search, 0), max(x - search, 0)
            area = frame2[top : y + window + search, left : x + window + search]
            scores = cv2.matchTemplate(area, frame1[y : y + window, x : x + window], cv2.TM_CCOEFF_NORMED)
            _, _, _, (column, row) = cv2.minMaxLoc(scores)
            dy[i, j], dx[i, j] = top + row - y, left + column - x
    return dy, dx


def opencv_gaussian(frame1: np.ndarray, frame2: np.ndarray, grid: Grid) -> Vectors:
    """Return the displacements of the windows whose search stays inside, by matchTemplate and a Gaussian fit to its maximum."""
    cv2 = opencv_module()
    rows, columns = grid.origins(inside=True)
    volume = np.empty((len(rows), len(columns), 2 * grid.search + 1, 2 * grid.search + 1))
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            top, left = y - grid.search, x - grid.search
            area, template = frame2[top : top + grid.area, left : left + grid.area], frame1[y:, x:][: grid.window, : grid.window]
            volume[i, j] = cv2.matchTemplate(area, template, cv2.TM_CCOEFF_NORMED)
    dy, dx = gaussian_peak(volume)
    return dy - grid.search, dx - grid.search


def gaussian_peak(volume: np.ndarray) -> Vectors:
    """Return the position of the maximum over the last two axes, refined by a Gaussian through three points along each.

    It is a parabola through the logarithms of the scores, and through the scores themselves where one of them is not positive. A
    maximum on the border is not refined.
    """
    height, width = volume.shape[-2:]
    scores = volume.reshape(-1, height, width)
    every = np.arange(len(scores))
    row, column = np.divmod(scores.reshape(len(scores), -1).argmax(1), width)
    shape = volume.shape[:-2]

    def refined(at: np.ndarray, length: int, score_at: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        centre = at.clip(1, length - 2)
        values = np.stack([score_at(centre + shift) for shift in (-1, 0, 1)])
        with np.errstate(divide="ignore", invalid="ignore"):
            low, peak, high = np.where((values > 0).all(0), np.log(values), values)
            vertex = (low - high) / (2 * (low - 2 * peak + high))
        return np.where((at == centre) & np.isfinite(vertex), at + vertex, at).reshape(shape)

    y = refined(row, height, lambda at: scores[every, at, column])
    x = refined(column, width, lambda at: scores[every, row, at])
    return y, x
