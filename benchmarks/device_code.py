"""The benchmark's own CUDA kernels, compiled by CuPy: the package's compiler takes only the package's files.

The files use the macros of ``common/platform.cuh``, which is put in front of them, so that the suite can emulate them.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from cupycorr._gpu import source
from cupycorr._gpu.device import import_cupy

FILES = ("lead.cu", "pixel_blocks.cu")  # each has one kernel, named as the file is


def text(file: str) -> str:
    """Return the source that is compiled for a file."""
    return f'{source.text("common/platform.cuh")}#line 1 "{file}"\n{Path(__file__).with_name(file).read_text("utf-8")}'


@lru_cache
def function(file: str) -> Any:
    """Return the file's kernel, loaded on the current device."""
    module = import_cupy().RawModule(code=text(file), options=("--std=c++17",), backend="nvrtc")
    return module.get_function(Path(file).stem)
