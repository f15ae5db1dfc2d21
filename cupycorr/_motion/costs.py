"""The cost model of `match`: estimated seconds of each variant, from which ``"auto"`` chooses, and the sizes of its tasks.

The variants are ways to sum the products of windows with displaced windows, on tiles of windows that share pixels or, where each
window begins anywhere, on groups of single windows. ``operator``: the correlation operator. ``fft``: Fourier transforms of
each window and its search area. ``simd``: on a CPU, one of two kernels that LLVM compiles, for rows of neighbouring windows or
for windows far apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import _dispatch
from .._arguments import Pair
from .._arrays import array_kind
from .._correlation.problem import parameters, problem
from .._correlation.variants import OPERATOR as CORRELATION
from .._cpu import llvm, workers
from .._dispatch import CPU, FORWARD
from .by_fourier import fourier_lengths
from .by_operator import first_displacement
from .geometry import Lattice, Windows
from .tile import Tile

OPERATOR, FOURIER, ROWS, WINDOWS = ("operator", "fft", "rows", "windows")  # algorithms: modules by_operator and so on
_VARIANT_OF = {OPERATOR: "operator", FOURIER: "fft", ROWS: "simd", WINDOWS: "simd"}
VARIANTS = tuple(dict.fromkeys(_VARIANT_OF.values()))

# Sizes of tasks do not depend on the number of threads, so that the bits of a result do not either.
TASK_BYTES = 20 * 2**20  # bytes of a task; each thread has one
_FEWEST_SCORES = 2**13  # scores of a task below which calls of array functions would take most of the time
_FEWEST_WINDOWS = 16  # the same for single windows
_TASKS = 8  # tasks that a field is divided into at least, so that so many threads can share it
_SLABS = 4  # the same for a single window, whose slabs cost more than whole searches
_KEPT = 40 * 2**20  # bytes of the scores of a window that are kept
_GPU_TASK = 256 * 2**20  # bytes of a task on a GPU, which runs one at a time
_CACHED = 2**20  # bytes of scores of rows of windows, so that they stay in a processor's cache
_SCORES = 2 * 2**20  # bytes of scores of a tile whose windows are computed one by one
_GROUP = 12 * 2**20  # bytes of a group of search areas that are transformed
_ITEM = 8  # bytes of a float64
_COPIES = 8  # arrays of the size of a tile's scores that exist at once, where pixels are missing in both frames
_IMAGES = 8  # arrays of the size of a tile's rectangles that exist at once, or of a search area and its spectrum
_ROWS_OF_TILE = 64  # rows of windows that share the reading of their rectangles
_LARGEST_AREA = 400_000  # pixels of a search area that is transformed at once

# Seconds of one thread, measured on a Xeon of 2.6 GHz. More threads divide all of them.
_TRANSFORM = 0.5e-9  # for n log2 n of the n pixels of a search area; there are three transforms
_READ = 6e-9  # for a pixel of a rectangle
_TAKEN = 12e-9  # for a pixel of the rectangle of a single window
_SINGLE = 6e-6  # for a single window
_SUMMED = 6e-9  # for a pixel and a sum over windows
_SCORE = 10e-9  # for a score by NumPy
_PEAK = 50e-9  # for a peak
_ROW_PEAK = 1e-9  # for a score among which the peak kernel finds the highest
_TRANSFORMS = 3e-6  # for a window, without what grows with its search area
_ROW_SCORE = 1e-9  # for a score of the row kernel, without its sums over rows
_ROW_TAP = 0.09e-9  # for a score and a row of a window
_PRODUCT = 0.024e-9  # for a product of the window kernel
_FEW_DOWN, _FEW_ACROSS = 2, 6  # displacements that would take the time that it loses where there are few
_WINDOW = 1.5e-6  # for a window
_CALLS = 6e-4  # for the calls of array functions of a task
_GPU_FRACTION = 1 / 100  # of these seconds that a GPU takes: the ratio of memory bandwidths


@dataclass(frozen=True, slots=True)
class Request:
    """The facts of a call that the cost model needs."""

    frame: Any
    window: Pair
    tried: Pair
    windows: Windows

    @property
    def on_cpu(self) -> bool:
        """True for NumPy arrays."""
        return array_kind(self.frame) == "numpy"

    @property
    def displacements(self) -> int:
        """The number of displacements of a window."""
        return self.tried[0] * self.tried[1]


class Way(NamedTuple):
    """An algorithm, whether it computes tiles of windows that share pixels, and its estimated seconds."""

    algorithm: str
    in_tiles: bool
    seconds: float

    @property
    def variant(self) -> str:
        """The name of the variant."""
        return _VARIANT_OF[self.algorithm]


def cheapest(request: Request, variant: str) -> Way:
    """Return the cheapest way, or the cheapest of the named variant.

    Raises
    ------
    NotImplementedError
        The named variant cannot run.
    """
    of_variant = [way for way in _ways(request) if variant in ("auto", way.variant)]
    if not of_variant:
        raise NotImplementedError(f"variant={variant!r} cannot run: {_why_not_simd(request)}")
    return min(of_variant, key=lambda way: way.seconds)


def _why_not_simd(request: Request) -> str | None:
    """Return the reason why kernels that LLVM compiles cannot run, or None."""
    return llvm.why_not() if request.on_cpu else "simd is for NumPy arrays"


def _ways(request: Request) -> Iterator[Way]:
    algorithms = (OPERATOR, FOURIER) if _why_not_simd(request) else (OPERATOR, FOURIER, WINDOWS)
    for algorithm in algorithms:
        yield Way(algorithm, False, _seconds_of_single_windows(request, algorithm))
    if _fits_tiles(request):
        for algorithm in algorithms if _why_not_simd(request) else (*algorithms, ROWS):
            yield Way(algorithm, True, _seconds_in_tiles(request, algorithm))


def _seconds_of_single_windows(request: Request, algorithm: str) -> float:
    tile = Tile(request.window, request.tried)
    each = min(windows_at_once(request, algorithm), request.windows.count)
    groups = -(-request.windows.count // max(each, 1))
    pixels = _TAKEN * (math.prod(tile.span) + math.prod(tile.reach)) + 2 * _SUMMED * math.prod(tile.reach)
    numpy = _CALLS + each * (_SINGLE + pixels + request.displacements * _SCORE)
    return _total(request, groups, numpy, _product_seconds(request, tile, each, algorithm))


def _seconds_in_tiles(request: Request, algorithm: str) -> float:
    lattice = request.windows
    assert isinstance(lattice, Lattice)
    rows, columns = tile_counts(request, algorithm)
    tiles = -(-lattice.counts[0] // rows) * -(-lattice.counts[1] // columns)
    tile = Tile(request.window, request.tried, lattice.step, (rows, columns))
    pixels = math.prod(tile.span) + math.prod(tile.reach)
    scored = rows * columns * request.displacements
    if algorithm == ROWS:  # whose sums over windows and peaks are computed by kernels
        numpy = pixels * _READ + rows * columns * _PEAK + scored * _ROW_PEAK
    elif algorithm == WINDOWS:  # whose sums over windows are
        numpy = pixels * _READ + scored * _SCORE
    else:
        numpy = pixels * (_READ + 2 * _SUMMED) + scored * _SCORE
    seconds = _total(request, tiles, numpy, _product_seconds(request, tile, 1, algorithm))
    # The windows along a border of frame 2 are in tiles of their own, and take three sums of products instead of one.
    borders = sum(2 for tried in request.tried if tried > 1)
    if algorithm in (OPERATOR, ROWS):
        inside = (1 - (tried - 1) / s / n for tried, s, n in zip(request.tried, lattice.step, lattice.counts, strict=True))
        seconds *= 3 - 2 * math.prod(max(each, 0.0) for each in inside)
    return seconds + _total(request, tiles + borders, _CALLS, 0.0)


def _total(request: Request, tasks: int, numpy: float, products: float) -> float:
    """Return the seconds of some tasks, in one thread, from those of one task by array functions and by the sums of products."""
    if request.on_cpu:
        return tasks * (numpy + products)
    return tasks * (numpy * _GPU_FRACTION + products)


def _product_seconds(request: Request, tile: Tile, batch: int, algorithm: str) -> float:
    """Return the seconds that the sums of products of a task take, in one thread on a CPU."""
    windows = math.prod(tile.counts) * batch
    if algorithm == FOURIER:
        pixels = math.prod(fourier_lengths(tile))
        seconds = windows * (_TRANSFORMS + 3 * pixels * math.log2(pixels) * _TRANSFORM)
        return seconds if request.on_cpu else seconds * _GPU_FRACTION
    if algorithm == WINDOWS:
        down, across = tile.tried
        return windows * (_WINDOW + (down + _FEW_DOWN) * (across + _FEW_ACROSS) * tile.area * _PRODUCT)
    if algorithm == ROWS:
        # The kernel computes the windows between those of the lattice, too.
        return windows * request.displacements * tile.step[1] * (_ROW_SCORE + tile.window[0] * _ROW_TAP)
    return _operator_seconds(request, tile, batch)


def _operator_seconds(request: Request, tile: Tile, batch: int) -> float:
    """Return the operator's estimate for a tile: in one thread on a CPU."""
    given = parameters(tile.window, tile.tried, tile.step, patch_offset=first_displacement(tile.tried))
    asked = _dispatch.Request(FORWARD, problem(given, (batch, 1, *tile.span), (batch, 1, *tile.reach)), "float64", "float64")
    where = _dispatch.place(request.frame)
    with workers.prefer_threads(1):
        return _dispatch.choose(CORRELATION, asked if where is CPU else asked.dense(), where).plan.seconds


