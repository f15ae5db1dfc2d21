"""The public functions of matching for NumPy and CuPy arrays; tensors go to `cupycorr.torch`.

Each checks its arguments, makes a request of them and runs the plan that the dispatcher chooses. Wrong input is refused before
any work is done.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, overload

import numpy as np

from .. import _dispatch
from .._arguments import IntOrPair, effective_precision
from .._arrays import OPERAND, Array, ArrayT, array_kind, array_module, current_device_of, is_tensor, known_arrays
from .._checks import positive_temperature
from .._correlation.api import checked_problem
from .._dispatch import FORWARD, Operator, Request
from .._dtypes import element_type
from .._gpu.layout import Layout, dense_layout, layout
from .._groups import check_groups, several, split
from .problem import Mean, Problem, best, check_outside, ranges_of
from .results import BestDisplacement, MeanDisplacement, best_displacement, joined
from .variants import ARGMAX, SOFT_ARGMAX

_EXPLAINED = OPERAND._replace(for_tensors="; nothing is computed, so that any array of its shape and dtype will do")


@overload
def correlation_argmax(
    input1: np.ndarray,
    input2: np.ndarray,
    kernel_size: IntOrPair = ...,
    patch_size: IntOrPair = ...,
    stride: IntOrPair = ...,
    padding: IntOrPair = ...,
    dilation: IntOrPair = ...,
    dilation_patch: IntOrPair = ...,
    *,
    patch_offset: IntOrPair | None = ...,
    groups: int = ...,
    scale: float = ...,
    precision: str = ...,
    variant: str = ...,
    top_k: int = ...,
    subpixel: bool = ...,
    outside: str = ...,
) -> BestDisplacement[np.ndarray]: ...
@overload
def correlation_argmax(
    input1: ArrayT,
    input2: ArrayT,
    kernel_size: IntOrPair = ...,
    patch_size: IntOrPair = ...,
    stride: IntOrPair = ...,
    padding: IntOrPair = ...,
    dilation: IntOrPair = ...,
    dilation_patch: IntOrPair = ...,
    *,
    patch_offset: IntOrPair | None = ...,
    groups: int = ...,
    scale: float = ...,
    precision: str = ...,
    variant: str = ...,
    top_k: int = ...,
    subpixel: bool = ...,
    outside: str = ...,
) -> BestDisplacement[ArrayT]: ...
def correlation_argmax(
    input1: Array,
    input2: Array,
    kernel_size: IntOrPair = 1,
    patch_size: IntOrPair = 1,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    dilation_patch: IntOrPair = 1,
    *,
    patch_offset: IntOrPair | None = None,
    groups: int = 1,
    scale: float = 1.0,
    precision: str = "highest",
    variant: str = "auto",
    top_k: int = 1,
    subpixel: bool = False,
    outside: str = "zero",
) -> BestDisplacement[Any]:
    """Find the displacement with the highest score at every position, without the cost volume.

    .. code-block:: text

        score[b, i, j] = max over m, n of out[b, m, n, i, j]        out: see `spatial_correlation_sample`
        dy, dx         = dy(m), dx(n) of the lowest channel m PW + n that has this score

    The result is that of `argmax_displacement` for the volume in its accumulator (float32, float64 for float64 inputs), which is
    not rounded to 16 bits. NaN counts as the highest score. On the CPU scores are reduced as they are made, in at most 64 MiB
    beyond the inputs and the results, and up to 48 bytes for each position with ``subpixel``, 32 with excluded displacements.
    On a GPU the kernels reduce scores as they are made, and hold partial results of 8 bytes (16 for float64, twice that for
    ``top_k=2`` and five times for more) for each position and each tile of displacements. Where they cannot, slices of the
    volume are reduced: with ``subpixel``, for ``top_k`` above 5, for more channels than one thread may sum, and for windows that
    do not fit into a tile.

    Parameters
    ----------
    input1 : array or Tensor of shape (B, C, H, W)
        NumPy, CuPy or torch, float16, bfloat16, float32 or float64. Any strides. For torch the score is differentiable; see
        `cupycorr.torch.correlation_argmax`.
    input2 : array or Tensor of shape (B, C, H, W), or (B, C, H2, W2) where patch_offset is passed
        Same kind, device and dtype as ``input1``.
    kernel_size, patch_size, stride, padding, dilation, dilation_patch, patch_offset : int or (int, int), optional
        As for `spatial_correlation_sample`.
    groups : int, default 1
        As for `spatial_correlation_sample`. Each group of channels is searched by itself.
    scale : float, default 1.0
        As for `spatial_correlation_sample`.
    precision : {"highest", "high", "medium"}, default "highest"
        As for `spatial_correlation_sample`.
    variant : str, default "auto"
        The implementation to run; see `explain_argmax` for those there are.
    top_k : int, default 1
        The number of displacements to find at each position, at most PH * PW. They are sorted: the best first, and equal scores
        by their channels. More than one have an axis of their own.
    subpixel : bool, default False
        Move each component to the vertex of the parabola through the score and its two neighbours in the patch, by at most half
        of ``dilation_patch``. A component stays where a neighbour is outside the patch or excluded. It is for windows of one
        pixel and ``top_k=1``.
    outside : {"zero", "excluded"}
        A displacement that leaves input2 has the score of zeros, as in the volume, or it is excluded. With a window, the position
        of its centre tap ``(k - 1) // 2`` decides.

    Returns
    -------
    BestDisplacement
        ``dy, dx, score, channel`` of shape (B, [k], [G], oH, oW), of the kind and on the device of the inputs, and ``flow``
        (..., 2), which is dx, dy on a last axis. The axis k is there for ``top_k`` > 1, the axis G for several groups. ``dy, dx``
        are in pixels, int64; with ``subpixel`` or excluded displacements they have the dtype of ``score``, which is the
        accumulator's. ``channel`` is int64. Where fewer displacements than k are not excluded, ``dy, dx, score`` are NaN and
        ``channel`` is -1.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `spatial_correlation_sample`; also for ``top_k`` below 1 or above the number of displacements, and for ``subpixel``
        with a window or with ``top_k`` > 1.

    See Also
    --------
    cupycorr.correlation_soft_argmax : Return the mean displacement.
    cupycorr.argmax_displacement : Find the best displacement in a cost volume.
    cupycorr.match : Match two frames.
    cupycorr.explain_argmax : Explain which variant runs.

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> frame1 = np.random.default_rng(0).standard_normal((1, 64, 16, 16), dtype=np.float32)
    >>> frame2 = np.roll(frame1, (2, -1), axis=(2, 3))  # everything moved down 2 and left 1
    >>> best = cupycorr.correlation_argmax(frame1, frame2, patch_size=7)
    >>> int(best.dy[0, 8, 8]), int(best.dx[0, 8, 8])
    (2, -1)
    >>> best.flow.shape
    (1, 16, 16, 2)
    """
    given = (kernel_size, patch_size, stride, padding, dilation, dilation_patch)
    settings: dict[str, Any] = dict(patch_offset=patch_offset, scale=scale, precision=precision, variant=variant)
    settings |= dict(top_k=top_k, subpixel=subpixel, outside=outside)
    if is_tensor(input1) or is_tensor(input2):
        found: BestDisplacement[Any] = _for_tensors().correlation_argmax(input1, input2, *given, groups=groups, **settings)
        return found
    x1, x2 = known_arrays(input1=input1, input2=input2)
    problem = _best_problem(x1, x2, given, patch_offset, scale, precision, top_k, subpixel, outside)
    if count := several(groups):
        check_groups(count, x1)
        search: Callable[..., BestDisplacement[Any]] = correlation_argmax
        with _dispatch.temporaries_of(x1):
            return joined([search(*parts, *given, **settings) for parts in split(count, x1, x2)], axis=2 if top_k > 1 else 1)
    accumulator = element_type("input1", x1.dtype).accumulator_dtype
    with current_device_of(x1), _dispatch.temporaries_of(x1), _without_warnings():
        empty, shape = array_module(x1).empty, problem.out_shape
        results = {"score": empty(shape, accumulator), "channel": empty(shape, np.int64)}
        if subpixel:
            results["around"] = empty((shape[0], 4, *shape[2:]), accumulator)
        _run(ARGMAX, problem, x1, x2, results, precision, variant)
        return best_displacement(problem.ranges, problem.excluding, results["score"], results["channel"], results.get("around"))


@overload
def correlation_soft_argmax(
    input1: np.ndarray,
    input2: np.ndarray,
    kernel_size: IntOrPair = ...,
    patch_size: IntOrPair = ...,
    stride: IntOrPair = ...,
    padding: IntOrPair = ...,
    dilation: IntOrPair = ...,
    dilation_patch: IntOrPair = ...,
    *,
    patch_offset: IntOrPair | None = ...,
    groups: int = ...,
    scale: float = ...,
    precision: str = ...,
    variant: str = ...,
    temperature: float = ...,
    outside: str = ...,
) -> MeanDisplacement[np.ndarray]: ...
@overload
def correlation_soft_argmax(
    input1: ArrayT,
    input2: ArrayT,
    kernel_size: IntOrPair = ...,
    patch_size: IntOrPair = ...,
    stride: IntOrPair = ...,
    padding: IntOrPair = ...,
    dilation: IntOrPair = ...,
    dilation_patch: IntOrPair = ...,
    *,
    patch_offset: IntOrPair | None = ...,
    groups: int = ...,
    scale: float = ...,
    precision: str = ...,
    variant: str = ...,
    temperature: float = ...,
    outside: str = ...,
) -> MeanDisplacement[ArrayT]: ...
def correlation_soft_argmax(
    input1: Array,
    input2: Array,
    kernel_size: IntOrPair = 1,
    patch_size: IntOrPair = 1,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    dilation_patch: IntOrPair = 1,
    *,
    patch_offset: IntOrPair | None = None,
    groups: int = 1,
    scale: float = 1.0,
    precision: str = "highest",
    variant: str = "auto",
    temperature: float = 1.0,
    outside: str = "zero",
) -> MeanDisplacement[Any]:
    """Return the mean displacement at every position, weighted by its scores, without the cost volume.

    .. code-block:: text

        dy[b, i, j] = sum over m, n of p(m, n) dy(m),   dx likewise
        p(m, n) = exp(out[b, m, n, i, j] / temperature) / sum over m', n' of exp(out[b, m', n', i, j] / temperature)
        out: see `spatial_correlation_sample`

    The result is that of `soft_argmax` for the volume in its accumulator (float32, float64 for float64 inputs), which is not
    rounded to 16 bits. It is NaN where a score is NaN or positive infinity, or where all scores are negative infinity. On the CPU
    scores are reduced as they are made, in at most 64 MiB beyond the inputs and the results; on a GPU as for
    `correlation_argmax`, with partial results of 16 bytes, 32 for float64.

    Parameters
    ----------
    input1, input2 : array or Tensor
        As for `correlation_argmax`. For torch the result is differentiable; see `cupycorr.torch.correlation_soft_argmax`.
    kernel_size, patch_size, stride, padding, dilation, dilation_patch, patch_offset : int or (int, int), optional
        As for `correlation_argmax`.
    groups : int, default 1
        As for `correlation_argmax`.
    scale : float, default 1.0
        As for `correlation_argmax`.
    precision : {"highest", "high", "medium"}, default "highest"
        As for `correlation_argmax`.
    variant : str, default "auto"
        As for `correlation_argmax`.
    temperature : float, default 1.0
        Positive, in units of the scores.
    outside : {"zero", "excluded"}
        A displacement that leaves input2 has the score of zeros, as in the volume, or it is excluded: its weight is 0. The result
        is NaN where all are excluded.

    Returns
    -------
    MeanDisplacement
        ``dy, dx`` of shape (B, [G], oH, oW) in pixels, float64 for float64 inputs and otherwise float32, of the kind and on the
        device of the inputs, and ``flow`` (..., 2), which is dx, dy on a last axis. The axis G is there for several groups.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `spatial_correlation_sample`; also for a temperature that is not a number, is not positive, or is too small or too
        large for the result's dtype.

    See Also
    --------
    cupycorr.correlation_argmax : Find the best displacement.
    cupycorr.soft_argmax : Return the mean displacement of a cost volume.
    cupycorr.explain_soft_argmax : Explain which variant runs.

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> frame1 = np.random.default_rng(0).standard_normal((1, 64, 16, 16), dtype=np.float32)
    >>> frame2 = np.roll(frame1, (2, -1), axis=(2, 3))  # everything moved down 2 and left 1
    >>> mean = cupycorr.correlation_soft_argmax(frame1, frame2, patch_size=7)
    >>> round(float(mean.dy[0, 8, 8]), 3), round(float(mean.dx[0, 8, 8]), 3)
    (2.0, -1.0)
    """
    given = (kernel_size, patch_size, stride, padding, dilation, dilation_patch)
    settings: dict[str, Any] = dict(patch_offset=patch_offset, scale=scale, precision=precision, variant=variant)
    settings |= dict(temperature=temperature, outside=outside)
    if is_tensor(input1) or is_tensor(input2):
        found: MeanDisplacement[Any] = _for_tensors().correlation_soft_argmax(input1, input2, *given, groups=groups, **settings)
        return found
    x1, x2 = known_arrays(input1=input1, input2=input2)
    problem = _mean_problem(x1, x2, given, patch_offset, scale, precision, temperature, outside)
    if count := several(groups):
        check_groups(count, x1)
        mean: Callable[..., MeanDisplacement[Any]] = correlation_soft_argmax
        with _dispatch.temporaries_of(x1):
            return joined([mean(*parts, *given, **settings) for parts in split(count, x1, x2)], axis=1)
    accumulator = element_type("input1", x1.dtype).accumulator_dtype
    with current_device_of(x1), _dispatch.temporaries_of(x1), _without_warnings():
        empty = array_module(x1).empty
        results = {name: empty(problem.out_shape, accumulator) for name in ("dy", "dx")}
        _run(SOFT_ARGMAX, problem, x1, x2, results, precision, variant)
    return MeanDisplacement(results["dy"], results["dx"])


def explain_argmax(
    input1: Array,
    input2: Array,
    kernel_size: IntOrPair = 1,
    patch_size: IntOrPair = 1,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    dilation_patch: IntOrPair = 1,
    *,
    patch_offset: IntOrPair | None = None,
    groups: int = 1,
    scale: float = 1.0,
    precision: str = "highest",
    variant: str = "auto",
    top_k: int = 1,
    subpixel: bool = False,
    outside: str = "zero",
    measure: bool = False,
) -> _dispatch.Explanation:
    """Explain which variant of `correlation_argmax` would run, why each other one would not, and how fast it could be.

    Nothing is computed.

    Parameters
    ----------
    input1, input2 : array
        As for `correlation_argmax`.
    kernel_size, patch_size, stride, padding, dilation, dilation_patch, patch_offset : int or (int, int), optional
        As for `correlation_argmax`.
    groups : int, default 1
        As for `correlation_argmax`.
    scale : float, default 1.0
        As for `correlation_argmax`.
    precision : {"highest", "high", "medium"}, default "highest"
        As for `correlation_argmax`.
    variant : str, default "auto"
        As for `correlation_argmax`.
    top_k : int, default 1
        As for `correlation_argmax`.
    subpixel : bool, default False
        As for `correlation_argmax`.
    outside : {"zero", "excluded"}, default "zero"
        As for `correlation_argmax`.
    measure : bool, default False
        As for `explain`.

    Returns
    -------
    Explanation
        Print it; its fields are those of `explain`.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `correlation_argmax`. Tensors are a TypeError: pass arrays of their shape.

    See Also
    --------
    cupycorr.correlation_argmax : The search.
    cupycorr.explain : Explain `spatial_correlation_sample`.

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> x = np.zeros((1, 64, 24, 32), np.float32)
    >>> cupycorr.explain_argmax(x, x, patch_size=9).flops
    7962624
    """
    given = (kernel_size, patch_size, stride, padding, dilation, dilation_patch)
    x1, x2 = known_arrays(_EXPLAINED, input1=input1, input2=input2)
    problem = _best_problem(x1, x2, given, patch_offset, scale, precision, top_k, subpixel, outside)
    if count := several(groups):
        check_groups(count, x1)
        settings: dict[str, Any] = dict(patch_offset=patch_offset, scale=scale, precision=precision, variant=variant)
        settings |= dict(top_k=top_k, subpixel=subpixel, outside=outside, measure=measure)
        return explain_argmax(*next(split(count, x1, x2)), *given, **settings).repeated(count)
    return _dispatch.explain(ARGMAX, _request(problem, x1, x2, precision), _dispatch.place(x1), variant, measure=measure)


def explain_soft_argmax(
    input1: Array,
    input2: Array,
    kernel_size: IntOrPair = 1,
    patch_size: IntOrPair = 1,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    dilation_patch: IntOrPair = 1,
    *,
    patch_offset: IntOrPair | None = None,
    groups: int = 1,
    scale: float = 1.0,
    precision: str = "highest",
    variant: str = "auto",
    temperature: float = 1.0,
    outside: str = "zero",
    measure: bool = False,
) -> _dispatch.Explanation:
    """Explain which variant of `correlation_soft_argmax` would run, why each other one would not, and how fast it could be.

    Nothing is computed.

    Parameters
    ----------
    input1, input2 : array
        As for `correlation_soft_argmax`.
    kernel_size, patch_size, stride, padding, dilation, dilation_patch, patch_offset : int or (int, int), optional
        As for `correlation_soft_argmax`.
    groups : int, default 1
        As for `correlation_soft_argmax`.
    scale : float, default 1.0
        As for `correlation_soft_argmax`.
    precision : {"highest", "high", "medium"}, default "highest"
        As for `correlation_soft_argmax`.
    variant : str, default "auto"
        As for `correlation_soft_argmax`.
    temperature : float, default 1.0
        As for `correlation_soft_argmax`.
    outside : {"zero", "excluded"}, default "zero"
        As for `correlation_soft_argmax`.
    measure : bool, default False
        As for `explain`.

    Returns
    -------
    Explanation
        Print it; its fields are those of `explain`.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `correlation_soft_argmax`. Tensors are a TypeError: pass arrays of their shape.

    See Also
    --------
    cupycorr.correlation_soft_argmax : The mean displacement.
    cupycorr.explain : Explain `spatial_correlation_sample`.

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> x = np.zeros((1, 64, 24, 32), np.float32)
    >>> cupycorr.explain_soft_argmax(x, x, patch_size=9).flops
    7962624
    """
    given = (kernel_size, patch_size, stride, padding, dilation, dilation_patch)
    x1, x2 = known_arrays(_EXPLAINED, input1=input1, input2=input2)
    problem = _mean_problem(x1, x2, given, patch_offset, scale, precision, temperature, outside)
    if count := several(groups):
        check_groups(count, x1)
        settings: dict[str, Any] = dict(patch_offset=patch_offset, scale=scale, precision=precision, variant=variant)
        settings |= dict(temperature=temperature, outside=outside, measure=measure)
        return explain_soft_argmax(*next(split(count, x1, x2)), *given, **settings).repeated(count)
    return _dispatch.explain(SOFT_ARGMAX, _request(problem, x1, x2, precision), _dispatch.place(x1), variant, measure=measure)


# Requests ---------------------------------------------------------------------------------------------------------------------


def _without_warnings() -> AbstractContextManager[Any]:
    """Return a context without NumPy's warnings: overflows are infinities and NaN by definition."""
    return np.errstate(all="ignore")


