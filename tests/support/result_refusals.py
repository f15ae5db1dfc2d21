"""Bad arrays for the output and bad cotangents, which every lookup refuses in the same words.

Each case is the type of the error, a part of its message, and the arguments of the call.
"""

import re

import numpy as np
import pytest
import torch
from fake_cupy import on_cupy
from numpy.lib.stride_tricks import as_strided


def refused(function, error, says, arguments):
    """Check that a call is refused with this very type of error, and a message that says so."""
    with pytest.raises(error, match=re.escape(says)) as caught:
        function(**arguments)
    assert type(caught.value) is error


def bad_outputs(shape):
    """Return the cases of ``out=`` for an output of this shape, by name."""
    other = (*shape[:-1], shape[-1] + 1)
    read_only = _ones(shape)
    read_only.flags.writeable = False
    return {
        "shape": (ValueError, f"out must have shape {shape}, got out.shape={other}", dict(out=_ones(other))),
        "dtype": (
            TypeError,
            "out must be one of float16, bfloat16, float32, float64, got out.dtype=int32",
            dict(out=_ones(shape, np.int32)),
        ),
        "another dtype": (
            TypeError,
            "out and dtype must agree, got out.dtype=float32, dtype=float16",
            dict(out=_ones(shape), dtype="float16"),
        ),
        "read-only": (ValueError, "out must be writeable, got a read-only array", dict(out=read_only)),
        **{
            f"elements overlap, {what}": (ValueError, OVERLAP.format(out=out), dict(out=out))
            for what, out in overlapping(shape).items()
        },
        "kind": (
            TypeError,
            "out must be of the inputs' kind, got out on cupy and inputs on numpy",
            dict(out=on_cupy(_ones(shape))),
        ),
        "masked": (TypeError, "out must not be a masked array", dict(out=np.ma.masked_greater(_ones(shape), 2))),
        "a torch tensor": (TypeError, "out must be a NumPy or CuPy array, got a torch tensor", dict(out=torch.ones(shape))),
    }


OVERLAP = "out must have memory of its own for every element, got out.shape={out.shape}, out.strides={out.strides}"


def overlapping(shape):
    """Return writeable arrays of which elements are in the memory of others, by what is wrong with them."""
    dense = _ones(shape)
    row, column = dense.strides[-2:]
    return {
        "one displacement": as_strided(dense, shape, (dense.strides[0], 0, *dense.strides[2:])),
        "one column": as_strided(dense, shape, (*dense.strides[:-1], 0)),
        "sliding rows": as_strided(dense, shape, (*dense.strides[:-2], column, column)),
        "half an element apart": as_strided(dense, shape, (*dense.strides[:-1], column // 2)),
        "against each other": as_strided(dense[..., ::-1], shape, (*dense.strides[:-2], row - column, -column)),
    }


def bad_cotangents(shape):
    """Return the cases of a cotangent for an output of this shape, by name: with the cotangent before the other arguments."""
    flat = (shape[0], shape[1] * shape[2], *shape[3:])
    return {
        "shape": (
            ValueError,
            f"cotangent must have the output's shape {shape}, got cotangent.shape={flat}",
            _ones(flat),
            {},
        ),
        "dtype": (
            TypeError,
            "cotangent must have the output's dtype float32, got cotangent.dtype=float64",
            _ones(shape, np.float64),
            {},
        ),
        "not that dtype": (TypeError, "cotangent must have the output's dtype float16", _ones(shape), dict(dtype="float16")),
        "kind": (TypeError, "cotangent must be of the inputs' kind", on_cupy(_ones(shape)), {}),
        "no array": (TypeError, "cotangent must be a NumPy or CuPy array, got builtins.int", 1, {}),
    }


def _ones(shape, dtype=np.float32):
    return np.ones(shape, dtype)
