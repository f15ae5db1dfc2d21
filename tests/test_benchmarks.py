"""What the benchmark promises: the same work for everybody, in turn, on every documented shape, with memory kept in hand and
a report that says where its numbers come from. No test asserts a time."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import oracle
import pytest

from benchmarks import __main__ as command
from benchmarks import cases, memory, report, rivals, running, timing
from benchmarks.cases import Case

CONTESTANTS = {contestant.name: contestant for contestant in rivals.contestants()}
TORCH_RIVALS = ("unfold+einsum", "shift-loop", "tap-loop")
GIBIBYTE = 2**30

SMALL = {
    "plain": Case("small", (2, 3, 6, 7), {"patch_size": 3}),
    "even-patch": Case("small", (1, 2, 6, 5), {"patch_size": (2, 4), "dilation_patch": (1, 2)}),
    "strided": Case("small", (1, 3, 9, 8), {"patch_size": (3, 5), "stride": (2, 3), "dilation_patch": 2, "padding": 1}),
    "cropped": Case("small", (1, 2, 9, 8), {"patch_size": 3, "padding": -1}),
    "one-sided": Case("small", (1, 3, 4, 12), {"patch_size": (1, 8), "patch_offset": (0, -4), "scale": 0.5}),
    "window": Case("small", (2, 2, 9, 8), {"kernel_size": (3, 2), "patch_size": 3}),
    "window-of-everything": Case("small", (1, 2, 10, 9), cases.EXTENSION_DEFAULT),
}

# (B, C, H, W), k, P, s, a, d, e, q: typed from the models' papers and code, not from the table under test
DOCUMENTED = {
    *(((B, 256, H, W), 1, 21, 1, 0, 1, 2, None) for B, H, W in ((4, 48, 64), (8, 48, 64), (1, 56, 128), (1, 48, 160))),
    *(((1, C, H, W), 1, 9, 1, 0, 1, 1, None) for C, H, W in ((196, 7, 16), (128, 14, 32), (96, 28, 64), (64, 56, 128))),
    *(((1, 32, H, 256), 1, 9, 1, 0, 1, 1, None) for H in (112, 96)),
    *(((8, C, H, W), 1, 9, 1, 0, 1, 1, None) for C, H, W in ((196, 6, 7), (128, 12, 14), (96, 24, 28), (64, 48, 56))),
    ((8, 32, 96, 112), 1, 9, 1, 0, 1, 1, None),
    *(((1, C, H, W), 1, 7, 1, 0, 1, 1, None) for C, H, W in ((192, 14, 32), (128, 28, 64), (96, 56, 128), (90, 56, 128))),
    *(((1, 64, H, W), 1, 7, 2, 0, 1, 2, None) for H, W in ((112, 256), (224, 512))),
    *(((1, C, 19, 34), 1, 9, 1, 0, 1, 1, None) for C in (512, 768)),
    *(((1, C, H, W), 1, 9, 1, 0, 1, 1, None) for C, H, W in ((192, 76, 136), (384, 38, 68))),
    *(((B, C, 37, 66), 1, 15, 1, 0, 1, 1, None) for B, C in ((8, 32), (1, 128))),
    ((16, 64, 100, 100), 3, 3, 2, 1, 2, 2, None),
    *(((1, 1, 369, 511), 32, 25, s, 0, 1, 1, None) for s in (1, 16)),
    ((1, 32, 500, 741), 1, (1, 64), 1, 0, 1, 1, (0, -32)),
}
ACCEPTANCE = {
    ((1, 512, 19, 34), 9, 1),
    ((4, 256, 48, 64), 21, 1),
    ((1, 32, 96, 256), 9, 1),
    ((1, 96, 28, 64), 9, 1),
    ((1, 1, 369, 511), 25, 1),
    ((1, 1, 369, 511), 25, 16),
}


def identity(case):
    defaults = {"kernel_size": 1, "patch_size": 1, "stride": 1, "padding": 0, "dilation": 1, "dilation_patch": 1}
    return (case.shape, *({**defaults, "patch_offset": None} | case.keywords).values())


# Cases ---------------------------------------------------------------------------------------------------------------


def test_every_documented_shape_is_a_case():
    assert {identity(case) for case in cases.CASES} == DOCUMENTED


def test_case_names_are_unique():
    assert len({case.name for case in cases.CASES}) == len(cases.CASES) == len(DOCUMENTED)


def test_acceptance_cases_are_the_accepted_shapes():
    found = {(c.shape, c.keywords["patch_size"], c.keywords.get("stride", 1)) for c in cases.select("acceptance")}
    assert found == ACCEPTANCE


def test_the_stereo_case_searches_one_side():
    (case,) = cases.select("stereo-full")
    assert list(case.problem.horizontal.displacements) == list(range(-63, 1))


def test_cases_are_selected_by_wildcards_in_the_tables_order():
    names = [case.name for case in cases.select("piv,flownetc-*")]
    assert names == ["flownetc-headline", "flownetc-chairs", "flownetc-sintel", "flownetc-kitti", "piv"]
    assert cases.select("all") == list(cases.CASES)


def test_an_unknown_case_is_refused():
    with pytest.raises(ValueError, match="got 'raft'"):
        cases.select("piv,raft")


# Rivals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("small", SMALL)
@pytest.mark.parametrize("name", TORCH_RIVALS)
def test_rivals_compute_the_definition(name, small, dtype):
    pytest.importorskip("torch")
    case, rival = SMALL[small], CONTESTANTS[name]
    inputs = case.inputs(dtype, "vjp")
    want = {
        "forward": (oracle.forward(inputs.input1, inputs.input2, **case.keywords),),
        "vjp": oracle.vjp(inputs.cotangent, inputs.input1, inputs.input2, **case.keywords),
    }
    for which, triples in want.items():
        if rival.refusal(case, dtype, which) is not None:
            continue
        for got, triple in zip(rival.prepare(which, case, inputs)(), triples, strict=True):
            oracle.assert_close(rivals.as_numpy(got), triple, name=f"{name} {which}")


@pytest.mark.parametrize(
    ("name", "small", "which", "reason"),
    [
        ("unfold+einsum", "plain", "vjp", None),
        ("unfold+einsum", "window", "forward", "another operator"),
        ("shift-loop", "plain", "vjp", None),
        ("shift-loop", "window", "vjp", None),
        ("tap-loop", "plain", "forward", "is the shift loop"),
        ("tap-loop", "window", "forward", None),
        ("tap-loop", "window", "vjp", "forward only"),
        ("reference", "window", "vjp", None),
    ],
)
def test_who_takes_part_and_why_not(name, small, which, reason):
    if name in TORCH_RIVALS:
        pytest.importorskip("torch")
    got = CONTESTANTS[name].refusal(SMALL[small], "float32", which)
    assert got is None if reason is None else reason in got


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["unfold+einsum", "shift-loop"])
def test_rivals_run_in_halves(name, dtype):
    pytest.importorskip("torch")
    rows = running.run(SMALL["plain"], "forward", [CONTESTANTS["reference"], CONTESTANTS[name]], quick(dtype))
    assert [row.wrong for row in rows] == [None, None]


def test_without_torch_rivals_say_so(monkeypatch):
    monkeypatch.setattr(rivals, "torch", lambda: None)
    reasons = [CONTESTANTS[name].refusal(SMALL["plain"], "float32", "forward") for name in (*TORCH_RIVALS, "cpp-extension")]
    assert reasons == ["torch is not installed"] * 4


def test_every_variant_of_ours_is_a_contestant():
    from cupycorr import _dispatch

    assert [name for name, c in CONTESTANTS.items() if c.ours] == [variant.name for variant in _dispatch.VARIANTS]


# Running -------------------------------------------------------------------------------------------------------------


def quick(dtype="float32"):
    return running.Settings(dtype, budget=1e-3, measure_memory=False)


def auto_and(*others):
    auto = rivals.automatic(SMALL["plain"], "float32")
    return [CONTESTANTS[auto], *others]


def test_other_work_is_no_rival():
    def doubled(case, inputs):
        honest = CONTESTANTS["reference"].forward(case, inputs)
        return lambda: (honest()[0] * 2,)

    cheat = replace(CONTESTANTS["reference"], name="cheat", ours=False, forward=doubled)
    ours, other = running.run(SMALL["plain"], "forward", auto_and(cheat), quick())
    assert ours.auto
    assert ours.ratio == 1
    assert other.timing is None
    assert "output differs from ours" in other.wrong


@pytest.mark.parametrize(
    ("got", "said"),
    [(np.full((2, 2), np.nan), "output differs"), (np.ones((2, 3)), "shape (2, 3)"), (np.zeros((2, 2)), "by 1 of")],
)
def test_disagreement_sees_values_nan_and_shape(got, said):
    assert said in rivals.disagreement((got,), (np.ones((2, 2)),), "float32")


def test_rounding_is_no_disagreement():
    assert rivals.disagreement((np.full((2, 2), 1 + 1e-6),), (np.ones((2, 2)),), "float32") is None


def test_what_does_not_fit_into_memory_is_refused():
    pytest.importorskip("torch")
    (case,) = cases.select("flownetc-headline")
    entrants = [CONTESTANTS[name] for name in ("reference", "unfold+einsum")]
    unfolded = 4 * 256 * 21 * 21 * 48 * 64 * 4  # bytes of all displaced copies of input2
    for which, copies in (("forward", 2), ("vjp", 3)):
        assert CONTESTANTS["unfold+einsum"].bytes(case.problem, 4, which) >= copies * unfolded
    reasons = running.refusals(entrants, case, "forward", "float32", 8 * GIBIBYTE)
    assert reasons["reference"] is None
    assert "GiB of memory" in reasons["unfold+einsum"]
    assert set(running.refusals(entrants, case, "vjp", "float32", 100 * GIBIBYTE).values()) == {None}


def test_needs_of_those_in_memory_together_add_up():
    (case,) = cases.select("flownetc-headline")
    hungry = [replace(CONTESTANTS["reference"], name=name, bytes=lambda problem, itemsize, which: 6 * GIBIBYTE) for name in "ab"]
    reasons = running.refusals(hungry, case, "forward", "float32", 10 * GIBIBYTE)
    assert reasons == {"a": None, "b": "needs 6 GiB of memory, 3 GiB are available"}


def test_peak_memory_is_what_was_allocated_at_once():
    def work():
        for _ in range(2):
            np.ones(2**23)  # 64 MiB, freed before the next

    assert 60 * 2**20 <= memory.peak_increase(work) <= 100 * 2**20


def test_available_memory_is_known():
    assert 2**20 < memory.available() < 2**50


def test_peak_memory_is_measured_in_a_process_of_its_own():
    peak = memory.peak_in_own_process("pwcnet-L6-sintel", "reference", "forward", "float32")
    assert 0 <= peak < 2**30
    assert memory.peak_in_own_process("pwcnet-L6-sintel", "nobody", "forward", "float32") is None


# Timing --------------------------------------------------------------------------------------------------------------


class FakeStopwatch:
    """Says a time for each contestant, and notes whose turn it was."""

    def __init__(self, seconds):
        self.seconds, self.turns = seconds, []

    def __call__(self, work, calls):
        self.turns.append(work())
        return self.seconds[work()]


def named(names):
    return {name: (lambda name=name: name) for name in names}


def test_contestants_take_turns():
    stopwatch = FakeStopwatch(dict.fromkeys("abc", 1.0))
    results = timing.race(named("abc"), dict.fromkeys("abc", (1.0,)), budget=12.0, stopwatch=stopwatch)
    assert "".join(stopwatch.turns) == "abc" * 4
    assert {name: result.seconds for name, result in results.items()} == dict.fromkeys("abc", (1.0,) * 4)


def test_the_slow_leave_first_after_two_runs():
    stopwatch = FakeStopwatch({"fast": 1.0, "slow": 7.0})
    results = timing.race(named(("fast", "slow")), {"fast": (1.0,), "slow": (9.0, 7.0)}, budget=8.0, stopwatch=stopwatch)
    assert stopwatch.turns == ["fast", "slow", "fast", "slow", "fast", "fast"]
    assert not results["slow"].cut_short


def test_one_run_over_the_budget_stays_the_only_one_and_is_marked():
    stopwatch = FakeStopwatch({"fast": 1.0})
    results = timing.race(named(("slow", "fast")), {"fast": (1.0,), "slow": (9.0,)}, budget=8.0, stopwatch=stopwatch)
    assert results["slow"] == timing.Timing((9.0,), cut_short=True)
    assert list(results) == ["slow", "fast"]
    assert set(stopwatch.turns) == {"fast"}


def test_a_rival_far_over_the_budget_runs_once_a_slow_one_twice_ours_after_a_run_that_may_compile(monkeypatch):
    clock = {"reference": [9.0, 1.0], "slow": [3.0, 2.0], "slower": [30.0]}
    runs = []

    def prepared(name):
        return lambda case, inputs: lambda: runs.append(name) or (np.zeros(1),)

    def clocked(work):
        result = work()
        return result, clock[runs[-1]].pop(0)

    monkeypatch.setattr(running, "_clocked", clocked)
    monkeypatch.setattr(running.rivals, "automatic", lambda case, dtype: "reference")
    ours = replace(CONTESTANTS["reference"], forward=prepared("reference"))
    entrants = [ours, *(replace(ours, name=name, ours=False, forward=prepared(name)) for name in ("slow", "slower"))]
    rows = running.run(SMALL["plain"], "forward", entrants, running.Settings(budget=0.9, measure_memory=False))
    assert [row.timing.seconds for row in rows] == [(1.0,), (3.0, 2.0), (30.0,)]
    assert all(row.timing.cut_short for row in rows)


def test_short_work_is_called_repeatedly_in_its_turn():
    calls = []
    timing.race({"a": lambda: None}, {"a": (timing.TURN / 8,)}, 1.0, lambda work, count: calls.append(count) or 1.0)
    assert set(calls) == {8}


def test_the_stopwatch_gives_seconds_a_call():
    done = []
    assert timing.cpu_stopwatch(lambda: done.append(1), 3) > 0
    assert len(done) == 3


def test_median_and_quartiles_of_the_runs():
    spread = timing.Timing((5.0, 1.0, 3.0, 2.0, 4.0))
    assert (spread.median, spread.minimum, spread.quartiles) == (3.0, 1.0, (2.0, 4.0))
    assert timing.Timing((7.0,)).quartiles == (7.0, 7.0)


def test_disturbed_runs_are_told_from_steady_ones():
    assert not timing.Timing((1.0, 1.1, 1.2, 9.0, 1.0)).disturbed
    assert timing.Timing((1.0, 1.1, 3.0, 9.0, 1.0)).disturbed
    assert not timing.Timing((7.0,)).disturbed


def test_the_machines_best_rate_of_a_run_stands():
    header = report.cpu_header([], "float64")
    header.device.update(sgemm_gflops=1e9, dgemm_gflops=0.0)
    report.measure_cpu_rates(header)
    assert header.device["sgemm_gflops"] == 1e9
    assert 0 < report.cpu_peak_rate(header) == header.device["dgemm_gflops"] * 1e9 < 1e18


# Report --------------------------------------------------------------------------------------------------------------


def test_the_printed_command_names_no_folders(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = ["--cases", "piv*", "--json", str(tmp_path / "results" / "a.json")]
    assert report.command_line(given) == "python -m benchmarks --cases 'piv*' --json results/a.json"
    assert report.command_line(["--json=/elsewhere/b.json"]) == "python -m benchmarks --json=b.json"


@pytest.mark.parametrize(("load", "warned"), [(0.2, False), (7.0, True)])
def test_a_busy_machine_is_said(load, warned, capsys):
    header = report.cpu_header([], "float32")
    header.device.update(load_at_start=load, cores=2)
    report.print_header(report.wide_console(), header)
    assert ("warning: load 7.0" in capsys.readouterr().out) == warned


def test_the_table_says_who_did_not_run_and_who_was_wrong(capsys):
    base = {"case": "piv", "which": "forward", "ours": False, "auto": False}
    fast = running.Row(**base, contestant="fast", timing=timing.Timing((0.25,), True), ratio=2.0, rate=5e9, peak_bytes=2**21)
    rows = [
        fast,
        running.Row(**base, contestant="big", reason="needs more"),
        running.Row(**base, contestant="odd", wrong="is 2 x"),
    ]
    report.print_rows(report.wide_console(), rows, peak_rate=1e10)
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("piv")]
    assert line.split() == ["piv", "forward", "fast", "250", "250", "250-250", "1*", "2", "50.00%", "2.0"]
    assert "not run: big: needs more" in printed
    assert "error: odd on piv, forward: is 2 x; not timed" in printed


def test_a_run_from_the_command_line_writes_what_was_measured_and_where(tmp_path):
    file = tmp_path / "results.json"
    options = ["--cases", "pwcnet-L6-sintel", "--budget", "0.2", "--no-memory", "--json", str(file)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options], cwd=root, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "(auto)" in done.stdout
    content = json.loads(file.read_text())
    assert content["command"] == "python -m benchmarks --cases pwcnet-L6-sintel --budget 0.2 --no-memory --json results.json"
    assert {"date", "dtype"} <= set(content)
    assert {"kind", "model", "cores_used", "sgemm_gflops"} <= set(content["device"])
    assert {"python", "numpy", "blas", "torch", "llvmlite", "cupycorr"} <= set(content["versions"])
    assert str(root) not in file.read_text()
    assert str(tmp_path) not in file.read_text()
    for which in ("forward", "vjp"):
        rows = {row["contestant"]: row for row in content["rows"] if row["pass"] == which}
        assert list(rows) == list(CONTESTANTS)
        (auto,) = [row for row in rows.values() if row["auto"]]
        assert auto["ratio"] == 1
        for row in rows.values():
            assert row.get("wrong") is None
            if "median_s" in row:
                assert row["ratio"] == pytest.approx(row["median_s"] / auto["median_s"])
                assert row["share_of_gemm"] > 0
            else:
                assert row["reason"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "cuda"], "this version has a benchmark for --device cpu only, got --device cuda"),
        (["--cases", "raft"], "got 'raft'"),
        (["--passes", "backward"], "--passes must be of forward, vjp, got 'backward'"),
        (["--rivals", "nobody"], "got 'nobody'"),
        (["--budget", "0"], "must be positive, got 0"),
        (["--dtype", "int8"], "int8"),
        (["--json", "no/such/folder/a.json"], "--json must lie in a folder that exists"),
    ],
)
def test_a_bad_command_is_one_clear_error(options, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(options)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_list_names_every_case_and_contestant(capsys):
    assert command.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*(case.name for case in cases.CASES), *CONTESTANTS))


def test_auto_runs_whoever_else_is_asked_for(capsys):
    assert (
        command.main(["--cases", "pwcnet-L6-crop", "--passes", "forward", "--rivals", "none", "--no-memory", "--budget", "0.1"])
        == 0
    )
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("pwcnet-L6-crop")]
    assert len(lines) == 1
    assert "(auto)" in lines[0]
