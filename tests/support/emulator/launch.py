"""Launches of kernels on the CPU: `Emulator.bind` stands in for the launcher's, and arrays are lent to launches by name.

The machine itself is in machine.cpp and memory.cpp, the structures here are those of state.hpp. A process runs one launch at a
time.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.lib.stride_tricks import as_strided

from cupycorr._gpu import source

from . import build
from .build import EmulationError

ORDERS = ("forward", "reverse", "odd-even")  # in which threads, warps and blocks run, as enum Order has them

STEPS = 2 * 10**9  # of a launch: some seven times as many as the longest of the suite takes

_FRAMES = 24
_one_launch = Lock()


class _Index(ctypes.Structure):
    _fields_ = [(axis, ctypes.c_uint) for axis in "xyz"]


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("begin", ctypes.c_void_p),
        ("end", ctypes.c_void_p),
        ("member", ctypes.c_void_p),
        ("written", ctypes.c_void_p),
        ("touched", ctypes.c_void_p),
        ("label", ctypes.c_char_p),
        ("poisoned", ctypes.c_int),
    ]


@dataclass(frozen=True, slots=True)
class Account:
    """The counts of one launch: accesses and their bytes, barriers of blocks, warp-wide calls of lanes, fused multiply-adds.

    An asynchronous copy counts as a load and a store, and so does an atomic addition.
    """

    global_loads: int
    global_load_bytes: int
    global_stores: int
    global_store_bytes: int
    shared_loads: int
    shared_load_bytes: int
    shared_stores: int
    shared_store_bytes: int
    barriers: int
    collectives: int
    multiply_adds: int


class _Account(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in Account.__dataclass_fields__]


_KINDS = ("global load", "global store", "shared load", "shared store")


@dataclass(frozen=True, slots=True)
class Traffic:
    """The transactions of a launch at one place of the kernel, counted for each warp.

    A transaction is a sector of 32 bytes of global memory, or a pass over the 32 banks of shared memory; ``least`` is
    their number if the same bytes were contiguous.
    """

    lines: tuple[str, ...]  # of the access, of who called that function, and so on
    kind: str
    requests: int
    accesses: int
    bytes: int
    transactions: int
    least: int


_COUNTS = ("requests", "accesses", "bytes", "transactions", "least")


class _Traffic(ctypes.Structure):
    _fields_ = [("caller", ctypes.c_void_p), ("kind", ctypes.c_int), *((name, ctypes.c_uint64) for name in _COUNTS)]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_char_p),
        ("grid", _Index),
        ("block", _Index),
        ("dynamic_shared", ctypes.c_int),
        ("order", ctypes.c_int),
        ("traced", ctypes.c_int),
        ("steps", ctypes.c_uint64),
        ("seconds_of_a_step", ctypes.c_double),
        ("values", ctypes.POINTER(ctypes.c_void_p)),
        ("sizes", ctypes.POINTER(ctypes.c_int)),
        ("kinds", ctypes.c_char_p),
        ("count", ctypes.c_int),
        ("buffers", ctypes.POINTER(_Buffer)),
        ("buffer_count", ctypes.c_int),
        ("account", _Account),
        ("error", ctypes.c_char * 2048),
        ("frames", ctypes.c_void_p * _FRAMES),
        ("frame_count", ctypes.c_int),
        ("traffic", ctypes.POINTER(_Traffic)),
        ("traffic_count", ctypes.c_int),
    ]


# Arrays ------------------------------------------------------------------------------------------------------------------------


class _Lent:
    """An array that launches may access, with the flags of each of its bytes that the Buffer of state.hpp points to."""

    def __init__(self, array: np.ndarray, name: str, writable: bool, poison: bool) -> None:
        self.array = array
        self.begin, self.end = byte_bounds(array)
        self.label = f"{name} {array.dtype.name} {array.shape}".encode()
        member = np.zeros(self.end - self.begin, np.uint8)
        self.of_elements(member)[...] = 1
        self.member = None if member.all() else member
        self.written = np.zeros(self.end - self.begin, np.uint8) if writable else None
        self.touched = np.zeros(self.end - self.begin, np.uint32) if writable else None
        self.poisoned = writable and poison
        if self.poisoned:
            array.view(f"u{array.itemsize}")[...] = np.iinfo(f"u{array.itemsize}").max

    def of_elements(self, of_bytes: np.ndarray) -> np.ndarray:
        """Return a view of flags per byte that has the array's shape and an axis of the bytes of an element."""
        first = of_bytes[self.array.ctypes.data - self.begin :]
        return as_strided(first, (*self.array.shape, self.array.itemsize), (*self.array.strides, 1))

    def buffer(self) -> _Buffer:
        addresses = (None if shadow is None else shadow.ctypes.data for shadow in (self.member, self.written, self.touched))
        return _Buffer(self.begin, self.end, *addresses, self.label, self.poisoned)


