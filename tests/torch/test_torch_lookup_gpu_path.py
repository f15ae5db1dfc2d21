"""Tensors on their way to the kernels of the lookup, on the software CUDA: CPU tensors pose as tensors of a device."""

from dataclasses import replace

import lookup_oracle
import pytest
import torch
from cases import DTYPES
from lookup_cases import NAMED, Case
from lookup_in_torch import answer, check, tensors_of
from posing import new_stream
from tensors import array, tensor

from cupycorr import _dispatch
from cupycorr.torch import _tensors, correlation_lookup

vjp_op = torch.ops.cupycorr.correlation_lookup_vjp
SMALL = Case((2, 5, 4, 6), [(2, 5, 5, 7), (2, 5, 2, 3)], (2, 2, 4, 6), dict(patch_size=(3, 2), order="dx", scale=0.5))
PATCHES = replace(NAMED["edges of patches"], parameters=NAMED["edges of patches"].parameters | dict(patch_size=3))
SOME = {"pyramid": SMALL, "indices": PATCHES, "lookups of each pixel": NAMED["lookups of each pixel"]}
some = pytest.mark.parametrize("case", SOME.values(), ids=SOME.keys())


@some
def test_tensors_in_tensors_out_with_the_oracles_values(gpu, case):
    check(case, answer(case))
    assert {"lookup_direct", "lookup_tiled", "lookup_mma"} & {entry for entry, _ in gpu.launched()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_crosses_by_its_name(gpu, dtype, monkeypatch):
    monkeypatch.setattr(_tensors, "_numpy_dtype", lambda dtype: pytest.fail("NumPy is not on this way"))
    check(PATCHES.of(dtype), answer(PATCHES.of(dtype)))


@pytest.mark.parametrize("coords_dtype", ["float16", "bfloat16"])
def test_narrow_coordinates_cross_too(gpu, coords_dtype):
    case = replace(SMALL, coords_dtype=coords_dtype)
    check(case, answer(case))


@pytest.mark.parametrize(
    "layout",
    [lambda x: x.contiguous(memory_format=torch.channels_last), lambda x: x.repeat_interleave(2, 3)[..., ::2]],
    ids=["channels last", "every other column"],
)
def test_strides_are_taken_as_they_are(gpu, layout):
    check(SMALL, answer(SMALL, layout=layout))


def test_the_output_has_the_dtype_asked_for(gpu):
    case = SMALL.of("float16")
    x1, maps, coords, parameters = tensors_of(case)
    out = correlation_lookup(x1, maps, coords, **parameters, dtype=torch.float32)
    assert out.dtype == torch.float32
    lookup_oracle.assert_close(array(out), lookup_oracle.forward(*case.arrays(), **case.parameters))


def test_indices_out_of_range_are_not_read_back_and_spoil_their_entry_alone(gpu):
    x1, maps, coords, parameters = tensors_of(PATCHES)
    index = parameters["index2"].clone()
    index[2], index[5] = 3, -1
    inputs = [x.requires_grad_() for x in (x1, *maps, coords)]
    out = correlation_lookup(x1, maps, coords, **parameters | dict(index2=index))
    spoilt = out.isnan().flatten(1)
    assert spoilt.all(1).tolist() == spoilt.any(1).tolist() == [e in (2, 5) for e in range(7)]
    gradients = torch.autograd.grad(out, inputs, torch.ones_like(out))
    assert all(g.isfinite().all() for g in gradients)
    assert not gradients[-1][[2, 5]].any()


def test_under_vmap_an_index_out_of_range_does_not_become_that_of_another_sample(gpu):
    x1, maps, coords, parameters = tensors_of(PATCHES)
    parameters["index1"][3] = 4
    inputs = [torch.stack([x, x]) for x in (x1, *maps, coords)]
    out = torch.func.vmap(lambda a, b0, b1, c: correlation_lookup(a, [b0, b1], c, **parameters))(*inputs)
    assert out.isnan().flatten(2).any(2).tolist() == [[e == 3 for e in range(7)]] * 2


def test_second_derivatives_run_on_the_device(gpu):
    def second(inputs):
        inputs = [x.double().detach().requires_grad_() for x in inputs]
        a, *b, c = inputs
        first = torch.autograd.grad(correlation_lookup(a, b, c, patch_size=2).pow(2).sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(x.pow(2).sum() for x in first), inputs)

    x1, maps, coords, _ = tensors_of(SMALL)
    got = second((x1, *maps, coords))
    names = {entry for entry, _ in gpu.launched()}
    assert {"lookup_gradient1", "lookup_gradient2", "lookup_gradient_coords"} <= names
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_tensors, "on_gpu", lambda tensor: False)
        want = second((x1, *maps, coords))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_launches_go_to_the_stream_that_torch_is_on_at_that_moment(gpu):
    for _ in range(2):
        gpu.stream = new_stream()
        gpu.clear()
        answer(SMALL)
        assert {ptr for _, ptr in gpu.launched()} == {gpu.stream.ptr}


KERNELS = {
    (True, False, False, False): {"lookup_gradient1"},
    (False, False, True, False): {"lookup_boxes", "lookup_gradient2"},
    (False, False, False, True): {"lookup_gradient_coords"},
    (False, False, False, False): set(),
}


@pytest.mark.parametrize(("needs", "kernels"), KERNELS.items(), ids=["input1", "a level", "coords", "nothing"])
def test_only_the_gradients_that_are_needed_are_launched(gpu, needs, kernels):
    x1, maps, coords, _ = tensors_of(SMALL)
    found = vjp_op(tensor(SMALL.cotangent()), x1, maps, coords, list(needs), patch_size=[3, 2], order="dx", scale=0.5)
    assert {entry for entry, _ in gpu.launched()} - {"sum_parts"} == kernels
    assert [x.numel() > 0 for x in found] == list(needs)


def test_the_same_arguments_make_one_plan(gpu):
    for _ in range(3):
        answer(PATCHES)
    assert _dispatch._planned.cache_info().misses == 2


def test_empty_problems_launch_nothing(gpu):
    answer(NAMED["no entries"])
    assert gpu.launched() == []


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_the_precision_asked_for_is_that_of_both_passes(gpu, precision, monkeypatch):
    seen, choose = [], _dispatch.choose

    def noting(operator, request, *rest):
        seen.append((request.pass_name, request.precision))
        return choose(operator, request, *rest)

    monkeypatch.setattr(_dispatch, "choose", noting)
    answer(SMALL, precision=precision)
    assert seen == [("forward", precision), ("vjp", precision)]


def test_a_bad_cotangent_is_refused_before_a_launch(gpu):
    x1, maps, coords, _ = tensors_of(SMALL)
    with pytest.raises(ValueError, match="cotangent must have the output's shape"):
        vjp_op(torch.ones(1), x1, maps, coords, [True] * 4)
    assert gpu.launched() == []


def test_cpu_variants_are_refused_with_the_reason(gpu):
    x1, maps, coords, _ = tensors_of(SMALL)
    with pytest.raises(NotImplementedError, match="blas: input is a CuPy array"):
        correlation_lookup(x1, maps, coords, variant="blas")
