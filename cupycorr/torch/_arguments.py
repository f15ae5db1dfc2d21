"""Checks of arguments that the public torch functions share: tensors, autocast, and scales that are traced.

Knows no operator.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .._arguments import check_precision, types_of
from .._arrays import dense_tensor, plain_number
from .._dtypes import no_element_type
from ._tensors import ELEMENTS

_REMEDY = "multiply the result instead"
_AUTOCAST_DEVICES = ("cpu", "cuda")
_TRACED = (int, float, torch.SymInt, torch.SymFloat)


def dense(name: str, value: Any, what: str = "a torch tensor") -> torch.Tensor:
    """Return a dense tensor as it is. The error of anything else calls it ``name`` and says that it must be ``what``."""
    if not isinstance(value, torch.Tensor):
        remedy = (
            ": use torch.export, or torch.fx.wrap a function that calls the operator" if isinstance(value, torch.fx.Proxy) else ""
        )
        raise TypeError(f"{name} must be {what}, got {type(value).__module__}.{type(value).__qualname__}{remedy}")
    return value if value.layout is torch.strided and not (value.is_nested or value.is_quantized) else dense_tensor(name, value)


def cast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the tensors in autocast's dtype if it is on. It does not apply to float64 or to integers."""
    kind = tensors[0].device.type
    if kind not in _AUTOCAST_DEVICES or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors)


def without_autocast(like: Any) -> AbstractContextManager[Any]:
    """Return a context in which autocast is off for the device of a tensor; anything else has none."""
    kind = like.device.type if isinstance(like, torch.Tensor) else ""
    is_on = kind in _AUTOCAST_DEVICES and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if is_on else nullcontext()


def number(scale: Any) -> Any:
    """Return a scale as a number if it is a tensor.

    A scale computed from sizes under torch.jit.trace is a tensor, too, and becomes a constant of the trace.
    """
    return plain_number("scale", scale, _REMEDY) if isinstance(scale, torch.Tensor) else scale


def with_traced_scale(normal: Callable[[Any], tuple[Any, ...]], scale: Any, place: int) -> tuple[Any, ...]:
    """Return the checked arguments that ``normal`` makes of a scale, which has that place among them, while a graph is traced.

    A traced number may be a symbol, which cannot be checked for being finite. The operator checks its value when it runs.
    """
    if type(scale) not in _TRACED:
        return normal(scale)
    arguments = normal(1.0)
    return (*arguments[:place], torch.sym_float(scale), *arguments[place + 1 :])  # type: ignore[no-untyped-call]


def key_of(values: tuple[Any, ...], dtype: Any) -> tuple[Any, ...] | None:
    """Return what a cache must tell apart beside the values and the dtype; None where the call cannot be in a cache."""
    return types_of(values) if dtype is None or type(dtype) is torch.dtype else None


def check_dtype_and_precision(dtype: Any, precision: Any) -> None:
    """Refuse a dtype of results and a precision that no operator has; both may be None."""
    if precision is not None:
        check_precision(precision)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in ELEMENTS):
        raise no_element_type(dtype)


def shortest(arguments: Any) -> tuple[Any, ...]:
    """Return a named tuple of arguments without those at the end that are the defaults: each one costs 0.3 us per call."""
    defaults = arguments._field_defaults.values()
    differs = [value != default for value, default in zip(arguments, defaults, strict=True)]
    return tuple(arguments[: len(differs) - differs[::-1].index(True)]) if any(differs) else ()
