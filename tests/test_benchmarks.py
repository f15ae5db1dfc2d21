"""What the benchmark promises: the same work for everybody, in turn, on every documented shape, with memory kept in hand and
a report that says where its numbers come from. No test asserts a time."""

import json
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import cupy_on_numpy
import fake_cupy
import numpy as np
import oracle
import pytest

from benchmarks import __main__ as command
from benchmarks import cases, check, cuda, memory, overhead, report, rivals, running, timing
from benchmarks.cases import Case
from cupycorr import _dispatch
from cupycorr._backends import reference

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

    def clocked(work, finish):
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
        (["--device", "tpu"], "this version has a benchmark for --device cpu, cuda only, got --device tpu"),
        (["--check"], "--check is there for --device cuda, got --device cpu"),
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

    def vjp(*arguments):
        return tuple(None if each is None else cupy_on_numpy.on_cupy(each) for each in reference.vjp(*arguments))

    on_gpu = {name: {"forward": reference.forward, "vjp": vjp} for name in ("box", "direct")}
    rows = tuple(replace(row, **on_gpu.get(row.name, {})) for row in _dispatch.VARIANTS)
    with cupy_on_numpy.installed(monkeypatch, lambda *_: pytest.fail("a kernel was made")):
        monkeypatch.setattr(_dispatch, "VARIANTS", rows)
        fake = FakeGpu(sys.modules["cupy"])
        monkeypatch.setattr(cuda, "_flushed", lambda: types.SimpleNamespace(data=fake))
        yield fake


class FakeGpu:
    """A device that notes what it is asked for, and on which every piece of work takes a second."""

    def __init__(self, cupy):
        self.asked, self.hook, gpu = [], None, self

        class Event:
            def record(self):
                gpu.asked.append("event")
                self.at = gpu.asked.count("work")

        class MemoryHook:
            def __enter__(self):
                gpu.hook = self

            def __exit__(self, *_):
                gpu.hook = None

        cupy.asnumpy = lambda array: np.array(array, subok=False)
        cupy.cuda.Event, cupy.cuda.MemoryHook = Event, MemoryHook
        cupy.cuda.get_elapsed_time = lambda begin, end: 1000.0 * (end.at - begin.at)
        cupy.cuda.Device = lambda index: types.SimpleNamespace(synchronize=lambda: self.asked.append("wait"))

    def work(self):
        self.asked.append("work")

    def memset_async(self, value, size):
        assert size == cuda.FLUSH
        self.asked.append("flush")


def test_the_clock_of_a_device_begins_after_its_caches_are_flushed_and_waits_once(gpu):
    assert cuda.stopwatch(lambda: (gpu.work(), gpu.work()), 3) == 2.0
    assert gpu.asked == ["flush", "event", "work", "work", "event"] * 3 + ["wait"]


def test_the_hosts_time_begins_with_an_idle_device(gpu):
    assert cuda.host_seconds(gpu.work) < 1.0
    assert gpu.asked == (["wait"] + ["work"] * cuda.HOST_CALLS) * cuda.HOST_RUNS + ["wait"]


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
    assert list(entrants) == ["box", "direct", *TORCH_RIVALS, "cpp-extension", "mmcv"]
    assert [name for name, each in entrants.items() if each.ours] == ["box", "direct"]
    plain, windowed = SMALL["plain"], SMALL["window"]
    assert "kernel_size is 1" in entrants["box"].refusal(plain, "float32", "forward")
    assert entrants["box"].refusal(windowed, "bfloat16", "vjp") is None
    assert entrants["direct"].refusal(plain, "float16", "vjp") is None
    assert cuda.automatic(plain, "float32") == "direct"


@pytest.mark.parametrize("name", [*TORCH_RIVALS, "cpp-extension", "mmcv"])
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


@pytest.mark.parametrize(
    ("small", "dtype", "reason"),
    [
        ("plain", "float32", None),
        ("even-patch", "float32", "patches are square and odd"),
        ("one-sided", "float32", "patches are square and odd"),
        ("plain", "bfloat16", "has no bfloat16"),
    ],
)
def test_when_the_compiled_rival_of_openmmlab_takes_part(monkeypatch, small, dtype, reason):
    monkeypatch.setattr(rivals, "importable", lambda name: types.ModuleType(name))
    assert rivals._mmcv_refusal(SMALL[small], dtype, "forward") == reason


def cuda_header(dtype="float32"):
    rates = dict(copy_gbps=4000.0, sgemm_gflops=50e3, dgemm_gflops=60e3, hgemm_gflops=800e3)
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
        host="a CPU in a test",
        cores=2,
        load_at_start=0.0,
    )
    return report.Header("today", "python -m benchmarks", dtype, device | rates | told, {"cupy": "14"})


