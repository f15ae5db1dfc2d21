"""The plans of matching on the CPU: the plan of the volume, with a reduction as the destination of its scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..._correlation.cpu import forward, planner
from ..._correlation.cpu.engine import Engine
from ..._cpu import workers
from ..._dispatch import Request
from ..._dtypes import ELEMENT_TYPES, named_dtype
from ..._gpu.device import Device
from ..problem import Best, Problem
from . import kernels
from .destination import Around, BestReduced, MeanReduced, Merged

# Seconds of a score for the cost model, and of a rank of the best ones.
_REDUCED, _RANK = 3e-10, 1e-10


@dataclass(frozen=True, slots=True)
class MatchingPlan:
    """The scores of an engine, reduced as they are made."""

    request: Request
    volume: planner.Forward
    compiled: bool  # the kernels that reduce scores; LLVM takes long to say whether it can
    seconds: float
    workspace: int = workers.WORKSPACE

    @property
    def algorithm(self) -> str:
        """The name of the engine."""
        return self.volume.algorithm

    @property
    def description(self) -> str:
        """The way windows are computed, the engine, and what becomes of the scores."""
        return f"{self.volume.description}, scores reduced {'in registers' if self.compiled else 'by array functions'}"

    def run(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Compute the results."""
        problem, plan = self.request.problem, self.volume.plan
        kind = BestReduced if isinstance(problem.reduction, Best) else MeanReduced
        with np.errstate(all="ignore"):
            merged: Merged = kind(plan, problem, arrays, self.compiled)
            merged.start()
            forward.run(plan, arrays["input1"], arrays["input2"], merged)
            merged.add_zeros()
            merged.finish()
            if "around" in arrays and not (isinstance(merged, BestReduced) and merged.around is not None):
                around = Around(plan, problem, arrays)
                forward.run(plan, arrays["input1"], arrays["input2"], around)
                around.add_zeros()


def why_not(request: Request) -> str | None:
    """Return None, or the reason why the scores of no engine can be reduced."""
    channels = request.problem.channels
    if channels > kernels.MOST_CHANNELS:
        return f"{channels} displacements, scores are reduced for at most {kernels.MOST_CHANNELS}"
    return None


def plan(engine: Engine, request: Request, device: Device | None) -> MatchingPlan:
    """Return the plan of a request by an engine."""
    problem: Problem = request.problem
    accumulator = ELEMENT_TYPES[request.dtype].accumulator_dtype
    of_volume = planner.forward_plan(engine, problem.correlation, named_dtype(request.dtype), accumulator)
    ranks = problem.reduction.top_k if isinstance(problem.reduction, Best) else 1
    scores = problem.correlation.outputs * accumulator.itemsize / 4
    seconds = of_volume.seconds + scores * (_REDUCED + _RANK * (ranks - 1))
    return MatchingPlan(request, planner.Forward(engine, of_volume), kernels.why_not() is None, seconds)
