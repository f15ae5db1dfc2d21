"""A forked child inherits no held lock of the package and no unfinished change; cached properties need no lock."""

import pytest
from processes import needs_fork, python

from cupycorr._sharing import CachedProperty


class Counted:
    """An object that counts how often its property is computed."""

    def __init__(self):
        self.computed = 0

    @CachedProperty
    def value(self):
        """A new object."""
        self.computed += 1
        return object()


def test_a_cached_property_is_computed_at_its_first_use_and_kept():
    counted = Counted()
    assert counted.computed == 0
    assert counted.value is counted.value
    assert counted.computed == 1
    assert Counted().value is not counted.value
    assert Counted.value.__doc__ == "A new object."


def test_an_error_in_a_cached_property_is_raised_and_not_kept():
    class Broken:
        @CachedProperty
        def value(self):
            raise ArithmeticError

    broken = Broken()
    for _ in range(2):
        with pytest.raises(ArithmeticError):
            _ = broken.value


FORK = """
    import os, sys, threading, time

    def child_says(question):
        child = os.fork()
        if not child:
            try:
                os._exit(0 if question() else 1)
            finally:
                os._exit(2)
        status, limit = None, time.monotonic() + 120
        while status is None:
            ended, code = os.waitpid(child, os.WNOHANG)
            if ended:
                status = {0: "yes"}.get(code, "no")
            elif time.monotonic() > limit:
                os.kill(child, 9)
                os.waitpid(child, 0)
                status = "stuck"
            time.sleep(0.001)
        return status

    inside, may_end = threading.Event(), threading.Event()

    def in_thread(work):
        thread = threading.Thread(target=work)
        thread.start()
        assert inside.wait(120)
        return thread

    def hold(*locks):
        def work():
            for lock in locks:
                lock.acquire()
            inside.set()
            may_end.wait()
            for lock in locks:
                lock.release()
        return in_thread(work)
"""

PROGRAMS = {
    "a lock that a fork waits for": """
    from cupycorr._sharing import fork_safe_lock
    lock, state = fork_safe_lock(), "whole"

    def work():
        global state
        with lock:
            state = "half done"
            inside.set()
            time.sleep(0.2)
            state = "whole"

    in_thread(work)
    print(child_says(lambda: state == "whole" and lock.acquire(blocking=False)), lock.acquire(blocking=False))
    """,
    "a lock that the forking thread itself holds": """
    from cupycorr._sharing import fork_safe_lock
    lock, free = fork_safe_lock(), []

    def can_be_taken():
        thread = threading.Thread(target=lambda: free.append(lock.acquire(timeout=60)))
        thread.start()
        thread.join()
        return free == [True]

    with lock:
        answer = child_says(lambda: (lock.release(), can_be_taken())[1])
    print(answer, can_be_taken())
    """,
    "a property that another thread computes": """
    from cupycorr._correlation.problem import Axis, Problem, parameters, problem
    asked, parent = problem(parameters(), (1, 2, 3, 4), (1, 2, 3, 4)), os.getpid()
    compute = Problem._axis

    def slow(self, axis):
        if os.getpid() == parent:
            inside.set()
            may_end.wait()
        return compute(self, axis)

    Problem._axis = slow
    for name in ("vertical", "horizontal"):
        vars(asked).pop(name, None)
    in_thread(lambda: asked.vertical)
    answer = child_says(lambda: asked.vertical.out == 3)
    may_end.set()
    print(answer, asked.horizontal.out == 4)
    """,
    "CUDA kernels that another thread loads": """
    from concurrent.futures import Future
    from cupycorr._gpu import compiler
    compiler._functions["kernel", 0] = Future()
    hold(compiler._lock)
    answer = child_says(lambda: compiler._lock.acquire(blocking=False) and not compiler._functions)
    may_end.set()
    print(answer, list(compiler._functions) == [("kernel", 0)])
    """,
    "a measurement in another thread": """
    from cupycorr import _tuning
    hold(_tuning._measuring)
    answer = child_says(lambda: _tuning._measuring.acquire(blocking=False))
    may_end.set()
    print(answer, True)
    """,
    "adapters that another thread installs": """
    from cupycorr.compat import _install
    def work():
        with _install._LOCK:
            inside.set()
            time.sleep(0.2)
    in_thread(work)
    print(child_says(lambda: _install._LOCK.acquire(blocking=False)), True)
    """,
    "a call in the forking thread": """
    from cupycorr._cpu import workers
    caller, helper_is_in, done = threading.get_ident(), threading.Event(), []

    def call(item):
        done.append(item)
        if threading.get_ident() != caller:
            helper_is_in.set()
            may_end.wait()
        elif not parent_forked:
            helper_is_in.wait()
            parent_forked.append(os.fork())
            may_end.set()

    parent_forked = []
    try:
        workers.run(call, range(2), 2)
        answer = "yes"
    except RuntimeError as error:
        os._exit(0 if "forked in the middle of a call" in str(error) else 1)
    print({0: "yes"}.get(os.waitpid(parent_forked[0], 0)[1], "no"), sorted(done) == [0, 1])
    """,
}


@needs_fork
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_a_forked_child_inherits_nothing_held_or_half_done(program):
    assert python(FORK + program) == "yes True"
