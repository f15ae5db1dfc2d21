"""The public function `correlation_lookup` for tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import torch

from .._groups import check_groups, several, split
from .._lookup.problem import parameters
from .._lookup.variants import OPERATOR
from ._arguments import cast, check_dtype_and_precision, dense, key_of, number, shortest, with_traced_scale
from ._lookup import Settings, lookup


def correlation_lookup(
    input1: torch.Tensor,
    input2: torch.Tensor | Sequence[torch.Tensor],
    coords: torch.Tensor,
    patch_size: int | tuple[int, int] = 9,
    *,
    dilation_patch: int | tuple[int, int] = 1,
    level_step: int | tuple[int, int] = 2,
    index1: torch.Tensor | None = None,
    index2: torch.Tensor | None = None,
    order: Literal["dy", "dx"] = "dy",
    groups: int = 1,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
    precision: str | None = None,
    variant: str = "auto",
) -> torch.Tensor:
    """Correlate pixels of a feature map with small windows around coordinates: `cupycorr.correlation_lookup` for tensors.

    .. code-block:: text

        out[e, l, k, m, n, i, j] = scale * sum over a, b in {0, 1} of
            wy(a) wx(b) D(y0 + a + dy(m), x0 + b + dx(n))
        D(y', x') = sum over c of input1[s, c, i, j] * input2_l[t, c, y', x'],   0 outside input2_l
        with  X = coords[e, k, 0, i, j] px_l,   x0 = floor(X),   wx(1) = X - x0,   wx(0) = 1 - wx(1),   px_l = level_step ** -l
              dx(n) = dilation_patch (n - (PW - 1) // 2),   y likewise,   s = index1[e],   t = index2[e]

    The operator is differentiable in ``input1``, every level of ``input2`` and ``coords``, to any order of reverse and forward
    mode. The derivative at whole-number coordinates is that to the right. The same inputs give bitwise the same output and
    gradients. Under autocast the features are cast to its dtype; coordinates never are.

    Parameters
    ----------
    input1 : Tensor of shape (N1, C, H, W)
        float16, bfloat16, float32 or float64, on the CPU or on a CUDA device. Any strides are accepted without a copy.
    input2 : Tensor of shape (N2, C, H2, W2), or a list or tuple of L such tensors
        Same device and dtype as ``input1``. The levels of a pyramid have the same N2 and C, and heights and widths of their own.
    coords : Tensor of shape (E, 2, H, W) or (E, K, 2, H, W)
        The centre of each window: x, then y, in pixels of level 0 of ``input2``; with one channel instead of two it is x, and y
        is the query's own row. float32 for features of 16 or 32 bits, float64 for float64; 16-bit coordinates are widened.
    patch_size, dilation_patch, level_step : int or (int, int), optional
        As for `cupycorr.correlation_lookup`.
    index1, index2 : Tensor of int32 or int64 and of shape (E,), optional
        The image of ``input1`` and of ``input2`` that each entry of ``coords`` compares; by default image e. An index out of
        range is an IndexError on the CPU; on a CUDA device the output of that entry is NaN, and the entry adds to no gradient.
    order : {"dy", "dx"}, default "dy"
        As for `cupycorr.correlation_lookup`.
    groups : int, default 1
        As for `cupycorr.correlation_lookup`.
    scale : float, default 1.0
        As for `cupycorr.correlation_lookup`.
    dtype : torch.dtype, optional
        Dtype of the output, by default that of the features. Sums are rounded to it once, also from float16 features to float32.
    precision : {"highest", "high", "medium"}, optional
        Precision of the products of float32 numbers, as in `cupycorr.correlation_lookup`. None is torch's setting for matrix
        products on a GPU at the time when the operator runs, separately for forward and backward.
    variant : str, default "auto"
        As for `cupycorr.correlation_lookup`.

    Returns
    -------
    Tensor of shape (E, [G], [L], [K], PH, PW, H, W)
        Contiguous, on the device of the inputs; the axes are PW, PH for the order "dx". The axis G is there for several groups,
        the axis L where ``input2`` is a list or tuple, the axis K where ``coords`` has five dimensions.

    Raises
    ------
    TypeError, ValueError, IndexError, NotImplementedError
        As `cupycorr.correlation_lookup`. A ``scale`` that needs a gradient is a TypeError: multiply the result instead.

    See Also
    --------
    cupycorr.torch.CorrBlock : RAFT's block of that name, made of lookups.
    cupycorr.torch.volume_lookup : Look windows up in a volume that is there already.
    cupycorr.correlation_lookup : The same for arrays.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.torch import correlation_lookup
    >>> frame1 = torch.randn(1, 64, 16, 16, requires_grad=True)
    >>> frame2 = torch.roll(frame1.detach(), (2, -1), dims=(2, 3))  # everything moved down 2 and left 1
    >>> pyramid = [frame2, torch.nn.functional.avg_pool2d(frame2, 2)]
    >>> y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    >>> guess = torch.stack((x, y + 1))[None]  # coordinates: everything moved down 1
    >>> scores = correlation_lookup(frame1, pyramid, guess, patch_size=5)
    >>> scores.shape
    torch.Size([1, 2, 5, 5, 16, 16])
    >>> m, n = divmod(scores[0, 0, :, :, 8, 8].argmax().item(), 5)
    >>> m - 2, n - 2  # what the guess lacks: dy, dx
    (1, -1)
    >>> scores.sum().backward()
    >>> frame1.grad.shape
    torch.Size([1, 64, 16, 16])
    """
    pyramid = isinstance(input2, (list, tuple))
    first, *maps = cast(dense("input1", input1), *_levels(input2))
    dense("coords", coords)
    for name, index in (("index1", index1), ("index2", index2)):
        if index is not None:
            dense(name, index)
    settings = _settings((patch_size, dilation_patch, level_step), order, scale, dtype, precision, variant)
    count = several(groups)
    # Maps of other channels are refused in the words for the whole maps.
    if not count or any(image.ndim != 4 or image.shape[1] != first.shape[1] for image in (first, *maps)):
        out: torch.Tensor = lookup(first, maps, coords, index1, index2, pyramid, *settings)
        return out
    check_groups(count, first)
    return torch.stack([lookup(*parts, coords, index1, index2, pyramid, *settings) for parts in split(count, first, maps)], 1)


def _levels(input2: Any) -> list[torch.Tensor]:
    """Return the levels of input2 after checking that each is a dense tensor."""
    if isinstance(input2, (list, tuple)):
        return [dense(f"input2[{level}]", image) for level, image in enumerate(input2)]
    return [dense("input2", input2, "a torch tensor or a list or tuple of them")]


_SCALE = Settings._fields.index("scale")


def _settings(sizes: tuple[Any, ...], order: Any, scale: Any, dtype: Any, precision: Any, variant: Any) -> tuple[Any, ...]:
    """Check and normalise the operator's arguments other than tensors."""
    scale = number(scale)
    if torch.compiler.is_compiling():
        return with_traced_scale(lambda value: _normal(sizes, order, value, dtype, precision, variant), scale, _SCALE)
    arguments = sizes, order, scale, dtype, precision, variant
    types = key_of((*sizes, order, scale, precision, variant), dtype)
    return _normal(*arguments) if types is None else _normal_once(types, *arguments)


def _normal(sizes: tuple[Any, ...], order: Any, scale: Any, dtype: Any, precision: Any, variant: Any) -> tuple[Any, ...]:
    """Return the fields of `Settings` as a plain tuple, which every version of torch can compile."""
    patch_size, dilation_patch, level_step = sizes
    normal = parameters(patch_size, dilation_patch=dilation_patch, level_step=level_step, order=order, scale=scale)
    check_dtype_and_precision(dtype, precision)
    OPERATOR.named(variant)
    pairs = normal.patch_size, normal.dilation_patch, normal.level_step
    return (*pairs, normal.order, normal.scale, dtype, precision, variant)


@lru_cache(1024)
def _normal_once(types: tuple[Any, ...], *arguments: Any) -> tuple[Any, ...]:
    return shortest(Settings(*_normal(*arguments)))
