"""The lookup in a volume as a torch operator: values, derivatives of any order, transforms, graphs, and refusals."""

import inspect
import re
from functools import partial

import numpy as np
import pytest
import torch
import volume_oracle
from cases import DTYPES
from lookup_oracle import assert_close
from tensors import array, tensor
from torch import func
from volume_cases import CPU_VARIANTS, NAMED

import cupycorr
from cupycorr.torch import volume_lookup as lookup

op = torch.ops.cupycorr.volume_lookup
vjp_op = torch.ops.cupycorr.volume_lookup_vjp


def answer(case, device="cpu", **more):
    """Return the output and the gradients of the volume and of coords as arrays."""
    volume, coords = (tensor(x, device).requires_grad_() for x in case.arrays())
    out = lookup(volume, coords, **case.parameters, **more)
    assert (out.is_contiguous(), out.dtype, out.device) == (True, volume.dtype, volume.device)
    out.backward(tensor(case.cotangent(), device))
    return [array(value) for value in (out, volume.grad, coords.grad)]


# Values -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", NAMED.values(), ids=NAMED)
def test_named_lookups_equal_the_oracle(case, device):
    arrays = case.arrays()
    wanted = volume_oracle.forward(*arrays, **case.parameters), *volume_oracle.vjp(case.cotangent(), *arrays, **case.parameters)
    names = ("output", "gradient of the volume", "gradient of coords")
    for name, got, want in zip(names, answer(case, device), wanted, strict=True):
        assert_close(got, want, accumulator=arrays[0].dtype, name=name)


@pytest.mark.covering(2)
@pytest.mark.parametrize("variant", [*CPU_VARIANTS, "auto"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["DROID's order", "stereo"])
def test_on_the_cpu_the_bits_are_the_array_functions(name, dtype, variant):
    case = NAMED[name].of(dtype)
    arrays = case.arrays()
    out = cupycorr.volume_lookup(*arrays, **case.parameters, variant=variant)
    gradients = cupycorr.volume_lookup_vjp(case.cotangent(), *arrays, **case.parameters, variant=variant, needs=(True, True))
    for got, want in zip(answer(case, variant=variant), (out, *gradients), strict=True):
        assert got.tobytes() == want.tobytes()


def test_strides_are_taken_as_they_are(device):
    case = NAMED["DROID's order"]
    volume, coords = (tensor(x, device) for x in case.arrays())
    want = lookup(volume, coords, **case.parameters)
    laid = volume.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2)
    channels_last = coords.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(lookup(laid, channels_last, **case.parameters), want)
    padded = torch.nn.functional.pad(volume, (1, 2, 3, 4), value=float("nan"))
    assert torch.equal(lookup(padded[..., 3:-4, 1:-2], coords, **case.parameters), want)


def test_a_cotangent_that_is_expanded_gives_the_gradients_of_ones(device):
    case = NAMED["DROID's order"]
    volume, coords = (tensor(x, device).requires_grad_() for x in case.arrays())
    out = lookup(volume, coords, **case.parameters)
    want = torch.autograd.grad(out, (volume, coords), torch.ones_like(out), retain_graph=True)
    for got, each in zip(torch.autograd.grad(out.sum(), (volume, coords)), want, strict=True):
        assert torch.equal(got, each)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_no_dtype(dtype, device):
    volume, coords = (tensor(x, device) for x in NAMED["DROID's order"].arrays())
    with torch.autocast(torch.device(device).type, dtype=dtype):
        out = lookup(volume, coords, 3)
    assert torch.equal(out, lookup(volume, coords, 3))
    assert out.dtype == torch.float32


def test_meta_tensors_have_the_shape_and_no_data():
    out = lookup(torch.empty(2, 5, 6, 7, 8, device="meta"), torch.empty(2, 2, 5, 6, device="meta"), (3, 5), order="dx")
    assert (out.shape, out.device.type) == ((2, 5, 3, 5, 6), "meta")


# Derivatives ------------------------------------------------------------------------------------------------------------------

TABLE = {
    "patch": ((1, 1, 2, 3, 4), dict(patch_size=3)),
    "even patch, dx first": ((2, 2, 2, 3, 4), dict(patch_size=(3, 2), order="dx", scale=-0.3)),
    "dilated": ((1, 2, 2, 5, 6), dict(patch_size=(2, 3), dilation_patch=(2, 3))),
    "stereo": ((2, 2, 3, 5), dict(patch_size=3)),
    "stereo, dilated": ((1, 2, 3, 6), dict(patch_size=4, dilation_patch=2, scale=2.0)),
    "variant": ((1, 2, 2, 3, 4), dict(patch_size=3, variant="reference")),
}
table = pytest.mark.parametrize(("shape", "parameters"), TABLE.values(), ids=TABLE)
torchs_own_warning = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")


