"""The channels of a cost volume: which displacement each one is, and the best one at each position.

Knows layouts and displacements; nothing of features, backends or dispatch, and how to draw is `_pictures`' business. A channel's
displacement is `Axis`'s, so no second formula can drift from the operator's. Every function of an array is looked up on its own
module under a name that NumPy, CuPy and torch share, so all three run the same lines, torch's under autograd and torch.compile.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import _pictures
from ._arguments import LARGEST, integer, is_real
from ._arrays import array_module, converted, current_device_of, is_tensor, known_array_or_tensor, plain_number, to_numpy
from ._correlation.problem import Axis, Problem, parameters
from ._dtypes import ElementType, element_type_called

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_IN_ORDER = {"dy": slice(None), "dx": slice(None, None, -1)}  # what takes (vertical, horizontal) to the order of two patch axes
_CHANNEL_AXES = {4: (1, 3, -1), 5: (1,)}  # by the number of dimensions


class Displacement(NamedTuple):
    """A displacement at every position, as `argmax_displacement` and `soft_argmax` return it, in pixels.

    Attributes
    ----------
    dy, dx : array or Tensor, shape (B, oH, oW)
        What lies at ``(y, x)`` in input1 lies at ``(y + dy, x + dx)`` in input2: positive is down and to the right.
    """

    dy: Any
    dx: Any

    @property
    def flow(self) -> Any:
        """The field in the order of optical flow networks, (u, v) = (dx, dy): shape (B, 2, oH, oW)."""
        with current_device_of(self.dx):
            return array_module(self.dx).stack((self.dx, self.dy), 1)


def displacements(patch_size: Any = 1, dilation_patch: Any = 1, *, patch_offset: Any = None, order: str = "dy") -> np.ndarray:
    """Which displacement each channel of a cost volume is.

    Parameters
    ----------
    patch_size : int or (int, int), default 1
        As passed to `spatial_correlation_sample`; or something that has the three parameters as attributes, such as a
        ``SpatialCorrelationSampler`` or the ``problem`` of an explanation. Then the other two must not be passed.
    dilation_patch, patch_offset
        As passed to `spatial_correlation_sample`.
    order : {"dy", "dx"}
        Which component changes slowest from channel to channel: "dy" in FlowNet, PWC-Net and what `to_channels` makes of the
        operator's output by default, "dx" in RAFT.

    Returns
    -------
    ndarray, shape (PH * PW, 2), int64
        ``(dy, dx)`` of each channel in pixels, whatever the order of the channels.

    Raises
    ------
    TypeError
        A parameter is not an int or a pair of ints, or is passed beside something that has it.
    ValueError
        A parameter is below its smallest legal value, or ``order`` is neither of the two.

    Examples
    --------
    >>> import cupycorr
    >>> cupycorr.displacements(patch_size=(1, 3), dilation_patch=2).tolist()
    [[0, -2], [0, 0], [0, 2]]
    >>> cupycorr.displacements(patch_size=2, order="dx").tolist()  # an even patch has one more on the positive side
    [[0, 0], [1, 0], [0, 1], [1, 1]]
    """
    _check_order(order)
    dy, dx = np.meshgrid(*_tried(patch_size, dilation_patch, patch_offset), indexing="ij" if order == "dy" else "xy")
    return np.stack((dy.ravel(), dx.ravel()), axis=1).astype(np.int64, copy=False)


def to_channels(out: Any, order: str = "dy") -> Any:
    """The operator's output with both patch axes joined to one channel axis, as networks take it.

    Parameters
    ----------
    out : array or Tensor, shape (B, PH, PW, oH, oW)
        NumPy, CuPy or torch, any dtype.
    order : {"dy", "dx"}
        Which component of the displacement changes slowest from channel to channel: "dy" for FlowNet and PWC-Net, "dx" for RAFT.

    Returns
    -------
    array or Tensor, shape (B, PH * PW, oH, oW)
        A view where the strides allow it, as they do for "dy" and the operator's own output; otherwise a copy.

    Raises
    ------
    TypeError
        ``out`` is no array.
    ValueError
        ``out`` has not five dimensions, or ``order`` is neither of the two.

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
    if out.ndim != 5:
        raise ValueError(f"out must have 5 dimensions (B, PH, PW, oH, oW), got out.shape={tuple(out.shape)}")
    with current_device_of(out):
        return _joined(out if order == "dy" else array_module(out).swapaxes(out, 1, 2))


