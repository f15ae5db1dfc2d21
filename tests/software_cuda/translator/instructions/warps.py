"""Rules of barriers and of instructions that the threads of a warp execute together."""

from __future__ import annotations

from ..errors import UntranslatableError
from ..scope import Scope
from ..types import TYPES
from .table import Emit, Opcode, rule

_WORD, _PREDICATE, _SINGLE = TYPES["u32"], TYPES["pred"], TYPES["f32"]


# Barriers ---------------------------------------------------------------------------------------------------------------------


@rule("bar", "barrier")
def bar(opcode: Opcode) -> Emit:
    """Wait until the threads of the block, or so many, have arrived at the barrier; .red combines a predicate of each."""
    opcode.skip("cta")
    aligned = "true" if opcode.flag("aligned") or opcode.root == "bar" else "false"
    what = opcode.choice("sync", "arrive", "red", "warp")
    if what == "warp":
        opcode.choice("sync")
        return lambda scope, mask: f"sync_warp(t, {scope.read(mask, _WORD)});"
    if what == "red":
        return _bar_red(opcode, aligned)
    site = f", {aligned}" if what == "sync" else ""
    return lambda scope, barrier, threads="0": f"bar_{what}(t, {scope.read(barrier, _WORD)}, {scope.read(threads, _WORD)}{site});"


def _bar_red(opcode: Opcode, aligned: str) -> Emit:
    operation = opcode.choice("and", "or", "popc")
    kind = opcode.type("pred", "u32")

    def emit(scope: Scope, d: str, barrier: str, *others: str) -> str:
        threads = others[0] if len(others) > 1 else "0"
        numbers = f"{scope.read(barrier, _WORD)}, {scope.read(threads, _WORD)}"
        return scope.write(d, kind, f"bar_red_{operation}(t, {numbers}, {scope.predicate(others[-1])}, {aligned})")

    return emit


# Collectives of a warp --------------------------------------------------------------------------------------------------------


@rule("shfl")
def shfl(opcode: Opcode) -> Emit:
    """d = a of the lane that the mode, b and c name; p = whether that lane is in the segment."""
    opcode.choice("sync")
    opcode.type("b32")
    mode = opcode.choice("up", "down", "bfly", "idx")

    def emit(scope: Scope, destination: str, *abcm: str) -> str:
        d, _, p = destination.partition("|")
        operands = ", ".join(scope.read(each, _WORD) for each in abcm)
        keep = scope.write(p.strip(), _PREDICATE, "inside") if p else ""
        return f"{{ bool inside; {scope.write(d.strip(), _WORD, f'shfl_{mode}(t, {operands}, inside)')} {keep} }}"

    return emit


@rule("vote")
def vote(opcode: Opcode) -> Emit:
    """d = whether all, any or equal predicates of the lanes in the mask are true, or a bit for each lane."""
    opcode.choice("sync")
    mode = opcode.choice("all", "any", "uni", "ballot")
    kind = opcode.type("b32" if mode == "ballot" else "pred")
    return lambda scope, d, p, mask: scope.write(d, kind, f"vote_{mode}(t, {scope.predicate(p)}, {scope.read(mask, _WORD)})")


@rule("match")
def match(opcode: Opcode) -> Emit:
    """d = the lanes in the mask whose a equals mine, or the mask where all are equal, with p."""
    opcode.choice("sync")
    mode, kind = opcode.choice("any", "all"), opcode.type("b32", "b64")

    def emit(scope: Scope, destination: str, a: str, mask: str) -> str:
        d, _, p = destination.partition("|")
        lanes = scope.write(d.strip(), _WORD, f"match_{mode}(t, {scope.read(a, kind)}, {scope.read(mask, _WORD)}, same)")
        return f"{{ bool same; {lanes} {scope.write(p.strip(), _PREDICATE, 'same') if p else ''} }}"

    return emit


@rule("activemask")
def activemask(opcode: Opcode) -> Emit:
    """d = the lanes of the warp that execute this instruction together."""
    opcode.type("b32")
    return lambda scope, d: scope.write(d, _WORD, "active_mask(t)")


