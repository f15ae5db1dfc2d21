"""The geometry of matching: a correlation, the reduction of its scores, and the displacements that may be found at a position.

Scores are those of the fixed-grid operator, in its accumulator. A displacement is excluded at a position if the centre tap of
the displaced window is outside input2. Along each axis, the displacements that are not excluded follow each other, so that two
numbers for each position are enough. Nothing here knows arrays of scores, devices or variants.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .._arguments import Pair, Shape, at_least
from .._correlation.problem import Axis, Parameters, lattice_inside, search_range
from .._correlation.problem import Problem as Correlation
from .._dispatch import Input

ZERO, EXCLUDED = OUTSIDE = ("zero", "excluded")  # what displacements count for that leave input2


@dataclass(frozen=True, slots=True)
class Best:
    """The reduction to the so many best displacements; ``around`` also asks for the scores around the best one."""

    top_k: int = 1
    around: bool = False


@dataclass(frozen=True, slots=True)
class Mean:
    """The reduction to the mean displacement, with weights exp(score / temperature).

    ``log_sum`` also asks for the logarithm of their sum.
    """

    temperature: float = 1.0
    log_sum: bool = False


Reduction = Best | Mean


@dataclass(frozen=True)
class Problem:
    """A correlation and the reduction of its scores.

    Attributes
    ----------
    correlation
        The correlation.
    reduction
        What is computed from the scores at each position.
    excluding
        True if displacements that leave input2 are excluded.
    displacements
        The displacements along y and along x that are found, in pixels, where they are not those of the correlation.
    """

    correlation: Correlation
    reduction: Reduction
    excluding: bool
    displacements: tuple[range, range] | None = None

    @property
    def inputs(self) -> tuple[Input, Input]:
        """The feature maps, which have the names of the correlation's."""
        return self.correlation.inputs

    @property
    def out_shape(self) -> Shape:
        """The shape of each result: ``(B, k, oH, oW)`` for the best displacements, ``(B, oH, oW)`` for the mean."""
        batch, *_, height, width = self.correlation.out_shape
        if isinstance(self.reduction, Best):
            return (batch, self.reduction.top_k, height, width)
        return (batch, height, width)

    @property
    def key(self) -> str:
        """The sizes and parameters that take time."""
        words = f"{self.reduction}" if isinstance(self.reduction, Best) else "mean"
        return f"{self.correlation.key}, {words}, excluding={self.excluding}"

    @property
    def ranges(self) -> tuple[range, range]:
        """The displacements along y and along x, in pixels."""
        return self.displacements or ranges_of(self.correlation.parameters)

    @property
    def channels(self) -> int:
        """The number of displacements."""
        return self.correlation.vertical.patch * self.correlation.horizontal.patch


@lru_cache(256)
def allowed(axis: Axis) -> np.ndarray:
    """Return for each position of an axis the range of displacement indices that are not excluded: begins (0), ends (1)."""
    centre, ascending = (axis.kernel - 1) // 2 * axis.dilation - axis.padding, axis.displacements[:: 1 if axis.step > 0 else -1]
    first = centre + ascending[0]
    ranges = [lattice_inside(first + axis.stride * i, ascending.step, axis.patch, 0, axis.size2) for i in range(axis.out)]
    if axis.step < 0:
        ranges = [(axis.patch - end, axis.patch - begin) for begin, end in ranges]
    found = np.array(ranges, np.int64).T.copy()
    found.flags.writeable = False
    return found


def channels_of(volume: Correlation, first: Pair, counts: Pair) -> np.ndarray:
    """Return the channels (rows, columns) of so many rows and columns of displacements, from an index pair ``first`` on."""
    m, n = (np.arange(start, start + count) for start, count in zip(first, counts, strict=True))
    return np.add.outer(m * volume.horizontal.patch, n)


def ranges_of(parameters: Parameters) -> tuple[range, range]:
    """Return the displacements along y and along x, in pixels; a ValueError if one does not fit into 64 bits."""
    return search_range(parameters.patch_size, parameters.dilation_patch, parameters.patch_offset)


def check_outside(outside: Any) -> bool:
    """Return whether displacements that leave input2 are excluded.

    Raises
    ------
    ValueError
        ``outside`` is neither of the two words.
    """
    if not isinstance(outside, str) or outside not in OUTSIDE:
        raise ValueError(f"outside must be 'zero' or 'excluded', got outside={outside!r}")
    return outside == EXCLUDED


def best(parameters: Parameters, top_k: Any, subpixel: Any) -> Best:
    """Check the arguments of a search for the best displacements, and return its reduction.

    Raises
    ------
    TypeError
        ``top_k`` is not an int, or ``subpixel`` is not a bool.
    ValueError
        ``top_k`` is below 1 or above the number of displacements, or ``subpixel`` is combined with it or with a window.
    """
    plain = at_least(1, "top_k", top_k)
    if not isinstance(subpixel, (bool, np.bool_)):
        raise TypeError(f"subpixel must be a bool, got subpixel={subpixel!r}")
    rows, columns = parameters.patch_size
    if plain > rows * columns:
        what = f"at most the number of displacements, {rows} x {columns}"
        raise ValueError(f"top_k must be {what}, got top_k={plain}")
    if subpixel and plain > 1:
        raise ValueError(f"subpixel is for the best displacement alone, got subpixel=True, top_k={plain}")
    if subpixel and parameters.kernel_size != (1, 1):
        got = f"got subpixel=True, kernel_size={parameters.kernel_size}"
        raise ValueError(f"subpixel is for windows of one pixel, {got}")
    return Best(plain, bool(subpixel))
