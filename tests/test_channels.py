"""Channels of a cost volume: known motion in every layout, expectations by independent formulas, and pictures."""

import ast
import inspect
import itertools
import math
import sys
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import fake_cupy
import ml_dtypes
import numpy as np
import pytest

import cupycorr
from cupycorr import channels
from cupycorr._correlation.problem import parameters
from cupycorr._pictures import NEUTRAL

torch = pytest.importorskip("torch")
Text = pytest.importorskip("matplotlib.text").Text

rng = np.random.default_rng


# Arrays of each kind -----------------------------------------------------------------------------------------------------------


def to_torch(array, device="cpu"):
    if array.dtype == ml_dtypes.bfloat16:
        return to_torch(array.astype(np.float32), device).bfloat16()
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def to_gpu_cupy(array):
    import cupy

    return cupy.asarray(array)


def to_gpu_torch(array):
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return to_torch(array, "cuda")


KINDS = {"numpy": np.asarray, "cupy": fake_cupy.on_cupy, "torch": to_torch}
GPU_KINDS = {"cupy on a GPU": to_gpu_cupy, "torch on a GPU": to_gpu_torch}


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
    """A function from a NumPy array to an array of one kind."""
    if request.param == "cupy":
        monkeypatch.setitem(sys.modules, "cupy", fake_cupy.Fake(fake_cupy.H100))
        monkeypatch.setattr(fake_cupy.ndarray, "get", lambda array: array.view(np.ndarray), raising=False)
    return (KINDS | GPU_KINDS)[request.param]


def also_on_a_gpu(test):
    """Run the test on arrays of a GPU too, under ``-m gpu``."""
    there = [pytest.param(name, marks=pytest.mark.gpu) for name in GPU_KINDS]
    return pytest.mark.parametrize("kind", [*KINDS, *there], indirect=True)(test)


def plain(array):
    """Return any array as a NumPy array."""
    return array.numpy(force=True) if isinstance(array, torch.Tensor) else array.get() if hasattr(array, "get") else array


def assert_of_kind(result, like, dtype):
    assert type(result) is type(like)
    assert result.device == like.device
    assert str(result.dtype).removeprefix("torch.") == dtype


# Known motion ------------------------------------------------------------------------------------------------------------------

# The displacements tried are written down, not computed: an even patch has one more on the positive side.
PATCHES = {
    "odd": (dict(patch_size=5), (-2, -1, 0, 1, 2), (-2, -1, 0, 1, 2)),
    "even": (dict(patch_size=4), (-1, 0, 1, 2), (-1, 0, 1, 2)),
    "rectangular": (dict(patch_size=(3, 6)), (-1, 0, 1), (-2, -1, 0, 1, 2, 3)),
    "dilated": (dict(patch_size=(5, 3), dilation_patch=2), (-4, -2, 0, 2, 4), (-2, 0, 2)),
    "one-sided": (dict(patch_size=(1, 8), patch_offset=(0, -4)), (0,), (-7, -6, -5, -4, -3, -2, -1, 0)),
    "all at once": (dict(patch_size=(2, 4), dilation_patch=(3, 2), patch_offset=(5, -3)), (5, 8), (-5, -3, -1, 1)),
}
patches = pytest.mark.parametrize("case", PATCHES)
orders = pytest.mark.parametrize("order", ["dy", "dx"])


def shifted_maps(moved):
    """Return maps of +1 and -1 whose product is 64 at the displacement and less elsewhere, and the motion."""
    frame = rng(0).choice(np.float32([-1, 1]), (2, 64, 18, 20))
    return frame, np.roll(frame, moved, axis=(2, 3))


@lru_cache
def volume(case, moved, dtype=np.float32):
    given, _, _ = PATCHES[case]
    return cupycorr.spatial_correlation_sample(*shifted_maps(moved), **given, scale=1 / 64).astype(dtype)


def corners(case):
    """Return the motions of the first and the last displacement of each axis."""
    _, dys, dxs = PATCHES[case]
    return sorted({(dys[0], dxs[-1]), (dys[-1], dxs[0])})


def inside(moved):
    """Return the positions that stay inside the map."""
    return np.s_[:, max(-moved[0], 0) : 18 - max(moved[0], 0), max(-moved[1], 0) : 20 - max(moved[1], 0)]


def in_order(out, order):
    return out if order == "dy" else np.swapaxes(out, 1, 2)


def flat(out):
    return out.reshape(len(out), -1, *out.shape[3:])


# name -> from (B, slow, fast, oH, oW) to the layout, and what tells it apart
LAYOUTS = {
    "two axes": (lambda out: out, {}),
    "channels": (flat, {}),
    "channels last": (lambda out: np.moveaxis(flat(out), 1, 3), {"channel_axis": 3}),
    "channels last of all": (lambda out: np.moveaxis(flat(out), 1, 3), {"channel_axis": -1}),
    "one by all": (lambda out: flat(out)[:, None], {}),
    "all by one": (lambda out: flat(out)[:, :, None], {}),
}


