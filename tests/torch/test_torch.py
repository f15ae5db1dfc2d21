"""The torch operator computes what the array operator computes, and refuses what it refuses: values, layouts, dtypes, errors."""

import copy
import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path

import cases
import ml_dtypes
import numpy as np
import oracle
import pytest
import refusals
import torch
from cases import CPU_VARIANTS, DTYPES, NAMED
from layouts import FOR_TENSORS
from tensors import DENSE, NOT_DENSE, array, tensor
from watched import watched

import cupycorr
from cupycorr._arguments import types_of
from cupycorr._correlation.variants import OPERATOR
from cupycorr._cpu import workers
from cupycorr._dispatch import VJP
from cupycorr.torch import SpatialCorrelationSampler, _tensors
from cupycorr.torch import spatial_correlation_sample as correlate

WINDOWED = cases.same((2, 5, 11, 13), kernel_size=3, patch_size=(3, 4), stride=(1, 2), padding=1, dilation_patch=2, scale=0.25)
named = pytest.mark.parametrize("case", NAMED.values(), ids=NAMED.keys())


def answer(case, device="cpu", **more):
    """Return output and both gradients of a case as arrays."""
    x1, x2, g = (tensor(x, device) for x in case.arrays())
    x1.requires_grad_(), x2.requires_grad_()
    out = correlate(x1, x2, **case.parameters, **more)
    assert out.is_contiguous()
    assert out.dtype == x1.dtype
    assert out.device == x1.device
    out.backward(g)
    return [array(value) for value in (out, x1.grad, x2.grad)]


def wanted(case):
    """Return the triples of the oracle for `answer`."""
    x1, x2, g = case.arrays()
    return oracle.forward(x1, x2, **case.parameters), *oracle.vjp(g, x1, x2, **case.parameters)


# Values ----------------------------------------------------------------------------------------------------------------


