"""The geometry of the operator: its parameters and sizes, checked once and normalised to plain integers.

The operator is separable over the vertical and the horizontal axis, so an `Axis` has the geometry of one axis and a `Problem` has
two of them. Nothing here knows arrays, devices or variants. Sizes are computed by + - * // only, so that torch's symbolic sizes
can be used.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .._arguments import LARGEST, Pair, Shape, at_least, finite_number, pair, shown
from .._dispatch import Input
from .._sharing import CachedProperty


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the operator that is an int or a pair of ints: its name, its default and its smallest legal value.

    A default of None means that the parameter may be left out, a minimum of None that every integer is legal, or every one but 0.
    """

    name: str
    default: int | None
    minimum: int | None
    zero: bool = True


# Every signature, schema and module takes these, in this order.
PARAMETERS = (
    Parameter("kernel_size", 1, 1),
    Parameter("patch_size", 1, 1),
    Parameter("stride", 1, 1),
    Parameter("padding", 0, None),
    Parameter("dilation", 1, 1),
    Parameter("dilation_patch", 1, None, zero=False),
    Parameter("patch_offset", None, None),
)


@dataclass(frozen=True, slots=True)
class Parameters:
    """The operator's parameters as ``(vertical, horizontal)`` pairs of plain integers; make them with `parameters`.

    ``patch_offset`` stays None when it was not passed: ``input2`` may have a size of its own only if it is passed.
    """

    kernel_size: Pair = (1, 1)
    patch_size: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    dilation_patch: Pair = (1, 1)
    patch_offset: Pair | None = None
    groups: int = 1
    scale: float = 1.0


def parameters(
    kernel_size: Any = 1,
    patch_size: Any = 1,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    dilation_patch: Any = 1,
    *,
    patch_offset: Any = None,
    groups: Any = 1,
    scale: Any = 1.0,
) -> Parameters:
    """Check and normalise the operator's parameters.

    Raises
    ------
    TypeError
        A parameter is not an int or a pair of ints (floats and bools are not ints), ``groups`` is not an int, or ``scale`` is not
        a real number.
    ValueError
        A parameter is below its smallest legal value, ``dilation_patch`` is 0, a tuple is not a pair, or ``scale`` is not finite.
    """
    given = kernel_size, patch_size, stride, padding, dilation, dilation_patch, patch_offset
    pairs: dict[str, Any] = {
        parameter.name: None if value is None and parameter.default is None else _checked_pair(parameter, value)
        for parameter, value in zip(PARAMETERS, given, strict=True)
    }
    return Parameters(**pairs, groups=at_least(1, "groups", groups), scale=finite_number("scale", scale))


def _checked_pair(parameter: Parameter, value: Any) -> Pair:
    checked = pair(parameter.name, value, parameter.minimum)
    if not parameter.zero and 0 in checked:
        raise ValueError(f"{parameter.name} must not be 0, got {parameter.name}={shown(value)}")
    return checked


