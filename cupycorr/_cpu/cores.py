"""How many cores this process may use: those it may run on, and no more than a container's CPU quota pays for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

_CGROUPS = "sys/fs/cgroup"
_PERIOD = "100000"  # microseconds, the kernel's default


def ceiling() -> tuple[int, str]:
    """Return the most threads that can run at once, and the rule that says so."""
    cores, paid_for = runnable(), _quota_of_this_process()
    if paid_for is not None and paid_for < cores:
        return paid_for, "the CPU quota of the control group"
    return cores, "the cores that this process may run on"


def runnable() -> int:
    """Return the number of cores that this process may run on now."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=1)
def _quota_of_this_process() -> int | None:
    return quota(Path("/"))


def quota(root: Path) -> int | None:
    """Return how many cores the CPU quota of this process's control groups pays for, rounded up, or None without a quota.

    The smallest quota counts of the process's own group and of every group above it, in versions 1 and 2 of control groups. A
    container may see its own group as the topmost one whatever path it is told, so paths that do not exist are passed over.

    Parameters
    ----------
    root
        Folder in which ``proc`` and ``sys`` are found.
    """
    found = []
    for controllers, path in _memberships(root):
        mounts, read = _hierarchy(controllers)
        for above in _upwards(path):
            found += [read(root / mount / above) for mount in mounts]
    return min((cores for cores in found if cores is not None), default=None)


def _memberships(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the controllers and the path of each of this process's groups, and the topmost groups in any case."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, membership = line.partition(":")
        controllers, _, path = membership.partition(":")
        if not controllers or "cpu" in controllers.split(","):
            yield controllers, path
    yield "", "/"
    yield "cpu", "/"


def _hierarchy(controllers: str) -> tuple[tuple[str, ...], Callable[[Path], int | None]]:
    """Return where groups of these controllers may be mounted and how a quota is read there; no controllers mean version 2."""
    if not controllers:
        return (_CGROUPS, f"{_CGROUPS}/unified"), _quota_of_version_2
    return tuple(dict.fromkeys((f"{_CGROUPS}/{controllers}", f"{_CGROUPS}/cpu"))), _quota_of_version_1


def _upwards(path: str) -> Iterator[str]:
    """Yield a group's path and those of the groups above it, relative to where they are mounted."""
    parts = [part for part in PurePosixPath(path).parts if part != "/"]
    if ".." in parts:  # the group is outside of what is mounted here
        parts = []
    for count in range(len(parts), -1, -1):
        yield "/".join(parts[:count])


def _quota_of_version_2(group: Path) -> int | None:
    fields = _text(group / "cpu.max").split()
    return _cores(fields[0], *(fields[1:2] or [_PERIOD])) if fields else None


def _quota_of_version_1(group: Path) -> int | None:
    return _cores(_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us") or _PERIOD)


def _cores(microseconds: str, period: str) -> int | None:
    """Return the cores that so many microseconds in each period pay for; "max", -1 and what is no number mean no quota."""
    try:
        numbers = int(microseconds), int(period)
    except ValueError:
        return None
    return -(-numbers[0] // numbers[1]) if min(numbers) > 0 else None


def _text(file: Path) -> str:
    """Return the text of a file, or nothing if it cannot be read."""
    try:
        return file.read_text("utf-8")
    except (OSError, ValueError):
        return ""
