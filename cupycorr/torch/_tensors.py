"""Tensors to the backends and back: what is asked of them, where they lie, and the two maps on the CPU and on a GPU.

Nothing is copied on the way. A CPU tensor is seen as a NumPy array of the same memory, and a result the other way round. Of a
CUDA tensor only the address and the strides are taken; the kernels are launched on torch's current stream of its device, and what
is new there is allocated by torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import _dispatch, _tuning
from .._arguments import HIGH, HIGHEST, Pair, check_precision
from .._correlation import api
from .._correlation.gpu import planner
from .._correlation.problem import Problem, parameters, problem
from .._cpu import workers
from .._dtypes import ELEMENT_TYPES, ElementType, check_scale, element_type_called
from .._gpu.call import NOWHERE
from .._gpu.device import import_cupy
from .._gpu.layout import Layout

ELEMENTS = {getattr(torch, name): row for name, row in ELEMENT_TYPES.items()}


class Arguments(NamedTuple):
    """What the operators take beside tensors, with the defaults of their schemas; the pairs may be lists."""

    kernel_size: Pair = (1, 1)
    patch_size: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    dilation_patch: Pair = (1, 1)
    patch_offset: Pair | None = None
    scale: float = 1.0
    dtype: torch.dtype | None = None
    precision: str | None = None
    variant: str = "auto"

    def shortest(self) -> tuple:
        """Without the defaults at the end, of which each costs a call 0.3 us."""
        defaults = self._field_defaults.values()
        differs = [value != default for value, default in zip(self, defaults, strict=True)]
        return self[: len(differs) - differs[::-1].index(True)] if any(differs) else ()


# What is asked ----------------------------------------------------------------------------------------------------------------


def ask(input1: torch.Tensor, input2: torch.Tensor, arguments: Arguments) -> Problem:
    """Check the inputs and the parameters; sizes may be symbols."""
    _check_device("input1", input1, "input2", input2)
    return _ask(input1.shape, input1.dtype, input2.shape, input2.dtype, *arguments)


def ask_once(input1: torch.Tensor, input2: torch.Tensor, arguments: Arguments) -> Problem:
    """`ask`, remembered: models ask the same thing again and again. Sizes must be numbers."""
    _check_device("input1", input1, "input2", input2)
    hashable = [tuple(value) if type(value) is list else value for value in arguments]
    return _ask_once(input1.shape, input1.dtype, input2.shape, input2.dtype, *hashable)


def _ask(shape1: Any, dtype1: torch.dtype, shape2: Any, dtype2: torch.dtype, *given: Any) -> Problem:
    arguments = Arguments(*given)
    row = _element("input1", dtype1)
    api.check_elements(row, _element("input2", dtype2))
    asked = problem(parameters(*given[:6], patch_offset=arguments.patch_offset, scale=arguments.scale), shape1, shape2)
    check_scale(asked.parameters.scale, row)
    if arguments.precision is not None:
        check_precision(arguments.precision)
    _dispatch.named_variants(arguments.variant)
    return asked


_ask_once = lru_cache(1024)(_ask)


def _precision(given: str | None, dtype: str) -> str:
    """Of float32 products on a GPU: where a caller has none, that of torch's own matrix products at this moment."""
    if given is not None or dtype != "float32":
        return given or HIGHEST
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set in torch's newer words, for which there are no older ones
        return HIGH if torch.backends.cuda.matmul.fp32_precision == "tf32" else HIGHEST


def _element(name: str, dtype: torch.dtype) -> ElementType:
    return ELEMENTS.get(dtype) or element_type_called(name, str(dtype).removeprefix("torch."))


