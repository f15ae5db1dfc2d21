"""How long work takes on a device, by counting: what ways to answer a problem are compared by before anything is run.

A model, not a measurement: rates come from the device's own description, the shares of them that kernels reach are estimates. It
need only be right about which of two ways is faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from .device import Device
from .limits import WARP

LAUNCH = 2e-6  # seconds that a launch takes beside its work

_CLOCK, _LANES, _BANDWIDTH = 1.5e9, 64, 1.5e12  # of a device whose driver does not tell
_MATRIX_LANES = 512  # of such a device's tensor cores
_CACHE_BYTES = 128  # that a multiprocessor reads of shared memory or of its first cache in a cycle
_REACHED = 0.75  # of a peak
_SECOND_CACHE = 1.2  # of the bandwidth of memory
_WARPS_TO_HIDE = 8  # of a multiprocessor, below which latency shows


@dataclass(frozen=True, slots=True)
class Machine:
    """What sums of one type get of a device; the rates are of one multiprocessor, in multiply-adds and bytes per second."""

    multiprocessors: int
    multiply_adds: float
    cache: float
    bandwidth: float

    def tiled(self, blocks: int, warps: int, multiply_adds: float, shared_bytes: float) -> float:
        """Seconds of blocks whose threads keep sums in registers; a thread's multiply-adds and bytes read of shared memory."""
        of_block = warps * WARP * max(multiply_adds / self.multiply_adds, shared_bytes / self.cache) / _REACHED
        most = -(-blocks // self.multiprocessors)  # that a multiprocessor gets
        return most * of_block / min(most * warps / _WARPS_TO_HIDE, 1.0) if blocks else 0.0

    def on_tensor_cores(self, blocks: int, warps: int, multiply_adds: float, shared_bytes: float, rate: float) -> float:
        """Seconds of blocks that multiply matrices; what a block multiplies, and what it moves of shared memory."""
        of_block = max(multiply_adds / rate, shared_bytes / self.cache) / _REACHED
        most = -(-blocks // self.multiprocessors)
        return most * of_block / min(most * warps / _WARPS_TO_HIDE, 1.0) if blocks else 0.0

    def from_caches(self, multiply_adds: float, itemsize: int) -> float:
        """Seconds of products both of whose factors come from the first cache each time, or from the second now and then."""
        return multiply_adds * 2 * itemsize / (self.cache / 2 * self.multiprocessors)

    def loaded(self, count: float) -> float:
        """Seconds that blocks take to load so many bytes, most of which other blocks load too: from the second cache."""
        return count / (self.bandwidth * _SECOND_CACHE)

    def moved(self, count: float) -> float:
        """Seconds that so many bytes take to or from global memory."""
        return count / (self.bandwidth * _REACHED)


@lru_cache
def machine(device: Device, accumulator: str) -> Machine:
    """What sums of a type get of a device."""
    rate = device.float64_rate if accumulator == "float64" else device.float32_rate
    count = max(device.multiprocessors, 1)
    each = _LANES * _CLOCK if rate is None else rate / 2 / count
    return Machine(count, each, _CACHE_BYTES * _CLOCK, device.bandwidth or _BANDWIDTH)


@lru_cache
def matrix_rate(device: Device, dtype: str) -> float:
    """Multiply-adds per second of the tensor cores of one multiprocessor, for inputs of a type."""
    rate = device.matrix_rate(dtype)
    return _MATRIX_LANES * _CLOCK if rate is None else rate / 2 / max(device.multiprocessors, 1)
