"""SEA-RAFT's ``corr.CorrBlock``: RAFT's lookup, whose windows may be stretched, each its own way; dx-major, over sqrt(C).

.. code-block:: text

    out[b, (l P + n) P + m, i, j] = 1 / sqrt(C) * sum over c of fmap1[b, c, i, j] * fmap2_l[b, c, Y + d (m - r), X + d (n - r)]
    with  (X, Y) = coords[b, :, i, j] / 2**l,   d = dilation[b, 0, i, j],   m, n = 0 ... 2 r,   P = 2 r + 1

The original builds the volume of all pairs. SEA-RAFT's model passes a dilation of ones in every iteration.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import torch as operators
from ..torch._maps import why_no_values

__all__ = ["CorrBlock"]


class CorrBlock:
    """SEA-RAFT's block for a pair of feature maps.

    Parameters
    ----------
    fmap1, fmap2 : Tensor of shape (B, C, H, W)
        Two feature maps, as for `cupycorr.torch.CorrBlock`.
    args
        An object with the ints ``corr_levels`` and ``corr_radius``.

    Raises
    ------
    TypeError, ValueError
        As `cupycorr.torch.CorrBlock`.

    Examples
    --------
    >>> import torch
    >>> from types import SimpleNamespace
    >>> from cupycorr.compat.sea_raft import CorrBlock
    >>> fmap1, fmap2 = torch.randn(2, 1, 64, 16, 20)
    >>> block = CorrBlock(fmap1, fmap2, SimpleNamespace(corr_levels=4, corr_radius=4))
    >>> block(torch.rand(1, 2, 16, 20), dilation=torch.ones(1, 1, 16, 20)).shape
    torch.Size([1, 324, 16, 20])
    """

    def __init__(self, fmap1: torch.Tensor, fmap2: torch.Tensor, args: Any) -> None:
        self.num_levels, self.radius, self.args = args.corr_levels, args.corr_radius, args
        self._block = operators.CorrBlock(fmap1, fmap2, self.num_levels, self.radius)

    def __call__(self, coords: torch.Tensor, dilation: torch.Tensor | None = None) -> torch.Tensor:
        """Return the correlation in windows around coordinates (B, 2, H, W), x then y: (B, corr_levels P P, H, W).

        ``dilation`` has the shape (B, 1, H, W). One that consists of ones is recognised by its values, and then costs no more
        than None. Its values are not looked at while a graph is made (`torch.compile`, `torch.jit.trace`), within a transform of
        `torch.func`, where a gradient of it is needed, and while a CUDA stream is captured.

        Raises
        ------
        TypeError, ValueError
            As `cupycorr.torch.CorrBlock.__call__`.
        """
        return self._block(coords, None if dilation is None or _consists_of_ones(dilation, coords) else dilation)


def _consists_of_ones(dilation: torch.Tensor, coords: torch.Tensor) -> bool:
    """Return whether a dilation of the right shape has the value 1 everywhere; False where its values cannot be looked at."""
    if not isinstance(dilation, torch.Tensor) or dilation.requires_grad or why_no_values((dilation,)) is not None:
        return False
    if dilation.shape != (coords.shape[0], 1, *coords.shape[2:]):
        return False
    if dilation.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return bool((dilation == 1).all())
