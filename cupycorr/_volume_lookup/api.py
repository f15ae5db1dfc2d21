"""The public functions of the lookup in a volume for NumPy and CuPy arrays.

Each function checks its arguments, makes a request of them and runs the plan that the dispatcher chooses. Wrong input is
refused before any work is done.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import DTypeLike

from .. import _dispatch, _repeats
from .._arguments import IntOrPair, types_of
from .._arrays import Array, ArrayT, Role, known_array
from .._checks import beside_inputs, bools, checked_cotangent, checked_out, result_dtype
from .._dispatch import FORWARD, VJP, New, Request
from .._dtypes import ElementType, check_scale, dtype_name, element_type
from .._gpu.layout import dense_layout, layout
from .problem import DEFAULT_NEEDS, Needs, Problem, check_dimensions, parameters
from .problem import problem as problem_of
from .variants import OPERATOR

_FOR_TENSORS = "; for tensors there is cupycorr.torch.volume_lookup"
_VOLUME = Role("{name}.filled(0)", _FOR_TENSORS)  # a pixel outside a slice is 0, too
_COORDS = Role("{floating}.filled(numpy.nan)", _FOR_TENSORS)  # any number would be a coordinate
_RESULT = Role("{name}.data, which has the same memory, or no {name}", _FOR_TENSORS)  # filled() would return a copy


@overload
def volume_lookup(
    volume: np.ndarray,
    coords: np.ndarray,
    patch_size: IntOrPair = ...,
    *,
    dilation_patch: IntOrPair = ...,
    order: Literal["dy", "dx"] = ...,
    scale: float = ...,
    dtype: DTypeLike | None = ...,
    variant: str = ...,
    out: np.ndarray | None = ...,
) -> np.ndarray: ...
@overload
def volume_lookup(
    volume: ArrayT,
    coords: ArrayT,
    patch_size: IntOrPair = ...,
    *,
    dilation_patch: IntOrPair = ...,
    order: Literal["dy", "dx"] = ...,
    scale: float = ...,
    dtype: DTypeLike | None = ...,
    variant: str = ...,
    out: ArrayT | None = ...,
) -> ArrayT: ...
def volume_lookup(
    volume: Array,
    coords: Array,
    patch_size: IntOrPair = 9,
    *,
    dilation_patch: IntOrPair = 1,
    order: Literal["dy", "dx"] = "dy",
    scale: float = 1.0,
    dtype: DTypeLike | None = None,
    variant: str = "auto",
    out: Array | None = None,
) -> Any:
    """Look up a small window around the coordinates of each pixel in its slice of a correlation volume.

    .. code-block:: text

        out[e, m, n, i, j] = scale * sum over a, b in {0, 1} of
            wy(a) wx(b) D(y0 + a + dy(m), x0 + b + dx(n))
        D(y', x') = volume[e, i, j, y', x'],   0 outside the slice
        with  X = coords[e, 0, i, j],   x0 = floor(X),   wx(1) = X - x0,   wx(0) = 1 - wx(1)
              dx(n) = dilation_patch (n - (PW - 1) // 2),   y likewise

    This is the lookup of RAFT [1]_ and DROID-SLAM in a volume of all pairs, and with a volume (E, H, W1, W2) that of RAFT-Stereo
    [2]_, whose windows have one dimension: there is no y. `correlation_lookup` needs no volume. Values are interpolated
    bilinearly between pixels, and a pixel outside its slice contributes 0. Sums are kept in float32 (float64 for a float64
    volume). A query whose coordinates are not finite gives NaN.

    Parameters
    ----------
    volume : array of shape (E, H, W, H2, W2) or (E, H, W1, W2)
        NumPy or CuPy array of float16, bfloat16 (`ml_dtypes`), float32 or float64: for each pixel (i, j) its correlations with
        the pixels of another image. Any strides, such as those of a permuted or cropped volume; read-only is fine.
    coords : array of shape (E, 2, H, W) or (E, 1, H, W1)
        The centre of each window: x, then y, in pixels of the last axes of ``volume``; only x for a volume (E, H, W1, W2).
        Centres of pixels are whole numbers. Of the same kind and device as ``volume``, of any of its dtypes, but not wider than
        the sums; 16-bit coordinates are widened.
    patch_size : int or (int, int), default 9
        P: number of displacements along each axis, ``(vertical, horizontal)``: 2 radius + 1 for a radius. An even patch has one
        more on the positive side. An int for a volume (E, H, W1, W2).
    dilation_patch : int or (int, int), default 1
        Pixels between displacements. An int for a volume (E, H, W1, W2).
    order : {"dy", "dx"}, default "dy"
        The patch axis that comes first: "dy" as in `spatial_correlation_sample`, "dx" as in RAFT and DROID-SLAM. It makes no
        difference to a volume (E, H, W1, W2).
    scale : float, default 1.0
        Finite factor applied to the result before it is rounded to the output's dtype.
    dtype : dtype, optional
        The dtype of the output, by default that of the volume. Each output is rounded to it once.
    variant : str, default "auto"
        The implementation to run; see `explain_volume_lookup` for those there are.
    out : array, of the shape of the result, optional
        The array for the result: float16, bfloat16, float32 or float64, of any strides that keep its elements apart; it may
        overlap an input. It is returned.

    Returns
    -------
    array of shape (E, PH, PW, H, W), or (E, P, H, W1) for a volume (E, H, W1, W2)
        C-contiguous, of the inputs' kind and the volume's dtype; the axes are PW, PH for the order "dx".

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
    cupycorr.volume_lookup_vjp : Return the gradients.
    cupycorr.correlation_lookup : Compute the windows on demand, without a volume.
    cupycorr.explain_volume_lookup : Explain which variant runs.

    References
    ----------
    .. [1] Z. Teed and J. Deng, "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow", ECCV 2020
    .. [2] L. Lipson, Z. Teed and J. Deng, "RAFT-Stereo: Multilevel Recurrent Field Transforms for Stereo Matching", 3DV 2021

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> left, right = np.random.default_rng(0).standard_normal((2, 1, 16, 4, 30), dtype=np.float32)
    >>> volume = np.einsum("bcij,bcik->bijk", left, right)  # each pixel with those of its row: (B, H, W1, W2)
    >>> x = np.arange(30, dtype=np.float32) - 2.5  # a disparity of 2.5 pixels
    >>> coords = np.broadcast_to(x, (1, 1, 4, 30))
    >>> scores = cupycorr.volume_lookup(volume, coords, patch_size=5)
    >>> scores.shape
    (1, 5, 4, 30)
    >>> bool(np.isclose(scores[0, 2, 1, 10], (volume[0, 1, 10, 7] + volume[0, 1, 10, 8]) / 2, rtol=1e-5))
    True
    """
    arrays, values = (volume, coords), (patch_size, dilation_patch, order, scale, variant)
    key, repeat = _repeats.on_cupy(OPERATOR, FORWARD, arrays, values, dtype, out=out)
    if repeat is not None:
        return repeat.run(arrays, out)[0]
    volume, coords = _inputs(volume, coords)
    problem = _checked_problem(volume, coords, (patch_size, dilation_patch), order, scale)
    inputs = {"volume": volume, "coords": coords}
    written = None if out is None else checked_out(out, volume, problem.out_shape, dtype, _RESULT)
    result = result_dtype(volume, dtype) if written is None else written.dtype
    target = _dispatch.target_of(written, inputs)
    request = _request(FORWARD, problem, inputs, target, result)
    choice = _dispatch.choose(OPERATOR, request, _dispatch.place(volume), variant)
    found = _dispatch.run_forward(choice.plan, inputs, written, target, problem.out_shape, result)
    _repeats.keep(key, choice, (New("out", problem.out_shape, result),))
    return found if out is None else out


@overload
def volume_lookup_vjp(
    cotangent: np.ndarray,
    volume: np.ndarray,
    coords: np.ndarray,
    patch_size: IntOrPair = ...,
    *,
    dilation_patch: IntOrPair = ...,
    order: Literal["dy", "dx"] = ...,
    scale: float = ...,
    dtype: DTypeLike | None = ...,
    variant: str = ...,
    needs: tuple[Literal[True], bool] = ...,
) -> tuple[np.ndarray, np.ndarray | None]: ...
@overload
def volume_lookup_vjp(
    cotangent: np.ndarray,
    volume: np.ndarray,
    coords: np.ndarray,
    patch_size: IntOrPair = ...,
    *,
    dilation_patch: IntOrPair = ...,
    order: Literal["dy", "dx"] = ...,
    scale: float = ...,
    dtype: DTypeLike | None = ...,
    variant: str = ...,
    needs: tuple[bool, bool],
) -> tuple[np.ndarray | None, np.ndarray | None]: ...
@overload
def volume_lookup_vjp(
    cotangent: ArrayT,
    volume: ArrayT,
    coords: ArrayT,
    patch_size: IntOrPair = ...,
    *,
    dilation_patch: IntOrPair = ...,
    order: Literal["dy", "dx"] = ...,
    scale: float = ...,
    dtype: DTypeLike | None = ...,
    variant: str = ...,
    needs: tuple[Literal[True], bool] = ...,
) -> tuple[ArrayT, ArrayT | None]: ...
@overload
def volume_lookup_vjp(
    cotangent: ArrayT,
    volume: ArrayT,
    coords: ArrayT,
    patch_size: IntOrPair = ...,
    *,
    dilation_patch: IntOrPair = ...,
    order: Literal["dy", "dx"] = ...,
    scale: float = ...,
    dtype: DTypeLike | None = ...,
    variant: str = ...,
    needs: tuple[bool, bool],
) -> tuple[ArrayT | None, ArrayT | None]: ...
def volume_lookup_vjp(
    cotangent: Array,
    volume: Array,
    coords: Array,
    patch_size: IntOrPair = 9,
    *,
    dilation_patch: IntOrPair = 1,
    order: Literal["dy", "dx"] = "dy",
    scale: float = 1.0,
    dtype: DTypeLike | None = None,
    variant: str = "auto",
    needs: tuple[bool, bool] = DEFAULT_NEEDS,
) -> tuple[Any, Any]:
    """Return the gradients of `volume_lookup`: its vector-Jacobian product with a cotangent.

    .. code-block:: text

        gV[e, i, j, y', x'] = scale * sum of wy(a) wx(b) g over the outputs of query (i, j) that read (y', x')
        gX[e, i, j]         = scale * sum over m, n of g ((1 - wy) (D01 - D00) + wy (D11 - D10)),   gY likewise

    The derivative at whole-number coordinates is that to the right. A query reads nothing but its own slice, so that each element
    of the gradient of the volume is written once; nothing is added atomically, and the same inputs give bitwise the same
    gradients every time. A query whose coordinates are not finite gives NaN in the gradient of ``coords`` and zeros in that of
    the volume.

    Parameters
    ----------
    cotangent : array of shape (E, PH, PW, H, W) or (E, P, H, W1)
        Gradient of the loss with respect to the output, of the output's dtype.
    volume, coords : array
        As passed to `volume_lookup`.
    patch_size, dilation_patch : int or (int, int), optional
        As passed to `volume_lookup`.
    order : {"dy", "dx"}, default "dy"
        As passed to `volume_lookup`.
    scale : float, default 1.0
        As passed to `volume_lookup`.
    dtype : dtype, optional
        As passed to `volume_lookup`: the dtype of ``cotangent`` where it is not the volume's.
    variant : str, default "auto"
        As passed to `volume_lookup`.
    needs : (bool, bool), default (True, False)
        Which gradients to compute, of ``volume`` and ``coords``; nothing is spent on the others. The gradient of the volume is an
        array as large as the volume, most of it zeros, which takes longer to write than the windows.

    Returns
    -------
    (gV, gc)
        Gradients with the shapes and dtypes of ``volume`` and ``coords``, C-contiguous; None in place of one that was not asked
        for.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `volume_lookup`; also for a cotangent of the wrong shape or dtype.

    See Also
    --------
    cupycorr.volume_lookup : The lookup.
    cupycorr.torch.volume_lookup : The lookup for tensors, with derivatives of any order.

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> volume = np.random.default_rng(0).standard_normal((1, 6, 8, 6, 8))
    >>> coords = np.random.default_rng(1).uniform(0, 7, (1, 2, 6, 8))
    >>> g = np.ones((1, 3, 3, 6, 8))
    >>> gradient, _ = cupycorr.volume_lookup_vjp(g, volume, coords, 3)
    >>> out = cupycorr.volume_lookup(volume, coords, 3)
    >>> bool(np.isclose(np.vdot(g, out), np.vdot(gradient, volume)))
    True
    """
    arrays, values = (cotangent, volume, coords), (patch_size, dilation_patch, order, scale, variant)
    key, repeat = _repeats.on_cupy(OPERATOR, VJP, arrays, values, dtype, needs=needs)
    if repeat is not None:
        of_volume, of_coords = repeat.run(arrays)
        return of_volume, of_coords
    volume, coords = _inputs(volume, coords)
    problem = _checked_problem(volume, coords, (patch_size, dilation_patch), order, scale)
    inputs = {"volume": volume, "coords": coords}
    cotangent = checked_cotangent(cotangent, volume, problem.out_shape, result_dtype(volume, dtype), _VOLUME)
    needed = _checked_needs(needs)
    request = _request(VJP, problem, inputs, cotangent, cotangent.dtype, needed)
    choice = _dispatch.choose(OPERATOR, request, _dispatch.place(volume), variant)
    gradients = _dispatch.new_gradients(problem, inputs, needed)
    of_volume, of_coords = _dispatch.run_vjp(choice.plan, {"cotangent": cotangent, **inputs}, gradients)
    _repeats.keep(key, choice, gradients)
    return of_volume, of_coords


def explain_volume_lookup(
    volume: Array,
    coords: Array,
    patch_size: IntOrPair = 9,
    *,
    dilation_patch: IntOrPair = 1,
    order: Literal["dy", "dx"] = "dy",
    scale: float = 1.0,
    dtype: DTypeLike | None = None,
    variant: str = "auto",
    gradients: bool | tuple[bool, bool] = False,
    measure: bool = False,
) -> _dispatch.Explanation:
    """Explain which variant of `volume_lookup` would run and how, why each other one would not, and how fast it could be.

    Nothing is computed.

    Parameters
    ----------
    volume, coords : array
        As for `volume_lookup`.
    patch_size, dilation_patch : int or (int, int), optional
        As for `volume_lookup`.
    order : {"dy", "dx"}, default "dy"
        As for `volume_lookup`.
    scale : float, default 1.0
        As for `volume_lookup`.
    dtype : dtype, optional
        As for `volume_lookup`.
    variant : str, default "auto"
        As for `volume_lookup`.
    gradients : bool or (bool, bool), default False
        Explain `volume_lookup_vjp` instead: the gradients that it computes by default, or those that ``needs`` of that function
        names.
    measure : bool, default False
        As for `explain`.

    Returns
    -------
    Explanation
        Print it; its fields are those of `explain`. ``flops_inside`` is None: it depends on the coordinates.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `volume_lookup`.

    See Also
    --------
    cupycorr.volume_lookup : The lookup.
    cupycorr.explain : Explain `spatial_correlation_sample`.

    Examples
    --------
    >>> import numpy as np
    >>> import cupycorr
    >>> volume, coords = np.zeros((1, 6, 8, 6, 8), np.float32), np.zeros((1, 2, 6, 8), np.float32)
    >>> cupycorr.explain_volume_lookup(volume, coords, patch_size=3, gradients=True).pass_name
    'vjp'
    """
    volume, coords = _inputs(volume, coords)
    problem = _checked_problem(volume, coords, (patch_size, dilation_patch), order, scale)
    inputs, result = {"volume": volume, "coords": coords}, result_dtype(volume, dtype)
    if gradients is False:
        request = _request(FORWARD, problem, inputs, None, result)
    else:
        needs = _checked_needs(DEFAULT_NEEDS if gradients is True else gradients, "gradients", "a bool or a pair of bools")
        request = _request(VJP, problem, inputs, None, result, needs)
    return _dispatch.explain(OPERATOR, request, _dispatch.place(volume), variant, measure=measure)


def _inputs(volume: Any, coords: Any) -> tuple[Any, Any]:
    """Check that the arguments are arrays of one kind and on one device."""
    known = known_array("volume", volume, _VOLUME)
    return known, beside_inputs("coords", coords, known, _COORDS)


def _request(
    pass_name: str,
    problem: Problem,
    inputs: dict[str, Any],
    output: Any,
    result: np.dtype[Any],
    needs: Needs = (True, True),
) -> Request:
    """Return the request; an output or a cotangent that is not there yet will have no gaps, nor will gradients."""
    request = Request(pass_name, problem, dtype_name(inputs["volume"].dtype), dtype_name(result), (), needs)
    if _dispatch.place(inputs["volume"]).device is None:
        return request
    operands = [layout(name, array) for name, array in inputs.items()]
    name = "out" if pass_name == FORWARD else "cotangent"
    outer = dense_layout(request.result_dtype, problem.out_shape) if output is None else layout(name, output)
    every = (*operands, outer) if pass_name == FORWARD else (outer, *operands, *request.gradient_layouts())
    return request._replace(layouts=every)


# Checks -----------------------------------------------------------------------------------------------------------------------


def _checked_problem(volume: Any, coords: Any, sizes: tuple[Any, Any], order: Any, scale: Any) -> Problem:
    """Check everything that can be wrong with the inputs and the parameters, and return the problem."""
    arguments = element_type, (volume.shape, volume.dtype), (coords.shape, coords.dtype), sizes, order, scale
    types = types_of((*sizes, order, scale))
    return checked_problem(*arguments) if types is None else _problem_once(types, *arguments)


def checked_problem(
    element_type_of: Callable[[str, Any], ElementType],
    volume: tuple[Any, Any],
    coords: tuple[Any, Any],
    sizes: tuple[Any, Any],
    order: Any,
    scale: Any,
) -> Problem:
    """Check everything that can be wrong with the inputs and the parameters of a call, and return its problem.

    Parameters
    ----------
    element_type_of
        Return the element type of an argument, by the argument's name and its dtype.
    volume, coords
        The shape and the dtype of each.
    sizes
        patch_size and dilation_patch.
    order, scale
        As passed by the caller.
    """
    (shape, dtype), (coords_shape, coords_dtype) = volume, coords
    row, coords_row = element_type_of("volume", dtype), element_type_of("coords", coords_dtype)
    check_coords(row, coords_row)
    check_dimensions(shape)
    params = parameters(len(shape), sizes[0], dilation_patch=sizes[1], order=order, scale=scale)
    checked = problem_of(params, shape, coords_shape, coords_row.name)
    check_scale(checked.parameters.scale, row)
    return checked


@lru_cache(1024)
def _problem_once(types: tuple[Any, ...], *arguments: Any) -> Problem:
    """Return the problem from a cache: models make the same call again and again."""
    return checked_problem(*arguments)


def check_coords(volume: ElementType, coords: ElementType) -> None:
    """Refuse coordinates that are wider than the sums, which would round them."""
    if coords.itemsize > volume.accumulator_dtype.itemsize:
        got = f"got coords.dtype={coords.name}, volume.dtype={volume.name}"
        raise TypeError(f"coords must not be wider than the {volume.accumulator} accumulator, {got}")


def _checked_needs(needs: Any, name: str = "needs", what: str = "a pair of bools") -> Needs:
    first, second = bools(name, needs, 2, what)
    return first, second
