"""Rules of sums, products, quotients and functions of numbers.

Integers wrap around, so they are added and multiplied as unsigned ones. A product and a sum of floats are fused only by fma.
"""

from __future__ import annotations

from ..errors import UntranslatableError
from ..scope import Scope
from ..types import SIGNED, TYPES, UNSIGNED, Type
from .table import Emit, Opcode, rule

_ROUNDINGS = ("rn", "rz", "rm", "rp")
_HALF_OF = {"f16x2": TYPES["f16"], "bf16x2": TYPES["bf16"]}
# Values that an approximation returns are correctly rounded here, or nearly.
_ONE = {"float": "1.0f", "double": "1.0"}


# Floating-point numbers -------------------------------------------------------------------------------------------------------


class _Floats:
    """Floating-point arithmetic as the parts of an opcode prescribe it: flushed operands and results, a rounding, a range."""

    def __init__(self, opcode: Opcode, kind: Type):
        self.kind = kind
        self.element = _HALF_OF.get(kind.name, kind)
        self.rounding = opcode.choice(*_ROUNDINGS, default="rn")
        self.flush = opcode.flag("ftz")
        self.saturate = opcode.flag("sat")
        self.relu = opcode.flag("relu")
        if self.relu and not self.element.is_half:
            raise UntranslatableError(f".relu of {opcode.text} is for half precision only")
        if self.element.is_half and self.rounding != "rn":
            raise UntranslatableError(f"half precision is rounded to nearest, got {opcode.text}")

    def emit(self, formula) -> Emit:
        """Return the function that writes `d = formula(a, b, ...)`, for each half where there are two."""

        def emit(scope: Scope, destination: str, *operands: str) -> str:
            read = [scope.read(each, self.kind) for each in operands]
            if self.element is self.kind:
                return scope.write(destination, self.kind, self._finished(formula, read))
            low = self._finished(formula, [f"(u16){each}" for each in read])
            high = self._finished(formula, [f"(u16)({each} >> 16)" for each in read])
            return scope.write(destination, self.kind, f"pair({low}, {high})")

        return emit

    def _finished(self, formula, read: list[str]) -> str:
        name = self.element.name
        flush = self.flush and name != "f64"
        result = formula(*(f"ftz_{name}({each})" if flush else each for each in read))
        if flush:
            result = f"ftz_{name}({result})"
        if self.saturate:
            result = f"saturate_{name}({result})"
        return f"relu_{name}({result})" if self.relu else result


_FLOATS = ("f16", "bf16", "f32", "f64", "f16x2", "bf16x2")


def _sum_or_product(opcode: Opcode, kind: Type, symbol: str) -> Emit:
    floats = _Floats(opcode, kind)
    name = floats.element.name
    if name == "f32" and floats.rounding == "rn" and floats.flush:
        floats.flush = False  # the function does it
        return floats.emit(lambda a, b: f"{opcode.root}_ftz({a}, {b})")
    if floats.element.is_half:
        return floats.emit(lambda a, b: f"{opcode.root}_{name}({a}, {b})")
    if floats.rounding == "rn":
        return floats.emit(lambda a, b: f"({a} {symbol} {b})")
    return floats.emit(lambda a, b: f"{opcode.root}_{name}({a}, {b}, Rounding::{floats.rounding})")


@rule("fma")
def fma(opcode: Opcode) -> Emit:
    """d = a * b + c, rounded once."""
    return _fused(opcode, opcode.type(*_FLOATS))


def _fused(opcode: Opcode, kind: Type) -> Emit:
    floats = _Floats(opcode, kind)
    name = floats.element.name
    if name == "f32" and floats.rounding == "rn" and floats.flush:
        floats.flush = False
        return floats.emit(lambda a, b, c: f"fma_ftz({a}, {b}, {c})")
    if floats.rounding == "rn":
        return floats.emit(lambda a, b, c: f"fma_{name}({a}, {b}, {c})")
    return floats.emit(lambda a, b, c: f"fma_{name}({a}, {b}, {c}, Rounding::{floats.rounding})")


