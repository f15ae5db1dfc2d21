"""Scratch memory for the kernels: rows that begin at cache lines, and copies of images with the padding that kernels read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .._cpu import workers
from .._cpu.llvm import address
from . import row_kernel

_ALIGNED = 8  # float64 values of a cache line
_ITEM = 8  # bytes of a float64


@contextmanager
def padded_copies(*images: Any, tables: int = 0) -> Iterator[Sequence[np.ndarray]]:
    """Return a context with copies (h, w) of images (1, h, w) in rows that have padding, and memory for so many tables."""
    rows, columns = max(each.shape[1] for each in images), max(each.shape[2] for each in images)
    with aligned_rows((len(images) + tables) * rows, columns + row_kernel.PADDING) as memory:
        arrays = list(memory.reshape(-1, rows, memory.shape[1]))
        for array, image in zip(arrays, images, strict=False):
            array[: image.shape[1], : image.shape[2]] = image[0]
            array[: image.shape[1], image.shape[2] :] = 0
        yield arrays


@contextmanager
def aligned_rows(rows: int, columns: int) -> Iterator[np.ndarray]:
    """Return a context with an uninitialised array of at least so many columns, whose rows begin at cache lines."""
    # With an odd number of cache lines per row, neighbouring rows are in different sets of a cache.
    length = _ALIGNED * (-(-columns // _ALIGNED) | 1)
    with workers.scratch((rows * length + _ALIGNED,), np.dtype(np.float64)) as memory:
        begin = -(address(memory) // _ITEM) % _ALIGNED
        yield memory[begin : begin + rows * length].reshape(rows, length)
