"""Write a parsed module as C++: its functions, and the table of kernels and variables that ../kernel/module.hpp declares."""

from __future__ import annotations

import re

from .errors import TranslationError, UntranslatableError
from .instructions import emit_of
from .parser import Block, Declaration, Function, Instruction, Label, Module, Targets, Variable, line_of, parse
from .scope import Address, Bytes, Scope


def translate(ptx: str) -> str:
    """Return the C++ of a module.

    Raises
    ------
    TranslationError
        If a statement is not known; the text names it and its line.
    """
    module = parse(ptx)
    return _Emitter(ptx, module).text()


class _Emitter:
    def __init__(self, ptx: str, module: Module):
        self.ptx = ptx
        self.module = module
        self.variables = [each for each in module.variables if each.space != "shared"]
        self.addresses = {each.name: Address(f"globals[{number}]") for number, each in enumerate(self.variables)}
        self.functions = {each.name: _function_name(each) for each in module.functions if each.body and not each.is_kernel}
        self.shared_bytes = 0  # static shared memory that lies there for every kernel
        self.shared_of: dict[str, int] = {}  # and with what the kernel declares itself
        for each in module.variables:
            if each.space == "shared":
                self._place_shared(self.addresses, each.name, each.type.bytes, each.alignment, each.count)

    def text(self) -> str:
        called_first = sorted(self.module.functions, key=lambda each: each.is_kernel)
        bodies = [self._checked(self._function, each, each.position) for each in called_first if each.body is not None]
        declared = [f"static void {name}({_arguments(function)});" for function, name in self._called()]
        values = [self._checked(lambda each=each: _initial(each), None, each.position) for each in self.variables]
        return "\n".join(['#include "translated.hpp"', *declared, *bodies, *filter(None, values), self._table(), ""])

    def _checked(self, function, argument, position: int) -> str:
        try:
            return function(argument) if argument is not None else function()
        except UntranslatableError as reason:
            raise self._error(position, reason) from None

    def _error(self, position: int, reason: Exception) -> TranslationError:
        statement = " ".join(self.ptx[position : position + 200].split(";")[0].split())
        return TranslationError(f"line {line_of(self.ptx, position)} of the PTX, `{statement}`: {reason}")

    def _called(self):
        return [(each, self.functions[each.name]) for each in self.module.functions if each.name in self.functions and each.body]

    def _place_shared(self, addresses: dict, name: str, size: int, alignment: int, count: int) -> None:
        if count == 0:
            addresses[name] = Address("dynamic_shared_start(t)")
            return
        start = _rounded_up(self.shared_bytes, alignment)
        addresses[name] = Address(f"{start}ull")
        self.shared_bytes = start + size * count

    # Functions ----------------------------------------------------------------------------------------------------------------

    def _function(self, function: Function) -> str:
        shared_of_all = self.shared_bytes
        scope = Scope(self.addresses)
        scope.functions = self.functions
        self.memory: list[str] = []
        self.local_bytes = 0
        offsets = _offsets(function)
        for number, (parameter, offset) in enumerate(zip(function.parameters, offsets, strict=True)):
            scope.symbols[parameter.name] = Bytes(f"parameters + {offset}" if function.is_kernel else f"parameter{number}")
        if function.result:
            scope.symbols[function.result.name] = Bytes("result")
        statements: list[str] = []
        self._block(function.body, scope, statements)
        self.shared_of[function.name] = self.shared_bytes
        if function.is_kernel:
            self.shared_bytes = shared_of_all
        declarations = _declarations(scope.used)
        return "\n".join(
            [
                f"static void {_function_name(function)}({_arguments(function)}) {{",
                "bool carry = false;",
                f"enter(t, __builtin_frame_address(0), {self.local_bytes});",
                *declarations,
                *self.memory,
                *statements,
                "}",
            ]
        )

    def _block(self, block: Block, scope: Scope, statements: list[str]) -> None:
        for item in block.items:
            if type(item) is Label:
                scope.add_label(item.name)
            elif type(item) is Targets:
                scope.targets[item.name] = item.labels
        for item in block.items:
            if type(item) is Instruction:
                statements.append(self._instruction(item, scope))
            elif type(item) is Label:
                statements.append(f"{scope.label(item.name)}:;")
                scope.placed.add(scope.label(item.name))
            elif type(item) is Declaration:
                self._checked(lambda item=item: self._declare(item, scope), None, item.position)
            elif type(item) is Block:
                scope.open()
                self._block(item, scope, statements)
                scope.close()

    def _instruction(self, instruction: Instruction, scope: Scope) -> str:
        try:
            statement = emit_of(instruction.opcode)(scope, *instruction.operands)
            if instruction.guard is None:
                return statement
            return f"if ({scope.predicate(instruction.guard)}) {{ {statement} }}"
        except UntranslatableError as reason:
            raise self._error(instruction.position, reason) from None
        except (TypeError, ValueError, IndexError, KeyError) as reason:
            raise self._error(
                instruction.position, UntranslatableError(f"the operands are not as expected ({reason})")
            ) from reason

    def _declare(self, declaration: Declaration, scope: Scope) -> None:
        for name in declaration.names:
            if declaration.space == "reg":
                scope.add_register(name, declaration.type)
            elif declaration.space == "shared":
                count = 1 if declaration.count is None else declaration.count
                self._place_shared(scope.symbols, name, declaration.type.bytes, declaration.alignment, count)
            else:
                self._declare_memory(declaration, name, scope)

    def _declare_memory(self, declaration: Declaration, name: str, scope: Scope) -> None:
        """Local variables and the parameters of calls are arrays on the fibre's stack, declared before any jump.

        They are no C++ arrays, because the stack must be seen to have room for them before anything is stored below them.
        """
        cpp = scope.cpp_name(name)
        size = declaration.type.bytes * (1 if declaration.count is None else declaration.count)
        alignment = max(declaration.alignment, 8)
        self.memory.append(f"u8* const {cpp} = (u8*)__builtin_alloca_with_align({max(size, 1)}, {8 * alignment});")
        self.local_bytes += size + alignment
        scope.symbols[name] = Bytes(cpp) if declaration.space == "param" else Address(f"(u64){cpp}")

    # The table ----------------------------------------------------------------------------------------------------------------

    def _table(self) -> str:
        kernels = [each for each in self.module.functions if each.is_kernel and each.body is not None]
        lines = []
        for kernel in kernels:
            rows = [f"{{{offset}, {each.bytes}}}" for each, offset in zip(kernel.parameters, _offsets(kernel), strict=True)]
            lines.append(f"static const Parameter parameters_of_{_function_name(kernel)}[] = {{{', '.join(rows) or '{}'}}};")
        variables = [
            f'{{"{each.name}", {each.type.bytes * max(each.count, 1)}, {each.alignment}, {_initial_name(each)}}}'
            for each in self.variables
        ]
        lines.append(f"static const Kernel kernels[] = {{{', '.join(map(self._row, kernels)) or '{}'}}};")
        lines.append(f"static const Variable variables[] = {{{', '.join(variables) or '{}'}}};")
        counts = f"kernels, {len(kernels)}, variables, {len(variables)}"
        lines.append(f'extern "C" const Module software_cuda_module = {{{counts}}};')
        return "\n".join(lines)

    def _row(self, kernel: Function) -> str:
        name = _function_name(kernel)
        last = kernel.parameters[-1:] and _offsets(kernel)[-1] + kernel.parameters[-1].bytes
        parameters = f"parameters_of_{name}, {len(kernel.parameters)}, {last or 0}"
        return f'{{"{kernel.name}", {name}, {parameters}, {self.shared_of[kernel.name]}, {kernel.max_threads}}}'


