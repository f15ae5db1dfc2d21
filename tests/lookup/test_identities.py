"""Laws that hold without an oracle: the fixed grid, shifted maps, adjoint gradients, finite differences of coordinates."""

import numpy as np
import pytest
from lookup_cases import ALL, CPU_VARIANTS, NAMED, Case

from cupycorr import correlation_lookup, correlation_lookup_vjp, spatial_correlation_sample, spatial_correlation_sample_vjp

pytestmark = pytest.mark.parametrize("variant", CPU_VARIANTS)


def grid(height, width, dtype=np.float64):
    return np.stack(np.meshgrid(np.arange(width), np.arange(height))).astype(dtype)


PATCHES = {
    "RAFT": dict(patch_size=9),
    "even": dict(patch_size=(2, 4)),
    "dilated": dict(patch_size=(3, 5), dilation_patch=(2, 3)),
    "scale": dict(patch_size=3, scale=-0.25),
}


@pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES)
def test_whole_numbers_on_the_pixel_grid_give_the_fixed_grid_operator(variant, patch):
    x1, x2 = np.random.default_rng(0).standard_normal((2, 2, 6, 11, 13))
    coords = np.broadcast_to(grid(11, 13), (2, 2, 11, 13))
    out = correlation_lookup(x1, x2, coords, **patch, variant=variant)
    np.testing.assert_allclose(out, spatial_correlation_sample(x1, x2, **patch), rtol=1e-12, atol=1e-12)
    g = np.random.default_rng(1).standard_normal(out.shape)
    got = correlation_lookup_vjp(g, x1, x2, coords, **patch, variant=variant)[:2]
    for one, other in zip(got, spatial_correlation_sample_vjp(g, x1, x2, **patch), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dy", "dx"), [(2, -3), (0, 4), (-5, 0)])
def test_shifted_coordinates_equal_a_rolled_map(variant, dy, dx):
    x1, x2 = np.random.default_rng(0).standard_normal((2, 1, 6, 16, 18))
    moved = grid(16, 18) + np.array([dx, dy])[:, None, None] + 0.375
    still = grid(16, 18) + 0.375
    out = correlation_lookup(x1, x2, moved[None], 3, variant=variant)
    rolled = correlation_lookup(x1, np.roll(x2, (-dy, -dx), (2, 3)), still[None], 3, variant=variant)
    inside = (..., slice(7, -7), slice(7, -7))  # windows that no border is near
    np.testing.assert_allclose(out[inside], rolled[inside], rtol=1e-12, atol=1e-12)


def test_coordinates_of_a_level_are_those_of_level_0_times_a_power(variant):
    x1, x2 = np.random.default_rng(0).standard_normal((2, 1, 6, 12, 14))
    coords = grid(12, 14)[None] * 1.75
    pyramid = correlation_lookup(x1, [x2] * 3, coords, 3, level_step=(3, 2), variant=variant)
    for level in range(3):
        scaled = coords * np.array([2.0**-level, 3.0**-level])[:, None, None]
        np.testing.assert_allclose(
            pyramid[:, level], correlation_lookup(x1, x2, scaled, 3, variant=variant), rtol=1e-10, atol=1e-10
        )


NAMES = ("RAFT", "RAFT's order", "pyramid and lookups", "patch apart", "stereo", "own rows, tall patch", "edges of patches")
cases = pytest.mark.parametrize("case", [NAMED[name].of("float64") for name in NAMES], ids=NAMES)


def as_list(maps):
    return list(maps) if isinstance(maps, (list, tuple)) else [maps]


@cases
def test_gradients_of_both_maps_are_adjoint_to_the_output(variant, case):
    x1, x2, coords = case.arrays()
    g = case.cotangent()
    out = correlation_lookup(x1, x2, coords, **case.parameters, variant=variant)
    g1, g2, _ = correlation_lookup_vjp(g, x1, x2, coords, **case.parameters, variant=variant)
    want = np.vdot(g, out)
    assert np.isclose(np.vdot(g1, x1), want, rtol=1e-10)
    assert np.isclose(sum(map(np.vdot, as_list(g2), as_list(x2))), want, rtol=1e-10)


@cases
def test_the_gradient_of_coords_is_that_of_finite_differences(variant, case):
    x1, x2, coords = case.arrays()
    step = 2.0**-20
    steps = np.atleast_1d(case.parameters.get("level_step", 2)).astype(float)
    factors = np.concatenate([steps**-level for level in range(len(as_list(x2)))])
    # Away from whole numbers at every level, so that both sides are in the same cell.
    fractions = np.abs(coords[..., None] * factors - np.round(coords[..., None] * factors)).min(-1)
    g = case.cotangent()
    direction = np.where(fractions > 4 * step, np.random.default_rng(5).standard_normal(coords.shape), 0)
    before, after = (
        correlation_lookup(x1, x2, coords + sign * step * direction, **case.parameters, variant=variant) for sign in (-1, 1)
    )
    slope = np.vdot(g, after - before) / (2 * step)
    found = correlation_lookup_vjp(g, x1, x2, coords, **case.parameters, variant=variant, needs=(False, False, True))[2]
    assert abs(np.vdot(found, direction) - slope) < 1e-6 * max(abs(slope), np.abs(found * direction).sum() * 1e-2)


def test_the_derivative_at_a_whole_number_is_that_to_the_right(variant):
    case = Case((1, 4, 6, 7), (1, 4, 6, 7), (1, 2, 6, 7), dict(patch_size=3), "float64", whole=True, noise=1.0)
    x1, x2, coords = case.arrays()
    g, step = case.cotangent(), 2.0**-20
    found = correlation_lookup_vjp(g, x1, x2, coords, 3, variant=variant, needs=ALL)[2]
    for channel in (0, 1):
        ahead = coords.copy()
        ahead[:, channel] += step
        change = correlation_lookup(x1, x2, ahead, 3, variant=variant) - correlation_lookup(x1, x2, coords, 3, variant=variant)
        np.testing.assert_allclose(found[:, channel], (g * change).sum((1, 2)) / step, rtol=1e-6, atol=1e-6)
