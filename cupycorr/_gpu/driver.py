"""The NVIDIA driver, asked without CuPy: it decides which CuPy can be installed. This module knows no package."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

_LIBRARIES = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR

OLDEST_CUDA = (12, 0)
_OLDEST_OF_CUDA_13 = (7, 5)  # the compute capability from which on CUDA 13 supports devices


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver that is installed.

    Attributes
    ----------
    cuda
        The newest version of CUDA that it supports, as ``(12, 4)``.
    compute_capabilities
        Those of its devices.
    """

    cuda: tuple[int, int]
    compute_capabilities: tuple[tuple[int, int], ...]


def installed() -> Driver | None:
    """Return the driver of this machine, or None without one."""
    name = _LIBRARIES.get(sys.platform)
    if name is None:
        return None
    try:
        library = ctypes.CDLL(name)
    except OSError:
        return None
    number = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(number)):
        return None
    return Driver((number.value // 1000, number.value % 1000 // 10), _compute_capabilities(library))


def _compute_capabilities(library: ctypes.CDLL) -> tuple[tuple[int, int], ...]:
    count = ctypes.c_int()
    if library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    return tuple((_attribute(library, _MAJOR, index), _attribute(library, _MINOR, index)) for index in range(count.value))


def _attribute(library: ctypes.CDLL, attribute: int, index: int) -> int:
    device, value = ctypes.c_int(), ctypes.c_int()
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return value.value


def extra(driver: Driver | None) -> str | None:
    """Return the extra of cupycorr with the CuPy for a driver, or None if it is too old; without a driver, that of CUDA 12."""
    if driver is None:
        return "cuda12"
    if driver.cuda < OLDEST_CUDA:
        return None
    newer = driver.cuda >= (13, 0) and all(each >= _OLDEST_OF_CUDA_13 for each in driver.compute_capabilities)
    return "cuda13" if newer else "cuda12"
