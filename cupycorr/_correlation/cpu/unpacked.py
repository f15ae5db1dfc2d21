"""The variant ``unpacked``, for the output of small problems: one call of a kernel that reads all arrays where they are.

    out[b, m, n, i, j] = scale * sum over c of input1[b, c, y, x] * input2[b, c, y + dy(m), x + dx(n)]

Nothing is packed, divided or shared among threads: these take longer than the products of a small problem. Windows have one
pixel. The outputs have the same bits as those of the variant ``simd``, whose sums have the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ..._cpu import workers
from ..._cpu.llvm import NUMBER, VALUE, VALUES, KernelWriter, address, compiled, in_elements, lock, registers
from ..._dispatch import FORWARD, Request
from ..._dtypes import LONGEST_CHAIN, dtype_name, element_type_called
from ..._gpu.device import Device
from ..problem import Axis, Problem
from .costs import CYCLE, ROW_CYCLES, TERM_CYCLES, UNPACKED_CALL

MOST_COPIED = 2**20  # bytes of arrays that are copied to have rows of neighbours

# The numbers of an axis that the kernels take, in the order of `_numbers`.
_AXIS = ("out", "stride", "padding", "patch", "first", "step", "size1", "size2")
_STRIDES = {"input1": "bcyx", "input2": "bcyx", "out": "bmnij"}


def why_not(request: Request) -> str | None:
    """Return the reason why the kernels cannot compute a request, or None."""
    if request.pass_name != FORWARD:
        return "only outputs are computed in this way"
    if request.problem.windowed:
        return "windows have more than one pixel"
    return None if request.problem.fits_64_bits else "positions do not fit into the kernel's integers"


def plan(request: Request, device: Device | None) -> Unpacked:
    """Return the plan of a request that `why_not` has no reason against."""
    return Unpacked(request.problem, element_type_called("dtype", request.dtype).accumulator)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The plan of a problem, with sums of a dtype."""

    problem: Problem
    accumulator: str
    workspace: int = 0
    algorithm: str = "unpacked"
    description: str = "arrays read in place, in one thread"

    @property
    def seconds(self) -> float:
        """The time by the cost model."""
        batch, *patch, height, _ = self.problem.out_shape
        rows = batch * patch[0] * patch[1] * height
        return UNPACKED_CALL + CYCLE * rows * (ROW_CYCLES + self._vectors * self.problem.channels * TERM_CYCLES)

    @property
    def _vectors(self) -> int:
        """The number of vectors that a row of outputs takes; a vector has neighbouring pixels."""
        width = self.problem.out_shape[-1]
        if self.problem.horizontal.stride != 1:
            return width
        lanes = registers().widths[0] // element_type_called("dtype", self.accumulator).itemsize
        quarters, singles = divmod(width % lanes, max(lanes // 4, 1))
        return width // lanes + quarters + singles

    def run(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the output."""
        workers.thread_count()  # a setting that is not a number of threads is refused, although one thread is enough
        if not all(map(in_elements, arrays.values())) or self._wastes_vectors(arrays):
            dense = {name: np.array(array, order="C") for name, array in arrays.items()}
            self._compute(dense)
            arrays["out"][...] = dense["out"]
        else:
            self._compute(arrays)

    def _wastes_vectors(self, arrays: Mapping[str, np.ndarray]) -> bool:
        """Return whether neighbours along a row are apart in memory, in arrays that are copied faster than read one by one."""
        spaced = any(array.strides[-1] != array.itemsize for array in arrays.values())
        small = sum(array.nbytes for array in arrays.values()) <= MOST_COPIED
        return spaced and small and self.problem.horizontal.stride == 1

    def _compute(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Call the kernel on arrays of whole elements."""
        problem, used = self.problem, [arrays[name] for name in _STRIDES]
        kernel = _kernel(tuple(dtype_name(array.dtype) for array in used), self.accumulator)
        strides = [stride // array.itemsize for array in used for stride in array.strides]
        axes = *_numbers(problem.vertical), *_numbers(problem.horizontal)
        sizes = problem.out_shape[0], problem.channels
        kernel(*map(address, used), *sizes, *axes, *strides, problem.parameters.scale)


def _numbers(axis: Axis) -> tuple[int, ...]:
    """Return the numbers of `_AXIS`."""
    return axis.out, axis.stride, axis.padding, axis.patch, axis.first_displacement, axis.step, axis.size1, axis.size2


def _kernel(dtypes: tuple[str, ...], accumulator: str) -> Callable[..., None]:
    with lock:
        return _compiled(dtypes, accumulator)


@cache
def _compiled(dtypes: tuple[str, ...], accumulator: str) -> Callable[..., None]:
    return compiled(lambda: _Writer(dtypes, element_type_called("dtype", accumulator).itemsize))


class _Line:
    """The numbers of an axis in a kernel, and the code of its geometry."""

    def __init__(self, kernel: KernelWriter, axis: str) -> None:
        self.kernel, self.named = kernel, {name: kernel.arguments[f"{name}_{axis}"] for name in _AXIS}

    def __getitem__(self, name: str) -> Any:
        return self.named[name]

    def displacement(self, index: Any) -> Any:
        """Write the displacement of a patch index."""
        return self.kernel.builder.add(self["first"], self.kernel.builder.mul(index, self["step"]))

    def valid_outputs(self, displacement: Any) -> tuple[Any, Any]:
        """Write the range of outputs that have both positions inside the images."""
        kernel, b = self.kernel, self.kernel.builder
        low = kernel.larger(kernel.number(0), b.neg(displacement))
        high = kernel.smaller(self["size1"], b.sub(self["size2"], displacement))
        begin, end = (kernel.smaller(self._first_output(position), self["out"]) for position in (low, high))
        return begin, kernel.larger(begin, end)

    def _first_output(self, position: Any) -> Any:
        """Write the first output at a position or after it."""
        kernel, b = self.kernel, self.kernel.builder
        distance = b.add(position, self["padding"])
        rounded = b.sdiv(b.add(distance, b.sub(self["stride"], kernel.number(1))), self["stride"])
        return b.select(b.icmp_signed(">", distance, kernel.number(0)), rounded, kernel.number(0))


class _Writer(KernelWriter):
    """A writer of the kernel."""

    def __init__(self, dtypes: Sequence[str], itemsize: int) -> None:
        arguments = {
            **dict.fromkeys(_STRIDES, VALUES),
            **dict.fromkeys(("batch", "channels"), NUMBER),
            **dict.fromkeys((f"{name}_{axis}" for axis in "yx" for name in _AXIS), NUMBER),
            **dict.fromkeys((f"{array}_{index}" for array, indices in _STRIDES.items() for index in indices), NUMBER),
            "scale": VALUE,
        }
        super().__init__("unpacked", arguments, itemsize)
        b, unit = self.builder, self.number(1)
        self.dtypes = dict(zip(_STRIDES, dtypes, strict=True))
        self.lanes = registers().widths[0] // itemsize
        self.pointers = {
            name: b.bitcast(self.arguments[name], self.stored(dtype).as_pointer()) for name, dtype in self.dtypes.items()
        }
        self.lines = vertical, horizontal = _Line(self, "y"), _Line(self, "x")
        self.contiguous = b.icmp_signed("==", horizontal["stride"], unit)
        for array, indices in _STRIDES.items():
            along = self.arguments[f"{array}_{indices[-1]}"]
            self.contiguous = b.and_(self.contiguous, b.icmp_signed("==", along, unit))
        self.loop(
            self.arguments["batch"],
            lambda sample, _: self.loop(
                vertical["patch"],
                lambda m, _: self.loop(horizontal["patch"], lambda n, _: self._plane(sample, m, n)),
            ),
        )
        b.ret_void()

    def address_of(self, array: str, *indices: Any) -> Any:
        """Write the address of an element of an array."""
        strides = (self.arguments[f"{array}_{axis}"] for axis in _STRIDES[array])
        offsets = (self.builder.mul(index, stride) for index, stride in zip(indices, strides, strict=True))
        return self.at(self.pointers[array], *offsets)

    def values(self, array: str, pointer: Any, lanes: int) -> Any:
        """Write the load of neighbouring elements of an array."""
        return self.widened(pointer, self.dtypes[array], lanes)

    def columns(self, begin: Any, end: Any, body: Callable[[Any, int], None]) -> None:
        """Write the loops over a range of columns, ``body(column, lanes)``: by vectors if those of all arrays adjoin."""
        b = self.builder
        self.along_row(b.sub(end, begin), self.lanes, self.contiguous, lambda x, lanes: body(b.add(begin, x), lanes))

    def _plane(self, sample: Any, m: Any, n: Any) -> None:
        """Write the outputs of one displacement."""
        b, (vertical, horizontal), zero = self.builder, self.lines, self.number(0)
        dy, dx = vertical.displacement(m), horizontal.displacement(n)
        (top, bottom), (left, right) = vertical.valid_outputs(dy), horizontal.valid_outputs(dx)
        width = horizontal["out"]

        def zeros(i: Any, begin: Any, end: Any) -> None:
            def store(j: Any, lanes: int) -> None:
                self.narrowed(self.zero(self.vector(lanes)), self.address_of("out", sample, m, n, i, j), self.dtypes["out"])

            self.columns(begin, end, store)

        def row(index: Any, _: Sequence[Any]) -> None:
            i = b.add(top, index)
            zeros(i, zero, left)
            self.columns(left, right, lambda j, lanes: self._outputs((sample, m, n, i, j), dy, dx, lanes))
            zeros(i, right, width)

        self.loop(top, lambda i, _: zeros(i, zero, width))
        self.loop(b.sub(bottom, top), row)
        self.loop(b.sub(vertical["out"], bottom), lambda i, _: zeros(b.add(bottom, i), zero, width))

    def _outputs(self, output: Sequence[Any], dy: Any, dx: Any, lanes: int) -> None:
        """Write neighbouring outputs from the first of them on: chains of channels, each of which is added to the total."""
        b, chain = self.builder, self.number(LONGEST_CHAIN.registers)
        sample, _, _, i, j = output
        y, x = (b.sub(b.mul(index, line["stride"]), line["padding"]) for index, line in zip((i, j), self.lines, strict=True))
        none = self.number(0)
        positions = (
            self.address_of("input1", sample, none, y, x),
            self.address_of("input2", sample, none, b.add(y, dy), b.add(x, dx)),
        )
        channels, vector = self.arguments["channels"], self.vector(lanes)

        def term(c: Any, sums: Sequence[Any], first: Any) -> list:
            factors = (
                self.values(array, self.at(position, b.mul(b.add(first, c), self.arguments[f"{array}_c"])), lanes)
                for array, position in zip(("input1", "input2"), positions, strict=True)
            )
            return [self.multiply_add(sums[0], *factors)]

        def add_chain(number: Any, total: Sequence[Any]) -> list:
            first = b.mul(number, chain)
            terms = self.smaller(b.sub(channels, first), chain)
            (sums,) = self.loop(terms, lambda c, sums: term(c, sums, first), [self.zero(vector)])
            return [b.fadd(total[0], sums)]

        chains = b.sdiv(b.add(channels, self.number(LONGEST_CHAIN.registers - 1)), chain)
        (total,) = self.loop(chains, add_chain, [self.zero(vector)])
        scaled = b.fmul(total, self.vector_of(self.arguments["scale"], vector))
        self.narrowed(scaled, self.address_of("out", *output), self.dtypes["out"])
