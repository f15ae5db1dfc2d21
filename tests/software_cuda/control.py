"""The face of `library/control.hpp` in Python: devices, the builder of modules, and what the library has seen.

The functions have no state of their own. They work in every process in which the library is loaded, whoever loaded it.
"""

import ctypes
import threading
from dataclasses import dataclass

from .preparation import SONAME

MOST_REPORT_BYTES = 2**16


class _DeviceRow(ctypes.Structure):
    """``DeviceRow`` of `library/devices.hpp`."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("total_memory", ctypes.c_uint64),
        ("capability", ctypes.c_int32),
        ("multiprocessors", ctypes.c_int32),
        ("threads_per_multiprocessor", ctypes.c_int32),
        ("shared_per_block", ctypes.c_int32),
        ("shared_per_multiprocessor", ctypes.c_int32),
        ("clock", ctypes.c_int32),
        ("memory_clock", ctypes.c_int32),
        ("bus_width", ctypes.c_int32),
        ("float64_ratio", ctypes.c_int32),
        ("l2_bytes", ctypes.c_int32),
    )


class _LaunchRow(ctypes.Structure):
    """``LaunchRow`` of `library/control.hpp`."""

    _fields_ = (
        ("kernel", ctypes.c_char * 256),
        ("stream", ctypes.c_uint64),
        ("device", ctypes.c_int32),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_shared", ctypes.c_uint32),
    )


_Builder = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)

_SIGNATURES = {  # name after software_cuda_ -> result, arguments
    "add_device": (ctypes.c_int, (ctypes.POINTER(_DeviceRow),)),
    "set_builder": (None, (_Builder,)),
    "register_range": (None, (ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64)),
    "unregister_range": (ctypes.c_int, (ctypes.c_uint64, ctypes.c_uint64)),
    "set_alive": (None, (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int)),
    "report_count": (ctypes.c_uint64, ()),
    "report": (ctypes.c_uint64, (ctypes.c_uint64, ctypes.c_char_p, ctypes.c_uint64)),
    "clear_reports": (None, ()),
    "reset_sticky_error": (None, ()),
    "set_lazy": (None, (ctypes.c_int,)),
    "set_thread_order": (None, (ctypes.c_int,)),
    "launch_count": (ctypes.c_uint64, ()),
    "launch": (ctypes.c_int, (ctypes.c_uint64, ctypes.POINTER(_LaunchRow))),
    "clear_launches": (None, ()),
}


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel."""

    kernel: str
    stream: int
    device: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic_shared: int  # bytes


def load(path):
    """Load the library into this process; CuPy's driver and NVRTC find it by its name afterwards."""
    ctypes.CDLL(str(path))


def _function(name):
    """Return a function of the library, which is loaded."""
    library = ctypes.CDLL(SONAME)
    function = library[f"software_cuda_{name}"]  # an object of its own for each caller
    function.restype, function.argtypes = _SIGNATURES[name]
    return function


# Devices and modules -----------------------------------------------------------------------------------------------------------


def add_device(device):
    """Add an imagined device, a row of `devices.DEVICES`, and return its number."""
    row = _DeviceRow(
        name=device.name.encode(),
        total_memory=device.usable_memory_mib * 2**20,
        capability=10 * device.capability[0] + device.capability[1],
        multiprocessors=device.multiprocessors,
        threads_per_multiprocessor=device.threads_per_multiprocessor,
        shared_per_block=device.shared_per_block_kib * 2**10,
        shared_per_multiprocessor=device.shared_per_multiprocessor_kib * 2**10,
        clock=device.clock_mhz * 1000,
        memory_clock=device.memory_clock_mhz * 1000,
        bus_width=device.bus_bits,
        float64_ratio=device.float32_per_float64,
        l2_bytes=device.l2_kib * 2**10,
    )
    number = _function("add_device")(row)
    if number < 0:
        raise RuntimeError(
            f"the device {device.name} cannot be added: there are too many, or there are no addresses left for memory"
        )
    return number


