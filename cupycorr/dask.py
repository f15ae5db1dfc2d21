"""`match` and `spatial_correlation_sample` for Dask arrays of NumPy or CuPy chunks, lazily and on any scheduler.

Each chunk of a result is one task that reads from the inputs' chunks what it needs, with the halo of windows and search, so that
no input is ever in memory as a whole. What a call decides for its arrays as a whole is decided here, once, for all chunks: the
arguments are checked and the way to compute is chosen before anything is computed. Only this module needs Dask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate, product
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import DTypeLike

try:
    import dask
    import dask.array as da
    from dask.base import tokenize
    from dask.highlevelgraph import HighLevelGraph
    from dask.task_spec import Task, TaskRef
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('cupycorr.dask needs Dask: pip install "cupycorr[dask]"', name=error.name) from error

from . import _dispatch
from ._arguments import IntOrPair, Pair, effective_precision
from ._arrays import FIELD, OPERAND, Role, array_kind, array_module, current_device_of, known_array, known_arrays
from ._checks import result_dtype
from ._chunks import Chunks, Cover, cover
from ._correlation.api import checked_problem
from ._correlation.api import spatial_correlation_sample as correlate
from ._correlation.problem import Axis, AxisPart, Parameters
from ._correlation.variants import OPERATOR
from ._cpu import workers
from ._dispatch import FORWARD, Request
from ._dtypes import dtype_name
from ._motion import costs
from ._motion.arguments import Measurement, check_frames, check_mask, measurement
from ._motion.frames import LUMA, Frame
from ._motion.geometry import Lattice, SingleWindows, divided, pixels_read
from ._motion.peaks import GAUSSIAN
from .motion import Match, measured

__all__ = ["match", "spatial_correlation_sample"]

Box = Sequence[Pair]  # the range [begin, end) along every axis

_DTYPES = {
    "dx": np.float64,
    "dy": np.float64,
    "score": np.float64,
    "at_edge": np.bool_,
    "peak_ratio": np.float64,
    "count": np.int64,
    "consistency": np.float64,
}


def match(
    frame1: da.Array,
    frame2: da.Array,
    window: IntOrPair = 11,
    search: Sequence[Sequence[SupportsIndex]] = ((-4, 4), (-4, 4)),
    step: IntOrPair = 1,
    subpixel: bool | str = GAUSSIAN,
    *,
    mask1: da.Array | None = None,
    mask2: da.Array | None = None,
    points: Any = None,
    offset: Any = None,
    consistency: bool = False,
    variant: str = "auto",
) -> Match[da.Array]:  # type: ignore[type-var]
    """Find the displacement of each window of one frame to another, chunk by chunk: `cupycorr.match` for Dask arrays.

    The result is lazy and equals that of `cupycorr.match` on the whole frames: to the bit for grey frames of 8- and 16-bit
    integers, and otherwise but for rounding errors, since grey values are measured from a level near those of a chunk.

    Parameters
    ----------
    frame1, frame2 : dask.array.Array of shape (H, W) or (H, W, 3), or (T, H, W) or (T, H, W, 3)
        NumPy or CuPy chunks of any integer or floating dtype. If they are T frames each, the first one of ``frame1`` is matched
        with the first one of ``frame2``, and so on. An array whose last axis has length 3 has colour. The frames may be divided
        into different chunks. The result is divided as ``frame1`` is, where its chunks are not smaller than the halo.
    window : int or (int, int), default 11
        As for `cupycorr.match`.
    search : ((int, int), (int, int)), default ((-4, 4), (-4, 4))
        As for `cupycorr.match`, but not None, because all of frame 2 would not be in one chunk.
    step : int or (int, int), default 1
        As for `cupycorr.match`.
    subpixel : {"gaussian", "parabola", True, False}, default "gaussian"
        As for `cupycorr.match`.
    mask1, mask2 : dask.array.Array of bool, optional
        True where a pixel is valid, of the frame's height and width, and its number of frames. In any chunks.
    points : array_like of shape (N, 2), optional
        As for `cupycorr.match`, in memory: they decide which pixels a chunk needs. For T frames there are no points.
    offset : (array_like, array_like), optional
        As for `cupycorr.match`, in memory, too. For T frames the offsets are those of every frame.
    consistency : bool, default False
        As for `cupycorr.match`.
    variant : {"auto", "operator", "fft", "simd"}, default "auto"
        As for `cupycorr.match`.

    Returns
    -------
    Match of dask.array.Array
        The fields of `cupycorr.Match`, for T frames of shape (T, H', W'). ``dask.compute`` makes them NumPy or CuPy arrays in one
        pass, which computes each chunk once; computed one by one, each field would take as long as all.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `cupycorr.match`, at once. A TypeError also for a frame or mask that is not a Dask array, for masked chunks, and for
        points or offsets that are; a ValueError for ``search=None``, for chunks of unknown length, for frames of different
        numbers, and for points of several frames.

    See Also
    --------
    cupycorr.match : The same for frames in memory.
    cupycorr.median_residual : Find displacements that do not fit to those around them.

    Notes
    -----
    A chunk is computed in one thread, because Dask computes several at once. Its memory is that of the chunks of both frames
    around it, of the pixels that it reads, and of its result, and tens of MiB more, or up to 256 MiB on a GPU.

    Examples
    --------
    >>> import dask
    >>> import dask.array as da
    >>> import numpy as np
    >>> import cupycorr.dask
    >>> frame1 = np.random.default_rng(0).integers(0, 256, (400, 600), dtype=np.uint8)
    >>> frame2 = np.roll(frame1, (2, -3), axis=(0, 1))  # everything moved down 2 and left 3
    >>> chunked1, chunked2 = da.from_array(frame1, chunks=200), da.from_array(frame2, chunks=150)
    >>> lazy = cupycorr.dask.match(chunked1, chunked2, window=16, step=8, subpixel=False)
    >>> lazy.dx.shape, lazy.dx.numblocks
    ((49, 74), (2, 3))
    >>> (found,) = dask.compute(lazy)
    >>> found.dy[20, 30], found.dx[20, 30]
    (np.float64(2.0), np.float64(-3.0))
    """
    images = {"frame1": frame1, "frame2": frame2}
    masks = {name: mask for name, mask in (("mask1", mask1), ("mask2", mask2)) if mask is not None}
    metas = _checked_metas(FIELD, **images, **masks)
    shapes = _checked_frames(frame1, frame2, masks)
    stacked = frame1.ndim - len(shapes[0]) == 1
    _check_in_memory(search, points, offset, stacked)
    wanted = measurement(*shapes, window, search, step, subpixel, points, offset, consistency, variant)
    with current_device_of(metas[0]):
        way = costs.cheapest(costs.Request(metas[0], wanted.window, wanted.search.tried, wanted.started), wanted.variant)
    (height1, width1, *_), (height2, width2, *_) = shapes
    call = _MatchCall(way, (height1, width1), (height2, width2), tuple(masks), stacked)
    return _lazy_match(call, wanted, [*images.values(), *masks.values()])


def _lazy_match(call: _MatchCall, wanted: Measurement, sources: list[Any]) -> Match[Any]:
    """Return the match of checked arguments; ``sources`` are the frames and the masks."""
    frame1, like = sources[0], sources[0]._meta
    division = _divided_points(wanted, frame1) if isinstance(wanted.windows, SingleWindows) else _divided_grid(wanted, frame1)
    times = (frame1.chunks[0],) if call.stacked else ()
    parts = {
        (*time, *index): (part, call.boxes(part, frame1.ndim, span))
        for time, span in _numbered(*times)
        for index, part in division.parts(wanted)
    }
    name = f"match-{tokenize(call, wanted, *(each.name for each in sources))}"
    graph = _graph(name, _match_of_boxes, call, parts, sources)
    names = [each for each in _DTYPES if wanted.consistency or each != "consistency"]
    arrays = [_item(graph, name, each, number, (*times, *division.chunks), like) for number, each in enumerate(names)]
    if division.order is not None:
        arrays = [each[division.order] for each in arrays]
    y, x = (_from_numpy(each, like) for each in wanted.centres())
    return Match(**dict(zip(names, arrays, strict=True)), x=x, y=y)


# Arguments of match -----------------------------------------------------------------------------------------------------------


def _checked_metas(role: Role, **arrays: Any) -> tuple[Any, ...]:
    """Check that arrays are Dask arrays of known chunks, of NumPy or CuPy and all of one kind; return arrays of these kinds."""
    if dask.config.get("array.query-planning", None):
        raise NotImplementedError("cupycorr.dask makes graphs of tasks, for which Dask's array.query-planning must be off")
    for name, array in arrays.items():
        if array_kind(array) != "dask":
            got = f"{type(array).__module__}.{type(array).__qualname__}"
            raise TypeError(f"{name} must be a Dask array, got {got}: dask.array.from_array makes one")
        if isinstance(array._meta, np.ma.MaskedArray):
            filled = f"dask.array.ma.filled({name}.astype(float), numpy.nan)"
            raise TypeError(f"{name} must not have masked chunks, whose masks would be lost: pass {filled}")
        if any(np.isnan(length) for lengths in array.chunks for length in lengths):
            raise ValueError(f"{name} must have chunks of known length, got {name}.chunks={array.chunks}: compute_chunk_sizes()")
    return known_arrays(role, **{name: array._meta for name, array in arrays.items()})


def _checked_frames(frame1: Any, frame2: Any, masks: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Check the frames, of which there may be several, and their masks; return the shape of one frame of each."""
    frames = {"frame1": frame1, "frame2": frame2}
    for name, frame in frames.items():
        if frame.ndim not in (2, 3, 4) or (frame.ndim == 4 and frame.shape[3] != len(LUMA)):
            what = "grey (H, W), colour (H, W, 3), or T of them, (T, H, W) or (T, H, W, 3)"
            raise ValueError(f"{name} must be {what}, got {name}.shape={frame.shape}")
    first = [frame[0] if _is_stack(frame) else frame for frame in frames.values() if 0 not in frame.shape[:1]]
    got = f"got frame1.shape={frame1.shape}, frame2.shape={frame2.shape}"
    counts = {frame.shape[0] if _is_stack(frame) else None for frame in frames.values()}
    if len(counts) > 1 or 0 in counts:
        raise ValueError(f"frame1 and frame2 must be two frames, or the same number of frames each, {got}")
    check_frames(*first)
    for name, mask in masks.items():
        frame = frames[name.replace("mask", "frame")]
        check_mask(name, mask, frame, frame.shape[:3] if _is_stack(frame) else frame.shape[:2])
    return first[0].shape, first[1].shape


