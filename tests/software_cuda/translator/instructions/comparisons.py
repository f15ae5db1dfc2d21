"""Rules of comparisons and selections."""

from __future__ import annotations

from ..errors import UntranslatableError
from ..scope import Scope
from ..types import TYPES, UNSIGNED, Type
from .table import Emit, Opcode, rule

_PREDICATE = TYPES["pred"]
_LOGIC = {"and": "&", "or": "|", "xor": "^"}

_INTEGERS = {
    "eq": "({a} == {b})",
    "ne": "({a} != {b})",
    **dict.fromkeys(("lt", "lo"), "({a} < {b})"),
    **dict.fromkeys(("le", "ls"), "({a} <= {b})"),
    **dict.fromkeys(("gt", "hi"), "({a} > {b})"),
    **dict.fromkeys(("ge", "hs"), "({a} >= {b})"),
}
_UNSIGNED_ORDER = ("lo", "ls", "hi", "hs")
# An ordered comparison with a NaN is false, an unordered one is true.
_FLOATS = {
    "eq": "({a} == {b})",
    "ne": "({a} < {b} || {a} > {b})",
    "lt": "({a} < {b})",
    "le": "({a} <= {b})",
    "gt": "({a} > {b})",
    "ge": "({a} >= {b})",
    "equ": "!({a} < {b} || {a} > {b})",
    "neu": "!({a} == {b})",
    "ltu": "!({a} >= {b})",
    "leu": "!({a} > {b})",
    "gtu": "!({a} <= {b})",
    "geu": "!({a} < {b})",
    "num": "({a} == {a} && {b} == {b})",
    "nan": "!({a} == {a} && {b} == {b})",
}


def _number(scope: Scope, operand: str, kind: Type, flush: bool) -> str:
    read = scope.read(operand, kind)
    if flush and kind.name != "f64":
        read = f"ftz_{kind.name}({read})"
    return f"from_{kind.name}({read})" if kind.is_half else read


def _comparison(opcode: Opcode, kind: Type):
    """Return the function that writes the condition of a comparison."""
    flush = opcode.flag("ftz")
    name = opcode.parts.pop(0)
    table = _FLOATS if kind.is_float else _INTEGERS
    if name not in table:
        raise UntranslatableError(f"the comparison of {opcode.text} is not known")
    if not kind.is_float and name in _UNSIGNED_ORDER:
        kind = UNSIGNED[kind.bits]
    formula = table[name]
    return lambda scope, a, b: formula.format(a=_number(scope, a, kind, flush), b=_number(scope, b, kind, flush))


def _combined(opcode: Opcode):
    """Return the function that joins a condition with a third operand, where the opcode says how."""
    joint = opcode.choice(*_LOGIC, default="none")
    if joint == "none":
        return lambda scope, condition, others: condition
    return lambda scope, condition, others: f"((bool){condition} {_LOGIC[joint]} (bool){scope.predicate(others[0])})"


_HALF_OF = {"f16x2": TYPES["f16"], "bf16x2": TYPES["bf16"]}


def _comparisons_of_halves(opcode: Opcode, pair: Type):
    """Return the function that writes the conditions of the low and of the high halves."""
    kind = _HALF_OF[pair.name]
    flush = opcode.flag("ftz")
    name = opcode.parts.pop(0)
    if name not in _FLOATS:
        raise UntranslatableError(f"the comparison of {opcode.text} is not known")
    formula = _FLOATS[name]

    def half(scope: Scope, operand: str, shift: int) -> str:
        read = f"(u16)({scope.read(operand, pair)} >> {shift})"
        return f"from_{kind.name}({f'ftz_{kind.name}({read})' if flush else read})"

    return lambda scope, a, b: [formula.format(a=half(scope, a, shift), b=half(scope, b, shift)) for shift in (0, 16)]


def _setp_of_halves(opcode: Opcode, kind: Type) -> Emit:
    compare, combine = _comparisons_of_halves(opcode, kind), _combined(opcode)

    def emit(scope: Scope, destination: str, a: str, b: str, *others: str) -> str:
        low, high = (combine(scope, each, others) for each in compare(scope, a, b))
        p, _, q = destination.partition("|")
        writes = f"{scope.write(p.strip(), _PREDICATE, 'low')} {scope.write(q.strip(), _PREDICATE, 'high')}"
        return f"{{ bool low = {low}, high = {high}; {writes} }}"

    return emit


@rule("setp")
def setp(opcode: Opcode) -> Emit:
    """p = the comparison of a and b, joined with c; q = the same of the opposite comparison, or of the high halves of pairs."""
    kind = opcode.type()
    if kind.name in _HALF_OF:
        return _setp_of_halves(opcode, kind)
    compare, combine = _comparison(opcode, kind), _combined(opcode)

    def emit(scope: Scope, destination: str, a: str, b: str, *others: str) -> str:
        p, _, q = destination.partition("|")
        condition = compare(scope, a, b)
        if not q:
            return scope.write(p, _PREDICATE, combine(scope, condition, others))
        both = combine(scope, "met", others), combine(scope, "!met", others)
        writes = f"{scope.write(p.strip(), _PREDICATE, 'first')} {scope.write(q.strip(), _PREDICATE, 'second')}"
        return f"{{ bool met = {condition}, first = {both[0]}, second = {both[1]}; {writes} }}"

    return emit


def _set_of_halves(opcode: Opcode, kind: Type, result: Type) -> Emit:
    compare, combine = _comparisons_of_halves(opcode, kind), _combined(opcode)
    yes = {"f16x2": "0x3c00", "bf16x2": "0x3f80"}.get(result.name, "0xffff")

    def emit(scope: Scope, d: str, a: str, b: str, *others: str) -> str:
        low, high = (f"({combine(scope, each, others)} ? {yes} : 0)" for each in compare(scope, a, b))
        return scope.write(d, result, f"pair({low}, {high})")

    return emit


@rule("set")
def set_(opcode: Opcode) -> Emit:
    """d = all bits set, or 1.0 for floats, where the comparison of a and b, joined with c, holds; else 0."""
    kind, result = opcode.type(), opcode.type("u32", "s32", "f32", "f16", "bf16", "f16x2", "bf16x2")
    if kind.name in _HALF_OF:
        return _set_of_halves(opcode, kind, result)
    compare, combine = _comparison(opcode, kind), _combined(opcode)
    yes = {"f32": "1.0f", "f16": "(u16)0x3c00", "bf16": "(u16)0x3f80"}.get(result.name, f"({result.cpp})~0u")

    def emit(scope: Scope, d: str, a: str, b: str, *others: str) -> str:
        return scope.write(d, result, f"({combine(scope, compare(scope, a, b), others)} ? {yes} : ({result.cpp})0)")

    return emit


@rule("selp")
def selp(opcode: Opcode) -> Emit:
    """d = a where p is true, else b."""
    kind = opcode.type()
    return lambda scope, d, a, b, p: scope.write(
        d, kind, f"({scope.predicate(p)} ? {scope.read(a, kind)} : {scope.read(b, kind)})"
    )


@rule("slct")
def slct(opcode: Opcode) -> Emit:
    """d = a where c >= 0, else b, also where c is NaN."""
    control, kind = opcode.type("s32", "f32"), opcode.type()
    flush = opcode.flag("ftz")
    return lambda scope, d, a, b, c: scope.write(
        d, kind, f"({_number(scope, c, control, flush)} >= 0 ? {scope.read(a, kind)} : {scope.read(b, kind)})"
    )