@dataclass(frozen=True, slots=True)
class Axis:
    """The geometry of one axis: which position of input1 is multiplied with which position of input2.

    Output ``i``, tap ``u`` reads input1 at ``y = i stride - padding + u dilation``, and at displacement ``m`` input2 at
    ``y + offset + dilation_patch (m - radius)``.
    """

    kernel: int
    patch: int
    stride: int
    padding: int
    dilation: int
    step: int  # dilation_patch
    offset: int  # patch_offset
    size1: int
    size2: int

    @property
    def out(self) -> int:
        """The number of output positions; below 1 there is no output."""
        return (self.size1 + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    @property
    def radius(self) -> int:
        """The number of displacements before the centre: an even patch has one more after the centre than before it."""
        return (self.patch - 1) // 2

    @property
    def first_displacement(self) -> int:
        """The displacement of patch index 0, in pixels."""
        return self.offset - self.step * self.radius

    @property
    def displacements(self) -> range:
        """The displacement of every patch index, in pixels."""
        first = self.first_displacement
        return range(first, first + self.step * self.patch, self.step)

    @property
    def fits_64_bits(self) -> bool:
        """True if every position and displacement fits into 64 bits, and so do sums of a few of them."""
        reach = abs(self.padding) + self.stride * (self.out + 1) + self.dilation * self.kernel
        return reach + abs(self.offset) + abs(self.step) * self.patch + self.size1 + self.size2 <= 2**62

    def part(self, begin: int, end: int) -> AxisPart:
        """Return the part that computes outputs ``[begin, end)`` from the positions that they read: the halo of a chunk.

        Positions outside the images stay outside those of the part. Its padding is the same at both ends, so that it may have
        more outputs than were asked for.
        """
        first, last = (
            begin * self.stride - self.padding,
            (end - 1) * self.stride - self.padding + self.dilation * (self.kernel - 1),
        )
        displacements = self.displacements[0], self.displacements[-1]
        pixels1 = _inside(first, last + 1, self.size1)
        pixels2 = _inside(first + min(displacements), last + max(displacements) + 1, self.size2)
        before, after = pixels1[0] - first, last + 1 - pixels1[1]
        skipped = max(-((before - after) // self.stride), 0)
        return AxisPart(pixels1, pixels2, before + skipped * self.stride, self.offset + pixels1[0] - pixels2[0], skipped)

    def taps_inside(self) -> tuple[int, int]:
        """Return the number of pairs (displacement, tap) that have an output with both positions inside, and of such outputs.

        An output counts once for each of its pairs.
        """
        first_tap = -self.padding
        taps = range(first_tap, first_tap + self.kernel * self.dilation, self.dilation)
        loop_over_taps = self.kernel <= self.patch
        outer, inner = (taps, self.displacements) if loop_over_taps else (self.displacements, taps)
        # NumPy takes whole numbers beyond 64 bits as objects: slow, but exact.
        small = max(abs(edge) for each in (taps, self.displacements) for edge in (each[0], each[-1])) < 2**60
        dtype = np.dtype(np.int64 if small else object)
        values = np.array(inner, dtype)
        pairs = outputs = 0
        for value in outer:
            single = np.array([value], dtype)  # an array: NumPy makes numbers of objects without an axis
            tap, displacement = (single, values) if loop_over_taps else (values, single)
            low = np.maximum(-displacement, 0)
            high = np.minimum(self.size2 - displacement, self.size1)
            begin = np.clip(-((tap - low) // self.stride), 0, self.out)
            counts = np.maximum(np.clip(-((tap - high) // self.stride), 0, self.out) - begin, 0)
            pairs, outputs = pairs + int(np.count_nonzero(counts)), outputs + int(counts.sum())
        return pairs, outputs


class AxisPart(NamedTuple):
    """A part of an axis that computes some outputs from parts of both images.

    Attributes
    ----------
    pixels1, pixels2
        The positions ``[begin, end)`` of each image that the part has.
    padding, offset
        The part's ``padding`` and ``patch_offset``; its other parameters are those of the whole.
    skipped
        The number of outputs that the part has before the first one asked for.
    """

    pixels1: Pair
    pixels2: Pair
    padding: int
    offset: int
    skipped: int


def _inside(begin: int, end: int, size: int) -> Pair:
    """Return the positions of ``[begin, end)`` inside an image of this size, or the one nearest to them where none is."""
    first = min(max(begin, 0), size - 1)
    return first, max(min(end, size), first + 1)


def _with_useful_stride(axis: Axis) -> Axis:
    """Return the axis with its stride limited to the extent of the positions: plans sort work by residues of the stride."""
    positions = axis.size1 + 2 * axis.padding - axis.dilation * (axis.kernel - 1)
    # Where sizes are symbols nothing is computed, and a comparison would tie the graph to it.
    return replace(axis, stride=positions) if type(positions) is int and 0 < positions < axis.stride else axis


def search_range(patch_size: Pair, dilation_patch: Pair, patch_offset: Pair | None) -> tuple[range, range]:
    """Return the displacements along y and along x, in pixels, of checked parameters.

    Raises
    ------
    ValueError
        A displacement does not fit into 64 bits.
    """
    pairs = zip(patch_size, dilation_patch, patch_offset or (0, 0), strict=True)
    vertical, horizontal = (
        Axis(kernel=1, patch=n, stride=1, padding=0, dilation=1, step=step, offset=offset, size1=1, size2=1).displacements
        for n, step, offset in pairs
    )
    ends = [end for tried in (vertical, horizontal) for end in (tried.start, tried.stop)]
    if max(ends) > LARGEST or min(ends) < -LARGEST:
        raise ValueError(
            f"displacements must fit into 64 bits, got dilation_patch={dilation_patch!r}, patch_offset={patch_offset!r}"
        )
    return vertical, horizontal


def lattice_inside(first: int, stride: int, count: int, low: int, high: int) -> Pair:
    """Return the indices ``[begin, end)`` of the positions ``first + stride i``, ``i < count``, that are in ``[low, high)``."""
    begin = min(max(-((first - low) // stride), 0), count)
    end = min(max(-((first - high) // stride), begin), count)
    return begin, end


@dataclass(frozen=True)
class Problem:
    """The parameters and the sizes: everything that a plan needs except the dtypes and the memory of the arrays."""

    parameters: Parameters
    batch: int
    channels: int
    size1: Pair
    size2: Pair

    def __hash__(self) -> int:
        return self._hash

    @CachedProperty
    def _hash(self) -> int:
        """Computed once: caches hash problems at every call, and four levels of tuples take microseconds."""
        return hash((self.parameters, self.batch, self.channels, self.size1, self.size2))

    @property
    def fits_64_bits(self) -> bool:
        """True if both axes fit into 64 bits."""
        return self.vertical.fits_64_bits and self.horizontal.fits_64_bits

    @CachedProperty
    def vertical(self) -> Axis:
        """The geometry along y."""
        return self._axis(0)

    @CachedProperty
    def horizontal(self) -> Axis:
        """The geometry along x."""
        return self._axis(1)

    def _axis(self, axis: int) -> Axis:
        p = self.parameters
        offset = (0, 0) if p.patch_offset is None else p.patch_offset
        geometry = Axis(
            kernel=p.kernel_size[axis],
            patch=p.patch_size[axis],
            stride=p.stride[axis],
            padding=p.padding[axis],
            dilation=p.dilation[axis],
            step=p.dilation_patch[axis],
            offset=offset[axis],
            size1=self.size1[axis],
            size2=self.size2[axis],
        )
        return _with_useful_stride(geometry)

    @CachedProperty
    def transposed(self) -> Problem:
        """The same problem with height and width exchanged."""
        p = self.parameters
        pairs = {parameter.name: value[::-1] for parameter in PARAMETERS if (value := getattr(p, parameter.name)) is not None}
        return Problem(replace(p, **pairs), self.batch, self.channels, self.size1[::-1], self.size2[::-1])

    @property
    def shape1(self) -> Shape:
        """The shape ``(B, C, H, W)`` of input1."""
        return (self.batch, self.channels, *self.size1)

    @property
    def shape2(self) -> Shape:
        """The shape ``(B, C, H2, W2)`` of input2."""
        return (self.batch, self.channels, *self.size2)

    @CachedProperty
    def out_shape(self) -> Shape:
        """The shape ``(B, PH, PW, oH, oW)`` of the output; with several groups ``(B, G, PH, PW, oH, oW)``."""
        vertical, horizontal, groups = self.vertical, self.horizontal, self.parameters.groups
        axes = (vertical.patch, horizontal.patch, vertical.out, horizontal.out)
        return (self.batch, *axes) if groups == 1 else (self.batch, groups, *axes)

    @property
    def descends(self) -> tuple[bool, bool]:
        """True for each axis whose displacements descend."""
        vertical, horizontal = self.parameters.dilation_patch
        return vertical < 0, horizontal < 0

    def without_groups(self, batch: int) -> Problem:
        """Return the problem of so many samples, each a group of channels of one sample, whose displacements ascend.

        Displacements that descend are those of an ascending patch in reverse; an even patch has one more after its centre.
        """
        p = self.parameters
        steps = p.dilation_patch[0], p.dilation_patch[1]
        offsets = (0, 0) if p.patch_offset is None else p.patch_offset
        shifted = tuple(
            offset + step if step < 0 and patch % 2 == 0 else offset
            for offset, step, patch in zip(offsets, steps, p.patch_size, strict=True)
        )
        ascending = replace(p, groups=1, dilation_patch=(abs(steps[0]), abs(steps[1])), patch_offset=(shifted[0], shifted[1]))
        if p.patch_offset is None and shifted == (0, 0):
            ascending = replace(ascending, patch_offset=None)
        return Problem(ascending, batch, self.channels // p.groups, self.size1, self.size2)

    @property
    def inputs(self) -> tuple[Input, Input]:
        """The feature maps and the names of their gradients."""
        return Input("input1", self.shape1, "gradient1"), Input("input2", self.shape2, "gradient2")

    @property
    def key(self) -> str:
        """The sizes and parameters that take time: not the scale, nor whether a patch_offset of 0 was passed."""
        axes = zip("yx", (self.vertical, self.horizontal), strict=True)
        words = (f"{name}: " + " ".join(f"{key}={value}" for key, value in asdict(axis).items()) for name, axis in axes)
        groups = f" groups={self.parameters.groups}" if self.parameters.groups > 1 else ""
        return ", ".join([f"batch={self.batch} channels={self.channels}{groups}", *words])

    @property
    def outputs(self) -> int:
        """The number of output elements."""
        return prod(self.out_shape)

    @property
    def windowed(self) -> bool:
        """True if a window has more than one pixel."""
        return self.parameters.kernel_size != (1, 1)

    @property
    def flops(self) -> int:
        """The operations of the definition: two for each channel and tap of each output, inside the images or not."""
        kernel_h, kernel_w = self.parameters.kernel_size
        return 2 * (self.channels // self.parameters.groups) * kernel_h * kernel_w * self.outputs

    def flops_inside(self) -> int:
        """Return the operations of taps that are inside both images."""
        return 2 * self.batch * self.channels * self.vertical.taps_inside()[1] * self.horizontal.taps_inside()[1]

    def bytes(self, itemsize: int, out_itemsize: int) -> int:
        """Return the least bytes to move: each input is read once, and the output written once."""
        return sum(self.image_bytes(itemsize)) + self.outputs * out_itemsize

    def image_bytes(self, itemsize: int) -> tuple[int, int]:
        """Return the bytes of each input."""
        (height, width), (height2, width2) = self.size1, self.size2
        images = self.batch * self.channels * itemsize
        return images * height * width, images * height2 * width2

    def workspace(self, itemsize: int) -> int:
        """Return the bytes of the whole volume of one-pixel windows that a box filter would sum; 0 for a one-pixel window."""
        if self.parameters.kernel_size == (1, 1):
            return 0
        area = 1
        for axis in (self.vertical, self.horizontal):
            area = area * ((axis.out - 1) * axis.stride + axis.dilation * (axis.kernel - 1) + 1)
        return self.batch * self.parameters.groups * self.vertical.patch * self.horizontal.patch * area * itemsize


def problem(params: Parameters, shape1: Shape, shape2: Shape) -> Problem:
    """Return the problem of checked parameters and the shapes of the inputs.

    Raises
    ------
    ValueError
        An input is not 4-D, the shapes do not fit each other, an image has no pixels, or the output would be empty.
    """
    for name, shape in (("input1", shape1), ("input2", shape2)):
        if len(shape) != 4:
            raise ValueError(f"{name} must have 4 dimensions (B, C, H, W), got {name}.shape={tuple(shape)}")
        if shape[2] < 1 or shape[3] < 1:
            raise ValueError(f"{name} must have a height and a width of at least 1, got {name}.shape={tuple(shape)}")
    got = f"got input1.shape={tuple(shape1)}, input2.shape={tuple(shape2)}"
    if shape1[0] != shape2[0] or shape1[1] != shape2[1]:
        raise ValueError(f"input1 and input2 must have the same batch size and channels, {got}")
    if params.patch_offset is None and (shape1[2] != shape2[2] or shape1[3] != shape2[3]):
        raise ValueError(f"input1 and input2 must have the same shape unless patch_offset is passed, {got}")
    if params.groups > 1 and shape1[1] % params.groups:
        raise ValueError(f"groups must divide the number of channels, got groups={params.groups}, input1.shape={tuple(shape1)}")
    joined = Problem(params, shape1[0], shape1[1], (shape1[2], shape1[3]), (shape2[2], shape2[3]))
    for name, axis in (("height", joined.vertical), ("width", joined.horizontal)):
        if axis.out < 1:
            raise ValueError(
                f"the output would have {name} {axis.out}: a window of kernel_size={params.kernel_size} with "
                f"dilation={params.dilation} does not fit into input1.shape={tuple(shape1)} with padding={params.padding}"
            )
    return joined
