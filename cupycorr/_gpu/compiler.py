"""Kernels compiled and loaded through CuPy, each once per device and process.

CuPy compiles with NVRTC and keeps the binaries on disk for later processes. It adds to our options the folders of its own and of
CUDA's headers, ``-ftz=true`` (a denormal float32 counts as zero), ``-arch=sm_XX`` of the current device, and
``--device-as-default-execution-space``. An error names the lines that it comes from, and the next call tries again.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import device as devices
from . import source
from .source import Kernel
from .streams import message

_STANDARD = "--std=c++17"
_ERRORS_SHOWN = 5

# The lock guards the table. A thread that finds no entry compiles without the lock, while others wait for the entry it made.
_lock = threading.Lock()
_functions: dict[tuple[Kernel, int], Future[Any]] = {}


def _forget_kernels() -> None:
    """Clear the table in a forked child: it has no thread that would complete an entry, and cannot use its parent's kernels."""
    global _lock
    _lock = threading.Lock()
    _functions.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_kernels)


def function(kernel: Kernel, device: int, shared: int = 0) -> Any:
    """Return the loaded kernel, compiled at the first call and allowed so much dynamic shared memory.

    Parameters
    ----------
    kernel
        The kernel to load.
    device
        CUDA's number of the device to load it on, which need not be the current one.
    shared
        Bytes of dynamic shared memory of its launches.

    Returns
    -------
    cupy.RawKernel

    Raises
    ------
    ImportError
        If CuPy cannot be imported.
    RuntimeError
        If there is no such device, it has too little shared memory, or the kernel cannot be compiled or loaded. The next call
        tries again.
    """
    loaded = None
    while loaded is None:
        loaded = _load_once(kernel, device)
    if shared:
        _allow(loaded, kernel, device, shared)
    return loaded


def _load_once(kernel: Kernel, device: int) -> Any:
    """Return the kernel, which one thread loads while others wait; None where that thread was interrupted and another must."""
    key = (kernel, device)
    found = _functions.get(key)
    if found is None:
        mine: Future[Any] = Future()
        try:
            with _lock:
                found = _functions.setdefault(key, mine)
            if found is mine:
                _load_into(mine, kernel, device)
        finally:  # Control-C is raised in this thread only, and may come at any place
            if found in (None, mine) and not mine.done():
                _give_up(key, mine)
    try:
        return found.result()
    except CancelledError:
        return None


def _load_into(entry: Future[Any], kernel: Kernel, device: int) -> None:
    try:
        entry.set_result(_load(kernel, device))
    except Exception as error:
        del _functions[kernel, device]
        entry.set_exception(error)


def _give_up(key: tuple[Kernel, int], entry: Future[Any]) -> None:
    """Wake the threads that wait for an entry that nobody will complete."""
    if _functions.get(key) is entry:
        del _functions[key]
    entry.cancel()


def _load(kernel: Kernel, device: int) -> Any:
    architecture = devices.facts(device).architecture
    cupy = devices.import_cupy()
    text, options = source.code(kernel), _options(kernel)
    with _as_runtime_error(kernel, architecture, options), current(device):
        return cupy.RawModule(code=text, options=options, backend="nvrtc").get_function(kernel.entry)


def _allow(loaded: Any, kernel: Kernel, device: int, shared: int) -> None:
    """Opt in to so much dynamic shared memory: above 48 KiB a kernel must be told the largest amount that a launch needs."""
    with _lock, current(device):
        if shared <= loaded.max_dynamic_shared_size_bytes:
            return
        needed, there = shared + loaded.shared_size_bytes, devices.facts(device)
        if needed > there.shared_memory:
            raise RuntimeError(
                f"kernel {kernel.entry} of {kernel.file} needs {needed} bytes of shared memory in a block, "
                f"device {device} ({there.name}) has {there.shared_memory}"
            )
        loaded.max_dynamic_shared_size_bytes = shared


@contextmanager
def current(device: int) -> Iterator[None]:
    """Make a device the current one, and restore the one before it at the end."""
    runtime = devices.import_cupy().cuda.runtime
    before = runtime.getDevice()
    runtime.setDevice(device)
    try:
        yield
    finally:
        runtime.setDevice(before)


def _options(kernel: Kernel) -> tuple[str, ...]:
    return (_STANDARD, *kernel.options())


def cache_folder() -> Path:
    """Return the folder where CuPy keeps compiled kernels."""
    return Path(os.environ.get("CUPY_CACHE_DIR") or os.path.expanduser("~/.cupy/kernel_cache"))


# Errors --------------------------------------------------------------------------------------------------------------


@contextmanager
def _as_runtime_error(kernel: Kernel, architecture: str, options: tuple[str, ...]) -> Iterator[None]:
    """Turn a failure to compile, to store or to load into one RuntimeError that names the kernel."""
    compile_error = devices.import_cupy().cuda.compiler.CompileException
    what = f"kernel {kernel.entry} of {kernel.file} for {architecture}"
    try:
        yield
    except compile_error as error:
        errors = "\n".join(_first_errors(error.get_message()))
        raise RuntimeError(f"cannot compile {what}:\n{errors}\noptions: {shlex.join(options)}") from error
    except RuntimeError as error:
        raise RuntimeError(f"cannot load {what}: {message(error)}\noptions: {shlex.join(options)}") from error
    except OSError as error:
        raise RuntimeError(f"cannot store {what}: {error}. {devices.CUPY_CACHE_REMEDY}") from error


def _first_errors(log: str) -> list[str]:
    """Return the first errors in NVRTC's log, each with the line that it points at, or the whole log if it names no error."""
    lines = [line.rstrip() for line in log.strip("\0 \n").splitlines() if line.strip()]
    begins = [number for number, line in enumerate(lines) if re.search(r"\): (catastrophic )?error", line)]
    if not begins:
        return lines
    end = begins[_ERRORS_SHOWN] if len(begins) > _ERRORS_SHOWN else len(lines)
    more = [f"... {len(begins) - _ERRORS_SHOWN} more errors"] if len(begins) > _ERRORS_SHOWN else []
    return lines[begins[0] : end] + more


# Without a device ----------------------------------------------------------------------------------------------------


def cubin(kernel: Kernel, architecture: str, *more: str) -> tuple[bytes, str]:
    """Return the binary that CuPy would load on a device, compiled without one, and the compiler's log.

    Parameters
    ----------
    kernel
        The kernel to compile.
    architecture
        A device's architecture, such as ``"sm_90"``.
    *more
        Further options, such as ``"--ptxas-options=-v"``.
    """
    return _compiled(kernel, architecture, more, "cubin")


def ptx(kernel: Kernel, architecture: str, *more: str) -> str:
    """Return the PTX that the binary for an architecture is made from."""
    return _compiled(kernel, architecture.replace("sm_", "compute_"), more, "ptx")[0].decode()


def _compiled(kernel: Kernel, architecture: str, more: tuple[str, ...], method: str) -> tuple[bytes, str]:
    """Compile as CuPy does; its public functions take the architecture from a device, and there is none here."""
    cupy = devices.import_cupy()
    from cupy._core.core import assemble_cupy_compiler_options

    options = _options(kernel)
    every = (
        *assemble_cupy_compiler_options(options),
        "-ftz=true",
        *more,
        f"-arch={architecture}",
        "--device-as-default-execution-space",
    )
    log = io.StringIO()
    with _as_runtime_error(kernel, architecture, options):
        program = cupy.cuda.compiler._NVRTCProgram(source.code(kernel), f"{kernel.entry}.cu", method=method)
        code, _ = program.compile(every, log)
    return code, log.getvalue().strip("\0")
