"""NVIDIA's ``correlation_package`` (flownet2-pytorch): means over C k k products, (B, D*D, oH, oW), dy-major.

.. code-block:: text

    out[b, m D + n, i, j] = 1 / (C k k) * sum over c, |u| <= r, |v| <= r of
        input1[b, c, y + u, x + v] * input2[b, c, y + u + dy, x + v + dx]
    with  r = (k - 1) // 2,  y = i stride1 + max_displacement - pad_size,  dy = stride2 (m - D // 2),  0 outside the images
          D = 2 (max_displacement // stride2) + 1,  oH = ceil((H + 2 (pad_size - max_displacement - r)) / stride1)

and likewise x, dx, oW. Windows are centred at y, r pixels before those of Caffe and TensorFlow Addons. The original reads outside
its buffers where windows of more than one pixel leave them, and in its gradients for pad_size < max_displacement; for stride1 > 1
its gradients miss pixels. This one is right there.
"""

from __future__ import annotations

import torch

from ._conventions import Layer, first_positions, mean_volume, patch_size, whole

__all__ = ["Correlation", "CorrelationFunction"]


def _correlate(
    input1: torch.Tensor,
    input2: torch.Tensor,
    pad_size: int = 3,
    kernel_size: int = 3,
    max_displacement: int = 20,
    stride1: int = 1,
    stride2: int = 2,
    corr_multiply: int = 1,
) -> torch.Tensor:
    limits = {"pad_size": (pad_size, 0), "kernel_size": (kernel_size, 1), "stride1": (stride1, 1), "stride2": (stride2, 1)}
    pad, kernel, step, step2 = (whole(name, *limit) for name, limit in limits.items())
    patch, radius = patch_size(max_displacement, step2), (kernel - 1) // 2
    out = mean_volume(
        input1, input2, 2 * radius + 1, patch, step, pad - max_displacement + radius, dilation_patch=step2, window=kernel**2
    )
    return first_positions(out, input1, (pad,) * 2, (2 * (max_displacement + radius),) * 2, (step,) * 2)


class CorrelationFunction:
    """NVIDIA's autograd function, for code that calls ``apply`` with its defaults, which are not the module's."""

    apply = staticmethod(_correlate)


class Correlation(Layer):
    """NVIDIA's module; two tensors (B, C, H, W) become (B, D*D, oH, oW), in the dtype and on the device of the inputs.

    Parameters
    ----------
    pad_size : int, default 0
        Zeros around both inputs, in pixels. With a window of one pixel, ``pad_size = max_displacement`` keeps the size.
    kernel_size : int
        k, of a square window. The default of the original, 0, has no meaning and is refused when called.
    max_displacement : int, default 0
        Largest displacement in pixels.
    stride1, stride2 : int, default 1, 2
        Pixels between outputs, and between displacements.
    corr_multiply : int, default 1
        Without effect, as in the original.

    Raises
    ------
    TypeError, ValueError
        When called, for what is not an int, for values that have no meaning, and as `cupycorr.torch.spatial_correlation_sample`.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat.flownet2 import Correlation
    >>> x = torch.ones(1, 16, 20, 30)
    >>> Correlation(pad_size=20, kernel_size=1, max_displacement=20, stride1=1, stride2=2, corr_multiply=1)(x, x).shape
    torch.Size([1, 441, 20, 30])
    """

    function = staticmethod(_correlate)

    def __init__(
        self,
        pad_size: int = 0,
        kernel_size: int = 0,
        max_displacement: int = 0,
        stride1: int = 1,
        stride2: int = 2,
        corr_multiply: int = 1,
    ) -> None:
        super().__init__(pad_size, kernel_size, max_displacement, stride1, stride2, corr_multiply)
