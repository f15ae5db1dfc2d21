"""`cupycorr.dask.spatial_correlation_sample` equals the operator on the whole arrays, for chunks of any shape."""

import dask.array as da
import numpy as np
import oracle
import pytest

import cupycorr
import cupycorr.dask

RANDOM = np.random.default_rng(0)
SIZE1, SIZE2 = (2, 6, 40, 50), (2, 6, 47, 45)
CASES = {
    "one pixel": dict(patch_size=(5, 4), patch_offset=(1, -2)),
    "windows": dict(kernel_size=(3, 5), patch_size=3, stride=(2, 3), padding=(4, 7), dilation=(2, 1), patch_offset=0),
    "descending": dict(kernel_size=3, patch_size=(2, 4), dilation_patch=(2, -3), patch_offset=0, padding=1),
    "cropped, groups": dict(patch_size=3, padding=-3, patch_offset=(0, 9), groups=2, scale=0.5),
    "padding without an end": dict(kernel_size=9, padding=30, stride=4, patch_size=2, patch_offset=3),
    "far beyond": dict(patch_size=3, patch_offset=(60, 0)),
}
GRIDS = {"unlike": ((1, 4, 13, 11), (2, 3, 20, 17)), "lines": ((2, 6, 1, 50), (1, 1, 47, 45)), "one chunk": (SIZE1, SIZE2)}


def inputs(dtype):
    """Return feature maps of small integers, whose sums are exact in every order."""
    return [RANDOM.integers(-4, 5, shape).astype(dtype) for shape in (SIZE1, SIZE2)]


def lazy(arrays, grids, **options):
    chunked = (da.from_array(array, chunks=chunks) for array, chunks in zip(arrays, GRIDS[grids], strict=True))
    return cupycorr.dask.spatial_correlation_sample(*chunked, **options)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("case", CASES)
def test_chunks_give_the_answers_of_the_whole_to_the_bit_where_sums_are_exact(case, grids, dtype):
    arrays = inputs(dtype)
    want = cupycorr.spatial_correlation_sample(*arrays, **CASES[case])
    found = lazy(arrays, grids, **CASES[case])
    values = found.compute(scheduler="sync")
    assert (found.shape, found.dtype) == (values.shape, values.dtype) == (want.shape, want.dtype)
    np.testing.assert_array_equal(values, want)


def test_chunks_give_the_answers_of_the_whole_but_for_rounding():
    arrays = [RANDOM.standard_normal(shape) for shape in (SIZE1, SIZE2)]
    options = CASES["windows"]
    want = cupycorr.spatial_correlation_sample(*arrays, **options)
    np.testing.assert_allclose(lazy(arrays, "unlike", **options).compute(scheduler="sync"), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", ["windows", "padding without an end"])
def test_chunks_give_the_definition(case):
    arrays = inputs("float64")
    want, *_ = oracle.forward(*arrays, **CASES[case])
    np.testing.assert_array_equal(lazy(arrays, "unlike", **CASES[case]).compute(scheduler="sync"), want)


def test_an_infinity_counts_only_where_its_partner_is_inside():
    arrays = [np.ones(SIZE1), np.ones(SIZE2)]
    arrays[0][0, 0, 0, 3] = np.inf
    arrays[1][1, 2, 13, 44] = np.nan
    options = dict(kernel_size=3, patch_size=5, padding=2, patch_offset=0)
    want = cupycorr.spatial_correlation_sample(*arrays, **options)
    np.testing.assert_array_equal(lazy(arrays, "unlike", **options).compute(scheduler="sync"), want)


def test_the_result_has_the_dtype_and_the_variant_asked_for():
    arrays = inputs("float32")
    found = lazy(arrays, "unlike", patch_size=3, patch_offset=0, dtype="float64", variant="reference")
    want = cupycorr.spatial_correlation_sample(*arrays, patch_size=3, patch_offset=0)
    values = found.compute(scheduler="sync")
    assert found.dtype == values.dtype == np.float64
    np.testing.assert_array_equal(values, want)


X = da.zeros((1, 8, 20, 20), dtype="float32", chunks=(1, 8, 10, 10))
REFUSED = {
    "NumPy": ({"input2": np.zeros((1, 8, 20, 20), np.float32)}, TypeError, "input2 must be a Dask array"),
    "integers": ({"input1": X.astype(int), "input2": X.astype(int)}, TypeError, "input1"),
    "two dtypes": ({"input2": X.astype("float64")}, TypeError, "the same dtype"),
    "three axes": ({"input1": X[0]}, ValueError, "4 dimensions"),
    "two sizes": ({"input2": X[:, :, 1:]}, ValueError, "patch_offset is passed"),
    "window": ({"kernel_size": 21}, ValueError, "does not fit"),
    "variant": ({"variant": "magic"}, ValueError, "magic"),
    "variant of a GPU": ({"variant": "box"}, NotImplementedError, "box"),
}


@pytest.mark.parametrize(("changes", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_computed_is_refused_at_once(changes, error, message):
    with pytest.raises(error, match=message):
        cupycorr.dask.spatial_correlation_sample(**{"input1": X, "input2": X, **changes})