@pytest.mark.covering(2)
@patches
@orders
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_highest_score_tells_a_known_motion_in_every_layout(case, order, layout, kind):
    arrange, told = LAYOUTS[layout]
    for moved in corners(case):
        out = kind(arrange(in_order(volume(case, moved), order)))
        found = cupycorr.argmax_displacement(out, **PATCHES[case][0], order=order, **told)
        for component, want in zip(found, moved, strict=True):
            assert_of_kind(component, out, "int64")
            assert component.shape == (2, 18, 20)
            assert (plain(component)[inside(moved)] == want).all()


@pytest.mark.covering(2)
@patches
@orders
@pytest.mark.parametrize("layout", ["two axes", "channels last"])
def test_a_low_temperature_tells_it_too(case, order, layout, kind):
    arrange, told = LAYOUTS[layout]
    for moved in corners(case):
        out = kind(arrange(in_order(volume(case, moved), order)))
        found = cupycorr.soft_argmax(out, 0.01, **PATCHES[case][0], order=order, **told)
        for component, want in zip(found, moved, strict=True):
            assert_of_kind(component, out, "float32")
            np.testing.assert_allclose(plain(component)[inside(moved)], want, atol=1e-4)


@orders
def test_sizes_of_two_patch_axes_need_not_be_told(order):
    moved = (-1, 3)
    found = cupycorr.argmax_displacement(in_order(volume("rectangular", moved), order), order=order)
    assert (found.dy[inside(moved)] == -1).all()
    assert (found.dx[inside(moved)] == 3).all()


@pytest.mark.parametrize("case", ["odd", "even"])
def test_a_square_number_of_channels_is_a_square_patch(case):
    moved = (2, -1)
    found = cupycorr.argmax_displacement(flat(volume(case, moved)))
    assert (found.dy[inside(moved)] == 2).all()
    assert (found.dx[inside(moved)] == -1).all()


DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}
RESULTS = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}


@also_on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_gives_whole_pixels_or_the_accumulators_fractions(dtype, kind):
    moved = (2, -1)
    out = kind(volume("odd", moved, DTYPES[dtype]))
    best, soft = cupycorr.argmax_displacement(out), cupycorr.soft_argmax(out, 0.01)
    for component, want in zip((*best, *soft), (*moved, *moved), strict=True):
        np.testing.assert_allclose(plain(component)[inside(moved)], want, atol=1e-3)
    assert_of_kind(best.dy, out, "int64")
    assert_of_kind(soft.dy, out, RESULTS[dtype])


def test_flow_is_u_and_v(kind):
    out = kind(volume("odd", (2, -1)))
    for found in (cupycorr.argmax_displacement(out), cupycorr.soft_argmax(out)):
        assert_of_kind(found.flow, out, str(found.dy.dtype).removeprefix("torch."))
        np.testing.assert_array_equal(plain(found.flow), np.stack([plain(found.dx), plain(found.dy)], axis=1))


def test_an_empty_batch_gives_empty_fields(kind):
    out = kind(np.zeros((0, 3, 3, 4, 5), np.float32))
    for found in (cupycorr.argmax_displacement(out), cupycorr.soft_argmax(out)):
        assert found.dy.shape == found.dx.shape == (0, 4, 5)


def test_a_gpus_results_are_made_on_the_gpu_of_the_scores(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.Fake(fake_cupy.H100))
    out = fake_cupy.on_cupy(volume("odd", (2, -1)), device=1)
    for found in (cupycorr.argmax_displacement(out), cupycorr.soft_argmax(out)):
        assert {array.device.id for array in (found.dy, found.dx, found.flow)} == {1}
    assert cupycorr.to_channels(out, "dx").device.id == 1


# Which displacement a channel is -----------------------------------------------------------------------------------------------


@patches
def test_displacements_are_listed_in_the_order_of_the_channels(case):
    given, dys, dxs = PATCHES[case]
    for order, want in (
        ("dy", [(dy, dx) for dy in dys for dx in dxs]),
        ("dx", [(dy, dx) for dx in dxs for dy in dys]),
    ):
        got = cupycorr.displacements(**given, order=order)
        assert got.dtype == np.int64
        assert list(map(tuple, got.tolist())) == want


@patches
@orders
def test_each_channel_holds_the_products_at_its_displacement(case, order):
    frame1, frame2 = (rng(seed).integers(-3, 4, (1, 2, 18, 20)).astype(np.float32) for seed in (1, 2))
    given, _, _ = PATCHES[case]
    found = cupycorr.to_channels(cupycorr.spatial_correlation_sample(frame1, frame2, **given), order)
    around = np.pad(frame2, ((0, 0), (0, 0), (9, 9), (9, 9)))
    for channel, (dy, dx) in zip(found[0], cupycorr.displacements(**given, order=order), strict=True):
        want = (frame1 * around[:, :, 9 + dy : 27 + dy, 9 + dx : 29 + dx]).sum(axis=(0, 1))
        np.testing.assert_array_equal(channel, want, err_msg=f"{dy=}, {dx=}")