def _is_stack(frame: Any) -> bool:
    return frame.ndim == 4 or (frame.ndim == 3 and frame.shape[2] != len(LUMA))


def _check_in_memory(search: Any, points: Any, offset: Any, stacked: bool) -> None:
    """Refuse arguments for which a chunk would need what it cannot know."""
    if search is None:
        raise ValueError("search must be a range, got search=None: every window would need all of frame2")
    offsets = offset if isinstance(offset, (tuple, list)) else [offset]
    for name, values in (("points", [points]), ("offset", offsets)):
        if any(array_kind(each) == "dask" for each in values):
            raise TypeError(f"{name} must be in memory, because it decides which pixels a chunk needs: pass its .compute()")
    if stacked and points is not None:
        raise ValueError("points must be those of one frame, got several frames: call match for each of them")


# Parts of a match -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _MatchCall:
    """The facts that are the same for all parts of a call of `match`.

    ``shape1`` and ``shape2`` are the height and width of the frames, ``masks`` the names of the masks given.
    """

    way: costs.Way
    shape1: Pair
    shape2: Pair
    masks: tuple[str, ...]
    stacked: bool

    def boxes(self, part: Measurement, ndim: int, times: Pair | None) -> list[Box]:
        """Return the boxes of the frames and masks that a part reads."""
        read = pixels_read(part.started, part.window, part.search, part.consistency, self.shape1, self.shape2)
        leading = () if times is None else (times,)
        colour = ((0, len(LUMA)),) * (ndim - 2 - len(leading))
        frames: list[Box] = [(*leading, *rectangle, *colour) for rectangle in read]
        masks: list[Box] = [(*leading, *read[0 if name == "mask1" else 1]) for name in self.masks]
        return frames + masks


