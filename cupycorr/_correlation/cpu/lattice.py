"""The geometry of one axis: windows as sums over a volume of one-pixel windows, and the pixels which that volume multiplies.

A `Problem` is taken apart along each axis in two steps. An `AxisPlan` says at which positions of input1 the one-pixel volume is
computed and how its values are summed into outputs. A `Lattice` gives the position of the search image that each of them is
multiplied with at each displacement. For the forward map and gradient 1 the query image is input1 and the search image input2;
for gradient 2 they are exchanged (`Lattice.with_roles_exchanged`), so that an engine needs two maps only: a volume, and the
gradient of a volume with respect to its query image. A query and a displacement are a valid pair if both positions are inside
their images. This module knows neither arrays nor engines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd

from ..._arguments import Pair
from ..problem import Axis, lattice_inside


@dataclass(frozen=True, slots=True)
class Window:
    """A window sum over lattice indices: ``out[i] = sum over u < taps of values[i stride + u dilation]``."""

    taps: int
    dilation: int
    stride: int

    def input_range(self, begin: int, end: int) -> Pair:
        """Return the range of indices that outputs ``[begin, end)`` read."""
        return begin * self.stride, (end - 1) * self.stride + (self.taps - 1) * self.dilation + 1

    def input_length(self, outputs: int) -> int:
        """Return the length of the range of indices that so many outputs read."""
        return (outputs - 1) * self.stride + (self.taps - 1) * self.dilation + 1

    def output_length(self, inputs: int) -> int:
        """Return the number of outputs that fit into so many indices."""
        return (inputs - 1 - (self.taps - 1) * self.dilation) // self.stride + 1


ONE_PIXEL = Window(1, 1, 1)


@dataclass(frozen=True, slots=True)
class Lattice:
    """The queries of one axis, and the search position that each is multiplied with at each displacement.

    Attributes
    ----------
    first, stride, count, size
        Query t < ``count`` stands at position ``first + stride t`` of the query image, which has the positions ``[0, size)``.
    patch
        The number of displacements.
    origin, spacing, pitch, advance
        At displacement index m, query t is multiplied with the search position ``origin + spacing (pitch t + advance m)``.
        ``pitch`` and ``advance`` have no common divisor.
    low, high
        The search positions inside the image are ``[low, high)``.
    patch_first, patch_step
        Displacement index m is index ``patch_first + patch_step m`` of the forward volume.
    skew_first, skew
        Query t at displacement index m is lattice index ``t + skew_first + skew m`` of the forward volume.
    """

    first: int
    stride: int
    count: int
    size: int
    patch: int
    origin: int
    spacing: int
    pitch: int
    advance: int
    low: int
    high: int
    patch_first: int = 0
    patch_step: int = 1
    skew_first: int = 0
    skew: int = 0

    def queries_inside(self, begin: int, end: int) -> Pair:
        """Return the range of queries whose position is in ``[begin, end)``."""
        return lattice_inside(self.first, self.stride, self.count, begin, end)

    def valid_queries(self, m: int) -> Pair:
        """Return the range of queries that are a valid pair with displacement index ``m``."""
        begin, end = self.queries_inside(0, self.size)
        at = self.origin + self.spacing * self.advance * m
        low, high = lattice_inside(at, self.spacing * self.pitch, self.count, self.low, self.high)
        return max(begin, low), max(min(end, high), begin, low)

    def search_position(self, t: int, m: int) -> int:
        """Return the search position of query ``t`` at displacement index ``m``, inside the image or not."""
        return self.origin + self.spacing * (self.pitch * t + self.advance * m)

    def volume_inside(self) -> Pair:
        """Return the range of indices of the forward volume whose position in input1 is inside the image."""
        if not self.skew:
            return self.queries_inside(0, self.size)
        begin = -((self.origin - self.low) // self.spacing)
        end = -((self.origin - self.high) // self.spacing)
        return begin + self.skew_first, end + self.skew_first

    def shifted(self, offset: int) -> Lattice:
        """Return the lattice of another tap, whose positions in both images are ``offset`` further."""
        return replace(self, first=self.first + offset, origin=self.origin + offset)

    def with_roles_exchanged(self) -> list[Lattice]:
        """Return the lattices of the same pairs with input2 as the query image: one for each phase of displacements.

        Query t is multiplied with y' = first + shift + stride t + step m. With m = c + (stride / spacing) m~ that is one lattice
        for each phase c, of queries t'' = t + advance m~. Displacements are reversed so that the search position grows with m.
        """
        phases = []
        inside = lattice_inside(self.first, self.stride, self.count, 0, self.size)
        for c in range(min(self.pitch, self.patch)):
            patch = -((c - self.patch) // self.pitch)
            back = self.advance * (patch - 1)
            phases.append(
                Lattice(
                    first=self.origin + self.spacing * self.advance * c,
                    stride=self.stride,
                    count=self.count + back,
                    size=self.high,
                    patch=patch,
                    origin=self.first - self.stride * back,
                    spacing=self.stride,
                    pitch=1,
                    advance=self.advance,
                    low=self.first + self.stride * inside[0],
                    high=self.first + self.stride * (inside[1] - 1) + 1,
                    patch_first=c + self.pitch * (patch - 1),
                    patch_step=-self.pitch,
                    skew_first=-back,
                    skew=self.advance,
                )
            )
        return phases


@dataclass(frozen=True, slots=True)
class AxisPlan:
    """One way to compute the windows of an axis: a one-pixel lattice for each tap, and a window sum over each volume.

    There are two ways. Either the products at every position that a window reads are computed once and summed in memory (one tap,
    a window of many pixels), or the products of every tap are computed for each output (many taps, a window of one pixel).
    """

    lattice: Lattice
    taps: range
    window: Window

    @property
    def lattices(self) -> list[Lattice]:
        """The lattice of each tap."""
        return [self.lattice.shifted(tap) for tap in self.taps]

    def lattice_count(self, side: int) -> int:
        """Return the number of lattices with input1 (side 0) or input2 (side 1) as the query image."""
        return len(self.taps) * (min(self.lattice.pitch, self.lattice.patch) if side else 1)


@lru_cache(maxsize=1024)
def axis_plans(axis: Axis) -> tuple[AxisPlan, ...]:
    """Return the ways to compute the windows of an axis; there is only one for windows of one pixel."""
    tap_by_tap = AxisPlan(_lattice(axis, axis.stride, axis.out), range(0, axis.kernel * axis.dilation, axis.dilation), ONE_PIXEL)
    if axis.kernel == 1:
        return (tap_by_tap,)
    spacing = gcd(axis.stride, axis.dilation)
    span = ((axis.out - 1) * axis.stride + axis.dilation * (axis.kernel - 1)) // spacing + 1
    window = Window(axis.kernel, axis.dilation // spacing, axis.stride // spacing)
    return AxisPlan(_lattice(axis, spacing, span), range(1), window), tap_by_tap


def _lattice(axis: Axis, stride: int, count: int) -> Lattice:
    spacing = gcd(stride, axis.step)
    return Lattice(
        first=-axis.padding,
        stride=stride,
        count=count,
        size=axis.size1,
        patch=axis.patch,
        origin=axis.first_displacement - axis.padding,
        spacing=spacing,
        pitch=stride // spacing,
        advance=axis.step // spacing,
        low=0,
        high=axis.size2,
    )


@lru_cache(maxsize=1024)
def all_valid_queries(lattice: Lattice) -> tuple[Pair, ...]:
    """Return `Lattice.valid_queries` of each displacement index."""
    return tuple(lattice.valid_queries(m) for m in range(lattice.patch))


NO_BOUNDS = (0, 0), (0, 0)  # empty ranges of queries and of displacement indices


@lru_cache(maxsize=1024)
def valid_bounds(lattice: Lattice) -> tuple[Pair, Pair]:
    """Return ranges of queries and of displacement indices that contain all valid pairs; `NO_BOUNDS` if there is none."""
    begin, end = lattice.queries_inside(0, lattice.size)
    if begin >= end:
        return NO_BOUNDS
    step = lattice.spacing * lattice.advance
    # At a valid m, the last query's search position is not before the image and the first query's is not behind it.
    first, last = lattice.search_position(begin, 0), lattice.search_position(end - 1, 0)
    ms = lattice_inside(first, step, lattice.patch, lattice.low - (last - first), lattice.high)
    if ms[0] >= ms[1]:
        return NO_BOUNDS
    at, reach = lattice.search_position(0, ms[0]), step * (ms[1] - 1 - ms[0])
    low, high = lattice_inside(at, lattice.stride, lattice.count, lattice.low - reach, lattice.high)
    queries = max(low, begin), min(high, end)
    return (queries, ms) if queries[0] < queries[1] else NO_BOUNDS


def valid_fraction(lattice: Lattice, queries: Pair, ms: Pair, samples: int = 16) -> float:
    """Estimate the fraction of pairs of a query and a displacement index that are valid, from about ``samples`` indices."""
    patch, length = ms[1] - ms[0], queries[1] - queries[0]
    sampled = range(ms[0], ms[1], -(-patch // samples))
    valid = 0
    for m in sampled:
        begin, end = lattice.valid_queries(m)
        valid += max(min(end, queries[1]) - max(begin, queries[0]), 0)
    return valid / (length * len(sampled))
