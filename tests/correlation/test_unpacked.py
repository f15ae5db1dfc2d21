"""The variant `unpacked` computes the oracle's output, with the bits of `simd`."""

import cases
import numpy as np
import oracle
import pytest
from cases import NAMED, same
from hypothesis import assume, given, settings
from layouts import LAYOUTS

import cupycorr
from cupycorr import spatial_correlation_sample as correlate
from cupycorr import spatial_correlation_sample_vjp as correlate_vjp
from cupycorr._cpu import register_tile

pytestmark = pytest.mark.skipif(register_tile.why_not() is not None, reason=str(register_tile.why_not()))


def runs(case):
    """Return whether the variant computes a case."""
    return (np.broadcast_to(case.parameters.get("kernel_size", 1), 2) == 1).all()


def check(case, lay=lambda image: image):
    x1, x2 = map(lay, case.arrays()[:2])
    out = correlate(x1, x2, **case.parameters, variant="unpacked")
    oracle.assert_close(out, oracle.forward(x1, x2, **case.parameters))
    np.testing.assert_array_equal(out, correlate(x1, x2, **case.parameters, variant="simd"))


@pytest.mark.parametrize("case", [case for case in NAMED.values() if runs(case)], ids=lambda case: str(case.parameters))
def test_named_cases_equal_the_oracle(case):
    check(case)


LENGTHS = {
    "one chain": same((1, 128, 3, 5), patch_size=3),
    "several chains": same((2, 300, 4, 21), patch_size=(3, 2), dilation_patch=2, scale=0.3),
    "a wide row": same((1, 2, 3, 150), patch_size=(1, 5)),
    "a padded image": same((1, 3, 5, 6), patch_size=3, padding=(2, 4)),
    "a cropped image": same((1, 3, 9, 9), patch_size=3, padding=-2),
    "steps": same((1, 3, 9, 12), patch_size=3, stride=(2, 3), padding=1, dilation_patch=(3, 2)),
    "groups and a reverse order": same((2, 6, 5, 7), patch_size=3, groups=3, dilation_patch=-1),
    "no channels": same((1, 0, 5, 7), patch_size=3),
    "no samples": same((0, 2, 5, 7), patch_size=3),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("case", LENGTHS.values(), ids=LENGTHS)
def test_every_dtype_equals_the_oracle(case, dtype):
    check(cases.Case(case.shape1, case.shape2, case.parameters, dtype))


@settings(max_examples=60)
@given(case=cases.problems())
def test_drawn_problems_equal_the_oracle(case):
    assume(runs(case))
    check(case)


@pytest.mark.parametrize("lay", LAYOUTS.values(), ids=LAYOUTS)
def test_arrays_may_lie_in_any_way(lay):
    check(same((2, 5, 6, 9), patch_size=3), lay)


def unaligned(array):
    """Return an equal array whose elements are no whole number of elements apart."""
    view = np.zeros(array.shape, [("byte", np.uint8), ("value", array.dtype)])["value"]
    view[...] = array
    return view


def test_elements_that_are_not_aligned_are_copied_first():
    case = same((1, 3, 5, 7), patch_size=3)
    check(case, unaligned)
    x1, x2, _ = case.arrays()
    out = unaligned(np.full((1, 3, 3, 5, 7), 9, np.float32))
    correlate(x1, x2, patch_size=3, out=out, variant="unpacked")
    np.testing.assert_array_equal(out, correlate(x1, x2, patch_size=3, variant="unpacked"))


def test_infinities_outside_the_images_do_not_count():
    x1, x2, _ = same((1, 2, 6, 20), patch_size=5).arrays()
    x1[0, 0, 0, 0] = x2[0, 1, 5, 19] = np.inf
    out = correlate(x1, x2, patch_size=5, variant="unpacked")
    np.testing.assert_array_equal(np.isfinite(out), np.isfinite(correlate(x1, x2, patch_size=5, variant="reference")))


def test_windows_and_gradients_are_refused():
    x1, x2, g = same((1, 2, 8, 9)).arrays()
    with pytest.raises(NotImplementedError, match="windows have more than one pixel"):
        correlate(x1, x2, kernel_size=2, variant="unpacked")
    with pytest.raises(NotImplementedError, match="only outputs are computed"):
        correlate_vjp(g, x1, x2, variant="unpacked")


HUGE = {
    "a step": dict(patch_size=3, dilation_patch=2**63 - 1, stride=3),
    "a step of which one displacement fits": dict(patch_size=9, dilation_patch=2**62),
    "an offset": dict(patch_offset=-(2**63 - 1), stride=3),
    "a padding and a stride": dict(patch_size=3, padding=2**62 + 10, stride=2**62 + 10),
    "all together": dict(patch_size=4, dilation_patch=2**62, patch_offset=-1, padding=-1),
}


@pytest.mark.parametrize("parameters", HUGE.values(), ids=HUGE)
def test_numbers_beyond_64_bits_are_left_to_others(parameters):
    x1, x2, _ = same((1, 2, 5, 6)).arrays()
    out = correlate(x1, x2, **parameters)
    np.testing.assert_allclose(out, correlate(x1, x2, **parameters, variant="reference"), rtol=1e-5, atol=1e-5)
    with pytest.raises(NotImplementedError, match="do not fit into the kernel's integers"):
        correlate(x1, x2, **parameters, variant="unpacked")
    g = np.ones_like(out)
    found = correlate_vjp(g, x1, x2, **parameters)
    for got, want in zip(found, correlate_vjp(g, x1, x2, **parameters, variant="reference"), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "parameters", [dict(dilation_patch=2**40), dict(patch_offset=2**61), dict(padding=3, stride=2**61)], ids=str
)
def test_large_numbers_that_fit_are_right(parameters):
    check(same((1, 2, 5, 6), patch_size=3, **parameters))


@pytest.mark.parametrize(("shape", "patch", "chosen"), [((1, 8, 8, 8), 3, True), ((1, 128, 64, 64), 9, False)])
def test_it_is_chosen_for_small_problems_only(shape, patch, chosen):
    x = np.zeros(shape, np.float32)
    assert (cupycorr.explain(x, x, patch_size=patch).variant == "unpacked") == chosen
