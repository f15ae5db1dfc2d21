"""The threads of the CPU backends: how many, the helpers that share a call's work, scratch memory, and this machine's rates.

Tasks write disjoint parts of the result and never wait for each other, so the result does not depend on who ran which. The
calling thread takes tasks too: a call makes progress even while other calls keep the helpers busy, may be nested, and needs no
helper at all where no thread can be started.
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

WORKSPACE = 64 * 2**20  # bytes of scratch one call may hold, all its threads together

_lock = fork_safe_lock()


# How many ------------------------------------------------------------------------------------------------------------


class _Here(threading.local):
    """What holds for calls in this thread: how many threads the front end wishes for."""

    wish: int | None = None


class _Wish(NamedTuple):
    threads: int
    source: str


_here = _Here()
_team: int | None = None  # set by `team_of`


def thread_count() -> int:
    """Return how many threads a call may use: what is wished for, but no more than can run at once.

    The wish is ``CUPYCORR_NUM_THREADS``, else ``OMP_NUM_THREADS``, else that of the front end (`wishing`). Without a wish all
    that can run at once are used: the cores this process may run on, or what the control group's CPU quota pays for.

    Raises
    ------
    ValueError
        ``CUPYCORR_NUM_THREADS`` is set to something that is not a positive integer.
    """
    if _team is not None:
        return _team
    wish, (most, _) = _wish(), cores.ceiling()
    return most if wish is None else min(wish.threads, most)


def thread_rule() -> str:
    """Return how many threads a call may use and which rule says so, in words."""
    wish, (most, limit) = _wish(), cores.ceiling()
    if wish is None:
        return f"{most}: {limit}"
    if wish.threads <= most:
        return f"{wish.threads}: {wish.source}"
    return f"{most}: {limit}; {wish.source} asks for {wish.threads}"


def _wish() -> _Wish | None:
    ours = os.environ.get("CUPYCORR_NUM_THREADS")
    if ours is not None:
        threads = _positive(ours)
        if threads is None:
            raise ValueError(f"CUPYCORR_NUM_THREADS must be a positive integer, got CUPYCORR_NUM_THREADS={ours!r}")
        return _Wish(threads, "CUPYCORR_NUM_THREADS")
    threads = _positive(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip())  # one number for each nested level
    if threads is not None:
        return _Wish(threads, "OMP_NUM_THREADS")
    return None if _here.wish is None else _Wish(_here.wish, "the front end")


def _positive(text: str) -> int | None:
    """Return the positive integer that a text spells, or None."""
    if not text.isascii() or not text.isdigit() or len(text) > 100:
        return None
    return int(text) or None


class _Wishing:
    __slots__ = ("_before", "_threads")

    def __init__(self, threads: int | None) -> None:
        self._threads = threads

    def __enter__(self) -> None:
        self._before, _here.wish = _here.wish, self._threads

    def __exit__(self, *_: object) -> None:
        _here.wish = self._before


def wishing(threads: int | None) -> AbstractContextManager[None]:
    """Return a context in which calls from this thread use so many threads unless an environment variable says how many.

    It is for front ends that know how many threads their user wants; None is no wish.
    """
    return _Wishing(threads)


@contextmanager
def team_of(threads: int) -> Iterator[None]:
    """A context in which every call in the process uses exactly so many threads, whatever `thread_count` says otherwise.

    It is for tests: results must not depend on the number of threads, on any machine.
    """
    global _team
    before, _team = _team, threads
    try:
        yield
    finally:
        _team = before


def blas_threads() -> int:
    """Threads that may call BLAS at once: several only where BLAS's own threads can be held back (threadpoolctl)."""
    return thread_count() if blas_limits.libraries() else 1


# Helpers -------------------------------------------------------------------------------------------------------------


def run(task: Callable[[Any], None], items: Iterable[Any], threads: int) -> None:
    """Call ``task`` on every item from up to ``threads`` threads, this one among them; the first error is raised here.

    No helper is at work any more when this function ends, in whichever way: what the items are made of may be used again.
    """
    items = list(items)
    shared = _Shared(task, items)
    try:
        try:
            _helpers.ask(shared.help, min(threads, len(items)) - 1)
            shared.work()
        finally:
            shared.close()
    except BaseException:
        shared.close()  # Control-C may have been raised before the first one began
        shared.error = None  # its traceback knows the helper's arrays, and these would know it
        raise
    error, shared.error = shared.error, None
    if error is not None:
        try:
            raise error
        finally:
            del error  # for the same reason: its traceback knows this frame


