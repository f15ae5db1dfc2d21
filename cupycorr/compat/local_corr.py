"""``local_corr``, the lookup of fused-local-corr in RoMa: sums at any N points for each pixel, (B, HW, N).

.. code-block:: text

    out[b, p, n] = sum over c of im_A[b, p, c] * im_B[b, y, x, c],   x, y = warp[b, p, n],   0 outside
    mode "bilinear": im_B interpolated bilinearly; the centre of its first pixel is at (0.5, 0.5)
    mode "nearest":  the pixel that the point is in, floor(x), floor(y)
    normalized_coords: x = W (x' + 1) / 2,  y = H (y' + 1) / 2  with  x', y' = warp[b, p, n]

This is the convention of ``grid_sample(..., align_corners=False)``. It is not `localcorr`, a package of another author.

In the original, features are float32, C is a multiple of 4 on a GPU, and a "nearest" point must be inside ``im_B``: it reads
foreign memory otherwise. It truncates points, so that those up to a pixel above or left of ``im_B`` read its first row or column;
here they are outside, and give 0. For "nearest", features must be finite here, because the neighbours of the pixel are read too,
with a weight of 0. The original has a gradient for ``im_A`` only, and raises a NotImplementedError where another is needed;
here the function is differentiable in both maps and, for "bilinear", in the points.
"""

from __future__ import annotations

import torch

from ..torch import correlation_lookup
from ..torch._arguments import without_autocast
from ._conventions import check_shapes

__all__ = ["local_corr"]

NEAREST, BILINEAR = "nearest", "bilinear"


def local_corr(
    im_A: torch.Tensor, im_B: torch.Tensor, warp: torch.Tensor, mode: str = NEAREST, normalized_coords: bool = False
) -> torch.Tensor:
    """Return the correlation of each pixel of a map with another map at N points.

    Parameters
    ----------
    im_A, im_B : Tensor, shapes (B, HW, C) and (B, H, W, C)
        Two feature maps of one dtype, channels last. HW is any number of pixels.
    warp : Tensor of shape (B, HW, N, 2)
        The points of each pixel: x, then y. Of any dtype; it is used in the dtype of the sums.
    mode : {"nearest", "bilinear"}
        The interpolation.
    normalized_coords : bool, default False
        True if ``warp`` is from -1 to 1 between the outer edges of ``im_B``, False if it is in pixels.

    Returns
    -------
    Tensor of shape (B, HW, N), in the features' dtype

    Raises
    ------
    TypeError, ValueError
        The shapes do not fit each other, or ``mode`` is neither of the two; and as `cupycorr.torch.correlation_lookup`.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat.local_corr import local_corr
    >>> im_A, im_B = torch.ones(1, 600, 16), torch.ones(1, 20, 30, 16)
    >>> out = local_corr(im_A, im_B, torch.zeros(1, 600, 49, 2), "bilinear", True)
    >>> out.shape
    torch.Size([1, 600, 49])
    """
    check_shapes(im_A=(im_A, "B HW C"), im_B=(im_B, "B H W C"), warp=(warp, "B HW N 2"))
    if mode not in (NEAREST, BILINEAR):
        raise ValueError(f"mode must be {NEAREST!r} or {BILINEAR!r}, got mode={mode!r}")
    _, height, width, _ = im_B.shape
    # The same image size in both maps, as in RoMa: neighbours are then neighbours for the lookup, whose windows share pixels.
    grid = (height, width) if im_A.shape[1] == height * width else (1, im_A.shape[1])
    pixels = _pixels(warp, (width, height), normalized_coords)
    centres = pixels.floor() if mode == NEAREST else pixels - 0.5
    coords = centres.to(torch.promote_types(im_A.dtype, torch.float32)).movedim(1, -1).unflatten(-1, grid)
    with without_autocast(im_A):
        out = correlation_lookup(im_A.movedim(-1, 1).unflatten(-1, grid), im_B.movedim(-1, 1), coords, 1)
    return out.flatten(2).movedim(1, -1).contiguous()


def _pixels(warp: torch.Tensor, size: tuple[int, int], is_normalized: bool) -> torch.Tensor:
    """Return points in pixels, in a floating dtype of at least 32 bits."""
    warp = warp.to(torch.promote_types(warp.dtype, torch.float32))
    return torch.stack([side * (warp[..., axis] + 1) / 2 for axis, side in enumerate(size)], -1) if is_normalized else warp
