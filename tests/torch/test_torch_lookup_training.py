"""Torch lookups in training: autocast, checkpoints, parallel replicas, and a network of iterations that learns."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import replicas
import torch
from graphs import equal
from lookup_in_torch import written_out
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from cupycorr.torch import correlation_lookup

PARAMETERS = dict(patch_size=(3, 2), order="dx", scale=0.5)


def draw(batch=2, channels=5, height=7, width=8, device="cpu"):
    generator = torch.Generator().manual_seed(3)
    shapes = [(batch, channels, height, width)] * 2 + [(batch, channels, height // 2, width // 2)]
    maps = [torch.randn(shape, generator=generator) for shape in shapes]
    coords = 6 * torch.rand((batch, 2, height, width), generator=generator)
    return [x.to(device).requires_grad_() for x in (*maps, coords)]


def measured(a, b0, b1, c, **more):
    return correlation_lookup(a, [b0, b1], c, **PARAMETERS, **more)


def gradients(f, *inputs):
    out = f(*inputs)
    return (out, *torch.autograd.grad(out.float().square().sum(), inputs))


# Autocast --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_the_features_and_never_the_coordinates(dtype, device):
    inputs = draw(device=device)

    def cast(*inputs):
        with torch.autocast(device, dtype):
            return measured(*inputs)

    def by_hand(*inputs):
        return measured(*(x.to(dtype) for x in inputs[:-1]), inputs[-1])

    got = gradients(cast, *inputs)
    assert [each.dtype for each in got] == [dtype, *[torch.float32] * 4]
    equal(got, gradients(by_hand, *inputs))


def test_autocast_leaves_narrow_coordinates_and_float64_alone_and_can_be_switched_off(device):
    *maps, coords = draw(device=device)
    with torch.autocast(device, torch.bfloat16):
        narrow = measured(*maps, coords.half())
        assert torch.equal(narrow, measured(*maps, coords.half().float()))
        assert measured(*(x.double() for x in (*maps, coords))).dtype == torch.float64
        assert measured(*maps, coords, dtype=torch.float32).dtype == torch.float32
        with torch.autocast(device, enabled=False):
            assert measured(*maps, coords).dtype == torch.float32


def test_autocast_joins_what_a_layer_before_has_cast(device):
    a, b0, b1, coords = draw(device=device)
    layer = nn.Conv2d(5, 5, 1, device=device)
    with torch.autocast(device, torch.bfloat16):
        features = layer(a)
        out = measured(features, b0, b1, coords)
    assert (features.dtype, out.dtype) == (torch.bfloat16, torch.bfloat16)


@pytest.mark.slow
def test_autocast_in_a_compiled_graph_and_under_a_transform(device):
    def f(*inputs):
        with torch.autocast(device, torch.bfloat16):
            return measured(*inputs)

    torch._dynamo.reset()
    inputs = draw(device=device)
    want = gradients(f, *inputs)
    equal(gradients(torch.compile(f, fullgraph=True, backend="aot_eager"), *inputs), want)
    by_func = torch.func.grad(lambda *x: f(*x).float().square().sum(), (0, 1, 2, 3))(*(x.detach() for x in inputs))
    equal(by_func, want[1:])


# Checkpoints and replicas ----------------------------------------------------------------------------------------------


def test_checkpoint_gives_the_same_gradients(device):
    layer = nn.Conv2d(5, 6, 3, padding=1, device=device)

    def block(a, b0, b1, c):
        return functional.leaky_relu(measured(*map(layer, (a, b0, b1)), c), 0.1)

    inputs = draw(device=device)
    equal(gradients(lambda *x: checkpoint(block, *x, use_reentrant=False), *inputs), gradients(block, *inputs))


def test_replicas_in_threads():
    """Replicas run in a thread each, as DataParallel does on several devices."""
    shares = [draw(width=8 + k) for k in range(4)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda inputs: gradients(measured, *inputs), shares * 4))
    for share, result in zip(shares * 4, got, strict=True):
        equal(result, gradients(measured, *share))


NET = """
from cupycorr.torch import correlation_lookup

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.features = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.guess = torch.nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, a, b):
        fa, fb = self.features(a), self.features(b)
        return correlation_lookup(fa, [fb, fb[..., ::2, ::2]], 4 * self.guess(a) + 5, 3)
"""


@pytest.mark.slow
def test_two_processes_get_the_gradients_of_the_whole_batch(tmp_path):
    assert max(replicas.errors_of_gradients(NET, tmp_path)) < 1e-5


# A network -------------------------------------------------------------------------------------------------------------


class Iterations(nn.Module):
    """A network that refines a flow by lookups in a pyramid; gradients flow through the coordinates, too."""

    def __init__(self, lookup):
        super().__init__()
        self.lookup = lookup
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=4, padding=2), nn.LeakyReLU(0.1), nn.Conv2d(32, 32, 3, padding=1)
        )
        self.update = nn.Sequential(nn.Conv2d(2 * 25 + 2, 64, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(64, 2, 3, padding=1))

    def forward(self, frame1, frame2, iterations=2):
        f1, f2 = self.features(frame1), self.features(frame2)
        pyramid = [f2, functional.avg_pool2d(f2, 2)]
        height, width = f1.shape[2:]
        grid = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")).to(f1)
        flow = torch.zeros_like(f1[:, :2])
        for _ in range(iterations):
            scores = self.lookup(f1, pyramid, grid + flow, 5, scale=32**-0.5, order="dx").flatten(1, 3)
            flow = flow + self.update(torch.cat([scores, flow], 1))
        return 4 * flow


@pytest.fixture
def _one_thread():
    """Use one thread: on a busy CPU torch's threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def losses(lookup, steps=20):
    """Return the end-point error at every step of training on textures that are shifted by known pixels."""
    torch.manual_seed(0)
    net = Iterations(lookup)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    texture = functional.avg_pool2d(torch.randn(2, 3, 32, 48), 5, 1, 2)
    shifts = [(3, -5), (-4, 2)]
    moved = torch.stack([image.roll(shift, (1, 2)) for image, shift in zip(texture, shifts, strict=True)])
    wanted = torch.tensor(shifts, dtype=torch.float32).flip(1)[:, :, None, None]
    told = []
    for _ in range(steps):
        loss = (net(texture, moved) - wanted).norm(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        told.append(loss.item())
    return told


@pytest.mark.slow
@pytest.mark.usefixtures("_one_thread")
def test_a_network_learns_as_it_does_with_torchs_own_operations():
    ours, theirs = losses(correlation_lookup), losses(written_out)
    assert ours[-1] < 0.75 * ours[0]
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4
