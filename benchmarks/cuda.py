"""A CUDA device for the benchmark: its clock, its memory's account, its rates, and the bound that a measurement is held against.

Times are the device's own, between two events, with its caches cold; what a call costs the host is measured apart. CuPy is
imported by the functions, so that the benchmark of a CPU needs none.
"""

from __future__ import annotations

import math
import os
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from cupycorr._cuda import device as devices
from cupycorr._cuda.device import import_cupy
from cupycorr._dtypes import named_dtype

from . import rivals
from .cases import CASES, Case, Inputs
from .report import Header, command_line, cpu_model, now, versions
from .rivals import Contestant, Work
from .running import Machine, Row

INDEX = 0  # CUDA's number of the device
FLUSH = 2**28  # bytes written between calls: more than any cache holds, and work enough to hide the host's part of a call
COPIED = 2**29  # bytes of each array of the copy that is timed
MATRIX = {"sgemm_gflops": ("float32", 4096), "dgemm_gflops": ("float64", 4096), "hgemm_gflops": ("float16", 8192)}
REPEATS = 3
HOST_RUNS, HOST_CALLS = 9, 8  # few enough calls that the device's queue has room for their launches


def require() -> None:
    """Refuse to begin without CuPy or without a device.

    Raises
    ------
    ImportError
        There is no CuPy; the message names the pip command.
    RuntimeError
        There is no device, or no driver for it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy warns of a toolkit it does not find; what is raised says what matters
        devices.count()
        import_cupy().cuda.Device(INDEX).use()


# Time --------------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _flushed() -> Any:
    return import_cupy().empty(FLUSH, "uint8")


def stopwatch(work: Callable[[], Any], calls: int) -> float:
    """Seconds a call takes on the device, the mean of ``calls``, none of which finds in a cache what the one before left there.

    While the caches are flushed, the host asks for the work: what is timed does not wait for it, unless asking takes longer.
    """
    event = import_cupy().cuda.Event
    spans = [(event(), event()) for _ in range(calls)]
    for begin, end in spans:
        _flushed().data.memset_async(0, FLUSH)
        begin.record()
        work()
        end.record()
    finish()
    return sum(_elapsed(begin, end) for begin, end in spans) / calls


def _elapsed(begin: Any, end: Any) -> float:
    return import_cupy().cuda.get_elapsed_time(begin, end) * 1e-3


def finish() -> None:
    """Wait for everything the device was asked for."""
    import_cupy().cuda.Device(INDEX).synchronize()


def host_seconds(work: Work) -> float:
    """Seconds that a call keeps the host busy: the median of runs that begin with an idle device."""
    runs = []
    for _ in range(HOST_RUNS):
        finish()
        begin = time.perf_counter()
        for _ in range(HOST_CALLS):
            work()
        runs.append((time.perf_counter() - begin) / HOST_CALLS)
    finish()
    return statistics.median(runs)


# Memory ------------------------------------------------------------------------------------------------------------------------


def available() -> int:
    """Bytes that CuPy can have: free on the device, or in its pool."""
    cupy = import_cupy()
    return cupy.cuda.runtime.memGetInfo()[0] + cupy.get_default_memory_pool().free_bytes()


class Account:
    """The bytes that CuPy's pool has lent and not got back, and the most there were at once."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.most = 0

    @property
    def held(self) -> int:
        """Bytes lent now."""
        return sum(self.sizes.values())

    def lent(self, memory: int, size: int) -> None:
        """The pool has handed out a piece of memory."""
        self.sizes[memory] = size
        self.most = max(self.most, self.held)

    def returned(self, memory: int) -> None:
        """It has got it back; or one from before this account, which does not count."""
        self.sizes.pop(memory, None)


@contextmanager
def accounted() -> Iterator[Account]:
    """The account of what this thread takes from CuPy's pool meanwhile."""
    account = Account()

    class Hook(import_cupy().cuda.MemoryHook):
        name = "account of the benchmark"

        def malloc_postprocess(self, *, mem_size: int, pmem_id: int, **_: Any) -> None:
            if pmem_id:
                account.lent(pmem_id, mem_size)

        def free_postprocess(self, *, pmem_id: int, **_: Any) -> None:
            account.returned(pmem_id)

    with Hook():
        yield account


def peak_bytes(case: Case, contestant: Contestant, which: str, dtype: str) -> int:
    """Bytes at the peak beyond the inputs, from CuPy's pool and from torch's; a rival's backward counts with its graph."""
    small = case.small()
    contestant.prepare(which, small, place(small.inputs(dtype, which)))()  # what libraries take once does not count
    inputs = place(case.inputs(dtype, which))
    torch = None if contestant.ours else rivals.torch()
    if torch is not None:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with accounted() as account:
        contestant.prepare(which, case, inputs)()
    finish()
    return account.most + (0 if torch is None else torch.cuda.max_memory_allocated() - before)


def place(inputs: Inputs) -> Inputs:
    """The same numbers on the device."""
    cupy = import_cupy()
    there = (None if x is None else cupy.asarray(x) for x in (inputs.input1, inputs.input2, inputs.cotangent))
    return Inputs(*there)


