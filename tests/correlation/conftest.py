"""Fixtures of the tests on a device. Their modules import CuPy, which need not be installed; so fixtures import it themselves."""

import pytest


@pytest.fixture
def able(request):
    """Skip an item whose variant cannot run its case on the current device."""
    from on_device import skip_where_it_cannot_run

    skip_where_it_cannot_run(request)


@pytest.fixture
def side():
    """A stream that the default stream neither waits for nor holds up."""
    from on_device import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    yield stream
    stream.synchronize()
