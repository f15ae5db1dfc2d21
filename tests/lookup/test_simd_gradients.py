"""The gradients of the variant simd: bits do not depend on how they are divided, chains end, nothing outside is touched."""

import sys
from collections import Counter
from operator import le

import numpy as np
import pytest
from layouts import aligned
from lookup_cases import ALL, NAMED, Case, check_vjp
from processes import python

import cupycorr
from cupycorr import correlation_lookup, correlation_lookup_vjp
from cupycorr._cpu import llvm, workers
from cupycorr._dtypes import LONGEST_CHAIN
from cupycorr._lookup.cpu import (
    gather_gradients,
    gradient_kernels,
    gradient_queries,
    joined_windows,
    scatter_gradient,
    simd_gradients,
)
from cupycorr._lookup.problem import Operands, parameters, problem

pytestmark = pytest.mark.skipif(llvm.why_not() is not None, reason=str(llvm.why_not()))

LARGE = Case((2, 150, 11, 37), [(2, 150, 11, 37), (2, 150, 5, 18)], (2, 2, 11, 37), dict(patch_size=7), noise=2.0, strange=0.01)
# At level 0, the windows of most queries are too far apart to be joined.
MANY = Case((2, 40, 21, 34), [(2, 40, 40, 45), (2, 40, 10, 17)], (2, 5, 2, 21, 34), dict(patch_size=5), noise=9.0, strange=0.02)
CASES = {
    "large": LARGE,
    "many lookups": MANY,
    "smooth": Case((1, 40, 21, 34), [(1, 40, 21, 34), (1, 40, 10, 17)], (1, 2, 21, 34), dict(patch_size=9), noise=0.1),
    **{
        name: NAMED[name]
        for name in ("pyramid and lookups", "edges of patches", "steep flow", "stereo", "patch apart", "strange numbers")
    },
}
slow = pytest.mark.slow
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)

MODULES = gather_gradients, gradient_queries, scatter_gradient
# Bytes and numbers, as the modules name them: small blocks, some channels at a time, one chunk for each block, bands of rows.
BLOCKS = {
    "blocks of a row": dict(ROWS=1),
    "blocks of one vector of queries": dict(FACTORS=1),
    "small sums": dict(TOTALS=2**14),
    "chunks of a block": dict(CHUNK=1),
}
BANDS = {
    "some channels": dict(MAPS=2**17),
    "bands of rows": dict(MAPS=2**14, LEAST_VECTORS=1, PIXELS=2**14),
    "bands of a row": dict(MAPS=1, LEAST_VECTORS=1, PIXELS=1),
    "short chains": dict(LONGEST_CHAIN=LONGEST_CHAIN._replace(memory=3)),
}


def divide(monkeypatch, sizes):
    for name, value in sizes.items():
        for module in MODULES:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)


def gradients(case, arrays=None):
    x1, x2, coords = arrays or case.arrays()
    first, second, third = correlation_lookup_vjp(case.cotangent(), x1, x2, coords, **case.parameters, variant="simd", needs=ALL)
    return [first, *(second if isinstance(second, tuple) else [second]), third]


