"""The kernels of the lookup in a volume on the CPU: the plans of the GPU path, launched by the emulator on NumPy arrays."""

import emulated
import numpy as np
import volume_oracle
from lookup_oracle import assert_close
from volume_cases import BOTH

from cupycorr._dispatch import FORWARD, VJP, Request
from cupycorr._gpu.layout import layout
from cupycorr._volume_lookup.gpu import planner


def planned(request):
    """Return the plan of a request for the device of `emulated.launched_by`."""
    return planner.plan(request, emulated.planned_for())


def inputs_of(case):
    """Return the inputs of a case by their names."""
    return dict(zip(("volume", "coords"), case.arrays(), strict=True))


def lookup(emulator, case, inputs, dtype=None, out=None):
    """Return the output of a case."""
    problem, volume = case.problem(), inputs["volume"]
    out = np.empty(problem.out_shape, volume.dtype if dtype is None else dtype) if out is None else out
    layouts = *(layout(name, array) for name, array in inputs.items()), layout("out", out)
    request = Request(FORWARD, problem, volume.dtype.name, out.dtype.name, layouts)
    emulated.run(emulator, planned(request), inputs, {"out": out})
    return out


def lookup_vjp(emulator, case, cotangent, inputs, needs=BOTH, results=None):
    """Return the gradients of the volume and of coords, None for those that are not needed."""
    problem, volume = case.problem(), inputs["volume"]
    new = [np.empty(x.shape, x.dtype) if needed else None for x, needed in zip(inputs.values(), needs, strict=True)]
    results = new if results is None else results
    reads = {"cotangent": cotangent, **inputs}
    layouts = *(layout(name, array) for name, array in reads.items()), *(None if x is None else layout("x", x) for x in results)
    writes = {f"gradient_{name}": x for name, x in zip(inputs, results, strict=True) if x is not None}
    request = Request(VJP, problem, volume.dtype.name, cotangent.dtype.name, layouts, tuple(needs))
    emulated.run(emulator, planned(request), reads, writes)
    return results


def wanted(case, cotangent):
    """Return the oracle's triples for the output and the gradients of the volume and of coords."""
    arrays = case.arrays()
    return volume_oracle.forward(*arrays, **case.parameters), *volume_oracle.vjp(cotangent, *arrays, **case.parameters)


def assert_right(results, triples, dtype):
    """Check the output and both gradients, summed in the accumulator of the volume."""
    sums = "float64" if np.dtype(dtype) == np.float64 else "float32"
    names = ("output", "gradient of the volume", "gradient of coords")
    for name, result, triple in zip(names, results, triples, strict=True):
        assert_close(result, triple, sums, name)
