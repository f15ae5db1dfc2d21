"""Tensors on their way to the kernels, without a GPU: the CUDA side of the torch operator, on CPU tensors and in the emulator."""

import sys
from types import SimpleNamespace

import cases
import fake_cupy
import numpy as np
import oracle
import pytest
import torch
from cases import DTYPES, GPU_VARIANTS
from emulator import Emulator, require_compiler
from fake_cupy import installed
from tensors import array, tensor

from cupycorr import _dispatch
from cupycorr._gpu import compiler, device, launcher
from cupycorr._gpu.source import Kernel
from cupycorr.torch import _tensors
from cupycorr.torch._correlation import Arguments, _forward, _vjp

require_compiler()

WINDOWED = cases.same((2, 5, 9, 11), kernel_size=3, patch_size=(3, 4), stride=(1, 2), padding=1)
HALVES = cases.same((2, 20, 9, 17), "float16", patch_size=(3, 5))
ANSWERED = {"auto": WINDOWED} | {variant: HALVES if variant == "mma" else WINDOWED for variant in GPU_VARIANTS}


class Streamed(Emulator):
    """An emulator that tells on which stream each kernel was launched."""

    def __init__(self):
        super().__init__()
        self.launched = []

    def bind(self, kernel, *rest):
        launch = super().bind(kernel, *rest)

        def recorded(arguments, stream):
            self.launched.append((kernel.entry, stream.ptr))
            launch(arguments, stream)

        return recorded


@pytest.fixture
def gpu(monkeypatch):
    """The GPU is the emulator; it may touch the memory of the tensors it is told of, and nothing else."""
    emulator = Streamed()
    emulator.stream = 1 << 40
    address = _tensors.address

    def lent(name, value):
        writable = name.startswith(("out", "gradient", "workspace"))
        if value.numel():
            emulator.register(array(value), name, writable=writable)
        return address(name, value)

    with installed(monkeypatch, emulator.bind):
        monkeypatch.setattr(_tensors, "on_gpu", lambda tensor: True)
        monkeypatch.setattr(_tensors, "address", lent)
        monkeypatch.setattr(_tensors, "current_stream", lambda index: emulator.stream)
        yield emulator


def given(case, **more):
    """A case's parameters as the operator's kernels get them."""
    parameters = {name: value if name == "scale" else [*oracle.pair(value)] for name, value in case.parameters.items()}
    return Arguments(**parameters, **more)


def answer(case, layout=lambda x: x, needs=(True, True), **more):
    x1, x2, g = map(tensor, case.arrays())
    arguments = given(case, **more)
    out = _forward(layout(x1), layout(x2), *arguments)
    return (out, *_vjp(g, layout(x1), layout(x2), [*needs], *arguments))


def check(case, got, exact=None):
    x1, x2, g = case.arrays()
    want = oracle.forward(x1, x2, **case.parameters), *oracle.vjp(g, x1, x2, **case.parameters)
    for name, result, triple in zip(("output", "g1", "g2"), got, want, strict=True):
        assert result.is_contiguous()
        oracle.assert_close(array(result), triple, name=name)


@pytest.mark.parametrize(("variant", "case"), ANSWERED.items(), ids=ANSWERED)
def test_tensors_in_tensors_out_with_the_oracles_values(gpu, variant, case):
    check(case, answer(case, variant=variant))
    entries = {entry for entry, _ in gpu.launched}
    assert ("box_filter" in entries) == (variant not in ("direct", "mma"))
    assert ({"forward_mma", "gradient_mma"} <= entries) == (variant == "mma")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_crosses_by_its_name(gpu, dtype, monkeypatch):
    monkeypatch.setattr(_tensors, "_numpy_dtype", lambda dtype: pytest.fail("NumPy is not on this way"))
    case = cases.Case(WINDOWED.shape1, WINDOWED.shape2, WINDOWED.parameters, dtype)
    check(case, answer(case))


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.repeat_interleave(2, 3)[..., ::2],
        lambda x: x.mT.contiguous().mT,
    ],
    ids=["channels last", "every other column", "rows and columns exchanged"],
)
@pytest.mark.parametrize(("variant", "case"), ANSWERED.items(), ids=ANSWERED)
def test_strides_are_taken_as_they_are(gpu, layout, variant, case):
    check(case, answer(case, layout, variant=variant))


def test_the_output_has_the_dtype_asked_for(gpu):
    case = cases.Case(WINDOWED.shape1, WINDOWED.shape2, WINDOWED.parameters, "float16")
    x1, x2, _ = case.arrays()
    out = _forward(tensor(x1), tensor(x2), *given(case, dtype=torch.float32))
    assert out.dtype == torch.float32
    oracle.assert_close(array(out), oracle.forward(x1, x2, **case.parameters))


@pytest.fixture
def requested(monkeypatch):
    """The passes and precisions of the requests, in order."""
    seen, choose = [], _dispatch.choose

    def noting(operator, request, *rest):
        seen.append((request.pass_name, request.precision))
        return choose(operator, request, *rest)

    monkeypatch.setattr(_dispatch, "choose", noting)
    return seen


@pytest.fixture
def torchs_precision():
    """Sets what torch's own products have."""
    matmul = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    if hasattr(matmul, "fp32_precision"):
        matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision(before)


