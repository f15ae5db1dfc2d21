"""``python -m benchmarks.lookup``: the time and the memory of lookups around coordinates, beside their rivals, in one run.

Tasks are one lookup over all levels out of a block that is ready, each gradient of such a lookup, 32 lookups of a converging flow
out of such a block, and 32 iterations of inference and a training step of 12 lookups with the making of the block. One lookup is
timed with four flows, because its time depends on how much neighbouring windows share. The rivals' results are compared with ours
before anything is timed.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cupycorr._cpu import workers

from . import cuda, memory, report
from .lookup_cases import CHANNELS, FLOWS, SIZES, Size
from .lookup_rivals import CONTESTANTS, Block, Contestant, scores, torchvision_raft
from .timing import Stopwatch, Timing, cpu_stopwatch, race

ROUNDS = 15
BUDGET = 20.0  # seconds for one task; a contestant leaves the race once it has used its share and run twice
AGREED = 1e-3  # the largest difference of two results, relative to the largest of all values, that still counts as the same
EXCEPTIONS = 1e-3  # the fraction of the elements that may differ more
MARGIN = 0.7  # the fraction of the available memory that one contestant may need
INFERENCE, TRAINING = 32, 12  # iterations
SETTINGS = {"cpu": (cpu_stopwatch, None), "cuda": (cuda.stopwatch, cuda.TURN)}

Work = Callable[[], tuple[torch.Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The tensors of a task: two maps, the coordinates of its lookups, and the cotangents of its results."""

    fmap1: torch.Tensor
    fmap2: torch.Tensor
    coords: tuple[torch.Tensor, ...]
    cotangents: tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """A task that is timed.

    Attributes
    ----------
    name, flow
        The name of the task, and of the flow.
    prepare
        Returns the work of a contestant on some inputs; what it does before that is not timed.
    iterations
        The number of lookups.
    derivatives
        True if the contestant must be differentiable.
    """

    name: str
    flow: str
    prepare: Callable[[Contestant, Inputs], Work]
    iterations: int = 1
    derivatives: bool = False

    def inputs(self, size: Size, dtype: torch.dtype, device: str) -> Inputs:
        """Return the inputs, the same at every call."""
        fmap1, fmap2 = (torch.from_numpy(each).to(device, dtype) for each in size.maps())
        found = size.converging(self.iterations) if self.flow == "converging" else [size.coords(self.flow)] * self.iterations
        coords = tuple(torch.from_numpy(each.copy()).to(device) for each in found)
        shape = (size.batch, 4 * 81, *size.shape)
        generator = torch.Generator().manual_seed(0)
        cotangents = torch.randn(shape, generator=generator).to(device) if self.derivatives else torch.empty(0)
        return Inputs(fmap1, fmap2, coords, (cotangents,))


# Tasks ------------------------------------------------------------------------------------------------------------------------


def _lookup(contestant: Contestant, inputs: Inputs) -> Work:
    block = contestant.make(inputs.fmap1, inputs.fmap2)

    def work() -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return (scores(block(inputs.coords[0])),)

    return work


def _making(contestant: Contestant, inputs: Inputs) -> Work:
    def work() -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return (scores(contestant.make(inputs.fmap1, inputs.fmap2)(inputs.coords[0])),)

    return work


def _gradient(which: int, contestant: Contestant, inputs: Inputs) -> Work:
    leaves = [inputs.fmap1.clone(), inputs.fmap2.clone(), inputs.coords[0].clone()]
    leaves[which].requires_grad_()
    out = scores(contestant.make(leaves[0], leaves[1])(leaves[2]))
    return lambda: torch.autograd.grad(out, leaves[which], inputs.cotangents[0], retain_graph=True)


def _last_scores(block: Block, inputs: Inputs) -> tuple[torch.Tensor, ...]:
    """Look up at all coordinates, and return the last scores: no layer after a lookup keeps those of an earlier one."""
    *before, last = inputs.coords
    for coords in before:
        block(coords)
    return (scores(block(last)),)


