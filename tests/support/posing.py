"""CPU tensors in the place of CUDA tensors, which torch cannot have on the software CUDA."""

import weakref
from collections import Counter

import pytest


class Posing:
    """CPU tensors that pose as tensors of a device of the software CUDA; `stream` is torch's current stream there."""

    def __init__(self, software_cuda, stream):
        self.software_cuda, self.stream = software_cuda, stream
        self.tensors = Counter()  # by the address of their storage

    def address(self, value):
        """Register a tensor's memory for as long as a tensor of it lives; return the tensor's address."""
        storage = value.untyped_storage()
        begin, size = storage.data_ptr(), storage.nbytes()
        if size and not self.tensors[begin]:
            self.software_cuda.register_memory(0, begin, size)
        self.tensors[begin] += 1
        weakref.finalize(value, self.forget, begin, size)
        return value.data_ptr()

    def forget(self, begin, size):
        self.tensors[begin] -= 1
        if size and not self.tensors[begin]:
            self.software_cuda.unregister_memory(begin, size)

    def launched(self):
        """Return the launches since the log was cleared, as (name of the kernel, address of the stream)."""
        return [(launch.kernel, launch.stream) for launch in self.software_cuda.launches()]

    def clear(self):
        """Forget the launches until now."""
        self.software_cuda.forget()


def new_stream():
    """Return a stream that the default stream does not wait for."""
    return pytest.importorskip("cupy").cuda.Stream(non_blocking=True)
