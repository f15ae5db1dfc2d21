"""Every variant on the CPU computes the definition: the output and all gradients equal float64 sums, in every dtype."""

from dataclasses import replace

import lookup_oracle
import numpy as np
import pytest
from cases import DTYPES
from hypothesis import HealthCheck, given, settings
from lookup_cases import (
    ALL,
    CPU_VARIANTS,
    DRIFTING,
    LONG_SUMS,
    NAMED,
    TERMS,
    check_forward,
    check_vjp,
    large_patch,
    lookups,
)

from cupycorr import correlation_lookup, correlation_lookup_vjp
from cupycorr._lookup import reference
from cupycorr._lookup.cpu import blas

slow = pytest.mark.slow
variants = pytest.mark.parametrize("variant", CPU_VARIANTS)
named = pytest.mark.parametrize("case", NAMED.values(), ids=NAMED)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
drawn = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
often = settings(drawn, max_examples=100)


@variants
@pytest.mark.parametrize("dtype", ["float32", *(pytest.param(name, marks=slow) for name in DTYPES if name != "float32")])
@named
def test_named_lookups_equal_the_definition(case, dtype, variant):
    check_forward(case.of(dtype), variant)
    check_vjp(case.of(dtype), variant)


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


PARTED = ("RAFT's order", "pyramid and lookups", "stereo", "one index", "strange numbers", "many channels")


@pytest.fixture
def small_parts(monkeypatch):
    """Divide even small lookups into many blocks, bands and ranges of channels."""
    for name, value in dict(DOTS=4096, PIXELS=2048, UNION=1024, MAP=512, BAND=3).items():
        monkeypatch.setattr(blas, name, value)
    monkeypatch.setattr(reference, "PART_BYTES", 2048)


@variants
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name, marks=() if name in PARTED else slow) for name, case in NAMED.items()]
)
def test_lookups_in_many_parts_equal_the_definition(small_parts, case, variant):
    check_forward(case, variant)
    check_vjp(case, variant)


@pytest.mark.covering(2)
@variants
@pytest.mark.parametrize("coords_dtype", ["float16", "bfloat16", "float32"])
@dtypes
def test_coords_are_widened_to_the_sums(dtype, coords_dtype, variant):
    case = replace(NAMED["pyramid and lookups"], dtype=dtype, coords_dtype=coords_dtype)
    check_forward(case, variant)
    check_vjp(case, variant)


@pytest.mark.covering(2)
@variants
@dtypes
@pytest.mark.parametrize("result", DTYPES)
def test_an_output_of_another_dtype_is_rounded_once(dtype, result, variant):
    case = NAMED["pyramid and lookups"].of(dtype)
    x1, x2, coords = case.arrays()
    want = lookup_oracle.forward(x1, x2, coords, **case.parameters)
    out = correlation_lookup(x1, x2, coords, **case.parameters, dtype=DTYPES[result], variant=variant)
    assert out.dtype == DTYPES[result]
    lookup_oracle.assert_close(out, want, accumulator=dtype)
    into = np.empty((*out.shape, 2), DTYPES[result])[..., 1]
    assert correlation_lookup(x1, x2, coords, **case.parameters, out=into, variant=variant) is into
    np.testing.assert_array_equal(into, out)
    g = case.cotangent(result)
    g1, g2, gc = correlation_lookup_vjp(g, x1, x2, coords, **case.parameters, dtype=DTYPES[result], variant=variant, needs=ALL)
    triples = lookup_oracle.vjp(g, x1, x2, coords, **case.parameters)
    for got, triple in zip((g1, *g2, gc), (triples[0], *triples[1], triples[2]), strict=True):
        lookup_oracle.assert_close(got, triple, accumulator=dtype)


@slow
@variants
@pytest.mark.parametrize("long", LONG_SUMS.values(), ids=LONG_SUMS)
def test_long_sums_of_terms_that_drift_keep_the_error_bound(long, variant):
    x1, x2, coords, g = long.arrays()
    results = (
        correlation_lookup(x1, x2, coords, **long.parameters, variant=variant),
        *correlation_lookup_vjp(g, x1, x2, coords, **long.parameters, variant=variant, needs=ALL),
    )
    wanted = lookup_oracle.forward(x1, x2, coords, **long.parameters), *lookup_oracle.vjp(g, x1, x2, coords, **long.parameters)
    for name, got, want in zip(
        ("output", "gradient of input1", "gradient of input2", "gradient of coords"), results, wanted, strict=True
    ):
        lookup_oracle.assert_close(got, want, name=name)


def test_one_chain_of_the_terms_of_long_sums_is_beyond_the_error_bound():
    want = TERMS * float(DRIFTING)
    chain = np.cumsum(np.full(TERMS, DRIFTING))[-1]
    assert abs(chain - want) > 1.5 * lookup_oracle.bound((want, want, 2 * TERMS), np.float32)


@variants
@pytest.mark.parametrize("axis", [-1, -2], ids=["x", "y"])
def test_slopes_over_a_large_patch_of_terms_that_drift_keep_the_error_bound(axis, variant):
    patch_size, x1, x2, coords, g = large_patch(axis)
    *_, found = correlation_lookup_vjp(g, x1, x2, coords, patch_size, variant=variant, needs=(False, False, True))
    *_, want = lookup_oracle.vjp(g, x1, x2, coords, patch_size)
    lookup_oracle.assert_close(found, want, name="gradient of coords")


@variants
@pytest.mark.parametrize("name", ["a single map", "RAFT"])
def test_gradients_that_are_not_needed_are_none_and_change_no_other(name, variant):
    case = NAMED[name]
    arrays, g = case.arrays(), case.cotangent()
    everything = correlation_lookup_vjp(g, *arrays, **case.parameters, variant=variant, needs=ALL)
    by_default = correlation_lookup_vjp(g, *arrays, **case.parameters, variant=variant)
    assert by_default[2] is None
    for needs in np.ndindex(2, 2, 2):
        wanted = tuple(map(bool, needs))
        found = correlation_lookup_vjp(g, *arrays, **case.parameters, variant=variant, needs=wanted)
        for got, want, needed in zip(found, everything, wanted, strict=True):
            assert (got is None) is not needed
            if needed:
                for one, other in zip(*((each if isinstance(each, tuple) else (each,)) for each in (got, want)), strict=True):
                    np.testing.assert_array_equal(one, other)


@variants
def test_an_output_may_overlap_every_input(variant):
    case = NAMED["a single map"]
    x1, x2, coords = case.arrays()
    want = correlation_lookup(x1, x2, coords, **case.parameters, variant=variant)
    for number in range(3):
        memory = np.zeros(want.size + 2000, np.float32)
        inputs = [x1, x2, coords]
        inputs[number] = memory[1000 : 1000 + inputs[number].size].reshape(inputs[number].shape)
        inputs[number][...] = (x1, x2, coords)[number]
        out = memory[: want.size].reshape(want.shape)
        assert correlation_lookup(*inputs, **case.parameters, variant=variant, out=out) is out
        np.testing.assert_array_equal(out, want)
