"""The variant simd: bits do not depend on how a lookup is divided, packed maps are used in place, nothing outside is read."""

import sys
from itertools import product

import numpy as np
import pytest
from layouts import aligned
from lookup_cases import NAMED, Case, check_forward, check_vjp
from memory import peak
from processes import python

import cupycorr
from cupycorr import correlation_lookup
from cupycorr._cpu import llvm, workers
from cupycorr._dtypes import LONGEST_CHAIN
from cupycorr._lookup.cpu import (
    blend_kernel,
    division,
    dot_kernel,
    gradient_kernels,
    moved_kernel,
    packing,
    simd_forward,
    tables,
    window_kernel,
)

pytestmark = pytest.mark.skipif(llvm.why_not() is not None, reason=str(llvm.why_not()))

LARGE = Case((2, 20, 19, 37), [(2, 20, 19, 37), (2, 20, 9, 18)], (2, 2, 19, 37), dict(patch_size=7), noise=2.0, strange=0.01)
# Images of input2 that do not fit, and more channels than a segment has.
SEGMENTS = Case((3, 600, 5, 7), [(2, 600, 8, 21), (2, 600, 4, 3)], (2, 2, 2, 5, 7), dict(patch_size=3, index1=np.array([2, 0])))
CASES = {
    "large": LARGE,
    "segments": SEGMENTS,
    **{name: NAMED[name] for name in ("pyramid and lookups", "edges of patches", "steep flow", "stereo", "patch apart")},
    "no channels": NAMED["no channels"],
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)

# Bytes, as `tables` names them: small tasks, several groups of images, small batches, bands of rows, bands of some channels.
DIVISIONS = {
    "small tasks": dict(TASK=3000, FEWEST=3),
    "tasks of one query": dict(TASK=1, FEWEST=1),
    "small batches": dict(FEATURES=5000),
    "batches of one pixel": dict(FEATURES=1),
    "bands": dict(MAPS=2**15, DOTS=20000),
    "bands of one row and some channels": dict(MAPS=4 * 1024, DOTS=1),
}


def divide(monkeypatch, **sizes):
    for name, value in sizes.items():
        for module in (tables, simd_forward):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)


def look_up(case, **parameters):
    return correlation_lookup(*case.arrays(), **case.parameters, variant="simd", **parameters)


# By default the divisions into the most parts are for small lookups only.
QUICK = {"small tasks": CASES, "small batches": CASES, "bands": CASES, "tasks of one query": ("pyramid and lookups", "segments")}


@pytest.mark.parametrize(
    ("case", "sizes"),
    [
        pytest.param(
            case,
            sizes,
            id=f"{name}-{division_name}",
            marks=() if name in QUICK.get(division_name, ("pyramid and lookups",)) else pytest.mark.slow,
        )
        for (name, case), (division_name, sizes) in product(CASES.items(), DIVISIONS.items())
    ],
)
def test_bits_do_not_depend_on_how_a_lookup_is_divided(monkeypatch, case, sizes):
    want = look_up(case)
    divide(monkeypatch, **sizes)
    assert look_up(case).tobytes() == want.tobytes()


@cases
def test_bits_do_not_depend_on_tiles_rectangles_and_groups_of_taps(monkeypatch, case):
    want = look_up(case)
    monkeypatch.setattr(division, "TILE_ROWS", 1)
    assert look_up(case).tobytes() == want.tobytes()
    monkeypatch.setattr(dot_kernel, "TILE", (1, 3))
    monkeypatch.setattr(dot_kernel, "MOST_TAPS", 3)
    monkeypatch.setattr(dot_kernel, "_compiled", dot_kernel._compiled.__wrapped__)  # compiled again
    assert look_up(case).tobytes() == want.tobytes()


@pytest.fixture(params=[16, 32])
def narrow_vectors(request, monkeypatch):
    """Compile kernels for the vectors of other processors, of so many bytes."""
    modules = packing, window_kernel, dot_kernel, blend_kernel, moved_kernel, gradient_kernels
    for module in modules:
        monkeypatch.setattr(module, "registers", lambda: llvm.Registers(16, (request.param,)), raising=False)
    _forget_kernels(modules)
    yield
    _forget_kernels(modules)


def _forget_kernels(modules):
    for function in (function for module in modules for function in vars(module).values()):
        if hasattr(function, "cache_clear"):
            function.cache_clear()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["segments", "pyramid and lookups", "patch apart"])
