"""The variants of the lookup, and the reasons why one cannot answer a request."""

from __future__ import annotations

import numpy as np

from .._arguments import Pair
from .._dispatch import FORWARD, Operator, Request, Variant, Work, always_available, why_no_matrix_product
from .._dtypes import ELEMENT_TYPES, named_dtype
from .._gpu.device import Device
from . import reference
from .cpu import blas, simd
from .gpu import lookup_mma, lookup_tiled
from .gpu import planner as gpu
from .problem import Operands, Problem, parameters, problem


def _why_not_tiled(request: Request, device: Device | None) -> str | None:
    if request.pass_name != FORWARD:  # the gradients are those of `direct`
        return None
    return lookup_tiled.why_not(request.problem, request.dtype, device)


def _why_not_mma(request: Request, device: Device | None) -> str | None:
    return why_no_matrix_product(request, device) or lookup_mma.why_not(request.problem, request.dtype, device)


VARIANTS = (
    Variant("simd", "numpy", simd.why_not, simd.plan),
    Variant("blas", "numpy", always_available, blas.plan),
    Variant("reference", "numpy", always_available, reference.plan),
    # Gradients are those of direct for every variant: the first of equally fast ones runs.
    Variant("direct", "cupy", always_available, gpu.plan),
    Variant("mma", "cupy", _why_not_mma, gpu.plan_mma),
    Variant("tiled", "cupy", _why_not_tiled, gpu.plan_tiled),
)


def _work(request: Request) -> Work:
    """Count the operations and the bytes of a request: each gradient sums as many products as the output.

    How many taps are inside the maps depends on the values of coords.
    """
    geometry: Problem = request.problem
    itemsize, result_itemsize = (ELEMENT_TYPES[name].itemsize for name in (request.dtype, request.result_dtype))
    inputs = geometry.input_bytes(itemsize, ELEMENT_TYPES[geometry.operands.coords_dtype].itemsize)
    moved = sum(inputs) + geometry.outputs * result_itemsize
    if request.pass_name == FORWARD:
        return Work(geometry.flops, None, moved)
    needs = request.needs[0], request.needs[1], request.needs[-1]
    written = sum(size for size, needed in zip(inputs, needs, strict=True) if needed)
    return Work(sum(needs) * geometry.flops, None, moved + written)


def _uses_matrix_units(request: Request, device: Device) -> bool:
    """Return whether tensor cores may be used."""
    return why_no_matrix_product(request, device) is None


def _example() -> Request:
    """Return one lookup of RAFT in a pyramid of four levels, for a frame of 440 x 1024 pixels."""
    shape = (1, 256, 55, 128)
    levels = tuple((1, 256, 55 >> level, 128 >> level) for level in range(4))
    operands = Operands(shape, levels, True, (1, 2, 55, 128), "float32")
    geometry = problem(parameters(), operands)
    return Request(FORWARD, geometry, "float32", "float32", (), geometry.needs_of_inputs((True, True, True)))


FLOW = 6.0  # pixels; the amplitude of the smooth flow that lookups are measured with


def _typical_values(request: Request, name: str) -> np.ndarray | None:
    """Return coordinates of a smooth flow, and indices that are in range: the time depends on them."""
    geometry: Problem = request.problem
    entries = np.arange(geometry.entries)
    if name == "coords":
        found = smooth_coords(geometry.size1, geometry.sizes2[0], geometry.operands.coords[-3])
        full = np.broadcast_to(found, geometry.full_coords_shape).reshape(geometry.operands.coords)
        return full.astype(named_dtype(geometry.operands.coords_dtype))
    indices = {"index1": (geometry.operands.index1, geometry.batch1), "index2": (geometry.operands.index2, geometry.batch2)}
    index, batch = indices.get(name, (None, 0))
    return None if index is None else (entries % max(batch, 1)).astype(index[1])


def smooth_coords(size1: Pair, size2: Pair, channels: int) -> np.ndarray:
    """Return the pixel grid of the queries, stretched to a map, and a smooth flow: (channels, H, W), x first."""
    (height, width), (height2, width2) = size1, size2
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    x = columns * (width2 / width) + FLOW * np.cos(rows / 9)
    y = rows * (height2 / height) + FLOW * np.sin(columns / 13)
    return np.stack((x, y)[:channels])


OPERATOR = Operator(
    name="correlation_lookup",
    variants=VARIANTS,
    work=_work,
    uses_matrix_units=_uses_matrix_units,
    builds=gpu.builds,
    example=_example,
    typical_values=_typical_values,
)
