"""What the benchmark promises: the same work for everybody, in turn, on every documented shape, with memory kept in hand and
a report that says where its numbers come from. No test asserts a time."""

import json
import re
import subprocess
import sys
import types
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import cupy_on_numpy
import emulator
import fake_cupy
import numpy as np
import nvrtc
import oracle
import pytest
from waiting import STUCK

from benchmarks import __main__ as command
from benchmarks import cases, check, cuda, device_code, memory, overhead, pixel_blocks, plot, report, rivals, running, timing
from benchmarks.cases import Case
from cupycorr import _arrays, _dispatch
from cupycorr._correlation import reference
from cupycorr._gpu import compiler, source
from cupycorr._gpu.source import Kernel

CONTESTANTS = {contestant.name: contestant for contestant in rivals.contestants()}
ON_GPU = [row.name for row in _dispatch.VARIANTS if row.kind == "cupy"]
MULTIPLIED = ("float16", "bfloat16", "tf32")  # element types that tensor cores multiply
TORCH_RIVALS = ("unfold+einsum", "shift-loop", "tap-loop")
ON_GPU_IN_TORCH = ("unfold+einsum", "shift-loop", "cpp-extension", "mmcv")
GIBIBYTE = 2**30

SMALL = {
    "plain": Case("small", (2, 3, 6, 7), {"patch_size": 3}),
    "even-patch": Case("small", (1, 2, 6, 5), {"patch_size": (2, 4), "dilation_patch": (1, 2)}),
    "strided": Case("small", (1, 3, 9, 8), {"patch_size": (3, 5), "stride": (2, 3), "dilation_patch": 2, "padding": 1}),
    "cropped": Case("small", (1, 2, 9, 8), {"patch_size": 3, "padding": -1}),
    "one-sided": Case("small", (1, 3, 4, 12), {"patch_size": (1, 8), "patch_offset": (0, -4), "scale": 0.5}),
    "window": Case("small", (2, 2, 9, 8), {"kernel_size": (3, 2), "patch_size": 3}),
    "template": Case("small", (1, 2, 3, 4), {"kernel_size": (3, 4), "patch_size": 6, "patch_offset": 2}, size2=(8, 9)),
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
    ((1, 32, 125, 186), 1, (1, 32), 1, 0, 1, 1, (0, -16)),
    ((1, 8, 7, 7), 7, (84, 114), 1, 0, 1, 1, (41, 56)),
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


def test_the_template_case_looks_everywhere_in_its_image():
    (case,) = cases.select("template")
    assert (case.problem.size1, case.problem.size2) == ((7, 7), (90, 120))
    assert list(case.problem.vertical.displacements) == list(range(90 - 7 + 1))
    assert list(case.problem.horizontal.displacements) == list(range(120 - 7 + 1))


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
    assert [name for name, c in CONTESTANTS.items() if c.ours] == [variant.name for variant in _dispatch.VARIANTS]


# Running -------------------------------------------------------------------------------------------------------------


class FakeClock:
    """A clock on which the same time passes between any two looks at it, however busy the machine is."""

    def __init__(self, seconds):
        self.seconds, self.now = seconds, 0.0

    def __call__(self):
        self.now += self.seconds
        return self.now


def quick(dtype="float32"):
    """On a clock of the test's own, and with a budget that no run exceeds."""
    unhurried = replace(running.CPU, clock=FakeClock(2**-12), stopwatch=lambda work, calls: (work(), 2**-12)[1])
    return running.Settings(dtype, budget=2**-10, measure_memory=False, machine=unhurried)


def auto_and(*others):
    auto = rivals.automatic(SMALL["plain"], "float32", "forward")
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


def failing(case, inputs):
    raise RuntimeError("no kernel image\nand more")


def test_a_rival_that_fails_does_not_run_and_the_others_do():
    broken = replace(CONTESTANTS["reference"], name="broken", ours=False, forward=failing)
    ours, other = running.run(SMALL["plain"], "forward", auto_and(broken), quick())
    assert ours.timing is not None
    assert (other.timing, other.reason, other.wrong) == (None, "failed: no kernel image", None)


def test_ours_may_not_fail():
    broken = replace(CONTESTANTS["reference"], forward=failing)
    with pytest.raises(RuntimeError, match="no kernel image"):
        running.run(SMALL["plain"], "forward", [broken], quick())


def test_what_does_not_fit_into_memory_is_refused():
    pytest.importorskip("torch")
    (case,) = cases.select("flownetc-headline")
    entrants = [CONTESTANTS[name] for name in ("reference", "unfold+einsum")]
    unfolded = 4 * 256 * 21 * 21 * 48 * 64 * 4  # bytes of all displaced copies of input2
    for which, copies in (("forward", 2), ("vjp", 3)):
        assert CONTESTANTS["unfold+einsum"].bytes(case.problem, 4, which) >= copies * unfolded
    once = {"reference": 1, "unfold+einsum": 1}
    reasons = running.refusals(entrants, case, "forward", "float32", 8 * GIBIBYTE, once)
    assert reasons["reference"] is None
    assert "GiB of memory" in reasons["unfold+einsum"]
    assert set(running.refusals(entrants, case, "vjp", "float32", 100 * GIBIBYTE, once).values()) == {None}


def test_needs_of_those_in_memory_together_add_up():
    (case,) = cases.select("flownetc-headline")
    hungry = [replace(CONTESTANTS["reference"], name=name, bytes=lambda problem, itemsize, which: 6 * GIBIBYTE) for name in "ab"]
    reasons = running.refusals(hungry, case, "forward", "float32", 10 * GIBIBYTE, {"a": 1, "b": 1})
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

    def clocked(work, machine):
        result = work()
        return result, clock[runs[-1]].pop(0)

    monkeypatch.setattr(running, "_clocked", clocked)
    monkeypatch.setattr(running.rivals, "automatic", lambda *_: "reference")
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
    assert timing.cpu_stopwatch(lambda: done.append(1), 3, FakeClock(0.75)) == 0.25
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
    header = report.cpu_header([], ["float32", "float64"])
    header.device.update(sgemm_gflops=1e9, dgemm_gflops=0.0)
    report.measure_cpu_rates(header)
    assert header.device["sgemm_gflops"] == 1e9
    single, double = (a_row(dtype=dtype) for dtype in ("float32", "float64"))
    peak_rate = report.cpu_yardstick(header).peak_rate
    assert peak_rate(single) == 1e18
    assert 0 < peak_rate(double) == header.device["dgemm_gflops"] * 1e9 < 1e18


# Report --------------------------------------------------------------------------------------------------------------


def a_row(contestant="box", median=None, cut_short=False, **given):
    named = {"case": "piv", "dtype": "float32", "which": "forward", "ours": False, "auto": False, "contestant": contestant}
    timed = {} if median is None else {"timing": timing.Timing((median,), cut_short)}
    return running.Row(**named | timed | given)


def test_the_printed_command_names_no_folders(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = ["--cases", "piv*", "--json", str(tmp_path / "results" / "a.json")]
    assert report.command_line(given) == "python -m benchmarks --cases 'piv*' --json results/a.json"
    assert report.command_line(["--json=/elsewhere/b.json"]) == "python -m benchmarks --json=b.json"


@pytest.mark.parametrize(("load", "warned"), [(0.2, False), (7.0, True)])
def test_a_busy_machine_is_said(load, warned, capsys):
    header = report.cpu_header([], ["float32"])
    header.device.update(load_at_start=load, cores=2)
    report.print_header(report.wide_console(), header)
    assert ("warning: load 7.0" in capsys.readouterr().out) == warned


def test_the_table_says_who_did_not_run_and_who_was_wrong(capsys):
    rows = [
        a_row("fast", 0.25, ratio=2.0, rate=5e9, peak_bytes=2**21, cut_short=True),
        a_row("big", reason="needs more"),
        a_row("odd", wrong="is 2 x"),
    ]
    report.print_rows(report.wide_console(), rows, report.Yardstick(lambda row: 1e10))
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("piv")]
    assert line.split() == ["piv", "float32", "forward", "fast", "250", "250", "250-250", "1*", "2", "50.00%", "2.0"]
    assert "not run: big: needs more" in printed
    assert "error: odd on piv float32 forward: is 2 x; not timed" in printed
    assert "regret:" not in printed


def choices(*medians):
    """Rows of ours and of a quicker rival; the first is auto's."""
    ours = [a_row(f"ours-{k}", median, ours=True, auto=k == 0, rate=1e9) for k, median in enumerate(medians)]
    return [replace(ours[0], regret=medians[0] / min(medians)), *ours[1:], a_row("rival", 1e-3, rate=1e9)]


@pytest.mark.parametrize(
    ("medians", "regret"), [((0.5, 0.25, 0.75), 2.0), ((0.25, 0.5), 1.0), ((0.5,), None)], ids=["wrong", "right", "no choice"]
)
def test_regret_is_the_chosen_variants_time_over_that_of_the_best_of_ours(medians, regret, monkeypatch):
    everybody = [replace(CONTESTANTS["reference"], name=f"ours-{k}") for k in range(len(medians))]
    everybody.append(replace(CONTESTANTS["reference"], name="rival", ours=False))
    seconds = {**{f"ours-{k}": timing.Timing((median,)) for k, median in enumerate(medians)}, "rival": timing.Timing((0.01,))}
    monkeypatch.setattr(running, "race", lambda *_: seconds)
    settings = replace(quick(), machine=replace(quick().machine, automatic=lambda *_: "ours-0"))
    rows = running.run(SMALL["plain"], "forward", everybody, settings)
    assert [row.regret for row in rows] == [regret, *(None for _ in rows[1:])]


def test_ours_stand_side_by_side_with_autos_marked_and_a_bad_choice_flagged(capsys):
    def timed(case, dtype, auto, **seconds):
        rows = [a_row(name, each, case=case, dtype=dtype, ours=True, auto=name == auto) for name, each in seconds.items()]
        best = min(seconds.values())
        return [replace(row, regret=seconds[auto] / best, rate=1e9) if row.auto else replace(row, rate=1e9) for row in rows]

    rows = [
        *timed("piv", "float16", "mma", mma=0.5, tiled=0.25, direct=0.75),
        *timed("piv", "tf32", "tiled", mma=0.25, tiled=0.2875, direct=0.5),
        *timed("aot", "float32", "tiled", tiled=0.125, direct=0.5),
        a_row("rival", 0.01, rate=1e9),
    ]
    report.print_rows(report.wide_console(), rows, report.Yardstick(lambda row: 1e10))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    begin = lines.index("case dtype pass mma ms tiled ms direct ms regret")
    assert lines[begin + 1 : begin + 5] == [
        "piv float16 forward 500 * 250 750 2.00 !",
        "piv tf32 forward 250 288 * 500 1.15",
        "aot float32 forward - 125 * 500 1.00",
        "* what auto runs; ! takes over 1.15 times as long as the best of ours",
    ]


def test_without_a_choice_nothing_stands_side_by_side(capsys):
    row = a_row("ours", 0.5, ours=True, auto=True, rate=1e9)
    report.print_rows(report.wide_console(), [row], report.Yardstick(lambda row: 1e10))
    assert "what auto runs" not in capsys.readouterr().out


def test_the_worst_regret_is_named_last(capsys):
    elsewhere = [replace(row, case="aot", regret=row.regret and 1.25) for row in choices(0.5, 0.4)]
    report.print_rows(report.wide_console(), [*choices(0.5, 0.25, 0.75), *elsewhere], report.Yardstick(lambda row: 1e10))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "worst regret: 2.00 on piv float32 forward: auto's ours-0 takes 500 ms, ours-1 takes 250 ms"
    assert [" 2.00 " in line for line in lines if "ours-" in line and line.startswith("piv")] == [True, False, False]
    assert report.worst_regret(choices(0.25, 0.5)) == "worst regret: none, auto ran the best of ours everywhere"
    assert report.record(choices(0.5, 0.25)[0], report.Yardstick(lambda row: 1e10))["regret"] == 2.0


def test_a_run_from_the_command_line_writes_what_was_measured_and_where(tmp_path):
    file = tmp_path / "results.json"
    options = ["--cases", "pwcnet-L6-sintel", "--budget", "0.2", "--no-memory", "--json", str(file)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options], cwd=root, capture_output=True, text=True, check=False, timeout=STUCK
    )
    assert done.returncode == 0, done.stderr
    assert "(auto)" in done.stdout
    content = json.loads(file.read_text())
    assert content["command"] == "python -m benchmarks --cases pwcnet-L6-sintel --budget 0.2 --no-memory --json results.json"
    assert {"date", "dtypes"} <= set(content)
    assert {"kind", "model", "cores_used", "sgemm_gflops"} <= set(content["device"])
    assert {"python", "numpy", "blas", "torch", "llvmlite", "cupycorr"} <= set(content["versions"])
    assert str(root) not in file.read_text()
    assert str(tmp_path) not in file.read_text()
    for which in ("forward", "vjp"):
        rows = {row["contestant"]: row for row in content["rows"] if row["pass"] == which}
        assert list(rows) == list(CONTESTANTS)
        assert {row["dtype"] for row in rows.values()} == {"float32"}
        (auto,) = [row for row in rows.values() if row["auto"]]
        assert auto["ratio"] == 1
        assert auto["regret"] >= 1
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
        (["--device", "tpu"], "this version has a benchmark for --device cpu, cuda only, got --device tpu"),
        (["--check"], "--check is there for --device cuda, got --device cpu"),
        (["--plot", "a.png"], "--plot is there for --device cuda, got --device cpu"),
        (["--tune"], "--tune is there for --device cuda, got --device cpu"),
        (["--cases", "raft"], "got 'raft'"),
        (["--passes", "backward"], "--passes must be of forward, vjp, got 'backward'"),
        (["--rivals", "nobody"], "got 'nobody'"),
        (["--budget", "0"], "must be positive, got 0"),
        (["--dtype", "float32,int8"], "--dtype must be 'all' or of float16, bfloat16, float32, float64, got 'int8'"),
        (["--dtype", "tf32"], "--dtype must be 'all' or of float16, bfloat16, float32, float64, got 'tf32'"),
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


