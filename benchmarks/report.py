"""What was measured, as a table on the terminal and as JSON. Names the machine's processor and versions, never its host,
its users or its paths."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import cupycorr
from cupycorr._backends import workers

from . import rivals
from .running import Row


@dataclass(frozen=True, slots=True)
class Header:
    """Where, when and how the numbers were taken."""

    date: str
    command: str
    dtype: str
    device: dict[str, Any]
    versions: dict[str, str]


def cpu_header(arguments: Sequence[str], dtype: str) -> Header:
    """The header of a run on this machine's CPU."""
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
    found = versions("torch", "llvmlite", "threadpoolctl", "spatial_correlation_sampler")
    header = Header(now(), command_line(arguments), dtype, device, found)
    measure_cpu_rates(header)
    return header


def measure_cpu_rates(header: Header) -> None:
    """Measure the machine once more. The best of a run stands: whatever else the machine does only makes it slower."""
    workers.machine_rates.cache_clear()
    rates = workers.machine_rates()
    now = {"sgemm_gflops": rates.float32_rate, "dgemm_gflops": rates.float64_rate, "copy_gbps": rates.bandwidth}
    for name, rate in now.items():
        header.device[name] = max(header.device[name], round(rate / 1e9, 1))


def cpu_peak_rate(header: Header) -> float:
    """flop/s of this machine's matrix product: sgemm, or dgemm for float64."""
    return header.device["dgemm_gflops" if header.dtype == "float64" else "sgemm_gflops"] * 1e9


def now() -> str:
    """The date and time of a run."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions(*modules: str) -> dict[str, str]:
    """The versions of ours, of what it needs, and of modules that may not be there."""
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


def command_line(arguments: Sequence[str]) -> str:
    """The command as it can be repeated elsewhere: a path is reduced to what lies below the current folder."""
    return " ".join(["python -m benchmarks", *(shlex.quote(_portable(word)) for word in arguments)])


def _portable(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    if os.sep not in value:
        return word
    relative = os.path.relpath(value)
    return option + equals + (Path(value).name if relative.startswith(os.pardir) else relative)


# Table ---------------------------------------------------------------------------------------------------------------

Bound = Callable[[Row], float]  # seconds
Column = tuple[str, Callable[[Row], str]]

NAMES: tuple[Column, ...] = (
    ("case", lambda row: row.case),
    ("pass", lambda row: row.which),
    ("contestant", lambda row: f"{row.contestant} (auto)" if row.auto else row.contestant),
)
TIMES: tuple[Column, ...] = (
    ("ms", lambda row: milliseconds(row.timing.median)),
    ("min", lambda row: milliseconds(row.timing.minimum)),
    ("middle half", lambda row: "-".join(map(milliseconds, row.timing.quartiles))),
    ("runs", lambda row: f"{len(row.timing.seconds)}{'*' * row.timing.cut_short}{'?' * row.timing.disturbed}"),
    ("x ours", lambda row: "" if row.ratio is None else f"{row.ratio:.3g}"),
)
MEMORY: Column = ("peak MiB", lambda row: "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.1f}")
HOST: Column = ("host us", lambda row: "" if row.host is None else f"{row.host * 1e6:.1f}")


def columns(peak_rate: float, bound: Bound | None) -> tuple[Column, ...]:
    """Those of the table: with a bound, the share of it and what a call costs the host."""
    if bound is None:
        shares: tuple[Column, ...] = (("of gemm", lambda row: f"{row.rate / peak_rate:.2%}"),)
    else:
        shares = (("of bound", lambda row: f"{bound(row) / row.timing.median:.2%}"), HOST)
    return (*NAMES, *TIMES, *shares, MEMORY)


BUSY = 0.5  # load for each core above which the numbers are doubtful
WIDTH = 150  # columns of a console that has no width of its own: a file or a pipe


def wide_console() -> Console:
    """Standard output, wide enough for the table where it is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def print_header(console: Console, header: Header) -> None:
    """The lines above the table."""
    device = header.device
    for line in {"cpu": _cpu_lines, "cuda": _cuda_lines}[device["kind"]](header):
        console.print(escape(line), soft_wrap=True)
    console.print(", ".join(f"{name} {version}" for name, version in header.versions.items()))
    console.print(escape(header.command), soft_wrap=True)
    load = device["load_at_start"]
    if load is not None and load > BUSY * device["cores"]:
        # Measured: torch's threads spin at every barrier, and take up to 40 times as long when they lose a core.
        console.print(f"warning: load {load} at the start: a busy machine slows contestants unequally", style="bold red")


