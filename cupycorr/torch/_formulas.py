"""The operators as a few steps on whole tensors, for programs in which no operator of cupycorr may remain.

Every formula is written once, for two kinds of tensors: those of torch, whose steps torch records as ATen operators
(`_decompositions`), and those of `_onnx_tensors`, whose steps are recorded as ONNX nodes. Both have the methods that are used
here, with the names and the meaning that torch gives them. `Functions` are the steps that are no methods. Sizes may be symbols,
and are computed by + - * // only.

The fixed grid is computed by matrix products of blocks. Along an axis, T outputs that are L apart read T pixels of input1, and at
all P displacements no more than K = S (T - 1) + P pixels of input2:

.. code-block:: text

    L = e / gcd(s, e),   S = s / gcd(s, e)   for the stride s and the absolute value e of dilation_patch
    pixel of input2 that output t reads at displacement m = first + e (S t + m)

So the products of all T x T pixels with all K x K pixels contain all scores of a block, and one gather takes them out. The number
of steps does not depend on P. Windows are summed by halves, so that their steps grow with the logarithm of their size.

A lookup gathers one row of all windows at a time, so that it needs the memory of one row of pixels.

A position outside an image is read as another pixel, and what it contributes is replaced by 0. So it contributes 0 even where a
pixel is infinite or NaN, as everywhere in cupycorr.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd
from typing import Any, Protocol

import numpy as np
import torch

from .._correlation.problem import Axis
from .._lookup.problem import DY_FIRST, level_scale
from .._lookup.problem import Axis as WindowAxis
from .._matching.by_slices import NEIGHBOURS
from .._matching.problem import check_outside
from .._matching.reductions import NONE, sharpness
from . import _correlation, _lookup, _matching, _tensors, _volume_lookup

# A tensor of torch or of `_onnx_tensors`, and a size, which may be a symbol.
Tensor = Any
Size = Any

LARGEST_BLOCK = 8  # outputs along an axis: larger blocks read fewer pixels twice, and compute more products that no one needs
FAR = 2.0**23  # a coordinate beyond it is outside every image; whole numbers up to it are exact in float32


class Functions(Protocol):
    """The steps that are no methods of tensors."""

    def numbers(self, count: Size, first: int = 0, step: int = 1) -> Tensor:
        """Return so many whole numbers, in int64."""

    def constant(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        """Return a vector of numbers."""

    def vector(self, sizes: Sequence[Size]) -> Tensor:
        """Return a vector of sizes, in int64."""

    def cat(self, tensors: Sequence[Tensor], axis: int) -> Tensor:
        """Return tensors joined along an axis."""

    def split(self, x: Tensor, axis: int, count: int) -> Sequence[Tensor]:
        """Return the elements of an axis, of which there are so many, each as a tensor in which the axis has one element."""

    def taken(self, x: Tensor, axis: int, index: Tensor) -> Tensor:
        """Return the elements at indices of an axis; the axes of the indices take its place."""

    def part(self, x: Tensor, axis: int, start: int, stop: Size, step: int = 1) -> Tensor:
        """Return the elements of a tensor with these indices along an axis."""

    def padded(self, x: Tensor, axis: int, count: int) -> Tensor:
        """Return a tensor with so many zeros before and after it along an axis."""


# The fixed grid -----------------------------------------------------------------------------------------------------------------


def spatial_correlation_sample(functions: Functions, input1: Tensor, input2: Tensor, *given: Any) -> Tensor:
    """Return what ``torch.ops.cupycorr.spatial_correlation_sample`` returns."""
    arguments = _correlation.Arguments(*given)
    volume = _volume(functions, input1, input2, arguments)
    return volume.to(arguments.dtype or input1.dtype)


def _volume(functions: Functions, input1: Tensor, input2: Tensor, arguments: _correlation.Arguments) -> Tensor:
    """Return the correlation in the accumulator, (B, [G], PH, PW, oH, oW)."""
    axes = _axes(arguments, input1.shape, input2.shape)
    # Windows are sums of scores of one pixel at all positions of input1.
    dense = axes if arguments.kernel_size == (1, 1) else tuple(map(_one_pixel, axes))
    scores = _Blocks(functions, dense).scores(input1, input2, arguments.groups)
    inside = _crossed(*(_inside(functions, axis) for axis in dense))
    found = _scaled(scores.where(inside, 0.0), arguments.scale)
    if dense is not axes:
        for place, axis in zip((3, 4), axes, strict=True):
            found = _window_sums(functions, found, place + (arguments.groups > 1), axis)
    return found


def _axes(arguments: Any, shape1: Sequence[Size], shape2: Sequence[Size]) -> tuple[Axis, Axis]:
    offset = arguments.patch_offset or (0, 0)
    pairs = *arguments[:6], offset, shape1[2:], shape2[2:]
    vertical, horizontal = (Axis(*numbers) for numbers in zip(*pairs, strict=True))
    return vertical, horizontal


def _one_pixel(axis: Axis) -> Axis:
    """Return the axis for windows of one pixel at every position of input1."""
    return Axis(1, axis.patch, 1, 0, 1, axis.step, axis.offset, axis.size1, axis.size2)


def _scaled(x: Tensor, scale: Any) -> Tensor:
    return x if type(scale) is float and scale == 1.0 else x * scale


def _crossed(rows: Tensor, columns: Tensor) -> Tensor:
    """Return what holds for the row and the column of a displacement and of a position, (PH, PW, oH, oW), from (P, out) each."""
    return rows.unsqueeze(1).unsqueeze(3) & columns.unsqueeze(0).unsqueeze(2)


def _summed(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the sums of what the row and the column of a displacement and of a position add, as `_crossed`."""
    return rows.unsqueeze(1).unsqueeze(3) + columns.unsqueeze(0).unsqueeze(2)


