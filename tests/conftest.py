"""Settings of the suite: hypothesis draws the same problems every time, nothing is tuned, and tests of a GPU need one."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.sampling", "tests.software_cuda.plugin"]
collect_ignore = ["software_cuda"]  # has no tests, and modules that cannot be imported by themselves

os.environ["CUPYCORR_AUTOTUNE"] = "0"  # measurements on the user's devices must not decide

if hasattr(signal, "SIGCHLD"):
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, exit codes of processes are lost

# No deadline: the time that an example takes depends on how busy the machine is.
untimed = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("suite", derandomize=True, print_blob=True, **untimed)
settings.load_profile("suite")


def pytest_addoption(parser):
    parser.addoption(
        "--variants", metavar="FILE", help="test the variants that this file registers, in tests/test_own_variants.py"
    )


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
    """The device of the tensors of a torch test; the test also runs on a GPU under ``-m gpu``."""
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
