"""Tensors as plans take them: NumPy views on the CPU, addresses and layouts on a GPU, and the run of a plan.

Knows no operator. Memory is shared, except for negated views, and for bfloat16 without `ml_dtypes`, which are copied. A CPU
tensor is seen as a NumPy array of the same memory. A CUDA tensor gives its address and its strides; the kernels are launched
on torch's current stream of its device, and torch allocates their workspace.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import _dispatch, _repeats, _tuning
from .._arguments import HIGH, HIGHEST
from .._cpu import workers
from .._cpu.pages import prefer_huge_pages
from .._dispatch import CPU, Choice, New, Operator, Request
from .._dtypes import ELEMENT_TYPES, INDEX_TYPES, ElementType, element_type_called, index_type_called
from .._gpu import plan as gpu
from .._gpu.device import import_cupy
from .._gpu.layout import Layout
from .._repeats import NOTHING, Found, Key, Repeat

ELEMENTS = {getattr(torch, name): row for name, row in ELEMENT_TYPES.items()}
_NAMES = {getattr(torch, name): name for name in (*ELEMENT_TYPES, *INDEX_TYPES)}


def element(name: str, dtype: torch.dtype) -> ElementType:
    """Return the row of a tensor's dtype; ``name`` is the argument's, for the message."""
    return ELEMENTS.get(dtype) or element_type_called(name, _name(dtype))


def index_type(name: str, dtype: torch.dtype) -> str:
    """Return the name of the dtype of a tensor of indices; ``name`` is the argument's, for the message."""
    return index_type_called(name, _name(dtype)).name


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which sums of a dtype's numbers are kept."""
    found: torch.dtype = getattr(torch, ELEMENTS[dtype].accumulator)
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_device(name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Refuse tensors on two devices."""
    if tensor.device != other.device:
        raise ValueError(f"{name} and {other_name} must be on the same device, got {tensor.device} and {other.device}")


def new_gradients(inputs: Iterable[torch.Tensor], needs: Iterable[bool]) -> tuple[torch.Tensor, ...]:
    """Return tensors for the gradients, to be filled; an empty one in place of each that is not needed."""
    return tuple([_new_gradient(x, torch.contiguous_format, needed) for x, needed in zip(inputs, needs, strict=True)])


def new_gradients_of_maps(maps: Iterable[torch.Tensor], needs: Iterable[bool]) -> tuple[torch.Tensor, ...]:
    """Return `new_gradients` in which those of channels-last CPU tensors are channels-last too.

    Kernels for the CPU compute them so, and autograd adds gradients of one memory order faster.
    """
    return tuple([_new_gradient(x, _memory_format(x), needed) for x, needed in zip(maps, needs, strict=True)])


def _new_gradient(x: torch.Tensor, memory_format: torch.memory_format, needed: bool) -> torch.Tensor:
    # `empty_like` takes two thirds of the time of `new_empty` with the shape.
    return torch.empty_like(x, memory_format=memory_format) if needed else x.new_empty((0,))


def _memory_format(x: torch.Tensor) -> torch.memory_format:
    last = not on_gpu(x) and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


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


def _layout(dtype: torch.dtype, shape: torch.Size, strides: tuple[int, ...]) -> Layout:
    steps = tuple(0 if size <= 1 else stride for size, stride in zip(shape, strides, strict=True))
    return Layout(_NAMES[dtype], tuple(shape), steps)


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


def look_up(operator: Operator, pass_name: str, tensors: Sequence[torch.Tensor], given: Iterable[Any]) -> Found:
    """Look up a call on tensors on a GPU, as `_repeats.look_up` does.

    Parameters
    ----------
    operator, pass_name
        The operator and its pass.
    tensors
        The tensors in the order of a request's layouts.
    given
        The other arguments as torch passes them: a schema has made each of the type that it must have.
    """
    if not on_gpu(tensors[0]):
        return NOTHING
    kinds = tuple([(x.shape, x.stride(), x.dtype, x.device) for x in tensors])
    values = tuple([tuple(value) if type(value) is list else value for value in given])
    return _repeats.look_up(operator, pass_name, kinds, (values, precision(None, tensors[0])))


def forward_again(repeat: Repeat, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Run a forward map that was found, and return its output."""
    like, (new,) = tensors[0], repeat.results
    assert new is not None
    out = like.new_empty(new.shape, dtype=new.dtype)
    launch(repeat.plan, (*tensors, out), like)
    return out


def run(
    operator: Operator,
    request: Request,
    variant: str,
    tensors: Mapping[str, torch.Tensor],
    results: Collection[str],
    key: Key | None = None,
) -> None:
    """Answer a request: read and write the named tensors, of which ``results`` are written, and keep the call by a key."""
    like = next(iter(tensors.values()))
    if on_gpu(like):
        choice = _choice_on_gpu(operator, request, variant, like.device.index)
        on_device: Any = choice.plan  # a `gpu.Plan`
        launch(on_device, [tensors[name] for name in on_device.itemsizes], like)
        # `new_empty` takes a tuple in three quarters of the time of a `torch.Size`.
        _repeats.keep(key, choice, tuple(New(name, tuple(tensors[name].shape), tensors[name].dtype) for name in results))
        return
    plan = _dispatch.choose(operator, request, CPU, variant).plan
    arrays = {name: array(tensor) for name, tensor in tensors.items()}
    for name in results:
        prefer_huge_pages(arrays[name])
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
    name = _NAMES[dtype]
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


@lru_cache
def stream_at(pointer: int) -> Stream:
    """Return the stream of an address; a dictionary finds it in half the time that it takes to make it."""
    return Stream(pointer)


def _choice_on_gpu(operator: Operator, request: Request, variant: str, index: int) -> Choice:
    """Return the variant and the plan that run. Variants are measured on torch's stream, so that a capture of it is noticed."""
    place = _dispatch.gpu(index)
    if not _tuning.at_first_use():
        return _dispatch.choose(operator, request, place, variant)
    cuda = import_cupy().cuda
    with cuda.Device(index), cuda.Stream.from_external(Stream(current_stream(index))):
        return _dispatch.choose(operator, request, place, variant)


def launch(plan: gpu.Plan, tensors: Iterable[torch.Tensor], like: torch.Tensor) -> None:
    """Run a plan on tensors in its order, on torch's current stream.

    Its workspace is torch's too, so that a captured graph keeps it.
    """

    def allocate(size: int) -> tuple[int, torch.Tensor]:
        memory = like.new_empty(size, dtype=torch.uint8)
        return addresses((memory,))[0], memory

    gpu.run(plan, addresses(tensors), allocate, stream_at(current_stream(plan.device)))


def addresses(tensors: Iterable[torch.Tensor]) -> list[int]:
    """Return where the memory of each tensor begins. Tests replace this function."""
    return [tensor.data_ptr() for tensor in tensors]


_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # not public; a fortieth of the public call's time


def current_stream(index: int) -> int:
    """Return the address of torch's current stream of a device."""
    return torch.cuda.current_stream(index).cuda_stream if _raw_stream is None else _raw_stream(index)
