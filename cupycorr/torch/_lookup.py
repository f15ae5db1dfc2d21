"""The lookup in torch: ``torch.ops.cupycorr.correlation_lookup`` and its vector-Jacobian product.

This module has their schemas, the functions that compute them, their shapes without data and their derivatives. The lookup is
bilinear in its maps, and between pixels it is bilinear in its coordinates. So the derivatives of both operators, of any order,
are these two again, at the coordinates and at the corners around them, and elementwise arithmetic of weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import compress
from typing import Any, NamedTuple

import torch

from .._arguments import HIGHEST, Pair, effective_precision
from .._checks import check_cotangent
from .._dispatch import FORWARD, VJP, Request, with_gradients
from .._lookup import api
from .._lookup.problem import DY_FIRST, PARAMETERS, Problem, check_index, level_scale
from .._lookup.variants import OPERATOR
from . import _tensors
from ._corners import Corners, Tensor, total
from ._library import LIBRARY, define
from ._transforms import Internals, Mapped, Operands, Rules, differentiable

# Schemas ----------------------------------------------------------------------------------------------------------------------


class Settings(NamedTuple):
    """The operators' last arguments, with the schema's defaults. Torch may pass lists in place of pairs."""

    patch_size: Pair = (9, 9)
    dilation_patch: Pair = (1, 1)
    level_step: Pair = (2, 2)
    order: str = DY_FIRST
    scale: float = 1.0
    dtype: torch.dtype | None = None
    precision: str | None = None
    variant: str = "auto"


class Arguments(NamedTuple):
    """The operators' arguments that are no operands: the indices, whether input2 is a pyramid, and the settings."""

    index1: Tensor | None
    index2: Tensor | None
    pyramid: bool
    settings: Settings

    @classmethod
    def of(cls, index1: Tensor | None = None, index2: Tensor | None = None, pyramid: bool = True, *settings: Any) -> Arguments:
        """Return the arguments as torch passes them, which leaves out defaults at the end."""
        return cls(index1, index2, pyramid, Settings(*settings))

    def flat(self) -> tuple[Any, ...]:
        """Return the arguments as the operators take them."""
        return (*self[:3], *self.settings)


_ARGUMENTS = ", ".join(
    (
        "Tensor? index1=None",
        "Tensor? index2=None",
        "bool pyramid=True",
        *(f"int[2] {parameter.name}={parameter.default}" for parameter in PARAMETERS),
        f'str order="{DY_FIRST}"',
        "float scale=1.0",
        "ScalarType? dtype=None",
        "str? precision=None",
        'str variant="auto"',
    )
)
_INPUTS = "Tensor input1, Tensor[] input2, Tensor coords"
_FORWARD_SCHEMA = f"({_INPUTS}, {_ARGUMENTS}) -> Tensor"
# The gradients of input1, of each level of input2, and of coords; `needs` has one element for each of them.
_VJP_SCHEMA = f"(Tensor cotangent, {_INPUTS}, bool[] needs, {_ARGUMENTS}) -> Tensor[]"


# Checks -----------------------------------------------------------------------------------------------------------------------

Maps = Sequence[Tensor]
_DTYPES = api.Dtypes(_tensors.element, _tensors.index_type)


def _checked(input1: Tensor, input2: Maps, coords: Tensor, arguments: Arguments) -> Problem:
    """Check the inputs and the arguments and return the problem; sizes may be symbols."""
    return _problem(*_facts(input1, input2, coords, arguments), *arguments.settings)


def _checked_once(input1: Tensor, input2: Maps, coords: Tensor, arguments: Arguments) -> Problem:
    """Return `_checked` of the same arguments from a cache: models make the same call again and again. Sizes must be numbers."""
    given: tuple[Any, ...] = arguments.settings
    hashable = [tuple(value) if type(value) is list else value for value in given]
    return _problem_once(*_facts(input1, input2, coords, arguments), *hashable)


def _facts(input1: Tensor, input2: Maps, coords: Tensor, arguments: Arguments) -> tuple[Any, ...]:
    """Return the dtypes and the shapes of the inputs, whether input2 is a pyramid, and the shapes and dtypes of the indices."""
    dtypes = input1.dtype, tuple([level.dtype for level in input2]), coords.dtype
    shapes = input1.shape, tuple([level.shape for level in input2]), coords.shape
    index1, index2, pyramid, _ = arguments
    first = None if index1 is None else (index1.shape, index1.dtype)
    second = None if index2 is None else (index2.shape, index2.dtype)
    return dtypes, shapes, pyramid, (first, second)