# Kernels -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Built:
    """The library of a kernel and its function that launches."""

    path: Path
    start: Callable


@cache
def _machine() -> ctypes.CDLL:
    return ctypes.CDLL(str(build.machine()), mode=ctypes.RTLD_GLOBAL)


@cache
def _kernel(text: str, entry: str, options: tuple[str, ...]) -> _Built:
    _machine()
    path = build.kernel(text, entry, options)
    return _Built(path, getattr(ctypes.CDLL(str(path)), f"emulator_launch_{entry}"))


def _extents(size: int | tuple[int, ...]) -> _Index:
    return _Index(*((size, 1, 1) if isinstance(size, int) else (*size, 1, 1)[:3]))


def _kind(argument: Any) -> str:
    """p for a pointer, which is a Python integer; otherwise that of a NumPy scalar: f or i."""
    if type(argument) is int:
        return "p"
    if not isinstance(argument, np.generic) or argument.dtype.kind not in "iubf":
        raise EmulationError(f"an argument is a Python integer (a pointer) or a NumPy scalar, got {argument!r}")
    return "f" if argument.dtype.kind == "f" else "i"


class Emulator:
    """A machine that runs kernels on the CPU, with threads in one of three orders, on the arrays that it has been lent.

    Parameters
    ----------
    order
        One of `ORDERS`. A kernel without races gives the same bits in all of them.
    text
        Returns the source that is built for a file of kernels, as `cupycorr._gpu.source.text` does. A kernel that has a text of
        its own is built from that.
    steps
        Memory accesses, barriers and calls with the warp, of all threads together, after which a launch is given up.
    seconds_of_a_step
        A thread that takes no step in twice this CPU time is given up.
    traced
        Whether launches record their traffic, which takes many times as long.

    Attributes
    ----------
    accounts
        An `Account` of each launch so far.
    traffic
        A `Traffic` for each place of the kernel, of the last launch, if it was traced.
    """

    def __init__(
        self,
        order: str = "forward",
        text: Callable[[str], str] = source.text,
        steps: int = STEPS,
        seconds_of_a_step: float = 60.0,
        traced: bool = False,
    ) -> None:
        if order not in ORDERS:
            raise ValueError(f"order must be one of {ORDERS}, got {order!r}")
        self.order, self.text, self.traced = order, text, traced
        self.steps, self.seconds_of_a_step = steps, seconds_of_a_step
        self.accounts: list[Account] = []
        self.traffic: list[Traffic] = []
        self._lent: dict[tuple, _Lent] = {}

    @property
    def account(self) -> Account:
        """The counts of the last launch."""
        return self.accounts[-1]

    def bind(
        self, kernel: source.Kernel, device: int, grid: Any, block: Any, shared: int, scalars: tuple = ()
    ) -> Callable[..., None]:
        """Build a kernel and return a function that launches it, as the launcher does; devices and streams are ignored."""
        written = self.text(kernel.file) if kernel.own_text is None else kernel.own_text
        built = _kernel(written, kernel.entry, kernel.options())

        def launch(arguments: tuple, stream: Any = None) -> None:
            self._launch(kernel, built, _extents(grid), _extents(block), shared, (*arguments, *scalars))

        return launch

    def register(self, array: np.ndarray, name: str = "array", *, writable: bool = False, poison: bool = True) -> None:
        """Let launches load the elements of an array, not the bytes between them, or store to them.

        An array to be written is filled with NaNs unless ``poison`` is false, and to load an element of it that no launch has
        written is an error. The array is kept alive until `forget`.
        """
        if array.size:
            self._lent[_identity(array)] = _Lent(array, name, writable, poison)

    def forget(self) -> None:
        """Take back every array."""
        self._lent.clear()

    @contextmanager
    def lending(
        self, reads: Mapping[str, np.ndarray], writes: Mapping[str, np.ndarray], *, poison: bool = True
    ) -> Iterator[Emulator]:
        """`register` these arrays by name; launches may touch them, and no others lent before, until the end of the block."""
        before, self._lent = self._lent, {}
        try:
            for name, array in reads.items():
                self.register(array, name)
            for name, array in writes.items():
                self.register(array, name, writable=True, poison=poison)
            yield self
        finally:
            self._lent = before

    def unwritten(self, array: np.ndarray) -> np.ndarray:
        """Return where the elements of a lent array have a byte that no launch has written."""
        if not array.size:
            return np.zeros(array.shape, bool)
        lent = self._lent[_identity(array)]
        return ~lent.of_elements(lent.written).all(axis=-1)

    def _launch(self, kernel: source.Kernel, built: _Built, grid: _Index, block: _Index, shared: int, arguments: tuple) -> None:
        kinds = "".join(map(_kind, arguments))
        values = [np.asarray(value, np.uint64 if kind == "p" else None) for value, kind in zip(arguments, kinds, strict=True)]
        buffers = [lent.buffer() for lent in self._lent.values()]
        asked = _Launch(
            kernel=kernel.entry.encode(),
            grid=grid,
            block=block,
            dynamic_shared=shared,
            order=ORDERS.index(self.order),
            traced=self.traced,
            steps=self.steps,
            seconds_of_a_step=self.seconds_of_a_step,
            values=(ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values)),
            sizes=(ctypes.c_int * len(values))(*(value.itemsize for value in values)),
            kinds=kinds.encode(),
            count=len(values),
            buffers=(_Buffer * len(buffers))(*buffers),
            buffer_count=len(buffers),
        )
        for lent in self._lent.values():
            if lent.touched is not None:
                lent.touched.fill(0)
        with _one_launch:
            failed = built.start(ctypes.byref(asked))
            self.traffic = _traffic(asked, built.path)
        self.accounts.append(Account(*(getattr(asked.account, name) for name in Account.__dataclass_fields__)))
        if failed:
            raise EmulationError("\n  called from ".join((asked.error.decode(), *_callers(asked, built.path))))


