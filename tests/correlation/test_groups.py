"""Groups are the same as a loop over them, and descending displacements are ascending ones in reverse."""

from functools import partial

import cases
import numpy as np
import oracle
import pytest
from cases import CPU_VARIANTS, GPU_VARIANTS
from emulated import accumulator, correlate, correlate_vjp, launched_by
from emulator import Emulator, require_compiler
from layouts import channels_last

import cupycorr
from cupycorr import spatial_correlation_sample, spatial_correlation_sample_vjp

require_compiler()

STEREO = cases.same((2, 12, 6, 19), patch_size=(1, 7), patch_offset=(0, -3), groups=3, scale=0.25)
SEARCH = cases.same((2, 8, 9, 17), patch_size=5, dilation_patch=2, groups=2)
WINDOW = cases.same((1, 6, 9, 12), kernel_size=3, patch_size=3, stride=2, padding=1, groups=2)
CASES = {"stereo": STEREO, "search": SEARCH, "window": WINDOW}
grouped = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def check_bits(case, forward, vjp):
    """Check that a call with groups has the bits of a loop over them, output and gradients."""
    x1, x2, g = case.arrays()
    parameters = {name: value for name, value in case.parameters.items() if name != "groups"}
    split = zip(np.split(x1, case.parameters["groups"], 1), np.split(x2, case.parameters["groups"], 1), strict=True)
    outputs, gradients = [], []
    for group, (one, two) in enumerate(split):
        arrays = [np.ascontiguousarray(array) for array in (one, two, g[:, group])]
        outputs.append(forward(*arrays[:2], **parameters))
        gradients.append(vjp(arrays[2], *arrays[:2], **parameters))
    assert forward(x1, x2, **case.parameters).tobytes() == np.stack(outputs, 1).tobytes()
    for got, *each in zip(vjp(g, x1, x2, **case.parameters), *gradients, strict=True):
        assert got.tobytes() == np.concatenate(each, 1).tobytes()


@grouped
@pytest.mark.parametrize("variant", CPU_VARIANTS)
def test_groups_have_the_bits_of_a_loop_over_them(case, variant):
    check_bits(case, *(partial(call, variant=variant) for call in (spatial_correlation_sample, spatial_correlation_sample_vjp)))


@grouped
@pytest.mark.parametrize("route", GPU_VARIANTS)
def test_groups_have_the_bits_of_a_loop_over_them_on_a_gpu(monkeypatch, case, route):
    emulator = Emulator()
    with launched_by(monkeypatch, emulator):
        check_bits(case, *(partial(call, emulator, route) for call in (correlate, correlate_vjp)))


@grouped
@pytest.mark.parametrize("variant", CPU_VARIANTS)
def test_arrays_of_any_strides_are_read_and_written(case, variant):
    x1, x2, g = case.arrays()
    spread = np.zeros((*case.out_shape()[:2], 2, *case.out_shape()[2:]), np.float32)
    out = spread[:, :, 1]
    got = spatial_correlation_sample(channels_last(x1), channels_last(x2), **case.parameters, variant=variant, out=out)
    assert got is out
    oracle.assert_close(out, oracle.forward(x1, x2, **case.parameters))
    assert not spread[:, :, 0].any(), "what lies between the groups is left alone"
    spread[:, :, 1] = g
    gradients = spatial_correlation_sample_vjp(out, channels_last(x1), x2, **case.parameters, variant=variant)
    for name, gradient, want in zip(("g1", "g2"), gradients, oracle.vjp(g, x1, x2, **case.parameters), strict=True):
        oracle.assert_close(gradient, want, name=name)


@pytest.mark.parametrize("route", GPU_VARIANTS)
def test_a_batch_of_channels_last_images_is_computed_sample_by_sample_on_a_gpu(monkeypatch, route):
    x1, x2, g = SEARCH.arrays()
    x1, x2 = channels_last(x1), channels_last(x2)
    emulator = Emulator()
    with launched_by(monkeypatch, emulator):
        out = correlate(emulator, route, x1, x2, **SEARCH.parameters)
        gradients = correlate_vjp(emulator, route, g, x1, x2, **SEARCH.parameters)
    oracle.assert_close(out, oracle.forward(x1, x2, **SEARCH.parameters), accumulator(route, "float32"))
    for name, gradient, want in zip(("g1", "g2"), gradients, oracle.vjp(g, x1, x2, **SEARCH.parameters), strict=True):
        oracle.assert_close(gradient, want, accumulator(route, "float32"), name)


def test_groups_evenly_spaced_in_memory_are_launched_together(monkeypatch):
    x1, x2, _ = SEARCH.arrays()
    launches = {}
    for lay in (np.ascontiguousarray, channels_last):
        emulator = Emulator()
        with launched_by(monkeypatch, emulator):
            correlate(emulator, "direct", lay(x1), lay(x2), **SEARCH.parameters)
        launches[lay] = len(emulator.accounts)
    assert launches == {np.ascontiguousarray: 1, channels_last: len(x1)}


@pytest.mark.parametrize("patch", [(4, 5), (1, 6)], ids=str)
@pytest.mark.parametrize("variant", CPU_VARIANTS)
def test_descending_displacements_are_ascending_ones_in_reverse(patch, variant):
    """An even patch has one more displacement after its centre, in the order in which they are."""
    x1, x2, _ = cases.same((1, 5, 9, 14)).arrays()
    down = spatial_correlation_sample(x1, x2, patch_size=patch, dilation_patch=(-1, -2), variant=variant)
    beyond = tuple(-step if size % 2 == 0 else 0 for size, step in zip(patch, (1, 2), strict=True))
    up = spatial_correlation_sample(x1, x2, patch_size=patch, dilation_patch=(1, 2), patch_offset=beyond, variant=variant)
    np.testing.assert_array_equal(down, up[:, ::-1, ::-1])


def test_the_explanation_has_the_shape_with_groups_and_as_much_arithmetic_as_without():
    x = np.zeros((3, 8, 9, 17), np.float32)
    whole, grouped = (cupycorr.explain(x, x, patch_size=5, groups=groups) for groups in (1, 2))
    assert "(3, 2, 5, 5, 9, 17)" in str(grouped)
    assert (grouped.flops, grouped.flops_inside) == (whole.flops, whole.flops_inside)


@pytest.mark.parametrize("shape", [(0, 4, 5, 6), (2, 0, 5, 6)], ids=["no samples", "no channels"])
@pytest.mark.parametrize("variant", CPU_VARIANTS)
def test_empty_batches_and_no_channels_have_groups_too(shape, variant):
    x = np.ones(shape, np.float32)
    out = spatial_correlation_sample(x, x, patch_size=3, groups=2, variant=variant)
    assert out.shape == (shape[0], 2, 3, 3, 5, 6)
    assert not out.any()
    gradients = spatial_correlation_sample_vjp(out, x, x, patch_size=3, groups=2, variant=variant)
    assert [gradient.shape for gradient in gradients] == [shape, shape]
