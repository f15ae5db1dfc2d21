"""Large results in huge pages, which the system maps in far fewer steps than small ones."""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from typing import Any

import numpy as np

from .llvm import address

LARGE = 2**22  # bytes: NumPy asks for its own arrays from this size on
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)  # only Linux has it


def prefer_huge_pages(array: np.ndarray) -> None:
    """Ask the system to back the memory of a new result with huge pages, as NumPy does for its own large arrays.

    The memory must be without gaps. Nothing happens where the array is small, or the system has no huge pages or refuses.
    """
    if array.nbytes < LARGE or _ADVICE is None:
        return
    begin = -(-address(array) // mmap.PAGESIZE) * mmap.PAGESIZE
    _madvise()(begin, address(array) + array.nbytes - begin, _ADVICE)


@cache
def _madvise() -> Any:
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
