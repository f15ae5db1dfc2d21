"""The CPU answer: for each problem the plan that takes least by the cost model, and the two maps by that plan.

A plan says how windows are computed along each axis, whether height and width are exchanged, and how the work is cut. Plans
follow from the problem and the dtypes alone, so that the bits of a result depend neither on the number of threads nor on which
thread calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from ..._cpu import workers
from ..._dtypes import element_type, named_dtype
from ..problem import Problem, Question
from . import forward as cpu_forward
from . import gradient as cpu_gradient
from . import non_finite
from .engine import THREAD_SECONDS, Engine
from .forward import ForwardPlan
from .gradient import GradientPlan
from .lattice import AxisPlan, axis_plans
from .packing import Values

MOST_LATTICES = 4096  # of a window that is computed tap by tap: beyond, even planning takes long


def forward(engine: Engine, problem: Problem, input1: np.ndarray, input2: np.ndarray, out: np.ndarray) -> None:
    """Write the correlation of ``input1`` and ``input2`` into ``out``."""
    cpu_forward.run(forward_plan(engine, problem, input1.dtype, out.dtype), input1, input2, out)


def vjp(
    engine: Engine,
    problem: Problem,
    cotangent: np.ndarray,
    input1: np.ndarray,
    input2: np.ndarray,
    needs: tuple[bool, bool],
    gradients: tuple[np.ndarray | None, np.ndarray | None],
) -> None:
    """Write the gradients of ``<cotangent, forward(input1, input2)>`` that ``needs`` asks for into ``gradients``."""
    sides = [side for side in (0, 1) if needs[side]]
    plans = {side: gradient_plan(engine, problem, input1.dtype, side) for side in sides}
    threads = engine.threads()
    # Two small gradients keep two threads busy with nothing to wait for; a large one is worth all threads.
    side_by_side = len(sides) == 2 and threads > 1 and all(plan.team.tasks == 1 for plan in plans.values())
    worth_it = sum(plan.seconds for plan in plans.values()) >= THREAD_SECONDS

    def compute(side: int) -> None:
        searched, gradient, most = (input2, input1)[side], gradients[side], 1 if side_by_side else threads
        assert gradient is not None
        cpu_gradient.run(plans[side], cotangent, searched, gradient, most)
        if plans[side].spreads:
            non_finite.correct(gradient, _linear(engine, problem, cotangent, searched, side, most), problem.parameters.scale)

    workers.run(compute, sides, 2 if side_by_side and worth_it else 1)


def _linear(
    engine: Engine, problem: Problem, cotangent: np.ndarray, searched: np.ndarray, side: int, threads: int
) -> non_finite.Linear:
    """Return the gradient as a function of the values that it is linear in, without the scale."""
    unscaled = replace(problem.parameters, scale=1.0)

    def linear(batch: slice, channels: slice, result: np.ndarray, of_cotangent: Values, of_searched: Values) -> None:
        part = replace(problem, parameters=unscaled, batch=result.shape[0], channels=result.shape[1])
        plan = gradient_plan(engine, part, result.dtype, side)
        cpu_gradient.run(plan, cotangent[batch], searched[batch, channels], result, threads, of_cotangent, of_searched)

    return linear


def seconds(engine: Engine, question: Question) -> float:
    """Estimate the seconds of an answer in one thread."""
    dtype, result = (_numpy_dtype(name) for name in (question.dtype, question.result_dtype))
    if question.which == "forward":
        return forward_plan(engine, question.problem, dtype, result).seconds
    sides = [side for side in (0, 1) if question.needs[side]]
    return sum(gradient_plan(engine, question.problem, dtype, side).seconds for side in sides)


# Plans ----------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def forward_plan(engine: Engine, problem: Problem, dtype: np.dtype, result_dtype: np.dtype) -> ForwardPlan:
    """Return the plan of the forward map that takes least by the cost model."""
    return _best(forward_plans(engine, problem, dtype, result_dtype))


@lru_cache(maxsize=1024)
def gradient_plan(engine: Engine, problem: Problem, dtype: np.dtype, side: int) -> GradientPlan:
    """Return the plan of the gradient of input1 (side 0) or input2 (side 1) that takes least by the cost model."""
    return _best(gradient_plans(engine, problem, dtype, side))


def forward_plans(engine: Engine, problem: Problem, dtype: np.dtype, result_dtype: np.dtype) -> list[ForwardPlan]:
    """Return every plan of the forward map."""
    accumulator = element_type("input1", dtype).accumulator_dtype
    plans = []
    for oriented, axes, transposed in _ways(problem):
        for fused in (False, True) if engine.sums_rows and axes[0].window.taps > 1 else (False,):
            plans.append(ForwardPlan(engine, oriented, accumulator, result_dtype, axes, fused, transposed))
    return plans


def gradient_plans(engine: Engine, problem: Problem, dtype: np.dtype, side: int) -> list[GradientPlan]:
    """Return every plan of one gradient."""
    accumulator = element_type("input1", dtype).accumulator_dtype
    return [
        GradientPlan(engine, oriented, accumulator, dtype, axes, transposed, side)
        for oriented, axes, transposed in _ways(problem, side)
    ]


def _ways(problem: Problem, side: int = 0) -> Iterator[tuple[Problem, tuple[AxisPlan, AxisPlan], bool]]:
    """Yield the problem in both orientations, with each way to compute its windows along both axes."""
    for oriented, transposed in ((problem, False), (problem.transposed, True)):
        for axes in product(axis_plans(oriented.vertical), axis_plans(oriented.horizontal)):
            taps = len(axes[0].taps) * len(axes[1].taps)
            if taps == 1 or axes[0].lattice_count(side) * axes[1].lattice_count(side) <= MOST_LATTICES:
                yield oriented, axes, transposed


def _best(plans: list) -> Any:
    """The plan that takes least by the cost model, of those that stay within the workspace where any does."""
    return min(plans, key=lambda plan: (float(not plan.fits), plan.seconds))


_numpy_dtype = lru_cache(named_dtype)


def how(engine: Engine, question: Question) -> str:
    """Say in words how windows become products."""
    dtype, result = (_numpy_dtype(name) for name in (question.dtype, question.result_dtype))
    plan: ForwardPlan | GradientPlan
    if question.which == "forward":
        plan = forward_plan(engine, question.problem, dtype, result)
    else:
        plan = gradient_plan(engine, question.problem, dtype, 0 if question.needs[0] else 1)
    ways = []
    for name, axis in zip(("rows", "columns"), reversed(plan.axes) if plan.transposed else plan.axes, strict=True):
        if len(axis.taps) > 1:
            ways.append(f"{name} tap by tap")
        elif axis.window.taps > 1:
            ways.append(f"{name} by window sums of a one-pixel volume")
    if plan.transposed:
        ways.append("height and width exchanged")
    return ", ".join(ways) or "one-pixel windows"
