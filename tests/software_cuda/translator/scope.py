"""The names that a statement can use, and operands as C++ expressions.

A scope knows the registers, variables, parameters and labels of one function. A block inside the function may declare names
again; they hide those outside until the block ends.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from .errors import UntranslatableError
from .types import TYPES, Type

_UNSIGNED_64 = TYPES["u64"]
_UNSIGNED_32 = TYPES["u32"]

_DIMENSIONS = ("tid", "ntid", "ctaid", "nctaid")
SPECIAL_REGISTERS = {
    **{f"%{name}.{axis}": f"t.{name}[{index}]" for name in _DIMENSIONS for index, axis in enumerate("xyz")},
    "%laneid": "lane_of(t)",
    "%warpid": "(t.linear >> 5)",
    "%nwarpid": "warps_of_block(t)",
    "%lanemask_eq": "(1u << lane_of(t))",
    "%lanemask_lt": "((1u << lane_of(t)) - 1u)",
    "%lanemask_le": "((2u << lane_of(t)) - 1u)",
    "%lanemask_gt": "~((2u << lane_of(t)) - 1u)",
    "%lanemask_ge": "~((1u << lane_of(t)) - 1u)",
    "%smid": "0u",
    "%nsmid": "1u",
    "%gridid": "0ull",
    "%clock": "(u32)nanoseconds()",
    "%clock_hi": "(u32)(nanoseconds() >> 32)",
    "%clock64": "nanoseconds()",
    "%globaltimer": "nanoseconds()",
    "%globaltimer_lo": "(u32)nanoseconds()",
    "%globaltimer_hi": "(u32)(nanoseconds() >> 32)",
    "%dynamic_smem_size": "dynamic_shared_of(t)",
    "%total_smem_size": "total_shared_of(t)",
    "WARP_SZ": "32u",
}

_INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$")
_BITS_OF_FLOAT = re.compile(r"0[fF]([0-9a-fA-F]{8})$")
_BITS_OF_DOUBLE = re.compile(r"0[dD]([0-9a-fA-F]{16})$")
_WITH_OFFSET = re.compile(r"([\w$%.]+)\s*\+\s*(-?\w+)$")
_UNSUITABLE = re.compile(r"[^A-Za-z0-9_]")


@dataclass(slots=True, frozen=True)
class Register:
    cpp: str
    storage: str  # its type in C++


@dataclass(slots=True, frozen=True)
class Address:
    """A variable in memory, by its address in its own space."""

    cpp: str


@dataclass(slots=True, frozen=True)
class Bytes:
    """A parameter, by the pointer to where its bytes lie."""

    cpp: str


class Scope:
    def __init__(self, addresses: dict[str, Address]):
        self.symbols: dict[str, Register | Address | Bytes] = dict(addresses)
        self.labels: dict[str, str] = {}
        self.targets: dict[str, list[str]] = {}
        self.functions: dict[str, str] = {}  # those that a call may name, and their names in C++
        self.used: dict[str, str] = {}  # registers that occur in a statement, and their types in C++
        self.placed: set[str] = set()  # labels that lie before the statement that is written
        self._outside: list[tuple] = []
        self._count = 0
        self._reads: dict[tuple[str, str], str] = {}

    def open(self) -> None:
        self._outside.append((self.symbols, self.labels, self.targets))
        self.symbols, self.labels, self.targets = dict(self.symbols), dict(self.labels), dict(self.targets)
        self._reads = {}

    def close(self) -> None:
        self.symbols, self.labels, self.targets = self._outside.pop()
        self._reads = {}

    def cpp_name(self, name: str) -> str:
        """Return a name for C++ that nothing else has: the underscore keeps it apart from ours and from keywords."""
        plain = _UNSUITABLE.sub("_", name.lstrip("%$"))
        if not self._outside:
            return f"{plain}_"
        self._count += 1
        return f"{plain}_in{self._count}"

    def add_register(self, name: str, kind: Type) -> None:
        self.symbols[name] = Register(self.cpp_name(name), kind.storage)

    def add_label(self, name: str) -> None:
        self.labels[name] = self.cpp_name(name)

    # Operands -----------------------------------------------------------------------------------------------------------------

    def read(self, operand: str, kind: Type) -> str:
        """Return an expression of the type's C++ type for an operand that is read."""
        key = (operand, kind.cpp)
        found = self._reads.get(key)
        if found is None:
            found = self._reads[key] = self._read(operand, kind)
        return found

    def _read(self, operand: str, kind: Type) -> str:
        symbol = self.symbols.get(operand)
        if type(symbol) is Register:
            return self._converted(symbol, kind.cpp)
        if operand in SPECIAL_REGISTERS:
            return f"({kind.cpp})({SPECIAL_REGISTERS[operand]})"
        if (literal := _literal(operand, kind)) is not None:
            return literal
        return f"({kind.cpp})({self._address_of_symbol(operand)})"

    def predicate(self, operand: str) -> str:
        """Return a condition, for `%p1` or `!%p1`."""
        name = operand.lstrip("!").strip()
        read = self.read(name, TYPES["pred"])
        return f"!{read}" if operand.startswith("!") else read

    def register(self, operand: str) -> Register:
        symbol = self.symbols.get(operand)
        if type(symbol) is not Register:
            raise UntranslatableError(f"{operand} is not a register")
        self.used[symbol.cpp] = symbol.storage
        return symbol

    def _converted(self, register: Register, want: str) -> str:
        self.used[register.cpp] = register.storage
        return converted(register.cpp, register.storage, want)

    def write(self, operand: str, kind: Type, value: str) -> str:
        """Return the statement that puts a value of the type's C++ type into a register, or `_` that takes nothing."""
        if operand == "_":
            return f"(void)({value});"
        register = self.register(operand)
        if register.storage == kind.cpp:
            return f"{register.cpp} = {value};"
        return f"{register.cpp} = {converted(f'({value})', kind.cpp, register.storage)};"

    def elements(self, operand: str) -> list[str]:
        """Return the parts of `{%r1, %r2}`, or a scalar operand alone."""
        return [each.strip() for each in operand[1:-1].split(",")] if operand.startswith("{") else [operand]

    def address(self, operand: str) -> str:
        """Return the address that `[%rd1+4]` names, as an expression of u64."""
        base, offset = self._base_and_offset(operand)
        symbol = self.symbols.get(base)
        if type(symbol) is Register:
            expression = self._converted(symbol, "u64")
        elif _INTEGER.match(base):
            expression = f"(u64){base.rstrip('U')}ull"
        else:
            expression = self._address_of_symbol(base)
        return f"{expression} + {offset}" if offset else expression

    def parameter(self, operand: str) -> str:
        """Return the pointer to the byte of a parameter that `[name+4]` names."""
        base, offset = self._base_and_offset(operand)
        symbol = self.symbols.get(base)
        if type(symbol) is Bytes:
            return f"{symbol.cpp} + {offset}" if offset else symbol.cpp
        if type(symbol) is Register:  # the address of a parameter that was moved into a register
            return f"(u8*)({self._converted(symbol, 'u64')} + {offset})"
        raise UntranslatableError(f"{base} is not a parameter")

    def _base_and_offset(self, operand: str) -> tuple[str, int]:
        if operand[:1] != "[":
            raise UntranslatableError(f"{operand} is not an address in brackets")
        inside = operand[1:-1].strip()
        if found := _WITH_OFFSET.match(inside):
            return found[1], _integer(found[2])
        return inside, 0

    def _address_of_symbol(self, operand: str) -> str:
        found = _WITH_OFFSET.match(operand)
        name, offset = (found[1], _integer(found[2])) if found else (operand, 0)
        symbol = self.symbols.get(name)
        if type(symbol) is Address:
            return f"({symbol.cpp} + {offset})" if offset else symbol.cpp
        if type(symbol) is Bytes:
            return f"((u64)({symbol.cpp}) + {offset})"
        raise UntranslatableError(f"{name} is not declared")

    def label(self, name: str) -> str:
        try:
            return self.labels[name]
        except KeyError:
            raise UntranslatableError(f"the label {name} is not declared") from None


