"""A type checker infers from every public function the type of the arrays that it was given, and never ``Any``."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")
pytest.importorskip("torch")
pytest.importorskip("dask")

ROOT = Path(__file__).resolve().parents[1]

# mypy takes up to a minute when it has not seen torch before.
pytestmark = pytest.mark.slow

# `typed` has the types of its shape and elements, which no result may inherit: a cost volume has five axes.
SETTING = """
from typing import Any

import dask.array
import numpy as np
import torch

import cupycorr
import cupycorr.dask
import cupycorr.torch
from cupycorr.compat import flownet2, mmcv, tfa

class GpuArray:
    shape: tuple[int, ...]
    dtype: Any

array = np.asarray([])
typed = np.zeros((1, 8, 6, 7), np.float32)
gpu = GpuArray()
tensor = torch.zeros(1, 8, 6, 7)
chunked: dask.array.Array
both = (True, False)
three = (True, False, True)
"""

NUMPY = "numpy.ndarray[tuple[Any, ...], numpy.dtype[Any]]"
GPU = "GpuArray"
TENSOR = "torch._tensor.Tensor"

DISPLACEMENT = "tuple[{0}, {0}, fallback=cupycorr.channels.Displacement[{0}]]"
BEST = "tuple[{0}, {0}, {0}, {0}, fallback=cupycorr._matching.results.BestDisplacement[{0}]]"
MATCH = "cupycorr.motion.Match[{0}]"
DASK = "dask.array.core.Array"


def of_each_kind(expression, revealed, *, tensors):
    """The type of one expression for each kind of array."""
    kinds = {"array": NUMPY, "typed": NUMPY, "gpu": GPU, **({"tensor": TENSOR} if tensors else {})}
    return {expression.format(x): revealed.format(kind) for x, kind in kinds.items()}


REVEALED = {
    "cupycorr.dask.match(chunked, chunked, 7)": MATCH.format(DASK),
    "cupycorr.dask.match(chunked, chunked, 7).dx": DASK,
    "cupycorr.dask.spatial_correlation_sample(chunked, chunked, patch_size=9)": DASK,
    **of_each_kind("cupycorr.to_channels({0})", "{0}", tensors=True),
    **of_each_kind("cupycorr.argmax_displacement({0}, 9, patch_offset=(0, 1))", DISPLACEMENT, tensors=True),
    **of_each_kind("cupycorr.argmax_displacement({0}).dx", "{0}", tensors=True),
    **of_each_kind("cupycorr.soft_argmax({0}, 0.1)", DISPLACEMENT, tensors=True),
    **of_each_kind("cupycorr.soft_argmax({0}).flow", "{0}", tensors=True),
    **of_each_kind("cupycorr.plot_channels({0}, at=(1, 2))", "matplotlib.figure.Figure", tensors=True),
    **of_each_kind("cupycorr.match({0}, {0}, window=[5, 7], search=((0, 0), (-9, 0)))", MATCH, tensors=False),
    **of_each_kind("cupycorr.match({0}, {0}).score", "{0}", tensors=False),
    **of_each_kind("cupycorr.match({0}, {0}).flow", "{0}", tensors=False),
    "cupycorr.displacements(9)": NUMPY,
    "cupycorr.displacements(cupycorr.torch.SpatialCorrelationSampler(1, 9))": NUMPY,
    "cupycorr.torch.spatial_correlation_sample(tensor, tensor, patch_size=9)": TENSOR,
    "cupycorr.torch.SpatialCorrelationSampler(1, 9).forward(tensor, tensor)": TENSOR,
    "cupycorr.torch.CorrBlock(tensor, tensor, 1)(tensor, dilation=2)": TENSOR,
    "cupycorr.torch.CorrBlock1D(tensor, tensor)(tensor)": TENSOR,
    "flownet2.Correlation(max_displacement=4).forward(tensor, tensor)": TENSOR,
    "mmcv.Correlation(max_displacement=4).forward(tensor, tensor)": TENSOR,
    "tfa.correlation_cost(tensor, tensor, 1, 4, 1, 1, 4)": TENSOR,
    **of_each_kind("cupycorr.spatial_correlation_sample({0}, {0}, patch_size=(1, 9))", "{0}", tensors=False),
    **of_each_kind("cupycorr.spatial_correlation_sample({0}, {0}, dtype='float32', out={0})", "{0}", tensors=False),
    **of_each_kind("cupycorr.spatial_correlation_sample_vjp({0}, {0}, {0})", "tuple[{0}, {0}]", tensors=False),
    **of_each_kind(
        "cupycorr.spatial_correlation_sample_vjp({0}, {0}, {0}, needs=both)", "tuple[{0} | None, {0} | None]", tensors=False
    ),
    **of_each_kind("cupycorr.explain({0}, {0}, patch_size=9)", "cupycorr._dispatch.Explanation", tensors=False),
    **of_each_kind("cupycorr.correlation_lookup({0}, {0}, {0}, (1, 9))", "{0}", tensors=False),
    **of_each_kind("cupycorr.correlation_lookup({0}, [{0}, {0}], {0}, index1={0}, out={0})", "{0}", tensors=False),
    **of_each_kind("cupycorr.correlation_lookup_vjp({0}, {0}, {0}, {0})", "tuple[{0}, {0}, {0} | None]", tensors=False),
    **of_each_kind(
        "cupycorr.correlation_lookup_vjp({0}, {0}, [{0}, {0}], {0})", "tuple[{0}, tuple[{0}, ...], {0} | None]", tensors=False
    ),
    **of_each_kind(
        "cupycorr.correlation_lookup_vjp({0}, {0}, ({0},), {0}, needs=three)",
        "tuple[{0} | None, tuple[{0}, ...] | None, {0} | None]",
        tensors=False,
    ),
    **of_each_kind("cupycorr.explain_lookup({0}, [{0}], {0}, 9)", "cupycorr._dispatch.Explanation", tensors=False),
    **of_each_kind("cupycorr.volume_lookup({0}, {0}, (1, 9), out={0})", "{0}", tensors=False),
    **of_each_kind("cupycorr.volume_lookup_vjp({0}, {0}, {0})", "tuple[{0}, {0} | None]", tensors=False),
    **of_each_kind("cupycorr.volume_lookup_vjp({0}, {0}, {0}, needs=both)", "tuple[{0} | None, {0} | None]", tensors=False),
    **of_each_kind("cupycorr.explain_volume_lookup({0}, {0}, 9)", "cupycorr._dispatch.Explanation", tensors=False),
    "cupycorr.torch.volume_lookup(tensor, tensor, 9)": TENSOR,
    **of_each_kind("cupycorr.correlation_argmax({0}, {0}, patch_size=9, top_k=2)", BEST, tensors=True),
    **of_each_kind("cupycorr.correlation_argmax({0}, {0}).flow", "{0}", tensors=True),
    **of_each_kind("cupycorr.correlation_soft_argmax({0}, {0}, temperature=2).dx", "{0}", tensors=True),
    **of_each_kind("cupycorr.explain_argmax({0}, {0}, subpixel=True)", "cupycorr._dispatch.Explanation", tensors=False),
    "cupycorr.torch.correlation_argmax(tensor, tensor, outside='excluded').score": TENSOR,
    "cupycorr.torch.correlation_soft_argmax(tensor, tensor).flow": TENSOR,
}

REFUSED = {
    "names of files instead of frames": "cupycorr.match('a.png', 'b.png')",
    "a list instead of scores": "cupycorr.argmax_displacement([1.0])",
    "a fraction of a window": "cupycorr.match(array, array, window=5.5)",
    "a range of two numbers": "cupycorr.match(array, array, search=(-4, 4))",
    "a list as an output": "cupycorr.spatial_correlation_sample(array, array, out=[])",
    "a pyramid in the place of a map": "cupycorr.correlation_lookup([array], array, array)",
    "a word that outside has not": "cupycorr.torch.correlation_argmax(tensor, tensor, outside='skipped')",
    "an order that there is not": "cupycorr.correlation_lookup(array, array, array, order='yx')",
}


def mypy(folder, lines):
    """The messages of mypy in strict mode about each of the lines, which follow the setting."""
    program = folder / "program.py"
    program.write_text(SETTING + "\n".join(lines) + "\n")
    first = SETTING.count("\n") + 1
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--no-error-summary",
        "--hide-error-context",
        "--no-pretty",
        str(program),
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    messages = {line: [] for line in lines}
    for number, message in re.findall(r"^.*?program\.py:(\d+): (.*)$", run.stdout, re.MULTILINE):
        messages[lines[int(number) - first]].append(message)
    assert run.returncode in (0, 1), run.stdout + run.stderr
    return messages


@pytest.fixture(scope="module")
def messages(tmp_path_factory):
    lines = [*(f"reveal_type({expression})" for expression in REVEALED), *REFUSED.values()]
    return mypy(tmp_path_factory.mktemp("types"), lines)


@pytest.mark.parametrize(("expression", "revealed"), REVEALED.items(), ids=REVEALED)
def test_the_type_of_the_result_is_that_of_the_arrays(messages, expression, revealed):
    (message,) = messages[f"reveal_type({expression})"]
    found = message.partition('Revealed type is "')[2].rstrip('"')
    assert found.replace("builtins.", "").replace("program.", "") == revealed


@pytest.mark.parametrize("expression", REFUSED.values(), ids=REFUSED)
def test_arguments_of_other_types_are_errors(messages, expression):
    assert any(message.startswith("error:") for message in messages[expression])
