"""The maps of a block of lookups, the lookups in them, and when their values are at hand."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from math import prod
from typing import Any, Literal

import torch

from .._arguments import Pair
from .._cpu import workers
from .._dispatch import CPU, FORWARD, Request, choose
from .._lookup.problem import DY_FIRST, Operands, Problem, parameters, problem
from .._lookup.variants import OPERATOR
from . import _tensors
from ._lookup_function import correlation_lookup
from ._transforms import Internals

_INTERNALS = Internals.found()
_is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]
# The number of active modes that see every operator of torch, such as that of make_fx; not public.
_count_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)

UNIT = (1, 1)


class Maps:
    """Two maps as they are stored, and the numbers of their lookups.

    Attributes
    ----------
    fmap1, pyramid
        The map (B, C, H, W) whose pixels are compared, and the levels (B, C, H_l, W_l) with which they are compared.
    patch_size, level_step
        The parameters of `correlation_lookup`, (vertical, horizontal) pairs.
    has_rows
        False if every pixel looks into its own row.
    order, scale, dtype
        The order of the patch axes, the factor of the sums, and the dtype of results, which is that of the sums.
    """

    def __init__(
        self,
        fmap1: torch.Tensor,
        pyramid: tuple[torch.Tensor, ...],
        patch_size: Pair,
        level_step: Pair,
        *,
        has_rows: bool,
        order: Literal["dy", "dx"],
        scale: float,
        dtype: torch.dtype,
    ) -> None:
        self.fmap1, self.pyramid, self.patch_size, self.level_step = fmap1, pyramid, patch_size, level_step
        self.has_rows, self.order, self.scale, self.dtype = has_rows, order, scale, dtype

    def lookup(self, coords: torch.Tensor, step: Pair = UNIT) -> torch.Tensor:
        """Return the windows around coordinates at all levels, with displacements ``step`` pixels apart, (B, L, PH, PW, H, W).

        The axes are PW, PH for the order "dx".
        """
        return correlation_lookup(
            self.fmap1,
            self.pyramid,
            coords,
            self.patch_size,
            dilation_patch=step,
            level_step=self.level_step,
            order=self.order,
            scale=self.scale,
            dtype=self.dtype,
        )

    def lookup_apart(self, coords: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Return the windows whose displacements are ``step`` (B, 1, H, W) pixels apart: each one is a lookup of one pixel."""
        down, across = (torch.arange(size, dtype=coords.dtype, device=coords.device) - size // 2 for size in self.patch_size)
        dy, dx = torch.meshgrid(down, across, indexing="ij")
        in_order = torch.stack((dx, dy) if self.order == DY_FIRST else (dx.mT, dy.mT), -1)
        apart = in_order.reshape(1, -1, 2, 1, 1) * step.to(coords.dtype)[:, None]
        numbers: dict[str, Any] = dict(scale=self.scale, dtype=self.dtype)
        planes = [
            correlation_lookup(self.fmap1, fmap2, coords[:, None] * 2.0**-level + apart, 1, **numbers)
            for level, fmap2 in enumerate(self.pyramid)
        ]
        return torch.cat(planes, 1).flatten(1, 3)

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All maps."""
        return self.fmap1, *self.pyramid

    @property
    def nbytes(self) -> int:
        """The bytes of the maps."""
        return sum(each.numel() * each.element_size() for each in self.tensors)

    @property
    def dots_in_windows(self) -> int:
        """The number of dot products in the windows of a pixel of ``fmap1``, of all levels."""
        height, width = self.patch_size
        return len(self.pyramid) * (height + self.has_rows) * (width + 1)

    @property
    def dots_in_volumes(self) -> int:
        """The number of dot products of a pixel of ``fmap1`` with all the pixels that its windows can hold, of all levels."""
        return sum(prod(level.shape[2:]) if self.has_rows else level.shape[3] for level in self.pyramid)

    def problem(self) -> Problem:
        """Return the problem of a lookup."""
        batch, _, height, width = self.fmap1.shape
        coords = batch, 2 if self.has_rows else 1, height, width
        shapes = tuple(tuple(level.shape) for level in self.pyramid)
        operands = Operands(tuple(self.fmap1.shape), shapes, True, coords, _tensors.dtype_name(self.fmap1))
        return problem(parameters(self.patch_size, level_step=self.level_step, order=self.order, scale=self.scale), operands)

    def algorithm_on_cpu(self, pass_name: str) -> str:
        """Return the name of the algorithm that the dispatcher chooses for the output, or for the gradients of the maps."""
        asked, dtype = self.problem(), _tensors.dtype_name(self.fmap1)
        needs = asked.needs_of_inputs((True, True, pass_name == FORWARD))
        algorithm: str = choose(OPERATOR, Request(pass_name, asked, dtype, dtype, (), needs), CPU).plan.algorithm
        return algorithm


def why_no_values(tensors: tuple[torch.Tensor, ...]) -> str | None:
    """Return why the values of tensors are not at hand, or None."""
    if torch.compiler.is_compiling() or _is_tracing() or _count_modes():
        return "a graph is made, which keeps nothing from one lookup to the next"
    if _INTERNALS is None or _INTERNALS.transformed():
        return "a transform of torch.func or forward mode is active"
    if any(type(each) not in (torch.Tensor, torch.nn.Parameter) for each in tensors):
        return "the tensors are of a subclass"
    return None


def needs_gradient(tensors: tuple[torch.Tensor, ...]) -> bool:
    """Return whether operations with these tensors are recorded for their gradients."""
    return torch.is_grad_enabled() and any(each.requires_grad for each in tensors)


def threads() -> AbstractContextManager[None]:
    """Return a context in which kernels run in as many threads as torch's do."""
    return workers.prefer_threads(torch.get_num_threads())
