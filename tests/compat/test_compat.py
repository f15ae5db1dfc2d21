"""Each adapter computes the formula of the package that it replaces, and agrees with that package where it is installed.

The formulas are written tap by tap in differentiable torch and float64, without the package; images are 0 outside.
"""

import importlib
import importlib.util
import inspect
import math

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from layouts import some

torch = pytest.importorskip("torch")

import cupycorr  # noqa: E402
from cupycorr.compat import (  # noqa: E402
    correlation_cuda,
    flownet2,
    gwc,
    mmcv,
    mmtracker,
    mxnet,
    paddle,
    pwcnet,
    spatial_correlation_sampler,
    spatial_correlation_sampler_backend,
    tfa,
    unfold_sampler,
)


def steps(first, every, count):
    return first + every * torch.arange(max(count, 0))


def volume(x1, x2, ys, xs, displacements, us=(0,), vs=(0,)):
    """(B, displacements, oH, oW): the sums over channels and taps (u, v) of products at a displacement (dy, dx)."""
    if not (len(ys) and len(xs)):
        reject()  # what has no output is refused, and tested below
    rows = (ys[:, None] + torch.tensor(us)).flatten()  # of every tap of every window
    columns = (xs[:, None] + torch.tensor(vs)).flatten()
    far = int(max(abs(rows).max(), abs(columns).max())) + max(abs(d) for each in displacements for d in each)
    frame1, frame2 = (torch.nn.functional.pad(image, (far,) * 4) for image in (x1, x2))
    read = frame1.index_select(2, far + rows).index_select(3, far + columns)
    planes = []
    for dy, dx in displacements:
        met = frame2.index_select(2, far + rows + dy).index_select(3, far + columns + dx)
        planes.append((read * met).sum(1).unflatten(1, (len(ys), len(us))).unflatten(3, (len(xs), len(vs))).sum((2, 4)))
    return torch.stack(planes, 1)


def grid(values, others=None):
    return [(y, x) for y in values for x in (values if others is None else others)]


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


# The neighbours' formulas -----------------------------------------------------------------------------------------------------


