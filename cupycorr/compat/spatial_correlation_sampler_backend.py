"""``spatial_correlation_sampler_backend``, the compiled part of the C++ extension: sums and their gradients.

It serves copies of the extension's Python code in repositories of models, which import it. The numbers are plain ints, with the
vertical one of each pair first. Old copies pass ten numbers instead of twelve, because the extension had no dilation then.
"""

from __future__ import annotations

from typing import Any

import torch

from ._conventions import compiled_backward, compiled_forward
from .spatial_correlation_sampler import spatial_correlation_sample

__all__ = ["backward", "forward"]

# Count of the numbers -> the operator's parameters in the order in which they are passed.
_ORDERS = {
    12: ("kernel_size", "patch_size", "padding", "dilation", "dilation_patch", "stride"),
    10: ("kernel_size", "patch_size", "padding", "dilation_patch", "stride"),
}


def forward(input1: torch.Tensor, input2: torch.Tensor, *numbers: int) -> torch.Tensor:
    """Return the correlation of two tensors (B, C, H, W), (B, patchH, patchW, oH, oW), in their dtype and on their device.

    Parameters
    ----------
    input1, input2 : Tensor of shape (B, C, H, W)
        Any strides. The original's code for GPUs requires contiguous tensors.
    *numbers : int
        kH, kW, patchH, patchW, padH, padW, dilationH, dilationW, dilation_patchH, dilation_patchW, dH, dW. The last two are the
        stride. dilationH and dilationW may be left out together, and are then 1.

    Raises
    ------
    TypeError, ValueError
        There are neither 12 nor 10 numbers; and as `cupycorr.torch.spatial_correlation_sample`.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat import spatial_correlation_sampler_backend
    >>> x = torch.ones(1, 16, 20, 30)
    >>> spatial_correlation_sampler_backend.forward(x, x, 1, 1, 1, 9, 0, 0, 1, 1, 1, 1, 1, 1).shape
    torch.Size([1, 1, 9, 20, 30])
    """
    return compiled_forward(_correlate, input1, input2, *numbers)


def backward(input1: torch.Tensor, input2: torch.Tensor, grad_output: torch.Tensor, *numbers: int) -> list[torch.Tensor]:
    """Return the gradients of both tensors, in their shapes and dtype; numbers and errors are those of `forward`."""
    return list(compiled_backward(_correlate, input1, input2, grad_output, *numbers))


def _correlate(input1: torch.Tensor, input2: torch.Tensor, *numbers: Any) -> torch.Tensor:
    if len(numbers) not in _ORDERS:
        raise TypeError(f"the inputs must be followed by 12 numbers, or by 10 without the dilation, got {len(numbers)} numbers")
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    sizes: dict[str, Any] = dict(zip(_ORDERS[len(numbers)], pairs, strict=True))
    return spatial_correlation_sample(input1, input2, **sizes)
