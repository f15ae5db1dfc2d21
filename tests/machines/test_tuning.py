"""Measured choice: what is measured, when it is not, and that what was found outlives processes and no version, without a GPU.

The stand-in device has a clock that only work moves. What a device alone can tell is marked ``gpu``.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cupy_on_numpy
import numpy as np
import pytest
from cases import DTYPES
from cupy_on_numpy import FACTS, Device, Stream, on_cupy
from waiting import STUCK

import cupycorr
from benchmarks import tune
from benchmarks.cases import Case
from cupycorr import _dispatch, _tuning
from cupycorr._correlation.problem import Question, parameters, problem
from cupycorr._gpu import device as devices
from cupycorr._gpu import source
from cupycorr._tuning import known, measure, record

ROOT = Path(__file__).resolve().parents[2]
GIBIBYTE = 2**30
CALLS = 2  # of a run, the second of which is timed


def asked(which="vjp", dtype="float32", shape=(1, 4, 6, 7), size2=(6, 7), **more):
    named = {name: more.pop(name) for name in ("orders", "needs", "precision") if name in more}
    result = more.pop("result_dtype", dtype)
    given = parameters(**{"patch_size": 3, "patch_offset": 0, **more})
    return Question(which, problem(given, shape, (*shape[:2], *size2)), dtype, result, **named)


QUESTION = asked()
FORWARD = asked("forward")
OTHERS = {
    "pass": FORWARD,
    "needs": asked(needs=(True, False)),
    "needs the other": asked(needs=(False, True)),
    "dtype": asked(dtype="float64", result_dtype="float32"),
    "result's dtype": asked(result_dtype="float64"),
    "order of input1": asked(orders=("channels last", "rows")),
    "order of input2": asked(orders=("rows", "channels last")),
    "batch": asked(shape=(2, 4, 6, 7)),
    "channels": asked(shape=(1, 8, 6, 7)),
    "size of input1": asked(shape=(1, 4, 7, 7)),
    "size of input2": asked(size2=(6, 8)),
    "axes exchanged": asked(shape=(1, 4, 7, 6), size2=(7, 6)),
    "kernel_size": asked(kernel_size=2),
    "patch_size": asked(patch_size=5),
    "stride": asked(stride=2),
    "padding": asked(padding=1),
    "dilation": asked(kernel_size=2, dilation=2),
    "dilation_patch": asked(dilation_patch=2),
    "patch_offset": asked(patch_offset=1),
    "precision": asked(precision="high"),
}


# A device that is not there --------------------------------------------------------------------------------------------------


class Gpu:
    """CuPy on NumPy, with memory, events, and a clock in seconds that work moves. ``made`` are its arrays' pools."""

    def __init__(self):
        self.clock, self.free, self.allocator = 0.0, 8 * GIBIBYTE, "the default pool"
        self.made, self.pools = [], []
        gpu = self

        class Event:
            def record(self):
                self.at = gpu.clock

            def synchronize(self):
                pass

        class MemoryPool:
            def __init__(self):
                gpu.pools.append(self)
                self.emptied = False

            def malloc(self):
                pass

            def free_all_blocks(self):
                self.emptied = True

        @contextmanager
        def using_allocator(allocator):
            before, gpu.allocator = gpu.allocator, allocator.__self__
            try:
                yield
            finally:
                gpu.allocator = before

        self.cupy = cupy_on_numpy.module()
        self.cupy.__version__ = "14.2.0"
        self.cupy.resize = self.making(np.resize)
        self.cupy.empty = lambda shape, dtype: SimpleNamespace(data=self, shape=shape, dtype=dtype)
        vars(self.cupy.cuda).update(
            runtime=SimpleNamespace(driverGetVersion=lambda: 13000, memGetInfo=lambda: (self.free, 2 * self.free)),
            get_local_runtime_version=lambda: 12090,
            get_elapsed_time=lambda begin, end: 1e3 * (end.at - begin.at),
            Event=Event,
            MemoryPool=MemoryPool,
            using_allocator=using_allocator,
        )

    def making(self, function):
        def made(*arguments):
            self.made.append(self.allocator)
            return on_cupy(function(*arguments), Device.current)

        return made

    def memset_async(self, value, size):
        self.clock += 100.0  # keeping the device busy is no part of a run

    def row(self, name, *taken):
        """A variant whose runs, of two calls each, take these times, the last again and again; an exception is raised."""
        return Row(self, name, taken)


