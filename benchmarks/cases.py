"""The problems that are timed: the shapes that people run, and those that a release must be fast on.

One row of `CASES` is one call of the operator. This module knows neither devices nor contestants.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np

from cupycorr._arguments import HIGH, HIGHEST
from cupycorr._correlation.problem import Axis, Problem, parameters, problem
from cupycorr._dtypes import ELEMENT_TYPES, named_dtype

PASSES = ("forward", "vjp")
TF32 = "tf32"  # float32 inputs whose products a GPU may round to TF32
DTYPES = (*ELEMENT_TYPES, TF32)


def array_dtype(dtype: str) -> np.dtype:
    """Return the NumPy dtype of arrays of an element type."""
    return named_dtype("float32" if dtype == TF32 else dtype)


def precision(dtype: str) -> str:
    """Return the precision of products of an element type."""
    return HIGH if dtype == TF32 else HIGHEST


@dataclass(frozen=True)
class Case:
    """A problem: its name, the inputs' shapes, and the keywords of `cupycorr.spatial_correlation_sample`."""

    name: str
    shape: tuple[int, int, int, int]
    keywords: dict[str, Any] = field(default_factory=dict)
    acceptance: bool = False
    size2: tuple[int, int] | None = None  # (H2, W2) where it differs from input1's

    @property
    def shape2(self) -> tuple[int, int, int, int]:
        """The shape of input2."""
        return (*self.shape[:2], *(self.size2 or self.shape[2:]))

    @cached_property
    def problem(self) -> Problem:
        """The checked problem with its geometry."""
        return problem(parameters(**self.keywords), self.shape, self.shape2)

    def useful_flops(self, which: str) -> int:
        """Return the operations on taps inside both images; a full vjp is two such sums, one for each gradient."""
        return self.problem.flops_inside() * {"forward": 1, "vjp": 2}[which]

    def bytes(self, dtype: str, which: str) -> int:
        """Return the bytes that a pass reads and writes, each counted once."""
        itemsize = array_dtype(dtype).itemsize
        moved = self.problem.bytes(itemsize, itemsize)  # a vjp reads a cotangent of the output's size
        return moved + (self.result_bytes(dtype, which) if which == "vjp" else 0)

    def result_bytes(self, dtype: str, which: str) -> int:
        """Return the bytes that a pass writes."""
        itemsize = array_dtype(dtype).itemsize
        return {"forward": self.problem.outputs * itemsize, "vjp": self.problem.bytes(itemsize, 0)}[which]

    def inputs(self, dtype: str, which: str) -> Inputs:
        """Return the same random inputs for every contestant."""
        random = np.random.default_rng(0)
        drawn = np.float64 if dtype == "float64" else np.float32

        def draw(shape: tuple[int, ...]) -> np.ndarray:
            return random.standard_normal(shape, drawn).astype(array_dtype(dtype), copy=False)

        images = draw(self.shape), draw(self.shape2)
        return Inputs(*images, draw(self.problem.out_shape) if which == "vjp" else None, precision(dtype))

    def small(self) -> Case:
        """Return the same parameters on images hardly larger than a window, for warming up."""
        batch, channels, *sizes = self.shape
        axes = (self.problem.vertical, self.problem.horizontal)
        sizes = [min(size, axis.dilation * (axis.kernel - 1) + 8) for size, axis in zip(sizes, axes, strict=True)]
        return replace(self, shape=(min(batch, 2), min(channels, 4), *sizes), size2=self.size2 and tuple(sizes))


@dataclass(frozen=True, slots=True)
class Inputs:
    """Both images, the cotangent of a vjp, and the precision of products."""

    input1: np.ndarray
    input2: np.ndarray
    cotangent: np.ndarray | None
    precision: str = HIGHEST


def positions_read(axis: Axis, which: int) -> tuple[int, int]:
    """Return how many positions a call reads of input 1 or 2 along an axis: those before the image's first, and all of them."""
    before = axis.padding - (axis.first_displacement if which == 2 else 0)
    reach = (axis.out - 1) * axis.stride + axis.dilation * (axis.kernel - 1) + 1
    return before, reach + (axis.step * (axis.patch - 1) if which == 2 else 0)


