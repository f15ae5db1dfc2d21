"""Descending displacements, planned as ascending ones between mirrored images.

Where both images are mirrored along an axis, a point x of width W is at W - 1 - x, and a displacement d between images of widths
W1 and W2 is (W2 - W1) - d: displacements that descend ascend, under the same indices and channels. Views of the same arrays are
mirrored, so that nothing is copied and no engine knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .._correlation.problem import Axis
from .._correlation.problem import Problem as Correlation
from .._dispatch import Plan, Request, WhyNot
from .._gpu.device import Device
from .problem import Problem

MakePlan = Callable[[Request, Any], Plan]


def why_not_mirrored(why_not: WhyNot) -> WhyNot:
    """Return the predicate for requests of any direction, from one for requests whose displacements ascend."""

    def why_not_any(request: Request, device: Device | None) -> str | None:
        problem: Problem = request.problem
        if not any(problem.correlation.descends):
            return why_not(request, device)
        return _why_not(problem.correlation) or why_not(_mirrored_request(request), device)

    return why_not_any


def on_cpu(make_plan: MakePlan) -> MakePlan:
    """Return the planner of requests of any direction on NumPy arrays, from one of requests whose displacements ascend."""

    def make(request: Request, device: Device | None) -> Plan:
        if not any(request.problem.correlation.descends):
            return make_plan(request, device)
        return _MirroredPlan(make_plan(_mirrored_request(request), device), request.problem.correlation.descends)

    return make


def _why_not(volume: Correlation) -> str | None:
    """Return None, or the reason why a problem cannot be mirrored along the axes whose displacements descend."""
    for axis, descends in zip((volume.vertical, volume.horizontal), volume.descends, strict=True):
        if descends and axis.kernel > 1:
            return "displacements descend with windows, whose taps would be added in another order"
        if descends and _rest(axis):
            return f"displacements descend with a stride of {axis.stride}, and the last position is not at the image's edge"
    return None


def _rest(axis: Axis) -> int:
    """Return the pixels between the last position of a window and the padded image's end."""
    return (axis.size1 + 2 * axis.padding - 1) - (axis.out - 1) * axis.stride if axis.out else 0


def _mirrored_request(request: Request) -> Request:
    return request._replace(problem=mirrored(request.problem))


def mirrored(problem: Problem) -> Problem:
    """Return the problem between images that are mirrored along the axes whose displacements descend.

    It keeps the displacements in pixels, which are those between the images as they were given.
    """
    volume, given = problem.correlation, problem.correlation.parameters
    offsets, steps = list(given.patch_offset or (0, 0)), list(given.dilation_patch)
    for axis, descends in enumerate(volume.descends):
        if descends:
            offsets[axis] = volume.size2[axis] - volume.size1[axis] - offsets[axis]
            steps[axis] = -steps[axis]
    offset = None if given.patch_offset is None else (offsets[0], offsets[1])
    ascending = replace(given, dilation_patch=(steps[0], steps[1]), patch_offset=offset)
    return replace(problem, correlation=replace(volume, parameters=ascending), displacements=problem.ranges)


@dataclass(frozen=True, slots=True)
class _MirroredPlan:
    """A plan for mirrored images, run on views of the images as they were given."""

    mirrored: Plan
    axes: tuple[bool, bool]  # True for each axis that is mirrored

    @property
    def algorithm(self) -> str:
        """The name of the algorithm."""
        return self.mirrored.algorithm

    @property
    def description(self) -> str:
        """The algorithm in words."""
        return f"{self.mirrored.description}, between mirrored images"

    @property
    def seconds(self) -> float:
        """The time by the cost model."""
        return self.mirrored.seconds

    @property
    def workspace(self) -> int:
        """The most bytes beside the results."""
        return self.mirrored.workspace

    def run(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Read and write the named arrays, whose last two axes are those of pixels or positions."""
        rows, columns = (slice(None, None, -1 if mirrors else 1) for mirrors in self.axes)
        self.mirrored.run({name: array[..., rows, columns] for name, array in arrays.items()})
