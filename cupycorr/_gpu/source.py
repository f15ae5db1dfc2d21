"""The files of CUDA C, and the text that is compiled for a kernel.

Knows files and nothing of CUDA. CuPy's cache of compiled kernels depends on the text that it is given and not on included files,
so our headers become part of the text; ``#line`` directives keep the file and line of an error message.
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
    """An entry point of a file, configured by macros.

    Attributes
    ----------
    file
        Name of the file in `folder`, such as ``"common/sum_parts.cu"``.
    entry
        The name of the function, which is declared ``extern "C"``.
    macros
        The names of macros and their values.
    """

    file: str
    entry: str
    macros: tuple[tuple[str, str], ...] = ()

    def options(self) -> tuple[str, ...]:
        """Return the macros as compiler options: ``("-DINPUT=float", ...)``."""
        return tuple(f"-D{name}={value}" for name, value in self.macros)


def folder() -> Path:
    """Return the folder of the kernels: inside the package if it was installed from a wheel, beside it in a checkout."""
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
    """Return the text that is compiled for a file of `folder`, with the files of `folder` that it includes.

    Each included file replaces the first ``#include`` that names it. Every other ``#include`` stays as it is.
    """
    return _text(folder(), file)


@functools.cache
def _text(place: Path, file: str) -> str:
    if not (place / file).is_file():
        raise FileNotFoundError(f"there is no CUDA kernel file {file!r} in {place}")
    return "\n".join(_inlined(place, file, set())) + "\n"


def _inlined(place: Path, file: str, seen: set[str]) -> Iterator[str]:
    """Yield the lines of a file and of the files that it includes; the names of all of them are added to ``seen``."""
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
