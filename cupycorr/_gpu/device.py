"""CuPy, imported when it is first needed, and the properties of the devices that it finds, read once per process.

An error says what is missing (CuPy, a driver, a device) and how to install it.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from types import ModuleType

from .._versions import older

PIP_COMMAND = 'pip install "cupycorr[cuda12]" (or "cupycorr[cuda13]", whichever the driver supports)'
CUPY_OLDEST, CUPY_REFUSED = "14.0.1", ("14.1.0",)  # the same as in setup.cfg
CUPY_CACHE_REMEDY = "CuPy keeps compiled kernels in a folder: name one that can be written by the variable CUPY_CACHE_DIR"

# Compute capability -> multiply-adds that a multiprocessor starts per clock, in float32 and in float64, from the throughput table
# of the CUDA C++ Programming Guide; for 10.3 the float64 peak is from NVIDIA's data sheet.
_LANES = {
    (7, 0): (64, 32),
    (7, 2): (64, 32),
    (7, 5): (64, 2),
    (8, 0): (64, 32),
    (8, 6): (128, 2),
    (8, 7): (128, 2),
    (8, 9): (128, 2),
    (9, 0): (128, 64),
    (10, 0): (128, 64),
    (10, 3): (128, 2),
    (12, 0): (128, 2),
    (12, 1): (128, 2),
}
_LANES_ELSEWHERE = 128  # float32, everywhere since 8.6

# The same of tensor cores, for dense products of one warp (mma.sync) with sums in float32; float32 inputs are rounded to TF32.
# The numbers are from NVIDIA's white papers. From 9.0 on, warpgroup instructions are faster; no kernel here uses them.
_WIDE = {"float16": 1024, "bfloat16": 1024, "float32": 512}
_NARROW = {"float16": 512, "bfloat16": 512, "float32": 256}
_MATRIX_LANES = {
    (7, 5): {"float16": 256},
    (8, 0): _WIDE,
    (8, 6): _NARROW,
    (8, 7): _NARROW,
    (8, 9): _NARROW,
    (9, 0): _WIDE,
    (10, 0): _WIDE,
    (10, 3): _WIDE,
    (12, 0): _NARROW,
    (12, 1): _NARROW,
}


@dataclass(frozen=True, slots=True)
class Device:
    """The properties of a device, which do not change while the process lives.

    Attributes
    ----------
    index
        CUDA's number of the device.
    name
        The name that the driver gives.
    compute_capability
        The major and the minor number.
    multiprocessors
        Their number.
    shared_memory
        Bytes of shared memory that a block may opt in to.
    memory
        Bytes of global memory.
    bandwidth
        The peak of bytes per second to and from global memory; None if the driver does not report the memory clock.
    float32_rate, float64_rate
        The peak of operations per second, where a multiply-add is two; None if the driver does not report the clock.
    """

    index: int
    name: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    shared_memory: int
    memory: int
    bandwidth: float | None
    float32_rate: float | None
    float64_rate: float | None

    def __hash__(self) -> int:
        """Hash little: caches hash devices at every call."""
        return hash(self.index)

    @property
    def architecture(self) -> str:
        """The compiler's name of the compute capability, such as ``"sm_90"``."""
        return "sm_{}{}".format(*self.compute_capability)

    def has_matrix_product(self, dtype: str) -> bool:
        """Return whether tensor cores multiply numbers of a dtype, float32 as TF32."""
        return dtype in self._matrix_lanes

    def matrix_rate(self, dtype: str) -> float | None:
        """Return the peak of operations per second of tensor cores; None without such a product or a known clock."""
        if self.float32_rate is None or not self.has_matrix_product(dtype):
            return None
        lanes, _ = _LANES.get(self.compute_capability, (_LANES_ELSEWHERE, None))
        return self.float32_rate / lanes * self._matrix_lanes[dtype]

    @property
    def _matrix_lanes(self) -> dict[str, int]:
        capability = self.compute_capability
        return _MATRIX_LANES.get(capability, _NARROW if capability > (8, 0) else {})


def import_cupy() -> ModuleType:
    """Import CuPy and return it.

    Raises
    ------
    ImportError
        CuPy cannot be imported, or this version of it cannot be used; the message says what to do.
    """
    cupy = sys.modules.get("cupy")
    return cupy if cupy is not None and cupy is _usable else _import_cupy()  # some calls do this several times


