"""``python -m benchmarks``: time cupycorr and its rivals in one run, on a CPU or, with ``--device cuda``, on a GPU.

It needs the packages of the ``test`` extra. Without torch only our own variants are timed; compiled rivals take part where they
can be imported. On a GPU every case, element type and pass is run by default, and ``--check`` compares the GPU with the CPU.
Variants that a user has written take part with ``--load``. ``--base`` compares this tree with another commit, and
``python -m benchmarks compare A.json B.json`` two files.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console

from cupycorr._correlation.variants import OPERATOR
from cupycorr._dtypes import ELEMENT_TYPES

from . import base, compare, cuda, plot, report, rivals, running, tune
from .cases import CASES, DTYPES, PASSES, Case, array_dtype, select
from .rivals import Contestant


@dataclass(frozen=True, slots=True)
class Device:
    """The functions and defaults by which devices differ."""

    require: Callable[[], None]  # raises an error where there is no such device
    contestants: Callable[[], tuple[Contestant, ...]]
    machine: running.Machine
    header: Callable[[Sequence[str], Sequence[str]], report.Header]
    measure_rates: Callable[[report.Header], None]
    yardstick: Callable[[report.Header], report.Yardstick]
    dtypes: Sequence[str]
    defaults: Mapping[str, Any]  # by option
    check: Callable[[Sequence[str], Sequence[Case], float, Path | None], int] | None = None


def _check_gpu(arguments: Sequence[str], cases: Sequence[Case], budget: float, json_file: Path | None) -> int:
    from . import check  # needs a cupycorr that has `cupycorr.variants`, which that of `--base` may not be

    return check.run(arguments, cases, budget, json_file)


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
    _check_gpu,
)
CHECK_DEFAULTS = {"cases": "acceptance"}  # with --check, instead of the device's
DEVICES = {"cpu": CPU, "cuda": CUDA}
ON_CUDA = ("check", "plot", "tune")  # options of a GPU only
WITHOUT_BASE = ("check", "plot", "tune", "list")
FOR_EACH_TREE = ("device", "cases", "passes", "variants", "rivals", "budget", "dtype")  # options that --base passes on


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Return 1 where a contestant's result is wrong, or slower than before in a comparison, and 2 where the command or the machine
    is wrong.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if [*arguments[:1]] == ["compare"]:
        return compare.main(arguments[1:])
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.device not in DEVICES:
        known = ", ".join(DEVICES)
        parser.error(f"this version has a benchmark for --device {known} only, got --device {options.device}")
    device = DEVICES[options.device]
    for option in ON_CUDA:
        if getattr(options, option) and device is not CUDA:
            parser.error(f"--{option} needs --device cuda, got --device {options.device}")
    if options.base is not None:
        return _compare_with_base(parser, options)
    for option, default in {**device.defaults, **(CHECK_DEFAULTS if options.check else {})}.items():
        if getattr(options, option) is None:
            setattr(options, option, default)
    try:
        device.require()
    except (ImportError, RuntimeError) as error:
        print(f"python -m benchmarks --device {options.device}: {error}", file=sys.stderr)
        return 2
    try:
        for source in options.load:
            rivals.load(source)
        cases, dtypes, passes = select(options.cases), _dtypes(options.dtype, device.dtypes), _passes(options.passes)
        contestants = device.contestants()
        _check_names(contestants)
        if options.measure_memory:
            return _print_peak(*options.measure_memory, contestants, dtypes[0])
        chosen = _filtered(contestants, options.rivals, options.variants)
        _check_files(options)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    if options.list:
        return _print_list(contestants)
    if options.check:
        return device.check(arguments, cases, options.budget, options.json)
    if options.tune:
        return tune.run(cases, dtypes, passes)
    header = device.header(arguments, dtypes)
    settings = running.Settings(budget=options.budget, measure_memory=not options.no_memory, machine=device.machine)
    rows = _measure(device, header, product(cases, dtypes, passes), chosen, settings, options.json)
    return _print_rows(header, rows, device.yardstick(header), options.plot)


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


NAMES = "names with wildcards, separated by commas"
OPTIONS: dict[str, dict[str, Any]] = {
    "--device": {"default": "cpu", "help": "where to run: 'cpu' (default) or 'cuda'"},
    "--cases": {"help": f"'acceptance' (default on a CPU and with --check), 'all' (on a GPU), or {NAMES}"},
    "--passes": {"default": ",".join(PASSES), "help": "'forward', 'vjp' or both (default)"},
    "--variants": {"help": f"the variants to time, ours and those of --load: {NAMES}; with it, no rivals by default"},
    "--rivals": {
        "help": f"rivals and other variants to compare with: 'none' or {NAMES} (default: *)",
    },
    "--load": {
        "action": "append",
        "default": [],
        "metavar": "FILE",
        "help": "run a .py file, or import a module, that registers variants by cupycorr.variants; may be repeated",
    },
    "--budget": {
        "type": _positive,
        "metavar": "SECONDS",
        "help": "seconds of work for one case, element type and pass (default: 10 on a CPU, 1 on a GPU)",
    },
    "--dtype": {
        "help": "element types separated by commas, or 'all' (default: float32 on a CPU, all on a GPU); tf32, on a GPU, is "
        "float32 with precision='high'"
    },
    "--no-memory": {"action": "store_true", "help": "do not measure peak memory, which takes a process for each number"},
    "--json": {"type": Path, "metavar": "FILE", "help": "write the numbers to this file too"},
    "--plot": {"type": Path, "metavar": "FILE", "help": "with --device cuda: draw how close each contestant comes to the bound"},
    "--base": {
        "metavar": "REV",
        "help": "compare this tree with that commit: both run in turn, in processes of their own, without rivals by default",
    },
    "--pairs": {
        "type": _count,
        "default": base.PAIRS,
        "metavar": "N",
        "help": f"with --base: pairs of processes (default: {base.PAIRS})",
    },
    "--threshold": {
        "type": compare.ratio,
        "default": compare.THRESHOLD,
        "metavar": "RATIO",
        "help": f"with --base: exit with 1 if a row is slower, outside the noise, by more (default: {compare.THRESHOLD})",
    },
    "--check": {
        "action": "store_true",
        "help": "with --device cuda: compare the GPU with the CPU, and time the acceptance cases, or those of --cases",
    },
    "--tune": {"action": "store_true", "help": "with --device cuda: find the fastest variants and keep them for later calls"},
    "--list": {"action": "store_true", "help": "print the cases and contestants, measure nothing"},
    "--measure-memory": {"nargs": 3, "metavar": ("CASE", "CONTESTANT", "PASS"), "help": argparse.SUPPRESS},
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description="Time cupycorr and its rivals, interleaved in one run.")
    for name, keywords in OPTIONS.items():
        parser.add_argument(name, **keywords)
    return parser


def _dtypes(text: str, there: Sequence[str]) -> list[str]:
    """Return the named element types of a device; bfloat16 needs ml_dtypes."""
    words = [*there] if text == "all" else text.split(",")
    unknown = [word for word in words if word not in there]
    if unknown:
        raise ValueError(f"--dtype must be 'all' or of {', '.join(there)}, got {unknown[0]!r}")
    for word in words:
        array_dtype(word)
    return [name for name in there if name in words]


def _check_files(options: argparse.Namespace) -> None:
    """Raise an error before anything is measured where a file could not be written."""
    for option in ("json", "plot"):
        file = getattr(options, option)
        if file is not None and not file.parent.is_dir():
            raise ValueError(f"--{option} must be in a folder that exists, got {str(file)!r}")
    if options.plot is not None:
        plot.check(options.plot)


def _passes(text: str) -> list[str]:
    words = text.split(",")
    unknown = [word for word in words if word not in PASSES]
    if unknown:
        raise ValueError(f"--passes must be of {', '.join(PASSES)}, got {unknown[0]!r}")
    return [name for name in PASSES if name in words]


def _check_names(contestants: Sequence[Contestant]) -> None:
    """Refuse registered variants that have the names of rivals."""
    for name, times in Counter(c.name for c in contestants).items():
        if times > 1:
            raise ValueError(f"names of registered variants must not be those of rivals, got {name!r}")


def _filtered(contestants: Sequence[Contestant], wanted: str | None, variants: str | None) -> list[Contestant]:
    """Return the named rivals and variants. Where variants are named, no others take part."""
    if variants is None:
        return _matching("--rivals", "'none' or names of contestants", wanted or "*", contestants)
    names = {row.name for row in OPERATOR.variants}
    found = _matching("--variants", "names of variants", variants, [c for c in contestants if c.name in names])
    others = [c for c in contestants if c.name not in names]
    return found + (_matching("--rivals", "'none' or names of rivals", wanted, others) if wanted else [])


def _matching(option: str, what: str, wanted: str, contestants: Sequence[Contestant]) -> list[Contestant]:
    words = wanted.split(",")
    for word in words:
        if word != "none" and not any(fnmatchcase(c.name, word) for c in contestants):
            raise ValueError(f"{option} must be {what} (see --list), got {word!r}")
    return [c for c in contestants if any(fnmatchcase(c.name, word) for word in words)]


def _compare_with_base(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    for option in WITHOUT_BASE:
        if getattr(options, option):
            parser.error(f"--{option} cannot be combined with --base")
    options.rivals = options.rivals or "none"
    words = [f"--{name}={value}" for name in FOR_EACH_TREE if (value := getattr(options, name)) is not None]
    words += [f"--load={rivals.absolute(source)}" for source in options.load]
    try:
        _check_files(options)
        return base.run(options.base, words, options.pairs, options.threshold, options.json)
    except ValueError as error:
        parser.error(str(error))
    except RuntimeError as error:
        print(f"python -m benchmarks --base {options.base}: {error}", file=sys.stderr)
        return 2


def _measure(
    device: Device,
    header: report.Header,
    measured: Iterable[tuple[Case, str, str]],
    chosen: Sequence[Contestant],
    settings: running.Settings,
    json_file: Path | None,
) -> list[running.Row]:
    """Return the rows of every (case, element type, pass), and write the file after each of them."""
    errors, yardstick = Console(stderr=True), device.yardstick(header)
    rows: list[running.Row] = []
    for case, dtype, which in measured:
        with errors.status(f"{case.name} {dtype} {which}"):
            rows += running.run(case, which, _with_auto(device, chosen, case, dtype, which), replace(settings, dtype=dtype))
        device.measure_rates(header)
        if json_file is not None:
            report.write_json(json_file, header, rows, yardstick)
    return rows


def _print_rows(header: report.Header, rows: Sequence[running.Row], yardstick: report.Yardstick, plot_file: Path | None) -> int:
    console = report.wide_console()
    report.print_header(console, header)
    report.print_rows(console, rows, yardstick)
    if plot_file is not None:
        plot.write(plot_file, header, rows, yardstick)
    return 1 if any(row.wrong is not None for row in rows) else 0


def _with_auto(device: Device, chosen: Sequence[Contestant], case: Case, dtype: str, which: str) -> list[Contestant]:
    """Return the chosen contestants and the variant that auto runs, with which all are compared."""
    names = {c.name for c in chosen} | {device.machine.automatic(case, dtype, which)}
    return [c for c in device.contestants() if c.name in names]


def _print_list(contestants: Sequence[Contestant]) -> int:
    for case in CASES:
        keywords = ", ".join(f"{name}={value}" for name, value in case.keywords.items())
        print(f"{case.name:24} {case.shape!s:20} {keywords}{'  [acceptance]' if case.acceptance else ''}")
    print("contestants:", ", ".join(c.name for c in contestants))
    return 0


def _print_peak(name: str, contestant: str, which: str, contestants: Sequence[Contestant], dtype: str) -> int:
    """Print the number that `memory.peak_in_own_process` reads."""
    case = next(case for case in CASES if case.name == name)
    entrant = next(c for c in contestants if c.name == contestant)
    print(running.peak_bytes(case, entrant, which, dtype))
    return 0


if __name__ == "__main__":
    sys.exit(main())
