"""From two frames to a displacement field: zero-mean normalised cross-correlation, maximised over a search range.

Knows windows, displacements and scores; every sum over a window is the operator's, so nothing here knows a backend, and every
array function is called on the arrays' own module, so NumPy and CuPy run the same lines. The volume of scores of a large search
does not fit into memory: it is walked in bands of windows and slabs of displacements, and only the running maximum is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from ._arguments import integer
from ._arrays import FRAME, array_module, current_device_of, known_arrays
from ._correlation.api import spatial_correlation_sample
from ._correlation.problem import lattice_inside

_WORKSPACE = 128 * 2**20  # bytes that the scores of one slab and the tables of one band may take together
_CACHED = 2**20  # bytes of scores worked on at a time, so that the passes over them find them in a processor's cache
_TABLES = 16  # arrays of the size of a band's reach in frame 2 that are alive at once while it is scored
_TABLES_WORK = 32  # displacements whose scores cost as much as making those arrays does

_LUMA = (2126, 7152, 722)  # Rec. 709, times 10000: whole numbers keep grey values of integer frames exact
_LUMA_UNIT = 10000
_ITEM = 8  # bytes of a float64
_ONE_MISSING = 0.5  # between no missing pixel in a window and one; the operator's counts are floating


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """A displacement field, as `match` returns it; all lengths in pixels, all arrays float64 of the frames' kind.

    Attributes
    ----------
    dx, dy : array, shape (H', W')
        What lies at ``(y, x)`` in frame 1 lies at ``(y + dy, x + dx)`` in frame 2: positive is to the right and down. NaN where
        nothing could be matched.
    score : array, shape (H', W')
        Correlation coefficient of the best whole-pixel displacement, in [-1, 1]; 0 where nothing could be matched.
    x : array, shape (W',)
    y : array, shape (H',)
        Window centres in frame 1: ``index * step + (window - 1) / 2``.
    """

    dx: Any
    dy: Any
    score: Any
    x: Any
    y: Any

    @property
    def flow(self) -> Any:
        """The field in the order of optical flow, (u, v) = (dx, dy): array, shape (H', W', 2)."""
        return array_module(self.dx).stack((self.dx, self.dy), axis=-1)


def match(
    frame1: Any,
    frame2: Any,
    window: Any = 11,
    search: Any = ((-4, 4), (-4, 4)),
    step: Any = 1,
    subpixel: bool = True,
    *,
    progress: Callable[[float], object] | None = None,
) -> Match:
    """Find where each window of one frame went in another: block matching for stereo, optical flow and PIV.

    .. code-block:: text

        score(dy, dx) =         sum (f1 - mean f1) (f2 - mean f2)
                        -------------------------------------------------      over the taps (y, x) of a window,
                        sqrt(sum (f1 - mean f1)^2  sum (f2 - mean f2)^2)       f1 at (y, x), f2 at (y + dy, x + dx)

    the zero-mean normalised cross-correlation [1]_, maximised over the displacements of ``search``. All sums are in float64. A
    displaced window that leaves frame 2 is scored over the taps inside if they are at least half of the window, otherwise that
    displacement is no candidate. Of equal scores, the first in (dy, dx) order wins.

    Parameters
    ----------
    frame1, frame2 : array, shape (H, W) or (H, W, 3)
        NumPy or CuPy, any integer or floating dtype. Colour is converted to grey by Rec. 709's luma weights,
        0.2126 R + 0.7152 G + 0.0722 B. Adding a constant to a frame or scaling its contrast does not change the answer.
    window : int or (int, int), default 11
        Size of the windows in pixels, ``(vertical, horizontal)``. Windows lie wholly inside frame 1.
    search : ((int, int), (int, int)), default ((-4, 4), (-4, 4))
        Displacements tried, ``((dy_lo, dy_hi), (dx_lo, dx_hi))`` in pixels, both ends included.
    step : int or (int, int), default 1
        Pixels between neighbouring windows, ``(vertical, horizontal)``.
    subpixel : bool, default True
        Refine the maximum by the vertex of the parabola through it and its two neighbours, for each axis by itself; not where a
        neighbour is no candidate, as at the border of the search.
    progress : callable, optional
        Called from time to time with the share of the work that is done, from 0 to 1.

    Returns
    -------
    Match
        ``dx, dy, score`` of shape (H', W') with ``H' = (H - window) // step + 1`` and likewise W', and the window centres
        ``x, y``. Displacement NaN and score 0 where the window of frame 1 has no texture or holds a NaN or an infinity, and where
        no displacement is a candidate. A displacement at which the window in frame 2 has no texture or holds a NaN or an infinity
        is no candidate.

    Raises
    ------
    TypeError
        A frame is no array or of a dtype that is no integer or floating one, the frames are of different kinds, a size or
        displacement is no int, or ``subpixel`` is no bool.
    ValueError
        The frames' shapes differ or are no frames', the frames are on different devices, a window does not fit into the frame, or
        the search is reversed or reaches as far as the frame is large.

    Notes
    -----
    No texture means a variance that the rounding of its sums could have made: at most ``12 eps sqrt(window area)`` of the mean
    square about the frame's mean, with eps = 2.2e-16. For 8- and 16-bit frames only truly flat windows are that flat.

    References
    ----------
    .. [1] J. P. Lewis, "Fast normalized cross-correlation", Vision Interface, 1995.

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> frame1 = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    >>> frame2 = np.roll(frame1, (2, -3), axis=(0, 1))  # everything moved down 2 and left 3
    >>> found = cupycorr.match(frame1, frame2, window=(9, 11), step=10, subpixel=False)
    >>> found.dy[1, 2], found.dx[1, 2], found.y[1], found.x[2]
    (np.float64(2.0), np.float64(-3.0), np.float64(14.0), np.float64(25.0))
    >>> found.flow.shape
    (4, 5, 2)
    """
    frame1, frame2 = known_arrays(FRAME, frame1=frame1, frame2=frame2)
    _check_frames(frame1, frame2)
    vertical, horizontal = _axes(frame1.shape, window, search, step)
    if not isinstance(subpixel, (bool, np.bool_)):
        raise TypeError(f"subpixel must be a bool, got subpixel={subpixel!r}")
    with current_device_of(frame1):
        return _match(frame1, frame2, vertical, horizontal, subpixel, progress or (lambda share: None))


def _match(
    frame1: Any, frame2: Any, vertical: _Axis, horizontal: _Axis, subpixel: bool, progress: Callable[[float], object]
) -> Match:
    xp = array_module(frame1)
    grey1, grey2 = _centred_grey(frame1), _centred_grey(frame2)
    dx, dy, score = (xp.empty((vertical.count, horizontal.count)) for _ in range(3))
    band_rows, slab_rows = _tiling(vertical, horizontal)
    for rows, band in vertical.bands(band_rows):
        peak = _Peak(grey1, band, horizontal, subpixel)
        for share in _search(peak, grey1, grey2, band, horizontal, slab_rows):
            progress((rows.start + share * band.count) / vertical.count)
        dy[rows], dx[rows] = peak.displacement(band, horizontal)
        score[rows] = peak.score()
    return Match(dx, dy, score, horizontal.centres(xp), vertical.centres(xp))


# What is asked -----------------------------------------------------------------------------------------------------------------


def _check_frames(frame1: Any, frame2: Any) -> None:
    for name, frame in (("frame1", frame1), ("frame2", frame2)):
        if frame.dtype.kind not in "iuf" and frame.dtype.name != "bfloat16":
            raise TypeError(f"{name} must have an integer or floating dtype, got {name}.dtype={frame.dtype.name}")
        if frame.ndim != 2 and (frame.ndim != 3 or frame.shape[2] != len(_LUMA)):
            raise ValueError(f"{name} must be grey (H, W) or colour (H, W, 3), got {name}.shape={frame.shape}")
    if frame1.shape != frame2.shape:
        got = f"got frame1.shape={frame1.shape}, frame2.shape={frame2.shape}"
        raise ValueError(f"frame1 and frame2 must have the same shape, {got}")


def _axes(shape: tuple[int, ...], window: Any, search: Any, step: Any) -> tuple[_Axis, _Axis]:
    """The vertical and the horizontal geometry of the windows and the search; everything is checked here."""
    windows, steps, ranges = _sizes("window", window), _sizes("step", step), _ranges(search)
    axes = []
    for size, w, s, (low, high) in zip(shape, windows, steps, ranges, strict=False):
        if w > size:
            raise ValueError(f"window must fit into the frame of {shape[0]} x {shape[1]} pixels, got window={window!r}")
        if low > high:
            raise ValueError(f"search must run from low to high, got search={search!r}")
        if max(-low, high) >= size:
            raise ValueError(f"search must stay within the frame of {shape[0]} x {shape[1]} pixels, got search={search!r}")
        axes.append(_Axis(size, w, s, 0, (size - w) // s + 1, low, high - low + 1))
    return axes[0], axes[1]


def _sizes(name: str, value: Any) -> tuple[int, ...]:
    what = "an int or a (vertical, horizontal) pair of ints"
    sizes = _pair(name, value, what, value) if isinstance(value, (tuple, list)) else (integer(name, value, what, value),) * 2
    if min(sizes) < 1:
        raise ValueError(f"{name} must be at least 1, got {name}={value!r}")
    return sizes


def _ranges(search: Any) -> tuple[tuple[int, ...], ...]:
    what = "((dy_lo, dy_hi), (dx_lo, dx_hi)) in whole pixels"
    if not isinstance(search, (tuple, list)):
        raise TypeError(f"search must be {what}, got search={search!r}")
    if len(search) != 2:
        raise ValueError(f"search must be {what}, got search={search!r}")
    return tuple(_pair("search", each, what, search) for each in search)


def _pair(name: str, values: Any, what: str, given: Any) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)):
        raise TypeError(f"{name} must be {what}, got {name}={given!r}")
    if len(values) != 2:
        raise ValueError(f"{name} must be {what}, got {name}={given!r}")
    return tuple(integer(name, value, what, given) for value in values)


# Geometry ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Axis:
    """Windows and displacements along one axis: window ``i`` at displacement ``m`` begins at ``first + step i`` in frame 1 and at
    ``first + low + (step i + m)`` in frame 2.
    """

    size: int  # of the frames
    window: int
    step: int
    first: int  # where window 0 begins
    count: int  # of windows
    low: int  # displacement of index 0
    tried: int  # number of displacements

    @property
    def span(self) -> int:
        """Pixels of frame 1 that the windows cover."""
        return (self.count - 1) * self.step + self.window

    @property
    def reach(self) -> int:
        """Pixels of frame 2, and around it, that the displaced windows cover, from ``first + low`` on."""
        return self.span + self.tried - 1

    @property
    def positions(self) -> int:
        """Number of places in that reach where a window fits."""
        return self.reach - self.window + 1

    def bands(self, count: int) -> Iterator[tuple[slice, _Axis]]:
        """At most ``count`` windows at a time: which, and their geometry."""
        for begin in range(0, self.count, count):
            yield self._windows(begin, min(begin + count, self.count))

    def parts(self) -> Iterator[tuple[slice, _Axis, bool]]:
        """The windows before, in and after the stretch where every displacement is inside frame 2: which, their geometry, and
        whether some displacement leaves the frame.
        """
        high = self.low + self.tried - 1
        begin, end = lattice_inside(self.first, self.step, self.count, -self.low, self.size - self.window - high + 1)
        for at, until, leaves in ((0, begin, True), (begin, end, False), (end, self.count, True)):
            if at < until:
                yield (*self._windows(at, until), leaves)

    def _windows(self, begin: int, end: int) -> tuple[slice, _Axis]:
        return slice(begin, end), replace(self, first=self.first + begin * self.step, count=end - begin)

    def displacements(self, begin: int, end: int) -> _Axis:
        """The same windows, tried at displacements ``[begin, end)`` only."""
        return replace(self, low=self.low + begin, tried=end - begin)

    def covered(self) -> tuple[slice, slice]:
        """The pixels of frame 2 within reach, as indices into frame 2 and into the reach."""
        origin = self.first + self.low
        begin = max(origin, 0)
        end = max(min(origin + self.reach, self.size), begin)
        return slice(begin, end), slice(begin - origin, end - origin)

    def inside(self, xp: Any) -> Any:
        """How many pixels of a window at each of `positions` lie in frame 2, float64."""
        begin = xp.arange(self.positions, dtype=xp.float64) + (self.first + self.low)
        return (xp.minimum(begin + self.window, self.size) - xp.maximum(begin, 0)).clip(0)

    def centres(self, xp: Any) -> Any:
        """Window centres in pixels, float64."""
        return xp.arange(self.count) * self.step + (self.first + (self.window - 1) / 2)


def _tiling(vertical: _Axis, horizontal: _Axis) -> tuple[int, int]:
    """How many rows of windows make a band and how many rows of displacements a slab: the least work within the workspace.

    A band sums the pixels that its last windows share with the next band's first once more; a slab makes its tables anew.
    """
    held = 2  # rows of the slab before
    plane = horizontal.tried * horizontal.count  # scores of one row of windows at one row of displacements
    line = _TABLES * horizontal.reach

    def bytes_free(slab: int) -> int:
        return _WORKSPACE - _ITEM * line * (vertical.window + slab)

    def bytes_each(slab: int) -> int:
        return _ITEM * ((slab + held) * plane + line * vertical.step)

    def band(slab: int) -> int:
        return min(max(bytes_free(slab) // bytes_each(slab), 1), vertical.count)

    def work(slab: int) -> float:
        return (1 + vertical.window / (band(slab) * vertical.step)) * (1 + _TABLES_WORK / (slab * horizontal.tried))

    fitting = [slab for slab in range(1, vertical.tried + 1) if bytes_free(slab) >= bytes_each(slab)]
    slab = min(fitting or [1], key=work)
    return band(slab), slab


# Frames ------------------------------------------------------------------------------------------------------------------------


def _centred_grey(frame: Any) -> Any:
    """The frame as float64, minus its mean, up to a factor; NaN at every pixel that is not finite.

    Sums of products are the more exact the smaller the values. Integer frames lose the rounded mean: all values and their sums
    stay whole, so a flat window has a variance of exactly zero. Floating frames are also scaled by a power of two, which
    rounds nothing and keeps squares from overflowing.
    """
    xp = array_module(frame)
    exact = frame.dtype.kind in "iu"
    grey = _grey(frame, 1 if exact else 1 / _LUMA_UNIT)
    if exact:
        grey -= xp.rint(grey.mean())
        return grey
    finite = xp.isfinite(grey)
    grey = xp.where(finite, grey, 0.0)
    exponent = xp.frexp(xp.maximum(grey.max(), -grey.min()))[1]
    grey = xp.ldexp(grey, -exponent)
    grey -= grey.sum() / xp.maximum(finite.sum(), 1)
    return xp.where(finite, grey, xp.nan)


def _grey(frame: Any, unit: float) -> Any:
    xp = array_module(frame)
    if frame.ndim == 2:
        return xp.array(frame, dtype=xp.float64)
    grey = xp.zeros(frame.shape[:2])
    with np.errstate(invalid="ignore"):  # infinities of opposite sign make a NaN, which is what such a pixel is
        for channel, weight in enumerate(_LUMA):
            grey += frame[..., channel].astype(xp.float64) * (weight * unit)
    return grey


def _under_windows(grey1: Any, vertical: _Axis, horizontal: _Axis) -> tuple[Any, Any]:
    """The pixels of frame 1 that the windows cover, 0 where one is not finite, and the mask of those."""
    xp = array_module(grey1)
    pixels = grey1[vertical.first : vertical.first + vertical.span, horizontal.first : horizontal.first + horizontal.span]
    missing = xp.isnan(pixels)
    return xp.where(missing, 0.0, pixels), missing


def _within_reach(grey2: Any, vertical: _Axis, horizontal: _Axis) -> tuple[Any, Any]:
    """The pixels that the displaced windows cover, 0 around frame 2 and where one is not finite, and the mask of the latter."""
    xp = array_module(grey2)
    pixels = xp.zeros((vertical.reach, horizontal.reach))
    (rows, to_rows), (columns, to_columns) = vertical.covered(), horizontal.covered()
    pixels[to_rows, to_columns] = grey2[rows, columns]
    missing = xp.isnan(pixels)
    pixels[missing] = 0.0
    return pixels, missing


# Scores ------------------------------------------------------------------------------------------------------------------------


def _correlate(input1: Any, input2: Any, vertical: _Axis, horizontal: _Axis, out: Any = None) -> Any:
    """The operator, summed over windows: (B, tried, tried, count, count) from images (B, span, span) and (B, reach, reach)."""
    return spatial_correlation_sample(
        input1[:, None],
        input2[:, None],
        kernel_size=(vertical.window, horizontal.window),
        patch_size=(vertical.tried, horizontal.tried),
        stride=(vertical.step, horizontal.step),
        # The second image begins where displacement 0 of the first begins; the operator counts from the patch's centre.
        patch_offset=((vertical.tried - 1) // 2, (horizontal.tried - 1) // 2),
        out=out,
    )


def _window_sums(images: Any, vertical: _Axis, horizontal: _Axis) -> Any:
    """Sums of images (B, reach, reach) over a window at each of the axes' positions: (B, positions, positions)."""
    ones = array_module(images).ones(images.shape)
    one_by_one = [replace(axis, step=1, count=axis.positions, tried=1) for axis in (vertical, horizontal)]
    return _correlate(images, ones, *one_by_one)[:, 0, 0]


def _displaced(table: Any, vertical: _Axis, horizontal: _Axis) -> Any:
    """A view of a table over positions as (tried, tried, count, count): what belongs to each displacement of each window."""
    views = array_module(table).lib.stride_tricks.sliding_window_view
    shape = tuple((axis.count - 1) * axis.step + 1 for axis in (vertical, horizontal))
    return views(table, shape)[: vertical.tried, : horizontal.tried, :: vertical.step, :: horizontal.step]


def _inverse_norm(total: Any, squares: Any, taps: Any, area: int) -> Any:
    """1 / sqrt(sum (f - mean f)^2) from sums over windows of ``taps`` pixels; NaN where there is no texture.

    The operator's sums of n terms are right within ``4 sqrt(n) eps`` of the sum of magnitudes; in ``squares - total^2 / taps``,
    that makes at most three times as much of ``squares``. No smaller a variance is texture.
    """
    xp = array_module(total)
    variance = squares - total * total / xp.maximum(taps, 1)
    rounding = 12 * area**0.5 * float(np.finfo(np.float64).eps)
    variance = xp.where(variance > rounding * squares, variance, xp.nan)
    return 1 / xp.sqrt(variance)


def _score(grey1: Any, grey2: Any, vertical: _Axis, horizontal: _Axis, out: Any) -> None:
    """Write the score of every window at every displacement into ``out`` (tried, tried, count, count); NaN is no candidate.

    Sums over the taps inside frame 2, S of one frame and S12 of the product, make the score
    ``(S12 - S1 S2 / taps) / sqrt((S11 - S1^2 / taps) (S22 - S2^2 / taps))``. Only S12 needs every displacement of every window:
    S2 and S22 belong to a position in frame 2, and S1 and S11 change only where a displacement leaves frame 2.
    """
    xp = array_module(grey1)
    pixels1, _ = _under_windows(grey1, vertical, horizontal)
    pixels2, missing = _within_reach(grey2, vertical, horizontal)
    _correlate(pixels1[None], pixels2[None], vertical, horizontal, out=out[None])

    area = vertical.window * horizontal.window
    taps = vertical.inside(xp)[:, None] * horizontal.inside(xp)
    total2, squares2, missing = _window_sums(xp.stack((pixels2, pixels2 * pixels2, missing)), vertical, horizontal)
    mean2 = total2 / xp.maximum(taps, 1)
    inverse2 = _inverse_norm(total2, squares2, taps, area)
    inverse2 = xp.where((2 * taps >= area) & (missing < _ONE_MISSING), inverse2, xp.nan)

    for (rows, v, leaves_v), (columns, h, leaves_h) in product(vertical.parts(), horizontal.parts()):
        at = (slice(v.first - vertical.first, None), slice(h.first - horizontal.first, None))
        # Where no displacement leaves frame 2, frame 1's sums are the same at all of them.
        v1, h1 = (axis if leaves else axis.displacements(0, 1) for axis, leaves in ((v, leaves_v), (h, leaves_h)))
        total1, squares1 = _correlate(*_moments(pixels1[at], v1, h1), v1, h1)
        inverse1 = _inverse_norm(total1, squares1, _displaced(taps[at], v1, h1), area)
        of_frame2 = (_displaced(table[at], v, h) for table in (mean2, inverse2))
        _normalise(out[:, :, rows, columns], total1, inverse1, *of_frame2)


def _normalise(scores: Any, total1: Any, inverse1: Any, mean2: Any, inverse2: Any) -> None:
    """From S12 to the score, in place; all (tried, tried, count, count) but for the first two, which may broadcast."""
    xp = array_module(scores)
    total1, inverse1 = (xp.broadcast_to(table, scores.shape) for table in (total1, inverse1))
    down, across = scores.shape[:2]
    block = max(_CACHED // (_ITEM * scores.shape[2] * scores.shape[3]), 1)
    for m, n in product(range(down), range(0, across, block)):
        at = (m, slice(n, n + block))
        part = scores[at]
        part -= total1[at] * mean2[at]
        part *= inverse2[at]
        part *= inverse1[at]


def _moments(pixels1: Any, vertical: _Axis, horizontal: _Axis) -> tuple[Any, Any]:
    """Frame 1 and its square, and twice the mask of what is inside frame 2: the operator's inputs for S1 and S11."""
    xp = array_module(pixels1)
    pixels = pixels1[: vertical.span, : horizontal.span]
    inside = xp.zeros((2, vertical.reach, horizontal.reach))
    inside[:, vertical.covered()[1], horizontal.covered()[1]] = 1
    return xp.stack((pixels, pixels * pixels)), inside


# The maximum -------------------------------------------------------------------------------------------------------------------


def _search(peak: _Peak, grey1: Any, grey2: Any, band: _Axis, horizontal: _Axis, slab_rows: int) -> Iterator[float]:
    """Find the best displacement of every window of a band, slab by slab of displacements; yields the share that is done."""
    xp = array_module(grey1)
    held = min(slab_rows + 2, band.tried)
    scores = xp.empty((held, horizontal.tried, band.count, horizontal.count))
    origin = judged = 0  # the row of displacements that scores[0] holds, and the first not judged yet
    for begin in range(0, band.tried, slab_rows):
        end = min(begin + slab_rows, band.tried)
        _score(grey1, grey2, band.displacements(begin, end), horizontal, scores[begin - origin : end - origin])
        # The last row waits for the next slab, where its neighbour below is.
        until = end if end == band.tried else end - 1
        peak.update(scores[: end - origin], origin, range(judged, until))
        keep = max(until - 1, 0)
        for row in range(keep, end):
            scores[row - keep] = scores[row - origin]
        origin, judged = keep, until
        yield end / band.tried
    peak.exclude(_unknown(grey1, band, horizontal))


def _unknown(grey1: Any, band: _Axis, horizontal: _Axis) -> Any:
    """Which windows of frame 1 hold a pixel that is not finite: bool (count, count)."""
    still = [replace(axis, low=0, tried=1) for axis in (band, horizontal)]
    _, missing = _under_windows(grey1, *still)
    missing = missing[None].astype(float)
    return _correlate(missing, array_module(grey1).ones(missing.shape), *still)[0, 0, 0] > _ONE_MISSING


class _Peak:
    """The running maximum over displacements, its index in (dy, dx) order, and the scores of its four neighbours."""

    NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # (dy, dx)

    def __init__(self, like: Any, vertical: _Axis, horizontal: _Axis, subpixel: bool) -> None:
        self.xp = xp = array_module(like)
        self.tried = (vertical.tried, horizontal.tried)
        shape = (vertical.count, horizontal.count)
        self.best = xp.full(shape, -xp.inf)
        self.index = xp.zeros(shape, dtype=xp.int64)
        self.neighbours = [xp.full(shape, xp.nan) for _ in self.NEIGHBOURS] if subpixel else []

    def update(self, scores: Any, origin: int, rows: range) -> None:
        """Judge rows of displacements; scores (held, tried, count, count) begins with row ``origin``. NaN never wins."""
        xp, across = self.xp, self.tried[1]
        better = xp.empty(self.best.shape, dtype=bool)
        for row, column in product(rows, range(across)):
            candidate = scores[row - origin, column]
            xp.greater(candidate, self.best, out=better)
            xp.copyto(self.best, candidate, where=better)
            xp.copyto(self.index, row * across + column, where=better)
        if self.neighbours:
            self._gather(scores.reshape(-1, *self.best.shape), origin, self.index >= rows.start * across)

    def _gather(self, planes: Any, origin: int, fresh: Any) -> None:
        """Look up the neighbours of the maxima that are ``fresh``; NaN where there is none."""
        xp, (down, across) = self.xp, self.tried
        row, column = xp.divmod(self.index, across)
        for known, (dy, dx) in zip(self.neighbours, self.NEIGHBOURS, strict=True):
            exists = (row + dy >= 0) & (row + dy < down) & (column + dx >= 0) & (column + dx < across)
            at = (self.index + (dy - origin) * across + dx).clip(0, len(planes) - 1)
            score = xp.take_along_axis(planes, at[None], axis=0)[0]
            known[...] = xp.where(fresh, xp.where(exists, score, xp.nan), known)

    def exclude(self, windows: Any) -> None:
        """Take the maximum from some windows."""
        self.best = self.xp.where(windows, -self.xp.inf, self.best)

    def score(self) -> Any:
        """The maximum; rounding may have carried it a little beyond a correlation coefficient."""
        return self.xp.where(self.best > -self.xp.inf, self.best.clip(-1, 1), 0.0)

    def displacement(self, vertical: _Axis, horizontal: _Axis) -> tuple[Any, Any]:
        """dy and dx of the maximum in pixels, with the parabolas' fractions; NaN where there is no maximum."""
        xp = self.xp
        found = []
        for axis, whole in enumerate(xp.divmod(self.index, self.tried[1])):
            pixels = whole + float((vertical, horizontal)[axis].low)
            if self.neighbours:
                pixels += self._vertex(*self.neighbours[2 * axis : 2 * axis + 2])
            found.append(xp.where(self.best > -xp.inf, pixels, xp.nan))
        return found[0], found[1]

    def _vertex(self, before: Any, after: Any) -> Any:
        """Where the parabola through three neighbouring scores peaks, in [-1/2, 1/2]; 0 where one of them is missing."""
        xp = self.xp
        curvature = (self.best - before) + (self.best - after)
        fraction = 0.5 * (after - before) / xp.maximum(curvature, np.finfo(np.float64).tiny)  # three equal scores: stay
        return xp.where(xp.isnan(fraction), 0.0, fraction.clip(-0.5, 0.5))  # rounding could carry it beyond
