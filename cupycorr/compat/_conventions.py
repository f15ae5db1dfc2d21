"""Code that the adapters share: volumes of means, sizes for both axes, a module around a function, calls of compiled extensions.

Every adapter ends in one call of `cupycorr.torch.spatial_correlation_sample`. This module translates the parameters of other
packages to its parameters, and selects the output positions that they keep.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any, ClassVar

import torch

from .._arguments import Pair, Shape, pair
from ..torch import spatial_correlation_sample

Sizes = int | Pair  # one int for both axes, or a pair (vertical, horizontal)


def mean_volume(
    input1: torch.Tensor,
    input2: torch.Tensor,
    kernel_size: Any = (1, 1),
    *sizes: Any,
    window: Shape | None = None,
    **steps: Any,
) -> torch.Tensor:
    """Return the mean of the products in each window, (B, PH*PW, oH, oW), dy-major.

    The arguments after the inputs are the operator's. The mean is taken over the area of ``window``, by default ``kernel_size``.
    """
    products = channels(input1) * math.prod(kernel_size if window is None else window)
    return spatial_correlation_sample(input1, input2, kernel_size, *sizes, scale=1 / max(products, 1), **steps).flatten(1, 2)


def channels(image: Any) -> int:
    """Return C of a (B, C, H, W) tensor, and 1 for anything else, so that the operator can refuse it."""
    return image.shape[1] if is_image(image) else 1


def is_image(value: Any) -> bool:
    """Return whether a value is a tensor of four dimensions."""
    return isinstance(value, torch.Tensor) and value.ndim == 4


def patch_size(max_displacement: Any, steps: Pair = (1, 1)) -> Pair:
    """Return the number of displacements along each axis, in steps, of which none is longer than ``max_displacement`` pixels."""
    vertical, horizontal = (
        2 * (longest // step) + 1 for longest, step in zip(pair("max_displacement", max_displacement, 0), steps, strict=True)
    )
    return vertical, horizontal


def first_positions(volume: torch.Tensor, image: torch.Tensor, padding: Shape, span: Shape, stride: Shape) -> torch.Tensor:
    """Return the first ``(size + 2 padding - span - 1) // stride + 1`` output positions along each axis, contiguous.

    It is for packages that leave out windows which the operator would include.

    Raises
    ------
    ValueError
        There is no such position.
    """
    height, width = (
        (size + 2 * a - reach - 1) // s + 1 for size, a, reach, s in zip(image.shape[-2:], padding, span, stride, strict=True)
    )
    if min(height, width) < 1:
        raise ValueError(f"the output would have height {height} and width {width}, got input1.shape={tuple(image.shape)}")
    if not torch.compiler.is_compiling():
        return volume[..., :height, :width].contiguous()
    # A slice would compare its end with the volume's size, a condition on the sizes that torch.export cannot prove.
    for axis, count in ((-2, height), (-1, width)):
        volume = volume.index_select(axis, torch.arange(count, device=volume.device))
    return volume


# Copies of a package's Python code call its compiled extension inside their own autograd functions. These are called without
# autocast, because their backward would not apply it.


def compiled_forward(
    function: Callable[..., torch.Tensor], input1: torch.Tensor, input2: torch.Tensor, *numbers: Any
) -> torch.Tensor:
    """Return the result of an adapter's function of two tensors, without recording a graph."""
    with torch.no_grad(), _without_autocast(input1):
        return function(input1, input2, *numbers)


def compiled_backward(
    function: Callable[..., torch.Tensor], input1: torch.Tensor, input2: torch.Tensor, grad_output: torch.Tensor, *numbers: Any
) -> tuple[torch.Tensor, ...]:
    """Return both gradients of an adapter's function of two tensors."""
    leaves = [_leaf(image) for image in (input1, input2)]
    with torch.enable_grad(), _without_autocast(input1):
        return torch.autograd.grad(function(*leaves, *numbers), leaves, grad_output)


def _leaf(image: Any) -> Any:
    """Return the same values as a leaf of a new graph; anything else is returned as it is, for the operator to refuse."""
    return image.detach().requires_grad_(image.is_floating_point()) if isinstance(image, torch.Tensor) else image


def _without_autocast(image: Any) -> AbstractContextManager[Any]:
    kind = image.device.type if isinstance(image, torch.Tensor) else ""
    return torch.autocast(kind, enabled=False) if kind in ("cpu", "cuda") else nullcontext()


class Layer(torch.nn.Module):
    """The base of the adapters' modules, which call a function with two tensors and the arguments of the constructor.

    These arguments are kept as attributes, named as the parameters of the function.
    """

    function: ClassVar[Callable[..., torch.Tensor]]
    names: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls) -> None:
        cls.names = tuple(signature(cls.function).parameters)[2:]

    def __init__(self, *arguments: Any) -> None:
        super().__init__()
        for name, value in zip(self.names, arguments, strict=True):
            setattr(self, name, value)

    def forward(self, input1: torch.Tensor, input2: torch.Tensor) -> torch.Tensor:
        """Return the correlation of two tensors (B, C, H, W)."""
        return self.function(input1, input2, *(getattr(self, name) for name in self.names))

    def extra_repr(self) -> str:
        """Return the arguments of the constructor."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.names)
