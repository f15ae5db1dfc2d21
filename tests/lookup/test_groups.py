"""Lookups of groups of channels: each group is as if its channels were the only ones, for arrays and for tensors."""

from dataclasses import replace

import lookup_oracle
import numpy as np
import pytest
from lookup_cases import ALL, CPU_VARIANTS, NAMED

from cupycorr import correlation_lookup, correlation_lookup_vjp, explain_lookup

torch = pytest.importorskip("torch")

from cupycorr.torch import correlation_lookup as lookup_tensors  # noqa: E402

GROUPS = 2
NAMES = ("a single map", "lookups of each pixel", "pyramid and lookups", "edges of patches", "strange numbers", "no entries")


def with_channels(shape, channels):
    return (shape[0], channels, *shape[2:])


def with_groups(case):
    """Return a case with as many channels as two groups need."""
    shapes = [with_channels(shape, 6) for shape in case.levels]
    return replace(case, shape1=with_channels(case.shape1, 6), shapes2=shapes if isinstance(case.shapes2, list) else shapes[0])


CASES = {name: with_groups(NAMED[name]) for name in NAMES}
named = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def group(image, number):
    """Return the channels of one group of an image, or of each image of a pyramid."""
    if isinstance(image, list):
        return [group(each, number) for each in image]
    channels = image.shape[1] // GROUPS
    return np.ascontiguousarray(image[:, number * channels : (number + 1) * channels])


def wanted(case, g):
    """Return the oracle's triples of the output and of the gradients of input1, each map of input2 and coords."""
    x1, x2, coords = case.arrays()
    parts = [(group(x1, number), group(x2, number)) for number in range(GROUPS)]
    outputs = [lookup_oracle.forward(*part, coords, **case.parameters) for part in parts]
    vjps = [
        lookup_oracle.vjp(np.ascontiguousarray(g[:, number]), *part, coords, **case.parameters)
        for number, part in enumerate(parts)
    ]
    first, second, third = zip(*vjps, strict=True)
    maps = zip(*second, strict=True) if isinstance(x2, list) else [second]
    return (
        [np.stack(numbers, 1) for numbers in zip(*outputs, strict=True)],
        [np.concatenate(numbers, 1) for numbers in zip(*first, strict=True)],
        [[np.concatenate(numbers, 1) for numbers in zip(*level, strict=True)] for level in maps],
        [sum(numbers) for numbers in zip(*third, strict=True)],
    )


def cotangent(case):
    entries, *rest = case.cotangent().shape
    return np.random.default_rng(5).standard_normal((entries, GROUPS, *rest)).astype(np.float32)


def check(results, want):
    for name, got, triple in zip(("output", "g1", "g2", "gc"), results, want, strict=True):
        if name == "g2":
            for level, each in zip(got if isinstance(got, (tuple, list)) else [got], triple, strict=True):
                lookup_oracle.assert_close(level, each, name=name)
        else:
            lookup_oracle.assert_close(got, triple, name=name)


@named
@pytest.mark.parametrize("variant", CPU_VARIANTS)
def test_groups_equal_the_oracle_group_by_group(case, variant):
    x1, x2, coords = case.arrays()
    g = cotangent(case)
    out = correlation_lookup(x1, x2, coords, groups=GROUPS, variant=variant, **case.parameters)
    gradients = correlation_lookup_vjp(g, x1, x2, coords, groups=GROUPS, variant=variant, needs=ALL, **case.parameters)
    check((out, *gradients), wanted(case, g))


@named
def test_groups_of_tensors_equal_the_oracle_group_by_group(case):
    x1, x2, coords = case.arrays()
    g = cotangent(case)
    parameters = {name: torch.tensor(each) if isinstance(each, np.ndarray) else each for name, each in case.parameters.items()}
    first, coordinates = (torch.tensor(each).requires_grad_() for each in (x1, coords))
    maps = [torch.tensor(each).requires_grad_() for each in (x2 if isinstance(x2, list) else [x2])]
    out = lookup_tensors(first, maps if isinstance(x2, list) else maps[0], coordinates, groups=GROUPS, **parameters)
    one, *two, three = torch.autograd.grad(out, (first, *maps, coordinates), torch.tensor(g))
    check([out.detach().numpy(), one.numpy(), [each.numpy() for each in two], three.numpy()], wanted(case, g))


