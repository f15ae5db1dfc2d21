"""``python -m benchmarks.matching``: the time and the memory of the best and the mean displacement, without and with a volume.

The contestants run in turn in one process, on float32 tensors on the CPU; the rivals' results are compared with ours before
anything is timed. Peak memory beyond the inputs is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cupycorr._cpu import workers

from . import memory, report
from .matching_rivals import BEST, CONTESTANTS, OURS, SIZES, TASKS, Size, bytes_of
from .timing import Timing, race

ROUNDS, BUDGET = 15, 20.0  # the most runs of a contestant, and seconds for a task
MOST_BYTES = 2**31  # that one contestant may need
FEW = 1e-3  # the fraction of positions that may differ: nearly equal scores are ranked by their rounding errors
CLOSE = 1e-2  # pixels that a mean displacement may differ

Work = Callable[[], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one contestant on one task."""

    size: str
    task: str
    contestant: str
    timing: Timing | None = None
    ratio: float | None = None  # this contestant's time / ours
    differing: float | None = None  # the fraction of positions at which it differs from ours
    peak_bytes: int | None = None  # beyond the inputs
    reason: str | None = None  # why it was not run

    @property
    def ours(self) -> bool:
        """True for what the benchmark is about."""
        return self.contestant in OURS

    @property
    def lost(self) -> bool:
        """True where another contestant is faster than ours."""
        return not self.ours and self.ratio is not None and self.ratio < 1

    @property
    def agrees(self) -> bool:
        """True unless the result differs from ours."""
        return self.differing is None or self.differing <= FEW


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a run."""

    rounds: int = ROUNDS
    budget: float = BUDGET
    measure_memory: bool = True


def run(task: str, size: Size, settings: Settings, names: Sequence[str] = tuple(CONTESTANTS)) -> list[Result]:
    """Compare all results with ours, then time the contestants in turn."""
    inputs = size.maps()
    works: dict[str, Work] = {}
    warm: dict[str, tuple[float, ...]] = {}
    rows: dict[str, dict[str, Any]] = {}
    want: torch.Tensor | None = None
    for name in names:
        rows[name] = row = {"size": size.name, "task": task, "contestant": name}
        if bytes_of(name, size) > min(MOST_BYTES, memory.available() // 2):
            row["reason"] = f"it needs {bytes_of(name, size) / 2**30:.1f} GiB"
            continue
        works[name] = partial(CONTESTANTS[name], task, size, *inputs)
        found, first = _clocked(works[name])
        want = found if want is None else want
        row["differing"] = differing(task, found, want)
        warm[name] = (first, _clocked(works[name])[1]) if first < settings.budget else (first,)
    with torch.no_grad(), workers.prefer_threads(torch.get_num_threads()):
        timings = race(works, warm, settings.budget, most_runs=settings.rounds)
    fastest = min((timings[name].median for name in names if name in OURS and name in timings), default=None)
    return [_result(row, timings.get(name), fastest, settings) for name, row in rows.items()]


def differing(task: str, found: torch.Tensor, want: torch.Tensor) -> float:
    """Return the fraction of positions at which two results differ."""
    distance = (found.double() - want.double()).abs().amax(-1)
    return float((distance > (0 if task == BEST else CLOSE)).double().mean())


def _clocked(work: Work) -> tuple[torch.Tensor, float]:
    begin = time.perf_counter()
    with torch.no_grad():
        found = work()
    return found, time.perf_counter() - begin


def _result(row: dict[str, Any], timing: Timing | None, fastest: float | None, settings: Settings) -> Result:
    if timing is None:
        return Result(**row)
    words = ["--measure-memory", row["size"], row["task"], row["contestant"]]
    peak = memory.peak_in_own_process("benchmarks.matching", words) if settings.measure_memory else None
    return Result(**row, timing=timing, ratio=timing.median / fastest if fastest else None, peak_bytes=peak)


def peak_bytes(task: str, size: Size, contestant: str) -> int:
    """Return the peak bytes of a contestant beyond its inputs, in this process."""
    inputs = size.maps()
    work = partial(CONTESTANTS[contestant], task, size, *inputs)
    with torch.no_grad():
        work()  # the memory of libraries, plans and compilers does not count
        workers._free.clear()  # scratch memory that is used again would not be seen
        return memory.peak_increase(work)


# Report -----------------------------------------------------------------------------------------------------------------------

COLUMNS: tuple[tuple[str, Callable[[Result], str]], ...] = (
    ("size", lambda row: row.size),
    ("task", lambda row: row.task),
    ("contestant", lambda row: row.contestant),
    ("ms", lambda row: "-" if row.timing is None else report.milliseconds(row.timing.median)),
    ("min", lambda row: "-" if row.timing is None else report.milliseconds(row.timing.minimum)),
    ("runs", lambda row: "" if row.timing is None else f"{len(row.timing.seconds)}{'*' * row.timing.cut_short}"),
    ("x ours", lambda row: "" if row.ratio is None else f"{row.ratio:.2f}"),
    ("peak MiB", lambda row: "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f}"),
    ("", lambda row: remark(row)),
)
LEFT = ("size", "task", "contestant", "")


def remark(row: Result) -> str:
    """Return the remark on a row: a lost race, a result that differs, or why it was not run."""
    if row.reason is not None:
        return f"not run: {row.reason}"
    return ", ".join(["LOST"] * row.lost + ["DIFFERS"] * (not row.agrees))


def table_of(rows: Sequence[Result]) -> Table:
    """Return the table of times."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, _ in COLUMNS:
        table.add_column(name, justify="left" if name in LEFT else "right", no_wrap=True)
    for row in rows:
        style = "bold red" if row.lost or not row.agrees else "bold" if row.ours else None
        table.add_row(*(escape(cell(row)) for _, cell in COLUMNS), style=style)
    return table


