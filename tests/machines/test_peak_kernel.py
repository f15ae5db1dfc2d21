"""The kernel that finds peaks gives the bits of a loop in Python, and touches no memory but that of its arguments."""

import sys
import threading

import numpy as np
import pytest
from processes import python

from cupycorr._motion import peak_kernel, peaks
from cupycorr._motion.by_operator import by_operator
from cupycorr._motion.by_rows import by_complete_rows
from cupycorr._motion.frames import Pixels
from cupycorr._motion.geometry import Search
from cupycorr._motion.peak_kernel import find_peaks
from cupycorr._motion.peaks import TIE
from cupycorr._motion.tile import Tile

pytestmark = pytest.mark.skipif(peak_kernel.why_not() is not None, reason=str(peak_kernel.why_not()))

SEARCHES = [
    Search((0, 0), (1, 1)),
    Search((0, -3), (1, 7)),
    Search((-2, 0), (5, 1)),
    Search((0, -12), (1, 25)),
    Search((-12, 0), (25, 1)),
    Search((-1, -1), (2, 3)),
    Search((-1, -1), (3, 3)),
    Search((-3, -1), (6, 2)),
    Search((-9, -2), (19, 4)),
    Search((-4, -4), (9, 9)),
    Search((3, -20), (5, 13)),
    Search((-11, 2), (4, 29)),
    Search((-30, -30), (61, 61)),
]
by_search = pytest.mark.parametrize("search", SEARCHES, ids=lambda search: "{}x{}".format(*search.tried))
WINDOWS = [*range(1, 41), 100, 257]
FIELDS = ("index", "score", "second", "beside")
COUNT = 35