def _inside(functions: Functions, axis: Axis) -> Tensor:
    """Return for windows of one pixel whether the positions in both images are inside them, (P, out)."""
    position = functions.numbers(axis.out) * axis.stride - axis.padding
    other = _displaced(functions, axis, position)
    return ((position >= 0) & (position < axis.size1)).unsqueeze(0) & (other >= 0) & (other < axis.size2)


def _displaced(functions: Functions, axis: Axis, position: Tensor) -> Tensor:
    """Return positions at all displacements, (P, out)."""
    tried = axis.displacements
    return functions.numbers(axis.patch, tried.start, tried.step).unsqueeze(1) + position.unsqueeze(0)


class _AxisBlocks:
    """The blocks of outputs along an axis, which may go beyond the last output.

    Attributes
    ----------
    outputs, apart, step
        The numbers T, L and S of a block.
    taps
        The number K of the pixels of input2 that a block reads.
    count
        The number of blocks: of T L successive outputs, L blocks have T each.
    """

    def __init__(self, axis: Axis) -> None:
        common = gcd(axis.stride, axis.step)
        self.axis, self.apart, self.step = axis, abs(axis.step) // common, axis.stride // common
        self.outputs = min(-(-axis.patch // self.step), LARGEST_BLOCK)
        self.taps = self.step * (self.outputs - 1) + axis.patch
        together = self.outputs * self.apart
        self.count = (axis.out + together - 1) // together * self.apart

    def positions(self, functions: Functions, block: Tensor) -> tuple[Tensor, Tensor]:
        """Return the positions in both images that some blocks read, (blocks, T) and (blocks, K)."""
        axis = self.axis
        before = block // self.apart * (self.apart * (self.outputs - 1)) if self.outputs > 1 else 0
        first = ((block + before) * axis.stride - axis.padding).unsqueeze(1)
        outputs = functions.numbers(self.outputs, 0, axis.stride * self.apart)
        taps = functions.numbers(self.taps, min(axis.displacements[0], axis.displacements[-1]), abs(axis.step))
        one, other = (
            (first + along.unsqueeze(0)).clamp(0, size - 1) for along, size in ((outputs, axis.size1), (taps, axis.size2))
        )
        return one, other

    def products(self, functions: Functions, of_block: Size, of_tap: int, of_output: int) -> Tensor:
        """Return where the products of all displacements and outputs are, (P, out).

        The products of successive blocks, taps and outputs of a block are so far apart.
        """
        axis, together = self.axis, self.outputs * self.apart
        output = functions.numbers(axis.out)
        group = output // together
        rest = output - group * together
        number = rest // self.apart
        block = group * self.apart + (rest - number * self.apart)
        patch = functions.numbers(axis.patch) if axis.step > 0 else functions.numbers(axis.patch, axis.patch - 1, -1)
        place = block * of_block + number * (self.step * of_tap + of_output)
        return (patch * of_tap).unsqueeze(1) + place.unsqueeze(0)


class _Blocks:
    """The scores of windows of one pixel by matrix products of blocks."""

    def __init__(self, functions: Functions, axes: Sequence[Axis]) -> None:
        self.functions, self.axes = functions, [_AxisBlocks(axis) for axis in axes]

    def scores(self, input1: Tensor, input2: Tensor, groups: int) -> Tensor:
        """Return the scores (B, [G], PH, PW, oH, oW) in the accumulator; those of positions outside an image have no meaning."""
        rows, columns = self.axes
        batch, channels = input1.shape[:2]
        # There is a block more than needed: torch makes other programs for tensors with an axis of one element.
        count = rows.count * columns.count + 1
        block = self.functions.numbers(count)
        row = block // columns.count
        down = rows.positions(self.functions, row)
        across = columns.positions(self.functions, block - row * columns.count)
        outputs, taps = rows.outputs * columns.outputs, rows.taps * columns.taps
        first = _pixels(self.functions, input1, down[0], across[0])
        second = _pixels(self.functions, input2, down[1], across[1])
        if groups == 1:
            first = first.reshape((batch, count, outputs, channels)).permute((0, 1, 3, 2))
            second = second.reshape((batch, count, taps, channels))
            products = (second @ first).reshape((batch, count * (taps * outputs)))
        else:
            shape = groups, channels // groups
            first = first.reshape((batch, count, outputs, *shape)).permute((0, 3, 1, 4, 2))
            second = second.reshape((batch, count, taps, *shape)).permute((0, 3, 1, 2, 4))
            products = (second @ first).reshape((batch, groups, count * (taps * outputs)))
        chosen = _summed(
            rows.products(self.functions, columns.count * (taps * outputs), columns.taps * outputs, columns.outputs),
            columns.products(self.functions, taps * outputs, outputs, 1),
        )
        return self.functions.taken(products, 1 if groups == 1 else 2, chosen)


def _pixels(functions: Functions, image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the pixels of an image at the rows and the columns of each block, (B, blocks, rows, columns, C)."""
    batch, channels, height, width = image.shape
    pixels = image.to(_tensors.accumulator(image.dtype)).permute((0, 2, 3, 1)).reshape((batch, height * width, channels))
    return functions.taken(pixels, 1, (rows * width).unsqueeze(2) + columns.unsqueeze(1))


def _window_sums(functions: Functions, scores: Tensor, place: int, axis: Axis) -> Tensor:
    """Return the sums over windows of the scores of one pixel along an axis of a tensor, at every output."""
    size = axis.size1 + 2 * axis.padding
    if axis.padding < 0:
        scores = functions.part(scores, place, -axis.padding, axis.size1 + axis.padding)
    elif axis.padding > 0:
        scores = functions.padded(scores, place, axis.padding)
    taken, length, found = 0, 1, None  # taps that are summed, and taps in each element of `scores`
    while taken < axis.kernel:
        if axis.kernel & length:
            start = taken * axis.dilation
            part = functions.part(scores, place, start, start + (axis.out - 1) * axis.stride + 1, axis.stride)
            found, taken = part if found is None else found + part, taken + length
        if taken < axis.kernel:
            reach = length * axis.dilation
            size = size - reach
            scores = functions.part(scores, place, 0, size) + functions.part(scores, place, reach, size + reach)
            length *= 2
    return found


# Lookups ------------------------------------------------------------------------------------------------------------------------


def correlation_lookup(functions: Functions, input1: Tensor, input2: Sequence[Tensor], coords: Tensor, *given: Any) -> Tensor:
    """Return what ``torch.ops.cupycorr.correlation_lookup`` returns."""
    index1, index2, pyramid, settings = _lookup.Arguments.of(*given)
    accumulator = _tensors.accumulator(input1.dtype)
    several = len(coords.shape) == 5
    entries, channels, height = (coords.shape[place] for place in (0, -3, -2))
    at_levels = []
    for axis, plane in enumerate(_planes(coords if several else coords.unsqueeze(1), channels, accumulator)):
        factors = [level_scale(settings.level_step, number)[1 - axis] for number in range(len(input2))]
        at_levels.append(plane * functions.constant(factors, accumulator).reshape((-1, 1, 1, 1, 1)))
    rows = None if channels == 2 else functions.numbers(height).unsqueeze(1)
    heights, widths = (functions.vector([level.shape[axis] for level in input2]).reshape((-1, 1, 1, 1, 1, 1)) for axis in (2, 3))
    window = _Window(functions, settings, at_levels, rows, (heights, widths))
    pixels = input1.to(accumulator).permute((0, 2, 3, 1))
    pixels = pixels if index1 is None else functions.taken(pixels, 0, index1)
    image = functions.numbers(entries) if index2 is None else index2.to(torch.int64)
    at = (image.reshape((-1, 1, 1, 1, 1)) * heights + window.rows) * widths
    at = at.unsqueeze(-1) + window.columns.unsqueeze(-2)
    dots = [
        _dots(functions, pixels.unsqueeze(1).unsqueeze(-2).unsqueeze(-1), level, of_level, window.vertical.taps)
        for level, of_level in zip(input2, functions.split(at, 0, len(input2)), strict=True)
    ]
    found = _scaled(window.blended(functions.cat(dots, 0)), settings.scale).to(settings.dtype or input1.dtype)
    found = found if several else found.squeeze(2)
    return found if pyramid else found.squeeze(1)


def _dots(functions: Functions, pixels: Tensor, level: Tensor, at: Tensor, taps: int) -> Tensor:
    """Return the dot products of pixels (E, 1, H, W, 1, C, 1) with those of a level.

    ``at`` are the places of pixels (1, E, K, H, W, Ty, Tx) in the level, and the result has its shape.
    """
    batch, channels, height, width = level.shape
    features = level.to(_tensors.accumulator(level.dtype)).permute((0, 2, 3, 1)).reshape((batch * height * width, channels))
    rows = [functions.taken(features, 0, row) @ pixels for row in functions.split(at, 5, taps)]
    return functions.cat(rows, 5).squeeze(-1)


def volume_lookup(functions: Functions, volume: Tensor, coords: Tensor, *given: Any) -> Tensor:
    """Return what ``torch.ops.cupycorr.volume_lookup`` returns."""
    settings = _volume_lookup.Settings(*given)
    accumulator = _tensors.accumulator(volume.dtype)
    entries, channels, height, width = coords.shape
    has_rows = channels == 2
    size = volume.shape[3:] if has_rows else (1, volume.shape[3])
    planes = [plane.unsqueeze(0) for plane in _planes(coords.unsqueeze(1), channels, accumulator)]
    window = _Window(functions, settings, planes, None if has_rows else functions.numbers(1).unsqueeze(1), size)
    taps = window.vertical.taps, window.horizontal.taps
    at = (window.rows * size[1]).unsqueeze(-1) + window.columns.unsqueeze(-2)
    pixels = volume.reshape((entries, height, width, size[0] * size[1]))
    found = pixels.gather(3, at.reshape((entries, height, width, taps[0] * taps[1]))).to(accumulator)
    found = window.blended(found.reshape((1, entries, 1, height, width, *taps)))
    found = _scaled(found, settings.scale).to(settings.dtype or volume.dtype).squeeze(2).squeeze(1)
    return found if has_rows else found.squeeze(1)


def _planes(coords: Tensor, channels: int, accumulator: torch.dtype) -> list[Tensor]:
    """Return x, or x and y, of coordinates (E, K, 2, H, W) in the accumulator."""
    return [coords.select(2, channel).to(accumulator) for channel in range(channels)]


class _Window:
    """The windows around coordinates in the levels of a pyramid.

    Attributes
    ----------
    vertical, horizontal
        The geometry of the windows.
    rows, columns
        The rows (L, E, K, H, W, Ty) and the columns (L, E, K, H, W, Tx) of the taps; those outside are replaced by 0.
    """

    def __init__(
        self, functions: Functions, settings: Any, planes: Sequence[Tensor], rows: Tensor | None, sizes: Sequence[Any]
    ) -> None:
        """Find the taps around coordinates x and y of pixels, (L, E, K, H, W), or around x in given rows.

        ``sizes`` are the height and the width, as sizes or as tensors (L, 1, 1, 1, 1, 1).
        """
        patch, step, self._order = settings.patch_size, settings.dilation_patch, settings.order
        self.functions = functions
        self.vertical = WindowAxis(patch[0], step[0], 2 if rows is None else 1)
        self.horizontal = WindowAxis(patch[1], step[1], 2)
        lows = [plane.floor() for plane in planes]
        self._weights = [plane - low for plane, low in zip(planes, lows, strict=True)]  # NaN where a coordinate is not finite
        whole = [low.where(plane.abs() < FAR, FAR).to(torch.int64) for plane, low in zip(planes, lows, strict=True)]
        if rows is not None:
            whole.append(rows)
        taps = [at.unsqueeze(-1) + self._offsets(axis) for at, axis in zip(whole, (self.horizontal, self.vertical), strict=True)]
        nearest, inside = [], []
        for at, size in zip(taps, sizes[::-1], strict=True):
            inside.append((at >= 0) & (at < size))
            nearest.append(at.where(inside[-1], 0))
        self.columns, self.rows = nearest
        self._inside = inside[1].unsqueeze(-1) & inside[0].unsqueeze(-2)

    def _offsets(self, axis: WindowAxis) -> Tensor:
        """Return the offsets of the taps of an axis."""
        if axis.taps_are_neighbours:
            return self.functions.numbers(axis.taps, axis.first)
        displacements = self.functions.numbers(axis.patch, axis.first, axis.step).unsqueeze(1)
        return (displacements + self.functions.numbers(axis.corners).unsqueeze(0)).reshape((axis.taps,))

    def blended(self, dots: Tensor) -> Tensor:
        """Return the values (E, L, K, PH, PW, H, W) from those at the taps, (L, E, K, H, W, Ty, Tx).

        The patch axes are PW, PH for the order "dx".
        """
        found = dots.where(self._inside, 0.0)
        for place, axis, weight in zip((6, 5), (self.horizontal, self.vertical), self._weights, strict=False):
            wide = weight.unsqueeze(-1).unsqueeze(-1)
            first, second = (self._corner(found, place, axis.corner(number)) for number in (0, 1))
            found = first * (1.0 - wide) + second * wide
        if self.vertical.corners == 1:
            found = self._corner(found, 5, self.vertical.corner(0))
        return found.permute((1, 0, 2, 5, 6, 3, 4) if self._order == DY_FIRST else (1, 0, 2, 6, 5, 3, 4))

    def _corner(self, values: Tensor, place: int, taps: slice) -> Tensor:
        return self.functions.part(values, place, taps.start, taps.stop, taps.step)


# Matching -----------------------------------------------------------------------------------------------------------------------


def correlation_argmax(functions: Functions, input1: Tensor, input2: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return what ``torch.ops.cupycorr.correlation_argmax`` returns."""
    correlation, rest = _matching.split(given, _matching.BestArguments)
    search = _Search(functions, input1, input2, correlation, check_outside(rest.outside))
    score, channel = search.best(rest.top_k)
    around = search.around(channel) if rest.subpixel else score.new_empty((0,))
    return score, channel, around


def correlation_soft_argmax(functions: Functions, input1: Tensor, input2: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return what ``torch.ops.cupycorr.correlation_soft_argmax`` returns."""
    correlation, rest = _matching.split(given, _matching.SoftArguments)
    search = _Search(functions, input1, input2, correlation, check_outside(rest.outside))
    return search.mean(rest.temperature)


class _Search:
    """The scores of all displacements, and what is found among them."""

    def __init__(
        self, functions: Functions, input1: Tensor, input2: Tensor, given: _matching.CorrelationArguments, excluding: bool
    ) -> None:
        self.functions, self.axes = functions, _axes(given, input1.shape, input2.shape)
        self.patch = self.axes[0].patch, self.axes[1].patch
        volume = _volume(functions, input1, input2, _correlation.Arguments(*given.of_operator()))
        self.kept = _crossed(*(_centre_inside(functions, axis) for axis in self.axes)) if excluding else None
        self.volume = volume if self.kept is None else volume.where(self.kept, -np.inf)  # (B, PH, PW, oH, oW)
        self.sizes = input1.shape[0], *(axis.out for axis in self.axes)

    def _flat(self, volume: Tensor) -> Tensor:
        """Return a volume with one axis of displacements."""
        batch, height, width = self.sizes
        return volume.reshape((batch, self.count, height, width))

    @property
    def count(self) -> int:
        """The number of displacements."""
        return self.patch[0] * self.patch[1]

    def best(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the best scores and their channels (B, k, oH, oW): NaN before all numbers, equal scores by their channels."""
        scores = self._flat(self.volume)
        channels = self.functions.numbers(self.count).reshape((1, self.count, 1, 1))
        if self.kept is not None:
            kept = self.kept.reshape((1, self.count, *self.sizes[1:]))
            channels = channels.where(kept, NONE)
        found = []
        for rank in range(count):
            is_number = scores == scores
            numbers = scores.where(is_number, -np.inf)
            highest = numbers.amax(1, True)
            # NaN counts as a channel below 0, so that it is the first.
            at = channels.where(numbers == highest, NONE).where(is_number, channels - self.count).amin(1, True)
            channel = at.where(at >= 0, at + self.count)
            found.append((highest.where((at >= 0) & (at < NONE), np.nan), channel.where(channel < NONE, -1)))
            if rank < count - 1:
                others = channels != channel
                scores, channels = scores.where(others, -np.inf), channels.where(others, NONE)
        best = [self._joined(each) for each in zip(*found, strict=True)]
        return best[0], best[1]

    def _joined(self, planes: Sequence[Tensor]) -> Tensor:
        """Return planes (B, 1, oH, oW) in one tensor."""
        return planes[0] if len(planes) == 1 else self.functions.cat(planes, 1)

    def around(self, channel: Tensor) -> Tensor:
        """Return the scores around the best displacement, (B, 4, oH, oW); negative infinity where none is a candidate."""
        rows, columns = self.patch
        known = channel.clamp(0, self.count - 1)
        m = known // columns
        n = known - m * columns
        scores, found = self._flat(self.volume), []
        for down, right in NEIGHBOURS:
            row, column = m + down, n + right
            kept = (channel >= 0) & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
            at = (known + (down * columns + right)).clamp(0, self.count - 1)
            found.append(scores.gather(1, at).where(kept, -np.inf))
        return self._joined(found)

    def mean(self, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean displacements, and the logarithm of the sum of exp(score / temperature), each (B, oH, oW)."""
        sharp, dtype = sharpness(temperature), self.volume.dtype
        highest = self._flat(self.volume).amax(1, True)
        subtracted = highest.where(highest != -np.inf, 0.0).unsqueeze(1) * sharp.factor
        weights = ((self.volume * sharp.factor - subtracted) / sharp.divisor).exp()
        by_row, by_column = weights.sum(2), weights.sum(1)
        total = by_row.sum(1)
        means = []
        for along, axis in zip((by_row, by_column), self.axes, strict=True):
            index = self.functions.numbers(axis.patch).to(dtype).reshape((1, axis.patch, 1, 1))
            means.append((along * index).sum(1) / total * axis.step + axis.first_displacement)
        log_sum = highest.squeeze(1).to(torch.float64) / temperature + total.to(torch.float64).log()
        return means[0], means[1], log_sum


def _centre_inside(functions: Functions, axis: Axis) -> Tensor:
    """Return whether the centre tap of each displaced window is inside input2, (P, out)."""
    centre = (axis.kernel - 1) // 2 * axis.dilation - axis.padding
    other = _displaced(functions, axis, functions.numbers(axis.out) * axis.stride + centre)
    return (other >= 0) & (other < axis.size2)


# Others -------------------------------------------------------------------------------------------------------------------------


def correlation_lookup_index(functions: Functions, index: Tensor, name: str, batch: Size) -> Tensor:
    """Return what ``torch.ops.cupycorr.correlation_lookup_index`` returns for indices that are in range."""
    return index.to(torch.int64)


def _refused(name: str) -> Callable[..., Any]:
    def formula(functions: Functions, *given: Any) -> Any:
        what = f"torch.ops.cupycorr.{name} computes gradients, which cannot be exported"
        raise NotImplementedError(f"{what}: export a model that computes no gradients, or call it in torch.no_grad()")

    return formula


_FORWARD = (spatial_correlation_sample, correlation_lookup, volume_lookup, correlation_argmax, correlation_soft_argmax)
_GRADIENTS = [f"{formula.__name__}_vjp" for formula in _FORWARD]
FORMULAS: dict[str, Callable[..., Any]] = {
    **{formula.__name__: formula for formula in (*_FORWARD, correlation_lookup_index)},
    **{name: _refused(name) for name in _GRADIENTS},
}


def table(run: Callable[..., Any]) -> dict[Any, Callable[..., Any]]:
    """Return, for each operator, the function ``run`` of its formula and of the arguments that it is called with."""

    def called(formula: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            return run(formula, *arguments)

        return call

    return {getattr(torch.ops.cupycorr, name).default: called(formula) for name, formula in FORMULAS.items()}
