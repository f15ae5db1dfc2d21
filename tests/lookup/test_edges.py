"""Lookups at the edges: outside the maps, at numbers that are no coordinates, beside infinities, with nothing to do."""

import numpy as np
import pytest
from lookup_cases import ALL, CPU_VARIANTS

from cupycorr import correlation_lookup, correlation_lookup_vjp

pytestmark = pytest.mark.parametrize("variant", CPU_VARIANTS)


def maps(height=6, width=7, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, 1, channels, height, width))


def grid(height=6, width=7):
    return np.stack(np.meshgrid(np.arange(width, dtype=float), np.arange(height, dtype=float)))[None]


@pytest.mark.covering(2)
@pytest.mark.parametrize("far", [1e30, -1e30, 1e18, -1e9, 1e300, -1e308])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_window_wholly_outside_is_zero_and_has_no_gradient(variant, axis, far):
    x1, x2 = maps()
    coords = grid()
    coords[0, axis, 2, 3] = far
    out = correlation_lookup(x1, x2, coords, 3, variant=variant)
    assert (out[0, :, :, 2, 3] == 0).all()
    assert np.isfinite(out).all()
    near = correlation_lookup(x1, x2, grid(), 3, variant=variant)
    elsewhere = np.ones((6, 7), bool)
    elsewhere[2, 3] = False
    np.testing.assert_array_equal(out[..., elsewhere], near[..., elsewhere])
    g1, g2, gc = correlation_lookup_vjp(np.ones_like(out), x1, x2, coords, 3, variant=variant, needs=ALL)
    assert (g1[0, :, 2, 3] == 0).all()
    assert (gc[0, :, 2, 3] == 0).all()
    assert np.isfinite(g2).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_coordinate_that_is_not_finite_is_nan_at_its_query_only(variant, axis, bad):
    x1, x2 = maps()
    coords = grid() + 0.25
    pyramid = [x2, x2[..., :3, :3]]
    clean = correlation_lookup(x1, pyramid, coords, 3, variant=variant)
    g = np.ones_like(clean)
    g[..., 2, 3] = 0
    clean_gradients = correlation_lookup_vjp(g, x1, pyramid, coords, 3, variant=variant, needs=ALL)
    coords[0, axis, 2, 3] = bad
    out = correlation_lookup(x1, pyramid, coords, 3, variant=variant)
    g1, g2, gc = correlation_lookup_vjp(g, x1, pyramid, coords, 3, variant=variant, needs=ALL)
    hit = np.zeros((6, 7), bool)
    hit[2, 3] = True
    for got, want in ((out, clean), (g1, clean_gradients[0]), (gc, clean_gradients[2])):
        assert np.isnan(got[..., hit]).all()
        np.testing.assert_allclose(got[..., ~hit], want[..., ~hit], rtol=1e-12, atol=1e-12)
    for got, want in zip(g2, clean_gradients[1], strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_a_query_that_is_not_finite_adds_nothing_to_the_gradient_of_input2(variant):
    x1, x2 = maps()
    coords = np.full((1, 2, 6, 7), np.nan)
    g2 = correlation_lookup_vjp(np.ones((1, 3, 3, 6, 7)), x1, x2, coords, 3, variant=variant)[1]
    assert (g2 == 0).all()


def test_one_lookup_that_is_not_finite_makes_only_its_own_output_and_its_pixel_nan(variant):
    x1, x2 = maps()
    coords = np.stack((grid(), grid()), 1)
    coords[0, 1, 0, 2, 3] = np.nan
    out = correlation_lookup(x1, x2, coords, 3, variant=variant)
    assert np.isnan(out).sum() == 9
    assert np.isnan(out[0, 1, :, :, 2, 3]).all()
    g1, _, gc = correlation_lookup_vjp(np.ones_like(out), x1, x2, coords, 3, variant=variant, needs=ALL)
    assert np.isnan(g1[0, :, 2, 3]).all()
    assert np.isnan(g1).sum() == 3
    assert np.isnan(gc[0, 1, :, 2, 3]).all()
    assert np.isnan(gc).sum() == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_feature_that_is_not_finite_reaches_only_the_windows_that_hold_it(variant, bad):
    x1, x2 = maps(9, 12)
    x2[0, 1, 4, 5] = bad
    coords = grid(9, 12) + 0.25
    out = correlation_lookup(x1, x2, coords, 3, variant=variant)
    rows, columns = np.indices((9, 12))
    holds = (abs(rows + 0.5 - 4) < 2) & (abs(columns + 0.5 - 5) < 2)
    np.testing.assert_array_equal(~np.isfinite(out).all((0, 1, 2)), holds)
    g1, _, gc = correlation_lookup_vjp(np.ones_like(out), x1, x2, coords, 3, variant=variant, needs=ALL)
    for got in (g1, gc):
        np.testing.assert_array_equal(~np.isfinite(got).all((0, 1)), holds)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_pixel_that_is_not_finite_reaches_only_its_own_window(variant, bad):
    x1, x2 = maps(9, 12)
    x1[0, 1, 4, 5] = bad
    coords = grid(9, 12) + 0.25
    out = correlation_lookup(x1, x2, coords, 3, variant=variant)
    rows, columns = np.indices((9, 12))
    np.testing.assert_array_equal(~np.isfinite(out).all((0, 1, 2)), (rows == 4) & (columns == 5))
    g1, g2, _ = correlation_lookup_vjp(np.ones_like(out), x1, x2, coords, 3, variant=variant)
    assert np.isfinite(g1).all()
    in_window = (rows >= 3) & (rows <= 6) & (columns >= 4) & (columns <= 7)
    np.testing.assert_array_equal(~np.isfinite(g2[0]).all(0), in_window)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_pixel_that_is_not_finite_is_not_multiplied_outside_the_map(variant, bad):
    x1, x2 = maps()
    x1[...] = bad
    out = correlation_lookup(x1, x2, grid() - 100, 3, variant=variant)
    assert (out == 0).all()


def test_own_rows_read_no_row_below(variant):
    x1, x2 = maps()
    clean = correlation_lookup(x1, x2, grid()[:, :1], (1, 3), variant=variant)
    x2[0, :, 3] = np.inf
    out = correlation_lookup(x1, x2, grid()[:, :1], (1, 3), variant=variant)
    np.testing.assert_array_equal(np.delete(out, 3, 3), np.delete(clean, 3, 3))
    assert not np.isfinite(out[:, :, :, 3, 1:-1]).any()


def test_own_rows_equal_coords_of_two_channels(variant):
    x1, x2 = maps()
    coords = grid()
    coords[:, 0] += 0.375
    args = (np.ones((1, 2, 3, 3, 6, 7)), x1, [x2, x2[..., ::2]])
    of_x = correlation_lookup(*args[1:], coords[:, :1], 3, level_step=(1, 2), variant=variant)
    of_both = correlation_lookup(*args[1:], coords, 3, level_step=(1, 2), variant=variant)
    np.testing.assert_allclose(of_x, of_both, rtol=1e-12, atol=1e-12)
    one = correlation_lookup_vjp(*args, coords[:, :1], 3, level_step=(1, 2), variant=variant, needs=ALL)
    two = correlation_lookup_vjp(*args, coords, 3, level_step=(1, 2), variant=variant, needs=ALL)
    assert one[2].shape == (1, 1, 6, 7)
    for got, want in zip((one[0], *one[1], one[2]), (two[0], *two[1], two[2][:, :1]), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_levels_of_one_pixel_are_finite(variant):
    x1, x2 = maps()
    pyramid = [x2, x2[..., :1, :1], x2[..., :1, :2], x2[..., :2, :1]]
    out = correlation_lookup(x1, pyramid, grid(), 3, variant=variant)
    assert np.isfinite(out).all()
    inner = out[0, 1, 1, 1]  # the centre of the windows at the level of one pixel
    weights = np.maximum(1 - np.arange(6) / 2, 0)[:, None] * np.maximum(1 - np.arange(7) / 2, 0)
    np.testing.assert_allclose(inner, weights * np.einsum("chw,c->hw", x1[0], x2[0, :, 0, 0]), rtol=1e-12, atol=1e-12)


EMPTY = {"no entries": ((0, 2, 6, 7), (0, 3, 3, 6, 7)), "no lookups": ((1, 0, 2, 6, 7), (1, 0, 3, 3, 6, 7))}


@pytest.mark.parametrize(("coords", "shape"), EMPTY.values(), ids=EMPTY)
def test_nothing_to_look_up_gives_empty_outputs_and_zero_gradients(variant, coords, shape):
    x1, x2 = maps()
    given = {"index1": np.zeros(coords[0], int), "index2": np.zeros(coords[0], int)}
    out = correlation_lookup(x1, x2, np.zeros(coords), 3, variant=variant, **given)
    assert out.shape == shape
    g1, g2, gc = correlation_lookup_vjp(out, x1, x2, np.zeros(coords), 3, variant=variant, needs=ALL, **given)
    assert (g1 == 0).all()
    assert (g2 == 0).all()
    assert gc.shape == coords


def test_an_index_selects_the_images_of_each_entry(variant):
    rng = np.random.default_rng(3)
    x1, x2 = rng.standard_normal((4, 3, 5, 6)), rng.standard_normal((3, 3, 5, 6))
    index1, index2 = np.array([3, 0, 3, 1, 1]), np.array([2, 2, 0, 1, 0], np.int32)
    coords = grid(5, 6) + rng.standard_normal((5, 2, 5, 6))
    out = correlation_lookup(x1, x2, coords, 3, index1=index1, index2=index2, variant=variant)
    np.testing.assert_array_equal(out, correlation_lookup(x1[index1], x2[index2], coords, 3, variant=variant))
    g = rng.standard_normal(out.shape)
    g1, g2, _ = correlation_lookup_vjp(g, x1, x2, coords, 3, index1=index1, index2=index2, variant=variant)
    each1, each2, _ = correlation_lookup_vjp(g, x1[index1], x2[index2], coords, 3, variant=variant)
    for got, each, index in ((g1, each1, index1), (g2, each2, index2)):
        want = np.zeros_like(got)
        np.add.at(want, index, each)
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    assert (g1[2] == 0).all()  # no entry has this image


def test_the_order_exchanges_the_axes_of_the_patch_and_nothing_else(variant):
    x1, x2 = maps()
    coords = grid() + 0.3
    by_rows = correlation_lookup(x1, x2, coords, (2, 5), variant=variant)
    by_columns = correlation_lookup(x1, x2, coords, (2, 5), order="dx", variant=variant)
    assert by_columns.shape == (1, 5, 2, 6, 7)
    np.testing.assert_array_equal(by_columns, by_rows.swapaxes(1, 2))
