"""The plan of windows of one pixel with stride 1 by groups of rows: one compiled call for each thread.

Each part takes two stages: the rows of the search image are packed, then each task computes outputs or a gradient of a row group
and stores them in the result. Both gradients are computed together. Images much taller than wide are computed with height and
width exchanged. Every sum has one order, so that bits depend neither on threads nor on divisions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from ..._cpu import task_kernel, team, workers
from ..._cpu.llvm import LINE, address, aligned_address, code_address, in_elements
from ..._dispatch import FORWARD, Request
from ..._dtypes import dtype_name, element_type_called
from ..._sharing import CachedProperty
from ..problem import Problem, lattice_inside
from . import row_forward, row_gradient, row_packing
from .block_plan import PACKED_BYTES, threads_within_workspace
from .costs import GROUP_CALL, SPACED
from .engine import THREAD_SECONDS
from .row_kernel import CHAIN, TILES, Kernel
from .row_side import Part, Side, positions_of_outputs

MOST_STEP = 64  # columns between displacements, each of which has a kernel of its own
_RETAINED = 16  # layouts of arrays whose calls a plan keeps
_PACKED = "packed"  # the memory of packed rows, among the arrays of a call
_BYTES = np.dtype(np.uint8)
_NUMBER_BYTES = 8


def why_not(request: Request) -> str | None:
    """Return the reason why a request cannot be computed in this way, or None."""
    problem = request.problem
    if problem.windowed:
        return "windows have more than one pixel"
    if problem.parameters.stride != (1, 1):
        return "the stride is not 1"
    if not problem.fits_64_bits:
        return "positions do not fit into the kernel's integers"
    if min(*problem.out_shape, *problem.shape1, *problem.shape2) < 1 or not _sides(request):
        return "there is nothing to sum"
    if not RowGroups.of_all_sides(request).fits:
        return "a group of rows does not fit into the workspace, or displacements are too far apart"
    return None


def _sides(request: Request) -> tuple[int | None, ...]:
    """Return the `Side.which` of everything that a request computes."""
    return (None,) if request.pass_name == FORWARD else tuple(side for side in (0, 1) if request.needs[side])


class RowGroups:
    """The plan of a request.

    Parameters
    ----------
    problem
        The problem, with height and width exchanged if ``transposed``.
    sides
        The `Side.which` of everything that is computed.
    accumulator
        The dtype of sums.
    transposed
        True if the arrays are viewed with height and width exchanged.
    """

    def __init__(self, problem: Problem, sides: tuple[int | None, ...], accumulator: str, transposed: bool) -> None:
        self.problem, self.accumulator, self.transposed = problem, accumulator, transposed
        self._itemsize = element_type_called("dtype", accumulator).itemsize
        most_bytes = PACKED_BYTES if sides == (None,) else PACKED_BYTES // 2  # also of a gradient alone
        self.sides = [Side(problem, side, self._itemsize, most_bytes) for side in sides]
        self._calls: dict[tuple, _Call] = {}

    @classmethod
    def of(cls, request: Request) -> RowGroups:
        """Return the plan of a request. A gradient has the same bits if the other one is needed and if it is not."""
        plan = cls.of_all_sides(request)
        return cls(plan.problem, _sides(request), plan.accumulator, plan.transposed)

    @classmethod
    def of_all_sides(cls, request: Request) -> RowGroups:
        """Return the faster plan of the output or of both gradients.

        Height and width are exchanged for speed alone: where the problem as it is does not fit, blocks are as fast.
        """
        sides = (None,) if request.pass_name == FORWARD else (0, 1)
        accumulator = element_type_called("dtype", request.dtype).accumulator
        upright = cls(request.problem, sides, accumulator, transposed=False)
        transposed = cls(request.problem.transposed, sides, accumulator, transposed=True)
        return min(upright, transposed, key=lambda plan: plan.seconds) if upright.fits and transposed.fits else upright

    @property
    def fits(self) -> bool:
        """True if the plan stays within the workspace."""
        return self.problem.horizontal.step <= MOST_STEP and all(side.fits for side in self.sides)

    @CachedProperty
    def seconds(self) -> float:
        """The estimated seconds in one thread."""
        spaced = SPACED * self.problem.bytes(1, 1) if self.transposed else 0  # the columns of each array are its rows
        return GROUP_CALL + sum(side.seconds + spaced for side in self.sides)

    def run(self, arrays: Mapping[str, np.ndarray]) -> bool:
        """Write the results of a pass; return False, and write nothing, if kernels cannot address the elements of all arrays."""
        threads = min(workers.thread_count(), self._most_threads)
        key = tuple([(array.strides, array.dtype, array.flags.aligned) for array in arrays.values()])
        call = self._calls.get(key)
        if call is None:
            if not all(map(in_elements, arrays.values())):
                return False
            call = _Call(self, arrays)
            if len(self._calls) < _RETAINED:
                self._calls[key] = call
        call.run(arrays, threads)
        return True

    @CachedProperty
    def _most_threads(self) -> int:
        """The threads that the estimated time is worth, and whose scratch memory fits into the workspace."""
        worth = 1 + int(self.seconds / THREAD_SECONDS)
        return min(worth, threads_within_workspace(max(side.scratch_bytes for side in self.sides)))


class _Address(NamedTuple):
    """A number of a kernel that is the address of an array's element, an offset in bytes from its first one."""

    array: str
    offset: int


