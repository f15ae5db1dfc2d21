"""Matching with groups of channels and with descending displacements."""

import numpy as np
import pytest
from cases import Case, same
from matching_cases import CPU_VARIANTS, OUTSIDE, check_best, check_mean, check_subpixel

import cupycorr
from cupycorr import correlation_argmax, correlation_soft_argmax

torch = pytest.importorskip("torch")

GROUPED = same((2, 6, 7, 11), patch_size=(3, 4), patch_offset=(0, 1), groups=3)
DESCENDING = {
    "both axes": same((2, 5, 8, 9), patch_size=(3, 4), dilation_patch=(-1, -2)),
    "disparities": same((1, 6, 5, 20), patch_size=(1, 8), dilation_patch=(1, -1), patch_offset=(0, -3)),
    "a window": same((1, 3, 9, 12), kernel_size=3, patch_size=4, dilation_patch=(-1, 1), stride=2, padding=1),
}
descending = pytest.mark.parametrize("case", DESCENDING.values(), ids=DESCENDING)
outsides = pytest.mark.parametrize("outside", OUTSIDE)


def as_numpy(field):
    return [np.asarray(each.detach() if isinstance(each, torch.Tensor) else each) for each in field]


def group_by_group(call, arrays, axis, **options):
    """Return the fields of a search in one group after another, along a new axis."""
    parameters = {name: value for name, value in GROUPED.parameters.items() if name != "groups"}
    parts = zip(*(np.split(x, GROUPED.parameters["groups"], 1) for x in arrays), strict=True)
    each = [call(*map(np.ascontiguousarray, part), **parameters, **options) for part in parts]
    return [np.stack(fields, axis) for fields in zip(*each, strict=True)]


