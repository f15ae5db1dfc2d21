"""Memory for results on the CPU: that of results that no longer exist is used again.

The system maps the memory of a new array page by page while it is first written to, which can take longer than to compute what is
written. So the memory of a result is kept when no view of it is left, and a later result of about the same size gets it. This
module knows no operator.
"""

from __future__ import annotations

import math
import os
import threading

import numpy as np

SMALLEST = 2**17  # bytes: the C library keeps the memory of smaller arrays itself
RETAINED = 32 * 2**20  # bytes that are kept
SLACK = 8  # a result gets memory of at most its size and one part in so many beyond it


class _Kept:
    """The memory of results that no longer exist, the oldest first, up to `RETAINED` bytes.

    A result may die at any moment, even while its thread is in `take`. So nothing here waits for the lock: if it is held, memory
    is released instead of kept, and new memory is allocated instead of reused.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buffers: list[np.ndarray] = []
        self.nbytes = 0

    def take(self, size: int) -> np.ndarray | None:
        """Return the smallest buffer that has ``size`` bytes and few beyond them, or None."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            most = size + size // SLACK
            fitting = [(buffer.nbytes, at) for at, buffer in enumerate(self._buffers) if size <= buffer.nbytes <= most]
            if not fitting:
                return None
            buffer = self._buffers.pop(min(fitting)[1])
            self.nbytes -= buffer.nbytes
            return buffer
        finally:
            self._lock.release()

    def keep(self, buffer: np.ndarray) -> None:
        """Keep a buffer, and release the oldest ones beyond the limit."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._buffers.append(buffer)
            self.nbytes += buffer.nbytes
            while self.nbytes > RETAINED:
                self.nbytes -= self._buffers.pop(0).nbytes
        finally:
            self._lock.release()


_kept = _Kept()


def _forget() -> None:
    """Start anew in a forked child: another thread of the parent may have held the lock."""
    global _kept
    _kept = _Kept()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


class _Owner:
    """The owner of a result's memory, which every view of the result holds."""

    __slots__ = ("__array_interface__", "_buffer")

    def __init__(self, buffer: np.ndarray) -> None:
        self._buffer = buffer
        self.__array_interface__ = buffer.__array_interface__

    def __del__(self) -> None:
        del self.__array_interface__  # an owner that comes back to life has no memory any more
        _kept.keep(self._buffer)


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return a new C-contiguous array without values, whose memory is used again when no view of it is left."""
    size = math.prod(shape) * dtype.itemsize
    if not SMALLEST <= size <= RETAINED:
        return np.empty(shape, dtype)
    buffer = _kept.take(size)
    owner = _Owner(np.empty(size, np.uint8) if buffer is None else buffer)
    return np.asarray(owner)[:size].view(dtype).reshape(shape)