# A CUDA device, without one ------------------------------------------------------------------------------------------


def test_without_cupy_the_refusal_is_one_line_with_the_pip_command(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert command.main(["--device", "cuda"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'pip install "cupycorr[cuda12]"' in line


@pytest.mark.parametrize("options", [[], ["--check"], ["--list"]])
def test_without_a_device_the_refusal_is_one_line(monkeypatch, capsys, options):
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.Fake())
    assert command.main(["--device", "cuda", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no CUDA" in line


@pytest.fixture
def gpu(monkeypatch):
    """CuPy's face on NumPy arrays, its clock and memory in the test's hands; GPU variants are answered by the reference."""

    on_gpu = {"forward": reference.forward, "vjp": reference.vjp}
    rows = tuple(replace(row, **on_gpu) if row.kind == "cupy" else row for row in _dispatch.VARIANTS)
    with cupy_on_numpy.installed(monkeypatch, lambda *_: pytest.fail("a kernel was made")):
        monkeypatch.setattr(_dispatch, "VARIANTS", rows)
        monkeypatch.setenv("CUPYCORR_AUTOTUNE", "0")
        fake = FakeGpu(sys.modules["cupy"])
        monkeypatch.setattr(device_code, "function", fake.function)
        forget_choices()
        yield fake
    forget_choices()


def forget_choices():
    """Dispatch remembers rows of `VARIANTS`, which tests replace."""
    for found in vars(_dispatch).values():
        getattr(found, "cache_clear", lambda: None)()


class FakeGpu:
    """A device that notes what it is asked for, and on which every piece of work takes a second."""

    cache = 2**20

    def __init__(self, cupy):
        self.asked, self.hook, self.stream, gpu = [], None, None, self

        class Event:
            def record(self):
                gpu.asked.append("event")
                self.at = gpu.asked.count("work")

        class MemoryHook:
            def __enter__(self):
                gpu.hook = self

            def __exit__(self, *_):
                gpu.hook = None

        class Stream:
            def __init__(self, non_blocking):
                assert non_blocking

            def __enter__(self):
                gpu.stream = self
                return self

            def __exit__(self, *_):
                gpu.stream = None

            def synchronize(self):
                gpu.asked.append("wait for the stream")

            def begin_capture(self):
                gpu.asked.append("begin")

            def end_capture(self):
                gpu.asked.append("end")
                return types.SimpleNamespace(launch=lambda stream: gpu.asked.append("replay"))

        def device(index):
            attributes = {"L2CacheSize": gpu.cache} if gpu.cache else {}
            return types.SimpleNamespace(synchronize=lambda: self.asked.append("wait"), attributes=attributes)

        cupy.asnumpy = lambda array: np.array(array, subok=False)
        cupy.cuda.Event, cupy.cuda.MemoryHook, cupy.cuda.Stream, cupy.cuda.Device = Event, MemoryHook, Stream, device
        cupy.cuda.get_elapsed_time = lambda begin, end: 1000.0 * (end.at - begin.at)
        cupy.cuda.runtime = types.SimpleNamespace(memGetInfo=lambda: (2**30, 2**40))
        pool = types.SimpleNamespace(free_all_blocks=lambda: self.asked.append("give back"))
        cupy.get_default_memory_pool = lambda: pool

    def work(self):
        self.asked.append("work")

    def function(self, file):
        def launch(grid, block, arguments):
            assert (file, grid, block, arguments) == ("lead.cu", (1,), (1,), (np.int64(200_000),))
            self.asked.append("lead")

        return launch


def test_the_clock_of_a_device_begins_when_the_host_is_ahead_and_waits_once(gpu):
    assert cuda.stopwatch(lambda: (gpu.work(), gpu.work()), 3) == 2.0
    assert gpu.asked == ["lead", "event", "work", "work", "event"] * 3 + ["wait"]


@pytest.mark.parametrize(("touched", "count"), [(1000, 1 + 2098), (2**20, 3), (2**20 + 1, 3), (2**31, 2)])
def test_copies_are_so_many_that_the_cache_holds_less_than_half_of_the_others(gpu, touched, count):
    assert cuda.copies(touched) == count


def test_a_device_that_does_not_tell_its_cache_is_taken_for_one_with_a_large_one(gpu):
    gpu.cache = None
    assert cuda.copies(2**20) == 1 + 2 * 256


def test_copies_are_used_in_turn_and_results_go_where_none_of_the_last_went():
    made = []
    work = running.in_turn([lambda name=name: made.append(np.full(2**16, name)) or (made.pop(),) for name in range(3)])
    results = [(out[0], out.ctypes.data) for (out,) in (work() for _ in range(9))]
    assert [name for name, _ in results] == [0, 1, 2] * 3
    places = [place for _, place in results]
    assert all(len(set(places[k : k + 3])) == 3 for k in range(7))


def test_everybody_works_on_copies_of_the_operands(monkeypatch):
    seen = {"ours": [], "rival": []}

    def noting(name):
        def forward(case, inputs):
            return lambda: (seen[name].append(id(inputs.input1)), reference_work(case, inputs))[1]()

        return forward

    reference_work = CONTESTANTS["reference"].forward
    ours = replace(CONTESTANTS["reference"], name="ours", forward=noting("ours"))
    rival = replace(CONTESTANTS["reference"], name="rival", ours=False, forward=noting("rival"))
    copied = dict(place=lambda inputs: cases.Inputs(inputs.input1.copy(), inputs.input2.copy(), None), copies=lambda touched: 3)
    machine = replace(quick().machine, automatic=lambda *_: "ours", **copied)
    rows = running.run(SMALL["plain"], "forward", [ours, rival], replace(quick(), machine=machine))
    assert [row.copies for row in rows] == [3, 3]
    for used in seen.values():
        assert len(set(used[:3])) == 3
        assert used == (used[:3] * len(used))[: len(used)]
    assert set(seen["ours"]) == set(seen["rival"])


def test_copies_are_counted_by_what_is_touched_and_graphs_that_are_kept_count():
    (case,) = cases.select("pwcnet-L4-sintel")
    operands, results = 2 * 96 * 28 * 64 * 4, 81 * 28 * 64 * 4
    asked, machine = [], replace(running.CPU, copies=lambda touched: asked.append(touched) or 5)
    settings = running.Settings(machine=machine)
    in_torch = replace(CONTESTANTS["unfold+einsum"], bytes=lambda problem, itemsize, which: 10**9)
    of_arrays = replace(in_torch, way="array")
    for contestant, which in ((in_torch, "forward"), (of_arrays, "vjp"), (in_torch, "vjp")):
        assert running._copies(contestant, case, which, settings) == 5
    assert asked == [operands + results, 2 * operands + results, 10**9]
    assert [running._needed(each, case, "vjp", "float32", 5) for each in (in_torch, of_arrays)] == [
        5 * 10**9,
        10**9 + 4 * operands,
    ]
    assert running._needed(in_torch, case, "forward", "float32", 5) == 10**9 + 4 * results


def test_the_hosts_time_begins_with_an_idle_device(gpu):
    assert cuda.host_seconds(gpu.work, FakeClock(0.5)) == 0.5 / cuda.HOST_CALLS
    assert gpu.asked == (["wait"] + ["work"] * cuda.HOST_CALLS) * cuda.HOST_RUNS + ["wait"]


def test_a_graph_is_captured_after_a_run_on_its_stream_and_what_it_kept_is_given_back(gpu, monkeypatch):
    before, in_graph = object(), object()
    monkeypatch.setattr(_arrays, "_captured", [before])

    def work():
        assert gpu.stream is not None
        gpu.work()
        _arrays._captured.extend([in_graph] * (gpu.asked[-2] == "begin"))
        return (np.zeros(1),)

    with cuda.captured(work) as replay:
        replay()
        assert _arrays._captured == [before, in_graph]
    assert _arrays._captured == [before]
    assert gpu.asked == ["wait", "work", "wait for the stream", "begin", "work", "end", "replay", "wait"]


def test_a_capture_that_fails_is_ended(gpu):
    def work():
        gpu.work()
        if gpu.asked[-2] == "begin":
            raise RuntimeError("not while capturing")

    with pytest.raises(RuntimeError, match="not while capturing"), cuda.captured(work):
        pytest.fail("there is nothing to replay")
    assert gpu.asked[-1] == "end"


def ways_on(gpu, monkeypatch, name, which="forward"):
    """What a call costs the host by each way, counted: seconds are the pieces of work of that name."""
    (contestant,) = [each for each in rivals.cuda_contestants() if each.name == name]
    monkeypatch.setattr(cuda, "host_seconds", lambda call: (call(), 2.0)[1])
    case, dtype = SMALL["window" if name == "box" else "plain"], "float16" if name == "mma" else "float32"
    return cuda.host_times(contestant, gpu.work, which, case, cuda.place(case.inputs(dtype, which)))


@pytest.mark.parametrize("which", cases.PASSES)
@pytest.mark.parametrize("name", ON_GPU)
def test_ours_is_timed_for_the_host_as_a_function_in_torch_and_as_a_graph(gpu, monkeypatch, name, which):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(rivals, "lacking_cuda_torch", lambda: None)
    asked = []

    def correlate(input1, input2, **keywords):
        asked.append(keywords)
        return (input1 * input2).sum() * torch.ones(SMALL["window" if name == "box" else "plain"].problem.out_shape)

    monkeypatch.setattr("cupycorr.torch.spatial_correlation_sample", correlate)
    found = ways_on(gpu, monkeypatch, name, which)
    assert found == running.HostTimes({"array": 2.0, "torch": 2.0, "graph": 2.0}, {})
    assert {(keywords["variant"], keywords["precision"]) for keywords in asked} == {(name, "highest")}
    assert gpu.asked.count("replay") == 1


def test_a_way_that_is_not_there_is_named_and_the_others_are_timed(gpu, monkeypatch):
    monkeypatch.setattr(rivals, "lacking_cuda_torch", lambda: "this torch finds no CUDA device")
    monkeypatch.setattr(sys.modules["cupy"].cuda, "Stream", lambda non_blocking: nullcontext(FailingStream()))
    found = ways_on(gpu, monkeypatch, "direct")
    assert found.seconds == {"array": 2.0}
    assert found.unknown == {"torch": "this torch finds no CUDA device", "graph": "no graphs here"}


class FailingStream:
    def synchronize(self):
        raise RuntimeError("no graphs here\nand more")


def test_a_rival_is_timed_for_the_host_as_it_is_called(gpu, monkeypatch):
    assert ways_on(gpu, monkeypatch, "pixel-blocks") == running.HostTimes({"array": 2.0}, {})
    assert ways_on(gpu, monkeypatch, "shift-loop") == running.HostTimes({"torch": 2.0}, {})


def test_available_memory_is_what_is_free_after_pools_gave_back(gpu, monkeypatch):
    emptied = []
    with_cuda = types.SimpleNamespace(cuda=types.SimpleNamespace(empty_cache=lambda: emptied.append(1)))
    monkeypatch.setattr(rivals, "lacking_cuda_torch", lambda: None)
    monkeypatch.setattr(rivals, "torch", lambda: with_cuda)
    assert cuda.available() == 2**30
    assert (gpu.asked, emptied) == (["give back"], [1])


def test_the_account_of_a_device_knows_the_peak_and_what_is_held(gpu):
    with cuda.accounted() as account:
        gpu.hook.malloc_postprocess(device_id=0, size=500, mem_size=512, mem_ptr=1, pmem_id=1)
        gpu.hook.malloc_postprocess(device_id=0, size=1024, mem_size=1024, mem_ptr=2, pmem_id=2)
        gpu.hook.free_postprocess(device_id=0, mem_size=1024, mem_ptr=2, pmem_id=2)
        gpu.hook.free_postprocess(device_id=0, mem_size=9999, mem_ptr=3, pmem_id=3)  # lent before
        gpu.hook.malloc_postprocess(device_id=0, size=1, mem_size=512, mem_ptr=4, pmem_id=4)
        gpu.hook.malloc_postprocess(device_id=0, size=2048, mem_size=2048, mem_ptr=0, pmem_id=0)  # failed
    assert (account.held, account.most) == (1024, 1536)
    assert gpu.hook is None


def test_ours_and_rivals_on_a_device(gpu):
    entrants = {contestant.name: contestant for contestant in rivals.cuda_contestants()}
    assert list(entrants) == [*ON_GPU, "unfold+einsum", "shift-loop", "pixel-blocks", "cpp-extension", "mmcv"]
    assert [name for name, each in entrants.items() if each.ours] == ON_GPU
    plain, windowed = SMALL["plain"], SMALL["window"]
    assert "kernel_size is 1" in entrants["box"].refusal(plain, "float32", "forward")
    assert entrants["box"].refusal(windowed, "bfloat16", "vjp") is None
    assert entrants["direct"].refusal(plain, "float16", "vjp") is None
    assert all(cuda.automatic(plain, "float32", which) in ON_GPU for which in cases.PASSES)


@pytest.fixture
def halves(gpu, monkeypatch):
    """Two variants left, of which one has nothing but the forward pass and the other nothing but gradients."""
    first, second = ON_GPU[:2]
    passes = {first: "forward", second: "vjp"}

    def missing(name):
        return lambda question, device: None if question.which == passes.get(name) else f"{name} stays away"

    rows = tuple(replace(row, missing=missing(row.name)) if row.kind == "cupy" else row for row in _dispatch.VARIANTS)
    monkeypatch.setattr(_dispatch, "VARIANTS", rows)
    forget_choices()
    return passes


def test_each_pass_has_its_own_choice(halves):
    machine = replace(cuda.MACHINE, stopwatch=lambda *_: 1.0, available=lambda: 2**40, host=None)
    for name, which in halves.items():
        everybody = [each for each in rivals.cuda_contestants() if each.ours]
        rows = {row.contestant: row for row in running.run(SMALL["plain"], which, everybody, replace(quick(), machine=machine))}
        assert [other for other, row in rows.items() if row.auto] == [name]
        assert [other for other, row in rows.items() if row.timing] == [name]
        assert all(f"{other} stays away" in row.reason for other, row in rows.items() if other != name)


def test_the_check_looks_at_whatever_a_variant_has(halves):
    small = check.SMALL["flownetc"]
    arrays = tuple(map(cupy_on_numpy.on_cupy, small.arrays("float32")))
    parts = {"forward": ["output"], "vjp": ["g1", "g2"]}
    found = {name: list(answer) for name, answer in check._answers(small, arrays, "float32")}
    assert found == {name: parts[which] for name, which in halves.items()}


@pytest.mark.parametrize("name", ON_GPU_IN_TORCH)
def test_a_torch_without_cuda_takes_no_part_on_a_device(gpu, monkeypatch, name):
    no_cuda = types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: False))
    monkeypatch.setattr(rivals, "torch", lambda: no_cuda)
    (rival,) = [each for each in rivals.cuda_contestants() if each.name == name]
    assert rival.refusal(SMALL["plain"], "float32", "forward") == "this torch finds no CUDA device"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["unfold+einsum", "shift-loop"])
def test_rivals_on_a_device_work_on_the_memory_of_ours(gpu, monkeypatch, name, dtype):
    pytest.importorskip("torch")
    monkeypatch.setattr(rivals, "lacking_cuda_torch", lambda: None)
    entrants = {each.name: each for each in rivals.cuda_contestants()}
    inputs = cuda.place(SMALL["plain"].inputs(dtype, "forward"))
    assert rivals.tensor(inputs.input1).data_ptr() == inputs.input1.data.ptr
    machine = replace(cuda.MACHINE, stopwatch=lambda *_: 1.0, available=lambda: 2**40, host=None)
    settings = replace(quick(dtype), machine=machine)
    rows = running.run(SMALL["plain"], "forward", [entrants["direct"], entrants[name]], settings)
    assert [(row.contestant, row.wrong, row.reason) for row in rows] == [("direct", None, None), (name, None, None)]


@pytest.mark.parametrize("which", cases.PASSES)
@pytest.mark.parametrize(("dtype", "precision"), [("tf32", "high"), ("float32", "highest"), ("float16", "highest")])
def test_tf32_is_float32_with_products_that_may_be_rounded_asked_for_every_way(gpu, monkeypatch, dtype, precision, which):
    asked = []

    def noting(*arguments, **keywords):
        asked.append((arguments[-1].dtype.name, keywords["precision"], keywords["variant"]))
        return np.zeros(1)

    monkeypatch.setattr(rivals.cupycorr, "spatial_correlation_sample", noting)
    monkeypatch.setattr(rivals.cupycorr, "spatial_correlation_sample_vjp", noting)
    inputs = cuda.place(SMALL["plain"].inputs(dtype, which))
    (direct,) = [each for each in rivals.cuda_contestants() if each.name == "direct"]
    direct.prepare(which, SMALL["plain"], inputs)()
    stored = "float32" if dtype == "tf32" else dtype
    assert asked == [(stored, precision, "direct")]
    assert SMALL["plain"].bytes(dtype, which) == SMALL["plain"].bytes(stored, which)
    rival = next(each for each in rivals.cuda_contestants() if each.name == "shift-loop")
    monkeypatch.setattr(rivals, "lacking_torch", lambda: None)
    monkeypatch.setattr(rivals, "torch", lambda: types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: True)))
    assert rival.refusal(SMALL["plain"], dtype, which) == ("multiplies whole float32 numbers" if dtype == "tf32" else None)


