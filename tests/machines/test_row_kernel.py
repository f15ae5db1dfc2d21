"""The kernel of block matching computes its formula, writes its result only, and a value affects its own windows only."""

import sys
import threading

import numpy as np
import pytest
from memory import GUARD, guarded_scratch
from processes import python

from cupycorr._cpu.llvm import compiled
from cupycorr._motion import row_kernel
from cupycorr._motion.row_kernel import PADDING, RowScores, Tables

pytestmark = pytest.mark.skipif(row_kernel.why_not() is not None, reason=str(row_kernel.why_not()))

WINDOWS = [(1, 1), (1, 5), (5, 1), (2, 2), (3, 3), (4, 6), (11, 11), (7, 12), (32, 32), (2, 127)]
WIDTHS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 40, row_kernel._CHUNK, row_kernel._CHUNK + 1, 2 * row_kernel._CHUNK + 13]


def runs(count):
    """Return ``count`` neighbouring displacements in one row."""
    return [(1, column) for column in range(count)]


def scattered(count):
    """Return ``count`` displacements in runs of several lengths, in several rows, some of them backwards or twice."""
    rng = np.random.default_rng(count)
    found = []
    while len(found) < count:
        row, column, length = (int(rng.integers(low, high)) for low, high in ((-2, 3), (0, 6), (1, 14)))
        found += [(row, column + step) for step in range(length)]
    return found[:count]


class Case:
    """Arrays for some windows and displacements: whole numbers or real ones, with NaN in the padding of all rows."""

    def __init__(self, window, windows, displacements, whole=True):
        self.window, self.windows, self.displacements = window, windows, displacements
        self.rows2, self.columns2 = (list(each) for each in zip(*displacements, strict=True))
        pixels, right = windows + window[1] - 1, max(self.columns2)
        rng = np.random.default_rng([*window, windows, len(displacements)])

        def array(rows, columns):
            values = np.full((rows, columns + PADDING), np.nan)
            shape = (rows, columns)
            values[:, :columns] = rng.integers(-99, 256, shape) if whole else rng.standard_normal(shape) * 50
            return values

        self.pixels1, self.pixels2 = array(window[0] + 5, pixels), array(window[0] + 8, right + pixels)
        self.tables = Tables(array(6, windows), array(9, right + windows), array(9, right + windows))

    def scores(self, row, with_tables=True, guard=3):
        """Return the result of the kernel, after a check that nothing outside the result and its padding was written."""
        scores = RowScores(
            self.pixels1,
            self.pixels2,
            self.window,
            self.windows,
            self.rows2,
            self.columns2,
            self.tables if with_tables else None,
        )
        count, length = len(self.displacements), self.windows + PADDING
        memory = np.full((count + 2, length + guard), GUARD)
        out = memory[1:-1, :length]
        with scores.into(out) as compute:
            compute(row, 0)
        assert (memory[0] == GUARD).all(), "written before the result"
        assert (memory[-1] == GUARD).all(), "written after the result"
        assert (memory[:, length:] == GUARD).all(), "written between the rows of the result"
        return out[:, : self.windows].copy()

    def formula(self, row, with_tables=True):
        """Return the scores by the formula, and the size of the terms that they are the difference of."""
        (h, w), x = self.window, slice(0, self.windows)
        out, size = (np.zeros((len(self.displacements), self.windows)) for _ in range(2))
        for d, (dy, dx) in enumerate(self.displacements):
            sums, sizes = np.zeros(self.windows), np.zeros(self.windows)
            for r in range(h):
                for c in range(w):
                    one = self.pixels1[row + r, c : c + self.windows]
                    two = self.pixels2[row + dy + r, dx + c : dx + c + self.windows]
                    sums += one * two
                    sizes += np.abs(one * two)
            out[d], size[d] = sums, sizes
            if with_tables:
                total1, total2 = self.tables.total1[row, x], self.tables.total2[row + dy, dx : dx + self.windows]
                inverse2 = self.tables.inverse2[row + dy, dx : dx + self.windows]
                out[d] = (h * w * sums - total1 * total2) * inverse2
                size[d] = (h * w * sizes + np.abs(total1 * total2)) * np.abs(inverse2)
        return out, size


