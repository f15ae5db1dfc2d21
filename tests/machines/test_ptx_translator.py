"""Instructions of PTX as the software CUDA runs them, against expectations that Python's integers and fractions give.

`Case` is an instruction with operands of every kind that matters. All cases are one module, with a kernel for each, in which
thread number i computes the result of the i-th operands.
"""

import itertools
import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import emulator
import numpy as np
import pytest

from tests.software_cuda import harness
from tests.software_cuda.translator import TranslationError, translate

emulator.require_compiler()

HEADER = ".version 8.4\n.target sm_90\n.address_size 64\n"
REGISTERS = ".reg .pred %p<8>; .reg .b16 %h<16>; .reg .b32 %r<64>; .reg .b64 %d<64>; .reg .f32 %f<16>; .reg .f64 %e<16>;"
FULL = 0xFFFFFFFF

# What the bits of numbers mean ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: the bits of a number, of its significand with the hidden one, and the highest exponent."""

    bits: int
    digits: int
    highest: int

    @property
    def fraction_bits(self):
        return self.digits - 1

    @property
    def lowest(self):
        return 1 - self.highest

    @property
    def infinity(self):
        return (2 * self.highest + 1) << self.fraction_bits

    def value(self, bits):
        """Return the number as a fraction, or as a float where it is not finite, and its sign."""
        negative = bits >> self.bits - 1 & 1
        magnitude = bits & (1 << self.bits - 1) - 1
        exponent, fraction = magnitude >> self.fraction_bits, magnitude & (1 << self.fraction_bits) - 1
        if exponent == 2 * self.highest + 1:
            return math.nan if fraction else (-math.inf if negative else math.inf)
        significand = fraction + ((1 << self.fraction_bits) if exponent else 0)
        magnitude = Fraction(significand) * Fraction(2) ** (max(exponent, 1) - self.highest - self.fraction_bits)
        return -magnitude if negative else magnitude

    def rounded(self, value, mode="rn", negative_zero=False):
        """Return the bits of a fraction, rounded once."""
        sign = 1 << self.bits - 1
        if value == 0:
            return sign if negative_zero else 0
        negative, value = value < 0, abs(value)
        exponent = max(_floor_of_log2(value), self.lowest)
        quantum = Fraction(2) ** (exponent - self.fraction_bits)
        whole, rest = divmod(value / quantum, 1)
        whole = int(whole)
        up = {
            "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1),
            "rna": rest >= Fraction(1, 2),
            "rz": False,
            "rm": negative and rest > 0,
            "rp": not negative and rest > 0,
        }[mode]
        result = (whole + up) * quantum
        if result >= Fraction(2) ** (self.highest + 1):
            to_infinity = mode in ("rn", "rna", "rm" if negative else "rp")
            bits = self.infinity if to_infinity else self.infinity - 1
        elif result < Fraction(2) ** self.lowest:
            bits = int(result / Fraction(2) ** (self.lowest - self.fraction_bits))
        else:
            exponent = _floor_of_log2(result)
            significand = int(result / Fraction(2) ** (exponent - self.fraction_bits))
            bits = (exponent + self.highest << self.fraction_bits) + significand - (1 << self.fraction_bits)
        return bits | sign if negative else bits

    def is_nan(self, bits):
        return bits & (1 << self.bits - 1) - 1 > self.infinity

    def flushed(self, bits):
        """Return the bits with a denormal number made zero, of the same sign."""
        return bits if bits & self.infinity else bits & 1 << self.bits - 1


def _floor_of_log2(value):
    guess = value.numerator.bit_length() - value.denominator.bit_length()
    return guess if Fraction(2) ** guess <= value else guess - 1


F16, BF16, F32, F64 = Format(16, 11, 15), Format(16, 8, 127), Format(32, 24, 127), Format(64, 53, 1023)
FORMATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}
BITS = {"pred": 1, **{f"{letter}{bits}": bits for letter in "bus" for bits in (8, 16, 32, 64)}}
BITS |= {name: each.bits for name, each in FORMATS.items()} | {"f16x2": 32, "bf16x2": 32, "tf32": 32}


def f32(value):
    return struct.unpack("<I", struct.pack("<f", value))[0]


def f64(value):
    return struct.unpack("<Q", struct.pack("<d", value))[0]


def f16(value):
    return int(np.float16(value).view(np.uint16))


def signed(value, bits):
    return value - (1 << bits) if value >> bits - 1 & 1 else value


def interesting(name):
    """Return operands of a floating-point type: zeros, denormal and large numbers, infinities, NaN, and drawn numbers."""
    format = FORMATS[name]
    sign = 1 << format.bits - 1
    one = format.rounded(Fraction(1))
    edges = [
        0,
        1,
        format.infinity - 1,
        format.infinity,
        format.infinity + 1,
        one,
        one + 1,
        one - 1,
        (1 << format.fraction_bits) - 1,
    ]
    edges += [1 << format.fraction_bits, format.rounded(Fraction(3, 2)), format.rounded(Fraction(1, 3))]
    draw = random.Random(7)
    drawn = [draw.getrandbits(format.bits) for _ in range(12)]
    return [*edges, *(each | sign for each in edges), *drawn]


def pairs_of(name, count=220):
    values = interesting(name)
    chosen = list(itertools.product(values, values))
    random.Random(3).shuffle(chosen)
    return chosen[:count]


