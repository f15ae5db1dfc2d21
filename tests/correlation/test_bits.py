"""The same inputs give the same bits, whatever the number of threads, whoever calls, and wherever the process may run."""

import ast
import os
import threading

import bits
import numpy as np
import pytest
from bits import digests, problems
from processes import python

from cupycorr._correlation.cpu import planner, simd
from cupycorr._cpu import workers


@pytest.fixture(scope="module")
def alone():
    """Return the digests of results that one thread computes."""
    with workers.team_of(1):
        return digests()


@pytest.mark.parametrize("threads", [2, 3, pytest.param(8, marks=pytest.mark.slow), pytest.param(64, marks=pytest.mark.slow)])
def test_bits_do_not_depend_on_the_number_of_threads(threads, alone):
    with workers.team_of(threads):
        assert digests() == alone


def test_bits_do_not_depend_on_the_thread_that_calls(alone):
    found = []
    with workers.team_of(3):
        caller = threading.Thread(target=lambda: found.append(digests()))
        caller.start()
        caller.join()
    assert found == [alone]


IN_ANOTHER_PROCESS = """
    import os, sys
    sys.path.insert(0, {folder!r})
    if {where} == "on one core":
        os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
    from bits import digests
    if {where} == "forked":
        digests(3)  # the parent has threads and kernels when it forks
        read, write = os.pipe()
        if os.fork() == 0:
            os.write(write, repr(digests()).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as told:
            print(told.read())
    else:
        print(digests())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are chosen by calls of Linux")
@pytest.mark.parametrize("where", ["on one core", "forked"])
def test_bits_do_not_depend_on_the_process(where, alone):
    program = IN_ANOTHER_PROCESS.format(folder=os.path.dirname(bits.__file__), where=repr(where))
    assert ast.literal_eval(python(program)) == alone


def test_the_problems_are_of_one_task_and_of_many():
    # Otherwise threads would make no difference, and these tests would show nothing.
    tasks = []
    for case in problems():
        for side in (0, 1):
            tasks.append(planner.gradient_plan(simd.ENGINE, case.problem(), np.dtype(case.dtype), side).team.tasks)
    assert min(tasks) == 1
    assert max(tasks) >= 4
    assert np.count_nonzero(np.array(tasks) > 1) >= 10