@pytest.mark.parametrize("which", cases.PASSES)
def test_tensor_cores_take_part_by_element_type(gpu, which):
    (mma,) = [each for each in rivals.cuda_contestants() if each.name == "mma"]
    taking = [dtype for dtype in cases.DTYPES if mma.refusal(SMALL["plain"], dtype, which) is None]
    assert taking == [dtype for dtype in cases.DTYPES if dtype in MULTIPLIED]


@pytest.mark.parametrize(
    ("small", "dtype", "reason"),
    [
        ("plain", "float32", None),
        ("window-of-everything", "float16", None),
        ("even-patch", "float32", "patches are odd, and every parameter the same along both axes"),
        ("window", "float32", "patches are odd, and every parameter the same along both axes"),
        ("one-sided", "float32", "has no patch_offset"),
        ("plain", "bfloat16", "has no bfloat16"),
    ],
)
def test_when_the_compiled_rival_of_openmmlab_takes_part(monkeypatch, small, dtype, reason):
    monkeypatch.setattr(rivals, "importable", lambda name: types.ModuleType(name))
    assert rivals._mmcv_refusal(SMALL[small], dtype, "forward") == reason


@pytest.fixture
def mmcv(monkeypatch):
    """OpenMMLab's operator as its documentation describes it, computed by the oracle; what it is made with is noted."""
    torch, made = pytest.importorskip("torch"), []

    class Correlation:
        def __init__(self, kernel_size=1, max_displacement=1, stride=1, padding=0, dilation=1, dilation_patch=1):
            given = (kernel_size, 2 * max_displacement + 1, stride, padding, dilation, dilation_patch)
            assert all(type(each) is int for each in given)
            names = ("kernel_size", "patch_size", "stride", "padding", "dilation", "dilation_patch")
            self.keywords = dict(zip(names, given, strict=True))
            made.append(self)

        def __call__(self, input1, input2):
            value, *_ = oracle.forward(input1.numpy(), input2.numpy(), **self.keywords)
            return torch.from_numpy(np.float32(value))

    rivals._mmcv_module.cache_clear()
    for name in ("mmcv", "mmcv.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["mmcv.ops"].Correlation = Correlation
    yield made
    rivals._mmcv_module.cache_clear()


@pytest.mark.parametrize("small", ["plain", "window-of-everything"])
def test_openmmlabs_operator_is_asked_for_the_same(gpu, monkeypatch, mmcv, small):
    monkeypatch.setattr(rivals, "lacking_cuda_torch", lambda: None)
    entrants = {each.name: each for each in rivals.cuda_contestants()}
    machine = replace(cuda.MACHINE, stopwatch=lambda *_: 1.0, available=lambda: 2**40, host=None)
    rows = running.run(SMALL[small], "forward", [entrants["direct"], entrants["mmcv"]], replace(quick(), machine=machine))
    assert [(row.contestant, row.wrong, row.reason) for row in rows] == [("direct", None, None), ("mmcv", None, None)]
    assert len(mmcv) == 1  # made once, not at every call


# The rival of our own writing, and the lead --------------------------------------------------------------------------


def emulated(order):
    """The benchmark's kernels on the CPU: arrays are lent to each launch, and all of the last one must be written."""
    machine = emulator.Emulator(order, device_code.text)

    def function(file):
        kernel = Kernel(file, Path(file).stem)

        def launch(grid, block, arguments, shared_mem=0):
            *reads, written = [np.asarray(each) for each in arguments if isinstance(each, np.ndarray)]
            with machine.lending({f"input{k}": each for k, each in enumerate(reads, 1)}, {"out": written}):
                pointers = [each.ctypes.data if isinstance(each, np.ndarray) else each for each in arguments]
                machine.bind(kernel, 0, grid, block, shared_mem)(tuple(pointers))
                assert not machine.unwritten(written).any()

        return launch

    return function


BLOCKS = {
    "plain": SMALL["plain"],
    "even-patch": SMALL["even-patch"],
    "one-sided": SMALL["one-sided"],
    "cropped": SMALL["cropped"],
    "padded": Case("small", (2, 40, 4, 5), {"patch_size": (3, 5), "padding": (2, 1), "dilation_patch": (2, 1)}),
    "outside": Case("small", (1, 3, 5, 6), {"patch_size": 3, "patch_offset": (9, -20)}),
}


@pytest.mark.parametrize("order", emulator.ORDERS)
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_for_each_pixel_computes_the_definition(gpu, monkeypatch, name, order):
    emulator.require_compiler()
    monkeypatch.setattr(device_code, "function", emulated(order))
    case = BLOCKS[name]
    inputs = cuda.place(case.inputs("float32", "forward"))
    assert pixel_blocks.refusal(case, "float32", "forward") is None
    triple = oracle.forward(np.asarray(inputs.input1), np.asarray(inputs.input2), **case.keywords)
    oracle.assert_close(rivals.as_numpy(pixel_blocks.correlate(inputs.input1, inputs.input2, case.problem)), triple, name="out")


@pytest.mark.parametrize(
    ("small", "dtype", "which", "reason"),
    [
        ("plain", "float32", "vjp", "forward only"),
        ("plain", "float64", "forward", "float32 only"),
        ("window", "float32", "forward", "windows of one pixel and stride 1 only"),
        ("strided", "float32", "forward", "windows of one pixel and stride 1 only"),
    ],
)
def test_when_a_block_for_each_pixel_takes_no_part(small, dtype, which, reason):
    assert pixel_blocks.refusal(SMALL[small], dtype, which) == reason


@nvrtc.needed
@pytest.mark.parametrize("file", device_code.FILES)
def test_the_benchmarks_own_kernels_compile_without_warnings_or_spills(monkeypatch, file):
    monkeypatch.setattr(source, "text", {file: device_code.text(file)}.get)
    for architecture in nvrtc.architectures():
        _, log = compiler.cubin(Kernel(file, Path(file).stem), architecture, "--ptxas-options=-v")
        told = [line for line in log.splitlines() if "deprecated" not in line]
        assert not re.search(r"warning|error|[1-9]\d* bytes (stack|spill)", "\n".join(told)), log
        assert "Used" in log


def test_the_benchmarks_own_kernels_are_all_compiled_here():
    assert set(device_code.FILES) == {path.name for path in Path(device_code.__file__).parent.glob("*.cu")}


def test_a_kernel_of_the_benchmark_is_compiled_once(monkeypatch):
    there = fake_cupy.Fake(fake_cupy.H100)
    monkeypatch.setitem(sys.modules, "cupy", there)
    device_code.function.cache_clear()
    kernels = [device_code.function("lead.cu") for _ in range(2)]
    device_code.function.cache_clear()
    assert kernels[0] is kernels[1]
    assert kernels[0].entry == "lead"
    ((_, code, options, backend),) = there.modules
    assert code == device_code.text("lead.cu")
    assert (options, backend) == (("--std=c++17",), "nvrtc")


# What is told of a device --------------------------------------------------------------------------------------------


def cuda_header(*dtypes):
    rates = dict(copy_gbps=4000.0, sgemm_gflops=50e3, dgemm_gflops=60e3, hgemm_gflops=800e3)
    rates |= dict(theoretical_matrix_gflops={"float16": 535e3, "bfloat16": None, "tf32": 267e3})
    told = dict(theoretical_gbps=4800.0, theoretical_float32_gflops=67e3, theoretical_float64_gflops=33e3)
    device = dict(
        kind="cuda",
        model="a GPU in a test",
        compute_capability="9.0",
        multiprocessors=132,
        memory_bytes=2**37,
        l2_bytes=50 * 2**20,
        driver="570.1",
        driver_cuda="13.0",
        runtime_cuda="12.9",
        not_measured=["hgemm_gflops: no cuBLAS"],
        lead_s=2e-4,
        autotune=None,
        host="a CPU in a test",
        cores=2,
        load_at_start=0.0,
    )
    versions = {"cupy": "14", "cupycorr": "0.1"}
    return report.Header("today", "python -m benchmarks", dtypes or ("float32",), device | rates | told, versions)


@pytest.mark.parametrize(
    ("case", "which", "dtype", "seconds"),
    [  # FlowNetC: 4 x 256 x 48 x 64, 441 displacements; 2.774 GFLOP, 2 x 3.146 and 5.419 million numbers
        ("flownetc-headline", "forward", "float32", 2.774e9 / 67e12),  # the clock promises more than the product reached
        ("flownetc-headline", "vjp", "float32", 2 * 2.774e9 / 67e12),
        ("flownetc-headline", "forward", "float64", 2.774e9 / 60e12),  # and here the product reached more
        ("flownetc-headline", "forward", "bfloat16", 46.84e6 / 2 / 4e12),
        ("flownetc-headline", "vjp", "bfloat16", (46.84e6 + 25.17e6) / 2 / 4e12),
        ("flownetc-headline", "forward", "tf32", 46.84e6 / 4e12),
        ("flownetc-headline", "vjp", "tf32", 2 * 2.774e9 / 267e12),
        ("piv-dense", "forward", "tf32", 2 * 32**2 * 25**2 * 338 * 480 / 67e12),  # windows are summed of whole products
    ],
)
def test_the_bound_is_traffic_or_arithmetic(case, which, dtype, seconds):
    row = a_row(case=case, which=which, dtype=dtype)
    assert cuda.yardstick(cuda_header("float16", "float32")).bound(row) == pytest.approx(seconds, rel=1e-3)


def test_what_was_not_measured_is_not_taken_for_zero():
    header = cuda_header("float16")
    header.device.update(hgemm_gflops=0.0)
    row = a_row(case="flownetc-headline", dtype="float16")
    assert cuda.yardstick(header).peak_rate(row) == 535e12
    assert cuda.yardstick(header).peak_rate(replace(row, dtype="bfloat16")) == 67e12  # which no tensor core multiplies there
    header.device.update(theoretical_float32_gflops=None, theoretical_matrix_gflops={})
    assert cuda.yardstick(header).bound(row) == pytest.approx(46.84e6 / 2 / 4e12, rel=1e-3)


@pytest.mark.parametrize(("setting", "said"), [(None, "unset"), ("1", "1")])
def test_the_header_says_whether_choices_are_measured(setting, said, capsys):
    header = cuda_header()
    header.device.update(autotune=setting)
    report.print_header(report.wide_console(), header)
    assert f"auto chooses with CUPYCORR_AUTOTUNE {said}" in capsys.readouterr().out.splitlines()


def test_the_table_of_a_device_shows_the_share_of_the_bound_and_the_hosts_time_by_each_way(capsys):
    host = running.HostTimes({"array": 8e-6, "graph": 3e-6}, {"torch": "no torch"})
    known = dict(ours=True, auto=True, ratio=1.0, regret=1.5, rate=5e9, peak_bytes=2**21, host=host, copies=7)
    row, yardstick = a_row("box", 0.25, **known), report.Yardstick(lambda row: 1e10, lambda row: 0.05)
    report.print_header(report.wide_console(), cuda_header("float16", "float32"))
    report.print_rows(report.wide_console(), [row, a_row("box", dtype="float16", reason="no")], yardstick)
    printed = capsys.readouterr().out
    assert "a GPU in a test, compute capability 9.0" in printed
    assert "float16, float32, today" in printed
    assert "driver 570.1 for CUDA 13.0, runtime 12.9" in printed
    assert "33000.0 in float64; on tensor cores 535000.0 in float16, None in bfloat16, 267000.0 in tf32" in printed
    assert "each call begins 200 us after" in printed
    assert "not measured: hgemm_gflops: no cuBLAS" in printed
    heads, _ = [line for line in printed.splitlines() if line.startswith("case")]
    assert re.split(r"\s\s+", heads.rstrip())[-5:] == ["of bound", "array us", "torch us", "graph us", "peak MiB"]
    line, _ = [line for line in printed.splitlines() if line.startswith("piv")]
    names, shares = ["piv", "float32", "forward", "box", "(auto)"], ["20.00%", "8.0", "3.0", "2.0"]
    assert line.split() == [*names, "250", "250", "250-250", "1", "1", "1.50", *shares]
    assert "host not timed: box by torch: no torch (piv float32 forward)" in printed
    record = report.record(row, yardstick)
    assert (record["bound_s"], record["share_of_bound"], record["copies"]) == (0.05, 0.2, 7)
    assert (record["host_s"], record["host_unknown"]) == ({"array": 8e-6, "graph": 3e-6}, {"torch": "no torch"})


@pytest.fixture
def whole_run(gpu, monkeypatch):
    """The command line on a device of the tests, on which every call takes a quarter of a millisecond and one case is left."""
    small = replace(cases.CASES[0].small(), name="flownetc-headline")
    for module in (cases, cuda):
        monkeypatch.setattr(module, "CASES", (small,))
    quiet = dict(stopwatch=lambda work, calls: (work(), 2**-12)[1], host=lambda *_: running.HostTimes({"array": 1e-5}))
    quiet["clock"] = FakeClock(2**-12)
    device = replace(
        command.CUDA,
        require=lambda: None,
        machine=replace(cuda.MACHINE, **quiet),
        header=lambda arguments, dtypes: cuda_header(*dtypes),
        measure_rates=lambda header: None,
    )
    monkeypatch.setattr(command, "CUDA", device)
    monkeypatch.setitem(command.DEVICES, "cuda", device)
    return lambda *options: command.main(["--device", "cuda", *options])


def test_a_run_on_a_device_tells_prints_and_draws_every_variant_element_type_and_pass(whole_run, tmp_path, capsys):
    file, picture = tmp_path / "results.json", tmp_path / "shares.png"
    chosen = ["--rivals", ",".join(ON_GPU), "--dtype", "float64,bfloat16", "--budget", "0.01"]
    assert whole_run(*chosen, "--json", str(file), "--plot", str(picture)) == 0
    content = json.loads(file.read_text())
    assert content["dtypes"] == ["bfloat16", "float64"]
    assert {"driver", "model", "runtime_cuda", "l2_bytes"} <= set(content["device"])
    met = [(row["dtype"], row["pass"], row["contestant"]) for row in content["rows"]]
    assert met == [(dtype, which, name) for dtype in content["dtypes"] for which in cases.PASSES for name in ON_GPU]
    timed = [row for row in content["rows"] if "median_s" in row]
    assert {row["contestant"] for row in timed} >= {"direct"}
    assert all(row["share_of_bound"] > 0 and row["host_s"] == {"array": 1e-5} for row in timed)
    assert all(row["copies"] > 1 and row["peak_bytes"] == 0 for row in timed)
    assert all(row.get("wrong") is None for row in content["rows"])
    printed = capsys.readouterr().out
    chosen = [row for row in timed if row["auto"]]
    assert sum(line.startswith("flownetc-headline") for line in printed.splitlines()) == len(timed) + len(chosen)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_device_runs_everything_unless_told_otherwise(gpu, monkeypatch):
    asked, device = [], replace(command.CUDA, require=lambda: None, header=lambda arguments, dtypes: cuda_header(*dtypes))
    monkeypatch.setattr(command, "CUDA", device)
    monkeypatch.setitem(command.DEVICES, "cuda", device)
    monkeypatch.setattr(command, "_measure", lambda device, header, questions, *_: asked.extend(questions) or [])
    assert command.main(["--device", "cuda"]) == 0
    assert {(case.name, dtype, which) for case, dtype, which in asked} == {
        (case.name, dtype, which)
        for case in cases.CASES
        for dtype in ("float16", "bfloat16", "float32", "float64", "tf32")
        for which in ("forward", "vjp")
    }
    assert len(asked) == len(cases.CASES) * 5 * 2


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("no/such/folder/a.png", "--plot must lie in a folder that exists"),
        ("a.gif8", "--plot must end in one of"),
        ("a", "one of"),
    ],
)
def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_measured(whole_run, file, said, capsys, monkeypatch):
    monkeypatch.setattr(command, "_measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit) as stopped:
        whole_run("--plot", file)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_tuning_is_asked_for_the_same_cases_element_types_and_passes(whole_run, monkeypatch):
    asked = []
    monkeypatch.setattr(command.tune, "run", lambda *given: asked.append(given) or 7)
    assert whole_run("--tune", "--dtype", "float64,float16", "--passes", "vjp") == 7
    assert asked == [([*cases.CASES], ["float16", "float64"], ["vjp"])]


# The picture ---------------------------------------------------------------------------------------------------------

SHARES = {("aot", "fast"): 0.5, ("aot", "slow"): 0.02, ("piv", "fast"): 2.0, ("piv", "slow"): 0.1, ("deaot", "slow"): 0.3}


def picture(dtypes=("float32",)):
    """Of two of ours and a rival; auto runs the fast one where it can."""
    rows = []
    for dtype in dtypes:
        for (case, name), share in SHARES.items():
            auto = name == "fast" or case == "deaot"
            rows.append(a_row(name, 1 / share, case=case, dtype=dtype, ours=True, auto=auto, rate=1.0))
        rows.append(a_row("rival", 250.0, case="piv", dtype=dtype, rate=1.0))
        rows.append(a_row("absent", case="piv", dtype=dtype, reason="is not here"))
    return plot.draw(cuda_header(*dtypes), rows, report.Yardstick(lambda row: 1.0, lambda row: 1.0))


def points(panel, name):
    (mark,) = [each for each in panel.collections if each.get_label() == name]
    labels = [text.get_text() for text in panel.get_yticklabels()]
    return {labels[round(place)]: share for share, place in mark.get_offsets().tolist()}


def test_the_picture_has_a_mark_for_every_contestant_and_case_and_a_ring_round_autos():
    (panel,) = picture().axes
    assert points(panel, "fast") == pytest.approx({"aot": 0.5, "piv": 2.0})
    assert points(panel, "slow") == pytest.approx({"aot": 0.02, "piv": 0.1, "deaot": 0.3})
    assert points(panel, "rival") == pytest.approx({"piv": 0.004})
    assert points(panel, "auto") == pytest.approx({"aot": 0.5, "piv": 2.0, "deaot": 0.3})


def test_the_pictures_cases_go_from_the_best_share_to_the_worst_on_an_axis_of_decades():
    (panel,) = picture().axes
    assert [text.get_text() for text in panel.get_yticklabels()] == ["piv", "aot", "deaot"]
    assert panel.get_ylim()[0] > panel.get_ylim()[1]  # the first on top
    assert panel.get_xscale() == "log"
    assert [text.get_text() for text in panel.get_xticklabels()] == ["0.1 %", "1 %", "10 %", "100 %", "1000 %"]


def test_the_picture_has_a_panel_for_every_element_type_and_names_who_was_timed():
    figure = picture(("float16", "float32"))
    assert [panel.get_title() for panel in figure.axes] == ["forward, float16", "forward, float32"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["fast", "slow", "rival", "auto"]


def test_where_nothing_was_timed_there_is_no_picture(tmp_path):
    plot.write(tmp_path / "a.png", cuda_header(), [a_row(reason="no")], report.Yardstick(lambda row: 1.0, lambda row: 1.0))
    assert not list(tmp_path.iterdir())


# The check of a device -----------------------------------------------------------------------------------------------


def wrong(findings):
    return [finding for finding in findings if finding.wrong is not None]


def doubled(problem, input1, input2, out):
    reference.forward(problem, input1, input2, out)
    out *= 2


def drifting(problem, input1, input2, out, runs=iter(range(1000))):  # noqa: B008 - counts the calls
    reference.forward(problem, input1, input2, out)
    out.view(f"u{out.itemsize}")[...] ^= next(runs) % 2


def answered_by(monkeypatch, forward):
    """`direct` is answered by a function."""
    rows = tuple(replace(row, forward=forward) if row.name == "direct" else row for row in _dispatch.VARIANTS)
    monkeypatch.setattr(_dispatch, "VARIANTS", rows)
    forget_choices()


def test_right_results_pass_every_check_of_the_definition(gpu):
    findings = [*check.definition(cuda_header()), *check.orders(cuda_header())]
    assert wrong(findings) == []
    looked_at = {tuple(finding.what.split(", ")[-2:]) for finding in findings}
    assert looked_at == {
        (dtype, variant) for dtype in cases.DTYPES for variant in ON_GPU if variant != "mma" or dtype in MULTIPLIED
    }


@pytest.mark.parametrize(("forward", "said"), [(doubled, "output is"), (drifting, "other bits of output")])
def test_wrong_and_changing_results_are_found(gpu, monkeypatch, forward, said):
    answered_by(monkeypatch, forward)
    monkeypatch.setattr(check, "SMALL", {name: check.SMALL[name] for name in ("flownetc", "everything")})
    found = wrong(check.definition(cuda_header()))
    assert {finding.what for finding in found} == {f"{name}, {dtype}, direct" for name in check.SMALL for dtype in cases.DTYPES}
    assert all(said in finding.wrong for finding in found)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "tf32"])