def argmax_displacement(
    out: Any,
    patch_size: Any = None,
    dilation_patch: Any = 1,
    *,
    patch_offset: Any = None,
    order: str = "dy",
    channel_axis: int = 1,
) -> Displacement:
    """The displacement with the highest score at every position of a cost volume.

    Of equal scores the one of the first channel wins. A NaN counts as the highest score.

    Parameters
    ----------
    out : array or Tensor, shape (B, PH, PW, oH, oW) or (B, PH * PW, oH, oW)
        Scores: NumPy, CuPy or torch of float16, bfloat16, float32 or float64. With ``order="dx"`` the five-dimensional shape is
        (B, PW, PH, oH, oW).
    patch_size : int or (int, int), optional
        As passed to the operator; or something that has the parameters as attributes, as for `displacements`. None takes the
        sizes of the two patch axes, or the square root of the number of channels. With it, one of two patch axes may hold all
        displacements, the other being 1.
    dilation_patch, patch_offset
        As passed to the operator.
    order : {"dy", "dx"}
        Which component of the displacement changes slowest from channel to channel.
    channel_axis : {1, 3, -1}
        Where the channels of a four-dimensional ``out`` are; 3 and -1 are channels last, (B, oH, oW, PH * PW).

    Returns
    -------
    Displacement
        ``dy, dx``, int64 in pixels, of the kind and on the device of ``out``.

    Raises
    ------
    TypeError
        An argument is of the wrong type or dtype.
    ValueError
        An argument has an illegal value, or ``out`` a shape that does not fit the patch.

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
        scores, (first, second) = _laid_out(given, patch_size, dilation_patch, patch_offset, order, channel_axis)
        # Wide, because not every library compares bfloat16; widening changes no order.
        wide = converted(_joined(scores), element.accumulator)
        channel = converted(array_module(wide).argmax(wide, 1), "int64")
        both = (
            channel // len(second) * first.step + first.start,
            channel % len(second) * second.step + second.start,
        )
        return Displacement(*both[_IN_ORDER[order]])


def soft_argmax(
    out: Any,
    temperature: float = 1.0,
    patch_size: Any = None,
    dilation_patch: Any = 1,
    *,
    patch_offset: Any = None,
    order: str = "dy",
    channel_axis: int = 1,
) -> Displacement:
    """The expected displacement at every position of a cost volume: differentiable, and finer than a pixel.

    .. code-block:: text

        dy = sum over channels n of p(n) dy(n),   dx likewise
        p(n) = exp(out(n) / temperature) / sum over channels m of exp(out(m) / temperature)

    No score is too large for it: the highest at each position is subtracted first. The result is NaN where a score is NaN or
    positive infinity or where all are negative infinity; a channel with a score of negative infinity does not count.

    Parameters
    ----------
    out
        As `argmax_displacement` takes it.
    temperature : float, default 1.0
        Positive, in units of the scores: the lower, the nearer to the displacement of the highest score; the higher, the nearer
        to the mean of all.
    patch_size, dilation_patch, patch_offset, order, channel_axis
        As `argmax_displacement` takes them.

    Returns
    -------
    Displacement
        ``dy, dx`` in pixels, float64 for float64 scores, otherwise float32, of the kind and on the device of ``out``; for torch
        differentiable in ``out``.

    Raises
    ------
    TypeError, ValueError
        As `argmax_displacement`; also for a temperature that is no number, is not positive, or is too small or too large for the
        result's dtype.

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
    divisor = _positive(temperature, element)
    with current_device_of(given), _calm(given):
        scores, each = _laid_out(given, patch_size, dilation_patch, patch_offset, order, channel_axis)
        weights = _exponentials(converted(scores, element.accumulator), divisor)
        both = [_expectation(weights.sum(2 - axis), tried) for axis, tried in enumerate(each)]
        return Displacement(*both[_IN_ORDER[order]])


