"""An operator that torch can differentiate, batch and trace, made of its registered form and a rule for each.

The operator has a kernel for autograd that applies the rules at each level of `torch.func`'s transforms and in forward mode, as
torch's own operators have. So a compiled graph, which holds nothing but the operator, is differentiated by the same rules, and
nothing is silently zero. `torch.library.register_autograd` cannot do this: within `torch.func` it raises an error, and in forward
mode its derivatives are zero (torch 2.7 to 2.15). What the kernel needs and torch has no public name for is in `Internals`. Where
a version lacks one of those names, the rules go through torch's public interface, and the docstring of `_public` says what is
refused then. Nothing here knows correlation.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import forward_ad

# Torch has no other level of forward mode. A compiled graph enters it without telling torch's Python part, which is the default.
LEVEL = 0


@dataclass(frozen=True, slots=True)
class Internals:
    """The names that torch's own operators use to run at one level of its transforms, and that have no public equivalent.

    Attributes
    ----------
    below_autograd
        While it is entered, operators run without autograd.
    after_autograd
        The dispatch keys of the kernels that come after autograd's.
    transforms_active
        Return whether a transform of `torch.func` is active.
    one_level
        The base of autograd functions that work at one level of the transforms.
    allow_one_level
        While it is entered, such a function may be applied.
    forward_mode
        While it is entered, forward mode is on or off.
    """

    below_autograd: Callable[[], AbstractContextManager[None]]
    after_autograd: Any
    transforms_active: Callable[[], bool]
    one_level: type
    allow_one_level: Callable[[], AbstractContextManager[None]]
    forward_mode: Callable[[bool], AbstractContextManager[None]]

    @classmethod
    def found(cls) -> Internals | None:
        """Return torch's names; None where one of them is gone."""
        try:
            from torch._functorch.utils import enable_single_level_autograd_function

            if not isinstance(forward_ad._current_level, int):  # `transformed` reads it anew each time
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
    """How an operator is differentiated, in terms of callables that `differentiable` returned.

    Attributes
    ----------
    setup_context, backward
        As a `torch.autograd.Function` has them.
    tangent
        Takes the primal inputs, their tangents (None where one has none) and the other arguments; returns the tangent of the
        output, or a tuple of the outputs' tangents.
    """

    setup_context: Callable[..., None]
    backward: Callable[..., tuple]
    tangent: Callable[..., Any]


def differentiable(
    library: torch.library.Library, op: Any, tensors: int, rules: Rules, internals: Internals | None
) -> Callable[..., Any]:
    """Register the derivatives of an operator.

    Parameters
    ----------
    library
        Where the operator is defined.
    op
        The operator. Every tensor it takes and returns has the batch as its first axis, or is empty where it was not needed.
    tensors
        How many tensors it takes, before everything else.
    rules
        Its derivatives.
    internals
        `Internals.found()`.

    Returns
    -------
    callable
        The operator; faster where nothing needs a derivative.
    """
    if internals is None:
        return _public(library, op, tensors, rules)
    library.impl(op.name(), _autograd_kernel(op, tensors, rules, internals), "Autograd", with_keyset=True)
    torch.library.register_vmap(op, _batching_rule(op, tensors), lib=library)

    transforms_active, below_autograd = internals.transforms_active, internals.below_autograd

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            plain = forward_ad._current_level < 0 or transforms_active()
            return op(*arguments) if plain else compiled_in_forward_mode(*arguments)
        if transforms_active() or forward_ad._current_level >= 0 or _needs_gradient(arguments[:tensors]):
            return op(*arguments)
        # By way of the autograd kernel a call takes half as long again, and there is nothing for it to do.
        with below_autograd():
            return op(*arguments)

    def compiled_in_forward_mode(*arguments: Any) -> Any:
        """The graph holds the tangents: whoever runs it may not tell torch's Python part of forward mode."""
        inputs, rest = arguments[:tensors], arguments[tensors:]
        primals, tangents = _unpacked(inputs)
        if all(tangent is None for tangent in tangents):
            return op(*arguments)
        return _dual(op(*primals, *rest), rules.tangent(primals, tangents, rest))

    return call


