"""Plans of matching on a GPU.

The algorithms ``tiled`` and ``mma`` reduce scores as they are made (`fused`). The algorithm ``slices`` computes slices of the
volume by the fixed-grid operator and reduces them by array functions: it takes every request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..._arrays import current_device_of
from ..._correlation.api import spatial_correlation_sample
from ..._dispatch import Request
from ..._dtypes import ELEMENT_TYPES
from ..._gpu.device import Device
from ..._gpu.plan import Plan
from ..._gpu.source import Kernel
from .. import by_slices
from ..problem import Problem
from ..slices import SLICE_BYTES, Slice
from . import fused, reduce_mma, reduce_tiled, reductions

FUSED = {"mma": reduce_mma, "tiled": reduce_tiled}  # algorithm -> the module that plans its kernels
_FALLBACKS = {"mma": ("mma", "tiled"), "tiled": ("tiled",)}  # algorithm -> those whose tiles are tried, in order, before slices

# Estimates for the cost model: seconds of a slice, and of a score of the volume.
_SLICE, _SCORE = 1e-4, 1e-10


@dataclass(frozen=True, slots=True)
class SlicesPlan:
    """A request by slices of the volume."""

    request: Request
    seconds: float
    workspace: int
    algorithm: str = "slices"
    description: str = "slices of the volume by the fixed-grid operator, reduced by array functions"

    def run(self, arrays: Mapping[str, Any]) -> None:
        """Compute the results."""
        row, inputs = ELEMENT_TYPES[self.request.dtype], [arrays[name] for name in ("input1", "input2")]

        def scores(part: Slice) -> Any:
            x1, x2 = (x[part.samples] for x in inputs)
            precision = self.request.precision
            return spatial_correlation_sample(x1, x2, **part.arguments(), dtype=row.accumulator, precision=precision)

        results = {name: array for name, array in arrays.items() if name not in ("input1", "input2")}
        with current_device_of(inputs[0]):
            by_slices.run(self.request.problem, results, scores, row.accumulator_dtype.itemsize)


def plan_slices(request: Request, device: Device | None) -> SlicesPlan:
    """Return the plan of a request."""
    problem: Problem = request.problem
    outputs = problem.correlation.outputs
    itemsize = ELEMENT_TYPES[request.dtype].accumulator_dtype.itemsize
    return SlicesPlan(request, (1 + outputs * itemsize / SLICE_BYTES) * _SLICE + outputs * _SCORE, 16 * SLICE_BYTES)


def why_not(algorithm: str, request: Request) -> str | None:
    """Return None, or the reason why an algorithm's kernels cannot answer a request."""
    return fused.why_not(FUSED[algorithm], request)


def plan(algorithm: str, request: Request, device: Device | None) -> Plan | SlicesPlan:
    """Return the plan of a request by an algorithm's kernels, or by another's where no tile fits the arrays or the device."""
    assert device is not None
    able = (each for each in _FALLBACKS[algorithm] if each == algorithm or why_not(each, request) is None)
    plans = (fused.plan(FUSED[each], each, request, device) for each in able)
    return next(filter(None, plans), None) or plan_slices(request, device)


def builds(device: Device | None = None) -> Iterator[tuple[str, Kernel]]:
    """Yield every kernel that a plan can launch, on any device or on this one, with words for it."""
    yield from reductions.builds()
    yield from reduce_tiled.builds()
    yield from reduce_mma.builds(device)
