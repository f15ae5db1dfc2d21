"""Registration of derivatives and batching for an operator that is defined in a `torch.library`.

`differentiable` gives the operator a kernel for autograd, as torch's own operators have one. It applies the derivatives at each
level of `torch.func`'s transforms and in forward mode, also to a compiled graph, which contains nothing but the operator.
`torch.library.register_autograd` cannot do this: within `torch.func` it raises an error, and in forward mode its derivatives are
silently zero (torch 2.7 to 2.15). The kernel needs private names of torch, which `Internals` collects. With a version of torch
that lacks one of them, the public interface is used, and the docstring of `_public` says what is refused then. This module must
not depend on any operator.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

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
class Rules:
    """The derivatives of an operator, written with callables that `differentiable` returned.

    Attributes
    ----------
    setup_context, backward
        As in a `torch.autograd.Function`.
    tangent
        Takes the primal inputs, their tangents (None for an input without one) and the other arguments; returns the tangent of
        the output, or a tuple of the outputs' tangents.
    """

    setup_context: Callable[..., None]
    backward: Callable[..., tuple[Any, ...]]
    tangent: Callable[..., Any]


def differentiable(
    library: torch.library.Library, op: Any, tensors: int, rules: Rules, internals: Internals | None
) -> Callable[..., Any]:
    """Register the derivatives of an operator.

    Parameters
    ----------
    library
        The library that defines the operator.
    op
        The operator. Every tensor that it takes or returns has the batch as its first axis, or is empty if it is not needed.
    tensors
        The number of tensors that it takes, before its other arguments.
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
        return _public(library, op, tensors, rules)
    register: Callable[..., None] = library.impl
    register(op.name(), _autograd_kernel(op, tensors, rules, internals), "Autograd", with_keyset=True)
    torch.library.register_vmap(op, _batching_rule(op, tensors), lib=library)

    transforms_active, below_autograd = internals.transforms_active, internals.below_autograd

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            plain = forward_ad._current_level < 0 or transforms_active()
            return op(*arguments) if plain else compiled_in_forward_mode(*arguments)
        if transforms_active() or forward_ad._current_level >= 0 or _needs_gradient(arguments[:tensors]):
            return op(*arguments)
        # The autograd kernel would have nothing to do, and would make the call take half as long again.
        with below_autograd():
            return op(*arguments)

    def compiled_in_forward_mode(*arguments: Any) -> Any:
        """Write the tangents into the graph, because it may be run where torch's Python code does not see forward mode."""
        inputs, rest = arguments[:tensors], arguments[tensors:]
        primals, tangents = _unpacked(inputs)
        if all(tangent is None for tangent in tangents):
            return op(*arguments)
        return _dual(op(*primals, *rest), rules.tangent(primals, tangents, rest))

    return call


def _autograd_kernel(op: Any, tensors: int, rules: Rules, internals: Internals) -> Callable[..., Any]:
    """Return the operator's kernel for autograd, which takes dispatch keys and the operator's arguments."""
    function = _one_level_function(op, tensors, rules, internals)

    def without_tangents(keyset: Any, primals: Arguments, rest: Arguments, inputs: Arguments) -> Any:
        if internals.transforms_active() or _needs_gradient(primals):
            with internals.allow_one_level():
                return function.apply(*primals, *rest, inputs)
        with internals.below_autograd():
            return op.redispatch(keyset & internals.after_autograd, *primals, *rest)

    def kernel(keyset: Any, *arguments: Any) -> Any:
        inputs, rest = arguments[:tensors], arguments[tensors:]
        if internals.transformed() or not _plain(inputs):
            primals, tangents = _unpacked(inputs)
            if any(tangent is not None for tangent in tangents):
                return _dual(without_tangents(keyset, primals, rest, inputs), rules.tangent(primals, tangents, rest))
        return without_tangents(keyset, inputs, rest, inputs)

    return kernel


def _one_level_function(op: Any, tensors: int, rules: Rules, internals: Internals) -> Any:
    """Return the operator as an autograd function of one level, whose last argument is the tensors to save for backward.

    These are the inputs with their tangents, so that in forward mode a gradient has a tangent, too.
    """

    def forward(*arguments: Any) -> Any:
        # Torch turns derivatives off in a function's forward, but the levels below this one may need theirs.
        with torch.enable_grad(), internals.forward_mode(True), internals.below_autograd():
            return op(*arguments[:-1])

    def setup_context(ctx: Any, inputs: Arguments, output: Any) -> None:
        rules.setup_context(ctx, (*inputs[-1], *inputs[tensors:-1]), output)

    def backward(ctx: Any, *cotangents: Any) -> Arguments:
        return (*rules.backward(ctx, *cotangents), None)

    return _function(internals.one_level, op, forward=forward, setup_context=setup_context, backward=backward)


def _public(library: torch.library.Library, op: Any, tensors: int, rules: Rules) -> Callable[..., Any]:
    """Return the operator with derivatives by torch's public interface alone.

    Reverse mode works for the callable, also within `torch.func`. Forward mode is refused. Within `torch.func.grad` and similar
    transforms, torch refuses the operator itself, and therefore a compiled graph, which contains it.
    """

    def refuse(*_: Any) -> None:
        raise NotImplementedError(f"torch {torch.__version__} is not known here: {op} has no forward-mode derivative with it")

    torch.library.register_autograd(op, rules.backward, setup_context=rules.setup_context, lib=library)
    is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]

    def call(*arguments: Any) -> Any:
        # Graphs and subclasses of tensors must see the operator, which an autograd function would hide.
        if torch.compiler.is_compiling() or is_tracing() or torch.overrides.has_torch_function(arguments[:tensors]):
            return op(*arguments)
        return autograd_function.apply(*arguments)

    batched = _batching_rule(call, tensors)
    torch.library.register_vmap(op, batched, lib=library)
    members = dict(setup_context=rules.setup_context, backward=rules.backward, jvp=refuse, vmap=batched)
    autograd_function = _function(torch.autograd.Function, op, forward=lambda *arguments: op(*arguments), **members)
    return call


def _function(base: Any, op: Any, **members: Callable[..., Any]) -> Any:
    """Return a class of autograd functions that is named after the operator."""
    name = op.name().partition("::")[2]
    return type(name, (base,), {member: staticmethod(function) for member, function in members.items()})


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
    if isinstance(primal, tuple):
        return tuple(map(_dual, primal, tangent))
    return primal if tangent is None else _make_dual(primal, tangent, level=LEVEL)


_unpack_dual: Callable[..., Any] = forward_ad.unpack_dual
_make_dual: Callable[..., Any] = forward_ad.make_dual


def _batching_rule(call: Callable[..., Any], tensors: int) -> Callable[..., tuple[Any, Any]]:
    """Return the rule for vmap. Samples of a batch are independent, so the mapped axis becomes part of the batch."""

    def rule(info: Any, in_dims: Arguments, *arguments: Any) -> tuple[Any, Any]:
        size = info.batch_size

        def folded(tensor: torch.Tensor, dim: int | None) -> torch.Tensor:
            stacked = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            return stacked.flatten(0, 1)

        def unfolded(tensor: Any) -> Any:
            return tensor.unflatten(0, (size, tensor.shape[0] // size))

        results = call(*map(folded, arguments[:tensors], in_dims[:tensors]), *arguments[tensors:])
        if isinstance(results, torch.Tensor):
            return unfolded(results), 0
        return tuple(map(unfolded, results)), (0,) * len(results)

    return rule
