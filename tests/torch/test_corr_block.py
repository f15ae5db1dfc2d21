"""`CorrBlock` and `CorrBlock1D` are the lookups of RAFT and RAFT-Stereo: values, gradients, what they keep, what they refuse.

Expected values are those of the oracle, on maps that are pooled here in float64.
"""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import lookup_oracle
import numpy as np
import pytest
import torch
from cases import DTYPES
from layouts import FOR_TENSORS
from lookup_cases import STRANGE
from tensors import array, tensor
from torch.fx.experimental.proxy_tensor import make_fx
from waiting import STUCK

from cupycorr._cpu import llvm
from cupycorr.torch import CorrBlock, CorrBlock1D

MAPS, WINDOWS, VOLUME = "maps", "windows", "volume"


def pooled(image, levels, step):
    """Return the pyramid of an image (B, C, H, W) in float64: means over windows, without a rest of a row or a column."""
    pyramid = [image.astype(np.float64)]
    for _ in range(1, levels):
        (batch, channels, height, width), (down, across) = pyramid[-1].shape, step
        whole = pyramid[-1][:, :, : height // down * down, : width // across * across]
        pyramid.append(whole.reshape(batch, channels, height // down, down, width // across, across).mean((3, 5)))
    return pyramid


def wanted(fmap1, fmap2, coords, levels=4, radius=4, *, one_row=False, scale=None, order="dx", dilation=1):
    """Return the oracle's triple for a block; rounding of the pooled features is bounded like that of the other terms."""
    step = (1, 2) if one_row else (2, 2)
    patch = (1, 2 * radius + 1) if one_row else 2 * radius + 1
    options = dict(
        level_step=step, order=order, dilation_patch=dilation, scale=fmap1.shape[1] ** -0.5 if scale is None else scale
    )
    first = fmap1.astype(np.float64)
    value, _, terms = lookup_oracle.forward(first, pooled(fmap2, levels, step), coords, patch, **options)
    absolute, _, _ = lookup_oracle.forward(
        abs(first), pooled(abs(fmap2.astype(np.float64)), levels, step), coords, patch, **options
    )
    flat = (value.shape[0], -1, *value.shape[-2:])
    return value.reshape(flat), abs(absolute).reshape(flat), (terms + 4 * levels).reshape(flat)


def draw(shape1=(2, 20, 9, 11), size2=None, dtype="float32", coords_channels=2, noise=3.0, seed=0):
    """Return two maps and coordinates around the pixels as arrays."""
    rng = np.random.default_rng(seed)
    batch, channels, height, width = shape1
    fmap1 = rng.standard_normal(shape1).astype(DTYPES[dtype])
    fmap2 = rng.standard_normal((batch, channels, *(size2 or (height, width)))).astype(DTYPES[dtype])
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)))[:coords_channels]
    coords = grid + noise * rng.standard_normal((batch, coords_channels, height, width))
    return fmap1, fmap2, coords.astype(np.float64 if dtype == "float64" else np.float32)


def tensors(arrays, device="cpu"):
    return [tensor(each, device) for each in arrays]


# Values -------------------------------------------------------------------------------------------------------------------------

CASES = {
    "RAFT": dict(),
    "RAFT small": dict(radius=3),
    "one level": dict(levels=1, radius=2),
    "radius 0": dict(levels=2, radius=0),
    "dy first": dict(levels=2, radius=2, order="dy", scale=-0.5),
    "dilated": dict(levels=2, radius=1, dilation=3),
    "a pair of dilations": dict(levels=2, radius=1, dilation=(2, 3)),
}


def call(kind, arrays, case, device="cpu", **more):
    """Return the result of a block for a row of `CASES`."""
    fmap1, fmap2, coords = tensors(arrays, device)
    named = {name: case[name] for name in ("order", "scale") if name in case}
    block = kind(fmap1, fmap2, case.get("levels", 4), case.get("radius", 4), **named, **more)
    return block(coords, case["dilation"]) if "dilation" in case else block(coords)


@pytest.mark.parametrize("keep", [MAPS, VOLUME])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_block_equals_the_oracle(case, keep, device):
    arrays = draw()
    out = call(CorrBlock, arrays, case, device, keep=keep)
    assert out.is_contiguous()
    lookup_oracle.assert_close(array(out), wanted(*arrays, **case))


