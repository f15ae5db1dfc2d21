"""Memory in tests: how much a call allocates, compared with the workspace it may take, and guards around what a kernel writes."""

import gc
import tracemalloc
from contextlib import contextmanager

import numpy as np

from cupycorr._cpu import result_memory, workers

MEBIBYTE = 2**20

WORKSPACE = 64 * MEBIBYTE  # promised; not read from the package
GUARD = -12345.0  # a value that no kernel writes


def peak(call):
    """Return the result of a call, and the most bytes that it held at any time beyond those held before it."""
    workers._free.clear()  # memory kept from other calls would not be seen to be allocated
    result_memory._forget()
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


@contextmanager
def guarded_scratch(begin, size):
    """Return a context with memory full of NaN, and check at its end that nothing was written around it."""
    memory = np.full(begin + size + 64, GUARD)
    memory[begin : begin + size] = np.nan
    yield memory[begin : begin + size]
    assert (memory[:begin] == GUARD).all(), "written before scratch memory"
    assert (memory[begin + size :] == GUARD).all(), "written after scratch memory"
