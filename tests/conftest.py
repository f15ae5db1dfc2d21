"""Suite-wide settings: hypothesis draws the same problems, variants are chosen by count, device tests need a device."""

import os

import pytest
from hypothesis import settings

os.environ["CUPYCORR_AUTOTUNE"] = "0"  # what was measured on the user's devices decides nothing here

settings.register_profile("suite", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("suite")


def has_device():
    try:
        import cupy
    except ImportError:
        return False
    return cupy.is_available()


@pytest.fixture
def variants(monkeypatch):
    """Puts rows in the place of the dispatch's table."""
    from cupycorr import _dispatch

    def put(*rows):
        monkeypatch.setattr(_dispatch, "VARIANTS", rows)
        _dispatch._count.cache_clear()

    yield put
    _dispatch._count.cache_clear()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where a torch test has its tensors: its twin on a GPU runs under ``-m gpu``."""
    if request.param == "cuda":
        import torch

        if not torch.cuda.is_available():
            pytest.skip("torch sees no CUDA device")
    return request.param


def pytest_collection_modifyitems(items):
    if not has_device():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
