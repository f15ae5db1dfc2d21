"""The one table of element types: which there are, what each accumulates in, and what the kernels in CUDA C call it.

float16 and bfloat16 sum in float32, so that nothing is ever rounded twice. bfloat16 is known by its name and comes from
`ml_dtypes`, which NumPy does not need for anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True, slots=True)
class ElementType:
    """One row of the table."""

    name: str
    accumulator: str
    c_type: str
    itemsize: int

    @property
    def accumulator_dtype(self) -> np.dtype:
        """dtype the sums are kept in."""
        return np.dtype(self.accumulator)


ELEMENT_TYPES = {
    row.name: row
    for row in (
        ElementType("float16", "float32", "half", 2),
        ElementType("bfloat16", "float32", "bfloat16", 2),
        ElementType("float32", "float32", "float", 4),
        ElementType("float64", "float64", "double", 8),
    )
}


class LongestChain(NamedTuple):
    """The most terms that each way of summing adds one after the other to one number, before it goes to a larger sum.

    The error of a chain grows with its length, the bound that tests hold results against with the square root of that.
    """

    reference: int  # channels of a slice, by NumPy
    blas: int  # channels of one matrix product
    registers: int  # products in the CPU's register tiles; also bounds what they keep in cache
    cuda: int  # products of a thread of the tiled kernels
    tensor_cores: int  # products of matrices, which may truncate where others round
    cuda_direct: int  # FOLD in numeric.cuh


LONGEST_CHAIN = LongestChain(reference=256, blas=512, registers=128, cuda=512, tensor_cores=256, cuda_direct=128)

# C types of sums.
SUM_TYPES = tuple(dict.fromkeys(ELEMENT_TYPES[row.accumulator].c_type for row in ELEMENT_TYPES.values()))


def element_type(name: str, dtype: Any) -> ElementType:
    """The row of an array's dtype; ``name`` is the argument's, for the message.

    Raises
    ------
    TypeError
        The operator does not run on this dtype (integers, complex numbers, foreign byte order).
    """
    dtype = np.dtype(dtype)
    row = element_type_called(name, dtype.name)
    if not dtype.isnative:
        raise TypeError(f"{name} must be in native byte order, got {name}.dtype={dtype.str!r}")
    return row


def element_type_called(name: str, dtype_name: str) -> ElementType:
    """`element_type` of a dtype that NumPy may not have, by its name."""
    row = ELEMENT_TYPES.get(dtype_name)
    if row is None:
        raise TypeError(f"{name} must be one of {', '.join(ELEMENT_TYPES)}, got {name}.dtype={dtype_name}")
    return row


@lru_cache
def dtype_name(dtype: np.dtype) -> str:
    """Return a dtype's name, which NumPy puts together anew at every question."""
    return dtype.name


def named_dtype(dtype: Any) -> np.dtype:
    """The dtype a caller asked for by ``dtype=``.

    Raises
    ------
    TypeError
        It is no dtype of the table.
    ImportError
        It is ``"bfloat16"`` and `ml_dtypes` is not installed.
    """
    if dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise ImportError("dtype='bfloat16' on NumPy arrays needs ml_dtypes: pip install ml_dtypes") from None
        return np.dtype(ml_dtypes.bfloat16)
    try:
        found = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):  # numpy parses strings and dicts; each may go wrong in its own way
        found = None
    if dtype is None or found is None or found.name not in ELEMENT_TYPES or not found.isnative:
        raise no_element_type(dtype)
    return found


def no_element_type(dtype: Any) -> TypeError:
    """What is raised where a caller asked by ``dtype=`` for what is no dtype of the table."""
    return TypeError(f"dtype must be one of {', '.join(ELEMENT_TYPES)}, got dtype={dtype!r}")


def check_scale(scale: float, row: ElementType) -> None:
    """Refuse a factor the accumulator cannot hold: it would turn finite sums into infinities, NaN or zeros.

    Raises
    ------
    ValueError
        ``scale`` is not 0 and lies outside the accumulator's normal range.
    """
    limits = np.finfo(row.accumulator_dtype)
    if scale != 0 and not float(limits.tiny) <= abs(scale) <= float(limits.max):
        raise ValueError(f"scale must be representable in the {row.accumulator} accumulator, got scale={scale!r}")
