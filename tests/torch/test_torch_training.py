"""The torch operator in training: autocast, checkpoints, parallel replicas, and two networks of real layer sizes that learn."""

from itertools import pairwise

import pytest
import replicas
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from cupycorr.torch import SpatialCorrelationSampler
from cupycorr.torch import spatial_correlation_sample as correlate

PARAMETERS = dict(kernel_size=2, patch_size=(3, 2), padding=1, scale=0.5)


def draw(*shape, device="cpu", dtype=torch.float32, count=2):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for _ in range(count)]


def gradients(f, *inputs):
    out = f(*inputs)
    return (out, *torch.autograd.grad(out.float().square().sum(), inputs))


def equal(got, want):
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


# Autocast --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", [correlate, SpatialCorrelationSampler(**PARAMETERS)], ids=["function", "module"])
def test_autocast_runs_in_its_dtype_and_gradients_come_back_in_the_inputs(dtype, form, device):
    arguments = PARAMETERS if form is correlate else {}
    inputs = draw(2, 5, 7, 8, device=device)

    def cast(a, b):
        with torch.autocast(device, dtype):
            return form(a, b, **arguments)

    def by_hand(a, b):
        return correlate(a.to(dtype), b.to(dtype), **PARAMETERS)

    got = gradients(cast, *inputs)
    assert [each.dtype for each in got] == [dtype, torch.float32, torch.float32]
    equal(got, gradients(by_hand, *inputs))


def test_autocast_joins_what_a_layer_before_has_cast(device):
    a, b = draw(1, 4, 6, 7, device=device)
    layer = nn.Conv2d(4, 4, 1, device=device)
    with torch.autocast(device, torch.bfloat16):
        features = layer(a)
        out = correlate(features, b, patch_size=3)
        wide = correlate(features, b, patch_size=3, dtype=torch.float32)
    assert (features.dtype, out.dtype, wide.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    torch.testing.assert_close(wide.bfloat16(), out)  # on a GPU the two may be added in another order


def test_autocast_leaves_float64_alone_and_can_be_switched_off(device):
    a, b = draw(1, 4, 6, 7, device=device)
    with torch.autocast(device, torch.bfloat16):
        assert correlate(a.double(), b.double()).dtype == torch.float64
        with torch.autocast(device, enabled=False):
            assert correlate(a, b).dtype == torch.float32


def test_autocast_in_a_compiled_graph(device):
    def f(a, b):
        with torch.autocast(device, torch.bfloat16):
            return correlate(a, b, **PARAMETERS)

    torch._dynamo.reset()
    inputs = draw(2, 5, 7, 8, device=device)
    equal(gradients(torch.compile(f, fullgraph=True, backend="aot_eager"), *inputs), gradients(f, *inputs))


def test_autocast_under_a_transform(device):
    def f(a, b):
        with torch.autocast(device, torch.bfloat16):
            return correlate(a, b, **PARAMETERS).float().square().sum()

    a, b = draw(2, 5, 7, 8, device=device)
    want = torch.autograd.grad(f(a, b), (a, b))
    equal(torch.func.grad(f, (0, 1))(a.detach(), b.detach()), want)


# Checkpoints and replicas ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_gives_the_same_gradients(reentrant, device):
    layer = nn.Conv2d(4, 6, 3, padding=1, device=device)

    def block(a, b):
        return functional.leaky_relu(correlate(layer(a), layer(b), **PARAMETERS), 0.1)

    inputs = draw(2, 4, 7, 8, device=device)
    got = gradients(lambda a, b: checkpoint(block, a, b, use_reentrant=reentrant), *inputs) if not reentrant else None
    if reentrant:  # it supports backward() alone
        out = checkpoint(block, *inputs, use_reentrant=True)
        out.square().sum().backward()
        got = (out, *(x.grad for x in inputs))
    equal(got, gradients(block, *inputs))


def test_data_parallel(device):
    module = nn.Sequential()
    module.sampler = SpatialCorrelationSampler(**PARAMETERS)
    parallel = nn.DataParallel(module.sampler, device_ids=[0] if device == "cuda" else None)
    inputs = draw(4, 5, 7, 8, device=device)
    equal(gradients(parallel, *inputs), gradients(module.sampler, *inputs))


def test_replicas_in_threads():
    """Replicas run in a thread each, as DataParallel does on several devices."""
    from concurrent.futures import ThreadPoolExecutor

    sampler = SpatialCorrelationSampler(**PARAMETERS)
    shares = [draw(2, 5, 7, 8 + k) for k in range(4)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda inputs: gradients(sampler, *inputs), shares * 4))
    for share, result in zip(shares * 4, got, strict=True):
        equal(result, gradients(sampler, *share))


NET = """
from cupycorr.torch import SpatialCorrelationSampler

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.features = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.sampler = SpatialCorrelationSampler(1, 5)

    def forward(self, a, b):
        return self.sampler(self.features(a), self.features(b))
"""


@pytest.mark.slow
def test_two_processes_get_the_gradients_of_the_whole_batch(tmp_path):
    assert max(replicas.errors_of_gradients(NET, tmp_path)) < 1e-5


