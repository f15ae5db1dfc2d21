"""What several neighbours share: volumes of means, sizes for both axes, a module around a function, and a compiled half's calls.

Every adapter is one call of `cupycorr.torch.spatial_correlation_sample` in the end; what their parameters mean in its terms, and
which of its positions they keep, is said here once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any, ClassVar

import torch

from .._arguments import integer
from ..torch import spatial_correlation_sample

Sizes = int | tuple[int, int]  # one for both axes, or (vertical, horizontal)
Pair = tuple[int, int]  # (vertical, horizontal)


def mean_volume(
    input1: torch.Tensor, input2: torch.Tensor, kernel_size: Pair = (1, 1), *sizes: Any, window: Pair | None = None, **steps: Any
) -> torch.Tensor:
    """The operator with its patch axes flattened, divided by the number of products in a window; (B, PH*PW, oH, oW), dy-major.

    The arguments after the inputs are the operator's. ``window`` has the area that the mean is taken over where that is not
    the area of ``kernel_size``.
    """
    products = channels(input1) * math.prod(kernel_size if window is None else window)
    return spatial_correlation_sample(input1, input2, kernel_size, *sizes, scale=1 / max(products, 1), **steps).flatten(1, 2)


def channels(image: Any) -> int:
    """C of a (B, C, H, W) tensor; 1 for anything else, which the operator refuses in its own words."""
    return image.shape[1] if is_image(image) else 1


def is_image(value: Any) -> bool:
    """Whether it is a tensor of four dimensions."""
    return isinstance(value, torch.Tensor) and value.ndim == 4


def patch_size(max_displacement: Any, steps: Pair = (1, 1)) -> Pair:
    """Displacements tried along each axis, in steps, when none may be longer than ``max_displacement`` pixels."""
    vertical, horizontal = zip(pair("max_displacement", max_displacement, 0), steps, strict=True)
    return _number_tried(*vertical), _number_tried(*horizontal)


def _number_tried(longest: int, step: int) -> int:
    return 2 * (longest // step) + 1


def pair(name: str, value: Any, least: int) -> Pair:
    """An int for both axes, or a ``(vertical, horizontal)`` tuple or list, of ints of at least ``least``.

    The neighbours that know no pairs take an int only.

    Raises
    ------
    TypeError, ValueError
        It is neither, or one is below.
    """
    what = "an int or a (vertical, horizontal) pair of ints"
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name} must be {what}, got {name}={value!r}")
    vertical, horizontal = (integer(name, each, what, value) for each in values)
    if min(vertical, horizontal) < least:
        raise ValueError(f"{name} must be at least {least}, got {name}={value!r}")
    return vertical, horizontal


def first_positions(volume: torch.Tensor, image: torch.Tensor, padding: Any, span: Any, stride: Any) -> torch.Tensor:
    """The first ``(size + 2 padding - span - 1) // stride + 1`` positions along each axis; contiguous, the volume itself if all.

    For neighbours that stop before windows that the operator would still take. Each of the three is a pair.

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
    # A slice compares its end with the volume's size, and an exported graph of all sizes must hold only what torch can prove.
    for axis, count in ((-2, height), (-1, width)):
        volume = volume.index_select(axis, torch.arange(count, device=volume.device))
    return volume


# A neighbour's compiled half is called by copies of its Python half, inside autograd functions of theirs. It is without autocast,
# of which their backward would not know.


def compiled_forward(
    function: Callable[..., torch.Tensor], input1: torch.Tensor, input2: torch.Tensor, *numbers: Any
) -> torch.Tensor:
    """What a neighbour's function of two tensors returns, without a graph."""
    with torch.no_grad(), _without_autocast(input1):
        return function(input1, input2, *numbers)


def compiled_backward(
    function: Callable[..., torch.Tensor], input1: torch.Tensor, input2: torch.Tensor, grad_output: torch.Tensor, *numbers: Any
) -> tuple[torch.Tensor, ...]:
    """Both gradients of a neighbour's function of two tensors."""
    leaves = [_leaf(image) for image in (input1, input2)]
    with torch.enable_grad(), _without_autocast(input1):
        return torch.autograd.grad(function(*leaves, *numbers), leaves, grad_output)


def _leaf(image: Any) -> Any:
    """The same values to differentiate by; what cannot be differentiated by is left to the operator to refuse."""
    return image.detach().requires_grad_(image.is_floating_point()) if isinstance(image, torch.Tensor) else image


def _without_autocast(image: Any) -> AbstractContextManager:
    kind = image.device.type if isinstance(image, torch.Tensor) else ""
    return torch.autocast(kind, enabled=False) if kind in ("cpu", "cuda") else nullcontext()


class Layer(torch.nn.Module):
    """A neighbour's module: its function of two tensors and of the arguments of its constructor, which are its attributes."""

    function: ClassVar[Callable[..., torch.Tensor]]
    names: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls) -> None:
        cls.names = tuple(signature(cls.function).parameters)[2:]

    def __init__(self, *arguments: Any) -> None:
        super().__init__()
        for name, value in zip(self.names, arguments, strict=True):
            setattr(self, name, value)

    def forward(self, input1: torch.Tensor, input2: torch.Tensor) -> torch.Tensor:
        """The correlation of two tensors (B, C, H, W), as the module's function returns it."""
        return self.function(input1, input2, *(getattr(self, name) for name in self.names))

    def extra_repr(self) -> str:
        """The arguments of the constructor."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.names)
