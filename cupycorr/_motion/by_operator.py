"""Scores of a tile by the correlation operator, on a CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._arguments import Pair
from .._arrays import array_module
from .._correlation.api import spatial_correlation_sample
from . import scores
from .frames import Pixels
from .tile import Tile


def by_operator(tile: Tile, first: Pixels, second: Pixels) -> tuple[Any, Any]:
    """Return the scores of a tile and the number of pixels compared, by the correlation operator."""

    def correlate(firsts: Sequence[Any], seconds: Sequence[Any], pairs: Sequence[Pair]) -> Sequence[Any]:
        xp = array_module(firsts[0])
        inputs = ([images[which[side]] for which in pairs] for side, images in enumerate((firsts, seconds)))
        input1, input2 = (each[0] if len(each) == 1 else xp.concatenate(each) for each in inputs)
        out = spatial_correlation_sample(
            input1[:, None],
            input2[:, None],
            kernel_size=tile.window,
            patch_size=tile.tried,
            stride=tile.step,
            patch_offset=first_displacement(tile.tried),
        )
        return out.reshape(len(pairs), -1, *out.shape[1:])

    sums = scores.sums_of_tile(tile, first, second, correlate)
    return scores.scores(sums), sums.count


def first_displacement(tried: Pair) -> Pair:
    """Return the displacement at the centre of the operator's patch that makes displacement index 0 the displacement 0."""
    return (tried[0] - 1) // 2, (tried[1] - 1) // 2
