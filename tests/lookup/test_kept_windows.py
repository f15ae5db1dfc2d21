"""Kept windows: each lookup of a sequence is bit for bit the stateless one, and only taps that enter a window are computed."""

import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from layouts import aligned
from lookup_cases import NAMED, STRANGE, Case, lookups

from cupycorr import correlation_lookup
from cupycorr._cpu import llvm, workers
from cupycorr._lookup.cpu import kept_windows, tables
from cupycorr._lookup.cpu.kept_windows import KeptWindows
from cupycorr._lookup.problem import Operands, parameters, problem

pytestmark = pytest.mark.skipif(llvm.why_not() is not None, reason=str(llvm.why_not()))


def as_list(maps):
    return maps if isinstance(maps, list) else [maps]


class Sequence:
    """The state of a lookup, and the comparison of each step with the stateless lookup."""

    def __init__(self, case):
        self.case = case
        self.x1, self.x2, self.coords = case.arrays()
        self.kept = KeptWindows(case.problem(), self.x1, as_list(self.x2))
        self.out = np.full(self.kept.out_shape, 7, self.x1.dtype)

    def check(self, coords):
        self.kept.lookup(coords, self.out)
        want = correlation_lookup(self.x1, self.x2, coords, **self.case.parameters, variant="simd")
        np.testing.assert_array_equal(self.out, want)
        np.testing.assert_array_equal(np.signbit(self.out), np.signbit(want))


def whole_steps(rng, coords):
    return coords + rng.integers(-2, 3, coords.shape)


def small_steps(rng, coords):
    return coords + 0.3 * rng.standard_normal(coords.shape)


def large_steps(rng, coords):
    return coords + 6 * rng.standard_normal(coords.shape)


def jumps_of_some(rng, coords):
    return coords + np.where(rng.random(coords.shape) < 0.1, 40 * rng.standard_normal(coords.shape), 0)


def nothing(rng, coords):
    return coords


def fractions_only(rng, coords):
    with np.errstate(invalid="ignore"):
        return np.floor(coords) + rng.random(coords.shape)


def strange_numbers(rng, coords):
    return np.where(rng.random(coords.shape) < 0.2, rng.choice(STRANGE, coords.shape), coords)


def home(rng, coords):
    return np.broadcast_to(np.arange(coords.shape[-1], dtype=float), coords.shape)


STEPS = (whole_steps, small_steps, large_steps, jumps_of_some, nothing, fractions_only, strange_numbers, home)


def walk(case, steps, seed):
    sequence = Sequence(case)
    coords = sequence.coords.astype(np.float64)
    for number, step in enumerate(steps):
        coords = step(np.random.default_rng([seed, number]), coords)
        sequence.check(coords.astype(sequence.coords.dtype))


UNINDEXED = {name: case for name, case in NAMED.items() if not {"index1", "index2"} & set(case.parameters)}


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", UNINDEXED.values(), ids=UNINDEXED)
def test_named_lookups_equal_the_stateless_ones_after_every_step(case, dtype):
    order = np.random.default_rng(0).permutation(2 * len(STEPS))
    walk(case.of(dtype), [STEPS[number % len(STEPS)] for number in order], seed=1)


sequences = st.lists(st.sampled_from(STEPS), min_size=1, max_size=8)
drawn = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def check_drawn(case, steps, seed):
    if not {"index1", "index2"} & set(case.parameters):
        walk(case, steps, seed)


@given(lookups(dtypes=("float32", "float64")), sequences, st.integers(0, 99))
@drawn
def test_drawn_lookups_equal_the_stateless_ones_after_every_step(case, steps, seed):
    check_drawn(case, steps, seed)


@pytest.mark.slow
@given(lookups(dtypes=("float32", "float64")), sequences, st.integers(0, 99))
@settings(drawn, max_examples=150)
def test_many_drawn_lookups_equal_the_stateless_ones_after_every_step(case, steps, seed):
    check_drawn(case, steps, seed)


@pytest.mark.parametrize("threads", [1, 7])
def test_any_number_of_threads_gives_the_stateless_bits(monkeypatch, threads):
    monkeypatch.setattr(tables, "FEWEST", 1)
    with workers.team_of(threads):
        walk(NAMED["RAFT's order"], STEPS, seed=2)


# Only what entered is computed: maps that are used in place turn to NaN after the first lookup.


def on_nan_maps(moved_y, moved_x, height=9, width=11):
    """Return which outputs (m, n, i, j) are NaN where all windows move after the maps have turned to NaN."""
    rng = np.random.default_rng(0)
    x1, x2 = (aligned(rng.standard_normal((1, height, width, 16), dtype=np.float32)).transpose(0, 3, 1, 2) for _ in range(2))
    coords = np.stack(np.meshgrid(np.arange(width), np.arange(height)))[None].astype(np.float32)
    operands = Operands(x1.shape, (x2.shape,), False, coords.shape, "float32")
    kept = KeptWindows(problem(parameters(5), operands), x1, [x2])
    out = np.empty(kept.out_shape, np.float32)
    kept.lookup(coords + 0.25, out)
    assert np.isfinite(out).all()
    x2[...] = np.nan
    kept.lookup(coords + np.float32(0.75) + np.array([moved_x, moved_y], np.float32)[:, None, None], out)
    return np.isnan(out[0])


def test_a_window_that_did_not_move_computes_no_dot():
    assert not on_nan_maps(0, 0).any()


