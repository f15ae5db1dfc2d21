"""The pixels that a chunk reads and the windows that it has, held against loops over windows, displacements and pixels."""

from itertools import pairwise, product

import numpy as np
import pytest

from cupycorr._chunks import cover
from cupycorr._correlation.problem import Axis
from cupycorr._motion.geometry import Lattice, Search, SingleWindows, divided, pixels_read

RANDOM = np.random.default_rng(0)


# Windows ----------------------------------------------------------------------------------------------------------------------


def positions(firsts1, firsts2, window, search, way_back):
    """Yield the pixels of frame 1 and those of frame 2 that windows along one axis read."""
    low, high = search
    pixels1, pixels2 = set(), set()
    for first1, first2 in zip(firsts1, firsts2, strict=True):
        pixels1.update(range(first1, first1 + window))
        for displacement in range(low, high + 1):
            pixels2.update(range(first2 + displacement, first2 + displacement + window))
        if way_back:
            for displacement in {0, *range(low, high + 1)}:  # 0 where a window has no match
                pixels2.update(range(first2 + displacement, first2 + displacement + window))
                for back in range(-high, -low + 1):
                    pixels1.update(range(first1 + displacement + back, first1 + displacement + back + window))
    return pixels1, pixels2


def assert_range(found, pixels, size):
    """Check that a range is that from the first to the last of some pixels, as far as it is inside a frame, or one pixel."""
    begin, end = max(min(pixels), 0), min(max(pixels) + 1, size)
    if begin < end:
        assert found == (begin, end)
    else:
        assert 0 <= found[0] < found[1] <= size
        assert found[1] - found[0] == 1


SEARCHES = [(-4, 4), (2, 5), (-7, -3), (0, 0), (3, 3)]


