"""The decompositions of the operators into ATen operators, for programs of `torch.export`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from . import _formulas

Tensor = torch.Tensor


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return the table for `torch.export.ExportedProgram.run_decompositions` in which cupycorr's operators become ATen operators."""
    table: Any = torch.export.default_decompositions()
    table.update(operators())
    return table


def operators() -> dict[Any, Callable[..., Any]]:
    found = {}
    for name, formula in _formulas.OPERATORS:
        found[getattr(torch.ops.cupycorr, name).default] = partial(_run, formula)
    return found


def _run(formula: Callable[..., Any], *arguments: Any) -> Any:
    return formula(_Functions(arguments[0].device), *arguments)


class _Functions:
    """The functions on tensors of torch that the formulas use."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def numbers(self, count: Any, first: int = 0, step: int = 1) -> Tensor:
        """Return so many whole numbers, in int64."""
        return torch.arange(first, first + step * count, step, dtype=torch.int64, device=self.device)

    def constant(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        """Return a vector of numbers."""
        return torch.cat([torch.full((1,), value, dtype=dtype, device=self.device) for value in values])

    def vector(self, sizes: Sequence[Any]) -> Tensor:
        """Return a vector of sizes, in int64."""
        return self.constant(sizes, torch.int64)

    def cat(self, tensors: Sequence[Tensor], axis: int) -> Tensor:
        """Return tensors joined along an axis."""
        return torch.cat(list(tensors), axis)

    def split(self, x: Tensor, axis: int, count: int) -> Sequence[Tensor]:
        """Return the elements of an axis, each as a tensor in which the axis has one element."""
        return [x.narrow(axis, number, 1) for number in range(count)]

    def taken(self, x: Tensor, axis: int, index: Tensor) -> Tensor:
        """Return the elements at indices of an axis; the axes of the indices take its place."""
        return x[(slice(None),) * axis + (index,)]

    def part(self, x: Tensor, axis: int, start: int, stop: Any, step: int = 1) -> Tensor:
        """Return the elements of a tensor with these indices along an axis."""
        return x[(slice(None),) * axis + (slice(start, stop, step),)]

    def padded(self, x: Tensor, axis: int, count: int) -> Tensor:
        """Return a tensor with so many zeros before and after it along an axis."""
        return torch.nn.functional.pad(x, (0, 0) * (x.dim() - 1 - axis) + (count, count))