def windows_with(case, row, name, at):
    """Return for each displacement and window whether it contains the pixel at ``at`` of an array of pixels."""
    (h, w), inside = case.window, np.zeros((len(case.displacements), case.windows), bool)
    for d, (dy, dx) in enumerate(case.displacements):
        top, left = (row, 0) if name == "pixels1" else (row + dy, dx)
        for x in range(case.windows):
            inside[d, x] = top <= at[0] < top + h and left + x <= at[1] < left + x + w
    return inside


# Values --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_tables", [True, False], ids=["scores", "S12"])
@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: "{}x{}".format(*window))
def test_whole_numbers_give_the_bits_of_numpy(window, with_tables):
    for windows in WIDTHS if with_tables else WIDTHS[::4]:
        case = Case(window, windows, scattered(13))
        for row in (2, 3):
            expected, _ = case.formula(row, with_tables)
            np.testing.assert_array_equal(case.scores(row, with_tables), expected, f"{windows=}, {row=}")


@pytest.mark.parametrize("displacements", [runs, scattered])
@pytest.mark.parametrize("count", range(1, 31))
def test_any_number_of_displacements_gives_the_bits_of_numpy(count, displacements):
    for window, windows in (((3, 5), 19), ((5, 3), 8)):
        case = Case(window, windows, displacements(count))
        np.testing.assert_array_equal(case.scores(2), case.formula(2)[0])


def test_every_width_of_windows_gives_the_bits_of_numpy():
    for columns in range(1, 71):
        case = Case((1, columns), 10, runs(3))
        np.testing.assert_array_equal(case.scores(2), case.formula(2)[0], f"{columns=}")
    for windows in range(1, 41):
        case = Case((2, 11), windows, runs(9))
        np.testing.assert_array_equal(case.scores(2), case.formula(2)[0], f"{windows=}")


@pytest.mark.parametrize("with_tables", [True, False], ids=["scores", "S12"])
@pytest.mark.parametrize("step", [1, 2])
def test_several_rows_have_the_scores_of_single_ones(step, with_tables):
    for windows in (3, 8, 40, row_kernel._CHUNK + 5):
        case = Case((3, 5), windows, [(0, column) for column in range(13)])
        tables = case.tables if with_tables else None
        scores = RowScores(case.pixels1, case.pixels2, case.window, windows, case.rows2, case.columns2, tables)
        out = np.empty((13, 3 * windows + PADDING + 1))
        with scores.into(out) as compute:
            compute(1, 1, 3, step)
            for row, count in ((4, 3), (1, 4)):
                with pytest.raises(ValueError, match=f"must be .*{row if count == 3 else 'begin'}"):
                    compute(row, 1, count)
        for number in range(3):
            found = out[:, 1 + number * windows : 1 + (number + 1) * windows]
            np.testing.assert_array_equal(found, case.formula(1 + number * step, with_tables)[0])


@pytest.mark.parametrize("with_tables", [True, False], ids=["scores", "S12"])
@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: "{}x{}".format(*window))
def test_real_numbers_give_the_formula_but_for_rounding(window, with_tables):
    for windows in (5, 40, 270):
        case = Case(window, windows, scattered(11), whole=False)
        expected, size = case.formula(2, with_tables)
        assert (np.abs(case.scores(2, with_tables) - expected) <= 1e-12 * size).all()


@pytest.mark.parametrize("lanes", [2, 4, 8])
def test_vectors_of_every_length_give_the_same_bits(lanes, monkeypatch):
    cases = [Case(window, windows, scattered(23), whole=False) for window in WINDOWS for windows in (3, 40, 259)]
    expected = [case.scores(2) for case in cases]
    with row_kernel.lock:
        kernel = compiled(lambda: row_kernel._RowWriter(lanes, with_tables=True))
    monkeypatch.setattr(row_kernel, "_kernel", lambda with_tables: kernel)
    for case, scores in zip(cases, expected, strict=True):
        np.testing.assert_array_equal(case.scores(2), scores, f"{case.window=}, {case.windows=}")


