"""What a call allocates, held against the workspace that every call may take."""

import gc
import tracemalloc

from cupycorr._cpu import workers

MEBIBYTE = 2**20

WORKSPACE = 64 * MEBIBYTE  # promised; not read from the package


def peak(call):
    """What a call returns, and the most bytes it held at any time beyond what was held before it."""
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
