"""Sums of products of windows with displaced windows, for windows that are far apart, by kernels that LLVM compiles.

    out[i, m, n] = sum over y < window rows, x < window columns of
                       image1[offset1[i] + (y, x)] * image2[offset2[i] + (m + y, n + x)]

in float64. `row_kernel` shares the products of neighbouring windows; here each window is computed by itself. The displacements
across are divided into strips. The lanes of a strip's vectors are neighbouring displacements n: a vector of image 2 is loaded
once for several m, and a pixel of image 1 once for all vectors. A column left over is computed by a strip whose lanes are
neighbouring pixels x. Products are added up in registers, and these sums are added to the result after some hundreds of pixels,
so that rounding errors grow little with the size of a window. Nothing outside the windows and the displaced windows is read, and
nothing outside the result is written: loads and stores of partial vectors are masked. This module knows arrays and offsets, and
not what pixels mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import groupby, pairwise, product
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from .._arguments import Pair
from .._cpu.llvm import NUMBER, OFFSETS, VALUES, KernelWriter, address, compiled, lock, registers, why_not

__all__ = ["correlate", "why_not"]

_FLOAT64 = np.dtype(np.float64)
_HEIGHT = 8  # displacements down in a tile, at most: each needs the address of a row
_VECTORS = 8  # vectors of displacements across in a strip, at most
_SQUARE = 5  # displacements down of a tile that the width of a strip leaves registers for, where there are so many
_TERMS = 512  # products that are added up in a register, at most, where a window has so many columns or fewer


def correlate(
    image1: np.ndarray, image2: np.ndarray, offsets1: np.ndarray, offsets2: np.ndarray, window: Pair, tried: Pair
) -> np.ndarray:
    """Correlate windows of one image, or of a stack of images, with displaced windows of another. Threads may do so at once.

    Parameters
    ----------
    image1, image2 : array, float64, with contiguous rows
        Images (h, w), or stacks of them (n, h, w).
    offsets1, offsets2 : array, int64, (count,)
        The distance in memory, in elements, of each window's first pixel at displacement index (0, 0) from the first pixel of the
        array. Windows and displaced windows must be inside the images: only the first and the last pixel are checked.
    window : (int, int)
        Rows and columns of a window.
    tried : (int, int)
        Number of displacements down and across.

    Returns
    -------
    array, float64, (count, *tried)
        The sums of products.

    Raises
    ------
    ValueError
        An array has another type or layout, or an offset leads beyond it.
    """
    if min(*window, *tried) < 1:
        raise ValueError(f"there must be a pixel and a displacement, got {window=}, {tried=}")
    count = len(offsets1)
    reach = window[0] + tried[0] - 1, window[1] + tried[1] - 1
    stride1 = _checked("image1", image1, offsets1, window, count)
    stride2 = _checked("image2", image2, offsets2, reach, count)
    out = np.zeros((count, *tried))
    addresses = [address(each) for each in (image1, image2, offsets1, offsets2, out)]
    for plan in _plans(window, tried, stride1, stride2):
        plan.kernel(*addresses, count, plan.address)
    return out


def _checked(name: str, image: np.ndarray, offsets: np.ndarray, rectangle: Pair, count: int) -> int:
    """Return the distance of neighbouring rows in elements, after a check of an image and of the offsets of rectangles in it."""
    shape, strides, size = image.shape, image.strides, _FLOAT64.itemsize
    usual = image.dtype == _FLOAT64 and image.ndim in (2, 3) and (strides[-1] == size or shape[-1] == 1)
    last = 0
    for length, stride in zip(shape, strides, strict=True):
        usual = usual and (length == 1 or (stride >= 0 and stride % size == 0))
        last += (length - 1) * stride // size
    if not usual:
        raise ValueError(f"{name} must be float64, 2-D or 3-D, with contiguous rows, got {image.dtype=}, {shape=}, {strides=}")
    if offsets.dtype != np.int64 or offsets.shape != (count,) or (count > 1 and offsets.strides != (size,)):
        raise ValueError(f"offsets of {name} must be contiguous int64, ({count},), got {offsets.dtype=}, {offsets.shape=}")
    stride = strides[-2] // size
    if count:
        low, high = int(offsets.min()), int(offsets.max())
        if low < 0 or high + (rectangle[0] - 1) * stride + rectangle[1] - 1 > last or min(shape) < 1:
            raise ValueError(f"offsets of {name} must lead to rectangles {rectangle} inside {shape}, got {low} to {high}")
    return stride


# The plan: int64 numbers that a kernel loads ---------------------------------------------------------------------------------


class _Strip(NamedTuple):
    """Neighbouring displacements across, in vectors, of which the last one is partial if some of its lanes are unused.

    Without vectors it is a single column, whose lanes are pixels.
    """

    vectors: int
    partial: bool = False


class _Machine(NamedTuple):
    """The number of vector registers, and of float64 values in one."""

    registers: int
    lanes: int


_COLUMN = _Strip(0)
_FIELDS = ("pieces", "stride1", "stride2", "size", "across", "used")
_PIECE_FIELDS = ("height", "offset1", "offset2", "to", "rows", "columns")


@cache
def _machine() -> _Machine:
    found = registers()
    return _Machine(found.count, found.widths[0] // _FLOAT64.itemsize)


class _Plan(NamedTuple):
    """The kernel of a strip, the numbers that it loads (`_FIELDS`, then those of each piece), and their address."""

    kernel: Callable[..., None]
    numbers: np.ndarray
    address: int


@lru_cache(maxsize=64)
def _plans(window: Pair, tried: Pair, stride1: int, stride2: int) -> list[_Plan]:
    """Return the plans of the strips of the displacements across."""
    machine = _machine()
    plans = []
    for begin, columns, strip in _strips(window[1], tried, machine):
        # The sums of a column are those of its lanes, so that each register adds up fewer products.
        terms = _TERMS * machine.lanes if strip == _COLUMN else _TERMS
        pieces = [
            (height, row1 * stride1 + x, row2 * stride2 + begin + x, m * tried[1] + begin, rows, width)
            for m, height, row1, row2, rows in _pieces(window, tried[0], _height(strip, machine), terms, strip == _COLUMN)
            for x, width in _parts(window[1], terms)
        ]
        used = columns - max(strip.vectors - 1, 0) * machine.lanes
        fields = [len(pieces), stride1, stride2, tried[0] * tried[1], tried[1], used]
        numbers = np.concatenate([fields, np.ravel(pieces)]).astype(np.int64)
        plans.append(_Plan(_kernel(strip, machine), numbers, address(numbers)))
    return plans


def _height(strip: _Strip, machine: _Machine) -> int:
    """Return the largest number of displacements down whose sums fit into the registers together."""
    if strip == _COLUMN:
        return _HEIGHT
    return min(_HEIGHT, (machine.registers - 1 - strip.vectors) // strip.vectors)


def _strips(width: int, tried: Pair, machine: _Machine) -> Iterator[tuple[int, int, _Strip]]:
    """Divide displacements across into strips: the first displacement of each, their number, and the strip."""
    vectors, left = divmod(tried[1], machine.lanes)
    # A column multiplies each vector once, so that it takes the time of two, and its lanes are added up: three more.
    if left * (2 * -(-width // machine.lanes) + 3) > width:
        vectors += 1
    most = min(_VECTORS, (machine.registers - 1) // (min(tried[0], _SQUARE) + 1))
    begin = 0
    for number in _sizes(vectors, most):
        end = min(begin + number * machine.lanes, tried[1])
        yield begin, end - begin, _Strip(number, end - begin < number * machine.lanes)
        begin = end
    for n in range(begin, tried[1]):
        yield n, 1, _COLUMN


def _sizes(count: int, most: int) -> list[int]:
    """Divide a number into as few nearly equal parts as possible."""
    parts = -(-count // most)
    return [end - begin for begin, end in pairwise(count * part // parts for part in range(parts + 1))] if count else []


def _parts(count: int, most: int) -> list[tuple[int, int]]:
    """Return the beginning and the size of each of the parts of a range."""
    sizes = _sizes(count, most)
    return [(sum(sizes[:i]), size) for i, size in enumerate(sizes)]


def _pieces(window: Pair, down: int, most: int, terms: int, column: bool) -> Iterator[tuple[int, int, int, int, int]]:
    """Divide the products of a strip into pieces: the same displacements down at some successive rows.

    Yields the first displacement m, the number of displacements, the first row of image 1, the first row of image 2, and the
    number of rows. A row of image 2 meets a different row of image 1 for each displacement: row 1 is that of the last one. In a
    column, a row of image 1 meets a different row of image 2 for each displacement: row 2 is that of the first one.
    """
    h = window[0]
    rows_of_piece = max(terms // window[1], 1)
    for m, height in _parts(down, most):
        if column:
            runs = [(0, height, 0, 0, h)]
        else:
            # Row Y of image 2 is needed for the displacements from Y - h + 1 to Y, as far as they are in the tile.
            ranges = [(max(y - h + 1, 0), min(y, height - 1)) for y in range(h + height - 1)]
            runs = []
            for (low, high), group in groupby(range(len(ranges)), key=ranges.__getitem__):
                members = list(group)
                runs.append((low, high - low + 1, members[0] - high, members[0], len(members)))
        for low, number, row1, row2, rows in runs:
            for begin, part in _parts(rows, rows_of_piece):
                yield m + low, number, row1 + begin, m + row2 + begin, part


# The kernel --------------------------------------------------------------------------------------------------------------------

_ARGUMENTS = dict(image1=VALUES, image2=VALUES, offsets1=OFFSETS, offsets2=OFFSETS, out=VALUES, count=NUMBER, plan=OFFSETS)


def _kernel(strip: _Strip, machine: _Machine) -> Callable[..., None]:
    with lock:
        return _compiled(strip, machine)


@cache
def _compiled(strip: _Strip, machine: _Machine) -> Callable[..., None]:
    return compiled(lambda: _ColumnWriter(machine) if strip == _COLUMN else _StripWriter(strip, machine))


class _Writer(KernelWriter):
    """A writer of a kernel, from the outermost loop to the innermost; `_sums` and `_add` differ between strips and columns."""

    def __init__(self, strip: _Strip, machine: _Machine) -> None:
        super().__init__("windows", _ARGUMENTS, _FLOAT64.itemsize)
        self.strip, self.lanes, self.type = strip, machine.lanes, self.vector(machine.lanes)
        self.mask_type = self.ir.VectorType(self.ir.IntType(1), self.lanes)
        b, given = self.builder, SimpleNamespace(**self.arguments)
        plan = SimpleNamespace(**{name: b.load(self.at(given.plan, self.number(i))) for i, name in enumerate(_FIELDS)})
        plan.piece_list = self.at(given.plan, self.number(len(_FIELDS)))
        self.given, self.plan, self.heights = given, plan, range(1, _height(strip, machine) + 1)
        self._declare_masked()
        self.loop(given.count, self._window)
        b.ret_void()

    def _window(self, i: Any, _: Sequence[Any]) -> None:
        """Write the code for a window: its pieces, one after the other."""
        b, given, plan = self.builder, self.given, self.plan
        image1, image2 = (
            self.at(image, b.load(self.at(offsets, i)))
            for image, offsets in ((given.image1, given.offsets1), (given.image2, given.offsets2))
        )
        out = self.at(given.out, b.mul(i, plan.size))

        def piece(number: Any, _: Sequence[Any]) -> None:
            fields = self.at(plan.piece_list, b.mul(number, self.number(len(_PIECE_FIELDS))))
            read = SimpleNamespace(**{name: b.load(self.at(fields, self.number(i))) for i, name in enumerate(_PIECE_FIELDS)})
            start1, start2, to = self.at(image1, read.offset1), self.at(image2, read.offset2), self.at(out, read.to)
            for height in self.heights:
                with b.if_then(b.icmp_signed("==", read.height, self.number(height))):
                    self._add(height, self._sums(height, start1, start2, read.rows, read.columns), to)

        self.loop(plan.pieces, piece)

    def _sums(self, height: int, start1: Any, start2: Any, rows: Any, columns: Any) -> list:
        """Write the sums of products of a piece."""
        raise NotImplementedError

    def _add(self, height: int, sums: list, to: Any) -> None:
        """Write that the sums of a piece are added to the result, which begins at ``to`` for the first displacement."""
        raise NotImplementedError

    def _rows_below(self, start: Any, stride: Any, height: int) -> list:
        rows = [start]
        for _ in range(1, height):
            rows.append(self.at(rows[-1], stride))
        return rows

    def _mask(self, used: Any) -> Any:
        """Return the mask of the first ``used`` lanes."""
        integers = self.ir.VectorType(self.index, self.lanes)
        lane = self.ir.Constant(integers, list(range(self.lanes)))
        return self.builder.icmp_signed("<", lane, self.vector_of(used, integers))

    def _declare_masked(self) -> None:
        ir, pointer = self.ir, self.type.as_pointer()
        align = ir.IntType(32)
        name = f"v{self.lanes}f{8 * self.itemsize}.p0"
        load = ir.FunctionType(self.type, [pointer, align, self.mask_type, self.type])
        store = ir.FunctionType(ir.VoidType(), [self.type, pointer, align, self.mask_type])
        self._masked_load = ir.Function(self.module, load, f"llvm.masked.load.{name}")
        self._masked_store = ir.Function(self.module, store, f"llvm.masked.store.{name}")
        self._alignment = ir.Constant(align, self.itemsize)

    def load_masked(self, pointer: Any, mask: Any) -> Any:
        """Write the load of the lanes of a vector that a mask selects; the others are 0 and are not read."""
        pointer = self.builder.bitcast(pointer, self.type.as_pointer())
        return self.builder.call(self._masked_load, [pointer, self._alignment, mask, self.zero(self.type)])

    def store_masked(self, values: Any, pointer: Any, mask: Any) -> None:
        """Write the store of the lanes of a vector that a mask selects."""
        pointer = self.builder.bitcast(pointer, self.type.as_pointer())
        self.builder.call(self._masked_store, [values, pointer, self._alignment, mask])


class _StripWriter(_Writer):
    """The writer of a kernel whose lanes are neighbouring displacements."""

    def _sums(self, height: int, start1: Any, start2: Any, rows: Any, columns: Any) -> list:
        b, plan = self.builder, self.plan

        def row(r: Any, sums: Sequence[Any]) -> list:
            rows1 = self._rows_below(self.at(start1, b.mul(r, plan.stride1)), plan.stride1, height)
            row2 = self.at(start2, b.mul(r, plan.stride2))

            def column(x: Any, sums: Sequence[Any]) -> list:
                others = self._load_strip(self.at(row2, x))
                values = [self.vector_of(b.load(self.at(row1, x)), self.type) for row1 in reversed(rows1)]
                pairs = product(values, others)
                return [self.multiply_add(total, *pair) for total, pair in zip(sums, pairs, strict=True)]

            return self.loop(columns, column, sums)

        return self.loop(rows, row, [self.zero(self.type)] * (height * self.strip.vectors))

    def _add(self, height: int, sums: list, to: Any) -> None:
        vectors = self.strip.vectors
        for m, row in enumerate(self._rows_below(to, self.plan.across, height)):
            before = self._load_strip(row)
            for v, (old, new) in enumerate(zip(before, sums[m * vectors : (m + 1) * vectors], strict=True)):
                total, pointer = self.builder.fadd(old, new), self.at(row, self.number(v * self.lanes))
                if self.strip.partial and v == vectors - 1:
                    self.store_masked(total, pointer, self._mask(self.plan.used))
                else:
                    self.store(total, pointer)

    def _load_strip(self, pointer: Any) -> list:
        """Return the vectors of a strip; the lanes of a partial one that belong to no displacement are 0."""
        *whole, last = (self.at(pointer, self.number(v * self.lanes)) for v in range(self.strip.vectors))
        loaded = [self.load(each, self.type) for each in whole]
        return [*loaded, self.load_masked(last, self._mask(self.plan.used)) if self.strip.partial else self.load(last, self.type)]


class _ColumnWriter(_Writer):
    """The writer of a kernel for one displacement across, whose lanes are neighbouring pixels."""

    def __init__(self, machine: _Machine) -> None:
        super().__init__(_COLUMN, machine)

    def _sums(self, height: int, start1: Any, start2: Any, rows: Any, columns: Any) -> list:
        b, plan, lanes = self.builder, self.plan, self.number(self.lanes)
        whole = b.sdiv(columns, lanes)
        left = b.sub(columns, b.mul(whole, lanes))

        def row(r: Any, sums: Sequence[Any]) -> list:
            row1 = self.at(start1, b.mul(r, plan.stride1))
            rows2 = self._rows_below(self.at(start2, b.mul(r, plan.stride2)), plan.stride2, height)

            def products(x: Any, sums: Sequence[Any], load: Callable[[Any], Any]) -> list:
                value = load(self.at(row1, x))
                others = [load(self.at(row2, x)) for row2 in rows2]
                return [self.multiply_add(total, value, other) for total, other in zip(sums, others, strict=True)]

            sums = self.loop(whole, lambda i, sums: products(b.mul(i, lanes), sums, lambda at: self.load(at, self.type)), sums)
            mask = self._mask(left)
            partial = b.zext(b.icmp_signed(">", left, self.number(0)), self.index)
            return self.loop(
                partial, lambda _, sums: products(b.mul(whole, lanes), sums, lambda at: self.load_masked(at, mask)), sums
            )

        return self.loop(rows, row, [self.zero(self.type)] * height)

    def _add(self, height: int, sums: list, to: Any) -> None:
        b = self.builder
        for total, pointer in zip(sums, self._rows_below(to, self.plan.across, height), strict=True):
            b.store(b.fadd(b.load(pointer), self._sum_of_lanes(total)), pointer)

    def _sum_of_lanes(self, values: Any) -> Any:
        """Write the sum of the lanes of a vector, in pairs, then pairs of pairs, and so on."""
        b, lanes = self.builder, self.lanes
        while lanes > 1:
            lanes //= 2
            numbers = self.ir.VectorType(self.ir.IntType(32), lanes)
            halves = (
                b.shuffle_vector(values, values, self.ir.Constant(numbers, list(range(begin, begin + lanes))))
                for begin in (0, lanes)
            )
            values = b.fadd(*halves)
        return b.extract_element(values, self.number(0))
