"""Measured choice: how variants are timed, when nothing is measured, and which processes know the answer afterwards.

The requests and plans here are fakes, for tuning knows no operator. The fake device has a clock that only plans and fillers move.
What only a device can show is marked ``gpu``.
"""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import fake_cupy
import numpy as np
import pytest
from cases import DTYPES
from fake_cupy import CAPTURE_IMPLICIT, FACTS, CUDAError, Device, Stream, on_cupy
from waiting import STUCK

import cupycorr
from cupycorr import _tuning
from cupycorr._gpu import device as devices
from cupycorr._gpu import source
from cupycorr._gpu.layout import CHANNELS_LAST, ROWS, dense_layout
from cupycorr._tuning import RUNS, known, measure, record, seconds

ROOT = Path(__file__).resolve().parents[2]
GIBIBYTE = 2**30
CALLS = 2  # every run calls its plan twice and times the second call


@dataclass(frozen=True)
class Request:
    """A request of an operator that does not exist."""

    key: str = "dot product of 4 x 6"
    layouts: dict = field(default_factory=lambda: {"x": dense_layout("float32", (4, 6))}, hash=False)
    typical: dict = field(default_factory=dict, hash=False)

    def arrays(self):
        return self.layouts

    def typical_values(self, name):
        return self.typical.get(name)


REQUEST, OTHER = Request(), Request("dot product of 5 x 6")


class Gpu:
    """CuPy on NumPy with memory, events and a clock in seconds. ``made`` lists the pool of each array that was made."""

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

        self.cupy = fake_cupy.Fake(fake_cupy.H100)
        self.cupy.__version__ = "14.2.0"
        self.cupy.resize = self.resize
        self.cupy.empty = lambda shape, dtype: SimpleNamespace(data=self)
        vars(self.cupy.cuda).update(
            runtime=SimpleNamespace(driverGetVersion=lambda: 13000, memGetInfo=lambda: (self.free, 2 * self.free)),
            get_local_runtime_version=lambda: 12090,
            get_elapsed_time=lambda begin, end: 1e3 * (end.at - begin.at),
            Event=Event,
            MemoryPool=MemoryPool,
            using_allocator=using_allocator,
        )

    def resize(self, array, shape):
        self.made.append(self.allocator)
        return on_cupy(np.resize(array, shape), Device.current)

    def memset_async(self, value, size):
        self.clock += 100.0  # writing the filler is no part of a run

    def plan(self, *times, calls=None):
        """A plan whose runs take these times, the last one again and again; an exception among them is raised."""
        return Plan(self, times, calls)