@outsides
@pytest.mark.parametrize("sent", [np.asarray, torch.tensor], ids=["arrays", "tensors"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_each_group_is_searched_by_itself(sent, top_k, outside):
    arrays = GROUPED.arrays()[:2]
    want = group_by_group(correlation_argmax, arrays, 2 if top_k > 1 else 1, top_k=top_k, outside=outside)
    found = correlation_argmax(*map(sent, arrays), **GROUPED.parameters, top_k=top_k, outside=outside)
    for name, got, each in zip(found._fields, as_numpy(found), want, strict=True):
        np.testing.assert_array_equal(got, each, err_msg=name)
    assert tuple(found.flow.shape) == ((2, 2, 3, 7, 11, 2) if top_k > 1 else (2, 3, 7, 11, 2))


@outsides
@pytest.mark.parametrize("sent", [np.asarray, torch.tensor], ids=["arrays", "tensors"])
def test_each_group_has_its_own_mean(sent, outside):
    arrays = GROUPED.arrays()[:2]
    want = group_by_group(correlation_soft_argmax, arrays, 1, temperature=2.0, outside=outside)
    found = correlation_soft_argmax(*map(sent, arrays), **GROUPED.parameters, temperature=2.0, outside=outside)
    for name, got, each in zip(found._fields, as_numpy(found), want, strict=True):
        np.testing.assert_array_equal(got, each, err_msg=name)


def test_the_mean_of_groups_has_gradients():
    x1, x2 = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in GROUPED.arrays()[:2])

    def mean(a, b):
        return correlation_soft_argmax(a, b, **GROUPED.parameters).flow

    small = [x[:1, :, :4, :5].detach().requires_grad_() for x in (x1, x2)]
    assert torch.autograd.gradcheck(mean, small)


@pytest.mark.parametrize("explain", [cupycorr.explain_argmax, cupycorr.explain_soft_argmax])
def test_explanations_count_all_groups(explain):
    x = np.zeros((2, 12, 8, 10), np.float32)
    told = explain(x, x, patch_size=(3, 5), groups=4)
    one = explain(x[:, :3], x[:, :3], patch_size=(3, 5))
    assert (told.repetitions, told.variant, told.workspace) == (4, one.variant, one.workspace)
    assert told.flops == 2 * 12 * 3 * 5 * (2 * 8 * 10)  # a multiplication and an addition of each channel
    assert (told.flops_inside, told.bytes, told.bound) == (4 * one.flops_inside, 4 * one.bytes, 4 * one.bound)
    with pytest.raises(ValueError, match="groups must divide the number of channels, got groups=5"):
        explain(x, x, patch_size=3, groups=5)


@pytest.mark.parametrize("call", [correlation_argmax, correlation_soft_argmax])
@pytest.mark.parametrize("sent", [np.asarray, torch.tensor], ids=["arrays", "tensors"])
def test_bad_groups_are_refused(sent, call):
    x1, x2 = map(sent, GROUPED.arrays()[:2])
    for groups, error, message in (
        (0, ValueError, "groups must be at least 1"),
        (True, TypeError, "groups must be an int"),
        (4, ValueError, "groups must divide the number of channels, got groups=4"),
    ):
        with pytest.raises(error, match=message):
            call(x1, x2, patch_size=3, groups=groups)
    for wrong, message in (
        (x2[:, :4], r"must have the same batch size and channels, got input1.shape=\(2, 6, 7, 11\)"),
        (x2[:1], r"must have the same batch size and channels, got input1.shape=\(2, 6, 7, 11\)"),
        (x2[..., :4], r"must have the same shape .* got input1.shape=\(2, 6, 7, 11\), input2.shape=\(2, 6, 7, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call(x1, wrong, patch_size=3, groups=2)


# The cases that are computed between mirrored images.
MIRRORED = {
    "both axes": DESCENDING["both axes"],
    "disparities": DESCENDING["disparities"],
    "rows alone": same((1, 3, 9, 12), patch_size=(5, 3), dilation_patch=(-2, 1), padding=(2, 0)),
    "stride": same((2, 3, 9, 13), patch_size=(3, 4), dilation_patch=(-1, -2), stride=(2, 3)),
    "images of two sizes": Case(
        (1, 4, 6, 17), (1, 4, 9, 11), parameters=dict(patch_size=(4, 6), dilation_patch=-1, patch_offset=(2, -5))
    ),
    "many disparities": same((1, 4, 9, 300), patch_size=(1, 64), dilation_patch=(1, -1), patch_offset=(0, -31)),
    "float64": same((1, 5, 8, 9), dtype="float64", patch_size=4, dilation_patch=-1),
    "bfloat16": same((1, 5, 8, 9), dtype="bfloat16", patch_size=4, dilation_patch=-1),
}
mirrored = pytest.mark.parametrize("case", MIRRORED.values(), ids=MIRRORED)


@outsides
@descending
@pytest.mark.parametrize("kind", ["values", "ties", "strange"])
def test_descending_displacements_are_in_the_order_of_their_channels(case, kind, outside):
    for top_k in (1, 3):
        check_best(case, kind, "reference", top_k, outside)
    check_mean(case, kind, "reference", outside)


@outsides
@mirrored
@pytest.mark.parametrize("kind", ["values", "ties", "strange"])
@pytest.mark.parametrize("variant", ["simd", "blas"])
def test_engines_find_descending_displacements_between_mirrored_images(variant, case, kind, outside):
    for top_k in (1, 3):
        check_best(case, kind, variant, top_k, outside)
    check_mean(case, kind, variant, outside)
    check_subpixel(case, kind, variant, outside)


@outsides
@pytest.mark.parametrize("variant", CPU_VARIANTS)
def test_the_vertex_between_descending_displacements_is_on_the_right_side(variant, outside):
    check_subpixel(DESCENDING["disparities"], "values", variant, outside)
    check_subpixel(DESCENDING["both axes"], "values", variant, outside)


REFUSED = {
    "a window": (DESCENDING["a window"], "displacements descend with windows"),
    "an edge": (same((1, 3, 9, 12), patch_size=3, dilation_patch=(1, -1), stride=2), "with a stride of 2, and the last position"),
}


@pytest.mark.parametrize(("case", "message"), REFUSED.values(), ids=REFUSED)
def test_engines_say_which_descending_displacements_they_do_not_find(case, message):
    x1, x2, _ = case.arrays()
    with pytest.raises(NotImplementedError, match=message):
        correlation_argmax(x1, x2, **case.parameters, variant="simd")
    assert cupycorr.explain_argmax(x1, x2, **case.parameters).variant == "reference"