HOLDERS = {
    "problem": lambda x, **given: cupycorr.explain(x, x, **given).problem,
    "parameters": lambda x, **given: parameters(**given),
    "sampler": lambda x, **given: pytest.importorskip("cupycorr.torch").SpatialCorrelationSampler(**given),
    "foreign sampler": lambda x, patch_offset=None, **given: SimpleNamespace(**{"dilation_patch": 1, **given}),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("case", ["even", "dilated", "all at once"])
def test_parameters_are_read_off_what_has_them(holder, case):
    given, dys, dxs = PATCHES[case]
    if holder == "foreign sampler" and "patch_offset" in given:
        pytest.skip("no other package's sampler has an offset")
    held = HOLDERS[holder](np.zeros((1, 1, 18, 20), np.float32), **given)
    assert cupycorr.displacements(held).tolist() == [[dy, dx] for dy in dys for dx in dxs]
    moved = (dys[-1], dxs[0])
    assert (cupycorr.argmax_displacement(volume(case, moved), held).dy[inside(moved)] == dys[-1]).all()
    for beside in ({"dilation_patch": 2}, {"patch_offset": 0}):
        with pytest.raises(TypeError, match=f"dilation_patch and patch_offset must not be passed beside a {type(held).__name__}"):
            cupycorr.displacements(held, **beside)


def test_channels_are_a_view_where_the_strides_allow(kind):
    out = kind(np.arange(2 * 3 * 4 * 5 * 6.0).reshape(2, 3, 4, 5, 6))
    got = cupycorr.to_channels(out)
    assert got.shape == (2, 12, 5, 6)
    out[1, 2, 3, 4, 5] = -7
    assert got[1, 11, 4, 5] == -7


@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.bool_], ids=lambda dtype: dtype.__name__)
def test_channels_may_be_of_any_dtype_and_stride(dtype, kind):
    values = rng(0).integers(0, 2, (2, 3, 4, 5, 6)).astype(dtype)
    swapped = kind(values).swapaxes(1, 2)
    got = cupycorr.to_channels(swapped, "dx")
    np.testing.assert_array_equal(plain(got), values.reshape(2, 12, 5, 6))
    assert got.dtype == swapped.dtype
    for n, m in itertools.product(range(4), range(3)):
        np.testing.assert_array_equal(plain(cupycorr.to_channels(swapped))[:, n * 3 + m], values[:, m, n])


# Ties and scores that are not finite -------------------------------------------------------------------------------------------


def one_position(scores, dtype=np.float32):
    """(1, PH, PW, 1, 1) from nested lists."""
    return np.array(scores, dtype)[None, :, :, None, None]


@also_on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_of_equal_scores_the_first_channel_wins(dtype, kind):
    scores = one_position([[0, 0, 0], [0, 0, 1], [0, 1, 1]], DTYPES[dtype])
    for order, first in (("dy", (0, 1)), ("dx", (1, 0))):
        found = cupycorr.argmax_displacement(kind(in_order(scores, order)), order=order)
        assert (found.dy.item(), found.dx.item()) == first


@also_on_a_gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_is_the_highest_score_and_has_no_expectation(dtype, kind):
    scores = np.repeat(one_position([[0, 9, math.inf], [0, math.nan, 0]]), 2, axis=4).astype(DTYPES[dtype])
    scores[..., 1] = 0
    found = cupycorr.argmax_displacement(kind(scores))
    assert (int(found.dy[0, 0, 0]), int(found.dx[0, 0, 0])) == (1, 0)
    expected = cupycorr.soft_argmax(kind(scores))
    for component, elsewhere in zip(expected, (0.5, 0), strict=True):
        assert math.isnan(component[0, 0, 0])
        assert component[0, 0, 1] == elsewhere


INFINITE = {
    "minus infinity does not count": ([[-math.inf, 0, 0]], 0.5),
    "only one counts": ([[-math.inf, -math.inf, -3]], 1),
    "all minus infinity": ([[-math.inf] * 3], math.nan),
    "infinity": ([[0, 0, math.inf]], math.nan),
}


@also_on_a_gpu
@pytest.mark.parametrize(("scores", "want"), INFINITE.values(), ids=INFINITE)
def test_infinite_scores_mean_what_is_documented(scores, want, kind):
    found = cupycorr.soft_argmax(kind(one_position(scores)))
    np.testing.assert_array_equal(plain(found.dx), [[[want]]])


# The expectation ---------------------------------------------------------------------------------------------------------------


def expectation(scores, tried, temperature):
    """E[d] = sum p d, p = exp(s / T) / sum exp(s / T), in exact exponentials of float64 at one position."""
    weights = [math.exp(score / temperature) for score in scores]
    return sum(w * d for w, d in zip(weights, tried, strict=True)) / math.fsum(weights)


@pytest.mark.covering(2)
@also_on_a_gpu
@patches
@pytest.mark.parametrize("temperature", [0.3, 1, 20.0])
def test_the_expectation_is_that_of_its_formula(case, temperature, kind):
    given, dys, dxs = PATCHES[case]
    scores = rng(3).standard_normal((2, len(dys), len(dxs), 3, 2))
    found = cupycorr.soft_argmax(kind(scores), temperature, **given)
    by_channel = [(dy, dx) for dy in dys for dx in dxs]
    for b, i, j in np.ndindex(2, 3, 2):
        here = scores[b, :, :, i, j].ravel()
        assert float(found.dy[b, i, j]) == pytest.approx(expectation(here, [dy for dy, _ in by_channel], temperature), abs=1e-12)
        assert float(found.dx[b, i, j]) == pytest.approx(expectation(here, [dx for _, dx in by_channel], temperature), abs=1e-12)


