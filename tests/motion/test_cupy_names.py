"""Every array function and method that `match` uses exists in CuPy itself, which needs no GPU to tell its names."""

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest

from cupycorr import _motion, motion

SOURCES = [Path(inspect.getsourcefile(motion)), *sorted(Path(_motion.__path__[0]).glob("*.py"))]
CPU_ONLY = {"row_kernel.py"}


def array_module_names(tree):
    """Return the dotted names that are looked up on ``xp``, ``self.xp`` or ``array_module(...)``."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        is_module = isinstance(node, (ast.Name, ast.Attribute)) and ast.unparse(node).split(".")[-1] == "xp"
        if is_module or (isinstance(node, ast.Call) and ast.unparse(node.func) == "array_module"):
            names = []
            while isinstance(parents.get(node), ast.Attribute):
                node = parents[node]
                names.append(node.attr)
            if names and names != ["xp"]:
                yield ".".join(names)


@pytest.fixture(scope="module")
def trees():
    return [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES if path.name not in CPU_ONLY]


def test_every_array_function_used_exists_in_cupy(trees):
    cupy = pytest.importorskip("cupy")
    names = {name for tree in trees for name in array_module_names(tree)}
    assert {"where", "take_along_axis", "lib.stride_tricks.sliding_window_view", "fft.rfft", "float64"} <= names
    for name in names:
        found = cupy
        for part in name.split("."):
            assert hasattr(found, part), f"cupy.{name}"
            found = getattr(found, part)


def test_every_array_method_used_exists_in_cupy(trees):
    cupy = pytest.importorskip("cupy")
    used = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & set(dir(np.ndarray))
    assert {"clip", "astype", "reshape", "take"} <= used
    assert used <= set(dir(cupy.ndarray)), used - set(dir(cupy.ndarray))