def _identity(array: np.ndarray) -> tuple:
    return array.ctypes.data, array.shape, array.strides, array.dtype.str


# Lines of source ---------------------------------------------------------------------------------------------------------------


class _SymbolInfo(ctypes.Structure):
    """The structure Dl_info of dlfcn.h."""

    _fields_ = [
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    ]


def _callers(launch: _Launch, path: Path) -> list[str]:
    """Return the lines of the kernel that led to an error, innermost first, without the line that the error names."""
    frames = _lines(launch.frames[: launch.frame_count], path)
    return list(dict.fromkeys(line for lines in frames for line in lines))[1:]


def _traffic(launch: _Launch, path: Path) -> list[Traffic]:
    """Return the recorded traffic, added up for each line of the kernel: unrolled loops have a line several times."""
    traced = launch.traffic[: launch.traffic_count]
    total: dict[tuple, list[int]] = {}
    for place, lines in zip(traced, _lines([place.caller for place in traced], path), strict=True):
        counts = total.setdefault((lines, _KINDS[place.kind]), [0] * len(_COUNTS))
        counts[:] = [count + getattr(place, name) for count, name in zip(counts, _COUNTS, strict=True)]
    return [Traffic(*where, *counts) for where, counts in total.items()]


def _lines(addresses: Sequence[int], path: Path) -> list[tuple[str, ...]]:
    """Return for each return address the line of the kernel and the lines it was called from, innermost first."""
    inside = [_offset(address, path) for address in addresses]
    wanted = [hex(offset - 1) for offset in inside if offset is not None]
    if not wanted:
        return [()] * len(inside)
    try:
        command = ("addr2line", "--addresses", "--inlines", f"--exe={path}", *wanted)
        output = subprocess.run(command, capture_output=True, text=True, env=build.unsanitized_environment()).stdout
    except FileNotFoundError:  # part of binutils, as g++'s assembler is
        return [()] * len(inside)
    answers = iter(re.split(r"^0x.*\n", output, flags=re.MULTILINE)[1:])
    return [() if offset is None else tuple(_kernels_lines(next(answers))) for offset in inside]


def _kernels_lines(answer: str) -> list[str]:
    names = [Path(line.split(" ")[0]).name for line in answer.splitlines()]
    return [name for name in names if not name.startswith((*build.HEADERS, "emulator entry", "?"))]


def _offset(address: int, path: Path) -> int | None:
    """Return the offset of an address in the library at ``path``, None of an address elsewhere."""
    info = _SymbolInfo()
    found = ctypes.CDLL(None).dladdr(ctypes.c_void_p(address), ctypes.byref(info))
    return address - info.base if found and info.file == str(path).encode() else None
