"""Sums in memory of any number of additions: a chain of them ends before it is too long, and is added to a total.

The error of a single chain would grow with its length, beyond the bound that results are held against.
"""

from __future__ import annotations

import numpy as np

from .._dtypes import LONGEST_CHAIN


class Chains:
    """An array of sums. Add to the array that `next` returns, at most once to each element before the next call of it."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._chain: np.ndarray = np.zeros(shape, dtype)
        self._total: np.ndarray | None = None
        self._length = 0

    def next(self) -> np.ndarray:
        """Return the array for the next addition."""
        if self._length == LONGEST_CHAIN.memory:
            if self._total is None:
                self._total = np.zeros_like(self._chain)
            self._total += self._chain
            self._chain[...] = 0
            self._length = 0
        self._length += 1
        return self._chain

    def sums(self) -> np.ndarray:
        """Return the sums, after the last addition."""
        if self._total is not None:
            self._chain += self._total
        return self._chain