def _check_device(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{name} and {other_name} must be on the same device, got {tensor.device} and {other.device}")


def check_cotangent(cotangent: torch.Tensor, input1: torch.Tensor, arguments: Arguments, asked: Problem) -> None:
    """Refuse a cotangent that is not what the forward map returns."""
    _check_device("cotangent", cotangent, "input1", input1)
    result = _element("dtype", arguments.dtype or input1.dtype)
    api.check_cotangent(_element("cotangent", cotangent.dtype), result, cotangent.shape, asked)


# New tensors ------------------------------------------------------------------------------------------------------------------


def new_output(input1: torch.Tensor, arguments: Arguments, asked: Problem) -> torch.Tensor:
    """A tensor for the result, to be filled."""
    return input1.new_empty(asked.out_shape, dtype=arguments.dtype)


def new_gradients(inputs: Iterable[torch.Tensor], needs: Iterable[bool]) -> tuple[torch.Tensor, ...]:
    """Tensors for the gradients, to be filled; an empty one in place of each that is not needed."""
    return tuple(x.new_empty(x.shape if needed else (0,)) for x, needed in zip(inputs, needs, strict=True))


# On the CPU -------------------------------------------------------------------------------------------------------------------


def forward_on_cpu(input1: torch.Tensor, input2: torch.Tensor, *given: Any) -> torch.Tensor:
    """The correlation of two CPU tensors."""
    arguments = Arguments(*given)
    asked = ask_once(input1, input2, arguments)
    names = _numpy_dtype(input1.dtype).name, _numpy_dtype(arguments.dtype or input1.dtype).name
    chosen = _dispatch.choose(asked, _dispatch.CPU, arguments.variant, "forward", *names)
    out = new_output(input1, arguments, asked)
    result = _array(out)
    with workers.wishing(torch.get_num_threads()):
        chosen.forward(asked, _array(input1), _array(input2), result)
    _take(out, result)
    return out


def vjp_on_cpu(
    cotangent: torch.Tensor, input1: torch.Tensor, input2: torch.Tensor, needs: list[bool], *given: Any
) -> tuple[torch.Tensor, ...]:
    """The gradients of two CPU tensors."""
    arguments = Arguments(*given)
    asked = ask_once(input1, input2, arguments)
    check_cotangent(cotangent, input1, arguments, asked)
    names = _numpy_dtype(input1.dtype).name, _numpy_dtype(cotangent.dtype).name
    wanted = needs[0], needs[1]
    chosen = _dispatch.choose(asked, _dispatch.CPU, arguments.variant, "vjp", *names, needs=wanted)
    gradients = new_gradients((input1, input2), needs)
    results = tuple(_array(gradient) if needed else None for gradient, needed in zip(gradients, needs, strict=True))
    with workers.wishing(torch.get_num_threads()):
        chosen.vjp(asked, _array(cotangent), _array(input1), _array(input2), wanted, results)
    for gradient, result in zip(gradients, results, strict=True):
        if result is not None:
            _take(gradient, result)
    return gradients


def _array(tensor: torch.Tensor) -> np.ndarray:
    """Return the memory of a CPU tensor as an array; without `ml_dtypes`, a copy of bfloat16 as float32, which holds it exactly.

    `Tensor.numpy` would forbid torch to resize the tensor from then on.
    """
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    if tensor.dtype is torch.bfloat16 and _numpy_dtype(torch.bfloat16) == np.float32:
        tensor = tensor.float()
    buffer, shape, strides, dtype = _buffer(tensor.dtype, tensor.shape, tensor.stride())
    memory = buffer.from_address(tensor.data_ptr())
    memory.owner = tensor  # the array keeps the buffer, and thereby the tensor
    return np.ndarray(shape, dtype, memory, 0, strides)


@lru_cache(1024)
def _buffer(dtype: torch.dtype, shape: torch.Size, strides: tuple[int, ...]) -> tuple:
    """Return the ctypes type of a tensor's memory from its first element to its last, and NumPy's shape, strides and dtype."""
    element = _numpy_dtype(dtype)
    reach = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    bytes_ = (reach + 1) * element.itemsize if all(shape) else 0
    return ctypes.c_char * bytes_, tuple(shape), tuple(stride * element.itemsize for stride in strides), element


def _take(tensor: torch.Tensor, array: np.ndarray) -> None:
    """Finish writing to a tensor through its `_array`: without `ml_dtypes`, a bfloat16 tensor's was memory of its own."""
    if tensor.dtype is torch.bfloat16 and array.dtype == np.float32:
        tensor.copy_(torch.from_numpy(array))


@lru_cache
def _numpy_dtype(dtype: torch.dtype) -> np.dtype:
    name = ELEMENTS[dtype].name
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError:
        return np.dtype(np.float32)
    return np.dtype(ml_dtypes.bfloat16)


# On a GPU ---------------------------------------------------------------------------------------------------------------------


def forward_on_cuda(input1: torch.Tensor, input2: torch.Tensor, *given: Any) -> torch.Tensor:
    """The correlation of two CUDA tensors, on their device."""
    arguments = Arguments(*given)
    asked = ask_once(input1, input2, arguments)
    index = input1.device.index
    out = new_output(input1, arguments, asked)
    tensors = {"input1": input1, "input2": input2, "out": out}
    first, second, result = layouts = tuple(map(_layout, tensors.values()))
    orders = first.order, second.order
    chosen = _chosen_on_cuda(index, asked, arguments, "forward", first.dtype, result.dtype, orders)
    _launch(planner.forward_plan(chosen.name, asked, *layouts, index), tensors, input1)
    return out


def vjp_on_cuda(
    cotangent: torch.Tensor, input1: torch.Tensor, input2: torch.Tensor, needs: list[bool], *given: Any
) -> tuple[torch.Tensor, ...]:
    """The gradients of two CUDA tensors, on their device."""
    arguments = Arguments(*given)
    asked = ask_once(input1, input2, arguments)
    check_cotangent(cotangent, input1, arguments, asked)
    index = input1.device.index
    gradients = new_gradients((input1, input2), needs)
    layouts = tuple(_layout(gradient) if needed else None for gradient, needed in zip(gradients, needs, strict=True))
    inputs, outside = (_layout(input1), _layout(input2)), _layout(cotangent)
    orders = inputs[0].order, inputs[1].order
    chosen = _chosen_on_cuda(index, asked, arguments, "vjp", inputs[0].dtype, outside.dtype, orders, tuple(needs))
    tensors = {"cotangent": cotangent, "input1": input1, "input2": input2, "gradient1": gradients[0], "gradient2": gradients[1]}
    _launch(planner.vjp_plan(chosen.name, asked, outside, inputs, layouts, index), tensors, input1)
    return gradients


class Stream(NamedTuple):
    """A CUDA stream's address, under the names that launches and CuPy look for."""

    ptr: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.ptr


def _chosen_on_cuda(index: int, asked: Problem, arguments: Arguments, which: str, dtype: str, *rest: Any) -> _dispatch.Variant:
    """The variant that runs; if variants may be measured first, that goes to torch's stream and sees whether it is captured."""
    place = _dispatch.gpu(index)
    question = asked, place, arguments.variant, which, dtype, *rest
    precision = _precision(arguments.precision, dtype)
    if not _tuning.at_first_use():
        return _dispatch.choose(*question, precision=precision)
    devices = import_cupy().cuda
    with devices.Device(index), devices.Stream.from_external(Stream(current_stream(index))):
        return _dispatch.choose(*question, precision=precision)


def _launch(plan: planner.Plan, tensors: dict[str, torch.Tensor], like: torch.Tensor) -> None:
    """Run a plan on the stream that torch is on. Its workspace is torch's too, so that a captured graph keeps it."""
    addresses = {name: _address(name, tensor) for name, tensor in tensors.items()}
    addresses[NOWHERE.buffer] = 0
    if plan.workspace:
        workspace = like.new_empty(plan.workspace, dtype=torch.uint8)
        addresses["workspace"] = _address("workspace", workspace)
    plan.run(addresses, Stream(current_stream(like.device.index)))


_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # not public; a fortieth of the public call's time


def current_stream(index: int) -> int:
    """The address of torch's current stream of a device."""
    return torch.cuda.current_stream(index).cuda_stream if _raw_stream is None else _raw_stream(index)


def _address(name: str, tensor: torch.Tensor) -> int:
    address = tensor.data_ptr()
    if address % tensor.dtype.itemsize:
        raise ValueError(f"{name} must begin at a multiple of its {tensor.dtype.itemsize} bytes, got address {address:#x}")
    return address


def _layout(tensor: torch.Tensor) -> Layout:
    return _layout_once(tensor.dtype, tensor.shape, tensor.stride())


@lru_cache(1024)  # the same object at every call, which caches of plans recognise at a glance
def _layout_once(dtype: torch.dtype, shape: torch.Size, strides: tuple[int, ...]) -> Layout:
    steps = tuple(0 if size <= 1 else stride for size, stride in zip(shape, strides, strict=True))
    return Layout(ELEMENTS[dtype].name, tuple(shape), steps)
