"""Models made of calls and of toys, as onnxruntime and as torch run them after export, next to the eager operators."""

import numpy as np
import onnxruntime
import pytest
import torch
from matching_cases import inputs as matching_inputs
from torch import nn
from torch.export import Dim
from torch.nn import functional

from cupycorr.torch import (
    CorrBlock,
    CorrBlock1D,
    SpatialCorrelationSampler,
    correlation_argmax,
    correlation_lookup,
    correlation_soft_argmax,
    decompositions,
    onnx_table,
    spatial_correlation_sample,
    volume_lookup,
)

# Results are rounded once to these dtypes, perhaps to the next number; sums differ by 1e-5 of the largest.
ROUNDING = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 1e-5, "float64": 1e-5}


class Call:
    """A call of an operator on tensors that are narrowed inside, because onnxruntime takes no bfloat16 from NumPy."""

    def __init__(self, function, arrays, dtype):
        self.function, self.dtype = function, dtype
        wide = (each.astype(np.float32) if each.dtype.itemsize == 2 else each for each in arrays)
        self.tensors = [torch.from_numpy(np.ascontiguousarray(each)) for each in wide]

    def __call__(self, *tensors):
        dtype = getattr(torch, self.dtype)
        found = self.function(dtype, *tensors)
        found = found if isinstance(found, tuple) else (found,)
        return [each.double() for each in found]


