"""Bad input of the lookup in a volume is refused before anything is computed, with the argument and the value in the message."""

import numpy as np
import pytest
import result_refusals
import torch
from fake_cupy import on_cupy
from result_refusals import bad_cotangents, bad_outputs
from volume_cases import CPU_VARIANTS

from cupycorr import _dispatch, explain_volume_lookup, volume_lookup, volume_lookup_vjp
from cupycorr._volume_lookup.variants import OPERATOR

SHAPE, COORDS, OUT = (2, 4, 5, 6, 7), (2, 2, 4, 5), (2, 3, 3, 4, 5)
STEREO = dict(volume=np.ones((2, 4, 5, 7), np.float32), coords=np.ones((2, 1, 4, 5), np.float32))


def ones(shape=SHAPE, dtype=np.float32):
    return np.ones(shape, dtype)


def valid():
    return dict(volume=ones(), coords=ones(COORDS), patch_size=3)


RANKS = "volume must have 5 dimensions (E, H, W, H2, W2) or 4 dimensions (E, H, W1, W2), got volume.shape="
PAIR = "{name} must be an int or a (vertical, horizontal) pair of ints, got {name}={value!r}"
ONLY_INT = "{name} must be an int for a volume of one dimension (E, H, W1, W2), got {name}={value!r}"
TENSOR = (
    "pass {name}.detach().numpy() from a CPU, cupy.from_dlpack({name}.detach()) from a GPU"
    "; for tensors there is cupycorr.torch.volume_lookup"
)

SHAPES = {
    "volume of rank 3": (ValueError, f"{RANKS}(4, 6, 7)", dict(volume=ones((4, 6, 7)))),
    "volume of rank 6": (ValueError, f"{RANKS}(1, 2, 4, 5, 6, 7)", dict(volume=ones((1, *SHAPE)))),
    **{
        f"no axis {axis}": (
            ValueError,
            f"volume must have sizes of at least 1 after its first axis, got volume.shape={shape}",
            dict(volume=ones(shape), coords=ones((2, 2, *shape[1:3]))),
        )
        for axis in (1, 2, 3, 4)
        for shape in (tuple(0 if each == axis else size for each, size in enumerate(SHAPE)),)
    },
    "a stereo volume without columns": (
        ValueError,
        "volume must have sizes of at least 1 after its first axis, got volume.shape=(2, 4, 5, 0)",
        dict(STEREO, volume=ones((2, 4, 5, 0))),
    ),
    "coords of rank 5": (
        ValueError,
        "coords must have 4 dimensions (E, 2, H, W), got coords.shape=(2, 1, 2, 4, 5), volume.shape=(2, 4, 5, 6, 7)",
        dict(coords=ones((2, 1, 2, 4, 5))),
    ),
    "coords of rank 3 for stereo": (
        ValueError,
        "coords must have 4 dimensions (E, 1, H, W1), got coords.shape=(2, 4, 5)",
        dict(STEREO, coords=ones((2, 4, 5))),
    ),
    "one channel for two dimensions": (
        ValueError,
        "coords must have 2 channels (x, y) for a volume of 5 dimensions, got coords.shape=(2, 1, 4, 5)",
        dict(coords=ones((2, 1, 4, 5))),
    ),
    "two channels for one dimension": (
        ValueError,
        "coords must have 1 channel (x) for a volume of 4 dimensions, got coords.shape=(2, 2, 4, 5)",
        dict(STEREO, coords=ones(COORDS)),
    ),
    **{
        f"coords of {shape}": (
            ValueError,
            f"coords must have the entries, the height and the width of the volume, got coords.shape={shape}",
            dict(coords=ones(shape)),
        )
        for shape in ((1, 2, 4, 5), (2, 2, 3, 5), (2, 2, 4, 6))
    },
}

FOREIGN = np.dtype(np.float32).newbyteorder("S")

ELEMENTS = {
    "volume of integers": (
        TypeError,
        "volume must be one of float16, bfloat16, float32, float64, got volume.dtype=int32",
        dict(volume=ones(dtype=np.int32)),
    ),
    "volume in foreign byte order": (TypeError, "volume must be in native byte order", dict(volume=ones(dtype=FOREIGN))),
    "coords of integers": (TypeError, "coords must be one of float16", dict(coords=ones(COORDS, np.int64))),
    "coords wider than the sums": (
        TypeError,
        "coords must not be wider than the float32 accumulator, got coords.dtype=float64, volume.dtype=float16",
        dict(volume=ones(dtype=np.float16), coords=ones(COORDS, np.float64)),
    ),
}

