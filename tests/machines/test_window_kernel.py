"""The kernel for windows far apart computes its formula, touches no other memory, and a value affects its own windows only."""

import itertools
import sys
import threading

import numpy as np
import pytest
from processes import python

from cupycorr._motion import window_kernel
from cupycorr._motion.by_operator import by_operator
from cupycorr._motion.by_windows import by_windows
from cupycorr._motion.frames import Pixels
from cupycorr._motion.tile import Tile
from cupycorr._motion.window_kernel import correlate

pytestmark = pytest.mark.skipif(window_kernel.why_not() is not None, reason=str(window_kernel.why_not()))

WINDOWS = [(1, 1), (1, 9), (7, 1), (2, 2), (3, 5), (8, 8), (11, 11), (5, 16), (12, 24), (32, 32), (2, 130)]
MACHINES = [window_kernel._Machine(*each) for each in ((16, 2), (32, 2), (16, 4), (32, 4), (32, 8))]
by_window = pytest.mark.parametrize("window", WINDOWS, ids=lambda window: "{}x{}".format(*window))


@pytest.fixture(params=MACHINES, ids=lambda machine: f"{machine.registers} registers of {machine.lanes}")
def machine(request, monkeypatch):
    """Compile kernels for vectors of another length: LLVM divides those that the processor does not have."""
    window_kernel._plans.cache_clear()
    monkeypatch.setattr(window_kernel, "_machine", lambda: request.param)
    yield request.param
    window_kernel._plans.cache_clear()


class Case:
    """Two stacks of images and some windows in them: whole numbers or real ones."""

    def __init__(self, window, tried, whole=True, count=4):
        self.window, self.tried = window, tried
        reach = window[0] + tried[0] - 1, window[1] + tried[1] - 1
        self.shapes = (2, window[0] + 3, window[1] + 2), (3, reach[0] + 2, reach[1] + 1)
        rng = np.random.default_rng([*window, *tried])
        self.images, self.places = [], []
        for shape, rectangle in zip(self.shapes, (window, reach), strict=True):
            self.images.append(rng.integers(-99, 256, shape).astype(float) if whole else rng.standard_normal(shape) * 50)
            free = (shape[0], shape[1] - rectangle[0] + 1, shape[2] - rectangle[1] + 1)
            places = [tuple(int(rng.integers(n)) for n in free) for _ in range(count - 1)]
            self.places.append([*places, tuple(n - 1 for n in free)])  # the last window ends where the images end

    def sums(self):
        """Return the result of the kernel."""
        offsets = []
        for (_, rows, columns), places in zip(self.shapes, self.places, strict=True):
            offsets.append(np.array([(i * rows + y) * columns + x for i, y, x in places], np.int64))
        out = correlate(*self.images, *offsets, self.window, self.tried)
        assert out.flags.c_contiguous
        return out

    def formula(self):
        """Return the sums of products by the formula, and the sums of their magnitudes."""
        (h, w), out = self.window, np.zeros((2, len(self.places[0]), *self.tried))
        for which, (one, two) in enumerate(zip(*self.places, strict=True)):
            values1 = self.images[0][one[0], one[1] : one[1] + h, one[2] : one[2] + w]
            for m, n in np.ndindex(*self.tried):
                top, left = two[1] + m, two[2] + n
                products = values1 * self.images[1][two[0], top : top + h, left : left + w]
                out[:, which, m, n] = products.sum(), np.abs(products).sum()
        return out

    def with_pixel(self, side, at):
        """Return for each window and displacement whether it contains a pixel of one of the images."""
        (h, w), inside = self.window, np.zeros((len(self.places[0]), *self.tried), bool)
        for which, m, n in np.ndindex(*inside.shape):
            i, y, x = self.places[side][which]
            top, left = (y, x) if side == 0 else (y + m, x + n)
            inside[which, m, n] = i == at[0] and top <= at[1] < top + h and left <= at[2] < left + w
        return inside


# Values --------------------------------------------------------------------------------------------------------------


@pytest.mark.covering(1)
@by_window
def test_whole_numbers_give_exact_sums(window, machine):
    for tried in ((1, 1), (1, machine.lanes + 1), (5, 2 * machine.lanes), (9, 3 * machine.lanes - 1), (2, 67)):
        case = Case(window, tried)
        np.testing.assert_array_equal(case.sums(), case.formula()[0], f"{tried=}")


def test_every_number_of_displacements_gives_exact_sums(machine):
    for window in ((3, 5), (2, 16)):
        for down, across in itertools.chain(itertools.product((1, 4), range(1, 41)), itertools.product(range(1, 18), (3, 9))):
            case = Case(window, (down, across), count=2)
            np.testing.assert_array_equal(case.sums(), case.formula()[0], f"{window=}, {down=}, {across=}")