# Cases ------------------------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """An instruction, the types of its result and operands, the operands as bits, and the function that gives the bits expected.

    Where the expectation is None nothing is promised. `nan` is the format in which any NaN will do.
    """

    text: str
    result: str
    operands: list
    inputs: list
    expected: Callable
    nan: Format | None = None

    @property
    def id(self):
        return self.text.split(" ")[0].replace(";", "") if self.text.count(";") == 1 else self.text.split(";")[-2].split()[0]


CASES = []


def case(text, result, operands, inputs, expected, nan=None):
    """Add a case. `$0` in the text is the result, and `$1`, `$2`, ... are the operands, of which `expected` is a function."""
    inputs = [each if isinstance(each, tuple) else (each,) for each in inputs]
    CASES.append(Case(text, result, operands.split(), inputs, expected, nan))


_BANKS = {1: "%p", 16: "%h", 32: "%r", 64: "%d"}


def _kernel(number, each):
    lines = [f".visible .entry case_{number}(.param .u64 input, .param .u64 output) {{", REGISTERS]
    lines.append("ld.param.u64 %d60, [input]; ld.param.u64 %d61, [output]; mov.u32 %r60, %tid.x;")
    count = len(each.operands)
    lines.append(f"mad.wide.u32 %d60, %r60, {8 * count}, %d60; mad.wide.u32 %d61, %r60, 8, %d61;")
    text = each.text
    for position, kind in enumerate(each.operands, 1):
        bits = max(16, BITS[kind]) if kind != "pred" else 1
        register = f"{_BANKS[bits]}{position}"
        if kind == "pred":
            lines.append(f"ld.global.u32 %r50, [%d60+{8 * position - 8}]; setp.ne.u32 {register}, %r50, 0;")
        else:
            lines.append(f"ld.global.u{bits} {register}, [%d60+{8 * position - 8}];")
        text = text.replace(f"${position}", register)
    bits = max(16, BITS[each.result]) if each.result != "pred" else 1
    register = f"{_BANKS[bits]}0"
    lines.append(text.replace("$0", register))
    if each.result == "pred":
        lines.append(f"selp.u32 %r50, 1, 0, {register}; cvt.u64.u32 %d62, %r50;")
    elif bits == 64:
        lines.append(f"mov.b64 %d62, {register};")
    else:
        lines.append(f"cvt.u64.u{bits} %d62, {register};")
    return "\n".join([*lines, "st.global.u64 [%d61], %d62; ret; }"])


@cache
def _module():
    return HEADER + "\n".join(_kernel(number, each) for number, each in enumerate(CASES))


def _results(number, each):
    inputs = np.array([list(row) for row in each.inputs], np.uint64)
    output = np.zeros(len(each.inputs), np.uint64)
    outcome = harness.run(_module(), f"case_{number}", [inputs, output], block=(len(each.inputs),))
    assert (outcome.failure, outcome.report) == (0, "")
    mask = (1 << BITS[each.result]) - 1
    return [int(value) & mask for value in output]


# Integers ---------------------------------------------------------------------------------------------------------------------

WORDS = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFF, 0x12345678, 0xFEDCBA98, 31, 33]
LONGS = [0, 1, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF, 0x123456789ABCDEF0, 0xFFFFFFFF, 0x100000000]
SHORTS = [0, 1, 0x7FFF, 0x8000, 0xFFFF, 0x1234]
EDGES = {16: SHORTS, 32: WORDS, 64: LONGS}


def _number(kind):
    bits = BITS[kind]
    return (lambda value: signed(value, bits)) if kind[0] == "s" else (lambda value: value)


def _quotient(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


for kind in ("u16", "s16", "u32", "s32", "u64", "s64"):
    bits, of = BITS[kind], _number(kind)
    two, three = list(itertools.product(EDGES[bits], repeat=2)), list(itertools.product(EDGES[bits][:6], repeat=3))
    case(f"add.{kind} $0, $1, $2;", kind, f"{kind} {kind}", two, lambda a, b: a + b)
    case(f"sub.{kind} $0, $1, $2;", kind, f"{kind} {kind}", two, lambda a, b: a - b)
    case(f"mul.lo.{kind} $0, $1, $2;", kind, f"{kind} {kind}", two, lambda a, b: a * b)
    case(f"mul.hi.{kind} $0, $1, $2;", kind, f"{kind} {kind}", two, lambda a, b, of=of, n=bits: of(a) * of(b) >> n)
    case(f"mad.lo.{kind} $0, $1, $2, $3;", kind, f"{kind} {kind} {kind}", three, lambda a, b, c: a * b + c)
    case(f"mad.hi.{kind} $0, $1, $2, $3;", kind, f"{kind} " * 3, three, lambda a, b, c, of=of, n=bits: (of(a) * of(b) >> n) + c)
    if bits < 64:
        wide = f"{kind[0]}{2 * bits}"
        case(f"mul.wide.{kind} $0, $1, $2;", wide, f"{kind} {kind}", two, lambda a, b, of=of: of(a) * of(b))
        case(f"mad.wide.{kind} $0, $1, $2, $3;", wide, f"{kind} {kind} {wide}", three, lambda a, b, c, of=of: of(a) * of(b) + c)
    nonzero = [each for each in two if each[1]]
    case(f"div.{kind} $0, $1, $2;", kind, f"{kind} {kind}", nonzero, lambda a, b, of=of: _quotient(of(a), of(b)))
    case(f"rem.{kind} $0, $1, $2;", kind, f"{kind} {kind}", nonzero, lambda a, b, of=of: of(a) - of(b) * _quotient(of(a), of(b)))
    case(f"min.{kind} $0, $1, $2;", kind, f"{kind} {kind}", two, lambda a, b, of=of: min(of(a), of(b)))
    case(f"max.{kind} $0, $1, $2;", kind, f"{kind} {kind}", two, lambda a, b, of=of: max(of(a), of(b)))
    case(f"sad.{kind} $0, $1, $2, $3;", kind, f"{kind} " * 3, three, lambda a, b, c, of=of: c + abs(of(a) - of(b)))
    for name, compare in {"lt": int.__lt__, "le": int.__le__, "gt": int.__gt__, "ge": int.__ge__, "eq": int.__eq__}.items():
        case(f"setp.{name}.{kind} $0, $1, $2;", "pred", f"{kind} {kind}", two, lambda a, b, of=of, f=compare: f(of(a), of(b)))
    if kind[0] == "s":
        case(f"neg.{kind} $0, $1;", kind, kind, EDGES[bits], lambda a: -a)
        case(f"abs.{kind} $0, $1;", kind, kind, EDGES[bits], lambda a, of=of: abs(of(a)))
    amounts = [(a, b) for a in EDGES[bits] for b in (0, 1, bits - 1, bits, bits + 1, 0xFFFFFFFF)]
    case(f"shr.{kind} $0, $1, $2;", kind, f"{kind} u32", amounts, lambda a, b, of=of: of(a) >> min(b, 64))
    if kind[0] == "u":
        case(f"shl.b{bits} $0, $1, $2;", kind, f"{kind} u32", amounts, lambda a, b: a << min(b, 64))
        for name, logic in {"and": int.__and__, "or": int.__or__, "xor": int.__xor__}.items():
            case(f"{name}.b{bits} $0, $1, $2;", kind, f"{kind} {kind}", two, logic)
        case(f"not.b{bits} $0, $1;", kind, kind, EDGES[bits], lambda a: ~a)
        case(f"cnot.b{bits} $0, $1;", kind, kind, EDGES[bits], lambda a: a == 0)
        case(f"setp.lo.u{bits} $0, $1, $2;", "pred", f"{kind} {kind}", two, int.__lt__)

case("shr.u32 $0, $1, 5;", "u32", "u32", WORDS, lambda a: a >> 5)
case("shr.s64 $0, $1, 63;", "s64", "s64", LONGS, lambda a: signed(a, 64) >> 63)
_TWO_WORDS, _TWO_LONGS = list(itertools.product(WORDS, repeat=2)), list(itertools.product(LONGS, repeat=2))


def _clamped(value, low=-(2**31), high=2**31 - 1):
    return max(low, min(high, value))


case("add.sat.s32 $0, $1, $2;", "s32", "s32 s32", _TWO_WORDS, lambda a, b: _clamped(signed(a, 32) + signed(b, 32)))
case("sub.sat.s32 $0, $1, $2;", "s32", "s32 s32", _TWO_WORDS, lambda a, b: _clamped(signed(a, 32) - signed(b, 32)))
case(
    "mad.hi.sat.s32 $0, $1, $2, $3;",
    "s32",
    "s32 s32 s32",
    [(0x7FFFFFFF, 0x7FFFFFFF, 0x7FFFFFFF), (0x80000000, 0x7FFFFFFF, 0x80000000), (5 << 28, 3 << 28, 9)],
    lambda a, b, c: _clamped((signed(a, 32) * signed(b, 32) >> 32) + signed(c, 32)),
)

# Carries: the high half of the result shows what the low half handed on.
for low, high in (("u32", "u64"), ("u64", "u64")):
    bits = BITS[low]
    part = (
        "mov.b64 {%r40, %r41}, $1; mov.b64 {%r42, %r43}, $2; "
        if bits == 32
        else "mov.b64 %d40, $1; mov.b64 %d42, $2; mov.u64 %d41, 5; mov.u64 %d43, 9; "
    )
    bank = "%r" if bits == 32 else "%d"
    join = "mov.b64 $0, {%r44, %r45};" if bits == 32 else "mov.b64 $0, %d45;"
    high_parts = (lambda a, b: (a, b)) if bits == 32 else (lambda a, b: (a | 5 << 64, b | 9 << 64))
    for name, sign in (("add", 1), ("sub", -1)):
        text = part + f"{name}.cc.{low} {bank}44, {bank}40, {bank}42; {name}c.{low} {bank}45, {bank}41, {bank}43; " + join

        def expected(a, b, sign=sign, bits=bits, high_parts=high_parts):
            a, b = high_parts(a, b)
            return a + sign * b if bits == 32 else (a + sign * b) >> 64

        case(text, high, f"{high} {high}", _TWO_LONGS, expected)
case(
    "mov.b64 {%r40, %r41}, $1; mov.b64 {%r42, %r43}, $2; "
    "mad.lo.cc.u32 %r44, %r40, %r42, %r43; madc.hi.u32 %r45, %r40, %r42, %r41; "
    "mov.b64 $0, {%r44, %r45};",
    "u64",
    "u64 u64",
    _TWO_LONGS,
    lambda a, b: (a & FULL) * (b & FULL) + (b >> 32) + (a >> 32 << 32),
)
case(
    "add.cc.u32 %r40, $1, $1; addc.cc.u32 %r41, $2, $2; addc.u32 $0, 0, 0;",
    "u32",
    "u32 u32",
    _TWO_WORDS,
    lambda a, b: (2 * b + (2 * a >> 32)) >> 32,
)

# Fields of bits ---------------------------------------------------------------------------------------------------------------


def _bfe(value, start, length, bits, is_signed):
    """The rule of the PTX ISA, bit by bit."""
    start, length, most = start & 255, length & 255, bits - 1
    fill = 0 if not is_signed or length == 0 else value >> min(start + length - 1, most) & 1
    return sum((value >> start + i & 1 if i < length and start + i <= most else fill) << i for i in range(bits))


def _bfi(source, target, start, length, bits):
    start, length = start & 255, length & 255
    for i in range(length):
        if start + i < bits:
            target = target & ~(1 << start + i) | (source >> i & 1) << start + i
    return target


_FIELDS = [(p, n) for p in (0, 1, 31, 32, 40, 63, 64, 255) for n in (0, 1, 8, 32, 33, 64, 255)]
for bits in (32, 64):
    values = [0x9ABCDEF0, 0x7FFFFFFF, FULL] if bits == 32 else [0x9ABCDEF012345678, 0x7FFFFFFFFFFFFFFF]
    fields = [(a, p, n) for a in values for p, n in _FIELDS]
    for kind in (f"u{bits}", f"s{bits}"):
        case(
            f"bfe.{kind} $0, $1, $2, $3;",
            kind,
            f"{kind} u32 u32",
            fields,
            lambda a, p, n, bits=bits, s=kind[0] == "s": _bfe(a, p, n, bits, s),
        )
        case(
            f"bfind.{kind} $0, $1;",
            "u32",
            kind,
            EDGES[bits],
            lambda a, bits=bits, s=kind[0] == "s": ((~a & (1 << bits) - 1) if s and a >> bits - 1 else a).bit_length() - 1,
        )
    inserted = [(a, b, p, n) for a, b in ((values[0], values[1]), (0, values[0])) for p, n in _FIELDS]
    case(
        f"bfi.b{bits} $0, $1, $2, $3, $4;", f"u{bits}", f"u{bits} u{bits} u32 u32", inserted, lambda *o, bits=bits: _bfi(*o, bits)
    )
    case(f"brev.b{bits} $0, $1;", f"u{bits}", f"u{bits}", EDGES[bits], lambda a, n=bits: int(f"{a:0{n}b}"[::-1], 2))
    case(f"popc.b{bits} $0, $1;", "u32", f"u{bits}", EDGES[bits], lambda a: a.bit_count())
    case(f"clz.b{bits} $0, $1;", "u32", f"u{bits}", EDGES[bits], lambda a, n=bits: n - a.bit_length())
case("bfind.shiftamt.u32 $0, $1;", "u32", "u32", WORDS, lambda a: 32 - a.bit_length() if a else FULL)

_SHIFTED = [(a, b, c) for a, b in ((0x12345678, 0x9ABCDEF0), (FULL, 1)) for c in (0, 1, 16, 31, 32, 33, 255)]
for mode, amount in (("wrap", lambda c: c & 31), ("clamp", lambda c: min(c, 32))):
    case(
        f"shf.l.{mode}.b32 $0, $1, $2, $3;", "u32", "u32 u32 u32", _SHIFTED, lambda a, b, c, n=amount: (b << 32 | a) << n(c) >> 32
    )
    case(f"shf.r.{mode}.b32 $0, $1, $2, $3;", "u32", "u32 u32 u32", _SHIFTED, lambda a, b, c, n=amount: (b << 32 | a) >> n(c))


def _prmt(a, b, digits):
    of = (b << 32 | a).to_bytes(8, "little")
    chosen = [(digits >> 4 * i & 7, digits >> 4 * i & 8) for i in range(4)]
    return int.from_bytes(bytes((255 if of[n] & 128 else 0) if sign else of[n] for n, sign in chosen), "little")


_PERMUTED = [(0x83828180, 0x07060504, c) for c in (0x3210, 0x7654, 0x0123, 0x89AB, 0xFEDC, 0x5410, 0x12340000)]
case("prmt.b32 $0, $1, $2, $3;", "u32", "u32 u32 u32", _PERMUTED, _prmt)
# The tables of the PTX ISA: the bytes from the highest to the lowest for the values 0 to 3 of the last operand.
_PRMT_MODES = {
    "f4e": ("3210", "4321", "5432", "6543"),
    "b4e": ("5670", "6701", "7012", "0123"),
    "rc8": ("0000", "1111", "2222", "3333"),
    "ecl": ("3210", "3211", "3222", "3333"),
    "ecr": ("0000", "1110", "2210", "3210"),
    "rc16": ("1010", "3232", "1010", "3232"),
}
for mode, table in _PRMT_MODES.items():
    case(
        f"prmt.b32.{mode} $0, $1, $2, $3;",
        "u32",
        "u32 u32 u32",
        [(0x83828180, 0x87868584, c) for c in range(4)],
        lambda a, b, c, table=table: int("".join(f"8{digit}" for digit in table[c]), 16),
    )
case(
    "lop3.b32 $0, $1, $2, $3, 0xE8;",
    "u32",
    "u32 u32 u32",
    [(0xF0F0F0F0, 0xCCCCCCCC, 0xAAAAAAAA), (FULL, 0, 0x1234)],
    lambda a, b, c: a & b | a & c | b & c,
)
case("lop3.b32 $0, $1, $2, $3, 0x1A;", "u32", "u32 u32 u32", [(0xF0, 0xCC, 0xAA)], lambda a, b, c: (a & b | c) ^ a)


def _dp4a(a, b, c, kinds):
    def parts(word, is_signed):
        return [signed(byte, 8) if is_signed else byte for byte in word.to_bytes(4, "little")]

    return c + sum(x * y for x, y in zip(parts(a, kinds[0] == "s32"), parts(b, kinds[1] == "s32"), strict=True))


for kinds in itertools.product(("u32", "s32"), repeat=2):
    case(
        f"dp4a.{kinds[0]}.{kinds[1]} $0, $1, $2, $3;",
        "u32",
        "u32 u32 u32",
        [(0x80FF7F01, 0xFF80017F, 5), (FULL, FULL, FULL)],
        lambda a, b, c, kinds=kinds: _dp4a(a, b, c, kinds),
    )
case("dp2a.lo.s32.s32 $0, $1, $2, $3;", "u32", "u32 u32 u32", [(0x8000FFFF, 0x7F80FE03, 7)], lambda a, b, c: c - 3 + 32768 * 2)
case(
    "dp2a.hi.s32.s32 $0, $1, $2, $3;", "u32", "u32 u32 u32", [(0x8000FFFF, 0x7F80FE03, 7)], lambda a, b, c: c + 128 - 32768 * 127
)
case("mul24.lo.s32 $0, $1, $2;", "u32", "u32 u32", [(0xFFFFFFFF, 3), (0x01800000, 2)], lambda a, b: signed(a & 0xFFFFFF, 24) * b)
case(
    "mul24.hi.u32 $0, $1, $2;",
    "u32",
    "u32 u32",
    [(0xFFFFFF, 0xFFFFFF), (0x12345678, 0x10000)],
    lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF) >> 16,
)

# Selections and moves ---------------------------------------------------------------------------------------------------------

case("selp.b32 $0, $1, $2, $3;", "u32", "u32 u32 pred", [(5, 7, 0), (5, 7, 1)], lambda a, b, p: a if p else b)
case("@$2 mov.b32 $0, $1; @!$2 mov.b32 $0, 9;", "u32", "u32 pred", [(5, 0), (5, 1)], lambda a, p: a if p else 9)
case(
    "slct.u32.s32 $0, $1, $2, $3;",
    "u32",
    "u32 u32 s32",
    [(5, 7, 0), (5, 7, FULL)],
    lambda a, b, c: a if signed(c, 32) >= 0 else b,
)
case(
    "slct.u32.f32 $0, $1, $2, $3;",
    "u32",
    "u32 u32 f32",
    [(5, 7, f32(0.0)), (5, 7, f32(-0.0)), (5, 7, f32(-1.0)), (5, 7, f32(math.nan))],
    lambda a, b, c: a if F32.value(c) >= 0 else b,
)
case("set.lt.u32.s32 $0, $1, $2;", "u32", "s32 s32", _TWO_WORDS, lambda a, b: FULL * (signed(a, 32) < signed(b, 32)))
case("set.ge.f32.u32 $0, $1, $2;", "f32", "u32 u32", _TWO_WORDS, lambda a, b: f32(1.0) * (a >= b))
case("setp.lt.and.s32 $0, $1, $2, $3;", "pred", "s32 s32 pred", [(1, 2, 0), (1, 2, 1), (2, 1, 1)], lambda a, b, p: a < b and p)
case("setp.lt.or.s32 $0, $1, $2, !$3;", "pred", "s32 s32 pred", [(2, 1, 0), (2, 1, 1)], lambda a, b, p: not p)
case("setp.eq.u32 %p5|$0, $1, $2;", "pred", "u32 u32", [(1, 1), (1, 2)], lambda a, b: a != b)
case("setp.eq.u32 $0|%p5, $1, $2;", "pred", "u32 u32", [(1, 1), (1, 2)], lambda a, b: a == b)
case(
    "setp.eq.xor.u32 %p5|$0, $1, $2, $3;", "pred", "u32 u32 pred", [(1, 1, 0), (1, 1, 1), (1, 2, 1)], lambda a, b, p: (a != b) ^ p
)
case("mov.b32 {%h7, %h8}, $1; mov.b32 $0, {%h8, %h7};", "u32", "u32", WORDS, lambda a: a >> 16 | a << 16)
case("mov.b64 {%r7, _}, $1; mov.b64 $0, {%r7, 5};", "u64", "u64", LONGS, lambda a: a & FULL | 5 << 32)
case(
    "mov.b64 {%h4, %h5, %h6, %h7}, $1; mov.b64 $0, {%h7, %h6, %h5, %h4};",
    "u64",
    "u64",
    LONGS,
    lambda a: sum((a >> 48 - 16 * i & 0xFFFF) << 16 * i for i in range(4)),
)
case("mov.f32 %f1, 0fBF800000; mov.b32 $0, %f1;", "u32", "", [()], lambda: f32(-1.0))
case("mov.f32 %f1, 0f7FC12345; mov.b32 $0, %f1;", "u32", "", [()], lambda: 0x7FC12345)
case("mov.f64 %e1, 0d3FF8000000000000; mov.b64 $0, %e1;", "u64", "", [()], lambda: f64(1.5))
case("mov.u32 %r7, -5; add.s32 $0, %r7, 0x10;", "s32", "", [()], lambda: 11)
# A register of a block in braces hides the one outside.
case("mov.b32 %r7, $1; { .reg .b32 %r7; mov.b32 %r7, 3; } mov.b32 $0, %r7;", "u32", "u32", [5], lambda a: a)

# Floating-point numbers -------------------------------------------------------------------------------------------------------


def _exact(operation, values):
    """Return the exact result where it is a fraction, and else the float that IEEE 754 gives."""
    if any(isinstance(each, float) for each in values):
        big = [each if isinstance(each, float) else math.copysign(1.0, each) if each else 0.0 for each in values]
        if operation == "fma":
            product = _exact("mul", values[:2])
            if isinstance(product, Fraction):
                product = 1.0 if isinstance(values[2], float) else product
            return product + big[2] if isinstance(product, float) else product
        if operation == "mul":
            return big[0] * big[1]
        return {"add": big[0] + big[1], "sub": big[0] - big[1]}[operation]
    if operation == "fma":
        return values[0] * values[1] + values[2]
    return {"add": values[0] + values[-1], "sub": values[0] - values[-1], "mul": values[0] * values[-1]}[operation]


def _sign(bits, format):
    return bits >> format.bits - 1 & 1


def _arithmetic(operation, format, mode, *operands):
    exact = _exact(operation, [format.value(each) for each in operands])
    if isinstance(exact, float):
        return format.infinity + 1 if math.isnan(exact) else format.infinity | (exact < 0) << format.bits - 1
    signs = [_sign(each, format) for each in operands]
    first = signs[0] ^ signs[1] if operation in ("mul", "fma") else signs[0]
    second = {"mul": first, "fma": signs[-1], "add": signs[-1], "sub": 1 - signs[-1]}[operation]
    zero_is_negative = first if first == second else mode == "rm"
    if operation != "mul" and first != second and exact == 0:
        zero_is_negative = mode == "rm"
    # A product that is too small has the sign of its factors.
    return format.rounded(exact, mode, zero_is_negative)


for name, format in FORMATS.items():
    modes = ("rn",) if name in ("f16", "bf16") else ("rn", "rz", "rm", "rp")
    triples = [(a, b, c) for (a, b), (c, _) in zip(pairs_of(name), reversed(pairs_of(name)), strict=True)]
    # A fused product that differs from a rounded one.
    one = format.rounded(Fraction(1))
    triples += [(one + 1, one + 1, one | 1 << format.bits - 1), (one + 1, one - 1, one | 1 << format.bits - 1)]
    for mode in modes:
        for operation in ("add", "sub", "mul"):
            case(
                f"{operation}.{mode}.{name} $0, $1, $2;",
                name,
                f"{name} {name}",
                pairs_of(name),
                lambda a, b, o=operation, f=format, m=mode: _arithmetic(o, f, m, a, b),
                format,
            )
        case(
            f"fma.{mode}.{name} $0, $1, $2, $3;",
            name,
            f"{name} " * 3,
            triples,
            lambda a, b, c, f=format, m=mode: _arithmetic("fma", f, m, a, b, c),
            format,
        )


def _flushing(operation, format, *operands):
    return format.flushed(_arithmetic(operation, format, "rn", *(format.flushed(each) for each in operands)))


for operation in ("add", "sub", "mul", "fma"):
    count = 3 if operation == "fma" else 2
    operands = [(*pair, pair[0] ^ 0x80000001)[:count] for pair in pairs_of("f32")]
    rounding = "rn." if operation == "fma" else ""
    case(
        f"{operation}.{rounding}ftz.f32 $0, $1, $2{', $3' if count == 3 else ''};",
        "f32",
        "f32 " * count,
        operands,
        lambda *o, operation=operation: _flushing(operation, F32, *o),
        F32,
    )


def _divided(format, mode, a, b):
    x, y = format.value(a), format.value(b)
    negative = _sign(a, format) ^ _sign(b, format)
    if isinstance(x, float) or isinstance(y, float) or y == 0:
        if math.isnan(x) or math.isnan(y) or (x == 0 and y == 0) or (isinstance(x, float) and isinstance(y, float)):
            return format.infinity + 1
        return negative << format.bits - 1 | (format.infinity if isinstance(x, float) or y == 0 else 0)
    return format.rounded(x / y, mode, negative)


def _root(format, mode, a):
    x = format.value(a)
    if x == 0 or a == format.infinity:
        return a
    if isinstance(x, float) or x < 0:
        return format.infinity + 1
    shift = 4 * format.highest
    root = Fraction(math.isqrt(int(x * 2 ** (2 * shift))), 2**shift)
    return format.rounded(root if root * root == x else root + Fraction(1, 2 ** (shift + 1)), mode)


for name in ("f32", "f64"):
    format = FORMATS[name]
    for mode in ("rn", "rz", "rm", "rp"):
        case(
            f"div.{mode}.{name} $0, $1, $2;",
            name,
            f"{name} {name}",
            pairs_of(name),
            lambda a, b, f=format, m=mode: _divided(f, m, a, b),
            format,
        )
        case(f"sqrt.{mode}.{name} $0, $1;", name, name, interesting(name), lambda a, f=format, m=mode: _root(f, m, a), format)
        case(
            f"rcp.{mode}.{name} $0, $1;",
            name,
            name,
            interesting(name),
            lambda a, f=format, m=mode: _divided(f, m, f.rounded(Fraction(1)), a),
            format,
        )


def _smaller(format, a, b, sign, nan_wins):
    """min with sign 1, max with sign -1."""
    if format.is_nan(a) or format.is_nan(b):
        if nan_wins or (format.is_nan(a) and format.is_nan(b)):
            return (1 << format.bits - 1) - 1  # the canonical NaN
        return b if format.is_nan(a) else a
    return min(a, b, key=lambda bits: (sign * format.value(bits), -sign * _sign(bits, format)))


for name, format in FORMATS.items():
    for operation, sign in (("min", 1), ("max", -1)):
        for nan in ("", ".NaN") if name != "f64" else ("",):
            case(
                f"{operation}{nan}.{name} $0, $1, $2;",
                name,
                f"{name} {name}",
                pairs_of(name),
                lambda a, b, f=format, s=sign, n=bool(nan): _smaller(f, a, b, s, n),
            )
    case(f"neg.{name} $0, $1;", name, name, interesting(name), lambda a, f=format: a ^ 1 << f.bits - 1)
    case(f"abs.{name} $0, $1;", name, name, interesting(name), lambda a, f=format: a & (1 << f.bits - 1) - 1)

case("neg.ftz.f32 $0, $1;", "f32", "f32", [1, 0x80000001, f32(1.5)], lambda a: F32.flushed(a) ^ 0x80000000)
case(
    "add.sat.f32 $0, $1, $2;",
    "f32",
    "f32 f32",
    [(f32(0.75), f32(0.5)), (f32(-1.0), f32(0.5)), (f32(math.nan), 0), (f32(0.25), f32(0.5))],
    lambda a, b: f32(max(0.0, min(1.0, float(F32.value(a) + F32.value(b))))) if not F32.is_nan(a) else 0,
)
case("copysign.f32 $0, $1, $2;", "f32", "f32 f32", pairs_of("f32", 50), lambda a, b: b & 0x7FFFFFFF | a & 0x80000000)
_CLASSES = {
    "finite": lambda v, a: not isinstance(v, float),
    "infinite": lambda v, a: isinstance(v, float) and math.isinf(v),
    "number": lambda v, a: not (isinstance(v, float) and math.isnan(v)),
    "notanumber": lambda v, a: isinstance(v, float) and math.isnan(v),
    "normal": lambda v, a: not isinstance(v, float) and abs(v) >= Fraction(2) ** -126,
    "subnormal": lambda v, a: not isinstance(v, float) and 0 < abs(v) < Fraction(2) ** -126,
}
for name, belongs in _CLASSES.items():
    case(f"testp.{name}.f32 $0, $1;", "pred", "f32", interesting("f32"), lambda a, f=belongs: f(F32.value(a), a))

_COMPARISONS = {"eq": "__eq__", "lt": "__lt__", "le": "__le__", "gt": "__gt__", "ge": "__ge__", "ne": "__ne__"}
for name, format in FORMATS.items():

    def _compared(a, b, format, method, unordered):
        if format.is_nan(a) or format.is_nan(b):
            return unordered
        return getattr(float, method)(float(format.value(a)), float(format.value(b)))

    for comparison, method in _COMPARISONS.items():
        for suffix in ("", "u"):
            case(
                f"setp.{comparison}{suffix}.{name} $0, $1, $2;",
                "pred",
                f"{name} {name}",
                pairs_of(name),
                lambda a, b, f=format, m=method, u=bool(suffix): _compared(a, b, f, m, u),
            )
    case(
        f"setp.num.{name} $0, $1, $2;",
        "pred",
        f"{name} {name}",
        pairs_of(name),
        lambda a, b, f=format: not (f.is_nan(a) or f.is_nan(b)),
    )
    case(
        f"setp.nan.{name} $0, $1, $2;",
        "pred",
        f"{name} {name}",
        pairs_of(name),
        lambda a, b, f=format: f.is_nan(a) or f.is_nan(b),
    )
case(
    "setp.eq.ftz.f32 $0, $1, $2;",
    "pred",
    "f32 f32",
    [(1, 0), (0x80000001, 1), (f32(1.0), 1)],
    lambda a, b: F32.value(F32.flushed(a)) == F32.value(F32.flushed(b)),
)

for name in ("f16", "bf16"):
    format = FORMATS[name]
    twice = [(a | c << 16, b | d << 16) for (a, b), (c, d) in zip(pairs_of(name), reversed(pairs_of(name)), strict=True)]
    for operation in ("add", "mul"):

        def _both(a, b, operation=operation, format=format):
            halves = [_arithmetic(operation, format, "rn", a >> n & 0xFFFF, b >> n & 0xFFFF) for n in (0, 16)]
            return None if any(format.is_nan(each) for each in halves) else halves[0] | halves[1] << 16

        case(f"{operation}.rn.{name}x2 $0, $1, $2;", f"{name}x2", f"{name}x2 {name}x2", twice, _both)

    def _fused(a, b, format=format):
        halves = [_arithmetic("fma", format, "rn", a >> n & 0xFFFF, b >> n & 0xFFFF, a >> n & 0xFFFF) for n in (0, 16)]
        return None if any(format.is_nan(each) for each in halves) else halves[0] | halves[1] << 16

    case(f"fma.rn.{name}x2 $0, $1, $2, $1;", f"{name}x2", f"{name}x2 {name}x2", twice, _fused)

_TWO_HALVES = [(0x3C00_4000, 0x4000_3C00), (0x7E00_3C00, 0x7E00_3C00), (0x8000_0001, 0x0000_0000)]
case(
    "set.le.f16x2.f16x2 $0, $1, $2;",
    "f16x2",
    "f16x2 f16x2",
    _TWO_HALVES,
    lambda a, b: {0x3C00_4000: 0x3C00_0000, 0x7E00_3C00: 0x0000_3C00, 0x8000_0001: 0x3C00_0000}[a],
)
case(
    "setp.le.f16x2 %p5|%p6, $1, $2; selp.u32 $0, 1, 0, %p5; @%p6 add.u32 $0, $0, 2;",
    "u32",
    "f16x2 f16x2",
    _TWO_HALVES,
    lambda a, b: {0x3C00_4000: 2, 0x7E00_3C00: 1, 0x8000_0001: 2}[a],
)

# Conversions ------------------------------------------------------------------------------------------------------------------

_WHOLE = {
    "rzi": math.trunc,
    "rmi": math.floor,
    "rpi": math.ceil,
    "rni": lambda value: round(value),  # Python, too, rounds to the even one
}


def _to_integer(bits, format, kind, rounding):
    width, is_signed = BITS[kind], kind[0] == "s"
    value = format.value(bits)
    low, high = (-(1 << width - 1), (1 << width - 1) - 1) if is_signed else (0, (1 << width) - 1)
    if isinstance(value, float):
        if math.isnan(value):
            return 1 << width - 1 if format is F64 or width == 64 else 0
        return high if value > 0 else low
    return max(low, min(high, _WHOLE[rounding](value)))


_NEAR = [Fraction(n, 4) for n in range(-10, 11)]
_LARGE = [Fraction(s * (2**p + d)) for s in (1, -1) for p in (7, 8, 15, 16, 31, 32, 63, 64) for d in (-1, 0, 1)]
for name, format in FORMATS.items():
    values = [*interesting(name), *(format.rounded(each) for each in _NEAR + _LARGE)]
    for kind in ("s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"):
        for rounding in _WHOLE if kind in ("s32", "u64") else ("rzi",):
            case(
                f"cvt.{rounding}.{kind}.{name} $0, $1;",
                kind,
                name,
                values,
                lambda a, f=format, k=kind, r=rounding: _to_integer(a, f, k, r),
            )
    for rounding in ("rn", "rz", "rm", "rp"):
        for kind in ("s32", "u32", "s64", "u64"):
            case(
                f"cvt.{rounding}.{name}.{kind} $0, $1;",
                name,
                kind,
                [*EDGES[BITS[kind]], *(random.Random(5).getrandbits(BITS[kind]) for _ in range(20))],
                lambda a, f=format, k=kind, m=rounding: f.rounded(Fraction(_number(k)(a)), m),
            )
    for rounding, function in _WHOLE.items():

        def _rounded(a, format=format, function=function):
            value = format.value(a)
            return a if isinstance(value, float) else format.rounded(Fraction(function(value)), "rn", _sign(a, format))

        if name in ("f32", "f64"):
            case(f"cvt.{rounding}.{name}.{name} $0, $1;", name, name, values, _rounded, format)


def _narrowed(a, source, target, mode):
    value = source.value(a)
    if isinstance(value, float):
        return target.infinity + 1 if math.isnan(value) else target.infinity | (value < 0) << target.bits - 1
    return target.rounded(value, mode, _sign(a, source))


def _halfway(source, target):
    """Return numbers of a wide format near those halfway between two of a narrow one, and near its largest and smallest."""
    step = Fraction(2) ** -target.fraction_bits
    offsets = (-(Fraction(2) ** -source.fraction_bits), 0, Fraction(2) ** -source.fraction_bits)
    numbers = [sign * (base + step / 2 + offset) for sign in (1, -1) for base in (1, 1 + step) for offset in offsets]
    scales = [Fraction(1), Fraction(2) ** target.highest, Fraction(2) ** target.lowest, Fraction(2) ** (target.lowest - 3)]
    largest = Fraction(2) ** (target.highest + 1) * (1 - step / 4)
    return [source.rounded(number * scale) for number in numbers for scale in scales] + [
        source.rounded(largest),
        source.rounded(-largest),
    ]


for source, target in (("f32", "f16"), ("f32", "bf16"), ("f64", "f16"), ("f64", "bf16"), ("f64", "f32")):
    values = [*interesting(source), *_halfway(FORMATS[source], FORMATS[target])]
    for mode in ("rn", "rz", "rm", "rp"):
        case(
            f"cvt.{mode}.{target}.{source} $0, $1;",
            target,
            source,
            values,
            lambda a, s=FORMATS[source], t=FORMATS[target], m=mode: _narrowed(a, s, t, m),
            FORMATS[target],
        )
for source, target in (("f16", "f32"), ("bf16", "f32"), ("f16", "f64"), ("f32", "f64")):
    case(
        f"cvt.{target}.{source} $0, $1;",
        target,
        source,
        interesting(source),
        lambda a, s=FORMATS[source], t=FORMATS[target]: _narrowed(a, s, t, "rn"),
        FORMATS[target],
    )
case("cvt.ftz.f64.f32 $0, $1;", "f64", "f32", interesting("f32"), lambda a: _narrowed(F32.flushed(a), F32, F64, "rn"), F64)
case("cvt.rn.ftz.f32.f64 $0, $1;", "f32", "f64", interesting("f64"), lambda a: F32.flushed(_narrowed(a, F64, F32, "rn")), F32)
case("cvt.rn.relu.f16.f32 $0, $1;", "f16", "f32", [f32(-1.5), f32(2.5), f32(-0.0)], lambda a: f16(max(0.0, float(F32.value(a)))))
case(
    "cvt.sat.f32.f32 $0, $1;",
    "f32",
    "f32",
    [f32(-1.5), f32(0.5), f32(2.5), f32(math.nan)],
    lambda a: f32(0.0 if F32.is_nan(a) else max(0.0, min(1.0, float(F32.value(a))))),
)
_FLOAT_PAIRS = [(f32(1.5), f32(-2.0)), (f32(1 / 3), f32(70000.0)), (1, f32(-0.0))]
case(
    "cvt.rn.f16x2.f32 $0, $1, $2;",
    "f16x2",
    "f32 f32",
    _FLOAT_PAIRS,
    lambda a, b: _narrowed(a, F32, F16, "rn") << 16 | _narrowed(b, F32, F16, "rn"),
)
case(
    "cvt.rz.bf16x2.f32 $0, $1, $2;",
    "bf16x2",
    "f32 f32",
    _FLOAT_PAIRS,
    lambda a, b: _narrowed(a, F32, BF16, "rz") << 16 | _narrowed(b, F32, BF16, "rz"),
)
TF32 = Format(19, 11, 127)
case(
    "cvt.rna.tf32.f32 $0, $1;",
    "tf32",
    "f32",
    [each for each in [*interesting("f32"), *_halfway(F32, TF32)] if not F32.is_nan(each)],
    lambda a: _narrowed(a, F32, TF32, "rna") << 13,
)

for source, target in itertools.product(("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"), repeat=2):
    values = [each & (1 << max(16, BITS[source])) - 1 for each in (*LONGS, 0x80, 0x7F, 0xFF80, 0x8000, 0x12345680)]
    of = _number(source)
    low, high = (-(1 << BITS[target] - 1), (1 << BITS[target] - 1) - 1) if target[0] == "s" else (0, (1 << BITS[target]) - 1)

    def narrow(a, bits=BITS[source], of=of):
        return of(a & (1 << bits) - 1)

    if source != target:
        case(f"cvt.{target}.{source} $0, $1;", target, source, values, lambda a, f=narrow: f(a))
    case(
        f"cvt.sat.{target}.{source} $0, $1;", target, source, values, lambda a, f=narrow, lo=low, hi=high: max(lo, min(hi, f(a)))
    )
# A register that is wider than the result is filled with the sign.
case("cvt.s8.s32 $0, $1;", "s32", "s32", [0x80, 0x17F, 0xFFFFFF01], lambda a: signed(a & 255, 8))
case("cvt.u8.u32 $0, $1;", "u32", "u32", [0x80, 0x17F, 0xFFFFFF01], lambda a: a & 255)

IDS = [f"{each.id}-{number}" for number, each in enumerate(CASES)]


@pytest.fixture(scope="module")
def built():
    """Build what every test needs, once, so that an error of the compiler is met once."""
    harness.build(_module())


@pytest.mark.parametrize("number", range(len(CASES)), ids=IDS)
def test_instruction(number, built):
    each = CASES[number]
    mask = (1 << BITS[each.result]) - 1
    for operands, result in zip(each.inputs, _results(number, each), strict=True):
        expected = each.expected(*operands)
        if expected is None or (each.nan and each.nan.is_nan(expected) and each.nan.is_nan(result)):
            continue
        expected &= mask
        assert result == expected, f"{each.text} of {[hex(value) for value in operands]} is {result:#x}, not {expected:#x}"


# Threads together -------------------------------------------------------------------------------------------------------------


def entry(body, name="kernel", declarations="", parameters=".param .u64 in, .param .u64 out"):
    """Return a module with one kernel: %d0 and %d1 are the arrays, %d2 and %d3 this thread's elements, %r0 its number."""
    start = (
        "ld.param.u64 %d0, [in]; ld.param.u64 %d1, [out]; mov.u32 %r0, %tid.x;"
        "mad.wide.u32 %d2, %r0, 4, %d0; mad.wide.u32 %d3, %r0, 4, %d1;"
    )
    return f"{HEADER}{declarations}\n.visible .entry {name}({parameters}) {{ {REGISTERS}\n{start}\n{body}\nret; }}"


