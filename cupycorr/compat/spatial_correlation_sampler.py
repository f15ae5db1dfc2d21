"""The C++ extension ``spatial_correlation_sampler`` (Pytorch-Correlation-extension): sums, (B, PH, PW, oH, oW), dy-major.

Its convention is cupycorr's own. For an even patch with ``dilation_patch`` of 2 or more, the extension's code for GPUs disagrees
with its code for CPUs. cupycorr follows the latter, which agrees with the extension's gradients.

Examples
--------
>>> import torch
>>> from cupycorr.compat.spatial_correlation_sampler import SpatialCorrelationSampler
>>> x = torch.ones(1, 16, 20, 30)
>>> SpatialCorrelationSampler(1, 9, 1, 0, 1)(x, x).shape
torch.Size([1, 9, 9, 20, 30])
"""

from __future__ import annotations

from ..torch import SpatialCorrelationSampler, spatial_correlation_sample

__all__ = ["SpatialCorrelationSampler", "SpatialCorrelationSamplerFunction", "spatial_correlation_sample"]


class SpatialCorrelationSamplerFunction:
    """The extension's autograd function, for code that calls ``apply``: it is `spatial_correlation_sample`."""

    apply = staticmethod(spatial_correlation_sample)
