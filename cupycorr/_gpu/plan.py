"""Plans: the launches of a request, worked out and priced before anything is compiled, then bound to a device and run.

A plan knows kernels, layouts and names of arrays, and no operator. `run` is the only place where kernels are launched: on CuPy
arrays, on torch tensors and in the emulator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._sharing import CachedProperty
from .call import NOWHERE, Call, Pointer
from .device import import_cupy
from .launcher import bind
from .limits import LARGEST_GRID
from .streams import is_capturing

WORKSPACE = "workspace"  # the buffer that a plan's own volumes are in


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel bound to its device, its grid and its scalars, and the pointers that a run gives addresses to."""

    start: Callable[[tuple[int, ...], Any], None]
    pointers: tuple[Pointer, ...]


@dataclass(frozen=True)
class Plan:
    """The launches of a request.

    Attributes
    ----------
    algorithm
        The name of the algorithm whose kernels run, which may be another one than the variant's.
    description
        The algorithm with its tiles, in words.
    seconds
        The time by the cost model.
    workspace
        Bytes of memory that the launches share beside the arrays.
    make_calls
        Return the calls in order. They are made when they are first needed: most plans are only compared by their seconds.
    device
        CUDA's number of the device.
    itemsizes
        The element size in bytes of each array, whose address must be a multiple of it.
    """

    algorithm: str
    description: str
    seconds: float
    workspace: int
    make_calls: Callable[[], Iterable[Call]] = field(repr=False, compare=False)
    device: int = 0
    itemsizes: Mapping[str, int] = field(default_factory=dict, compare=False)

    @CachedProperty
    def calls(self) -> tuple[Call, ...]:
        """The calls in order, without those that have no blocks."""
        return tuple(call for call in self.make_calls() if call.blocks)

    @CachedProperty
    def launches(self) -> tuple[Launch, ...]:
        """The calls, compiled and bound to the device. A kernel loops over the blocks that a grid cannot hold."""
        return tuple(
            Launch(
                bind(call.kernel, self.device, min(call.blocks, LARGEST_GRID), call.threads, call.shared, call.scalars),
                call.pointers,
            )
            for call in self.calls
        )

    def run(self, arrays: Mapping[str, Any]) -> None:
        """Run on CuPy arrays, on CuPy's current stream; the workspace comes from CuPy."""
        run(self, {name: array.data.ptr for name, array in arrays.items()}, allocate_from_cupy)


def run(plan: Plan, addresses: Mapping[str, int], allocate: Callable[[int], tuple[int, Any]], stream: Any = None) -> None:
    """Launch a plan on the arrays that begin at these addresses.

    Parameters
    ----------
    plan
        The plan.
    addresses
        The address of each array.
    allocate
        Takes a number of bytes and returns the address of so much memory and an object that keeps it allocated.
    stream
        An object whose ``ptr`` is a stream's address; None is CuPy's current stream.

    Raises
    ------
    ValueError
        An array does not begin at a multiple of its element size.
    """
    for name, itemsize in plan.itemsizes.items():
        if addresses[name] % itemsize:
            raise ValueError(f"{name} must begin at a multiple of its {itemsize} bytes, got address {addresses[name]:#x}")
    launches = plan.launches  # compiled before memory is taken
    buffers, keeper = {**addresses, NOWHERE.buffer: 0}, None
    if plan.workspace:
        buffers[WORKSPACE], keeper = allocate(plan.workspace)
    for launch in launches:
        launch.start(tuple([buffers[pointer.buffer] + pointer.offset for pointer in launch.pointers]), stream)
    del keeper  # the allocators are ordered by stream: memory may be freed after the launches are queued


def allocate_from_cupy(size: int) -> tuple[int, Any]:
    """Allocate so many bytes from CuPy; return their address and the array that keeps them."""
    memory = import_cupy().empty(size, np.uint8)
    keep_for_replays(memory)
    return memory.data.ptr, memory


_captured: list[Any] = []


def keep_for_replays(array: Any) -> None:
    """Never free a CuPy array that a CUDA graph works in, if one is being captured.

    A graph replays with the captured addresses, and there is no sign when it is destroyed.

    Raises
    ------
    RuntimeError
        The current stream is the default one, and a capture forbids its use.
    """
    if is_capturing():
        _captured.append(array)
