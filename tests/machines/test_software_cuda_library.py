"""The library of the software CUDA keeps CUDA's promises about memory, streams, events, graphs and launches, and its refusals.

The library is called through ctypes alone, without CuPy. Each test runs in a child process of its own, because a process that has
loaded the library has devices, and an error may stick to it.
"""

import ctypes
import functools
import inspect
import os
import select
import signal
import subprocess
import threading
import traceback
import warnings
from pathlib import Path

import pytest
from processes import needs_fork
from waiting import STUCK

pytestmark = needs_fork

ROOT = Path(__file__).resolve().parents[1] / "software_cuda"
FRESH = 0xFBFBFBFB  # what nobody stored
HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, DEFAULT = 1, 2, 3, 4
NON_BLOCKING = 1
GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2

INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED, INVALID_DEVICE, INVALID_CONTEXT = 1, 2, 3, 101, 201
NO_BINARY, INVALID_PTX, NEWER_PTX, INVALID_HANDLE, NOT_FOUND = 209, 218, 222, 400, 500
NOT_READY, ILLEGAL_ADDRESS, NOT_PERMITTED, NOT_SUPPORTED = 600, 700, 800, 801
CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED, CAPTURE_MERGE, CAPTURE_UNMATCHED, CAPTURE_UNJOINED = 900, 901, 902, 903, 904
CAPTURE_ISOLATION, CAPTURE_IMPLICIT, CAPTURED_EVENT, WRONG_THREAD = 905, 906, 907, 908

# As the translator writes it. `add` adds a number to each element of an array; `scale` multiplies by one, and has bounded threads
# and static shared memory; `count` counts its launches in a variable of the module; `ignore` looks at no parameter.
MODULE = """
#include "kernel/translated.hpp"

namespace {
template <class Type> Type parameter(const u8* parameters, int offset) {
    Type value;
    __builtin_memcpy(&value, parameters + offset, sizeof value);
    return value;
}

void add(Thread& thread, const u8* parameters, const u64*) {
    const u32 i = thread.ctaid[0] * thread.ntid[0] + thread.tid[0];
    const u64 address = parameter<u64>(parameters, 0) + 4 * u64(i);
    store_global_32(thread, address, load_global_32(thread, address) + parameter<u32>(parameters, 8));
}

void scale(Thread& thread, const u8* parameters, const u64*) {
    const u64 address = parameter<u64>(parameters, 0) + 4 * u64(thread.tid[0]);
    store_global_32(thread, address, load_global_32(thread, address) * parameter<u32>(parameters, 8));
}

void count(Thread& thread, const u8*, const u64* globals) {
    store_global_32(thread, globals[0], load_global_32(thread, globals[0]) + 1);
}

void ignore(Thread&, const u8*, const u64*) {}

const Parameter parameters[] = {{0, 8}, {8, 4}};
const u32 seven = 7;
const Kernel kernels[] = {
    {"add", add, parameters, 2, 12, 0, 0},
    {"scale", scale, parameters, 2, 12, 40 << 10, 64},
    {"count", count, nullptr, 0, 0, 0, 0},
    {"ignore", ignore, parameters, 2, 12, 0, 0},
};
const Variable variables[] = {{"counter", 4, 4, &seven}, {"zeros", 8, 8, nullptr}};
}  // namespace

extern "C" __attribute__((visibility("default"))) const Module software_cuda_module;
const Module software_cuda_module = {kernels, 4, variables, 2};
"""


class DeviceRow(ctypes.Structure):
    """A device as library/devices.hpp has it."""

    _fields_ = [("name", ctypes.c_char_p), ("total_memory", ctypes.c_uint64)] + [
        (name, ctypes.c_int32)
        for name in (
            "capability",
            "multiprocessors",
            "threads_per_multiprocessor",
            "shared_per_block",
            "shared_per_multiprocessor",
            "clock",
            "memory_clock",
            "bus_width",
            "float64_ratio",
            "l2_bytes",
        )
    ]


class LaunchRow(ctypes.Structure):
    """A launch as library/control.hpp has it."""

    _fields_ = [
        ("kernel", ctypes.c_char * 256),
        ("stream", ctypes.c_uint64),
        ("device", ctypes.c_int32),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_shared", ctypes.c_uint32),
    ]


H100 = (b"Imagined 9.0", 1 << 30, 90, 132, 2048, 227 << 10, 228 << 10, 1980000, 2619000, 5120, 2, 50 << 20)
T4 = (b"Imagined 7.5", 1 << 28, 75, 40, 1024, 64 << 10, 64 << 10, 1590000, 5001000, 256, 32, 4 << 20)

BUILDER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
PTX = b".version 8.0\n.target sm_75\n.address_size 64\n"


class CudaError(Exception):
    """An error of CUDA, with its number."""

    def __init__(self, function, number):
        super().__init__(f"{function} returned {number}")
        self.number = number


