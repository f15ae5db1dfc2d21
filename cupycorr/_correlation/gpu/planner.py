"""The GPU's answer: a problem becomes a plan, a short list of kernel launches with everything about them worked out.

Four routes: ``tiled`` keeps tiles of the images in shared memory; ``mma`` multiplies tiles on tensor cores; ``box`` makes the
volume of a one-pixel window, a bounded part of it at a time, and sums windows of that; ``direct`` sums every tap of every
output by itself. A plan depends on nothing but the problem, the arrays' layouts and the device; the last ones are kept. How a
kernel is compiled and launched is `bind`'s business alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, product
from math import prod
from types import ModuleType
from typing import Any

import numpy as np

from ..._arrays import keep_for_replays
from ..._dtypes import ELEMENT_TYPES
from ..._gpu import sum_parts
from ..._gpu.call import NOWHERE, Array, Call, Pointer
from ..._gpu.costs import LAUNCH, machine
from ..._gpu.device import Device, facts, import_cupy
from ..._gpu.launcher import bind
from ..._gpu.layout import Layout, ceil_div, dense_layout, layout, new_layout
from ..._gpu.source import Kernel
from ..problem import Problem, Question
from . import box, direct, forward_mma, forward_tiled, gradient_mma, gradient_phases, gradient_tiled
from .axes import Line, line
from .forward_phases import Arrays
from .gradient_phases import Operand

PLANS = 512  # kept of each direction
MOST_BLOCKS = 2**31 - 1  # of a launch; a kernel loops over what is left
WORKSPACE = 256 * 2**20  # bytes of the box route's volumes, unless those of one displacement take more
PARTS = 64 * 2**20  # bytes of the sums of parts of the channels, unless those of one row of displacements take more
ALIGNMENT = 256  # bytes, of each thing in the workspace

_DTYPES = {row.c_type: row.name for row in ELEMENT_TYPES.values()}
_Y, _X = 3, 4  # axes of a volume (B, PH, PW, y, x)

_FORWARDS = {"mma": forward_mma, "tiled": forward_tiled}
_GRADIENTS = {"mma": gradient_mma, "tiled": gradient_tiled}
# Of windows of one pixel: route -> whose tiles are taken, the first that fit the arrays; where none does, the direct kernels.
_TILES = {"mma": ("mma", "tiled"), "box": ("tiled",), "tiled": ("tiled",), "direct": ()}


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


@dataclass(frozen=True, slots=True)
class Work:
    """The calls that answer a problem, in order; the bytes of workspace they share; what they take by count; and in words."""

    calls: tuple[Call, ...]
    workspace: int
    seconds: float
    how: str


@lru_cache(PLANS)
def forward_plan(route: str, problem: Problem, input1: Layout, input2: Layout, out: Layout, device: int) -> Plan:
    """The plan from ``"input1"`` and ``"input2"`` to ``"out"``, on the device of that number."""
    return _bound(_forward(route, problem, (input1, input2, out), facts(device)), device)


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
    return _bound(_vjp(route, problem, cotangent, inputs, gradients, facts(device)), device)


def _bound(work: Work, device: int) -> Plan:
    launches = (
        Launch(bind(call.kernel, device, min(call.blocks, MOST_BLOCKS), call.threads, call.shared, call.scalars), call.pointers)
        for call in work.calls
        if call.blocks
    )
    return Plan(tuple(launches), work.workspace)


def _forward(route: str, problem: Problem, layouts: Sequence[Layout], device: Device) -> Work:
    arrays = [(each, Pointer(name)) for each, name in zip(layouts, ("input1", "input2", "out"), strict=True)]
    if route == "box":
        return _box_forward(problem, arrays, device, _Cut.of(problem, layouts[0].accumulator.name))
    asked = (*_lines(problem), arrays, problem.parameters.scale, device)
    works = (_tiled_forward(_FORWARDS[tiles], *asked, 0) for tiles in _TILES[route])
    return next(filter(None, works), None) or _direct_forward(*asked)


def _vjp(
    route: str,
    problem: Problem,
    cotangent: Layout,
    inputs: tuple[Layout, Layout],
    gradients: tuple[Layout | None, Layout | None],
    device: Device,
) -> Work:
    if gradients == (None, None):
        return Work((), 0, 0.0, "nothing is asked for")
    operands = [_operand(number, inputs, gradients[number - 1]) for number in (1, 2)]
    whole = (cotangent, Pointer("cotangent"))
    if route != "direct" and _windowed(problem):
        return _box_vjp(problem, whole, operands, device, _Cut.of(problem, inputs[0].accumulator.name))
    asked = (*_lines(problem), whole, operands, problem.parameters.scale, device)
    works = (_tiled_gradients(_GRADIENTS[tiles], *asked, 0) for tiles in _TILES[route])
    return next(filter(None, works), None) or _direct_gradients(*asked)


def _operand(number: int, inputs: tuple[Layout, Layout], gradient: Layout | None) -> Operand:
    other = (inputs[2 - number], Pointer(f"input{3 - number}"))
    mine = inputs[number - 1]
    if gradient is None:
        return Operand(number, other, (dense_layout(mine.dtype, mine.shape), NOWHERE), asked=False)
    return Operand(number, other, (gradient, Pointer(f"gradient{number}")))


def _lines(problem: Problem) -> tuple[Line, Line]:
    return line(problem.vertical), line(problem.horizontal)


def _windowed(problem: Problem) -> bool:
    return problem.parameters.kernel_size != (1, 1)


# Direct -----------------------------------------------------------------------------------------------------------------------


def _direct_forward(vertical: Line, horizontal: Line, arrays: Sequence[Array], scale: float, device: Device) -> Work:
    call = direct.forward(vertical, horizontal, arrays, scale, device.multiprocessors)
    seconds = _direct_seconds(vertical, horizontal, arrays[2][0], arrays[0][0], device)
    return Work((call,), 0, seconds, "each output by itself, every tap of its window")


def _direct_gradients(
    vertical: Line, horizontal: Line, cotangent: Array, operands: Sequence[Operand], scale: float, device: Device
) -> Work:
    calls = (
        direct.gradient(operand.number, vertical, horizontal, [cotangent, operand.other, operand.result], scale)
        for operand in operands
        if operand.asked
    )
    seconds = sum(_direct_seconds(vertical, horizontal, cotangent[0], operand.other[0], device) for operand in operands)
    return Work(tuple(calls), 0, seconds, "each element of a gradient by itself")


def _direct_seconds(vertical: Line, horizontal: Line, outputs: Layout, image: Layout, device: Device) -> float:
    """Of the taps of as many outputs, each loaded where it is multiplied."""
    products = prod(outputs.shape) * vertical.kernel * horizontal.kernel * image.shape[1]
    return LAUNCH + machine(device, image.accumulator.name).from_caches(products, image.itemsize)


# Tiles ------------------------------------------------------------------------------------------------------------------------


def _tiled_forward(
    tiles: ModuleType, vertical: Line, horizontal: Line, arrays: Sequence[Array], scale: float, device: Device, begin: int
) -> Work | None:
    """Tiles of a module, sums of parts ``begin`` bytes into the workspace; None where none of them fits such arrays."""
    calls: list[Call] = []
    size, seconds, how = 0, 0.0, ""
    for piece in _pieces(tiles, arrays[0][0], arrays[2][0]):
        input1, input2 = (_samples(image, piece) for image in arrays[:2])
        out = _displaced(arrays[2], piece)
        rows = vertical.displacements(piece.begin[1], piece.counts[1])
        tiling = tiles.best(rows, horizontal, Arrays(input1[0], input2[0], out[0]), device, PARTS)
        if isinstance(tiling, str):
            return None
        calls += tiling.calls([input1[1], input2[1], out[1]], scale, Pointer("workspace", begin))
        size, seconds, how = max(size, tiling.workspace), seconds + tiling.seconds(device), tiling.how
    return Work(tuple(calls), begin + size, seconds, how)


def _pieces(tiles: ModuleType, image: Layout, out: Layout) -> Iterator[_Part]:
    """The whole; or as many samples and rows of displacements at once as leave room for the sums of parts they need."""
    needed = tiles.needed_parts(image, out)
    row = new_layout(image.accumulator.name, (max(needed, 1), *out.shape[2:]))
    counts = _at_once(out.shape[:2], _size(row), PARTS) if needed else out.shape[:2]
    yield from _parts((*out.shape[:2], out.shape[2]), (*counts, out.shape[2]))


def _tiled_gradients(
    tiles: ModuleType,
    vertical: Line,
    horizontal: Line,
    cotangent: Array,
    operands: Sequence[Operand],
    scale: float,
    device: Device,
    begin: int,
) -> Work | None:
    """Gradients by tiles of a module, parts of sums ``begin`` bytes into the workspace; None where such arrays do not fit."""
    if tiles.reason(vertical, horizontal, cotangent[0], operands) is not None:
        return None
    asked = (vertical, horizontal, cotangent, operands, scale, device)
    found = gradient_phases.plan(tiles.tilings, *asked, Pointer("workspace", begin))
    return Work(tuple(found.calls), begin + found.workspace, found.seconds, found.how)


def _pixels(vertical: Line, horizontal: Line, arrays: Sequence[Array], scale: float, device: Device, begin: int) -> Work:
    """The fastest way to a one-pixel window, by count."""
    asked = (vertical, horizontal, arrays, scale, device)
    works = (_tiled_forward(_FORWARDS[tiles], *asked, begin) for tiles in _exact_tiles(arrays[0][0].dtype, device))
    return _fastest(*filter(None, works), _direct_forward(*asked))


def _pixel_gradients(
    vertical: Line,
    horizontal: Line,
    cotangent: Array,
    operands: Sequence[Operand],
    scale: float,
    device: Device,
    begin: int,
) -> Work:
    """The fastest way to the gradients of one-pixel windows, by count."""
    asked = (vertical, horizontal, cotangent, operands, scale, device)
    dtype = operands[0].other[0].dtype
    works = (_tiled_gradients(_GRADIENTS[tiles], *asked, begin) for tiles in _exact_tiles(dtype, device))
    return _fastest(*filter(None, works), _direct_gradients(*asked))


def _exact_tiles(dtype: str, device: Device) -> tuple[str, ...]:
    """Routes through tiles that multiply numbers of a dtype as they are: tensor cores would round those of float32."""
    return _TILES["mma" if dtype != "float32" and device.has_matrix_product(dtype) else "tiled"]


def _fastest(*works: Work) -> Work:
    return min(works, key=lambda work: work.seconds)


# Box --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """Some samples and some displacements: where they begin, and how many of each axis (B, PH, PW)."""

    begin: tuple[int, int, int]
    counts: tuple[int, int, int]
    number: int  # among the parts of its samples
    last: bool


def _at_once(whole: Sequence[int], each: int, room: int) -> tuple[int, ...]:
    """How many of each axis there is room for, the last axis filled first; one of each at least."""
    free = max(room // each, 1)
    counts = []
    for size in reversed(whole):
        counts.append(max(min(size, free), 1))
        free = free // size if size and counts[-1] == size else 1
    return tuple(reversed(counts))


def _parts(whole: tuple[int, int, int], counts: tuple[int, int, int]) -> Iterator[_Part]:
    """All of (B, PH, PW), ``counts`` of each at once at most."""
    samples, patch_y, patch_x = whole
    batch, rows, columns = counts
    for b in range(0, samples, max(batch, 1)):
        corners = list(product(range(0, patch_y, rows), range(0, patch_x, columns)))
        for number, (m, n) in enumerate(corners):
            size = (min(batch, samples - b), min(rows, patch_y - m), min(columns, patch_x - n))
            yield _Part((b, m, n), size, number, number == len(corners) - 1)


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
        return cls(*_lines(problem), accumulator, whole, _at_once(whole, plane, WORKSPACE))

    def volume(self, counts: tuple[int, int, int]) -> Array:
        return new_layout(self.accumulator, (*counts, self.vertical.span, self.horizontal.span)), Pointer("workspace")

    def rows(self, counts: tuple[int, int, int]) -> Array:
        shape = (*counts, self.vertical.out, self.horizontal.span)
        return new_layout(self.accumulator, shape), Pointer("workspace", _size(self.volume(self.counts)[0]))

    @property
    def volumes_bytes(self) -> int:
        """Bytes of both volumes of one part."""
        return _size(self.volume(self.counts)[0]) + _size(self.rows(self.counts)[0])

    @property
    def whole_patches(self) -> bool:
        """Whether a part has all displacements of its samples."""
        return self.counts[1:] == self.all_counts[1:]

    def parts(self) -> Iterator[_Part]:
        return _parts(self.all_counts, self.counts)

    def pixelwise(self, part: _Part) -> tuple[Line, Line]:
        """The axes of the volume's own problem: a window of one pixel, the part's displacements."""
        (_, m, n), (_, rows, columns) = part.begin, part.counts
        return self.vertical.pixelwise().displacements(m, rows), self.horizontal.pixelwise().displacements(n, columns)

    def windows_seconds(self, counts: tuple[int, int, int], device: Device) -> float:
        """Of two launches that read the volume and write sums along y, and read those and write sums along x, or back."""
        moved = _size(self.volume(counts)[0]) + 3 * _size(self.rows(counts)[0])
        return 2 * LAUNCH + machine(device, self.accumulator).moved(moved)


def _aligned(count: int) -> int:
    return ceil_div(count, ALIGNMENT) * ALIGNMENT


def _size(volume: Layout) -> int:
    return _aligned(volume.shape[0] * volume.strides[0] * volume.itemsize)


def _samples(array: Array, part: _Part) -> Array:
    """The samples of one part, of an array (B, ...)."""
    whole, pointer = array
    return whole.resized(part.counts[0]), pointer.at(whole.offset(part.begin[0]))


def _displaced(array: Array, part: _Part) -> Array:
    """The samples and displacements of one part, of an array (B, PH, PW, ...)."""
    whole, pointer = array
    return whole.resized(*part.counts), pointer.at(whole.offset(*part.begin))


def _summed(works: Sequence[Work], workspace: int, how: str) -> Work:
    """One piece of work after the other."""
    calls = tuple(call for work in works for call in work.calls)
    return Work(calls, max((work.workspace for work in works), default=workspace), sum(work.seconds for work in works), how)


def _box_forward(problem: Problem, arrays: Sequence[Array], device: Device, cut: _Cut) -> Work:
    works = []
    for part in cut.parts():
        volume, rows = cut.volume(part.counts), cut.rows(part.counts)
        images = [_samples(image, part) for image in arrays[:2]]
        works.append(_pixels(*cut.pixelwise(part), [*images, volume], 1.0, device, cut.volumes_bytes))
        windows = (
            box.window_sum(cut.vertical, _Y, volume, rows),
            box.window_sum(cut.horizontal, _X, rows, _displaced(arrays[2], part), problem.parameters.scale),
        )
        works.append(Work(windows, cut.volumes_bytes, cut.windows_seconds(part.counts, device), ""))
    spans = f"{cut.vertical.span} x {cut.horizontal.span}"
    made = works[0].how if works else "nothing"
    return _summed(works, 0, f"windows summed over the volume of {spans} positions, rows and columns apart; the volume by {made}")


def _box_vjp(problem: Problem, cotangent: Array, operands: Sequence[Operand], device: Device, cut: _Cut) -> Work:
    works = []
    for part in cut.parts():
        volume, rows = cut.volume(part.counts), cut.rows(part.counts)
        windows = (
            box.window_spread(cut.horizontal, _X, _displaced(cotangent, part), rows),
            box.window_spread(cut.vertical, _Y, rows, volume),
        )
        works.append(Work(windows, cut.volumes_bytes, cut.windows_seconds(part.counts, device), ""))
        of_samples = [replace(each, other=_samples(each.other, part), result=_samples(each.result, part)) for each in operands]
        scale, lines = problem.parameters.scale, cut.pixelwise(part)
        if cut.whole_patches:
            works.append(_pixel_gradients(*lines, volume, of_samples, scale, device, cut.volumes_bytes))
        else:
            works.append(_carried_gradients(*lines, volume, of_samples, scale, device, cut, part))
    return _summed(works, 0, "cotangents spread over their windows, then gradients of a one-pixel window")


def _carried_gradients(
    vertical: Line,
    horizontal: Line,
    cotangent: Array,
    operands: Sequence[Operand],
    scale: float,
    device: Device,
    cut: _Cut,
    part: _Part,
) -> Work:
    """Direct gradients of some of the displacements, added to those of the displacements before."""
    calls, end, seconds = [], cut.volumes_bytes, 0.0
    for operand in operands:
        if not operand.asked:
            continue
        whole = operand.result[0].resized(cut.counts[0])
        size = _aligned(direct.carried_bytes(whole))
        # Two places in turn: a launch must not load what it stores.
        places = [Pointer("workspace", end + size * (number % 2)) for number in (part.number - 1, part.number)]
        carried, carry = (NOWHERE if part.number == 0 else places[0]), (NOWHERE if part.last else places[1])
        arrays = [cotangent, operand.other, operand.result]
        calls.append(direct.gradient(operand.number, vertical, horizontal, arrays, scale, carried, carry))
        seconds += _direct_seconds(vertical, horizontal, cotangent[0], operand.other[0], device)
        end += 2 * size
    return Work(tuple(calls), end, seconds, "")


# Running it -------------------------------------------------------------------------------------------------------------------


def forward(route: str, problem: Problem, input1: Any, input2: Any, out: Any) -> None:
    """Write the correlation of two CuPy arrays into a third, on their device and its current stream."""
    arrays = {"input1": input1, "input2": input2, "out": out}
    layouts = (layout(name, array) for name, array in arrays.items())
    _run(forward_plan(route, problem, *layouts, out.device.id), arrays)


def vjp(
    route: str,
    problem: Problem,
    cotangent: Any,
    input1: Any,
    input2: Any,
    needs: tuple[bool, bool],
    gradients: tuple[Any | None, Any | None],
) -> None:
    """Fill the CuPy arrays ``gradients`` of ``<cotangent, forward(input1, input2)>`` that ``needs`` asks for."""
    inputs = {"input1": input1, "input2": input2}
    asked = [gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)]
    results = {f"gradient{operand}": result for operand, result in enumerate(asked, 1) if result is not None}
    plan = vjp_plan(
        route,
        problem,
        layout("cotangent", cotangent),
        tuple(layout(name, array) for name, array in inputs.items()),
        tuple(None if result is None else layout("gradient", result) for result in asked),
        cotangent.device.id,
    )
    _run(plan, {"cotangent": cotangent, **inputs, **results})


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


@lru_cache(2 * PLANS)
def expected(route: str, question: Question, device: Device) -> Work:
    """What a route does on arrays that lie as the question says, packed."""
    problem, (dtype, result) = question.problem, (question.dtype, question.result_dtype)
    shapes = (problem.shape1, problem.shape2)
    inputs = tuple(dense_layout(dtype, shape, order) for shape, order in zip(shapes, question.orders, strict=True))
    outside = dense_layout(result, problem.out_shape)
    if question.which == "forward":
        return _forward(route, problem, (*inputs, outside), device)
    gradients = tuple(
        dense_layout(dtype, shape) if needed else None for shape, needed in zip(shapes, question.needs, strict=True)
    )
    return _vjp(route, problem, outside, inputs, gradients, device)


def misfit(route: str, question: Question) -> str | None:
    """Why the tiles of a route do not answer a question, if that is so."""
    problem = question.problem
    shapes = (problem.shape1, problem.shape2)
    first, second = (dense_layout(question.dtype, shape, order) for shape, order in zip(shapes, question.orders, strict=True))
    out = dense_layout(question.result_dtype, problem.out_shape)
    if question.which == "forward":
        return _FORWARDS[route].reason(*_lines(problem), Arrays(first, second, out))
    if _windowed(problem):  # the box's transpose, which takes tiles where they fit
        return None
    gradient = dense_layout(question.dtype, problem.shape1)
    return _GRADIENTS[route].reason(*_lines(problem), out, [Operand(1, (second, NOWHERE), (gradient, NOWHERE))])


def builds(device: Device | None = None) -> Iterator[tuple[str, Kernel]]:
    """Every kernel that a plan can launch, anywhere or on a device, with words for it."""
    for module in (direct, box, sum_parts):
        yield from module.builds()
    yield from forward_tiled.builds()
    yield from gradient_tiled.builds()
    for name, kernel in chain(forward_mma.builds(), gradient_mma.builds()):
        if device is None or device.has_matrix_product(_DTYPES[dict(kernel.macros)["INPUT"]]):
            yield name, kernel
