"""Fixtures of the tests of torch operators."""

import pytest


@pytest.fixture
def gpu(monkeypatch, software_cuda):
    """Tensors of the CPU are on device 0; kernels run as they are launched, since torch frees their memory without waiting."""
    from fake_cupy import forget_plans
    from posing import Posing, new_stream

    from cupycorr import _dispatch
    from cupycorr.torch import _tensors

    posing = Posing(software_cuda, new_stream())
    place = _dispatch.gpu
    forget_plans()
    monkeypatch.setattr(_tensors, "on_gpu", lambda tensor: True)
    monkeypatch.setattr(_tensors, "addresses", lambda tensors: list(map(posing.address, tensors)))
    monkeypatch.setattr(_tensors, "current_stream", lambda index: posing.stream.ptr)
    monkeypatch.setattr(_dispatch, "gpu", lambda index: place(0))
    software_cuda.set_lazy(False)
    return posing
