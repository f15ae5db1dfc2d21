"""``python -m benchmarks --base REV``: the benchmark of this tree beside that of another commit, by the same programs.

The other commit is checked out into a temporary folder. Both run the benchmark of this tree, from a copy that has no cupycorr
beside it, each in processes of its own that take turns: base and this tree, this tree and base, and so on. What disturbs the
machine for a while disturbs both, and the differences between processes are part of the spread.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from . import compare, report
from .memory import ROOT

PAIRS = 4  # as many begin with the base as with this tree
FAILED_WORDS = 2000  # characters of a failed process's messages that are shown


@dataclass(frozen=True, slots=True)
class Tree:
    """A checkout of the package: its name in messages, and its folder."""

    name: str
    folder: Path


def run(revision: str, arguments: Sequence[str], pairs: int, threshold: float, json_file: Path | None) -> int:
    """Run both trees in turn with these options of the benchmark and print the comparison; return 1 where this tree is slower.

    Raises
    ------
    ValueError
        There is no such commit, or this is no checkout.
    RuntimeError
        A process failed.
    """
    with _checked_out(revision) as base, tempfile.TemporaryDirectory() as folder:
        harness = Path(folder) / "harness"
        shutil.copytree(ROOT / "benchmarks", harness / "benchmarks", ignore=shutil.ignore_patterns("results", "__pycache__"))
        trees = (base, Tree("this tree", ROOT))
        contents: dict[str, list[dict[str, Any]]] = {tree.name: [] for tree in trees}
        for tree in trees:
            _check_imports(tree, harness)
        with Console(stderr=True).status("") as status:
            for pair in range(pairs):
                for tree in trees if pair % 2 == 0 else reversed(trees):
                    status.update(f"pair {pair + 1} of {pairs}: {tree.name}")
                    contents[tree.name].append(_measured(tree, harness, arguments))
    of_both = {tree.name: compare.joined(contents[tree.name]) for tree in trees}
    if json_file is not None:
        files = (json_file.with_stem(f"{json_file.stem}-base"), json_file)
        for file, content in zip(files, of_both.values(), strict=True):
            report.write_content(file, content)
    before, after = (compare.results(name, content) for name, content in of_both.items())
    return compare.print_comparison(before, after, threshold)


@contextmanager
def _checked_out(revision: str) -> Iterator[Tree]:
    """Give a temporary checkout of a commit."""
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if commit.returncode:
        is_checkout = _git("rev-parse", "--git-dir").returncode == 0
        wanted = "a commit of this repository" if is_checkout else "a commit, and the benchmark must be in a git checkout"
        raise ValueError(f"--base must be {wanted}, got {revision!r}")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "base"
        done = _git("worktree", "add", "--detach", str(place), commit.stdout.strip())
        if done.returncode:
            raise RuntimeError(f"git cannot check {revision} out: {done.stderr.strip()}")
        try:
            yield Tree(revision, place)
        finally:
            _git("worktree", "remove", "--force", str(place))


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)


def _environment(tree: Tree) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(tree.folder), os.environ.get("PYTHONPATH"))))}


def _check_imports(tree: Tree, harness: Path) -> None:
    """Refuse a tree whose package is not the one that processes import, or that the benchmark of this tree cannot use."""
    program = "import cupycorr, benchmarks.__main__; print(cupycorr.__file__)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=harness, env=_environment(tree), capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the benchmark of this tree cannot run with the cupycorr of {tree.name}: {last}")
    if not Path(done.stdout.strip()).resolve().is_relative_to(tree.folder.resolve()):
        raise RuntimeError(f"processes must import the cupycorr of {tree.name}, and they import another one")


def _measured(tree: Tree, harness: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Return what a process of the benchmark has written."""
    file = harness / "results.json"
    command = [sys.executable, "-m", "benchmarks", *arguments, "--no-memory", "--json", str(file)]
    done = subprocess.run(command, cwd=harness, env=_environment(tree), capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not file.exists():  # 1: a result is wrong, which the file says
        raise RuntimeError(f"the benchmark of {tree.name} failed:\n{done.stderr.strip()[-FAILED_WORDS:]}")
    content: dict[str, Any] = json.loads(file.read_text("utf-8"))
    file.unlink()
    return content
