"""The operators ``torch.ops.cupycorr``: their schemas, their shapes without data, and their derivatives.

There are two, the forward map and its vector-Jacobian product. The operator is bilinear, so that the derivatives of both, of any
order, are these two again.
"""

from __future__ import annotations

from typing import Any

import torch

from . import _bridge
from ._bridge import Arguments
from ._transforms import differentiable

_ARGUMENTS = (
    "int[2] kernel_size=1, int[2] patch_size=1, int[2] stride=1, int[2] padding=0, int[2] dilation=1, int[2] dilation_patch=1, "
    'int[2]? patch_offset=None, float scale=1.0, ScalarType? dtype=None, str? precision=None, str variant="auto"'
)
_SCHEMAS = {
    "spatial_correlation_sample": f"(Tensor input1, Tensor input2, {_ARGUMENTS}) -> Tensor",
    "spatial_correlation_sample_vjp": (
        f"(Tensor cotangent, Tensor input1, Tensor input2, bool[2] needs, {_ARGUMENTS}) -> (Tensor, Tensor)"
    ),
}
_KERNELS = {
    "spatial_correlation_sample": {"CPU": _bridge.forward_on_cpu, "CUDA": _bridge.forward_on_cuda},
    "spatial_correlation_sample_vjp": {"CPU": _bridge.vjp_on_cpu, "CUDA": _bridge.vjp_on_cuda},
}
# Any strides are taken as they are: the compiler need not make inputs contiguous.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)

_library = torch.library.Library("cupycorr", "DEF")  # lives as long as the registrations do
for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema, tags=_TAGS)
    for _key, _kernel in _KERNELS[_name].items():
        _library.impl(_name, _kernel, _key)


# Without data -----------------------------------------------------------------------------------------------------------------


@torch.library.register_fake("cupycorr::spatial_correlation_sample", lib=_library)
def _fake(input1: torch.Tensor, input2: torch.Tensor, *given: Any) -> torch.Tensor:
    arguments = Arguments(*given)
    return _bridge.new_output(input1, arguments, _bridge.ask(input1, input2, arguments))


@torch.library.register_fake("cupycorr::spatial_correlation_sample_vjp", lib=_library)
def _fake_vjp(
    cotangent: torch.Tensor, input1: torch.Tensor, input2: torch.Tensor, needs: list[bool], *given: Any
) -> tuple[torch.Tensor, ...]:
    arguments = Arguments(*given)
    _bridge.check_cotangent(cotangent, input1, arguments, _bridge.ask(input1, input2, arguments))
    return _bridge.new_gradients((input1, input2), needs)


# Derivatives ------------------------------------------------------------------------------------------------------------------


def _keep(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    input1, input2, *ctx.given = inputs
    ctx.save_for_backward(input1, input2)


def _backward(ctx: Any, cotangent: torch.Tensor) -> tuple:
    needs = ctx.needs_input_grad[:2]
    gradients = correlate_vjp(cotangent, *ctx.saved_tensors, needs, *ctx.given)
    return (*_needed(gradients, needs), *(None for _ in ctx.given))


def _keep_vjp(ctx: Any, inputs: tuple, output: tuple[torch.Tensor, ...]) -> None:
    cotangent, input1, input2, ctx.needs, *ctx.given = inputs
    ctx.save_for_backward(cotangent, input1, input2)
    ctx.set_materialize_grads(False)


def _backward_vjp(ctx: Any, *cotangents: torch.Tensor | None) -> tuple:
    """From ``h1, h2``: to g ``forward(h1, x2) + forward(x1, h2)``, to x1 ``g1(g, h2)``, to x2 ``g2(g, h1)``."""
    g, x1, x2 = ctx.saved_tensors
    h1, h2 = _needed(cotangents, ctx.needs)
    to_g, to_x1, to_x2, *_ = ctx.needs_input_grad
    result: list[torch.Tensor | None] = [None, None, None]
    if to_g and h1 is not None:
        result[0] = correlate(h1, x2, *ctx.given)
    if to_g and h2 is not None:
        term = correlate(x1, h2, *ctx.given)
        result[0] = term if result[0] is None else result[0] + term
    if to_x1 and h2 is not None:
        result[1], _ = correlate_vjp(g, x1, h2, (True, False), *ctx.given)
    if to_x2 and h1 is not None:
        _, result[2] = correlate_vjp(g, h1, x2, (False, True), *ctx.given)
    return (*result, None, *(None for _ in ctx.given))


def _needed(gradients: tuple, needs: tuple[bool, bool]) -> list[torch.Tensor | None]:
    return [gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)]


correlate = differentiable(_library, torch.ops.cupycorr.spatial_correlation_sample.default, 2, _keep, _backward)
correlate_vjp = differentiable(_library, torch.ops.cupycorr.spatial_correlation_sample_vjp.default, 3, _keep_vjp, _backward_vjp)
