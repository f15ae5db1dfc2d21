"""Matching as torch operators: values, derivatives of any order, transforms, graphs, memory and refusals."""

import inspect
from functools import partial

import numpy as np
import pytest
import torch
from cases import DTYPES, NAMED
from matching_cases import CPU_VARIANTS, OUTSIDE, of
from tensors import array, tensor
from torch import func

import cupycorr
from cupycorr._cpu import workers
from cupycorr._matching import by_slices, slices
from cupycorr._matching.problem import Best, Mean, Problem
from cupycorr._matching.results import best_displacement
from cupycorr.torch import _matching, correlation_argmax, correlation_soft_argmax, spatial_correlation_sample

BOTH = {"argmax": correlation_argmax, "soft_argmax": correlation_soft_argmax}
ARRAYS = {"argmax": cupycorr.correlation_argmax, "soft_argmax": cupycorr.correlation_soft_argmax}
both = pytest.mark.parametrize("name", BOTH)
outsides = pytest.mark.parametrize("outside", OUTSIDE)
torchs_own_warning = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


def draw(shape=(2, 2, 3, 4), device="cpu", dtype=torch.float64, needs=True, seed=3):
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn((2, *shape), generator=generator, dtype=torch.float64).to(device, dtype)
    return tuple(x.clone().requires_grad_(needs) for x in pair)


