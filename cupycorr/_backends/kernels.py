"""What each kernel in ``kernels_cu/`` is built from and called with: its macros, its arguments in order, its number of blocks.

The only Python that knows the kernels' signatures. Arrays are layouts here, never data; axes are lines of bounded numbers,
whatever the caller passed, so that no kernel computes a position that its integers cannot hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from .._cuda.source import Kernel
from .._dtypes import ELEMENT_TYPES
from .._problem import CHANNELS_LAST, ROWS, Axis, Problem, lattice_inside
from .._sharing import CachedProperty

THREADS = 256  # of every block
RUN_BYTES = 16  # one access moves that much where it can
PARTS = 8  # threads that share the channels of one output, where they do
FILLING = 1024  # outputs for each multiprocessor: with fewer, one thread for each leaves most of it idle

_SAFE = 2**30  # two integers below it have a sum of 32 bits
_LARGEST = 2**62  # and of 64 bits
_INDEX = {np.int32: "int", np.int64: "long long"}
_ALONG_Y = 3  # axis of a volume (B, PH, PW, y, x)

Numbers = tuple[int, ...]


# Arrays -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How an array lies in memory: its dtype's name, its shape and its strides in elements, 0 along an axis of length 1."""

    dtype: str
    shape: Numbers
    strides: Numbers

    def __hash__(self) -> int:
        return self._hash

    @CachedProperty
    def _hash(self) -> int:
        """Worked out once, as a problem's."""
        return hash((self.dtype, self.shape, self.strides))

    @property
    def element(self) -> str:
        """The kernels' name of the element type."""
        return ELEMENT_TYPES[self.dtype].c_type

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return ELEMENT_TYPES[self.dtype].itemsize

    @property
    def accumulator(self) -> np.dtype:
        """dtype that sums of such elements are kept in."""
        return ELEMENT_TYPES[self.dtype].accumulator_dtype

    @CachedProperty
    def order(self) -> str:
        """Of images (B, C, H, W): whether neighbours in memory are columns or channels, enough of them to be loaded together."""
        return CHANNELS_LAST if self.strides[1] == 1 and self.shape[1] * self.itemsize >= RUN_BYTES else ROWS

    @property
    def extent(self) -> int:
        """Elements between the first and the last in memory, at most."""
        return sum(abs(stride) * (size - 1) for size, stride in zip(self.shape, self.strides, strict=True) if size)

    def offset(self, *index: int) -> int:
        """Bytes from the first element to another; axes that are not named are at 0."""
        return self.itemsize * sum(i * stride for i, stride in zip(index, self.strides, strict=False))

    def resized(self, *shape: int) -> Layout:
        """A part of the array that begins elsewhere; axes that are not named stay whole."""
        return replace(self, shape=(*shape, *self.shape[len(shape) :]))


def layout(name: str, array: Any) -> Layout:
    """The layout of a NumPy or CuPy array; ``name`` is the argument's, for the message.

    Raises
    ------
    ValueError
        Its elements do not lie at multiples of their size.
    """
    return _layout(name, array.dtype, array.shape, array.strides)


