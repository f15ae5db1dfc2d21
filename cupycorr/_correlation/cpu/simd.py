"""The products of a block in register tiles: tables that tell `register_tile` what to multiply.

Two reuses make a tile. Query rows one `step` apart read the same searched row, at neighbouring displacement rows of a phase: they
are the tile's rows. And one value of them is multiplied with many shifts of that searched row (forward: displacements) or many
channels of it (gradients): the tile's width. Only products that count are computed; rows outside the image are left out of the
table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from math import lcm

import numpy as np

from ..._arguments import Pair
from ..._cpu import register_tile, workers
from ..problem import lattice_inside
from .blocks import COLUMNS, NS, ROWS
from .engine import Products
from .lattice import ONE_PIXEL, Window
from .packing import Block, BlockAxis, Phase

TERMS = 128  # products summed in registers before they are added to memory: bounds the rounding error and the cache footprint

# (rows, width) -> cycles for one term of a vector of columns, measured on Zen 4 with 32 vector registers of 64 bytes.
# A width that would spill is not in the table.
_CYCLES: dict[int, dict[int, dict[int, float]]] = {
    32: {
        1: {q: 2 * q + 1 for q in range(1, 11)},
        2: {q: 2 * q + 3 for q in range(1, 11)},
        3: {q: max(17, 3 * q) for q in range(1, 8)},
    },
    16: {1: {q: q + 1 for q in range(1, 7)}, 2: {q: q + 3 for q in range(1, 5)}, 3: {q: 1.5 * q + 3 for q in range(1, 4)}},
}


# Estimates for the cost model, of a processor of 3 GHz: cycles that a table's entry takes beside its products, and that adding a
# vector to memory takes; seconds of a cycle and of a call of the kernels from Python.
_ENTRY, _ADDITION = 60, 6
_CYCLE, _CALL = 0.4e-9, 50e-6


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

    name = "simd"

    @property
    def description(self) -> str:
        """The width of the vectors and the number of threads, in words."""
        widest = max(register_tile.registers().widths)
        return f"register tiles of {8 * widest}-bit vectors in {workers.thread_count()} thread(s)"

    def threads(self) -> int:
        """All threads: the kernels release the interpreter's lock."""
        return workers.thread_count()

    sums_rows = True

    def seconds(self, products: Products) -> float:
        """See `engine.Engine`."""
        if products.gradient:
            sums, width = float(products.rows), products.channels
            terms = products.patch_rows * products.patch_columns * products.share
        else:
            sums, width = products.row_pairs, products.patch_columns
            terms = float(products.taps * products.channels)
        registers = register_tile.registers()
        tiles = tiling(width, max(products.alike, 1), registers.count)
        cycles = _CYCLES[registers.count][tiles.rows]
        vectors = -(-products.columns * products.itemsize // max(registers.widths))
        per_term = vectors * sum(cycles[each] for each in tiles.widths) / tiles.rows
        per_run = len(tiles.widths) * _ENTRY / tiles.rows + width * vectors * _ADDITION
        return _CALL + sums * (terms * per_term + (1 + terms // TERMS) * per_run) * _CYCLE

    def volume(self, block: Block, query: np.ndarray, total: np.ndarray) -> None:
        """See `engine.Engine`."""
        table = _volume_table(
            block.region.lengths[ROWS],
            block.counting,
            _from_first(block.rows),
            block.window,
            _offsets(block.columns, _width(block)),
            query.shape[1],
            total.dtype,
            _strides(query),
            _strides(block.searched),
            _strides(total),
        )
        _run(table, query, _searched_at(block), total, block.region.lengths[COLUMNS], _strides(total)[1])

    def gradient(self, block: Block, cotangent: np.ndarray, total: np.ndarray) -> None:
        """See `engine.Engine`."""
        table = _gradient_table(
            block.region.lengths[ROWS],
            block.counting,
            _from_first(block.rows),
            _offsets(block.columns, _width(block)),
            total.shape[1],
            total.dtype,
            _strides(cotangent),
            _strides(block.searched),
            _strides(total),
        )
        _run(table, cotangent, _searched_at(block), total, block.region.lengths[COLUMNS], _strides(total)[1])


def _width(block: Block) -> int:
    return block.region.lengths[NS]


@lru_cache(maxsize=1024)
def _from_first(axis: BlockAxis) -> BlockAxis:
    """Return the axis with packed indices counted from its first phase's, so that blocks that differ in these share a table."""
    base = axis.phases[0].base
    return BlockAxis(axis.pitch, axis.step, tuple(Phase(each.first, each.count, each.base - base) for each in axis.phases))


@lru_cache(maxsize=1024)
def _offsets(axis: BlockAxis, width: int) -> tuple[int, ...]:
    """Return the packed column of each displacement index for query 0, counted from the first phase's."""
    offsets = [0] * width
    for phase in axis.phases:
        for k in range(phase.count):
            offsets[phase.first + axis.pitch * k] = phase.base - axis.phases[0].base + axis.step * k
    return tuple(offsets)


def _strides(array: np.ndarray) -> tuple[int, ...]:
    return tuple(stride // array.itemsize for stride in array.strides)


def _searched_at(block: Block) -> tuple[np.ndarray, int]:
    """Return the searched array, and the element of it that query 0 reads at the first displacement of the first phases."""
    strides = _strides(block.searched)
    return block.searched, block.rows.phases[0].base * strides[0] + block.columns.phases[0].base * strides[2]


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
    counts: list[int] = []
    widths = [width // itemsize for width in register_tile.registers().widths]
    for lanes in widths[:-1]:
        # A remainder that a narrower vector cannot hold is left to one more of this width.
        count, rest = divmod(columns, lanes)
        count += rest > widths[len(counts) + 1]
        counts.append(count)
        columns = max(columns - count * lanes, 0)
    return (*counts, -(-columns // widths[-1]))


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a tile: row r is query row ``t + r t_step`` at the phase's displacement row ``m - r m_step``, r < count, each
    summed over the window's taps in ``[taps[0], taps[1])``. They all read the same searched rows."""

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


def _steps(step: int, window: Window) -> Pair:
    """Rows this far apart in t, at displacement rows of a phase this far apart in m, read the same searched row."""
    t_step = lcm(step, window.stride)
    return t_step, t_step // step


def _tile_rows(rows: int, counting: tuple[Pair, ...], step: int, window: Window, most: int) -> Iterator[_Rows]:
    """Yield every row of a block at every displacement row of a phase that counts, in tiles of up to ``most`` rows.

    ``counting`` has the phase's displacement rows, ``rows`` are the block's.
    """
    t_step, m_step = _steps(step, window)
    ts = range(0, _outputs(rows, window) * window.stride, window.stride)
    for residue in range(min(t_step // window.stride, len(ts))):
        alike = ts[residue :: t_step // window.stride]
        for at in range(0, len(alike), most):
            group = alike[at : at + most]
            for m in range(len(counting) + (len(group) - 1) * m_step):
                taps = [_taps_counting(counting, m - r * m_step, t, window) for r, t in enumerate(group)]
                for range_of_taps, alike_rows in groupby(range(len(group)), key=taps.__getitem__):
                    if range_of_taps[0] < range_of_taps[1]:
                        found = list(alike_rows)
                        yield _Rows(group[found[0]], m - found[0] * m_step, len(found), t_step, m_step, range_of_taps)


def _taps_counting(counting: Sequence[Pair], m: int, t: int, window: Window) -> Pair:
    """Return the taps ``[begin, end)`` of the window at row t that count at displacement row m."""
    if not 0 <= m < len(counting):
        return 0, 0
    return lattice_inside(t, window.dilation, window.taps, *counting[m])


def _tiling(rows: int, axis: BlockAxis, window: Window, count: int) -> Tiling:
    """Return the tiles for ``count`` displacements or channels of a block."""
    t_step, m_step = _steps(axis.step, window)
    longest = max(phase.count for phase in axis.phases)
    alike = min(-(-_outputs(rows, window) * window.stride // t_step), 1 + (longest - 1) // m_step)
    return tiling(count, alike, register_tile.registers().count)


@lru_cache(maxsize=256)
def _volume_table(
    rows: int,
    counting: tuple[Pair, ...],
    axis: BlockAxis,
    window: Window,
    offsets: tuple[int, ...],
    channels: int,
    dtype: np.dtype,
    query: tuple[int, ...],
    searched: tuple[int, ...],
    total: tuple[int, ...],
) -> _Table:
    """Tile width: displacements. Terms: taps and channels."""
    tiles = _tiling(rows, axis, window, len(offsets))
    entries: dict[tuple[int, int], list[list[int]]] = {}
    for phase in axis.phases:
        of_phase = counting[phase.first :: axis.pitch][: phase.count]
        for tile in _tile_rows(rows, of_phase, axis.step, window, tiles.rows):
            right = (phase.base + tile.t + axis.step * tile.m) * searched[0]
            lefts = [t * query[0] for t, _ in tile.each()]
            totals = [(phase.first + axis.pitch * m) * total[0] + t // window.stride * total[2] for t, m in tile.each()]
            first, end = (tap * channels for tap in tile.taps)
            for k in range(first, end, TERMS):
                q = 0
                for width in tiles.widths:
                    entry = [right, q, k, min(TERMS, end - k), *lefts, *(at + q * total[1] for at in totals)]
                    entries.setdefault((tile.count, width), []).append(entry)
                    q += width
    taps, channel = window.dilation * np.arange(window.taps)[:, None], np.arange(channels)
    left_k = taps * query[0] + channel * query[1]
    right_k = taps * searched[0] + channel * searched[1]
    return _table(dtype, entries, left_k.ravel(), right_k.ravel(), np.array(offsets) * searched[2])


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


@lru_cache(maxsize=256)
def _gradient_table(
    rows: int,
    counting: tuple[Pair, ...],
    axis: BlockAxis,
    offsets: tuple[int, ...],
    channels: int,
    dtype: np.dtype,
    cotangent: tuple[int, ...],
    searched: tuple[int, ...],
    total: tuple[int, ...],
) -> _Table:
    """Tile width: channels. Terms: displacements."""
    tiles = _tiling(rows, axis, ONE_PIXEL, channels)
    width = len(offsets)
    entries: dict[tuple[int, int], list[list[int]]] = {}
    for phase in axis.phases:
        of_phase = counting[phase.first :: axis.pitch][: phase.count]
        for tile, length in _runs(_tile_rows(rows, of_phase, axis.step, ONE_PIXEL, tiles.rows)):
            # The offsets of a term are counted from the run's first displacement row, so that every run can use one list.
            right = (phase.base + tile.t + axis.step * tile.m) * searched[0]
            lefts = [t * cotangent[2] + (phase.first + axis.pitch * m) * cotangent[0] for t, m in tile.each()]
            for k in range(0, length * width, TERMS):
                c = 0
                for channels_of_tile in tiles.widths:
                    totals = [t * total[0] + c * total[1] for t, _ in tile.each()]
                    entry = [right, c, k, min(TERMS, length * width - k), *lefts, *totals]
                    entries.setdefault((tile.count, channels_of_tile), []).append(entry)
                    c += channels_of_tile
    ms = np.arange(max(phase.count for phase in axis.phases))[:, None]
    left_k = ms * axis.pitch * cotangent[0] + np.arange(width) * cotangent[1]
    right_k = ms * axis.step * searched[0] + np.array(offsets) * searched[2]
    return _table(dtype, entries, left_k.ravel(), right_k.ravel(), np.arange(channels) * searched[1])


def _table(
    dtype: np.dtype,
    entries: dict[tuple[int, int], list],
    left_k: np.ndarray,
    right_k: np.ndarray,
    right_q: np.ndarray,
) -> _Table:
    shared = tuple(np.ascontiguousarray(values, np.int64) for values in (left_k, right_k, right_q))
    first, second, third = map(_address, shared)
    listed = tuple(np.array(rows, np.int64) for rows in entries.values())
    kernels = (register_tile.kernel(*shape, dtype) for shape in entries)
    calls = tuple((kernel, _address(rows), len(rows)) for kernel, rows in zip(kernels, listed, strict=True))
    return _Table(calls, (first, second, third), shared + listed)


ENGINE = RegisterTiles()