class _Call:
    """A call of a plan on arrays of given strides and dtypes: all numbers of its kernels but for the addresses of the arrays."""

    def __init__(self, plan: RowGroups, arrays: Mapping[str, np.ndarray]) -> None:
        if plan.transposed:
            arrays = {name: _exchanged(array) for name, array in arrays.items()}
        numbers = _Numbers(plan.accumulator, arrays)
        begins = np.cumsum([0, *(_packed_bytes(side) for side in plan.sides)]).tolist()
        stages = []
        for parts in zip_longest(*(side.parts for side in plan.sides)):
            found = [each for each in zip(plan.sides, parts, begins[:-1], strict=True) if each[1] is not None]
            stages.append([numbers.of_packing(*each) for each in found])
            stages.append([numbers.of_products(*each) for each in found])
        self._kernels = numbers.kernels
        self._template = np.array(numbers.values, np.int64)
        self._places, self._of_array, self._offsets = (np.array(each) for each in zip(*numbers.addresses, strict=True))
        self._packed_bytes = begins[-1] + LINE
        self._program = team.Program(stages, max(side.scratch_bytes for side in plan.sides))

    def run(self, arrays: Mapping[str, np.ndarray], threads: int) -> None:
        """Compute the results."""
        numbers = self._template.copy()
        with workers.scratch((self._packed_bytes,), _BYTES) as packed:
            bases = np.array([*map(address, arrays.values()), aligned_address(packed)])
            numbers[self._places] = bases[self._of_array] + self._offsets
            self._program.run(threads, address(numbers))


def _exchanged(array: np.ndarray) -> np.ndarray:
    """Return a view of an image or of a volume with height and width exchanged, which begins with the same element."""
    return array.swapaxes(2, 3) if array.ndim == 4 else array.transpose(0, 2, 1, 4, 3)


