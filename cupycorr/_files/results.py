"""Writes fields of displacements: one function for each ending of a file's name.

A file appears under its name when it is complete. Until then it is a hidden file in the same folder whose name ends in ``.part``.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from .. import __version__, _pictures
from .frames import Picture
from .pairs import Pair
from .settings import Settings

if TYPE_CHECKING:
    from ..motion import Match


@dataclass(frozen=True, eq=False)
class Result:
    """The field of a pair, and what it was made from."""

    field: Match[np.ndarray]
    pair: Pair
    frame1: Picture
    settings: Settings


class NotWritten(Exception):  # noqa: N818 - it says what happened
    """A file cannot be written; the text says which and why."""


def summary(result: Result) -> str:
    """Describe a field in one line: its grid, its displacements and its scores."""
    field = result.field
    rows, columns = field.score.shape
    grid = f"{rows} x {columns} windows"
    origin = f"first centre at x {field.x[0]:.15g}, y {field.y[0]:.15g}, step {result.settings.step}"
    matched = np.isfinite(field.dx)
    if not matched.any():
        return f"{grid}, {origin}, no matches"
    length = np.median(np.hypot(field.dx[matched], field.dy[matched]))
    unmatched = "" if matched.all() else f" ({1 - matched.mean():.1%} without a match)"
    edge = np.count_nonzero(field.at_edge & matched)
    at_edge = f", {edge} at the edge of the search" if edge else ""
    motions = f"median |motion| {length:.2f} px, mean score {field.score[matched].mean():.3f}"
    return f"{grid}{unmatched}{at_edge}, {origin}, {motions}"


# One writer for each ending ------------------------------------------------------------------------------------------


def _write_npz(file: BinaryIO, result: Result) -> None:
    field = result.field
    arrays = {name: getattr(field, name) for name in ("x", "y", "dx", "dy", "score", "peak_ratio", "at_edge", "count")}
    made_from: dict[str, Any] = {"frame1": str(result.pair.first), "frame2": str(result.pair.second), "cupycorr": __version__}
    # np.savez of old versions leaves the archive open after an error, so that Python complains on stderr when the disk is full.
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in {**arrays, **result.settings.parameters(), **made_from}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)


def _write_npy(file: BinaryIO, result: Result) -> None:
    field = result.field
    array = np.stack([field.dx, field.dy, field.score], axis=-1).astype(np.float32)
    # NumPy writes into a real file by itself, and its error then does not say that the disk is full.
    np.save(cast(BinaryIO, SimpleNamespace(write=file.write)), array)


def _write_csv(file: BinaryIO, result: Result) -> None:
    field = result.field
    y, x = np.meshgrid(field.y, field.x, indexing="ij")
    columns = [each.ravel() for each in (x, y, field.dx, field.dy, field.score)]
    formats = ("%.1f", "%.1f", "%.6f", "%.6f", "%.6f")
    np.savetxt(file, np.stack(columns, axis=1), formats, delimiter=",", header="x,y,dx,dy,score", comments="")


_FLO_MAGIC = 202021.25  # its four bytes read PIEH
_FLO_UNKNOWN = 1e10  # readers take anything above 1e9 as unknown


def _write_flo(file: BinaryIO, result: Result) -> None:
    flow = result.field.flow
    known = np.isfinite(flow).all(axis=-1, keepdims=True)
    rows, columns = flow.shape[:2]
    file.write(np.array(_FLO_MAGIC, "<f4").tobytes())
    file.write(np.array([columns, rows], "<i4").tobytes())
    file.write(np.where(known, flow, _FLO_UNKNOWN).astype("<f4").tobytes())


def _write_png(file: BinaryIO, result: Result) -> None:
    settings = result.settings
    if settings.arrows:
        frame, valid = result.frame1.pixels, result.frame1.valid
        _pictures.arrow_picture(file, result.field, frame, valid, settings.window, settings.step)
    else:
        _pictures.motion_picture(file, result.field, settings.window, settings.search)


WRITERS: dict[str, Callable[[BinaryIO, Result], None]] = {
    ".png": _write_png,
    ".npz": _write_npz,
    ".csv": _write_csv,
    ".npy": _write_npy,
    ".flo": _write_flo,
}
PICTURE = ".png"  # the ending that needs matplotlib


def write(path: Path, file: BinaryIO, result: Result) -> None:
    """Write a field to an open file in the format of the ending of its path.

    Raises
    ------
    NotWritten
        The file cannot be written, such as on a full disk.
    """
    try:
        WRITERS[path.suffix.lower()](file, result)
        file.flush()
    except OSError as error:
        raise _not_written(path, error) from error


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` when it is complete, and is removed if anything goes wrong.

    It is opened at once, so that a folder that cannot be written to is reported before any work.

    Raises
    ------
    NotWritten
        The file cannot be made, written or renamed.
    """
    real = Path(os.path.realpath(path))  # a link is kept, and the file it leads to is replaced
    part = real.with_name(f".{real.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, real)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def _not_written(path: Path, error: OSError) -> NotWritten:
    return NotWritten(f"cannot write {str(path)!r}: {error.strerror or error}")