@pytest.mark.parametrize(("moved_y", "moved_x"), [(1, 0), (-1, 0), (0, 1), (0, -2), (1, -1), (2, 0)])
def test_a_window_that_moved_computes_the_taps_that_entered_and_no_other(moved_y, moved_x):
    found = on_nan_maps(moved_y, moved_x)
    m, n, i, j = np.indices(found.shape)
    want = np.zeros_like(found)
    for a, b in np.ndindex(2, 2):
        row, column = m + a, n + b
        y, x = i + moved_y + row - 2, j + moved_x + column - 2
        inside = (y >= 0) & (y < 9) & (x >= 0) & (x < 11)
        stayed = (row + moved_y >= 0) & (row + moved_y < 6) & (column + moved_x >= 0) & (column + moved_x < 6)
        want |= inside & ~stayed
    np.testing.assert_array_equal(found, want)


def test_forgotten_windows_are_computed_again():
    sequence = Sequence(NAMED["RAFT"])
    sequence.check(sequence.coords)
    for state in sequence.kept._states:
        state.dots[...] = 1e9
    sequence.kept.forget()
    sequence.check(sequence.coords)


def test_a_lookup_that_fails_leaves_no_windows_behind(monkeypatch):
    sequence = Sequence(NAMED["RAFT"])
    sequence.check(sequence.coords)

    def fail(*arguments, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kept_windows.Blend, "write", fail)
        patch.setattr(kept_windows.DotProducts, "compute", fail)
        with pytest.raises(KeyboardInterrupt):
            sequence.kept.lookup(sequence.coords + 50, sequence.out)
    sequence.check(sequence.coords + 50)
    sequence.check(sequence.coords)


def test_threads_may_look_up_at_the_same_time():
    sequence = Sequence(NAMED["RAFT"])
    shifts = [np.float32(shift) for shift in (0, 0.5, 1.25, -3)]
    want = [correlation_lookup(sequence.x1, sequence.x2, sequence.coords + shift, variant="simd") for shift in shifts]
    found = [np.empty_like(sequence.out) for _ in shifts]

    def look_up(shift, out):
        for _ in range(5):
            sequence.kept.lookup(sequence.coords + shift, out)

    threads = [threading.Thread(target=look_up, args=each) for each in zip(shifts, found, strict=True)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for one, other in zip(found, want, strict=True):
        assert one.tobytes() == other.tobytes()


# Memory, and bad input.


def test_the_state_holds_a_number_for_each_tap_and_the_place_of_each_window():
    shape, levels = (1, 16, 55, 128), [(1, 16, 55 >> level, 128 >> level) for level in range(4)]
    maps = [np.zeros((1, *each[2:], 16), np.float32).transpose(0, 3, 1, 2) for each in (shape, *levels)]
    operands = Operands(shape, tuple(levels), True, (1, 2, 55, 128), "float32")
    kept = KeptWindows(problem(parameters(9), operands), maps[0], maps[1:])
    windows = 4 * 55 * 128
    assert windows * 4 * 100 <= kept.nbytes <= 1.03 * windows * (4 * 100 + 16)


def test_maps_that_are_packed_are_not_copied():
    x = aligned(np.zeros((1, 5, 6, 32), np.float32)).transpose(0, 3, 1, 2)
    operands = Operands(x.shape, (x.shape,), False, (1, 2, 5, 6), "float32")
    kept = KeptWindows(problem(parameters(3), operands), x, [x])
    assert np.shares_memory(kept._features, x)
    assert np.shares_memory(kept._levels[0].image, x)


@pytest.fixture
def kept():
    return Sequence(NAMED["a single map"]).kept


BAD = {
    "coords of another dtype": (
        np.zeros((2, 2, 9, 10)), np.zeros((2, 5, 5, 9, 10), np.float32), TypeError, "coords must be of float32",
    ),
    "coords of another shape": (
        np.zeros((2, 2, 9, 9), np.float32), np.zeros((2, 5, 5, 9, 10), np.float32), ValueError, "coords must have the shape",
    ),
    "an output of another dtype": (
        np.zeros((2, 2, 9, 10), np.float32), np.zeros((2, 5, 5, 9, 10)), TypeError, "out must be of float32",
    ),
    "an output of another shape": (
        np.zeros((2, 2, 9, 10), np.float32), np.zeros((2, 5, 5, 10, 9), np.float32), ValueError, "out must have the shape",
    ),
    "an output with gaps": (
        np.zeros((2, 2, 9, 10), np.float32), np.zeros((2, 5, 5, 9, 20), np.float32)[..., ::2], ValueError, "C-contiguous",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("coords", "out", "error", "text"), BAD.values(), ids=BAD)
def test_bad_arrays_are_refused(kept, coords, out, error, text):
    with pytest.raises(error, match=text):
        kept.lookup(coords, out)


def test_what_cannot_be_kept_is_refused():
    case = NAMED["edges of patches"]
    x1, x2, _ = case.arrays()
    with pytest.raises(NotImplementedError, match="indices"):
        KeptWindows(case.problem(), x1, x2)
    case = Case((1, 4, 5, 6), (1, 4, 5, 6), (1, 2, 5, 6))
    x1, x2, _ = case.of("float16").arrays()
    with pytest.raises(TypeError, match="input1 must be of float32 or float64"):
        KeptWindows(case.problem(), x1, [x2])
