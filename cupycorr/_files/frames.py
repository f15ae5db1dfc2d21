"""Reads frames from any kind of file, with their missing pixels.

The kind of a file is told by its first bytes: NumPy's arrays, TIFF, or what Pillow knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from .npy import NpyFile
from .page import Page, PageFile, equal, over_channels, reading
from .pillow import PillowFile
from .tiff import TiffPages

# The first bytes of a file -> what opens it; Pillow opens all others.
_OPENERS: dict[bytes, Callable[[Path], PageFile]] = {
    b"\x93NUMPY": NpyFile,
    b"II*\0": TiffPages,
    b"MM\0*": TiffPages,
    b"II+\0": TiffPages,  # TIFF of more than 4 GiB
    b"MM\0+": TiffPages,
}


class Frame(NamedTuple):
    """The place of a frame: a file and the number of a page in it, and a name for results.

    The page is None for a file of which nothing but its first page is wanted.
    """

    path: Path
    page: int | None = None
    name: str = ""

    def __str__(self) -> str:
        return str(self.path) if self.page is None else f"{self.path}[{self.page}]"


@dataclass(frozen=True, eq=False)
class Picture:
    """The pixels (H, W) or (H, W, 3) of a frame, and the mask (H, W) of its valid pixels; None if all are valid.

    A pixel is missing if it is transparent or has the value for missing pixels; NaN stays. ``notes`` says what was not read as it
    is, in whole sentences without the file's name.
    """

    pixels: np.ndarray
    valid: np.ndarray | None
    notes: tuple[str, ...] = ()


def page_count(path: Path) -> int:
    """Return the number of frames in a file.

    Raises
    ------
    ValueError
        The file cannot be read as a picture.
    """
    with reading(path):
        file = _opened(path)
        file.close()
    return file.count


def read_mask(path: Path) -> np.ndarray:
    """Read the first frame of a file as a mask (H, W): True where a channel is neither 0 nor NaN and alpha is not 0.

    Raises
    ------
    ValueError
        The file cannot be read as a picture.
    """
    with reading(path):
        file = _opened(path)
        try:
            page = file.read(0)
        finally:
            file.close()
    nonzero: np.ndarray = (page.pixels != 0) & ~np.isnan(page.pixels)
    valid = over_channels(np.any, nonzero)
    return valid if page.transparent is None else valid & ~page.transparent


def same_channels(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give a grey picture three equal channels if the other one is coloured."""
    if first.ndim == second.ndim:
        return first, second
    first, second = (image if image.ndim == 3 else np.dstack([image] * 3) for image in (first, second))
    return first, second


class FrameReader:
    """Reads frames, a few at a time.

    The files and the frames of the last call stay open and in memory, because the next pair of a series shares a frame or a file
    with this one.

    Parameters
    ----------
    nodata
        The value of missing pixels, instead of the one that a file gives in its TIFF tag GDAL_NODATA. It is compared in the dtype
        of the pixels: with every channel of a colour, and with the index of a palette colour.
    """

    def __init__(self, nodata: float | None = None) -> None:
        self._nodata = nodata
        self._files: dict[Path, PageFile] = {}
        self._pictures: dict[Frame, Picture] = {}

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._keep(())

    def read(self, *frames: Frame) -> tuple[Picture, ...]:
        """Read frames.

        Raises
        ------
        ValueError
            A file cannot be read as a picture; the text names it.
        """
        self._keep(frames)
        for frame in frames:
            if frame not in self._pictures:
                with reading(frame.path):
                    self._pictures[frame] = self._read(frame)
        return tuple(self._pictures[frame] for frame in frames)

    def _keep(self, frames: tuple[Frame, ...]) -> None:
        """Forget everything that none of these frames needs."""
        paths = {frame.path for frame in frames}
        for path in self._files.keys() - paths:
            self._files.pop(path).close()
        for frame in self._pictures.keys() - set(frames):
            del self._pictures[frame]

    def _read(self, frame: Frame) -> Picture:
        if frame.path not in self._files:
            self._files[frame.path] = _opened(frame.path)
        file = self._files[frame.path]
        page = file.read(frame.page or 0)
        missing = _missing(page, page.nodata if self._nodata is None else self._nodata)
        others = (f"the file has {file.count} pages, and the first one is read",) if frame.page is None and file.count > 1 else ()
        return Picture(page.pixels, None if missing is None or not missing.any() else ~missing, page.notes + others)


def _opened(path: Path) -> PageFile:
    with open(path, "rb") as file:
        begin = file.read(max(map(len, _OPENERS)))
    opener = next((opener for magic, opener in _OPENERS.items() if begin.startswith(magic)), PillowFile)
    return opener(path)


def _missing(page: Page, nodata: float | None) -> np.ndarray | None:
    """Return the mask (H, W) of missing pixels; None if nothing marks any."""
    if nodata is None:
        return page.transparent
    if page.stored is None:
        raise ValueError(f"missing pixels {nodata} cannot be found, because its 16-bit colours are read with 8 bits")
    marked = equal(page.stored, nodata)
    return marked if page.transparent is None else marked | page.transparent