class _Shared:
    """The items of one `run`, handed out one by one to the threads that share them."""

    def __init__(self, task: Callable[[Any], None], items: list[Any]) -> None:
        self._task: Callable[[Any], None] | None = task
        self._waiting: Iterator[Any] = iter(items)
        self._helping = 0
        self._left: SimpleQueue[None] = SimpleQueue()  # wakes the caller; a condition variable would not survive Control-C
        self._ended = False  # no further item is begun
        self._family = _family
        self._wish = _here.wish
        self.error: BaseException | None = None

    def work(self) -> None:
        """Do items until none is left or one has failed."""
        # Sums that overflow are infinities and that is the answer; NumPy's warning would name our line, not the caller's.
        with np.errstate(all="ignore"):
            while (item := self._next()) is not _DONE:
                try:
                    self._task(item)
                except BaseException:
                    self._ended = True
                    raise

    def _next(self) -> Any:
        with _lock:
            return _DONE if self._ended else next(self._waiting, _DONE)

    def help(self) -> None:
        """Do items in a helper, unless the call is over already."""
        with _lock:
            if self._ended:
                return
            self._helping += 1
        try:
            with wishing(self._wish):
                self.work()
        except BaseException as error:
            if self.error is None:
                self.error = error
        finally:
            with _lock:
                self._helping -= 1
            self._left.put(None)

    def close(self) -> None:
        """Let no helper begin any more, wait until none is at work, and let go of the arrays."""
        interrupt = None
        while True:
            try:
                if self._is_over():
                    break
                self._left.get()
            except BaseException as error:  # Control-C: helpers that write into freed memory would be worse than a wait
                interrupt = error
        self._task, self._waiting = None, iter(())
        if interrupt is not None:
            raise interrupt
        if self._helping:
            raise RuntimeError("the process was forked in the middle of a call, whose other threads the child does not have")

    def _is_over(self) -> bool:
        with _lock:
            self._ended = True
            return not self._helping or self._family is not _family


_DONE = object()
_family = object()  # another one in each forked child


class _Helpers:
    """Threads that wait for something to help with, as many as were ever asked for at once.

    They are daemons, so that threads which outlive the main thread still find them, and so do functions of `atexit`.
    """

    def __init__(self) -> None:
        self._asked: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._count = 0

    def ask(self, help_with: Callable[[], None], count: int) -> None:
        """Ask so many helpers, or as many as there are where no further thread can be started."""
        if count <= 0 or sys.is_finalizing():
            return
        if self._count < count:
            self._start(count)
        for _ in range(min(count, self._count)):
            self._asked.put(help_with)

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
            self._asked.get()()


_helpers = _Helpers()


def _forget_helpers() -> None:
    """A forked child has none of its parent's threads."""
    global _helpers, _family
    _helpers, _family = _Helpers(), object()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_helpers)


# Scratch -------------------------------------------------------------------------------------------------------------

RETAINED = WORKSPACE // 2  # bytes of scratch kept for the next call: fresh pages cost more than most calls' arithmetic


class _FreeBuffers:
    """Buffers kept for later, up to `RETAINED` bytes: found by size, and given up in the order in which they came."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Keep nothing any more."""
        with _lock:
            self._sizes: list[tuple[int, int]] = []  # (bytes, -number), so that of equal sizes the one used last is found first
            self._buffers: OrderedDict[int, np.ndarray] = OrderedDict()  # by number, oldest first
            self._came = self.nbytes = 0

    def take(self, size: int) -> np.ndarray:
        """Return the smallest buffer that holds so many bytes, a new one if there is none."""
        with _lock:
            at = bisect_left(self._sizes, (size, -self._came))
            # A number without its buffer is what Control-C left behind in the middle of this.
            while at < len(self._sizes):
                buffer = self._buffers.pop(-self._sizes.pop(at)[1], None)
                if buffer is not None:
                    self.nbytes -= buffer.nbytes
                    return buffer
        return np.empty(size, np.uint8)

    def keep(self, buffer: np.ndarray) -> None:
        """Keep a buffer, and give up the oldest ones beyond the limit."""
        with _lock:
            self.nbytes += buffer.nbytes
            self._came += 1
            self._buffers[self._came] = buffer
            insort(self._sizes, (buffer.nbytes, -self._came))
            while self.nbytes > RETAINED:
                self._give_up_oldest()

    def _give_up_oldest(self) -> None:
        if not self._buffers:
            self.clear()
            return
        number, buffer = self._buffers.popitem(last=False)
        at = bisect_left(self._sizes, (buffer.nbytes, -number))
        if self._sizes[at : at + 1] == [(buffer.nbytes, -number)]:
            del self._sizes[at]
        self.nbytes -= buffer.nbytes


_free = _FreeBuffers()


@contextmanager
def scratch(shape: tuple[int, ...], dtype: np.dtype) -> Iterator[np.ndarray]:
    """An uninitialised array, from memory that is used again by later calls."""
    size = math.prod(shape) * dtype.itemsize
    buffer = _free.take(size)
    try:
        yield buffer[:size].view(dtype).reshape(shape)
    finally:
        _free.keep(buffer)


# Rates ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MachineRates:
    """What this machine does at best: matrix products in flop/s, copies in bytes/s read and written."""

    float32_rate: float
    float64_rate: float
    bandwidth: float
    measured: bool = True


_NOMINAL_CLOCK = 3e9  # Hz
_NOMINAL_FLOPS = 32  # float32 operations of a core in a cycle: two multiply-adds of 8 lanes
_NOMINAL_BANDWIDTH = 20e9  # bytes per second


def peak_rates(*, measure: bool) -> MachineRates:
    """Return this machine's rates: measured if that is allowed or was done before, else nominal ones of a processor of today."""
    if measure or machine_rates.cache_info().currsize:
        return machine_rates()
    float32_rate = thread_count() * _NOMINAL_CLOCK * _NOMINAL_FLOPS
    return MachineRates(float32_rate, float32_rate / 2, _NOMINAL_BANDWIDTH, measured=False)


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
