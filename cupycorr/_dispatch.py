"""Which variant answers, and why not the others.

A variant is one row of `VARIANTS`, in order of preference. ``can_run`` returns None or the reason in words, and the same
words serve a forced variant's error, the error when nothing can run, and `explain`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ._backends import blas, cpu, reference, register_tile, simd, workers
from ._problem import Problem


def _needs_numpy(problem: Problem, kind: str) -> str | None:
    return None if kind == "numpy" else f"input is a {_KIND_NAMES[kind]}, needs a NumPy array"


_KIND_NAMES = {"numpy": "NumPy array", "cupy": "CuPy array"}


@dataclass(frozen=True, slots=True)
class Variant:
    """One implementation: its name, when it can run, how it goes about a problem, and its two maps."""

    name: str
    can_run: Callable[[Problem, str], str | None]
    how: Callable[[Problem], str]
    forward: Callable[..., None]
    vjp: Callable[..., tuple[Any, Any]]


def _needs_llvm(problem: Problem, kind: str) -> str | None:
    return _needs_numpy(problem, kind) or register_tile.missing()


VARIANTS = (
    Variant("simd", _needs_llvm, simd.how, partial(cpu.forward, simd.ENGINE), partial(cpu.vjp, simd.ENGINE)),
    Variant("blas", _needs_numpy, blas.how, partial(cpu.forward, blas.ENGINE), partial(cpu.vjp, blas.ENGINE)),
    Variant("reference", _needs_numpy, lambda problem: "the definition, tap by tap", reference.forward, reference.vjp),
)


def choose(problem: Problem, kind: str, variant: str = "auto") -> Variant:
    """The variant that runs: the first that can, or the one named.

    Raises
    ------
    ValueError
        There is no variant of that name.
    NotImplementedError
        The named variant, or every variant, cannot run; the message says why.
    """
    names = [row.name for row in VARIANTS]
    if variant == "auto":
        rows = VARIANTS
    elif variant in names:
        rows = (VARIANTS[names.index(variant)],)
    else:
        raise ValueError(f"variant must be 'auto' or one of {', '.join(map(repr, names))}, got variant={variant!r}")
    reasons = []
    for row in rows:
        reason = row.can_run(problem, kind)
        if reason is None:
            return row
        reasons.append(f"{row.name}: {reason}")
    raise NotImplementedError(f"no variant can run this, got variant={variant!r} ({'; '.join(reasons)})")


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `explain` found; printing it shows all of it."""

    problem: Problem
    variant: str
    how: str
    reasons: dict[str, str]
    flops: int
    flops_inside: int
    bytes: int
    workspace: int
    bound: float

    def __str__(self) -> str:
        share = self.flops_inside / self.flops if self.flops else 1.0
        lines = [
            f"{self.problem.shape1} x {self.problem.shape2} -> {self.problem.out_shape}",
            f"runs       {self.variant}: {self.how}",
            *(f"not run    {name}: {reason}" for name, reason in self.reasons.items()),
            f"arithmetic {self.flops / 1e9:.4g} GFLOP, {share:.0%} of it inside both images",
            f"traffic    {self.bytes / 1e6:.4g} MB at least, workspace at most {self.workspace / 2**20:.3g} MiB",
            f"bound      {self.bound * 1e3:.3g} ms on this machine (larger of traffic and arithmetic)",
        ]
        return "\n".join(lines)


def explain(problem: Problem, kind: str, variant: str, dtype: np.dtype, out_dtype: np.dtype) -> Explanation:
    """Everything known about a problem before it is run."""
    chosen = choose(problem, kind, variant)
    reasons = {}
    for row in VARIANTS:
        if row is not chosen:
            reasons[row.name] = row.can_run(problem, kind) or f"{chosen.name} comes first"
    rates = workers.machine_rates()
    moved = problem.bytes(dtype.itemsize, out_dtype.itemsize)
    rate = rates.float64 if dtype == np.float64 else rates.float32
    return Explanation(
        problem,
        chosen.name,
        chosen.how(problem),
        reasons,
        problem.flops,
        problem.flops_inside(),
        moved,
        workers.WORKSPACE,
        max(moved / rates.bandwidth, problem.flops / rate),
    )
