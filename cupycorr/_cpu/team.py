"""Threads that share compiled tasks, each in one compiled call, so that the interpreter and its lock take no part in the sharing.

A compiled function, the executor, takes tasks by atomic counters until none is left and then waits for those that other threads
run. Each member of a team takes the tasks of its own share of a stage first, which are neighbours: what a member wrote in one
stage is in its core's cache in the next. Then it takes what is left of the other shares. The executor works on the memory of a
job, an array of int64 (one of the standard library, which is made in less time):

    head    the number of helpers that have joined, the number of members that have scratch memory, ...
    stages  of each stage the number of tasks finished, their total, the index of its first row, and the tasks taken of each share
    rows    of each `Tasks` the function, its arguments and the number of tasks

The caller never waits for a helper to return to the interpreter. Once the counters say that all tasks have finished, a helper
that joins late finds no task and touches only the memory of the job, which it keeps alive. This module knows no operator.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from . import workers
from .llvm import LINE, NUMBER, KernelWriter, aligned_address, compiled, lock

# The entries of the head of a job.
_JOINED, _MEMBERS, _SCRATCH, _STRIDE, _STAGES, _YIELD, _FORKS, _FORKS_ADDRESS, _ARGUMENTS = range(9)
_HEAD = 16

# The entries of a stage, which is followed by one counter for each share. Each counter has as many entries as a cache line.
_FINISHED, _TOTAL, _FIRST_ROW = range(3)
_COUNTER = 8
_ROW = 3  # as many entries as `Tasks` has

_BYTES = np.dtype(np.uint8)
_PAUSES = 1024  # between two yields of the processor: some tens of microseconds
_CALLER, _HELPER = 0, 1

_forks = ctypes.c_int64(0)  # the number of forks between the first process and this one, which the executor reads
_forks_address = ctypes.addressof(_forks)


class Tasks(NamedTuple):
    """Tasks of one compiled function ``void f(int64* arguments, int64 task, void* scratch)``, numbered from 0.

    Attributes
    ----------
    function
        The address of the function.
    arguments
        The distance in bytes of its arguments from the address that `Program.run` is given.
    count
        The number of tasks.
    """

    function: int
    arguments: int
    count: int  # type: ignore[assignment]  # tuples have a method of this name, which no one calls here


class Program:
    """Stages of tasks that run one after the other, and the tasks of each stage in any order.

    Parameters
    ----------
    stages
        The tasks of each stage. The caller keeps the memory of functions and arguments alive while the program runs.
    scratch
        The bytes of scratch memory that each thread has for its tasks, aligned to 64 bytes.
    """

    def __init__(self, stages: Sequence[Sequence[Tasks]], scratch: int) -> None:
        self._stages = stages
        self._most = max((sum(tasks[2] for tasks in stage) for stage in stages), default=0)  # tasks of one stage
        self._stride = -(-scratch // LINE) * LINE
        self._jobs: dict[int, array[int]] = {}

    def run(self, threads: int, arguments: int = 0) -> None:
        """Run all tasks in up to ``threads`` threads, the calling one among them.

        When this function returns or raises, every task that was begun has finished and no thread touches the tasks' memory any
        more. Control-C is raised when all tasks have finished. ``arguments`` is the address that `Tasks.arguments` count from.
        """
        if not self._most:
            return
        members = max(min(threads, self._most), 1)
        prepared = self._jobs.get(members)
        if prepared is None:
            prepared = self._jobs[members] = self._job(members)
        with workers.scratch((members * self._stride + LINE,), _BYTES) as memory:
            job = prepared[:]
            job[_SCRATCH] = aligned_address(memory)
            job[_FORKS], job[_ARGUMENTS] = _forks.value, arguments
            _execute(job, members - 1)

    def _job(self, members: int) -> array[int]:
        """Return a job of so many members, without what is known only when it runs."""
        head, counters = [0] * _HEAD, []
        rows: list[int] = []
        first_row = _HEAD + len(self._stages) * (1 + members) * _COUNTER
        for stage in self._stages:
            counters += [0, sum(tasks[2] for tasks in stage), first_row + len(rows), *[0] * (_COUNTER - 3)]
            counters += [0] * (members * _COUNTER)
            for tasks in stage:
                rows += tasks
        head[_MEMBERS], head[_STRIDE], head[_STAGES] = members, self._stride, len(self._stages)
        head[_YIELD], head[_FORKS_ADDRESS] = _yield_address(), _forks_address
        return array("q", [*head, *counters, *rows])


def _execute(job: array[int], helpers: int) -> None:
    """Run all tasks of a job, with the help of threads that begin in time."""
    execute, (at, _) = _executor(), job.buffer_info()
    try:
        if helpers:
            workers.submit(partial(_help, job, at), helpers)
        execute(at, _CALLER)
    except BaseException:
        _finish(execute, at)
        raise
    if helpers and job[_FORKS] != _forks.value:
        raise RuntimeError("the process was forked in the middle of a call, whose other threads the child does not have")


def _finish(execute: Callable[..., None], at: int) -> None:
    """Run the tasks of an interrupted job that are left: waiting is better than helpers that write into freed memory."""
    while True:
        try:
            execute(at, _CALLER)
        except BaseException:  # the first interrupt is raised
            continue
        return


def _help(job: array[int], at: int) -> None:
    """Run tasks of a job in a helper thread. The array is an argument so that it outlives the call."""
    _executor()(at, _HELPER)


def _count_fork() -> None:
    """Have a forked child abandon the jobs of its parent, whose other threads would never finish their tasks."""
    _forks.value += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


@lru_cache(maxsize=1)
def _yield_address() -> int:
    """Return the address of the system's function that yields the processor to another thread, or 0."""
    try:
        function = ctypes.CDLL(None).sched_yield
    except (TypeError, OSError, AttributeError):  # Windows
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@lru_cache(maxsize=1)
def _executor() -> Callable[..., None]:
    """Return the compiled function ``void execute(int64 job, int64 role)``."""
    with lock:
        return compiled(_ExecutorWriter)


