"""A rule for each instruction, in files by kind; importing this package fills the table."""

from __future__ import annotations

from . import arithmetic, bits, comparisons, control, conversions, memory, warps
from .table import RULES, emit_of

__all__ = ["RULES", "arithmetic", "bits", "comparisons", "control", "conversions", "emit_of", "memory", "warps"]
