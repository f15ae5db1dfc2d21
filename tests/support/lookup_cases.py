"""The lookups that the suite runs: named cases, and a hypothesis strategy that draws more."""

from dataclasses import dataclass, field, replace

import lookup_oracle
import numpy as np
from cases import DTYPES
from hypothesis import strategies as st

from cupycorr import correlation_lookup, correlation_lookup_vjp
from cupycorr._lookup.problem import Operands, parameters, problem

CPU_VARIANTS = ("simd", "blas", "reference")
ALL = (True, True, True)


@dataclass(frozen=True)
class Case:
    """A lookup: shapes, parameters, dtype, the flow that coordinates are made from, and the seed of its arrays.

    ``shapes2`` is a shape, or a list of shapes for a pyramid. Coordinates are the pixel grid and so many pixels of noise; with
    ``whole`` they are rounded. ``strange`` is the fraction of coordinates in whose place is a number from `STRANGE`.
    """

    shape1: tuple
    shapes2: object
    coords: tuple
    parameters: dict = field(default_factory=dict, hash=False)
    dtype: str = "float32"
    coords_dtype: str | None = None
    noise: float = 3.0
    whole: bool = False
    strange: float = 0.0
    seed: int = 0

    @property
    def levels(self):
        return self.shapes2 if isinstance(self.shapes2, list) else [self.shapes2]

    def arrays(self):
        """Return input1, input2 (a list for a pyramid) and coords."""
        rng = np.random.default_rng(self.seed)
        dtype = DTYPES[self.dtype]
        input1 = rng.standard_normal(self.shape1).astype(dtype)
        maps = [rng.standard_normal(shape).astype(dtype) for shape in self.levels]
        coords = self._coords(rng).astype(DTYPES[self.coords_dtype or ("float64" if self.dtype == "float64" else "float32")])
        return input1, maps if isinstance(self.shapes2, list) else maps[0], coords

    def _coords(self, rng):
        height, width = self.shape1[2:]
        grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)))[: self.coords[-3]]
        coords = grid + self.noise * rng.standard_normal(self.coords)
        coords = np.round(coords) if self.whole else coords
        chosen = rng.random(self.coords) < self.strange
        return np.where(chosen, rng.choice(STRANGE, self.coords), coords)

    def cotangent(self, dtype=None):
        """Return a cotangent."""
        shape = lookup_oracle.out_shape(*self.arrays(), **self.parameters)
        return np.random.default_rng(self.seed + 1).standard_normal(shape).astype(DTYPES[dtype or self.dtype])

    def problem(self):
        """Return the problem as the package's planners take it."""
        named = ("patch_size", "dilation_patch", "level_step", "order", "scale")
        given = {name: value for name, value in self.parameters.items() if name in named}
        indices = [self.parameters.get(name) for name in ("index1", "index2")]
        first, second = (None if index is None else (index.shape, index.dtype.name) for index in indices)
        coords_dtype = self.arrays()[2].dtype.name
        pyramid = isinstance(self.shapes2, list)
        operands = Operands(self.shape1, tuple(self.levels), pyramid, self.coords, coords_dtype, first, second)
        return problem(parameters(**given), operands)

    def of(self, dtype):
        """Return the same lookup in another dtype."""
        return replace(self, dtype=dtype, coords_dtype=None)


STRANGE = (np.nan, np.inf, -np.inf, 1e30, -1e30, 1e-9, -1e-9, -1.0, 1e9)


def index(*values, dtype=np.int64):
    return np.array(values, dtype)