_BITS = {"float": "u32", "double": "u64"}


def converted(expression: str, have: str, want: str) -> str:
    """Return the expression as another C++ type: the bits of a floating-point register, else the low bits of an integer."""
    if have == want:
        return expression
    if have in _BITS:
        return converted(f"__builtin_bit_cast({_BITS[have]}, {expression})", _BITS[have], want)
    if want in _BITS:
        return f"__builtin_bit_cast({want}, {converted(expression, have, _BITS[want])})"
    return f"({want}){expression}"


def _integer(text: str) -> int:
    return int(text.rstrip("U"), 0) if not re.match(r"-?0\d+$", text) else int(text, 8)


def _literal(operand: str, kind: Type) -> str | None:
    if found := _BITS_OF_FLOAT.match(operand):
        return _float_literal(int(found[1], 16), 32, kind)
    if found := _BITS_OF_DOUBLE.match(operand):
        return _float_literal(int(found[1], 16), 64, kind)
    if _INTEGER.match(operand):
        return integer_literal(_integer(operand), kind)
    return None


def _float_literal(bits: int, width: int, kind: Type) -> str:
    if kind.cpp == "float" and width == 64:  # a constant of a double where a float is wanted is rounded
        return f"(float){_float_literal(bits, 64, TYPES['f64'])}"
    if kind.cpp == "double" and width == 32:
        return f"(double){_float_literal(bits, 32, TYPES['f32'])}"
    if kind.cpp not in _BITS:
        return integer_literal(bits, kind)
    value = struct.unpack("<d", struct.pack("<Q", bits))[0] if width == 64 else struct.unpack("<f", struct.pack("<I", bits))[0]
    if value != value or value in (float("inf"), float("-inf")):
        return f"__builtin_bit_cast({kind.cpp}, {integer_literal(bits, _UNSIGNED_64 if width == 64 else _UNSIGNED_32)})"
    return f"{value.hex()}{'f' if kind.cpp == 'float' else ''}"


def integer_literal(value: int, kind: Type) -> str:
    if kind.cpp == "bool":
        return "true" if value else "false"
    if kind.cpp in _BITS:  # an integer constant is the bits of a floating-point operand
        return f"__builtin_bit_cast({kind.cpp}, {integer_literal(value, _UNSIGNED_64 if kind.bits == 64 else _UNSIGNED_32)})"
    value &= (1 << kind.bits) - 1
    if kind.bits < 32 or kind.cpp == "u128":
        return f"({kind.cpp}){value}"
    suffix = "u" if kind.bits == 32 else "ull"
    return f"({kind.cpp}){value}{suffix}" if kind.is_signed else f"{value}{suffix}"
