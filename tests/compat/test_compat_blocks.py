"""The adapters of blocks of lookups compute the formulas of the code that they replace, with its shapes, dtypes and gradients.

The formulas are those of the projects, written in differentiable torch and float64: a volume of all pairs or sampled features,
read by `grid_sample`. It divides by the size of a map minus 1, so that the maps here have at least two pixels at every level.
"""

import copy
import pickle
import re
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from cupycorr.compat import localcorr, sea_raft, torchvision, unimatch  # noqa: E402


def sampled(image, x, y):
    """Values (N, C, ...) of images (N, C, H, W) at points (N, ...)."""
    height, width = image.shape[2:]
    grid = torch.stack((2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1), -1).flatten(1, -2)
    found = functional.grid_sample(image, grid[:, None], align_corners=True)
    return found[:, :, 0].unflatten(-1, x.shape[1:])


def raft(fmap1, fmap2, coords, levels, radius, dilation=None):
    """RAFT's block, dx-major; each query's displacements are ``dilation`` pixels apart."""
    batch, channels, height, width = fmap1.shape
    volume = torch.einsum("bcij,bcyx->bijyx", fmap1, fmap2).flatten(0, 2)[:, None] / channels**0.5
    step = torch.ones(batch, height, width, dtype=fmap1.dtype) if dilation is None else dilation[:, 0]
    n = torch.arange(-radius, radius + 1, dtype=fmap1.dtype)
    dx, dy = torch.meshgrid(n, n, indexing="ij")
    out = []
    for level in range(levels):
        x, y = ((coords[:, axis] / 2**level).flatten()[:, None, None] for axis in (0, 1))
        each = step.flatten()[:, None, None]
        windows = sampled(volume, x + dx * each, y + dy * each)[:, 0]
        out.append(windows.reshape(batch, height, width, -1).movedim(-1, 1))
        volume = functional.avg_pool2d(volume, 2)
    return torch.cat(out, 1)


