"""The GPU's answer: a problem becomes a plan, a short list of kernel launches with everything about them worked out.

Two routes: ``direct`` sums every tap of every output; ``box`` makes the volume of a one-pixel window, a bounded part of it at a
time, and sums windows of that. A plan depends on nothing but the problem, the arrays' layouts and the device; the last ones are
kept. How a kernel is compiled and launched is `bind`'s business alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from .._arrays import keep_for_replays
from .._cuda.device import facts, import_cupy
from .._cuda.launcher import bind
from .._problem import Problem
from . import kernels
from .kernels import NOWHERE, THREADS, Call, Layout, Line, Pointer, ceil_div, layout, line, new_layout

PLANS = 512  # kept of each direction
MOST_BLOCKS = 2**31 - 1  # of a launch; a kernel loops over what is left
WORKSPACE = 256 * 2**20  # bytes of the box route's volumes, unless those of one displacement take more
ALIGNMENT = 256  # bytes, of each thing in the workspace

_Y, _X = 3, 4  # axes of a volume (B, PH, PW, y, x)


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel bound to its device, its grid and its scalars, and where the addresses it takes come from."""

    run: Callable[[tuple[int, ...], Any], None]
    pointers: tuple[Pointer, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The launches that answer a problem, in order, and the bytes of workspace they share."""

    launches: tuple[Launch, ...]
    workspace: int

    def run(self, addresses: Mapping[str, int], stream: Any = None) -> None:
        """Launch everything; ``addresses`` tells where each array, and the workspace if there is one, begins.

        It goes to CuPy's current stream, or to that whose address is ``stream.ptr``.
        """
        for launch in self.launches:
            launch.run(tuple([addresses[pointer.buffer] + pointer.offset for pointer in launch.pointers]), stream)


def _plan(calls: Iterator[Call], workspace: int, device: int) -> Plan:
    launches = (
        Launch(bind(call.kernel, device, min(call.blocks, MOST_BLOCKS), THREADS, 0, call.scalars), call.pointers)
        for call in calls
        if call.blocks
    )
    return Plan(tuple(launches), workspace)


@lru_cache(PLANS)
def forward_plan(route: str, problem: Problem, input1: Layout, input2: Layout, out: Layout, device: int) -> Plan:
    """The plan from ``"input1"`` and ``"input2"`` to ``"out"``, on the device of that number."""
    if route == "direct":
        return _plan(_direct_forward(problem, input1, input2, out, device), 0, device)
    cut = _Cut.of(problem, input1.accumulator.name)
    return _plan(_box_forward(problem, input1, input2, out, device, cut), cut.volumes_bytes, device)


@lru_cache(PLANS)
def vjp_plan(
    route: str,
    problem: Problem,
    cotangent: Layout,
    inputs: tuple[Layout, Layout],
    gradients: tuple[Layout | None, Layout | None],
    device: int,
) -> Plan:
    """The plan from ``"cotangent"``, ``"input1"`` and ``"input2"`` to ``"gradient1"`` and ``"gradient2"``, where not None."""
    if route == "direct" or gradients == (None, None):
        return _plan(_direct_vjp(problem, cotangent, inputs, gradients), 0, device)
    cut = _Cut.of(problem, inputs[0].accumulator.name)
    bytes_taken = cut.volumes_bytes + 2 * sum(map(cut.carried_bytes, gradients))
    return _plan(_box_vjp(problem, cotangent, inputs, gradients, cut), bytes_taken, device)


# Direct -----------------------------------------------------------------------------------------------------------------------


def _direct_forward(problem: Problem, input1: Layout, input2: Layout, out: Layout, device: int) -> Iterator[Call]:
    arrays = [(input1, Pointer("input1")), (input2, Pointer("input2")), (out, Pointer("out"))]
    yield kernels.forward(*_lines(problem), arrays, problem.parameters.scale, facts(device).multiprocessors)


def _direct_vjp(
    problem: Problem, cotangent: Layout, inputs: tuple[Layout, Layout], gradients: tuple[Layout | None, Layout | None]
) -> Iterator[Call]:
    for operand, result in enumerate(gradients, 1):
        if result is not None:
            other = 3 - operand
            arrays = [
                (cotangent, Pointer("cotangent")),
                (inputs[other - 1], Pointer(f"input{other}")),
                (result, Pointer(f"gradient{operand}")),
            ]
            yield kernels.gradient(operand, *_lines(problem), arrays, problem.parameters.scale)


def _lines(problem: Problem) -> tuple[Line, Line]:
    return line(problem.vertical), line(problem.horizontal)


# Box --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """Some samples and some displacements: where they begin, and how many of each axis (B, PH, PW)."""

    begin: tuple[int, int, int]
    counts: tuple[int, int, int]
    number: int  # among the parts of its samples
    last: bool


@dataclass(frozen=True, slots=True)
class _Cut:
    """The volumes of the box route, and how the problem is cut so that they fit into the workspace.

    ``volume`` (.., span, span) has a value for each tap's position, ``rows`` (.., out, span) has its windows summed along y.
    """

    vertical: Line
    horizontal: Line
    accumulator: str
    all_counts: tuple[int, int, int]
    counts: tuple[int, int, int]  # at once, at most

    @classmethod
    def of(cls, problem: Problem, accumulator: str) -> _Cut:
        whole = problem.out_shape[:3]
        plane = cls(*_lines(problem), accumulator, whole, (1, 1, 1)).volumes_bytes
        free = max(WORKSPACE // plane, 1)
        counts = []
        for size in reversed(whole):  # whole rows of displacements first, then whole patches, then samples
            counts.append(max(min(size, free), 1))
            free = free // size if size and counts[-1] == size else 1
        return cls(*_lines(problem), accumulator, whole, tuple(reversed(counts)))

    def volume(self, counts: tuple[int, int, int]) -> tuple[Layout, Pointer]:
        return new_layout(self.accumulator, (*counts, self.vertical.span, self.horizontal.span)), Pointer("workspace")

    def rows(self, counts: tuple[int, int, int]) -> tuple[Layout, Pointer]:
        shape = (*counts, self.vertical.out, self.horizontal.span)
        return new_layout(self.accumulator, shape), Pointer("workspace", _size(self.volume(self.counts)[0]))

    @property
    def volumes_bytes(self) -> int:
        """Bytes of both volumes of one part."""
        return _size(self.volume(self.counts)[0]) + _size(self.rows(self.counts)[0])

    def parts(self) -> Iterator[_Part]:
        (samples, patch_y, patch_x), (batch, rows, columns) = self.all_counts, self.counts
        for b in range(0, samples, batch):
            corners = list(product(range(0, patch_y, rows), range(0, patch_x, columns)))
            for number, (m, n) in enumerate(corners):
                counts = (min(batch, samples - b), min(rows, patch_y - m), min(columns, patch_x - n))
                yield _Part((b, m, n), counts, number, number == len(corners) - 1)

    def pixelwise(self, part: _Part) -> tuple[Line, Line]:
        """The axes of the volume's own problem: a window of one pixel, the part's displacements."""
        (_, m, n), (_, rows, columns) = part.begin, part.counts
        return self.vertical.pixelwise().displacements(m, rows), self.horizontal.pixelwise().displacements(n, columns)

    def carried_bytes(self, result: Layout | None) -> int:
        """Bytes of the sums that one part hands on to the next."""
        if result is None or self.counts[1:] == self.all_counts[1:]:
            return 0
        return _aligned(kernels.carried_bytes(result.resized(self.counts[0])))


def _aligned(count: int) -> int:
    return ceil_div(count, ALIGNMENT) * ALIGNMENT


def _size(volume: Layout) -> int:
    return _aligned(volume.shape[0] * volume.strides[0] * volume.itemsize)


def _samples(array: Layout, buffer: str, part: _Part) -> tuple[Layout, Pointer]:
    """The samples of one part, of an array (B, ...)."""
    return array.resized(part.counts[0]), Pointer(buffer, array.offset(part.begin[0]))


def _displaced(array: Layout, buffer: str, part: _Part) -> tuple[Layout, Pointer]:
    """The samples and displacements of one part, of an array (B, PH, PW, ...)."""
    return array.resized(*part.counts), Pointer(buffer, array.offset(*part.begin))


def _box_forward(problem: Problem, input1: Layout, input2: Layout, out: Layout, device: int, cut: _Cut) -> Iterator[Call]:
    for part in cut.parts():
        volume, rows = cut.volume(part.counts), cut.rows(part.counts)
        images = [_samples(input1, "input1", part), _samples(input2, "input2", part)]
        yield kernels.forward(*cut.pixelwise(part), [*images, volume], 1.0, facts(device).multiprocessors)
        yield kernels.window_sum(cut.vertical, _Y, volume, rows)
        yield kernels.window_sum(cut.horizontal, _X, rows, _displaced(out, "out", part), problem.parameters.scale)


def _box_vjp(
    problem: Problem, cotangent: Layout, inputs: tuple[Layout, Layout], gradients: tuple[Layout | None, Layout | None], cut: _Cut
) -> Iterator[Call]:
    for part in cut.parts():
        volume, rows = cut.volume(part.counts), cut.rows(part.counts)
        yield kernels.window_spread(cut.horizontal, _X, _displaced(cotangent, "cotangent", part), rows)
        yield kernels.window_spread(cut.vertical, _Y, rows, volume)
        begin = cut.volumes_bytes
        for operand, result in enumerate(gradients, 1):
            if result is not None:
                other = 3 - operand
                images = [_samples(inputs[other - 1], f"input{other}", part), _samples(result, f"gradient{operand}", part)]
                size = cut.carried_bytes(result)
                # Two places in turn: a launch must not load what it stores.
                places = [Pointer("workspace", begin + size * (number % 2)) for number in (part.number - 1, part.number)]
                carried, carry = (NOWHERE if part.number == 0 else places[0]), (NOWHERE if part.last else places[1])
                yield kernels.gradient(operand, *cut.pixelwise(part), [volume, *images], problem.parameters.scale, carried, carry)
                begin += 2 * size


# Running it -------------------------------------------------------------------------------------------------------------------


def forward(route: str, problem: Problem, input1: Any, input2: Any, out: Any) -> None:
    """Write the correlation of two CuPy arrays into a third, on their device and its current stream."""
    arrays = {"input1": input1, "input2": input2, "out": out}
    layouts = (layout(name, array) for name, array in arrays.items())
    _run(forward_plan(route, problem, *layouts, out.device.id), arrays)


def vjp(
    route: str, problem: Problem, cotangent: Any, input1: Any, input2: Any, needs: tuple[bool, bool]
) -> tuple[Any | None, Any | None]:
    """The gradients of ``<cotangent, forward(input1, input2)>`` that ``needs`` asks for as new CuPy arrays, the others None."""
    empty = import_cupy().empty
    inputs = {"input1": input1, "input2": input2}
    results = tuple(empty(x.shape, x.dtype) if needed else None for needed, x in zip(needs, inputs.values(), strict=True))
    gradients = {f"gradient{operand}": result for operand, result in enumerate(results, 1) if result is not None}
    plan = vjp_plan(
        route,
        problem,
        layout("cotangent", cotangent),
        tuple(layout(name, array) for name, array in inputs.items()),
        tuple(None if result is None else layout("gradient", result) for result in results),
        cotangent.device.id,
    )
    _run(plan, {"cotangent": cotangent, **inputs, **gradients})
    return results


def _run(plan: Plan, arrays: Mapping[str, Any]) -> None:
    addresses = {name: _address(name, array) for name, array in arrays.items()}
    addresses[NOWHERE.buffer] = 0
    if plan.workspace:
        workspace = import_cupy().empty(plan.workspace, np.uint8)
        addresses["workspace"] = workspace.data.ptr
        keep_for_replays(workspace)
    plan.run(addresses)


def _address(name: str, array: Any) -> int:
    address = array.data.ptr
    if address % array.dtype.itemsize:
        raise ValueError(f"{name} must begin at a multiple of its {array.dtype.itemsize} bytes, got address {address:#x}")
    return address


# What is said about it --------------------------------------------------------------------------------------------------------

_READ = 4  # products that cost as much as writing an element of a volume and reading it again


@lru_cache(2 * PLANS)
def sums_cost_less(problem: Problem) -> bool:
    """Whether making the volume and summing its windows takes less work than summing the taps of every output."""
    vertical, horizontal = _lines(problem)
    planes = problem.batch * vertical.patch * horizontal.patch
    positions = planes * vertical.span * horizontal.span
    sums = planes * vertical.out * (horizontal.span * vertical.kernel + horizontal.out * horizontal.kernel)
    return positions * (problem.channels + _READ) + sums < problem.flops // 2


def how(route: str, problem: Problem) -> str:
    """The route in words."""
    if route == "direct":
        return "each output by itself, every tap of its window"
    vertical, horizontal = _lines(problem)
    return f"windows summed over the volume of {vertical.span} x {horizontal.span} positions, rows and columns apart"


def workspace(route: str, problem: Problem, accumulator: str) -> int:
    """Bytes that the forward map takes beside its result."""
    return 0 if route == "direct" else _Cut.of(problem, accumulator).volumes_bytes
