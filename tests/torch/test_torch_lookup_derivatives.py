"""Derivatives of torch lookups: numerical checks, the formula differentiated by torch, the transforms of `torch.func`."""

import re
import subprocess
import sys
from functools import partial
from itertools import product
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
from lookup_in_torch import written_out
from torch import func
from torch.autograd import forward_ad

import cupycorr
from cupycorr.torch import correlation_lookup

ROOT = Path(cupycorr.__file__).resolve().parents[1]

op, vjp_op = torch.ops.cupycorr.correlation_lookup, torch.ops.cupycorr.correlation_lookup_vjp


def indices(device="cpu"):
    return dict(index1=torch.tensor([1, 1, 0], device=device), index2=torch.tensor([0, 1, 1], dtype=torch.int32, device=device))


# One row for each parameter, and for those that meet: shapes of input1, of input2 (a list for a pyramid) and of coords.
MAP, COORDS = (1, 2, 2, 3), (1, 2, 2, 3)
LEVELS = [(1, 2, 3, 4), (1, 2, 2, 2)]
TABLE = {
    "a map": (MAP, (1, 2, 3, 4), COORDS, dict(patch_size=2)),
    "pyramid": (MAP, LEVELS, COORDS, dict(patch_size=(1, 2))),
    "order": (MAP, LEVELS, COORDS, dict(patch_size=(2, 1), order="dx", scale=-0.3)),
    "lookups of each pixel": (MAP, LEVELS, (1, 2, *COORDS[1:]), dict(patch_size=2)),
    "indices": ((2, 1, 1, 2), [(2, 1, 3, 3)], (3, 2, 1, 2), dict(patch_size=2, indices=True)),
    "indices and lookups": ((2, 1, 1, 2), (2, 1, 3, 3), (3, 2, 2, 1, 2), dict(patch_size=2, indices=True, order="dx")),
    "own rows": (MAP, LEVELS, (1, 1, 2, 3), dict(patch_size=(2, 3), level_step=(1, 2))),
    "own rows and lookups": (MAP, (1, 2, 3, 4), (1, 2, 1, 2, 3), dict(patch_size=(1, 2), order="dx")),
    "dilated": (MAP, (1, 2, 5, 6), COORDS, dict(patch_size=2, dilation_patch=2)),
    "levels by three": (MAP, [(1, 2, 5, 6), (1, 2, 2, 2)], COORDS, dict(patch_size=2, level_step=(3, 1), dilation_patch=(1, 2))),
}
table = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE.keys())


