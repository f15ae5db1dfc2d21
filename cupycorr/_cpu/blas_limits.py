"""Calls of NumPy's BLAS that run in one thread of BLAS, after which BLAS has its own number of threads again.

The package calls BLAS from several worker threads at once, each of which would otherwise start BLAS's own team of threads. This
module knows BLAS libraries and no operator. threadpoolctl finds the libraries. MKL and builds with OpenMP keep a number of
threads for each calling thread, OpenBLAS with its own threads keeps one number for the whole process. That number is set through
OpenBLAS's own functions: threadpoolctl lets only one thread of a process set it, and the bits of a product must not depend on
which thread that is.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from itertools import product
from typing import Any, ParamSpec, TypeVar

from .._sharing import fork_safe_lock

P = ParamSpec("P")
T = TypeVar("T")

_lock = fork_safe_lock()


class _ProcessState:
    """The callers that hold a library at one thread, and its number of threads before that (None while nobody holds it)."""

    def __init__(self) -> None:
        self.holders: set[object] = set()
        self.before: int | None = None


class _ThreadState(threading.local, _ProcessState):
    """The same state, kept for each thread of the process."""


class Library:
    """A BLAS library: the functions that read and set its number of threads, and the callers that hold it at one thread."""

    def __init__(self, read: Callable[[], int], write: Callable[[int], object], state: _ProcessState) -> None:
        self._read, self._write, self._state = read, write, state

    def hold(self, holder: object) -> None:
        """Set one thread until this holder and every other one has released the library."""
        state = self._state
        state.holders.add(holder)
        if state.before is None:
            state.before = self._read()
        if self._read() != 1:
            self._write(1)

    def release(self, holder: object) -> None:
        """Restore the library's own number of threads if nobody else holds it.

        A second call has no effect, except that it completes a first one that an exception interrupted.
        """
        state = self._state
        state.holders.discard(holder)
        if state.before is None or state.holders:
            return
        if self._read() == 1:  # any other number was set by other code meanwhile, and stays
            self._write(state.before)
        state.before = None

    def release_after_fork(self) -> None:
        """Release the library from all holders: their threads do not exist in a forked child."""
        self._state.holders.clear()
        self.release(None)


_found: tuple[Library, ...] | None = None


def libraries() -> tuple[Library, ...]:
    """Return the BLAS libraries whose number of threads can be set; none where threadpoolctl is missing or finds none."""
    global _found
    if _found is None:
        with _lock:  # two threads must not create two states for one library
            if _found is None:
                _found = tuple(map(_library, _controllers()))
    return _found


def _controllers() -> list[Any]:
    try:
        from threadpoolctl import ThreadpoolController

        return ThreadpoolController().select(user_api="blas").lib_controllers
    except (ImportError, OSError, MemoryError):  # old versions generate code to find libraries, which a system may forbid
        return []


def _library(controller: Any) -> Library:
    if controller.internal_api != "openblas":
        return Library(controller.get_num_threads, controller.set_num_threads, _ThreadState())
    if controller.threading_layer == "openmp":
        return Library(*_functions(controller, "omp_get_max_threads", "omp_set_num_threads"), _ThreadState())
    return Library(*_functions(controller, "openblas_get_num_threads", "openblas_set_num_threads"), _ProcessState())


def _functions(controller: Any, read: str, write: str) -> tuple[Callable[[], int], Callable[[int], object]]:
    """Return two functions of a library by name; builds of OpenBLAS add different prefixes and suffixes to the names."""
    for prefix, suffix in product(("", "scipy_"), ("", "64_", "_64")):
        found = [getattr(controller.dynlib, f"{prefix}{name}{suffix}", None) for name in (read, write)]
        if found[0] is not None and found[1] is not None:
            return found[0], found[1]
    return controller.get_num_threads, controller.set_num_threads


def with_one_blas_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return ``call(*args, **kwargs)``, during which BLAS uses one thread, whatever other threads hold or release meanwhile.

    This is a function and not a context manager because Control-C may be raised as soon as an ``__exit__`` begins. Here an
    exception that interrupts or precedes the first release is followed by the second one.
    """
    held, holder = libraries(), object()
    try:
        try:
            with _lock:
                for library in held:
                    library.hold(holder)
            return call(*args, **kwargs)
        finally:
            _release(held, holder)
    finally:
        _release(held, holder)


def _release(held: tuple[Library, ...], holder: object) -> None:
    with _lock:
        for library in held:
            library.release(holder)


def _release_after_fork() -> None:
    for library in _found or ():
        library.release_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_after_fork)
