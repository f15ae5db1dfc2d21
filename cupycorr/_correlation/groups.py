"""Requests with groups or with descending displacements, planned as requests without them on views of the same arrays.

Each group of channels is a sample, and displacements that descend are ascending ones in reverse, so that no kernel and no engine
knows either. Views never copy: where the groups of all samples are not evenly spaced in memory, as in a batch of channels-last
images, each sample is computed by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .._dispatch import Plan, Request, WhyNot, array_names
from .._gpu.call import Call
from .._gpu.device import Device
from .._gpu.layout import Layout
from .._gpu.plan import Plan as GpuPlan
from .problem import Problem

MakePlan = Callable[[Request, Any], Plan]
MakeGpuPlan = Callable[[Request, Any], GpuPlan]


def with_groups(why_not: WhyNot) -> WhyNot:
    """Return the predicate for requests with groups, from one for requests without."""

    def why_not_each(request: Request, device: Device | None) -> str | None:
        return why_not(request if is_simple(request.problem) else _without_groups(request), device)

    return why_not_each


def on_cpu(make_plan: MakePlan) -> MakePlan:
    """Return the planner of requests with groups on NumPy arrays, from one of requests without."""

    def make(request: Request, device: Device | None) -> Plan:
        if is_simple(request.problem):
            return make_plan(request, device)
        return _CpuPlan(make_plan, request, device)

    return make


def on_gpu(make_plan: MakeGpuPlan) -> MakeGpuPlan:
    """Return the planner of requests with groups on a GPU, from one of requests without."""

    def make(request: Request, device: Device) -> GpuPlan:
        if is_simple(request.problem):
            return make_plan(request, device)
        return _gpu_plan(make_plan, request, device)

    return make


def is_simple(problem: Problem) -> bool:
    """Return whether a problem has one group and ascending displacements."""
    return problem.parameters.groups == 1 and not any(problem.descends)


def _without_groups(request: Request) -> Request:
    """Return the request for all samples together, on arrays without gaps."""
    problem = request.problem
    simple = request._replace(problem=problem.without_groups(problem.batch * problem.parameters.groups))
    return simple.dense(*request.orders) if request.layouts else simple


# Views ------------------------------------------------------------------------------------------------------------------------


def _evenly_spaced(array: np.ndarray, groups: int) -> bool:
    """Return whether one stride leads from each group of channels to the next, also from sample to sample."""
    batch, channels = array.shape[:2]  # in a volume (B, G, PH, PW, oH, oW) each group has one element here
    return batch <= 1 or bool(array.strides[0] == channels * array.strides[1])


def _views(array: np.ndarray, problem: Problem, together: bool) -> Iterator[np.ndarray]:
    """Yield an image or a volume with its groups as samples and its displacements in ascending order: all samples, or each."""
    groups, is_image = problem.parameters.groups, array.ndim == 4
    for part in (array,) if together else (array[sample : sample + 1] for sample in range(len(array))):
        view = part
        if groups > 1:
            axes = (part.shape[1] // groups, *part.shape[2:]) if is_image else part.shape[2:]
            view = part.reshape(len(part) * groups, *axes)
        if not is_image:
            rows, columns = (slice(None, None, -1 if descends else 1) for descends in problem.descends)
            view = view[:, rows, columns]
        yield view


def _are_together(arrays: Sequence[np.ndarray], groups: int) -> bool:
    return groups == 1 or all(_evenly_spaced(array, groups) for array in arrays)


def _unreadable(layout: Layout) -> np.ndarray:
    """Return an array with a layout's shape and strides, in elements, to make views of; none of its elements is there."""
    return np.lib.stride_tricks.as_strided(np.empty(1, np.int8), layout.shape, layout.strides)


def _layout_of(array: np.ndarray, dtype: str) -> Layout:
    strides = (0 if size <= 1 else stride for size, stride in zip(array.shape, array.strides, strict=True))
    return Layout(dtype, array.shape, tuple(strides))


# Plans ------------------------------------------------------------------------------------------------------------------------


class _CpuPlan:
    """The plan of a request with groups on NumPy arrays, whose memory is known only when it runs.

    It is described and priced as if the groups of all samples were evenly spaced.
    """

    def __init__(self, make_plan: MakePlan, request: Request, device: Device | None) -> None:
        self._make_plan, self._request, self._device = make_plan, request, device
        problem = request.problem
        self._together = self._plan_of(problem.batch * problem.parameters.groups)
        self.algorithm, self.description = self._together.algorithm, self._together.description
        self.seconds, self.workspace = self._together.seconds, self._together.workspace

    def _plan_of(self, samples: int) -> Plan:
        request = self._request
        return self._make_plan(request._replace(problem=request.problem.without_groups(samples)), self._device)

    def run(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Read and write the named arrays."""
        problem = self._request.problem
        together = _are_together(list(arrays.values()), problem.parameters.groups)
        plan = self._together if together else self._plan_of(problem.parameters.groups)
        views = (_views(array, problem, together) for array in arrays.values())
        for part in zip(*views, strict=True):
            plan.run(dict(zip(arrays, part, strict=True)))


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a request: its arrays' layouts, None for one that is not there, and the bytes before each in its buffer."""

    layouts: tuple[Layout | None, ...]
    offsets: Mapping[str, int]

    def moved(self, call: Call) -> Call:
        """Return a call on this part's arrays, from one on arrays that begin where their buffers do."""
        pointers = (pointer.at(self.offsets.get(pointer.buffer, 0)) for pointer in call.pointers)
        return replace(call, pointers=tuple(pointers))


def _parts(request: Request) -> list[_Part]:
    problem, names = request.problem, array_names(request.pass_name, request.problem.inputs)
    arrays = {name: (at, _unreadable(at)) for name, at in zip(names, request.layouts, strict=True) if at is not None}
    together = _are_together([array for _, array in arrays.values()], problem.parameters.groups)
    views = [list(_views(array, problem, together)) for _, array in arrays.values()]
    parts = []
    for part in zip(*views, strict=True):
        layouts: dict[str, Layout] = {}
        offsets: dict[str, int] = {}
        for (name, (whole, array)), view in zip(arrays.items(), part, strict=True):
            layouts[name] = _layout_of(view, whole.dtype)
            offsets[name] = (_address(view) - _address(array)) * whole.itemsize
        parts.append(_Part(tuple(layouts.get(name) for name in names), offsets))
    return parts


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _gpu_plan(make_plan: MakeGpuPlan, request: Request, device: Device) -> GpuPlan:
    """Return the plan of a request with groups: that of its first part, which all parts run one after the other."""
    problem, parts = request.problem, _parts(request)
    if not parts:  # an empty batch
        return GpuPlan("direct", "nothing to do", 0.0, 0, tuple, device.index)
    samples = problem.parameters.groups if len(parts) > 1 else problem.batch * problem.parameters.groups
    first = make_plan(request._replace(problem=problem.without_groups(samples), layouts=parts[0].layouts), device)
    description = first.description + (", each sample by itself" if len(parts) > 1 else "")
    return replace(
        first,
        description=description,
        seconds=len(parts) * first.seconds,
        make_calls=lambda: (part.moved(call) for part in parts for call in first.calls),
    )
