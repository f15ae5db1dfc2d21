"""Registration of derivatives and batching for an operator that is defined in a `torch.library`.

`differentiable` gives the operator a kernel for autograd, as torch's own operators have one. It applies the derivatives at each
level of `torch.func`'s transforms and in forward mode, also to a compiled graph, which contains nothing but the operator.
`torch.library.register_autograd` cannot do this: within `torch.func` it raises an error, and in forward mode its derivatives are
silently zero (torch 2.7 to 2.15). The kernel needs private names of torch, which `Internals` collects. With a version of torch
that lacks one of them, the public interface is used, and the docstring of `_public` says what is refused then. This module must
not depend on any operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd import forward_ad

Arguments = tuple[Any, ...]

# Torch has only this level of forward mode. It is passed explicitly because a compiled graph enters forward mode without updating
# the level in torch's Python code, which is the default.
LEVEL = 0


@dataclass(frozen=True, slots=True)
class Internals:
    """Private names by which torch runs its own operators at one level of its transforms.

    Attributes
    ----------
    below_autograd
        Returns a context in which operators run without autograd.
    after_autograd
        The dispatch keys of the kernels that come after autograd's.
    transforms_active
        Returns whether a transform of `torch.func` is active.
    one_level
        The base class of autograd functions that work at one level of the transforms.
    allow_one_level
        Returns a context in which such a function may be applied.
    forward_mode
        Returns a context in which forward mode is on or off.
    """

    below_autograd: Callable[[], AbstractContextManager[None]]
    after_autograd: Any
    transforms_active: Callable[[], bool]
    one_level: Any
    allow_one_level: Callable[[], AbstractContextManager[None]]
    forward_mode: Callable[[bool], AbstractContextManager[None]]

    @classmethod
    def found(cls) -> Internals | None:
        """Return the names of the installed torch; None if it lacks one of them."""
        try:
            from torch._functorch.utils import enable_single_level_autograd_function

            if not isinstance(forward_ad._current_level, int):  # `transformed` reads it at every call
                return None
            return cls(
                torch._C._AutoDispatchBelowAutograd,
                torch._C._after_autograd_keyset,
                torch._C._are_functorch_transforms_active,
                torch.autograd.function._SingleLevelFunction,
                enable_single_level_autograd_function,
                forward_ad._set_fwd_grad_enabled,
            )
        except (ImportError, AttributeError):
            return None

    def transformed(self) -> bool:
        """Return whether a transform of `torch.func` or forward mode is active."""
        return self.transforms_active() or forward_ad._current_level >= 0


@dataclass(frozen=True, slots=True)
class Operands:
    """The tensors of an operator that may have derivatives, which come first among its arguments.

    Everything here takes them as one flat tuple. Each has the batch as its first axis, or is empty if it is not needed.

    Attributes
    ----------
    before
        The number of single tensors at the beginning.
    after
        The number of single tensors after a list of tensors; None where there is no list.
    """

    before: int
    after: int | None = None

    def split(self, arguments: Sequence[Any]) -> tuple[Arguments, Arguments]:
        """Return the operands, or what is known of each in the structure of the arguments, and the other arguments."""
        if self.after is None:
            return tuple(arguments[: self.before]), tuple(arguments[self.before :])
        end = self.before + 1 + self.after
        first, some, last = arguments[: self.before], arguments[self.before], arguments[self.before + 1 : end]
        return (*first, *some, *last), tuple(arguments[end:])

    def join(self, operands: Sequence[Any], rest: Sequence[Any]) -> Arguments:
        """Return the arguments: the inverse of `split`."""
        if self.after is None:
            return (*operands, *rest)
        end = len(operands) - self.after
        return (*operands[: self.before], list(operands[self.before : end]), *operands[end:], *rest)


class Mapped(NamedTuple):
    """A call under vmap.

    Attributes
    ----------
    size
        The size of the mapped axis.
    operands, dims
        The operands and the mapped axis of each, None where it has none.
    rest, rest_dims
        The other arguments and their mapped axes.
    """

    size: int
    operands: Arguments
    dims: Arguments
    rest: Arguments
    rest_dims: Arguments

    def folded(self, tensor: torch.Tensor, dim: int | None) -> torch.Tensor:
        """Return a tensor whose mapped axis, repeated if it has none, is a part of its first axis."""
        stacked = tensor.expand(self.size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        return stacked.flatten(0, 1)


def fold_all(mapped: Mapped) -> tuple[Arguments, Arguments]:
    """Return the operands and the other arguments of one call that computes a mapped one, for an operator of a batch."""
    return tuple(map(mapped.folded, mapped.operands, mapped.dims)), mapped.rest


@dataclass(frozen=True, slots=True)
class Rules:
    """The derivatives of an operator, written with callables that `differentiable` returned.

    Attributes
    ----------
    keep
        Takes the context of a `torch.autograd.Function`, the operands and the other arguments, and saves what ``backward`` uses.
    backward
        Takes that context, whether each operand needs a gradient, and the cotangent of each output; returns the gradients of the
        operands.
    tangent
        Takes the primal operands, their tangents (None for an operand without one) and the other arguments; returns the tangent
        of the output, or a sequence of the outputs' tangents.
    fold
        Takes a mapped call and returns the operands and the other arguments of the call that computes it. The mapped axis is a
        part of the first axis of its outputs.
    keeps_outputs
        True if ``keep`` also takes the outputs. They have no tangents, so the derivatives of ``backward`` must not need any.
    """

    keep: Callable[..., None]
    backward: Callable[..., Sequence[Any]]
    tangent: Callable[..., Any]
    fold: Callable[[Mapped], tuple[Arguments, Arguments]] = fold_all
    keeps_outputs: bool = False

    def kept(self, ctx: Any, operands: Arguments, rest: Arguments, outputs: Any) -> None:
        """Save what ``backward`` uses."""
        self.keep(ctx, operands, rest, *((outputs,) if self.keeps_outputs else ()))


def differentiable(
    library: torch.library.Library, op: Any, operands: Operands, rules: Rules, internals: Internals | None
) -> Callable[..., Any]:
    """Register the derivatives of an operator.

    Parameters
    ----------
    library
        The library that defines the operator.
    op
        The operator. It returns a tensor, a tuple of tensors or a list of tensors. Every one has the batch as its first axis, or
        is empty if it is not needed.
    operands
        The tensors among its arguments that may have derivatives.
    rules
        Its derivatives.
    internals
        `Internals.found()`.

    Returns
    -------
    callable
        The operator, with a fast path if no input needs a derivative.
    """
    if internals is None:
        return _public(library, op, operands, rules)
    register: Callable[..., None] = library.impl
    register(op.name(), _autograd_kernel(op, operands, rules, internals), "Autograd", with_keyset=True)
    torch.library.register_vmap(op, _batching_rule(op, operands, rules), lib=library)

    transforms_active, below_autograd = internals.transforms_active, internals.below_autograd

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            plain = forward_ad._current_level < 0 or transforms_active()
            return op(*arguments) if plain else compiled_in_forward_mode(*arguments)
        if transforms_active() or forward_ad._current_level >= 0:
            return op(*arguments)
        if torch.is_grad_enabled() and _needs_gradient(operands.split(arguments)[0]):
            return op(*arguments)
        # The autograd kernel would have nothing to do, and would make the call take half as long again.
        with below_autograd():
            return op(*arguments)

    def compiled_in_forward_mode(*arguments: Any) -> Any:
        """Write the tangents into the graph, because it may be run where torch's Python code does not see forward mode."""
        inputs, rest = operands.split(arguments)
        primals, tangents = _unpacked(inputs)
        if all(tangent is None for tangent in tangents):
            return op(*arguments)
        return _dual(op(*operands.join(primals, rest)), rules.tangent(primals, tangents, rest))

    return call


