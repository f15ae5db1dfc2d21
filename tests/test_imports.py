"""Importing the package loads nothing heavy, and every file is Python 3.10. The order of imports is import-linter's business."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "cupycorr").rglob("*.py"))
IMPORT_OTHERS = ("cupycorr.torch", "cupycorr.compat", "cupycorr.dask")


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def third_parties_loaded_by(*modules):
    """Return the packages outside the standard library that a new process loads when it imports the modules."""
    program = f"import numpy, sys; before = set(sys.modules); import {', '.join(modules)}; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.partition(".")[0] for name in done.stdout.split()} - sys.stdlib_module_names - {"numpy"}


def test_importing_the_package_loads_numpy_and_no_other_package():
    assert third_parties_loaded_by("cupycorr") == {"cupycorr"}


def test_modules_outside_torch_compat_and_dask_load_other_packages_only_when_they_need_them():
    names = [name for name in map(module_name, FILES) if not name.startswith(IMPORT_OTHERS)]
    assert len(names) > 20
    assert third_parties_loaded_by(*names) == {"cupycorr"}


def lines_newer_than_python_3_10(source):
    """Return the lines of syntax that Python 3.10 refuses.

    The parser finds all but starred subscripts without parentheses, which it accepts for every version.
    """
    try:
        tree = ast.parse(source, feature_version=(3, 10))
    except SyntaxError as error:
        return [error.lineno]
    subscripts = [node.slice for node in ast.walk(tree) if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple)]
    starred = [inside for inside in subscripts if any(isinstance(element, ast.Starred) for element in inside.elts)]
    return [inside.lineno for inside in starred if not ast.get_source_segment(source, inside).startswith("(")]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_every_file_is_python_3_10(path):
    assert lines_newer_than_python_3_10(path.read_text(encoding="utf-8")) == []


SYNTAX = {
    "starred subscript": ("x[*y]", True),
    "exception groups": ("try:\n    pass\nexcept* ValueError:\n    pass", True),
    "generic function": ("def f[T](x: T): ...", True),
    "starred tuple in parentheses": ("x[(*y,)]", False),
    "match": ("match x:\n    case 1:\n        pass", False),
}


@pytest.mark.parametrize(("source", "newer"), SYNTAX.values(), ids=SYNTAX)
def test_syntax_newer_than_python_3_10_is_found(source, newer):
    assert bool(lines_newer_than_python_3_10(source)) is newer
