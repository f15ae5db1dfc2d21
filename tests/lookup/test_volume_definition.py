"""Every variant on the CPU looks up the definition in a given volume: the output and both gradients equal float64 sums."""

from dataclasses import replace

import numpy as np
import pytest
import volume_oracle
from cases import DTYPES
from hypothesis import HealthCheck, given, settings
from lookup_cases import large_patch
from lookup_oracle import assert_close
from volume_cases import BOTH, CPU_VARIANTS, NAMED, check_forward, check_vjp, lookups

from cupycorr import volume_lookup, volume_lookup_vjp
from cupycorr._volume_lookup import reference

slow = pytest.mark.slow
variants = pytest.mark.parametrize("variant", CPU_VARIANTS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
named = pytest.mark.parametrize("case", NAMED.values(), ids=NAMED)
drawn = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
often = settings(drawn, max_examples=150)


@variants
@dtypes
@named
def test_named_lookups_equal_the_definition(case, dtype, variant):
    case = case if case.coords_dtype else case.of(dtype)
    check_forward(case, variant)
    check_vjp(case, variant)


@variants
@given(case=lookups())
@drawn
def test_drawn_lookups_equal_the_definition(case, variant):
    check_forward(case, variant)
    check_vjp(case, variant)


@slow
@variants
@given(case=lookups())
@often
def test_many_drawn_lookups_equal_the_definition(case, variant):
    check_forward(case, variant)
    check_vjp(case, variant)


@pytest.mark.parametrize("name", ["DROID's order", "stereo", "strange numbers", "patch apart"])
def test_lookups_in_many_blocks_equal_the_definition(monkeypatch, name):
    monkeypatch.setattr(reference, "BLOCK_BYTES", 2048)
    check_forward(NAMED[name], "reference")
    check_vjp(NAMED[name], "reference")


@pytest.mark.covering(2)
@variants
@pytest.mark.parametrize("coords_dtype", ["float16", "bfloat16", "float32"])
@dtypes
def test_coords_are_widened_to_the_sums(dtype, coords_dtype, variant):
    for name in ("DROID's order", "stereo"):
        case = replace(NAMED[name], dtype=dtype, coords_dtype=coords_dtype)
        check_forward(case, variant)
        check_vjp(case, variant)


@pytest.mark.covering(2)
@variants
@dtypes
@pytest.mark.parametrize("result", DTYPES)
def test_an_output_of_another_dtype_is_rounded_once(dtype, result, variant):
    case = NAMED["DROID's order"].of(dtype)
    volume, coords = case.arrays()
    out = volume_lookup(volume, coords, **case.parameters, dtype=DTYPES[result], variant=variant)
    assert out.dtype == DTYPES[result]
    assert_close(out, volume_oracle.forward(volume, coords, **case.parameters), accumulator=dtype)
    for into in (
        np.empty((*out.shape, 2), DTYPES[result])[..., 1],
        np.empty((*out.shape[:-1], 99), DTYPES[result])[..., : out.shape[-1]],
    ):
        assert volume_lookup(volume, coords, **case.parameters, out=into, variant=variant) is into
        np.testing.assert_array_equal(into, out)
    g = case.cotangent(result)
    found = volume_lookup_vjp(g, volume, coords, **case.parameters, dtype=DTYPES[result], variant=variant, needs=BOTH)
    for got, triple in zip(found, volume_oracle.vjp(g, volume, coords, **case.parameters), strict=True):
        assert_close(got, triple, accumulator=dtype)


@variants
@pytest.mark.parametrize("axis", [-1, -2], ids=["x", "y"])
def test_slopes_over_a_large_patch_of_terms_that_drift_keep_the_error_bound(axis, variant):
    patch_size, _, image, coords, g = large_patch(axis)
    volume = np.broadcast_to(image[0], (1, 1, 2, *image.shape[2:])).copy()
    _, found = volume_lookup_vjp(g, volume, coords, patch_size, variant=variant, needs=(False, True))
    _, want = volume_oracle.vjp(g, volume, coords, patch_size)
    assert_close(found, want, name="gradient of coords")


@variants
@pytest.mark.parametrize("name", ["DROID's order", "stereo"])
def test_gradients_that_are_not_needed_are_none_and_change_no_other(name, variant):
    case = NAMED[name]
    arrays, g = case.arrays(), case.cotangent()
    both = volume_lookup_vjp(g, *arrays, **case.parameters, variant=variant, needs=BOTH)
    assert volume_lookup_vjp(g, *arrays, **case.parameters, variant=variant)[1] is None
    for needs in np.ndindex(2, 2):
        wanted = tuple(map(bool, needs))
        found = volume_lookup_vjp(g, *arrays, **case.parameters, variant=variant, needs=wanted)
        for got, want, needed in zip(found, both, wanted, strict=True):
            assert (got is None) is not needed
            if needed:
                np.testing.assert_array_equal(got, want)


@variants
@pytest.mark.parametrize("number", [0, 1])
def test_an_output_may_overlap_an_input(variant, number):
    case = NAMED["DROID's order"]
    inputs = list(case.arrays())
    want = volume_lookup(*inputs, **case.parameters, variant=variant)
    memory = np.zeros(want.size + 5000, np.float32)
    moved = memory[1000 : 1000 + inputs[number].size].reshape(inputs[number].shape)
    moved[...] = inputs[number]
    inputs[number] = moved
    out = memory[: want.size].reshape(want.shape)
    assert volume_lookup(*inputs, **case.parameters, variant=variant, out=out) is out
    np.testing.assert_array_equal(out, want)
