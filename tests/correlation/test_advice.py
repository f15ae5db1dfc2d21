"""The remedy that an error names works: it loses nothing and gives the wanted result.

Each test reads the expression out of the error, evaluates it, and calls again.
"""

import re

import ml_dtypes
import numpy as np
import oracle
import pytest
import torch

import cupycorr
from cupycorr import spatial_correlation_sample, spatial_correlation_sample_vjp

PARAMETERS = dict(kernel_size=2, patch_size=3)
FRAME_DTYPES = [np.uint8, np.int32, np.float16, ml_dtypes.bfloat16, np.float64]
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}


def drawn(shape, seed=0, dtype=np.float32):
    """Return small whole numbers, whose sums every dtype represents exactly."""
    return np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)


def every_third_masked(array):
    return np.ma.array(array, mask=np.arange(array.size).reshape(array.shape) % 3 == 0)


def advised(call, name, value, error=TypeError):
    """Return the result of a call and the argument, after following the advice of its error."""
    with pytest.raises(error, match=f"{name} must ") as refused:
        call(value)
    (expression,) = re.findall(r": pass (.*?)(?:, which .*| from a CPU.*)?$", str(refused.value))
    instead = eval(expression, {name: value, "numpy": np, "torch": torch, "ml_dtypes": ml_dtypes})
    return call(instead), instead


# Masked arrays: products ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("name", ["input1", "input2"])
def test_masked_pixels_of_an_input_count_for_nothing(name, dtype):
    arrays = {"input1": drawn((1, 3, 6, 7), 1, dtype), "input2": drawn((1, 3, 6, 7), 2, dtype)}
    masked = every_third_masked(arrays[name])
    out, _ = advised(lambda array: spatial_correlation_sample(**arrays | {name: array}, **PARAMETERS), name, masked)
    arrays[name] = np.where(masked.mask, 0, arrays[name].astype(np.float64))
    assert out.dtype == dtype
    np.testing.assert_array_equal(out.astype(np.float64), oracle.forward(*arrays.values(), **PARAMETERS)[0])


def test_masked_elements_of_a_cotangent_count_for_nothing():
    x1, x2, g = drawn((1, 3, 6, 7), 1), drawn((1, 3, 6, 7), 2), drawn((1, 3, 3, 5, 6), 3)
    masked = every_third_masked(g)
    found, _ = advised(lambda array: spatial_correlation_sample_vjp(array, x1, x2, **PARAMETERS), "cotangent", masked)
    for gradient, triple in zip(found, oracle.vjp(np.where(masked.mask, 0, g), x1, x2, **PARAMETERS), strict=True):
        np.testing.assert_array_equal(gradient, triple[0])


