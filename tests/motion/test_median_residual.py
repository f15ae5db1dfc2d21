"""The normalised median test against a loop over its formula."""

import math

import numpy as np
import pytest

import cupycorr


def loop(dy, dx, radius=1, noise=0.1):
    """Return the residuals by a loop over the windows."""
    found = np.empty(dy.shape)
    for i, j in np.ndindex(dy.shape):
        total = 0.0
        for values in (dy.astype(float), dx.astype(float)):
            rows, columns = slice(max(i - radius, 0), i + radius + 1), slice(max(j - radius, 0), j + radius + 1)
            around = values[rows, columns].copy()
            around[i - rows.start, j - columns.start] = np.nan
            around = around[~np.isnan(around)]
            if math.isnan(values[i, j]):
                total = math.nan
            elif not around.size:
                total = math.inf
            else:
                median = np.median(around)
                total += ((values[i, j] - median) / (np.median(abs(around - median)) + noise)) ** 2
        found[i, j] = math.sqrt(total)
    return found


def field(shape=(9, 11), missing=0.2, seed=0):
    random = np.random.default_rng(seed)
    dy, dx = random.normal(0, 2, (2, *shape))
    lost = random.random(shape) < missing
    dy[lost] = dx[lost] = np.nan
    return dy, dx


@pytest.mark.parametrize("options", [{}, {"radius": 2}, {"noise": 0.5}, {"radius": np.int64(3), "noise": 1}], ids=str)
@pytest.mark.parametrize("missing", [0, 0.2, 0.8], ids=str)
@pytest.mark.parametrize("shape", [(9, 11), (1, 7), (6, 1), (2, 2), (1, 1)], ids=str)
def test_residual_is_that_of_the_formula(shape, missing, options):
    dy, dx = field(shape, missing)
    residual = cupycorr.median_residual(dy, dx, **options)
    assert residual.dtype == np.float64
    np.testing.assert_allclose(residual, loop(dy, dx, **options), rtol=1e-12)


def test_the_medians_are_of_each_component_and_its_own_missing_values():
    dy, dx = field(missing=0)
    dy[3, 4] = dx[5, 5] = np.nan
    np.testing.assert_allclose(cupycorr.median_residual(dy, dx), loop(dy, dx), rtol=1e-12)


def test_an_outlier_stands_out_of_any_smooth_field():
    y, x = np.mgrid[:12.0, :14.0]
    dy, dx = 3 + 0.05 * x, -0.03 * y
    dx[5, 6] += 4
    residual = cupycorr.median_residual(dy, dx)
    np.testing.assert_array_equal(np.argwhere(residual > 2), [[5, 6]])


def test_a_displacement_alone_has_an_infinite_residual_and_a_missing_one_none():
    dy = np.full((5, 5), np.nan)
    dy[2, 2] = 1
    residual = cupycorr.median_residual(dy, dy)
    assert residual[2, 2] == np.inf
    assert np.isnan(np.delete(residual.ravel(), 12)).all()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_residuals_are_computed_in_float64(dtype):
    dy, dx = (each.astype(dtype) for each in field())
    np.testing.assert_allclose(cupycorr.median_residual(dy, dx), loop(dy, dx), rtol=1e-12)


def test_arguments_are_left_alone():
    dy, dx = field()
    copies = dy.copy(), dx.copy()
    dy.flags.writeable = dx.flags.writeable = False
    cupycorr.median_residual(dy, dx)
    np.testing.assert_array_equal((dy, dx), copies)


GOOD = np.zeros((4, 5))
BAD = {
    "list": ((GOOD.tolist(), GOOD), {}, TypeError, "dy must be a NumPy or CuPy array"),
    "whole numbers": ((GOOD, GOOD.astype(int)), {}, TypeError, "dx must have a floating dtype, got dx.dtype=int64"),
    "complex": ((GOOD + 0j, GOOD), {}, TypeError, "dy.dtype=complex128"),
    "masked": ((np.ma.array(GOOD), GOOD), {}, TypeError, "dy must not be a masked array"),
    "shapes differ": ((GOOD, GOOD[1:]), {}, ValueError, r"dy.shape=\(4, 5\), dx.shape=\(3, 5\)"),
    "one axis": ((GOOD[0], GOOD[0]), {}, ValueError, r"dy.shape=\(5,\)"),
    "four axes": ((GOOD[None, None], GOOD[None, None]), {}, ValueError, r"dy.shape=\(1, 1, 4, 5\)"),
    "radius zero": ((GOOD, GOOD), {"radius": 0}, ValueError, "radius must be at least 1, got radius=0"),
    "radius float": ((GOOD, GOOD), {"radius": 1.0}, TypeError, "radius must be an int, got radius=1.0"),
    "radius bool": ((GOOD, GOOD), {"radius": True}, TypeError, "radius must be an int, got radius=True"),
    "noise zero": ((GOOD, GOOD), {"noise": 0}, ValueError, "noise must be positive, got noise=0"),
    "noise negative": ((GOOD, GOOD), {"noise": -0.1}, ValueError, "noise must be positive, got noise=-0.1"),
    "noise NaN": ((GOOD, GOOD), {"noise": math.nan}, ValueError, "noise must be finite, got noise=nan"),
    "noise infinite": ((GOOD, GOOD), {"noise": math.inf}, ValueError, "noise must be finite, got noise=inf"),
    "noise text": ((GOOD, GOOD), {"noise": "0.1"}, TypeError, "noise must be a real number"),
}


@pytest.mark.parametrize(("arrays", "options", "error", "message"), BAD.values(), ids=BAD)
def test_bad_arguments_are_refused(arrays, options, error, message):
    with pytest.raises(error, match=message):
        cupycorr.median_residual(*arrays, **options)
