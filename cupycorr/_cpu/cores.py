"""The number of cores that this process may use: those it may run on, limited by the CPU quota of its control groups.

This module reads the operating system's settings and knows neither threads nor operators. A container with a quota of two cores
on a machine of 64 is throttled when more than two threads compute, so that the quota must be found in both versions of control
groups and below any mount point.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath

_CGROUPS = "sys/fs/cgroup"
_PERIOD = "100000"  # microseconds: the default of Linux


def ceiling() -> tuple[int, str]:
    """Return the largest number of threads that can run at once, and the name of the rule that limits it."""
    cores, allowed = runnable(), _quota_of_this_process()
    if allowed is not None and allowed < cores:
        return allowed, "the CPU quota of the control group"
    return cores, "the cores that this process may run on"


def runnable() -> int:
    """Return the number of cores that this process may run on now."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=1)
def _quota_of_this_process() -> int | None:
    return quota(Path("/"))


def quota(root: Path) -> int | None:
    """Return the CPU quota of this process's control groups in cores, rounded up, or None without a quota.

    It is the smallest quota of the process's own group and of every group above it, in versions 1 and 2 of control groups. Inside
    a container ``/proc`` may give the group's path on the host although the group is mounted as the root, so that paths which do
    not exist are skipped.

    Parameters
    ----------
    root
        The folder that holds ``proc`` and ``sys``.
    """
    found = []
    for controllers, path in _memberships(root):
        mounts, read = _hierarchy(controllers)
        for group in _upwards(path):
            found += [read(root / mount / group) for mount in mounts]
    return min((cores for cores in found if cores is not None), default=None)


def _memberships(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the controllers and the path of each group of this process, and finally the root groups of both versions."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, membership = line.partition(":")
        controllers, _, path = membership.partition(":")
        if not controllers or "cpu" in controllers.split(","):
            yield controllers, path
    yield "", "/"
    yield "cpu", "/"


def _hierarchy(controllers: str) -> tuple[tuple[str, ...], Callable[[Path], int | None]]:
    """Return the folders where groups of these controllers may be mounted, and the function that reads a quota there.

    Version 2 names no controllers.
    """
    if not controllers:
        return (_CGROUPS, f"{_CGROUPS}/unified"), _quota_of_version_2
    return tuple(dict.fromkeys((f"{_CGROUPS}/{controllers}", f"{_CGROUPS}/cpu"))), _quota_of_version_1


def _upwards(path: str) -> Iterator[str]:
    """Yield the path of a group and of every group above it, relative to the mount point."""
    parts = [part for part in PurePosixPath(path).parts if part != "/"]
    if ".." in parts:  # the group is above the mount point, so that only the mounted root can be read
        parts = []
    for count in range(len(parts), -1, -1):
        yield "/".join(parts[:count])


def _quota_of_version_2(group: Path) -> int | None:
    fields = _text(group / "cpu.max").split()
    return _cores(fields[0], *(fields[1:2] or [_PERIOD])) if fields else None


def _quota_of_version_1(group: Path) -> int | None:
    return _cores(_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us") or _PERIOD)


def _cores(microseconds: str, period: str) -> int | None:
    """Return ``microseconds / period`` rounded up; None (no quota) for "max", -1 and anything that is not a number."""
    try:
        numbers = int(microseconds), int(period)
    except ValueError:
        return None
    return -(-numbers[0] // numbers[1]) if min(numbers) > 0 else None


def _text(file: Path) -> str:
    """Return the text of a file, or an empty text if it cannot be read."""
    try:
        return file.read_text("utf-8")
    except (OSError, ValueError):
        return ""
