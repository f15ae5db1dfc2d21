"""The variants of the lookup in a volume, and the reasons why one cannot answer a request."""

from __future__ import annotations

from math import prod

import numpy as np

from .._dispatch import FORWARD, Operator, Request, Variant, Work, always_available
from .._dtypes import ELEMENT_TYPES, named_dtype
from .._gpu.device import Device
from .._lookup.variants import smooth_coords
from . import reference
from .cpu import simd
from .gpu import planner as gpu
from .problem import TWO_DIMENSIONS, Problem, parameters, problem

VARIANTS = (
    Variant("simd", "numpy", simd.why_not, simd.plan),
    Variant("reference", "numpy", always_available, reference.plan),
    Variant("direct", "cupy", always_available, gpu.plan),
)


def _work(request: Request) -> Work:
    """Count the operations and the bytes of a request: windows are read, and the gradient of the volume is written whole.

    How many taps are inside the slices depends on the values of coords.
    """
    geometry: Problem = request.problem
    itemsize, result_itemsize = (ELEMENT_TYPES[name].itemsize for name in (request.dtype, request.result_dtype))
    coords = ELEMENT_TYPES[geometry.coords_dtype].itemsize * prod(geometry.coords)
    windows = geometry.queries * geometry.taps * itemsize
    outputs = geometry.outputs * result_itemsize
    if request.pass_name == FORWARD:
        return Work(geometry.flops, None, windows + coords + outputs)
    to_volume, to_coords = request.needs
    moved = to_volume * prod(geometry.volume) * itemsize + to_coords * (windows + coords)
    return Work(sum(request.needs) * geometry.flops, None, coords + outputs + moved)


def _uses_matrix_units(request: Request, device: Device) -> bool:
    """Return False: nothing is multiplied but by weights."""
    return False


def _example() -> Request:
    """Return one lookup of RAFT in the finest level of its volume, for a frame of 440 x 1024 pixels."""
    geometry = problem(parameters(TWO_DIMENSIONS), (1, 55, 128, 55, 128), (1, 2, 55, 128), "float32")
    return Request(FORWARD, geometry, "float32", "float32")


def _typical_values(request: Request, name: str) -> np.ndarray | None:
    """Return coordinates of a smooth flow: the time depends on them."""
    geometry: Problem = request.problem
    if name != "coords":
        return None
    found = smooth_coords(geometry.size1, geometry.size2, geometry.coords[1])
    return np.broadcast_to(found, geometry.coords).astype(named_dtype(geometry.coords_dtype))


OPERATOR = Operator(
    name="volume_lookup",
    variants=VARIANTS,
    work=_work,
    uses_matrix_units=_uses_matrix_units,
    builds=gpu.builds,
    example=_example,
    typical_values=_typical_values,
)
