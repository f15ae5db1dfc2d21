"""Gradients of windows with a large stride, by sums that rows share, are the oracle's."""

import cases
import numpy as np
import oracle
import pytest
from cases import Case, same
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layouts import LAYOUTS
from memory import assert_within, peak

import cupycorr
from cupycorr import spatial_correlation_sample_vjp as correlate_vjp
from cupycorr._correlation.cpu import planner, simd, strided_windows
from cupycorr._correlation.cpu.strided_windows import StridedWindows
from cupycorr._cpu import register_tile, workers
from cupycorr._dispatch import VJP, Request

pytestmark = pytest.mark.skipif(register_tile.why_not() is not None, reason=str(register_tile.why_not()))

PIV = same((1, 1, 369, 511), kernel_size=32, patch_size=25, stride=16)


def request_of(case, needs=(True, True)):
    return Request(VJP, case.problem(), case.dtype, case.dtype, needs=needs)


def gradients(case, arrays, needs=(True, True)):
    """Return the gradients by this plan, whatever the cost model prefers."""
    x1, x2, g = arrays
    results = [np.full_like(x, 9) if needed else None for x, needed in zip((x1, x2), needs, strict=True)]
    named = {f"gradient{number}": result for number, result in enumerate(results, 1) if result is not None}
    plan = planner.StridedGradients(simd.ENGINE, StridedWindows.of(request_of(case, needs)))
    plan.run({"input1": x1, "input2": x2, "cotangent": g, **named})
    return results


def check(case, lay=lambda image: image):
    assert strided_windows.why_not(request_of(case)) is None
    x1, x2, g = case.arrays()
    x1, x2 = lay(x1), lay(x2)
    found = gradients(case, (x1, x2, np.asfortranarray(g)))
    for name, got, want in zip(("g1", "g2"), found, oracle.vjp(g, x1, x2, **case.parameters), strict=True):
        oracle.assert_close(got, want, name=name)


CASES = {
    "windows that overlap by half": same((1, 1, 40, 70), kernel_size=8, patch_size=5, stride=4),
    "windows that do not overlap": same((2, 2, 30, 33), kernel_size=(5, 3), patch_size=(3, 4), stride=(5, 3)),
    "windows with gaps between them": same((1, 2, 30, 33), kernel_size=3, patch_size=3, stride=7),
    "windows of no whole number of strides": same((1, 1, 41, 45), kernel_size=(11, 7), patch_size=3, stride=(4, 3)),
    "columns one pixel apart": same((1, 1, 30, 40), kernel_size=(8, 5), patch_size=5, stride=(4, 1)),
    "padding": same((1, 2, 25, 30), kernel_size=8, patch_size=3, stride=4, padding=(3, 9)),
    "a crop": same((1, 2, 35, 40), kernel_size=8, patch_size=3, stride=4, padding=-3),
    "displacements far apart": same((1, 1, 30, 40), kernel_size=8, patch_size=(5, 4), stride=4, dilation_patch=(6, 9)),
    "an offset, and an image of its own size": Case(
        (1, 2, 30, 40), (1, 2, 17, 90), dict(kernel_size=8, patch_size=(4, 6), stride=4, patch_offset=(-3, 30), scale=0.3)
    ),
    "displacements outside": same((1, 1, 20, 20), kernel_size=4, patch_size=3, stride=4, patch_offset=100),
    "more than a chain of displacements": Case(
        (1, 1, 12, 9), (1, 1, 12, 200), dict(kernel_size=4, patch_size=(1, 150), stride=4, patch_offset=(0, 74))
    ),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_cases_equal_the_oracle_in_every_dtype(case, dtype):
    check(Case(case.shape1, case.shape2, case.parameters, dtype))


@settings(max_examples=80)
@given(case=cases.problems(most=24), stride=st.tuples(st.integers(4, 9), st.integers(1, 9)))
def test_drawn_problems_equal_the_oracle(case, stride):
    parameters = {**case.parameters, "stride": stride, "dilation": 1, "groups": 1}
    case = cases.ascending(Case(case.shape1, case.shape2, parameters, case.dtype, case.seed))
    assume(strided_windows.why_not(request_of(case)) is None)
    check(case)


@pytest.mark.parametrize("lay", LAYOUTS.values(), ids=LAYOUTS)
def test_images_may_lie_in_any_way(lay):
    check(same((2, 3, 20, 24), kernel_size=8, patch_size=3, stride=4), lay)


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_a_gradient_that_is_not_needed_is_not_computed(needs):
    case = CASES["padding"]
    both = gradients(case, case.arrays())
    for needed, got, want in zip(needs, gradients(case, case.arrays(), needs), both, strict=True):
        assert got is None if not needed else np.array_equal(got, want)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("where", ["input1", "input2", "cotangent"])
def test_values_that_are_not_finite_reach_what_the_definition_says(value, where):
    case = same((1, 2, 20, 40), kernel_size=8, patch_size=5, stride=4)
    arrays = case.arrays()
    changed = arrays[("input1", "input2", "cotangent").index(where)]
    changed[(0,) * changed.ndim] = value
    changed[(0, 1, 1, 3, 7)[: changed.ndim]] = value
    x1, x2, g = arrays
    for got, want in zip(gradients(case, arrays), correlate_vjp(g, x1, x2, **case.parameters, variant="reference"), strict=True):
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        np.testing.assert_array_equal(np.isposinf(got), np.isposinf(want))
        np.testing.assert_array_equal(np.isneginf(got), np.isneginf(want))


def test_bits_do_not_depend_on_the_number_of_threads():
    case = same((1, 2, 120, 90), kernel_size=16, patch_size=7, stride=8)
    with workers.prefer_threads(1):
        alone = gradients(case, case.arrays())
    for got, want in zip(gradients(case, case.arrays()), alone, strict=True):
        np.testing.assert_array_equal(got, want)


def test_piv_takes_it_and_keeps_to_the_workspace():
    x1, x2, g = PIV.arrays()
    assert "shared by rows" in cupycorr.explain(x1, x2, **PIV.parameters, gradients=True).how
    correlate_vjp(g, x1, x2, **PIV.parameters)
    found, used = peak(lambda: correlate_vjp(g, x1, x2, **PIV.parameters))
    assert_within(used, found, "vjp")


REFUSED = {
    "the window has gaps": dict(kernel_size=4, stride=4, dilation=2),
    "windows are too close for rows to share sums": dict(kernel_size=4, stride=3),
    "the sums take": dict(kernel_size=4, stride=4, patch_size=201),
}


@pytest.mark.parametrize(("reason", "parameters"), REFUSED.items(), ids=REFUSED)
def test_other_problems_are_left_to_blocks(reason, parameters):
    assert strided_windows.why_not(request_of(same((1, 1, 200, 200), **parameters))).startswith(reason)