def automatic(case: Case, dtype: str) -> str:
    """The variant ``variant="auto"`` runs on CuPy arrays."""
    return rivals.automatic(case, dtype, import_cupy)


MACHINE = Machine(stopwatch, automatic, place, finish, available, peak_bytes, host_seconds)


# The device and its rates ------------------------------------------------------------------------------------------------------


def header(arguments: Sequence[str], dtype: str) -> Header:
    """The header of a run on this machine's GPU."""
    there = devices.facts(INDEX)
    newest, runtime = devices.versions()
    device = {
        "kind": "cuda",
        "model": there.name,
        "compute_capability": "{}.{}".format(*there.compute_capability),
        "multiprocessors": there.multiprocessors,
        "memory_bytes": there.memory,
        "shared_memory_bytes": there.shared_memory,
        "l2_bytes": import_cupy().cuda.Device(INDEX).attributes.get("L2CacheSize"),
        "driver": _driver(),
        "driver_cuda": newest,
        "runtime_cuda": runtime,
        "theoretical_gbps": _giga(there.bandwidth),
        "theoretical_float32_gflops": _giga(there.float32_rate),
        "theoretical_float64_gflops": _giga(there.float64_rate),
        "copy_gbps": 0.0,
        **dict.fromkeys(MATRIX, 0.0),
        "not_measured": [],
        "host": cpu_model(),
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    made = Header(now(), command_line(arguments), dtype, device, versions("cupy", "torch", "spatial_correlation_sampler", "mmcv"))
    measure_rates(made)
    return made


def _giga(rate: float | None) -> float | None:
    return None if rate is None else round(rate / 1e9, 1)


def _driver() -> str:
    """The driver's own version, which CUDA does not tell."""
    try:
        found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        found = None
    return found[1] if found else "unknown"


def measure_rates(header: Header) -> None:
    """Measure the device once more; the best of a run stands. What cannot be measured (a library is missing) is named."""
    device = header.device
    device["copy_gbps"] = max(device["copy_gbps"], round(2 * COPIED / _best(_copy()) / 1e9, 1))
    for name, (dtype, size) in MATRIX.items():
        try:
            rate = 2 * size**3 / _best(_product(dtype, size))
        except Exception as error:  # whatever a library that is not there, or is not the right one, ends in
            reason = f"{name}: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
            device["not_measured"] = sorted({*device["not_measured"], reason})
        else:
            device[name] = max(device[name], round(rate / 1e9, 1))


def _copy() -> Work:
    source, target = (import_cupy().zeros(COPIED, "uint8") for _ in range(2))
    return lambda: target.data.copy_from_device_async(source.data, COPIED)


def _product(dtype: str, size: int) -> Work:
    cupy = import_cupy()
    left, right, out = (cupy.ones((size, size), dtype) for _ in range(3))
    return lambda: cupy.matmul(left, right, out=out)


def _best(work: Work) -> float:
    work()
    finish()
    event = import_cupy().cuda.Event
    runs = []
    for _ in range(REPEATS):
        begin, end = event(), event()
        begin.record()
        work()
        end.record()
        finish()
        runs.append(_elapsed(begin, end))
    return min(runs)


_RATES = {  # element type -> the measured rate, and the theoretical one of the unit that sums it
    "float16": ("hgemm_gflops", "theoretical_float32_gflops"),
    "bfloat16": ("hgemm_gflops", "theoretical_float32_gflops"),
    "float32": ("sgemm_gflops", "theoretical_float32_gflops"),
    "float64": ("dgemm_gflops", "theoretical_float64_gflops"),
}


def peak_rate(header: Header) -> float:
    """flop/s of this device's matrix product, or what it could do by its clock where that was not measured."""
    measured, theoretical = (header.device[name] for name in _RATES[header.dtype])
    return (measured or theoretical or math.inf) * 1e9


def bound(header: Header, row: Row) -> float:
    """Seconds that no call is expected to stay below: the larger of traffic at the copy's rate and arithmetic at its own.

    Each input read once and each result written once; every tap counted, outside the images and shared by windows or not.
    """
    case = next(case for case in CASES if case.name == row.case)
    measured, theoretical = (header.device[name] or 0.0 for name in _RATES[header.dtype])
    rate = max(measured, theoretical) * 1e9 or math.inf
    return max(moved_bytes(case, row.which, header.dtype) / (header.device["copy_gbps"] * 1e9), flops(case, row.which) / rate)


def flops(case: Case, which: str) -> int:
    """Operations on all taps; a vjp is two such sums."""
    return case.problem.flops * {"forward": 1, "vjp": 2}[which]


def moved_bytes(case: Case, which: str, dtype: str) -> int:
    """Bytes of everything that is read and of everything that is written, once."""
    itemsize = named_dtype(dtype).itemsize
    gradients = case.problem.bytes(itemsize, 0)
    return case.problem.bytes(itemsize, itemsize) + (gradients if which == "vjp" else 0)


def of_dtype(header: Header, dtype: str) -> Header:
    """The same device's header for another element type."""
    return replace(header, dtype=dtype)
