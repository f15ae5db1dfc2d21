"""The definition of `cupycorr.match` in float64, window by window, independent of the package.

Missing pixels are NaN in the frames here, and so is everything outside a frame. All scores of a window are computed from
deviations from the means of the pixels that are present in both frames, as the formula is written.
"""

import math
from typing import NamedTuple

import numpy as np

TIE = 1e-12  # scores closer than this to the maximum are equal to it
LUMA = (0.2126, 0.7152, 0.0722)  # Rec. 709


class Answer(NamedTuple):
    """The fields of a `cupycorr.Match`, NumPy arrays of its shapes."""

    dx: np.ndarray
    dy: np.ndarray
    score: np.ndarray
    x: np.ndarray
    y: np.ndarray
    at_edge: np.ndarray
    peak_ratio: np.ndarray
    count: np.ndarray
    consistency: np.ndarray | None


class Peak(NamedTuple):
    """The answer of one window; ``dy`` and ``dx`` without its offset."""

    dy: float = math.nan
    dx: float = math.nan
    score: float = 0.0
    at_edge: bool = False
    peak_ratio: float = math.nan
    count: int = 0


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def answer(
    frame1,
    frame2,
    window=11,
    search=((-4, 4), (-4, 4)),
    step=1,
    subpixel="gaussian",
    *,
    mask1=None,
    mask2=None,
    points=None,
    offset=None,
    consistency=False,
):
    """Return what `cupycorr.match` must return for the same arguments."""
    pixels1, pixels2, window = known_pixels(frame1, mask1), known_pixels(frame2, mask2), pair(window)
    tops, lefts, shape, axes = windows_of(pixels1.shape, window, pair(step), points)
    search = every_place(tops, lefts, window, pixels2.shape) if search is None else search
    starts = [np.broadcast_to(np.asarray(start), shape).ravel() for start in ((0, 0) if offset is None else offset)]
    found, distances = [], []
    for top, left, start_y, start_x in zip(tops, lefts, *(each.astype(int) for each in starts), strict=True):
        peak = best(
            *window_scores(pixels1, pixels2, (top, left), (top + start_y, left + start_x), window, search), search, subpixel
        )
        found.append(peak._replace(dy=peak.dy + start_y, dx=peak.dx + start_x))
        if consistency:
            distances.append(distance_back(pixels1, pixels2, (top, left), (start_y, start_x), window, search, subpixel, peak))
    dy, dx, score, at_edge, ratio, count = (np.array(each).reshape(shape) for each in zip(*found, strict=True))
    y, x = ((first + (size - 1) / 2) for first, size in zip(axes, window, strict=True))
    distance = np.array(distances).reshape(shape) if consistency else None
    return Answer(dx, dy, score, x, y, at_edge, ratio, count, distance)


def every_score(frame1, frame2, window, search, step=1, *, mask1=None, mask2=None, points=None):
    """Return the scores (windows, dy, dx), NaN for no candidate, and the numbers of pixels compared."""
    pixels1, pixels2, window = known_pixels(frame1, mask1), known_pixels(frame2, mask2), pair(window)
    tops, lefts, _, _ = windows_of(pixels1.shape, window, pair(step), points)
    each = [window_scores(pixels1, pixels2, at, at, window, search) for at in zip(tops, lefts, strict=True)]
    scores, counts = zip(*each, strict=True)
    return np.array(scores), np.array(counts)


# Windows ----------------------------------------------------------------------------------------------------------------------


def known_pixels(frame, mask):
    """Return the grey values of a frame in float64, NaN where a pixel is missing."""
    missing = np.zeros(frame.shape[:2], bool) if mask is None else ~mask
    if isinstance(frame, np.ma.MaskedArray):
        of_pixel = np.ma.getmaskarray(frame)
        missing = missing | (of_pixel if frame.ndim == 2 else of_pixel.any(axis=2))
        frame = frame.data
    pixels = frame.astype(np.float64)
    if pixels.ndim == 3:
        with np.errstate(invalid="ignore"):
            pixels = sum(weight * pixels[:, :, channel] for channel, weight in enumerate(LUMA))
    return np.where(missing | ~np.isfinite(pixels), np.nan, pixels)


def windows_of(shape, window, step, points):
    """Return the first row and column of each window, the shape of the results, and the first pixels along each axis."""
    if points is not None:
        tops, lefts = ([math.floor(point[axis] - (window[axis] - 1) / 2 + 0.5) for point in points] for axis in (0, 1))
        return tops, lefts, (len(tops),), (np.array(tops), np.array(lefts))
    down, across = (np.arange(0, size - w + 1, s) for size, w, s in zip(shape, window, step, strict=True))
    tops, lefts = (each.ravel().tolist() for each in np.meshgrid(down, across, indexing="ij"))
    return tops, lefts, (len(down), len(across)), (down, across)


def every_place(tops, lefts, window, shape):
    """Return the range of displacements that move some window to a place completely inside a frame of this shape."""
    return tuple((-max(firsts), size - w - min(firsts)) for firsts, w, size in zip((tops, lefts), window, shape, strict=True))


