"""The torch operator of lookups is one node of graphs of torch.compile, torch.export and AOTInductor, with the same values."""

import re

import pytest
import torch
from derivatives import torchs_own_warning
from graphs import Counted, compiled, equal, through_inductor
from torch import func
from torch.autograd import forward_ad

from cupycorr.torch import correlation_lookup

PARAMETERS = dict(patch_size=(3, 4), order="dx", scale=0.5)
# No size is that of another axis: torch.compile would take the two for one at first, and compile a second graph later.
SHAPES = [(3, 8, 9, 10), (4, 5, 12, 14), (5, 7, 8, 31)]


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch._dynamo.reset()


def draw(batch, channels, height, width, device="cpu", dtype=torch.float32, needs=False):
    """Return a map, two levels and coordinates."""
    generator = torch.Generator().manual_seed(batch)
    shapes = [(batch, channels, height, width)] * 2 + [(batch, channels, height // 2, width // 2)]
    maps = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    coords = 7 * torch.rand((batch, 2, height, width), generator=generator, dtype=dtype)
    return [x.to(device).requires_grad_(needs) for x in (*maps, coords)]


def measured(a, b0, b1, c):
    return correlation_lookup(a, [b0, b1], c, **PARAMETERS)


def of_one_map(a, b0, b1, c):
    return correlation_lookup(a, b0, c, patch_size=3)


def with_indices(a, b0, b1, c):
    index = torch.arange(c.shape[0], device=c.device).flip(0)
    return correlation_lookup(a, (b0, b1), c, index1=index, index2=index.int(), **PARAMETERS)


def refined(a, b0, b1, c):
    """Return the result of two iterations, each of which moves the coordinates."""
    for _ in range(2):
        scores = correlation_lookup(a, [b0, b1], c, 3)
        c = c + scores.flatten(1, 3).mean(1, keepdim=True).tanh()
    return c


FORMS = {"pyramid": measured, "one map": of_one_map, "indices": with_indices, "iterations": refined}


def gradients(f, *inputs):
    out = f(*inputs)
    return (out, *torch.autograd.grad(out.square().sum(), inputs, allow_unused=True))


def same(got, want):
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


@pytest.mark.parametrize("needs", [pytest.param(False, marks=pytest.mark.slow), True], ids=["forward", "gradients"])
@pytest.mark.parametrize(
    "name", ["pyramid", *(pytest.param(name, marks=pytest.mark.slow) for name in FORMS if name != "pyramid")]
)
def test_one_graph_serves_all_shapes(name, needs, device):
    f, backend = FORMS[name], Counted()
    whole = compiled(f, dynamic=True, backend=backend)
    run = gradients if needs else lambda g, *inputs: [g(*inputs)]
    first = draw(*SHAPES[0], device=device, needs=needs)
    same(run(whole, *first), run(f, *first))
    after_first = backend.graphs
    for shape in SHAPES[1:]:
        inputs = draw(*shape, device=device, needs=needs)
        same(run(whole, *inputs), run(f, *inputs))
    assert backend.graphs == after_first


@pytest.mark.slow
@through_inductor
@pytest.mark.parametrize("name", FORMS)
def test_through_inductor(name, device):
    f = FORMS[name]
    whole = compiled(f, backend="inductor", dynamic=True)
    for shape in SHAPES[:2]:
        inputs = draw(*shape, device=device, needs=True)
        got, want = gradients(whole, *inputs), gradients(f, *inputs)
        for one, other in zip(got, want, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_scale_and_a_step_that_follow_the_shape(device):
    def f(a, b0, b1, c):
        return correlation_lookup(a, [b0, b1], c, 3, dilation_patch=a.shape[2] // 8, scale=a.shape[1] ** -0.5)

    whole = compiled(f, dynamic=True)
    for shape in SHAPES:
        inputs = draw(*shape, device=device)
        equal([whole(*inputs)], [f(*inputs)])


def loss(*inputs):
    return measured(*inputs).pow(3).sum()


TRANSFORMS = {
    "grad": func.grad(loss, (0, 1, 2, 3)),
    "grad of a penalty": func.grad(lambda *x: func.grad(loss, 3)(*x).pow(2).sum(), (0, 1, 2, 3)),
    "vmap": lambda *x: func.vmap(measured, (None, None, None, 0))(*x[:3], torch.stack([x[3], x[3] + 0.3])),
    "per-sample gradients": lambda *x: func.vmap(func.grad(loss, 3))(*(each[:, None] for each in x)),
    "jvp": lambda *x: func.jvp(measured, x, x),
    "jacfwd": lambda *x: func.jacfwd(lambda c: measured(*x[:3], c))(x[3]),
}


@torchs_own_warning
@pytest.mark.slow
@pytest.mark.parametrize("f", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_compiled_transforms(f, device):
    inputs = draw(2, 2, 4, 5, device=device, dtype=torch.float64)
    torch.testing.assert_close(compiled(f)(*inputs), f(*inputs))


@torchs_own_warning
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("number", range(4))
def test_compiled_dual_numbers(number, backend, device):
    def f(*inputs):
        given = [*inputs]
        with forward_ad.dual_level():
            given[number] = forward_ad.make_dual(given[number], torch.ones_like(given[number]))
            return forward_ad.unpack_dual(measured(*given)).tangent

    inputs = draw(2, 2, 4, 5, device=device, dtype=torch.float64)
    torch.testing.assert_close(compiled(f, backend=backend)(*inputs), f(*inputs))


BAD = {
    "patch_size=0": dict(patch_size=0),
    "scale=nan": dict(scale=float("nan")),
    "order='yx'": dict(order="yx"),
    "coords.shape=(3, 3, 9, 10)": dict(coords=torch.ones(3, 3, 9, 10)),
    "input2[1].dtype=float64": dict(input2=[torch.ones(SHAPES[0]), torch.ones(SHAPES[0]).double()]),
}


@pytest.mark.parametrize(("said", "bad"), BAD.items(), ids=BAD.keys())
def test_a_refusal_while_compiling_names_argument_and_value(said, bad):
    input1, *input2, coords = draw(*SHAPES[0])
    given = {"input2": input2, "coords": coords, **bad}
    with pytest.raises(Exception, match=re.escape(said)):
        compiled(lambda x1, given: correlation_lookup(x1, **given))(input1, given)


# torch.export ----------------------------------------------------------------------------------------------------------


class Net(torch.nn.Module):
    """A model of iterated lookups in a pyramid that it pools itself."""

    def __init__(self):
        super().__init__()
        self.features = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.update = torch.nn.Conv2d(18, 2, 3, padding=1)

    def forward(self, frame1, frame2, flow):
        f1, f2 = self.features(frame1), self.features(frame2)
        rows, columns = (torch.arange(size, device=flow.device) for size in flow.shape[2:])
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy")).to(flow)
        pyramid = [f2, f2[..., ::2, ::2]]
        for _ in range(2):
            flow = flow + self.update(correlation_lookup(f1, pyramid, grid + flow, 3, scale=8**-0.5).flatten(1, 3))
        return flow


def frames(batch, height, width, device="cpu"):
    return [torch.randn(batch, channels, height, width).to(device) for channels in (3, 3, 2)]


def dynamic():
    sizes = dict(min=4, max=512)
    return {0: torch.export.Dim("b", min=1, max=64), 2: torch.export.Dim("h", **sizes), 3: torch.export.Dim("w", **sizes)}


# Torch 2.11 says this of the buffer that it reads the saved file into.
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["traced", "strict"])
def test_an_exported_model_takes_other_sizes(strict, device, tmp_path):
    net = Net().to(device).eval()
    inputs, others = frames(2, 19, 20, device), frames(3, 31, 14, device)
    program = torch.export.export(net, tuple(inputs), dynamic_shapes=(dynamic(),) * 3, strict=strict)
    assert "cupycorr.correlation_lookup" in str(program.graph)
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = torch.export.load(tmp_path / "net.pt2")
    for given in (inputs, others):
        torch.testing.assert_close(loaded.module()(*given), net(*given))


@pytest.mark.slow
@through_inductor
def test_a_packaged_model_takes_other_sizes(device, tmp_path):
    net = Net().to(device).eval()
    program = torch.export.export(net, tuple(frames(2, 19, 20, device)), dynamic_shapes=(dynamic(),) * 3)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
    packaged = torch._inductor.aoti_load_package(path)
    for given in (frames(2, 19, 20, device), frames(3, 31, 14, device)):
        torch.testing.assert_close(packaged(*given), net(*given).detach(), rtol=1e-4, atol=1e-5)
