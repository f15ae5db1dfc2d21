"""The output by the kernels of the variant ``simd``: windows, their dots, and the blend, one task after the other.

Maps are packed channels last (`packing`), all at once where they fit into the workspace. A task then computes the windows, the
dots and the outputs of some rectangles of queries. Where an image of input2 does not fit, the rows that a batch of queries reads
are packed in bands, and the dots of the batch are kept until the last band.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..._cpu import workers
from ..._cpu.llvm import VECTOR_BYTES, address
from ..._dispatch import Request
from ..._dtypes import element_type
from ..problem import Problem
from ..windows import Arrays
from . import packing
from .blend_kernel import Blend
from .division import Batch, Group, batches, groups
from .dot_kernel import DotProducts, segment_channels
from .rectangles import Memory, Rectangle, Span
from .tables import BYTE, COORDS, FEATURES, MAPS, Operands, Sizes, Task, tasks_of
from .window_kernel import WindowFinder


class Packed(NamedTuple):
    """Packed images: the array (images, H, W, Cp), and the number in it of each image."""

    array: np.ndarray
    number: Mapping[int, int] | range

    @property
    def address(self) -> int:
        """The address of the first image."""
        return address(self.array)

    def offsets(self, images: Sequence[int]) -> np.ndarray:
        """Return the offsets of images in elements."""
        stride = self.array.strides[0] // self.array.itemsize
        return np.array([self.number[image] for image in images], np.int64) * stride


class Coords(NamedTuple):
    """The coordinates (entries, lookups, 1 or 2, rows, columns) of a batch in rows, and the number in them of each entry."""

    array: np.ndarray
    number: np.ndarray


class Features(NamedTuple):
    """The packed pixels of a batch, and the columns of that array in memory."""

    packed: Packed
    columns: int


@dataclass(frozen=True, slots=True)
class Level:
    """The kernels of a level."""

    windows: WindowFinder
    dots: DotProducts


class Forward:
    """The computation of one call."""

    def __init__(self, request: Request, arrays: Mapping[str, np.ndarray], threads: int) -> None:
        self.problem: Problem = request.problem
        self.arrays, self.threads = Arrays(self.problem, arrays), threads
        self.accumulator = element_type("input1", self.arrays.input1.dtype).accumulator_dtype
        self.sizes = Sizes(self.problem, self.accumulator, threads)
        self.levels = [
            Level(WindowFinder(self.problem, level, self.accumulator), DotProducts(self.problem, level, self.accumulator))
            for level in range(self.problem.levels)
        ]
        self.blend = Blend(self.problem, self.accumulator)
        self.out = self.arrays.full(arrays["out"])
        self.out_strides = self.out.strides[3] // self.out.itemsize, self.out.strides[4] // self.out.itemsize
        self.out_address = address(self.out)
        self.direct = _in_rows(self.out, self.accumulator)
        self.coords_in_place = _in_rows(self.arrays.coords, self.accumulator)

    def run(self) -> None:
        """Write the output."""
        if not self.problem.outputs:
            return
        features, *levels = (packing.in_place(each, self.accumulator) for each in (self.arrays.input1, *self.arrays.levels))
        to_pack = [level for level, found in enumerate(levels) if found is None]
        shapes = [(1, *self.arrays.levels[level].shape[1:]) for level in to_pack]
        image_bytes = sum(packing.packed_bytes(shape, self.accumulator) for shape in shapes)
        in_bands = image_bytes > MAPS
        found = list(groups(self.arrays.index2, image_bytes, MAPS))
        most = 0 if in_bands else max(len(group.images) for group in found) * image_bytes
        with packing.scratch((most // self.sizes.item,), self.accumulator) as memory:
            for group in found:
                maps = {level: Packed(view, range(len(view))) for level, view in enumerate(levels) if view is not None}
                if not in_bands:
                    maps.update(self._packed_levels(to_pack, group, memory))
                self._group(group, features, maps)

    # Packing.

    def _packed_levels(self, levels: Sequence[int], group: Group, memory: np.ndarray) -> dict[int, Packed]:
        """Pack levels of the images of a group, one level after the other in memory."""
        number = {image: at for at, image in enumerate(group.images)}
        found, parts = {}, []
        for level in levels:
            source = self.arrays.levels[level]
            shape = packing.packed_shape((len(number), *source.shape[1:]), self.accumulator)
            array, memory = memory[: math.prod(shape)].reshape(shape), memory[math.prod(shape) :]
            found[level] = Packed(array, number)
            parts += _parts(source, array, number)
        workers.run(packing.pack, parts, self.threads)
        return found

    @contextmanager
    def _features(self, batch: Batch, given: np.ndarray | None) -> Iterator[Features]:
        """Return a context with the packed pixels of a batch."""
        rows, columns = batch.block
        if given is not None:
            yield Features(Packed(given[:, rows, columns], range(len(given))), self.problem.size1[1])
            return
        images = dict.fromkeys(self.arrays.index1[entry] for entry in batch.entries)
        number = {image: at for at, image in enumerate(images)}
        source = self.arrays.input1[:, :, rows, columns]
        shape = packing.packed_shape((len(number), *source.shape[1:]), self.accumulator)
        with packing.scratch(shape, self.accumulator) as array:
            workers.run(packing.pack, _parts(source, array, number), self.threads)
            yield Features(Packed(array, number), shape[2])

    def _coords(self, batch: Batch) -> Coords:
        """Return the coordinates of a batch: a copy, unless the kernels can read them where they are."""
        rows, columns = batch.block
        entries, lookups = np.array(batch.entries, np.int64), slice(batch.lookups.start, batch.lookups.stop)
        given = self.arrays.coords[:, lookups, :, rows, columns]
        if self.coords_in_place:
            return Coords(given, entries)
        return Coords(given[entries].astype(self.accumulator, order="C"), np.arange(len(entries)))

    # Batches and tasks.

    def _group(self, group: Group, given: np.ndarray | None, maps: Mapping[int, Packed]) -> None:
        in_bands = len(maps) < self.problem.levels
        queries = self.sizes.batch_queries if in_bands else self.problem.queries
        if not self.coords_in_place:
            queries = min(queries, COORDS // (2 * self.sizes.item))
        pixels = self.problem.queries if given is not None else FEATURES // (self.sizes.channels * self.sizes.item)
        for batch in batches(self.problem, group.entries, queries, max(pixels, 1)):
            coords = self._coords(batch)
            with self._features(batch, given) as features:
                tasks = [task for level, packed in maps.items() for task in self._tasks(batch, level, features, coords, packed)]
                workers.run(partial(self._task, features.packed.address, address(coords.array), maps), tasks, self.threads)
                for level in range(self.problem.levels):
                    if level not in maps:
                        self._in_bands(level, batch, features, coords)

    def _task(self, features: int, coords: int, maps: Mapping[int, Packed], task: Task) -> None:
        """Write the outputs of a task, whose windows and dots are forgotten after it."""
        kernels, channels = self.levels[task.level], (self.sizes.channels,) * 3
        rows = (0, self.problem.sizes2[task.level][0])
        size = -(-self.sizes.memory_bytes(task.queries) // VECTOR_BYTES) * VECTOR_BYTES
        with packing.scratch((size + task.blend_bytes,), BYTE) as array:
            memory = self.sizes.memory(array, task.queries)
            kernels.windows.find(task.span, coords, memory)
            kernels.dots.compute(task.span, features, maps[task.level].address, channels, rows, memory)
            self._blend(memory, task, memory.origins + size)

    def _in_bands(self, level: int, batch: Batch, features: Features, coords: Coords) -> None:
        """Write the outputs of a batch at a level whose image is packed in bands of rows, or also of channels."""
        tasks = self._tasks(batch, level, features, coords, None)
        image = self.arrays.levels[level][self.arrays.index2[batch.entries[0]]]
        kernels, queries = self.levels[level], sum(task.queries for task in tasks)
        with packing.scratch((self.sizes.memory_bytes(queries),), BYTE) as array:
            memory = self.sizes.memory(array, queries)
            workers.run(lambda task: kernels.windows.find(task.span, address(coords.array), memory), tasks, self.threads)
            rows = self._rows_read(level, array[: 8 * queries].view(np.int64))
            for number, (channels, band) in enumerate(self._bands(level, rows)):
                depth = min(channels.stop, self.sizes.channels) - channels.start
                shape = (1, band.stop - band.start, image.shape[2], depth)
                with packing.scratch(shape, self.accumulator) as packed:
                    workers.run(packing.pack, packing.parts(image[None, channels, band], packed), self.threads)
                    compute = partial(
                        _compute,
                        kernels.dots,
                        features=features.packed.address + channels.start * self.sizes.item,
                        image=address(packed),
                        channels=(depth, self.sizes.channels, depth),
                        rows=(band.start, band.stop),
                        memory=memory,
                        first=channels.start == 0,
                        clear=number == 0,
                    )
                    workers.run(compute, tasks, self.threads)
            workers.run(partial(self._blend_only, memory), tasks, self.threads)

    def _rows_read(self, level: int, origins: np.ndarray) -> range:
        """Return the rows of a level that windows with these origins read."""
        height, axis = self.problem.sizes2[level][0], self.problem.vertical
        extent = axis.last - axis.first + 1
        inside = origins[(origins > -extent) & (origins < height)]
        return range(max(int(inside.min()), 0), min(int(inside.max()) + extent, height)) if inside.size else range(0)

    def _bands(self, level: int, rows: range) -> Iterator[tuple[slice, slice]]:
        """Yield ranges of channels and of rows that are packed at once; the first one even where no row is read."""
        width, channels, item = self.problem.sizes2[level][1], self.sizes.channels, self.sizes.item
        segment = segment_channels(item)
        depth = channels if width * channels * item <= MAPS else max(MAPS // (width * segment * item), 1) * segment
        height = max(MAPS // (width * min(depth, channels) * item), 1)
        for begin in range(0, channels, depth):
            for top in range(rows.start, max(rows.stop, rows.start + 1), height):
                yield slice(begin, begin + depth), slice(top, min(top + height, rows.stop))

    def _blend_only(self, memory: Memory, task: Task) -> None:
        with packing.scratch((task.blend_bytes,), BYTE) as scratch:
            self._blend(memory, task, address(scratch))

    def _blend(self, memory: Memory, task: Task, scratch: int) -> None:
        """Write the outputs of rectangles, through a copy where the kernel cannot write them."""
        if self.direct:
            out = self.out_address + task.level * self.out.strides[1]
            self.blend.write(task.span, memory, out, self.out_strides, scratch)
        else:
            self._blend_copy(memory, task, scratch)

    def _blend_copy(self, memory: Memory, task: Task, scratch: int) -> None:
        patch = self.problem.parameters.patch_size
        fields = task.fields.copy()
        fields[:, Rectangle._fields.index("out")] -= fields[0, Rectangle._fields.index("out")]
        with packing.scratch((*patch, task.queries), self.accumulator) as copy:
            span, strides = Span(address(fields), len(fields)), (patch[1] * task.queries, task.queries)
            self.blend.write(span, memory, address(copy), strides, scratch)
            for place, values in zip(task.places.tolist(), fields.tolist(), strict=True):
                (entry, lookup, top, left), found = place, Rectangle(*values)
                source = copy[:, :, found.out : found.out + found.rows * found.columns]
                target = self.out[entry, task.level, lookup, :, :, top : top + found.rows, left : left + found.columns]
                np.copyto(target, source.reshape(target.shape), casting="unsafe")

    def _tasks(self, batch: Batch, level: int, features: Features, coords: Coords, maps: Packed | None) -> list[Task]:
        """Return the tasks of a batch at a level; rectangles of bands have no offset of the image."""
        images = [self.arrays.index2[entry] for entry in batch.entries]
        operands = Operands(
            coords=coords.number,
            coords_strides=tuple(stride // self.sizes.item for stride in coords.array.strides),
            features=features.packed.offsets([self.arrays.index1[entry] for entry in batch.entries]),
            features_columns=features.columns,
            images=np.zeros(len(images), np.int64) if maps is None else maps.offsets(images),
            out_strides=tuple(stride // self.sizes.item for stride in self.out.strides) if self.direct else None,
        )
        return tasks_of(self.sizes, batch, level, operands, kept=maps is None)


def _compute(kernel: DotProducts, task: Task, **arguments: Any) -> None:
    kernel.compute(task.span, **arguments)


def _parts(source: np.ndarray, packed: np.ndarray, number: Mapping[int, int]) -> list[packing.Part]:
    """Return the parts of packing some images, which have these numbers in the packed array."""
    return [part for image, at in number.items() for part in packing.parts(source[image : image + 1], packed[at : at + 1])]


def _in_rows(array: np.ndarray, dtype: np.dtype) -> bool:
    """Return whether kernels can read or write an array: of their dtype, with contiguous rows and whole elements between them."""
    item = dtype.itemsize
    whole = address(array) % item == 0 and all(stride % item == 0 for stride in array.strides)
    return array.dtype == dtype and whole and (array.shape[-1] <= 1 or array.strides[-1] == item)
