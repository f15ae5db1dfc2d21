"""Spatial correlation (the cost volume of optical flow, stereo, tracking and PIV) with nothing to build."""

from ._correlation.api import explain, spatial_correlation_sample, spatial_correlation_sample_vjp
from ._lookup.api import correlation_lookup, correlation_lookup_vjp, explain_lookup
from .channels import Displacement, argmax_displacement, displacements, plot_channels, soft_argmax, to_channels
from .motion import Match, match, median_residual

__all__ = [
    "Displacement",
    "Match",
    "argmax_displacement",
    "correlation_lookup",
    "correlation_lookup_vjp",
    "displacements",
    "explain",
    "explain_lookup",
    "match",
    "median_residual",
    "plot_channels",
    "soft_argmax",
    "spatial_correlation_sample",
    "spatial_correlation_sample_vjp",
    "to_channels",
]
__version__ = "0.1.0"
