"""A compiled kernel bound to everything about its launches that does not change: device, grid, block, shared memory, scalars.

A launch goes to the stream it is given, or to CuPy's current stream of the device at that moment, and leaves the current device
as it was. It does as little in Python as possible and checks nothing: the caller must pass arguments of the right number, order
and types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import compiler
from . import device as devices
from .call import Extents
from .limits import LARGEST_GRID, LARGEST_GRID_YZ
from .source import Kernel
from .streams import message


def bind(
    kernel: Kernel, device: int, grid: Extents, block: Extents, shared: int, scalars: Sequence[Any] = ()
) -> Callable[..., None]:
    """Compile a kernel and return a function that launches it.

    Parameters
    ----------
    kernel
        The kernel to launch.
    device
        CUDA's number of the device that holds the arrays.
    grid, block
        The number of blocks, and of threads in each.
    shared
        Bytes of dynamic shared memory.
    scalars
        NumPy scalars, which are the last arguments of every launch. Prepared here, each costs a launch 0.02 us instead of 0.2.

    Returns
    -------
    callable
        Takes the tuple of the arguments before the scalars (Python integers for pointers and 64-bit integers, NumPy scalars for
        everything else) and the stream, unless it is CuPy's current one: an object whose ``ptr`` is the stream's address.

    Raises
    ------
    ValueError
        There is nothing to launch, or more blocks than a grid can hold.
    ImportError, RuntimeError
        As `compiler.function`; a launch that the driver refuses is also a RuntimeError.
    """
    blocks, threads = _three(grid), _three(block)
    largest = (LARGEST_GRID, LARGEST_GRID_YZ, LARGEST_GRID_YZ)
    if not all(0 < count <= most for count, most in zip(blocks, largest, strict=True)) or min(threads) < 1:
        limits = f"1..{LARGEST_GRID} along x and in 1..{LARGEST_GRID_YZ} along y and z"
        raise ValueError(f"grid must lie in {limits} and block must be positive, got grid={grid}, block={block}")
    loaded = compiler.function(kernel, device, shared)
    runtime = devices.import_cupy().cuda.runtime
    current, make_current = runtime.getDevice, runtime.setDevice
    with compiler.current(device):
        start = loaded.kernel  # of this device, without RawKernel's look-up
    constants = _prepared(scalars)

    def launch(arguments: tuple[Any, ...], stream: Any = None) -> None:
        if (before := current()) != device:
            make_current(device)
        try:
            start(blocks, threads, arguments + constants, shared, stream)
        except RuntimeError as error:
            what = f"kernel {kernel.entry} of {kernel.file} on device {device}"
            size = f"grid {grid}, block {block}, {shared} bytes of dynamic shared memory"
            raise RuntimeError(f"cannot launch {what} ({size}): {message(error)}") from error
        finally:
            if before != device:
                make_current(before)

    return launch


def _three(extents: Extents) -> tuple[int, int, int]:
    return extents if isinstance(extents, tuple) else (extents, 1, 1)


def _prepared(scalars: Sequence[Any]) -> tuple[Any, ...]:
    """Wrap scalars as CuPy would at every launch. Its class is not public: without it, scalars stay as they are."""
    try:
        from cupy._core._scalar import CScalar
    except ImportError:
        return tuple(scalars)
    return tuple(CScalar(scalar) for scalar in scalars)
