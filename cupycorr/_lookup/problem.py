"""The geometry of the lookup: its parameters and sizes, checked once and normalised to plain integers.

The query ``q = (e, k, i, j)`` compares the pixel ``input1[s, :, i, j]`` with a window of ``input2_l[t]`` around its coordinates:

    out[e, l, k, m, n, i, j] = scale * sum over a, b in {0, 1} of  wy(a) wx(b) D(y0 + a + dy(m), x0 + b + dx(n))
    D(y', x') = sum over c of input1[s, c, i, j] * input2_l[t, c, y', x'],   0 outside input2_l
    X = coords[e, k, 0, i, j] * px_l,   x0 = floor(X),   wx(1) = X - x0,   wx(0) = 1 - wx(1),   px_l = level_step ** -l
    dx(n) = dilation_patch (n - (PW - 1) // 2);   y likewise;   s = index1[e],   t = index2[e]

X, Y and the weights are rounded to the dtype of the sums after each operation: ``px_l`` is rounded, then the product, and x0 and
the weights are those of the rounded product. A kernel must not fuse that product with the subtraction that follows.

The window is separable: an `Axis` has the geometry along one axis. Nothing here knows arrays, devices or variants. Sizes are
computed by + - * // only, so that torch's symbolic sizes can be used.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from operator import mul
from typing import Any

from .._arguments import Pair, Shape, finite_number, pair, shown
from .._dispatch import Input
from .._sharing import CachedProperty

ORDERS = DY_FIRST, DX_FIRST = ("dy", "dx")  # the patch axis that comes first
Needs = tuple[bool, bool, bool]  # gradients of input1, input2 and coords
DEFAULT_NEEDS: Needs = (True, True, False)
LARGEST_REACH = 2**31  # pixels; sums of a position and a displacement then fit into 64 bits with room to spare


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the operator that is an int or a pair of ints: its name, its default and its smallest legal value."""

    name: str
    default: int
    minimum: int


# Every signature, schema and module takes these, in this order.
PARAMETERS = (
    Parameter("patch_size", 9, 1),
    Parameter("dilation_patch", 1, 1),
    Parameter("level_step", 2, 1),
)


@dataclass(frozen=True, slots=True)
class Parameters:
    """The operator's parameters, pairs as ``(vertical, horizontal)`` plain integers; make them with `parameters`."""

    patch_size: Pair = (9, 9)
    dilation_patch: Pair = (1, 1)
    level_step: Pair = (2, 2)
    order: str = DY_FIRST
    scale: float = 1.0


def parameters(
    patch_size: Any = 9, *, dilation_patch: Any = 1, level_step: Any = 2, order: Any = DY_FIRST, scale: Any = 1.0
) -> Parameters:
    """Check and normalise the operator's parameters.

    Raises
    ------
    TypeError
        A parameter is not an int or a pair of ints (floats and bools are not ints), or ``scale`` is not a real number.
    ValueError
        A parameter is below its smallest legal value, a tuple is not a pair, the patch reaches too far, ``order`` is neither "dy"
        nor "dx", or ``scale`` is not finite.
    """
    given = zip(PARAMETERS, (patch_size, dilation_patch, level_step), strict=True)
    pairs = {parameter.name: pair(parameter.name, value, parameter.minimum) for parameter, value in given}
    if not isinstance(order, str) or order not in ORDERS:
        raise ValueError(f"order must be 'dy' or 'dx', the patch axis that comes first, got order={shown(order)}")
    for reach in map(mul, pairs["patch_size"], pairs["dilation_patch"]):
        if reach > LARGEST_REACH:
            got = f"patch_size={pairs['patch_size']}, dilation_patch={pairs['dilation_patch']}"
            raise ValueError(f"patch_size times dilation_patch must be at most {LARGEST_REACH}, got {got}")
    return Parameters(**pairs, order=order, scale=finite_number("scale", scale))


