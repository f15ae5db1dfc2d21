"""The engine of the ``simd`` variant: tables that tell `register_tile` which products of a block to sum.

A register tile reuses each loaded value in two ways. Its rows are query rows that read the same search row, each at another
displacement row of a phase: query rows one ``step`` apart do so at neighbouring displacement rows. Its width multiplies each
query value with several shifts of that search row (forward: displacements) or each cotangent with several of its channels
(gradients). The tables list valid rows only. This module knows packed blocks, and neither threads nor windows over columns.
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
from ..._cpu.llvm import address
from ..._dtypes import LONGEST_CHAIN
from ..problem import lattice_inside
from .blocks import COLUMNS, NS, ROWS
from .costs import ADDITION_CYCLES, CYCLE, ENTRY_CYCLES, KERNEL_CALLS
from .engine import Workload
from .lattice import ONE_PIXEL, Window
from .packing import Block, BlockAxis, Phase

# Number of registers -> rows -> width -> cycles of a tile for one term of a vector of columns, measured on Zen 4 with 32
# registers of 64 bytes. Tiles that would spill registers are not in the table.
_CYCLES: dict[int, dict[int, dict[int, float]]] = {
    32: {
        1: {q: 2 * q + 1 for q in range(1, 11)},
        2: {q: 2 * q + 3 for q in range(1, 11)},
        3: {q: max(17, 3 * q) for q in range(1, 8)},
    },
    16: {1: {q: q + 1 for q in range(1, 7)}, 2: {q: q + 3 for q in range(1, 5)}, 3: {q: 1.5 * q + 3 for q in range(1, 4)}},
}


@dataclass(frozen=True, slots=True)
class Tiling:
    """The number of query rows of a tile, and the widths into which a number of displacements or channels is divided."""

    rows: int
    widths: tuple[int, ...]


@lru_cache(maxsize=256)
def tiling(count: int, row_reuse: int, register_count: int) -> Tiling:
    """Return the cheapest tiles for ``count`` displacements (or channels), where ``row_reuse`` query rows read one search row."""
    candidates = []
    for rows, cycles in _CYCLES[register_count].items():
        if rows <= row_reuse or rows == 1:
            tiles = -(-count // max(cycles))
            widths = tuple(count // tiles + (index < count % tiles) for index in range(tiles))
            candidates.append((sum(cycles[width] for width in widths) / rows, Tiling(rows, widths)))
    return min(candidates, key=lambda candidate: candidate[0])[1]


class RegisterTiles:
    """The engine of the ``simd`` variant."""

    name = "simd"
    compiles = True
    sums_rows = True

    @property
    def description(self) -> str:
        """See `engine.Engine`."""
        widest = max(register_tile.registers().widths)
        return f"register tiles of {8 * widest}-bit vectors in {workers.thread_count()} thread(s)"

    def threads(self) -> int:
        """Return the number of all threads: kernels run without the interpreter's lock."""
        return workers.thread_count()

    def seconds(self, workload: Workload) -> float:
        """See `engine.Engine`."""
        if workload.gradient:
            sums, width = float(workload.rows), workload.channels
            terms = workload.patch_rows * workload.patch_columns * workload.valid_fraction
        else:
            sums, width = workload.row_pairs, workload.patch_columns
            terms = float(workload.taps * workload.channels)
        registers = register_tile.registers()
        tiles = tiling(width, max(workload.row_reuse, 1), registers.count)
        cycles = _CYCLES[registers.count][tiles.rows]
        vectors = -(-workload.columns * workload.itemsize // max(registers.widths))
        term_cycles = vectors * sum(cycles[each] for each in tiles.widths) / tiles.rows
        chain_cycles = len(tiles.widths) * ENTRY_CYCLES / tiles.rows + width * vectors * ADDITION_CYCLES
        return KERNEL_CALLS + sums * (terms * term_cycles + (1 + terms // LONGEST_CHAIN.registers) * chain_cycles) * CYCLE

    def volume(self, block: Block, query: np.ndarray, total: np.ndarray) -> None:
        """See `engine.Engine`."""
        table = _volume_table(
            block.region.lengths[ROWS],
            block.valid_rows,
            _rebased(block.rows),
            block.window,
            _column_offsets(block.columns, block.region.lengths[NS]),
            query.shape[1],
            total.dtype,
            _strides(query),
            _strides(block.search),
            _strides(total),
        )
        _run(table, query, block, total)

    def gradient(self, block: Block, cotangent: np.ndarray, total: np.ndarray) -> None:
        """See `engine.Engine`."""
        table = _gradient_table(
            block.region.lengths[ROWS],
            block.valid_rows,
            _rebased(block.rows),
            _column_offsets(block.columns, block.region.lengths[NS]),
            total.shape[1],
            total.dtype,
            _strides(cotangent),
            _strides(block.search),
            _strides(total),
        )
        _run(table, cotangent, block, total)


@lru_cache(maxsize=1024)
def _rebased(axis: BlockAxis) -> BlockAxis:
    """Return the axis with packed indices counted from its first phase, so that blocks which differ only in it share a table."""
    base = axis.phases[0].base
    return BlockAxis(axis.pitch, axis.step, tuple(Phase(each.first, each.count, each.base - base) for each in axis.phases))


@lru_cache(maxsize=1024)
def _column_offsets(axis: BlockAxis, width: int) -> tuple[int, ...]:
    """Return the packed column that query 0 reads at each displacement index, counted from the first phase."""
    offsets = [0] * width
    for phase in axis.phases:
        for k in range(phase.count):
            offsets[phase.first + axis.pitch * k] = phase.base - axis.phases[0].base + axis.step * k
    return tuple(offsets)


def _strides(array: np.ndarray) -> tuple[int, ...]:
    """Return the strides in elements."""
    return tuple(stride // array.itemsize for stride in array.strides)


@dataclass(frozen=True, slots=True)
class _KernelCall:
    """A kernel for one tile shape, with the address and the number of its entries."""

    kernel: Callable[..., None]
    entries: int
    count: int


@dataclass(frozen=True, slots=True)
class _Table:
    """The kernel calls of a block, one for each tile shape, and the lists of offsets that they share."""

    calls: tuple[_KernelCall, ...]
    offsets: tuple[int, int, int]  # addresses of left_k, right_k, right_q
    arrays: tuple[np.ndarray, ...]  # the owners of the memory at these addresses


def _run(table: _Table, left: np.ndarray, block: Block, total: np.ndarray) -> None:
    """Call the kernels of a table on the arrays of a block."""
    search, total_q = block.search, _strides(total)[1]
    row, _, column = _strides(search)
    first = block.rows.phases[0].base * row + block.columns.phases[0].base * column
    addresses = address(left), address(search) + first * search.itemsize, address(total)
    vectors = _vectors(block.region.lengths[COLUMNS], total.itemsize)
    for call in table.calls:
        call.kernel(*addresses, call.entries, call.count, *table.offsets, total_q, *vectors)


@lru_cache(maxsize=256)
def _vectors(columns: int, itemsize: int) -> tuple[int, ...]:
    """Return how many vectors of each register width cover the columns, with the least overhang of the last vector."""
    counts: list[int] = []
    widths = [width // itemsize for width in register_tile.registers().widths]
    for lanes in widths[:-1]:
        # A remainder beyond one vector of the next width takes one more vector of this width.
        count, remainder = divmod(columns, lanes)
        count += remainder > widths[len(counts) + 1]
        counts.append(count)
        columns = max(columns - count * lanes, 0)
    return (*counts, -(-columns // widths[-1]))


# Tables ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _TileRows:
    """The rows of a tile, which all read the same search rows, each summed over the window's taps ``[taps[0], taps[1])``.

    Row r < ``count`` is query row ``t + r t_step`` at displacement row ``m - r m_step`` of the phase.
    """

    t: int
    m: int
    count: int
    t_step: int
    m_step: int
    taps: Pair

    def pairs(self) -> list[Pair]:
        """Return the query row and the displacement row of every row."""
        return [(self.t + r * self.t_step, self.m - r * self.m_step) for r in range(self.count)]


def _reuse_steps(step: int, window: Window) -> Pair:
    """Return the distances in query rows and in displacement rows of a phase between two rows that read the same search row."""
    t_step = lcm(step, window.stride)
    return t_step, t_step // step


def _tile_rows(rows: int, valid_rows: tuple[Pair, ...], step: int, window: Window, most: int) -> Iterator[_TileRows]:
    """Yield all valid pairs of a block's query row and a displacement row of a phase, in tiles of up to ``most`` rows.

    ``rows`` is the number of rows of the block; ``valid_rows`` are those of the displacement rows of the phase.
    """
    t_step, m_step = _reuse_steps(step, window)
    ts = range(0, window.output_length(rows) * window.stride, window.stride)
    for residue in range(min(t_step // window.stride, len(ts))):
        reusing = ts[residue :: t_step // window.stride]
        for at in range(0, len(reusing), most):
            group = reusing[at : at + most]
            for m in range(len(valid_rows) + (len(group) - 1) * m_step):
                taps = [_valid_taps(valid_rows, m - r * m_step, t, window) for r, t in enumerate(group)]
                for common, indices in groupby(range(len(group)), key=taps.__getitem__):
                    if common[0] < common[1]:
                        found = list(indices)
                        yield _TileRows(group[found[0]], m - found[0] * m_step, len(found), t_step, m_step, common)


def _valid_taps(valid_rows: Sequence[Pair], m: int, t: int, window: Window) -> Pair:
    """Return the range of taps of the window at row ``t`` that are valid pairs with displacement row ``m``."""
    if not 0 <= m < len(valid_rows):
        return 0, 0
    return lattice_inside(t, window.dilation, window.taps, *valid_rows[m])


def _tiling(rows: int, axis: BlockAxis, window: Window, count: int) -> Tiling:
    """Return the tiles for ``count`` displacements or channels of a block."""
    t_step, m_step = _reuse_steps(axis.step, window)
    longest = max(phase.count for phase in axis.phases)
    row_reuse = min(-(-window.output_length(rows) * window.stride // t_step), 1 + (longest - 1) // m_step)
    return tiling(count, row_reuse, register_tile.registers().count)


@lru_cache(maxsize=256)
def _volume_table(
    rows: int,
    valid_rows: tuple[Pair, ...],
    axis: BlockAxis,
    window: Window,
    offsets: tuple[int, ...],
    channels: int,
    dtype: np.dtype,
    query: tuple[int, ...],
    search: tuple[int, ...],
    total: tuple[int, ...],
) -> _Table:
    """Return the table of `RegisterTiles.volume`: q are displacements, k are taps and channels.

    ``query``, ``search`` and ``total`` are the strides of the arrays in elements.
    """
    tiles = _tiling(rows, axis, window, len(offsets))
    entries: dict[tuple[int, int], list[list[int]]] = {}
    for phase in axis.phases:
        of_phase = valid_rows[phase.first :: axis.pitch][: phase.count]
        for tile in _tile_rows(rows, of_phase, axis.step, window, tiles.rows):
            right = (phase.base + tile.t + axis.step * tile.m) * search[0]
            lefts = [t * query[0] for t, _ in tile.pairs()]
            totals = [(phase.first + axis.pitch * m) * total[0] + t // window.stride * total[2] for t, m in tile.pairs()]
            first, end = (tap * channels for tap in tile.taps)
            for k in range(first, end, LONGEST_CHAIN.registers):
                q = 0
                for width in tiles.widths:
                    entry = [right, q, k, min(LONGEST_CHAIN.registers, end - k), *lefts, *(at + q * total[1] for at in totals)]
                    entries.setdefault((tile.count, width), []).append(entry)
                    q += width
    taps, channel = window.dilation * np.arange(window.taps)[:, None], np.arange(channels)
    left_k = taps * query[0] + channel * query[1]
    right_k = taps * search[0] + channel * search[1]
    return _table(dtype, entries, left_k.ravel(), right_k.ravel(), np.array(offsets) * search[2])


def _runs(rows: Iterator[_TileRows]) -> Iterator[tuple[_TileRows, int]]:
    """Yield the runs of tiles at consecutive m that are equal otherwise: the first tile and the length of the run."""
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
    valid_rows: tuple[Pair, ...],
    axis: BlockAxis,
    offsets: tuple[int, ...],
    channels: int,
    dtype: np.dtype,
    cotangent: tuple[int, ...],
    search: tuple[int, ...],
    total: tuple[int, ...],
) -> _Table:
    """Return the table of `RegisterTiles.gradient`: q are channels, k are displacements.

    ``cotangent``, ``search`` and ``total`` are the strides of the arrays in elements.
    """
    tiles = _tiling(rows, axis, ONE_PIXEL, channels)
    width = len(offsets)
    entries: dict[tuple[int, int], list[list[int]]] = {}
    for phase in axis.phases:
        of_phase = valid_rows[phase.first :: axis.pitch][: phase.count]
        for tile, length in _runs(_tile_rows(rows, of_phase, axis.step, ONE_PIXEL, tiles.rows)):
            # Offsets of k are counted from the first displacement row of the run, so that all runs share one list.
            right = (phase.base + tile.t + axis.step * tile.m) * search[0]
            lefts = [t * cotangent[2] + (phase.first + axis.pitch * m) * cotangent[0] for t, m in tile.pairs()]
            for k in range(0, length * width, LONGEST_CHAIN.registers):
                c = 0
                for tile_channels in tiles.widths:
                    totals = [t * total[0] + c * total[1] for t, _ in tile.pairs()]
                    entry = [right, c, k, min(LONGEST_CHAIN.registers, length * width - k), *lefts, *totals]
                    entries.setdefault((tile.count, tile_channels), []).append(entry)
                    c += tile_channels
    ms = np.arange(max(phase.count for phase in axis.phases))[:, None]
    left_k = ms * axis.pitch * cotangent[0] + np.arange(width) * cotangent[1]
    right_k = ms * axis.step * search[0] + np.array(offsets) * search[2]
    return _table(dtype, entries, left_k.ravel(), right_k.ravel(), np.arange(channels) * search[1])


def _table(
    dtype: np.dtype,
    entries: dict[tuple[int, int], list],
    left_k: np.ndarray,
    right_k: np.ndarray,
    right_q: np.ndarray,
) -> _Table:
    """Compile the kernels of all tile shapes, and put their entries and offsets into arrays."""
    offsets = tuple(np.ascontiguousarray(values, np.int64) for values in (left_k, right_k, right_q))
    first, second, third = map(address, offsets)
    arrays = tuple(np.array(rows, np.int64) for rows in entries.values())
    kernels = (register_tile.kernel(*shape, dtype) for shape in entries)
    calls = tuple(_KernelCall(kernel, address(rows), len(rows)) for kernel, rows in zip(kernels, arrays, strict=True))
    return _Table(calls, (first, second, third), offsets + arrays)


ENGINE = RegisterTiles()