@pytest.mark.parametrize("keep", [MAPS, VOLUME])
@pytest.mark.parametrize("kind", [CorrBlock, CorrBlock1D])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_equals_the_oracle_and_results_have_the_dtype_of_the_sums(dtype, kind, keep, device):
    arrays = draw(dtype=dtype, coords_channels=1 if kind is CorrBlock1D else 2)
    out = call(kind, arrays, dict(levels=3, radius=2), device, keep=keep)
    assert out.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    value, absolute, terms = wanted(*arrays, 3, 2, one_row=kind is CorrBlock1D)
    if device == "cuda":  # a GPU keeps maps in their dtype: each level is rounded to it once
        value_of_rounding = 2 * lookup_oracle.ULP[dtype] / lookup_oracle.EPSILON[dtype]
        absolute = absolute * (1 + value_of_rounding)
    lookup_oracle.assert_close(array(out), (value, absolute, terms))


@pytest.mark.parametrize("keep", [MAPS, VOLUME])
@pytest.mark.parametrize("size2", [(9, 24), (9, 9)], ids=str)
def test_a_block_for_stereo_equals_the_oracle_and_ignores_y(size2, keep, device):
    fmap1, fmap2, coords = draw((2, 20, 9, 22), size2, coords_channels=2)
    triple = wanted(fmap1, fmap2, coords[:, :1], one_row=True)
    block = CorrBlock1D(*tensors((fmap1, fmap2), device), keep=keep)
    assert block.out_channels == 4 * 9
    for given in (coords, coords[:, :1]):
        out = block(tensor(given, device))
        assert out.is_contiguous()
        lookup_oracle.assert_close(array(out), triple)


@pytest.mark.parametrize("laid", FOR_TENSORS.values(), ids=FOR_TENSORS)
def test_the_memory_of_the_maps_makes_no_difference(laid, device):
    fmap1, fmap2, coords = tensors(draw(), device)
    fmap1, fmap2 = (each[:1].expand(2, -1, -1, -1) for each in (fmap1, fmap2))  # one of the layouts is that of one image
    want = CorrBlock(fmap1, fmap2, keep=MAPS)(coords)
    assert torch.equal(CorrBlock(laid(fmap1), laid(fmap2), keep=MAPS)(coords), want)


def test_maps_of_fifteen_by_sixteen_pixels_have_four_finite_levels(device):
    arrays = draw((1, 128, 15, 16))
    for keep in (MAPS, VOLUME):
        block = CorrBlock(*tensors(arrays[:2], device), keep=keep)
        assert block.pyramid[3].shape[2:] == (1, 2)
        lookup_oracle.assert_close(array(block(tensor(arrays[2], device))), wanted(*arrays))


def apart(fmap1, fmap2, coords, dilation, levels, radius):
    """Return the oracle's triple where each query has a dilation of its own: a lookup of one pixel for each displacement."""
    n = np.arange(-radius, radius + 1)
    dx, dy = (each.reshape(1, -1, 1, 1) for each in np.meshgrid(n, n, indexing="ij"))
    at = [
        np.stack((coords[:, :1] / 2**level + dx * dilation, coords[:, 1:] / 2**level + dy * dilation), 2)
        for level in range(levels)
    ]
    pyramids = pooled(fmap2, levels, (2, 2)), pooled(abs(fmap2), levels, (2, 2))
    triples = []
    for level in range(levels):
        value, _, terms = lookup_oracle.forward(fmap1, pyramids[0][level], at[level], 1, scale=fmap1.shape[1] ** -0.5)
        absolute, _, _ = lookup_oracle.forward(abs(fmap1), pyramids[1][level], at[level], 1, scale=fmap1.shape[1] ** -0.5)
        triples.append([each[:, :, 0, 0] for each in (value, absolute, terms)])
    return tuple(np.concatenate(each, 1) for each in zip(*triples, strict=True))


