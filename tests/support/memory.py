"""The memory that a call allocates, compared with the workspace that every call may take."""

import gc
import tracemalloc

from cupycorr._cpu import workers

MEBIBYTE = 2**20

WORKSPACE = 64 * MEBIBYTE  # promised; not read from the package


def peak(call):
    """Return the result of a call, and the most bytes that it held at any time beyond those held before it."""
    workers._free.clear()  # scratch kept from other calls would not be seen to be allocated
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        result = call()
        return result, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def assert_within(used, results, name):
    allowed = sum(array.nbytes for array in results) + WORKSPACE
    assert used <= allowed, f"{name} held {used / MEBIBYTE:.1f} MiB at once, {allowed / MEBIBYTE:.1f} MiB are allowed"
