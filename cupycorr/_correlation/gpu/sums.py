"""The sums that plans are made for: a forward sum or gradients, with their axes, arrays, scale and device.

The arrays may be slices of the caller's, or volumes in the workspace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..._gpu.call import Array
from ..._gpu.device import Device
from .axes import Line


@dataclass(frozen=True, slots=True)
class ForwardSum:
    """An output, the sum of products of input1 and input2."""

    vertical: Line
    horizontal: Line
    input1: Array
    input2: Array
    out: Array
    scale: float
    device: Device


@dataclass(frozen=True, slots=True)
class Operand:
    """The gradient of input ``number``, from the other input.

    One that is not needed is not computed, but counts in the choice of a plan: the other has the same bits with and without it.
    """

    number: int
    other: Array
    result: Array
    needed: bool = True


@dataclass(frozen=True, slots=True)
class GradientSum:
    """The gradients of the operands, sums of products of the cotangent and the other input."""

    vertical: Line
    horizontal: Line
    cotangent: Array
    operands: Sequence[Operand]
    scale: float
    device: Device
