"""The fixed-grid operator in torch: ``torch.ops.cupycorr.spatial_correlation_sample`` and its vector-Jacobian product.

This module has their schemas, the functions that compute them, their shapes without data and their derivatives. The operator is
bilinear, so that the derivatives of both, of any order, are these two again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import compress
from typing import Any, NamedTuple

import torch

from .._arguments import Pair, check_precision, effective_precision
from .._checks import check_cotangent
from .._correlation import api
from .._correlation.problem import PARAMETERS, Parameter, Problem, parameters, problem
from .._correlation.variants import OPERATOR
from .._dispatch import FORWARD, VJP, Request
from .._dtypes import check_scale
from . import _tensors
from ._library import LIBRARY, define
from ._transforms import Internals, Operands, Rules, differentiable

# Schemas ----------------------------------------------------------------------------------------------------------------------


class Arguments(NamedTuple):
    """The operators' arguments other than tensors, with the schema's defaults. Torch may pass lists in place of pairs."""

    kernel_size: Pair = (1, 1)
    patch_size: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    dilation_patch: Pair = (1, 1)
    patch_offset: Pair | None = None
    groups: int = 1
    scale: float = 1.0
    dtype: torch.dtype | None = None
    precision: str | None = None
    variant: str = "auto"


def in_schema(parameter: Parameter) -> str:
    """Return a parameter as schemas have it."""
    optional = "?" if parameter.default is None else ""
    return f"int[2]{optional} {parameter.name}={parameter.default}"


_ARGUMENTS = ", ".join(
    (
        *map(in_schema, PARAMETERS),
        "int groups=1",
        "float scale=1.0",
        "ScalarType? dtype=None",
        "str? precision=None",
        'str variant="auto"',
    )
)
_FORWARD_SCHEMA = f"(Tensor input1, Tensor input2, {_ARGUMENTS}) -> Tensor"
_VJP_SCHEMA = f"(Tensor cotangent, Tensor input1, Tensor input2, bool[2] needs, {_ARGUMENTS}) -> (Tensor, Tensor)"


# Checks -----------------------------------------------------------------------------------------------------------------------


def _checked(input1: torch.Tensor, input2: torch.Tensor, arguments: Arguments) -> Problem:
    """Check the inputs and the arguments and return the problem; sizes may be symbols."""
    _tensors.check_device("input1", input1, "input2", input2)
    return _problem(input1.shape, input1.dtype, input2.shape, input2.dtype, *arguments)


def _checked_once(input1: torch.Tensor, input2: torch.Tensor, arguments: Arguments) -> Problem:
    """Return `_checked` of the same arguments from a cache: models make the same call again and again. Sizes must be numbers."""
    _tensors.check_device("input1", input1, "input2", input2)
    given: tuple[Any, ...] = arguments
    hashable = [tuple(value) if type(value) is list else value for value in given]
    return _problem_once(input1.shape, input1.dtype, input2.shape, input2.dtype, *hashable)


def _problem(shape1: Any, dtype1: torch.dtype, shape2: Any, dtype2: torch.dtype, *given: Any) -> Problem:
    arguments = Arguments(*given)
    row = _tensors.element("input1", dtype1)
    api.check_elements(row, _tensors.element("input2", dtype2))
    given_parameters = parameters(*given[:6], patch_offset=arguments.patch_offset, groups=arguments.groups, scale=arguments.scale)
    checked = problem(given_parameters, shape1, shape2)
    check_scale(checked.parameters.scale, row)
    if arguments.precision is not None:
        check_precision(arguments.precision)
    OPERATOR.named(arguments.variant)
    return checked


_problem_once = lru_cache(1024)(_problem)


def _check_cotangent(cotangent: torch.Tensor, input1: torch.Tensor, arguments: Arguments, checked: Problem) -> None:
    """Refuse a cotangent that is not what the forward map returns."""
    _tensors.check_device("cotangent", cotangent, "input1", input1)
    result = _tensors.element("dtype", arguments.dtype or input1.dtype)
    check_cotangent(_tensors.element("cotangent", cotangent.dtype), result, cotangent.shape, checked.out_shape)


# Kernels ----------------------------------------------------------------------------------------------------------------------


def _forward(input1: torch.Tensor, input2: torch.Tensor, *given: Any) -> torch.Tensor:
    """Compute the correlation of two tensors, on their device."""
    key, repeat = _tensors.look_up(OPERATOR, FORWARD, (input1, input2), given)
    if repeat is not None:
        return _tensors.forward_again(repeat, (input1, input2))
    arguments = Arguments(*given)
    checked = _checked_once(input1, input2, arguments)
    out = input1.new_empty(checked.out_shape, dtype=arguments.dtype)
    dtype = _tensors.dtype_name(input1)
    request = Request(
        FORWARD,
        checked,
        dtype,
        _tensors.dtype_name(out),
        _tensors.layouts(input1, input2, out),
        (True, True),
        effective_precision(_tensors.precision(arguments.precision, input1), dtype),
    )
    _tensors.run(OPERATOR, request, arguments.variant, {"input1": input1, "input2": input2, "out": out}, ("out",), key)
    return out


def _vjp(
    cotangent: torch.Tensor, input1: torch.Tensor, input2: torch.Tensor, needs: list[bool], *given: Any
) -> tuple[torch.Tensor, ...]:
    """Compute the gradients of two tensors, on their device."""
    read = cotangent, input1, input2
    key, repeat = _tensors.look_up(OPERATOR, VJP, read, (needs, *given))
    if repeat is not None:
        gradients = _tensors.new_gradients((input1, input2), needs)
        _tensors.launch(repeat.plan, (*read, *compress(gradients, needs)), cotangent)
        return gradients
    arguments = Arguments(*given)
    checked = _checked_once(input1, input2, arguments)
    _check_cotangent(cotangent, input1, arguments, checked)
    gradients = _tensors.new_gradients((input1, input2), needs)
    wanted = [gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)]
    dtype = _tensors.dtype_name(input1)
    request = Request(
        VJP,
        checked,
        dtype,
        _tensors.dtype_name(cotangent),
        _tensors.layouts(cotangent, input1, input2, *wanted),
        (needs[0], needs[1]),
        effective_precision(_tensors.precision(arguments.precision, input1), dtype),
    )
    results = {f"gradient{number}": gradient for number, gradient in enumerate(wanted, 1) if gradient is not None}
    tensors = {"cotangent": cotangent, "input1": input1, "input2": input2, **results}
    _tensors.run(OPERATOR, request, arguments.variant, tensors, results, key)
    return gradients


# Without data -----------------------------------------------------------------------------------------------------------------


def _fake(input1: torch.Tensor, input2: torch.Tensor, *given: Any) -> torch.Tensor:
    arguments = Arguments(*given)
    return input1.new_empty(_checked(input1, input2, arguments).out_shape, dtype=arguments.dtype)


def _fake_vjp(
    cotangent: torch.Tensor, input1: torch.Tensor, input2: torch.Tensor, needs: list[bool], *given: Any
) -> tuple[torch.Tensor, ...]:
    arguments = Arguments(*given)
    _check_cotangent(cotangent, input1, arguments, _checked(input1, input2, arguments))
    return _tensors.new_gradients((input1, input2), needs)


# Derivatives ------------------------------------------------------------------------------------------------------------------


def _keep(ctx: Any, operands: tuple, rest: tuple) -> None:
    ctx.given = rest
    ctx.save_for_backward(*operands)


def _backward(ctx: Any, needs: tuple[bool, bool], cotangent: torch.Tensor) -> list[torch.Tensor | None]:
    return _needed(correlate_vjp(cotangent, *ctx.saved_tensors, needs, *ctx.given), needs)


def _tangent(primals: tuple, tangents: tuple, rest: tuple) -> torch.Tensor | None:
    """From tangents ``t1, t2``: ``forward(t1, x2) + forward(x1, t2)``."""
    (x1, x2), (t1, t2) = primals, tangents
    return _sum(correlate, rest, (t1, x2), (x1, t2))


def _keep_vjp(ctx: Any, operands: tuple, rest: tuple) -> None:
    ctx.needs, *ctx.given = rest
    ctx.save_for_backward(*operands)
    ctx.set_materialize_grads(False)


def _backward_vjp(ctx: Any, needs: tuple[bool, ...], *cotangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """From ``h1, h2``: to g ``forward(h1, x2) + forward(x1, h2)``, to x1 ``g1(g, h2)``, to x2 ``g2(g, h1)``."""
    g, x1, x2 = ctx.saved_tensors
    h1, h2 = _needed(cotangents, ctx.needs)
    to_g, to_x1, to_x2 = needs
    return (
        _sum(correlate, ctx.given, (h1, x2), (x1, h2)) if to_g else None,
        _sum(_gradient1, ctx.given, (g, x1, h2)) if to_x1 else None,
        _sum(_gradient2, ctx.given, (g, h1, x2)) if to_x2 else None,
    )


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
_rules, _rules_vjp = Rules(_keep, _backward, _tangent), Rules(_keep_vjp, _backward_vjp, _tangent_vjp)
_operator = define("spatial_correlation_sample", _FORWARD_SCHEMA, _forward, _fake)
_operator_vjp = define("spatial_correlation_sample_vjp", _VJP_SCHEMA, _vjp, _fake_vjp)
correlate = differentiable(LIBRARY, _operator, Operands(2), _rules, _internals)
correlate_vjp = differentiable(LIBRARY, _operator_vjp, Operands(3), _rules_vjp, _internals)
