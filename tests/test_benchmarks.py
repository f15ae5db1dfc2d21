"""The promises of the benchmark: all contestants do the same work on every documented shape, wrong results and cases that do not
fit into memory are not timed, and bad commands are refused before anything runs. No test asserts a time."""

import json
import re
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import emulator
import fake_cupy
import numpy as np
import nvrtc
import oracle
import pytest
from waiting import STUCK

from benchmarks import __main__ as command
from benchmarks import cases, check, cuda, device_code, host_time, memory, pixel_blocks, report, rivals, running, timing
from benchmarks.cases import Case
from cupycorr import spatial_correlation_sample
from cupycorr._correlation import groups, reference
from cupycorr._correlation.variants import OPERATOR
from cupycorr._dispatch import FORWARD
from cupycorr._gpu import compiler, source
from cupycorr._gpu.source import Kernel

CONTESTANTS = {contestant.name: contestant for contestant in rivals.contestants()}
GPU_VARIANTS = [row.name for row in OPERATOR.variants if row.kind == "cupy"]
TENSOR_CORE_TYPES = ("float16", "bfloat16", "tf32")
TORCH_RIVALS = ("unfold+einsum", "shift-loop", "tap-loop")
GPU_RIVALS_IN_TORCH = ("unfold+einsum", "shift-loop", "cpp-extension", "mmcv")
GIBIBYTE = 2**30

SMALL = {
    "plain": Case("small", (2, 3, 6, 7), {"patch_size": 3}),
    "even patch": Case("small", (1, 2, 6, 5), {"patch_size": (2, 4), "dilation_patch": (1, 2)}),
    "strided": Case("small", (1, 3, 9, 8), {"patch_size": (3, 5), "stride": (2, 3), "dilation_patch": 2, "padding": 1}),
    "cropped": Case("small", (1, 2, 9, 8), {"patch_size": 3, "padding": -1}),
    "one-sided": Case("small", (1, 3, 4, 12), {"patch_size": (1, 8), "patch_offset": (0, -4), "scale": 0.5}),
    "window": Case("small", (2, 2, 9, 8), {"kernel_size": (3, 2), "patch_size": 3}),
    "template": Case("small", (1, 2, 3, 4), {"kernel_size": (3, 4), "patch_size": 6, "patch_offset": 2}, size2=(8, 9)),
    "every parameter": Case("small", (1, 2, 10, 9), cases.EXTENSION_DEFAULT),
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


def test_every_documented_shape_is_one_case():
    defaults = {"kernel_size": 1, "patch_size": 1, "stride": 1, "padding": 0, "dilation": 1, "dilation_patch": 1}
    found = [(case.shape, *({**defaults, "patch_offset": None} | case.keywords).values()) for case in cases.CASES]
    assert set(found) == DOCUMENTED
    assert len({case.name for case in cases.CASES}) == len(found) == len(DOCUMENTED)


# Rivals compute the same, or say why they take no part ---------------------------------------------------------------------


@pytest.mark.covering(2)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("small", SMALL)
@pytest.mark.parametrize("name", TORCH_RIVALS)
def test_a_rival_computes_the_output_and_the_gradients_of_the_oracle(name, small, dtype):
    pytest.importorskip("torch")
    case, rival = SMALL[small], CONTESTANTS[name]
    inputs = case.inputs(dtype, "vjp")
    want = {
        "forward": (oracle.forward(inputs.input1, inputs.input2, **case.keywords),),
        "vjp": oracle.vjp(inputs.cotangent, inputs.input1, inputs.input2, **case.keywords),
    }
    for which, triples in want.items():
        if rival.why_not(case, dtype, which) is not None:
            continue
        for got, triple in zip(rival.prepare(which, case, inputs)(), triples, strict=True):
            oracle.assert_close(rivals.as_numpy(got), triple, name=f"{name} {which}")


@pytest.mark.parametrize(
    ("name", "small", "which", "reason"),
    [
        ("unfold+einsum", "plain", "vjp", None),
        ("unfold+einsum", "window", "forward", "another operator"),
        ("shift-loop", "window", "vjp", None),
        ("tap-loop", "plain", "forward", "is the shift loop"),
        ("tap-loop", "window", "forward", None),
        ("tap-loop", "window", "vjp", "forward only"),
        ("reference", "window", "vjp", None),
    ],
)
def test_a_contestant_takes_part_or_gives_its_reason(name, small, which, reason):
    if name in TORCH_RIVALS:
        pytest.importorskip("torch")
    got = CONTESTANTS[name].why_not(SMALL[small], "float32", which)
    assert got is None if reason is None else reason in got


def test_without_torch_its_rivals_say_so(monkeypatch):
    monkeypatch.setattr(rivals, "torch", lambda: None)
    reasons = [CONTESTANTS[name].why_not(SMALL["plain"], "float32", "forward") for name in (*TORCH_RIVALS, "cpp-extension")]
    assert reasons == ["torch is not installed"] * 4


def test_every_variant_of_the_package_is_a_contestant():
    assert [name for name, c in CONTESTANTS.items() if c.ours] == [variant.name for variant in OPERATOR.variants]


# Running -------------------------------------------------------------------------------------------------------------------


class FakeClock:
    """A clock that advances by the same time whenever it is read."""

    def __init__(self, seconds):
        self.seconds, self.now = seconds, 0.0

    def __call__(self):
        self.now += self.seconds
        return self.now


def quick(dtype="float32", machine=running.CPU, **changes):
    """Return settings with a fake clock and a budget that no run exceeds."""
    unhurried = replace(machine, clock=FakeClock(2**-12), stopwatch=lambda work, calls: (work(), 2**-12)[1], **changes)
    return running.Settings(dtype, budget=2**-10, measure_memory=False, machine=unhurried)


def auto_and(*others):
    auto = rivals.automatic(SMALL["plain"], "float32", "forward")
    return [CONTESTANTS[auto], *others]


def test_a_rival_whose_result_differs_is_not_timed():
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
    [
        (np.full((2, 2), np.nan), "output differs"),
        (np.ones((2, 3)), "shape (2, 3)"),
        (np.zeros((2, 2)), "by 1 of"),
        (np.full((2, 2), 1 + 1e-6), None),
    ],
    ids=["NaN", "shape", "values", "rounding"],
)
def test_nan_other_shapes_and_other_values_are_differences_and_rounding_is_none(got, said):
    found = rivals.disagreement((got,), (np.ones((2, 2)),), "float32")
    assert found is None if said is None else said in found