def prepared(row, device="cpu", needs=True):
    """Return the lookup of a row as a function of its tensors alone, the same in torch's operations, and the tensors.

    Coordinates are not near whole numbers, where the derivative jumps. Some windows leave the map.
    """
    shape1, shape2, shape_coords, parameters = row
    parameters = dict(parameters)
    if parameters.pop("indices", False):
        parameters |= indices(device)
    generator = torch.Generator().manual_seed(7)
    shapes = (shape1, *(shape2 if isinstance(shape2, list) else [shape2]))
    maps = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    steps = parameters.get("level_step", 2)
    whole = 9 if isinstance(steps, tuple) else 4  # at every level the fraction of a coordinate is that of its ninths or quarters
    coords = (torch.randint(-whole // 2, 4 * whole, shape_coords, generator=generator) + 0.5) / whole
    coords = coords.double() + 0.05 * torch.rand(shape_coords, generator=generator, dtype=torch.float64)
    inputs = [x.to(device).requires_grad_(needs) for x in (*maps, coords)]

    def called(lookup):
        return lambda a, *b, c: lookup(a, list(b) if isinstance(shape2, list) else b[0], c, **parameters)

    def positional(lookup):
        f = called(lookup)
        return lambda a, *rest: f(a, *rest[:-1], c=rest[-1])

    return positional(correlation_lookup), positional(written_out), inputs


# Numerical checks ------------------------------------------------------------------------------------------------------


@table
def test_the_first_derivatives(row, device):
    f, _, inputs = prepared(row, device)
    assert torch.autograd.gradcheck(f, inputs, fast_mode=True)


@pytest.mark.slow
@table
def test_the_second_derivatives(row, device):
    f, _, inputs = prepared(row, device)
    assert torch.autograd.gradcheck(f, inputs)
    assert torch.autograd.gradgradcheck(f, inputs)


@torchs_own_warning
@pytest.mark.slow
@table
def test_tangents_agree_with_finite_differences(row, device):
    f, _, inputs = prepared(row, device)
    only_forward = dict(check_forward_ad=True, check_backward_ad=False, check_undefined_grad=False, check_batched_grad=False)
    assert torch.autograd.gradcheck(f, inputs, **only_forward, fast_mode=True)
    forward_over_reverse = dict(check_fwd_over_rev=True, check_rev_over_rev=False, check_undefined_grad=False)
    assert torch.autograd.gradgradcheck(f, inputs, **forward_over_reverse, fast_mode=True)


# The formula, differentiated by torch ----------------------------------------------------------------------------------


def gradients(f, inputs, orders):
    """Return the value and the gradients of these orders, each of the sum of cubes of those before, for every input."""
    out, found = f(*inputs), []
    value = out
    for _ in range(orders):
        loss = sum(x.pow(3).sum() for x in (value if isinstance(value, (tuple, list)) else [value]))
        value = torch.autograd.grad(loss, inputs, create_graph=True)
        found += value
    return [out, *found]


@table
def test_two_orders_are_those_of_the_formula(row, device):
    f, formula, inputs = prepared(row, device)
    close(gradients(f, inputs, 2), gradients(formula, inputs, 2))


@pytest.mark.slow
@table
def test_three_orders_are_those_of_the_formula(row, device):
    f, formula, inputs = prepared(row, device)
    got, want = gradients(f, inputs, 3), gradients(formula, inputs, 3)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * other.abs().max().item())


@pytest.mark.parametrize("needs", [needs for needs in product((False, True), repeat=4) if any(needs)], ids=str)
def test_any_inputs_alone(needs):
    f, formula, inputs = prepared(TABLE["pyramid"])
    chosen = [x for x, needed in zip(inputs, needs, strict=True) if needed]

    def second(f):
        given = [x if needed else x.detach() for x, needed in zip(inputs, needs, strict=True)]
        first = torch.autograd.grad(f(*given).pow(3).sum(), chosen, create_graph=True)
        return [*first, *torch.autograd.grad(sum(x.pow(3).sum() for x in first), chosen)]

    close(second(f), second(formula))


def test_at_whole_numbers_the_derivative_is_that_to_the_right():
    f, formula, inputs = prepared(TABLE["pyramid"])
    inputs[-1] = inputs[-1].detach().round().requires_grad_()
    close(gradients(f, inputs, 2), gradients(formula, inputs, 2))


STRANGE = {"NaN": torch.nan, "infinity": torch.inf, "far": 1e30, "far to the left": -1e30}


@pytest.mark.parametrize("name", STRANGE)
def test_second_derivatives_at_strange_coordinates(name):
    """A coordinate that is not finite changes nothing but the results at its query; a far one adds nothing."""
    f, _, inputs = prepared(TABLE["a map"])
    strange = inputs[-1].detach().clone()
    strange[0, 0, 1, 2] = STRANGE[name]

    def second(coords, keep):
        a, b = (x.detach().requires_grad_() for x in inputs[:2])
        c = coords.clone().requires_grad_()
        out = f(a, b, c)
        first = torch.autograd.grad((out * keep).pow(3).sum(), (a, b, c), create_graph=True)
        loss = sum((x * mask).nan_to_num().pow(2).sum() for x, mask in zip(first, (keep, 1, keep), strict=True))
        return torch.autograd.grad(loss, (a, b, c))

    kept = torch.ones(2, 3, dtype=torch.float64)
    kept[1, 2] = 0
    got, want = second(strange, torch.ones_like(kept)), second(inputs[-1].detach(), kept)
    for one, other in zip(got, want, strict=True):
        query = (..., 1, 2) if one.shape[2:] == (2, 3) else None
        if query is None:
            close(one, other)
            continue
        elsewhere = torch.ones(one.shape, dtype=torch.bool)
        elsewhere[query] = False
        close(one[elsewhere], other[elsewhere])


def test_the_second_derivatives_through_all_gradients_at_once(device):
    _, _, (a, *b, c) = prepared(TABLE["pyramid"], device)
    out = op(a, b, c, patch_size=[1, 2])
    g = torch.randn_like(out.detach()).requires_grad_()

    def penalty(g, a, *rest):
        found = vjp_op(g, a, list(rest[:-1]), rest[-1], [True] * 4, patch_size=[1, 2])
        return sum(x.pow(2).sum() for x in found)

    assert torch.autograd.gradcheck(penalty, (g, a, *b, c), fast_mode=True)


def test_halves_have_second_derivatives():
    """They are those of float64 up to the rounding of their inputs, products and results."""
    f, _, inputs = prepared(TABLE["pyramid"])
    narrow = [x.detach().to(torch.bfloat16 if number < 3 else torch.float32) for number, x in enumerate(inputs)]

    def second(inputs):
        inputs = [x.requires_grad_() for x in inputs]
        out = f(*inputs)
        first = torch.autograd.grad(out, inputs, torch.ones_like(out), create_graph=True)
        return torch.autograd.grad(sum(x.double().pow(2).sum() for x in first), inputs)

    got, want = second(narrow), second([x.double() for x in narrow])
    for one, other, x in zip(got, want, narrow, strict=True):
        assert one.dtype == x.dtype
        torch.testing.assert_close(one.double(), other, rtol=0, atol=2**-5 * other.abs().max().item())


# torch.library's own checks --------------------------------------------------------------------------------------------

SETTINGS = [[2, 3], [1, 1], [2, 2], "dx", 0.5]
SAMPLES = {
    "plain": (torch.float64, True, []),
    "indices": (torch.float32, True, [torch.tensor([1, 0]), torch.tensor([1, 1], dtype=torch.int32), True, *SETTINGS]),
    "no gradients": (torch.float32, False, []),
    "halves": (torch.bfloat16, True, [None, None, True, *SETTINGS, torch.float32]),
}
slowly = [pytest.param(*row, id=name, marks=[pytest.mark.slow] * (name != "indices")) for name, row in SAMPLES.items()]


def sample(dtype, needs):
    generator = torch.Generator().manual_seed(7)
    shapes = (2, 2, 3, 4), (2, 2, 3, 4), (2, 2, 1, 2)
    a, *b = (torch.randn(shape, generator=generator).to(dtype).requires_grad_(needs) for shape in shapes)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return a, b, (3 * torch.rand((2, 2, 3, 4), generator=generator)).to(wide).requires_grad_(needs)


@checks_warning
@pytest.mark.parametrize(("dtype", "needs", "arguments"), slowly)
def test_opcheck_of_the_operator(dtype, needs, arguments):
    torch.library.opcheck(op.default, (*sample(dtype, needs), *arguments))


@checks_warning
@pytest.mark.slow
@pytest.mark.parametrize("wanted", [[True] * 4, [False, True, False, False]], ids=str)
@pytest.mark.parametrize(("dtype", "needs", "arguments"), SAMPLES.values(), ids=SAMPLES.keys())
def test_opcheck_of_its_gradients(dtype, needs, arguments, wanted):
    inputs = sample(dtype, needs)
    g = torch.randn_like(op(*inputs, *arguments).detach()).requires_grad_(needs)
    torch.library.opcheck(vjp_op.default, (g, *inputs, wanted, *arguments))


# torch.func ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["pyramid", "lookups of each pixel"])
def case(request, device):
    """A lookup, the same in torch's operations, and tensors."""
    return prepared(TABLE[request.param], device, needs=False)


@pytest.fixture
def tiny(device):
    return prepared(((1, 1, 1, 2), [(1, 1, 2, 2), (1, 1, 1, 2)], (1, 2, 1, 2), dict(patch_size=(1, 2))), device, needs=False)


def cubed(f):
    return lambda *inputs: f(*inputs).pow(3).sum()


ALL = (0, 1, 2, 3)


def test_func_grad_and_vjp(case):
    f, formula, inputs = case
    close(func.grad(cubed(f), ALL)(*inputs), func.grad(cubed(formula), ALL)(*inputs))
    out, pull = func.vjp(f, *inputs)
    g = torch.randn_like(out)
    close(pull(g), func.vjp(formula, *inputs)[1](g))


@torchs_own_warning
@modes
def test_tangents(case, mode):
    f, formula, inputs = case
    tangents = [torch.randn_like(x) for x in inputs]
    close(mode(f, inputs, tangents), func.jvp(formula, tuple(inputs), tuple(tangents))[1])
    for number, tangent in enumerate(tangents):
        alone = [*inputs[:number], *inputs[number + 1 :]]

        def of_one(x, f=f, alone=alone, number=number):
            return f(*alone[:number], x, *alone[number:])

        close(mode(of_one, [inputs[number]], [tangent]), tangent_by_reverse_mode(of_one, [inputs[number]], [tangent]))


@torchs_own_warning
@modes
@pytest.mark.parametrize("wanted", [[True] * 4, [False, True, False, False], [True, False, False, True]], ids=str)
def test_tangents_of_the_gradients(wanted, mode, device):
    _, _, (a, *b, c) = prepared(TABLE["pyramid"], device, needs=False)
    g = torch.randn_like(op(a, b, c, patch_size=[1, 2]))
    inputs = [g, a, *b, c]
    tangents = [torch.randn_like(x) for x in inputs]

    def found(g, a, *rest):
        gradients = vjp_op(g, a, list(rest[:-1]), rest[-1], wanted, patch_size=[1, 2])
        return tuple(x for x, needed in zip(gradients, wanted, strict=True) if needed)

    close(mode(found, inputs, tangents), tangent_by_reverse_mode(found, inputs, tangents))


@torchs_own_warning
def test_jacobians(tiny):
    f, formula, inputs = tiny
    want = func.jacrev(formula, ALL)(*inputs)
    close(func.jacrev(f, ALL)(*inputs), want)
    close(func.jacfwd(f, ALL)(*inputs), want)


@torchs_own_warning
@hessians
def test_second_derivatives_with_forward_mode(hessian, tiny):
    f, formula, inputs = tiny
    close(hessian(cubed(f), ALL)(*inputs), func.jacrev(func.jacrev(cubed(formula), ALL), ALL)(*inputs))


@torchs_own_warning
def test_the_hessian_by_reverse_mode_alone(tiny):
    f, formula, inputs = tiny
    close(*(func.jacrev(func.jacrev(cubed(each), ALL), ALL)(*inputs) for each in (f, formula)))


@pytest.mark.slow
@torchs_own_warning
def test_third_derivatives_with_forward_mode(tiny):
    f, formula, inputs = tiny
    want = func.jacrev(func.jacrev(func.jacrev(cubed(formula), 3), 0), 3)(*inputs)
    close(func.jacfwd(func.jacfwd(func.jacfwd(cubed(f), 3), 0), 3)(*inputs), want)
    close(func.jacfwd(func.jacrev(func.jacfwd(cubed(f), 3), 0), 3)(*inputs), want)


@torchs_own_warning
def test_gradients_of_tangents_and_tangents_of_gradients(tiny):
    """Each way computes the Hessian times the tangents."""
    f, formula, inputs = tiny
    tangents = [torch.randn_like(x) for x in inputs]
    want = by_func(func.grad(cubed(formula), ALL), inputs, tangents)
    close(func.grad(lambda *x: by_func(cubed(f), x, tangents), ALL)(*inputs), want)
    close(by_func(func.grad(cubed(f), ALL), inputs, tangents), want)
    needing = [x.clone().requires_grad_() for x in inputs]
    close(torch.autograd.grad(tangent_by_dual_numbers(cubed(f), needing, tangents), needing), want)


@torchs_own_warning
def test_reverse_mode_stays_right_inside_a_forward_level(tiny):
    f, _, inputs = tiny
    inputs = [x.clone().requires_grad_() for x in inputs]
    want = torch.autograd.grad(cubed(f)(*inputs), inputs)
    with forward_ad.dual_level():
        close(torch.autograd.grad(cubed(f)(*inputs), inputs), want)


# vmap ------------------------------------------------------------------------------------------------------------------

SAMPLES_MAPPED = 3


def each_sample(f, given, dims):
    """Return what vmap must return, by a loop."""
    return [
        f(*(x if dim is None else x.select(dim, number) for x, dim in zip(given, dims, strict=True)))
        for number in range(SAMPLES_MAPPED)
    ]


def stacked(results):
    if isinstance(results[0], tuple):
        return tuple(map(torch.stack, zip(*results, strict=True)))
    return torch.stack(results)


def check_vmap(f, inputs, dims):
    """Check a function of inputs of which each sample has its own, where it has the mapped axis."""
    generator = torch.Generator().manual_seed(1)

    def own(x, number):
        if x.is_floating_point():
            return x + 0.1 * number * torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        return (x + number) % 2

    given = [
        x if dim is None else torch.stack([own(x, number) for number in range(SAMPLES_MAPPED)]).movedim(0, dim)
        for x, dim in zip(inputs, dims, strict=True)
    ]
    got, want = func.vmap(f, dims)(*given), stacked(each_sample(f, given, dims))
    close(got, want)


@pytest.mark.parametrize("dims", [(0, 0, 0, 0), (None, None, None, 0), (0, None, None, None), (None, 2, None, -1)], ids=str)
@pytest.mark.parametrize("of", [(), (0,), (1,), (3,), ALL], ids=str)
def test_vmap_of_the_lookup_and_of_its_gradients(dims, of, device):
    f, _, inputs = prepared(TABLE["pyramid"], device, needs=False)
    check_vmap(func.grad(cubed(f), of) if of else f, inputs, dims)


def with_indices(a, b, c, index1, index2):
    return correlation_lookup(a, [b], c, 2, index1=index1, index2=index2)


MAPPED = [dims for dims in product((0, None), repeat=5) if any(dim == 0 for dim in dims)]
cheaply = [pytest.param(dims, marks=[pytest.mark.slow] * (number % 6 > 0)) for number, dims in enumerate(MAPPED)]


@pytest.mark.parametrize("dims", cheaply, ids=str)
def test_vmap_with_indices(dims, device):
    _, _, inputs = prepared(TABLE["indices"], device, needs=False)
    given = [*inputs, *indices(device).values()]
    check_vmap(with_indices, given, dims)
    check_vmap(func.grad(cubed(with_indices), (0, 1, 2)), given, dims)


SAMPLES_OF_INDICES = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 9]])
TRANSFORMS = {
    "vmap of every operand": lambda f, a, b, c: func.vmap(f)(*map(thrice, (a, b, c)), SAMPLES_OF_INDICES),
    "vmap of indices": lambda f, a, b, c: func.vmap(partial(f, a, b, c))(SAMPLES_OF_INDICES),
    "vmap along their last axis": lambda f, a, b, c: func.vmap(partial(f, a, b, c), -1)(SAMPLES_OF_INDICES.T.contiguous()),
    "vmap of maps alone": lambda f, a, b, c: func.vmap(lambda a: f(a, b, c, SAMPLES_OF_INDICES[2]))(thrice(a)),
    "vmap of vmap": lambda f, a, b, c: func.vmap(func.vmap(partial(f, a, b, c)))(SAMPLES_OF_INDICES[:, None]),
    "vmap, of maps in vmap of indices": lambda f, a, b, c: func.vmap(lambda i: func.vmap(lambda a: f(a, b, c, i))(thrice(a)))(
        SAMPLES_OF_INDICES
    ),
    "vmap of grad": lambda f, a, b, c: func.vmap(func.grad(lambda i, a: f(a, b, c, i).sum(), 1))(SAMPLES_OF_INDICES, thrice(a)),
    "grad of vmap": lambda f, a, b, c: func.grad(lambda a: func.vmap(partial(f, a, b, c))(SAMPLES_OF_INDICES).sum())(a),
    "jvp of vmap": lambda f, a, b, c: func.jvp(lambda a: func.vmap(partial(f, a, b, c))(SAMPLES_OF_INDICES), (a,), (a,)),
}


