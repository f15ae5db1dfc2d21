"""Derivatives of the torch operator: numerical checks of every parameter, the transforms of `torch.func`, forward mode."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from derivatives import (
    by_func,
    checks_warning,
    close,
    hessians,
    modes,
    tangent_by_dual_numbers,
    tangent_by_reverse_mode,
    torchs_own_warning,
)
from torch import func
from torch.autograd import forward_ad
from watched import watched

import cupycorr
from cupycorr._correlation.variants import OPERATOR
from cupycorr.torch import _transforms
from cupycorr.torch import spatial_correlation_sample as correlate

ROOT = Path(cupycorr.__file__).resolve().parents[1]

op = torch.ops.cupycorr.spatial_correlation_sample
vjp_op = torch.ops.cupycorr.spatial_correlation_sample_vjp

# One row for each parameter, and for those that meet: shapes of input1 and input2, and the parameters.
SMALL, WIDER = (2, 2, 3, 4), (1, 2, 5, 6)
TABLE = {
    "defaults": (SMALL, SMALL, {}),
    "patch": (SMALL, SMALL, dict(patch_size=3)),
    "even patch": (SMALL, SMALL, dict(patch_size=(2, 4))),
    "even patch, steps": (SMALL, SMALL, dict(patch_size=2, dilation_patch=2)),
    "rectangular": (SMALL, SMALL, dict(kernel_size=(1, 2), patch_size=(3, 1), stride=(2, 1), padding=(0, 1), dilation=(3, 2))),
    "window": (SMALL, SMALL, dict(kernel_size=2, patch_size=(1, 3), padding=1)),
    "window, stride and dilation": (WIDER, WIDER, dict(kernel_size=2, patch_size=2, stride=2, padding=1, dilation=2)),
    "windows apart": ((1, 1, 5, 6), (1, 1, 5, 6), dict(kernel_size=2, patch_size=3, stride=3)),
    "crop": (WIDER, WIDER, dict(patch_size=3, padding=(-1, -2))),
    "offset": (SMALL, SMALL, dict(patch_size=2, patch_offset=(1, -2))),
    "another size": (SMALL, (2, 2, 5, 3), dict(patch_size=3, patch_offset=0)),
    "scale": (SMALL, SMALL, dict(patch_size=3, scale=-0.3)),
    "variant": (SMALL, SMALL, dict(patch_size=3, kernel_size=2, variant="reference")),
    "dtype": (SMALL, SMALL, dict(patch_size=3, dtype=torch.float64)),
    "precision": (SMALL, SMALL, dict(patch_size=3, precision="high")),
}
table = pytest.mark.parametrize(("shape1", "shape2", "parameters"), TABLE.values(), ids=TABLE.keys())


def draw(*shapes, device="cpu", dtype=torch.float64, needs=True):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator, dtype=dtype).to(device).requires_grad_(needs) for shape in shapes]


def on_device(parameters, device):
    return {name: value for name, value in parameters.items() if device == "cpu" or name != "variant"}


@table
def test_the_first_derivatives(shape1, shape2, parameters, device):
    assert torch.autograd.gradcheck(partial(correlate, **on_device(parameters, device)), draw(shape1, shape2, device=device))


@pytest.mark.slow
@table
def test_the_second_derivatives(shape1, shape2, parameters, device):
    assert torch.autograd.gradgradcheck(partial(correlate, **on_device(parameters, device)), draw(shape1, shape2, device=device))


def test_the_second_derivatives_through_both_gradients_at_once(device):
    x1, x2 = draw(SMALL, SMALL, device=device)
    g = torch.randn_like(correlate(x1, x2, patch_size=3).detach()).requires_grad_()

    def penalty(g, x1, x2):
        return sum(gradient.pow(2).sum() for gradient in vjp_op(g, x1, x2, [True, True], patch_size=[3, 3]))

    assert torch.autograd.gradcheck(penalty, (g, x1, x2))


def test_third_derivatives(device):
    x1, x2 = draw((1, 1, 2, 2), (1, 1, 2, 2), device=device)

    def second(a, b):
        loss = correlate(a, b, patch_size=3).pow(3).sum()
        (first,) = torch.autograd.grad(loss, a, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), b, create_graph=True)[0]

    assert torch.autograd.gradcheck(second, (x1, x2))


def test_an_input_correlated_with_itself(device):
    (x,) = draw((1, 2, 3, 4), device=device)
    assert torch.autograd.gradcheck(lambda a: correlate(a, a, patch_size=3, patch_offset=(0, 1)), (x,))
    assert torch.autograd.gradgradcheck(lambda a: correlate(a, a, patch_size=3, patch_offset=(0, 1)), (x,))


@pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=["first", "second"])
def test_each_input_alone(needs, device):
    inputs = [x.detach().requires_grad_(n) for x, n in zip(draw(SMALL, SMALL, device=device), needs, strict=True)]
    assert torch.autograd.gradcheck(partial(correlate, patch_size=3), inputs)
    assert torch.autograd.gradgradcheck(partial(correlate, patch_size=3), inputs)


# torch.library's own checks --------------------------------------------------------------------------------------------

LISTS = [[2, 1], [3, 2], [1, 2], [1, 0], [1, 1], [2, -1], [0, -1], 3, 0.5]
SAMPLES = {
    "plain": (torch.float32, True, []),
    "every parameter": (torch.float64, True, [*LISTS, torch.float32, "high", "auto"]),
    "no gradients": (torch.float32, False, LISTS),
    "halves": (torch.bfloat16, True, LISTS),
}


@checks_warning
@pytest.mark.parametrize(("dtype", "needs", "arguments"), SAMPLES.values(), ids=SAMPLES.keys())
def test_opcheck_of_the_operator(dtype, needs, arguments, device):
    inputs = draw((2, 3, 6, 7), (2, 3, 6, 7), dtype=dtype, needs=needs, device=device)
    torch.library.opcheck(op.default, (*inputs, *arguments))


@pytest.mark.covering(1)
@checks_warning
@pytest.mark.parametrize("asked", [[True, True], [True, False], [False, True]], ids=str)
@pytest.mark.parametrize(("dtype", "needs", "arguments"), SAMPLES.values(), ids=SAMPLES.keys())
def test_opcheck_of_its_gradients(dtype, needs, arguments, asked, device):
    inputs = draw((2, 3, 6, 7), (2, 3, 6, 7), dtype=dtype, needs=needs, device=device)
    g = torch.randn_like(op(*inputs, *arguments).detach()).requires_grad_(needs)
    torch.library.opcheck(vjp_op.default, (g, *inputs, asked, *arguments))


# torch.func ------------------------------------------------------------------------------------------------------------

PARAMETERS = dict(kernel_size=2, patch_size=(3, 2), padding=1, scale=0.5)
measured = partial(correlate, **PARAMETERS)
SIZES = [(2, 2, 3, 4), (2, 2, 3, 4)]


def loss(x1, x2):
    return measured(x1, x2).pow(3).sum()


def plain_gradients(x1, x2, f=loss):
    x1, x2 = (x.detach().clone().requires_grad_() for x in (x1, x2))
    return torch.autograd.grad(f(x1, x2), (x1, x2))


@pytest.fixture
def pair(device):
    return draw(*SIZES, device=device, needs=False)


def test_func_grad(pair):
    close(func.grad(loss, (0, 1))(*pair), plain_gradients(*pair))


def test_func_vjp(pair):
    out, pull = func.vjp(measured, *pair)
    g = torch.randn_like(out)
    close(pull(g), plain_gradients(*pair, f=lambda a, b: (measured(a, b) * g).sum()))


def test_func_jacrev(pair):
    close(func.jacrev(measured, (0, 1))(*pair), torch.autograd.functional.jacobian(measured, tuple(pair)))


def test_func_jacrev_of_jacrev_is_the_hessian(pair):
    x1, x2 = pair[0][:1], pair[1][:1]
    close(func.jacrev(func.jacrev(loss, (0, 1)), (0, 1))(x1, x2), torch.autograd.functional.hessian(loss, (x1, x2)))


def test_func_grad_of_grad_of_grad(pair):
    def third(a, b, grad):
        return grad(lambda b: grad(lambda a: grad(loss)(a, b).pow(2).sum())(a).pow(2).sum())(b)

    def plain(f):
        def differentiated(x):
            x = x if x.requires_grad else x.detach().requires_grad_()
            return torch.autograd.grad(f(x), x, create_graph=True)[0]

        return differentiated

    a, b = pair
    first = lambda a, b: plain(lambda a: loss(a, b))(a)  # noqa: E731
    want = plain(lambda b: plain(lambda a: first(a, b).pow(2).sum())(a).pow(2).sum())(b)
    close(third(a, b, func.grad), want.detach())


def test_autograd_around_func_grad(pair):
    a = pair[0].clone().requires_grad_()
    (got,) = torch.autograd.grad(func.grad(loss)(a, pair[1]).pow(2).sum(), a)
    close(got, func.grad(lambda a: func.grad(loss)(a, pair[1]).pow(2).sum())(pair[0]))
    assert got.abs().max() > 0


def stacked(device, count=3):
    return draw((count, *SIZES[0]), (count, *SIZES[1]), device=device, needs=False)


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (2, 0), (0, -1)], ids=str)
def test_vmap_over_any_axis_of_either_input(in_dims, device):
    inputs = stacked(device)
    moved = [x[0] if dim is None else x.movedim(0, dim) for x, dim in zip(inputs, in_dims, strict=True)]
    got = func.vmap(measured, in_dims)(*moved)
    each = [[x[0] if dim is None else x[k] for x, dim in zip(inputs, in_dims, strict=True)] for k in range(3)]
    close(got, torch.stack([measured(*pair) for pair in each]))


def test_vmap_of_vmap(device):
    x1, x2 = stacked(device)
    got = func.vmap(func.vmap(measured, (None, 0)), (0, None))(x1, x2)
    close(got, torch.stack([torch.stack([measured(a, b) for b in x2]) for a in x1]))


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0)], ids=str)
def test_per_sample_gradients(in_dims, device):
    inputs = stacked(device)
    given = [x if dim == 0 else x[0] for x, dim in zip(inputs, in_dims, strict=True)]
    got = func.vmap(func.grad(loss, (0, 1)), in_dims)(*given)
    each = [plain_gradients(*(x[k] if dim == 0 else x[0] for x, dim in zip(inputs, in_dims, strict=True))) for k in range(3)]
    close(got, tuple(map(torch.stack, zip(*each, strict=True))))


def test_per_sample_gradients_of_one_input(device):
    x1, x2 = stacked(device)
    want = torch.stack([plain_gradients(a, b)[1] for a, b in zip(x1, x2, strict=True)])
    close(func.vmap(func.grad(loss, 1))(x1, x2), want)


def test_per_sample_gradients_of_a_model(device):
    torch.manual_seed(0)
    net = torch.nn.Conv2d(3, 4, 3, padding=1, device=device, dtype=torch.float64)
    frames1, frames2 = draw((4, 3, 6, 7), (4, 3, 6, 7), device=device, needs=False)

    def one(weights, a, b):
        fa, fb = (func.functional_call(net, weights, (x[None],)) for x in (a, b))
        return correlate(fa, fb, patch_size=3).pow(2).sum()

    weights = {name: p.detach() for name, p in net.named_parameters()}
    got = func.vmap(func.grad(one), (None, 0, 0))(weights, frames1, frames2)
    for k in range(4):
        net.zero_grad()
        correlate(net(frames1[k : k + 1]), net(frames2[k : k + 1]), patch_size=3).pow(2).sum().backward()
        for name, p in net.named_parameters():
            close(got[name][k], p.grad)


def test_the_bare_operators_transform_too(pair):
    def bare(a, b):
        return op(a, b, [2, 2], [3, 2], [1, 1], [1, 1], scale=0.5).pow(3).sum()

    close(func.grad(bare, (0, 1))(*pair), plain_gradients(*pair))
    g = torch.randn_like(op(*pair)).detach()
    got = func.vmap(lambda a, b, g: vjp_op(g, a, b, [True, False])[0])(*(x[:, None] for x in (*pair, g)))
    close(got[:, 0], vjp_op(g, *pair, [True, False])[0])


# Forward mode ----------------------------------------------------------------------------------------------------------

FORMS = {"function": measured, "operator": lambda a, b: op(a, b, [2, 2], [3, 2], [1, 1], [1, 1], scale=0.5)}
forms = pytest.mark.parametrize("f", FORMS.values(), ids=FORMS.keys())


def cubed(f):
    return lambda *inputs: f(*inputs).pow(3).sum()


@pytest.fixture
def tangents(device):
    return draw(*SIZES, *SIZES, device=device, needs=False)[2:]


@torchs_own_warning
@table
def test_tangents_of_every_parameter_agree_with_finite_differences(shape1, shape2, parameters, device):
    f = partial(correlate, **on_device(parameters, device))
    inputs = draw(shape1, shape2, device=device)
    only_forward = dict(check_forward_ad=True, check_backward_ad=False, check_undefined_grad=False, check_batched_grad=False)
    assert torch.autograd.gradcheck(f, inputs, **only_forward, fast_mode=True)
    forward_over_reverse = dict(check_fwd_over_rev=True, check_rev_over_rev=False, check_undefined_grad=False)
    assert torch.autograd.gradgradcheck(f, inputs, **forward_over_reverse, fast_mode=True)


@torchs_own_warning
@modes
@forms
def test_the_tangent_is_the_sum_of_two_forward_maps(f, mode, pair, tangents):
    (x1, x2), (t1, t2) = pair, tangents
    out, _ = func.jvp(f, (x1, x2), (t1, t2))
    assert torch.equal(out, f(x1, x2))
    close(mode(f, pair, tangents), f(t1, x2) + f(x1, t2))
    close(mode(lambda a: f(a, x2), [x1], [t1]), f(t1, x2))
    close(mode(lambda b: f(x1, b), [x2], [t2]), f(x1, t2))
    close(mode(lambda a: f(a, a), [x1], [t1]), f(t1, x1) + f(x1, t1))


@torchs_own_warning
def test_no_tangent_costs_one_forward_map(pair, variants):
    calls = []
    variants(watched(OPERATOR.variants[0], lambda *request: calls.append(request)))
    tangent_by_dual_numbers(measured, pair, [torch.ones_like(pair[0]), None])
    assert len(calls) == 2
    with forward_ad.dual_level():
        assert forward_ad.unpack_dual(measured(*pair)).tangent is None
    assert len(calls) == 3


@torchs_own_warning
@modes
@pytest.mark.parametrize("needs", [[True, True], [True, False], [False, True]], ids=str)
def test_tangents_of_the_gradients(needs, mode, pair, tangents):
    x1, x2 = pair
    g, tg = torch.randn_like(op(x1, x2)), torch.randn_like(op(x1, x2))

    def gradients(g, x1, x2):
        return tuple(each for each, needed in zip(vjp_op(g, x1, x2, needs), needs, strict=True) if needed)

    close(
        mode(gradients, [g, x1, x2], [tg, *tangents]),
        tangent_by_reverse_mode(gradients, [g, x1, x2], [tg, *tangents]),
    )


@torchs_own_warning
@forms
def test_func_jacfwd(f, pair):
    close(func.jacfwd(f, (0, 1))(*pair), torch.autograd.functional.jacobian(f, tuple(pair)))


@pytest.mark.covering(1)
@torchs_own_warning
@hessians
@forms
def test_second_derivatives_with_forward_mode(f, hessian, pair):
    x1, x2 = pair[0][:1], pair[1][:1]
    close(hessian(cubed(f), (0, 1))(x1, x2), torch.autograd.functional.hessian(cubed(f), (x1, x2)))


@torchs_own_warning
def test_third_derivatives_with_forward_mode(pair):
    x1, x2 = (x[:1, :1, :2, :2] for x in pair)
    f = lambda a, b: correlate(a, b, patch_size=3).pow(3).sum()  # noqa: E731
    want = func.jacrev(func.jacrev(func.jacrev(f), 1))(x1, x2)
    close(func.jacfwd(func.jacfwd(func.jacfwd(f), 1))(x1, x2), want)
    close(func.jacfwd(func.jacrev(func.jacfwd(f), 1))(x1, x2), want)


@torchs_own_warning
@forms
def test_tangents_inside_and_outside_of_vmap(f, pair, tangents):
    def one(a, b):
        return f(a[None], b[None])[0]

    want = f(tangents[0], pair[1]) + f(pair[0], tangents[1])
    close(func.vmap(lambda a, b, s, t: by_func(one, (a, b), (s, t)))(*pair, *tangents), want)
    close(by_func(func.vmap(one), pair, tangents), want)


@torchs_own_warning
@forms
def test_gradients_of_tangents_and_tangents_of_gradients(f, pair, tangents):
    """Each way computes the Hessian times the tangents."""

    def tangent_of_loss(a, b):
        return (3 * f(a, b).pow(2) * (f(tangents[0], b) + f(a, tangents[1]))).sum()

    want = plain_gradients(*pair, f=tangent_of_loss)
    close(func.grad(lambda a, b: by_func(cubed(f), (a, b), tangents), (0, 1))(*pair), want)
    close(by_func(func.grad(cubed(f), (0, 1)), pair, tangents), want)
    inputs = [x.clone().requires_grad_() for x in pair]
    close(torch.autograd.grad(tangent_by_dual_numbers(cubed(f), inputs, tangents), inputs), want)

    def gradients(a, b):
        return torch.autograd.grad(cubed(f)(a, b), (a, b), create_graph=True)

    close(tangent_by_dual_numbers(gradients, inputs, tangents), want)


@torchs_own_warning
def test_reverse_mode_stays_right_inside_a_forward_level(pair):
    with forward_ad.dual_level():
        got = plain_gradients(*pair)
    close(got, plain_gradients(*pair))


# Without the names of torch that are not public ------------------------------------------------------------------------

PRIVATE = {
    "_AutoDispatchBelowAutograd": torch._C,
    "_after_autograd_keyset": torch._C,
    "_are_functorch_transforms_active": torch._C,
    "_SingleLevelFunction": torch.autograd.function,
    "enable_single_level_autograd_function": torch._functorch.utils,
    "_set_fwd_grad_enabled": forward_ad,
    "_current_level": forward_ad,
}


def test_this_torch_has_the_names():
    assert _transforms.Internals.found() is not None


@pytest.mark.parametrize(("name", "owner"), PRIVATE.items(), ids=PRIVATE.keys())
def test_where_one_of_the_names_is_gone_none_is_used(name, owner, monkeypatch):
    monkeypatch.delattr(owner, name)
    assert _transforms.Internals.found() is None


WITHOUT = """
import sys
import torch
from torch import func
single = torch.autograd.function._SingleLevelFunction
del torch.autograd.function._SingleLevelFunction  # torch needs it itself, later
from cupycorr.torch import _correlation, spatial_correlation_sample
torch.autograd.function._SingleLevelFunction = single
assert _correlation._internals is None
compiled = None
torch.manual_seed(0)
a, b, t = (torch.randn(2, 3, 4, 5, dtype=torch.float64) for _ in range(3))

