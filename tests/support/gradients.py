"""Gradients by the tiles of one module, launched by the emulator on arrays in the memory layout that the test chooses."""

from dataclasses import replace

import numpy as np
import oracle
from cases import NAMED, ascending, same
from emulated import BUSY, asked
from layouts import rows

from cupycorr._correlation.gpu import axes, gradient_phases
from cupycorr._correlation.gpu.sums import GradientSum, Operand
from cupycorr._correlation.groups import is_simple
from cupycorr._gpu.call import Pointer
from cupycorr._gpu.layout import layout, new_layout

MOST_BLOCKS = 2**31 - 1
# Windows of one pixel, and strides that divide the step.
IN_PHASES = {
    name: case
    for name, case in NAMED.items()
    if case.parameters.get("kernel_size", 1) == 1 and not case.parameters.get("stride", 1) > 1 and is_simple(case.problem())
} | {
    "every phase has its outputs elsewhere": same(
        (1, 5, 21, 23), patch_size=(3, 5), stride=(2, 3), dilation_patch=(4, 6), padding=1
    ),
    "one phase has all outputs": same((1, 9, 18, 40), patch_size=7, stride=2, dilation_patch=2),
    "one output": same((1, 6, 5, 6), patch_size=3, stride=9, dilation_patch=2),
    "one displacement": same((2, 3, 7, 9), stride=(2, 3), padding=1),
    "cropped, both phases of the columns": same((1, 6, 13, 17), patch_size=5, dilation_patch=2, padding=-3),
    "columns that runs do not fit": same((1, 4, 9, 64), patch_size=(3, 21), dilation_patch=2, padding=(0, -2)),
}


def lines_of(what):
    return axes.line(what.vertical), axes.line(what.horizontal)


def operands_of(inputs, results):
    """Return the operands whose results are not None."""
    given = {f"input{k}": (layout("input", x), Pointer(f"input{k}")) for k, x in enumerate(inputs, 1)}
    return [
        Operand(k, given[f"input{3 - k}"], (layout("gradient", x), Pointer(f"gradient{k}")))
        for k, x in enumerate(results, 1)
        if x is not None
    ]


def planned(module, g, inputs, results, device, **parameters):
    """Return the plan of a problem, or the reason why there is none."""
    lines, operands = lines_of(asked(*inputs, **parameters)), operands_of(inputs, results)
    cotangent = layout("cotangent", g), Pointer("cotangent")
    why = module.why_not(*lines, cotangent[0], operands)
    if why is not None:
        return why
    scale, workspace = parameters.get("scale", 1.0), Pointer("workspace", 256)
    return gradient_phases.plan(
        module.__name__, module.tilings, GradientSum(*lines, cotangent, operands, scale, device), workspace
    )


def plan_for(module, shape, device, dtype="float32", **parameters):
    """Return the plan of a problem without making its arrays."""
    x = np.broadcast_to(np.zeros((), dtype), shape)
    x = np.lib.stride_tricks.as_strided(x, shape, [x.itemsize * int(np.prod(shape[k + 1 :])) for k in range(4)], writeable=False)
    what = asked(x, x, **parameters)
    g = new_layout(np.dtype(dtype).name, what.out_shape)
    arrays = (g, Pointer("cotangent")), operands_of((x, x), (x, x))
    return gradient_phases.plan(
        module.__name__, module.tilings, GradientSum(*lines_of(what), *arrays, 1.0, device), Pointer("workspace")
    )


def gradients(module, emulator, g, x1, x2, needs=(True, True), device=BUSY, most_blocks=MOST_BLOCKS, lay=rows, **parameters):
    """Return both gradients, None where not needed, and check that every element of a result is written."""
    results = [lay(np.empty(x.shape, x.dtype)) if needed else None for x, needed in zip((x1, x2), needs, strict=True)]
    plan = planned(module, g, (x1, x2), results, device, **parameters)
    workspace = np.empty(256 + plan.workspace, np.uint8)
    reads = {"cotangent": g, "input1": x1, "input2": x2}
    writes = {f"gradient{k}": x for k, x in enumerate(results, 1) if x is not None} | {"workspace": workspace}
    addresses = {"nowhere": 0} | {name: array.ctypes.data for name, array in (reads | writes).items()}
    with emulator.lending(reads, writes):
        for call in plan.calls:
            blocks = min(call.blocks, most_blocks)
            launch = emulator.bind(call.kernel, 0, blocks, call.threads, call.shared, call.scalars)
            launch(tuple(addresses[pointer.buffer] + pointer.offset for pointer in call.pointers))
        for name in writes.keys() - {"workspace"}:
            assert not emulator.unwritten(writes[name]).any(), f"{name} has unwritten elements"
    return tuple(results)


def assert_gradients(got, g, x1, x2, accumulator=None, **parameters):
    """Check that both gradients are the oracle's."""
    for name, gradient, want in zip(("g1", "g2"), got, oracle.vjp(g, x1, x2, **parameters), strict=True):
        oracle.assert_close(gradient, want, accumulator, name)


def dividing(case):
    """Return the case with a window of one pixel, one group, and an ascending step that is a multiple of its stride."""
    case = ascending(case)
    given = {name: oracle.pair(value) for name, value in case.parameters.items() if name not in ("scale", "patch_offset")}
    stride, step = given.get("stride", (1, 1)), given.get("dilation_patch", (1, 1))
    kept = case.parameters | dict(
        kernel_size=1, dilation=1, dilation_patch=tuple(s * e for s, e in zip(stride, step, strict=True))
    )
    return replace(case, parameters=kept)


def in_phases(case):
    """Return whether strides divide steps, after numbers that do not matter are made small."""
    x1, x2, _ = case.arrays()
    return all(axis.step % axis.stride == 0 for axis in lines_of(asked(x1, x2, **case.parameters)))


def bytes_needed(rows, columns, shape, patch, step, itemsize):
    """Return the bytes of one operand that thread blocks of so many rows and columns hold.

    They are those of the other image, of the cotangent and of the gradient itself.
    """
    _, channels, height, width = shape
    radius = patch // 2 * step
    tiles = [
        (range(phase, height, step)[first : first + rows], range(left, min(left + columns, width)))
        for phase in range(step)
        for first in range(0, len(range(phase, height, step)), rows)
        for left in range(0, width, columns)
    ]
    image = cotangents = 0
    for own_rows, own_columns in tiles:
        met = {y + dy for y in own_rows for dy in range(-radius, radius + 1, step) if 0 <= y + dy < height}
        image += len(met) * len(range(max(own_columns[0] - radius, 0), min(own_columns[-1] + radius + 1, width))) * channels
        along_x = sum(0 <= x + dx < width for x in own_columns for dx in range(-radius, radius + 1, step))
        cotangents += along_x * sum(0 <= y + dy < height for y in own_rows for dy in range(-radius, radius + 1, step))
    return itemsize * (image + cotangents + channels * height * width)
