"""The kernels of tables and of incomplete scores compute their formulas, and a value affects its own windows only."""

import threading

import numpy as np
import pytest
from memory import GUARD, guarded_scratch

from cupycorr import match
from cupycorr._cpu.llvm import compiled
from cupycorr._motion import table_kernel
from cupycorr._motion.row_kernel import PADDING
from cupycorr._motion.table_kernel import IncompleteScores, PositionTables, write_tables

pytestmark = pytest.mark.skipif(table_kernel.why_not() is not None, reason=str(table_kernel.why_not()))

WINDOWS = [(1, 1), (1, 5), (5, 1), (2, 2), (3, 3), (4, 6), (11, 11), (7, 12), (2, 127)]
WIDTHS = [1, 2, 7, 8, 9, 15, 17, 40, table_kernel._CHUNK, table_kernel._CHUNK + 1, 2 * table_kernel._CHUNK + 13]
EPS = np.finfo(float).eps
by_window = pytest.mark.parametrize("window", WINDOWS, ids=lambda window: "{}x{}".format(*window))
with_and_without_missing = pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])


def inverse_norm(count, total, squares, area):
    """Return the inverse norm of one window by its definition."""
    product = count * squares
    difference = product - total * total
    if not difference > 12 * area**0.5 * EPS * product or 2 * count < area:
        return np.nan
    return 1 / np.sqrt(difference)


class Image:
    """An image with NaN in the padding of all rows, and the mask of its present pixels: whole numbers or real ones."""

    def __init__(self, window, positions, missing=False, whole=True, rows=3):
        self.window, self.positions = window, positions
        self.shape = window[0] + rows - 1, window[1] + positions - 1
        rng = np.random.default_rng([*window, positions])
        values = rng.integers(-99, 256, self.shape) if whole else rng.standard_normal(self.shape) * 50 + 20
        self.pixels, self.present = (np.full((self.shape[0], self.shape[1] + PADDING), np.nan) for _ in range(2))
        self.pixels[:, : self.shape[1]] = values
        self.present[:, : self.shape[1]] = rng.random(self.shape) > rng.choice([0.1, 0.5, 0.9], (1, self.shape[1]))
        if missing:
            self.pixels[self.present == 0] = 0
        else:
            self.present = None

    def tables(self):
        """Return the tables by the kernel, after a check that nothing outside them and their padding was written."""
        rows, length = self.shape[0] - self.window[0] + 1, self.positions + PADDING
        memory = [np.full((rows + 2, length + 3), GUARD) for _ in range(2 if self.present is None else 3)]
        write_tables(
            self.pixels, self.shape, self.window, PositionTables(*(each[1:-1, :length] for each in memory)), self.present
        )
        for each in memory:
            assert (each[0] == GUARD).all(), "written before the table"
            assert (each[-1] == GUARD).all(), "written after the table"
            assert (each[:, length:] == GUARD).all(), "written between the rows of the table"
        return [each[1:-1, : self.positions].copy() for each in memory]

    def formula(self):
        """Return the tables by a loop over all windows."""
        (h, w), rows = self.window, self.shape[0] - self.window[0] + 1
        total, inverse, count = (np.empty((rows, self.positions)) for _ in range(3))
        for y in range(rows):
            for x in range(self.positions):
                pixels = self.pixels[y : y + h, x : x + w]
                count[y, x] = h * w if self.present is None else self.present[y : y + h, x : x + w].sum()
                total[y, x] = pixels.sum()
                inverse[y, x] = inverse_norm(count[y, x], total[y, x], (pixels * pixels).sum(), h * w)
        return [total, inverse] if self.present is None else [total, inverse, count]


# Tables --------------------------------------------------------------------------------------------------------------


@with_and_without_missing
@by_window
def test_tables_of_whole_numbers_have_the_bits_of_a_loop(window, missing):
    for positions in WIDTHS:
        image = Image(window, positions, missing)
        for name, table, expected in zip(("total", "inverse", "count"), image.tables(), image.formula(), strict=False):
            np.testing.assert_array_equal(table, expected, f"{name}, {positions=}")


def test_tables_of_every_width_of_windows_have_the_bits_of_a_loop():
    for columns in range(1, 71):
        image = Image((2, columns), 10, missing=True)
        for table, expected in zip(image.tables(), image.formula(), strict=True):
            np.testing.assert_array_equal(table, expected, f"{columns=}")


