"""Which variant answers, and why not the others.

A variant is one row of `VARIANTS`, in order of preference. Why one cannot run is said in words, and the same words serve a forced
variant's error, the error when nothing can run, and `explain`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from ._arrays import array_kind
from ._backends import blas, cpu, cuda, kernels, reference, register_tile, simd, workers
from ._cuda.device import PIP_COMMAND, Device, facts
from ._dtypes import element_type
from ._problem import Problem

_KIND_NAMES = {"numpy": "NumPy array", "cupy": "CuPy array"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the arrays are: their kind, and the device of those that are on a GPU."""

    kind: str
    device: Device | None


CPU = Place("numpy", None)


def place(array: Any) -> Place:
    """The place of a NumPy or CuPy array."""
    return CPU if array_kind(array) == "numpy" else gpu(array.device.id)


def gpu(index: int) -> Place:
    """The place of what is on the GPU of that number."""
    return _on(facts(index))


@lru_cache
def _on(device: Device) -> Place:
    return Place("cupy", device)


# Reasons ----------------------------------------------------------------------------------------------------------------------

Reason = Callable[[Problem], "str | None"]


def _none(problem: Problem) -> str | None:
    return None


def _needs_llvm(problem: Problem) -> str | None:
    return register_tile.missing()


def _needs_window(problem: Problem) -> str | None:
    return kernels.out_of_reach(problem) or ("kernel_size is 1" if problem.parameters.kernel_size == (1, 1) else None)


def _fewer_taps(problem: Problem) -> str | None:
    return None if cuda.sums_cost_less(problem) else "summing every tap takes less work"


# The table --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Variant:
    """One implementation: its name, the kind of array it takes, how it goes about a problem, and its two maps.

    ``workspace`` is the bytes that the forward map takes beside its result, at most. ``missing`` returns the reason why a problem
    cannot be run on arrays of that kind, ``worthwhile`` why it is left to a later row although it could be.
    """

    name: str
    kind: str
    how: Callable[[Problem], str]
    forward: Callable[..., None]
    vjp: Callable[..., tuple[Any, Any]]
    workspace: Callable[[Problem, str], int]
    missing: Reason = _none
    worthwhile: Reason = _none

    def can_run(self, problem: Problem, where: Place) -> str | None:
        """None, or the reason why this variant cannot run a problem there."""
        return self.missing(problem) if where.kind == self.kind else self._other_kind(where)

    def _other_kind(self, where: Place) -> str:
        remedy = f"; CuPy is not installed: {PIP_COMMAND}" if self.kind == "cupy" and not find_spec("cupy") else ""
        return f"input is a {_KIND_NAMES[where.kind]}, needs a {_KIND_NAMES[self.kind]}{remedy}"


def _on_cpu(name: str, module: Any, missing: Reason = _none) -> Variant:
    maps = (partial(cpu.forward, module.ENGINE), partial(cpu.vjp, module.ENGINE))
    return Variant(name, "numpy", module.how, *maps, lambda problem, accumulator: workers.WORKSPACE, missing)


def _on_gpu(name: str, missing: Reason, worthwhile: Reason = _none) -> Variant:
    maps = (partial(function, name) for function in (cuda.how, cuda.forward, cuda.vjp, cuda.workspace))
    return Variant(name, "cupy", *maps, missing, worthwhile)


VARIANTS = (
    _on_cpu("simd", simd, _needs_llvm),
    _on_cpu("blas", blas),
    Variant("reference", "numpy", reference.how, reference.forward, reference.vjp, reference.workspace),
    _on_gpu("box", _needs_window, _fewer_taps),
    _on_gpu("direct", kernels.out_of_reach),
)


def choose(problem: Problem, where: Place, variant: str = "auto") -> Variant:
    """The variant that runs: the first that can and is worthwhile, or the one named.

    Raises
    ------
    ValueError
        There is no variant of that name.
    NotImplementedError
        The named variant, or every variant, cannot run; the message says why.
    """
    forced = named_variants(variant)
    for row in forced or VARIANTS:
        if row.kind == where.kind and row.missing(problem) is None and (forced or row.worthwhile(problem) is None):
            return row
    reasons = "; ".join(f"{row.name}: {row.can_run(problem, where) or row.worthwhile(problem)}" for row in forced or VARIANTS)
    raise NotImplementedError(f"no variant can run this, got variant={variant!r} ({reasons})")


def named_variants(variant: str) -> list[Variant]:
    """The row of that name, alone; none for ``"auto"``.

    Raises
    ------
    ValueError
        There is no variant of that name.
    """
    named = [row for row in VARIANTS if row.name == variant]
    if variant != "auto" and not named:
        names = ", ".join(repr(row.name) for row in VARIANTS)
        raise ValueError(f"variant must be 'auto' or one of {names}, got variant={variant!r}")
    return named


# Explanations -----------------------------------------------------------------------------------------------------------------


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


def explain(problem: Problem, where: Place, variant: str, dtype: np.dtype, out_dtype: np.dtype) -> Explanation:
    """Everything known about a problem before it is run."""
    chosen = choose(problem, where, variant)
    reasons = {}
    for row in VARIANTS:
        if row is not chosen:
            reasons[row.name] = row.can_run(problem, where) or row.worthwhile(problem) or f"{chosen.name} comes first"
    rates = where.device or workers.machine_rates()
    accumulator = element_type("input1", dtype).accumulator
    moved = problem.bytes(dtype.itemsize, out_dtype.itemsize)
    rate = rates.float64_rate if accumulator == "float64" else rates.float32_rate
    return Explanation(
        problem,
        chosen.name,
        chosen.how(problem),
        reasons,
        problem.flops,
        problem.flops_inside(),
        moved,
        chosen.workspace(problem, accumulator),
        max(moved / (rates.bandwidth or math.nan), problem.flops / (rate or math.nan)),
    )
