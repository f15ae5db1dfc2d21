"""Tensors on their way to the kernels: the CUDA side of the torch operator, through CuPy itself, on the software CUDA.

torch's CUDA build cannot run there. So CPU tensors pose as tensors of a device: their memory is registered as the device's, and
the operator is told that they are on it and which stream is torch's current one. Registered memory may be touched by kernels
while its tensor lives, and not longer.
"""

import sys
from types import SimpleNamespace

import cases
import numpy as np
import oracle
import pytest
import torch
from cases import DTYPES, GPU_VARIANTS
from own_variants import EXAMPLE, registered, rows_of
from posing import new_stream
from tensors import array, tensor

from cupycorr import _dispatch
from cupycorr._gpu import device
from cupycorr.torch import _lookup, _tensors, _volume_lookup
from cupycorr.torch._correlation import Arguments, _forward, _vjp

WINDOWED = cases.same((2, 5, 9, 11), kernel_size=3, patch_size=(3, 4), stride=(1, 2), padding=1)
HALVES = cases.same((2, 20, 9, 17), "float16", patch_size=(3, 5))
ANSWERED = {"auto": WINDOWED} | {variant: HALVES if variant == "mma" else WINDOWED for variant in GPU_VARIANTS}


def given(case, **more):
    """Return a case's parameters as the operator's kernels get them."""
    parameters = {name: value if name == "scale" else [*oracle.pair(value)] for name, value in case.parameters.items()}
    return Arguments(**parameters, **more)


def answer(case, layout=lambda x: x, needs=(True, True), **more):
    """Return the output and both gradients of a case, whose tensors were laid out by ``layout``."""
    x1, x2, g = map(tensor, case.arrays())
    arguments = given(case, **more)
    out = _forward(layout(x1), layout(x2), *arguments)
    return (out, *_vjp(g, layout(x1), layout(x2), [*needs], *arguments))


def check(case, got):
    """Check that the output and both gradients are contiguous and equal the oracle's."""
    x1, x2, g = case.arrays()
    want = oracle.forward(x1, x2, **case.parameters), *oracle.vjp(g, x1, x2, **case.parameters)
    for name, result, triple in zip(("output", "g1", "g2"), got, want, strict=True):
        assert result.is_contiguous()
        oracle.assert_close(array(result), triple, name=name)


@pytest.mark.parametrize(("variant", "case"), ANSWERED.items(), ids=ANSWERED)
def test_tensors_in_tensors_out_with_the_oracles_values(gpu, variant, case):
    check(case, answer(case, variant=variant))
    entries = {entry for entry, _ in gpu.launched()}
    assert variant == "auto" or ("box_filter" in entries) == (variant not in ("direct", "mma"))
    assert ({"forward_mma", "gradient_mma"} <= entries) == (variant == "mma")


def test_a_users_kernel_takes_tensors_and_is_launched_again_for_the_same_call(gpu):
    case = cases.same((2, 5, 9, 11), patch_size=(3, 4))
    x1, x2, _ = case.arrays()
    with registered(*rows_of(EXAMPLE)):
        for _ in range(2):
            out = _forward(tensor(x1), tensor(x2), *given(case, variant="mine"))
            oracle.assert_close(array(out), oracle.forward(x1, x2, **case.parameters))
    assert [entry for entry, _ in gpu.launched()] == ["own_variant", "own_variant"]


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
    for _ in range(2):
        gpu.stream = new_stream()
        gpu.clear()
        answer(WINDOWED)
        assert {ptr for _, ptr in gpu.launched()} == {gpu.stream.ptr}


def test_the_stream_is_found_with_and_without_the_name_that_is_not_public(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=100 + index))
    monkeypatch.setattr(_tensors, "_raw_stream", None)
    assert _tensors.current_stream(3) == 103
    monkeypatch.setattr(_tensors, "_raw_stream", lambda index: 200 + index)
    assert _tensors.current_stream(3) == 203


def test_only_the_gradient_that_is_needed_is_launched(gpu):
    x1, x2, g = map(tensor, WINDOWED.arrays())
    for needs in ((True, False), (False, True), (False, False)):
        gpu.clear()
        gradients = _vjp(g, x1, x2, [*needs], *given(WINDOWED, variant="direct"))
        assert len(gpu.launched()) == sum(needs)
        assert [tuple(gradient.shape) for gradient in gradients] == [WINDOWED.shape1 if n else (0,) for n in needs]


def test_the_same_arguments_make_one_plan(gpu):
    for _ in range(3):
        answer(WINDOWED, variant="box")
    assert _dispatch._planned.cache_info().misses == 2


