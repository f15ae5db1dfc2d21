"""Support for tests on a device: CuPy, arrays sent there and back, both passes of a case, a stream that is held up, memory.

Importing it skips a module of tests where CuPy is not installed.
"""

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import cases
import numpy as np
import oracle
import pytest
from cases import GPU_VARIANTS
from packaging.version import Version
from waiting import STUCK

from cupycorr import spatial_correlation_sample as correlate
from cupycorr import spatial_correlation_sample_vjp as correlate_vjp
from cupycorr._correlation.variants import OPERATOR
from cupycorr._dispatch import FORWARD, VJP, Request
from cupycorr._gpu.device import facts

cupy = pytest.importorskip("cupy")

PLAIN = cases.same((2, 20, 9, 33), patch_size=(3, 5))
HALVES = replace(PLAIN, dtype="float16")
WINDOWED = cases.same((2, 5, 19, 21), kernel_size=3, patch_size=(3, 4), stride=(1, 2), padding=1)
# The id of an item of a test, which begins with a variant -> the case that the variant computes.
EACH = {"direct": PLAIN, "direct, window": WINDOWED, "box": WINDOWED, "tiled": PLAIN, "mma": HALVES}
each = pytest.mark.parametrize(("variant", "case"), [(name.split(",")[0], case) for name, case in EACH.items()], ids=EACH)


# Arrays and results -----------------------------------------------------------------------------------------------------------


def sent(array):
    """Return an array of the host as an array on the current device."""
    if array.dtype.name == "bfloat16" and Version(np.__version__) < Version("2.1.2"):
        pytest.skip("CuPy has bfloat16 only with NumPy 2.1.2 or later")
    return cupy.asarray(array)


def back(array):
    """Return an array of a device as one of the host, once the current stream has finished."""
    return cupy.asnumpy(array)


def answer(case, arrays, variant="auto", precision="highest"):
    """Return output and both gradients of a case from arrays that are on a device."""
    x1, x2, g = arrays
    options = dict(case.parameters, variant=variant, precision=precision)
    return (correlate(x1, x2, **options), *correlate_vjp(g, x1, x2, **options))


def why_not(variant, case, result=None, precision="highest", device=None):
    """Return None, or why a variant cannot run both passes of a case on a device; without one, on any device."""
    if variant == "auto":
        return None
    (row,) = OPERATOR.named(variant)
    requests = (
        Request(name, case.problem(), case.dtype, result or case.dtype, precision=precision).dense() for name in (FORWARD, VJP)
    )
    return next(filter(None, (row.why_not(request, device) for request in requests)), None)


def here():
    """Return the facts of the current device."""
    return facts(cupy.cuda.runtime.getDevice())


def able(case):
    """Return the variants that can run both passes of a case on the current device."""
    return [variant for variant in GPU_VARIANTS if why_not(variant, case, device=here()) is None]


def skip_where_it_cannot_run(request):
    """Skip an item whose variant cannot run its case on the current device.

    Items are made for every device: which dtypes its tensor cores multiply is known where the item runs.
    """
    given = getattr(getattr(request.node, "callspec", None), "params", {})
    if {"variant", "case"} <= given.keys():
        reason = why_not(given["variant"], given["case"], given.get("result"), given.get("precision", "highest"), here())
        if reason is not None:
            pytest.skip(f"{given['variant']}: {reason}")


def wanted(case):
    """Return the triples of the oracle for `answer`."""
    x1, x2, g = case.arrays()
    return oracle.forward(x1, x2, **case.parameters), *oracle.vjp(g, x1, x2, **case.parameters)


def assert_right(results, triples, accumulator=None):
    for name, result, triple in zip(("output", "g1", "g2"), results, triples, strict=True):
        oracle.assert_close(result if isinstance(result, np.ndarray) else back(result), triple, accumulator, name)


def assert_same_bits(results, others):
    for name, one, two in zip(("output", "g1", "g2"), results, others, strict=True):
        assert back(one).tobytes() == back(two).tobytes(), name


def fill(arrays, others):
    """Copy arrays of a device into others of it."""
    for array, other in zip(arrays, others, strict=True):
        array[...] = other


# Streams ----------------------------------------------------------------------------------------------------------------------

DELAY = 0.05  # seconds
HOLD = """
__device__ unsigned long long nanoseconds() {
    unsigned long long now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
}

extern "C" __global__ void hold(const volatile int* open, unsigned long long at_most) {
    const unsigned long long begin = nanoseconds();
    while (*open == 0 && nanoseconds() - begin < at_most) {}
}
"""


def gate():
    """Return an integer 0 in memory that the host and the device share."""
    from cupyx import empty_pinned

    made = empty_pinned(1, np.int32)
    made[0] = 0
    return made


@contextmanager
def held(stream):
    """Keep a stream busy with nothing until the block ends, and give the event of its end.

    Code that waits for the device meanwhile waits until `STUCK` is over, and then the event has come, which the tests look at.
    """
    opening = gate()
    kernel = cupy.RawKernel(HOLD, "hold")
    with stream:
        kernel((1,), (1,), (opening.ctypes.data, np.uint64(STUCK * 1e9)))
        over = stream.record()
    try:
        yield over
    finally:
        opening[0] = 1
        stream.synchronize()


def delay(stream):
    """Give a stream something that takes a while, so that its next operations are late."""
    with stream:
        cupy.RawKernel(HOLD, "hold")((1,), (1,), (_closed().ctypes.data, np.uint64(DELAY * 1e9)))


@cache
def _closed():
    return gate()


# Memory -----------------------------------------------------------------------------------------------------------------------


class Account(cupy.cuda.MemoryHook):
    """The bytes that this thread holds from CuPy's pool, and the most that it held at once."""

    name = "account of a test"

    def __init__(self):
        self.sizes, self.most = {}, 0

    @property
    def held(self):
        return sum(self.sizes.values())

    def malloc_postprocess(self, *, mem_size, pmem_id, **_):
        if pmem_id:
            self.sizes[pmem_id] = mem_size
            self.most = max(self.most, self.held)

    def free_postprocess(self, *, pmem_id, **_):
        self.sizes.pop(pmem_id, None)


def pooled(*arrays):
    """Return the bytes of arrays in CuPy's pool, which allocates multiples of 512."""
    return sum(-(-array.nbytes // 512) * 512 for array in arrays)


# Processes --------------------------------------------------------------------------------------------------------------------


def fresh_process(program, **environment):
    """Return what a program prints in a new process with these variables in its environment; None is for one that is not set."""
    variables = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=STUCK)
    assert done.returncode == 0, done.stderr
    return done.stdout
