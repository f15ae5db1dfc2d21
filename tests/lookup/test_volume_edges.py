"""Lookups in volumes at the edges: outside the slices, at numbers that are no coordinates, beside infinities, and their laws."""

import ctypes
import mmap

import numpy as np
import pytest
from layouts import LAYOUTS
from lookup_oracle import assert_close
from volume_cases import BOTH, CPU_VARIANTS, NAMED, Case

from cupycorr import correlation_lookup, correlation_lookup_vjp, volume_lookup, volume_lookup_vjp
from cupycorr._cpu import workers

variants = pytest.mark.parametrize("variant", CPU_VARIANTS)


def volume(shape=(1, 6, 7, 6, 7), seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def grid(height=6, width=7):
    return np.stack(np.meshgrid(np.arange(width, dtype=float), np.arange(height, dtype=float)))[None]


@variants
@pytest.mark.parametrize("far", [1e30, -1e30, 1e18, -1e9, 1e300, -1e308])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_window_wholly_outside_is_zero_and_has_no_gradient(variant, axis, far):
    v, coords = volume(), grid() + 0.25
    near = volume_lookup(v, coords, 3, variant=variant)
    coords[0, axis, 2, 3] = far
    out = volume_lookup(v, coords, 3, variant=variant)
    assert (out[0, :, :, 2, 3] == 0).all()
    elsewhere = np.ones((6, 7), bool)
    elsewhere[2, 3] = False
    np.testing.assert_array_equal(out[..., elsewhere], near[..., elsewhere])
    to_volume, to_coords = volume_lookup_vjp(np.ones_like(out), v, coords, 3, variant=variant, needs=BOTH)
    assert (to_volume[0, 2, 3] == 0).all()
    assert (to_coords[0, :, 2, 3] == 0).all()


@variants
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_coordinate_that_is_not_finite_is_nan_at_its_query_only(variant, axis, bad):
    v, coords = volume(), grid() + 0.25
    g = np.ones((1, 3, 3, 6, 7))
    clean = volume_lookup(v, coords, 3, variant=variant), *volume_lookup_vjp(g, v, coords, 3, variant=variant, needs=BOTH)
    coords[0, axis, 2, 3] = bad
    found = volume_lookup(v, coords, 3, variant=variant), *volume_lookup_vjp(g, v, coords, 3, variant=variant, needs=BOTH)
    hit = np.zeros((6, 7), bool)
    hit[2, 3] = True
    for got, want in ((found[0], clean[0]), (found[2], clean[2])):
        assert np.isnan(got[..., hit]).all()
        np.testing.assert_array_equal(got[..., ~hit], want[..., ~hit])
    assert (found[1][0, hit] == 0).all()
    np.testing.assert_array_equal(found[1][0, ~hit], clean[1][0, ~hit])


@variants
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_element_that_is_not_finite_reaches_only_the_windows_that_hold_it(variant, bad):
    v, coords = volume((1, 9, 12, 9, 12)), grid(9, 12) + 0.25
    v[0, :, :, 4, 5] = bad
    out = volume_lookup(v, coords, 3, variant=variant)
    rows, columns = np.indices((9, 12))
    holds = (abs(rows + 0.5 - 4) < 2) & (abs(columns + 0.5 - 5) < 2)
    np.testing.assert_array_equal(~np.isfinite(out).all((0, 1, 2)), holds)
    to_coords = volume_lookup_vjp(np.ones_like(out), v, coords, 3, variant=variant, needs=(False, True))[1]
    np.testing.assert_array_equal(~np.isfinite(to_coords).all((0, 1)), holds)


@variants
def test_a_query_reads_and_writes_no_slice_but_its_own(variant):
    v, coords = volume(), grid() + 0.25
    clean = volume_lookup(v, coords, 3, variant=variant)
    v[0, 2, 3] = np.nan
    out = volume_lookup(v, coords, 3, variant=variant)
    hit = np.zeros((6, 7), bool)
    hit[2, 3] = True
    assert np.isnan(out[..., hit]).all()
    np.testing.assert_array_equal(out[..., ~hit], clean[..., ~hit])
    g = np.zeros_like(out)
    g[..., 2, 3] = 1
    gradient = volume_lookup_vjp(g, v, coords, 3, variant=variant)[0]
    assert gradient[0, hit].any()
    assert not gradient[0, ~hit].any()


@variants
def test_slices_of_one_pixel_are_finite(variant):
    v = volume((1, 6, 7, 1, 1))
    out = volume_lookup(v, grid() / 8, 3, variant=variant)
    weights = np.maximum(1 - np.arange(6) / 8, 0)[:, None] * np.maximum(1 - np.arange(7) / 8, 0)
    np.testing.assert_allclose(out[0, 1, 1], weights * v[0, :, :, 0, 0], rtol=1e-12)


@variants
@pytest.mark.parametrize("shape", [(0, 6, 7, 6, 7), (0, 6, 7, 9)])
def test_no_entries_give_empty_results(variant, shape):
    v, coords = np.zeros(shape), np.zeros((0, len(shape) - 3, 6, 7))
    out = volume_lookup(v, coords, 3, variant=variant)
    assert out.shape == ((0, 3, 3, 6, 7) if len(shape) == 5 else (0, 3, 6, 7))
    found = volume_lookup_vjp(out, v, coords, 3, variant=variant, needs=BOTH)
    assert [each.shape for each in found] == [v.shape, coords.shape]


@variants
def test_the_order_exchanges_the_axes_of_the_patch_and_nothing_else(variant):
    v, coords = volume(), grid() + 0.3
    by_rows = volume_lookup(v, coords, (2, 5), variant=variant)
    by_columns = volume_lookup(v, coords, (2, 5), order="dx", variant=variant)
    assert by_columns.shape == (1, 5, 2, 6, 7)
    np.testing.assert_array_equal(by_columns, by_rows.swapaxes(1, 2))


# Laws -------------------------------------------------------------------------------------------------------------------------


@variants
@pytest.mark.parametrize(
    "parameters", [dict(patch_size=9), dict(patch_size=(2, 3), dilation_patch=(1, 2), order="dx", scale=0.5)]
)
def test_the_volume_of_all_pairs_gives_the_lookup_on_demand(variant, parameters):
    x1, x2 = np.random.default_rng(0).standard_normal((2, 2, 5, 6, 7))
    coords = grid() + np.random.default_rng(1).normal(0, 2, (2, 2, 6, 7))
    all_pairs = np.einsum("ecij,eckl->eijkl", x1, x2)
    out = volume_lookup(all_pairs, coords, variant=variant, **parameters)
    np.testing.assert_allclose(out, correlation_lookup(x1, x2, coords, **parameters), rtol=1e-11, atol=1e-11)
    g = np.random.default_rng(2).standard_normal(out.shape)
    to_volume, to_coords = volume_lookup_vjp(g, all_pairs, coords, variant=variant, needs=BOTH, **parameters)
    g1, g2, gc = correlation_lookup_vjp(g, x1, x2, coords, needs=(True, True, True), **parameters)
    np.testing.assert_allclose(np.einsum("eijkl,eckl->ecij", to_volume, x2), g1, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(np.einsum("eijkl,ecij->eckl", to_volume, x1), g2, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(to_coords, gc, rtol=1e-10, atol=1e-10)


@variants
def test_one_dimension_is_the_middle_row_of_two(variant):
    v, x = volume((2, 3, 9, 11)), np.random.default_rng(1).uniform(-2, 12, (2, 1, 3, 9))
    out = volume_lookup(v, x, 5, variant=variant)
    two = volume_lookup(v[:, :, :, None], np.concatenate((x, np.zeros_like(x)), 1), 5, variant=variant)
    np.testing.assert_allclose(out, two[:, 2], rtol=1e-12, atol=1e-12)


@variants
@pytest.mark.parametrize("name", ["DROID's order", "stereo", "dilated patch"])
def test_the_gradient_of_the_volume_is_adjoint_to_the_output(variant, name):
    case = NAMED[name].of("float64")
    (v, coords), g = case.arrays(), case.cotangent()
    out = volume_lookup(v, coords, **case.parameters, variant=variant)
    gradient = volume_lookup_vjp(g, v, coords, **case.parameters, variant=variant)[0]
    assert np.isclose(np.vdot(gradient, v), np.vdot(g, out), rtol=1e-10)


@variants
def test_the_derivative_at_a_whole_number_is_that_to_the_right(variant):
    case = Case((1, 6, 7, 6, 7), dict(patch_size=3), "float64", whole=True, noise=1.0)
    (v, coords), g, step = case.arrays(), case.cotangent(), 2.0**-20
    found = volume_lookup_vjp(g, v, coords, 3, variant=variant, needs=BOTH)[1]
    for channel in (0, 1):
        ahead = coords.copy()
        ahead[:, channel] += step
        change = volume_lookup(v, ahead, 3, variant=variant) - volume_lookup(v, coords, 3, variant=variant)
        np.testing.assert_allclose(found[:, channel], (g * change).sum((1, 2)) / step, rtol=1e-6, atol=1e-6)


@variants
@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1)], ids=["wide", "tall"])
def test_slopes_of_one_sign_keep_the_error_bound_over_many_displacements(variant, size):
    """Every other pixel is a step up: with displacements two pixels apart, all slopes are equal."""
    patch = tuple(max(each // 2 - 1, 1) for each in size)
    axis, count = int(size[0] > 1), max(patch)
    coords = np.zeros((1, 2, 1, 1), np.float32)
    coords[0, axis] = (count - 1) // 2 * 2
    for step, weight in np.random.default_rng(0).uniform(0.1, 1, (9, 2)).astype(np.float32):
        v = np.resize(np.array([0, step], np.float32), (1, 1, 1, *size))
        g = np.full((1, *patch, 1, 1), weight, np.float32)
        got = volume_lookup_vjp(g, v, coords, patch, dilation_patch=2, variant=variant, needs=(False, True))[1]
        want = np.full(1, count * np.float64(step) * np.float64(weight))
        assert_close(got[:, axis].ravel(), (want, want, np.full(1, count)))


# Bits and memory --------------------------------------------------------------------------------------------------------------

LARGE = Case((2, 41, 60, 20, 30), dict(patch_size=7), noise=2.0, strange=0.001)


@variants
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_results_have_the_same_bits_for_any_number_of_threads(variant, dtype):
    case = LARGE.of(dtype)
    arrays, g = case.arrays(), case.cotangent()

    def results():
        out = volume_lookup(*arrays, **case.parameters, variant=variant)
        return out, *volume_lookup_vjp(g, *arrays, **case.parameters, variant=variant, needs=BOTH)

    with workers.team_of(1):
        wanted = results()
    for threads in (2, 5):
        with workers.team_of(threads):
            for got, want in zip(results(), wanted, strict=True):
                assert got.tobytes() == want.tobytes()


VIEWS = {
    "permuted": lambda x: np.ascontiguousarray(x.transpose(0, 3, 4, 1, 2)).transpose(0, 3, 4, 1, 2),
    "cropped": lambda x: np.pad(x, [(0, 0), (1, 2), (2, 1), (3, 0), (0, 4)], constant_values=np.nan)[:, 1:-2, 2:-1, 3:, :-4],
    "reversed": lambda x: np.ascontiguousarray(x[::-1, ::-1, ::-1, ::-1, ::-1])[::-1, ::-1, ::-1, ::-1, ::-1],
    "not at whole elements": lambda x: np.rec.fromarrays([np.zeros(x.shape, np.int8), x], names="before,x")["x"],
    "unaligned": LAYOUTS["unaligned"],
    "read-only": LAYOUTS["read-only"],
}


@pytest.mark.covering(2)
@variants
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_any_memory_layout_gives_the_same_bits(variant, view, dtype):
    case = NAMED["DROID's order"].of(dtype)
    (v, coords), g = case.arrays(), case.cotangent()
    laid = view(v), LAYOUTS["channels last"](coords), view(g)
    out = volume_lookup(v, coords, **case.parameters, variant=variant)
    assert volume_lookup(*laid[:2], **case.parameters, variant=variant).tobytes() == out.tobytes()
    wanted = volume_lookup_vjp(g, v, coords, **case.parameters, variant=variant, needs=BOTH)
    for got, want in zip(
        volume_lookup_vjp(laid[2], *laid[:2], **case.parameters, variant=variant, needs=BOTH), wanted, strict=True
    ):
        assert got.tobytes() == want.tobytes()


@pytest.fixture
def page_before_nothing():
    """Return a function that copies an array to the end, or to the beginning, of memory beside which none may be read."""
    held = []

    def placed(array, at_the_end):
        size = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, size + 2 * mmap.PAGESIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        protect = ctypes.CDLL(None).mprotect
        protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        first = mmap.PAGESIZE + (size - array.nbytes if at_the_end else 0)
        copy = np.frombuffer(memory, array.dtype, array.size, first).reshape(array.shape)
        copy[...] = array
        for page in (address, address + mmap.PAGESIZE + size):
            assert protect(page, mmap.PAGESIZE, 0) == 0
            held.append((protect, page))
        held.append(memory)
        return copy

    yield placed
    for each in held:
        if isinstance(each, tuple):
            each[0](each[1], mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE)


@pytest.mark.skipif(not hasattr(mmap, "PROT_READ"), reason="the system has no mprotect")
@variants
@pytest.mark.parametrize("at_the_end", [False, True], ids=["beginning", "end"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_nothing_outside_the_volume_is_read(page_before_nothing, variant, at_the_end, dtype):
    case = Case((1, 3, 19, 5, 6), dict(patch_size=(4, 7)), noise=6.0, strange=0.05).of(dtype)
    v, coords = case.arrays()
    placed = page_before_nothing(v, at_the_end)
    out = volume_lookup(v, coords, **case.parameters, variant=variant)
    assert volume_lookup(placed, coords, **case.parameters, variant=variant).tobytes() == out.tobytes()