# Two networks ----------------------------------------------------------------------------------------------------------


def by_unfold(x1, x2, patch_size=1, dilation_patch=1, scale=1.0):
    """Return the cost volume by torch's own operations: all displaced copies of input2, then one sum over the channels."""
    batch, channels, height, width = x1.shape
    radius = dilation_patch * (patch_size - 1) // 2
    copies = functional.unfold(x2, patch_size, dilation=dilation_patch, padding=radius).view(batch, channels, -1, height, width)
    return scale * torch.einsum("bchw,bcdhw->bdhw", x1, copies).unflatten(1, (patch_size, patch_size))


class FlowNetC(nn.Module):
    """A network of two feature towers with shared weights and 256 channels, 441 displacements of step 2, and a head."""

    size = (2, 3, 96, 128)

    def __init__(self, volume):
        super().__init__()
        self.volume = volume
        sizes = (3, 64, 128, 256)
        convolutions = [nn.Conv2d(i, o, 3, stride=2, padding=1) for i, o in pairwise(sizes)]
        self.features = nn.Sequential(*(part for c in convolutions for part in (c, nn.LeakyReLU(0.1))))
        self.redirected = nn.Conv2d(256, 32, 1)
        self.head = nn.Conv2d(441 + 32, 2, 3, padding=1)

    def forward(self, frame1, frame2):
        f1, f2 = self.features(frame1), self.features(frame2)
        scores = self.volume(f1, f2, patch_size=21, dilation_patch=2, scale=1 / 256).flatten(1, 2)
        return 8 * self.head(torch.cat([functional.leaky_relu(scores, 0.1), self.redirected(f1)], 1))


class PWCNet(nn.Module):
    """A network of two levels (64 and 96 channels); each searches 4 pixels around the flow of the coarser one."""

    size = (2, 3, 64, 96)

    def __init__(self, volume):
        super().__init__()
        self.volume = volume
        self.coarse = nn.Sequential(nn.Conv2d(64, 96, 3, stride=2, padding=1), nn.LeakyReLU(0.1))
        self.fine = nn.Sequential(nn.Conv2d(3, 64, 5, stride=4, padding=2), nn.LeakyReLU(0.1))
        self.heads = nn.ModuleList([nn.Conv2d(81 + 96, 2, 3, padding=1), nn.Conv2d(81 + 64 + 2, 2, 3, padding=1)])

    def level(self, f1, f2, head, *more):
        scores = self.volume(f1, f2, patch_size=9, scale=1 / f1.shape[1]).flatten(1, 2)
        return head(torch.cat([functional.leaky_relu(scores, 0.1), f1, *more], 1))

    def forward(self, frame1, frame2):
        fine1, fine2 = self.fine(frame1), self.fine(frame2)
        flow = self.level(self.coarse(fine1), self.coarse(fine2), self.heads[0])
        flow = 2 * functional.interpolate(flow, scale_factor=2, mode="bilinear")
        return 4 * (flow + self.level(fine1, warped(fine2, flow), self.heads[1], flow))


def warped(image, flow):
    """Return the image, sampled at the positions that the flow points to."""
    height, width = image.shape[2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = torch.stack([x, y]).to(flow) + flow
    grid = torch.stack([2 * at[:, 0] / (width - 1) - 1, 2 * at[:, 1] / (height - 1) - 1], 3)
    return functional.grid_sample(image, grid, align_corners=True)


def losses(network, volume, device, steps=20):
    """Return the end-point error at every step of training on textures that are shifted by known pixels."""
    torch.manual_seed(0)
    net = network(volume).to(device)
    optimizer = torch.optim.Adam(net.parameters(), 3e-4)
    texture = functional.avg_pool2d(torch.randn(network.size), 5, 1, 2).to(device)
    shifts = torch.randint(-8, 9, (len(texture), 2)).tolist()
    moved = torch.stack([image.roll(shift, (1, 2)) for image, shift in zip(texture, shifts, strict=True)])
    wanted = torch.tensor(shifts, device=device, dtype=torch.float32).flip(1)[:, :, None, None]  # (u, v) = (dx, dy)
    told = []
    for _ in range(steps):
        loss = (net(texture, moved) - wanted).norm(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        told.append(loss.item())
    return told


@pytest.fixture
def _steady(monkeypatch):
    """Make convolutions deterministic on a GPU, and use one thread: on a busy CPU torch's threads would wait for each other."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("_steady")
@pytest.mark.parametrize("network", [FlowNetC, PWCNet], ids=lambda network: network.__name__)
def test_a_network_learns_as_it_does_with_torchs_own_operations(network, device):
    ours, theirs = losses(network, correlate, device), losses(network, by_unfold, device)
    assert ours[-1] < 0.75 * ours[0]
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-4


def test_the_two_ways_to_make_a_volume_agree():
    a, b = draw(2, 5, 9, 10, dtype=torch.float64)
    options = dict(patch_size=5, dilation_patch=2, scale=0.5)
    torch.testing.assert_close(by_unfold(a, b, **options), correlate(a, b, **options))