LARGE = {
    "large": ([[3e38, 3e38, -3e38]], 1.0, -0.5),
    "large over a small temperature": ([[1e38, 9e37, 1e38]], 1e-30, 0),
    "far below": ([[-2e38, -1e38, -1e38]], 1e-6, 0.5),
    "span beyond the largest number": ([[3e38, -3e38]], 3e38, 1 / (1 + math.exp(2))),
    "high temperature": ([[-1e38, 0, 1e38]], 1e38, (math.e - 1 / math.e) / (math.e + 1 + 1 / math.e)),
}


@also_on_a_gpu
@pytest.mark.parametrize(("scores", "temperature", "want"), LARGE.values(), ids=LARGE)
def test_no_score_is_too_large(scores, temperature, want, kind):
    found = cupycorr.soft_argmax(kind(one_position(scores)), temperature)
    np.testing.assert_allclose(plain(found.dx), want, atol=1e-6)


@orders
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_is_that_of_the_expectation(order, layout):
    arrange, told = LAYOUTS[layout]
    given, dys, dxs = PATCHES["all at once"]
    temperature = 0.7
    values = rng(4).standard_normal((2, 2, 4, 3, 2))
    weights = np.exp(values / temperature)
    weights /= weights.sum(axis=(1, 2), keepdims=True)
    want = 0
    cotangents = rng(5).standard_normal((2, 2, 3, 2))
    for cotangent, tried in zip(cotangents, np.meshgrid(dys, dxs, indexing="ij"), strict=True):
        tried = tried[None, :, :, None, None]
        mean = (weights * tried).sum(axis=(1, 2), keepdims=True)
        want = want + cotangent[:, None, None] * weights * (tried - mean) / temperature  # d E / d s = p (d - E) / T

    out = to_torch(arrange(in_order(values, order))).requires_grad_()
    found = cupycorr.soft_argmax(out, temperature, **given, order=order, **told)
    (got,) = torch.autograd.grad(found, out, grad_outputs=list(map(torch.from_numpy, cotangents)))
    np.testing.assert_allclose(got, arrange(in_order(want, order)), rtol=0, atol=1e-12)


def test_gradients_of_halves_are_halves_and_those_of_infinite_scores_zero():
    out = torch.tensor([0.0, -math.inf, 1.0], dtype=torch.bfloat16).reshape(1, 1, 3, 1, 1).requires_grad_()
    cupycorr.soft_argmax(out).dx.sum().backward()
    assert out.grad.dtype == torch.bfloat16
    p = math.e / (1 + math.e)
    np.testing.assert_allclose(out.grad.float().ravel(), [-2 * p * (1 - p), 0, 2 * p * (1 - p)], rtol=0.01)


def test_the_best_displacement_has_no_gradient():
    found = cupycorr.argmax_displacement(torch.randn(1, 3, 3, 4, 5, requires_grad=True))
    assert not found.dy.requires_grad
    assert not found.dx.requires_grad