def _lookups(contestant: Contestant, inputs: Inputs) -> Work:
    block = contestant.make(inputs.fmap1, inputs.fmap2)

    def work() -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return _last_scores(block, inputs)

    return work


def _inference(contestant: Contestant, inputs: Inputs) -> Work:
    def work() -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return _last_scores(contestant.make(inputs.fmap1, inputs.fmap2), inputs)

    return work


def _training(contestant: Contestant, inputs: Inputs) -> Work:
    def work() -> tuple[torch.Tensor, ...]:
        fmap1, fmap2 = inputs.fmap1.detach().requires_grad_(), inputs.fmap2.detach().requires_grad_()
        block = contestant.make(fmap1, fmap2)
        loss = sum(_consumed(block, coords, inputs.cotangents[0]) for coords in inputs.coords)
        return torch.autograd.grad(loss, (fmap1, fmap2))  # type: ignore[arg-type]

    return work


def _consumed(block: Block, coords: torch.Tensor, cotangent: torch.Tensor) -> torch.Tensor:
    """Return a number that depends on every score, as the layers after a lookup do, which need not keep the scores."""
    return torch.dot(scores(block(coords)).flatten(), cotangent.flatten())


TASKS = (
    *(Task("lookup", flow, _lookup) for flow in FLOWS),
    Task("block and lookup", "smooth", _making),
    *(
        Task(f"gradient of {name}", flow, partial(_gradient, which), derivatives=True)
        for which, name in enumerate(("fmap1", "fmap2", "coords"))
        for flow in ("smooth", "noise")
    ),
    Task(f"{INFERENCE} lookups", "converging", _lookups, INFERENCE),
    Task(f"inference, {INFERENCE} lookups", "converging", _inference, INFERENCE),
    Task(f"training, {TRAINING} lookups", "converging", _training, TRAINING, derivatives=True),
)


