"""Windows and lattices of one axis: window sums and their transpose, and the pairs of pixels that are multiplied."""

from collections import Counter
from contextlib import ExitStack

import numpy as np
import oracle
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import axes

from cupycorr._correlation.cpu import window_sums
from cupycorr._correlation.cpu.lattice import Window, axis_plans, valid_bounds
from cupycorr._correlation.cpu.packing import packed_axis, packed_length
from cupycorr._correlation.problem import Axis
from cupycorr._cpu import workers

windows = st.builds(Window, taps=st.integers(1, 40), dilation=st.integers(1, 4), stride=st.integers(1, 6))


def ints(shape, seed, dtype=np.float64):
    """Return whole numbers, whose sums are exact in any order."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(dtype)


def along(values, axis):
    """Return the values with their last axis moved to ``axis``."""
    return np.ascontiguousarray(np.moveaxis(values, -1, axis))


def in_dirty_memory(function, *arguments):
    """Return the result of a function whose scratch memory was filled with NaN before."""
    workers._free.clear()
    with ExitStack() as memory:
        for _ in range(4):
            memory.enter_context(workers.scratch((2**16,), np.dtype(np.uint8))).fill(255)
    with ExitStack() as memory:
        return function(*arguments, memory).copy()


def window_sum(*arguments):
    return in_dirty_memory(window_sums.window_sum, *arguments)


def window_transpose(*arguments):
    return in_dirty_memory(window_sums.window_transpose, *arguments)


def plain_sum(values, window, count):
    """Return window sums along the last axis, computed by loops."""
    out = np.zeros((*values.shape[:-1], count), values.dtype)
    for i in range(count):
        for u in range(window.taps):
            out[..., i] += values[..., i * window.stride + u * window.dilation]
    return out


def plain_transpose(values, window, begin, end):
    """Return the transpose along the last axis, computed by loops."""
    out = np.zeros((*values.shape[:-1], end - begin), values.dtype)
    for i in range(values.shape[-1]):
        for u in range(window.taps):
            t = i * window.stride + u * window.dilation
            if begin <= t < end:
                out[..., t - begin] += values[..., i]
    return out


# Sums of neighbours --------------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(window=windows, count=st.integers(1, 40), spare=st.integers(0, 5), axis=st.integers(0, 2), seed=st.integers(0, 9))
@example(window=Window(32, 1, 1), count=60, spare=0, axis=2, seed=0)  # by doubling
@example(window=Window(32, 1, 16), count=20, spare=3, axis=1, seed=0)  # by doubling, most sums thrown away
@example(window=Window(3, 1, 9), count=7, spare=0, axis=0, seed=0)  # each tap by itself
def test_window_sums_are_the_loops(window, count, spare, axis, seed):
    # Fewer than a stride's worth of spare values do not make another window.
    length = (count - 1) * window.stride + (window.taps - 1) * window.dilation + 1 + min(spare, window.stride - 1)
    values = ints((2, 3, length), seed)
    got = window_sum(along(values, axis), axis, window)
    assert np.array_equal(np.moveaxis(got, axis, -1), plain_sum(values, window, count))


@settings(max_examples=300)
@given(
    window=windows,
    count=st.integers(1, 40),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    axis=st.integers(0, 2),
    seed=st.integers(0, 9),
)
@example(window=Window(32, 1, 1), count=60, cut=(0, 1), axis=2, seed=0)  # by doubling
@example(window=Window(2, 3, 5), count=9, cut=(0, 1), axis=1, seed=0)  # each tap by itself
def test_transposed_window_sums_are_the_loops(window, count, cut, axis, seed):
    reach = (count - 1) * window.stride + (window.taps - 1) * window.dilation + 1
    begin, end = sorted(round(share * reach) for share in cut)
    if begin == end:
        begin, end = 0, reach
    values = ints((2, 3, count), seed)
    got = window_transpose(along(values, axis), axis, window, begin, end)
    assert np.array_equal(np.moveaxis(got, axis, -1), plain_transpose(values, window, begin, end))


@given(window=windows, count=st.integers(1, 30), seed=st.integers(0, 9))
def test_the_transpose_is_the_adjoint_of_the_sum(window, count, seed):
    reach = (count - 1) * window.stride + (window.taps - 1) * window.dilation + 1
    values, cotangent = ints((4, reach), seed), ints((4, count), seed + 1)
    summed, transposed = window_sum(values, 1, window), window_transpose(cotangent, 1, window, 0, reach)
    assert np.vdot(cotangent, summed) == np.vdot(transposed, values)


@pytest.mark.parametrize("function", ["sum", "transpose"])
@given(window=windows, count=st.integers(1, 20), at=st.floats(0, 1), value=st.sampled_from([np.inf, -np.inf, np.nan]))
@example(window=Window(32, 1, 1), count=60, at=0.4, value=np.inf)
@example(window=Window(32, 1, 1), count=60, at=0.4, value=np.nan)
def test_values_that_are_not_finite_affect_their_own_windows_only(function, window, count, at, value):
    reach = (count - 1) * window.stride + (window.taps - 1) * window.dilation + 1
    values = ints((1, reach if function == "sum" else count), 0)
    values[0, round(at * (values.shape[1] - 1))] = value
    if function == "sum":
        got, want = window_sum(values, 1, window), plain_sum(values, window, count)
    else:
        got, want = window_transpose(values, 1, window, 0, reach), plain_transpose(values, window, 0, reach)
    assert np.array_equal(got, want, equal_nan=True)


def test_long_windows_of_single_precision_lose_no_digits():
    values = np.random.default_rng(0).random((1, 5000)).astype(np.float32)
    got = window_sum(values, 1, Window(1024, 1, 1))
    want = np.convolve(values[0].astype(np.float64), np.ones(1024), "valid")
    # Sums of 1024 by doubling round ten times; one running sum would round 1024 times and drift over the row.
    assert np.abs(got[0] / want - 1).max() <= 10 * 2.0**-24


@pytest.mark.parametrize("window", [Window(1, 1, 2), Window(5, 1, 1), Window(9, 2, 3)], ids=str)
def test_the_values_summed_are_left_as_they_were(window):
    values = ints((3, 40), 0)
    values.flags.writeable = False
    window_sum(values, 1, window)
    window_transpose(values, 1, window, 0, 40)
    assert np.array_equal(values, ints((3, 40), 0))


# Pairs of pixels -----------------------------------------------------------------------------------------------------


def definition(axis):
    """Return the valid (output, displacement, position in input1, position in input2), each counted once."""
    pairs = oracle.pairs(
        axis.size1, axis.size2, axis.kernel, axis.patch, axis.stride, axis.padding, axis.dilation, axis.step, axis.offset
    )
    return Counter(pairs)


def volumes_of(axis):
    """Yield the lattices of every plan, and for each index of their one-pixel volume the outputs that sum it."""
    for plan in axis_plans(axis):
        readers = {}
        for i in range(axis.out):
            for u in range(plan.window.taps):
                readers.setdefault(i * plan.window.stride + u * plan.window.dilation, []).append(i)
        yield plan.lattices, readers


def positions(lattice, t, m):
    return lattice.first + lattice.stride * t, lattice.origin + lattice.spacing * (lattice.pitch * t + lattice.advance * m)


def all_lattices(axis):
    """Yield every lattice of an axis, with input1 and with input2 as the query image."""
    for lattices, _ in volumes_of(axis):
        for lattice in lattices:
            yield from (lattice, *lattice.with_roles_exchanged())


@settings(max_examples=300)
@given(axis=axes())
@example(axis=Axis(32, 25, 16, 0, 1, 1, 0, 130, 130))  # windows that overlap
@example(axis=Axis(2, 3, 7, 0, 1, 1, 0, 33, 33))  # windows apart
@example(axis=Axis(3, 5, 2, 1, 4, 3, -2, 25, 31))  # stride, taps and displacements share no step
def test_every_plan_has_the_products_of_the_definition_exactly_once(axis):
    for lattices, readers in volumes_of(axis):
        found = Counter()
        for lattice in lattices:
            for m in range(lattice.patch):
                for t in range(*lattice.valid_queries(m)):
                    y, y2 = positions(lattice, t, m)
                    found.update((i, m, y, y2) for i in readers.get(t, ()))
        assert found == definition(axis)


@settings(max_examples=300)
@given(axis=axes())
@example(axis=Axis(1, 5, 6, 0, 1, 4, 0, 40, 40))
@example(axis=Axis(3, 6, 4, 2, 2, 3, 5, 30, 20))
def test_input2_has_the_same_products(axis):
    for lattices, readers in volumes_of(axis):
        found = Counter()
        for lattice in lattices:
            for exchanged in lattice.with_roles_exchanged():
                for k in range(exchanged.patch):
                    m = exchanged.patch_first + exchanged.patch_step * k
                    for t in range(*exchanged.valid_queries(k)):
                        y2, y = positions(exchanged, t, k)
                        found.update((i, m, y, y2) for i in readers.get(t + exchanged.skew_first + exchanged.skew * k, ()))
        assert found == definition(axis)


@settings(max_examples=200)
@given(axis=axes())
def test_all_valid_pairs_are_within_the_bounds_of_their_lattice(axis):
    for lattice in all_lattices(axis):
        queries, ms = valid_bounds(lattice)
        valid = [(t, m) for m in range(lattice.patch) for t in range(*lattice.valid_queries(m))]
        assert bool(valid) <= (queries[0] < queries[1] and ms[0] < ms[1])
        for t, m in valid:
            y, y2 = positions(lattice, t, m)
            assert 0 <= y < lattice.size
            assert lattice.low <= y2 < lattice.high
            assert queries[0] <= t < queries[1]
            assert ms[0] <= m < ms[1]
            assert lattice.volume_inside()[0] <= t + lattice.skew_first + lattice.skew * m < lattice.volume_inside()[1]


@settings(max_examples=300)
@given(axis=axes(), data=st.data())
@example(axis=Axis(1, 3, 7, 0, 1, 1, 0, 40, 40), data=None)  # a stride beyond the patch: only what is read is packed
@example(axis=Axis(1, 9, 1, 0, 1, 50, 0, 20, 500), data=None)  # steps beyond the queries
def test_a_packed_axis_holds_what_its_queries_read_and_nothing_between(axis, data):
    for lattice in all_lattices(axis):
        begin, end, m, m_end = 0, lattice.count, 0, lattice.patch
        if data is not None:
            begin, end = sorted(data.draw(st.tuples(st.integers(0, lattice.count), st.integers(0, lattice.count))))
            m, m_end = sorted(data.draw(st.tuples(st.integers(0, lattice.patch), st.integers(0, lattice.patch))))
        if begin == end or m == m_end:
            continue
        packed = packed_axis(lattice, begin, end - begin, (m, m_end))
        held = {index: run.first + run.step * (index - at) for (at, at_end), run in packed.runs for index in range(at, at_end)}
        assert sorted(held) == list(range(packed.length))
        assert packed.length == packed_length(lattice, end - begin, m_end - m)
        found = {}
        first, first_m = (begin + end) // 2, (m + m_end) // 2
        for phase in packed.phases_of(first - begin, (first_m - m, m_end - m)):
            for k in range(phase.count):
                for t in range(end - first):
                    index = phase.base + t + packed.step * k
                    found[first + t, first_m + phase.first + packed.pitch * k] = held[index]
        wanted = {(t, n): positions(lattice, t, n)[1] for t in range(first, end) for n in range(first_m, m_end)}
        assert found == wanted
        read = {positions(lattice, t, n)[1] for t in range(begin, end) for n in range(m, m_end)}
        assert set(held.values()) == read


@given(taps=st.integers(1, 9), dilation=st.integers(1, 4), stride=st.integers(1, 6), begin=st.integers(0, 9), n=st.integers(1, 9))
def test_a_window_reaches_from_its_first_tap_to_its_last(taps, dilation, stride, begin, n):
    read = [i * stride + u * dilation for i in range(begin, begin + n) for u in range(taps)]
    assert Window(taps, dilation, stride).input_range(begin, begin + n) == (min(read), max(read) + 1)


def test_a_window_is_summed_in_memory_or_tap_by_tap():
    in_memory, tap_by_tap = axis_plans(Axis(32, 25, 1, 0, 1, 1, 0, 369, 369))
    assert (list(in_memory.taps), in_memory.window) == ([0], Window(32, 1, 1))
    assert (list(tap_by_tap.taps), tap_by_tap.window) == (list(range(32)), Window(1, 1, 1))
