"""``python -m benchmarks``: cupycorr and its rivals in one run, on the shapes people run; with ``--device cuda`` on a GPU.

Needs what the ``test`` extra installs. Where torch is missing only our own variants are timed; compiled rivals that can be
imported take part. On a GPU every case, element type and pass is run unless others are asked for; ``--check`` holds the GPU
against the CPU first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from cupycorr._dtypes import ELEMENT_TYPES

from . import check, cuda, plot, report, rivals, running, tune
from .cases import CASES, DTYPES, PASSES, Case, array_dtype, select
from .rivals import Contestant


@dataclass(frozen=True, slots=True)
class Device:
    """What differs between devices: who takes part, how they are run, and what is said about the machine."""

    require: Callable[[], None]  # raises where there is no such device
    contestants: Callable[[], tuple[Contestant, ...]]
    machine: running.Machine
    header: Callable[[Sequence[str], Sequence[str]], report.Header]
    measure_rates: Callable[[report.Header], None]
    yardstick: Callable[[report.Header], report.Yardstick]
    dtypes: Sequence[str]
    defaults: Mapping[str, Any]  # of options
    check: Callable[[Sequence[str], Path | None], int] | None = None


CPU = Device(
    lambda: None,
    rivals.contestants,
    running.CPU,
    report.cpu_header,
    report.measure_cpu_rates,
    report.cpu_yardstick,
    tuple(ELEMENT_TYPES),
    {"cases": "acceptance", "dtype": "float32", "budget": 10.0},
)
CUDA = Device(
    cuda.require,
    rivals.cuda_contestants,
    cuda.MACHINE,
    cuda.header,
    cuda.measure_rates,
    cuda.yardstick,
    DTYPES,
    {"cases": "all", "dtype": "all", "budget": 1.0},
    check.run,
)
DEVICES = {"cpu": CPU, "cuda": CUDA}
ON_CUDA = ("check", "plot", "tune")  # options that a CPU does not have


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 1 where a contestant's numbers are wrong, 2 where command or machine is."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.device not in DEVICES:
        known = ", ".join(DEVICES)
        parser.error(f"this version has a benchmark for --device {known} only, got --device {asked.device}")
    device = DEVICES[asked.device]
    for option in ON_CUDA:
        if getattr(asked, option) and device is not CUDA:
            parser.error(f"--{option} is there for --device cuda, got --device {asked.device}")
    for option, default in device.defaults.items():
        if getattr(asked, option) is None:
            setattr(asked, option, default)
    try:
        device.require()
    except (ImportError, RuntimeError) as error:
        print(f"python -m benchmarks --device {asked.device}: {error}", file=sys.stderr)
        return 2
    try:
        cases, dtypes, passes = select(asked.cases), _dtypes(asked.dtype, device.dtypes), _passes(asked.passes)
        contestants = device.contestants()
        if asked.measure_memory:
            return _print_peak(*asked.measure_memory, contestants, dtypes[0])
        chosen = _filtered(contestants, asked.rivals)
        _check_files(asked)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    if asked.list:
        return _print_list(contestants)
    if asked.check:
        return device.check(arguments, asked.json)
    if asked.tune:
        return tune.run(cases, dtypes, passes)
    header = device.header(arguments, dtypes)
    settings = running.Settings(budget=asked.budget, measure_memory=not asked.no_memory, machine=device.machine)
    rows = _measure(device, header, product(cases, dtypes, passes), chosen, settings, asked.json)
    return _tell(header, rows, device.yardstick(header), asked.plot)


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value


NAMES = "names with wildcards, separated by commas"
OPTIONS: dict[str, dict[str, Any]] = {
    "--device": {"default": "cpu", "help": "where to run: 'cpu' (default) or 'cuda'"},
    "--cases": {"help": f"'acceptance' (default on a CPU), 'all' (on a GPU), or {NAMES}"},
    "--passes": {"default": ",".join(PASSES), "help": "'forward', 'vjp' or both (default)"},
    "--rivals": {"default": "*", "help": f"whom to compare with, our other variants included: 'none' or {NAMES} (default: *)"},
    "--budget": {
        "type": _positive,
        "metavar": "SECONDS",
        "help": "work for one case, element type and pass (default: 10 on a CPU, 1 on a GPU)",
    },
    "--dtype": {
        "help": "element types separated by commas, or 'all' (default: float32 on a CPU, all on a GPU); on a GPU tf32 is one: "
        "float32 with precision='high'"
    },
    "--no-memory": {"action": "store_true", "help": "leave out peak memory, which takes a process for each number"},
    "--json": {"type": Path, "metavar": "FILE", "help": "write the numbers here too"},
    "--plot": {"type": Path, "metavar": "FILE", "help": "with --device cuda: draw the share of the bound, case by case"},
    "--check": {
        "action": "store_true",
        "help": "with --device cuda: hold the GPU against the CPU, and time the acceptance cases",
    },
    "--tune": {"action": "store_true", "help": "with --device cuda: find the fastest variants, and keep them for later calls"},
    "--list": {"action": "store_true", "help": "name the cases and contestants, measure nothing"},
    "--measure-memory": {"nargs": 3, "metavar": ("CASE", "CONTESTANT", "PASS"), "help": argparse.SUPPRESS},
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description="cupycorr and its rivals, interleaved in one run")
    for name, options in OPTIONS.items():
        parser.add_argument(name, **options)
    return parser


def _dtypes(text: str, there: Sequence[str]) -> list[str]:
    """The element types named, of those that are there; bfloat16 needs a package."""
    words = [*there] if text == "all" else text.split(",")
    unknown = [word for word in words if word not in there]
    if unknown:
        raise ValueError(f"--dtype must be 'all' or of {', '.join(there)}, got {unknown[0]!r}")
    for word in words:
        array_dtype(word)
    return [name for name in there if name in words]


def _check_files(asked: argparse.Namespace) -> None:
    """Find out before anything is measured what would keep a file from being written."""
    for option in ("json", "plot"):
        file = getattr(asked, option)
        if file is not None and not file.parent.is_dir():
            raise ValueError(f"--{option} must lie in a folder that exists, got {str(file)!r}")
    if asked.plot is not None:
        plot.check(asked.plot)


def _passes(text: str) -> list[str]:
    words = text.split(",")
    unknown = [word for word in words if word not in PASSES]
    if unknown:
        raise ValueError(f"--passes must be of {', '.join(PASSES)}, got {unknown[0]!r}")
    return [name for name in PASSES if name in words]


def _filtered(contestants: Sequence[Contestant], wanted: str) -> list[Contestant]:
    """The contestants named."""
    words = wanted.split(",")
    for word in words:
        if word != "none" and not any(fnmatchcase(c.name, word) for c in contestants):
            raise ValueError(f"--rivals must be 'none' or names of contestants (see --list), got {word!r}")
    return [c for c in contestants if any(fnmatchcase(c.name, word) for word in words)]


def _measure(
    device: Device,
    header: report.Header,
    questions: Iterable[tuple[Case, str, str]],
    chosen: Sequence[Contestant],
    settings: running.Settings,
    json_file: Path | None,
) -> list[running.Row]:
    """The rows of every (case, element type, pass); what is known after each of them is in the file."""
    errors, yardstick = Console(stderr=True), device.yardstick(header)
    rows: list[running.Row] = []
    for case, dtype, which in questions:
        with errors.status(f"{case.name} {dtype} {which}"):
            rows += running.run(case, which, _with_auto(device, chosen, case, dtype, which), replace(settings, dtype=dtype))
        device.measure_rates(header)
        if json_file is not None:
            report.write_json(json_file, header, rows, yardstick)
    return rows


def _tell(header: report.Header, rows: Sequence[running.Row], yardstick: report.Yardstick, plot_file: Path | None) -> int:
    console = report.wide_console()
    report.print_header(console, header)
    report.print_rows(console, rows, yardstick)
    if plot_file is not None:
        plot.write(plot_file, header, rows, yardstick)
    return 1 if any(row.wrong is not None for row in rows) else 0


def _with_auto(device: Device, chosen: Sequence[Contestant], case: Case, dtype: str, which: str) -> list[Contestant]:
    """The chosen contestants and the variant auto runs, which everybody is compared with."""
    names = {c.name for c in chosen} | {device.machine.automatic(case, dtype, which)}
    return [c for c in device.contestants() if c.name in names]


def _print_list(contestants: Sequence[Contestant]) -> int:
    for case in CASES:
        keywords = ", ".join(f"{name}={value}" for name, value in case.keywords.items())
        print(f"{case.name:24} {case.shape!s:20} {keywords}{'  [acceptance]' if case.acceptance else ''}")
    print("contestants:", ", ".join(c.name for c in contestants))
    return 0


def _print_peak(name: str, contestant: str, which: str, contestants: Sequence[Contestant], dtype: str) -> int:
    """What `memory.peak_in_own_process` reads."""
    case = next(case for case in CASES if case.name == name)
    entrant = next(c for c in contestants if c.name == contestant)
    print(running.peak_bytes(case, entrant, which, dtype))
    return 0


if __name__ == "__main__":
    sys.exit(main())