def test_kernels_for_narrow_vectors_equal_the_definition(narrow_vectors, name, dtype):
    case = CASES[name].of(dtype)
    check_forward(case, "simd")
    check_vjp(case, "simd")


def test_a_lane_of_the_narrowest_vectors_sums_no_longer_chain_than_is_allowed():
    assert LONGEST_CHAIN.registers * 16 >= dot_kernel.SEGMENT


@pytest.mark.covering(2)
@pytest.mark.parametrize("sizes", [{}, DIVISIONS["bands"]], ids=["whole", "bands"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@cases
def test_bits_do_not_depend_on_the_number_of_threads(monkeypatch, case, dtype, sizes):
    case = case.of(dtype)
    divide(monkeypatch, FEWEST=1, **sizes)
    monkeypatch.setattr("cupycorr._lookup.cpu.simd.THREAD_SECONDS", 0.0)  # small calls use several threads too
    with workers.team_of(1):
        want = look_up(case)
    for threads in (2, 7):
        with workers.team_of(threads):
            assert look_up(case).tobytes() == want.tobytes()


@pytest.mark.parametrize("sizes", DIVISIONS.values(), ids=DIVISIONS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("segments", "float32"), ("edges of patches", "bfloat16"), pytest.param("segments", "float64", marks=pytest.mark.slow)],
)
def test_a_lookup_that_is_divided_equals_the_definition(monkeypatch, name, dtype, sizes):
    divide(monkeypatch, COORDS=100, **sizes)
    check_forward(CASES[name].of(dtype), "simd")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_dot_has_the_same_bits_in_every_window(dtype):
    x1, x2, _ = Case((1, 300, 5, 6), (1, 300, 17, 19), (1, 2, 5, 6), dtype=dtype).arrays()
    x1[...] = x1[:, :, :1, :1]  # so that all queries are the same
    near = np.random.default_rng(3).integers(-9, 28, (1, 2, 5, 6)).astype(x1.dtype)
    out = correlation_lookup(x1, x2, near, (5, 14), variant="simd")[0]
    found = {}
    for m, n, i, j in np.ndindex(out.shape):
        place = int(near[0, 1, i, j]) + m - 2, int(near[0, 0, i, j]) + n - 6
        found.setdefault(place, set()).add(out[m, n, i, j].tobytes())
    assert len(found) > 400
    assert all(len(bits) == 1 for bits in found.values())


# Maps that are packed already.


def packed(x):
    """Return the same map with its channels last, at the beginning of a cache line."""
    return aligned(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_packed_maps_are_used_in_place(monkeypatch, dtype):
    case = Case((2, 32, 21, 40), [(2, 32, 21, 40), (2, 32, 10, 20)], (2, 2, 21, 40), dict(patch_size=5), dtype=dtype)
    x1, x2, coords = case.arrays()
    want = look_up(case)
    ready = packed(x1), [packed(each) for each in x2], coords

    def copies(part):
        raise AssertionError("a map is packed that is packed already")

    monkeypatch.setattr(packing, "pack", copies)
    out = np.empty_like(want)
    _, used = peak(lambda: correlation_lookup(*ready, **case.parameters, variant="simd", out=out))
    assert out.tobytes() == want.tobytes()
    assert used < sum(each.nbytes for each in x2) + tables.TASK


@pytest.mark.parametrize("sizes", [{}, DIVISIONS["bands"], DIVISIONS["small batches"]], ids=["whole", "bands", "batches"])
@pytest.mark.parametrize("ready", [(0,), (1,), (2,), (0, 2)], ids=str)
def test_some_packed_maps_beside_others_give_the_same_bits(monkeypatch, ready, sizes):
    case = Case((2, 32, 9, 14), [(2, 32, 9, 14), (2, 32, 4, 7)], (2, 2, 9, 14), dict(patch_size=5))
    x1, x2, coords = case.arrays()
    want = look_up(case)
    divide(monkeypatch, **sizes)
    maps = [packed(each) if number in ready else each for number, each in enumerate((x1, *x2))]
    out = correlation_lookup(maps[0], maps[1:], coords, **case.parameters, variant="simd")
    assert out.tobytes() == want.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_outputs_and_coords_of_any_strides_give_the_same_bits(dtype):
    case = NAMED["pyramid and lookups"].of(dtype)
    x1, x2, coords = case.arrays()
    want = look_up(case)
    for axes in ([0, 1, 2, 3, 4, 6, 5], [6, 5, 4, 3, 2, 1, 0], [2, 1, 0, 5, 6, 3, 4]):
        memory = np.empty([want.shape[axis] for axis in axes], want.dtype)
        out = memory.transpose(np.argsort(axes))[..., ::-1]
        strange = coords.transpose(0, 2, 4, 1, 3).copy().transpose(0, 3, 1, 4, 2)
        assert correlation_lookup(x1, x2, strange, **case.parameters, variant="simd", out=out) is out
        np.testing.assert_array_equal(out, want)


BETWEEN_HOLES = """
    import ctypes, itertools, mmap, sys
    import numpy as np
    from cupycorr import correlation_lookup

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
        ((5, 17), (9, 20), 9, 48),
        ((1, 33), (1, 1), (1, 9), 16),
        ((4, 16), (12, 14), (4, 15), 7),
        ((2, 16), (3, 16), 2, 1),
    ):
        for at_end, last, dtype in itertools.product((False, True), (False, True), (np.float32, np.float64)):
            x1, x2 = (rng.standard_normal((1, channels, *size)).astype(dtype) for size in ((height, width), (height2, width2)))
            accumulator = np.float64 if dtype is np.float64 else np.float32
            coords = rng.uniform(-9, 25, (1, 2, height, width)).astype(accumulator)
            want = correlation_lookup(x1, x2, coords, patch, variant="simd")
            if last:
                x1, x2 = (between_holes(x.transpose(0, 2, 3, 1), at_end).transpose(0, 3, 1, 2) for x in (x1, x2))
            else:
                x1, x2 = (between_holes(x, at_end) for x in (x1, x2))
            out = between_holes(want, at_end)
            out[...] = 0
            correlation_lookup(x1, x2, between_holes(coords, at_end), patch, variant="simd", out=out)
            assert (out == want).all()
    print("inside")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects pages of memory as Linux does")
def test_nothing_outside_the_arrays_is_read_or_written():
    assert python(BETWEEN_HOLES) == "inside"


# Refusals and the choice.


def reasons(x1, x2, **parameters):
    coords = np.zeros((1, 2, *x1.shape[2:]), np.float32)
    return cupycorr.explain_lookup(x1, x2, coords, **parameters).reasons


def test_what_does_not_fit_into_the_workspace_is_refused_with_the_reason():
    x = np.broadcast_to(np.float32(0), (1, 8, 4, 40000))
    assert "40000 pixels" in reasons(x, x, patch_size=3)["simd"]
    x = x[..., :8]
    assert "bytes of dot products" in reasons(x, x, patch_size=3000)["simd"]
    wide = np.broadcast_to(np.float32(0), (1, 8, 1, 40000))
    with pytest.raises(NotImplementedError, match="40000"):
        correlation_lookup(x[:, :, :1, :1], wide, np.zeros((1, 2, 1, 1), np.float32), 3, variant="simd")


def test_without_llvm_the_lookup_runs_on_blas(monkeypatch):
    monkeypatch.setattr(llvm, "why_not", lambda: "llvmlite is not installed")
    x = np.random.default_rng(0).standard_normal((1, 9, 11, 13), np.float32)  # no plan of it is in a cache
    coords = np.zeros((1, 2, 11, 13), np.float32)
    told = cupycorr.explain_lookup(x, x, coords, patch_size=7)
    assert (told.variant, told.reasons["simd"]) == ("blas", "llvmlite is not installed")
    with pytest.raises(NotImplementedError, match="llvmlite is not installed"):
        correlation_lookup(x, x, coords, 7, variant="simd")


def test_the_lookup_of_a_flow_network_runs_on_simd():
    x, coords = np.zeros((1, 128, 40, 60), np.float32), np.zeros((1, 2, 40, 60), np.float32)
    for gradients in (False, True):
        assert cupycorr.explain_lookup(x, [x, x[..., ::2, ::2]], coords, gradients=gradients).variant == "simd"


@pytest.mark.parametrize("needs", list(np.ndindex(2, 2, 2))[1:], ids=str)
def test_the_description_of_a_plan_of_gradients_names_those_that_are_needed(needs):
    x1, x2, coords = NAMED["RAFT"].arrays()
    needs = tuple(map(bool, needs))
    how = cupycorr.explain_lookup(x1, x2, coords, gradients=needs, variant="simd").how
    assert [name in how for name in ("input1", "input2", "coords")] == list(needs)
    assert ("dot products" in how) is needs[2]
