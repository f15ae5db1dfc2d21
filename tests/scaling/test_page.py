"""The code of docs/scaling.md runs, and the results of its tables are right."""

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import tables

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")


def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/scaling.md", "exec"), names)
    field, trusted = names["field"], names["trusted"]
    assert trusted.mean() > 0.8
    assert np.median(field.dx[trusted]) == pytest.approx(-2, abs=0.1)
    assert np.median(field.dy[trusted]) == pytest.approx(3, abs=0.1)


def test_every_result_is_complete_and_right():
    for name in tables.SCALING:
        for result in tables.content(name):
            if "sampled" in result:
                assert result["missing"] == 0
                assert result["right"] == result["equal to the bit"] == result["sampled"] == 200