REACHED = {"highest": "highest", "high": "high", "medium": "high"}  # of torch's names: there are two kinds of products


def both(case, **more):
    x1, x2, g = map(tensor, case.arrays())
    _forward(x1, x2, *given(case, **more))
    _vjp(g, x1, x2, [True, True], *given(case, **more))


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_precision_asked_for_is_that_of_both_passes_whatever_torchs_is(gpu, requested, torchs_precision, precision):
    for of_torch in ("highest", "high"):
        torchs_precision(of_torch)
        both(WINDOWED, precision=precision)
    assert requested == [("forward", REACHED[precision]), ("vjp", REACHED[precision])] * 2


def test_where_none_is_asked_for_each_pass_has_torchs_precision_of_its_moment(gpu, requested, torchs_precision):
    x1, x2, g = map(tensor, WINDOWED.arrays())
    for before, after in (("highest", "medium"), ("high", "highest")):
        torchs_precision(before)
        _forward(x1, x2, *given(WINDOWED))
        torchs_precision(after)
        _vjp(g, x1, x2, [True, True], *given(WINDOWED))
    assert [precision for _, precision in requested] == ["highest", "high", "high", "highest"]


@pytest.mark.parametrize(("newer", "older"), [("tf32", "high"), ("ieee", "highest")])
def test_torchs_precision_in_its_newer_words_is_understood(gpu, requested, torchs_precision, newer, older):
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has no newer words")
    torch.backends.cuda.matmul.fp32_precision = newer
    both(WINDOWED)
    assert [precision for _, precision in requested] == [older, older]


def test_halves_do_not_ask_for_torchs_precision(gpu, monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: pytest.fail("asked"))
    both(HALVES)


def test_launches_go_to_the_stream_that_torch_is_on_at_that_moment(gpu):
    for stream in (5 << 40, 6 << 40):
        gpu.stream = stream
        gpu.launched.clear()
        answer(WINDOWED)
        assert {ptr for _, ptr in gpu.launched} == {stream}


def test_the_stream_is_found_with_and_without_the_name_that_is_not_public(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=100 + index))
    monkeypatch.setattr(_tensors, "_raw_stream", None)
    assert _tensors.current_stream(3) == 103
    monkeypatch.setattr(_tensors, "_raw_stream", lambda index: 200 + index)
    assert _tensors.current_stream(3) == 203


def test_only_the_gradient_that_is_needed_is_launched(gpu):
    x1, x2, g = map(tensor, WINDOWED.arrays())
    for needs in ((True, False), (False, True), (False, False)):
        gpu.launched.clear()
        gradients = _vjp(g, x1, x2, [*needs], *given(WINDOWED, variant="direct"))
        assert len(gpu.launched) == sum(needs)
        assert [tuple(gradient.shape) for gradient in gradients] == [WINDOWED.shape1 if n else (0,) for n in needs]


def test_the_same_arguments_make_one_plan(gpu):
    for _ in range(3):
        answer(WINDOWED, variant="box")
    assert _dispatch._planned.cache_info().misses == 2


def test_a_tensor_that_is_not_aligned_is_refused_before_a_launch(gpu):
    memory = torch.zeros(18, dtype=torch.uint8).numpy()
    unaligned = torch.from_numpy(np.frombuffer(memory, np.float32, count=4, offset=2).reshape(1, 1, 2, 2))
    with pytest.raises(ValueError, match="input2 must begin at a multiple of its 4 bytes"):
        _forward(torch.ones(1, 1, 2, 2), unaligned)
    assert gpu.launched == []


def test_empty_problems_launch_nothing(gpu):
    out, g1, g2 = answer(cases.same((0, 3, 8, 9), patch_size=3))
    assert (out.shape, g1.shape, g2.shape) == ((0, 3, 3, 8, 9), (0, 3, 8, 9), (0, 3, 8, 9))
    assert gpu.launched == []


def test_a_bad_cotangent_is_refused_before_a_launch(gpu):
    x = torch.ones(1, 4, 6, 7)
    with pytest.raises(ValueError, match="cotangent must have the output's shape"):
        _vjp(torch.ones(1, 1, 1, 6, 6), x, x, [True, True])
    assert gpu.launched == []


def test_cpu_variants_are_refused_with_the_reason(gpu):
    x = torch.ones(1, 4, 6, 7)
    with pytest.raises(NotImplementedError, match="simd: input is a CuPy array"):
        _forward(x, x, *Arguments(variant="simd"))


def test_without_cupy_the_pip_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(_tensors, "on_gpu", lambda tensor: True)
    device.facts.cache_clear()
    x = torch.ones(1, 4, 6, 7)
    with pytest.raises(ImportError, match=r'pip install "cupycorr\[cuda12\]"'):
        _forward(x, x)


def test_the_stream_is_handed_to_cupy(monkeypatch):
    cupy = fake_cupy.Fake(fake_cupy.H100)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(compiler, "_functions", {})
    device.facts.cache_clear()
    try:
        launch = launcher.bind(Kernel("correlation/forward_direct.cu", "forward_direct", ()), 0, 1, 32, 0)
        launch(())
        launch((), _tensors.Stream(77))
        assert [stream for _, stream, *_ in cupy.launches] == ["default stream of 0", _tensors.Stream(77)]
        assert cupy.launches[1][1].ptr == 77
    finally:
        device.facts.cache_clear()