class Cuda:
    """The library in this process, with an H100 and a T4, and a module whose kernels are written by hand."""

    def __init__(self, library, module, devices=(H100, T4)):
        self.library = ctypes.CDLL(str(library))
        for name in ("report_count", "report", "pending_operations", "launch_count"):
            getattr(self.library, f"software_cuda_{name}").restype = ctypes.c_uint64
        for device in devices:
            assert self.library.software_cuda_add_device(ctypes.byref(DeviceRow(*device))) >= 0
        self.module_path = str(module).encode()
        self.built = []
        self.keep = [BUILDER(self._build)]
        self.library.software_cuda_set_builder(self.keep[0])
        self.cudaSetDevice(0)

    def _build(self, ptx, answer, room):
        self.built.append(ptx)
        text = b"the text cannot be translated" if b"nonsense" in ptx else self.module_path
        ctypes.memmove(answer, text + b"\0", len(text) + 1)
        return int(b"nonsense" in ptx)

    def __getattr__(self, name):
        function = getattr(self.library, name)

        def call(*arguments):
            number = function(*(ctypes.c_uint64(each) if type(each) is int else each for each in arguments))
            if number:
                raise CudaError(name, number)

        return call

    def made(self, name, *arguments, type=ctypes.c_void_p):
        """Return what a function writes to its first argument."""
        result = type()
        getattr(self, name)(ctypes.byref(result), *arguments)
        return result.value or 0

    def malloc(self, count):
        return self.made("cudaMalloc", 4 * count)

    def pinned(self, *values):
        address = self.made("cudaHostAlloc", 4 * len(values), 0)
        array = (ctypes.c_uint32 * len(values)).from_address(address)
        array[:] = values
        return array

    def array(self, *values):
        """Return the address of new memory of the device with these numbers in it."""
        address = self.malloc(len(values))
        self.write(address, *values)
        return address

    def write(self, address, *values):
        self.cudaMemcpy(address, (ctypes.c_uint32 * len(values))(*values), 4 * len(values), HOST_TO_DEVICE)

    def read(self, address, count):
        values = (ctypes.c_uint32 * count)()
        self.cudaMemcpy(values, address, 4 * count, DEVICE_TO_HOST)
        return list(values)

    def read_later(self, address, count, stream):
        """Enqueue a copy to pinned memory, and return the array that it fills when it runs."""
        values = self.pinned(*[0] * count)
        self.cudaMemcpyAsync(ctypes.addressof(values), address, 4 * count, DEVICE_TO_HOST, stream)
        return values

    def stream(self, flags=NON_BLOCKING):
        return self.made("cudaStreamCreateWithFlags", flags)

    def event(self, stream=None):
        event = self.made("cudaEventCreateWithFlags", 0)
        if stream is not None:
            self.cudaEventRecord(event, stream)
        return event

    @functools.cached_property
    def module(self):
        return self.made("cuModuleLoadData", PTX)

    def function(self, name, module=None):
        return self.made("cuModuleGetFunction", module or self.module, name.encode())

    def launch(self, name, address=0, number=0, *, grid=(1, 1, 1), block=(1, 1, 1), shared=0, stream=0):
        function = self.function(name) if isinstance(name, str) else name
        values = ctypes.c_uint64(address), ctypes.c_uint32(number)
        addresses = (ctypes.c_void_p * 2)(*(ctypes.addressof(value) for value in values))
        self.cuLaunchKernel(function, *grid, *block, shared, stream, addresses, None)
        values[0].value = values[1].value = 0  # CUDA has copied them

    def add(self, address, number, stream=0, threads=1):
        self.launch("add", address, number, block=(threads, 1, 1), stream=stream)

    def end_capture(self, stream):
        graph = ctypes.c_void_p()
        self.cudaStreamEndCapture(stream, ctypes.byref(graph))
        return graph.value

    def graph(self, stream):
        """End the capture of a stream and return the executable graph."""
        return self.made("cudaGraphInstantiate", self.end_capture(stream), 0)

    def pending(self):
        return self.library.software_cuda_pending_operations()

    def reports(self):
        found = []
        for index in range(self.library.software_cuda_report_count()):
            text = ctypes.create_string_buffer(4096)
            self.library.software_cuda_report(ctypes.c_uint64(index), text, ctypes.c_uint64(4096))
            found.append(text.value.decode())
        return found

    def set_alive(self, address, count, alive):
        self.library.software_cuda_set_alive(ctypes.c_uint64(address), ctypes.c_uint64(4 * count), int(alive))


def refused(number, call, *arguments, **named):
    """Check that a call returns this error."""
    with pytest.raises(CudaError) as caught:
        call(*arguments, **named)
    assert caught.value.number == number, f"{caught.value}, {number} was expected"


@pytest.fixture(scope="module")
def library(software_cuda_prepared):
    """Return the path of the library."""
    return software_cuda_prepared.library


@pytest.fixture(scope="module")
def module(library, tmp_path_factory):
    """Return the path of the module with kernels that are written by hand."""
    folder = tmp_path_factory.mktemp("module")
    (folder / "module.cpp").write_text(MODULE)
    words = [
        "g++",
        "-std=c++20",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        f"-I{ROOT}",
        "module.cpp",
        str(library),
        "-o",
        "module.so",
    ]
    subprocess.run(words, cwd=folder, check=True)
    return folder / "module.so"


def _text_from(descriptor, process):
    """Return what a child writes before it ends; a child that is stuck is killed."""
    text = b""
    while select.select([descriptor], [], [], STUCK)[0]:
        piece = os.read(descriptor, 1 << 16)
        if not piece:
            return text.decode()
        text += piece
    os.kill(process, signal.SIGKILL)
    return f"the child was stuck for {STUCK} seconds"


def in_a_child(check):
    """Make a test of a function that takes a `Cuda`; it runs in a child process."""

    def test(library, module, **named):
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks in processes with threads: this child needs none
            process = os.fork()
        if process == 0:
            text = ""
            try:
                check(Cuda(library, module), **named)
            except BaseException:
                text = traceback.format_exc()
            os.write(writing, text.encode())
            os._exit(bool(text))
        os.close(writing)
        text = _text_from(reading, process)
        os.close(reading)
        _, status = os.waitpid(process, 0)
        assert not text, text
        assert status == 0, f"the child ended with status {status}"

    # pytest looks for the fixtures and the parameters of a test in its signature.
    of_check = inspect.signature(check).parameters.values()
    fixtures = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in ("library", "module")]
    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in of_check if parameter.name != "cuda"]
    functools.update_wrapper(test, check)
    test.__signature__ = inspect.Signature(fixtures + own)
    return test


