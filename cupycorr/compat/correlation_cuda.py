"""``correlation_cuda``, the compiled extension of NVIDIA's ``correlation_package``: `flownet2`, written into given tensors.

It serves the many copies of the package's Python code in repositories of models, which import it. The original keeps padded
copies of both inputs in ``rbot1`` and ``rbot2``; here they are not changed.
"""

from __future__ import annotations

from typing import Any

import torch

from ._conventions import Sizes, compiled_backward, compiled_forward
from .flownet2 import CorrelationFunction

__all__ = ["backward", "forward"]


def forward(
    input1: torch.Tensor,
    input2: torch.Tensor,
    rbot1: Any,
    rbot2: Any,
    output: torch.Tensor,
    pad_size: Sizes,
    kernel_size: Sizes,
    max_displacement: Sizes,
    stride1: Sizes,
    stride2: Sizes,
    corr_multiply: int,
) -> int:
    """Write the correlation of two tensors (B, C, H, W) into ``output``, which must have their dtype, and return 1.

    ``output`` becomes (B, D*D, oH, oW). The numbers and the errors are those of `flownet2.Correlation`.
    """
    numbers = pad_size, kernel_size, max_displacement, stride1, stride2, corr_multiply
    _write("output", output, compiled_forward(CorrelationFunction.apply, input1, input2, *numbers))
    return 1


def backward(
    input1: torch.Tensor,
    input2: torch.Tensor,
    rbot1: Any,
    rbot2: Any,
    grad_output: torch.Tensor,
    grad_input1: torch.Tensor,
    grad_input2: torch.Tensor,
    pad_size: Sizes,
    kernel_size: Sizes,
    max_displacement: Sizes,
    stride1: Sizes,
    stride2: Sizes,
    corr_multiply: int,
) -> int:
    """Write both gradients, in the inputs' shapes and dtype, into ``grad_input1`` and ``grad_input2``, and return 1.

    The numbers and the errors are those of `forward`.
    """
    numbers = pad_size, kernel_size, max_displacement, stride1, stride2, corr_multiply
    gradients = compiled_backward(CorrelationFunction.apply, input1, input2, grad_output, *numbers)
    _write("grad_input1", grad_input1, gradients[0])
    _write("grad_input2", grad_input2, gradients[1])
    return 1


@torch.no_grad()
def _write(name: str, given: Any, result: torch.Tensor) -> None:
    if not isinstance(given, torch.Tensor) or given.dtype != result.dtype:
        got = given.dtype if isinstance(given, torch.Tensor) else type(given).__name__
        raise TypeError(f"{name} must be a tensor of the inputs' dtype {result.dtype}, got {got}")
    given.resize_(result.shape).copy_(result)