@pytest.mark.parametrize("keep", [MAPS, VOLUME])
def test_a_tensor_of_dilations_stretches_the_window_of_each_query(keep, device):
    arrays = draw(dtype="float64")
    dilation = np.random.default_rng(1).uniform(0, 3, (2, 1, 9, 11))
    block = CorrBlock(*tensors(arrays[:2], device), 3, 2, keep=keep)
    coords = tensor(arrays[2], device)
    lookup_oracle.assert_close(array(block(coords, tensor(dilation, device))), apart(*arrays, dilation, 3, 2))
    twice = block(coords, torch.full((2, 1, 9, 11), 2, device=device))
    torch.testing.assert_close(twice, block(coords, 2), rtol=1e-12, atol=1e-12)


def test_dilations_of_each_query_are_in_the_blocks_order(device):
    arrays = draw(dtype="float64")
    coords, two = tensor(arrays[2], device), torch.full((2, 1, 9, 11), 2, device=device)
    block = CorrBlock(*tensors(arrays[:2], device), 2, 1, order="dy", keep=MAPS)
    torch.testing.assert_close(block(coords, two), block(coords, 2), rtol=1e-12, atol=1e-12)


# Gradients ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [MAPS, VOLUME])
@pytest.mark.parametrize("kind", [CorrBlock, CorrBlock1D])
def test_gradients_of_maps_and_coordinates_are_right_and_so_are_theirs(kind, keep):
    fmap1, fmap2, coords = tensors(draw((1, 3, 4, 5), (4, 5), "float64", noise=1.0))
    inputs = [each.requires_grad_() for each in (fmap1, fmap2, coords)]

    def run(fmap1, fmap2, coords):
        return kind(fmap1, fmap2, 2, 1, keep=keep)(coords)

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


def test_dilations_have_gradients():
    fmap1, fmap2, coords = tensors(draw((1, 3, 4, 5), dtype="float64"))
    dilation = torch.rand(1, 1, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda d: CorrBlock(fmap1, fmap2, 2, 1)(coords, d), [dilation], fast_mode=True)


def test_gradients_add_up_over_the_lookups_of_a_block(device):
    fmap1, fmap2, coords = tensors(draw(), device)
    others = coords + 0.5
    apart = torch.zeros_like(fmap1)
    for each in (coords, others):
        leaf = fmap1.clone().requires_grad_()
        CorrBlock(leaf, fmap2)(each).sum().backward()
        apart += leaf.grad
    leaf = fmap1.clone().requires_grad_()
    block = CorrBlock(leaf, fmap2)
    (block(coords).sum() + block(others).sum()).backward()
    torch.testing.assert_close(leaf.grad, apart)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("keep", [MAPS, VOLUME, WINDOWS])
def test_without_gradients_nothing_is_recorded_and_the_values_stay(context, keep):
    fmap1, fmap2, coords = tensors(draw((2, 16, 9, 11)))
    want = CorrBlock(fmap1, fmap2, keep=VOLUME if keep == VOLUME else MAPS)(coords)
    for packed in (False, True):
        form = torch.channels_last if packed else torch.contiguous_format
        leaves = [each.clone(memory_format=form).requires_grad_() for each in (fmap1, fmap2)]
        with context():
            block = CorrBlock(*leaves, keep=keep)
            out = block(coords)
        assert not out.requires_grad
        assert torch.equal(out, want)
        if context is torch.no_grad:
            assert not block(coords).requires_grad


# What is kept -------------------------------------------------------------------------------------------------------------------


def test_lookups_find_the_maps_as_the_cpus_kernels_read_them():
    """Channels-last, in the dtype of the sums, in whole vectors of 64 bytes: nothing is packed in a lookup."""
    for dtype, channels, kept in ((torch.float32, 20, 32), (torch.bfloat16, 48, 48), (torch.float64, 20, 24)):
        fmap1, fmap2 = (torch.randn(2, channels, 16, 17).to(dtype) for _ in range(2))
        block = CorrBlock(fmap1, fmap2, keep=MAPS)
        for level, each in enumerate((block.fmap1, *block.pyramid)):
            height, width = (16, 17) if level == 0 else (16 >> level - 1, 17 >> level - 1)
            assert each.shape == (2, kept, height, width)
            assert each.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert each.permute(0, 2, 3, 1).is_contiguous()


