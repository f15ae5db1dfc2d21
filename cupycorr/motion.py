"""Block matching: from two frames to a displacement field, by zero-mean normalised cross-correlation over a search range.

This module has the public functions and checks their arguments; `_motion` does the work. Array functions are looked up on the
arrays' own module, so NumPy and CuPy run the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, SupportsIndex, overload

import numpy as np

from ._arguments import IntOrPair, Pair, finite_number, integer, pair
from ._arrays import FIELD, Array, ArrayT, array_kind, array_module, current_device_of, known_arrays, to_numpy
from ._motion.consistency import distances
from ._motion.costs import VARIANTS
from ._motion.frames import LUMA, Frame
from ._motion.geometry import Lattice, Search, SingleWindows, Windows
from ._motion.matching import Matcher
from ._motion.outliers import median_residual as median_residual
from ._motion.peaks import FITS, GAUSSIAN


@dataclass(frozen=True, slots=True, eq=False)
class Match(Generic[ArrayT]):
    """A displacement field, as `match` returns it: arrays of the frames' kind, float64 unless said otherwise.

    Lengths are in pixels. The fields have the shape (H', W') of the grid of windows, or (N,) for N ``points``.

    Attributes
    ----------
    dx, dy : array, shape (H', W') or (N,)
        The point ``(y, x)`` of frame 1 is at ``(y + dy, x + dx)`` in frame 2: positive is to the right and down. NaN where no
        match was found.
    score : array, shape (H', W') or (N,)
        Correlation coefficient of the best whole-pixel displacement, in [-1, 1]; 0 where no match was found.
    x : array, shape (W',) or (N,)
    y : array, shape (H',) or (N,)
        Window centres in frame 1: ``index * step + (window - 1) / 2``; for ``points``, the centre of each window.
    at_edge : array of bool, shape (H', W') or (N,)
        True where a displacement next to the best one, along an axis that is searched, is beyond the search range or is not a
        candidate. The true maximum may lie there, and the displacement is not refined along that axis.
    peak_ratio : array, shape (H', W') or (N,)
        The score divided by the highest score outside the 3 x 3 neighbourhood of the best displacement: the signal-to-noise ratio
        of PIV. Infinity where no other score is positive, as for a search of at most 3 x 3 displacements; NaN where no match was
        found.
    count : array of int64, shape (H', W') or (N,)
        Number of pixels compared at the best displacement: those of the window that are present in both frames. 0 where no match
        was found.
    consistency : array, shape (H', W') or (N,), or None
        Distance from a window's place to where matching back from frame 2 leads; NaN where either way found no match. None unless
        ``match`` was called with ``consistency=True``.
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
        array of bool, shape (H', W') or (N,)

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
                if dx.ndim != 2:
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
    frame1, frame2 : array, shape (H, W) or (H, W, 3)
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
    mask1, mask2 : array of bool, shape (H, W), optional
        True where a pixel of the frame is valid, False where it is missing. Of the frames' kind, and of the size of the frame.
    points : array_like, shape (N, 2), optional
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
    frame1, frame2, mask1, mask2 = _known_frames(frame1, frame2, mask1, mask2)
    fit = _fit(subpixel)
    size = pair("window", window, 1)
    if not isinstance(consistency, (bool, np.bool_)):
        raise TypeError(f"consistency must be a bool, got consistency={consistency!r}")
    if not isinstance(variant, str):
        raise TypeError(f"variant must be a string, got variant={variant!r}")
    if variant not in ("auto", *VARIANTS):
        raise ValueError(f"variant must be one of 'auto', {', '.join(map(repr, VARIANTS))}, got variant={variant!r}")
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be callable, got progress={progress!r}")
    windows = _lattice(frame1.shape, size, window, step) if points is None else _windows_at(points, size, step)
    starts = None if offset is None else _offsets(offset, windows)
    started: Windows = windows
    if starts is not None:
        started = (windows.one_by_one() if isinstance(windows, Lattice) else windows).displaced(*starts)
    ranges = _search(search, started, size, frame1.shape, frame2.shape)
    with current_device_of(frame1):
        matcher = Matcher(Frame(frame1, mask1), Frame(frame2, mask2), size, ranges, fit, variant)
        return _match(matcher, windows, started, bool(consistency), (lambda fraction: None) if progress is None else progress)


def _match(
    matcher: Matcher,
    windows: Windows,
    started: Windows,
    consistency: bool,
    progress: Callable[[float], object],
) -> Match[Any]:
    """Return the field of windows; ``started`` are the same windows with the displacements that their searches start from."""
    xp = matcher.frame1.xp
    shape = windows.shape
    ways = 2 if consistency else 1
    field = matcher.field(started, lambda part: progress(part / ways))
    distance = None
    if consistency:
        each = started.one_by_one() if isinstance(started, Lattice) else started
        distance = distances(matcher, each, field, lambda part: progress((1 + part) / ways)).reshape(shape)
    dx, dy, score, at_edge, peak_ratio, count = (values.reshape(shape) for values in field)
    if not isinstance(started, Lattice):
        dx = dx + xp.asarray(started.lefts2 - started.lefts1).reshape(shape)
        dy = dy + xp.asarray(started.tops2 - started.tops1).reshape(shape)
    tops, lefts = windows.axes() if isinstance(windows, Lattice) else (windows.tops1, windows.lefts1)
    y, x = (xp.asarray(first) + (size - 1) / 2 for first, size in zip((tops, lefts), matcher.window, strict=True))
    return Match(dx, dy, score, x, y, at_edge, peak_ratio, count, distance)


# Arguments ---------------------------------------------------------------------------------------------------------------------


def _known_frames(frame1: Any, frame2: Any, mask1: Any, mask2: Any) -> tuple[Any, ...]:
    """Check the frames and masks, and return them with the mask of a masked array joined to the mask given."""
    masked = {name: frame for name, frame in (("mask1", frame1), ("mask2", frame2)) if isinstance(frame, np.ma.MaskedArray)}
    frame1, frame2 = (frame.data if isinstance(frame, np.ma.MaskedArray) else frame for frame in (frame1, frame2))
    given = {name: mask for name, mask in (("mask1", mask1), ("mask2", mask2)) if mask is not None}
    for name, mask in given.items():
        if isinstance(mask, np.ma.MaskedArray):
            raise TypeError(f"{name} must not be a masked array, whose mask would be lost: pass {name}.filled(False)")
    frame1, frame2, *known = known_arrays(FIELD, frame1=frame1, frame2=frame2, **given)
    masks = dict(zip(given, known, strict=True))
    _check_frames(frame1, frame2)
    for name, frame in (("mask1", frame1), ("mask2", frame2)):
        if name in masks:
            mask = masks[name]
            if mask.dtype.kind != "b":
                raise TypeError(f"{name} must be an array of bools, True where a pixel is valid, got {name}.dtype={mask.dtype}")
            if mask.shape != frame.shape[:2]:
                of_frame = name.replace("mask", "frame")
                got = f"got {name}.shape={mask.shape}, {of_frame}.shape={frame.shape}"
                raise ValueError(f"{name} must have the height and width of {of_frame}, {got}")
        if name in masked:
            valid: Any = ~np.ma.getmaskarray(masked[name])
            valid = valid if valid.ndim == 2 else valid.all(axis=2)
            masks[name] = valid & masks[name] if name in masks else valid
    return frame1, frame2, masks.get("mask1"), masks.get("mask2")


def _check_frames(frame1: Any, frame2: Any) -> None:
    for name, frame in (("frame1", frame1), ("frame2", frame2)):
        if frame.dtype.kind not in "iuf" and frame.dtype.name != "bfloat16":
            raise TypeError(f"{name} must have an integer or floating dtype, got {name}.dtype={frame.dtype.name}")
        if frame.ndim != 2 and (frame.ndim != 3 or frame.shape[2] != len(LUMA)):
            raise ValueError(f"{name} must be grey (H, W) or colour (H, W, 3), got {name}.shape={frame.shape}")
        if 0 in frame.shape:
            raise ValueError(f"{name} must have pixels, got {name}.shape={frame.shape}")
    if frame1.ndim != frame2.ndim:
        got = f"got frame1.shape={frame1.shape}, frame2.shape={frame2.shape}"
        raise ValueError(f"frame1 and frame2 must both be grey or both be colour, {got}")


def _fit(subpixel: Any) -> str | None:
    """Return the name of the curve to fit; None for whole pixels."""
    if isinstance(subpixel, (bool, np.bool_)):
        return GAUSSIAN if subpixel else None
    if not isinstance(subpixel, str):
        raise TypeError(f"subpixel must be a bool or the name of a curve, got subpixel={subpixel!r}")
    if subpixel not in FITS:
        raise ValueError(f"subpixel must be a bool or one of {', '.join(map(repr, FITS))}, got subpixel={subpixel!r}")
    return subpixel


def _lattice(shape: tuple[int, ...], size: Pair, window: Any, step: Any) -> Lattice:
    steps = pair("step", step, 1)
    if size[0] > shape[0] or size[1] > shape[1]:
        raise ValueError(f"window must fit into frame1 of {shape[0]} x {shape[1]} pixels, got window={window!r}")
    return Lattice((0, 0), steps, ((shape[0] - size[0]) // steps[0] + 1, (shape[1] - size[1]) // steps[1] + 1))


def _windows_at(points: Any, size: Pair, step: Any) -> SingleWindows:
    """Return the windows at points."""
    if pair("step", step, 1) != (1, 1):
        raise ValueError(f"step must be 1 for points, got step={step!r}")
    centres = _host_numbers("points", points)
    if centres.ndim != 2 or centres.shape[1] != 2:
        raise ValueError(f"points must be centres (y, x) of shape (N, 2), got points.shape={centres.shape}")
    first = np.floor(centres - (np.array(size) - 1) / 2 + 0.5).astype(np.int64)
    return SingleWindows(first[:, 0], first[:, 1], first[:, 0], first[:, 1])


_FARTHEST = 2**31  # pixels: positions beyond no frame can have


def _host_numbers(name: str, values: Any) -> np.ndarray:
    """Return finite numbers of reasonable size as a float64 NumPy array."""
    try:
        array = np.asarray(to_numpy(values) if array_kind(values) == "cupy" else values)
    except ValueError as error:  # lists of different lengths
        raise TypeError(f"{name} must be an array of real numbers: {error}") from error
    if isinstance(values, np.ma.MaskedArray) or array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be an array of real numbers, got {name} of {type(values).__name__}, dtype {array.dtype}")
    array = array.astype(np.float64)
    if not (abs(array) < _FARTHEST).all():
        raise ValueError(f"{name} must be finite and below 2^31 in magnitude, got {array[~(abs(array) < _FARTHEST)].ravel()[0]}")
    return array


def _offsets(offset: Any, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Return the displacements that the windows' searches start from, int64 (N,) each."""
    shape = windows.shape
    if isinstance(offset, (tuple, list)) or (array_kind(offset) and offset.ndim and len(offset) == 2):
        fields = [_host_numbers("offset", each) for each in offset]
    else:
        fields = []
    if not fields:
        raise TypeError(f"offset must be a pair (dy, dx) of ints or arrays, got {type(offset).__name__}")
    if len(fields) != 2:
        raise ValueError(f"offset must be a pair (dy, dx) of ints or arrays, got {len(fields)} of them")
    if any(each.ndim and each.shape != shape for each in fields):
        got = " and ".join(str(each.shape) for each in fields)
        raise ValueError(f"offset must have the shape of the windows, {shape}, got {got}")
    if any((each != np.rint(each)).any() for each in fields):
        raise ValueError("offset must be in whole pixels, got fractions: round them, as numpy.rint does")
    dy, dx = (np.broadcast_to(each, shape).astype(np.int64).ravel() for each in fields)
    return dy, dx


def _search(search: Any, windows: Windows, size: Pair, shape1: tuple[int, ...], shape2: tuple[int, ...]) -> Search:
    """Check the search range."""
    if search is None:
        return _every_place(windows, size, shape1, shape2)
    vertical, horizontal = (_search_range(each, search) for each in _two(search, search))
    for low, high in (vertical, horizontal):
        if low > high:
            raise ValueError(f"search must run from low to high, got search={search!r}")
    for (low, high), size1, size2 in zip((vertical, horizontal), shape1, shape2, strict=False):
        if isinstance(windows, SingleWindows):
            if high - low >= size1 + size2:
                raise ValueError(
                    f"search must be shorter than both frames together, {size1 + size2} pixels, got search={search!r}"
                )
        elif -low >= size1 or high >= size2:
            sizes = " and ".join(f"{height} x {width}" for height, width, *_ in (shape1, shape2))
            raise ValueError(f"search must be smaller than the frames of {sizes} pixels, got search={search!r}")
    return Search((vertical[0], horizontal[0]), (vertical[1] - vertical[0] + 1, horizontal[1] - horizontal[0] + 1))


def _every_place(windows: Windows, size: Pair, shape1: tuple[int, ...], shape: tuple[int, ...]) -> Search:
    """Return the displacements that move some window to a place completely inside frame 2."""
    if not windows.count:
        return Search((0, 0), (1, 1))
    axes = windows.axes() if isinstance(windows, Lattice) else (windows.tops2, windows.lefts2)
    first, last = ([int(reduce(each)) for each in axes] for reduce in (np.min, np.max))
    for axis in (0, 1):
        if size[axis] > shape[axis]:
            raise ValueError(
                f"search=None needs windows that fit into frame2 of {shape[0]} x {shape[1]} pixels, got {size[0]} x {size[1]}"
            )
        if last[axis] - first[axis] >= shape1[axis] + shape[axis]:
            raise ValueError(f"search=None needs windows near the frames, got windows {last[axis] - first[axis]} pixels apart")
    down, across = (shape[axis] - size[axis] - first[axis] + last[axis] + 1 for axis in (0, 1))
    return Search((-last[0], -last[1]), (down, across))


def _search_range(each: Any, search: Any) -> Pair:
    low, high = (integer("search", value, _SEARCH, search) for value in _two(each, search))
    return low, high


_SEARCH = "((dy_lo, dy_hi), (dx_lo, dx_hi)) in whole pixels, or None"


def _two(values: Any, search: Any) -> Any:
    if not isinstance(values, (tuple, list)):
        raise TypeError(f"search must be {_SEARCH}, got search={search!r}")
    if len(values) != 2:
        raise ValueError(f"search must be {_SEARCH}, got search={search!r}")
    return values
