"""The call of ``sum_parts.cu``, which adds up partial sums (split-K). Knows no operator."""

from __future__ import annotations

import math
from collections.abc import Iterator

from .._dtypes import ELEMENT_TYPES, SUM_TYPES
from .call import THREADS, Array, Call, Signature, builds_of, strides
from .layout import ceil_div
from .limits import VECTOR_BYTES
from .source import Kernel

_AXES = ("a", "b", "c", "d", "x")

SIGNATURE = Signature(
    "common/sum_parts",
    ("from", "to"),
    {
        **dict.fromkeys(("threads", "splits", "size_b", "size_c", "size_d", "size_x"), "Index"),
        **strides("from", ("split", *_AXES), "Index"),
        **strides("to", _AXES, "Index"),
        "scale": "Sum",
    },
)


def sum_parts(partial: Array, result: Array, scale: float) -> Call:
    """Return the launch that sums a volume (splits, ...) over its first axis; the result has at most five axes."""
    (read, source), (written, target) = partial, result
    missing = len(_AXES) - len(written.shape)
    shape = (1,) * missing + written.shape
    threads = math.prod(shape[:-1]) * ceil_div(shape[-1], VECTOR_BYTES // read.itemsize)
    return SIGNATURE.call(
        macros={"FROM": read.element, "TO": written.element},
        pointers={"from": source, "to": target},
        scalars={
            "threads": threads,
            "splits": read.shape[0],
            **{f"size_{axis}": size for axis, size in zip(_AXES[1:], shape[1:], strict=True)},
            "split_stride_from": read.strides[0],
            **strides("from", _AXES, (0,) * missing + read.strides[1:]),
            **strides("to", _AXES, (0,) * missing + written.strides),
            "scale": scale,
        },
        accumulator=read.accumulator,
        blocks=ceil_div(threads, THREADS),
        largest=max(read.extent, written.extent),
    )


def builds() -> Iterator[tuple[str, Kernel]]:
    """Yield every build that a call can name, with words for it."""
    yield from builds_of(SIGNATURE.name, dict(FROM=SUM_TYPES, TO=tuple(row.c_type for row in ELEMENT_TYPES.values())))
