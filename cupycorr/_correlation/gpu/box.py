"""The calls of ``box_filter.cu``, which sums windows along one axis of a volume, and spreads cotangents over them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from ..._dtypes import ELEMENT_TYPES, SUM_TYPES
from ..._gpu.call import NOWHERE, THREADS, VOLUME_AXES, Array, Call, Pointer, Signature, builds_of, strides
from ..._gpu.costs import LAUNCH, machine
from ..._gpu.device import Device
from ..._gpu.layout import Layout, ceil_div, new_layout
from ..._gpu.limits import VECTOR_BYTES, WORKSPACE_BYTES
from ..._gpu.plan import WORKSPACE, Plan
from ..._gpu.source import Kernel
from ..problem import Problem
from . import direct, one_pixel
from .axes import WINDOW, Line, lines
from .chunks import Chunk, aligned, chunk_counts, chunks, padded_bytes, samples_of, volume_of
from .sums import ForwardSum, GradientSum, Operand

_Y, _X = 3, 4  # axes of a volume (B, PH, PW, y, x)

# Shares of the rate at which memory is moved: instructions take longer than memory.
_SUM_EFFICIENCY, _TRANSPOSE_EFFICIENCY = 0.6, 0.4

SIGNATURE = Signature(
    "correlation/box_filter",
    ("from", "to"),
    {
        **dict.fromkeys(("threads", "patch_y", "patch_x", "height", "width"), "Index"),
        **strides("from", VOLUME_AXES, "Index"),
        **strides("to", VOLUME_AXES, "Index"),
        **dict.fromkeys(WINDOW, "Index"),
        "scale": "Sum",
    },
)


def window_sum(axis: Line, along: int, source: Array, target: Array, scale: float = 1.0) -> Call:
    """Return the launch that sums the windows along one axis (3 is y, 4 is x) of a volume."""
    return _box(axis, along, False, source, target, source[0], scale)


def window_transpose(axis: Line, along: int, source: Array, target: Array) -> Call:
    """Return the launch of the transpose of `window_sum`."""
    return _box(axis, along, True, source, target, target[0], 1.0)


def _box(
    axis: Line,
    along: int,
    transposed: bool,
    source: Array,
    target: Array,
    summed: Layout,
    scale: float,
) -> Call:
    (read, read_from), (written, write_to) = source, target
    _, patch_y, patch_x, height, width = written.shape
    vector = VECTOR_BYTES // read.itemsize if along == _Y else 1
    threads = math.prod(written.shape[:4]) * ceil_div(width, vector)
    return SIGNATURE.call(
        macros={
            "FROM": read.element,
            "TO": written.element,
            "ALONG_Y": int(along == _Y),
            "TRANSPOSED": int(transposed),
        },
        pointers={"from": read_from, "to": write_to},
        scalars={
            "threads": threads,
            "patch_y": patch_y,
            "patch_x": patch_x,
            "height": height,
            "width": width,
            **strides("from", VOLUME_AXES, read.strides),
            **strides("to", VOLUME_AXES, written.strides),
            **axis.window,
            "scale": scale,
        },
        accumulator=summed.accumulator,
        blocks=ceil_div(threads, THREADS),
        largest=max(axis.reach, axis.window_reach, read.extent, written.extent),
    )


_ELEMENTS = tuple(row.c_type for row in ELEMENT_TYPES.values())

_BUILDS = (
    dict(FROM=SUM_TYPES, TO="FROM", ALONG_Y=(1,), TRANSPOSED=(0, 1)),
    dict(FROM=SUM_TYPES, TO=_ELEMENTS, ALONG_Y=(0,), TRANSPOSED=(0,)),
    dict(FROM=_ELEMENTS, TO=SUM_TYPES, ALONG_Y=(0,), TRANSPOSED=(1,)),
)


def builds() -> Iterator[tuple[str, Kernel]]:
    """Yield every build that a call can name, with words for it."""
    for table in _BUILDS:
        yield from builds_of(SIGNATURE.name, table)


# Plans ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Volumes:
    """The two volumes in the workspace, and how the problem is cut into chunks so that they fit.

    ``volume`` (.., span, span) has the one-pixel correlation at each position that a tap reads, ``rows`` (.., out, span) has its
    windows summed along y.
    """

    vertical: Line
    horizontal: Line
    accumulator: str
    whole: tuple[int, int, int]
    counts: tuple[int, ...]  # of a chunk, at most

    @classmethod
    def of(cls, problem: Problem, accumulator: str) -> _Volumes:
        """Cut a problem into chunks."""
        batch, patch_y, patch_x, *_ = problem.out_shape
        axes, whole = lines(problem), (batch, patch_y, patch_x)
        one = cls(*axes, accumulator, whole, (1, 1, 1)).bytes
        return cls(*axes, accumulator, whole, chunk_counts(whole, one, WORKSPACE_BYTES))

    def volume(self, counts: tuple[int, ...]) -> Array:
        """Return the volume of one-pixel windows of so many samples and displacements."""
        return new_layout(self.accumulator, (*counts, self.vertical.span, self.horizontal.span)), Pointer(WORKSPACE)

    def rows(self, counts: tuple[int, ...]) -> Array:
        """Return the volume of windows summed along y."""
        shape = (*counts, self.vertical.out, self.horizontal.span)
        return new_layout(self.accumulator, shape), Pointer(WORKSPACE, padded_bytes(self.volume(self.counts)[0]))

    @property
    def bytes(self) -> int:
        """The bytes of both volumes of a chunk."""
        return padded_bytes(self.volume(self.counts)[0]) + padded_bytes(self.rows(self.counts)[0])

    @property
    def has_whole_patches(self) -> bool:
        """True if a chunk has all displacements of its samples."""
        return self.counts[1:] == self.whole[1:]

    def chunks(self) -> Iterator[Chunk]:
        """Yield the chunks."""
        return chunks(self.whole, self.counts)

    def one_pixel_axes(self, chunk: Chunk) -> tuple[Line, Line]:
        """Return the axes of the volume's own problem: windows of one pixel, at the chunk's displacements."""
        (_, m, n), (_, rows, columns) = chunk.begin, chunk.counts
        return self.vertical.pixelwise().displacements(m, rows), self.horizontal.pixelwise().displacements(n, columns)

    def windows_seconds(self, chunk: Chunk, device: Device, efficiency: float) -> float:
        """Estimate the seconds of two launches at a share of the rate at which memory is moved.

        They read the volume and write sums along y, read those and write sums along x, or the reverse.
        """
        moved = padded_bytes(self.volume(chunk.counts)[0]) + 3 * padded_bytes(self.rows(chunk.counts)[0])
        return 2 * LAUNCH + machine(device, self.accumulator).moved(moved) / efficiency


def forward_plan(problem: Problem, input1: Array, input2: Array, out: Array, device: Device) -> Plan:
    """Return the plan that computes volumes of one-pixel windows and sums windows of them."""
    volumes, scale = _Volumes.of(problem, input1[0].accumulator.name), problem.parameters.scale
    plans = []
    for chunk in volumes.chunks():
        volume, rows = volumes.volume(chunk.counts), volumes.rows(chunk.counts)
        images = samples_of(input1, chunk), samples_of(input2, chunk)
        pixels = ForwardSum(*volumes.one_pixel_axes(chunk), *images, volume, 1.0, device)
        plans.append(one_pixel.fastest_forward(pixels, volumes.bytes))
        windows = partial(_sum_windows, volumes, volume, rows, volume_of(out, chunk), scale)
        plans.append(
            Plan("box", "", volumes.windows_seconds(chunk, device, _SUM_EFFICIENCY), volumes.bytes, windows, device.index)
        )
    spans = f"{volumes.vertical.span} x {volumes.horizontal.span}"
    volume_by = plans[0].description if plans else "no launch"
    description = (
        f"windows summed over a volume of {spans} positions, first along columns, then along rows; the volume by {volume_by}"
    )
    return _one_after_the_other(plans, description, device)


def gradients_plan(problem: Problem, cotangent: Array, operands: Sequence[Operand], device: Device) -> Plan:
    """Return the plan that spreads cotangents over their windows and takes the gradients of one-pixel windows."""
    volumes, scale = _Volumes.of(problem, operands[0].other[0].accumulator.name), problem.parameters.scale
    plans = []
    for chunk in volumes.chunks():
        volume, rows = volumes.volume(chunk.counts), volumes.rows(chunk.counts)
        windows = partial(_transpose_windows, volumes, volume_of(cotangent, chunk), rows, volume)
        plans.append(
            Plan("box", "", volumes.windows_seconds(chunk, device, _TRANSPOSE_EFFICIENCY), volumes.bytes, windows, device.index)
        )
        here = [replace(each, other=samples_of(each.other, chunk), result=samples_of(each.result, chunk)) for each in operands]
        pixels = GradientSum(*volumes.one_pixel_axes(chunk), volume, here, scale, device)
        if volumes.has_whole_patches:
            plans.append(one_pixel.fastest_gradients(pixels, volumes.bytes))
        else:
            plans.append(_accumulated_gradients(pixels, volumes, chunk))
    return _one_after_the_other(plans, "cotangents spread over their windows, then gradients of a one-pixel window", device)


def _sum_windows(volumes: _Volumes, volume: Array, rows: Array, out: Array, scale: float) -> list[Call]:
    return [window_sum(volumes.vertical, _Y, volume, rows), window_sum(volumes.horizontal, _X, rows, out, scale)]


def _transpose_windows(volumes: _Volumes, cotangent: Array, rows: Array, volume: Array) -> list[Call]:
    return [window_transpose(volumes.horizontal, _X, cotangent, rows), window_transpose(volumes.vertical, _Y, rows, volume)]


def _one_after_the_other(plans: Sequence[Plan], description: str, device: Device) -> Plan:
    """Return the plan that runs these plans in order."""
    workspace, seconds = max((plan.workspace for plan in plans), default=0), sum(plan.seconds for plan in plans)
    return Plan("box", description, seconds, workspace, lambda: chain.from_iterable(plan.calls for plan in plans), device.index)


def _accumulated_gradients(gradients: GradientSum, volumes: _Volumes, chunk: Chunk) -> Plan:
    """Return the plan of direct gradients of a chunk's displacements, added to those of the chunks before it."""
    axes, cotangent, device = (gradients.vertical, gradients.horizontal), gradients.cotangent, gradients.device
    calls, end, seconds = [], volumes.bytes, 0.0
    for operand in gradients.operands:
        if not operand.needed:
            continue
        whole = operand.result[0].resized(volumes.counts[0])
        size = aligned(direct.carried_bytes(whole))
        # Two places in turn: a launch must not load what it stores.
        places = [Pointer(WORKSPACE, end + size * (number % 2)) for number in (chunk.number - 1, chunk.number)]
        previous, following = (NOWHERE if chunk.number == 0 else places[0]), (NOWHERE if chunk.last else places[1])
        arrays = [cotangent, operand.other, operand.result]
        calls.append(direct.gradient(operand.number, *axes, arrays, gradients.scale, previous, following))
        seconds += direct.gradient_seconds(*axes, cotangent[0], operand, device)
        end += 2 * size
    return Plan("direct", "", seconds, end, lambda: calls, device.index)