# Values -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.covering(2)
@both
@outsides
@pytest.mark.parametrize("variant", [*CPU_VARIANTS, "auto"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_the_cpu_the_bits_are_the_array_functions(name, outside, dtype, variant):
    for case in ("pwcnet-like", "window, stride and dilation"):
        arrays = of(NAMED[case], dtype).arrays()[:2]
        options = dict(NAMED[case].parameters, outside=outside, variant=variant)
        want = ARRAYS[name](*arrays, **options)
        for function in (BOTH[name], ARRAYS[name]):  # the functions for arrays take tensors, too
            found = function(*map(tensor, arrays), **options)
            assert type(found) is type(want)
            for got, each in zip((*found, found.flow), (*want, want.flow), strict=True):
                np.testing.assert_array_equal(array(got), each)
                assert str(got.dtype) == f"torch.{each.dtype}"


@outsides
@pytest.mark.parametrize("case", ["pwcnet-like", "window, stride and dilation", "even patch"])
def test_slices_as_cuda_tensors_take_them_give_the_same_on_the_cpu(monkeypatch, case, outside):
    monkeypatch.setattr(by_slices, "slices", partial(slices.slices, limit=5000))
    x1, x2 = map(tensor, NAMED[case].arrays()[:2])
    correlation, float32 = NAMED[case].problem(), torch.float32

    def scores(part):
        return spatial_correlation_sample(x1[part.samples], x2[part.samples], **part.arguments())

    best = correlation_argmax(x1, x2, **NAMED[case].parameters, top_k=2, outside=outside)
    results = {"score": torch.empty_like(best.score), "channel": torch.empty_like(best.channel)}
    by_slices.run(Problem(correlation, Best(2), outside == "excluded"), results, scores, float32.itemsize)
    torch.testing.assert_close(results["score"], best.score, equal_nan=True)
    assert torch.equal(results["channel"], best.channel)

    soft = correlation_soft_argmax(x1, x2, **NAMED[case].parameters, outside=outside)
    results = {name: torch.empty_like(soft.dy) for name in ("dy", "dx")}
    by_slices.run(Problem(correlation, Mean(), outside == "excluded"), results, scores, float32.itemsize)
    torch.testing.assert_close((results["dy"], results["dx"]), tuple(soft), rtol=1e-5, atol=1e-5)

    if not correlation.windowed:
        one = correlation_argmax(x1, x2, **NAMED[case].parameters, outside=outside, subpixel=True)
        shape = one.score[:, None].shape
        results = {"score": torch.empty(shape), "channel": torch.empty(shape, dtype=torch.int64)}
        results["around"] = torch.empty((shape[0], 4, *shape[2:]))
        problem = Problem(correlation, Best(1, True), outside == "excluded")
        by_slices.run(problem, results, scores, float32.itemsize)
        found = best_displacement(problem.ranges, problem.excluding, *results.values())
        torch.testing.assert_close(tuple(found[:2]), tuple(one[:2]), rtol=1e-3, atol=1e-3)


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_casts_the_inputs(name, dtype, device):
    x1, x2 = draw((1, 8, 6, 7), device, torch.float32, False)
    with torch.autocast(torch.device(device).type, dtype=dtype):
        found = BOTH[name](x1, x2, patch_size=3)
    for got, want in zip(found, BOTH[name](x1.to(dtype), x2.to(dtype), patch_size=3), strict=True):
        assert torch.equal(got, want)


def test_meta_tensors_have_the_shapes_and_no_data():
    x = torch.empty(2, 3, 8, 9, device="meta")
    best = correlation_argmax(x, x, 3, 5, top_k=2, outside="excluded")
    assert {(each.shape, each.device.type) for each in best} == {((2, 2, 6, 7), "meta")}
    mean = correlation_soft_argmax(x.half(), x.half(), 3, 5)
    assert (mean.dy.shape, mean.dy.dtype, mean.flow.shape) == ((2, 6, 7), torch.float32, (2, 6, 7, 2))


# Derivatives ------------------------------------------------------------------------------------------------------------------


def score(a, b, **parameters):
    return correlation_argmax(a, b, **parameters).score.nan_to_num()


def between_pixels(a, b, **parameters):
    return correlation_argmax(a, b, **parameters, subpixel=True).flow.nan_to_num()


def mean(a, b, **parameters):
    return correlation_soft_argmax(a, b, **parameters, temperature=1.5).flow


TABLE = {
    "score": (score, dict(patch_size=3)),
    "scores of windows": (score, dict(kernel_size=2, patch_size=3, padding=1, top_k=3, scale=-0.5)),
    "subpixel": (between_pixels, dict(patch_size=(3, 4), dilation_patch=2)),
    "mean": (mean, dict(patch_size=3)),
    "mean of windows": (mean, dict(kernel_size=2, patch_size=(2, 3), stride=2, padding=1, scale=0.5)),
}
table = pytest.mark.parametrize(("function", "parameters"), TABLE.values(), ids=TABLE)


@torchs_own_warning
@table
@outsides
def test_the_first_derivatives_in_both_modes(function, parameters, outside, device):
    f = partial(function, **parameters, outside=outside)
    assert torch.autograd.gradcheck(f, draw(device=device), check_forward_ad=True, check_batched_grad=True)


@torchs_own_warning
@pytest.mark.parametrize(
    ("function", "parameters"),
    [pytest.param(*row, id=name, marks=() if name in ("score", "mean") else pytest.mark.slow) for name, row in TABLE.items()],
)
@outsides
def test_the_second_derivatives_in_both_modes(function, parameters, outside, device):
    f = partial(function, **parameters, outside=outside)
    assert torch.autograd.gradgradcheck(f, draw((1, 2, 3, 4), device), check_fwd_over_rev=True)


@table
def test_derivatives_in_slices_are_those_through_the_volume(monkeypatch, function, parameters, device):
    f = partial(function, **parameters)
    x1, x2 = draw((3, 4, 9, 11), device)
    g = torch.randn_like(f(x1, x2).detach())
    want = torch.autograd.grad(f(x1, x2), (x1, x2), g)
    monkeypatch.setattr(_matching, "GRADIENT_BYTES", 4000)
    for got, each in zip(torch.autograd.grad(f(x1, x2), (x1, x2), g), want, strict=True):
        torch.testing.assert_close(got, each, rtol=1e-12, atol=1e-12)


def test_the_gradient_of_the_mean_is_that_of_the_volume_s(device):
    x1, x2 = draw((1, 16, 12, 14), device, torch.float32)
    want = cupycorr.soft_argmax(spatial_correlation_sample(x1, x2, patch_size=9), 2.0).flow.movedim(1, -1)
    g = torch.randn_like(want)
    found = correlation_soft_argmax(x1, x2, patch_size=9, temperature=2.0).flow
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
    for got, each in zip(torch.autograd.grad(found, (x1, x2), g), torch.autograd.grad(want, (x1, x2), g), strict=True):
        torch.testing.assert_close(got, each, rtol=1e-4, atol=1e-4)


def test_sixteen_bit_gradients_are_summed_in_the_accumulator(monkeypatch, device):
    x1, x2 = draw((1, 16, 12, 14), device, torch.float16)
    wide = [x.detach().float().requires_grad_() for x in (x1, x2)]
    monkeypatch.setattr(_matching, "GRADIENT_BYTES", 4000)
    for f in (score, mean):
        want = torch.autograd.grad(f(*wide, patch_size=9).sum(), wide)
        for got, each in zip(torch.autograd.grad(f(x1, x2, patch_size=9).sum(), (x1, x2)), want, strict=True):
            assert torch.equal(got, each.half())


@both
def test_bits_of_gradients_do_not_depend_on_threads(name):
    x1, x2 = draw((2, 16, 40, 50), dtype=torch.float32)
    found = []
    for threads in (1, 2, 5):
        with workers.team_of(threads):
            out = (score if name == "argmax" else mean)(x1, x2, patch_size=5)
            found.append([each.detach().numpy().tobytes() for each in (out, *torch.autograd.grad(out.sum(), (x1, x2)))])
    assert found[0] == found[1] == found[2]


def test_each_input_alone(device):
    for which in (0, 1):
        inputs = [x.detach().requires_grad_(number == which) for number, x in enumerate(draw(device=device))]
        for f in (score, mean):
            assert torch.autograd.gradcheck(partial(f, patch_size=3), inputs)
            assert torch.autograd.gradgradcheck(partial(f, patch_size=3), inputs)


def test_positions_at_which_all_displacements_are_excluded_have_no_gradient(device):
    x1, x2 = draw((1, 2, 4, 5), device)
    for f in (correlation_argmax, correlation_soft_argmax):
        found = f(x1, x2, patch_size=(1, 2), patch_offset=(0, 3), outside="excluded")
        value = found[2] if f is correlation_argmax else found[1]
        assert value[..., 2:].isnan().all()
        assert not value[..., :2].isnan().any()
        for gradient in torch.autograd.grad(value[..., :2].sum(), (x1, x2)):
            assert gradient.isfinite().all()


# torch.library's own checks

ARGUMENTS = [[1, 1], [3, 2], [1, 1], [0, 0], [1, 1], [1, 2], [0, 1], 0.5, None, "auto"]
OPS = {
    "argmax": (torch.ops.cupycorr.correlation_argmax, [2, False, "zero"]),
    "argmax, subpixel": (torch.ops.cupycorr.correlation_argmax, [1, True, "zero"]),
    "soft_argmax": (torch.ops.cupycorr.correlation_soft_argmax, [2.0, "zero"]),
}
checks_warning = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@checks_warning
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("op", "more"), OPS.values(), ids=OPS)
def test_opcheck_of_the_operators(op, more, dtype, device):
    torch.library.opcheck(op.default, (*draw((2, 3, 5, 6), device, dtype), *ARGUMENTS, *more))


@checks_warning
@pytest.mark.parametrize("needs", [[True, True], pytest.param([False, True], marks=pytest.mark.slow)], ids=str)
def test_opcheck_of_their_gradients(needs, device):
    x1, x2 = draw((2, 3, 5, 6), device, torch.float32)
    with torch.no_grad():
        best, channel, _ = torch.ops.cupycorr.correlation_argmax(x1, x2, *ARGUMENTS, 2, False, "zero")
        outputs = torch.ops.cupycorr.correlation_soft_argmax(x1, x2, *ARGUMENTS, 2.0, "zero")
    g = torch.randn_like(best).requires_grad_()
    torch.library.opcheck(torch.ops.cupycorr.correlation_argmax_vjp.default, (g, channel, x1, x2, needs, *ARGUMENTS))
    cotangents = [torch.randn_like(each).requires_grad_() for each in outputs]
    op = torch.ops.cupycorr.correlation_soft_argmax_vjp.default
    torch.library.opcheck(op, (*cotangents, *outputs, x1, x2, needs, *ARGUMENTS, 2.0, "zero"))


# torch.func -------------------------------------------------------------------------------------------------------------------


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 1)], ids=str)
@pytest.mark.parametrize("f", [score, mean])
def test_vmap_over_either_input(f, in_dims, device):
    f = partial(f, patch_size=3)
    samples = [torch.stack([each + k / 8 * each.roll(1, -1) for k in range(3)]) for each in draw(device=device, needs=False)]
    given = [x[0] if dim is None else x.movedim(0, dim) for x, dim in zip(samples, in_dims, strict=True)]
    each = [[x[0] if dim is None else x[k] for x, dim in zip(samples, in_dims, strict=True)] for k in range(3)]
    close(func.vmap(f, in_dims)(*given), torch.stack([f(*one) for one in each]))
    loss = lambda a, b: f(a, b).pow(2).sum()  # noqa: E731
    gradients = zip(*(func.grad(loss, (0, 1))(*one) for one in each), strict=True)
    close(func.vmap(func.grad(loss, (0, 1)), in_dims)(*given), tuple(map(torch.stack, gradients)))


