"""Tensors whose operations are recorded as ONNX nodes, with the methods of torch's tensors that `_formulas` uses.

The exporter of torch records a node for each operator of onnxscript that is called. A tensor here is the result of a node and the
dtype that it has in torch; the tensors that the exporter passes have shapes, too. Only `cupycorr.torch.onnx_table` imports this
module, because it needs onnxscript.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import ir, opset18

op: Any = opset18  # annotated for tensors, but the exporter's recorder takes numbers, too
_NAMES = {
    torch.float16: "FLOAT16",
    torch.bfloat16: "BFLOAT16",
    torch.float32: "FLOAT",
    torch.float64: "DOUBLE",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.bool: "BOOL",
}
ONNX_TYPES = {dtype: ir.DataType[name] for dtype, name in _NAMES.items()}
TORCH_TYPES: dict[Any, torch.dtype] = {onnx: dtype for dtype, onnx in ONNX_TYPES.items()}


class Recorded:
    """The result of an ONNX node.

    Attributes
    ----------
    value
        The result, as onnxscript knows it.
    dtype
        Its dtype in torch.
    """

    def __init__(self, value: Any, dtype: torch.dtype) -> None:
        self.value, self.dtype = value, dtype

    @property
    def shape(self) -> tuple[Any, ...]:
        """The sizes of a tensor that the exporter passed: numbers, or scalars in int64 where the graph is made for any size."""
        return tuple(
            size if isinstance(size, int) else Recorded(op.Squeeze(op.Shape(self.value, start=axis, end=axis + 1)), torch.int64)
            for axis, size in enumerate(self.value.shape)
        )

    # Arithmetic.

    def _with(self, node: Any, other: Any, dtype: torch.dtype | None = None) -> Recorded:
        return Recorded(node(self.value, self._like(other)), dtype or self.dtype)

    def _like(self, other: Any) -> Any:
        """Return a number, or a tensor of the same dtype, as nodes take it."""
        return other.to(self.dtype).value if isinstance(other, Recorded) else constant(other, self.dtype)

    def __add__(self, other: Any) -> Recorded:
        return self if _is(other, 0) else self._with(op.Add, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Recorded:
        return self if _is(other, 0) else self._with(op.Sub, other)

    def __rsub__(self, other: Any) -> Recorded:
        return Recorded(op.Sub(self._like(other), self.value), self.dtype)

    def __mul__(self, other: Any) -> Recorded:
        return self if _is(other, 1) else self._with(op.Mul, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Recorded:
        return self if _is(other, 1) else self._with(op.Div, other)

    def __floordiv__(self, other: Any) -> Recorded:
        """Divide whole numbers that are not negative."""
        return self if _is(other, 1) else self._with(op.Div, other)

    def __matmul__(self, other: Recorded) -> Recorded:
        return self._with(op.MatMul, other)

    def __ge__(self, other: Any) -> Recorded:
        return self._with(op.GreaterOrEqual, other, torch.bool)

    def __lt__(self, other: Any) -> Recorded:
        return self._with(op.Less, other, torch.bool)

    def __eq__(self, other: object) -> Recorded:  # type: ignore[override]
        return self._with(op.Equal, other, torch.bool)

    def __ne__(self, other: object) -> Recorded:  # type: ignore[override]
        return Recorded(op.Not((self == other).value), torch.bool)

    __hash__ = object.__hash__

    def __and__(self, other: Recorded) -> Recorded:
        return self._with(op.And, other)

    def abs(self) -> Recorded:
        """Return absolute values."""
        return Recorded(op.Abs(self.value), self.dtype)

    def exp(self) -> Recorded:
        """Return exponentials."""
        return Recorded(op.Exp(self.value), self.dtype)

    def floor(self) -> Recorded:
        """Return the next lower whole numbers."""
        return Recorded(op.Floor(self.value), self.dtype)

    def log(self) -> Recorded:
        """Return natural logarithms."""
        return Recorded(op.Log(self.value), self.dtype)

    def clamp(self, low: Any, high: Any) -> Recorded:
        """Return the nearest numbers that are not outside an interval."""
        return Recorded(op.Clip(self.value, self._like(low), self._like(high)), self.dtype)

    def to(self, dtype: torch.dtype) -> Recorded:
        """Return the numbers in another dtype."""
        return self if dtype == self.dtype else Recorded(op.Cast(self.value, to=int(ONNX_TYPES[dtype])), dtype)

    def where(self, condition: Recorded, other: Any) -> Recorded:
        """Return another tensor's elements, or a number, where a condition does not hold."""
        return Recorded(op.Where(condition.value, self.value, self._like(other)), self.dtype)

    # Reductions.

    def sum(self, axis: int) -> Recorded:
        """Return the sum over an axis."""
        return Recorded(op.ReduceSum(self.value, [axis], keepdims=0), self.dtype)

    def amax(self, axis: int, keepdim: bool) -> Recorded:
        """Return the largest number along an axis."""
        return Recorded(op.ReduceMax(self.value, [axis], keepdims=int(keepdim)), self.dtype)

    def amin(self, axis: int, keepdim: bool) -> Recorded:
        """Return the smallest number along an axis."""
        return Recorded(op.ReduceMin(self.value, [axis], keepdims=int(keepdim)), self.dtype)

    # Places of elements.

    def reshape(self, sizes: Sequence[Any]) -> Recorded:
        """Return the same elements in another shape."""
        has_rest = any(_is(size, -1) for size in sizes)
        return Recorded(op.Reshape(self.value, vector(sizes), allowzero=int(not has_rest)), self.dtype)

    def permute(self, axes: Sequence[int]) -> Recorded:
        """Return the axes in another order."""
        return Recorded(op.Transpose(self.value, perm=list(axes)), self.dtype)

    def unsqueeze(self, axis: int) -> Recorded:
        """Return the tensor with a new axis of one element."""
        return Recorded(op.Unsqueeze(self.value, [axis]), self.dtype)

    def squeeze(self, axis: int) -> Recorded:
        """Return the tensor without an axis of one element."""
        return Recorded(op.Squeeze(self.value, [axis]), self.dtype)

    def select(self, axis: int, index: int) -> Recorded:
        """Return the elements at an index of an axis."""
        return Recorded(op.Gather(self.value, constant(index, torch.int64), axis=axis), self.dtype)

    def gather(self, axis: int, index: Recorded) -> Recorded:
        """Return along an axis the elements at indices of their own."""
        return Recorded(op.GatherElements(self.value, index.value, axis=axis), self.dtype)

    def new_empty(self, shape: Sequence[int]) -> Recorded:
        """Return a tensor whose elements do not matter."""
        return Recorded(constant([], self.dtype), self.dtype)


