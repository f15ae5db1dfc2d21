"""Checks of the arguments that all operators share: integers and pairs of integers, real numbers, the precision of products.

This module must not depend on any operator, array library or device.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any, SupportsIndex

import numpy as np

Pair = tuple[int, int]  # (vertical, horizontal)
Shape = tuple[int, ...]
IntOrPair = SupportsIndex | Sequence[SupportsIndex]  # as callers pass it
PRECISIONS = HIGHEST, HIGH, MEDIUM = ("highest", "high", "medium")  # of float32 products, torch's names
LARGEST = 2**63 - 1  # kernels and torch's operators take 64-bit integers
INT_OR_PAIR = "an int or a (vertical, horizontal) pair of ints"
_LONGEST_SHOWN = 100  # characters


def pair(name: str, value: Any, minimum: int | None) -> Pair:
    """Return an argument as a pair of plain ints: one int is for both axes, a tuple or list has one int for each.

    Raises
    ------
    TypeError
        An element is not an int.
    ValueError
        There are not two elements, or one is below ``minimum`` or does not fit into 64 bits.
    """
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name} must be {INT_OR_PAIR}, got {name}={shown(value)}")
    vertical, horizontal = (integer(name, each, INT_OR_PAIR, value) for each in values)
    if minimum is not None and min(vertical, horizontal) < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {name}={shown(value)}")
    if max(vertical, horizontal) > LARGEST or min(vertical, horizontal) < -LARGEST:
        raise ValueError(f"{name} must fit into 64 bits, got {name}={shown(value)}")
    return vertical, horizontal


def integer(name: str, value: Any, what: str, given: Any) -> int:
    """Return a value as a plain int. NumPy's ints are ints; floats and bools are not.

    Raises
    ------
    TypeError
        It is not an int; the message says that ``name`` must be ``what``, and shows the whole argument that was ``given``.
    """
    # Python's bool has an __index__, and NumPy's one that warns in some versions. torch.compile up to 2.11 fails on `index` of a
    # type without it.
    if not isinstance(value, (bool, np.bool_, float, complex, str, bytes)):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} must be {what}, got {name}={shown(given)}")


def at_least(minimum: int, name: str, value: Any) -> int:
    """Return an argument as a plain int.

    Raises
    ------
    TypeError, ValueError
        It is not an int of at least ``minimum``.
    """
    plain = integer(name, value, "an int", value)
    if plain < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {name}={shown(value)}")
    return plain


_PLAIN = frozenset((int, float, bool, str, type(None)))


def types_of(values: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Return the types of plain values and of tuples of them, by which a cache must tell them apart: True, 1 and 1.0 are equal.

    It is None where a value is anything else: it may change, or be equal to one that means something else.
    """
    types = tuple(map(type, values))
    if _PLAIN.issuperset(types):
        return types
    others = [value for value in values if type(value) not in _PLAIN]
    for each in others:
        if type(each) is not tuple or not _PLAIN.issuperset(map(type, each)):
            return None
    return types, tuple([tuple(map(type, each)) for each in others])


def shown(value: Any) -> str:
    """Return the repr of an argument in one short line; that of an array passed by mistake would fill a screen."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def finite_number(name: str, given: Any) -> float:
    """Return an argument as a plain float, and refuse everything but finite real numbers."""
    if not is_real(given):
        raise TypeError(f"{name} must be a real number, got {name}={given!r}")
    try:
        value = float(given)
    except OverflowError:
        raise ValueError(f"{name} must be finite, got {name}={given!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {name}={given!r}")
    return value


def is_real(value: Any) -> bool:
    """Return whether a value is a real number: Python's, or a scalar of NumPy or `ml_dtypes`.

    float() would also accept NumPy's complex numbers (and drop the imaginary part), bools, strings and arrays of one element.
    """
    if isinstance(value, np.generic) and not isinstance(value, Real):
        return value.dtype.kind not in "bcSU" and np.can_cast(value.dtype, np.float64)
    return isinstance(value, Real) and not isinstance(value, bool)


def check_precision(precision: Any) -> str:
    """Return a precision, and refuse everything but torch's three names for that of float32 products."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, got precision={precision!r}")
    checked: str = precision
    return checked


def effective_precision(precision: str, dtype: str) -> str:
    """Return `HIGH` where tensor cores may round products of float32, else `HIGHEST`: other dtypes are multiplied as they are."""
    return HIGH if precision != HIGHEST and dtype == "float32" else HIGHEST
