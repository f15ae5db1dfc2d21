"""The definition in NumPy, forward and vjp: slow and obvious, one slice for each displacement and each tap.

    out[b, m, n, i, j] = scale * sum over c, u, v of X1[b, c, y, x] * X2[b, c, y + dy(m), x + dx(n)]
    with  y = i sH - aH + u dH,   x = j sW - aW + v dW,   both positions inside their images

The gradients are the same pairs of slices with the roles exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from .._dtypes import element_type
from .._problem import Axis, Problem, lattice_inside

TERMS = 256  # channels summed end to end: a longer run would lose digits


@np.errstate(all="ignore")
def forward(problem: Problem, input1: np.ndarray, input2: np.ndarray, out: np.ndarray) -> None:
    """Write the correlation of ``input1`` and ``input2`` into ``out``."""
    accumulator = element_type("input1", input1.dtype).accumulator_dtype
    total = np.zeros(problem.out_shape, accumulator)
    for displacement, outputs, at1, at2 in _meetings(problem):
        left, right = input1[(..., *at1)].astype(accumulator, order="C"), input2[(..., *at2)].astype(accumulator)
        for c in range(0, problem.channels, TERMS):
            sums = np.einsum("bcij,bcij->bij", left[:, c : c + TERMS], right[:, c : c + TERMS])
            total[(slice(None), *displacement, *outputs)] += sums
    total *= accumulator.type(problem.parameters.scale)
    np.copyto(out, total, casting="unsafe")


@np.errstate(all="ignore")
def vjp(
    problem: Problem,
    cotangent: np.ndarray,
    input1: np.ndarray,
    input2: np.ndarray,
    needs: tuple[bool, bool],
    gradients: tuple[np.ndarray | None, np.ndarray | None],
) -> None:
    """Fill the ``gradients`` of ``<cotangent, forward(input1, input2)>`` that ``needs`` asks for; the others may be None."""
    accumulator = element_type("input1", input1.dtype).accumulator_dtype
    totals = [np.zeros(x.shape, accumulator) for x in (input1, input2)]
    for displacement, outputs, at1, at2 in _meetings(problem):
        g = cotangent[(slice(None), None, *displacement, *outputs)].astype(accumulator, order="C")
        for needed, total, here, other, there in zip(needs, totals, (at1, at2), (input2, input1), (at2, at1), strict=True):
            if needed:
                total[(..., *here)] += g * other[(..., *there)].astype(accumulator, order="C")
    scale = accumulator.type(problem.parameters.scale)
    for needed, total, gradient in zip(needs, totals, gradients, strict=True):
        if needed:
            np.copyto(gradient, total * scale, casting="unsafe")


def _meetings(problem: Problem) -> Iterator[tuple[tuple[int, int], tuple[slice, slice], tuple, tuple]]:
    """For each displacement and tap: the displacement's index and the slices of outputs, of input1 and of input2 that meet."""
    for vertical, horizontal in product(_axis_meetings(problem.vertical), _axis_meetings(problem.horizontal)):
        yield tuple(zip(vertical, horizontal, strict=True))


def _axis_meetings(axis: Axis) -> list[tuple[int, slice, slice, slice]]:
    found = []
    for m, displacement in enumerate(axis.displacements):
        low, high = max(0, -displacement), min(axis.size1, axis.size2 - displacement)
        for u in range(axis.kernel):
            first = u * axis.dilation - axis.padding
            begin, end = lattice_inside(first, axis.stride, axis.out, low, high)
            if begin < end:
                start, stop = first + axis.stride * begin, first + axis.stride * (end - 1) + 1
                here = slice(start, stop, axis.stride)
                there = slice(start + displacement, stop + displacement, axis.stride)
                found.append((m, slice(begin, end), here, there))
    return found


def how(problem: Problem) -> str:
    """The route in words."""
    return "the definition, tap by tap"


def workspace(problem: Problem, accumulator: str) -> int:
    """Bytes that the forward map takes beside its result: the sums of all outputs."""
    return problem.outputs * np.dtype(accumulator).itemsize
