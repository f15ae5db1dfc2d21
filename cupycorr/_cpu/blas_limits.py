"""NumPy's BLAS held to one thread while one of our threads calls it, and given its own number of threads back afterwards.

threadpoolctl finds the libraries. Some keep the number of threads for each thread that calls them (MKL, builds with OpenMP),
OpenBLAS with threads of its own keeps one for the whole process. Its number is set through its own functions: threadpoolctl
lets only one thread of a process set it, and the bits of a product must not depend on which thread that is.
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


class _Held:
    """Who holds a library to one thread, and how many threads it had before, None while nobody holds it."""

    def __init__(self) -> None:
        self.holders: set[object] = set()
        self.before: int | None = None


class _HeldHere(threading.local, _Held):
    """The same, for each thread by itself."""


class Library:
    """One BLAS library: its number of threads, and who holds it to one."""

    def __init__(self, read: Callable[[], int], write: Callable[[int], object], held: _Held) -> None:
        self._read, self._write, self._held = read, write, held

    def hold(self, holder: object) -> None:
        """Set one thread, for as long as this holder or another one holds the library."""
        held = self._held
        held.holders.add(holder)
        if held.before is None:
            held.before = self._read()
        if self._read() != 1:
            self._write(1)

    def release(self, holder: object) -> None:
        """Give the library its own number of threads back if nobody else holds it.

        A second call changes nothing, and completes one that an exception stopped anywhere.
        """
        held = self._held
        held.holders.discard(holder)
        if held.before is None or held.holders:
            return
        if self._read() == 1:  # otherwise someone else has set it meanwhile, which stays
            self._write(held.before)
        held.before = None

    def release_after_fork(self) -> None:
        """Release the library from the holders that a forked child does not have."""
        self._held.holders.clear()
        self.release(None)


_found: tuple[Library, ...] | None = None


def libraries() -> tuple[Library, ...]:
    """Return the BLAS libraries whose number of threads can be set; none where threadpoolctl is missing or finds none."""
    global _found
    if _found is None:
        with _lock:  # two threads must not have two accounts of who holds a library
            if _found is None:
                _found = tuple(map(_library, _controllers()))
    return _found


def _controllers() -> list[Any]:
    try:
        from threadpoolctl import ThreadpoolController

        return ThreadpoolController().select(user_api="blas").lib_controllers
    except (ImportError, OSError, MemoryError):  # old versions search with code made at run time, which a system may forbid
        return []


def _library(controller: Any) -> Library:
    if controller.internal_api != "openblas":
        return Library(controller.get_num_threads, controller.set_num_threads, _HeldHere())
    if controller.threading_layer == "openmp":
        return Library(*_functions(controller, "omp_get_max_threads", "omp_set_num_threads"), _HeldHere())
    return Library(*_functions(controller, "openblas_get_num_threads", "openblas_set_num_threads"), _Held())


def _functions(controller: Any, read: str, write: str) -> tuple[Callable[[], int], Callable[[int], object]]:
    """Return two functions of a library by their names, which builds of OpenBLAS put something before or after."""
    for before, after in product(("", "scipy_"), ("", "64_", "_64")):
        functions = tuple(getattr(controller.dynlib, f"{before}{name}{after}", None) for name in (read, write))
        if None not in functions:
            return functions
    return controller.get_num_threads, controller.set_num_threads


def with_one_blas_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what a call returns that has BLAS at one thread, whatever other threads hold or release meanwhile.

    It is a function and no context manager because Control-C may be raised as soon as an ``__exit__`` begins. Here an exception
    that stops the first release, or comes before it, still meets the second.
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
