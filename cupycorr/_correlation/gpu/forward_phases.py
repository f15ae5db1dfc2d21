"""Forward problems in phases: what ``phases.cuh`` is called with, for every kernel that answers tiles of them.

Along each axis, output ``i`` and patch index ``m`` meet input2 at ``i stride + m step``. With ``g = gcd(stride, step)``, outputs
``step / g`` apart and patch indices ``stride / g`` apart form a problem of its own in which every displacement is a whole number
of positions: a phase. Nothing here is launched or compiled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import gcd, prod

import numpy as np

from ..._gpu.call import Call, Pointer
from ..._gpu.device import Device
from ..._gpu.layout import Layout, Numbers, ceil_div, new_layout
from ..._gpu.sum_parts import sum_parts
from .axes import Line

SAFE = 2**30  # of everything that a kernel counts in 32 bits
COPIED, COLUMNWISE, CHANNELWISE = range(3)  # STAGING in phases.cuh

_LONGEST_TILE = 128  # positions along an axis of a block's tiles, of whatever shape


# Axes -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TiledAxis:
    """An axis in tile positions; the names are those of ``Axis`` in forward_tiled.cu.

    ``shift`` is the positions that a displacement moves by: 2 where both phases are in one block, else 1.
    """

    size1: int
    size2: int
    out: int
    patch: int
    outputs_apart: int
    patches_apart: int
    origin1: int
    origin2: int
    stride: int
    step: int
    spacing: int
    output_step: int
    taps: int
    tap_step: int
    shift: int

    @property
    def residues(self) -> int:
        """Phases of the outputs."""
        return min(self.outputs_apart, self.out)

    @property
    def rests(self) -> int:
        """Phases of the patch indices."""
        return min(self.patches_apart, self.patch)

    def outputs_of(self, positions: int) -> int:
        """Outputs all of whose taps are among so many positions; below 1 there is none."""
        return (positions - 1 - self.tap_step * (self.taps - 1)) // self.output_step + 1

    def tiles(self, positions: int) -> int:
        """Tiles of so many positions that hold the outputs of the largest phase."""
        return ceil_div(ceil_div(self.out, self.outputs_apart), self.outputs_of(positions))

    def patch_tiles(self, displacements: int) -> int:
        """Tiles of so many displacements that hold the patch indices of the largest phase."""
        return ceil_div(ceil_div(self.patch, self.patches_apart), displacements)

    def numbers(self, positions: int) -> Numbers:
        """The kernel's arguments for tiles of so many positions."""
        sizes = (self.size1, self.size2, self.out, self.patch, self.outputs_apart, self.patches_apart, self.origin1, self.origin2)
        return (
            *sizes,
            self.stride,
            self.step,
            self.spacing,
            self.outputs_of(positions),
            self.output_step,
            self.taps,
            self.tap_step,
        )


