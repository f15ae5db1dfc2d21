"""Matching in torch: ``torch.ops.cupycorr.correlation_argmax``, ``correlation_soft_argmax`` and their vector-Jacobian products.

This module has their schemas, the functions that compute them, their shapes without data and their derivatives. The first
derivatives are computed from slices of the volume, which is never whole. The derivatives of those, and all in forward
mode, go through the whole volume and torch's own arithmetic.

The scores of the best displacements are correlations at channels, which count as constants. With the weights p of the softmax,

    cotangent of a score = p / temperature ((dy - mean dy) gy + (dx - mean dx) gx + gs)

for the cotangents gy, gx of the means and gs of the logarithm of the sum of exp(score / temperature).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from .. import _dispatch
from .._arguments import Pair, check_precision, effective_precision
from .._checks import positive_temperature
from .._correlation import api
from .._correlation.problem import PARAMETERS, parameters
from .._correlation.problem import Problem as Volume
from .._correlation.problem import problem as volume_problem
from .._dispatch import FORWARD, Operator, Request
from .._dtypes import check_scale
from .._gpu.layout import dense_layout
from .._gpu.plan import Plan
from .._matching import by_slices
from .._matching.by_slices import NEIGHBOURS
from .._matching.problem import ZERO, Mean, Problem, Reduction, best, check_outside, ranges_of
from .._matching.slices import GRADIENT_BYTES, Slice, slices
from .._matching.variants import ARGMAX, SOFT_ARGMAX
from . import _tensors
from ._correlation import correlate, correlate_vjp, in_schema
from ._library import LIBRARY, define
from ._transforms import Internals, Operands, Rules, differentiable

Tensor = torch.Tensor

# Schemas ----------------------------------------------------------------------------------------------------------------------


class CorrelationArguments(NamedTuple):
    """The arguments of the volume, with the schema's defaults. Torch may pass lists in place of pairs."""

    kernel_size: Pair = (1, 1)
    patch_size: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    dilation_patch: Pair = (1, 1)
    patch_offset: Pair | None = None
    scale: float = 1.0
    precision: str | None = None
    variant: str = "auto"

    def of_operator(self, dtype: torch.dtype | None = None, part: Volume | None = None) -> tuple[Any, ...]:
        """Return the arguments of the fixed-grid operator for the volume, or for a part of it, in a dtype."""
        sizes: Any = self[:7] if part is None else [getattr(part.parameters, row.name) for row in PARAMETERS]
        variant = self.variant if self.variant in _VARIANTS_OF_VOLUMES else "auto"
        return (*sizes, 1, self.scale, dtype, self.precision, variant)  # one group


class BestArguments(NamedTuple):
    """The arguments of a search for the best displacements beside those of the volume."""

    top_k: int = 1
    subpixel: bool = False
    outside: str = ZERO


class SoftArguments(NamedTuple):
    """The arguments of a mean displacement beside those of the volume."""

    temperature: float = 1.0
    outside: str = ZERO


_VARIANTS_OF_VOLUMES = ("simd", "blas", "reference")  # the others compute slices of a volume by any variant
_CORRELATION = ", ".join((*map(in_schema, PARAMETERS), "float scale=1.0", "str? precision=None", 'str variant="auto"'))
_BEST = f'int top_k=1, bool subpixel=False, str outside="{ZERO}"'
_SOFT = f'float temperature=1.0, str outside="{ZERO}"'
_INPUTS, _TWO, _THREE = "Tensor input1, Tensor input2", "(Tensor, Tensor)", "(Tensor, Tensor, Tensor)"
_BEST_SCHEMA = f"({_INPUTS}, {_CORRELATION}, {_BEST}) -> {_THREE}"
_AT_SCHEMA = f"(Tensor cotangent, Tensor channel, {_INPUTS}, bool[2] needs, {_CORRELATION}) -> {_TWO}"
_SOFT_SCHEMA = f"({_INPUTS}, {_CORRELATION}, {_SOFT}) -> {_THREE}"
_COTANGENTS = "Tensor to_dy, Tensor to_dx, Tensor to_log_sum"
_SOFT_VJP_SCHEMA = (
    f"({_COTANGENTS}, Tensor dy, Tensor dx, Tensor log_sum, {_INPUTS}, bool[2] needs, {_CORRELATION}, {_SOFT}) -> {_TWO}"
)
_COUNT = len(CorrelationArguments._fields)