def extension(x1, x2, kernel=1, patch=1, stride=1, padding=0, dilation=1, dilation_patch=1):
    """Return the positions of the extension: windows begin at their first tap, displacements are e (m - (P - 1) / 2)."""
    axes = [
        (size, *numbers)
        for size, *numbers in zip(
            x1.shape[2:], *map(pair, (kernel, patch, stride, padding, dilation, dilation_patch)), strict=True
        )
    ]
    ys, xs = (steps(-a, s, math.floor((size + 2 * a - d * (k - 1) - 1) / s) + 1) for size, k, p, s, a, d, e in axes)
    dys, dxs = ([e * (m - (p - 1) // 2) for m in range(p)] for size, k, p, s, a, d, e in axes)
    us, vs = (range(0, d * k, d) for size, k, p, s, a, d, e in axes)
    return volume(x1, x2, ys, xs, grid(dys, dxs), us, vs).unflatten(1, (len(dys), len(dxs)))


def openmmlab(x1, x2, kernel=1, max_displacement=1, stride=1, padding=0, dilation=1, dilation_patch=1):
    patch = tuple(2 * longest + 1 for longest in pair(max_displacement))
    return extension(x1, x2, kernel, patch, stride, padding, dilation, dilation_patch)


def flownet_axis(size, pad, kernel, max_displacement, stride1, stride2, centred):
    """Return positions, displacements and taps of FlowNet's layer along one axis of the padded images.

    A border of the largest displacement and the window's radius is left out.
    """
    radius = (kernel - 1) // 2
    border = max_displacement + radius
    positions = steps(max_displacement - pad, stride1, math.ceil((size + 2 * pad - 2 * border) / stride1))
    reach, first_tap = max_displacement // stride2, -radius if centred else 0
    return positions, [stride2 * m for m in range(-reach, reach + 1)], range(first_tap, first_tap + 2 * radius + 1)


def flownet(x1, x2, pad, kernel, max_displacement, stride1, stride2, *, centred):
    numbers = zip(*map(pair, (pad, kernel, max_displacement, stride1, stride2)), strict=True)
    (ys, dys, us), (xs, dxs, vs) = (flownet_axis(size, *each, centred) for size, each in zip(x1.shape[2:], numbers, strict=True))
    return volume(x1, x2, ys, xs, grid(dys, dxs), us, vs) / (x1.shape[1] * math.prod(pair(kernel)))


def nvidia(x1, x2, pad, kernel, max_displacement, stride1, stride2, corr_multiply=1):
    return flownet(x1, x2, pad, kernel, max_displacement, stride1, stride2, centred=True)


def addons(x1, x2, kernel, max_displacement, stride1, stride2, pad):
    return flownet(x1, x2, pad, kernel, max_displacement, stride1, stride2, centred=False)


def groupwise(x1, x2, maxdisp, groups):
    """Return means over the channels of each group, one disparity to the left after the other."""
    height, width = x1.shape[2:]
    split = zip(x1.chunk(groups, 1), x2.chunk(groups, 1), strict=True)
    offsets = [(0, -disparity) for disparity in range(maxdisp)]
    means = [volume(a, b, steps(0, 1, height), steps(0, 1, width), offsets) / a.shape[1] for a, b in split]
    return torch.stack(means, 1)


def pwc(x1, x2):
    height, width = x1.shape[2:]
    return volume(x1, x2, steps(0, 1, height), steps(0, 1, width), grid(range(-4, 5))) / x1.shape[1]


def liteflownet(x1, x2, stride):
    ys, xs = (steps(0, s, math.ceil(size / s)) for size, s in zip(x1.shape[2:], pair(stride), strict=True))
    dys, dxs = ([s * m for m in range(-3, 4)] for s in pair(stride))
    return volume(x1, x2, ys, xs, grid(dys, dxs)) / x1.shape[1]


def tracker(x1, x2, max_displacement):
    height, width = x1.shape[2:]
    dys, dxs = (range(-longest, longest + 1) for longest in pair(max_displacement))
    return volume(x1, x2, steps(0, 1, height), steps(0, 1, width), grid(dys, dxs)) / x1.shape[1]


def unfold_patch(x1, x2, patch, stride, padding, dilation_patch):
    """Correlate one pixel of input1 with a patch of input2, on padded images."""
    ys, xs = (steps(-a, s, math.ceil((n + 2 * a) / s)) for n, a, s in zip(x1.shape[2:], pair(padding), pair(stride), strict=True))
    dys, dxs = ([e * (m - (p - 1) // 2) for m in range(p)] for p, e in zip(pair(patch), pair(dilation_patch), strict=True))
    return volume(x1, x2, ys, xs, grid(dys, dxs))


def unfold_neighbourhood(x1, x2, kernel, stride, padding, dilation):
    """Correlate one pixel of input1 with the K x K pixels of input2 around it, on padded images."""
    sizes = zip(x1.shape[2:], *map(pair, (kernel, stride, padding, dilation)), strict=True)
    ys, xs, us, vs = [], [], [], []
    for (size, k, s, a, d), positions, offsets in zip(sizes, (ys, xs), (us, vs), strict=True):
        centre = d * ((k - 1) // 2)
        positions.extend(i * s - a + centre for i in range((size + 2 * a - d * (k - 1) - 1) // s + 1))
        offsets.extend(u * d - centre for u in range(k))
    return volume(x1, x2, torch.tensor(ys), torch.tensor(xs), grid(us, vs)).unsqueeze(1)


class PythonHalf(torch.autograd.Function):
    """Call ``correlation_cuda`` as copies of NVIDIA's Python code do, with empty tensors that it fills."""

    @staticmethod
    def forward(ctx, input1, input2, *numbers):
        ctx.save_for_backward(input1, input2)
        ctx.numbers = numbers
        spare1, spare2, output = input1.new(), input1.new(), input1.new()
        correlation_cuda.forward(input1, input2, spare1, spare2, output, *numbers)
        return output

    @staticmethod
    def backward(ctx, cotangent):
        input1, input2 = ctx.saved_tensors
        spare1, spare2, grad1, grad2 = (input1.new() for _ in range(4))
        correlation_cuda.backward(input1, input2, spare1, spare2, cotangent, grad1, grad2, *ctx.numbers)
        return grad1, grad2, *(None for _ in ctx.numbers)


class ExtensionsPythonHalf(torch.autograd.Function):
    """Call ``spatial_correlation_sampler_backend`` as copies of the extension's Python code do; it returns tensors."""

    @staticmethod
    def forward(ctx, input1, input2, *numbers):
        ctx.save_for_backward(input1, input2)
        ctx.numbers = numbers
        return spatial_correlation_sampler_backend.forward(input1, input2, *numbers)

    @staticmethod
    def backward(ctx, cotangent):
        grad1, grad2 = spatial_correlation_sampler_backend.backward(*ctx.saved_tensors, cotangent, *ctx.numbers)
        return grad1, grad2, *(None for _ in ctx.numbers)


def extensions_half(a, b, kernel, patch, stride, padding, dilation, dilation_patch):
    """Return the numbers in the order of the extension's Python code, where the stride comes last."""
    pairs = map(pair, (kernel, patch, padding, dilation, dilation_patch, stride))
    return ExtensionsPythonHalf.apply(a, b, *(number for each in pairs for number in each))


def extensions_half_without_dilation(a, b, kernel, patch, stride, padding, dilation_patch):
    pairs = map(pair, (kernel, patch, padding, dilation_patch, stride))
    return ExtensionsPythonHalf.apply(a, b, *(number for each in pairs for number in each))


# Drawn parameters ---------------------------------------------------------------------------------------------------------------


@st.composite
def both_axes(draw, low, high):
    """Draw an int or a (vertical, horizontal) pair of ints."""
    numbers = st.integers(low, high)
    return draw(st.one_of(numbers, st.tuples(numbers, numbers)))


@st.composite
def both_axes_of(draw, *values):
    """Draw one of the values or a (vertical, horizontal) pair of them."""
    one = st.sampled_from(values)
    return draw(st.one_of(one, st.tuples(one, one)))


SAMPLER = (both_axes(1, 3), both_axes(1, 4), both_axes(1, 3), both_axes(0, 2), both_axes(1, 2), both_axes(1, 3))
FLOWNET = {
    "pad": both_axes(0, 5),
    "kernel": both_axes_of(1, 3, 5),
    "max_displacement": both_axes(0, 4),
    "stride1": both_axes(1, 3),
    "stride2": both_axes(1, 3),
}

# Name -> the adapter called with a neighbour's own arguments, its formula, and what those are drawn from.
ADAPTERS = {
    "spatial_correlation_sampler": (spatial_correlation_sampler.spatial_correlation_sample, extension, st.tuples(*SAMPLER)),
    "spatial_correlation_sampler, module": (
        lambda a, b, *given: spatial_correlation_sampler.SpatialCorrelationSampler(*given)(a, b),
        extension,
        st.tuples(*SAMPLER),
    ),
    "spatial_correlation_sampler, function": (
        spatial_correlation_sampler.SpatialCorrelationSamplerFunction.apply,
        extension,
        st.tuples(*SAMPLER),
    ),
    "spatial_correlation_sampler, compiled half": (extensions_half, extension, st.tuples(*SAMPLER)),
    "spatial_correlation_sampler, compiled half without dilation": (
        extensions_half_without_dilation,
        lambda a, b, kernel, patch, stride, padding, e: extension(a, b, kernel, patch, stride, padding, dilation_patch=e),
        st.tuples(*SAMPLER[:4], SAMPLER[5]),
    ),
    "mmcv": (
        lambda a, b, *given: mmcv.Correlation(*given)(a, b),
        openmmlab,
        st.tuples(SAMPLER[0], both_axes(0, 2), *SAMPLER[2:]),
    ),
    "mmcv, function": (mmcv.CorrelationFunction.apply, openmmlab, st.tuples(SAMPLER[0], both_axes(0, 2), *SAMPLER[2:])),
    "flownet2": (
        lambda a, b, *given: flownet2.Correlation(*given)(a, b),
        nvidia,
        st.tuples(*FLOWNET.values(), st.integers(0, 1)),
    ),
    "flownet2, even window": (
        flownet2.CorrelationFunction.apply,
        nvidia,
        st.tuples(FLOWNET["pad"], both_axes_of(2, 3, 4), *list(FLOWNET.values())[2:]),
    ),
    "flownet2, function": (flownet2.CorrelationFunction.apply, nvidia, st.tuples(*FLOWNET.values())),
    "flownet2, compiled half": (PythonHalf.apply, nvidia, st.tuples(*FLOWNET.values(), st.just(1))),
    "pwcnet": (pwcnet.FunctionCorrelation, pwc, st.just(())),
    "pwcnet, module": (lambda a, b: pwcnet.ModuleCorrelation()(tenOne=a, tenTwo=b), pwc, st.just(())),
    "liteflownet": (pwcnet.FunctionCorrelation, liteflownet, st.tuples(both_axes(1, 3))),
    "liteflownet, module": (
        lambda a, b, stride: pwcnet.ModuleCorrelation()(tenFirst=a, tenSecond=b, intStride=stride),
        liteflownet,
        st.tuples(both_axes(1, 3)),
    ),
    "tfa, channels first": (
        lambda a, b, *given: tfa.CorrelationCost(*given, "channels_first")([a, b]),
        addons,
        st.tuples(*(FLOWNET[name] for name in ("kernel", "max_displacement", "stride1", "stride2", "pad"))),
    ),
    "tfa, channels last": (
        lambda a, b, *given: tfa.correlation_cost(a.movedim(1, -1), b.movedim(1, -1), *given).movedim(-1, 1),
        addons,
        st.tuples(*(FLOWNET[name] for name in ("kernel", "max_displacement", "stride1", "stride2", "pad"))),
    ),
    "mxnet": (
        lambda a, b, *given: mxnet.Correlation(a, b, *given, is_multiply=True),
        addons,
        st.tuples(*(FLOWNET[name] for name in ("kernel", "max_displacement", "stride1", "stride2", "pad"))),
    ),
    "paddle": (paddle.correlation, nvidia, st.tuples(*FLOWNET.values())),
    "gwc": (
        gwc.build_gwc_volume,
        groupwise,
        st.tuples(st.integers(1, 9), st.just(1)),
    ),
    "mmtracker": (
        lambda a, b, *given: mmtracker.Correlation(*given)(a, b),
        tracker,
        st.tuples(both_axes(0, 3)),
    ),
    "unfold, patch": (
        lambda a, b, p, s, pad, e: unfold_sampler.SpatialCorrelationSampler(1, p, s, pad, dilation_patch=e)(a, b),
        unfold_patch,
        st.tuples(both_axes(1, 4), both_axes(1, 3), both_axes(0, 3), both_axes(1, 3)),
    ),
    "unfold, neighbourhood": (
        lambda a, b, k, s, pad, d: unfold_sampler.SpatialCorrelationSampler(k, 1, s, pad, d)(a, b),
        unfold_neighbourhood,
        st.tuples(both_axes(2, 4), both_axes(1, 3), both_axes(0, 3), both_axes(1, 2)),
    ),
}
adapters = pytest.mark.parametrize(("adapter", "formula", "drawn"), ADAPTERS.values(), ids=ADAPTERS)


def images(shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for _ in range(2)]


def assert_same(got, want, leaves, others, rtol=1e-12):
    """Return output and both gradients for a cotangent that varies."""
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=rtol, atol=rtol, msg=lambda text: f"output: {text}")
    cotangent = torch.randn(want.shape, generator=torch.Generator().manual_seed(7), dtype=want.dtype)
    gradients = zip(torch.autograd.grad(got, leaves, cotangent), torch.autograd.grad(want, others, cotangent), strict=True)
    for name, (mine, theirs) in zip(("input1", "input2"), gradients, strict=True):
        torch.testing.assert_close(
            mine.cpu(), theirs.cpu(), rtol=rtol, atol=rtol, msg=lambda text, name=name: f"gradient of {name}: {text}"
        )


@adapters
def test_an_adapter_equals_its_neighbours_formula(adapter, formula, drawn):
    @settings(max_examples=25)
    @given(drawn, st.tuples(st.integers(5, 11), st.integers(5, 11)), st.integers(1, 3), st.integers(0, 9))
    def check(arguments, size, channels, seed):
        leaves = images((2, channels, *size), seed)
        others = [x.detach().clone().requires_grad_() for x in leaves]
        want = formula(*others, *arguments)
        assert_same(adapter(*leaves, *arguments), want, leaves, others)

    check()


# Signatures as the neighbours publish them: names in order, and defaults.
_SAMPLER_DEFAULTS = {"kernel_size": 1, "patch_size": 1, "stride": 1, "padding": 0, "dilation": 1, "dilation_patch": 1}
_FLOWNET_NAMES = ("pad_size", "kernel_size", "max_displacement", "stride1", "stride2", "corr_multiply")
_NONE = inspect.Parameter.empty
PUBLISHED = {
    "extension's module": (spatial_correlation_sampler.SpatialCorrelationSampler, _SAMPLER_DEFAULTS),
    "extension's function": (
        spatial_correlation_sampler.spatial_correlation_sample,
        {"input1": _NONE, "input2": _NONE, **_SAMPLER_DEFAULTS},
    ),
    "unfold's module": (unfold_sampler.SpatialCorrelationSampler, _SAMPLER_DEFAULTS),
    "mmcv's module": (
        mmcv.Correlation,
        {"kernel_size": 1, "max_displacement": 1, "stride": 1, "padding": 0, "dilation": 1, "dilation_patch": 1},
    ),
    "mmcv's function": (
        mmcv.CorrelationFunction.apply,
        {
            "input1": _NONE,
            "input2": _NONE,
            "kernel_size": 1,
            "max_displacement": 1,
            "stride": 1,
            "padding": 1,
            "dilation": 1,
            "dilation_patch": 1,
        },
    ),
    "NVIDIA's module": (flownet2.Correlation, dict(zip(_FLOWNET_NAMES, (0, 0, 0, 1, 2, 1), strict=True))),
    "NVIDIA's function": (
        flownet2.CorrelationFunction.apply,
        {"input1": _NONE, "input2": _NONE, **dict(zip(_FLOWNET_NAMES, (3, 3, 20, 1, 2, 1), strict=True))},
    ),
    "TensorFlow Addons' layer": (
        tfa.CorrelationCost,
        dict.fromkeys(("kernel_size", "max_displacement", "stride_1", "stride_2", "pad", "data_format"), _NONE),
    ),
    "TensorFlow Addons' function": (
        tfa.correlation_cost,
        {
            **dict.fromkeys(("input_a", "input_b", "kernel_size", "max_displacement", "stride_1", "stride_2", "pad"), _NONE),
            "data_format": "channels_last",
            "name": None,
        },
    ),
    "MXNet's function": (
        mxnet.Correlation,
        {
            **dict.fromkeys(("data1", "data2"), _NONE),
            **dict.fromkeys(("kernel_size", "max_displacement", "stride1", "stride2"), 1),
            "pad_size": 0,
            "is_multiply": True,
            "name": None,
        },
    ),
    "Paddle's function": (
        paddle.correlation,
        {
            **dict.fromkeys(("x", "y", "pad_size", "kernel_size", "max_displacement", "stride1", "stride2"), _NONE),
            "corr_type_multiply": 1,
        },
    ),
    "GwcNet's function": (
        gwc.build_gwc_volume,
        dict.fromkeys(("refimg_fea", "targetimg_fea", "maxdisp", "num_groups"), _NONE),
    ),
    "MM-Tracker's module": (mmtracker.Correlation, {"max_displacement": _NONE}),
}


@pytest.mark.parametrize(("ours", "published"), PUBLISHED.values(), ids=PUBLISHED)
def test_positional_arguments_and_defaults_are_the_neighbours(ours, published):
    positional = [each for each in inspect.signature(ours).parameters.values() if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert {each.name: each.default for each in positional[: len(published)]} == published


def test_calls_with_defaults_alone_equal_the_formulas():
    leaves = images((1, 2, 50, 51))
    for ours, want in (
        (spatial_correlation_sampler.SpatialCorrelationSampler()(*leaves), extension(*leaves)),
        (unfold_sampler.SpatialCorrelationSampler()(*leaves), extension(*leaves).flatten(1, 2)),
        (mmcv.Correlation()(*leaves), openmmlab(*leaves)),
        (mmcv.CorrelationFunction.apply(*leaves), openmmlab(*leaves, padding=1)),
        (flownet2.CorrelationFunction.apply(*leaves), nvidia(*leaves, 3, 3, 20, 1, 2)),
    ):
        assert_same(ours, want, leaves, leaves)


@pytest.mark.parametrize(
    "names", [("tenFirst", "tenSecond"), ("tenOne", "tenTwo"), ("tensorFirst", "tensorSecond")], ids="/".join
)
def test_pwcnet_takes_every_name_its_repositories_used(names):
    first, second = images((1, 3, 6, 7))
    for module in (pwcnet.FunctionCorrelation, pwcnet.ModuleCorrelation()):
        torch.testing.assert_close(module(**{names[0]: first, names[1]: second}), pwc(first, second))
        torch.testing.assert_close(module(**{names[1]: second, names[0]: first}), pwc(first, second))
        torch.testing.assert_close(module(first, **{names[1]: second, "intStride": 2}), liteflownet(first, second, 2))


def test_a_module_follows_its_attributes():
    corr = flownet2.Correlation(pad_size=4, kernel_size=1, max_displacement=4)
    corr.stride2 = 1
    leaves = images((1, 2, 6, 7))
    torch.testing.assert_close(corr(*leaves), nvidia(*leaves, 4, 1, 4, 1, 1))
    assert repr(corr) == ("Correlation(pad_size=4, kernel_size=1, max_displacement=4, stride1=1, stride2=1, corr_multiply=1)")


# Where the original reads outside its buffers: one value worked out by hand --------------------------------------------------


def test_nvidias_windows_at_the_first_rows_count_zeros():
    x1, x2 = torch.zeros(1, 1, 5, 5), torch.zeros(1, 1, 5, 5)
    x1[0, 0, 0, 0], x2[0, 0, 0, 0] = 3.0, 5.0
    out = flownet2.CorrelationFunction.apply(x1, x2, 0, 3, 0, 1, 1, 1)
    want = torch.zeros(1, 1, 3, 3)  # windows of radius 1 centred at 0, 1, 2: those at 0 and 1 hold pixel 0
    want[0, 0, :2, :2] = 3.0 * 5.0 / 9
    torch.testing.assert_close(out, want)


# The layers people run, at the shapes of their pages ------------------------------------------------------------------------


def tfa_first(*given):
    layer = tfa.CorrelationCost(*given, "channels_first")
    return lambda a, b: layer([a, b])


DOCUMENTED = {
    "unfold, basic 3 x 3": (unfold_sampler.SpatialCorrelationSampler(1, 3, padding=1), (1, 256, 64, 64), (1, 9, 66, 66)),
    "unfold, MM-Tracker": (unfold_sampler.SpatialCorrelationSampler(1, 9, 1, 0), (1, 512, 19, 34), (1, 81, 19, 34)),
    "unfold, FlowNet, padding 10": (unfold_sampler.SpatialCorrelationSampler(1, 21, 1, 10), (1, 256, 64, 64), (1, 441, 84, 84)),
    "unfold, FlowNet, same size": (unfold_sampler.SpatialCorrelationSampler(1, 21), (4, 256, 48, 64), (4, 441, 48, 64)),
    "unfold, template": (unfold_sampler.SpatialCorrelationSampler(7, 1, padding=3), (1, 64, 64, 64), (1, 1, 49, 64, 64)),
    "MM-Tracker": (mmtracker.Correlation(4), (1, 512, 19, 34), (1, 81, 19, 34)),
    "FlowNetC": (flownet2.Correlation(20, 1, 20, 1, 2, 1), (4, 256, 48, 64), (4, 441, 48, 64)),
    "FlowNetC, mmcv": (mmcv.Correlation(1, 10, 1, 0, 1, 2), (1, 256, 48, 64), (1, 21, 21, 48, 64)),
    "FlowNetC, TensorFlow": (
        lambda a, b: tfa.CorrelationCost(1, 20, 1, 2, 20, "channels_last")([a.movedim(1, -1), b.movedim(1, -1)]),
        (1, 256, 48, 64),
        (1, 48, 64, 441),
    ),
    "PWC-Net, level 2": (pwcnet.FunctionCorrelation, (1, 32, 112, 256), (1, 81, 112, 256)),
    "LiteFlowNet, level 3": (lambda a, b: pwcnet.FunctionCorrelation(a, b, 2), (1, 64, 112, 256), (1, 49, 56, 128)),
    "FlowNetC along rows": (flownet2.Correlation((0, 20), 1, (0, 20), 1, 2, 1), (1, 256, 48, 64), (1, 21, 48, 64)),
    "FlowNetC along rows, mmcv": (mmcv.Correlation(1, (0, 10), 1, 0, 1, 2), (1, 256, 48, 64), (1, 1, 21, 48, 64)),
    "FlowNetC along rows, TensorFlow": (
        tfa_first((1, 1), (0, 20), 1, 2, (0, 20)),
        (1, 256, 48, 64),
        (1, 21, 48, 64),
    ),
    "MM-Tracker along columns": (mmtracker.Correlation((4, 0)), (1, 512, 19, 34), (1, 9, 19, 34)),
    "LiteFlowNet, half the columns": (lambda a, b: pwcnet.FunctionCorrelation(a, b, (1, 2)), (1, 64, 28, 64), (1, 49, 28, 32)),
    "the extension's compiled half along rows": (
        lambda a, b: spatial_correlation_sampler_backend.forward(a, b, 1, 1, 1, 9, 0, 0, 1, 1, 1, 1, 1, 1),
        (1, 64, 28, 64),
        (1, 1, 9, 28, 64),
    ),
    "the extension's default": (
        spatial_correlation_sampler.SpatialCorrelationSampler(3, 3, 2, 1, 2, 2),
        (2, 64, 100, 100),
        (2, 3, 3, 49, 49),
    ),
}


@pytest.mark.parametrize(("layer", "shape", "out_shape"), DOCUMENTED.values(), ids=DOCUMENTED)
def test_layers_run_at_their_documented_shapes(layer, shape, out_shape):
    first, second = images(shape, dtype=torch.float32)
    assert layer(first, second).shape == out_shape


# Known motion ------------------------------------------------------------------------------------------------------------------

MOTIONS = ((2, -3), (-4, 4), (0, 1))
# Layer -> its output, and how `argmax_displacement` is told its layout.
MOVED = {
    "spatial_correlation_sampler": (spatial_correlation_sampler.SpatialCorrelationSampler(1, 9), {}),
    "mmcv": (mmcv.Correlation(max_displacement=4), {}),
    "flownet2": (flownet2.Correlation(4, 1, 4, 1, 1), {}),
    "pwcnet": (pwcnet.FunctionCorrelation, {}),
    "mmtracker": (mmtracker.Correlation(4), {}),
    "unfold, patch": (unfold_sampler.SpatialCorrelationSampler(1, 9), {}),
    "unfold, neighbourhood": (unfold_sampler.SpatialCorrelationSampler(9, 1, padding=4), {"patch_size": 9}),
    "tfa": (lambda a, b: tfa.CorrelationCost(1, 4, 1, 1, 4, "channels_first")([a, b]), {}),
    "mxnet": (lambda a, b: mxnet.Correlation(a, b, 1, 4, pad_size=4), {}),
    "paddle": (lambda a, b: paddle.correlation(a, b, 4, 1, 4, 1, 1), {}),
    "tfa, channels last": (
        lambda a, b: tfa.CorrelationCost(1, 4, 1, 1, 4, "channels_last")([a.movedim(1, -1), b.movedim(1, -1)]),
        {"channel_axis": -1},
    ),
    "dx-major, flat": (
        lambda a, b: cupycorr.to_channels(spatial_correlation_sampler.spatial_correlation_sample(a, b, 1, 9), order="dx"),
        {"order": "dx"},
    ),
    "dx-major": (
        lambda a, b: spatial_correlation_sampler.spatial_correlation_sample(a, b, 1, 9).transpose(1, 2),
        {"order": "dx"},
    ),
}


@pytest.mark.parametrize(("layer", "layout"), MOVED.values(), ids=MOVED)
def test_known_motion_is_recovered_exactly_from_every_layout(layer, layout):
    frame, _ = images((1, 64, 16, 18), dtype=torch.float32)
    for dy, dx in MOTIONS:
        moved = torch.roll(frame, (dy, dx), (2, 3))
        found = cupycorr.argmax_displacement(layer(frame, moved), **layout)
        inside = (slice(None), slice(4, -4), slice(4, -4))
        assert (found.dy[inside] == dy).all()
        assert (found.dx[inside] == dx).all()


def test_liteflownets_strided_motion_is_recovered_exactly():
    frame, _ = images((1, 64, 24, 26), dtype=torch.float32)
    found = cupycorr.argmax_displacement(
        pwcnet.FunctionCorrelation(frame, torch.roll(frame, (4, -6), (2, 3)), 2), dilation_patch=2
    )
    assert (found.dy[:, 3:-3, 3:-3] == 4).all()
    assert (found.dx[:, 3:-3, 3:-3] == -6).all()


def test_the_unfold_packages_helper_names_the_displacement_of_every_channel():
    listed = [unfold_sampler.channel_to_displacement(channel, 9, 4) for channel in range(81)]
    assert listed == [(dy, dx) for dy in range(-4, 5) for dx in range(-4, 5)]
    dy, dx = unfold_sampler.channel_to_displacement(torch.tensor([[0, 80], [40, 5]]), 9, 4)
    assert (dy.tolist(), dx.tolist()) == ([[-4, 4], [0, -4]], [[-4, 4], [0, 1]])
    listed = [unfold_sampler.channel_to_displacement(channel, (3, 5), (1, 2)) for channel in range(15)]
    assert listed == [(dy, dx) for dy in range(-1, 2) for dx in range(-2, 3)]


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("maxdisp", [1, 2, 7, 20])
def test_group_wise_correlation_equals_its_formula(maxdisp, groups):
    leaves = images((2, 6, 5, 11))
    assert_same(gwc.build_gwc_volume(*leaves, maxdisp, groups), groupwise(*leaves, maxdisp, groups), leaves, leaves)
    assert_same(gwc.groupwise_correlation(*leaves, groups), groupwise(*leaves, 1, groups)[:, :, 0], leaves, leaves)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: mxnet.Correlation(x, x, is_multiply=False), "is_multiply"),
        (lambda x: paddle.correlation(x, x, 1, 1, 1, 1, 1, corr_type_multiply=0), "corr_type_multiply"),
    ],
    ids=["mxnet", "paddle"],
)
def test_sums_of_absolute_differences_are_refused(call, name):
    with pytest.raises(NotImplementedError, match=f"{name} must be 1 or True: sums of absolute differences are not available"):
        call(torch.ones(1, 2, 4, 5))


# What neighbours refuse or abort on, and what is refused here -----------------------------------------------------------------

ONE_CALL = {
    "spatial_correlation_sampler": lambda a, b: spatial_correlation_sampler.SpatialCorrelationSampler(3, 5, padding=1)(a, b),
    "unfold, patch": lambda a, b: unfold_sampler.SpatialCorrelationSampler(1, 5)(a, b),
    "unfold, neighbourhood": lambda a, b: unfold_sampler.SpatialCorrelationSampler(4, 1)(a, b),
    "mmcv": lambda a, b: mmcv.Correlation(3, 2)(a, b),
    "flownet2": lambda a, b: flownet2.Correlation(3, 3, 2, 1, 1)(a, b),
    "pwcnet": lambda a, b: pwcnet.FunctionCorrelation(a, b),
    "liteflownet": lambda a, b: pwcnet.FunctionCorrelation(a, b, 2),
    "tfa": lambda a, b: tfa.CorrelationCost(3, 2, 1, 1, 3, "channels_first")([a, b]),
    "mxnet": lambda a, b: mxnet.Correlation(a, b, 3, 2, pad_size=3),
    "paddle": lambda a, b: paddle.correlation(a, b, 3, 3, 2, 1, 1),
    "gwc": lambda a, b: gwc.build_gwc_volume(a, b, 6, 1),
    "mmtracker": lambda a, b: mmtracker.Correlation(4)(a, b),
}
one_call = pytest.mark.parametrize("call", ONE_CALL.values(), ids=ONE_CALL)


@one_call
@pytest.mark.parametrize(("dtype", "unit"), [(torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8)], ids=["float16", "bfloat16"])
def test_halves_work_on_the_cpu_forward_and_backward(call, dtype, unit):
    halves = images((2, 5, 12, 13), dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in halves]
    got, want = call(*halves), call(*exact)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=2 * unit, atol=1e-4)
    cotangent = torch.randn(want.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    for mine, theirs in zip(
        torch.autograd.grad(got, halves, cotangent), torch.autograd.grad(want, exact, cotangent.double()), strict=True
    ):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), theirs, rtol=2 * unit, atol=1e-4)


NOT_CONTIGUOUS = some("channels last", "every other column", "columns before rows", "one image")


@one_call
@pytest.mark.parametrize("laid", NOT_CONTIGUOUS.values(), ids=NOT_CONTIGUOUS)
def test_inputs_need_not_be_contiguous(call, laid):
    first, second = (laid(x.detach()).requires_grad_() for x in images((2, 5, 12, 13)))
    assert not first.is_contiguous()
    others = [x.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for x in (first, second)]
    got, want = call(first, second), call(*others)
    assert_same(got, want, (first, second), others)
    assert got.is_contiguous()


@one_call
def test_no_channels_give_zeros(call):
    out = call(*images((1, 0, 12, 13)))
    assert out.numel() > 0
    assert not out.any()


@pytest.mark.gpu
@one_call
def test_a_gpu_gives_what_the_cpu_gives(call):
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    leaves = images((2, 5, 12, 13), dtype=torch.float32)
    on_gpu = [x.detach().cuda().requires_grad_() for x in leaves]
    got, want = call(*on_gpu), call(*leaves)
    assert got.is_cuda
    assert_same(got.cpu(), want, on_gpu, leaves, rtol=1e-5)


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


REFUSED_IMAGES = {
    "no tensors": ((np.zeros((1, 2, 9, 9)),) * 2, TypeError),
    "None": ((None, None), TypeError),
    "integers": ((zeros(1, 2, 9, 9, dtype=torch.int32),) * 2, TypeError),
    "two dtypes": ((zeros(1, 2, 9, 9), zeros(1, 2, 9, 9, dtype=torch.float64)), TypeError),
    "three axes": ((zeros(2, 9, 9),) * 2, ValueError),
    "two widths": ((zeros(1, 2, 9, 9), zeros(1, 2, 9, 10)), ValueError),
    "two channel counts": ((zeros(1, 2, 9, 9), zeros(1, 3, 9, 9)), ValueError),
    "no pixels": ((zeros(1, 2, 0, 9),) * 2, ValueError),
}


@one_call
@pytest.mark.parametrize(("pair_", "error"), REFUSED_IMAGES.values(), ids=REFUSED_IMAGES)
def test_wrong_images_are_refused_with_an_exception_of_python(call, pair_, error):
    with pytest.raises(error, match=r"input1|input2|refimg_fea|targetimg_fea|data1|data2|\b[xy] must|got [xy]\."):
        call(*pair_)


X = zeros(1, 2, 9, 9)
REFUSED = {
    "unfold, both sizes": (lambda: unfold_sampler.SpatialCorrelationSampler(3, 3), NotImplementedError, "C\\+\\+ extension"),
    "unfold, one axis of both": (
        lambda: unfold_sampler.SpatialCorrelationSampler((1, 3), (3, 1)),
        NotImplementedError,
        "got kernel",
    ),
    "unfold, window too large": (lambda: unfold_sampler.SpatialCorrelationSampler(11, 1)(X, X), ValueError, "height -1"),
    "flownet2, its own default": (
        lambda: flownet2.Correlation()(X, X),
        ValueError,
        "kernel_size must be at least 1, got kernel_size=0",
    ),
    "flownet2, stride1": (lambda: flownet2.Correlation(0, 1, 0, 0)(X, X), ValueError, "stride1 must be at least 1"),
    "flownet2, stride2": (lambda: flownet2.Correlation(0, 1, 0, 1, 0)(X, X), ValueError, "stride2 must be at least 1"),
    "flownet2, pad_size": (lambda: flownet2.Correlation(-1, 1)(X, X), ValueError, "pad_size must be at least 0"),
    "flownet2, max_displacement": (
        lambda: flownet2.Correlation(0, 1, -1)(X, X),
        ValueError,
        "max_displacement must be at least 0",
    ),
    "flownet2, float": (
        lambda: flownet2.Correlation(4.0, 1, 4)(X, X),
        TypeError,
        "pad_size must be an int or .* got pad_size=4.0",
    ),
    "flownet2, no output": (lambda: flownet2.Correlation(0, 1, 5)(X, X), ValueError, "output would have height -1"),
    "flownet2, no output after its border": (
        lambda: flownet2.Correlation(0, 5, 3)(X, X),
        ValueError,
        "output would have height -1",
    ),
    "mmcv, max_displacement": (lambda: mmcv.Correlation(1, -1)(X, X), ValueError, "max_displacement must be at least 0"),
    "mmcv, half a pair": (lambda: mmcv.Correlation(1, (1,))(X, X), ValueError, r"a \(vertical, horizontal\) pair of ints, got"),
    "mmcv, three": (lambda: mmcv.Correlation(1, (1, 2, 3))(X, X), ValueError, r"got max_displacement=\(1, 2, 3\)"),
    "mmcv, a pair of floats": (lambda: mmcv.Correlation(1, (0, 2.0))(X, X), TypeError, r"got max_displacement=\(0, 2.0\)"),
    "mmcv, a pair below 0": (
        lambda: mmcv.Correlation(1, (0, -2))(X, X),
        ValueError,
        r"max_displacement must be at least 0, got max_displacement=\(0, -2\)",
    ),
    "flownet2, a stride of 0": (
        lambda: flownet2.Correlation(0, 1, 0, (1, 0))(X, X),
        ValueError,
        r"stride1 must be at least 1, got stride1=\(1, 0\)",
    ),
    "flownet2, no output along one axis": (
        lambda: flownet2.Correlation(0, (1, 9), (0, 1))(X, X),
        ValueError,
        "output would have height 9 and width -1",
    ),
    "tfa, a window even along one axis": (
        lambda: tfa.CorrelationCost((1, 2), 1, 1, 1, 1, "channels_first")([X, X]),
        ValueError,
        r"kernel_size must be odd, got kernel_size=\(1, 2\)",
    ),
    "mmtracker, text": (lambda: mmtracker.Correlation("ab")(X, X), TypeError, "max_displacement must be an int or"),
    "unfold, three sizes": (
        lambda: unfold_sampler.channel_to_displacement(3, (1, 2, 3), 4),
        ValueError,
        r"got patch_size=\(1, 2, 3\)",
    ),
    "unfold, three displacements": (
        lambda: unfold_sampler.channel_to_displacement(3, 9, (4, 4, 4)),
        ValueError,
        r"got max_displacement=\(4, 4, 4\)",
    ),
    "backend, eleven numbers": (
        lambda: spatial_correlation_sampler_backend.forward(X, X, *(1,) * 11),
        TypeError,
        "followed by 12 numbers, or by 10 without the dilation, got 11 numbers",
    ),
    "backend, no numbers for a gradient": (
        lambda: spatial_correlation_sampler_backend.backward(X, X, X),
        TypeError,
        "got 0 numbers",
    ),
    "backend, a patch of 0": (
        lambda: spatial_correlation_sampler_backend.forward(X, X, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 1),
        ValueError,
        r"patch_size must be at least 1, got patch_size=\(1, 0\)",
    ),
    "mmtracker": (lambda: mmtracker.Correlation(-2)(X, X), ValueError, "max_displacement must be at least 0"),
    "liteflownet, stride 0": (lambda: pwcnet.FunctionCorrelation(X, X, 0), ValueError, "intStride must be at least 1"),
    "liteflownet, a device": (
        lambda: pwcnet.FunctionCorrelation(X, X, torch.device("cpu")),
        TypeError,
        "intStride must be an int",
    ),
    "liteflownet, a pair with 0": (lambda: pwcnet.FunctionCorrelation(X, X, (1, 0)), ValueError, r"got intStride=\(1, 0\)"),
    "liteflownet, beyond 64 bits": (lambda: pwcnet.FunctionCorrelation(X, X, 2**63), ValueError, "must fit into 64 bits"),
    "pwcnet, a tensor by two names": (
        lambda: pwcnet.FunctionCorrelation(tenOne=X, tensorFirst=X, tenTwo=X),
        TypeError,
        "each tensor must be passed once, got tenOne, tensorFirst, tenTwo",
    ),
    "tfa, no tensor, channels last": (
        lambda: tfa.correlation_cost(None, None, 1, 1, 1, 1, 1),
        TypeError,
        "input1 must be a torch",
    ),
    "tfa, no image, channels last": (lambda: tfa.correlation_cost(X[0, 0, 0, 0], X, 1, 1, 1, 1, 1), ValueError, "4 dimensions"),
    "unfold, no patch": (lambda: unfold_sampler.channel_to_displacement(3, 0, 4), ValueError, "patch_size must be at least 1"),
    "correlation_cuda, no output": (
        lambda: correlation_cuda.forward(X, X, None, None, None, 0, 1, 0, 1, 1, 1),
        TypeError,
        "output must be a tensor of the inputs' dtype torch.float32, got NoneType",
    ),
    "correlation_cuda, an output of integers": (
        lambda: correlation_cuda.forward(X, X, None, None, zeros(0, dtype=torch.int32), 0, 1, 0, 1, 1, 1),
        TypeError,
        "output must be a tensor of the inputs' dtype torch.float32, got torch.int32",
    ),
    "correlation_cuda, three numbers": (
        lambda: correlation_cuda.forward(X, X, None, None, zeros(0), 0, 1, 0),
        TypeError,
        "stride1",
    ),
    "pwcnet, one tensor": (lambda: pwcnet.FunctionCorrelation(X), TypeError, "tenSecond"),
    "pwcnet, a tensor twice": (lambda: pwcnet.FunctionCorrelation(X, X, tenOne=X), TypeError, "tenFirst"),
    "pwcnet, unknown name": (lambda: pwcnet.FunctionCorrelation(X, X, stride=2), TypeError, "stride"),
    "tfa, data_format": (lambda: tfa.CorrelationCost(1, 1, 1, 1, 1, "NHWC")([X, X]), ValueError, "data_format must be"),
    "tfa, even window": (
        lambda: tfa.CorrelationCost(2, 1, 1, 1, 1, "channels_first")([X, X]),
        ValueError,
        "kernel_size must be odd",
    ),
    "tfa, no list": (
        lambda: tfa.CorrelationCost(1, 1, 1, 1, 1, "channels_first")(X),
        ValueError,
        "list of two tensors, got Tensor",
    ),
    "tfa, three": (lambda: tfa.CorrelationCost(1, 1, 1, 1, 1, "channels_first")([X] * 3), ValueError, "list of two tensors"),
    "tfa, stride_2": (
        lambda: tfa.CorrelationCost(1, 1, 1, 0, 1, "channels_first")([X, X]),
        ValueError,
        "stride_2 must be at least 1",
    ),
}


@pytest.mark.parametrize(("call", "error", "text"), REFUSED.values(), ids=REFUSED)
def test_wrong_arguments_are_refused_with_the_neighbours_name(call, error, text):
    with pytest.raises(error, match=text):
        call()


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # sizes are constants of a trace
def test_adapters_can_be_traced():
    first, second = images((1, 4, 9, 10), dtype=torch.float32)
    for call in ONE_CALL.values():
        traced = torch.jit.trace(call, (first, second), check_trace=False)
        assert_same(traced(first, second), call(first, second), (first, second), (first, second), rtol=1e-6)


ONE_NUMBERS = (3, 3, 5, 3, 1, 1, 1, 2, 1, 2, 1, 1)


@pytest.mark.parametrize(("pair_", "error"), REFUSED_IMAGES.values(), ids=REFUSED_IMAGES)
@pytest.mark.parametrize(
    "half",
    [
        lambda a, b: spatial_correlation_sampler_backend.forward(a, b, *ONE_NUMBERS),
        lambda a, b: spatial_correlation_sampler_backend.backward(a, b, X, *ONE_NUMBERS),
    ],
    ids=["forward", "backward"],
)
def test_wrong_images_are_refused_by_the_compiled_half_with_an_exception_of_python(half, pair_, error):
    with pytest.raises(error, match=r"input1|input2"):
        half(*pair_)


def test_the_extensions_compiled_half_is_what_it_is_under_autocast():
    large = torch.full((1, 4, 3, 3), 7e4)
    numbers = (1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1)
    with torch.autocast("cpu", torch.float16):
        out = spatial_correlation_sampler_backend.forward(large, large, *numbers)
        gradients = spatial_correlation_sampler_backend.backward(large, large, torch.ones_like(out), *numbers)
    torch.testing.assert_close(out, torch.full((1, 1, 1, 3, 3), 4 * 4.9e9))
    for gradient in gradients:
        torch.testing.assert_close(gradient, large)


def test_the_extensions_compiled_half_returns_tensors_without_a_graph():
    leaves = images((2, 3, 12, 13), dtype=torch.float16)
    out = spatial_correlation_sampler_backend.forward(*leaves, *ONE_NUMBERS)
    assert not out.requires_grad
    assert out.dtype == torch.float16
    gradients = spatial_correlation_sampler_backend.backward(*leaves, torch.ones_like(out), *ONE_NUMBERS)
    assert type(gradients) is list
    assert [(each.shape, each.dtype, each.requires_grad) for each in gradients] == [(leaves[0].shape, torch.float16, False)] * 2


def test_correlation_cuda_is_what_it_is_under_autocast():
    large = torch.full((1, 4, 3, 3), 7e4)
    output = large.new_empty(0)
    with torch.autocast("cpu", torch.float16):
        correlation_cuda.forward(large, large, None, None, output, 0, 1, 0, 1, 1, 1)
    torch.testing.assert_close(output, torch.full((1, 1, 3, 3), 4.9e9))


def test_a_module_saved_with_the_extensions_class_runs():
    """A pickled module has only the attributes that the extension's constructor sets."""
    saved = torch.nn.Module()
    saved.kernel_size, saved.patch_size, saved.stride, saved.padding, saved.dilation, saved.dilation_patch = 1, 3, 1, 0, 1, 1
    loaded = spatial_correlation_sampler.SpatialCorrelationSampler.__new__(spatial_correlation_sampler.SpatialCorrelationSampler)
    loaded.__setstate__(saved.__dict__)
    leaves = images((1, 2, 6, 7))
    torch.testing.assert_close(loaded(*leaves), extension(*leaves, patch=3))
    assert "patch_size=3" in repr(loaded)


def test_adapters_compile_in_one_graph():
    first, second = images((1, 4, 9, 10), dtype=torch.float32)
    for call in ONE_CALL.values():
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
        assert_same(compiled(first, second), call(first, second), (first, second), (first, second), rtol=1e-6)


CROPPED = {
    "unfold, even window": unfold_sampler.SpatialCorrelationSampler(kernel_size=4, patch_size=1, padding=2, stride=2),
    "unfold, pair of windows": unfold_sampler.SpatialCorrelationSampler((2, 3), 1, padding=1, stride=(3, 2), dilation=2),
    "flownet2, windows": flownet2.Correlation(4, 3, 2, 3, 2),
}


@pytest.mark.parametrize("strict", [False, True], ids=["traced", "strict"])
@pytest.mark.parametrize("module", CROPPED.values(), ids=CROPPED)
def test_adapters_that_leave_out_positions_are_exported_for_all_sizes(module, strict):
    sizes = {2: torch.export.Dim("h", min=8, max=64), 3: torch.export.Dim("w", min=8, max=64)}
    first = images((1, 4, 9, 10), dtype=torch.float32)
    program = torch.export.export(module, tuple(first), dynamic_shapes=(sizes, sizes), strict=strict).module()
    for shape in ((9, 10), (10, 11), (17, 8), (8, 15)):
        inputs = images((1, 4, *shape), dtype=torch.float32)
        torch.testing.assert_close(program(*inputs), module(*inputs), rtol=0, atol=0)


# The real packages ------------------------------------------------------------------------------------------------------------


def real(name):
    """Return a module of the installed package."""
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        pytest.skip(f"{name} is not installed")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} cannot be imported: {error}")


@pytest.mark.filterwarnings("ignore:'saved_variables' is deprecated")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_real_extension_gives_the_same(dtype):
    package = real("spatial_correlation_sampler")

    @settings(max_examples=60)
    @given(st.tuples(*SAMPLER), st.tuples(st.integers(6, 11), st.integers(6, 11)), st.integers(0, 9))
    def check(arguments, size, seed):
        leaves = images((2, 3, *size), seed, dtype)
        others = [x.detach().clone().requires_grad_() for x in leaves]
        got = spatial_correlation_sampler.spatial_correlation_sample(*leaves, *arguments)
        want = package.spatial_correlation_sample(*others, *arguments)
        assert_same(got, want, leaves, others, rtol=1e-4 if dtype is torch.float32 else 1e-12)

    check()


def test_the_real_extensions_compiled_half_gives_the_same():
    package = real("spatial_correlation_sampler_backend")

    @settings(max_examples=60)
    @given(st.tuples(*SAMPLER), st.tuples(st.integers(6, 11), st.integers(6, 11)), st.integers(0, 9))
    def check(arguments, size, seed):
        first, second = (x.detach() for x in images((2, 3, *size), seed))
        kernel, patch, stride, *others = map(pair, arguments)
        numbers = [number for each in (kernel, patch, *others, stride) for number in each]
        got, want = (half.forward(first, second, *numbers) for half in (spatial_correlation_sampler_backend, package))
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        cotangent = torch.randn(want.shape, generator=torch.Generator().manual_seed(7), dtype=want.dtype)
        mine, theirs = (
            half.backward(first, second, cotangent, *numbers) for half in (spatial_correlation_sampler_backend, package)
        )
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)

    check()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_real_mmcv_gives_the_same(dtype):
    package = real("mmcv.ops")  # its operator has no code for CPUs

    @settings(max_examples=60)
    @given(ADAPTERS["mmcv"][2], st.tuples(st.integers(6, 11), st.integers(6, 11)), st.integers(0, 9))
    def check(arguments, size, seed):
        leaves = [x.detach().cuda().requires_grad_() for x in images((2, 3, *size), seed, dtype)]
        others = [x.detach().clone().requires_grad_() for x in leaves]
        got, want = mmcv.Correlation(*arguments)(*leaves), package.Correlation(*arguments)(*others)
        assert_same(got.cpu(), want.cpu(), leaves, others, rtol=1e-4 if dtype is torch.float32 else 1e-12)

    check()