@rule("sqrt", "rcp", "div")
def quotients_and_roots(opcode: Opcode) -> Emit:
    """d = sqrt(a), 1 / a, or a / b; an integer quotient is rounded towards zero."""
    kind = opcode.type()
    if not kind.is_float:
        return _integer_quotient(opcode, kind)
    opcode.skip("approx", "full")
    floats = _Floats(opcode, kind)
    name, rounding = kind.name, f"Rounding::{floats.rounding}"
    if opcode.root == "sqrt":
        return floats.emit(lambda a: f"sqrt_{name}({a}, {rounding})")
    if opcode.root == "rcp":
        return floats.emit(lambda a: f"div_{name}({_ONE[kind.cpp]}, {a}, {rounding})")
    return floats.emit(lambda a, b: f"div_{name}({a}, {b}, {rounding})")


@rule("rsqrt", "ex2", "lg2", "sin", "cos", "tanh")
def approximations(opcode: Opcode) -> Emit:
    """d = an approximation of the function of a."""
    kind = opcode.type(*_FLOATS)
    opcode.skip("approx")
    floats = _Floats(opcode, kind)
    element = floats.element
    if element.is_half:
        return floats.emit(lambda a: f"to_{element.name}({opcode.root}_f32(from_{element.name}({a})))")
    return floats.emit(lambda a: f"{opcode.root}_{element.name}({a})")


@rule("copysign")
def copysign(opcode: Opcode) -> Emit:
    """d = b with the sign of a."""
    kind = opcode.type("f32", "f64")
    return _Floats(opcode, kind).emit(lambda a, b: f"copysign_{kind.name}({b}, {a})")


