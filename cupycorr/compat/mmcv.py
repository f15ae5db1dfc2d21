"""OpenMMLab's ``mmcv.ops.Correlation``: sums, (B, P, P, oH, oW) with P = 2 max_displacement + 1, dy-major.

The original runs on a GPU only, this adapter on the device of the tensors. Every size may be a ``(vertical, horizontal)`` pair,
here also ``max_displacement``: ``(0, 4)`` searches along rows alone, (B, 1, 9, oH, oW).
"""

from __future__ import annotations

import torch

from ..torch import spatial_correlation_sample
from ._conventions import Layer, Sizes, patch_size

__all__ = ["Correlation", "CorrelationFunction"]


def _correlate(
    input1: torch.Tensor,
    input2: torch.Tensor,
    kernel_size: Sizes = 1,
    max_displacement: Sizes = 1,
    stride: Sizes = 1,
    padding: Sizes = 1,
    dilation: Sizes = 1,
    dilation_patch: Sizes = 1,
) -> torch.Tensor:
    return spatial_correlation_sample(
        input1, input2, kernel_size, patch_size(max_displacement), stride, padding, dilation, dilation_patch
    )


class CorrelationFunction:
    """mmcv's autograd function, for code that calls ``apply``. As in mmcv, ``padding`` is 1 by default, in the module 0."""

    apply = staticmethod(_correlate)


class Correlation(Layer):
    """mmcv's module, from two tensors (B, C, H, W) to (B, P, P, oH, oW), in the dtype and on the device of the inputs.

    Parameters
    ----------
    kernel_size, stride, padding, dilation, dilation_patch : int or (int, int)
        As in `cupycorr.torch.spatial_correlation_sample`.
    max_displacement : int or (int, int), default 1
        Largest displacement, in steps of ``dilation_patch`` pixels.

    Raises
    ------
    TypeError, ValueError
        When called, as `cupycorr.torch.spatial_correlation_sample`.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat.mmcv import Correlation
    >>> x = torch.ones(1, 16, 20, 30)
    >>> Correlation(max_displacement=10, dilation_patch=2)(x, x).shape
    torch.Size([1, 21, 21, 20, 30])
    >>> Correlation(max_displacement=(0, 10), dilation_patch=2)(x, x).shape
    torch.Size([1, 1, 21, 20, 30])
    """

    function = staticmethod(_correlate)

    def __init__(
        self,
        kernel_size: Sizes = 1,
        max_displacement: Sizes = 1,
        stride: Sizes = 1,
        padding: Sizes = 0,
        dilation: Sizes = 1,
        dilation_patch: Sizes = 1,
    ) -> None:
        super().__init__(kernel_size, max_displacement, stride, padding, dilation, dilation_patch)
