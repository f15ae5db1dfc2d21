"""What threads and forked processes share without harm: a lock that no fork copies held, and a property computed once.

A fork copies the memory and one thread. A lock that another thread held at that moment stays locked for ever in the child, and
what it guarded may be half done.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def fork_safe_lock() -> Any:
    """Return a reentrant lock that a fork waits for, so that no child is made while another thread holds it.

    It is for work that ends soon. It is reentrant because a signal handler may fork while its own thread holds the lock. A fork
    takes the locks made last first: who holds one may take those of modules imported before, but not the other way round.
    """
    lock = threading.RLock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)
    return lock


class CachedProperty(Generic[T]):
    """The property of an object that is computed at its first use and then kept.

    Two threads may both compute it. `functools.cached_property` holds a lock meanwhile, before Python 3.12, which a fork copies.
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
