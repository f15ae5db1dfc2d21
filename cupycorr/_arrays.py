"""NumPy, CuPy and torch told apart without importing them, the array module of each, and other libraries' GPU arrays as CuPy's.

Importing CuPy or torch takes seconds and may fail; a NumPy user must never pay for it. Types are recognised by the package
they are defined in.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ._gpu.device import import_cupy

_ARRAY_TYPES = {("numpy", "ndarray"): "numpy", ("cupy", "ndarray"): "cupy", ("torch", "Tensor"): "torch"}


_DLPACK_GPU = (2, 13)  # DLPack's device types of CUDA memory, plain and managed


class Role(NamedTuple):
    """The use of an argument, which decides what to pass in the place of a masked array or a tensor.

    ``masked`` is said with the argument's ``name``, and with what makes its array ``floating`` where it is not.
    """

    masked: str
    for_tensors: str = ""


_OPERATOR = "; for tensors there is cupycorr.torch.spatial_correlation_sample"
OPERAND = Role("{name}.filled(0)", _OPERATOR)  # a product with 0 counts for nothing
RESULT = Role("{name}.data, which has the same memory, or no {name}", _OPERATOR)  # what filled() returns would be a copy
FRAME = Role("{floating}.filled(numpy.nan)")  # any number would be a pixel, with edges around it
SCORES = Role("{floating}.filled(-numpy.inf)")  # any number would be a score that may be the highest


def known_array(name: str, array: Any, role: Role = OPERAND, what: str = "a NumPy or CuPy array") -> Any:
    """The array itself if it is NumPy's or CuPy's; another library's on a GPU as a CuPy array of the same memory.

    ``name`` is the argument's and ``what`` what it must be, for the messages.

    Raises
    ------
    TypeError
        Anything else, a torch tensor and a masked array among them.
    ImportError
        It is on a GPU, and CuPy is not installed.
    """
    kind = array_kind(array)
    if kind == "torch":
        raise TypeError(
            f"{name} must be a NumPy or CuPy array, got a torch tensor: pass {_tensors_array(name, array)} from a CPU, "
            f"cupy.from_dlpack({name}.detach()) from a GPU{role.for_tensors}"
        )
    if kind is None and _on_gpu(array):
        return import_cupy().from_dlpack(array)
    if kind is None:
        raise TypeError(f"{name} must be {what}, got {type(array).__module__}.{type(array).__qualname__}")
    if isinstance(array, np.ma.MaskedArray):
        floating = name if array.dtype.kind == "f" or array.dtype.name == "bfloat16" else f"{name}.astype(float)"
        remedy = role.masked.format(name=name, floating=floating)
        raise TypeError(f"{name} must not be a masked array, whose mask would be lost: pass {remedy}")
    return array


def _tensors_array(name: str, tensor: Any) -> str:
    """An expression for the NumPy array with the memory of a CPU tensor; torch has none for bfloat16."""
    if str(tensor.dtype) == "torch.bfloat16":
        return f"{name}.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)"
    return f"{name}.detach().numpy()"


def known_array_or_tensor(name: str, array: Any) -> Any:
    """A volume of scores: a dense torch tensor itself, anything else as `known_array`."""
    if is_tensor(array):
        return dense_tensor(name, array)
    return known_array(name, array, SCORES, "a NumPy or CuPy array or a torch tensor")


def dense_tensor(name: str, tensor: Any) -> Any:
    """Return a torch tensor whose elements are numbers in memory with strides.

    Raises
    ------
    TypeError
        The tensor is sparse, of another library's layout, nested or quantized; the message says how to make it dense.
    """
    if tensor.is_nested:
        raise TypeError(
            f"{name} must be a dense tensor, got a nested one: pass the tensors in it, or torch.nested.to_padded_tensor"
        )
    if tensor.layout is not sys.modules["torch"].strided:
        raise TypeError(f"{name} must be a dense tensor, got {name}.layout={tensor.layout}: pass {name}.to_dense()")
    if tensor.is_quantized:
        raise TypeError(f"{name} must not be quantized, got {name}.dtype={_dtype_name(tensor)}: pass {name}.dequantize()")
    return tensor


def plain_number(name: str, value: Any, remedy: str) -> Any:
    """Return a torch tensor of no dimensions as the Python number in it, and anything else as it is.

    Raises
    ------
    TypeError
        The tensor needs a gradient, which its number would not have (``remedy`` says what to do instead); it has dimensions or
        no real number; or it is not on the CPU, where the call would wait for the device.
    """
    if not is_tensor(value):
        return value
    if value.requires_grad or sys.modules["torch"].autograd.forward_ad.unpack_dual(value).tangent is not None:
        raise TypeError(f"{name} must be a number, which has no gradient, got a tensor that needs one: {remedy}")
    if value.ndim or value.is_complex() or _dtype_name(value) == "bool":
        got = f"a tensor of shape {tuple(value.shape)} and dtype {_dtype_name(value)}"
        raise TypeError(f"{name} must be a real number, got {got}")
    if value.device.type != "cpu":
        raise TypeError(f"{name} must be a number on the CPU, got a tensor on {value.device}: pass {name}.item(), or {remedy}")
    return value.item()


def _dtype_name(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def known_arrays(role: Role = OPERAND, /, **arrays: Any) -> tuple[Any, ...]:
    """`known_array` of each of the named arrays, which must be together.

    Raises
    ------
    TypeError
        One is no array, or they are of different kinds.
    ValueError
        They are on different devices.
    """
    known = {name: known_array(name, array, role) for name, array in arrays.items()}
    kinds = {name: array_kind(array) for name, array in known.items()}
    names = " and ".join(known)
    if len(set(kinds.values())) > 1:
        got = ", ".join(f"{name} on {kind}" for name, kind in kinds.items())
        raise TypeError(f"{names} must be arrays of the same kind, got {got}")
    devices = [array.device for array in known.values()]
    if any(device != devices[0] for device in devices):
        raise ValueError(f"{names} must be on the same device, got {' and '.join(map(str, devices))}")
    return tuple(known.values())


def is_tensor(array: Any) -> bool:
    """Whether it is a torch tensor, asked in a way that torch.compile traces: it warns of functions that remember."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def array_module(array: Any) -> ModuleType:
    """The module whose functions work on a known array or a tensor: `numpy`, `cupy` or `torch`."""
    return sys.modules["torch" if is_tensor(array) else array_kind(array)]


