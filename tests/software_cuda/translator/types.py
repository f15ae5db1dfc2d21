"""The types of PTX and what stands for them in C++.

A register is stored as an unsigned integer of its width, or as a float or double. Half-precision values are bits in a u16.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Type:
    name: str
    bits: int
    cpp: str  # the type in which instructions compute
    storage: str  # the type of a register

    @property
    def bytes(self) -> int:
        return self.bits // 8

    @property
    def is_float(self) -> bool:
        """Return whether values are floating-point numbers, of any width."""
        return self.name in ("f16", "bf16", "f32", "f64")

    @property
    def is_half(self) -> bool:
        return self.name in ("f16", "bf16")

    @property
    def is_signed(self) -> bool:
        return self.name[0] == "s"


def _integers() -> list[Type]:
    letters = {"b": "u", "u": "u", "s": "s"}
    return [Type(f"{a}{n}", n, f"{cpp}{n}", f"u{n}") for a, cpp in letters.items() for n in (8, 16, 32, 64)]


TYPES = {
    each.name: each
    for each in (
        Type("pred", 1, "bool", "bool"),
        *_integers(),
        Type("b128", 128, "u128", "u128"),
        Type("f16", 16, "u16", "u16"),
        Type("bf16", 16, "u16", "u16"),
        Type("f16x2", 32, "u32", "u32"),
        Type("bf16x2", 32, "u32", "u32"),
        Type("tf32", 32, "u32", "u32"),
        Type("f32", 32, "float", "float"),
        Type("f64", 64, "double", "double"),
    )
}

UNSIGNED = {n: TYPES[f"u{n}"] for n in (8, 16, 32, 64)}
SIGNED = {n: TYPES[f"s{n}"] for n in (8, 16, 32, 64)}
