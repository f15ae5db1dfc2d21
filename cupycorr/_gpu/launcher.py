"""A compiled kernel bound to everything about its launches that does not change: device, grid, block, shared memory, scalars.

A launch goes to CuPy's current stream of the device, asked for at that moment, or to the stream it is given, and leaves the
current device as it was. It checks nothing and does as little in Python as it can: the number, order and types of the arguments
are the caller's duty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import compiler
from . import device as devices
from .limits import LARGEST_GRID
from .source import Kernel


def bind(kernel: Kernel, device: int, grid: int, block: int, shared: int, scalars: Sequence[Any] = ()) -> Callable[..., None]:
    """Compile a kernel and return what launches it.

    Parameters
    ----------
    kernel
        What to launch.
    device
        CUDA's number of the device that holds the data.
    grid, block
        Number of blocks, and of threads in each.
    shared
        Bytes of dynamic shared memory.
    scalars
        NumPy scalars that end the list of arguments at every launch. Given here, they cost a launch 0.02 us each, not 0.2.

    Returns
    -------
    callable
        Takes the tuple of the arguments that come before the scalars: Python integers for pointers and for 64-bit integers, NumPy
        scalars for everything else. Then the stream, unless it is CuPy's current one: an object whose ``ptr`` is its address.

    Raises
    ------
    ValueError
        If there is nothing to launch, or more than a grid can hold.
    ImportError, RuntimeError
        As `compiler.function`; a launch that the driver refuses is a RuntimeError, too.
    """
    if not 0 < grid <= LARGEST_GRID or block < 1:
        raise ValueError(f"grid must lie in 1..{LARGEST_GRID} and block must be positive, got grid={grid}, block={block}")
    loaded = compiler.function(kernel, device, shared)
    runtime = devices.import_cupy().cuda.runtime
    current, make_current = runtime.getDevice, runtime.setDevice
    with compiler.current(device):
        start = loaded.kernel  # of this device, without RawKernel's look-up
    blocks, threads, constants = (grid, 1, 1), (block, 1, 1), _prepared(scalars)

    def launch(arguments: tuple[Any, ...], stream: Any = None) -> None:
        before = current()
        if before != device:
            make_current(device)
        try:
            start(blocks, threads, arguments + constants, shared, stream)
        except RuntimeError as error:
            what = f"kernel {kernel.entry} of {kernel.file} on device {device}"
            size = f"grid {grid}, block {block}, {shared} bytes of dynamic shared memory"
            raise RuntimeError(f"cannot launch {what} ({size}): {error}") from error
        finally:
            if before != device:
                make_current(before)

    return launch


def _prepared(scalars: Sequence[Any]) -> tuple[Any, ...]:
    """Scalars as CuPy otherwise wraps them at every launch. The class is its own: where it is gone, they stay as they are."""
    try:
        from cupy._core._scalar import CScalar
    except ImportError:
        return tuple(scalars)
    return tuple(CScalar(scalar) for scalar in scalars)