def run_entry(body, given, *, threads=32, out=None, declarations="", **options):
    """Run a kernel of one block on 32-bit numbers, and return what it stored and the outcome."""
    out = np.zeros(threads, np.uint32) if out is None else out
    outcome = harness.run(entry(body, declarations=declarations), "kernel", [given, out], block=(threads,), **options)
    return out, outcome


def stored_by(body, given=None, **options):
    given = np.arange(100, 164, dtype=np.uint32) if given is None else given
    out, outcome = run_entry(body, given, **options)
    assert (outcome.failure, outcome.report) == (0, "")
    return out


def _shuffled(mode, lane, operand, width):
    """Return the lane that __shfl_*_sync reads, as the CUDA guide says, and whether it is in the segment."""
    start = lane - lane % width
    source = {"idx": start + operand % width, "up": lane - operand, "down": lane + operand, "bfly": lane ^ operand}[mode]
    inside = source >= start if mode == "up" else source < start + width
    return (source, True) if inside else (lane, False)


@pytest.mark.covering(2)
@pytest.mark.parametrize("width", [32, 16, 8])
@pytest.mark.parametrize("operand", [0, 1, 5, 9, 31])
@pytest.mark.parametrize("mode", ["idx", "up", "down", "bfly"])
def test_a_shuffle_reads_the_lane_of_its_segment(mode, operand, width, built):
    control = (32 - width) << 8 | (0 if mode == "up" else 31)
    body = (
        f"ld.global.u32 %r1, [%d2]; shfl.sync.{mode}.b32 %r2|%p1, %r1, {operand}, {control}, -1;"
        "selp.u32 %r3, 1000, 0, %p1; add.u32 %r2, %r2, %r3; st.global.u32 [%d3], %r2;"
    )
    expected = [_shuffled(mode, lane, operand, width) for lane in range(32)]
    assert stored_by(body).tolist() == [100 + source + 1000 * inside for source, inside in expected]


