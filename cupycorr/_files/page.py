"""A picture as its file stores it, before missing pixels are looked for. Every kind of file is read into this."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True, eq=False)
class Page:
    """One picture of a file, turned upright.

    Attributes
    ----------
    pixels : array of shape (H, W) or (H, W, 3)
        The values or colours that the picture shows, in native byte order. Palette colours are looked up.
    stored : array of shape (H, W) or (H, W, channels), or None
        The values that a number for missing pixels is compared with: indices of a palette, and 0 or 1 of one bit. None if they
        were read with fewer bits than the file has.
    transparent : array of bool and of shape (H, W), or None
        True where alpha is 0; None if there is no alpha.
    nodata : float, int or None
        The number that the file itself gives to missing pixels.
    notes : tuple of str
        What the reading changed, in whole sentences without the file's name.
    """

    pixels: np.ndarray
    stored: np.ndarray | None
    transparent: np.ndarray | None = None
    nodata: float | None = None
    notes: tuple[str, ...] = ()


class PageFile(Protocol):
    """An open file with pictures; `tiff`, `npy` and `pillow` have one for their kinds."""

    count: int

    def read(self, index: int) -> Page:
        """Read one picture; any exception means that the file cannot be read."""
        ...

    def close(self) -> None: ...


def number(text: str) -> float:
    """Return the number that a text stands for, an int where it is an integer of 64 bits, which a float may not hold.

    Raises
    ------
    ValueError
        The text is no number.
    """
    try:
        value = int(text)
    except ValueError:
        return float(text)
    return value if -(2**63) <= value < 2**64 else float(text)


def nodata_of_tag(text: object) -> float | None:
    """Return the number in the TIFF tag GDAL_NODATA, or None if there is none."""
    try:
        return None if text is None else number(str(text).strip("\0 "))
    except ValueError:
        return None


GDAL_NODATA = 42113  # TIFF tag: the value of missing pixels, as text


def native(array: np.ndarray) -> np.ndarray:
    """Return the array in this machine's byte order."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def shown_bits(array: np.ndarray) -> np.ndarray:
    """Return bools as the 8-bit values 0 and 255, and other values as they are."""
    return array if array.dtype.kind != "b" else array.astype(np.uint8) * np.uint8(255)


def equal(pixels: np.ndarray, value: float | tuple[int, ...]) -> np.ndarray:
    """Return the mask (H, W) of the pixels that have this value, or these values, in all channels."""
    if isinstance(value, float) and pixels.dtype.kind in "iu" and value.is_integer():
        value = int(value)  # NumPy compares integers exactly, and rounds large ones to compare them with a float
    if isinstance(value, int) and pixels.dtype.kind in "iu" and not _can_hold(pixels.dtype, value):
        return np.zeros(pixels.shape[:2], bool)  # NumPy 2.0 to 2.2.0 may crash when it compares such pixels that have gaps
    same: np.ndarray = pixels == value  # NumPy rounds a Python float to the dtype of floating pixels, beyond it to infinity
    return over_channels(np.all, same)


def _can_hold(dtype: np.dtype, value: int) -> bool:
    """Return whether a value is in the range of an integer dtype."""
    limits = np.iinfo(dtype)
    return bool(limits.min <= value <= limits.max)


def over_channels(reduce: Callable[..., Any], mask: np.ndarray) -> np.ndarray:
    """Reduce (H, W, channels) to (H, W) by ``np.any`` or ``np.all``; a mask without channels stays."""
    if mask.ndim == 2:
        return mask
    reduced: np.ndarray = reduce(mask, axis=-1)
    return reduced


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the file in the error if anything goes wrong, and hide the warnings of decoders.

    Decoders warn about odd metadata, and NumPy about values beyond the pixels' dtype; neither matters here.

    Raises
    ------
    ValueError
        The file cannot be read as a picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MemoryError:
        raise
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise ValueError(f"cannot read {str(path)!r} as a picture: {_reason(error)}") from error


def _reason(error: Exception) -> object:
    """Return what an error says; errors that are raised by accident say nothing without their name."""
    if isinstance(error, OSError):
        return error.strerror or error
    return error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