def thrice(x):
    return torch.stack([x] * 3)


def first_index(a, b, c, index1):
    return correlation_lookup(a, [b], c, 2, index1=index1, index2=torch.tensor([0, 1, 0]))


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_an_index_out_of_range_under_vmap_is_told_as_the_caller_passed_it(transform):
    a, b, c = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 6, 5), torch.rand(3, 2, 4, 5)
    with pytest.raises(IndexError, match=re.escape("index1 must be from 0 to 1, got index1[2]=9")):
        transform(first_index, a, b, c)


OF_A_SAMPLE = {
    "another length": (
        torch.tensor([0]),
        ValueError,
        "index1 must have the shape (3,) of the entries of coords, got index1.shape=(1,)",
    ),
    "floats": (torch.zeros(3), TypeError, "index1 must be of int32 or int64, got index1.dtype=float32"),
    "none, though needed": (
        None,
        ValueError,
        "coords must have the batch size of input1 unless index1 is passed, got coords.shape=(3, 2, 4, 5) and a batch size of 2",
    ),
}


@pytest.mark.parametrize(("index1", "error", "says"), OF_A_SAMPLE.values(), ids=OF_A_SAMPLE)
@pytest.mark.parametrize("own", [False, True], ids=["shared maps", "maps of each sample"])
def test_bad_indices_under_vmap_are_refused_as_those_of_a_sample(own, index1, error, says):
    a, b, c = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 6, 5), torch.rand(3, 2, 4, 5)
    with pytest.raises(error, match=re.escape(says)):
        func.vmap(lambda a, c: first_index(a, b, c, index1), (0 if own else None, 0))(thrice(a) if own else a, thrice(c))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_opcheck_of_the_operator_for_indices(dtype):
    index = torch.tensor([[0, 1, 1], [1, 0, 1]], dtype=dtype)
    torch.library.opcheck(torch.ops.cupycorr.correlation_lookup_index, (index, "index1", 2))