_VOTES = {
    "vote.sync.all.pred %p2, %p1, MASK; selp.u32 %r2, 1, 0, %p2;": lambda true, mask: int(true & mask == mask),
    "vote.sync.any.pred %p2, %p1, MASK; selp.u32 %r2, 1, 0, %p2;": lambda true, mask: int(true & mask != 0),
    "vote.sync.uni.pred %p2, %p1, MASK; selp.u32 %r2, 1, 0, %p2;": lambda true, mask: int(true & mask in (0, mask)),
    "vote.sync.ballot.b32 %r2, !%p1, MASK;": lambda true, mask: ~true & mask,
    "redux.sync.add.u32 %r2, %r1, MASK;": lambda true, mask: (true & mask).bit_count(),
    "redux.sync.max.s32 %r2, %r1, MASK;": lambda true, mask: int(true & mask != 0),
    "match.any.sync.b32 %r2, %r1, MASK;": None,
    "match.all.sync.b32 %r2|%p2, %r1, MASK;": lambda true, mask: mask if true & mask in (0, mask) else 0,
}


@pytest.mark.parametrize("text", _VOTES, ids=lambda text: text.split()[0])
@pytest.mark.parametrize("true", [0, FULL, 0x0000FFFF, 0xF0F0F0F1])
def test_a_vote_counts_the_lanes_of_its_mask(text, true, built):
    """The two halves of the warp vote at different places, so that neither waits for the other."""
    low, high = (text.replace("MASK", str(mask)) for mask in (0x0000FFFF, 0xFFFF0000))
    body = (
        "ld.global.u32 %r1, [%d2]; setp.ne.u32 %p1, %r1, 0; setp.lt.u32 %p3, %r0, 16; @%p3 bra LOW;"
        f"{high} bra END; LOW: {low} END: st.global.u32 [%d3], %r2;"
    )
    given = np.array([true >> lane & 1 for lane in range(32)], np.uint32)
    for lane, result in enumerate(stored_by(body, given).tolist()):
        mask = 0x0000FFFF if lane < 16 else 0xFFFF0000
        rule = _VOTES[text]
        assert result == (rule(true, mask) if rule else (true if true >> lane & 1 else ~true) & mask)