def current_device_of(array: Any) -> AbstractContextManager:
    """While it is entered, CuPy works on the array's device; the others need no telling."""
    return nullcontext() if is_tensor(array) or array_kind(array) == "numpy" else array.device


def converted(array: Any, dtype: str) -> Any:
    """A known array or a tensor as a dtype that its own module has under this name; not copied where it is one already."""
    named = getattr(array_module(array), dtype)
    return array.to(named) if is_tensor(array) else array.astype(named, copy=False)


def to_numpy(array: Any) -> np.ndarray:
    """The values of a known array or a tensor, which NumPy must have a dtype for, on the CPU."""
    if is_tensor(array):
        return array.numpy(force=True)
    return array if array_kind(array) == "numpy" else array.get()


def may_share_memory(first: Any, second: Any) -> bool:
    """Whether two known arrays of one kind may have bytes in common: whether the stretches from first to last byte overlap."""
    if array_kind(first) == "numpy":
        return np.may_share_memory(first, second)
    # CuPy's own function takes two imports of the same foreign memory for strangers.
    (begin1, end1), (begin2, end2) = _byte_bounds(first), _byte_bounds(second)
    return begin1 < end2 and begin2 < end1


def _byte_bounds(array: Any) -> tuple[int, int]:
    reaches = [stride * (size - 1) for size, stride in zip(array.shape, array.strides, strict=True)]
    begin = array.data.ptr + sum(min(reach, 0) for reach in reaches)
    end = array.data.ptr + sum(max(reach, 0) for reach in reaches) + array.dtype.itemsize
    return begin, end if array.size else begin


def array_kind(array: Any) -> str | None:
    """``"numpy"``, ``"cupy"``, ``"torch"``, or None for anything else."""
    return _kind_of_type(type(array))


@lru_cache
def _kind_of_type(kind: type) -> str | None:
    return next((found for base in kind.__mro__ if (found := _ARRAY_TYPES.get(_identity(base)))), None)


def _identity(base: type) -> tuple[str, str]:
    return base.__module__.partition(".")[0], base.__qualname__


def _on_gpu(array: Any) -> bool:
    """Whether an array of another library says that its memory is on a GPU."""
    tells = getattr(type(array), "__dlpack_device__", None)
    return tells is not None and hasattr(array, "__dlpack__") and tells(array)[0] in _DLPACK_GPU