class Plan:
    def __init__(self, gpu, times, calls):
        self.gpu, self.times, self.calls = gpu, times, (self,) if calls is None else calls
        self.ran = []  # the arrays of each call

    def run(self, arrays):
        time = self.times[min(len(self.ran) // CALLS, len(self.times) - 1)]
        self.ran.append(arrays)
        if isinstance(time, Exception):
            raise time
        self.gpu.clock += time


@pytest.fixture
def process(monkeypatch, tmp_path):
    """Begins another process, as far as tuning can tell; answers are kept in a folder of the test."""

    def begin():
        for name, value in (("_found", {}), ("_given_up", set()), ("_warned", False)):
            monkeypatch.setattr(_tuning, name, value)
        _tuning._read_once.cache_clear()
        _tuning._versions.cache_clear()

    monkeypatch.setenv("CUPYCORR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CUPYCORR_AUTOTUNE", raising=False)
    begin()
    yield begin
    begin()


@pytest.fixture
def gpu(monkeypatch, process):
    """The fake device, in a new process."""
    made = Gpu()
    monkeypatch.setitem(sys.modules, "cupy", made.cupy)
    monkeypatch.setattr(Stream, "capturing", False)
    return made


def files():
    """The names of all files of answers."""
    return sorted(path.name for path in _tuning.folder().iterdir()) if _tuning.folder().exists() else []


# How variants are timed ------------------------------------------------------------------------------------------------------


def test_the_fastest_variant_is_returned_and_known(gpu):
    assert known(REQUEST, FACTS) is None
    assert measure(REQUEST, FACTS, {"slow": gpu.plan(3.0), "fast": gpu.plan(2.0), "slower": gpu.plan(4.0)}) == "fast"
    assert known(REQUEST, FACTS) == "fast"


def test_the_median_decides_and_the_run_that_compiles_does_not_count(gpu):
    plans = {
        "least mean": gpu.plan(1.0, 4.0, 4.0, 4.0, 4.0, 1.0, 1.0, 1.0),
        "least of all": gpu.plan(1.0, 3.5, 3.5, 3.5, 3.5, 0.1, 9.0, 9.0),
        "least first": gpu.plan(1.0, 2.0, 5.0),
        "steady": gpu.plan(500.0, 3.0),
    }
    assert measure(REQUEST, FACTS, plans) == "steady"


def test_the_time_is_in_seconds_and_that_of_the_second_call_of_a_run(gpu):
    assert seconds(REQUEST, FACTS, {"one": gpu.plan(9.0, 0.25), "other": gpu.plan(0.375)}) == {"one": 0.25, "other": 0.375}


def test_variants_run_in_turn(gpu):
    turns = []
    plans = {name: gpu.plan(1.0) for name in ("one", "other")}
    for name, plan in plans.items():
        plan.run = lambda arrays, name=name: turns.append(name)
    measure(REQUEST, FACTS, plans)
    assert turns == [*["one"] * CALLS, *["other"] * CALLS] * (1 + RUNS)


def test_a_variant_that_takes_far_longer_is_not_run_again(gpu):
    plans = {"best": gpu.plan(1.0), "close": gpu.plan(1.875), "hopeless": gpu.plan(2.5)}
    assert seconds(REQUEST, FACTS, plans) == {"best": 1.0, "close": 1.875, "hopeless": 2.5}
    assert [len(plan.ran) for plan in plans.values()] == [CALLS * (1 + RUNS), CALLS * (1 + RUNS), CALLS * 2]


def test_variants_that_launch_the_same_kernels_are_timed_once(gpu):
    first, same, other = (
        gpu.plan(2.0, calls=("kernel", 1)),
        gpu.plan(1.0, calls=("kernel", 1)),
        gpu.plan(3.0, calls=("kernel", 2)),
    )
    taken = seconds(REQUEST, FACTS, {"first": first, "same": same, "other": other})
    assert taken == {"first": 2.0, "same": 2.0, "other": 3.0}
    assert same.ran == []


FAILURES = {
    "at once": (RuntimeError("cannot compile"),),
    "while it is timed": (0.5, RuntimeError("cannot launch")),
    "at the last run": (*[0.5] * RUNS, NotImplementedError()),
}


@pytest.mark.parametrize("times", FAILURES.values(), ids=FAILURES)
def test_a_variant_that_fails_is_left_out(gpu, times):
    assert measure(REQUEST, FACTS, {"fails": gpu.plan(*times), "slow": gpu.plan(0.75)}) == "slow"


@pytest.mark.parametrize("order", [ROWS, CHANNELS_LAST])
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_have_the_layouts_of_the_request_and_random_numbers(gpu, dtype, order):
    plan, layout = gpu.plan(1.0), dense_layout(dtype, (2, 16, 5, 1), order)
    volume = dense_layout("float32", (2, 3, 4, 5, 6))
    request = Request(layouts={"image": layout, "volume": volume})
    assert measure(request, replace(FACTS, index=3), {"any": plan}) == "any"
    arrays = plan.ran[-1]
    assert {name: array.shape for name, array in arrays.items()} == {"image": layout.shape, "volume": volume.shape}
    assert (arrays["image"].dtype, arrays["volume"].dtype) == (DTYPES[dtype], np.float32)
    assert (arrays["image"] if order == ROWS else arrays["image"].transpose(0, 2, 3, 1)).flags.c_contiguous
    assert arrays["volume"].flags.c_contiguous
    assert {array.device.id for array in arrays.values()} == {3}
    assert all(np.isfinite(x.astype(float)).all() and np.unique(x).size > x.size // 2 for x in arrays.values())
    assert Device.current == 0


def test_arrays_have_the_typical_values_of_the_request_where_it_has_some(gpu):
    plan, layout = gpu.plan(1.0), dense_layout("float64", (2, 3, 4, 5), CHANNELS_LAST)
    values = np.arange(120.0).reshape(layout.shape)
    gpu.cupy.asarray = on_cupy
    request = Request(layouts={"x": layout, "y": layout}, typical={"x": values})
    assert measure(request, FACTS, {"any": plan}) == "any"
    arrays = plan.ran[-1]
    assert (arrays["x"] == values).all()
    assert arrays["x"].strides == arrays["y"].strides == tuple(8 * stride for stride in layout.strides)
    assert not (arrays["y"] == values).any()


# When nothing is measured ----------------------------------------------------------------------------------------------------


def test_where_every_variant_fails_nothing_is_known_and_nothing_is_tried_again(gpu):
    plans = {"fails": gpu.plan(RuntimeError()), "too": gpu.plan(ValueError())}
    assert measure(REQUEST, FACTS, plans) is None
    assert measure(REQUEST, FACTS, plans) is None
    assert known(REQUEST, FACTS) is None
    assert [len(plan.ran) for plan in plans.values()] == [1, 1]
    assert files() == []


def forbidden(stream):
    raise CAPTURE_IMPLICIT


CAPTURING = {"captured": lambda stream: True, "not to be queried": forbidden}


@pytest.mark.parametrize("is_capturing", CAPTURING.values(), ids=CAPTURING)
def test_nothing_is_measured_while_a_stream_is_captured_but_it_is_afterwards(gpu, monkeypatch, is_capturing):
    plan = gpu.plan(1.0)
    with monkeypatch.context() as patched:
        patched.setattr(Stream, "is_capturing", is_capturing)
        assert measure(REQUEST, FACTS, {"any": plan}) is None
        assert plan.ran == gpu.made == []
    assert measure(REQUEST, FACTS, {"any": plan}) == "any"


def test_an_error_that_is_not_about_a_capture_is_raised(gpu, monkeypatch):
    def fails(stream):
        raise CUDAError(700, "illegal address")

    plan = gpu.plan(1.0)
    monkeypatch.setattr(Stream, "is_capturing", fails)
    with pytest.raises(CUDAError, match=r"^illegal address$"):
        measure(REQUEST, FACTS, {"any": plan})
    assert plan.ran == gpu.made == []


def test_the_stream_that_matters_is_that_of_the_device(gpu, monkeypatch):
    monkeypatch.setattr(Stream, "is_capturing", lambda self: Device.current == 2)
    assert measure(REQUEST, replace(FACTS, index=2), {"any": gpu.plan(1.0)}) is None
    assert measure(REQUEST, FACTS, {"any": gpu.plan(1.0)}) == "any"


def test_the_arrays_take_at_most_half_of_the_free_memory(gpu, process):
    request = Request(layouts={"x": dense_layout("float16", (8, 2**17)), "y": dense_layout("float64", (3, 2**17))})
    plan, mebibytes = gpu.plan(1.0), 2 + 3 + 64  # the last are the filler's
    gpu.free = 2 * mebibytes * 2**20 - 1
    assert measure(request, FACTS, {"any": plan}) is None
    assert plan.ran == gpu.made == []
    process()
    gpu.free += 1
    assert measure(request, FACTS, {"any": plan}) == "any"


def test_a_lack_of_memory_or_of_a_dtype_leaves_everything_unknown(gpu, monkeypatch):
    assert measure(REQUEST, FACTS, {"runs": gpu.plan(1.0), "would be faster": gpu.plan(0.5, MemoryError())}) is None
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    bfloat16 = Request("in bfloat16", {"x": dense_layout("bfloat16", (4, 6))})
    assert measure(bfloat16, FACTS, {"runs": gpu.plan(1.0)}) is None
    assert known(REQUEST, FACTS) is known(bfloat16, FACTS) is None
    assert files() == []


@pytest.mark.parametrize("time", [1.0, MemoryError()], ids=["measured", "failed"])
def test_the_arrays_come_from_a_separate_pool_which_is_emptied(gpu, time):
    measure(REQUEST, FACTS, {"any": gpu.plan(time)})
    (pool,) = gpu.pools
    assert set(gpu.made) == {pool}
    assert pool.emptied
    assert gpu.allocator == "the default pool"


def test_two_threads_measure_a_request_once(gpu):
    plan, begun, both_inside = gpu.plan(1.0), threading.Barrier(2), threading.Barrier(2)

    def run(arrays):
        with suppress(threading.BrokenBarrierError):
            both_inside.wait(0.2)  # long enough for the other thread to come, if it may
        Plan.run(plan, arrays)

    def call(_):
        begun.wait(STUCK)
        return measure(REQUEST, FACTS, {"any": plan})

    plan.run = run
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(call, range(2))) == ["any", "any"]
    assert len(plan.ran) == CALLS * (1 + RUNS)


# The environment -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "name", "measures"), [(None, "fast", False), ("1", "fast", True), ("0", None, False)])
def test_the_variable_decides_whether_answers_are_used_and_whether_calls_measure(gpu, process, monkeypatch, mode, name, measures):
    record(REQUEST, FACTS, "fast")
    process()
    if mode is not None:
        monkeypatch.setenv("CUPYCORR_AUTOTUNE", mode)
    assert known(REQUEST, FACTS) == name
    assert _tuning.at_first_use() is measures


@pytest.mark.parametrize("value", ["", "yes", "2", " 1"])
def test_any_other_value_of_the_variable_is_refused_by_name(gpu, monkeypatch, value):
    monkeypatch.setenv("CUPYCORR_AUTOTUNE", value)
    for call in (lambda: known(REQUEST, FACTS), _tuning.at_first_use):
        with pytest.raises(ValueError, match="CUPYCORR_AUTOTUNE must be 0 or 1") as error:
            call()
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
def test_answers_are_kept_in_the_users_cache_folder(monkeypatch, tmp_path, platform, variables, folder):
    for name in ("CUPYCORR_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(tmp_path), **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert _tuning.folder() == tmp_path / folder / "tuning"


def test_without_a_home_folder_answers_stay_in_the_process(gpu, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    for name in ("CUPYCORR_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert known(REQUEST, FACTS) is None
    with pytest.warns(RuntimeWarning, match="home directory.*CUPYCORR_CACHE_DIR"):
        record(REQUEST, FACTS, "fast")
    assert known(REQUEST, FACTS) == "fast"


# The files -------------------------------------------------------------------------------------------------------------------


def test_another_process_knows_every_answer_and_the_file_explains_it(gpu, process):
    measure(REQUEST, FACTS, {"slow": gpu.plan(3.0), "fast": gpu.plan(2.0)})
    record(OTHER, FACTS, "another")
    process()
    assert (known(REQUEST, FACTS), known(OTHER, FACTS)) == ("fast", "another")
    texts = [(_tuning.folder() / name).read_text() for name in files()]
    (content,) = [content for content in map(json.loads, texts) if content["request"] == REQUEST.key]
    assert content["device"] == "a GPU in a test, compute capability 9.0"
    assert (content["versions"]["driver"], content["versions"]["runtime"]) == ("13.0", "12.9")
    assert content["seconds"] == {"slow": 3.0, "fast": 2.0}


def test_a_file_is_read_once(gpu, process, monkeypatch):
    record(REQUEST, FACTS, "fast")
    process()
    assert (known(REQUEST, FACTS), known(OTHER, FACTS)) == ("fast", None)
    monkeypatch.setattr(Path, "read_text", lambda *_: pytest.fail("read again"))
    assert (known(REQUEST, FACTS), known(OTHER, FACTS)) == ("fast", None)
    record(Request("dot product of 6 x 6"), FACTS, "slow")  # a new answer is no reason to read the others again
    assert (known(REQUEST, FACTS), known(OTHER, FACTS)) == ("fast", None)


def test_a_file_that_another_process_has_open_is_replaced_a_little_later(gpu, process, monkeypatch):
    """Windows refuses to replace an open file."""
    replace, refusals = os.replace, [PermissionError("open"), PermissionError("open")]

    def refused_at_first(*arguments):
        if refusals:
            raise refusals.pop()
        replace(*arguments)

    monkeypatch.setattr(os, "replace", refused_at_first)
    record(REQUEST, FACTS, "fast")
    process()
    assert known(REQUEST, FACTS) == "fast"


def test_where_nothing_was_ever_measured_not_even_a_version_is_queried(process, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert known(REQUEST, FACTS) is None


def test_what_another_process_has_found_meanwhile_is_not_measured_again(gpu, process):
    assert known(REQUEST, FACTS) is None
    process()
    record(REQUEST, FACTS, "fast")
    _tuning._found.clear()  # the file is all that is left of the other process
    assert measure(REQUEST, FACTS, {"other": gpu.plan(2.0), "fast": (plan := gpu.plan(1.0))}) == "fast"
    assert plan.ran == []
    assert known(REQUEST, FACTS) == "fast"


def test_a_name_that_is_not_among_the_variants_is_measured_again(gpu, process):
    record(REQUEST, FACTS, "gone")
    process()
    assert measure(REQUEST, FACTS, {"fast": gpu.plan(1.0)}) == "fast"
    process()
    assert known(REQUEST, FACTS) == "fast"


def another_header(patched, gpu, tmp_path):
    copied = shutil.copytree(source.folder(), tmp_path / "kernels")
    header = copied / "common/numeric.cuh"
    header.write_text(header.read_text() + "// one more line\n")
    patched.setattr(source, "folder", lambda: copied)


CHANGES = {
    "driver": lambda patched, gpu, _: patched.setattr(gpu.cupy.cuda.runtime, "driverGetVersion", lambda: 12080),
    "runtime": lambda patched, gpu, _: patched.setattr(gpu.cupy.cuda, "get_local_runtime_version", lambda: 12080),
    "CuPy": lambda patched, gpu, _: patched.setattr(gpu.cupy, "__version__", "14.3.0"),
    "cupycorr": lambda patched, *_: patched.setattr(cupycorr, "__version__", "0.1.0.1"),
    "kernels": another_header,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_was_measured_with_other_versions_is_unknown_and_stays_for_them(gpu, process, tmp_path, change):
    record(REQUEST, FACTS, "fast")
    process()
    with pytest.MonkeyPatch.context() as patched:
        change(patched, gpu, tmp_path)
        assert known(REQUEST, FACTS) is None
        record(REQUEST, FACTS, "another")
        process()
        assert known(REQUEST, FACTS) == "another"
    process()
    assert known(REQUEST, FACTS) == "fast"


@pytest.mark.parametrize("change", [{"name": "another GPU"}, {"compute_capability": (9, 1)}], ids=["name", "capability"])
def test_each_kind_of_device_has_its_own_answers(gpu, process, change):
    other = replace(FACTS, **change)
    record(REQUEST, FACTS, "fast")
    assert known(REQUEST, other) is None
    record(REQUEST, other, "another")
    process()
    assert (known(REQUEST, FACTS), known(REQUEST, other)) == ("fast", "another")
    assert known(REQUEST, replace(FACTS, index=1)) == "fast"


DAMAGED = {
    "empty": lambda written: "",
    "cut off": lambda written: written[:-20],
    "not text": lambda written: "\udcff\udcfe",
    "nested without end": lambda written: "[" * 200_000,
    "a list": lambda written: "[]",
    "without an answer": lambda written: written.replace('"fastest"', '"slowest"'),
    "an answer that is no name": lambda written: written.replace('"fast"', "1"),
    "of another request": lambda written: written.replace(REQUEST.key, OTHER.key),
    "of another version": lambda written: written.replace("14.2.0", "14.3.0"),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_or_foreign_file_counts_as_unknown_and_is_replaced(gpu, process, damage):
    record(REQUEST, FACTS, "fast")
    (name,) = files()
    path = _tuning.folder() / name
    path.write_text(damage(path.read_text()), errors="surrogateescape")
    process()
    assert known(REQUEST, FACTS) is None
    assert measure(REQUEST, FACTS, {"fast": gpu.plan(1.0)}) == "fast"
    process()
    assert known(REQUEST, FACTS) == "fast"
    assert files() == [name]


def test_a_folder_that_cannot_be_written_gets_one_warning_and_answers_stay_in_the_process(gpu, process):
    _tuning.folder().parent.write_text("a file where the folder should be")
    assert known(REQUEST, FACTS) is None
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        assert measure(REQUEST, FACTS, {"fast": gpu.plan(1.0)}) == "fast"
    assert measure(OTHER, FACTS, {"another": gpu.plan(1.0)}) == "another"  # a second warning would be an error
    assert measure(REQUEST, FACTS, {"fast": (plan := gpu.plan(1.0))}) == "fast"
    assert plan.ran == []
    assert (known(REQUEST, FACTS), known(OTHER, FACTS)) == ("fast", "another")
    process()
    assert known(REQUEST, FACTS) is None


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_an_interrupted_write_leaves_the_file_as_it_was_and_no_other(gpu, process, monkeypatch, error):
    def interrupted(*_):
        raise error

    record(REQUEST, FACTS, "fast")
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupted)
        with pytest.warns(RuntimeWarning) if isinstance(error, OSError) else pytest.raises(KeyboardInterrupt):
            record(REQUEST, FACTS, "another")
    process()
    assert known(REQUEST, FACTS) == "fast"
    assert len(files()) == 1


WRITERS, EACH = 4, 25

PROGRAM = """
    import sys
    import test_tuning as tests
    from cupycorr import _tuning

    sys.modules["cupy"] = tests.Gpu().cupy
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(tests.EACH):
        _tuning.record(tests.Request(f"{sys.argv[1]}-{number}"), tests.FACTS, f"{sys.argv[1]}-{number}")
        _tuning.record(tests.REQUEST, tests.FACTS, sys.argv[1])
"""


def test_processes_that_write_at_once_lose_nothing_and_a_reader_sees_whole_files(gpu, process):
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "support", Path(__file__).parent)))
    options = dict(env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    record(REQUEST, FACTS, "0")
    writers = [subprocess.Popen([*command, str(writer)], **options) for writer in range(WRITERS)]
    try:
        assert [writer.stdout.readline() for writer in writers] == ["ready\n"] * WRITERS
        for writer in writers:
            writer.stdin.write("go\n")
            writer.stdin.flush()
        while any(writer.poll() is None for writer in writers):
            process()
            assert known(REQUEST, FACTS) in map(str, range(WRITERS))
        assert [writer.wait(STUCK) for writer in writers] == [0] * WRITERS
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    process()
    written = [f"{writer}-{number}" for writer in range(WRITERS) for number in range(EACH)]
    assert [known(Request(key), FACTS) for key in written] == written
    assert len(files()) == len(written) + 1


# On a device -----------------------------------------------------------------------------------------------------------------


class OnDevice:
    """A plan that squares an array so many times over, through CuPy."""

    def __init__(self, times):
        self.calls = (times,)

    def run(self, arrays):
        for _ in range(*self.calls):
            arrays["x"] *= arrays["x"]


@pytest.fixture
def real(process):
    """CuPy itself and the facts of its current device."""
    cupy = pytest.importorskip("cupy")
    return cupy, devices.facts(cupy.cuda.runtime.getDevice())


LARGE = Request(layouts={"x": dense_layout("float32", (2**22,))})
PLANS = {"slow": OnDevice(8), "fast": OnDevice(1)}


@pytest.mark.gpu
def test_the_faster_plan_is_found_on_a_device_and_nothing_is_left_in_its_pool(real):
    cupy, device = real
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes(), pool.total_bytes()
    assert measure(LARGE, device, PLANS) == known(LARGE, device) == "fast"
    assert (pool.used_bytes(), pool.total_bytes()) == before


@pytest.mark.gpu
def test_a_capture_on_a_device_is_left_alone(real):
    cupy, device = real
    with cupy.cuda.Stream(non_blocking=True) as stream:
        counter = cupy.zeros(1)
        counter += 1  # compiled before
        stream.synchronize()
        stream.begin_capture()
        assert measure(LARGE, device, PLANS) is None
        counter += 1
        graph = stream.end_capture()
        graph.launch(stream)
        stream.synchronize()
        assert counter.item() == 2
        assert measure(LARGE, device, PLANS)
