"""Forward problems in phases: the arguments of ``forward_phases.cuh``, for every kernel that computes tiles of them.

Along each axis, output ``i`` and patch index ``m`` read input2 at ``i stride + m step``. With ``g = gcd(stride, step)``, outputs
``step / g`` apart and patch indices ``stride / g`` apart form a problem of its own in which every displacement is a whole number
of positions: a phase. Nothing here is launched or compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any, TypeVar

from ..._gpu.call import IMAGE_AXES, VOLUME_AXES, Call, Pointer, strides
from ..._gpu.device import Device
from ..._gpu.layout import Layout, Numbers, ceil_div, new_layout
from ..._gpu.limits import SAFE_INDEX
from ..._gpu.sum_parts import sum_parts
from ..._sharing import CachedProperty
from .axes import Line

COPIED, COLUMNWISE, CHANNELWISE = range(3)  # STAGING in forward_phases.cuh
STAGINGS = ("copied", "by columns", "by channels")  # their words

_LONGEST_TILE = 128  # a bound on the positions along an axis of a block's tiles


# Parameters of the kernels ----------------------------------------------------------------------------------------------------

_AXIS = (
    "size1",
    "size2",
    "out",
    "patch",
    "output_phase_stride",
    "patch_phase_stride",
    "origin1",
    "origin2",
    "stride",
    "step",
    "spacing",
    "tile_outputs",
    "output_step",
    "taps",
    "tap_step",
)
_GRID = tuple(f"{name}_{along}" for along in "yx" for name in ("tiles", "patch_tiles", "output_phases", "patch_phases"))
_IMAGE_TYPES = ("long long", "long long", "int", "int")

POINTERS = ("input1", "input2", "out")
# The scalars that kernels begin with.
SCALARS = {
    **dict.fromkeys(("tiles", "channels", "split_channels", "vector_width", "splits", *_GRID), "int"),
    **strides("input1", IMAGE_AXES, _IMAGE_TYPES),
    **strides("input2", IMAGE_AXES, _IMAGE_TYPES),
    **strides("out", ("split", *VOLUME_AXES), ("long long",) * 4 + ("int",) * 2),
    **{f"{name}_{along}": "int" for along in "yx" for name in _AXIS},
}


# Axes -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TiledAxis:
    """An axis in tile positions; the names are those of ``Axis`` in forward_phases.cuh.

    ``shift`` is the positions that a displacement moves by: 2 where both phases are in one block, else 1.
    """

    size1: int
    size2: int
    out: int
    patch: int
    output_phase_stride: int
    patch_phase_stride: int
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
    def output_phases(self) -> int:
        """The number of phases of the outputs."""
        return min(self.output_phase_stride, self.out)

    @property
    def patch_phases(self) -> int:
        """The number of phases of the patch indices."""
        return min(self.patch_phase_stride, self.patch)

    @property
    def phase_patch(self) -> int:
        """The patch indices of the largest phase."""
        return ceil_div(self.patch, self.patch_phase_stride)

    def tile_outputs(self, positions: int) -> int:
        """Return the outputs all of whose taps are in a tile of so many positions; none if it is below 1."""
        return (positions - 1 - self.tap_step * (self.taps - 1)) // self.output_step + 1

    def tiles(self, positions: int) -> int:
        """Return the tiles of so many positions that hold the outputs of the largest phase."""
        return ceil_div(ceil_div(self.out, self.output_phase_stride), self.tile_outputs(positions))

    def patch_tiles(self, displacements: int) -> int:
        """Return the tiles of so many displacements that hold the patch indices of the largest phase."""
        return ceil_div(self.phase_patch, displacements)

    def scalars(self, along: str, positions: int) -> dict[str, int]:
        """Return the kernel's arguments for tiles of so many positions; ``along`` is ``"y"`` or ``"x"``."""
        computed = {"tile_outputs": self.tile_outputs(positions)}
        return {f"{name}_{along}": computed[name] if name in computed else getattr(self, name) for name in _AXIS}


def why_not_tiled(line: Line, phases: int) -> str | None:
    """Return why blocks cannot take ``phases`` neighbouring phases of an axis, or None if they can."""
    _, step = _stride_and_step(line)
    if phases > 1:
        return None if step == phases else f"displacements are {step} pixels apart"
    if line.kernel > 1 and line.dilation % step:
        return f"a window's taps {line.dilation} pixels apart are not whole displacements of {step}"
    return None


