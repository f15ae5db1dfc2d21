"""Rules of loads, stores, atomic operations and addresses.

Global, constant and generic addresses are addresses of this process. A shared address counts from the start of the block's shared
memory, and a local one is the address of a variable on the fibre's stack.
"""

from __future__ import annotations

from ..errors import UntranslatableError
from ..scope import Scope
from ..types import TYPES, UNSIGNED, Type
from .table import Emit, Opcode, rule

_ADDRESS = TYPES["u64"]
_SPACES = {
    "global": "global",
    "const": "global",
    "shared": "shared",
    "shared::cta": "shared",
    "local": "local",
    "param": "param",
    "param::entry": "param",
    "param::func": "param",
}
_LENGTHS = {"v2": 2, "v4": 4, "v8": 8}
# Threads run one at a time and see every store at once, so order and caches change nothing.
_ORDERS = ("weak", "volatile", "relaxed", "acquire", "release", "acq_rel", "sc", "mmio")
_SCOPES = ("cta", "cluster", "gpu", "sys", "gl")
_CACHES = (
    *("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "unified"),
    *("L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last", "L1::no_allocate"),
    *("L2::cache_hint", "L2::64B", "L2::128B", "L2::256B", "L2::evict_normal", "L2::evict_first", "L2::evict_last"),
)


def _space(opcode: Opcode) -> str:
    found = opcode.choice(*_SPACES, default="generic")
    return _SPACES.get(found, found)


def _count(opcode: Opcode) -> int:
    return _LENGTHS.get(opcode.choice(*_LENGTHS, default=""), 1)


def _from_bits(expression: str, kind: Type) -> str:
    """Return an expression of the type's C++ type from one that is an unsigned integer of its width."""
    if kind.cpp in ("float", "double"):
        return f"__builtin_bit_cast({kind.cpp}, {expression})"
    return f"({kind.cpp}){expression}" if kind.is_signed else expression


@rule("ld", "ldu")
def ld(opcode: Opcode) -> Emit:
    """d = what lies at the address; a register that is wider than the value is filled with its sign or with zeros."""
    kind = opcode.type()
    space, count = _space(opcode), _count(opcode)
    opcode.skip(*_ORDERS, *_SCOPES, *_CACHES)
    if space == "param":
        return _load_parameter(kind, count)

    def emit(scope: Scope, d: str, address: str, *_hint: str) -> str:
        if count == 1:
            return scope.write(d, kind, _from_bits(f"load_{space}_{kind.bits}(t, {scope.address(address)})", kind))
        writes = [scope.write(each, kind, f"vector[{i}]") for i, each in enumerate(scope.elements(d)) if each != "_"]
        load = f"load_{space}(t, {scope.address(address)}, vector, {count * kind.bytes});"
        return f"{{ {kind.cpp} vector[{count}]; {load} {' '.join(writes)} }}"

    return emit


def _load_parameter(kind: Type, count: int) -> Emit:
    def emit(scope: Scope, d: str, address: str) -> str:
        start = scope.parameter(address)
        return " ".join(
            scope.write(each, kind, f"*(const {kind.cpp}*)({start} + {i * kind.bytes})")
            for i, each in enumerate(scope.elements(d))
            if each != "_"
        )

    return emit


@rule("st")
def st(opcode: Opcode) -> Emit:
    """Store a, or the elements of a vector, at the address."""
    kind = opcode.type()
    space, count = _space(opcode), _count(opcode)
    opcode.skip(*_ORDERS, *_SCOPES, *_CACHES)
    unsigned = UNSIGNED.get(kind.bits, kind)

    def emit(scope: Scope, address: str, a: str, *_hint: str) -> str:
        values = scope.elements(a)
        if space == "param":
            start = scope.parameter(address)
            return " ".join(
                f"*({unsigned.cpp}*)({start} + {i * kind.bytes}) = {scope.read(each, unsigned)};" for i, each in enumerate(values)
            )
        if count == 1:
            return f"store_{space}_{kind.bits}(t, {scope.address(address)}, {scope.read(values[0], unsigned)});"
        vector = ", ".join(scope.read(each, kind) for each in values)
        return (
            f"{{ {kind.cpp} vector[] = {{{vector}}}; store_{space}(t, {scope.address(address)}, vector, {count * kind.bytes}); }}"
        )

    return emit


# Atomic operations ------------------------------------------------------------------------------------------------------------

_UPDATES = {
    "and": "old & value",
    "or": "old | value",
    "xor": "old ^ value",
    "exch": "value",
    "inc": "old >= value ? 0 : old + 1",
    "dec": "old == 0 || old > value ? value : old - 1",
}
_PAIRS = {"f16x2": "f16", "bf16x2": "bf16"}


def _updated(kind: Type, operation: str, flush: bool) -> str:
    """Return the value that an atomic operation stores, from the integers `old` and `value` of the type's width."""
    if operation in _UPDATES:
        return _UPDATES[operation]
    if kind.name in _PAIRS:
        half = f"{operation}_{_PAIRS[kind.name]}"
        return f"pair({half}((u16)old, (u16)value), {half}((u16)(old >> 16), (u16)(value >> 16)))"
    old, value = _from_bits("old", kind), _from_bits("value", kind)
    if kind.is_half:
        return f"{operation}_{kind.name}(old, value)"
    if operation == "add":
        if not kind.is_float:
            return "old + value"
        total = f"add_ftz({old}, {value})" if flush else f"({old} + {value})"
        return f"__builtin_bit_cast(u{kind.bits}, {total})"
    sign = "<" if operation == "min" else ">"
    return f"{old} {sign} {value} ? old : value"


def _atomic(opcode: Opcode):
    """Return the function that writes `old = ..., store ...` of an atomic operation, and its type."""
    kind = opcode.type()
    opcode.skip(*_ORDERS, *_CACHES)
    operation = opcode.choice("add", "min", "max", "exch", "cas", *_UPDATES)
    if operation in ("min", "max") and kind.is_float and not kind.is_half:
        raise UntranslatableError(f"{opcode.text} is not known")
    space = _space(opcode)
    opcode.skip(*_SCOPES)
    # Without .noftz, a sum of f32 in global memory counts denormal numbers as zero.
    flush = not opcode.flag("noftz") and kind.name == "f32" and space != "shared"
    unsigned = UNSIGNED.get(kind.bits, kind)

    def emit(scope: Scope, address: str, values: tuple[str, ...], after: str) -> str:
        read = [scope.read(each, unsigned) for each in values]
        declared = f"u64 address = {scope.address(address)}; {unsigned.cpp} old = update_{space}_{kind.bits}(t, address)"
        if operation == "cas":
            new = f"old == {read[0]} ? {read[1]} : old"
        else:
            declared += f", value = {read[0]}"
            new = _updated(kind, operation, flush)
        return f"{{ {declared}; store_{space}_{kind.bits}(t, address, ({unsigned.cpp})({new})); {after} }}"

    return emit, unsigned


@rule("atom")
def atom(opcode: Opcode) -> Emit:
    """d = what lies at the address, and in the same step store the result of an operation with it there."""
    emit, kind = _atomic(opcode)
    return lambda scope, d, address, *values: emit(scope, address, values, scope.write(d, kind, "old"))


@rule("red")
def red(opcode: Opcode) -> Emit:
    """Store at the address the result of an operation with what lies there."""
    if "async" in opcode.parts:
        raise UntranslatableError(f"{opcode.text} is not known")
    emit, _ = _atomic(opcode)
    return lambda scope, address, *values: emit(scope, address, values, "")


# Asynchronous copies ----------------------------------------------------------------------------------------------------------


@rule("cp")
def cp(opcode: Opcode) -> Emit:
    """Copy to shared memory at any time before the wait; bytes beyond the source's size become zeros."""
    if not opcode.flag("async"):
        raise UntranslatableError(f"{opcode.text} is not known")
    if opcode.flag("commit_group"):
        return lambda scope: "commit_copies(t);"
    if opcode.flag("wait_group"):
        return lambda scope, pending: f"wait_for_copies(t, {scope.read(pending, TYPES['u32'])});"
    if opcode.flag("wait_all"):
        return lambda scope: "commit_copies(t); wait_for_copies(t, 0);"
    opcode.choice("ca", "cg")
    if [_space(opcode), _space(opcode)] != ["shared", "global"]:
        raise UntranslatableError(f"{opcode.text} is not known")
    hint = "L2::cache_hint" in opcode.parts
    opcode.skip(*_CACHES)

    def emit(scope: Scope, to: str, source: str, size: str, *others: str) -> str:
        taken = others[: len(others) - hint]
        count = scope.read(taken[0], TYPES["u32"]) if taken else f"{int(size)}u"
        return f"start_copy(t, {scope.address(to)}, {scope.address(source)}, {int(size)}u, {count});"

    return emit


# Addresses --------------------------------------------------------------------------------------------------------------------


@rule("cvta")
def cvta(opcode: Opcode) -> Emit:
    """d = the generic address of an address in a space, or with .to the opposite."""
    kind = opcode.type("u64", "u32")
    to = opcode.flag("to")
    space = _space(opcode)
    if space != "shared":
        return lambda scope, d, a: scope.write(d, kind, scope.read(a, kind))
    sign = "-" if to else "+"
    return lambda scope, d, a: scope.write(d, kind, f"({kind.cpp})({scope.read(a, _ADDRESS)} {sign} shared_window(t))")


@rule("isspacep")
def isspacep(opcode: Opcode) -> Emit:
    """p = whether a generic address is in the space."""
    space = opcode.choice("global", "const", "shared", "shared::cta", "local", "param")
    space = _SPACES[space] if space != "const" else "const"
    if space in ("const", "param"):
        return lambda scope, p, a: scope.write(p, TYPES["pred"], "false")
    return lambda scope, p, a: scope.write(p, TYPES["pred"], f"is_{space}(t, {scope.read(a, _ADDRESS)})")


@rule("prefetch", "prefetchu", "applypriority", "membar", "fence")
def nothing(opcode: Opcode) -> Emit:
    """Hints and orders of memory change nothing where threads run one at a time."""
    opcode.parts.clear()
    return lambda scope, *operands: ""
