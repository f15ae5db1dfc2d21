"""Frames with missing pixels, read rectangle by rectangle, so that no copy of a whole frame is made.

A pixel is missing if it is outside the frame, masked, or not a finite number. What is read is grey, float64, and measured from a
level near its own: smaller values make sums of products more exact. The level depends on the rectangle alone, so that a part of a
frame gives the same answers as the whole, and it is a median, so that a fill value of any size does not move it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .._arguments import Pair
from .._arrays import array_module

LUMA = (2126, 7152, 722)  # Rec. 709, times 10000: whole numbers keep grey values of integer frames exact
_LUMA_UNIT = 10000
_LARGEST = 2.0**300  # the square of a sum of so large values is still finite
_SAMPLES = 32  # rows and columns of the sample that the level of one rectangle is estimated from
_SAMPLES_OF_MANY = 8  # the same where many rectangles are read at once, which are small
_SMALL_INTEGERS = 2  # bytes: sums of squares of such values are exact as they are
_ALL = slice(None)


class Pixels(NamedTuple):
    """Some rectangles of a frame.

    Attributes
    ----------
    values
        float64 (n, h, w), 0 where a pixel is missing.
    present
        The mask (n, h, w) of the pixels that are not missing; None if none is.
    inside
        Where nothing is missing but what is outside the frame: the masks (n, h) of the rows and (n, w) of the columns inside.
    """

    values: Any
    present: Any | None = None
    inside: tuple[Any, Any] | None = None

    def part(self, which: Any = _ALL, rows: slice = _ALL, columns: slice = _ALL, *, complete: bool = False) -> Pixels:
        """Return a part of each of some of the rectangles; with ``complete``, one where nothing is missing."""
        values = self.values[which][:, rows, columns]
        if complete or self.present is None:
            return Pixels(values)
        inside = None if self.inside is None else (self.inside[0][which][:, rows], self.inside[1][which][:, columns])
        return Pixels(values, self.present[which][:, rows, columns], inside)


class Frame:
    """A frame (H, W) or (H, W, 3) and the mask (H, W) of its valid pixels; None if all are.

    The arrays may be a part of a larger frame of the size ``shape``, whose pixel at ``origin`` is their first one. All positions
    are those in the larger frame, and pixels of it that the part does not have must not be read.
    """

    def __init__(self, pixels: Any, valid: Any | None, origin: Pair = (0, 0), shape: Pair | None = None) -> None:
        self.pixels, self.valid, self.origin = pixels, valid, origin
        self.xp = array_module(pixels)
        self.shape: Pair = pixels.shape[:2] if shape is None else shape
        self.whole = pixels.dtype.kind in "iu"  # all values that are read are whole numbers
        self._small = self.whole and pixels.itemsize <= _SMALL_INTEGERS and pixels.ndim == 2
        self.largest = 2.0 ** (8 * pixels.itemsize) if self._small else math.inf  # a bound of the magnitude of values

    def rectangle(self, first: Pair, shape: Pair) -> Pixels:
        """Read one rectangle, which may reach beyond the frame."""
        xp = self.xp
        within = [slice(max(f, 0), max(min(f + n, size), 0)) for f, n, size in zip(first, shape, self.shape, strict=True)]
        held = tuple(slice(w.start - o, w.stop - o) for w, o in zip(within, self.origin, strict=True))
        grey = self._grey(self.pixels[held])
        present = self._present(grey, None if self.valid is None else self.valid[held])
        if grey.shape == shape:
            return self._centred(grey[None], None if present is None else present[None])
        inside = [xp.zeros((1, n), bool) for n in shape]
        to = [slice(w.start - f, w.stop - f) if w.stop > w.start else slice(0, 0) for w, f in zip(within, first, strict=True)]
        for each, at in zip(inside, to, strict=True):
            each[0, at] = True
        values, known = xp.zeros((1, *shape)), xp.zeros((1, *shape), bool)
        if grey.size:
            values[0, to[0], to[1]] = grey
            known[0, to[0], to[1]] = True if present is None else present
        return self._centred(values, known, (inside[0], inside[1]) if present is None else None)

    def gather(self, tops: np.ndarray, lefts: np.ndarray, shape: Pair) -> Pixels:
        """Read one rectangle for each (top, left), which may reach beyond the frame."""
        xp = self.xp
        indices, inside = [], []
        held = self.pixels.shape[:2]
        for first, length, size, origin, last in zip((tops, lefts), shape, self.shape, self.origin, held, strict=True):
            at = first[:, None] + np.arange(length)
            inside.append((at >= 0) & (at < size))
            indices.append(xp.asarray((at - origin).clip(0, last - 1)))
        rows, columns = indices[0][:, :, None], indices[1][:, None, :]
        grey = self._grey(_picked(self.pixels, rows, columns))
        present = self._present(grey, None if self.valid is None else _picked(self.valid, rows, columns))
        if inside[0].all() and inside[1].all():
            return self._centred(grey, present)
        rows_inside, columns_inside = (xp.asarray(each) for each in inside)
        known = rows_inside[:, :, None] & columns_inside[:, None, :]
        if present is None:
            return self._centred(grey, known, (rows_inside, columns_inside))
        return self._centred(grey, known & present)

    def _grey(self, pixels: Any) -> Any:
        """Return grey values as float64, those of a colour frame up to a factor."""
        xp = self.xp
        if self.pixels.ndim == 2:
            return pixels.astype(xp.float64, order="C")
        unit = 1 if self.whole else 1 / _LUMA_UNIT
        grey = xp.zeros(pixels.shape[:-1])
        with np.errstate(invalid="ignore"):  # infinities of opposite sign give NaN, which is right for such a pixel
            for channel, weight in enumerate(LUMA):
                grey += pixels[..., channel].astype(xp.float64) * (weight * unit)
        return grey

    def _present(self, grey: Any, valid: Any | None) -> Any | None:
        if self.whole:
            return None if valid is None or valid.all() else valid
        present = self.xp.isfinite(grey)
        if valid is not None:
            present &= valid
        return None if present.all() else present

    def _centred(self, grey: Any, present: Any | None, inside: tuple[Any, Any] | None = None) -> Pixels:
        """Measure each rectangle (n, h, w) from its own level, in a unit of its own where squares might overflow."""
        xp = self.xp
        if present is not None:
            grey[~present] = 0
        if not self._small and grey.size:
            level, spread = _level_and_spread(grey, present)
            grey -= xp.rint(level) if self.whole else level
            if self.pixels.dtype.kind == "f" and self.pixels.itemsize > 4:
                grey = xp.ldexp(grey, -xp.frexp(spread)[1]).clip(-_LARGEST, _LARGEST)
            if present is not None:
                grey[~present] = 0
        return Pixels(grey, present, inside)


def _picked(pixels: Any, rows: Any, columns: Any) -> Any:
    """Return the pixels at broadcast rows and columns, without a copy of the frame."""
    if not pixels.flags.c_contiguous:
        return pixels[rows, columns]
    flat = pixels.reshape(-1, *pixels.shape[2:])  # whose elements are picked in half the time
    return flat.take(rows * pixels.shape[1] + columns, axis=0)


def _level_and_spread(grey: Any, present: Any | None) -> tuple[Any, Any]:
    """Return the medians (n, 1, 1) of a sample of values and of their distances from the first median.

    A value counts if it is different from its left neighbour: a fill value may cover most of a rectangle, but hardly ever most
    places where something changes. Where nothing does, all that are present count, or all.
    """
    xp = array_module(grey)
    samples = _SAMPLES if len(grey) == 1 else _SAMPLES_OF_MANY
    rows, columns = (max(size // samples, 1) for size in grey.shape[1:])
    first = min(max(columns // 2, 1), grey.shape[2] - 1)
    here = (slice(None), slice(rows // 2, None, rows), slice(first, None, columns))
    sample = grey[here].reshape(len(grey), -1)
    known = xp.ones(sample.shape, bool) if present is None else present[here].reshape(sample.shape)
    before = slice(max(first - 1, 0), grey.shape[2] - 1 if first else None, columns)
    changing = known & (sample != grey[here[0], here[1], before].reshape(sample.shape))
    known = xp.where(changing.any(axis=1, keepdims=True), changing, xp.where(known.any(axis=1, keepdims=True), known, True))
    level = _median(sample, known)
    distance = abs(sample - level)
    spread = _median(distance, known)
    return level[:, :, None], xp.where(spread > 0, spread, distance.max(axis=1, keepdims=True))[:, :, None]


def _median(values: Any, known: Any) -> Any:
    """Return the median of the known values of each row, (n, 1)."""
    xp = array_module(values)
    ordered = xp.sort(xp.where(known, values, xp.inf), axis=1)
    return xp.take_along_axis(ordered, (known.sum(axis=1, keepdims=True) - 1) // 2, axis=1)