@with_and_without_missing
@by_window
def test_tables_of_real_numbers_are_those_of_a_loop_but_for_rounding(window, missing):
    for positions in (5, 270):
        image = Image(window, positions, missing, whole=False)
        (total, inverse, *_), (expected, expected_inverse, *_) = image.tables(), image.formula()
        np.testing.assert_allclose(total, expected, rtol=0, atol=1e-12 * 200 * window[0] * window[1])
        assert (np.isnan(inverse) == np.isnan(expected_inverse)).all()
        np.testing.assert_allclose(inverse, expected_inverse, rtol=1e-12 if min(window) > 1 else 1e-9)


@pytest.mark.parametrize("lanes", [2, 4, 8])
@with_and_without_missing
def test_vectors_of_every_length_give_the_same_bits(lanes, missing, monkeypatch):
    images = [Image(window, positions, missing, whole=False) for window in WINDOWS for positions in (3, 40, 259)]
    expected = [image.tables() for image in images]
    with table_kernel.lock:
        kernel = compiled(lambda: table_kernel._TableWriter(lanes, missing))
    monkeypatch.setattr(table_kernel, "_kernel", lambda writer, missing: kernel)
    for image, tables in zip(images, expected, strict=True):
        np.testing.assert_array_equal(image.tables(), tables, f"{image.window=}, {image.positions=}")


@pytest.mark.parametrize("value", [1e30, np.inf, np.nan], ids=str)
def test_a_value_affects_the_tables_of_its_own_windows_only(value):
    for window, positions, (row, column) in (((11, 11), 40, (5, 20)), ((7, 12), 300, (6, 258)), ((3, 32), 33, (4, 34))):
        image = Image(window, positions, whole=False)
        before = image.tables()
        image.pixels[row, column] = value
        y, x = np.indices(before[0].shape)
        inside = (y <= row) & (row < y + window[0]) & (x <= column) & (column < x + window[1])
        assert inside.any()
        assert not inside.all()
        for old, new in zip(before, image.tables(), strict=True):
            np.testing.assert_array_equal(new[~inside], old[~inside])
            assert (new[inside] != old[inside]).all()


def test_windows_without_texture_or_with_too_few_pixels_have_no_inverse_norm():
    image = Image((4, 6), 40, missing=True)
    image.pixels[...], image.present[...] = 0.1, 1  # sums of 0.1 have rounding errors
    assert np.isnan(image.tables()[1]).all()
    image.pixels[:, ::3] = 1
    assert np.isfinite(image.tables()[1]).all()
    image.present[:, ::2] = 0
    image.pixels[image.present == 0] = 0
    _, inverse, count = image.tables()
    assert (count == 12).all()  # exactly half of the pixels are enough
    assert np.isfinite(inverse).all()
    image.present[1, 11] = image.pixels[1, 11] = 0
    _, inverse, count = image.tables()
    assert 0 < (count < 12).sum() < count.size
    np.testing.assert_array_equal(np.isnan(inverse), count < 12)


@with_and_without_missing
def test_what_scratch_memory_contained_does_not_matter_and_nothing_beyond_it_is_written(missing, monkeypatch):
    for window in WINDOWS:
        for positions in (1, 40, table_kernel._CHUNK, table_kernel._CHUNK + 7):
            image = Image(window, positions, missing)
            expected = image.tables()
            for begin in (64, 67, 71):
                with monkeypatch.context() as patch:
                    patch.setattr(table_kernel, "scratch", lambda shape, dtype, begin=begin: guarded_scratch(begin, *shape))
                    np.testing.assert_array_equal(image.tables(), expected)


