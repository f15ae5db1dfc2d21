"""Reads pictures: the values of their pixels, and which pixels are missing.

This module knows Pillow's modes and the ways in which a file marks missing pixels; it must not know the command line. Values keep
the dtype in which Pillow reads them, so that 16-bit and floating pictures keep their precision. Pillow belongs to the ``demo``
extra and is imported where it is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

# Pillow's mode -> the mode that the picture is converted to; other modes (CMYK, YCbCr, ...) become RGB.
_CONVERSIONS: dict[str, str] = {
    **{mode: mode for mode in ("L", "RGB", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")},
    "1": "L",
    **dict.fromkeys(("LA", "La"), "LA"),
    **dict.fromkeys(("P", "PA", "RGBA", "RGBa"), "RGBA"),
}

# Modes whose last channel is not a colour.
_WITH_EXTRA_CHANNEL = ("LA", "La", "PA", "RGBA", "RGBa", "RGBX")

_GDAL_NODATA = 42113  # TIFF tag: the value of missing pixels, as text


def read_picture(path: Path, nodata: float | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the first picture of a file, and find its missing pixels.

    Parameters
    ----------
    path
        Any file that Pillow reads.
    nodata
        The value of missing pixels, instead of the one in the TIFF tag GDAL_NODATA. It is compared in the dtype of the pixels:
        with every channel of a colour, and with the index of a palette colour.

    Returns
    -------
    pixels : array, shape (H, W) or (H, W, 3)
        Palette colours are looked up. NaN stays.
    valid : array of bool, shape (H, W), or None
        False where a pixel is transparent (alpha is 0) or has the value ``nodata``; None if there is no such pixel.

    Raises
    ------
    ValueError
        The file cannot be read as a picture.
    """
    with _opened(path) as image:
        shown, missing = _shown(image)
        value = _nodata_tag(image) if nodata is None else nodata
        if value is not None:
            missing |= _equal(_stored(image), value)
    return shown, ~missing if missing.any() else None


def read_mask(path: Path) -> np.ndarray:
    """Read a picture as a mask (H, W): True where a channel is neither 0 nor NaN and the pixel is not transparent.

    Raises
    ------
    ValueError
        The file cannot be read as a picture.
    """
    with _opened(path) as image:
        shown, transparent = _shown(image)
    nonzero: np.ndarray = (shown != 0) & ~np.isnan(shown)
    valid: np.ndarray = _over_channels(np.any, nonzero) & ~transparent
    return valid


def same_channels(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give a grey picture three equal channels if the other one is coloured."""
    if first.ndim == second.ndim:
        return first, second
    first, second = (image if image.ndim == 3 else np.dstack([image] * 3) for image in (first, second))
    return first, second


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture, and name the file in the error if anything goes wrong while it is open."""
    from PIL import Image

    try:
        # Decoders warn about odd metadata and large sizes, and NumPy about values beyond float32; none of these matters here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image.load()
                yield image
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise ValueError(f"cannot read {str(path)!r} as a picture: {error}") from error


def _shown(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Return the grey values or colours that the picture shows, and the mask (H, W) of its completely transparent pixels."""
    pixels = np.asarray(image.convert(_CONVERSIONS.get(image.mode, "RGB")))
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.ndim == 2 or pixels.shape[2] == 3:
        key = image.info.get("transparency")  # PNG may name one grey value or colour that is transparent
        return pixels, np.zeros(pixels.shape[:2], dtype=bool) if key is None else _equal(pixels, key)
    colours, alpha = pixels[..., :-1], pixels[..., -1]
    return np.ascontiguousarray(colours[..., 0] if colours.shape[2] == 1 else colours), np.equal(alpha, 0)


def _stored(image: Image.Image) -> np.ndarray:
    """Return the values that the file stores, without alpha; palette indices stay what they are."""
    values = np.asarray(image)
    return values[..., :-1] if image.mode in _WITH_EXTRA_CHANNEL else values


def _nodata_tag(image: Image.Image) -> float | None:
    """Return the number in the TIFF tag GDAL_NODATA, or None if there is none."""
    text = getattr(image, "tag_v2", {}).get(_GDAL_NODATA)
    try:
        return None if text is None else float(str(text).strip("\0 "))
    except ValueError:
        return None


def _equal(pixels: np.ndarray, value: float | tuple[int, ...]) -> np.ndarray:
    """Return the mask (H, W) of the pixels that have this value, or these values, in all channels."""
    equal: np.ndarray = pixels == value  # NumPy rounds a Python float to the dtype of floating pixels, beyond float32 to infinity
    return _over_channels(np.all, equal)


def _over_channels(reduce: Callable[..., Any], mask: np.ndarray) -> np.ndarray:
    """Reduce (H, W, channels) to (H, W) by ``np.any`` or ``np.all``; a mask without channels stays."""
    if mask.ndim == 2:
        return mask
    reduced: np.ndarray = reduce(mask, axis=-1)
    return reduced