def test_the_products_and_the_difference_are_rounded_separately():
    case = Case((1, 3), 40, runs(9), whole=False)
    others = np.arange(case.pixels2.shape[1]) % 3 != 0
    case.pixels2[:, others] = 0  # one product per window is not 0, so that S12 has the bits of this product
    np.testing.assert_array_equal(case.scores(2), case.formula(2)[0])


@pytest.mark.parametrize("value", [1e30, np.inf, np.nan], ids=str)
@pytest.mark.parametrize("name", ["pixels1", "pixels2"])
def test_a_value_affects_its_own_windows_only(name, value):
    for window, windows, at in (((11, 11), 40, (5, 20)), ((7, 12), 300, (6, 258)), ((3, 32), 33, (4, 34))):
        case = Case(window, windows, scattered(12), whole=False)
        before = case.scores(3)
        getattr(case, name)[at] = value
        after, inside = case.scores(3), windows_with(case, 3, name, at)
        assert inside.any()
        assert not inside.all()
        np.testing.assert_array_equal(after[~inside], before[~inside])
        assert (after[inside] != before[inside]).all()


# Memory --------------------------------------------------------------------------------------------------------------


def test_the_padding_affects_no_result():
    case = Case((4, 6), 21, scattered(20), whole=False)
    with_nan = case.scores(2)
    for array in (case.pixels1, case.pixels2, case.tables.total1, case.tables.total2, case.tables.inverse2):
        assert np.isnan(array[:, -PADDING:]).all()
        array[:, -PADDING:] = 7
    np.testing.assert_array_equal(case.scores(2), with_nan)


@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: "{}x{}".format(*window))
def test_scratch_memory_is_large_enough_and_what_it_contained_does_not_matter(window, monkeypatch):
    for windows in (1, 40, row_kernel._CHUNK, row_kernel._CHUNK + 7):
        case = Case(window, windows, scattered(20))
        expected = case.scores(2)
        for begin in range(64, 72):  # at every place of a vector
            with monkeypatch.context() as patch:
                patch.setattr(row_kernel, "scratch", lambda shape, dtype, begin=begin: guarded_scratch(begin, *shape))
                np.testing.assert_array_equal(case.scores(2), expected)