_usable: ModuleType | None = None  # the CuPy that was imported and checked


def _import_cupy() -> ModuleType:
    global _usable
    try:
        import cupy
    except ImportError as error:
        raise ImportError(_why_not_import(error)) from error
    except OSError as error:
        if error.filename is None:  # a library that cannot be loaded, rather than a folder that cannot be written
            raise ImportError(_why_not_import(error)) from error
        raise ImportError(f"this needs CuPy, which cannot be imported ({error}). {CUPY_CACHE_REMEDY}") from error
    reason = _why_not_version(cupy.__version__)
    if reason is not None:
        raise ImportError(f"this needs CuPy {CUPY_OLDEST} or later, got CuPy {cupy.__version__}, {reason}: {PIP_COMMAND}")
    _usable = cupy
    return _usable


def _why_not_import(error: Exception) -> str:
    """Return the first line of an error of CuPy's import, with the command that installs CuPy."""
    why = (str(error).strip().splitlines() or ["no reason given"])[0]
    return f"this needs CuPy, which cannot be imported ({why}): {PIP_COMMAND}"


def _why_not_version(found: str) -> str | None:
    """Return None, or the reason why a version of CuPy cannot be used; a version that is no such number is not judged."""
    if older(found, CUPY_OLDEST):
        return "which is too old"
    return "which is known not to work" if found.partition("+")[0] in CUPY_REFUSED else None


def count() -> int:
    """Return the number of devices.

    Raises
    ------
    ImportError
        CuPy cannot be imported.
    RuntimeError
        There is no device, or no driver for it.
    """
    runtime = import_cupy().cuda.runtime
    try:
        found = runtime.getDeviceCount()
    except RuntimeError as error:
        raise RuntimeError(f"CuPy finds no CUDA driver with a device ({error})") from error
    if not found:
        raise RuntimeError("CuPy finds no CUDA device")
    return found


@functools.cache
def facts(index: int) -> Device:
    """Return the properties of a device.

    Raises
    ------
    ImportError
        CuPy cannot be imported.
    RuntimeError
        There is no such device.
    """
    there = count()
    if not 0 <= index < there:
        raise RuntimeError(f"there is no CUDA device {index}, only {there} of them, counted from 0")
    cuda = import_cupy().cuda
    properties = cuda.runtime.getDeviceProperties(index)
    attributes = cuda.Device(index).attributes
    capability = (properties["major"], properties["minor"])
    multiprocessors = properties["multiProcessorCount"]
    lanes = _LANES.get(capability) or _lanes_elsewhere(attributes)
    clock = 1e3 * attributes.get("ClockRate", 0)  # reported in kHz
    rates = [2 * each * multiprocessors * clock or None for each in lanes]
    # Memory transfers data at both edges of the clock (double data rate).
    bandwidth = 2 * 1e3 * attributes.get("MemoryClockRate", 0) * attributes.get("GlobalMemoryBusWidth", 0) / 8
    return Device(
        index=index,
        name=properties["name"].decode(),
        compute_capability=capability,
        multiprocessors=multiprocessors,
        shared_memory=attributes.get("MaxSharedMemoryPerBlockOptin") or properties["sharedMemPerBlock"],
        memory=properties["totalGlobalMem"],
        bandwidth=bandwidth or None,
        float32_rate=rates[0],
        float64_rate=rates[1],
    )


def versions() -> tuple[str, str]:
    """Return the newest CUDA version that the driver supports and the version of CuPy's runtime, as ``("13.0", "12.9")``."""
    cuda = import_cupy().cuda
    numbers = cuda.runtime.driverGetVersion(), cuda.get_local_runtime_version()
    driver, runtime = (f"{number // 1000}.{number % 1000 // 10}" for number in numbers)
    return driver, runtime


def _lanes_elsewhere(attributes: dict[str, int]) -> tuple[float, float]:
    """Return the lanes of a compute capability that is not in the table."""
    return _LANES_ELSEWHERE, _LANES_ELSEWHERE / (attributes.get("SingleToDoublePrecisionPerfRatio") or 64)