def assert_same_bits(results, others):
    for one, other in zip(results, others, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("sizes", BLOCKS.values(), ids=BLOCKS)
@cases
def test_bits_do_not_depend_on_blocks_and_chunks(monkeypatch, case, sizes):
    # Chunks decide where chains end, which is the same at every call; here they do not end.
    monkeypatch.setattr(scatter_gradient, "LONGEST_CHAIN", LONGEST_CHAIN._replace(memory=10**6))
    want = gradients(case)
    divide(monkeypatch, sizes)
    assert_same_bits(gradients(case), want)


@pytest.mark.parametrize(
    "sizes",
    [{}, *(pytest.param(sizes, marks=() if name == "bands of rows" else slow) for name, sizes in BANDS.items())],
    ids=["whole", *BANDS],
)
@cases
def test_bits_do_not_depend_on_the_number_of_threads(monkeypatch, case, sizes):
    divide(monkeypatch, sizes)
    monkeypatch.setattr("cupycorr._lookup.cpu.simd.THREAD_SECONDS", 0.0)  # small calls use several threads too
    monkeypatch.setattr(simd_gradients, "most_threads", lambda *_: 7)
    with workers.team_of(1):
        want = gradients(case)
    for threads in (2, 7):
        with workers.team_of(threads):
            assert_same_bits(gradients(case), want)


@pytest.mark.parametrize("sizes", (BLOCKS | BANDS).values(), ids=BLOCKS | BANDS)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=slow)])
def test_gradients_that_are_divided_equal_the_definition(monkeypatch, dtype, sizes):
    divide(monkeypatch, sizes)
    for case in (CASES["smooth"], CASES["edges of patches"]):
        check_vjp(case.of(dtype), "simd")


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=slow)])
@cases
def test_neighbours_that_are_computed_together_have_the_bits_of_each_alone(monkeypatch, case, dtype):
    case = case.of(dtype)
    want = gradients(case)
    monkeypatch.setattr(gradient_queries, "LONGEST_CHAIN", LONGEST_CHAIN._replace(registers=0))  # no two share their taps
    assert_same_bits(gradients(case), want)


