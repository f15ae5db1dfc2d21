"""The variant ``simd``: kernels of `window_kernel` for blocks of queries, which threads compute.

Tasks write disjoint parts of a result, and each query is computed by itself, so that no bit depends on the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

import numpy as np

from ..._cpu import workers
from ..._dispatch import FORWARD, Request
from ..._dtypes import ELEMENT_TYPES
from ..._gpu.device import Device
from ..._lookup.problem import Axis
from ..._lookup.windows import Block, blocks, of_block, write_block
from ..arrays import Arrays
from ..problem import Problem
from . import window_kernel

PATCH_BYTES = 2**19  # of the patches of a block
SCRATCH_BYTES = 2**22  # of the taps of a vector of queries, at most
THREAD_SECONDS = 3e-4  # a call that takes less by the cost model runs in one thread

# Estimates for the cost model: seconds of a tap and a displacement of a query, and of a byte of the gradient of the volume.
_TAP, _WRITTEN = 2e-9, 0.1e-9


class Lookups:
    """The computation of one call."""

    def __init__(self, request: Request, arrays: Mapping[str, np.ndarray]) -> None:
        self.problem: Problem = request.problem
        self.arrays = Arrays(self.problem, arrays)
        row = ELEMENT_TYPES[request.dtype]
        self.element, self.accumulator = row.name, row.accumulator_dtype
        self.taps = [_offsets(axis) for axis in (self.problem.vertical, self.problem.horizontal)]
        self.numbers = {name: self._numbers(name) for name in ("volume", "gradient_volume") if name in arrays}

    def tasks(self) -> list[tuple[int, Block]]:
        """Return the entry and the block of each task."""
        queries = PATCH_BYTES // (prod(self.problem.parameters.patch_size) * self.accumulator.itemsize)
        return list(product(range(self.problem.entries), blocks(self.problem, queries, self.problem.size1[0])))

    def forward(self, task: tuple[int, Block]) -> None:
        """Write the output of a block."""
        entry, block = task
        with self._patches_of_output(entry, block) as patches:
            self._call(window_kernel.FORWARD, "volume", task, patches, None)

    def gradient_volume(self, task: tuple[int, Block]) -> None:
        """Write the slices of a block of the gradient of the volume."""
        self._call(window_kernel.VOLUME, "gradient_volume", task, self._cotangent(*task), None)

    def gradient_coords(self, task: tuple[int, Block]) -> None:
        """Write the gradient of the coordinates of a block."""
        entry, block = task
        cotangent = self._cotangent(*task)
        result = np.empty((self.problem.coords[1], cotangent.shape[2]), self.accumulator)
        self._call(window_kernel.COORDS, "volume", task, cotangent, result)
        write_block(result, self.arrays.named["gradient_coords"][entry], block)

    def _call(self, what: str, name: str, task: tuple[int, Block], patches: np.ndarray, result: np.ndarray | None) -> None:
        """Call a kernel for the queries of a block and the slices of an array.

        Patches are (PH, PW, queries), the result is (1 or 2, queries).
        """
        entry, block = task
        slices, address = self.arrays.slices(name), window_kernel.address
        coords = of_block(self.arrays.named["coords"][entry], block, self.accumulator)
        steps = [np.arange(part.start, part.stop) * stride for part, stride in zip(block, slices.strides[1:3], strict=True)]
        offsets = np.add.outer(*steps).ravel()
        numbers = self.numbers[name].copy()
        numbers[-len(window_kernel.STRIDES) :] = [
            *(stride // patches.itemsize for stride in patches.strides[:2]),
            coords.shape[1],
        ]
        kernel = window_kernel.kernel(what, self.element, self.accumulator, self.problem.has_rows)
        with workers.scratch((self.problem.taps * window_kernel.lanes(self.accumulator),), self.accumulator) as scratch:
            kernel(
                address(slices) + entry * slices.strides[0],
                address(offsets),
                address(coords),
                *map(address, self.taps),
                address(numbers),
                address(patches),
                address(coords if result is None else result),
                address(scratch),
                len(offsets),
                self.problem.parameters.scale,
            )

    def _numbers(self, name: str) -> np.ndarray:
        """Return the numbers of a call for the slices of an array, in the order of `FIELDS`; the strides of patches are 0."""
        slices = self.arrays.slices(name)
        axes = zip("yx", (self.problem.vertical, self.problem.horizontal), self.problem.size2, slices.strides[3:], strict=True)
        numbers = dict.fromkeys(window_kernel.FIELDS, 0) | {"slice_bytes": prod(self.problem.size2) * slices.itemsize}
        for along, axis, size, stride in axes:
            numbers |= {f"size_{along}": size, f"stride_{along}": stride}
            numbers |= {f"{name}_{along}": getattr(axis, name) for name in window_kernel.OF_AXIS}
        return np.array(list(numbers.values()), np.int64)

    @contextmanager
    def _patches_of_output(self, entry: int, block: Block) -> Iterator[np.ndarray]:
        """Return a context with patches (PH, PW, queries) that are the output of a block at its end: a view of it if possible."""
        place = self.arrays.patches("out")[entry][:, :, block[0], block[1]]
        view = place.reshape(*place.shape[:2], -1)  # a copy where the queries of the block are not at equal distances
        itemsize = self.accumulator.itemsize
        in_place = view.dtype == self.accumulator and view.strides[2] == itemsize and np.may_share_memory(view, place)
        if in_place and not any(stride % itemsize for stride in view.strides):
            yield view
            return
        with workers.scratch(view.shape, self.accumulator) as patches:
            yield patches
            np.copyto(place, patches.reshape(place.shape), casting="unsafe")

    def _cotangent(self, entry: int, block: Block) -> np.ndarray:
        """Return the cotangents (PH, PW, queries) of a block."""
        return of_block(self.arrays.patches("cotangent")[entry], block, self.accumulator)


@lru_cache(64)
def _offsets(axis: Axis) -> np.ndarray:
    """Return the offsets of the taps, in pixels."""
    return np.array([axis.offset(tap) for tap in range(axis.taps)], np.int64)


@dataclass(frozen=True, slots=True)
class SimdPlan:
    """A request by the kernels."""

    request: Request
    seconds: float
    workspace: int = workers.WORKSPACE
    algorithm: str = "simd"

    @property
    def description(self) -> str:
        """The algorithm in words."""
        lanes = window_kernel.lanes(ELEMENT_TYPES[self.request.dtype].accumulator_dtype)
        return f"vectors of {lanes} queries in {self._threads()} thread(s)"

    def _threads(self) -> int:
        return workers.thread_count() if self.seconds >= THREAD_SECONDS else 1

    def run(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Compute the output or the needed gradients."""
        computation = Lookups(self.request, arrays)
        if self.request.pass_name == FORWARD:
            passes = [computation.forward]
        else:
            gradients = (computation.gradient_volume, computation.gradient_coords)
            passes = [write for write, needed in zip(gradients, self.request.needs, strict=True) if needed]
        for write in passes:
            workers.run(write, computation.tasks(), self._threads())


def why_not(request: Request, device: Device | None) -> str | None:
    """Return None, or the reason why no kernel can answer a request."""
    size = request.problem.taps * window_kernel.VECTOR_BYTES
    if size > SCRATCH_BYTES:
        return f"windows of {request.problem.taps} taps need {size} bytes of scratch memory, more than {SCRATCH_BYTES}"
    return window_kernel.why_not()


def plan(request: Request, device: Device | None) -> SimdPlan:
    """Return the plan of a request."""
    geometry: Problem = request.problem
    passes = 1 if request.pass_name == FORWARD else sum(request.needs)
    row = ELEMENT_TYPES[request.dtype]
    seconds = geometry.queries * geometry.taps * _TAP * passes
    if request.pass_name != FORWARD and request.needs[0]:
        seconds += prod(geometry.volume) * row.itemsize * _WRITTEN
    return SimdPlan(request, seconds)