def split(given: Sequence[Any], rest: Callable[..., Any]) -> tuple[CorrelationArguments, Any]:
    """Return the arguments of the volume, and the others as a named tuple."""
    return CorrelationArguments(*given[:_COUNT]), rest(*given[_COUNT:])


# Checks -----------------------------------------------------------------------------------------------------------------------


def checked_volume(input1: Tensor, input2: Tensor, given: CorrelationArguments, operator: Operator = ARGMAX) -> Volume:
    """Check the inputs and the arguments of the volume and return its problem; sizes may be symbols."""
    _tensors.check_device("input1", input1, "input2", input2)
    row = _tensors.element("input1", input1.dtype)
    api.check_elements(row, _tensors.element("input2", input2.dtype))
    checked = parameters(*given[:6], patch_offset=given.patch_offset, scale=given.scale)
    found = volume_problem(checked, input1.shape, input2.shape)
    ranges_of(checked)
    check_scale(checked.scale, row)
    if given.precision is not None:
        check_precision(given.precision)
    operator.named(given.variant)
    return found


def _best_problem(input1: Tensor, input2: Tensor, correlation: CorrelationArguments, rest: BestArguments) -> Problem:
    volume = checked_volume(input1, input2, correlation)
    return Problem(volume, best(volume.parameters, rest.top_k, rest.subpixel), check_outside(rest.outside))


def _soft_problem(input1: Tensor, input2: Tensor, correlation: CorrelationArguments, rest: SoftArguments) -> Problem:
    volume = checked_volume(input1, input2, correlation, SOFT_ARGMAX)
    positive = positive_temperature(rest.temperature, _tensors.element("input1", input1.dtype))
    reduction: Reduction = Mean(positive, log_sum=True)
    return Problem(volume, reduction, check_outside(rest.outside))


# Kernels ----------------------------------------------------------------------------------------------------------------------