def draw(shape, device="cpu", dtype=torch.float64, needs=True):
    """Return a volume and coordinates that are not near whole numbers, some of which are outside the slices."""
    generator = torch.Generator().manual_seed(3)
    size = (shape[0], len(shape) - 3, *shape[1:3])
    volume = torch.randn(shape, generator=generator, dtype=torch.float64)
    whole = torch.randint(-2, max(shape[3:]), size, generator=generator)
    coords = whole + 0.1 + 0.8 * torch.rand(size, generator=generator, dtype=torch.float64)
    coords_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return volume.to(device, dtype).requires_grad_(needs), coords.to(device, coords_dtype).requires_grad_(needs)


def on_device(parameters, device):
    return {name: value for name, value in parameters.items() if device == "cpu" or name != "variant"}


@torchs_own_warning
@table
def test_the_first_derivatives_in_both_modes(shape, parameters, device):
    f = partial(lookup, **on_device(parameters, device))
    assert torch.autograd.gradcheck(f, draw(shape, device), check_forward_ad=True, check_batched_grad=True)


@torchs_own_warning
@pytest.mark.parametrize(
    ("shape", "parameters"),
    [pytest.param(*row, id=name, marks=() if name in ("patch", "stereo") else pytest.mark.slow) for name, row in TABLE.items()],
)
def test_the_second_derivatives_in_both_modes(shape, parameters, device):
    f = partial(lookup, **on_device(parameters, device))
    assert torch.autograd.gradgradcheck(f, draw(shape, device), check_fwd_over_rev=True)


def test_third_derivatives(device):
    volume, coords = draw((1, 1, 2, 3, 3), device)

    def second(v, c):
        (first,) = torch.autograd.grad(lookup(v, c, 2).pow(3).sum(), c, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), (v, c), create_graph=True)

    assert torch.autograd.gradcheck(second, (volume, coords))


def test_the_second_derivatives_through_both_gradients_at_once(device):
    volume, coords = draw((1, 2, 2, 3, 4), device)
    g = torch.randn_like(lookup(volume, coords, 3).detach()).requires_grad_()

    def penalty(g, v, c):
        return sum(gradient.pow(2).sum() for gradient in vjp_op(g, v, c, [True, True], [3, 3]))

    assert torch.autograd.gradcheck(penalty, (g, volume, coords))


@pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=["volume", "coords"])
def test_each_input_alone(needs, device):
    inputs = [x.detach().requires_grad_(each) for x, each in zip(draw((1, 2, 2, 3, 4), device), needs, strict=True)]
    assert torch.autograd.gradcheck(partial(lookup, patch_size=3), inputs)
    assert torch.autograd.gradgradcheck(partial(lookup, patch_size=3), inputs)


def test_derivatives_of_coordinates_of_16_bits_are_those_of_their_exact_values(device):
    volume, coords = draw((1, 1, 2, 5000), device, torch.float32)
    narrow = torch.full_like(coords, 4098.0).half()  # its neighbours in half precision are 2 apart

    def slope(c):
        t = torch.ones_like(c)
        return func.jvp(lambda c: lookup(volume.detach(), c, 3), (c,), (t,))[1]

    torch.testing.assert_close(slope(narrow), slope(narrow.float()))
    assert slope(narrow).abs().min() > 0


def test_a_query_that_is_not_finite_makes_only_its_own_derivatives_nan(device):
    volume, coords = draw((1, 2, 2, 3, 4), device, needs=False)
    coords[0, 0, 1, 1] = float("nan")
    (volume.requires_grad_(), coords.requires_grad_())
    gradients = torch.autograd.grad(lookup(volume, coords, 3).square().sum(), (volume, coords), create_graph=True)
    nan = gradients[1].isnan()
    assert nan[0, :, 1, 1].all()
    assert nan.sum() == 2
    assert not gradients[0].isnan().any()


# torch.library's own checks

