"""``corr_sampler``, RAFT-Stereo's compiled lookup in a stereo volume: (B, 2r + 1, H, W1), interpolated along the rows.

.. code-block:: text

    corr[b, d + r, i, j] = volume[b, i, j, x + d],   x = coords[b, 0, i, j],   d from -r to r,   0 outside the volume

Only the first channel of ``coords`` is used: disparities have no y. In the original, the interpolation weights are rounded to the
volume's dtype; here sums are kept in float32 (float64 for float64) and rounded once. The original's ``forward`` records no graph,
and it has no gradient for coordinates; here ``forward`` is differentiable in both tensors.
"""

from __future__ import annotations

import torch

from ..torch import volume_lookup
from ..torch._arguments import without_autocast
from ._conventions import check_shapes, volume_gradient, window

__all__ = ["backward", "forward"]


def forward(volume: torch.Tensor, coords: torch.Tensor, radius: int) -> list[torch.Tensor]:
    """Return a new list of one tensor, the values of the volume around each coordinate.

    Parameters
    ----------
    volume : Tensor of shape (B, H, W1, W2)
        The scores of each pixel of the first image with each pixel of the same row of the second one.
    coords : Tensor of shape (B, 1, H, W1), or (B, 2, H, W1), of which y has no effect
        x in pixels of the volume's last axis, of the volume's dtype or float32.
    radius : int
        r, at least 0.

    Returns
    -------
    list of one Tensor of shape (B, 2r + 1, H, W1), in the volume's dtype

    Raises
    ------
    TypeError, ValueError
        The shapes do not fit each other, or ``radius`` is not an int of at least 0; and as `cupycorr.torch.volume_lookup`.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat import corr_sampler
    >>> volume = torch.arange(8.0).expand(1, 5, 8, 8)
    >>> (corr,) = corr_sampler.forward(volume, torch.full((1, 1, 5, 8), 2.5), 1)
    >>> corr[0, :, 0, 0]
    tensor([1.5000, 2.5000, 3.5000])
    """
    check_shapes(volume=(volume, "B H W1 W2"), coords=(coords, "B D H W1"))
    patch = window(radius)
    with without_autocast(volume):
        return [volume_lookup(volume, coords[:, :1], patch)]


def backward(volume: torch.Tensor, coords: torch.Tensor, corr_grad: torch.Tensor, radius: int) -> list[torch.Tensor]:
    """Return a list of the gradient of ``volume``; ``corr_grad`` has the shape of the output, errors are those of `forward`."""
    patch = window(radius)
    check_shapes(volume=(volume, "B H W1 W2"), coords=(coords, "B D H W1"), corr_grad=(corr_grad, f"B {patch} H W1"))
    return [volume_gradient(corr_grad, volume, coords[:, :1], patch)]