def test_maps_that_are_so_already_are_not_copied():
    fmap1, fmap2 = (torch.randn(2, 16, 17, 32).permute(0, 3, 1, 2) for _ in range(2))
    block = CorrBlock(fmap1, fmap2, keep=MAPS)
    assert block.fmap1.data_ptr() == fmap1.data_ptr()
    assert block.pyramid[0].data_ptr() == fmap2.data_ptr()
    assert block.kept_bytes == 4 * 2 * 32 * (2 * 16 * 17 + 8 * 8 + 4 * 4 + 2 * 2)


SMALL, LARGE = (1, 32, 15, 16), (1, 32, 30, 40)


@pytest.mark.parametrize("kind", [CorrBlock, CorrBlock1D])
def test_without_windows_the_volume_is_chosen_for_small_maps(kind, monkeypatch):
    monkeypatch.setattr(llvm, "why_not", lambda: "no llvmlite")
    assert kind(*torch.randn(2, *SMALL)).keep == VOLUME
    assert kind(*torch.randn(2, *LARGE)).keep == MAPS


def test_with_gradients_the_volume_is_chosen_up_to_a_few_times_the_numbers_of_the_maps():
    def kept(kind, *shape):
        return kind(torch.randn(shape, requires_grad=True), torch.randn(shape)).keep

    assert kept(CorrBlock, 1, 256, 24, 32) == kept(CorrBlock1D, 1, 32, 30, 80) == VOLUME
    assert kept(CorrBlock, 1, 256, 46, 62) == kept(CorrBlock, *LARGE) == kept(CorrBlock1D, 1, 32, 8, 200) == MAPS


def converging(coords, seed=0):
    """Yield coordinates that move less and less, jump, stand still, and leave the numbers."""
    generator = torch.Generator().manual_seed(seed)
    for step in (8.0, 3.0, 1.0, 0.3, 0.0, 0.01, 60.0, 0.2):
        coords = coords + step * torch.randn(coords.shape, generator=generator, dtype=coords.dtype)
        yield coords
    strange = coords.clone()
    strange[..., ::3] = torch.tensor(STRANGE, dtype=coords.dtype)[torch.randint(len(STRANGE), strange[..., ::3].shape)]
    yield from (strange, coords, coords.flip(-1))


@pytest.mark.parametrize("kind", [CorrBlock, CorrBlock1D])
@pytest.mark.parametrize("dtype", DTYPES)
def test_lookups_of_kept_windows_have_the_bits_of_lookups_from_the_maps(dtype, kind):
    fmap1, fmap2, coords = tensors(draw((2, 40, 17, 19), dtype=dtype))
    windows, maps = (kind(fmap1, fmap2, 3, keep=keep) for keep in (WINDOWS, MAPS))
    for each in converging(coords):
        got, want = windows(each), maps(each)
        assert got.is_contiguous()
        assert array(got).tobytes() == array(want).tobytes()


def test_a_dilated_lookup_of_a_block_with_windows_is_that_of_the_maps():
    fmap1, fmap2, coords = tensors(draw((1, 20, 17, 19)))
    windows, maps = (CorrBlock(fmap1, fmap2, 3, keep=keep) for keep in (WINDOWS, MAPS))
    for dilation in (None, 2, None, torch.rand(1, 1, 17, 19)):
        assert torch.equal(windows(coords, dilation), maps(coords, dilation))


def test_a_copy_of_a_block_with_windows_keeps_its_own():
    fmap1, fmap2, coords = tensors(draw())
    block = CorrBlock(fmap1, fmap2, keep=WINDOWS)
    want = block(coords)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        block.fmap1.zero_(), block(coords + 1)
        assert torch.equal(other(coords), want)
        assert (other.keep, other.kept_bytes) == (WINDOWS, block.kept_bytes)
        block = other


@pytest.mark.parametrize("keep", [MAPS, VOLUME, WINDOWS])
def test_maps_without_channels_have_scores_of_zero(keep):
    block = CorrBlock(torch.zeros(1, 0, 16, 16), torch.zeros(1, 0, 16, 16), 3, 1, keep=keep)
    assert torch.equal(block(torch.zeros(1, 2, 16, 16)), torch.zeros(1, 27, 16, 16))


