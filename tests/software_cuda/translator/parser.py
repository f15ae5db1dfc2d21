"""PTX text as a tree: a module has variables and functions, a function has a block of statements, and blocks nest."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .errors import TranslationError, UntranslatableError
from .types import TYPES, Type


@dataclass(slots=True)
class Instruction:
    opcode: str
    operands: list[str]
    guard: str | None  # a predicate register, with "!" before it where the instruction runs if it is false
    position: int  # in the text, for errors


@dataclass(slots=True)
class Label:
    name: str


@dataclass(slots=True)
class Declaration:
    """A statement of a register, or of a variable in local, shared or parameter space."""

    space: str
    type: Type
    names: list[str]
    alignment: int
    count: int | None  # of elements; None for a scalar, 0 for an array of unknown length
    position: int


@dataclass(slots=True)
class Targets:
    """The labels between which a brx.idx chooses."""

    name: str
    labels: list[str]


@dataclass(slots=True)
class Block:
    items: list[Instruction | Label | Declaration | Targets | Block] = field(default_factory=list)


@dataclass(slots=True)
class Parameter:
    name: str
    bytes: int
    alignment: int


@dataclass(slots=True)
class Function:
    name: str
    is_kernel: bool
    parameters: list[Parameter]
    result: Parameter | None
    max_threads: int  # of .maxntid or .reqntid, 0 where there is none
    body: Block | None  # None where the function is only declared
    position: int


@dataclass(slots=True)
class Variable:
    """A variable of the module, with the values that it starts with."""

    space: str
    name: str
    type: Type
    alignment: int
    count: int  # 0 for an array of unknown length
    values: list[str]
    position: int


@dataclass(slots=True)
class Module:
    variables: list[Variable] = field(default_factory=list)
    functions: list[Function] = field(default_factory=list)


_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_LINE_INFORMATION = re.compile(r"^[ \t]*\.(?:loc|file)\b[^\n]*", re.M)
_SKIPPED = re.compile(r"\s*(?:\.(?:version|target|address_size)\b[^\n]*|\.pragma[^;]*;)")
_FUNCTION = re.compile(
    r"\s*(?:\.(?:visible|extern|weak)\s+)*\.(?P<kind>entry|func)\s*"
    r"(?:\((?P<result>[^)]*)\)\s*)?(?P<name>[\w$%]+)\s*(?:\((?P<parameters>[^)]*)\))?(?P<bounds>[^{;]*)(?P<end>[{;])"
)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s*(?:\.(?:global|const|shared|local)\s*)?(?:\.align\s+\d+\s+)?)?"
    r"([\w$%]+)(?:\[(\d+)\])?\s*$"
)
_VARIABLE = re.compile(
    r"\s*(?:\.(?:visible|extern|weak|common)\s+)*\.(?P<space>global|const|shared)\s+(?:\.attribute\([^)]*\)\s*)?"
    r"(?:\.align\s+(?P<alignment>\d+)\s+)?\.(?P<type>\w+)\s+(?P<name>[\w$%]+)(?P<dimensions>(?:\[\d*\])*)"
    r"\s*(?:=\s*(?P<values>[^;]*))?;"
)
_BOUNDS = re.compile(r"\.(?:maxntid|reqntid)\s+([\d,\s]+)")
_LABEL = re.compile(r"([\w$%]+)\s*:(?!:)\s*")
_STATEMENT = re.compile(r"[^;]*;")
_INSTRUCTION = re.compile(r"(?:@(!?[\w$%]+)\s+)?([a-z][\w.:]*)\s*(.*)", re.S)
_OPERAND = re.compile(r"\{[^}]*\}|\([^)]*\)|[^\s,][^,]*")
_DECLARATION = re.compile(
    r"\.(?P<space>reg|local|shared|param)\s*(?:\.align\s+(?P<alignment>\d+)\s*)?\.(?P<type>\w+)\s+(?P<names>[^\[]*)(?:\[(?P<count>\d*)\])?$"
)
_TARGETS = re.compile(r"\.branchtargets\s+(.*)$", re.S)
_SPACES = re.compile(r"\s*")
_RANGE = re.compile(r"([\w$%]+)<(\d+)>$")


def parse(text: str) -> Module:
    """Return the module that a PTX text describes."""
    return _Parser(text).module()


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


class _Parser:
    def __init__(self, text: str):
        self.original = text
        # Comments are blanked out character by character, so that positions stay those of the text.
        text = _COMMENT.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
        self.text = _LINE_INFORMATION.sub(lambda found: " " * len(found[0]), text)
        self.position = 0

    def module(self) -> Module:
        module = Module()
        while self.text[self._skip_spaces() :]:
            if found := _SKIPPED.match(self.text, self.position):
                self.position = found.end()
            elif found := _FUNCTION.match(self.text, self.position):
                module.functions.append(self._checked(self._function, found))
            elif found := _VARIABLE.match(self.text, self.position):
                module.variables.append(self._checked(self._variable, found))
            else:
                raise self._error("this statement of a module is not known")
        return module

    def _checked(self, read, found):
        try:
            return read(found)
        except UntranslatableError as reason:
            raise self._error(str(reason)) from None

    def _error(self, reason: str) -> TranslationError:
        statement = " ".join(self.text[self.position : self.position + 200].split("\n\n")[0].split())
        return TranslationError(f"line {line_of(self.text, self.position)} of the PTX, `{statement}`: {reason}")

    def _skip_spaces(self) -> int:
        self.position = _SPACES.match(self.text, self.position).end()
        return self.position

    def _variable(self, found: re.Match) -> Variable:
        kind = type_of(found["type"])
        count = 1
        for length in re.findall(r"\[(\d*)\]", found["dimensions"]):
            count *= int(length or 0)
        values = re.findall(r"[^\s,{}]+", found["values"] or "")
        start = self._skip_spaces()
        self.position = found.end()
        return Variable(found["space"], found["name"], kind, int(found["alignment"] or kind.bytes), count, values, start)

    def _function(self, found: re.Match) -> Function:
        start = self.position
        parameters = [_parameter(each) for each in (found["parameters"] or "").split(",") if each.strip()]
        result = _parameter(found["result"]) if (found["result"] or "").strip() else None
        bounds = _BOUNDS.search(found["bounds"])
        most = 1
        for size in bounds[1].split(",") if bounds else ["0"]:
            most *= int(size)
        self.position = found.end()
        body = self._block() if found["end"] == "{" else None
        return Function(found["name"], found["kind"] == "entry", parameters, result, most, body, start)

    def _block(self) -> Block:
        """Read the statements up to the brace that closes the block, which was opened just before."""
        text, items = self.text, []
        while True:
            start = self._skip_spaces()
            first = text[start : start + 1]
            if first == "}":
                self.position += 1
                return Block(items)
            if first == "{":
                self.position += 1
                items.append(self._block())
            elif found := _LABEL.match(text, start):
                self.position = found.end()
                items.append(self._labelled(found[1]))
            elif found := _STATEMENT.match(text, start):
                if (item := self._statement(found[0][:-1].rstrip(), start)) is not None:
                    items.append(item)
                self.position = found.end()
            else:
                raise self._error("the block does not end")

    def _labelled(self, name: str) -> Label | Targets:
        statement = _STATEMENT.match(self.text, self.position)
        found = _TARGETS.match(statement[0][:-1]) if statement else None
        if not found:
            return Label(name)
        self.position = statement.end()
        return Targets(name, [label.strip() for label in found[1].split(",")])

    def _statement(self, statement: str, start: int) -> Instruction | Declaration | None:
        if statement[:1] == ".":
            return self._checked(lambda _: _declaration(statement, start), None)
        found = _INSTRUCTION.match(statement)
        if found is None:
            if statement:
                raise self._error("this is not a statement of PTX")
            return None
        guard, opcode, operands = found.groups()
        if "{" in operands or "(" in operands:
            return Instruction(opcode, [each.strip() for each in _OPERAND.findall(operands)], guard, start)
        return Instruction(opcode, [each.strip() for each in operands.split(",")] if operands else [], guard, start)


def _declaration(statement: str, start: int) -> Declaration | None:
    if statement.startswith(".pragma"):
        return None
    found = _DECLARATION.match(statement)
    if not found:
        raise UntranslatableError("this declaration is not known")
    kind = type_of(found["type"])
    names = [name for each in found["names"].split(",") for name in _names(each.strip())]
    count = None if found["count"] is None else int(found["count"] or 0)
    alignment = int(found["alignment"] or max(1, kind.bytes))
    return Declaration(found["space"], kind, names, alignment, count, start)


def _names(name: str) -> list[str]:
    """Return the names that `%r<3>` stands for: %r0, %r1 and %r2."""
    found = _RANGE.match(name)
    return [f"{found[1]}{number}" for number in range(int(found[2]))] if found else [name]


def _parameter(text: str) -> Parameter:
    found = _PARAMETER.match(text.strip())
    if not found:
        raise UntranslatableError(f"the parameter `{text.strip()}` is not known")
    kind = type_of(found[2])
    return Parameter(found[3], kind.bytes * int(found[4] or 1), int(found[1] or kind.bytes))


def type_of(name: str) -> Type:
    try:
        return TYPES[name]
    except KeyError:
        raise UntranslatableError(f"the type .{name} is not known") from None