@pytest.mark.parametrize(
    ("case", "which", "dtype", "seconds"),
    [  # FlowNetC: 4 x 256 x 48 x 64, 441 displacements; 2.774 GFLOP, 2 x 3.146 and 5.419 million numbers
        ("flownetc-headline", "forward", "float32", 2.774e9 / 67e12),  # the clock promises more than the product reached
        ("flownetc-headline", "vjp", "float32", 2 * 2.774e9 / 67e12),
        ("flownetc-headline", "forward", "float64", 2.774e9 / 60e12),  # and here the product reached more
        ("flownetc-headline", "forward", "bfloat16", 46.84e6 / 2 / 4e12),
        ("flownetc-headline", "vjp", "bfloat16", (46.84e6 + 25.17e6) / 2 / 4e12),
    ],
)
def test_the_bound_is_traffic_or_arithmetic(case, which, dtype, seconds):
    row = running.Row(case, which, "direct", ours=True, auto=True)
    assert cuda.bound(cuda_header(dtype), row) == pytest.approx(seconds, rel=1e-3)


def test_what_was_not_measured_is_not_taken_for_zero():
    header = cuda_header("float16")
    header.device.update(hgemm_gflops=0.0)
    assert cuda.peak_rate(header) == 67e12
    header.device.update(theoretical_float32_gflops=None)
    row = running.Row("flownetc-headline", "forward", "direct", ours=True, auto=True)
    assert cuda.bound(header, row) == pytest.approx(46.84e6 / 2 / 4e12, rel=1e-3)


def test_the_table_of_a_device_shows_the_share_of_the_bound_and_the_hosts_time(capsys):
    base = {"case": "piv", "which": "forward", "ours": True, "auto": True}
    row = running.Row(**base, contestant="box", timing=timing.Timing((0.25,)), ratio=1.0, rate=5e9, peak_bytes=2**21, host=8e-6)
    report.print_header(report.wide_console(), cuda_header())
    report.print_rows(report.wide_console(), [row], 1e10, bound=lambda row: 0.05)
    printed = capsys.readouterr().out
    assert "a GPU in a test, compute capability 9.0" in printed
    assert "driver 570.1 for CUDA 13.0, runtime 12.9" in printed
    assert "not measured: hgemm_gflops: no cuBLAS" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("piv")]
    assert line.split() == ["piv", "forward", "box", "(auto)", "250", "250", "250-250", "1", "1", "20.00%", "8.0", "2.0"]
    record = report.record(row, 1e10, lambda row: 0.05)
    assert (record["bound_s"], record["share_of_bound"], record["host_s"]) == (0.05, 0.2, 8e-6)


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


def test_right_results_pass_every_check_of_the_definition(gpu):
    findings = [*check.definition(cuda_header()), *check.orders(cuda_header())]
    assert wrong(findings) == []
    looked_at = {tuple(finding.what.split(", ")[-2:]) for finding in findings}
    assert looked_at == {(dtype, variant) for dtype in check.ROUNDING for variant in ("box", "direct")}


@pytest.mark.parametrize(("forward", "said"), [(doubled, "output is"), (drifting, "other bits of output")])
def test_wrong_and_changing_results_are_found(gpu, monkeypatch, forward, said):
    answered_by(monkeypatch, forward)
    monkeypatch.setattr(check, "SMALL", {name: check.SMALL[name] for name in ("flownetc", "everything")})
    found = wrong(check.definition(cuda_header()))
    assert {finding.what for finding in found} == {f"{name}, {dtype}, direct" for name in check.SMALL for dtype in check.ROUNDING}
    assert all(said in finding.wrong for finding in found)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", ["everything", "scaled", "template"])
def test_the_allowed_error_is_the_oracles(name, dtype):
    small = check.SMALL[name]
    x1, x2, g = small.arrays(dtype)
    triples = oracle.forward(x1, x2, **small.keywords), *oracle.vjp(g, x1, x2, **small.keywords)
    for (value, allowed), triple in zip(check._expected(small, (x1, x2, g), dtype), triples, strict=True):
        assert np.allclose(value, triple[0], rtol=1e-12, atol=1e-12)
        assert np.allclose(allowed, oracle.bound(triple, dtype, "float32"), rtol=1e-12)


def test_a_step_that_fails_is_a_finding_and_the_next_one_runs(gpu, monkeypatch, tmp_path, capsys):
    def failing_step(header):
        yield check.Finding("first", told="seen")
        raise RuntimeError("out of luck\nand more")

    steps = {"bad": failing_step, "good": lambda header: iter([check.Finding("second", numbers={"seconds": 1.5})])}
    monkeypatch.setattr(check, "STEPS", steps)
    monkeypatch.setattr(cuda, "header", lambda arguments, dtype: cuda_header(dtype))
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
    *each, told = check.builds(cuda_header())
    builds = list(check.kernels.builds())
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
    assert "other-work on flownetc-headline, forward: output has shape" in capsys.readouterr().out
    timed = [finding.numbers for finding in findings if "median_s" in finding.numbers and finding.numbers["ours"]]
    assert [(each["contestant"], each["pass"]) for each in timed] == [("direct", "forward"), ("direct", "vjp")] * 2
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
