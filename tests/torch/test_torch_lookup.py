"""The torch operator of lookups computes what the array function computes, and refuses what it refuses."""

import inspect
import re
import sys

import lookup_refusals
import numpy as np
import pytest
import torch
from cases import DTYPES
from layouts import FOR_TENSORS, channels_last
from lookup_cases import ALL, CPU_VARIANTS, NAMED, Case
from lookup_in_torch import answer, check, joined, names, tensors_of, written_out
from tensors import DENSE, NOT_DENSE, array, tensor
from watched import watched

import cupycorr
from cupycorr import _dispatch
from cupycorr._cpu import workers
from cupycorr._dispatch import VJP
from cupycorr._lookup.variants import OPERATOR
from cupycorr.torch import _tensors, correlation_lookup

op, vjp_op = torch.ops.cupycorr.correlation_lookup, torch.ops.cupycorr.correlation_lookup_vjp
PYRAMID = Case((2, 9, 7, 8), [(2, 9, 7, 8), (2, 9, 3, 4)], (2, 2, 7, 8), dict(patch_size=(3, 4), order="dx", scale=0.25))
PATCHES = NAMED["edges of patches"]
SOME = {
    "pyramid": PYRAMID,
    "indices": PATCHES,
    "lookups of each pixel": NAMED["lookups of each pixel"],
    "stereo": NAMED["stereo"],
}
some = pytest.mark.parametrize("case", SOME.values(), ids=SOME.keys())


@pytest.fixture
def told(monkeypatch):
    """The requests that are run, with their arrays; the definition runs them."""
    seen = []
    (row,) = OPERATOR.named("reference")
    monkeypatch.setattr(OPERATOR, "variants", (watched(row, lambda *run: seen.append(run)),))
    _dispatch._planned.cache_clear()
    yield seen
    _dispatch._planned.cache_clear()


# Values ----------------------------------------------------------------------------------------------------------------


AXES = ("one pixel", "RAFT's order", "pyramid and lookups", "dilated patch", "own rows, tall patch", "one index")
EDGES = ("strange numbers", "wholly outside", "no entries", "no lookups", "no channels")


@pytest.mark.parametrize("name", AXES + EDGES)
def test_named_cases_equal_the_oracle(name, device):
    check(NAMED[name], answer(NAMED[name], device))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_equals_the_oracle(dtype, device):
    check(PATCHES.of(dtype), answer(PATCHES.of(dtype), device))


