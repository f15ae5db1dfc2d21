"""The pure-PyTorch re-implementation of ``spatial_correlation_sampler`` by unfold: sums, in two layouts, dy-major.

One pixel of input1 is compared with P x P displaced pixels of input2 (``kernel_size=1``), or with the K x K pixels around its own
position (``patch_size=1``). The latter is not the C++ extension's window of K x K taps.

The page of the original contradicts its code and itself in places; this adapter follows the definition below. The page says that
the FlowNet configuration (patch 21, padding 10) keeps 64 x 64 pixels, but its output is 84 x 84; ``padding=0`` keeps the size.
For ``patch_size=1``, the original compares rows of input1 with the wrong rows of input2. For an even patch or ``dilation_patch``
above 1, it misplaces rows, and returns some outputs in five dimensions. Here rows are aligned and outputs have four dimensions.
"""

from __future__ import annotations

from typing import Any

import torch

from .._arguments import pair
from .._correlation.problem import parameters
from ..torch import spatial_correlation_sample
from ._conventions import Sizes, first_positions

__all__ = ["SpatialCorrelationSampler", "channel_to_displacement"]


class SpatialCorrelationSampler(torch.nn.Module):
    """The re-implementation's module, for two tensors (B, C, H, W); the output has their dtype and device.

    .. code-block:: text

        kernel_size=1:  out[b, m PW + n, i, j] = sum over c of input1[b, c, y, x] * input2[b, c, y + e (m - r), x + e (n - r)]
            with  r = (P - 1) // 2,  y = i s - a,  oH = (H + 2 a - 1) // s + 1: (B, PH*PW, oH, oW)
        patch_size=1:   out[b, 0, u KW + v, i, j] = sum over c of input1[b, c, y, x] * input2[b, c, y + d (u - r), x + d (v - r)]
            with  r = (K - 1) // 2,  y = i s - a + d r,  oH = (H + 2 a - d (K - 1) - 1) // s + 1: (B, 1, KH*KW, oH, oW)

    Parameters
    ----------
    kernel_size, patch_size, stride, padding, dilation, dilation_patch : int or (int, int)
        K, P, s, a, d, e, in pixels. ``dilation`` is used for ``patch_size=1`` only, ``dilation_patch`` for ``kernel_size=1``.

    Raises
    ------
    NotImplementedError
        Both sizes are above 1.
    TypeError, ValueError
        As `cupycorr.torch.spatial_correlation_sample`.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat.unfold_sampler import SpatialCorrelationSampler
    >>> x = torch.ones(1, 256, 64, 64)
    >>> SpatialCorrelationSampler(kernel_size=1, patch_size=3, padding=1)(x, x).shape
    torch.Size([1, 9, 66, 66])
    >>> SpatialCorrelationSampler(kernel_size=7, patch_size=1, padding=3)(x, x).shape
    torch.Size([1, 1, 49, 64, 64])
    """

    def __init__(
        self,
        kernel_size: Sizes = 1,
        patch_size: Sizes = 1,
        stride: Sizes = 1,
        padding: Sizes = 0,
        dilation: Sizes = 1,
        dilation_patch: Sizes = 1,
    ) -> None:
        super().__init__()
        checked = parameters(kernel_size, patch_size, stride, padding, dilation, dilation_patch)
        if (1, 1) not in (checked.kernel_size, checked.patch_size):
            got = f"got kernel_size={kernel_size!r}, patch_size={patch_size!r}"
            remedy = "displaced windows are the C++ extension's convention, cupycorr.compat.spatial_correlation_sampler"
            raise NotImplementedError(f"either kernel_size or patch_size must be 1, {got}: {remedy}")
        self.kernel_size, self.patch_size, self.stride = checked.kernel_size, checked.patch_size, checked.stride
        self.padding, self.dilation, self.dilation_patch = checked.padding, checked.dilation, checked.dilation_patch

    def forward(self, input1: torch.Tensor, input2: torch.Tensor) -> torch.Tensor:
        """Return the correlation of two tensors (B, C, H, W)."""
        if self.kernel_size == (1, 1):
            sizes = self.patch_size, self.stride, self.padding
            return spatial_correlation_sample(input1, input2, 1, *sizes, dilation_patch=self.dilation_patch).flatten(1, 2)
        reach = tuple((d * ((k - 1) // 2), d * (k - 1)) for d, k in zip(self.dilation, self.kernel_size, strict=True))
        before, span = zip(*reach, strict=True)
        padding = tuple(a - margin for a, margin in zip(self.padding, before, strict=True))
        out = spatial_correlation_sample(input1, input2, 1, self.kernel_size, self.stride, padding, dilation_patch=self.dilation)
        return first_positions(out.flatten(1, 2), input1, self.padding, span, self.stride).unsqueeze(1)


def channel_to_displacement(channel_idx: Any, patch_size: Sizes, max_displacement: Sizes) -> tuple[Any, Any]:
    """Return the displacement (dy, dx) in steps of a channel or of a tensor of channels, as the helper on the original's page.

    ``patch_size`` and ``max_displacement`` may be (vertical, horizontal) pairs, for a patch that is not square.

    Examples
    --------
    >>> from cupycorr.compat.unfold_sampler import channel_to_displacement
    >>> channel_to_displacement(80, 9, 4)
    (4, 4)
    >>> channel_to_displacement(8, (1, 9), (0, 4))
    (0, 4)
    """
    _, across = pair("patch_size", patch_size, 1)
    far = max_displacement
    vertical, horizontal = pair("max_displacement", far, 0) if isinstance(far, (tuple, list)) else (far, far)
    return channel_idx // across - vertical, channel_idx % across - horizontal
