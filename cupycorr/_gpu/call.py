"""Calls of kernels, worked out but not launched: a build, its pointers and its scalars of the right width. Knows no operator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from .layout import Layout, Numbers
from .source import Kernel

THREADS = 256  # of every block

_SAFE = 2**30  # two integers below it have a sum of 32 bits
INDEX_TYPES = {np.int32: "int", np.int64: "long long"}  # of the macro INDEX


@dataclass(frozen=True, slots=True)
class Pointer:
    """Where an argument begins: so many bytes into a named buffer."""

    buffer: str
    offset: int = 0

    def at(self, offset: int) -> Pointer:
        """So many bytes further."""
        return replace(self, offset=self.offset + offset)


Array = tuple[Layout, Pointer]
NOWHERE = Pointer("nowhere")  # of an argument that is not used


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel and its arguments: pointers first, then scalars of the right width. ``blocks`` may exceed what a grid can hold.

    ``threads`` are those of a block, ``shared`` its bytes of dynamic shared memory.
    """

    kernel: Kernel
    pointers: tuple[Pointer, ...]
    scalars: tuple[np.generic, ...]
    blocks: int
    threads: int = THREADS
    shared: int = 0


def accumulator_scalar(summed: Layout, scale: float) -> np.generic:
    """Return a factor in the type that elements of a layout are summed in."""
    return summed.accumulator.type(scale)


def call(
    name: str,
    macros: Mapping[str, object],
    pointers: tuple[Pointer, ...],
    layouts: Sequence[Layout],
    integers: Numbers,
    reach: int,
    tail: tuple[np.generic, ...],
    blocks: int,
) -> Call:
    """With integers of 32 bits where all of them, every offset and every position up to ``reach`` fit, else of 64."""
    largest = max(reach, *map(abs, integers), *(layout.extent for layout in layouts))
    index = np.int32 if largest < _SAFE else np.int64
    built = kernel(name, {**macros, "INDEX": INDEX_TYPES[index]})
    return Call(built, pointers, (*(index(value) for value in integers), *tail), blocks)


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
