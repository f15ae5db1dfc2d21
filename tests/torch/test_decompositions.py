"""After `cupycorr.torch.decompositions`, a program has none of the operators left, and torch computes the same with it."""

import lookup_cases
import pytest
import torch
import volume_cases
from cases import NAMED, problems
from exporting import (
    OF_ANY_SIZE,
    OF_ANY_SIZE_BY_DEFAULT,
    SIZES,
    TOYS,
    Calls,
    Model,
    assert_equal,
    best,
    frames,
    gradient,
    grid,
    in_volume,
    lookup,
    maps,
    mean,
    some_slow,
    to_aten,
    toy,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matching_cases import SOME

from cupycorr.torch import CorrBlock, decompositions


def check(calls):
    """Check that the decomposed program computes the same as the eager operators."""
    model = Calls(calls)
    assert_equal(to_aten(model, model.tensors)(*model.tensors), model(*model.tensors), model.dtypes())


MATCHING = [
    best(SOME["window, stride and dilation"], "strange", outside="excluded", top_k=2),
    best(SOME["even patch"], "ties", subpixel=True),
    mean(SOME["one-sided stereo"], "strange", outside="excluded"),
]
CALLS = {
    "fixed grid": [
        grid(NAMED[name])
        for name in ("window, stride and dilation", "window of many taps", "negative padding", "descending displacements")
    ],
    "lookups": [lookup(lookup_cases.NAMED[name]) for name in ("strange numbers", "edges of patches", "own rows, tall patch")],
    "lookups in volumes": [in_volume(volume_cases.NAMED[name]) for name in ("strange numbers", "stereo, coarse")],
    "matching": MATCHING,
}


@pytest.mark.parametrize("name", CALLS)
def test_decomposed_programs_on_named_cases(name):
    check(CALLS[name])


@pytest.mark.slow
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(problems(), min_size=5, max_size=5), st.lists(lookup_cases.lookups(), min_size=5, max_size=5))
def test_decomposed_programs_on_drawn_parameters(cases, lookups):
    check([*map(grid, cases), *map(lookup, lookups)])


@pytest.mark.parametrize("name", some_slow(OF_ANY_SIZE, OF_ANY_SIZE_BY_DEFAULT))
def test_a_decomposed_program_is_for_any_batch_height_and_width(name):
    model = Model(OF_ANY_SIZE[name])
    run = to_aten(model, maps(*SIZES[0]), dynamic=(0, 2, 3))
    for size in SIZES:
        assert_equal([run(*maps(*size))], [model(*maps(*size))], ["float32"])


@pytest.mark.slow
@pytest.mark.parametrize("name", TOYS)
def test_a_decomposed_toy(name):
    model = toy(name)
    run = to_aten(model, frames(2, 64, 80), dynamic=(0, 2, 3))
    for size in ((2, 64, 80), (1, 96, 72), (3, 64, 128)):
        assert_equal([run(*frames(*size))], [model(*frames(*size))], ["float32"])


def test_lookups_of_mapped_samples():
    """Under torch.vmap, shared maps are looked up through indices, which are decomposed, too."""
    fmap1, fmap2 = maps(1, 9, 12)

    def lookups(first, shift):
        y, x = torch.meshgrid(torch.arange(9.0), torch.arange(12.0), indexing="ij")
        coords = torch.stack((x, y))[None] + shift
        return CorrBlock(first, fmap2, num_levels=1, radius=1)(coords)

    model = Model(lambda first, shifts: torch.vmap(lookups, (None, 0))(first, shifts))
    shifts = torch.tensor([0.0, 0.5, -2.25])
    assert_equal([to_aten(model, (fmap1, shifts))(fmap1, shifts)], [model(fmap1, shifts)], ["float32"])


def test_gradients_are_refused_in_words():
    program = torch.export.export(Model(gradient), maps(2, 9, 12))
    with pytest.raises(NotImplementedError, match="spatial_correlation_sample_vjp computes gradients, which cannot be exported"):
        program.run_decompositions(decompositions())
