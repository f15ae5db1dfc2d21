"""Arguments that every operator takes, checked: integers and pairs of them, real numbers, the precision of float32 products.

Knows no operator, array or device.
"""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

import numpy as np

Pair = tuple[int, int]
Shape = tuple[int, ...]
PRECISIONS = HIGHEST, HIGH, MEDIUM = ("highest", "high", "medium")  # of float32 products, torch's names
LARGEST = 2**63 - 1  # kernels and torch's operators take 64-bit integers
_LONGEST_SHOWN = 100  # characters
_INT_OR_PAIR = "an int or a (vertical, horizontal) pair of ints"


def pair(name: str, value: Any, minimum: int | None) -> Pair:
    """One int for both axes, or a ``(vertical, horizontal)`` tuple or list of two."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name} must be {_INT_OR_PAIR}, got {name}={shown(value)}")
    integers = tuple(integer(name, v, _INT_OR_PAIR, value) for v in values)
    if minimum is not None and min(integers) < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {name}={shown(value)}")
    if max(integers) > LARGEST or min(integers) < -LARGEST:
        raise ValueError(f"{name} must fit into 64 bits, got {name}={shown(value)}")
    return integers


def integer(name: str, value: Any, what: str, given: Any) -> int:
    """One plain int out of an argument that was ``given``; numpy's ints are ints, floats and bools are not.

    Raises
    ------
    TypeError
        It is not one; the message says that ``name`` must be ``what``.
    """
    # numpy's bool has no __index__ since 2.0, Python's does. torch.compile up to 2.11 stops at `index` of what has none.
    if not isinstance(value, (bool, float, complex, str, bytes)):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} must be {what}, got {name}={shown(given)}")


def shown(value: Any) -> str:
    """What was given in one short line: an array passed by mistake would fill a screen."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def finite_scale(scale: Any) -> float:
    if not is_real(scale):
        raise TypeError(f"scale must be a real number, got scale={scale!r}")
    try:
        value = float(scale)
    except OverflowError:
        raise ValueError(f"scale must be finite, got scale={scale!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"scale must be finite, got scale={scale!r}")
    return value


def is_real(value: Any) -> bool:
    """Return whether a value is a real number: Python's, or a scalar of NumPy or `ml_dtypes`.

    float() would also take complex numbers of NumPy (whose imaginary part it drops), bools, strings and arrays of one element.
    """
    if isinstance(value, np.generic) and not isinstance(value, Real):
        return value.dtype.kind not in "bcSU" and np.can_cast(value.dtype, np.float64)
    return isinstance(value, Real) and not isinstance(value, bool)


def check_precision(precision: Any) -> str:
    """Refuse a precision that is not one of torch's three names for float32 products."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got precision={precision!r}")
    return precision


def effective_precision(precision: str, dtype: str) -> str:
    """Return `HIGH` where tensor cores may round products of float32, else `HIGHEST`: other dtypes are multiplied as they are."""
    return HIGH if precision != HIGHEST and dtype == "float32" else HIGHEST
