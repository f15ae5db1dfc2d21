"""Stands in for `cupy_backends.cuda.libs.cublas`: matrix products, computed by NumPy. cuBLAS itself is code of real devices.

The functions have the names and arguments of CuPy's module. Sums are of float64 and are rounded once.
"""

import ctypes
from functools import partial

import numpy as np

from .arrays import read, write

CUBLAS_OP_N = 0
CUBLAS_GEMM_DEFAULT = -1
CUBLAS_GEMM_DEFAULT_TENSOR_OP = 99
CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_PEDANTIC, CUBLAS_COMPUTE_32F_FAST_TF32 = 68, 69, 77
CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_64F_PEDANTIC = 70, 71

_DTYPES = {0: "float32", 1: "float64", 2: "float16", 4: "complex64", 5: "complex128"}  # by cudaDataType
_DOUBLE = {"float16": "float64", "float32": "float64", "complex64": "complex128"}
_OF_DOUBLES = {CUBLAS_COMPUTE_64F, CUBLAS_COMPUTE_64F_PEDANTIC}


def create():
    """Return a handle, which means nothing here."""
    return 1


def destroy(handle):
    """Forget a handle."""


def _scalar(address, dtype):
    return np.frombuffer(ctypes.string_at(address, np.dtype(dtype).itemsize), dtype)[0]


def _read_matrix(address, dtype, rows, columns, leading):
    """Return a matrix whose columns begin ``leading`` elements after one another."""
    elements = read(address, dtype, leading * (columns - 1) + rows)
    matrix = np.lib.stride_tricks.as_strided(elements, (rows, columns), (elements.itemsize, leading * elements.itemsize))
    return matrix.astype(_DOUBLE.get(dtype, dtype))


def _read_operand(operation, address, dtype, rows, columns, leading):
    """Return the matrix that enters a product: the one in memory, its transpose (1) or its conjugate transpose (2)."""
    if operation == CUBLAS_OP_N:
        return _read_matrix(address, dtype, rows, columns, leading)
    matrix = _read_matrix(address, dtype, columns, rows, leading).T
    return matrix.conj() if operation == 2 else matrix


def _write_matrix(address, matrix, leading):
    for number, column in enumerate(matrix.T):
        write(address + number * leading * matrix.itemsize, column)


def gemmEx(  # noqa: N802
    handle, transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb, beta, C, Ctype, ldc, computeType, algo
):
    """Write alpha A B + beta C to C; all matrices are in the order of Fortran."""
    result = _DTYPES[Ctype]
    real = "float64" if computeType in _OF_DOUBLES else "float32"
    scalar = {"float64": "complex128", "float32": "complex64"}[real] if result.startswith("complex") else real
    product = _read_operand(transa, A, _DTYPES[Atype], m, k, lda) @ _read_operand(transb, B, _DTYPES[Btype], k, n, ldb)
    product = _scalar(alpha, scalar) * product
    if _scalar(beta, scalar) != 0:
        product += _scalar(beta, scalar) * _read_matrix(C, result, m, n, ldc)
    _write_matrix(C, product.astype(result), ldc)


def gemmStridedBatchedEx(  # noqa: N802
    handle, transa, transb, m, n, k, alpha,
    A, Atype, lda, strideA, B, Btype, ldb, strideB, beta, C, Ctype, ldc, strideC, batchCount, computeType, algo,
):  # fmt: skip
    """Write the products of ``batchCount`` pairs of matrices, each of which begins a stride after the one before."""
    sizes = [np.dtype(_DTYPES[each]).itemsize for each in (Atype, Btype, Ctype)]
    # CuPy passes a type of data here, and a type of computation to gemmEx.
    compute = CUBLAS_COMPUTE_64F if _DTYPES[computeType] in ("float64", "complex128") else CUBLAS_COMPUTE_32F
    for number in range(batchCount):
        at = [
            start + number * stride * size
            for start, stride, size in zip((A, B, C), (strideA, strideB, strideC), sizes, strict=True)
        ]
        gemmEx(
            handle, transa, transb, m, n, k, alpha, at[0], Atype, lda, at[1], Btype, ldb, beta, at[2], Ctype, ldc, compute, algo
        )


def _batched(code, compute, handle, transa, transb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc, batchCount):
    """Write the products of ``batchCount`` pairs of matrices, whose addresses lie in three arrays of the device."""
    addresses = [read(array, np.uintp, batchCount).tolist() for array in (A, B, C)]
    for a, b, c in zip(*addresses, strict=True):
        gemmEx(handle, transa, transb, m, n, k, alpha, a, code, lda, b, code, ldb, beta, c, code, ldc, compute, 0)


sgemmBatched = partial(_batched, 0, CUBLAS_COMPUTE_32F)  # noqa: N816
dgemmBatched = partial(_batched, 1, CUBLAS_COMPUTE_64F)  # noqa: N816
cgemmBatched = partial(_batched, 4, CUBLAS_COMPUTE_32F)  # noqa: N816
zgemmBatched = partial(_batched, 5, CUBLAS_COMPUTE_64F)  # noqa: N816


def __getattr__(name):
    raise AttributeError(f"the software CUDA has no {name} of cuBLAS")
