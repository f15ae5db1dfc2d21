"""Block matching: from two frames to a displacement field, by zero-mean normalised cross-correlation over a search range.

This module handles windows, displacements and scores. The operator computes all sums over windows, so nothing here depends on a
variant, and array functions are looked up on the arrays' own module, so NumPy and CuPy run the same code. The scores of a large
search do not fit into memory: they are computed in bands of rows of windows and slabs of rows of displacements, and only the
running maximum is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Generic, SupportsIndex, overload

import numpy as np

from ._arguments import IntOrPair, Pair, integer, pair
from ._arrays import FRAME, Array, ArrayT, array_module, current_device_of, known_arrays
from ._correlation.api import spatial_correlation_sample
from ._correlation.problem import lattice_inside

_WORKSPACE = 128 * 2**20  # bytes for the scores of one slab and the tables of one band together
_CACHED = 2**20  # bytes of scores that are normalised at a time, so that they stay in a processor's cache
_TABLES = 16  # arrays of the size of a band's reach in frame 2 that exist at once while the band is scored
_TABLES_WORK = 32  # number of displacements whose scores cost as much time as those arrays

_LUMA = (2126, 7152, 722)  # Rec. 709, times 10000: whole numbers keep grey values of integer frames exact
_LUMA_UNIT = 10000
_ITEM = 8  # bytes of a float64
_ONE_MISSING = 0.5  # tells one missing pixel in a window from none; the operator counts in floating point


@dataclass(frozen=True, slots=True, eq=False)
class Match(Generic[ArrayT]):
    """A displacement field, as `match` returns it. Lengths are in pixels; arrays are float64 and of the frames' kind.

    Attributes
    ----------
    dx, dy : array, shape (H', W')
        The point ``(y, x)`` of frame 1 is at ``(y + dy, x + dx)`` in frame 2: positive is to the right and down. NaN where no
        match was found.
    score : array, shape (H', W')
        Correlation coefficient of the best whole-pixel displacement, in [-1, 1]; 0 where no match was found.
    x : array, shape (W',)
    y : array, shape (H',)
        Window centres in frame 1: ``index * step + (window - 1) / 2``.
    """

    dx: ArrayT
    dy: ArrayT
    score: ArrayT
    x: ArrayT
    y: ArrayT

    @property
    def flow(self) -> ArrayT:
        """The field in the order of optical flow, (u, v) = (dx, dy): array, shape (H', W', 2)."""
        field: ArrayT = array_module(self.dx).stack((self.dx, self.dy), axis=-1)
        return field


_Ranges = Sequence[Sequence[SupportsIndex]]


@overload
def match(
    frame1: np.ndarray,
    frame2: np.ndarray,
    window: IntOrPair = ...,
    search: _Ranges = ...,
    step: IntOrPair = ...,
    subpixel: bool = ...,
    *,
    progress: Callable[[float], object] | None = ...,
) -> Match[np.ndarray]: ...
@overload
def match(
    frame1: ArrayT,
    frame2: ArrayT,
    window: IntOrPair = ...,
    search: _Ranges = ...,
    step: IntOrPair = ...,
    subpixel: bool = ...,
    *,
    progress: Callable[[float], object] | None = ...,
) -> Match[ArrayT]: ...
def match(
    frame1: Array,
    frame2: Array,
    window: IntOrPair = 11,
    search: _Ranges = ((-4, 4), (-4, 4)),
    step: IntOrPair = 1,
    subpixel: bool = True,
    *,
    progress: Callable[[float], object] | None = None,
) -> Match[Any]:
    """Find the displacement of each window of one frame to another: block matching for stereo, optical flow and PIV.

    .. code-block:: text

        score(dy, dx) =         sum (f1 - mean f1) (f2 - mean f2)
                        -------------------------------------------------      over the taps (y, x) of a window,
                        sqrt(sum (f1 - mean f1)^2  sum (f2 - mean f2)^2)       f1 at (y, x), f2 at (y + dy, x + dx)

    the zero-mean normalised cross-correlation [1]_, maximised over the displacements of ``search``. All sums are in float64. If a
    displaced window leaves frame 2, its score is taken over the taps inside, provided that these are at least half of the window;
    otherwise that displacement is not a candidate. Among equal scores, the first in (dy, dx) order wins.

    Parameters
    ----------
    frame1, frame2 : array, shape (H, W) or (H, W, 3)
        NumPy or CuPy, any integer or floating dtype. Colour is converted to grey by Rec. 709's luma weights,
        0.2126 R + 0.7152 G + 0.0722 B. Adding a constant to a frame or scaling its contrast does not change the result.
    window : int or (int, int), default 11
        Size of the windows in pixels, ``(vertical, horizontal)``. All windows are completely inside frame 1.
    search : ((int, int), (int, int)), default ((-4, 4), (-4, 4))
        Search range, ``((dy_lo, dy_hi), (dx_lo, dx_hi))`` in pixels, both ends included.
    step : int or (int, int), default 1
        Pixels between neighbouring windows, ``(vertical, horizontal)``.
    subpixel : bool, default True
        Refine the maximum by the vertex of the parabola through it and its two neighbours, separately for each axis. It is not
        refined where a neighbour is not a candidate, such as at the border of the search range.
    progress : callable, optional
        Called from time to time with the fraction of the work that is done, from 0 to 1.

    Returns
    -------
    Match
        ``dx, dy, score`` of shape (H', W') with ``H' = (H - window) // step + 1`` and likewise W', and the window centres
        ``x, y``. The displacement is NaN and the score 0 where the window of frame 1 has no texture or contains a NaN or an
        infinity, and where no displacement is a candidate. A displacement is not a candidate if the window in frame 2 has no
        texture or contains a NaN or an infinity.

    Raises
    ------
    TypeError
        A frame is not an array, its dtype is neither integer nor floating, the frames are of different kinds, a size or
        displacement is not an int, or ``subpixel`` is not a bool.
    ValueError
        The frames' shapes differ or are not those of a grey or colour frame, the frames are on different devices, a window does
        not fit into the frame, or the search range is reversed or reaches as far as the frame is large.

    Notes
    -----
    A window has no texture if its variance could be a rounding error of its sums: at most ``12 eps sqrt(window area)`` of the
    mean square about the frame's mean, with eps = 2.2e-16. In 8- and 16-bit frames, only windows of one value have none.

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
        return _match(frame1, frame2, vertical, horizontal, subpixel, progress or (lambda fraction: None))


def _match(
    frame1: Any, frame2: Any, vertical: _Axis, horizontal: _Axis, subpixel: bool, progress: Callable[[float], object]
) -> Match[Any]:
    xp = array_module(frame1)
    grey1, grey2 = _centred_grey(frame1), _centred_grey(frame2)
    dx, dy, score = (xp.empty((vertical.count, horizontal.count)) for _ in range(3))
    band_rows, slab_rows = _tiling(vertical, horizontal)
    for rows, band in vertical.bands(band_rows):
        peak = _Peak(grey1, band, horizontal, subpixel)
        for fraction in _search(peak, grey1, grey2, band, horizontal, slab_rows):
            progress((rows.start + fraction * band.count) / vertical.count)
        dy[rows], dx[rows] = peak.displacement(band, horizontal)
        score[rows] = peak.score()
    return Match(dx, dy, score, horizontal.centres(xp), vertical.centres(xp))


# Arguments ---------------------------------------------------------------------------------------------------------------------


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
    """Check the sizes and the search range, and return the geometry along y and along x."""
    windows, steps, ranges = pair("window", window, 1), pair("step", step, 1), _search_ranges(search)
    axes = []
    for size, w, s, (low, high) in zip(shape, windows, steps, ranges, strict=False):
        if w > size:
            raise ValueError(f"window must fit into the frame of {shape[0]} x {shape[1]} pixels, got window={window!r}")
        if low > high:
            raise ValueError(f"search must run from low to high, got search={search!r}")
        if max(-low, high) >= size:
            raise ValueError(f"search must stay within the frame of {shape[0]} x {shape[1]} pixels, got search={search!r}")
        count, tried = (size - w) // s + 1, high - low + 1
        axes.append(_Axis(size=size, window=w, step=s, first=0, count=count, low=low, tried=tried))
    return axes[0], axes[1]


def _search_ranges(search: Any) -> tuple[Pair, Pair]:
    """Return the vertical and the horizontal search range as pairs of plain ints."""
    vertical, horizontal = _two(search, search)
    return _search_range(vertical, search), _search_range(horizontal, search)


def _search_range(each: Any, search: Any) -> Pair:
    low, high = (integer("search", value, _SEARCH, search) for value in _two(each, search))
    return low, high


_SEARCH = "((dy_lo, dy_hi), (dx_lo, dx_hi)) in whole pixels"


def _two(values: Any, search: Any) -> Any:
    if not isinstance(values, (tuple, list)):
        raise TypeError(f"search must be {_SEARCH}, got search={search!r}")
    if len(values) != 2:
        raise ValueError(f"search must be {_SEARCH}, got search={search!r}")
    return values


# Geometry ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Axis:
    """The geometry of windows and displacements along one axis.

    Window ``i`` begins at ``first + step i`` in frame 1, and at displacement ``m`` at ``first + low + (step i + m)`` in frame 2.
    """

    size: int  # of the frames
    window: int
    step: int
    first: int  # the pixel at which window 0 begins
    count: int  # number of windows
    low: int  # displacement of index 0
    tried: int  # number of displacements

    @property
    def span(self) -> int:
        """The number of pixels of frame 1 that the windows cover."""
        return (self.count - 1) * self.step + self.window

    @property
    def reach(self) -> int:
        """The number of pixels, in frame 2 and around it, that the displaced windows cover, from ``first + low`` on."""
        return self.span + self.tried - 1

    @property
    def positions(self) -> int:
        """The number of positions within the reach at which a window fits."""
        return self.reach - self.window + 1

    def bands(self, count: int) -> Iterator[tuple[slice, _Axis]]:
        """Yield bands of at most ``count`` windows: the slice of window indices, and the geometry."""
        for begin in range(0, self.count, count):
            yield self._windows(begin, min(begin + count, self.count))

    def split_at_border(self) -> Iterator[tuple[slice, _Axis, bool]]:
        """Split off the windows that some displacement moves out of frame 2.

        Yields the slice of window indices, the geometry, and whether some displacement leaves the frame.
        """
        high = self.low + self.tried - 1
        begin, end = lattice_inside(self.first, self.step, self.count, -self.low, self.size - self.window - high + 1)
        for at, until, leaves in ((0, begin, True), (begin, end, False), (end, self.count, True)):
            if at < until:
                windows, axis = self._windows(at, until)
                yield windows, axis, leaves

    def _windows(self, begin: int, end: int) -> tuple[slice, _Axis]:
        return slice(begin, end), replace(self, first=self.first + begin * self.step, count=end - begin)

    def displacements(self, begin: int, end: int) -> _Axis:
        """Return the geometry of the same windows at the displacements ``[begin, end)`` only."""
        return replace(self, low=self.low + begin, tried=end - begin)

    def pixels_within_reach(self) -> tuple[slice, slice]:
        """Return the slice of frame 2 that the displaced windows cover, and the same pixels as a slice of the reach."""
        origin = self.first + self.low
        begin = max(origin, 0)
        end = max(min(origin + self.reach, self.size), begin)
        return slice(begin, end), slice(begin - origin, end - origin)

    def inside(self, xp: Any) -> Any:
        """Return the number of pixels inside frame 2 of a window at each of `positions`, float64."""
        begin = xp.arange(self.positions, dtype=xp.float64) + (self.first + self.low)
        return (xp.minimum(begin + self.window, self.size) - xp.maximum(begin, 0)).clip(0)

    def centres(self, xp: Any) -> Any:
        """Return the window centres in pixels, float64."""
        return xp.arange(self.count) * self.step + (self.first + (self.window - 1) / 2)


def _tiling(vertical: _Axis, horizontal: _Axis) -> tuple[int, int]:
    """Return the rows of windows in a band and the rows of displacements in a slab, for the least work within the workspace.

    Neighbouring bands both sum the pixels that their windows share, and every slab computes its tables again.
    """
    held = 2  # rows that are kept of the previous slab
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
    """Return the grey frame as float64 minus its mean, up to a factor; NaN at every pixel that is not finite.

    Smaller values make sums of products more exact. The rounded mean is subtracted from integer frames: all values and their sums
    stay whole, so a flat window has a variance of exactly zero. Floating frames are also scaled by a power of two, which is exact
    and keeps squares from overflowing.
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
    with np.errstate(invalid="ignore"):  # infinities of opposite sign give NaN, which is right for such a pixel
        for channel, weight in enumerate(_LUMA):
            grey += frame[..., channel].astype(xp.float64) * (weight * unit)
    return grey


def _under_windows(grey1: Any, vertical: _Axis, horizontal: _Axis) -> tuple[Any, Any]:
    """Return the pixels of frame 1 that the windows cover, with 0 for those that are not finite, and the mask of the latter."""
    xp = array_module(grey1)
    pixels = grey1[vertical.first : vertical.first + vertical.span, horizontal.first : horizontal.first + horizontal.span]
    missing = xp.isnan(pixels)
    return xp.where(missing, 0.0, pixels), missing


def _within_reach(grey2: Any, vertical: _Axis, horizontal: _Axis) -> tuple[Any, Any]:
    """Return the pixels that the displaced windows cover, and the mask of those that are not finite.

    They are 0 around frame 2 and where they are not finite.
    """
    xp = array_module(grey2)
    pixels = xp.zeros((vertical.reach, horizontal.reach))
    rows, to_rows = vertical.pixels_within_reach()
    columns, to_columns = horizontal.pixels_within_reach()
    pixels[to_rows, to_columns] = grey2[rows, columns]
    missing = xp.isnan(pixels)
    pixels[missing] = 0.0
    return pixels, missing


# Scores ------------------------------------------------------------------------------------------------------------------------


def _correlate(input1: Any, input2: Any, vertical: _Axis, horizontal: _Axis, out: Any = None) -> Any:
    """Correlate the windows of images (B, span, span) with images (B, reach, reach), to (B, tried, tried, count, count)."""
    return spatial_correlation_sample(
        input1[:, None],
        input2[:, None],
        kernel_size=(vertical.window, horizontal.window),
        patch_size=(vertical.tried, horizontal.tried),
        stride=(vertical.step, horizontal.step),
        # Displacement index 0 is pixel 0 of the second image; the operator measures from the centre of the patch.
        patch_offset=((vertical.tried - 1) // 2, (horizontal.tried - 1) // 2),
        out=out,
    )


def _window_sums(images: Any, vertical: _Axis, horizontal: _Axis) -> Any:
    """Sum images (B, reach, reach) over a window at every position: (B, positions, positions)."""
    ones = array_module(images).ones(images.shape)
    every_position = [replace(axis, step=1, count=axis.positions, tried=1) for axis in (vertical, horizontal)]
    return _correlate(images, ones, *every_position)[:, 0, 0]


def _displaced(table: Any, vertical: _Axis, horizontal: _Axis) -> Any:
    """View a table over positions as (tried, tried, count, count): its value for each displacement of each window."""
    views = array_module(table).lib.stride_tricks.sliding_window_view
    shape = tuple((axis.count - 1) * axis.step + 1 for axis in (vertical, horizontal))
    return views(table, shape)[: vertical.tried, : horizontal.tried, :: vertical.step, :: horizontal.step]


def _inverse_norm(total: Any, squares: Any, taps: Any, area: int) -> Any:
    """Return 1 / sqrt(sum (f - mean f)^2) from sums over windows of ``taps`` pixels; NaN where there is no texture.

    The operator's sums of n terms are accurate to ``4 sqrt(n) eps`` of the sum of magnitudes, so ``squares - total^2 / taps`` is
    accurate to three times as much of ``squares``. A smaller variance may be a rounding error and does not count as texture.
    """
    xp = array_module(total)
    variance = squares - total * total / xp.maximum(taps, 1)
    rounding = 12 * area**0.5 * float(np.finfo(np.float64).eps)
    variance = xp.where(variance > rounding * squares, variance, xp.nan)
    return 1 / xp.sqrt(variance)


def _score(grey1: Any, grey2: Any, vertical: _Axis, horizontal: _Axis, out: Any) -> None:
    """Write the score of every window at every displacement into ``out`` (tried, tried, count, count); NaN if not a candidate.

    The score is ``(S12 - S1 S2 / taps) / sqrt((S11 - S1^2 / taps) (S22 - S2^2 / taps))``, where S1, S2, S11, S22 and S12 are the
    sums of each frame, of its square and of the product over the taps inside frame 2. Only S12 is a sum for every displacement of
    every window: S2 and S22 depend on the position in frame 2 alone, and S1 and S11 on the window alone, except where a
    displacement leaves frame 2.
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

    for (rows, v, leaves_v), (columns, h, leaves_h) in product(vertical.split_at_border(), horizontal.split_at_border()):
        at = (slice(v.first - vertical.first, None), slice(h.first - horizontal.first, None))
        # Where no displacement leaves frame 2, the sums of frame 1 are the same for all displacements.
        v1, h1 = (axis if leaves else axis.displacements(0, 1) for axis, leaves in ((v, leaves_v), (h, leaves_h)))
        total1, squares1 = _correlate(*_moments(pixels1[at], v1, h1), v1, h1)
        inverse1 = _inverse_norm(total1, squares1, _displaced(taps[at], v1, h1), area)
        of_frame2 = (_displaced(table[at], v, h) for table in (mean2, inverse2))
        _normalise(out[:, :, rows, columns], total1, inverse1, *of_frame2)


def _normalise(scores: Any, total1: Any, inverse1: Any, mean2: Any, inverse2: Any) -> None:
    """Turn S12 into the score, in place. All arrays are (tried, tried, count, count); those of frame 1 may broadcast."""
    xp = array_module(scores)
    total1, inverse1 = (xp.broadcast_to(table, scores.shape) for table in (total1, inverse1))
    down, across = scores.shape[:2]
    block = max(_CACHED // (_ITEM * scores.shape[2] * scores.shape[3]), 1)
    for m, n in product(range(down), range(0, across, block)):
        at = (m, slice(n, n + block))
        view = scores[at]
        view -= total1[at] * mean2[at]
        view *= inverse2[at]
        view *= inverse1[at]


def _moments(pixels1: Any, vertical: _Axis, horizontal: _Axis) -> tuple[Any, Any]:
    """Return the operator's inputs for S1 and S11: frame 1 and its square, and twice the mask of the inside of frame 2."""
    xp = array_module(pixels1)
    pixels = pixels1[: vertical.span, : horizontal.span]
    inside = xp.zeros((2, vertical.reach, horizontal.reach))
    inside[:, vertical.pixels_within_reach()[1], horizontal.pixels_within_reach()[1]] = 1
    return xp.stack((pixels, pixels * pixels)), inside


# The maximum -------------------------------------------------------------------------------------------------------------------


def _search(peak: _Peak, grey1: Any, grey2: Any, band: _Axis, horizontal: _Axis, slab_rows: int) -> Iterator[float]:
    """Find the best displacement of every window of a band, slab by slab; yields the fraction that is done."""
    xp = array_module(grey1)
    held = min(slab_rows + 2, band.tried)
    scores = xp.empty((held, horizontal.tried, band.count, horizontal.count))
    origin = judged = 0  # the row of displacements in scores[0], and the first row that peak has not seen
    for begin in range(0, band.tried, slab_rows):
        end = min(begin + slab_rows, band.tried)
        _score(grey1, grey2, band.displacements(begin, end), horizontal, scores[begin - origin : end - origin])
        # The last row waits for the next slab, which contains its neighbour below.
        until = end if end == band.tried else end - 1
        peak.update(scores[: end - origin], origin, range(judged, until))
        keep = max(until - 1, 0)
        for row in range(keep, end):
            scores[row - keep] = scores[row - origin]
        origin, judged = keep, until
        yield end / band.tried
    peak.exclude(_unknown(grey1, band, horizontal))


def _unknown(grey1: Any, band: _Axis, horizontal: _Axis) -> Any:
    """Return the mask (count, count) of the windows of frame 1 with a pixel that is not finite."""
    undisplaced = [replace(axis, low=0, tried=1) for axis in (band, horizontal)]
    _, missing = _under_windows(grey1, *undisplaced)
    missing = missing[None].astype(float)
    return _correlate(missing, array_module(grey1).ones(missing.shape), *undisplaced)[0, 0, 0] > _ONE_MISSING


class _Peak:
    """The running maximum over displacements for every window, its index in (dy, dx) order, and its four neighbours' scores."""

    NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # (dy, dx)

    def __init__(self, like: Any, vertical: _Axis, horizontal: _Axis, subpixel: bool) -> None:
        self.xp = xp = array_module(like)
        self.tried = (vertical.tried, horizontal.tried)
        shape = (vertical.count, horizontal.count)
        self.best = xp.full(shape, -xp.inf)
        self.index = xp.zeros(shape, dtype=xp.int64)
        self.neighbours = [xp.full(shape, xp.nan) for _ in self.NEIGHBOURS] if subpixel else []

    def update(self, scores: Any, origin: int, rows: range) -> None:
        """Update the maximum with rows of displacements; scores (held, tried, count, count) begins with row ``origin``.

        NaN is never the maximum.
        """
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
        """Look up the neighbours of the maxima that are ``fresh``; NaN where a neighbour does not exist."""
        xp, (down, across) = self.xp, self.tried
        row, column = xp.divmod(self.index, across)
        for known, (dy, dx) in zip(self.neighbours, self.NEIGHBOURS, strict=True):
            exists = (row + dy >= 0) & (row + dy < down) & (column + dx >= 0) & (column + dx < across)
            at = (self.index + (dy - origin) * across + dx).clip(0, len(planes) - 1)
            score = xp.take_along_axis(planes, at[None], axis=0)[0]
            known[...] = xp.where(fresh, xp.where(exists, score, xp.nan), known)

    def exclude(self, windows: Any) -> None:
        """Leave some windows without a maximum."""
        self.best = self.xp.where(windows, -self.xp.inf, self.best)

    def score(self) -> Any:
        """Return the maximum, clipped to [-1, 1] against rounding errors; 0 where there is none."""
        return self.xp.where(self.best > -self.xp.inf, self.best.clip(-1, 1), 0.0)

    def displacement(self, vertical: _Axis, horizontal: _Axis) -> tuple[Any, Any]:
        """Return dy and dx of the maximum in pixels, with the fractions of the parabolas; NaN where there is no maximum."""
        xp = self.xp
        found = []
        for axis, whole in enumerate(xp.divmod(self.index, self.tried[1])):
            pixels = whole + float((vertical, horizontal)[axis].low)
            if self.neighbours:
                pixels += self._vertex(*self.neighbours[2 * axis : 2 * axis + 2])
            found.append(xp.where(self.best > -xp.inf, pixels, xp.nan))
        return found[0], found[1]

    def _vertex(self, before: Any, after: Any) -> Any:
        """Return the vertex of the parabola through three neighbouring scores, in [-1/2, 1/2]; 0 if one of them is missing."""
        xp = self.xp
        curvature = (self.best - before) + (self.best - after)
        fraction = 0.5 * (after - before) / xp.maximum(curvature, np.finfo(np.float64).tiny)  # 0 for three equal scores
        return xp.where(xp.isnan(fraction), 0.0, fraction.clip(-0.5, 0.5))  # clipped against rounding errors
