"""Reductions as the kernels see them: their macros and scalars, partial results, and the launches that merge those.

A kernel that computes scores reduces those of each thread block tile to a partial result for each of its positions. The partial
results are in the workspace, ``[part, sample, word, row, column]``, where a word has the size of a sum. Nothing here depends on
how the scores are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..._correlation.problem import Axis
from ..._correlation.problem import Problem as Correlation
from ..._dtypes import ELEMENT_TYPES, INDEX_TYPES
from ..._gpu.call import NOWHERE, THREADS, Array, Call, Pointer, Signature, builds_of
from ..._gpu.layout import Numbers, ceil_div
from ..._gpu.limits import SAFE_INDEX, SAFE_POSITION
from ..._gpu.source import Kernel
from ..problem import Best, Mean, Problem, Reduction, ranges_of
from ..reductions import sharpness

BEST, MEAN = range(2)  # REDUCTION in matching/reduction.cuh
KEPT = (1, 2, 5)  # numbers of best displacements that there are builds for
WORDS_OF_MEAN = 4
SAFE_SHARPNESS = 2.0**100  # the inverses of smaller and larger numbers lose digits in float32

_MERGED = dict.fromkeys(("positions", "plane", "parts"), "Index")
_STRIDES = dict.fromkeys(("part_stride", "batch_stride", "word_stride"), "Index")
MERGE_BEST = Signature(
    "matching/merge_best",
    ("partial", "score", "channel"),
    {**_MERGED, "wanted": "Index", **_STRIDES},
)
MERGE_MEAN = Signature(
    "matching/merge_mean",
    ("partial", "dy", "dx", "log_sum"),
    {
        **_MERGED,
        **_STRIDES,
        **dict.fromkeys(("factor", "sharpness", "step_y", "step_x", "first_y", "first_x"), "Sum"),
        "temperature": "double",
    },
)

_CANDIDATES = ("centre", "centre_stride", "centre_step", "centre_size")
# The scalars of a kernel that reduces scores, after those of the correlation. The kernels have ascending displacements: the
# channel of patch indices m and n is channel_first + m channel_row + n channel_column.
SCALARS = {
    **{f"{name}_{along}": "int" for along in "yx" for name in _CANDIDATES},
    **dict.fromkeys(("channel_first", "channel_row", "channel_column", "parts"), "int"),
    **dict.fromkeys(("scale", "factor", "sharpness"), "Sum"),
}


def why_not(problem: Problem) -> str | None:
    """Return why kernels cannot reduce the scores of a problem, or None if they can."""
    if isinstance(problem.reduction, Best):
        if problem.reduction.around:
            return "subpixel displacements need the scores around the best one"
        if problem.reduction.top_k > KEPT[-1]:
            return f"top_k is {problem.reduction.top_k}, the kernels find at most {KEPT[-1]}"
    else:
        divisor = sharpness(problem.reduction.temperature).divisor
        if not 1 / SAFE_SHARPNESS <= divisor <= SAFE_SHARPNESS:
            return f"the inverse of a temperature of {problem.reduction.temperature:.3g} loses digits"
    if problem.channels >= SAFE_INDEX:
        return f"{problem.channels} displacements"
    volume = ascending(problem)
    farthest = max(_farthest(axis) for axis in (volume.vertical, volume.horizontal))
    if problem.excluding and farthest >= SAFE_POSITION:
        return f"excluded displacements of up to {farthest} pixels"
    return None


def ascending(problem: Problem) -> Correlation:
    """Return the correlation of a problem with its displacements in ascending order."""
    return problem.correlation.without_groups(problem.correlation.batch)


def _farthest(axis: Axis) -> int:
    """Return a bound on the positions of an axis at which the centre taps of windows are looked for."""
    return sum(map(abs, (_centre(axis), axis.stride * axis.out, axis.step * axis.patch, axis.size2)))


def _centre(axis: Axis) -> int:
    """Return the position of the centre tap of output 0 at displacement 0."""
    return (axis.kernel - 1) // 2 * axis.dilation - axis.padding + axis.first_displacement


def _candidates(axis: Axis, along: str, excluding: bool) -> dict[str, int]:
    """Return the scalars that say which displacements are candidates.

    If none is excluded, all have their centre tap at position 0 of an axis of size 1.
    """
    numbers = (_centre(axis), axis.stride, axis.step, axis.size2) if excluding else (0, 0, 0, 1)
    return {f"{name}_{along}": number for name, number in zip(_CANDIDATES, numbers, strict=True)}


@dataclass(frozen=True, slots=True)
class Kernels:
    """The reduction of a problem's scores by kernels whose sums have a dtype."""

    problem: Problem
    accumulator: str

    @property
    def kept(self) -> int:
        """The best displacements that a partial result has; 1 for a mean."""
        reduction = self.problem.reduction
        return next(count for count in KEPT if count >= reduction.top_k) if isinstance(reduction, Best) else 1

    @property
    def words(self) -> int:
        """The words of a partial result."""
        return words(self.problem.reduction, self.kept)

    @property
    def itemsize(self) -> int:
        """The bytes of a sum, and of a word."""
        return ELEMENT_TYPES[self.accumulator].itemsize

    @property
    def macros(self) -> dict[str, object]:
        """The macros of the reduction."""
        return macros(self.problem.reduction, self.kept)

    @property
    def ascending(self) -> Correlation:
        """The correlation with its displacements in ascending order."""
        return ascending(self.problem)

    @property
    def scalars(self) -> dict[str, float]:
        """The scalars named in `SCALARS`, except for the parts."""
        volume = self.ascending
        rows, columns = volume.parameters.patch_size
        backwards = self.problem.correlation.descends
        return {
            **_candidates(volume.vertical, "y", self.problem.excluding),
            **_candidates(volume.horizontal, "x", self.problem.excluding),
            "channel_first": (rows - 1) * columns * backwards[0] + (columns - 1) * backwards[1],
            "channel_row": -columns if backwards[0] else columns,
            "channel_column": -1 if backwards[1] else 1,
            "scale": volume.parameters.scale,
            **self._sharpness,
        }

    @property
    def _sharpness(self) -> dict[str, float]:
        reduction = self.problem.reduction
        sharp = sharpness(reduction.temperature if isinstance(reduction, Mean) else 1.0)
        return {"factor": sharp.factor, "sharpness": 1 / sharp.divisor}

    @property
    def plane(self) -> Numbers:
        """The output positions along both axes."""
        return self.problem.out_shape[-2:]

    def partial_strides(self, batch: int) -> Numbers:
        """Return the strides of partial results of so many samples, as an output (part, sample, word, -, row, column)."""
        height, width = self.plane
        size = height * width
        return batch * self.words * size, self.words * size, size, 0, width, 1

    def bytes_of_part(self, batch: int) -> int:
        """Return the bytes of a part of the partial results of so many samples."""
        return self.partial_strides(batch)[0] * self.itemsize

    def merge(self, partial: Pointer, batch: int, parts: int, results: dict[str, Array]) -> Call:
        """Return the launch that merges the partial results of samples and writes the results; each is (samples, ...)."""
        height, width = self.plane
        part, sample, word, *_ = self.partial_strides(batch)
        scalars: dict[str, float] = {
            **dict(positions=batch * height * width, plane=height * width, parts=parts),
            **dict(part_stride=part, batch_stride=sample, word_stride=word),
        }
        pointers = {"partial": partial, **{name: at for name, (_, at) in results.items()}}
        reduction = self.problem.reduction
        if isinstance(reduction, Best):
            signature, scalars["wanted"] = MERGE_BEST, reduction.top_k
        else:
            signature = MERGE_MEAN
            pointers.setdefault("log_sum", NOWHERE)
            for along, tried in zip("yx", ranges_of(self.ascending.parameters), strict=True):
                scalars |= {f"step_{along}": tried.step, f"first_{along}": tried.start}
            scalars |= {**self._sharpness, "temperature": reduction.temperature}
        return signature.call(
            macros={**_merge_macros(self.accumulator), **self.macros},
            pointers=pointers,
            scalars=scalars,
            accumulator=ELEMENT_TYPES[self.accumulator].accumulator_dtype,
            blocks=ceil_div(batch * height * width, THREADS),
            largest=max(part * parts, batch * self.problem.out_shape[1] * height * width),
        )


