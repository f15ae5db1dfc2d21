"""The geometry of the lookup in a volume: its parameters and sizes, checked once and normalised to plain integers.

The query ``q = (e, i, j)`` has a slice of the volume of its own, and looks up a window of it around its coordinates:

    out[e, m, n, i, j] = scale * sum over a, b in {0, 1} of  wy(a) wx(b) D(y0 + a + dy(m), x0 + b + dx(n))
    D(y', x') = volume[e, i, j, y', x'],   0 outside the slice
    X = coords[e, 0, i, j],   x0 = floor(X),   wx(1) = X - x0,   wx(0) = 1 - wx(1);   Y = coords[e, 1, i, j] likewise
    dx(n) = dilation_patch (n - (PW - 1) // 2),   dy likewise

It is the lookup of `cupycorr._lookup` with one channel and an input1 of ones, and its windows are of the same `Axis`. A volume of
one dimension, (E, H, W1, W2), has slices of one row, and its queries no coordinate Y: they look into that row. Nothing here knows
arrays, devices or variants. Sizes are computed by + - * // only, so that torch's symbolic sizes can be used.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from .._arguments import Pair, Shape, integer, pair
from .._dispatch import Input
from .._lookup.problem import DY_FIRST, Axis, Parameters
from .._lookup.problem import parameters as lookup_parameters
from .._sharing import CachedProperty

Needs = tuple[bool, bool]  # gradients of the volume and of coords
DEFAULT_NEEDS: Needs = (True, False)
ONE_DIMENSION, TWO_DIMENSIONS = 4, 5  # axes of the volume: (E, H, W1, W2) or (E, H, W, H2, W2)


def parameters(
    dimensions: int, patch_size: Any = 9, *, dilation_patch: Any = 1, order: Any = DY_FIRST, scale: Any = 1.0
) -> Parameters:
    """Check and normalise the operator's parameters for a volume with so many axes.

    Raises
    ------
    TypeError
        A parameter is not an int or, for a volume of two dimensions, a pair of ints; or ``scale`` is not a real number.
    ValueError
        A parameter is below 1, a tuple is not a pair, the patch reaches too far, ``order`` is neither "dy" nor "dx", or
        ``scale`` is not finite.
    """
    if dimensions == ONE_DIMENSION:
        patch_size, dilation_patch = (
            _along_x(name, value) for name, value in (("patch_size", patch_size), ("dilation_patch", dilation_patch))
        )
    return lookup_parameters(patch_size, dilation_patch=dilation_patch, level_step=1, order=order, scale=scale)


def _along_x(name: str, value: Any) -> Pair:
    """Return the pair of a parameter of a volume of one dimension."""
    only = integer(name, value, "an int for a volume of one dimension (E, H, W1, W2)", value)
    return 1, pair(name, only, 1)[1]


@dataclass(frozen=True)
class Problem:
    """The parameters and the sizes: everything that a plan needs except the volume's dtype and the memory of the arrays.

    ``volume`` and ``coords`` are the shapes as they were passed.
    """

    parameters: Parameters
    volume: Shape
    coords: Shape
    coords_dtype: str

    def __hash__(self) -> int:
        return self._hash

    @CachedProperty
    def _hash(self) -> int:
        """Computed once: caches hash problems at every call."""
        return hash((self.parameters, self.volume, self.coords, self.coords_dtype))

    # Sizes.

    @property
    def entries(self) -> int:
        """The number of entries E."""
        return self.volume[0]

    @property
    def size1(self) -> Pair:
        """The height and the width (H, W) of the image of queries."""
        return self.volume[1], self.volume[2]

    @property
    def has_rows(self) -> bool:
        """True if the slices have rows and coords the channel y: the volume has two dimensions."""
        return len(self.volume) == TWO_DIMENSIONS

    @property
    def size2(self) -> Pair:
        """The height and the width (H2, W2) of a slice; the height is 1 for a volume of one dimension."""
        return (self.volume[-2], self.volume[-1]) if self.has_rows else (1, self.volume[-1])

    @CachedProperty
    def vertical(self) -> Axis:
        """The geometry of the window along y."""
        return Axis(self.parameters.patch_size[0], self.parameters.dilation_patch[0], 2 if self.has_rows else 1)

    @CachedProperty
    def horizontal(self) -> Axis:
        """The geometry of the window along x."""
        return Axis(self.parameters.patch_size[1], self.parameters.dilation_patch[1], 2)

    # The maps as the windows of `cupycorr._lookup` know them: one level, in whose pixels coordinates are.

    @property
    def sizes2(self) -> tuple[Pair, ...]:
        """The size of a slice, as that of the only level."""
        return (self.size2,)

    @property
    def level_scales(self) -> tuple[tuple[float, float], ...]:
        """The factors of the coordinates, which are in pixels of the slices."""
        return ((1.0, 1.0),)

    @property
    def queries(self) -> int:
        """The number of queries E H W."""
        return self.volume[0] * self.volume[1] * self.volume[2]

    @property
    def taps(self) -> int:
        """The number of taps of a window."""
        return self.vertical.taps * self.horizontal.taps

    # Shapes.

    @property
    def full_volume(self) -> Shape:
        """The shape ``(E, H, W, H2, W2)`` of the volume, whatever its dimensions are."""
        return (*self.volume[:3], *self.size2)

    @CachedProperty
    def out_shape(self) -> Shape:
        """The shape of the output: ``(E, PH, PW, H, W)``, for the order "dx" ``(E, PW, PH, H, W)``, or ``(E, P, H, W1)``."""
        if not self.has_rows:
            return (self.entries, self.parameters.patch_size[1], *self.size1)
        patch = self.parameters.patch_size if self.parameters.order == DY_FIRST else self.parameters.patch_size[::-1]
        return (self.entries, *patch, *self.size1)

    @CachedProperty
    def inputs(self) -> tuple[Input, ...]:
        """The inputs: the volume and coords."""
        return (
            Input("volume", self.volume, "gradient_volume"),
            Input("coords", self.coords, "gradient_coords", self.coords_dtype),
        )

    # Work.

    @property
    def key(self) -> str:
        """The sizes and parameters that take time: not the scale."""
        p = self.parameters
        sizes = f"volume={self.volume} coords={self.coords} of {self.coords_dtype}"
        return f"{sizes}, patch={p.patch_size} dilation={p.dilation_patch} order={p.order}"

    @property
    def outputs(self) -> int:
        """The number of output elements."""
        return prod(self.out_shape)

    @property
    def flops(self) -> int:
        """The operations of the definition: two for each corner of each output."""
        return 2 * self.vertical.corners * self.horizontal.corners * self.outputs


def problem(params: Parameters, volume: Shape, coords: Shape, coords_dtype: str) -> Problem:
    """Return the problem of checked parameters and the shapes of the arrays.

    Raises
    ------
    ValueError
        An array has another number of dimensions, the shapes do not fit each other, or an image or a slice has no pixels.
    """
    check_dimensions(volume)
    joined = Problem(params, volume, coords, coords_dtype)
    for size in (*joined.size1, *joined.size2):
        if size < 1:
            raise ValueError(f"volume must have sizes of at least 1 after its first axis, got volume.shape={tuple(volume)}")
    _check_coords(joined)
    return joined


def check_dimensions(volume: Shape) -> None:
    """Refuse a volume with another number of axes."""
    if len(volume) not in (ONE_DIMENSION, TWO_DIMENSIONS):
        wanted = "5 dimensions (E, H, W, H2, W2) or 4 dimensions (E, H, W1, W2)"
        raise ValueError(f"volume must have {wanted}, got volume.shape={tuple(volume)}")


def _check_coords(problem: Problem) -> None:
    shape, got = problem.coords, f"got coords.shape={tuple(problem.coords)}, volume.shape={tuple(problem.volume)}"
    axes, channels = ("(E, 2, H, W)", 2) if problem.has_rows else ("(E, 1, H, W1)", 1)
    if len(shape) != 4:
        raise ValueError(f"coords must have 4 dimensions {axes}, {got}")
    if shape[1] != channels:
        words = "2 channels (x, y)" if problem.has_rows else "1 channel (x)"
        raise ValueError(f"coords must have {words} for a volume of {len(problem.volume)} dimensions, {got}")
    # One by one: torch compares symbolic sizes, but not tuples of them.
    if shape[0] != problem.entries or shape[2] != problem.size1[0] or shape[3] != problem.size1[1]:
        raise ValueError(f"coords must have the entries, the height and the width of the volume, {got}")
