"""The benchmark of matching: its contestants agree, and what a run says about them."""

import io
import json

import pytest
from rich.console import Console

torch = pytest.importorskip("torch")
pytest.importorskip("rich")

from benchmarks import matching, matching_rivals, memory, report  # noqa: E402
from benchmarks.matching import Settings  # noqa: E402
from benchmarks.matching_rivals import CONTESTANTS, TASKS, Size  # noqa: E402

SIZES = {
    "square": Size("square", (2, 6, 9, 12), (5, 5), 2),
    "one-sided": Size("one-sided", (1, 4, 7, 20), (1, 8), 1, (0, -3)),
}
SETTINGS = Settings(rounds=2, budget=0.05, measure_memory=False)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_all_contestants_compute_the_same(size, task):
    rows = matching.run(task, size, SETTINGS)
    assert [row.contestant for row in rows if row.agrees and row.timing] == list(CONTESTANTS)
    assert json.loads(json.dumps([*map(matching.record, rows)]))


@pytest.mark.parametrize("task", TASKS)
def test_a_result_that_differs_is_marked(monkeypatch, task):
    monkeypatch.setitem(CONTESTANTS, "shifts", lambda *given: matching_rivals.fused(*given) + 1)
    rows = {row.contestant: row for row in matching.run(task, SIZES["square"], SETTINGS)}
    assert [name for name, row in rows.items() if not row.agrees] == ["shifts"]
    console = Console(file=io.StringIO(), width=report.WIDTH)
    console.print(matching.table_of([*rows.values()]))
    assert "DIFFERS" in console.file.getvalue()


def test_a_contestant_that_needs_too_much_memory_does_not_run(monkeypatch):
    monkeypatch.setattr(matching, "MOST_BYTES", 10**5)
    rows = {row.contestant: row for row in matching.run("argmax", SIZES["square"], SETTINGS)}
    assert "GiB" in rows["unfold"].reason
    assert rows["ours"].timing is not None


@pytest.mark.slow
def test_peak_memory_is_measured_in_a_process_of_its_own():
    words = ["--measure-memory", "pwcnet", "argmax"]
    ours, theirs = (memory.peak_in_own_process("benchmarks.matching", [*words, name]) for name in ("ours", "unfold"))
    assert 0 <= ours < theirs


def test_an_unknown_task_is_refused(capsys):
    with pytest.raises(SystemExit):
        matching.main(["--tasks", "nonsense"])
    assert "nonsense" in capsys.readouterr().err
