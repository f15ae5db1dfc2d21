"""CuPy itself, and facts about the devices it sees, asked once per process.

The door to CuPy: it is imported at the first question, and what is missing (CuPy, a driver, a device) is said in the words that a
user needs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import ModuleType

PIP_COMMAND = 'pip install "cupycorr[cuda12]" (or "cupycorr[cuda13]", whichever the driver supports)'

# Compute capability -> multiply-adds that a multiprocessor begins per clock, float32 and float64. CUDA C++ Programming Guide,
# arithmetic throughput and the architecture of each capability; 10.3: float64 peak of NVIDIA's data sheet.
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

# The same of tensor cores, by dense products that one warp asks for (mma.sync), with sums in float32; float32 goes in as TF32.
# After NVIDIA's white papers; from 9.0 on there are ways to ask for more, which no kernel here goes.
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
    """What does not change about a device while the process lives.

    Attributes
    ----------
    index
        CUDA's number of the device.
    name
        Its name, as the driver gives it.
    compute_capability
        Major and minor number.
    multiprocessors
        How many there are.
    shared_memory
        Bytes of shared memory that a block may opt in to.
    memory
        Bytes of global memory.
    bandwidth
        Bytes per second between multiprocessors and global memory at the best, None if the driver does not tell its clock.
    float32_rate, float64_rate
        Operations per second at the best, a multiply-add counted as two; None if the driver does not tell the clock.
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

    @property
    def architecture(self) -> str:
        """The compute capability as a compiler names it, such as ``"sm_90"``."""
        return "sm_{}{}".format(*self.compute_capability)

    def has_matrix_product(self, dtype: str) -> bool:
        """Whether tensor cores multiply numbers of that dtype, float32 as TF32."""
        return dtype in self._matrix_lanes

    def matrix_rate(self, dtype: str) -> float | None:
        """Operations per second of tensor cores at the best; None if they have no such product, or the clock is not known."""
        if self.float32_rate is None or not self.has_matrix_product(dtype):
            return None
        lanes, _ = _LANES.get(self.compute_capability, (_LANES_ELSEWHERE, None))
        return self.float32_rate / lanes * self._matrix_lanes[dtype]

    @property
    def _matrix_lanes(self) -> dict[str, int]:
        capability = self.compute_capability
        return _MATRIX_LANES.get(capability, _NARROW if capability > (8, 0) else {})


def import_cupy() -> ModuleType:
    """CuPy.

    Raises
    ------
    ImportError
        If it cannot be imported; the text names the pip command.
    """
    try:
        import cupy
    except ImportError as error:
        why = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ImportError(f"this needs CuPy, which cannot be imported ({why}): {PIP_COMMAND}") from error
    return cupy


def count() -> int:
    """How many devices there are.

    Raises
    ------
    ImportError
        If CuPy cannot be imported.
    RuntimeError
        If there is no device, or no driver for it.
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
    """What there is to know about a device.

    Raises
    ------
    ImportError
        If CuPy cannot be imported.
    RuntimeError
        If there is no such device.
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
    # Memory of today moves data at both edges of the clock.
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
    """The newest CUDA that the driver supports, and the CUDA whose runtime CuPy uses, such as ``("13.0", "12.9")``."""
    cuda = import_cupy().cuda
    numbers = cuda.runtime.driverGetVersion(), cuda.get_local_runtime_version()
    driver, runtime = (f"{number // 1000}.{number % 1000 // 10}" for number in numbers)
    return driver, runtime


def _lanes_elsewhere(attributes: dict[str, int]) -> tuple[float, float]:
    """Lanes of a compute capability that is not in the table."""
    return _LANES_ELSEWHERE, _LANES_ELSEWHERE / (attributes.get("SingleToDoublePrecisionPerfRatio") or 64)
