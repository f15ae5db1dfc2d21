"""One kernel for sums of products: a tile of sums held in vector registers, compiled by LLVM for this machine.

    for each entry e of a table, each column x, each r < rows, each q < width:
        total[total_r(e) + q total_q + x] += sum over k of left[left_r(e) + left_k + x] * right[right(e) + right_q + right_k + x]

The caller's table gives r, q and k their meaning. This module knows neither operators nor arrays, only addresses and offsets in
elements. The kernel keeps ``rows * width`` sums of one vector of columns in registers, so that every loaded value is used several
times. Sums start from zero and are added to ``total`` once: where the table bounds the number of k, that is a two-level
summation. A kernel is compiled when it is first needed, which takes about 50 ms.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from .._sharing import fork_safe_lock

HEADER = 4  # fields of a table entry before those of its rows: offset into right, first q, first k, number of k
VECTOR_BYTES = 64  # the widest vector register of any processor

# Held during every call of LLVM, whose own lock would never be released in a child that is forked meanwhile.
_lock = fork_safe_lock()


@dataclass(frozen=True, slots=True)
class Registers:
    """The vector registers of this machine: their number, and the widths in bytes that instructions support, widest first."""

    count: int
    widths: tuple[int, ...]


def why_not() -> str | None:
    """Return the reason why kernels cannot be compiled and run on this system, or None."""
    with _lock:
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
    with _lock:
        import llvmlite.binding as llvm

        features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return Registers(32, (VECTOR_BYTES, 32))
    if features.get("avx") and features.get("fma"):
        return Registers(16, (32, 16))
    return Registers(32 if features.get("neon") else 16, (16,))


def _target_machine() -> Any:
    """Return a new LLVM target machine for this processor; an engine deletes its own, so that engines cannot share one."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=2, jit=True
    )


def kernel(rows: int, width: int, dtype: np.dtype) -> Callable[..., None]:
    """Return the compiled kernel for a tile of ``rows`` x ``width`` sums of float32 or float64.

    Call it as ``kernel(left, right, total, entries, count, left_k, right_k, right_q, total_q, *vectors)``: four addresses, the
    number of entries, the addresses of three lists of int64 element offsets, the distance of neighbouring q in ``total``, and the
    number of vectors of each of the widths of `registers` that cover the columns. An entry is `HEADER` int64 values, then
    ``rows`` offsets into left, then ``rows`` offsets into total. The kernel runs without the interpreter's lock.
    """
    with _lock:
        return _compiled(rows, width, np.dtype(dtype).itemsize)


@cache
def _compiled(rows: int, width: int, itemsize: int) -> Callable[..., None]:
    import llvmlite.binding as llvm

    reason = why_not()  # checked again: running code in memory that is not executable would end the process
    if reason is not None:
        raise NotImplementedError(f"no kernel can be compiled: {reason}")
    machine = _target_machine()
    widths = registers().widths
    module = llvm.parse_assembly(str(_KernelBuilder(rows, width, itemsize, widths).module))
    module.verify()
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    # The kernel uses all registers already; unrolling or vectorising it again would spill them.
    tuning.loop_unrolling = tuning.loop_vectorization = tuning.slp_vectorization = False
    passes = llvm.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    address, number = ctypes.c_void_p, ctypes.c_int64
    prototype = ctypes.CFUNCTYPE(None, *[address] * 4, number, *[address] * 3, number, *[number] * len(widths))
    compiled = prototype(engine.get_function_address("tile"))
    compiled.engine = engine  # type: ignore[attr-defined]  # the code lives as long as its engine
    return compiled