def peaks_by_loop(scores, search, unit):
    """Return the results by their definition, one window and one displacement after the other."""
    windows = scores.shape[1]
    index, score, second = np.zeros(windows, np.int64), np.full(windows, -np.inf), np.full(windows, -np.inf)
    beside = np.full((4, windows), -np.inf)
    for x in range(windows):
        if np.isnan(unit[x]):
            continue
        grid = {}
        for d, value in enumerate(scores[:, x]):
            grid[divmod(d, search.tried[1])] = value if value > -np.inf else -np.inf  # NaN is no candidate
        highest = max(grid.values())
        if highest == -np.inf and np.isnan(scores[:, x]).all():
            continue
        lengths = {}
        for (row, column), value in grid.items():
            if value >= highest - TIE / unit[x]:
                length = (search.low[0] + row) ** 2 + (search.low[1] + column) ** 2
                lengths[row, column] = length, row, column
        row, column = min(lengths, key=lengths.get)
        index[x], score[x] = row * search.tried[1] + column, grid[row, column] * unit[x]
        for number, neighbour in enumerate([(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]):
            beside[number, x] = grid.get(neighbour, -np.inf) * unit[x]
        others = [value for (i, j), value in grid.items() if max(abs(i - row), abs(j - column)) > 1]
        second[x] = max(others, default=-np.inf) * unit[x]
    return index, score, second, beside


def real(rng, shape):
    return rng.standard_normal(shape)


def with_duplicates(rng, shape):
    """Return scores of a few values, so that the highest one is there several times, also next to each other."""
    return rng.integers(-3, 2, shape) / 4


def with_ties(rng, shape):
    """Return scores whose highest values differ by about the largest rounding error."""
    return rng.integers(0, 3, shape) / 4 + rng.choice([0, TIE / 4, 2 * TIE / 3, TIE, 3 * TIE / 2, 2 * TIE], shape)


def with_few_candidates(rng, shape):
    """Return scores most of which are negative infinity, in some windows all."""
    return np.where(rng.random(shape) < 3 / shape[0], rng.standard_normal(shape), -np.inf)


def with_nan(rng, shape):
    """Return scores some of which are NaN, in some windows all."""
    return np.where(rng.random(shape) < rng.random(shape[1]).round(1), np.nan, rng.standard_normal(shape))


def smooth(rng, shape):
    """Return scores that are equal in neighbouring windows but for small differences, as those of pictures are."""
    return rng.standard_normal((shape[0], 1)) + 0.05 * rng.standard_normal(shape)


KINDS = [real, with_duplicates, with_ties, with_few_candidates, with_nan, smooth]
by_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def units(rng, windows):
    """Return the units of windows, some of them NaN."""
    return np.where(rng.random(windows) < 0.1, np.nan, np.exp(rng.standard_normal(windows)))


def surrounded(values, begin=3, behind=5, value=np.inf):
    """Return a view with the values of an array in larger memory, which begins at any place of a vector, and the memory."""
    memory = np.full((len(values) + 2, begin + values.shape[1] + behind), value)
    view = memory[1:-1, begin : begin + values.shape[1]]
    view[...] = values
    return view, memory


def assert_same(found, expected):
    assert found.index.dtype == np.int64
    for name, value in zip(FIELDS, expected, strict=True):
        np.testing.assert_array_equal(getattr(found, name), value, name)


# Values --------------------------------------------------------------------------------------------------------------


@pytest.mark.covering(1)
@by_search
@by_kind
def test_results_are_those_of_the_loop(kind, search):
    rng = np.random.default_rng(search.count)
    for windows in WINDOWS if search.count < 200 else (1, 7, 20, 33):
        scores, unit = kind(rng, (search.count, windows)), units(rng, windows)
        found = find_peaks(scores, search, COUNT, unit)
        assert_same(found, peaks_by_loop(scores, search, unit))
        assert found.count == COUNT


@by_search
@by_kind
def test_results_are_those_of_numpy(kind, search):
    rng = np.random.default_rng(search.count)
    for windows in (1, 9, 40, 2001):
        unit = 2.0 ** rng.integers(-9, 9, windows)  # scores times powers of two have the ties of the scores
        scores = kind(rng, (search.count, windows))
        candidates = np.where(np.isnan(scores), -np.inf, scores)
        found, expected = find_peaks(scores, search, COUNT, unit), peaks.find_peaks(candidates * unit, search, COUNT)
        known = np.isfinite(expected.score)
        np.testing.assert_array_equal(found.index[known], expected.index[known])
        assert_same(found._replace(index=expected.index), expected[:4])


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
@by_kind
def test_vectors_of_every_length_give_the_same_bits(kind, lanes, monkeypatch):
    rng = np.random.default_rng(lanes)
    cases = [(search, kind(rng, (search.count, n)), units(rng, n)) for search in SEARCHES[:-1] for n in (1, 3, 8, 17, 40)]
    expected = [find_peaks(scores, search, COUNT, unit) for search, scores, unit in cases]
    blocks = tuple(peak_kernel._Block(*each) for each in ((lanes, 3), (lanes, 1), (1, 1)))
    monkeypatch.setattr(peak_kernel, "_blocks", lambda: blocks)
    for (search, scores, unit), each in zip(cases, expected, strict=True):
        assert_same(find_peaks(scores, search, COUNT, unit), each[:4])


def test_a_window_without_a_match_has_index_0_and_no_scores():
    for scores, unit in ((np.nan, 1.0), (np.nan, np.nan), (0.5, np.nan), (-np.inf, np.nan)):
        found = find_peaks(np.full((9, 11), scores), Search((-1, -1), (3, 3)), COUNT, np.full(11, unit))
        assert (found.index == 0).all()
        assert all((values == -np.inf).all() for values in (found.score, found.second, found.beside))


def test_the_unit_scales_scores_and_not_the_distance_of_ties():
    search = Search((-1, 0), (3, 1))
    for unit in (1e-3, 1.0, 1e3):
        for difference, index in ((0.9, 1), (1.1, 0)):
            scores = np.repeat([[0.0], [-difference * TIE / unit], [-1.0]], 20, axis=1)
            found = find_peaks(scores, search, COUNT, np.full(20, unit))
            assert (found.index == index).all()
            np.testing.assert_array_equal(found.score, scores[index] * unit)


# Memory --------------------------------------------------------------------------------------------------------------


@by_search
def test_scores_are_not_written_and_what_is_around_them_does_not_matter(search):
    rng = np.random.default_rng(5)
    for windows in WINDOWS[:: 1 if search.count < 200 else 9]:
        scores, unit = real(rng, (search.count, windows)), units(rng, windows)
        expected = find_peaks(scores, search, COUNT, unit)
        for begin in range(8):  # every place of a vector
            for around in (np.inf, np.nan):
                view, memory = surrounded(scores, begin, value=around)
                before = memory.tobytes()
                assert_same(find_peaks(view, search, COUNT, unit), expected[:4])
                assert memory.tobytes() == before


BETWEEN_HOLES = """
    import ctypes, mmap
    import numpy as np
    from cupycorr._motion import peak_kernel
    from cupycorr._motion.geometry import Search

    libc, page = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE
    READ = mmap.PROT_READ

    def protect(address, size, access):
        assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), access) == 0

    class Memory:
        '''Memory between two pages that cannot be read or written.'''

        def __init__(self, size):
            self.size = -(-size * 8 // page) * page
            self.map = mmap.mmap(-1, self.size + 2 * page)
            whole = np.frombuffer(self.map, np.float64)
            self.address = whole.ctypes.data + page
            for hole in (self.address - page, self.address + self.size):
                protect(hole, page, 0)
            self.values = whole[page // 8 :][: self.size // 8]

        def part(self, size, at_end):
            return self.values[-size:] if at_end else self.values[:size]

    class Guarded:
        '''NumPy, with memory between holes.'''

        def __getattr__(self, name):
            return getattr(np, name)

        def empty(self, size):
            assert isinstance(size, int)
            kept.append(Memory(size))
            return kept[-1].part(size, at_end)

    peak_kernel.np, rng = Guarded(), np.random.default_rng(0)
    for tried in ((1, 1), (1, 20), (20, 1), (3, 3), (7, 5), (5, 13)):
        search = Search((-1, -1), tried)
        for windows in (*range(1, 36), 64, 65):
            values, unit = rng.standard_normal((search.count, windows)), np.ones(windows)
            results = []
            for at_end in (False, True):
                kept = []
                memory = Memory(values.size)
                scores = memory.part(values.size, at_end).reshape(values.shape)
                scores[...] = values
                protect(memory.address, memory.size, READ)
                found = peak_kernel.find_peaks(scores, search, 1, unit)
                results.append(b"".join(each.tobytes() for each in found[:4]))
            assert results[0] == results[1]
            assert (found.score <= values.max(axis=0)).all() and (found.score >= values.max(axis=0) - 1e-12).all()
    print("inside")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects pages of memory as Linux does")
def test_the_kernel_reads_the_scores_and_nothing_around_them_and_writes_its_own_memory():
    assert python(BETWEEN_HOLES) == "inside"


def test_units_may_have_any_stride_and_type():
    rng, search = np.random.default_rng(1), Search((-1, -1), (3, 3))
    scores, unit = real(rng, (9, 21)), np.repeat(units(rng, 21), 2)[::2]
    assert_same(find_peaks(scores, search, COUNT, unit), peaks_by_loop(scores, search, unit))
    whole = np.arange(1, 22)
    assert_same(find_peaks(scores, search, COUNT, whole), peaks_by_loop(scores, search, whole))


def test_threads_find_peaks_at_the_same_time():
    rng = np.random.default_rng(2)
    cases = [(search, smooth(rng, (search.count, 300)), units(rng, 300)) for search in SEARCHES]

    def computed():
        found = [find_peaks(scores, search, COUNT, unit) for search, scores, unit in cases for _ in range(5)]
        return [getattr(each, name).tobytes() for each in found for name in FIELDS]

    alone, results = computed(), []
    threads = [threading.Thread(target=lambda: results.append(computed())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [alone] * 3


# Complete rows of windows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("step", [(1, 1), (2, 1), (1, 3), (3, 2)], ids=str)
def test_peaks_of_complete_rows_are_those_of_the_operator_at_every_step(step, rows):
    search, rng = Search((-1, -2), (3, 5)), np.random.default_rng(3)
    tile = Tile((4, 5), search.tried, step, (5, 23), whole=True, largest=256)
    pixels = [rng.integers(0, 256, (1, *shape)).astype(float) for shape in (tile.span, tile.reach)]
    for flat, at in zip(pixels, (8, 20), strict=True):
        flat[:, :, at : at + 10] = 7  # windows without texture
    first, second = map(Pixels, pixels)
    found = peaks.joined(
        (find_peaks(scores, search, tile.area, unit) for scores, unit in by_complete_rows(tile, first, second, rows)), 5 * 23
    )
    scores, _ = by_operator(tile, first, second)
    expected = peaks.find_peaks(scores.reshape(search.count, -1), search, tile.area)
    known = np.isfinite(expected.score)
    assert 0 < known.sum() < known.size
    np.testing.assert_array_equal(found.index[known], expected.index[known])
    for name in FIELDS[1:]:
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-14, err_msg=name)


# Refusals --------------------------------------------------------------------------------------------------------------


def test_arrays_of_another_kind_are_refused():
    search, scores, unit = Search((-1, -1), (3, 3)), np.zeros((9, 5)), np.ones(5)
    refused = {
        "scores must be float64": (scores.astype(np.float32), unit),
        r"scores must be float64, \(9, n\)": (scores[:8], unit),
        "scores must be": (scores.reshape(9, 5, 1), unit),
        "contiguous rows": (np.zeros((9, 10))[:, ::2], unit),
        "one element per window": (scores, unit[:4]),
    }
    for message, arguments in refused.items():
        with pytest.raises(ValueError, match=message):
            find_peaks(arguments[0], search, COUNT, arguments[1])