FLOWNETC = {"patch_size": 21, "dilation_patch": 2}
PWCNET = {"patch_size": 9}
LITEFLOWNET = {"patch_size": 7}
LITEFLOWNET_STRIDED = {"patch_size": 7, "dilation_patch": 2, "stride": 2}
LOCAL_ATTENTION = {"patch_size": 15}
EXTENSION_DEFAULT = {"kernel_size": 3, "patch_size": 3, "stride": 2, "padding": 1, "dilation": 2, "dilation_patch": 2}
PIV = {"kernel_size": 32, "patch_size": 25, "stride": 16}
PIV_DENSE = {"kernel_size": 32, "patch_size": 25}
STEREO_QUARTER = {"patch_size": (1, 32), "patch_offset": (0, -16)}  # disparities 31 to 0
STEREO = {"patch_size": (1, 64), "patch_offset": (0, -32)}  # disparities 63 to 0: displacements -63 to 0
TEMPLATE = {"kernel_size": 7, "patch_size": (84, 114), "patch_offset": (41, 56)}  # every position of 7 x 7 in 90 x 120

CASES = (
    Case("flownetc-headline", (4, 256, 48, 64), FLOWNETC, acceptance=True),
    Case("flownetc-chairs", (8, 256, 48, 64), FLOWNETC),
    Case("flownetc-sintel", (1, 256, 56, 128), FLOWNETC),
    Case("flownetc-kitti", (1, 256, 48, 160), FLOWNETC),
    Case("pwcnet-L6-sintel", (1, 196, 7, 16), PWCNET),
    Case("pwcnet-L5-sintel", (1, 128, 14, 32), PWCNET),
    Case("pwcnet-L4-sintel", (1, 96, 28, 64), PWCNET, acceptance=True),
    Case("pwcnet-L3-sintel", (1, 64, 56, 128), PWCNET),
    Case("pwcnet-L2-sintel", (1, 32, 112, 256), PWCNET),
    Case("pwcnet-L2-384x1024", (1, 32, 96, 256), PWCNET, acceptance=True),
    Case("pwcnet-L6-crop", (8, 196, 6, 7), PWCNET),
    Case("pwcnet-L5-crop", (8, 128, 12, 14), PWCNET),
    Case("pwcnet-L4-crop", (8, 96, 24, 28), PWCNET),
    Case("pwcnet-L3-crop", (8, 64, 48, 56), PWCNET),
    Case("pwcnet-L2-crop", (8, 32, 96, 112), PWCNET),
    Case("liteflownet-L6-sintel", (1, 192, 14, 32), LITEFLOWNET),
    Case("liteflownet-L5-sintel", (1, 128, 28, 64), LITEFLOWNET),
    Case("liteflownet-L4-sintel", (1, 96, 56, 128), LITEFLOWNET),
    Case("liteflownet-L3-sintel", (1, 64, 112, 256), LITEFLOWNET_STRIDED),
    Case("liteflownet-L2-sintel", (1, 64, 224, 512), LITEFLOWNET_STRIDED),
    Case("mmtracker-headline", (1, 512, 19, 34), PWCNET, acceptance=True),
    Case("mmtracker-608x1088-s8", (1, 192, 76, 136), PWCNET),
    Case("mmtracker-608x1088-s16", (1, 384, 38, 68), PWCNET),
    Case("mmtracker-608x1088-s32", (1, 768, 19, 34), PWCNET),
    Case("aot", (8, 32, 37, 66), LOCAL_ATTENTION),
    Case("deaot", (1, 128, 37, 66), LOCAL_ATTENTION),
    Case("neuflow", (1, 90, 56, 128), LITEFLOWNET),
    Case("extension-default", (16, 64, 100, 100), EXTENSION_DEFAULT),
    Case("piv", (1, 1, 369, 511), PIV, acceptance=True),
    Case("piv-dense", (1, 1, 369, 511), PIV_DENSE, acceptance=True),
    Case("stereo-quarter", (1, 32, 125, 186), STEREO_QUARTER),
    Case("stereo-full", (1, 32, 500, 741), STEREO),
    Case("template", (1, 8, 7, 7), TEMPLATE, size2=(90, 120)),
)


def select(wanted: str) -> list[Case]:
    """Return the cases of ``acceptance``, ``all``, or comma-separated names with wildcards, in the table's order.

    Raises
    ------
    ValueError
        A name matches no case.
    """
    chosen: list[str] = []
    for word in wanted.split(","):
        matching = [case.name for case in CASES if word == "all" or (word == "acceptance" and case.acceptance)]
        matching = matching or [case.name for case in CASES if fnmatchcase(case.name, word)]
        if not matching:
            raise ValueError(f"--cases must be 'acceptance', 'all' or names of cases (see --list), got {word!r}")
        chosen += matching
    return [case for case in CASES if case.name in chosen]