# Devices -----------------------------------------------------------------------------------------------------------------------


@in_a_child
def test_devices_of_different_kinds_have_their_own_attributes(cuda):
    def attribute(number, device):
        return cuda.made("cudaDeviceGetAttribute", number, device, type=ctypes.c_int)

    assert cuda.made("cudaGetDeviceCount", type=ctypes.c_int) == 2
    major, multiprocessors, shared, ratio = 75, 16, 97, 87
    assert [attribute(each, 0) for each in (major, multiprocessors, shared, ratio)] == [9, 132, 227 << 10, 2]
    assert [attribute(each, 1) for each in (major, multiprocessors, shared, ratio)] == [7, 40, 64 << 10, 32]


@in_a_child
def test_no_call_accepts_a_device_that_is_not_there(cuda):
    refused(INVALID_DEVICE, cuda.cudaSetDevice, 2)
    refused(INVALID_DEVICE, cuda.made, "cudaDeviceGetAttribute", 75, 2, type=ctypes.c_int)


@in_a_child
def test_a_forked_child_gets_an_error_and_its_parent_goes_on(cuda):
    address = cuda.array(5)
    child = os.fork()
    if child == 0:
        os._exit(cuda.library.cudaMalloc(ctypes.byref(ctypes.c_void_p()), ctypes.c_uint64(4)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == NOT_INITIALIZED
    assert cuda.read(address, 1) == [5]


@in_a_child
def test_a_function_that_is_absent_says_so(cuda):
    refused(NOT_SUPPORTED, cuda.cudaMemcpy2D)


# Memory ------------------------------------------------------------------------------------------------------------------------


@in_a_child
def test_memory_keeps_what_was_copied_and_filled(cuda):
    address, other = cuda.array(1, 2, 3), cuda.malloc(3)
    cuda.cudaMemcpy(other, address, 12, DEVICE_TO_DEVICE)
    cuda.cudaMemset(other + 4, 1, 4)
    assert cuda.read(other, 3) == [1, 0x01010101, 3]
    assert cuda.reports() == []


@in_a_child
def test_a_device_has_as_much_memory_as_it_says(cuda):
    cuda.cudaSetDevice(1)
    whole = cuda.malloc(1 << 24)
    refused(OUT_OF_MEMORY, cuda.malloc, 1 << 26)
    cuda.cudaFree(whole)
    free, total = ctypes.c_uint64(), ctypes.c_uint64()
    cuda.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    assert free.value == total.value == T4[1]


@in_a_child
def test_fresh_memory_is_poisoned_and_its_use_is_reported(cuda):
    address = cuda.malloc(2)
    assert cuda.read(address, 1) == [FRESH]
    assert "nobody stored" in cuda.reports().pop()
    cuda.add(address, 1)
    cuda.cudaDeviceSynchronize()
    assert len(cuda.reports()) == 2


@in_a_child
def test_a_copy_on_the_device_carries_over_which_bytes_are_unset(cuda):
    source, target = cuda.malloc(2), cuda.array(1, 2)
    cuda.write(source, 7)
    cuda.cudaMemcpy(target, source, 8, DEVICE_TO_DEVICE)
    assert cuda.read(target, 1) == [7]
    assert cuda.reports() == []
    cuda.read(target + 4, 1)
    assert len(cuda.reports()) == 1


@in_a_child
def test_a_kernel_is_stopped_at_the_first_byte_after_an_allocation(cuda):
    address = cuda.array(1, 2, 3)
    cuda.add(address, 1, threads=3)
    cuda.cudaDeviceSynchronize()
    cuda.add(address, 1, threads=4)
    refused(ILLEGAL_ADDRESS, cuda.cudaDeviceSynchronize)
    assert "after the end of an allocation of 12 bytes" in cuda.reports()[0]


@in_a_child
def test_an_error_of_a_kernel_sticks_until_it_is_reset(cuda):
    address = cuda.array(1)
    cuda.add(address, 1, threads=2)
    refused(ILLEGAL_ADDRESS, cuda.cudaDeviceSynchronize)
    refused(ILLEGAL_ADDRESS, cuda.malloc, 1)
    refused(ILLEGAL_ADDRESS, cuda.add, address, 1)
    cuda.library.software_cuda_reset_sticky_error()
    assert cuda.read(address, 1) == [2]


@in_a_child
def test_work_that_waits_when_an_error_is_reset_never_runs(cuda):
    address, stream = cuda.array(1), cuda.stream()
    cuda.add(address, 1, stream)
    cuda.add(address + 4, 1)
    refused(ILLEGAL_ADDRESS, cuda.cudaStreamSynchronize, 0)
    cuda.library.software_cuda_reset_sticky_error()
    assert cuda.pending() == 0
    assert cuda.read(address, 1) == [1]


@in_a_child
def test_memory_that_was_freed_is_refused(cuda):
    address = cuda.array(1)
    cuda.cudaFree(address)
    refused(INVALID_VALUE, cuda.cudaFree, address)
    refused(INVALID_VALUE, cuda.read, address, 1)
    refused(INVALID_VALUE, cuda.add, address, 1)
    assert "memory that was given back" in cuda.reports()[-1]


@in_a_child
def test_memory_of_another_device_is_out_of_bounds(cuda):
    address = cuda.array(1)
    cuda.cudaSetDevice(1)
    cuda.launch(cuda.function("add"), address, 1)
    refused(ILLEGAL_ADDRESS, cuda.cudaDeviceSynchronize)


@pytest.mark.parametrize(
    ("offset", "bytes", "kind"),
    [(0, 12, DEVICE_TO_HOST), (8, 4, DEFAULT), (0, 8, HOST_TO_DEVICE)],
    ids=["too long", "outside", "wrong direction"],
)
@in_a_child
def test_a_copy_is_refused(cuda, offset, bytes, kind):
    address = cuda.array(1, 2)
    refused(INVALID_VALUE, cuda.cudaMemcpy, (ctypes.c_uint32 * 4)(), address + offset, bytes, kind)


@in_a_child
def test_pageable_memory_is_copied_before_the_call_returns(cuda):
    address, stream = cuda.malloc(1), cuda.stream()
    source, target = ctypes.c_uint32(3), ctypes.c_uint32()
    cuda.cudaMemcpyAsync(address, ctypes.byref(source), 4, HOST_TO_DEVICE, stream)
    source.value = 4
    cuda.cudaMemcpyAsync(ctypes.byref(target), address, 4, DEVICE_TO_HOST, stream)
    assert target.value == 3


@in_a_child
def test_pinned_memory_is_read_when_the_copy_runs(cuda):
    address, stream, source = cuda.malloc(1), cuda.stream(), cuda.pinned(3)
    cuda.cudaMemcpyAsync(address, ctypes.addressof(source), 4, HOST_TO_DEVICE, stream)
    source[0] = 4
    cuda.cudaStreamSynchronize(stream)
    assert cuda.read(address, 1) == [4]


@in_a_child
def test_registered_memory_is_of_its_device_and_work_that_uses_it_runs_before_it_goes(cuda):
    values = (ctypes.c_uint32 * 2)(1, 2)
    address = ctypes.addressof(values)
    cuda.software_cuda_register_range(0, address, 8)
    cuda.add(address, 10, threads=2)
    assert list(values) == [1, 2]
    assert cuda.library.software_cuda_unregister_range(ctypes.c_uint64(address), ctypes.c_uint64(8)) == 1
    assert list(values) == [11, 12]
    cuda.add(address, 10)
    refused(ILLEGAL_ADDRESS, cuda.cudaDeviceSynchronize)


@pytest.mark.parametrize("allocator", ["cudaHostAlloc", "cudaMallocManaged"])
@in_a_child
def test_a_kernel_uses_memory_of_the_host_that_cuda_allocated(cuda, allocator):
    address = cuda.made(allocator, 4, 0 if allocator == "cudaHostAlloc" else 1)
    value = ctypes.c_uint32.from_address(address)
    value.value = 5
    cuda.add(address, 1)
    cuda.cudaDeviceSynchronize()
    assert value.value == 6


@in_a_child
def test_a_kernel_uses_other_memory_of_the_host_only_while_it_is_registered(cuda):
    value = ctypes.c_uint32(5)
    cuda.cudaHostRegister(ctypes.byref(value), 4, 0)
    cuda.add(ctypes.addressof(value), 1)
    cuda.cudaHostUnregister(ctypes.byref(value))
    assert value.value == 6
    cuda.add(ctypes.addressof(value), 1)
    refused(ILLEGAL_ADDRESS, cuda.cudaDeviceSynchronize)


@in_a_child
def test_allocation_and_release_follow_the_order_of_a_stream(cuda):
    stream = cuda.stream()
    address = cuda.made("cudaMallocAsync", 4, stream)
    cuda.cudaMemsetAsync(address, 0, 4, stream)
    cuda.add(address, 6, stream)
    values = cuda.read_later(address, 1, stream)
    cuda.cudaFreeAsync(address, stream)
    refused(INVALID_VALUE, cuda.add, address, 1, stream)
    cuda.cudaStreamSynchronize(stream)
    assert values[0] == 6


# Blocks of a memory pool -------------------------------------------------------------------------------------------------------


@in_a_child
def test_a_launch_with_a_block_that_was_given_back_is_refused(cuda):
    address = cuda.array(1, 2)
    cuda.set_alive(address, 2, False)
    refused(INVALID_VALUE, cuda.add, address, 1)
    refused(INVALID_VALUE, cuda.cudaMemsetAsync, address, 0, 4, 0)
    refused(INVALID_VALUE, cuda.read, address, 1)
    assert all("memory that was given back" in text for text in cuda.reports())


@in_a_child
def test_work_may_touch_a_block_that_died_after_it_was_enqueued(cuda):
    address, stream = cuda.array(1), cuda.stream()
    cuda.add(address, 1, stream)
    values = cuda.read_later(address, 1, stream)
    cuda.set_alive(address, 1, False)
    cuda.cudaStreamSynchronize(stream)
    assert values[0] == 2
    assert cuda.reports() == []


@in_a_child
def test_bytes_between_the_requested_size_and_the_size_of_the_block_are_out_of_bounds(cuda):
    address = cuda.array(1, 2, 3, 4)
    cuda.set_alive(address + 8, 2, False)
    cuda.add(address, 1, threads=2)
    cuda.cudaDeviceSynchronize()
    cuda.add(address, 1, threads=3)
    refused(ILLEGAL_ADDRESS, cuda.cudaDeviceSynchronize)
    assert "in a part that was given back" in cuda.reports()[0]


@in_a_child
def test_the_end_of_an_array_is_no_address_of_the_block_behind_it(cuda):
    address = cuda.array(1, 2)
    cuda.set_alive(address + 4, 1, False)
    cuda.launch("ignore", address + 4)
    refused(INVALID_VALUE, cuda.launch, "ignore", address + 5)
    assert len(cuda.reports()) == 1


@in_a_child
def test_an_address_where_nothing_was_allocated_is_refused_only_when_it_is_used(cuda):
    address = cuda.array(1, 2)
    cuda.launch("ignore", address + 4096)
    cuda.cudaDeviceSynchronize()
    assert cuda.reports() == []


@in_a_child
def test_a_block_that_is_taken_again_is_unset_for_new_work_only(cuda):
    address, stream = cuda.array(1), cuda.stream()
    cuda.add(address, 1, stream)
    old = cuda.read_later(address, 1, stream)
    cuda.set_alive(address, 1, False)
    cuda.set_alive(address, 1, True)
    cuda.add(address, 1, stream)
    new = cuda.read_later(address, 1, stream)
    cuda.cudaStreamSynchronize(stream)
    assert (old[0], new[0]) == (2, FRESH + 1)
    assert len(cuda.reports()) == 1


@in_a_child
def test_each_reuse_of_a_block_is_noticed_though_nothing_was_waited_for(cuda):
    address, stream = cuda.malloc(1), cuda.stream()
    results = []
    for number in range(3):
        cuda.set_alive(address, 1, True)
        if number != 1:
            cuda.cudaMemsetAsync(address, 0, 4, stream)
        cuda.add(address, number, stream)
        results.append(cuda.read_later(address, 1, stream))
        cuda.set_alive(address, 1, False)
    cuda.cudaStreamSynchronize(stream)
    assert [values[0] for values in results] == [0, FRESH + 1, 2]
    assert len(cuda.reports()) == 1


# Streams and events ------------------------------------------------------------------------------------------------------------


@in_a_child
def test_an_operation_runs_when_somebody_waits_for_it(cuda):
    address, stream = cuda.array(1), cuda.stream()
    cuda.add(address, 1, stream)
    values = cuda.read_later(address, 1, stream)
    assert (cuda.pending(), values[0]) == (2, 0)
    cuda.cudaStreamSynchronize(stream)
    assert (cuda.pending(), values[0]) == (0, 2)


@in_a_child
def test_operations_run_at_once_when_the_library_is_not_lazy(cuda):
    cuda.software_cuda_set_lazy(0)
    values = cuda.read_later(cuda.array(4), 1, cuda.stream())
    assert values[0] == 4


@pytest.mark.parametrize(("flags", "result"), [(0, 12), (NON_BLOCKING, 7)], ids=["blocking", "non-blocking"])
@in_a_child
def test_the_default_stream_waits_for_blocking_streams_alone(cuda, flags, result):
    address, stream = cuda.array(2), cuda.stream(flags)
    cuda.add(address, 5, stream)
    source = cuda.pinned(7)
    cuda.cudaMemcpyAsync(address, ctypes.addressof(source), 4, HOST_TO_DEVICE, 0)
    cuda.cudaStreamSynchronize(0)
    cuda.cudaStreamSynchronize(stream)
    assert cuda.read(address, 1) == ([7] if flags == 0 else [12])


@in_a_child
def test_a_blocking_stream_waits_for_the_default_stream(cuda):
    address, stream = cuda.array(2), cuda.stream(0)
    cuda.add(address, 5)
    values = cuda.read_later(address, 1, stream)
    cuda.cudaStreamSynchronize(stream)
    assert values[0] == 7


@pytest.mark.parametrize("waits", [False, True], ids=["without an event", "with an event"])
@in_a_child
def test_streams_are_ordered_by_events_alone(cuda, waits):
    address, first, second = cuda.array(1), cuda.stream(), cuda.stream()
    cuda.add(address, 1, first)
    event = cuda.event(first)
    if waits:
        cuda.cudaStreamWaitEvent(second, event, 0)
    values = cuda.read_later(address, 1, second)
    cuda.cudaStreamSynchronize(second)
    assert values[0] == (2 if waits else 1)


@in_a_child
def test_a_stream_that_is_destroyed_does_not_lose_its_work(cuda):
    address, stream = cuda.array(1), cuda.stream()
    cuda.add(address, 1, stream)
    cuda.cudaStreamDestroy(stream)
    refused(INVALID_HANDLE, cuda.cudaStreamSynchronize, stream)
    cuda.cudaDeviceSynchronize()
    assert cuda.read(address, 1) == [2]


@in_a_child
def test_no_stream_gets_the_handle_of_one_that_was_destroyed(cuda):
    handles = []
    for _ in range(20):
        handles.append(cuda.stream())
        cuda.cudaStreamDestroy(handles[-1])
    assert len(set(handles)) == 20


@in_a_child
def test_each_thread_has_a_default_stream_of_its_own(cuda):
    per_thread = 2
    address, other = cuda.array(1), cuda.array(1)
    cuda.add(address, 1, per_thread)

    def work():
        cuda.cudaSetDevice(0)
        cuda.add(other, 1, per_thread)
        cuda.cudaStreamSynchronize(per_thread)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(STUCK)
    assert cuda.pending() == 1
    assert (cuda.read(address, 1), cuda.read(other, 1)) == ([2], [2])


@in_a_child
def test_queries_come_to_an_end(cuda):
    address, stream = cuda.array(1), cuda.stream()
    cuda.add(address, 1, stream)
    event = cuda.event(stream)
    refused(NOT_READY, cuda.cudaEventQuery, event)
    refused(NOT_READY, cuda.cudaStreamQuery, stream)
    assert cuda.pending() == 1
    answers = [cuda.library.cudaEventQuery(ctypes.c_uint64(event)) for _ in range(10)]
    assert answers[-1] == 0
    assert cuda.pending() == 0


@in_a_child
def test_events_measure_the_time_of_what_ran_between_them(cuda):
    address, stream = cuda.array(1), cuda.stream()
    start = cuda.event(stream)
    cuda.add(address, 1, stream)
    end = cuda.event(stream)
    passed = ctypes.c_float()
    refused(NOT_READY, cuda.cudaEventElapsedTime, ctypes.byref(passed), start, end)
    cuda.cudaEventSynchronize(end)
    cuda.cudaEventElapsedTime(ctypes.byref(passed), start, end)
    assert passed.value > 0


@in_a_child
def test_a_host_function_runs_in_the_order_of_its_stream(cuda):
    values = cuda.pinned(1)
    address, stream, seen = ctypes.addressof(values), cuda.stream(), []
    function = HOST_FUNCTION(lambda _: seen.append(values[0]))
    cuda.add(address, 1, stream)
    cuda.cudaLaunchHostFunc(stream, function, None)
    cuda.add(address, 1, stream)
    cuda.cudaStreamSynchronize(stream)
    assert (seen, values[0]) == ([2], 3)


@in_a_child
def test_a_host_function_must_not_wait_for_its_own_stream(cuda):
    stream, answers = cuda.stream(), []
    function = HOST_FUNCTION(lambda _: answers.append(cuda.library.cudaStreamSynchronize(ctypes.c_uint64(stream))))
    cuda.cudaLaunchHostFunc(stream, function, None)
    cuda.cudaStreamSynchronize(stream)
    assert answers == [NOT_PERMITTED]


@in_a_child
def test_a_query_that_holds_the_lock_of_python_does_not_wait_for_a_host_function(cuda):
    stream, answers = cuda.stream(), []
    holding = ctypes.PyDLL(cuda.library._name)  # calls keep Python's lock, as CuPy's queries do
    asked, inside = threading.Event(), threading.Event()

    def host_function(_):
        inside.set()
        asked.wait(STUCK)

    function = HOST_FUNCTION(host_function)
    cuda.cudaLaunchHostFunc(stream, function, None)
    event = cuda.event(stream)
    waiting = threading.Thread(target=cuda.cudaStreamSynchronize, args=(stream,))
    waiting.start()
    inside.wait(STUCK)
    answers += [holding.cudaEventQuery(ctypes.c_uint64(event)) for _ in range(5)]
    answers.append(holding.cudaStreamQuery(ctypes.c_uint64(stream)))
    asked.set()
    waiting.join(STUCK)
    assert answers == [NOT_READY] * 6
    cuda.cudaEventQuery(event)


# Capture and graphs ------------------------------------------------------------------------------------------------------------


@in_a_child
def test_captured_work_runs_at_each_launch_of_the_graph(cuda):
    address, stream, other = cuda.array(1), cuda.stream(), cuda.stream()
    cuda.cudaStreamBeginCapture(stream, RELAXED)
    cuda.add(address, 1, stream)
    cuda.launch("scale", address, 2, stream=stream)
    graph = cuda.graph(stream)
    assert cuda.read(address, 1) == [1]
    cuda.cudaMemsetAsync(address, 0, 4, stream)
    cuda.cudaGraphLaunch(graph, stream)
    cuda.cudaStreamSynchronize(stream)
    cuda.cudaGraphUpload(graph, other)
    cuda.cudaGraphLaunch(graph, other)
    cuda.cudaGraphExecDestroy(graph)
    cuda.cudaStreamSynchronize(other)
    assert cuda.read(address, 1) == [6]


@in_a_child
def test_a_fork_and_a_join_become_dependencies_of_the_graph(cuda):
    address, stream, forked = cuda.array(1, 1), cuda.stream(), cuda.stream()
    assert cuda.module  # which cannot be loaded while the stream captures
    cuda.cudaStreamBeginCapture(stream, GLOBAL)
    cuda.add(address, 1, stream)
    cuda.cudaStreamWaitEvent(forked, cuda.event(stream), 0)
    cuda.launch("scale", address, 3, stream=forked)
    joined = cuda.event(forked)
    cuda.add(address + 4, 4, stream)
    cuda.cudaStreamWaitEvent(stream, joined, 0)
    cuda.add(address, 1, stream)
    cuda.cudaGraphLaunch(cuda.graph(stream), stream)
    cuda.cudaStreamSynchronize(stream)
    assert cuda.read(address, 2) == [7, 5]
    cuda.cudaStreamSynchronize(forked)  # which captures no longer


@in_a_child
def test_work_that_was_forked_and_not_joined_is_refused(cuda):
    address, stream, forked = cuda.array(1), cuda.stream(), cuda.stream()
    assert cuda.module  # which cannot be loaded while the stream captures
    cuda.cudaStreamBeginCapture(stream, GLOBAL)
    cuda.add(address, 1, stream)
    cuda.cudaStreamWaitEvent(forked, cuda.event(stream), 0)
    cuda.add(address, 1, forked)
    refused(CAPTURE_UNJOINED, cuda.end_capture, stream)


# What a program must not do while a stream captures, and the error.
VIOLATIONS = {
    "synchronize the stream": (CAPTURE_UNSUPPORTED, lambda cuda, stream, before: cuda.cudaStreamSynchronize(stream)),
    "query the stream": (CAPTURE_UNSUPPORTED, lambda cuda, stream, before: cuda.cudaStreamQuery(stream)),
    "query its event": (CAPTURED_EVENT, lambda cuda, stream, before: cuda.cudaEventQuery(cuda.event(stream))),
    "synchronize its event": (CAPTURED_EVENT, lambda cuda, stream, before: cuda.cudaEventSynchronize(cuda.event(stream))),
    "wait for earlier work": (CAPTURE_ISOLATION, lambda cuda, stream, before: cuda.cudaStreamWaitEvent(stream, before, 0)),
    "use the default stream": (CAPTURE_IMPLICIT, lambda cuda, stream, before: cuda.cudaMemsetAsync(cuda.address, 0, 4, 0)),
    "copy and wait": (CAPTURE_IMPLICIT, lambda cuda, stream, before: cuda.read(cuda.address, 1)),
    "allocate": (CAPTURE_UNSUPPORTED, lambda cuda, stream, before: cuda.malloc(1)),
    "free": (CAPTURE_UNSUPPORTED, lambda cuda, stream, before: cuda.cudaFree(cuda.address)),
    "synchronize the device": (CAPTURE_UNSUPPORTED, lambda cuda, stream, before: cuda.cudaDeviceSynchronize()),
    "load a module": (CAPTURE_UNSUPPORTED, lambda cuda, stream, before: cuda.made("cuModuleLoadData", PTX)),
}


@pytest.mark.parametrize("violation", VIOLATIONS)
@in_a_child
def test_a_violation_of_a_capture_is_refused_and_makes_the_capture_invalid(cuda, violation):
    number, violate = VIOLATIONS[violation]
    stream, cuda.address = cuda.stream(0), cuda.array(1)
    before = cuda.event(stream)
    cuda.cudaStreamBeginCapture(stream, GLOBAL)
    refused(number, violate, cuda, stream, before)
    refused(CAPTURE_INVALIDATED, cuda.end_capture, stream)
    cuda.cudaStreamSynchronize(stream)


@in_a_child
def test_the_default_stream_cannot_say_whether_it_captures_beside_a_blocking_stream_that_does(cuda):
    stream = cuda.stream(0)
    cuda.cudaStreamBeginCapture(stream, RELAXED)
    refused(CAPTURE_IMPLICIT, cuda.cudaStreamIsCapturing, 0, ctypes.byref(ctypes.c_int()))
    cuda.end_capture(stream)


@in_a_child
def test_a_relaxed_capture_lets_the_program_allocate(cuda):
    stream = cuda.stream()
    cuda.cudaStreamBeginCapture(stream, RELAXED)
    cuda.cudaFree(cuda.malloc(1))
    cuda.end_capture(stream)


@in_a_child
def test_a_capture_is_ended_in_the_stream_and_the_thread_of_its_beginning(cuda):
    stream, forked = cuda.stream(), cuda.stream()
    answers = []
    cuda.cudaStreamBeginCapture(stream, THREAD_LOCAL)
    cuda.cudaStreamWaitEvent(forked, cuda.event(stream), 0)
    end = cuda.library.cudaStreamEndCapture
    graph = ctypes.c_void_p()
    thread = threading.Thread(target=lambda: answers.append(end(ctypes.c_uint64(stream), ctypes.byref(graph))))
    thread.start()
    thread.join(STUCK)
    assert answers == [WRONG_THREAD]
    refused(CAPTURE_UNMATCHED, cuda.end_capture, forked)


@in_a_child
def test_captures_that_a_program_tries_to_merge_are_both_invalid(cuda):
    first, second = cuda.stream(), cuda.stream()
    cuda.cudaStreamBeginCapture(first, RELAXED)
    cuda.cudaStreamBeginCapture(second, RELAXED)
    refused(CAPTURE_MERGE, cuda.cudaStreamWaitEvent, second, cuda.event(first), 0)
    refused(CAPTURE_INVALIDATED, cuda.end_capture, second)
    refused(CAPTURE_INVALIDATED, cuda.end_capture, first)


@in_a_child
def test_a_graph_that_uses_a_block_which_was_given_back_is_refused(cuda):
    address, stream = cuda.array(1), cuda.stream()
    cuda.cudaStreamBeginCapture(stream, RELAXED)
    cuda.add(address, 1, stream)
    graph = cuda.graph(stream)
    cuda.set_alive(address, 1, False)
    refused(INVALID_VALUE, cuda.cudaGraphLaunch, graph, stream)


@in_a_child
def test_a_graph_does_not_run_beside_itself(cuda):
    address, first, second = cuda.array(1), cuda.stream(), cuda.stream()
    cuda.cudaStreamBeginCapture(first, RELAXED)
    cuda.add(address, 1, first)
    graph = cuda.graph(first)
    cuda.cudaGraphLaunch(graph, first)
    cuda.cudaGraphLaunch(graph, second)
    cuda.cudaStreamSynchronize(second)
    assert cuda.read(address, 1) == [3]


# Several devices ---------------------------------------------------------------------------------------------------------------


@in_a_child
def test_a_copy_between_devices_that_waits_comes_after_the_work_of_both(cuda):
    target, stream = cuda.array(0), cuda.stream()
    cuda.cudaSetDevice(1)
    source, there = cuda.array(1), cuda.stream()
    cuda.launch(cuda.function("add"), source, 4, stream=there)
    cuda.cudaSetDevice(0)
    cuda.cudaMemsetAsync(target, 7, 4, stream)
    cuda.cudaMemcpyPeer(target, 0, source, 1, 4)
    assert cuda.pending() == 0
    assert cuda.read(target, 1) == [5]
    refused(INVALID_DEVICE, cuda.cudaMemcpyPeer, target, 0, source, 2, 4)


@in_a_child
def test_pinned_memory_is_freed_after_the_work_of_every_device_with_it(cuda):
    values = cuda.pinned(3)
    cuda.cudaSetDevice(1)
    address, stream = cuda.array(0), cuda.stream()
    cuda.cudaMemcpyAsync(address, ctypes.addressof(values), 4, HOST_TO_DEVICE, stream)
    cuda.cudaSetDevice(0)
    cuda.cudaFreeHost(ctypes.addressof(values))
    cuda.cudaStreamSynchronize(stream)
    assert cuda.read(address, 1) == [3]
    assert cuda.reports() == []


# Modules and launches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ptx", "device", "number"),
    [
        (b".version 8.0\n.target sm_90\n", 1, NO_BINARY),
        (b".version 8.0\n.target sm_80a\n", 0, NO_BINARY),
        (b".version 9.9\n.target sm_75\n", 0, NEWER_PTX),
        (b".version 8.0\n.target sm_75\nnonsense", 0, INVALID_PTX),
        (b"\x7fELF\0", 0, NO_BINARY),
    ],
    ids=["newer device", "other architecture", "newer PTX", "not translated", "machine code"],
)
@in_a_child
def test_a_module_is_refused(cuda, ptx, device, number):
    cuda.cudaSetDevice(device)
    refused(number, cuda.made, "cuModuleLoadData", ptx)


@in_a_child
def test_each_load_of_a_module_has_variables_of_its_own(cuda):
    modules = [cuda.made("cuModuleLoadData", PTX) for _ in range(2)]
    cuda.launch(cuda.function("count", modules[0]))
    cuda.cudaDeviceSynchronize()
    counters = [cuda.made("cuModuleGetGlobal_v2", None, each, b"counter") for each in modules]
    assert [cuda.read(each, 1) for each in counters] == [[8], [7]]
    assert cuda.read(cuda.made("cuModuleGetGlobal_v2", None, modules[0], b"zeros"), 2) == [0, 0]
    refused(NOT_FOUND, cuda.function, "nothing", modules[0])


@in_a_child
def test_a_thread_has_no_context_before_it_calls_the_runtime(cuda):
    answers, of_another_thread = [], cuda.made("cuModuleLoadData", PTX)

    def ask():
        module = ctypes.c_void_p()
        answers.append(cuda.made("cuCtxGetCurrent"))
        answers.append(cuda.library.cuModuleLoadData(ctypes.byref(module), PTX))
        answers.append(cuda.library.cuModuleUnload(ctypes.c_uint64(of_another_thread)))
        cuda.malloc(1)
        answers.append(cuda.made("cuCtxGetCurrent") != 0)
        answers.append(cuda.library.cuModuleLoadData(ctypes.byref(module), PTX))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join(STUCK)
    assert answers == [0, INVALID_CONTEXT, 0, True, 0]


@pytest.mark.parametrize(
    ("kernel", "shape"),
    [
        ("add", {"grid": (0, 1, 1)}),
        ("add", {"grid": (1, 65536, 1)}),
        ("add", {"block": (0, 1, 1)}),
        ("add", {"block": (1025, 1, 1)}),
        ("add", {"block": (1, 1, 65)}),
        ("add", {"block": (64, 32, 1)}),
        ("add", {"shared": (48 << 10) + 1}),
        ("scale", {"block": (65, 1, 1)}),
        ("scale", {"shared": (8 << 10) + 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(f"{k}={v}" for k, v in value.items()).replace(" ", ""),
)
@in_a_child
def test_a_launch_is_refused(cuda, kernel, shape):
    address = cuda.array(1)
    refused(INVALID_VALUE, cuda.launch, kernel, address, 1, **shape)
    assert cuda.pending() == 0


@in_a_child
def test_more_shared_memory_must_be_opted_in_to(cuda):
    address, kernel, dynamic_shared = cuda.array(1), cuda.function("scale"), 8
    refused(INVALID_VALUE, cuda.cuFuncSetAttribute, kernel, dynamic_shared, (187 << 10) + 1)
    cuda.cuFuncSetAttribute(kernel, dynamic_shared, 187 << 10)
    cuda.launch("scale", address, 3, shared=187 << 10)
    assert cuda.read(address, 1) == [3]


@in_a_child
def test_a_function_and_a_stream_of_another_device_are_refused(cuda):
    address, function, stream = cuda.array(1), cuda.function("add"), cuda.stream()
    cuda.cudaSetDevice(1)
    refused(INVALID_HANDLE, cuda.launch, function, address, 1)
    other = cuda.function("add", cuda.made("cuModuleLoadData", PTX))
    refused(INVALID_HANDLE, cuda.launch, other, address, 1, stream=stream)
    event = cuda.made("cudaEventCreateWithFlags", 0)
    refused(INVALID_HANDLE, cuda.cudaEventRecord, event, stream)


@in_a_child
def test_occupancy_is_limited_by_threads_and_by_shared_memory(cuda):
    def blocks(kernel, threads, shared):
        function = cuda.function(kernel)
        return cuda.made("cuOccupancyMaxActiveBlocksPerMultiprocessor", function, threads, shared, type=ctypes.c_int)

    assert blocks("add", 256, 0) == 8
    assert blocks("add", 32, 0) == 32
    assert blocks("add", 32, 40 << 10) == 228 // 41
    assert blocks("scale", 64, 0) == 228 // 41


@in_a_child
def test_launches_are_recorded(cuda):
    address, stream = cuda.array(*range(12)), cuda.stream()
    cuda.launch("add", address, 1, grid=(2, 1, 1), block=(3, 1, 1), shared=16, stream=stream)
    row = LaunchRow()
    assert cuda.library.software_cuda_launch_count() == 1
    assert cuda.library.software_cuda_launch(ctypes.c_uint64(0), ctypes.byref(row)) == 1
    assert (row.kernel, row.device, row.stream, row.dynamic_shared) == (b"add", 0, stream, 16)
    assert (list(row.grid), list(row.block)) == ([2, 1, 1], [3, 1, 1])
    cuda.software_cuda_clear_launches()
    assert cuda.library.software_cuda_launch_count() == 0