class _Division:
    """The division of a field into parts.

    Attributes
    ----------
    selections
        For each axis of the field, the windows of each part.
    chunks
        The lengths of the parts along each axis.
    order
        The place of each window among those of the parts; None if they are in order.
    """

    def __init__(self, selections: Sequence[Sequence[Any]], chunks: Chunks, order: np.ndarray | None = None) -> None:
        self.selections, self.chunks, self.order = selections, chunks, order

    def parts(self, wanted: Measurement) -> Iterator[tuple[tuple[int, ...], Measurement]]:
        """Yield the index of each part and its measurement."""
        for index in product(*(range(len(each)) for each in self.selections)):
            at = tuple(each[number] for each, number in zip(self.selections, index, strict=True))
            yield index, wanted.part(at if len(at) == 2 else at[0])


def _pixel_chunks(frame1: Any) -> Chunks:
    begin = 1 if _is_stack(frame1) else 0
    found: Chunks = frame1.chunks[begin : begin + 2]
    return found


def _least(wanted: Measurement) -> Pair:
    """Return the least size of the parts: that of the halo around them."""
    vertical, horizontal = (size + tried - 1 for size, tried in zip(wanted.window, wanted.search.tried, strict=True))
    return vertical, horizontal


def _divided_grid(wanted: Measurement, frame1: Any) -> _Division:
    lattice = wanted.windows
    assert isinstance(lattice, Lattice)
    along = zip(lattice.first, lattice.step, lattice.counts, _pixel_chunks(frame1), _least(wanted), strict=True)
    selections = [divided(*each) for each in along]
    return _Division(selections, tuple(tuple(each.stop - each.start for each in axis) for axis in selections))


