"""Interleaved timing: contestants run in turn, so that whatever disturbs the machine disturbs all of them.

A device brings its own stopwatch; everything else is the same on all devices.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Clock = Callable[[], float]  # -> seconds since a fixed moment
Stopwatch = Callable[[Callable[[], Any], int], float]  # (work, calls) -> seconds per call

MOST_RUNS = 30
FEWEST_RUNS = 2
TURN = 2e-3  # seconds; shorter work is called several times in its turn and the mean counts, a device may need less
MOST_CALLS = 1000
SETTLE = 5e-3  # seconds of sleep at once, before a run
MOST_SETTLES = 40


@dataclass(frozen=True, slots=True)
class Timing:
    """The seconds of every run.

    ``cut_short`` says that one run alone exceeds the budget, so that only the warm-up runs were timed.
    """

    seconds: tuple[float, ...]
    cut_short: bool = False

    @property
    def median(self) -> float:
        """The median of the seconds."""
        return statistics.median(self.seconds)

    @property
    def minimum(self) -> float:
        """The seconds of the fastest run."""
        return min(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile of the seconds."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        lower, _, upper = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return lower, upper

    @property
    def disturbed(self) -> bool:
        """True where a quarter of the runs took over twice as long as the fastest."""
        return self.quartiles[1] > 2 * self.minimum


def cpu_stopwatch(work: Callable[[], Any], calls: int, clock: Clock = time.perf_counter) -> float:
    """Return the seconds per call, the mean of ``calls`` in a row."""
    settle()
    begin = clock()
    for _ in range(calls):
        work()
    return (clock() - begin) / calls


def settle() -> None:
    """Sleep until no other thread of this process works: those of the contestant before may spin for tens of milliseconds."""
    for _ in range(MOST_SETTLES):
        before = time.process_time()
        time.sleep(SETTLE)
        if time.process_time() - before < SETTLE / 10:
            return


def race(
    works: Mapping[str, Callable[[], Any]],
    warm: Mapping[str, tuple[float, ...]],
    budget: float,
    stopwatch: Stopwatch = cpu_stopwatch,
    turn: float = TURN,
    most_runs: int = MOST_RUNS,
) -> dict[str, Timing]:
    """Time every work once a round, until each has used its share of the budget (seconds) and had `FEWEST_RUNS`.

    No work runs more than ``most_runs`` times. ``warm`` has the seconds of each work's warm-up runs. They are the result where
    the fastest exceeds the whole budget.
    """
    expected = {name: min(warm[name]) for name in works}
    results = {name: Timing(warm[name], cut_short=True) for name in works if expected[name] > budget}
    racing = [name for name in works if name not in results]
    calls = {name: min(max(math.ceil(turn / max(expected[name], 1e-9)), 1), MOST_CALLS) for name in racing}
    taken: dict[str, list[float]] = {name: [] for name in racing}
    share = budget / max(len(racing), 1)

    def may_leave(name: str) -> bool:
        runs = taken[name]
        return len(runs) >= most_runs or (len(runs) >= FEWEST_RUNS and sum(runs) * calls[name] >= share)

    while racing:
        for name in racing:
            taken[name].append(stopwatch(works[name], calls[name]))
        racing = [name for name in racing if not may_leave(name)]
    return {name: results[name] if name in results else Timing(tuple(taken[name])) for name in works}
