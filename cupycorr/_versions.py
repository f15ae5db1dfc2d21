"""Versions of packages in order. This module knows no package."""

from __future__ import annotations

import re


def older(version: str, oldest: str) -> bool:
    """Return whether a version comes before the oldest one that will do; a text that is no version is not judged."""
    return _order(version) < _order(oldest)


def _order(version: str) -> tuple[float, ...]:
    """Return numbers in the order of versions: those of ``"14.0.1rc1"`` come before those of ``"14.0.1"``."""
    parts = re.match(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:\.\d+)*((?:a|b|rc|\.dev)\d+)?", version)
    if parts is None:
        return (float("inf"),)
    return (*(int(number or 0) for number in parts.groups()[:3]), 0 if parts[4] else 1)
