"""``cuda_corr``, DPVO's compiled lookup of the edges of a graph of patches, and its copies of pixels around points.

.. code-block:: text

    corr[b, e, dx + r, dy + r, i, j] = sum over c of fmap1[b, ii[e], c, i, j] * fmap2[b, jj[e], c, y + dy, x + dx]
    with  x, y = coords[b, e, :, i, j],  dx and dy from -r to r,  fmap2 interpolated bilinearly and 0 outside

    patches[b, m, c, u, v] = net[b, c, floor(y) - r + u, floor(x) - r + v]
    with  x, y = coords[b, m],  u and v from 0 to 2r + 1,  0 outside

In the original, C must be a multiple of 8 and an index out of range reads foreign memory. Here C is any number, and an index out
of range is an IndexError on the CPU, and NaN on a GPU. In the original, halves are summed in halves, and gradients in the order
of atomic additions. Here sums are kept in float32 (float64 for float64), and the same inputs give the same bits. The original's
functions record no graph, and it has no gradient for coordinates; here `forward` is differentiable in both maps and the
coordinates, and `patchify_forward` in ``net``.
"""

from __future__ import annotations

import torch

from ..torch._arguments import without_autocast
from ._conventions import check_shapes, edge_gradients, edge_windows, gradients, window

__all__ = ["backward", "forward", "patchify_backward", "patchify_forward"]


def forward(
    fmap1: torch.Tensor, fmap2: torch.Tensor, coords: torch.Tensor, ii: torch.Tensor, jj: torch.Tensor, radius: int
) -> list[torch.Tensor]:
    """Return a new list of one tensor, the correlation with the window around each coordinate of each edge.

    Parameters
    ----------
    fmap1, fmap2 : Tensor, shapes (B, M, C, H, W) and (B, F, C, H2, W2)
        Patches of features, in DPVO with H = W = 3, and feature maps of frames.
    coords : Tensor of shape (B, E, 2, H, W)
        x, then y, in pixels of ``fmap2``, of the features' dtype or float32.
    ii, jj : Tensor of int32 or int64 and of shape (E,)
        The patch and the frame of each edge.
    radius : int
        r, at least 0.

    Returns
    -------
    list of one Tensor of shape (B, E, 2r + 1, 2r + 1, H, W), in the features' dtype

    Raises
    ------
    TypeError, ValueError, IndexError
        The shapes do not fit each other, or ``radius`` is not an int of at least 0; and as `cupycorr.torch.correlation_lookup`.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat import cuda_corr
    >>> patches, frames = torch.ones(1, 5, 16, 3, 3), torch.ones(1, 2, 16, 20, 30)
    >>> ii, jj = torch.tensor([0, 0, 4]), torch.tensor([0, 1, 1])
    >>> (corr,) = cuda_corr.forward(patches, frames, torch.zeros(1, 3, 2, 3, 3), ii, jj, 3)
    >>> corr.shape
    torch.Size([1, 3, 7, 7, 3, 3])
    """
    with without_autocast(fmap1):
        return [edge_windows(fmap1, fmap2, coords, ii, jj, radius)]


def backward(
    fmap1: torch.Tensor,
    fmap2: torch.Tensor,
    coords: torch.Tensor,
    ii: torch.Tensor,
    jj: torch.Tensor,
    corr_grad: torch.Tensor,
    radius: int,
) -> list[torch.Tensor]:
    """Return the gradients of ``fmap1`` and ``fmap2``; ``corr_grad`` has the output's shape, errors are those of `forward`."""
    return edge_gradients(fmap1, fmap2, coords, corr_grad, ii, jj, radius)


def patchify_forward(net: torch.Tensor, coords: torch.Tensor, radius: int) -> list[torch.Tensor]:
    """Return a new list of one tensor, the whole pixels around each point; the caller interpolates between them.

    Parameters
    ----------
    net : Tensor of shape (B, C, H, W)
        Images or feature maps, of a floating dtype or of integers, which the original refuses.
    coords : Tensor of shape (B, M, 2)
        x, then y, in pixels. Their gradient is 0: a window moves by whole pixels.
    radius : int
        r, at least 0. A window has one pixel more on the positive side.

    Returns
    -------
    list of one Tensor of shape (B, M, C, 2r + 2, 2r + 2), in the dtype of ``net``
        Rows come before columns. A window around coordinates that are not finite is 0.

    Raises
    ------
    TypeError, ValueError
        A tensor has another number of axes, or ``radius`` is not an int of at least 0.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat import cuda_corr
    >>> (patches,) = cuda_corr.patchify_forward(torch.arange(20.0).reshape(1, 1, 4, 5), torch.tensor([[[2.25, 1.5]]]), 0)
    >>> patches[0, 0, 0]
    tensor([[ 7.,  8.],
            [12., 13.]])
    """
    check_shapes(net=(net, "B C H W"), coords=(coords, "B M 2"))
    return [_pixels(net, coords, window(radius) + 1)]


def patchify_backward(net: torch.Tensor, coords: torch.Tensor, gradient: torch.Tensor, radius: int) -> list[torch.Tensor]:
    """Return a list of the gradient of ``net``; ``gradient`` has the shape of the output of `patchify_forward`.

    Raises
    ------
    TypeError, ValueError
        As `patchify_forward`, or ``net`` is of integers, which have no gradient.
    """
    size = window(radius) + 1
    check_shapes(net=(net, "B C H W"), coords=(coords, "B M 2"), gradient=(gradient, f"B M C {size} {size}"))
    if not net.is_floating_point():
        raise TypeError(f"net must be of a floating dtype to have a gradient, got net.dtype={net.dtype}")
    return list(gradients(lambda each: _pixels(each, coords, size), (net,), gradient))


def _pixels(net: torch.Tensor, coords: torch.Tensor, size: int) -> torch.Tensor:
    """Return the ``size`` x ``size`` pixels around each point, (B, M, C, size, size).

    They are rows of an embedding table, because its gradient has the same bits every time, on a CPU and on a GPU; those of
    indexing and of ``gather`` do not. The gradients of 16-bit tensors are summed in float32. Integers have no gradient, and are
    copied as they are.
    """
    batch, channels, height, width = net.shape
    first = coords.detach().to(torch.promote_types(coords.dtype, torch.float32)).floor()
    offsets = torch.arange(size, device=coords.device) - (size - 2) // 2
    columns, rows = (first[..., axis, None] + offsets for axis in (0, 1))
    inside = _between(rows, height)[..., :, None] & _between(columns, width)[..., None, :]
    images = torch.arange(batch, device=net.device)[:, None, None, None]
    numbers = (images * height + _whole(rows, height)[..., :, None]) * width + _whole(columns, width)[..., None, :]
    summed = torch.promote_types(net.dtype, torch.float32) if net.is_floating_point() else net.dtype
    table = net.movedim(1, -1).reshape(-1, channels).to(summed)
    pixels = torch.nn.functional.embedding(numbers, table)
    return torch.where(inside[..., None], pixels, 0).to(net.dtype).movedim(-1, 2).contiguous()


def _between(positions: torch.Tensor, size: int) -> torch.Tensor:
    return (positions >= 0) & (positions < size)


def _whole(positions: torch.Tensor, size: int) -> torch.Tensor:
    """Return positions as integers, 0 for those outside."""
    return torch.where(_between(positions, size), positions, 0).long()
