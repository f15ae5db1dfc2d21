"""Bad input of the lookup: each case is the type of the error, a part of its message, and the arguments of the call."""

import ml_dtypes
import numpy as np
import torch
from fake_cupy import on_cupy

SHAPE, COORDS, OUT = (2, 4, 6, 7), (2, 2, 6, 7), (2, 3, 3, 6, 7)


def ones(shape=SHAPE, dtype=np.float32):
    return np.ones(shape, dtype)


def valid():
    return dict(input1=ones(), input2=ones(), coords=ones(COORDS), patch_size=3)


FOREIGN = np.dtype(np.float32).newbyteorder("S")

MAPS = {
    "input1 of rank 3": (
        ValueError,
        "input1 must have 4 dimensions (N, C, H, W), got input1.shape=(4, 6, 7)",
        dict(input1=ones((4, 6, 7))),
    ),
    "input2 of rank 5": (
        ValueError,
        "input2 must have 4 dimensions (N, C, H, W), got input2.shape=(1, 2, 4, 6, 7)",
        dict(input2=ones((1, *SHAPE))),
    ),
    "a level of rank 2": (ValueError, "input2[1] must have 4 dimensions", dict(input2=[ones(), ones((6, 7))])),
    "input1 without rows": (
        ValueError,
        "input1 must have a height and a width of at least 1, got input1.shape=(2, 4, 0, 7)",
        dict(input1=ones((2, 4, 0, 7)), coords=ones((2, 2, 0, 7))),
    ),
    "a level without columns": (
        ValueError,
        "input2[2] must have a height and a width of at least 1, got input2[2].shape=(2, 4, 1, 0)",
        dict(input2=[ones(), ones(), ones((2, 4, 1, 0))]),
    ),
    "channels differ": (
        ValueError,
        "input1 and input2 must have the same channels, got input1.shape=(2, 4, 6, 7), input2.shape=(2, 5, 6, 7)",
        dict(input2=ones((2, 5, 6, 7))),
    ),
    "channels of a level differ": (
        ValueError,
        "input1 and input2[1] must have the same channels, got input1.shape=(2, 4, 6, 7), input2[1].shape=(2, 3, 6, 7)",
        dict(input2=(ones(), ones((2, 3, 6, 7)))),
    ),
    "batch sizes of levels differ": (
        ValueError,
        "the levels of input2 must have the same batch size, got input2[0].shape=(2, 4, 6, 7), input2[1].shape=(1, 4, 6, 7)",
        dict(input2=[ones(), ones((1, 4, 6, 7))]),
    ),
    "no level": (ValueError, "input2 must have at least one level, got an empty sequence", dict(input2=[])),
    "dtypes differ": (
        TypeError,
        "input1 and input2 must have the same dtype, got input1.dtype=float32, input2.dtype=float64",
        dict(input2=ones(dtype=np.float64)),
    ),
    "dtype of a level differs": (
        TypeError,
        "input1 and input2[1] must have the same dtype, got input1.dtype=float32, input2[1].dtype=float16",
        dict(input2=[ones(), ones(dtype=np.float16)]),
    ),
    "integers": (
        TypeError,
        "input1 must be one of float16, bfloat16, float32, float64, got input1.dtype=int64",
        dict(input1=ones(dtype=int)),
    ),
    "integers in a level": (TypeError, "input2[0] must be one of float16, bfloat16", dict(input2=[ones(dtype=np.uint8)])),
    "foreign byte order": (TypeError, "input1 must be in native byte order", dict(input1=ones(dtype=FOREIGN))),
}

POSITIONS = {
    "coords of rank 3": (
        ValueError,
        "coords must have 4 dimensions (E, 2, H, W) or 5 dimensions (E, K, 2, H, W), got coords.shape=(2, 6, 7)",
        dict(coords=ones((2, 6, 7))),
    ),
    "coords of rank 6": (ValueError, "coords must have 4 dimensions", dict(coords=ones((1, 1, *COORDS)))),
    "three channels": (
        ValueError,
        "coords must have 2 channels (x, y) or 1 channel (x) before the height and the width, got coords.shape=(2, 3, 6, 7)",
        dict(coords=ones((2, 3, 6, 7))),
    ),
    "no channel": (ValueError, "coords must have 2 channels", dict(coords=ones((2, 5, 0, 6, 7)))),
    "channels last": (ValueError, "coords must have 2 channels", dict(coords=ones((2, 6, 7, 2)))),
    "another height": (
        ValueError,
        "coords must have the height and the width of input1, got coords.shape=(2, 2, 5, 7), input1.shape=(2, 4, 6, 7)",
        dict(coords=ones((2, 2, 5, 7))),
    ),
    "another width": (ValueError, "coords must have the height and the width of input1", dict(coords=ones((2, 2, 6, 8)))),
    "more entries than input1": (
        ValueError,
        "coords must have the batch size of input1 unless index1 is passed, got coords.shape=(3, 2, 6, 7) and a batch size of 2",
        dict(coords=ones((3, 2, 6, 7)), index2=np.zeros(3, int)),
    ),
    "fewer entries than input2": (
        ValueError,
        "coords must have the batch size of input2 unless index2 is passed, got coords.shape=(1, 2, 6, 7) and a batch size of 2",
        dict(coords=ones((1, 2, 6, 7)), index1=np.zeros(1, int)),
    ),
    "coords wider than the sums": (
        TypeError,
        "coords must not be wider than the float32 accumulator, got coords.dtype=float64, input1.dtype=float32",
        dict(coords=ones(COORDS, np.float64)),
    ),
    "coords wider than the sums of halves": (
        TypeError,
        "coords must not be wider than the float32 accumulator, got coords.dtype=float64, input1.dtype=bfloat16",
        dict(input1=ones(dtype=ml_dtypes.bfloat16), input2=ones(dtype=ml_dtypes.bfloat16), coords=ones(COORDS, np.float64)),
    ),
    "coords of integers": (
        TypeError,
        "coords must be one of float16, bfloat16, float32, float64, got coords.dtype=int32",
        dict(coords=ones(COORDS, np.int32)),
    ),
}

