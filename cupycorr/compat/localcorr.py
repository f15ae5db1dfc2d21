"""``localcorr``: RAFT's lookup, dx-major, divided by sqrt(C), and the fixed grid of PWC-Net, dy-major, as sums.

.. code-block:: text

    get_localcorr_block(fmap1, fmap2)(coords)      (B, num_levels P P, H, W), as `cupycorr.torch.CorrBlock`
    get_localcorr_sampler(patch_size)(x1, x2)      (B, P, P, H, W), as `cupycorr.torch.SpatialCorrelationSampler`

Results have the dtype of the features, as the original's. Its modes choose a kernel of one kind of GPU each; here every mode runs
on the device of the tensors. The original's gradient of the coordinates is silently zero, and those of the maps are added
atomically; here they are right in all three, and have the same bits every time. Its export to ONNX and its classes are not
replaced.
"""

from __future__ import annotations

import torch

from .._arguments import integer
from ..torch import CorrBlock, SpatialCorrelationSampler

__all__ = ["get_localcorr_block", "get_localcorr_sampler"]

MODES = ("localcorr_triton", "localcorr_auto", "localcorr_cuda", "localcorr_onnx", "localcorr_sycl")


def get_localcorr_block(
    fmap1: torch.Tensor,
    fmap2: torch.Tensor,
    num_levels: int = 4,
    radius: int = 4,
    corr_mode: str = "localcorr_triton",
    xpu_backend: str = "sycl",
) -> Block:
    """Return a block that is called with coordinates (B, 2, H, W) in every iteration.

    Parameters
    ----------
    fmap1, fmap2, num_levels, radius
        As for `cupycorr.torch.CorrBlock`.
    corr_mode : str
        One of the original's modes, in upper or lower case. It has no effect.
    xpu_backend
        Has no effect.

    Raises
    ------
    TypeError, ValueError
        As `cupycorr.torch.CorrBlock`; also for an unknown mode.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat.localcorr import get_localcorr_block
    >>> fmap1, fmap2 = torch.randn(2, 1, 64, 16, 20)
    >>> get_localcorr_block(fmap1, fmap2, corr_mode="localcorr_auto")(torch.rand(1, 2, 16, 20)).shape
    torch.Size([1, 324, 16, 20])
    """
    _check_mode(corr_mode)
    return Block(fmap1, fmap2, num_levels, radius)


def get_localcorr_sampler(
    patch_size: int = 9, dilation_patch: int = 1, corr_mode: str = "localcorr_triton", xpu_backend: str = "sycl"
) -> SpatialCorrelationSampler:
    """Return a module for two tensors (B, C, H, W), whose output is (B, P, P, H, W).

    Parameters
    ----------
    patch_size : int, default 9
        P, rounded up to an odd number, as the original's default mode does.
    dilation_patch : int, default 1
        Pixels between displacements.
    corr_mode, xpu_backend
        As for `get_localcorr_block`.

    Raises
    ------
    TypeError, ValueError
        As `cupycorr.torch.SpatialCorrelationSampler`; also for an unknown mode.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat.localcorr import get_localcorr_sampler
    >>> x = torch.ones(1, 16, 20, 30)
    >>> get_localcorr_sampler(patch_size=9)(x, x).shape
    torch.Size([1, 9, 9, 20, 30])
    """
    _check_mode(corr_mode)
    size = integer("patch_size", patch_size, "an int", patch_size)
    return SpatialCorrelationSampler(patch_size=size + 1 - size % 2, dilation_patch=dilation_patch)


class Block:
    """The block of `get_localcorr_block`.

    Attributes
    ----------
    num_levels, radius, dim : int
        The number of levels, the displacements on each side of the centre, and the number of channels.
    """

    def __init__(self, fmap1: torch.Tensor, fmap2: torch.Tensor, num_levels: int, radius: int) -> None:
        self._block = CorrBlock(fmap1, fmap2, num_levels, radius)
        self.num_levels, self.radius, self.dim, self._dtype = num_levels, radius, fmap1.shape[1], fmap1.dtype

    def __call__(self, coords: torch.Tensor) -> torch.Tensor:
        """Return the correlation in windows around coordinates (B, 2, H, W), x then y: (B, num_levels P P, H, W)."""
        return self._block(coords).to(self._dtype)


def _check_mode(mode: str) -> None:
    if not isinstance(mode, str) or mode.lower() not in MODES:
        raise ValueError(f"corr_mode must be one of {', '.join(map(repr, MODES))}, got corr_mode={mode!r}")