def tiled_axis(line: Line, phases: int) -> TiledAxis:
    """Return the axis for blocks that take ``phases`` neighbouring phases; `why_not_tiled` must have returned None."""
    stride, step = _stride_and_step(line)
    common = gcd(stride, step)
    if phases > 1:
        output_phase_stride, patch_phase_stride, spacing, shift = 1, 1, 1, phases
        output_step, taps, tap_step = stride, line.kernel, line.dilation
    elif line.kernel == 1:
        output_phase_stride, patch_phase_stride, spacing, shift = step // common, stride // common, stride // common * step, 1
        output_step, taps, tap_step = 1, 1, 1
    else:
        output_phase_stride, patch_phase_stride, spacing, shift = step // common, 1, step, 1
        output_step, taps, tap_step = stride // common, line.kernel, line.dilation // step
    return TiledAxis(
        size1=line.size1,
        size2=line.size2,
        out=line.out,
        patch=line.patch,
        output_phase_stride=output_phase_stride,
        patch_phase_stride=patch_phase_stride,
        origin1=-line.padding,
        origin2=line.first - line.padding,
        stride=stride,
        step=step,
        spacing=spacing,
        output_step=output_step,
        taps=taps,
        tap_step=tap_step,
        shift=shift,
    )


def _stride_and_step(line: Line) -> tuple[int, int]:
    """Return the stride and the step; one that has no effect is chosen so that there is one phase."""
    stride = None if line.out == 1 else line.stride
    step = None if line.patch == 1 else line.step or None
    return stride or step or 1, step or (stride if line.kernel == 1 else 1) or 1


@dataclass(frozen=True)
class Arrays:
    """The layouts of input1, input2 and the output."""

    input1: Layout
    input2: Layout
    out: Layout

    @CachedProperty
    def sum_bytes(self) -> int:
        """The size of a sum in bytes."""
        return self.input1.accumulator.itemsize

    @CachedProperty
    def stored(self) -> str:
        """The dtype that the kernel stores: the output's, unless it has no build for that."""
        out = self.out.dtype
        return out if out in (self.input1.dtype, self.input1.accumulator.name) else self.input1.accumulator.name


# Tilings ----------------------------------------------------------------------------------------------------------------------

_T = TypeVar("_T")


def tile_table(tile: Callable[..., _T], columns: str, *rows: Sequence[Any]) -> tuple[_T, ...]:
    """Return the tiles of a table whose columns have these names; columns at the end of a row may be left to defaults."""
    names = columns.split()
    return tuple(tile(**dict(zip(names, row, strict=False))) for row in rows)


