"""NumPy, CuPy, torch and Dask arrays told apart without importing any of the four, and one name for what they have in common.

Importing CuPy or torch takes seconds and may fail, and a NumPy user must never pay for it. So an array's kind is the package that
defines its type. A GPU array of another library becomes a CuPy array of the same memory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from types import ModuleType
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from ._gpu.device import import_cupy


class Array(Protocol):
    """An array or a tensor, as a type checker sees it without the stubs of any array library."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each axis."""

    @property
    def dtype(self) -> Any:
        """The type of the elements."""


ArrayT = TypeVar("ArrayT", bound=Array)

_ARRAY_TYPES = {
    ("numpy", "ndarray"): "numpy",
    ("cupy", "ndarray"): "cupy",
    ("torch", "Tensor"): "torch",
    ("dask", "Array"): "dask",
}
_MODULES = {"dask": "dask.array"}  # of array functions, where it is not the kind's own name
_DLPACK_GPU = (2, 13)  # DLPack's device types of CUDA memory, plain and managed


class Role(NamedTuple):
    """The use of an argument, which decides what an error message tells the user to pass instead.

    ``instead_of_masked`` replaces a masked array; ``{name}`` stands for the argument, ``{floating}`` for the argument converted
    to a floating dtype. ``for_tensors`` is added where a torch tensor is refused.
    """

    instead_of_masked: str
    for_tensors: str = ""


_OPERATOR = "; for tensors there is cupycorr.torch.spatial_correlation_sample"
OPERAND = Role("{name}.filled(0)", _OPERATOR)  # a product with 0 adds nothing
RESULT = Role("{name}.data, which has the same memory, or no {name}", _OPERATOR)  # filled() would return a copy
FIELD = Role("{floating}.filled(numpy.nan)")  # any number would be a pixel or a displacement
SCORES = Role("{floating}.filled(-numpy.inf)")  # any number would be a score that may be the highest


def known_array(name: str, array: Any, role: Role = OPERAND, what: str = "a NumPy or CuPy array") -> Any:
    """Return a NumPy or CuPy array as it is, and a GPU array of another library as a CuPy array of the same memory.

    Error messages call the argument ``name`` and say that it must be ``what``.

    Raises
    ------
    TypeError
        It is anything else, such as a torch tensor or a masked array.
    ImportError
        It is on a GPU, and CuPy is not installed.
    """
    kind = array_kind(array)
    if kind == "torch":
        raise TypeError(
            f"{name} must be a NumPy or CuPy array, got a torch tensor: pass {_as_numpy(name, array)} from a CPU, "
            f"cupy.from_dlpack({name}.detach()) from a GPU{role.for_tensors}"
        )
    if kind == "dask":
        functions = "cupycorr.dask.match and cupycorr.dask.spatial_correlation_sample take Dask arrays"
        raise TypeError(f"{name} must be {what}, got a Dask array: {functions}")
    if kind is None and _on_gpu(array):
        return import_cupy().from_dlpack(array)
    if kind is None:
        raise TypeError(f"{name} must be {what}, got {type(array).__module__}.{type(array).__qualname__}")
    if isinstance(array, np.ma.MaskedArray):
        floating = name if array.dtype.kind == "f" or array.dtype.name == "bfloat16" else f"{name}.astype(float)"
        remedy = role.instead_of_masked.format(name=name, floating=floating)
        raise TypeError(f"{name} must not be a masked array, whose mask would be lost: pass {remedy}")
    return array


def _as_numpy(name: str, tensor: Any) -> str:
    """Return an expression that views a CPU tensor as a NumPy array. For bfloat16, torch itself has none."""
    if str(tensor.dtype) == "torch.bfloat16":
        return f"{name}.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)"
    return f"{name}.detach().numpy()"


def known_array_or_tensor(name: str, array: Any) -> Any:
    """Return a dense torch tensor as it is, and check anything else by `known_array`, as a volume of scores."""
    if is_tensor(array):
        return dense_tensor(name, array)
    return known_array(name, array, SCORES, "a NumPy or CuPy array or a torch tensor")


