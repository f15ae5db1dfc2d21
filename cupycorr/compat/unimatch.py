"""UniMatch's and GMFlow's ``local_correlation_with_flow``: a window around a flow, dy-major, divided by sqrt(C).

.. code-block:: text

    out[b, m P + n, i, j] = 1 / sqrt(C) * sum over c of
        feature0[b, c, i, j] * feature1[b, c, i + flow[b, 1, i, j] + d (m - r), j + flow[b, 0, i, j] + d (n - r)]
    with  r = local_radius,  d = dilation,  m, n = 0 ... 2 r,  P = 2 r + 1,  0 outside

The original samples the features of every window, P P times as many numbers as a feature map has. It divides coordinates by H - 1
and W - 1; here a map of one row or one column is finite. The other functions of ``unimatch.matching`` are not correlations around
coordinates, and are not replaced.
"""

from __future__ import annotations

import torch

from ..torch import correlation_lookup
from ._conventions import Sizes, check_shapes, window

__all__ = ["local_correlation_with_flow"]


def local_correlation_with_flow(
    feature0: torch.Tensor,
    feature1: torch.Tensor,
    flow: torch.Tensor | float,
    local_radius: int,
    padding_mode: str = "zeros",
    dilation: Sizes = 1,
) -> torch.Tensor:
    """Return the correlation of each pixel with the window around the pixel that its flow leads to.

    Parameters
    ----------
    feature0, feature1 : Tensor of shape (B, C, H, W)
        Two feature maps of one dtype on one device, of any strides.
    flow : Tensor of shape (B, 2, H, W), or 0.0
        Horizontal, then vertical displacement, in pixels. 0.0 is no displacement anywhere.
    local_radius : int
        r: displacements before and after the centre of a window.
    padding_mode : {"zeros"}
        The other modes of `torch.nn.functional.grid_sample` are not available.
    dilation : int or (int, int), default 1
        d: pixels between displacements, ``(vertical, horizontal)`` if a pair.

    Returns
    -------
    Tensor of shape (B, P P, H, W)
        In the dtype of the features. It is differentiable in the features and in the flow.

    Raises
    ------
    NotImplementedError
        ``padding_mode`` is not "zeros".
    TypeError, ValueError
        As `cupycorr.torch.correlation_lookup`; also for a number as flow that is not 0.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat.unimatch import local_correlation_with_flow
    >>> feature0, feature1 = torch.randn(2, 1, 32, 12, 16)
    >>> local_correlation_with_flow(feature0, feature1, torch.zeros(1, 2, 12, 16), local_radius=4).shape
    torch.Size([1, 81, 12, 16])
    """
    if padding_mode != "zeros":
        raise NotImplementedError(f"padding_mode must be 'zeros': a lookup reads 0 outside, got padding_mode={padding_mode!r}")
    check_shapes(feature0=(feature0, "B C H W"), feature1=(feature1, "B C H W"))
    coords = _pixels(feature0)
    if isinstance(flow, torch.Tensor):
        check_shapes(feature0=(feature0, "B C H W"), flow=(flow, "B 2 H W"))
        coords = coords + flow.to(coords.dtype)
    elif flow != 0:
        raise ValueError(f"flow must be a tensor or 0.0, got flow={flow!r}")
    scale = max(feature0.shape[1], 1) ** -0.5
    return correlation_lookup(feature0, feature1, coords, window(local_radius), dilation_patch=dilation, scale=scale).flatten(
        1, 2
    )


def _pixels(feature: torch.Tensor) -> torch.Tensor:
    """Return the coordinates of the pixels of a feature map, (B, 2, H, W), x then y, in the dtype of its sums."""
    dtype, (batch, _, height, width) = torch.promote_types(feature.dtype, torch.float32), feature.shape
    rows, columns = (torch.arange(size, dtype=dtype, device=feature.device) for size in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack((x, y)).expand(batch, 2, height, width)