def test_threads_write_tables_at_the_same_time():
    image = Image((9, 11), 300, missing=True, whole=False, rows=40)
    alone = [each.tobytes() for each in image.tables()]
    results = []
    threads = [threading.Thread(target=lambda: results.append([each.tobytes() for each in image.tables()])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [alone] * 3


# Scores --------------------------------------------------------------------------------------------------------------


class Sums:
    """The sums of windows with missing pixels at some displacements, of whole numbers or real ones."""

    def __init__(self, window, windows, displacements=((0, 0), (0, 1), (2, 5), (-1, 3)), whole=True):
        self.window, self.windows, self.displacements = window, windows, displacements
        right, area = max(dx for _, dx in displacements), window[0] * window[1]
        rng = np.random.default_rng([*window, windows])

        def array(rows, columns, low, high):
            values = np.full((rows, columns + PADDING), np.nan)
            shape = rows, columns
            values[:, :columns] = rng.integers(low, high, shape) if whole else rng.uniform(low, high, shape)
            return values

        table = (6, right + windows)
        self.tables = PositionTables(array(*table, -999, 999), array(*table, 1, 9), np.round(array(*table, 0, area + 1)))
        self.tables.inverse[1, ::5] = np.nan
        shape = len(displacements), windows
        self.product, self.total1 = array(*shape, -9999, 9999), array(*shape, -99, 99)
        self.squares1 = array(*shape, 0, 9999)

    def scores(self, row, begin=2, guard=3):
        """Return the result of the kernel, after a check that nothing outside the result and its padding was written."""
        (dy, dx), length = zip(*self.displacements, strict=True), begin + self.windows + PADDING
        memory, *sums = (np.full((len(dy) + 2, length + guard), GUARD) for _ in range(3))
        for to, values in zip((memory, *sums), (self.product, self.total1, self.squares1), strict=True):
            to[1:-1, begin:length] = values
        before = [each.copy() for each in sums]
        scores = IncompleteScores(self.tables, self.window, self.windows, dy, dx)
        scores.into(*(each[1:-1, :length] for each in (memory, *sums)))(row, begin)
        for each, copy in zip(sums, before, strict=True):
            np.testing.assert_array_equal(each, copy)
        out = memory[1:-1, begin : begin + self.windows].copy()
        padding = memory[1:-1, begin + self.windows : length].copy()
        np.testing.assert_array_equal(padding, self.product[:, self.windows :], "written after the windows")
        memory[1:-1, begin:length] = GUARD
        assert (memory == GUARD).all(), "written outside the result"
        return out

    def formula(self, row):
        """Return the scores by a loop over all windows and displacements."""
        out = np.empty((len(self.displacements), self.windows))
        for d, (dy, dx) in enumerate(self.displacements):
            for x in range(self.windows):
                count, total2, inverse2 = (
                    each[row + dy, dx + x] for each in (self.tables.count, self.tables.total, self.tables.inverse)
                )
                total1 = self.total1[d, x]
                inverse1 = inverse_norm(count, total1, self.squares1[d, x], self.window[0] * self.window[1])
                out[d, x] = (count * self.product[d, x] - total1 * total2) * inverse2 * inverse1
        return out


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "real"])
def test_scores_have_the_bits_of_a_loop(whole):
    for window in ((1, 1), (3, 5), (11, 11)):
        for windows in (*range(1, 20), 40, 257):
            sums = Sums(window, windows, whole=whole)
            for row in (1, 2, 3):
                expected = sums.formula(row)
                np.testing.assert_array_equal(sums.scores(row), expected, f"{window=}, {windows=}, {row=}")
    assert 0 < np.isnan(expected).sum() < expected.size


@pytest.mark.parametrize("step", [1, 2])
def test_several_rows_have_the_scores_of_single_ones(step):
    for windows in (5, 8, 19):
        sums = [Sums((3, 5), windows) for _ in range(2)]
        sums[1].product[...] += 5
        sums[1].tables = sums[0].tables
        (dy, dx), joined = zip(*sums[0].displacements, strict=True), []
        for name in ("product", "total1", "squares1"):
            first, second = (getattr(each, name) for each in sums)
            joined.append(np.concatenate([first[:, :windows], second], axis=1))
        IncompleteScores(sums[0].tables, (3, 5), windows, dy, dx).into(*joined)(1, 0, 2, step)
        np.testing.assert_array_equal(joined[0][:, :windows], sums[0].formula(1))
        np.testing.assert_array_equal(joined[0][:, windows : 2 * windows], sums[1].formula(1 + step))


def test_rows_are_those_for_which_the_tables_have_what_is_used():
    sums = Sums((3, 4), 9)
    (dy, dx), out = zip(*sums.displacements, strict=True), [np.zeros((4, 9 + PADDING)) for _ in range(3)]
    scores = IncompleteScores(sums.tables, (3, 4), 9, dy, dx)
    assert scores.rows == range(1, 4)
    compute = scores.into(*out)
    for row in (0, 4):
        with pytest.raises(ValueError, match=rf"row must be in range\(1, 4\), got row={row}"):
            compute(row, 0)
    with pytest.raises(ValueError, match=r"row must be in range\(1, 4\), got row=2, count=2, step=2"):
        compute(2, 0, 2, 2)
    for begin in (-1, 1):
        with pytest.raises(ValueError, match=f"begin must be from 0 to 0, got begin={begin}"):
            compute(1, begin)
    with pytest.raises(ValueError, match="begin must be from 0 to -9, got begin=0"):
        compute(1, 0, 2)


