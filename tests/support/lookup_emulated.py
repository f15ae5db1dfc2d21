"""The lookup's kernels on the CPU: the plans of the GPU path, launched by the emulator on NumPy arrays."""

import emulated
import lookup_oracle
import numpy as np
from lookup_cases import ALL

from cupycorr._dispatch import FORWARD, VJP, Request, array_names, with_gradients
from cupycorr._gpu.layout import layout
from cupycorr._lookup.gpu import planner

INDICES = ("index1", "index2")


PLANS = {"direct": planner.plan, "tiled": planner.plan_tiled, "mma": planner.plan_mma}


def planned(request, variant):
    """Return the plan of a request by a variant, for the device of `emulated.launched_by`."""
    return PLANS[variant](request, emulated.planned_for())


def inputs_of(case, lay=lambda array: array):
    """Return the inputs of a case by the names that the problem gives them, the features laid out by a function."""
    x1, x2, coords = case.arrays()
    maps = x2 if isinstance(x2, list) else [x2]
    levels = dict(zip(case.problem().level_names, map(lay, maps), strict=True))
    indices = {name: case.parameters[name] for name in INDICES if name in case.parameters}
    return {"input1": lay(x1), **levels, "coords": coords, **indices}


def lookup(emulator, case, inputs, dtype=None, out=None, variant="direct"):
    """Return the output of a case by a variant."""
    problem, x1 = case.problem(), inputs["input1"]
    out = np.empty(problem.out_shape, x1.dtype if dtype is None else dtype) if out is None else out
    layouts = *(layout(name, array) for name, array in inputs.items()), layout("out", out)
    request = Request(FORWARD, problem, x1.dtype.name, out.dtype.name, layouts, problem.needs_of_inputs(ALL))
    emulated.run(emulator, planned(request, variant), inputs, {"out": out})
    return out


def lookup_vjp(emulator, case, cotangent, inputs, needs=ALL):
    """Return the gradients of input1, of each level of input2 and of coords, None for those that are not needed."""
    problem, x1 = case.problem(), inputs["input1"]
    each = problem.needs_of_inputs(needs)
    owners = (inputs[x.name] for x in with_gradients(problem.inputs))
    results = [np.empty(x.shape, x.dtype) if needed else None for x, needed in zip(owners, each, strict=True)]
    reads = {"cotangent": cotangent, **inputs}
    layouts = *(layout(name, array) for name, array in reads.items()), *(None if x is None else layout("x", x) for x in results)
    names = array_names(VJP, problem.inputs)[len(reads) :]
    writes = {name: result for name, result in zip(names, results, strict=True) if result is not None}
    request = Request(VJP, problem, x1.dtype.name, cotangent.dtype.name, layouts, each)
    emulated.run(emulator, planned(request, "direct"), reads, writes)
    first, *levels, coords = results
    return first, levels, coords


def wanted(case, cotangent):
    """Return the oracle's triples for the output, the gradients of input1 and of each level, and that of coords."""
    x1, x2, coords = case.arrays()
    first, second, third = lookup_oracle.vjp(cotangent, x1, x2, coords, **case.parameters)
    levels = second if isinstance(x2, list) else [second]
    return lookup_oracle.forward(x1, x2, coords, **case.parameters), first, *levels, third


def assert_right(results, triples, features, of_output=None):
    """Check the output and the gradients of input1, the levels and coords, summed in the accumulator of the features.

    That of the output may be another one.
    """
    names = ("output", "gradient of input1", *(f"gradient of level {k}" for k in range(len(triples) - 3)), "gradient of coords")
    sums = "float64" if np.dtype(features) == np.float64 else "float32"
    for name, result, triple in zip(names, results, triples, strict=True):
        lookup_oracle.assert_close(result, triple, of_output or sums if name == "output" else sums, name)
