"""The windows of queries on NumPy arrays: where they are, how dots become outputs, and how cotangents become factors of dots.

    dots (rows of taps, columns of taps, queries)  ->  blend  ->  outputs (PH, PW, queries)
    cotangents (PH, PW, queries)  ->  spread  ->  factors of dots (rows of taps, columns of taps, queries)

`spread` is the transpose of `blend`. Every array has its queries on the last axis. Nothing here sums over channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from .._arguments import Pair
from .._dtypes import LONGEST_CHAIN
from .problem import DY_FIRST, Axis, Problem

Block = tuple[slice, slice]  # rows and columns of queries


class Geometry(Protocol):
    """The part of a problem that windows depend on, which the lookup in a given volume has too."""

    @property
    def size1(self) -> Pair:
        """The height and the width of the image of queries."""

    @property
    def sizes2(self) -> tuple[Pair, ...]:
        """The height and the width of the map at each level."""

    @property
    def level_scales(self) -> tuple[tuple[float, float], ...]:
        """The factors of the coordinates along y and x at each level."""

    @property
    def has_rows(self) -> bool:
        """True if queries have a coordinate along y."""

    @property
    def vertical(self) -> Axis:
        """The geometry of the window along y."""

    @property
    def horizontal(self) -> Axis:
        """The geometry of the window along x."""


class Arrays:
    """The arrays of a call with every axis that the caller may leave out, and an index for every entry.

    Attributes
    ----------
    input1
        The array (N1, C, H, W).
    levels
        The arrays (N2, C, H2, W2) of the levels of input2.
    coords
        The view (E, K, 1 or 2, H, W) of coords.
    index1, index2
        The indices of the images of each entry.
    """

    def __init__(self, problem: Problem, arrays: Mapping[str, np.ndarray]) -> None:
        self._problem = problem
        self.input1 = arrays["input1"]
        self.levels = [arrays[name] for name in problem.level_names]
        self.coords = arrays["coords"].reshape(problem.full_coords_shape)
        self.index1, self.index2 = (_indices(arrays.get(name), problem.entries) for name in ("index1", "index2"))

    def full(self, output: np.ndarray) -> np.ndarray:
        """Return the view (E, L, K, PH, PW, H, W) of an output or a cotangent."""
        view = output if self._problem.operands.pyramid else output[:, None]
        view = view if self._problem.has_lookups_axis else view[:, :, None]
        return view if self._problem.parameters.order == DY_FIRST else view.swapaxes(3, 4)


def _indices(index: np.ndarray | None, entries: int) -> list[int]:
    return list(range(entries)) if index is None else index.tolist()


def blocks(problem: Geometry, queries: int, rows: int) -> Iterator[Block]:
    """Divide an image of queries into rectangles of at most so many queries (or one) and so many rows."""
    height, width = problem.size1
    tall = min(height, rows, max(queries // width, 1))
    wide = min(width, max(queries // tall, 1))
    for top in range(0, height, tall):
        for left in range(0, width, wide):
            yield slice(top, min(top + tall, height)), slice(left, min(left + wide, width))


@dataclass(frozen=True, slots=True)
class Positions:
    """The taps of queries along one axis.

    Attributes
    ----------
    at
        The positions of the taps in the map, (taps, queries); those before ``begin`` and from ``end`` on are outside the map.
    begin, end
        The range of taps inside the map, (queries).
    weights
        The weight of each corner, (corners, queries).
    """

    at: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    weights: np.ndarray

    def inside(self) -> np.ndarray:
        """Return whether each tap is inside the map, (taps, queries)."""
        taps = np.arange(len(self.at))[:, None]
        return (taps >= self.begin) & (taps < self.end)


class Windows:
    """The windows of some queries at one level.

    Attributes
    ----------
    rows, columns
        The taps along y and x. No tap is inside the map where a coordinate is not finite.
    finite
        True where the coordinates of a query are finite.
    """

    def __init__(
        self,
        problem: Geometry,
        level: int,
        coords: np.ndarray,
        own_rows: np.ndarray,
        accumulator: np.dtype,
        band: slice | None = None,
    ) -> None:
        """Find the windows of queries with these coordinates (1 or 2, queries), around these rows where there is no y.

        With ``band``, these rows of the map are all of it, and the first of them is row 0.
        """
        self.vertical, self.horizontal = problem.vertical, problem.horizontal
        (height, width), (along_y, along_x) = problem.sizes2[level], problem.level_scales[level]
        rows = slice(0, height) if band is None else band
        self.finite = np.isfinite(coords).all(0)
        x = coords[0].astype(accumulator) * accumulator.type(along_x)
        self.columns = _positions(self.horizontal, *_corners(x), self.finite, slice(0, width))
        if problem.has_rows:
            y = coords[1].astype(accumulator) * accumulator.type(along_y)
            self.rows = _positions(self.vertical, *_corners(y), self.finite, rows)
        else:
            whole = np.ones((1, len(own_rows)), accumulator)
            self.rows = _positions(self.vertical, own_rows, whole, self.finite, rows)
        # The factors of the slopes with respect to coords: those that the coordinates are multiplied with.
        self.factors = (accumulator.type(along_x), accumulator.type(along_y))

    @property
    def shape(self) -> tuple[int, int, int]:
        """The numbers of rows of taps, columns of taps and queries."""
        return self.vertical.taps, self.horizontal.taps, len(self.finite)

    def blend(self, dots: np.ndarray) -> np.ndarray:
        """Return the outputs (PH, PW, queries) of dots, NaN where the coordinates are not finite."""
        found = self._blend_rows(self._blend_columns(dots))
        found[:, :, ~self.finite] = np.nan
        return found

    def spread(self, cotangent: np.ndarray) -> np.ndarray:
        """Return the factors of the dots for a cotangent (PH, PW, queries): the transpose of `blend`."""
        rows, columns, queries = self.shape
        between = np.zeros((rows, cotangent.shape[1], queries), cotangent.dtype)
        for corner, weight in enumerate(self.rows.weights):
            between[self.vertical.corner(corner)] += weight * cotangent
        factors = np.zeros((rows, columns, queries), cotangent.dtype)
        for corner, weight in enumerate(self.columns.weights):
            factors[:, self.horizontal.corner(corner)] += weight * between
        return factors

    def slopes(self, dots: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
        """Return the gradient with respect to the coordinates (1 or 2, queries), NaN where they are not finite."""
        left, right = (dots[:, self.horizontal.corner(corner)] for corner in (0, 1))
        found = [self.factors[0] * _sum_over_patch(self._blend_rows(right - left) * cotangent)]
        if len(self.rows.weights) == 2:
            blended = self._blend_columns(dots)
            upper, lower = (blended[self.vertical.corner(corner)] for corner in (0, 1))
            found.append(self.factors[1] * _sum_over_patch((lower - upper) * cotangent))
        slopes = np.stack(found)
        slopes[:, ~self.finite] = np.nan
        return slopes

    def _blend_columns(self, dots: np.ndarray) -> np.ndarray:
        return _weighted(self.columns.weights, [dots[:, self.horizontal.corner(corner)] for corner in (0, 1)])

    def _blend_rows(self, dots: np.ndarray) -> np.ndarray:
        return _weighted(self.rows.weights, [dots[self.vertical.corner(corner)] for corner in range(self.vertical.corners)])


def _weighted(weights: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
    total = weights[0] * parts[0]
    for weight, part in zip(weights[1:], parts[1:], strict=True):
        total += weight * part
    return total


def _sum_over_patch(products: np.ndarray) -> np.ndarray:
    """Return the sums over the first two axes, added in the order of memory, in chains of bounded length."""
    terms, longest = products.reshape(-1, products.shape[-1]), LONGEST_CHAIN.reference
    chains = [terms[begin : begin + longest].sum(0) for begin in range(0, len(terms), longest)]
    found: np.ndarray = np.sum(chains, axis=0)
    return found


def _corners(coordinate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixel that each coordinate is in, and the weights of it and of the next one."""
    low = np.floor(coordinate)
    upper = coordinate - low
    return low, np.stack((1 - upper, upper))


