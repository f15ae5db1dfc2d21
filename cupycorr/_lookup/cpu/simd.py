"""The variant ``simd``: kernels that LLVM compiles for this machine, one for each step of a lookup.

    packing  ->  windows  ->  dot products  ->  blend

`simd_forward` computes the output, `simd_gradients` the gradients. Results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..._cpu import llvm, workers
from ..._dispatch import FORWARD, Request
from ..._dtypes import ELEMENT_TYPES
from ..._gpu.device import Device
from . import simd_gradients
from .dot_kernel import SEGMENT
from .simd_forward import Forward
from .tables import MAPS, Sizes

THREAD_SECONDS = 1e-3  # a call that takes less by the cost model runs in one thread

# The cost model, in seconds of one thread.
CALL, TASK_CALL = 150e-6, 20e-6  # a call, and a task of it
PACKED = 0.2e-9  # a packed byte
ROW, VECTOR = 15e-9, 0.3e-9  # a row of taps of a query, and a vector of channels of a tap
BLENDED, CONVERTED = 2e-9, 10e-9  # an output, and one of another dtype than the sums'

# The gradients of input1, input2 and coords, in words.
_OF_GRADIENTS = "sums over windows for input1", "sums over queries for input2", "slopes of dot products for coords"


def why_not(request: Request, device: Device | None) -> str | None:
    """Return the reason why the variant cannot answer a request, or None."""
    sizes = _sizes(request)
    if request.pass_name != FORWARD:
        return simd_gradients.why_not(sizes.problem, sizes.accumulator) or llvm.why_not()
    if sizes.task_bytes > workers.WORKSPACE - sizes.shared_bytes:
        return f"the window of a query has {sizes.query_bytes} bytes of dot products, too many for the workspace"
    widest = max(width for _, width in request.problem.sizes2)
    if widest * SEGMENT > MAPS:
        return f"a row of input2 has {widest} pixels, needs at most {MAPS // SEGMENT}"
    return llvm.why_not()


@dataclass(frozen=True, slots=True)
class SimdPlan:
    """A request by kernels."""

    request: Request
    seconds: float
    threads: Callable[[], int]
    workspace: int = workers.WORKSPACE
    algorithm: str = "simd"

    @property
    def description(self) -> str:
        """The algorithm in words."""
        what = _computed(self.request)
        widest = max(llvm.registers().widths)
        return (
            f"{what} in {8 * widest}-bit vectors of channels, in {self.threads()} thread(s)" if what else "no gradient is needed"
        )

    def run(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Compute the output or the needed gradients."""
        threads = self.threads() if self.seconds >= THREAD_SECONDS else 1
        if self.request.pass_name == FORWARD:
            Forward(self.request, arrays, threads).run()
        else:
            simd_gradients.compute(self.request, arrays, threads)


def _computed(request: Request) -> str:
    """Return what is computed, in words; empty where no gradient is needed."""
    if request.pass_name == FORWARD:
        return "dot products"
    first, *levels, coords = request.needs
    return ", ".join(words for words, needed in zip(_OF_GRADIENTS, (first, any(levels), coords), strict=True) if needed)


def plan(request: Request, device: Device | None) -> SimdPlan:
    """Return the plan of a request."""
    sizes = _sizes(request)
    if request.pass_name != FORWARD:
        return _gradient_plan(request, sizes)
    most = max((workers.WORKSPACE - sizes.shared_bytes) // sizes.task_bytes, 1)
    return SimdPlan(request, _seconds(request, sizes), lambda: min(workers.thread_count(), most))


def _gradient_plan(request: Request, sizes: Sizes) -> SimdPlan:
    most = simd_gradients.most_threads(sizes.problem, sizes.accumulator)
    return SimdPlan(request, simd_gradients.seconds(request, sizes.accumulator), lambda: min(workers.thread_count(), most))


def _sizes(request: Request) -> Sizes:
    return Sizes(request.problem, ELEMENT_TYPES[request.dtype].accumulator_dtype)


def _seconds(request: Request, sizes: Sizes) -> float:
    """Estimate the seconds of an answer in one thread, where all windows are inside and all arrays have to be packed."""
    problem, layout = request.problem, sizes.layout
    windows = problem.queries * problem.levels
    vectors = sizes.channels * sizes.item / max(llvm.registers().widths)
    packed = (
        sizes.channels
        * sizes.item
        * (problem.batch1 * problem.size1[0] * problem.size1[1] + problem.batch2 * sum(h * w for h, w in problem.sizes2))
    )
    dots = windows * layout.rows * layout.groups * (ROW + layout.width * vectors * VECTOR)
    written = BLENDED if request.result_dtype == sizes.accumulator.name else BLENDED + CONVERTED
    return CALL + windows / sizes.task_queries * TASK_CALL + packed * PACKED + dots + problem.outputs * written