class Row:
    def __init__(self, gpu, name, taken):
        self.gpu, self.name, self.taken, self.calls = gpu, name, taken, []

    def forward(self, *arguments):
        taken = self.taken[min(len(self.calls) // CALLS, len(self.taken) - 1)]
        self.calls.append(arguments)
        if isinstance(taken, Exception):
            raise taken
        self.gpu.clock += taken

    vjp = forward


@pytest.fixture
def process(monkeypatch, tmp_path):
    """Begins another process, as far as tuning knows; its file is in a folder of the test."""

    def begin():
        monkeypatch.setattr(_tuning, "_store", _tuning.Store())
        monkeypatch.setattr(_tuning, "_given_up", set())
        _tuning._machine.cache_clear()

    monkeypatch.setenv("CUPYCORR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CUPYCORR_AUTOTUNE", raising=False)
    begin()
    yield begin
    _tuning._machine.cache_clear()


@pytest.fixture
def gpu(monkeypatch, process):
    """The stand-in, in a new process."""
    made = Gpu()
    monkeypatch.setitem(sys.modules, "cupy", made.cupy)
    monkeypatch.setattr(Stream, "capturing", False)
    return made


# What is measured ------------------------------------------------------------------------------------------------------------


def test_what_was_measured_is_known(gpu):
    assert known(QUESTION, FACTS) is None
    assert measure(QUESTION, FACTS, [gpu.row("slow", 3.0), gpu.row("fast", 2.0), gpu.row("slower", 4.0)]) == "fast"
    assert known(QUESTION, FACTS) == "fast"


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_decides_about_speed_makes_another_question(gpu, process, other):
    record(QUESTION, FACTS, "fast")
    assert known(other, FACTS) is None
    record(other, FACTS, "another")
    process()
    assert (known(QUESTION, FACTS), known(other, FACTS)) == ("fast", "another")


SAME = {
    "scale": asked(scale=0.5),
    "patch_offset of 0, not passed": asked(patch_offset=None),
    "needs, of a forward pass": asked("forward", needs=(False, False)),
}


@pytest.mark.parametrize("same", SAME.values(), ids=SAME)
def test_what_takes_no_time_makes_no_other_question(gpu, same):
    record(replace(QUESTION, which=same.which), FACTS, "fast")
    assert known(same, FACTS) == "fast"


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_precisions_below_the_highest_are_one_and_of_float32_only(gpu, precision):
    for dtype, same in [("float32", "high"), *((dtype, "highest") for dtype in DTYPES if dtype != "float32")]:
        question = asked(dtype=dtype, precision=precision)
        assert question == asked(dtype=dtype, precision=same)
        record(question, FACTS, dtype)
        assert known(asked(dtype=dtype, precision=same), FACTS) == dtype
    assert known(asked(), FACTS) is None


def test_the_median_decides_and_the_run_that_compiles_does_not_count(gpu):
    steady = gpu.row("steady", 500.0, 3.0)
    mean_is_least = gpu.row("least mean", 1.0, 4.0, 4.0, 4.0, 4.0, 1.0, 1.0, 1.0)
    least_is_least = gpu.row("least of all", 1.0, 3.5, 3.5, 3.5, 3.5, 0.1, 9.0, 9.0)
    first_is_least = gpu.row("least first", 1.0, 2.0, 5.0)
    assert measure(QUESTION, FACTS, [mean_is_least, least_is_least, first_is_least, steady]) == "steady"


def test_the_time_is_between_the_events_in_seconds(gpu):
    rows = [gpu.row("one", 9.0, 0.25), gpu.row("other", 0.375)]
    assert _tuning.seconds(QUESTION, FACTS, rows) == {"one": 0.25, "other": 0.375}


def test_variants_run_in_turn(gpu):
    turns = []
    rows = [gpu.row("one", 1.0), gpu.row("other", 1.0)]
    for row in rows:
        row.forward = lambda *_, name=row.name: turns.append(name)
    measure(FORWARD, FACTS, rows)
    assert turns == [*["one"] * CALLS, *["other"] * CALLS] * (1 + _tuning.RUNS)


def test_who_takes_far_longer_is_not_run_again(gpu):
    rows = [gpu.row("best", 1.0), gpu.row("close", 1.875), gpu.row("hopeless", 2.5)]
    assert _tuning.seconds(QUESTION, FACTS, rows) == {"best": 1.0, "close": 1.875, "hopeless": 2.5}
    runs = 1 + _tuning.RUNS
    assert [len(row.calls) for row in rows] == [CALLS * runs, CALLS * runs, CALLS * 2]


FAILURES = {
    "at once": (RuntimeError("cannot compile"),),
    "while it is timed": (0.5, RuntimeError("cannot launch")),
    "at the last run": (*[0.5] * _tuning.RUNS, NotImplementedError()),
}


@pytest.mark.parametrize("taken", FAILURES.values(), ids=FAILURES)
def test_a_variant_that_fails_is_left_out(gpu, taken):
    assert measure(QUESTION, FACTS, [gpu.row("fails", *taken), gpu.row("slow", 0.75)]) == "slow"


def test_where_every_variant_fails_nothing_is_known_and_none_is_tried_again(gpu):
    rows = [gpu.row("fails", RuntimeError()), gpu.row("too", ValueError())]
    assert measure(QUESTION, FACTS, rows) is None
    assert measure(QUESTION, FACTS, rows) is None
    assert known(QUESTION, FACTS) is None
    assert [len(row.calls) for row in rows] == [1, 1]
    assert not _tuning.file().exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_forward_pass_is_measured_on_arrays_as_asked(gpu, dtype):
    question = asked("forward", dtype, result_dtype="float64", orders=("channels last", "rows"), size2=(8, 9))
    row = gpu.row("any", 1.0)
    assert measure(question, replace(FACTS, index=3), [row]) == "any"
    what, x1, x2, out = row.calls[-1]
    assert what is question.problem
    assert (x1.shape, x2.shape, out.shape) == ((1, 4, 6, 7), (1, 4, 8, 9), (1, 3, 3, 6, 7))
    assert (x1.dtype, x2.dtype, out.dtype) == (DTYPES[dtype], DTYPES[dtype], np.float64)
    assert x1.transpose(0, 2, 3, 1).flags.c_contiguous
    assert x2.flags.c_contiguous
    assert out.flags.c_contiguous
    assert {array.device.id for array in (x1, x2, out)} == {3}
    assert all(np.isfinite(x.astype(float)).all() and np.unique(x).size > x.size // 2 for x in (x1, x2))
    assert Device.current == 0


def test_the_gradients_are_measured_on_arrays_as_asked(gpu):
    row = gpu.row("any", 1.0)
    assert measure(asked(result_dtype="float64", needs=(False, True)), FACTS, [row]) == "any"
    _, cotangent, x1, x2, needs, (g1, g2) = row.calls[-1]
    assert (cotangent.shape, x1.shape, x2.shape) == ((1, 3, 3, 6, 7), (1, 4, 6, 7), (1, 4, 6, 7))
    assert (cotangent.dtype, x1.dtype, x2.dtype) == (np.float64, np.float32, np.float32)
    assert needs == (False, True)
    assert g1 is None
    assert (g2.shape, g2.dtype) == (x2.shape, x2.dtype)


# When it is not --------------------------------------------------------------------------------------------------------------


def test_nothing_is_measured_while_a_stream_is_captured_and_it_is_afterwards(gpu, monkeypatch):
    row = gpu.row("any", 1.0)
    monkeypatch.setattr(Stream, "capturing", True)
    assert measure(QUESTION, FACTS, [row]) is None
    assert not row.calls
    assert not gpu.made
    monkeypatch.setattr(Stream, "capturing", False)
    assert measure(QUESTION, FACTS, [row]) == "any"


def test_nothing_is_measured_where_the_stream_must_not_even_be_asked(gpu, monkeypatch):
    def refuse(self):
        raise RuntimeError("cudaErrorStreamCaptureImplicit")

    row = gpu.row("any", 1.0)
    monkeypatch.setattr(Stream, "is_capturing", refuse)
    assert measure(QUESTION, FACTS, [row]) is None
    assert not row.calls


def test_the_stream_asked_is_that_of_the_device(gpu, monkeypatch):
    monkeypatch.setattr(Stream, "is_capturing", lambda self: Device.current == 2)
    assert measure(QUESTION, replace(FACTS, index=2), [gpu.row("any", 1.0)]) is None
    assert measure(QUESTION, FACTS, [gpu.row("any", 1.0)]) == "any"


# 1 x 32 x 1024 x 1024 float32 are 128 MiB, 9 displacements 36 MiB, gradients as much as the inputs; 64 MiB keep it busy
@pytest.mark.parametrize(("which", "mebibytes"), [("forward", 2 * 128 + 36 + 64), ("vjp", 4 * 128 + 36 + 64)])
def test_the_arrays_take_half_of_the_free_memory_at_most(gpu, process, monkeypatch, which, mebibytes):
    monkeypatch.setattr(_tuning, "_filled", lambda *_: gpu.made.append("array"))
    question = asked(which, shape=(1, 32, 1024, 1024), size2=(1024, 1024))
    row = gpu.row("any", 1.0)
    gpu.free = 2 * mebibytes * 2**20 - 1
    assert measure(question, FACTS, [row]) is None
    assert not row.calls
    assert not gpu.made
    process()
    gpu.free += 1
    assert measure(question, FACTS, [row]) == "any"


def test_a_variant_that_finds_too_little_memory_decides_nothing(gpu):
    rows = [gpu.row("runs", 1.0), gpu.row("would be faster", 0.5, MemoryError())]
    assert measure(QUESTION, FACTS, rows) is None
    assert known(QUESTION, FACTS) is None
    assert not _tuning.file().exists()


def test_without_a_dtype_nothing_is_measured(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    row = gpu.row("any", 1.0)
    assert measure(asked(dtype="bfloat16"), FACTS, [row]) is None
    assert not row.calls


@pytest.mark.parametrize("taken", [1.0, MemoryError()], ids=["measured", "failed"])
def test_the_memory_is_of_a_pool_of_its_own_which_is_emptied(gpu, taken):
    measure(QUESTION, FACTS, [gpu.row("any", taken)])
    (pool,) = gpu.pools
    assert set(gpu.made) == {pool}
    assert pool.emptied
    assert gpu.allocator == "the default pool"


def test_two_threads_measure_a_question_once(gpu):
    row, begun, both_inside = gpu.row("any", 1.0), threading.Barrier(2), threading.Barrier(2)

    def run(*arguments):
        with suppress(threading.BrokenBarrierError):
            both_inside.wait(0.2)  # long enough for the other to come, if it may
        Row.vjp(row, *arguments)

    def ask(_):
        begun.wait(STUCK)
        return measure(QUESTION, FACTS, [row])

    row.vjp = run
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ask, range(2))) == ["any", "any"]
    assert len(row.calls) == CALLS * (1 + _tuning.RUNS)


# The environment -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "name", "measures"), [(None, "fast", False), ("1", "fast", True), ("0", None, False)])
def test_the_variable_says_what_is_used_and_whether_to_measure(gpu, process, monkeypatch, mode, name, measures):
    record(QUESTION, FACTS, "fast")
    process()
    if mode is not None:
        monkeypatch.setenv("CUPYCORR_AUTOTUNE", mode)
    assert known(QUESTION, FACTS) == name
    assert _tuning.at_first_use() is measures


@pytest.mark.parametrize("value", ["", "yes", "2", " 1"])
def test_any_other_value_is_refused_by_name(gpu, monkeypatch, value):
    monkeypatch.setenv("CUPYCORR_AUTOTUNE", value)
    for ask in (lambda: known(QUESTION, FACTS), _tuning.at_first_use):
        with pytest.raises(ValueError, match="CUPYCORR_AUTOTUNE must be 0 or 1") as error:
            ask()
        assert f"CUPYCORR_AUTOTUNE={value!r}" in str(error.value)


FOLDERS = {
    "linux": ("linux", {}, ".cache/cupycorr"),
    "linux, elsewhere": ("linux", {"XDG_CACHE_HOME": "/else"}, "/else/cupycorr"),
    "linux, a path that is not absolute": ("linux", {"XDG_CACHE_HOME": "else"}, ".cache/cupycorr"),
    "macOS": ("darwin", {"XDG_CACHE_HOME": "/else"}, "Library/Caches/cupycorr"),
    "Windows": ("win32", {"LOCALAPPDATA": "/local"}, "/local/cupycorr"),
    "Windows without its variable": ("win32", {}, "AppData/Local/cupycorr"),
    "chosen": ("linux", {"XDG_CACHE_HOME": "/else", "CUPYCORR_CACHE_DIR": "/chosen"}, "/chosen"),
}


@pytest.mark.parametrize(("platform", "variables", "folder"), FOLDERS.values(), ids=FOLDERS)
def test_the_file_is_in_the_users_cache_folder(monkeypatch, tmp_path, platform, variables, folder):
    for name in ("CUPYCORR_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(tmp_path), **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert _tuning.file() == tmp_path / folder / "tuning.json"


def homeless():
    raise RuntimeError("Could not determine home directory.")


def test_without_a_home_folder_answers_stay_in_the_process(gpu, monkeypatch):
    for name in ("CUPYCORR_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert known(QUESTION, FACTS) is None
    with pytest.warns(RuntimeWarning, match="home directory.*CUPYCORR_CACHE_DIR"):
        record(QUESTION, FACTS, "fast")
    assert known(QUESTION, FACTS) == "fast"


# The file --------------------------------------------------------------------------------------------------------------------


def test_another_process_knows_what_was_measured(gpu, process):
    measure(QUESTION, FACTS, [gpu.row("slow", 3.0), gpu.row("fast", 2.0)])
    process()
    assert known(QUESTION, FACTS) == "fast"


def test_the_file_is_read_at_the_first_question_and_no_more(gpu, process, monkeypatch):
    record(QUESTION, FACTS, "fast")
    process()
    assert known(QUESTION, FACTS) == "fast"
    monkeypatch.setattr(Path, "read_text", lambda *_: pytest.fail("read again"))
    assert known(QUESTION, FACTS) == "fast"
    assert known(FORWARD, FACTS) is None


def test_where_there_is_no_file_nothing_but_that_is_asked(process, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert known(QUESTION, FACTS) is None


def test_what_another_process_has_found_meanwhile_is_not_measured_again(gpu, process):
    assert known(QUESTION, FACTS) is None
    here = _tuning._store
    process()
    record(QUESTION, FACTS, "fast")
    _tuning._store = here
    row = gpu.row("fast", 1.0)
    assert measure(QUESTION, FACTS, [gpu.row("other", 2.0), row]) == "fast"
    assert not row.calls
    assert known(QUESTION, FACTS) == "fast"


def test_a_name_that_is_none_of_the_variants_is_measured_again(gpu, process):
    record(QUESTION, FACTS, "gone")
    process()
    assert measure(QUESTION, FACTS, [gpu.row("fast", 1.0)]) == "fast"
    process()
    assert known(QUESTION, FACTS) == "fast"


def another_driver(monkeypatch, gpu, tmp_path):
    gpu.cupy.cuda.runtime.driverGetVersion = lambda: 12080


def another_runtime(monkeypatch, gpu, tmp_path):
    gpu.cupy.cuda.get_local_runtime_version = lambda: 12080


def another_cupy(monkeypatch, gpu, tmp_path):
    gpu.cupy.__version__ = "14.3.0"


def another_version_of_ours(monkeypatch, gpu, tmp_path):
    monkeypatch.setattr(cupycorr, "__version__", "0.1.0.1")


def another_header(monkeypatch, gpu, tmp_path):
    copied = shutil.copytree(source.folder(), tmp_path / "kernels")
    header = copied / "common/numeric.cuh"
    header.write_text(header.read_text() + "// one more line\n")
    monkeypatch.setattr(source, "folder", lambda: copied)


CHANGES = [another_driver, another_runtime, another_cupy, another_version_of_ours, another_header]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.replace("_", " "))
def test_what_was_measured_with_other_versions_is_ignored_and_dropped_at_the_next_write(
    gpu, process, monkeypatch, tmp_path, change
):
    record(QUESTION, FACTS, "fast")
    record(FORWARD, FACTS, "fast")
    process()
    change(monkeypatch, gpu, tmp_path)
    assert known(QUESTION, FACTS) is None
    record(QUESTION, FACTS, "another")
    process()
    assert (known(QUESTION, FACTS), known(FORWARD, FACTS)) == ("another", None)
    (entry,) = json.loads(_tuning.file().read_text()).values()
    assert list(entry["fastest"].values()) == ["another"]


def test_the_same_kernels_in_another_folder_are_the_same(gpu, process, monkeypatch, tmp_path):
    record(QUESTION, FACTS, "fast")
    process()
    copied = shutil.copytree(source.folder(), tmp_path / "kernels")
    monkeypatch.setattr(source, "folder", lambda: copied)
    assert known(QUESTION, FACTS) == "fast"


@pytest.mark.parametrize("change", [{"name": "another GPU"}, {"compute_capability": (9, 1)}], ids=["name", "capability"])
def test_each_kind_of_device_has_its_own_answers(gpu, process, change):
    other = replace(FACTS, **change)
    record(QUESTION, FACTS, "fast")
    process()
    assert known(QUESTION, other) is None
    record(QUESTION, other, "another")
    process()
    assert (known(QUESTION, FACTS), known(QUESTION, other)) == ("fast", "another")
    assert known(QUESTION, replace(FACTS, index=1)) == "fast"


DAMAGED = {
    "empty": b"",
    "cut off": b'{"a GPU in a test, compute capability 9.0": {"versions": "dri',
    "not text": b"\xff\xfe\x00",
    "nested without end": b"[" * 200_000,
    "a list": b"[]",
    "an entry that is none": b'{"a GPU in a test, compute capability 9.0": 3}',
    "an entry without answers": b'{"a GPU in a test, compute capability 9.0": {"versions": "1"}}',
    "a list of answers": b'{"a GPU in a test, compute capability 9.0": {"versions": "1", "fastest": ["box"]}}',
    "versions that are none": b'{"a GPU in a test, compute capability 9.0": {"versions": 1, "fastest": {}}}',
    "an answer that is no name": b'{"another GPU": {"versions": "1", "fastest": {"forward": 1}}}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_ignored_with_one_warning_and_replaced(gpu, process, content):
    _tuning.file().parent.mkdir()
    _tuning.file().write_bytes(content)
    with pytest.warns(RuntimeWarning, match=r"tuning.json cannot be read"):
        assert known(QUESTION, FACTS) is None
    assert measure(QUESTION, FACTS, [gpu.row("fast", 1.0)]) == "fast"  # a second warning would be an error
    process()
    assert known(QUESTION, FACTS) == "fast"


def test_a_folder_that_cannot_be_written_gets_one_warning_and_answers_stay_in_the_process(gpu, process):
    _tuning.file().parent.write_text("a file where the folder should be")
    assert known(QUESTION, FACTS) is None
    with pytest.warns(RuntimeWarning, match="cannot be kept"):
        assert measure(QUESTION, FACTS, [gpu.row("fast", 1.0)]) == "fast"
    assert measure(FORWARD, FACTS, [gpu.row("another", 1.0)]) == "another"  # a second warning would be an error
    assert (known(QUESTION, FACTS), known(FORWARD, FACTS)) == ("fast", "another")
    process()
    assert known(QUESTION, FACTS) is None


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_a_write_that_does_not_come_to_its_end_leaves_the_file_as_it_was(gpu, process, monkeypatch, error):
    def interrupted(*_):
        raise error

    record(QUESTION, FACTS, "fast")
    before = _tuning.file().read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupted)
        caught = pytest.warns(RuntimeWarning) if isinstance(error, OSError) else pytest.raises(KeyboardInterrupt)
        with caught:
            record(FORWARD, FACTS, "fast")
    assert _tuning.file().read_bytes() == before
    assert {path.name for path in _tuning.file().parent.iterdir()} == {"tuning.json", "tuning.json.lock"}


# Several processes -----------------------------------------------------------------------------------------------------------

WRITERS, EACH, READS = 4, 25, 20

# Each answer comes from a process that has just begun: nothing that is lost is written once more. After the answers that are
# looked for come others, until the one who reads the file has read enough.
PROGRAM = """
    import sys
    import threading

    import test_tuning as tests
    from cupycorr import _tuning

    sys.modules["cupy"] = tests.Gpu().cupy
    _tuning.PATIENCE = tests.STUCK
    print("ready", flush=True)
    sys.stdin.readline()
    enough = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), enough.set()), daemon=True).start()
    number = 0
    while number < tests.EACH or not enough.is_set():
        _tuning._store = _tuning.Store()
        _tuning.record(tests.numbered(sys.argv[1], number), tests.FACTS, f"{sys.argv[1]}-{number}")
        number += 1
"""


def numbered(writer, number):
    return asked(shape=(1 + int(writer), 1 + number, 6, 7))


@contextmanager
def another(program, *words):
    """A process that has come to "ready"."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "support", Path(__file__).parent)))
    lines = "\n".join(line.removeprefix("    ") for line in program.splitlines())
    with subprocess.Popen(
        [sys.executable, "-c", lines, *words],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            assert running.stdout.readline() == "ready\n"
            yield running
        finally:
            running.kill()


@contextmanager
def all_of(contexts):
    """Several of them, begun at once."""
    with ThreadPoolExecutor(len(contexts)) as pool:
        entered = list(pool.map(lambda context: context.__enter__(), contexts))
    try:
        yield entered
    finally:
        for context in contexts:
            context.__exit__(None, None, None)


def tell(processes, word):
    for each in processes:
        each.stdin.write(f"{word}\n")
        each.stdin.flush()


def test_no_answer_is_lost_where_processes_write_at_once_and_who_reads_sees_whole_files(gpu, process):
    record(FORWARD, FACTS, "fast")
    with all_of([another(PROGRAM, str(writer)) for writer in range(WRITERS)]) as running:
        tell(running, "go")
        for _ in range(READS):
            assert json.loads(_tuning.file().read_text())
        tell(running, "enough")
        assert [each.wait(STUCK) for each in running] == [0] * WRITERS
    process()
    assert known(FORWARD, FACTS) == "fast"
    for writer in range(WRITERS):
        found = [known(numbered(writer, number), FACTS) for number in range(EACH)]
        assert found == [f"{writer}-{number}" for number in range(EACH)]
    assert {path.name for path in _tuning.file().parent.iterdir()} == {"tuning.json", "tuning.json.lock"}


HOLDER = """
    import sys
    import time

    from cupycorr import _tuning

    path = _tuning.file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _tuning._locked(path.with_name("tuning.json.lock")):
        print("ready", flush=True)
        time.sleep(600)
"""


def test_a_process_that_never_lets_go_of_the_file_stops_nobody_and_its_lock_ends_with_it(gpu, process, monkeypatch):
    monkeypatch.setattr(_tuning, "PATIENCE", 0.05)
    with another(HOLDER) as holder:
        with pytest.warns(RuntimeWarning, match=r"tuning.json.lock is not free"):
            record(QUESTION, FACTS, "fast")
        record(FORWARD, FACTS, "fast")  # a second warning would be an error
        assert known(QUESTION, FACTS) == "fast"
        holder.kill()
        holder.wait(STUCK)
    process()
    record(QUESTION, FACTS, "fast")
    process()
    assert known(QUESTION, FACTS) == "fast"


# The command -----------------------------------------------------------------------------------------------------------------

PLAIN = Case("plain", (1, 4, 6, 7), {"patch_size": 3})
WINDOW = Case("window", (1, 4, 6, 7), {"kernel_size": 2, "patch_size": 3})


@pytest.fixture
def command(gpu, monkeypatch):
    """``run`` on a device whose variants take the times that are asked for; what it returns, and the lines it prints.

    By count, ``direct`` takes least.
    """
    monkeypatch.setattr(_dispatch, "facts", lambda index: FACTS)
    monkeypatch.setattr(tune, "facts", lambda index: FACTS)
    counts = {"box": lambda question, device: 2.0, "direct": lambda question, device: 1.0}

    def run(capsys, times, **given):
        on_gpu = {
            name: dict(forward=gpu.row(name, *taken).forward, vjp=gpu.row(name, *taken).vjp, seconds=counts[name])
            for name, taken in times.items()
        }
        rows = tuple(replace(row, **on_gpu.get(row.name, {})) for row in _dispatch.VARIANTS)
        with monkeypatch.context() as patched:
            patched.setattr(_dispatch, "VARIANTS", tuple(row for row in rows if row.kind == "numpy" or row.name in times))
            code = tune.run(**{"cases": [PLAIN, WINDOW], "dtypes": ["float32"], "passes": ["forward"], **given})
        return code, capsys.readouterr().out.splitlines()

    return run


def cells(lines, *first):
    """What a line of the table holds after its first words."""
    (line,) = [line.split() for line in lines if line.split()[: len(first)] == list(first)]
    return line[len(first) :]


def test_the_command_measures_every_case_dtype_and_pass_and_keeps_the_answers(command, capsys, process):
    code, lines = command(
        capsys,
        {"box": (0.002,), "direct": (0.0031,)},
        cases=[WINDOW],
        dtypes=["float32", "float16"],
        passes=["forward", "vjp"],
    )
    assert code == 0
    process()
    for dtype in ("float32", "float16"):
        for which in ("forward", "vjp"):
            assert cells(lines, "window", which, dtype) == ["2", "3.1", "box", "direct", "(1.55x)"]
            assert known(Question(which, WINDOW.problem, dtype, dtype), FACTS) == "box"


def test_tf32_is_measured_as_float32_with_products_that_may_be_rounded(command, capsys, process):
    code, lines = command(capsys, {"box": (0.002,), "direct": (0.004,)}, cases=[WINDOW], dtypes=["float32", "tf32"])
    assert code == 0
    assert cells(lines, "window", "forward", "tf32") == ["2", "4", "box", "direct", "(2.00x)"]
    process()
    for precision in ("highest", "high"):
        question = Question("forward", WINDOW.problem, "float32", "float32", precision=precision)
        assert known(question, FACTS) == "box"
    assert len(json.loads(_tuning.file().read_text())["a GPU in a test, compute capability 9.0"]["fastest"]) == 2


def test_the_table_shows_who_did_not_run_and_where_the_count_is_wrong(command, capsys):
    code, lines = command(capsys, {"box": (0.002,), "direct": (0.004,)})
    assert code == 0
    assert cells(lines, "plain", "forward", "float32") == ["-", "4", "direct", "direct", "(1.00x)"]
    assert cells(lines, "window", "forward", "float32") == ["2", "4", "box", "direct", "(2.00x)"]
    assert cells(lines, "by", "count") == ["the", "fastest", "is", "found", "in", "1", "of", "2"]


def test_the_worst_choice_by_count_is_named(command, capsys):
    cases = [WINDOW, replace(WINDOW, name="worse"), replace(WINDOW, name="better")]
    runs = 1 + _tuning.RUNS
    _, lines = command(capsys, {"box": (*[0.002] * runs, *[0.0016] * runs, 0.002), "direct": (0.003,)}, cases=cases)
    told = "worst: worse forward float32: direct takes 1.88 times as long as box"
    assert [line for line in lines if line.startswith("worst")] == [told]


def test_the_command_says_what_could_not_be_measured(command, capsys, process):
    code, lines = command(capsys, {"box": (0.002,), "direct": (RuntimeError(),)})
    assert code == 1
    assert cells(lines, "window", "forward", "float32") == ["2", "box", "direct", "(failed)"]
    assert any(line.startswith("not measured: plain forward float32") for line in lines)
    process()
    assert known(Question("forward", WINDOW.problem, "float32", "float32"), FACTS) == "box"


# On a device -----------------------------------------------------------------------------------------------------------------


def rows_of(question, device):
    where = _dispatch.gpu(device.index)
    return [row for row in _dispatch.VARIANTS if row.can_run(question, where) is None]


@pytest.fixture
def real(process):
    """CuPy itself and the facts of its current device."""
    cupy = pytest.importorskip("cupy")
    return cupy, devices.facts(cupy.cuda.runtime.getDevice())


@pytest.mark.gpu
@pytest.mark.parametrize("order", ["rows", "channels last"])
@pytest.mark.parametrize("which", ["forward", "vjp"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_variant_is_measured_on_a_device(real, process, dtype, which, order):
    _, device = real
    question = asked(which, dtype, shape=(2, 16, 24, 31), size2=(24, 31), kernel_size=3, orders=(order, order))
    rows = rows_of(question, device)
    taken = _tuning.seconds(question, device, rows)
    assert set(taken) == {row.name for row in rows}
    assert all(seconds > 0 for seconds in taken.values())
    name = measure(question, device, rows)
    process()
    assert name in taken
    assert known(question, device) == name


@pytest.mark.gpu
def test_measuring_leaves_nothing_in_the_pool_of_a_device(real):
    cupy, device = real
    question = asked(shape=(4, 64, 128, 128), size2=(128, 128), kernel_size=3)
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes(), pool.total_bytes()
    assert measure(question, device, rows_of(question, device))
    assert (pool.used_bytes(), pool.total_bytes()) == before


@pytest.mark.gpu
def test_a_capture_on_a_device_is_left_alone(real):
    cupy, device = real
    rows = rows_of(QUESTION, device)
    counter = cupy.zeros(1)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        counter += 1  # compiled before
        stream.synchronize()
        stream.begin_capture()
        assert measure(QUESTION, device, rows) is None
        counter += 1
        graph = stream.end_capture()
        graph.launch(stream)
        stream.synchronize()
        assert counter.item() == 2
        assert measure(QUESTION, device, rows)
