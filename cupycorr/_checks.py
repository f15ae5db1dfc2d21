"""Checks of what comes with the inputs of any operator: results, cotangents, dtypes of results, needs, temperatures.

This module must not depend on any operator.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._arguments import Shape, is_real
from ._arrays import Role, array_kind, elements_overlap, known_array, plain_number
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
        It has another shape, is on another device, is read-only, or elements of it have the same memory.
    """
    out = beside_inputs("out", out, like, role)
    element_type("out", out.dtype)
    if dtype is not None and out.dtype != (wanted := named_dtype(dtype)):
        raise TypeError(f"out and dtype must agree, got out.dtype={out.dtype.name}, dtype={wanted.name}")
    if out.shape != shape:
        raise ValueError(f"out must have shape {shape}, got out.shape={out.shape}")
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError("out must be writeable, got a read-only array")
    if elements_overlap(out):
        got = f"got out.shape={out.shape}, out.strides={out.strides}"
        raise ValueError(f"out must have memory of its own for every element, {got}")
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


def positive_temperature(temperature: Any, element: ElementType) -> float:
    """Return the temperature of a softmax over scores as a plain float.

    Raises
    ------
    TypeError
        It is not a real number, or a tensor that needs a gradient.
    ValueError
        It is not positive, or is not in the normal range of the accumulator.
    """
    temperature = plain_number("temperature", temperature, "divide the scores instead")
    if not is_real(temperature):
        raise TypeError(f"temperature must be a real number, got temperature={temperature!r}")
    limits = np.finfo(element.accumulator_dtype)
    try:
        value = float(temperature)  # NumPy's small floats would round the limits
    except OverflowError:
        value = math.inf
    if not float(limits.tiny) <= value <= float(limits.max):
        what = f"positive, finite and representable in {element.accumulator}"
        raise ValueError(f"temperature must be {what}, got temperature={temperature!r}")
    return value
