"""Matching by kernels that reduce scores as they are made: the volume is never stored.

The kernels are those of the fixed-grid operator with another epilogue. They write a partial result for each thread block tile of
displacements, and one more launch merges the partial results of a position in a fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from types import ModuleType
from typing import Any

from ..._correlation.gpu import axes
from ..._correlation.gpu.forward_phases import Arrays
from ..._dispatch import Request
from ..._dtypes import ELEMENT_TYPES
from ..._gpu.call import Call, Pointer
from ..._gpu.costs import LAUNCH, machine
from ..._gpu.device import Device
from ..._gpu.layout import Layout, dense_layout
from ..._gpu.limits import SAFE_INDEX, WORKSPACE_BYTES
from ..._gpu.plan import WORKSPACE, Plan
from ..problem import Best, Problem
from . import reductions
from .reductions import Kernels


def why_not(module: ModuleType, request: Request) -> str | None:
    """Return None, or the reason why the kernels of a module cannot answer a request."""
    problem: Problem = request.problem
    reason = axes.out_of_reach(reductions.ascending(problem)) or reductions.why_not(problem)
    if reason is not None:
        return reason
    dense = request.dense()
    reason = module.why_not(*axes.lines(reductions.ascending(problem)), _arrays(_kernels(request), dense.inputs))
    return None if reason is None else str(reason)


def plan(module: ModuleType, algorithm: str, request: Request, device: Device) -> Plan | None:
    """Return the plan of a request by the kernels of a module; None if the device has too little shared memory for a tile."""
    kernels = _kernels(request)
    results = result_layouts(request.problem, kernels.accumulator)
    launches, seconds, workspace = [], 0.0, 0
    for samples in _chunks(module, kernels, request.inputs, device):
        tiling = _best(module, kernels, tuple(each.resized(len(samples)) for each in request.inputs), device)
        if tiling is None:
            return None
        launches.append((samples, tiling))
        workspace = max(workspace, tiling.finished_tiles * kernels.bytes_of_part(len(samples)))
        seconds += _seconds(tiling, kernels, len(samples), device)

    def calls() -> Iterator[Call]:
        for samples, tiling in launches:
            yield _reduce(module, tiling, kernels, samples, request.inputs)
            at = {name: (each, Pointer(name, each.offset(samples.start))) for name, each in results.items()}
            yield kernels.merge(Pointer(WORKSPACE), len(samples), tiling.finished_tiles, at)

    description = f"{launches[-1][1].how}, reduced in the epilogue" if launches else "nothing to do"
    itemsizes = {name: each.itemsize for name, each in (*_named(request.inputs), *results.items())}
    return Plan(algorithm, description, seconds, workspace, calls, device.index, itemsizes)


def tilings(module: ModuleType, request: Request, device: Device) -> Iterator[Any]:
    """Yield the tilings by which a module's kernels can answer a request."""
    return _tilings(module, _kernels(request), request.inputs, device)


def result_layouts(problem: Problem, accumulator: str) -> dict[str, Layout]:
    """Return the layouts of the results that a plan writes."""
    if isinstance(problem.reduction, Best):
        return {name: dense_layout(dtype, problem.out_shape) for name, dtype in (("score", accumulator), ("channel", "int64"))}
    dtypes = {"dy": accumulator, "dx": accumulator, **({"log_sum": "float64"} if problem.reduction.log_sum else {})}
    return {name: dense_layout(dtype, problem.out_shape) for name, dtype in dtypes.items()}


def _kernels(request: Request) -> Kernels:
    return Kernels(request.problem, ELEMENT_TYPES[request.dtype].accumulator)


def _named(inputs: tuple[Layout, ...]) -> Iterator[tuple[str, Layout]]:
    yield from zip(("input1", "input2"), inputs, strict=True)


def _arrays(kernels: Kernels, inputs: tuple[Layout, ...]) -> Arrays:
    """Return the layouts of the inputs, and in the place of the output that of a part of the partial results."""
    shape = inputs[0].shape[0], kernels.words, 1, *kernels.plane
    input1, input2 = inputs
    return Arrays(input1, input2, dense_layout(kernels.accumulator, shape))


def _chunks(module: ModuleType, kernels: Kernels, inputs: tuple[Layout, ...], device: Device) -> Iterator[range]:
    """Yield ranges of samples whose partial results fit the workspace, or which are one sample."""
    batch, whole = inputs[0].shape[0], _best(module, kernels, inputs, device)
    of_sample = 0 if whole is None else whole.finished_tiles * kernels.bytes_of_part(1)
    step = max(WORKSPACE_BYTES // max(of_sample, 1), 1)
    for begin in range(0, batch, step):
        yield range(begin, min(begin + step, batch))


def _tilings(module: ModuleType, kernels: Kernels, inputs: tuple[Layout, ...], device: Device) -> Iterator[Any]:
    found: Iterator[Any] = module.tilings(*axes.lines(kernels.ascending), _arrays(kernels, inputs), device)
    return found


def _best(module: ModuleType, kernels: Kernels, inputs: tuple[Layout, ...], device: Device) -> Any:
    """Return the tiling that the cost model expects to be the fastest, None if there is none."""
    fitting = (tiling for tiling in _tilings(module, kernels, inputs, device) if tiling.blocks < SAFE_INDEX)
    return min(fitting, key=lambda tiling: _seconds(tiling, kernels, inputs[0].shape[0], device), default=None)


def _seconds(tiling: Any, kernels: Kernels, batch: int, device: Device) -> float:
    """Return the seconds that the cost model expects of both launches."""
    partial = tiling.finished_tiles * kernels.bytes_of_part(batch)
    results = prod(kernels.problem.out_shape) * (8 + kernels.itemsize)
    seconds: float = tiling.seconds(device) + LAUNCH + machine(device, kernels.accumulator).moved(2 * partial + results)
    return seconds


def _reduce(module: ModuleType, tiling: Any, kernels: Kernels, samples: range, inputs: tuple[Layout, ...]) -> Call:
    """Return the launch that writes the partial results of some samples."""
    pointers = {name: Pointer(name, each.offset(samples.start)) for name, each in _named(inputs)}
    found: Call = module.SIGNATURE.call(
        macros={**tiling.macros(reductions.word(kernels.accumulator)), **kernels.macros},
        pointers={**pointers, "partial": Pointer(WORKSPACE)},
        scalars={**tiling.arguments(kernels.partial_strides(len(samples))), **kernels.scalars, "parts": tiling.parts},
        accumulator=ELEMENT_TYPES[kernels.accumulator].accumulator_dtype,
        blocks=tiling.blocks,
        threads=tiling.threads,
        shared=tiling.shared,
    )
    return found
