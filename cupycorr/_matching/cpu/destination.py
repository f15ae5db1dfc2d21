"""The reduction of scores as they are made: the destination of a forward plan in the place of a volume.

A task reduces its scores to the result of its displacements at its positions. When the tasks of a portion are done, the results
of those at the same positions are merged in their order. Both orders follow from the plan, so that no bit depends on threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import product

import numpy as np

from ..._arguments import Pair
from ..._correlation.cpu.block_plan import TASK_BYTES, TASK_ORDER
from ..._correlation.cpu.blocks import BATCH, COLUMNS, MS, NS, ROWS, Region, halve_in_order
from ..._correlation.cpu.forward import ForwardPlan, Limits, Portion, divided_tasks, kept_bytes, same_positions
from ..._cpu import workers
from ..by_slices import scores_around, write_mean
from ..problem import Best, Problem, allowed, channels_of
from ..reductions import NONE, Weights, best_of, merged, sharpness, weights_of, without_excluded
from . import kernels

# The bytes of packed images, results and tasks are at most half of those of the volume, but for the smallest volumes.
LEAST_BYTES = 2**21
KEPT_BYTES = workers.WORKSPACE // 8
_TASKS_AT_ONCE = 2
_OTHER_BYTES = 2**19  # what a call allocates beside these, and the rounding of blocks
_HELD_AROUND = 64  # bytes for each position: the scores around the best one, and the places of vertices

KernelOf = Callable[[str, int], Callable[..., None]]  # of the limits of columns, and the number of columns

_SAFE = 2.0**100  # the inverses of smaller and larger numbers lose digits in float32


class Reduced(ABC):
    """The destination that reduces scores.

    Parameters
    ----------
    plan
        The plan of the volume.
    problem
        The problem.
    """

    planes = 0  # numbers that a task keeps of each position
    held = 0  # bytes beside the results that are held for each position of the output

    def __init__(self, plan: ForwardPlan, problem: Problem) -> None:
        self.plan, self.problem, self.dtype = plan, problem, plan.dtype
        self.axes = problem.correlation.vertical, problem.correlation.horizontal
        self.limits = self._limits()

    def _limits(self) -> Limits:
        volume = self.problem.correlation.outputs * self.dtype.itemsize
        half = max(min(volume // 2, workers.WORKSPACE), LEAST_BYTES)
        tasks = _TASKS_AT_ONCE * min(TASK_BYTES, volume)
        batch, *_, height, width = self.problem.correlation.out_shape
        rest = half - half // 16 - _OTHER_BYTES - tasks - batch * height * width * self.held
        return Limits(max(rest, LEAST_BYTES // 4), min(KEPT_BYTES, half // 4), self.planes * self.dtype.itemsize)

    # The destination --------------------------------------------------------------------------------------------------

    @contextmanager
    def portion(self, portion: Portion, threads: int) -> Iterator[np.ndarray | None]:
        """See `forward.Destination`."""
        batch, rows, columns, ms, ns = portion.region.lengths
        with ExitStack() as memory:
            sums = None
            if len(portion.passes) > 1:
                sums = memory.enter_context(workers.scratch((batch, ms, ns, rows, columns), self.dtype))
            with self.opened(portion.tasks, threads):
                yield sums

    def opened(self, tasks: list[Region], threads: int) -> AbstractContextManager[None]:
        """Return the context in which some tasks are computed."""
        return nullcontext()

    @abstractmethod
    def take(self, number: int, outputs: Region, values: np.ndarray) -> None:
        """See `forward.Destination`."""

    def add_zeros(self) -> None:
        """Reduce the scores that are zero because no pair of pixels has a product."""
        plan = self.plan
        threads = min(plan.team.threads, plan.engine.threads())
        for box in _complement(plan.outputs, plan.whole if plan.computes else None):
            one_sample = (1, *box.lengths[1:])
            lengths = halve_in_order(one_sample, self._task_bytes, TASK_BYTES, TASK_ORDER)
            for tasks in divided_tasks(box.split(lengths), self._fits):
                with self.opened(tasks, threads):
                    workers.run(self._zeros, enumerate(tasks), threads)

    def _task_bytes(self, lengths: Sequence[int]) -> int:
        return int(np.prod(lengths[ROWS:], dtype=np.int64)) * self.dtype.itemsize

    def _fits(self, tasks: list[Region]) -> bool:
        return kept_bytes(tasks, self.limits) <= self.limits.kept

    def _zeros(self, numbered: tuple[int, Region]) -> None:
        number, outputs = numbered
        _, rows, columns, ms, ns = outputs.lengths
        with workers.scratch((ms, ns, rows, columns), self.dtype) as values:
            values.fill(0)
            self.take(number, outputs, values)

    # For reductions ---------------------------------------------------------------------------------------------------

    def oriented(self, array: np.ndarray) -> np.ndarray:
        """Return an array whose last axes are those of positions in the orientation of the plan."""
        return array.swapaxes(-1, -2) if self.plan.transposed else array

    def first(self, region: Region) -> Pair:
        """Return the index pair of the first displacement of a region."""
        pair = region.ms[0], region.ns[0]
        return pair[::-1] if self.plan.transposed else pair

    def _remaining(self, region: Region, axis: int) -> np.ndarray:
        """Return the ranges of indices that are not excluded along an axis, for its positions in a region.

        They are limited to the displacements of the region and count from the first one.
        """
        positions, indices = (region.rows, region.ms) if (axis == 1) == self.plan.transposed else (region.columns, region.ns)
        return np.clip(allowed(self.axes[axis])[:, slice(*positions)], *indices) - indices[0]

    def kept(self, region: Region, scores: np.ndarray) -> np.ndarray:
        """Return whether each displacement of a region is kept at each position, (m, n, rows, columns)."""
        found = []
        for axis, count in enumerate(scores.shape[:2]):
            begin, end = self._remaining(region, axis)
            index = np.arange(count)[:, None]
            found.append((begin <= index) & (index < end))
        at_rows, at_columns = ("nr", "mc") if self.plan.transposed else ("mr", "nc")
        rows, columns = found[::-1] if self.plan.transposed else found
        return np.einsum(f"{at_rows},{at_columns}->mnrc", rows, columns)


class Merged(Reduced):
    """The destination that merges the results of tasks.

    Parameters
    ----------
    plan, problem
        See `Reduced`.
    arrays
        The arrays for the results, by their names.
    compiled
        True if kernels may be compiled.
    """

    def __init__(self, plan: ForwardPlan, problem: Problem, arrays: Mapping[str, np.ndarray], compiled: bool) -> None:
        super().__init__(plan, problem)
        self.arrays, self.compiled = arrays, compiled
        self._results: np.ndarray | None = None

    @abstractmethod
    def reduce(self, region: Region, scores: np.ndarray, result: np.ndarray) -> None:
        """Reduce the scores (m, n, rows, columns) of a task to its result (planes, rows, columns)."""

    @abstractmethod
    def start(self) -> None:
        """Prepare the state of positions where no score is a sum of products."""

    @abstractmethod
    def merge(self, at: tuple, results: Sequence[np.ndarray], fresh: bool) -> None:
        """Add the results of tasks to the state of their positions, of which they are the first if ``fresh``."""

    @abstractmethod
    def finish(self) -> None:
        """Make the results of the state."""

    @contextmanager
    def opened(self, tasks: list[Region], threads: int) -> Iterator[None]:
        """See `Reduced`: the context has memory for the results of tasks, at the end of which they are merged."""
        positions = max(task.lengths[ROWS] * task.lengths[COLUMNS] for task in tasks)
        with workers.scratch((len(tasks), self.planes * positions), self.dtype) as self._results:
            yield
            workers.run(partial(self._merge, tasks), same_positions(tasks), threads)

    def take(self, number: int, outputs: Region, values: np.ndarray) -> None:
        """See `forward.Destination`."""
        scores = values.swapaxes(0, 1) if self.plan.transposed else values
        self.reduce(outputs, scores, self._result(number, outputs))

    def _result(self, number: int, outputs: Region) -> np.ndarray:
        """Return the memory for the result of a task."""
        assert self._results is not None, "a portion is open"
        rows, columns = outputs.lengths[ROWS], outputs.lengths[COLUMNS]
        return self._results[number, : self.planes * rows * columns].reshape(self.planes, rows, columns)

    def _merge(self, tasks: list[Region], numbers: list[int]) -> None:
        """Merge the results of the tasks at the same positions."""
        first, whole = tasks[numbers[0]], self.plan.whole
        fresh = (first.ms[0], first.ns[0]) == (whole.ms[0], whole.ns[0]) and self._computed(first)
        at = first.batch[0], slice(*first.rows), slice(*first.columns)
        self.merge(at, [self._result(number, tasks[number]) for number in numbers], fresh)

    def _computed(self, outputs: Region) -> bool:
        """Return whether a region is one of those whose scores are sums of products."""
        return all(low <= begin and end <= high for (begin, end), (low, high) in zip(outputs, self.plan.whole, strict=True))

    def call(self, kernel_of: KernelOf, region: Region, scores: np.ndarray, result: np.ndarray, *more: float) -> None:
        """Call a kernel on the scores of a task; ``kernel_of(limits, columns)`` returns it."""
        slow, fast, rows, columns = scores.shape
        ranges = np.empty((rows, kernels.RANGE), np.int64)
        ranges[:] = 0, slow, 0, fast
        limits = np.empty((2, 0), self.dtype)
        kind = kernels.NO_LIMITS
        if self.problem.excluding:
            by_row, by_column = (1, 0) if self.plan.transposed else (0, 1)
            ranges[:, 2 * by_row : 2 * by_row + 2] = self._remaining(region, by_row).T
            limits = self._remaining(region, by_column).astype(self.dtype)
            kind = (kernels.SLOW, kernels.FAST)[by_column]
        strides = (stride // scores.itemsize for stride in (*scores.strides[:3], *result.strides[:2]))
        patch = self.axes[1].patch
        numbers = np.array([rows, columns, *strides, *self.first(region), patch], np.int64)
        kernel_of(kind, columns)(
            *map(kernels.address, (scores, ranges, limits if limits.size else result, numbers, result)), *more
        )


class BestReduced(Merged):
    """The destination that keeps the best displacements; ``arrays`` has "score", "channel" and perhaps "around".

    Attributes
    ----------
    around
        What writes the scores around the best displacement as soon as a task has found it, because the task has the whole patch;
        otherwise None.
    """

    def __init__(self, plan: ForwardPlan, problem: Problem, arrays: Mapping[str, np.ndarray], compiled: bool) -> None:
        assert isinstance(problem.reduction, Best), "the reduction is to the best displacements"
        self.count = problem.reduction.top_k
        self.planes = 2 * self.count
        self.held = _HELD_AROUND if "around" in arrays else 0
        super().__init__(plan, problem, arrays, compiled)
        self.around = Around(plan, problem, arrays) if "around" in arrays and _tasks_have_patches(plan) else None
        self.score, self.channel = (self.oriented(arrays[name]) for name in ("score", "channel"))

    def reduce(self, region: Region, scores: np.ndarray, result: np.ndarray) -> None:
        """See `Reduced`."""
        if self.compiled:
            self.call(partial(kernels.best_kernel, self.count, self.dtype), region, scores, result)
        else:
            self._reduce(region, scores, result)
        if self.around is not None:
            self.around.write(region, scores, result[1].astype(np.int64))

    def _reduce(self, region: Region, scores: np.ndarray, result: np.ndarray) -> None:
        """Reduce scores by array functions."""
        rows, columns = scores.shape[:2]
        channels = channels_of(self.problem.correlation, self.first(region), (rows, columns)).reshape(-1, 1, 1)
        joined = scores.reshape(-1, *scores.shape[2:])
        if self.problem.excluding:
            joined, channels = without_excluded(joined, channels, self.kept(region, scores).reshape(joined.shape))
        found = best_of(joined, channels, min(self.count, rows * columns))
        count = len(found[0])
        result[:count], result[self.count : self.count + count] = found[0], np.where(found[1] == NONE, -1, found[1])
        result[count : self.count], result[self.count + count :] = -np.inf, -1

    def start(self) -> None:
        """See `Reduced`."""
        if self.plan.whole != self.plan.outputs or not self.plan.computes:
            self.score[...], self.channel[...] = -np.inf, -1

    def merge(self, at: tuple, results: Sequence[np.ndarray], fresh: bool) -> None:
        """See `Reduced`."""
        sample, rows, columns = at
        score, channel = (each[sample, :, rows, columns] for each in (self.score, self.channel))
        count = self.count
        if fresh and len(results) == 1:
            score[...], channel[...] = results[0][:count], results[0][count:]
            return
        scores = [each[:count] for each in results] + ([] if fresh else [score])
        channels = [each[count:].astype(np.int64) for each in results] + ([] if fresh else [channel])
        joined = np.concatenate(channels)
        found = best_of(np.concatenate(scores), np.where(joined < 0, NONE, joined), count)
        score[...], channel[...] = found[0], np.where(found[1] == NONE, -1, found[1])

    def finish(self) -> None:
        """See `Reduced`."""
        if self.problem.excluding:
            np.copyto(self.score, np.nan, where=self.channel < 0)


class Around(Reduced):
    """The destination that writes the scores around the best displacements, whose channels are known, into "around".

    It is negative infinity where a neighbour is outside the patch or excluded.
    """

    def __init__(self, plan: ForwardPlan, problem: Problem, arrays: Mapping[str, np.ndarray]) -> None:
        super().__init__(plan, problem)
        self.channel, self.around = (self.oriented(arrays[name]) for name in ("channel", "around"))
        self.around[...] = -np.inf

    def take(self, number: int, outputs: Region, values: np.ndarray) -> None:
        """See `forward.Destination`: each neighbour is in one task, so that no two tasks write the same element."""
        scores = values.swapaxes(0, 1) if self.plan.transposed else values
        self.write(outputs, scores, self.channel[outputs.batch[0], 0, slice(*outputs.rows), slice(*outputs.columns)])

    def write(self, region: Region, scores: np.ndarray, channel: np.ndarray) -> None:
        """Write the scores around channels (rows, columns) that are among the scores (m, n, rows, columns) of a region."""
        at = region.batch[0], slice(None), slice(*region.rows), slice(*region.columns)
        found = scores_around(scores, channel, self.first(region), self.axes[1].patch, self._limits_at(region))
        for target, (kept, values) in zip(self.around[at], found, strict=True):
            np.copyto(target, values, where=kept)

    def _limits_at(self, region: Region) -> list[tuple]:
        """Return where the indices begin and end that are not excluded, along both axes, at the positions of a region."""
        if not self.problem.excluding:
            return [(0, axis.patch) for axis in self.axes]
        found = []
        for axis, geometry in enumerate(self.axes):
            by_row = (axis == 1) == self.plan.transposed
            limits = allowed(geometry)[:, slice(*(region.rows if by_row else region.columns))]
            found.append(tuple(limits[:, :, None] if by_row else limits[:, None, :]))
        return found


class MeanReduced(Merged):
    """The destination that keeps the sums of a mean; ``arrays`` has "dy", "dx" and "log_sum"."""

    planes = len(Weights._fields)

    def __init__(self, plan: ForwardPlan, problem: Problem, arrays: Mapping[str, np.ndarray], compiled: bool) -> None:
        super().__init__(plan, problem, arrays, compiled)
        self.sharp = sharpness(problem.reduction.temperature)  # type: ignore[union-attr]
        self.compiled = compiled and 1 / _SAFE <= self.sharp.divisor <= _SAFE
        self.results = {name: self.oriented(arrays[name]) for name in ("dy", "dx", "log_sum") if name in arrays}
        self.state: np.ndarray | None = None

    def reduce(self, region: Region, scores: np.ndarray, result: np.ndarray) -> None:
        """See `Reduced`."""
        if self.compiled:
            more = float(self.sharp.factor), 1 / self.sharp.divisor
            self.call(partial(kernels.mean_kernel, self.dtype), region, scores, result, *more)
            return
        if self.problem.excluding:
            scores = np.where(self.kept(region, scores), scores, -np.inf)
        for plane, values in zip(result, weights_of(scores, self.first(region), self.sharp), strict=True):
            plane[...] = values

    def start(self) -> None:
        """See `Reduced`."""
        if not self._whole_patches():
            self.state = np.empty((self.planes, *self.results["dy"].shape), self.dtype)
            self.state[0], self.state[1:] = -np.inf, 0

    def _whole_patches(self) -> bool:
        """Return whether each portion has the whole patch, so that nothing is kept from portion to portion."""
        plan = self.plan
        if not plan.computes or plan.whole != plan.outputs:
            return False
        portions = (portion for block in plan.blocks() for portion in plan.portions(block, self.limits))
        return all((each.region.ms, each.region.ns) == (plan.whole.ms, plan.whole.ns) for each in portions)

    def merge(self, at: tuple, results: Sequence[np.ndarray], fresh: bool) -> None:
        """See `Reduced`."""
        sample, rows, columns = at
        state = None if self.state is None else self.state[:, sample, rows, columns]
        found = Weights(*(results[0] if fresh or state is None else state))
        for result in results[1:] if fresh else results:
            found = merged(found, Weights(*result), self.sharp)
        if state is None:
            write_mean(self.problem, {name: array[sample, rows, columns] for name, array in self.results.items()}, found)
        else:
            state[...] = found

    def finish(self) -> None:
        """See `Reduced`."""
        if self.state is not None:
            threads = min(self.plan.team.threads, self.plan.engine.threads())
            workers.run(self._write, product(*map(range, self.state.shape[1:3])), threads)

    def _write(self, at: Pair) -> None:
        """Write the results of a row of a sample."""
        assert self.state is not None, "there is a state"
        sample, row = at
        results = {name: array[sample, row] for name, array in self.results.items()}
        write_mean(self.problem, results, Weights(*self.state[:, sample, row]))


def _tasks_have_patches(plan: ForwardPlan) -> bool:
    """Return whether each task has the whole patch."""
    if not plan.computes or plan.whole != plan.outputs:
        return False
    tasks = (task for block in plan.blocks() for task in plan.steps(block).tasks)
    return all((task.ms, task.ns) == (plan.whole.ms, plan.whole.ns) for task in tasks)


def _complement(outer: Region, inner: Region | None) -> Iterator[Region]:
    """Yield regions that together are what one region has and another one inside it has not."""
    if inner is None or min(inner.lengths) < 1:
        if min(outer.lengths) > 0:
            yield outer
        return
    ranges = list(outer)
    for axis in (BATCH, ROWS, COLUMNS, MS, NS):
        (begin, end), (low, high) = ranges[axis], tuple(inner)[axis]
        for rest in ((begin, low), (high, end)):
            if rest[0] < rest[1]:
                yield Region(*(rest if each == axis else ranges[each] for each in range(len(ranges))))
        ranges[axis] = (low, high)
