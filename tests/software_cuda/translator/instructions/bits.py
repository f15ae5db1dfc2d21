"""Rules of logic, shifts, and fields of bits."""

from __future__ import annotations

from ..errors import UntranslatableError
from ..scope import Scope
from ..types import SIGNED, TYPES, UNSIGNED
from .table import Emit, Opcode, rule

_WORD = TYPES["u32"]
_SYMBOLS = {"and": "&", "or": "|", "xor": "^"}


@rule("and", "or", "xor")
def logic(opcode: Opcode) -> Emit:
    """d = a and, or, xor b, bit by bit."""
    kind, symbol = opcode.type("pred", "b16", "b32", "b64"), _SYMBOLS[opcode.root]
    return lambda scope, d, a, b: scope.write(d, kind, f"({kind.cpp})({scope.read(a, kind)} {symbol} {scope.read(b, kind)})")


@rule("not")
def inverse(opcode: Opcode) -> Emit:
    """d = a with every bit inverted."""
    kind = opcode.type("pred", "b16", "b32", "b64")
    sign = "!" if kind.name == "pred" else "~"
    return lambda scope, d, a: scope.write(d, kind, f"({kind.cpp}){sign}{scope.read(a, kind)}")


@rule("cnot")
def cnot(opcode: Opcode) -> Emit:
    """d = whether a is zero."""
    kind = opcode.type("b16", "b32", "b64")
    return lambda scope, d, a: scope.write(d, kind, f"({kind.cpp})!{scope.read(a, kind)}")


@rule("shl", "shr")
def shifts(opcode: Opcode) -> Emit:
    """d = a shifted by b bits; b beyond the width counts as the width, and a signed shift to the right fills with the sign."""
    kind = opcode.type("b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64")
    symbol = "<<" if opcode.root == "shl" else ">>"
    value = kind if opcode.root == "shr" and kind.is_signed else UNSIGNED[kind.bits]

    def emit(scope: Scope, d: str, a: str, b: str) -> str:
        shifted = scope.read(a, value)
        if b.isdigit() and int(b) < kind.bits:
            return scope.write(d, value, f"({value.cpp})({shifted} {symbol} {b})")
        amount = scope.read(b, _WORD)
        beyond = f"({value.cpp})({shifted} >> {kind.bits - 1})" if value.is_signed else f"({value.cpp})0"
        return scope.write(d, value, f"({amount} < {kind.bits} ? ({value.cpp})({shifted} {symbol} {amount}) : {beyond})")

    return emit


@rule("shf")
def funnel_shift(opcode: Opcode) -> Emit:
    """d = the high half of b:a shifted left, or its low half shifted right; the amount is clamped to 32 or wraps around."""
    opcode.type("b32")
    direction, mode = opcode.choice("l", "r"), opcode.choice("wrap", "clamp")

    def emit(scope: Scope, d: str, a: str, b: str, c: str) -> str:
        low, high, amount = (scope.read(each, _WORD) for each in (a, b, c))
        return scope.write(d, _WORD, f"shift_{'left' if direction == 'l' else 'right'}_{mode}({low}, {high}, {amount})")

    return emit


@rule("lop3")
def lop3(opcode: Opcode) -> Emit:
    """d = the function of three bits that the table of eight bits gives, for each bit of a, b and c."""
    opcode.type("b32")
    return lambda scope, d, *abct: scope.write(d, _WORD, f"lop3({', '.join(scope.read(each, _WORD) for each in abct)})")


@rule("prmt")
def prmt(opcode: Opcode) -> Emit:
    """d = four bytes chosen from the eight of b:a by the digits of c, or by one of the modes."""
    mode = opcode.choice("f4e", "b4e", "rc8", "ecl", "ecr", "rc16", default="default")
    opcode.type("b32")
    return lambda scope, d, *abc: scope.write(d, _WORD, f"prmt_{mode}({', '.join(scope.read(each, _WORD) for each in abc)})")


@rule("bfe")
def bfe(opcode: Opcode) -> Emit:
    """d = the c bits of a from bit b on; a signed field is filled with its highest bit."""
    kind = opcode.type("u32", "s32", "u64", "s64")
    return lambda scope, d, a, b, c: scope.write(
        d, kind, f"bfe_{kind.cpp}({scope.read(a, kind)}, {scope.read(b, _WORD)}, {scope.read(c, _WORD)})"
    )


