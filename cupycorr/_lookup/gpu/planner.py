"""Plans on a GPU: the launches that answer a request of the lookup.

The algorithm ``direct`` computes each window by itself, ``tiled`` those of neighbouring queries together, ``mma`` the same on
tensor cores. A launch is for one level, with the last two for several. What the levels add to the gradients of
input1 and coords, and what segments of queries add to that of a level of input2, are partial sums in the workspace, which one
more launch adds in a fixed order. No launch depends on the values of an array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

from ..._dispatch import FORWARD, Request
from ..._gpu import sum_parts
from ..._gpu.call import NOWHERE, THREADS, Array, Call, Pointer
from ..._gpu.costs import LAUNCH, machine
from ..._gpu.device import Device
from ..._gpu.layout import Layout, ceil_div, new_layout
from ..._gpu.limits import ALIGNMENT, WORKSPACE_BYTES
from ..._gpu.plan import WORKSPACE, Plan
from ..._gpu.source import Kernel
from . import (
    lookup_boxes,
    lookup_direct,
    lookup_gradient1,
    lookup_gradient2,
    lookup_gradient_coords,
    lookup_mma,
    lookup_tiled,
)
from .operands import SPLITS, Operands, bytes_of, operands, part_of

_CHANNELS = 8  # of a chunk of partial sums at least, and a multiple of it: the widest vector
_USEFUL = 0.45  # fraction of the products of a tile of queries and a tile of pixels whose pixel is in the query's window


@dataclass(frozen=True, slots=True)
class _Part:
    """The launches for one gradient, the bytes of workspace that they share, and the seconds that they take."""

    make_calls: Callable[[], Iterator[Call]]
    workspace: int
    seconds: float


def plan(request: Request, device: Device | None) -> Plan:
    """Return the plan of a request by the algorithm ``direct``."""
    assert device is not None
    arrays = operands(request, device)
    if request.pass_name == FORWARD:
        return _plan("direct", "each window by itself", [_forward(arrays)], arrays)
    parts = list(_gradients(arrays))
    return _plan("direct", "each element of a gradient by itself" if parts else "no gradient is needed", parts, arrays)


def plan_tiled(request: Request, device: Device | None) -> Plan:
    """Return the plan of a request whose output is computed by tiles of queries; gradients are computed by `plan`."""
    if request.pass_name != FORWARD:
        return plan(request, device)
    assert device is not None
    arrays = operands(request, device)
    what = f"tiles of {lookup_boxes.QUERY_TILE} x {lookup_boxes.QUERY_TILE} queries in shared memory"
    return _plan("tiled", what, [_Part(lambda: lookup_tiled.forward(arrays), 0, lookup_tiled.seconds(arrays))], arrays)


def plan_mma(request: Request, device: Device | None) -> Plan:
    """Return the plan of a request whose output is computed on tensor cores; gradients are computed by `plan`."""
    if request.pass_name != FORWARD:
        return plan(request, device)
    assert device is not None
    arrays = operands(request, device)
    tiling = lookup_mma.best(arrays)
    return _plan("mma", tiling.how, [_Part(tiling.calls, 0, tiling.seconds())], arrays)


def _plan(algorithm: str, description: str, parts: list[_Part], arrays: Operands) -> Plan:
    return Plan(
        algorithm,
        description,
        sum(part.seconds for part in parts),
        max((part.workspace for part in parts), default=0),
        lambda: chain.from_iterable(part.make_calls() for part in parts),
        arrays.device.index,
        {name: layout.itemsize for name, (layout, _) in arrays.arrays.items()},
    )


def _seconds(arrays: Operands, levels: int, launches: int, reached: float = 1.0) -> float:
    """Estimate the seconds of the products of some levels, whose factors are both loaded each time.

    ``reached`` is the fraction of the device's rate that they are computed with.
    """
    problem, layout = arrays.problem, arrays.input1[0]
    products = problem.dots / problem.levels * problem.channels * levels / reached
    return launches * LAUNCH + machine(arrays.device, arrays.accumulator.name).from_caches(products, layout.itemsize)


def _forward(arrays: Operands) -> _Part:
    levels = range(arrays.problem.levels)
    blocks = ceil_div(arrays.problem.queries * SPLITS, THREADS)  # of a level, at most
    busy = min(max(blocks, 1) / max(arrays.device.multiprocessors, 1), 1.0)  # multiprocessors
    return _Part(
        lambda: (lookup_direct.forward(arrays, level) for level in levels), 0, _seconds(arrays, len(levels), len(levels), busy)
    )


def _gradients(arrays: Operands) -> Iterator[_Part]:
    problem = arrays.problem
    if "gradient1" in arrays.arrays:
        yield _gradient1(arrays)
    for level, name in enumerate(problem.gradient2_names):
        if name in arrays.arrays:
            yield _gradient2(arrays, level)
    if "gradient_coords" in arrays.arrays:
        yield _gradient_coords(arrays)


# Gradients that levels add to -------------------------------------------------------------------------------------------------


def _summed_over_levels(
    arrays: Operands, result: Array, partial: Layout, call: Callable[[int, Array, float], Call]
) -> Iterator[Call]:
    """Yield the launches for a result that every level adds to; `call` makes the one of a level."""
    scale, levels = arrays.problem.parameters.scale, arrays.problem.levels
    if levels == 1:
        yield call(0, result, scale)
        return
    at = Pointer(WORKSPACE)
    for level in range(levels):
        yield call(level, part_of(partial, at, level), 1.0)
    yield sum_parts.sum_parts((partial, at), result, scale)


def _partial_bytes(arrays: Operands, partial: Layout) -> int:
    return 0 if arrays.problem.levels == 1 else bytes_of(partial)


def _gradient1(arrays: Operands) -> _Part:
    result, to = arrays.arrays["gradient1"]
    batch, channels, *size = result.shape

    def partial(count: int) -> Layout:
        return new_layout(arrays.accumulator.name, (arrays.problem.levels, batch, count, *size))

    step = _channels_of_chunk(channels, bytes_of(partial(_CHANNELS)))

    def calls() -> Iterator[Call]:
        for begin in range(0, channels, step):
            count = min(step, channels - begin)

            def some(array: Array, begin: int = begin, count: int = count) -> Array:
                layout, at = array
                return layout.resized(layout.shape[0], count), at.at(layout.offset(0, begin))

            def call(level: int, into: Array, scale: float, some: Callable[[Array], Array] = some) -> Call:
                return lookup_gradient1.gradient1(arrays, level, some(arrays.level2(level)), into, scale)

            yield from _summed_over_levels(arrays, some((result, to)), partial(count), call)

    levels = arrays.problem.levels
    return _Part(calls, _partial_bytes(arrays, partial(min(step, channels))), _seconds(arrays, levels, levels + 1))


def _channels_of_chunk(channels: int, bytes_of_few: int) -> int:
    """Return the number of channels whose partial sums fit the workspace; those of `_CHANNELS` channels have so many bytes."""
    fit = WORKSPACE_BYTES // max(bytes_of_few, 1) * _CHANNELS
    return max(min(channels, fit), _CHANNELS)


def _gradient_coords(arrays: Operands) -> _Part:
    result = arrays.arrays["gradient_coords"]
    levels = arrays.problem.levels
    partial = new_layout(arrays.accumulator.name, (levels, *result[0].shape))

    def call(level: int, into: Array, scale: float) -> Call:
        return lookup_gradient_coords.gradient_coords(arrays, level, into, scale)

    return _Part(
        lambda: _summed_over_levels(arrays, result, partial, call),
        _partial_bytes(arrays, partial),
        _seconds(arrays, levels, levels + 1),
    )


# The gradient of a level ------------------------------------------------------------------------------------------------------


def _gradient2(arrays: Operands, level: int) -> _Part:
    (result, to), scale = arrays.gradient2(level), arrays.problem.parameters.scale
    one = new_layout(arrays.accumulator.name, (1, *result.shape))
    most = WORKSPACE_BYTES // max(bytes_of(one), 1)
    segments = lookup_gradient2.segments(arrays, result.shape, most)
    boxes = Pointer(WORKSPACE) if lookup_boxes.size(arrays.problem) else NOWHERE
    beyond = ceil_div(lookup_boxes.size(arrays.problem), ALIGNMENT) * ALIGNMENT
    partial = replace(one, shape=(segments, *result.shape)), Pointer(WORKSPACE, beyond)

    def calls() -> Iterator[Call]:
        yield lookup_boxes.boxes(arrays, level, boxes)
        if segments == 1:
            whole = replace(result, shape=(1, *result.shape), strides=(0, *result.strides)), to
            yield lookup_gradient2.gradient2(arrays, level, boxes, whole, scale)
        else:
            yield lookup_gradient2.gradient2(arrays, level, boxes, partial, 1.0)
            yield sum_parts.sum_parts(partial, (result, to), scale)

    workspace = beyond + (bytes_of(partial[0]) if segments > 1 else 0)
    return _Part(calls, workspace, _seconds(arrays, 1, 3, _USEFUL))


def builds(device: Device | None = None) -> Iterator[tuple[str, Kernel]]:
    """Yield every kernel that a plan can launch, on any device or on this one, with words for it."""
    for module in (lookup_direct, lookup_tiled, lookup_gradient1, lookup_gradient2, lookup_gradient_coords, lookup_boxes):
        yield from module.builds()
    yield from sum_parts.builds()
    for dtype in lookup_mma.DTYPES:
        if device is None or device.has_matrix_product(dtype):
            yield from lookup_mma.builds(dtype)
