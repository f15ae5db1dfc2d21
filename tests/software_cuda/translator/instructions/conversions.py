"""Rules of cvt: integers wrap around or are clamped, floats are rounded as the opcode says."""

from __future__ import annotations

from ..errors import UntranslatableError
from ..scope import Scope
from ..types import TYPES, Type
from .table import Emit, Opcode, rule

_TO_INTEGER = {"rni": "rn", "rzi": "rz", "rmi": "rm", "rpi": "rp"}
_PAIRS = {"f16x2": TYPES["f16"], "bf16x2": TYPES["bf16"]}
_SINGLE = TYPES["f32"]


@rule("cvt")
def cvt(opcode: Opcode) -> Emit:
    """d = a as another type."""
    source = opcode.type()
    if opcode.parts and opcode.parts[-1] in _PAIRS:
        return _pair(opcode, source)
    target = opcode.type()
    if target.name == "tf32":
        return _tf32(opcode, source)
    convert = _conversion(opcode, target, source)
    return lambda scope, d, a: scope.write(d, target, convert(scope.read(a, source)))


def _conversion(opcode: Opcode, target: Type, source: Type):
    """Return the function from an expression of the source's type to one of the target's."""
    if not target.is_float and not source.is_float:
        return _between_integers(opcode, target, source)
    rounding = opcode.choice(*_TO_INTEGER, "rn", "rz", "rm", "rp", default="")
    flush = opcode.flag("ftz")
    saturate, relu = opcode.flag("sat"), opcode.flag("relu")

    def flushed(expression: str, kind: Type) -> str:
        return f"ftz_f32({expression})" if flush and kind is _SINGLE else expression

    if not target.is_float:
        return lambda a: _to_integer(flushed(a, source), rounding, target, source)

    def convert(a: str) -> str:
        result = flushed(_to_float(flushed(a, source), rounding, target, source), target)
        result = f"saturate_{target.name}({result})" if saturate else result
        return f"relu_{target.name}({result})" if relu else result

    return convert


def _between_integers(opcode: Opcode, target: Type, source: Type):
    if not opcode.flag("sat"):
        return lambda a: f"({target.cpp}){a}"
    lowest = -(1 << target.bits - 1) if target.is_signed else 0
    highest = (1 << target.bits - target.is_signed) - 1
    if source.is_signed:
        highest = min(highest, 2**63 - 1)
        low = "(-9223372036854775807ll - 1)" if lowest == -(2**63) else f"{lowest}ll"
        return lambda a: f"({target.cpp})clamp_signed({a}, {low}, {highest}ll)"
    return lambda a: f"({target.cpp})clamp_unsigned({a}, {highest}ull)"


def _as_double(expression: str, kind: Type) -> str:
    return f"from_{kind.name}({expression})" if kind.is_half else expression


def _to_integer(a: str, rounding: str, target: Type, source: Type) -> str:
    """Round to an integer; a NaN becomes 0, or the middle value 1 << (width - 1) where 64 bits are on either side."""
    if rounding not in _TO_INTEGER:
        raise UntranslatableError("a conversion to an integer needs one of .rni, .rzi, .rmi, .rpi")
    nan = "true" if source.name == "f64" or target.bits == 64 else "false"
    function = "to_signed" if target.is_signed else "to_unsigned"
    return f"({target.cpp}){function}({_as_double(a, source)}, Rounding::{_TO_INTEGER[rounding]}, {target.bits}, {nan})"


def _to_float(a: str, rounding: str, target: Type, source: Type) -> str:
    mode = f"Rounding::{_TO_INTEGER.get(rounding, rounding) or 'rn'}"
    if not source.is_float:
        sign = "signed" if source.is_signed else "unsigned"
        return f"{target.name}_from_{sign}({a}, {mode})"
    if rounding in _TO_INTEGER:
        if target is not source:
            raise UntranslatableError("rounding to a whole number keeps the type")
        return f"whole_{target.name}({a}, {mode})"
    if target is source:
        return a
    if target.name == "f64" or (target is _SINGLE and source.is_half):
        return f"({target.cpp}){_as_double(a, source)}"
    if source is _SINGLE and mode == "Rounding::rn":
        return f"to_{target.name}({a})"
    return f"{target.name}_from_f64({_as_double(a, source)}, {mode})"


def _pair(opcode: Opcode, source: Type) -> Emit:
    """Convert two floats to the halves of d, the first one to the high half."""
    name = opcode.parts.pop()
    if source is not _SINGLE:
        raise UntranslatableError(f"{opcode.text} is not known")
    convert = _conversion(opcode, _PAIRS[name], source)

    def emit(scope: Scope, d: str, high: str, low: str) -> str:
        halves = f"pair({convert(scope.read(low, source))}, {convert(scope.read(high, source))})"
        return scope.write(d, TYPES[name], halves)

    return emit


def _tf32(opcode: Opcode, source: Type) -> Emit:
    if source is not _SINGLE:
        raise UntranslatableError(f"{opcode.text} is not known")
    rounding = opcode.choice("rna", "rn", "rz")
    relu = opcode.flag("relu")

    def emit(scope: Scope, d: str, a: str) -> str:
        value = f"relu_f32({scope.read(a, source)})" if relu else scope.read(a, source)
        return scope.write(d, TYPES["b32"], f"tf32_from_f32({value}, Rounding::{rounding})")

    return emit