def test_maps_without_the_mapped_axis_are_not_copied(monkeypatch):
    """Flow hypotheses that share the features cost no copy of them."""
    from cupycorr.torch import _lookup

    f, _, inputs = prepared(TABLE["pyramid"], needs=False)
    seen, run = [], _lookup._tensors.run
    monkeypatch.setattr(
        _lookup._tensors,
        "run",
        lambda operator, request, variant, tensors, *rest: (
            seen.append(tensors),
            run(operator, request, variant, tensors, *rest),
        ),
    )
    func.vmap(f, (None, None, None, 0))(*inputs[:-1], torch.stack([inputs[-1]] * 3))
    (tensors,) = seen
    assert [tensors[name].data_ptr() for name in ("input1", "input2[0]", "input2[1]")] == [x.data_ptr() for x in inputs[:-1]]
    assert tensors["index1"].tolist() == [0, 0, 0]


def test_vmap_of_vmap(device):
    f, _, inputs = prepared(TABLE["pyramid"], device, needs=False)
    a, b0, b1, c = inputs
    many_a, many_c = torch.stack([a, 2 * a]), torch.stack([c, c + 0.3, c - 0.2])
    inner = func.vmap(f, (None, None, None, 0))
    got = func.vmap(inner, (0, None, None, None))(many_a, b0, b1, many_c)
    close(got, torch.stack([torch.stack([f(a, b0, b1, c) for c in many_c]) for a in many_a]))