def around_a_flow(feature0, feature1, flow, radius, dilation=1):
    """UniMatch's window, dy-major."""
    channels, height, width = feature0.shape[1:]
    rows, columns = (torch.arange(size, dtype=feature0.dtype) for size in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    n = dilation * torch.arange(-radius, radius + 1, dtype=feature0.dtype)
    dy, dx = torch.meshgrid(n, n, indexing="ij")
    at_x, at_y = (pixel + flow[:, axis] for axis, pixel in ((0, x), (1, y)))
    features = sampled(feature1, at_x[:, None] + dx.reshape(-1, 1, 1), at_y[:, None] + dy.reshape(-1, 1, 1))
    return torch.einsum("bcij,bcpij->bpij", feature0, features) / channels**0.5


def draw(channels=5, height=16, width=19, dtype=torch.float64, seed=0):
    """Two maps and the coordinates of pixels that moved, all of which need a gradient."""
    generator = torch.Generator().manual_seed(seed)
    fmap1, fmap2 = torch.randn(2, 2, channels, height, width, generator=generator, dtype=torch.float64)
    rows, columns = (torch.arange(size, dtype=torch.float64) for size in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    coords = torch.stack((x, y)) + 3 * torch.randn(2, 2, height, width, generator=generator, dtype=torch.float64)
    coords_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return [fmap1.to(dtype).requires_grad_(), fmap2.to(dtype).requires_grad_(), coords.to(coords_dtype).requires_grad_()]


def of_torchvision(fmap1, fmap2, coords):
    block = torchvision.CorrBlock(num_levels=3, radius=2)
    assert block.build_pyramid(fmap1, fmap2) is None
    out = block.index_pyramid(centroids_coords=coords)
    assert out.shape[1] == block.out_channels
    return out


ARGS = SimpleNamespace(corr_levels=3, corr_radius=2)
DILATION = torch.rand(2, 1, 16, 19, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5

# Adapter, called with two maps and coordinates -> the formula.
CALLS = {
    "torchvision": (of_torchvision, lambda *tensors: raft(*tensors, 3, 2)),
    "sea_raft": (lambda a, b, c: sea_raft.CorrBlock(a, b, ARGS)(c), lambda *tensors: raft(*tensors, 3, 2)),
    "sea_raft, ones": (
        lambda a, b, c: sea_raft.CorrBlock(a, b, ARGS)(c, dilation=torch.ones(2, 1, 16, 19)),
        lambda *tensors: raft(*tensors, 3, 2),
    ),
    "sea_raft, dilation": (
        lambda a, b, c: sea_raft.CorrBlock(a, b, ARGS)(c, DILATION),
        lambda *tensors: raft(*tensors, 3, 2, DILATION),
    ),
    "localcorr": (lambda a, b, c: localcorr.get_localcorr_block(a, b, 3, 2)(c), lambda *tensors: raft(*tensors, 3, 2)),
    "unimatch": (
        lambda a, b, flow: unimatch.local_correlation_with_flow(a, b, flow, local_radius=4),
        lambda *tensors: around_a_flow(*tensors, 4),
    ),
    "unimatch, dilation": (
        lambda a, b, flow: unimatch.local_correlation_with_flow(a, b, flow, 2, "zeros", 3),
        lambda *tensors: around_a_flow(*tensors, 2, 3),
    ),
}
calls = pytest.mark.parametrize(("adapter", "formula"), CALLS.values(), ids=CALLS)


@calls
def test_an_adapter_equals_its_formula_and_has_its_gradients(adapter, formula):
    tensors = draw()
    got, want = adapter(*tensors), formula(*tensors)
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    cotangent = torch.randn(want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    mine, theirs = (torch.autograd.grad(out, tensors, cotangent) for out in (got, want))
    for name, one, other in zip(("the first map", "the second map", "the coordinates"), mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"gradient of {name}: {text}")


OF_HALVES = {
    "torchvision": torch.float32,
    "sea_raft": torch.float32,
    "localcorr": torch.float16,
    "unimatch": torch.float16,
}


@pytest.mark.parametrize(("name", "dtype"), OF_HALVES.items(), ids=OF_HALVES)
def test_halves_are_summed_in_float32_and_coordinates_stay_so(name, dtype):
    adapter, formula = CALLS[name]
    tensors = draw(channels=64, dtype=torch.float16)
    got, want = adapter(*tensors), formula(*(each.double() for each in tensors))
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=2.0**-10, atol=1e-4)


def test_a_flow_of_zero_is_no_displacement():
    fmap1, fmap2, flow = draw()
    want = unimatch.local_correlation_with_flow(fmap1, fmap2, torch.zeros_like(flow), 2)
    assert torch.equal(unimatch.local_correlation_with_flow(fmap1, fmap2, 0.0, 2), want)


@pytest.mark.parametrize("shape", [(2, 5, 1, 7), (2, 5, 7, 1)], ids=str)
def test_a_map_of_one_row_or_column_is_finite(shape):
    fmap = torch.randn(shape)
    flow = torch.rand(shape[0], 2, *shape[2:])
    assert unimatch.local_correlation_with_flow(fmap, fmap, flow, 2).isfinite().all()


@pytest.mark.parametrize("mode", ["localcorr_triton", "localcorr_auto", "LOCALCORR_CUDA", "localcorr_onnx", "localcorr_sycl"])
def test_every_mode_of_localcorr_runs_on_the_device_of_the_tensors(mode):
    fmap1, fmap2, coords = draw()
    block = localcorr.get_localcorr_block(fmap1=fmap1, fmap2=fmap2, num_levels=3, radius=2, corr_mode=mode, xpu_backend="triton")
    torch.testing.assert_close(block(coords), raft(fmap1, fmap2, coords, 3, 2), rtol=1e-12, atol=1e-12)
    assert (block.num_levels, block.radius, block.dim) == (3, 2, 5)


@pytest.mark.parametrize(("size", "radius"), [(9, 4), (8, 4), (1, 0)])
def test_localcorrs_sampler_compares_each_pixel_with_those_around_it_dy_major(size, radius):
    fmap1, fmap2, _ = draw()
    out = localcorr.get_localcorr_sampler(patch_size=size, dilation_patch=2, corr_mode="localcorr_auto")(fmap1, fmap2)
    want = around_a_flow(fmap1, fmap2, torch.zeros(2, 2, 16, 19, dtype=torch.float64), radius, 2) * 5**0.5
    assert out.shape == (2, 2 * radius + 1, 2 * radius + 1, 16, 19)
    torch.testing.assert_close(out.flatten(1, 2), want, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of sizes
def test_dilations_of_sea_raft_stay_inputs_of_a_trace_and_of_vmap():
    fmap1, fmap2, coords = (each.detach() for each in draw())  # a trace takes no constants with gradients
    block, ones = sea_raft.CorrBlock(fmap1, fmap2, ARGS), torch.ones(2, 1, 16, 19, dtype=torch.float64)
    traced = torch.jit.trace(lambda *tensors: block(*tensors), (coords, ones), check_trace=False)
    torch.testing.assert_close(traced(coords, 2 * ones), block(coords, 2 * ones))
    many = torch.func.vmap(lambda each: block(coords, each))(torch.stack((ones, 2 * ones)))
    torch.testing.assert_close(many, torch.stack((block(coords, ones), block(coords, 2 * ones))))


def test_copies_and_files_of_a_model_leave_out_the_maps_of_its_last_frames():
    fmap1, fmap2, coords = draw()
    block = torchvision.CorrBlock(num_levels=3, radius=2)
    block.build_pyramid(2 * fmap1, fmap2)  # maps with a graph cannot be copied
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        with pytest.raises(RuntimeError, match="build_pyramid must be called"):
            other.index_pyramid(coords)
        other.build_pyramid(fmap1, fmap2)
        torch.testing.assert_close(2 * other.index_pyramid(coords), block.index_pyramid(coords))


@pytest.mark.slow
def test_a_model_that_keeps_its_maps_in_torchvisions_block_is_compiled():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.corr_block = torchvision.CorrBlock(num_levels=2, radius=1)

        def forward(self, fmap1, fmap2, coords):
            self.corr_block.build_pyramid(fmap1, fmap2)
            return self.corr_block.index_pyramid(coords + self.corr_block.index_pyramid(coords)[:, :2])

    torch._dynamo.reset()
    tensors, model = draw(), Model()
    want = model(*tensors)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*tensors), want)


FMAP, COORDS = torch.zeros(1, 4, 16, 24), torch.zeros(1, 2, 16, 24)
REFUSED = {
    "torchvision, positional": (lambda: torchvision.CorrBlock(4, 4), TypeError, "positional"),
    **{
        f"torchvision, {name}={value!r}": (
            lambda name=name, value=value: torchvision.CorrBlock(**{name: value}),
            error,
            f"{name} must be {says}, got {name}={re.escape(repr(value))}",
        )
        for name, value, error, says in (
            ("radius", -1, ValueError, "at least 0"),
            ("radius", 1.5, TypeError, "an int"),
            ("radius", None, TypeError, "an int"),
            ("radius", (4, 4), TypeError, "an int"),
            ("num_levels", 0, ValueError, "at least 1"),
            ("num_levels", -2, ValueError, "at least 1"),
            ("num_levels", 4.0, TypeError, "an int"),
            ("num_levels", True, TypeError, "an int"),
        )
    },
    "torchvision, too small": (
        lambda: torchvision.CorrBlock(num_levels=6).build_pyramid(FMAP, FMAP),
        ValueError,
        "level 5 of num_levels=6 would have 0 x 0",
    ),
    "sea_raft, dilation": (lambda: sea_raft.CorrBlock(FMAP, FMAP, ARGS)(COORDS, COORDS + 2), ValueError, "dilation must have"),
    "sea_raft, one dilation": (
        lambda: sea_raft.CorrBlock(FMAP, FMAP, ARGS)(COORDS, torch.ones(())),
        ValueError,
        "dilation must have",
    ),
    "localcorr, mode": (lambda: localcorr.get_localcorr_block(FMAP, FMAP, corr_mode="allpairs"), ValueError, "corr_mode must be"),
    "localcorr, mode of a sampler": (lambda: localcorr.get_localcorr_sampler(corr_mode=None), ValueError, "corr_mode must be"),
    "localcorr, patch": (lambda: localcorr.get_localcorr_sampler(4.0), TypeError, "patch_size must be an int"),
    "unimatch, border": (
        lambda: unimatch.local_correlation_with_flow(FMAP, FMAP, COORDS, 4, padding_mode="border"),
        NotImplementedError,
        "padding_mode must be 'zeros'",
    ),
    "unimatch, a number": (lambda: unimatch.local_correlation_with_flow(FMAP, FMAP, 1.0, 4), ValueError, "flow must be"),
    "unimatch, nothing": (lambda: unimatch.local_correlation_with_flow(FMAP, FMAP, None, 4), ValueError, "flow must be"),
    "unimatch, two sizes": (
        lambda: unimatch.local_correlation_with_flow(FMAP, FMAP[..., 1:], COORDS, 4),
        ValueError,
        "feature1 must have the shape",
    ),
    "unimatch, other flow": (
        lambda: unimatch.local_correlation_with_flow(FMAP, FMAP, COORDS[..., 1:], 4),
        ValueError,
        "flow must have the shape",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
