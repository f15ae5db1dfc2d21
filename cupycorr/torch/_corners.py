"""Derivatives of bilinear interpolation in its coordinates: the corners around them, and the factors of the values there.

.. code-block:: text

    V = (1 - wy) (1 - wx) V_00 + (1 - wy) wx V_01 + wy (1 - wx) V_10 + wy wx V_11
    dV / dX = (1 - wy) (V_01 - V_00) + wy (V_11 - V_10),   dV / dY = (1 - wx) (V_10 - V_00) + wx (V_11 - V_01)
    d2V / dX dY = V_11 - V_10 - V_01 + V_00
    with  V_ab the value at (floor(Y) + a, floor(X) + b),   wx = X - floor(X),   wy = Y - floor(Y)

Without Y there are V_0 and V_1, and dV / dX = V_1 - V_0. The weights are differentiable functions of the coordinates; the
positions of corners are constants. Knows no operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch

Tensor = torch.Tensor


class Corners:
    """The corners around coordinates.

    Attributes
    ----------
    positions
        The positions x, or x and y, of each corner: whole numbers in the dtype and the shape of the coordinates.
    """

    def __init__(self, coordinates: Sequence[Tensor], spread: Callable[[Tensor], Tensor]) -> None:
        """Find the corners around coordinates x, or x and y.

        ``spread`` gives the values of queries the axes of the values at corners.
        """
        whole = [x.detach().floor() for x in coordinates]
        self._weights = [spread(x - low) for x, low in zip(coordinates, whole, strict=True)]
        self._spread = spread
        self._signs = list(product((-1, 1), repeat=len(whole)))  # 1 for the second corner along x, or along x and along y
        self.positions = [[low + (sign > 0) for low, sign in zip(whole, signs, strict=True)] for signs in self._signs]

    def slopes(self, directions: Sequence[Tensor]) -> list[Tensor]:
        """Return the factors of the values at the corners in the derivative along directions of the coordinates."""
        along = list(map(self._spread, directions))
        if len(along) == 1:
            return [sign * along[0] for (sign,) in self._signs]
        (wx, wy), (along_x, along_y) = self._weights, along
        return [sx * _weight(wy, sy) * along_x + sy * _weight(wx, sx) * along_y for sx, sy in self._signs]

    def twist(self, values: Sequence[Tensor]) -> Tensor:
        """Return the derivative of x and y of the values at the corners."""
        return total([sx * sy * value for (sx, sy), value in zip(self._signs, values, strict=True)])


def _weight(upper: Tensor, sign: int) -> Tensor:
    return upper if sign > 0 else 1 - upper


def total(terms: Sequence[Tensor]) -> Tensor:
    """Return the sum of at least one tensor, in their order."""
    return sum(terms[1:], terms[0])