def _divided_points(wanted: Measurement, frame1: Any) -> _Division:
    """Divide windows at points so that those of a part begin in one chunk of frame 1."""
    windows = wanted.windows
    assert isinstance(windows, SingleWindows)
    chunk = np.zeros(windows.count, np.int64)
    for first, lengths, least in zip((windows.tops1, windows.lefts1), _pixel_chunks(frame1), _least(wanted), strict=True):
        ends = [each.stop for each in divided(0, 1, sum(lengths), lengths, least)]
        chunk = chunk * len(ends) + np.searchsorted(ends[:-1], first, side="right")
    order = np.argsort(chunk, kind="stable")
    selected = np.split(order, np.flatnonzero(np.diff(chunk[order])) + 1)
    place = np.argsort(order)
    unsorted = None if (place[1:] > place[:-1]).all() else place
    return _Division([selected], (tuple(map(len, selected)),), unsorted)


def _match_of_boxes(call: _MatchCall, part: Measurement, boxes: Sequence[Box], *arrays: Any) -> tuple[Any, ...]:
    """Return the fields of a part from the boxes of frames and masks."""
    frames, masks = arrays[:2], dict(zip(call.masks, arrays[2:], strict=True))
    axis = 1 if call.stacked else 0
    origins = [(box[axis][0], box[axis + 1][0]) for box in boxes[:2]]

    def of_pair(time: Any) -> tuple[Any, ...]:
        valid = [None if name not in masks else masks[name][time] for name in ("mask1", "mask2")]
        sides = zip(frames, valid, origins, (call.shape1, call.shape2), strict=True)
        first, second = (Frame(frame[time], mask, origin, shape) for frame, mask, origin, shape in sides)
        found = measured(first, second, part, way=call.way)
        return tuple(getattr(found, name) for name in _DTYPES if getattr(found, name) is not None)

    if not call.stacked:
        return of_pair(...)
    every = zip(*(of_pair(time) for time in range(len(frames[0]))), strict=True)
    return tuple(array_module(frames[0]).stack(each) for each in every)


# Correlation ------------------------------------------------------------------------------------------------------------------


