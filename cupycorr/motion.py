"""Block matching: from two frames to a displacement field, by zero-mean normalised cross-correlation over a search range.

This module has the public functions; `_motion` checks their arguments and does the work. Array functions are looked up on the
arrays' own module, so NumPy and CuPy run the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, SupportsIndex, overload

import numpy as np

from ._arguments import IntOrPair, finite_number
from ._arrays import Array, ArrayT, array_module, current_device_of
from ._motion.arguments import Measurement, known_frames, measurement
from ._motion.consistency import distances
from ._motion.costs import Way
from ._motion.frames import Frame
from ._motion.geometry import Lattice
from ._motion.matching import Matcher
from ._motion.outliers import median_residual as median_residual
from ._motion.peaks import GAUSSIAN


@dataclass(frozen=True, slots=True, eq=False)
class Match(Generic[ArrayT]):
    """A displacement field, as `match` returns it: arrays of the frames' kind, float64 unless said otherwise.

    Lengths are in pixels. The fields have the shape (H', W') of the grid of windows, or (N,) for N ``points``. Those of T
    pairs of frames, which `cupycorr.dask.match` takes, have the shape (T, H', W').

    Attributes
    ----------
    dx, dy : array of shape (H', W') or (N,)
        The point ``(y, x)`` of frame 1 is at ``(y + dy, x + dx)`` in frame 2: positive is to the right and down. NaN where no
        match was found.
    score : array of shape (H', W') or (N,)
        Correlation coefficient of the best whole-pixel displacement, in [-1, 1]; 0 where no match was found.
    x : array of shape (W',) or (N,)
    y : array of shape (H',) or (N,)
        Window centres in frame 1: ``index * step + (window - 1) / 2``; for ``points``, the centre of each window.
    at_edge : array of bool and of shape (H', W') or (N,)
        True where a displacement next to the best one, along an axis that is searched, is beyond the search range or is not a
        candidate. The true maximum may lie there, and the displacement is not refined along that axis.
    peak_ratio : array of shape (H', W') or (N,)
        The score divided by the highest score outside the 3 x 3 neighbourhood of the best displacement: the signal-to-noise ratio
        of PIV. Infinity where no other score is positive, as for a search of at most 3 x 3 displacements; NaN where no match was
        found.
    count : array of int64 and of shape (H', W') or (N,)
        Number of pixels compared at the best displacement: those of the window that are present in both frames. 0 where no match
        was found.
    consistency : array of shape (H', W') or (N,), or None
        Distance from a window's place to where matching back from frame 2 leads; NaN where either way found no match. None unless
        ``match`` was called with ``consistency=True``.

    See Also
    --------
    cupycorr.match : The function that returns it.
    cupycorr.median_residual : Find displacements that do not fit to those around them.

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> frame = np.random.default_rng(0).random((40, 60))
    >>> field = cupycorr.match(frame, frame, window=10, step=10)
    >>> field.dx.shape, field.y
    ((4, 6), array([ 4.5, 14.5, 24.5, 34.5]))
    """

    dx: ArrayT
    dy: ArrayT
    score: ArrayT
    x: ArrayT
    y: ArrayT
    at_edge: ArrayT
    peak_ratio: ArrayT
    count: ArrayT
    consistency: ArrayT | None = None

    @property
    def flow(self) -> ArrayT:
        """The field in the order of optical flow, (u, v) = (dx, dy), not that of ``offset``: shape (H', W', 2) or (N, 2)."""
        field: ArrayT = array_module(self.dx).stack((self.dx, self.dy), axis=-1)
        return field

    def valid(
        self,
        *,
        min_score: float | None = None,
        min_peak_ratio: float | None = None,
        min_count: int | None = None,
        allow_edge: bool = False,
        consistency: float | None = None,
        max_median_residual: float | None = None,
    ) -> ArrayT:
        """Return the mask of the windows whose displacement can be trusted: those with a match that passes every test given.

        Parameters
        ----------
        min_score : float, optional
            The lowest `score`, such as 0.5.
        min_peak_ratio : float, optional
            The lowest `peak_ratio`, such as 1.2, of a score that is positive.
        min_count : int, optional
            The lowest number of pixels compared.
        allow_edge : bool, default False
            Also accept a maximum at the edge of the search (`at_edge`), such as a template in the first row of an image.
        consistency : float, optional
            The largest forward-backward distance in pixels, such as 1. It needs ``match(..., consistency=True)``.
        max_median_residual : float, optional
            The largest `median_residual`, such as 2: how far a displacement is from those around it. It needs a grid of windows;
            a displacement without neighbours fails.

        Returns
        -------
        array of bool and of shape (H', W') or (N,)
            True where the displacement can be trusted.

        Raises
        ------
        TypeError
            A threshold is not a number, or ``allow_edge`` is not a bool.
        ValueError
            A threshold is not finite; ``consistency`` is given but was not computed; ``max_median_residual`` is given for
            ``points``.
        """
        xp = array_module(self.dx)
        dy: Any = self.dy
        dx: Any = self.dx
        if not isinstance(allow_edge, (bool, np.bool_)):
            raise TypeError(f"allow_edge must be a bool, got allow_edge={allow_edge!r}")
        with current_device_of(self.dx):
            found: Any = xp.isfinite(dx)
            if not allow_edge:
                found &= ~self.at_edge  # type: ignore[operator]
            least: tuple[tuple[str, Any, Any], ...] = (
                ("min_score", min_score, self.score),
                ("min_peak_ratio", min_peak_ratio, self.peak_ratio),
                ("min_count", min_count, self.count),
            )
            for name, threshold, values in least:
                if threshold is not None:
                    found &= values >= finite_number(name, threshold)
            if min_peak_ratio is not None:
                found &= self.score > 0  # type: ignore[operator]
            if consistency is not None:
                largest = finite_number("consistency", consistency)
                distance: Any = self.consistency
                if distance is None:
                    raise ValueError(f"consistency={consistency!r} needs a field that was made by match(..., consistency=True)")
                found &= distance <= largest
            if max_median_residual is not None:
                if dx.ndim == 1:
                    got = "got the field of points"
                    raise ValueError(f"max_median_residual={max_median_residual!r} needs a grid of windows, {got}")
                found &= median_residual(dy, dx) <= finite_number("max_median_residual", max_median_residual)
        valid: ArrayT = found
        return valid


_Ranges = Sequence[Sequence[SupportsIndex]]


@overload
def match(
    frame1: np.ndarray,
    frame2: np.ndarray,
    window: IntOrPair = ...,
    search: _Ranges | None = ...,
    step: IntOrPair = ...,
    subpixel: bool | str = ...,
    *,
    mask1: np.ndarray | None = ...,
    mask2: np.ndarray | None = ...,
    points: Any = ...,
    offset: Any = ...,
    consistency: bool = ...,
    variant: str = ...,
    progress: Callable[[float], object] | None = ...,
) -> Match[np.ndarray]: ...
@overload
def match(
    frame1: ArrayT,
    frame2: ArrayT,
    window: IntOrPair = ...,
    search: _Ranges | None = ...,
    step: IntOrPair = ...,
    subpixel: bool | str = ...,
    *,
    mask1: ArrayT | None = ...,
    mask2: ArrayT | None = ...,
    points: Any = ...,
    offset: Any = ...,
    consistency: bool = ...,
    variant: str = ...,
    progress: Callable[[float], object] | None = ...,
) -> Match[ArrayT]: ...
def match(
    frame1: Array,
    frame2: Array,
    window: IntOrPair = 11,
    search: _Ranges | None = ((-4, 4), (-4, 4)),
    step: IntOrPair = 1,
    subpixel: bool | str = GAUSSIAN,
    *,
    mask1: Array | None = None,
    mask2: Array | None = None,
    points: Any = None,
    offset: Any = None,
    consistency: bool = False,
    variant: str = "auto",
    progress: Callable[[float], object] | None = None,
) -> Match[Any]:
    """Find the displacement of each window of one frame to another: block matching for stereo, optical flow, PIV and templates.

    .. code-block:: text

        score(dy, dx) =         sum (f1 - mean f1) (f2 - mean f2)              over the pixels (y, x) of a window that are
                        -------------------------------------------------      present in both frames,
                        sqrt(sum (f1 - mean f1)^2  sum (f2 - mean f2)^2)       f1 at (y, x), f2 at (y + dy, x + dx)

    the zero-mean normalised cross-correlation [1]_, maximised over the displacements of ``search``. All sums are in float64. A
    pixel is missing, and takes no part, if it is outside its frame, NaN or infinite, or not valid by a mask. A displacement is a
    candidate if at least half of the window is present in both frames and both sides have texture. Scores within 1e-12 of the
    maximum are equal to it, and among equal scores the shortest displacement wins: by Euclidean length, then the first in
    (dy, dx) order.

    Parameters
    ----------
    frame1, frame2 : array of shape (H, W) or (H, W, 3)
        NumPy or CuPy, any integer or floating dtype. Colour is converted to grey by Rec. 709's luma weights,
        0.2126 R + 0.7152 G + 0.0722 B. Adding a constant to a frame or scaling its contrast does not change the result. The
        frames may differ in size: pixel (0, 0) is the same point in both. Masked elements of a NumPy masked array are missing.
    window : int or (int, int), default 11
        Size of the windows in pixels, ``(vertical, horizontal)``. Windows of a grid are completely inside frame 1. A window of
        one pixel has no texture and no match.
    search : ((int, int), (int, int)) or None, default ((-4, 4), (-4, 4))
        Search range, ``((dy_lo, dy_hi), (dx_lo, dx_hi))`` in pixels, both ends included, measured from ``offset`` if there is
        one. None is every displacement that moves some window to a place completely inside frame 2: all places of a template.
    step : int or (int, int), default 1
        Pixels between neighbouring windows, ``(vertical, horizontal)``.
    subpixel : {"gaussian", "parabola", True, False}, default "gaussian"
        Refine the maximum by the vertex of a curve through it and its two neighbours, separately for each axis: a Gaussian, which
        is standard in PIV [2]_ because a parabola is biased towards whole pixels, or a parabola. Where one of the scores is not
        positive it is a parabola in any case. The maximum is not refined where a neighbour is not a candidate, such as at the
        border of the search range. True is the default, False keeps whole pixels.
    mask1, mask2 : array of bool and of shape (H, W), optional
        True where a pixel of the frame is valid, False where it is missing. Of the frames' kind, and of the size of the frame.
    points : array_like of shape (N, 2), optional
        Centres ``(y, x)`` in frame 1 of windows at irregular places, instead of a grid; ``step`` must be 1. Windows begin at
        whole pixels, at ``floor(centre - (window - 1) / 2 + 0.5)``, so that their own centres, `Match.y` and `Match.x`, are up
        to half a pixel from the points. They may reach beyond frame 1, where pixels are missing.
    offset : (array_like, array_like), optional
        Displacements (dy, dx) in whole pixels from which the search of each window starts, such as those of a coarser pass:
        each an int or of the grid's shape (H', W'), or (N,) for points. The result includes them. Among equal scores, the
        displacement nearest to the offset wins. NaN is refused: replace the displacement of a window without a match first.
        Each window is then computed by itself, which takes longer for windows at neighbouring pixels.
    consistency : bool, default False
        Also match each displaced window back from frame 2 to frame 1, with the reversed search: the left-right or
        forward-backward check. It fills `Match.consistency` and takes about as long again.
    variant : {"auto", "operator", "fft", "simd"}, default "auto"
        How sums of products are computed: by the correlation operator; by Fourier transforms of each window and its search area,
        which are fast where both are large; or, on a CPU, by kernels that LLVM compiles (they need llvmlite). The answers are
        equal but for rounding errors, and equal to the bit for grey frames of 8-bit integers. ``"auto"`` chooses by a cost model.
    progress : callable, optional
        Called from time to time with the fraction of the work that is done, from 0 to 1, possibly by another thread.

    Returns
    -------
    Match
        ``dx, dy, score, at_edge, peak_ratio, count`` of shape (H', W') with ``H' = (H - window) // step + 1`` and likewise W',
        and the window centres ``x, y``; for ``points``, all of shape (N,). The displacement is NaN and the score 0 where no
        displacement is a candidate.

    Raises
    ------
    TypeError
        A frame is not an array, its dtype is neither integer nor floating, the frames or masks are of different kinds, a mask is
        not bool, a size or displacement is not an int, ``search`` or ``offset`` is not a pair, points or offsets are not real
        numbers, ``subpixel`` is neither a bool nor a string, ``variant`` is not a string, ``consistency`` is not a bool, or
        ``progress`` is not callable.
    ValueError
        A frame's shape is not that of a grey or colour frame, it has no pixels, only one frame has colour, a mask's shape is not
        its frame's, the arrays are on different devices, a window of a grid does not fit into frame 1, the search range is
        reversed or reaches as far as a frame is large (with points or an offset: it is longer than both frames together),
        ``search=None`` for windows larger than frame 2 or too far apart, points or offsets of the wrong shape or not finite,
        offsets that are not whole, ``points`` with a ``step``, an unknown ``subpixel`` or ``variant``.
    NotImplementedError
        The variant cannot run; the message says why.

    See Also
    --------
    cupycorr.Match.valid : Return which displacements to trust.
    cupycorr.median_residual : Find displacements that do not fit to those around them.
    cupycorr.correlation_argmax : Find the best displacement of feature maps with channels.
    cupycorr.dask.match : The same for frames larger than memory.

    Notes
    -----
    A window has no texture if its variance could be a rounding error of its sums: at most ``12 eps sqrt(window area)`` of the
    mean square about the level near it (the median of the surrounding pixels that change), with eps = 2.2e-16. In 8- and 16-bit
    frames, only windows of one value have none.

    A fill value such as -9999 that is not NaN is a pixel like any other: pass a mask.

    References
    ----------
    .. [1] J. P. Lewis, "Fast normalized cross-correlation", Vision Interface, 1995.
    .. [2] M. Raffel et al., "Particle Image Velocimetry: A Practical Guide", 3rd ed., Springer, 2018, section 5.4.5.

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
    >>> found.valid(min_score=0.5, min_peak_ratio=1.2)[1, 2]
    np.True_

    Find a template, whose first pixel is at row 12 and column 34:

    >>> found = cupycorr.match(frame2[12:22, 34:44], frame2, window=10, search=None, subpixel=False)
    >>> found.dy.item(), found.dx.item()
    (12.0, 34.0)
    """
    frame1, frame2, mask1, mask2 = known_frames(frame1, frame2, mask1, mask2)
    wanted = measurement(frame1.shape, frame2.shape, window, search, step, subpixel, points, offset, consistency, variant)
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be callable, got progress={progress!r}")
    with current_device_of(frame1):
        return measured(Frame(frame1, mask1), Frame(frame2, mask2), wanted, progress)


def measured(
    frame1: Frame,
    frame2: Frame,
    wanted: Measurement,
    progress: Callable[[float], object] | None = None,
    way: Way | None = None,
) -> Match[Any]:
    """Return the field of a measurement; ``way`` is how windows are computed, by default the cheapest way."""
    started = wanted.started
    matcher = Matcher(frame1, frame2, wanted.window, wanted.search, wanted.fit, wanted.variant)
    report = progress or (lambda fraction: None)
    ways = 2 if wanted.consistency else 1
    field = matcher.field(started, lambda part: report(part / ways), way)
    xp, shape, distance = frame1.xp, wanted.windows.shape, None
    if wanted.consistency:
        each = started.one_by_one() if isinstance(started, Lattice) else started
        distance = distances(matcher, each, field, lambda part: report((1 + part) / ways)).reshape(shape)
    dx, dy, score, at_edge, peak_ratio, count = (values.reshape(shape) for values in field)
    if not isinstance(started, Lattice):
        dx = dx + xp.asarray(started.lefts2 - started.lefts1).reshape(shape)
        dy = dy + xp.asarray(started.tops2 - started.tops1).reshape(shape)
    y, x = map(xp.asarray, wanted.centres())
    return Match(dx, dy, score, x, y, at_edge, peak_ratio, count, distance)
