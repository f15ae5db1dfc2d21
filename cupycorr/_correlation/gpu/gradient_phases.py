"""Gradients in phases: the arguments of ``gradient_phases.cuh``, for every kernel that computes tiles of them.

The gradients of windows of one pixel, of both inputs in one launch, where the stride divides the step between displacements. A
long sum, or one of a problem too small to fill the device, is split: blocks of their own make partial sums and sum_parts.cu adds
them up, in the same order every time. The kernels and their tiles are in modules of their own.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, ClassVar

from ..._dtypes import ELEMENT_TYPES, LONGEST_CHAIN
from ..._gpu.call import IMAGE_AXES, NOWHERE, VOLUME_AXES, Array, Call, Pointer, Signature, strides
from ..._gpu.costs import LAUNCH, machine
from ..._gpu.device import Device
from ..._gpu.layout import Layout, ceil_div, new_layout
from ..._gpu.limits import ALIGNMENT, SAFE_INDEX, SAFE_POSITION, WORKSPACE_BYTES
from ..._gpu.plan import Plan
from ..._gpu.sum_parts import sum_parts
from .axes import Line
from .sums import GradientSum, Operand

# Parameters of the kernels ----------------------------------------------------------------------------------------------------

_AXIS = ("size1", "size2", "patch", "first", "step", "stride", "padding", "out")
_GRADIENT_AXES = ("split", *IMAGE_AXES)

POINTERS = ("cotangent", "input1", "input2", "gradient1", "gradient2")
# The scalars that kernels begin with.
SCALARS = {
    **strides("cotangent", VOLUME_AXES, "long long"),
    **strides("input1", IMAGE_AXES, "long long"),
    **strides("input2", IMAGE_AXES, "long long"),
    **strides("gradient1", _GRADIENT_AXES, "long long"),
    **strides("gradient2", _GRADIENT_AXES, "long long"),
    **dict.fromkeys(("tiles", "tiles1", "channels"), "int"),
    **{f"{name}_{along}": "int" for along in "yx" for name in _AXIS},
    **dict.fromkeys(("row_splits", "split_rows", "column_splits", "split_columns"), "int"),
}


# Problems ---------------------------------------------------------------------------------------------------------------------


def why_not(vertical: Line, horizontal: Line, cotangent: Layout, operands: Sequence[Operand], unit: str) -> str | None:
    """Return why gradients cannot be computed in phases, or None if they can; ``unit`` names what would compute them."""
    images = [layout for operand in operands for layout, _ in (operand.other, operand.result)]
    axes = [normal(axis) for axis in (vertical, horizontal)]
    names = {layout.dtype for layout in images}
    for axis in axes:
        if axis.kernel != 1:
            return f"a window of {vertical.kernel} x {horizontal.kernel} pixels, {unit} are for windows of one pixel"
        if axis.step % axis.stride:
            return f"stride {axis.stride} does not divide dilation_patch {axis.step}"
    if len(names) != 1 or cotangent.dtype not in {each for layout in images for each in (layout.dtype, layout.accumulator.name)}:
        return f"no kernel takes a cotangent in {cotangent.dtype} to gradients in {' and '.join(sorted(names))}"
    if max(axis.reach for axis in axes) >= SAFE_POSITION:
        return f"positions of {SAFE_POSITION} pixels and more"
    if max(_plane_extent(layout) for layout in (cotangent, *images)) >= SAFE_INDEX:
        return f"a plane of {SAFE_INDEX} elements and more"
    return None


def why_too_large(tilings: Iterable[Tiling]) -> str | None:
    """Return that one of these has more blocks than 32-bit integers count, or None."""
    most = max(tiling.blocks for tiling in tilings)
    return f"{SAFE_INDEX} blocks and more" if most >= SAFE_INDEX else None


def normal(axis: Line) -> Line:
    """Return the axis with a step that is not 0, which is the stride where there is one displacement."""
    if axis.step == 0:  # the images do not overlap at any displacement
        axis = replace(axis, patch=1)
    return replace(axis, step=axis.stride) if axis.patch == 1 else axis


def phases_together(horizontal: Line) -> int:
    """Return the phases of columns of a block: both if displacements are 2 apart and the stride is 1, so that rows stay whole."""
    return 2 if horizontal.step == 2 and horizontal.stride == 1 else 1


def _plane_extent(layout: Layout) -> int:
    return sum(abs(stride) * (size - 1) for size, stride in zip(layout.shape[-2:], layout.strides[-2:], strict=True))


# Tilings ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Splits:
    """A division of the displacements among blocks: the number of splits, and the most displacements of each."""

    row_splits: int
    rows: int
    column_splits: int
    columns: int

    @property
    def count(self) -> int:
        """The partial sums of an element."""
        return self.row_splits * self.column_splits


@dataclass(frozen=True, slots=True)
class Tiling:
    """A plan for a problem, and what the cost model expects of it. Each kernel has a class of its own.

    Attributes
    ----------
    tile
        The thread block tile, with its ``phases`` of columns, ``channels`` and ``rows``.
    splits
        The division of the displacements among blocks.
    vertical, horizontal
        The axes, `normal`.
    operands
        The gradients.
    """

    signature: ClassVar[Signature]
    where: ClassVar[str] = "in shared memory"  # the operands of the products

    tile: Any
    splits: Splits
    vertical: Line
    horizontal: Line
    operands: Sequence[Operand]

    @property
    @abstractmethod
    def columns(self) -> int:
        """The columns of a block, of all its phases."""

    @property
    @abstractmethod
    def threads(self) -> int:
        """The threads of a block."""

    @property
    @abstractmethod
    def shared(self) -> int:
        """The bytes of shared memory of a block."""

    @abstractmethod
    def macros(self, cotangent: str, result: str) -> Mapping[str, object]:
        """Return the macros of the build for these element types."""

    def more_scalars(self) -> Mapping[str, int]:
        """Return the arguments that only this kernel has."""
        return {}

    @abstractmethod
    def working(self, device: Device) -> float:
        """Return the seconds that the blocks are expected to take."""

    @property
    def dtype(self) -> str:
        """The dtype of the inputs."""
        return self.operands[0].other[0].dtype

    @property
    def how(self) -> str:
        """The plan in words."""
        split = f", each sum split in {self.splits.count}" if self.splits.count > 1 else ""
        return f"tiles of {self.tile.channels} channels x {self.tile.rows} x {self.columns} pixels {self.where}{split}"

    @property
    def blocks(self) -> int:
        """The blocks of the launch."""
        return sum(map(self.blocks_of, self.operands))

    def blocks_of(self, operand: Operand) -> int:
        """Return the blocks that compute one operand's gradient."""
        batch, channels, height, width = operand.result[0].shape
        rows = tiles_along(height, self.vertical.step, self.tile.rows)
        columns = tiles_along(width, self.horizontal.step // self.tile.phases, self.columns)
        return self.splits.count * batch * ceil_div(channels, self.tile.channels) * rows * columns

    def partial_sums(self, workspace: Pointer) -> tuple[list[Array], int]:
        """Return the volumes of the operands' partial sums in the workspace, and the bytes of all of them."""
        volumes, size = [], 0
        for operand in self.operands if self.splits.count > 1 else ():
            result = operand.result[0]
            volume = new_layout(result.accumulator.name, (self.splits.count, *result.shape))
            volumes.append((volume, workspace.at(size)))
            size += ceil_div(volume.shape[0] * volume.strides[0] * volume.itemsize, ALIGNMENT) * ALIGNMENT
        return volumes, size

    def calls(self, cotangent: Array, scale: float, workspace: Pointer) -> Iterator[Call]:
        """Yield the launches, in order."""
        volumes, _ = self.partial_sums(workspace)
        if not volumes:
            yield self._call(cotangent, [operand.result for operand in self.operands], scale)
            return
        yield self._call(cotangent, volumes, 1.0)
        for volume, operand in zip(volumes, self.operands, strict=True):
            yield sum_parts(volume, operand.result, scale)

    def _call(self, cotangent: Array, targets: Sequence[Array], scale: float) -> Call:
        """Return the launch of the kernel that stores to ``targets``, which may have an axis of splits."""
        unused = (Layout(self.dtype, (1,) * 4, (0,) * 4), NOWHERE)
        arrays = dict.fromkeys(POINTERS, unused) | {"cotangent": cotangent}
        for operand, target in zip(self.operands, targets, strict=True):
            arrays[f"input{3 - operand.number}"] = operand.other
            arrays[f"gradient{operand.number}"] = target
        gradient_strides: dict[str, int] = {}
        for name in ("gradient1", "gradient2"):
            each = arrays[name][0].strides
            gradient_strides |= strides(name, _GRADIENT_AXES, (0,) * (len(_GRADIENT_AXES) - len(each)) + each)
        return self.signature.call(
            macros=self.macros(cotangent[0].dtype, targets[0][0].dtype),
            pointers={name: pointer for name, (_, pointer) in arrays.items()},
            scalars={
                **strides("cotangent", VOLUME_AXES, cotangent[0].strides),
                **strides("input1", IMAGE_AXES, arrays["input1"][0].strides),
                **strides("input2", IMAGE_AXES, arrays["input2"][0].strides),
                **gradient_strides,
                "tiles": self.blocks,
                "tiles1": sum(self.blocks_of(operand) for operand in self.operands if operand.number == 1),
                "channels": self.operands[0].other[0].shape[1],
                **{f"{name}_y": getattr(self.vertical, name) for name in _AXIS},
                **{f"{name}_x": getattr(self.horizontal, name) for name in _AXIS},
                "row_splits": self.splits.row_splits,
                "split_rows": self.splits.rows,
                "column_splits": self.splits.column_splits,
                "split_columns": self.splits.columns,
                **self.more_scalars(),
                "scale": scale,
            },
            accumulator=ELEMENT_TYPES[self.dtype].accumulator_dtype,
            blocks=self.blocks,
            threads=self.threads,
            shared=self.shared,
        )

    def seconds(self, device: Device) -> float:
        """Return the seconds that it is expected to take, with the launches and the additions of partial sums."""
        volumes, size = self.partial_sums(NOWHERE)
        rates = machine(device, ELEMENT_TYPES[self.dtype].accumulator)
        return LAUNCH + self.working(device) + len(volumes) * LAUNCH + rates.moved(2 * size)


def tiles_along(size: int, step: int, length: int) -> int:
    """Return the tiles of an axis: as many of each phase as the longest has."""
    return min(size, step) * ceil_div(ceil_div(size, step), length)


# Plans ------------------------------------------------------------------------------------------------------------------------


def plan(
    algorithm: str,
    tilings: Callable[[Line, Line, Sequence[Operand]], Iterator[Tiling]],
    gradients: GradientSum,
    workspace: Pointer,
) -> Plan:
    """Return the fastest plan among the tilings of a module; its `why_not` must have returned None."""
    operands = [operand for operand in gradients.operands if math.prod(operand.result[0].shape)]
    device = gradients.device
    if not operands:
        return Plan(algorithm, "nothing to do", 0.0, workspace.offset, tuple, device.index)
    found = tilings(normal(gradients.vertical), normal(gradients.horizontal), operands)
    best = min(_that_fit(found, device), key=lambda tiling: tiling.seconds(device))
    used = replace(best, operands=[operand for operand in operands if operand.needed])
    calls = partial(used.calls, gradients.cotangent, gradients.scale, workspace)
    size = workspace.offset + used.partial_sums(workspace)[1]
    return Plan(algorithm, best.how, best.seconds(device), size, calls, device.index)


def _that_fit(tilings: Iterator[Tiling], device: Device) -> Iterator[Tiling]:
    """Yield the tilings that fit shared memory; more splits than needed only within WORKSPACE_BYTES."""
    fewest: dict[Any, int] = {}
    for tiling in tilings:
        if tiling.shared <= device.shared_memory:
            needed = fewest.setdefault(tiling.tile, tiling.splits.count)
            if tiling.splits.count <= needed or tiling.partial_sums(NOWHERE)[1] <= WORKSPACE_BYTES:
                yield tiling


def ways_to_split(patch_y: int, patch_x: int, width: int, terms: Callable[[int, int], int]) -> Iterator[Splits]:
    """Yield divisions of the displacements that keep every chain of sums short, in whole rows and whole widths of a tile.

    ``terms`` returns the terms of a sum over so many rows and columns of displacements. The fewest splits come first.
    """
    widths = ceil_div(patch_x, width)
    for column_splits, row_splits in product(_powers(widths), _powers(patch_y)):
        columns, rows = ceil_div(widths, column_splits) * width, ceil_div(patch_y, row_splits)
        if terms(rows, min(columns, patch_x)) <= LONGEST_CHAIN.cuda:
            yield Splits(ceil_div(patch_y, rows), rows, ceil_div(patch_x, columns), columns)


def _powers(number: int) -> list[int]:
    """Return 1, 2, 4 .. below a number, and the number."""
    return sorted({min(2**k, number) for k in range(number.bit_length() + 1)})
