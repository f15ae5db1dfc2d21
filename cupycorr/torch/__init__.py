"""The public torch interface: spatial correlation of tensors, as a function and as a module.

It is registered as an operator of torch, which is differentiable to any order, can be compiled and exported, and runs on the
tensor's device and torch's current stream. Importing `cupycorr` does not import this package, and only this package needs torch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

try:
    import torch
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('cupycorr.torch needs torch: pip install "cupycorr[torch]"', name=error.name) from error

from .._arguments import check_precision
from .._arrays import dense_tensor, plain_number
from .._correlation import api
from .._correlation.problem import parameters
from .._correlation.variants import OPERATOR
from .._dtypes import no_element_type
from ._correlation import Arguments, correlate
from ._tensors import ELEMENTS

__all__ = ["SpatialCorrelationSampler", "spatial_correlation_sample"]


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
    input1 : Tensor, shape (B, C, H, W)
        float16, bfloat16, float32 or float64, on the CPU or on a CUDA device. Any strides are accepted without a copy.
    input2 : Tensor, shape (B, C, H, W), or (B, C, H2, W2) if ``patch_offset`` is passed
        Same device and dtype as ``input1``.
    kernel_size, patch_size, stride, padding, dilation, dilation_patch, patch_offset, scale, variant
        As in `cupycorr.spatial_correlation_sample`.
    dtype : torch.dtype, optional
        Dtype of the output, by default that of the inputs. Sums are rounded to it once, also from float16 inputs to float32.
    precision : {"highest", "high", "medium"}, optional
        Precision of the products of float32 numbers, as in `cupycorr.spatial_correlation_sample`. None is torch's setting for
        matrix products on a GPU at the time when the operator runs, separately for forward and backward.

    Returns
    -------
    Tensor, shape (B, PH, PW, oH, oW)
        Contiguous, on the device of the inputs.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `cupycorr.spatial_correlation_sample`. A ``scale`` that needs a gradient is a TypeError: multiply the result instead.

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
    input1, input2 = _cast(_tensor("input1", input1), _tensor("input2", input2))
    given = (kernel_size, patch_size, stride, padding, dilation, dilation_patch)
    out: torch.Tensor = correlate(input1, input2, *_arguments(given, patch_offset, scale, dtype, precision, variant))
    return out


class SpatialCorrelationSampler(torch.nn.Module):
    """`spatial_correlation_sample` as a module without parameters, with the same arguments in the same order.

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
        scale: float = 1.0,
        dtype: torch.dtype | None = None,
        precision: str | None = None,
        variant: str = "auto",
    ) -> None:
        super().__init__()
        scale = plain_number("scale", scale, _REMEDY)
        given = (kernel_size, patch_size, stride, padding, dilation, dilation_patch)
        _arguments(given, patch_offset, scale, dtype, precision, variant)
        self.kernel_size, self.patch_size, self.stride, self.padding, self.dilation, self.dilation_patch = given
        self.patch_offset, self.scale, self.dtype, self.precision, self.variant = patch_offset, scale, dtype, precision, variant

    def forward(self, input1: torch.Tensor, input2: torch.Tensor) -> torch.Tensor:
        """Return the correlation of two tensors (B, C, H, W), (B, PH, PW, oH, oW)."""
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


def _tensor(name: str, value: torch.Tensor) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        remedy = (
            ": use torch.export, or torch.fx.wrap a function that calls the operator" if isinstance(value, torch.fx.Proxy) else ""
        )
        raise TypeError(f"{name} must be a torch tensor, got {type(value).__module__}.{type(value).__qualname__}{remedy}")
    return value if value.layout is torch.strided and not (value.is_nested or value.is_quantized) else dense_tensor(name, value)


_AUTOCAST_DEVICES = ("cpu", "cuda")


def _cast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the tensors in autocast's dtype if it is on. It does not apply to float64 or to integers."""
    kind = tensors[0].device.type
    if kind not in _AUTOCAST_DEVICES or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors)


_REMEDY = "multiply the result instead"
_TRACED = (int, float, torch.SymInt, torch.SymFloat)
_SCALE = Arguments._fields.index("scale")


def _arguments(
    given: tuple[Any, ...], patch_offset: Any, scale: Any, dtype: Any, precision: Any, variant: Any
) -> tuple[Any, ...]:
    """Check and normalise the operator's arguments other than tensors."""
    # A scale computed from sizes under torch.jit.trace is a tensor, too, and becomes a constant of the trace.
    if isinstance(scale, torch.Tensor):
        scale = plain_number("scale", scale, _REMEDY)
    arguments = given, patch_offset, scale, dtype, precision, variant
    if torch.compiler.is_compiling():
        # A traced number may be a symbol, which cannot be checked for being finite. The operator checks its value when it runs.
        traced = type(scale) in _TRACED
        normal = _normal(given, patch_offset, 1.0 if traced else scale, *arguments[3:])
        before, after = normal[:_SCALE], normal[_SCALE + 1 :]
        return (*before, torch.sym_float(scale) if traced else normal[_SCALE], *after)  # type: ignore[no-untyped-call]
    words = all(value is None or type(value) in (str, torch.dtype) for value in arguments[3:])
    return _normal_once(*arguments) if words and api.all_plain(given, patch_offset, scale) else _normal(*arguments)


def _normal(given: tuple[Any, ...], patch_offset: Any, scale: Any, dtype: Any, precision: Any, variant: Any) -> tuple[Any, ...]:
    """Return the fields of `Arguments` as a plain tuple, which every version of torch can compile."""
    normal = parameters(*given, patch_offset=patch_offset, scale=scale)
    if precision is not None:
        check_precision(precision)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in ELEMENTS):
        raise no_element_type(dtype)
    OPERATOR.named(variant)
    pairs = normal.kernel_size, normal.patch_size, normal.stride, normal.padding, normal.dilation, normal.dilation_patch
    return (*pairs, normal.patch_offset, normal.scale, dtype, precision, variant)


@lru_cache(1024)
def _normal_once(*arguments: Any) -> tuple[Any, ...]:
    return Arguments(*_normal(*arguments)).shortest()