def _autograd_kernel(op: Any, operands: Operands, rules: Rules, internals: Internals) -> Callable[..., Any]:
    """Return the operator's kernel for autograd, which takes dispatch keys and the operator's arguments."""
    function = _one_level_function(op, operands, rules, internals)

    def without_tangents(keyset: Any, primals: Arguments, rest: Arguments, inputs: Arguments) -> Any:
        if internals.transforms_active() or _needs_gradient(primals):
            with internals.allow_one_level():
                return function.apply(*primals, *rest, inputs)
        with internals.below_autograd():
            return op.redispatch(keyset & internals.after_autograd, *operands.join(primals, rest))

    def kernel(keyset: Any, *arguments: Any) -> Any:
        inputs, rest = operands.split(arguments)
        if internals.transformed() or not _plain(inputs):
            primals, tangents = _unpacked(inputs)
            if any(tangent is not None for tangent in tangents):
                return _dual(without_tangents(keyset, primals, rest, inputs), rules.tangent(primals, tangents, rest))
        return without_tangents(keyset, inputs, rest, inputs)

    return kernel


def _one_level_function(op: Any, operands: Operands, rules: Rules, internals: Internals) -> Any:
    """Return the operator as an autograd function of one level.

    Its arguments are the operands, the other arguments, and the operands to save for backward. These have their tangents, so
    that in forward mode a gradient has a tangent, too.
    """

    def forward(*arguments: Any) -> Any:
        *flat, kept = arguments
        # Torch turns derivatives off in a function's forward, but the levels below this one may need theirs.
        with torch.enable_grad(), internals.forward_mode(True), internals.below_autograd():
            return _as_tuple(op(*operands.join(flat[: len(kept)], flat[len(kept) :])))

    def setup_context(ctx: Any, inputs: Arguments, output: Any) -> None:
        *flat, kept = inputs
        ctx.operands = len(kept)
        rules.kept(ctx, kept, tuple(flat[len(kept) :]), output)

    def backward(ctx: Any, *cotangents: Any) -> Arguments:
        needs = ctx.needs_input_grad
        gradients = rules.backward(ctx, needs[: ctx.operands], *cotangents)
        return (*gradients, *(None for _ in needs[ctx.operands :]))

    return _function(internals.one_level, op, forward=forward, setup_context=setup_context, backward=backward)