def _cpu_lines(header: Header) -> Iterator[str]:
    device = header.device
    yield f"{device['model']}, {device['cores_used']} of {device['cores']} cores, {header.dtype}, {header.date}"
    yield (
        f"matrix product {device['sgemm_gflops']} GFLOP/s in float32, {device['dgemm_gflops']} in float64, "
        f"copy {device['copy_gbps']} GB/s, measured in this run"
    )


def _cuda_lines(header: Header) -> Iterator[str]:
    device = header.device
    memory = f"{device['memory_bytes'] / 2**30:.0f} GiB, L2 {_mebibytes(device['l2_bytes'])}"
    sizes = f"{device['multiprocessors']} multiprocessors, {memory}"
    yield f"{device['model']}, compute capability {device['compute_capability']}, {sizes}, {header.dtype}, {header.date}"
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
        f"{device['theoretical_float64_gflops']} in float64"
    )
    yield from (f"not measured: {reason}" for reason in device["not_measured"])


def _mebibytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 2**20:.0f} MiB"


def print_rows(console: Console, rows: Sequence[Row], peak_rate: float, bound: Bound | None = None) -> None:
    """The table, then who did not run and why, then who was wrong."""
    table, shown = Table(box=None, header_style="bold", pad_edge=False), columns(peak_rate, bound)
    for column in shown:
        table.add_column(column[0], justify="left" if column in NAMES else "right", no_wrap=True)
    for row in rows:
        if row.timing is not None:
            table.add_row(*(cell(row) for _, cell in shown), style="bold" if row.auto else None)
    console.print(table)
    if bound is not None:
        console.print(
            "of bound: 100 % is all data moved once and every tap multiplied; windows that share their sums can do better"
        )
    if any(row.timing is not None and row.timing.cut_short for row in rows):
        console.print("* one run takes longer than the budget: timed while warming up, not in turn")
    if any(row.timing is not None and row.timing.disturbed for row in rows):
        console.print("? a quarter of the runs took over twice as long as the fastest: measure again on a quiet machine")
    for line in _not_run(rows):
        console.print(escape(line), style="dim", soft_wrap=True)
    for row in rows:
        if row.wrong is not None:
            message = f"error: {row.contestant} on {row.case}, {row.which}: {row.wrong}; not timed"
            console.print(escape(message), style="bold red", soft_wrap=True)


def milliseconds(seconds: float) -> str:
    """Three digits, never an exponent."""
    value = seconds * 1e3
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _not_run(rows: Sequence[Row]) -> list[str]:
    """One line for each contestant and reason, with where it holds unless that is everywhere."""
    everywhere = len({(row.case, row.which) for row in rows})
    where: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.reason is not None:
            where.setdefault((row.contestant, row.reason), []).append(f"{row.case} {row.which}")
    return [
        f"not run: {name}: {reason}" + ("" if len(places) == everywhere else f" ({', '.join(places)})")
        for (name, reason), places in where.items()
    ]


# JSON ----------------------------------------------------------------------------------------------------------------


def as_json(header: Header, rows: Sequence[Row], peak_rate: float, bound: Bound | None = None) -> dict[str, Any]:
    """Everything the table shows, in seconds and bytes, with every single run."""
    return {
        "date": header.date,
        "command": header.command,
        "dtype": header.dtype,
        "device": header.device,
        "versions": header.versions,
        "rows": [record(row, peak_rate, bound) for row in rows],
    }


def record(row: Row, peak_rate: float, bound: Bound | None = None) -> dict[str, Any]:
    """A row of the table."""
    found = {"case": row.case, "pass": row.which, "contestant": row.contestant, "ours": row.ours, "auto": row.auto}
    if row.timing is None:
        return found | {"reason": row.reason, "wrong": row.wrong}
    if bound is not None:
        found |= {"bound_s": bound(row), "share_of_bound": bound(row) / row.timing.median, "host_s": row.host}
    return found | {
        "median_s": row.timing.median,
        "minimum_s": row.timing.minimum,
        "quartiles_s": list(row.timing.quartiles),
        "runs_s": [round(seconds, 9) for seconds in row.timing.seconds],
        "cut_short": row.timing.cut_short,
        "disturbed": row.timing.disturbed,
        "ratio": row.ratio,
        "gflops": row.rate / 1e9,
        "share_of_gemm": row.rate / peak_rate,
        "peak_bytes": row.peak_bytes,
    }


def write_json(path: Path, header: Header, rows: Sequence[Row], peak_rate: float, bound: Bound | None = None) -> None:
    """Write the file whole, a line for each row: a run that is stopped leaves the cases it finished."""
    content = as_json(header, rows, peak_rate, bound)
    lines = ",\n  ".join(json.dumps(record) for record in content.pop("rows"))
    path.write_text(json.dumps(content, indent=1).removesuffix("\n}") + f',\n "rows": [\n  {lines}\n ]\n}}\n')
