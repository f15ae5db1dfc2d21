"""The contestants: every variant of cupycorr, and the ways people compute the same thing without it, on a CPU and on a GPU.

A contestant is one row: a name, the reason why it cannot run a case, the bytes it needs, and the two passes. A pass takes the
inputs and returns a function without arguments that does the work that is timed. All rivals in this file are our own code, and
their results are compared with ours before they are timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import cupycorr
from cupycorr import _dispatch
from cupycorr._arrays import array_kind
from cupycorr._correlation.problem import Parameters, Problem
from cupycorr._correlation.variants import OPERATOR
from cupycorr._cpu import workers
from cupycorr._dispatch import CPU, Place, Request
from cupycorr._gpu.device import import_cupy
from cupycorr._gpu.limits import WORKSPACE_BYTES

from . import pixel_blocks
from .cases import TF32, Case, Inputs, array_dtype, positions_read, precision

GPU = 0  # CUDA's number of the device

Work = Callable[[], tuple[Any, ...]]
Prepare = Callable[[Case, Inputs], Work]


@dataclass(frozen=True, slots=True)
class Contestant:
    """A way to compute the operator."""

    name: str
    ours: bool
    why_not: Callable[[Case, str, str], str | None]  # (case, dtype, pass) -> the reason why it cannot run, or None
    bytes: Callable[[Problem, int, str], int]  # (problem, itemsize, pass) -> peak without the inputs
    forward: Prepare
    vjp: Prepare
    way: str = "torch"  # the way it is called: "array", a function of arrays, or "torch"
    through_torch: Contestant | None = None  # the same contestant for tensors

    def keeps_graph(self, which: str) -> bool:
        """Return whether the prepared work holds an autograd graph."""
        return which == "vjp" and self.way == "torch"

    def prepare(self, which: str, case: Case, inputs: Inputs) -> Work:
        """Return the work that is timed. The graph that a rival's backward pass needs is made here, before timing."""
        return {"forward": self.forward, "vjp": self.vjp}[which](case, inputs)


# Ours ----------------------------------------------------------------------------------------------------------------


def automatic(case: Case, dtype: str, which: str, where: Place = CPU) -> str:
    """Return the variant that ``variant="auto"`` runs on arrays of a place."""
    return _dispatch.choose(OPERATOR, request(case, dtype, which, where), where).variant


def request(case: Case, dtype: str, which: str, where: Place) -> Request:
    """Return the request of a case on dense arrays of a place."""
    stored = array_dtype(dtype).name
    made = Request(which, case.problem, stored, stored, precision=precision(dtype))
    return made if where.device is None else made.dense()


_loaded: list[str] = []


def load(source: str) -> None:
    """Load a file or a module that registers variants; processes that measure memory load it too.

    Raises
    ------
    ValueError
        It registers none, or an error that it raises.
    """
    variants = importable("cupycorr.variants")
    if variants is None:
        raise ValueError(
            f"--load needs a cupycorr that has `cupycorr.variants`, got version {cupycorr.__version__}, which has none"
        )
    variants.load(source)
    _loaded.append(absolute(source))


def absolute(source: str) -> str:
    """Return a file that registers variants by its absolute path; the name of a module stays."""
    return str(Path(source).resolve()) if source.endswith(".py") else source


def load_options() -> list[str]:
    """Return the options that load the same files and modules in another process."""
    return [word for source in _loaded for word in ("--load", source)]


def registered() -> tuple[str, ...]:
    """Return the names of the variants that users have registered; with ``--base``, an older package may know none."""
    variants = importable("cupycorr.variants")
    return () if variants is None else variants.registered()


def _variant(
    name: str,
    where: Callable[[], Place],
    needed: Callable[[Problem, int, str], int],
    through_torch: Contestant | None = None,
) -> Contestant:
    """Return a variant as a contestant. One that a user has registered is no variant of ours, so it is compared like a rival."""

    def why_not(case: Case, dtype: str, which: str) -> str | None:
        try:
            _dispatch.choose(OPERATOR, request(case, dtype, which, where()), where(), name)
        except NotImplementedError as error:
            return str(error)
        return None

    def forward(case: Case, inputs: Inputs) -> Work:
        options = {**case.keywords, "precision": inputs.precision, "variant": name}
        return lambda: (cupycorr.spatial_correlation_sample(inputs.input1, inputs.input2, **options),)

    def vjp(case: Case, inputs: Inputs) -> Work:
        options = {**case.keywords, "precision": inputs.precision, "variant": name}
        arrays = (inputs.cotangent, inputs.input1, inputs.input2)
        return lambda: cupycorr.spatial_correlation_sample_vjp(*arrays, **options)

    return Contestant(name, name not in registered(), why_not, needed, forward, vjp, "array", through_torch)


