"""Plans: the launches of a request, worked out and priced before anything is compiled, then bound to a device and run.

A plan knows kernels, layouts and names of arrays, and no operator. `run` is the only place where kernels are launched: on CuPy
arrays, on torch tensors and in the emulator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import itemgetter, mod
from typing import Any, NamedTuple

import numpy as np

from .._sharing import CachedProperty
from .call import NOWHERE, Call, Extents, Pointer
from .device import import_cupy
from .launcher import bind
from .limits import LARGEST_GRID
from .streams import is_capturing

WORKSPACE = "workspace"  # the buffer that a plan's own volumes are in


class Launch(NamedTuple):
    """A kernel bound to its device, its grid and its scalars, and a function that takes its pointers out of all of the plan's."""

    start: Callable[[tuple[int, ...], Any], None]
    own: Callable[[Sequence[int]], tuple[int, ...]]


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
        The element size in bytes of each array, whose address must be a multiple of it, in the order of a request's layouts.
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
        return tuple(call for call in self.make_calls() if not call.is_empty)

    @CachedProperty
    def launches(self) -> tuple[Launch, ...]:
        """The calls, compiled and bound to the device. A kernel loops over the blocks that a grid cannot hold."""
        places = {pointer: place for place, pointer in enumerate(self._different_pointers)}
        return tuple(
            Launch(
                bind(call.kernel, self.device, _grid(call.blocks), call.threads, call.shared, call.scalars),
                _taking([places[pointer] for pointer in call.pointers]),
            )
            for call in self.calls
        )

    @CachedProperty
    def pointers(self) -> tuple[tuple[int, int], ...]:
        """The different pointers of all launches, each with the place of its buffer and its offset there in bytes.

        The buffers are the arrays in the order of `itemsizes`, `NOWHERE` and the workspace.
        """
        places = {name: place for place, name in enumerate((*self.itemsizes, NOWHERE.buffer, WORKSPACE))}
        return tuple((places[pointer.buffer], pointer.offset) for pointer in self._different_pointers)

    @CachedProperty
    def _different_pointers(self) -> tuple[Pointer, ...]:
        return tuple(dict.fromkeys(pointer for call in self.calls for pointer in call.pointers))

    def run(self, arrays: Mapping[str, Any]) -> None:
        """Run on CuPy arrays, on CuPy's current stream; the workspace comes from CuPy."""
        run(self, [arrays[name].data.ptr for name in self.itemsizes], allocate_from_cupy)


def run(plan: Plan, addresses: Sequence[int], allocate: Callable[[int], tuple[int, Any]], stream: Any = None) -> None:
    """Launch a plan on the arrays that begin at these addresses. A model runs this at every call: it does as little as possible.

    Parameters
    ----------
    plan
        The plan.
    addresses
        The address of each array, in the order of the plan's ``itemsizes``.
    allocate
        Takes a number of bytes and returns the address of so much memory and an object that keeps it allocated.
    stream
        An object whose ``ptr`` is a stream's address; None is CuPy's current stream.

    Raises
    ------
    ValueError
        An array does not begin at a multiple of its element size.
    """
    if any(map(mod, addresses, plan.itemsizes.values())):
        raise _misaligned(plan, addresses)
    launches = plan.launches  # compiled before memory is taken
    buffers, keeper = [*addresses, 0], None  # 0 is the address of `NOWHERE`
    if plan.workspace:
        workspace, keeper = allocate(plan.workspace)
        buffers.append(workspace)
    pointers = [buffers[place] + offset for place, offset in plan.pointers]
    for start, own in launches:
        start(own(pointers), stream)
    del keeper  # the allocators are ordered by stream: memory may be freed after the launches are queued


def _grid(blocks: Extents) -> Extents:
    """Return the grid of so many blocks; a kernel with a single number of them loops over those beyond the largest grid."""
    return blocks if isinstance(blocks, tuple) else min(blocks, LARGEST_GRID)


def _taking(places: Sequence[int]) -> Callable[[Sequence[int]], tuple[int, ...]]:
    """Return a function that takes the elements at some places; `itemgetter` would return a single one without a tuple."""
    return itemgetter(*places) if len(places) > 1 else lambda elements: tuple([elements[place] for place in places])


def _misaligned(plan: Plan, addresses: Sequence[int]) -> ValueError:
    """Return the error for the first array that does not begin at a multiple of its element size."""
    found = zip(plan.itemsizes.items(), addresses, strict=True)
    name, itemsize, address = next((name, size, at) for (name, size), at in found if at % size)
    return ValueError(f"{name} must begin at a multiple of its {itemsize} bytes, got address {address:#x}")


def allocate_from_cupy(size: int) -> tuple[int, Any]:
    """Allocate so many bytes from CuPy; return their address and the array that keeps them."""
    memory = import_cupy().empty(size, np.uint8)
    keep_for_replays(memory)
    return memory.data.ptr, memory


_captured: list[Any] = []  # arrays, and memory of arrays


@contextmanager
def memory_for_replays() -> Iterator[None]:
    """Return a context in which the memory of every array that CuPy makes is kept, if a CUDA graph is being captured.

    A call makes and drops arrays whose memory would go to other arrays, into which a replay would write.

    Raises
    ------
    RuntimeError
        See `keep_for_replays`.
    """
    if not is_capturing():
        yield
        return
    cuda = import_cupy().cuda
    allocate = cuda.get_allocator()

    def kept(size: int) -> Any:
        memory = allocate(size)
        _captured.append(memory)
        return memory

    with cuda.using_allocator(kept):
        yield


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
