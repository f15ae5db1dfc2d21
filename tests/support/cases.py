"""The problems that the suite runs: named cases, and hypothesis strategies that draw more."""

from dataclasses import dataclass, field, replace

import ml_dtypes
import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from oracle import output_size, pair

from cupycorr._correlation.problem import parameters, problem

DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}
CPU_VARIANTS = ("simd", "blas", "reference")  # those that compute every problem
GPU_VARIANTS = ("box", "mma", "tiled", "direct")
EVERY_VARIANT = (*CPU_VARIANTS, "unpacked", *GPU_VARIANTS)


@dataclass(frozen=True)
class Case:
    """A problem: shapes, parameters, dtype, and the seed of its arrays."""

    shape1: tuple
    shape2: tuple
    parameters: dict = field(hash=False)
    dtype: str = "float32"
    seed: int = 0

    def out_shape(self):
        p = self.parameters
        names = ("kernel_size", "stride", "padding", "dilation")
        defaults = (1, 1, 0, 1)
        each = [pair(p.get(name, default)) for name, default in zip(names, defaults, strict=True)]
        sizes = tuple(output_size(self.shape1[2 + axis], *(value[axis] for value in each)) for axis in (0, 1))
        groups = (p["groups"],) if p.get("groups", 1) > 1 else ()
        return (self.shape1[0], *groups, *pair(p.get("patch_size", 1)), *sizes)

    def problem(self):
        """Return the problem as the package's planners take it."""
        return problem(parameters(**self.parameters), self.shape1, self.shape2)

    def arrays(self):
        """Return input1, input2 and a cotangent."""
        rng = np.random.default_rng(self.seed)
        shapes = self.shape1, self.shape2, self.out_shape()
        return tuple(rng.standard_normal(shape).astype(DTYPES[self.dtype]) for shape in shapes)


def same(shape, dtype="float32", **parameters):
    return Case(shape, shape, parameters, dtype)


NAMED = {
    "one pixel": same((1, 1, 1, 1)),
    "flownet-like": same((2, 40, 10, 14), patch_size=21, dilation_patch=2),
    "pwcnet-like": same((1, 131, 6, 34), patch_size=9),
    "one-sided stereo": same((1, 9, 4, 70), patch_size=(1, 33), patch_offset=(0, -16)),
    "template in a larger image": Case(
        (1, 3, 5, 6), (1, 3, 20, 30), dict(kernel_size=(5, 6), patch_size=(16, 25), patch_offset=(7, 12))
    ),
    "even patch": same((1, 4, 9, 9), patch_size=(2, 4), dilation_patch=2),
    "window, stride and dilation": same((2, 3, 19, 23), kernel_size=3, patch_size=5, stride=2, padding=1, dilation=2),
    "window of many taps": same((1, 1, 12, 44), kernel_size=(5, 16), patch_size=(1, 3)),
    "windows apart": same((1, 5, 31, 33), kernel_size=2, patch_size=3, stride=7),
    "stride beyond the patch": same((1, 6, 25, 27), patch_size=2, stride=5),
    "stride and step coprime": same((1, 6, 25, 27), patch_size=5, stride=2, dilation_patch=3),
    "negative padding": same((1, 6, 12, 15), patch_size=3, padding=(-2, -4)),
    "search wholly outside": same((1, 6, 5, 6), patch_size=3, patch_offset=(9, -20)),
    "scale": same((1, 6, 8, 9), patch_size=3, scale=-0.125),
    "groups": same((2, 12, 9, 21), patch_size=5, groups=3),
    "groups of one channel, a window": same((2, 4, 9, 12), kernel_size=3, patch_size=3, stride=2, groups=4),
    "descending displacements": same((2, 6, 11, 18), patch_size=(4, 5), dilation_patch=(-2, -1), patch_offset=(1, -3)),
    "groups, descending along x": same((2, 6, 7, 18), patch_size=(1, 8), dilation_patch=(1, -1), patch_offset=(0, -4), groups=2),
    "empty batch": same((0, 3, 8, 9), patch_size=3),
    "no channels": same((2, 0, 8, 9), patch_size=3),
    "single row": same((2, 7, 1, 40), patch_size=(3, 9)),
    "single column": same((2, 7, 40, 1), patch_size=(9, 3)),
}


@st.composite
def problems(draw, most=14, dtypes=tuple(DTYPES)):
    """Draw any parameters on small images."""

    def both(low, high):
        return draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    parameters = dict(
        kernel_size=draw(st.one_of(st.just((1, 1)), st.tuples(st.integers(1, 5), st.integers(1, 5)))),
        patch_size=both(1, 6),
        stride=both(1, 4),
        padding=both(-1, 3),
        dilation=both(1, 3),
        dilation_patch=tuple(draw(st.sampled_from([1, 2, 3, -1, -2])) for _ in range(2)),
        scale=draw(st.sampled_from([1.0, -0.3])),
    )
    sizes1 = both(1, most)
    sizes2 = sizes1
    if draw(st.booleans()):
        parameters["patch_offset"] = both(-4, 4)
        sizes2 = both(1, most)
    batch, channels = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 4, 5, 7, 17]))
    if channels in (2, 4) and draw(st.booleans()):
        parameters["groups"] = 2
    case = Case(
        (batch, channels, *sizes1),
        (batch, channels, *sizes2),
        parameters,
        draw(st.sampled_from(dtypes)),
        draw(st.integers(0, 99)),
    )
    assume(min(case.out_shape()) > 0)
    return case


def ascending(case):
    """Return a case without groups, with its displacements in ascending order, as planners of kernels and reductions take it."""
    steps = pair(case.parameters.get("dilation_patch", 1))
    parameters = {name: value for name, value in case.parameters.items() if name != "groups"}
    return replace(case, parameters=parameters | {"dilation_patch": tuple(map(abs, steps))})


@st.composite
def wide_problems(draw):
    """Draw long rows or columns and many channels, which cross the borders of tiles, slabs, chains of sums and threads."""
    long, short = draw(st.integers(60, 130)), draw(st.integers(1, 4))
    patch_long, patch_short = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    horizontal = draw(st.booleans())

    def placed(on_long, on_short):
        return (on_short, on_long) if horizontal else (on_long, on_short)

    parameters = dict(
        kernel_size=placed(draw(st.sampled_from([1, 1, 3, 9])), 1),
        patch_size=placed(patch_long, patch_short),
        stride=placed(draw(st.integers(1, 3)), 1),
        dilation_patch=placed(draw(st.integers(1, 3)), 1),
        padding=draw(st.integers(0, 1)),
    )
    channels = draw(st.sampled_from([1, 3, 16, 129, 260]))
    shape = (draw(st.integers(1, 2)), channels, *placed(long, short))
    return Case(shape, shape, parameters, draw(st.sampled_from(["float16", "float32", "float64"])), draw(st.integers(0, 99)))