def _autograd_kernel(op: Any, tensors: int, rules: Rules, internals: Internals) -> Callable[..., Any]:
    """Return the operator's kernel for autograd, which takes its keys and its arguments."""
    function = _one_level_function(op, tensors, rules, internals)

    def without_tangents(keyset: Any, primals: tuple, rest: tuple, inputs: tuple) -> Any:
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


def _one_level_function(op: Any, tensors: int, rules: Rules, internals: Internals) -> type:
    """Return the operator as an autograd function of one level, whose last argument is the tensors to keep for backward.

    Those are the inputs with their tangents, so that in forward mode a gradient has a tangent, too.
    """

    def forward(*arguments: Any) -> Any:
        # A function's forward runs without derivatives. The levels below this one may want theirs.
        with torch.enable_grad(), internals.forward_mode(True), internals.below_autograd():
            return op(*arguments[:-1])

    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        rules.setup_context(ctx, (*inputs[-1], *inputs[tensors:-1]), output)

    def backward(ctx: Any, *cotangents: Any) -> tuple:
        return (*rules.backward(ctx, *cotangents), None)

    return _function(internals.one_level, op, forward=forward, setup_context=setup_context, backward=backward)


def _public(library: torch.library.Library, op: Any, tensors: int, rules: Rules) -> Callable[..., Any]:
    """Return the operator with derivatives by torch's public interface alone.

    The callable has all of reverse mode, within `torch.func` too. The bare operator, and with it a compiled graph, is refused
    within `torch.func.grad` and its like (by torch), and forward mode is refused.
    """

    def refuse(*_: Any) -> None:
        raise NotImplementedError(f"torch {torch.__version__} is not known here: {op} has no forward-mode derivative with it")

    torch.library.register_autograd(op, rules.backward, setup_context=rules.setup_context, lib=library)

    def call(*arguments: Any) -> Any:
        # A graph holds the operator, and subclasses of tensors see it; an autograd function hides it from them.
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.overrides.has_torch_function(arguments[:tensors]):
            return op(*arguments)
        return function.apply(*arguments)

    batched = _batching_rule(call, tensors)
    torch.library.register_vmap(op, batched, lib=library)
    members = dict(setup_context=rules.setup_context, backward=rules.backward, jvp=refuse, vmap=batched)
    function = _function(torch.autograd.Function, op, forward=lambda *arguments: op(*arguments), **members)
    return call


def _function(base: type, op: Any, **members: Callable[..., Any]) -> type:
    """Return a class of autograd functions that is named after the operator."""
    name = op.name().partition("::")[2]
    return type(name, (base,), {member: staticmethod(function) for member, function in members.items()})


def _needs_gradient(inputs: tuple) -> bool:
    for x in inputs:  # half the time of `any`
        if x.requires_grad:
            return torch.is_grad_enabled()
    return False


def _plain(inputs: tuple) -> bool:
    """Return whether no input is of a class that stands for another tensor, as those do that a compiler traces with."""
    return {torch.Tensor, torch.nn.Parameter}.issuperset(map(type, inputs))


def _unpacked(inputs: tuple) -> tuple[tuple, tuple]:
    """Return the primals and the tangents, None where an input has none."""
    return tuple(zip(*(forward_ad.unpack_dual(x, level=LEVEL) for x in inputs), strict=True))


def _dual(primal: Any, tangent: Any) -> Any:
    """Return outputs with their tangents, where they have any."""
    if isinstance(primal, tuple):
        return tuple(map(_dual, primal, tangent))
    return primal if tangent is None else forward_ad.make_dual(primal, tangent, level=LEVEL)


def _batching_rule(call: Callable[..., Any], tensors: int) -> Callable[..., tuple[Any, Any]]:
    """Return the rule for vmap: samples know nothing of each other, so what is mapped over becomes part of the batch."""

    def rule(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Any, Any]:
        size = info.batch_size

        def folded(tensor: torch.Tensor, dim: int | None) -> torch.Tensor:
            stacked = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            return stacked.flatten(0, 1)

        def unfolded(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.unflatten(0, (size, tensor.shape[0] // size))

        results = call(*map(folded, arguments[:tensors], in_dims[:tensors]), *arguments[tensors:])
        if isinstance(results, torch.Tensor):
            return unfolded(results), 0
        return tuple(map(unfolded, results)), (0,) * len(results)

    return rule