def test_activemask_is_the_lanes_that_came_together(built):
    body = (
        "setp.lt.u32 %p1, %r0, 10; @%p1 bra FEW; activemask.b32 %r2; bra END;"
        "FEW: activemask.b32 %r2; END: st.global.u32 [%d3], %r2;"
    )
    assert stored_by(body).tolist() == [0x3FF] * 10 + [FULL & ~0x3FF] * 22


@pytest.mark.parametrize("backwards", [False, True])
def test_a_reducing_barrier_combines_all_threads(backwards, built):
    body = """
    ld.global.u32 %r1, [%d2]; setp.eq.u32 %p1, %r1, 100;
    bar.red.popc.u32 %r2, 1, %p1; bar.red.or.pred %p2, 0, %p1; bar.red.and.pred %p3, 2, 64, %p1;
    selp.u32 %r3, 100, 0, %p2; selp.u32 %r4, 1000, 0, %p3; add.u32 %r2, %r2, %r3; add.u32 %r2, %r2, %r4; st.global.u32 [%d3], %r2;
    """
    assert stored_by(body, threads=64, backwards=backwards).tolist() == [101] * 64
    assert stored_by(body, np.full(64, 100, np.uint32), threads=64, backwards=backwards).tolist() == [1164] * 64


def test_an_arrival_lets_the_waiting_warp_go_on(built):
    body = """
    setp.lt.u32 %p1, %r0, 32; @%p1 bra WAIT;
    mov.u32 %r1, 7; st.shared.u32 [words], %r1; bar.arrive 3, 64; bra END;
    WAIT: bar.sync 3, 64; ld.shared.u32 %r1, [words]; st.global.u32 [%d3], %r1; END:
    """
    out = stored_by(body, threads=64, declarations=".shared .align 4 .b8 words[4];")
    assert out.tolist() == [7] * 32 + [0] * 32


