"""``correlation_cuda``, the compiled half of NVIDIA's ``correlation_package``: `flownet2`, written into given tensors.

For the many copies of the package's Python half, which lie wherever a model's code has put them and import this. ``rbot1`` and
``rbot2``, where the original keeps padded copies of both inputs, stay as they are.
"""

from __future__ import annotations

import torch

from .flownet2 import CorrelationFunction

__all__ = ["backward", "forward"]


def forward(
    input1: torch.Tensor, input2: torch.Tensor, rbot1: torch.Tensor, rbot2: torch.Tensor, output: torch.Tensor, *parameters: int
) -> int:
    """Write the correlation of two tensors (B, C, H, W) into ``output``, which becomes (B, D*D, oH, oW); returns 1.

    Parameters
    ----------
    *parameters : int
        ``pad_size, kernel_size, max_displacement, stride1, stride2, corr_multiply``, as `flownet2.Correlation` takes them.

    Raises
    ------
    TypeError, ValueError
        As `flownet2.Correlation`.
    """
    with torch.no_grad():
        _write(output, CorrelationFunction.apply(input1, input2, *parameters))
    return 1


def backward(
    input1: torch.Tensor,
    input2: torch.Tensor,
    rbot1: torch.Tensor,
    rbot2: torch.Tensor,
    grad_output: torch.Tensor,
    grad_input1: torch.Tensor,
    grad_input2: torch.Tensor,
    *parameters: int,
) -> int:
    """Write both gradients, of the inputs' shapes, into ``grad_input1`` and ``grad_input2``; the rest as `forward`."""
    with torch.enable_grad():
        leaves = [image.detach().requires_grad_() for image in (input1, input2)]
        gradients = torch.autograd.grad(CorrelationFunction.apply(*leaves, *parameters), leaves, grad_output)
    for given, gradient in zip((grad_input1, grad_input2), gradients, strict=True):
        _write(given, gradient)
    return 1


def _write(given: torch.Tensor, result: torch.Tensor) -> None:
    with torch.no_grad():
        given.resize_(result.shape).copy_(result)
