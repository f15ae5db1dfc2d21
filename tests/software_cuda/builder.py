"""PTX text to a shared object of translated kernels, which is kept in a folder for later processes.

The name of a shared object is a hash of everything that it is made of: the PTX without what changes nothing (comments, the
target), the translator, the header that translated code includes, and the compiler. Processes may share the folder, and threads
may build at once: a shared object is renamed into place when it is complete.
"""

from __future__ import annotations

import functools
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .translator import translate

HERE = Path(__file__).resolve().parent
HEADERS = HERE / "kernel"
# Most of the time of a small kernel is the compiler's, and -O1 takes three times as long as -O0. As in PTX, memory may be read as
# several types, integers wrap around, and a product and a sum are fused only where it says so.
COMMAND = (
    *("g++", "-std=c++20", "-O0", "-w", "-fPIC", "-shared", "-nostdlib", "-fvisibility=hidden", f"-I{HEADERS}"),
    *("-fwrapv", "-fno-strict-aliasing", "-ffp-contract=off"),
    *("-fno-exceptions", "-fno-rtti", "-fno-asynchronous-unwind-tables", "-fno-stack-protector", "-fcf-protection=none"),
)
SECONDS = 1800  # for one compilation, which even a busy machine never takes

_NOT_HASHED = re.compile(r"//[^\n]*|/\*.*?\*/|^\s*\.(?:target|version)\b[^\n]*", re.S | re.M)


class BuildError(Exception):
    """The error of a translated module that the compiler refuses; the text has what the compiler says."""


def builder(prepared: Any) -> Callable[[str], Path]:
    """Return the function that builds PTX with the library and in the folder that were prepared."""
    return functools.partial(build, library=prepared.library, folder=prepared.modules)


def build(ptx: str, library: Path, folder: Path) -> Path:
    """Return the path of the shared object of a module.

    Parameters
    ----------
    ptx
        The module as NVRTC writes it.
    library
        The shared object that runs kernels. The result is linked with it, and finds it by its soname.
    folder
        Where shared objects are kept; it is made if it does not exist.

    Raises
    ------
    TranslationError
        If there is a statement of PTX that the translator does not know.
    BuildError
        If the compiler refuses the translation.
    """
    path = folder / f"{_key(ptx)}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _compile(translate(ptx), library, path)
    return path


def _key(ptx: str) -> str:
    hashed = hashlib.sha256(_ingredients())
    hashed.update(_NOT_HASHED.sub("", ptx).encode())
    return hashed.hexdigest()[:32]


@functools.cache
def _ingredients() -> bytes:
    """Return what every shared object is made of besides its PTX."""
    sources = [*sorted((HERE / "translator").rglob("*.py")), HEADERS / "translated.hpp", HEADERS / "module.hpp"]
    version = subprocess.run(("g++", "--version"), capture_output=True, check=True).stdout
    flags = [word for word in COMMAND if not word.startswith("-I")]
    return b"\0".join([version, repr(flags).encode(), *(path.read_bytes() for path in sources)])


def _compile(text: str, library: Path, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="building-") as place:
        source, result = Path(place) / "module.cpp", Path(place) / path.name
        source.write_text(text)
        done = subprocess.run((*COMMAND, source, library, "-o", result), capture_output=True, text=True, timeout=SECONDS)
        if done.returncode:
            raise BuildError(f"g++ cannot compile a translated module:\n{done.stderr[:4000]}")
        result.replace(path)
