"""Tensors on their way to the kernels of matching, on the software CUDA: CPU tensors pose as tensors of a device."""

import pytest
import torch
from cases import NAMED
from matching_cases import OUTSIDE, inputs
from tensors import array, tensor

import cupycorr
from cupycorr.torch import correlation_argmax, correlation_soft_argmax

CASE = NAMED["pwcnet-like"]


def tensors():
    return [tensor(x) for x in inputs(CASE, "ties")]


@pytest.mark.parametrize("outside", OUTSIDE)
def test_the_best_displacements_are_reduced_by_kernels(gpu, outside):
    found = correlation_argmax(*tensors(), **CASE.parameters, top_k=2, outside=outside)
    assert {entry for entry, _ in gpu.launched()} == {"reduce_tiled", "merge_best"}
    want = cupycorr.correlation_argmax(*inputs(CASE, "ties"), **CASE.parameters, top_k=2, outside=outside)
    for got, each in zip(found, want, strict=True):
        torch.testing.assert_close(got, tensor(each), rtol=0, atol=0, equal_nan=True)


def test_the_mean_and_its_gradients(gpu):
    x1, x2 = (x.requires_grad_() for x in tensors())
    mean = correlation_soft_argmax(x1, x2, **CASE.parameters, temperature=4.0)
    assert {entry for entry, _ in gpu.launched()} == {"reduce_tiled", "merge_mean"}
    want = cupycorr.correlation_soft_argmax(*inputs(CASE, "ties"), **CASE.parameters, temperature=4.0)
    for got, each in zip(mean, want, strict=True):
        torch.testing.assert_close(got.detach(), tensor(each), rtol=1e-4, atol=1e-4)
    mean.dx.sum().backward()
    # Through the volume, by torch's own arithmetic.
    y1, y2 = (tensor(x).requires_grad_() for x in inputs(CASE, "ties"))
    volume = cupycorr.torch.spatial_correlation_sample(y1, y2, **CASE.parameters)
    weights = torch.softmax(volume.flatten(1, 2) / 4.0, 1)
    columns = torch.arange(9.0) - 4
    (weights.unflatten(1, (9, 9)) * columns[:, None, None]).sum().backward()
    for got, each in ((x1.grad, y1.grad), (x2.grad, y2.grad)):
        torch.testing.assert_close(got, each, rtol=1e-3, atol=1e-3)


def test_subpixel_displacements_are_those_of_slices(gpu):
    found = correlation_argmax(*tensors(), **CASE.parameters, subpixel=True)
    assert not {"reduce_tiled", "reduce_mma"} & {entry for entry, _ in gpu.launched()}
    assert array(found.score).shape == found.dy.shape