INDICES = {
    f"{name}: {what}": (error, says.format(name=name), {name: value})
    for name in ("index1", "index2")
    for what, error, says, value in (
        (
            "too long",
            ValueError,
            "{name} must have the shape (2,) of the entries of coords, got {name}.shape=(3,)",
            np.zeros(3, int),
        ),
        (
            "a matrix",
            ValueError,
            "{name} must have the shape (2,) of the entries of coords, got {name}.shape=(2, 1)",
            np.zeros((2, 1), int),
        ),
        ("floats", TypeError, "{name} must be of int32 or int64, got {name}.dtype=float32", np.zeros(2, np.float32)),
        ("bytes", TypeError, "{name} must be of int32 or int64, got {name}.dtype=uint8", np.zeros(2, np.uint8)),
        ("bools", TypeError, "{name} must be of int32 or int64, got {name}.dtype=bool", np.zeros(2, bool)),
        (
            "foreign byte order",
            TypeError,
            "{name} must be of int32 or int64, got {name}.dtype=",
            np.zeros(2, np.dtype(int).newbyteorder("S")),
        ),
        ("a list", TypeError, "{name} must be a NumPy or CuPy array, got builtins.list", [0, 1]),
        ("beyond the batch", IndexError, "{name} must be from 0 to 1, got {name}[1]=2", np.array([0, 2])),
        ("negative", IndexError, "{name} must be from 0 to 1, got {name}[0]=-1", np.array([-1, 0], np.int32)),
    )
}

TENSOR = (
    "pass {name}.detach().numpy() from a CPU, cupy.from_dlpack({name}.detach()) from a GPU"
    "; for tensors there is cupycorr.torch.correlation_lookup"
)

KINDS = {
    f"{name} is a {what}": (TypeError, says.format(name=name), {name: value})
    for name, shape in (("input1", SHAPE), ("input2", SHAPE), ("coords", COORDS))
    for what, value, says in (
        ("string", "frame.png", "{name} must be a NumPy or CuPy array"),
        (
            "torch tensor",
            torch.zeros(shape),
            TENSOR,
        ),
        ("masked array", np.ma.masked_greater(ones(shape), 2), "{name} must not be a masked array, whose mask would be lost"),
    )
} | {
    "input1 is a list": (TypeError, "input1 must be a NumPy or CuPy array, got builtins.list", dict(input1=[ones()])),
    "a level is a number": (TypeError, "input2[1] must be a NumPy or CuPy array, got builtins.float", dict(input2=[ones(), 1.0])),
    "input2 is a generator": (
        TypeError,
        "input2 must be a NumPy or CuPy array or a list or tuple of them",
        dict(input2=iter([ones()])),
    ),
    "input2 on a GPU": (TypeError, "input1 and input2 must be arrays of the same kind", dict(input2=on_cupy(ones()))),
    "a level on a GPU": (
        TypeError,
        "input1 and input2[0] and input2[1] must be arrays of the same kind",
        dict(input2=[ones(), on_cupy(ones())]),
    ),
    "coords on a GPU": (
        TypeError,
        "coords must be of the inputs' kind, got coords on cupy and inputs on numpy",
        dict(coords=on_cupy(ones(COORDS))),
    ),
    "index1 on a GPU": (TypeError, "index1 must be of the inputs' kind", dict(index1=on_cupy(np.zeros(2, int)))),
}

PAIR = "{name} must be an int or a (vertical, horizontal) pair of ints, got {name}={value!r}"
SIZES = {
    f"{name}={value!r}": (error, says.format(name=name, value=value), {name: value})
    for name in ("patch_size", "dilation_patch", "level_step")
    for error, says, values in (
        (TypeError, PAIR, (1.0, True, "3", None, (3, 1.0), np.float64(2))),
        (ValueError, PAIR, ((), (1,), (1, 2, 3))),
        (ValueError, "{name} must be at least 1, got {name}={value!r}", (0, -1, (1, 0))),
        (ValueError, "{name} must fit into 64 bits", (2**63,)),
    )
    for value in values
}

CHOICES = {
    "patch too far": (
        ValueError,
        "patch_size times dilation_patch must be at most 2147483648, got patch_size=(3, 3), dilation_patch=(1, 1073741824)",
        dict(dilation_patch=(1, 2**30)),
    ),
    **{
        f"order={value!r}": (
            ValueError,
            f"order must be 'dy' or 'dx', the patch axis that comes first, got order={value!r}",
            dict(order=value),
        )
        for value in ("yx", None, 1, ["dy"])
    },
    "scale is a string": (TypeError, "scale must be a real number, got scale='2'", dict(scale="2")),
    "scale is not finite": (ValueError, "scale must be finite, got scale=nan", dict(scale=np.nan)),
    "scale beyond the sums": (ValueError, "scale must be representable in the float32 accumulator", dict(scale=1e39)),
    "dtype": (TypeError, "dtype must be one of float16, bfloat16, float32, float64, got dtype='int8'", dict(dtype="int8")),
    "precision": (ValueError, "precision must be one of 'highest', 'high', 'medium', got precision='low'", dict(precision="low")),
    "variant": (ValueError, "variant must be 'auto' or one of '", dict(variant="fast")),
}

EVERYWHERE = {**MAPS, **POSITIONS, **INDICES, **KINDS, **SIZES, **CHOICES}