def _variant_through_torch(name: str) -> Contestant:
    """Return the contestant that calls a variant with tensors on a GPU."""

    def correlate(case: Case, inputs: Inputs) -> Callable[[Any, Any], Any]:
        options = {**case.keywords, "precision": inputs.precision, "variant": name}
        return partial(import_module("cupycorr.torch").spatial_correlation_sample, **options)

    return Contestant(name, True, lambda *_: why_no_cuda_torch(), _our_cuda_bytes, *_torch_works(correlate))


def _our_bytes(problem: Problem, itemsize: int, which: str) -> int:
    """Return the bytes of the result and the workspace; the reference also copies its inputs."""
    return workers.WORKSPACE + problem.bytes(max(itemsize, 4), max(itemsize, 4)) * 2


def _our_cuda_bytes(problem: Problem, itemsize: int, which: str) -> int:
    return WORKSPACE_BYTES + problem.bytes(itemsize, itemsize)


def on_gpu() -> Place:
    """Return the place of the arrays of a benchmark on a GPU."""
    return _dispatch.gpu(GPU)


def cuda_variants() -> list[str]:
    """Return the names of the variants that run on CuPy arrays."""
    return [row.name for row in OPERATOR.variants if row.kind == "cupy"]


# Rivals in torch -----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def torch() -> ModuleType | None:
    """Return torch, with as many threads as our variants use, or None where it is not installed."""
    found = importable("torch")
    if found is not None:
        found.set_num_threads(workers.thread_count())
        found.backends.cudnn.allow_tf32 = False  # our variants multiply float32 without rounding to TF32
    return found


def why_no_torch() -> str | None:
    """Return why torch cannot run on the CPU, None where it can."""
    return "torch is not installed" if torch() is None else None


def why_no_cuda_torch() -> str | None:
    """Return why torch cannot run on a GPU, None where it can."""
    return why_no_torch() or (None if torch().cuda.is_available() else "this torch finds no CUDA device")


def importable(name: str) -> ModuleType | None:
    """Return a module, or None where it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        return None


def unfold_einsum(x1: Any, x2: Any, problem: Problem) -> Any:
    """Write out every displaced copy of input2 by unfold, then sum over the channels by one einsum."""
    vertical, horizontal = problem.vertical, problem.horizontal
    queries = _frame(x1, problem, 1)[:, :, :: vertical.stride, :: horizontal.stride].flatten(2)
    patch = (vertical.patch, horizontal.patch)
    steps = (vertical.step, horizontal.step)
    candidates = torch().nn.functional.unfold(
        _frame(x2, problem, 2), patch, dilation=steps, stride=(vertical.stride, horizontal.stride)
    )
    candidates = candidates.unflatten(1, (problem.channels, patch[0] * patch[1]))
    return torch().einsum("bcl,bcpl->bpl", queries, candidates).reshape(problem.out_shape)


def shift_loop(x1: Any, x2: Any, problem: Problem) -> Any:
    """Multiply input1 with a shifted view of input2 for each displacement; torch sums windows by a convolution."""
    vertical, horizontal = problem.vertical, problem.horizontal
    frame1, frame2 = _frame(x1, problem, 1), _frame(x2, problem, 2)
    windowed = problem.parameters.kernel_size != (1, 1)
    every = (1, 1) if windowed else (vertical.stride, horizontal.stride)
    queries = frame1[:, :, :: every[0], :: every[1]]
    rows = []
    for m in range(vertical.patch):
        candidates = frame2[:, :, _from(m * vertical.step, frame1.shape[2], every[0])]
        columns = [
            (queries * candidates[..., _from(n * horizontal.step, frame1.shape[3], every[1])]).sum(1)
            for n in range(horizontal.patch)
        ]
        row = torch().stack(columns, 1)
        rows.append(_window_sums(row, problem) if windowed else row)
    return torch().stack(rows, 1)


def _window_sums(products: Any, problem: Problem) -> Any:
    """Return the window sums of each channel, by a depthwise convolution with ones, which is torch's fastest way."""
    p, channels = problem.parameters, products.shape[1]
    ones = products.new_ones((channels, 1, *p.kernel_size))
    return torch().nn.functional.conv2d(products, ones, stride=p.stride, dilation=p.dilation, groups=channels)


