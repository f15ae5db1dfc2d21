"""Rules of branches, calls, ends and waits of a single thread."""

from __future__ import annotations

from ..errors import UntranslatableError
from ..scope import Scope
from ..types import TYPES
from .table import Emit, Opcode, rule


def _jump(scope: Scope, label: str) -> str:
    """Return a jump; a jump back is counted, so that a thread that spins lets others go on, and an endless loop is found."""
    name = scope.label(label)
    return f"{{ if (--t.patience == 0) rest(t); goto {name}; }}" if name in scope.placed else f"goto {name};"


@rule("bra")
def bra(opcode: Opcode) -> Emit:
    """Go on at the label."""
    opcode.skip("uni")
    return lambda scope, label: _jump(scope, label)


@rule("brx")
def brx(opcode: Opcode) -> Emit:
    """Go on at the label that the index chooses."""
    opcode.choice("idx")
    opcode.skip("uni")

    def emit(scope: Scope, index: str, targets: str) -> str:
        if targets not in scope.targets:
            raise UntranslatableError(f"the targets {targets} are not declared")
        cases = [f"case {number}: {_jump(scope, label)}" for number, label in enumerate(scope.targets[targets])]
        return f"switch ({scope.read(index, TYPES['u32'])}) {{ {' '.join(cases)} }}"

    return emit


@rule("call")
def call(opcode: Opcode) -> Emit:
    """Run a function, which takes its parameters and leaves its result in parameter space."""
    opcode.skip("uni")

    def emit(scope: Scope, *operands: str) -> str:
        results, (name, *parameters) = _split_call(operands)
        if name == "__assertfail":
            return "assertion_failed(t);"
        if name not in scope.functions:
            raise UntranslatableError(f"the function {name} is not defined in the module")
        pointers = [scope.parameter(f"[{each}]") for each in (*results, *parameters)]
        return f"{scope.functions[name]}({', '.join(['t', 'globals', *pointers])});"

    return emit


def _split_call(operands: tuple[str, ...]) -> tuple[list[str], list[str]]:
    results = _names(operands[0]) if operands[0].startswith("(") else []
    rest = operands[1:] if results else operands
    parameters = _names(rest[1]) if len(rest) > 1 else []
    return results, [rest[0], *parameters]


def _names(operand: str) -> list[str]:
    return [each.strip() for each in operand.strip("()").split(",") if each.strip()]


@rule("ret")
def ret(opcode: Opcode) -> Emit:
    """End the function."""
    opcode.skip("uni")
    return lambda scope: "return;"


@rule("exit")
def exit_(opcode: Opcode) -> Emit:
    """End the thread."""
    return lambda scope: "end_thread(t);"


@rule("trap", "brkpt")
def trap(opcode: Opcode) -> Emit:
    """End the launch with an error."""
    return lambda scope: "trap(t);"


@rule("nanosleep")
def nanosleep(opcode: Opcode) -> Emit:
    """Let other threads go on."""
    opcode.type("u32")
    return lambda scope, a: "rest(t);"