@pytest.mark.parametrize(("backwards", "last"), [(False, 63), (True, 0)])
def test_the_order_of_threads_is_the_one_asked_for(backwards, last, built):
    out = stored_by("st.global.u32 [%d1], %r0;", threads=64, backwards=backwards)
    assert out[0] == last


@pytest.mark.parametrize(("backwards", "last"), [(False, 5), (True, 0)])
def test_the_order_of_blocks_is_the_one_asked_for(backwards, last, built):
    out = stored_by("mov.u32 %r1, %ctaid.x; st.global.u32 [%d1], %r1;", threads=1, grid=(6,), backwards=backwards)
    assert out[0] == last


# Atomic operations ------------------------------------------------------------------------------------------------------------

_ATOMICS = {
    "add.u32": (5, lambda old, x: old + x),
    "min.s32": (0xFFFFFFF0, lambda old, x: min(old, signed(x, 32))),
    "max.u32": (0xFFFFFFF0, lambda old, x: max(old, x)),
    "and.b32": (0x6, lambda old, x: old & x),
    "or.b32": (0x10, lambda old, x: old | x),
    "xor.b32": (0x7, lambda old, x: old ^ x),
    "exch.b32": (9, lambda old, x: x),
    "inc.u32": (3, lambda old, x: 0 if old >= x else old + 1),
    "dec.u32": (2, lambda old, x: x if old == 0 or old > x else old - 1),
}


@pytest.mark.parametrize("space", ["global", "shared", "generic"])
@pytest.mark.parametrize("name", _ATOMICS)
def test_an_atomic_operation_returns_the_old_value_and_stores_the_new(name, space, built):
    operand, rule = _ATOMICS[name]
    kind = "" if space == "generic" else f".{space}"
    address = "words" if space == "shared" else "%d0"
    body = f"""
    ld.global.u32 %r1, [%d0]; st.shared.u32 [words], %r1;
    atom{kind}.{name} %r2, [{address}], {operand}; red{kind}.{name} [{address}], {operand};
    ld{kind}.u32 %r3, [{address}]; st.global.u32 [%d1], %r2; st.global.u32 [%d1+4], %r3;
    """
    given = np.array([3], np.uint32)
    out = stored_by(body, given, threads=1, out=np.zeros(2, np.uint32), declarations=".shared .align 4 .b8 words[4];")
    assert out.tolist() == [3, rule(rule(3, operand), operand) & FULL]


def test_a_compare_and_swap_stores_only_where_it_finds_what_it_expects(built):
    body = "atom.global.cas.b32 %r1, [%d1], 0, 7; atom.global.cas.b32 %r1, [%d1], 0, 9; st.global.u32 [%d1+4], %r1;"
    assert stored_by(body, threads=1, out=np.zeros(2, np.uint32)).tolist() == [7, 7]


# Tensor cores -----------------------------------------------------------------------------------------------------------------

_FRAGMENTS = {"f16": (2, 16), "bf16": (2, 16), "tf32": (1, 32)}


def _matrix_bits(values, kind):
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16).astype(np.uint32)
    bits = values.astype(np.float32).view(np.uint32)
    return bits >> 16 if kind == "bf16" else bits


