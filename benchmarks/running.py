"""One case, one pass: who takes part, whether they do the same work, how long each takes and what memory it needs."""

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

ENOUGH = 4  # a rival's first run that takes this many budgets is not repeated
ENQUEUED = 5e-3  # seconds: what takes longer keeps nobody waiting for the host
MARGIN = 0.9  # share of the available memory that may be used: estimates are estimates, and others use the machine too


@dataclass(frozen=True, slots=True)
class HostTimes:
    """Seconds that a call keeps the host busy where the work is done elsewhere, by the way it is asked for; or why unknown."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """What is known about one contestant on one case, element type and pass: a timing, or why there is none."""

    case: str
    dtype: str
    which: str
    contestant: str
    ours: bool
    auto: bool
    timing: Timing | None = None
    ratio: float | None = None  # this contestant's time / that of the variant auto runs
    regret: float | None = None  # of the variant auto runs: its time / that of the best of ours
    rate: float | None = None  # useful flop/s
    peak_bytes: int | None = None
    copies: int = 1  # of operands and results, used in turn
    host: HostTimes = HostTimes()
    reason: str | None = None
    wrong: str | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """What differs between devices while contestants run."""

    stopwatch: Stopwatch
    automatic: Callable[[Case, str, str], str]  # (case, dtype, pass) -> the variant that auto runs
    place: Callable[[Inputs], Inputs]  # to where the work is done
    finish: Callable[[], None]  # waits for the work that was asked for
    available: Callable[[], int]  # bytes
    peak: Callable[[Case, Contestant, str, str], int | None]  # (case, contestant, pass, dtype) -> bytes beyond the inputs
    copies: Callable[[int], int] = lambda touched: 1  # of what a call touches (bytes), so that it finds none of it in a cache
    host: Callable[[Contestant, Work, str, Case, Inputs], HostTimes] | None = None
    turn: float = TURN  # seconds of work in one turn, at least
    clock: Clock = time.perf_counter  # for the runs before the race


CPU = Machine(
    cpu_stopwatch,
    lambda case, dtype, which: rivals.automatic(case, dtype, which),
    lambda inputs: inputs,
    lambda: None,
    memory.available,
    lambda case, contestant, which, dtype: memory.peak_in_own_process(case.name, contestant.name, which, dtype),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run: the element type, the seconds a case and pass may take, whether memory is measured, and on what machine."""

    dtype: str = "float32"
    budget: float = 10.0
    measure_memory: bool = True
    machine: Machine = CPU


def run(case: Case, which: str, contestants: Sequence[Contestant], settings: Settings) -> list[Row]:
    """Time every contestant that can take part; rows in the order of ``contestants``."""
    machine, dtype = settings.machine, settings.dtype
    auto = machine.automatic(case, dtype, which)
    # Ours first: its numbers are what the others are held against.
    ordered = sorted(contestants, key=lambda c: not (c.ours and c.name == auto))
    copies = {c.name: _copies(c, case, which, settings) for c in contestants}
    operands = _placed(case, which, settings, max(copies.values(), default=1))
    reasons = refusals(ordered, case, which, dtype, machine.available(), copies)
    works, warm, wrong = _warmed(ordered, reasons, case, which, settings, operands, copies)
    timings = race(works, warm, settings.budget, machine.stopwatch, machine.turn)
    hosts = {
        c.name: machine.host(c, works[c.name], which, case, operands[0])
        for c in ordered
        if machine.host and c.name in timings and timings[c.name].median < ENQUEUED
    }
    works.clear()  # a rival's graph may hold gigabytes that the measurement of memory needs
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
    """How many times as long as the best of ours the chosen one takes; None where there was no choice."""
    ours = [timings[c.name].median for c in contestants if c.ours and c.name in timings]
    return timings[auto].median / min(ours) if len(ours) > 1 else None


# Memory --------------------------------------------------------------------------------------------------------------


def _copies(contestant: Contestant, case: Case, which: str, settings: Settings) -> int:
    """How many copies of operands and results a contestant works on in turn. A graph that it keeps with each is touched, too."""
    touched = case.bytes(settings.dtype, which)
    if contestant.keeps_graph(which):
        touched = max(touched, contestant.bytes(case.problem, array_dtype(settings.dtype).itemsize, which))
    return settings.machine.copies(touched)


def _placed(case: Case, which: str, settings: Settings, count: int) -> list[Inputs]:
    inputs = case.inputs(settings.dtype, which)
    return [settings.machine.place(inputs) for _ in range(count)]


def refusals(
    contestants: Sequence[Contestant], case: Case, which: str, dtype: str, available: int, copies: Mapping[str, int]
) -> dict[str, str | None]:
    """Why each contestant does not run, None where it does. All that do are in memory at once, so their needs add up."""
    found: dict[str, str | None] = {}
    available, taken = int(available * MARGIN), 0
    for contestant in contestants:
        reason = contestant.refusal(case, dtype, which)
        needed = _needed(contestant, case, which, dtype, copies[contestant.name])
        if reason is None and taken + needed > available:
            reason = f"needs {gibibytes(needed)} of memory, {gibibytes(max(available - taken, 0))} are available"
        taken += needed if reason is None else 0
        found[contestant.name] = reason
    return found


def _needed(contestant: Contestant, case: Case, which: str, dtype: str, copies: int) -> int:
    """Bytes of what a contestant works in, and of what it keeps with each copy: a graph, or only the results."""
    at_once = contestant.bytes(case.problem, array_dtype(dtype).itemsize, which)
    return at_once + (copies - 1) * (at_once if contestant.keeps_graph(which) else case.result_bytes(dtype, which))


def gibibytes(count: int) -> str:
    """A number of bytes for people."""
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
    """Run everybody before the race and compare the numbers: (works, seconds of those runs, who is wrong and how).

    Only those without a reason not to run; a rival that fails gets one.
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
        # The first run of ours may have compiled something. One run can be disturbed, so one alone only counts if it must.
        seconds = () if contestant.ours else (first,)
        if contestant.ours or first <= ENOUGH * settings.budget:
            seconds += (_clocked(work, settings.machine)[1],)
        works[contestant.name], warm[contestant.name] = work, seconds
    return works, warm, wrong


def in_turn(works: Sequence[Work]) -> Work:
    """Each call does the next of these works, round and round, into memory that none of the calls between has written to."""
    if len(works) == 1:
        return works[0]
    turns, kept = cycle(works), deque(maxlen=len(works) - 1)

    def work() -> tuple[Any, ...]:
        kept.append(next(turns)())
        return kept[-1]

    return work


def first_line(error: BaseException) -> str:
    """What an error says, in short."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _clocked(work: Callable[[], Any], machine: Machine) -> tuple[Any, float]:
    begin = machine.clock()
    result = work()
    machine.finish()
    return result, machine.clock() - begin


def peak_bytes(case: Case, contestant: Contestant, which: str, dtype: str) -> int:
    """Bytes at the peak beyond the inputs, in this process. A rival's backward counts with the graph it cannot do without."""
    small = case.small()
    contestant.prepare(which, small, small.inputs(dtype, which))()  # libraries, threads and compilers are not counted
    inputs = case.inputs(dtype, which)
    return memory.peak_increase(lambda: contestant.prepare(which, case, inputs)())
