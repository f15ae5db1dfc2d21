"""The correlation functions of ``droid_backends``, DROID-SLAM's compiled module: lookups in maps and in volumes, dx-major.

.. code-block:: text

    altcorr_forward, six arguments:
        corr[b, e, dx + r, dy + r, i, j] = 1 / 16 * sum over c of fmap1[b, ii[e], c, i, j] * fmap2[b, jj[e], c, y + dy, x + dx]
        with  x, y = coords[b, e, :, i, j]
    altcorr_forward, four arguments: the sums of `alt_cuda_corr`, channels last, with coords (B, N, H, W, 2)
    corr_index_forward:
        corr[n, dx + r, dy + r, i, j] = volume[n, i, j, y + dy, x + dx]   with  x, y = coords[n, :, i, j]

Windows are interpolated bilinearly, with 0 outside. DROID-SLAM divides both maps by 4: newer versions do so inside
``altcorr_forward``, which got the indices ``ii`` and ``jj`` with it, older ones before they call it. The number of arguments
tells the two apart.

In the newer original, ``altcorr_backward`` leaves out that division, so that its gradients are 16 times those of its own
``altcorr_forward``. The gradients here are those of the formula above. The originals record no graph and have no gradient for
coordinates (the older one returns zeros); here the forward functions are differentiable in all their tensors.

The module has functions that are not correlations, among them ``ba`` and ``frame_distance``. cupycorr has none of them: such a
name is an AttributeError. Where DROID-SLAM's own module can be imported, `cupycorr.compat.install` replaces its correlation
functions and leaves the others as they are.
"""

from __future__ import annotations

from typing import Any

import torch

from ..torch import volume_lookup
from ..torch._arguments import without_autocast
from . import alt_cuda_corr
from ._conventions import check_shapes, edge_gradients, edge_windows, volume_gradient, window

__all__ = ["altcorr_backward", "altcorr_forward", "corr_index_backward", "corr_index_forward"]

_SCALE = 1 / 16  # 1 / 4 for each of the maps


def altcorr_forward(
    fmap1: torch.Tensor, fmap2: torch.Tensor, coords: torch.Tensor, *indices_and_radius: Any
) -> list[torch.Tensor]:
    """Return a new list of one tensor, the correlation with the window around each coordinate.

    Parameters
    ----------
    fmap1, fmap2 : Tensor, shapes (B, N, C, H, W) and (B, N, C, H2, W2)
        The feature maps of N frames.
    coords : Tensor of shape (B, E, 2, H, W)
        x, then y, in pixels of ``fmap2``, of the features' dtype or float32.
    *indices_and_radius
        ``ii, jj, radius``: tensors (E,) of the first and the second frame of each edge, and r. Or ``radius`` alone: the function
        is then `alt_cuda_corr.forward`, with that function's shapes.

    Returns
    -------
    list of one Tensor of shape (B, E, 2r + 1, 2r + 1, H, W), or (B, N, (2r + 1)^2, H, W), in the features' dtype

    Raises
    ------
    TypeError, ValueError, IndexError
        There are neither six nor four arguments; and as `cuda_corr.forward` or `alt_cuda_corr.forward`.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat import droid_backends
    >>> fmaps = torch.ones(1, 3, 16, 20, 30)
    >>> ii, jj = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 0, 0])
    >>> (corr,) = droid_backends.altcorr_forward(fmaps, fmaps, torch.zeros(1, 4, 2, 20, 30), ii, jj, 3)
    >>> corr.shape
    torch.Size([1, 4, 7, 7, 20, 30])
    """
    if len(indices_and_radius) == 1:
        return alt_cuda_corr.forward(fmap1, fmap2, coords, *indices_and_radius)
    _check_count("altcorr_forward", (6, 4), 3 + len(indices_and_radius))
    ii, jj, radius = indices_and_radius
    with without_autocast(fmap1):
        return [edge_windows(fmap1, fmap2, coords, ii, jj, radius, _SCALE)]


def altcorr_backward(
    fmap1: torch.Tensor, fmap2: torch.Tensor, coords: torch.Tensor, corr_grad: torch.Tensor, *indices_and_radius: Any
) -> list[torch.Tensor]:
    """Return the gradients of ``fmap1`` and ``fmap2``, and, without ``ii`` and ``jj``, also that of ``coords``.

    ``corr_grad`` has the shape of the output of `altcorr_forward`, whose other arguments and errors are the same.
    """
    if len(indices_and_radius) == 1:
        return alt_cuda_corr.backward(fmap1, fmap2, coords, corr_grad, *indices_and_radius)
    _check_count("altcorr_backward", (7, 5), 4 + len(indices_and_radius))
    ii, jj, radius = indices_and_radius
    return edge_gradients(fmap1, fmap2, coords, corr_grad, ii, jj, radius, _SCALE)


def corr_index_forward(volume: torch.Tensor, coords: torch.Tensor, radius: int) -> list[torch.Tensor]:
    """Return a new list of one tensor, the window of each pixel's own plane of the volume around its coordinates.

    Parameters
    ----------
    volume : Tensor of shape (n, h, w, h2, w2)
        The scores of each pixel of the first image with all pixels of the second one.
    coords : Tensor of shape (n, 2, h, w)
        x, then y, in pixels of the volume's last axes, of the volume's dtype or float32.
    radius : int
        r, at least 0.

    Returns
    -------
    list of one Tensor of shape (n, 2r + 1, 2r + 1, h, w), in the volume's dtype

    Raises
    ------
    TypeError, ValueError
        The shapes do not fit each other, or ``radius`` is not an int of at least 0; and as `cupycorr.torch.volume_lookup`.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat import droid_backends
    >>> (corr,) = droid_backends.corr_index_forward(torch.ones(2, 6, 8, 6, 8), torch.zeros(2, 2, 6, 8), 3)
    >>> corr.shape
    torch.Size([2, 7, 7, 6, 8])
    """
    check_shapes(volume=(volume, "n h w h2 w2"), coords=(coords, "n 2 h w"))
    patch = window(radius)
    with without_autocast(volume):
        return [volume_lookup(volume, coords, patch, order="dx")]


def corr_index_backward(volume: torch.Tensor, coords: torch.Tensor, corr_grad: torch.Tensor, radius: int) -> list[torch.Tensor]:
    """Return a list of the gradient of ``volume``; ``corr_grad`` has the shape of the output of `corr_index_forward`."""
    patch = window(radius)
    check_shapes(volume=(volume, "n h w h2 w2"), coords=(coords, "n 2 h w"), corr_grad=(corr_grad, f"n {patch} {patch} h w"))
    return [volume_gradient(corr_grad, volume, coords, patch)]


def _check_count(function: str, counts: tuple[int, int], count: int) -> None:
    if count != counts[0]:
        wanted = f"{counts[0]} arguments, or with {counts[1]} without ii and jj"
        raise TypeError(f"{function} must be called with {wanted}, got {count}")


def __getattr__(name: str) -> Any:
    raise AttributeError(
        f"cupycorr's droid_backends has no {name!r}, only the correlation functions {', '.join(__all__)}: for the others, build "
        "DROID-SLAM's extension, whose correlation functions alone are then replaced"
    )
