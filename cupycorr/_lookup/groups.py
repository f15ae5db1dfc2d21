"""Lookups with several groups of channels: one lookup of each group, on views of the maps.

A group is as if its channels were the only ones. The gradient of the coordinates is the sum of those of the groups, in their
order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .._arrays import array_module, current_device_of
from .._dispatch import temporaries_of
from .._groups import split

Lookup = Callable[..., Any]  # of (input1, input2, coords, out=...)
Vjp = Callable[..., tuple[Any, Any, Any]]  # of (cotangent, input1, input2, coords)


def lookup_by_groups(lookup: Lookup, groups: int, input1: Any, input2: Any, coords: Any, shape: Sequence[int], dtype: Any) -> Any:
    """Return a new array of this shape, with an axis of groups after the first, that a lookup of each group has filled."""
    entries, *rest = shape
    with current_device_of(input1):
        out = array_module(input1).empty((entries, groups, *rest), dtype)
    for group, parts in enumerate(split(groups, input1, input2)):
        lookup(*parts, coords, out=out[:, group])
    return out


def vjp_by_groups(vjp: Vjp, groups: int, cotangent: Any, input1: Any, input2: Any, coords: Any) -> tuple[Any, Any, Any]:
    """Return the gradients of the inputs and coords from those of each group; None for one that is not needed."""
    with current_device_of(input1), temporaries_of(input1):
        found = [vjp(cotangent[:, group], *parts, coords) for group, parts in enumerate(split(groups, input1, input2))]
        first, second, third = zip(*found, strict=True)
        return _joined(input1, first), _joined(input1, second), _sum(coords, third)


def _joined(like: Any, gradients: Sequence[Any]) -> Any:
    """Return the gradients of all groups of channels in one array, or in a tuple of one for each level."""
    if gradients[0] is None:
        return None
    if isinstance(gradients[0], tuple):
        return tuple(_joined(like, level) for level in zip(*gradients, strict=True))
    return array_module(like).concatenate(gradients, axis=1)


def _sum(coords: Any, gradients: Sequence[Any]) -> Any:
    if gradients[0] is None:
        return None
    wide = gradients[0].dtype if gradients[0].dtype.itemsize >= 4 else "float32"
    return sum((gradient.astype(wide) for gradient in gradients[1:]), gradients[0].astype(wide)).astype(coords.dtype)
