"""Spatial correlation (the cost volume of optical flow, stereo, tracking and PIV) with nothing to build."""

from ._api import explain, spatial_correlation_sample, spatial_correlation_sample_vjp
from .motion import Match, match

__all__ = ["Match", "explain", "match", "spatial_correlation_sample", "spatial_correlation_sample_vjp"]
__version__ = "0.1.0"
