"""Reads pictures with Pillow, which is imported where it is used: PNG, JPEG, GIF, BMP, PNM and its other formats.

Values keep the dtype in which Pillow reads them. Pillow has no mode for colours of 16 bits: they are read with 8, and a note says
so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .page import GDAL_NODATA, Page, equal, native, nodata_of_tag

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

_NARROWED = "16-bit colours are read with 8 bits; .npy and uncompressed TIFF keep them"


class PillowFile:
    """A picture file that is open in Pillow; its pictures are those of an animation or of a file with several pages."""

    def __init__(self, path: Path) -> None:
        from PIL import Image

        with _of_any_size():
            self._image = Image.open(path)
            self.count: int = getattr(self._image, "n_frames", 1)

    def close(self) -> None:
        self._image.close()

    def read(self, index: int) -> Page:
        from PIL import ImageOps

        image = self._image
        with _of_any_size():
            image.seek(index)
            narrowed = _is_narrowed(image)
            image.load()
            nodata = nodata_of_tag(getattr(image, "tag_v2", {}).get(GDAL_NODATA))
            upright = ImageOps.exif_transpose(image)
        pixels, transparent = _shown(upright)
        stored = None if narrowed else _stored(upright)
        return Page(pixels, stored, transparent, nodata, (_NARROWED,) if narrowed else ())


@contextmanager
def _of_any_size() -> Iterator[None]:
    """Let Pillow read a picture of any size: it takes large ones for attacks, and the user chose the file."""
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _is_narrowed(image: Image.Image) -> bool:
    """Return whether Pillow is going to read 16-bit colours, or 16-bit grey values with alpha, with 8 bits."""
    if image.mode not in ("RGB", "RGBA", "LA"):
        return False
    # The name of a decoder, and what it is told: the layout of the file, such as "RGB;16B", or for PPM the largest value.
    told = [(decoder, *(args if isinstance(args, tuple) else (args,))) for decoder, _, _, args in getattr(image, "tile", [])]
    return any(words[0] == "SGI16" or ";16" in str(words) or (words[0] == "ppm" and words[2] > 255) for words in told)


def _shown(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the grey values or colours that the picture shows, and the mask (H, W) of its completely transparent pixels."""
    pixels = native(np.asarray(image.convert(_CONVERSIONS.get(image.mode, "RGB"))))
    if pixels.ndim == 2 or pixels.shape[2] == 3:
        key = image.info.get("transparency")  # PNG may name one grey value or colour that is transparent
        return pixels, None if key is None else equal(pixels, key)
    colours, alpha = pixels[..., :-1], pixels[..., -1]
    return np.ascontiguousarray(colours[..., 0] if colours.shape[2] == 1 else colours), np.equal(alpha, 0)


def _stored(image: Image.Image) -> np.ndarray:
    """Return the values that the file stores, without alpha; palette indices stay what they are."""
    values = np.asarray(image)
    return values[..., :-1] if image.mode in _WITH_EXTRA_CHANNEL else values