def cut(pixels, top, left, height, width):
    """Return a rectangle that may reach beyond the frame."""
    rectangle = np.full((height, width), np.nan)
    rows = range(max(top, 0), min(top + height, pixels.shape[0]))
    columns = range(max(left, 0), min(left + width, pixels.shape[1]))
    if rows and columns:
        inside = pixels[rows.start : rows.stop, columns.start : columns.stop]
        rectangle[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = inside
    return rectangle


# Scores -----------------------------------------------------------------------------------------------------------------------


def window_scores(pixels1, pixels2, at1, at2, window, search):
    """Return the scores (dy, dx) of the window at ``at1``, NaN for no candidate, and the numbers of pixels compared.

    At displacement 0 the window is at ``at2`` in frame 2.
    """
    (dy_lo, dy_hi), (dx_lo, dx_hi) = search
    height, width = window
    area = cut(pixels2, at2[0] + dy_lo, at2[1] + dx_lo, height + dy_hi - dy_lo, width + dx_hi - dx_lo)
    first = cut(pixels1, *at1, height, width)
    second = np.lib.stride_tricks.sliding_window_view(area, window)  # (dy, dx, y, x)
    both = np.isfinite(first) & np.isfinite(second)
    count = both.sum(axis=(2, 3))
    deviations, textured = [], 2 * count >= height * width
    for side in (first, second):
        values = np.where(both, side, 0)
        mean = values.sum(axis=(2, 3)) / np.maximum(count, 1)
        deviations.append(np.where(both, values - mean[:, :, None, None], 0))
        lowest = np.where(both, side, np.inf).min(axis=(2, 3))
        textured &= np.where(both, side, -np.inf).max(axis=(2, 3)) > lowest
    products, squares1, squares2 = (
        (one * two).sum(axis=(2, 3)) for one, two in ((deviations[0], deviations[1]), *((each, each) for each in deviations))
    )
    norm = np.sqrt(np.where(textured, squares1, np.nan)) * np.sqrt(squares2)
    return products / norm, count


def best(scores, count, search, subpixel):
    """Return the peak of the scores (dy, dx) of one window."""
    if np.isnan(scores).all():
        return Peak()
    (dy_lo, dy_hi), (dx_lo, dx_hi) = search
    equal = np.argwhere(scores >= np.nanmax(scores) - TIE).tolist()
    m, n = min(equal, key=lambda at: ((dy_lo + at[0]) ** 2 + (dx_lo + at[1]) ** 2, at))
    padded = np.pad(scores, 1, constant_values=np.nan)
    around = padded[m : m + 3, n : n + 3].copy()
    padded[m : m + 3, n : n + 3] = np.nan
    second = -math.inf if np.isnan(padded).all() else np.nanmax(padded)
    searched = (dy_hi > dy_lo, dx_hi > dx_lo)
    beside = ((around[0, 1], around[2, 1]), (around[1, 0], around[1, 2]))
    fractions = [fraction(before, around[1, 1], after, subpixel) for before, after in beside]
    return Peak(
        dy_lo + m + fractions[0],
        dx_lo + n + fractions[1],
        min(max(scores[m, n], -1.0), 1.0),
        any(along and any(map(math.isnan, neighbours)) for along, neighbours in zip(searched, beside, strict=True)),
        scores[m, n] / second if second > TIE else math.inf,  # below it may be a rounding error of 0
        int(count[m, n]),
    )


def fraction(before, peak, after, subpixel):
    """Return the fraction of a pixel from a peak to the vertex of a curve through three scores; NaN is no candidate."""
    if subpixel is False or math.isnan(before) or math.isnan(after):
        return 0.0
    if max(abs(peak - before), abs(peak - after)) <= TIE:
        return 0.0
    if subpixel in (True, "gaussian") and min(before, peak, after) > TIE:  # below it may be a rounding error of 0
        before, peak, after = map(math.log, (before, peak, after))
    return min(max((after - before) / (2 * ((peak - before) + (peak - after))), -0.5), 0.5)


def distance_back(pixels1, pixels2, at, start, window, search, subpixel, peak):
    """Return the distance between a window and where matching its displaced window back leads."""
    if math.isnan(peak.dy):
        return math.nan
    moved = round(peak.dy), round(peak.dx)
    there = at[0] + start[0] + moved[0], at[1] + start[1] + moved[1]
    back = at[0] + moved[0], at[1] + moved[1]
    search = tuple((-high, -low) for low, high in search)
    returned = best(*window_scores(pixels2, pixels1, there, back, window, search), search, subpixel)
    return math.hypot(peak.dy + returned.dy, peak.dx + returned.dx)


# Comparison -------------------------------------------------------------------------------------------------------------------


def assert_answer(got, want, atol=1e-9):
    """Check every field of a match."""
    for name, expected in want._asdict().items():
        values = getattr(got, name)
        if expected is None:
            assert values is None, name
        elif name in ("at_edge", "count"):
            np.testing.assert_array_equal(np.asarray(values), expected, err_msg=name)
        else:
            np.testing.assert_allclose(np.asarray(values), expected, rtol=atol, atol=atol, err_msg=name)
