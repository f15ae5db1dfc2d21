"""Forward problems by tilings that the test chooses, launched by the emulator on arrays in a memory layout of its choice."""

from dataclasses import replace

import numpy as np
import oracle
from emulated import asked
from emulator import Emulator
from fake_cupy import FACTS
from layouts import aligned

from cupycorr._correlation.gpu import one_pixel
from cupycorr._correlation.gpu.axes import line
from cupycorr._correlation.gpu.forward_phases import Arrays
from cupycorr._gpu.call import Pointer
from cupycorr._gpu.layout import layout
from cupycorr._gpu.limits import LARGEST_GRID

H200 = replace(FACTS, multiprocessors=132, bandwidth=4.8e12, float32_rate=66.9e12, float64_rate=33.5e12)


class Asked:
    """A case, its arrays, and the tilings of ``module`` that fit it."""

    module = None

    def __init__(self, case, lay=aligned, dtype=None):
        self.x1, self.x2 = (lay(x) for x in case.arrays()[:2])
        self.problem = asked(self.x1, self.x2, **case.parameters)
        self.out = aligned(np.zeros(self.problem.out_shape, dtype or self.x1.dtype))
        self.want = oracle.forward(self.x1, self.x2, **case.parameters)
        self.lines = line(self.problem.vertical), line(self.problem.horizontal)
        arrays = {"input1": self.x1, "input2": self.x2, "out": self.out}
        self.arrays = Arrays(*(layout(name, array) for name, array in arrays.items()))

    def best(self, device=H200):
        return self.module.best(*self.lines, self.arrays, device, one_pixel.PARTIAL_SUMS_BYTES)

    def why_not(self):
        return self.module.why_not(*self.lines, self.arrays)

    def run(self, tiling, emulator, largest_grid=LARGEST_GRID):
        """Return the output by one tiling, and check that every element is written."""
        calls = tiling.calls(
            [Pointer("input1"), Pointer("input2"), Pointer("out")], self.problem.parameters.scale, Pointer("parts")
        )
        reads = {"input1": self.x1, "input2": self.x2}
        writes = {"out": self.out, "parts": aligned(np.zeros(tiling.workspace, np.uint8))}
        arrays = {**reads, **writes}
        with emulator.lending(reads, writes):
            for call in calls:
                grid = min(call.blocks, largest_grid)
                launch = emulator.bind(call.kernel, 0, grid, call.threads, call.shared, call.scalars)
                launch(tuple(arrays[pointer.buffer].ctypes.data + pointer.offset for pointer in call.pointers))
            assert not emulator.unwritten(self.out).any()
        return self.out

    def check(self, tiling, order="forward"):
        oracle.assert_close(self.run(tiling, Emulator(order)), self.want, name=tiling.how)
