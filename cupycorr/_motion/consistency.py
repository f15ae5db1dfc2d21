"""The forward-backward check: where each displaced window of frame 2 is found in frame 1."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .._arrays import to_numpy
from . import costs
from .geometry import Lattice, SingleWindows, Windows
from .matching import Field, Matcher, Report

_MOST_TIMES = 4  # as many windows as are asked for, whose fields may be in memory to share pixels


def distances(matcher: Matcher, windows: SingleWindows, field: Field, report: Report) -> Any:
    """Return the distance (N,) between each window and where matching back leads; NaN where either way found no match.

    ``field`` is the field of ``windows``, of any shape. The way back is searched in the same displacements with the other sign.
    """
    xp = matcher.frame1.xp
    dy, dx = field.dy.ravel(), field.dx.ravel()
    whole_y, whole_x = (np.rint(np.nan_to_num(to_numpy(each))).astype(np.int64) for each in (dy, dx))
    there = SingleWindows(windows.tops2 + whole_y, windows.lefts2 + whole_x, windows.tops1 + whole_y, windows.lefts1 + whole_x)
    back = replace(matcher, frame1=matcher.frame2, frame2=matcher.frame1, search=matcher.search.reversed())
    returned_y, returned_x = _field_back(back, there, report)
    return xp.sqrt((dy + returned_y) ** 2 + (dx + returned_x) ** 2)


def _field_back(back: Matcher, there: SingleWindows, report: Report) -> tuple[Any, Any]:
    """Return the displacements dy and dx back from each window.

    Where their searches start from the windows themselves, one field of all windows in the rectangle around them may cost less
    than each window by itself.
    """
    if there.count and (there.tops1 == there.tops2).all() and (there.lefts1 == there.lefts2).all():
        first = int(there.tops1.min()), int(there.lefts1.min())
        counts = int(there.tops1.max()) - first[0] + 1, int(there.lefts1.max()) - first[1] + 1
        every = Lattice(first, (1, 1), counts)
        if every.count <= _MOST_TIMES * there.count and _seconds(back, every) < _seconds(back, there):
            field = back.field(every, report)
            at = there.tops1 - first[0], there.lefts1 - first[1]
            at = tuple(back.frame1.xp.asarray(each) for each in at)
            return field.dy[at], field.dx[at]
    field = back.field(there, report)
    return field.dy, field.dx


def _seconds(back: Matcher, windows: Windows) -> float:
    return costs.cheapest(back.request(windows), back.variant).seconds
