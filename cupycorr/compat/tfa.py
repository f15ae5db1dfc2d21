"""``CorrelationCost`` of TensorFlow Addons, on torch tensors: means over C k k products, D*D displacements, dy-major.

.. code-block:: text

    out[b, m D + n, i, j] = 1 / (C k k) * sum over c, u < k, v < k of
        input_a[b, c, y + u, x + v] * input_b[b, c, y + u + dy, x + v + dx]
    with  y = i stride_1 + max_displacement - pad,  dy = stride_2 (m - D // 2),  0 outside the images
          D = 2 (max_displacement // stride_2) + 1,  H' = ceil((H + 2 (pad - max_displacement) - k + 1) / stride_1)

and likewise x, dx, W'. This is the original's code for GPUs; its code for CPUs multiplies ``pad`` by ``stride_1``. Unlike in the
original, every size may be a ``(vertical, horizontal)`` pair: a search along rows alone has ``max_displacement=(0, 20)`` and
``pad=(0, 20)``. Each axis then has its own numbers in the formula, with DH*DW displacements instead of D*D and kH kW products
instead of k k.
"""

from __future__ import annotations

import torch

from .._arguments import pair
from ._conventions import Sizes, is_image, mean_volume, patch_size

__all__ = ["CorrelationCost", "correlation_cost"]

_LAST, _FIRST = "channels_last", "channels_first"


def correlation_cost(
    input_a: torch.Tensor,
    input_b: torch.Tensor,
    kernel_size: Sizes,
    max_displacement: Sizes,
    stride_1: Sizes,
    stride_2: Sizes,
    pad: Sizes,
    data_format: str = _LAST,
    name: str | None = None,
) -> torch.Tensor:
    """Return the cost volume of two feature maps.

    Parameters
    ----------
    input_a, input_b : Tensor of shape (B, H, W, C), or (B, C, H, W) where data_format is "channels_first"
        Any strides; neither format is copied.
    kernel_size, max_displacement, stride_1, stride_2, pad : int or (int, int)
        k, odd; largest displacement; steps between outputs and between displacements; zeros around the images; all in pixels.
    data_format : {"channels_last", "channels_first"}
        The memory layout of the inputs and the output.
    name
        Has no effect.

    Returns
    -------
    Tensor of shape (B, H', W', D*D), or (B, D*D, H', W'), in the dtype and on the device of the inputs

    Raises
    ------
    TypeError, ValueError
        ``kernel_size`` is even, or a value has no meaning; and as `cupycorr.torch.spatial_correlation_sample`.
    """
    if data_format not in (_LAST, _FIRST):
        raise ValueError(f"data_format must be {_LAST!r} or {_FIRST!r}, got data_format={data_format!r}")
    kernels, longest = pair("kernel_size", kernel_size, 1), pair("max_displacement", max_displacement, 0)
    if any(kernel % 2 == 0 for kernel in kernels):
        raise ValueError(f"kernel_size must be odd, got kernel_size={kernel_size}")
    steps, steps2 = pair("stride_1", stride_1, 1), pair("stride_2", stride_2, 1)
    paddings = tuple(each - far for each, far in zip(pair("pad", pad, 0), longest, strict=True))
    first, second = _channels_first(input_a, data_format), _channels_first(input_b, data_format)
    out = mean_volume(first, second, kernels, patch_size(longest, steps2), steps, paddings, dilation_patch=steps2)
    return out.movedim(1, -1) if data_format == _LAST else out


def _channels_first(image: torch.Tensor, data_format: str) -> torch.Tensor:
    return image.movedim(-1, 1) if data_format == _LAST and is_image(image) else image


class CorrelationCost(torch.nn.Module):
    """`correlation_cost` as a layer, which is called with a list of both images.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat.tfa import CorrelationCost
    >>> x = torch.ones(1, 20, 30, 16)
    >>> CorrelationCost(1, 4, 1, 2, 4, "channels_last")([x, x]).shape
    torch.Size([1, 20, 30, 25])
    """

    def __init__(
        self,
        kernel_size: Sizes,
        max_displacement: Sizes,
        stride_1: Sizes,
        stride_2: Sizes,
        pad: Sizes,
        data_format: str,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.arguments = (kernel_size, max_displacement, stride_1, stride_2, pad, data_format, name)

    def forward(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Return the cost volume of ``[input_a, input_b]``."""
        if not isinstance(inputs, (list, tuple)) or len(inputs) != 2:
            raise ValueError(f"inputs must be a list of two tensors, got {type(inputs).__name__}")
        return correlation_cost(inputs[0], inputs[1], *self.arguments)