def words(reduction: Reduction, kept: int) -> int:
    """Return the words of a partial result."""
    return 2 * kept if isinstance(reduction, Best) else WORDS_OF_MEAN


def macros(reduction: Reduction, kept: int) -> dict[str, object]:
    """Return the macros of a reduction."""
    return {"REDUCTION": BEST if isinstance(reduction, Best) else MEAN, "KEPT": kept}


def word(accumulator: str) -> str:
    """Return the C type of a word, an integer of the size of a sum."""
    return next(row.c_type for row in INDEX_TYPES.values() if row.itemsize == ELEMENT_TYPES[accumulator].itemsize)


def every() -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the macros of every reduction, with words for it."""
    for count in KEPT:
        yield f"{count} best", macros(Best(count), count)
    yield "mean", macros(Mean(), 1)


def _merge_macros(accumulator: str) -> dict[str, object]:
    return {"SUM": ELEMENT_TYPES[accumulator].c_type, "WORD": word(accumulator)}


def builds() -> Iterator[tuple[str, Kernel]]:
    """Yield every build of the launches that merge partial results, with words for it."""
    for accumulator in ("float32", "float64"):
        for _, chosen in every():
            signature = MERGE_BEST if chosen["REDUCTION"] == BEST else MERGE_MEAN
            table = {name: (value,) for name, value in (_merge_macros(accumulator) | chosen).items()}
            yield from builds_of(signature.name, table)
