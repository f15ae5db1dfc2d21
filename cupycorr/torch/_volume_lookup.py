"""The lookup in a volume in torch: ``torch.ops.cupycorr.volume_lookup`` and its vector-Jacobian product.

This module has their schemas, the functions that compute them, their shapes without data and their derivatives. The lookup is
linear in the volume, and between pixels it is bilinear in the coordinates. So the derivatives of both operators, of any order,
are these two again, at the coordinates and at the corners around them, and elementwise arithmetic of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import compress
from typing import Any, NamedTuple

import torch

from .._arguments import Pair
from .._checks import check_cotangent
from .._dispatch import FORWARD, VJP, Request
from .._lookup.problem import DY_FIRST
from .._volume_lookup import api
from .._volume_lookup.problem import ONE_DIMENSION, Problem
from .._volume_lookup.variants import OPERATOR
from . import _tensors
from ._corners import Corners, Tensor, total
from ._library import LIBRARY, define
from ._transforms import Arguments, Internals, Operands, Rules, differentiable

# Schemas ----------------------------------------------------------------------------------------------------------------------


class Settings(NamedTuple):
    """The operators' arguments other than tensors, with the schema's defaults. Torch may pass lists in place of pairs.

    A volume of one dimension has the horizontal numbers of pairs.
    """

    patch_size: Pair = (9, 9)
    dilation_patch: Pair = (1, 1)
    order: str = DY_FIRST
    scale: float = 1.0
    dtype: torch.dtype | None = None
    variant: str = "auto"


_ARGUMENTS = ", ".join(
    (
        "int[2] patch_size=9",
        "int[2] dilation_patch=1",
        f'str order="{DY_FIRST}"',
        "float scale=1.0",
        "ScalarType? dtype=None",
        'str variant="auto"',
    )
)
_FORWARD_SCHEMA = f"(Tensor volume, Tensor coords, {_ARGUMENTS}) -> Tensor"
_VJP_SCHEMA = f"(Tensor cotangent, Tensor volume, Tensor coords, bool[2] needs, {_ARGUMENTS}) -> (Tensor, Tensor)"


# Checks -----------------------------------------------------------------------------------------------------------------------


def _checked(volume: Tensor, coords: Tensor, settings: Settings) -> Problem:
    """Check the inputs and the arguments and return the problem; sizes may be symbols."""
    _tensors.check_device("volume", volume, "coords", coords)
    return _problem(volume.shape, volume.dtype, coords.shape, coords.dtype, *settings)


def _checked_once(volume: Tensor, coords: Tensor, settings: Settings) -> Problem:
    """Return `_checked` of the same arguments from a cache: models make the same call again and again. Sizes must be numbers."""
    _tensors.check_device("volume", volume, "coords", coords)
    given: tuple[Any, ...] = settings
    hashable = [tuple(value) if type(value) is list else value for value in given]
    return _problem_once(volume.shape, volume.dtype, coords.shape, coords.dtype, *hashable)


def _problem(shape: Any, dtype: torch.dtype, coords_shape: Any, coords_dtype: torch.dtype, *given: Any) -> Problem:
    settings = Settings(*given)
    if settings.dtype is not None:
        _tensors.element("dtype", settings.dtype)
    sizes: Any = settings[:2]
    if len(shape) == ONE_DIMENSION:
        sizes = [pair[1] for pair in sizes]
    volume, coords = (shape, dtype), (coords_shape, coords_dtype)
    checked = api.checked_problem(_tensors.element, volume, coords, sizes, settings.order, settings.scale)
    OPERATOR.named(settings.variant)
    return checked


_problem_once = lru_cache(1024)(_problem)


def _check_cotangent(cotangent: Tensor, volume: Tensor, settings: Settings, checked: Problem) -> None:
    """Refuse a cotangent that is not what the forward map returns."""
    _tensors.check_device("cotangent", cotangent, "volume", volume)
    result = _tensors.element("dtype", settings.dtype or volume.dtype)
    check_cotangent(_tensors.element("cotangent", cotangent.dtype), result, cotangent.shape, checked.out_shape)


# Kernels ----------------------------------------------------------------------------------------------------------------------


def _forward(volume: Tensor, coords: Tensor, *given: Any) -> Tensor:
    """Compute the lookup of tensors, on their device."""
    key, repeat = _tensors.look_up(OPERATOR, FORWARD, (volume, coords), given)
    if repeat is not None:
        return _tensors.forward_again(repeat, (volume, coords))
    settings = Settings(*given)
    checked = _checked_once(volume, coords, settings)
    out = volume.new_empty(checked.out_shape, dtype=settings.dtype)
    dtypes = _tensors.dtype_name(volume), _tensors.dtype_name(out)
    request = Request(FORWARD, checked, *dtypes, _tensors.layouts(volume, coords, out))
    tensors = {"volume": volume, "coords": coords, "out": out}
    _tensors.run(OPERATOR, request, settings.variant, tensors, ("out",), key)
    return out


def _vjp(cotangent: Tensor, volume: Tensor, coords: Tensor, needs: list[bool], *given: Any) -> tuple[Tensor, ...]:
    """Compute the gradients of tensors, on their device."""
    read = cotangent, volume, coords
    key, repeat = _tensors.look_up(OPERATOR, VJP, read, (needs, *given))
    if repeat is not None:
        gradients = _tensors.new_gradients((volume, coords), needs)
        _tensors.launch(repeat.plan, (*read, *compress(gradients, needs)), cotangent)
        return gradients
    settings = Settings(*given)
    checked = _checked_once(volume, coords, settings)
    _check_cotangent(cotangent, volume, settings, checked)
    gradients = _tensors.new_gradients((volume, coords), needs)
    wanted = _needed(gradients, needs)
    dtypes = _tensors.dtype_name(volume), _tensors.dtype_name(cotangent)
    request = Request(VJP, checked, *dtypes, _tensors.layouts(cotangent, volume, coords, *wanted), (needs[0], needs[1]))
    named = zip(("gradient_volume", "gradient_coords"), wanted, strict=True)
    results = {name: gradient for name, gradient in named if gradient is not None}
    tensors = {"cotangent": cotangent, "volume": volume, "coords": coords, **results}
    _tensors.run(OPERATOR, request, settings.variant, tensors, results, key)
    return gradients


# Without data -----------------------------------------------------------------------------------------------------------------


def _fake(volume: Tensor, coords: Tensor, *given: Any) -> Tensor:
    settings = Settings(*given)
    return volume.new_empty(_checked(volume, coords, settings).out_shape, dtype=settings.dtype)


def _fake_vjp(cotangent: Tensor, volume: Tensor, coords: Tensor, needs: list[bool], *given: Any) -> tuple[Tensor, ...]:
    settings = Settings(*given)
    _check_cotangent(cotangent, volume, settings, _checked(volume, coords, settings))
    return _tensors.new_gradients((volume, coords), needs)


# Derivatives ------------------------------------------------------------------------------------------------------------------
#
# Let L(v, c) be the lookup in the volume v at the coordinates c, and B(g; v, c) its gradients for a cotangent g. Along directions
# tv, tc, with the slopes of `_corners`,
#
#     tangent of L     T(t) = L(tv, c) + slope_x tc_x + slope_y tc_y
#     gradients of B   for cotangents h:  to g  T(h);  to (v, c)  the Hessian of <g, L> times h
#     tangents of B    B(tg; v, c) + the Hessian of <g, L> times t


class _CornerLookups:
    """The lookups at the corners around the coordinates, in the dtype of the sums."""

    def __init__(self, volume: Tensor, coords: Tensor, settings: Settings) -> None:
        self.volume, self.dtype = volume, _tensors.accumulator(volume.dtype)
        self.settings = settings._replace(dtype=self.dtype)
        self.corners = Corners(coords.to(self.dtype).unbind(1), _over_patches if coords.shape[1] == 2 else _over_patch)
        self.coords = [torch.stack(position, 1) for position in self.corners.positions]

    def dots(self) -> list[Tensor]:
        """Return the lookup at each corner."""
        return [lookup(self.volume, coords, *self.settings) for coords in self.coords]

    def gradient(self, cotangents: Sequence[Tensor]) -> Tensor:
        """Return the gradient of the volume from the cotangents of `dots`."""
        pairs = zip(cotangents, self.coords, strict=True)
        return total([lookup_vjp(g, self.volume, coords, [True, False], *self.settings)[0] for g, coords in pairs])

    def slopes(self, direction: Tensor) -> list[Tensor]:
        """Return the factor of each corner in the derivative along a direction of coords."""
        return self.corners.slopes(direction.to(self.dtype).unbind(1))

    def mixed(self, cotangent: Tensor, direction: Tensor) -> Tensor:
        """Return the Hessian of <cotangent, L> in the coordinates x and y, times a direction of them."""
        twist = self.corners.twist(self.dots())
        return direction.to(self.dtype).flip(1) * (cotangent * twist).sum((1, 2)).unsqueeze(1)


def _over_patch(plane: Tensor) -> Tensor:
    """Return values (E, H, W) of queries as (E, 1, H, W)."""
    return plane.unsqueeze(1)


def _over_patches(plane: Tensor) -> Tensor:
    """Return values (E, H, W) of queries as (E, 1, 1, H, W)."""
    return plane.unsqueeze(1).unsqueeze(2)


def _along(volume: Tensor, coords: Tensor, directions: Sequence[Tensor | None], settings: Settings) -> Tensor | None:
    """Return T(directions), the derivative of the lookup; None if there are no directions."""
    to_volume, to_coords = directions
    terms = [] if to_volume is None else [lookup(to_volume, coords, *settings)]
    if to_coords is not None:
        corners = _CornerLookups(volume, coords, settings)
        sloped = total([slope * dot for slope, dot in zip(corners.slopes(to_coords), corners.dots(), strict=True)])
        terms.append(sloped.to(settings.dtype or volume.dtype))
    return _total(terms)


def _hessian_times(
    g: Tensor,
    volume: Tensor,
    coords: Tensor,
    directions: Sequence[Tensor | None],
    needs: Sequence[bool],
    settings: Settings,
) -> list[Tensor | None]:
    """Return the Hessian of <g, L> times directions of the volume and of coords, for those of them that need it."""
    along_volume, along_coords = directions
    to_volume: list[Tensor] = []
    to_coords: list[Tensor] = []
    if along_volume is not None and needs[1]:
        to_coords.append(lookup_vjp(g, along_volume, coords, [False, True], *settings)[1])
    if along_coords is not None:
        corners = _CornerLookups(volume, coords, settings)
        exact = g.to(corners.dtype)
        if needs[0]:
            to_volume.append(corners.gradient([exact * slope for slope in corners.slopes(along_coords)]))
        if needs[1] and coords.shape[1] == 2:
            to_coords.append(corners.mixed(exact, along_coords).to(coords.dtype))
    return [_total(to_volume), _total(to_coords)]


def _total(terms: Sequence[Tensor]) -> Tensor | None:
    return total(terms) if terms else None


def _needed(gradients: Iterable[Any], needs: Iterable[bool]) -> list[Tensor | None]:
    return [gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)]


def _keep(ctx: Any, operands: Arguments, rest: Arguments) -> None:
    ctx.settings = Settings(*rest)
    ctx.save_for_backward(*operands)


def _backward(ctx: Any, needs: tuple[bool, ...], cotangent: Tensor) -> list[Tensor | None]:
    return _needed(lookup_vjp(cotangent, *ctx.saved_tensors, list(needs), *ctx.settings), needs)


def _tangent(primals: Arguments, tangents: Arguments, rest: Arguments) -> Tensor | None:
    volume, coords = primals
    return _along(volume, coords, tangents, Settings(*rest))


def _keep_vjp(ctx: Any, operands: Arguments, rest: Arguments) -> None:
    ctx.needs, *given = rest
    _keep(ctx, operands, tuple(given))
    ctx.set_materialize_grads(False)


def _backward_vjp(ctx: Any, needs: tuple[bool, ...], *cotangents: Tensor | None) -> list[Tensor | None]:
    g, volume, coords = ctx.saved_tensors
    directions = _needed(cotangents, ctx.needs)
    to_g = _along(volume, coords, directions, ctx.settings) if needs[0] else None
    return [to_g, *_hessian_times(g, volume, coords, directions, needs[1:], ctx.settings)]


def _tangent_vjp(primals: Arguments, tangents: Arguments, rest: Arguments) -> list[Tensor | None]:
    (g, volume, coords), (tg, *directions), (needs, *given) = primals, tangents, rest
    settings = Settings(*given)
    found = _hessian_times(g, volume, coords, directions, needs, settings)
    if tg is None:
        return found
    first = _needed(lookup_vjp(tg, volume, coords, list(needs), *settings), needs)
    return [_total([x for x in pair if x is not None]) for pair in zip(first, found, strict=True)]


_internals = Internals.found()
_rules, _rules_vjp = Rules(_keep, _backward, _tangent), Rules(_keep_vjp, _backward_vjp, _tangent_vjp)
_operator = define("volume_lookup", _FORWARD_SCHEMA, _forward, _fake)
_operator_vjp = define("volume_lookup_vjp", _VJP_SCHEMA, _vjp, _fake_vjp)
lookup: Callable[..., Any] = differentiable(LIBRARY, _operator, Operands(2), _rules, _internals)
lookup_vjp: Callable[..., Any] = differentiable(LIBRARY, _operator_vjp, Operands(3), _rules_vjp, _internals)