# Refusals --------------------------------------------------------------------------------------------------------------


def test_arrays_that_are_too_small_or_of_another_kind_are_refused():
    image, sums = Image((3, 4), 9, missing=True), Sums((3, 4), 9)
    total, inverse, count = (np.zeros((3, 9 + PADDING)) for _ in range(3))
    good = dict(pixels=image.pixels, shape=image.shape, window=(3, 4), present=image.present)
    refused = {
        "pixels must have": dict(pixels=image.pixels[:, :-1]),
        "pixels must be float64": dict(pixels=image.pixels.astype(np.float32)),
        "pixels must have 5 rows": dict(pixels=image.pixels[:-1]),
        "present must have": dict(present=image.present[:, :-1]),
        "if, and only if": dict(present=None),
        "a window must fit": dict(window=(6, 4)),
        "total must have": dict(tables=PositionTables(total[:, :-1], inverse, count)),
        "tables must have 3 rows": dict(tables=PositionTables(total, inverse[:2], count)),
        "strides must be equal": dict(tables=PositionTables(total, inverse, np.zeros((3, 10 + PADDING)))),
    }
    for message, changed in refused.items():
        with pytest.raises(ValueError, match=message):
            write_tables(**{**good, "tables": PositionTables(total, inverse, count), **changed})
    for message, tables, windows, rows2, columns2 in (
        ("must have a count", PositionTables(total, inverse), 9, [0], [0]),
        ("must not be negative", sums.tables, 9, [0], [-1]),
        ("must have 10 columns", PositionTables(total, inverse, count), 9, [0], [1]),
        ("there must be a displacement", sums.tables, 9, [], []),
    ):
        with pytest.raises(ValueError, match=message):
            IncompleteScores(tables, (3, 4), windows, rows2, columns2)
    scores = IncompleteScores(sums.tables, (3, 4), 9, [0, 1], [0, 0])
    for message, rows, columns in (("there must be 2 rows", 1, 9), ("squares1 must have 9 columns", 2, 8)):
        with pytest.raises(ValueError, match=message):
            scores.into(*(np.zeros((2, 9 + PADDING)) for _ in range(2)), np.zeros((rows, columns + PADDING)))


# Fields ----------------------------------------------------------------------------------------------------------------


def frames():
    """Return two grey frames, one of which has windows without texture, and a mask with a hole and with single pixels."""
    rng = np.random.default_rng(7)
    one = rng.integers(0, 256, (52, 74)).astype(np.uint8)
    two = np.roll(one, (1, -3), (0, 1))
    two[20:34, 30:48] = 7
    valid = rng.random(one.shape) > 0.1
    valid[36:48, 8:24] = False
    return one, two, valid


FIELDS = ("dx", "dy", "score", "at_edge", "peak_ratio", "count")
SEARCHES = {"1-D": ((0, 0), (-20, 3)), "upright": ((-7, 5), (0, 0)), "2-D": ((-3, 4), (-5, 4))}
by_search = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
by_step = pytest.mark.parametrize("step", [1, 2, (1, 2), (2, 1)], ids=str)


@pytest.mark.covering(2)
@pytest.mark.parametrize("holes", [False, True], ids=["border", "holes"])
@by_step
@by_search
def test_fields_of_integer_frames_have_the_bits_of_the_operator(search, step, holes):
    one, two, valid = frames()
    given = dict(step=step, mask2=valid) if holes else dict(step=step)
    for window in (5, (4, 11)):
        found, expected = (match(one, two, window, search, variant=variant, **given) for variant in ("simd", "operator"))
        assert len(np.unique(expected.count)) > 2
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), f"{name}, {window=}")


@by_step
@by_search
def test_fields_of_frames_with_nan_are_those_of_the_operator(search, step):
    one, two, valid = frames()
    one, two = one.astype(float) / 3, np.where(valid, two / 3, np.nan)
    found, expected = (match(one, two, (4, 7), search, step=step, variant=variant) for variant in ("simd", "operator"))
    for name in FIELDS:
        tolerance = 1e-11 if name == "score" else 1e-9
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=tolerance, err_msg=name)
