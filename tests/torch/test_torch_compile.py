"""The torch operator is one node of graphs of torch.compile, torch.export and AOTInductor, with the same values."""

import re
from functools import partial

import pytest
import torch
from graphs import Counted, compiled, equal, through_inductor
from torch import func
from torch.autograd import forward_ad

from cupycorr.torch import SpatialCorrelationSampler
from cupycorr.torch import spatial_correlation_sample as correlate

PARAMETERS = dict(kernel_size=3, patch_size=(3, 4), stride=(1, 2), padding=1, scale=0.5)
measured = partial(correlate, **PARAMETERS)
SHAPES = [(2, 8, 9, 10), (3, 5, 12, 14), (5, 7, 8, 31)]


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()


def draw(*shape, device="cpu", dtype=torch.float32, needs=False):
    return [torch.randn(shape, dtype=dtype).to(device).requires_grad_(needs) for _ in range(2)]


def gradients(f, *inputs):
    out = f(*inputs)
    return (out, *torch.autograd.grad(out.square().sum(), inputs))


# torch.compile ---------------------------------------------------------------------------------------------------------


def test_output_and_gradients_of_a_whole_graph(device):
    inputs = draw(*SHAPES[0], device=device, needs=True)
    equal(gradients(compiled(measured), *inputs), gradients(measured, *inputs))


@pytest.mark.slow
@through_inductor
def test_a_model_through_inductor(device):
    """Inductor fuses the layers around the operator and changes memory layouts, and the values stay the same."""
    torch.manual_seed(0)
    net = Net().to(device)
    frames = draw(2, 3, 19, 20, device=device)

    def run(f):
        net.zero_grad()
        out = f(*frames)
        out.square().mean().backward()
        return [out, *(p.grad for p in net.parameters())]

    got = run(compiled(net, backend="inductor"))
    torch.testing.assert_close(got, run(net), rtol=1e-4, atol=1e-5)


class Net(torch.nn.Module):
    """A model with layers before and after the correlation."""

    def __init__(self):
        super().__init__()
        self.features = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.sampler = SpatialCorrelationSampler(**PARAMETERS)

    def forward(self, frame1, frame2):
        scores = self.sampler(self.features(frame1), self.features(frame2))
        return torch.nn.functional.leaky_relu(scores.flatten(1, 2), 0.1)


FORMS = {
    "function": lambda: measured,
    "module": lambda: SpatialCorrelationSampler(**PARAMETERS),
    "module, no scale": lambda: SpatialCorrelationSampler(1, 9),
}


@pytest.mark.parametrize("needs", [False, True], ids=["forward", "gradients"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_one_graph_serves_all_shapes(form, needs, device):
    f, backend = form(), Counted()
    whole = compiled(f, dynamic=True, backend=backend)
    run = gradients if needs else lambda g, *inputs: [g(*inputs)]
    first = draw(*SHAPES[0], device=device, needs=needs)
    equal(run(whole, *first), run(f, *first))
    after_first = backend.graphs
    for shape in SHAPES[1:]:
        inputs = draw(*shape, device=device, needs=needs)
        equal(run(whole, *inputs), run(f, *inputs))
    assert backend.graphs == after_first


def test_another_parameter_is_another_graph(device):
    whole = compiled(lambda a, b, patch, scale: correlate(a, b, patch_size=patch, scale=scale), dynamic=True)
    for patch, scale in ((3, 1.0), (5, 1.0), (5, 0.25)):
        a, b = draw(*SHAPES[0], device=device)
        equal([whole(a, b, patch, scale)], [correlate(a, b, patch_size=patch, scale=scale)])


def test_a_parameter_that_follows_the_shape(device):
    def f(a, b):
        return correlate(a, b, patch_size=3, padding=a.shape[2] // 4, scale=1 / a.shape[1])

    whole = compiled(f, dynamic=True)
    for shape in SHAPES:
        inputs = draw(*shape, device=device)
        equal([whole(*inputs)], [f(*inputs)])


SCALES = {
    "an integer": lambda a: 2,
    "an integer of a size": lambda a: a.shape[1] // 4,
    "a fraction of a size": lambda a: 1 / a.shape[1],
    "a root of a size": lambda a: a.shape[1] ** -0.5,
}


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [True, None, False], ids=["dynamic", "automatic", "static"])
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
def test_a_scale_may_be_any_number(scale, dynamic, device):
    def f(a, b):
        return correlate(a, b, patch_size=3, scale=scale(a))

    whole = compiled(f, dynamic=dynamic)
    for shape in SHAPES:
        inputs = draw(*shape, device=device)
        equal([whole(*inputs)], [f(*inputs)])


@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "automatic"])
def test_a_scale_may_be_an_argument(dynamic):
    whole = compiled(lambda a, b, scale: correlate(a, b, scale=scale), dynamic=dynamic)
    a, b = draw(*SHAPES[0])
    for scale in (2, 3, 0, 0.5, -7):
        equal([whole(a, b, scale)], [correlate(a, b, scale=scale)])


def test_a_module_with_an_integer_scale():
    sampler = SpatialCorrelationSampler(1, 3, scale=2)
    a, b = draw(*SHAPES[0])
    equal([compiled(sampler, dynamic=True)(a, b)], [2 * SpatialCorrelationSampler(1, 3)(a, b)])


def test_an_input_correlated_with_itself(device):
    (x, _) = draw(*SHAPES[0], device=device, needs=True)
    equal(gradients(compiled(lambda a: measured(a, a)), x), gradients(lambda a: measured(a, a), x))


