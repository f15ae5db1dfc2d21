"""The public functions of the fixed-grid operator for NumPy and CuPy arrays.

Each checks its arguments, makes a request of them and runs the plan that the dispatcher chooses. Wrong input is refused before
any work is done.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import DTypeLike

from .. import _dispatch, _repeats
from .._arguments import IntOrPair, Shape, check_precision, effective_precision, types_of
from .._arrays import (
    OPERAND,
    RESULT,
    Array,
    ArrayT,
    known_arrays,
)
from .._checks import bools, checked_cotangent, checked_out, result_dtype
from .._dispatch import FORWARD, VJP, New, Place, Request
from .._dtypes import ElementType, check_scale, dtype_name, element_type
from .._gpu.layout import Layout, dense_layout, layout
from .problem import Problem, parameters
from .problem import problem as problem_of
from .variants import OPERATOR


@overload
def spatial_correlation_sample(
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
    dtype: DTypeLike | None = ...,
    precision: str = ...,
    variant: str = ...,
    out: np.ndarray | None = ...,
) -> np.ndarray: ...
@overload
def spatial_correlation_sample(
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
    dtype: DTypeLike | None = ...,
    precision: str = ...,
    variant: str = ...,
    out: ArrayT | None = ...,
) -> ArrayT: ...
def spatial_correlation_sample(
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
    dtype: DTypeLike | None = None,
    precision: str = "highest",
    variant: str = "auto",
    out: Array | None = None,
) -> Any:
    """Correlate patches of two feature maps over a grid of displacements (the cost volume of optical flow and stereo).

    .. code-block:: text

        out[b, m, n, i, j] = scale * sum over c, u < kH, v < kW of
            input1[b, c, y, x] * input2[b, c, y + dy(m), x + dx(n)]
        with  y = i sH - aH + u dH,   x = j sW - aW + v dW
              dy(m) = qH + eH (m - (PH - 1) // 2),   dx(n) = qW + eW (n - (PW - 1) // 2)

    A tap counts only if both of its positions lie inside their images; otherwise it contributes 0. Sums are kept in float32
    (float64 for float64 inputs). The definition is that of the C++ extension ``spatial_correlation_sampler`` [1]_.

    Parameters
    ----------
    input1 : array of shape (B, C, H, W)
        NumPy or CuPy array of float16, bfloat16 (`ml_dtypes`), float32 or float64. Any strides; read-only is fine.
    input2 : array of shape (B, C, H, W), or (B, C, H2, W2) where patch_offset is passed
        Same kind, device and dtype as ``input1``.
    kernel_size : int or (int, int), default 1
        k: window of taps summed into each output, ``(vertical, horizontal)`` like every pair below.
    patch_size : int or (int, int), default 1
        P: number of displacements along each axis. An even patch has one more after its centre.
    stride : int or (int, int), default 1
        s: pixels between output positions.
    padding : int or (int, int), default 0
        a: zero border added to both inputs; a negative one crops the output positions.
    dilation : int or (int, int), default 1
        d: pixels between the taps of a window.
    dilation_patch : int or (int, int), default 1
        e: pixels between displacements, not 0. With a negative one they descend.
    patch_offset : int or (int, int), optional
        q: displacement in pixels at the centre of the patch. Passing it, 0 included, lets ``input2`` have its own height and
        width. None is a symmetric search.
    groups : int, default 1
        G: the channels are divided into so many groups of neighbours, and each has an output of its own (group-wise correlation).
        It divides C.
    scale : float, default 1.0
        Finite factor applied to the sum before it is rounded to the output's dtype.
    dtype : dtype, optional
        The dtype of the output, by default that of the inputs. Each sum is rounded to it once.
    precision : {"highest", "high", "medium"}
        The precision of float32 products. With "high" or "medium" a GPU may use tensor cores, which round each factor to 10
        fraction bits (TF32): an output is off by less than 1e-3 of the sum of its terms' magnitudes. Sums
        stay in float32, and nothing changes for other dtypes or on the CPU.
    variant : str, default "auto"
        The implementation to run; see `explain` for those there are.
    out : array of shape (B, PH, PW, oH, oW) or (B, G, PH, PW, oH, oW), optional
        The array for the result: float16, bfloat16, float32 or float64, of any strides that keep its elements apart; it may
        overlap an input. It is returned.

    Returns
    -------
    array of shape (B, PH, PW, oH, oW), with several groups (B, G, PH, PW, oH, oW)
        C-contiguous, of the inputs' kind and dtype, with ``oH = (H + 2 aH - dH (kH - 1) - 1) // sH + 1`` and likewise oW.

    Raises
    ------
    TypeError
        An argument is of the wrong type, kind or dtype.
    ValueError
        An argument has an illegal value or shape.
    NotImplementedError
        ``variant`` names one that cannot run here; the message says why.

    See Also
    --------
    cupycorr.spatial_correlation_sample_vjp : Return the gradients.
    cupycorr.correlation_argmax : Find the best displacement without the cost volume.
    cupycorr.correlation_lookup : Correlate around coordinates instead of on a fixed grid.
    cupycorr.argmax_displacement : Find the best displacement in the cost volume.
    cupycorr.explain : Explain which variant runs.
    cupycorr.torch.spatial_correlation_sample : The same for tensors.

    References
    ----------
    .. [1] C. Pinard, "Pytorch-Correlation-extension", https://github.com/ClementPinard/Pytorch-Correlation-extension

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> frame1 = np.random.default_rng(0).standard_normal((1, 64, 16, 16), dtype=np.float32)
    >>> frame2 = np.roll(frame1, (2, -1), axis=(2, 3))  # everything moved down 2 and left 1
    >>> scores = cupycorr.spatial_correlation_sample(frame1, frame2, patch_size=7)
    >>> scores.shape
    (1, 7, 7, 16, 16)
    >>> m, n = divmod(int(scores[0, :, :, 8, 8].argmax()), 7)
    >>> m - 3, n - 3  # dy, dx
    (2, -1)
    """
    given = (kernel_size, patch_size, stride, padding, dilation, dilation_patch)
    arrays, values = (input1, input2), (*given, patch_offset, groups, scale, precision, variant)
    key, repeat = _repeats.on_cupy(OPERATOR, FORWARD, arrays, values, dtype, out=out)
    if repeat is not None:
        return repeat.run(arrays, out)[0]
    input1, input2 = known_arrays(input1=input1, input2=input2)
    problem = checked_problem(input1, input2, given, patch_offset, groups, scale, precision)
    inputs = {"input1": input1, "input2": input2}
    written = None if out is None else checked_out(out, input1, problem.out_shape, dtype, RESULT)
    result = result_dtype(input1, dtype) if written is None else written.dtype
    target = _dispatch.target_of(written, inputs)
    where = _dispatch.place(input1)
    request = _forward_request(problem, where, input1, input2, target, result, precision)
    choice = _dispatch.choose(OPERATOR, request, where, variant)
    found = _dispatch.run_forward(choice.plan, inputs, written, target, problem.out_shape, result)
    _repeats.keep(key, choice, (New("out", problem.out_shape, result),))
    return found if out is None else out


@overload
def spatial_correlation_sample_vjp(
    cotangent: np.ndarray,
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
    dtype: DTypeLike | None = ...,
    precision: str = ...,
    variant: str = ...,
    needs: tuple[Literal[True], Literal[True]] = ...,
) -> tuple[np.ndarray, np.ndarray]: ...
@overload
def spatial_correlation_sample_vjp(
    cotangent: np.ndarray,
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
    dtype: DTypeLike | None = ...,
    precision: str = ...,
    variant: str = ...,
    needs: tuple[bool, bool],
) -> tuple[np.ndarray | None, np.ndarray | None]: ...
@overload
def spatial_correlation_sample_vjp(
    cotangent: ArrayT,
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
    dtype: DTypeLike | None = ...,
    precision: str = ...,
    variant: str = ...,
    needs: tuple[Literal[True], Literal[True]] = ...,
) -> tuple[ArrayT, ArrayT]: ...
@overload
def spatial_correlation_sample_vjp(
    cotangent: ArrayT,
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
    dtype: DTypeLike | None = ...,
    precision: str = ...,
    variant: str = ...,
    needs: tuple[bool, bool],
) -> tuple[ArrayT | None, ArrayT | None]: ...
def spatial_correlation_sample_vjp(
    cotangent: Array,
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
    dtype: DTypeLike | None = None,
    precision: str = "highest",
    variant: str = "auto",
    needs: tuple[bool, bool] = (True, True),
) -> tuple[Any, Any]:
    """Return the gradients of `spatial_correlation_sample`: its vector-Jacobian product with a cotangent.

    .. code-block:: text

        g1[b, c, y, x]   = scale * sum g[b, m, n, i, j] input2[b, c, y + dy, x + dx]   over all that read input1 at (y, x)
        g2[b, c, y', x'] = scale * sum g[b, m, n, i, j] input1[b, c, y' - dy, x' - dx] over all that read input2 at (y', x')

    They are computed in gather form without atomics: the same inputs give bitwise the same gradients every time.

    Parameters
    ----------
    cotangent : array of shape (B, PH, PW, oH, oW), with several groups (B, G, PH, PW, oH, oW)
        Gradient of the loss with respect to the output, of the output's dtype.
    input1, input2 : array
        As passed to `spatial_correlation_sample`.
    kernel_size, patch_size, stride, padding, dilation, dilation_patch, patch_offset : int or (int, int), optional
        As passed to `spatial_correlation_sample`.
    groups : int, default 1
        As passed to `spatial_correlation_sample`.
    scale : float, default 1.0
        As passed to `spatial_correlation_sample`.
    dtype : dtype, optional
        As passed to `spatial_correlation_sample`: the dtype of ``cotangent`` where it is not the inputs'.
    precision : {"highest", "high", "medium"}, default "highest"
        As passed to `spatial_correlation_sample`.
    variant : str, default "auto"
        As passed to `spatial_correlation_sample`.
    needs : (bool, bool), default (True, True)
        Which gradients to compute; nothing is spent on the others.

    Returns
    -------
    (g1, g2)
        Gradients with the shapes and dtype of the inputs, C-contiguous; None in place of one that was not asked for.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `spatial_correlation_sample`; also for a cotangent of the wrong shape or dtype.

    See Also
    --------
    cupycorr.spatial_correlation_sample : The operator.
    cupycorr.torch.spatial_correlation_sample : The operator for tensors, with derivatives of any order.

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> x1, x2 = np.random.default_rng(0).standard_normal((2, 1, 8, 16, 16))
    >>> g = np.ones((1, 7, 7, 16, 16))
    >>> g1, g2 = cupycorr.spatial_correlation_sample_vjp(g, x1, x2, patch_size=7)
    >>> out = cupycorr.spatial_correlation_sample(x1, x2, patch_size=7)
    >>> bool(np.isclose(np.vdot(g, out), np.vdot(g1, x1)) and np.isclose(np.vdot(g, out), np.vdot(g2, x2)))
    True
    """
    given = (kernel_size, patch_size, stride, padding, dilation, dilation_patch)
    arrays, values = (cotangent, input1, input2), (*given, patch_offset, groups, scale, precision, variant)
    key, repeat = _repeats.on_cupy(OPERATOR, VJP, arrays, values, dtype, needs=needs)
    if repeat is not None:
        gradient1, gradient2 = repeat.run(arrays)
        return gradient1, gradient2
    input1, input2 = known_arrays(input1=input1, input2=input2)
    problem = checked_problem(input1, input2, given, patch_offset, groups, scale, precision)
    cotangent = checked_cotangent(cotangent, input1, problem.out_shape, result_dtype(input1, dtype), OPERAND)
    needs = _checked_needs(needs)
    where = _dispatch.place(input1)
    request = _vjp_request(problem, where, input1, input2, cotangent, cotangent.dtype, needs, precision)
    choice = _dispatch.choose(OPERATOR, request, where, variant)
    given_arrays = {"cotangent": cotangent, "input1": input1, "input2": input2}
    gradients = _dispatch.new_gradients(problem, given_arrays, needs)
    gradient1, gradient2 = _dispatch.run_vjp(choice.plan, given_arrays, gradients)
    _repeats.keep(key, choice, gradients)
    return gradient1, gradient2


def explain(
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
    dtype: DTypeLike | None = None,
    precision: str = "highest",
    variant: str = "auto",
    gradients: bool | tuple[bool, bool] = False,
    measure: bool = False,
) -> _dispatch.Explanation:
    """Explain which variant would run and how, why each other one would not, and how fast it could be at best.

    Nothing is computed.

    Parameters
    ----------
    input1, input2 : array
        As for `spatial_correlation_sample`.
    kernel_size, patch_size, stride, padding, dilation, dilation_patch, patch_offset : int or (int, int), optional
        As for `spatial_correlation_sample`.
    groups : int, default 1
        As for `spatial_correlation_sample`.
    scale : float, default 1.0
        As for `spatial_correlation_sample`.
    dtype : dtype, optional
        As for `spatial_correlation_sample`.
    precision : {"highest", "high", "medium"}, default "highest"
        As for `spatial_correlation_sample`.
    variant : str, default "auto"
        As for `spatial_correlation_sample`.
    gradients : bool or (bool, bool), default False
        Explain `spatial_correlation_sample_vjp` instead: both gradients, or those that ``needs`` of that function names.
    measure : bool, default False
        Measure this CPU's peak rates for the bound of NumPy arrays, which takes 50 ms once in a process. Otherwise the bound
        assumes a typical processor. A GPU's rates are known.

    Returns
    -------
    Explanation
        Print it. Its fields: ``problem``, ``variant`` (a name), ``algorithm`` (the name of the algorithm that the variant runs
        for these arrays), ``how`` (the algorithm in words), ``reasons`` (name -> why it does not run), ``flops``,
        ``flops_inside``, ``bytes``, ``workspace`` (bytes), ``bound`` (seconds), ``bound_on`` (the machine of the bound) and
        ``pass_name`` ("forward" or "vjp").

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `spatial_correlation_sample`.

    See Also
    --------
    cupycorr.spatial_correlation_sample : The operator.
    cupycorr.explain_argmax : Explain `correlation_argmax`.
    cupycorr.explain_lookup : Explain `correlation_lookup`.
    cupycorr.explain_volume_lookup : Explain `volume_lookup`.

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> x = np.zeros((1, 64, 24, 32), np.float32)
    >>> cupycorr.explain(x, x, patch_size=9).flops
    7962624
    """
    given = (kernel_size, patch_size, stride, padding, dilation, dilation_patch)
    input1, input2 = known_arrays(input1=input1, input2=input2)
    problem = checked_problem(input1, input2, given, patch_offset, groups, scale, precision)
    result = result_dtype(input1, dtype)
    where = _dispatch.place(input1)
    if gradients is False:
        request = _forward_request(problem, where, input1, input2, None, result, precision)
    else:
        needs = _checked_needs((True, True) if gradients is True else gradients, "gradients", "a bool or a pair of bools")
        request = _vjp_request(problem, where, input1, input2, None, result, needs, precision)
    return _dispatch.explain(OPERATOR, request, where, variant, measure=measure)


# Requests ---------------------------------------------------------------------------------------------------------------------


def _forward_request(
    problem: Problem, where: Place, input1: Any, input2: Any, out: Any, result_dtype: np.dtype[Any], precision: str
) -> Request:
    """Return the request for the output; where there is no array for it yet, it will have no gaps."""
    dtype, result = dtype_name(input1.dtype), dtype_name(result_dtype)
    layouts: tuple[Layout | None, ...] = ()
    if where.device is not None:
        output = dense_layout(result, problem.out_shape) if out is None else layout("out", out)
        layouts = layout("input1", input1), layout("input2", input2), output
    return Request(FORWARD, problem, dtype, result, layouts, (True, True), effective_precision(precision, dtype))


def _vjp_request(
    problem: Problem,
    where: Place,
    input1: Any,
    input2: Any,
    cotangent: Any,
    result_dtype: np.dtype[Any],
    needs: tuple[bool, bool],
    precision: str,
) -> Request:
    """Return the request for gradients, which will have no gaps; nor will a cotangent that is not there yet."""
    dtype, result = dtype_name(input1.dtype), dtype_name(result_dtype)
    layouts: tuple[Layout | None, ...] = ()
    if where.device is not None:
        output = dense_layout(result, problem.out_shape) if cotangent is None else layout("cotangent", cotangent)
        gradients = [dense_layout(dtype, x.shape) if needed else None for needed, x in zip(needs, problem.inputs, strict=True)]
        layouts = output, layout("input1", input1), layout("input2", input2), *gradients
    return Request(VJP, problem, dtype, result, layouts, needs, effective_precision(precision, dtype))


def checked_problem(
    input1: Any, input2: Any, given: tuple[Any, ...], patch_offset: Any, groups: Any, scale: Any, precision: Any
) -> Problem:
    """Check everything that can be wrong with the inputs and the parameters, and return the problem."""
    arguments = (input1.shape, input1.dtype, input2.shape, input2.dtype, given, patch_offset, groups, scale, precision)
    types = types_of((*given, patch_offset, groups, scale, precision))
    return _problem(*arguments) if types is None else _problem_once(types, *arguments)


def _problem(
    shape1: Shape,
    dtype1: np.dtype[Any],
    shape2: Shape,
    dtype2: np.dtype[Any],
    given: tuple[Any, ...],
    patch_offset: Any,
    groups: Any,
    scale: Any,
    precision: Any,
) -> Problem:
    check_elements(element_type("input1", dtype1), element_type("input2", dtype2))
    checked = problem_of(parameters(*given, patch_offset=patch_offset, groups=groups, scale=scale), shape1, shape2)
    check_scale(checked.parameters.scale, element_type("input1", dtype1))
    check_precision(precision)
    return checked


@lru_cache(1024)
def _problem_once(types: tuple[Any, ...], *arguments: Any) -> Problem:
    """Return the problem from a cache: models make the same call again and again."""
    return _problem(*arguments)


# Checks -----------------------------------------------------------------------------------------------------------------------


def check_elements(first: ElementType, second: ElementType) -> None:
    """Refuse inputs of two dtypes."""
    if first is not second:
        got = f"got input1.dtype={first.name}, input2.dtype={second.name}"
        raise TypeError(f"input1 and input2 must have the same dtype, {got}")


def _checked_needs(needs: Any, name: str = "needs", what: str = "a pair of bools") -> tuple[bool, bool]:
    first, second = bools(name, needs, 2, what)
    return first, second