def _problem(dtypes: Any, shapes: Any, pyramid: bool, indices: Any, *given: Any) -> Problem:
    settings = Settings(*given)
    if not pyramid and len(shapes[1]) != 1:
        raise ValueError(f"input2 must be one map unless pyramid is True, got {len(shapes[1])} maps")
    if settings.dtype is not None:
        _tensors.element("dtype", settings.dtype)
    precision = HIGHEST if settings.precision is None else settings.precision
    rest = settings[:3], settings.order, settings.scale, precision
    checked = api.checked_problem(_DTYPES, dtypes, shapes, pyramid, indices, *rest)
    OPERATOR.named(settings.variant)
    return checked


_problem_once = lru_cache(1024)(_problem)


def _named(checked: Problem, input1: Tensor, input2: Maps, coords: Tensor, arguments: Arguments) -> dict[str, Tensor]:
    """Return the inputs by the names that the problem gives them, all on one device."""
    inputs = dict(zip(("input1", *checked.level_names, "coords"), (input1, *input2, coords), strict=True))
    if arguments.index1 is not None:
        inputs["index1"] = arguments.index1
    if arguments.index2 is not None:
        inputs["index2"] = arguments.index2
    for name, tensor in inputs.items():
        _tensors.check_device("input1", input1, name, tensor)
    return inputs


def _check_indices(checked: Problem, arguments: Arguments) -> None:
    """Refuse indices out of range where they are on the CPU."""
    for name, index, batch in (("index1", arguments.index1, checked.batch1), ("index2", arguments.index2, checked.batch2)):
        if index is not None and not _tensors.on_gpu(index):
            api.check_index_values(name, _tensors.array(index), batch)


def _check_cotangent(cotangent: Tensor, input1: Tensor, needs: Sequence[bool], arguments: Arguments, checked: Problem) -> None:
    """Refuse a cotangent that is not what the forward map returns, and ``needs`` that are not those of the inputs."""
    _tensors.check_device("cotangent", cotangent, "input1", input1)
    result = _tensors.element("dtype", arguments.settings.dtype or input1.dtype)
    check_cotangent(_tensors.element("cotangent", cotangent.dtype), result, cotangent.shape, checked.out_shape)
    if len(needs) != checked.levels + 2:
        what = f"a bool for input1, one for each of {checked.levels} levels, and one for coords"
        raise ValueError(f"needs must be {what}, got needs={list(needs)}")


# Kernels ----------------------------------------------------------------------------------------------------------------------


def _forward(input1: Tensor, input2: Maps, coords: Tensor, *given: Any) -> Tensor:
    """Compute the lookup of tensors, on their device."""
    arguments = Arguments.of(*given)
    read, values = _in_order(input1, input2, coords, arguments)
    key, repeat = _tensors.look_up(OPERATOR, FORWARD, read, values)
    if repeat is not None:
        return _tensors.forward_again(repeat, read)
    checked = _checked_once(input1, input2, coords, arguments)
    inputs = _named(checked, input1, input2, coords, arguments)
    _check_indices(checked, arguments)
    out = input1.new_empty(checked.out_shape, dtype=arguments.settings.dtype)
    layouts = _tensors.layouts(*inputs.values(), out)
    needs = checked.needs_of_inputs((True, True, True))
    request = _request(FORWARD, checked, input1, out, layouts, needs, arguments.settings)
    _tensors.run(OPERATOR, request, arguments.settings.variant, {**inputs, "out": out}, ("out",), key)
    return out


def _vjp(cotangent: Tensor, input1: Tensor, input2: Maps, coords: Tensor, needs: list[bool], *given: Any) -> list[Tensor]:
    """Compute the gradients of tensors, on their device."""
    arguments = Arguments.of(*given)
    read, values = _in_order(input1, input2, coords, arguments)
    key, repeat = _tensors.look_up(OPERATOR, VJP, (cotangent, *read), (needs, *values))
    if repeat is not None:
        gradients = _new_gradients(input1, input2, coords, needs)
        _tensors.launch(repeat.plan, (cotangent, *read, *compress(gradients, needs)), cotangent)
        return list(gradients)
    checked = _checked_once(input1, input2, coords, arguments)
    inputs = _named(checked, input1, input2, coords, arguments)
    _check_cotangent(cotangent, input1, needs, arguments, checked)
    _check_indices(checked, arguments)
    gradients = _new_gradients(input1, input2, coords, needs)
    wanted = _needed(gradients, needs)
    layouts = _tensors.layouts(cotangent, *inputs.values(), *wanted)
    request = _request(VJP, checked, input1, cotangent, layouts, tuple(needs), arguments.settings)
    names = [str(x.gradient) for x in with_gradients(checked.inputs)]
    results = {name: gradient for name, gradient in zip(names, wanted, strict=True) if gradient is not None}
    tensors: Mapping[str, Tensor] = {"cotangent": cotangent, **inputs, **results}
    _tensors.run(OPERATOR, request, arguments.settings.variant, tensors, results, key)
    return list(gradients)