def dense_tensor(name: str, tensor: Any) -> Any:
    """Return a torch tensor as it is, provided that it has strides and its elements are plain numbers.

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
    """Return the Python number in a torch tensor of no dimensions, and anything else as it is.

    Raises
    ------
    TypeError
        The tensor needs a gradient, which a Python number cannot have (``remedy`` says what to do instead); it has dimensions;
        its element is not a real number; or it is on a GPU, for which the call would have to wait.
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
    """Check each of the named arrays by `known_array`, and that all are of one kind and on one device.

    Raises
    ------
    TypeError
        One is not an array, or they are of different kinds.
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
    """Return whether a value is a torch tensor.

    `array_kind` would do, but torch.compile warns about functions with a cache, and this one it can trace.
    """
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def array_module(array: Any) -> ModuleType:
    """Return the module whose functions work on an array or a tensor: `numpy`, `cupy`, `torch` or `dask.array`."""
    kind = "torch" if is_tensor(array) else array_kind(array)
    assert kind is not None, "the array was checked by known_array"
    return sys.modules[_MODULES.get(kind, kind)]


def current_device_of(array: Any) -> AbstractContextManager[Any]:
    """Return a context in which CuPy works on the array's device. NumPy, torch and Dask need none."""
    return nullcontext() if is_tensor(array) or array_kind(array) != "cupy" else array.device


def converted(array: Any, dtype: str) -> Any:
    """Return an array or a tensor in the dtype of this name, without a copy if it has that dtype already."""
    named = getattr(array_module(array), dtype)
    return array.to(named) if is_tensor(array) else array.astype(named, copy=False)


def to_numpy(array: Any) -> np.ndarray:
    """Return the values of an array or a tensor as a NumPy array. NumPy must have its dtype."""
    if is_tensor(array):
        return array.numpy(force=True)
    return array if array_kind(array) == "numpy" else array.get()


def may_share_memory(array: Any, *others: Any) -> bool:
    """Return whether the range from first to last byte of an array overlaps that of another one of the same kind."""
    if array_kind(array) == "numpy":
        return any(np.may_share_memory(array, other) for other in others)
    # CuPy's own function does not notice that two imports of another library's array have the same memory.
    begin, end = _byte_bounds(array)
    for other in others:
        first, last = _byte_bounds(other)
        if begin < last and first < end:
            return True
    return False


def _byte_bounds(array: Any) -> tuple[int, int]:
    span, begin = _span(array.shape, array.strides, array.dtype.itemsize), array.data.ptr
    return (0, 0) if span is None else (begin + span[0], begin + span[1])  # the first overlaps nothing


@lru_cache(1024)
def _span(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, int] | None:
    """Return the bytes from an array's address to its first and behind its last one; None for an array without elements."""
    if 0 in shape:
        return None
    spans = [stride * (size - 1) for size, stride in zip(shape, strides, strict=True)]
    return sum(min(span, 0) for span in spans), sum(max(span, 0) for span in spans) + itemsize


def elements_overlap(array: Any) -> bool:
    """Return whether two elements of a NumPy or CuPy array have a byte in common, as those of a broadcast array have."""
    return _elements_overlap(array.shape, array.strides, array.dtype.itemsize)


@lru_cache(1024)
def _elements_overlap(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    axes = sorted(((abs(stride), size) for stride, size in zip(strides, shape, strict=True) if size > 1), reverse=True)
    if not axes or 0 in shape:
        return False
    return axes[-1][0] < itemsize or _two_meet(axes, itemsize, 0, False)


def _two_meet(axes: Sequence[tuple[int, int]], itemsize: int, apart: int, differ: bool) -> bool:
    """Return whether two elements have a byte in common that are so many bytes apart by the axes before these.

    ``axes`` are strides and sizes, from the largest stride on. ``differ`` says that the two differ along an axis before; if not,
    the second is the later one. Only steps that the axes with smaller strides can take back are tried, which for the strides of a
    dense array, or of a part of one, is none.
    """
    if not axes:
        return differ and abs(apart) < itemsize
    (stride, size), *smaller = axes
    reach = itemsize - 1 + sum(each * (count - 1) for each, count in smaller)
    first = max(-((reach + apart) // stride), 1 - size if differ else 0)
    last = min((reach - apart) // stride, size - 1)
    return any(_two_meet(smaller, itemsize, apart + step * stride, differ or step != 0) for step in range(first, last + 1))


def array_kind(array: Any) -> str | None:
    """Return ``"numpy"``, ``"cupy"``, ``"torch"`` or ``"dask"``, and None for anything else."""
    array_type: Any = type(array)  # mypy takes a class for unhashable
    return _kind_of_type(array_type)


@lru_cache
def _kind_of_type(array_type: type) -> str | None:
    return next((found for base in array_type.__mro__ if (found := _ARRAY_TYPES.get(_identity(base)))), None)


def _identity(base: type) -> tuple[str, str]:
    return base.__module__.partition(".")[0], base.__qualname__


def _on_gpu(array: Any) -> bool:
    """Return whether an array of another library reports through DLPack that its memory is on a GPU."""
    device_of = getattr(type(array), "__dlpack_device__", None)
    return device_of is not None and hasattr(array, "__dlpack__") and device_of(array)[0] in _DLPACK_GPU