def test_bits_of_the_gradients_of_maps_do_not_depend_on_the_width_of_slabs(monkeypatch):
    want = gradients(LARGE)
    monkeypatch.setattr(gradient_kernels, "REGISTERS_OF_A_SLAB", 10**9)  # each has one vector
    assert_same_bits(gradients(LARGE)[:-1], want[:-1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ready", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_packed_maps_beside_others_give_the_same_bits(ready, dtype):
    case = Case((2, 32, 9, 14), [(2, 32, 9, 14), (2, 32, 4, 7)], (2, 2, 9, 14), dict(patch_size=5), dtype)
    x1, x2, coords = case.arrays()
    maps = [
        aligned(each.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if number in ready else each
        for number, each in enumerate((x1, *x2))
    ]
    assert_same_bits(gradients(case, (maps[0], maps[1:], coords)), gradients(case))


# Chains of additions in memory.


@pytest.fixture
def chains(monkeypatch):
    """Collect the number of queries in each chain of a level and slab of the gradient of input2, of which 100 is the most."""
    monkeypatch.setattr(scatter_gradient, "LONGEST_CHAIN", LONGEST_CHAIN._replace(memory=100))
    original, found = scatter_gradient.ScatteredMap.add, [0]

    def counted(self, slab, steps, queries, chunk):
        for step in steps:
            if step is scatter_gradient.END_OF_CHAINS:
                found.append(0)
            else:
                found[-1] += step.end - step.first
        original(self, slab, steps, queries, chunk)

    monkeypatch.setattr(scatter_gradient.ScatteredMap, "add", counted)
    return found


def gradient2(x1, x2, coords):
    g = np.ones_like(correlation_lookup(x1, x2, coords, 1))
    return correlation_lookup_vjp(g, x1, x2, coords, 1, variant="simd", needs=(False, True, False))[1]


def test_chains_end_before_they_are_longer_than_the_longest(chains):
    x1 = np.ones((1, 1, 20, 30), np.float32)
    assert gradient2(x1, np.ones((1, 1, 1, 1), np.float32), np.zeros((1, 2, 20, 30), np.float32)) == 600
    assert sum(chains) == 600
    assert 90 < max(chains) <= 100


def test_no_more_lookups_are_joined_than_a_chain_may_be_long(chains, monkeypatch):
    monkeypatch.setattr(gradient_queries, "LONGEST_CHAIN", LONGEST_CHAIN._replace(memory=40))
    x1 = np.ones((1, 1, 2, 3), np.float32)
    assert gradient2(x1, np.ones((1, 1, 1, 1), np.float32), np.zeros((1, 100, 2, 2, 3), np.float32)) == 600
    assert sum(chains) == 6 * 3  # each pixel adds the sums of 40, 40 and 20 lookups


def test_chains_do_not_end_where_windows_are_apart(chains):
    x = np.ones((1, 1, 20, 30), np.float32)  # each query reads its own pixel and the three next to it
    grid = np.stack(np.meshgrid(np.arange(30), np.arange(20))).astype(np.float32)
    gradient2(x, x, grid[None])
    assert chains == [600]


@pytest.mark.parametrize("place", [(0, 0), (-1, -1), (39, 0), (0, 29), (39, 29), (-1, 29), (7, 8)])
def test_the_bound_of_a_chain_counts_the_windows_at_every_border(monkeypatch, place):
    bounds = []
    original = scatter_gradient.ScatteredMap._most_additions
    monkeypatch.setattr(
        scatter_gradient.ScatteredMap, "_most_additions", lambda self, queries: bounds.append(original(self, queries))
    )
    monkeypatch.setattr(scatter_gradient.ScatteredMap, "steps", lambda self, queries: self._most_additions(queries) or [])
    coords = np.broadcast_to(np.float32(place)[:, None, None], (1, 2, 6, 7)).copy()
    coords[..., 0] = -100.0
    gradient2(np.ones((1, 1, 6, 7), np.float32), np.ones((1, 1, 30, 40), np.float32), coords)
    assert bounds == [36]


@cases
def test_the_bound_of_a_chain_is_not_less_than_the_additions_to_any_pixel(monkeypatch, case):
    """With pixels, cotangents and weights of 1, the gradient of input2 is the number of windows that hold a pixel."""
    bounds = Counter()
    original = scatter_gradient.ScatteredMap._most_additions

    def noted(self, queries):
        found = original(self, queries)
        bounds[self.level] += found
        return found

    monkeypatch.setattr(scatter_gradient.ScatteredMap, "_most_additions", noted)
    x1, x2, coords = case.arrays()
    levels = len(x2) if isinstance(x2, list) else 1
    parameters = {**case.parameters, "level_step": 1, "scale": 1.0}
    whole = np.where(np.isfinite(coords), np.round(coords), coords)
    g = np.ones_like(correlation_lookup(x1, x2, whole, **parameters))
    found = correlation_lookup_vjp(g, np.ones_like(x1), x2, whole, **parameters, variant="simd", needs=(False, True, False))[1]
    for level, counts in enumerate(found if isinstance(x2, list) else [found]):
        assert counts.max() > 0
        assert bounds[level] >= counts.max()
    assert len(bounds) == levels


# Memory.


BETWEEN_HOLES = """
    import ctypes, itertools, mmap
    import numpy as np
    from cupycorr._dispatch import VJP, Request
    from cupycorr._lookup.cpu import simd_gradients
    from cupycorr._lookup.problem import Operands, parameters, problem

    libc, page = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE
    maps = []

    def between_holes(array, at_end):
        '''Return a copy that begins after, or ends before, a page that cannot be read or written.'''
        size = -(-max(array.nbytes, 1) // page) * page
        maps.append(mmap.mmap(-1, size + 2 * page))
        whole = np.frombuffer(maps[-1], np.uint8)
        for hole in (whole.ctypes.data, whole.ctypes.data + page + size):
            assert libc.mprotect(ctypes.c_void_p(hole), ctypes.c_size_t(page), 0) == 0
        begin = page + size - array.nbytes if at_end else page
        copy = whole[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        return copy

    rng = np.random.default_rng(0)
    for (height, width), (height2, width2), patch, channels in (
        ((3, 5), (4, 3), 3, 16),
        ((4, 16), (9, 20), 9, 48),
        ((1, 33), (1, 1), (1, 9), 16),
        ((4, 16), (12, 14), (4, 15), 7),
    ):
        for at_end, last, item in itertools.product((False, True), (False, True), (4, 8)):
            dtype = np.dtype(f"f{item}")
            x1, x2 = (rng.standard_normal((1, channels, *size)).astype(dtype) for size in ((height, width), (height2, width2)))
            coords = rng.uniform(-9, 25, (1, 2, height, width)).astype(dtype)
            geometry = problem(parameters(patch), Operands(x1.shape, (x2.shape,), False, coords.shape, dtype.name))
            g = rng.standard_normal(geometry.out_shape).astype(dtype)
            inputs = dict(cotangent=g, input1=x1, input2=x2, coords=coords)
            results = dict(gradient1=x1, gradient2=x2, gradient_coords=coords)
            request = Request(VJP, geometry, dtype.name, dtype.name, (), (True, True, True))
            want = {name: np.zeros_like(array) for name, array in results.items()}
            simd_gradients.compute(request, {**inputs, **want}, 1)
            held = {name: between_holes(array, at_end) for name, array in inputs.items()}
            if last:
                for name in ("input1", "input2"):
                    held[name] = between_holes(inputs[name].transpose(0, 2, 3, 1), at_end).transpose(0, 3, 1, 2)
            got = {name: between_holes(np.zeros_like(array), at_end) for name, array in results.items()}
            simd_gradients.compute(request, {**held, **got}, 2)
            for name in results:
                assert (got[name] == want[name]).all(), name
    print("inside")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects pages of memory as Linux does")
def test_nothing_outside_the_arrays_is_read_or_written():
    assert python(BETWEEN_HOLES) == "inside"


def test_windows_that_do_not_fit_into_the_workspace_are_refused_with_the_reason():
    x, coords = np.broadcast_to(np.float32(0), (1, 8, 4, 8)), np.zeros((1, 2, 4, 8), np.float32)
    told = cupycorr.explain_lookup(x, x, coords, patch_size=1000, gradients=True)
    assert "too many for the workspace" in told.reasons["simd"]
    assert told.variant == "blas"


# Joined windows.


@pytest.fixture
def rectangles(monkeypatch):
    """Collect what `joined_windows.bounds` was asked and what it found."""
    found, original = [], joined_windows.bounds

    def noted(origins, lookups, taps, size, most, lanes):
        result = original(origins, lookups, taps, size, most, lanes)
        found.append((origins.reshape(2, lookups, -1), taps, size, most, result))
        return result

    monkeypatch.setattr(joined_windows, "bounds", noted)
    return found


def test_windows_are_joined_where_their_rectangle_is_small_and_no_larger_than_all_of_them(rectangles):
    gradients(MANY)
    joined, apart = 0, 0
    for origins, taps, size, most, found in rectangles:
        for query in range(origins.shape[2]):
            edges = [
                [(max(at, 0), min(at + count, length)) for at, count, length in zip(window, taps, size, strict=True)]
                for window in origins[:, :, query].T.tolist()
            ]
            windows = [each for each in edges if all(begin < end for begin, end in each)]
            bounds = [
                (min(begins), max(ends)) for begins, ends in (zip(*axis, strict=True) for axis in zip(*windows, strict=True))
            ]
            extents = [end - begin for begin, end in bounds]
            areas = sum((y_end - y) * (x_end - x) for (y, y_end), (x, x_end) in windows)
            fits = bool(windows) and all(map(le, extents, most)) and extents[0] * extents[1] <= areas
            assert found.extents[:, query].tolist() == (extents if fits else [0, 0])
            assert found.unjoined[query] == (bool(windows) and not fits)
            if fits:
                assert found.origins[:, query].tolist() == [begin for begin, _ in bounds]
            joined, apart = joined + fits, apart + int(found.unjoined[query])
    assert joined > 100 < apart


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", pytest.param("float16", marks=slow), pytest.param("bfloat16", marks=slow)]
)
def test_joined_windows_and_others_equal_the_definition(dtype):
    check_vjp(MANY.of(dtype), "simd")


def test_lookups_of_the_same_windows_are_gathered_and_scattered_once(monkeypatch):
    x = np.ones((1, 16, 8, 8), np.float32)
    coords = np.stack(np.meshgrid(np.arange(8), np.arange(8))).astype(np.float32)
    calls, original = Counter(), gradient_queries.QueryBlocks.kernel_arguments

    def counted(self, *arguments):
        calls["all"] += 1
        return original(self, *arguments)

    monkeypatch.setattr(gradient_queries.QueryBlocks, "kernel_arguments", counted)
    g = np.ones((1, 7, 3, 3, 8, 8), np.float32)
    with workers.team_of(1):
        correlation_lookup_vjp(g, x, x, np.repeat(coords[None, None], 7, 1), 3, variant="simd")
    assert calls["all"] == 2


@pytest.mark.parametrize("order", ["dy", "dx"])
@pytest.mark.parametrize("layout", ["contiguous", "apart", "overlapping", "mixed"])
def test_separate_lookups_equal_those_of_one_call(order, layout):
    """The cotangent of each lookup may lie in memory as it likes."""
    case = Case((2, 24, 9, 13), [(2, 24, 9, 13), (2, 24, 4, 6)], (2, 3, 2, 9, 13), dict(patch_size=(4, 3), order=order))
    x1, x2, coords = case.arrays()
    g = case.cotangent()
    if layout == "overlapping":
        g[:] = g[..., :1, :1]
    planes = [np.ascontiguousarray(g[:, :, k]) for k in range(3)]
    if layout == "apart":
        planes = [np.repeat(each, 2, -1)[..., ::2] for each in planes]
    if layout == "overlapping":
        planes = [np.broadcast_to(each[..., :1, :1], each.shape) for each in planes]
    if layout == "mixed":
        planes[1] = np.ascontiguousarray(planes[1].swapaxes(2, 3)).swapaxes(2, 3)
    want = correlation_lookup_vjp(g, x1, x2, coords, **case.parameters, variant="simd")
    one = lookup_problem(case, coords_shape=(2, 2, 9, 13))
    arrays = {"input1": x1, **dict(zip(one.level_names, x2, strict=True)), "gradient1": np.empty_like(x1)}
    arrays |= {name: np.empty_like(each) for name, each in zip(one.gradient2_names, x2, strict=True)}
    simd_gradients.compute_together(one, arrays, [coords[:, k] for k in range(3)], planes, (True, True, True))
    got = [arrays[name] for name in ("gradient1", *one.gradient2_names)]
    assert_same_bits(got, [want[0], *want[1]])


def lookup_problem(case, coords_shape):
    shapes = [tuple(each.shape) for each in case.arrays()[1]]
    operands = Operands(case.arrays()[0].shape, tuple(shapes), True, coords_shape, "float32")
    return problem(parameters(**case.parameters), operands)


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("where", ["input1", "input2"])
def test_features_that_are_not_finite_reach_only_the_windows_that_have_them(where, value):
    """The rectangle around two windows has positions that neither window has."""
    x1, x2 = np.random.default_rng(0).standard_normal((2, 1, 4, 12, 13), np.float32)
    coords = np.full((1, 2, 2, 12, 13), 5.5, np.float32)
    coords[:, 1] += 1
    if where == "input1":
        x1[0, 3] = value
    else:
        x2[0, :, 4, 8] = value  # beside the windows around 5.5 and 6.5, in their rectangle
    g = np.ones((1, 2, 3, 3, 12, 13), np.float32)
    got, want = (correlation_lookup_vjp(g, x1, x2, coords, 3, variant=variant)[:2] for variant in ("simd", "reference"))
    assert all(np.isfinite(each).any() for each in want)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(np.isfinite(one), np.isfinite(other))