def _declarations(registers: dict[str, str]) -> list[str]:
    """Return a declaration for each type of registers. Nothing is set, as a jump may not pass that."""
    names: dict[str, list[str]] = {}
    for name, storage in registers.items():
        names.setdefault(storage, []).append(name)
    return [f"{storage} {', '.join(each)};" for storage, each in names.items()]


def _function_name(function: Function) -> str:
    plain = re.sub(r"[^A-Za-z0-9_]", "_", function.name)
    return f"{'kernel' if function.is_kernel else 'function'}_{plain}"


def _arguments(function: Function) -> str:
    if function.is_kernel:
        return "Thread& t, const u8* parameters, const u64* globals"
    results = ["u8* result"] if function.result else []
    return ", ".join(["Thread& t, const u64* globals", *results, *(f"u8* parameter{n}" for n in range(len(function.parameters)))])


def _offsets(function: Function) -> list[int]:
    """Return where the parameters of a kernel lie, each at a multiple of its alignment."""
    offsets, end = [], 0
    for parameter in function.parameters:
        start = _rounded_up(end, parameter.alignment)
        offsets.append(start)
        end = start + parameter.bytes
    return offsets


def _rounded_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _initial_name(variable: Variable) -> str:
    return f"initial_{re.sub(r'[^A-Za-z0-9_]', '_', variable.name)}" if variable.values else "nullptr"


def _initial(variable: Variable) -> str:
    """Return the array of a variable's first values, or nothing where all are zero."""
    if not variable.values:
        return ""
    scope = Scope({})
    values = [scope.read(each, variable.type) for each in variable.values]
    return f"static const {variable.type.cpp} {_initial_name(variable)}[{variable.count}] = {{{', '.join(values)}}};"
