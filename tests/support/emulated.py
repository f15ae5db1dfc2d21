"""The operator's kernels on the CPU: the plans of the GPU path, launched by the emulator on NumPy arrays."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from cupy_on_numpy import FACTS, forget_plans
from emulator import ORDERS, Emulator

from cupycorr._correlation.gpu import planner
from cupycorr._correlation.problem import parameters, problem
from cupycorr._gpu import layout as layouts

ROUTES = ("direct", "box", "tiled", "mma")
IDLE = replace(FACTS, multiprocessors=10**6)  # no problem fills it: threads share the channels of an output
BUSY = replace(FACTS, multiprocessors=0)  # every problem fills it


@contextmanager
def launched_by(monkeypatch, emulator, device=BUSY, **settings):
    """Plans are made for a device and launched by the emulator; with other settings of the module `cuda` if some are given."""
    with monkeypatch.context() as patched:
        patched.setattr(planner, "bind", emulator.bind)
        patched.setattr(planner, "facts", lambda index: device)
        for name, value in settings.items():
            patched.setattr(planner, name, value)
        forget_plans()
        yield
    forget_plans()


def asked(x1, x2, **given):
    return problem(parameters(**given), x1.shape, x2.shape)


def accumulator(route, dtype):
    """What the oracle allows sums of a route for, of inputs of a dtype: tensor cores round float32."""
    return "tf32" if route == "mma" and dtype == "float32" else None


def run(emulator, plan, reads, writes):
    """Launch a plan: every array is poisoned before, and every element written after."""
    workspace = np.empty(plan.workspace, np.uint8)
    arrays = {**reads, **writes, "workspace": workspace}
    with emulator.lending(reads, {**writes, "workspace": workspace}):
        plan.run({"nowhere": 0, **{name: array.ctypes.data for name, array in arrays.items()}})
        for name, array in writes.items():
            assert not emulator.unwritten(array).any(), f"{name} has unwritten elements"


def correlate(emulator, route, x1, x2, dtype=None, out=None, **given):
    what = asked(x1, x2, **given)
    out = np.empty(what.out_shape, x1.dtype if dtype is None else dtype) if out is None else out
    reads = {"input1": x1, "input2": x2}
    layouts = (layouts.layout(name, array) for name, array in (*reads.items(), ("out", out)))
    run(emulator, planner.forward_plan(route, what, *layouts, 0), reads, {"out": out})
    return out


def correlate_vjp(emulator, route, g, x1, x2, needs=(True, True), **given):
    reads = {"cotangent": g, "input1": x1, "input2": x2}
    results = [np.empty(x.shape, x.dtype) if needed else None for x, needed in zip((x1, x2), needs, strict=True)]
    g_layout, *inputs = (layouts.layout(name, array) for name, array in reads.items())
    gradients = tuple(None if result is None else layouts.layout("gradient", result) for result in results)
    plan = planner.vjp_plan(route, asked(x1, x2, **given), g_layout, tuple(inputs), gradients, 0)
    run(emulator, plan, reads, {f"gradient{k}": result for k, result in enumerate(results, 1) if result is not None})
    return tuple(results)


def in_every_order(run_once):
    """What ``run_once(emulator)`` returns, which must be the same bits in every order of threads."""
    first, *others = [run_once(Emulator(order)) for order in ORDERS]
    for other in others:
        for name, one, two in zip(("first", "second"), first, other, strict=False):
            assert one.tobytes() == two.tobytes(), f"{name} result depends on the order of threads"
    return first