ARGUMENTS = [[3, 2], [1, 2], "dx", 0.5]
SAMPLES = {
    "plain": ((1, 3, 4, 12, 12), torch.float32, True, []),
    "every parameter": ((2, 2, 2, 3, 4), torch.float64, True, [*ARGUMENTS, torch.float32, "auto"]),
    "stereo": ((2, 3, 4, 6), torch.float32, True, [[1, 5]]),
    "no gradients": ((2, 3, 4, 5, 6), torch.float32, False, ARGUMENTS),
    "halves": ((2, 3, 4, 5, 6), torch.bfloat16, True, ARGUMENTS),
}
samples = pytest.mark.parametrize(
    ("shape", "dtype", "needs", "arguments"),
    [pytest.param(*row, id=name, marks=() if name == "every parameter" else pytest.mark.slow) for name, row in SAMPLES.items()],
)
checks_warning = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@checks_warning
@samples
def test_opcheck_of_the_operator(shape, dtype, needs, arguments, device):
    torch.library.opcheck(op.default, (*draw(shape, device, dtype, needs), *arguments))


@checks_warning
@pytest.mark.parametrize(
    "asked",
    [[True, True], pytest.param([True, False], marks=pytest.mark.slow), pytest.param([False, True], marks=pytest.mark.slow)],
    ids=str,
)
@samples
def test_opcheck_of_its_gradients(shape, dtype, needs, arguments, asked, device):
    inputs = draw(shape, device, dtype, needs)
    g = torch.randn_like(op(*inputs, *arguments).detach()).requires_grad_(needs)
    torch.library.opcheck(vjp_op.default, (g, *inputs, asked, *arguments))


# torch.func -------------------------------------------------------------------------------------------------------------------

measured = partial(lookup, patch_size=(3, 2), scale=0.5)


def loss(volume, coords):
    return measured(volume, coords).pow(3).sum()


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (2, 0), (0, -1)], ids=str)
def test_vmap_over_any_axis_of_either_input(in_dims, device):
    samples = [torch.stack([each + k / 8 for k in range(3)]) for each in draw((2, 2, 3, 4, 5), device, needs=False)]
    given = [x[0] if dim is None else x.movedim(0, dim) for x, dim in zip(samples, in_dims, strict=True)]
    each = [[x[0] if dim is None else x[k] for x, dim in zip(samples, in_dims, strict=True)] for k in range(3)]
    close(func.vmap(measured, in_dims)(*given), torch.stack([measured(*one) for one in each]))
    gradients = zip(*(func.grad(loss, (0, 1))(*one) for one in each), strict=True)
    close(func.vmap(func.grad(loss, (0, 1)), in_dims)(*given), tuple(map(torch.stack, gradients)))


def test_func_jacobians_and_hessians_agree_in_both_modes(device):
    inputs = draw((1, 1, 2, 3, 3), device, needs=False)
    close(func.jacfwd(measured, (0, 1))(*inputs), func.jacrev(measured, (0, 1))(*inputs))
    forward_over_reverse = func.jacfwd(func.jacrev(loss, (0, 1)), (0, 1))(*inputs)
    close(forward_over_reverse, func.jacrev(func.jacrev(loss, (0, 1)), (0, 1))(*inputs))


# Graphs -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_compiled_before():
    torch._dynamo.reset()


def gradients_of(f, volume, coords):
    out = f(volume, coords)
    return out, *torch.autograd.grad(out.square().sum(), (volume, coords))


# In the first shapes no two sizes are equal, and none is the number of channels: torch takes equal sizes for the same symbol.
SIZES = {
    "flow": ([(3, 5, 6, 7, 8), (2, 4, 7, 9, 5), (5, 8, 3, 6, 11)], (3, 4)),
    "stereo": ([(3, 5, 6, 17), (2, 4, 7, 9), (5, 8, 3, 16)], 5),
}


@pytest.mark.parametrize(("shapes", "patch_size"), SIZES.values(), ids=SIZES)
def test_one_graph_serves_all_shapes(nothing_compiled_before, shapes, patch_size, device):
    count = 0

    def backend(graph, inputs):
        nonlocal count
        count += 1
        return graph

    f = partial(lookup, patch_size=patch_size, scale=0.5)
    graph = torch.compile(f, fullgraph=True, dynamic=True, backend=backend)
    for shape in shapes:
        inputs = draw(shape, device, torch.float32)
        for got, want in zip(gradients_of(graph, *inputs), gradients_of(f, *inputs), strict=True):
            assert torch.equal(got, want)
    assert count == 1