class Calls(nn.Module):
    """A model of several calls: one export of many operators takes less time than an export of each."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    @property
    def tensors(self):
        return tuple(tensor for call in self.calls for tensor in call.tensors)

    def forward(self, *tensors):
        found, rest = [], list(tensors)
        for call in self.calls:
            taken, rest = rest[: len(call.tensors)], rest[len(call.tensors) :]
            found += call(*taken)
        return tuple(found)

    def dtypes(self):
        """Return the dtype of each result of the model."""
        return [call.dtype for call in self.calls for _ in call(*call.tensors)]


def grid(case):
    """Return the call of a problem of the fixed grid."""

    def function(dtype, *images):
        return spatial_correlation_sample(*(image.to(dtype) for image in images), **case.parameters)

    return Call(function, case.arrays()[:2], case.dtype)


def lookup(case):
    """Return the call of a lookup."""
    x1, x2, coords = case.arrays()
    levels = x2 if isinstance(x2, list) else [x2]
    numbers = {name: value for name, value in case.parameters.items() if not isinstance(value, np.ndarray)}
    indices = {name: value for name, value in case.parameters.items() if isinstance(value, np.ndarray)}

    def function(dtype, first, coords, *others):
        second = [level.to(dtype) for level in others[: len(levels)]]
        given = dict(zip(indices, others[len(levels) :], strict=True))
        return correlation_lookup(first.to(dtype), second if isinstance(x2, list) else second[0], coords, **numbers, **given)

    return Call(function, [x1, coords, *levels, *indices.values()], case.dtype)


def in_volume(case):
    """Return the call of a lookup in a volume."""

    def function(dtype, volume, coords):
        return volume_lookup(volume.to(dtype), coords, **case.parameters)

    return Call(function, case.arrays(), case.dtype)


def best(case, kind, **arguments):
    """Return the call of a search for the best displacements."""

    def function(dtype, *images):
        return tuple(correlation_argmax(*(image.to(dtype) for image in images), **case.parameters, **arguments))

    return Call(function, matching_inputs(case, kind), case.dtype)


def mean(case, kind, **arguments):
    """Return the call of a mean displacement."""

    def function(dtype, *images):
        return tuple(correlation_soft_argmax(*(image.to(dtype) for image in images), **case.parameters, **arguments))

    return Call(function, matching_inputs(case, kind), case.dtype)


# Exports ------------------------------------------------------------------------------------------------------------------------


def to_onnx(model, tensors, dynamic=False, optimize=True):
    """Return the ONNX program of a model; ``dynamic`` are the axes of its inputs that may have any size."""
    shapes = tuple(dict.fromkeys(dynamic, Dim.DYNAMIC) for _ in tensors) if dynamic else None
    return torch.onnx.export(
        model,
        tuple(tensors),
        dynamo=True,
        custom_translation_table=onnx_table(),
        dynamic_shapes=shapes,
        optimize=optimize,
        verbose=False,
    )


def in_onnxruntime(program):
    """Return the function that onnxruntime runs for an ONNX program."""
    assert {node.domain for node in program.model.graph} == {""}  # standard operators only
    assert not program.model.functions
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options, ["CPUExecutionProvider"])

    def run(*tensors):
        names = [each.name for each in session.get_inputs()]
        found = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)})
        return [torch.from_numpy(each) for each in found]

    return run


def to_aten(model, tensors, dynamic=False):
    """Return the function of the exported program of a model after the decompositions."""
    shapes = tuple(dict.fromkeys(dynamic, Dim.DYNAMIC) for _ in tensors) if dynamic else None
    program = torch.export.export(model, tuple(tensors), dynamic_shapes=shapes).run_decompositions(decompositions())
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets
    assert not [target for target in targets if "cupycorr" in target]
    return program.module()


def assert_equal(found, wanted, dtypes):
    """Compare results, of which each was rounded to its dtype."""
    for number, (got, want, dtype) in enumerate(zip(found, wanted, dtypes, strict=True)):
        got, want = got.double(), want.double()
        largest = want[want.isfinite()].abs().max().item() if want.isfinite().any() else 0.0
        torch.testing.assert_close(
            got,
            want,
            rtol=ROUNDING[dtype],
            atol=1e-5 * max(largest, 1.0),
            equal_nan=True,
            msg=lambda text, number=number: f"result {number}: {text}",
        )


# Models of any size -------------------------------------------------------------------------------------------------------------

EVERYTHING = dict(
    kernel_size=(3, 2),
    patch_size=(4, 5),
    stride=(2, 1),
    padding=(1, -1),
    dilation=(1, 2),
    dilation_patch=(-2, 3),
    patch_offset=(1, -2),
    groups=2,
    scale=0.3,
)


def lookups_around(first, second):
    """Return the lookups of a block around moved pixels."""
    height, width = first.shape[2:]
    x, y = torch.meshgrid(torch.arange(width).float(), torch.arange(height).float(), indexing="xy")
    coords = torch.stack((x + first[:, 0], y + second[:, 0]), 1)
    return CorrBlock(first, second, num_levels=2, radius=2)(coords)


OF_ANY_SIZE = {
    "fixed grid": lambda x1, x2: spatial_correlation_sample(x1, x2, patch_size=9),
    "fixed grid, every parameter": lambda x1, x2: spatial_correlation_sample(x1, x2, **EVERYTHING),
    "block of lookups": lookups_around,
    "best displacement": lambda x1, x2: correlation_argmax(x1, x2, patch_size=5, subpixel=True, outside="excluded").flow,
    "mean displacement": lambda x1, x2: correlation_soft_argmax(x1, x2, patch_size=5).flow,
}
OF_ANY_SIZE_BY_DEFAULT = ("fixed grid, every parameter", "block of lookups")
SIZES = [(2, 17, 21), (1, 9, 40), (3, 12, 9), (1, 24, 24)]


class Model(nn.Module):
    """A function of two maps as a model."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, x1, x2):
        return self.function(x1, x2)


def maps(batch, height, width):
    """Return two maps of eight channels."""
    generator = torch.Generator().manual_seed(width)
    return torch.randn(2, batch, 8, height, width, generator=generator).unbind(0)


def gradient(x1, x2):
    """Return a gradient, which cannot be exported."""
    return torch.ops.cupycorr.spatial_correlation_sample_vjp(x1[:, None, :1], x1, x2, [True, False])[0]


# Toys ---------------------------------------------------------------------------------------------------------------------------


