"""Kernels that LLVM compiles for this processor at run time: the writer that they share, and the only door to the compiler.

A kernel is a subclass of `KernelWriter`, which writes loops over vectors of columns in LLVM's intermediate representation.
`compiled` makes a function of it that runs without the interpreter's lock. All calls of LLVM are made while `lock` is held, and
one function says why no kernel can run, so that a kernel's module needs neither a lock nor a check of its own. This module knows
no kernel.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .._sharing import fork_safe_lock
from . import object_cache

VECTOR_BYTES = 64  # the widest vector register of any processor
LINE = 64  # bytes of a cache line

# The kinds of arguments of a kernel: addresses of values and of int64 offsets, an int64 number, and one value.
VALUES, OFFSETS, NUMBER, VALUE = "values", "offsets", "number", "value"

# The passes that LLVM runs. Kernels use all registers already; unrolling or vectorising them again would spill them.
_SPEED_LEVEL = 2
_TUNING = dict(loop_unrolling=False, loop_vectorization=False, slp_vectorization=False)

# Held during every call of LLVM, whose own lock would never be released in a child that is forked meanwhile.
lock = fork_safe_lock()


@dataclass(frozen=True, slots=True)
class Registers:
    """The vector registers of this machine: their number, and the widths in bytes that instructions support, widest first."""

    count: int
    widths: tuple[int, ...]


def why_not() -> str | None:
    """Return the reason why kernels cannot be compiled and run on this system, or None."""
    with lock:
        try:
            import llvmlite.binding as llvm
        except ImportError:
            return 'llvmlite is not installed: pip install "cupycorr[cpu]"'
        try:
            llvm.check_jit_execution()
        except OSError:
            return "this system does not let memory become executable, so code that LLVM compiles cannot run"
    return None


@lru_cache(maxsize=1)
def registers() -> Registers:
    """Return the vector registers that LLVM finds on this machine."""
    with lock:
        import llvmlite.binding as llvm

        features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return Registers(32, (VECTOR_BYTES, 32))
    if features.get("avx") and features.get("fma"):
        return Registers(16, (32, 16))
    return Registers(32 if features.get("neon") else 16, (16,))


@lru_cache(maxsize=1)
def converts_float16() -> bool:
    """Return whether this processor converts float16; for one that does not, LLVM would call a function that is not there."""
    with lock:
        import llvmlite.binding as llvm

        features = llvm.get_host_cpu_features()
    return bool(features.get("f16c") or features.get("neon"))


def _target_machine() -> Any:
    """Return a new LLVM target machine for this processor; an engine deletes its own, so that engines cannot share one."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=_SPEED_LEVEL, jit=True
    )


def compiled(write: Callable[[], KernelWriter]) -> Callable[..., None]:
    """Return the function that LLVM compiles of the kernel that ``write`` returns; call it with addresses, ints and floats.

    Compiling takes 50 to 100 ms, and 10 ms if an earlier process has compiled the same kernel: the caller holds `lock` and keeps
    the function.
    """
    import llvmlite.binding as llvm

    reason = why_not()  # checked again: running code in memory that is not executable would end the process
    if reason is not None:
        raise NotImplementedError(f"no kernel can be compiled: {reason}")
    machine = _target_machine()
    kernel = write()
    text = str(kernel.module)
    key = "\n".join((*_code_generator(), text))
    code = object_cache.read(key)
    module = llvm.parse_assembly(text)
    if code is None:
        _optimise(module, machine)
    engine = llvm.create_mcjit_compiler(module, machine)
    made: list[bytes] = []  # kept below: an exception in these functions, such as Control-C, would be lost
    engine.set_object_cache(lambda _, new: made.append(new), lambda _: code)
    engine.finalize_object()
    if code is None and made:
        object_cache.keep(key, made[0])
    prototype = ctypes.CFUNCTYPE(None, *kernel.argument_types())
    function = prototype(engine.get_function_address(kernel.function.name))
    function.engine = engine  # type: ignore[attr-defined]  # the code lives as long as its engine
    return function


