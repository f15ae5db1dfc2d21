"""The benchmark's own CUDA kernels, compiled by CuPy: the package's compiler takes none but the package's.

A file is written in the words of ``platform.cuh``, which goes before it, so that the suite can run it without a GPU.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from cupycorr._gpu import source
from cupycorr._gpu.device import import_cupy

FILES = ("lead.cu", "pixel_blocks.cu")  # each has one kernel, of the file's name


def text(file: str) -> str:
    """What is compiled for a file."""
    return f'{source.text("common/platform.cuh")}#line 1 "{file}"\n{Path(__file__).with_name(file).read_text("utf-8")}'


@lru_cache
def function(file: str) -> Any:
    """The file's kernel, loaded on the current device."""
    module = import_cupy().RawModule(code=text(file), options=("--std=c++17",), backend="nvrtc")
    return module.get_function(Path(file).stem)
