"""The benchmark of group-wise correlation: contestants do the same work, and the file has what the table shows."""

import json

import pytest

pytest.importorskip("torch")

from benchmarks import groups

SMALL = groups.Size((2, 6, 5, 11), 7, 3)


def test_both_passes_are_timed_and_agree(tmp_path, capsys):
    file = tmp_path / "groups.json"
    assert groups.main(["--budget", "0.01", "--json", str(file)], SMALL) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [(row["pass"], row["contestant"]) for row in rows] == [(p, c) for p in groups.PASSES for c in groups.CONTESTANTS]
    assert all(row["agrees"] and row["median_s"] > 0 for row in rows)
    assert [row["ratio"] for row in rows if row["ours"]] == [1.0, 1.0]
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*groups.PASSES, *groups.CONTESTANTS))


def test_a_contestant_that_computes_something_else_is_noticed(monkeypatch, tmp_path):
    shifted = {
        **groups.CONTESTANTS,
        "disparity loop": lambda left, right, d, g: groups.disparity_loop(left, right.roll(1, 3), d, g),
    }
    monkeypatch.setattr(groups, "CONTESTANTS", shifted)
    assert groups.main(["--budget", "0.01"], SMALL) == 1
