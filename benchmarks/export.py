"""``python -m benchmarks.export``: the nodes of exported operators, and their times in onnxruntime beside the eager operators.

Programs are exported for any batch, height and width. Times are the processor's in one thread, medians of runs that take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch.export import Dim

from cupycorr.torch import (
    CorrBlock,
    CorrBlock1D,
    correlation_argmax,
    correlation_soft_argmax,
    decompositions,
    onnx_table,
    spatial_correlation_sample,
)

from . import report

RUNS = 7
EXAMPLE = (2, 33, 40)  # the batch and the size of the maps that programs are exported with


def coords_around(fmap: torch.Tensor) -> torch.Tensor:
    """Return coordinates (B, 2, H, W) around the pixels of a map."""
    height, width = fmap.shape[2:]
    x, y = torch.meshgrid(torch.arange(width).float(), torch.arange(height).float(), indexing="xy")
    return torch.stack((x + fmap[:, 0], y + fmap[:, 1]), 1)


# What is exported, by its name in docs/export.md, and the shape of both maps.
CASES: dict[str, tuple[tuple[int, ...], Callable[..., torch.Tensor]]] = {
    "FlowNetC: P 21, e 2": ((1, 256, 48, 64), lambda x1, x2: spatial_correlation_sample(x1, x2, patch_size=21, dilation_patch=2)),
    "PWC-Net, level 4: P 9": ((1, 96, 28, 64), lambda x1, x2: spatial_correlation_sample(x1, x2, patch_size=9)),
    "PWC-Net, level 2: P 9": ((1, 32, 112, 256), lambda x1, x2: spatial_correlation_sample(x1, x2, patch_size=9)),
    "windows: k 3, P 3, s 2, d 2, e 2": ((1, 64, 100, 100), lambda x1, x2: spatial_correlation_sample(x1, x2, 3, 3, 2, 1, 2, 2)),
    "best displacement: P 9": ((1, 96, 28, 64), lambda x1, x2: correlation_argmax(x1, x2, patch_size=9).flow),
    "subpixel: P 9": ((1, 96, 28, 64), lambda x1, x2: correlation_argmax(x1, x2, patch_size=9, subpixel=True).flow),
    "mean displacement: P 9": ((1, 96, 28, 64), lambda x1, x2: correlation_soft_argmax(x1, x2, patch_size=9).flow),
    "`CorrBlock`, one lookup": ((1, 256, 55, 128), lambda x1, x2: CorrBlock(x1, x2, keep="maps")(coords_around(x1))),
    '`CorrBlock(keep="volume")`, one lookup': (
        (1, 256, 55, 128),
        lambda x1, x2: CorrBlock(x1, x2, keep="volume")(coords_around(x1)),
    ),
    "`CorrBlock1D`, one lookup": ((1, 256, 55, 128), lambda x1, x2: CorrBlock1D(x1, x2)(coords_around(x1)[:, :1])),
}


class Model(torch.nn.Module):
    """A function of two maps as a model."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
        """Return the function's result."""
        return self.function(x1, x2)


def measured(shape: tuple[int, ...], function: Callable[..., torch.Tensor]) -> dict[str, Any]:
    """Return the node counts of a function's programs, and the times of onnxruntime and of the function."""
    model = Model(function)
    batch, *size = EXAMPLE
    examples = torch.randn(2, batch, shape[1], *size).unbind(0)
    dynamic = tuple(dict.fromkeys((0, 2, 3), Dim.DYNAMIC) for _ in examples)
    program = torch.onnx.export(
        model, examples, dynamo=True, custom_translation_table=onnx_table(), dynamic_shapes=dynamic, verbose=False
    )
    plain = torch.export.export(model, examples, dynamic_shapes=dynamic).run_decompositions(decompositions())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options, ["CPUExecutionProvider"])
    maps = torch.randn(2, *shape).unbind(0)
    feed = {name: each.numpy() for name, each in zip(("x1", "x2"), maps, strict=True)}
    calls = {"onnxruntime": lambda: session.run(None, feed)[0], "eager": lambda: model(*maps)}
    times: dict[str, list[float]] = {name: [] for name in calls}
    np.testing.assert_allclose(calls["onnxruntime"](), calls["eager"](), rtol=1e-4, atol=1e-3)
    for _ in range(RUNS):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return {
        "onnx_nodes": len(list(program.model.graph)),
        "aten_nodes": sum(node.op == "call_function" for node in plain.graph.nodes),
        **{f"{name}_s": statistics.median(each) for name, each in times.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each case, and record them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.export", description=__doc__)
    parser.add_argument("--json", type=Path, help="the file that records the results")
    given = sys.argv[1:] if arguments is None else list(arguments)
    target = parser.parse_args(given).json
    torch.set_num_threads(1)
    header = report.cpu_header(given, ("float32",), "benchmarks.export", ("torch", "onnx", "onnxscript", "onnxruntime"))
    header.device["cores_used"] = 1
    rows = []
    with torch.no_grad():
        for name, (shape, function) in CASES.items():
            rows.append({"case": name, "shape": shape, **measured(shape, function)})
            print(json.dumps(rows[-1]), flush=True)
    if target is not None:
        report.write_content(target, report.content(header, rows))


if __name__ == "__main__":
    main()
