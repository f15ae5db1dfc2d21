"""Paddle's ``correlation`` on torch tensors: means over C k k products, (B, D*D, oH, oW), dy-major.

The value is that of `cupycorr.compat.flownet2`, from which Paddle's kernels are derived; Paddle's names and order are here.
"""

from __future__ import annotations

import torch

from ._conventions import Sizes, check_multiplies, check_shapes
from .flownet2 import CorrelationFunction

__all__ = ["correlation"]


def correlation(
    x: torch.Tensor,
    y: torch.Tensor,
    pad_size: Sizes,
    kernel_size: Sizes,
    max_displacement: Sizes,
    stride1: Sizes,
    stride2: Sizes,
    corr_type_multiply: int = 1,
) -> torch.Tensor:
    """Return the cost volume of two feature maps.

    Parameters
    ----------
    x, y : Tensor of shape (B, C, H, W)
        Feature maps of one dtype on one device, of any strides.
    pad_size : int or (int, int)
        Zeros around the images, in pixels.
    kernel_size : int or (int, int)
        k, the size of a window.
    max_displacement : int or (int, int)
        Largest displacement in pixels.
    stride1, stride2 : int or (int, int)
        Pixels between outputs, and between displacements.
    corr_type_multiply : {1}
        1 for products; nothing else is available.

    Returns
    -------
    Tensor of shape (B, D*D, oH, oW)
        In the dtype and on the device of the inputs.

    Raises
    ------
    NotImplementedError
        ``corr_type_multiply`` is not 1.
    TypeError, ValueError
        A value has no meaning; and as `cupycorr.torch.spatial_correlation_sample`.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat.paddle import correlation
    >>> x = torch.ones(1, 16, 20, 30)
    >>> correlation(x, x, pad_size=4, kernel_size=1, max_displacement=4, stride1=1, stride2=1).shape
    torch.Size([1, 81, 20, 30])
    """
    check_multiplies("corr_type_multiply", corr_type_multiply)
    check_shapes(x=(x, "B C H W"), y=(y, "B C H W"))
    volume: torch.Tensor = CorrelationFunction.apply(x, y, pad_size, kernel_size, max_displacement, stride1, stride2)
    return volume
