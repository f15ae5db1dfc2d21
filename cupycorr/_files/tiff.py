"""Reads TIFF with tifffile, which is imported where it is used: every integer and floating dtype, grey and colour, many pages.

tifffile decodes some compressions (LZW, JPEG, ...) only where imagecodecs is installed, and palettes and other colour spaces are
not its business. Pillow reads these pages, if it reads their dtype right.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .page import GDAL_NODATA, Page, native, nodata_of_tag, shown_bits
from .pillow import PillowFile

if TYPE_CHECKING:
    from tifffile import TiffPage

_ORIENTATION = 274  # tag
# The tag's value -> what turns the picture upright.
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda array: array,
    2: np.fliplr,
    3: lambda array: np.rot90(array, 2),
    4: np.flipud,
    5: lambda array: array.swapaxes(0, 1),
    6: lambda array: np.rot90(array, -1),
    7: lambda array: np.rot90(array, 2).swapaxes(0, 1),
    8: np.rot90,
}
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2  # values of the tag PhotometricInterpretation that are read here
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3}
_PREMULTIPLIED, _ALPHA = 1, 2  # kinds of extra samples
_BYTE_ORDER = "<" if sys.byteorder == "little" else ">"
_OTHER_BANDS = "the picture has further bands, which are not read"


class TiffPages:
    """A TIFF file; its pictures are its pages without reduced copies and masks, or the images of ImageJ's large stacks."""

    def __init__(self, path: Path) -> None:
        from tifffile import TiffFile

        self._path = path
        with _no_log():
            self._file = TiffFile(path)
            try:
                self._stack = self._one_page_for_all()
                pages = (self._page(index) for index in range(len(self._file.pages)))
                self._indices = [page.index for page in pages if not (page.is_reduced or page.is_mask)]
                if not self._indices:
                    raise ValueError("it has no pages")
            except BaseException:
                self._file.close()
                raise
        self.count = len(self._indices) if self._stack is None else len(self._stack)

    def close(self) -> None:
        self._stack = None
        self._file.close()

    def read(self, index: int) -> Page:
        with _no_log():
            if self._stack is not None:
                _check(self._page(0))
                return _read(self._page(0), self._stack[index])
            page = self._page(self._indices[index])
            _check(page)
            if page.photometric not in _COLOURS:
                return self._by_pillow(page.index)
            try:
                array = page.asarray()
            except MemoryError:
                raise
            except Exception as error:  # an unknown compression or damage: tifffile has no exception of its own for either
                if self._suits_pillow(page):
                    with suppress(Exception):  # tifffile's error says more than Pillow's
                        return self._by_pillow(page.index)
                if isinstance(error, ImportError):  # a decoder of newer Pythons
                    raise ValueError(f"{page.compression!r} requires the 'imagecodecs' package") from error
                raise
            return _read(page, array)

    def _suits_pillow(self, page: TiffPage) -> bool:
        """Return whether Pillow reads the dtype of a compressed page right.

        Pillow takes int8 and uint32 for uint8 and int32, and swaps the bytes of int16, int32 and float32 in the other byte order
        a second time. It opens no other dtype.
        """
        if page.dtype is None:
            return True
        swapped = self._file.byteorder != _BYTE_ORDER
        return page.dtype.itemsize <= 2 if page.dtype.kind in "bu" else page.dtype.itemsize > 1 and not swapped

    def _page(self, index: int) -> TiffPage:
        return cast("TiffPage", self._file.pages.get(index))  # a whole page, with all its tags

    def _one_page_for_all(self) -> np.ndarray | None:
        """Return the images (T, ...) that follow a file's only page without pages of their own; None if there are none."""
        is_stack = len(self._file.pages) == 1 and (self._file.is_imagej or self._file.is_shaped)
        if not is_stack or not self._file.series[0].is_truncated:
            return None
        series, page = self._file.series[0], self._page(0)
        if series.dataoffset is None or series.dtype is None:
            raise ValueError("its images have no pages and are not stored one after the other")
        dtype = series.dtype.newbyteorder(self._file.byteorder)
        images: np.ndarray = self._file.filehandle.memmap_array(dtype, series.shape, series.dataoffset)
        return images.reshape(-1, *page.shape)

    def _by_pillow(self, index: int) -> Page:
        file = PillowFile(self._path)
        try:
            return file.read(index)
        finally:
            file.close()


@contextmanager
def _no_log() -> Iterator[None]:
    """Keep tifffile's remarks about odd tags away from the terminal."""
    logger = logging.getLogger("tifffile")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _check(page: TiffPage) -> None:
    """Refuse what is no picture, such as a volume, before Pillow reads a part of it."""
    if page.dtype is not None and page.dtype.kind not in "biuf":
        raise ValueError(f"its values must be integers or floating, got {page.dtype}")
    if page.axes not in ("YX", "YXS", "SYX"):
        raise ValueError(f"its axes must be YX, YXS or SYX, got {page.axes}")


def _read(page: TiffPage, array: np.ndarray) -> Page:
    """Return the picture out of the values (H, W), (H, W, samples) or (samples, H, W) that the page stores."""
    samples = np.moveaxis(array, 0, -1) if page.axes == "SYX" else array.reshape(*array.shape[:2], -1)
    samples = native(_UPRIGHT.get(_tag(page, _ORIENTATION), _UPRIGHT[1])(samples))
    colours = _COLOURS[page.photometric]
    kinds = [int(kind) for kind in page.extrasamples]
    stored = samples[..., :colours] if colours > 1 else samples[..., 0]
    alpha, premultiplied = _alpha(samples[..., colours:], kinds)
    shown = _unmultiplied(stored, alpha) if alpha is not None and premultiplied else stored
    if page.photometric == _WHITE_IS_ZERO:
        shown = _negative(shown, page.bitspersample)
    others = samples.shape[2] - colours - (alpha is not None)
    transparent = None if alpha is None else np.equal(alpha, 0)
    notes = (_OTHER_BANDS,) if others else ()
    return Page(shown_bits(shown), stored, transparent, nodata_of_tag(_tag(page, GDAL_NODATA)), notes)


def _tag(page: TiffPage, code: int) -> Any:
    found = page.tags.get(code)
    return None if found is None else found.value


def _alpha(extra: np.ndarray, kinds: list[int]) -> tuple[np.ndarray | None, bool]:
    """Return the first extra sample that is alpha, and whether the colours are multiplied by it."""
    for index, kind in enumerate(kinds[: extra.shape[2]]):
        if kind in (_PREMULTIPLIED, _ALPHA):
            return extra[..., index], kind == _PREMULTIPLIED
    return None, False


def _unmultiplied(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return the colours that were multiplied by alpha, in their dtype; 0 where alpha is 0."""
    whole = values.dtype.kind in "iu"
    opaque = float(np.iinfo(values.dtype).max) if whole else 1.0
    divisor = np.where(alpha > 0, alpha, np.inf).astype(np.float64).reshape(*alpha.shape, *[1] * (values.ndim - 2))
    colours = values * (opaque / divisor)
    return (np.rint(colours).clip(0, opaque) if whole else colours).astype(values.dtype)


def _negative(values: np.ndarray, bits: int) -> np.ndarray:
    """Return the grey values of a picture whose 0 is white; signed and floating values, which have no black, are negated."""
    if values.dtype.kind == "b":
        return ~values
    white = values.dtype.type(2**bits - 1 if values.dtype.kind == "u" else 0)
    negative: np.ndarray = white - values
    return negative
