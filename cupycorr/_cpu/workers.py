"""Threads and memory for computing on the CPU: thread counts, helper threads, scratch memory and the rates of this machine.

Nothing here knows an operator or what a task computes. Tasks write disjoint regions of a result and never wait for each other, so
that a result does not depend on which thread ran which task. The calling thread runs tasks too: a call makes progress while other
calls keep the helpers busy, may be nested, and needs no helper where no thread can be started.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from .._sharing import fork_safe_lock
from . import blas_limits, cores

WORKSPACE = 64 * 2**20  # bytes of scratch memory that a call may hold, summed over its threads

_lock = fork_safe_lock()


# Thread counts -------------------------------------------------------------------------------------------------------


class _Preference(NamedTuple):
    """A preferred number of threads, and the name of the setting that it comes from."""

    threads: int
    source: str


class _ThreadState(threading.local):
    """The number of threads that calls from this thread prefer, or None."""

    preferred: int | None = None


_state = _ThreadState()
_team: int | None = None  # set by `team_of`


def thread_count() -> int:
    """Return how many threads a call may use: the preferred number, but no more than can run at once.

    The preferred number is ``CUPYCORR_NUM_THREADS``, else ``OMP_NUM_THREADS``, else that of the front end (`prefer_threads`).
    Without one, a call uses all threads that can run at once: one for each core, limited by the CPU quota of the control group.

    Raises
    ------
    ValueError
        ``CUPYCORR_NUM_THREADS`` is set to something that is not a positive integer.
    """
    if _team is not None:
        return _team
    preference, (most, _) = _preference(), cores.ceiling()
    return most if preference is None else min(preference.threads, most)


def thread_rule() -> str:
    """Return the number of threads a call may use and the rule that decides on it, as a text."""
    preference, (most, limit) = _preference(), cores.ceiling()
    if preference is None:
        return f"{most}: {limit}"
    if preference.threads <= most:
        return f"{preference.threads}: {preference.source}"
    return f"{most}: {limit}; {preference.source} asks for {preference.threads}"


def _preference() -> _Preference | None:
    own = os.environ.get("CUPYCORR_NUM_THREADS")
    if own is not None:
        threads = _positive_integer(own)
        if threads is None:
            raise ValueError(f"CUPYCORR_NUM_THREADS must be a positive integer, got CUPYCORR_NUM_THREADS={own!r}")
        return _Preference(threads, "CUPYCORR_NUM_THREADS")
    outermost = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # OpenMP lists one number for each nested level
    threads = _positive_integer(outermost.strip())
    if threads is not None:
        return _Preference(threads, "OMP_NUM_THREADS")
    return None if _state.preferred is None else _Preference(_state.preferred, "the front end")


def _positive_integer(text: str) -> int | None:
    """Return the positive integer that a text spells, or None."""
    if not text.isascii() or not text.isdigit() or len(text) > 100:
        return None
    return int(text) or None


class _ThreadPreference:
    """The context of `prefer_threads`; a generator would take microseconds more at each call."""

    __slots__ = ("_before", "_threads")

    def __init__(self, threads: int | None) -> None:
        self._threads = threads

    def __enter__(self) -> None:
        self._before, _state.preferred = _state.preferred, self._threads

    def __exit__(self, *_: object) -> None:
        _state.preferred = self._before


def prefer_threads(threads: int | None) -> AbstractContextManager[None]:
    """Return a context in which calls from this thread prefer a number of threads, unless an environment variable sets one.

    It is for front ends with a setting of their own, such as torch; None is no preference.
    """
    return _ThreadPreference(threads)


@contextmanager
def team_of(threads: int) -> Iterator[None]:
    """Return a context in which every call in the process uses exactly this number of threads, on any machine.

    It is for tests: results must not depend on the number of threads.
    """
    global _team
    before, _team = _team, threads
    try:
        yield
    finally:
        _team = before


def blas_threads() -> int:
    """Return how many threads may call BLAS at once: several only where BLAS's own threads can be switched off."""
    return thread_count() if blas_limits.libraries() else 1


# Helpers -------------------------------------------------------------------------------------------------------------