@rule("bfi")
def bfi(opcode: Opcode) -> Emit:
    """f = b with the d bits from bit c on replaced by the lowest of a."""
    kind = opcode.type("b32", "b64")
    return lambda scope, f, a, b, c, d: scope.write(
        f, kind, f"bfi_{kind.cpp}({scope.read(a, kind)}, {scope.read(b, kind)}, {scope.read(c, _WORD)}, {scope.read(d, _WORD)})"
    )


@rule("bfind")
def bfind(opcode: Opcode) -> Emit:
    """d = the position of the highest bit that is not the sign, or the shift that brings it to the top; ~0 without one."""
    kind = opcode.type("u32", "s32", "u64", "s64")
    shift = "true" if opcode.flag("shiftamt") else "false"
    return lambda scope, d, a: scope.write(d, _WORD, f"bfind_{kind.cpp}({scope.read(a, kind)}, {shift})")


@rule("brev")
def brev(opcode: Opcode) -> Emit:
    """d = a with its bits in the opposite order."""
    kind = opcode.type("b32", "b64")
    return lambda scope, d, a: scope.write(d, kind, f"brev_{kind.cpp}({scope.read(a, kind)})")


@rule("popc", "clz")
def counts_of_bits(opcode: Opcode) -> Emit:
    """d = the number of bits of a that are set, or of zeros above the highest one."""
    kind = opcode.type("b32", "b64")
    return lambda scope, d, a: scope.write(d, _WORD, f"{opcode.root}_{kind.cpp}({scope.read(a, kind)})")


@rule("bmsk")
def bmsk(opcode: Opcode) -> Emit:
    """d = b bits set from bit a on; positions and widths are clamped to 32 or wrap around."""
    opcode.type("b32")
    mode = opcode.choice("clamp", "wrap")
    return lambda scope, d, a, b: scope.write(d, _WORD, f"bmsk_{mode}({scope.read(a, _WORD)}, {scope.read(b, _WORD)})")


@rule("szext")
def szext(opcode: Opcode) -> Emit:
    """d = the lowest b bits of a, filled with zeros or with their sign."""
    kind = opcode.type("u32", "s32")
    if opcode.choice("clamp", "wrap") == "wrap":
        return lambda scope, d, a, b: scope.write(
            d, kind, f"bfe_{kind.cpp}({scope.read(a, kind)}, 0, {scope.read(b, _WORD)} & 31)"
        )
    return lambda scope, d, a, b: scope.write(d, kind, f"szext_clamp_{kind.cpp}({scope.read(a, kind)}, {scope.read(b, _WORD)})")


@rule("mov")
def mov(opcode: Opcode) -> Emit:
    """d = a; a vector in braces is packed into or unpacked from a register, the first element lowest."""
    kind = opcode.type()

    def emit(scope: Scope, d: str, a: str) -> str:
        if d.startswith("{"):
            return _unpack(scope, kind.bits, scope.elements(d), a)
        if a.startswith("{"):
            return _pack(scope, kind.bits, d, scope.elements(a))
        return scope.write(d, kind, scope.read(a, kind))

    return emit


def _unpack(scope: Scope, bits: int, destinations: list[str], source: str) -> str:
    whole, part = TYPES[f"b{bits}"], _part(bits, len(destinations))
    writes = [
        scope.write(each, part, f"({part.cpp})(whole >> {part.bits * i})") for i, each in enumerate(destinations) if each != "_"
    ]
    return f"{{ {whole.cpp} whole = {scope.read(source, whole)}; {' '.join(writes)} }}"


def _pack(scope: Scope, bits: int, destination: str, sources: list[str]) -> str:
    whole, part = TYPES[f"b{bits}"], _part(bits, len(sources))
    parts = [f"({whole.cpp}){scope.read(each, part)} << {part.bits * i}" for i, each in enumerate(sources)]
    return scope.write(destination, whole, f"({whole.cpp})({' | '.join(parts)})")


def _part(bits: int, count: int):
    if bits % count or bits // count not in SIGNED:
        raise UntranslatableError(f"{bits} bits are not {count} registers")
    return TYPES[f"b{bits // count}"]