# Elements of one step of the tap loop: enough to hide Python's overhead, few enough to stay in the cache.
TAP_BLOCK = 2**17


def tap_loop(x1: Any, x2: Any, problem: Problem) -> Any:
    """Add one product for each tap of the window and each displacement, or each row of displacements where that is small."""
    vertical, horizontal = problem.vertical, problem.horizontal
    frame1, frame2 = _frame(x1, problem, 1), _frame(x2, problem, 2)
    _, patch_h, patch_w, out_h, out_w = problem.out_shape
    spans = ((out_h - 1) * vertical.stride + 1, (out_w - 1) * horizontal.stride + 1)
    block = patch_w if problem.channels * patch_w * out_h * out_w <= TAP_BLOCK else 1
    # (B, C, rows, displacement, column) is a view: displacements are not copied.
    displaced = frame2.unfold(3, frame1.shape[3], horizontal.step)
    total = x1.new_zeros(problem.out_shape)
    for m in range(patch_h):
        for n in range(0, patch_w, block):
            here = total[:, m, n : n + block]
            for u in range(vertical.kernel):
                row1 = _from(u * vertical.dilation, spans[0], vertical.stride)
                row2 = _from(u * vertical.dilation + m * vertical.step, spans[0], vertical.stride)
                taps1, taps2 = frame1[:, :, None, row1], displaced[:, :, row2, n : n + block].transpose(2, 3)
                for v in range(horizontal.kernel):
                    columns = _from(v * horizontal.dilation, spans[1], horizontal.stride)
                    _add_products(here, taps1[..., columns], taps2[..., columns])
    return total


def _add_products(total: Any, left: Any, right: Any) -> None:
    if left.shape[1] == 1:
        total.addcmul_(left[:, 0], right[:, 0])
    else:
        total += (left * right).sum(1)


def _from(first: int, span: int, every: int) -> slice:
    return slice(first, first + span, every)


def _frame(x: Any, problem: Problem, which: int) -> Any:
    """Return an input cropped or zero-padded to exactly the positions that are read."""
    sides: list[int] = []
    for axis, size in ((problem.horizontal, x.shape[3]), (problem.vertical, x.shape[2])):  # torch pads the last axis first
        before, length = positions_read(axis, which)
        sides += [before, length - before - size]
    return torch().nn.functional.pad(x, sides) if any(sides) else x


def extension(x1: Any, x2: Any, problem: Problem) -> Any:
    """Call the compiled C++ extension, which has our names of parameters."""
    p = problem.parameters
    sample = import_module("spatial_correlation_sampler").spatial_correlation_sample
    return sample(x1, x2, p.kernel_size, p.patch_size, p.stride, p.padding, p.dilation, p.dilation_patch)


def mmcv(x1: Any, x2: Any, problem: Problem) -> Any:
    """Call OpenMMLab's compiled operator."""
    return _mmcv_module(problem.parameters)(x1, x2)


