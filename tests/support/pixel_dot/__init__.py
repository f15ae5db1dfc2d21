"""A second operator, as small as one can be: the dot product of two feature maps (B, C, H, W) at each pixel.

It shows what an operator has to bring: a problem, variants with plans, and where torch is wanted a schema.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from cupycorr._arrays import array_module
from cupycorr._dispatch import FORWARD, Input, Operator, Request, Variant, Work, choose, place
from cupycorr._dtypes import ELEMENT_TYPES
from cupycorr._gpu.call import Call, Pointer, kernel
from cupycorr._gpu.layout import layout
from cupycorr._gpu.plan import Plan

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Problem:
    """The sizes (B, C, H, W) of both inputs."""

    shape: tuple

    @property
    def inputs(self):
        return Input("input1", self.shape, "gradient1"), Input("input2", self.shape, "gradient2")

    @property
    def out_shape(self):
        return (self.shape[0], *self.shape[2:])

    @property
    def key(self):
        return f"shape={self.shape}"


# On the CPU -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NumpyPlan:
    """The definition in NumPy, forward and gradients."""

    request: Request
    seconds: float = 1e-4
    workspace: int = 0
    algorithm: str = "einsum"
    description: str = "one call of einsum"

    def run(self, arrays: Mapping[str, Any]):
        x1, x2 = arrays["input1"], arrays["input2"]
        if self.request.pass_name == FORWARD:
            np.einsum("bchw,bchw->bhw", x1, x2, out=arrays["out"])
            return
        for name, other in (("gradient1", x2), ("gradient2", x1)):
            if name in arrays:
                np.multiply(arrays["cotangent"][:, None], other, out=arrays[name])


# On a GPU ---------------------------------------------------------------------------------------------------------------------


def gpu_plan(threads, request, device):
    """Return the plan that launches pixel_dot.cu with so many threads in a block."""
    input1, _, out = request.layouts
    outputs, pixels = prod(out.shape), prod(out.shape[1:])

    def calls():
        macros = dict(INPUT=input1.element, OUTPUT=out.element, THREADS=threads, INDEX="int")
        scalars = tuple(map(np.int32, (outputs, input1.shape[1], pixels)))
        pointers = tuple(map(Pointer, ("input1", "input2", "out")))
        yield Call(kernel("pixel_dot/pixel_dot", macros), pointers, scalars, -(-outputs // threads), threads)

    seconds = outputs * 1e-9 * (1 + 1 / threads)
    sizes = {name: each.itemsize for name, each in zip(("input1", "input2", "out"), request.layouts, strict=True)}
    return Plan("direct", f"{threads} threads in a block", seconds, 0, calls, device.index, sizes)


def why_not_gpu(request, device):
    """Return None, or the reason why the kernel cannot answer."""
    return None if request.pass_name == FORWARD else "the kernel has no gradients"


def work(request):
    """Count the operations and the bytes of the output."""
    flops, itemsize = 2 * prod(request.problem.shape), ELEMENT_TYPES[request.dtype].itemsize
    return Work(flops, flops, (2 * prod(request.problem.shape) + prod(request.problem.out_shape)) * itemsize)


OPERATOR = Operator(
    name="pixel_dot",
    variants=(
        Variant("einsum", "numpy", lambda request, device: None, lambda request, device: NumpyPlan(request)),
        Variant("wide", "cupy", why_not_gpu, partial(gpu_plan, 128)),
        Variant("narrow", "cupy", why_not_gpu, partial(gpu_plan, 32)),
    ),
    work=work,
    uses_matrix_units=lambda request, device: False,
    builds=lambda device: iter(()),
    example=lambda: Request(FORWARD, Problem((1, 8, 16, 16)), "float32", "float32"),
)


# The public functions ---------------------------------------------------------------------------------------------------------


def request_of(input1, input2):
    """Return the request for the output, which will have no gaps."""
    request = Request(FORWARD, Problem(input1.shape), input1.dtype.name, input1.dtype.name)
    if place(input1).device is None:
        return request
    return request._replace(layouts=(layout("input1", input1), layout("input2", input2), request.dense().layouts[-1]))


def pixel_dot(input1, input2, variant="auto"):
    """Return the dot product of two arrays (B, C, H, W) at each pixel, (B, H, W)."""
    request = request_of(input1, input2)
    out = array_module(input1).empty(request.problem.out_shape, input1.dtype)
    plan = choose(OPERATOR, request, place(input1), variant).plan
    plan.run({"input1": input1, "input2": input2, "out": out})
    return out


def register_in_torch():
    """Register the operator in torch, without derivatives, and return it."""
    from cupycorr.torch import _library, _tensors

    def compute(input1, input2):
        out = input1.new_empty(Problem(tuple(input1.shape)).out_shape)
        dtype, layouts = _tensors.dtype_name(input1), _tensors.layouts(input1, input2, out)
        request = Request(FORWARD, Problem(tuple(input1.shape)), dtype, dtype, layouts)
        _tensors.run(OPERATOR, request, "auto", {"input1": input1, "input2": input2, "out": out}, ("out",))
        return out

    def fake(input1, input2):
        return input1.new_empty((input1.shape[0], *input1.shape[2:]))

    return _library.define("pixel_dot", "(Tensor input1, Tensor input2) -> Tensor", compute, fake)
