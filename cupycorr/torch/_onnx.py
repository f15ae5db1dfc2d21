"""The table with which torch exports models that use the operators to ONNX."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from . import _formulas


def onnx_table() -> dict[Any, Callable[..., Any]]:
    """Return the table for `torch.onnx.export`."""
    try:
        from . import _onnx_tensors as tensors
    except ModuleNotFoundError as error:
        raise ImportError('cupycorr.torch.onnx_table needs onnxscript: pip install "cupycorr[onnx]"', name=error.name) from error

    def record(formula: Callable[..., Any], *arguments: Any) -> Any:
        found = formula(tensors.Functions(), *(map(recorded, arguments)))
        return tuple(each.value for each in found) if isinstance(found, tuple) else found.value

    def translation(formula):
        def translate(*arguments):
            return record(formula, *arguments)
        return translate

    def recorded(argument: Any) -> Any:
        import onnx_ir
        if isinstance(argument, onnx_ir.Value):
            return tensors.Recorded(argument, tensors.TORCH_TYPES[argument.dtype])
        if isinstance(argument, onnx_ir.DataType):
            return tensors.TORCH_TYPES[argument]
        if isinstance(argument, list) and any(isinstance(each, onnx_ir.Value) for each in argument):
            return [recorded(each) for each in argument]
        return argument

    return {getattr(torch.ops.cupycorr, name).default: translation(formula) for name, formula in _formulas.OPERATORS}
