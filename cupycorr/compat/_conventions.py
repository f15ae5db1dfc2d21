"""Code that the adapters share: volumes of means, sizes for both axes, a module around a function, calls of compiled extensions.

Every adapter ends in one call of an operator of `cupycorr.torch`: `spatial_correlation_sample` for a fixed grid,
`correlation_lookup` for windows around coordinates, `volume_lookup` for windows of a given volume. This module translates the
parameters of other packages to those of the operators, and selects the output positions that they keep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any, ClassVar

import torch

from .._arguments import Pair, Shape, at_least, pair, shown
from ..torch import _lookup, _volume_lookup, correlation_lookup, spatial_correlation_sample
from ..torch._arguments import dense, without_autocast

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


def check_multiplies(name: str, value: Any) -> None:
    """Refuse every comparison of two windows but the sum of their products.

    Raises
    ------
    NotImplementedError
        ``value`` is not 1 or True.
    """
    if not isinstance(value, int) or value != 1:
        got = f"got {name}={shown(value)}"
        raise NotImplementedError(f"{name} must be 1 or True: sums of absolute differences are not available, {got}")


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


# Lookups around coordinates -----------------------------------------------------------------------------------------------------


def window(radius: Any) -> int:
    """Return the number of displacements along each axis, 2 radius + 1.

    Raises
    ------
    TypeError, ValueError
        ``radius`` is not an int of at least 0.
    """
    return 2 * at_least(0, "radius", radius) + 1


def check_shapes(**tensors: tuple[Any, str]) -> None:
    """Check that every argument is a tensor, and that axes of the same letter have the same size.

    Each keyword is an argument's name, with its value and its axes, such as ``"B H W 2"``: letters, or numbers for fixed sizes.
    The operators check the same, but their messages have the operators' names and order of axes.

    Raises
    ------
    TypeError
        An argument is not a dense tensor.
    ValueError
        An argument has another number of axes, or an axis has another size than the one of that letter in an argument before.
    """
    sizes: dict[str, int] = {}
    for name, (value, axes) in tensors.items():
        dense(name, value)
        letters = axes.split()
        wanted = [int(letter) if letter.isdigit() else sizes.get(letter, letter) for letter in letters]
        fits = value.ndim == len(wanted) and all(
            isinstance(size, str) or size == got for size, got in zip(wanted, value.shape, strict=True)
        )
        if not fits:
            known = "" if wanted == letters else f" = {_shape(wanted)}"
            raise ValueError(f"{name} must have the shape {_shape(letters)}{known}, got {name}.shape={tuple(value.shape)}")
        sizes.update(zip(letters, value.shape, strict=True))


def _shape(axes: Sequence[int | str]) -> str:
    """Return axes as Python would show a tuple of sizes."""
    return f"({', '.join(map(str, axes))}{',' if len(axes) == 1 else ''})"


def lookup_gradients(
    cotangent: torch.Tensor,
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    patch: int,
    needs: tuple[bool, bool, bool],
    indices: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None),
    scale: float = 1.0,
) -> list[torch.Tensor]:
    """Return the gradients that are needed of a dx-major lookup of input1, input2, one map, and coords.

    Unlike autograd, it does not compute the output.
    """
    input1, input2, coords = inputs
    settings = _lookup.Settings((patch, patch), order="dx", scale=scale)
    cotangent = cotangent.to(input1.dtype)
    found = _lookup.lookup_vjp(cotangent, input1, [input2], coords, list(needs), *indices, False, *settings)
    return [gradient for gradient, needed in zip(found, needs, strict=True) if needed]


def volume_gradient(cotangent: torch.Tensor, volume: torch.Tensor, coords: torch.Tensor, patch: int) -> torch.Tensor:
    """Return the gradient of the volume of a dx-major lookup in it, without computing the output."""
    settings = _volume_lookup.Settings((patch, patch), order="dx")
    gradient: torch.Tensor
    gradient, _ = _volume_lookup.lookup_vjp(cotangent.to(volume.dtype), volume, coords, [True, False], *settings)
    return gradient


_MAPS_OF_EDGES = {"fmap1": "B N C H W", "fmap2": "B N2 C H2 W2", "coords": "B E 2 H W"}
_INDICES_OF_EDGES = {"ii": "E", "jj": "E"}


def edge_windows(
    fmap1: torch.Tensor,
    fmap2: torch.Tensor,
    coords: torch.Tensor,
    ii: torch.Tensor,
    jj: torch.Tensor,
    radius: int,
    scale: float = 1.0,
) -> torch.Tensor:
    """Return the windows of a list of edges, (B, E, PW, PH, H, W), dx-major.

    The maps are (B, N, C, H, W) and (B, N2, C, H2, W2), coords (B, E, 2, H, W), the indices (E,). Edge e compares
    ``fmap1[:, ii[e]]`` with ``fmap2[:, jj[e]]``. An index counts the maps of its own image of the batch, so that each image is a
    lookup of its own.
    """
    patch = window(radius)
    images = _images((fmap1, fmap2, coords, ii, jj), {**_MAPS_OF_EDGES, **_INDICES_OF_EDGES})
    windows = [
        correlation_lookup(first, second, centres, patch, index1=ii, index2=jj, order="dx", scale=scale)
        for first, second, centres in images
    ]
    return _batch(windows)


def edge_gradients(
    fmap1: torch.Tensor,
    fmap2: torch.Tensor,
    coords: torch.Tensor,
    corr_grad: torch.Tensor,
    ii: torch.Tensor,
    jj: torch.Tensor,
    radius: int,
    scale: float = 1.0,
) -> list[torch.Tensor]:
    """Return the gradients of both maps of `edge_windows`, without computing the windows."""
    patch = window(radius)
    axes = {**_MAPS_OF_EDGES, "corr_grad": f"B E {patch} {patch} H W", **_INDICES_OF_EDGES}
    images = _images((fmap1, fmap2, coords, corr_grad, ii, jj), axes)
    gradients = [lookup_gradients(image[3], image[:3], patch, (True, True, False), (ii, jj), scale) for image in images]
    return [_batch(each) for each in zip(*gradients, strict=True)]


def _images(tensors: Sequence[torch.Tensor], axes: dict[str, str]) -> list[tuple[Any, ...]]:
    """Return those tensors of each image of the batch that have a batch axis, after checking all shapes."""
    check_shapes(**{name: (value, axes[name]) for name, value in zip(axes, tensors, strict=True)})
    if not len(tensors[0]):
        raise ValueError(f"fmap1 must have a batch size of at least 1, got fmap1.shape={tuple(tensors[0].shape)}")
    return list(zip(*(tensor.unbind() for tensor, name in zip(tensors, axes, strict=True) if axes[name][0] == "B"), strict=True))


def _batch(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return images stacked to a batch; one image, the usual number, is not copied."""
    return images[0].unsqueeze(0) if len(images) == 1 else torch.stack(tuple(images))


