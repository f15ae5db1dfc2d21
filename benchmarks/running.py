"""One case, one pass: who takes part, whether they do the same work, how long each takes and what memory it needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cupycorr._dtypes import named_dtype

from . import memory, rivals
from .cases import Case, Inputs
from .rivals import Contestant, Work
from .timing import Stopwatch, Timing, cpu_stopwatch, race

ENOUGH = 4  # a rival's first run that takes this many budgets is not repeated
ENQUEUED = 5e-3  # seconds: what takes longer keeps nobody waiting for the host
MARGIN = 0.9  # share of the available memory that may be used: estimates are estimates, and others use the machine too


@dataclass(frozen=True, slots=True)
class Row:
    """What is known about one contestant on one case and pass: a timing, or why there is none."""

    case: str
    which: str
    contestant: str
    ours: bool
    auto: bool
    timing: Timing | None = None
    ratio: float | None = None  # this contestant's time / that of the variant auto runs
    rate: float | None = None  # useful flop/s
    peak_bytes: int | None = None
    host: float | None = None  # seconds that a call keeps the host busy, where the work is done elsewhere
    reason: str | None = None
    wrong: str | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """What differs between devices while contestants run."""

    stopwatch: Stopwatch
    automatic: Callable[[Case, str], str]  # (case, dtype) -> the variant that auto runs
    place: Callable[[Inputs], Inputs]  # to where the work is done
    finish: Callable[[], None]  # waits for the work that was asked for
    available: Callable[[], int]  # bytes
    peak: Callable[[Case, Contestant, str, str], int | None]  # (case, contestant, pass, dtype) -> bytes beyond the inputs
    host: Callable[[Work], float] | None = None  # seconds that a call keeps the host busy


CPU = Machine(
    cpu_stopwatch,
    lambda case, dtype: rivals.automatic(case, dtype),
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
    machine = settings.machine
    auto = machine.automatic(case, settings.dtype)
    # Ours first: its numbers are what the others are held against.
    ordered = sorted(contestants, key=lambda c: not (c.ours and c.name == auto))
    reasons = refusals(ordered, case, which, settings.dtype, machine.available())
    works, warm, wrong = _warmed(ordered, reasons, case, which, settings)
    timings = race(works, warm, settings.budget, machine.stopwatch)
    hosts = {name: machine.host(works[name]) for name in works if machine.host and timings[name].median < ENQUEUED}
    works.clear()  # a rival's graph may hold gigabytes that the measurement of memory needs
    base = timings[auto].median if auto in timings else None
    rows = []
    for contestant in contestants:
        name = contestant.name
        row = {"case": case.name, "which": which, "contestant": name, "ours": contestant.ours, "auto": name == auto}
        if name in timings:
            median = timings[name].median
            peak = machine.peak(case, contestant, which, settings.dtype) if settings.measure_memory else None
            row |= {"timing": timings[name], "ratio": median / base if base else None, "peak_bytes": peak}
            row["host"] = hosts.get(name)
            row["rate"] = case.useful_flops(which) / median
        rows.append(Row(**row, reason=reasons[name], wrong=wrong.get(name)))
    return rows


def refusals(contestants: Sequence[Contestant], case: Case, which: str, dtype: str, available: int) -> dict[str, str | None]:
    """Why each contestant does not run, None where it does. All that do are in memory at once, so their needs add up."""
    found: dict[str, str | None] = {}
    available = int(available * MARGIN)
    itemsize, taken = named_dtype(dtype).itemsize, 0
    for contestant in contestants:
        reason = contestant.refusal(case, dtype, which)
        needed = contestant.bytes(case.problem, itemsize, which)
        if reason is None and taken + needed > available:
            reason = f"needs {gibibytes(needed)} of memory, {gibibytes(max(available - taken, 0))} are available"
        taken += needed if reason is None else 0
        found[contestant.name] = reason
    return found


def gibibytes(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 2**30:.3g} GiB"


def _warmed(
    contestants: Sequence[Contestant], reasons: dict[str, str | None], case: Case, which: str, settings: Settings
) -> tuple[dict[str, Work], dict[str, tuple[float, ...]], dict[str, str]]:
    """Run everybody before the race and compare the numbers: (works, seconds of those runs, who is wrong and how).

    Only those without a reason not to run; a rival that fails gets one.
    """
    inputs = settings.machine.place(case.inputs(settings.dtype, which))
    finish = settings.machine.finish
    works: dict[str, Work] = {}
    warm: dict[str, tuple[float, ...]] = {}
    wrong: dict[str, str] = {}
    want: tuple[np.ndarray, ...] | None = None
    for contestant in (c for c in contestants if reasons[c.name] is None):
        try:
            work = contestant.prepare(which, case, inputs)
            result, first = _clocked(work, finish)
        except (MemoryError, RuntimeError) as error:
            if contestant.ours:
                raise
            reasons[contestant.name] = f"failed: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
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
            seconds += (_clocked(work, finish)[1],)
        works[contestant.name], warm[contestant.name] = work, seconds
    return works, warm, wrong


def _clocked(work: Callable[[], Any], finish: Callable[[], None]) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = work()
    finish()
    return result, time.perf_counter() - begin


def peak_bytes(case: Case, contestant: Contestant, which: str, dtype: str) -> int:
    """Bytes at the peak beyond the inputs, in this process. A rival's backward counts with the graph it cannot do without."""
    small = case.small()
    contestant.prepare(which, small, small.inputs(dtype, which))()  # libraries, threads and compilers are not counted
    inputs = case.inputs(dtype, which)
    return memory.peak_increase(lambda: contestant.prepare(which, case, inputs)())
