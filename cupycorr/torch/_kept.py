"""The memory of a block of lookups from one lookup to the next: the dots of the last windows, or those of all pairs.

`Windows` and `Volumes` are made of `Maps`, keep dot products in addition, and look up the same. Each says by ``why_not`` when it
cannot, or had better not, be made.
"""

from __future__ import annotations

from typing import Any

import torch

from .._arguments import Pair
from .._dispatch import FORWARD
from .._lookup.cpu import kept_windows
from . import _tensors
from ._maps import UNIT, Maps, needs_gradient, threads, why_no_values
from ._volume_lookup_function import volume_lookup

# Volumes were measured to be faster than maps for 12 lookups with gradients, in one thread of a CPU, where each of their numbers
# replaces so many multiplications of a lookup; by whether pixels look into other rows than their own.
WORTH = {True: 32, False: 4}
LARGEST = 8  # times the numbers of the first map, which volumes do not exceed unless they are asked for


class Volumes:
    """The dot products of all pairs of pixels at each level, by matrix products."""

    def __init__(self, maps: Maps) -> None:
        self.maps = maps
        self.volumes = tuple(map(self._volume, maps.pyramid))

    @staticmethod
    def why_not(maps: Maps) -> str | None:
        """Return why volumes may be slower or much larger than maps, or None.

        They are not slower if they take fewer dot products than the windows of one lookup. With gradients on a CPU, they were
        measured to be faster than maps up to more; beyond, each lookup's gradient of the volumes takes the time.
        """
        if torch.compiler.is_compiling():
            return "a graph is made for any size"
        pairs, most = maps.dots_in_volumes, maps.dots_in_windows
        if maps.fmap1.device.type == "cpu" and needs_gradient(maps.tensors):
            most = int(maps.fmap1.shape[1] * min(LARGEST, most / WORTH[maps.has_rows]))
        return None if pairs <= most else f"a pixel has {pairs} dot products in volumes, more than {most}"

    def _volume(self, level: torch.Tensor) -> torch.Tensor:
        """Return the volume of a level, (B, H, W, H_l, W_l), or (B, H, W, W_l) where every pixel looks into its own row."""
        first, second = (fmap.to(self.maps.dtype) for fmap in (self.maps.fmap1, level))
        if not self.maps.has_rows:
            return first.movedim(1, 3) @ second.movedim(1, 2)
        products = first.flatten(2).mT @ second.flatten(2)
        return products.reshape(first.shape[0], *first.shape[2:], *second.shape[2:])

    def lookup(self, coords: torch.Tensor, step: Pair = UNIT) -> torch.Tensor:
        """Return what `Maps.lookup` returns, with the displacements of a window on one axis."""
        maps, (down, across) = self.maps, self.maps.patch_size
        patch, apart = (maps.patch_size, step) if maps.has_rows else (across, step[1])
        planes = []
        for level, volume in enumerate(self.volumes):
            at_level = coords * 2.0**-level
            windows = volume_lookup(volume, at_level, patch, dilation_patch=apart, order=maps.order, scale=maps.scale)
            planes.append(windows.reshape(coords.shape[0], down * across, *coords.shape[2:]))
        return torch.stack(planes, 1)

    @property
    def nbytes(self) -> int:
        """The bytes of the maps and the volumes."""
        return self.maps.nbytes + sum(each.numel() * each.element_size() for each in self.volumes)


class Windows:
    """The dot products of the last lookup's windows, on the CPU: a lookup computes those that have entered a window since."""

    def __init__(self, maps: Maps, is_optional: bool) -> None:
        """Keep windows of maps. If ``is_optional``, lookups for which that is not possible are computed from the maps."""
        self.maps, self.is_optional = maps, is_optional
        arrays = [_tensors.array(each) for each in maps.tensors]
        with threads():
            self.kept = kept_windows.KeptWindows(maps.problem(), arrays[0], arrays[1:])

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which has no windows yet: the kept ones belong to the memory of this block's maps."""
        return {"maps": self.maps, "is_optional": self.is_optional}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @staticmethod
    def why_not(maps: Maps) -> str | None:
        """Return why windows of maps cannot be kept, or None."""
        if maps.fmap1.device.type != "cpu":
            return "the maps are not on the CPU; on a GPU, it would move more bytes than a lookup from the maps reads"
        reason = _why_not_kept(maps.tensors)
        if reason is not None:
            return reason
        reason = kept_windows.why_not(maps.problem())
        if reason is not None:
            return reason
        algorithm = maps.algorithm_on_cpu(FORWARD)
        return (
            None if algorithm == "simd" else f"lookups in such maps are computed by {algorithm}, whose bits are not those of simd"
        )

    def lookup(self, coords: torch.Tensor, step: Pair = UNIT) -> torch.Tensor:
        """Return what `Maps.lookup` returns, with the same bits."""
        if not self.is_optional and needs_gradient((coords,)):
            raise NotImplementedError(f"keep='windows' is not possible here: {_GRADIENT}")
        if step != UNIT or coords.device.type != "cpu" or coords.dtype != self.maps.dtype or _why_not_kept((coords,)) is not None:
            return self.maps.lookup(coords, step)
        out = coords.new_empty(self.kept.out_shape)
        with threads():
            self.kept.lookup(_tensors.array(coords), _tensors.array(out))
        return out

    @property
    def nbytes(self) -> int:
        """The bytes of the maps and the windows."""
        return self.maps.nbytes + self.kept.nbytes


_GRADIENT = "a gradient is needed, and kept dot products have none"


def _why_not_kept(tensors: tuple[torch.Tensor, ...]) -> str | None:
    """Return why nothing that is computed from tensors can be kept, or None."""
    return why_no_values(tensors) or (_GRADIENT if needs_gradient(tensors) else None)
