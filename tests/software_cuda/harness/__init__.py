"""Translated kernels on a memory of a few arrays, without the library's driver: what tests of the translator alone need."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from .. import builder

HERE = Path(__file__).resolve().parent
SOURCES = (*sorted((HERE.parent / "kernel").glob("*.cpp")), *sorted(HERE.glob("*.cpp")))
OTHERS = (HERE.parent / "library" / "memory.hpp", HERE.parents[1] / "support" / "fibre" / "fibre.hpp")
SONAME = "libsoftware_cuda_harness.so.1"  # by which translated modules find the library, whatever file it was loaded from
COMMAND = (
    *("g++", "-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fvisibility=hidden"),
    *("-fno-strict-aliasing", "-ffp-contract=off"),
)


@dataclass(frozen=True)
class Outcome:
    failure: int  # of the driver, 0 where there is none
    report: str


@cache
def folder() -> Path:
    """Return the folder in which everything is kept that is built for these tests."""
    given = os.environ.get("CUPYCORR_SOFTWARE_CUDA_CACHE")
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(given) if given else cache_home / "cupycorr-software-cuda").absolute() / "harness"


@cache
def library() -> Path:
    """Return the shared object that runs kernels, built if there is none of these sources."""
    headers = sorted((HERE.parent / "kernel").glob("*.hpp"))
    version = subprocess.run(("g++", "--version"), capture_output=True, check=True).stdout
    hashed = hashlib.sha256(version + repr(COMMAND).encode())
    for path in (*SOURCES, *headers, *OTHERS):
        hashed.update(path.read_bytes())
    name = f"libharness-{hashed.hexdigest()[:24]}.so"
    path = folder() / name
    if path.exists():
        return path
    folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder(), prefix="building-") as place:
        objects = [Path(place) / f"{number}.o" for number in range(len(SOURCES))]
        running = [
            subprocess.Popen((*COMMAND, "-c", source, "-o", made), stderr=subprocess.PIPE, text=True)
            for source, made in zip(SOURCES, objects, strict=True)
        ]
        for each in running:
            _, errors = each.communicate(timeout=builder.SECONDS)
            if each.returncode:
                raise builder.BuildError(errors)
        made = Path(place) / name
        link = ("g++", "-shared", *objects, "-o", made, f"-Wl,-soname,{SONAME}", "-ldl")
        subprocess.run(link, check=True, timeout=builder.SECONDS)
        made.replace(path)
    return path


@cache
def _loaded() -> ctypes.CDLL:
    return ctypes.CDLL(str(library()))


@cache
def build(ptx: str) -> Path:
    """Return the shared object of a module."""
    return builder.build(ptx, library(), folder() / "modules")


def run(
    ptx: str,
    name: str,
    parameters: Sequence[np.ndarray | np.generic],
    *,
    grid: tuple[int, ...] = (1, 1, 1),
    block: tuple[int, ...] = (1, 1, 1),
    shared: int = 0,
    backwards: bool = False,
    unset: Sequence[np.ndarray] = (),
) -> Outcome:
    """Run a kernel of a module on arrays, which it may touch, and scalars.

    Parameters
    ----------
    unset
        Those of the arrays in which nobody has stored, so that a load of them is reported.
    """
    path = build(ptx)
    loaded = _loaded()
    loaded.harness_forget_memory()
    packed = bytearray()
    for each in parameters:
        is_array = isinstance(each, np.ndarray) and each.ndim > 0
        if is_array:
            stored = not any(each is other for other in unset)
            loaded.harness_add_memory(ctypes.c_void_p(each.ctypes.data), ctypes.c_uint64(each.nbytes), int(stored))
        value = np.uint64(each.ctypes.data) if is_array else each
        packed += bytes(-len(packed) % value.dtype.itemsize) + value.tobytes()
    report = ctypes.create_string_buffer(4096)
    sizes = [(ctypes.c_uint * 3)(*each, *(1,) * (3 - len(each))) for each in (grid, block)]
    failure = loaded.harness_run(
        str(path).encode(), name.encode(), *sizes, shared, bytes(packed), int(backwards), report, len(report)
    )
    if failure < 0:
        raise builder.BuildError(report.value.decode())
    return Outcome(failure, report.value.decode())
