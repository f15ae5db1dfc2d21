"""Spatial correlation (the cost volume of optical flow, stereo, tracking and PIV) with nothing to build."""

from ._correlation.api import explain, spatial_correlation_sample, spatial_correlation_sample_vjp
from .channels import Displacement, argmax_displacement, displacements, plot_channels, soft_argmax, to_channels
from .motion import Match, match, median_residual

__all__ = [
    "Displacement",
    "Match",
    "argmax_displacement",
    "displacements",
    "explain",
    "match",
    "median_residual",
    "plot_channels",
    "soft_argmax",
    "spatial_correlation_sample",
    "spatial_correlation_sample_vjp",
    "to_channels",
]
__version__ = "0.1.0"
