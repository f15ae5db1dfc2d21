"""Reports of a run: a table on the terminal, and JSON. They name the processor and versions, never hosts, users or paths."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import cupycorr
from cupycorr._cpu import workers

from . import rivals
from .running import Row


@dataclass(frozen=True, slots=True)
class Header:
    """The place, time and command of a run."""

    date: str
    command: str
    dtypes: tuple[str, ...]
    device: dict[str, Any]
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Yardstick:
    """The limits that a row is compared with: the flop/s of a matrix product, and the least seconds of a call, if known."""

    peak_rate: Callable[[Row], float]
    bound: Callable[[Row], float] | None = None

    def share(self, row: Row) -> float:
        """Return the bound as a fraction of the median."""
        return self.bound(row) / row.timing.median


CPU_MODULES = ("torch", "llvmlite", "threadpoolctl", "spatial_correlation_sampler")  # modules that a CPU header names


def cpu_header(
    arguments: Sequence[str], dtypes: Sequence[str], module: str = "benchmarks", others: Sequence[str] = CPU_MODULES
) -> Header:
    """Return the header of a run of ``python -m module`` on this machine's CPU, with the versions of other modules."""
    device = {
        "kind": "cpu",
        "model": cpu_model(),
        "cores_used": workers.thread_count(),
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "sgemm_gflops": 0.0,
        "dgemm_gflops": 0.0,
        "copy_gbps": 0.0,
    }
    header = Header(now(), command_line(arguments, module), tuple(dtypes), device, versions(*others))
    measure_cpu_rates(header)
    return header


def measure_cpu_rates(header: Header) -> None:
    """Measure the machine again and keep the best rates of a run, because other work only makes it slower."""
    workers.machine_rates.cache_clear()
    rates = workers.machine_rates()
    now = {"sgemm_gflops": rates.float32_rate, "dgemm_gflops": rates.float64_rate, "copy_gbps": rates.bandwidth}
    for name, rate in now.items():
        header.device[name] = max(header.device[name], round(rate / 1e9, 1))


def cpu_yardstick(header: Header) -> Yardstick:
    """Return the limit of this CPU: its matrix product, sgemm or, for float64, dgemm."""
    return Yardstick(lambda row: header.device["dgemm_gflops" if row.dtype == "float64" else "sgemm_gflops"] * 1e9)


def now() -> str:
    """Return the date and time in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def cpu_model() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions(*modules: str) -> dict[str, str]:
    """Return the versions of cupycorr, of what it needs, and of modules that may be missing."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    found = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": f"{blas.get('name')} {blas.get('version')}",
        "cupycorr": cupycorr.__version__,
    }
    for name in modules:
        module = rivals.importable(name)
        found[name] = "not installed" if module is None else getattr(module, "__version__", "unknown")
    return found


def command_line(arguments: Sequence[str], module: str = "benchmarks") -> str:
    """Return the command in a form that can be repeated elsewhere: paths are relative to the current folder."""
    return " ".join([f"python -m {module}", *(shlex.quote(_portable(word)) for word in arguments)])


