"""Plans by tiles in shared memory, by tiles on tensor cores or by the direct kernels, each with its fallbacks.

Tiles are made for windows of one pixel; some tiles and the direct kernels take larger windows too. The same plans make the volume
of one-pixel windows that the box algorithm sums windows of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType

from ..._gpu.call import Call, Pointer
from ..._gpu.device import Device
from ..._gpu.layout import Layout, new_layout
from ..._gpu.limits import PARTIAL_SUMS_BYTES
from ..._gpu.plan import WORKSPACE, Plan
from . import direct, forward_mma, forward_tiled, gradient_mma, gradient_phases, gradient_tiled
from .axes import Line
from .chunks import Chunk, chunk_counts, chunks, padded_bytes, samples_of, volume_of
from .forward_phases import Arrays
from .sums import ForwardSum, GradientSum, Operand

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


def forward_plan(algorithm: str, forward: ForwardSum) -> Plan:
    """Return the plan of an algorithm, or of the one that it falls back to."""
    plans = (_forward_by_tiles(tiles, forward, 0) for tiles in _FALLBACKS[algorithm])
    return next(filter(None, plans), None) or direct.forward_plan(forward)


def gradients_plan(algorithm: str, gradients: GradientSum) -> Plan:
    """Return the plan of an algorithm, or of the one that it falls back to."""
    plans = (_gradients_by_tiles(tiles, gradients, 0) for tiles in _FALLBACKS[algorithm])
    return next(filter(None, plans), None) or direct.gradients_plan(gradients)


def fastest_forward(forward: ForwardSum, workspace_begin: int) -> Plan:
    """Return the fastest plan that rounds no products to TF32; its workspace begins at this byte."""
    algorithms = _exact_algorithms(forward.input1[0].dtype, forward.device)
    tiled = (_forward_by_tiles(algorithm, forward, workspace_begin) for algorithm in algorithms)
    return _fastest(*filter(None, tiled), direct.forward_plan(forward))


def fastest_gradients(gradients: GradientSum, workspace_begin: int) -> Plan:
    """Return the fastest plan that rounds no products to TF32; its workspace begins at this byte."""
    algorithms = _exact_algorithms(gradients.operands[0].other[0].dtype, gradients.device)
    tiled = (_gradients_by_tiles(algorithm, gradients, workspace_begin) for algorithm in algorithms)
    return _fastest(*filter(None, tiled), direct.gradients_plan(gradients))


def _exact_algorithms(dtype: str, device: Device) -> tuple[str, ...]:
    """Return the algorithms that multiply numbers of a dtype exactly: tensor cores would round those of float32."""
    return _FALLBACKS["mma" if dtype != "float32" and device.has_matrix_product(dtype) else "tiled"]


def _fastest(*plans: Plan) -> Plan:
    return min(plans, key=lambda plan: plan.seconds)


def _forward_by_tiles(algorithm: str, forward: ForwardSum, workspace_begin: int) -> Plan | None:
    """Return the plan by an algorithm's tiles, None where none fits; its partial sums begin at this byte of the workspace."""
    tiles, device = _FORWARDS[algorithm], forward.device
    tilings, seconds, size = [], 0.0, 0
    for chunk in _chunks(tiles, forward.input1[0], forward.out[0]):
        input1, input2 = (samples_of(image, chunk) for image in (forward.input1, forward.input2))
        out = volume_of(forward.out, chunk)
        rows = forward.vertical.displacements(chunk.begin[1], chunk.counts[1])
        tiling = tiles.best(rows, forward.horizontal, Arrays(input1[0], input2[0], out[0]), device, PARTIAL_SUMS_BYTES)
        if tiling is None:
            return None
        tilings.append((tiling, [input1[1], input2[1], out[1]]))
        size, seconds = max(size, tiling.workspace), seconds + tiling.seconds(device)

    def calls() -> Iterator[Call]:
        for tiling, pointers in tilings:
            yield from tiling.calls(pointers, forward.scale, Pointer(WORKSPACE, workspace_begin))

    description = tilings[-1][0].how if tilings else "nothing to do"
    return Plan(algorithm, description, seconds, workspace_begin + size, calls, device.index)


def _chunks(tiles: ModuleType, image: Layout, out: Layout) -> Iterator[Chunk]:
    """Yield one chunk of everything, or chunks whose partial sums fit into the limit."""
    batch, patch_rows, patch_columns = out.shape[:3]
    splits = tiles.needed_splits(image, out)
    counts: tuple[int, ...] = batch, patch_rows
    if splits:
        row = new_layout(image.accumulator.name, (splits, *out.shape[2:]))
        counts = chunk_counts(counts, padded_bytes(row), PARTIAL_SUMS_BYTES)
    yield from chunks((batch, patch_rows, patch_columns), (*counts, patch_columns))


def _gradients_by_tiles(algorithm: str, gradients: GradientSum, workspace_begin: int) -> Plan | None:
    """Return the plan by an algorithm's tiles, None where none fits; its partial sums begin at this byte of the workspace."""
    tiles = _GRADIENTS[algorithm]
    if tiles.why_not(gradients.vertical, gradients.horizontal, gradients.cotangent[0], gradients.operands) is not None:
        return None
    return gradient_phases.plan(algorithm, tiles.tilings, gradients, Pointer(WORKSPACE, workspace_begin))
