"""The operators ``torch.ops.cupycorr``: their schemas, their shapes without data, and their derivatives.

There are two, the forward map and its vector-Jacobian product. The operator is bilinear, so that the derivatives of both, of any
order, are these two again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import _tensors
from ._tensors import Arguments
from ._transforms import Internals, Rules, differentiable

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
    "spatial_correlation_sample": {"CPU": _tensors.forward_on_cpu, "CUDA": _tensors.forward_on_cuda},
    "spatial_correlation_sample_vjp": {"CPU": _tensors.vjp_on_cpu, "CUDA": _tensors.vjp_on_cuda},
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
    return _tensors.new_output(input1, arguments, _tensors.ask(input1, input2, arguments))


@torch.library.register_fake("cupycorr::spatial_correlation_sample_vjp", lib=_library)
def _fake_vjp(
    cotangent: torch.Tensor, input1: torch.Tensor, input2: torch.Tensor, needs: list[bool], *given: Any
) -> tuple[torch.Tensor, ...]:
    arguments = Arguments(*given)
    _tensors.check_cotangent(cotangent, input1, arguments, _tensors.ask(input1, input2, arguments))
    return _tensors.new_gradients((input1, input2), needs)


# Derivatives ------------------------------------------------------------------------------------------------------------------


def _keep(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    input1, input2, *ctx.given = inputs
    ctx.save_for_backward(input1, input2)


def _backward(ctx: Any, cotangent: torch.Tensor) -> tuple:
    needs = ctx.needs_input_grad[:2]
    gradients = correlate_vjp(cotangent, *ctx.saved_tensors, needs, *ctx.given)
    return (*_needed(gradients, needs), *(None for _ in ctx.given))


def _tangent(primals: tuple, tangents: tuple, rest: tuple) -> torch.Tensor:
    """From tangents ``t1, t2``: ``forward(t1, x2) + forward(x1, t2)``."""
    (x1, x2), (t1, t2) = primals, tangents
    return _sum(correlate, rest, (t1, x2), (x1, t2))


def _keep_vjp(ctx: Any, inputs: tuple, output: tuple[torch.Tensor, ...]) -> None:
    cotangent, input1, input2, ctx.needs, *ctx.given = inputs
    ctx.save_for_backward(cotangent, input1, input2)
    ctx.set_materialize_grads(False)


def _backward_vjp(ctx: Any, *cotangents: torch.Tensor | None) -> tuple:
    """From ``h1, h2``: to g ``forward(h1, x2) + forward(x1, h2)``, to x1 ``g1(g, h2)``, to x2 ``g2(g, h1)``."""
    g, x1, x2 = ctx.saved_tensors
    h1, h2 = _needed(cotangents, ctx.needs)
    to_g, to_x1, to_x2, *_ = ctx.needs_input_grad
    to_each = (
        _sum(correlate, ctx.given, (h1, x2), (x1, h2)) if to_g else None,
        _sum(_gradient1, ctx.given, (g, x1, h2)) if to_x1 else None,
        _sum(_gradient2, ctx.given, (g, h1, x2)) if to_x2 else None,
    )
    return (*to_each, None, *(None for _ in ctx.given))


def _tangent_vjp(primals: tuple, tangents: tuple, rest: tuple) -> tuple[torch.Tensor | None, ...]:
    """From tangents ``tg, t1, t2``: of g1 ``g1(tg, x2) + g1(g, t2)``, of g2 ``g2(tg, x1) + g2(g, t1)``."""
    (g, x1, x2), (tg, t1, t2), (needs, *given) = primals, tangents, rest
    return (
        _sum(_gradient1, given, (tg, x1, x2), (g, x1, t2)) if needs[0] else None,
        _sum(_gradient2, given, (tg, x1, x2), (g, t1, x2)) if needs[1] else None,
    )


def _gradient1(cotangent: torch.Tensor, input1: torch.Tensor, input2: torch.Tensor, *given: Any) -> torch.Tensor:
    return correlate_vjp(cotangent, input1, input2, (True, False), *given)[0]


def _gradient2(cotangent: torch.Tensor, input1: torch.Tensor, input2: torch.Tensor, *given: Any) -> torch.Tensor:
    return correlate_vjp(cotangent, input1, input2, (False, True), *given)[1]


def _sum(call: Callable[..., torch.Tensor], given: Sequence[Any], *terms: tuple[torch.Tensor | None, ...]) -> torch.Tensor | None:
    """Return the sum of the calls on those terms that have all their tensors; None where none has."""
    results = [call(*term, *given) for term in terms if all(tensor is not None for tensor in term)]
    return sum(results[1:], results[0]) if results else None


def _needed(gradients: tuple, needs: tuple[bool, bool]) -> list[torch.Tensor | None]:
    return [gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)]


_internals = Internals.found()
_operators = torch.ops.cupycorr
_rules, _rules_vjp = Rules(_keep, _backward, _tangent), Rules(_keep_vjp, _backward_vjp, _tangent_vjp)
correlate = differentiable(_library, _operators.spatial_correlation_sample.default, 2, _rules, _internals)
correlate_vjp = differentiable(_library, _operators.spatial_correlation_sample_vjp.default, 3, _rules_vjp, _internals)
