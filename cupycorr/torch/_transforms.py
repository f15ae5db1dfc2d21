"""An operator that torch can differentiate, batch and trace, out of its registered form and one rule for each.

The rules make one `autograd.Function`, and the operator's autograd kernel applies it, also at each level of `torch.func`'s
transforms and in forward mode. So a compiled graph, which holds nothing but the operator, is differentiated by the same rules,
and nothing is silently zero. Nothing here knows correlation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad


def differentiable(
    library: torch.library.Library, op: Any, tensors: int, setup_context: Callable[..., None], backward: Callable[..., tuple]
) -> Callable[..., Any]:
    """Register the rules of an operator.

    Parameters
    ----------
    library
        Where the operator is defined.
    op
        The operator. Every tensor it takes and returns has the batch as its first axis, or is empty where it was not asked for.
    tensors
        How many tensors it takes, before everything else.
    setup_context, backward
        As an `autograd.Function` has them, in terms of operators registered here.

    Returns
    -------
    callable
        The operator; faster where nothing needs a gradient.
    """

    def below_autograd(*arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*arguments)

    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[Any, Any]:
        return _as_one_batch(op, tensors, info.batch_size, in_dims, arguments)

    def forward(*arguments: Any) -> Any:
        # A function's forward runs with gradients off. Below it may be an outer transform, which wants its own.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return below_autograd(*arguments)

    rules = dict(forward=forward, setup_context=setup_context, backward=backward, jvp=_refusal(op))
    members = {name: staticmethod(rule) for name, rule in rules.items()}
    function = type(op.name().partition("::")[2], (torch.autograd.Function,), members)
    apply = super(torch.autograd.Function, function).apply

    def autograd(keyset: Any, *arguments: Any) -> Any:
        if _transformed() or _needs_gradient(arguments):
            with enable_single_level_autograd_function():
                return apply(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    library.impl(op.name(), autograd, "Autograd", with_keyset=True)
    torch.library.register_vmap(op, vmap, lib=library)

    def call(*arguments: Any) -> Any:
        # By way of the autograd kernel a call takes half as long again, and there is nothing for it to do.
        if torch.compiler.is_compiling() or _transformed() or _needs_gradient(arguments):
            return op(*arguments)
        return below_autograd(*arguments)

    return call


def _needs_gradient(arguments: tuple) -> bool:
    return torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)


def _transformed() -> bool:
    """Whether a transform of `torch.func` or forward mode is on."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _refusal(op: Any) -> Callable[..., None]:
    def refuse(*_: Any) -> None:
        raise NotImplementedError(
            f"{op} has no forward-mode derivative (torch.func.jvp, jacfwd, hessian, torch.autograd.forward_ad): use reverse mode "
            "(torch.func.vjp, jacrev, torch.autograd.grad)"
        )

    return refuse


def _as_one_batch(op: Any, tensors: int, size: int, in_dims: tuple, arguments: tuple) -> tuple[Any, Any]:
    """The batching rule: samples know nothing of each other, so what is mapped over becomes part of the batch."""

    def folded(tensor: torch.Tensor, dim: int | None) -> torch.Tensor:
        stacked = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        return stacked.flatten(0, 1)

    def unfolded(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unflatten(0, (size, tensor.shape[0] // size))

    results = op(*map(folded, arguments[:tensors], in_dims[:tensors]), *arguments[tensors:])
    if isinstance(results, torch.Tensor):
        return unfolded(results), 0
    return tuple(map(unfolded, results)), (0,) * len(results)
