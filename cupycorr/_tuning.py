"""The variant that was measured to be the fastest for a request on a device: measured once, then read from a file.

This module knows devices, files and layouts, but no operator: a request is a text and the layouts of its arrays, a variant is a
name and a plan. Every answer has a file of its own, named by a digest of the device, the versions and the request, and put in
place by one atomic replacement, so processes need no lock. A file may outlive the program that wrote it, so the caller checks
that the name it gets is still a variant. Tuning never fails a call that works without it: the answer is None instead.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from . import _cached_files
from ._dtypes import named_dtype
from ._gpu import source
from ._gpu.device import Device, import_cupy, versions
from ._gpu.layout import Layout
from ._gpu.streams import forbids_default_stream

RUNS = 7  # timed runs of each variant, after a first one that compiles
HOPELESS = 2.0  # a variant whose first run takes this many times the fastest first run is not run again
NOISE = 2**16  # distinct numbers in the arrays that are measured with
FILLER = 2**26  # bytes that are written `FILLS` times before each run, which keeps the device busy while the host launches
FILLS = 4
MEMORY_FRACTION = 0.5  # the largest fraction of the free memory that the arrays may take


class Request(Protocol):
    """The part of an operator's request that tuning needs."""

    @property
    def key(self) -> str:
        """A text that names everything about the request that takes time: operator, pass, dtypes, memory orders and sizes."""

    def arrays(self) -> Mapping[str, Layout]:
        """Return the dense layout of every array of the pass, by name."""

    def typical_values(self, name: str) -> np.ndarray | None:
        """Return typical values of an array; None where random numbers will do."""


class Plan(Protocol):
    """The part of a variant's plan that tuning needs."""

    @property
    def calls(self) -> tuple[Any, ...]:
        """The kernel calls; they are equal where two plans launch the same kernels."""

    def run(self, arrays: Mapping[str, Any]) -> None:
        """Launch the kernels on CuPy arrays, on CuPy's current stream."""


# The environment --------------------------------------------------------------------------------------------------------------


_VARIABLE = "CUPYCORR_AUTOTUNE"
# The dictionary in `os.environ`, which is not public. Without it, a variable that is not set costs a call 0.6 us instead of 0.1.
_variables: Mapping[Any, Any] = getattr(os.environ, "_data", os.environ)
_variable = os.environ.encodekey(_VARIABLE) if _variables is not os.environ else _VARIABLE


def known(request: Request, device: Device) -> str | None:
    """Return the name of the fastest variant, or None where it is not known or ``CUPYCORR_AUTOTUNE`` is 0.

    Raises
    ------
    ValueError
        ``CUPYCORR_AUTOTUNE`` is set, but neither to 0 nor to 1.
    """
    return None if _mode() == "0" else _answer(device, request.key)


def at_first_use() -> bool:
    """Return whether ``CUPYCORR_AUTOTUNE`` is 1: requests without a known answer are measured at their first call."""
    return _mode() == "1"


def _mode() -> str | None:
    mode = os.environ.get(_VARIABLE)
    if mode not in (None, "0", "1"):
        raise ValueError(f"CUPYCORR_AUTOTUNE must be 0 or 1, got CUPYCORR_AUTOTUNE={mode!r}")
    return mode


def state() -> tuple[str | None, object]:
    """Return everything on which `known` and `at_first_use` depend beside the request: it is equal where they answer the same."""
    return _variables.get(_variable), _last_change


def folder() -> Path:
    """Return the folder that holds the measured answers.

    Raises
    ------
    FileNotFoundError
        This user has no home folder.
    """
    return _cached_files.folder("tuning")


# Measuring --------------------------------------------------------------------------------------------------------------------

_measuring = threading.Lock()  # two measurements at once would slow each other down
_given_up: set[tuple[str, Device]] = set()


def _renew_lock() -> None:
    """Replace the lock in a forked child: a thread that the child does not have may hold it."""
    global _measuring
    _measuring = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def measure(request: Request, device: Device, plans: Mapping[str, Plan]) -> str | None:
    """Return the name of the fastest variant and keep it, or None where nothing can be measured now.

    An answer that another process or thread has found in the meantime is taken instead. The plans run on CuPy's current stream
    of the device, and the host waits for them. Nothing is measured while that stream is being captured. A request that cannot be
    measured for another reason is not tried again in this process.
    """
    if (request.key, device) in _given_up or _is_capturing(device):
        return None
    with _measuring:
        name = _found.get((request.key, device)) or _read(device, request.key)
        if name is not None and name in plans:
            _remember(request, device, name)
            return name
        taken = seconds(request, device, plans)
        if not taken:
            _given_up.add((request.key, device))
            return None
        name = min(taken, key=taken.__getitem__)
        record(request, device, name, taken)
        return name


def seconds(request: Request, device: Device, plans: Mapping[str, Plan]) -> dict[str, float]:
    """Return the median time of each variant that runs, or nothing where memory is short.

    Variants that launch the same kernels are measured once and get the same time.
    """
    cupy = import_cupy()
    layouts = request.arrays()
    with cupy.cuda.Device(device.index):
        if FILLER + sum(map(_bytes, layouts.values())) > MEMORY_FRACTION * cupy.cuda.runtime.memGetInfo()[0]:
            return {}
        pool = cupy.cuda.MemoryPool()  # a separate pool leaves nothing behind in the caller's
        try:
            with cupy.cuda.using_allocator(pool.malloc):
                leaders = _leaders(plans)
                taken = _race_on_new_arrays({name: plans[name] for name in dict.fromkeys(leaders.values())}, request)
        except Exception:  # memory ran out after all, or a dtype is missing: bfloat16 needs `ml_dtypes`
            return {}
        finally:
            pool.free_all_blocks()
    return {name: taken[leader] for name, leader in leaders.items() if leader in taken}


