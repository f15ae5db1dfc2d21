"""``python -m benchmarks.cpu_profile``: the steps of calls on a CPU, the time of each in one thread, and the floor of the call.

The functions of the steps are timed from outside, in one thread, where their times add up. A compiled program has two steps, its
stages in turn: packing and products, and the latter include what each task packs and stores. The rest of a call is Python, and
filling sums with zeros. The floor is what the machine needs at least: the larger of the products at the rate of a matrix product,
and of the arrays' bytes at the rates of this machine, where writing the result includes the page faults of new memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np

import cupycorr
from cupycorr import _dispatch
from cupycorr._correlation.cpu import forward, gradient, simd, strided_windows, unpacked
from cupycorr._cpu import team, workers

from .cases import CASES, PASSES, Case
from .report import cpu_header

HEADLINES = (
    "flownetc-headline",
    "pwcnet-L2-384x1024",
    "pwcnet-L4-sintel",
    "pwcnet-L6-sintel",
    "mmtracker-headline",
    "liteflownet-L5-sintel",
    "stereo-full",
    "extension-default",
    "piv",
)
ROUNDS, SECONDS = 5, 1.0  # the least calls of a case and pass, and the least seconds

# step -> the functions that it consists of; none of them calls another
STEPS: dict[str, tuple[tuple[Any, str], ...]] = {
    "packing": ((forward, "pack"), (gradient, "pack")),
    "products": (
        (simd.RegisterTiles, "volume"),
        (simd.RegisterTiles, "gradient"),
        (unpacked.Unpacked, "_compute"),
        (strided_windows.StridedWindows, "_multiply"),
    ),
    "cotangents": (
        (gradient._Gradient, "_copy_cotangent"),
        (gradient._Gradient, "_pack_cotangent"),
        (strided_windows.StridedWindows, "_sums"),
    ),
    "window sums": ((forward, "window_sum"),),
    "storing": ((forward, "copy"), (gradient, "copy"), (strided_windows, "copy")),
}


STAGES = ("packing", "products")  # the steps of the stages of a program, in turn


class Clock:
    """The seconds of each step."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STEPS, 0.0)

    def timed(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time added to a step."""

        def call(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[step] += time.perf_counter() - begin

        return call


def _by_stages(clock: Clock) -> Callable[..., Any]:
    """Return a class that takes the place of `team.Program` and adds the time of each stage to its step."""
    whole = team.Program

    class Program:
        def __init__(self, stages: Sequence[Sequence[team.Tasks]], scratch: int) -> None:
            steps = cycle(STAGES)
            self._parts = [clock.timed(next(steps), whole([stage], scratch).run) for stage in stages]

        def run(self, threads: int, arguments: int = 0) -> None:
            for part in self._parts:
                part(threads, arguments)

    return Program


@contextmanager
def clocked() -> Iterator[Clock]:
    """Return a context in which the steps are timed."""
    clock = Clock()
    with ExitStack() as patches:
        for step, functions in STEPS.items():
            for owner, name in functions:
                patches.enter_context(patch.object(owner, name, clock.timed(step, getattr(owner, name))))
        patches.enter_context(patch.object(team, "Program", _by_stages(clock)))
        patches.callback(_dispatch._planned.cache_clear)  # plans keep their programs
        _dispatch._planned.cache_clear()
        yield clock


def profile(case: Case, which: str) -> dict[str, Any]:
    """Return the median milliseconds of a call in one thread and in all threads, and those of each step in one thread."""
    call = _call(case, which)
    with workers.prefer_threads(None):
        in_all = median(_seconds(call))
    with workers.prefer_threads(1):
        call()
        alone = median(_seconds(call))
        with clocked() as clock:
            call()  # plans, and may compile
            clock.seconds = dict.fromkeys(STEPS, 0.0)
            taken = _seconds(call)
    calls = len(taken) + 1  # with the first one, which is not among the times
    steps = {step: 1e3 * seconds / calls for step, seconds in clock.seconds.items()}
    return {
        "case": case.name,
        "pass": which,
        "threads": workers.thread_count(),
        "all_threads_ms": 1e3 * in_all,
        "one_thread_ms": 1e3 * alone,
        "steps_ms": steps,
        "rest_ms": 1e3 * sum(taken) / len(taken) - sum(steps.values()),
        "floor_ms": 1e3 * floor(case, which),
    }


def _call(case: Case, which: str) -> Callable[[], Any]:
    inputs, keywords = case.inputs("float32", which), case.keywords
    if which == "forward":
        return lambda: cupycorr.spatial_correlation_sample(inputs.input1, inputs.input2, **keywords)
    return lambda: cupycorr.spatial_correlation_sample_vjp(inputs.cotangent, inputs.input1, inputs.input2, **keywords)


def _seconds(call: Callable[[], Any]) -> list[float]:
    call()
    taken: list[float] = []
    while len(taken) < ROUNDS or sum(taken) < SECONDS:
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return taken


def floor(case: Case, which: str) -> float:
    """Return the least seconds of a call in all threads of this machine."""
    rates, results = workers.machine_rates(), case.result_bytes("float32", which)
    read = case.bytes("float32", which) - results
    moved = 2 * read / rates.bandwidth + results * new_memory_seconds()
    return max(case.useful_flops(which) / rates.float32_rate, moved)


def new_memory_seconds(count: int = 2**22) -> float:
    """Return the seconds that it takes to write a byte of a new array for the first time."""

    def write() -> None:
        np.empty(count, np.uint8).fill(0)

    return median(_seconds(write)) / count


def main(arguments: Sequence[str]) -> None:
    """Profile the headline cases, print a table in Markdown, and write the JSON file that is named, if one is."""
    parser = argparse.ArgumentParser("python -m benchmarks.cpu_profile", description="Time the steps of calls on a CPU.")
    parser.add_argument("json", metavar="FILE", nargs="?", type=Path, help="write the numbers to this JSON file, too")
    file = parser.parse_args(arguments).json
    header = cpu_header(arguments, ("float32",), "benchmarks.cpu_profile")
    columns = ("all threads", "one thread", *STEPS, "rest", "floor")
    print("| case, pass | " + " | ".join(columns) + " |")
    print("|---" * (1 + len(columns)) + "|")
    rows = []
    for case in (case for case in CASES if case.name in HEADLINES):
        for which in PASSES:
            row = profile(case, which)
            rows.append(row)
            print(line(row), flush=True)
    if file is not None:
        content = {"date": header.date, "command": header.command, "device": header.device, "versions": header.versions}
        file.write_text(json.dumps({**content, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def line(row: dict[str, Any]) -> str:
    """Return the line of the table in Markdown for a row."""
    numbers = (row["all_threads_ms"], row["one_thread_ms"], *row["steps_ms"].values(), row["rest_ms"], row["floor_ms"])
    return " | ".join((f"| {row['case']}, {row['pass']}", *(f"{number:.3g}" for number in numbers))) + " |"


if __name__ == "__main__":
    main(sys.argv[1:])