class _ExecutorWriter(KernelWriter):
    """A writer of the executor."""

    def __init__(self) -> None:
        # The address of the job is a number: other threads write to its memory, so that the promise of a pointer would be false.
        super().__init__("execute", dict(job=NUMBER, role=NUMBER), itemsize=8)
        b, ir = self.builder, self.ir
        nothing, self.bytes = ir.VoidType(), ir.IntType(8).as_pointer()
        self.task = ir.FunctionType(nothing, [self.index.as_pointer(), self.index, self.bytes]).as_pointer()
        self.job = b.inttoptr(self.arguments["job"], self.index.as_pointer())
        self.leave = self.function.append_basic_block("leave")
        self.member = self._member()
        offset = b.mul(self.member, self._head(_STRIDE))
        self.scratch = b.inttoptr(b.add(self._head(_SCRATCH), offset), self.bytes)
        self.members = self._head(_MEMBERS)
        self.loop(self._head(_STAGES), self._stage)
        b.branch(self.leave)
        b.position_at_end(self.leave)
        b.ret_void()

    def _head(self, entry: int) -> Any:
        return self.builder.load(self.at(self.job, self.number(entry)))

    def _blocks(self, *names: str) -> list[Any]:
        return [self.function.append_basic_block(name) for name in names]

    def _count_up(self, counter: Any, ordering: str) -> Any:
        """Write the atomic increment of a counter; return the number before."""
        return self.builder.atomic_rmw("add", counter, self.number(1), ordering)

    def _member(self) -> Any:
        """Write the number of this thread among the members of the job, 0 for the caller; leave if there is none for it."""
        b = self.builder
        caller, helper, begin = self._blocks("caller", "helper", "begin")
        b.cbranch(b.icmp_signed("==", self.arguments["role"], self.number(_CALLER)), caller, helper)
        b.position_at_end(caller)
        forks = b.load(b.inttoptr(self._head(_FORKS_ADDRESS), self.index.as_pointer()))
        b.cbranch(b.icmp_signed("==", forks, self._head(_FORKS)), begin, self.leave)
        b.position_at_end(helper)
        joined = b.add(self._count_up(self.at(self.job, self.number(_JOINED)), "monotonic"), self.number(1))
        b.cbranch(b.icmp_signed("<", joined, self._head(_MEMBERS)), begin, self.leave)
        b.position_at_end(begin)
        member = b.phi(self.index)
        member.add_incoming(self.number(0), caller)
        member.add_incoming(joined, helper)
        return member

    def _stage(self, stage: Any, _: Sequence[Any]) -> None:
        """Write the tasks of a stage: run them as long as there are some, then wait for those of other threads."""
        b = self.builder
        size = b.mul(b.add(self.members, self.number(1)), self.number(_COUNTER))
        counters = self.at(self.job, self.number(_HEAD), b.mul(stage, size))
        finished = self.at(counters, self.number(_FINISHED))
        total, first_row = (b.load(self.at(counters, self.number(entry))) for entry in (_TOTAL, _FIRST_ROW))
        rows = self.at(self.job, first_row)

        def share(number: Any, _: Sequence[Any]) -> None:
            own = b.srem(b.add(self.member, number), self.members)
            begin, end = (b.sdiv(b.mul(total, each), self.members) for each in (own, b.add(own, self.number(1))))
            taken = self.at(counters, b.mul(b.add(own, self.number(1)), self.number(_COUNTER)))
            self._share(taken, begin, end, rows, finished)

        self.loop(self.members, share)
        self._wait(finished, total)

    def _share(self, taken: Any, begin: Any, end: Any, first_row: Any, finished: Any) -> None:
        """Write the tasks ``[begin, end)`` of a stage, of which a counter has the number that are taken."""
        b = self.builder
        before = b.block
        take, seek, skip, call, done = self._blocks("take", "seek", "skip", "call", "done")
        b.branch(take)

        b.position_at_end(take)  # the row of the last task, and the number of tasks in the rows before it
        row, preceding = b.phi(first_row.type), b.phi(self.index)
        task = b.add(begin, self._count_up(taken, "monotonic"))
        b.cbranch(b.icmp_signed("<", task, end), seek, done)

        b.position_at_end(seek)
        this_row, this_preceding = b.phi(first_row.type), b.phi(self.index)
        count = b.load(self.at(this_row, self.number(2)))
        within = b.sub(task, this_preceding)
        b.cbranch(b.icmp_signed("<", within, count), call, skip)

        b.position_at_end(skip)
        next_row, next_preceding = self.at(this_row, self.number(_ROW)), b.add(this_preceding, count)
        b.branch(seek)

        b.position_at_end(call)
        function, arguments = (b.load(self.at(this_row, self.number(entry))) for entry in range(2))
        arguments = b.inttoptr(b.add(self._head(_ARGUMENTS), arguments), self.index.as_pointer())
        b.call(b.inttoptr(function, self.task), [arguments, within, self.scratch])
        self._count_up(finished, "release")
        b.branch(take)

        for phi, first, last in ((row, first_row, this_row), (preceding, self.number(0), this_preceding)):
            phi.add_incoming(first, before)
            phi.add_incoming(last, call)
        for phi, first, last in ((this_row, row, next_row), (this_preceding, preceding, next_preceding)):
            phi.add_incoming(first, take)
            phi.add_incoming(last, skip)
        b.position_at_end(done)

    def _wait(self, finished: Any, total: Any) -> None:
        """Write the wait until all tasks have finished, which yields the processor to threads that need it to finish theirs."""
        b = self.builder
        before = b.block
        look, pause, can_yield, give_way, done = self._blocks("look", "pause", "can_yield", "give_way", "done")
        b.branch(look)
        b.position_at_end(look)
        looks = b.phi(self.index)
        b.cbranch(b.icmp_signed("==", b.load_atomic(finished, "acquire", 8), total), done, pause)
        b.position_at_end(pause)
        self._pause()
        more = b.add(looks, self.number(1))
        b.cbranch(b.icmp_signed("==", b.and_(more, self.number(_PAUSES - 1)), self.number(0)), can_yield, look)
        b.position_at_end(can_yield)
        function = self._head(_YIELD)
        b.cbranch(b.icmp_signed("!=", function, self.number(0)), give_way, look)
        b.position_at_end(give_way)
        b.call(b.inttoptr(function, self.ir.FunctionType(self.ir.IntType(32), []).as_pointer()), [])
        b.branch(look)
        looks.add_incoming(self.number(0), before)
        for block in (pause, can_yield, give_way):
            looks.add_incoming(more, block)
        b.position_at_end(done)

    def _pause(self) -> None:
        """Write the instruction that tells a processor of a waiting loop, which saves power and helps its other thread."""
        import llvmlite.binding as llvm

        processor = llvm.get_process_triple().partition("-")[0]
        nothing, int32 = self.ir.VoidType(), self.ir.IntType(32)
        if processor.startswith("x86"):
            self._instruction("llvm.x86.sse2.pause", self.ir.FunctionType(nothing, []), [])
        elif processor.startswith(("aarch64", "arm64")):
            self._instruction("llvm.aarch64.hint", self.ir.FunctionType(nothing, [int32]), [self.ir.Constant(int32, 1)])

    def _instruction(self, name: str, signature: Any, operands: Sequence[Any]) -> None:
        self.builder.call(self.module.globals.get(name) or self.ir.Function(self.module, signature, name), operands)
