"""The files of CUDA C, and the text that is compiled for a kernel.

Knows files and nothing of CUDA. CuPy's cache of compiled kernels depends on the text that it is given and not on included files,
so our headers become part of the text; ``#line`` directives keep the file and line of an error message.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
    own_text
        The text that is compiled for a file that is not in `folder`, None for one that is.
    """

    file: str
    entry: str
    macros: tuple[tuple[str, str], ...] = ()
    own_text: str | None = field(default=None, repr=False)

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


def code(kernel: Kernel) -> str:
    """Return the text that is compiled for a kernel."""
    return text(kernel.file) if kernel.own_text is None else kernel.own_text


def text(file: str) -> str:
    """Return the text that is compiled for a file of `folder`, with the files of `folder` that it includes.

    Each included file replaces the first ``#include`` that names it. Every other ``#include`` stays as it is.
    """
    return _text(folder(), file)


@functools.cache
def _text(place: Path, file: str) -> str:
    if not (place / file).is_file():
        raise FileNotFoundError(f"there is no CUDA kernel file {file!r} in {place}")
    return _with_includes((place / file).read_text("utf-8"), f"{_FOLDER}/{file}", {f"{_FOLDER}/": place})


def user_text(written: str, name: str, beside: Path | None) -> str:
    """Return the text that is compiled for a kernel that is not in `folder`.

    Parameters
    ----------
    written
        The text that was written.
    name
        The name that error messages have.
    beside
        The folder whose files it may include, beside those of `folder`; None where there is none.
    """
    own = {} if beside is None else {"": beside}
    return _with_includes(written, name, {**own, f"{_FOLDER}/": folder()})


def _with_includes(written: str, shown: str, places: Mapping[str, Path]) -> str:
    """Return a text with the files that it includes; ``places`` has folders by the prefix that their files' names have."""
    return "\n".join(_inlined(written, shown, {shown}, places)) + "\n"


def _inlined(written: str, shown: str, seen: set[str], places: Mapping[str, Path]) -> Iterator[str]:
    """Yield the lines of a text and of the files that it includes; the names of these are added to ``seen``."""
    yield f'#line 1 "{shown}"'
    for number, line in enumerate(written.splitlines(), 1):
        found = _INCLUDE.match(line)
        prefix = next((each for each, place in places.items() if (place / found[1]).is_file()), None) if found else None
        if found and prefix is not None:
            included = f"{prefix}{found[1]}"
            if included not in seen:
                seen.add(included)
                yield from _inlined((places[prefix] / found[1]).read_text("utf-8"), included, seen, places)
            yield f'#line {number + 1} "{shown}"'
        else:
            yield "" if _ONCE.match(line) else line
