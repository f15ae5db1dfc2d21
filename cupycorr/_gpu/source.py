"""Where the CUDA C is, and the one text that is compiled for a kernel.

Knows files and nothing of CUDA. CuPy's cache of compiled kernels sees the text it is given and not what that includes, so headers
of ours go into the text itself; ``#line`` directives keep the file and line that an error message names.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FOLDER = "kernels_cu"
_INCLUDE = re.compile(r'\s*#\s*include\s*"([^"]+)"')
_ONCE = re.compile(r"\s*#\s*pragma\s+once\b")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One entry point of one file, configured by macros.

    Attributes
    ----------
    file
        Name of the file in `folder`, such as ``"common/sum_parts.cu"``.
    entry
        The ``extern "C"`` name of the function to launch.
    macros
        Names and the values they stand for.
    """

    file: str
    entry: str
    macros: tuple[tuple[str, str], ...] = ()

    def options(self) -> tuple[str, ...]:
        """The macros as a compiler takes them: ``("-DINPUT=float", ...)``."""
        return tuple(f"-D{name}={value}" for name, value in self.macros)


def folder() -> Path:
    """The folder of the kernels: in the package where it was installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    places = (package / _FOLDER, package.parent / _FOLDER)
    for place in places:
        if place.is_dir():
            return place
    looked = " nor ".join(str(place) for place in places)
    raise FileNotFoundError(f"cupycorr's CUDA kernels are missing, there is neither {looked}: install cupycorr again")


def files() -> list[str]:
    """Return the name of every file that kernels are compiled from, relative to `folder`."""
    return sorted(path.relative_to(folder()).as_posix() for path in folder().rglob("*.cu"))


def text(file: str) -> str:
    """What is compiled for a file of `folder`: itself, with the files of `folder` it includes where the ``#include`` was.

    Each goes in once, where it is first named. Every other ``#include`` stays as it is.
    """
    return _text(folder(), file)


@functools.cache
def _text(place: Path, file: str) -> str:
    if not (place / file).is_file():
        raise FileNotFoundError(f"there is no CUDA kernel file {file!r} in {place}")
    return "\n".join(_inlined(place, file, set())) + "\n"


def _inlined(place: Path, file: str, seen: set[str]) -> Iterator[str]:
    """The lines of a file, with those of the files it includes; each file is left in ``seen``."""
    seen.add(file)
    yield f'#line 1 "{_FOLDER}/{file}"'
    for number, line in enumerate((place / file).read_text("utf-8").splitlines(), 1):
        found = _INCLUDE.match(line)
        if found and (place / found[1]).is_file():
            if found[1] not in seen:
                yield from _inlined(place, found[1], seen)
            yield f'#line {number + 1} "{_FOLDER}/{file}"'
        else:
            yield "" if _ONCE.match(line) else line
