"""Bad input: each case is the type of the error, the words of its message in their order, and the arguments of the call."""

import ml_dtypes
import numpy as np
import torch
from cases import EVERY_VARIANT
from fake_cupy import on_cupy

SHAPE, OUT_SHAPE = (1, 4, 6, 7), (1, 3, 3, 6, 7)


def ones(shape=SHAPE, dtype=np.float32):
    return np.ones(shape, dtype)


SHAPES = {
    f"{name} differs{' with an offset' if offset else ''}": (
        ValueError,
        ("input1 and input2 must have the same", "input1.shape=(1, 4, 6, 7)", f"input2.shape={shape}"),
        dict(input2=ones(shape), patch_offset=offset),
    )
    for name, shape, offsets in (
        ("batch", (2, 4, 6, 7), (None, 0)),
        ("channels", (1, 5, 6, 7), (None, 0)),
        ("height", (1, 4, 5, 7), (None,)),
        ("width", (1, 4, 6, 8), (None,)),
    )
    for offset in offsets
}

RANKS = {
    f"{name} of rank {len(shape)}": (ValueError, (f"{name} must have 4 dimensions", f"{name}.shape={shape}"), {name: ones(shape)})
    for name in ("input1", "input2")
    for shape in ((), (7,), (6, 7), (4, 6, 7), (1, 1, 4, 6, 7))
}

EMPTY = {
    f"{name} without {what}": (
        ValueError,
        (f"{name} must have a height and a width of at least 1", f"{name}.shape={shape}"),
        {name: ones(shape), "patch_offset": 0},
    )
    for name in ("input1", "input2")
    for what, shape in (("rows", (1, 4, 0, 7)), ("columns", (1, 4, 6, 0)))
}

FOREIGN = np.dtype(np.float32).newbyteorder("S")

ELEMENTS = {
    f"{name} of {dtype}": (TypeError, (f"{name} must be ", f"{name}.dtype=", said), {name: ones(dtype=dtype)})
    for name in ("input1", "input2")
    for dtype, said in (
        *((np.dtype(plain), plain) for plain in ("int32", "int64", "uint8", "bool", "complex64", "object")),
        (np.dtype(ml_dtypes.float8_e4m3fn), "float8_e4m3fn"),
        (FOREIGN, repr(FOREIGN.str)),
    )
}

DIFFERENT_ELEMENTS = {
    f"{first} and {second}": (
        TypeError,
        ("input1 and input2 must have the same dtype", f"input1.dtype={first}", f"input2.dtype={second}"),
        dict(input1=ones(dtype=first), input2=ones(dtype=second)),
    )
    for first, second in (("float32", "float64"), ("float64", "float32"), ("float16", "bfloat16"), ("float32", "float16"))
}

NOT_ARRAYS = {
    f"{name} is a {what}": (TypeError, (f"{name} must ", said), {name: value})
    for name in ("input1", "input2")
    for what, value, said in (
        ("list", ones().tolist(), "got builtins.list"),
        ("number", np.float32(1), "got numpy.float32"),
        ("string", "frame.png", "got builtins.str"),
        ("memoryview", memoryview(ones()), "got builtins.memoryview"),
        ("torch tensor", torch.zeros(SHAPE), f"a torch tensor: pass {name}.detach()"),
        ("torch parameter", torch.nn.Parameter(torch.zeros(SHAPE)), "got a torch tensor"),
        ("masked array", np.ma.masked_greater(ones(), 2), f"not be a masked array, whose mask would be lost: pass {name}"),
    )
}

MIXED_KINDS = {
    f"{first} and {second}": (
        TypeError,
        ("input1 and input2 must be arrays of the same kind", f"input1 on {first}", f"input2 on {second}"),
        dict(zip(("input1", "input2"), pair, strict=True)),
    )
    for first, second, pair in (
        ("numpy", "cupy", (ones(), on_cupy(ones()))),
        ("cupy", "numpy", (on_cupy(ones()), ones())),
    )
}

INPUTS = {**SHAPES, **RANKS, **EMPTY, **ELEMENTS, **DIFFERENT_ELEMENTS, **NOT_ARRAYS, **MIXED_KINDS}


def bad_values(name, values, error, says):
    """Return a case for each bad value of one parameter."""
    return {f"{name}={value!r}": (error, (says, f"{name}={value!r}"), {name: value}) for value in values}


