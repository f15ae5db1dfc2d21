"""The contestants of the benchmark of matching: ours without a volume, ours with one, and what people write in torch.

Each computes the best or the mean displacement of two feature maps, dx and dy on the last axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cupycorr import argmax_displacement, soft_argmax
from cupycorr.torch import correlation_argmax, correlation_soft_argmax, spatial_correlation_sample

BEST, MEAN = TASKS = ("argmax", "soft argmax")


@dataclass(frozen=True, slots=True)
class Size:
    """A pair of feature maps and the displacements that are tried.

    Attributes
    ----------
    name
        Its name.
    shape
        The shape (B, C, H, W) of both maps.
    patch, step, offset
        The number of displacements along y and x, the pixels between them, and the displacement at the centre.
    """

    name: str
    shape: tuple[int, int, int, int]
    patch: tuple[int, int]
    step: int = 1
    offset: tuple[int, int] = (0, 0)

    @property
    def parameters(self) -> dict[str, object]:
        """The parameters of the operator."""
        return {"patch_size": self.patch, "dilation_patch": self.step, "patch_offset": self.offset}

    @property
    def displacements(self) -> tuple[range, range]:
        """The displacements along y and along x."""
        ranges = []
        for count, offset in zip(self.patch, self.offset, strict=True):
            first = offset - self.step * ((count - 1) // 2)
            ranges.append(range(first, first + self.step * count, self.step))
        return ranges[0], ranges[1]

    @property
    def volume_bytes(self) -> int:
        """The bytes of the volume in float32."""
        batch, _, height, width = self.shape
        return 4 * batch * height * width * self.patch[0] * self.patch[1]

    def maps(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the two maps, the same at every call; scores are about as large as their differences matter in a softmax."""
        generator = torch.Generator().manual_seed(0)
        scale = self.shape[1] ** -0.25
        first = torch.randn(self.shape, generator=generator) * scale
        noise = torch.randn(self.shape, generator=generator) * scale
        return first, 0.7 * first.roll((1, -2), (2, 3)) + 0.7 * noise


SIZES = {
    size.name: size
    for size in (
        Size("flownetc", (4, 256, 48, 64), (21, 21), 2),
        Size("pwcnet", (1, 32, 96, 256), (9, 9)),
        Size("stereo", (1, 32, 500, 741), (1, 64), 1, (0, -32)),
    )
}

Contestant = Callable[[str, Size, torch.Tensor, torch.Tensor], torch.Tensor]


def fused(task: str, size: Size, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Reduce scores as they are made."""
    function = correlation_argmax if task == BEST else correlation_soft_argmax
    flow: torch.Tensor = function(first, second, **size.parameters).flow  # type: ignore[arg-type]
    return flow


def our_volume(task: str, size: Size, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Reduce our volume."""
    volume = spatial_correlation_sample(first, second, **size.parameters)  # type: ignore[arg-type]
    function = argmax_displacement if task == BEST else soft_argmax
    flow: torch.Tensor = function(volume, **size.parameters).flow  # type: ignore[arg-type]
    return flow.movedim(1, -1)


def unfold(task: str, size: Size, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Unfold every patch of the second map in torch, multiply and sum."""
    batch, channels, height, width = first.shape
    patches = torch.nn.functional.unfold(_padded(size, second), size.patch, dilation=size.step)
    patches = patches.reshape(batch, channels, -1, height, width)
    return _reduced(task, size, (first[:, :, None] * patches).sum(1))


def shifts(task: str, size: Size, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Multiply with shifted maps in a loop over displacements."""
    (batch, _, height, width), (rows, columns) = first.shape, size.patch
    padded = _padded(size, second)
    scores = first.new_empty((batch, rows * columns, height, width))
    for m in range(rows):
        for n in range(columns):
            y, x = size.step * m, size.step * n
            scores[:, m * columns + n] = (first * padded[:, :, y : y + height, x : x + width]).sum(1)
    return _reduced(task, size, scores)


def _padded(size: Size, second: torch.Tensor) -> torch.Tensor:
    """Return the second map with zeros around it, so that the first displacement reads from its first row and column."""
    dy, dx = size.displacements
    return torch.nn.functional.pad(second, (-dx[0], dx[-1], -dy[0], dy[-1]))


def _reduced(task: str, size: Size, scores: torch.Tensor) -> torch.Tensor:
    """Return the best or the mean displacement of scores (B, n, H, W)."""
    dy, dx = (torch.tensor(each) for each in size.displacements)
    grid = torch.stack(torch.meshgrid(dy, dx, indexing="ij")).flatten(1)  # dy, dx of each channel
    if task == BEST:
        channel = scores.argmax(1)
        return torch.stack((grid[1][channel], grid[0][channel]), -1)
    weights = scores.softmax(1)
    return torch.stack([torch.einsum("bnhw,n->bhw", weights, grid[axis].float()) for axis in (1, 0)], -1)


CONTESTANTS: dict[str, Contestant] = {"ours": fused, "our volume": our_volume, "unfold": unfold, "shifts": shifts}
OURS = ("ours",)


def bytes_of(contestant: str, size: Size) -> int:
    """Return about how many bytes a contestant needs beyond its inputs."""
    volumes = {"unfold": 2 * size.shape[1] + 2, "our volume": 4, "shifts": 4}
    return volumes.get(contestant, 1) * size.volume_bytes
