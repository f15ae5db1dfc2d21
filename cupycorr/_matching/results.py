"""The results of matching as callers get them: displacements in pixels, made of channels or means.

Array functions are looked up by names that NumPy, CuPy and torch share; for torch all of them can be traced and differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np

from .._arrays import ArrayT, array_module, converted, current_device_of

if TYPE_CHECKING:
    # At run time a named tuple cannot inherit from Generic before Python 3.11. `Best[...]` works there without it.
    class BestDisplacement(NamedTuple, Generic[ArrayT]):
        dy: ArrayT
        dx: ArrayT
        score: ArrayT
        channel: ArrayT

        @property
        def flow(self) -> ArrayT: ...

    class MeanDisplacement(NamedTuple, Generic[ArrayT]):
        dy: ArrayT
        dx: ArrayT

        @property
        def flow(self) -> ArrayT: ...

else:

    class BestDisplacement(NamedTuple):
        """The displacement with the highest score for every position, as `correlation_argmax` returns it.

        Attributes
        ----------
        dy, dx : array or Tensor of shape (B, [k], [G], oH, oW), the axis k for top_k > 1, the axis G for several groups
            In pixels: the point ``(y, x)`` of input1 is at ``(y + dy, x + dx)`` in input2. int64 for whole pixels where none can
            be missing, otherwise the scores' dtype, and NaN where there is none.
        score : array or Tensor
            The score, in the accumulator's dtype.
        channel : array or Tensor
            int64: the displacement's channel in the cost volume, dy-major; -1 where there is none.

        See Also
        --------
        cupycorr.correlation_argmax : The function that returns it.

        Examples
        --------
        >>> import numpy as np
        >>> import cupycorr
        >>> x = np.ones((1, 2, 4, 5), np.float32)
        >>> best = cupycorr.correlation_argmax(x, x, patch_size=3)
        >>> best.dy.shape, best.flow.shape
        ((1, 4, 5), (1, 4, 5, 2))
        """

        dy: Any
        dx: Any
        score: Any
        channel: Any

        @property
        def flow(self) -> Any:
            """The field in the order of optical flow, (u, v) = (dx, dy), on a last axis."""
            return _flow(self)

    class MeanDisplacement(NamedTuple):
        """The mean displacement for every position, as `correlation_soft_argmax` returns it.

        Attributes
        ----------
        dy, dx : array or Tensor of shape (B, [G], oH, oW), the axis G for several groups
            In pixels.

        See Also
        --------
        cupycorr.correlation_soft_argmax : The function that returns it.

        Examples
        --------
        >>> import numpy as np
        >>> import cupycorr
        >>> x = np.ones((1, 2, 4, 5), np.float32)
        >>> mean = cupycorr.correlation_soft_argmax(x, x, patch_size=3)
        >>> mean.dy.shape, mean.flow.shape
        ((1, 4, 5), (1, 4, 5, 2))
        """

        dy: Any
        dx: Any

        @property
        def flow(self) -> Any:
            """The field in the order of optical flow, (u, v) = (dx, dy), on a last axis."""
            return _flow(self)


def _flow(field: Any) -> Any:
    with current_device_of(field.dx):
        return array_module(field.dx).stack((field.dx, field.dy), -1)


Field = TypeVar("Field", "BestDisplacement[Any]", "MeanDisplacement[Any]")


def joined(fields: Sequence[Field], axis: int) -> Field:
    """Return the fields of all groups of channels in one, along a new axis."""
    first = fields[0]
    with current_device_of(first.dx):
        return type(first)(*(array_module(first.dx).stack(each, axis) for each in zip(*fields, strict=True)))


def best_displacement(
    ranges: tuple[range, range], may_be_missing: bool, score: Any, channel: Any, around: Any
) -> BestDisplacement[Any]:
    """Return the field of the best displacements.

    Parameters
    ----------
    ranges
        The displacements along y and along x, in pixels.
    may_be_missing
        True if channels may be -1.
    score, channel
        The best scores and their channels, (B, k, oH, oW).
    around
        The scores (B, 4, oH, oW) around the best one, if its place between pixels is wanted.
    """
    vertical, horizontal = ranges
    dy = channel // len(horizontal)
    dx = dy * -len(horizontal)
    dx += channel
    for index, tried in ((dy, vertical), (dx, horizontal)):  # in place: the arrays are large
        index *= tried.step
        index += tried.start
    if may_be_missing or around is not None:
        accumulator = str(score.dtype).removeprefix("torch.")
        missing = channel < 0
        dy, dx = (_or_nan(converted(each, accumulator), missing) for each in (dy, dx))
    if around is not None:
        peak = score[:, 0]
        dy = dy + (_fraction(around[:, 0], peak, around[:, 1]) * vertical.step)[:, None]
        dx = dx + (_fraction(around[:, 2], peak, around[:, 3]) * horizontal.step)[:, None]
    fields = dy, dx, score, channel
    return BestDisplacement(*(fields if score.shape[1] > 1 else (each[:, 0] for each in fields)))


def _or_nan(values: Any, missing: Any) -> Any:
    return array_module(values).where(missing, np.nan, values)


def _fraction(before: Any, peak: Any, after: Any) -> Any:
    """Return the position of the vertex of the parabola through three scores, within half a step of the peak.

    It is 0 where a neighbour is missing, where one of the scores is not finite, and where all three are equal.
    """
    xp = array_module(peak)
    curvature = (peak - before) + (peak - after)
    curved = xp.isfinite(curvature) & (curvature > 0)
    fraction = 0.5 * (after - before) / xp.where(curved, curvature, 1)
    return xp.where(curved, fraction.clip(-0.5, 0.5), 0)
