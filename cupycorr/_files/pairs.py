"""Finds the frames that patterns name, and pairs them."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from .frames import Frame, page_count


class Pair(NamedTuple):
    """Two frames to match."""

    first: Frame
    second: Frame

    @property
    def name(self) -> str:
        """The name of the pair's results, without an ending."""
        return f"{self.first.name}-{self.second.name}"


def frames_of(patterns: Sequence[str]) -> list[Frame]:
    """Return the frames that paths and patterns name: one of each file, or all pages of a single file that can be read.

    Paths stay in their order. The files of one pattern are sorted by name, where numbers are sorted by their value: frame 2 comes
    before frame 10.

    Raises
    ------
    ValueError
        A path or pattern names no file.
    """
    paths = [path for pattern in patterns for path in _paths_of(pattern)]
    if len(paths) != 1:
        return [Frame(path, None, _name(path)) for path in paths]
    (path,) = paths
    try:
        count = page_count(path)
    except ValueError:
        count = 1  # its pair is going to fail, and does not stop the others
    if count == 1:
        return [Frame(path, None, _name(path))]
    digits = len(str(count - 1))
    return [Frame(path, page, f"{_name(path)}.{page:0{digits}}") for page in range(count)]


def consecutive(frames: Sequence[Frame]) -> list[Pair]:
    """Pair each frame with the next one."""
    return [Pair(*pair) for pair in pairwise(frames)]


def joined(firsts: Sequence[Frame], seconds: Sequence[Frame]) -> list[Pair]:
    """Pair the first frames with the second ones in their order.

    Raises
    ------
    ValueError
        There are not equally many of both.
    """
    if len(firsts) != len(seconds):
        names = f"the first are {_ends(firsts)}, the second {_ends(seconds)}"
        raise ValueError(f"--pairs needs equally many first and second frames, got {len(firsts)} and {len(seconds)}: {names}")
    return [Pair(*pair) for pair in zip(firsts, seconds, strict=True)]


def check_names(pairs: Sequence[Pair]) -> None:
    """Refuse pairs whose results would have one name.

    Raises
    ------
    ValueError
        Two pairs have the same name.
    """
    ((name, count),) = Counter(pair.name for pair in pairs).most_common(1)
    if count > 1:
        one, other = [pair for pair in pairs if pair.name == name][:2]
        got = f"got {one.first} with {one.second} and {other.first} with {other.second}"
        raise ValueError(f"the results of two pairs would have the same name, {name!r}: {got}")


def _paths_of(pattern: str) -> list[Path]:
    if Path(pattern).is_file():
        return [Path(pattern)]
    if Path(pattern).is_dir():
        raise ValueError(f"{pattern!r} is a folder: name its files, such as {str(Path(pattern) / '*.tif')!r}")
    found = _files_of(pattern) or _files_of(pattern.replace("[", "[[]"))  # a name may have brackets too
    if not found:
        raise ValueError(f"there is no file {pattern!r}")
    return sorted(found, key=_natural)


def _name(path: Path) -> str:
    """Return the name of a frame for results, without its ending unless that is the number of the frame, as in ``run.0001``."""
    return path.name if path.suffix[1:].isdigit() else path.stem


def _files_of(pattern: str) -> list[Path]:
    return [Path(path) for path in glob.glob(pattern, recursive=True) if Path(path).is_file()]


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return the key that sorts names with numbers by the numbers' values."""
    words = re.findall(r"([0-9]+)|([^0-9]+)", str(path))
    key = [(int(digits), "") if digits else (-1, text) for digits, text in words]
    return [*key, (-2, str(path))]  # a01 and a1 have an order too


def _ends(frames: Sequence[Frame]) -> str:
    return str(frames[0]) if len(frames) == 1 else f"{frames[0]} to {frames[-1]}"