@lru_cache
def _mmcv_module(p: Parameters) -> Any:
    """Return OpenMMLab's module, which takes numbers in place of pairs, and the largest displacement for the patch size."""
    pairs = (p.kernel_size, (p.patch_size[0] // 2,), p.stride, p.padding, p.dilation, p.dilation_patch)
    return import_module("mmcv.ops").Correlation(*(pair[0] for pair in pairs))


def _torch_contestant(
    name: str,
    correlate: Callable[[Any, Any, Problem], Any],
    why_not_case: Callable[[Case, str, str], str | None],
    needed: Callable[[Problem, int, str], int],
    why_not_torch: Callable[[], str | None] = why_no_torch,
) -> Contestant:
    def why_not(case: Case, dtype: str, which: str) -> str | None:
        if reason := why_not_torch():
            return reason
        return "multiplies float32 without rounding to TF32" if dtype == TF32 else why_not_case(case, dtype, which)

    works = _torch_works(lambda case, inputs: partial(_scaled, correlate, case.problem))
    return Contestant(name, False, why_not, needed, *works)


def _scaled(correlate: Callable[[Any, Any, Problem], Any], problem: Problem, x1: Any, x2: Any) -> Any:
    out, scale = correlate(x1, x2, problem), problem.parameters.scale
    return out if scale == 1 else out * scale


def _torch_works(correlate_for: Callable[[Case, Inputs], Callable[[Any, Any], Any]]) -> tuple[Prepare, Prepare]:
    """Return both passes of a differentiable function of two tensors."""

    def forward(case: Case, inputs: Inputs) -> Work:
        correlate, x1, x2 = correlate_for(case, inputs), tensor(inputs.input1), tensor(inputs.input2)

        def work() -> tuple[Any, ...]:
            with torch().no_grad():
                return (correlate(x1, x2),)

        return work

    def vjp(case: Case, inputs: Inputs) -> Work:
        leaves = [tensor(x).requires_grad_() for x in (inputs.input1, inputs.input2)]
        out, cotangent = correlate_for(case, inputs)(*leaves), tensor(inputs.cotangent)
        return partial(torch().autograd.grad, out, leaves, cotangent, retain_graph=True)

    return forward, vjp


def tensor(array: Any) -> Any:
    """Return the same memory as a tensor; bfloat16 arrays go through int16, for torch does not accept ml_dtypes' type."""
    adopt = torch().from_numpy if array_kind(array) == "numpy" else torch().from_dlpack
    if array.dtype.name == "bfloat16":
        return adopt(array.view(np.int16)).view(torch().bfloat16)
    return adopt(array)


def as_numpy(result: Any) -> np.ndarray:
    """Return a contestant's result as a NumPy array of at least float32."""
    kind = array_kind(result)
    if kind == "torch":
        result = (result if result.element_size() > 2 else result.float()).detach().cpu().numpy()
    elif kind == "cupy":
        result = import_cupy().asnumpy(result)
    return result if result.itemsize > 2 else result.astype(np.float32)


# What each can run, and the memory it needs ---------------------------------------------------------------------------


def _why_not_unfold(case: Case, dtype: str, which: str) -> str | None:
    if case.problem.parameters.kernel_size != (1, 1):
        return "unfold + einsum is another operator for kernel_size > 1"
    return None


def _why_not_shift(case: Case, dtype: str, which: str) -> str | None:
    return None


def _why_not_taps(case: Case, dtype: str, which: str) -> str | None:
    if case.problem.parameters.kernel_size == (1, 1):
        return "is the shift loop for kernel_size = 1"
    return None if which == "forward" else "forward only: its graph would hold every tap of every displacement"


def _why_not_extension(case: Case, dtype: str, which: str) -> str | None:
    if importable("spatial_correlation_sampler") is None:
        return "spatial_correlation_sampler is not installed"
    if dtype not in ("float32", "float64"):
        return f"its CPU path has no {dtype}"
    return None if case.problem.parameters.patch_offset is None else "has no patch_offset"


def _why_not_cuda_extension(case: Case, dtype: str, which: str) -> str | None:
    if importable("spatial_correlation_sampler") is None:
        return "spatial_correlation_sampler is not installed"
    if dtype == "bfloat16":
        return "has no bfloat16"
    return None if case.problem.parameters.patch_offset is None else "has no patch_offset"


def _why_not_mmcv(case: Case, dtype: str, which: str) -> str | None:
    if importable("mmcv.ops") is None:
        return "mmcv with its compiled operators is not installed"
    if dtype == "bfloat16":
        return "has no bfloat16"
    p = case.problem.parameters
    if p.patch_offset is not None:
        return "has no patch_offset"
    pairs = (p.kernel_size, p.patch_size, p.stride, p.padding, p.dilation, p.dilation_patch)
    odd_and_square = p.patch_size[0] % 2 == 1 and all(y == x for y, x in pairs)
    return None if odd_and_square else "patches are odd, and every parameter the same along both axes"


def _unfold_bytes(problem: Problem, itemsize: int, which: str) -> int:
    """Return the bytes of all displaced copies; einsum copies them again, and backward holds two gradients of that size."""
    copies = {"forward": 2, "vjp": 3}[which]
    displaced = problem.channels * problem.outputs * itemsize
    return copies * displaced + _framed_bytes(problem, itemsize) + _out_bytes(problem, itemsize)


def _shift_bytes(problem: Problem, itemsize: int, which: str) -> int:
    """Return the bytes of frames and rows of output, of which the heap was measured to hold up to 8 and 4 times the need.

    Windows add rows of the volume of products; backward holds the whole volume and its gradient.
    """
    volume = problem.workspace(itemsize)  # 0 without a window
    products = {"forward": 8 * volume // problem.vertical.patch, "vjp": 2 * volume}[which]
    return 8 * _framed_bytes(problem, itemsize) + 4 * _out_bytes(problem, itemsize) + products


def _tap_bytes(problem: Problem, itemsize: int, which: str) -> int:
    return 2 * _framed_bytes(problem, itemsize) + _out_bytes(problem, itemsize)


def _extension_bytes(problem: Problem, itemsize: int, which: str) -> int:
    return problem.bytes(itemsize, itemsize) * 2


def _framed_bytes(problem: Problem, itemsize: int) -> int:
    """Return the bytes of both inputs with their padding."""
    area = 1
    for axis, size in ((problem.vertical, problem.size1[0]), (problem.horizontal, problem.size1[1])):
        area *= size + 2 * max(axis.padding, 0) + axis.step * (axis.patch - 1)
    return 2 * problem.batch * problem.channels * area * itemsize


def _out_bytes(problem: Problem, itemsize: int) -> int:
    return problem.outputs * itemsize


def contestants() -> tuple[Contestant, ...]:
    """Return the contestants on the CPU: our variants in the order of preference, then the rivals."""
    return (
        *(_variant(row.name, lambda: CPU, _our_bytes) for row in OPERATOR.variants),
        _torch_contestant("unfold+einsum", unfold_einsum, _why_not_unfold, _unfold_bytes),
        _torch_contestant("shift-loop", shift_loop, _why_not_shift, _shift_bytes),
        _torch_contestant("tap-loop", tap_loop, _why_not_taps, _tap_bytes),
        _torch_contestant("cpp-extension", extension, _why_not_extension, _extension_bytes),
    )


def cuda_contestants() -> tuple[Contestant, ...]:
    """Return the contestants on a GPU, which use the same memory. The tap loop is not among them: it would time Python."""
    return (
        *(_variant(name, on_gpu, _our_cuda_bytes, _variant_through_torch(name)) for name in cuda_variants()),
        _torch_contestant("unfold+einsum", unfold_einsum, _why_not_unfold, _unfold_bytes, why_no_cuda_torch),
        _torch_contestant("shift-loop", shift_loop, _why_not_shift, _shift_bytes, why_no_cuda_torch),
        _pixel_blocks(),
        _torch_contestant("cpp-extension", extension, _why_not_cuda_extension, _extension_bytes, why_no_cuda_torch),
        _torch_contestant("mmcv", mmcv, _why_not_mmcv, _extension_bytes, why_no_cuda_torch),
    )


def _pixel_blocks() -> Contestant:
    def forward(case: Case, inputs: Inputs) -> Work:
        return lambda: (pixel_blocks.correlate(inputs.input1, inputs.input2, case.problem),)

    def vjp(case: Case, inputs: Inputs) -> Work:
        raise NotImplementedError("pixel-blocks has no gradients")

    return Contestant("pixel-blocks", False, pixel_blocks.why_not, _tap_bytes, forward, vjp, "array")


# The largest error, relative to the largest value, that counts as the same work: rivals may round in the input's precision.
SAME_WORK = {"float64": 1e-10, "float32": 1e-4, "tf32": 3e-3, "float16": 3e-2, "bfloat16": 2e-1}


def disagreement(got: tuple[Any, ...], want: tuple[np.ndarray, ...], dtype: str) -> str | None:
    """Return what differs between a contestant's results and ours, None where nothing does."""
    for name, found, ours in zip(("output",) if len(want) == 1 else ("g1", "g2"), got, want, strict=True):
        found = as_numpy(found)
        if found.shape != ours.shape:
            return f"{name} has shape {found.shape}, ours {ours.shape}"
        largest = max(float(np.abs(ours).max(initial=0)), float(np.finfo(np.float32).tiny))
        error = float(np.abs(found - ours).max(initial=0)) / largest
        if not error <= SAME_WORK[dtype]:  # NaN is a disagreement
            return f"{name} differs from ours by {error:.2g} of its largest value"
    return None