@named
def test_named_cases_equal_the_oracle(case, device):
    for name, got, want in zip(("output", "g1", "g2"), answer(case, device), wanted(case), strict=True):
        oracle.assert_close(got, want, name=name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_equals_the_oracle(dtype, device):
    case = cases.same((2, 9, 11, 13), dtype, **WINDOWED.parameters)
    for name, got, want in zip(("output", "g1", "g2"), answer(case, device), wanted(case), strict=True):
        oracle.assert_close(got, want, name=name)


@pytest.mark.covering(2)
@pytest.mark.parametrize("variant", [*CPU_VARIANTS, "auto"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["flownet-like", "even patch", "window, stride and dilation", "template in a larger image"])
def test_on_the_cpu_the_bits_are_the_array_operators(name, dtype, variant):
    case = cases.Case(NAMED[name].shape1, NAMED[name].shape2, NAMED[name].parameters, dtype)
    x1, x2, g = case.arrays()
    want = (
        cupycorr.spatial_correlation_sample(x1, x2, **case.parameters, variant=variant),
        *cupycorr.spatial_correlation_sample_vjp(g, x1, x2, **case.parameters, variant=variant),
    )
    for got, expected in zip(answer(case, variant=variant), want, strict=True):
        assert got.dtype == expected.dtype
        assert got.tobytes() == expected.tobytes()


@named
def test_the_same_inputs_give_the_same_bits(case, device):
    first = answer(case, device)
    for _ in range(2):
        assert all(one.tobytes() == other.tobytes() for one, other in zip(first, answer(case, device), strict=True))


def test_deterministic_algorithms_change_nothing(device):
    want = answer(WINDOWED, device)
    torch.use_deterministic_algorithms(True)
    try:
        got = answer(WINDOWED, device)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(map(np.array_equal, got, want))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_halves_are_rounded_once_to_the_dtype_asked_for(dtype, device):
    x1, x2, _ = cases.same((1, 200, 6, 7), dtype).arrays()
    t1, t2 = tensor(x1, device).requires_grad_(), tensor(x2, device).requires_grad_()
    wide = correlate(t1, t2, patch_size=3, dtype=torch.float32)
    assert wide.dtype == torch.float32
    oracle.assert_close(array(wide), oracle.forward(x1, x2, patch_size=3))
    g = wide.detach() / 7
    wide.backward(g)
    for got, want in zip((t1.grad, t2.grad), oracle.vjp(array(g), x1, x2, patch_size=3), strict=True):
        oracle.assert_close(array(got), want, accumulator="float32")


def test_without_ml_dtypes_bfloat16_has_the_same_bits(monkeypatch):
    case = cases.same((2, 9, 11, 13), "bfloat16", **WINDOWED.parameters)
    x1, x2, _ = (tensor(x) for x in case.arrays())
    want, wide = answer(case), correlate(x1, x2, dtype=torch.float32)
    rounded = correlate(x1.float(), x2.float(), dtype=torch.bfloat16)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    monkeypatch.setattr(_tensors, "_numpy_dtype", _tensors._numpy_dtype.__wrapped__)  # as a process that never found it
    assert _tensors._numpy_dtype(torch.bfloat16) == np.float32
    assert all(one.tobytes() == other.tobytes() for one, other in zip(answer(case), want, strict=True))
    assert torch.equal(correlate(x1, x2, dtype=torch.float32), wide)
    assert torch.equal(correlate(x1.float(), x2.float(), dtype=torch.bfloat16), rounded)


def test_ml_dtypes_is_found_where_it_is():
    assert _tensors._numpy_dtype(torch.bfloat16) == ml_dtypes.bfloat16


# Memory ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", FOR_TENSORS.values(), ids=FOR_TENSORS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_are_taken_as_they_are(layout, dtype, device):
    case = cases.same((2, 6, 9, 17), kernel_size=3, patch_size=5, stride=(1, 2), padding=1)
    x1, x2, g = (torch.from_numpy(x).to(device, dtype) for x in case.arrays())
    x1[:], x2[:], g[:] = x1[:1].clone(), x2[:1].clone(), g[:1].clone()

    def run(t1, t2):
        t1, t2 = t1.detach().requires_grad_(), t2.detach().requires_grad_()
        out = correlate(t1, t2, **case.parameters)
        return out, *torch.autograd.grad(out, (t1, t2), g)

    strided, plain = run(layout(x1), layout(x2)), run(x1, x2)
    assert all(result.is_contiguous() for result in strided)
    exact = [array(x.double()) for x in (x1, x2, g)]
    want = oracle.forward(*exact[:2], **case.parameters), *oracle.vjp(exact[2], *exact[:2], **case.parameters)
    for name, got, same, triple in zip(("output", "g1", "g2"), strided, plain, want, strict=True):
        oracle.assert_close(array(got), triple, accumulator="float32", name=name)
        assert device != "cpu" or torch.equal(got, same), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_cpu_tensors_reach_the_backend_without_a_copy(dtype, variants):
    seen = []
    variants(watched(OPERATOR.variants[0], lambda request, arrays: seen.append(arrays)))
    x1, x2, _ = (tensor(x) for x in cases.same((1, 3, 4, 5), dtype).arrays())
    x2 = x2.requires_grad_()[..., ::2]
    out = correlate(x1[..., ::2], x2)
    arrays = seen[0].values()
    assert [a.ctypes.data for a in arrays] == [x1.data_ptr(), x2.data_ptr(), out.data_ptr()]
    assert [a.dtype.name for a in arrays] == [dtype] * 3


@pytest.mark.parametrize("has_ml_dtypes", [True, False], ids=["ml_dtypes", "no ml_dtypes"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_and_results_can_be_resized_as_before_the_call(dtype, has_ml_dtypes, monkeypatch):
    if not has_ml_dtypes:
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
        monkeypatch.setattr(_tensors, "_numpy_dtype", _tensors._numpy_dtype.__wrapped__)
    case = cases.Case(WINDOWED.shape1, WINDOWED.shape2, WINDOWED.parameters, dtype)
    x1, x2, g = (tensor(x).clone() for x in case.arrays())  # memory of torch's allocator
    x1.requires_grad_(), x2.requires_grad_()
    out = correlate(x1, x2, **case.parameters)
    for result in (*torch.autograd.grad(out, (x1, x2), g), out.detach(), x1.detach(), x2.detach()):
        before = result.flatten().tolist()
        result.resize_(10**6)
        assert result.flatten()[: len(before)].tolist() == before


def test_the_profiler_counts_the_bytes_of_results():
    x1, x2, g = (tensor(x) for x in cases.same((2, 64, 32, 32), patch_size=5).arrays())
    vjp = torch.ops.cupycorr.spatial_correlation_sample_vjp
    for call in (lambda: [correlate(x1, x2, patch_size=5)], lambda: vjp(g, x1, x2, [True, True], [1, 1], [5, 5])):
        with torch.autograd.profiler.profile(profile_memory=True) as profiler:
            kept = call()
        allocated = sum(event.self_cpu_memory_usage for event in profiler.key_averages())
        assert allocated == sum(result.numel() * result.element_size() for result in kept)
        del kept


def imaginary(x):
    """Return the same values with the neg bit set."""
    return torch.complex(torch.zeros_like(x), -x).conj().imag


def real_of_conjugate(x):
    return torch.complex(x, x).conj().real


@pytest.mark.parametrize("view", [imaginary, real_of_conjugate])
def test_tensors_with_the_neg_or_conj_bit_have_their_right_values(view, device):
    x1, x2, g = (tensor(x, device) for x in cases.same((1, 3, 8, 9), patch_size=3).arrays())
    assert imaginary(x1).is_neg()
    v1, v2, vg = view(x1), view(x2), view(g)
    assert torch.equal(v1, x1)
    out = correlate(x1, x2, patch_size=3)
    assert torch.equal(correlate(v1, v2, patch_size=3), out)
    op = torch.ops.cupycorr.spatial_correlation_sample_vjp
    got, want = (op(*each, [True, True], patch_size=[3, 3]) for each in ((vg, v1, v2), (g, x1, x2)))
    assert all(map(torch.equal, got, want))


# What torch does with tensors ------------------------------------------------------------------------------------------


def test_inference_mode(device):
    x1, x2, _ = (tensor(x, device) for x in WINDOWED.arrays())
    want = correlate(x1, x2, **WINDOWED.parameters)
    with torch.inference_mode():
        out = correlate(x1, x2 * 1, **WINDOWED.parameters)
    assert out.is_inference()
    assert torch.equal(out, want)


def test_meta_tensors_have_the_shape_and_no_data():
    case = NAMED["template in a larger image"]
    x1, x2 = torch.empty(case.shape1, device="meta", requires_grad=True), torch.empty(case.shape2, device="meta")
    out = correlate(x1, x2, **case.parameters, dtype=torch.float64)
    assert (out.device.type, out.dtype, tuple(out.shape)) == ("meta", torch.float64, case.out_shape())
    (gradient,) = torch.autograd.grad(out, x1, torch.empty_like(out))
    assert (gradient.shape, gradient.dtype, gradient.device.type) == (x1.shape, x1.dtype, "meta")


def test_parameters_and_tensors_of_a_subclass_are_tensors(device):
    x1, x2, _ = (tensor(x, device) for x in WINDOWED.arrays())
    out = correlate(torch.nn.Parameter(x1), x2.as_subclass(type("Marked", (torch.Tensor,), {})), **WINDOWED.parameters)
    assert torch.equal(out.as_subclass(torch.Tensor), correlate(x1, x2, **WINDOWED.parameters))


def test_only_the_gradients_that_are_needed_are_computed(variants):
    """The work of the backend: which gradients it is asked for, and how many sums it makes."""
    requested = []

    def tell(request, arrays):
        if request.pass_name == VJP:
            requested.append(request.needs)
            assert [f"gradient{number}" in arrays for number in (1, 2)] == list(request.needs)

    variants(watched(OPERATOR.variants[0], tell))
    x1, x2, g = (tensor(x) for x in WINDOWED.arrays())
    for needs in ((True, False), (False, True), (True, True)):
        requested.clear()
        inputs = [x.clone().requires_grad_(n) for x, n in zip((x1, x2), needs, strict=True)]
        correlate(*inputs, **WINDOWED.parameters).backward(g)
        assert requested == [needs]
        assert [x.grad is not None for x in inputs] == list(needs)
    # Second derivatives with respect to one thing: the first gradients that were needed, those that were used, the work.
    both, one, two = (True, True), (True, False), (False, True)
    sizes = [3, 3], [3, 4], [1, 2], [1, 1], [1, 1], [2, 2]
    for needs, used, wrt, work in (
        *((one, one, 2, [two]), (two, two, 1, [one]), (one, one, 0, []), (two, two, 0, [])),
        *((both, both, 1, [one]), (both, both, 2, [two]), (both, two, 1, [one]), (both, one, 2, [two])),
        *((both, one, 1, []), (both, two, 2, [])),
    ):
        inputs = [x.clone().requires_grad_(number == wrt) for number, x in enumerate((g, x1, x2))]
        gradients = torch.ops.cupycorr.spatial_correlation_sample_vjp(*inputs, needs, *sizes)
        requested.clear()
        sum(gradient.sum() for gradient, u in zip(gradients, used, strict=True) if u).backward()
        assert requested == work


@pytest.mark.parametrize("number", [1, 2])
def test_a_call_wishes_for_as_many_threads_as_torch_has(number, variants, monkeypatch):
    """A call takes as many threads as torch's own operators, which take one in a worker of a DataLoader."""
    seen = []
    monkeypatch.delenv("CUPYCORR_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    variants(watched(OPERATOR.variants[0], lambda *_: seen.append(workers.thread_count())))
    ceiling, before = workers.thread_count(), torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        x1, x2, g = (tensor(x).requires_grad_() for x in WINDOWED.arrays())
        correlate(x1, x2, **WINDOWED.parameters).backward(g)
    finally:
        torch.set_num_threads(before)
    assert seen == [min(number, ceiling)] * 2


def test_an_unneeded_gradient_is_an_empty_tensor_of_the_operator():
    x1, x2, g = (tensor(x) for x in cases.same((1, 2, 4, 5)).arrays())
    g1, g2 = torch.ops.cupycorr.spatial_correlation_sample_vjp(g, x1, x2, [False, True])
    assert g1.shape == (0,)
    assert torch.equal(g2, x1 * g[:, 0])


@pytest.mark.parametrize("precision", [None, "highest", "high", "medium"])
def test_on_the_cpu_precision_changes_nothing_and_torchs_setting_is_not_asked_for(precision, monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: pytest.fail("asked"))
    x = torch.full((1, 3, 4, 5), 1 + 2**-20, requires_grad=True)
    out = correlate(x, x, patch_size=3, precision=precision)
    assert torch.equal(out, correlate(x, x, patch_size=3))
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.autograd.grad(correlate(x, x, patch_size=3).sum(), x)[0])


# The module ------------------------------------------------------------------------------------------------------------

ALL = dict(kernel_size=3, patch_size=(3, 4), stride=(1, 2), padding=1, dilation=2, dilation_patch=(2, 1), scale=0.5)
ALL |= dict(patch_offset=(0, -2), dtype=torch.float64, precision="high", variant="blas")


def test_the_module_computes_what_the_function_computes(device):
    x1, x2, _ = (tensor(x, device) for x in cases.same((1, 3, 12, 15)).arrays())
    parameters = ALL | dict(variant="auto")
    assert torch.equal(SpatialCorrelationSampler(**parameters)(x1, x2), correlate(x1, x2, **parameters))


def test_the_order_of_arguments_is_the_extensions(device):
    x1, x2, _ = (tensor(x, device) for x in cases.same((1, 3, 12, 15)).arrays())
    want = correlate(x1, x2, kernel_size=1, patch_size=9, stride=2, padding=3, dilation=4, dilation_patch=2)
    assert torch.equal(SpatialCorrelationSampler(1, 9, 2, 3, 4, 2)(x1, x2), want)
    assert torch.equal(correlate(x1, x2, 1, 9, 2, 3, 4, 2), want)
    with pytest.raises(TypeError, match="positional"):
        SpatialCorrelationSampler(1, 9, 1, 0, 1, 1, 0)


def test_the_module_says_what_it_was_made_with():
    want = "SpatialCorrelationSampler(kernel_size=1, patch_size=9, stride=1, padding=0, dilation=1, dilation_patch=1)"
    assert repr(SpatialCorrelationSampler(1, 9)) == want
    names = {"SpatialCorrelationSampler": SpatialCorrelationSampler, "torch": torch}
    again = eval(repr(SpatialCorrelationSampler(**ALL)), names)
    assert {name: getattr(again, name) for name in ALL} == ALL


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))], ids=["deepcopy", "pickle"])
def test_copies_of_the_module_are_alike(copied):
    module = SpatialCorrelationSampler(**ALL)
    other = copied(torch.nn.Sequential(module))[0]
    assert repr(other) == repr(module)
    x1, x2, _ = (tensor(x) for x in cases.same((1, 3, 12, 15)).arrays())
    assert torch.equal(other(x1, x2), module(x1, x2))