def test_windows_are_chosen_where_no_gradient_is_needed():
    leaf, fmap2 = torch.randn(LARGE, requires_grad=True), torch.randn(LARGE)
    assert CorrBlock(leaf.detach(), fmap2).keep == WINDOWS
    assert CorrBlock(leaf, fmap2).keep == MAPS
    assert CorrBlock(fmap2, leaf).keep == MAPS
    with torch.no_grad():
        assert CorrBlock(leaf, leaf).keep == WINDOWS
    with torch.inference_mode():
        assert CorrBlock(fmap2, fmap2).keep == WINDOWS


def test_windows_are_refused_with_the_reason(monkeypatch):
    leaf, fmap2 = torch.randn(LARGE, requires_grad=True), torch.randn(LARGE)
    for maps in ((leaf, fmap2), (fmap2, leaf)):
        with pytest.raises(NotImplementedError, match="a gradient is needed"):
            CorrBlock(*maps, keep=WINDOWS)
    with pytest.raises(NotImplementedError, match="not on the CPU"):
        CorrBlock(fmap2.to("meta"), fmap2.to("meta"), keep=WINDOWS)
    monkeypatch.setattr(llvm, "why_not", lambda: "no llvmlite")
    with pytest.raises(NotImplementedError, match="no llvmlite"):
        CorrBlock(fmap2, fmap2, keep=WINDOWS)
    assert CorrBlock(fmap2, fmap2).keep == MAPS


def test_coordinates_that_need_a_gradient_get_it_unless_windows_were_asked_for():
    fmap1, fmap2, coords = tensors(draw(LARGE))
    coords.requires_grad_()
    free, bound = CorrBlock(fmap1, fmap2), CorrBlock(fmap1, fmap2, keep=WINDOWS)
    assert free.keep == bound.keep == WINDOWS
    got, want = (torch.autograd.grad(block(coords).sum(), coords)[0] for block in (free, CorrBlock(fmap1, fmap2, keep=MAPS)))
    assert torch.equal(got, want)
    with pytest.raises(NotImplementedError, match="a gradient is needed"):
        bound(coords)
    with torch.no_grad():
        assert torch.equal(bound(coords), free(coords))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_graphs_and_transforms_of_a_block_with_windows_compute_from_the_maps():
    fmap1, fmap2, coords = tensors(draw(LARGE))
    block, maps = CorrBlock(fmap1, fmap2, keep=WINDOWS), CorrBlock(fmap1, fmap2, keep=MAPS)
    others = coords + 1.5
    graph = make_fx(lambda coords: block(coords))(coords)
    assert torch.equal(graph(others), maps(others))
    traced = torch.jit.trace(lambda coords: block(coords), (coords,), check_trace=False)
    assert torch.equal(traced(others), maps(others))
    assert torch.equal(torch.compile(lambda coords: block(coords), backend="eager", fullgraph=True)(others), maps(others))
    both = torch.func.vmap(block)(torch.stack((coords, others)))
    assert torch.equal(both, torch.stack((maps(coords), maps(others))))
    _, tangent = torch.func.jvp(block, (coords,), (torch.ones_like(coords),))
    torch.testing.assert_close(tangent, torch.func.jvp(maps, (coords,), (torch.ones_like(coords),))[1])


# Graphs, autocast, transforms ---------------------------------------------------------------------------------------------------


def update(fmap1, fmap2, coords):
    """Return the second lookup of a model that makes its block itself."""
    block = CorrBlock(fmap1, fmap2, 2, 1)
    return block(coords + 0.1 * block(coords)[:, :2])


