"""Streams, graphs, the allocator and several devices of torch on a GPU."""

from functools import partial

import pytest
import torch

import cupycorr
from cupycorr.torch import SpatialCorrelationSampler, _tensors, correlation_lookup
from cupycorr.torch import spatial_correlation_sample as correlate

cupy = pytest.importorskip("cupy")
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("_torch_device")]


def look_up(a, b):
    """Look up in two levels around coordinates that depend on the maps."""
    y, x = torch.meshgrid(*(torch.arange(size, device=a.device) for size in a.shape[2:]), indexing="ij")
    coords = torch.stack((x, y)) + 3 * torch.tanh(a[:, :2] + b[:, :2])
    return correlation_lookup(a, [b, torch.nn.functional.avg_pool2d(b, 2)], coords)


ROUTES = {
    "direct": partial(correlate, patch_size=9),
    "box": partial(correlate, kernel_size=3, patch_size=9, variant="box"),
    "lookup": look_up,
}
routes = pytest.mark.parametrize("f", ROUTES.values(), ids=ROUTES.keys())


@pytest.fixture
def _torch_device():
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")


def draw(*shape, device="cuda"):
    return [torch.randn(shape, device=device, requires_grad=True) for _ in range(2)]


def assert_near(results, others):
    """Compare results of plans that may add in another order, such as those of two devices or of other batch sizes."""
    for got, want in zip(results, others, strict=True):
        want = want.to(got.device)
        assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def gradients(f, *inputs):
    out = f(*inputs)
    return (out, *torch.autograd.grad(out.square().sum(), inputs))


@routes
def test_a_captured_graph_computes_from_new_data(f):
    static = [x.detach() for x in draw(2, 32, 24, 32)]

    def run():
        a, b = (x.detach().requires_grad_() for x in static)
        return gradients(f, a, b)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for _ in range(3):
        for x in static:
            x.copy_(torch.randn_like(x))
        graph.replay()
        for got, want in zip(captured, run(), strict=True):
            assert torch.equal(got, want)


def test_graphed_callables_train():
    sampler = SpatialCorrelationSampler(1, 9)
    graphed = torch.cuda.make_graphed_callables(SpatialCorrelationSampler(1, 9), tuple(draw(2, 32, 24, 32)))
    inputs = draw(2, 32, 24, 32)
    for got, want in zip(gradients(graphed, *inputs), gradients(sampler, *inputs), strict=True):
        assert torch.equal(got, want)


@routes
def test_the_work_is_on_torchs_current_stream(f):
    """The inputs are written late on a side stream: on any other stream the operator would read old values."""
    a, b = (x.detach() for x in draw(2, 32, 96, 128))
    want = f(a, b)
    late_a, late_b = torch.full_like(a, float("nan")), torch.full_like(b, float("nan"))
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        late_a.copy_(a)
        late_b.copy_(b)
        got = f(late_a, late_b)
    side.synchronize()
    assert torch.equal(got, want)


def test_the_current_stream_is_the_one_that_torch_names():
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        assert _tensors.current_stream(0) == side.cuda_stream
    assert _tensors.current_stream(0) == torch.cuda.current_stream(0).cuda_stream


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@routes
def test_nothing_waits_for_the_device(f):
    inputs = draw(2, 32, 24, 32)
    gradients(f, *inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients(f, *inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nothing_is_copied():
    """A call allocates only its output and its workspace, whatever the strides of its inputs."""
    a, b = (x.detach().contiguous(memory_format=torch.channels_last) for x in draw(2, 64, 96, 128))
    workspace = cupycorr.explain(*map(cupy.from_dlpack, (a, b)), patch_size=9).workspace
    correlate(a, b, patch_size=9)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = correlate(a, b, patch_size=9)
    assert torch.cuda.max_memory_allocated() - before <= out.numel() * out.element_size() + workspace + 2**20


several_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch sees fewer than two CUDA devices")


@several_devices
def test_a_tensors_own_device_need_not_be_the_current_one():
    inputs = draw(2, 32, 24, 32, device="cuda:1")
    results = gradients(lambda a, b: correlate(a, b, patch_size=9), *inputs)
    assert {result.device.index for result in results} == {1}
    assert torch.cuda.current_device() == 0
    there = [x.detach().to("cuda:0").requires_grad_() for x in inputs]
    assert_near(results, gradients(lambda a, b: correlate(a, b, patch_size=9), *there))


@several_devices
def test_data_parallel_on_two_devices():
    sampler = SpatialCorrelationSampler(1, 9)
    inputs = draw(4, 32, 24, 32)
    assert_near(gradients(torch.nn.DataParallel(sampler, device_ids=[0, 1]), *inputs), gradients(sampler, *inputs))


def test_tensors_on_different_devices_are_refused():
    with pytest.raises(ValueError, match="input1 and input2 must be on the same device, got cuda:0 and cpu"):
        correlate(torch.ones(1, 1, 2, 2, device="cuda"), torch.ones(1, 1, 2, 2))
