"""Plans on a GPU: which algorithm's kernels answer a request of the fixed-grid operator.

Four algorithms: ``tiled`` keeps thread block tiles of the images in shared memory; ``mma`` multiplies tiles on tensor cores;
``box`` makes the volume of one-pixel windows, a chunk at a time, and sums windows of it; ``direct`` sums every tap of every
output by itself. A plan depends on nothing but the problem, the layouts of the arrays and the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ..._dispatch import FORWARD, Request, array_names
from ..._dtypes import ELEMENT_TYPES
from ..._gpu import sum_parts
from ..._gpu.call import NOWHERE, Pointer
from ..._gpu.device import Device
from ..._gpu.layout import Layout, dense_layout
from ..._gpu.plan import Plan
from ..._gpu.source import Kernel
from . import box, direct, forward_mma, forward_tiled, gradient_mma, gradient_tiled, one_pixel
from .axes import lines
from .forward_phases import Arrays
from .sums import ForwardSum, GradientSum, Operand


def plan(algorithm: str, request: Request, device: Device) -> Plan:
    """Return the plan of a request by an algorithm, or by the one that it falls back to for such arrays."""
    made = _forward(algorithm, request, device) if request.pass_name == FORWARD else _gradients(algorithm, request, device)
    return replace(made, itemsizes=_itemsizes(request))


def _forward(algorithm: str, request: Request, device: Device) -> Plan:
    problem = request.problem
    input1, input2, out = ((layout, Pointer(name)) for name, layout in _layouts_by_name(request).items())
    if algorithm == "box":
        return box.forward_plan(problem, input1, input2, out, device)
    vertical, horizontal = lines(problem)
    forward = ForwardSum(vertical, horizontal, input1, input2, out, problem.parameters.scale, device)
    return one_pixel.forward_plan(algorithm, forward)


def _gradients(algorithm: str, request: Request, device: Device) -> Plan:
    problem, (outside, *inputs, gradient1, gradient2) = request.problem, request.layouts
    if gradient1 is None and gradient2 is None:
        return Plan(algorithm, "no gradient is needed", 0.0, 0, tuple, device.index)
    cotangent = outside, Pointer("cotangent")
    operands = [_operand(1, inputs, gradient1), _operand(2, inputs, gradient2)]
    if algorithm != "direct" and problem.windowed:
        return box.gradients_plan(problem, cotangent, operands, device)
    gradients = GradientSum(*lines(problem), cotangent, operands, problem.parameters.scale, device)
    return one_pixel.gradients_plan(algorithm, gradients)


def _operand(number: int, inputs: list[Layout], gradient: Layout | None) -> Operand:
    """Return the arrays of the gradient of input ``number``: the other input and the result."""
    other, mine = (inputs[2 - number], Pointer(f"input{3 - number}")), inputs[number - 1]
    if gradient is None:
        return Operand(number, other, (dense_layout(mine.dtype, mine.shape), NOWHERE), needed=False)
    return Operand(number, other, (gradient, Pointer(f"gradient{number}")))


def _layouts_by_name(request: Request) -> dict[str, Layout]:
    names = array_names(request.pass_name, request.problem.inputs)
    return {name: layout for name, layout in zip(names, request.layouts, strict=True) if layout is not None}


def _itemsizes(request: Request) -> Mapping[str, int]:
    return {name: layout.itemsize for name, layout in _layouts_by_name(request).items()}


def why_not(algorithm: str, request: Request) -> str | None:
    """Return None, or the reason why an algorithm has no tiles for arrays in the request's memory orders."""
    problem, dense = request.problem, request.dense()
    if request.pass_name == FORWARD:
        return one_pixel.why_not_forward(algorithm, *lines(problem), Arrays(*dense.layouts))
    if problem.windowed:  # `box` plans gradients of windows, and falls back by itself
        return None
    outside, (_, second) = dense.layouts[0], dense.inputs
    operand = Operand(1, (second, NOWHERE), (dense_layout(request.dtype, problem.shape1), NOWHERE))
    return one_pixel.why_not_gradients(algorithm, *lines(problem), outside, [operand])


_DTYPES = {row.c_type: row.name for row in ELEMENT_TYPES.values()}


def builds(device: Device | None = None) -> Iterator[tuple[str, Kernel]]:
    """Yield every kernel that a plan can launch, on any device or on this one, with words for it."""
    for module in (direct, box, sum_parts, forward_tiled, gradient_tiled):
        yield from module.builds()
    yield from forward_mma.builds(device)
    for name, kernel in gradient_mma.builds():
        if device is None or device.has_matrix_product(_DTYPES[dict(kernel.macros)["INPUT"]]):
            yield name, kernel
