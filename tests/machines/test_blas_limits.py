"""The package calls BLAS in one thread, with the same bits from every thread, and restores BLAS's own number of threads."""

import sys
import threading
from contextlib import contextmanager

import cases
import pytest
import threadpoolctl
from processes import interrupted_everywhere, needs_fork, python
from waiting import STUCK

from cupycorr import spatial_correlation_sample, spatial_correlation_sample_vjp
from cupycorr._correlation.cpu import blas
from cupycorr._cpu import blas_limits, workers
from cupycorr._cpu.blas_limits import Library, with_one_blas_thread


def blas_settings():
    """Return the number of threads that each BLAS in this process would use now."""
    return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]


@pytest.fixture
def own_setting():
    """Set BLAS to two threads, so that a limit of one is visible, and return its settings."""
    with threadpoolctl.threadpool_limits(2, "blas"):
        setting = blas_settings()
        assert setting
        assert max(setting) == 2
        yield setting


def call_blas(variant="blas", channels=32):
    x1, x2, g = cases.same((1, channels, 24, 40), patch_size=5).arrays()
    spatial_correlation_sample(x1, x2, patch_size=5, variant=variant)
    spatial_correlation_sample_vjp(g, x1, x2, patch_size=5, variant=variant)


def in_thread(task):
    """Return the result of a task in another thread."""
    results, errors = [], []

    def work():
        try:
            results.append(task())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(STUCK)
    assert not thread.is_alive(), "stuck"
    if errors:
        raise errors[0]
    return results[0]


@contextmanager
def another_thread():
    """Return a context with a function that runs a task in another thread and returns its result."""
    told, done = [], []
    asked, answered, ended = threading.Semaphore(0), threading.Semaphore(0), object()

    def work():
        while True:
            assert asked.acquire(timeout=STUCK)
            task = told.pop()
            if task is ended:
                return
            done.append(task())
            answered.release()

    def tell(task):
        told.append(task)
        asked.release()
        assert answered.acquire(timeout=STUCK)
        return done.pop()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield tell
    finally:
        told.append(ended)
        asked.release()
        thread.join(STUCK)


# NumPy's own BLAS ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("caller", ["main", "another thread"])
def test_blas_is_at_one_thread_while_tasks_run_and_restored(caller, count, own_setting, monkeypatch):
    during = []
    for name in ("_volume", "_gradient"):
        real = getattr(blas.BandedProducts, name)
        spy = lambda *args, real=real: (during.append(blas_settings()), real(*args))  # noqa: E731
        monkeypatch.setattr(blas.BandedProducts, name, spy)
    with workers.team_of(count):
        call_blas() if caller == "main" else in_thread(call_blas)
    assert during
    assert all(max(settings) == 1 for settings in during)
    assert blas_settings() == own_setting


def test_blas_is_restored_after_an_error(own_setting, monkeypatch):
    def broken(*_):
        raise ArithmeticError("broken")

    with workers.team_of(2):
        with monkeypatch.context() as patched:
            patched.setattr(blas.BandedProducts, "_volume", broken)
            with pytest.raises(ArithmeticError, match="broken"):
                call_blas()
        assert blas_settings() == own_setting
        call_blas()
    assert blas_settings() == own_setting


def test_what_a_call_returns_is_returned():
    assert with_one_blas_thread(divmod, 7, 4) == (1, 3)


@pytest.mark.parametrize("where", ["same thread", "another thread"])
@pytest.mark.parametrize("first", ["main", "another thread"])
def test_another_threads_own_limits_have_effect_after_a_call(where, first):
    call_blas() if first == "main" else in_thread(call_blas)

    def limited():
        before = blas_settings()
        with threadpoolctl.threadpool_limits(3, "blas"):
            inside = blas_settings()
        return before, inside, blas_settings()

    before, inside, after = limited() if where == "same thread" else in_thread(limited)
    assert max(inside) == 3
    assert after == before


def test_limits_of_another_thread_that_end_during_a_call_end_as_they_would_without_it():
    before = blas_settings()
    with another_thread() as tell:
        limits = tell(lambda: threadpoolctl.threadpool_limits(3, "blas").__enter__())
        with_one_blas_thread(lambda: tell(lambda: limits.__exit__(None, None, None)))
        assert blas_settings() == before


def test_limits_of_another_thread_around_calls_stay():
    before = blas_settings()
    with another_thread() as tell:
        limits = tell(lambda: threadpoolctl.threadpool_limits(3, "blas").__enter__())
        call_blas()
        assert max(blas_settings()) == 3
        tell(lambda: limits.__exit__(None, None, None))
    assert blas_settings() == before