NAMED = {
    "one pixel": Case((1, 1, 1, 1), (1, 1, 1, 1), (1, 2, 1, 1)),
    "RAFT": Case((1, 40, 11, 18), [(1, 40, 11, 18), (1, 40, 5, 9), (1, 40, 2, 4), (1, 40, 1, 2)], (1, 2, 11, 18)),
    "RAFT's order": Case(
        (2, 9, 9, 7), [(2, 9, 9, 7), (2, 9, 4, 3)], (2, 2, 9, 7), dict(patch_size=(5, 3), order="dx", scale=0.25)
    ),
    "a single map": Case((2, 7, 9, 10), (2, 7, 9, 10), (2, 2, 9, 10), dict(patch_size=5)),
    "lookups of each pixel": Case((2, 6, 5, 6), (2, 6, 8, 9), (2, 3, 2, 5, 6), dict(patch_size=3)),
    "pyramid and lookups": Case((1, 6, 5, 6), [(1, 6, 8, 9), (1, 6, 3, 5)], (1, 2, 2, 5, 6), dict(patch_size=3, order="dx")),
    "even patch": Case((1, 5, 8, 9), (1, 5, 8, 9), (1, 2, 8, 9), dict(patch_size=(2, 4))),
    "dilated patch": Case((1, 5, 12, 17), (1, 5, 12, 17), (1, 2, 12, 17), dict(patch_size=(3, 4), dilation_patch=(2, 3))),
    "patch apart": Case((1, 4, 6, 9), (1, 4, 40, 50), (1, 2, 6, 9), dict(patch_size=3, dilation_patch=11), noise=12.0),
    "levels by three and two": Case(
        (1, 5, 9, 12), [(1, 5, 9, 12), (1, 5, 3, 6), (1, 5, 1, 3)], (1, 2, 9, 12), dict(patch_size=3, level_step=(3, 2))
    ),
    "levels of one size": Case((1, 4, 6, 7), [(1, 4, 6, 7)] * 3, (1, 2, 6, 7), dict(patch_size=3)),
    "stereo": Case(
        (2, 9, 6, 30), [(2, 9, 6, 30), (2, 9, 6, 15), (2, 9, 6, 7)], (2, 1, 6, 30), dict(patch_size=(1, 9), level_step=(1, 2))
    ),
    "own rows, tall patch": Case((1, 5, 8, 9), (1, 5, 6, 9), (1, 2, 1, 8, 9), dict(patch_size=(4, 3), dilation_patch=(2, 1))),
    "edges of patches": Case(
        (4, 16, 3, 3),
        [(3, 16, 12, 14), (3, 16, 3, 3)],
        (7, 2, 3, 3),
        dict(patch_size=7, index1=index(3, 0, 0, 2, 3, 1, 3), index2=index(2, 2, 0, 1, 1, 0, 2, dtype=np.int32), level_step=4),
    ),
    "one index": Case((1, 6, 4, 5), (3, 6, 7, 8), (3, 2, 4, 5), dict(patch_size=3, index1=index(0, 0, 0))),
    "other index": Case((3, 6, 4, 5), (1, 6, 7, 8), (3, 2, 4, 5), dict(patch_size=3, index2=index(0, 0, 0))),
    "levels of one pixel": Case((1, 6, 8, 9), [(1, 6, 2, 2), (1, 6, 1, 1), (1, 6, 1, 1)], (1, 2, 8, 9), dict(patch_size=5)),
    "steep flow": Case((1, 20, 19, 21), (1, 20, 60, 70), (1, 2, 19, 21), dict(patch_size=5), noise=25.0),
    "whole numbers": Case((1, 6, 9, 11), (1, 6, 9, 11), (1, 2, 9, 11), dict(patch_size=5), whole=True),
    "strange numbers": Case((2, 6, 9, 11), [(2, 6, 9, 11), (2, 6, 4, 5)], (2, 2, 2, 9, 11), dict(patch_size=(3, 4)), strange=0.1),
    "wholly outside": Case((1, 6, 5, 6), (1, 6, 4, 5), (1, 2, 5, 6), dict(patch_size=3), noise=1e4),
    "no entries": Case((0, 6, 5, 6), [(0, 6, 4, 5)], (0, 2, 5, 6), dict(patch_size=3)),
    "no lookups": Case((1, 6, 5, 6), (1, 6, 4, 5), (1, 0, 2, 5, 6), dict(patch_size=3)),
    "no channels": Case((1, 0, 5, 6), (1, 0, 4, 5), (1, 2, 5, 6), dict(patch_size=3), strange=0.1),
    "many channels": Case((1, 1100, 3, 5), (1, 1100, 4, 6), (1, 2, 3, 5), dict(patch_size=3)),
    "one row": Case((1, 5, 1, 150), (1, 5, 1, 150), (1, 2, 1, 150), dict(patch_size=(3, 5))),
    "one column": Case((1, 5, 150, 1), (1, 5, 150, 1), (1, 2, 150, 1), dict(patch_size=(5, 3))),
}

TERMS = 8192
# Each of the last 4096 additions of a chain of these rounds by nearly half a unit in the last place, and always down: the loss
# is beyond the error bound of so many terms.
DRIFTING = np.float32(1 + 0.49 * 2.0**-11)


@dataclass(frozen=True)
class LongSum:
    """A lookup with a sum of `TERMS` equal terms: shapes, the size of the patch, and the coordinates of every query."""

    shape1: tuple
    shape2: tuple
    coords: tuple
    patch_size: object = 1
    at: tuple = (0.0, 0.0)

    @property
    def parameters(self):
        return dict(patch_size=self.patch_size)

    def arrays(self):
        """Return input1, input2, coords and a cotangent: every term of the long sums of each result is `DRIFTING`."""
        pixel = 1 if self.shape1[1] == TERMS else DRIFTING  # the terms of dots are products of pixels
        at = np.array(self.at[: self.coords[-3]], np.float32)[:, None, None]
        coords = np.broadcast_to(at, self.coords).copy()
        x1, x2 = np.full(self.shape1, pixel, np.float32), np.full(self.shape2, DRIFTING, np.float32)
        return x1, x2, coords, np.ones(lookup_oracle.out_shape(x1, x2, coords, self.patch_size), np.float32)


