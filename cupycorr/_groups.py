"""Groups of channels that an operator computes one after the other: their number, checked, and views of the maps.

This module must not depend on any operator. The fixed-grid operator computes its groups together, see `_correlation.groups`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ._arguments import at_least


def several(groups: Any) -> int:
    """Return the number of groups if there is more than one, otherwise 0.

    Raises
    ------
    TypeError, ValueError
        It is not an int of at least 1.
    """
    count = 1 if type(groups) is int and groups == 1 else at_least(1, "groups", groups)
    return count if count > 1 else 0


def check_groups(groups: int, input1: Any) -> None:
    """Refuse a number of groups that does not divide the channels of a map."""
    if input1.shape[1] % groups:
        raise ValueError(f"groups must divide the number of channels, got groups={groups}, input1.shape={tuple(input1.shape)}")


def split(groups: int, input1: Any, input2: Any) -> Iterator[tuple[Any, Any]]:
    """Yield views of both inputs for each group; a pyramid stays a list."""
    channels = input1.shape[1] // groups
    for group in range(groups):
        part = slice(group * channels, (group + 1) * channels)
        levels = [level[:, part] for level in input2] if isinstance(input2, (list, tuple)) else input2[:, part]
        yield input1[:, part], levels
