"""The operands of a request as the lookup's kernels see them: arrays with every axis, and the numbers of one level.

The parameters here are those of the macros at the end of ``query.cuh``; several kernels have them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..._dispatch import Request, array_names
from ..._dtypes import ELEMENT_TYPES, ElementType
from ..._gpu.call import NOWHERE, Array, Pointer, strides
from ..._gpu.device import Device
from ..._gpu.layout import Layout
from ..problem import DY_FIRST, Axis, Problem

COORDS_AXES = ("entry", "lookup", "channel", "row", "column")
LEVEL_AXES = ("entry", "lookup", "m", "n", "row", "column")  # of one level of an output or a cotangent

_AXIS = {"size": "Index", "patch": "Index", "first": "Index", "step": "Index", "corners": "int"}

COORDS = {**strides("coords", COORDS_AXES, "Index"), "channels_coords": "int", "factor_y": "Sum", "factor_x": "Sum"}
ENTRIES = {
    name: c_type
    for k in (1, 2)
    for name, c_type in ((f"stride_index{k}", "Index"), (f"bytes_index{k}", "int"), (f"images{k}", "Index"))
}
AXES = {f"{name}_{along}": c_type for along in "yx" for name, c_type in _AXIS.items()}


@dataclass(frozen=True, slots=True)
class Window:
    """One axis of the windows as kernels see it: the size of the map, and the displacements."""

    size: int
    patch: int
    first: int
    step: int
    corners: int

    @property
    def reach(self) -> int:
        """A bound on the magnitude of every position that a kernel computes, and of every sum of two of them."""
        return 2 * (self.size + (self.patch + 1) * self.step + self.corners) + self.patch * self.corners


def window(axis: Axis, size: int) -> Window:
    """Return an axis, whose step is a small number if it cannot affect the result."""
    return Window(size, axis.patch, axis.first, 1 if axis.patch == 1 else axis.step, axis.corners)


@dataclass(frozen=True)
class Operands:
    """The arrays of a request on a device.

    Attributes
    ----------
    arrays
        The layout and the address of each array by its name; coords and their gradient have the axis K.
    """

    problem: Problem
    arrays: Mapping[str, Array]
    device: Device

    @property
    def accumulator(self) -> np.dtype[Any]:
        """The dtype of the sums."""
        return self.input1[0].accumulator

    @property
    def input1(self) -> Array:
        """The array of input1."""
        return self.arrays["input1"]

    def level2(self, level: int) -> Array:
        """Return the array of a level of input2."""
        return self.arrays[self.problem.level_names[level]]

    @property
    def coords(self) -> Array:
        """The array of coords, with the axis K."""
        return self.arrays["coords"]

    def gradient2(self, level: int) -> Array:
        """Return the array of the gradient of a level of input2."""
        return self.arrays[self.problem.gradient2_names[level]]

    def volume(self, name: str, level: int) -> Array:
        """Return one level (E, K, PH, PW, H, W) of the output or the cotangent."""
        whole, pointer = self.arrays[name]
        shape, steps = list(whole.shape), list(whole.strides)
        if self.problem.operands.pyramid:
            pointer = pointer.at(whole.offset(0, level))
            del shape[1], steps[1]
        if not self.problem.has_lookups_axis:
            shape.insert(1, 1)
            steps.insert(1, 0)
        if self.problem.parameters.order != DY_FIRST:
            shape[2:4], steps[2:4] = shape[3:1:-1], steps[3:1:-1]
        return Layout(whole.dtype, tuple(shape), tuple(steps)), pointer

    def windows(self, level: int) -> tuple[Window, Window]:
        """Return the windows of a level along y and along x."""
        height, width = self.problem.sizes2[level]
        return window(self.problem.vertical, height), window(self.problem.horizontal, width)

    # Arguments of kernels.

    def pointers(self) -> dict[str, Pointer]:
        """Return the addresses of coords and the indices."""
        indices = {name: self.arrays.get(name, (None, NOWHERE))[1] for name in ("index1", "index2")}
        return {"coords": self.coords[1], **indices}

    def sizes(self) -> dict[str, int]:
        """Return the numbers that all levels have in common."""
        height, width = self.problem.size1
        return {"lookups": self.problem.lookups, "height": height, "width": width}

    def scalars(self, level: int) -> dict[str, float]:
        """Return the arguments of the parameters in `COORDS`, `ENTRIES` and `AXES`."""
        factor_y, factor_x = self.problem.level_scales[level]
        layout = self.coords[0]
        coords = {"channels_coords": layout.shape[2], "factor_y": factor_y, "factor_x": factor_x}
        windows = zip("yx", self.windows(level), strict=True)
        return {
            **strides("coords", COORDS_AXES, layout.strides),
            **coords,
            **self._entries(1, self.problem.batch1),
            **self._entries(2, self.problem.batch2),
            **{f"{name}_{along}": getattr(window, name) for along, window in windows for name in _AXIS},
        }

    def _entries(self, number: int, images: int) -> dict[str, int]:
        index = self.arrays.get(f"index{number}")
        stride, size = (0, 0) if index is None else (index[0].strides[0], index[0].itemsize)
        return {f"stride_index{number}": stride, f"bytes_index{number}": size, f"images{number}": images}

    def largest(self, level: int, *layouts: Layout) -> int:
        """Return a bound on the numbers that a kernel computes with at a level, beside its own scalars."""
        of_windows = sum(window.reach for window in self.windows(level))
        indices = (self.arrays[name][0].extent for name in ("index1", "index2") if name in self.arrays)
        return max(of_windows, self.coords[0].extent, *indices, *(layout.extent for layout in layouts))


def operands(request: Request, device: Device) -> Operands:
    """Return the operands of a request."""
    problem: Problem = request.problem
    named = zip(array_names(request.pass_name, problem.inputs), request.layouts, strict=True)
    arrays = {name: (layout, Pointer(name)) for name, layout in named if layout is not None}
    for name in ("coords", "gradient_coords"):
        if name in arrays and not problem.has_lookups_axis:
            layout, pointer = arrays[name]
            arrays[name] = (
                replace(layout, shape=_with_lookups(layout.shape, 1), strides=_with_lookups(layout.strides, 0)),
                pointer,
            )
    return Operands(problem, arrays, device)


def _with_lookups(numbers: tuple[int, ...], number: int) -> tuple[int, ...]:
    return (numbers[0], number, *numbers[1:])


# Choices of kernels -----------------------------------------------------------------------------------------------------------

SPLITS = 8  # lanes that share the channels of a query, where they do
_FILLING = 1024  # tasks per multiprocessor: with fewer, one thread for each leaves most of it idle


def channel_order(input1: Layout, input2: Layout, tasks: int, device: Device) -> dict[str, int]:
    """Return the macros CHANNELS_LAST and SPLITS of the kernels that compute dots."""
    if is_channels_last(input1) and is_channels_last(input2):
        return {"CHANNELS_LAST": 1, "SPLITS": SPLITS}
    few = tasks < device.multiprocessors * _FILLING
    return {"CHANNELS_LAST": 0, "SPLITS": SPLITS if few and input1.shape[1] >= 2 * SPLITS else 1}


def is_channels_last(image: Layout) -> bool:
    """Return whether channels are contiguous, with enough of them for vector loads by the lanes of a query."""
    return image.strides[1] == 1 and image.shape[1] * image.itemsize >= SPLITS * 8


ORDERS = ({"CHANNELS_LAST": (0,), "SPLITS": (1, SPLITS)}, {"CHANNELS_LAST": (1,), "SPLITS": (SPLITS,)})


def element_types() -> Iterator[tuple[ElementType, tuple[str, ...]]]:
    """Yield each element type of features with the kernels' names of those that coordinates may have with it."""
    for row in ELEMENT_TYPES.values():
        most = row.accumulator_dtype.itemsize
        yield row, tuple(coords.c_type for coords in ELEMENT_TYPES.values() if coords.itemsize <= most)


def sum_type(row: ElementType) -> str:
    """Return the kernels' name of the type of sums."""
    return ELEMENT_TYPES[row.accumulator].c_type


EVERY_ELEMENT = tuple(row.c_type for row in ELEMENT_TYPES.values())


# Volumes of partial sums ------------------------------------------------------------------------------------------------------


def bytes_of(volume: Layout) -> int:
    """Return the bytes of a volume in the workspace."""
    return volume.strides[0] * volume.shape[0] * volume.itemsize if math.prod(volume.shape) else 0


def part_of(volume: Layout, at: Pointer, number: int) -> Array:
    """Return one of the parts that a volume of partial sums has along its first axis."""
    return replace(volume, shape=volume.shape[1:], strides=volume.strides[1:]), at.at(volume.offset(number))
