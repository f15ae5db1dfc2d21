"""A CuPy without a GPU: its arrays are NumPy arrays, and it records what is compiled and launched.

Put a `Fake` in the place of ``sys.modules["cupy"]``. Its array functions are NumPy's and return `ndarray`, a NumPy array that
says it is CuPy's and on a device. What a launch computes is not here: tests put a function that must not be called in the place
of the launcher (`installed`). It is for tests that compare requests, plans, refusals and array functions with NumPy's in little
time, on every system, and for failures that cannot be made in CuPy. What is launched is tested on the software CUDA.
"""

import functools
import sys
import threading
import types
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import numpy as np

from cupycorr import _dispatch, _repeats
from cupycorr._gpu import device as devices
from cupycorr._gpu import plan
from cupycorr._gpu.device import CUPY_OLDEST

H100 = {
    "properties": {
        "name": b"NVIDIA H100",
        "major": 9,
        "minor": 0,
        "multiProcessorCount": 132,
        "totalGlobalMem": 80 * 2**30,
        "sharedMemPerBlock": 48 * 2**10,
    },
    "attributes": {
        "ClockRate": 1_980_000,
        "MemoryClockRate": 2_619_000,
        "GlobalMemoryBusWidth": 5120,
        "MaxSharedMemoryPerBlockOptin": 227 * 2**10,
        "SingleToDoublePrecisionPerfRatio": 2,
    },
}

# Arrays -----------------------------------------------------------------------------------------------------------------------

_thread = threading.local()


class _WithCurrent(type):
    @property
    def current(cls):
        """The number of the device that is current in this thread."""
        return getattr(_thread, "device", 0)

    @current.setter
    def current(cls, index):
        _thread.device = index


class Device(metaclass=_WithCurrent):
    """A device of a number; ``with`` makes it current."""

    def __init__(self, index, attributes=None):
        self.id, self.attributes = index, attributes
        self.before = []

    def __enter__(self):
        self.before.append(Device.current)
        Device.current = self.id
        return self

    def __exit__(self, *_):
        Device.current = self.before.pop()

    def __eq__(self, other):
        return self.id == getattr(other, "id", None)

    def __hash__(self):
        return self.id

    def __str__(self):
        return f"<CUDA Device {self.id}>"


class ndarray(np.ndarray):  # noqa: N801 - CuPy's name
    """A NumPy array under CuPy's name, made on the current device."""

    def __array_finalize__(self, source):
        self._device = getattr(source, "_device", Device.current)

    @property
    def device(self):
        return Device(self._device)

    @property
    def data(self):
        return SimpleNamespace(ptr=self.__array_interface__["data"][0], device_id=self._device)

    def get(self):
        """Return a copy on the host."""
        return np.array(self.view(np.ndarray))


ndarray.__module__ = "cupy"


def on_cupy(array, device=0):
    """Return the same memory as a CuPy array of a device."""
    with Device(device):
        return np.asarray(array).view(ndarray)


class Stream:
    """The current stream."""

    capturing = False

    def is_capturing(self):
        return Stream.capturing


# The module -------------------------------------------------------------------------------------------------------------------


class CUDAError(RuntimeError):
    """An error of CUDA's runtime or driver with its number, as CuPy raises it."""

    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


CAPTURE_IMPLICIT = CUDAError(906, "operation would make the legacy stream depend on a capturing blocking stream")
CAPTURE_UNSUPPORTED = CUDAError(900, "operation not permitted when stream is capturing")


class CompileException(Exception):  # noqa: N818 - CuPy's name
    """The error that CuPy raises with NVRTC's log; it is not a RuntimeError."""

    def get_message(self):
        return self.args[0]


class _OfNumpy(types.ModuleType):
    """A NumPy module whose functions return CuPy arrays."""

    def __init__(self, name, module):
        super().__init__(name)
        self._module = module

    def __getattr__(self, name):
        found = getattr(self._module, name)
        if isinstance(found, types.ModuleType):
            return _OfNumpy(f"cupy.{name}", found)
        if isinstance(found, type) or not callable(found):
            return found

        @functools.wraps(found)
        def function(*arguments, **options):
            result = found(*arguments, **options)
            return on_cupy(result, Device.current) if isinstance(result, np.ndarray) else result

        return function