@pytest.mark.parametrize("name", ["everything", "scaled", "template"])
def test_the_allowed_error_is_the_oracles_and_that_of_rounded_factors(name, dtype):
    small = check.SMALL[name]
    x1, x2, g = small.arrays(dtype)
    triples = oracle.forward(x1, x2, **small.keywords), *oracle.vjp(g, x1, x2, **small.keywords)
    for (value, allowed), triple in zip(check._expected(small, (x1, x2, g), dtype).values(), triples, strict=True):
        assert np.allclose(value, triple[0], rtol=1e-12, atol=1e-12)
        rounded = 1e-3 * triple[1] if dtype == "tf32" else 0.0
        assert np.allclose(allowed, rounded + oracle.bound(triple, x1.dtype, "float32"), rtol=1e-12)


def test_a_step_that_fails_is_a_finding_and_the_next_one_runs(gpu, monkeypatch, tmp_path, capsys):
    def failing_step(header):
        yield check.Finding("first", told="seen")
        raise RuntimeError("out of luck\nand more")

    steps = {"bad": failing_step, "good": lambda header: iter([check.Finding("second", numbers={"seconds": 1.5})])}
    monkeypatch.setattr(check, "STEPS", steps)
    monkeypatch.setattr(cuda, "header", lambda arguments, dtypes: cuda_header(*dtypes))
    assert check.run([], tmp_path / "check.json") == 1
    printed = capsys.readouterr().out
    assert "wrong: the step itself: RuntimeError: out of luck" in printed
    assert "bad: 2 looked at, 1 wrong" in printed
    assert "good: 1 looked at, 0 wrong" in printed
    written = json.loads((tmp_path / "check.json").read_text())
    assert written["device"]["model"] == "a GPU in a test"
    assert [finding["what"] for finding in written["steps"]["good"]] == ["second"]
    monkeypatch.setattr(check, "STEPS", {"good": steps["good"]})
    assert check.run([], None) == 0