@pytest.mark.covering(1)
@by_window
def test_real_numbers_give_the_formula_but_for_rounding(window, machine):
    for tried in ((1, 1), (3, 9), (9, 19), (25, 25)):
        case = Case(window, tried, whole=False, count=2)
        expected, size = case.formula()
        assert (np.abs(case.sums() - expected) <= 1e-13 * size).all(), f"{tried=}"


@pytest.mark.parametrize("window", [(1, 5000), (2000, 1), (70, 600)], ids=lambda window: "{}x{}".format(*window))
def test_long_sums_are_as_accurate_as_sums_of_parts(window, machine):
    case = Case(window, (3, 10), count=1)
    np.testing.assert_array_equal(case.sums(), case.formula()[0])
    for image in case.images:
        image[...] = 0.1  # equal products have errors of the same sign while a sum grows
    expected = 0.1 * 0.1 * window[0] * window[1]
    assert (np.abs(case.sums() - expected) <= 4e-14 * expected).all()


@pytest.mark.covering(1)
@pytest.mark.parametrize("value", [1e30, np.inf, np.nan], ids=str)
@pytest.mark.parametrize("side", [0, 1], ids=["image1", "image2"])
def test_a_value_affects_its_own_windows_only(side, value, machine):
    for window, tried in (((11, 11), (5, 9)), ((5, 16), (9, 17)), ((3, 4), (4, 11)), ((1, 1), (2, 3)), ((2, 9), (12, 7))):
        for at in itertools.product((0, 1), (0, 2), (0, 2)):
            case = Case(window, tried, whole=False)
            before = case.sums()
            case.images[side][at] = value
            after, inside = case.sums(), case.with_pixel(side, at)
            np.testing.assert_array_equal(after[~inside], before[~inside], f"{window=}, {at=}")
            assert (after[inside] != before[inside]).all(), f"{window=}, {at=}"


def test_images_may_be_views_with_contiguous_rows():
    rng = np.random.default_rng(0)
    whole1, whole2 = rng.integers(0, 99, (9, 12)).astype(float), rng.integers(0, 99, (4, 20, 30)).astype(float)
    image1, image2 = whole1[1::2, 2:9], whole2[::3, 1:15:2, 4:25]
    offsets1 = np.array([0, 24 + 1, 2 * 24 + 2])  # rows are 24 elements apart
    offsets2 = np.array([3 * 600, 60 + 5, 3 * 600 + 60 + 2])  # images are 1800 and rows 60 elements apart
    found = correlate(image1, image2, offsets1, offsets2, (2, 5), (5, 12))
    for out, (y, x), (i, top, left) in zip(found, ((0, 0), (1, 1), (2, 2)), ((1, 0, 0), (0, 1, 5), (1, 1, 2)), strict=True):
        for m, n in np.ndindex(5, 12):
            displaced = image2[i, top + m : top + m + 2, left + n : left + n + 5]
            assert out[m, n] == (image1[y : y + 2, x : x + 5] * displaced).sum()


# Memory --------------------------------------------------------------------------------------------------------------


