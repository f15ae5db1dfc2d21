"""The arguments of `match`: checked once, and everything that they say but the pixels in a `Measurement`.

A `Measurement` divides into parts that are computed on their own, such as those of chunks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .._arguments import Pair, integer, pair
from .._arrays import FIELD, array_kind, known_arrays, to_numpy
from .costs import VARIANTS
from .frames import LUMA
from .geometry import Lattice, Search, SingleWindows, Windows
from .peaks import FITS, GAUSSIAN


@dataclass(frozen=True, slots=True)
class Measurement:
    """A call of `match` without its frames.

    Attributes
    ----------
    window
        The size of the windows.
    search
        The search range.
    fit
        The curve that fractions of a pixel are found by; None leaves the displacements whole.
    variant
        The variant, or ``"auto"``.
    windows
        The windows in frame 1.
    started
        The same windows with the displacements that their searches start from.
    consistency
        True if each displaced window is matched back.
    """

    window: Pair
    search: Search
    fit: str | None
    variant: str
    windows: Windows
    started: Windows
    consistency: bool

    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the centres y and x of the windows in frame 1: those of the grid's rows and columns, or of each window."""
        windows = self.windows
        tops, lefts = windows.axes() if isinstance(windows, Lattice) else (windows.tops1, windows.lefts1)
        return tops + (self.window[0] - 1) / 2, lefts + (self.window[1] - 1) / 2

    def part(self, at: tuple[slice, slice] | np.ndarray) -> Measurement:
        """Return the measurement of some rows and columns of a grid, or of the points of these indices."""
        if isinstance(self.windows, SingleWindows):
            assert isinstance(self.started, SingleWindows)
            assert isinstance(at, np.ndarray)
            return replace(self, windows=self.windows.part(at), started=self.started.part(at))
        assert isinstance(at, tuple)
        windows = self.windows.part(*at)
        if not isinstance(self.started, SingleWindows):
            return replace(self, windows=windows, started=windows)
        rows, columns = (np.arange(each.start, each.stop) for each in at)
        numbers = rows[:, None] * self.windows.counts[1] + columns
        return replace(self, windows=windows, started=self.started.part(numbers.ravel()))


def measurement(
    shape1: tuple[int, ...],
    shape2: tuple[int, ...],
    window: Any,
    search: Any,
    step: Any,
    subpixel: Any,
    points: Any,
    offset: Any,
    consistency: Any,
    variant: Any,
) -> Measurement:
    """Check the arguments of `match` for frames of these shapes, errors as documented there."""
    fit = _fit(subpixel)
    size = pair("window", window, 1)
    if not isinstance(consistency, (bool, np.bool_)):
        raise TypeError(f"consistency must be a bool, got consistency={consistency!r}")
    if not isinstance(variant, str):
        raise TypeError(f"variant must be a string, got variant={variant!r}")
    if variant not in ("auto", *VARIANTS):
        raise ValueError(f"variant must be one of 'auto', {', '.join(map(repr, VARIANTS))}, got variant={variant!r}")
    windows = _lattice(shape1, size, window, step) if points is None else _windows_at(points, size, step)
    started: Windows = windows
    if offset is not None:
        starts = _offsets(offset, windows)
        started = (windows.one_by_one() if isinstance(windows, Lattice) else windows).displaced(*starts)
    ranges = _search(search, started, size, shape1, shape2)
    return Measurement(size, ranges, fit, variant, windows, started, bool(consistency))


def known_frames(frame1: Any, frame2: Any, mask1: Any, mask2: Any) -> tuple[Any, ...]:
    """Check the frames and masks, and return them with the mask of a masked array joined to the mask given."""
    masked = {name: frame for name, frame in (("mask1", frame1), ("mask2", frame2)) if isinstance(frame, np.ma.MaskedArray)}
    frame1, frame2 = (frame.data if isinstance(frame, np.ma.MaskedArray) else frame for frame in (frame1, frame2))
    given = {name: mask for name, mask in (("mask1", mask1), ("mask2", mask2)) if mask is not None}
    for name, mask in given.items():
        if isinstance(mask, np.ma.MaskedArray):
            raise TypeError(f"{name} must not be a masked array, whose mask would be lost: pass {name}.filled(False)")
    frame1, frame2, *known = known_arrays(FIELD, frame1=frame1, frame2=frame2, **given)
    masks = dict(zip(given, known, strict=True))
    check_frames(frame1, frame2)
    for name, frame in (("mask1", frame1), ("mask2", frame2)):
        if name in masks:
            check_mask(name, masks[name], frame, frame.shape[:2])
        if name in masked:
            valid: Any = ~np.ma.getmaskarray(masked[name])
            valid = valid if valid.ndim == 2 else valid.all(axis=2)
            masks[name] = valid & masks[name] if name in masks else valid
    return frame1, frame2, masks.get("mask1"), masks.get("mask2")


def check_mask(name: str, mask: Any, frame: Any, shape: tuple[int, ...]) -> None:
    """Refuse the mask of a frame if its dtype is not bool or it has not this shape."""
    if mask.dtype.kind != "b":
        raise TypeError(f"{name} must be an array of bools, True where a pixel is valid, got {name}.dtype={mask.dtype}")
    if mask.shape != shape:
        of_frame = name.replace("mask", "frame")
        got = f"got {name}.shape={mask.shape}, {of_frame}.shape={frame.shape}"
        raise ValueError(f"{name} must have the height and width of {of_frame}, {got}")


def check_frames(frame1: Any, frame2: Any) -> None:
    """Refuse frames of a wrong dtype or shape."""
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