def test_every_build_is_compiled_and_a_failure_is_named(gpu, monkeypatch):
    def function(kernel, device):
        if kernel.entry == "box_filter":
            raise RuntimeError("cannot compile\nline 3")

    monkeypatch.setattr(check.compiler, "function", function)
    place = _dispatch.gpu(0)
    there = replace(place, device=replace(place.device, compute_capability=(7, 5)))
    monkeypatch.setattr(rivals, "on_gpu", lambda: there)
    *each, told = check.builds(cuda_header())
    builds = list(check.backend.builds(there.device))
    assert len(builds) < len(list(check.backend.builds()))
    assert [finding.what for finding in each] == [name for name, _ in builds]
    assert len(wrong(each)) == sum(kernel.entry == "box_filter" for _, kernel in builds) > 0
    assert told.numbers["builds"] == len(builds)


def test_the_times_of_ours_are_told_with_the_bound(gpu, monkeypatch, capsys):
    small = replace(cases.CASES[0].small(), name=cases.CASES[0].name, acceptance=True)
    monkeypatch.setattr(check.cases, "CASES", (small,))
    monkeypatch.setattr(cuda, "measure_rates", lambda header: None)
    quiet = replace(cuda.MACHINE, stopwatch=lambda work, calls: 1.0, available=lambda: 2**40, peak=lambda *_: 0, host=None)
    monkeypatch.setattr(cuda, "MACHINE", quiet)
    direct = next(each for each in rivals.cuda_contestants() if each.name == "direct")
    other_work = replace(direct, name="other-work", ours=False, forward=lambda case, inputs: lambda: (np.ones(1),))
    monkeypatch.setattr(rivals, "cuda_contestants", lambda: (direct, other_work))
    findings = list(check.times(cuda_header()))
    assert wrong(findings) == []  # a rival may compute what it likes
    assert "other-work on flownetc-headline float32 forward: output has shape" in capsys.readouterr().out
    timed = [finding.numbers for finding in findings if "median_s" in finding.numbers and finding.numbers["ours"]]
    assert [(each["contestant"], each["pass"]) for each in timed] == [("direct", "forward"), ("direct", "vjp")] * 3
    assert all(each["share_of_bound"] > 0 for each in timed)


def test_tools_that_are_there_are_named_with_their_command(monkeypatch):
    monkeypatch.setattr(check.shutil, "which", lambda name: "/somewhere" if name == "ncu" else None)
    (finding,) = check.tools(cuda_header())
    assert finding.told.startswith("  ncu is here: ncu --set full python -m benchmarks --device cuda")


# Overhead --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", overhead.SHAPES.values(), ids=overhead.SHAPES.keys())
def test_the_overhead_is_measured_on_calls_that_ask_the_same(shape):
    calls = overhead.entrants(shape)
    array, tensor = calls["array function"](), calls["torch operator"]()
    assert array.shape == tuple(tensor.shape) == (shape[0], 3, 3, *shape[2:])
    assert array.tobytes() == tensor.numpy().tobytes()


def test_the_overhead_is_told_beside_that_of_torch_add(capsys, monkeypatch):
    seconds = (5e-6, 8e-6, 25e-6, 1e-6)
    monkeypatch.setattr(overhead, "medians", lambda calls: dict(zip(calls, seconds, strict=True)))
    overhead.main()
    assert capsys.readouterr().out.count("torch.add 1.0; the operator adds 20.0, torch.add 3.0") == len(overhead.SHAPES)