class Fake(_OfNumpy):
    """The module ``cupy`` of a machine with these devices.

    ``modules`` lists what was compiled as (device, code, options, backend), ``launches`` what was launched as (device, stream,
    entry, grid, block, arguments, shared), ``switches`` the devices made current, ``opted_in`` the bytes of shared memory.
    ``while_compiling`` and ``while_launching`` may wait or raise. ``streams`` are the current streams, by device.
    """

    def __init__(self, *devices, static_shared=0):
        super().__init__("cupy", np)
        self.__spec__ = ModuleSpec("cupy", None)  # `find_spec` finds it
        self.__version__ = CUPY_OLDEST
        self.devices, self.static_shared = devices, static_shared
        self.modules, self.launches, self.switches, self.opted_in = [], [], [], []
        self.streams = {index: f"default stream of {index}" for index in range(len(devices))}
        self.while_compiling = self.while_launching = lambda: None
        self.is_available = lambda: bool(devices)
        self.ndarray = ndarray
        self.from_dlpack = lambda array: on_cupy(array.memory)
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(
                getDevice=lambda: Device.current,
                setDevice=self.switch,
                getDeviceCount=self.count,
                getDeviceProperties=lambda index: devices[index]["properties"],
                driverGetVersion=lambda: 13000,
            ),
            get_local_runtime_version=lambda: 12090,
            get_current_stream=Stream,
            Device=lambda index: Device(index, devices[index]["attributes"] if index < len(devices) else None),
            compiler=SimpleNamespace(CompileException=CompileException),
        )
        Device.current = 0

    def switch(self, index):
        self.switches.append(index)
        Device.current = index

    def count(self):
        if not self.devices:
            raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return len(self.devices)

    def RawModule(self, *, code, options, backend):  # noqa: N802 - CuPy's name
        def get_function(entry):
            self.while_compiling()
            self.modules.append((Device.current, code, options, backend))
            return Kernel(self, entry)

        return SimpleNamespace(get_function=get_function)


class Kernel:
    """A RawKernel."""

    def __init__(self, cupy, entry):
        self.cupy, self.entry, self.home = cupy, entry, Device.current
        self.shared_size_bytes = cupy.static_shared
        self.allowed = 48 * 2**10 - cupy.static_shared

    @property
    def max_dynamic_shared_size_bytes(self):
        assert Device.current == self.home
        return self.allowed

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size):
        assert Device.current == self.home
        self.cupy.opted_in.append(size)
        self.allowed = size

    @property
    def kernel(self):
        assert Device.current == self.home, "CuPy would compile the kernel again on another device"
        return self.launch

    def launch(self, grid, block, arguments, shared=0, stream=None):
        self.cupy.while_launching()
        assert Device.current == self.home, "launched on another device than it was loaded on"
        assert shared <= self.allowed, "more dynamic shared memory than the kernel was allowed"
        stream = self.cupy.streams[self.home] if stream is None else stream
        self.cupy.launches.append((self.home, stream, self.entry, grid, block, arguments, shared))


# In the place of the real one -------------------------------------------------------------------------------------------------

# One multiprocessor is busy with any problem, so no plan splits channels. `emulated.IDLE` has many, and the devices of the
# software CUDA have those of real devices.
FACTS = devices.Device(
    index=0,
    name="a GPU in a test",
    compute_capability=(9, 0),
    multiprocessors=1,
    shared_memory=227 * 1024,
    memory=2**37,
    bandwidth=4e12,
    float32_rate=6e13,
    float64_rate=3e13,
)


@contextmanager
def installed(monkeypatch, bind):
    """Put a fake in the place of CuPy, where every device has `FACTS` and ``bind`` launches."""
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "cupy", Fake(H100))
        patched.setattr(_dispatch, "facts", lambda index: FACTS)
        patched.setattr(plan, "bind", bind)
        forget_plans()
        yield
    forget_plans()


def forget_plans():
    """Forget repeated calls and clear the cache of plans: plans hold what launches them."""
    _repeats.forget()
    _dispatch._planned.cache_clear()
