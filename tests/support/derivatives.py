"""Derivatives of torch functions in several ways, and the warnings of torch that they raise."""

import pytest
import torch
from torch import func
from torch.autograd import forward_ad

# Forward mode makes torch script decompositions of its own.
torchs_own_warning = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

# The check itself reads such a gradient in torch 2.15, of torch's own operators, too.
checks_warning = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def tangent_by_reverse_mode(f, primals, tangents):
    """Return the Jacobian times the tangents: the derivative of the transposed product with respect to its vector."""
    primals = [x.detach().clone().requires_grad_() for x in primals]
    out = f(*primals)
    outputs = out if isinstance(out, tuple) else (out,)
    vectors = [torch.zeros_like(each).requires_grad_() for each in outputs]
    transposed = torch.autograd.grad(outputs, primals, vectors, create_graph=True, allow_unused=True)
    terms = [(g * t).sum() for g, t in zip(transposed, tangents, strict=True) if g is not None]
    results = torch.autograd.grad(sum(terms), vectors)
    return results if isinstance(out, tuple) else results[0]


def tangent_by_dual_numbers(f, primals, tangents):
    with forward_ad.dual_level():
        pairs = zip(primals, tangents, strict=True)
        out = f(*(x if t is None else forward_ad.make_dual(x, t) for x, t in pairs))
        outputs = out if isinstance(out, tuple) else (out,)
        results = tuple(forward_ad.unpack_dual(each).tangent for each in outputs)
    return results if isinstance(out, tuple) else results[0]


def by_func(f, primals, tangents):
    return func.jvp(f, tuple(primals), tuple(tangents))[1]


MODES = {"jvp": by_func, "dual numbers": tangent_by_dual_numbers}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())

HESSIANS = {
    "hessian": func.hessian,
    "jacfwd of jacfwd": lambda f, argnums: func.jacfwd(func.jacfwd(f, argnums), argnums),
    "jacrev of jacfwd": lambda f, argnums: func.jacrev(func.jacfwd(f, argnums), argnums),
}
hessians = pytest.mark.parametrize("hessian", HESSIANS.values(), ids=HESSIANS.keys())