def test_autocast_rounds_no_displacement():
    given, _, dxs = PATCHES["one-sided"]
    scores = rng(6).standard_normal((1, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cupycorr.soft_argmax(torch.from_numpy(one_position(scores)), **given)
    assert found.dx.dtype == torch.float32
    assert found.dx.item() == pytest.approx(expectation(scores[0], dxs, 1), abs=1e-5)


def test_all_of_it_compiles_in_one_piece_for_all_sizes():
    def fields(scores):
        soft = cupycorr.soft_argmax(scores, 0.5, patch_offset=3)
        best = cupycorr.argmax_displacement(cupycorr.to_channels(scores, "dx"), (3, 4), 2, order="dx")
        return soft.flow, best.flow

    def gradient(f):
        scores = torch.randn(2, 3, 4, 5, 6, generator=torch.manual_seed(0)).requires_grad_()
        soft, best = f(scores)
        return soft, best, *torch.autograd.grad(soft.square().sum(), scores)

    torch._dynamo.reset()
    compiled = torch.compile(fields, fullgraph=True, backend="aot_eager", dynamic=True)
    for got, want in zip(gradient(compiled), gradient(fields), strict=True):
        torch.testing.assert_close(got, want)


# CuPy --------------------------------------------------------------------------------------------------------------------------


def test_every_array_function_used_exists_in_cupy_and_torch():
    cupy = pytest.importorskip("cupy")
    tree = ast.parse(Path(inspect.getsourcefile(channels)).read_text(encoding="utf-8"))
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    names = {a.attr for a in attributes if ast.unparse(a.value) == "xp" or ast.unparse(a.value).startswith("array_module(")}
    assert {"amax", "argmax", "arange", "stack"} <= names
    for name, library in itertools.product(names, (cupy, torch)):
        assert hasattr(library, name), f"{library.__name__}.{name}"
    assert callable(cupy.ndarray.get)


# Pictures ----------------------------------------------------------------------------------------------------------------------


def pixels(axes, *places):
    """Return the colours at places (dx, dy) in coordinates of the axes."""
    axes.figure.canvas.draw()
    picture = np.asarray(axes.figure.canvas.buffer_rgba())[..., :3] / 255
    return [picture[len(picture) - 1 - int(y), int(x)] for x, y in axes.transData.transform(places)]


def labels(axis):
    return [label.get_text().replace("\N{MINUS SIGN}", "-") for label in axis.get_ticklabels()]


@patches
@orders
def test_the_picture_of_a_position_shows_its_scores_and_marks_the_best(case, order):
    given, dys, dxs = PATCHES[case]
    scores = rng(6).standard_normal((2, len(dys), len(dxs), 3, 2)).astype(np.float32)
    scores[1, -1, 0, 2, 1] = 9
    figure = cupycorr.plot_channels(in_order(scores, order), at=(2, 1), sample=1, **given, order=order)
    axes, bar = figure.axes
    (image,) = axes.images
    np.testing.assert_array_equal(image.get_array(), scores[1, :, :, 2, 1])
    (mark,) = axes.lines
    assert mark.get_xydata().tolist() == [[dxs[0], dys[-1]]]
    assert axes.get_title(loc="left") == f"scores at y=2, x=1: best dy={dys[-1]}, dx={dxs[0]}"
    assert (axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()) == ("dx (px)", "dy (px)", "score")
    # The cell of the best score, a third of a cell off its mark, has the last colour; the axes name it.
    step = np.broadcast_to(given.get("dilation_patch", 1), 2)
    (colour,) = pixels(axes, (dxs[0] + step[1] / 3, dys[-1] - step[0] / 3))
    np.testing.assert_allclose(colour, image.get_cmap()(1.0)[:3], atol=0.01)
    assert labels(axes.xaxis) == list(map(str, dxs))
    assert labels(axes.yaxis) == list(map(str, dys))
    assert axes.yaxis_inverted()


@patches
@orders
def test_the_contact_sheet_has_the_map_of_each_displacement_in_its_place(case, order):
    given, dys, dxs = PATCHES[case]
    scores = rng(7).standard_normal((2, len(dys), len(dxs), 3, 4)).astype(np.float32)
    figure = cupycorr.plot_channels(in_order(scores, order), sample=1, **given, order=order)
    axes, _ = figure.axes
    assert len(axes.images) == len(dys) * len(dxs)
    for image, (m, n) in zip(axes.images, np.ndindex(len(dys), len(dxs)), strict=True):
        left, right, bottom, top = image.get_extent()
        assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((dxs[n], dys[m]))
        assert bottom > top  # rows from the top
        np.testing.assert_array_equal(image.get_array(), scores[1, m, n])
        assert image.get_clim() == pytest.approx((scores[1].min(), scores[1].max()))
    assert axes.yaxis_inverted()
    assert set(labels(axes.xaxis)) <= set(map(str, dxs))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("dx (px)", "dy (px)")


def test_the_maps_of_a_contact_sheet_do_not_touch():
    axes = cupycorr.plot_channels(np.zeros((1, 2, 2, 4, 4), np.float32)).axes[0]
    np.testing.assert_array_equal(pixels(axes, (0.5, 0.2), (0.2, 0.5)), 1)


def test_large_maps_are_thinned_out_and_the_title_says_so():
    scores = rng(8).standard_normal((1, 9, 9, 130, 250)).astype(np.float32)
    figure = cupycorr.plot_channels(scores)
    axes = figure.axes[0]
    assert axes.get_title(loc="left") == "scores by displacement, position step 2"
    np.testing.assert_array_equal(axes.images[10].get_array(), scores[0, 1, 1, ::2, ::2])
    assert figure.bbox.width < 2000
    assert figure.bbox.height < 1400


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_scores_that_are_not_finite_are_grey_and_never_the_best(bad):
    scores = one_position([[0, 1, 2], [3, bad, 4], [7, 5, 6]])
    patch, sheet = cupycorr.plot_channels(scores, at=(0, 0)), cupycorr.plot_channels(scores)
    assert patch.axes[0].get_title(loc="left").endswith("best dy=1, dx=-1")
    for figure in (patch, sheet):
        np.testing.assert_allclose(pixels(figure.axes[0], (0, 0)), [NEUTRAL], atol=0.003)
        assert figure.axes[0].images[0].get_clim() == (0, 7)


def test_a_position_without_a_finite_score_has_no_best():
    figure = cupycorr.plot_channels(one_position([[math.nan] * 3]), at=(0, 0))
    assert figure.axes[0].get_title(loc="left") == "scores at y=0, x=0: none is finite"
    assert not figure.axes[0].lines
    np.testing.assert_allclose(pixels(figure.axes[0], (1, 0)), [NEUTRAL], atol=0.003)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_every_dtype_are_drawn_across_its_whole_range(dtype, kind):
    largest = min(float(ml_dtypes.finfo(DTYPES[dtype]).max), 1e300)  # beyond it, matplotlib overflows
    scores = one_position([[-largest, 0, largest]], DTYPES[dtype])
    out = kind(scores)
    if isinstance(out, torch.Tensor):
        out.requires_grad_()
    axes = cupycorr.plot_channels(out).axes[0]
    colours = axes.images[0].get_cmap()
    got = pixels(axes, (-1.3, 0.3), (-0.3, 0.3), (1.3, 0.3))
    np.testing.assert_allclose(got, [colours(share)[:3] for share in (0.0, 0.5, 1.0)], atol=0.01)


PICTURES = {
    "one": (dict(patch_size=1), 1),
    "9": (dict(patch_size=9), 1),
    "21 dilated": (dict(patch_size=21, dilation_patch=2), 1),
    "stereo": (dict(patch_size=(1, 64), patch_offset=(0, -31)), 1),
    "column": (dict(patch_size=(80, 1)), 1),
    "far": (dict(patch_size=4, patch_offset=(-1000, 1000), dilation_patch=7), 1),
    "small scores": (dict(patch_size=2), 1e-9),
    "large scores": (dict(patch_size=2), 123456),
}


@pytest.mark.parametrize("at", [(1, 1), None], ids=["patch", "sheet"])
@pytest.mark.parametrize(("given", "magnitude"), PICTURES.values(), ids=PICTURES)
def test_no_text_of_a_picture_overlaps_another_or_leaves_it(given, magnitude, at):
    scores = magnitude * rng(9).standard_normal((1, *np.broadcast_to(given["patch_size"], 2), 4, 6))
    figure = cupycorr.plot_channels(scores, at, **given)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in texts(figure)]
    assert len(boxes) >= 6
    for box in boxes:
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def texts(figure):
    """Return the texts that are drawn, without the labels of an axis beyond its ends."""
    beyond = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        beyond |= {label for label, at in zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=True) if not low <= at <= high}
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible() and text not in beyond]