# Running ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one contestant on one task."""

    size: str
    task: Task
    contestant: str
    ours: bool
    timing: Timing | None = None
    ratio: float | None = None  # this contestant's time / that of our fastest
    difference: float | None = None  # from our first result, relative to its largest value
    peak_bytes: int | None = None  # beyond the inputs, in a process of its own
    reason: str | None = None  # why it was not run

    @property
    def lost(self) -> bool:
        """True where a rival is faster than our fastest."""
        return not self.ours and self.ratio is not None and self.ratio < 1

    @property
    def agrees(self) -> bool:
        """True unless the result differs from ours."""
        return self.difference is None or self.difference <= AGREED


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a run."""

    dtype: torch.dtype
    device: str
    rounds: int = ROUNDS
    budget: float = BUDGET
    measure_memory: bool = True


def why_not(contestant: Contestant, task: Task, size: Size, settings: Settings) -> str | None:
    """Return the reason why a contestant does not run a task, or None."""
    if task.derivatives and not contestant.differentiable:
        return "it has no gradients"
    if settings.dtype != torch.float32 and not contestant.ours:
        return "rivals are compared in float32"
    # A graph for gradients keeps what the forward pass needs, and the backward pass makes as much again.
    needed = contestant.bytes(size, CHANNELS) * (3 if task.derivatives else 1)
    free = cuda.available() if settings.device == "cuda" else memory.available()
    if needed > MARGIN * free:
        return f"it needs {needed / 2**30:.1f} GiB"
    return contestant.why_not(settings.device)


def run(task: Task, size: Size, settings: Settings, contestants: Sequence[Contestant] = CONTESTANTS) -> list[Result]:
    """Compare all results with our first one, then time the contestants in turn."""
    inputs = task.inputs(size, settings.dtype, settings.device)
    works: dict[str, Work] = {}
    warm: dict[str, tuple[float, ...]] = {}
    rows: dict[str, dict[str, Any]] = {}
    want: tuple[torch.Tensor, ...] | None = None
    for contestant in contestants:
        rows[contestant.name] = row = {"size": size.name, "task": task, "contestant": contestant.name, "ours": contestant.ours}
        row["reason"] = why_not(contestant, task, size, settings)
        if row["reason"] is not None:
            continue
        try:
            work = task.prepare(contestant, inputs)
            found, first = _clocked(work, settings.device)
        except NotImplementedError as error:
            row["reason"] = str(error)
            continue
        want = found if want is None else want
        row["difference"] = _difference(found, want)
        del found
        works[contestant.name] = work
        warm[contestant.name] = (first, _clocked(work, settings.device)[1]) if first < settings.budget else (first,)
    stopwatch, turn = SETTINGS[settings.device]
    timings = _race(works, warm, settings, stopwatch, turn)
    fastest = min((timings[c.name].median for c in contestants if c.ours and c.name in timings), default=None)
    return [_result(row, timings.get(name), fastest, settings) for name, row in rows.items()]


def _race(
    works: dict[str, Work], warm: dict[str, tuple[float, ...]], settings: Settings, stopwatch: Stopwatch, turn: float | None
) -> dict[str, Timing]:
    options = {} if turn is None else {"turn": turn}
    with workers.prefer_threads(torch.get_num_threads()):
        return race(works, warm, settings.budget, stopwatch, most_runs=settings.rounds, **options)


def _result(row: dict[str, Any], timing: Timing | None, fastest: float | None, settings: Settings) -> Result:
    if timing is None:
        return Result(**row)
    peak = _peak_in_own_process(row, settings) if settings.measure_memory else None
    return Result(**row, timing=timing, ratio=timing.median / fastest if fastest else None, peak_bytes=peak)


def _clocked(work: Work, device: str) -> tuple[tuple[torch.Tensor, ...], float]:
    begin = time.perf_counter()
    found = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return found, time.perf_counter() - begin


def _difference(found: Sequence[torch.Tensor], want: Sequence[torch.Tensor]) -> float:
    """Return the difference of two results that a thousandth of the elements exceeds, relative to the largest value.

    The slope jumps at whole-number coordinates, and where a rival rounds a coordinate to the other side, both answers are right.
    """
    return max(_one_difference(one.float(), other.float()) for one, other in zip(found, want, strict=True))


def _one_difference(found: torch.Tensor, want: torch.Tensor) -> float:
    differences = (found - want).abs().flatten()
    kept = max(math.ceil((1 - EXCEPTIONS) * differences.numel()), 1)
    return float(differences.kthvalue(kept).values / want.abs().max())


# Memory -----------------------------------------------------------------------------------------------------------------------


def _peak_in_own_process(row: dict[str, Any], settings: Settings) -> int | None:
    words = [row["size"], row["task"].name, row["task"].flow, row["contestant"]]
    options = ["--dtype", str(settings.dtype).removeprefix("torch."), "--device", settings.device]
    return memory.peak_in_own_process("benchmarks.lookup", [*options, "--measure-memory", *words])


def peak_bytes(task: Task, size: Size, contestant: Contestant, dtype: torch.dtype, device: str) -> int:
    """Return the peak bytes of a block and its work beyond the inputs, in this process."""
    small, inputs = (task.inputs(each, dtype, device) for each in (Size("small", 1, (16, 16)), size))
    # The memory of libraries and compilers does not count. Our blocks choose by the size of the maps what has to be compiled.
    task.prepare(contestant, inputs if contestant.ours else small)()
    workers._free.clear()  # scratch memory that is used again would not be seen
    if device == "cpu":
        return memory.peak_increase(lambda: task.prepare(contestant, inputs)())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with cuda.accounted() as account:
        task.prepare(contestant, inputs)()
    torch.cuda.synchronize()
    return account.most + torch.cuda.max_memory_allocated() - before


# Report -----------------------------------------------------------------------------------------------------------------------

COLUMNS: tuple[tuple[str, Callable[[Result], str]], ...] = (
    ("size", lambda row: row.size),
    ("task", lambda row: row.task.name),
    ("flow", lambda row: row.task.flow),
    ("contestant", lambda row: row.contestant),
    ("ms", lambda row: "-" if row.timing is None else report.milliseconds(row.timing.median)),
    ("min", lambda row: "-" if row.timing is None else report.milliseconds(row.timing.minimum)),
    ("runs", lambda row: "" if row.timing is None else f"{len(row.timing.seconds)}{'*' * row.timing.cut_short}"),
    ("x ours", lambda row: "" if row.ratio is None else f"{row.ratio:.2f}"),
    ("peak MiB", lambda row: "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f}"),
    ("", lambda row: remark(row)),
)
LEFT = ("size", "task", "flow", "contestant", "")


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
    names = {"size": row.size, "task": row.task.name, "flow": row.task.flow, "contestant": row.contestant, "ours": row.ours}
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
        "difference": row.difference,
        "agrees": row.agrees,
    }


def _header(arguments: Sequence[str], settings: Settings) -> report.Header:
    dtypes, modules = (str(settings.dtype).removeprefix("torch."),), ("torch", "torchvision", "ptlflow", "llvmlite")
    with suppress(ImportError):
        torchvision_raft()  # beside some builds of torch, torchvision can be imported only so
    if settings.device == "cpu":
        return report.cpu_header(arguments, dtypes, "benchmarks.lookup", modules)
    return cuda.header(arguments, dtypes, "benchmarks.lookup")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.lookup", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file too")
    parser.add_argument("--device", choices=SETTINGS, default="cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of the maps")
    parser.add_argument("--sizes", default="sintel", help=f"names separated by commas: {', '.join(SIZES)}, or 'all'")
    parser.add_argument(
        "--tasks", default="all", help="the beginning of the tasks' names, separated by commas, or 'all' (default)"
    )
    parser.add_argument("--contestants", default="all", help="names separated by commas, or 'all' (default)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"most runs of each contestant (default: {ROUNDS})")
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds for a task (default: {BUDGET:g})")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--measure-memory", nargs=4, metavar=("SIZE", "TASK", "FLOW", "CONTESTANT"), help=argparse.SUPPRESS)
    return parser


def _chosen(parser: argparse.ArgumentParser, option: str, wanted: str, known: Sequence[str]) -> list[str]:
    """Return the known names that were asked for, in their own order."""
    words = wanted.split(",")
    for word in words:
        if word != "all" and not any(name.startswith(word) for name in known):
            parser.error(f"{option} must be 'all' or of {', '.join(dict.fromkeys(known))}, got {word!r}")
    return [name for name in known if any(word == "all" or name.startswith(word) for word in words)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tasks and print the table; return 1 where a rival wins or a result differs."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    options = parser.parse_args(arguments)
    dtype = getattr(torch, options.dtype)
    if options.measure_memory:
        size, name, flow, who = options.measure_memory
        task = next(task for task in TASKS if (task.name, task.flow) == (name, flow))
        contestant = next(each for each in CONTESTANTS if each.name == who)
        print(peak_bytes(task, SIZES[size], contestant, dtype, options.device))
        return 0
    sizes = _chosen(parser, "--sizes", options.sizes, [*SIZES])
    tasks = _chosen(parser, "--tasks", options.tasks, [task.name for task in TASKS])
    names = _chosen(parser, "--contestants", options.contestants, [each.name for each in CONTESTANTS])
    settings = Settings(dtype, options.device, options.rounds, options.budget, not options.no_memory)
    header = _header(arguments, settings)
    console, errors = report.wide_console(), Console(stderr=True)
    rows: list[Result] = []
    for size in sizes:
        for task in TASKS:
            if task.name not in tasks:
                continue
            with errors.status(f"{size} {task.name} {task.flow}"):
                rows += run(task, SIZES[size], settings, [each for each in CONTESTANTS if each.name in names])
            if options.json is not None:
                report.write_content(options.json, report.content(header, [*map(record, rows)]))
    report.print_header(console, header)
    console.print(table_of(rows))
    console.print("x ours: this contestant's median over that of our fastest; peak: beyond the inputs, in a process of its own")
    lost, wrong = sum(row.lost for row in rows), sum(not row.agrees for row in rows)
    console.print(f"{lost} races lost, {wrong} results differ", style="bold red" if lost or wrong else "bold")
    return 1 if lost or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
