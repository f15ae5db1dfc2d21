"""Derivatives of the torch operator: numerical checks of every parameter, the transforms of `torch.func`, what is refused."""

from functools import partial

import pytest
import torch
from torch import func
from torch.autograd import forward_ad

from cupycorr.torch import spatial_correlation_sample as correlate

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

LISTS = [[2, 1], [3, 2], [1, 2], [1, 0], [1, 1], [2, 1], [0, -1], 0.5]
SAMPLES = {
    "plain": (torch.float32, True, []),
    "every parameter": (torch.float64, True, [*LISTS, torch.float32, "high", "auto"]),
    "no gradients": (torch.float32, False, LISTS),
    "halves": (torch.bfloat16, True, LISTS),
}


@pytest.mark.parametrize(("dtype", "needs", "arguments"), SAMPLES.values(), ids=SAMPLES.keys())
def test_opcheck_of_the_operator(dtype, needs, arguments, device):
    inputs = draw((2, 3, 6, 7), (2, 3, 6, 7), dtype=dtype, needs=needs, device=device)
    torch.library.opcheck(op.default, (*inputs, *arguments))


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


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


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


# What torch could only get silently wrong ------------------------------------------------------------------------------


def dual(f):
    def call(a, b):
        with forward_ad.dual_level():
            return f(forward_ad.make_dual(a, torch.ones_like(a)), b)

    return call


FORWARD_MODE = {
    "jvp": lambda a, b: func.jvp(measured, (a, b), (a, b)),
    "jvp of a gradient": lambda a, b: func.jvp(func.grad(loss), (a, b), (a, b)),
    "gradient of a jvp": lambda a, b: func.grad(lambda x: func.jvp(loss, (x, b), (a, b))[1])(a),
    "jacfwd": lambda a, b: func.jacfwd(measured)(a, b),
    "jacfwd in vmap": lambda a, b: func.vmap(func.jacfwd(loss))(a[:, None], b[:, None]),
    "hessian": lambda a, b: func.hessian(loss)(a, b),
    "dual numbers": dual(measured),
    "dual numbers, bare": dual(op),
    "dual numbers, gradients": dual(lambda a, b: vjp_op(op(b, b), a, b, [True, True])),
    "dual numbers that need gradients": dual(lambda a, b: measured(a.requires_grad_(), b)),
}


# Forward mode makes torch script decompositions of its own.
torchs_own_warning = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@torchs_own_warning
@pytest.mark.parametrize("call", FORWARD_MODE.values(), ids=FORWARD_MODE.keys())
def test_forward_mode_is_refused(call, pair):
    with pytest.raises(NotImplementedError, match=r"no forward-mode derivative.*use reverse mode"):
        call(*pair)


@torchs_own_warning
def test_reverse_mode_stays_right_inside_a_forward_level(pair):
    with forward_ad.dual_level():
        got = plain_gradients(*pair)
    close(got, plain_gradients(*pair))
