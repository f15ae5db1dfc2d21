"""Suite-wide settings: hypothesis draws the same problems, variants are chosen by count, device tests need a device."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

os.environ["CUPYCORR_AUTOTUNE"] = "0"  # what was measured on the user's devices decides nothing here

if hasattr(signal, "SIGCHLD"):
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where whoever started the suite ignores it, exit codes of processes are lost

# The time that an example or its drawing takes is that of the machine, which may be busy.
untimed = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("suite", derandomize=True, print_blob=True, **untimed)
settings.load_profile("suite")


def has_device():
    try:
        import cupy
    except ImportError:
        return False
    return cupy.is_available()


@pytest.fixture
def variants(monkeypatch):
    """Put rows in the place of the operator's variants."""
    from cupycorr import _dispatch
    from cupycorr._correlation.variants import OPERATOR

    def put(*rows):
        monkeypatch.setattr(OPERATOR, "variants", rows)
        _dispatch._planned.cache_clear()

    yield put
    _dispatch._planned.cache_clear()


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
