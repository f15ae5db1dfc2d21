"""Plans of windows of one pixel: by tiles in shared memory, by tiles on tensor cores, or directly.

The same plans make the volume that the box algorithm sums windows of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType

from ..._gpu.call import Array, Call, Pointer
from ..._gpu.device import Device
from ..._gpu.layout import Layout, new_layout
from ..._gpu.limits import PARTIAL_SUMS_BYTES
from ..._gpu.plan import WORKSPACE, Plan
from . import direct, forward_mma, forward_tiled, gradient_mma, gradient_phases, gradient_tiled
from .axes import Line
from .chunks import Chunk, chunk_counts, chunks, padded_bytes, samples_of, volume_of
from .forward_phases import Arrays
from .gradient_phases import Operand

_FORWARDS = {"mma": forward_mma, "tiled": forward_tiled}
_GRADIENTS = {"mma": gradient_mma, "tiled": gradient_tiled}
# algorithm -> the algorithms whose tiles are tried, in order; where none fits the arrays, the direct kernels run
_FALLBACKS = {"mma": ("mma", "tiled"), "box": ("tiled",), "tiled": ("tiled",), "direct": ()}


def why_not_forward(algorithm: str, vertical: Line, horizontal: Line, arrays: Arrays) -> str | None:
    """Return None, or the reason why an algorithm has no tile for these arrays."""
    return _FORWARDS[algorithm].why_not(vertical, horizontal, arrays)


def why_not_gradients(
    algorithm: str, vertical: Line, horizontal: Line, cotangent: Layout, operands: Sequence[Operand]
) -> str | None:
    """Return None, or the reason why an algorithm has no tile for these gradients."""
    return _GRADIENTS[algorithm].why_not(vertical, horizontal, cotangent, operands)


def forward_plan(algorithm: str, vertical: Line, horizontal: Line, arrays: Sequence[Array], scale: float, device: Device) -> Plan:
    """Return the plan of an algorithm, or of the one that it falls back to."""
    request = vertical, horizontal, arrays, scale, device
    plans = (_forward_by_tiles(tiles, *request, 0) for tiles in _FALLBACKS[algorithm])
    return next(filter(None, plans), None) or direct.forward_plan(*request)


def gradients_plan(
    algorithm: str,
    vertical: Line,
    horizontal: Line,
    cotangent: Array,
    operands: Sequence[Operand],
    scale: float,
    device: Device,
) -> Plan:
    """Return the plan of an algorithm, or of the one that it falls back to."""
    request = vertical, horizontal, cotangent, operands, scale, device
    plans = (_gradients_by_tiles(tiles, *request, 0) for tiles in _FALLBACKS[algorithm])
    return next(filter(None, plans), None) or direct.gradients_plan(*request)


def fastest_forward(
    vertical: Line, horizontal: Line, arrays: Sequence[Array], scale: float, device: Device, workspace_begin: int
) -> Plan:
    """Return the fastest plan without rounded products; its workspace begins at this byte."""
    request = vertical, horizontal, arrays, scale, device
    tiles = (_forward_by_tiles(name, *request, workspace_begin) for name in _exact_tiles(arrays[0][0].dtype, device))
    return _fastest(*filter(None, tiles), direct.forward_plan(*request))


def fastest_gradients(
    vertical: Line,
    horizontal: Line,
    cotangent: Array,
    operands: Sequence[Operand],
    scale: float,
    device: Device,
    workspace_begin: int,
) -> Plan:
    """Return the fastest plan without rounded products; its workspace begins at this byte."""
    request = vertical, horizontal, cotangent, operands, scale, device
    dtype = operands[0].other[0].dtype
    tiles = (_gradients_by_tiles(name, *request, workspace_begin) for name in _exact_tiles(dtype, device))
    return _fastest(*filter(None, tiles), direct.gradients_plan(*request))


def _exact_tiles(dtype: str, device: Device) -> tuple[str, ...]:
    """Return the algorithms that multiply numbers of a dtype as they are: tensor cores would round those of float32."""
    return _FALLBACKS["mma" if dtype != "float32" and device.has_matrix_product(dtype) else "tiled"]


def _fastest(*plans: Plan) -> Plan:
    return min(plans, key=lambda plan: plan.seconds)


def _forward_by_tiles(
    algorithm: str,
    vertical: Line,
    horizontal: Line,
    arrays: Sequence[Array],
    scale: float,
    device: Device,
    workspace_begin: int,
) -> Plan | None:
    """Return the plan by an algorithm's tiles, None where none fits; its partial sums begin at this byte of the workspace."""
    tiles = _FORWARDS[algorithm]
    tilings, seconds, size = [], 0.0, 0
    for chunk in _chunks(tiles, arrays[0][0], arrays[2][0]):
        input1, input2 = (samples_of(image, chunk) for image in arrays[:2])
        out = volume_of(arrays[2], chunk)
        rows = vertical.displacements(chunk.begin[1], chunk.counts[1])
        tiling = tiles.best(rows, horizontal, Arrays(input1[0], input2[0], out[0]), device, PARTIAL_SUMS_BYTES)
        if tiling is None:
            return None
        tilings.append((tiling, [input1[1], input2[1], out[1]]))
        size, seconds = max(size, tiling.workspace), seconds + tiling.seconds(device)

    def calls() -> Iterator[Call]:
        for tiling, pointers in tilings:
            yield from tiling.calls(pointers, scale, Pointer(WORKSPACE, workspace_begin))

    description = tilings[-1][0].how if tilings else "nothing to do"
    return Plan(algorithm, description, seconds, workspace_begin + size, calls, device.index)


def _chunks(tiles: ModuleType, image: Layout, out: Layout) -> Iterator[Chunk]:
    """Yield everything at once, or as many samples and rows of displacements as there is room for the partial sums of."""
    batch, patch_rows, patch_columns = out.shape[:3]
    splits = tiles.needed_splits(image, out)
    counts: tuple[int, ...] = batch, patch_rows
    if splits:
        row = new_layout(image.accumulator.name, (splits, *out.shape[2:]))
        counts = chunk_counts(counts, padded_bytes(row), PARTIAL_SUMS_BYTES)
    yield from chunks((batch, patch_rows, patch_columns), (*counts, patch_columns))


def _gradients_by_tiles(
    algorithm: str,
    vertical: Line,
    horizontal: Line,
    cotangent: Array,
    operands: Sequence[Operand],
    scale: float,
    device: Device,
    workspace_begin: int,
) -> Plan | None:
    """Return the plan by an algorithm's tiles, None where none fits; its partial sums begin at this byte of the workspace."""
    tiles = _GRADIENTS[algorithm]
    if tiles.why_not(vertical, horizontal, cotangent[0], operands) is not None:
        return None
    request = vertical, horizontal, cotangent, operands, scale, device
    return gradient_phases.plan(algorithm, tiles.tilings, *request, Pointer(WORKSPACE, workspace_begin))