def failing(case, inputs):
    raise RuntimeError("no kernel image\nand more")


def test_a_rival_that_fails_is_named_and_the_others_run():
    broken = replace(CONTESTANTS["reference"], name="broken", ours=False, forward=failing)
    ours, other = running.run(SMALL["plain"], "forward", auto_and(broken), quick())
    assert ours.timing is not None
    assert (other.timing, other.reason, other.wrong) == (None, "failed: no kernel image", None)


def test_a_failure_of_the_package_ends_the_benchmark():
    broken = replace(CONTESTANTS["reference"], forward=failing)
    with pytest.raises(RuntimeError, match="no kernel image"):
        running.run(SMALL["plain"], "forward", [broken], quick())


def test_a_run_begins_when_the_threads_of_others_have_stopped(monkeypatch):
    clock = {"process": 0.0}
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        clock["process"] += seconds if len(slept) <= 3 else 0.0  # a thread spins during three sleeps

    monkeypatch.setattr(timing.time, "sleep", sleep)
    monkeypatch.setattr(timing.time, "process_time", lambda: clock["process"])
    timing.cpu_stopwatch(lambda: slept.append("work"), 1)
    assert slept == [timing.SETTLE] * 4 + ["work"]


def test_contestants_take_turns():
    turns = []
    works = {name: (lambda name=name: turns.append(name)) for name in "abc"}
    first_runs = dict.fromkeys("abc", (1.0,))
    results = timing.race(works, first_runs, budget=12.0, stopwatch=lambda work, calls: (work(), 1.0)[1])
    assert "".join(turns) == "abc" * 4
    assert {name: result.seconds for name, result in results.items()} == dict.fromkeys("abc", (1.0,) * 4)


# Memory --------------------------------------------------------------------------------------------------------------------


def test_contestants_that_do_not_fit_into_memory_together_are_refused():
    (case,) = cases.select("flownetc-headline")
    hungry = [replace(CONTESTANTS["reference"], name=name, bytes=lambda problem, itemsize, which: 6 * GIBIBYTE) for name in "ab"]
    reasons = running.reasons_not_to_run(hungry, case, "forward", "float32", 10 * GIBIBYTE, {"a": 1, "b": 1})
    assert reasons == {"a": None, "b": "needs 6 GiB of memory, 3 GiB are available"}