@dataclass(frozen=True, slots=True)
class SplitTiling:
    """A plan for a problem whose blocks take tiles of it.

    With ``splits`` above 1, or a dtype that the kernel does not store, partial sums over splits of the channels go through the
    workspace (split-K).
    """

    vertical: TiledAxis
    horizontal: TiledAxis
    arrays: Arrays
    splits: int

    @property
    def needs_partial_sums(self) -> bool:
        """True if the kernel does not store the output itself."""
        return self.splits > 1 or self.arrays.stored != self.arrays.out.dtype

    @property
    def partial_sums(self) -> Layout | None:
        """The volume of partial sums, (splits, B, PH, PW, oH, oW); None if the kernel stores the output itself."""
        if not self.needs_partial_sums:
            return None
        return new_layout(self.arrays.input1.accumulator.name, (self.splits, *self.arrays.out.shape))

    @property
    def workspace(self) -> int:
        """The bytes of the partial sums."""
        partial = self.partial_sums
        return 0 if partial is None else partial.shape[0] * partial.strides[0] * partial.itemsize

    @property
    def stored(self) -> str:
        """The dtype that the kernel stores."""
        return self.arrays.stored if self.partial_sums is None else self.arrays.input1.accumulator.name

    def calls(self, pointers: Sequence[Pointer], scale: float, workspace: Pointer) -> Iterator[Call]:
        """Yield the launches from input1 and input2 to the output; partial sums, if there are any, are at ``workspace``."""
        input1, input2, out = pointers
        partial = self.partial_sums
        if partial is None:
            yield self._call((input1, input2, out), (0, *self.arrays.out.strides), scale)
        else:
            yield self._call((input1, input2, workspace), partial.strides, 1.0)
            yield sum_parts((partial, workspace), (self.arrays.out, out), scale)

    @property
    def parts(self) -> int:
        """The blocks that have the same outputs at different displacements. They follow each other in the grid."""
        y, x = self.vertical, self.horizontal
        return self.patch_tiles_y * y.patch_phases * x.patch_tiles(self.columns[1]) * x.patch_phases

    @property
    def finished_tiles(self) -> int:
        """The tiles of displacements for the same outputs, each of which a block finishes by itself."""
        return self.parts

    def _call(self, pointers: tuple[Pointer, ...], out_strides: Numbers, scale: float) -> Call:
        """Return the launch that stores to a volume (splits, B, PH, PW, oH, oW) of such strides."""
        raise NotImplementedError

    def seconds(self, device: Device) -> float:
        """Return the seconds that the cost model expects."""
        raise NotImplementedError

    @property
    def split_channels(self) -> int:
        """The channels of a split."""
        return ceil_div(self.arrays.input1.shape[1], self.splits)

    @property
    def rows(self) -> Numbers:
        """The positions and patch indices of a block along y."""
        raise NotImplementedError

    @property
    def columns(self) -> Numbers:
        """The positions and patch indices of a block along x."""
        raise NotImplementedError

    @property
    def patch_tiles_y(self) -> int:
        """The blocks for the patch indices of one phase along y."""
        return self.vertical.patch_tiles(self.rows[1])

    @property
    def blocks(self) -> int:
        """The tiles of positions and displacements, for each phase, sample and split of the channels."""
        return self.blocks_of_a_split * self.splits

    @property
    def blocks_of_a_split(self) -> int:
        """The blocks for one split of the channels."""
        return prod(self.grid) * self.arrays.out.shape[0]

    @property
    def grid(self) -> Numbers:
        """Blocks along each axis: of positions, of patch indices, and of the phases of either."""
        y, x = self.vertical, self.horizontal
        along_y = (y.tiles(self.rows[0]), self.patch_tiles_y, y.output_phases, y.patch_phases)
        return (*along_y, x.tiles(self.columns[0]), x.patch_tiles(self.columns[1]), x.output_phases, x.patch_phases)

    def scalars(self, vector_width: int, out_strides: Numbers) -> Mapping[str, int]:
        """Return the arguments named by `SCALARS`."""
        arrays = self.arrays
        return {
            "tiles": self.blocks,
            "channels": arrays.input1.shape[1],
            "split_channels": self.split_channels,
            "vector_width": vector_width,
            "splits": self.splits,
            **dict(zip(_GRID, self.grid, strict=True)),
            **strides("input1", IMAGE_AXES, arrays.input1.strides),
            **strides("input2", IMAGE_AXES, arrays.input2.strides),
            **strides("out", ("split", *VOLUME_AXES), out_strides),
            **self.vertical.scalars("y", self.rows[0]),
            **self.horizontal.scalars("x", self.columns[0]),
        }


def fastest(tilings: Iterable[SplitTiling], device: Device, room: int) -> SplitTiling | None:
    """Return the tiling that the cost model expects to be the fastest, among those that fit.

    It is None if every tiling has more blocks than 32-bit integers count, or more than ``room`` bytes of partial sums.
    """
    fitting = (tiling for tiling in tilings if tiling.workspace <= room and tiling.blocks < SAFE_INDEX)
    return min(fitting, key=lambda tiling: tiling.seconds(device), default=None)


def why_out_of_reach(vertical: Line, horizontal: Line, arrays: Arrays) -> str | None:
    """Return why 32-bit integers do not hold the positions and offsets of a problem's tiles, or None if they do."""
    farthest = max(vertical.reach, horizontal.reach)
    if 4 * farthest >= SAFE_INDEX:
        return f"positions of up to {farthest} pixels"
    layouts = (arrays.input1, arrays.input2, arrays.out)
    planes = [layout.resized(*(1,) * (len(layout.shape) - 2)).extent for layout in layouts]
    if max(planes) >= SAFE_INDEX:
        return f"elements of one plane are up to {max(planes)} apart"
    apart = [1 if why_not_tiled(line, 1) else tiled_axis(line, 1).spacing for line in (vertical, horizontal)]
    if _LONGEST_TILE * max(apart) >= SAFE_INDEX:
        return f"a tile's positions are {max(apart)} pixels apart"
    columns = apart[1] * max(abs(layout.strides[-1]) for layout in layouts)
    return f"a tile's columns are {columns} elements apart" if _LONGEST_TILE * columns >= SAFE_INDEX else None
