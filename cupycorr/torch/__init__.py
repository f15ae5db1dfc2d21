"""The public torch interface: spatial correlation as a function and a module, matching, lookups, blocks of lookups, and export.

Each function is registered as an operator of torch, which is differentiable to any order, can be compiled and exported, and runs
on the tensor's device and torch's current stream. Importing `cupycorr` does not import this package, and only this package needs
torch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

try:
    import torch
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('cupycorr.torch needs torch: pip install "cupycorr[torch]"', name=error.name) from error

from .._correlation.problem import parameters
from .._correlation.variants import OPERATOR
from ._arguments import cast, check_dtype_and_precision, dense, key_of, number, shortest, with_traced_scale
from ._correlation import Arguments, correlate
from ._decompositions import decompositions
from ._lookup_function import correlation_lookup
from ._matching_function import correlation_argmax, correlation_soft_argmax
from ._onnx import onnx_table
from ._volume_lookup_function import volume_lookup
from .corr_block import CorrBlock, CorrBlock1D

__all__ = [
    "CorrBlock",
    "CorrBlock1D",
    "SpatialCorrelationSampler",
    "correlation_argmax",
    "correlation_lookup",
    "correlation_soft_argmax",
    "decompositions",
    "onnx_table",
    "spatial_correlation_sample",
    "volume_lookup",
]


def spatial_correlation_sample(
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
    dtype: torch.dtype | None = None,
    precision: str | None = None,
    variant: str = "auto",
) -> torch.Tensor:
    """Correlate patches of two feature maps over a grid of displacements: `cupycorr.spatial_correlation_sample` for tensors.

    .. code-block:: text

        out[b, m, n, i, j] = scale * sum over c, u < kH, v < kW of
            input1[b, c, y, x] * input2[b, c, y + dy(m), x + dx(n)]
        with  y = i sH - aH + u dH,   x = j sW - aW + v dW
              dy(m) = qH + eH (m - (PH - 1) // 2),   dx(n) = qW + eW (n - (PW - 1) // 2)

    The operator is differentiable in both inputs, to any order of reverse and forward mode. The same inputs give bitwise the same
    output and gradients. Under autocast the inputs are cast to its dtype, like those of a convolution.

    Parameters
    ----------
    input1 : Tensor of shape (B, C, H, W)
        float16, bfloat16, float32 or float64, on the CPU or on a CUDA device. Any strides are accepted without a copy.
    input2 : Tensor of shape (B, C, H, W), or (B, C, H2, W2) if patch_offset is passed
        Same device and dtype as ``input1``.
    kernel_size, patch_size, stride, padding, dilation, dilation_patch, patch_offset : int or (int, int), optional
        As for `cupycorr.spatial_correlation_sample`.
    groups : int, default 1
        As for `cupycorr.spatial_correlation_sample`.
    scale : float, default 1.0
        As for `cupycorr.spatial_correlation_sample`.
    dtype : torch.dtype, optional
        Dtype of the output, by default that of the inputs. Sums are rounded to it once, also from float16 inputs to float32.
    precision : {"highest", "high", "medium"}, optional
        Precision of the products of float32 numbers, as in `cupycorr.spatial_correlation_sample`. None is torch's setting for
        matrix products on a GPU at the time when the operator runs, separately for forward and backward.
    variant : str, default "auto"
        As for `cupycorr.spatial_correlation_sample`.

    Returns
    -------
    Tensor of shape (B, PH, PW, oH, oW), with several groups (B, G, PH, PW, oH, oW)
        Contiguous, on the device of the inputs.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `cupycorr.spatial_correlation_sample`. A ``scale`` that needs a gradient is a TypeError: multiply the result instead.

    See Also
    --------
    cupycorr.torch.SpatialCorrelationSampler : The same as a module.
    cupycorr.torch.correlation_argmax : Find the best displacement without the cost volume.
    cupycorr.torch.correlation_lookup : Correlate around coordinates instead of on a fixed grid.
    cupycorr.spatial_correlation_sample : The same for arrays.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.torch import spatial_correlation_sample
    >>> x1 = torch.randn(1, 64, 16, 16, requires_grad=True)
    >>> x2 = torch.roll(x1.detach(), (2, -1), dims=(2, 3))  # everything moved down 2 and left 1
    >>> scores = spatial_correlation_sample(x1, x2, patch_size=7)
    >>> scores.shape
    torch.Size([1, 7, 7, 16, 16])
    >>> divmod(scores[0, :, :, 8, 8].argmax().item(), 7)  # dy + 3, dx + 3
    (5, 2)
    >>> scores.sum().backward()
    >>> x1.grad.shape
    torch.Size([1, 64, 16, 16])
    """
    input1, input2 = cast(dense("input1", input1), dense("input2", input2))
    given = (kernel_size, patch_size, stride, padding, dilation, dilation_patch)
    out: torch.Tensor = correlate(input1, input2, *_arguments(given, patch_offset, groups, scale, dtype, precision, variant))
    return out


class SpatialCorrelationSampler(torch.nn.Module):
    """`spatial_correlation_sample` as a module without parameters, with the same arguments in the same order.

    Parameters
    ----------
    kernel_size, patch_size, stride, padding, dilation, dilation_patch, patch_offset : int or (int, int), optional
        As for `cupycorr.torch.spatial_correlation_sample`.
    groups : int, default 1
        As for `cupycorr.torch.spatial_correlation_sample`.
    scale : float, default 1.0
        As for `cupycorr.torch.spatial_correlation_sample`.
    dtype : torch.dtype, optional
        As for `cupycorr.torch.spatial_correlation_sample`.
    precision : {"highest", "high", "medium"}, optional
        As for `cupycorr.torch.spatial_correlation_sample`.
    variant : str, default "auto"
        As for `cupycorr.torch.spatial_correlation_sample`.

    See Also
    --------
    cupycorr.torch.spatial_correlation_sample : The same as a function.
    cupycorr.compat.install : Provide the import names of other packages.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.torch import SpatialCorrelationSampler
    >>> sampler = SpatialCorrelationSampler(1, 9, 1, 0, 1)
    >>> sampler
    SpatialCorrelationSampler(kernel_size=1, patch_size=9, stride=1, padding=0, dilation=1, dilation_patch=1)
    >>> sampler(torch.zeros(2, 16, 24, 32), torch.zeros(2, 16, 24, 32)).shape
    torch.Size([2, 9, 9, 24, 32])
    """

    # Modules that were saved with the C++ extension's class do not have these attributes.
    patch_offset = None
    groups = 1
    scale = 1.0
    dtype = None
    precision = None
    variant = "auto"

    def __init__(
        self,
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
        dtype: torch.dtype | None = None,
        precision: str | None = None,
        variant: str = "auto",
    ) -> None:
        super().__init__()
        scale = number(scale)
        given = (kernel_size, patch_size, stride, padding, dilation, dilation_patch)
        _arguments(given, patch_offset, groups, scale, dtype, precision, variant)
        self.kernel_size, self.patch_size, self.stride, self.padding, self.dilation, self.dilation_patch = given
        self.patch_offset, self.groups, self.scale = patch_offset, groups, scale
        self.dtype, self.precision, self.variant = dtype, precision, variant

    def forward(self, input1: torch.Tensor, input2: torch.Tensor) -> torch.Tensor:
        """Return the correlation of two tensors, as `spatial_correlation_sample` does.

        Parameters
        ----------
        input1, input2 : Tensor of shape (B, C, H, W)
            As for `cupycorr.torch.spatial_correlation_sample`.

        Returns
        -------
        Tensor of shape (B, PH, PW, oH, oW), with several groups (B, G, PH, PW, oH, oW)
            The same as that of `cupycorr.torch.spatial_correlation_sample`.
        """
        return spatial_correlation_sample(
            input1,
            input2,
            self.kernel_size,
            self.patch_size,
            self.stride,
            self.padding,
            self.dilation,
            self.dilation_patch,
            patch_offset=self.patch_offset,
            groups=self.groups,
            scale=self.scale,
            dtype=self.dtype,
            precision=self.precision,
            variant=self.variant,
        )

    def extra_repr(self) -> str:
        """Return the six sizes, and those other arguments that do not have their default values."""
        defaults = Arguments._field_defaults
        told = [name for number, name in enumerate(defaults) if number < 6 or getattr(self, name) != defaults[name]]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in told)


_SCALE = Arguments._fields.index("scale")


def _arguments(
    given: tuple[Any, ...], patch_offset: Any, groups: Any, scale: Any, dtype: Any, precision: Any, variant: Any
) -> tuple[Any, ...]:
    """Check and normalise the operator's arguments other than tensors."""
    scale = number(scale)
    if torch.compiler.is_compiling():
        return with_traced_scale(
            lambda value: _normal(given, patch_offset, groups, value, dtype, precision, variant), scale, _SCALE
        )
    arguments = given, patch_offset, groups, scale, dtype, precision, variant
    types = key_of((*given, patch_offset, groups, scale, precision, variant), dtype)
    return _normal(*arguments) if types is None else _normal_once(types, *arguments)


def _normal(
    given: tuple[Any, ...], patch_offset: Any, groups: Any, scale: Any, dtype: Any, precision: Any, variant: Any
) -> tuple[Any, ...]:
    """Return the fields of `Arguments` as a plain tuple, which every version of torch can compile."""
    normal = parameters(*given, patch_offset=patch_offset, groups=groups, scale=scale)
    check_dtype_and_precision(dtype, precision)
    OPERATOR.named(variant)
    pairs = normal.kernel_size, normal.patch_size, normal.stride, normal.padding, normal.dilation, normal.dilation_patch
    return (*pairs, normal.patch_offset, normal.groups, normal.scale, dtype, precision, variant)


@lru_cache(1024)
def _normal_once(types: tuple[Any, ...], *arguments: Any) -> tuple[Any, ...]:
    return shortest(Arguments(*_normal(*arguments)))