def run(task: Callable[[Any], None], items: Iterable[Any], threads: int) -> None:
    """Call ``task`` on every item from up to ``threads`` threads, the calling one among them, and raise the first error.

    When this function returns or raises, no helper is running a task any more, so that the caller may reuse all memory.
    """
    items = list(items)
    job = _Job(task, items)
    try:
        try:
            _helpers.submit(job.help, min(threads, len(items)) - 1)
            job.work()
        finally:
            job.close()
    except BaseException:
        job.close()  # Control-C may have been raised before the call above began
        job.error = None  # breaks a reference cycle: error, traceback, frame of the helper, job
        raise
    error, job.error = job.error, None
    if error is not None:
        try:
            raise error
        finally:
            del error  # breaks a reference cycle: error, traceback, this frame


class _Job:
    """The items of one `run`, which its threads take one by one."""

    def __init__(self, task: Callable[[Any], None], items: list[Any]) -> None:
        self._task = task
        self._items: Iterator[Any] = iter(items)
        self._helping = 0
        self._finished: SimpleQueue[None] = SimpleQueue()  # wakes the caller; a condition variable would not survive Control-C
        self._ended = False  # True: no further item is begun
        self._process = _process
        self._preferred = _state.preferred
        self.error: BaseException | None = None

    def work(self) -> None:
        """Run the task on items until none is left or one has failed."""
        # Sums that overflow are infinities by definition, and a warning of NumPy would point to this line.
        with np.errstate(all="ignore"):
            while (item := self._next()) is not _DONE:
                try:
                    self._task(item)
                except BaseException:
                    self._ended = True
                    raise

    def _next(self) -> Any:
        with _lock:
            return _DONE if self._ended else next(self._items, _DONE)

    def help(self) -> None:
        """Run tasks in a helper thread, unless the job has ended already."""
        with _lock:
            if self._ended:
                return
            self._helping += 1
        try:
            with prefer_threads(self._preferred):
                self.work()
        except BaseException as error:
            if self.error is None:
                self.error = error
        finally:
            with _lock:
                self._helping -= 1
            self._finished.put(None)

    def close(self) -> None:
        """End the job: no helper begins any more, all that are running are waited for, and the arrays are released."""
        interrupt = None
        while True:
            try:
                if self._is_over():
                    break
                self._finished.get()
            except BaseException as error:  # Control-C: waiting is better than helpers that write into freed memory
                interrupt = error
        self._task, self._items = _nothing, iter(())
        if interrupt is not None:
            raise interrupt
        if self._helping:
            raise RuntimeError("the process was forked in the middle of a call, whose other threads the child does not have")

    def _is_over(self) -> bool:
        with _lock:
            self._ended = True
            return not self._helping or self._process is not _process


def _nothing(item: Any) -> None:
    """The task of a closed job, which holds no reference to arrays."""


_DONE = object()
_process = object()  # replaced in each forked child


class _Helpers:
    """Helper threads that wait for jobs: as many as any call so far has requested.

    They are daemons, so that they still serve threads that outlive the main thread, and functions of `atexit`.
    """

    def __init__(self) -> None:
        self._requests: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._count = 0

    def submit(self, function: Callable[[], None], count: int) -> None:
        """Have ``count`` helpers call a function, or fewer where no further thread can be started."""
        if count <= 0 or sys.is_finalizing():
            return
        if self._count < count:
            self._start(count)
        for _ in range(min(count, self._count)):
            self._requests.put(function)

    def _start(self, count: int) -> None:
        with _lock:
            while self._count < count:
                try:
                    threading.Thread(target=self._serve, name=f"cupycorr_{self._count}", daemon=True).start()
                except (RuntimeError, MemoryError):  # a limit on processes or memory, or the interpreter is shutting down
                    return
                self._count += 1

    def _serve(self) -> None:
        while True:
            self._requests.get()()


_helpers = _Helpers()


def submit(function: Callable[[], None], count: int) -> None:
    """Have ``count`` helpers call a function that raises nothing, as soon as they are free; nobody waits for them.

    There are fewer helpers where no further thread can be started, and none while the interpreter ends.
    """
    _helpers.submit(function, count)


def _forget_helpers() -> None:
    """Start anew in a forked child, which has none of its parent's threads."""
    global _helpers, _process
    _helpers, _process = _Helpers(), object()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_helpers)


# Scratch memory ------------------------------------------------------------------------------------------------------

RETAINED = WORKSPACE // 2  # bytes of scratch memory kept for later calls: page faults cost more than most calls' arithmetic