def _in_order(input1: Tensor, input2: Maps, coords: Tensor, arguments: Arguments) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """Return the inputs in the order of a request's layouts, and the other arguments."""
    index1, index2, pyramid, settings = arguments
    indices = [index for index in (index1, index2) if index is not None]
    return (input1, *input2, coords, *indices), (index1 is None, index2 is None, pyramid, *settings)


def _request(
    pass_name: str,
    checked: Problem,
    input1: Tensor,
    result: Tensor,
    layouts: tuple[Any, ...],
    needs: tuple[bool, ...],
    settings: Settings,
) -> Request:
    """Return the request of a pass; ``result`` is the output or the cotangent."""
    dtype = _tensors.dtype_name(input1)
    precision = effective_precision(_tensors.precision(settings.precision, input1), dtype)
    return Request(pass_name, checked, dtype, _tensors.dtype_name(result), layouts, needs, precision)


# Without data -----------------------------------------------------------------------------------------------------------------


def _fake(input1: Tensor, input2: Maps, coords: Tensor, *given: Any) -> Tensor:
    arguments = Arguments.of(*given)
    checked = _checked(input1, input2, coords, arguments)
    _named(checked, input1, input2, coords, arguments)
    return input1.new_empty(checked.out_shape, dtype=arguments.settings.dtype)


def _fake_vjp(cotangent: Tensor, input1: Tensor, input2: Maps, coords: Tensor, needs: list[bool], *given: Any) -> list[Tensor]:
    arguments = Arguments.of(*given)
    checked = _checked(input1, input2, coords, arguments)
    _named(checked, input1, input2, coords, arguments)
    _check_cotangent(cotangent, input1, needs, arguments, checked)
    return list(_new_gradients(input1, input2, coords, needs))


def _new_gradients(input1: Tensor, input2: Maps, coords: Tensor, needs: Sequence[bool]) -> tuple[Tensor, ...]:
    """Return tensors for the gradients, to be filled."""
    *of_maps, of_coords = needs
    return (*_tensors.new_gradients_of_maps((input1, *input2), of_maps), *_tensors.new_gradients((coords,), (of_coords,)))


# Derivatives ------------------------------------------------------------------------------------------------------------------
#
# Let L(f1, f2, c) be the lookup in which f1, f2 and c are input1, input2 and coords, and B(g; f1, f2, c) its gradients for a
# cotangent g. Along directions t1, t2, tc,
#
#     tangent of L     T(t) = L(t1, f2, c) + L(f1, t2, c) + slope_x tc_x + slope_y tc_y
#     gradients of B   for cotangents h:  to g  T(h);  to (f1, f2, c)  the Hessian of <g, L> times h
#     tangents of B    B(tg; f1, f2, c) + the Hessian of <g, L> times t
#
# The Hessian of <g, L> consists of B in which t1 or t2 replaces an input, and of derivatives of <g, slope_x tc_x + slope_y tc_y>.
# Slopes are sums over the corners around the coordinates, at each level: lookups of whole numbers, in the dtype of the sums.


