"""Arrays of a device as arrays of the host and back, in the order of the current stream.

The stand-ins wait for their stream when they read, so they cannot be captured into a graph where CUDA's libraries can.
"""

import numpy as np


def read(address, dtype, count):
    """Return ``count`` elements that lie at an address of the device, once the stream has come to this point."""
    from cupy.cuda import get_current_stream, runtime

    array = np.empty(count, dtype)
    stream = get_current_stream()
    runtime.memcpyAsync(array.ctypes.data, address, array.nbytes, runtime.memcpyDeviceToHost, stream.ptr)
    stream.synchronize()
    return array


def write(address, array):
    """Copy an array of the host to an address of the device."""
    from cupy.cuda import get_current_stream, runtime

    array = np.ascontiguousarray(array)
    runtime.memcpyAsync(address, array.ctypes.data, array.nbytes, runtime.memcpyHostToDevice, get_current_stream().ptr)