def test_zero_is_among_the_labels_of_a_large_patch():
    figure = cupycorr.plot_channels(np.zeros((1, 1, 64, 2, 2), np.float32), (0, 0), patch_size=(1, 64), patch_offset=(0, -23))
    assert labels(figure.axes[0].xaxis)[::2] == ["-50", "-40", "-30", "-20", "-10", "0"]


def test_a_missing_matplotlib_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ImportError, match=r"pictures need matplotlib: pip install \"cupycorr\[demo\]\""):
        cupycorr.plot_channels(np.zeros((1, 3, 3, 4, 5)))


# Groups ------------------------------------------------------------------------------------------------------------------------

MOTIONS = ((2, -1), (0, 3), (-1, 1))  # (dy, dx) of each group


def volume_of_groups(order):
    """Return the volume of two samples in which each group of channels moves by a motion of its own, and whose patch is 5 x 7."""
    frame1 = 4 * rng(0).standard_normal((2, 96, 14, 15), np.float32)  # large, so that the mean is near the best
    frame2 = np.concatenate(
        [np.roll(part, motion, (2, 3)) for part, motion in zip(np.split(frame1, 3, 1), MOTIONS, strict=True)], 1
    )
    out = cupycorr.spatial_correlation_sample(frame1, frame2, patch_size=(5, 7), groups=3)
    return out if order == "dy" else np.ascontiguousarray(out.swapaxes(2, 3))


@pytest.mark.parametrize("order", ["dy", "dx"])
@pytest.mark.parametrize("function", [cupycorr.argmax_displacement, cupycorr.soft_argmax])
def test_each_group_has_a_displacement_of_its_own(function, order, kind):
    found = function(kind(volume_of_groups(order)), order=order)
    assert tuple(found.dy.shape) == tuple(found.dx.shape) == (2, 3, 14, 15)
    assert tuple(found.flow.shape) == (2, 2, 3, 14, 15)
    for group, motion in enumerate(MOTIONS):
        for component, want in zip(found, motion, strict=True):
            np.testing.assert_allclose(np.asarray(component)[:, group, 4:-4, 4:-4], want, atol=0.05)


@pytest.mark.parametrize("order", ["dy", "dx"])
def test_channels_of_groups_are_those_of_each_group(order, kind):
    out = volume_of_groups("dy")
    found = np.asarray(cupycorr.to_channels(kind(out), order))
    assert found.shape == (2, 3, 35, 14, 15)
    for group in range(3):
        np.testing.assert_array_equal(found[:, group], cupycorr.to_channels(out[:, group], order))


def test_the_picture_of_a_group_marks_its_best():
    picture = cupycorr.plot_channels(volume_of_groups("dy"), at=(7, 8), sample=1, group=1)
    assert picture.axes[0].get_title(loc="left").endswith("best dy=0, dx=3")


# Bad input ---------------------------------------------------------------------------------------------------------------------

GOOD = np.zeros((2, 3, 3, 4, 5), np.float32)
FLAT = flat(GOOD)
HOLDER = SimpleNamespace(patch_size=3, dilation_patch=1)

