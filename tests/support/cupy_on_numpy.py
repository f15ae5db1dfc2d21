"""CuPy's face on NumPy arrays: the GPU path of the package, from the front door to the launch, without a GPU.

`ndarray` is a NumPy array that says it is CuPy's, on a device; the module hands everything else to NumPy. What a launch does is
not here: tests put the emulator in its place, or something that must not be called.
"""

import functools
import sys
import types
from contextlib import contextmanager

import numpy as np

from cupycorr import _dispatch
from cupycorr._gpu import device as devices
from cupycorr._gpu import plan


class Device:
    """A device's number, and the current one of them."""

    current = 0

    def __init__(self, index):
        self.id = index
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
        return types.SimpleNamespace(ptr=self.__array_interface__["data"][0])


ndarray.__module__ = "cupy"


def on_cupy(array, device=0):
    """The same memory as a CuPy array of a device."""
    with Device(device):
        return np.asarray(array).view(ndarray)


class _Module(types.ModuleType):
    """A NumPy module whose functions return CuPy arrays."""

    def __init__(self, name, module):
        super().__init__(name)
        self._module = module

    def __getattr__(self, name):
        found = getattr(self._module, name)
        if isinstance(found, types.ModuleType):
            return _Module(f"cupy.{name}", found)
        if isinstance(found, type) or not callable(found):
            return found

        @functools.wraps(found)
        def function(*arguments, **options):
            result = found(*arguments, **options)
            return on_cupy(result, Device.current) if isinstance(result, np.ndarray) else result

        return function


class Stream:
    """The current stream."""

    capturing = False

    def is_capturing(self):
        return Stream.capturing


def module():
    """The module ``cupy``."""
    made = _Module("cupy", np)
    made.ndarray = ndarray
    made.from_dlpack = lambda array: on_cupy(array.memory)
    made.cuda = types.SimpleNamespace(Device=Device, get_current_stream=Stream)
    return made


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
    """CuPy is this module, every device has `FACTS`, and ``bind`` launches."""
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "cupy", module())
        patched.setattr(_dispatch, "facts", lambda index: FACTS)
        patched.setattr(plan, "bind", bind)
        forget_plans()
        yield
    forget_plans()


def forget_plans():
    """Plans hold what launches them."""
    _dispatch._planned.cache_clear()
