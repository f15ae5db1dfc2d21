"""As much of CuPy as compiling and launching touches, without a GPU: it records what is asked of it and fails when told to."""

import threading
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

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


class CompileException(Exception):  # noqa: N818 - CuPy's name
    """What CuPy raises with NVRTC's log; not a RuntimeError."""

    def get_message(self):
        return self.args[0]


class Fake(SimpleNamespace):
    """The module; put it into ``sys.modules["cupy"]``.

    ``modules`` lists what was compiled as (device, code, options, backend), ``launches`` what was launched as (device, stream,
    entry, grid, block, arguments, shared), ``switches`` the devices made current, ``opted_in`` the bytes of shared memory.
    ``while_compiling`` and ``while_launching`` may wait or raise. ``streams`` are the current streams, by device.
    """

    def __init__(self, *devices, static_shared=0):
        self.__spec__ = ModuleSpec("cupy", None)  # installed, to those who only ask
        self.devices, self.static_shared = devices, static_shared
        self.modules, self.launches, self.switches, self.opted_in = [], [], [], []
        self.streams = {index: f"default stream of {index}" for index in range(len(devices))}
        self.while_compiling = self.while_launching = lambda: None
        self.current = threading.local()
        self.is_available = lambda: bool(devices)
        runtime = SimpleNamespace(
            getDevice=self.device,
            setDevice=self.switch,
            getDeviceCount=self.count,
            getDeviceProperties=lambda index: devices[index]["properties"],
            driverGetVersion=lambda: 13000,
        )
        self.cuda = SimpleNamespace(
            runtime=runtime,
            get_local_runtime_version=lambda: 12090,
            Device=lambda index: SimpleNamespace(attributes=devices[index]["attributes"]),
            compiler=SimpleNamespace(CompileException=CompileException),
        )

    def device(self):
        return getattr(self.current, "index", 0)

    def switch(self, index):
        self.switches.append(index)
        self.current.index = index

    def count(self):
        if not self.devices:
            raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
        return len(self.devices)

    def RawModule(self, *, code, options, backend):  # noqa: N802 - CuPy's name
        def get_function(entry):
            self.while_compiling()
            self.modules.append((self.device(), code, options, backend))
            return Kernel(self, entry)

        return SimpleNamespace(get_function=get_function)


class Kernel:
    """A RawKernel."""

    def __init__(self, cupy, entry):
        self.cupy, self.entry, self.home = cupy, entry, cupy.device()
        self.shared_size_bytes = cupy.static_shared
        self.allowed = 48 * 2**10 - cupy.static_shared

    @property
    def max_dynamic_shared_size_bytes(self):
        assert self.cupy.device() == self.home
        return self.allowed

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size):
        assert self.cupy.device() == self.home
        self.cupy.opted_in.append(size)
        self.allowed = size

    @property
    def kernel(self):
        assert self.cupy.device() == self.home, "asked on another device, CuPy would compile it again"
        return self.launch

    def launch(self, grid, block, arguments, shared=0, stream=None):
        self.cupy.while_launching()
        assert self.cupy.device() == self.home, "launched on another device than it was loaded on"
        assert shared <= self.allowed, "more dynamic shared memory than the kernel was told of"
        stream = self.cupy.streams[self.home] if stream is None else stream
        self.cupy.launches.append((self.home, stream, self.entry, grid, block, arguments, shared))