def test_the_module_has_no_state():
    module = SpatialCorrelationSampler(1, 9)
    assert not [*module.parameters(), *module.buffers(), *module.state_dict()]


@pytest.mark.parametrize("bad", [dict(stride=0), dict(scale=float("nan")), dict(dtype=torch.int8), dict(variant="fast")], ids=str)
def test_the_module_is_refused_when_it_is_made(bad):
    with pytest.raises((TypeError, ValueError), match=next(iter(bad))):
        SpatialCorrelationSampler(**bad)


def test_the_function_and_the_module_have_the_array_functions_arguments():
    ours, module, arrays = (
        inspect.signature(f).parameters for f in (correlate, SpatialCorrelationSampler, cupycorr.spatial_correlation_sample)
    )
    shared = [name for name in arrays if name != "out"]
    assert list(ours) == shared
    assert list(module) == shared[2:]
    for name in shared[2:]:
        assert ours[name].kind == module[name].kind == arrays[name].kind
        assert ours[name].default == module[name].default
        assert name == "precision" or ours[name].default == arrays[name].default


# Errors ----------------------------------------------------------------------------------------------------------------


def torch_twin(arguments):
    """Return the arguments of an array call as tensors, or None where torch has no counterpart."""
    moved = {}
    for name, value in arguments.items():
        if name in ("input1", "input2"):
            if type(value) is not np.ndarray or value.dtype == object or not value.dtype.isnative:
                return None
            if value.dtype.name.startswith("float8"):
                moved[name] = torch.zeros(value.shape, dtype=torch.float8_e4m3fn)
                continue
            value = tensor(value)
        moved[name] = value
    return moved


