"""The operator's kernels on the CPU: the plans of the GPU path, launched by the emulator on NumPy arrays."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from emulator import ORDERS, Emulator
from fake_cupy import FACTS, forget_plans

from cupycorr._correlation.gpu import box
from cupycorr._correlation.problem import parameters, problem
from cupycorr._correlation.variants import OPERATOR
from cupycorr._dispatch import FORWARD, VJP, Request
from cupycorr._gpu import plan as plans
from cupycorr._gpu.layout import layout

IDLE = replace(FACTS, multiprocessors=10**6)  # no problem fills it: threads share the channels of an output
BUSY = replace(FACTS, multiprocessors=0)  # every problem fills it


@contextmanager
def launched_by(monkeypatch, emulator, device=BUSY, module=box, **settings):
    """Make plans for a device and launch them by the emulator, with other values of these names of a module."""
    with monkeypatch.context() as patched:
        patched.setattr(plans, "bind", emulator.bind)
        patched.setitem(_planned_for, "device", device)
        for name, value in settings.items():
            patched.setattr(module, name, value)
        forget_plans()
        yield
    forget_plans()


_planned_for = {"device": BUSY}


def planned_for():
    """Return the device of `launched_by`."""
    return _planned_for["device"]


def planned(algorithm, request):
    """Return the plan of a request by an algorithm, for the device of `launched_by`."""
    (variant,) = OPERATOR.named(algorithm)
    return variant.plan(request, planned_for())


def asked(x1, x2, **given):
    return problem(parameters(**given), x1.shape, x2.shape)


def accumulator(route, dtype):
    """Return the accumulator whose errors the oracle allows: tensor cores round float32 to TF32."""
    return "tf32" if route == "mma" and dtype == "float32" else None


def run(emulator, plan, reads, writes):
    """Launch a plan on poisoned arrays, and check that every element is written."""
    workspace = np.empty(plan.workspace, np.uint8)
    arrays = {**reads, **writes}
    addresses = [arrays[name].ctypes.data for name in plan.itemsizes]
    with emulator.lending(reads, {**writes, "workspace": workspace}):
        plans.run(plan, addresses, lambda size: (workspace.ctypes.data, workspace))
        for name, array in writes.items():
            assert not emulator.unwritten(array).any(), f"{name} has unwritten elements"


def correlate(emulator, route, x1, x2, dtype=None, out=None, **given):
    what = asked(x1, x2, **given)
    out = np.empty(what.out_shape, x1.dtype if dtype is None else dtype) if out is None else out
    layouts = layout("input1", x1), layout("input2", x2), layout("out", out)
    request = Request(FORWARD, what, x1.dtype.name, out.dtype.name, layouts)
    run(emulator, planned(route, request), {"input1": x1, "input2": x2}, {"out": out})
    return out


def correlate_vjp(emulator, route, g, x1, x2, needs=(True, True), **given):
    reads = {"cotangent": g, "input1": x1, "input2": x2}
    results = [np.empty(x.shape, x.dtype) if needed else None for x, needed in zip((x1, x2), needs, strict=True)]
    gradients = (None if result is None else layout("gradient", result) for result in results)
    layouts = *(layout(name, array) for name, array in reads.items()), *gradients
    request = Request(VJP, asked(x1, x2, **given), x1.dtype.name, g.dtype.name, layouts, tuple(needs))
    writes = {f"gradient{k}": result for k, result in enumerate(results, 1) if result is not None}
    run(emulator, planned(route, request), reads, writes)
    return tuple(results)


def in_every_order(run_once):
    """Return the results of ``run_once(emulator)``, and check that they have the same bits in every order of threads."""
    first, *others = [run_once(Emulator(order)) for order in ORDERS]
    for other in others:
        for name, one, two in zip(("first", "second"), first, other, strict=False):
            assert one.tobytes() == two.tobytes(), f"{name} result depends on the order of threads"
    return first
