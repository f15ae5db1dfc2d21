"""Kernel calls, planned but not launched: a build, its pointers, and its scalars of the right width. Knows no operator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product, repeat
from typing import Any

import numpy as np

from .layout import Layout
from .limits import SAFE_INDEX
from .source import Kernel

THREADS = 256  # of a block, for kernels that do not choose

# Axes of images (B, C, H, W) and of volumes (B, PH, PW, oH, oW), as kernels name their strides.
IMAGE_AXES = ("batch", "channel", "row", "column")
VOLUME_AXES = ("batch", "m", "n", "row", "column")

INDEX_TYPES: dict[type, str] = {np.int32: "int", np.int64: "long long"}  # NumPy's type -> value of the macro INDEX


@dataclass(frozen=True, slots=True)
class Pointer:
    """The address of an argument: a named buffer and an offset in bytes."""

    buffer: str
    offset: int = 0

    def at(self, offset: int) -> Pointer:
        """Return the address ``offset`` bytes further."""
        return replace(self, offset=self.offset + offset)


Extents = int | tuple[int, int, int]  # along x, or along x, y and z
Array = tuple[Layout, Pointer]
NOWHERE = Pointer("nowhere")  # a null pointer, for arguments that are not used


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel and its arguments: pointers first, then scalars of the right width.

    Attributes
    ----------
    blocks
        Blocks that there is work for. A single number may exceed what a grid can hold; the kernel loops over the rest.
    threads
        Threads of a block. These and the blocks may have three axes: x, y and z.
    shared
        Bytes of dynamic shared memory of a block.
    """

    kernel: Kernel
    pointers: tuple[Pointer, ...]
    scalars: tuple[np.generic, ...]
    blocks: Extents
    threads: Extents = THREADS
    shared: int = 0

    @property
    def is_empty(self) -> bool:
        """True if there are no blocks."""
        return 0 in self.blocks if isinstance(self.blocks, tuple) else self.blocks == 0


@dataclass(frozen=True)
class Signature:
    """The parameters of the entry point of one ``.cu`` file, by name and in order.

    Attributes
    ----------
    name
        The file without its suffix, such as ``"common/sum_parts"``; the entry point has the last part of it.
    pointers
        Names of the pointers, which come first.
    scalars
        Name of each scalar -> its C type: ``"int"``, ``"long long"``, ``"double"``, ``"Index"`` (the value of the macro INDEX,
        which the call chooses) or ``"Sum"`` (the accumulator).
    """

    name: str
    pointers: tuple[str, ...]
    scalars: Mapping[str, str]

    def call(
        self,
        *,
        macros: Mapping[str, object],
        pointers: Mapping[str, Pointer],
        scalars: Mapping[str, float],
        accumulator: np.dtype,
        blocks: int,
        threads: int = THREADS,
        shared: int = 0,
        largest: int = 0,
    ) -> Call:
        """Return a call of the kernel.

        Parameters
        ----------
        macros
            Macros of the build, all but the INDEX that a kernel with scalars of that type is built with.
        pointers, scalars
            The argument of each parameter, in any order.
        accumulator
            The type of the scalars that are a ``Sum``.
        blocks, threads, shared
            As `Call` has them.
        largest
            The largest magnitude that the kernel computes with, if no scalar exceeds it. INDEX has 32 bits where that fits.

        Raises
        ------
        TypeError
            An argument is missing, or there is no such parameter.
        """
        for wanted, given in ((dict.fromkeys(self.pointers), pointers), (self.scalars, scalars)):
            if given.keys() != wanted.keys():
                missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
                raise TypeError(f"{self.name} has other parameters: missing {missing}, unexpected {extra}")
        types: dict[str, Any] = {"int": np.int32, "long long": np.int64, "double": np.float64, "Sum": accumulator.type}
        if "Index" in self.scalars.values():
            numbers = (abs(scalars[name]) for name, c_type in self.scalars.items() if c_type == "Index")
            types["Index"] = np.int32 if max(largest, *numbers) < SAFE_INDEX else np.int64
            macros = {**macros, "INDEX": INDEX_TYPES[types["Index"]]}
        return Call(
            kernel(self.name, macros),
            tuple([pointers[name] for name in self.pointers]),
            tuple([types[c_type](scalars[name]) for name, c_type in self.scalars.items()]),
            blocks,
            threads,
            shared,
        )


def strides(array: str, axes: Sequence[str], values: str | Sequence[Any]) -> dict[str, Any]:
    """Return the parameters for the strides of an array, such as ``row_stride_out``, with their values or C types.

    A single C type is that of all of them.
    """
    every = repeat(values, len(axes)) if isinstance(values, str) else values
    return {f"{axis}_stride_{array}": value for axis, value in zip(axes, every, strict=True)}


def kernel(name: str, macros: Mapping[str, object]) -> Kernel:
    """Return the build of ``<name>.cu`` with macros; its entry point bears the file's name."""
    return Kernel(f"{name}.cu", name.rpartition("/")[2], tuple((key, str(value)) for key, value in macros.items()))


def builds_of(name: str, table: Mapping[str, Any]) -> Iterator[tuple[str, Kernel]]:
    """Yield every build of a kernel, with words for it, for both index types.

    ``table`` has the macros and their values; a string in place of the values repeats another macro's.
    """
    free = {macro: values for macro, values in table.items() if not isinstance(values, str)}
    for values in product(*free.values(), INDEX_TYPES.values()):
        chosen = dict(zip((*free, "INDEX"), values, strict=True))
        macros = {key: chosen[table[key] if isinstance(table.get(key), str) else key] for key in (*table, "INDEX")}
        yield f"{name.rpartition('/')[2]} {' '.join(f'{key}={value}' for key, value in macros.items())}", kernel(name, macros)
