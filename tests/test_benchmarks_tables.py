"""The tables of the pages are those of the results, and show what these have and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import tables

pytest.importorskip("cogapp")
ROOT = Path(__file__).resolve().parents[1]
PAGES = [str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")))]


def test_the_pages_have_the_tables_of_the_results():
    command = [sys.executable, "-m", "cogapp", "--check", "--diff", *PAGES]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def row(case, which, contestant, seconds, *, auto=False):
    return {"case": case, "pass": which, "contestant": contestant, "auto": auto, "median_s": seconds, "peak_bytes": 3 * 2**20}


def run(date, *rows):
    device = {"cores_used": 2, "model": "A(R) Processor"}
    return {"date": f"{date}T00:00:00+00:00", "device": device, "versions": {"torch": "2.13.0+cpu"}, "rows": rows}


@pytest.fixture
def files(monkeypatch):
    """Two files with one case in common, which the newer one has without a rival."""
    found = {
        "cpu-acceptance": run(
            "2026-11-02",
            row("piv", "forward", "simd", 0.002, auto=True),
            row("piv", "forward", "blas", 0.001),
            row("piv", "forward", "shift-loop", 0.001),
            {"case": "piv", "pass": "forward", "contestant": "cpp-extension", "auto": False, "reason": "is not installed"},
        ),
        "cpu-stereo": run(
            "2026-11-01",
            row("piv", "forward", "simd", 9.0, auto=True),
            row("extension-default", "vjp", "simd", 0.0123, auto=True),
            row("extension-default", "vjp", "unfold+einsum", 1.23),
        ),
    }
    monkeypatch.setattr(tables, "content", found.__getitem__)


def test_a_table_has_the_newest_rows_and_only_the_contestants_that_ran(files):
    assert tables.operator().splitlines() == [
        "",
        "|  | cupycorr | peak | shift loop | unfold + einsum | peak |",
        "|---|---|---|---|---|---|",
        "| the extension's default (16,64,100,100), k 3: both gradients | 12.3 ms | 3 MiB | - | 1.23 s (100x) | 3 MiB |",
        "| PIV (1,1,369,511), k 32, P 25, s 16: forward | 2 ms | 3 MiB | 1 ms (0.5x) | - | - |",
    ]


def test_the_summary_names_machines_and_rows_in_which_a_rival_is_faster(files):
    said = " ".join(tables.operator_summary().split())
    for day in (1, 2):
        assert f"2 cores of A Processor, torch 2.13.0, {day} November 2026" in said
    assert "0.5 to 100 times as long as cupycorr; the median is 50 times" in said
    assert "faster in 1 of 2 rows, by a factor of 2: PIV (1,1,369,511), k 32, P 25, s 16: forward." in said


@pytest.mark.parametrize(
    ("value", "written"), [(0.00116, "1.16 ms"), (0.0882, "88.2 ms"), (0.9996, "1 s"), (2.987, "2.99 s"), (178.4, "178 s")]
)
def test_a_time_has_three_digits(value, written):
    assert tables.seconds(value) == written


@pytest.mark.parametrize(("value", "written"), [(0.449, "0.45"), (3.52, "3.5"), (9.96, "10"), (912.6, "913")])
def test_a_factor_has_two_digits_or_is_whole(value, written):
    assert tables.factor(value) == written
