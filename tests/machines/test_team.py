"""A team runs every compiled task once, stage after stage, and no thread touches a task's memory when the call is over."""

import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, combinations

import numpy as np
import pytest
from processes import ROOT, interrupted_everywhere, needs_fork, python
from team_kernels import Counted, Marked, Meeting
from waiting import STUCK

from cupycorr._cpu import llvm, team, workers

pytestmark = pytest.mark.skipif(llvm.why_not() is not None, reason=str(llvm.why_not()))

THREADS = [1, 2, 5]
BYTES = np.dtype(np.uint8)


@pytest.fixture
def submitted(monkeypatch):
    """Return a list that receives what helpers are asked to call, instead of the helpers."""
    functions = []
    monkeypatch.setattr(workers, "submit", lambda function, count: functions.extend([function] * count))
    return functions


def until(condition):
    """Wait for a condition."""
    pause = threading.Event()
    while not condition():
        pause.wait(0.001)


def submit_until_a_helper_is_in(meeting, then):
    """Return a substitute for `workers.submit` that returns when a helper runs a task, and calls a function before."""
    submit = workers.submit

    def substitute(function, count):
        submit(function, count)
        until(lambda: meeting.arrived() or not meeting.arguments[1])
        then()

    return substitute


# Tasks and stages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("counts", [[[1]], [[7]], [[1000]], [[3, 0, 5], [1], [0, 0, 200, 1]], [[], [4], [0], [2, 2]]], ids=str)
def test_every_task_is_run_exactly_once(counts, threads):
    for _ in range(20):
        stages = [[Counted(count) for count in stage] for stage in counts]
        team.Program([[each.tasks for each in stage] for stage in stages], 64).run(threads)
        for each in chain(*stages):
            assert each.times() == ([1] if each.tasks.count else [])
            assert each.runs[-1] == 0


@pytest.mark.parametrize("yields", [True, False], ids=["yields", "cannot yield"])
@pytest.mark.parametrize("threads", THREADS)
def test_a_stage_begins_when_all_tasks_of_the_one_before_have_finished(threads, yields, monkeypatch):
    if not yields:
        monkeypatch.setattr(team, "_yield_address", lambda: 0)
    needed = min(threads, 2)
    first = Meeting(2, needed, delay=5_000_000)  # one thread is free long before the other
    second, third = Marked(first, 3), Counted(10)
    with first.ending():
        team.Program([[first.tasks], [second.tasks], [third.tasks]], 64).run(threads)
    assert second.found.tolist() == [2, 2, 2]
    assert third.times() == [1]


@pytest.mark.parametrize("threads", THREADS)
def test_so_many_threads_take_part_at_once_each_with_scratch_memory_of_its_own(threads):
    meeting = Meeting(threads, threads)
    with meeting.ending():
        team.Program([[meeting.tasks]], 1000).run(threads)
    assert meeting.arrived() == threads
    addresses = meeting.marks.tolist()
    assert [at % 64 for at in addresses] == [0] * threads
    assert all(abs(one - other) >= 1000 for one, other in combinations(addresses, 2))


@pytest.mark.parametrize("threads", THREADS)
def test_scratch_memory_is_taken_from_that_which_calls_share(threads):
    workers._free.clear()
    meeting = Meeting(threads, threads)
    with meeting.ending():
        team.Program([[meeting.tasks]], 10_000).run(threads)
    with workers.scratch((10_000 * threads,), BYTES) as memory:
        begin, end = memory.base.ctypes.data, memory.base.ctypes.data + memory.base.nbytes
    assert all(begin <= at <= end - 10_000 for at in meeting.marks)


@pytest.mark.parametrize("counts", [[], [[]], [[], []], [[0]], [[0, 0], [0]], [[1]], [[1], [0], [1]], [[0, 1, 0]]], ids=str)
def test_stages_of_one_task_or_none_ask_for_no_helper(counts, submitted):
    stages = [[Counted(count) for count in stage] for stage in counts]
    team.Program([[each.tasks for each in stage] for stage in stages], 64).run(8)
    assert submitted == []
    assert all(each.times() == [1] * each.tasks.count for each in chain(*stages))


@pytest.mark.parametrize(("threads", "helpers"), [(1, 0), (2, 1), (4, 3), (50, 4)])
def test_no_more_helpers_are_asked_for_than_have_something_to_do(threads, helpers, submitted):
    stages = [Counted(2), Counted(5), Counted(1)]
    team.Program([[each.tasks] for each in stages], 64).run(threads)
    assert len(submitted) == helpers


def test_a_helper_for_whom_there_is_no_scratch_memory_runs_no_task(monkeypatch):
    meeting = Meeting(3, 2)
    arrived = []

    def submit(function, count):
        """Call the function in two threads, though one was asked for."""
        first, second = (threading.Thread(target=function, daemon=True) for _ in range(2))
        first.start()
        until(meeting.arrived)
        second.start()
        second.join(STUCK)
        arrived.append(meeting.arrived())

    monkeypatch.setattr(workers, "submit", submit)
    with meeting.ending():
        team.Program([[meeting.tasks]], 64).run(2)
    assert arrived == [1]
    assert len(set(meeting.marks.tolist())) <= 2


