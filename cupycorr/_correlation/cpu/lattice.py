"""A window of many pixels as sums over a volume of one-pixel windows, and which pixels that volume reads.

Along each axis a `Problem` is taken apart in two steps. An `AxisPlan` says at which positions of input1 the one-pixel volume is
computed and how its values are summed into outputs. A `Lattice` says which position of the searched image each of them is
multiplied with at each displacement. Gradient 1 reads the same lattice; gradient 2 reads it from the other side
(`seen_from_input2`), so that an engine needs two maps only: a volume, and the gradient of a volume with respect to its query.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd

from ..._arguments import Pair
from ..problem import Axis, lattice_inside


@dataclass(frozen=True, slots=True)
class Window:
    """``taps`` neighbours, ``dilation`` apart, summed at every ``stride``-th index of a lattice."""

    taps: int
    dilation: int
    stride: int

    def reach(self, begin: int, end: int) -> Pair:
        """The lattice indices that outputs ``[begin, end)`` read."""
        return begin * self.stride, (end - 1) * self.stride + (self.taps - 1) * self.dilation + 1


ONE_PIXEL = Window(1, 1, 1)


@dataclass(frozen=True, slots=True)
class Lattice:
    """Query positions ``first + stride t``, ``t < count``; query t meets, at displacement index m, the searched position

        origin + spacing (pitch t + advance m)

    which counts if it lies in ``[low, high)``, just as the query must lie in ``[0, size)``. Its cotangent stands at displacement
    ``patch_first + patch_step m`` and lattice index ``t + skew_first + skew m`` of the forward volume.
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
        """The queries whose position lies in ``[begin, end)`` of the query image."""
        return lattice_inside(self.first, self.stride, self.count, begin, end)

    def meets(self, m: int) -> Pair:
        """The queries ``[begin, end)`` that count at displacement index ``m``: both positions inside."""
        begin, end = self.queries_inside(0, self.size)
        at = self.origin + self.spacing * self.advance * m
        low, high = lattice_inside(at, self.spacing * self.pitch, self.count, self.low, self.high)
        return max(begin, low), max(min(end, high), begin, low)

    def position(self, t: int, m: int) -> int:
        """The searched position of query ``t`` at displacement index ``m``, inside the image or not."""
        return self.origin + self.spacing * (self.pitch * t + self.advance * m)

    def searched_inside(self) -> Pair:
        """The searched indices whose position counts (it may begin below 0)."""
        return -((self.origin - self.low) // self.spacing), -((self.origin - self.high) // self.spacing)

    def volume_inside(self) -> Pair:
        """The indices of the forward volume whose position in input1 lies inside it."""
        if not self.skew:
            return self.queries_inside(0, self.size)
        begin, end = self.searched_inside()
        return begin + self.skew_first, end + self.skew_first

    def moved(self, offset: int) -> Lattice:
        """The lattice of another tap: both positions ``offset`` further."""
        return replace(self, first=self.first + offset, origin=self.origin + offset)

    def seen_from_input2(self) -> list[Lattice]:
        """The same meetings with the roles exchanged: one lattice for each class of input2's positions that is met.

        Query t meets y' = first + shift + stride t + step m. With m = c + (stride / spacing) m~, that is one lattice for each
        c, with index t'' = t + advance m~; displacements are taken in reverse so that the searched position grows with m.
        """
        classes = []
        inside = lattice_inside(self.first, self.stride, self.count, 0, self.size)
        for c in range(min(self.pitch, self.patch)):
            patch = -((c - self.patch) // self.pitch)
            back = self.advance * (patch - 1)
            classes.append(
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
        return classes


@dataclass(frozen=True, slots=True)
class AxisPlan:
    """One way to compute the windows of one axis: a one-pixel lattice for each tap, and the window summed over its volume.

    There are two ways. Either the products of every position that a window reads are computed once and summed in memory (one tap,
    a window of many), or the products of every tap are computed for each output (many taps, a window of one pixel).
    """

    lattice: Lattice
    taps: range
    window: Window

    @property
    def lattices(self) -> list[Lattice]:
        """The lattice of each tap."""
        return [self.lattice.moved(tap) for tap in self.taps]

    def lattice_count(self, side: int) -> int:
        """Return how many lattices read the image of a side: for input2 (1), one for each class of its positions."""
        return len(self.taps) * (min(self.lattice.pitch, self.lattice.patch) if side else 1)


@lru_cache(maxsize=1024)
def axis_plans(axis: Axis) -> tuple[AxisPlan, ...]:
    """Return the ways to compute the windows of an axis; a window of one pixel has only one."""
    tap_by_tap = AxisPlan(_lattice(axis, axis.stride, axis.out), range(0, axis.kernel * axis.dilation, axis.dilation), ONE_PIXEL)
    if axis.kernel == 1:
        return (tap_by_tap,)
    spacing = gcd(axis.stride, axis.dilation)
    span = ((axis.out - 1) * axis.stride + axis.dilation * (axis.kernel - 1)) // spacing + 1
    window = Window(axis.kernel, axis.dilation // spacing, axis.stride // spacing)
    return AxisPlan(_lattice(axis, spacing, span), range(1), window), tap_by_tap


@lru_cache(maxsize=1024)
def all_meets(lattice: Lattice) -> tuple[Pair, ...]:
    """Return the queries that count at each displacement index."""
    return tuple(lattice.meets(m) for m in range(lattice.patch))


NOTHING = (0, 0), (0, 0)  # empty ranges of queries and of displacement indices


@lru_cache(maxsize=1024)
def bounds(lattice: Lattice) -> tuple[Pair, Pair]:
    """Return ranges of queries and of displacement indices outside which nothing counts: `NOTHING` if nothing does at all."""
    begin, end = lattice.queries_inside(0, lattice.size)
    if begin >= end:
        return NOTHING
    step = lattice.spacing * lattice.advance
    # Index m counts only if the last query's position is not before the image and the first query's not behind it.
    first, last = lattice.position(begin, 0), lattice.position(end - 1, 0)
    ms = lattice_inside(first, step, lattice.patch, lattice.low - (last - first), lattice.high)
    if ms[0] >= ms[1]:
        return NOTHING
    at, reach = lattice.position(0, ms[0]), step * (ms[1] - 1 - ms[0])
    low, high = lattice_inside(at, lattice.stride, lattice.count, lattice.low - reach, lattice.high)
    queries = max(low, begin), min(high, end)
    return (queries, ms) if queries[0] < queries[1] else NOTHING


def counted_share(lattice: Lattice, queries: Pair, ms: Pair, samples: int = 16) -> float:
    """Estimate which part of all pairs of a query and a displacement index counts, from a few of the indices."""
    patch, length = ms[1] - ms[0], queries[1] - queries[0]
    picked = range(ms[0], ms[1], -(-patch // samples))
    counted = 0
    for m in picked:
        begin, end = lattice.meets(m)
        counted += max(min(end, queries[1]) - max(begin, queries[0]), 0)
    return counted / (length * len(picked))


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