@dataclass(frozen=True, slots=True)
class Axis:
    """The geometry of a window along one axis: the positions that it reads, relative to the pixel that the coordinate is in.

    The *taps* are the distinct positions. Displacement ``n`` blends ``corners`` of them: the pixel at the displacement and the
    next one, or only the first where queries have no coordinate along this axis, which is then the query's own row.
    """

    patch: int
    step: int  # dilation_patch
    corners: int

    @property
    def radius(self) -> int:
        """The number of displacements before the centre: an even patch has one more after the centre than before it."""
        return (self.patch - 1) // 2

    @property
    def first(self) -> int:
        """The displacement of patch index 0, in pixels, which is also the offset of the first tap."""
        return -self.step * self.radius

    @property
    def pitch(self) -> int:
        """The number of taps from a displacement to the next one: they share a tap where displacements are a pixel apart."""
        return 1 if self.step == 1 else self.corners

    @property
    def taps(self) -> int:
        """The number of taps."""
        return self.pitch * (self.patch - 1) + self.corners

    @property
    def taps_are_neighbours(self) -> bool:
        """True if the taps are successive positions."""
        return self.last - self.first == self.taps - 1

    @property
    def last(self) -> int:
        """The offset of the last tap, in pixels."""
        return self.first + self.step * (self.patch - 1) + self.corners - 1

    def offset(self, tap: int) -> int:
        """Return the offset of a tap, in pixels."""
        n = min(tap // self.pitch, self.patch - 1)
        return self.first + self.step * n + tap - self.pitch * n

    def corner(self, number: int) -> slice:
        """Return the taps of the first (0) or the second (1) corner of every displacement."""
        return slice(number, number + self.pitch * (self.patch - 1) + 1, self.pitch)


@dataclass(frozen=True, slots=True)
class Operands:
    """The shapes and dtypes that a problem is made of, as they were passed.

    ``pyramid`` is True if input2 is a sequence of maps. ``index1`` and ``index2`` are the shape and the dtype of an array of
    indices, None where it was not passed.
    """

    input1: Shape
    input2: tuple[Shape, ...]
    pyramid: bool
    coords: Shape
    coords_dtype: str
    index1: tuple[Shape, str] | None = None
    index2: tuple[Shape, str] | None = None


@dataclass(frozen=True)
class Problem:
    """The parameters and the sizes: everything that a plan needs except the features' dtype and the memory of the arrays."""

    parameters: Parameters
    operands: Operands

    def __hash__(self) -> int:
        return self._hash

    @CachedProperty
    def _hash(self) -> int:
        """Computed once: caches hash problems at every call, and levels of tuples take microseconds."""
        return hash((self.parameters, self.operands))

    # Sizes.

    @property
    def batch1(self) -> int:
        """The batch size N1 of input1."""
        return self.operands.input1[0]

    @property
    def batch2(self) -> int:
        """The batch size N2 of input2."""
        return self.operands.input2[0][0]

    @property
    def channels(self) -> int:
        """The number of channels C."""
        return self.operands.input1[1]

    @property
    def size1(self) -> Pair:
        """The height and the width (H, W) of input1."""
        return self.operands.input1[2], self.operands.input1[3]

    @CachedProperty
    def sizes2(self) -> tuple[Pair, ...]:
        """The height and the width of each level of input2."""
        return tuple((shape[2], shape[3]) for shape in self.operands.input2)

    @property
    def levels(self) -> int:
        """The number of levels L."""
        return len(self.operands.input2)

    @property
    def entries(self) -> int:
        """The number of entries E: pairs of an image of input1 and one of input2."""
        return self.operands.coords[0]

    @property
    def has_lookups_axis(self) -> bool:
        """True if coords have the axis K."""
        return len(self.operands.coords) == 5

    @property
    def lookups(self) -> int:
        """The number K of lookups of each pixel of an entry."""
        return self.operands.coords[1] if self.has_lookups_axis else 1

    @property
    def has_rows(self) -> bool:
        """True if coords have the channel y; otherwise every query looks into its own row."""
        return self.operands.coords[-3] == 2

    @CachedProperty
    def vertical(self) -> Axis:
        """The geometry of the window along y."""
        return Axis(self.parameters.patch_size[0], self.parameters.dilation_patch[0], 2 if self.has_rows else 1)

    @CachedProperty
    def horizontal(self) -> Axis:
        """The geometry of the window along x."""
        return Axis(self.parameters.patch_size[1], self.parameters.dilation_patch[1], 2)

    @CachedProperty
    def level_scales(self) -> tuple[tuple[float, float], ...]:
        """The factors ``(py_l, px_l)`` of the coordinates at each level."""
        return tuple(level_scale(self.parameters.level_step, level) for level in range(self.levels))

    @property
    def queries(self) -> int:
        """The number of queries E K H W; each has a window at every level."""
        return self.entries * self.lookups * self.size1[0] * self.size1[1]

    # Shapes and names.

    @CachedProperty
    def out_shape(self) -> Shape:
        """The shape ``(E, [L], [K], PH, PW, H, W)`` of the output, with ``PW, PH`` for the order "dx"."""
        levels = (self.levels,) if self.operands.pyramid else ()
        lookups = (self.lookups,) if self.has_lookups_axis else ()
        patch = self.parameters.patch_size if self.parameters.order == DY_FIRST else self.parameters.patch_size[::-1]
        return (self.entries, *levels, *lookups, *patch, *self.size1)

    @property
    def full_coords_shape(self) -> Shape:
        """The shape of the coordinates with the axis K, whether or not the caller sees it."""
        return (self.entries, self.lookups, *self.operands.coords[-3:])

    @CachedProperty
    def level_names(self) -> tuple[str, ...]:
        """The name of each level of input2 among the arrays of a plan."""
        return tuple(f"input2[{level}]" for level in range(self.levels)) if self.operands.pyramid else ("input2",)

    @CachedProperty
    def gradient2_names(self) -> tuple[str, ...]:
        """The name of the gradient of each level among the arrays of a plan."""
        return tuple(name.replace("input2", "gradient2") for name in self.level_names)

    @CachedProperty
    def inputs(self) -> tuple[Input, ...]:
        """The inputs: input1, the levels of input2, coords, and the indices that were passed."""
        given = self.operands
        levels = zip(self.level_names, given.input2, self.gradient2_names, strict=True)
        indices = {"index1": given.index1, "index2": given.index2}
        return (
            Input("input1", given.input1, "gradient1"),
            *(Input(*level) for level in levels),
            Input("coords", given.coords, "gradient_coords", given.coords_dtype),
            *(Input(name, index[0], None, index[1]) for name, index in indices.items() if index is not None),
        )

    def needs_of_inputs(self, needs: Needs) -> tuple[bool, ...]:
        """Return whether the gradient of each input is needed, from that for input1, input2 (every level) and coords."""
        return (needs[0], *(needs[1],) * self.levels, needs[2])

    # Work.

    @property
    def key(self) -> str:
        """The sizes and parameters that take time: not the scale."""
        given, p = self.operands, self.parameters
        indices = " and ".join(index[1] if index else "none" for index in (given.index1, given.index2))
        words = [f"input1={given.input1} input2={given.input2} coords={given.coords} of {given.coords_dtype}"]
        words.append(f"patch={p.patch_size} dilation={p.dilation_patch} level_step={p.level_step} order={p.order}")
        return ", ".join([*words, f"indices={indices}"])

    @property
    def outputs(self) -> int:
        """The number of output elements."""
        return prod(self.out_shape)

    @property
    def dots(self) -> int:
        """The number of dot products over the channels: one for each tap of each window, inside the maps or not."""
        return self.queries * self.levels * self.vertical.taps * self.horizontal.taps

    @property
    def flops(self) -> int:
        """The operations of the definition: two for each channel of each dot, and two for each corner of each output."""
        return 2 * self.channels * self.dots + 2 * self.vertical.corners * self.horizontal.corners * self.outputs

    def input_bytes(self, itemsize: int, coords_itemsize: int) -> tuple[int, int, int]:
        """Return the bytes of input1, of all levels of input2, and of coords."""
        given = self.operands
        return itemsize * prod(given.input1), itemsize * sum(map(prod, given.input2)), coords_itemsize * prod(given.coords)


def level_scale(level_step: Pair, level: int) -> tuple[float, float]:
    """Return the factors ``(py_l, px_l)`` of the coordinates at a level."""
    vertical, horizontal = level_step
    return float(vertical) ** -level, float(horizontal) ** -level


def problem(params: Parameters, operands: Operands) -> Problem:
    """Return the problem of checked parameters and the shapes of the arrays.

    Raises
    ------
    ValueError
        An array has another number of dimensions, the shapes do not fit each other, a map has no pixels, or there is no level.
    """
    if not operands.input2:
        raise ValueError("input2 must have at least one level, got an empty sequence")
    joined = Problem(params, operands)
    _check_maps(joined)
    _check_coords(operands)
    for name, index, batch in (("index1", operands.index1, joined.batch1), ("index2", operands.index2, joined.batch2)):
        check_index(name, None if index is None else index[0], batch, operands.coords)
    return joined


def _check_maps(problem: Problem) -> None:
    shapes = dict(zip(("input1", *problem.level_names), (problem.operands.input1, *problem.operands.input2), strict=True))
    for name, shape in shapes.items():
        if len(shape) != 4:
            raise ValueError(f"{name} must have 4 dimensions (N, C, H, W), got {name}.shape={tuple(shape)}")
        if shape[2] < 1 or shape[3] < 1:
            raise ValueError(f"{name} must have a height and a width of at least 1, got {name}.shape={tuple(shape)}")
    first_name, first = problem.level_names[0], problem.operands.input2[0]
    for name, shape in list(shapes.items())[1:]:
        if shape[0] != first[0]:
            got = f"got {first_name}.shape={tuple(first)}, {name}.shape={tuple(shape)}"
            raise ValueError(f"the levels of input2 must have the same batch size, {got}")
        if shape[1] != problem.channels:
            got = f"got input1.shape={tuple(shapes['input1'])}, {name}.shape={tuple(shape)}"
            raise ValueError(f"input1 and {name} must have the same channels, {got}")


def _check_coords(operands: Operands) -> None:
    shape, got = operands.coords, f"got coords.shape={tuple(operands.coords)}"
    if len(shape) not in (4, 5):
        raise ValueError(f"coords must have 4 dimensions (E, 2, H, W) or 5 dimensions (E, K, 2, H, W), {got}")
    if shape[-3] not in (1, 2):
        raise ValueError(f"coords must have 2 channels (x, y) or 1 channel (x) before the height and the width, {got}")
    if shape[-2] != operands.input1[2] or shape[-1] != operands.input1[3]:
        raise ValueError(f"coords must have the height and the width of input1, {got}, input1.shape={tuple(operands.input1)}")


def check_index(name: str, index: Shape | None, batch: int, coords: Shape) -> None:
    """Check the shape of an array of indices, or that none is needed, for maps of a batch size and coords of a shape."""
    entries = coords[0]
    if index is not None:
        if tuple(index) != (entries,):
            got = f"got {name}.shape={tuple(index)}"
            raise ValueError(f"{name} must have the shape ({entries},) of the entries of coords, {got}")
    elif entries != batch:
        got = f"got coords.shape={tuple(coords)} and a batch size of {batch}"
        raise ValueError(f"coords must have the batch size of input{name[-1]} unless {name} is passed, {got}")
