"""Maps packed for the kernels of the variant ``simd``: channels last, in the accumulator dtype, in whole 64-byte vectors.

    packed[n, y, x, c] = map[n, c, y, x]   for c < C,   0 for C <= c < Cp

Cp is C rounded up to whole vectors of 64 bytes, so that kernels need no remainder. There is no border. A map that has this form
already is used in place. Nothing here knows what a kernel reads; memory is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..._cpu import workers
from ..._cpu.llvm import NUMBER, VALUES, VECTOR_BYTES, KernelWriter, address, compiled, lock, registers
from ..._dtypes import dtype_name

PART_BYTES = 2**18  # bytes of a packed part, which one thread packs
TILE = 64  # positions whose channels are packed before those of the next ones: reads and writes stay in the caches


def packed_channels(channels: int, accumulator: np.dtype) -> int:
    """Return Cp, the number of channels in memory: at least one vector, so that each position has an address."""
    lanes = VECTOR_BYTES // accumulator.itemsize
    return max(-(-channels // lanes), 1) * lanes


def packed_shape(shape: Sequence[int], accumulator: np.dtype) -> tuple[int, int, int, int]:
    """Return the shape (N, H, W, Cp) of packed maps (N, C, H, W)."""
    images, channels, height, width = shape
    return images, height, width, packed_channels(channels, accumulator)


def packed_bytes(shape: Sequence[int], accumulator: np.dtype) -> int:
    """Return the bytes of packed maps (N, C, H, W)."""
    return math.prod(packed_shape(shape, accumulator)) * accumulator.itemsize


def in_place(maps: np.ndarray, accumulator: np.dtype) -> np.ndarray | None:
    """Return the view (N, H, W, C) of maps (N, C, H, W) that are packed already, else None.

    Each image must be contiguous; images may be any distance apart.
    """
    view = maps.transpose(0, 2, 3, 1)
    _, height, width, channels = view.shape
    if view.dtype != accumulator or packed_channels(channels, accumulator) != channels:
        return None
    item = accumulator.itemsize
    wanted = (width * channels * item, channels * item, item)
    given = zip((height, width, channels), view.strides[1:], wanted, strict=True)
    contiguous = all(size <= 1 or stride == want for size, stride, want in given)
    # Kernels count in elements.
    whole = maps.strides[0] % item == 0 and address(maps) % item == 0
    return view if contiguous and whole else None


@contextmanager
def scratch(shape: tuple[int, ...], dtype: np.dtype) -> Iterator[np.ndarray]:
    """Return a context with an uninitialised array at the beginning of a cache line, so that no vector crosses two."""
    lanes = VECTOR_BYTES // dtype.itemsize
    size = math.prod(shape)
    with workers.scratch((size + lanes,), dtype) as memory:
        begin = -address(memory) % VECTOR_BYTES // dtype.itemsize
        yield memory[begin : begin + size].reshape(shape)


class Part(NamedTuple):
    """Rows of an image to pack: the view (C, rows, W) that is read, and the view (rows, W, Cp) that is written."""

    source: np.ndarray
    target: np.ndarray


def parts(maps: np.ndarray, packed: np.ndarray) -> list[Part]:
    """Divide the packing of maps (N, C, H, W) into an array (N, H, W, Cp) into parts, which threads may share."""
    images, height, width, channels = packed.shape
    rows = max(PART_BYTES // (width * channels * packed.itemsize), 1)
    tops = range(0, height, rows)
    return [Part(maps[n, :, top : top + rows], packed[n, top : top + rows]) for n in range(images) for top in tops]


def pack(part: Part) -> None:
    """Pack a part."""
    source, target = part
    channels, rows, width = source.shape
    along_c, along_y, along_x = source.strides
    item = source.itemsize
    if rows == 1 or along_y == width * along_x:  # the rows are one long row
        rows, width, along_y = 1, rows * width, 0
    lanes = registers().widths[0] // target.itemsize
    in_elements = along_c % item == 0 and along_y % item == 0 and address(source) % item == 0
    if along_x != item or width < lanes or not channels or not in_elements:
        target[..., :channels] = source.transpose(1, 2, 0)
        target[..., channels:] = 0
        return
    kernel = _kernel(dtype_name(source.dtype), target.itemsize)
    kernel(address(source), address(target), channels, target.shape[-1], rows, width, along_c // item, along_y // item)


# The kernel --------------------------------------------------------------------------------------------------------------------

_ARGUMENTS = {
    **dict(source=VALUES, target=VALUES),
    **dict.fromkeys(("channels", "padded", "rows", "width", "along_c", "along_y"), NUMBER),
}


def _kernel(source: str, itemsize: int) -> Callable[..., None]:
    with lock:
        return _compiled(source, itemsize)


@cache
def _compiled(source: str, itemsize: int) -> Callable[..., None]:
    return compiled(lambda: _PackWriter(source, itemsize))


class _PackWriter(KernelWriter):
    """A writer of the kernel: squares of channels and neighbouring columns are transposed in registers.

    A row has at least as many columns as a vector; the last vector of a row begins early enough to end with it.
    """

    def __init__(self, source: str, itemsize: int) -> None:
        super().__init__("pack", _ARGUMENTS, itemsize)
        b, named = self.builder, self.arguments
        self.lanes = registers().widths[0] // itemsize
        self.dtype = source
        self.source = b.bitcast(named["source"], self.stored(source).as_pointer())
        self.channels, self.padded, self.width, self.along_c = (named[x] for x in ("channels", "padded", "width", "along_c"))
        self.whole = b.sdiv(self.channels, self.number(self.lanes))
        self.blocks = b.sdiv(self.padded, self.number(self.lanes))
        self.last = b.sub(self.width, self.number(self.lanes))
        self.loop(named["rows"], self._row)
        b.ret_void()

    def _row(self, y: Any, _: Sequence[Any]) -> None:
        b, named = self.builder, self.arguments
        source = self.at(self.source, b.mul(y, named["along_y"]))
        target = self.at(named["target"], b.mul(b.mul(y, self.width), self.padded))
        tiles = b.sdiv(b.add(self.width, self.number(TILE - 1)), self.number(TILE))
        self.loop(tiles, lambda tile, _: self._tile(b.mul(tile, self.number(TILE)), source, target))

    def _tile(self, begin: Any, source: Any, target: Any) -> None:
        """Write the loops over the blocks of channels of a tile, and over its vectors of columns."""
        b = self.builder
        left = b.sub(self.width, begin)
        size = self.smaller(left, self.number(TILE))
        vectors = b.sdiv(b.add(size, self.number(self.lanes - 1)), self.number(self.lanes))

        def block(number: Any, _: Sequence[Any]) -> None:
            channel = b.mul(number, self.number(self.lanes))

            def vector(index: Any, _: Sequence[Any]) -> None:
                x = self.smaller(b.add(begin, b.mul(index, self.number(self.lanes))), self.last)
                with b.if_else(b.icmp_signed("<", number, self.whole)) as (whole, remainder):
                    with whole:
                        self._square(source, target, x, channel, remainder=False)
                    with remainder:
                        self._square(source, target, x, channel, remainder=True)

            self.loop(vectors, vector)

        self.loop(self.blocks, block)

    def _square(self, source: Any, target: Any, x: Any, channel: Any, *, remainder: bool) -> None:
        """Write the transposition of a square whose channels all exist, or of which some do not and become 0."""
        b, read = self.builder, []
        zero = self.zero(self.vector(self.lanes))
        for lane in range(self.lanes):
            c = b.add(channel, self.number(lane))
            exists = b.icmp_signed("<", c, self.channels) if remainder else None
            c = self.smaller(c, b.sub(self.channels, self.number(1))) if remainder else c
            values = self.widened(self.at(source, b.mul(c, self.along_c), x), self.dtype, self.lanes)
            read.append(b.select(exists, values, zero) if remainder else values)
        for lane, values in enumerate(self.transposed(read)):
            self.store(values, self.at(target, b.mul(b.add(x, self.number(lane)), self.padded), channel))
