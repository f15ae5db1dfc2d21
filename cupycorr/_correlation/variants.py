"""The variants of the fixed-grid operator, and the reasons why one cannot answer a request."""

from __future__ import annotations

from functools import partial

from .._cpu import register_tile
from .._dispatch import FORWARD, Operator, Request, Variant, WhyNot, Work, always_available, why_no_matrix_product
from .._dtypes import element_type_called
from .._gpu.device import Device
from . import groups, reference
from .cpu import blas, simd, unpacked
from .cpu import planner as cpu
from .gpu import axes
from .gpu import planner as gpu
from .groups import MakePlan, with_groups
from .problem import parameters, problem

# Reasons ----------------------------------------------------------------------------------------------------------------------


def _why_not_simd(request: Request, device: Device | None) -> str | None:
    return register_tile.why_not()


def _why_not_unpacked(request: Request, device: Device | None) -> str | None:
    return register_tile.why_not() or unpacked.why_not(request)


def _why_not_direct(request: Request, device: Device | None) -> str | None:
    return axes.out_of_reach(request.problem)


def _why_not_box(request: Request, device: Device | None) -> str | None:
    return _why_not_direct(request, device) or (None if request.problem.windowed else "kernel_size is 1")


def _why_not_tiled(request: Request, device: Device | None) -> str | None:
    return _why_not_direct(request, device) or gpu.why_not("tiled", request)


def _why_not_mma(request: Request, device: Device | None) -> str | None:
    reason = _why_not_direct(request, device) or why_no_matrix_product(request, device)
    if reason is None and request.problem.windowed:
        height, width = request.problem.parameters.kernel_size
        return f"a window of {height} x {width} pixels, tensor cores are for windows of one pixel"
    return reason or gpu.why_not("mma", request)


# The table --------------------------------------------------------------------------------------------------------------------


def _on_cpu(name: str, why_not: WhyNot, make_plan: MakePlan) -> Variant:
    return Variant(name, "numpy", with_groups(why_not), groups.on_cpu(make_plan))


def _on_gpu(name: str, why_not: WhyNot) -> Variant:
    return Variant(name, "cupy", with_groups(why_not), groups.on_gpu(partial(gpu.plan, name)))


VARIANTS = (
    _on_cpu("simd", _why_not_simd, partial(cpu.plan, simd.ENGINE)),
    _on_cpu("blas", always_available, partial(cpu.plan, blas.ENGINE)),
    _on_cpu("reference", always_available, reference.plan),
    _on_cpu("unpacked", _why_not_unpacked, unpacked.plan),
    _on_gpu("box", _why_not_box),
    _on_gpu("mma", _why_not_mma),
    _on_gpu("tiled", _why_not_tiled),
    _on_gpu("direct", _why_not_direct),
)


def _work(request: Request) -> Work:
    """Count the operations and the bytes of a request: each gradient sums as many products as the output."""
    problem, itemsize = request.problem, element_type_called("dtype", request.dtype).itemsize
    sums = 1 if request.pass_name == FORWARD else sum(request.needs)
    moved = problem.bytes(itemsize, element_type_called("dtype", request.result_dtype).itemsize)
    if request.pass_name != FORWARD:
        moved += sum(problem.image_bytes(itemsize)[number] for number, needed in enumerate(request.needs) if needed)
    return Work(sums * problem.flops, sums * problem.flops_inside(), moved)


def _uses_matrix_units(request: Request, device: Device) -> bool:
    """Return whether tensor cores may be used. They round float32 products, so windows of float32 never use them."""
    exact = request.dtype == "float32" and request.problem.windowed
    return not exact and why_no_matrix_product(request, device) is None


def _example() -> Request:
    shape = (1, 32, 64, 64)
    return Request(FORWARD, problem(parameters(kernel_size=3, patch_size=9), shape, shape), "float32", "float32")


OPERATOR = Operator(
    name="spatial_correlation_sample",
    variants=VARIANTS,
    work=_work,
    uses_matrix_units=_uses_matrix_units,
    builds=gpu.builds,
    example=_example,
)
