"""The variant ``reference``: slices of the volume by the definition of the correlation, reduced by NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .._correlation import reference as correlation
from .._dispatch import Request
from .._dtypes import ELEMENT_TYPES
from .._gpu.device import Device
from . import by_slices
from .problem import Problem
from .slices import SLICE_BYTES, Slice

# Seconds of a score and a rank for the cost model: several passes over an array beyond the cache.
_REDUCED = 2e-8


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """The definition as the plan of a request."""

    request: Request
    seconds: float
    workspace: int
    algorithm: str = "reference"
    description: str = "slices of the volume by the definition, tap by tap"

    def run(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Compute the results."""
        row = ELEMENT_TYPES[self.request.dtype]

        def scores(part: Slice) -> np.ndarray:
            found = np.empty(part.correlation.out_shape, row.accumulator_dtype)
            input1, input2 = (arrays[name][part.samples] for name in ("input1", "input2"))
            correlation.forward(part.correlation, input1, input2, found)
            return found

        results = {name: array for name, array in arrays.items() if name not in ("input1", "input2")}
        with np.errstate(all="ignore"):  # also for tensors, which come without passing the functions for arrays
            by_slices.run(self.request.problem, results, scores, row.accumulator_dtype.itemsize)


def plan(request: Request, device: Device | None) -> ReferencePlan:
    """Return the plan of a request."""
    problem: Problem = request.problem
    of_volume = correlation.plan(request._replace(problem=problem.correlation, result_dtype=_accumulator(request)), device)
    seconds = of_volume.seconds + problem.correlation.outputs * _REDUCED
    return ReferencePlan(request, seconds, of_volume.workspace + 8 * SLICE_BYTES)


def _accumulator(request: Request) -> str:
    return ELEMENT_TYPES[request.dtype].accumulator