def plot_channels(
    out: Any,
    at: tuple[int, int] | None = None,
    *,
    sample: int = 0,
    patch_size: Any = None,
    dilation_patch: Any = 1,
    patch_offset: Any = None,
    order: str = "dy",
    channel_axis: int = 1,
) -> Figure:
    """Draw a cost volume: the scores of all displacements at one position, or one small map per displacement.

    Needs matplotlib, but not pyplot and no display: save the figure with ``figure.savefig("scores.png")``.

    Parameters
    ----------
    out
        As `argmax_displacement` takes it.
    at : (int, int), optional
        Output position ``(y, x)`` whose patch of scores is drawn, its highest finite score marked. None draws a contact sheet:
        the map of every displacement, laid out as the patch (rows dy, columns dx), in one colour scale. Large maps are thinned
        out to every n-th position, as the title then says.
    sample : int, default 0
        Which of the batch.
    patch_size, dilation_patch, patch_offset, order, channel_axis
        As `argmax_displacement` takes them.

    Returns
    -------
    matplotlib.figure.Figure
        Displacements are in pixels. Scores that are not finite are grey.

    Raises
    ------
    TypeError, ValueError
        As `argmax_displacement`; also for a position or a sample that there is not.
    ImportError
        matplotlib is not installed.

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
        scores, each = _laid_out(given, patch_size, dilation_patch, patch_offset, order, channel_axis)
        scores = scores if order == "dy" else array_module(scores).swapaxes(scores, 1, 2)
        chosen = (_index("sample", sample, scores.shape[0]), slice(None), slice(None), *_position(at, scores.shape[3:]))
        drawn = to_numpy(converted(scores[chosen], "float64"))  # so that the span of a float32 colour scale cannot overflow
    tried = each[_IN_ORDER[order]]
    return _pictures.contact_sheet(drawn, *tried) if at is None else _pictures.patch_picture(drawn, *tried, chosen[3:])


# What is asked -----------------------------------------------------------------------------------------------------------------


def _check_order(order: Any) -> None:
    if not isinstance(order, str) or order not in _IN_ORDER:
        raise ValueError(f"order must be 'dy' or 'dx', got order={order!r}")


def _element(out: Any) -> ElementType:
    return element_type_called("out", str(out.dtype).removeprefix("torch."))


def _positive(temperature: Any, element: ElementType) -> float:
    temperature = plain_number("temperature", temperature, "divide the scores instead")
    if not is_real(temperature):
        raise TypeError(f"temperature must be a real number, got temperature={temperature!r}")
    limits = np.finfo(element.accumulator_dtype)
    try:
        value = float(temperature)  # NumPy's small floats would round the limits
    except OverflowError:
        value = math.inf
    if not float(limits.tiny) <= value <= float(limits.max):
        what = f"positive, finite and representable in {element.accumulator}"
        raise ValueError(f"temperature must be {what}, got temperature={temperature!r}")
    return value


def _index(name: str, value: Any, size: int) -> int:
    index = integer(name, value, "an int", value)
    if not 0 <= index < size:
        raise ValueError(f"{name} must be at least 0 and below {size}, got {name}={value!r}")
    return index


def _position(at: Any, sizes: tuple[int, ...]) -> tuple[Any, Any]:
    """The two indices of a position; slices of everything for None."""
    if min(sizes) < 1:
        raise ValueError(f"out must have at least one position to draw, got {sizes[0]} x {sizes[1]} positions")
    if at is None:
        return slice(None), slice(None)
    what = f"a position (y, x) of two ints within {sizes[0]} x {sizes[1]}"
    if not isinstance(at, (tuple, list)):
        raise TypeError(f"at must be {what}, got at={at!r}")
    position = tuple(integer("at", value, what, at) for value in at)
    if len(position) != 2 or not all(0 <= value < size for value, size in zip(position, sizes, strict=True)):
        raise ValueError(f"at must be {what}, got at={at!r}")
    return position


def _tried(patch_size: Any, dilation_patch: Any, patch_offset: Any) -> tuple[range, range]:
    """The displacements tried along y and along x, from the parameters or from what has them."""
    given = patch_size.parameters if isinstance(patch_size, Problem) else patch_size
    if hasattr(given, "patch_size"):
        if not (type(dilation_patch) is int and dilation_patch == 1 and patch_offset is None):
            got = f"got dilation_patch={dilation_patch!r}, patch_offset={patch_offset!r}"
            raise TypeError(f"dilation_patch and patch_offset must not be passed beside a {type(patch_size).__name__}, {got}")
        if not hasattr(given, "dilation_patch"):
            raise TypeError(f"patch_size must be sizes, or have dilation_patch, too, got a {type(patch_size).__name__}")
        # Samplers of other packages know no offset.
        patch_size, dilation_patch, patch_offset = given.patch_size, given.dilation_patch, getattr(given, "patch_offset", None)
    # The default of scale would be a symbol where torch.compile is told that all numbers may change.
    asked = parameters(patch_size=patch_size, dilation_patch=dilation_patch, patch_offset=patch_offset, scale=1.0)
    pairs = zip(asked.patch_size, asked.dilation_patch, asked.patch_offset or (0, 0), strict=True)
    vertical, horizontal = (Axis(1, patch, 1, 0, 1, step, offset, 1, 1).displacements for patch, step, offset in pairs)
    if max(vertical.stop, horizontal.stop) > LARGEST or min(vertical.start, horizontal.start) < -LARGEST:
        raise ValueError(
            f"displacements must fit into 64 bits, got dilation_patch={dilation_patch!r}, patch_offset={patch_offset!r}"
        )
    return vertical, horizontal


def _laid_out(
    out: Any, patch_size: Any, dilation_patch: Any, patch_offset: Any, order: Any, channel_axis: Any
) -> tuple[Any, tuple[range, range]]:
    """The scores with two patch axes, (B, slow, fast, oH, oW), and the displacements of both, in ``order``."""
    _check_order(order)
    axis = integer("channel_axis", channel_axis, "an int", channel_axis)
    if out.ndim not in _CHANNEL_AXES:
        shapes = "(B, PH, PW, oH, oW) or (B, PH * PW, oH, oW)"
        raise ValueError(f"out must have 5 or 4 dimensions, {shapes}, got out.shape={tuple(out.shape)}")
    if axis not in _CHANNEL_AXES[out.ndim]:
        legal = " or ".join(map(str, _CHANNEL_AXES[out.ndim]))
        raise ValueError(f"channel_axis must be {legal} for out of {out.ndim} dimensions, got channel_axis={channel_axis!r}")
    if axis != 1:
        out = array_module(out).moveaxis(out, axis, 1)
    batch, *patch, height, width = out.shape
    if patch_size is None:
        patch_size = _patch_of(patch, order, axis)
    each = _tried(patch_size, dilation_patch, patch_offset)[_IN_ORDER[order]]
    slow, fast = map(len, each)
    if tuple(patch) not in {(slow, fast), (slow * fast,), (1, slow * fast), (slow * fast, 1)}:
        got = " x ".join(map(str, patch))
        wanted = f"{slow * fast} channels or patch axes of {slow} x {fast}"
        raise ValueError(f"out must have {wanted} for patch_size={patch_size!r} and order={order!r}, got {got}")
    return out.reshape(batch, slow, fast, height, width), each


def _patch_of(patch: list[int], order: str, axis: int) -> tuple[int, ...]:
    """``(PH, PW)`` by the sizes of the patch axes alone."""
    if min(patch) < 1:
        raise ValueError(f"out must have at least one displacement, got {' x '.join(map(str, patch))}")
    if len(patch) == 2:
        return tuple(patch[_IN_ORDER[order]])
    (channels,) = patch
    side = math.isqrt(channels)
    if side * side != channels:
        raise ValueError(
            f"patch_size must be passed where the number of channels is no square, got {channels} channels on axis {axis}"
        )
    return side, side


# Sums over channels ------------------------------------------------------------------------------------------------------------


def _joined(scores: Any) -> Any:
    """(B, n, oH, oW) from (B, slow, fast, oH, oW)."""
    batch, slow, fast, height, width = scores.shape
    return scores.reshape(batch, slow * fast, height, width)


def _exponentials(scores: Any, temperature: float) -> Any:
    """``exp(scores / temperature)``, up to a factor at each position that makes the largest 1."""
    xp = array_module(scores)
    # The expectation does not depend on what is subtracted, so neither does its gradient.
    still = scores.detach() if is_tensor(scores) else scores
    # Differences of halves cannot overflow; of a low temperature the half might underflow.
    share = 0.5 if temperature >= 1 else 1.0
    return xp.exp((scores * share - xp.amax(still, (1, 2), keepdims=True) * share) / (temperature * share))


def _expectation(weights: Any, tried: range) -> Any:
    """The weighted mean (B, oH, oW) of displacements with weights (B, n, oH, oW)."""
    options = {"device": weights.device} if is_tensor(weights) else {}
    # From the first one on: a far offset would cost the digits of the fractions.
    steps = array_module(weights).arange(0, len(tried) * tried.step, tried.step, dtype=weights.dtype, **options)
    return (weights * steps[:, None, None]).sum(1) / weights.sum(1) + tried.start


def _calm(out: Any) -> AbstractContextManager:
    """While it is entered, NumPy does not warn of what is documented to become NaN or weightless."""
    return nullcontext() if is_tensor(out) else np.errstate(over="ignore", invalid="ignore")
