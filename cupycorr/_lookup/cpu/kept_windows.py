"""Lookups of the same pixels in the same maps, again and again, which keep the dots of all windows.

A window that moved computes the dots of the taps that entered it, and one that did not move computes none: an iterative
refinement that converges soon costs little more than its blends. Every lookup is bit for bit that of the variant ``simd``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

from ..._arguments import shown
from ..._cpu import llvm, workers
from ..._cpu.llvm import VECTOR_BYTES, address
from ..._dtypes import element_type
from ..._sharing import fork_safe_lock
from ..problem import DY_FIRST, Problem
from . import packing
from .blend_kernel import Blend
from .division import Batch
from .dot_kernel import DotProducts
from .moved_kernel import NOWHERE, MovedWindows
from .rectangles import ORIGINS, padding
from .tables import BYTE, Operands, Sizes, Task, tasks_of
from .window_kernel import WindowFinder


class _Level(NamedTuple):
    """The kernels of a level, its packed maps, and the addresses of the packed pixels and of these."""

    windows: WindowFinder
    dots: DotProducts
    moved: MovedWindows
    image: np.ndarray
    addresses: tuple[int, int]


class _State(NamedTuple):
    """The windows of the queries of a task that are kept: their origins, in planes with padding, and their dots.

    ``addresses`` are those of the two arrays, ``sizes`` the bytes of scratch memory: windows, origins, and what else is needed.
    """

    task: Task
    origins: np.ndarray
    dots: np.ndarray
    addresses: tuple[int, int]
    sizes: tuple[int, int, int]


class KeptWindows:
    """The state of repeated lookups of the same features in the same maps, for inference.

    Parameters
    ----------
    problem : Problem
        The parameters and shapes, as `problem.problem` returns them, without indices: entry e compares image e.
    input1 : array of shape (E, C, H, W)
        float32 or float64.
    levels : sequence of arrays of shape (E, C, H2, W2)
        The maps, of the dtype of ``input1``, one for each level of the problem.

    Arrays that are packed already are kept and not copied (`packing.in_place`: channels last, C a multiple of 16 for float32 and
    of 8 for float64), so the caller must not change them. Others are copied. NumPy arrays may view the memory of tensors: pass
    ``tensor.detach().numpy()``.

    Attributes
    ----------
    nbytes
        The bytes of the state, without the packed maps: (P + 1)^2 dots and 16 bytes for each query and level.

    Raises
    ------
    NotImplementedError
        No kernel can run here, or the problem has indices; the message says why.
    TypeError
        The arrays are of another dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from cupycorr import correlation_lookup
    >>> from cupycorr._lookup.problem import Operands, parameters, problem
    >>> x1, x2 = np.random.default_rng(0).standard_normal((2, 1, 32, 20, 24), dtype=np.float32)
    >>> operands = Operands(x1.shape, (x2.shape,), True, (1, 2, 20, 24), "float32")
    >>> kept = KeptWindows(problem(parameters(9), operands), x1, [x2])
    >>> coords = np.random.default_rng(1).uniform(0, 20, (1, 2, 20, 24)).astype(np.float32)
    >>> out = np.empty(kept.out_shape, np.float32)
    >>> for step in range(3):
    ...     kept.lookup(coords + 0.3 * step, out)
    >>> bool((out == correlation_lookup(x1, [x2], coords + np.float32(0.6), 9, variant="simd")).all())
    True
    """

    def __init__(self, problem: Problem, input1: np.ndarray, levels: Sequence[np.ndarray]) -> None:
        reason = why_not(problem)
        if reason is not None:
            raise NotImplementedError(f"windows cannot be kept: {reason}")
        self.accumulator = element_type("input1", input1.dtype).accumulator_dtype
        _check(self.accumulator, input1, levels)
        self.problem, self.out_shape = problem, problem.out_shape
        self._lock = fork_safe_lock()
        self._sizes = Sizes(problem, self.accumulator, workers.thread_count())
        self._blend = Blend(problem, self.accumulator)
        self._features = self._packed(input1)
        self._levels = [self._level(level, maps) for level, maps in enumerate(levels)]
        self._states = [self._state(task) for level in range(problem.levels) for task in self._tasks(level)]
        self.nbytes = sum(state.origins.nbytes + state.dots.nbytes for state in self._states)
        self.forget()

    def forget(self) -> None:
        """Forget all windows: the next lookup computes all dots."""
        for state in self._states:
            state.origins[...] = NOWHERE

    def lookup(self, coords: np.ndarray, out: np.ndarray) -> None:
        """Write the output for coordinates.

        Parameters
        ----------
        coords : array of shape (E, 2, H, W) or whatever the problem has
            Of the dtype of ``input1``. It is copied where it has gaps.
        out : array, shape ``out_shape``
            C-contiguous, of the dtype of ``input1``. It must not share memory with the maps or ``coords``.

        Raises
        ------
        TypeError, ValueError
            An array has another dtype or shape, or ``out`` has gaps.
        """
        for name, array, shape in (("coords", coords, self.problem.operands.coords), ("out", out, self.out_shape)):
            if array.dtype != self.accumulator:
                raise TypeError(f"{name} must be of {self.accumulator}, got {name}.dtype={array.dtype}")
            if array.shape != tuple(shape):
                raise ValueError(f"{name} must have the shape {tuple(shape)}, got {name}.shape={array.shape}")
        if not out.flags.c_contiguous:
            raise ValueError(f"out must be C-contiguous, got out.strides={out.strides}")
        coords = np.ascontiguousarray(coords)
        with self._lock:
            try:
                workers.run(partial(self._update, address(coords), address(out)), self._states, workers.thread_count())
            except BaseException:  # some windows may have moved without their dots
                self.forget()
                raise

    # The state.

    def _level(self, level: int, maps: np.ndarray) -> _Level:
        arguments = self.problem, level, self.accumulator
        image = self._packed(maps)
        kernels = WindowFinder(*arguments), DotProducts(*arguments), MovedWindows(*arguments)
        return _Level(*kernels, image=image, addresses=(address(self._features), address(image)))

    def _packed(self, maps: np.ndarray) -> np.ndarray:
        given = packing.in_place(maps, self.accumulator)
        if given is not None:
            return given
        packed = np.empty(packing.packed_shape(maps.shape, self.accumulator), self.accumulator)
        workers.run(packing.pack, packing.parts(maps, packed), workers.thread_count())
        return packed

    @cached_property
    def _out_strides(self) -> tuple[int, ...]:
        """The strides (E, L, K, PH, PW, H, W) of the output in elements."""
        given, (patch_h, patch_w) = self.problem, self.problem.parameters.patch_size
        height, width = given.size1
        plane = height * width
        of_patch = (patch_w * plane, plane) if given.parameters.order == DY_FIRST else (plane, patch_h * plane)
        window = patch_h * patch_w * plane
        lookups = given.lookups * window
        return given.levels * lookups, lookups, window, *of_patch, width, 1

    def _tasks(self, level: int) -> list[Task]:
        given, (height, width) = self.problem, self.problem.size1
        if not given.outputs:
            return []
        entries, plane = np.arange(given.entries), height * width
        channels = 2 if given.has_rows else 1
        operands = Operands(
            coords=entries,
            coords_strides=(given.lookups * channels * plane, channels * plane, plane, width, 1),
            features=entries * _image_stride(self._features),
            features_columns=width,
            images=entries * _image_stride(self._levels[level].image),
            out_strides=self._out_strides,
        )
        batch = Batch(entries.tolist(), range(given.lookups), (slice(0, height), slice(0, width)))
        return tasks_of(self._sizes, batch, level, operands, kept=False)

    def _state(self, task: Task) -> _State:
        more = padding(self._sizes.item)
        origins = np.empty((ORIGINS, task.queries + more), np.int64)
        around = MovedWindows.padding(self.problem)
        memory = np.empty(around + task.queries * self._sizes.layout.size + max(around, more), self.accumulator)
        dots = memory[around:]
        lists = MovedWindows.scratch_bytes(self.problem)
        windows, other = self._sizes.windows_bytes(task.queries), max(lists, task.blend_bytes)
        return _State(task, origins, dots, (address(origins), address(dots)), (_whole(windows), _whole(origins.nbytes), other))

    def _update(self, coords: int, out: int, state: _State) -> None:
        """Write the outputs of a task."""
        task, channels, (origins, dots) = state.task, self._sizes.channels, state.addresses
        level, strides = self._levels[task.level], self._out_strides
        with packing.scratch((sum(state.sizes),), BYTE) as array:
            memory = self._sizes.memory(array, task.queries)._replace(dots=dots)
            todo = memory.origins + state.sizes[0]
            scratch = todo + state.sizes[1]
            level.windows.find(task.span, coords, memory)
            if level.moved.update(task.span, *level.addresses, channels, memory, origins, todo, scratch):
                rows = (0, self.problem.sizes2[task.level][0])
                level.dots.compute(task.span, *level.addresses, (channels,) * 3, rows, memory._replace(origins=todo))
            out += task.level * strides[1] * self._sizes.item
            self._blend.write(task.span, memory, out, (strides[3], strides[4]), scratch)


def _whole(size: int) -> int:
    """Return a number of bytes rounded up to whole cache lines."""
    return -(-size // VECTOR_BYTES) * VECTOR_BYTES


def why_not(problem: Problem) -> str | None:
    """Return the reason why the windows of a problem cannot be kept, or None."""
    if problem.operands.index1 is not None or problem.operands.index2 is not None:
        return "the lookup has indices"
    return llvm.why_not()


def _check(accumulator: np.dtype, input1: np.ndarray, levels: Sequence[np.ndarray]) -> None:
    """Refuse arrays that are not of the dtype of the sums."""
    for name, array in (("input1", input1), *((f"levels[{level}]", array) for level, array in enumerate(levels))):
        if array.dtype != accumulator:
            raise TypeError(f"{name} must be of float32 or float64, as input1, got {name}.dtype={shown(array.dtype)}")


def _image_stride(packed: np.ndarray) -> int:
    """Return the distance of images in elements."""
    return packed.strides[0] // packed.itemsize if len(packed) > 1 else 0
