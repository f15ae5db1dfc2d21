"""A volume in slices: the samples and displacements that are computed at once where a whole volume would be too large.

A slice of a correlation is a correlation with a smaller batch and a smaller patch around another offset.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import product
from math import prod
from typing import Any

from .._arguments import Pair
from .._correlation.problem import Axis, Parameters
from .._correlation.problem import Problem as Correlation

SLICE_BYTES = 2**22  # of the scores of a slice
GRADIENT_BYTES = 2**25  # of those of a slice whose gradients are computed, for which both images are packed again


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a volume.

    Attributes
    ----------
    samples
        The samples.
    first
        The index pair of the first displacement.
    correlation
        The correlation whose volume is this part.
    """

    samples: slice
    first: Pair
    correlation: Correlation

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `spatial_correlation_sample` that compute this part, except for the inputs."""
        return {field.name: getattr(self.correlation.parameters, field.name) for field in fields(Parameters)}


def slices(whole: Correlation, itemsize: int, limit: int = SLICE_BYTES) -> Iterator[Slice]:
    """Yield the slices of a volume in the order of samples and displacements, of at most so many bytes or one displacement."""
    batch, rows, columns = lengths(whole, itemsize, limit)
    vertical, horizontal = whole.vertical, whole.horizontal
    ranges = range(0, whole.batch, batch), range(0, vertical.patch, rows), range(0, horizontal.patch, columns)
    for b, m, n in product(*ranges):
        patch = min(rows, vertical.patch - m), min(columns, horizontal.patch - n)
        offset = _offset(vertical, m, patch[0]), _offset(horizontal, n, patch[1])
        parameters = replace(whole.parameters, patch_size=patch, patch_offset=offset)
        part = replace(whole, parameters=parameters, batch=min(batch, whole.batch - b))
        yield Slice(slice(b, b + part.batch), (m, n), part)


def lengths(whole: Correlation, itemsize: int, limit: int = SLICE_BYTES) -> tuple[int, int, int]:
    """Return the most samples, and the most rows and columns of displacements, of a slice."""
    batch, rows, columns, *plane = whole.out_shape
    fitting = max(limit // (prod(plane) * itemsize), 1)
    if fitting < columns:
        return 1, 1, fitting
    if fitting < rows * columns:
        return 1, fitting // columns, columns
    return min(fitting // (rows * columns), max(batch, 1)), rows, columns


def _offset(axis: Axis, first: int, patch: int) -> int:
    """Return the displacement at the centre of a patch of so many displacements from an index on."""
    return axis.displacements[first + (patch - 1) // 2]