def _positions(axis: Axis, low: np.ndarray, weights: np.ndarray, finite: np.ndarray, inside: slice) -> Positions:
    """Return the taps of windows from the pixels that the coordinates are in, which may be beyond any integer.

    Positions are relative to the first one of the range ``inside``, and those not in it are outside the map.
    """
    # A window that is limited to these positions is still wholly outside, and every number here is exact in float64.
    before, after = inside.start - axis.last - 1, inside.stop - axis.first
    limited = np.where(finite, low.astype(np.float64).clip(before, after), before).astype(np.int64)
    at = limited - inside.start + _offsets(axis)[:, None]
    return Positions(at, (at < 0).sum(0), (at < inside.stop - inside.start).sum(0), weights)


@lru_cache(64)
def _offsets(axis: Axis) -> np.ndarray:
    return np.array([axis.offset(tap) for tap in range(axis.taps)], np.int64)


def coords_of(arrays: Arrays, entry: int, lookup: int, block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates (1 or 2, queries) of a block and the rows (queries) of its queries."""
    rows, columns = block
    coords = arrays.coords[entry, lookup, :, rows, columns]
    own_rows = np.repeat(np.arange(rows.start, rows.stop), columns.stop - columns.start)
    return coords.reshape(len(coords), -1), own_rows


def rows_read(problem: Problem, level: int, coords: np.ndarray, block: Block) -> tuple[float, float]:
    """Return bounds of the rows of a level that the windows of a block read, wherever the map ends."""
    axis = problem.vertical
    if not problem.has_rows:
        return block[0].start + axis.first, block[0].stop - 1 + axis.last
    rows, columns = block
    y = coords[1, rows, columns].astype(np.float64)
    y = y[np.isfinite(y)] * problem.level_scales[level][0]
    # A row more on either side: the product above is not rounded as that of the windows is.
    return (y.min() + axis.first - 1, y.max() + axis.last + 1) if y.size else (math.inf, -math.inf)


def write_block(values: np.ndarray, plane: np.ndarray, block: Block) -> None:
    """Write values (..., queries) into a block of an array (..., H, W)."""
    rows, columns = block
    place = plane[..., rows, columns]
    np.copyto(place, values.reshape(place.shape), casting="unsafe")


def of_block(plane: np.ndarray, block: tuple[slice, slice], dtype: Any) -> np.ndarray:
    """Return the values (..., queries) of an array (..., H, W) in a block, in a dtype, without gaps."""
    rows, columns = block
    part = plane[..., rows, columns]
    return part.reshape(*part.shape[:-2], -1).astype(dtype, order="C")
