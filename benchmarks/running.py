"""The benchmark of one case and pass: results are compared, contestants timed in turn, and their memory measured."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import numpy as np

from . import memory, rivals
from .cases import Case, Inputs, array_dtype
from .rivals import Contestant, Work
from .timing import TURN, Clock, Stopwatch, Timing, cpu_stopwatch, race

ENOUGH = 4  # a rival whose first run takes this many budgets is not run again
ENQUEUED = 5e-3  # seconds; the host time of longer calls is hidden by the device's work, and not measured
MARGIN = 0.9  # the fraction of the available memory that may be used, because needs are estimates


@dataclass(frozen=True, slots=True)
class HostTimes:
    """The seconds that a call keeps the host busy, by the way of calling, or the reason why they are unknown."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one contestant on one case, element type and pass: a timing, or the reason why there is none."""

    case: str
    dtype: str
    which: str
    contestant: str
    ours: bool
    auto: bool
    timing: Timing | None = None
    ratio: float | None = None  # this contestant's time / that of the variant that auto runs
    regret: float | None = None  # for the variant that auto runs: its time / that of our fastest variant
    rate: float | None = None  # useful flop/s
    peak_bytes: int | None = None
    copies: int = 1  # copies of operands and results that are used in turn
    host: HostTimes = HostTimes()
    reason: str | None = None
    wrong: str | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """The functions and constants by which devices differ while contestants run."""

    stopwatch: Stopwatch
    automatic: Callable[[Case, str, str], str]  # (case, dtype, pass) -> the variant that auto runs
    place: Callable[[Inputs], Inputs]  # copies inputs to the device
    finish: Callable[[], None]  # waits until the device is idle
    available: Callable[[], int]  # bytes
    peak: Callable[[Case, Contestant, str, str], int | None]  # (case, contestant, pass, dtype) -> bytes beyond the inputs
    copies: Callable[[int], int] = lambda touched: 1  # bytes that a call touches -> copies that keep them out of the cache
    host: Callable[[Contestant, Work, str, Case, Inputs], HostTimes] | None = None
    turn: float = TURN  # the least seconds of work in one turn
    clock: Clock = time.perf_counter  # for the runs before the race


