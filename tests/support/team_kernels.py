"""Compiled functions that a team runs as tasks, which record what happened to them in their arguments."""

import threading
from contextlib import contextmanager
from functools import cache

import numpy as np
from waiting import STUCK

from cupycorr._cpu import llvm
from cupycorr._cpu.llvm import NUMBER, OFFSETS, VALUES, KernelWriter, address, compiled
from cupycorr._cpu.team import Tasks

_ARRIVED, _NEEDED, _DELAY, _MARKS = range(4)


class _Writer(KernelWriter):
    """A writer of a function of a team."""

    def __init__(self, write):
        super().__init__("task", dict(arguments=OFFSETS, task=NUMBER, scratch=VALUES), 8)
        write(self, self.builder, **self.arguments)
        self.builder.ret_void()


def _count(w, b, arguments, task, scratch):
    """Write ``arguments[task] += 1``, atomic so that a second run at the same time is counted too."""
    b.atomic_rmw("add", w.at(arguments, task), w.number(1), "monotonic")


def _meet(w, b, arguments, task, scratch):
    """Write a task that waits for other tasks, then for a time that grows with its number, then records its scratch memory."""
    arrived, needed, delay, mark = (w.at(arguments, w.number(entry)) for entry in range(4))
    b.atomic_rmw("add", arrived, w.number(1), "monotonic")
    look, met = w.function.append_basic_block("look"), w.function.append_basic_block("met")
    b.branch(look)
    b.position_at_end(look)
    few = b.icmp_signed("<", *(b.load_atomic(counter, "monotonic", 8) for counter in (arrived, needed)))
    b.cbranch(few, look, met)
    b.position_at_end(met)

    def pass_time(i, _):
        b.load_atomic(needed, "monotonic", 8)

    w.loop(b.mul(task, b.load(delay)), pass_time)
    b.store(b.ptrtoint(scratch, w.index), w.at(mark, task))


def _marks(w, b, arguments, task, scratch):
    """Write ``arguments[2 + task] = `` the number of values that are not 0, at an address and in a number of the arguments."""
    values, count = (b.load(w.at(arguments, w.number(entry))) for entry in range(2))
    values = b.inttoptr(values, w.index.as_pointer())

    def more(i, found):
        return [b.add(found[0], b.zext(b.icmp_signed("!=", b.load(w.at(values, i)), w.number(0)), w.index))]

    b.store(w.loop(count, more, [w.number(0)])[0], w.at(arguments, w.number(2), task))


@cache
def _kernel(write):
    with llvm.lock:
        return compiled(lambda: _Writer(write))


def _tasks(write, arguments, count):
    return Tasks(llvm.code_address(_kernel(write)), address(arguments), count)


class Counted:
    """Tasks that count how often each of them was run."""

    def __init__(self, count):
        self.runs = np.zeros(count + 1, np.int64)  # an array of no element has no address
        self.tasks = _tasks(_count, self.runs, count)

    def times(self):
        """Return the numbers of runs that occurred, sorted."""
        return sorted(set(self.runs[:-1].tolist()))


class Meeting:
    """Tasks none of which ends before some number of them have begun; the later ones can take longer."""

    def __init__(self, count, needed, delay=0):
        self.arguments = np.array([0, needed, delay, *[0] * count], np.int64)
        self.marks = self.arguments[_MARKS:]
        self.tasks = _tasks(_meet, self.arguments, count)

    def arrived(self):
        """Return how many tasks have begun."""
        return int(self.arguments[_ARRIVED])

    def end(self):
        """Let all tasks end."""
        self.arguments[_NEEDED] = 0

    @contextmanager
    def ending(self):
        """Return a context that ends the meeting, and within it, if it is stuck."""
        timer = threading.Timer(STUCK, self.end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self.end()


class Marked:
    """Tasks that record how many tasks of a meeting have ended."""

    def __init__(self, meeting, count):
        self.arguments = np.array([address(meeting.marks), meeting.marks.size, *[0] * count], np.int64)
        self.found = self.arguments[2:]
        self.tasks = _tasks(_marks, self.arguments, count)
