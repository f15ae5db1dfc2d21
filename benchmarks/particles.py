"""Synthetic particle images with a known displacement, for the benchmarks of block matching.

A particle is a Gaussian spot, integrated over each pixel with the error function: a camera integrates too, and a sampled Gaussian
would make small particles look sharper than a camera can show them. Its diameter is the e^-2 diameter of the Gaussian before the
integration, four standard deviations. Whole coordinates are the centres of pixels, ``(row, column)``, as in `cupycorr.Match`.
Particles are scattered well beyond the image, so that they move in and out at its border.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FULL_SCALE = 255  # of the 8-bit camera
BACKGROUND = 0.1  # of the full scale, so that noise is not cut off at black
BRIGHTEST, DIMMEST = 0.7, 0.2  # of the full scale: the peaks of particles are uniform between them
DENSITY = 0.03  # particles for each pixel: 8 in a window of 16 x 16
REACH = 4.5  # standard deviations, beyond which a particle is less than 0.01 grey values
MARGIN = 32  # pixels around the image that also have particles

Vectors = tuple[np.ndarray, np.ndarray]  # (dy, dx)
Motion = Callable[[np.ndarray, np.ndarray], Vectors]  # the displacement by the point halfway between both positions, (y, x)


@dataclass(frozen=True, slots=True)
class Particles:
    """The positions of particles in pixels, and their peaks in grey values."""

    y: np.ndarray
    x: np.ndarray
    peak: np.ndarray

    def moved(self, motion: Motion, share: float) -> Particles:
        """Return the particles after a share of their displacement."""
        dy, dx = motion(self.y, self.x)
        return Particles(self.y + share * dy, self.x + share * dx, self.peak)


# Motions ----------------------------------------------------------------------------------------------------------------------


def uniform(dy: float, dx: float) -> Motion:
    """Return a displacement that is the same everywhere."""
    return lambda y, x: (np.full(np.shape(y), dy), np.full(np.shape(x), dx))


def shear(rate: float, shape: tuple[int, int]) -> Motion:
    """Return a horizontal displacement that grows by ``rate`` pixels for each row and is 0 in the middle of the image."""
    middle = (shape[0] - 1) / 2
    return lambda y, x: (np.zeros(np.shape(y)), rate * (y - middle))


def rotation(degrees: float, shape: tuple[int, int]) -> Motion:
    """Return a rotation about the middle of the image, from the x axis towards the y axis, which points down."""
    middle_y, middle_x = ((length - 1) / 2 for length in shape)
    slope = 2 * math.tan(math.radians(degrees) / 2)  # half of it before and half after is exactly the rotation
    return lambda y, x: (slope * (x - middle_x), -slope * (y - middle_y))


def displacement_from(motion: Motion, y: np.ndarray, x: np.ndarray) -> Vectors:
    """Return the displacement of the points that are at ``(y, x)`` in frame 1, by fixed-point iteration."""
    dy, dx = np.zeros(np.shape(y)), np.zeros(np.shape(x))
    for _ in range(30):  # each shrinks the error by half the gradient of the displacement, a few per cent
        dy, dx = motion(y + dy / 2, x + dx / 2)
    return dy, dx


# Images -----------------------------------------------------------------------------------------------------------------------


def scatter(shape: tuple[int, int], density: float, rng: np.random.Generator) -> Particles:
    """Scatter particles over an image and the margin around it."""
    height, width = (length + 2 * MARGIN for length in shape)
    count = rng.poisson(density * height * width)
    y, x = (rng.random(count) * length - MARGIN - 0.5 for length in (height, width))
    return Particles(y, x, FULL_SCALE * rng.uniform(DIMMEST, BRIGHTEST, count))


def render(particles: Particles, shape: tuple[int, int], diameter: float) -> np.ndarray:
    """Return the image of particles, float64 grey values without background, noise and quantisation."""
    sigma = diameter / 4
    radius = math.ceil(REACH * sigma + 0.5)
    rows, down = _profile(particles.y, sigma, radius)
    columns, across = _profile(particles.x, sigma, radius)
    height, width = (length + 4 * radius for length in shape)  # around the image, for particles that reach over its border
    inside = ((rows >= 0) & (rows + 2 * radius < height) & (columns >= 0) & (columns + 2 * radius < width)).nonzero()[0]
    taps = np.arange(2 * radius + 1)
    pixels = (rows[inside, None, None] + taps[:, None]) * width + (columns[inside, None, None] + taps)
    values = particles.peak[inside, None, None] * down[inside, :, None] * across[inside, None, :]
    image = np.bincount(pixels.ravel(), values.ravel(), height * width).reshape(height, width)
    return image[2 * radius : 2 * radius + shape[0], 2 * radius : 2 * radius + shape[1]]


def _profile(at: np.ndarray, sigma: float, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each particle's first pixel, counted from ``2 radius`` before the image, and the integrals over its pixels."""
    from scipy.special import erf

    nearest = np.rint(at).astype(np.int64)
    edges = nearest[:, None] + np.arange(-radius, radius + 2) - 0.5 - at[:, None]
    return nearest + radius, np.diff(erf(edges / (math.sqrt(2) * sigma)), axis=1) * (math.sqrt(math.pi / 2) * sigma)


def camera(image: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Return what an 8-bit camera records: background, Gaussian noise (a fraction of the full scale), rounding and saturation."""
    recorded = image + BACKGROUND * FULL_SCALE
    if noise:
        recorded += rng.normal(0, noise * FULL_SCALE, image.shape)
    return np.rint(recorded).clip(0, FULL_SCALE).astype(np.uint8)


def pair(
    shape: tuple[int, int],
    diameter: float,
    motion: Motion,
    noise: float = 0.0,
    seed: int | tuple[int, ...] = 0,
    density: float = DENSITY,
) -> tuple[np.ndarray, np.ndarray]:
    """Return two uint8 images between which particles move, by half of the displacement before and half after their position."""
    rng = np.random.default_rng(seed)
    particles = scatter(shape, density, rng)
    before, after = (camera(render(particles.moved(motion, share), shape, diameter), noise, rng) for share in (-0.5, 0.5))
    return before, after