@pytest.mark.parametrize("way_back", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_a_grid_reads_its_windows_and_their_halo_and_nothing_else(search, way_back):
    for first, step, count, window in [(0, 1, 5, 3), (6, 4, 3, 5), (17, 3, 1, 4), (20, 5, 2, 3)]:
        firsts = [first + step * number for number in range(count)]
        lattice, ranges = (
            Lattice((first, first), (step, step), (count, count)),
            Search((search[0],) * 2, (search[1] - search[0] + 1,) * 2),
        )
        for size1, size2 in [(30, 30), (28, 20), (29, 60)]:
            pixels = positions(firsts, firsts, window, search, way_back)
            read = pixels_read(lattice, (window, window), ranges, way_back, (size1, size1), (size2, size2))
            for rectangle, each, size in zip(read, pixels, (size1, size2), strict=True):
                for found in rectangle:
                    assert_range(found, each, size)


@pytest.mark.parametrize("way_back", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_single_windows_read_their_pixels_and_their_halo_and_nothing_else(search, way_back):
    for shift in (0, 15, 200):
        tops, lefts = RANDOM.integers(-6, 25, (2, 8)) + shift
        starts = RANDOM.integers(-9, 9, (2, 8))
        windows = SingleWindows(tops, lefts, tops + starts[0], lefts + starts[1])
        ranges = Search((search[0],) * 2, (search[1] - search[0] + 1,) * 2)
        read = pixels_read(windows, (3, 4), ranges, way_back, (30, 40), (33, 27))
        down = positions(tops.tolist(), (tops + starts[0]).tolist(), 3, search, way_back)
        across = positions(lefts.tolist(), (lefts + starts[1]).tolist(), 4, search, way_back)
        for number, shape in enumerate([(30, 40), (33, 27)]):
            assert_range(read[number][0], down[number], shape[0])
            assert_range(read[number][1], across[number], shape[1])


def test_no_windows_read_a_pixel():
    nothing = np.zeros(0, np.int64)
    read = pixels_read(SingleWindows(nothing, nothing, nothing, nothing), (3, 3), Search((-1, -1), (3, 3)), True, (9, 9), (9, 9))
    assert read == (((0, 1), (0, 1)), ((0, 1), (0, 1)))


@pytest.mark.parametrize("least", [1, 20, 1000])
@pytest.mark.parametrize("step", [1, 3, 16])
def test_windows_belong_to_the_chunk_of_their_first_pixel_unless_chunks_are_joined(step, least):
    for chunks in [(100,), (30, 30, 30, 10), (1,) * 100, (7, 0, 60, 3, 30)]:
        count = (sum(chunks) - 9) // step + 1
        parts = divided(0, step, count, chunks, least)
        assert [number for part in parts for number in range(part.start, part.stop)] == list(range(count))
        assert all(part.stop > part.start for part in parts)
        ends = np.cumsum(chunks)
        for before, after in pairwise(parts):
            # A cut is a border of chunks: the two windows beside it begin in different ones.
            assert np.searchsorted(ends, (before.stop - 1) * step, "right") < np.searchsorted(ends, after.start * step, "right")
        if len(parts) > 1:
            assert all((part.stop - part.start) * step >= least for part in parts)
        if least == 1:
            occupied = {int(np.searchsorted(ends, number * step, "right")) for number in range(count)}
            assert len(parts) == len(occupied)


# Outputs of the correlation ---------------------------------------------------------------------------------------------------


def products(axis, shift1=0, shift2=0):
    """Return for each output the set of products of its sum: the displacement's index and both positions."""
    found = []
    for output in range(axis.out):
        terms = set()
        for index, displacement in enumerate(axis.displacements):
            for tap in range(axis.kernel):
                first = output * axis.stride - axis.padding + tap * axis.dilation
                second = first + displacement
                if 0 <= first < axis.size1 and 0 <= second < axis.size2:
                    terms.add((index, first + shift1, second + shift2))
        found.append(terms)
    return found


def test_a_part_of_an_axis_sums_the_same_products():
    checked = 0
    for _ in range(300):
        kernel, patch, stride, dilation = (int(RANDOM.integers(1, most)) for most in (5, 6, 5, 4))
        padding, step, offset = int(RANDOM.integers(-3, 12)), int(RANDOM.choice([-3, -1, 1, 2])), int(RANDOM.integers(-9, 9))
        size1, size2 = (int(each) for each in RANDOM.integers(4, 24, 2))
        axis = Axis(kernel, patch, stride, padding, dilation, step, offset, size1, size2)
        if axis.out < 1:
            continue
        whole = products(axis)
        begin, end = sorted(RANDOM.choice(axis.out + 1, 2, replace=False).tolist())
        part = axis.part(begin, end)
        (begin1, end1), (begin2, end2) = part.pixels1, part.pixels2
        assert 0 <= begin1 < end1 <= size1
        assert 0 <= begin2 < end2 <= size2
        own = Axis(kernel, patch, stride, part.padding, dilation, step, part.offset, end1 - begin1, end2 - begin2)
        assert products(own, begin1, begin2)[part.skipped : part.skipped + end - begin] == whole[begin:end]
        checked += 1
    assert checked > 200


def test_a_part_of_an_axis_reads_no_pixel_that_no_product_needs():
    axis = Axis(3, 5, 2, 1, 1, 1, 2, 100, 100)
    for begin, end in [(0, 10), (10, 20), (40, axis.out)]:
        terms = set().union(*products(axis)[begin:end])
        part = axis.part(begin, end)
        assert part.pixels1 == (min(first for _, first, _ in terms), max(first for _, first, _ in terms) + 1)
        assert part.pixels2 == (min(second for *_, second in terms), max(second for *_, second in terms) + 1)


# Blocks -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [((10,), (9,)), ((3, 3, 4), (9,)), ((1,) * 10, (2, 0, 5, 2)), ((0, 4, 6), (8, 1))], ids=str)
def test_every_box_is_joined_from_the_blocks_that_cover_it(chunks):
    array = RANDOM.integers(0, 99, (10, 9))
    borders = [np.cumsum((0, *lengths)) for lengths in chunks]
    for top, left in product(range(10), range(9)):
        for height, width in product((1, 3, 10 - top), (1, 4, 9 - left)):
            if top + height > 10 or left + width > 9:
                continue
            found = cover(chunks, ((top, top + height), (left, left + width)))
            blocks = [array[borders[0][i] : borders[0][i + 1], borders[1][j] : borders[1][j + 1]] for i, j in found.indices()]
            assert found.count == len(blocks)
            for edges, (first, end), (begin, stop) in zip(
                borders, found.blocks, ((top, top + height), (left, left + width)), strict=True
            ):
                assert edges[first + 1] > begin  # the first block and the last one have something of the box
                assert edges[end - 1] < stop
            np.testing.assert_array_equal(found.joined(blocks), array[top : top + height, left : left + width])