def _argmax(input1: Tensor, input2: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the best scores and their channels (B, k, oH, oW), and the scores (B, 4, oH, oW) around the best one."""
    correlation, rest = split(given, BestArguments)
    problem = _best_problem(input1, input2, correlation, rest)
    score, channel, around = _empty_best(input1, problem, rest)
    results = {"score": score, "channel": channel, **({"around": around} if rest.subpixel else {})}
    _run(ARGMAX, problem, correlation, input1, input2, results)
    return score, channel, around


def _empty_best(like: Tensor, problem: Problem, rest: BestArguments) -> tuple[Tensor, Tensor, Tensor]:
    batch, count, height, width = problem.out_shape
    dtype = _tensors.accumulator(like.dtype)
    score = like.new_empty((batch, count, height, width), dtype=dtype)
    channel = like.new_empty(score.shape, dtype=torch.int64)
    return score, channel, like.new_empty((batch, len(NEIGHBOURS), height, width) if rest.subpixel else (0,), dtype=dtype)


def _soft(input1: Tensor, input2: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the mean displacements, and the logarithm of the sum of exp(score / temperature), each (B, oH, oW)."""
    correlation, rest = split(given, SoftArguments)
    problem = _soft_problem(input1, input2, correlation, rest)
    found = _empty_soft(input1, problem)
    _run(SOFT_ARGMAX, problem, correlation, input1, input2, dict(zip(("dy", "dx", "log_sum"), found, strict=True)))
    return found


def _empty_soft(like: Tensor, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    dtype, shape = _tensors.accumulator(like.dtype), problem.out_shape
    return like.new_empty(shape, dtype=dtype), like.new_empty(shape, dtype=dtype), like.new_empty(shape, dtype=torch.float64)


def _run(
    operator: Operator, problem: Problem, given: CorrelationArguments, input1: Tensor, input2: Tensor, results: dict[str, Tensor]
) -> None:
    dtype, accumulator = _tensors.dtype_name(input1), _tensors.accumulator(input1.dtype)
    precision = effective_precision(_tensors.precision(given.precision, input1), dtype)
    request = Request(FORWARD, problem, dtype, str(accumulator).removeprefix("torch."), precision=precision)
    tensors = {"input1": input1, "input2": input2, **results}
    if not _tensors.on_gpu(input1):
        _tensors.run(operator, request, given.variant, tensors, results)
        return
    output = dense_layout(request.result_dtype, problem.out_shape)
    request = request._replace(layouts=(*_tensors.layouts(input1, input2), output))
    plan: Any = _dispatch.choose(operator, request, _dispatch.gpu(input1.device.index), given.variant).plan
    if isinstance(plan, Plan):
        _tensors.launch(plan, [tensors[name] for name in plan.itemsizes], input1)
        return

    def scores(part: Slice) -> Tensor:
        images = input1[part.samples], input2[part.samples]
        found: Tensor = correlate(*images, *given.of_operator(accumulator, part.correlation))
        return found

    by_slices.run(problem, results, scores, accumulator.itemsize)


def _at_vjp(
    cotangent: Tensor, channel: Tensor, input1: Tensor, input2: Tensor, needs: list[bool], *given: Any
) -> tuple[Tensor, ...]:
    """Compute the gradients of the scores at channels (B, K, oH, oW), where a channel below 0 is none."""
    correlation = CorrelationArguments(*given)
    volume = checked_volume(input1, input2, correlation)

    def cotangent_of(part: Slice) -> Tensor:
        of_part = cotangent.new_zeros(part.correlation.out_shape)
        counts = part.correlation.parameters.patch_size
        channels = by_slices.channels_on_device(volume, part.first, counts, channel)[..., None, None]
        for g, at in zip(cotangent[part.samples].unbind(1), channel[part.samples].unbind(1), strict=True):
            of_part += torch.where(channels == at[:, None, None], g[:, None, None], 0)
        return of_part

    return _gradients(volume, correlation, input1, input2, needs, cotangent_of)


def _soft_vjp(*arguments: Any) -> tuple[Tensor, ...]:
    """Compute the gradients of the mean displacements, and of the logarithm."""
    to_dy, to_dx, to_log_sum, dy, dx, log_sum, input1, input2, needs, *given = arguments
    correlation, rest = split(given, SoftArguments)
    problem = _soft_problem(input1, input2, correlation, rest)
    accumulator = _tensors.accumulator(input1.dtype)

    def cotangent_of(part: Slice) -> Tensor:
        at = part.samples
        images = (x[at].to(accumulator) for x in (input1, input2))
        scores = correlate(*images, *correlation.of_operator(None, part.correlation))
        # In float64: scores may be large and their differences small.
        weights = scores.double().div_(rest.temperature).sub_(log_sum[at, None, None]).exp_()
        found = _directions(part.correlation, (to_dy[at], to_dx[at]), (dy[at], dx[at]))
        found = found.add_(to_log_sum[at, None, None]).mul_(weights).div_(rest.temperature)
        if problem.excluding:
            found.masked_fill_(~by_slices.kept(problem, part, found), 0)
        return found.to(accumulator)

    return _gradients(problem.correlation, correlation, input1, input2, needs, cotangent_of)


def _directions(volume: Volume, cotangents: Sequence[Tensor], means: Sequence[Tensor]) -> Tensor:
    """Return (dy - mean dy) gy + (dx - mean dx) gx for the displacements of a volume, (B, PH, PW, oH, oW) in float64."""
    found = []
    for tried, g, mean in zip(ranges_of(volume.parameters), cotangents, means, strict=True):
        at = torch.arange(tried.start, tried.stop, tried.step, device=g.device, dtype=torch.float64)
        found.append((at[:, None, None] - mean[:, None].double()) * g[:, None])
    return found[0][:, :, None] + found[1][:, None]


def _gradients(
    volume: Volume,
    given: CorrelationArguments,
    input1: Tensor,
    input2: Tensor,
    needs: Sequence[bool],
    cotangent_of: Callable[[Slice], Tensor],
) -> tuple[Tensor, ...]:
    """Return the gradients for a cotangent of the volume of which slices are computed, added up in the accumulator."""
    accumulator = _tensors.accumulator(input1.dtype)
    inputs = input1, input2
    sums = [x.new_zeros(x.shape if needed else (0,), dtype=accumulator) for x, needed in zip(inputs, needs, strict=True)]
    if any(needs):
        for part in slices(volume, accumulator.itemsize, GRADIENT_BYTES):
            images = (x[part.samples].to(accumulator) for x in inputs)
            arguments = given.of_operator(None, part.correlation)
            found = correlate_vjp(cotangent_of(part), *images, list(needs), *arguments)
            for total, gradient, needed in zip(sums, found, needs, strict=True):
                if needed:
                    total[part.samples] += gradient
            del found, gradient  # before the next ones are allocated
    return tuple(total.to(x.dtype) for total, x in zip(sums, inputs, strict=True))


# Without data -----------------------------------------------------------------------------------------------------------------


def _fake_argmax(input1: Tensor, input2: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    correlation, rest = split(given, BestArguments)
    return _empty_best(input1, _best_problem(input1, input2, correlation, rest), rest)


def _fake_soft(input1: Tensor, input2: Tensor, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_soft(input1, _soft_problem(input1, input2, *split(given, SoftArguments)))


def _fake_at_vjp(
    cotangent: Tensor, channel: Tensor, input1: Tensor, input2: Tensor, needs: list[bool], *given: Any
) -> tuple[Tensor, ...]:
    checked_volume(input1, input2, CorrelationArguments(*given))
    return _tensors.new_gradients((input1, input2), needs)


def _fake_soft_vjp(*arguments: Any) -> tuple[Tensor, ...]:
    *_, input1, input2, needs = arguments[:9]
    _soft_problem(input1, input2, *split(arguments[9:], SoftArguments))
    return _tensors.new_gradients((input1, input2), needs)


# Through the volume -----------------------------------------------------------------------------------------------------------


def _volume_of(input1: Tensor, input2: Tensor, given: CorrelationArguments) -> Tensor:
    """Return the volume in the accumulator."""
    found: Tensor = correlate(input1, input2, *given.of_operator(_tensors.accumulator(input1.dtype)))
    return found


def _direction(inputs: Sequence[Tensor], directions: Sequence[Tensor | None], given: CorrelationArguments) -> Tensor | None:
    """Return the derivative of the volume along directions of the inputs; None where there are none."""
    (x1, x2), (t1, t2) = inputs, directions
    return _sum([_volume_of(a, b, given) for a, b in ((t1, x2), (x1, t2)) if a is not None and b is not None])


def _at(volume: Tensor, channel: Tensor) -> Tensor:
    """Return the scores of a volume at channels; 0 where there is none."""
    return torch.where(channel < 0, 0, volume.flatten(1, 2).gather(1, channel.clamp(min=0)))


class _Softmax:
    """The weights of a volume, and the derivatives of the means in the volume.

    With the weights w, D = dy gy + dx gx for the cotangents gy, gx, gs, and means written as <...>,

        cotangent of the volume     c = w (D - <D> + gs) / T
        its change along u          w' (D - <D> + gs) / T - w sum(w' D) / T,   w' = w (u - <u>) / T
    """

    def __init__(self, inputs: Sequence[Tensor], given: CorrelationArguments, rest: SoftArguments) -> None:
        x1, x2 = inputs
        self.problem, self.temperature = _soft_problem(x1, x2, given, rest), rest.temperature
        volume = _volume_of(x1, x2, given)
        self.dtype, self.shape = volume.dtype, volume.shape
        scores = volume.double() / self.temperature
        self.kept = None
        if self.problem.excluding:
            self.kept = by_slices.kept(self.problem, Slice(slice(None), (0, 0), self.problem.correlation), volume)
            # Where all are excluded nothing is masked, since the derivative of that would be NaN.
            scores = scores.masked_fill(~(self.kept | ~self.kept.flatten(0, 1).any(0)), -torch.inf)
        self.weights = scores.flatten(1, 2).softmax(1).unflatten(1, self.shape[1:3])
        self.tried = [
            torch.arange(each.start, each.stop, each.step, device=x1.device, dtype=scores.dtype)[:, None, None]
            for each in ranges_of(self.problem.correlation.parameters)
        ]

    def means(self, weights: Tensor) -> list[Tensor]:
        """Return the sums of weights times the displacements."""
        return [(along * tried).sum(1) for along, tried in zip((weights.sum(2), weights.sum(1)), self.tried, strict=True)]

    def cotangent(self, cotangents: Sequence[Tensor]) -> Tensor:
        """Return the cotangent of the volume from those of the results."""
        return self._only_kept(self.weights * self._parts(cotangents) / self.temperature)

    def change(self, cotangents: Sequence[Tensor], direction: Tensor) -> Tensor:
        """Return the change of the cotangent of the volume along a direction of the volume."""
        moved, parts = self._moved(direction), self._parts(cotangents)
        pulled = (moved * parts).sum((1, 2), keepdim=True)  # the sum of moved weights is 0, so that <D> and gs add nothing
        return self._only_kept((moved * parts - self.weights * pulled) / self.temperature)

    def along(self, direction: Tensor) -> tuple[Tensor, ...]:
        """Return the change of the results along a direction of the volume."""
        total = (self._only_kept(self.weights) * direction.double()).sum((1, 2)) / self.temperature
        dy, dx = (each.to(self.dtype) for each in self.means(self._moved(direction)))
        return dy, dx, total

    def _moved(self, direction: Tensor) -> Tensor:
        wide = direction.double()
        mean = (self.weights * wide).sum((1, 2), keepdim=True)
        return self._only_kept(self.weights * (wide - mean) / self.temperature)

    def _parts(self, cotangents: Sequence[Tensor]) -> Tensor:
        """Return D - <D> + gs."""
        to_dy, to_dx, to_log_sum = cotangents
        means = self.means(self.weights)
        return _directions(self.problem.correlation, (to_dy, to_dx), means) + to_log_sum[:, None, None]

    def _only_kept(self, values: Tensor) -> Tensor:
        return values if self.kept is None else values.masked_fill(~self.kept, 0)


def _pulled(
    cotangent: Tensor, inputs: Sequence[Tensor], needs: Sequence[bool], given: CorrelationArguments
) -> list[Tensor | None]:
    """Return those gradients of the inputs that are needed, from a cotangent of the volume."""
    accumulator = _tensors.accumulator(inputs[0].dtype)
    wide = (x.to(accumulator) for x in inputs)
    found = correlate_vjp(cotangent.to(accumulator), *wide, list(needs), *given.of_operator())
    return [each.to(inputs[0].dtype) if needed else None for each, needed in zip(found, needs, strict=True)]


def _crossed(
    pull: Callable[..., Sequence[Tensor | None]],
    inputs: Sequence[Tensor],
    directions: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Return the derivatives of a pull-back in the other input: of gradient 1 along t2, and of gradient 2 along t1."""
    (x1, x2), (t1, t2) = inputs, directions
    first = pull((x1, t2), (True, False))[0] if needs[0] and t2 is not None else None
    second = pull((t1, x2), (False, True))[1] if needs[1] and t1 is not None else None
    return [first, second]


def _sum(terms: Sequence[Tensor | None]) -> Tensor | None:
    """Return the sum of those terms that there are; None if there is none."""
    known = [term for term in terms if term is not None]
    return sum(known[1:], known[0]) if known else None


# Derivatives ------------------------------------------------------------------------------------------------------------------


def _neighbours(channel: Tensor, around: Tensor, patch: Pair) -> Tensor:
    """Return the channels (B, 4, oH, oW) of the scores around the best one, -1 where one is not finite."""
    beside = torch.cat([channel + down * patch[1] + right for down, right in NEIGHBOURS], 1)
    return torch.where(around.isfinite(), beside, -1)


def _keep_argmax(ctx: Any, operands: tuple, rest: tuple, outputs: tuple) -> None:
    ctx.given, ctx.rest = split(rest, BestArguments)
    _, channel, around = outputs
    ctx.save_for_backward(*operands, channel, around)
    ctx.mark_non_differentiable(channel)


def _backward_argmax(ctx: Any, needs: tuple[bool, bool], to_score: Tensor, _: Any, to_around: Tensor) -> list[Tensor | None]:
    x1, x2, channel, around = ctx.saved_tensors
    channels, cotangent = channel, to_score
    if ctx.rest.subpixel:
        beside = _neighbours(channel, around, ctx.given.patch_size)
        channels, cotangent = torch.cat((channel, beside), 1), torch.cat((to_score, to_around), 1)
    return _needed(at_vjp(cotangent, channels, x1, x2, list(needs), *ctx.given), needs)


def _tangent_argmax(primals: tuple, tangents: tuple, rest: tuple) -> tuple[Tensor | None, None, Tensor | None]:
    given, of_best = split(rest, BestArguments)
    volume = _direction(primals, tangents, given)
    if volume is None:
        return None, None, None
    _, channel, around = argmax(*primals, *rest)
    beside = _at(volume, _neighbours(channel, around, given.patch_size)) if of_best.subpixel else None
    return _at(volume, channel), None, beside


def _keep_at(ctx: Any, operands: tuple, rest: tuple) -> None:
    ctx.asked, *ctx.given = rest
    ctx.save_for_backward(*operands)
    ctx.set_materialize_grads(False)


def _backward_at(ctx: Any, needs: tuple[bool, ...], *cotangents: Tensor | None) -> list[Tensor | None]:
    g, channel, *inputs = ctx.saved_tensors
    directions = _needed(cotangents, ctx.asked)
    volume = _direction(inputs, directions, CorrelationArguments(*ctx.given)) if needs[0] else None

    def pull(images: Sequence[Tensor], asked: Sequence[bool]) -> Sequence[Tensor]:
        return at_vjp(g, channel, *images, list(asked), *ctx.given)

    # The gradient of input1 along input2's direction is that of <gradient2, direction> in input1.
    crossed = _crossed(pull, inputs, directions, needs[2:])
    return [None if volume is None else _at(volume, channel), None, *crossed]


def _tangent_at(primals: tuple, tangents: tuple, rest: tuple) -> list[Tensor | None]:
    (g, channel, *inputs), (tg, _, *directions), (asked, *given) = primals, tangents, rest

    def pull(images: Sequence[Tensor], needs: Sequence[bool], cotangent: Tensor = g) -> Sequence[Tensor]:
        return at_vjp(cotangent, channel, *images, list(needs), *given)

    along_g = [None, None] if tg is None else _needed(pull(inputs, asked, tg), asked)
    return [_sum(pair) for pair in zip(along_g, _crossed(pull, inputs, directions, asked), strict=True)]


def _keep_soft(ctx: Any, operands: tuple, rest: tuple, outputs: tuple) -> None:
    ctx.given = rest
    ctx.save_for_backward(*operands, *outputs)


def _backward_soft(ctx: Any, needs: tuple[bool, bool], *cotangents: Tensor) -> list[Tensor | None]:
    x1, x2, *outputs = ctx.saved_tensors
    return _needed(soft_vjp(*cotangents, *outputs, x1, x2, list(needs), *ctx.given), needs)


def _tangent_soft(primals: tuple, tangents: tuple, rest: tuple) -> tuple[Tensor | None, ...]:
    given, of_soft = split(rest, SoftArguments)
    direction = _direction(primals, tangents, given)
    return (None, None, None) if direction is None else _Softmax(primals, given, of_soft).along(direction)


def _keep_soft_vjp(ctx: Any, operands: tuple, rest: tuple) -> None:
    ctx.asked, *ctx.given = rest
    ctx.save_for_backward(*operands)
    ctx.set_materialize_grads(False)


def _backward_soft_vjp(ctx: Any, needs: tuple[bool, ...], *cotangents: Tensor | None) -> list[Tensor | None]:
    """Return the gradients of <u, c>, c the cotangent of the volume and u the volume's change along the directions."""
    *given, x1, x2 = ctx.saved_tensors
    inputs, g = (x1, x2), given[:3]
    correlation, rest = split(ctx.given, SoftArguments)
    directions = _needed(cotangents, ctx.asked)
    direction = _direction(inputs, directions, correlation)
    if direction is None:
        return [None] * len(needs)
    softmax = _Softmax(inputs, correlation, rest)
    to_g = softmax.along(direction) if any(needs[:3]) else [None] * 3
    to_inputs = _changed(softmax, g, None, inputs, directions, direction, needs[-2:], correlation)
    return [*to_g, None, None, None, *to_inputs]


def _tangent_soft_vjp(primals: tuple, tangents: tuple, rest: tuple) -> list[Tensor | None]:
    *given, x1, x2 = primals
    *moved, t1, t2 = tangents
    asked, *others = rest
    inputs, directions = (x1, x2), (t1, t2)
    correlation, of_soft = split(others, SoftArguments)
    known = zip(given[:3], moved[:3], strict=True)
    tg = None if all(t is None for t in moved[:3]) else [torch.zeros_like(x) if t is None else t for x, t in known]
    softmax = _Softmax(inputs, correlation, of_soft)
    direction = _direction(inputs, directions, correlation)
    return _changed(softmax, given[:3], tg, inputs, directions, direction, asked, correlation)


def _changed(
    softmax: _Softmax,
    cotangents: Sequence[Tensor],
    change: Sequence[Tensor] | None,
    inputs: Sequence[Tensor],
    directions: Sequence[Tensor | None],
    direction: Tensor | None,
    needs: Sequence[bool],
    given: CorrelationArguments,
) -> list[Tensor | None]:
    """Return the change of the gradients with that of the cotangents, and along directions of the inputs and of the volume."""
    of_volume = softmax.cotangent(cotangents)
    terms = [
        None if change is None else softmax.cotangent(change),
        None if direction is None else softmax.change(cotangents, direction),
    ]
    moved = _sum(terms)

    def pull(images: Sequence[Tensor], asked: Sequence[bool]) -> Sequence[Tensor | None]:
        return _pulled(of_volume, images, asked, given)

    through = [None, None] if moved is None else _pulled(moved, inputs, needs, given)
    return [_sum(pair) for pair in zip(through, _crossed(pull, inputs, directions, needs), strict=True)]


def _needed(gradients: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
    return [gradient if needed else None for gradient, needed in zip(gradients, needs, strict=True)]


_internals = Internals.found()
_argmax_rules = Rules(_keep_argmax, _backward_argmax, _tangent_argmax, keeps_outputs=True)
_soft_rules = Rules(_keep_soft, _backward_soft, _tangent_soft, keeps_outputs=True)
_at_rules = Rules(_keep_at, _backward_at, _tangent_at)
_soft_vjp_rules = Rules(_keep_soft_vjp, _backward_soft_vjp, _tangent_soft_vjp)
_argmax_op = define("correlation_argmax", _BEST_SCHEMA, _argmax, _fake_argmax)
_at_vjp_op = define("correlation_argmax_vjp", _AT_SCHEMA, _at_vjp, _fake_at_vjp)
_soft_op = define("correlation_soft_argmax", _SOFT_SCHEMA, _soft, _fake_soft)
_soft_vjp_op = define("correlation_soft_argmax_vjp", _SOFT_VJP_SCHEMA, _soft_vjp, _fake_soft_vjp)
argmax: Callable[..., Any] = differentiable(LIBRARY, _argmax_op, Operands(2), _argmax_rules, _internals)
at_vjp: Callable[..., Any] = differentiable(LIBRARY, _at_vjp_op, Operands(4), _at_rules, _internals)
soft: Callable[..., Any] = differentiable(LIBRARY, _soft_op, Operands(2), _soft_rules, _internals)
soft_vjp: Callable[..., Any] = differentiable(LIBRARY, _soft_vjp_op, Operands(8), _soft_vjp_rules, _internals)
