"""The products of a block in register tiles: tables that tell `register_tile` what to multiply.

Two reuses make a tile. Query rows one `advance` apart meet the same searched row, at displacement rows one `pitch` apart: they
are the tile's rows. And one value of them meets many shifts of that searched row (forward: displacements) or many channels of
it (gradients): the tile's width. Only products that count are computed; rows outside the image are left out of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .._problem import Pair, Problem
from . import cpu, register_tile, workers
from .lattice import Lattice

TERMS = 128  # products summed in registers before they are added to memory: bounds the rounding error and the cache footprint

# (rows, width) -> cycles for one term of a vector of columns, measured on Zen 4 with 32 vector registers of 64 bytes.
# A width that would spill is not in the table.
_CYCLES = {
    32: {
        1: {q: 2 * q + 1 for q in range(1, 11)},
        2: {q: 2 * q + 3 for q in range(1, 11)},
        3: {q: max(17, 3 * q) for q in range(1, 8)},
    },
    16: {1: {q: q + 1 for q in range(1, 7)}, 2: {q: q + 3 for q in range(1, 5)}, 3: {q: 1.5 * q + 3 for q in range(1, 4)}},
}


@dataclass(frozen=True, slots=True)
class Tiling:
    """How many query rows a tile has, and the widths that a count of displacements or channels is cut into."""

    rows: int
    widths: tuple[int, ...]


@lru_cache(maxsize=256)
def tiling(count: int, query_rows: int, register_count: int) -> Tiling:
    """The cheapest tiles for ``count`` displacements (or channels) where ``query_rows`` meet the same searched row."""
    candidates = []
    for rows, cycles in _CYCLES[register_count].items():
        if rows <= query_rows or rows == 1:
            pieces = -(-count // max(cycles))
            widths = tuple(count // pieces + (index < count % pieces) for index in range(pieces))
            candidates.append((sum(cycles[w] for w in widths) / rows, Tiling(rows, widths)))
    return min(candidates, key=lambda candidate: candidate[0])[1]


class RegisterTiles:
    """The engine of the ``simd`` variant."""

    def threads(self) -> int:
        """All threads: the kernels release the interpreter's lock."""
        return workers.thread_count()

    def session(self) -> AbstractContextManager[None]:
        """Nothing to hold."""
        return nullcontext()

    def volume(self, block: cpu.Block, query: np.ndarray, total: np.ndarray) -> None:
        """See `cpu.Engine`."""
        columns = block.region.lengths[cpu.COLUMNS]
        vertical, horizontal = block.vertical, block.horizontal
        table = _volume_table(
            _relative_meets(block.meets, *block.region.rows),
            (vertical.pitch, vertical.advance),
            _shifts(horizontal, *block.region.ns),
            query.shape[1],
            total.dtype,
            _strides(query),
            _strides(block.searched),
            _strides(total),
        )
        _run(table, query, _searched_at(block), total, columns, _strides(total)[1])

    def gradient(self, block: cpu.Block, cotangent: np.ndarray, total: np.ndarray) -> None:
        """See `cpu.Engine`."""
        columns = block.region.lengths[cpu.COLUMNS]
        vertical, horizontal = block.vertical, block.horizontal
        table = _gradient_table(
            _relative_meets(block.meets, *block.region.rows),
            (vertical.pitch, vertical.advance),
            _shifts(horizontal, *block.region.ns),
            total.shape[1],
            total.dtype,
            _strides(cotangent),
            _strides(block.searched),
            _strides(total),
        )
        _run(table, cotangent, _searched_at(block), total, columns, _strides(total)[1])


@lru_cache(maxsize=1024)
def _relative_meets(meets: tuple[Pair, ...], begin: int, end: int) -> tuple[int, tuple[Pair, ...]]:
    """How many query rows a block has and which of them count at each displacement row, counted from its first.

    Blocks well inside an image are all alike, and share one table.
    """
    clipped = ((max(low - begin, 0), min(high, end) - begin) for low, high in meets)
    return end - begin, tuple((low, max(low, high)) for low, high in clipped)


