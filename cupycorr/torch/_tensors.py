"""Tensors as plans take them: NumPy views on the CPU, addresses and layouts on a GPU, and the run of a plan.

Knows no operator. Memory is shared, except for negated views, and for bfloat16 without `ml_dtypes`, which are copied. A CPU
tensor is seen as a NumPy array of the same memory. A CUDA tensor gives its address and its strides; the kernels are launched
on torch's current stream of its device, and torch allocates their workspace.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import _dispatch, _tuning
from .._arguments import HIGH, HIGHEST
from .._cpu import workers
from .._dispatch import CPU, Operator, Request
from .._dtypes import ELEMENT_TYPES, ElementType, element_type_called
from .._gpu import plan as gpu
from .._gpu.device import import_cupy
from .._gpu.layout import Layout

ELEMENTS = {getattr(torch, name): row for name, row in ELEMENT_TYPES.items()}


def element(name: str, dtype: torch.dtype) -> ElementType:
    """Return the row of a tensor's dtype; ``name`` is the argument's, for the message."""
    return ELEMENTS.get(dtype) or element_type_called(name, str(dtype).removeprefix("torch."))


def check_device(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Refuse tensors on two devices."""
    if tensor.device != other.device:
        raise ValueError(f"{name} and {other_name} must be on the same device, got {tensor.device} and {other.device}")


def new_gradients(inputs: Iterable[torch.Tensor], needs: Iterable[bool]) -> tuple[torch.Tensor, ...]:
    """Return tensors for the gradients, to be filled; an empty one in place of each that is not needed."""
    return tuple(x.new_empty(x.shape if needed else (0,)) for x, needed in zip(inputs, needs, strict=True))


# Requests ---------------------------------------------------------------------------------------------------------------------


def on_gpu(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is on a GPU."""
    return tensor.is_cuda


def dtype_name(tensor: torch.Tensor) -> str:
    """Return the name of the dtype that a plan sees: a CPU without `ml_dtypes` sees bfloat16 as float32."""
    return ELEMENTS[tensor.dtype].name if on_gpu(tensor) else _numpy_dtype_name(tensor.dtype)


def layouts(*tensors: torch.Tensor | None) -> tuple[Layout | None, ...]:
    """Return the layouts of tensors on a GPU, None where there is none; nothing on the CPU, where they decide nothing."""
    if not any(tensor is not None and on_gpu(tensor) for tensor in tensors):
        return ()
    return tuple([None if tensor is None else _layout(tensor.dtype, tensor.shape, tensor.stride()) for tensor in tensors])


@lru_cache(1024)  # the same object at every call, which caches of plans recognise by its identity
def _layout(dtype: torch.dtype, shape: torch.Size, strides: tuple[int, ...]) -> Layout:
    steps = tuple(0 if size <= 1 else stride for size, stride in zip(shape, strides, strict=True))
    return Layout(ELEMENTS[dtype].name, tuple(shape), steps)


def precision(given: str | None, tensor: torch.Tensor) -> str:
    """Return the precision of float32 products: if the caller gave none, torch's current setting for matrix products on a GPU."""
    if not on_gpu(tensor):
        return HIGHEST
    if given is not None or tensor.dtype != torch.float32:
        return given or HIGHEST
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set through the newer API, which the older function cannot express
        return HIGH if torch.backends.cuda.matmul.fp32_precision == "tf32" else HIGHEST


# Running ----------------------------------------------------------------------------------------------------------------------


def run(
    operator: Operator, request: Request, variant: str, tensors: Mapping[str, torch.Tensor], results: Collection[str]
) -> None:
    """Answer a request: read and write the named tensors, of which ``results`` are written."""
    like = next(iter(tensors.values()))
    if on_gpu(like):
        _launch(_plan_on_gpu(operator, request, variant, like.device.index), tensors, like)
        return
    plan = _dispatch.choose(operator, request, CPU, variant).plan
    arrays = {name: array(tensor) for name, tensor in tensors.items()}
    with workers.prefer_threads(torch.get_num_threads()):
        plan.run(arrays)
    for name in results:
        _take(tensors[name], arrays[name])


def array(tensor: torch.Tensor) -> np.ndarray:
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
    stored = _numpy_dtype(dtype)
    reach = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    bytes_ = (reach + 1) * stored.itemsize if all(shape) else 0
    return ctypes.c_char * bytes_, tuple(shape), tuple(stride * stored.itemsize for stride in strides), stored


def _take(tensor: torch.Tensor, written: np.ndarray) -> None:
    """Finish writing to a tensor through its `array`: without `ml_dtypes`, the memory of a bfloat16 tensor's array is its own."""
    if tensor.dtype is torch.bfloat16 and written.dtype == np.float32:
        tensor.copy_(torch.from_numpy(written))


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


@lru_cache
def _numpy_dtype_name(dtype: torch.dtype) -> str:
    return _numpy_dtype(dtype).name


class Stream(NamedTuple):
    """A CUDA stream's address, under the names that launches and CuPy look for."""

    ptr: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.ptr


def _plan_on_gpu(operator: Operator, request: Request, variant: str, index: int) -> Any:
    """Return the plan that runs. Variants are measured on torch's stream, so that a capture of it is noticed."""
    place = _dispatch.gpu(index)
    if not _tuning.at_first_use():
        return _dispatch.choose(operator, request, place, variant).plan
    cuda = import_cupy().cuda
    with cuda.Device(index), cuda.Stream.from_external(Stream(current_stream(index))):
        return _dispatch.choose(operator, request, place, variant).plan


def _launch(plan: gpu.Plan, tensors: Mapping[str, torch.Tensor], like: torch.Tensor) -> None:
    """Run a plan on torch's current stream. Its workspace is torch's too, so that a captured graph keeps it."""

    def allocate(size: int) -> tuple[int, torch.Tensor]:
        memory = like.new_empty(size, dtype=torch.uint8)
        return address(gpu.WORKSPACE, memory), memory

    addresses = {name: address(name, tensor) for name, tensor in tensors.items()}
    gpu.run(plan, addresses, allocate, Stream(current_stream(like.device.index)))


def address(name: str, tensor: torch.Tensor) -> int:
    """Return where the memory of a tensor begins. ``name`` is unused: tests replace this function and need it."""
    return tensor.data_ptr()


_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # not public; a fortieth of the public call's time


def current_stream(index: int) -> int:
    """Return the address of torch's current stream of a device."""
    return torch.cuda.current_stream(index).cuda_stream if _raw_stream is None else _raw_stream(index)
