"""torchvision's ``models.optical_flow.raft.CorrBlock``: RAFT's lookup as a module, dx-major, divided by sqrt(C).

.. code-block:: text

    model = raft_large(corr_block=CorrBlock())
    model = raft_small(corr_block=CorrBlock(radius=3))

It is differentiable in the feature maps and in the coordinates, as the original. The original refuses maps of fewer than 2 pixels
at the last level, because it divides by their size minus 1; here a level of one pixel is finite.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import torch as operators
from .._arguments import at_least
from ._conventions import window

__all__ = ["CorrBlock"]


class CorrBlock(torch.nn.Module):
    """torchvision's module, which keeps a pair of feature maps and looks up windows in the second one.

    Parameters
    ----------
    num_levels : int, default 4
        The number of levels of the pyramid, each with half the height and width of the one before.
    radius : int, default 4
        Displacements before and after the centre of a window, in pixels of each level.

    Attributes
    ----------
    num_levels, radius
        The parameters.
    out_channels : int
        ``num_levels * (2 * radius + 1) ** 2``.

    Raises
    ------
    TypeError, ValueError
        ``num_levels`` is not an int of at least 1, or ``radius`` not one of at least 0.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat.torchvision import CorrBlock
    >>> block = CorrBlock(num_levels=3, radius=2)
    >>> block.build_pyramid(torch.randn(1, 64, 16, 20), torch.randn(1, 64, 16, 20))
    >>> block.index_pyramid(torch.rand(1, 2, 16, 20)).shape
    torch.Size([1, 75, 16, 20])
    """

    def __init__(self, *, num_levels: int = 4, radius: int = 4) -> None:
        super().__init__()
        self.num_levels, self.radius = at_least(1, "num_levels", num_levels), at_least(0, "radius", radius)
        self.out_channels = self.num_levels * window(self.radius) ** 2
        self._block: operators.CorrBlock | None = None

    def build_pyramid(self, fmap1: torch.Tensor, fmap2: torch.Tensor) -> None:
        """Keep two feature maps (B, C, H, W) for the lookups that follow.

        Raises
        ------
        TypeError, ValueError
            As `cupycorr.torch.CorrBlock`.
        """
        self._block = operators.CorrBlock(fmap1, fmap2, self.num_levels, self.radius)

    def index_pyramid(self, centroids_coords: torch.Tensor) -> torch.Tensor:
        """Return the correlation in windows around coordinates (B, 2, H, W), x then y: (B, out_channels, H, W).

        Raises
        ------
        RuntimeError
            `build_pyramid` has not been called.
        TypeError, ValueError
            As `cupycorr.torch.CorrBlock.__call__`.
        """
        if self._block is None:
            raise RuntimeError("build_pyramid must be called before index_pyramid")
        return self._block(centroids_coords)

    def extra_repr(self) -> str:
        """Return the parameters."""
        return f"num_levels={self.num_levels}, radius={self.radius}"

    def __getstate__(self) -> dict[str, Any]:
        """Return the module's state without feature maps: copies and files of a model do not need those of its last frames."""
        return {**self.__dict__, "_block": None}
