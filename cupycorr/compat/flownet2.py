"""NVIDIA's ``correlation_package`` (flownet2-pytorch): means over C k k products, (B, D*D, oH, oW), dy-major.

Unlike in the original, every size may be a ``(vertical, horizontal)`` pair: a search along rows alone has
``max_displacement=(0, 20)`` and ``pad_size=(0, 20)``. Each axis then has its own numbers in the formula, with DH*DW displacements
instead of D*D and kH kW products instead of k k.

.. code-block:: text

    out[b, m D + n, i, j] = 1 / (C k k) * sum over c, |u| <= r, |v| <= r of
        input1[b, c, y + u, x + v] * input2[b, c, y + u + dy, x + v + dx]
    with  r = (k - 1) // 2,  y = i stride1 + max_displacement - pad_size,  dy = stride2 (m - D // 2),  0 outside the images
          D = 2 (max_displacement // stride2) + 1,  oH = ceil((H + 2 (pad_size - max_displacement - r)) / stride1)

and likewise x, dx, oW. Windows are centred at y, r pixels before those of Caffe and TensorFlow Addons. The original reads outside
its buffers if windows of more than one pixel leave them, and in its gradients if pad_size < max_displacement; if stride1 > 1, its
gradients miss pixels. This adapter is correct in all three cases.
"""

from __future__ import annotations

import torch

from .._arguments import pair
from ._conventions import Layer, Sizes, first_positions, mean_volume, patch_size

__all__ = ["Correlation", "CorrelationFunction"]


def _correlate(
    input1: torch.Tensor,
    input2: torch.Tensor,
    pad_size: Sizes = 3,
    kernel_size: Sizes = 3,
    max_displacement: Sizes = 20,
    stride1: Sizes = 1,
    stride2: Sizes = 2,
    corr_multiply: int = 1,
) -> torch.Tensor:
    limits = {"pad_size": (pad_size, 0), "kernel_size": (kernel_size, 1), "stride1": (stride1, 1), "stride2": (stride2, 1)}
    pads, kernels, steps, steps2 = (pair(name, *limit) for name, limit in limits.items())
    longest = pair("max_displacement", max_displacement, 0)
    patches = patch_size(longest, steps2)
    radii = tuple((kernel - 1) // 2 for kernel in kernels)
    windows = tuple(2 * radius + 1 for radius in radii)
    paddings = tuple(pad - far + radius for pad, far, radius in zip(pads, longest, radii, strict=True))
    out = mean_volume(input1, input2, windows, patches, steps, paddings, dilation_patch=steps2, window=kernels)
    borders = tuple(2 * (far + radius) for far, radius in zip(longest, radii, strict=True))
    return first_positions(out, input1, pads, borders, steps)


class CorrelationFunction:
    """NVIDIA's autograd function, for code that calls ``apply``. As in the original, its defaults are not those of the module."""

    apply = staticmethod(_correlate)


class Correlation(Layer):
    """NVIDIA's module, from two tensors (B, C, H, W) to (B, D*D, oH, oW), in the dtype and on the device of the inputs.

    Parameters
    ----------
    pad_size : int or (int, int), default 0
        Zeros around both inputs, in pixels. With a window of one pixel, ``pad_size = max_displacement`` keeps the size.
    kernel_size : int or (int, int)
        k, the size of a window. The original's default, 0, has no meaning and is refused when the module is called.
    max_displacement : int or (int, int), default 0
        Largest displacement in pixels.
    stride1, stride2 : int or (int, int), default 1, 2
        Pixels between outputs, and between displacements.
    corr_multiply : int, default 1
        Has no effect, as in the original.

    Raises
    ------
    TypeError, ValueError
        When called: a size is neither an int nor a pair of ints, or has no meaning; and as
        `cupycorr.torch.spatial_correlation_sample`.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat.flownet2 import Correlation
    >>> x = torch.ones(1, 16, 20, 30)
    >>> Correlation(pad_size=20, kernel_size=1, max_displacement=20, stride1=1, stride2=2, corr_multiply=1)(x, x).shape
    torch.Size([1, 441, 20, 30])
    >>> Correlation(pad_size=(0, 20), kernel_size=1, max_displacement=(0, 20), stride2=1)(x, x).shape  # along rows alone
    torch.Size([1, 41, 20, 30])
    """

    function = staticmethod(_correlate)

    def __init__(
        self,
        pad_size: Sizes = 0,
        kernel_size: Sizes = 0,
        max_displacement: Sizes = 0,
        stride1: Sizes = 1,
        stride2: Sizes = 2,
        corr_multiply: int = 1,
    ) -> None:
        super().__init__(pad_size, kernel_size, max_displacement, stride1, stride2, corr_multiply)
