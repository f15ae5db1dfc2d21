"""Every variant on the CPU finds the best and the mean displacements of the volume, computed by float64 loops over positions."""

import numpy as np
import pytest
from cases import DTYPES, NAMED, same
from hypothesis import HealthCheck, given, settings
from matching_cases import CPU_VARIANTS, OUTSIDE, SOME, check_best, check_mean, check_subpixel, drawn, inputs, of

import cupycorr
from cupycorr import _dispatch, correlation_argmax, correlation_soft_argmax
from cupycorr._matching.cpu import kernels

variants = pytest.mark.parametrize("variant", CPU_VARIANTS)
outsides = pytest.mark.parametrize("outside", OUTSIDE)
some = pytest.mark.parametrize("case", SOME.values(), ids=SOME)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
slow = pytest.mark.slow
few = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
many = settings(few, max_examples=300)


@pytest.mark.covering(2)
@variants
@outsides
@pytest.mark.parametrize("kind", ["values", "ties", "strange"])
@some
def test_named_problems_have_the_best_displacements_of_their_volumes(case, kind, outside, variant):
    check_best(case, kind, variant, 1, outside)


@pytest.mark.covering(2)
@variants
@outsides
@pytest.mark.parametrize("kind", ["values", "ties", "strange"])
@some
def test_named_problems_have_the_mean_displacements_of_their_volumes(case, kind, outside, variant):
    check_mean(case, kind, variant, outside)


@pytest.mark.covering(2)
@variants
@outsides
@pytest.mark.parametrize("top_k", [2, 3, 7])
@pytest.mark.parametrize("kind", ["values", "ties", "strange"])
@pytest.mark.parametrize("name", ["pwcnet-like", "one-sided stereo", "even patch", "negative padding", "search wholly outside"])
def test_several_displacements_are_sorted_and_ties_are_in_the_order_of_channels(name, kind, top_k, outside, variant):
    check_best(SOME[name], kind, variant, top_k, outside)


@pytest.mark.covering(2)
@variants
@outsides
@dtypes
def test_every_dtype(dtype, outside, variant):
    for name in ("pwcnet-like", "window, stride and dilation"):
        check_best(of(SOME[name], dtype), "values", variant, 2, outside)
        check_mean(of(SOME[name], dtype), "values", variant, outside)


@pytest.mark.covering(2)
@variants
@outsides
@pytest.mark.parametrize("kind", ["values", "ties", "strange"])
@pytest.mark.parametrize("name", [name for name, case in SOME.items() if not case.problem().windowed])
def test_subpixel_displacements_are_vertices_of_parabolas(name, kind, outside, variant):
    check_subpixel(SOME[name], kind, variant, outside)


@variants
@given(example=drawn())
@few
def test_drawn_problems_equal_the_definition(example, variant):
    check_drawn(example, variant)


@slow
@variants
@given(example=drawn())
@many
def test_many_drawn_problems_equal_the_definition(example, variant):
    check_drawn(example, variant)


def check_drawn(example, variant):
    case, kind, top_k, outside = example
    check_best(case, kind, variant, top_k, outside)
    check_mean(case, kind, variant, outside, 1.5)
    if not case.problem().windowed:
        check_subpixel(case, kind, variant, outside)


@variants
@outsides
def test_all_displacements_may_be_sorted(outside, variant):
    case = same((1, 3, 5, 9), patch_size=(3, 4))
    check_best(case, "ties", variant, 12, outside)


# Identities -------------------------------------------------------------------------------------------------------------------


@variants
def test_they_are_the_functions_of_the_volume(variant):
    x1, x2 = inputs(NAMED["pwcnet-like"])
    volume = cupycorr.spatial_correlation_sample(x1, x2, patch_size=9, variant=variant)
    best, mean = (f(x1, x2, patch_size=9, variant=variant) for f in (correlation_argmax, correlation_soft_argmax))
    want, soft = cupycorr.argmax_displacement(volume), cupycorr.soft_argmax(volume)
    np.testing.assert_array_equal(best[:2], want)
    np.testing.assert_allclose(mean, soft, rtol=0, atol=1e-4)


@variants
def test_sixteen_bit_scores_are_not_rounded_before_they_are_compared(variant):
    x1 = np.full((1, 1, 1, 2), 1.0, np.float16)
    x1[0, 0, 0, 1] = 2.0**-11  # 1 + 2^-11 is 1 in float16
    x1, x2 = np.stack([x1[..., :1], x1[..., 1:]], 1)[:, :, 0], np.ones((1, 2, 1, 2), np.float16)
    x2[0, 1, 0, 0] = 0
    found = correlation_argmax(x1, x2, patch_size=(1, 2), patch_offset=0, variant=variant)
    assert (found.channel.item(), found.score.item()) == (1, 1 + 2.0**-11)


@variants
def test_a_lower_temperature_is_nearer_to_the_best(variant):
    x1, x2 = inputs(NAMED["pwcnet-like"])
    best = correlation_argmax(x1, x2, patch_size=9, variant=variant)
    distances = [
        np.abs(correlation_soft_argmax(x1, x2, patch_size=9, temperature=t, variant=variant).dx - best.dx).mean()
        for t in (30.0, 3.0, 0.1)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.1


@pytest.mark.parametrize("temperature", [1.2e-38, 1e-30, 1e30, 3e38])
@variants
def test_extreme_temperatures_give_the_best_or_the_middle(temperature, variant):
    case = NAMED["pwcnet-like"]
    check_mean(case, "ties", variant, "zero", temperature) if temperature > 1 else None
    x1, x2 = inputs(case)
    mean = correlation_soft_argmax(x1, x2, patch_size=9, temperature=temperature, variant=variant)
    best = correlation_argmax(x1, x2, patch_size=9, variant=variant)
    np.testing.assert_allclose(mean.dy, best.dy if temperature < 1 else 0, atol=1e-5)


@variants
def test_scores_whose_difference_overflows_have_their_weights(variant):
    x1 = np.array([[[[3e38]]]], np.float32)
    x2 = np.array([[[[-1.0, 0, 1.0]]]], np.float32)
    mean = correlation_soft_argmax(x1, x2, patch_size=(1, 3), patch_offset=(0, 1), temperature=3e38, variant=variant)
    weights = np.exp([-1, 0, 1.0])
    np.testing.assert_allclose(mean.dx, (weights * [0, 1, 2]).sum() / weights.sum(), rtol=1e-6)


def test_without_a_compiler_array_functions_reduce_the_scores(monkeypatch):
    monkeypatch.setattr(kernels, "why_not", lambda: "no LLVM")
    _dispatch._planned.cache_clear()
    for name in ("pwcnet-like", "even patch", "window, stride and dilation", "search wholly outside"):
        for outside in OUTSIDE:
            for kind in ("values", "strange"):
                check_best(SOME[name], kind, "blas", 1, outside)
                check_best(SOME[name], kind, "blas", 3, outside)
                check_mean(SOME[name], kind, "blas", outside)
    x = np.zeros((1, 2, 3, 4), np.float32)
    assert "by array functions" in cupycorr.explain_argmax(x, x, variant="blas").how
    _dispatch._planned.cache_clear()
