"""The kernels that reduce the scores of a task, compiled by LLVM: the best displacements, and the sums of a mean.

    scores (slow, fast, rows, columns)  ->  result (planes, rows, columns)

A kernel keeps what it knows of some vectors of columns in registers and goes through the displacements in the order of their
channels, so that its results depend neither on the division into vectors nor on threads. Displacements may be excluded: at each
row a range of indices along one axis of the patch remains, and at each column one along the other axis. Channels and indices are
numbers of the scores' type, which holds whole numbers up to `MOST_CHANNELS` exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..._cpu.llvm import OFFSETS, VALUE, VALUES, KernelWriter, address, compiled, lock, registers, why_not

__all__ = ["FIELDS", "MOST_CHANNELS", "NO_LIMITS", "RANGE", "address", "best_kernel", "mean_kernel", "why_not"]

MOST_CHANNELS = 2**24
RANGE = 4  # numbers of each row: begin and end of the displacements that remain, along the slow and the fast axis

# What limits the displacements of a column: nothing, or a range of indices along one axis.
NO_LIMITS, SLOW, FAST = LIMITS = ("none", "slow", "fast")

# The int64 numbers of a call: sizes and strides in elements, the index pair of the first displacement, and the patch's columns.
FIELDS = (
    *("rows", "columns", "along_slow", "along_fast", "along_row", "plane", "result_row"),
    *("first_slow", "first_fast", "patch"),
)
_ARGUMENTS = dict(values=VALUES, ranges=OFFSETS, limits=VALUES, numbers=OFFSETS, result=VALUES)
_SHARP = dict(factor=VALUE, inverse=VALUE)

_BEST_VECTORS, _MEAN_VECTORS = 4, 2  # vectors of columns at once: comparisons of one vector depend on each other


def best_kernel(count: int, dtype: np.dtype, limits: str, columns: int) -> Callable[..., None]:
    """Return the kernel for the ``count`` best scores: its result has their planes, and then those of their channels.

    Call it with the addresses of scores, row ranges, column limits (2, columns), numbers and the result. A displacement that
    there is not has the score negative infinity and the channel -1.
    """
    with lock:
        return _best(count, np.dtype(dtype).itemsize, limits, columns < _lanes(np.dtype(dtype)))


def mean_kernel(dtype: np.dtype, limits: str, columns: int) -> Callable[..., None]:
    """Return the kernel for the sums of `reductions.Weights`, in four planes.

    Call it like `best_kernel`, and with the factor of scores and the inverse of the divisor of their differences.
    """
    with lock:
        return _mean(np.dtype(dtype).itemsize, limits, columns < _lanes(np.dtype(dtype)))


def _lanes(dtype: np.dtype) -> int:
    return max(registers().widths) // dtype.itemsize


@cache
def _best(count: int, itemsize: int, limits: str, narrow: bool) -> Callable[..., None]:
    writer = _BestWriter if count == 1 else _SortedWriter
    return compiled(lambda: writer(count, itemsize, limits, narrow))


@cache
def _mean(itemsize: int, limits: str, narrow: bool) -> Callable[..., None]:
    return compiled(lambda: _MeanWriter(itemsize, limits, narrow))


class _ReductionWriter(KernelWriter):
    """A writer of the loops over rows and vectors of columns; subclasses write the reduction of some vectors."""

    vectors: int

    def __init__(self, name: str, arguments: dict[str, str], itemsize: int, limits: str, narrow: bool) -> None:
        super().__init__(name, arguments, itemsize)
        b = self.builder
        self.limits, self.lanes = limits, 1 if narrow else max(registers().widths) // itemsize
        self.type = self.vector(self.lanes)
        self.given = SimpleNamespace(**self.arguments)
        self.n = SimpleNamespace(**{x: b.load(self.at(self.given.numbers, self.number(i))) for i, x in enumerate(FIELDS)})
        self.lowest, self.none = self.constant(-np.inf), self.constant(-1.0)
        self.loop(self.n.rows, self._row)
        b.ret_void()

    def constant(self, value: float) -> Any:
        """Return a vector with one constant in all lanes."""
        return self.ir.Constant(self.type, [value] * self.lanes)

    def everywhere(self, value: Any) -> Any:
        """Write a vector with one value in all lanes; an integer is converted."""
        return self.vector_of(self.builder.sitofp(value, self.element) if value.type == self.index else value, self.type)

    def _row(self, row: Any, _: Sequence[Any]) -> None:
        """Write the code for a row: vectors side by side, then single ones, of which the last may overlap the one before."""
        b, side_by_side = self.builder, self.number(self.vectors * self.lanes)
        fields = self.at(self.given.ranges, b.mul(row, self.number(RANGE)))
        ranges = [b.load(self.at(fields, self.number(i))) for i in range(RANGE)]
        groups = b.sdiv(self.n.columns, side_by_side)
        self.loop(groups, lambda i, _: self._columns(row, ranges, b.mul(i, side_by_side), self.vectors))
        begin, lanes = b.mul(groups, side_by_side), self.number(self.lanes)
        rest = b.sdiv(b.add(b.sub(self.n.columns, begin), self.number(self.lanes - 1)), lanes)
        last = b.sub(self.n.columns, lanes)
        self.loop(rest, lambda i, _: self._columns(row, ranges, self.smaller(b.add(begin, b.mul(i, lanes)), last), 1))

    def _columns(self, row: Any, ranges: list, column: Any, vectors: int) -> None:
        b = self.builder
        first = self.at(self.given.values, b.mul(row, self.n.along_row), column)
        result = self.at(self.given.result, b.mul(row, self.n.result_row), column)
        parts = [self.number(v * self.lanes) for v in range(vectors)]
        limits = []
        if self.limits != NO_LIMITS:
            begins = self.at(self.given.limits, column)
            ends = self.at(begins, self.n.columns)
            limits = [(self.load(self.at(begins, at), self.type), self.load(self.at(ends, at), self.type)) for at in parts]
        self.reduce([self.at(first, at) for at in parts], ranges, limits, [self.at(result, at) for at in parts])

    def reduce(self, starts: list, ranges: list, limits: list, results: list) -> None:
        """Write the reduction of vectors of columns, from the addresses of their first scores to those of their results."""
        raise NotImplementedError

    def displacements(
        self, starts: list, ranges: list, body: Callable[..., list], carried: Sequence[Any], after_row: Any = None
    ) -> list:
        """Write the loops over the displacements that remain, which call ``body(slow, fast, scores, carried)``.

        After each row of displacements ``after_row(slow, carried)`` is called, if it is given.
        """
        b = self.builder
        slow_begin, slow_end, fast_begin, fast_end = ranges

        def slow(i: Any, values: Sequence[Any]) -> Sequence[Any]:
            s = b.add(slow_begin, i)
            rows = [self.at(start, b.mul(s, self.n.along_slow)) for start in starts]

            def fast(j: Any, inner: Sequence[Any]) -> list:
                f = b.add(fast_begin, j)
                at = b.mul(f, self.n.along_fast)
                return body(s, f, [self.load(self.at(row, at), self.type) for row in rows], inner)

            found = self.loop(b.sub(fast_end, fast_begin), fast, values)
            return found if after_row is None else after_row(s, found)

        return self.loop(b.sub(slow_end, slow_begin), slow, carried)

    def inside(self, slow: Any, fast: Any, limits: list) -> list:
        """Write for each vector the mask of the columns at which a displacement remains; None if there are no limits."""
        b = self.builder
        if self.limits == NO_LIMITS:
            return []
        index = self.everywhere(slow if self.limits == SLOW else fast)
        return [b.and_(b.fcmp_ordered(">=", index, begin), b.fcmp_ordered("<", index, end)) for begin, end in limits]

    def channel(self, slow: Any, fast: Any) -> Any:
        """Write the channel of a displacement."""
        b = self.builder
        m, n = b.add(self.n.first_slow, slow), b.add(self.n.first_fast, fast)
        return self.everywhere(b.add(b.mul(m, self.n.patch), n))

    def higher(self, scores: Any, others: Any) -> Any:
        """Write the mask where a score comes before another one: it is higher, or it alone is NaN."""
        b = self.builder
        return b.and_(b.fcmp_unordered(">", scores, others), b.fcmp_ordered("ord", others, others))

    def plane(self, result: Any, plane: Any) -> Any:
        """Return the address in a plane of the result."""
        return self.at(result, self.builder.mul(plane, self.n.plane))


class _BestWriter(_ReductionWriter):
    """A writer of the kernel for the best score alone, which is kept in registers."""

    vectors = _BEST_VECTORS

    def __init__(self, count: int, itemsize: int, limits: str, narrow: bool) -> None:
        super().__init__("best", _ARGUMENTS, itemsize, limits, narrow)

    def reduce(self, starts: list, ranges: list, limits: list, results: list) -> None:
        """See `_ReductionWriter`."""
        b, count = self.builder, len(starts)
        # Without limits the first displacement is found even where all scores are negative infinity.
        nothing = self.none if limits else self.channel(ranges[0], ranges[2])

        def body(slow: Any, fast: Any, scores: list, found: Sequence[Any]) -> list:
            channel, masks = self.channel(slow, fast), self.inside(slow, fast, limits)
            best, channels = list(found[:count]), list(found[count:])
            for v, score in enumerate(scores):
                taken = self.higher(score, best[v])
                if limits:
                    taken = b.and_(masks[v], b.or_(taken, b.fcmp_ordered("<", channels[v], self.zero(self.type))))
                best[v], channels[v] = b.select(taken, score, best[v]), b.select(taken, channel, channels[v])
            return best + channels

        found = self.displacements(starts, ranges, body, [self.lowest] * count + [nothing] * count)
        for v, result in enumerate(results):
            self.store(found[v], result)
            self.store(found[count + v], self.plane(result, self.number(1)))


class _SortedWriter(_ReductionWriter):
    """A writer of the kernel for several best scores, which are kept sorted in the result and seldom change."""

    vectors = 1

    def __init__(self, count: int, itemsize: int, limits: str, narrow: bool) -> None:
        self.count = count
        super().__init__("sorted", _ARGUMENTS, itemsize, limits, narrow)

    def reduce(self, starts: list, ranges: list, limits: list, results: list) -> None:
        """See `_ReductionWriter`."""
        b, (result,) = self.builder, results
        count = self.number(self.count)

        def clear(rank: Any, _: Sequence[Any]) -> None:
            self.store(self.lowest, self.plane(result, rank))
            self.store(self.none, self.plane(result, b.add(count, rank)))

        self.loop(count, clear)

        def body(slow: Any, fast: Any, scores: list, last: Sequence[Any]) -> list:
            taken = self._before(scores[0], *last)
            if limits:
                taken = b.and_(taken, self.inside(slow, fast, limits)[0])
            bits = self.ir.IntType(self.lanes)
            some = b.icmp_unsigned("!=", b.bitcast(taken, bits), self.ir.Constant(bits, 0))
            self._insert(result, b.select(some, count, self.number(0)), taken, scores[0], self.channel(slow, fast))
            return self._ranked(result, self.number(self.count - 1))

        self.displacements(starts, ranges, body, [self.lowest, self.none])

    def _insert(self, result: Any, ranks: Any, taken: Any, score: Any, channel: Any) -> None:
        """Write the insertion of scores where they are taken: from the first rank that each comes before, all move down."""
        b = self.builder
        nowhere = self.ir.Constant(taken.type, [0] * self.lanes)

        def rank(i: Any, moving: Sequence[Any]) -> list:
            moved, score, channel = moving
            kept = self._ranked(result, i)
            moved = b.and_(taken, b.or_(moved, self._before(score, *kept)))
            for old, new, plane in ((kept[0], score, i), (kept[1], channel, b.add(i, self.number(self.count)))):
                self.store(b.select(moved, new, old), self.plane(result, plane))
            return [moved, b.select(moved, kept[0], score), b.select(moved, kept[1], channel)]

        self.loop(ranks, rank, [nowhere, score, channel])

    def _ranked(self, result: Any, rank: Any) -> list:
        """Write the loads of the score and the channel of a rank."""
        planes = rank, self.builder.add(rank, self.number(self.count))
        return [self.load(self.plane(result, plane), self.type) for plane in planes]

    def _before(self, score: Any, other: Any, channel: Any) -> Any:
        """Write the mask where a score comes before that of a rank, which may be empty."""
        b = self.builder
        return b.or_(self.higher(score, other), b.fcmp_ordered("<", channel, self.zero(self.type)))


class _MeanWriter(_ReductionWriter):
    """A writer of the kernel for the sums of a mean: it finds the highest score, and then adds up the weights."""

    vectors = _MEAN_VECTORS

    def __init__(self, itemsize: int, limits: str, narrow: bool) -> None:
        super().__init__("mean", {**_ARGUMENTS, **_SHARP}, itemsize, limits, narrow)

    def reduce(self, starts: list, ranges: list, limits: list, results: list) -> None:
        """See `_ReductionWriter`."""
        b, count, zero = self.builder, len(starts), self.zero(self.type)
        factor, inverse = self.everywhere(self.given.factor), self.everywhere(self.given.inverse)

        def highest(slow: Any, fast: Any, scores: list, found: Sequence[Any]) -> list:
            masks = self.inside(slow, fast, limits)
            new = []
            for v, (score, best) in enumerate(zip(scores, found, strict=True)):
                higher = b.fcmp_ordered(">", score, best)  # NaN is not noticed here: its weight is NaN
                new.append(b.select(b.and_(masks[v], higher) if limits else higher, score, best))
            return new

        peaks = self.displacements(starts, ranges, highest, [self.lowest] * count)
        # Where all scores are negative infinity, weights are 0.
        bases = [b.fmul(b.select(b.fcmp_ordered("==", peak, self.lowest), zero, peak), factor) for peak in peaks]

        def weigh(slow: Any, fast: Any, scores: list, found: Sequence[Any]) -> list:
            masks, index = self.inside(slow, fast, limits), self.everywhere(b.add(self.n.first_fast, fast))
            new = list(found)
            for v, score in enumerate(scores):
                weight = self._exponential(b.fmul(b.fsub(b.fmul(score, factor), bases[v]), inverse))
                if limits:
                    weight = b.select(masks[v], weight, zero)
                new[v] = b.fadd(new[v], weight)
                new[3 * count + v] = self.multiply_add(new[3 * count + v], weight, index)
            return new

        def after_row(slow: Any, found: Sequence[Any]) -> list:
            index, new = self.everywhere(b.add(self.n.first_slow, slow)), list(found)
            for v in range(count):
                new[count + v] = b.fadd(new[count + v], new[v])
                new[2 * count + v] = self.multiply_add(new[2 * count + v], new[v], index)
                new[v] = zero
            return new

        # Each vector has a sum over a row of displacements, a sum over all, and two sums weighted with indices.
        sums = self.displacements(starts, ranges, weigh, [zero] * (4 * count), after_row)
        for v, result in enumerate(results):
            for plane, value in enumerate((peaks[v], *(sums[part * count + v] for part in (1, 2, 3)))):
                self.store(value, self.plane(result, self.number(plane)))

    def _exponential(self, x: Any) -> Any:
        """Write exp(x) for x <= 0: 2^k times the polynomial of the rest; 0 below the smallest normal number."""
        b, of = self.builder, _EXPONENTIALS[self.itemsize]
        vanishes = b.fcmp_ordered("<", x, self.constant(of.lowest))  # not NaN, which stays
        # Adding the large number rounds to a whole one, whose bits are then the lowest of the sum.
        shifted = b.fadd(b.fmul(x, self.constant(1 / math.log(2))), self.constant(of.rounding))
        whole = b.fsub(shifted, self.constant(of.rounding))
        rest = self.multiply_add(x, whole, self.constant(-of.log2_high))
        rest = self.multiply_add(rest, whole, self.constant(-of.log2_low))
        value = self.constant(1 / math.factorial(of.degree))
        for power in reversed(range(of.degree)):
            value = self.multiply_add(self.constant(1 / math.factorial(power)), value, rest)
        integer = self.ir.IntType(8 * self.itemsize)
        integers = self.ir.VectorType(integer, self.lanes)
        bias, shift = (self.ir.Constant(integers, [each] * self.lanes) for each in (of.bias, of.mantissa))
        bits = b.shl(b.add(b.bitcast(shifted, integers), bias), shift)
        return b.select(vanishes, self.zero(self.type), b.fmul(value, b.bitcast(bits, self.type)))


# By the bytes of a number: the lowest argument, what rounds to whole numbers, log 2 in two parts of which the first has few
# digits, the degree of the Taylor polynomial on half an interval of log 2, and the bias and the digits of the number's exponent.
_EXPONENTIALS = {
    4: SimpleNamespace(
        lowest=-87.0,
        rounding=1.5 * 2.0**23,
        log2_high=0.693359375,
        log2_low=-2.12194440054690583e-4,
        degree=7,
        bias=127,
        mantissa=23,
    ),
    8: SimpleNamespace(
        lowest=-708.0,
        rounding=1.5 * 2.0**52,
        log2_high=6.93147180369123816490e-01,
        log2_low=1.90821492927058770002e-10,
        degree=13,
        bias=1023,
        mantissa=52,
    ),
}
