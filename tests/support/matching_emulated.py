"""The kernels of matching on the CPU: the plans of the GPU path, launched by the emulator on NumPy arrays."""

import emulated
import numpy as np

from cupycorr._correlation.problem import parameters
from cupycorr._correlation.problem import problem as correlation
from cupycorr._dispatch import FORWARD, Request
from cupycorr._gpu.layout import dense_layout, layout
from cupycorr._matching.gpu import planner
from cupycorr._matching.problem import Best, Mean, Problem, check_outside


def request(x1, x2, reduction, outside="zero", **given):
    """Return a request for arrays."""
    problem = Problem(correlation(parameters(**given), x1.shape, x2.shape), reduction, check_outside(outside))
    dtype = x1.dtype.name
    accumulator = "float64" if dtype == "float64" else "float32"
    layouts = layout("input1", x1), layout("input2", x2), dense_layout(accumulator, problem.out_shape)
    return Request(FORWARD, problem, dtype, accumulator, layouts)


def reduced(emulator, algorithm, x1, x2, reduction, outside="zero", plan=None, **given):
    """Return the results of a reduction by their names: score and channel (B, k, oH, oW), or dy, dx and log_sum."""
    asked = request(x1, x2, reduction, outside, **given)
    plan = planner.plan(algorithm, asked, emulated.planned_for()) if plan is None else plan
    assert plan.algorithm == algorithm
    shape, sums = asked.problem.out_shape, asked.result_dtype
    dtypes = {"score": sums, "channel": "int64"} if isinstance(reduction, Best) else {"dy": sums, "dx": sums}
    if isinstance(reduction, Mean) and reduction.log_sum:
        dtypes["log_sum"] = "float64"
    results = {name: np.empty(shape, dtype) for name, dtype in dtypes.items()}
    emulated.run(emulator, plan, {"input1": x1, "input2": x2}, results)
    return results
