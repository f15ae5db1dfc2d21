"""``python -m benchmarks``: cupycorr and its rivals in one run, on the shapes people run; with ``--device cuda`` on a GPU.

Needs what the ``test`` extra installs. Where torch is missing only our own variants are timed; where the C++ extension
`spatial_correlation_sampler` can be imported it takes part. ``--device cuda --check`` holds a GPU against the CPU first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from cupycorr._dtypes import ELEMENT_TYPES, named_dtype

from . import check, cuda, report, rivals, running
from .cases import CASES, PASSES, Case, select
from .rivals import Contestant


@dataclass(frozen=True, slots=True)
class Device:
    """What differs between devices: who takes part, how they are run, and what is said about the machine."""

    require: Callable[[], None]  # raises where there is no such device
    contestants: Callable[[], tuple[Contestant, ...]]
    machine: running.Machine
    header: Callable[[Sequence[str], str], report.Header]
    measure_rates: Callable[[report.Header], None]
    peak_rate: Callable[[report.Header], float]
    bound: Callable[[report.Header, running.Row], float] | None = None
    check: Callable[[Sequence[str], Path | None], int] | None = None


CPU = Device(lambda: None, rivals.contestants, running.CPU, report.cpu_header, report.measure_cpu_rates, report.cpu_peak_rate)
CUDA = Device(
    cuda.require,
    rivals.cuda_contestants,
    cuda.MACHINE,
    cuda.header,
    cuda.measure_rates,
    cuda.peak_rate,
    cuda.bound,
    check.run,
)
DEVICES = {"cpu": CPU, "cuda": CUDA}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 1 where a contestant's numbers are wrong, 2 where the command or the machine is."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.device not in DEVICES:
        known = ", ".join(DEVICES)
        parser.error(f"this version has a benchmark for --device {known} only, got --device {asked.device}")
    device = DEVICES[asked.device]
    if asked.check and device.check is None:
        parser.error(f"--check is there for --device cuda, got --device {asked.device}")
    try:
        device.require()
    except (ImportError, RuntimeError) as error:
        print(f"python -m benchmarks --device {asked.device}: {error}", file=sys.stderr)
        return 2
    try:
        named_dtype(asked.dtype)
        cases, passes = select(asked.cases), _passes(asked.passes)
        contestants = device.contestants()
        if asked.measure_memory:
            return _print_peak(*asked.measure_memory, contestants, asked.dtype)
        chosen = _filtered(contestants, asked.rivals)
        if asked.json is not None and not asked.json.parent.is_dir():
            raise ValueError(f"--json must lie in a folder that exists, got {str(asked.json)!r}")
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    if asked.list:
        return _print_list(contestants)
    if asked.check:
        return device.check(arguments, asked.json)
    settings = running.Settings(asked.dtype, asked.budget, not asked.no_memory, device.machine)
    return _measure(device, arguments, cases, passes, chosen, settings, asked.json)


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value


NAMES = "names with wildcards, separated by commas"
OPTIONS: dict[str, dict[str, Any]] = {
    "--device": {"default": "cpu", "help": "where to run: 'cpu' (default) or 'cuda'"},
    "--cases": {"default": "acceptance", "help": f"'acceptance' (default), 'all', or {NAMES}"},
    "--passes": {"default": ",".join(PASSES), "help": "'forward', 'vjp' or both (default)"},
    "--rivals": {"default": "*", "help": f"whom to compare with, our other variants included: 'none' or {NAMES} (default: *)"},
    "--budget": {"default": 10.0, "type": _positive, "metavar": "SECONDS", "help": "time for one case and pass (default: 10)"},
    "--dtype": {"default": "float32", "choices": tuple(ELEMENT_TYPES), "help": "element type (default: float32)"},
    "--no-memory": {"action": "store_true", "help": "leave out peak memory, which takes a process for each number"},
    "--json": {"type": Path, "metavar": "FILE", "help": "write the numbers here too"},
    "--check": {
        "action": "store_true",
        "help": "with --device cuda: hold the GPU against the CPU, and time the acceptance cases",
    },
    "--list": {"action": "store_true", "help": "name the cases and contestants, measure nothing"},
    "--measure-memory": {"nargs": 3, "metavar": ("CASE", "CONTESTANT", "PASS"), "help": argparse.SUPPRESS},
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description="cupycorr and its rivals, interleaved in one run")
    for name, options in OPTIONS.items():
        parser.add_argument(name, **options)
    return parser


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
    arguments: Sequence[str],
    cases: Sequence[Case],
    passes: Sequence[str],
    chosen: Sequence[Contestant],
    settings: running.Settings,
    json_file: Path | None,
) -> int:
    console, errors = report.wide_console(), Console(stderr=True)
    header = device.header(arguments, settings.dtype)
    bound = None if device.bound is None else partial(device.bound, header)
    rows: list[running.Row] = []
    for case in cases:
        for which in passes:
            with errors.status(f"{case.name} {which}"):
                rows += running.run(case, which, _with_auto(device, chosen, case, settings.dtype), settings)
            device.measure_rates(header)
            if json_file is not None:
                report.write_json(json_file, header, rows, device.peak_rate(header), bound)
    report.print_header(console, header)
    report.print_rows(console, rows, device.peak_rate(header), bound)
    return 1 if any(row.wrong is not None for row in rows) else 0


def _with_auto(device: Device, chosen: Sequence[Contestant], case: Case, dtype: str) -> list[Contestant]:
    """The chosen contestants and the variant auto runs, which everybody is compared with."""
    names = {c.name for c in chosen} | {device.machine.automatic(case, dtype)}
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