@pytest.mark.parametrize(("which", "copies"), [("forward", 2), ("vjp", 3)])
def test_unfolding_is_known_to_write_every_displaced_copy(which, copies):
    pytest.importorskip("torch")
    (case,) = cases.select("flownetc-headline")
    unfolded = 4 * 256 * 21 * 21 * 48 * 64 * 4  # bytes of all displaced copies of input2
    assert CONTESTANTS["unfold+einsum"].bytes(case.problem, 4, which) >= copies * unfolded


def test_peak_memory_is_the_most_that_was_allocated_at_once():
    def work():
        for _ in range(2):
            np.ones(2**23)  # 64 MiB, freed before the next

    assert 60 * 2**20 <= memory.peak_increase(work) <= 100 * 2**20


@pytest.mark.slow
def test_peak_memory_is_measured_in_a_process_of_its_own():
    def peak(contestant):
        return memory.peak_in_own_process("benchmarks", ["--measure-memory", "pwcnet-L6-sintel", contestant, "forward"])

    assert 0 <= peak("reference") < 2**30
    assert peak("nobody") is None


# The command ---------------------------------------------------------------------------------------------------------------


def test_the_recorded_command_names_no_folders(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = ["--cases", "piv*", "--json", str(tmp_path / "results" / "a.json")]
    assert report.command_line(given) == "python -m benchmarks --cases 'piv*' --json results/a.json"
    assert report.command_line(["--json=/elsewhere/b.json"]) == "python -m benchmarks --json=b.json"


@pytest.mark.slow
def test_a_run_from_the_command_line_writes_what_was_measured_and_where(tmp_path):
    file, root = tmp_path / "results.json", Path(__file__).resolve().parents[1]
    options = ["--cases", "pwcnet-L6-sintel", "--budget", "0.2", "--no-memory", "--json", str(file)]
    words = [sys.executable, "-m", "benchmarks", *options]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False, timeout=STUCK)
    assert done.returncode == 0, done.stderr
    content = json.loads(file.read_text())
    assert content["command"] == "python -m benchmarks --cases pwcnet-L6-sintel --budget 0.2 --no-memory --json results.json"
    assert {"kind", "model", "cores_used", "sgemm_gflops"} <= set(content["device"])
    assert {"python", "numpy", "blas", "torch", "llvmlite", "cupycorr"} <= set(content["versions"])
    assert str(root) not in file.read_text()
    assert str(tmp_path) not in file.read_text()
    for which in ("forward", "vjp"):
        rows = {row["contestant"]: row for row in content["rows"] if row["pass"] == which}
        assert list(rows) == list(CONTESTANTS)
        (auto,) = [row for row in rows.values() if row["auto"]]
        for row in rows.values():
            assert row.get("wrong") is None
            if "median_s" in row:
                assert row["ratio"] == pytest.approx(row["median_s"] / auto["median_s"])
            else:
                assert row["reason"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "tpu"], "this version has a benchmark for --device cpu, cuda only, got --device tpu"),
        (["--check"], "--check needs --device cuda, got --device cpu"),
        (["--plot", "a.png"], "--plot needs --device cuda, got --device cpu"),
        (["--tune"], "--tune needs --device cuda, got --device cpu"),
        (["--cases", "raft"], "got 'raft'"),
        (["--passes", "backward"], "--passes must be of forward, vjp, got 'backward'"),
        (["--rivals", "nobody"], "got 'nobody'"),
        (["--budget", "0"], "must be positive, got 0"),
        (["--dtype", "float32,int8"], "--dtype must be 'all' or of float16, bfloat16, float32, float64, got 'int8'"),
        (["--dtype", "tf32"], "--dtype must be 'all' or of float16, bfloat16, float32, float64, got 'tf32'"),
        (["--json", "no/such/folder/a.json"], "--json must be in a folder that exists"),
    ],
)
def test_a_bad_command_is_one_clear_error(options, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(options)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


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


# The benchmark of a GPU, without one -----------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch, variants):
    """CuPy on NumPy arrays whose GPU variants compute the reference."""
    plan = groups.on_cpu(reference.plan)
    rows = tuple(replace(row, plan=plan) if row.kind == "cupy" else row for row in OPERATOR.variants)
    with fake_cupy.installed(monkeypatch, lambda *_: pytest.fail("a kernel was made")):
        variants(*rows)
        cupy = sys.modules["cupy"]
        cupy.asnumpy = lambda array: np.array(array, subok=False)
        device = types.SimpleNamespace(synchronize=lambda: None, attributes={"L2CacheSize": 2**20})
        cupy.cuda.Device = lambda index: device
        cupy.get_default_memory_pool = lambda: types.SimpleNamespace(free_all_blocks=lambda: None)
        yield cupy


def quick_on_gpu(dtype="float32"):
    return quick(dtype, cuda.MACHINE, available=lambda: 2**40, host=None)


def gpu_contestants():
    return {contestant.name: contestant for contestant in rivals.cuda_contestants()}


@pytest.mark.parametrize(("touched", "count"), [(1000, 1 + 2098), (2**20, 3), (2**20 + 1, 3), (2**31, 2)])
def test_there_are_so_many_copies_that_a_call_finds_none_of_its_operands_in_the_cache(gpu, touched, count):
    assert cuda.copies(touched) == count


def test_the_account_of_a_devices_memory_tells_the_peak_and_what_is_still_held(gpu, monkeypatch):
    hooks = []

    class MemoryHook:
        def __enter__(self):
            hooks.append(self)

        def __exit__(self, *_):
            hooks.clear()

    gpu.cuda.MemoryHook = MemoryHook
    with cuda.accounted() as account:
        (hook,) = hooks
        hook.malloc_postprocess(device_id=0, size=500, mem_size=512, mem_ptr=1, pmem_id=1)
        hook.malloc_postprocess(device_id=0, size=1024, mem_size=1024, mem_ptr=2, pmem_id=2)
        hook.free_postprocess(device_id=0, mem_size=1024, mem_ptr=2, pmem_id=2)
        hook.free_postprocess(device_id=0, mem_size=9999, mem_ptr=3, pmem_id=3)  # allocated before
        hook.malloc_postprocess(device_id=0, size=1, mem_size=512, mem_ptr=4, pmem_id=4)
        hook.malloc_postprocess(device_id=0, size=2048, mem_size=2048, mem_ptr=0, pmem_id=0)  # failed
    assert (account.held, account.most) == (1024, 1536)
    assert not hooks


def test_variants_and_rivals_on_a_gpu_take_part_or_give_their_reason(gpu):
    entrants = gpu_contestants()
    assert list(entrants) == [*GPU_VARIANTS, "unfold+einsum", "shift-loop", "pixel-blocks", "cpp-extension", "mmcv"]
    assert [name for name, each in entrants.items() if each.ours] == GPU_VARIANTS
    plain, windowed = SMALL["plain"], SMALL["window"]
    assert "kernel_size is 1" in entrants["box"].why_not(plain, "float32", "forward")
    assert entrants["box"].why_not(windowed, "bfloat16", "vjp") is None
    taking_part = [dtype for dtype in cases.DTYPES if entrants["mma"].why_not(plain, dtype, "forward") is None]
    assert taking_part == [dtype for dtype in cases.DTYPES if dtype in TENSOR_CORE_TYPES]


@pytest.mark.parametrize("name", GPU_RIVALS_IN_TORCH)
def test_a_torch_without_cuda_takes_no_part_on_a_gpu(gpu, monkeypatch, name):
    no_cuda = types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: False))
    monkeypatch.setattr(rivals, "torch", lambda: no_cuda)
    assert gpu_contestants()[name].why_not(SMALL["plain"], "float32", "forward") == "this torch finds no CUDA device"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["unfold+einsum", "shift-loop"])
