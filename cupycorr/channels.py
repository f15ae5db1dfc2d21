"""The channels of a cost volume: the displacement of each one, and the best displacement at each position.

This module handles layouts and displacements. It must not depend on variants or dispatch, and leaves drawing to `_pictures`. The
displacement of a channel comes from `search_range`, so that there is no second formula beside the operator's. Array functions are
looked up on the array's own module by names that NumPy, CuPy and torch share, so all three run the same code, torch's also under
autograd and torch.compile.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar, overload

import numpy as np

from . import _pictures
from ._arguments import IntOrPair, Pair, integer
from ._arrays import (
    Array,
    ArrayT,
    array_module,
    converted,
    current_device_of,
    is_tensor,
    known_array_or_tensor,
    to_numpy,
)
from ._checks import positive_temperature
from ._correlation.problem import Problem, parameters, search_range
from ._dtypes import ElementType, element_type_called

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")

_ORDERS = ("dy", "dx")  # the component that changes slowest from channel to channel
_CHANNEL_AXES = {4: (1, 3, -1), 5: (1,), 6: (1,)}  # by the number of dimensions; only with four does the axis matter


if TYPE_CHECKING:
    # At run time a named tuple cannot inherit from Generic before Python 3.11. `Displacement[...]` works there without it.
    class Displacement(NamedTuple, Generic[ArrayT]):
        dy: ArrayT
        dx: ArrayT

        @property
        def flow(self) -> ArrayT: ...

else:

    class Displacement(NamedTuple):
        """A displacement in pixels for every position, as `argmax_displacement` and `soft_argmax` return it.

        Attributes
        ----------
        dy, dx : array or Tensor of shape (B, [G], oH, oW)
            The point ``(y, x)`` of input1 is at ``(y + dy, x + dx)`` in input2: positive is down and to the right.

        See Also
        --------
        cupycorr.argmax_displacement : Return the best displacement.
        cupycorr.soft_argmax : Return the mean displacement.

        Examples
        --------
        >>> import numpy as np
        >>> import cupycorr
        >>> dy, dx = cupycorr.argmax_displacement(np.zeros((1, 3, 3, 4, 5), np.float32))
        >>> dy.shape, dx.shape
        ((1, 4, 5), (1, 4, 5))
        """

        dy: Any
        dx: Any

        @property
        def flow(self) -> Any:
            """The field in the order of optical flow networks, (u, v) = (dx, dy): shape (B, 2, [G], oH, oW)."""
            with current_device_of(self.dx):
                return array_module(self.dx).stack((self.dx, self.dy), 1)


class HasPatch(Protocol):
    """An object with the parameters of a patch as attributes, such as a ``SpatialCorrelationSampler``."""

    @property
    def patch_size(self) -> Any:
        """The number of displacements along each axis."""

    @property
    def dilation_patch(self) -> Any:
        """The pixels between displacements."""


Patch = IntOrPair | HasPatch | Problem


def displacements(
    patch_size: Patch = 1,
    dilation_patch: IntOrPair = 1,
    *,
    patch_offset: IntOrPair | None = None,
    order: str = "dy",
) -> np.ndarray:
    """Return the displacement of each channel of a cost volume.

    Parameters
    ----------
    patch_size : int or (int, int), default 1
        As passed to `spatial_correlation_sample`; or an object with the three parameters as attributes, such as a
        ``SpatialCorrelationSampler`` or the ``problem`` of an explanation. Then the other two must not be passed.
    dilation_patch, patch_offset : int or (int, int), optional
        As passed to `spatial_correlation_sample`.
    order : {"dy", "dx"}
        The component of the displacement that changes slowest from channel to channel: "dy" in FlowNet, in PWC-Net and in what
        `to_channels` returns by default, "dx" in RAFT.

    Returns
    -------
    ndarray of shape (PH * PW, 2), int64
        ``(dy, dx)`` of each channel in pixels, whatever the order of the channels.

    Raises
    ------
    TypeError
        A parameter is not an int or a pair of ints, or is passed beside an object that has it.
    ValueError
        A parameter is below its smallest legal value, or ``order`` is neither of the two.

    See Also
    --------
    cupycorr.to_channels : Join the patch axes of a cost volume to channels.
    cupycorr.argmax_displacement : Find the best displacement in a cost volume.

    Examples
    --------
    >>> import cupycorr
    >>> cupycorr.displacements(patch_size=(1, 3), dilation_patch=2).tolist()
    [[0, -2], [0, 0], [0, 2]]
    >>> cupycorr.displacements(patch_size=2, order="dx").tolist()  # an even patch has one more on the positive side
    [[0, 0], [1, 0], [0, 1], [1, 1]]
    """
    _check_order(order)
    vertical, horizontal = _search_range(patch_size, dilation_patch, patch_offset)
    dy, dx = np.meshgrid(vertical, horizontal, indexing="ij" if order == "dy" else "xy")
    return np.stack((dy.ravel(), dx.ravel()), axis=1).astype(np.int64, copy=False)


@overload
def to_channels(out: np.ndarray, order: str = ...) -> np.ndarray: ...
@overload
def to_channels(out: ArrayT, order: str = ...) -> ArrayT: ...
def to_channels(out: Any, order: str = "dy") -> Any:
    """Join the two patch axes of the operator's output to one channel axis, as networks expect it.

    Parameters
    ----------
    out : array or Tensor of shape (B, [G], PH, PW, oH, oW)
        NumPy, CuPy or torch, any dtype. The axis G is there for several groups.
    order : {"dy", "dx"}
        The component of the displacement that changes slowest from channel to channel: "dy" for FlowNet and PWC-Net, "dx" for
        RAFT.

    Returns
    -------
    array or Tensor of shape (B, [G], PH * PW, oH, oW)
        A view if the strides allow it, as they do for "dy" and the operator's own output; otherwise a copy.

    Raises
    ------
    TypeError
        ``out`` is not an array.
    ValueError
        ``out`` does not have five or six dimensions, or ``order`` is neither of the two.

    See Also
    --------
    cupycorr.displacements : Return the displacement of each channel.

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> x = np.ones((1, 8, 6, 7), np.float32)
    >>> cupycorr.to_channels(cupycorr.spatial_correlation_sample(x, x, patch_size=9)).shape
    (1, 81, 6, 7)
    """
    _check_order(order)
    out = known_array_or_tensor("out", out)
    if out.ndim not in (5, 6):
        shape = tuple(out.shape)
        raise ValueError(f"out must have 5 dimensions (B, PH, PW, oH, oW), or 6 with groups after B, got out.shape={shape}")
    with current_device_of(out):
        return _joined(out if order == "dy" else array_module(out).swapaxes(out, -4, -3))


@overload
def argmax_displacement(
    out: np.ndarray,
    patch_size: Patch | None = ...,
    dilation_patch: IntOrPair = ...,
    *,
    patch_offset: IntOrPair | None = ...,
    order: str = ...,
    channel_axis: int = ...,
) -> Displacement[np.ndarray]: ...
@overload
def argmax_displacement(
    out: ArrayT,
    patch_size: Patch | None = ...,
    dilation_patch: IntOrPair = ...,
    *,
    patch_offset: IntOrPair | None = ...,
    order: str = ...,
    channel_axis: int = ...,
) -> Displacement[ArrayT]: ...
def argmax_displacement(
    out: Array,
    patch_size: Patch | None = None,
    dilation_patch: IntOrPair = 1,
    *,
    patch_offset: IntOrPair | None = None,
    order: str = "dy",
    channel_axis: int = 1,
) -> Displacement[Any]:
    """Return the displacement with the highest score at every position of a cost volume.

    Among equal scores, the first channel wins. NaN counts as the highest score.

    Parameters
    ----------
    out : array or Tensor of shape (B, PH, PW, oH, oW), (B, G, PH, PW, oH, oW) or (B, PH * PW, oH, oW)
        Scores: NumPy, CuPy or torch, float16, bfloat16, float32 or float64. With ``order="dx"`` the patch axes are PW, PH.
    patch_size : int or (int, int), optional
        As passed to the operator; or an object with the parameters as attributes, as for `displacements`. None stands for the
        sizes of the two patch axes, or for the square root of the number of channels. If it is passed, one of the two patch axes
        may hold all displacements and the other have size 1.
    dilation_patch, patch_offset : int or (int, int), optional
        As passed to the operator.
    order : {"dy", "dx"}
        The component of the displacement that changes slowest from channel to channel.
    channel_axis : {1, 3, -1}
        The axis of the channels in a four-dimensional ``out``; 3 and -1 are channels last, (B, oH, oW, PH * PW).

    Returns
    -------
    Displacement
        ``dy, dx`` of shape (B, [G], oH, oW), int64 in pixels, of the kind and on the device of ``out``.

    Raises
    ------
    TypeError
        An argument is of the wrong type or dtype.
    ValueError
        An argument has an illegal value, or the shape of ``out`` does not fit the patch.

    See Also
    --------
    cupycorr.soft_argmax : Return the mean displacement.
    cupycorr.correlation_argmax : Find the best displacement without the cost volume.

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> frame1 = np.random.default_rng(0).standard_normal((1, 64, 16, 16), dtype=np.float32)
    >>> frame2 = np.roll(frame1, (2, -1), axis=(2, 3))  # everything moved down 2 and left 1
    >>> found = cupycorr.argmax_displacement(cupycorr.spatial_correlation_sample(frame1, frame2, patch_size=7))
    >>> int(found.dy[0, 8, 8]), int(found.dx[0, 8, 8])
    (2, -1)
    >>> found.flow.shape
    (1, 2, 16, 16)
    """
    given = known_array_or_tensor("out", out)
    element = _element(given)
    with current_device_of(given):
        scores, (slow, fast) = _with_patch_axes(given, patch_size, dilation_patch, patch_offset, order, channel_axis)
        # Not every library compares bfloat16. Widening keeps the order of the scores.
        wide = converted(_joined(scores), element.accumulator)
        channel = converted(array_module(wide).argmax(wide, 1), "int64")
        components = (
            channel // len(fast) * slow.step + slow.start,
            channel % len(fast) * fast.step + fast.start,
        )
        return _displacement(components, given, order)


@overload
def soft_argmax(
    out: np.ndarray,
    temperature: float = ...,
    patch_size: Patch | None = ...,
    dilation_patch: IntOrPair = ...,
    *,
    patch_offset: IntOrPair | None = ...,
    order: str = ...,
    channel_axis: int = ...,
) -> Displacement[np.ndarray]: ...
@overload
def soft_argmax(
    out: ArrayT,
    temperature: float = ...,
    patch_size: Patch | None = ...,
    dilation_patch: IntOrPair = ...,
    *,
    patch_offset: IntOrPair | None = ...,
    order: str = ...,
    channel_axis: int = ...,
) -> Displacement[ArrayT]: ...
def soft_argmax(
    out: Array,
    temperature: float = 1.0,
    patch_size: Patch | None = None,
    dilation_patch: IntOrPair = 1,
    *,
    patch_offset: IntOrPair | None = None,
    order: str = "dy",
    channel_axis: int = 1,
) -> Displacement[Any]:
    """Return the expected displacement at every position of a cost volume, which is differentiable and finer than a pixel.

    .. code-block:: text

        dy = sum over channels n of p(n) dy(n),   dx likewise
        p(n) = exp(out(n) / temperature) / sum over channels m of exp(out(m) / temperature)

    Large scores do not overflow: the highest one at each position is subtracted first. The result is NaN where a score is NaN or
    positive infinity, or where all scores are negative infinity. A single score of negative infinity has the weight 0.

    Parameters
    ----------
    out : array or Tensor
        As for `argmax_displacement`.
    temperature : float, default 1.0
        Positive, in units of the scores. The lower it is, the nearer is the result to the displacement of the highest score; the
        higher it is, the nearer to the mean of all displacements.
    patch_size, dilation_patch, patch_offset : int or (int, int), optional
        As for `argmax_displacement`.
    order : {"dy", "dx"}, default "dy"
        As for `argmax_displacement`.
    channel_axis : {1, 3, -1}, default 1
        As for `argmax_displacement`.

    Returns
    -------
    Displacement
        ``dy, dx`` of shape (B, [G], oH, oW) in pixels, float64 for float64 scores, otherwise float32, of the kind and on the
        device of ``out``; for torch differentiable in ``out``.

    Raises
    ------
    TypeError, ValueError
        As `argmax_displacement`; also for a temperature that is not a number, is not positive, or is too small or too large for
        the result's dtype.

    See Also
    --------
    cupycorr.argmax_displacement : Return the best displacement.
    cupycorr.correlation_soft_argmax : Return the mean displacement without the cost volume.

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> scores = np.zeros((1, 1, 3, 1, 1), np.float32)  # at dx = -1, 0, 1
    >>> scores[0, 0, 1:] = 20  # 0 and 1 are equally good
    >>> cupycorr.soft_argmax(scores).dx.round(3).item()
    0.5
    """
    given = known_array_or_tensor("out", out)
    element = _element(given)
    divisor = positive_temperature(temperature, element)
    with current_device_of(given), _without_numpy_warnings(given):
        scores, ranges = _with_patch_axes(given, patch_size, dilation_patch, patch_offset, order, channel_axis)
        weights = _exponentials(converted(scores, element.accumulator), divisor)
        components = _expectation(weights.sum(2), ranges[0]), _expectation(weights.sum(1), ranges[1])
        return _displacement(components, given, order)


def plot_channels(
    out: Array,
    at: Pair | None = None,
    *,
    sample: int = 0,
    group: int = 0,
    patch_size: Patch | None = None,
    dilation_patch: IntOrPair = 1,
    patch_offset: IntOrPair | None = None,
    order: str = "dy",
    channel_axis: int = 1,
) -> Figure:
    """Draw a cost volume: the scores of all displacements at one position, or one small map per displacement.

    This needs matplotlib, but neither pyplot nor a display: save the figure with ``figure.savefig("scores.png")``.

    Parameters
    ----------
    out : array or Tensor
        As for `argmax_displacement`.
    at : (int, int), optional
        Output position ``(y, x)``: its patch of scores is drawn and the highest finite score is marked. None draws a contact
        sheet: the map of every displacement, arranged as the patch (rows dy, columns dx), in one colour scale. Of large maps only
        every n-th position is drawn, and the title says so.
    sample : int, default 0
        Index in the batch.
    group : int, default 0
        Index of the group, for several groups.
    patch_size, dilation_patch, patch_offset : int or (int, int), optional
        As for `argmax_displacement`.
    order : {"dy", "dx"}, default "dy"
        As for `argmax_displacement`.
    channel_axis : {1, 3, -1}, default 1
        As for `argmax_displacement`.

    Returns
    -------
    matplotlib.figure.Figure
        Displacements are in pixels. Scores that are not finite are grey.

    Raises
    ------
    TypeError, ValueError
        As `argmax_displacement`; also for a position, a sample or a group outside of ``out``.
    ImportError
        matplotlib is not installed.

    See Also
    --------
    cupycorr.argmax_displacement : Find the best displacement in the cost volume.

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> frame1 = np.random.default_rng(0).standard_normal((1, 64, 16, 16), dtype=np.float32)
    >>> frame2 = np.roll(frame1, (2, -1), axis=(2, 3))  # everything moved down 2 and left 1
    >>> scores = cupycorr.spatial_correlation_sample(frame1, frame2, patch_size=7)
    >>> cupycorr.plot_channels(scores, at=(8, 8)).axes[0].get_title(loc="left")
    'scores at y=8, x=8: best dy=2, dx=-1'
    """
    given = known_array_or_tensor("out", out)
    _element(given)
    with current_device_of(given):
        scores, ranges = _with_patch_axes(given, patch_size, dilation_patch, patch_offset, order, channel_axis)
        scores = scores if order == "dy" else array_module(scores).swapaxes(scores, 1, 2)
        groups = given.shape[1] if given.ndim == 6 else 1
        chosen = _index("sample", sample, given.shape[0]) * groups + _index("group", group, groups)
        of_sample = scores[chosen]
        position = _position(at, scores.shape[3:])
        drawn = of_sample if position is None else of_sample[:, :, position[0], position[1]]
        picture = to_numpy(converted(drawn, "float64"))  # the span of a float32 colour scale could overflow
    vertical, horizontal = _in_order(ranges, order)
    if position is None:
        return _pictures.contact_sheet(picture, vertical, horizontal)
    return _pictures.patch_picture(picture, vertical, horizontal, position)


# Arguments ---------------------------------------------------------------------------------------------------------------------


def _check_order(order: Any) -> None:
    if not isinstance(order, str) or order not in _ORDERS:
        raise ValueError(f"order must be 'dy' or 'dx', got order={order!r}")


def _element(out: Any) -> ElementType:
    return element_type_called("out", str(out.dtype).removeprefix("torch."))


def _index(name: str, value: Any, size: int) -> int:
    index = integer(name, value, "an int", value)
    if not 0 <= index < size:
        raise ValueError(f"{name} must be at least 0 and below {size}, got {name}={value!r}")
    return index


def _position(at: Any, sizes: tuple[int, ...]) -> Pair | None:
    """Check the position to draw, in maps of these sizes."""
    if min(sizes) < 1:
        raise ValueError(f"out must have at least one position to draw, got {sizes[0]} x {sizes[1]} positions")
    if at is None:
        return None
    what = f"a position (y, x) of two ints within {sizes[0]} x {sizes[1]}"
    if not isinstance(at, (tuple, list)):
        raise TypeError(f"at must be {what}, got at={at!r}")
    position = tuple(integer("at", value, what, at) for value in at)
    if len(position) != 2 or not all(0 <= value < size for value, size in zip(position, sizes, strict=True)):
        raise ValueError(f"at must be {what}, got at={at!r}")
    return position[0], position[1]


def _search_range(patch_size: Any, dilation_patch: Any, patch_offset: Any) -> tuple[range, range]:
    """Return the displacements along y and along x, from the parameters or from an object that has them."""
    given = patch_size.parameters if isinstance(patch_size, Problem) else patch_size
    if hasattr(given, "patch_size"):
        if not (type(dilation_patch) is int and dilation_patch == 1 and patch_offset is None):
            got = f"got dilation_patch={dilation_patch!r}, patch_offset={patch_offset!r}"
            raise TypeError(f"dilation_patch and patch_offset must not be passed beside a {type(patch_size).__name__}, {got}")
        if not hasattr(given, "dilation_patch"):
            raise TypeError(f"patch_size must be sizes, or have dilation_patch, too, got a {type(patch_size).__name__}")
        # Samplers of other packages have no offset.
        patch_size, dilation_patch, patch_offset = given.patch_size, given.dilation_patch, getattr(given, "patch_offset", None)
    # With torch.compile(dynamic=True), the default of scale would be a symbol.
    checked = parameters(patch_size=patch_size, dilation_patch=dilation_patch, patch_offset=patch_offset, scale=1.0)
    return search_range(checked.patch_size, checked.dilation_patch, checked.patch_offset)


def _with_patch_axes(
    out: Any, patch_size: Any, dilation_patch: Any, patch_offset: Any, order: Any, channel_axis: Any
) -> tuple[Any, tuple[range, range]]:
    """Return the scores as (B * G, slow, fast, oH, oW), and the displacements along the slow and the fast patch axis."""
    _check_order(order)
    axis = integer("channel_axis", channel_axis, "an int", channel_axis)
    if out.ndim not in _CHANNEL_AXES:
        shapes = "(B, PH, PW, oH, oW), (B, G, PH, PW, oH, oW) or (B, PH * PW, oH, oW)"
        raise ValueError(f"out must have 5, 6 or 4 dimensions, {shapes}, got out.shape={tuple(out.shape)}")
    if axis not in _CHANNEL_AXES[out.ndim]:
        legal = " or ".join(map(str, _CHANNEL_AXES[out.ndim]))
        raise ValueError(f"channel_axis must be {legal} for out of {out.ndim} dimensions, got channel_axis={channel_axis!r}")
    if axis != 1:
        out = array_module(out).moveaxis(out, axis, 1)
    if out.ndim == 6:
        out = out.reshape(out.shape[0] * out.shape[1], *out.shape[2:])
    batch, *patch, height, width = out.shape
    if patch_size is None:
        patch_size = _patch_of(patch, order, axis)
    slow_range, fast_range = _in_order(_search_range(patch_size, dilation_patch, patch_offset), order)
    slow, fast = len(slow_range), len(fast_range)
    if tuple(patch) not in {(slow, fast), (slow * fast,), (1, slow * fast), (slow * fast, 1)}:
        got = " x ".join(map(str, patch))
        wanted = f"{slow * fast} channels or patch axes of {slow} x {fast}"
        raise ValueError(f"out must have {wanted} for patch_size={patch_size!r} and order={order!r}, got {got}")
    return out.reshape(batch, slow, fast, height, width), (slow_range, fast_range)


def _displacement(components: tuple[Any, Any], out: Any, order: str) -> Displacement[Any]:
    """Return the displacement with the axes of a volume, from its components (B * G, oH, oW) along the slow and the fast axis."""
    if out.ndim == 6:
        slow, fast = (each.reshape(*out.shape[:2], *each.shape[1:]) for each in components)
        components = slow, fast
    return Displacement(*_in_order(components, order))


def _in_order(components: tuple[T, T], order: str) -> tuple[T, T]:
    """Convert (vertical, horizontal) to (slow, fast), or back."""
    return components if order == "dy" else (components[1], components[0])


def _patch_of(patch: list[int], order: str, axis: int) -> Pair:
    """Return ``(PH, PW)``, from the sizes of the patch axes alone."""
    if min(patch) < 1:
        raise ValueError(f"out must have at least one displacement, got {' x '.join(map(str, patch))}")
    if len(patch) == 2:
        return _in_order((patch[0], patch[1]), order)
    (channels,) = patch
    side = math.isqrt(channels)
    if side * side != channels:
        raise ValueError(
            f"patch_size must be passed where the number of channels is no square, got {channels} channels on axis {axis}"
        )
    return side, side


# Sums over channels ------------------------------------------------------------------------------------------------------------


def _joined(scores: Any) -> Any:
    """Reshape (B, [G], slow, fast, oH, oW) to (B, [G], n, oH, oW)."""
    *leading, slow, fast, height, width = scores.shape
    return scores.reshape(*leading, slow * fast, height, width)


def _exponentials(scores: Any, temperature: float) -> Any:
    """Return ``exp(scores / temperature)`` divided by its maximum at each position."""
    xp = array_module(scores)
    # The maximum cancels out of the expectation, so it needs no gradient.
    constant = scores.detach() if is_tensor(scores) else scores
    # The difference of halved scores cannot overflow, but half of a low temperature could underflow.
    factor = 0.5 if temperature >= 1 else 1.0
    return xp.exp((scores * factor - xp.amax(constant, (1, 2), keepdims=True) * factor) / (temperature * factor))


def _expectation(weights: Any, tried: range) -> Any:
    """Return the mean (B, oH, oW) of displacements with weights (B, n, oH, oW)."""
    options = {"device": weights.device} if is_tensor(weights) else {}
    # The first displacement is added last: a large one would cost digits of the fraction.
    steps = array_module(weights).arange(0, len(tried) * tried.step, tried.step, dtype=weights.dtype, **options)
    return (weights * steps[:, None, None]).sum(1) / weights.sum(1) + tried.start


def _without_numpy_warnings(out: Any) -> AbstractContextManager[Any]:
    """Return a context without NumPy's warnings about the overflows and NaN that `soft_argmax` documents."""
    return nullcontext() if is_tensor(out) else np.errstate(over="ignore", invalid="ignore")
