"""A CUDA device for the benchmark: its clock, its use of memory, its rates, and the bound that measurements are compared with.

Times are the device's own, between two events, of calls that find nothing in its caches. The time that a call keeps the host busy
is measured separately, for each way of calling. CuPy is imported by the functions, so that the benchmark of a CPU works without.

Cold caches come from copies of operands and results that are used in turn, of which the cache holds less than half. To overwrite
the cache before each call would be simpler, but the device would write that data back while the call reads. With copies a call
pays for its own traffic only, as the bound does: operands are read, results are written back.
"""

from __future__ import annotations

import math
import os
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cupycorr._gpu import device as devices
from cupycorr._gpu import plan as plans
from cupycorr._gpu.device import import_cupy

from . import device_code, rivals
from .cases import CASES, TF32, Case, Inputs
from .report import Header, Yardstick, command_line, cpu_model, now, versions
from .rivals import Contestant, Work
from .running import HostTimes, Machine, Row, first_line
from .timing import Clock

INDEX = rivals.GPU
LEAD = 2e-4  # seconds that the device waits before each call, so that the host has launched it when the clock starts
TURN = 2e-4  # seconds of work in one turn; the clock's resolution is half a microsecond
EVICTING = 2  # the other copies that are used before a copy's next turn are this many times as large as the cache
LARGEST_CACHE = 2**28  # bytes, assumed where a device does not report its cache
COPIED = 2**29  # bytes of each array of the copy that is timed
MATRIX = {"sgemm_gflops": ("float32", 4096), "dgemm_gflops": ("float64", 4096), "hgemm_gflops": ("float16", 8192)}
MULTIPLIED = {"float16": "float16", "bfloat16": "bfloat16", TF32: "float32"}  # on tensor cores: element type -> dtype of inputs
REPEATS = 3
HOST_RUNS, HOST_CALLS = 9, 8  # few enough calls that their launches fit the device's queue


def require() -> None:
    """Raise an error where CuPy or a device is missing.

    Raises
    ------
    ImportError
        There is no CuPy; the message names the pip command.
    RuntimeError
        There is no device, or no driver for it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy warns about a missing toolkit; the error that is raised says what matters
        devices.count()
        import_cupy().cuda.Device(INDEX).use()


# Time --------------------------------------------------------------------------------------------------------------------------


def stopwatch(work: Callable[[], Any], calls: int) -> float:
    """Return the seconds per call on the device, the mean of ``calls``.

    The host launches the work while the device waits, so the time holds no host overhead unless launching takes longer.
    """
    event = import_cupy().cuda.Event
    spans = [(event(), event()) for _ in range(calls)]
    for begin, end in spans:
        _wait_on_device()
        begin.record()
        work()
        end.record()
    finish()
    return sum(_elapsed(begin, end) for begin, end in spans) / calls


def _wait_on_device() -> None:
    device_code.function("lead.cu")((1,), (1,), (np.int64(LEAD * 1e9),))


def copies(touched: int) -> int:
    """Return how many copies of the touched bytes a call must use in turn to find none of them in the cache."""
    return 1 + math.ceil(EVICTING * (_cache() or LARGEST_CACHE) / max(touched, 1))


def _cache() -> int | None:
    """Return the bytes of the device's L2 cache, None where the device does not report it."""
    return import_cupy().cuda.Device(INDEX).attributes.get("L2CacheSize")


def _elapsed(begin: Any, end: Any) -> float:
    return import_cupy().cuda.get_elapsed_time(begin, end) * 1e-3


def finish() -> None:
    """Wait until the device is idle."""
    import_cupy().cuda.Device(INDEX).synchronize()


# The host ----------------------------------------------------------------------------------------------------------------------


def host_times(contestant: Contestant, work: Work, which: str, case: Case, inputs: Inputs) -> HostTimes:
    """Return the host seconds of a call by each way: the array function, torch, and the replay of a captured graph."""
    seconds, unknown = {contestant.way: host_seconds(work)}, {}
    for way, prepared in _other_ways(contestant, which, case, inputs).items():
        try:
            with prepared as call:
                seconds[way] = host_seconds(call)
        except RuntimeError as error:
            unknown[way] = first_line(error)
    return HostTimes(seconds, unknown)


