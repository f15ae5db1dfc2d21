"""The CuPy ``correlation`` modules of sniklaus' pytorch-pwc and pytorch-liteflownet: means over C, dy-major.

PWC-Net searches 9 x 9 displacements of up to 4 pixels: (B, 81, H, W). LiteFlowNet passes ``intStride`` s and searches 7 x 7
displacements, in steps of s, at every s-th pixel: (B, 49, ceil(H / s), ceil(W / s)). The originals run on a GPU in float32 only.
"""

from __future__ import annotations

from typing import Any

import torch

from .._arguments import pair
from ._conventions import Sizes, mean_volume

__all__ = ["FunctionCorrelation", "ModuleCorrelation"]

_NAMES = {"tenOne": "tenFirst", "tenTwo": "tenSecond", "tensorFirst": "tenFirst", "tensorSecond": "tenSecond"}


def FunctionCorrelation(*given: Any, **named: Any) -> torch.Tensor:  # noqa: N802
    """Return the correlation of two feature maps by PWC-Net's convention, or by LiteFlowNet's if ``intStride`` is passed.

    Parameters
    ----------
    tenFirst, tenSecond : Tensor of shape (B, C, H, W)
        By position, or by any of the names the repositories have used: ``tenOne``, ``tenTwo``, ``tensorFirst``, ``tensorSecond``.
    intStride : int or (int, int), optional
        s, in pixels, third by position, or by name. The original takes no (vertical, horizontal) pair.

    Returns
    -------
    Tensor of shape (B, 81, H, W), or (B, 49, ceil(H / s), ceil(W / s)) with ``intStride``
        In the dtype and on the device of the inputs.

    Raises
    ------
    TypeError, ValueError
        There are other arguments than these; and as `cupycorr.torch.spatial_correlation_sample`.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat.pwcnet import FunctionCorrelation
    >>> x = torch.ones(1, 16, 20, 31)
    >>> FunctionCorrelation(tenOne=x, tenTwo=x).shape
    torch.Size([1, 81, 20, 31])
    >>> FunctionCorrelation(x, x, 2).shape
    torch.Size([1, 49, 10, 16])
    """
    renamed = {_NAMES.get(name, name): value for name, value in named.items()}
    if len(renamed) < len(named):
        raise TypeError(f"each tensor must be passed once, got {', '.join(named)}")
    return _correlate(*given, **renamed)


def _correlate(tenFirst: torch.Tensor, tenSecond: torch.Tensor, intStride: Sizes | None = None) -> torch.Tensor:
    if intStride is None:
        return mean_volume(tenFirst, tenSecond, patch_size=9)
    strides = pair("intStride", intStride, 1)
    return mean_volume(tenFirst, tenSecond, patch_size=7, stride=strides, dilation_patch=strides)


class ModuleCorrelation(torch.nn.Module):
    """`FunctionCorrelation` as a module without parameters, called with the same arguments."""

    def forward(self, *given: Any, **named: Any) -> torch.Tensor:
        """Return the correlation of two tensors (B, C, H, W)."""
        return FunctionCorrelation(*given, **named)
