"""MXNet's ``Correlation`` on torch tensors: means over C k k products, (B, D*D, oH, oW), dy-major.

The value is that of `cupycorr.compat.tfa` with channels first; MXNet's names and defaults are here.
"""

from __future__ import annotations

import torch

from .._arguments import pair
from ._conventions import Sizes, check_multiplies, check_shapes
from .tfa import correlation_cost

__all__ = ["Correlation"]


def Correlation(  # noqa: N802 (MXNet's name)
    data1: torch.Tensor,
    data2: torch.Tensor,
    kernel_size: Sizes = 1,
    max_displacement: Sizes = 1,
    stride1: Sizes = 1,
    stride2: Sizes = 1,
    pad_size: Sizes = 0,
    is_multiply: bool = True,
    name: str | None = None,
) -> torch.Tensor:
    """Return the cost volume of two feature maps.

    Parameters
    ----------
    data1, data2 : Tensor of shape (B, C, H, W)
        Feature maps of one dtype on one device, of any strides.
    kernel_size : int or (int, int), default 1
        k, the size of a window; it is odd.
    max_displacement : int or (int, int), default 1
        Largest displacement in pixels.
    stride1, stride2 : int or (int, int), default 1
        Pixels between outputs, and between displacements.
    pad_size : int or (int, int), default 0
        Zeros around the images, in pixels.
    is_multiply : bool, default True
        True for products. False, sums of absolute differences, is not available.
    name
        Has no effect.

    Returns
    -------
    Tensor of shape (B, D*D, oH, oW)
        In the dtype and on the device of the inputs.

    Raises
    ------
    NotImplementedError
        ``is_multiply`` is False.
    TypeError, ValueError
        ``kernel_size`` is even, or a value has no meaning; and as `cupycorr.torch.spatial_correlation_sample`.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat.mxnet import Correlation
    >>> x = torch.ones(1, 16, 20, 30)
    >>> Correlation(x, x, max_displacement=4, stride2=2, pad_size=4).shape
    torch.Size([1, 25, 20, 30])
    """
    check_multiplies("is_multiply", is_multiply)
    check_shapes(data1=(data1, "B C H W"), data2=(data2, "B C H W"))
    sizes = pair("stride1", stride1, 1), pair("stride2", stride2, 1), pair("pad_size", pad_size, 0)
    return correlation_cost(data1, data2, kernel_size, max_displacement, *sizes, data_format="channels_first", name=name)
