"""The options of pytest that run tests of a GPU on the software CUDA.

`--software-cuda` activates it before any test module is imported, so that the tests with the marker `gpu` find devices.
`--software-cuda-sample` leaves a part of them, the same on every worker. A test fails if the software CUDA reports that a kernel
has loaded what nobody stored, or touched memory that was given back.
"""

import os
import sys

import pytest

from .. import sampling
from . import activation, control, devices, preparation

SAMPLE = "--software-cuda-sample"
KINDS = 4  # successive samples, one for each kind of device, hold each function at least once
REQUIRED = "CUPYCORR_REQUIRE_SOFTWARE_CUDA"
why_not = pytest.StashKey()
complaints_of_call = pytest.StashKey()

# Reports that fail no test: CuPy's own sums along an axis read shared memory that they do not use.
NOT_OURS = ("of kernel cupy_inclusive_batch_scan_kernel loads",)


def pytest_addoption(parser):
    group = parser.getgroup("software CUDA")
    group.addoption(
        "--software-cuda",
        nargs="?",
        const="H200",
        metavar="DEVICES",
        help=f"run the tests of a GPU on imagined devices, separated by commas, of the kinds {', '.join(devices.DEVICES)}",
    )
    group.addoption(
        "--software-cuda-backwards",
        action="store_true",
        help="run the threads and blocks of every kernel from the last to the first",
    )
    group.addoption(
        SAMPLE,
        metavar="K/N",
        help="of each test function run every N-th of its tests of a GPU only, and at least one in "
        f"{KINDS} successive samples; K chooses which",
    )


def pytest_configure(config):
    names = config.getoption("--software-cuda")
    sample = config.getoption(SAMPLE)
    if sample is not None:
        sampling.parsed(SAMPLE, sample)
    config.stash[why_not] = None
    if names is None:
        return
    try:
        activation.activate(devices.parsed(names))
    except ValueError as error:
        raise pytest.UsageError(f"--software-cuda: {error}") from None
    except preparation.CannotPrepareError as error:
        if os.environ.get(REQUIRED):
            raise pytest.UsageError(f"the software CUDA cannot be prepared: {error}") from None
        config.stash[why_not] = str(error)
        return
    control.set_thread_order(config.getoption("--software-cuda-backwards"))


def pytest_report_header(config):
    names = config.getoption("--software-cuda")
    if names is None:
        return None
    return f"software CUDA: {names}" + (f", cannot be prepared: {config.stash[why_not]}" if config.stash[why_not] else "")


@pytest.fixture
def software_cuda(request):
    """Return the module `control` of the software CUDA, on which alone the test can run; the test has the marker `gpu`."""
    if not _is_watched(request.node):
        pytest.skip("the test needs --software-cuda")
    control.forget()
    yield control
    control.set_lazy(True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    for item in items:
        if "software_cuda" in getattr(item, "fixturenames", ()):
            item.add_marker("gpu")
    sample = config.getoption(SAMPLE)
    if sample is not None:
        sampling.leave_a_sample(config, items, _is_of_a_gpu, *sampling.parsed(SAMPLE, sample), apart=KINDS)
    if config.getoption("--software-cuda") is None:
        return
    reason = config.stash[why_not]
    for item in items:
        if reason and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=f"the software CUDA cannot be prepared: {reason}"))
        elif item.get_closest_marker("hardware"):
            item.add_marker(pytest.mark.skip(reason="the test needs a real device"))


def _is_of_a_gpu(item):
    return item.get_closest_marker("gpu") is not None


def _is_watched(item):
    """Return whether the test runs on the software CUDA."""
    config = item.config
    running = config.getoption("--software-cuda") is not None and not config.stash[why_not]
    return running and _is_of_a_gpu(item)


@pytest.fixture(scope="session")
def software_cuda_prepared():
    """Prepare the software CUDA and return its places. Where that is impossible, tests are skipped, or fail if it is required."""
    try:
        return preparation.prepare()
    except preparation.CannotPrepareError as error:
        if os.environ.get(REQUIRED):
            pytest.fail(f"the software CUDA cannot be prepared: {error}", pytrace=False)
        return pytest.skip(f"the software CUDA cannot be prepared: {error}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    try:
        result = yield
    finally:
        complaints = item.stash[complaints_of_call] = _complaints(item)
    _fail_for(complaints)
    return result


def _complaints(item):
    """Return what the software CUDA has to complain of, once everything that the test has enqueued has run."""
    if not _is_watched(item):
        return []
    error = _run_to_the_end()
    return [each for each in control.reports() if not any(words in each for words in NOT_OURS)] + error


def _fail_for(complaints):
    if complaints:
        pytest.fail("\n".join(["The software CUDA reports:", *complaints]), pytrace=False)


def _run_to_the_end():
    """Run what the test has enqueued and not waited for; return its error as a list of at most one text."""
    if "cupy" not in sys.modules:
        return []
    try:
        control.wait_for_everything()
    except RuntimeError as error:
        return [str(error)]
    return []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    """Fail the teardown for what the software CUDA has seen since the test's call: fixtures run kernels as they end."""
    try:
        result = yield
        before = item.stash.get(complaints_of_call, [])
        _fail_for([each for each in _complaints(item) if each not in before])
        return result
    finally:
        if _is_watched(item):
            control.forget()