CPU = Machine(
    cpu_stopwatch,
    lambda case, dtype, which: rivals.automatic(case, dtype, which),
    lambda inputs: inputs,
    lambda: None,
    memory.available,
    lambda case, contestant, which, dtype: memory.peak_in_own_process(
        "benchmarks", [*rivals.load_options(), "--dtype", dtype, "--measure-memory", case.name, contestant.name, which]
    ),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a run: element type, seconds for a case and pass, whether memory is measured, and the machine."""

    dtype: str = "float32"
    budget: float = 10.0
    measure_memory: bool = True
    machine: Machine = CPU


def run(case: Case, which: str, contestants: Sequence[Contestant], settings: Settings) -> list[Row]:
    """Time every contestant that can run; return rows in the order of ``contestants``."""
    machine, dtype = settings.machine, settings.dtype
    auto = machine.automatic(case, dtype, which)
    # Our variant comes first, because the other results are compared with its result.
    ordered = sorted(contestants, key=lambda c: not (c.ours and c.name == auto))
    copies = {c.name: _copies(c, case, which, settings) for c in contestants}
    operands = _placed(case, which, settings, max(copies.values(), default=1))
    reasons = reasons_not_to_run(ordered, case, which, dtype, machine.available(), copies)
    works, warm, wrong = _warmed(ordered, reasons, case, which, settings, operands, copies)
    timings = race(works, warm, settings.budget, machine.stopwatch, machine.turn)
    hosts = {
        c.name: machine.host(c, works[c.name], which, case, operands[0])
        for c in ordered
        if machine.host and c.name in timings and timings[c.name].median < ENQUEUED
    }
    works.clear()  # a rival's autograd graph may hold gigabytes, which the measurement of memory needs
    operands.clear()
    base = timings[auto].median if auto in timings else None
    rows = []
    for contestant in contestants:
        name = contestant.name
        row = {"case": case.name, "dtype": dtype, "which": which, "contestant": name, "ours": contestant.ours}
        row["auto"] = name == auto
        if name in timings:
            median = timings[name].median
            peak = machine.peak(case, contestant, which, dtype) if settings.measure_memory else None
            row |= {"timing": timings[name], "ratio": median / base if base else None, "peak_bytes": peak}
            row |= {"copies": copies[name], "rate": case.useful_flops(which) / median}
            row["regret"] = _regret(timings, auto, contestants) if name == auto else None
            row["host"] = hosts.get(name, HostTimes())
        rows.append(Row(**row, reason=reasons[name], wrong=wrong.get(name)))
    return rows


def _regret(timings: Mapping[str, Timing], auto: str, contestants: Sequence[Contestant]) -> float | None:
    """Return the time of auto's variant over that of our fastest variant, None where there was no choice."""
    ours = [timings[c.name].median for c in contestants if c.ours and c.name in timings]
    return timings[auto].median / min(ours) if len(ours) > 1 else None


# Memory --------------------------------------------------------------------------------------------------------------


def _copies(contestant: Contestant, case: Case, which: str, settings: Settings) -> int:
    """Return how many copies of operands and results a contestant uses in turn; it also touches a graph that it keeps."""
    touched = case.bytes(settings.dtype, which)
    if contestant.keeps_graph(which):
        touched = max(touched, contestant.bytes(case.problem, array_dtype(settings.dtype).itemsize, which))
    return settings.machine.copies(touched)


def _placed(case: Case, which: str, settings: Settings, count: int) -> list[Inputs]:
    inputs = case.inputs(settings.dtype, which)
    return [settings.machine.place(inputs) for _ in range(count)]


def reasons_not_to_run(
    contestants: Sequence[Contestant], case: Case, which: str, dtype: str, available: int, copies: Mapping[str, int]
) -> dict[str, str | None]:
    """Return why each contestant cannot run, None where it can. All that run are in memory at once, so their needs add up."""
    reasons: dict[str, str | None] = {}
    available, taken = int(available * MARGIN), 0
    for contestant in contestants:
        reason = contestant.why_not(case, dtype, which)
        needed = _needed(contestant, case, which, dtype, copies[contestant.name])
        if reason is None and taken + needed > available:
            reason = f"needs {gibibytes(needed)} of memory, {gibibytes(max(available - taken, 0))} are available"
        taken += needed if reason is None else 0
        reasons[contestant.name] = reason
    return reasons


def _needed(contestant: Contestant, case: Case, which: str, dtype: str, copies: int) -> int:
    """Return the bytes of one call, and of what every further copy keeps: a graph, or only the results."""
    at_once = contestant.bytes(case.problem, array_dtype(dtype).itemsize, which)
    return at_once + (copies - 1) * (at_once if contestant.keeps_graph(which) else case.result_bytes(dtype, which))


def gibibytes(count: int) -> str:
    """Return a number of bytes as text."""
    return f"{count / 2**30:.3g} GiB"


# Before the race -----------------------------------------------------------------------------------------------------


def _warmed(
    contestants: Sequence[Contestant],
    reasons: dict[str, str | None],
    case: Case,
    which: str,
    settings: Settings,
    operands: Sequence[Inputs],
    copies: Mapping[str, int],
) -> tuple[dict[str, Work], dict[str, tuple[float, ...]], dict[str, str]]:
    """Run every contestant before the race and compare the results; return works, their seconds, and what is wrong, by name.

    Contestants with a reason not to run are left out; a rival that fails gets such a reason.
    """
    works: dict[str, Work] = {}
    warm: dict[str, tuple[float, ...]] = {}
    wrong: dict[str, str] = {}
    want: tuple[np.ndarray, ...] | None = None
    for contestant in (c for c in contestants if reasons[c.name] is None):
        try:
            work = in_turn([contestant.prepare(which, case, each) for each in operands[: copies[contestant.name]]])
            result, first = _clocked(work, settings.machine)
        except (MemoryError, RuntimeError) as error:
            if contestant.ours:
                raise
            reasons[contestant.name] = f"failed: {first_line(error)}"
            continue
        if want is None:
            want = tuple(rivals.as_numpy(part) for part in result)
        elif problem := rivals.disagreement(result, want, settings.dtype):
            wrong[contestant.name] = problem
            continue
        del result
        # The first run of our variants may compile. One run can be disturbed, so a single run counts only where it is very long.
        seconds = () if contestant.ours else (first,)
        if contestant.ours or first <= ENOUGH * settings.budget:
            seconds += (_clocked(work, settings.machine)[1],)
        works[contestant.name], warm[contestant.name] = work, seconds
    return works, warm, wrong


def in_turn(works: Sequence[Work]) -> Work:
    """Return a work whose calls do these works in turn and keep the results of the others, so that none shares memory."""
    if len(works) == 1:
        return works[0]
    turns, kept = cycle(works), deque(maxlen=len(works) - 1)

    def work() -> tuple[Any, ...]:
        kept.append(next(turns)())
        return kept[-1]

    return work


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _clocked(work: Callable[[], Any], machine: Machine) -> tuple[Any, float]:
    begin = machine.clock()
    result = work()
    machine.finish()
    return result, machine.clock() - begin


def peak_bytes(case: Case, contestant: Contestant, which: str, dtype: str) -> int:
    """Return the peak bytes beyond the inputs, in this process. A rival's backward pass counts with the graph that it needs."""
    small = case.small()
    contestant.prepare(which, small, small.inputs(dtype, which))()  # the memory of libraries and compilers does not count
    inputs = case.inputs(dtype, which)
    return memory.peak_increase(lambda: contestant.prepare(which, case, inputs)())