def spatial_correlation_sample(
    input1: da.Array,
    input2: da.Array,
    kernel_size: IntOrPair = 1,
    patch_size: IntOrPair = 1,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    dilation_patch: IntOrPair = 1,
    *,
    patch_offset: IntOrPair | None = None,
    groups: int = 1,
    scale: float = 1.0,
    dtype: DTypeLike | None = None,
    precision: str = "highest",
    variant: str = "auto",
) -> da.Array:
    """Correlate patches of two feature maps chunk by chunk: `cupycorr.spatial_correlation_sample` for Dask arrays.

    The result is lazy and equals that on the whole arrays: to the bit where its sums are exact, such as those of small integers,
    and otherwise but for rounding errors. The variant is chosen for the whole arrays.

    Parameters
    ----------
    input1, input2 : dask.array.Array of shape (B, C, H, W)
        NumPy or CuPy chunks. They may be divided into different chunks; the result is divided as the samples, rows and columns
        of ``input1`` are, where its chunks are not smaller than the halo. A chunk of the result has all displacements.
    kernel_size, patch_size, stride, padding, dilation, dilation_patch, patch_offset : int or (int, int), optional
        As for `cupycorr.spatial_correlation_sample`.
    groups : int, default 1
        As for `cupycorr.spatial_correlation_sample`.
    scale : float, default 1.0
        As for `cupycorr.spatial_correlation_sample`.
    dtype : dtype, optional
        As for `cupycorr.spatial_correlation_sample`.
    precision : {"highest", "high", "medium"}, default "highest"
        As for `cupycorr.spatial_correlation_sample`.
    variant : str, default "auto"
        As for `cupycorr.spatial_correlation_sample`.

    Returns
    -------
    dask.array.Array of shape (B, PH, PW, oH, oW), with several groups (B, G, PH, PW, oH, oW)
        Lazy, of chunks of the inputs' kind and dtype.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `cupycorr.spatial_correlation_sample`, at once. A TypeError also for an input that is not a Dask array.

    See Also
    --------
    cupycorr.spatial_correlation_sample : The same for arrays in memory.

    Examples
    --------
    >>> import dask.array as da
    >>> import cupycorr.dask
    >>> features = da.random.default_rng(0).standard_normal((1, 8, 300, 400), dtype="float32", chunks=(1, 8, 100, 200))
    >>> scores = cupycorr.dask.spatial_correlation_sample(features, features, patch_size=5)
    >>> scores.shape, scores.numblocks
    ((1, 5, 5, 300, 400), (1, 1, 1, 3, 2))
    >>> bool((scores[0, 2, 2] > 0).all().compute())  # every pixel with itself
    True
    """
    (meta, _) = _checked_metas(OPERAND, input1=input1, input2=input2)
    given = (kernel_size, patch_size, stride, padding, dilation, dilation_patch)
    problem = checked_problem(input1, input2, given, patch_offset, groups, scale, precision)
    result, element = result_dtype(input1, dtype), dtype_name(input1.dtype)
    request = Request(FORWARD, problem, element, dtype_name(result), precision=effective_precision(precision, element))
    with current_device_of(meta):
        where = _dispatch.place(meta)
        chosen = _dispatch.choose(OPERATOR, request if where.device is None else request.dense(), where, variant)
    options = dict(_options(problem.parameters), dtype=result, precision=precision, variant=chosen.variant)
    rows, columns = map(_outputs, (problem.vertical, problem.horizontal), input1.chunks[2:])
    planes = problem.out_shape[1:-2]  # groups and displacements, which are not divided
    parts = {
        (*sample, *(0 for _ in planes), i, j): ((down, across), _boxes(span, problem.channels, down.part, across.part))
        for sample, span in _numbered(input1.chunks[0])
        for (i, down), (j, across) in product(enumerate(rows), enumerate(columns))
    }
    name = f"correlation-{tokenize(problem, options, input1.name, input2.name)}"
    graph = _graph(name, _correlation_of_boxes, options, parts, [input1, input2])
    counts = (tuple(each.count for each in axis) for axis in (rows, columns))
    chunks = (input1.chunks[0], *((each,) for each in planes), *counts)
    return da.Array(graph, name, chunks, meta=_meta(meta, len(chunks), result))


def _options(parameters: Parameters) -> dict[str, Any]:
    """Return the parameters that are the same for every part."""
    own = "padding", "patch_offset"
    return {each.name: getattr(parameters, each.name) for each in fields(parameters) if each.name not in own}


@dataclass(frozen=True, slots=True)
class _Outputs:
    """Some outputs along an axis: their number, and the part that computes them."""

    count: int
    part: AxisPart


def _outputs(axis: Axis, chunks: tuple[int, ...]) -> list[_Outputs]:
    """Divide the outputs along an axis as the pixels of input1 are divided into chunks."""
    least = axis.dilation * (axis.kernel - 1) + max(axis.displacements) - min(axis.displacements)
    outputs = divided(-axis.padding, axis.stride, axis.out, chunks, least)
    return [_Outputs(each.stop - each.start, axis.part(each.start, each.stop)) for each in outputs]


def _boxes(samples: Pair, channels: int, down: AxisPart, across: AxisPart) -> list[Box]:
    """Return the boxes of both inputs that a part reads."""
    leading = samples, (0, channels)
    return [(*leading, down.pixels1, across.pixels1), (*leading, down.pixels2, across.pixels2)]


