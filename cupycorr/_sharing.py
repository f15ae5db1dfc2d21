"""A lock and a cached property that are safe with threads and with ``fork``.

A fork copies the memory but only one thread. A lock that another thread held at that moment stays locked for ever in the child,
and the data it protects may be half written.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def fork_safe_lock() -> Any:
    """Return a reentrant lock that ``fork`` acquires first, so that no child starts while another thread holds it.

    Hold it only for short work. It is reentrant because a signal handler may fork while its own thread holds the lock. A fork
    acquires the newest lock first, so a thread that holds one lock may acquire an older one, but not a newer one.
    """
    lock = threading.RLock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock


class CachedProperty(Generic[T]):
    """A property that is computed at its first use and then stored in the object.

    Two threads may both compute it. Before Python 3.12, `functools.cached_property` holds a lock meanwhile, which a fork copies.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> T:
        if instance is None:
            return self  # type: ignore[return-value]
        value = instance.__dict__[self._name] = self._compute(instance)
        return value