def test_rivals_on_a_gpu_share_the_memory_of_the_operands_and_agree(gpu, monkeypatch, name, dtype):
    pytest.importorskip("torch")
    monkeypatch.setattr(rivals, "why_no_cuda_torch", lambda: None)
    inputs = cuda.place(SMALL["plain"].inputs(dtype, "forward"))
    assert rivals.tensor(inputs.input1).data_ptr() == inputs.input1.data.ptr
    entrants = gpu_contestants()
    rows = running.run(SMALL["plain"], "forward", [entrants["direct"], entrants[name]], quick_on_gpu(dtype))
    assert [(row.contestant, row.wrong, row.reason) for row in rows] == [("direct", None, None), (name, None, None)]


@pytest.mark.parametrize("which", cases.PASSES)
@pytest.mark.parametrize(("dtype", "precision"), [("tf32", "high"), ("float32", "highest"), ("float16", "highest")])
def test_tf32_is_float32_with_precision_high(gpu, monkeypatch, dtype, precision, which):
    calls = []

    def noting(*arguments, **keywords):
        calls.append((arguments[-1].dtype.name, keywords["precision"], keywords["variant"]))
        return np.zeros(1)

    monkeypatch.setattr(rivals.cupycorr, "spatial_correlation_sample", noting)
    monkeypatch.setattr(rivals.cupycorr, "spatial_correlation_sample_vjp", noting)
    inputs = cuda.place(SMALL["plain"].inputs(dtype, which))
    gpu_contestants()["direct"].prepare(which, SMALL["plain"], inputs)()
    assert calls == [("float32" if dtype == "tf32" else dtype, precision, "direct")]