@lru_cache(maxsize=1)
def _code_generator() -> tuple[str, ...]:
    """Return the words for everything beside a kernel's text that decides which machine code LLVM makes of it."""
    import llvmlite
    import llvmlite.binding as llvm

    processor = llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    return str(llvm.llvm_version_info), llvmlite.__version__, *processor, str((_SPEED_LEVEL, _TUNING))


def _optimise(module: Any, machine: Any) -> None:
    """Check a module and run LLVM's passes over it."""
    import llvmlite.binding as llvm

    module.verify()
    tuning = llvm.create_pipeline_tuning_options(speed_level=_SPEED_LEVEL)
    for option, value in _TUNING.items():
        setattr(tuning, option, value)
    passes = llvm.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(module, passes)


def address(array: np.ndarray) -> int:
    """Return the address of the first element of an array, as an argument of a kernel."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array.data))  # half of the other way's time
    except (TypeError, ValueError):  # no element, read-only, with gaps, or of a dtype that buffers do not know
        return int(array.__array_interface__["data"][0])


def aligned_address(array: np.ndarray) -> int:
    """Return the address of the first cache line that begins in an array, which has room for a line more than is used."""
    return -(-address(array) // LINE) * LINE


def code_address(function: Callable[..., None]) -> int:
    """Return the address of the code of a function that `compiled` returned, for other compiled code to call."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]


def in_elements(array: np.ndarray) -> bool:
    """Return whether a kernel can address an array in whole elements: each of them is aligned."""
    return array.flags.aligned and not any(stride % array.itemsize for stride in array.strides)


