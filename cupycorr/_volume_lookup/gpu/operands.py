"""The operands of a request as the kernels of the lookup in a volume see them: arrays with every axis, and chunks of windows.

The kernels' windows are those of the lookup, and so are the parameters for them; there is one lookup of each pixel, whose stride
is 0, at a level whose factors are 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..._dispatch import Request, array_names
from ..._dtypes import ELEMENT_TYPES
from ..._gpu.call import Array, Pointer, strides
from ..._gpu.device import Device
from ..._gpu.layout import Layout, ceil_div
from ..._lookup.gpu.operands import AXES, COORDS, COORDS_AXES, LEVEL_AXES, Window, window
from ..._lookup.problem import DY_FIRST, Axis
from ..problem import Problem

__all__ = ["AXES", "CHUNKS", "COORDS", "LEVEL_AXES", "SLICE_AXES", "Operands", "operands"]

SLICE_AXES = ("entry", "i", "j", "row", "column")
CHUNKS = {"queries": "Index", "chunks": "Index", "rows": "int", "columns": "int"}  # parameters

# As in windows.cuh.
QUERIES = 32
TAPS = 128

_TAPS_ACROSS = 32  # of a chunk, at most: rows of windows are read by neighbouring lanes


@dataclass(frozen=True)
class Operands:
    """The arrays of a request on a device.

    Attributes
    ----------
    arrays
        The layout and the address of each array by its name: the volume and its gradient (E, H, W, H2, W2), coords and their
        gradient (E, 1, 1 or 2, H, W), the output and the cotangent (E, 1, PH, PW, H, W).
    """

    problem: Problem
    arrays: Mapping[str, Array]
    device: Device

    @property
    def accumulator(self) -> np.dtype[Any]:
        """The dtype of the sums."""
        return self.arrays["volume"][0].accumulator

    @property
    def sum_type(self) -> str:
        """The kernels' name of the type of the sums."""
        return ELEMENT_TYPES[self.accumulator.name].c_type

    @property
    def windows(self) -> tuple[Window, Window]:
        """The windows along y and along x."""
        height, width = self.problem.size2
        return window(self.problem.vertical, height), window(self.problem.horizontal, width)

    @property
    def chunk(self) -> tuple[int, int]:
        """The rows and the columns of displacements of a chunk, whose taps are at most `TAPS`."""
        columns = _displacements(self.problem.horizontal, _TAPS_ACROSS)
        horizontal = replace(self.problem.horizontal, patch=columns)
        return _displacements(self.problem.vertical, TAPS // horizontal.taps), columns

    @property
    def chunks(self) -> int:
        """The number of chunks of a patch."""
        rows, columns = self.chunk
        return ceil_div(self.problem.parameters.patch_size[0], rows) * ceil_div(self.problem.parameters.patch_size[1], columns)

    @property
    def tiles(self) -> int:
        """The number of tiles of queries."""
        return ceil_div(self.problem.queries, QUERIES)

    # Arguments of kernels.

    def scalars(self) -> dict[str, float]:
        """Return the arguments of the parameters in `COORDS` and `AXES`, and the size of an image of queries."""
        height, width = self.problem.size1
        layout = self.arrays["coords"][0]
        axes = zip("yx", self.windows, strict=True)
        return {
            "height": height,
            "width": width,
            **strides("coords", COORDS_AXES, layout.strides),
            "channels_coords": layout.shape[2],
            "factor_y": 1.0,
            "factor_x": 1.0,
            **{f"{name}_{along}": getattr(window, name) for along, window in axes for name in _OF_AXIS},
        }

    def of_chunks(self) -> dict[str, int]:
        """Return the arguments of the parameters in `CHUNKS`."""
        rows, columns = self.chunk
        return {"queries": self.problem.queries, "chunks": self.chunks, "rows": rows, "columns": columns}

    def largest(self, *layouts: Layout) -> int:
        """Return a bound on the numbers that a kernel computes with, beside its own scalars."""
        of_windows = sum(window.reach for window in self.windows)
        queries = self.tiles * QUERIES
        return max(of_windows, queries, self.arrays["coords"][0].extent, *(layout.extent for layout in layouts))


_OF_AXIS = tuple(dict.fromkeys(name.rpartition("_")[0] for name in AXES))


def _displacements(axis: Axis, taps: int) -> int:
    """Return the most displacements along an axis that so many taps are enough for."""
    return min(axis.patch, (taps - axis.corners) // axis.pitch + 1)


def operands(request: Request, device: Device) -> Operands:
    """Return the operands of a request."""
    problem: Problem = request.problem
    named = zip(array_names(request.pass_name, problem.inputs), request.layouts, strict=True)
    return Operands(
        problem,
        {name: (_with_every_axis(problem, name, layout), Pointer(name)) for name, layout in named if layout is not None},
        device,
    )


def _with_every_axis(problem: Problem, name: str, layout: Layout) -> Layout:
    """Return the layout of an array with the axes that kernels give it."""
    shape, steps = list(layout.shape), list(layout.strides)
    if name in ("coords", "gradient_coords"):
        added: tuple[int, ...] = (1,)
    elif name in ("out", "cotangent"):
        added = (1,) if problem.has_rows else (1, 2)
    else:
        added = () if problem.has_rows else (3,)
    for axis in added:
        shape.insert(axis, 1)
        steps.insert(axis, 0)
    if name in ("out", "cotangent") and problem.has_rows and problem.parameters.order != DY_FIRST:
        shape[2:4], steps[2:4] = shape[3:1:-1], steps[3:1:-1]
    return Layout(layout.dtype, tuple(shape), tuple(steps))
