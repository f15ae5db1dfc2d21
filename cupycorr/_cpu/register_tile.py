"""One kernel for all three maps of the CPU: a tile of sums held in vector registers, compiled by LLVM for this machine.

    for each entry e of a table, each of its columns x, each r < rows, each q < width:
        total[total_r(e) + q along + x] += sum over k of left[left_r(e) + left_k + x] * right[right(e) + right_q + right_k + x]

What r, q and k stand for is the table's business (`simd`); the kernel only keeps ``rows * width`` sums of one vector of columns
in registers, so that every value loaded is used several times. Sums start from zero and are added to ``total`` once: with the
table's runs of k bounded, that is a two-level summation. No kernel is compiled before it is needed; each takes about 50 ms.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np

from .._sharing import fork_safe_lock

HEADER = 4  # fields of a table entry before its rows: right offset, first right_q, first k, number of k

# Held whenever LLVM works: it has a lock of its own, which a child that is forked meanwhile would wait for without end.
_lock = fork_safe_lock()


@dataclass(frozen=True, slots=True)
class Registers:
    """This machine's vector registers: how many, and the widths in bytes that instructions come in, widest first."""

    count: int
    widths: tuple[int, ...]


def missing() -> str | None:
    """Return why kernels cannot be compiled and run here, or None."""
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
    """The vector registers LLVM finds on this machine."""
    with _lock:
        import llvmlite.binding as llvm

        features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return Registers(32, (64, 32))
    if features.get("avx") and features.get("fma"):
        return Registers(16, (32, 16))
    return Registers(32 if features.get("neon") else 16, (16,))


def _target_machine() -> Any:
    """LLVM's target machine for this processor; each engine deletes its own, so no two may share one."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=2, jit=True
    )


def kernel(rows: int, width: int, dtype: np.dtype) -> Callable[..., None]:
    """The compiled kernel for a tile of ``rows`` x ``width`` sums of float32 or float64.

    Call it as ``kernel(left, right, total, entries, count, left_k, right_k, right_q, along, *vectors)``: addresses, then the
    number of entries, then addresses of int64 element offsets, then the distance of neighbouring q in ``total``, then how
    many vectors of each of `registers`' widths cover the columns. An entry is `HEADER` int64 values, then ``rows`` offsets
    into left, then ``rows`` into total. It runs without the interpreter's lock.
    """
    with _lock:
        return _compiled(rows, width, np.dtype(dtype).itemsize)


@cache
def _compiled(rows: int, width: int, itemsize: int) -> Callable[..., None]:
    import llvmlite.binding as llvm

    reason = missing()  # may have changed since the call was planned, and code that may not run ends the process
    if reason is not None:
        raise NotImplementedError(f"no kernel can be compiled: {reason}")
    machine = _target_machine()
    widths = registers().widths
    module = llvm.parse_assembly(str(_KernelBuilder(rows, width, itemsize, widths).module))
    module.verify()
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    # The registers are dealt out here; unrolling or vectorising again would only spill them.
    tuning.loop_unrolling = tuning.loop_vectorization = tuning.slp_vectorization = False
    passes = llvm.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    address, number = ctypes.c_void_p, ctypes.c_int64
    prototype = ctypes.CFUNCTYPE(None, *[address] * 4, number, *[address] * 3, number, *[number] * len(widths))
    compiled = prototype(engine.get_function_address("tile"))
    compiled.engine = engine  # keeps the code alive
    return compiled


class _KernelBuilder:
    """Writes one kernel in LLVM's intermediate representation, loop by loop from the outside in."""

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
        self.left, self.right, self.total, self.entries, count, self.left_k, self.right_k, self.right_q, self.along = named[:9]
        for pointer in (self.left, self.right, self.total, self.entries, self.left_k, self.right_k, self.right_q):
            pointer.add_attribute("noalias")
        self.vectors = list(zip([w // itemsize for w in widths], named[9:], strict=True))
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self._loop(count, self._entry)
        self.builder.ret_void()

    def _entry(self, e: Any, _: Sequence[Any]) -> None:
        """One entry of the table: every vector of its columns."""
        b = self.builder
        at = b.mul(e, self._number(HEADER + 2 * self.rows))
        fields = [b.load(self._moved(self.entries, b.add(at, self._number(f)))) for f in range(HEADER + 2 * self.rows)]
        right, first_q, first_k, terms = fields[:HEADER]
        lefts = [self._moved(self.left, offset) for offset in fields[HEADER : HEADER + self.rows]]
        totals = [self._moved(self.total, offset) for offset in fields[HEADER + self.rows :]]
        rights = []
        for q in range(self.width):
            offset = b.load(self._moved(self.right_q, b.add(first_q, self._number(q))))
            rights.append(self._moved(self.right, right, offset))
        steps = self._moved(self.left_k, first_k), self._moved(self.right_k, first_k)
        begin = self._number(0)
        for lanes, count in self.vectors:
            vector = self.ir.VectorType(self.element, lanes)

            def columns(index: Any, _: Sequence[Any], begin=begin, lanes=lanes, vector=vector) -> None:
                x = b.add(begin, b.mul(index, self._number(lanes)))
                sums = self._products(
                    [self._moved(p, x) for p in lefts], [self._moved(p, x) for p in rights], steps, terms, vector
                )
                self._add([self._moved(p, x) for p in totals], sums, vector)

            self._loop(count, columns)
            begin = b.add(begin, b.mul(count, self._number(lanes)))

    def _products(self, lefts: list, rights: list, steps: tuple, terms: Any, vector: Any) -> list:
        """The tile's sums over k, row by row."""
        b = self.builder

        def step(k: Any, sums: Sequence[Any]) -> list:
            left_k, right_k = (b.load(self._moved(table, k)) for table in steps)
            values = [self._load(self._moved(p, left_k), vector) for p in lefts]
            new = list(sums)
            for q, pointer in enumerate(rights):
                value = self._load(self._moved(pointer, right_k), vector)
                for r in range(self.rows):
                    at = r * self.width + q
                    # `contract` lets the processor fuse the two, and nothing else.
                    new[at] = b.fadd(sums[at], b.fmul(values[r], value, flags=("contract",)), flags=("contract",))
            return new

        zero = self.ir.Constant(vector, [0.0] * vector.count)
        return self._loop(terms, step, [zero] * (self.rows * self.width))

    def _add(self, totals: list, sums: list, vector: Any) -> None:
        """Add the tile's sums to the totals in memory."""
        b = self.builder
        for r, pointer in enumerate(totals):
            for q in range(self.width):
                target = self._moved(pointer, b.mul(self.along, self._number(q)))
                new = b.fadd(self._load(target, vector), sums[r * self.width + q])
                b.store(new, b.bitcast(target, vector.as_pointer()), align=self.itemsize)

    def _loop(self, count: Any, body: Callable[[Any, Sequence[Any]], Sequence[Any] | None], carried: Sequence[Any] = ()) -> list:
        """``for i in range(count)``, with values carried from one turn to the next; the values after the last."""
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

    def _moved(self, pointer: Any, *offsets: Any) -> Any:
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        return pointer

    def _number(self, value: int) -> Any:
        return self.ir.Constant(self.index, value)