KINDS = {
    f"{name} is a {what}": (TypeError, says.format(name=name), {name: value})
    for name, shape in (("volume", SHAPE), ("coords", COORDS))
    for what, value, says in (
        ("string", "volume.npy", "{name} must be a NumPy or CuPy array"),
        ("torch tensor", torch.zeros(shape), TENSOR),
        ("masked array", np.ma.masked_greater(ones(shape), 2), "{name} must not be a masked array, whose mask would be lost"),
    )
} | {
    "coords on a GPU": (
        TypeError,
        "coords must be of the inputs' kind, got coords on cupy and inputs on numpy",
        dict(coords=on_cupy(ones(COORDS))),
    )
}

SIZES = {
    f"{name}={value!r}{' of stereo' if arguments else ''}": (
        error,
        says.format(name=name, value=value),
        {**arguments, name: value},
    )
    for name in ("patch_size", "dilation_patch")
    for error, says, values, arguments in (
        (TypeError, PAIR, (1.0, True, "3", None, (3, 1.0)), {}),
        (ValueError, PAIR, ((), (1,), (1, 2, 3)), {}),
        (ValueError, "{name} must be at least 1, got {name}={value!r}", (0, -1, (1, 0)), {}),
        (ValueError, "{name} must fit into 64 bits", (2**63,), {}),
        (TypeError, ONLY_INT, (1.0, True, (1, 3), [3]), STEREO),
        (ValueError, "{name} must be at least 1, got {name}={value!r}", (0, -2), STEREO),
    )
    for value in values
}

CHOICES = {
    "patch too far": (ValueError, "patch_size times dilation_patch must be at most 2147483648", dict(dilation_patch=(1, 2**30))),
    **{f"order={value!r}": (ValueError, "order must be 'dy' or 'dx'", dict(order=value)) for value in ("yx", None, ["dy"])},
    "scale is a string": (TypeError, "scale must be a real number, got scale='2'", dict(scale="2")),
    "scale is not finite": (ValueError, "scale must be finite, got scale=nan", dict(scale=np.nan)),
    "scale beyond the sums": (ValueError, "scale must be representable in the float32 accumulator", dict(scale=1e39)),
    "dtype": (TypeError, "dtype must be one of float16, bfloat16, float32, float64, got dtype='int8'", dict(dtype="int8")),
    "variant": (ValueError, "variant must be 'auto' or one of '", dict(variant="fast")),
}

EVERYWHERE = {**SHAPES, **ELEMENTS, **KINDS, **SIZES, **CHOICES}


@pytest.fixture(autouse=True)
def nothing_may_run(monkeypatch):
    monkeypatch.setattr(_dispatch, "choose", lambda *_: pytest.fail("a variant was chosen"))


def refused(function, error, says, arguments):
    result_refusals.refused(function, error, says, {**valid(), **arguments})


FUNCTIONS = {
    "forward": volume_lookup,
    "vjp": lambda **arguments: volume_lookup_vjp(ones(OUT), **arguments),
    "explain": explain_volume_lookup,
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize(("error", "says", "arguments"), EVERYWHERE.values(), ids=EVERYWHERE)
def test_bad_input_is_refused(monkeypatch, function, error, says, arguments):
    if "variant" in arguments:
        monkeypatch.undo()  # the choice refuses it
    refused(function, error, says, arguments)


OUTPUTS, COTANGENTS = bad_outputs(OUT), bad_cotangents(OUT)


@pytest.mark.parametrize(("error", "says", "arguments"), OUTPUTS.values(), ids=OUTPUTS)
def test_a_bad_array_for_the_output_is_refused(error, says, arguments):
    refused(volume_lookup, error, says, arguments)


@pytest.mark.parametrize(("error", "says", "cotangent", "arguments"), COTANGENTS.values(), ids=COTANGENTS)
def test_a_bad_cotangent_is_refused(error, says, cotangent, arguments):
    refused(lambda **given: volume_lookup_vjp(cotangent, **given), error, says, arguments)


@pytest.mark.parametrize("needs", [True, (True,), (1, 0), "no", None, [True] * 3], ids=repr)
def test_needs_must_be_two_bools(needs):
    says = f"needs must be a pair of bools, got needs={needs!r}"
    refused(lambda **given: volume_lookup_vjp(ones(OUT), **given), TypeError, says, dict(needs=needs))


@pytest.mark.parametrize("gradients", [(True,), 1, "yes"], ids=repr)
def test_gradients_to_explain_must_be_a_bool_or_two(gradients):
    says = f"gradients must be a bool or a pair of bools, got gradients={gradients!r}"
    refused(explain_volume_lookup, TypeError, says, dict(gradients=gradients))


@pytest.mark.parametrize("variant", CPU_VARIANTS)
def test_a_variant_of_the_cpu_refuses_cupy_arrays(variant):
    request = _dispatch.Request("forward", None, "float32", "float32")
    (row,) = OPERATOR.named(variant)
    assert row.why_not_at(_dispatch.Place("cupy", None), request) == "input is a CuPy array, needs a NumPy array"