# Without the names of torch that are not public ------------------------------------------------------------------------

WITHOUT = """
import sys
import torch
from torch import func
single = torch.autograd.function._SingleLevelFunction
del torch.autograd.function._SingleLevelFunction  # torch needs it itself, later
from cupycorr.torch import _lookup, correlation_lookup
torch.autograd.function._SingleLevelFunction = single
assert _lookup._internals is None
sys.path.append("tests/support")
from lookup_in_torch import written_out
compiled = None
torch.manual_seed(0)
a, b0, b1 = (torch.randn(2, 3, height, 5, dtype=torch.float64) for height in (4, 6, 3))
c = 4 * torch.rand(2, 2, 4, 5, dtype=torch.float64) + 0.1
inputs = (a, b0, b1, c)
every = (0, 1, 2, 3)

def ours(a, b0, b1, c):
    return correlation_lookup(a, [b0, b1], c, 2)

def formula(a, b0, b1, c):
    return written_out(a, [b0, b1], c, 2)

def loss(f):
    return lambda *x: f(*x).pow(3).sum()

def penalty(f):
    return lambda *x: torch.stack([g.pow(2).sum() for g in func.grad(loss(f), every)(*x)]).sum()

def gradients(f):
    needing = [x.clone().requires_grad_() for x in inputs]
    first = torch.autograd.grad(loss(f)(*needing), needing, create_graph=True)
    if f is compiled:  # torch has no second derivatives of compiled graphs
        return first
    return (*first, *torch.autograd.grad(sum(g.pow(2).sum() for g in first), needing))

def per_sample(f):
    return func.vmap(func.grad(loss(f), every))(*(x[:, None] for x in inputs))

def hypotheses(f):
    return func.vmap(f, (None, None, None, 0))(a, b0, b1, torch.stack([c, c + 0.3]))

for of in (
    lambda f: f(*inputs), gradients, lambda f: func.grad(penalty(f), every)(*inputs), per_sample, hypotheses,
    lambda f: func.jacrev(f, 3)(*inputs),
):
    torch.testing.assert_close(of(ours), of(formula))
compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(gradients(compiled), gradients(formula)[:4])

def bare(a, b0, b1, c):
    return torch.ops.cupycorr.correlation_lookup(a, [b0, b1], c, patch_size=[2, 2])

torch.testing.assert_close(gradients(bare), gradients(formula))
try:
    func.jvp(ours, inputs, inputs)
except NotImplementedError:
    print("refused")
"""


@pytest.mark.slow
def test_without_the_names_reverse_mode_is_right_by_torchs_public_interface_and_forward_mode_is_refused():
    got = subprocess.run([sys.executable, "-W", "ignore", "-c", WITHOUT], capture_output=True, text=True, cwd=ROOT)
    assert (got.returncode, got.stdout.split()) == (0, ["refused"]), got.stderr