class _KernelBuilder:
    """A writer of one kernel in LLVM's intermediate representation, from the outermost loop to the innermost."""

    def __init__(self, rows: int, width: int, itemsize: int, widths: Sequence[int]) -> None:
        from llvmlite import ir

        self.ir, self.rows, self.width, self.itemsize = ir, rows, width, itemsize
        self.module = ir.Module("cupycorr")
        self.index = ir.IntType(64)
        self.element = {4: ir.FloatType(), 8: ir.DoubleType()}[itemsize]
        values, offsets = self.element.as_pointer(), self.index.as_pointer()
        arguments = [values, values, values, offsets, self.index, offsets, offsets, offsets, self.index]
        signature = ir.FunctionType(ir.VoidType(), arguments + [self.index] * len(widths))
        self.function = ir.Function(self.module, signature, "tile")
        named = self.function.args
        self.left, self.right, self.total, self.entries, count, self.left_k, self.right_k, self.right_q, self.total_q = named[:9]
        for pointer in (self.left, self.right, self.total, self.entries, self.left_k, self.right_k, self.right_q):
            pointer.add_attribute("noalias")
        self.vectors = list(zip([w // itemsize for w in widths], named[9:], strict=True))
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self._loop(count, self._entry)
        self.builder.ret_void()

    def _entry(self, e: Any, _: Sequence[Any]) -> None:
        """Write the code for one entry of the table: the loops over its vectors of columns."""
        b = self.builder
        at = b.mul(e, self._number(HEADER + 2 * self.rows))
        fields = [b.load(self._at(self.entries, b.add(at, self._number(f)))) for f in range(HEADER + 2 * self.rows)]
        right, first_q, first_k, terms = fields[:HEADER]
        lefts = [self._at(self.left, offset) for offset in fields[HEADER : HEADER + self.rows]]
        totals = [self._at(self.total, offset) for offset in fields[HEADER + self.rows :]]
        rights = []
        for q in range(self.width):
            offset = b.load(self._at(self.right_q, b.add(first_q, self._number(q))))
            rights.append(self._at(self.right, right, offset))
        steps = self._at(self.left_k, first_k), self._at(self.right_k, first_k)
        begin = self._number(0)
        for lanes, count in self.vectors:
            vector = self.ir.VectorType(self.element, lanes)

            def columns(index: Any, _: Sequence[Any], begin: Any = begin, lanes: int = lanes, vector: Any = vector) -> None:
                x = b.add(begin, b.mul(index, self._number(lanes)))
                sums = self._products([self._at(p, x) for p in lefts], [self._at(p, x) for p in rights], steps, terms, vector)
                self._add([self._at(p, x) for p in totals], sums, vector)

            self._loop(count, columns)
            begin = b.add(begin, b.mul(count, self._number(lanes)))

    def _products(self, lefts: list, rights: list, steps: tuple, terms: Any, vector: Any) -> list:
        """Write the loop over k and return the sums of the tile, row by row."""
        b = self.builder

        def step(k: Any, sums: Sequence[Any]) -> list:
            left_k, right_k = (b.load(self._at(table, k)) for table in steps)
            values = [self._load(self._at(p, left_k), vector) for p in lefts]
            new = list(sums)
            for q, pointer in enumerate(rights):
                value = self._load(self._at(pointer, right_k), vector)
                for r in range(self.rows):
                    at = r * self.width + q
                    # `contract` allows a fused multiply-add and no other change.
                    new[at] = b.fadd(sums[at], b.fmul(values[r], value, flags=("contract",)), flags=("contract",))
            return new

        zero = self.ir.Constant(vector, [0.0] * vector.count)
        return self._loop(terms, step, [zero] * (self.rows * self.width))

    def _add(self, totals: list, sums: list, vector: Any) -> None:
        """Write the additions of the sums of the tile to the totals in memory."""
        b = self.builder
        for r, pointer in enumerate(totals):
            for q in range(self.width):
                target = self._at(pointer, b.mul(self.total_q, self._number(q)))
                new = b.fadd(self._load(target, vector), sums[r * self.width + q])
                b.store(new, b.bitcast(target, vector.as_pointer()), align=self.itemsize)

    def _loop(self, count: Any, body: Callable[[Any, Sequence[Any]], Sequence[Any] | None], carried: Sequence[Any] = ()) -> list:
        """Write ``for i in range(count)``, which carries values from one iteration to the next; return the final values."""
        b = self.builder
        before = b.block
        head, inside, after = (self.function.append_basic_block(name) for name in ("head", "inside", "after"))
        b.branch(head)
        b.position_at_end(head)
        i = b.phi(self.index)
        i.add_incoming(self._number(0), before)
        values = [b.phi(value.type) for value in carried]
        for phi, value in zip(values, carried, strict=True):
            phi.add_incoming(value, before)
        b.cbranch(b.icmp_signed("<", i, count), inside, after)
        b.position_at_end(inside)
        new = body(i, values) or ()
        i.add_incoming(b.add(i, self._number(1)), b.block)
        for phi, value in zip(values, new, strict=True):
            phi.add_incoming(value, b.block)
        b.branch(head)
        b.position_at_end(after)
        return values

    def _load(self, pointer: Any, vector: Any) -> Any:
        return self.builder.load(self.builder.bitcast(pointer, vector.as_pointer()), align=self.itemsize)

    def _at(self, pointer: Any, *offsets: Any) -> Any:
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        return pointer

    def _number(self, value: int) -> Any:
        return self.ir.Constant(self.index, value)
