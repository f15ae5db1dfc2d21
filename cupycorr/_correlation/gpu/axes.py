"""One axis of the correlation as kernels see it: numbers that are bounded, whatever the caller passed.

No kernel computes a position that its integers cannot hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from ..problem import Axis, Problem, lattice_inside

_LARGEST = 2**62  # positions beyond it, or sums of two, may exceed 64 bits


@dataclass(frozen=True, slots=True)
class Line:
    """One axis as kernels see it; make it with `line`.

    Tap ``u`` of output ``i`` is at position ``z - padding`` with ``z = i stride + u dilation``; patch index ``m`` displaces it
    by ``first + m step``.
    """

    size1: int
    size2: int
    patch: int
    first: int
    step: int
    out: int
    kernel: int
    stride: int
    dilation: int
    padding: int

    @property
    def span(self) -> int:
        """The number of positions from the first tap of the first output to the last tap of the last."""
        return (self.out - 1) * self.stride + (self.kernel - 1) * self.dilation + 1

    @property
    def reach(self) -> int:
        """A bound on the magnitude of every position that a kernel computes."""
        displaced = max(abs(self.first), abs(self.first + self.patch * self.step))
        return displaced + abs(self.padding) + self.span + self.dilation + self.size1 + self.size2

    @property
    def window(self) -> dict[str, int]:
        """The fields of ``Window`` in window.cuh, in order."""
        common = math.gcd(self.stride, self.dilation)
        tap_step, output_step = self.stride // common, self.dilation // common
        return {
            "kernel": self.kernel,
            "out": self.out,
            "common": common,
            "inverse": pow(output_step, -1, tap_step),
            "tap_step": tap_step,
            "output_step": output_step,
        }

    @property
    def window_reach(self) -> int:
        """A bound on the products that a kernel computes to find the taps of an output."""
        tap_step = self.stride // math.gcd(self.stride, self.dilation)
        return tap_step * tap_step

    def pixelwise(self) -> Line:
        """Return an axis with an output of one tap at each of the positions that the windows span."""
        return replace(self, out=self.span, kernel=1, stride=1, dilation=1)

    def displacements(self, begin: int, count: int) -> Line:
        """Return the axis with patch indices ``[begin, begin + count)`` only."""
        return replace(self, first=self.first + begin * self.step, patch=count)


WINDOW = ("kernel", "out", "common", "inverse", "tap_step", "output_step")  # fields of ``Window`` in window.cuh


def line(axis: Axis) -> Line:
    """Return an axis with every number that cannot affect the result replaced by a small one."""
    first, step = _displacements(axis)
    stride = 1 if axis.out == 1 else axis.stride
    dilation = 1 if axis.kernel == 1 else axis.dilation
    return Line(axis.size1, axis.size2, axis.patch, first, step, axis.out, axis.kernel, stride, dilation, axis.padding)


def lines(problem: Problem) -> tuple[Line, Line]:
    """Return the vertical and the horizontal axis of a problem."""
    return line(problem.vertical), line(problem.horizontal)


def _displacements(axis: Axis) -> tuple[int, int]:
    """Return the first displacement and the step.

    Displacements at which the images do not overlap may be replaced by others at which they do not.
    """
    begin, end = lattice_inside(axis.first_displacement, axis.step, axis.patch, 1 - axis.size1, axis.size2)
    if begin == end:
        return axis.size2, 0
    if end - begin > 1:
        return axis.first_displacement, axis.step
    step = min(axis.step, axis.size1 + axis.size2)
    return axis.first_displacement + begin * (axis.step - step), step


@lru_cache(1024)
def out_of_reach(problem: Problem) -> str | None:
    """Return why 64-bit integers cannot hold the positions of a problem, or None if they can."""
    axes = [line(axis) for axis in (problem.vertical, problem.horizontal)]
    farthest = max(max(axis.reach, axis.window_reach) for axis in axes)
    return None if farthest < _LARGEST else f"positions of up to {farthest} pixels do not fit into 64-bit integers"
