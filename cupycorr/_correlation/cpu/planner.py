"""The plans on the CPU: for each request the cost model chooses the fastest way, and a plan runs the output or the gradients.

A plan says how windows are computed along each axis, whether height and width are exchanged, and how the work is divided. Plans
follow from the problem and the dtypes alone, so that the bits of a result depend neither on the number of threads nor on which
thread calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import TypeVar

import numpy as np

from ..._cpu import workers
from ..._dispatch import FORWARD, Request
from ..._dtypes import element_type, named_dtype
from ..._gpu.device import Device
from ..problem import Problem
from . import forward as forward_pass
from . import gradient as gradient_pass
from . import non_finite, row_groups, strided_windows
from .engine import THREAD_SECONDS, Engine
from .forward import FEWEST_CHANNELS, ForwardPlan
from .gradient import GradientPlan
from .lattice import AxisPlan, axis_plans
from .packing import Elementwise
from .row_groups import RowGroups
from .strided_windows import StridedWindows

MOST_LATTICES = 4096  # lattices of a window that is computed tap by tap; with more, even planning is slow

AnyPlan = TypeVar("AnyPlan", ForwardPlan, GradientPlan)


def plan(engine: Engine, request: Request, device: Device | None) -> Forward | Gradients | StridedGradients | ByRowGroups:
    """Return the plan of a request by an engine."""
    if engine.compiles and row_groups.why_not(request) is None and _has_one_pass(engine, request):
        return ByRowGroups(engine, request, RowGroups.of(request))
    found = _plan_by_blocks(engine, request)
    if not engine.compiles or isinstance(found, Forward) or strided_windows.why_not(request) is not None:
        return found
    strided = StridedGradients(engine, StridedWindows.of(request))
    return strided if strided.seconds < found.seconds else found


def _has_one_pass(engine: Engine, request: Request) -> bool:
    """Return whether blocks sum all channels in one pass, as row groups do.

    Several passes are added in another order, and matching, which sums its scores by blocks, has the bits of the volume.
    """
    if request.pass_name != FORWARD or request.problem.channels <= FEWEST_CHANNELS:
        return True
    dtype, result_dtype = _numpy_dtype(request.dtype), _numpy_dtype(request.result_dtype)
    found = forward_plan(engine, request.problem, dtype, result_dtype)
    return not found.computes or len(found.channel_ranges) == 1


def _plan_by_blocks(engine: Engine, request: Request) -> Forward | Gradients:
    """Return the plan that divides a request into blocks."""
    dtype, result_dtype = _numpy_dtype(request.dtype), _numpy_dtype(request.result_dtype)
    if request.pass_name == FORWARD:
        return Forward(engine, forward_plan(engine, request.problem, dtype, result_dtype))
    sides = [side for side in (0, 1) if request.needs[side]]
    plans = {side: gradient_plan(engine, request.problem, dtype, side) for side in sides}
    return Gradients(engine, request.problem, plans)


_numpy_dtype = lru_cache(named_dtype)


@dataclass(frozen=True, slots=True)
class Forward:
    """The forward map by an engine."""

    engine: Engine
    plan: ForwardPlan
    workspace: int = workers.WORKSPACE

    @property
    def algorithm(self) -> str:
        """The name of the engine."""
        return self.engine.name

    @property
    def description(self) -> str:
        """The way windows are computed (for gradients, that of the first one), and the engine."""
        return f"{_windows_in_words(self.plan)}, {self.engine.description}"

    @property
    def seconds(self) -> float:
        """The time in one thread by the cost model."""
        return self.plan.seconds

    def run(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the correlation of ``input1`` and ``input2`` into ``out``."""
        forward_pass.run(self.plan, arrays["input1"], arrays["input2"], forward_pass.Volume(self.plan, arrays["out"]))


