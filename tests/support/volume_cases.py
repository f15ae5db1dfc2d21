"""The lookups in volumes that the suite runs: named cases, and a hypothesis strategy that draws more."""

from dataclasses import dataclass, field, replace

import numpy as np
import volume_oracle
from cases import DTYPES
from hypothesis import strategies as st
from lookup_cases import STRANGE
from lookup_oracle import assert_close

from cupycorr import volume_lookup, volume_lookup_vjp
from cupycorr._volume_lookup.problem import parameters, problem

CPU_VARIANTS = ("simd", "reference")
BOTH = (True, True)


@dataclass(frozen=True)
class Case:
    """A lookup in a volume: its shape, parameters, dtype, the flow that coordinates are made from, and the seed of its arrays.

    Coordinates are the pixel grid, stretched to the slices, and so many pixels of noise; with ``whole`` they are rounded.
    ``strange`` is the fraction of coordinates in whose place is a number from `STRANGE`.
    """

    volume: tuple
    parameters: dict = field(default_factory=dict, hash=False)
    dtype: str = "float32"
    coords_dtype: str | None = None
    noise: float = 3.0
    whole: bool = False
    strange: float = 0.0
    seed: int = 0

    @property
    def coords(self):
        """The shape of the coordinates."""
        return (self.volume[0], len(self.volume) - 3, *self.volume[1:3])

    def arrays(self):
        """Return the volume and coords."""
        rng = np.random.default_rng(self.seed)
        volume = rng.standard_normal(self.volume).astype(DTYPES[self.dtype])
        coords_dtype = DTYPES[self.coords_dtype or ("float64" if self.dtype == "float64" else "float32")]
        return volume, self._coords(rng).astype(coords_dtype)

    def _coords(self, rng):
        sizes = zip(self.volume[1:3], self.volume[3:] if len(self.volume) == 5 else (1, self.volume[3]), strict=True)
        y, x = np.meshgrid(*(np.arange(count) * (size / count) for count, size in sizes), indexing="ij")
        grid = np.stack((x, y))[: self.coords[1]]
        coords = grid + self.noise * rng.standard_normal(self.coords)
        coords = np.round(coords) if self.whole else coords
        chosen = rng.random(self.coords) < self.strange
        return np.where(chosen, rng.choice(STRANGE, self.coords), coords)

    def cotangent(self, dtype=None):
        """Return a cotangent."""
        shape = volume_oracle.out_shape(*self.arrays(), **self.parameters)
        return np.random.default_rng(self.seed + 1).standard_normal(shape).astype(DTYPES[dtype or self.dtype])

    def problem(self):
        """Return the problem as the package's planners take it."""
        coords_dtype = self.arrays()[1].dtype.name
        return problem(parameters(len(self.volume), **self.parameters), self.volume, self.coords, coords_dtype)

    def of(self, dtype):
        """Return the same lookup in another dtype."""
        return replace(self, dtype=dtype, coords_dtype=None)


NAMED = {
    "one pixel": Case((1, 1, 1, 1, 1)),
    "RAFT": Case((1, 7, 11, 7, 11)),
    "a coarse level": Case((2, 7, 11, 3, 5), dict(patch_size=7)),
    "DROID's order": Case((3, 5, 6, 5, 6), dict(patch_size=(5, 3), order="dx", scale=0.25)),
    "even patch": Case((1, 5, 8, 6, 9), dict(patch_size=(2, 4))),
    "dilated patch": Case((1, 4, 7, 12, 17), dict(patch_size=(3, 4), dilation_patch=(2, 3))),
    "patch apart": Case((1, 4, 6, 30, 40), dict(patch_size=3, dilation_patch=11), noise=12.0),
    "one displacement": Case((2, 4, 5, 6, 7), dict(patch_size=1, dilation_patch=5)),
    "stereo": Case((2, 3, 37, 37)),
    "stereo, coarse": Case((1, 3, 21, 5), dict(patch_size=8, dilation_patch=2, scale=-2.0)),
    "slices of one pixel": Case((1, 4, 5, 1, 1), dict(patch_size=5)),
    "a slice of one column": Case((1, 3, 4, 9, 1), dict(patch_size=(1, 3))),
    "one row of queries": Case((1, 1, 50, 4, 6), dict(patch_size=(4, 3))),
    "one column of queries": Case((1, 50, 1, 4, 6), dict(patch_size=(3, 4))),
    "whole numbers": Case((1, 6, 7, 6, 7), dict(patch_size=5), whole=True),
    "strange numbers": Case((2, 6, 9, 6, 9), dict(patch_size=(3, 4)), strange=0.1),
    "strange numbers, stereo": Case((2, 6, 19, 19), dict(patch_size=5), strange=0.1),
    "wholly outside": Case((1, 5, 6, 4, 5), dict(patch_size=3), noise=1e4),
    "no entries": Case((0, 5, 6, 4, 5), dict(patch_size=3)),
    "narrow coords": Case((1, 5, 6, 5, 6), dict(patch_size=3), coords_dtype="float16"),
}


@st.composite
def lookups(draw, dtypes=tuple(DTYPES)):
    """Draw any parameters on small volumes, with coordinates of every kind."""

    def both(low, high):
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    one = draw(st.booleans())
    step = draw(st.sampled_from([1, 1, 2, 3]))
    patch_size, dilation = (draw(st.integers(1, 10)), step) if one else (both(1, 6), (step, draw(st.sampled_from([1, 3]))))
    size = (draw(st.integers(1, 20)),) if one else both(1, 14)
    return Case(
        (draw(st.integers(1, 2)), *both(1, 20), *size),
        dict(
            patch_size=patch_size,
            dilation_patch=dilation,
            order=draw(st.sampled_from(["dy", "dx"])),
            scale=draw(st.sampled_from([1.0, -0.3])),
        ),
        draw(st.sampled_from(dtypes)),
        noise=draw(st.sampled_from([0.0, 0.4, 3.0, 20.0])),
        whole=draw(st.booleans()),
        strange=draw(st.sampled_from([0.0, 0.05])),
        seed=draw(st.integers(0, 99)),
    )


def check_forward(case, variant):
    """Check the output against the oracle."""
    volume, coords = case.arrays()
    out = volume_lookup(volume, coords, **case.parameters, variant=variant)
    assert out.dtype == volume.dtype
    assert_close(out, volume_oracle.forward(volume, coords, **case.parameters))


def check_vjp(case, variant):
    """Check both gradients against the oracle."""
    volume, coords = case.arrays()
    g = case.cotangent()
    to_volume, to_coords = volume_lookup_vjp(g, volume, coords, **case.parameters, variant=variant, needs=BOTH)
    want_volume, want_coords = volume_oracle.vjp(g, volume, coords, **case.parameters)
    assert_close(to_volume, want_volume, name="gradient of the volume")
    assert_close(to_coords, want_coords, accumulator=volume.dtype, name="gradient of coords")
    assert [to_volume.dtype, to_coords.dtype] == [volume.dtype, coords.dtype]
