"""The calls of ``forward_direct.cu`` and ``gradient_direct.cu``, which sum every tap of every output one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..._dtypes import ELEMENT_TYPES
from ..._gpu.call import NOWHERE, THREADS, Array, Call, Pointer, accumulator_scalar, builds_of, call
from ..._gpu.costs import LAUNCH, machine
from ..._gpu.device import Device
from ..._gpu.layout import RUN_BYTES, Layout, Numbers, ceil_div
from ..._gpu.plan import Plan
from ..._gpu.source import Kernel
from .axes import Line, taps_reach
from .gradient_phases import Operand

PARTS = 8  # threads that share the channels of one output, where they do
FILLING = 1024  # outputs for each multiprocessor: with fewer, one thread for each leaves most of it idle


def forward(vertical: Line, horizontal: Line, arrays: Sequence[Array], scale: float, multiprocessors: int) -> Call:
    """forward_direct.cu: from input1 and input2 to an output."""
    input1, input2, out = layouts = [layout for layout, _ in arrays]
    channels = input1.shape[1]
    channels_last, parts = _sharing(input1, input2, math.prod(out.shape), multiprocessors)
    tiles = math.prod(out.shape[:3]) * ceil_div(vertical.out * horizontal.out, THREADS // parts)
    macros = dict(INPUT=input1.element, OUTPUT=out.element, CHANNELS_LAST=channels_last, PARTS=parts)
    integers = (tiles, channels, *input1.strides, *input2.strides, *out.strides)
    axes = (*_forward_numbers(vertical), *_forward_numbers(horizontal))
    reach = max(vertical.reach, horizontal.reach, vertical.out * horizontal.out + THREADS)
    pointers = tuple(pointer for _, pointer in arrays)
    return call(
        "correlation/forward_direct",
        macros,
        pointers,
        layouts,
        (*integers, *axes),
        reach,
        (accumulator_scalar(input1, scale),),
        tiles,
    )


def _forward_numbers(axis: Line) -> Numbers:
    tried = (axis.size1, axis.size2, axis.patch, axis.first, axis.step)
    return (*tried, axis.out, axis.kernel, axis.stride, axis.dilation, axis.padding)


def _sharing(input1: Layout, input2: Layout, outputs: int, multiprocessors: int) -> tuple[int, int]:
    """CHANNELS_LAST and PARTS: whether neighbouring threads take neighbouring channels, and how many share an output."""
    if _channels_last(input1) and _channels_last(input2):
        return 1, PARTS
    few = outputs < multiprocessors * FILLING
    return 0, PARTS if few and input1.shape[1] >= 2 * PARTS else 1


def _channels_last(image: Layout) -> bool:
    """Whether neighbouring channels are neighbours in memory, and enough of them to be loaded together."""
    return image.strides[1] == 1 and image.shape[1] * image.itemsize >= PARTS * RUN_BYTES // 2


def gradient(
    operand: int,
    vertical: Line,
    horizontal: Line,
    arrays: Sequence[Array],
    scale: float,
    carried: Pointer = NOWHERE,
    carry: Pointer = NOWHERE,
) -> Call:
    """gradient_direct.cu: from a cotangent and the other input to the gradient of input ``operand``.

    A sum cut into several launches goes through `carried_bytes` from the ``carry`` of one to the ``carried`` of the next.
    """
    cotangent, other, result = layouts = [layout for layout, _ in arrays]
    batch, channels, height, width = result.shape
    threads = batch * _runs(result) * height * width
    macros = dict(INPUT=other.element, COTANGENT=cotangent.element, OPERAND=operand, CHANNELS_LAST=int(_channels_last(other)))
    integers = (threads, channels, *cotangent.strides, *other.strides, *result.strides)
    axes = (*_gradient_numbers(operand, vertical), *_gradient_numbers(operand, horizontal))
    reach = max(vertical.reach, horizontal.reach, *map(taps_reach, (vertical, horizontal)), threads * RUN_BYTES)
    pointers = (*(pointer for _, pointer in arrays), carried, carry)
    blocks = ceil_div(threads, THREADS)
    return call(
        "correlation/gradient_direct",
        macros,
        pointers,
        layouts,
        (*integers, *axes),
        reach,
        (accumulator_scalar(other, scale),),
        blocks,
    )


def _gradient_numbers(operand: int, axis: Line) -> Numbers:
    sizes = (axis.size1, axis.size2) if operand == 1 else (axis.size2, axis.size1)
    return (*sizes, axis.patch, axis.first, axis.step, axis.padding, *axis.window)


def _runs(image: Layout) -> int:
    """How many threads share the channels of a pixel's gradient."""
    return ceil_div(image.shape[1], RUN_BYTES // image.itemsize)


def carried_bytes(result: Layout) -> int:
    """Bytes of the sums that one launch of a gradient cut into several hands on to the next."""
    batch, _, height, width = result.shape
    return batch * _runs(result) * height * width * RUN_BYTES // result.itemsize * result.accumulator.itemsize


_ELEMENTS = tuple(row.c_type for row in ELEMENT_TYPES.values())

_BUILDS = (
    ("forward_direct", dict(INPUT=_ELEMENTS, OUTPUT=_ELEMENTS, CHANNELS_LAST=(0,), PARTS=(1, PARTS))),
    ("forward_direct", dict(INPUT=_ELEMENTS, OUTPUT=_ELEMENTS, CHANNELS_LAST=(1,), PARTS=(PARTS,))),
    ("gradient_direct", dict(INPUT=_ELEMENTS, COTANGENT=_ELEMENTS, OPERAND=(1, 2), CHANNELS_LAST=(0, 1))),
)


def builds() -> Iterator[tuple[str, Kernel]]:
    """Yield every build that a call can name, with words for it."""
    for name, table in _BUILDS:
        yield from builds_of(f"correlation/{name}", table)


# Plans ------------------------------------------------------------------------------------------------------------------------


def forward_plan(vertical: Line, horizontal: Line, arrays: Sequence[Array], scale: float, device: Device) -> Plan:
    """Return the plan of the direct forward map."""
    return Plan(
        "direct",
        "each output by itself, every tap of its window",
        seconds(vertical, horizontal, arrays[2][0], arrays[0][0], device),
        0,
        lambda: [forward(vertical, horizontal, arrays, scale, device.multiprocessors)],
        device.index,
    )


def gradients_plan(
    vertical: Line, horizontal: Line, cotangent: Array, operands: Sequence[Operand], scale: float, device: Device
) -> Plan:
    """Return the plan of the direct gradients."""

    def calls() -> Iterator[Call]:
        for operand in operands:
            if operand.needed:
                yield gradient(operand.number, vertical, horizontal, [cotangent, operand.other, operand.result], scale)

    taken = sum(seconds(vertical, horizontal, cotangent[0], operand.other[0], device) for operand in operands)
    return Plan("direct", "each element of a gradient by itself", taken, 0, calls, device.index)


def seconds(vertical: Line, horizontal: Line, outputs: Layout, image: Layout, device: Device) -> float:
    """Estimate the seconds that the taps of these outputs take, each loaded where it is multiplied."""
    products = math.prod(outputs.shape) * vertical.kernel * horizontal.kernel * image.shape[1]
    return LAUNCH + machine(device, image.accumulator.name).from_caches(products, image.itemsize)