BAD_SCORES = {
    "list": (GOOD.tolist(), {}, TypeError, "out must be a NumPy or CuPy array or a torch tensor, got builtins.list"),
    "none": (None, {}, TypeError, "out must be a NumPy or CuPy array or a torch tensor, got builtins.NoneType"),
    "masked": (np.ma.array(GOOD), {}, TypeError, "out must not be a masked array"),
    "integers": (GOOD.astype(int), {}, TypeError, "out must be one of float16, .* got out.dtype=int64"),
    "complex tensor": (torch.zeros(1, 3, 3, 4, 5) * 1j, {}, TypeError, "out must be one of .* got out.dtype=complex64"),
    "foreign bytes": (GOOD.astype(">f4"), {}, TypeError, "out must be one of .* got out.dtype=>f4"),
    "three dimensions": (GOOD[0, 0], {}, ValueError, r"out must have 5, 6 or 4 dimensions, .* got out.shape=\(3, 4, 5\)"),
    "no rows": (GOOD[:, :0], {}, ValueError, "out must have at least one displacement, got 0 x 3"),
    "no columns": (GOOD[:, :, :0], {}, ValueError, "out must have at least one displacement, got 3 x 0"),
    "no channels": (FLAT[:, :0], {}, ValueError, "out must have at least one displacement, got 0"),
    "no square": (FLAT[:, :8], {}, ValueError, "patch_size must be passed .* got 8 channels on axis 1"),
    "no square, last": (FLAT, {"channel_axis": 3}, ValueError, "patch_size must be passed .* got 5 channels on axis 3"),
    "too few": (FLAT, {"patch_size": 4}, ValueError, "out must have 16 channels .* patch_size=4 .* got 9$"),
    "too many": (GOOD, {"patch_size": 2}, ValueError, "patch axes of 2 x 2 for patch_size=2 and order='dy', got 3 x 3"),
    "other way round": (GOOD[:, :2], {"patch_size": (3, 2)}, ValueError, r"patch axes of 3 x 2 .* got 2 x 3"),
    "other order": (GOOD[:, :2], {"patch_size": (2, 3), "order": "dx"}, ValueError, r"of 3 x 2 .* order='dx', got 2 x 3"),
    "order": (GOOD, {"order": "yx"}, ValueError, "order must be 'dy' or 'dx', got order='yx'"),
    "order none": (GOOD, {"order": None}, ValueError, "order must be 'dy' or 'dx', got order=None"),
    "order list": (GOOD, {"order": ["dy"]}, ValueError, r"order must be 'dy' or 'dx', got order=\['dy'\]"),
    "patch zero": (GOOD, {"patch_size": 0}, ValueError, "patch_size must be at least 1, got patch_size=0"),
    "patch bool": (GOOD, {"patch_size": True}, TypeError, "patch_size must be an int .* got patch_size=True"),
    "patch float": (GOOD, {"patch_size": (3, 3.0)}, TypeError, r"patch_size must be an int .* got patch_size=\(3, 3.0\)"),
    "dilation zero": (GOOD, {"dilation_patch": 0}, ValueError, "dilation_patch must not be 0, got dilation_patch=0"),
    "dilation bool": (GOOD, {"dilation_patch": True}, TypeError, "dilation_patch must be an int .* got dilation_patch=True"),
    "displacements beyond 64 bits": (GOOD, {"patch_offset": 2**63 - 1}, ValueError, "displacements must fit into 64 bits"),
    "descending displacements beyond 64 bits": (
        GOOD,
        {"dilation_patch": -(2**62)},
        ValueError,
        "displacements must fit into 64 bits",
    ),
    "a step beyond 64 bits": (GOOD, {"dilation_patch": 2**63}, ValueError, "dilation_patch must fit into 64 bits"),
    "sizes alone of a holder": (GOOD, {"patch_size": SimpleNamespace(patch_size=3)}, TypeError, "or have dilation_patch, too"),
    "a step beside a holder": (
        GOOD,
        {"patch_size": HOLDER, "dilation_patch": np.ones(2, int)},
        TypeError,
        "must not be passed beside a SimpleNamespace",
    ),
    "offset float": (GOOD, {"patch_offset": 0.5}, TypeError, "patch_offset must be an int .* got patch_offset=0.5"),
    "axis two": (FLAT, {"channel_axis": 2}, ValueError, "channel_axis must be 1 or 3 or -1 .* got channel_axis=2"),
    "axis of five": (GOOD, {"channel_axis": 3}, ValueError, "channel_axis must be 1 for out of 5 dimensions"),
    "axis bool": (FLAT, {"channel_axis": True}, TypeError, "channel_axis must be an int, got channel_axis=True"),
    "axis none": (FLAT, {"channel_axis": None}, TypeError, "channel_axis must be an int, got channel_axis=None"),
}
TAKING_SCORES = {f.__name__: f for f in (cupycorr.argmax_displacement, cupycorr.soft_argmax, cupycorr.plot_channels)}


@pytest.mark.parametrize("function", TAKING_SCORES.values(), ids=TAKING_SCORES)
@pytest.mark.parametrize(("out", "options", "error", "message"), BAD_SCORES.values(), ids=BAD_SCORES)
def test_bad_scores_and_parameters_are_refused_before_any_work(function, out, options, error, message, monkeypatch):
    monkeypatch.setattr(channels, "converted", None)
    with pytest.raises(error, match=message):
        function(out, **options)


