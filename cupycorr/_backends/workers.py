"""The threads of the CPU backends: how many, one pool, BLAS held to one thread each while they work, and this machine's rates.

Tasks write disjoint parts of the result and never wait for each other, so the result does not depend on who ran which. The
calling thread takes tasks too: a call makes progress even while other calls keep the pool busy, and may be nested.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

WORKSPACE = 64 * 2**20  # bytes of scratch one call may hold, all its threads together

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def thread_count() -> int:
    """Threads a call may use: ``CUPYCORR_NUM_THREADS``, else the cores this process may run on.

    Raises
    ------
    ValueError
        The variable is set to something that is not a positive integer.
    """
    asked = os.environ.get("CUPYCORR_NUM_THREADS")
    if asked is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not asked.isascii() or not asked.isdigit() or int(asked) < 1:
        raise ValueError(f"CUPYCORR_NUM_THREADS must be a positive integer, got CUPYCORR_NUM_THREADS={asked!r}")
    return int(asked)


def run(task: Callable[[Any], None], items: Iterable[Any], threads: int) -> None:
    """Call ``task`` on every item from up to ``threads`` threads, this one among them; the first error is raised here."""
    items = list(items)
    waiting = iter(items)
    failed = threading.Event()

    def work() -> None:
        # Sums that overflow are infinities and that is the answer; NumPy's warning would name our line, not the caller's.
        with np.errstate(all="ignore"):
            while not failed.is_set():
                with _lock:
                    item = next(waiting, _DONE)
                if item is _DONE:
                    return
                try:
                    task(item)
                except BaseException:
                    failed.set()
                    raise

    helpers = min(threads, len(items)) - 1
    futures = [_threads(threads).submit(work) for _ in range(helpers)] if helpers > 0 else []
    try:
        work()
    finally:
        # A helper that has not begun finds nothing to do, and must not be waited for behind other calls' work.
        errors = [future.exception() for future in futures if not future.cancel()]
    for error in errors:
        if error is not None:
            raise error


_DONE = object()


def _threads(threads: int) -> ThreadPoolExecutor:
    """The one pool, remade when the number of threads asked for changes."""
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size != threads:
            # The old pool is dropped, not shut down: another call may be about to submit to it.
            _pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="cupycorr")
            _pool_size = threads
        return _pool


def _forget_threads() -> None:
    """A forked child has none of its parent's threads and may have inherited a held lock."""
    global _pool, _pool_size, _lock, _limits, _limit_depth
    _pool, _pool_size, _lock = None, 0, threading.Lock()
    _limits, _limit_depth = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


# Scratch -------------------------------------------------------------------------------------------------------------

RETAINED = WORKSPACE // 2  # bytes of scratch kept for the next call: fresh pages cost more than most calls' arithmetic

_free: list[np.ndarray] = []


@contextmanager
def scratch(shape: tuple[int, ...], dtype: np.dtype) -> Iterator[np.ndarray]:
    """An uninitialised array, from memory that is used again by later calls."""
    size = math.prod(shape) * dtype.itemsize
    with _lock:
        fitting = [index for index, buffer in enumerate(_free) if size <= buffer.nbytes]
        best = min(fitting, key=lambda index: _free[index].nbytes, default=None)
        buffer = None if best is None else _free.pop(best)
    if buffer is None:
        buffer = np.empty(size, np.uint8)
    try:
        yield buffer[:size].view(dtype).reshape(shape)
    finally:
        with _lock:
            _free.append(buffer)
            while sum(kept.nbytes for kept in _free) > RETAINED:
                _free.pop(0)


# BLAS ----------------------------------------------------------------------------------------------------------------

_limits: Any = None
_limit_depth = 0


@lru_cache(maxsize=1)
def _blas_controller() -> Any | None:
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    found = ThreadpoolController().select(user_api="blas")
    return found if found.lib_controllers else None


def blas_threads() -> int:
    """Threads that may call BLAS at once: several only where BLAS's own threads can be held back (threadpoolctl)."""
    return thread_count() if _blas_controller() is not None else 1


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Hold BLAS to one thread, so that our threads (or our only one) do not each start its own.

    BLAS's setting is global: the first call in saves it, the last one out restores it.
    """
    global _limits, _limit_depth
    controller = _blas_controller()
    if controller is None:
        yield
        return
    with _lock:
        _limit_depth += 1
        if _limit_depth == 1:
            _limits = controller.limit(limits=1)
    try:
        yield
    finally:
        with _lock:
            _limit_depth -= 1
            if _limit_depth == 0:
                _limits.restore_original_limits()
                _limits = None


# Rates ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MachineRates:
    """What this machine does at best: matrix products in flop/s, copies in bytes/s read and written."""

    float32_rate: float
    float64_rate: float
    bandwidth: float


@lru_cache(maxsize=1)
def machine_rates() -> MachineRates:
    """Measure the rates, once per process (about 50 ms)."""

    def product(dtype: type) -> float:
        left = np.ones((768, 768), dtype)
        out = np.empty_like(left)
        return 2 * 768**3 / _best(lambda: np.matmul(left, left, out=out))

    source = np.ones(2**25, np.uint8)
    target = np.empty_like(source)
    copied = 2 * source.nbytes / _best(lambda: np.copyto(target, source))
    return MachineRates(product(np.float32), product(np.float64), copied)


def _best(work: Callable[[], Any], repeats: int = 4) -> float:
    """Seconds of the fastest of some runs: the others were disturbed."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)
