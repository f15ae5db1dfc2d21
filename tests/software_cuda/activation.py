"""Activate the software CUDA in this process, and in every Python process that it starts.

A process must be activated before it imports CuPy. Child processes inherit two environment variables: CUPYCORR_SOFTWARE_CUDA
holds the names of the devices, and PYTHONPATH begins with the folder `children`. The `sitecustomize` there activates a process at
the moment when it imports CuPy, and runs the `sitecustomize` that the process would have had. A child that is forked has what its
parent had. Not reached are children without these variables, and interpreters that ignore them (`python -I` and `python -E`).
"""

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import threading
from pathlib import Path

from . import builder, control, devices, preparation

VARIABLE = "CUPYCORR_SOFTWARE_CUDA"
CHILDREN = Path(__file__).resolve().parent / "children"
STAND_INS = {  # modules of CuPy that call code of real devices -> ours
    "cupy.cuda.cufft": "cufft",
    "cupy.cuda.thrust": "thrust",
    "cupy_backends.cuda.libs.cublas": "cublas",
}
RUNTIME = preparation.RUNTIME.replace("/", ".")

_lock = threading.Lock()


def _after_cupy():
    """Do what must follow the import of CuPy."""
    for name in STAND_INS:
        importlib.import_module(name)  # before somebody asks CuPy for it, which would look for NVIDIA's library first
    control.follow_the_memory_pool()


class _StandIn:
    """The loader of a module of CuPy that is one of ours."""

    def __init__(self, name):
        self.name = name

    def create_module(self, spec):
        return importlib.import_module(f"{__package__}.stand_ins.{self.name}")

    def exec_module(self, module):
        pass


class _Loader:
    """The loader of a module that calls a function once the module is imported."""

    def __init__(self, loader, then):
        self.loader, self.then = loader, then

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def exec_module(self, module):
        self.loader.exec_module(module)
        self.then()


class _Finder:
    """Finds ours for a few modules of CuPy, and looks after CuPy's memory once CuPy is imported."""

    def __init__(self, runtime, names):
        self.runtime, self.software_cuda_devices = runtime, names

    def find_spec(self, name, path=None, target=None):
        if name == RUNTIME:
            return importlib.util.spec_from_file_location(name, self.runtime)
        if name in STAND_INS:
            return importlib.machinery.ModuleSpec(name, _StandIn(STAND_INS[name]))
        if name == "cupy":
            spec = self._installed(name, path, target)
            if spec is not None:
                spec.loader = _Loader(spec.loader, _after_cupy)
            return spec
        return None

    def _installed(self, name, path, target):
        """Return the spec that the other finders have."""
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                return spec
        return None


def active():
    """Return the names of the devices that this process has, or None if it is not activated.

    The finder knows them, because a process may have imported this module twice: by its own name, and by that of `children`.
    """
    return next((finder.software_cuda_devices for finder in sys.meta_path if hasattr(finder, "software_cuda_devices")), None)


def environment(names=("H200",)):
    """Return the environment variables by which Python processes are activated that inherit them."""
    # Kernels of real devices in a cache of CuPy's must not meet ours. A child may choose another folder.
    prepared = preparation.prepare()
    inherited = VARIABLE in os.environ
    cache = os.environ.get("CUPY_CACHE_DIR") if inherited else None
    path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != str(CHILDREN)]
    return {
        VARIABLE: ",".join(names),
        "PYTHONPATH": os.pathsep.join([str(CHILDREN), *path]),
        "CUPY_CACHE_DIR": cache or str(prepared.kernels),
        "CUPY_COMPILE_WITH_PTX": "1",  # the library translates PTX; what NVRTC makes by default is code of a real device
        "CUPY_ACCELERATORS": "",  # CuPy's CUB is code of real devices
    }


def activate(names=("H200",)):
    """Give this process, and the Python processes that it starts, imagined devices of these kinds.

    Raises
    ------
    RuntimeError
        If CuPy is imported already, or if the process has other devices.
    preparation.CannotPrepareError
        If the software CUDA cannot be prepared; the text is the reason.
    """
    names = tuple(names)
    chosen = devices.named(names)
    with _lock:
        present = active()
        if present is not None:
            if present != names:
                raise RuntimeError(f"this process has the devices {', '.join(present)}, got {', '.join(names)}")
            return
        if "cupy" in sys.modules or RUNTIME in sys.modules:
            raise RuntimeError("the software CUDA must be activated before CuPy is imported")
        prepared = preparation.prepare()
        os.environ.update(environment(names))
        control.load(prepared.library)
        for device in chosen:
            control.add_device(device)
        control.set_builder(builder.builder(prepared))
        others = [finder for finder in sys.meta_path if not hasattr(finder, "activates_software_cuda")]
        sys.meta_path[:] = [_Finder(prepared.runtime, names), *others]


def activate_inherited():
    """Activate this process with the devices that its parent gave it."""
    if active() is None:
        activate(devices.parsed(os.environ[VARIABLE]))
