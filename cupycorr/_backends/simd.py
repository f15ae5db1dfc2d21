"""The products of a block in register tiles: tables that tell `register_tile` what to multiply.

Two reuses make a tile. Query rows one `advance` apart meet the same searched row, at displacement rows one `pitch` apart: they
are the tile's rows. And one value of them meets many shifts of that searched row (forward: displacements) or many channels of
it (gradients): the tile's width. Only products that count are computed; rows outside the image are left out of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from math import lcm

import numpy as np

from .._problem import Pair, Problem, lattice_inside
from . import cpu, register_tile, workers
from .lattice import ONE_PIXEL, Lattice, Window

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


# Cycles for one vector of columns: a product in registers, and a pass over an array in memory that reads and writes it.
_PRODUCT, _PASS = 2, 8


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

    def sums_rows(self, window: Window, channels: int) -> bool:
        """Whether further products in registers cost less than adding up rows of the volume in memory."""
        additions = min((window.taps.bit_length() - 1) * window.stride + 1, window.taps)
        in_registers = _PRODUCT * window.taps * channels
        in_memory = window.stride * (_PRODUCT * channels + _PASS) + 2 * _PASS * additions
        return window.taps > 1 and in_registers <= in_memory

    def volume(self, block: cpu.Block, query: np.ndarray, total: np.ndarray) -> None:
        """See `cpu.Engine`."""
        columns = block.region.lengths[cpu.COLUMNS]
        vertical, horizontal = block.vertical, block.horizontal
        table = _volume_table(
            _relative_meets(block.meets, *block.region.rows),
            (vertical.pitch, vertical.advance),
            block.window,
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


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a tile: row r is lattice row ``t + r t_step`` at displacement row ``m - r m_step``, r < count, each summed over
    the window's taps in ``[taps[0], taps[1])``. They all meet the same searched rows."""

    t: int
    m: int
    count: int
    t_step: int
    m_step: int
    taps: Pair

    def each(self) -> list[Pair]:
        """(t, m) of every row."""
        return [(self.t + r * self.t_step, self.m - r * self.m_step) for r in range(self.count)]


def _outputs(rows: int, window: Window) -> int:
    return (rows - 1 - (window.taps - 1) * window.dilation) // window.stride + 1


def _steps(pitch_advance: Pair, window: Window) -> Pair:
    """Rows this far apart in t, at displacement rows this far apart in m, meet the same searched row."""
    pitch, advance = pitch_advance
    t_step = lcm(advance, window.stride)
    return t_step, pitch * t_step // advance


def _tile_rows(relative_meets: tuple[int, tuple[Pair, ...]], pitch_advance: Pair, window: Window, most: int) -> Iterator[_Rows]:
    """Every row and displacement row of a block in tiles of up to ``most`` rows, left out what does not count."""
    rows, meets = relative_meets
    t_step, m_step = _steps(pitch_advance, window)
    ts = range(0, _outputs(rows, window) * window.stride, window.stride)
    for residue in range(min(t_step // window.stride, len(ts))):
        alike = ts[residue :: t_step // window.stride]
        for at in range(0, len(alike), most):
            group = alike[at : at + most]
            for m in range(len(meets) + (len(group) - 1) * m_step):
                taps = [_taps_met(meets, m - r * m_step, t, window) for r, t in enumerate(group)]
                for met, found in groupby(range(len(group)), key=taps.__getitem__):
                    if met[0] < met[1]:
                        found = list(found)
                        yield _Rows(group[found[0]], m - found[0] * m_step, len(found), t_step, m_step, met)


def _taps_met(meets: Sequence[Pair], m: int, t: int, window: Window) -> Pair:
    """The taps ``[begin, end)`` of the window at lattice row t that count at displacement row m."""
    if not 0 <= m < len(meets):
        return 0, 0
    return lattice_inside(t, window.dilation, window.taps, *meets[m])


def _tiling(relative_meets: tuple[int, tuple[Pair, ...]], pitch_advance: Pair, window: Window, count: int) -> Tiling:
    """The tiles for ``count`` displacements or channels of a block."""
    rows, meets = relative_meets
    t_step, m_step = _steps(pitch_advance, window)
    alike = min(-(-_outputs(rows, window) * window.stride // t_step), 1 + (len(meets) - 1) // m_step)
    return tiling(count, alike, register_tile.registers().count)


@lru_cache(maxsize=128)
def _volume_table(
    relative_meets: tuple[int, tuple[Pair, ...]],
    vertical: Pair,
    window: Window,
    shifts: tuple[Pair, ...],
    channels: int,
    dtype: np.dtype,
    query: tuple[int, ...],
    searched: tuple[int, ...],
    total: tuple[int, ...],
) -> _Table:
    """Tile width: displacements. Terms: taps and channels."""
    pitch, advance = vertical
    tiles = _tiling(relative_meets, vertical, window, len(shifts))
    entries: dict[tuple[int, int], list[list[int]]] = {}
    for rows in _tile_rows(relative_meets, vertical, window, tiles.rows):
        right = (pitch * rows.t + advance * rows.m) * searched[0]
        lefts = [t * query[0] for t, _ in rows.each()]
        totals = [m * total[0] + t // window.stride * total[2] for t, m in rows.each()]
        first, end = (tap * channels for tap in rows.taps)
        for k in range(first, end, TERMS):
            q = 0
            for width in tiles.widths:
                entry = [right, q, k, min(TERMS, end - k), *lefts, *(at + q * total[1] for at in totals)]
                entries.setdefault((rows.count, width), []).append(entry)
                q += width
    taps, channel = window.dilation * np.arange(window.taps)[:, None], np.arange(channels)
    left_k = taps * query[0] + channel * query[1]
    right_k = taps * pitch * searched[0] + channel * searched[1]
    return _table(dtype, entries, left_k.ravel(), right_k.ravel(), _offsets(shifts, searched))


def _runs(rows: Iterator[_Rows]) -> Iterator[tuple[_Rows, int]]:
    """Tiles that differ by one in m only, and nothing else, as the first of them and their number."""
    first, length = None, 0
    for tile in rows:
        if first is not None and tile == replace(first, m=first.m + length):
            length += 1
            continue
        if first is not None:
            yield first, length
        first, length = tile, 1
    if first is not None:
        yield first, length


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
    tiles = _tiling(relative_meets, vertical, ONE_PIXEL, channels)
    count = len(shifts)
    ms = np.arange(len(relative_meets[1]))
    entries: dict[tuple[int, int], list[list[int]]] = {}
    for rows, length in _runs(_tile_rows(relative_meets, vertical, ONE_PIXEL, tiles.rows)):
        # The offsets of a term are counted from the run's first displacement row, so that every run can use one list.
        right = (pitch * rows.t + advance * rows.m) * searched[0]
        lefts = [t * cotangent[2] + m * cotangent[0] for t, m in rows.each()]
        for k in range(0, length * count, TERMS):
            c = 0
            for width in tiles.widths:
                totals = [t * total[0] + c * total[1] for t, _ in rows.each()]
                entry = [right, c, k, min(TERMS, length * count - k), *lefts, *totals]
                entries.setdefault((rows.count, width), []).append(entry)
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