# Compiled extensions ------------------------------------------------------------------------------------------------------------
#
# Copies of a package's Python code call its compiled extension inside their own autograd functions. These are called without
# autocast, because their backward would not apply it. Extensions of the fixed grid return tensors without a graph. Those of the
# lookup are also called by code without an autograd function, which the originals leave silently without gradients; here their
# results have a graph, unless torch records none, as inside an autograd function.


def compiled_forward(
    function: Callable[..., torch.Tensor], input1: torch.Tensor, input2: torch.Tensor, *numbers: Any
) -> torch.Tensor:
    """Return the result of an adapter's function of two tensors, without recording a graph."""
    with torch.no_grad(), without_autocast(input1):
        return function(input1, input2, *numbers)


def compiled_backward(
    function: Callable[..., torch.Tensor], input1: torch.Tensor, input2: torch.Tensor, grad_output: torch.Tensor, *numbers: Any
) -> tuple[torch.Tensor, ...]:
    """Return both gradients of an adapter's function of two tensors."""
    return gradients(lambda *images: function(*images, *numbers), (input1, input2), grad_output)


def gradients(
    function: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor], grad_output: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Return the gradients of a function of tensors, in their shapes and dtypes, without a graph of their own."""
    leaves = [_leaf(image) for image in inputs]
    with torch.enable_grad(), without_autocast(inputs[0]):
        return torch.autograd.grad(function(*leaves), leaves, grad_output)


def _leaf(image: Any) -> Any:
    """Return the same values as a leaf of a new graph; anything else is returned as it is, for the operator to refuse."""
    return image.detach().requires_grad_(image.is_floating_point()) if isinstance(image, torch.Tensor) else image


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