def _public(library: torch.library.Library, op: Any, operands: Operands, rules: Rules) -> Callable[..., Any]:
    """Return the operator with derivatives by torch's public interface alone.

    Reverse mode works for the callable, also within `torch.func`. Forward mode is refused. Within `torch.func.grad` and similar
    transforms, torch refuses the operator itself, and therefore a compiled graph, which contains it.
    """

    def refuse(*_: Any) -> None:
        raise NotImplementedError(f"torch {torch.__version__} is not known here: {op} has no forward-mode derivative with it")

    def keep(ctx: Any, inputs: Arguments, output: Any) -> None:
        rules.kept(ctx, *operands.split(inputs), output)

    def backward(ctx: Any, *cotangents: Any) -> Arguments:
        needs, others = operands.split(ctx.needs_input_grad)
        if cotangents and isinstance(cotangents[0], (list, tuple)):  # of the one output that is a list
            (cotangents,) = cotangents
        return operands.join(rules.backward(ctx, needs, *cotangents), [None for _ in others])

    torch.library.register_autograd(op, backward, setup_context=keep, lib=library)
    is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]

    def call(*arguments: Any) -> Any:
        inputs, rest = operands.split(arguments)
        # Graphs and subclasses of tensors must see the operator, which an autograd function would hide.
        if torch.compiler.is_compiling() or is_tracing() or torch.overrides.has_torch_function(inputs):
            return op(*arguments)
        return autograd_function.apply(len(inputs), *inputs, *rest)

    # The function's arguments are the number of operands, the operands, and the other arguments.

    def forward_of_function(count: int, *flat: Any) -> Any:
        return _as_tuple(op(*operands.join(flat[:count], flat[count:])))

    def keep_of_function(ctx: Any, inputs: Arguments, output: Any) -> None:
        ctx.operands, *flat = inputs
        rules.kept(ctx, tuple(flat[: ctx.operands]), tuple(flat[ctx.operands :]), output)

    def backward_of_function(ctx: Any, *cotangents: Any) -> Arguments:
        _, *needs = ctx.needs_input_grad
        gradients = rules.backward(ctx, tuple(needs[: ctx.operands]), *cotangents)
        return (None, *gradients, *(None for _ in needs[ctx.operands :]))

    def vmap_of_function(info: Any, in_dims: Arguments, count: int, *flat: Any) -> tuple[Any, Any]:
        dims = in_dims[1:]
        mapped = Mapped(info.batch_size, flat[:count], dims[:count], flat[count:], dims[count:])
        return _unfolded(call(*operands.join(*rules.fold(mapped))), info.batch_size)

    torch.library.register_vmap(op, _batching_rule(call, operands, rules), lib=library)
    members: dict[str, Callable[..., Any]] = dict(
        setup_context=keep_of_function, backward=backward_of_function, jvp=refuse, vmap=vmap_of_function
    )
    autograd_function = _function(torch.autograd.Function, op, forward=forward_of_function, **members)
    return call