@pytest.mark.parametrize("f", [score, mean])
def test_func_jacobians_and_hessians_agree_in_both_modes(f, device):
    inputs = draw((1, 1, 3, 3), device, needs=False)
    f = partial(f, patch_size=(1, 3))
    close(func.jacfwd(f, (0, 1))(*inputs), func.jacrev(f, (0, 1))(*inputs))
    loss = lambda a, b: f(a, b).pow(3).sum()  # noqa: E731
    close(func.jacfwd(func.jacrev(loss, (0, 1)), (0, 1))(*inputs), func.jacrev(func.jacrev(loss, (0, 1)), (0, 1))(*inputs))


# Graphs -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_compiled_before():
    torch._dynamo.reset()


def everything(a, b):
    best = correlation_argmax(a, b, patch_size=3, subpixel=True, outside="excluded")
    soft = correlation_soft_argmax(a, b, patch_size=3, temperature=2.0)
    return best.dy.nan_to_num().sum() + best.score.nan_to_num().sum() + soft.flow.square().sum()


def test_one_graph_serves_all_shapes_with_gradients(nothing_compiled_before, device):
    count = 0

    def backend(graph, inputs):
        nonlocal count
        count += 1
        return graph

    graph = torch.compile(everything, fullgraph=True, dynamic=True, backend=backend)
    for shape in ((2, 5, 6, 7), (3, 4, 9, 8), (4, 7, 5, 11)):
        inputs = draw(shape, device, torch.float32)
        found, want = (torch.autograd.grad(f(*inputs), inputs) for f in (graph, everything))
        for got, each in zip(found, want, strict=True):
            assert torch.equal(got, each)
    assert count == 1


