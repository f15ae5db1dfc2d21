"""The lookup in a volume as float64 sums over its formula: it shares no line with the package, which is compared with it.

    out[e,m,n,i,j] = scale * sum over a, b of wy(a) wx(b) D(y0 + a + dy(m), x0 + b + dx(n))
    D(y', x') = V[e,i,j,y',x'], 0 outside

The loops go over entries, displacements and corners; all queries of an image are computed at once. Each function returns triples
as those of `lookup_oracle`, whose `assert_close` checks results against them.
"""

from itertools import product

import numpy as np
from lookup_oracle import along
from oracle import pair


class Corner:
    """One corner of one displacement: an index into the output, and for every query its weights and position."""

    def __init__(self, at, weights, signs, position, size, finite):
        self.at, self.finite = at, finite
        self.wy, self.wx = weights
        self.sign_y, self.sign_x = signs
        rows, columns = position
        self.inside = finite & (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
        queries = np.indices(finite.shape)
        inside = np.where(self.inside, (rows, columns), 0).astype(np.int64)
        self.place = (np.intp(at[0]), *queries, *inside)

    def value(self, volume):
        """Return the elements (H, W) that the corner reads, 0 outside."""
        return np.where(self.inside, volume[self.place], 0.0)


class Geometry:
    """All corners of a call, with a volume (E, H, W, H2, W2) and an output (E, PH, PW, H, W) whatever the dimensions are."""

    def __init__(self, volume, coords, patch_size=9, *, dilation_patch=1, order="dy", scale=1.0):
        self.one = volume.ndim == 4
        self.dtype = np.float64 if volume.dtype == np.float64 else np.float32
        self.coords, self.scale, self.order = coords, scale, order
        self.volume = volume.astype(np.float64)[:, :, :, None] if self.one else volume.astype(np.float64)
        self.patch = (1, patch_size) if self.one else pair(patch_size)
        self.step = (1, dilation_patch) if self.one else pair(dilation_patch)
        self.full = (volume.shape[0], *self.patch, *volume.shape[1:3])

    def corners(self):
        entries, patch_h, patch_w, height, width = self.full
        for e in range(entries):
            x0, wx, finite = along(self.coords[e, 0], 1, self.dtype)
            y0, wy = np.zeros((height, width)), (np.ones((height, width)),)
            if not self.one:
                y0, wy, also = along(self.coords[e, 1], 1, self.dtype)
                finite = finite & also
            for m, n in product(range(patch_h), range(patch_w)):
                dy, dx = self.step[0] * (m - (patch_h - 1) // 2), self.step[1] * (n - (patch_w - 1) // 2)
                for a, b in product(range(len(wy)), range(2)):
                    with np.errstate(invalid="ignore"):
                        position = y0 + a + dy, x0 + b + dx
                    yield Corner((e, m, n), (wy[a], wx[b]), (2 * a - 1, 2 * b - 1), position, self.volume.shape[3:], finite)

    def seen(self, array):
        """Return an array of the full shape of the output with the axes that a caller sees."""
        return array[:, 0] if self.one else array if self.order == "dy" else array.swapaxes(1, 2)

    def full_cotangent(self, g):
        g = g.astype(np.float64)
        return g[:, None] if self.one else g if self.order == "dy" else g.swapaxes(1, 2)


def out_shape(volume, coords, *args, **kwargs):
    """Return the shape of the output."""
    geometry = Geometry(volume, coords, *args, **kwargs)
    return geometry.seen(np.broadcast_to(0, geometry.full)).shape


def forward(volume, coords, *args, **kwargs):
    """Return value, sum of absolute terms and number of terms of every output, in float64."""
    geometry = Geometry(volume, coords, *args, **kwargs)
    value, absolute = np.zeros(geometry.full), np.zeros(geometry.full)
    for corner in geometry.corners():
        with np.errstate(all="ignore"):
            weighted = np.where(corner.inside, corner.wy * corner.wx * corner.value(geometry.volume), 0)
        value[corner.at] += np.where(corner.finite, weighted, np.nan)
        absolute[corner.at] += abs(weighted)
    results = value * geometry.scale, absolute * abs(geometry.scale), np.ones(geometry.full)
    return tuple(map(geometry.seen, results))


def vjp(g, volume, coords, *args, **kwargs):
    """Return the triples for the gradients of the volume and of coords."""
    geometry = Geometry(volume, coords, *args, **kwargs)
    cotangent = geometry.full_cotangent(g) * geometry.scale
    to_volume = [np.zeros(geometry.volume.shape) for _ in range(3)]
    to_coords = [np.zeros(coords.shape) for _ in range(3)]
    for corner in geometry.corners():
        given, inside = cotangent[corner.at], corner.inside
        products = np.where(inside, corner.wy * corner.wx * given, 0)
        for total, each in zip(to_volume, (products, abs(products), inside), strict=True):
            np.add.at(total, corner.place, each)
        value = corner.value(geometry.volume)
        slopes = corner.sign_x * corner.wy, corner.sign_y * corner.wx
        for channel in range(coords.shape[1]):
            slope = np.where(inside, slopes[channel] * given * value, 0)
            at = corner.at[0], channel
            to_coords[0][at] += np.where(corner.finite, slope, np.nan)
            to_coords[1][at] += abs(slope)
            to_coords[2][at] += inside
    return tuple(each.reshape(volume.shape) for each in to_volume), tuple(to_coords)
