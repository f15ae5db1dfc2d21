"""The variant ``unpacked``, for small problems: one call of a kernel that reads all arrays where they are.

    out[b, m, n, i, j] = scale * sum over c of input1[b, c, y, x] * input2[b, c, y + dy(m), x + dx(n)]
    gradient[b, c, y, x] = scale * sum over m, n of cotangent[b, m, n, i, j] * other[b, c, y + t dy(m), x + t dx(n)]

Nothing is packed, divided or shared among threads: these take longer than the products of a small problem. Windows have one
pixel. In the gradients the stride is 1, (i, j) is the output whose displacement (m, n) multiplies the pixel, and t is 1 for the
gradient of input1 and -1 for that of input2. The outputs have the same bits as those of the register tiles, whose sums have the
same order.
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
from .costs import CYCLE, GRADIENT_TERM_CYCLES, ROW_CYCLES, TERM_CYCLES, UNPACKED_CALL

MOST_COPIED = 2**20  # bytes of arrays that are copied to have rows of neighbours

# The numbers of an axis that the kernels take, in the order of `_numbers`.
_AXIS = ("out", "stride", "padding", "patch", "first", "step", "size1", "size2")
_STRIDES = {"input1": "bcyx", "input2": "bcyx", "out": "bmnij", "cotangent": "bmnij", "other": "bcyx", "gradient": "bcyx"}


def why_not(request: Request) -> str | None:
    """Return the reason why the kernels cannot compute a request, or None."""
    problem, parameters = request.problem, request.problem.parameters
    if problem.windowed:
        return "windows have more than one pixel"
    if not problem.fits_64_bits:
        return "positions do not fit into the kernel's integers"
    if request.pass_name == FORWARD:
        return None
    if parameters.stride != (1, 1):
        return "the stride is not 1"
    if element_type_called("dtype", request.dtype).accumulator != request.dtype:
        return "gradients of 16 bits cannot hold their sums"
    terms = parameters.patch_size[0] * parameters.patch_size[1]
    return f"{terms} terms are too long a chain of sums" if terms > LONGEST_CHAIN.memory else None


def plan(request: Request, device: Device | None) -> Unpacked:
    """Return the plan of a request that `why_not` has no reason against."""
    accumulator = element_type_called("dtype", request.dtype).accumulator
    return Unpacked(request.problem, request.pass_name == FORWARD, accumulator)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The plan of a problem, forward or of the gradients, with sums of a dtype."""

    problem: Problem
    forward: bool
    accumulator: str
    workspace: int = 0
    algorithm: str = "unpacked"
    description: str = "arrays read in place, in one thread"

    @property
    def seconds(self) -> float:
        """The time by the cost model; that of two gradients, if one is not needed."""
        problem = self.problem
        batch, *patch, height, _ = problem.out_shape
        rows = batch * patch[0] * patch[1] * height
        of_term, results = (TERM_CYCLES, 1) if self.forward else (GRADIENT_TERM_CYCLES, 2)
        return results * (UNPACKED_CALL + CYCLE * rows * (ROW_CYCLES + self._vectors * problem.channels * of_term))

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
        """Write the results of a pass."""
        workers.thread_count()  # a setting that is not a number of threads is refused, although one thread is enough
        if not all(map(in_elements, arrays.values())) or self._wastes_vectors(arrays):
            dense = {name: np.array(array, order="C") for name, array in arrays.items()}
            self._compute(dense)
            for name in arrays.keys() & {"out", "gradient1", "gradient2"}:
                arrays[name][...] = dense[name]
        else:
            self._compute(arrays)

    def _wastes_vectors(self, arrays: Mapping[str, np.ndarray]) -> bool:
        """Return whether neighbours along a row are apart in memory, in arrays that are copied faster than read one by one."""
        spaced = any(array.strides[-1] != array.itemsize for array in arrays.values())
        small = sum(array.nbytes for array in arrays.values()) <= MOST_COPIED
        return spaced and small and self.problem.horizontal.stride == 1

    def _compute(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Call the kernels on arrays of whole elements."""
        if self.forward:
            self._call("forward", {name: arrays[name] for name in ("input1", "input2", "out")}, ())
            return
        for name, other, sign in (("gradient1", "input2", 1), ("gradient2", "input1", -1)):
            if name in arrays:
                named = {"cotangent": arrays["cotangent"], "other": arrays[other], "gradient": arrays[name]}
                self._call("gradient", named, (sign,))

    def _call(self, what: str, arrays: Mapping[str, np.ndarray], more: tuple[int, ...]) -> None:
        problem = self.problem
        kernel = _kernel(what, tuple(dtype_name(array.dtype) for array in arrays.values()), self.accumulator)
        strides = [stride // array.itemsize for array in arrays.values() for stride in array.strides]
        axes = *_numbers(problem.vertical), *_numbers(problem.horizontal)
        sizes = problem.out_shape[0], problem.channels
        kernel(*map(address, arrays.values()), *sizes, *axes, *strides, *more, problem.parameters.scale)


def _numbers(axis: Axis) -> tuple[int, ...]:
    """Return the numbers of `_AXIS`."""
    return axis.out, axis.stride, axis.padding, axis.patch, axis.first_displacement, axis.step, axis.size1, axis.size2


def _kernel(what: str, dtypes: tuple[str, ...], accumulator: str) -> Callable[..., None]:
    with lock:
        return _compiled(what, dtypes, accumulator)


@cache
def _compiled(what: str, dtypes: tuple[str, ...], accumulator: str) -> Callable[..., None]:
    writer = {"forward": _ForwardWriter, "gradient": _GradientWriter}[what]
    return compiled(lambda: writer(dtypes, element_type_called("dtype", accumulator).itemsize))


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
    """A writer of what both kernels have in common: their arguments, and addresses of elements of arrays."""

    def __init__(self, arrays: Sequence[str], dtypes: Sequence[str], itemsize: int, more: Sequence[str] = ()) -> None:
        arguments = {
            **dict.fromkeys(arrays, VALUES),
            **dict.fromkeys(("batch", "channels"), NUMBER),
            **dict.fromkeys((f"{name}_{axis}" for axis in "yx" for name in _AXIS), NUMBER),
            **dict.fromkeys((f"{array}_{index}" for array in arrays for index in _STRIDES[array]), NUMBER),
            **dict.fromkeys(more, NUMBER),
            "scale": VALUE,
        }
        super().__init__("unpacked", arguments, itemsize)
        b, unit = self.builder, self.number(1)
        self.dtypes = dict(zip(arrays, dtypes, strict=True))
        self.lanes = registers().widths[0] // itemsize
        self.pointers = {
            name: b.bitcast(self.arguments[name], self.stored(dtype).as_pointer()) for name, dtype in self.dtypes.items()
        }
        self.lines = _Line(self, "y"), _Line(self, "x")
        self.contiguous = b.icmp_signed("==", self.lines[1]["stride"], unit)
        for array in arrays:
            along = self.arguments[f"{array}_{_STRIDES[array][-1]}"]
            self.contiguous = b.and_(self.contiguous, b.icmp_signed("==", along, unit))
        self.write()
        b.ret_void()

    def write(self) -> None:
        """Write the loops."""
        raise NotImplementedError

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
        count = b.sub(end, begin)
        with b.if_else(self.contiguous) as (contiguous, spaced):
            with contiguous:
                self.by_vectors(count, self.lanes, lambda x, lanes: body(b.add(begin, x), lanes))
            with spaced:
                self.loop(count, lambda x, _: body(b.add(begin, x), 1))


class _ForwardWriter(_Writer):
    """A writer of the kernel of the outputs."""

    def __init__(self, dtypes: Sequence[str], itemsize: int) -> None:
        super().__init__(("input1", "input2", "out"), dtypes, itemsize)

    def write(self) -> None:
        """Write the loops over samples and displacements."""
        vertical, horizontal = self.lines
        self.loop(
            self.arguments["batch"],
            lambda sample, _: self.loop(
                vertical["patch"],
                lambda m, _: self.loop(horizontal["patch"], lambda n, _: self._plane(sample, m, n)),
            ),
        )

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


class _GradientWriter(_Writer):
    """A writer of the kernel of one gradient, whose sums are kept in the result."""

    def __init__(self, dtypes: Sequence[str], itemsize: int) -> None:
        super().__init__(("cotangent", "other", "gradient"), dtypes, itemsize, ("sign",))

    def write(self) -> None:
        """Write the loops over samples, channels and rows."""
        b, named = self.builder, self.arguments
        # The gradient of input1 has its size, and reads input2; that of input2 has the other sizes.
        first = b.icmp_signed(">", named["sign"], self.number(0))
        self.sizes = [
            [b.select(first, line[own], line[other]) for line in self.lines]
            for own, other in (("size1", "size2"), ("size2", "size1"))
        ]
        (height, _), _ = self.sizes
        self.loop(
            named["batch"],
            lambda sample, _: self.loop(named["channels"], lambda c, _: self.loop(height, lambda y, _: self._row(sample, c, y))),
        )

    def _row(self, sample: Any, c: Any, y: Any) -> None:
        """Write a row of the gradient: zeros, then the terms of each displacement, then the scale."""
        (_, width), (other_height, _) = self.sizes
        b, (vertical, horizontal), zero = self.builder, self.lines, self.number(0)

        def clear(x: Any, lanes: int) -> None:
            self._store(self.zero(self.vector(lanes)), (sample, c, y, x))

        def displacement_row(m: Any, _: Sequence[Any]) -> None:
            i, other = self._partners(vertical, y, m)
            inside = (b.icmp_unsigned("<", i, vertical["out"]), b.icmp_unsigned("<", other, other_height))  # negative: too large
            with b.if_then(b.and_(*inside)):
                self.loop(horizontal["patch"], lambda n, _: self._add((sample, c, y), (m, n), (i, other)))

        def scale(x: Any, lanes: int) -> None:
            vector = self.vector(lanes)
            total = self.load(self.address_of("gradient", sample, c, y, x), vector)
            self._store(b.fmul(total, self.vector_of(self.arguments["scale"], vector)), (sample, c, y, x))

        self.columns(zero, width, clear)
        self.loop(vertical["patch"], displacement_row)
        self.columns(zero, width, scale)

    def _partners(self, line: _Line, position: Any, index: Any) -> tuple[Any, Any]:
        """Write the output and the position of the other image that a displacement pairs a position with."""
        b, sign = self.builder, self.arguments["sign"]
        displacement = line.displacement(index)
        other = b.add(position, b.mul(sign, displacement))
        position1 = b.select(b.icmp_signed(">", sign, self.number(0)), position, other)
        return b.add(position1, line["padding"]), other

    def _add(self, row: Sequence[Any], displacement: Sequence[Any], rows: Sequence[Any]) -> None:
        """Write the addition of the terms of a displacement to a row of the gradient."""
        b, zero = self.builder, self.number(0)
        (sample, c, y), (m, n), (i, other_y) = row, displacement, rows
        (_, width), (_, other_width) = self.sizes
        j, other_x = self._partners(self.lines[1], zero, n)  # of column 0
        begin = self.larger(zero, self.larger(b.neg(j), b.neg(other_x)))
        end = self.smaller(width, self.smaller(b.sub(self.lines[1]["out"], j), b.sub(other_width, other_x)))

        def add(x: Any, lanes: int) -> None:
            cotangent = self.values("cotangent", self.address_of("cotangent", sample, m, n, i, b.add(j, x)), lanes)
            other = self.values("other", self.address_of("other", sample, c, other_y, b.add(other_x, x)), lanes)
            total = self.load(self.address_of("gradient", sample, c, y, x), self.vector(lanes))
            self._store(self.multiply_add(total, cotangent, other), (sample, c, y, x))

        self.columns(begin, end, add)

    def _store(self, values: Any, pixel: Sequence[Any]) -> None:
        self.store(values, self.address_of("gradient", *pixel))
