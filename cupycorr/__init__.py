"""Spatial correlation (the cost volume of optical flow, stereo, tracking and PIV) with nothing to build."""

from . import variants as variants
from ._correlation.api import explain, spatial_correlation_sample, spatial_correlation_sample_vjp
from ._lookup.api import correlation_lookup, correlation_lookup_vjp, explain_lookup
from ._matching.api import correlation_argmax, correlation_soft_argmax, explain_argmax, explain_soft_argmax
from ._matching.results import BestDisplacement, MeanDisplacement
from ._volume_lookup.api import explain_volume_lookup, volume_lookup, volume_lookup_vjp
from .channels import Displacement, argmax_displacement, displacements, plot_channels, soft_argmax, to_channels
from .motion import Match, match, median_residual

__all__ = [
    "BestDisplacement",
    "Displacement",
    "Match",
    "MeanDisplacement",
    "argmax_displacement",
    "correlation_argmax",
    "correlation_lookup",
    "correlation_lookup_vjp",
    "correlation_soft_argmax",
    "displacements",
    "explain",
    "explain_argmax",
    "explain_lookup",
    "explain_soft_argmax",
    "explain_volume_lookup",
    "match",
    "median_residual",
    "plot_channels",
    "soft_argmax",
    "spatial_correlation_sample",
    "spatial_correlation_sample_vjp",
    "to_channels",
    "volume_lookup",
    "volume_lookup_vjp",
]
__version__ = "0.1.0"
