"""The gradients of the variant ``simd``: which of them can be computed, how long they take, and the passes of a call.

    windows  ->  factors of dots  ->  gather (input1, coords) or scatter (input2)

`gather_gradients` and `scatter_gradient` compute them, `gradient_queries` has what these share. For the gradients of the maps,
the windows of several lookups of a pixel are joined (`joined_windows`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from math import prod

import numpy as np

from ..._cpu import workers
from ..._cpu.llvm import VECTOR_BYTES
from ..._dispatch import Request
from ..._dtypes import element_type
from ..problem import Problem
from ..windows import Arrays
from . import gather_gradients, scatter_gradient
from .gather_gradients import Gather
from .gradient_kernels import lanes_of
from .gradient_queries import KEPT, ROWS, QueryBlocks, block_queries
from .joined_windows import joins
from .scatter_gradient import Scatter, query_bytes

SHARED = max(gather_gradients.MAPS + gather_gradients.TOTALS, scatter_gradient.MAPS + scatter_gradient.CHUNK) + KEPT

# The cost model, in seconds of one thread.
CALL, BLOCK = 150e-6, 80e-6  # a gradient, and a block of queries at a level
TAP = 1.2e-9  # a tap of a window: its factor, and the loop
GATHERED, SCATTERED = 0.4e-9, 0.55e-9  # a vector of the channels of a tap
JOINED = 0.4  # the positions of the joined windows of several lookups, over those of all of their windows
SHARING = 1.4  # two sums with one load of a vector are faster than two gathers by this factor
PACKED = 0.35e-9  # a packed byte, or one of a result


def why_not(problem: Problem, accumulator: np.dtype) -> str | None:
    """Return the reason why gradients cannot be computed, or None."""
    block = block_queries(problem, accumulator) * query_bytes(problem, accumulator)
    if max(2, problem.levels) * block > scatter_gradient.CHUNK:
        return f"the windows of a few queries have {block} bytes at a level, too many for the workspace"
    return None


def most_threads(problem: Problem, accumulator: np.dtype) -> int:
    """Return the most threads whose memory fits into the workspace."""
    block = block_queries(problem, accumulator) * query_bytes(problem, accumulator)
    return max((workers.WORKSPACE - SHARED) // (4 * block + gather_gradients.PIXELS), 1)


def compute(request: Request, arrays: Mapping[str, np.ndarray], threads: int) -> None:
    """Compute the needed gradients."""
    problem: Problem = request.problem
    full = Arrays(problem, arrays).full(arrays["cotangent"])
    queries = QueryBlocks(problem, arrays, [full[:, :, lookup] for lookup in range(problem.lookups)], threads)
    *maps, coords = request.needs
    _compute_maps(queries, maps)
    if coords:
        Gather(queries).gradient_coords()


def compute_together(
    problem: Problem,
    arrays: Mapping[str, np.ndarray],
    coords: Sequence[np.ndarray],
    cotangents: Sequence[np.ndarray],
    needs: Sequence[bool],
) -> None:
    """Compute the gradients of the maps from several lookups of one problem, each with coordinates and a cotangent of its own.

    ``needs`` has a bool for input1 and each level of input2; ``arrays`` are the maps and the gradients, by the problem's names.
    """
    shape = problem.operands.coords[0], len(coords), *problem.operands.coords[-3:]
    together = Problem(problem.parameters, replace(problem.operands, coords=shape))
    named = {**arrays, "coords": np.stack([each.reshape(problem.operands.coords) for each in coords], 1)}
    views = [
        Arrays(problem, {**arrays, "coords": each}).full(cotangent)[:, :, 0]
        for each, cotangent in zip(coords, cotangents, strict=True)
    ]
    accumulator = element_type("input1", arrays["input1"].dtype).accumulator_dtype
    threads = min(workers.thread_count(), most_threads(together, accumulator))
    _compute_maps(QueryBlocks(together, named, views, threads), needs)


def _compute_maps(queries: QueryBlocks, needs: Sequence[bool]) -> None:
    first, *levels = needs
    needed = [level for level, wanted in enumerate(levels) if wanted]
    with queries.keeping() if first and needed else nullcontext():
        if first:
            Gather(queries).gradient1()
        if needed:
            Scatter(queries).gradient2(needed)


def seconds(request: Request, accumulator: np.dtype) -> float:
    """Estimate the seconds of the needed gradients in one thread, where all windows are inside the maps."""
    problem: Problem = request.problem
    height, width = problem.size1
    vectors = -(-problem.channels // lanes_of(accumulator))
    pixels, maps = (VECTOR_BYTES * vectors * each for each in (height * width, sum(map(prod, problem.sizes2))))
    blocks = height * width / min(block_queries(problem, accumulator), ROWS * width)
    windows = problem.entries * problem.lookups * problem.levels * max(blocks, 1.0) * BLOCK + problem.dots * TAP
    first, *levels, coords = request.needs
    products = problem.dots * vectors * (JOINED if joins(problem) else 1.0)
    estimate = 0.0
    if first:
        packed = problem.entries * maps + problem.batch1 * pixels
        estimate += CALL + windows + products * GATHERED + packed * PACKED
    if any(levels):
        packed = problem.batch2 * maps + problem.entries * problem.lookups * pixels
        share = sum(levels) / len(levels)
        estimate += CALL + share * (windows + products * SCATTERED + packed * PACKED)
    if coords:
        packed = problem.entries * (maps + pixels)
        sums = 2 if problem.has_rows else 1
        estimate += CALL + windows + problem.dots * vectors * sums * GATHERED / SHARING + packed * PACKED
    return estimate