@rule("testp")
def testp(opcode: Opcode) -> Emit:
    """p = whether a is of the class."""
    kind = opcode.type("f32", "f64")
    test = opcode.choice("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    return lambda scope, p, a: scope.write(p, TYPES["pred"], f"is_{test}({scope.read(a, kind)})")


# Integers and both ------------------------------------------------------------------------------------------------------------


@rule("add", "sub")
def add_and_sub(opcode: Opcode) -> Emit:
    """d = a + b or a - b; .cc keeps the carry or borrow, and .sat clamps a signed result."""
    kind = opcode.type()
    symbol = "+" if opcode.root == "add" else "-"
    if kind.name in _FLOATS:
        return _sum_or_product(opcode, kind, symbol)
    if opcode.flag("cc"):
        return _with_carry(kind, symbol, takes=False, keeps=True)
    if opcode.flag("sat"):
        if kind.name != "s32":
            raise UntranslatableError(f"only .s32 saturates, got {opcode.text}")
        return lambda scope, d, a, b: scope.write(
            d, kind, f"clamp_signed((s64){scope.read(a, kind)} {symbol} {scope.read(b, kind)}, -2147483648ll, 2147483647ll)"
        )
    unsigned = UNSIGNED[kind.bits]
    return lambda scope, d, a, b: scope.write(
        d, unsigned, f"({unsigned.cpp})({scope.read(a, unsigned)} {symbol} {scope.read(b, unsigned)})"
    )


@rule("addc", "subc")
def addc_and_subc(opcode: Opcode) -> Emit:
    """d = a + b + carry, or a - b - borrow."""
    kind = opcode.type("u32", "s32", "u64", "s64")
    return _with_carry(kind, "+" if opcode.root == "addc" else "-", takes=True, keeps=opcode.flag("cc"))


def _with_carry(kind: Type, symbol: str, takes: bool, keeps: bool) -> Emit:
    unsigned = UNSIGNED[kind.bits]

    def emit(scope: Scope, d: str, a: str, b: str) -> str:
        left, right = scope.read(a, unsigned), scope.read(b, unsigned)
        return _carried(scope, d, unsigned, f"(u128){left} {symbol} {right}", symbol, takes, keeps)

    return emit


def _carried(scope: Scope, destination: str, kind: Type, wide: str, symbol: str, takes: bool, keeps: bool) -> str:
    carry = f" {symbol} carry" if takes else ""
    keep = f" carry = wide >> {kind.bits} & 1;" if keeps else ""
    return f"{{ u128 wide = {wide}{carry}; {scope.write(destination, kind, f'({kind.cpp})wide')}{keep} }}"


@rule("mul")
def mul(opcode: Opcode) -> Emit:
    """d = a * b; of integers the low half, the high half, or all of the product."""
    kind = opcode.type()
    if kind.name in _FLOATS:
        return _sum_or_product(opcode, kind, "*")
    part = opcode.choice("lo", "hi", "wide")
    result = _product_type(kind, part)
    return lambda scope, d, a, b: scope.write(d, result, _product(scope, kind, part, a, b))


def _product_type(kind: Type, part: str) -> Type:
    if part == "wide":
        return (SIGNED if kind.is_signed else UNSIGNED)[2 * kind.bits]
    return UNSIGNED[kind.bits]


def _product(scope: Scope, kind: Type, part: str, a: str, b: str) -> str:
    if part == "lo":
        unsigned = UNSIGNED[kind.bits]
        factors = f"{scope.read(a, unsigned)} * {scope.read(b, unsigned)}"
        return f"({unsigned.cpp})({factors})" if kind.bits >= 32 else f"(u16)((u32){factors})"
    wide = f"{'s' if kind.is_signed else 'u'}{2 * kind.bits}"
    product = f"(({wide}){scope.read(a, kind)} * ({wide}){scope.read(b, kind)})"
    return product if part == "wide" else f"(u{kind.bits})({product} >> {kind.bits})"


@rule("mad")
def mad(opcode: Opcode) -> Emit:
    """d = a * b + c with the chosen part of the product; of floats it is fma."""
    kind = opcode.type()
    if kind.name in _FLOATS:
        return _fused(opcode, kind)
    part = opcode.choice("lo", "hi", "wide")
    result = _product_type(kind, part)
    unsigned = UNSIGNED[result.bits]
    if opcode.flag("cc"):
        return _mad_with_carry(kind, part, takes=False, keeps=True)
    if opcode.flag("sat"):
        if (part, kind.name) != ("hi", "s32"):
            raise UntranslatableError(f"only .hi.s32 saturates, got {opcode.text}")
        return lambda scope, d, a, b, c: scope.write(
            d,
            kind,
            f"clamp_signed((s64)(s32){_product(scope, kind, part, a, b)} + {scope.read(c, kind)}, -2147483648ll, 2147483647ll)",
        )
    return lambda scope, d, a, b, c: scope.write(
        d, unsigned, f"({unsigned.cpp})({_product(scope, kind, part, a, b)} + {scope.read(c, unsigned)})"
    )


@rule("madc")
def madc(opcode: Opcode) -> Emit:
    """d = a * b + c + carry with the low or high half of the product."""
    kind = opcode.type("u32", "s32", "u64", "s64")
    return _mad_with_carry(kind, opcode.choice("lo", "hi"), takes=True, keeps=opcode.flag("cc"))


def _mad_with_carry(kind: Type, part: str, takes: bool, keeps: bool) -> Emit:
    unsigned = UNSIGNED[kind.bits]

    def emit(scope: Scope, d: str, a: str, b: str, c: str) -> str:
        wide = f"(u128)({unsigned.cpp}){_product(scope, kind, part, a, b)} + {scope.read(c, unsigned)}"
        return _carried(scope, d, unsigned, wide, "+", takes, keeps)

    return emit


@rule("mul24", "mad24")
def products_of_24_bits(opcode: Opcode) -> Emit:
    """d = the low or high 32 bits of the 48-bit product of the low 24 bits of a and b, plus c for mad24."""
    kind = opcode.type("u32", "s32")
    shift = " >> 16" if opcode.choice("lo", "hi") == "hi" else ""

    def emit(scope: Scope, d: str, a: str, b: str, c: str = "0") -> str:
        low = [f"((s64){scope.read(each, kind)} << 40 >> 40)" for each in (a, b)]
        if not kind.is_signed:
            low = [f"({scope.read(each, kind)} & 0xffffffull)" for each in (a, b)]
        return scope.write(d, TYPES["u32"], f"(u32)({low[0]} * {low[1]}{shift}) + {scope.read(c, TYPES['u32'])}")

    return emit


def _integer_quotient(opcode: Opcode, kind: Type) -> Emit:
    if opcode.root not in ("div", "rem"):
        raise UntranslatableError(f"{opcode.text} is for floating-point numbers")
    return lambda scope, d, a, b: scope.write(d, kind, f"{opcode.root}_{kind.cpp}({scope.read(a, kind)}, {scope.read(b, kind)})")


@rule("rem")
def rem(opcode: Opcode) -> Emit:
    """d = the remainder of a / b, with the sign of a."""
    return _integer_quotient(opcode, opcode.type("u16", "s16", "u32", "s32", "u64", "s64"))


@rule("min", "max")
def min_and_max(opcode: Opcode) -> Emit:
    """d = the smaller or larger; a NaN loses, or wins with .NaN, and -0 is smaller than +0."""
    kind = opcode.type()
    if kind.name in _FLOATS:
        nan = "_nan" if opcode.flag("NaN") else ""
        floats = _Floats(opcode, kind)
        return floats.emit(lambda a, b: f"{opcode.root}{nan}_{floats.element.name}({a}, {b})")
    relu = opcode.flag("relu")
    sign = "<" if opcode.root == "min" else ">"

    def emit(scope: Scope, d: str, a: str, b: str) -> str:
        left, right = scope.read(a, kind), scope.read(b, kind)
        chosen = f"({left} {sign} {right} ? {left} : {right})"
        return scope.write(d, kind, f"({chosen} < 0 ? 0 : {chosen})" if relu else chosen)

    return emit


@rule("abs")
def absolute(opcode: Opcode) -> Emit:
    """d = |a|; of the smallest integer it is that integer."""
    kind = opcode.type()
    if kind.name in _FLOATS:
        floats = _Floats(opcode, kind)
        return floats.emit(lambda a: f"abs_{floats.element.name}({a})")
    unsigned = UNSIGNED[kind.bits]
    return lambda scope, d, a: scope.write(
        d,
        unsigned,
        f"({unsigned.cpp})({scope.read(a, SIGNED[kind.bits])} < 0 ? 0u - {scope.read(a, unsigned)} : {scope.read(a, unsigned)})",
    )


@rule("neg")
def neg(opcode: Opcode) -> Emit:
    """d = -a."""
    kind = opcode.type()
    if kind.name in _FLOATS:
        floats = _Floats(opcode, kind)
        return floats.emit(lambda a: f"neg_{floats.element.name}({a})")
    unsigned = UNSIGNED[kind.bits]
    return lambda scope, d, a: scope.write(d, unsigned, f"({unsigned.cpp})(0u - {scope.read(a, unsigned)})")


@rule("sad")
def sad(opcode: Opcode) -> Emit:
    """d = c + |a - b|."""
    kind = opcode.type("u16", "s16", "u32", "s32", "u64", "s64")
    unsigned = UNSIGNED[kind.bits]

    def emit(scope: Scope, d: str, a: str, b: str, c: str) -> str:
        left, right = scope.read(a, unsigned), scope.read(b, unsigned)
        larger = f"{scope.read(a, kind)} > {scope.read(b, kind)}"
        distance = f"({larger} ? {left} - {right} : {right} - {left})"
        return scope.write(d, unsigned, f"({unsigned.cpp})({scope.read(c, unsigned)} + {distance})")

    return emit


@rule("dp4a", "dp2a")
def dot_products(opcode: Opcode) -> Emit:
    """d = c + the sum of the products of the four bytes of a and b, or of the two 16-bit halves of a and two bytes of b."""
    right, left = opcode.type("u32", "s32"), opcode.type("u32", "s32")
    half = f"{'true' if opcode.choice('lo', 'hi') == 'hi' else 'false'}, " if opcode.root == "dp2a" else ""
    signs = ", ".join("true" if kind.is_signed else "false" for kind in (left, right))
    word = TYPES["u32"]
    return lambda scope, d, a, b, c: scope.write(
        d, word, f"{opcode.root}({scope.read(a, word)}, {scope.read(b, word)}, {scope.read(c, word)}, {half}{signs})"
    )
