"""The lookup as float64 sums over its formula, which share no line with the package: all results are compared with it.

    out[e,l,k,m,n,i,j] = scale * sum over a, b of wy(a) wx(b) D(y0 + a + dy(m), x0 + b + dx(n))
    D(y', x') = sum over c of X1[s,c,i,j] X2_l[t,c,y',x'], 0 outside

The loops go over entries, levels, lookups, displacements and corners; all queries of an image are computed at once. Each function
also returns the sum of absolute terms and the number of terms, from which `bound` follows. Coordinates at a level and the weights
are rounded to the dtype of the sums: that rounding is a part of the definition.
"""

from itertools import product

import numpy as np
from oracle import EPSILON, SMALLEST, TF32, ULP, pair


class Corner:
    """One corner of one displacement: an index into the output, and for every pixel (i, j) its weights and position."""

    def __init__(self, at, level, entry, lookup, weights, signs, rows, columns, size, finite):
        self.at, self.level, self.entry, self.lookup, self.finite = at, level, entry, lookup, finite
        self.wy, self.wx = weights
        self.sign_y, self.sign_x = signs
        height, width = size
        self.inside = finite & (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        self.y = np.where(self.inside, rows, 0).astype(np.int64)
        self.x = np.where(self.inside, columns, 0).astype(np.int64)

    def features(self, image):
        """Return the features (C, H, W) that the corner reads, 0 outside."""
        return np.where(self.inside, image[:, self.y, self.x], 0.0)


def along(coordinate, factor, dtype):
    """Return the floor, the two weights and whether the coordinate is finite."""
    with np.errstate(all="ignore"):
        scaled = coordinate.astype(dtype) * dtype(factor)
        low = np.floor(scaled)
        upper = scaled - low
        return low.astype(np.float64), ((dtype(1) - upper).astype(np.float64), upper.astype(np.float64)), np.isfinite(scaled)


class Geometry:
    """All corners of a call, and the shapes of its results."""

    def __init__(
        self,
        x1,
        x2,
        coords,
        patch_size=9,
        *,
        dilation_patch=1,
        level_step=2,
        index1=None,
        index2=None,
        order="dy",
        scale=1.0,
    ):
        self.pyramid = isinstance(x2, (list, tuple))
        self.five = coords.ndim == 5
        self.scale, self.order = scale, order
        self.dtype = np.float64 if x1.dtype == np.float64 else np.float32
        self.x1 = x1.astype(np.float64)
        self.maps = [each.astype(np.float64) for each in (x2 if self.pyramid else [x2])]
        self.coords = coords if self.five else coords[:, None]
        self.patch, self.step, self.level_step = pair(patch_size), pair(dilation_patch), pair(level_step)
        entries = self.coords.shape[0]
        self.index1 = range(entries) if index1 is None else [int(each) for each in index1]
        self.index2 = range(entries) if index2 is None else [int(each) for each in index2]
        self.full = (entries, len(self.maps), self.coords.shape[1], *self.patch, *x1.shape[2:])

    def factors(self, level):
        return tuple(float(step) ** -level for step in self.level_step)

    def corners(self):
        entries, levels, lookups, patch_h, patch_w, height, width = self.full
        for e, level, k in product(range(entries), range(levels), range(lookups)):
            along_y, along_x = self.factors(level)
            x0, wx, finite = along(self.coords[e, k, 0], along_x, self.dtype)
            if self.coords.shape[2] == 2:
                y0, wy, also = along(self.coords[e, k, 1], along_y, self.dtype)
                finite = finite & also
            else:
                y0, wy = np.broadcast_to(np.arange(height)[:, None], (height, width)).astype(float), (np.ones((height, width)),)
            for m, n in product(range(patch_h), range(patch_w)):
                dy, dx = self.step[0] * (m - (patch_h - 1) // 2), self.step[1] * (n - (patch_w - 1) // 2)
                for a, b in product(range(len(wy)), range(2)):
                    with np.errstate(invalid="ignore"):
                        rows, columns = y0 + a + dy, x0 + b + dx
                    yield Corner(
                        (e, level, k, m, n),
                        level,
                        e,
                        k,
                        (wy[a], wx[b]),
                        (2 * a - 1, 2 * b - 1),
                        rows,
                        columns,
                        self.maps[level].shape[2:],
                        finite,
                    )

    def seen(self, array):
        """Return an array of the full shape with the axes that a caller sees, in the order of the call."""
        array = array if self.order == "dy" else array.swapaxes(3, 4)
        array = array if self.five else array[:, :, 0]
        return array if self.pyramid else array[:, 0]

    def full_cotangent(self, g):
        g = g.astype(np.float64)
        g = g if self.pyramid else g[:, None]
        g = g if self.five else g[:, :, None]
        return g if self.order == "dy" else g.swapaxes(3, 4)


def out_shape(x1, x2, coords, *args, **kwargs):
    """Return the shape of the output."""
    geometry = Geometry(x1, x2, coords, *args, **kwargs)
    return geometry.seen(np.broadcast_to(0, geometry.full)).shape


def forward(x1, x2, coords, *args, **kwargs):
    """Return value, sum of absolute terms and number of terms of every output, in float64."""
    geometry = Geometry(x1, x2, coords, *args, **kwargs)
    value, absolute, terms = (np.zeros(geometry.full) for _ in range(3))
    for corner in geometry.corners():
        query = geometry.x1[geometry.index1[corner.entry]]
        with np.errstate(all="ignore"):
            found = np.where(
                corner.inside, query * corner.features(geometry.maps[corner.level][geometry.index2[corner.entry]]), 0
            )
            weighted = corner.wy * corner.wx * found
        value[corner.at] += np.where(corner.finite, np.where(corner.inside, weighted, 0).sum(0), np.nan)
        absolute[corner.at] += np.where(corner.inside, abs(weighted), 0).sum(0)
        terms[corner.at] = query.shape[0]
    return tuple(map(geometry.seen, (value * geometry.scale, absolute * abs(geometry.scale), terms)))


def vjp(g, x1, x2, coords, *args, **kwargs):
    """Return the triple for the gradients of input1, of input2 (a list of triples for a pyramid) and of coords."""
    geometry = Geometry(x1, x2, coords, *args, **kwargs)
    cotangent = geometry.full_cotangent(g) * geometry.scale
    one = [np.zeros(x1.shape) for _ in range(3)]
    two = [[np.zeros(each.shape) for _ in range(3)] for each in geometry.maps]
    three = [np.zeros(geometry.coords.shape) for _ in range(3)]
    for corner in geometry.corners():
        s, t = geometry.index1[corner.entry], geometry.index2[corner.entry]
        query, features = geometry.x1[s], corner.features(geometry.maps[corner.level][t])
        given, inside, finite = cotangent[corner.at], corner.inside, corner.finite
        weight = np.where(inside, corner.wy * corner.wx * given, 0)
        _add(one, s, np.where(finite, weight * features, np.nan), inside)
        _scatter(two[corner.level], t, (corner.y, corner.x), np.where(inside, weight * query, 0), inside)
        dots = np.where(inside, query * features, 0)
        factors = geometry.factors(corner.level)
        slopes = (factors[1] * corner.sign_x * corner.wy, factors[0] * corner.sign_y * corner.wx)
        for channel in range(geometry.coords.shape[2]):
            slope = slopes[channel] * given
            products = np.where(inside, slope * dots, 0)
            at = (corner.entry, corner.lookup, channel)
            three[0][at] += np.where(finite, products.sum(0), np.nan)
            three[1][at] += abs(products).sum(0)
            three[2][at] += inside * query.shape[0]
    three = [each if geometry.five else each[:, 0] for each in three]
    two = [tuple(each) for each in two]
    return tuple(one), (two if geometry.pyramid else two[0]), tuple(three)


def _add(sums, at, products, inside):
    sums[0][at] += products
    sums[1][at] += abs(np.where(inside, products, 0))
    sums[2][at] += inside


def _scatter(sums, t, position, products, inside):
    y, x = position[0][inside], position[1][inside]
    for total, each in zip(sums, (products, abs(products), np.ones_like(products)), strict=True):
        np.add.at(total[t], (slice(None), y, x), each[:, inside])


def bound(triple, dtype, accumulator=None):
    """Return the allowed error: ulp_out(want) + (4 sqrt(terms) + 8) eps_acc sum |terms|; ``accumulator`` may be "tf32"."""
    value, absolute, terms = triple
    name = np.dtype(dtype).name
    ulp = np.maximum(np.abs(value) * ULP[name], SMALLEST[name])
    relative = TF32 if accumulator == "tf32" else (4 * np.sqrt(terms) + 8) * EPSILON[np.dtype(accumulator or dtype).name]
    return ulp + relative * absolute


def assert_close(got, triple, accumulator=None, name="output"):
    """Check that every element is within the allowed error, and NaN exactly where the oracle is."""
    assert got.shape == triple[0].shape, f"{name}: shape {got.shape}, want {triple[0].shape}"
    want, got_values = triple[0], got.astype(np.float64)
    missing = np.isnan(want)
    differ = np.argwhere(np.isnan(got_values) != missing)
    assert not len(differ), f"{name}: NaN in one of result and oracle at {differ[0]}"
    excess = np.where(missing, 0.0, np.abs(got_values - want) - bound(triple, got.dtype, accumulator))
    if excess.size and excess.max() > 0:
        worst = np.unravel_index(excess.argmax(), excess.shape)
        where = f"{name}{list(map(int, worst))}"
        raise AssertionError(f"{where}: got {got[worst]}, want {want[worst]}, excess {excess[worst]:.3g}")
