"""Checks of the arrays and choices that come with the inputs of any operator: results, cotangents, dtypes of results, needs.

This module must not depend on any operator.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._arguments import Shape
from ._arrays import Role, array_kind, known_array
from ._dtypes import ElementType, element_type, named_dtype


def beside_inputs(name: str, array: Any, like: Any, role: Role) -> Any:
    """Return an array after checking that it is of the kind of an input and on its device.

    Raises
    ------
    TypeError
        It is not an array, or one of another kind.
    ValueError
        It is on another device.
    """
    array = known_array(name, array, role)
    if array_kind(array) != array_kind(like):
        got = f"{name} on {array_kind(array)} and inputs on {array_kind(like)}"
        raise TypeError(f"{name} must be of the inputs' kind, got {got}")
    if array.device != like.device:
        raise ValueError(f"{name} must be on the inputs' device, got {name} on {array.device} and inputs on {like.device}")
    return array


def result_dtype(like: Any, dtype: Any) -> np.dtype[Any]:
    """Return the dtype of a result: the one that the caller passed, else that of an input."""
    found: np.dtype[Any] = like.dtype if dtype is None else named_dtype(dtype)
    return found


def checked_out(out: Any, like: Any, shape: Shape, dtype: Any, role: Role) -> Any:
    """Check the caller's array for a result and return it as an array of the inputs' kind.

    Raises
    ------
    TypeError
        It is no array of the inputs' kind, or its dtype is not supported or not the one that was passed as ``dtype``.
    ValueError
        It has another shape, is on another device or is read-only.
    """
    out = beside_inputs("out", out, like, role)
    element_type("out", out.dtype)
    if dtype is not None and out.dtype != (wanted := named_dtype(dtype)):
        raise TypeError(f"out and dtype must agree, got out.dtype={out.dtype.name}, dtype={wanted.name}")
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got out.shape={out.shape}")
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError("out must be writeable, got a read-only array")
    return out


def checked_cotangent(cotangent: Any, like: Any, shape: Shape, result: np.dtype[Any], role: Role) -> Any:
    """Check the cotangent and return it as an array of the inputs' kind; errors as `beside_inputs` and `check_cotangent`."""
    cotangent = beside_inputs("cotangent", cotangent, like, role)
    rows = element_type("cotangent", cotangent.dtype), element_type("dtype", result)
    check_cotangent(*rows, cotangent.shape, shape)
    return cotangent


def check_cotangent(element: ElementType, result: ElementType, shape: Shape, out_shape: Shape) -> None:
    """Refuse a cotangent that is not of the output's dtype and shape."""
    if element is not result:
        raise TypeError(f"cotangent must have the output's dtype {result.name}, got cotangent.dtype={element.name}")
    if tuple(shape) != out_shape:
        raise ValueError(f"cotangent must have the output's shape {out_shape}, got cotangent.shape={tuple(shape)}")


def bools(name: str, value: Any, count: int, what: str) -> tuple[bool, ...]:
    """Return a tuple or list of so many bools as a tuple; the error of any other value says that it must be ``what``."""
    if not isinstance(value, (tuple, list)) or len(value) != count or not all(isinstance(each, bool) for each in value):
        raise TypeError(f"{name} must be {what}, got {name}={value!r}")
    return tuple(value)
