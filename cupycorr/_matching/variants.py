"""The variants of matching, and the reasons why one cannot answer a request."""

from __future__ import annotations

from functools import partial
from math import prod

from .._correlation.cpu import blas, simd
from .._correlation.problem import parameters
from .._correlation.problem import problem as correlation
from .._cpu import register_tile
from .._dispatch import FORWARD, Operator, Request, Variant, Work, always_available, why_no_matrix_product
from .._dtypes import ELEMENT_TYPES
from .._gpu.device import Device
from . import reference
from .cpu import planner as cpu
from .gpu import planner as gpu
from .mirrored import on_cpu, why_not_mirrored
from .problem import Best, Mean, Problem, Reduction


def _why_not_simd(request: Request, device: Device | None) -> str | None:
    return register_tile.why_not() or cpu.why_not(request)


def _why_not_blas(request: Request, device: Device | None) -> str | None:
    return cpu.why_not(request)


def _why_not_tiled(request: Request, device: Device | None) -> str | None:
    return gpu.why_not("tiled", request)


def _why_not_mma(request: Request, device: Device | None) -> str | None:
    return why_no_matrix_product(request, device) or gpu.why_not("mma", request)


VARIANTS = (
    Variant("simd", "numpy", why_not_mirrored(_why_not_simd), on_cpu(partial(cpu.plan, simd.ENGINE))),
    Variant("blas", "numpy", why_not_mirrored(_why_not_blas), on_cpu(partial(cpu.plan, blas.ENGINE))),
    Variant("reference", "numpy", always_available, reference.plan),
    Variant("mma", "cupy", _why_not_mma, partial(gpu.plan, "mma")),
    Variant("tiled", "cupy", _why_not_tiled, partial(gpu.plan, "tiled")),
    Variant("slices", "cupy", always_available, gpu.plan_slices),
)

_RESULTS = {Best: (8, 4), Mean: (4, 4, 8)}  # the bytes of the results at each position: channel, score; dy, dx, their sum


def _work(request: Request) -> Work:
    """Count the operations of the volume, and the bytes of the inputs and the results."""
    problem: Problem = request.problem
    volume, itemsize = problem.correlation, ELEMENT_TYPES[request.dtype].itemsize
    results = prod(problem.out_shape) * sum(_RESULTS[type(problem.reduction)])
    return Work(volume.flops, volume.flops_inside(), sum(volume.image_bytes(itemsize)) + results)


def _uses_matrix_units(request: Request, device: Device) -> bool:
    """Return whether the operator that computes the slices may use tensor cores."""
    exact = request.dtype == "float32" and request.problem.correlation.windowed
    return not exact and why_no_matrix_product(request, device) is None


def _example(reduction: Reduction) -> Request:
    shape = (1, 32, 64, 64)
    volume = correlation(parameters(patch_size=9), shape, shape)
    return Request(FORWARD, Problem(volume, reduction, excluding=False), "float32", "float32")


def _operator(name: str, reduction: Reduction) -> Operator:
    return Operator(
        name=name,
        variants=VARIANTS,
        work=_work,
        uses_matrix_units=_uses_matrix_units,
        builds=gpu.builds,
        measured=False,
        example=partial(_example, reduction),
    )


ARGMAX = _operator("correlation_argmax", Best())
SOFT_ARGMAX = _operator("correlation_soft_argmax", Mean())