BEFORE_A_HOLE = """
    import ctypes, mmap
    import numpy as np
    from cupycorr._motion.row_kernel import PADDING, RowScores, Tables

    libc, page = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE
    maps = []

    def at_the_end(rows, columns):
        '''Return an array whose last element is the last one before memory that cannot be read or written.'''
        size = -(-rows * columns * 8 // page) * page
        maps.append(mmap.mmap(-1, size + page))
        whole = np.frombuffer(maps[-1], np.float64)
        assert libc.mprotect(ctypes.c_void_p(whole.ctypes.data + size), ctypes.c_size_t(page), 0) == 0
        array = whole[: size // 8][-rows * columns :].reshape(rows, columns)
        array[...] = 1
        return array

    for count in (1, 2, 4, 7, 8, 13):
        for windows in (*range(1, 18), 256, 257):
            for h, w in ((1, 1), (2, 5), (3, 11)):
                pixels, right = windows + w - 1 + PADDING, count - 1
                arrays = at_the_end(h, pixels), at_the_end(h, right + pixels)
                tables = Tables(*(at_the_end(1, more + windows + PADDING) for more in (0, right, right)))
                out = at_the_end(count, windows + PADDING)
                with RowScores(*arrays, (h, w), windows, [0] * count, range(count), tables).into(out) as compute:
                    compute(0, 0)
                assert (out[:, :windows] == h * w * h * w - 1).all() or (h * w == 1 and not out[:, :windows].any())
    print("inside")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects pages of memory as Linux does")
def test_the_kernel_reads_and_writes_nothing_beyond_the_padding():
    assert python(BEFORE_A_HOLE) == "inside"


def test_threads_compute_rows_at_the_same_time():
    case = Case((3, 11), 300, runs(20), whole=False)
    case.pixels1, case.pixels2 = np.tile(case.pixels1, (20, 1)), np.tile(case.pixels2, (20, 1))
    tables = Tables(*(np.tile(each, (20, 1)) for each in (case.tables.total1, case.tables.total2, case.tables.inverse2)))
    scores = RowScores(case.pixels1, case.pixels2, case.window, case.windows, case.rows2, case.columns2, tables)
    rows = list(scores.rows)

    def computed(numbers):
        out = np.empty((scores.count, scores.windows + PADDING))
        found = {}
        with scores.into(out) as compute:
            for row in numbers:
                compute(row, 0)
                found[row] = out[:, : scores.windows].tobytes()
        return found

    alone = computed(rows)
    results = []
    threads = [threading.Thread(target=lambda: results.append(computed(rows))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [alone] * 3


# Refusals --------------------------------------------------------------------------------------------------------------


def test_rows_are_those_for_which_all_arrays_have_what_is_used():
    case = Case((3, 4), 9, [(-1, 0), (2, 3)])
    scores = RowScores(case.pixels1, case.pixels2, (3, 4), 9, [-1, 2], [0, 3], case.tables)
    assert scores.rows == range(1, 6)  # total1 has 6 rows
    assert RowScores(case.pixels1, case.pixels2, (3, 4), 9, [-1, 2], [0, 3]).rows == range(1, 6)  # 8 - 3 + 1 rows of windows
    assert RowScores(case.pixels1, case.pixels2, (3, 4), 9, [-1, 4], [0, 3]).rows == range(1, 5)  # 11 - 3 + 1 - 4
    with scores.into(np.empty((2, 9 + PADDING))) as compute:
        for row in (0, 6, -1):
            with pytest.raises(ValueError, match=rf"row must be in range\(1, 6\), got row={row}"):
                compute(row, 0)


def test_arrays_that_are_too_small_or_of_another_kind_are_refused():
    case = Case((3, 4), 9, runs(5))
    good = dict(pixels1=case.pixels1, pixels2=case.pixels2, window=(3, 4), windows=9, rows2=case.rows2, columns2=case.columns2)
    RowScores(**good, tables=case.tables)
    total1, total2, inverse2 = case.tables.total1, case.tables.total2, case.tables.inverse2
    wider = np.zeros((9, total2.shape[1] + 1))
    refused = {
        "pixels1 must have": dict(pixels1=case.pixels1[:, :-1]),
        "pixels2 must have": dict(pixels2=case.pixels2[:, :-1]),
        "total1 must have": dict(tables=Tables(total1[:, :-1], total2, inverse2)),
        "total2 must have": dict(tables=Tables(total1, total2[:, :-1], inverse2)),
        "inverse2 must have": dict(tables=Tables(total1, total2, inverse2[:, :-1])),
        "strides must be equal": dict(tables=Tables(total1, total2, wider)),
        "pixels1 must be float64": dict(pixels1=case.pixels1.astype(np.float32)),
        "pixels2 must be float64": dict(pixels2=np.asfortranarray(case.pixels2)),
        "columns2 must not be negative": dict(columns2=[-1, 0, 1, 2, 3]),
        "there must be a displacement": dict(rows2=[], columns2=[]),
        "there must be a displacement and a window": dict(windows=0),
    }
    for message, changed in refused.items():
        with pytest.raises(ValueError, match=message):
            RowScores(**{**good, **changed})
    for out, message in ((np.empty((4, 9 + PADDING)), "5 rows"), (np.empty((5, 8 + PADDING)), "out must have 9 columns")):
        with pytest.raises(ValueError, match=message), RowScores(**good).into(out):
            pass