def test_output_and_gradients_of_a_whole_graph(nothing_compiled_before, device):
    inputs = draw((2, 5, 6, 7), device, torch.float32)
    graph = torch.compile(everything, fullgraph=True, backend="aot_eager")
    found, want = (torch.autograd.grad(f(*inputs), inputs) for f in (graph, everything))
    for got, each in zip(found, want, strict=True):
        torch.testing.assert_close(got, each)


class Model(torch.nn.Module):
    def forward(self, a, b):
        return correlation_argmax(a, b, patch_size=5).flow


def test_an_exported_model_takes_other_sizes(device):
    dims = {number: torch.export.Dim(name, min=2, max=64) for number, name in enumerate("bchw")}
    inputs = draw((2, 5, 6, 7), device, torch.float32, False)
    exported = torch.export.export(Model(), inputs, dynamic_shapes={"a": dims, "b": dims})
    other = draw((3, 4, 9, 8), device, torch.float32, False)
    assert torch.equal(exported.module()(*other), Model()(*other))


# Refusals ---------------------------------------------------------------------------------------------------------------------


@both
def test_the_functions_have_the_array_functions_arguments(name):
    found, wanted = (inspect.signature(each[name]).parameters for each in (BOTH, ARRAYS))
    assert list(found) == list(wanted)
    differing = [key for key in wanted if found[key].default != wanted[key].default]
    assert differing == ["precision"]


X = torch.zeros(1, 2, 5, 6)
BAD = {
    "input1 must be a torch tensor, got numpy.ndarray": (TypeError, dict(input1=X.numpy())),
    "input1 and input2 must have the same dtype": (TypeError, dict(input2=X.double())),
    "input1 and input2 must have the same shape unless patch_offset is passed": (ValueError, dict(input2=X[..., 1:])),
    "outside must be 'zero' or 'excluded', got outside='no'": (ValueError, dict(outside="no")),
    "variant must be 'auto' or one of 'simd', 'blas', 'reference', 'mma', 'tiled', 'slices'": (ValueError, dict(variant="box")),
    "scale must be a number": (TypeError, dict(scale=torch.tensor(1.0, requires_grad=True))),
    "precision must be one of": (ValueError, dict(precision="low")),
}
BAD_BEST = {
    "top_k must be at least 1": (ValueError, dict(top_k=0)),
    "top_k must be at most the number of displacements, 3 x 3, got top_k=10": (ValueError, dict(top_k=10)),
    "subpixel is for the best displacement alone": (ValueError, dict(subpixel=True, top_k=2)),
    "subpixel is for windows of one pixel": (ValueError, dict(subpixel=True, kernel_size=3)),
}
BAD_MEAN = {
    "temperature must be positive": (ValueError, dict(temperature=0.0)),
    "temperature must be a number": (TypeError, dict(temperature=torch.tensor(1.0, requires_grad=True))),
}


@pytest.mark.parametrize(
    ("name", "says", "error", "arguments"),
    [
        pytest.param(name, says, *row, id=f"{name}: {says}")
        for name, mine in (("argmax", BAD_BEST), ("soft_argmax", BAD_MEAN))
        for says, row in {**BAD, **mine}.items()
    ],
)
def test_bad_input_is_refused(name, says, error, arguments):
    with pytest.raises(error) as caught:
        BOTH[name](**{"input1": X, "input2": X, "patch_size": 3, **arguments})
    assert says in str(caught.value)
