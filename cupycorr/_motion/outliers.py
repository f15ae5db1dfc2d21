"""The normalised median test, which finds displacements that do not fit to those around them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._arguments import finite_number, integer
from .._arrays import FIELD, ArrayT, array_kind, array_module, current_device_of, known_arrays
from .geometry import steps_of

_AT_ONCE = 2**20  # neighbours that are sorted at once


def median_residual(dy: ArrayT, dx: ArrayT, radius: int = 1, noise: float = 0.1) -> ArrayT:
    """Return how far each displacement of a grid is from those around it: the normalised median test of PIV [1]_.

    .. code-block:: text

        residual = |u - median(u_i)| / (median(|u_i - median(u_i)|) + noise)

    for each component u, where u_i are its neighbours without itself; the two residuals are joined to
    ``sqrt(residual_dy^2 + residual_dx^2)``. It is about 1 in any flow; a displacement with a residual above 2 is an outlier.

    Parameters
    ----------
    dy, dx : array of shape (H', W') or (T, H', W')
        NumPy, CuPy or Dask, floating: the displacements in pixels, of one field or of T fields. NaN where there is none. Dask
        arrays are computed chunk by chunk, with the neighbours in other chunks.
    radius : int, default 1
        The neighbours are those at most this far along each axis: 8 for 1, 24 for 2.
    noise : float, default 0.1
        Expected noise of the displacements in pixels, positive.

    Returns
    -------
    array of shape (H', W') or (T, H', W')
        The residuals, float64: NaN where there is no displacement, infinity where there is one without any neighbour.

    Raises
    ------
    TypeError
        An argument is not an array of floating dtype, ``radius`` is not an int, or ``noise`` is not a number.
    ValueError
        The arrays are not those of a grid or differ in shape, ``radius`` is below 1, or ``noise`` is not positive.

    See Also
    --------
    cupycorr.Match.valid : Return which displacements of a match to trust.

    References
    ----------
    .. [1] J. Westerweel and F. Scarano, "Universal outlier detection for PIV data", Experiments in Fluids 39, 2005.

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> dy, dx = np.zeros((5, 6)), np.full((5, 6), 3.0)
    >>> dx[2, 3] = -7  # an outlier
    >>> np.argwhere(cupycorr.median_residual(dy, dx) > 2)
    array([[2, 3]])
    """
    chunked = array_kind(dy) == array_kind(dx) == "dask"
    if not chunked:
        dy, dx = known_arrays(FIELD, dy=dy, dx=dx)
    for name, values in (("dy", dy), ("dx", dx)):
        if values.dtype.kind != "f":
            raise TypeError(f"{name} must have a floating dtype, got {name}.dtype={values.dtype}")
    if dy.shape != dx.shape or len(dy.shape) not in (2, 3):
        got = f"got dy.shape={dy.shape}, dx.shape={dx.shape}"
        raise ValueError(f"dy and dx must be of one shape (H', W') or (T, H', W'), {got}")
    around = integer("radius", radius, "an int", radius)
    if around < 1:
        raise ValueError(f"radius must be at least 1, got radius={radius!r}")
    level = finite_number("noise", noise)
    if level <= 0:
        raise ValueError(f"noise must be positive, got noise={noise!r}")
    found: ArrayT = _by_chunks(dy, dx, around, level) if chunked else _of_arrays(dy, dx, around, level)
    return found


def _by_chunks(dy: Any, dx: Any, radius: int, noise: float) -> Any:
    """Return the residuals of Dask arrays, whose chunks get the neighbours in other chunks."""
    depth = {axis: radius if axis >= dy.ndim - 2 else 0 for axis in range(dy.ndim)}
    options = dict(depth=depth, boundary="none", dtype=np.float64, meta=dy._meta.astype(np.float64))
    dask_array = array_module(dy)
    return dask_array.map_overlap(_of_arrays, dy, dx, **options, radius=radius, noise=noise)


def _of_arrays(dy: Any, dx: Any, radius: int, noise: float) -> Any:
    xp = array_module(dy)
    with current_device_of(dy):
        if dy.ndim > 2:
            return xp.stack([_of_arrays(*each, radius, noise) for each in zip(dy, dx, strict=True)])
        residual = xp.empty(dy.shape)
        rows = max(_AT_ONCE // max(dy.shape[1] * (2 * radius + 1) ** 2, 1), 1)
        for part in steps_of(dy.shape[0], rows):
            residual[part] = xp.sqrt(sum(_residual(each, part, radius, noise) ** 2 for each in (dy, dx)))
    return residual


def _residual(field: Any, rows: slice, radius: int, noise: float) -> Any:
    """Return the residual of one component for some rows of a field."""
    xp = array_module(field)
    begin = max(rows.start - radius, 0)
    around_rows = field[begin : rows.stop + radius].astype(xp.float64)
    height, width = rows.stop - rows.start, field.shape[1]
    padded = xp.full((height + 2 * radius, width + 2 * radius), xp.nan)
    top = begin - rows.start + radius
    padded[top : top + len(around_rows), radius : radius + width] = around_rows
    values = padded[radius : radius + height, radius : radius + width]
    size = 2 * radius + 1
    around = [padded[i : i + height, j : j + width] for i in range(size) for j in range(size) if (i, j) != (radius, radius)]
    neighbours = xp.stack(around)
    median = _median_of_known(neighbours)
    spread = _median_of_known(abs(neighbours - median))
    residual = abs(values - median) / (spread + noise)
    return xp.where(xp.isfinite(median) | xp.isnan(values), residual, xp.inf)


def _median_of_known(values: Any) -> Any:
    """Return the median along the first axis of the values that are not NaN; NaN where all are."""
    xp = array_module(values)
    ordered = xp.sort(values, axis=0)  # NaN last
    known = (~xp.isnan(values)).sum(axis=0, keepdims=True)
    low, high = ((xp.maximum(known - 1, 0)) // 2, known // 2)
    low, high = (xp.take_along_axis(ordered, xp.minimum(at, len(ordered) - 1), axis=0)[0] for at in (low, high))
    return (low + high) / 2