BAD_TEMPERATURES = {
    "zero": (0, ValueError, "temperature must be positive, finite and representable in float32, got temperature=0"),
    "negative": (-1.0, ValueError, "temperature must be positive"),
    "nan": (math.nan, ValueError, "got temperature=nan"),
    "infinite": (math.inf, ValueError, "got temperature=inf"),
    "too small for float32": (1e-60, ValueError, "representable in float32, got temperature=1e-60"),
    "too large for float32": (10**400, ValueError, "representable in float32"),
    "zero of a small float": (np.float16(0), ValueError, "temperature must be positive"),
    "infinity of a small float": (np.float16("inf"), ValueError, "temperature must be positive"),
    "bool": (True, TypeError, "temperature must be a real number, got temperature=True"),
    "learnable": (torch.nn.Parameter(torch.tensor(0.5)), TypeError, "got a tensor that needs one: divide the scores instead"),
    "a tensor with an axis": (torch.tensor([0.5]), TypeError, r"must be a real number, got a tensor of shape \(1,\) and"),
    "none": (None, TypeError, "temperature must be a real number, got temperature=None"),
    "text": ("1", TypeError, "temperature must be a real number, got temperature='1'"),
    "complex": (1j, TypeError, "temperature must be a real number"),
}


@pytest.mark.parametrize(("temperature", "error", "message"), BAD_TEMPERATURES.values(), ids=BAD_TEMPERATURES)
def test_bad_temperatures_are_refused(temperature, error, message):
    with pytest.raises(error, match=message):
        cupycorr.soft_argmax(GOOD, temperature)


@pytest.mark.parametrize(
    "number", [torch.tensor(0.5), torch.tensor(0.5, dtype=torch.bfloat16), ml_dtypes.bfloat16(0.5)], ids=repr
)
def test_a_temperature_may_be_a_scalar_of_torch_or_ml_dtypes(number):
    scores = one_position([[0, 0, 1]])
    assert cupycorr.soft_argmax(scores, number).dx.item() == cupycorr.soft_argmax(scores, 0.5).dx.item()


def test_tensors_that_are_not_dense_are_refused_with_the_remedy():
    scores = torch.zeros(1, 3, 3, 2, 2)
    for function in TAKING_SCORES.values():
        with pytest.raises(TypeError, match=r"out must be a dense tensor, got out.layout=torch.sparse_coo: pass out.to_dense"):
            function(scores.to_sparse())


def test_a_temperature_of_a_small_float_is_taken(recwarn):
    assert cupycorr.soft_argmax(one_position([[0, 0, 50]]), np.float16(0.5)).dx.item() == pytest.approx(1)
    assert not recwarn


def test_a_far_offset_costs_no_digits():
    scores = np.zeros((1, 1, 2, 1, 1))
    assert cupycorr.soft_argmax(scores.astype(np.float32), patch_offset=(0, 2**22)).dx.item() == 2**22 + 0.5


def test_a_temperature_that_float64_holds_is_taken_for_float64():
    found = cupycorr.soft_argmax(one_position([[0, 0, 1]], np.float64), 1e-60)
    assert found.dx.item() == 1


BAD_PLACES = {
    "below": ({"at": (4, 0)}, ValueError, r"at must be a position \(y, x\) of two ints within 4 x 5, got at=\(4, 0\)"),
    "right": ({"at": (0, 5)}, ValueError, r"at must be .* got at=\(0, 5\)"),
    "negative": ({"at": (-1, 0)}, ValueError, r"at must be .* got at=\(-1, 0\)"),
    "one": ({"at": 1}, TypeError, "at must be .* got at=1"),
    "three": ({"at": (1, 1, 1)}, ValueError, r"at must be .* got at=\(1, 1, 1\)"),
    "float": ({"at": (1, 1.0)}, TypeError, r"at must be .* got at=\(1, 1.0\)"),
    "bool": ({"at": (1, True)}, TypeError, r"at must be .* got at=\(1, True\)"),
    "sample": ({"sample": 2}, ValueError, "sample must be at least 0 and below 2, got sample=2"),
    "sample negative": ({"sample": -1}, ValueError, "sample must be at least 0 and below 2, got sample=-1"),
    "sample bool": ({"sample": False}, TypeError, "sample must be an int, got sample=False"),
    "group": ({"out": GOOD[:, None], "group": 1}, ValueError, "group must be at least 0 and below 1, got group=1"),
    "group of none": ({"group": 1}, ValueError, "group must be at least 0 and below 1, got group=1"),
    "no positions": ({"out": GOOD[..., :0]}, ValueError, "out must have at least one position to draw, got 4 x 0 positions"),
}


@pytest.mark.parametrize(("options", "error", "message"), BAD_PLACES.values(), ids=BAD_PLACES)
def test_places_that_there_are_not_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        cupycorr.plot_channels(**{"out": GOOD, **options})


BAD_CHANNELS = {
    "list": ((GOOD.tolist(),), TypeError, "out must be a NumPy or CuPy array or a torch tensor, got builtins.list"),
    "masked": ((np.ma.array(GOOD),), TypeError, "out must not be a masked array"),
    "four dimensions": ((FLAT,), ValueError, r"out must have 5 dimensions .*, got out.shape=\(2, 9, 4, 5\)"),
    "order": ((GOOD, "xy"), ValueError, "order must be 'dy' or 'dx', got order='xy'"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), BAD_CHANNELS.values(), ids=BAD_CHANNELS)
def test_what_has_no_two_patch_axes_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        cupycorr.to_channels(*arguments)


@pytest.mark.parametrize("name", ["order", "patch zero", "patch bool", "patch float", "dilation zero", "offset float"])
def test_displacements_of_bad_parameters_are_refused(name):
    _, options, error, message = BAD_SCORES[name]
    with pytest.raises(error, match=message):
        cupycorr.displacements(**options)