def test_without_threadpoolctl_one_thread_calls_blas(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    monkeypatch.setattr(blas_limits, "_found", None)
    with workers.team_of(4):
        assert workers.blas_threads() == 1
        call_blas()


BITS = """
    import hashlib, threading
    import numpy as np
    import threadpoolctl
    from cupycorr import spatial_correlation_sample, spatial_correlation_sample_vjp
    from cupycorr._cpu import workers

    rng = np.random.default_rng(0)
    problems = [((1, 96, 24, 80), dict(patch_size=9)), ((1, 256, 12, 64), dict(patch_size=(5, 21), dilation_patch=2)),
                ((2, 33, 20, 50), dict(kernel_size=3, patch_size=5)), ((1, 600, 8, 32), dict(patch_size=3, stride=2))]

    def digest():
        found = hashlib.sha256()
        for shape, parameters in problems:
            x1, x2 = np.random.default_rng(1).standard_normal((2, *shape), np.float32)
            out = spatial_correlation_sample(x1, x2, **parameters, variant="blas")
            gradients = spatial_correlation_sample_vjp(out, x1, x2, **parameters, variant="blas")
            for array in (out, *gradients):
                found.update(array.tobytes())
        return found.hexdigest()

    def elsewhere(call):
        results = []
        thread = threading.Thread(target=lambda: results.append(call()))
        thread.start()
        thread.join()
        return results[0]

    def within(limit, call):
        with threadpoolctl.threadpool_limits(limit, "blas"):
            return call()

    def in_a_task():
        results = []
        workers.run(lambda item: results.append(digest()), range(1), 2)
        return results[0]

    with workers.team_of(2):
        digests = {
            "main": digest(),
            "another thread": elsewhere(digest),
            "main again": digest(),
            "inside a task": in_a_task(),
            "limits of one": within(1, digest),
            "limits of four": within(4, digest),
            "another thread inside main's limits": within(4, lambda: elsewhere(digest)),
            "main inside another thread's limits": elsewhere(lambda: within(4, lambda: elsewhere(digest))),
        }
    print(*(f"{value} {name}" for name, value in digests.items()), sep="\\n")
"""


def test_bits_depend_neither_on_the_thread_that_calls_nor_on_blas_own_threads():
    told = [python(BITS, OPENBLAS_NUM_THREADS=str(threads)).splitlines() for threads in (1, 2)]
    found = {}
    for index, lines in enumerate(told):
        for line in lines:
            value, name = line.split(" ", 1)
            found[f"{name}, OPENBLAS_NUM_THREADS={1 + index}"] = value
    assert len(found) == 16
    wanted = found["main, OPENBLAS_NUM_THREADS=1"]
    assert [name for name, value in found.items() if value != wanted] == []


# Any library ---------------------------------------------------------------------------------------------------------


class Setting:
    """A library's number of threads: one for the process."""

    def __init__(self, threads):
        self.threads = threads

    def read(self):
        return self.threads

    def write(self, threads):
        self.threads = threads


class SettingHere(threading.local, Setting):
    """A library's number of threads: one for each thread."""


KINDS = {
    "one for the process": (Setting, blas_limits._ProcessState),
    "one for each thread": (SettingHere, blas_limits._ThreadState),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def setting(request, monkeypatch):
    """Return the setting of a library at four threads, which takes the place of all that were found."""
    kind, state = request.param
    setting = kind(4)
    monkeypatch.setattr(blas_limits, "_found", (Library(setting.read, setting.write, state()),))
    return setting


def test_a_library_is_held_in_the_thread_that_calls_and_restored(setting):
    for call in (lambda task: task(), in_thread):
        assert call(lambda: with_one_blas_thread(setting.read)) == 1
        assert call(setting.read) == 4
    assert setting.read() == 4


def test_a_nested_call_leaves_the_library_held(setting):
    def outer():
        return setting.read(), with_one_blas_thread(setting.read), setting.read()

    assert with_one_blas_thread(outer) == (1, 1, 1)
    assert setting.read() == 4


def test_the_last_of_overlapping_calls_restores_the_library(setting):
    first_is_in, second_is_in, first_may_end, first_ended = (threading.Event() for _ in range(4))

    def first():
        first_is_in.set()
        assert first_may_end.wait(STUCK)

    def second():
        second_is_in.set()
        assert first_ended.wait(STUCK)
        return setting.read()

    def in_first_thread():
        with_one_blas_thread(first)
        own = setting.read()
        first_ended.set()
        return own

    results = {}
    threads = [
        threading.Thread(target=lambda: results.update(first=in_first_thread()), daemon=True),
        threading.Thread(target=lambda: results.update(second=with_one_blas_thread(second), after=setting.read()), daemon=True),
    ]
    threads[0].start()
    assert first_is_in.wait(STUCK)
    threads[1].start()
    assert second_is_in.wait(STUCK)
    first_may_end.set()
    for thread in threads:
        thread.join(STUCK)
        assert not thread.is_alive(), "stuck"
    shared = type(setting) is Setting
    assert results == {"first": 1 if shared else 4, "second": 1, "after": 4}
    assert setting.read() == 4


def test_a_setting_that_is_already_one_stays_one(setting):
    setting.write(1)
    assert with_one_blas_thread(setting.read) == 1
    assert setting.read() == 1


def test_what_someone_else_sets_during_a_call_stays(setting):
    with_one_blas_thread(setting.write, 3)
    assert setting.read() == 3
    assert with_one_blas_thread(setting.read) == 1
    assert setting.read() == 3


def test_an_error_restores_the_library(setting):
    with pytest.raises(ZeroDivisionError):
        with_one_blas_thread(divmod, 1, 0)
    assert setting.read() == 4


@pytest.mark.parametrize("depth", [1, 2])
def test_an_interrupt_anywhere_restores_the_library(setting, depth):
    def call(depth=depth):
        return with_one_blas_thread(call, depth - 1) if depth else setting.read()

    stopped = 0
    for _ in interrupted_everywhere(call, blas_limits):
        stopped += 1
        assert setting.read() == 4
        assert with_one_blas_thread(setting.read) == 1
        assert setting.read() == 4
    assert stopped > 5


def test_an_interrupt_in_one_thread_leaves_the_library_held_for_another(setting):
    def other():
        for _ in interrupted_everywhere(lambda: with_one_blas_thread(setting.read), blas_limits):
            if setting.read() != (1 if type(setting) is Setting else 4):
                return False
        return True

    assert with_one_blas_thread(lambda: (in_thread(other), setting.read())) == (True, 1)
    assert setting.read() == 4


class Dll:
    """A library with functions of these names."""

    def __init__(self, **functions):
        vars(self).update(functions)


class Controller:
    """A stand-in for threadpoolctl's controller of a library."""

    def __init__(self, internal_api, threading_layer, dynlib):
        self.internal_api, self.threading_layer, self.dynlib = internal_api, threading_layer, dynlib

    def get_num_threads(self):
        return "its own"

    def set_num_threads(self, threads):
        pass


@pytest.mark.parametrize(
    ("names", "layer", "state"),
    [
        (("openblas_get_num_threads", "openblas_set_num_threads"), "pthreads", blas_limits._ProcessState),
        (("scipy_openblas_get_num_threads64_", "scipy_openblas_set_num_threads64_"), "pthreads", blas_limits._ProcessState),
        (("openblas_get_num_threads_64", "openblas_set_num_threads_64"), "unknown", blas_limits._ProcessState),
        (("omp_get_max_threads", "omp_set_num_threads"), "openmp", blas_limits._ThreadState),
    ],
)
def test_builds_of_openblas_are_set_by_their_own_functions(names, layer, state):
    setting = Setting(4)
    library = blas_limits._library(
        Controller("openblas", layer, Dll(**dict(zip(names, (setting.read, setting.write), strict=True))))
    )
    assert type(library._state) is state
    library.hold("one")
    assert setting.threads == 1
    library.release("one")
    assert setting.threads == 4


def test_other_libraries_are_set_through_threadpoolctl_for_each_thread():
    library = blas_limits._library(Controller("mkl", "intel", Dll()))
    assert library._read() == "its own"
    assert type(library._state) is blas_limits._ThreadState


FORKED = """
    import os, threading
    from cupycorr._cpu import blas_limits
    import numpy as np
    import threadpoolctl

    def settings():
        return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]

    held, may_end = threading.Event(), threading.Event()
    before = settings()
    thread = threading.Thread(target=blas_limits.with_one_blas_thread, args=(lambda: (held.set(), may_end.wait()),))
    thread.start()
    held.wait()
    assert settings() == [1] * len(before)
    child = os.fork()
    if not child:
        right = settings() == before and blas_limits.with_one_blas_thread(settings) == [1] * len(before)
        os._exit(0 if right and settings() == before else 1)
    status = os.waitpid(child, 0)[1]
    may_end.set()
    thread.join()
    print(os.waitstatus_to_exitcode(status), settings() == before)
"""


@needs_fork
def test_a_child_that_is_forked_during_a_call_has_blas_own_setting():
    assert python(FORKED, OPENBLAS_NUM_THREADS="2") == "0 True"
