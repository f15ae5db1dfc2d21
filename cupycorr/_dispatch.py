"""Which variant answers, and why not the others.

A variant is one row of `VARIANTS`. The one runs that takes least by the cost model, or on a GPU the one that was measured to be
the fastest there. Why one does not run is said in words, and the same words serve a forced variant's error,
the error when nothing can run, and `explain`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any

from . import _tuning
from ._arguments import HIGHEST
from ._arrays import array_kind
from ._correlation import reference
from ._correlation.cpu import blas, simd
from ._correlation.cpu import planner as cpu
from ._correlation.gpu import axes, planner
from ._correlation.problem import Problem, Question
from ._cpu import register_tile, workers
from ._dtypes import element_type_called
from ._gpu import layout as layouts
from ._gpu.device import PIP_COMMAND, Device, facts
from ._gpu.layout import ROWS

_KIND_NAMES = {"numpy": "NumPy array", "cupy": "CuPy array"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where the arrays are: their kind, and the device of those that are on a GPU."""

    kind: str
    device: Device | None

    def __hash__(self) -> int:
        """Of little: caches ask for it at every call."""
        return hash((self.kind, self.device and self.device.index))


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


def orders(input1: Any, input2: Any) -> tuple[str, str]:
    """How two inputs lie in memory, where that decides anything."""
    if array_kind(input1) == "numpy":
        return ROWS, ROWS
    return layouts.layout("input1", input1).order, layouts.layout("input2", input2).order


# Reasons ----------------------------------------------------------------------------------------------------------------------

Reason = Callable[[Question, "Device | None"], "str | None"]  # without a device, what holds on all of them


def _none(question: Question, device: Device | None) -> str | None:
    return None


def _needs_llvm(question: Question, device: Device | None) -> str | None:
    return register_tile.missing()


def _needs_reach(question: Question, device: Device | None) -> str | None:
    return axes.out_of_reach(question.problem)


def _needs_window(question: Question, device: Device | None) -> str | None:
    return _needs_reach(question, device) or ("kernel_size is 1" if question.problem.parameters.kernel_size == (1, 1) else None)


def _needs_tiles(question: Question, device: Device | None) -> str | None:
    return _needs_reach(question, device) or planner.misfit("tiled", question)


def _needs_tensor_cores(question: Question, device: Device | None) -> str | None:
    lacking = _needs_reach(question, device) or _lacks_product(question, device)
    height, width = question.problem.parameters.kernel_size
    if lacking is None and (height, width) != (1, 1):
        return f"a window of {height} x {width} pixels, tensor cores are for windows of one pixel"
    return lacking or planner.misfit("mma", question)


def _lacks_product(question: Question, device: Device | None) -> str | None:
    """Why tensor cores do not multiply such numbers, or may not."""
    dtype = question.dtype
    if dtype == "float64":
        return "float64 has no tensor-core product here"
    if dtype == "float32" and question.precision == HIGHEST:
        return "precision is 'highest', tensor cores multiply float32 as TF32"
    if device is not None and not device.has_matrix_product(dtype):
        return "compute capability {}.{} has no tensor cores for {}".format(*device.compute_capability, dtype)
    return None


# The table --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Variant:
    """One implementation: its name, the kind of array it takes, how it goes about a question, and its two maps.

    Both maps fill arrays that the caller made: ``forward(problem, input1, input2, out)`` and ``vjp(problem, cotangent, input1,
    input2, needs, gradients)``, with None in place of a gradient that is not needed.

    ``workspace`` is the bytes that a map takes beside its result, at most; ``missing`` returns the reason why a question cannot
    be answered on arrays of that kind, or on a device; ``seconds`` what an answer takes there by the cost model.
    """

    name: str
    kind: str
    how: Callable[[Question, Device | None], str]
    forward: Callable[..., None]
    vjp: Callable[..., None]
    workspace: Callable[[Question, Device | None], int]
    seconds: Callable[[Question, Device | None], float]
    missing: Reason = _none

    def can_run(self, question: Question, where: Place) -> str | None:
        """None, or the reason why this variant cannot answer there."""
        return self.missing(question, where.device) if where.kind == self.kind else self._other_kind(where)

    def _other_kind(self, where: Place) -> str:
        remedy = f"; CuPy is not installed: {PIP_COMMAND}" if self.kind == "cupy" and not find_spec("cupy") else ""
        return f"input is a {_KIND_NAMES[where.kind]}, needs a {_KIND_NAMES[self.kind]}{remedy}"


def _on_cpu(name: str, module: Any, missing: Reason = _none) -> Variant:
    maps = (partial(cpu.forward, module.ENGINE), partial(cpu.vjp, module.ENGINE))
    return Variant(
        name,
        "numpy",
        lambda question, device: module.how(question),
        *maps,
        lambda question, device: workers.WORKSPACE,
        lambda question, device: cpu.seconds(module.ENGINE, question),
        missing,
    )


def _on_gpu(name: str, missing: Reason) -> Variant:
    return Variant(
        name,
        "cupy",
        lambda question, device: planner.expected(name, question, device).how,
        partial(planner.forward, name),
        partial(planner.vjp, name),
        lambda question, device: planner.expected(name, question, device).workspace,
        lambda question, device: planner.expected(name, question, device).seconds,
        missing,
    )


