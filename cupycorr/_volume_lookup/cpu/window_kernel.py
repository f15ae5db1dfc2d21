"""Kernels for the windows of a list of queries, which LLVM compiles for this machine: the output and both gradients.

    dots[r, c] = volume[slice + row(r) + column(c)], 0 outside the slice       of a query; r and c are taps along y and x
    FORWARD:  patches[m, n] = scale * sum over corners a, b of  wy(a) wx(b) dots[r(m) + a, c(n) + b]
    VOLUME:   volume[slice + row(r) + column(c)] = scale * sum of  wy(a) wx(b) patches[m, n]  over r(m) + a = r, c(n) + b = c
    COORDS:   result[x] = scale * sum over m, n of  patches[m, n] * sum over a of  wy(a) (dots[.., c(n) + 1] - dots[.., c(n)]),
              result[y] likewise

A lane of a vector is a query; queries beyond whole vectors are computed one by one. Scratch memory holds the taps of the queries
of a vector. They are read from the slices, or written there, query by query, and only those inside: nothing outside is touched.
The rest is done for all lanes at once. Elements of 16 bits are widened and rounded by operations on integers, which every
processor has. This module knows addresses and offsets, and neither arrays nor requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..._cpu.llvm import (
    NUMBER,
    OFFSETS,
    VALUE,
    VALUES,
    VECTOR_BYTES,
    KernelWriter,
    address,
    compiled,
    lock,
    registers,
    why_not,
)
from ..._dtypes import LONGEST_CHAIN

__all__ = ["COORDS", "FIELDS", "FORWARD", "OF_AXIS", "STRIDES", "VECTOR_BYTES", "VOLUME", "address", "kernel", "lanes", "why_not"]

CHAIN = LONGEST_CHAIN.registers  # terms that are added one after the other

FORWARD, VOLUME, COORDS = "forward", "volume", "coords"

# The numbers of a call. Strides of the volume are in bytes, those of patches (m, n) and of the channels of coords in elements.
OF_AXIS = ("taps", "patch", "pitch", "first", "last")
STRIDES = ("stride_m", "stride_n", "stride_coords")
FIELDS = (*(f"{name}_{along}" for along in "yx" for name in ("size", *OF_AXIS, "stride")), "slice_bytes", *STRIDES)

# The addresses: the volume or its gradient, the offsets in bytes of the slices of the queries, coords, offsets of taps along y
# and along x in pixels, the numbers, the output or the cotangent, the gradient of coords, and scratch memory for the taps of
# `lanes` queries.
_ARGUMENTS = {
    "volume": VALUES,
    "slices": OFFSETS,
    "coords": VALUES,
    "taps_y": OFFSETS,
    "taps_x": OFFSETS,
    "numbers": OFFSETS,
    "patches": VALUES,
    "result": VALUES,
    "scratch": VALUES,
    "queries": NUMBER,
    "scale": VALUE,
}


def lanes(dtype: np.dtype) -> int:
    """Return the number of queries whose sums of a dtype are in a vector."""
    return registers().widths[0] // dtype.itemsize


def kernel(what: str, element: str, accumulator: np.dtype, has_rows: bool) -> Callable[..., None]:
    """Return the compiled kernel for one result.

    Parameters
    ----------
    what
        `FORWARD`, `VOLUME` or `COORDS`.
    element
        The name of the dtype of the volume.
    accumulator
        The dtype of the sums, of coords, patches, the result and scratch memory.
    has_rows
        True if queries have a coordinate along y; otherwise slices have one row.

    Call it with the values of `_ARGUMENTS` in their order. It runs without the interpreter's lock.
    """
    with lock:
        return _compiled(what, element, accumulator.itemsize, has_rows)


@cache
def _compiled(what: str, element: str, itemsize: int, has_rows: bool) -> Callable[..., None]:
    return compiled(lambda: _WindowWriter(what, element, itemsize, has_rows, registers().widths[0] // itemsize))


class _WindowWriter(KernelWriter):
    """A writer of the kernel of one result: a loop over vectors of queries, then one over the queries that are left."""

    def __init__(self, what: str, element: str, itemsize: int, has_rows: bool, lanes: int) -> None:
        super().__init__(f"volume_lookup_{what}", _ARGUMENTS, itemsize)
        self.what, self.has_rows = what, has_rows
        self.elements = _Elements(self, element)
        b, self.given = self.builder, SimpleNamespace(**self.arguments)
        self.n = SimpleNamespace(**{name: b.load(self.at(self.given.numbers, self.number(i))) for i, name in enumerate(FIELDS)})
        self.lanes = b.alloca(self.index, 6 * lanes)  # the pixel and the range of taps of each query along both axes
        self.bytes = b.bitcast(self.given.volume, self.ir.IntType(8).as_pointer())
        begin = self.number(0)
        for width in (lanes, 1):
            count = b.sdiv(b.sub(self.given.queries, begin), self.number(width))

            def block(i: Any, _: Sequence[Any], begin: Any = begin, width: int = width) -> None:
                self._queries(b.add(begin, b.mul(i, self.number(width))), width)

            self.loop(count, block)
            begin = b.mul(count, self.number(width))
        b.ret_void()

    def _queries(self, query: Any, width: int) -> None:
        """Write the code for a vector of queries."""
        self.width, self.type = width, self.vector(width)
        self.integers = self.ir.VectorType(self.index, width)
        x = self._axis("x", self.at(self.given.coords, query), self.given.taps_x)
        y = self._axis("y", self.at(self.given.coords, query, self.n.stride_coords), self.given.taps_y) if self.has_rows else None
        if self.what == VOLUME:
            self._spread(query, y, x)
            self._each_query(query, y, x, self._write)
            return
        self._fill_with_zeros()
        self._each_query(query, y, x, self._read)
        (self._blend if self.what == FORWARD else self._slopes)(query, y, x)

    # Windows.

    def _axis(self, along: str, coordinates: Any, taps: Any) -> SimpleNamespace:
        """Write where the windows are along an axis: their pixel, the weights of both corners, and the range of taps inside."""
        b, integers = self.builder, self.integers
        size, count, first, last = (getattr(self.n, f"{name}_{along}") for name in ("size", "taps", "first", "last"))
        coordinate = self.load(coordinates, self.type)
        low = self._floor(coordinate)
        upper = b.fsub(coordinate, low)
        pixel = self._pixel(low, b.sub(self.number(-1), last), b.sub(size, first))
        zero, end = self._everywhere(self.number(0)), self._everywhere(size)

        def tap(t: Any, inside: Sequence[Any]) -> list[Any]:
            at = b.add(pixel, self._everywhere(b.load(self.at(taps, t))))
            bounds = zip(inside, (zero, end), strict=True)
            return [b.add(total, b.zext(b.icmp_signed("<", at, bound), integers)) for total, bound in bounds]

        begin, end = self.loop(count, tap, [zero, zero])
        return SimpleNamespace(pixel=pixel, weights=(b.fsub(self._everywhere(self._one()), upper), upper), begin=begin, end=end)

    def _pixel(self, low: Any, before: Any, after: Any) -> Any:
        """Return rounded coordinates as integers, limited by two pixels whose windows are wholly outside; NaN is ``before``."""
        b, double = self.builder, self.ir.VectorType(self.ir.DoubleType(), self.width)
        wide = low if self.itemsize == 8 else b.fpext(low, double)
        # Positions are less than 2^53 pixels from 0, so that these numbers are exact.
        before, after = (self.vector_of(b.sitofp(bound, self.ir.DoubleType()), double) for bound in (before, after))
        limited = b.select(b.fcmp_ordered(">", wide, before), wide, before)
        limited = b.select(b.fcmp_ordered("<", limited, after), limited, after)
        return b.fptosi(limited, self.integers)

    def _each_query(self, query: Any, y: Any, x: Any, each: Callable[[Any, Any], None]) -> None:
        """Write the loop that visits the taps inside the slice of each query, with the addresses of their elements and dots."""
        b = self.builder
        axes = [axis for axis in (x, y) if axis is not None]
        for number, axis in enumerate(axes):
            for row, values in enumerate((axis.pixel, axis.begin, axis.end)):
                self.store(values, self.at(self.lanes, self.number((3 * number + row) * self.width)))

        def one(lane: Any, _: Sequence[Any]) -> None:
            found = [b.load(self.at(self.lanes, lane, self.number(row * self.width))) for row in range(3 * len(axes))]
            pixel = slice_ = self.at(self.bytes, b.load(self.at(self.given.slices, query, lane)))
            if self.what == VOLUME:
                self._clear(slice_)
            for position, stride in zip(found[::3], (self.n.stride_x, self.n.stride_y), strict=False):
                pixel = self.at(pixel, b.mul(position, stride))
            rows = found[4:] if self.has_rows else (self.number(0), self.number(1))
            self._each_tap(pixel, rows, found[1:3], lane, each)

        self.loop(self.number(self.width), one)

    def _each_tap(
        self, pixel: Any, rows: Sequence[Any], columns: Sequence[Any], lane: Any, each: Callable[[Any, Any], None]
    ) -> None:
        """Write loops over ranges of taps of a query, whose pixel has this address."""
        b, n, given = self.builder, self.n, self.given
        (top, bottom), (left, right) = rows, columns

        def row(i: Any, _: Sequence[Any]) -> None:
            r = b.add(top, i)
            begin = self.at(pixel, b.mul(b.load(self.at(given.taps_y, r)), n.stride_y)) if self.has_rows else pixel
            dots = self.at(self._dot(r, left), lane)

            def tap(k: Any, _: Sequence[Any]) -> None:
                offset = b.mul(b.load(self.at(given.taps_x, left, k)), n.stride_x)
                each(self.at(begin, offset), self.at(dots, b.mul(k, self.number(self.width))))

            self.loop(b.sub(right, left), tap)

        self.loop(b.sub(bottom, top), row)

    def _read(self, element: Any, dot: Any) -> None:
        self.builder.store(self.elements.load(element), dot)

    def _write(self, element: Any, dot: Any) -> None:
        self.elements.store(self.builder.load(dot), element)

    def _clear(self, slice_: Any) -> None:
        """Write zeros into a slice, whose elements are contiguous."""
        ir = self.ir
        fill = self.module.declare_intrinsic("llvm.memset", [slice_.type, self.index])
        zero, plain = ir.Constant(ir.IntType(8), 0), ir.Constant(ir.IntType(1), 0)
        self.builder.call(fill, [slice_, zero, self.n.slice_bytes, plain])

    # Dots and patches.

    def _fill_with_zeros(self) -> None:
        b = self.builder
        taps = b.mul(self.n.taps_y, self.n.taps_x)
        self.loop(
            taps, lambda t, _: self.store(self.zero(self.type), self.at(self.given.scratch, b.mul(t, self.number(self.width))))
        )

    def _blend(self, query: Any, y: Any, x: Any) -> None:
        """Write the patches of the dots: columns are blended in place, then rows."""
        b, n = self.builder, self.n

        def columns(r: Any, _: Sequence[Any]) -> None:
            def blend(i: Any, _: Sequence[Any]) -> None:
                left, right = self._corners(r, b.mul(i, n.pitch_x))
                self.store(self._weighted(x.weights, (left, right)), self._dot(r, i))

            self.loop(n.patch_x, blend)

        self.loop(n.taps_y, columns)

        def patch(m: Any, i: Any) -> None:
            at = [self._dot(b.add(b.mul(m, n.pitch_y), self.number(a)), i) for a in range(1 if y is None else 2)]
            rows = [self.load(each, self.type) for each in at]
            blended = rows[0] if y is None else self._weighted(y.weights, rows)
            self.store(b.fmul(blended, self._everywhere(self.given.scale)), self._patch(query, m, i))

        self._each_displacement(patch)

    def _slopes(self, query: Any, y: Any, x: Any) -> None:
        """Write the gradient of coords, NaN where one is not finite."""
        b, n = self.builder, self.n

        def displacement(m: Any, i: Any, sums: Sequence[Any]) -> list[Any]:
            r, c = b.mul(m, n.pitch_y), b.mul(i, n.pitch_x)
            g = self.load(self._patch(query, m, i), self.type)
            upper = self._corners(r, c)
            along_x = b.fsub(upper[1], upper[0])
            if y is None:
                return [self.multiply_add(sums[0], g, along_x)]
            lower = self._corners(b.add(r, self.number(1)), c)
            along_x = self._weighted(y.weights, (along_x, b.fsub(lower[1], lower[0])))
            along_y = self._weighted(x.weights, [b.fsub(*each) for each in zip(lower, upper, strict=True)])
            return [self.multiply_add(total, g, slope) for total, slope in zip(sums, (along_x, along_y), strict=True)]

        def row(m: Any, sums: Sequence[Any]) -> list[Any]:
            return self._added(sums, self._sums(n.patch_x, lambda i, parts: displacement(m, i, parts), len(sums)))

        axes = [x] if y is None else [x, y]
        totals = self._sums(n.patch_y, row, len(axes))
        for channel, total in enumerate(totals):
            slope = b.fmul(total, self._everywhere(self.given.scale))
            for axis in axes:
                # The upper weight is NaN where the coordinate is not finite; its difference with itself is 0 elsewhere.
                slope = b.fadd(slope, b.fsub(axis.weights[1], axis.weights[1]))
            self.store(slope, self.at(self.given.result, query, b.mul(n.stride_coords, self.number(channel))))

    def _sums(self, count: Any, add: Callable[[Any, Sequence[Any]], Sequence[Any]], width: int) -> list[Any]:
        """Write so many sums of ``count`` terms each, which ``add`` adds one by one, by way of sums of at most `CHAIN` terms."""
        b, most, zeros = self.builder, self.number(CHAIN), [self.zero(self.type)] * width

        def part(p: Any, totals: Sequence[Any]) -> list[Any]:
            begin = b.mul(p, most)
            left = b.sub(count, begin)
            size = b.select(b.icmp_signed("<", left, most), left, most)
            return self._added(totals, self.loop(size, lambda k, sums: add(b.add(begin, k), sums), zeros))

        return self.loop(b.sdiv(b.add(count, self.number(CHAIN - 1)), most), part, zeros)

    def _added(self, totals: Sequence[Any], sums: Sequence[Any]) -> list[Any]:
        return [self.builder.fadd(total, each) for total, each in zip(totals, sums, strict=True)]

    def _spread(self, query: Any, y: Any, x: Any) -> None:
        """Write the gradients of the taps into scratch memory."""
        b, n = self.builder, self.n
        self._fill_with_zeros()
        weights_y = (self._everywhere(self._one()),) if y is None else y.weights

        def displacement(m: Any, i: Any) -> None:
            g = b.fmul(self.load(self._patch(query, m, i), self.type), self._everywhere(self.given.scale))
            for a, weight_y in enumerate(weights_y):
                along_y = b.fmul(g, weight_y)
                for c, weight_x in enumerate(x.weights):
                    at = self._dot(b.add(b.mul(m, n.pitch_y), self.number(a)), b.add(b.mul(i, n.pitch_x), self.number(c)))
                    self.store(self.multiply_add(self.load(at, self.type), along_y, weight_x), at)

        self._each_displacement(displacement)

    def _each_displacement(self, body: Callable[[Any, Any], None]) -> None:
        self.loop(self.n.patch_y, lambda m, _: self.loop(self.n.patch_x, lambda i, _: body(m, i)) and None)

    def _corners(self, r: Any, c: Any) -> list[Any]:
        """Return the dots of a tap and of the next one in its row."""
        return [self.load(self._dot(r, self.builder.add(c, self.number(corner))), self.type) for corner in range(2)]

    def _dot(self, r: Any, c: Any) -> Any:
        """Return the address of the dots of a tap."""
        b = self.builder
        tap = b.add(b.mul(r, self.n.taps_x), c)
        return self.at(self.given.scratch, b.mul(tap, self.number(self.width)))

    def _patch(self, query: Any, m: Any, i: Any) -> Any:
        """Return the address of a displacement in the patches of the vector."""
        b, n = self.builder, self.n
        return self.at(self.given.patches, b.mul(m, n.stride_m), b.mul(i, n.stride_n), query)

    def _weighted(self, weights: Sequence[Any], values: Sequence[Any]) -> Any:
        return self.multiply_add(self.builder.fmul(weights[0], values[0]), weights[1], values[1])

    def _floor(self, values: Any) -> Any:
        name = f"llvm.floor.v{self.width}f{8 * self.itemsize}"
        floor = self.module.globals.get(name) or self.ir.Function(self.module, self.ir.FunctionType(self.type, [self.type]), name)
        return self.builder.call(floor, [values])

    def _one(self) -> Any:
        return self.ir.Constant(self.element, 1.0)

    def _everywhere(self, value: Any) -> Any:
        return self.vector_of(value, self.integers if value.type == self.index else self.type)


class _Elements:
    """Loads and stores of single elements of the volume, which are widened to sums and rounded from them.

    Their addresses need not be multiples of their size.
    """

    def __init__(self, writer: KernelWriter, name: str) -> None:
        ir = writer.ir
        self.ir, self.builder, self.element, self.name = ir, writer.builder, writer.element, name
        self.bits = {"float16": ir.IntType(16), "bfloat16": ir.IntType(16)}.get(name)
        self.word = ir.IntType(32)

    def load(self, pointer: Any) -> Any:
        """Write the load of an element."""
        b = self.builder
        found = b.load(b.bitcast(pointer, (self.bits or self.element).as_pointer()), align=1)
        if self.bits is None:
            return found
        bits = b.zext(found, self.word)
        return self._as_float(b.shl(bits, self._word(16))) if self.name == "bfloat16" else self._widened_half(bits)

    def store(self, value: Any, pointer: Any) -> None:
        """Write the store of a sum, rounded to nearest."""
        b = self.builder
        if self.bits is not None:
            bits = b.bitcast(value, self.word)
            value = b.trunc(self._bfloat16(bits) if self.name == "bfloat16" else self._half(bits), self.bits)
        b.store(value, b.bitcast(pointer, value.type.as_pointer()), align=1)

    def _widened_half(self, bits: Any) -> Any:
        """Write a half as a float: its exponent and fraction are moved, and a product corrects the bias of the exponent."""
        b = self.builder
        magnitude = b.shl(b.and_(bits, self._word(0x7FFF)), self._word(13))
        scaled = b.fmul(self._as_float(magnitude), self.ir.Constant(self.element, 2.0**112))
        infinite = b.or_(magnitude, self._word(0x7F800000))  # or NaN
        finite = b.icmp_unsigned("<", magnitude, self._word(0x7C00 << 13))
        found = b.select(finite, b.bitcast(scaled, self.word), infinite)
        return self._as_float(b.or_(found, b.shl(b.and_(bits, self._word(0x8000)), self._word(16))))

    def _half(self, bits: Any) -> Any:
        """Write the bits of the half that is nearest to a float, ties to even."""
        b = self.builder
        sign = b.lshr(b.and_(bits, self._word(0x80000000)), self._word(16))
        magnitude = b.and_(bits, self._word(0x7FFFFFFF))
        normal = b.lshr(b.sub(self._to_even(magnitude, 13), self._word(112 << 23)), self._word(13))
        # Adding 1/2 moves a number below 2^-14 to where the last place of a float is that of a half.
        half = self.ir.Constant(self.element, 0.5)
        subnormal = b.sub(b.bitcast(b.fadd(self._as_float(magnitude), half), self.word), self._word(0x3F000000))
        found = b.select(b.icmp_unsigned("<", magnitude, self._word(113 << 23)), subnormal, normal)
        infinity = self._word(0x7C00)
        found = b.select(b.icmp_unsigned("<", magnitude, self._word(0x47800000)), found, infinity)  # from 2^16 on
        found = b.select(b.icmp_unsigned(">", magnitude, self._word(0x7F800000)), self._word(0x7E00), found)
        return b.or_(found, sign)

    def _bfloat16(self, bits: Any) -> Any:
        """Write the bits of the bfloat16 that is nearest to a float, ties to even."""
        b = self.builder
        magnitude = b.and_(bits, self._word(0x7FFFFFFF))
        nan = b.or_(b.lshr(bits, self._word(16)), self._word(0x40))
        return b.select(
            b.icmp_unsigned(">", magnitude, self._word(0x7F800000)), nan, b.lshr(self._to_even(bits, 16), self._word(16))
        )

    def _to_even(self, bits: Any, dropped: int) -> Any:
        """Write the addition of half a unit of the last place that stays, a little less where that is even."""
        b = self.builder
        last = b.and_(b.lshr(bits, self._word(dropped)), self._word(1))
        return b.add(bits, b.add(last, self._word((1 << (dropped - 1)) - 1)))

    def _as_float(self, bits: Any) -> Any:
        return self.builder.bitcast(bits, self.element)

    def _word(self, value: int) -> Any:
        return self.ir.Constant(self.word, value)
