"""The definition in NumPy, forward and gradients: one slice of each image for each displacement and each tap.

    out[b, m, n, i, j] = scale * sum over c, u, v of X1[b, c, y, x] * X2[b, c, y + dy(m), x + dx(n)]
    with  y = i sH - aH + u dH,   x = j sW - aW + v dW,   both positions inside their images

The gradients sum over the same pairs of slices with the roles exchanged. Channels are split into ranges, so that no array here is
larger than a fraction of the workspace unless one channel of one sample is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from .._cpu import workers
from .._dispatch import FORWARD, Request
from .._dtypes import LONGEST_CHAIN, element_type, element_type_called
from .._gpu.device import Device
from .problem import Axis, Problem, lattice_inside

PART_BYTES = workers.WORKSPACE // 8  # of each copy of a part of an image

# Estimates for the cost model: seconds of a pair of slices, of a row of products, of a product, of an element of the result, and
# of a tap of one axis at one displacement.
_SLICES, _ROW, _ELEMENT, _WRITTEN, _TAP = 25e-6, 30e-9, 1.6e-9, 1e-9, 2e-6


@np.errstate(all="ignore")
def forward(problem: Problem, input1: np.ndarray, input2: np.ndarray, out: np.ndarray) -> None:
    """Write the correlation of ``input1`` and ``input2`` into ``out``."""
    accumulator = element_type("input1", input1.dtype).accumulator_dtype
    scale = accumulator.type(problem.parameters.scale)
    _, _, _, height, width = problem.out_shape
    most = min(max(PART_BYTES // (height * width * accumulator.itemsize), 1), LONGEST_CHAIN.reference)
    vertical, horizontal = _by_displacement(problem.vertical), _by_displacement(problem.horizontal)
    out[...] = 0
    for sample, (m, rows), (n, columns) in product(range(problem.batch), vertical.items(), horizontal.items()):
        total = np.zeros((height, width), accumulator)
        for (outputs, *at), (other_outputs, *other_at) in product(rows, columns):
            here, there = ((slice(None), *both) for both in zip(at, other_at, strict=True))
            for c in range(0, problem.channels, most):
                left, right = (x[sample, c : c + most] for x in (input1, input2))
                left, right = left[here].astype(accumulator, order="C"), right[there].astype(accumulator, order="C")
                total[outputs, other_outputs] += np.einsum("cij,cij->ij", left, right)
        total *= scale
        np.copyto(out[sample, m, n], total, casting="unsafe")


@np.errstate(all="ignore")
def gradient(problem: Problem, cotangent: np.ndarray, other: np.ndarray, result: np.ndarray, side: int) -> None:
    """Fill the gradient of input1 (side 0) or input2 (side 1), a sum over the other image."""
    accumulator = element_type("input1", result.dtype).accumulator_dtype
    scale = accumulator.type(problem.parameters.scale)
    batch, channels, height, width = result.shape
    most = max(PART_BYTES // (height * width * accumulator.itemsize), 1)
    vertical, horizontal = _by_displacement(problem.vertical), _by_displacement(problem.horizontal)
    for sample, c in product(range(batch), range(0, channels, most)):
        part = slice(c, c + most)
        total = np.zeros((min(most, channels - c), height, width), accumulator)
        for (m, rows), (n, columns) in product(vertical.items(), horizontal.items()):
            for (outputs, *at), (other_outputs, *other_at) in product(rows, columns):
                here, there = ((slice(None), *both) for both in zip(at, other_at, strict=True))
                target, source = (here, there) if side == 0 else (there, here)
                g = cotangent[sample, m, n, outputs, other_outputs].astype(accumulator, order="C")
                total[target] += g * other[sample, part][source].astype(accumulator, order="C")
        total *= scale
        np.copyto(result[sample, part], total, casting="unsafe")


@lru_cache(64)
def _by_displacement(axis: Axis) -> dict[int, list[tuple[slice, slice, slice]]]:
    """Return by displacement index the slices of outputs, input1 and input2 that belong together, one triple for each tap."""
    found: dict[int, list[tuple[slice, slice, slice]]] = {}
    for m, displacement in enumerate(axis.displacements):
        low, high = max(0, -displacement), min(axis.size1, axis.size2 - displacement)
        for u in range(axis.kernel):
            first = u * axis.dilation - axis.padding
            begin, end = lattice_inside(first, axis.stride, axis.out, low, high)
            if begin < end:
                start, stop = first + axis.stride * begin, first + axis.stride * (end - 1) + 1
                here = slice(start, stop, axis.stride)
                there = slice(start + displacement, stop + displacement, axis.stride)
                found.setdefault(m, []).append((slice(begin, end), here, there))
    return found


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """The definition as the plan of a request."""

    request: Request
    seconds: float
    workspace: int
    algorithm: str = "reference"
    description: str = "the definition, tap by tap"

    def run(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Compute the output or the needed gradients."""
        problem, images = self.request.problem, (arrays["input1"], arrays["input2"])
        if self.request.pass_name == FORWARD:
            forward(problem, *images, arrays["out"])
            return
        for side, needed in enumerate(self.request.needs):
            if needed:
                gradient(problem, arrays["cotangent"], images[1 - side], arrays[f"gradient{side + 1}"], side)


def plan(request: Request, device: Device | None) -> ReferencePlan:
    """Return the plan of a request."""
    return ReferencePlan(request, _seconds(request), _workspace(request))


def _workspace(request: Request) -> int:
    """Return the most bytes that a map takes beside its result: one part of each image, and the sums of one displacement."""
    problem, itemsize = request.problem, np.dtype(element_type_called("dtype", request.dtype).accumulator).itemsize
    if request.pass_name == FORWARD:
        plane = math.prod(problem.out_shape[3:])
    else:
        plane = max(math.prod(problem.size1), math.prod(problem.size2))
    return 3 * max(min(PART_BYTES, plane * itemsize * problem.channels), plane * itemsize)


def _seconds(request: Request) -> float:
    """Estimate the seconds of an answer in one thread; infinity where it does not stay within the workspace."""
    if _workspace(request) > workers.WORKSPACE:
        return math.inf
    problem = request.problem
    (pairs_h, rows), (pairs_w, columns) = _taps_inside(problem.vertical), _taps_inside(problem.horizontal)
    element = element_type_called("dtype", request.dtype)
    slow = _ELEMENT * (2 if element.itemsize != 4 else 1)
    products = problem.batch * problem.channels * rows * (pairs_w * _ROW + columns * slow)
    taps = sum(axis.kernel * axis.patch for axis in (problem.vertical, problem.horizontal)) * _TAP
    if request.pass_name == FORWARD:
        calls = problem.batch * -(-problem.channels // LONGEST_CHAIN.reference) * pairs_h * pairs_w * _SLICES
        return taps + calls + products + problem.outputs * _WRITTEN
    calls = problem.batch * pairs_h * pairs_w * _SLICES
    pixels = sum(math.prod(size) for size, needed in zip((problem.size1, problem.size2), request.needs, strict=True) if needed)
    written = problem.batch * problem.channels * pixels * 3 * _WRITTEN * np.dtype(element.accumulator).itemsize / 4
    return taps + sum(request.needs) * (calls + products) + written


_taps_inside = lru_cache(1024)(Axis.taps_inside)