_kept = []  # what the library calls must live as long as the process


def set_builder(build):
    """Have PTX built by ``build(ptx)``, which returns the path of a shared object; its exceptions become errors of CUDA."""

    def answer(ptx, room_at, room):
        try:
            status, text = 0, str(build(ptx.decode()))
        except Exception as error:  # no exception can pass through the library
            status, text = 1, str(error) or type(error).__name__
        encoded = text.encode()[: room - 1] + b"\0"
        ctypes.memmove(room_at, encoded, len(encoded))
        return status

    callback = _Builder(answer)
    _kept.append(callback)
    _function("set_builder")(callback)


# Memory ------------------------------------------------------------------------------------------------------------------------


def register_memory(device, address, size):
    """Let a device use memory of the host that was allocated elsewhere, such as a tensor's."""
    _function("register_range")(device, address, size)


def unregister_memory(address, size):
    """Take the memory back; return whether it was registered. Operations that use it run before."""
    return bool(_function("unregister_range")(address, size))


def follow_the_memory_pool():
    """Tell the library which parts of CuPy's memory pool are in use: the exact sizes, and when they are given back.

    CuPy's hooks belong to a thread. So CuPy's allocator is replaced by one that adds the hook to each thread that allocates, and
    then calls the default pool. Memory that a thread gives back that never allocated counts as used until it is taken again.
    """
    import cupy

    set_alive = _function("set_alive")

    class Follower(cupy.cuda.MemoryHook):
        name = "software CUDA"

        def malloc_postprocess(self, *, size, mem_size, mem_ptr, **_):
            if mem_ptr:
                set_alive(mem_ptr, size, 1)
                set_alive(mem_ptr + size, mem_size - size, 0)

        def free_preprocess(self, *, mem_size, mem_ptr, **_):
            set_alive(mem_ptr, mem_size, 0)

    follower, thread = Follower(), threading.local()
    malloc = cupy.get_default_memory_pool().malloc

    def follow_and_malloc(size):
        if not hasattr(thread, "followed"):
            thread.followed = follower.__enter__()
        return malloc(size)

    cupy.cuda.set_allocator(follow_and_malloc)


# What the library has seen -----------------------------------------------------------------------------------------------------


def reports():
    """Return what the library has to complain of, oldest first, in whole sentences."""
    report, text = _function("report"), ctypes.create_string_buffer(MOST_REPORT_BYTES)
    found = []
    for index in range(_function("report_count")()):
        report(index, text, len(text))
        found.append(text.value.decode(errors="replace"))
    return found


def launches():
    """Return the launches of kernels, oldest first, also those that became part of a graph."""
    launch, row = _function("launch"), _LaunchRow()
    found = []
    for index in range(_function("launch_count")()):
        launch(index, row)
        found.append(Launch(row.kernel.decode(), row.stream, row.device, tuple(row.grid), tuple(row.block), row.dynamic_shared))
    return found


def forget():
    """Forget reports and launches, and take back the error that every call returns after a kernel has failed."""
    for name in ("reset_sticky_error", "clear_reports", "clear_launches"):
        _function(name)()


# The order in which things run -------------------------------------------------------------------------------------------------


def wait_for_everything():
    """Run what is enqueued on all devices; an error of it becomes the error that every call returns."""
    import cupy

    for number in range(cupy.cuda.runtime.getDeviceCount()):
        with cupy.cuda.Device(number):
            cupy.cuda.runtime.deviceSynchronize()


def set_lazy(lazy):
    """Choose whether an operation runs when somebody waits for it, which is the beginning, or as it is enqueued."""
    _function("set_lazy")(lazy)


def set_thread_order(backwards):
    """Choose whether the threads of a block go on from the last to the first; in the beginning they go from the first on."""
    _function("set_thread_order")(backwards)