def _race_on_new_arrays(plans: Mapping[str, Plan], request: Request) -> dict[str, float]:
    """Return the median time of each plan; the arrays are freed when it returns."""
    arrays = {name: _filled(layout, request.typical_values(name)) for name, layout in request.arrays().items()}
    return _race({name: partial(plan.run, arrays) for name, plan in plans.items()})


def _leaders(plans: Mapping[str, Plan]) -> dict[str, str]:
    """Map each variant to the first one that launches the same kernels."""
    leaders: dict[str, str] = {}
    for name, plan in plans.items():
        leaders[name] = next((other for other in leaders.values() if plans[other].calls == plan.calls), name)
    return leaders


def _is_capturing(device: Device) -> bool:
    """Return whether the current stream cannot run work now because of a capture."""
    cuda = import_cupy().cuda
    try:
        with cuda.Device(device.index):
            return cuda.get_current_stream().is_capturing()
    except RuntimeError as error:
        if not forbids_default_stream(error):
            raise
        return True  # the launch after this says what to do


def _bytes(layout: Layout) -> int:
    return math.prod(layout.shape) * layout.itemsize


def _filled(layout: Layout, values: np.ndarray | None) -> Any:
    """Return an array of these values, or of random numbers: a device that multiplies zeros takes less power and runs faster."""
    cupy = import_cupy()
    slowest_first = sorted(range(len(layout.shape)), key=lambda axis: -layout.strides[axis])
    if values is None:
        numbers = np.random.default_rng(0).standard_normal(NOISE, np.float32).astype(named_dtype(layout.dtype))
        dense = cupy.resize(cupy.asarray(numbers), tuple(layout.shape[axis] for axis in slowest_first))
    else:
        dense = cupy.asarray(np.ascontiguousarray(values.transpose(slowest_first)))
    return dense.transpose(np.argsort(slowest_first).tolist())


def _race(works: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the median time of each work. They take turns, so that whatever slows the device down slows all of them down.

    A first run of each compiles and does not count.
    """
    filler = import_cupy().empty(FILLER, np.uint8)
    racing = {name: work for name, work in works.items() if _timed(work, filler) < math.inf}
    taken: dict[str, list[float]] = {name: [] for name in racing}
    for _ in range(RUNS):
        for name, work in racing.items():
            taken[name].append(_timed(work, filler))
        fastest = min((runs[0] for runs in taken.values()), default=0.0)
        racing = {name: work for name, work in racing.items() if taken[name][0] <= HOPELESS * fastest}
    return {name: statistics.median(runs) for name, runs in taken.items() if math.inf not in runs}


def _timed(work: Callable[[], Any], filler: Any) -> float:
    """Return the seconds of one run on the device, infinite where it fails.

    A lack of memory is raised: it says nothing about the variant's speed.
    """
    cuda = import_cupy().cuda
    begin, end = cuda.Event(), cuda.Event()
    for _ in range(FILLS):
        filler.data.memset_async(0, FILLER)
    try:
        work()  # this run is not timed: the caches write the filler back during it
        begin.record()
        work()
        end.record()
        end.synchronize()
    except MemoryError:
        raise
    except Exception:
        return math.inf
    return cuda.get_elapsed_time(begin, end) * 1e-3


# Answers and their files ------------------------------------------------------------------------------------------------------

_found: dict[tuple[str, Device], str] = {}  # answers of this process, which hold where no file can be written
_last_change = object()  # another one after each new answer, which equals no earlier one, whichever thread makes it
_warned = False


def record(request: Request, device: Device, name: str, taken: Mapping[str, float] | None = None) -> None:
    """Keep the name of the fastest variant, and the seconds that were measured, in this process and in a file."""
    _remember(request, device, name)
    try:
        identity = _identity(device, request.key)
        path = _file(identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({**identity, "fastest": name, "seconds": dict(taken or {})}, indent=1)
        _cached_files.replace(path, content.encode())
    except OSError as error:
        _warn_once(f"measured variants are known in this process only, they cannot be written to a file: {error}")


def _remember(request: Request, device: Device, name: str) -> None:
    global _last_change
    _found[request.key, device] = name
    _last_change = object()


def _answer(device: Device, key: str) -> str | None:
    return _found.get((key, device)) or _read_once(device, key)


def _read(device: Device, key: str) -> str | None:
    """Return the name in the file of a request; a file that cannot be read, or is another program's, counts as none."""
    try:
        if not folder().is_dir():
            return None  # spares a process that never measures the digest of the kernels
        identity = _identity(device, key)
        content = json.loads(_file(identity).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    is_ours = isinstance(content, dict) and all(content.get(name) == value for name, value in identity.items())
    name = content.get("fastest") if is_ours else None
    return name if isinstance(name, str) else None


_read_once = lru_cache(None)(_read)  # an answer of this process comes before it, so it needs no second look


def _identity(device: Device, key: str) -> dict[str, Any]:
    """Return the words for everything that may make another variant the fastest."""
    words = "{}, compute capability {}.{}".format(device.name, *device.compute_capability)
    return {"device": words, "versions": _versions(), "request": key}


@lru_cache(1)
def _versions() -> dict[str, str]:
    driver, runtime = versions()
    return {
        "driver": driver,
        "runtime": runtime,
        "CuPy": import_cupy().__version__,
        "cupycorr": sys.modules[__name__.partition(".")[0]].__version__,  # an import of the package would be circular
        "kernels": _cached_files.digest("".join(map(source.text, source.files()))),
    }


def _file(identity: Mapping[str, Any]) -> Path:
    return folder() / f"{_cached_files.digest(json.dumps(identity))}.json"


def _warn_once(message: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(message, RuntimeWarning, stacklevel=2)
