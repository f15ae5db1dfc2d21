"""The calls of ``box_filter.cu``, which sums windows along one axis of a volume, and spreads cotangents over them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..._dtypes import ELEMENT_TYPES, SUM_TYPES
from ..._gpu.call import THREADS, Array, Call, accumulator_scalar, builds_of, call
from ..._gpu.layout import RUN_BYTES, Layout, ceil_div
from ..._gpu.source import Kernel
from .axes import Line, taps_reach

_ALONG_Y = 3  # axis of a volume (B, PH, PW, y, x)


def window_sum(axis: Line, along: int, source: Array, target: Array, scale: float = 1.0) -> Call:
    """box_filter.cu: the windows along one axis (3 is y, 4 is x) of a volume."""
    return _box(axis, along, False, source, target, source[0], scale)


def window_spread(axis: Line, along: int, source: Array, target: Array) -> Call:
    """box_filter.cu: the transpose of `window_sum`."""
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
    layouts, pointers = zip(source, target, strict=True)
    read, written = layouts
    _, patch_y, patch_x, height, width = written.shape
    run = RUN_BYTES // read.itemsize if along == _ALONG_Y else 1
    threads = math.prod(written.shape[:4]) * ceil_div(width, run)
    macros = dict(FROM=read.element, TO=written.element, ALONG_Y=int(along == _ALONG_Y), TRANSPOSED=int(transposed))
    integers = (threads, patch_y, patch_x, height, width, *read.strides, *written.strides, *axis.window)
    reach = max(axis.reach, taps_reach(axis))
    return call(
        "correlation/box_filter",
        macros,
        pointers,
        layouts,
        integers,
        reach,
        (accumulator_scalar(summed, scale),),
        ceil_div(threads, THREADS),
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
        yield from builds_of("correlation/box_filter", table)