@pytest.mark.covering(1)
@pytest.mark.parametrize("coords_dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_coordinates_may_be_narrower_than_the_sums(dtype, coords_dtype, device):
    case = Case(PYRAMID.shape1, PYRAMID.shapes2, PYRAMID.coords, PYRAMID.parameters, dtype, coords_dtype)
    check(case, answer(case, device))


@pytest.mark.covering(2)
@pytest.mark.parametrize("variant", [*CPU_VARIANTS, "auto"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [PYRAMID, PATCHES], ids=["pyramid", "indices"])
def test_on_the_cpu_the_bits_are_the_array_functions(case, dtype, variant):
    case = case.of(dtype)
    arrays, more = case.arrays(), case.parameters | dict(variant=variant)
    first, second, third = cupycorr.correlation_lookup_vjp(case.cotangent(), *arrays, **more, needs=ALL)
    want = cupycorr.correlation_lookup(*arrays, **more), first, *(second if isinstance(second, tuple) else [second]), third
    for (name, got), expected in zip(answer(case, variant=variant).items(), want, strict=True):
        assert got.dtype == expected.dtype, name
        assert got.tobytes() == expected.tobytes(), name


@some
def test_the_formula_in_torchs_operations_agrees_with_the_oracle(case):
    """Derivatives of the operator are compared with those of this formula."""
    case = case.of("float64")
    x1, maps, coords, parameters = tensors_of(case)
    inputs = [x.requires_grad_() for x in (x1, *maps, coords)]
    out = written_out(x1, joined(case, maps), coords, **parameters)
    gradients = torch.autograd.grad(out, inputs, tensor(case.cotangent()))
    check(case, dict(zip(names(case), map(array, (out, *gradients)), strict=True)))


def test_the_same_inputs_give_the_same_bits(device):
    first, second = answer(PATCHES, device), answer(PATCHES, device)
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_a_tuple_is_a_pyramid_and_one_map_is_none(device):
    x1, maps, coords, _ = tensors_of(PYRAMID, device)
    whole = correlation_lookup(x1, tuple(maps), coords, 3)
    assert torch.equal(correlation_lookup(x1, maps, coords, 3), whole)
    assert torch.equal(correlation_lookup(x1, maps[0], coords, 3), correlation_lookup(x1, maps[:1], coords, 3)[:, 0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_halves_are_rounded_once_to_the_dtype_asked_for(dtype, device):
    case = PYRAMID.of(dtype)
    x1, maps, coords, parameters = tensors_of(case, device)
    wide = correlation_lookup(x1, maps, coords, **parameters, dtype=torch.float32)
    assert wide.dtype == torch.float32
    assert torch.equal(wide.to(x1.dtype), correlation_lookup(x1, maps, coords, **parameters))
    assert (wide - wide.to(x1.dtype)).abs().max() > 0


def test_without_ml_dtypes_bfloat16_has_the_same_bits(monkeypatch):
    case = Case(PYRAMID.shape1, PYRAMID.shapes2, PYRAMID.coords, PYRAMID.parameters, "bfloat16", "bfloat16")
    want = answer(case)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    monkeypatch.setattr(_tensors, "_numpy_dtype", _tensors._numpy_dtype.__wrapped__)  # as a process that never found it
    x1, maps, coords, parameters = tensors_of(case)
    x1.requires_grad_(), coords.requires_grad_()
    out = correlation_lookup(x1, maps, coords, **parameters)
    g = torch.from_numpy(case.cotangent().view(np.int16)).view(torch.bfloat16)
    got = (out, *torch.autograd.grad(out, (x1, coords), g))
    for name, result in zip(("output", "gradient of input1", "gradient of coords"), got, strict=True):
        assert array(result).tobytes() == want[name].tobytes(), name


def test_at_the_pixel_grid_it_is_the_first_operator(device):
    case = Case((2, 5, 9, 11), (2, 5, 9, 11), (2, 2, 9, 11), dict(patch_size=(3, 4)), "float64", noise=0.0)
    x1, (x2,), grid, parameters = tensors_of(case, device)
    fixed = cupycorr.torch.spatial_correlation_sample(x1, x2, patch_size=(3, 4))
    torch.testing.assert_close(correlation_lookup(x1, x2, grid, **parameters), fixed, rtol=1e-12, atol=1e-12)


# Memory ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", FOR_TENSORS.values(), ids=FOR_TENSORS.keys())
def test_strides_are_taken_as_they_are(layout, device):
    case = Case((2, 8, 7, 8), [(2, 8, 7, 8), (2, 8, 3, 4)], (2, 2, 7, 8), dict(patch_size=(3, 4)))
    x1, maps, coords, parameters = tensors_of(case, device)
    laid = [layout(x) for x in (x1, *maps, coords)]  # one of the layouts repeats the first image
    inputs = [x.detach().requires_grad_() for x in laid]
    plain = [x.detach().contiguous().requires_grad_() for x in laid]
    g = tensor(case.cotangent(), device)
    got, want = (
        [out := correlation_lookup(a, b, c, **parameters), *torch.autograd.grad(out, (a, *b, c), g)]
        for a, *b, c in (inputs, plain)
    )
    for name, one, other in zip(names(case), got, want, strict=True):
        maps_are_last = name not in ("output", "gradient of coords") and layout is channels_last and device == "cpu"
        assert one.is_contiguous(memory_format=torch.channels_last if maps_are_last else torch.contiguous_format), name
        assert torch.equal(one, other) if device == "cpu" else torch.allclose(one, other, 1e-4, 1e-4), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_cpu_tensors_reach_the_backend_without_a_copy(dtype, told):
    x1, maps, coords, parameters = tensors_of(PATCHES.of(dtype))
    out = correlation_lookup(x1[..., ::2], maps, coords[..., ::2], **parameters)
    given = [x1, *maps, coords, parameters["index1"], parameters["index2"], out]
    ((_, arrays),) = told
    assert [a.ctypes.data for a in arrays.values()] == [x.data_ptr() for x in given]
    assert [a.dtype.name for a in arrays.values()] == [str(x.dtype).removeprefix("torch.") for x in given]


def test_the_layouts_of_a_request_on_a_gpu_are_those_of_every_tensor(monkeypatch):
    x1, maps, coords, parameters = tensors_of(PATCHES)
    monkeypatch.setattr(_tensors, "on_gpu", lambda tensor: True)
    given = [x1.to(memory_format=torch.channels_last), *maps, coords, *(parameters[f"index{k}"] for k in (1, 2))]
    layouts = _tensors.layouts(*given)
    assert [(each.dtype, each.shape) for each in layouts] == [(str(x.dtype)[6:], tuple(x.shape)) for x in given]
    assert [each.strides for each in layouts] == [tuple(x.stride()) for x in given]


# What torch does with tensors ------------------------------------------------------------------------------------------


def test_inference_mode(device):
    x1, maps, coords, parameters = tensors_of(PYRAMID, device)
    want = correlation_lookup(x1, maps, coords, **parameters)
    with torch.inference_mode():
        out = correlation_lookup(x1 * 1, maps, coords, **parameters)
    assert out.is_inference()
    assert torch.equal(out, want)


@pytest.mark.parametrize("case", [PYRAMID, PATCHES, NAMED["lookups of each pixel"]], ids=["pyramid", "indices", "lookups"])
def test_meta_tensors_have_the_shape_and_no_data(case):
    x1, maps, coords, parameters = tensors_of(case, "meta")
    inputs = [x.requires_grad_() for x in (x1, *maps, coords)]
    out = correlation_lookup(x1, joined(case, maps), coords, **parameters, dtype=torch.float64)
    assert (out.device.type, out.dtype, tuple(out.shape)) == ("meta", torch.float64, case.cotangent().shape)
    gradients = torch.autograd.grad(out, inputs, torch.empty_like(out))
    facts = [[(x.shape, x.dtype, x.device) for x in some] for some in (gradients, inputs)]
    assert facts[0] == facts[1]


def test_tensors_with_the_neg_bit_have_their_right_values(device):
    x1, maps, coords, parameters = tensors_of(PYRAMID, device)
    negated = [torch.complex(torch.zeros_like(x), -x).conj().imag for x in (x1, *maps, coords)]
    assert all(x.is_neg() for x in negated)
    got = correlation_lookup(negated[0], negated[1:-1], negated[-1], **parameters)
    assert torch.equal(got, correlation_lookup(x1, maps, coords, **parameters))


def test_parameters_and_tensors_of_a_subclass_are_tensors(device):
    x1, maps, coords, parameters = tensors_of(PYRAMID, device)
    marked = type("Marked", (torch.Tensor,), {})
    out = correlation_lookup(torch.nn.Parameter(x1), [x.as_subclass(marked) for x in maps], coords, **parameters)
    assert torch.equal(out.as_subclass(torch.Tensor), correlation_lookup(x1, maps, coords, **parameters))


@pytest.mark.parametrize(
    "needs", [(True, False, False, False), (False, False, True, False), (False, False, False, True), (True,) * 4]
)
def test_only_the_gradients_that_are_needed_are_computed(needs, told):
    x1, maps, coords, parameters = tensors_of(PYRAMID)
    inputs = [x.requires_grad_(needed) for x, needed in zip((x1, *maps, coords), needs, strict=True)]
    correlation_lookup(x1, maps, coords, **parameters).backward(tensor(PYRAMID.cotangent()))
    (request, arrays) = told[-1]
    assert (request.pass_name, request.needs) == (VJP, needs)
    assert sum(name.startswith("gradient") for name in arrays) == sum(needs)
    assert [x.grad is not None for x in inputs] == list(needs)


# What the gradient of input1 is differentiated by, and the passes that compute that derivative, with the gradients they compute.
SECOND = {
    "cotangent": (0, ["forward"]),
    "input1": (1, []),
    "a level": (2, [(False, True, False, False)]),
    "coords": (4, [(False, False, False, True)]),
}


@pytest.mark.parametrize(("by", "want"), SECOND.values(), ids=SECOND.keys())
def test_second_derivatives_compute_only_what_is_needed(by, want, told):
    x1, maps, coords, _ = tensors_of(PYRAMID)
    inputs = [tensor(PYRAMID.cotangent()), x1, *maps, coords]
    inputs[by].requires_grad_()
    g, a, *b, c = inputs
    first, *_ = vjp_op(g, a, b, c, [True, True, True, False], patch_size=[3, 4], order="dx")
    told.clear()
    torch.autograd.grad(first.sum(), inputs[by], allow_unused=True)
    assert [request.needs if request.pass_name == VJP else request.pass_name for request, _ in told] == want


def test_the_corners_around_coordinates_have_no_derivative_and_none_is_computed(told):
    x1, maps, coords, _ = tensors_of(PYRAMID)
    g = tensor(PYRAMID.cotangent()).requires_grad_()
    coords.requires_grad_()
    *_, slope = vjp_op(g, x1, maps, coords, [False, False, False, True], patch_size=[3, 4], order="dx")
    (to_g,) = torch.autograd.grad(slope.sum(), g, create_graph=True)
    told.clear()
    torch.autograd.grad(to_g.sum(), coords)
    assert told == []


@pytest.mark.parametrize("number", [1, 2])
def test_a_call_wishes_for_as_many_threads_as_torch_has(number, monkeypatch):
    seen = []
    monkeypatch.delenv("CUPYCORR_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (row,) = OPERATOR.named("reference")
    monkeypatch.setattr(OPERATOR, "variants", (watched(row, lambda *_: seen.append(workers.thread_count())),))
    _dispatch._planned.cache_clear()
    ceiling, before = workers.thread_count(), torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        answer(PYRAMID)
    finally:
        torch.set_num_threads(before)
        _dispatch._planned.cache_clear()
    assert seen == [min(number, ceiling)] * 2


def test_an_unneeded_gradient_is_an_empty_tensor_of_the_operator():
    x1, maps, coords, _ = tensors_of(PYRAMID)
    g = tensor(PYRAMID.cotangent())
    found = vjp_op(g, x1, maps, coords, [False, False, True, False], patch_size=[3, 4], order="dx", scale=0.25)
    assert [tuple(x.shape) for x in found] == [(0,), (0,), tuple(maps[1].shape), (0,)]


# Errors ----------------------------------------------------------------------------------------------------------------


def test_the_function_has_the_array_functions_arguments():
    ours, arrays = (inspect.signature(f).parameters for f in (correlation_lookup, cupycorr.correlation_lookup))
    assert list(ours) == [name for name in arrays if name != "out"]
    for name, parameter in ours.items():
        assert parameter.kind == arrays[name].kind
        assert name == "precision" or parameter.default == arrays[name].default


def test_the_schemas_defaults_are_the_functions(device):
    x1, maps, coords, _ = tensors_of(PYRAMID, device)
    assert torch.equal(op(x1, maps, coords), correlation_lookup(x1, maps, coords))


def twin(value):
    """Return an argument of the array function as one of the torch function; `NotImplemented` where torch has no counterpart."""
    if isinstance(value, (list, tuple)) and value and any(isinstance(each, np.ndarray) for each in value):
        levels = [twin(each) for each in value]
        return NotImplemented if any(each is NotImplemented for each in levels) else type(value)(levels)
    if not isinstance(value, np.ndarray):
        return value
    if type(value) is not np.ndarray or not value.dtype.isnative:
        return NotImplemented
    return tensor(value)


REFUSED = {
    name: (error, says, given)
    for name, (error, says, arguments) in lookup_refusals.EVERYWHERE.items()
    if "NumPy or CuPy" not in says
    and "pass {" not in says
    and not any(isinstance(value, torch.Tensor) for value in arguments.values())
    and NotImplemented not in (given := {key: twin(value) for key, value in arguments.items()}).values()
}


def test_most_of_the_array_functions_refusals_have_a_torch_twin():
    assert len(REFUSED) > 70


def valid():
    return {name: twin(value) for name, value in lookup_refusals.valid().items()}


@pytest.mark.parametrize("kind", ["cpu", "meta"])
@pytest.mark.parametrize(("error", "says", "arguments"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bad_argument_is_refused_in_the_array_functions_words(error, says, arguments, kind):
    if error is IndexError and kind == "meta":
        pytest.skip("there are no values")
    if "dtype" in arguments:
        says = "dtype must be one of float16, bfloat16, float32, float64, got dtype="
    given = torch.utils._pytree.tree_map_only(torch.Tensor, lambda x: x.to(kind), {**valid(), **arguments})
    with pytest.raises(error, match=re.escape(says)) as caught:
        correlation_lookup(**given)
    assert type(caught.value) is error


@pytest.mark.parametrize("name", ["input1", "input2", "coords", "index1", "index2"])
@pytest.mark.parametrize("value", [np.ones((2, 4, 6, 7)), 3, "frame.png"], ids=["array", "number", "string"])
def test_what_is_no_tensor_is_refused(name, value):
    kind = type(value)
    or_list = " or a list or tuple of them" if name == "input2" else ""
    said = f"{name} must be a torch tensor{or_list}, got {kind.__module__}.{kind.__qualname__}"
    with pytest.raises(TypeError, match=re.escape(said)):
        correlation_lookup(**{**valid(), name: value})


def test_a_level_that_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match=re.escape("input2[1] must be a torch tensor, got builtins.NoneType")):
        correlation_lookup(**{**valid(), "input2": [torch.ones(lookup_refusals.SHAPE), None]})


# Torch says of several of these that they are not finished, or that they will go.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["input1", "input2", "input2[1]", "coords"])
@pytest.mark.parametrize(("make", "said"), NOT_DENSE.values(), ids=NOT_DENSE.keys())
def test_a_tensor_that_is_not_dense_is_refused_with_the_remedy(make, said, name):
    given = {"input2": [DENSE, make()]} if name == "input2[1]" else {name: make()}
    with pytest.raises(TypeError, match=re.escape(said.format(name, name))):
        correlation_lookup(**{"input1": DENSE, "input2": DENSE, "coords": DENSE, **given})


@pytest.mark.parametrize("name", ["input2", "coords", "index1", "index2"])
def test_tensors_on_different_devices_are_refused(name):
    given = {**valid(), "index1": torch.zeros(2, dtype=torch.int64), "index2": torch.zeros(2, dtype=torch.int32)}
    with pytest.raises(ValueError, match=f"input1 and {name} must be on the same device, got cpu and meta"):
        correlation_lookup(**{**given, name: given[name].to("meta")})


def test_a_scale_may_be_a_tensor_of_one_number_that_needs_no_gradient():
    x1, maps, coords, _ = tensors_of(PYRAMID)
    scale = torch.tensor(0.5)
    assert torch.equal(correlation_lookup(x1, maps, coords, scale=scale), correlation_lookup(x1, maps, coords, scale=0.5))
    with pytest.raises(TypeError, match=r"scale must be a number, .*needs one: multiply the result instead"):
        correlation_lookup(x1, maps, coords, scale=torch.nn.Parameter(scale))


def test_a_symbolic_trace_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"input1 must be a torch tensor, got torch.fx.proxy.Proxy: use torch.export"):
        torch.fx.symbolic_trace(lambda input1, input2, coords: correlation_lookup(input1, input2, coords))


BAD_OF_VJP = {
    "shape": (dict(cotangent=torch.ones(2, 2, 3, 3, 6, 7)), ValueError, "cotangent must have the output's shape (2, 3, 3, 6, 7)"),
    "dtype": (dict(cotangent=torch.ones(2, 3, 3, 6, 7).double()), TypeError, "cotangent must have the output's dtype float32"),
    "needs": (
        dict(needs=[True] * 4),
        ValueError,
        "needs must be a bool for input1, one for each of 1 levels, and one for coords",
    ),
    "maps": (dict(input2=[torch.ones(2, 4, 6, 7)] * 2), ValueError, "input2 must be one map unless pyramid is True, got 2 maps"),
}


@pytest.mark.parametrize("kind", ["cpu", "meta"])
@pytest.mark.parametrize(("bad", "error", "said"), BAD_OF_VJP.values(), ids=BAD_OF_VJP.keys())
def test_a_bad_argument_of_the_gradients_is_refused(bad, error, said, kind):
    given = dict(cotangent=torch.ones(2, 3, 3, 6, 7), **valid(), needs=[True] * 3, pyramid=False) | dict(patch_size=[3, 3])
    given = {**given, "input2": [given["input2"]], **bad}
    with pytest.raises(error, match=re.escape(said)):
        vjp_op(**torch.utils._pytree.tree_map_only(torch.Tensor, lambda x: x.to(kind), given))


@pytest.mark.parametrize("kind", ["cpu", "meta"])
@pytest.mark.parametrize(
    "bad",
    [dict(level_step=[0, 1]), dict(order="yx"), dict(scale=float("inf")), dict(precision="low"), dict(variant="fast")],
    ids=str,
)
def test_the_bare_operator_checks_everything_too(bad, kind):
    x, coords = torch.ones(1, 1, 2, 2, device=kind), torch.ones(1, 2, 2, 2, device=kind)
    with pytest.raises(ValueError, match=next(iter(bad))):
        op(x, [x], coords, **bad)


@pytest.mark.parametrize("name", ["index1", "index2"])
def test_a_wrong_index_is_refused_by_the_gradients_too(name):
    given = valid()
    indices = {name: torch.tensor([0, 2])}
    with pytest.raises(IndexError, match=re.escape(f"{name} must be from 0 to 1, got {name}[1]=2")):
        vjp_op(
            torch.ones(2, 1, 3, 3, 6, 7),
            given["input1"],
            [given["input2"]],
            given["coords"],
            [True] * 3,
            **indices,
            patch_size=[3, 3],
        )


def test_what_equality_cannot_tell_apart_is_not_looked_up():
    given = valid()
    assert correlation_lookup(**{**given, "patch_size": 1}).shape == (2, 1, 1, 6, 7)
    for value in (True, 1.0):
        with pytest.raises(TypeError, match=f"patch_size={value}"):
            correlation_lookup(**{**given, "patch_size": value})