@pytest.mark.parametrize(
    ("small", "dtype", "reason"),
    [
        ("plain", "float32", None),
        ("every parameter", "float16", None),
        ("even patch", "float32", "patches are odd, and every parameter the same along both axes"),
        ("window", "float32", "patches are odd, and every parameter the same along both axes"),
        ("one-sided", "float32", "has no patch_offset"),
        ("plain", "bfloat16", "has no bfloat16"),
    ],
)
def test_mmcv_takes_part_or_gives_its_reason(monkeypatch, small, dtype, reason):
    monkeypatch.setattr(rivals, "importable", lambda name: types.ModuleType(name))
    assert rivals._why_not_mmcv(SMALL[small], dtype, "forward") == reason


# The benchmark's own kernels ---------------------------------------------------------------------------------------------------


def emulated(order):
    """Return a substitute for `device_code.function` that launches the benchmark's kernels in the emulator."""
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


BLOCKS = {name: SMALL[name] for name in ("plain", "even patch", "one-sided", "cropped")} | {
    "padded": Case("small", (2, 40, 4, 5), {"patch_size": (3, 5), "padding": (2, 1), "dilation_patch": (2, 1)}),
    "outside": Case("small", (1, 3, 5, 6), {"patch_size": 3, "patch_offset": (9, -20)}),
}


@pytest.mark.parametrize("order", emulator.ORDERS)
@pytest.mark.parametrize("name", BLOCKS)
def test_the_kernel_of_pixel_blocks_computes_the_oracle(gpu, monkeypatch, name, order):
    emulator.require_compiler()
    monkeypatch.setattr(device_code, "function", emulated(order))
    case = BLOCKS[name]
    inputs = cuda.place(case.inputs("float32", "forward"))
    assert pixel_blocks.why_not(case, "float32", "forward") is None
    triple = oracle.forward(np.asarray(inputs.input1), np.asarray(inputs.input2), **case.keywords)
    oracle.assert_close(rivals.as_numpy(pixel_blocks.correlate(inputs.input1, inputs.input2, case.problem)), triple, name="out")


@pytest.mark.parametrize(
    ("small", "dtype", "which", "reason"),
    [
        ("plain", "float32", "vjp", "forward only"),
        ("plain", "float64", "forward", "float32 only"),
        ("window", "float32", "forward", "windows of one pixel and stride 1 only"),
    ],
)
def test_pixel_blocks_take_no_part_for_a_reason(small, dtype, which, reason):
    assert pixel_blocks.why_not(SMALL[small], dtype, which) == reason


@nvrtc.needed
@pytest.mark.parametrize("file", sorted(path.name for path in Path(device_code.__file__).parent.glob("*.cu")))
def test_the_benchmarks_own_kernels_compile_without_warnings_or_spills(monkeypatch, file):
    monkeypatch.setattr(source, "text", {file: device_code.text(file)}.get)
    for architecture in nvrtc.architectures():
        _, log = compiler.cubin(Kernel(file, Path(file).stem), architecture, "--ptxas-options=-v")
        told = [line for line in log.splitlines() if "deprecated" not in line]
        assert not re.search(r"warning|error|[1-9]\d* bytes (stack|spill)", "\n".join(told)), log
        assert "Used" in log


# A whole run on a GPU, and the check of one ----------------------------------------------------------------------------------


