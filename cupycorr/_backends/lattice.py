"""A window of many pixels as sums over a volume of one-pixel windows, and what that volume reads.

Along each axis a `Problem` is taken apart in two steps. A `Route` says at which positions of input1 the one-pixel volume is
wanted and how its values are summed into outputs. A `Lattice` says which position of the searched image each of them meets at
each displacement. Gradient 1 reads the same lattice; gradient 2 reads it from the other side (`seen_from_input2`), so that a
backend needs two maps only: a volume, and the gradient of a volume with respect to its query.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd

from .._problem import Axis, Pair, lattice_inside


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

    def searched(self, begin: int, end: int, m_begin: int, m_end: int) -> Pair:
        """The searched indices ``pitch t + advance m`` of queries ``[begin, end)`` at displacements ``[m_begin, m_end)``."""
        return self.pitch * begin + self.advance * m_begin, self.pitch * (end - 1) + self.advance * (m_end - 1) + 1

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
class Route:
    """One axis of a problem: the one-pixel lattice, the taps added to both its positions, the window summed over it."""

    lattice: Lattice
    taps: tuple[int, ...]
    window: Window

    @property
    def lattices(self) -> list[Lattice]:
        """The lattice of each tap."""
        return [self.lattice.moved(tap) for tap in self.taps]


@lru_cache(maxsize=1024)
def route(axis: Axis) -> Route:
    """The cheaper way to a window: as many products as positions, or as many as taps.

    Overlapping windows share products, so the volume is computed at every position a window touches and then summed. Windows
    that leave gaps touch fewer positions than lie between them: their taps are computed one by one.
    """
    spacing = gcd(axis.stride, axis.dilation)
    span = ((axis.out - 1) * axis.stride + axis.dilation * (axis.kernel - 1)) // spacing + 1
    if axis.kernel == 1:
        return Route(_lattice(axis, axis.stride, axis.out), (0,), ONE_PIXEL)
    if axis.kernel * axis.out < span:
        taps = tuple(range(0, axis.kernel * axis.dilation, axis.dilation))
        return Route(_lattice(axis, axis.stride, axis.out), taps, ONE_PIXEL)
    window = Window(axis.kernel, axis.dilation // spacing, axis.stride // spacing)
    return Route(_lattice(axis, spacing, span), (0,), window)


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