@pytest.mark.parametrize(
    ("shape", "kind", "depth"),
    [
        ("m16n8k16", "f16", 16),
        ("m16n8k16", "bf16", 16),
        ("m16n8k8", "f16", 8),
        ("m16n8k8", "bf16", 8),
        ("m16n8k8", "tf32", 8),
        ("m16n8k4", "tf32", 4),
    ],
)
def test_a_product_of_matrices_is_that_of_numpy(shape, kind, depth, built):
    """The layouts are those of the PTX ISA's figures, written here element by element."""
    draw = np.random.default_rng(1)
    a = draw.permutation(16 * depth).reshape(16, depth) - 100.0
    b = draw.permutation(depth * 8).reshape(depth, 8) - 50.0
    c = draw.permutation(16 * 8).reshape(16, 8) * 3.0
    width, bits = _FRAGMENTS[kind]
    a_bits, b_bits = _matrix_bits(a, kind), _matrix_bits(b, kind)
    fragments = np.zeros((32, 12), np.uint32)
    a_count = depth * 16 // 32 // width
    for lane in range(32):
        group, member = divmod(lane, 4)
        for register in range(a_count):
            for i in range(width):
                row, column = group + 8 * (register % 2), member * width + i + 4 * width * (register // 2)
                fragments[lane, register] |= a_bits[row, column] << bits * i
        for register in range(a_count // 2):
            for i in range(width):
                fragments[lane, 4 + register] |= b_bits[member * width + i + 4 * width * register, group] << bits * i
        for register in range(4):
            fragments[lane, 8 + register] = f32(c[group + 8 * (register // 2), 2 * member + register % 2])
    loads = "mul.wide.u32 %d4, %r0, 48; add.u64 %d4, %d4, %d0; mul.wide.u32 %d5, %r0, 16; add.u64 %d5, %d5, %d1;"
    loads += "".join(f"ld.global.u32 %r{10 + n}, [%d4+{4 * n}];" for n in range(8))
    loads += "ld.global.v4.f32 {%f0, %f1, %f2, %f3}, [%d4+32];"
    left = ", ".join(f"%r{10 + n}" for n in range(a_count))
    right = ", ".join(f"%r{14 + n}" for n in range(a_count // 2))
    sums = "{%f0, %f1, %f2, %f3}"
    product = f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 {sums}, {{{left}}}, {{{right}}}, {sums};"
    body = f"{loads} {product} st.global.v4.f32 [%d5], {sums};"
    out = stored_by(body, fragments, out=np.zeros((32, 4), np.float32))
    expected = a @ b + c
    for lane in range(32):
        group, member = divmod(lane, 4)
        for register in range(4):
            assert out[lane, register] == expected[group + 8 * (register // 2), 2 * member + register % 2]


@pytest.mark.parametrize("trans", ["", ".trans"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_spreads_the_rows_of_matrices(count, trans, built):
    matrices = np.arange(count * 64, dtype=np.uint16).reshape(count, 8, 8)
    given = matrices.reshape(-1).view(np.uint32)
    registers = ", ".join(f"%r{10 + n}" for n in range(count))
    body = f"""
    setp.ge.u32 %p1, %r0, {count * 8}; @%p1 bra FILLED;
    mad.wide.u32 %d4, %r0, 12, %d2; ld.global.v4.u32 {{%r1, %r2, %r3, %r4}}, [%d4];
    mul.wide.u32 %d5, %r0, 16; mov.u64 %d6, words; add.u64 %d5, %d5, %d6; st.shared.v4.u32 [%d5], {{%r1, %r2, %r3, %r4}};
    FILLED: bar.sync 0; and.b32 %r1, %r0, {count * 8 - 1}; shl.b32 %r1, %r1, 4; mov.u32 %r2, words; add.u32 %r1, %r1, %r2;
    ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{registers}}}, [%r1];
    mul.wide.u32 %d5, %r0, {4 * count}; add.u64 %d5, %d5, %d1;
    """ + "".join(f"st.global.u32 [%d5+{4 * n}], %r{10 + n};" for n in range(count))
    out = stored_by(body, given, out=np.zeros((32, count), np.uint32), declarations=".shared .align 16 .b8 words[512];")
    turned = matrices.transpose(0, 2, 1) if trans else matrices
    expected = np.ascontiguousarray(turned).view(np.uint32).reshape(count, 32).T
    np.testing.assert_array_equal(out, expected)


# Memory -----------------------------------------------------------------------------------------------------------------------

_COPY = """
    mov.u32 %r1, words; mov.u32 %r2, 77; st.shared.u32 [words], %r2; st.shared.u32 [words+4], %r2;
    cp.async.ca.shared.global [%r1], [%d0], 8{taken}; cp.async.commit_group; {wait}
    ld.shared.u32 %r3, [words]; ld.shared.u32 %r4, [words+4]; st.global.u32 [%d1], %r3; st.global.u32 [%d1+4], %r4;
"""


@pytest.mark.parametrize(
    ("taken", "wait", "expected", "is_early"),
    [
        ("", "cp.async.wait_group 0;", [5, 6], False),
        ("", "cp.async.wait_all;", [5, 6], False),
        (", 4", "cp.async.wait_group 0;", [5, 0], False),
        (", 0", "cp.async.wait_group 0;", [0, 0], False),
        ("", "cp.async.wait_group 1;", [77, 77], True),
        ("", "", [77, 77], True),
    ],
)
def test_an_asynchronous_copy_lands_at_its_wait(taken, wait, expected, is_early, built):
    given = np.array([5, 6], np.uint32)
    body = _COPY.format(taken=taken, wait=wait)
    out, outcome = run_entry(body, given, threads=1, out=np.zeros(2, np.uint32), declarations=".shared .align 8 .b8 words[8];")
    assert out.tolist() == expected
    assert outcome.failure == 0
    assert ("asynchronous copy" in outcome.report) == is_early


@pytest.mark.parametrize(
    ("source", "failure", "said"),
    [("%d0", 0, "ends with copies that were not waited for"), ("%d0+4096", 700, "loads 8 bytes at global address")],
    ids=["a good source", "a source outside"],
)
@pytest.mark.parametrize("commit", ["", "cp.async.commit_group;"], ids=["open", "committed"])
def test_a_copy_that_nobody_waits_for_is_checked_and_reported_at_the_end(commit, source, failure, said, built):
    body = f"mov.u32 %r1, words; cp.async.ca.shared.global [%r1], [{source}], 8; {commit}"
    _, outcome = run_entry(body, np.zeros(2, np.uint32), threads=1, declarations=".shared .align 8 .b8 words[8];")
    assert outcome.failure == failure
    assert said in outcome.report


_MEMORY_FAULTS = {
    "global load outside": ("ld.global.u32 %r1, [%d0+4096];", 700, "loads 4 bytes at global address"),
    "misaligned global": ("st.global.u64 [%d1+124], %d1;", 716, "no multiple of that"),
    "misaligned vector": ("ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%d0+4];", 716, "loads 16 bytes"),
    "misaligned shared": ("ld.shared.u32 %r1, [words+2];", 716, "shared address 0x2"),
    "shared outside": ("st.shared.u32 [words+16], %r0;", 700, "the block has 16 bytes"),
    "null pointer": ("mov.u64 %d5, 0; ld.u32 %r1, [%d5];", 700, "global address 0,"),
    "misaligned row": (
        "mov.u32 %r1, 8; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r1];",
        716,
        "a row of a matrix at shared address 0x8",
    ),
    "trap": ("trap;", 719, "trap"),
}


@pytest.mark.parametrize("name", _MEMORY_FAULTS)
def test_a_wrong_access_ends_the_launch_and_says_where(name, built):
    text, failure, said = _MEMORY_FAULTS[name]
    given, out = np.zeros(32, np.uint32), np.zeros(32, np.uint32)
    _, outcome = run_entry(text, given, out=out, declarations=".shared .align 16 .b8 words[16];")
    assert outcome.failure == failure
    assert said in outcome.report
    assert "Thread (0, 0, 0) of block (0, 0, 0) of kernel kernel" in outcome.report


def test_a_load_of_what_nobody_stored_is_reported(built):
    given = np.zeros(32, np.uint32)
    _, outcome = run_entry("ld.shared.u32 %r1, [words];", given, declarations=".shared .align 16 .b8 words[16];")
    assert (outcome.failure, "where nobody of the block has stored" in outcome.report) == (0, True)
    _, outcome = run_entry("ld.global.u32 %r1, [%d2];", given, unset=[given])
    assert (outcome.failure, "where nobody has stored" in outcome.report) == (0, True)


def test_the_padding_after_what_was_stored_may_be_loaded_with_it(built):
    given = np.zeros(32, np.uint32)
    text = "st.shared.u32 [words], %r0; ld.shared.v4.u32 {%r1, %r2, %r3, %r4}, [words];"
    _, outcome = run_entry(text, given, declarations=".shared .align 16 .b8 words[16];")
    assert (outcome.failure, outcome.report) == (0, "")


def test_generic_addresses_reach_every_space(built):
    body = """
    .local .align 8 .b8 own[16];
    mov.u64 %d4, words; cvta.shared.u64 %d4, %d4; mov.u64 %d5, own; cvta.local.u64 %d6, %d5;
    mov.u32 %r1, 3; st.u32 [%d4], %r1; mov.u32 %r2, 4; st.u32 [%d6+8], %r2; ld.shared.u32 %r1, [words]; ld.local.u32 %r2, [%d5+8];
    isspacep.shared %p1, %d4; isspacep.shared %p2, %d0; isspacep.local %p3, %d6;
    isspacep.global %p4, %d0; isspacep.global %p5, %d4;
    selp.u32 %r3, 1, 0, %p1; selp.u32 %r4, 10, 0, %p2; selp.u32 %r5, 100, 0, %p3; selp.u32 %r6, 1000, 0, %p4;
    selp.u32 %r7, 10000, 0, %p5; add.u32 %r3, %r3, %r4; add.u32 %r3, %r3, %r5; add.u32 %r3, %r3, %r6; add.u32 %r3, %r3, %r7;
    cvta.to.shared.u64 %d7, %d4; cvt.u32.u64 %r8, %d7;
    st.v4.u32 [%d1], {%r1, %r2, %r3, %r8};
    """
    out = stored_by(
        body, threads=1, out=np.zeros(4, np.uint32), declarations=".shared .align 8 .b8 pad[8]; .shared .align 4 .b8 words[4];"
    )
    assert out.tolist() == [3, 4, 1101, 8]


def test_dynamic_shared_memory_begins_after_the_static(built):
    body = "mov.u32 %r1, more; mov.u32 %r2, %dynamic_smem_size; st.shared.u32 [more+28], %r1; st.global.v2.u32 [%d1], {%r1, %r2};"
    declarations = ".shared .align 4 .b8 words[20]; .extern .shared .align 16 .b8 more[];"
    out = stored_by(body, threads=1, shared=32, out=np.zeros(2, np.uint32), declarations=declarations)
    assert out.tolist() == [32, 32]


# Control ----------------------------------------------------------------------------------------------------------------------


def test_a_function_takes_parameters_and_returns_a_value(built):
    function = """
    .func (.param .b64 value) weigh(.param .b32 left, .param .align 8 .b8 right[16]) {
        .reg .b32 %r<4>; .reg .b64 %d<4>;
        ld.param.u32 %r1, [left+0]; ld.param.u32 %r2, [right+8]; mul.wide.u32 %d1, %r1, %r2; st.param.b64 [value+0], %d1; ret;
    }
    """
    body = """
    ld.global.u32 %r1, [%d2];
    { .param .b32 first; st.param.b32 [first+0], %r1; .param .align 8 .b8 second[16]; st.param.b32 [second+8], %r0;
      .param .b64 result; call.uni (result), weigh, (first, second); ld.param.b64 %d7, [result+0]; }
    cvt.u32.u64 %r3, %d7; st.global.u32 [%d3], %r3;
    """
    assert stored_by(body, declarations=function).tolist() == [(100 + n) * n for n in range(32)]


@pytest.mark.parametrize("threads", [1, 64])
def test_a_thread_may_have_as_large_an_array_as_on_a_device(threads, built):
    body = """
    .local .align 4 .b8 own[524288]; mov.u64 %d4, own; mul.wide.u32 %d5, %r0, 4; add.u64 %d4, %d4, %d5;
    st.local.u32 [%d4+524000], %r0; st.local.u32 [%d4], %r0; ld.local.u32 %r1, [%d4+524000]; st.global.u32 [%d3], %r1;
    """
    assert stored_by(body, threads=threads).tolist() == list(range(threads))


def test_an_array_that_no_stack_has_room_for_ends_the_launch(built):
    body = ".local .align 4 .b8 own[4000000]; mov.u64 %d4, own; st.local.u32 [%d4], %r0;"
    _, outcome = run_entry(body, np.zeros(32, np.uint32))
    assert outcome.failure == 719
    assert "bytes of local arrays, for which its stack has no room" in outcome.report


def test_a_recursion_without_an_end_ends_the_launch(built):
    function = ".func again() { .local .align 4 .b8 own[64]; call.uni again; ret; }"
    _, outcome = run_entry("call.uni again;", np.zeros(32, np.uint32), declarations=function)
    assert outcome.failure == 719
    assert "its stack has no room" in outcome.report


def test_an_indexed_branch_goes_to_the_label_of_the_index(built):
    body = """
    and.b32 %r1, %r0, 3; TABLE: .branchtargets ONE, TWO, ONE, THREE; brx.idx %r1, TABLE;
    ONE: mov.u32 %r2, 1; bra END; TWO: mov.u32 %r2, 2; bra END; THREE: mov.u32 %r2, 3; END: st.global.u32 [%d3], %r2;
    """
    assert stored_by(body).tolist() == [1, 2, 1, 3] * 8


def test_a_thread_that_spins_lets_the_others_go_on(built):
    """The first thread waits for what the last one stores, without a barrier between them."""
    body = """
    setp.eq.u32 %p1, %r0, 0; @%p1 bra SPIN; mov.u32 %r1, 1; st.volatile.global.u32 [%d1+4], %r1; bra END;
    SPIN: ld.volatile.global.u32 %r2, [%d1+4]; setp.eq.u32 %p2, %r2, 0; @%p2 bra SPIN; st.global.u32 [%d1], %r2; END:
    """
    assert stored_by(body, threads=2).tolist() == [1, 1]


_DEADLOCKS = {
    "a barrier that one thread misses": (
        "setp.eq.u32 %p1, %r0, 3; @%p1 bra OTHER; bar.sync 0; bra END; OTHER: bar.sync 1; END:",
        ["can go on", "barrier 0", "barrier 1", "(3, 0, 0)"],
    ),
    "a lane that is not in its mask": ("bar.warp.sync 0x7;", ["without being in it"]),
    "lanes at different shuffles": (
        "setp.lt.u32 %p1, %r0, 16; @%p1 bra LOW; shfl.sync.down.b32 %r1, %r0, 1, 31, -1; bra END;"
        "LOW: shfl.sync.up.b32 %r1, %r0, 1, 0, -1; END:",
        ["shfl.up", "shfl.down", "waits for it"],
    ),
    "a lane that waits at a barrier instead": (
        "setp.eq.u32 %p1, %r0, 0; @%p1 bra ONE; bar.warp.sync -1; bra END; ONE: bar.sync 0; bar.warp.sync -1; END:",
        ["can go on", "barrier 0", "bar.warp.sync for the lanes 0xffffffff"],
    ),
    "different numbers of threads": (
        "setp.lt.u32 %p1, %r0, 1; @%p1 bra ONE; bar.sync 0, 64; ONE: bar.sync 0, 32;",
        ["barrier 0 of 64 threads, at which others have arrived with 32"],
    ),
    "a product without all lanes": (
        "setp.eq.u32 %p1, %r0, 0; @%p1 exit; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r1}, [words];",
        ["needs all 32 lanes"],
    ),
}


@pytest.mark.parametrize("name", _DEADLOCKS)
def test_threads_that_wait_for_ever_are_reported(name, built):
    text, said = _DEADLOCKS[name]
    _, outcome = run_entry(text, np.zeros(32, np.uint32), declarations=".shared .align 16 .b8 words[16];")
    assert outcome.failure == 719
    for each in said:
        assert each in outcome.report


_PRODUCT = "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f0, %f1, %f2, %f3}, {%r1, %r1}, {%r1}, {%f0, %f1, %f2, %f3};"
_MATRIX = "mov.u32 %r1, words; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r2}, [%r1];"


_ELSEWHERE = "another instruction"
_APART = {
    "aligned barriers": ("bar.sync 0;", _ELSEWHERE),
    "barriers that say they are aligned": ("barrier.sync.aligned 0;", _ELSEWHERE),
    "aligned reductions": ("bar.red.popc.u32 %r1, 0, 1;", _ELSEWHERE),
    "products": (_PRODUCT, "of another place in the kernel"),
    "matrices": (_MATRIX, "of another place in the kernel"),
}


def _at_two_places(text):
    return f"setp.lt.u32 %p1, %r0, 16; @%p1 bra LOW; {text} bra END; LOW: {text} END:"


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("name", _APART)
def test_lanes_of_a_warp_cannot_be_at_two_places_of_the_kernel(name, backwards, built):
    text, said = _APART[name]
    declarations = ".shared .align 16 .b8 words[128];"
    _, outcome = run_entry(_at_two_places(text), np.zeros(32, np.uint32), declarations=declarations, backwards=backwards)
    assert outcome.failure == 719
    assert said in outcome.report


def test_warps_may_be_at_two_places_and_so_may_the_lanes_at_a_barrier_that_is_not_aligned(built):
    by_warp = _at_two_places("bar.sync 0;").replace("%r0, 16;", "%r0, 32;")
    assert stored_by(f"{by_warp} st.global.u32 [%d3], %r0;", threads=64).tolist() == list(range(64))
    assert stored_by(f"{_at_two_places('barrier.sync 0;')} st.global.u32 [%d3], %r0;").tolist() == list(range(32))


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("text", [_PRODUCT, _MATRIX], ids=["mma", "ldmatrix"])
def test_half_a_warp_cannot_execute_what_needs_all_lanes(text, backwards, built):
    branch = f"setp.ge.u32 %p1, %r0, 16; @%p1 bra END; {text} END:"
    declarations = ".shared .align 16 .b8 words[128];"
    _, outcome = run_entry(branch, np.zeros(32, np.uint32), declarations=declarations, backwards=backwards)
    assert outcome.failure == 719
    assert "needs all 32 lanes of a warp, but only the lanes" in outcome.report


def test_threads_that_have_ended_are_not_waited_for(built):
    body = (
        "setp.lt.u32 %p1, %r0, 5; @%p1 ret; bar.sync 0; bar.warp.sync -1;"
        "vote.sync.ballot.b32 %r1, !%p1, -1; st.global.u32 [%d3], %r1;"
    )
    assert stored_by(body).tolist() == [0] * 5 + [FULL & ~31] * 27


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("tex.2d.v4.f32.s32 {%f0, %f1, %f2, %f3}, [t, {%r0, %r1}];", "the instruction tex is not known"),
        ("add.wrong.u32 %r0, %r1, %r2;", ".wrong of add.wrong.u32 is not known"),
        ("add.u32 %r0, %r1;", "the operands are not as expected"),
        ("add.u32 %r0, %r1, %nothing;", "%nothing is not declared"),
        ("bra NOWHERE;", "the label NOWHERE is not declared"),
        ("cvt.rn.satfinite.e4m3x2.f32 %h0, %f1, %f2;", "cvt.rn.satfinite.e4m3x2.f32"),
        ("call.uni vprintf, (%d0);", "vprintf"),
    ],
)
def test_an_unknown_statement_is_refused_with_its_line(statement, said):
    text = f"{HEADER}.visible .entry kernel() {{\n{REGISTERS}\n// a comment\n{statement}\nret; }}"
    with pytest.raises(TranslationError) as caught:
        translate(text)
    assert said in str(caught.value)
    assert f"line 7 of the PTX, `{statement[:-1]}`" in str(caught.value)
