"""Models that use the operators are exported to ONNX with standard operators only, and onnxruntime computes the same as torch."""

import sys
from dataclasses import replace

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
    in_onnxruntime,
    in_volume,
    lookup,
    maps,
    mean,
    some_slow,
    to_onnx,
    toy,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matching_cases import SOME

from cupycorr.torch import SpatialCorrelationSampler, onnx_table, spatial_correlation_sample


def check(calls):
    """Check that onnxruntime computes the same as the eager operators."""
    model = Calls(calls).eval()
    found = in_onnxruntime(to_onnx(model, model.tensors, optimize=False))(*model.tensors)
    assert_equal(found, model(*model.tensors), model.dtypes())


# Parameters --------------------------------------------------------------------------------------------------------------------


# By default, a quarter of the named problems is tried.
QUARTERS = [0, *(pytest.param(start, marks=pytest.mark.slow) for start in (1, 2, 3))]


@pytest.mark.parametrize("start", QUARTERS)
def test_the_fixed_grid_on_named_problems(start):
    check(list(map(grid, list(NAMED.values())[start::4])))


@pytest.mark.parametrize("start", QUARTERS)
def test_lookups_of_named_cases(start):
    check(list(map(lookup, list(lookup_cases.NAMED.values())[start::4])))


@pytest.mark.parametrize("start", QUARTERS)
def test_lookups_in_volumes_of_named_cases(start):
    check(list(map(in_volume, list(volume_cases.NAMED.values())[start::4])))


@pytest.mark.parametrize("kind", some_slow(["ties", "strange"], ["strange"]))
def test_matching_on_named_problems(kind):
    calls = []
    for name, outside, top_k in (
        ("even patch", "zero", 1),
        ("window, stride and dilation", "excluded", 3),
        ("negative padding", "zero", 2),
        ("search wholly outside", "excluded", 2),
    ):
        calls.append(best(SOME[name], kind, outside=outside, top_k=top_k))
    calls.append(best(SOME["pwcnet-like"], kind, outside="excluded", subpixel=True))
    calls += [mean(SOME["one-sided stereo"], kind, outside=outside, temperature=0.7) for outside in ("zero", "excluded")]
    check(calls)


@pytest.mark.parametrize("dtype", some_slow(["float16", "bfloat16", "float64"], ["bfloat16"]))
def test_each_dtype(dtype):
    grids = [grid(replace(NAMED[name], dtype=dtype)) for name in ("window, stride and dilation", "groups")]
    lookups = [lookup(lookup_cases.NAMED[name].of(dtype)) for name in ("RAFT", "stereo")]
    volume = in_volume(volume_cases.NAMED["RAFT"].of(dtype))
    check([*grids, *lookups, volume, mean(replace(SOME["even patch"], dtype=dtype), "values")])


def drawn(examples):
    """Return the settings of a test that draws so many lists of cases."""
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
@drawn(10)
@given(st.lists(problems(), min_size=10, max_size=10))
def test_the_fixed_grid_on_drawn_parameters(cases):
    check(list(map(grid, cases)))


@pytest.mark.slow
@drawn(5)
@given(st.lists(lookup_cases.lookups(), min_size=10, max_size=10))
def test_lookups_of_drawn_parameters(cases):
    check(list(map(lookup, cases)))


@pytest.mark.slow
@drawn(5)
@given(st.lists(st.tuples(problems(most=10), st.sampled_from(["zero", "excluded"]), st.booleans()), min_size=8, max_size=8))
def test_matching_on_drawn_parameters(cases):
    calls = []
    for case, outside, is_mean in cases:
        case.parameters.pop("groups", None)
        calls.append(mean(case, "values", outside=outside) if is_mean else best(case, "ties", outside=outside))
    check(calls)


# Sizes -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", some_slow(OF_ANY_SIZE, OF_ANY_SIZE_BY_DEFAULT))
def test_a_program_is_for_any_batch_height_and_width(name):
    model = Model(OF_ANY_SIZE[name])
    run = in_onnxruntime(to_onnx(model, maps(*SIZES[0]), dynamic=(0, 2, 3)))
    for size in SIZES:
        assert_equal(run(*maps(*size)), [model(*maps(*size))], ["float32"])


def test_the_second_map_has_a_size_of_its_own():
    model = Model(lambda x1, x2: spatial_correlation_sample(x1, x2, 3, 5, patch_offset=2))
    run = in_onnxruntime(to_onnx(model, (maps(2, 9, 12)[0], maps(2, 14, 11)[1]), dynamic=(0, 2, 3)))
    for inputs in ((maps(1, 7, 15)[0], maps(1, 20, 9)[1]), (maps(3, 21, 8)[0], maps(3, 6, 30)[1])):
        assert_equal(run(*inputs), [model(*inputs)], ["float32"])


def test_the_number_of_nodes_does_not_depend_on_the_number_of_displacements():
    def nodes(patch_size):
        return len(list(to_onnx(SpatialCorrelationSampler(1, patch_size).eval(), maps(2, 9, 12)).model.graph))

    assert nodes(21) == nodes(9) < 100


# Toys --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", some_slow(TOYS, ["PWC-Net"]))
def test_a_toy_end_to_end(name):
    model = toy(name)
    run = in_onnxruntime(to_onnx(model, frames(2, 64, 80), dynamic=(0, 2, 3)))
    for size in ((2, 64, 80), (1, 96, 72), (3, 64, 128)):
        assert_equal(run(*frames(*size)), [model(*frames(*size))], ["float32"])


# Refusals ----------------------------------------------------------------------------------------------------------------------


def causes(error):
    """Return the texts of an error and of its causes."""
    while error is not None:
        yield str(error)
        error = error.__cause__


def test_gradients_are_refused_in_words():
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        to_onnx(Model(gradient), maps(2, 9, 12))
    assert any("computes gradients, which cannot be exported" in text for text in causes(caught.value))


def test_the_error_without_onnxscript_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.delitem(sys.modules, "cupycorr.torch._onnx_tensors", raising=False)
    with pytest.raises(ImportError, match=r'pip install "cupycorr\[onnx\]"'):
        onnx_table()
