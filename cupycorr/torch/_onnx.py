"""The table with which torch exports the operators to ONNX, by the formulas of `_formulas`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._formulas import table


def onnx_table() -> dict[Any, Callable[..., Any]]:
    """Return the table with which torch exports models that use cupycorr to ONNX, with standard operators only.

    Pass it to ``torch.onnx.export(model, args, dynamo=True, custom_translation_table=onnx_table())``. The batch, the height and
    the width may be dynamic. Every parameter of the operators can be exported.

    Returns
    -------
    dict
        A function for each operator of cupycorr, which records its ONNX nodes.

    Raises
    ------
    ImportError
        onnxscript is missing; the message has the command that installs it.
    NotImplementedError
        Raised by ``torch.onnx.export``, as the cause of its own error, if the model computes gradients.

    See Also
    --------
    decompositions : The same for compilers that read programs of `torch.export`.

    Notes
    -----
    What the notes of `decompositions` say applies here, too.

    Examples
    --------
    >>> import torch
    >>> from cupycorr.torch import SpatialCorrelationSampler, onnx_table
    >>> frames = torch.randn(2, 8, 12, 16), torch.randn(2, 8, 12, 16)
    >>> model = SpatialCorrelationSampler(1, 9).eval()
    >>> program = torch.onnx.export(model, frames, dynamo=True, custom_translation_table=onnx_table(), verbose=False)
    >>> {node.domain for node in program.model.graph}
    {''}
    """
    try:
        from ._onnx_tensors import recorded
    except ModuleNotFoundError as error:
        raise ImportError('exporting to ONNX needs onnxscript: pip install "cupycorr[onnx]"', name=error.name) from error
    return table(recorded)
