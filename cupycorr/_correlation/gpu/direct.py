"""The calls of ``forward_direct.cu`` and ``gradient_direct.cu``, which sum every tap of every output one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..._dtypes import ELEMENT_TYPES
from ..._gpu.call import IMAGE_AXES, NOWHERE, THREADS, VOLUME_AXES, Array, Call, Pointer, Signature, builds_of, strides
from ..._gpu.costs import LAUNCH, machine
from ..._gpu.device import Device
from ..._gpu.layout import Layout, ceil_div
from ..._gpu.limits import SECTOR_BYTES, VECTOR_BYTES, WARP
from ..._gpu.plan import Plan
from ..._gpu.source import Kernel
from .axes import WINDOW, Line
from .sums import ForwardSum, GradientSum, Operand

SPLITS = 8  # threads that share the channels of one output, where they do
FILLING = 1024  # outputs per multiprocessor: with fewer, one thread for each leaves most of it idle

# The cost of a thread in instructions, and in seconds where one load waits for another.
_OUTPUT_INSTRUCTIONS, _PRODUCT_INSTRUCTIONS = 280, 9  # of an output, and of each of its products
_PRODUCT_SECONDS = 0.13e-6
# The cost of a displacement of a gradient: where each position has its own output, and where outputs are found by division.
_PIXEL_INSTRUCTIONS, _PIXEL_SECONDS = 55, 0.33e-6
_WINDOW_INSTRUCTIONS, _WINDOW_SECONDS = 300, 1.4e-6

_FORWARD_AXIS = ("size1", "size2", "patch", "first", "step", "out", "kernel", "stride", "dilation", "padding")
_GRADIENT_AXIS = ("size", "other_size", "patch", "first", "step", "padding", *WINDOW)

FORWARD = Signature(
    "correlation/forward_direct",
    ("input1", "input2", "out"),
    {
        **dict.fromkeys(("tiles", "channels"), "Index"),
        **strides("input1", IMAGE_AXES, "Index"),
        **strides("input2", IMAGE_AXES, "Index"),
        **strides("out", VOLUME_AXES, "Index"),
        **{f"{name}_{along}": "Index" for along in "yx" for name in _FORWARD_AXIS},
        "scale": "Sum",
    },
)

GRADIENT = Signature(
    "correlation/gradient_direct",
    ("cotangent", "other", "gradient", "previous_sums", "next_sums"),
    {
        **dict.fromkeys(("threads", "channels"), "Index"),
        **strides("cotangent", VOLUME_AXES, "Index"),
        **strides("other", IMAGE_AXES, "Index"),
        **strides("gradient", IMAGE_AXES, "Index"),
        **{f"{name}_{along}": "Index" for along in "yx" for name in _GRADIENT_AXIS},
        "scale": "Sum",
    },
)


def forward(vertical: Line, horizontal: Line, arrays: Sequence[Array], scale: float, multiprocessors: int) -> Call:
    """Return the launch of forward_direct.cu from input1 and input2 to an output."""
    input1, input2, out = layouts = [layout for layout, _ in arrays]
    channels_last, splits = _channel_order(input1, input2, math.prod(out.shape), multiprocessors)
    tiles = math.prod(out.shape[:3]) * ceil_div(vertical.out * horizontal.out, THREADS // splits)
    return FORWARD.call(
        macros={"INPUT": input1.element, "OUTPUT": out.element, "CHANNELS_LAST": channels_last, "SPLITS": splits},
        pointers={name: pointer for name, (_, pointer) in zip(FORWARD.pointers, arrays, strict=True)},
        scalars={
            "tiles": tiles,
            "channels": input1.shape[1],
            **strides("input1", IMAGE_AXES, input1.strides),
            **strides("input2", IMAGE_AXES, input2.strides),
            **strides("out", VOLUME_AXES, out.strides),
            **{f"{name}_y": getattr(vertical, name) for name in _FORWARD_AXIS},
            **{f"{name}_x": getattr(horizontal, name) for name in _FORWARD_AXIS},
            "scale": scale,
        },
        accumulator=input1.accumulator,
        blocks=tiles,
        largest=max(
            vertical.reach, horizontal.reach, vertical.out * horizontal.out + THREADS, *(layout.extent for layout in layouts)
        ),
    )


def _channel_order(input1: Layout, input2: Layout, outputs: int, multiprocessors: int) -> tuple[int, int]:
    """Return CHANNELS_LAST, 1 if neighbouring threads take neighbouring channels, and SPLITS, the threads of an output."""
    if _channels_last(input1) and _channels_last(input2):
        return 1, SPLITS
    few = outputs < multiprocessors * FILLING
    return 0, SPLITS if few and input1.shape[1] >= 2 * SPLITS else 1


def _channels_last(image: Layout) -> bool:
    """Return whether channels are contiguous, with enough of them for vector loads by the threads of an output."""
    return image.strides[1] == 1 and image.shape[1] * image.itemsize >= SPLITS * VECTOR_BYTES // 2


def gradient(
    operand: int,
    vertical: Line,
    horizontal: Line,
    arrays: Sequence[Array],
    scale: float,
    previous_sums: Pointer = NOWHERE,
    next_sums: Pointer = NOWHERE,
) -> Call:
    """Return the launch of gradient_direct.cu from a cotangent and the other input to the gradient of input ``operand``.

    A sum may be split over several launches: each but the last stores its sums at ``next_sums``, `carried_bytes` of them, and
    each but the first starts from those at ``previous_sums``.
    """
    cotangent, other, result = layouts = [layout for layout, _ in arrays]
    batch, channels, height, width = result.shape
    threads = batch * _vectors(result) * height * width
    return GRADIENT.call(
        macros={
            "INPUT": other.element,
            "COTANGENT": cotangent.element,
            "OPERAND": operand,
            "CHANNELS_LAST": int(_channels_last(other)),
        },
        pointers={
            **{name: pointer for name, (_, pointer) in zip(GRADIENT.pointers[:3], arrays, strict=True)},
            "previous_sums": previous_sums,
            "next_sums": next_sums,
        },
        scalars={
            "threads": threads,
            "channels": channels,
            **strides("cotangent", VOLUME_AXES, cotangent.strides),
            **strides("other", IMAGE_AXES, other.strides),
            **strides("gradient", IMAGE_AXES, result.strides),
            **_gradient_scalars("y", operand, vertical),
            **_gradient_scalars("x", operand, horizontal),
            "scale": scale,
        },
        accumulator=other.accumulator,
        blocks=ceil_div(threads, THREADS),
        largest=max(
            threads * VECTOR_BYTES,
            *(reach for axis in (vertical, horizontal) for reach in (axis.reach, axis.window_reach)),
            *(layout.extent for layout in layouts),
        ),
    )


def _gradient_scalars(along: str, operand: int, axis: Line) -> dict[str, int]:
    size, other_size = (axis.size1, axis.size2) if operand == 1 else (axis.size2, axis.size1)
    numbers = (size, other_size, axis.patch, axis.first, axis.step, axis.padding, *axis.window.values())
    return {f"{name}_{along}": number for name, number in zip(_GRADIENT_AXIS, numbers, strict=True)}


def _vectors(image: Layout) -> int:
    """Return the number of vectors that hold the channels of a pixel; each is one thread's."""
    return ceil_div(image.shape[1], VECTOR_BYTES // image.itemsize)


def carried_bytes(result: Layout) -> int:
    """Return the bytes of the sums that a launch hands to the next one where a gradient is computed by several launches."""
    batch, _, height, width = result.shape
    return batch * _vectors(result) * height * width * VECTOR_BYTES // result.itemsize * result.accumulator.itemsize


_ELEMENTS = tuple(row.c_type for row in ELEMENT_TYPES.values())

_BUILDS = (
    (FORWARD, dict(INPUT=_ELEMENTS, OUTPUT=_ELEMENTS, CHANNELS_LAST=(0,), SPLITS=(1, SPLITS))),
    (FORWARD, dict(INPUT=_ELEMENTS, OUTPUT=_ELEMENTS, CHANNELS_LAST=(1,), SPLITS=(SPLITS,))),
    (GRADIENT, dict(INPUT=_ELEMENTS, COTANGENT=_ELEMENTS, OPERAND=(1, 2), CHANNELS_LAST=(0, 1))),
)


def builds() -> Iterator[tuple[str, Kernel]]:
    """Yield every build that a call can name, with words for it."""
    for signature, table in _BUILDS:
        yield from builds_of(signature.name, table)


# Plans ------------------------------------------------------------------------------------------------------------------------


def forward_plan(forward_sum: ForwardSum) -> Plan:
    """Return the plan of the direct forward map."""
    axes, device = (forward_sum.vertical, forward_sum.horizontal), forward_sum.device
    arrays = [forward_sum.input1, forward_sum.input2, forward_sum.out]
    return Plan(
        "direct",
        "each output by itself, every tap of its window",
        seconds(*axes, forward_sum.out[0], forward_sum.input1[0], device),
        0,
        lambda: [forward(*axes, arrays, forward_sum.scale, device.multiprocessors)],
        device.index,
    )


def gradients_plan(gradients: GradientSum) -> Plan:
    """Return the plan of the direct gradients."""
    axes, cotangent, device = (gradients.vertical, gradients.horizontal), gradients.cotangent, gradients.device

    def calls() -> Iterator[Call]:
        for operand in gradients.operands:
            if operand.needed:
                yield gradient(operand.number, *axes, [cotangent, operand.other, operand.result], gradients.scale)

    taken = sum(gradient_seconds(*axes, cotangent[0], operand, device) for operand in gradients.operands)
    return Plan("direct", "each element of a gradient by itself", taken, 0, calls, device.index)


def seconds(vertical: Line, horizontal: Line, outputs: Layout, image: Layout, device: Device) -> float:
    """Estimate the seconds of these outputs, each product of which loads both factors."""
    rates, count = machine(device, image.accumulator.name), math.prod(outputs.shape)
    products = vertical.kernel * horizontal.kernel * image.shape[1]
    few = count < device.multiprocessors * FILLING and image.shape[1] >= 2 * SPLITS
    splits = SPLITS if few or _channels_last(image) else 1
    of_thread = products / splits
    working = rates.untiled(
        ceil_div(count * splits, THREADS),
        THREADS // WARP,
        _OUTPUT_INSTRUCTIONS + of_thread * _PRODUCT_INSTRUCTIONS,
        of_thread * _PRODUCT_SECONDS,
    )
    # Neighbouring outputs load elements that are a stride apart, but caches move whole sectors.
    moved = image.itemsize if _channels_last(image) else min(image.itemsize * horizontal.stride, SECTOR_BYTES)
    return LAUNCH + max(working, rates.from_caches(count * products, moved))


def gradient_seconds(vertical: Line, horizontal: Line, cotangent: Layout, operand: Operand, device: Device) -> float:
    """Estimate the seconds of a gradient, each thread of which walks all displacements."""
    image, result = operand.other[0], operand.result[0]
    rates = machine(device, image.accumulator.name)
    batch, _, height, width = result.shape
    pixels = vertical.kernel * horizontal.kernel * vertical.stride * horizontal.stride == 1
    instructions, chain = (_PIXEL_INSTRUCTIONS, _PIXEL_SECONDS) if pixels else (_WINDOW_INSTRUCTIONS, _WINDOW_SECONDS)
    displacements = vertical.patch * horizontal.patch
    working = rates.untiled(
        ceil_div(batch * _vectors(result) * height * width, THREADS),
        THREADS // WARP,
        displacements * instructions,
        displacements * chain,
    )
    products = math.prod(cotangent.shape) * vertical.kernel * horizontal.kernel * image.shape[1]
    return LAUNCH + max(working, rates.from_caches(products, image.itemsize))
