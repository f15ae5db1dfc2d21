"""MM-Tracker's ``Correlation`` (motion/motion_model.py): means over C, (B, P*P, H, W) with P = 2 max_displacement + 1, dy-major.

Unlike in the original, ``max_displacement`` may be a ``(vertical, horizontal)`` pair: ``(0, 4)`` searches along rows alone,
(B, 9, H, W). The original flattens the output of ``SpatialCorrelationSampler(1, P, 1, 0, 1)`` and divides it by C. Here the
division comes before the rounding, so that sums of halves do not overflow.
"""

from __future__ import annotations

import torch

from ._conventions import Layer, Sizes, mean_volume, patch_size

__all__ = ["Correlation"]


def _correlate(input1: torch.Tensor, input2: torch.Tensor, max_displacement: Sizes) -> torch.Tensor:
    return mean_volume(input1, input2, patch_size=patch_size(max_displacement))


class Correlation(Layer):
    """The tracker's module, from two tensors (B, C, H, W) to (B, P*P, H, W), in the dtype and on the device of the inputs.

    Parameters
    ----------
    max_displacement : int or (int, int)
        Largest displacement in pixels; the tracker's is 4.

    Raises
    ------
    TypeError, ValueError
        When called, as `cupycorr.torch.spatial_correlation_sample`.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.compat.mmtracker import Correlation
    >>> x = torch.ones(1, 512, 19, 34)
    >>> Correlation(4)(x, x).shape
    torch.Size([1, 81, 19, 34])
    """

    function = staticmethod(_correlate)

    def __init__(self, max_displacement: Sizes) -> None:
        super().__init__(max_displacement)
