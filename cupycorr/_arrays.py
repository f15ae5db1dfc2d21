"""NumPy, CuPy and torch told apart without importing them, and the array module of each.

Importing CuPy or torch takes seconds and may fail; a NumPy user must never pay for it. Types are recognised by the package
they are defined in.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

_ARRAY_TYPES = {("numpy", "ndarray"): "numpy", ("cupy", "ndarray"): "cupy", ("torch", "Tensor"): "torch"}


def array_kind(name: str, array: Any) -> str:
    """``"numpy"`` or ``"cupy"``; ``name`` is the argument's, for the message.

    Raises
    ------
    TypeError
        Anything else, a torch tensor and a masked array among them.
    """
    kind = next((kind for base in type(array).__mro__ if (kind := _ARRAY_TYPES.get(_identity(base)))), None)
    if kind == "torch":
        raise TypeError(
            f"{name} must be a NumPy or CuPy array, got a torch tensor: pass {name}.detach().numpy() for a tensor on the CPU"
        )
    if kind is None:
        raise TypeError(f"{name} must be a NumPy or CuPy array, got {type(array).__module__}.{type(array).__qualname__}")
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array, whose mask would be lost: pass {name}.filled(0)")
    return kind


def _identity(base: type) -> tuple[str, str]:
    return base.__module__.partition(".")[0], base.__qualname__


def array_module(array: Any) -> ModuleType:
    """The module whose functions work on this array: `numpy` or `cupy`."""
    return sys.modules[array_kind("array", array)]


def same_kind(**arrays: Any) -> str:
    """The kind all the named arrays share.

    Raises
    ------
    TypeError
        One is no array, or they are of different kinds.
    """
    kinds = {name: array_kind(name, array) for name, array in arrays.items()}
    if len(set(kinds.values())) > 1:
        got = ", ".join(f"{name} on {kind}" for name, kind in kinds.items())
        raise TypeError(f"{' and '.join(kinds)} must be arrays of the same kind, got {got}")
    return next(iter(kinds.values()))
