"""The decompositions of the operators into ATen operators, by the formulas of `_formulas`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ._formulas import table

Tensor = torch.Tensor


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return the table with which cupycorr's operators in an exported program become ATen operators.

    Compilers of other projects, such as TensorRT, ExecuTorch and Core ML, do not know the operators of cupycorr. After
    ``program.run_decompositions(decompositions())`` there are none in the program.

    Returns
    -------
    dict
        The table `torch.export.default_decompositions`, with one more entry for each operator of cupycorr.

    Raises
    ------
    NotImplementedError
        Raised by ``run_decompositions`` if the program computes gradients.

    See Also
    --------
    onnx_table : The same for ONNX.

    Notes
    -----
    The results agree with those of the operators to the rounding of sums; infinite and NaN pixels contribute the same. The
    precision and the variant that a call names do not matter. The memory is that of the steps, which docs/export.md lists: in
    particular, matching computes the whole cost volume. An index of `correlation_lookup` that is out of range is not reported.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.torch import SpatialCorrelationSampler, decompositions
    >>> frames = torch.randn(2, 8, 12, 16), torch.randn(2, 8, 12, 16)
    >>> program = torch.export.export(SpatialCorrelationSampler(1, 9), frames)
    >>> plain = program.run_decompositions(decompositions())
    >>> any("cupycorr" in str(node.target) for node in plain.graph.nodes)
    False
    """
    found: Any = torch.export.default_decompositions()
    found.update(table(_computed))
    return found  # type: ignore[no-any-return]


def _computed(formula: Callable[..., Any], *arguments: Any) -> Any:
    return formula(_TorchFunctions(arguments[0].device), *arguments)


class _TorchFunctions:
    """The steps of formulas that are no methods of tensors, for tensors of torch on a device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def numbers(self, count: Any, first: int = 0, step: int = 1) -> Tensor:
        """Return so many whole numbers, in int64."""
        return torch.arange(first, first + step * count, step, dtype=torch.int64, device=self.device)

    def constant(self, values: Sequence[Any], dtype: torch.dtype) -> Tensor:
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
        """Return the elements of a tensor from one index to another of an axis."""
        return x[(slice(None),) * axis + (slice(start, stop, step),)]

    def padded(self, x: Tensor, axis: int, count: int) -> Tensor:
        """Return a tensor with so many zeros before and after it along an axis."""
        return torch.nn.functional.pad(x, (0, 0) * (x.dim() - 1 - axis) + (count, count))