class KernelWriter:
    """A writer of one kernel in LLVM's intermediate representation, with the steps that all kernels consist of.

    ``arguments`` maps the names of the kernel's arguments to their kinds. No memory that a kernel writes may be the target of two
    of its addresses. A subclass writes the code with ``builder`` and ends it with ``builder.ret_void()``.
    """

    def __init__(self, name: str, arguments: Mapping[str, str], itemsize: int) -> None:
        from llvmlite import ir

        self.ir, self.itemsize = ir, itemsize
        self.module = ir.Module("cupycorr")
        self.index = ir.IntType(64)
        self.element = {4: ir.FloatType(), 8: ir.DoubleType()}[itemsize]
        self._kinds = tuple(arguments.values())
        pointers = {VALUES: self.element.as_pointer(), OFFSETS: self.index.as_pointer()}
        types = {**pointers, NUMBER: self.index, VALUE: self.element}
        signature = ir.FunctionType(ir.VoidType(), [types[kind] for kind in self._kinds])
        self.function = ir.Function(self.module, signature, name)
        self.arguments = dict(zip(arguments, self.function.args, strict=True))
        for argument, kind in zip(self.function.args, self._kinds, strict=True):
            if kind in pointers:
                argument.add_attribute("noalias")
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))

    def argument_types(self) -> list[Any]:
        """Return the C types of the arguments."""
        value = {4: ctypes.c_float, 8: ctypes.c_double}[self.itemsize]
        types = {VALUES: ctypes.c_void_p, OFFSETS: ctypes.c_void_p, NUMBER: ctypes.c_int64, VALUE: value}
        return [types[kind] for kind in self._kinds]

    def loop(self, count: Any, body: Callable[[Any, Sequence[Any]], Sequence[Any] | None], carried: Sequence[Any] = ()) -> list:
        """Write ``for i in range(count)``, which carries values from one iteration to the next; return the final values."""
        b = self.builder
        before = b.block
        head, inside, after = (self.function.append_basic_block(name) for name in ("head", "inside", "after"))
        b.branch(head)
        b.position_at_end(head)
        i = b.phi(self.index)
        i.add_incoming(self.number(0), before)
        values = [b.phi(value.type) for value in carried]
        for phi, value in zip(values, carried, strict=True):
            phi.add_incoming(value, before)
        b.cbranch(b.icmp_signed("<", i, count), inside, after)
        b.position_at_end(inside)
        new = body(i, values) or ()
        i.add_incoming(b.add(i, self.number(1)), b.block)
        for phi, value in zip(values, new, strict=True):
            phi.add_incoming(value, b.block)
        b.branch(head)
        b.position_at_end(after)
        return values

    def by_vectors(self, count: Any, lanes: int, body: Callable[[Any, int], None]) -> None:
        """Write loops over ``count`` elements, which call ``body(first element, lanes)``.

        The elements are taken by whole vectors, the rest of them by quarters of a vector, and what then is left one by one.
        """
        b, done = self.builder, self.number(0)
        for width in dict.fromkeys((lanes, max(lanes // 4, 1), 1)):

            def vector(i: Any, _: Sequence[Any], first: Any = done, width: int = width) -> None:
                body(b.add(first, b.mul(i, self.number(width))), width)

            vectors = b.sdiv(b.sub(count, done), self.number(width))
            self.loop(vectors, vector)
            done = b.add(done, b.mul(vectors, self.number(width)))

    def along_row(self, count: Any, lanes: int, neighbours: Any, body: Callable[[Any, int], None]) -> None:
        """Write loops like `by_vectors`, but over single elements where ``neighbours`` is not true of them."""
        with self.builder.if_else(neighbours) as (adjoin, apart):
            with adjoin:
                self.by_vectors(count, lanes, body)
            with apart:
                self.loop(count, lambda x, _: body(x, 1))

    def zeros(self, target: Any, begin: Any, end: Any, lanes: int) -> None:
        """Write zeros into a range of the values from an address on."""

        def zeros(x: Any, lanes: int) -> None:
            self.store(self.zero(self.vector(lanes)), self.at(target, begin, x))

        self.by_vectors(self.builder.sub(end, begin), lanes, zeros)

    def vector(self, lanes: int) -> Any:
        """Return the type of a vector."""
        return self.ir.VectorType(self.element, lanes)

    def zero(self, vector: Any) -> Any:
        """Return a vector of zeros."""
        return self.ir.Constant(vector, None)  # a text of one word

    def vector_of(self, value: Any, vector: Any) -> Any:
        """Write a vector with one value in all lanes."""
        b, lanes = self.builder, self.ir.VectorType(self.ir.IntType(32), vector.count)
        first = b.insert_element(self.ir.Constant(vector, self.ir.Undefined), value, self.number(0))
        return b.shuffle_vector(first, first, self.ir.Constant(lanes, [0] * vector.count))

    def intrinsic(self, name: str, vector: Any) -> Any:
        """Return the LLVM intrinsic of this name for vectors of one operand."""
        full = f"llvm.{name}.v{vector.count}f{8 * self.itemsize}"
        found = self.module.globals.get(full)
        return found or self.ir.Function(self.module, self.ir.FunctionType(vector, [vector]), full)

    def shuffled(self, first: Any, second: Any, lanes: Sequence[int]) -> Any:
        """Write a vector of these lanes of two vectors, those of the second counted after those of the first."""
        numbers = self.ir.Constant(self.ir.VectorType(self.ir.IntType(32), len(lanes)), list(lanes))
        return self.builder.shuffle_vector(first, second, numbers)

    def transposed(self, vectors: Sequence[Any]) -> list:
        """Write the transpose of as many vectors as each has lanes."""
        found, lanes = list(vectors), range(len(vectors))
        distance = len(found) // 2
        while distance:  # exchange the off-diagonal blocks of each square of twice this size
            for first in (lane for lane in lanes if not lane & distance):
                pair = found[first], found[first + distance]
                upper = [lane if not lane & distance else lane - distance + len(found) for lane in lanes]
                lower = [lane + distance if not lane & distance else lane + len(found) for lane in lanes]
                found[first], found[first + distance] = self.shuffled(*pair, upper), self.shuffled(*pair, lower)
            distance //= 2
        return found

    def lane_sums(self, vectors: Sequence[Any]) -> Any:
        """Write one vector with the sum of the lanes of each vector, each added in the same order wherever it is."""
        lanes = vectors[0].type.count
        parts = [self._lane_sums(vectors[begin : begin + lanes]) for begin in range(0, len(vectors), lanes)]
        sums = parts[0]
        for part in parts[1:]:
            count, more = sums.type.count, part.type.count
            part = self.shuffled(part, part, [min(lane, more - 1) for lane in range(count)])  # operands have the same type
            sums = self.shuffled(sums, part, [*range(count), *range(count, count + more)])
        return sums

    def _lane_sums(self, vectors: Sequence[Any]) -> Any:
        """Write the sums of at most as many vectors as each has lanes: two become one, with half of the lanes for each."""
        found, count = list(vectors), len(vectors)
        lanes = found[0].type.count
        places = [0] * count  # the lane that the sum of each vector comes to
        distance, level = lanes // 2, 0
        while distance:
            for vector in range(count):
                places[vector] += distance * (vector >> level & 1)
            halves = range(0, len(found), 2)
            found = [self._halves_added(found[at], found[min(at + 1, len(found) - 1)], distance) for at in halves]
            distance, level = distance // 2, level + 1
        return self.shuffled(found[0], found[0], places)

    def _halves_added(self, first: Any, second: Any, distance: int) -> Any:
        """Write the sums of lanes at a distance: those of the first vector where the bit of the distance is 0 in a lane."""
        count = first.type.count
        own = [lane if not lane & distance else lane + count for lane in range(count)]
        other = [lane + distance if not lane & distance else lane - distance + count for lane in range(count)]
        return self.builder.fadd(self.shuffled(first, second, own), self.shuffled(first, second, other))

    def multiply_add(self, total: Any, left: Any, right: Any) -> Any:
        """Write ``total + left * right``."""
        # `contract` allows a fused multiply-add and no other change.
        return self.builder.fadd(total, self.builder.fmul(left, right, flags=("contract",)), flags=("contract",))

    def load(self, pointer: Any, vector: Any) -> Any:
        """Write the load of a vector, which need not be aligned."""
        return self.builder.load(self.builder.bitcast(pointer, vector.as_pointer()), align=self.itemsize)

    def stored(self, dtype: str) -> Any:
        """Return the type of the elements of a dtype in memory."""
        ir = self.ir
        return {
            "float16": ir.HalfType() if converts_float16() else ir.IntType(16),
            "bfloat16": ir.IntType(16),
            "float32": ir.FloatType(),
            "float64": ir.DoubleType(),
        }[dtype]

    def widened(self, pointer: Any, dtype: str, lanes: int) -> Any:
        """Write the load of a vector of `stored` elements of a dtype, which need not be aligned, converted to the kernel's."""
        b, ir = self.builder, self.ir
        found, wanted = ir.VectorType(self.stored(dtype), lanes), self.vector(lanes)
        values = b.load(b.bitcast(pointer, found.as_pointer()), align=1)
        if dtype == "bfloat16":  # the upper half of a float32
            whole = ir.VectorType(ir.IntType(32), lanes)
            half = ir.Constant(whole, [16] * lanes)
            return b.bitcast(b.shl(b.zext(values, whole), half), wanted)
        if dtype == "float16" and not converts_float16():
            return self._of_half_bits(values)
        return values if values.type == wanted else b.fpext(values, wanted)

    def narrowed(self, values: Any, pointer: Any, dtype: str) -> None:
        """Write the store of a vector as `stored` elements of a dtype, which need not be aligned, rounded to nearest even."""
        b, ir, lanes = self.builder, self.ir, values.type.count
        wanted = ir.VectorType(self.stored(dtype), lanes)
        if dtype == "bfloat16":
            values = self._upper_halves(values)
        elif dtype == "float16" and not converts_float16():
            values = self._half_bits(values)
        elif values.type != wanted:
            change = b.fptrunc if self.itemsize > {"float16": 2, "float32": 4, "float64": 8}[dtype] else b.fpext
            values = change(values, wanted)
        b.store(values, b.bitcast(pointer, wanted.as_pointer()), align=1)

    def _upper_halves(self, values: Any) -> Any:
        """Write the upper halves of float32 values, rounded to nearest even; NaN becomes the NaN of `ml_dtypes`."""
        b, bits = self.builder, self._bits(values)
        odd = b.and_(self._shifted_right(bits, 16), self._same(bits, 1))
        rounded = self._shifted_right(b.add(bits, b.add(odd, self._same(bits, 0x7FFF))), 16)
        nan = b.or_(b.and_(self._shifted_right(bits, 16), self._same(bits, 0x8000)), self._same(bits, 0x7FC0))
        return self._low_halves(b.select(b.fcmp_unordered("uno", values, values), nan, rounded))

    def _half_bits(self, values: Any) -> Any:
        """Write the bits of float16 for float32 values, rounded to nearest even, by whole numbers."""
        b, bits = self.builder, self._bits(values)
        sign = b.and_(bits, self._same(bits, 0x80000000))
        magnitude = b.xor(bits, sign)
        odd = b.and_(self._shifted_right(magnitude, 13), self._same(bits, 1))
        # The exponent is 112 less in float16, and 13 bits of the fraction are rounded away.
        normal = self._shifted_right(b.add(magnitude, b.add(odd, self._same(bits, 0x100000000 - (112 << 23) + 0xFFF))), 13)
        # 0.5 is so large that its sum with the magnitude of a denormal number is rounded to the last bit of float16.
        half = b.bitcast(self._same(bits, 0x3F000000), values.type)
        denormal = b.sub(self._bits(b.fadd(b.bitcast(magnitude, values.type), half)), self._same(bits, 0x3F000000))
        found = b.select(b.icmp_unsigned("<", magnitude, self._same(bits, 0x38800000)), denormal, normal)
        found = b.select(b.icmp_unsigned(">=", magnitude, self._same(bits, 0x47800000)), self._same(bits, 0x7C00), found)
        found = b.select(b.icmp_unsigned(">", magnitude, self._same(bits, 0x7F800000)), self._same(bits, 0x7E00), found)
        return self._low_halves(b.or_(found, self._shifted_right(sign, 16)))

    def _of_half_bits(self, values: Any) -> Any:
        """Write the float32 values for bits of float16, by whole numbers and one exact product."""
        b, ir, lanes = self.builder, self.ir, values.type.count
        bits = b.zext(values, ir.VectorType(ir.IntType(32), lanes))
        sign = b.shl(b.and_(bits, self._same(bits, 0x8000)), self._same(bits, 16))
        magnitude = b.shl(b.and_(bits, self._same(bits, 0x7FFF)), self._same(bits, 13))
        wide = self._bits(
            b.fmul(b.bitcast(magnitude, self.vector(lanes)), self.ir.Constant(self.vector(lanes), [2.0**112] * lanes))
        )
        infinite = b.or_(magnitude, self._same(bits, 0x7F800000))
        wide = b.select(b.icmp_unsigned(">=", magnitude, self._same(bits, 0x7C00 << 13)), infinite, wide)
        return b.bitcast(b.or_(wide, sign), self.vector(lanes))

    def _bits(self, values: Any) -> Any:
        """Write the bits of float32 values."""
        return self.builder.bitcast(values, self.ir.VectorType(self.ir.IntType(32), values.type.count))

    def _same(self, bits: Any, number: int) -> Any:
        """Return a vector like another one with one whole number in all lanes, modulo 2^32."""
        return self.ir.Constant(bits.type, [number & 0xFFFFFFFF] * bits.type.count)

    def _shifted_right(self, bits: Any, count: int) -> Any:
        """Write bits shifted towards the lowest one."""
        return self.builder.lshr(bits, self._same(bits, count))

    def _low_halves(self, bits: Any) -> Any:
        """Write the lower halves of whole numbers of 32 bits."""
        return self.builder.trunc(bits, self.ir.VectorType(self.ir.IntType(16), bits.type.count))

    def store(self, values: Any, pointer: Any) -> None:
        """Write the store of a vector, which need not be aligned."""
        self.builder.store(values, self.builder.bitcast(pointer, values.type.as_pointer()), align=self.itemsize)

    def at(self, pointer: Any, *offsets: Any) -> Any:
        """Return the address some elements after a pointer."""
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        return pointer

    def smaller(self, first: Any, second: Any) -> Any:
        """Write the smaller one of two numbers."""
        return self.builder.select(self.builder.icmp_signed("<", first, second), first, second)

    def larger(self, first: Any, second: Any) -> Any:
        """Write the larger one of two numbers."""
        return self.builder.select(self.builder.icmp_signed(">", first, second), first, second)

    def number(self, value: int) -> Any:
        """Return an int64 constant."""
        return self.ir.Constant(self.index, value)
