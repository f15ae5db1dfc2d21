"""Threads, scratch memory and BLAS's own threads: shared fairly, given back, and usable after errors and forks."""

import os
import subprocess
import sys
import textwrap
import threading
from contextlib import ExitStack
from pathlib import Path

import cases
import numpy as np
import pytest
import threadpoolctl
from waiting import STUCK

from cupycorr import spatial_correlation_sample, spatial_correlation_sample_vjp
from cupycorr._backends import blas, workers

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def threads(monkeypatch):
    """Sets the number of threads asked for."""
    return lambda count: monkeypatch.setenv("CUPYCORR_NUM_THREADS", str(count))


def in_threads(*tasks):
    """Run the tasks in a Python thread each; their results, or the first error."""
    results, errors = [None] * len(tasks), []

    def work(index):
        try:
            results[index] = tasks[index]()
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(len(tasks))]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(STUCK)
        assert not thread.is_alive(), "stuck"
    if errors:
        raise errors[0]
    return results


def python(program):
    """What a program prints, run in a process of its own with two threads."""
    environment = {**os.environ, "CUPYCORR_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    # Python 3.12 warns of forks in processes with threads, which is what one of the programs is about.
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=STUCK, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# How many ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "count"), [("1", 1), ("3", 3), ("0016", 16)])
def test_the_environment_says_how_many_threads(asked, count, monkeypatch):
    monkeypatch.setenv("CUPYCORR_NUM_THREADS", asked)
    assert workers.thread_count() == count


def test_otherwise_they_are_the_cores_this_process_may_run_on(monkeypatch):
    monkeypatch.delenv("CUPYCORR_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 5}, raising=False)
    assert workers.thread_count() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert workers.thread_count() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert workers.thread_count() == 1


# One pool ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7])
def test_every_item_is_done_exactly_once(count):
    done = []
    workers.run(done.append, range(1000), count)
    assert sorted(done) == list(range(1000))


@pytest.mark.parametrize("count", [2, 5])
def test_items_are_done_in_so_many_threads_at_once_the_callers_among_them(count):
    # Each item waits for the others: fewer threads than items would never get past the barrier.
    barrier, seen = threading.Barrier(count), []

    def task(_):
        barrier.wait(STUCK)
        seen.append(threading.get_ident())

    workers.run(task, range(count), count)
    assert len(set(seen)) == count
    assert threading.get_ident() in seen


def test_no_item_and_one_item_need_no_other_thread():
    seen = []
    workers.run(seen.append, [], 4)
    assert seen == []
    workers.run(lambda item: seen.append(threading.get_ident()), [0], 4)
    assert seen == [threading.get_ident()]


@pytest.mark.parametrize("bad", [0, 40, 99])
@pytest.mark.parametrize("count", [1, 4])
def test_an_error_is_raised_and_the_pool_goes_on(count, bad):
    def task(item):
        if item == bad:
            raise ArithmeticError(f"item {item}")

    with pytest.raises(ArithmeticError, match=f"item {bad}"):
        workers.run(task, range(100), count)
    test_every_item_is_done_exactly_once(count)


def test_an_error_of_a_helper_is_raised_to_the_caller():
    barrier, caller = threading.Barrier(2), threading.get_ident()

    def task(_):
        barrier.wait(STUCK)
        if threading.get_ident() != caller:
            raise ArithmeticError("in a helper")

    with pytest.raises(ArithmeticError, match="in a helper"):
        workers.run(task, range(2), 2)


def test_after_an_error_no_new_item_is_begun():
    barrier, noticed, begun = threading.Barrier(2), threading.Event(), []

    def notice_the_return_of(caller):
        """Note when the function that called the task returns: it has seen the task's error by then."""

        def profile(frame, event, argument):
            if event == "return" and frame is caller:
                sys.setprofile(None)
                noticed.set()

        sys.setprofile(profile)

    def task(item):
        begun.append(item)
        if item < 2:
            barrier.wait(STUCK)
        if item == 0:
            notice_the_return_of(sys._getframe(1))
            raise ArithmeticError
        assert noticed.wait(STUCK)

    with pytest.raises(ArithmeticError):
        workers.run(task, range(60), 2)
    assert sorted(begun) == [0, 1]


NESTED = """
    from cupycorr._backends import workers

    done = []

    def outer(item):
        workers.run(lambda inner: workers.run(lambda last: done.append((item, inner, last)), range(3), 2), range(4), 2)

    workers.run(outer, range(6), 2)
    assert sorted(done) == [(i, j, k) for i in range(6) for j in range(4) for k in range(3)]
"""


def test_nested_runs_do_not_wait_for_each_other():
    # In a process of its own: threads that wait for ever would keep this one from ending.
    assert python(NESTED) == ""


def test_runs_that_ask_for_different_numbers_of_threads_go_together():
    done = [[] for _ in range(6)]
    in_threads(*(lambda n=n: [workers.run(done[n].append, range(50), n + 1) for _ in range(20)] for n in range(6)))
    assert [sorted(items) for items in done] == [sorted(list(range(50)) * 20)] * 6


def test_overflow_in_a_task_is_an_infinity_and_no_warning():
    found = []
    workers.run(lambda value: found.append(np.float32(value) * np.float32(1e38)), [1e38] * 4, 2)
    assert np.isinf(found).all()


# Calls from many threads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["simd", "blas"])
def test_calls_from_eight_threads_give_the_bits_of_calls_one_by_one(variant, threads):
    threads(3)
    asked = [
        cases.same((1 + n % 2, 16 + n, 20, 33 + n), ("float32", "float64")[n % 2], patch_size=5, kernel_size=1 + n % 3)
        for n in range(8)
    ]
    arrays = [case.arrays() for case in asked]

    def call(n):
        x1, x2, g = arrays[n]
        out = spatial_correlation_sample(x1, x2, **asked[n].parameters, variant=variant)
        gradients = spatial_correlation_sample_vjp(g, x1, x2, **asked[n].parameters, variant=variant)
        return [array.tobytes() for array in (out, *gradients)]

    one_by_one = [call(n) for n in range(8)]
    for _ in range(3):
        assert in_threads(*(lambda n=n: call(n) for n in range(8))) == one_by_one


CHILD = """
    import multiprocessing, os, sys
    import numpy as np
    from cupycorr import spatial_correlation_sample, spatial_correlation_sample_vjp
    from cupycorr._backends import workers

    x1, x2 = np.random.default_rng(0).standard_normal((2, 1, 64, 64, 96), np.float32)

    def call(variant):
        out = spatial_correlation_sample(x1, x2, patch_size=9, variant=variant)
        gradients = spatial_correlation_sample_vjp(out, x1, x2, patch_size=9, variant=variant)
        return [array.tobytes() for array in (out, *gradients)]

    wanted = {variant: call(variant) for variant in ("simd", "blas")}
    assert workers._pool is not None, "the parent has no threads yet: the test would show nothing"

    def child(queue):
        queue.put(all(call(variant) == wanted[variant] for variant in wanted))

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with workers._lock:  # as another thread of the parent might, at the moment of the fork
        process = context.Process(target=child, args=(queue,))
        process.start()
    process.join()
    print("same bits" if not queue.empty() and queue.get() else "other bits")
    sys.exit(process.exitcode)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_computes_the_same():
    assert python(CHILD) == "same bits"


# BLAS's own threads --------------------------------------------------------------------------------------------------


def blas_settings():
    """How many threads each BLAS in this process would use now."""
    return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]


@pytest.fixture
def own_setting():
    """BLAS set to two threads of its own, so that being held to one shows."""
    with threadpoolctl.threadpool_limits(2, "blas"):
        setting = blas_settings()
        assert setting
        assert max(setting) == 2
        yield setting


def call_blas(variant="blas", channels=32):
    x1, x2, g = cases.same((1, channels, 24, 40), patch_size=5).arrays()
    spatial_correlation_sample(x1, x2, patch_size=5, variant=variant)
    spatial_correlation_sample_vjp(g, x1, x2, patch_size=5, variant=variant)


@pytest.mark.parametrize("count", [1, 3])
def test_blas_is_held_to_one_thread_while_tasks_run_and_restored(count, own_setting, threads, monkeypatch):
    threads(count)
    during = []
    for name in ("volume", "gradient"):
        real = getattr(blas.BandedProducts, name)
        spy = lambda *args, real=real: (during.append(blas_settings()), real(*args))  # noqa: E731
        monkeypatch.setattr(blas.BandedProducts, name, spy)
    call_blas()
    assert during
    assert all(max(settings) == 1 for settings in during)
    assert blas_settings() == own_setting


def test_blas_is_restored_after_an_error(own_setting, threads, monkeypatch):
    threads(2)

    def broken(*_):
        raise ArithmeticError("broken")

    with monkeypatch.context() as patched:
        patched.setattr(blas.BandedProducts, "volume", broken)
        with pytest.raises(ArithmeticError, match="broken"):
            call_blas()
    assert blas_settings() == own_setting
    call_blas()
    assert blas_settings() == own_setting


def test_blas_is_restored_by_the_last_of_overlapping_calls(own_setting):
    first, second = workers.single_threaded_blas(), workers.single_threaded_blas()
    with ExitStack() as outlives:
        with first:
            outlives.enter_context(second)
        assert max(blas_settings()) == 1
    assert blas_settings() == own_setting


def test_without_threadpoolctl_one_thread_calls_blas(threads, monkeypatch):
    threads(4)
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    workers._blas_controller.cache_clear()
    try:
        assert workers.blas_threads() == 1
        call_blas()
    finally:
        workers._blas_controller.cache_clear()


# Scratch memory ------------------------------------------------------------------------------------------------------


def kept_bytes():
    return sum(buffer.nbytes for buffer in workers._free)


def test_scratch_memory_is_used_again():
    workers._free.clear()
    with workers.scratch((100, 7), np.dtype(np.float64)) as first:
        address = first.ctypes.data
    with workers.scratch((300,), np.dtype(np.float32)) as again:
        assert again.ctypes.data == address
        assert (again.shape, again.dtype) == ((300,), np.float32)


def test_arrays_held_at_the_same_time_do_not_share_memory():
    with ExitStack() as stack:
        arrays = [stack.enter_context(workers.scratch((64,), np.dtype(np.float32))) for _ in range(5)]
        for number, array in enumerate(arrays):
            array.fill(number)
        assert [set(array.tolist()) for array in arrays] == [{float(number)} for number in range(5)]


def test_scratch_memory_is_given_back_after_an_error():
    workers._free.clear()
    with pytest.raises(ArithmeticError), workers.scratch((64,), np.dtype(np.float32)):
        raise ArithmeticError
    assert kept_bytes() == 256


def test_scratch_memory_kept_for_later_is_bounded(threads):
    workers._free.clear()
    size = workers.RETAINED // 4
    with ExitStack() as stack:
        for _ in range(9):
            stack.enter_context(workers.scratch((size,), np.dtype(np.uint8)))
    assert kept_bytes() == workers.RETAINED
    with workers.scratch((workers.RETAINED + 1,), np.dtype(np.uint8)):
        pass
    assert kept_bytes() <= workers.RETAINED
    threads(2)
    for variant in ("simd", "blas"):
        call_blas(variant, channels=600)
        assert 0 < kept_bytes() <= workers.RETAINED
    assert workers.RETAINED <= workers.WORKSPACE == 64 * 2**20


# Rates ---------------------------------------------------------------------------------------------------------------


def test_the_machines_rates_are_positive_and_measured_once():
    rates = workers.machine_rates()
    assert min(rates.float32_rate, rates.float64_rate, rates.bandwidth) > 0
    assert workers.machine_rates() is rates