def _other_ways(
    contestant: Contestant, which: str, case: Case, inputs: Inputs
) -> dict[str, AbstractContextManager[Callable[[], Any]]]:
    """Return the ways of calling besides the one that is timed on the device; rivals have none."""
    if contestant.through_torch is None:
        return {}
    return {
        "torch": _through_torch(contestant.through_torch, which, case, inputs),
        "graph": captured(contestant.prepare(which, case, inputs)),
    }


@contextmanager
def _through_torch(contestant: Contestant, which: str, case: Case, inputs: Inputs) -> Iterator[Work]:
    """Give a call with tensors.

    Raises
    ------
    RuntimeError
        Torch is missing or finds no device.
    """
    reason = contestant.why_not(case, "", which)
    if reason is not None:
        raise RuntimeError(reason)
    work = contestant.prepare(which, case, inputs)
    work()
    yield work


@contextmanager
def captured(work: Work) -> Iterator[Callable[[], None]]:
    """Give the replay of a CUDA graph of the call, and release the memory that the package keeps for replays at the end."""
    finish()
    with import_cupy().cuda.Stream(non_blocking=True) as stream:
        work()  # leaves memory in the stream's pool, which the capture needs
        stream.synchronize()
        kept = len(plans._captured)
        stream.begin_capture()
        try:
            results = work()
        finally:
            graph = stream.end_capture()
    try:
        yield lambda: graph.launch(stream)
    finally:
        finish()
        del results, plans._captured[kept:]


def host_seconds(work: Callable[[], Any], clock: Clock = time.perf_counter) -> float:
    """Return the seconds that a call keeps the host busy, the median of runs that begin with an idle device."""
    runs = []
    for _ in range(HOST_RUNS):
        finish()
        begin = clock()
        for _ in range(HOST_CALLS):
            work()
        runs.append((clock() - begin) / HOST_CALLS)
    finish()
    return statistics.median(runs)


# Memory ------------------------------------------------------------------------------------------------------------------------


def available() -> int:
    """Return the free bytes on the device, after CuPy and torch have released their unused memory."""
    cupy = import_cupy()
    cupy.get_default_memory_pool().free_all_blocks()
    if rivals.why_no_cuda_torch() is None:
        rivals.torch().cuda.empty_cache()
    return cupy.cuda.runtime.memGetInfo()[0]


class Account:
    """The bytes that are allocated from CuPy's pool now, and the most that were allocated at once."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.most = 0

    @property
    def held(self) -> int:
        """The bytes that are allocated now."""
        return sum(self.sizes.values())

    def allocated(self, memory: int, size: int) -> None:
        """Count an allocation."""
        self.sizes[memory] = size
        self.most = max(self.most, self.held)

    def freed(self, memory: int) -> None:
        """Count that memory was freed; memory that was allocated before does not count."""
        self.sizes.pop(memory, None)


@contextmanager
def accounted() -> Iterator[Account]:
    """Count what this thread allocates from CuPy's pool in a ``with`` block."""
    account = Account()

    class Hook(import_cupy().cuda.MemoryHook):
        name = "account of the benchmark"

        def malloc_postprocess(self, *, mem_size: int, pmem_id: int, **_: Any) -> None:
            if pmem_id:
                account.allocated(pmem_id, mem_size)

        def free_postprocess(self, *, pmem_id: int, **_: Any) -> None:
            account.freed(pmem_id)

    with Hook():
        yield account


def peak_bytes(case: Case, contestant: Contestant, which: str, dtype: str) -> int:
    """Return the peak bytes beyond the inputs in CuPy's pool and torch's; a rival's backward pass counts with its graph."""
    small = case.small()
    contestant.prepare(which, small, place(small.inputs(dtype, which)))()  # the memory of libraries does not count
    inputs = place(case.inputs(dtype, which))
    torch = rivals.torch() if contestant.way == "torch" else None
    if torch is not None:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    with accounted() as account:
        contestant.prepare(which, case, inputs)()
    finish()
    return account.most + (0 if torch is None else torch.cuda.max_memory_allocated() - before)


def place(inputs: Inputs) -> Inputs:
    """Return copies of the inputs on the device."""
    cupy = import_cupy()
    there = (None if x is None else cupy.asarray(x) for x in (inputs.input1, inputs.input2, inputs.cotangent))
    return Inputs(*there, inputs.precision)


def automatic(case: Case, dtype: str, which: str) -> str:
    """Return the variant that ``variant="auto"`` runs on CuPy arrays."""
    return rivals.automatic(case, dtype, which, rivals.on_gpu())


MACHINE = Machine(stopwatch, automatic, place, finish, available, peak_bytes, copies, host_times, TURN)