def test_output_and_gradients_of_a_whole_graph(nothing_compiled_before, device):
    inputs = draw((2, 5, 6, 7, 8), device, torch.float32)
    graph = torch.compile(measured, fullgraph=True, backend="aot_eager")
    for got, want in zip(gradients_of(graph, *inputs), gradients_of(measured, *inputs), strict=True):
        assert torch.equal(got, want)


class Model(torch.nn.Module):
    def forward(self, volume, coords):
        return lookup(volume, coords, 5, order="dx")


def test_an_exported_model_takes_other_sizes(device):
    names = {"volume": ("e", "h", "w", "h2", "w2"), "coords": ("e", None, "h", "w")}
    dims = {name: torch.export.Dim(name, min=2, max=64) for name in ("e", "h", "w", "h2", "w2")}
    dynamic = {name: {axis: dims[each] for axis, each in enumerate(axes) if each} for name, axes in names.items()}
    exported = torch.export.export(Model(), draw((2, 5, 6, 7, 8), device, torch.float32, False), dynamic_shapes=dynamic)
    other = draw((3, 4, 7, 9, 5), device, torch.float32, False)
    assert torch.equal(exported.module()(*other), Model()(*other))


# Refusals ---------------------------------------------------------------------------------------------------------------------


def test_the_function_has_the_array_functions_arguments():
    found, wanted = (inspect.signature(each).parameters for each in (lookup, cupycorr.volume_lookup))
    defaults = {name: each.default for name, each in wanted.items() if name != "out"}
    assert {name: each.default for name, each in found.items()} == defaults


V, C = torch.zeros(2, 3, 4, 5, 6), torch.zeros(2, 2, 3, 4)
BAD = {
    "volume must be a torch tensor, got numpy.ndarray": (TypeError, dict(volume=np.zeros((2, 3, 4, 5, 6)))),
    "coords must be a torch tensor, got builtins.NoneType": (TypeError, dict(coords=None)),
    "volume must be one of float16, bfloat16, float32, float64, got volume.dtype=int64": (TypeError, dict(volume=V.long())),
    "coords must not be wider than the float32 accumulator": (TypeError, dict(coords=C.double())),
    "volume must have 5 dimensions (E, H, W, H2, W2) or 4 dimensions (E, H, W1, W2)": (ValueError, dict(volume=V[0, 0])),
    "coords must have 2 channels (x, y) for a volume of 5 dimensions": (ValueError, dict(coords=C[:, :1])),
    "coords must have the entries, the height and the width of the volume": (ValueError, dict(coords=C[:1])),
    "patch_size must be at least 1, got patch_size=0": (ValueError, dict(patch_size=0)),
    "patch_size must be an int for a volume of one dimension (E, H, W1, W2), got patch_size=(1, 3)": (
        TypeError,
        dict(volume=V[..., 0], coords=C[:, :1], patch_size=(1, 3)),
    ),
    "order must be 'dy' or 'dx', the patch axis that comes first, got order='yx'": (ValueError, dict(order="yx")),
    "scale must be finite, got scale=nan": (ValueError, dict(scale=float("nan"))),
    "dtype must be one of float16, bfloat16, float32, float64, got dtype=torch.int8": (TypeError, dict(dtype=torch.int8)),
    "variant must be 'auto' or one of": (ValueError, dict(variant="fast")),
    "must be a dense tensor": (TypeError, dict(volume=V.to_sparse())),
    "volume and coords must be on the same device": (ValueError, dict(coords=C.to("meta"))),
}


@pytest.mark.parametrize(("said", "error", "bad"), [(said, *row) for said, row in BAD.items()], ids=BAD)
def test_a_bad_argument_is_refused(said, error, bad):
    with pytest.raises(error, match=re.escape(said)):
        lookup(**{"volume": V, "coords": C, "patch_size": 3, **bad})


@pytest.mark.parametrize("kind", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("cotangent", "error", "said"),
    [
        (torch.zeros(2, 3, 3, 3, 5), ValueError, "cotangent must have the output's shape (2, 3, 3, 3, 4)"),
        (torch.zeros(2, 3, 3, 3, 4).double(), TypeError, "cotangent must have the output's dtype float32"),
    ],
)
def test_a_bad_cotangent_is_refused(cotangent, error, said, kind):
    with pytest.raises(error, match=re.escape(said)):
        vjp_op(cotangent.to(kind), V.to(kind), C.to(kind), [True, True], [3, 3])


def test_the_array_function_given_a_tensor_points_here():
    with pytest.raises(TypeError, match=r"for tensors there is cupycorr\.torch\.volume_lookup"):
        cupycorr.volume_lookup(V, C)