def _strides(array: np.ndarray) -> tuple[int, ...]:
    return tuple(stride // array.itemsize for stride in array.strides)


def _searched_at(block: cpu.Block) -> tuple[np.ndarray, int]:
    """The searched array, and the element of it that the block's first query meets at its first displacement (in plane 0)."""
    row = block.vertical.pitch * block.region.rows[0] + block.vertical.advance * block.region.ms[0] - block.row
    shift = block.horizontal.advance * block.region.ns[0] // block.horizontal.pitch
    column = block.region.columns[0] + shift - block.column
    strides = _strides(block.searched)
    return block.searched, row * strides[0] + column * strides[3]


@dataclass(frozen=True, slots=True)
class _Table:
    """What one block asks of the kernels: for each tile shape its kernel and entries, and the offsets they share."""

    calls: tuple[tuple[Callable[..., None], int, int], ...]  # kernel, address of its entries, their number
    shared: tuple[int, int, int]  # addresses of left_k, right_k, right_q
    arrays: tuple[np.ndarray, ...]  # what the addresses point into


def _run(table: _Table, left: np.ndarray, right_at: tuple[np.ndarray, int], total: np.ndarray, columns: int, along: int) -> None:
    right, offset = right_at
    addresses = _address(left), _address(right) + offset * right.itemsize, _address(total)
    vectors = _vectors(columns, total.itemsize)
    for compiled, entries, count in table.calls:
        compiled(*addresses, entries, count, *table.shared, along, *vectors)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@lru_cache(maxsize=256)
def _vectors(columns: int, itemsize: int) -> tuple[int, ...]:
    """How many vectors of each width cover the columns, the last one overhanging as little as may be."""
    counts = []
    widths = [width // itemsize for width in register_tile.registers().widths]
    for lanes in widths[:-1]:
        # A remainder that a narrower vector cannot hold is left to one more of this width.
        count, rest = divmod(columns, lanes)
        count += rest > widths[len(counts) + 1]
        counts.append(count)
        columns = max(columns - count * lanes, 0)
    return (*counts, -(-columns // widths[-1]))


def _shifts(lattice: Lattice, begin: int, end: int) -> tuple[Pair, ...]:
    """Packed (column, plane) of each displacement index, counted from the first one's column."""
    first = lattice.advance * begin // lattice.pitch
    found = (divmod(lattice.advance * n, lattice.pitch) for n in range(begin, end))
    return tuple((shift - first, plane) for shift, plane in found)


def _runs(
    relative_meets: tuple[int, tuple[Pair, ...]], pitch_advance: Pair, tile_rows: int
) -> Iterator[tuple[int, int, int, int]]:
    """The tiles of rows of a block: ``(t, m, rows, length)``.

    Tile row r is query row ``t + r advance`` at displacement row ``m + i - r pitch``, for i < length: they all meet searched row
    ``pitch t + advance (m + i)``.
    """
    rows, meets = relative_meets
    pitch, advance = pitch_advance
    for residue in range(min(advance, rows)):
        same_searched_rows = range(residue, rows, advance)
        for at in range(0, len(same_searched_rows), tile_rows):
            ts = same_searched_rows[at : at + tile_rows]
            run = None
            for m in range(len(meets) + (len(ts) - 1) * pitch + 1):
                met = [r for r, t in enumerate(ts) if _counts(meets, m - r * pitch, t)]
                found = (met[0], met[-1] + 1) if met else None
                if run is not None and found != run[0]:
                    (first, end), begin = run
                    yield ts[first], begin - first * pitch, end - first, m - begin
                    run = None
                if run is None and found is not None:
                    run = (found, m)


def _counts(meets: Sequence[Pair], m: int, t: int) -> bool:
    return 0 <= m < len(meets) and meets[m][0] <= t < meets[m][1]


@lru_cache(maxsize=128)
def _volume_table(
    relative_meets: tuple[int, tuple[Pair, ...]],
    vertical: Pair,
    shifts: tuple[Pair, ...],
    channels: int,
    dtype: np.dtype,
    query: tuple[int, ...],
    searched: tuple[int, ...],
    total: tuple[int, ...],
) -> _Table:
    """Tile width: displacements. Terms: channels."""
    pitch, advance = vertical
    tiles = tiling(len(shifts), -(-relative_meets[0] // advance), register_tile.registers().count)
    entries: dict[tuple[int, int], list[list[int]]] = {}
    runs = list(_runs(relative_meets, vertical, tiles.rows))
    for first in range(0, channels, TERMS):
        terms = min(TERMS, channels - first)
        for t, m, rows, length in runs:
            ts = [t + r * advance for r in range(rows)]
            for i in range(length):
                ms = [m + i - r * pitch for r in range(rows)]
                right = (pitch * t + advance * (m + i)) * searched[0]
                q = 0
                for width in tiles.widths:
                    lefts = [t * query[0] for t in ts]
                    totals = [m * total[0] + q * total[1] + t * total[2] for m, t in zip(ms, ts, strict=True)]
                    entries.setdefault((rows, width), []).append([right, q, first, terms, *lefts, *totals])
                    q += width
    channel = np.arange(channels)
    return _table(dtype, entries, channel * query[1], channel * searched[1], _offsets(shifts, searched))


@lru_cache(maxsize=128)
def _gradient_table(
    relative_meets: tuple[int, tuple[Pair, ...]],
    vertical: Pair,
    shifts: tuple[Pair, ...],
    channels: int,
    dtype: np.dtype,
    cotangent: tuple[int, ...],
    searched: tuple[int, ...],
    total: tuple[int, ...],
) -> _Table:
    """Tile width: channels. Terms: displacements."""
    pitch, advance = vertical
    tiles = tiling(channels, -(-relative_meets[0] // advance), register_tile.registers().count)
    count = len(shifts)
    ms = np.arange(len(relative_meets[1]))
    entries: dict[tuple[int, int], list[list[int]]] = {}
    for t, m, rows, length in _runs(relative_meets, vertical, tiles.rows):
        ts = [t + r * advance for r in range(rows)]
        # The offsets of a term are counted from the run's first displacement row, so that every run can use one list.
        right = (pitch * t + advance * m) * searched[0]
        lefts = [t * cotangent[2] + (m - r * pitch) * cotangent[0] for r, t in enumerate(ts)]
        for first in range(0, length * count, TERMS):
            terms = min(TERMS, length * count - first)
            c = 0
            for width in tiles.widths:
                totals = [t * total[0] + c * total[1] for t in ts]
                entries.setdefault((rows, width), []).append([right, c, first, terms, *lefts, *totals])
                c += width
    left_k = ms[:, None] * cotangent[0] + np.arange(count) * cotangent[1]
    right_k = ms[:, None] * advance * searched[0] + _offsets(shifts, searched)
    return _table(dtype, entries, left_k.ravel(), right_k.ravel(), np.arange(channels) * searched[1])


def _offsets(shifts: tuple[Pair, ...], searched: tuple[int, ...]) -> np.ndarray:
    return np.array([plane * searched[2] + column * searched[3] for column, plane in shifts])


def _table(
    dtype: np.dtype,
    entries: dict[tuple[int, int], list],
    left_k: Sequence[int],
    right_k: Sequence[int],
    right_q: Sequence[int],
) -> _Table:
    shared = tuple(np.ascontiguousarray(values, np.int64) for values in (left_k, right_k, right_q))
    listed = tuple(np.array(rows, np.int64) for rows in entries.values())
    kernels = (register_tile.kernel(*shape, dtype) for shape in entries)
    calls = tuple((kernel, _address(rows), len(rows)) for kernel, rows in zip(kernels, listed, strict=True))
    return _Table(calls, tuple(map(_address, shared)), shared + listed)


ENGINE = RegisterTiles()


def how(problem: Problem) -> str:
    """The route through register tiles, in words."""
    widest = max(register_tile.registers().widths)
    return f"{cpu.how(problem)}, register tiles of {8 * widest}-bit vectors in {workers.thread_count()} thread(s)"
