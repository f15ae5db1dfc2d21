"""The public functions of the lookup for NumPy and CuPy arrays.

Each function checks its arguments, makes a request of them and runs the plan that the dispatcher chooses. Wrong input is
refused before any work is done. Indices are the exception on a GPU, where reading them would wait for the device: kernels check
them there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import DTypeLike

from .. import _dispatch, _repeats
from .._arguments import IntOrPair, check_precision, effective_precision, types_of
from .._arrays import Array, ArrayT, Role, array_kind, known_array, known_arrays
from .._checks import beside_inputs, bools, checked_cotangent, checked_out, result_dtype
from .._dispatch import FORWARD, VJP, New, Request
from .._dtypes import ElementType, check_scale, dtype_name, element_type, index_type_called
from .._gpu.layout import dense_layout, layout
from .._groups import check_groups, several, split
from .groups import lookup_by_groups, vjp_by_groups
from .problem import DEFAULT_NEEDS, Needs, Operands, Problem, parameters
from .problem import problem as problem_of
from .variants import OPERATOR

_FOR_TENSORS = "; for tensors there is cupycorr.torch.correlation_lookup"
_FEATURES = Role("{name}.filled(0)", _FOR_TENSORS)  # a product with 0 adds nothing
_COORDS = Role("{floating}.filled(numpy.nan)", _FOR_TENSORS)  # any number would be a coordinate
_INDEX = Role("{name}.data", _FOR_TENSORS)
_RESULT = Role("{name}.data, which has the same memory, or no {name}", _FOR_TENSORS)  # filled() would return a copy


@overload
def correlation_lookup(
    input1: np.ndarray,
    input2: np.ndarray | Sequence[np.ndarray],
    coords: np.ndarray,
    patch_size: IntOrPair = ...,
    *,
    dilation_patch: IntOrPair = ...,
    level_step: IntOrPair = ...,
    index1: np.ndarray | None = ...,
    index2: np.ndarray | None = ...,
    order: Literal["dy", "dx"] = ...,
    groups: int = ...,
    scale: float = ...,
    dtype: DTypeLike | None = ...,
    precision: str = ...,
    variant: str = ...,
    out: np.ndarray | None = ...,
) -> np.ndarray: ...
@overload
def correlation_lookup(
    input1: ArrayT,
    input2: ArrayT | Sequence[ArrayT],
    coords: ArrayT,
    patch_size: IntOrPair = ...,
    *,
    dilation_patch: IntOrPair = ...,
    level_step: IntOrPair = ...,
    index1: ArrayT | None = ...,
    index2: ArrayT | None = ...,
    order: Literal["dy", "dx"] = ...,
    groups: int = ...,
    scale: float = ...,
    dtype: DTypeLike | None = ...,
    precision: str = ...,
    variant: str = ...,
    out: ArrayT | None = ...,
) -> ArrayT: ...
def correlation_lookup(
    input1: Array,
    input2: Array | Sequence[Array],
    coords: Array,
    patch_size: IntOrPair = 9,
    *,
    dilation_patch: IntOrPair = 1,
    level_step: IntOrPair = 2,
    index1: Array | None = None,
    index2: Array | None = None,
    order: Literal["dy", "dx"] = "dy",
    groups: int = 1,
    scale: float = 1.0,
    dtype: DTypeLike | None = None,
    precision: str = "highest",
    variant: str = "auto",
    out: Array | None = None,
) -> Any:
    """Correlate each pixel of a feature map with a small window around its coordinates in another map, or in a pyramid of maps.

    .. code-block:: text

        out[e, l, k, m, n, i, j] = scale * sum over a, b in {0, 1} of
            wy(a) wx(b) D(y0 + a + dy(m), x0 + b + dx(n))
        D(y', x') = sum over c of input1[s, c, i, j] * input2_l[t, c, y', x'],   0 outside input2_l
        with  X = coords[e, k, 0, i, j] px_l,   x0 = floor(X),   wx(1) = X - x0,   wx(0) = 1 - wx(1),   px_l = level_step ** -l
              dx(n) = dilation_patch (n - (PW - 1) // 2),   y likewise,   s = index1[e],   t = index2[e]

    This is the lookup of RAFT [1]_ and of the networks after it, computed on demand: no volume of all pairs is built. Dot
    products are interpolated bilinearly between pixels, and a pixel outside its map contributes 0. Sums are kept in float32
    (float64 for float64 features). A query whose coordinates are not finite gives NaN.

    Parameters
    ----------
    input1 : array of shape (N1, C, H, W)
        NumPy or CuPy array of float16, bfloat16 (`ml_dtypes`), float32 or float64. Any strides; read-only is fine.
    input2 : array of shape (N2, C, H2, W2), or a list or tuple of L such arrays
        Same kind, device and dtype as ``input1``. The levels of a pyramid have the same N2 and C, and heights and widths of their
        own; pooling is the caller's.
    coords : array of shape (E, 2, H, W) or (E, K, 2, H, W)
        The centre of each window: x, then y, in pixels of level 0 of ``input2``. Centres of pixels are whole numbers. With one
        channel instead of two it is x, and y is the query's own row i at every level. Of any dtype of the features, but not wider
        than the sums; 16-bit coordinates are widened.
    patch_size : int or (int, int), default 9
        P: number of displacements along each axis, ``(vertical, horizontal)`` like every pair below: 2 radius + 1 for a radius.
        An even patch has one more on the positive side.
    dilation_patch : int or (int, int), default 1
        Pixels of a level between displacements.
    level_step : int or (int, int), default 2
        The factor by which each level is smaller than the one before; ``(1, 2)`` for a pyramid of widths.
    index1, index2 : array of int32 or int64 and of shape (E,), optional
        The image of ``input1`` and of ``input2`` that each entry e of ``coords`` compares, in any order and repeated at will; by
        default image e. An index out of range is an IndexError for NumPy arrays. On a GPU, where indices are not read back, it
        makes the output of that entry NaN.
    order : {"dy", "dx"}, default "dy"
        The patch axis that comes first: "dy" as in `spatial_correlation_sample`, "dx" as in RAFT.
    groups : int, default 1
        G: the channels are divided into so many groups of neighbours, and each has an output of its own. It divides C. Each group
        is a lookup of its own, on views of the maps.
    scale : float, default 1.0
        Finite factor applied to the sum before it is rounded to the output's dtype.
    dtype : dtype, optional
        The dtype of the output, by default that of the features. Each output is rounded to it once.
    precision : {"highest", "high", "medium"}
        The precision of float32 products; as for `spatial_correlation_sample`.
    variant : str, default "auto"
        The implementation to run; see `explain_lookup` for those there are.
    out : array of shape (E, [G], [L], [K], PH, PW, H, W), optional
        The array for the result: float16, bfloat16, float32 or float64, of any strides that keep its elements apart; it may
        overlap an input. It is returned.

    Returns
    -------
    array of shape (E, [G], [L], [K], PH, PW, H, W)
        C-contiguous, of the inputs' kind and the features' dtype; the axes are PW, PH for the order "dx". The axis G is there for
        several groups, the axis L where ``input2`` is a list or tuple, the axis K where ``coords`` has five dimensions.

    Raises
    ------
    TypeError
        An argument is of the wrong type, kind or dtype.
    ValueError
        An argument has an illegal value or shape, or the levels of ``input2`` do not fit each other.
    IndexError
        An index is out of range (NumPy arrays).
    NotImplementedError
        ``variant`` names one that cannot run here; the message says why.

    See Also
    --------
    cupycorr.correlation_lookup_vjp : Return the gradients.
    cupycorr.volume_lookup : Look windows up in a volume that is there already.
    cupycorr.explain_lookup : Explain which variant runs.
    cupycorr.torch.CorrBlock : RAFT's block of that name, made of lookups.

    References
    ----------
    .. [1] Z. Teed and J. Deng, "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow", ECCV 2020

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> frame1 = np.random.default_rng(0).standard_normal((1, 64, 16, 16), dtype=np.float32)
    >>> frame2 = np.roll(frame1, (2, -1), axis=(2, 3))  # everything moved down 2 and left 1
    >>> y, x = np.mgrid[:16, :16].astype(np.float32)
    >>> guess = np.stack((x, y + 1))[None]  # coordinates: everything moved down 1
    >>> scores = cupycorr.correlation_lookup(frame1, frame2, guess, patch_size=5)
    >>> scores.shape
    (1, 5, 5, 16, 16)
    >>> m, n = divmod(int(scores[0, :, :, 8, 8].argmax()), 5)
    >>> m - 2, n - 2  # what the guess lacks: dy, dx
    (1, -1)
    """
    sizes = patch_size, dilation_patch, level_step
    if (type(groups) is not int or groups != 1) and (count := several(groups)):
        given = _operands(input1, input2, coords, index1, index2)
        problem = _checked_problem(given, sizes, order, scale, precision)
        lookup = _of_one_group(correlation_lookup, given, sizes, order, scale, precision, variant)
        return _lookup_of_groups(lookup, count, given, problem, dtype, out)
    arrays, passed = _as_passed(input1, input2, coords, index1, index2)
    key, repeat = _repeats.on_cupy(OPERATOR, FORWARD, arrays, (*sizes, order, scale, precision, variant, *passed), dtype, out=out)
    if repeat is not None:
        return repeat.run(arrays, out)[0]
    operands = _operands(input1, input2, coords, index1, index2)
    problem = _checked_problem(operands, sizes, order, scale, precision)
    inputs, like = operands.inputs(problem), operands.input1
    _check_indices(problem, inputs)
    written = None if out is None else checked_out(out, like, problem.out_shape, dtype, _RESULT)
    result = result_dtype(like, dtype) if written is None else written.dtype
    target = _dispatch.target_of(written, inputs)
    request = _forward_request(problem, inputs, target, result, precision)
    choice = _dispatch.choose(OPERATOR, request, _dispatch.place(like), variant)
    found = _dispatch.run_forward(choice.plan, inputs, written, target, problem.out_shape, result)
    _repeats.keep(key, choice, (New("out", problem.out_shape, result),))
    return found if out is None else out


@overload
def correlation_lookup_vjp(
    cotangent: np.ndarray,
    input1: np.ndarray,
    input2: np.ndarray,
    coords: np.ndarray,
    patch_size: IntOrPair = ...,
    *,
    dilation_patch: IntOrPair = ...,
    level_step: IntOrPair = ...,
    index1: np.ndarray | None = ...,
    index2: np.ndarray | None = ...,
    order: Literal["dy", "dx"] = ...,
    groups: int = ...,
    scale: float = ...,
    dtype: DTypeLike | None = ...,
    precision: str = ...,
    variant: str = ...,
    needs: tuple[Literal[True], Literal[True], bool] = ...,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]: ...
@overload
def correlation_lookup_vjp(
    cotangent: np.ndarray,
    input1: np.ndarray,
    input2: np.ndarray,
    coords: np.ndarray,
    patch_size: IntOrPair = ...,
    *,
    dilation_patch: IntOrPair = ...,
    level_step: IntOrPair = ...,
    index1: np.ndarray | None = ...,
    index2: np.ndarray | None = ...,
    order: Literal["dy", "dx"] = ...,
    groups: int = ...,
    scale: float = ...,
    dtype: DTypeLike | None = ...,
    precision: str = ...,
    variant: str = ...,
    needs: tuple[bool, bool, bool],
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]: ...
@overload
def correlation_lookup_vjp(
    cotangent: np.ndarray,
    input1: np.ndarray,
    input2: Sequence[np.ndarray],
    coords: np.ndarray,
    patch_size: IntOrPair = ...,
    *,
    dilation_patch: IntOrPair = ...,
    level_step: IntOrPair = ...,
    index1: np.ndarray | None = ...,
    index2: np.ndarray | None = ...,
    order: Literal["dy", "dx"] = ...,
    groups: int = ...,
    scale: float = ...,
    dtype: DTypeLike | None = ...,
    precision: str = ...,
    variant: str = ...,
    needs: tuple[Literal[True], Literal[True], bool] = ...,
) -> tuple[np.ndarray, tuple[np.ndarray, ...], np.ndarray | None]: ...
@overload
def correlation_lookup_vjp(
    cotangent: np.ndarray,
    input1: np.ndarray,
    input2: Sequence[np.ndarray],
    coords: np.ndarray,
    patch_size: IntOrPair = ...,
    *,
    dilation_patch: IntOrPair = ...,
    level_step: IntOrPair = ...,
    index1: np.ndarray | None = ...,
    index2: np.ndarray | None = ...,
    order: Literal["dy", "dx"] = ...,
    groups: int = ...,
    scale: float = ...,
    dtype: DTypeLike | None = ...,
    precision: str = ...,
    variant: str = ...,
    needs: tuple[bool, bool, bool],
) -> tuple[np.ndarray | None, tuple[np.ndarray, ...] | None, np.ndarray | None]: ...
@overload
def correlation_lookup_vjp(
    cotangent: ArrayT,
    input1: ArrayT,
    input2: ArrayT,
    coords: ArrayT,
    patch_size: IntOrPair = ...,
    *,
    dilation_patch: IntOrPair = ...,
    level_step: IntOrPair = ...,
    index1: ArrayT | None = ...,
    index2: ArrayT | None = ...,
    order: Literal["dy", "dx"] = ...,
    groups: int = ...,
    scale: float = ...,
    dtype: DTypeLike | None = ...,
    precision: str = ...,
    variant: str = ...,
    needs: tuple[Literal[True], Literal[True], bool] = ...,
) -> tuple[ArrayT, ArrayT, ArrayT | None]: ...
@overload
def correlation_lookup_vjp(
    cotangent: ArrayT,
    input1: ArrayT,
    input2: ArrayT,
    coords: ArrayT,
    patch_size: IntOrPair = ...,
    *,
    dilation_patch: IntOrPair = ...,
    level_step: IntOrPair = ...,
    index1: ArrayT | None = ...,
    index2: ArrayT | None = ...,
    order: Literal["dy", "dx"] = ...,
    groups: int = ...,
    scale: float = ...,
    dtype: DTypeLike | None = ...,
    precision: str = ...,
    variant: str = ...,
    needs: tuple[bool, bool, bool],
) -> tuple[ArrayT | None, ArrayT | None, ArrayT | None]: ...
@overload
def correlation_lookup_vjp(
    cotangent: ArrayT,
    input1: ArrayT,
    input2: Sequence[ArrayT],
    coords: ArrayT,
    patch_size: IntOrPair = ...,
    *,
    dilation_patch: IntOrPair = ...,
    level_step: IntOrPair = ...,
    index1: ArrayT | None = ...,
    index2: ArrayT | None = ...,
    order: Literal["dy", "dx"] = ...,
    groups: int = ...,
    scale: float = ...,
    dtype: DTypeLike | None = ...,
    precision: str = ...,
    variant: str = ...,
    needs: tuple[Literal[True], Literal[True], bool] = ...,
) -> tuple[ArrayT, tuple[ArrayT, ...], ArrayT | None]: ...
@overload
def correlation_lookup_vjp(
    cotangent: ArrayT,
    input1: ArrayT,
    input2: Sequence[ArrayT],
    coords: ArrayT,
    patch_size: IntOrPair = ...,
    *,
    dilation_patch: IntOrPair = ...,
    level_step: IntOrPair = ...,
    index1: ArrayT | None = ...,
    index2: ArrayT | None = ...,
    order: Literal["dy", "dx"] = ...,
    groups: int = ...,
    scale: float = ...,
    dtype: DTypeLike | None = ...,
    precision: str = ...,
    variant: str = ...,
    needs: tuple[bool, bool, bool],
) -> tuple[ArrayT | None, tuple[ArrayT, ...] | None, ArrayT | None]: ...
def correlation_lookup_vjp(
    cotangent: Array,
    input1: Array,
    input2: Array | Sequence[Array],
    coords: Array,
    patch_size: IntOrPair = 9,
    *,
    dilation_patch: IntOrPair = 1,
    level_step: IntOrPair = 2,
    index1: Array | None = None,
    index2: Array | None = None,
    order: Literal["dy", "dx"] = "dy",
    groups: int = 1,
    scale: float = 1.0,
    dtype: DTypeLike | None = None,
    precision: str = "highest",
    variant: str = "auto",
    needs: tuple[bool, bool, bool] = DEFAULT_NEEDS,
) -> tuple[Any, Any, Any]:
    """Return the gradients of `correlation_lookup`: its vector-Jacobian product with a cotangent.

    .. code-block:: text

        gd = scale * sum of wy(a) wx(b) g over the outputs that read a dot      (dots of a query and a position of its window)
        g1[s, c, i, j]      = sum over the windows of the queries at (i, j) of gd * input2
        g2_l[t, c, y', x']  = sum over the queries whose windows hold (y', x') of gd * input1
        gX[e, k, i, j]      = sum over l, m, n of scale px_l g ((1 - wy) (D01 - D00) + wy (D11 - D10)),   gY likewise

    The derivative at whole-number coordinates is that to the right. Nothing is added atomically: the same inputs give bitwise the
    same gradients every time. A query whose coordinates are not finite gives NaN in the gradients of ``input1`` and ``coords`` at
    that query, and adds nothing to that of ``input2``.

    Parameters
    ----------
    cotangent : array of shape (E, [G], [L], [K], PH, PW, H, W)
        Gradient of the loss with respect to the output, of the output's dtype.
    input1 : array
        As passed to `correlation_lookup`.
    input2 : array, or list or tuple of arrays
        As passed to `correlation_lookup`.
    coords : array
        As passed to `correlation_lookup`.
    patch_size, dilation_patch, level_step : int or (int, int), optional
        As passed to `correlation_lookup`.
    index1, index2 : array of int32 or int64, optional
        As passed to `correlation_lookup`. On a GPU an entry with an index out of range contributes to no gradient; its own
        gradient of ``coords`` is 0.
    order : {"dy", "dx"}, default "dy"
        As passed to `correlation_lookup`.
    groups : int, default 1
        As passed to `correlation_lookup`.
    scale : float, default 1.0
        As passed to `correlation_lookup`.
    dtype : dtype, optional
        As passed to `correlation_lookup`: the dtype of ``cotangent`` where it is not the features'.
    precision : {"highest", "high", "medium"}, default "highest"
        As passed to `correlation_lookup`.
    variant : str, default "auto"
        As passed to `correlation_lookup`.
    needs : (bool, bool, bool), default (True, True, False)
        Which gradients to compute, of ``input1``, ``input2`` and ``coords``; nothing is spent on the others.

    Returns
    -------
    (g1, g2, gc)
        Gradients with the shapes and dtypes of ``input1``, ``input2`` and ``coords``, C-contiguous; None in place of one that was
        not asked for. Where ``input2`` is a list or tuple, so is g2: a tuple with the gradient of each level.

    Raises
    ------
    TypeError, ValueError, IndexError, NotImplementedError
        As `correlation_lookup`; also for a cotangent of the wrong shape or dtype.

    See Also
    --------
    cupycorr.correlation_lookup : The lookup.
    cupycorr.torch.correlation_lookup : The lookup for tensors, with derivatives of any order.

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> x1, x2 = np.random.default_rng(0).standard_normal((2, 1, 8, 16, 16))
    >>> coords = np.random.default_rng(1).uniform(0, 15, (1, 2, 16, 16))
    >>> g = np.ones((1, 3, 3, 16, 16))
    >>> g1, g2, gc = cupycorr.correlation_lookup_vjp(g, x1, x2, coords, 3, needs=(True, True, True))
    >>> out = cupycorr.correlation_lookup(x1, x2, coords, 3)
    >>> bool(np.isclose(np.vdot(g, out), np.vdot(g1, x1)) and np.isclose(np.vdot(g, out), np.vdot(g2, x2)))
    True
    """
    sizes = patch_size, dilation_patch, level_step
    if (type(groups) is not int or groups != 1) and (count := several(groups)):
        given = _operands(input1, input2, coords, index1, index2)
        problem = _checked_problem(given, sizes, order, scale, precision)
        vjp = _of_one_group(correlation_lookup_vjp, given, sizes, order, scale, precision, variant)
        return _vjp_of_groups(vjp, count, cotangent, given, problem, dtype, needs)
    arrays, passed = _as_passed(input1, input2, coords, index1, index2)
    arrays, values = (cotangent, *arrays), (*sizes, order, scale, precision, variant, *passed)
    key, repeat = _repeats.on_cupy(OPERATOR, VJP, arrays, values, dtype, needs=needs)
    if repeat is not None:
        return _returned(repeat.run(arrays), input2, needs)
    operands = _operands(input1, input2, coords, index1, index2)
    problem = _checked_problem(operands, sizes, order, scale, precision)
    inputs, like = operands.inputs(problem), operands.input1
    _check_indices(problem, inputs)
    cotangent = checked_cotangent(cotangent, like, problem.out_shape, result_dtype(like, dtype), _FEATURES)
    needed = problem.needs_of_inputs(_checked_needs(needs))
    request = _vjp_request(problem, inputs, cotangent, cotangent.dtype, needed, precision)
    choice = _dispatch.choose(OPERATOR, request, _dispatch.place(like), variant)
    gradients = _dispatch.new_gradients(problem, inputs, needed)
    found = _dispatch.run_vjp(choice.plan, {"cotangent": cotangent, **inputs}, gradients)
    _repeats.keep(key, choice, gradients)
    return _returned(found, input2, needs)


def explain_lookup(
    input1: Array,
    input2: Array | Sequence[Array],
    coords: Array,
    patch_size: IntOrPair = 9,
    *,
    dilation_patch: IntOrPair = 1,
    level_step: IntOrPair = 2,
    index1: Array | None = None,
    index2: Array | None = None,
    groups: int = 1,
    order: Literal["dy", "dx"] = "dy",
    scale: float = 1.0,
    dtype: DTypeLike | None = None,
    precision: str = "highest",
    variant: str = "auto",
    gradients: bool | tuple[bool, bool, bool] = False,
    measure: bool = False,
) -> _dispatch.Explanation:
    """Explain which variant of `correlation_lookup` would run and how, why each other one would not, and how fast it could be.

    Nothing is computed.

    Parameters
    ----------
    input1 : array
        As for `correlation_lookup`.
    input2 : array, or list or tuple of arrays
        As for `correlation_lookup`.
    coords : array
        As for `correlation_lookup`.
    patch_size, dilation_patch, level_step : int or (int, int), optional
        As for `correlation_lookup`.
    index1, index2 : array of int32 or int64, optional
        As for `correlation_lookup`.
    groups : int, default 1
        As for `correlation_lookup`.
    order : {"dy", "dx"}, default "dy"
        As for `correlation_lookup`.
    scale : float, default 1.0
        As for `correlation_lookup`.
    dtype : dtype, optional
        As for `correlation_lookup`.
    precision : {"highest", "high", "medium"}, default "highest"
        As for `correlation_lookup`.
    variant : str, default "auto"
        As for `correlation_lookup`.
    gradients : bool or (bool, bool, bool), default False
        Explain `correlation_lookup_vjp` instead: the gradients that it computes by default, or those that ``needs`` of that
        function names.
    measure : bool, default False
        As for `explain`.

    Returns
    -------
    Explanation
        Print it; its fields are those of `explain`. ``flops_inside`` is None: it depends on the coordinates.

    Raises
    ------
    TypeError, ValueError, IndexError, NotImplementedError
        As `correlation_lookup`.

    See Also
    --------
    cupycorr.correlation_lookup : The lookup.
    cupycorr.explain : Explain `spatial_correlation_sample`.

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> x, coords = np.zeros((1, 64, 24, 32), np.float32), np.zeros((1, 2, 24, 32), np.float32)
    >>> cupycorr.explain_lookup(x, x, coords, patch_size=9).pass_name
    'forward'
    """
    operands, sizes = _operands(input1, input2, coords, index1, index2), (patch_size, dilation_patch, level_step)
    problem = _checked_problem(operands, sizes, order, scale, precision)
    if count := several(groups):
        check_groups(count, operands.input1)
        explain = _of_one_group(explain_lookup, operands, sizes, order, scale, precision, variant)
        part1, part2 = next(split(count, operands.input1, operands.input2))
        one: _dispatch.Explanation = explain(part1, part2, operands.coords, dtype=dtype, gradients=gradients, measure=measure)
        return one.repeated(count)
    inputs, result = operands.inputs(problem), result_dtype(operands.input1, dtype)
    _check_indices(problem, inputs)
    if gradients is False:
        request = _forward_request(problem, inputs, None, result, precision)
    else:
        what = "a bool or a triple of bools"
        needs = _checked_needs(DEFAULT_NEEDS if gradients is True else gradients, "gradients", what)
        request = _vjp_request(problem, inputs, None, result, problem.needs_of_inputs(needs), precision)
    return _dispatch.explain(OPERATOR, request, _dispatch.place(operands.input1), variant, measure=measure)


# Groups -----------------------------------------------------------------------------------------------------------------------


def _lookup_of_groups(lookup: Callable[..., Any], groups: int, given: _Given, problem: Problem, dtype: Any, out: Any) -> Any:
    check_groups(groups, given.input1)
    entries, *rest = problem.out_shape
    written = None if out is None else checked_out(out, given.input1, (entries, groups, *rest), dtype, _RESULT)
    result = result_dtype(given.input1, dtype) if written is None else written.dtype
    found = lookup_by_groups(lookup, groups, given.input1, given.input2, given.coords, problem.out_shape, result)
    if written is None:
        return found
    written[...] = found
    return out


def _vjp_of_groups(
    vjp: Callable[..., Any], groups: int, cotangent: Any, given: _Given, problem: Problem, dtype: Any, needs: Any
) -> tuple[Any, Any, Any]:
    check_groups(groups, given.input1)
    entries, *rest = problem.out_shape
    shape, result = (entries, groups, *rest), result_dtype(given.input1, dtype)
    cotangent = checked_cotangent(cotangent, given.input1, shape, result, _FEATURES)
    vjp_of_one = partial(vjp, dtype=result, needs=_checked_needs(needs))
    return vjp_by_groups(vjp_of_one, groups, cotangent, given.input1, given.input2, given.coords)


def _of_one_group(
    call: Callable[..., Any], given: _Given, sizes: tuple[Any, ...], order: Any, scale: Any, precision: Any, variant: Any
) -> Callable[..., Any]:
    """Return a public function of maps and coordinates alone."""
    patch_size, dilation_patch, level_step = sizes
    return partial(
        call,
        patch_size=patch_size,
        dilation_patch=dilation_patch,
        level_step=level_step,
        index1=given.index1,
        index2=given.index2,
        order=order,
        scale=scale,
        precision=precision,
        variant=variant,
    )


# Arrays -----------------------------------------------------------------------------------------------------------------------


def _as_passed(input1: Any, input2: Any, coords: Any, index1: Any, index2: Any) -> tuple[tuple[Any, ...], tuple[bool, ...]]:
    """Return the arguments that should be arrays in one tuple, and which of them input2 and the indices are."""
    pyramid = isinstance(input2, (list, tuple))
    indices = [index for index in (index1, index2) if index is not None]
    arrays = input1, *(input2 if pyramid else (input2,)), coords, *indices
    return arrays, (pyramid, index1 is not None, index2 is not None)


def _returned(gradients: list[Any], input2: Any, needs: Needs) -> tuple[Any, Any, Any]:
    """Return the gradients of the maps, and of coords, as a caller gets them who has passed this input2."""
    first, *levels, coords = gradients
    second = None if not needs[1] else tuple(levels) if isinstance(input2, (list, tuple)) else levels[0]
    return first, second, coords


@dataclass(frozen=True, slots=True)
class _Given:
    """The arrays of a call, each a NumPy or CuPy array, all of one kind and on one device; indices are None if not passed."""

    input1: Any
    levels: tuple[Any, ...]
    pyramid: bool
    coords: Any
    index1: Any
    index2: Any

    @property
    def input2(self) -> Any:
        """The second map, or the list of the levels of a pyramid, as it was passed."""
        return list(self.levels) if self.pyramid else self.levels[0]

    def inputs(self, problem: Problem) -> dict[str, Any]:
        """Return the inputs by the names that the problem gives them."""
        levels = dict(zip(problem.level_names, self.levels, strict=True))
        indices = {"index1": self.index1, "index2": self.index2}
        passed = {name: index for name, index in indices.items() if index is not None}
        return {"input1": self.input1, **levels, "coords": self.coords, **passed}


def _operands(input1: Any, input2: Any, coords: Any, index1: Any, index2: Any) -> _Given:
    """Check that the arguments are arrays of one kind and on one device."""
    pyramid = isinstance(input2, (list, tuple))
    if pyramid:
        levels = tuple(known_array(f"input2[{level}]", each, _FEATURES) for level, each in enumerate(input2))
        names = [f"input2[{level}]" for level in range(len(levels))]
    else:
        levels = (known_array("input2", input2, _FEATURES, "a NumPy or CuPy array or a list or tuple of them"),)
        names = ["input2"]
    input1, *levels_of_a_kind = known_arrays(_FEATURES, input1=input1, **dict(zip(names, levels, strict=True)))
    coords = beside_inputs("coords", coords, input1, _COORDS)
    first, second = (
        None if index is None else beside_inputs(name, index, input1, _INDEX)
        for name, index in (("index1", index1), ("index2", index2))
    )
    return _Given(input1, tuple(levels_of_a_kind), pyramid, coords, first, second)


def _check_indices(problem: Problem, inputs: dict[str, Any]) -> None:
    """Refuse indices out of range where they are on the CPU."""
    for name, batch in (("index1", problem.batch1), ("index2", problem.batch2)):
        index = inputs.get(name)
        if index is not None and array_kind(index) == "numpy":
            check_index_values(name, index, batch)


def check_index_values(name: str, index: np.ndarray, batch: int) -> None:
    """Refuse indices (..., E) of images that a batch does not have; the axes before the last one are of samples."""
    wrong = np.argwhere((index < 0) | (index >= batch))
    if len(wrong):
        at = tuple(wrong[0])
        raise IndexError(f"{name} must be from 0 to {batch - 1}, got {name}[{at[-1]}]={index[at]}")


# Requests ---------------------------------------------------------------------------------------------------------------------


def _request(pass_name: str, inputs: dict[str, Any], problem: Problem, result: np.dtype[Any], precision: str) -> Request:
    dtype = dtype_name(inputs["input1"].dtype)
    needs = problem.needs_of_inputs((True, True, True))
    return Request(pass_name, problem, dtype, dtype_name(result), (), needs, effective_precision(precision, dtype))


def _forward_request(problem: Problem, inputs: dict[str, Any], out: Any, result: np.dtype[Any], precision: str) -> Request:
    """Return the request for the output; where there is no array for it yet, it will have no gaps."""
    request = _request(FORWARD, inputs, problem, result, precision)
    if _dispatch.place(inputs["input1"]).device is None:
        return request
    output = dense_layout(request.result_dtype, problem.out_shape) if out is None else layout("out", out)
    return request._replace(layouts=(*(layout(name, array) for name, array in inputs.items()), output))


def _vjp_request(
    problem: Problem,
    inputs: dict[str, Any],
    cotangent: Any,
    result: np.dtype[Any],
    needs: tuple[bool, ...],
    precision: str,
) -> Request:
    """Return the request for gradients, which will have no gaps; nor will a cotangent that is not there yet."""
    request = _request(VJP, inputs, problem, result, precision)._replace(needs=needs)
    if _dispatch.place(inputs["input1"]).device is None:
        return request
    output = dense_layout(request.result_dtype, problem.out_shape) if cotangent is None else layout("cotangent", cotangent)
    operands = (layout(name, array) for name, array in inputs.items())
    return request._replace(layouts=(output, *operands, *request.gradient_layouts()))


# Checks -----------------------------------------------------------------------------------------------------------------------


def _checked_problem(given: _Given, sizes: tuple[Any, ...], order: Any, scale: Any, precision: Any) -> Problem:
    """Check everything that can be wrong with the inputs and the parameters, and return the problem."""
    dtypes = given.input1.dtype, tuple(level.dtype for level in given.levels), given.coords.dtype
    shapes = given.input1.shape, tuple(level.shape for level in given.levels), given.coords.shape
    indices = tuple(None if index is None else (index.shape, index.dtype) for index in (given.index1, given.index2))
    arguments = (_NUMPY, dtypes, shapes, given.pyramid, indices, sizes, order, scale, precision)
    types = types_of((*sizes, order, scale, precision))
    return checked_problem(*arguments) if types is None else _problem_once(types, *arguments)


class Dtypes(NamedTuple):
    """The functions that read the dtypes of an array library.

    Attributes
    ----------
    element_type
        Return the element type of an argument, by the argument's name and its dtype.
    index_type
        Return the name of the dtype of an argument that is an array of indices.
    """

    element_type: Callable[[str, Any], ElementType]
    index_type: Callable[[str, Any], str]


def checked_problem(
    read: Dtypes,
    dtypes: tuple[Any, ...],
    shapes: tuple[Any, ...],
    pyramid: bool,
    indices: tuple[Any, ...],
    sizes: tuple[Any, ...],
    order: Any,
    scale: Any,
    precision: Any,
) -> Problem:
    """Check everything that can be wrong with the inputs and the parameters of a call, and return its problem.

    Parameters
    ----------
    read
        Reads the dtypes.
    dtypes, shapes
        The dtypes and the shapes of input1, of each level of input2, and of coords.
    pyramid
        True if input2 is a sequence of maps.
    indices
        The shape and the dtype of index1 and of index2, None for one that was not passed.
    sizes
        patch_size, dilation_patch and level_step.
    order, scale, precision
        As passed by the caller.
    """
    of_input1, of_levels, of_coords = dtypes
    names = [f"input2[{level}]" if pyramid else "input2" for level in range(len(of_levels))]
    row = read.element_type("input1", of_input1)
    for name, each in zip(names, of_levels, strict=True):
        check_elements(row, name, read.element_type(name, each))
    coords_row = read.element_type("coords", of_coords)
    check_coords(row, coords_row)
    first, second = (
        None if index is None else (index[0], read.index_type(name, index[1]))
        for name, index in zip(("index1", "index2"), indices, strict=True)
    )
    patch_size, dilation_patch, level_step = sizes
    params = parameters(patch_size, dilation_patch=dilation_patch, level_step=level_step, order=order, scale=scale)
    shape1, shapes2, coords_shape = shapes
    checked = problem_of(params, Operands(shape1, shapes2, pyramid, coords_shape, coords_row.name, first, second))
    check_scale(checked.parameters.scale, row)
    check_precision(precision)
    return checked


@lru_cache(1024)
def _problem_once(types: tuple[Any, ...], *arguments: Any) -> Problem:
    """Return the problem from a cache: models make the same call again and again."""
    return checked_problem(*arguments)


def check_elements(first: ElementType, name: str, other: ElementType) -> None:
    """Refuse maps of two dtypes."""
    if first is not other:
        got = f"got input1.dtype={first.name}, {name}.dtype={other.name}"
        raise TypeError(f"input1 and {name} must have the same dtype, {got}")


def check_coords(features: ElementType, coords: ElementType) -> None:
    """Refuse coordinates that are wider than the sums, which would round them."""
    if coords.itemsize > features.accumulator_dtype.itemsize:
        got = f"got coords.dtype={coords.name}, input1.dtype={features.name}"
        raise TypeError(f"coords must not be wider than the {features.accumulator} accumulator, {got}")


def _index_type(name: str, dtype: np.dtype[Any]) -> str:
    """Return the name of the dtype of an array of indices, and refuse everything but native int32 and int64."""
    return index_type_called(name, dtype_name(dtype) if dtype.isnative else repr(dtype.str)).name


_NUMPY = Dtypes(element_type, _index_type)


def _checked_needs(needs: Any, name: str = "needs", what: str = "a triple of bools") -> Needs:
    first, second, third = bools(name, needs, 3, what)
    return first, second, third
