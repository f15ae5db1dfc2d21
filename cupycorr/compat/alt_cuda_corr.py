"""``alt_cuda_corr``, RAFT's compiled lookup without a volume of all pairs: sums, (B, N, (2r + 1)^2, H, W), dx-major.

.. code-block:: text

    corr[b, n, (dx + r) (2r + 1) + dy + r, i, j] = sum over c of fmap1[b, i, j, c] * fmap2[b, y + dy, x + dx, c]
    with  x, y = coords[b, n, i, j],  dx and dy from -r to r,  fmap2 interpolated bilinearly and 0 outside

Copies of it are in many models of the RAFT family. The callers make the pyramid, and divide by sqrt(C). In the original, sums
over the channels are in steps of 32, so that C must be a multiple of 32, tensors must be contiguous, float32 and on a GPU, and
the sums of the backward pass depend on the order of atomic additions. Here C is any number, the tensors have any strides and
floating dtype and are on any device, and the same inputs give the same bits.

The original's ``forward`` records no graph, so that code which calls it without an autograd function of its own is silently
without gradients, and its ``backward`` returns zeros for the coordinates. Here ``forward`` is differentiable in all three
tensors, to any order, and ``backward`` returns the true gradient of the coordinates.
"""

from __future__ import annotations

import torch

from ..torch import correlation_lookup
from ..torch._arguments import without_autocast
from ._conventions import check_shapes, lookup_gradients, window

__all__ = ["backward", "forward"]

_AXES = {"fmap1": "B H W C", "fmap2": "B H2 W2 C", "coords": "B N H W 2"}


def forward(fmap1: torch.Tensor, fmap2: torch.Tensor, coords: torch.Tensor, radius: int) -> list[torch.Tensor]:
    """Return a new list of one tensor, the correlation with the window around each coordinate.

    Parameters
    ----------
    fmap1, fmap2 : Tensor, shapes (B, H, W, C) and (B, H2, W2, C)
        Two feature maps of one dtype, channels last.
    coords : Tensor of shape (B, N, H, W, 2)
        x, then y, in pixels of ``fmap2``, whose pixel centres are whole numbers. Of the features' dtype, or float32.
    radius : int
        r, at least 0.

    Returns
    -------
    list of one Tensor of shape (B, N, (2r + 1)^2, H, W), in the features' dtype

    Raises
    ------
    TypeError, ValueError
        The shapes do not fit each other, or ``radius`` is not an int of at least 0; and as `cupycorr.torch.correlation_lookup`.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat import alt_cuda_corr
    >>> fmap = torch.ones(1, 20, 30, 16)
    >>> (corr,) = alt_cuda_corr.forward(fmap, fmap, torch.zeros(1, 1, 20, 30, 2), 4)
    >>> corr.shape
    torch.Size([1, 1, 81, 20, 30])
    """
    check_shapes(fmap1=(fmap1, _AXES["fmap1"]), fmap2=(fmap2, _AXES["fmap2"]), coords=(coords, _AXES["coords"]))
    patch = window(radius)
    with without_autocast(fmap1):
        return [correlation_lookup(*_channels_first(fmap1, fmap2, coords), patch, order="dx").flatten(2, 3)]


def backward(
    fmap1: torch.Tensor, fmap2: torch.Tensor, coords: torch.Tensor, corr_grad: torch.Tensor, radius: int
) -> list[torch.Tensor]:
    """Return the gradients of ``fmap1``, ``fmap2`` and ``coords``, in their shapes and dtypes.

    ``corr_grad`` has the shape of the output of `forward`. The gradient of the coordinates is the original's zeros made right; it
    takes about as long as that of a map. Errors are those of `forward`.
    """
    patch = window(radius)
    axes = {**_AXES, "corr_grad": f"B N {patch**2} H W"}
    tensors = fmap1, fmap2, coords, corr_grad
    check_shapes(**{name: (value, axes[name]) for name, value in zip(axes, tensors, strict=True)})
    inputs = _channels_first(fmap1, fmap2, coords)
    first, second, points = lookup_gradients(corr_grad.unflatten(2, (patch, patch)), inputs, patch, (True, True, True))
    return [first.movedim(1, -1), second.movedim(1, -1), points.movedim(2, -1)]


def _channels_first(
    fmap1: torch.Tensor, fmap2: torch.Tensor, coords: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the maps and the coordinates with the axes of the operator, without a copy."""
    return fmap1.movedim(-1, 1), fmap2.movedim(-1, 1), coords.movedim(-1, 2)
