"""The contestants of the lookup's benchmark: our blocks, and what people use instead.

A contestant makes a block of a pair of maps; called with coordinates (B, 2, H, W), a block returns RAFT's scores
(B, L (2r+1)^2, H, W). The rival on demand is written here from its formula. The others are imported where they are installed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from typing import Any

import torch
from torch.nn import functional

import cupycorr
from cupycorr._arrays import array_module
from cupycorr.torch import CorrBlock

from .lookup_cases import LEVELS, RADIUS, Size

Block = Callable[[torch.Tensor], Any]
Make = Callable[[torch.Tensor, torch.Tensor], Block]

TAPS = (2 * RADIUS + 1) ** 2
ITEMSIZE = 4


def _nothing(size: Size, channels: int) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class Contestant:
    """A way to look windows up.

    Attributes
    ----------
    name
        Its name.
    ours
        True for cupycorr.
    make
        Returns the block of two maps.
    why_not
        Returns the reason why it cannot run on a kind of device, or None.
    differentiable
        True if gradients of the maps can be asked for.
    bytes
        Returns the most bytes that one lookup holds, by formula; runs that need more than there is are left out.
    """

    name: str
    ours: bool
    make: Make
    why_not: Callable[[str], str | None] = lambda device: None
    differentiable: bool = True
    bytes: Callable[[Size, int], int] = _nothing


# Ours -------------------------------------------------------------------------------------------------------------------------


def _block(keep: str) -> Make:
    return partial(CorrBlock, num_levels=LEVELS, radius=RADIUS, keep=keep)


def _only_on_cpu(device: str) -> str | None:
    return None if device == "cpu" else "windows are kept on the CPU only"


class _ArrayFunction:
    """`cupycorr.correlation_lookup` of arrays (B, C, H, W), which are packed at every call."""

    def __init__(self, fmap1: torch.Tensor, fmap2: torch.Tensor) -> None:
        self._first, self._scale = self._array(fmap1), 1 / math.sqrt(fmap1.shape[1])
        self._levels = [self._array(level) for level in pooled(fmap2)]

    def __call__(self, coords: torch.Tensor) -> Any:
        options: dict[str, Any] = {"order": "dx", "scale": self._scale}
        return cupycorr.correlation_lookup(self._first, self._levels, self._array(coords), 2 * RADIUS + 1, **options)

    @staticmethod
    def _array(tensor: torch.Tensor) -> Any:
        if tensor.device.type == "cpu":
            return tensor.numpy()
        return import_module("cupy").from_dlpack(tensor)


def scores(found: Any) -> torch.Tensor:
    """Return the result of a block as a tensor of RAFT's shape."""
    tensor = found if isinstance(found, torch.Tensor) else torch.from_dlpack(array_module(found).ascontiguousarray(found))
    return tensor if tensor.ndim == 4 else tensor.reshape(tensor.shape[0], -1, *tensor.shape[-2:])


# Rivals -----------------------------------------------------------------------------------------------------------------------


def pooled(fmap: torch.Tensor) -> list[torch.Tensor]:
    """Return the pyramid of a map."""
    levels = [fmap]
    for _ in range(LEVELS - 1):
        levels.append(functional.avg_pool2d(levels[-1], 2))
    return levels