def _portable(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    if os.sep not in value:
        return word
    relative = os.path.relpath(value)
    return option + equals + (Path(value).name if relative.startswith(os.pardir) else relative)


# Table ---------------------------------------------------------------------------------------------------------------

Column = tuple[str, Callable[[Row], str]]

NAMES: tuple[Column, ...] = (
    ("case", lambda row: row.case),
    ("dtype", lambda row: row.dtype),
    ("pass", lambda row: row.which),
    ("contestant", lambda row: f"{row.contestant} (auto)" if row.auto else row.contestant),
)
TIMES: tuple[Column, ...] = (
    ("ms", lambda row: milliseconds(row.timing.median)),
    ("min", lambda row: milliseconds(row.timing.minimum)),
    ("middle half", lambda row: "-".join(map(milliseconds, row.timing.quartiles))),
    ("runs", lambda row: f"{len(row.timing.seconds)}{'*' * row.timing.cut_short}{'?' * row.timing.disturbed}"),
    ("x ours", lambda row: "" if row.ratio is None else f"{row.ratio:.3g}"),
    ("regret", lambda row: "" if row.regret is None else f"{row.regret:.2f}"),
)
MEMORY: Column = ("peak MiB", lambda row: "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f}")
WAYS = ("array", "torch", "graph")  # ways of calling: the array function, torch, the replay of a CUDA graph


def _host(way: str) -> Column:
    return f"{way} us", lambda row: f"{row.host.seconds[way] * 1e6:.1f}" if way in row.host.seconds else ""


def columns(yardstick: Yardstick) -> tuple[Column, ...]:
    """Return the columns of the table; where there is a bound, with the fraction of it and the host times."""
    if yardstick.bound is None:
        shares: tuple[Column, ...] = (("of gemm", lambda row: f"{row.rate / yardstick.peak_rate(row):.2%}"),)
    else:
        shares = (("of bound", lambda row: f"{yardstick.share(row):.2%}"), *map(_host, WAYS))
    return (*NAMES, *TIMES, *shares, MEMORY)


BUSY = 0.5  # load per core above which the numbers are doubtful
REGRETTED = 1.15  # regret above which a choice is flagged
WIDTH = 180  # columns of a file or a pipe, which has no width of its own


def wide_console() -> Console:
    """Return the console of standard output, wide enough for the table where it is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def print_header(console: Console, header: Header) -> None:
    """Print the lines above the table."""
    device = header.device
    for line in {"cpu": _cpu_lines, "cuda": _cuda_lines}[device["kind"]](header):
        console.print(escape(line), soft_wrap=True)
    console.print(", ".join(f"{name} {version}" for name, version in header.versions.items()))
    console.print(escape(header.command), soft_wrap=True)
    load = device["load_at_start"]
    if load is not None and load > BUSY * device["cores"]:
        # torch's threads spin at every barrier, and were measured to take up to 40 times as long when they lose a core.
        message = f"warning: load {load} at the start: a busy machine slows some contestants down more than others"
        console.print(message, style="bold red")


def _cpu_lines(header: Header) -> Iterator[str]:
    device = header.device
    yield f"{device['model']}, {device['cores_used']} of {device['cores']} cores, {', '.join(header.dtypes)}, {header.date}"
    yield (
        f"matrix product {device['sgemm_gflops']} GFLOP/s in float32, {device['dgemm_gflops']} in float64, "
        f"copy {device['copy_gbps']} GB/s, measured in this run"
    )


def _cuda_lines(header: Header) -> Iterator[str]:
    device = header.device
    memory = f"{device['memory_bytes'] / 2**30:.0f} GiB, L2 {_mebibytes(device['l2_bytes'])}"
    sizes = f"{device['multiprocessors']} multiprocessors, {memory}"
    yield f"{device['model']}, compute capability {device['compute_capability']}, {sizes}"
    yield f"{', '.join(header.dtypes)}, {header.date}"
    yield (
        f"driver {device['driver']} for CUDA {device['driver_cuda']}, runtime {device['runtime_cuda']}; "
        f"host {device['host']}, {device['cores']} cores"
    )
    yield (
        f"measured: copy {device['copy_gbps']} GB/s, matrix product {device['sgemm_gflops']} GFLOP/s in float32, "
        f"{device['dgemm_gflops']} in float64, {device['hgemm_gflops']} in float16"
    )
    yield (
        f"by its clocks: {device['theoretical_gbps']} GB/s, {device['theoretical_float32_gflops']} GFLOP/s in float32, "
        f"{device['theoretical_float64_gflops']} in float64; on tensor cores "
        + ", ".join(f"{rate} in {dtype}" for dtype, rate in device["theoretical_matrix_gflops"].items())
    )
    yield (
        f"each call begins {device['lead_s'] * 1e6:.0f} us after the host began to launch it, "
        "with operands and results that are in no cache"
    )
    yield f"auto chooses with CUPYCORR_AUTOTUNE {device['autotune'] or 'unset'}"
    yield from (f"not measured: {reason}" for reason in device["not_measured"])


def _mebibytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**20:.0f} MiB"


def print_rows(console: Console, rows: Sequence[Row], yardstick: Yardstick) -> None:
    """Print the table, then the contestants that did not run, those with wrong results, and auto's worst choice."""
    table, shown = Table(box=None, header_style="bold", pad_edge=False), columns(yardstick)
    for column in shown:
        table.add_column(column[0], justify="left" if column in NAMES else "right", no_wrap=True)
    for row in rows:
        if row.timing is not None:
            table.add_row(*(cell(row) for _, cell in shown), style="bold" if row.auto else None)
    console.print(table)
    if yardstick.bound is not None:
        console.print(
            "of bound: 100 % is the time to move all data once or to multiply every tap; windows that share sums can be faster"
        )
    if any(row.timing is not None and row.timing.cut_short for row in rows):
        console.print("* one run takes longer than the budget: only the warm-up runs were timed")
    if any(row.timing is not None and row.timing.disturbed for row in rows):
        console.print("? a quarter of the runs took over twice as long as the fastest: measure again on a quiet machine")
    _print_choices(console, rows)
    for line in (*_not_run(rows), *_host_unknown(rows)):
        console.print(escape(line), style="dim", soft_wrap=True)
    for row in rows:
        if row.wrong is not None:
            message = f"error: {row.contestant} on {_where(row)}: {row.wrong}; not timed"
            console.print(escape(message), style="bold red", soft_wrap=True)
    worst = worst_regret(rows)
    if worst is not None:
        console.print(escape(worst), soft_wrap=True)


def _print_choices(console: Console, rows: Sequence[Row]) -> None:
    """Print our variants side by side where auto had a choice, with a flag where another one is much faster."""
    chosen = [row for row in rows if row.regret is not None]
    if not chosen:
        return
    ours = [*dict.fromkeys(row.contestant for row in rows if row.ours and row.timing)]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in (*(name for name, _ in NAMES[:3]), *(f"{name} ms" for name in ours), "regret"):
        table.add_column(name, justify="left" if name in dict(NAMES) else "right", no_wrap=True)
    for row in chosen:
        regretted = row.regret > REGRETTED
        beside = {other.contestant: _marked_time(other) for other in _beside(row, rows)}
        cells = [*(cell(row) for _, cell in NAMES[:3]), *(beside.get(name, "-") for name in ours)]
        table.add_row(*cells, f"{row.regret:.2f}{' !' if regretted else ''}", style="bold red" if regretted else None)
    console.print(table)
    console.print(f"* the variant that auto runs; ! it takes over {REGRETTED} times as long as our fastest variant")


def _beside(chosen: Row, rows: Sequence[Row]) -> list[Row]:
    """Return the rows of our variants that were timed on the same case, element type and pass."""
    place = (chosen.case, chosen.dtype, chosen.which)
    return [row for row in rows if row.ours and row.timing and (row.case, row.dtype, row.which) == place]


def _marked_time(row: Row) -> str:
    return f"{milliseconds(row.timing.median)}{' *' if row.auto else ''}"


def worst_regret(rows: Sequence[Row]) -> str | None:
    """Return a line about the case where auto chose worst, None where it never had a choice."""
    chosen = max((row for row in rows if row.regret is not None), key=lambda row: row.regret, default=None)
    if chosen is None:
        return None
    if chosen.regret == 1:
        return "worst regret: none, auto ran our fastest variant everywhere"
    best = min(_beside(chosen, rows), key=lambda row: row.timing.median)
    times = (f"{row.contestant} takes {milliseconds(row.timing.median)} ms" for row in (chosen, best))
    return f"worst regret: {chosen.regret:.2f} on {_where(chosen)}: auto's {', '.join(times)}"


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds with three digits and no exponent."""
    value = seconds * 1e3
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _where(row: Row) -> str:
    return f"{row.case} {row.dtype} {row.which}"


def _not_run(rows: Sequence[Row]) -> list[str]:
    """Return one line for each contestant and reason."""
    return _together(rows, "not run", ((row, row.contestant, row.reason) for row in rows if row.reason is not None))


def _host_unknown(rows: Sequence[Row]) -> list[str]:
    """Return one line for each contestant, way of calling and reason."""
    found = ((row, f"{row.contestant} by {way}", reason) for row in rows for way, reason in row.host.unknown.items())
    return _together(rows, "host not timed", found)


def _together(rows: Sequence[Row], what: str, found: Iterable[tuple[Row, str, str]]) -> list[str]:
    """Return one line for each name and reason, with the places where it holds unless it holds everywhere."""
    everywhere = len({_where(row) for row in rows})
    where: dict[tuple[str, str], list[str]] = {}
    for row, name, reason in found:
        where.setdefault((name, reason), []).append(_where(row))
    return [
        f"{what}: {name}: {reason}" + ("" if len(places) == everywhere else f" ({', '.join(places)})")
        for (name, reason), places in where.items()
    ]


# JSON ----------------------------------------------------------------------------------------------------------------


def as_json(header: Header, rows: Sequence[Row], yardstick: Yardstick) -> dict[str, Any]:
    """Return everything that the table shows, in seconds and bytes, with every single run."""
    return content(header, [record(row, yardstick) for row in rows])


def content(header: Header, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of a file: the header and a record for each row."""
    return {
        "date": header.date,
        "command": header.command,
        "dtypes": header.dtypes,
        "device": header.device,
        "versions": header.versions,
        "rows": [*records],
    }


def record(row: Row, yardstick: Yardstick) -> dict[str, Any]:
    """Return a row of the table."""
    names = {"case": row.case, "dtype": row.dtype, "pass": row.which, "contestant": row.contestant}
    found = names | {"ours": row.ours, "auto": row.auto}
    if row.timing is None:
        return found | {"reason": row.reason, "wrong": row.wrong}
    if yardstick.bound is not None:
        found |= {"bound_s": yardstick.bound(row), "share_of_bound": yardstick.share(row)}
        found |= {"host_s": dict(row.host.seconds), "host_unknown": dict(row.host.unknown), "copies": row.copies}
    return found | {
        "median_s": row.timing.median,
        "minimum_s": row.timing.minimum,
        "quartiles_s": list(row.timing.quartiles),
        "runs_s": [round(seconds, 9) for seconds in row.timing.seconds],
        "cut_short": row.timing.cut_short,
        "disturbed": row.timing.disturbed,
        "ratio": row.ratio,
        "regret": row.regret,
        "gflops": row.rate / 1e9,
        "share_of_gemm": row.rate / yardstick.peak_rate(row),
        "peak_bytes": row.peak_bytes,
    }


def write_json(path: Path, header: Header, rows: Sequence[Row], yardstick: Yardstick) -> None:
    """Write a complete file with a line for each row, so that a run that is stopped leaves the cases that it finished."""
    write_content(path, as_json(header, rows, yardstick))


def write_content(path: Path, content: dict[str, Any]) -> None:
    """Write a complete file with a line for each record."""
    lines = ",\n  ".join(json.dumps(record) for record in content["rows"])
    head = {name: value for name, value in content.items() if name != "rows"}
    path.write_text(json.dumps(head, indent=1).removesuffix("\n}") + f',\n "rows": [\n  {lines}\n ]\n}}\n')