def f(a, b):
    return spatial_correlation_sample(a, b, patch_size=3)

def written_out(a, b):
    b = torch.nn.functional.pad(b, (1, 1, 1, 1))
    moved = [[(a * b[..., m : m + a.shape[2], n : n + a.shape[3]]).sum(1) for n in range(3)] for m in range(3)]
    return torch.stack([torch.stack(row, 1) for row in moved], 1)

def loss(f):
    return lambda a, b: f(a, b).pow(3).sum()

def penalty(f):
    return lambda a, b: torch.stack([g.pow(2).sum() for g in func.grad(loss(f), (0, 1))(a, b)]).sum()

def gradients(f):
    inputs = [x.clone().requires_grad_() for x in (a, b)]
    first = torch.autograd.grad(loss(f)(*inputs), inputs, create_graph=True)
    if f is compiled:  # torch has no second derivatives of compiled graphs
        return first
    return (*first, *torch.autograd.grad(sum(g.pow(2).sum() for g in first), inputs))

for of in (
    lambda f: f(a, b),
    gradients,
    lambda f: func.grad(penalty(f), (0, 1))(a, b),
    lambda f: func.jacrev(f)(a, b),
    lambda f: func.vmap(func.grad(loss(f), (0, 1)))(a[:, None], b[:, None]),
    lambda f: func.grad(lambda a: func.vmap(f)(a[:, None], b[:, None]).pow(3).sum())(a),
):
    torch.testing.assert_close(of(f), of(written_out))
compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(gradients(compiled), gradients(written_out)[:2])

def bare(a, b):
    return torch.ops.cupycorr.spatial_correlation_sample(a, b, patch_size=[3, 3])

def refused(call):
    try:
        call()
    except (NotImplementedError, RuntimeError) as error:
        return type(error).__name__
    return "nothing"

torch.testing.assert_close(gradients(bare)[:2], gradients(written_out)[:2])
print(refused(lambda: func.grad(loss(bare))(a, b)), refused(lambda: func.jvp(f, (a, b), (t, t))))
"""


@pytest.mark.slow
def test_without_the_names_reverse_mode_is_right_by_torchs_public_interface_and_the_rest_is_refused():
    got = subprocess.run([sys.executable, "-W", "ignore", "-c", WITHOUT], capture_output=True, text=True, cwd=ROOT)
    assert (got.returncode, got.stdout.split()) == (0, ["RuntimeError", "NotImplementedError"]), got.stderr