def record(row: Result) -> dict[str, Any]:
    """Return a row of the file."""
    names = {"size": row.size, "task": row.task, "contestant": row.contestant, "ours": row.ours}
    if row.timing is None:
        return names | {"reason": row.reason}
    return names | {
        "median_s": row.timing.median,
        "minimum_s": row.timing.minimum,
        "runs_s": [round(seconds, 9) for seconds in row.timing.seconds],
        "cut_short": row.timing.cut_short,
        "disturbed": row.timing.disturbed,
        "ratio": row.ratio,
        "peak_bytes": row.peak_bytes,
        "differing": row.differing,
        "agrees": row.agrees,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.matching", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file too")
    parser.add_argument("--sizes", default="all", help=f"names separated by commas: {', '.join(SIZES)}, or 'all' (default)")
    parser.add_argument("--tasks", default="all", help=f"names separated by commas: {', '.join(TASKS)}, or 'all' (default)")
    parser.add_argument(
        "--contestants", default="all", help=f"names separated by commas: {', '.join(CONTESTANTS)}, or 'all' (default)"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"most runs of each contestant (default: {ROUNDS})")
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds for a task (default: {BUDGET:g})")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--measure-memory", nargs=3, metavar=("SIZE", "TASK", "CONTESTANT"), help=argparse.SUPPRESS)
    return parser


def _chosen(parser: argparse.ArgumentParser, option: str, wanted: str, known: Sequence[str]) -> list[str]:
    """Return the known names that were asked for, in their own order."""
    words = wanted.split(",")
    for word in words:
        if word != "all" and word not in known:
            parser.error(f"{option} must be 'all' or of {', '.join(known)}, got {word!r}")
    return [name for name in known if name in words or "all" in words]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tasks and print the table; return 1 where another contestant wins or a result differs."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.measure_memory:
        size, task, contestant = options.measure_memory
        print(peak_bytes(task, SIZES[size], contestant))
        return 0
    sizes = _chosen(parser, "--sizes", options.sizes, [*SIZES])
    tasks = _chosen(parser, "--tasks", options.tasks, TASKS)
    names = _chosen(parser, "--contestants", options.contestants, [*CONTESTANTS])
    settings = Settings(options.rounds, options.budget, not options.no_memory)
    header = report.cpu_header(arguments, ("float32",), "benchmarks.matching", ("torch", "llvmlite"))
    console, errors = report.wide_console(), Console(stderr=True)
    rows: list[Result] = []
    for size in sizes:
        for task in tasks:
            with errors.status(f"{size} {task}"):
                rows += run(task, SIZES[size], settings, names)
            if options.json is not None:
                report.write_content(options.json, report.content(header, [*map(record, rows)]))
    report.print_header(console, header)
    console.print(table_of(rows))
    console.print("x ours: this contestant's median over ours; peak: beyond the inputs, in a process of its own")
    lost, wrong = sum(row.lost for row in rows), sum(not row.agrees for row in rows)
    console.print(f"{lost} races lost, {wrong} results differ", style="bold red" if lost or wrong else "bold")
    return 1 if lost or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
