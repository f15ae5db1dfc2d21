"""The problems of the lookup's benchmark: sizes of feature maps, and the flows that windows are looked up around.

The time of a lookup depends on the flow, because neighbouring windows share what they read. This module knows no contestant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

CHANNELS, LEVELS, RADIUS = 256, 4, 4  # RAFT's
SMOOTH = 6.0  # pixels; the amplitude of the smooth flow
STEP = 12.0  # pixels; the largest motion of the flow with edges, along each axis
BLOCK = 16  # pixels; the size of the squares of one motion
NOISE = 4.0  # pixels; the standard deviation of the noise
CONVERGENCE, START = 0.6, 8.0  # the factor of each iteration, and the pixels that the first one is wrong by

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Size:
    """A pair of feature maps: its name, the batch size, and the height and the width of the maps."""

    name: str
    batch: int
    shape: Shape

    @property
    def queries(self) -> int:
        """The number of pixels of a batch."""
        return self.batch * self.shape[0] * self.shape[1]

    def maps(self, channels: int = CHANNELS) -> tuple[np.ndarray, np.ndarray]:
        """Return the two maps (B, C, H, W), the same at every call."""
        random = np.random.default_rng(0)
        shape = (self.batch, channels, *self.shape)
        return random.standard_normal(shape, np.float32), random.standard_normal(shape, np.float32)

    def coords(self, flow: str) -> np.ndarray:
        """Return the coordinates (B, 2, H, W) of a flow."""
        moved = grid(self.shape) + FLOWS[flow](self.shape)
        return np.broadcast_to(moved, (self.batch, *moved.shape)).astype(np.float32)

    def converging(self, iterations: int) -> Iterator[np.ndarray]:
        """Yield the coordinates of iterations that approach a smooth flow, which is what a network does."""
        target, error = grid(self.shape) + smooth(self.shape), START * smooth_noise(self.shape)
        for iteration in range(iterations):
            moved = target + CONVERGENCE**iteration * error
            yield np.broadcast_to(moved, (self.batch, *moved.shape)).astype(np.float32)


def grid(shape: Shape) -> np.ndarray:
    """Return the coordinates (2, H, W) of the pixels, x first."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.stack((columns, rows)).astype(np.float64)


def zero(shape: Shape) -> np.ndarray:
    """Return no motion, with which an iteration begins."""
    return np.zeros((2, *shape))


def smooth(shape: Shape) -> np.ndarray:
    """Return waves of `SMOOTH` pixels."""
    x, y = grid(shape)
    return SMOOTH * np.stack((np.cos(y / 9 + 0.5), np.sin(x / 13 + 0.5)))


def edges(shape: Shape) -> np.ndarray:
    """Return squares of `BLOCK` pixels, each with a motion of its own."""
    random = np.random.default_rng(1)
    squares = random.uniform(-STEP, STEP, (2, *(-(-size // BLOCK) for size in shape)))
    return squares.repeat(BLOCK, 1).repeat(BLOCK, 2)[:, : shape[0], : shape[1]]


def noise(shape: Shape) -> np.ndarray:
    """Return independent motions of pixels, which share little."""
    return NOISE * np.random.default_rng(2).standard_normal((2, *shape))


def smooth_noise(shape: Shape) -> np.ndarray:
    """Return noise with a standard deviation of 1 from which all but the slow waves were removed."""
    random = np.random.default_rng(3)
    frequencies = np.hypot(*np.meshgrid(*(np.fft.fftfreq(size) for size in shape), indexing="ij"))
    spectrum = np.fft.fft2(random.standard_normal((2, *shape))) * np.exp(-((frequencies * 24) ** 2))
    waves = np.fft.ifft2(spectrum).real
    return np.asarray(waves / waves.std())


FLOWS: dict[str, Callable[[Shape], np.ndarray]] = {"zero": zero, "smooth": smooth, "edges": edges, "noise": noise}
SIZES = {
    size.name: size
    for size in (
        Size("sintel", 1, (55, 128)),  # RAFT at 440 x 1024
        Size("chairs", 1, (46, 62)),  # the training crop of 368 x 496
        Size("1080p", 1, (136, 240)),  # 1088 x 1920
    )
}
