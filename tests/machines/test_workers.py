"""Threads and scratch memory: shared fairly, given back, and usable after errors."""

import gc
import sys
import threading
import weakref
from contextlib import ExitStack, nullcontext
from queue import SimpleQueue

import cases
import numpy as np
import pytest
from processes import interrupted_everywhere, python, steps
from waiting import STUCK

from cupycorr import spatial_correlation_sample, spatial_correlation_sample_vjp
from cupycorr._cpu import workers


def in_threads(*tasks):
    """Run each task in a Python thread of its own; return the results, or raise the first error."""
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


# Helpers -------------------------------------------------------------------------------------------------------------


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
        """Set an event when the function that called the task returns: it has handled the task's error by then."""

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
    from cupycorr._cpu import workers

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


def test_a_helper_is_not_at_work_any_more_when_an_interrupted_run_returns():
    at_work, stopped = [], 0

    def task(item):
        at_work.append(item)
        at_work.remove(item)

    for _ in interrupted_everywhere(lambda: workers.run(task, range(4), 3), workers):
        stopped += 1
        assert at_work == []
    assert stopped > 20
    test_every_item_is_done_exactly_once(3)


def test_a_run_that_is_interrupted_while_it_waits_for_a_helper_waits_on():
    caller, helper_began, may_end = threading.get_ident(), threading.Event(), threading.Event()
    ended = []

    def task(_):
        if threading.get_ident() == caller:
            assert helper_began.wait(STUCK)
            return
        helper_began.set()
        assert may_end.wait(STUCK)
        ended.append(True)

    class Interrupted(SimpleQueue):
        def __init__(self):
            self.waits = 0

        def get(self):
            self.waits += 1
            if self.waits < 3:
                raise KeyboardInterrupt
            may_end.set()
            return super().get()

    with pytest.MonkeyPatch.context() as patched:
        # Helpers are there already: their own queue is not replaced.
        workers.run(lambda item: None, range(2), 2)
        patched.setattr(workers, "SimpleQueue", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            workers.run(task, range(2), 2)
    assert ended == [True]


def test_where_no_thread_can_be_started_the_caller_does_every_item(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(workers, "_helpers", workers._Helpers())
    seen = []
    workers.run(lambda item: seen.append((item, threading.get_ident())), range(20), 4)
    assert seen == [(item, threading.get_ident()) for item in range(20)]


def test_while_the_interpreter_ends_the_caller_does_every_item(monkeypatch):
    workers.run(lambda item: None, range(3), 3)  # there are helpers
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    seen = []
    workers.run(lambda item: seen.append((item, threading.get_ident())), range(2000), 3)
    assert seen == [(item, threading.get_ident()) for item in range(2000)]


def test_where_one_thread_can_be_started_there_is_one_helper(monkeypatch):
    start, started, barrier, seen = threading.Thread.start, [], threading.Barrier(2), []

    def start_once(thread):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    def task(_):
        barrier.wait(STUCK)
        seen.append(threading.get_ident())

    monkeypatch.setattr(threading.Thread, "start", start_once)
    monkeypatch.setattr(workers, "_helpers", workers._Helpers())
    for _ in range(3):
        workers.run(task, range(6), 4)
    assert len(seen) == 18
    assert set(seen) == {threading.get_ident(), started[0].ident}


@pytest.mark.parametrize("fails", [False, True])
def test_what_the_items_are_made_of_is_freed_with_the_call(fails):
    class Array:
        pass

    def call():
        arrays = [Array() for _ in range(4)]
        barrier = threading.Barrier(2)

        def task(array):
            barrier.wait(STUCK)
            if fails:
                raise ArithmeticError

        with pytest.raises(ArithmeticError) if fails else nullcontext():
            workers.run(task, arrays, 2)
        return [weakref.ref(array) for array in arrays]

    gc.disable()
    try:
        left = call()
        # The helper may still be on its way back to its queue; a second call has it do something else.
        test_items_are_done_in_so_many_threads_at_once_the_callers_among_them(2)
        assert [reference() for reference in left] == [None] * 4
    finally:
        gc.enable()


# Calls from many threads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["simd", "blas"])
def test_calls_from_eight_threads_give_the_bits_of_calls_one_by_one(variant):
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

    with workers.team_of(3):
        one_by_one = [call(n) for n in range(8)]
        for _ in range(3):
            assert in_threads(*(lambda n=n: call(n) for n in range(8))) == one_by_one


# Scratch memory ------------------------------------------------------------------------------------------------------


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
    assert workers._free.nbytes == 256


def call(variant, channels):
    x1, x2, g = cases.same((1, channels, 24, 40), patch_size=5).arrays()
    spatial_correlation_sample(x1, x2, patch_size=5, variant=variant)
    spatial_correlation_sample_vjp(g, x1, x2, patch_size=5, variant=variant)


def test_scratch_memory_kept_for_later_is_bounded():
    workers._free.clear()
    size = workers.RETAINED // 4
    with ExitStack() as stack:
        for _ in range(9):
            stack.enter_context(workers.scratch((size,), np.dtype(np.uint8)))
    assert workers._free.nbytes == workers.RETAINED
    with workers.scratch((workers.RETAINED + 1,), np.dtype(np.uint8)):
        pass
    assert workers._free.nbytes <= workers.RETAINED
    for variant in ("simd", "blas"):
        with workers.team_of(2):
            call(variant, channels=600)
        assert 0 < workers._free.nbytes <= workers.RETAINED
    assert workers.RETAINED <= workers.WORKSPACE == 64 * 2**20


def keep(*sizes):
    """Create scratch buffers of these sizes and release them in this order."""
    with ExitStack() as stack:
        for size in reversed(sizes):
            stack.enter_context(workers.scratch((size,), np.dtype(np.uint8)))


def test_the_smallest_buffer_that_is_large_enough_is_taken():
    workers._free.clear()
    keep(100, 3000, 500, 40)
    with workers.scratch((101,), np.dtype(np.uint8)) as array:
        assert array.base.nbytes == 500
    with workers.scratch((3000,), np.dtype(np.uint8)) as array, workers.scratch((1,), np.dtype(np.uint8)) as other:
        assert (array.base.nbytes, other.base.nbytes) == (3000, 40)


def test_the_oldest_buffers_are_given_up_first():
    workers._free.clear()
    half = workers.RETAINED // 2
    keep(100, half, 200, half - 200)
    with workers.scratch((300,), np.dtype(np.uint8)) as array:
        assert array.base.nbytes == half - 200, "100 is gone, 200 is not"
    keep(half + 1)
    assert workers._free.nbytes == half + 1 + half - 200


def test_thousands_of_kept_buffers_cost_no_more_than_a_few():
    def cost(kept):
        workers._free.clear()
        keep(*range(64, 64 + kept))
        return steps(lambda: keep(100), workers)

    assert cost(4000) <= cost(60)


def test_scratch_memory_survives_an_interrupt_anywhere():
    stopped, small = 0, np.dtype(np.uint8)

    def call():
        keep(workers.RETAINED // 2, 1000, workers.RETAINED // 2 - 500)

    for _ in interrupted_everywhere(call, workers):
        stopped += 1
        keep(1)
        assert sum(buffer.nbytes for buffer in workers._free._buffers.values()) <= workers.RETAINED
        with workers.scratch((1000,), small) as one, workers.scratch((1000,), small) as other:
            assert not np.shares_memory(one, other)
    assert stopped > 20
    test_scratch_memory_kept_for_later_is_bounded()


# Rates ---------------------------------------------------------------------------------------------------------------


def test_the_machines_rates_are_positive_and_measured_once():
    rates = workers.machine_rates()
    assert min(rates.float32_rate, rates.float64_rate, rates.bandwidth) > 0
    assert workers.machine_rates() is rates
