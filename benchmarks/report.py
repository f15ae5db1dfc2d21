"""What was measured, as a table on the terminal and as JSON. Names the machine's processor and versions, never its host,
its users or its paths."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Sequence
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
        "model": _cpu_model(),
        "cores_used": workers.thread_count(),
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "sgemm_gflops": 0.0,
        "dgemm_gflops": 0.0,
        "copy_gbps": 0.0,
    }
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    header = Header(date, command_line(arguments), dtype, device, _versions())
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


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _versions() -> dict[str, str]:
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    found = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": f"{blas.get('name')} {blas.get('version')}",
        "cupycorr": cupycorr.__version__,
    }
    for name in ("torch", "llvmlite", "threadpoolctl", "spatial_correlation_sampler"):
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

COLUMNS = ("case", "pass", "contestant", "ms", "min", "middle half", "runs", "x ours", "of gemm", "peak MiB")


BUSY = 0.5  # load for each core above which the numbers are doubtful
WIDTH = 150  # columns of a console that has no width of its own: a file or a pipe


def wide_console() -> Console:
    """Standard output, wide enough for the table where it is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def print_header(console: Console, header: Header) -> None:
    """The lines above the table."""
    device = header.device
    console.print(f"{device['model']}, {device['cores_used']} of {device['cores']} cores, {header.dtype}, {header.date}")
    console.print(
        f"matrix product {device['sgemm_gflops']} GFLOP/s in float32, {device['dgemm_gflops']} in float64, "
        f"copy {device['copy_gbps']} GB/s, measured in this run"
    )
    console.print(", ".join(f"{name} {version}" for name, version in header.versions.items()))
    console.print(escape(header.command), soft_wrap=True)
    load = device["load_at_start"]
    if load is not None and load > BUSY * device["cores"]:
        # Measured: torch's threads spin at every barrier, and take up to 40 times as long when they lose a core.
        console.print(f"warning: load {load} at the start: a busy machine slows contestants unequally", style="bold red")


def print_rows(console: Console, rows: Sequence[Row], peak_rate: float) -> None:
    """The table, then who did not run and why, then who was wrong."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in COLUMNS[:3] else "right", no_wrap=True)
    for row in rows:
        if row.timing is not None:
            table.add_row(*_cells(row, peak_rate), style="bold" if row.auto else None)
    console.print(table)
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


def _cells(row: Row, peak_rate: float) -> list[str]:
    timing = row.timing
    lower, upper = timing.quartiles
    return [
        row.case,
        row.which,
        f"{row.contestant} (auto)" if row.auto else row.contestant,
        milliseconds(timing.median),
        milliseconds(timing.minimum),
        f"{milliseconds(lower)}-{milliseconds(upper)}",
        f"{len(timing.seconds)}{'*' * timing.cut_short}{'?' * timing.disturbed}",
        f"{row.ratio:.3g}" if row.ratio is not None else "",
        f"{row.rate / peak_rate:.2%}",
        f"{row.peak_bytes / 2**20:.1f}" if row.peak_bytes is not None else "",
    ]


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


def as_json(header: Header, rows: Sequence[Row], peak_rate: float) -> dict[str, Any]:
    """Everything the table shows, in seconds and bytes, with every single run."""
    return {
        "date": header.date,
        "command": header.command,
        "dtype": header.dtype,
        "device": header.device,
        "versions": header.versions,
        "rows": [_record(row, peak_rate) for row in rows],
    }


def _record(row: Row, peak_rate: float) -> dict[str, Any]:
    record = {"case": row.case, "pass": row.which, "contestant": row.contestant, "ours": row.ours, "auto": row.auto}
    if row.timing is None:
        return record | {"reason": row.reason, "wrong": row.wrong}
    return record | {
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


def write_json(path: Path, header: Header, rows: Sequence[Row], peak_rate: float) -> None:
    """Write the file whole, a line for each row: a run that is stopped leaves the cases it finished."""
    content = as_json(header, rows, peak_rate)
    lines = ",\n  ".join(json.dumps(record) for record in content.pop("rows"))
    path.write_text(json.dumps(content, indent=1).removesuffix("\n}") + f',\n "rows": [\n  {lines}\n ]\n}}\n')
