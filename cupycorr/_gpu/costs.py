"""The cost model: the seconds that work is expected to take on a device, by which plans are compared before anything runs.

It is a model, not a measurement: rates come from the device's own description, the fractions of them that kernels reach are
estimates. It need only be right about which of two plans is faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from .device import Device
from .limits import WARP

LAUNCH = 2e-6  # seconds of a launch, beside its work
SCHEDULERS = 4  # of a multiprocessor, each of which issues an instruction of a warp per cycle

_CLOCK, _LANES, _BANDWIDTH = 1.5e9, 64, 1.5e12  # of a device whose driver does not report them
_MATRIX_LANES = 512  # of such a device's tensor cores
_CACHE_BYTES = 128  # per cycle, that a multiprocessor reads from shared memory or its first-level cache
_REACHED = 0.75  # fraction of a peak
_SECOND_CACHE = 1.2  # bandwidth of the second-level cache, relative to that of memory
_WARPS_TO_HIDE = 8  # warps of a multiprocessor, below which latency shows
_RESIDENT_BLOCKS = 4  # blocks of 256 threads that a multiprocessor runs at once
_FLOAT32_LANES = 128  # multiply-adds of a cycle, where the rate is known


@dataclass(frozen=True, slots=True)
class Machine:
    """The rates of a device for sums of one type, per second.

    Multiply-adds, bytes of the caches and instructions of warps are those of one multiprocessor; the bandwidth is the device's.
    """

    multiprocessors: int
    multiply_adds: float
    cache: float
    bandwidth: float
    instructions: float

    def computing(self, blocks: int, warps: int, multiply_adds: float, shared_bytes: float) -> float:
        """Return the seconds that blocks whose threads keep sums in registers compute, if nothing else makes them wait.

        ``multiply_adds`` and ``shared_bytes``, which it reads from shared memory, are those of a thread.
        """
        of_block = warps * WARP * max(multiply_adds / self.multiply_adds, shared_bytes / self.cache)
        most = -(-blocks // self.multiprocessors)  # blocks of one multiprocessor
        return most * of_block / min(most * warps / _WARPS_TO_HIDE, 1.0) if blocks else 0.0

    def tiled(self, blocks: int, warps: int, multiply_adds: float, shared_bytes: float) -> float:
        """Return the seconds of such blocks with what makes them wait, as a share of the time that they compute."""
        return self.computing(blocks, warps, multiply_adds, shared_bytes) / _REACHED

    def on_tensor_cores(self, blocks: int, warps: int, multiply_adds: float, shared_bytes: float, rate: float) -> float:
        """Return the seconds of blocks that multiply matrices.

        ``multiply_adds`` and ``shared_bytes``, which it moves to and from shared memory, are those of a block.
        """
        of_block = max(multiply_adds / rate, shared_bytes / self.cache) / _REACHED
        most = -(-blocks // self.multiprocessors)
        return most * of_block / min(most * warps / _WARPS_TO_HIDE, 1.0) if blocks else 0.0

    def untiled(self, blocks: int, warps: int, instructions: float, chain: float) -> float:
        """Return the seconds of blocks whose threads keep one sum each, or few.

        ``instructions`` are those of a thread, and ``chain`` the seconds of its loads one after another.
        """
        issuing = blocks * warps * instructions / (self.instructions * self.multiprocessors)
        return max(issuing, -(-blocks // (self.multiprocessors * _RESIDENT_BLOCKS)) * chain)

    def from_caches(self, multiply_adds: float, itemsize: int) -> float:
        """Return the seconds of products whose factors are both loaded each time, mostly from the first-level cache."""
        return multiply_adds * 2 * itemsize / (self.cache / 2 * self.multiprocessors)

    def loaded(self, count: float) -> float:
        """Return the seconds to load bytes that most blocks have in common: from the second-level cache."""
        return count / (self.bandwidth * _SECOND_CACHE)

    def moved(self, count: float) -> float:
        """Return the seconds to move bytes to or from global memory."""
        return count / (self.bandwidth * _REACHED)


@lru_cache
def machine(device: Device, accumulator: str) -> Machine:
    """Return the rates of a device for sums of a type."""
    rate = device.float64_rate if accumulator == "float64" else device.float32_rate
    count = max(device.multiprocessors, 1)
    each = _LANES * _CLOCK if rate is None else rate / 2 / count
    clock = _CLOCK if device.float32_rate is None else device.float32_rate / 2 / count / _FLOAT32_LANES
    return Machine(count, each, _CACHE_BYTES * _CLOCK, device.bandwidth or _BANDWIDTH, SCHEDULERS * clock)


@lru_cache
def matrix_rate(device: Device, dtype: str) -> float:
    """Return the multiply-adds per second of the tensor cores of one multiprocessor, for inputs of a type."""
    rate = device.matrix_rate(dtype)
    return _MATRIX_LANES * _CLOCK if rate is None else rate / 2 / max(device.multiprocessors, 1)