def cuda_header(*dtypes):
    device = dict(kind="cuda", model="a GPU in a test", compute_capability="9.0", multiprocessors=132, memory_bytes=2**37)
    device |= dict(l2_bytes=50 * 2**20, driver="570.1", driver_cuda="13.0", runtime_cuda="12.9", host="a CPU in a test", cores=2)
    device |= dict(not_measured=[], lead_s=2e-4, autotune=None, load_at_start=0.0, theoretical_gbps=4800.0)
    device |= dict(theoretical_float32_gflops=67e3, theoretical_float64_gflops=33e3, copy_gbps=4000.0)
    device |= dict(sgemm_gflops=50e3, dgemm_gflops=60e3, hgemm_gflops=800e3)
    device |= dict(theoretical_matrix_gflops={"float16": 535e3, "bfloat16": None, "tf32": 267e3})
    return report.Header("today", "python -m benchmarks", dtypes or ("float32",), device, {"cupy": "14", "cupycorr": "0.1"})


OPTIONS = check.Options(cuda_header(), (), 1.0)


@pytest.fixture
def whole_run(gpu, monkeypatch):
    """The command line of a GPU with one small case, on a device whose times are made up."""
    small = replace(cases.CASES[0].small(), name="flownetc-headline")
    for module in (cases, cuda):
        monkeypatch.setattr(module, "CASES", (small,))
    device = replace(
        command.CUDA,
        require=lambda: None,
        machine=quick(machine=cuda.MACHINE, available=lambda: 2**40, host=None, peak=lambda *_: 0).machine,
        header=lambda arguments, dtypes: cuda_header(*dtypes),
        measure_rates=lambda header: None,
    )
    monkeypatch.setattr(command, "CUDA", device)
    monkeypatch.setitem(command.DEVICES, "cuda", device)
    return lambda *options: command.main(["--device", "cuda", *options])


def test_a_run_on_a_gpu_records_and_draws_every_variant_element_type_and_pass(whole_run, tmp_path):
    file, picture = tmp_path / "results.json", tmp_path / "shares.png"
    chosen = ["--rivals", ",".join(GPU_VARIANTS), "--dtype", "float64,bfloat16", "--budget", "0.01"]
    assert whole_run(*chosen, "--json", str(file), "--plot", str(picture)) == 0
    rows = json.loads(file.read_text())["rows"]
    found = [(row["dtype"], row["pass"], row["contestant"]) for row in rows]
    dtypes = ("bfloat16", "float64")
    assert found == [(dtype, which, name) for dtype in dtypes for which in cases.PASSES for name in GPU_VARIANTS]
    assert all(row["share_of_bound"] > 0 for row in rows if "median_s" in row)
    assert all(row.get("wrong") is None for row in rows)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("file", "said"),
    [("no/such/folder/a.png", "--plot must be in a folder that exists"), ("a.gif8", "--plot must end in one of")],
)
def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_measured(whole_run, file, said, capsys, monkeypatch):
    monkeypatch.setattr(command, "_measure", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit) as stopped:
        whole_run("--plot", file)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def wrong(findings):
    return [finding for finding in findings if finding.wrong is not None]


def doubled(out):
    out *= 2


def drifting(out, runs=iter(range(1000))):  # noqa: B008 - counts the calls
    out.view(f"u{out.itemsize}")[...] ^= next(runs) % 2


def reference_with(change):
    """Return a variant's function that plans the reference and then changes the output."""

    def plan(request, device):
        made = reference.plan(request, device)

        def run(arrays):
            made.run(arrays)
            if request.pass_name == FORWARD:
                change(arrays["out"])

        return types.SimpleNamespace(algorithm="direct", description="", seconds=0.0, workspace=0, run=run)

    return plan


@pytest.mark.slow
def test_the_check_of_a_gpu_finds_nothing_wrong_with_right_results(gpu):
    findings = [*check.definition(OPTIONS), *check.orders(OPTIONS)]
    assert wrong(findings) == []
    checked = {tuple(finding.what.split(", ")[-2:]) for finding in findings}
    everything = {(dtype, variant) for dtype in cases.DTYPES for variant in GPU_VARIANTS}
    assert checked == {(dtype, variant) for dtype, variant in everything if variant != "mma" or dtype in TENSOR_CORE_TYPES}


@pytest.mark.parametrize(("change", "said"), [(doubled, "output differs"), (drifting, "bits of output differ")])
def test_the_check_of_a_gpu_finds_wrong_and_changing_results(gpu, variants, monkeypatch, change, said):
    variants(*(replace(row, plan=reference_with(change)) if row.name == "direct" else row for row in OPERATOR.variants))
    monkeypatch.setattr(check, "SMALL", {name: check.SMALL[name] for name in ("flownetc", "everything")})
    found = wrong(check.definition(OPTIONS))
    assert {finding.what for finding in found} == {f"{name}, {dtype}, direct" for name in check.SMALL for dtype in cases.DTYPES}
    assert all(said in finding.wrong for finding in found)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "tf32"])