class _Level:
    """The lookups of one level at the corners around the coordinates.

    Values are (E, K, PH, PW, H, W), or PW, PH for the order "dx", whether or not coords have the axis K.
    """

    def __init__(self, f1: Tensor, f2: Maps, c: Tensor, number: int, arguments: Arguments) -> None:
        self.maps, self.dtype = (f1, [f2[number]]), _tensors.accumulator(f1.dtype)
        self.factors = level_scale(arguments.settings.level_step, number)[::-1]
        self.corners = Corners(self.planes(c), lambda plane: plane.unsqueeze(2).unsqueeze(3))
        self.coords = torch.cat([torch.stack(position, 2) for position in self.corners.positions], 1)
        settings = arguments.settings._replace(dtype=self.dtype)
        self.arguments = arguments._replace(pyramid=False, settings=settings).flat()

    def planes(self, coords: Tensor) -> list[Tensor]:
        """Return x, or x and y, of coordinates or of a direction of them at this level, each (E, K, H, W)."""
        channels = _with_lookups_axis(coords, coords).to(self.dtype).unbind(2)
        return [channel * factor for channel, factor in zip(channels, self.factors, strict=False)]

    def dots(self) -> tuple[Tensor, ...]:
        """Return the values at each corner."""
        f1, image = self.maps
        corners = len(self.corners.positions)
        found: Tensor = lookup(f1, image, self.coords, *self.arguments)
        return found.unflatten(1, (corners, found.shape[1] // corners)).unbind(1)

    def gradients(self, cotangents: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
        """Return the gradients of input1 and of the level from the cotangents of `dots`."""
        f1, image = self.maps
        first, second, _ = lookup_vjp(torch.cat(list(cotangents), 1), f1, image, self.coords, [*needs, False], *self.arguments)
        return _needed((first, second), needs)

    def twisted(self, cotangent: Tensor, direction: Tensor) -> Tensor:
        """Return the Hessian of <cotangent, L> in coords times a direction of them, (E, K, 2, H, W)."""
        both = (cotangent * self.corners.twist(self.dots())).sum((2, 3))
        (along_x, along_y), (factor_x, factor_y) = self.planes(direction), self.factors
        return torch.stack([factor_x * along_y * both, factor_y * along_x * both], 2)


def _with_lookups_axis(values: Tensor, coords: Tensor) -> Tensor:
    """Return values (E, [K], ...) with the axis K, whether or not coords have it."""
    return values if coords.dim() == 5 else values.unsqueeze(1)


def _along(operands: Sequence[Tensor], directions: Sequence[Tensor | None], arguments: Arguments) -> Tensor | None:
    """Return T(directions), the derivative of the lookup along directions of its operands; None if there are none."""
    (f1, *f2, c), (t1, *t2, tc) = operands, directions
    terms: list[Tensor] = []
    if t1 is not None:
        terms.append(lookup(t1, f2, c, *arguments.flat()))
    if (filled := _filled(t2, f2)) is not None:
        terms.append(lookup(f1, filled, c, *arguments.flat()))
    if tc is not None:
        terms.append(_along_coords(f1, f2, c, tc, arguments))
    return _total(terms)


def _along_coords(f1: Tensor, f2: Maps, c: Tensor, tc: Tensor, arguments: Arguments) -> Tensor:
    """Return ``slope_x tc_x + slope_y tc_y``."""
    levels = []
    for number in range(len(f2)):
        level = _Level(f1, f2, c, number, arguments)
        slopes = level.corners.slopes(level.planes(tc))
        levels.append(total([slope * dot for slope, dot in zip(slopes, level.dots(), strict=True)]))
    full = torch.stack(levels, 1)
    seen = full if c.dim() == 5 else full.squeeze(2)
    seen = seen if arguments.pyramid else seen.squeeze(1)
    return seen.to(arguments.settings.dtype or f1.dtype)


def _hessian_times(
    g: Tensor,
    operands: Sequence[Tensor],
    directions: Sequence[Tensor | None],
    needs: Sequence[bool],
    arguments: Arguments,
) -> list[Tensor | None]:
    """Return the Hessian of <g, L> times directions of the operands, for those operands that need it."""
    (f1, *f2, c), (t1, *t2, tc), (need1, *need2, need_c) = operands, directions, needs
    terms: list[list[Tensor]] = [[] for _ in operands]

    def add(gradients: Iterable[Tensor | None]) -> None:
        for some, gradient in zip(terms, gradients, strict=True):
            if gradient is not None:
                some.append(gradient)

    if t1 is not None and (any(need2) or need_c):
        add(gradients(g, t1, f2, c, (False, *need2, need_c), arguments))
    if (need1 or need_c) and (filled := _filled(t2, f2)) is not None:
        add(gradients(g, f1, filled, c, (need1, *(False for _ in f2), need_c), arguments))
    if tc is not None:
        for number in range(len(f2)):
            first, second, third = _hessian_times_coords(g, operands, number, tc, (need1, need2[number], need_c), arguments)
            add([first, *(second if k == number else None for k in range(len(f2))), third])
    return list(map(_total, terms))


def _hessian_times_coords(
    g: Tensor, operands: Sequence[Tensor], number: int, tc: Tensor, needs: tuple[bool, bool, bool], arguments: Arguments
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return what a direction of coords adds to `_hessian_times` at a level, for input1, the level and coords."""
    (f1, *f2, c), (need1, need2, need_c) = operands, needs
    level = _Level(f1, f2, c, number, arguments)
    of_level = (g if arguments.pyramid else g.unsqueeze(1)).select(1, number)
    cotangent = _with_lookups_axis(of_level, c).to(level.dtype)
    first = second = third = None
    if need1 or need2:
        slopes = level.corners.slopes(level.planes(tc))
        first, second = level.gradients([cotangent * slope for slope in slopes], (need1, need2))
    if need_c and c.shape[-3] == 2:
        third = level.twisted(cotangent, tc).reshape(c.shape).to(c.dtype)
    return first, second, third


def gradients(g: Tensor, f1: Tensor, f2: Maps, c: Tensor, needs: Sequence[bool], arguments: Arguments) -> list[Tensor | None]:
    """Return the needed gradients of a lookup, which are differentiable."""
    return _needed(lookup_vjp(g, f1, f2, c, list(needs), *arguments.flat()), needs)


def _filled(tangents: Sequence[Tensor | None], maps: Maps) -> list[Tensor] | None:
    """Return the tangents of all levels, zeros for one without a tangent; None if no level has one."""
    if all(tangent is None for tangent in tangents):
        return None
    pairs = zip(tangents, maps, strict=True)
    return [torch.zeros_like(image) if tangent is None else tangent for tangent, image in pairs]


def _total(terms: Sequence[Tensor]) -> Tensor | None:
    return total(terms) if terms else None


def _needed(gradients: Iterable[Any], needs: Iterable[bool]) -> list[Tensor | None]:
    return [gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)]


def _keep(ctx: Any, operands: tuple, rest: tuple) -> None:
    index1, index2, ctx.pyramid, ctx.settings = Arguments.of(*rest)
    ctx.save_for_backward(*operands, index1, index2)


def _kept(ctx: Any) -> tuple[list[Tensor], Arguments]:
    *operands, index1, index2 = ctx.saved_tensors
    return operands, Arguments(index1, index2, ctx.pyramid, ctx.settings)


def _backward(ctx: Any, needs: tuple[bool, ...], cotangent: Tensor) -> list[Tensor | None]:
    (f1, *f2, c), arguments = _kept(ctx)
    return gradients(cotangent, f1, f2, c, needs, arguments)


def _tangent(primals: tuple, tangents: tuple, rest: tuple) -> Tensor | None:
    return _along(primals, tangents, Arguments.of(*rest))


def _keep_vjp(ctx: Any, operands: tuple, rest: tuple) -> None:
    ctx.needs, *given = rest
    _keep(ctx, operands, tuple(given))
    ctx.set_materialize_grads(False)


def _backward_vjp(ctx: Any, needs: tuple[bool, ...], *cotangents: Tensor | None) -> list[Tensor | None]:
    (g, *operands), arguments = _kept(ctx)
    directions = _needed(cotangents, ctx.needs)
    to_g = _along(operands, directions, arguments) if needs[0] else None
    return [to_g, *_hessian_times(g, operands, directions, needs[1:], arguments)]


def _tangent_vjp(primals: tuple, tangents: tuple, rest: tuple) -> list[Tensor | None]:
    (g, *operands), (tg, *directions), (needs, *given) = primals, tangents, rest
    arguments = Arguments.of(*given)
    found = _hessian_times(g, operands, directions, needs, arguments)
    if tg is None:
        return found
    f1, *f2, c = operands
    first = gradients(tg, f1, f2, c, needs, arguments)
    return [_total([x for x in pair if x is not None]) for pair in zip(first, found, strict=True)]


# vmap -------------------------------------------------------------------------------------------------------------------------


def _fold(mapped: Mapped) -> tuple[tuple, tuple]:
    operands, arguments = _folded(mapped, (False,) * len(mapped.operands), mapped.rest, mapped.rest_dims)
    return operands, arguments


def _fold_vjp(mapped: Mapped) -> tuple[tuple, tuple]:
    cotangent = mapped.folded(mapped.operands[0], mapped.dims[0])
    inputs = mapped._replace(operands=mapped.operands[1:], dims=mapped.dims[1:])
    needs, *given = mapped.rest
    operands, arguments = _folded(inputs, tuple(needs), tuple(given), mapped.rest_dims[1:])
    return (cotangent, *operands), (needs, *arguments)


def _folded(mapped: Mapped, needs: Sequence[bool], given: tuple, given_dims: tuple) -> tuple[tuple, tuple]:
    """Return the operands and the arguments of one lookup that computes a mapped one.

    Its entries are those of all samples. Maps without the mapped axis are shared by indices, unless each sample needs a gradient.
    """
    (f1, *f2, c), (dim1, *dims2, dim_c), (need1, *need2, _) = mapped.operands, mapped.dims, needs
    index1, index2, pyramid, settings = Arguments.of(*given)
    index_dims = (*given_dims, None, None)
    coords = mapped.folded(c, dim_c)
    own_coords = _own_shape(c, dim_c)
    first = _MappedIndex("index1", index1, index_dims[0], own_coords)
    second = _MappedIndex("index2", index2, index_dims[1], own_coords)
    (input1,), index1 = _folded_maps(mapped, [f1], [dim1], [need1], first)
    input2, index2 = _folded_maps(mapped, f2, dims2, need2, second)
    return (input1, *input2, coords), Arguments(index1, index2, pyramid, settings).flat()


class _MappedIndex(NamedTuple):
    """The indices of a mapped call: their name, the tensor and its mapped axis (or None), and the shape of a sample's coords."""

    name: str
    tensor: Tensor | None
    dim: int | None
    coords: tuple[int, ...]

    def checked(self, batch: int) -> Tensor | None:
        """Return the indices into a batch, ([samples], E), after refusing what the lookup of a sample would refuse."""
        index = self.tensor
        check_index(self.name, None if index is None else _own_shape(index, self.dim), batch, self.coords)
        if index is None:
            return None
        _tensors.index_type(self.name, index.dtype)
        checked: Tensor = _index(index if self.dim is None else index.movedim(self.dim, 0), self.name, batch)
        return checked


def _own_shape(tensor: Tensor, dim: int | None) -> tuple[int, ...]:
    """Return the shape of a sample of a mapped tensor."""
    return tensor.shape if dim is None else tensor.movedim(dim, 0).shape[1:]


def _folded_maps(
    mapped: Mapped, maps: Maps, dims: Sequence[int | None], needs: Sequence[bool], index: _MappedIndex
) -> tuple[list[Tensor], Tensor | None]:
    """Return the maps of all samples and the index of the image of each entry, None where it is the entry's own."""
    shared = all(each is None for each in dims) and not any(needs)
    folded = list(maps) if shared else [mapped.folded(image, each) for image, each in zip(maps, dims, strict=True)]
    batch = folded[0].shape[0] // (1 if shared else mapped.size)
    rows = index.checked(batch)
    if rows is None:
        if not shared:
            return folded, None
        rows = torch.arange(batch, device=maps[0].device)
    rows = rows.expand(mapped.size, rows.shape[-1])
    if not shared:
        first = batch * torch.arange(mapped.size, device=rows.device).unsqueeze(1)
        rows = torch.where((rows >= 0) & (rows < batch), rows + first, -1)  # on a GPU, out of range stays out of range
    return folded, rows.flatten()


def _copied_index(index: Tensor, name: str, batch: int) -> Tensor:
    """Return a copy of the indices of samples (..., E), after refusing those out of range where they are on the CPU."""
    if not _tensors.on_gpu(index):
        api.check_index_values(name, _tensors.array(index), batch)
    return index.to(torch.int64, copy=True)


def _fake_index(index: Tensor, name: str, batch: int) -> Tensor:
    return torch.empty_like(index, dtype=torch.int64)


def _map_index(info: Any, dims: tuple, index: Tensor, name: str, batch: int) -> tuple[Tensor, int]:
    return _index(index.movedim(dims[0], 0), name, batch), 0


# Indices are read below all transforms: values of a sample that another transform maps cannot be read where it is folded.
_index = define("correlation_lookup_index", "(Tensor index, str name, SymInt batch) -> Tensor", _copied_index, _fake_index)
torch.library.register_vmap(_index, _map_index, lib=LIBRARY)
_internals = Internals.found()
_operator = define("correlation_lookup", _FORWARD_SCHEMA, _forward, _fake)
_operator_vjp = define("correlation_lookup_vjp", _VJP_SCHEMA, _vjp, _fake_vjp)
lookup = differentiable(LIBRARY, _operator, Operands(1, 1), Rules(_keep, _backward, _tangent, _fold), _internals)
lookup_vjp = differentiable(
    LIBRARY, _operator_vjp, Operands(2, 1), Rules(_keep_vjp, _backward_vjp, _tangent_vjp, _fold_vjp), _internals
)