MIDDLE = (TERMS - 1) // 2
LONG_SUMS = {
    "channels": LongSum((1, TERMS, 1, 1), (1, TERMS, 1, 1), (1, 1, 1, 1)),
    "taps of a row": LongSum((1, 1, 1, 1), (1, 1, 1, TERMS), (1, 1, 1, 1), (1, TERMS), (MIDDLE, 0)),
    "rows of taps": LongSum((1, 1, 1, 1), (1, 1, TERMS, 1), (1, 2, 1, 1), (TERMS, 1), (0, MIDDLE)),
    "lookups": LongSum((1, 1, 1, 1), (1, 1, 1, 1), (1, TERMS, 1, 1, 1)),
    "queries": LongSum((1, 1, 64, 128), (1, 1, 1, 1), (1, 2, 64, 128)),
}


def large_patch(axis):
    """Return a patch of `TERMS` displacements, and maps, coords and a cotangent: a slope along an axis has `TERMS` equal terms.

    Pixels and the signs of the cotangent alternate along the axis. There are two queries: NumPy sums the terms of one by halves.
    """
    patch = 64, TERMS // 64
    position = np.indices([size + 1 for size in patch])[axis]
    x1, x2 = np.ones((1, 1, 1, 2), np.float32), (position % 2).astype(np.float32)[None, None]
    first = [(size - 1) // 2 for size in reversed(patch)]  # the window of these coordinates, x first, begins at the first pixel
    coords = np.broadcast_to(np.array(first, np.float32)[:, None, None], (1, 2, 1, 2)).copy()
    signs = 1 - 2 * (position[:-1, :-1] % 2)
    g = np.broadcast_to((DRIFTING * signs).astype(np.float32)[None, :, :, None, None], (1, *patch, 1, 2)).copy()
    return patch, x1, x2, coords, g


@st.composite
def lookups(draw, dtypes=tuple(DTYPES)):
    """Draw any parameters on small maps, with coordinates of every kind."""

    def both(low, high):
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    channels = draw(st.sampled_from([1, 2, 5, 17]))
    batch1, batch2, entries = (draw(st.integers(1, 3)) for _ in range(3))
    size1, levels = both(1, 20), draw(st.integers(0, 3))
    maps = [(batch2, channels, *both(1, 20)) for _ in range(max(levels, 1))]
    lookups = draw(st.sampled_from([(), (1,), (2,)]))
    indices = {
        name: index(*draw(st.lists(st.integers(0, batch - 1), min_size=entries, max_size=entries)), dtype=kind)
        for name, batch, kind in (("index1", batch1, np.int32), ("index2", batch2, np.int64))
        if batch != entries or draw(st.booleans())
    }
    parameters = dict(
        patch_size=both(1, 6),
        dilation_patch=draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (3, 2)])),
        level_step=both(1, 4),
        order=draw(st.sampled_from(["dy", "dx"])),
        scale=draw(st.sampled_from([1.0, -0.3])),
        **indices,
    )
    return Case(
        (batch1, channels, *size1),
        maps if levels else maps[0],
        (entries, *lookups, draw(st.integers(1, 2)), *size1),
        parameters,
        draw(st.sampled_from(dtypes)),
        noise=draw(st.sampled_from([0.0, 0.4, 3.0, 20.0])),
        whole=draw(st.booleans()),
        strange=draw(st.sampled_from([0.0, 0.05])),
        seed=draw(st.integers(0, 99)),
    )


def check_forward(case, variant):
    """Check the output against the oracle."""
    x1, x2, coords = case.arrays()
    out = correlation_lookup(x1, x2, coords, **case.parameters, variant=variant)
    assert out.dtype == x1.dtype
    lookup_oracle.assert_close(out, lookup_oracle.forward(x1, x2, coords, **case.parameters))


def check_vjp(case, variant):
    """Check all three gradients against the oracle."""
    x1, x2, coords = case.arrays()
    g = case.cotangent()
    found = correlation_lookup_vjp(g, x1, x2, coords, **case.parameters, variant=variant, needs=ALL)
    want = lookup_oracle.vjp(g, x1, x2, coords, **case.parameters)
    lookup_oracle.assert_close(found[0], want[0], name="gradient of input1")
    assert isinstance(found[1], tuple) == isinstance(x2, list)
    pairs = zip(*found[1:2], *want[1:2], strict=True) if isinstance(x2, list) else [(found[1], want[1])]
    for level, (got, triple) in enumerate(pairs):
        lookup_oracle.assert_close(got, triple, name=f"gradient of level {level}")
    lookup_oracle.assert_close(found[2], want[2], accumulator=x1.dtype, name="gradient of coords")
    assert [found[0].dtype, found[2].dtype] == [x1.dtype, coords.dtype]