def _for_tensors() -> Any:
    """Return the module of the functions for tensors, imported when the first one comes: importing it takes seconds."""
    return import_module("cupycorr.torch")


def _best_problem(
    input1: Any,
    input2: Any,
    given: tuple[Any, ...],
    patch_offset: Any,
    scale: Any,
    precision: Any,
    top_k: Any,
    subpixel: Any,
    outside: Any,
) -> Problem:
    """Check everything that can be wrong with the arguments of `correlation_argmax`, and return the problem."""
    correlation = checked_problem(input1, input2, given, patch_offset, 1, scale, precision)
    ranges_of(correlation.parameters)
    return Problem(correlation, best(correlation.parameters, top_k, subpixel), check_outside(outside))


def _mean_problem(
    input1: Any,
    input2: Any,
    given: tuple[Any, ...],
    patch_offset: Any,
    scale: Any,
    precision: Any,
    temperature: Any,
    outside: Any,
) -> Problem:
    """Check everything that can be wrong with the arguments of `correlation_soft_argmax`, and return the problem."""
    correlation = checked_problem(input1, input2, given, patch_offset, 1, scale, precision)
    ranges_of(correlation.parameters)
    positive = positive_temperature(temperature, element_type("input1", input1.dtype))
    return Problem(correlation, Mean(positive), check_outside(outside))


def _request(problem: Problem, input1: Any, input2: Any, precision: str) -> Request:
    row = element_type("input1", input1.dtype)
    layouts: tuple[Layout, ...] = ()
    if array_kind(input1) == "cupy":
        results = dense_layout(row.accumulator, problem.out_shape)
        layouts = layout("input1", input1), layout("input2", input2), results
    return Request(FORWARD, problem, row.name, row.accumulator, layouts, (True, True), effective_precision(precision, row.name))


def _run(
    operator: Operator, problem: Problem, input1: Any, input2: Any, results: dict[str, Any], precision: str, variant: str
) -> None:
    request = _request(problem, input1, input2, precision)
    plan = _dispatch.choose(operator, request, _dispatch.place(input1), variant).plan
    plan.run({"input1": input1, "input2": input2, **results})