@lru_cache(1024)  # the same object at every call, which caches of plans recognise at a glance
def _layout(name: str, dtype: np.dtype, shape: Numbers, strides: Numbers) -> Layout:
    itemsize = dtype.itemsize
    steps = tuple(0 if size <= 1 else stride for size, stride in zip(shape, strides, strict=True))
    if any(step % itemsize for step in steps):
        raise ValueError(f"{name} must have strides of whole elements, got {name}.strides={strides} of {itemsize} bytes")
    return Layout(dtype.name, shape, tuple(step // itemsize for step in steps))


def new_layout(dtype: str, shape: Sequence[int]) -> Layout:
    """The layout of a volume of ours, in C order, its rows beginning where 16-byte accesses do."""
    run = RUN_BYTES // ELEMENT_TYPES[dtype].itemsize
    strides = [1, ceil_div(shape[-1], run) * run]
    for size in reversed(shape[1:-1]):
        strides.append(strides[-1] * size)
    return Layout(dtype, tuple(shape), tuple(reversed(strides)))


def dense_layout(dtype: str, shape: Sequence[int], order: str = ROWS) -> Layout:
    """The layout of an array in C order, or of images (B, C, H, W) whose channels are neighbours."""
    axes = range(len(shape)) if order == ROWS else (0, 2, 3, 1)
    strides, step = [0] * len(shape), 1
    for axis in reversed(axes):
        strides[axis] = 0 if shape[axis] <= 1 else step
        step *= max(shape[axis], 1)
    return Layout(dtype, tuple(shape), tuple(strides))


def ceil_div(number: int, unit: int) -> int:
    """How many units hold a number of things."""
    return -(-number // unit)


# Axes -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """One axis as the kernels see it; make it with `line`.

    Output ``i``, tap ``u`` stands at ``z - padding`` with ``z = i stride + u dilation``; patch index ``m`` displaces it by
    ``first + m step``.
    """

    size1: int
    size2: int
    patch: int
    first: int
    step: int
    out: int
    kernel: int
    stride: int
    dilation: int
    padding: int

    @property
    def span(self) -> int:
        """Number of positions from the first tap of the first output to the last tap of the last."""
        return (self.out - 1) * self.stride + (self.kernel - 1) * self.dilation + 1

    @property
    def reach(self) -> int:
        """A magnitude that no position a kernel works out exceeds."""
        displaced = max(abs(self.first), abs(self.first + self.patch * self.step))
        return displaced + abs(self.padding) + self.span + self.dilation + self.size1 + self.size2

    @property
    def window(self) -> Numbers:
        """The numbers of ``Window`` in window.cuh."""
        common = math.gcd(self.stride, self.dilation)
        tap_step, output_step = self.stride // common, self.dilation // common
        return self.kernel, self.out, common, pow(output_step, -1, tap_step), tap_step, output_step

    def pixelwise(self) -> Line:
        """An output of one tap at each of the positions that the windows span."""
        return replace(self, out=self.span, kernel=1, stride=1, dilation=1)

    def displacements(self, begin: int, count: int) -> Line:
        """The same with patch indices ``[begin, begin + count)`` only."""
        return replace(self, first=self.first + begin * self.step, patch=count)


def line(axis: Axis) -> Line:
    """An axis, with every number that cannot matter replaced by a small one."""
    first, step = _displacements(axis)
    stride = 1 if axis.out == 1 else axis.stride
    dilation = 1 if axis.kernel == 1 else axis.dilation
    return Line(axis.size1, axis.size2, axis.patch, first, step, axis.out, axis.kernel, stride, dilation, axis.padding)


def _displacements(axis: Axis) -> tuple[int, int]:
    """The first displacement and the step; displacements at which the images do not meet may become others of that kind."""
    begin, end = lattice_inside(axis.first_displacement, axis.step, axis.patch, 1 - axis.size1, axis.size2)
    if begin == end:
        return axis.size2, 0
    if end - begin > 1:
        return axis.first_displacement, axis.step
    step = min(axis.step, axis.size1 + axis.size2)
    return axis.first_displacement + begin * (axis.step - step), step


@lru_cache(1024)
def out_of_reach(problem: Problem) -> str | None:
    """Why no integer of the kernels' can hold the positions of a problem, if that is so."""
    axes = [line(axis) for axis in (problem.vertical, problem.horizontal)]
    farthest = max(max(axis.reach, axis.window[4] ** 2) for axis in axes)
    return None if farthest < _LARGEST else f"positions of up to {farthest} pixels do not fit into 64-bit integers"


# Calls ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pointer:
    """Where an argument begins: so many bytes into a named buffer."""

    buffer: str
    offset: int = 0

    def at(self, offset: int) -> Pointer:
        """So many bytes further."""
        return replace(self, offset=self.offset + offset)


Array = tuple[Layout, Pointer]

NOWHERE = Pointer("nowhere")  # of an argument that is not used


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel and its arguments: pointers first, then scalars of the right width. ``blocks`` may exceed what a grid can hold.

    ``threads`` are those of a block, ``shared`` its bytes of dynamic shared memory.
    """

    kernel: Kernel
    pointers: tuple[Pointer, ...]
    scalars: tuple[np.generic, ...]
    blocks: int
    threads: int = THREADS
    shared: int = 0


def forward(vertical: Line, horizontal: Line, arrays: Sequence[Array], scale: float, multiprocessors: int) -> Call:
    """forward_direct.cu: from input1 and input2 to an output."""
    input1, input2, out = layouts = [layout for layout, _ in arrays]
    channels = input1.shape[1]
    channels_last, parts = _sharing(input1, input2, math.prod(out.shape), multiprocessors)
    tiles = math.prod(out.shape[:3]) * ceil_div(vertical.out * horizontal.out, THREADS // parts)
    macros = dict(INPUT=input1.element, OUTPUT=out.element, CHANNELS_LAST=channels_last, PARTS=parts)
    integers = (tiles, channels, *input1.strides, *input2.strides, *out.strides)
    axes = (*_forward_numbers(vertical), *_forward_numbers(horizontal))
    reach = max(vertical.reach, horizontal.reach, vertical.out * horizontal.out + THREADS)
    pointers = tuple(pointer for _, pointer in arrays)
    return _call("forward_direct", macros, pointers, layouts, (*integers, *axes), reach, (_scale(input1, scale),), tiles)


def _forward_numbers(axis: Line) -> Numbers:
    tried = (axis.size1, axis.size2, axis.patch, axis.first, axis.step)
    return (*tried, axis.out, axis.kernel, axis.stride, axis.dilation, axis.padding)


def _sharing(input1: Layout, input2: Layout, outputs: int, multiprocessors: int) -> tuple[int, int]:
    """CHANNELS_LAST and PARTS: whether neighbouring threads take neighbouring channels, and how many share an output."""
    if _channels_last(input1) and _channels_last(input2):
        return 1, PARTS
    few = outputs < multiprocessors * FILLING
    return 0, PARTS if few and input1.shape[1] >= 2 * PARTS else 1


def _channels_last(image: Layout) -> bool:
    """Whether neighbouring channels are neighbours in memory, and enough of them to be loaded together."""
    return image.strides[1] == 1 and image.shape[1] * image.itemsize >= PARTS * RUN_BYTES // 2


def gradient(
    operand: int,
    vertical: Line,
    horizontal: Line,
    arrays: Sequence[Array],
    scale: float,
    carried: Pointer = NOWHERE,
    carry: Pointer = NOWHERE,
) -> Call:
    """gradient_direct.cu: from a cotangent and the other input to the gradient of input ``operand``.

    A sum cut into several launches goes through `carried_bytes` from the ``carry`` of one to the ``carried`` of the next.
    """
    cotangent, other, result = layouts = [layout for layout, _ in arrays]
    batch, channels, height, width = result.shape
    threads = batch * _runs(result) * height * width
    macros = dict(INPUT=other.element, COTANGENT=cotangent.element, OPERAND=operand, CHANNELS_LAST=int(_channels_last(other)))
    integers = (threads, channels, *cotangent.strides, *other.strides, *result.strides)
    axes = (*_gradient_numbers(operand, vertical), *_gradient_numbers(operand, horizontal))
    reach = max(vertical.reach, horizontal.reach, *map(_taps_reach, (vertical, horizontal)), threads * RUN_BYTES)
    pointers = (*(pointer for _, pointer in arrays), carried, carry)
    blocks = ceil_div(threads, THREADS)
    return _call("gradient_direct", macros, pointers, layouts, (*integers, *axes), reach, (_scale(other, scale),), blocks)


def _gradient_numbers(operand: int, axis: Line) -> Numbers:
    sizes = (axis.size1, axis.size2) if operand == 1 else (axis.size2, axis.size1)
    return (*sizes, axis.patch, axis.first, axis.step, axis.padding, *axis.window)


def _runs(image: Layout) -> int:
    """How many threads share the channels of a pixel's gradient."""
    return ceil_div(image.shape[1], RUN_BYTES // image.itemsize)


def carried_bytes(result: Layout) -> int:
    """Bytes of the sums that one launch of a gradient cut into several hands on to the next."""
    batch, _, height, width = result.shape
    return batch * _runs(result) * height * width * RUN_BYTES // result.itemsize * result.accumulator.itemsize


def window_sum(axis: Line, along: int, source: Array, target: Array, scale: float = 1.0) -> Call:
    """box_filter.cu: the windows along one axis (3 is y, 4 is x) of a volume."""
    return _box(axis, along, False, source, target, source[0], scale)


def window_spread(axis: Line, along: int, source: Array, target: Array) -> Call:
    """box_filter.cu: the transpose of `window_sum`."""
    return _box(axis, along, True, source, target, target[0], 1.0)


def _box(
    axis: Line,
    along: int,
    transposed: bool,
    source: Array,
    target: Array,
    summed: Layout,
    scale: float,
) -> Call:
    layouts, pointers = zip(source, target, strict=True)
    read, written = layouts
    _, patch_y, patch_x, height, width = written.shape
    run = RUN_BYTES // read.itemsize if along == _ALONG_Y else 1
    threads = math.prod(written.shape[:4]) * ceil_div(width, run)
    macros = dict(FROM=read.element, TO=written.element, ALONG_Y=int(along == _ALONG_Y), TRANSPOSED=int(transposed))
    integers = (threads, patch_y, patch_x, height, width, *read.strides, *written.strides, *axis.window)
    reach = max(axis.reach, _taps_reach(axis))
    return _call("box_filter", macros, pointers, layouts, integers, reach, (_scale(summed, scale),), ceil_div(threads, THREADS))


def sum_parts(parts: Array, result: Array, scale: float) -> Call:
    """sum_parts.cu: the sum along the first axis of a volume (parts, ...) of at most five more, which are the result's."""
    layouts, pointers = zip(parts, result, strict=True)
    read, written = layouts
    shape, strides_from, strides_to = (
        (fill,) * (5 - len(numbers)) + tuple(numbers)
        for fill, numbers in ((1, written.shape), (0, read.strides[1:]), (0, written.strides))
    )
    threads = math.prod(shape[:4]) * ceil_div(shape[4], RUN_BYTES // read.itemsize)
    integers = (threads, read.shape[0], *shape[1:], read.strides[0], *strides_from, *strides_to)
    macros = dict(FROM=read.element, TO=written.element)
    return _call("sum_parts", macros, pointers, layouts, integers, 0, (_scale(read, scale),), ceil_div(threads, THREADS))


def _taps_reach(axis: Line) -> int:
    """The largest product that finding an output's taps makes."""
    tap_step = axis.window[4]
    return tap_step * tap_step


def _scale(summed: Layout, scale: float) -> np.generic:
    return summed.accumulator.type(scale)


def _call(
    name: str,
    macros: Mapping[str, object],
    pointers: tuple[Pointer, ...],
    layouts: Sequence[Layout],
    integers: Numbers,
    reach: int,
    tail: tuple[np.generic, ...],
    blocks: int,
) -> Call:
    """With integers of 32 bits where all of them, every offset and every position up to ``reach`` fit, else of 64."""
    largest = max(reach, *map(abs, integers), *(layout.extent for layout in layouts))
    index = np.int32 if largest < _SAFE else np.int64
    built = kernel(name, {**macros, "INDEX": _INDEX[index]})
    return Call(built, pointers, (*(index(value) for value in integers), *tail), blocks)


def kernel(name: str, macros: Mapping[str, object]) -> Kernel:
    """The entry point of a file that bears its name, built with macros."""
    return Kernel(f"{name}.cu", name, tuple((key, str(value)) for key, value in macros.items()))


# Builds -----------------------------------------------------------------------------------------------------------------------

_ELEMENTS = tuple(row.c_type for row in ELEMENT_TYPES.values())
_SUMS = tuple(dict.fromkeys(ELEMENT_TYPES[row.accumulator].c_type for row in ELEMENT_TYPES.values()))

# kernel -> its macros and their values; a name in place of the values repeats another macro's.
_BUILDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("forward_direct", dict(INPUT=_ELEMENTS, OUTPUT=_ELEMENTS, CHANNELS_LAST=(0,), PARTS=(1, PARTS))),
    ("forward_direct", dict(INPUT=_ELEMENTS, OUTPUT=_ELEMENTS, CHANNELS_LAST=(1,), PARTS=(PARTS,))),
    ("gradient_direct", dict(INPUT=_ELEMENTS, COTANGENT=_ELEMENTS, OPERAND=(1, 2), CHANNELS_LAST=(0, 1))),
    ("sum_parts", dict(FROM=_SUMS, TO=_ELEMENTS)),
    ("box_filter", dict(FROM=_SUMS, TO="FROM", ALONG_Y=(1,), TRANSPOSED=(0, 1))),
    ("box_filter", dict(FROM=_SUMS, TO=_ELEMENTS, ALONG_Y=(0,), TRANSPOSED=(0,))),
    ("box_filter", dict(FROM=_ELEMENTS, TO=_SUMS, ALONG_Y=(0,), TRANSPOSED=(1,))),
)


def builds() -> Iterator[tuple[str, Kernel]]:
    """Every kernel that a call can name, with words for it: ``"box_filter FROM=float ..."``."""
    for name, table in _BUILDS:
        free = {macro: values for macro, values in table.items() if not isinstance(values, str)}
        for values in product(*free.values(), _INDEX.values()):
            chosen = dict(zip((*free, "INDEX"), values, strict=True))
            macros = {key: chosen[table[key] if isinstance(table.get(key), str) else key] for key in (*table, "INDEX")}
            yield f"{name} {' '.join(f'{key}={value}' for key, value in macros.items())}", kernel(name, macros)
