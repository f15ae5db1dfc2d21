"""The call of ``sum_parts.cu``, which adds up partial sums (split-K). Knows no operator."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .._dtypes import ELEMENT_TYPES, SUM_TYPES
from .call import THREADS, Array, Call, accumulator_scalar, builds_of, call
from .layout import RUN_BYTES, ceil_div
from .source import Kernel


def sum_parts(parts: Array, result: Array, scale: float) -> Call:
    """sum_parts.cu: the sum along the first axis of a volume (parts, ...) of at most five more, which are the result's."""
    layouts, pointers = zip(parts, result, strict=True)
    read, written = layouts
    shape, strides_from, strides_to = (
        (fill,) * (5 - len(numbers)) + tuple(numbers)
        for fill, numbers in ((1, written.shape), (0, read.strides[1:]), (0, written.strides))
    )
    threads = math.prod(shape[:4]) * ceil_div(shape[4], RUN_BYTES // read.itemsize)
    integers = (threads, read.shape[0], *shape[1:], read.strides[0], *strides_from, *strides_to)
    macros = dict(FROM=read.element, TO=written.element)
    return call(
        "common/sum_parts", macros, pointers, layouts, integers, 0, (accumulator_scalar(read, scale),), ceil_div(threads, THREADS)
    )


def builds() -> Iterator[tuple[str, Kernel]]:
    """Yield every build that a call can name, with words for it."""
    yield from builds_of("common/sum_parts", dict(FROM=SUM_TYPES, TO=tuple(row.c_type for row in ELEMENT_TYPES.values())))