AT_LEAST_1 = ("kernel_size", "patch_size", "stride", "dilation")
PAIRS = (*AT_LEAST_1, "dilation_patch", "padding", "patch_offset")
NOT_INTEGERS = (1.0, True, False, "3", 1j, np.float64(2), np.True_, (3, 1.0), (True, 3), (3, None), ((1, 1), 1))


def bad_sizes(parameter):
    """Return a case for each value that a parameter of two integers cannot have."""
    needed = f"{parameter} must be an int or a (vertical, horizontal) pair of ints"
    found = bad_values(parameter, NOT_INTEGERS, TypeError, needed)
    found |= bad_values(parameter, ((), (1,), (1, 2, 3), [1, 2, 3]), ValueError, needed)
    found |= bad_values(parameter, (2**63, (1, 2**64)), ValueError, f"{parameter} must fit into 64 bits")
    if parameter != "patch_offset":
        found |= bad_values(parameter, (None,), TypeError, needed)
    if parameter in AT_LEAST_1:
        found |= bad_values(parameter, (0, -1, (1, 0), (-2, 3)), ValueError, f"{parameter} must be at least 1")
    if parameter == "dilation_patch":
        found |= bad_values(parameter, (0, (1, 0), (0, -2)), ValueError, f"{parameter} must not be 0")
    return found


SIZES = {name: case for parameter in PAIRS for name, case in bad_sizes(parameter).items()}

OF_SHAPE = f"input1.shape={SHAPE}"

NO_OUTPUT = {
    f"{what}: {side} {size}": (
        ValueError,
        (f"the output would have {side} {size}", *said),
        arguments,
    )
    for what, side, size, said, arguments in (
        ("kernel", "height", 0, ("kernel_size=(7, 7)", OF_SHAPE), dict(kernel_size=7)),
        ("kernel", "width", -1, ("kernel_size=(1, 9)", OF_SHAPE), dict(kernel_size=(1, 9))),
        ("dilation", "width", 0, ("kernel_size=(1, 2)", "dilation=(1, 7)", OF_SHAPE), dict(kernel_size=(1, 2), dilation=(1, 7))),
        ("stride", "height", 0, ("kernel_size=(9, 1)", OF_SHAPE), dict(kernel_size=(9, 1), stride=5)),
        ("crop", "height", 0, (f"{OF_SHAPE} with padding=(-3, 0)",), dict(padding=(-3, 0))),
        ("crop", "width", -1, (f"{OF_SHAPE} with padding=(0, -4)",), dict(padding=(0, -4))),
    )
}

GROUPS = {
    **bad_values("groups", (0, -1), ValueError, "groups must be at least 1"),
    **bad_values("groups", (1.0, True, None, "1", (1, 1)), TypeError, "groups must be an int"),
    "groups that do not divide the channels": (
        ValueError,
        ("groups must divide the number of channels", "groups=3", OF_SHAPE),
        dict(groups=3),
    ),
}

NOT_REAL = (1j, np.complex64(1), "2", b"2", True, np.True_, None, [1.0], np.ones(1), np.ones(2))

SCALES = {
    **bad_values("scale", (np.nan, np.inf, -np.inf), ValueError, "scale must be finite"),
    "scale beyond every float": (ValueError, ("scale must be finite", f"scale={10**400}"), dict(scale=10**400)),
    **bad_values("scale", NOT_REAL, TypeError, "scale must be a real number"),
    **bad_values("scale", (1e300, 1e39, -1e-40), ValueError, "scale must be representable in the float32 accumulator"),
    "scale beyond the accumulator of halves": (
        ValueError,
        ("scale must be representable in the float32 accumulator", "scale=1e+39"),
        dict(scale=1e39, input1=ones(dtype=np.float16), input2=ones(dtype=np.float16)),
    ),
}

NO_DTYPES = (int, bool, complex, "int8", "nonsense", "1,,", {"names": ["a"], "formats": []}, torch.float32, FOREIGN, 3.5)

KNOWN_VARIANTS = f"variant must be 'auto' or one of {', '.join(map(repr, EVERY_VARIANT))}"

CHOICES = {
    **bad_values("dtype", NO_DTYPES, TypeError, "dtype must be one of float16, bfloat16, float32, float64"),
    **bad_values("variant", ("fast", "", "SIMD", None, 3, ["blas"]), ValueError, KNOWN_VARIANTS),
    **bad_values("precision", ("low", None, 32, ["high"]), ValueError, "precision must be one of 'highest', 'high', 'medium'"),
}

PARAMETERS = {**SIZES, **NO_OUTPUT, **GROUPS, **SCALES, **CHOICES}