def _function(base: Any, op: Any, **members: Callable[..., Any]) -> Any:
    """Return a class of autograd functions that is named after the operator."""
    name = op.name().partition("::")[2]
    return type(name, (base,), {member: staticmethod(function) for member, function in members.items()})


def _as_tuple(outputs: Any) -> Any:
    """Return the outputs as an autograd function does: a tuple in place of a list."""
    return tuple(outputs) if isinstance(outputs, list) else outputs


def _needs_gradient(inputs: Arguments) -> bool:
    """Return whether autograd records a call with these inputs."""
    for x in inputs:  # half the time of `any`
        if x.requires_grad:
            return torch.is_grad_enabled()
    return False


def _plain(inputs: Arguments) -> bool:
    """Return whether all inputs are of torch's own classes, not of those with which a compiler traces."""
    return {torch.Tensor, torch.nn.Parameter}.issuperset(map(type, inputs))


def _unpacked(inputs: Arguments) -> tuple[Arguments, Arguments]:
    """Return the primals and the tangents, None for an input without a tangent."""
    primals, tangents = zip(*(_unpack_dual(x, level=LEVEL) for x in inputs), strict=True)
    return primals, tangents


def _dual(primal: Any, tangent: Any) -> Any:
    """Join the outputs that have tangents with them."""
    if isinstance(primal, (tuple, list)):
        return type(primal)(map(_dual, primal, tangent))
    return primal if tangent is None else _make_dual(primal, tangent, level=LEVEL)


_unpack_dual: Callable[..., Any] = forward_ad.unpack_dual
_make_dual: Callable[..., Any] = forward_ad.make_dual


def _batching_rule(call: Callable[..., Any], operands: Operands, rules: Rules) -> Callable[..., tuple[Any, Any]]:
    """Return the rule for vmap. Samples of a batch are independent, so the mapped axis becomes part of the batch."""

    def rule(info: Any, in_dims: Arguments, *arguments: Any) -> tuple[Any, Any]:
        (inputs, rest), (dims, rest_dims) = operands.split(arguments), operands.split(in_dims)
        folded = rules.fold(Mapped(info.batch_size, inputs, dims, rest, rest_dims))
        return _unfolded(call(*operands.join(*folded)), info.batch_size)

    return rule


def _unfolded(outputs: Any, size: int) -> tuple[Any, Any]:
    """Return the outputs with a mapped axis of this size, and the place of that axis in each."""

    def unfolded(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unflatten(0, (size, tensor.shape[0] // size))

    if isinstance(outputs, torch.Tensor):
        return unfolded(outputs), 0
    kind = type(outputs)
    return kind(map(unfolded, outputs)), kind([0] * len(outputs))
