"""Build kernels, and the machine that runs them, with the system's g++.

Libraries are kept in a folder (``CUPYCORR_EMULATOR_CACHE``, or one in the user's cache) under a hash of their sources, so a
second run of the suite compiles nothing. Processes may share the folder: a library is renamed into place when it is complete.
Where ``CUPYCORR_EMULATOR_SANITIZE`` is set, everything is built with the address and undefined-behaviour sanitizers; the process
must then have been started by `sanitized`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
REQUIRED = ("CUPYCORR_REQUIRE_EMULATOR", "CUPYCORR_REQUIRE_SOFTWARE_CUDA")  # environment variables that ask for g++
HEADERS = ("emulator.hpp", "machine.hpp", "tensor_cores.hpp")
MACHINE = ("machine.cpp", "memory.cpp", "trace.cpp", "state.hpp", "../fibre/fibre.hpp", *HEADERS)

# As on a device, kernels may read memory as several types, and a product and a sum are fused only where the source says so. With
# -g1 an error can name the lines that led to it; -g, which describes variables too, takes half as long again. g++ does not know
# #pragma unroll.
FLAGS = (
    *("-std=c++17", "-fPIC", "-shared", "-g1", "-ffp-contract=off", "-fno-strict-aliasing"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
)
# Builds of a kernel with other macros define the same names, which must not be exchanged.
KERNEL_FLAGS = ("-O1", "-fvisibility=hidden", "-fno-gnu-unique", "-DCUPYCORR_EMULATED", f"-I{FOLDER}")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


class EmulationError(Exception):
    """The error of a kernel that does not build, or of a launch that did something forbidden; the text says what and where."""


def sanitizing() -> bool:
    return bool(os.environ.get("CUPYCORR_EMULATOR_SANITIZE"))


def require_compiler() -> None:
    """Skip the calling test, or module, where there is no g++; fail it where one of the variables ``REQUIRED`` is set."""
    import pytest

    if shutil.which("g++") is None:
        reason = "running kernels on the CPU needs g++"
        if any(map(os.environ.get, REQUIRED)):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason, allow_module_level=True)


def machine(flags: Sequence[str] = ()) -> Path:
    """Return the library that runs threads and checks memory, which is the same for all kernels."""
    sources = [str(FOLDER / name) for name in MACHINE if name.endswith(".cpp")]
    return _built("machine", ("-O2", *flags, *sources, "-lrt"), b"", MACHINE)


def kernel(text: str, entry: str, options: Sequence[str]) -> Path:
    """Return the library of one kernel, whose function ``emulator_launch_<entry>`` launches it."""
    whole = f'{text}\n#line 1 "emulator entry"\nEMULATOR_ENTRY({entry})\n'
    return _built(entry, (*KERNEL_FLAGS, *options, "-xc++", "-"), whole.encode(), HEADERS)


def _built(name: str, arguments: Sequence[str], text: bytes, files: Sequence[str]) -> Path:
    command = ("g++", *FLAGS, *(SANITIZE if sanitizing() else ()), *arguments)
    built_of = hashlib.sha256(repr((_version(), command)).encode() + text)
    for file in files:
        built_of.update((FOLDER / file).read_bytes())
    path = _folder() / f"{name}-{built_of.hexdigest()[:24]}.so"
    if not path.exists():
        _compile(command, text, path)
    return path


def _compile(command: Sequence[str], text: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="building-") as place:
        result = Path(place) / path.name
        done = subprocess.run((*command, "-o", result), input=text, capture_output=True, env=unsanitized_environment())
        if done.returncode:
            raise EmulationError(f"g++ cannot build {path.stem}: {' '.join(command)}\n{done.stderr.decode(errors='replace')}")
        result.replace(path)


def _folder() -> Path:
    given = os.environ.get("CUPYCORR_EMULATOR_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cupycorr-emulator"


@cache
def _version() -> str:
    return subprocess.run(("g++", "--version"), capture_output=True, text=True, env=unsanitized_environment()).stdout


def unsanitized_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def sanitized(command: Sequence[str]) -> subprocess.CompletedProcess:
    """Run a command with kernels that are built with sanitizers; the first finding ends it."""
    library = subprocess.run(("g++", "-print-file-name=libasan.so"), capture_output=True, text=True, check=True).stdout.strip()
    settings = {
        "CUPYCORR_EMULATOR_SANITIZE": "1",
        "LD_PRELOAD": library,  # must come before everything else that allocates
        "PYTHONMALLOC": "malloc",  # so that every array has ends of its own
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)


def run_sanitized(*arguments: str) -> subprocess.CompletedProcess:
    """Run pytest with these arguments, with sanitized kernels and tests of every marker."""
    return sanitized((sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "", *arguments))