# The device and its rates ------------------------------------------------------------------------------------------------------


def header(arguments: Sequence[str], dtypes: Sequence[str], module: str = "benchmarks") -> Header:
    """Return the header of a run of ``python -m module`` on this machine's GPU."""
    there = devices.facts(INDEX)
    newest, runtime = devices.versions()
    device = {
        "kind": "cuda",
        "model": there.name,
        "compute_capability": "{}.{}".format(*there.compute_capability),
        "multiprocessors": there.multiprocessors,
        "memory_bytes": there.memory,
        "shared_memory_bytes": there.shared_memory,
        "l2_bytes": _cache(),
        "driver": _driver(),
        "driver_cuda": newest,
        "runtime_cuda": runtime,
        "theoretical_gbps": _giga(there.bandwidth),
        "theoretical_float32_gflops": _giga(there.float32_rate),
        "theoretical_float64_gflops": _giga(there.float64_rate),
        "theoretical_matrix_gflops": {name: _giga(there.matrix_rate(dtype)) for name, dtype in MULTIPLIED.items()},
        "copy_gbps": 0.0,
        **dict.fromkeys(MATRIX, 0.0),
        "not_measured": [],
        "lead_s": LEAD,
        "autotune": os.environ.get("CUPYCORR_AUTOTUNE"),
        "host": cpu_model(),
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    found = versions("cupy", "torch", "spatial_correlation_sampler", "mmcv")
    made = Header(now(), command_line(arguments, module), tuple(dtypes), device, found)
    measure_rates(made)
    return made


def _giga(rate: float | None) -> float | None:
    return None if rate is None else round(rate / 1e9, 1)


def _driver() -> str:
    """Return the driver's own version, which CUDA does not report."""
    try:
        found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        found = None
    return found[1] if found else "unknown"


def measure_rates(header: Header) -> None:
    """Measure the device again and keep the best rates of a run, with the reasons for rates that cannot be measured."""
    device = header.device
    device["copy_gbps"] = max(device["copy_gbps"], round(2 * COPIED / _best(_copy()) / 1e9, 1))
    for name, (dtype, size) in MATRIX.items():
        try:
            rate = 2 * size**3 / _best(_product(dtype, size))
        except Exception as error:  # a library that is missing or of a wrong version may raise anything
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


# Element type -> the measured rate of its matrix product, if any, and the theoretical rate without tensor cores.
_RATES = {
    "float16": ("hgemm_gflops", "theoretical_float32_gflops"),
    "bfloat16": ("hgemm_gflops", "theoretical_float32_gflops"),
    "float32": ("sgemm_gflops", "theoretical_float32_gflops"),
    TF32: (None, "theoretical_float32_gflops"),
    "float64": ("dgemm_gflops", "theoretical_float64_gflops"),
}


def yardstick(header: Header) -> Yardstick:
    """Return the limits of this device."""
    return Yardstick(lambda row: peak_rate(header, row.dtype), lambda row: bound(header, row))


def peak_rate(header: Header, dtype: str) -> float:
    """Return the flop/s of this device's matrix product, or the theoretical rate where that was not measured."""
    measured, theoretical = _rates(header, dtype)
    return (measured or theoretical or math.inf) * 1e9


def bound(header: Header, row: Row) -> float:
    """Return the least seconds expected of any call: the larger of the times of its traffic and of its arithmetic.

    The traffic reads each input once and writes each result once, at the rate of a copy. The arithmetic counts every tap, also
    outside the images and where windows could share sums.
    """
    case = next(case for case in CASES if case.name == row.case)
    windowed = case.problem.parameters.kernel_size != (1, 1)
    rate = max(_rates(header, "float32" if row.dtype == TF32 and windowed else row.dtype)) * 1e9 or math.inf
    return max(case.bytes(row.dtype, row.which) / (header.device["copy_gbps"] * 1e9), flops(case, row.which) / rate)


def _rates(header: Header, dtype: str) -> tuple[float, float]:
    """Return the measured and the theoretical Gflop/s for an element type, 0 where a rate is not known."""
    measured, theoretical = (header.device.get(name) or 0.0 for name in _RATES[dtype])
    return measured, header.device["theoretical_matrix_gflops"].get(dtype) or theoretical


def flops(case: Case, which: str) -> int:
    """Return the operations on all taps; a vjp is two such sums."""
    return case.problem.flops * {"forward": 1, "vjp": 2}[which]
