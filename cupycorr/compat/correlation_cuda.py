"""``correlation_cuda``, the compiled half of NVIDIA's ``correlation_package``: `flownet2`, written into given tensors.

For the many copies of the package's Python half, which lie wherever a model's code has put them and import this. ``rbot1`` and
``rbot2``, where the original keeps padded copies of both inputs, stay as they are.
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
    """Write the correlation of two tensors (B, C, H, W) into ``output``, of their dtype, which becomes (B, D*D, oH, oW); 1.

    The numbers are those of `flownet2.Correlation`, and so are the errors.
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
    """Write both gradients, of the inputs' shapes and dtype, into ``grad_input1`` and ``grad_input2``; the rest as `forward`."""
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