class FlowNetC(nn.Module):
    """The first layers of FlowNetC in small: features, one correlation of many displacements, and a layer of its channels."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 5, 2, 2), nn.LeakyReLU(0.1), nn.Conv2d(8, 12, 3, 2, 1), nn.LeakyReLU(0.1))
        self.correlation = SpatialCorrelationSampler(1, 21, 1, 0, 1, 2, scale=1 / 12)
        self.flow = nn.Conv2d(441 + 12, 2, 3, 1, 1)

    def forward(self, frame1, frame2):
        first, second = self.features(frame1), self.features(frame2)
        scores = functional.leaky_relu(self.correlation(first, second).flatten(1, 2), 0.1)
        return self.flow(torch.cat((scores, first), 1))


class PWCNet(nn.Module):
    """Two levels of PWC-Net in small: the features of the second frame are warped by the flow of the coarser level."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 12, 3, 2, 1)])
        self.flow = nn.ModuleList([nn.Conv2d(81 + 8 + 2, 2, 3, 1, 1), nn.Conv2d(81 + 12, 2, 3, 1, 1)])

    def forward(self, frame1, frame2):
        levels = []
        for layer in self.down:
            frame1, frame2 = (functional.leaky_relu(layer(each), 0.1) for each in (frame1, frame2))
            levels.append((frame1, frame2))
        first, second = levels[1]
        flow = self.flow[1](torch.cat((self.scores(first, second), first), 1))
        first, second = levels[0]
        flow = functional.interpolate(flow, scale_factor=2.0, mode="bilinear", align_corners=False)
        return flow + self.flow[0](torch.cat((self.scores(first, self.warped(second, flow)), first, flow), 1))

    def scores(self, first, second):
        volume = spatial_correlation_sample(first, second, patch_size=9, scale=1 / first.shape[1])
        return functional.leaky_relu(volume.flatten(1, 2), 0.1)

    def warped(self, image, flow):
        height, width = image.shape[2:]
        y, x = (torch.arange(size, dtype=image.dtype, device=image.device) for size in (height, width))
        at_x, at_y = x + 0.5 + flow[:, 0], y[:, None] + 0.5 + flow[:, 1]
        grid = torch.stack((2 * at_x / width - 1, 2 * at_y / height - 1), -1)
        return functional.grid_sample(image, grid, align_corners=False)


class RAFT(nn.Module):
    """RAFT in small: a block of lookups, and an update of the flow in every iteration."""

    def __init__(self, keep="auto", iterations=3):
        super().__init__()
        self.keep, self.iterations = keep, iterations
        self.features = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
        self.update = nn.Sequential(nn.Conv2d(2 * 49 + 2, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 2, 3, 1, 1))

    def forward(self, frame1, frame2):
        first, second = self.features(frame1), self.features(frame2)
        block = CorrBlock(first, second, num_levels=2, radius=3, keep=self.keep)
        batch, _, height, width = first.shape
        y, x = (torch.arange(size, dtype=first.dtype, device=first.device) for size in (height, width))
        start = torch.stack(torch.meshgrid(x, y, indexing="xy")).expand(batch, 2, height, width)
        coords = start
        for _ in range(self.iterations):
            coords = coords + self.update(torch.cat((block(coords), coords - start), 1))
        return coords - start


class RAFTStereo(RAFT):
    """The same along rows."""

    def __init__(self, iterations=2):
        super().__init__(iterations=iterations)
        self.update = nn.Sequential(nn.Conv2d(2 * 7 + 1, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 1, 3, 1, 1))

    def forward(self, frame1, frame2):
        first, second = self.features(frame1), self.features(frame2)
        block = CorrBlock1D(first, second, num_levels=2, radius=3)
        batch, _, height, width = first.shape
        start = torch.arange(width, dtype=first.dtype, device=first.device).expand(batch, 1, height, width)
        coords = start
        for _ in range(self.iterations):
            coords = coords + self.update(torch.cat((block(coords), coords - start), 1))
        return coords - start


TOYS = {
    "FlowNetC": FlowNetC,
    "PWC-Net": PWCNet,
    "RAFT": RAFT,
    "RAFT with volumes": lambda: RAFT(keep="volume", iterations=2),
    "RAFT-Stereo": RAFTStereo,
}


def some_slow(names, quick):
    """Return the names as parameters of a test, of which all but the quick ones are slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def toy(name):
    """Return a toy with the same weights every time, which computes no gradients."""
    torch.manual_seed(0)
    return TOYS[name]().eval().requires_grad_(False)


def frames(batch, height, width):
    """Return two frames."""
    generator = torch.Generator().manual_seed(batch * height + width)
    return torch.randn(2, batch, 3, height, width, generator=generator).unbind(0)
