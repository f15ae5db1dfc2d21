"""The table of instructions: a rule for each root opcode, and opcodes taken apart.

A rule takes what it knows from an `Opcode` and returns the function that writes the C++ of an instruction. What no rule has taken
is unknown, and the instruction is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from ..errors import UntranslatableError
from ..scope import Scope
from ..types import TYPES, Type

Emit = Callable[..., str]  # of the scope and the operands
RULES: dict[str, Callable[[Opcode], Emit]] = {}


class Opcode:
    """An opcode, such as `fma.rn.ftz.f32`, of which a rule takes the parts that it knows."""

    def __init__(self, text: str):
        self.text = text
        self.root, *self.parts = text.split(".")

    def flag(self, name: str) -> bool:
        """Take a part if it is there, and say whether it was."""
        if name in self.parts:
            self.parts.remove(name)
            return True
        return False

    def choice(self, *names: str, default: str | None = None) -> str:
        """Take the one of these parts that is there."""
        for part in self.parts:
            if part in names:
                self.parts.remove(part)
                return part
        if default is None:
            raise UntranslatableError(f"{self.text} needs one of .{', .'.join(names)}")
        return default

    def skip(self, *names: str) -> None:
        """Take parts that change nothing here."""
        self.parts = [part for part in self.parts if part not in names]

    def type(self, *allowed: str) -> Type:
        """Take the last part, which is a type, and one of those allowed where any are named."""
        name = self.parts.pop() if self.parts else ""
        if name not in TYPES or (allowed and name not in allowed):
            raise UntranslatableError(f"the type of {self.text} is not known here")
        return TYPES[name]


def rule(*roots: str):
    """Enter a rule for these root opcodes."""

    def enter(function: Callable[[Opcode], Emit]) -> Callable[[Opcode], Emit]:
        for root in roots:
            if root in RULES:
                raise ValueError(f"two rules for {root}")
            RULES[root] = function
        return function

    return enter


@cache
def emit_of(text: str) -> Emit:
    """Return the function that writes the instructions of an opcode."""
    opcode = Opcode(text)
    if opcode.root not in RULES:
        raise UntranslatableError(f"the instruction {opcode.root} is not known")
    emit = RULES[opcode.root](opcode)
    if opcode.parts:
        raise UntranslatableError(f".{' and .'.join(opcode.parts)} of {text} is not known")
    return emit


__all__ = ["RULES", "Emit", "Opcode", "Scope", "emit_of", "rule"]