class Functions:
    """The steps of formulas that are no methods of tensors, for recorded tensors."""

    def numbers(self, count: Any, first: int = 0, step: int = 1) -> Recorded:
        """Return so many whole numbers, in int64."""
        if isinstance(count, int):
            return self.constant(range(first, first + step * count, step), torch.int64)
        start, apart = (constant(each, torch.int64) for each in (first, step))
        return Recorded(op.Range(start, (count * step + first).value, apart), torch.int64)

    def constant(self, values: Sequence[float], dtype: torch.dtype) -> Recorded:
        """Return a vector of numbers."""
        return Recorded(constant(list(values), dtype), dtype)

    def vector(self, sizes: Sequence[Any]) -> Recorded:
        """Return a vector of sizes, in int64."""
        return Recorded(vector(sizes), torch.int64)

    def cat(self, tensors: Sequence[Recorded], axis: int) -> Recorded:
        """Return tensors joined along an axis."""
        first, *others = tensors
        return Recorded(op.Concat(*(each.value for each in tensors), axis=axis), first.dtype) if others else first

    def split(self, x: Recorded, axis: int, count: int) -> Sequence[Recorded]:
        """Return the elements of an axis, each as a tensor in which the axis has one element."""
        return [Recorded(each, x.dtype) for each in op.Split(x.value, num_outputs=count, axis=axis)] if count > 1 else [x]

    def taken(self, x: Recorded, axis: int, index: Recorded) -> Recorded:
        """Return the elements at indices of an axis; the axes of the indices take its place."""
        return Recorded(op.Gather(x.value, index.value, axis=axis), x.dtype)

    def part(self, x: Recorded, axis: int, start: int, stop: Any, step: int = 1) -> Recorded:
        """Return the elements of a tensor from one index to another of an axis."""
        return Recorded(op.Slice(x.value, [start], vector([stop]), [axis], [step]), x.dtype)

    def padded(self, x: Recorded, axis: int, count: int) -> Recorded:
        """Return a tensor with so many zeros before and after it along an axis."""
        return Recorded(op.Pad(x.value, [count, count], constant(0, x.dtype), [axis]), x.dtype)


def _is(value: Any, number: int) -> bool:
    return type(value) is int and value == number


def constant(value: Any, dtype: torch.dtype) -> Any:
    """Return a number or a list of numbers as the result of a node."""
    return op.Constant(value=ir.tensor(value, dtype=ONNX_TYPES[dtype]))


def vector(sizes: Sequence[Any]) -> Any:
    """Return sizes, some of which may be scalars, as the result of a node."""
    if all(isinstance(size, int) for size in sizes):
        return constant(list(sizes), torch.int64)
    parts = (constant([size], torch.int64) if isinstance(size, int) else op.Unsqueeze(size.value, [0]) for size in sizes)
    return op.Concat(*parts, axis=0)


def recorded(formula: Callable[..., Any], *arguments: Any) -> Any:
    """Record the nodes of a formula, and return its results as the exporter takes them."""
    found = formula(Functions(), *map(_of_exporter, arguments))
    return tuple(each.value for each in found) if isinstance(found, tuple) else found.value


def _of_exporter(argument: Any) -> Any:
    """Return an argument as formulas take it: the exporter passes tensors as values, and dtypes as those of ONNX."""
    if isinstance(argument, ir.Value):
        return Recorded(argument, TORCH_TYPES[argument.dtype])
    if isinstance(argument, ir.DataType):
        return TORCH_TYPES[argument]
    return [_of_exporter(each) for each in argument] if isinstance(argument, list) else argument
