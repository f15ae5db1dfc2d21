"""Group-wise correlation of GwcNet, ACVNet and IGEV-Stereo: ``build_gwc_volume``, means over the channels of each group.

.. code-block:: text

    out[b, g, d, i, j] = G / C * sum over the channels c of group g of  refimg_fea[b, c, i, j] * targetimg_fea[b, c, i, j - d]
    with  d = 0 ... maxdisp - 1,  0 where j < d;  a group has C / G channels

The originals multiply, view and average the whole feature maps for each disparity.
"""

from __future__ import annotations

import torch

from .._arguments import at_least
from ..torch import spatial_correlation_sample
from ._conventions import check_shapes

__all__ = ["build_gwc_volume", "groupwise_correlation"]


def build_gwc_volume(refimg_fea: torch.Tensor, targetimg_fea: torch.Tensor, maxdisp: int, num_groups: int) -> torch.Tensor:
    """Return the group-wise correlation of each pixel with those to its left in the other image.

    Parameters
    ----------
    refimg_fea, targetimg_fea : Tensor of shape (B, C, H, W)
        Features of the left and the right image, of one dtype on one device, of any strides.
    maxdisp : int
        Disparities, 0 to maxdisp - 1, in pixels.
    num_groups : int
        G: groups of channels; it divides C.

    Returns
    -------
    Tensor of shape (B, G, maxdisp, H, W)
        In the dtype and on the device of the features. It is differentiable in both.

    Raises
    ------
    TypeError, ValueError
        The shapes differ, ``maxdisp`` is not an int of at least 1, or ``num_groups`` does not divide C; and as
        `cupycorr.torch.spatial_correlation_sample`.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat.gwc import build_gwc_volume
    >>> left, right = torch.randn(2, 1, 32, 16, 40)
    >>> build_gwc_volume(left, right, maxdisp=12, num_groups=8).shape
    torch.Size([1, 8, 12, 16, 40])
    """
    check_shapes(refimg_fea=(refimg_fea, "B C H W"), targetimg_fea=(targetimg_fea, "B C H W"))
    return _means(refimg_fea, targetimg_fea, num_groups, at_least(1, "maxdisp", maxdisp))


def groupwise_correlation(fea1: torch.Tensor, fea2: torch.Tensor, num_groups: int) -> torch.Tensor:
    """Return the mean product of the channels of each group at each pixel, (B, G, H, W) from two tensors (B, C, H, W).

    Raises
    ------
    TypeError, ValueError
        As `cupycorr.torch.spatial_correlation_sample`.
    """
    check_shapes(fea1=(fea1, "B C H W"), fea2=(fea2, "B C H W"))
    return _means(fea1, fea2, num_groups, 1)[:, :, 0]


def _means(input1: torch.Tensor, input2: torch.Tensor, num_groups: int, disparities: int) -> torch.Tensor:
    groups = at_least(1, "num_groups", num_groups)
    if input1.shape[1] % groups:
        raise ValueError(f"num_groups must divide the number of channels, got num_groups={groups}, {input1.shape[1]} channels")
    centre = -((disparities - 1) // 2)  # displacements descend from 0
    out = spatial_correlation_sample(
        input1,
        input2,
        patch_size=(1, disparities),
        dilation_patch=(1, -1),
        patch_offset=(0, centre),
        groups=groups,
        scale=groups / max(input1.shape[1], 1),
    )
    if groups == 1:
        out = out.unsqueeze(1)
    return out.squeeze(2)