def test_an_output_of_any_strides_and_dtype_is_filled_and_only_needed_gradients_are_computed():
    case = CASES["a single map"]
    x1, x2, coords = case.arrays()
    entries, *rest = case.cotangent().shape
    out = np.zeros((entries, 2, GROUPS, *rest))[:, 1]
    assert correlation_lookup(x1, x2, coords, groups=GROUPS, out=out, **case.parameters) is out
    want = correlation_lookup(x1, x2, coords, groups=GROUPS, dtype=np.float64, **case.parameters)
    np.testing.assert_array_equal(out, want)
    g = cotangent(case)
    first, second, third = correlation_lookup_vjp(g, x1, x2, coords, groups=GROUPS, needs=(False, True, False), **case.parameters)
    assert first is None
    assert third is None
    assert second.shape == x2.shape


def test_an_output_may_overlap_an_input():
    case = CASES["a single map"]
    x1, x2, coords = case.arrays()
    want = correlation_lookup(x1, x2, coords, groups=GROUPS, **case.parameters)
    memory = np.zeros(max(want.size, x1.size), np.float32)
    image, out = memory[: x1.size].reshape(x1.shape), memory[: want.size].reshape(want.shape)
    image[...] = x1
    correlation_lookup(image, x2, coords, groups=GROUPS, out=out, **case.parameters)
    np.testing.assert_array_equal(out, want)


WRONG = {
    "0": (ValueError, "groups must be at least 1", 0),
    "True": (TypeError, "groups must be an int", True),
    "a float": (TypeError, "groups must be an int", 2.0),
    "no divisor": (ValueError, "groups must divide the number of channels, got groups=4", 4),
}


@pytest.mark.parametrize(("error", "message", "groups"), WRONG.values(), ids=WRONG)
def test_bad_groups_are_refused(error, message, groups):
    case = CASES["a single map"]
    arrays = case.arrays()
    with pytest.raises(error, match=message):
        correlation_lookup(*arrays, groups=groups, **case.parameters)
    with pytest.raises(error, match=message):
        correlation_lookup_vjp(case.cotangent(), *arrays, groups=groups, **case.parameters)
    with pytest.raises(error, match=message):
        lookup_tensors(*map(torch.tensor, arrays), groups=groups, **case.parameters)


def test_wrong_maps_are_refused_in_the_words_for_whole_maps():
    x1, x2, coords = CASES["a single map"].arrays()
    for call, sent in ((correlation_lookup, np.asarray), (lookup_tensors, torch.tensor)):
        with pytest.raises(ValueError, match=r"channels.*\(1, 4"):
            call(sent(x1), sent(np.ascontiguousarray(x2[:1, :4])), sent(coords), groups=GROUPS)
    wrong = CASES["a single map"].cotangent()
    with pytest.raises(ValueError, match="cotangent must have the output's shape"):
        correlation_lookup_vjp(wrong, x1, x2, coords, groups=GROUPS, **CASES["a single map"].parameters)


@pytest.mark.parametrize("gradients", [False, True])
def test_explanations_count_all_groups(gradients):
    x, coords = np.zeros((2, 12, 8, 10), np.float32), np.zeros((2, 2, 8, 10), np.float32)
    told = explain_lookup(x, [x, x], coords, patch_size=3, groups=4, gradients=gradients)
    one = explain_lookup(x[:, :3], [x[:, :3]] * 2, coords, patch_size=3, gradients=gradients)
    assert (told.repetitions, told.variant, told.pass_name) == (4, one.variant, one.pass_name)
    assert (told.flops, told.bytes, told.bound) == (4 * one.flops, 4 * one.bytes, 4 * one.bound)
    with pytest.raises(ValueError, match="groups must divide the number of channels, got groups=5"):
        explain_lookup(x, x, coords, patch_size=3, groups=5)
