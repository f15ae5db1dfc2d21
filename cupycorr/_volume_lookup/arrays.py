"""The arrays of a call on the CPU, with every axis that a volume of one dimension lacks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .._lookup.problem import DY_FIRST
from .problem import Problem


class Arrays:
    """The arrays of a call.

    Attributes
    ----------
    named
        The arrays as they were passed, by their names.
    """

    def __init__(self, problem: Problem, named: Mapping[str, np.ndarray]) -> None:
        self._problem = problem
        self.named = named

    def slices(self, name: str) -> np.ndarray:
        """Return the view (E, H, W, H2, W2) of the volume or its gradient."""
        array = self.named[name]
        return array if self._problem.has_rows else array[:, :, :, None]

    def patches(self, name: str) -> np.ndarray:
        """Return the view (E, PH, PW, H, W) of the output or the cotangent."""
        array = self.named[name]
        if not self._problem.has_rows:
            return array[:, None]
        return array if self._problem.parameters.order == DY_FIRST else array.swapaxes(1, 2)
