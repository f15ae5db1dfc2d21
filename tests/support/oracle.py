"""The operator as float64 loops over its formula, which share no line with the package: all results are compared with it.

    out[b,m,n,i,j] = scale * sum over c,u,v of X1[b,c,y,x] X2[b,c,y+dy,x+dx],  y = i sH - aH + u dH,  dy = qH + eH (m - rH)

With groups, each group of channels by itself has an output, along an axis after the batch.
Every function also returns the sum of absolute terms and the number of terms, from which `bound` follows.
"""

import numpy as np

EPSILON = {"float16": 2.0**-23, "bfloat16": 2.0**-23, "float32": 2.0**-23, "float64": 2.0**-52}  # of the accumulator
ULP = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}
TF32 = 1e-3  # times the sum of absolute terms: factors are rounded to 10 bits of the fraction
SMALLEST = {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def output_size(size, k, s, a, d):
    return (size + 2 * a - d * (k - 1) - 1) // s + 1


def pairs(height, height2, k, P, s, a, d, e, q):
    """Yield (output index, patch index, position in input1, position in input2) of every product along one axis."""
    radius = (P - 1) // 2
    for i in range(output_size(height, k, s, a, d)):
        for m in range(P):
            for u in range(k):
                y = i * s - a + u * d
                y2 = y + q + e * (m - radius)
                if 0 <= y < height and 0 <= y2 < height2:
                    yield i, m, y, y2


def geometry(
    x1, x2, kernel_size=1, patch_size=1, stride=1, padding=0, dilation=1, dilation_patch=1, *, patch_offset=None, scale=1.0
):
    offset = 0 if patch_offset is None else patch_offset
    values = [kernel_size, patch_size, stride, padding, dilation, dilation_patch, offset]
    both = [[pair(v)[axis] for v in values] for axis in (0, 1)]
    lists = [list(pairs(x1.shape[2 + axis], x2.shape[2 + axis], *both[axis])) for axis in (0, 1)]
    sizes = [output_size(x1.shape[2 + axis], *[both[axis][p] for p in (0, 2, 3, 4)]) for axis in (0, 1)]
    patch = pair(patch_size)
    return lists, (x1.shape[0], patch[0], patch[1], sizes[0], sizes[1]), scale


def forward(x1, x2, *args, groups=1, **kwargs):
    """Return value, sum of absolute terms and number of terms of every output, in float64."""
    if groups > 1:
        each = [forward(*parts, *args, **kwargs) for parts in zip(*(np.split(x, groups, 1) for x in (x1, x2)), strict=True)]
        return tuple(np.stack(numbers, 1) for numbers in zip(*each, strict=True))
    (rows, columns), shape, scale = geometry(x1, x2, *args, **kwargs)
    x1, x2 = x1.astype(np.float64), x2.astype(np.float64)
    value, absolute, terms = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for i, m, y, y2 in rows:
        for j, n, x, xx in columns:
            products = x1[:, :, y, x] * x2[:, :, y2, xx]
            value[:, m, n, i, j] += products.sum(1)
            absolute[:, m, n, i, j] += abs(products).sum(1)
            terms[:, m, n, i, j] += x1.shape[1]
    return value * scale, absolute * abs(scale), terms


def vjp(g, x1, x2, *args, groups=1, **kwargs):
    """Return the same triple for the gradient of each input."""
    if groups > 1:
        channels = x1.shape[1] // groups
        split = (slice(group * channels, (group + 1) * channels) for group in range(groups))
        each = [vjp(g[:, group], x1[:, part], x2[:, part], *args, **kwargs) for group, part in enumerate(split)]
        inputs = zip(*each, strict=True)
        return tuple(tuple(np.concatenate(numbers, 1) for numbers in zip(*groups_of, strict=True)) for groups_of in inputs)
    (rows, columns), _, scale = geometry(x1, x2, *args, **kwargs)
    g, x1, x2 = g.astype(np.float64), x1.astype(np.float64), x2.astype(np.float64)
    one = [np.zeros(x1.shape) for _ in range(3)]
    two = [np.zeros(x2.shape) for _ in range(3)]
    for i, m, y, y2 in rows:
        for j, n, x, xx in columns:
            cotangent = g[:, m, n, i, j][:, None]
            for sums, at, other in ((one, (y, x), x2[:, :, y2, xx]), (two, (y2, xx), x1[:, :, y, x])):
                product = cotangent * other
                sums[0][:, :, at[0], at[1]] += product
                sums[1][:, :, at[0], at[1]] += abs(product)
                sums[2][:, :, at[0], at[1]] += 1
    return tuple((sums[0] * scale, sums[1] * abs(scale), sums[2]) for sums in (one, two))


def bound(triple, dtype, accumulator=None):
    """Return the allowed error: ulp_out(want) + 4 sqrt(terms) eps_acc sum |terms|; ``accumulator`` may be "tf32"."""
    value, absolute, terms = triple
    ulp = np.maximum(np.abs(value) * ULP[np.dtype(dtype).name], SMALLEST[np.dtype(dtype).name])
    relative = TF32 if accumulator == "tf32" else 4 * np.sqrt(terms) * EPSILON[np.dtype(accumulator or dtype).name]
    return ulp + relative * absolute


def assert_close(got, triple, accumulator=None, name="output"):
    """Check that every element is within the allowed error."""
    assert got.shape == triple[0].shape, f"{name}: shape {got.shape}, want {triple[0].shape}"
    excess = np.abs(got.astype(np.float64) - triple[0]) - bound(triple, got.dtype, accumulator)
    assert not np.isnan(excess).any(), f"{name}: NaN at {np.argwhere(np.isnan(excess))[0]}"
    if excess.size and excess.max() > 0:
        worst = np.unravel_index(excess.argmax(), excess.shape)
        where = f"{name}{list(map(int, worst))}"
        raise AssertionError(f"{where}: got {got[worst]}, want {triple[0][worst]}, excess {excess[worst]:.3g}")