@pytest.mark.parametrize("name", ["everything", "scaled", pytest.param("template", marks=pytest.mark.slow)])
def test_the_check_allows_the_error_that_the_oracle_allows(name, dtype):
    small = check.SMALL[name]
    x1, x2, g = small.arrays(cases.array_dtype(dtype))
    triples = oracle.forward(x1, x2, **small.keywords), *oracle.vjp(g, x1, x2, **small.keywords)
    for (value, allowed), triple in zip(
        check.expected(small, (x1, x2, g), cases.precision(dtype)).values(), triples, strict=True
    ):
        assert np.allclose(value, triple[0], rtol=1e-12, atol=1e-12)
        rounded = 1e-3 * triple[1] if dtype == "tf32" else 0.0
        assert np.allclose(allowed, rounded + oracle.bound(triple, x1.dtype, "float32"), rtol=1e-12)


def test_a_step_of_the_check_that_fails_is_a_finding_and_the_next_step_runs(gpu, monkeypatch, tmp_path, capsys):
    def failing_step(header):
        yield check.Finding("first", told="seen")
        raise RuntimeError("out of luck\nand more")

    steps = {"bad": failing_step, "good": lambda header: iter([check.Finding("second", numbers={"seconds": 1.5})])}
    monkeypatch.setattr(check, "STEPS", steps)
    monkeypatch.setattr(cuda, "header", lambda arguments, dtypes: cuda_header(*dtypes))
    assert check.run([], [], 1.0, tmp_path / "check.json") == 1
    assert "RuntimeError: out of luck" in capsys.readouterr().out
    written = json.loads((tmp_path / "check.json").read_text())
    assert [finding["what"] for finding in written["steps"]["good"]] == ["second"]
    monkeypatch.setattr(check, "STEPS", {"good": steps["good"]})
    assert check.run([], [], 1.0, None) == 0


@pytest.mark.gpu
def test_the_check_of_a_device_finds_nothing_wrong(monkeypatch, tmp_path):
    """Run the check through CuPy: all steps but that of every build, on a few problems and with small products and cases."""
    monkeypatch.setattr(cuda, "MATRIX", {name: (dtype, 64) for name, (dtype, _) in cuda.MATRIX.items()})
    monkeypatch.setattr(cuda, "COPIED", 2**20)
    monkeypatch.setattr(check, "SMALL", {name: check.SMALL[name] for name in ("flownetc", "everything")})
    monkeypatch.setattr(check, "ORDERS", {"channels last": check.ORDERS["channels last"]})
    monkeypatch.setattr(check, "STEPS", {title: step for title, step in check.STEPS.items() if title != "builds"})
    file = tmp_path / "check.json"
    assert check.run(["--check"], cases.select("pwcnet-L6-sintel"), 0.01, file) == 0, file.read_text()
    steps = json.loads(file.read_text())["steps"]
    assert all(steps[title] for title in ("definition", "orders in memory", "streams and graphs", "memory", "times"))


# The host's time --------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_the_time_of_our_own_python_is_told_for_arrays_and_tensors_and_no_stub_stays(monkeypatch, capsys):
    cupy = pytest.importorskip("cupy")
    if not cupy.is_available():
        pytest.skip("there is no device")
    pytest.importorskip("torch")
    monkeypatch.setattr(host_time, "ROUNDS", 1)
    monkeypatch.setattr(host_time, "CALLS", 2)
    empty = cupy.empty
    assert host_time.main() == 0
    told = capsys.readouterr().out
    for name in ("spatial_correlation_sample", "spatial_correlation_sample_vjp", "correlation_lookup", "out=", "torch "):
        assert name in told
    assert cupy.empty is empty
    x = cupy.ones(host_time.SHAPE, np.float32)
    out = spatial_correlation_sample(x, x, patch_size=host_time.PATCH)
    assert float(out[0, 4, 4, 8, 8]) == host_time.SHAPE[1]


def test_without_a_device_the_command_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert host_time.main() == 2
    assert "cupycorr[cuda12]" in capsys.readouterr().err
