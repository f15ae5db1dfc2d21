"""The public function `volume_lookup` for tensors."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import torch

from .._volume_lookup.problem import check_dimensions, parameters
from .._volume_lookup.variants import OPERATOR
from ._arguments import check_dtype_and_precision, dense, key_of, number, shortest, with_traced_scale
from ._volume_lookup import Settings, lookup


def volume_lookup(
    volume: torch.Tensor,
    coords: torch.Tensor,
    patch_size: int | tuple[int, int] = 9,
    *,
    dilation_patch: int | tuple[int, int] = 1,
    order: Literal["dy", "dx"] = "dy",
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
    variant: str = "auto",
) -> torch.Tensor:
    """Look up small windows around coordinates in a correlation volume: `cupycorr.volume_lookup` for tensors.

    .. code-block:: text

        out[e, m, n, i, j] = scale * sum over a, b in {0, 1} of
            wy(a) wx(b) D(y0 + a + dy(m), x0 + b + dx(n))
        D(y', x') = volume[e, i, j, y', x'],   0 outside the slice
        with  X = coords[e, 0, i, j],   x0 = floor(X),   wx(1) = X - x0,   wx(0) = 1 - wx(1)
              dx(n) = dilation_patch (n - (PW - 1) // 2),   y likewise

    The operator is differentiable in ``volume`` and ``coords``, to any order of reverse and forward mode. The derivative at
    whole-number coordinates is that to the right. The gradient of the volume is as large as the volume. The same inputs give
    bitwise the same output and gradients. Autocast changes no dtype.

    Parameters
    ----------
    volume : Tensor of shape (E, H, W, H2, W2) or (E, H, W1, W2)
        float16, bfloat16, float32 or float64, on the CPU or on a CUDA device: for each pixel (i, j) its correlations with the
        pixels of another image. Any strides are accepted without a copy.
    coords : Tensor of shape (E, 2, H, W) or (E, 1, H, W1)
        The centre of each window: x, then y, in pixels of the last axes of ``volume``; only x for a volume (E, H, W1, W2).
        float32 for volumes of 16 or 32 bits, float64 for float64; 16-bit coordinates are widened.
    patch_size, dilation_patch : int or (int, int), optional
        As for `cupycorr.volume_lookup`.
    order : {"dy", "dx"}, default "dy"
        As for `cupycorr.volume_lookup`.
    scale : float, default 1.0
        As for `cupycorr.volume_lookup`.
    dtype : torch.dtype, optional
        Dtype of the output, by default that of the volume. Sums are rounded to it once.
    variant : str, default "auto"
        As for `cupycorr.volume_lookup`.

    Returns
    -------
    Tensor of shape (E, PH, PW, H, W), or (E, P, H, W1) for a volume (E, H, W1, W2)
        Contiguous, on the device of the inputs; the axes are PW, PH for the order "dx".

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `cupycorr.volume_lookup`. A ``scale`` that needs a gradient is a TypeError: multiply the result instead.

    See Also
    --------
    cupycorr.torch.correlation_lookup : Compute the windows on demand, without a volume.
    cupycorr.volume_lookup : The same for arrays.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.torch import volume_lookup
    >>> frame1, frame2 = torch.randn(2, 1, 16, 6, 8)
    >>> volume = torch.einsum("bcij,bckl->bijkl", frame1, frame2).requires_grad_()
    >>> y, x = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    >>> coords = torch.stack((x, y))[None]
    >>> scores = volume_lookup(volume, coords, patch_size=3)
    >>> scores.shape
    torch.Size([1, 3, 3, 6, 8])
    >>> scores[0, 2, 1, 3, 4].item() == volume[0, 3, 4, 3 + 1, 4].item()  # one pixel down
    True
    >>> scores.sum().backward()
    >>> volume.grad.shape
    torch.Size([1, 6, 8, 6, 8])
    """
    dense("volume", volume)
    dense("coords", coords)
    check_dimensions(volume.shape)
    settings = _settings(volume.dim(), (patch_size, dilation_patch), order, scale, dtype, variant)
    out: torch.Tensor = lookup(volume, coords, *settings)
    return out


_SCALE = Settings._fields.index("scale")


def _settings(dimensions: int, sizes: tuple[Any, ...], order: Any, scale: Any, dtype: Any, variant: Any) -> tuple[Any, ...]:
    """Check and normalise the operator's arguments other than tensors."""
    scale = number(scale)
    if torch.compiler.is_compiling():
        return with_traced_scale(lambda value: _normal(dimensions, sizes, order, value, dtype, variant), scale, _SCALE)
    arguments = dimensions, sizes, order, scale, dtype, variant
    types = key_of((*sizes, order, scale, variant), dtype)
    return _normal(*arguments) if types is None else _normal_once(types, *arguments)


def _normal(dimensions: int, sizes: tuple[Any, ...], order: Any, scale: Any, dtype: Any, variant: Any) -> tuple[Any, ...]:
    """Return the fields of `Settings` as a plain tuple, which every version of torch can compile."""
    patch_size, dilation_patch = sizes
    normal = parameters(dimensions, patch_size, dilation_patch=dilation_patch, order=order, scale=scale)
    check_dtype_and_precision(dtype, None)
    OPERATOR.named(variant)
    return (normal.patch_size, normal.dilation_patch, normal.order, normal.scale, dtype, variant)


@lru_cache(1024)
def _normal_once(types: tuple[Any, ...], *arguments: Any) -> tuple[Any, ...]:
    return shortest(Settings(*_normal(*arguments)))
