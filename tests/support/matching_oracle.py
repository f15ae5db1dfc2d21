"""Matching as float64 loops over positions, from a volume that the caller passes; nothing here is shared with the package.

Scores are sorted: NaN first, then from high to low, then by channel. Displacements are excluded whose centre tap leaves input2.
"""

import math

import numpy as np
from oracle import pair


def axis_values(parameters, axis, size1, patch, out):
    """Return the positions of centre taps (out,) and the displacements (patch,) of an axis."""
    k, s, a, d, e = (
        pair(parameters.get(name, default))[axis]
        for name, default in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1), ("dilation_patch", 1))
    )
    offset = parameters.get("patch_offset")
    q = 0 if offset is None else pair(offset)[axis]
    centres = [i * s - a + (k - 1) // 2 * d for i in range(out)]
    return centres, [q + e * (m - (patch - 1) // 2) for m in range(patch)]


class Geometry:
    """Where a volume (B, PH, PW, oH, oW) of a case has which displacements, and which of them are excluded."""

    def __init__(self, case, outside):
        _, ph, pw, oh, ow = case.out_shape()
        (self.ys, self.dys), (self.xs, self.dxs) = (
            axis_values(case.parameters, axis, case.shape1[2 + axis], patch, out)
            for axis, (patch, out) in enumerate(((ph, oh), (pw, ow)))
        )
        self.excluding, (self.height, self.width) = outside == "excluded", case.shape2[2:]

    def candidates(self, i, j):
        """Return the (channel, m, n, dy, dx) of the displacements that are candidates at an output position."""
        found = []
        for m, dy in enumerate(self.dys):
            for n, dx in enumerate(self.dxs):
                inside = 0 <= self.ys[i] + dy < self.height and 0 <= self.xs[j] + dx < self.width
                if inside or not self.excluding:
                    found.append((m * len(self.dxs) + n, m, n, dy, dx))
        return found


def rank(score, channel):
    return (not math.isnan(score), 0.0 if math.isnan(score) else -score, channel)


def best(volume, case, top_k, outside):
    """Return dy, dx, score and channel, each (B, k, oH, oW), dy and dx as float64 with NaN where there is none."""
    geometry = Geometry(case, outside)
    batch, *_, height, width = volume.shape
    fields = [np.full((batch, top_k, height, width), value) for value in (np.nan, np.nan, np.nan)]
    channels = np.full((batch, top_k, height, width), -1, np.int64)
    for b, i, j in np.ndindex(batch, height, width):
        ranked = sorted(geometry.candidates(i, j), key=lambda each: rank(float(volume[b, each[1], each[2], i, j]), each[0]))
        for k, (channel, m, n, dy, dx) in enumerate(ranked[:top_k]):
            for field, value in zip(fields, (dy, dx, volume[b, m, n, i, j]), strict=True):
                field[b, k, i, j] = value
            channels[b, k, i, j] = channel
    return (*fields, channels)


def mean(volume, case, temperature, outside):
    """Return dy and dx (B, oH, oW), and how far weights of relative error 1 at scores of absolute error 1 could move each."""
    geometry = Geometry(case, outside)
    batch, *_, height, width = volume.shape
    fields = [np.full((batch, height, width), np.nan) for _ in range(2)]
    for b, i, j in np.ndindex(batch, height, width):
        candidates = geometry.candidates(i, j)
        scores = np.array([float(volume[b, m, n, i, j]) for _, m, n, _, _ in candidates]) / temperature
        if not len(scores) or not np.isfinite(scores.max()):
            continue
        weights = np.exp(scores - scores.max())
        for field, at in zip(fields, (3, 4), strict=True):
            field[b, i, j] = (weights * np.array([each[at] for each in candidates], float)).sum() / weights.sum()
    return fields


def subpixel(volume, case, outside):
    """Return dy and dx (B, oH, oW) at the vertices of parabolas, in float64."""
    geometry = Geometry(case, outside)
    dy, dx, _, channels = best(volume, case, 1, outside)
    steps = pair(case.parameters.get("dilation_patch", 1))
    fields = [dy[:, 0], dx[:, 0]]
    for b, i, j in np.ndindex(fields[0].shape):
        if channels[b, 0, i, j] < 0:
            continue
        m, n = divmod(int(channels[b, 0, i, j]), len(geometry.dxs))
        allowed = {(each[1], each[2]) for each in geometry.candidates(i, j)}
        for axis, (down, right) in enumerate(((1, 0), (0, 1))):
            around = [(m - down, n - right), (m, n), (m + down, n + right)]
            if allowed.issuperset(around):
                before, peak, after = (float(volume[b, y, x, i, j]) for y, x in around)
                curvature = (peak - before) + (peak - after)
                if math.isfinite(curvature) and curvature > 0:
                    fraction = min(max(0.5 * (after - before) / curvature, -0.5), 0.5)
                    fields[axis][b, i, j] += fraction * steps[axis]
    return fields