@dataclass(frozen=True, slots=True)
class Gradients:
    """The gradients by an engine; ``plans`` has one for each side that is needed, 0 for input1 and 1 for input2."""

    engine: Engine
    problem: Problem
    plans: Mapping[int, GradientPlan]
    workspace: int = workers.WORKSPACE

    @property
    def algorithm(self) -> str:
        """The name of the engine."""
        return self.engine.name

    @property
    def description(self) -> str:
        """The way windows are computed (for gradients, that of the first one), and the engine."""
        words = [_windows_in_words(plan) for plan in self.plans.values()][:1] or ["nothing to do"]
        return f"{words[0]}, {self.engine.description}"

    @property
    def seconds(self) -> float:
        """The time in one thread by the cost model."""
        return sum(plan.seconds for plan in self.plans.values())

    def run(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the gradients of ``<cotangent, forward(input1, input2)>`` into ``gradient1`` and ``gradient2``."""
        cotangent, plans, sides = arrays["cotangent"], self.plans, list(self.plans)
        threads = self.engine.threads()
        # Two small gradients run side by side, in one thread each; a large gradient uses all threads.
        side_by_side = len(sides) == 2 and threads > 1 and all(plan.team.tasks == 1 for plan in plans.values())

        def compute(side: int) -> None:
            searched, gradient = arrays[("input2", "input1")[side]], arrays[("gradient1", "gradient2")[side]]
            most = 1 if side_by_side else threads
            gradient_pass.run(plans[side], cotangent, searched, gradient, most)
            if plans[side].uses_window_sums:
                linear = _linear(self.engine, self.problem, cotangent, searched, side, most)
                non_finite.correct(gradient, linear, self.problem.parameters.scale)

        workers.run(compute, sides, 2 if side_by_side and self.seconds >= THREAD_SECONDS else 1)


@dataclass(frozen=True, slots=True)
class StridedGradients:
    """The gradients by sums over windows that rows share."""

    engine: Engine
    plan: StridedWindows
    workspace: int = workers.WORKSPACE
    algorithm: str = "strided windows"

    @property
    def description(self) -> str:
        """The way windows are computed, and the engine."""
        return f"sums over windows shared by rows, in {self.engine.threads()} thread(s)"

    @property
    def seconds(self) -> float:
        """The time in one thread by the cost model."""
        return self.plan.seconds

    def run(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the gradients that are needed."""
        threads, problem = self.engine.threads(), self.plan.problem
        self.plan.run(arrays, threads)

        def correct(side: int) -> None:
            searched, gradient = arrays[("input2", "input1")[side]], arrays[("gradient1", "gradient2")[side]]
            linear = _linear(self.engine, problem, arrays["cotangent"], searched, side, threads)
            non_finite.correct(gradient, linear, problem.parameters.scale)

        workers.run(correct, self.plan.sides, 1)


@dataclass(frozen=True, slots=True)
class ByRowGroups:
    """The output or the gradients by groups of rows."""

    engine: Engine
    request: Request
    plan: RowGroups
    workspace: int = workers.WORKSPACE
    algorithm: str = "row groups"

    @property
    def description(self) -> str:
        """The way the work is divided, and the engine."""
        return f"one-pixel windows, {self.engine.description}"

    @property
    def seconds(self) -> float:
        """The time in one thread by the cost model."""
        return self.plan.seconds

    def run(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the results; arrays that kernels cannot address are left to the plan by blocks."""
        if not self.plan.run(arrays):
            _plan_by_blocks(self.engine, self.request).run(arrays)


def _linear(
    engine: Engine, problem: Problem, cotangent: np.ndarray, searched: np.ndarray, side: int, threads: int
) -> non_finite.Linear:
    """Return a function that computes the gradient without the scale, from other values of the cotangent and the image."""
    unscaled = replace(problem.parameters, scale=1.0)

    def linear(batch: slice, channels: slice, result: np.ndarray, of_cotangent: Elementwise, of_search: Elementwise) -> None:
        part = replace(problem, parameters=unscaled, batch=result.shape[0], channels=result.shape[1])
        found = gradient_plan(engine, part, result.dtype, side)
        gradient_pass.run(found, cotangent[batch], searched[batch, channels], result, threads, of_cotangent, of_search)

    return linear


# The ways to compute a request ------------------------------------------------------------------------------------------------


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


def _best(plans: Sequence[AnyPlan]) -> AnyPlan:
    """Return the fastest plan by the cost model within the workspace, or the fastest of all if none is within it."""
    return min(plans, key=lambda plan: (not plan.fits, plan.seconds))


def _windows_in_words(plan: ForwardPlan | GradientPlan) -> str:
    """Say how windows become products."""
    words = []
    for name, axis in zip(("rows", "columns"), reversed(plan.axes) if plan.transposed else plan.axes, strict=True):
        if len(axis.taps) > 1:
            words.append(f"{name} tap by tap")
        elif axis.window.taps > 1:
            words.append(f"{name} by window sums of a one-pixel volume")
    if plan.transposed:
        words.append("height and width exchanged")
    return ", ".join(words) or "one-pixel windows"
