"""The public functions `correlation_argmax` and `correlation_soft_argmax` for tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Literal

import torch

from .._checks import positive_temperature
from .._correlation.problem import parameters
from .._dispatch import Operator
from .._groups import check_groups, several, split
from .._matching.problem import best, check_outside, ranges_of
from .._matching.results import BestDisplacement, Field, MeanDisplacement, best_displacement, joined
from .._matching.variants import ARGMAX, SOFT_ARGMAX
from ._arguments import cast, check_dtype_and_precision, dense, key_of, number, with_traced_scale
from ._matching import CorrelationArguments, argmax, checked_volume, soft
from ._tensors import element


def correlation_argmax(
    input1: torch.Tensor,
    input2: torch.Tensor,
    kernel_size: int | tuple[int, int] = 1,
    patch_size: int | tuple[int, int] = 1,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    dilation_patch: int | tuple[int, int] = 1,
    *,
    patch_offset: int | tuple[int, int] | None = None,
    groups: int = 1,
    scale: float = 1.0,
    precision: str | None = None,
    variant: str = "auto",
    top_k: int = 1,
    subpixel: bool = False,
    outside: Literal["zero", "excluded"] = "zero",
) -> BestDisplacement[torch.Tensor]:
    """Find the displacement with the highest score at every position: `cupycorr.correlation_argmax` for tensors.

    ``score`` is differentiable in both inputs, to any order of reverse and forward mode, and so are subpixel displacements: the
    displacements found count as constants. First derivatives in reverse mode need slices of the volume alone, beside three times
    the memory of the inputs; those beyond, and forward mode, go through the whole volume. The same inputs give bitwise the same
    results and gradients. Under autocast the inputs are cast to its dtype, like those of a convolution.

    Parameters
    ----------
    input1 : Tensor of shape (B, C, H, W)
        float16, bfloat16, float32 or float64, on the CPU or on a CUDA device. Any strides are accepted without a copy.
    input2 : Tensor of shape (B, C, H, W), or (B, C, H2, W2) if patch_offset is passed
        Same device and dtype as ``input1``.
    kernel_size, patch_size, stride, padding, dilation, dilation_patch, patch_offset : int or (int, int), optional
        As for `cupycorr.correlation_argmax`.
    groups : int, default 1
        As for `cupycorr.correlation_argmax`.
    scale : float, default 1.0
        As for `cupycorr.correlation_argmax`.
    precision : {"highest", "high", "medium"}, optional
        As for `cupycorr.torch.spatial_correlation_sample`.
    variant : str, default "auto"
        As for `cupycorr.correlation_argmax`.
    top_k : int, default 1
        As for `cupycorr.correlation_argmax`.
    subpixel : bool, default False
        As for `cupycorr.correlation_argmax`.
    outside : {"zero", "excluded"}, default "zero"
        As for `cupycorr.correlation_argmax`.

    Returns
    -------
    BestDisplacement
        ``dy, dx, score, channel``, each (B, [k], [G], oH, oW), and ``flow`` (..., 2), as `cupycorr.correlation_argmax` returns
        them.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `cupycorr.correlation_argmax`. A ``scale`` that needs a gradient is a TypeError.

    See Also
    --------
    cupycorr.torch.correlation_soft_argmax : Return the mean displacement.
    cupycorr.correlation_argmax : The same for arrays.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.torch import correlation_argmax
    >>> x1 = torch.randn(1, 64, 16, 16, requires_grad=True)
    >>> x2 = torch.roll(x1.detach(), (2, -1), dims=(2, 3))  # everything moved down 2 and left 1
    >>> best = correlation_argmax(x1, x2, patch_size=7)
    >>> best.dy[0, 8, 8].item(), best.dx[0, 8, 8].item()
    (2, -1)
    >>> best.score.sum().backward()
    >>> x1.grad.shape
    torch.Size([1, 64, 16, 16])
    """
    input1, input2 = cast(dense("input1", input1), dense("input2", input2))
    given = (kernel_size, patch_size, stride, padding, dilation, dilation_patch)
    arguments = _arguments(ARGMAX, given, patch_offset, scale, precision, variant)
    checked = parameters(*arguments[:6], patch_offset=arguments[6], scale=1.0)
    found = best(checked, top_k, subpixel)
    excluding = check_outside(outside)

    def search(first: torch.Tensor, second: torch.Tensor) -> BestDisplacement[torch.Tensor]:
        score, channel, around = argmax(first, second, *arguments, found.top_k, found.around, outside)
        return best_displacement(ranges_of(checked), excluding, score, channel, around if found.around else None)

    check = partial(checked_volume, given=CorrelationArguments(*arguments), operator=ARGMAX)
    return _by_groups(search, check, groups, input1, input2, 2 if found.top_k > 1 else 1)


def correlation_soft_argmax(
    input1: torch.Tensor,
    input2: torch.Tensor,
    kernel_size: int | tuple[int, int] = 1,
    patch_size: int | tuple[int, int] = 1,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    dilation_patch: int | tuple[int, int] = 1,
    *,
    patch_offset: int | tuple[int, int] | None = None,
    groups: int = 1,
    scale: float = 1.0,
    precision: str | None = None,
    variant: str = "auto",
    temperature: float = 1.0,
    outside: Literal["zero", "excluded"] = "zero",
) -> MeanDisplacement[torch.Tensor]:
    """Return the mean displacement, weighted by scores, at every position: `cupycorr.correlation_soft_argmax` for tensors.

    It is differentiable in both inputs, to any order of reverse and forward mode. First derivatives in reverse mode take little
    memory, because scores are computed again; those beyond, and forward mode, go through the whole volume. The same inputs give
    bitwise the same results and gradients. Under autocast the inputs are cast to its dtype, like those of a convolution.

    Parameters
    ----------
    input1, input2 : Tensor
        As for `cupycorr.torch.correlation_argmax`.
    kernel_size, patch_size, stride, padding, dilation, dilation_patch, patch_offset : int or (int, int), optional
        As for `cupycorr.torch.correlation_argmax`.
    groups : int, default 1
        As for `cupycorr.torch.correlation_argmax`.
    scale : float, default 1.0
        As for `cupycorr.torch.correlation_argmax`.
    precision : {"highest", "high", "medium"}, optional
        As for `cupycorr.torch.correlation_argmax`.
    variant : str, default "auto"
        As for `cupycorr.torch.correlation_argmax`.
    temperature : float, default 1.0
        As for `cupycorr.correlation_soft_argmax`.
    outside : {"zero", "excluded"}, default "zero"
        As for `cupycorr.correlation_soft_argmax`.

    Returns
    -------
    MeanDisplacement
        ``dy, dx``, each (B, [G], oH, oW), and ``flow`` (..., 2), as `cupycorr.correlation_soft_argmax` returns them.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `cupycorr.correlation_soft_argmax`. A ``scale`` or a ``temperature`` that needs a gradient is a TypeError.

    See Also
    --------
    cupycorr.torch.correlation_argmax : Find the best displacement.
    cupycorr.correlation_soft_argmax : The same for arrays.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.torch import correlation_soft_argmax
    >>> x1 = torch.randn(1, 64, 16, 16, requires_grad=True)
    >>> x2 = torch.roll(x1.detach(), (2, -1), dims=(2, 3))  # everything moved down 2 and left 1
    >>> mean = correlation_soft_argmax(x1, x2, patch_size=7, temperature=4.0)
    >>> mean.flow.shape
    torch.Size([1, 16, 16, 2])
    >>> mean.flow.sum().backward()
    >>> x1.grad.shape
    torch.Size([1, 64, 16, 16])
    """
    input1, input2 = cast(dense("input1", input1), dense("input2", input2))
    given = (kernel_size, patch_size, stride, padding, dilation, dilation_patch)
    arguments = _arguments(SOFT_ARGMAX, given, patch_offset, scale, precision, variant)
    divisor = positive_temperature(temperature, element("input1", input1.dtype))
    check_outside(outside)

    def mean(first: torch.Tensor, second: torch.Tensor) -> MeanDisplacement[torch.Tensor]:
        dy, dx, _ = soft(first, second, *arguments, divisor, outside)
        return MeanDisplacement(dy, dx)

    check = partial(checked_volume, given=CorrelationArguments(*arguments), operator=SOFT_ARGMAX)
    return _by_groups(mean, check, groups, input1, input2, 1)


def _by_groups(
    call: Callable[[torch.Tensor, torch.Tensor], Field],
    check: Callable[[torch.Tensor, torch.Tensor], Any],
    groups: Any,
    first: torch.Tensor,
    second: torch.Tensor,
    axis: int,
) -> Field:
    """Return a field of two maps, or those of each group of channels along a new axis; ``check`` refuses wrong whole maps."""
    count = several(groups)
    if not count:
        return call(first, second)
    check(first, second)
    check_groups(count, first)
    return joined([call(*parts) for parts in split(count, first, second)], axis)


_SCALE = CorrelationArguments._fields.index("scale")


def _arguments(
    operator: Operator, given: tuple[Any, ...], patch_offset: Any, scale: Any, precision: Any, variant: Any
) -> tuple[Any, ...]:
    """Check and normalise the arguments of the volume other than tensors."""
    scale = number(scale)
    if torch.compiler.is_compiling():
        return with_traced_scale(lambda value: _normal(operator, given, patch_offset, value, precision, variant), scale, _SCALE)
    arguments = operator, given, patch_offset, scale, precision, variant
    types = key_of((*given, patch_offset, scale, precision, variant), None)
    return _normal(*arguments) if types is None else _normal_once(types, *arguments)


def _normal(
    operator: Operator, given: tuple[Any, ...], patch_offset: Any, scale: Any, precision: Any, variant: Any
) -> tuple[Any, ...]:
    """Return the fields of `CorrelationArguments` as a plain tuple, which every version of torch can compile."""
    normal = parameters(*given, patch_offset=patch_offset, scale=scale)
    check_dtype_and_precision(None, precision)
    operator.named(variant)
    pairs = normal.kernel_size, normal.patch_size, normal.stride, normal.padding, normal.dilation, normal.dilation_patch
    return (*pairs, normal.patch_offset, normal.scale, precision, variant)


@lru_cache(1024)
def _normal_once(types: tuple[Any, ...], *arguments: Any) -> tuple[Any, ...]:
    return _normal(*arguments)