# Late helpers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", [1, 2, 3])
def test_a_helper_that_comes_late_touches_neither_tasks_nor_scratch_memory(late, monkeypatch):
    monkeypatch.setattr(workers, "_helpers", workers._Helpers())
    workers._free.clear()
    held, release, through = threading.Barrier(late + 1), threading.Event(), threading.Barrier(late + 1)

    def hold():
        held.wait(STUCK)
        release.wait(STUCK)

    workers.submit(hold, late)
    held.wait(STUCK)
    stages = [Counted(5), Counted(9), Counted(2)]
    team.Program([[each.tasks] for each in stages], 1000).run(late + 1)
    assert [each.times() for each in stages] == [[1]] * 3
    with workers.scratch((1000,), BYTES) as memory:
        memory.base.fill(123)
        for each in stages:
            each.runs.fill(45)
        release.set()
        workers.submit(lambda: through.wait(STUCK) and None, late)  # behind the late requests in the queue
        through.wait(STUCK)
        assert set(memory.base.tolist()) == {123}
    assert [each.times() for each in stages] == [[45]] * 3


def test_the_memory_of_a_job_lives_as_long_as_the_requests_to_helpers(submitted, monkeypatch):
    jobs = []
    execute = team._execute

    def watched(job, helpers):
        jobs.append(weakref.ref(job))
        execute(job, helpers)

    monkeypatch.setattr(team, "_execute", watched)
    tasks = Counted(4)
    team.Program([[tasks.tasks]], 64).run(2)
    (job,) = jobs
    assert job() is not None
    submitted.pop()()
    assert job() is None
    assert tasks.times() == [1]


# Many calls ----------------------------------------------------------------------------------------------------------


def test_calls_from_several_threads_go_together():
    def call(number):
        for _ in range(100):
            stages = [Counted(3 + number), Counted(1), Counted(40)]
            team.Program([[each.tasks] for each in stages], 100).run(1 + number % 4)
            assert [each.times() for each in stages] == [[1]] * 3
        return number

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(call, range(6))) == list(range(6))


def test_a_call_in_a_helper_needs_no_other_helper():
    both = threading.Barrier(2)

    def task(_):
        both.wait(STUCK)  # all helpers are busy
        stages = [Counted(30), Counted(20)]
        team.Program([[each.tasks] for each in stages], 64).run(3)
        assert [each.times() for each in stages] == [[1], [1]]

    workers.run(task, range(20), 2)


# Control-C -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
def test_after_an_interrupt_anywhere_all_tasks_have_finished_or_none_was_begun(threads, monkeypatch):
    submit, asked = workers.submit, []
    monkeypatch.setattr(workers, "submit", lambda function, count: (asked.append(count), submit(function, count)))
    stages = []

    def call():
        asked.clear()
        stages[:] = Counted(7), Counted(50)
        team.Program([[each.tasks] for each in stages], 64).run(threads)

    stopped = 0
    for _ in interrupted_everywhere(call, team):
        stopped += 1
        times = [each.times() for each in stages]
        assert times == [[1], [1]] or (times == [[0], [0]] and not asked)
    assert stopped > 10


def test_an_interrupted_call_waits_for_the_helper_that_runs_a_task(monkeypatch):
    meeting, behind = Meeting(2, 2, delay=1_000_000), Counted(20)

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "submit", submit_until_a_helper_is_in(meeting, interrupt))
    with meeting.ending():
        with pytest.raises(KeyboardInterrupt):
            team.Program([[meeting.tasks], [behind.tasks]], 64).run(2)
        assert meeting.marks.all()
        assert behind.times() == [1]


@pytest.mark.parametrize("interrupts", [1, 2, 5])
def test_a_call_that_is_interrupted_again_finishes_all_tasks(interrupts, monkeypatch):
    executor, left, tasks = team._executor(), [interrupts], Counted(9)

    def interrupted(at, role):
        if left[0]:
            left[0] -= 1
            raise KeyboardInterrupt
        executor(at, role)

    monkeypatch.setattr(team, "_executor", lambda: interrupted)
    with pytest.raises(KeyboardInterrupt):
        team.Program([[tasks.tasks]], 64).run(1)
    assert tasks.times() == [1]


# Forks ---------------------------------------------------------------------------------------------------------------

FORK = """
    import os, sys, threading
    from cupycorr._cpu import team, workers
    from team_kernels import Counted, Meeting

    def meet():
        meeting = Meeting(2, 2)
        with meeting.ending():
            team.Program([[meeting.tasks]], 64).run(2)
        assert meeting.arrived() == 2 and meeting.marks.all()

    def fork(child):
        process = os.fork()
        if process:
            return process
        try:
            child()
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)

    def ended(process):
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
"""
IN_A_CHILD = """
    meet()
    ended(fork(meet))
    ended(fork(lambda: ended(fork(meet))))
    meet()
"""
IN_THE_MIDDLE = """
    submit, meeting, processes = workers.submit, Meeting(2, 2), []

    def interfere(function, count):
        submit(function, count)
        while not meeting.arrived():
            pass
        processes.append(os.fork())  # as a signal handler may

    workers.submit = interfere
    try:
        team.Program([[meeting.tasks]], 64).run(2)
    except RuntimeError as error:
        assert processes == [0] and "forked in the middle of a call" in str(error)
        workers.submit = submit
        meet()
        os._exit(0)
    ended(*processes)
    assert meeting.marks.all()
"""


def forking(program):
    assert python(FORK + program, PYTHONPATH=os.pathsep.join((str(ROOT), str(ROOT / "tests" / "support")))) == ""


@needs_fork
def test_a_forked_child_has_helpers_of_its_own():
    forking(IN_A_CHILD)


@needs_fork
def test_a_child_forked_in_the_middle_of_a_call_is_told_so_and_the_parent_goes_on():
    forking(IN_THE_MIDDLE)
