"""The available memory, and the peak memory of some work, as the operating system counts them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def available() -> int:
    """Return the bytes that are free without swapping, within the container's limit if it has one."""
    free = _kernel_table("/proc/meminfo").get("MemAvailable")
    if free is None:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([free, *_container_rest()])


def _container_rest() -> list[int]:
    """Return the bytes left of the control group's limit, or nothing without a limit."""
    try:
        limit, used = (Path("/sys/fs/cgroup", name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return []
    return [int(limit) - int(used)] if limit.isdigit() else []


def peak_increase(work: Callable[[], Any]) -> int:
    """Return by how many bytes the resident set grows at most while ``work`` runs."""
    gc.collect()
    # Memory that the allocator kept would be reused without growing the resident set.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    resettable = _reset_peak()
    before = _kernel_table("/proc/self/status")["VmRSS"] if resettable else _lifetime_peak()
    work()
    after = _kernel_table("/proc/self/status")["VmHWM"] if resettable else _lifetime_peak()
    return max(after - before, 0)


def _reset_peak() -> bool:
    """Reset the kernel's record of the peak; return whether it could."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _lifetime_peak() -> int:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _kernel_table(path: str) -> dict[str, int]:
    """Return the lines ``Name:  123 kB`` of a file as bytes by name, or nothing where there is no such file."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return {}
    words = [line.split() for line in lines]
    return {word[0].rstrip(":"): int(word[1]) * 1024 for word in words if len(word) == 3 and word[2] == "kB"}


def peak_in_own_process(module: str, arguments: Sequence[str]) -> int | None:
    """Return the number that ``python -m module`` prints in a process of its own, None where that process failed."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else None
