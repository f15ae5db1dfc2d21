"""Tensors on their way to the kernels of the lookup in a volume, on the software CUDA: CPU tensors pose as those of a device."""

import pytest
import torch
import volume_oracle
from cases import DTYPES
from lookup_oracle import assert_close
from posing import new_stream
from tensors import array, tensor
from volume_cases import NAMED
from volume_emulated import assert_right, wanted

from cupycorr import _dispatch
from cupycorr.torch import _tensors, volume_lookup

SOME = {name: NAMED[name] for name in ("DROID's order", "stereo", "strange numbers")}
some = pytest.mark.parametrize("case", SOME.values(), ids=SOME.keys())
DROID = NAMED["DROID's order"]


def answer(case, layout=lambda x: x):
    """Return the output and both gradients of a case as arrays."""
    volume, coords = (layout(tensor(x)).detach().requires_grad_() for x in case.arrays())
    out = volume_lookup(volume, coords, **case.parameters)
    return [array(x) for x in (out, *torch.autograd.grad(out, (volume, coords), tensor(case.cotangent())))]


def check(case, results):
    assert_right(results, wanted(case, case.cotangent()), case.arrays()[0].dtype)


@some
def test_tensors_in_tensors_out_with_the_oracles_values(gpu, case):
    check(case, answer(case))
    assert {entry for entry, _ in gpu.launched()} == {"volume_lookup", "volume_gradient", "volume_gradient_coords"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_crosses_by_its_name(gpu, dtype, monkeypatch):
    monkeypatch.setattr(_tensors, "_numpy_dtype", lambda dtype: pytest.fail("NumPy is not on this way"))
    check(DROID.of(dtype), answer(DROID.of(dtype)))


@pytest.mark.parametrize(
    "layout",
    [lambda x: x.transpose(1, -1).contiguous().transpose(1, -1), lambda x: x.repeat_interleave(2, -1)[..., ::2]],
    ids=["permuted", "every other column"],
)
def test_strides_are_taken_as_they_are(gpu, layout):
    check(DROID, answer(DROID, layout))


def test_the_output_has_the_dtype_asked_for(gpu):
    case = DROID.of("float16")
    arrays = case.arrays()
    out = volume_lookup(*map(tensor, arrays), **case.parameters, dtype=torch.float32)
    assert out.dtype == torch.float32
    assert_close(array(out), volume_oracle.forward(*arrays, **case.parameters))


def test_second_derivatives_run_on_the_device(gpu):
    volume, coords = (tensor(x).requires_grad_() for x in NAMED["stereo"].of("float64").arrays())
    coords = coords[:, :, :1, :5].detach().requires_grad_()
    volume = volume[:, :1, :5].detach().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda v, c: volume_lookup(v, c, 3), (volume, coords))


def test_launches_go_to_the_stream_that_torch_is_on_at_that_moment(gpu):
    other = new_stream()
    first = gpu.stream
    answer(DROID)
    gpu.clear()
    gpu.stream = other
    answer(DROID)
    assert {stream for _, stream in gpu.launched()} == {other.ptr} != {first.ptr}


def test_only_the_gradient_that_is_needed_is_launched(gpu):
    volume, coords = map(tensor, DROID.arrays())
    out = volume_lookup(volume.requires_grad_(), coords, **DROID.parameters)
    gpu.clear()
    out.sum().backward()
    assert [entry for entry, _ in gpu.launched()] == ["volume_gradient"]


def test_a_variant_of_the_cpu_is_refused_with_the_reason(gpu):
    _dispatch._planned.cache_clear()
    with pytest.raises(NotImplementedError, match="needs a NumPy array"):
        volume_lookup(*map(tensor, DROID.arrays()), variant="simd")