def test_second_derivatives_of_compiled_gradients(device):
    inputs = draw(1, 2, 4, 5, device=device, dtype=torch.float64)

    def penalty(a, b):
        return func.grad(lambda a: measured(a, b).pow(3).sum())(a).pow(2).sum()

    got = compiled(func.grad(penalty, (0, 1)))(*inputs)
    torch.testing.assert_close(got, func.grad(penalty, (0, 1))(*inputs))
    assert all(g.abs().max() > 0 for g in got)


def loss(a, b):
    return measured(a, b).pow(3).sum()


TRANSFORMS = {
    "grad": func.grad(loss, (0, 1)),
    "vjp": lambda a, b: func.vjp(loss, a, b)[1](torch.ones_like(a[0, 0, 0, 0])),
    "jacrev": func.jacrev(measured),
    "vmap": lambda a, b: func.vmap(measured)(a[:, None], b[:, None]),
    "per-sample gradients": lambda a, b: func.vmap(func.grad(loss))(a[:, None], b[:, None]),
}


@pytest.mark.parametrize("f", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_compiled_transforms(f, device):
    inputs = draw(2, 2, 4, 5, device=device, dtype=torch.float64)
    torch.testing.assert_close(compiled(f)(*inputs), f(*inputs))


def dual(f, a, b):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(
            f(forward_ad.make_dual(a, b), b) if f is measured else f(forward_ad.make_dual(a, b))
        ).tangent


FORWARD_MODE = {
    "jvp": lambda a, b: func.jvp(measured, (a, b), (b, a)),
    "jvp of one input": lambda a, b: func.jvp(lambda a: measured(a, b), (a,), (b,)),
    "jacfwd": lambda a, b: func.jacfwd(lambda a, b: measured(a, b))(a, b),
    "hessian": lambda a, b: func.hessian(loss)(a[:1], b[:1]),
    "dual numbers": lambda a, b: dual(measured, a, b),
    "dual numbers, both": lambda a, b: dual(lambda a: measured(a, a), a, b),
    "jvp in vmap": lambda a, b: func.vmap(lambda a, b: func.jvp(measured, (a[None], b[None]), (b[None], a[None]))[1])(a, b),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("f", FORWARD_MODE.values(), ids=FORWARD_MODE.keys())
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_forward_mode(f, backend, device):
    inputs = draw(2, 2, 4, 5, device=device, dtype=torch.float64)
    torch.testing.assert_close(compiled(f, backend=backend)(*inputs), f(*inputs))


BAD = {
    "kernel_size=0": dict(kernel_size=0),
    "patch_size=1.5": dict(patch_size=1.5),
    "stride=True": dict(stride=True),
    "scale=nan": dict(scale=float("nan")),
    "scale='2'": dict(scale="2"),
    "dtype=torch.int8": dict(dtype=torch.int8),
    "precision='low'": dict(precision="low"),
    "variant='fast'": dict(variant="fast"),
    "kernel_size=(11, 11)": dict(kernel_size=11),
    "input2.shape=(2, 8, 9, 9)": dict(input2=torch.ones(2, 8, 9, 9)),
    "input2.dtype=float64": dict(input2=torch.ones(2, 8, 9, 10).double()),
}


@pytest.mark.parametrize(("said", "bad"), BAD.items(), ids=BAD.keys())
def test_a_refusal_while_compiling_names_argument_and_value(said, bad):
    input1, input2 = draw(*SHAPES[0])
    arguments = {"input2": input2, **bad}
    with pytest.raises(Exception, match=re.escape(said)):
        compiled(lambda x1, x2, rest: correlate(x1, x2, **rest))(input1, arguments.pop("input2"), arguments)


# torch.export ----------------------------------------------------------------------------------------------------------


def dynamic():
    sizes = dict(min=4, max=512)
    return {0: torch.export.Dim("b", min=1, max=64), 2: torch.export.Dim("h", **sizes), 3: torch.export.Dim("w", **sizes)}


# Torch 2.11 says this of the buffer that it reads the saved file into.
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
def test_an_exported_model_takes_other_sizes(strict, device, tmp_path):
    net = Net().to(device).eval()
    frames, others = draw(2, 3, 19, 20, device=device), draw(3, 3, 31, 14, device=device)
    program = torch.export.export(net, tuple(frames), dynamic_shapes=(dynamic(),) * 2, strict=strict)
    assert "cupycorr.spatial_correlation_sample" in str(program.graph)
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = torch.export.load(tmp_path / "net.pt2")
    for inputs in (frames, others):
        equal([loaded.module()(*inputs)], [net(*inputs)])


def test_the_module_alone_is_exported(device):
    sampler = SpatialCorrelationSampler(1, 9)
    inputs = draw(*SHAPES[0], device=device)
    equal([torch.export.export(sampler, tuple(inputs)).module()(*inputs)], [sampler(*inputs)])


@pytest.mark.slow
@through_inductor
def test_a_packaged_model_takes_other_sizes(device, tmp_path):
    net = Net().to(device).eval()
    frames = draw(2, 3, 19, 20, device=device)
    program = torch.export.export(net, tuple(frames), dynamic_shapes=(dynamic(),) * 2)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
    packaged = torch._inductor.aoti_load_package(path)
    for inputs in (frames, draw(3, 3, 31, 14, device=device)):
        torch.testing.assert_close(packaged(*inputs), net(*inputs).detach(), rtol=1e-4, atol=1e-5)