def told(call, **arguments):
    with pytest.raises((TypeError, ValueError)) as caught:
        call(**arguments)
    return type(caught.value), str(caught.value)


LEGAL_HERE = {"dtype=torch.float32", "precision=None"}
REFUSED = {
    name: (arguments, twin)
    for name, (_, _, arguments) in {**refusals.INPUTS, **refusals.PARAMETERS}.items()
    if name not in LEGAL_HERE and (twin := torch_twin(arguments)) is not None
}
ones = refusals.ones


def test_most_of_the_array_functions_refusals_have_a_torch_twin():
    assert len(REFUSED) > 150


@pytest.mark.parametrize(("arguments", "twin"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_argument_is_refused_in_the_array_functions_words(arguments, twin):
    like = twin.get("input1", torch.ones(refusals.SHAPE))
    mine = {"input1": like, "input2": torch.ones(refusals.SHAPE), "patch_size": 3} | twin
    theirs = {"input1": ones(), "input2": ones(), "patch_size": 3} | arguments
    assert told(correlate, **mine) == told(cupycorr.spatial_correlation_sample, **theirs)


@pytest.mark.parametrize("name", ["input1", "input2"])
@pytest.mark.parametrize("value", [ones(), ones().tolist(), None, 3], ids=["array", "list", "None", "number"])
def test_what_is_no_tensor_is_refused(name, value):
    kind = type(value)
    with pytest.raises(TypeError, match=re.escape(f"{name} must be a torch tensor, got {kind.__module__}.{kind.__qualname__}")):
        correlate(**{"input1": torch.ones(refusals.SHAPE), "input2": torch.ones(refusals.SHAPE), name: value})


NUMBERS = [
    torch.tensor(0.5),
    torch.tensor(0.5, dtype=torch.bfloat16),
    torch.tensor(3),
    torch.nn.Parameter(torch.tensor(0.5), False),
]


@pytest.mark.parametrize("scale", NUMBERS, ids=str)
def test_a_scale_may_be_a_tensor_of_one_number(scale):
    x1, x2, _ = (tensor(x) for x in cases.same((1, 3, 8, 9)).arrays())
    assert torch.equal(correlate(x1, x2, scale=scale), correlate(x1, x2, scale=scale.item()))
    assert torch.equal(SpatialCorrelationSampler(scale=scale)(x1, x2), correlate(x1, x2, scale=scale.item()))


NO_NUMBERS = {
    "learnable": (torch.nn.Parameter(torch.tensor(0.5)), "needs one: multiply the result instead"),
    "an axis": (torch.tensor([0.5]), r"a real number, got a tensor of shape \(1,\) and dtype float32"),
    "bool": (torch.tensor(True), "a real number, got a tensor of shape .* and dtype bool"),
    "complex": (torch.tensor(1j), "a real number, got a tensor of shape .* and dtype complex64"),
    "elsewhere": (torch.tensor(0.5, device="meta"), r"got a tensor on meta: pass scale.item\(\), or multiply the result"),
}


@pytest.mark.parametrize(("scale", "said"), NO_NUMBERS.values(), ids=NO_NUMBERS.keys())
def test_a_tensor_that_is_no_number_is_refused_as_a_scale(scale, said):
    x = torch.ones(1, 1, 2, 2)
    with pytest.raises(TypeError, match=f"scale must be .*{said}"):
        correlate(x, x, scale=scale)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_a_scale_that_a_transform_differentiates_is_refused():
    x, scale = torch.ones(1, 1, 2, 2), torch.tensor(0.5)

    def loss(scale):
        return correlate(x, x, scale=scale).sum()

    for transformed in (lambda: torch.func.grad(loss)(scale), lambda: torch.func.jvp(loss, (scale,), (scale,))):
        with pytest.raises(TypeError, match="needs one: multiply the result instead"):
            transformed()


# Torch says of several of these that they are not finished, or that they will go.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["input1", "input2"])
@pytest.mark.parametrize(("make", "said"), NOT_DENSE.values(), ids=NOT_DENSE.keys())
def test_a_tensor_that_is_not_dense_is_refused_with_the_remedy(make, said, name):
    with pytest.raises(TypeError, match=re.escape(said.format(name, name))):
        correlate(**{"input1": DENSE, "input2": DENSE, name: make()})


def test_a_symbolic_trace_is_refused_with_the_remedy():
    for traced in (SpatialCorrelationSampler(1, 3), lambda input1, input2: correlate(input1, input2)):
        with pytest.raises(TypeError, match=r"input1 must be a torch tensor, got torch.fx.proxy.Proxy: use torch.export"):
            torch.fx.symbolic_trace(traced)


def test_tensors_on_different_devices_are_refused():
    with pytest.raises(ValueError, match="input1 and input2 must be on the same device, got cpu and meta"):
        correlate(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2, device="meta"))


COTANGENTS = {
    "shape": (torch.ones(1, 3, 3, 6, 6), ValueError, "the output's shape (1, 3, 3, 6, 7), got cotangent.shape=(1, 3, 3, 6, 6)"),
    "dtype": (torch.ones(1, 3, 3, 6, 7).double(), TypeError, "the output's dtype float32, got cotangent.dtype=float64"),
    "integers": (
        torch.ones(1, 3, 3, 6, 7).int(),
        TypeError,
        "one of float16, bfloat16, float32, float64, got cotangent.dtype=int32",
    ),
}


@pytest.mark.parametrize(("cotangent", "error", "said"), COTANGENTS.values(), ids=COTANGENTS.keys())
@pytest.mark.parametrize("kind", ["cpu", "meta"])
def test_a_bad_cotangent_is_refused(cotangent, error, said, kind):
    x = torch.ones(refusals.SHAPE, device=kind)
    with pytest.raises(error, match=re.escape(said)):
        torch.ops.cupycorr.spatial_correlation_sample_vjp(cotangent.to(kind), x, x, [True, True], patch_size=[3, 3])


@pytest.mark.parametrize("kind", ["cpu", "meta"])
@pytest.mark.parametrize(
    "bad", [dict(stride=[0, 1]), dict(scale=float("inf")), dict(precision="low"), dict(variant="fast")], ids=str
)
def test_the_bare_operator_checks_everything_too(bad, kind):
    x = torch.ones(refusals.SHAPE, device=kind)
    with pytest.raises(ValueError, match=next(iter(bad))):
        torch.ops.cupycorr.spatial_correlation_sample(x, x, **bad)


@pytest.mark.parametrize("variant", ["direct", "box"])
def test_a_variant_of_the_other_device_is_refused_with_the_reason(variant):
    x = torch.ones(refusals.SHAPE)
    with pytest.raises(NotImplementedError, match=f"{variant}: input is a NumPy array, needs a CuPy array"):
        correlate(x, x, variant=variant)


def test_an_array_function_given_a_tensor_points_here():
    with pytest.raises(TypeError, match=re.escape("cupycorr.torch.spatial_correlation_sample")):
        cupycorr.spatial_correlation_sample(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))


# Importing -------------------------------------------------------------------------------------------------------------


def run(program):
    root = Path(cupycorr.__file__).resolve().parents[1]
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, cwd=root, check=True
    ).stdout


def test_without_torch_the_pip_command_is_named():
    program = """
import sys
sys.modules["torch"] = None
import cupycorr
try:
    import cupycorr.torch
except ModuleNotFoundError as error:
    print(error.name, error)
"""
    assert run(program).strip() == 'torch cupycorr.torch needs torch: pip install "cupycorr[torch]"'


def test_importing_the_package_does_not_import_torch():
    assert run("import sys, cupycorr, cupycorr.cli; print('torch' in sys.modules)").strip() == "False"


def test_what_equality_cannot_tell_apart_is_not_looked_up():
    x = torch.ones(1, 1, 3, 3)
    assert correlate(x, x, patch_size=1).shape == (1, 1, 1, 3, 3)
    for value in (True, 1.0):
        with pytest.raises(TypeError, match=f"patch_size={value}"):
            correlate(x, x, patch_size=value)
    for equal in ((1, True, 1.0), ((1, 2), (True, 2), (1, 2.0))):
        assert len({types_of((value,)) for value in equal}) == len(equal)