VARIANTS = (
    _on_cpu("simd", simd, _needs_llvm),
    _on_cpu("blas", blas),
    Variant(
        "reference",
        "numpy",
        lambda question, device: reference.how(question),
        reference.forward,
        reference.vjp,
        lambda question, device: reference.workspace(question),
        lambda question, device: reference.seconds(question),
    ),
    _on_gpu("box", _needs_window),
    _on_gpu("mma", _needs_tensor_cores),
    _on_gpu("tiled", _needs_tiles),
    _on_gpu("direct", _needs_reach),
)


def choose(
    problem: Problem,
    where: Place,
    variant: str = "auto",
    which: str = "forward",
    dtype: Any = "float32",
    result_dtype: Any = "float32",
    orders: tuple[str, str] = (ROWS, ROWS),
    needs: tuple[bool, bool] = (True, True),
    precision: str = HIGHEST,
) -> Variant:
    """The variant that runs: the one named, or the best of those that can.

    The other arguments are those of `Question`; dtypes may be NumPy's.

    Raises
    ------
    ValueError
        There is no variant of that name.
    NotImplementedError
        The named variant, or every variant, cannot run; the message says why.
    """
    if type(variant) is not str:
        named_variants(variant)
    counted = _count(problem, where, variant, which, dtype, result_dtype, orders, needs, precision)
    return _measured(counted, where.device, measure=True) or counted.best


@dataclass(frozen=True, slots=True)
class _Counted:
    """The rows that can answer a question, and the best of them: the one that takes least by the cost model."""

    question: Question
    able: tuple[Variant, ...]
    best: Variant


@lru_cache(1024)  # models ask the same thing again and again
def _count(
    problem: Problem,
    where: Place,
    variant: str,
    which: str,
    dtype: Any,
    result_dtype: Any,
    orders: tuple[str, str],
    needs: tuple[bool, bool],
    precision: str,
) -> _Counted:
    names = (each if isinstance(each, str) else each.name for each in (dtype, result_dtype))
    question = Question(which, problem, *names, orders, needs, precision)
    rows = named_variants(variant) or VARIANTS
    able = tuple(row for row in rows if row.kind == where.kind and row.missing(question, where.device) is None)
    if not able:
        reasons = "; ".join(f"{row.name}: {row.can_run(question, where)}" for row in rows)
        raise NotImplementedError(f"no variant can run this, got variant={variant!r} ({reasons})")
    if len(able) == 1:
        return _Counted(question, able, able[0])
    return _Counted(question, able, min(able, key=lambda row: row.seconds(question, where.device)))


def _measured(counted: _Counted, device: Device | None, *, measure: bool) -> Variant | None:
    """The row that was measured to be the fastest on a device, or now is where that is asked for; None where it is not known."""
    if device is None or len(counted.able) == 1:
        return None
    rows = {row.name: row for row in counted.able}
    found = rows.get(_tuning.known(counted.question, device))
    if found is None and measure and _tuning.at_first_use():
        found = rows.get(_tuning.measure(counted.question, device, counted.able))
    return found


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


def explain(question: Question, where: Place, variant: str) -> Explanation:
    """Everything known about a question before it is answered."""
    problem = question.problem
    named_variants(variant)
    asked = (question.which, question.dtype, question.result_dtype, question.orders, question.needs, question.precision)
    counted = _count(problem, where, variant, *asked)
    measured = _measured(counted, where.device, measure=False)
    chosen = measured or counted.best
    why_not = partial(_why_not, chosen, measured is not None, question, where)
    rates = where.device or workers.machine_rates()
    moved = problem.bytes(*(element_type_called("dtype", name).itemsize for name in (question.dtype, question.result_dtype)))
    return Explanation(
        problem,
        chosen.name,
        chosen.how(question, where.device),
        {row.name: why_not(row) for row in VARIANTS if row is not chosen},
        problem.flops,
        problem.flops_inside(),
        moved,
        chosen.workspace(question, where.device),
        max(moved / (rates.bandwidth or math.nan), problem.flops / (_rate(question, where) or math.nan)),
    )


def _rate(question: Question, where: Place) -> float | None:
    """Operations per second of the fastest unit that may multiply these numbers."""
    device, dtype = where.device, question.dtype
    whole = dtype == "float32" and question.problem.parameters.kernel_size != (1, 1)  # windows are summed of whole products
    if device is not None and not whole and _lacks_product(question, device) is None:
        return device.matrix_rate(dtype)
    rates = device or workers.machine_rates()
    return rates.float64_rate if dtype == "float64" else rates.float32_rate


def _why_not(chosen: Variant, measured: bool, question: Question, where: Place, row: Variant) -> str:
    reason = row.can_run(question, where)
    if reason is not None:
        return reason
    if measured:
        return f"{chosen.name} was measured to be faster on this device"
    times = [f"{each.seconds(question, where.device) * 1e3:.3g} ms" for each in (row, chosen)]
    return f"by the cost model it takes {times[0]}, {chosen.name} {times[1]}"
