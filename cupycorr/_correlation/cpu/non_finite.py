"""Gradients of windows where the data is not finite.

A gradient by window sums multiplies a pixel with the sum of its cotangents, and with zero where it has none. The definition
multiplies it with each of its cotangents. For finite data these are the same; but (1 - 2) inf is not 1 inf - 2 inf, and 0 inf is
not nothing. So where such a gradient is not finite, it is made again from sums of finite numbers only. With n(x) = 1 where x is
not finite, s(x) its sign (0 of NaN), i(x) = s(x) where x is infinite and f(x) = x where x is finite, 0 elsewhere,

    T = sum of 1 n(X) + n(g) 1 - n(g) n(X)             products that are not finite
    S = sum of s(g) i(X) + i(g) s(X) - i(g) i(X)       their signs, 0 of those that are NaN

and the gradient is sum of f(g) f(X) where T = 0, an infinity of S's sign where |S| = T, and NaN elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np

from ..._dtypes import element_type
from .blocks import cut
from .packing import Values

PART_BYTES = 2**22  # of each of the sums of a part of the gradient

_EXPONENTS = {"float16": np.uint16(0x7C00), "bfloat16": np.uint16(0x7F80)}  # all ones where a value is not finite

Linear = Callable[[slice, slice, np.ndarray, Values, Values], None]  # samples, channels, result, functions of g and X


def correct(gradient: np.ndarray, linear: Linear, scale: float) -> None:
    """Correct a gradient by window sums wherever it is not finite.

    Parameters
    ----------
    gradient : array (B, C, H, W)
        The gradient as computed; corrected in place.
    linear
        Writes the gradient of some samples and channels, from functions of the cotangent's and of the image's values, unscaled.
    scale
        The factor by which the gradient was multiplied.
    """
    batch, channels, height, width = gradient.shape
    dtype = element_type("gradient", gradient.dtype).accumulator_dtype
    depth = max(PART_BYTES // (height * width * dtype.itemsize), 1)
    for sample, part in product(range(batch), cut(0, channels, depth)):
        at = slice(sample, sample + 1), slice(*part)
        if not _all_finite(gradient[at]):
            _correct_part(gradient[at], lambda *functions, at=at: _sum(at, linear, gradient[at].shape, dtype, *functions), scale)


def _all_finite(values: np.ndarray) -> bool:
    """Return whether all values are finite; of 16 bits by their exponents, for which NumPy takes many times as long."""
    exponent = _EXPONENTS.get(values.dtype.name)
    if exponent is None:
        return bool(np.isfinite(values).all())
    return not (values.view(np.uint16) & exponent == exponent).any()


def _correct_part(part: np.ndarray, total: Callable[[Values, Values], np.ndarray], scale: float) -> None:
    count = total(_ones, _not_finite)
    count += total(_not_finite, _ones)
    count -= total(_not_finite, _not_finite)
    signs = total(_sign, _sign_of_infinite)
    signs += total(_sign_of_infinite, _sign)
    signs -= total(_sign_of_infinite, _sign_of_infinite)
    sums = total(_finite, _finite)
    sums *= scale
    sums[count > 0] = np.nan
    infinite = (count > 0) & (np.abs(signs) == count)
    sums[infinite] = (np.inf * np.sign(scale) * signs)[infinite]
    np.copyto(part, sums, casting="unsafe")


def _sum(at: tuple[slice, slice], linear: Linear, shape: tuple, dtype: np.dtype, *functions: Values) -> np.ndarray:
    result = np.empty(shape, dtype)
    linear(*at, result, *functions)
    return result


def _ones(values: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.int8(1), values.shape)


def _not_finite(values: np.ndarray) -> np.ndarray:
    return (~np.isfinite(values)).astype(np.int8)


def _sign(values: np.ndarray) -> np.ndarray:
    return (values > 0).astype(np.int8) - (values < 0).astype(np.int8)


def _sign_of_infinite(values: np.ndarray) -> np.ndarray:
    return _sign(values) * np.isinf(values)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, values.dtype.type(0))