def repeated_calls():
    """Return one call of every operator's kernel, by name."""
    x1, x2, g = (tensor(array) for array in cases.same((2, 5, 9, 11), patch_size=3).arrays())
    coords = torch.rand((2, 2, 9, 11), generator=torch.Generator().manual_seed(0)) * 9
    volume = torch.rand((2, 9, 11, 9, 11), generator=torch.Generator().manual_seed(1))
    index, pair, needs = torch.tensor([1, 0]), [3, 3], [True, True]
    return {
        "forward": lambda: _forward(x1, x2, [1, 1], pair),
        "vjp": lambda: _vjp(g, x1, x2, needs, [1, 1], pair),
        "one gradient": lambda: _vjp(g, x1, x2, [False, True], [1, 1], pair),
        "lookup": lambda: _lookup._forward(x1, [x2], coords, None, None, False, pair),
        "lookup of a pyramid": lambda: _lookup._forward(x1, [x2, x2[:, :, ::2, ::2]], coords, None, index, True, pair),
        "lookup_vjp": lambda: _lookup._vjp(g, x1, [x2], coords, [True, True, True], None, index, False, pair),
        "volume_lookup": lambda: _volume_lookup._forward(volume, coords, pair),
        "volume_lookup_vjp": lambda: _volume_lookup._vjp(g, volume, coords, needs, pair),
    }


REPEATED = "forward", "vjp", "one gradient", "lookup", "lookup of a pyramid", "lookup_vjp", "volume_lookup", "volume_lookup_vjp"


@pytest.mark.parametrize("name", REPEATED)
def test_a_repeated_call_gives_the_same_bits_and_checks_and_plans_nothing(gpu, monkeypatch, name):
    call = repeated_calls()[name]
    first = call()
    for function in ("check_device", "layouts", "run"):
        monkeypatch.setattr(_tensors, function, lambda *_: pytest.fail("a repeated call was checked or planned"))
    for _ in range(2):
        again = call()
        assert type(again) is type(first)
        pairs = [(first, again)] if isinstance(first, torch.Tensor) else zip(first, again, strict=True)
        for one, two in pairs:
            assert one.dtype == two.dtype
            assert torch.equal(one, two)


DIFFERENT = {
    "channels last": dict(layout=lambda x: x.contiguous(memory_format=torch.channels_last)),
    "every other column": dict(layout=lambda x: x.repeat_interleave(2, 3)[..., ::2]),
    "float64": dict(case=cases.Case(WINDOWED.shape1, WINDOWED.shape2, WINDOWED.parameters, "float64")),
    "a larger patch": dict(case=cases.same((2, 5, 9, 11), kernel_size=3, patch_size=5, padding=1)),
    "another height": dict(case=cases.same((2, 5, 8, 11), kernel_size=3, patch_size=(3, 4), stride=(1, 2), padding=1)),
    "a variant": dict(variant="direct"),
}


@pytest.mark.parametrize("change", DIFFERENT.values(), ids=DIFFERENT)
def test_a_call_that_differs_in_one_thing_is_another_call(gpu, change):
    for options in ({}, {}, change, change):
        case = {"case": WINDOWED} | options
        check(case["case"], answer(**case))


def test_each_gradient_and_dtype_that_is_asked_for_is_another_call(gpu):
    x1, x2, g = map(tensor, WINDOWED.arrays())
    for needs in ([True, True], [True, False], [False, True]) * 2:
        assert [found.numel() > 0 for found in _vjp(g, x1, x2, needs, *given(WINDOWED))] == needs
    for dtype in (None, torch.float64, torch.float16) * 2:
        assert _forward(x1, x2, *given(WINDOWED, dtype=dtype)).dtype == (dtype or torch.float32)


def test_an_unaligned_tensor_is_refused_in_a_repeated_call(gpu):
    x = torch.ones(1, 1, 2, 2)
    _forward(x, x)
    memory = torch.zeros(18, dtype=torch.uint8).numpy()
    unaligned = torch.from_numpy(np.frombuffer(memory, np.float32, count=4, offset=2).reshape(1, 1, 2, 2))
    with pytest.raises(ValueError, match="input2 must begin at a multiple of its 4 bytes"):
        _forward(x, unaligned)


def test_a_tensor_that_is_not_aligned_is_refused_before_a_launch(gpu):
    memory = torch.zeros(18, dtype=torch.uint8).numpy()
    unaligned = torch.from_numpy(np.frombuffer(memory, np.float32, count=4, offset=2).reshape(1, 1, 2, 2))
    with pytest.raises(ValueError, match="input2 must begin at a multiple of its 4 bytes"):
        _forward(torch.ones(1, 1, 2, 2), unaligned)
    assert gpu.launched() == []


def test_empty_problems_launch_nothing(gpu):
    out, g1, g2 = answer(cases.same((0, 3, 8, 9), patch_size=3))
    assert (out.shape, g1.shape, g2.shape) == ((0, 3, 3, 8, 9), (0, 3, 8, 9), (0, 3, 8, 9))
    assert gpu.launched() == []


def test_a_bad_cotangent_is_refused_before_a_launch(gpu):
    x = torch.ones(1, 4, 6, 7)
    with pytest.raises(ValueError, match="cotangent must have the output's shape"):
        _vjp(torch.ones(1, 1, 1, 6, 6), x, x, [True, True])
    assert gpu.launched() == []


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
