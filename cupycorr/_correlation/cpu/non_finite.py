"""Correction of gradients of windows where a value is not finite.

A gradient by window sums multiplies a pixel with the sum of its cotangents, and with zero where it has none. The definition
multiplies it with each of its cotangents. For finite values these are equal; but (1 - 2) Inf differs from 1 Inf - 2 Inf, and
0 Inf is NaN. So where such a gradient is not finite, it is computed again from sums of finite numbers only. With n(x) = 1 where x
is not finite, s(x) the sign of x (0 for NaN), i(x) = s(x) where x is infinite, and f(x) = x where x is finite, all 0 elsewhere,

    T = sum of 1 n(X) + n(g) 1 - n(g) n(X)             the number of products that are not finite
    S = sum of s(g) i(X) + i(g) s(X) - i(g) i(X)       the sum of their signs, 0 for each that is NaN

and the gradient is the sum of f(g) f(X) where T = 0, Inf with the sign of S where |S| = T, and NaN elsewhere. This module knows
the gradient only as a function that is linear in both arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np

from ..._cpu.workers import WORKSPACE
from ..._dtypes import element_type
from .blocks import split_range
from .packing import Elementwise

SUM_BYTES = WORKSPACE // 16  # the bytes of each sum for the channels that are corrected at once

_EXPONENTS = {
    "float16": np.uint16(0x7C00),
    "bfloat16": np.uint16(0x7F80),
}  # bits of the exponent, all set where a value is not finite

Linear = Callable[[slice, slice, np.ndarray, Elementwise, Elementwise], None]  # samples, channels, result, functions of g and X


def correct(gradient: np.ndarray, linear: Linear, scale: float) -> None:
    """Correct a gradient by window sums in place, wherever it is not finite.

    Parameters
    ----------
    gradient : array (B, C, H, W)
        The gradient by window sums.
    linear
        A function that writes the unscaled gradient of some samples and channels, in which functions of their values take the
        place of the cotangent and of the image.
    scale
        The factor by which the gradient was multiplied.
    """
    batch, channels, height, width = gradient.shape
    dtype = element_type("gradient", gradient.dtype).accumulator_dtype
    depth = max(SUM_BYTES // (height * width * dtype.itemsize), 1)
    for sample, channel_range in product(range(batch), split_range(0, channels, depth)):
        at = slice(sample, sample + 1), slice(*channel_range)
        if not _all_finite(gradient[at]):
            _correct_channels(gradient[at], partial(_sum, at, linear, gradient[at].shape, dtype), scale)


def _all_finite(values: np.ndarray) -> bool:
    """Return whether all values are finite; of 16-bit types by their exponents, as `np.isfinite` is many times slower there."""
    exponent = _EXPONENTS.get(values.dtype.name)
    if exponent is None:
        return bool(np.isfinite(values).all())
    return not (values.view(np.uint16) & exponent == exponent).any()


def _correct_channels(gradient: np.ndarray, total: Callable[[Elementwise, Elementwise], np.ndarray], scale: float) -> None:
    """Compute the gradient again by the formula of this module; ``total(f, h)`` returns the sum of f(g) h(X)."""
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
    np.copyto(gradient, sums, casting="unsafe")


def _sum(at: tuple[slice, slice], linear: Linear, shape: tuple, dtype: np.dtype, *functions: Elementwise) -> np.ndarray:
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
