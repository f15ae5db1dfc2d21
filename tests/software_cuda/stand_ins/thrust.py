"""Stands in for `cupy.cuda.thrust`, which is code of real devices: CuPy's functions that sort, computed by NumPy."""

import math

import numpy as np

from .arrays import read, write

available = True


def get_build_version():
    """Return the version of Thrust, which is none."""
    return 0


def sort(dtype, data_start, keys_start, shape):
    """Sort the rows of an array in its place."""
    write(data_start, np.sort(read(data_start, dtype, math.prod(shape)).reshape(shape)))


def argsort(dtype, idx_start, data_start, keys_start, shape):
    """Write the order of the elements of each row; equal elements stay in their order."""
    write(idx_start, np.argsort(read(data_start, dtype, math.prod(shape)).reshape(shape), kind="stable").astype(np.intp))


def lexsort(dtype, idx_start, keys_start, k, n):
    """Write the order of ``n`` elements by ``k`` keys, of which the last one is the first to count."""
    write(idx_start, np.lexsort(read(keys_start, dtype, k * n).reshape(k, n)).astype(np.intp))
