"""Plans on a GPU: the launches that answer a request of the lookup in a volume.

The algorithm ``direct`` computes each window by itself, one launch for each result. No launch needs a workspace or depends on the
values of an array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

from ..._dispatch import FORWARD, Request
from ..._gpu.call import Call
from ..._gpu.costs import LAUNCH, machine
from ..._gpu.device import Device
from ..._gpu.limits import SECTOR_BYTES
from ..._gpu.plan import Plan
from ..._gpu.source import Kernel
from . import volume_gradient, volume_gradient_coords, volume_lookup
from .operands import Operands, operands


def plan(request: Request, device: Device | None) -> Plan:
    """Return the plan of a request."""
    assert device is not None
    arrays = operands(request, device)
    makers = list(_makers(request, arrays))
    return Plan(
        "direct",
        f"windows of {arrays.problem.taps} taps in {arrays.chunks} chunk(s)" if makers else "no gradient is needed",
        len(makers) * LAUNCH + machine(device, arrays.accumulator.name).moved(_bytes(arrays)),
        0,
        lambda: (make(arrays) for make in makers),
        device.index,
        {name: layout.itemsize for name, (layout, _) in arrays.arrays.items()},
    )


def _makers(request: Request, arrays: Operands) -> Iterator[Callable[[Operands], Call]]:
    """Yield the function that makes the launch of each result."""
    if request.pass_name == FORWARD:
        yield volume_lookup.forward
    if "gradient_volume" in arrays.arrays:
        yield volume_gradient.gradient
    if "gradient_coords" in arrays.arrays:
        yield volume_gradient_coords.gradient_coords


def _bytes(arrays: Operands) -> int:
    """Count the bytes that move: whole sectors of rows of windows, and every other array."""
    problem = arrays.problem
    moved = sum(prod(layout.shape) * layout.itemsize for name, (layout, _) in arrays.arrays.items() if name != "volume")
    row = problem.horizontal.taps * arrays.arrays["volume"][0].itemsize + SECTOR_BYTES
    windows = problem.queries * problem.vertical.taps * row
    return moved + windows * ("out" in arrays.arrays or "gradient_coords" in arrays.arrays)


def builds(device: Device | None = None) -> Iterator[tuple[str, Kernel]]:
    """Yield every kernel that a plan can launch, on any device, with words for it."""
    for module in (volume_lookup, volume_gradient, volume_gradient_coords):
        yield from module.builds()