# Sizes of tasks ----------------------------------------------------------------------------------------------------------------


def task_bytes(request: Request) -> int:
    """Return the bytes that the arrays of a task may take."""
    return TASK_BYTES if request.on_cpu else _GPU_TASK


def task_threads(request: Request) -> int:
    """Return how many tasks may run at once."""
    return workers.thread_count() if request.on_cpu else 1


def _fits_tiles(request: Request) -> bool:
    """Return whether the windows are on a lattice, and the scores of one of them fit into a task."""
    return isinstance(request.windows, Lattice) and _tile_bytes(request, 1, 1) <= task_bytes(request)


def _tile_bytes(request: Request, rows: int, columns: int) -> int:
    assert isinstance(request.windows, Lattice)
    tile = Tile(request.window, request.tried, request.windows.step, (rows, columns))
    pixels = math.prod(tile.span) + math.prod(tile.reach)
    return _ITEM * (_COPIES * rows * columns * request.displacements + _IMAGES * pixels)


def tile_counts(request: Request, algorithm: str) -> Pair:
    """Return how many rows and columns of windows a tile has."""
    lattice = request.windows
    assert isinstance(lattice, Lattice)
    if algorithm == ROWS:
        columns = min(max(_CACHED // (_ITEM * request.displacements), _FEWEST_WINDOWS), lattice.counts[1])
        most = _ROWS_OF_TILE, -(-lattice.counts[1] // -(-lattice.counts[1] // columns))
    elif algorithm in (FOURIER, WINDOWS):
        windows = max((_SCORES if request.on_cpu else _GPU_TASK // _COPIES) // (_ITEM * request.displacements), 1)
        columns = min(lattice.counts[1], windows)
        most = windows // columns, columns
    else:
        most = _largest_tile(request)
    fewest = _FEWEST_SCORES // (request.displacements * most[1])
    rows = max(min(most[0], max(-(-lattice.counts[0] // _TASKS), fewest), lattice.counts[0]), 1)
    even = -(-lattice.counts[0] // max(lattice.counts[0] // rows, 1))  # instead of a last tile that is much smaller
    return _within_task(request, algorithm, (even if even <= most[0] else rows), most[1])


def _within_task(request: Request, algorithm: str, rows: int, columns: int) -> Pair:
    """Return the rows and columns of windows of a tile, or fewer if its arrays would take more than a task's bytes."""
    lattice = request.windows
    assert isinstance(lattice, Lattice)
    while rows * columns > 1:
        tile = Tile(request.window, request.tried, lattice.step, (rows, columns))
        at_once = rows_at_once(tile) if algorithm == ROWS else rows
        scores = at_once * columns * request.displacements
        if _ITEM * (_COPIES * scores + _IMAGES * (math.prod(tile.span) + math.prod(tile.reach))) <= task_bytes(request):
            break
        if columns == 1 or (rows > 1 and tile.span[0] > tile.span[1]):
            rows = -(-rows // 2)
        else:
            columns = -(-columns // 2)
    return rows, columns


def _largest_tile(request: Request) -> Pair:
    """Return the rows and columns of windows of the largest tile for the operator, with the least pixels computed twice."""
    lattice = request.windows
    assert isinstance(lattice, Lattice)
    best, least = (1, 1), math.inf
    parts = 1
    while parts <= lattice.counts[1]:
        columns = -(-lattice.counts[1] // parts)
        rows = _most_rows(request, columns)
        if rows:
            pixels = math.prod(Tile(request.window, (1, 1), lattice.step, (rows, columns)).span) / (rows * columns)
            if pixels < least:
                best, least = (rows, columns), pixels
        parts += max(parts // 4, 1)
    return best


def rows_at_once(tile: Tile, sums: int = 1) -> int:
    """Return how many rows of windows the row kernel computes so many sums of before their peaks are found."""
    row = _ITEM * sums * math.prod(tile.tried) * tile.counts[1] * tile.step[1]
    return min(max(_CACHED // row, 1), tile.counts[0])


def _most_rows(request: Request, columns: int) -> int:
    """Return how many rows of windows of so many columns fit into a task."""
    assert isinstance(request.windows, Lattice)
    one, two = (_tile_bytes(request, rows, columns) for rows in (1, 2))
    free = task_bytes(request) - one
    return 0 if free < 0 else min(1 + free // max(two - one, 1), request.windows.counts[0])


def windows_at_once(request: Request, algorithm: str) -> int:
    """Return how many single windows a group has."""
    tile = Tile(request.window, request.tried)
    area = math.prod(fourier_lengths(tile) if algorithm == FOURIER else tile.reach)
    each = _ITEM * (_IMAGES * area + _COPIES * request.displacements)
    limit = _GROUP if request.on_cpu else _GPU_TASK
    return max(min(limit // each, max(-(-request.windows.count // _TASKS), _FEWEST_WINDOWS)), 1)


def slab(request: Request, algorithm: str) -> Pair | None:
    """Return the displacements, down and across, of the slabs that a single window's search is divided into; None if it is not.

    It is where it would take too much memory as one task, and where there are few windows for the threads to share.
    """
    down, across = request.tried
    if algorithm == FOURIER:
        most = [max(math.isqrt(_LARGEST_AREA) - w, w // 2, 64) for w in request.window]
        if math.prod(Tile(request.window, request.tried).reach) > _LARGEST_AREA:
            down, across = min(down, most[0]), min(across, most[1])
        # Otherwise most of a slab's search area would be the window's own pixels, which every slab transforms again.
        divisible = max(down - request.window[0], across - request.window[1]) > 0
    else:
        most_scores = task_bytes(request) // (_ITEM * (_COPIES + _IMAGES))
        if request.displacements > most_scores:
            side = math.isqrt(most_scores)
            down, across = min(down, max(side, most_scores // across)), min(across, max(side, most_scores // down))
        divisible = math.prod(request.window) * request.displacements * _PRODUCT > _SLABS * _CALLS
    slabs = -(-request.tried[0] // down) * -(-request.tried[1] // across)
    missing = math.ceil(_SLABS / max(request.windows.count * slabs, 1))
    if missing > 1 and divisible:
        down, across = (-(-down // missing), across) if down > across else (down, -(-across // missing))
    return None if (down, across) == request.tried else (down, across)


def keeps_scores(request: Request) -> bool:
    """Return whether there is memory for all scores of a window, and for the numbers of pixels compared."""
    return 2 * _ITEM * request.displacements <= _KEPT
