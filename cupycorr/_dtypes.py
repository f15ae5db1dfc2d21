"""The table of element types: each one's accumulator, its name in CUDA C and its size.

float16 and bfloat16 are summed in float32, so that nothing is rounded twice. bfloat16 is recognised by its name; the NumPy dtype
comes from `ml_dtypes`, which is imported only when bfloat16 is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True, slots=True)
class ElementType:
    """An element type of the operators' arrays.

    Attributes
    ----------
    name
        Its NumPy name.
    accumulator
        The NumPy name of the dtype in which its sums are kept.
    c_type
        Its name in the kernels.
    itemsize
        Its size in bytes.
    """

    name: str
    accumulator: str
    c_type: str
    itemsize: int

    @property
    def accumulator_dtype(self) -> np.dtype[Any]:
        """The dtype in which sums are kept."""
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

    reference: int  # channels of a slice, or products over a patch, by NumPy
    blas: int  # channels of one matrix product
    memory: int  # additions of windows to an element in memory, on a CPU
    registers: int  # products in the CPU's register tiles; also bounds what they keep in cache
    cuda: int  # products of a thread of the tiled kernels
    tensor_cores: int  # products of matrices, which may truncate where others round
    cuda_direct: int  # FOLD in numeric.cuh


@dataclass(frozen=True, slots=True)
class IndexType:
    """An element type of arrays of indices: its NumPy name, its name in the kernels and its size in bytes."""

    name: str
    c_type: str
    itemsize: int


INDEX_TYPES = {row.name: row for row in (IndexType("int32", "int", 4), IndexType("int64", "long long", 8))}


LONGEST_CHAIN = LongestChain(reference=256, blas=512, memory=512, registers=128, cuda=512, tensor_cores=256, cuda_direct=128)

# The C types of accumulators.
SUM_TYPES = tuple(dict.fromkeys(ELEMENT_TYPES[row.accumulator].c_type for row in ELEMENT_TYPES.values()))


def element_type(name: str, dtype: Any) -> ElementType:
    """Return the element type of the dtype of an argument called ``name``.

    Raises
    ------
    TypeError
        The operators do not support the dtype (an integer, a complex number, another byte order).
    """
    dtype = np.dtype(dtype)
    row = element_type_called(name, dtype.name)
    if not dtype.isnative:
        raise TypeError(f"{name} must be in native byte order, got {name}.dtype={dtype.str!r}")
    return row


def element_type_called(name: str, dtype_name: str) -> ElementType:
    """Return the element type of a dtype by its name, for dtypes that NumPy may not have; errors as `element_type`."""
    row = ELEMENT_TYPES.get(dtype_name)
    if row is None:
        raise TypeError(f"{name} must be one of {', '.join(ELEMENT_TYPES)}, got {name}.dtype={dtype_name}")
    return row


def index_type_called(name: str, dtype_name: str) -> IndexType:
    """Return the index type of a dtype by its name.

    Raises
    ------
    TypeError
        Indices cannot be of the dtype.
    """
    row = INDEX_TYPES.get(dtype_name)
    if row is None:
        raise TypeError(f"{name} must be of {' or '.join(INDEX_TYPES)}, got {name}.dtype={dtype_name}")
    return row


@lru_cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return a dtype's name, which NumPy computes again at every access."""
    name: str = dtype.name
    return name


def named_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the dtype that a caller passed as ``dtype=``.

    Raises
    ------
    TypeError
        It is not in the table.
    ImportError
        It is ``"bfloat16"`` and `ml_dtypes` is not installed.
    """
    if dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise ImportError("dtype='bfloat16' on NumPy arrays needs ml_dtypes: pip install ml_dtypes") from None
        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    try:
        found: np.dtype[Any] = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError):  # NumPy parses strings and dicts, each with errors of its own
        raise no_element_type(dtype) from None
    if dtype is None or found.name not in ELEMENT_TYPES or not found.isnative:
        raise no_element_type(dtype)
    return found


def no_element_type(dtype: Any) -> TypeError:
    """Return the error for a ``dtype=`` that is not in the table."""
    return TypeError(f"dtype must be one of {', '.join(ELEMENT_TYPES)}, got dtype={dtype!r}")


def check_scale(scale: float, row: ElementType) -> None:
    """Refuse a factor that the accumulator cannot represent: it would turn finite sums into infinities, NaN or zeros.

    Raises
    ------
    ValueError
        ``scale`` is neither 0 nor in the normal range of the accumulator.
    """
    limits = np.finfo(row.accumulator_dtype)
    if scale != 0 and not float(limits.tiny) <= abs(scale) <= float(limits.max):
        raise ValueError(f"scale must be representable in the {row.accumulator} accumulator, got scale={scale!r}")