# The caller's array for the result -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_the_result_comes_into_the_memory_of_a_masked_out(dtype):
    x1, x2, out = (
        drawn((1, 3, 6, 7), 1, dtype),
        drawn((1, 3, 6, 7), 2, dtype),
        every_third_masked(drawn((1, 3, 3, 5, 6), 3, dtype)),
    )
    advised(lambda array: spatial_correlation_sample(x1, x2, **PARAMETERS, out=array), "out", out)
    np.testing.assert_array_equal(out.data.astype(np.float64), oracle.forward(x1, x2, **PARAMETERS)[0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_result_comes_into_the_memory_of_a_tensor(dtype):
    x1, x2 = drawn((1, 3, 6, 7), 1), drawn((1, 3, 6, 7), 2)
    out = torch.full((1, 3, 3, 5, 6), 7, dtype=getattr(torch, dtype))
    advised(lambda array: spatial_correlation_sample(x1, x2, **PARAMETERS, out=array), "out", out)
    np.testing.assert_array_equal(out.double().numpy(), oracle.forward(x1, x2, **PARAMETERS)[0])


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_tensors_are_taken_as_arrays_of_their_own_dtype(dtype):
    x1, x2 = drawn((1, 3, 6, 7), 1, dtype), drawn((1, 3, 6, 7), 2, dtype)
    tensor = torch.from_numpy(x1.astype(np.float64)).to(getattr(torch, np.dtype(dtype).name)).requires_grad_()
    out, _ = advised(lambda array: spatial_correlation_sample(array, x2, **PARAMETERS), "input1", tensor)
    assert out.dtype == dtype
    np.testing.assert_array_equal(out.astype(np.float64), oracle.forward(x1, x2, **PARAMETERS)[0])


# Displacement fields -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dy", "dx"])
def test_a_hole_in_a_field_is_no_displacement(name):
    field = dict(zip(("dy", "dx"), np.random.default_rng(0).random((2, 8, 9)), strict=True))
    hole = np.zeros((8, 9), bool)
    hole[3:5, 4:7] = True
    masked = np.ma.array(field[name], mask=hole)
    found, _ = advised(lambda values: cupycorr.median_residual(**field | {name: values}), name, masked)
    np.testing.assert_array_equal(np.isnan(found), hole)
    np.testing.assert_array_equal(found, cupycorr.median_residual(**field | {name: np.where(hole, np.nan, field[name])}))


def test_the_advice_on_a_tensor_names_no_operator_of_another_kind():
    frame = torch.zeros(20, 30)
    with pytest.raises(TypeError, match=r"cupy.from_dlpack\(frame1.detach\(\)\) from a GPU$"):
        cupycorr.match(frame, frame)


# Scores --------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=DTYPES.values(), ids=DTYPES)
def scores(request):
    """The highest of five scores, which are all below 0, is masked."""
    values = np.array([-8, -2, -5, -8, -8]).astype(request.param).reshape(1, 1, 5, 1, 1)
    return np.ma.array(values, mask=values == -2)


def test_a_masked_score_is_never_the_highest(scores):
    found, _ = advised(cupycorr.argmax_displacement, "out", scores)
    assert (found.dy.item(), found.dx.item()) == (0, 0)


def test_a_masked_score_has_no_weight(scores):
    found, _ = advised(cupycorr.soft_argmax, "out", scores)
    weights = np.exp([-8.0, -np.inf, -5.0, -8.0, -8.0])
    assert found.dx.item() == pytest.approx(weights @ [-2, -1, 0, 1, 2] / weights.sum(), abs=2**-21)  # of sums up to 4 in float32


def test_a_masked_score_is_not_drawn(scores):
    figure, instead = advised(lambda out: cupycorr.plot_channels(out, at=(0, 0)), "out", scores)
    assert figure.axes[0].get_title(loc="left") == "scores at y=0, x=0: best dy=0, dx=0"
    assert np.array_equal(np.isfinite(instead), ~scores.mask)


@pytest.mark.parametrize("dtype", [np.int32, np.float32], ids=lambda dtype: dtype.__name__)
def test_scores_of_any_dtype_keep_what_is_not_masked(dtype):
    scores = np.ma.array(np.arange(9).reshape(1, 3, 3, 1, 1).astype(dtype), mask=np.arange(9).reshape(1, 3, 3, 1, 1) % 2)
    found, _ = advised(cupycorr.to_channels, "out", scores)
    assert found.ravel().tolist() == [0, -np.inf, 2, -np.inf, 4, -np.inf, 6, -np.inf, 8]


# Other advice --------------------------------------------------------------------------------------------------------


def test_inputs_of_two_sizes_with_patch_offset():
    x1, x2 = drawn((1, 3, 4, 5), 1), drawn((1, 3, 9, 8), 2)
    with pytest.raises(ValueError, match="must have the same shape unless patch_offset is passed"):
        spatial_correlation_sample(x1, x2, patch_size=3)
    out = spatial_correlation_sample(x1, x2, patch_size=3, patch_offset=0)
    np.testing.assert_array_equal(out, oracle.forward(x1, x2, patch_size=3, patch_offset=0)[0])


def test_channels_that_are_no_square_with_patch_size():
    scores = np.zeros((1, 8, 1, 1), np.float32)
    scores[0, 6] = 1
    with pytest.raises(ValueError, match="patch_size must be passed where the number of channels is no square"):
        cupycorr.argmax_displacement(scores)
    found = cupycorr.argmax_displacement(scores, patch_size=(2, 4))
    assert (found.dy.item(), found.dx.item()) == (1, 1)
