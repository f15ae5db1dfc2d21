"""The code of docs/scaling.md runs, and its numbers are those of the results that it names."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
TABLES = re.findall(r"\]\((\.\./benchmarks/results/[\w-]+\.json)\)\)\n\n((?:\|.*\n)+)", PAGE)


def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/scaling.md", "exec"), names)
    field, trusted = names["field"], names["trusted"]
    assert trusted.mean() > 0.8
    assert np.median(field.dx[trusted]) == pytest.approx(-2, abs=0.1)
    assert np.median(field.dy[trusted]) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize(("path", "table"), TABLES, ids=[path for path, _ in TABLES])
def test_the_numbers_are_those_of_the_results(path, table):
    names, _, *rows = ([cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines())
    results = json.loads((ROOT / "docs" / path).read_text())
    assert rows == [[str(result[name]) for name in names] for result in results]


def test_every_result_is_complete_and_right():
    assert len(TABLES) == 4
    for path, _ in TABLES:
        for result in json.loads((ROOT / "docs" / path).read_text()):
            if "sampled" in result:
                assert result["missing"] == 0
                assert result["right"] == result["equal to the bit"] == result["sampled"] == 200