class OnDemand:
    """The lookup on demand in torch's operations: features are interpolated at every tap, multiplied and added.

    This is what RAFT's users run where its CUDA extension is not built.
    """

    def __init__(self, fmap1: torch.Tensor, fmap2: torch.Tensor) -> None:
        self._first, self._levels = fmap1, pooled(fmap2)
        span = torch.arange(-RADIUS, RADIUS + 1, dtype=fmap1.dtype, device=fmap1.device)
        self._dx, self._dy = (each.flatten() for each in torch.meshgrid(span, span, indexing="ij"))

    def __call__(self, coords: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._level(coords / 2**number, level) for number, level in enumerate(self._levels)], 1)

    def _level(self, coords: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = self._first.shape
        x, y = (coords[:, axis, None] for axis in (0, 1))
        taps = [x + self._dx[:, None, None], y + self._dy[:, None, None]]  # (B, taps, H, W) each
        sizes = level.shape[3], level.shape[2]
        scaled = [2 * tap / max(size - 1, 1) - 1 for tap, size in zip(taps, sizes, strict=True)]
        place = torch.stack(scaled, -1).view(batch, -1, width, 2)
        sampled = functional.grid_sample(level, place, align_corners=True).view(batch, channels, -1, height, width)
        return (self._first[:, :, None] * sampled).sum(1) / math.sqrt(channels)


def _on_demand_bytes(size: Size, channels: int) -> int:
    return 2 * size.queries * channels * TAPS * ITEMSIZE  # the features at the taps, and their products


def _volume_bytes(size: Size, channels: int) -> int:
    return 2 * size.queries * size.shape[0] * size.shape[1] * ITEMSIZE  # the volume and its scaled copy


@lru_cache
def torchvision_raft() -> Any:
    """Return torchvision's module of RAFT.

    Raises
    ------
    ImportError
        torchvision is not installed.
    """
    try:
        import_module("torchvision")
    except RuntimeError:
        # Its wheels are built for a torch with CUDA. Beside another one, its library is missing, and with it the schemas of two
        # operators that it registers shapes for, which RAFT does not call.
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            _SCHEMAS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return import_module("torchvision.models.optical_flow.raft")


_SCHEMAS = torch.library.Library("torchvision", "FRAGMENT")  # schemas are registered as long as this exists


class _Torchvision:
    """torchvision's lookup in the volume of all pairs, which making the block computes."""

    def __init__(self, fmap1: torch.Tensor, fmap2: torch.Tensor) -> None:
        self._block = torchvision_raft().CorrBlock(num_levels=LEVELS, radius=RADIUS)
        self._block.build_pyramid(fmap1, fmap2)

    def __call__(self, coords: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._block.index_pyramid(coords)
        return found


def _ptlflow(fmap1: torch.Tensor, fmap2: torch.Tensor) -> Block:
    """Return ptlflow's block on demand, which runs without an extension."""
    block: Block = import_module("ptlflow.models.raft.corr").AlternateCorrBlock(fmap1, fmap2, LEVELS, RADIUS)
    return block


def _localcorr(fmap1: torch.Tensor, fmap2: torch.Tensor) -> Block:
    block: Block = import_module("localcorr").get_localcorr_block(fmap1, fmap2, LEVELS, RADIUS)
    return block


class _CudaExtension:
    """RAFT's own CUDA extension, with the two maps channels-last."""

    def __init__(self, fmap1: torch.Tensor, fmap2: torch.Tensor) -> None:
        self._first, self._scale = fmap1.permute(0, 2, 3, 1).contiguous(), math.sqrt(fmap1.shape[1])
        self._levels = [level.permute(0, 2, 3, 1).contiguous() for level in pooled(fmap2)]

    def __call__(self, coords: torch.Tensor) -> torch.Tensor:
        forward, place = import_module("alt_cuda_corr").forward, coords.permute(0, 2, 3, 1)[:, None]
        found = [
            forward(self._first, level, (place / 2**number).contiguous(), RADIUS)[0][:, 0]
            for number, level in enumerate(self._levels)
        ]
        return torch.cat(found, 1) / self._scale


def _importable(module: str, *devices: str) -> Callable[[str], str | None]:
    def why_not(device: str) -> str | None:
        if device not in devices:
            return f"{module} does not run on this kind of device"
        try:
            torchvision_raft() if module == "torchvision" else import_module(module)
        except Exception as error:  # an extension that does not fit this torch may raise anything
            return f"{module} cannot be imported: {type(error).__name__}"
        return None

    return why_not


CONTESTANTS = (
    Contestant("auto", True, _block("auto")),
    Contestant("maps", True, _block("maps")),
    Contestant("windows", True, _block("windows"), _only_on_cpu, differentiable=False),
    Contestant("volume", True, _block("volume"), bytes=_volume_bytes),
    Contestant("array function", True, _ArrayFunction, differentiable=False),
    Contestant("torchvision", False, _Torchvision, _importable("torchvision", "cpu", "cuda"), bytes=_volume_bytes),
    Contestant("on demand", False, OnDemand, bytes=_on_demand_bytes),
    Contestant("ptlflow", False, _ptlflow, _importable("ptlflow.models.raft.corr", "cpu", "cuda")),
    Contestant("localcorr", False, _localcorr, _importable("localcorr", "cuda")),
    Contestant("alt_cuda_corr", False, _CudaExtension, _importable("alt_cuda_corr", "cuda"), differentiable=False),
)