class _Numbers:
    """The numbers of all kernels of a call, which are added kernel by kernel.

    Attributes
    ----------
    values
        The numbers, 0 for an address.
    addresses
        For each address its place, the number of its array in the order of the call's arrays, with packed rows at the end, and
        the offset in bytes from the array's first element.
    kernels
        The kernels, whose code lives as long as they are kept.
    """

    def __init__(self, accumulator: str, arrays: Mapping[str, np.ndarray]) -> None:
        self._accumulator, self._arrays = accumulator, arrays
        self._names = [*arrays, _PACKED]
        self.values: list[int] = []
        self.addresses: list[tuple[int, int, int]] = []
        self.kernels: list[Kernel] = []

    def of_packing(self, side: Side, part: Part, packed: int) -> team.Tasks:
        """Add the numbers of the kernel that packs the search rows of a part; return its tasks."""
        name = "input1" if side.which == 1 else "input2"
        samples, rows = part
        first, end = side.searched(rows)
        rows_of_task = side.packed_at_once(samples[1] - samples[0], end - first)
        tasks = -(-(end - first) // rows_of_task)
        inside = lattice_inside(side.shift_x, 1, side.packed_width, *side.searched_columns)
        named = dict(
            source=_Address(name, samples[0] * self._arrays[name].strides[0]),
            packed=_Address(_PACKED, packed),
            rows=end - first,
            tasks=tasks,
            rows_of_task=rows_of_task,
            channels=side.problem.channels,
            width=side.packed_width,
            first_row=first,
            begin=inside[0],
            end=inside[1],
            first_column=side.shift_x,
            **self._strides("source", name, "bcyx"),
        )
        kernel = row_packing.kernel(dtype_name(self._arrays[name].dtype), self._accumulator)
        return self._tasks(kernel, row_packing.NUMBERS, named, (samples[1] - samples[0]) * tasks)

    def of_products(self, side: Side, part: Part, packed: int) -> team.Tasks:
        """Add the numbers of the kernel that computes the row groups of a part; return its tasks."""
        samples, rows = part
        searched = side.searched(rows)
        groups = side.groups(rows[1] - rows[0])
        named: dict[str, Any] = dict(
            scale=task_kernel.bits(side.problem.parameters.scale),
            groups=groups,
            chunks=side.chunks,
            chunk=side.chunk,
            search=_Address(_PACKED, packed),
            packed_rows=searched[1] - searched[0],
            packed_first=searched[0],
            packed_width=side.packed_width,
            channels=side.problem.channels,
            displacement_y=side.displacement_y,
            step_y=side.step_y,
            patch_y=side.patch_y,
            displacement_x=side.displacement_x,
            patch_x=side.patch_x,
            first_row=rows[0],
            rows=rows[1] - rows[0],
            scratch_width=side.scratch_width,
            scratch_plane=side.scratch_plane,
            sums_at=side.packed_planes * side.scratch_plane,
            sums_plane=side.sums_plane,
            columns=side.columns,
            **dict.fromkeys(TILES, 0),
        )
        named.update(zip(TILES, map(side.tiles.widths.count, side.shape.widths), strict=False))  # there may be one width only
        if side.which is None:
            kernel, names = self._forward(side, samples[0], named)
        else:
            kernel, names = self._gradient(side, samples[0], named)
        return self._tasks(kernel, names, named, (samples[1] - samples[0]) * groups * side.chunks)

    def _forward(self, side: Side, sample: int, named: dict[str, Any]) -> tuple[Kernel, Sequence[str]]:
        """Add what only the kernel of the outputs needs; return it, and the names of its numbers."""
        vertical, horizontal = side.problem.vertical, side.problem.horizontal
        named.update(
            input1=_Address("input1", sample * self._arrays["input1"].strides[0]),
            out=_Address("out", sample * self._arrays["out"].strides[0]),
            padding_y=vertical.padding,
            height1=vertical.size1,
            height2=vertical.size2,
            padding_x=horizontal.padding,
            width1=horizontal.size1,
            width2=horizontal.size2,
            **self._strides("input1", "input1", "bcyx"),
            **self._strides("out", "out", "bmnij"),
        )
        dtypes = dtype_name(self._arrays["input1"].dtype), dtype_name(self._arrays["out"].dtype)
        return row_forward.kernel(side.shape, side.step_x, dtypes, self._accumulator), row_forward.NUMBERS

    def _gradient(self, side: Side, sample: int, named: dict[str, Any]) -> tuple[Kernel, Sequence[str]]:
        """Add what only the kernel of a gradient needs; return it, and the names of its numbers."""
        name = "gradient2" if side.which else "gradient1"
        vertical, horizontal = side.problem.vertical, side.problem.horizontal
        cotangent = self._arrays["cotangent"]
        patch_y, patch_x, strides = side.patch_y, side.patch_x, dict(zip("bmnij", cotangent.strides, strict=True))
        (top, bottom), (left, right) = positions_of_outputs(vertical), positions_of_outputs(horizontal)
        if side.which:
            first = (patch_y - 1) * strides["m"] + (patch_x - 1) * strides["n"]
            limits = (0, side.rows), (top, bottom), (0, side.columns), (left, right)
            steps, offsets = (0, side.step_y, side.step_x), (side.displacement_y, side.displacement_x)
        else:
            first = 0
            limits = (top, bottom), (0, side.search_rows), (left, right), (0, side.search_columns)
            steps, offsets = (side.step_y, 0, 0), (0, 0)
        named.update(
            cotangent=_Address("cotangent", sample * strides["b"] + first),
            gradient=_Address(name, sample * self._arrays[name].strides[0]),
            step_x=side.step_x,
            row_step=steps[0],
            search_step=steps[1],
            column_step=steps[2],
            row_offset=vertical.padding + offsets[0],
            column_offset=horizontal.padding + offsets[1],
            chain_rows=max(CHAIN // patch_x, 1),
            **self._strides("cotangent", "cotangent", "bmnij"),
            **self._strides("gradient", name, "bcyx"),
        )
        for names, limit in zip(row_gradient.LIMITS, limits, strict=True):
            named.update(zip(names, limit, strict=True))
        if side.which:
            named.update(cotangent_m=-named["cotangent_m"], cotangent_n=-named["cotangent_n"])
        dtypes = dtype_name(cotangent.dtype), dtype_name(self._arrays[name].dtype)
        return row_gradient.kernel(side.shape, dtypes, self._accumulator), row_gradient.NUMBERS

    def _tasks(self, kernel: Kernel, names: Sequence[str], named: Mapping[str, Any], count: int) -> team.Tasks:
        """Add the numbers of a kernel; return its tasks."""
        self.kernels.append(kernel)
        place = len(self.values)
        for at, name in enumerate(names, place):
            value = named[name]
            if isinstance(value, _Address):
                self.addresses.append((at, self._names.index(value.array), value.offset))
            self.values.append(0 if isinstance(value, _Address) else value)
        return team.Tasks(code_address(kernel), _NUMBER_BYTES * place, count)

    def _strides(self, prefix: str, name: str, axes: str) -> dict[str, int]:
        """Return the strides in elements of an array's first axes."""
        array = self._arrays[name]
        return {f"{prefix}_{axis}": stride // array.itemsize for axis, stride in zip(axes, array.strides, strict=True)}


def _packed_bytes(side: Side) -> int:
    """Return the bytes of the packed rows of the largest part, in whole cache lines."""
    rows = 0
    for (begin, end), of_part in side.parts:
        first, after = side.searched(of_part)
        rows = max(rows, (end - begin) * (after - first))
    return -(-rows * side.problem.channels * side.packed_width * side.itemsize // LINE) * LINE