@rule("redux")
def redux(opcode: Opcode) -> Emit:
    """d = the sum, smallest, largest or bits of a of the lanes in the mask."""
    opcode.choice("sync")
    operation = opcode.choice("add", "min", "max", "and", "or", "xor")
    kind = opcode.type("u32", "s32", "b32")
    name = f"redux_{operation}{'_' + kind.cpp if operation in ('min', 'max') else ''}"
    return lambda scope, d, a, mask: scope.write(d, _WORD, f"{name}(t, {scope.read(a, _WORD)}, {scope.read(mask, _WORD)})")


@rule("elect")
def elect(opcode: Opcode) -> Emit:
    """d = one lane of the mask, and p = whether it is mine."""
    opcode.choice("sync")

    def emit(scope: Scope, destination: str, mask: str) -> str:
        d, _, p = destination.partition("|")
        lane = scope.write(d.strip(), _WORD, f"elect(t, {scope.read(mask, _WORD)}, mine)")
        return f"{{ bool mine; {lane} {scope.write(p.strip(), _PREDICATE, 'mine')} }}"

    return emit


# Tensor cores -----------------------------------------------------------------------------------------------------------------


@rule("ldmatrix")
def ldmatrix(opcode: Opcode) -> Emit:
    """Load 1, 2 or 4 matrices of 8 x 8 halves whose rows lie at the addresses of the lanes, spread over the warp's registers."""
    opcode.type("b16")
    for part in ("sync", "aligned", "m8n8"):
        opcode.choice(part)
    opcode.choice("shared", "shared::cta")
    count = int(opcode.choice("x1", "x2", "x4")[1:])
    transposed = "true" if opcode.flag("trans") else "false"

    def emit(scope: Scope, d: str, address: str) -> str:
        writes = " ".join(scope.write(each, _WORD, f"row[{i}]") for i, each in enumerate(scope.elements(d)))
        return f"{{ u32 row[{count}]; ldmatrix(t, {scope.address(address)}, row, {count}, {transposed}); {writes} }}"

    return emit


# Registers of a and b. Sums are f32, four in each thread.
_PRODUCTS = {
    ("m16n8k16", "f16"): (4, 2),
    ("m16n8k16", "bf16"): (4, 2),
    ("m16n8k8", "f16"): (2, 1),
    ("m16n8k8", "bf16"): (2, 1),
    ("m16n8k8", "tf32"): (4, 2),
    ("m16n8k4", "tf32"): (2, 1),
}


@rule("mma")
def mma(opcode: Opcode) -> Emit:
    """d = a * b + c of matrices that are spread over the registers of a warp."""
    types = [opcode.parts.pop() for _ in range(4)]
    for part in ("sync", "aligned", "row", "col"):
        opcode.choice(part)
    c, b, a, d = types
    shape = opcode.parts.pop(0)
    if (c, d, a) != ("f32", "f32", b) or (shape, a) not in _PRODUCTS:
        raise UntranslatableError(f"the product of {opcode.text} is not known")
    counts = _PRODUCTS[shape, a]

    def emit(scope: Scope, *operands: str) -> str:
        results, left, right, sums = (scope.elements(each) for each in operands)
        if [len(results), len(left), len(right), len(sums)] != [4, *counts, 4]:
            raise UntranslatableError("the operands have another number of registers")
        factors = f"u32 a[] = {{{_list(scope, left, _WORD)}}}, b[] = {{{_list(scope, right, _WORD)}}};"
        writes = " ".join(scope.write(each, _SINGLE, f"c[{i}]") for i, each in enumerate(results))
        return f"{{ {factors} float c[] = {{{_list(scope, sums, _SINGLE)}}}; mma_{shape}_{a}(t, a, b, c); {writes} }}"

    return emit


def _list(scope: Scope, operands: list[str], kind) -> str:
    return ", ".join(scope.read(each, kind) for each in operands)
