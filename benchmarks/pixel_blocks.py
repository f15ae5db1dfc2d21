"""A rival that we wrote: one thread block for each output pixel, after both inputs are copied to channels-last order.

This is the mapping of the CuPy kernel that most optical flow code has copied. It has a forward pass only, for windows of one
pixel and stride 1. Copying the inputs is part of the timed work, as it is there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cupycorr._correlation.problem import Problem
from cupycorr._gpu.device import import_cupy

from . import device_code
from .cases import Case, positions_read

THREADS = 32
MOST_CHANNELS = 48 * 2**10 // 4  # the float32 channels of a pixel that fit shared memory


def why_not(case: Case, dtype: str, which: str) -> str | None:
    """Return why it cannot run a case, None where it can."""
    p = case.problem.parameters
    if which != "forward":
        return "forward only"
    if dtype != "float32":
        return "float32 only"
    if p.kernel_size != (1, 1) or p.stride != (1, 1):
        return "windows of one pixel and stride 1 only"
    return None if case.problem.channels <= MOST_CHANNELS else f"at most {MOST_CHANNELS} channels"


def correlate(input1: Any, input2: Any, problem: Problem) -> Any:
    """Return the correlation of two CuPy arrays."""
    frame1, frame2 = (_channels_last(x, problem, which) for which, x in enumerate((input1, input2), 1))
    out = import_cupy().empty(problem.out_shape, np.float32)
    batch, patch_y, patch_x, rows, columns = problem.out_shape
    _, height2, width2, channels = frame2.shape
    numbers = (channels, height2, width2, patch_y, patch_x, problem.vertical.step, problem.horizontal.step)
    arguments = (frame1, frame2, out, *map(np.int32, numbers), np.float32(problem.parameters.scale))
    kernel = device_code.function("pixel_blocks.cu")
    kernel((columns, rows, batch), (THREADS,), arguments, shared_mem=4 * channels)
    return out


def _channels_last(x: Any, problem: Problem, which: int) -> Any:
    """Return an input as (batch, row, column, channel), cropped or zero-padded to the positions that are read."""
    read = [positions_read(axis, which) for axis in (problem.vertical, problem.horizontal)]
    frame = import_cupy().zeros((problem.batch, *(length for _, length in read), problem.channels), x.dtype)
    inside = [slice(max(-before, 0), max(length - before, 0)) for before, length in read]
    image = x.transpose(0, 2, 3, 1)[:, inside[0], inside[1]]
    begins = [max(before, 0) for before, _ in read]
    rows, columns = (slice(begin, begin + size) for begin, size in zip(begins, image.shape[1:3], strict=True))
    frame[:, rows, columns] = image
    return frame