BETWEEN_HOLES = """
    import ctypes, mmap
    import numpy as np
    from cupycorr._motion import window_kernel

    libc, page = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE
    maps = []

    def between_holes(shape, at_the_end):
        '''Return an array of ones next to memory that cannot be read or written.'''
        count = int(np.prod(shape))
        size = -(-count * 8 // page) * page
        maps.append(mmap.mmap(-1, size + 2 * page))
        whole = np.frombuffer(maps[-1], np.float64)
        for hole in (0, page + size):
            assert libc.mprotect(ctypes.c_void_p(whole.ctypes.data + hole), ctypes.c_size_t(page), 0) == 0
        inside = whole[page // 8 : (page + size) // 8]
        array = (inside[size // 8 - count :] if at_the_end else inside[:count]).reshape(shape)
        array[...] = 1
        return array

    class Guarded:
        '''NumPy with results between holes, full of zeros.'''

        at_the_end = True

        def __getattr__(self, name):
            return getattr(np, name)

        def zeros(self, shape):
            out = between_holes(shape, self.at_the_end)
            out[...] = 0
            return out

    window_kernel.np = Guarded()
    only = np.zeros(1, np.int64)
    for lanes in (2, 4, 8):
        window_kernel._machine = lambda: window_kernel._Machine(32, lanes)
        window_kernel._plans.cache_clear()
        for at_the_end in (True, False):
            Guarded.at_the_end = at_the_end
            for down in (1, 6):
                for across in (*range(1, 18), 41):
                    for h, w in ((1, 1), (2, 5), (3, 11), (2, 16)):
                        images = (between_holes(each, at_the_end) for each in ((h, w), (h + down - 1, w + across - 1)))
                        out = window_kernel.correlate(*images, only, only, (h, w), (down, across))
                        assert (out == h * w).all()
    print("inside")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects pages of memory as Linux does")
def test_the_kernel_reads_and_writes_nothing_outside_the_arrays():
    assert python(BETWEEN_HOLES) == "inside"


def test_threads_correlate_at_the_same_time():
    cases = [Case((12, 24), (9, 17 + number), whole=False, count=40) for number in range(3)]
    alone = [case.sums().tobytes() for case in cases] * 5
    window_kernel._plans.cache_clear()
    results = []
    together = [threading.Thread(target=lambda: results.append([c.sums().tobytes() for c in cases * 5])) for _ in range(3)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    assert results == [alone] * 3


# Refusals --------------------------------------------------------------------------------------------------------------


def test_arrays_and_offsets_of_another_kind_are_refused():
    image1, image2, offsets = np.zeros((4, 5)), np.zeros((2, 6, 8)), np.array([0, 0])
    good = dict(image1=image1, image2=image2, offsets1=offsets, offsets2=offsets, window=(4, 5), tried=(3, 4))
    assert correlate(**good).shape == (2, 3, 4)
    assert correlate(**{**good, "offsets2": np.array([0, 48])}).shape == (2, 3, 4)
    nothing = np.zeros(0, np.int64)
    assert correlate(**{**good, "offsets1": nothing, "offsets2": nothing}).shape == (0, 3, 4)
    refused = {
        "there must be a pixel": dict(window=(0, 5)),
        "there must be a pixel and a displacement": dict(tried=(3, 0)),
        "image1 must be float64": dict(image1=image1.astype(np.float32)),
        "image2 must be float64": dict(image2=np.asfortranarray(image2)),
        "image2 must be float64, 2-D or 3-D, with contiguous rows": dict(image2=image2[:, ::-1]),
        "image1 must be float64, 2-D or 3-D": dict(image1=image1.ravel()),
        r"offsets of image1 must be contiguous int64, \(2,\)": dict(offsets1=offsets.astype(np.int32)),
        r"offsets of image2 must be contiguous int64, \(2,\)": dict(offsets2=offsets[:1]),
        r"offsets of image1 must lead to rectangles \(4, 5\) inside \(4, 5\), got 0 to 1": dict(offsets1=np.array([0, 1])),
        r"offsets of image2 must lead to rectangles \(6, 8\) inside \(2, 6, 8\), got -1 to 0": dict(offsets2=np.array([-1, 0])),
        r"offsets of image2 must lead to .* got 0 to 49": dict(offsets2=np.array([0, 49])),
    }
    for message, changed in refused.items():
        with pytest.raises(ValueError, match=message):
            correlate(**{**good, **changed})


# Scores --------------------------------------------------------------------------------------------------------------

TILES = {
    "lattice": (1, Tile((8, 9), (5, 11), (4, 5), (3, 4), whole=True, largest=256.0)),
    "lattices": (2, Tile((8, 9), (5, 11), (4, 5), (3, 2), whole=True, largest=256.0)),
    "windows": (7, Tile((8, 9), (5, 11), whole=True, largest=256.0)),
    "column": (2, Tile((8, 1), (5, 1), (4, 5), (3, 1), whole=True, largest=256.0)),
}
MISSING = ["nothing", "border of frame 2", "frame 1", "frame 2", "both"]


@pytest.mark.parametrize("missing", MISSING)
@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_scores_are_those_of_the_operator(name, missing, order):
    count, tile = TILES[name]
    rng = np.random.default_rng(3)
    firsts, seconds = ((count, *shape) for shape in (tile.span, tile.reach))
    pixels = []
    for shape, is_missing in ((firsts, missing in ("frame 1", "both")), (seconds, missing in ("frame 2", "both"))):
        values = rng.integers(0, 256, shape).astype(float)
        present = rng.random(shape) > 0.1 if is_missing else None
        inside = None
        if missing == "border of frame 2" and shape == seconds:
            inside = rng.random(shape[:2]) > 0.2, rng.random((count, shape[2])) >= 0.2
            present = inside[0][:, :, None] & inside[1][:, None, :]
        values = values if present is None else np.where(present, values, 0)
        pixels.append(Pixels(np.asarray(values, order=order), present, inside))
    expected, compared = by_operator(tile, *pixels)
    found, count_of_pixels = by_windows(tile, *pixels)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(count_of_pixels, compared)