def _correlation_of_boxes(
    options: dict[str, Any], outputs: tuple[_Outputs, _Outputs], boxes: Sequence[Box], input1: Any, input2: Any
) -> Any:
    """Return some outputs from the boxes of the inputs."""
    (padding_h, offset_h), (padding_w, offset_w) = ((each.part.padding, each.part.offset) for each in outputs)
    found = correlate(input1, input2, padding=(padding_h, padding_w), patch_offset=(offset_h, offset_w), **options)
    rows, columns = (slice(each.part.skipped, each.part.skipped + each.count) for each in outputs)
    return found[..., rows, columns]


# Graphs -----------------------------------------------------------------------------------------------------------------------


def _numbered(*lengths: Sequence[int]) -> list[tuple[tuple[int, ...], Any]]:
    """Return the index of each chunk along a leading axis and its range; without such an axis, an empty index and None."""
    if not lengths:
        return [((), None)]
    ends = list(accumulate(lengths[0]))
    return [((number,), span) for number, span in enumerate(zip([0, *ends[:-1]], ends, strict=True))]


def _graph(
    name: str,
    compute: Callable[..., Any],
    call: Any,
    parts: Mapping[tuple[int, ...], tuple[Any, Sequence[Box]]],
    sources: list[Any],
) -> HighLevelGraph:
    """Return a graph of ``compute(call, part, boxes, *arrays)`` for each part, whose arrays are its boxes of the sources."""
    kinds = tuple(array_kind(source._meta) for source in sources)
    tasks: dict[Any, Task] = {}
    for index, (part, boxes) in parts.items():
        covers = [cover(source.chunks, box) for source, box in zip(sources, boxes, strict=True)]
        blocks = [TaskRef((source.name, *at)) for source, each in zip(sources, covers, strict=True) for at in each.indices()]
        key = (name, *index)
        tasks[key] = Task(key, _run, compute, call, part, boxes, covers, kinds, *blocks)
    return HighLevelGraph.from_collections(name, tasks, sources)


def _run(
    compute: Callable[..., Any],
    call: Any,
    part: Any,
    boxes: Sequence[Box],
    covers: Sequence[Cover],
    kinds: tuple[str, ...],
    *blocks: Any,
) -> Any:
    """Compute a part in one thread, since Dask computes several at once."""
    remaining = iter(blocks)
    known = [[known_array("a chunk", next(remaining), FIELD) for _ in range(each.count)] for each in covers]
    for each, kind in zip(known, kinds, strict=True):
        if any(array_kind(block) != kind for block in each):
            got = f"{array_kind(each[0])} chunks in an array of {kind}"
            raise TypeError(f"chunks must be of the kind of the array's meta, got {got}: pass meta= where the array is made")
    with current_device_of(known[0][0]), workers.prefer_threads(1):
        arrays = [each.joined(of_array) for each, of_array in zip(covers, known, strict=True)]
        return compute(call, part, boxes, *arrays)


def _item(graph: HighLevelGraph, name: str, field: str, number: int, chunks: Chunks, like: Any) -> da.Array:
    """Return the array of one of the results of each task."""
    own = f"{field}-{name}"
    indices = product(*(range(len(each)) for each in chunks))
    layer: dict[Any, Task] = {(own, *index): Task((own, *index), _pick, TaskRef((name, *index)), number) for index in indices}
    layers = HighLevelGraph({**graph.layers, own: layer}, {**graph.dependencies, own: {name}})
    return da.Array(layers, own, chunks, meta=_meta(like, len(chunks), np.dtype(_DTYPES[field])))


def _pick(results: tuple[Any, ...], number: int) -> Any:
    return results[number]


def _meta(like: Any, ndim: int, dtype: np.dtype[Any]) -> Any:
    """Return an array without elements of a kind, a number of axes and a dtype."""
    with current_device_of(like):
        return array_module(like).empty((0,) * ndim, dtype)


def _from_numpy(values: np.ndarray, like: Any) -> da.Array:
    """Return values as a Dask array of one chunk, of NumPy or of CuPy."""
    array = da.from_array(values, chunks=-1)
    if array_kind(like) == "numpy":
        return array
    return array.map_blocks(array_module(like).asarray, meta=_meta(like, 1, values.dtype))