def tiled_axis(line: Line, phases: int) -> TiledAxis | str:
    """An axis for blocks that take ``phases`` neighbouring phases; or the reason why there is none."""
    stride, step = _only_what_matters(line)
    common = gcd(stride, step)
    ends = (line.size1, line.size2, line.out, line.patch)
    origins = (-line.padding, line.first - line.padding, stride, step)
    if phases > 1:
        if step != phases:
            return f"displacements are {step} pixels apart"
        return TiledAxis(*ends, 1, 1, *origins, 1, stride, line.kernel, line.dilation, phases)
    if line.kernel == 1:
        return TiledAxis(*ends, step // common, stride // common, *origins, stride // common * step, 1, 1, 1, 1)
    if line.dilation % step:
        return f"a window's taps {line.dilation} pixels apart are not whole displacements of {step}"
    return TiledAxis(*ends, step // common, 1, *origins, step, stride // common, line.kernel, line.dilation // step, 1)


def _only_what_matters(line: Line) -> tuple[int, int]:
    """Stride and step; one that nothing is counted by is chosen so that there is one phase."""
    stride = None if line.out == 1 else line.stride
    step = None if line.patch == 1 else line.step or None
    return stride or step or 1, step or (stride if line.kernel == 1 else 1) or 1


@dataclass(frozen=True, slots=True)
class Arrays:
    """The layouts of input1, input2 and the output."""

    input1: Layout
    input2: Layout
    out: Layout

    @property
    def sum_bytes(self) -> int:
        """Bytes of a sum."""
        return self.input1.accumulator.itemsize

    @property
    def stored(self) -> str:
        """dtype that the kernel stores: the output's, unless it has no build for that."""
        out = self.out.dtype
        return out if out in (self.input1.dtype, self.input1.accumulator.name) else self.input1.accumulator.name


# Tilings ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SplitTiling:
    """A way to answer a problem with blocks that take tiles of it.

    With ``splits`` above 1, or a dtype that the kernel does not store, sums of parts of the channels go through the workspace.
    """

    vertical: TiledAxis
    horizontal: TiledAxis
    arrays: Arrays
    splits: int

    @property
    def parts(self) -> Layout | None:
        """The volume of the parts, (splits, B, PH, PW, oH, oW); None if there is nothing to add."""
        if self.splits == 1 and self.arrays.stored == self.arrays.out.dtype:
            return None
        return new_layout(self.arrays.input1.accumulator.name, (self.splits, *self.arrays.out.shape))

    @property
    def workspace(self) -> int:
        """Bytes of the parts' volume."""
        parts = self.parts
        return 0 if parts is None else parts.shape[0] * parts.strides[0] * parts.itemsize

    def calls(self, pointers: Sequence[Pointer], scale: float, workspace: Pointer) -> Iterator[Call]:
        """The launches from input1 and input2 to the output; the parts' volume, if there is one, is at ``workspace``."""
        input1, input2, out = pointers
        parts = self.parts
        if parts is None:
            yield self._call((input1, input2, out), (0, *self.arrays.out.strides), scale)
        else:
            yield self._call((input1, input2, workspace), parts.strides, 1.0)
            yield sum_parts((parts, workspace), (self.arrays.out, out), scale)

    def _call(self, pointers: tuple[Pointer, ...], out_strides: Numbers, scale: float) -> Call:
        """The launch that stores to a volume (splits, B, PH, PW, oH, oW) of such strides."""
        raise NotImplementedError

    def seconds(self, device: Device) -> float:
        """What it takes by count."""
        raise NotImplementedError

    @property
    def split_channels(self) -> int:
        """Channels of a part."""
        return ceil_div(self.arrays.input1.shape[1], self.splits)

    @property
    def rows(self) -> Numbers:
        """Positions and patch indices of a block along y."""
        raise NotImplementedError

    @property
    def columns(self) -> Numbers:
        """Positions and patch indices of a block along x."""
        raise NotImplementedError

    @property
    def patch_tiles_y(self) -> int:
        """Blocks for the patch indices of one phase along y."""
        return self.vertical.patch_tiles(self.rows[1])

    @property
    def blocks(self) -> int:
        """Tiles of positions and displacements, for each phase, sample and part of the channels."""
        return prod(self._grid) * self.arrays.out.shape[0] * self.splits

    @property
    def _grid(self) -> Numbers:
        """Blocks along each axis: of positions, of patch indices, and of the phases of either."""
        y, x = self.vertical, self.horizontal
        along_y = (y.tiles(self.rows[0]), self.patch_tiles_y, y.residues, y.rests)
        return (*along_y, x.tiles(self.columns[0]), x.patch_tiles(self.columns[1]), x.residues, x.rests)

    def _scalars(self, piece: int, out_strides: Numbers) -> list[np.generic]:
        """The kernel's numbers that phases.cuh names, and those before them."""
        small = np.int32
        counts = (self.blocks, self.arrays.input1.shape[1], self.split_channels, piece, self.splits)
        scalars = [*map(small, (*counts, *self._grid))]
        for image in (self.arrays.input1, self.arrays.input2):
            scalars += [*map(np.int64, image.strides[:2]), *map(small, image.strides[2:])]
        scalars += [*map(np.int64, out_strides[:4]), *map(small, out_strides[4:])]
        return [*scalars, *map(small, (*self.vertical.numbers(self.rows[0]), *self.horizontal.numbers(self.columns[0])))]


def least(tilings: Iterable[SplitTiling], device: Device, room: int) -> SplitTiling | str:
    """The one that takes least by count and no more than ``room`` bytes for its parts, or the reason why there is none."""
    found = (tiling for tiling in tilings if tiling.workspace <= room and tiling.blocks < SAFE)
    best = min(found, key=lambda tiling: tiling.seconds(device), default=None)
    return best or f"more than {SAFE} blocks, or sums of parts of the channels in more than {room} bytes"


def out_of_reach(vertical: Line, horizontal: Line, arrays: Arrays) -> str | None:
    """None, or why 32 bits do not hold what tiles of a problem are counted in."""
    farthest = max(vertical.reach, horizontal.reach)
    if 4 * farthest >= SAFE:
        return f"positions of up to {farthest} pixels"
    layouts = (arrays.input1, arrays.input2, arrays.out)
    planes = [layout.resized(*(1,) * (len(layout.shape) - 2)).extent for layout in layouts]
    if max(planes) >= SAFE:
        return f"elements of one plane lie up to {max(planes)} apart"
    apart = [1 if isinstance(axis, str) else axis.spacing for axis in (tiled_axis(line, 1) for line in (vertical, horizontal))]
    if _LONGEST_TILE * max(apart) >= SAFE:
        return f"a tile's positions are {max(apart)} pixels apart"
    columns = apart[1] * max(abs(layout.strides[-1]) for layout in layouts)
    return f"a tile's columns lie {columns} elements apart" if _LONGEST_TILE * columns >= SAFE else None