def gradients(f, *inputs):
    out = f(*inputs)
    return (out, *torch.autograd.grad(out.square().sum(), inputs))


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_block_that_a_compiled_model_makes_gives_the_same(dynamic, device):
    torch._dynamo.reset()
    compiled = torch.compile(update, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for shape in ((2, 16, 24, 26), (1, 16, 27, 30))[: 1 + dynamic]:
        inputs = [each.requires_grad_() for each in tensors(draw(shape), device)]
        (out, *got), (wanted_out, *want) = gradients(compiled, *inputs), gradients(update, *inputs)
        assert torch.equal(out, wanted_out)
        torch.testing.assert_close(got, want)  # the order of their sums differs: a graph has the gradients of each lookup


def test_a_model_with_a_block_is_exported_for_any_size():
    class Model(torch.nn.Module):
        def forward(self, fmap1, fmap2, coords):
            return update(fmap1, fmap2, coords)

    inputs = tensors(draw((2, 16, 24, 26)))
    height, width = torch.export.Dim("height", min=8), torch.export.Dim("width", min=8)
    exported = torch.export.export(Model(), tuple(inputs), dynamic_shapes=[{2: height, 3: width}] * 3)
    for shape in ((2, 16, 24, 26), (2, 16, 31, 23)):
        inputs = tensors(draw(shape))
        with torch.no_grad():
            assert torch.equal(exported.module()(*inputs), update(*inputs))


@pytest.mark.parametrize("kind", [CorrBlock, CorrBlock1D])
@pytest.mark.parametrize("keep", [MAPS, VOLUME])
def test_autocast_casts_maps_and_no_coordinates(kind, keep, device):
    fmap1, fmap2, coords = tensors(draw(noise=0.3), device)
    with torch.autocast(device, torch.bfloat16):
        block = kind(fmap1, fmap2, keep=keep)
        out = block(coords)
    want = kind(fmap1.bfloat16(), fmap2.bfloat16(), keep=keep)(coords)
    assert out.dtype == torch.float32
    assert torch.equal(out, want)
    assert torch.equal(block(coords), want)


@pytest.mark.parametrize("keep", [MAPS, VOLUME])
def test_a_block_made_without_autocast_keeps_its_precision_within(keep, device):
    fmap1, fmap2, coords = tensors(draw(), device)
    block = CorrBlock(fmap1, fmap2, keep=keep)
    want, wanted_apart = block(coords), block(coords, torch.ones(2, 1, 9, 11, device=device))
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(block(coords), want)
        assert torch.equal(block(coords, torch.ones(2, 1, 9, 11, device=device)), wanted_apart)


def test_forward_mode_and_vmap_go_through_a_block():
    fmap1, fmap2, coords = tensors(draw((2, 3, 6, 7), dtype="float64"))
    direction = torch.randn_like(fmap1)

    def run(fmap1):
        return CorrBlock(fmap1, fmap2, 2, 1)(coords)

    out, tangent = torch.func.jvp(run, (fmap1,), (direction,))
    torch.testing.assert_close(out, run(fmap1))
    torch.testing.assert_close(tangent, run(direction))  # it is linear
    many = torch.stack((fmap1, direction))
    torch.testing.assert_close(torch.func.vmap(run)(many), torch.stack((out, tangent)))


# Refusals -----------------------------------------------------------------------------------------------------------------------

A, B = torch.zeros(1, 4, 16, 24), torch.zeros(1, 4, 16, 24)
AT = torch.zeros(1, 2, 16, 24)
REFUSED = {
    "no tensor": (lambda: CorrBlock(A.numpy(), B), TypeError, "fmap1 must be a torch tensor"),
    "integers": (lambda: CorrBlock(A.int(), B.int()), TypeError, "fmap1 must be one of"),
    "two dtypes": (lambda: CorrBlock(A, B.double()), TypeError, "same dtype, got torch.float32 and torch.float64"),
    "three axes": (lambda: CorrBlock(A[0], B), ValueError, "fmap1 must have 4 dimensions"),
    "two batches": (lambda: CorrBlock(A, B.expand(2, -1, -1, -1)), ValueError, "same batch size and the same channels"),
    "two channels": (lambda: CorrBlock(A, B[:, :3]), ValueError, "same batch size and the same channels"),
    "no pixels": (lambda: CorrBlock(A[:, :, :0], B), ValueError, "fmap1 must have a height and a width of at least 1"),
    "two devices": (lambda: CorrBlock(A, B.to("meta")), ValueError, "same device"),
    "no levels": (lambda: CorrBlock(A, B, 0), ValueError, "num_levels must be at least 1, got num_levels=0"),
    "half a level": (lambda: CorrBlock(A, B, 1.5), TypeError, "num_levels must be an int"),
    "negative radius": (lambda: CorrBlock(A, B, 4, -1), ValueError, "radius must be at least 0"),
    "an empty level": (lambda: CorrBlock(A, B, 6), ValueError, "level 5 of num_levels=6 would have 0 x 0 pixels"),
    "an empty level of a row": (lambda: CorrBlock(A[:, :, :3], B[:, :, :3]), ValueError, "level 2 .* 0 x 6 pixels"),
    "an empty level of columns": (lambda: CorrBlock1D(A, B, 6), ValueError, "level 5 .* 16 x 0 pixels"),
    "order": (lambda: CorrBlock(A, B, order="xy"), ValueError, "order must be one of"),
    "keep": (lambda: CorrBlock(A, B, keep="all"), ValueError, "keep must be one of"),
    "scale": (lambda: CorrBlock(A, B, scale=float("nan")), ValueError, "scale must be finite"),
    "other rows": (lambda: CorrBlock1D(A, B[:, :, :9]), ValueError, "same height"),
    "other coordinates": (lambda: CorrBlock(A, B)(AT[..., 1:]), ValueError, r"shape \(1, 2, 16, 24\), got .*\(1, 2, 16, 23\)"),
    "x alone": (lambda: CorrBlock(A, B)(AT[:, :1]), ValueError, "coords must have the shape"),
    "several lookups": (lambda: CorrBlock(A, B)(AT[:, None]), ValueError, "coords must have the shape"),
    "three coordinates": (lambda: CorrBlock1D(A, B)(AT[:, [0, 1, 1]]), ValueError, r"\(1, 1, 16, 24\) or \(1, 2, 16, 24\)"),
    "wide coordinates": (lambda: CorrBlock(A, B, keep=MAPS)(AT.double()), TypeError, "coords"),
    "wide coordinates in a volume": (lambda: CorrBlock(A, B, keep=VOLUME)(AT.double()), TypeError, "coords"),
    "whole coordinates": (lambda: CorrBlock(A, B)(AT.int()), TypeError, "coords must be one of"),
    "whole coordinates in a volume": (lambda: CorrBlock(A, B, keep=VOLUME)(AT.int()), TypeError, "coords must be one of"),
    "whole coordinates, dilated": (lambda: CorrBlock(A, B)(AT.int(), AT[:, :1] + 1.5), TypeError, "coords must be one of"),
    "coordinates elsewhere": (lambda: CorrBlock(A, B)(AT.to("meta")), ValueError, "coords and fmap1 .* same device"),
    "complex dilations": (lambda: CorrBlock(A, B)(AT, AT[:, :1] + 1j), TypeError, "dilation must be of real numbers"),
    "dilations elsewhere": (lambda: CorrBlock(A, B)(AT, AT[:, :1].to("meta")), ValueError, "dilation and fmap1"),
    "no coordinates": (lambda: CorrBlock(A, B)(None), TypeError, "coords must be a torch tensor"),
    "half a dilation": (lambda: CorrBlock(A, B)(AT, 1.5), TypeError, "dilation must be an int"),
    "no dilation": (lambda: CorrBlock(A, B)(AT, 0), ValueError, "dilation must be at least 1"),
    "other dilations": (lambda: CorrBlock(A, B)(AT, AT), ValueError, r"dilation must have the shape \(1, 1, 16, 24\)"),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


# Memory -------------------------------------------------------------------------------------------------------------------------

PEAK = """
import torch
from cupycorr.torch import CorrBlock

def status(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024

torch.set_grad_enabled(False)
CorrBlock(*torch.randn(2, 1, 256, 24, 32), keep={keep!r})(torch.rand(1, 2, 24, 32))  # compiles the kernels
fmap1, fmap2 = torch.randn(2, 1, 256, 136, 240)
coords = torch.rand(1, 2, 136, 240) * 136
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins here
before = status("VmRSS")
block = CorrBlock(fmap1, fmap2, keep={keep!r})
for step in range(3):
    out = block(coords + step / 4)
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a part of a program")
@pytest.mark.parametrize("keep", ["auto", MAPS, WINDOWS])
def test_a_block_for_a_frame_of_1080_lines_holds_less_than_300_mebibytes_with_its_results(keep):
    done = subprocess.run([sys.executable, "-c", PEAK.format(keep=keep)], capture_output=True, text=True, timeout=STUCK)
    assert done.returncode == 0, done.stderr
    results = 4 * 324 * 136 * 240 / 2**20
    assert results < float(done.stdout) < 300