class _FreeBuffers:
    """Buffers kept for later calls, up to `RETAINED` bytes: taken by best fit, evicted in the order in which they came."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Release all buffers."""
        with _lock:
            self._sizes: list[tuple[int, int]] = []  # sorted (bytes, -number): among equal sizes the latest comes first
            self._buffers: OrderedDict[int, np.ndarray] = OrderedDict()  # by number, the oldest first
            self._last_number = self.nbytes = 0

    def take(self, size: int) -> np.ndarray:
        """Return the smallest buffer of at least ``size`` bytes, or a new one."""
        with _lock:
            at = bisect_left(self._sizes, (size, -self._last_number))
            # Control-C in the middle of a change may leave a number without its buffer.
            while at < len(self._sizes):
                buffer = self._buffers.pop(-self._sizes.pop(at)[1], None)
                if buffer is not None:
                    self.nbytes -= buffer.nbytes
                    return buffer
        return np.empty(size, np.uint8)

    def keep(self, buffer: np.ndarray) -> None:
        """Keep a buffer, and evict the oldest ones beyond the limit."""
        with _lock:
            self.nbytes += buffer.nbytes
            self._last_number += 1
            self._buffers[self._last_number] = buffer
            insort(self._sizes, (buffer.nbytes, -self._last_number))
            while self.nbytes > RETAINED:
                self._evict_oldest()

    def _evict_oldest(self) -> None:
        if not self._buffers:
            self.clear()
            return
        number, buffer = self._buffers.popitem(last=False)
        at = bisect_left(self._sizes, (buffer.nbytes, -number))
        if self._sizes[at : at + 1] == [(buffer.nbytes, -number)]:
            del self._sizes[at]
        self.nbytes -= buffer.nbytes


_free = _FreeBuffers()


class _Scratch:
    """The context of `scratch`; a generator would take microseconds more at each call."""

    __slots__ = ("_buffer", "_dtype", "_shape")

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._shape, self._dtype = shape, dtype

    def __enter__(self) -> np.ndarray:
        size = math.prod(self._shape) * self._dtype.itemsize
        self._buffer = _free.take(size)
        return self._buffer[:size].view(self._dtype).reshape(self._shape)

    def __exit__(self, *_: object) -> None:
        _free.keep(self._buffer)


def scratch(shape: tuple[int, ...], dtype: np.dtype) -> AbstractContextManager[np.ndarray]:
    """Return a context with an uninitialised array, whose memory later calls use again."""
    return _Scratch(shape, dtype)


# Rates of this machine -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MachineRates:
    """The peak rates of this machine: matrix products in flop/s, and copies in bytes/s, read and written bytes counted."""

    float32_rate: float
    float64_rate: float
    bandwidth: float
    measured: bool = True


_NOMINAL_CLOCK = 3e9  # Hz
_NOMINAL_FLOPS = 32  # float32 operations of a core in a cycle: two multiply-adds of 8 lanes
_NOMINAL_BANDWIDTH = 20e9  # bytes per second


def peak_rates(*, measure: bool) -> MachineRates:
    """Return this machine's rates: measured if that is allowed or was done before, else nominal ones of a typical processor."""
    if measure or machine_rates.cache_info().currsize:
        return machine_rates()
    float32_rate = thread_count() * _NOMINAL_CLOCK * _NOMINAL_FLOPS
    return MachineRates(float32_rate, float32_rate / 2, _NOMINAL_BANDWIDTH, measured=False)


@lru_cache(maxsize=1)
def machine_rates() -> MachineRates:
    """Return the rates, measured once per process (about 50 ms)."""

    def product(dtype: type) -> float:
        matrix: np.ndarray = np.ones((768, 768), dtype)
        out = np.empty_like(matrix)
        return 2 * 768**3 / _best_seconds(lambda: np.matmul(matrix, matrix, out=out))

    source = np.ones(2**25, np.uint8)
    target = np.empty_like(source)
    copied = 2 * source.nbytes / _best_seconds(lambda: np.copyto(target, source))
    return MachineRates(product(np.float32), product(np.float64), copied)


def _best_seconds(work: Callable[[], Any], repeats: int = 4) -> float:
    """Return the seconds of the fastest run: slower ones were disturbed by other processes."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)
