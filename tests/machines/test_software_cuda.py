"""The software CUDA as a program's machine: what it takes to prepare it, and CuPy on it, in processes of their own.

It is prepared in the user's cache folder once. Where that is impossible these tests are skipped with the reason, or fail if
CUPYCORR_REQUIRE_SOFTWARE_CUDA is set.
"""

import importlib.metadata
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from waiting import STUCK

from tests.software_cuda import activation, devices, preparation

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "tests.software_cuda")
OF_ACTIVATION = (activation.VARIABLE, "CUPY_CACHE_DIR", "CUPY_COMPILE_WITH_PTX", "CUPY_ACCELERATORS", "PYTHONPATH")


def run(*words, cwd=ROOT, **environment):
    """Run a program in an environment that nothing has activated; a variable that is None is not set."""
    variables = {name: value for name, value in os.environ.items() if name not in OF_ACTIVATION} | environment
    variables = {name: value for name, value in variables.items() if value is not None}
    words = list(map(str, words))
    return subprocess.run(words, cwd=cwd, env=variables, capture_output=True, text=True, timeout=STUCK, check=False)


def printed(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split()


@pytest.fixture
def on_devices(software_cuda_prepared):
    """A function that returns the words which a Python program prints on imagined devices."""

    def on_devices(program, names="H200", **environment):
        words = (*COMMAND, "run", "--devices", names, "--", "python", "-W", "ignore", "-c", textwrap.dedent(program))
        return printed(run(*words, **environment))

    return on_devices


# The driver, asked without CuPy ----------------------------------------------------------------------------------------------


def test_the_driver_tells_its_cuda_and_the_compute_capabilities_of_its_devices(on_devices):
    program = """
    import cupy  # brings the software CUDA's driver into the process, under the name of NVIDIA's
    from cupycorr._gpu import driver
    found = driver.installed()
    print(*found.cuda, found.compute_capabilities == ((9, 0), (7, 5)))
    """
    assert on_devices(program, "H200,T4") == ["12", "9", "True"]


# CuPy --------------------------------------------------------------------------------------------------------------------------

DEVICES = """
import cupy
for number in range(cupy.cuda.runtime.getDeviceCount()):
    found = cupy.cuda.Device(number)
    print(found.compute_capability, found.attributes["MultiProcessorCount"], found.attributes["MaxSharedMemoryPerBlockOptin"])
"""


@pytest.mark.usefixtures("software_cuda_prepared")
def test_a_process_that_is_not_activated_has_the_installed_runtime_module():
    program = "import cupy, sys; print(sys.modules['cupy_backends.cuda.api.runtime'].__file__)"
    done = run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    installed = Path(importlib.metadata.distribution(preparation.CUPY).locate_file("cupy_backends/cuda/api"))
    assert Path(done.stdout.strip()).parent.samefile(installed)


def test_the_devices_have_the_properties_of_their_kinds(on_devices):
    assert on_devices(DEVICES, "H200,T4") == ["90", "132", "232448", "75", "40", "65536"]


def test_arrays_of_cupy_have_the_values_of_numpy(on_devices):
    program = """
    import cupy, numpy
    x = numpy.random.default_rng(0).standard_normal((5, 7, 9)).astype("float32")
    y = cupy.asarray(x)
    def same(one, other):
        return numpy.allclose(cupy.asnumpy(one), other, rtol=1e-5, atol=1e-5)
    print(
        same(3 * y + cupy.exp(y), 3 * x + numpy.exp(x)), same(y.sum(axis=1), x.sum(axis=1)), same(y[1:, ::2].T, x[1:, ::2].T),
        same(cupy.sort(y, axis=1), numpy.sort(x, axis=1)), same(cupy.argsort(y), numpy.argsort(x)),
        same(y[0].T @ y[1], x[0].T @ x[1]), same(y @ y[0].T, x @ x[0].T), same(cupy.cumsum(y), numpy.cumsum(x)),
    )
    """
    assert set(on_devices(program)) == {"True"}


def test_each_device_has_its_own_memory(on_devices):
    program = """
    import cupy
    with cupy.cuda.Device(1):
        there = cupy.arange(1000)
    here = cupy.arange(1000)
    print(there.device.id, here.device.id, int((cupy.asarray(there.get()) - here).sum()))
    with cupy.cuda.Device(1):
        print(int(there.sum()))
    """
    assert on_devices(program, "H200,T4") == ["1", "0", "0", "499500"]


STORE = """
import threading, cupy, numpy
from tests.software_cuda import control
STORE = cupy.RawKernel('extern "C" __global__ void store(float* to, int at) { to[at] = 1; }', "store")
def check(make):
    array, at = make()
    try:
        STORE((1,), (1,), (array, numpy.int32(at)))
        cupy.cuda.Device().synchronize()
    except (cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError):
        pass
    print(len(control.reports()))
    control.forget()
def given_back():
    array = cupy.zeros(3, numpy.float32)
    return numpy.uint64(array.data.ptr), 0
"""


@pytest.mark.parametrize("thread", ["the main thread", "another thread"])
def test_the_library_knows_the_sizes_of_arrays_in_the_memory_pool_and_when_they_are_given_back(on_devices, thread):
    calls = ("lambda: (cupy.zeros(3, numpy.float32), 2)", "lambda: (cupy.zeros(3, numpy.float32), 3)", "given_back")
    call = "check({})" if thread == "the main thread" else "t = threading.Thread(target=check, args=({},)); t.start(); t.join()"
    assert on_devices(STORE + "\n".join(call.format(each) for each in calls)) == ["0", "1", "1"]


# Children ----------------------------------------------------------------------------------------------------------------------


def test_children_have_the_devices_of_their_parent(on_devices, tmp_path):
    program = """
    import multiprocessing, subprocess, sys
    COUNT = "import cupy; print(cupy.cuda.runtime.getDeviceCount(), int(cupy.arange(4).sum()))"
    told = subprocess.run([sys.executable, "-c", COUNT], cwd="/", capture_output=True, text=True, check=True).stdout
    print(told, flush=True)  # a child of a pool may be ended before it prints what it holds
    def count(_):
        import cupy
        return cupy.cuda.runtime.getDeviceCount()
    if __name__ == "__main__":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(pool.map(count, [0])[0])
        with multiprocessing.get_context("fork").Pool(1) as pool:
            print(pool.map(count, [0])[0])
    """
    path = tmp_path / "parent.py"
    path.write_text(textwrap.dedent(program))
    done = run(*COMMAND, "run", "--devices", "H200,T4", "--", "python", path)
    assert printed(done) == ["2", "6", "2", "6", "2", "2"]


def test_a_sitecustomize_of_the_user_runs_as_well(software_cuda_prepared, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.customized = __file__\n")
    program = "import sitecustomize, cupy; print(customized == sitecustomize.__file__, cupy.cuda.runtime.getDeviceCount())"
    assert printed(run(*COMMAND, "run", "--", "python", "-c", program, PYTHONPATH=str(tmp_path))) == ["True", "1"]


def test_a_process_that_does_not_import_cupy_loads_nothing(software_cuda_prepared):
    program = "import sys; print([name for name in sys.modules if 'software_cuda' in name])"
    assert printed(run(*COMMAND, "run", "--", "python", "-c", program)) == ["[]"]


def test_kernels_of_real_devices_are_kept_elsewhere_but_a_child_may_choose_the_cache(on_devices, tmp_path):
    program = """
    import os, subprocess, sys, cupy
    print(os.environ["CUPY_CACHE_DIR"])
    other = {**os.environ, "CUPY_CACHE_DIR": sys.argv[1]}
    print(subprocess.run([sys.executable, "-c", "import cupy, os; print(os.environ['CUPY_CACHE_DIR'])"], env=other,
        capture_output=True, text=True, check=True).stdout)
    """.replace("sys.argv[1]", repr(str(tmp_path / "child")))
    used, used_by_child = on_devices(program, CUPY_CACHE_DIR=str(tmp_path / "users"))
    assert Path(used).is_relative_to(preparation.cache_folder())
    assert used_by_child == str(tmp_path / "child")


# The command -------------------------------------------------------------------------------------------------------------------


def test_run_passes_arguments_and_the_exit_code(software_cuda_prepared, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint(sys.argv[1:])\nsys.exit(int(sys.argv[1]))\n")
    done = run(*COMMAND, "run", "--", "python", script, "3", "--devices")
    assert (done.returncode, done.stdout) == (3, "['3', '--devices']\n")


def test_a_command_that_is_not_found_is_told(software_cuda_prepared):
    done = run(*COMMAND, "run", "--", "no-such-program")
    assert done.returncode == 127
    assert done.stderr == "no-such-program cannot be run: No such file or directory\n"


def test_an_unknown_device_is_told():
    done = run(*COMMAND, "run", "--devices", "H200,X1", "--", "python")
    assert done.returncode == 2
    assert "devices must be names from H200, A100, T4, V100, RTX 5090, got X1" in done.stderr


def test_activation_comes_before_cupy(software_cuda_prepared):
    program = "import cupy\nfrom tests.software_cuda import activation\nactivation.activate()"
    done = run(sys.executable, "-c", program)
    assert done.stderr.endswith("RuntimeError: the software CUDA must be activated before CuPy is imported\n")


# Preparation -------------------------------------------------------------------------------------------------------------------


def not_prepared(**environment):
    done = run(*COMMAND, "prepare", **environment)
    assert done.returncode == 1
    _, told, reason = done.stderr.partition("The software CUDA cannot be prepared: ")
    assert told
    return reason


def test_a_cache_folder_that_cannot_be_written_to_is_told(software_cuda_prepared, tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "cache"
    told = not_prepared(CUPYCORR_SOFTWARE_CUDA_CACHE=str(folder))
    assert f"the cache folder {folder} cannot be written to: Not a directory" in told


def test_a_missing_compiler_is_told(software_cuda_prepared, tmp_path):
    assert "there is no g++" in not_prepared(PATH=str(tmp_path))


def test_a_source_that_cannot_be_downloaded_is_told(software_cuda_prepared, tmp_path):
    nowhere = dict(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path), PIP_NO_CACHE_DIR="1")
    told = not_prepared(CUPYCORR_SOFTWARE_CUDA_CACHE=str(tmp_path / "cache"), **nowhere)
    assert f"the source of CuPy {preparation.cupy_version()} cannot be downloaded" in told


def test_what_is_made_is_seen_by_others_only_when_it_is_complete_and_is_made_once(monkeypatch, tmp_path):
    monkeypatch.setenv("CUPYCORR_SOFTWARE_CUDA_CACHE", str(tmp_path))
    made = []

    def make(folder):
        assert not list((tmp_path / "part").glob("[0-9a-f]*[0-9a-f]/content"))
        made.append(folder)
        folder.mkdir()
        (folder / "content").touch()

    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: preparation._made("part", ["this"], make, print, "the part"), range(8)))
    assert len(made) == len(folders) == 1
    assert (folders.pop() / "content").exists()


def test_what_fails_leaves_nothing_that_counts_as_made(monkeypatch, tmp_path):
    monkeypatch.setenv("CUPYCORR_SOFTWARE_CUDA_CACHE", str(tmp_path))

    def fail(folder):
        folder.mkdir()
        raise preparation.CannotPrepareError("no")

    for _ in range(2):
        with pytest.raises(preparation.CannotPrepareError, match="no"):
            preparation._made("part", ["this"], fail, print, "the part")
    assert [path.suffix for path in (tmp_path / "part").iterdir()] == [".lock"]


@pytest.mark.parametrize("name", ["test_ptx_translator.py", "test_ptx_builds.py", "test_software_cuda_library.py"])
def test_tests_without_a_compiler_fail_where_the_software_cuda_is_required(name, tmp_path):
    words = ("-m", "pytest", "-q", "-x", "-n", "0", "-m", "", "-p", "no:cacheprovider", f"tests/machines/{name}")
    done = run(sys.executable, *words, PATH=str(tmp_path), CUPYCORR_REQUIRE_SOFTWARE_CUDA="1", CUPYCORR_REQUIRE_EMULATOR=None)
    assert done.returncode, done.stdout + done.stderr
    assert "g++" in done.stdout, done.stdout + done.stderr


def test_the_threads_that_compile_the_library_import_nothing(monkeypatch, tmp_path):
    """A child prepares the library while it imports CuPy; an import in another thread would wait for the end of that one."""
    threads = set()

    def headers():
        threads.add(threading.current_thread())
        return tmp_path

    monkeypatch.setattr(preparation, "cuda_headers", headers)  # looks a package up
    monkeypatch.setattr(preparation, "_run", lambda words, *_: Path(words[words.index("-o") + 1]).touch())
    preparation._build_library(tmp_path / "made")
    assert threads == {threading.current_thread()}
    assert [path.name for path in (tmp_path / "made").iterdir()] == [preparation.SONAME]


# pytest ------------------------------------------------------------------------------------------------------------------------


OUTCOMES = """
import pytest

pytestmark = pytest.mark.gpu


def test_right():
    import cupy

    assert int(cupy.arange(10).sum()) == 45


def test_loads_what_nobody_stored():
    import cupy

    print(cupy.empty(10).sum())


def test_goes_on_after_a_report():
    import cupy

    assert int(cupy.arange(10).sum()) == 45


@pytest.fixture
def loads_at_the_end():
    import cupy

    array = cupy.empty(10)
    yield
    print(array.sum())


def test_whose_fixture_loads_what_nobody_stored(loads_at_the_end):
    pass


def test_goes_on_after_a_report_of_a_fixture():
    import cupy

    assert int(cupy.arange(10).sum()) == 45


@pytest.mark.hardware
def test_of_a_real_device():
    assert False
"""


def test_a_test_or_its_end_fails_when_a_kernel_loads_what_nobody_stored_and_the_next_does_not(software_cuda_prepared, tmp_path):
    path = tmp_path / "test_outcomes.py"
    path.write_text(OUTCOMES)
    words = ("-m", "pytest", "-p", "tests.software_cuda.plugin", "--software-cuda", "-p", "no:cacheprovider", "-c", "setup.cfg")
    done = run(sys.executable, *words, "--rootdir", tmp_path, "-n", "1", "-rA", "-m", "gpu", path)
    lines = done.stdout.splitlines()
    found = [line.split("::") for line in lines if line.startswith(("PASSED", "FAILED", "ERROR")) and "::" in line]
    outcomes = sorted((name.split()[0], outcome.split()[0]) for outcome, name, *_ in found)
    assert outcomes == [
        ("test_goes_on_after_a_report", "PASSED"),
        ("test_goes_on_after_a_report_of_a_fixture", "PASSED"),
        ("test_loads_what_nobody_stored", "FAILED"),
        ("test_right", "PASSED"),
        ("test_whose_fixture_loads_what_nobody_stored", "ERROR"),
        ("test_whose_fixture_loads_what_nobody_stored", "PASSED"),
    ], done.stdout
    assert "The software CUDA reports:" in done.stdout
    assert "the test needs a real device" in done.stdout


def test_a_sample_of_the_tests_of_a_gpu_passes(software_cuda_prepared):
    words = ("-m", "pytest", "-q", "--software-cuda=H200,T4", "-p", "no:cacheprovider", "-m", "gpu and not slow and not hardware")
    done = run(sys.executable, *words, *(f"tests/correlation/test_gpu.py::{name}" for name in SAMPLE))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(SAMPLE)} passed" in done.stdout, done.stdout


SAMPLE = (
    "test_named_cases_equal_the_oracle[even patch-float16-mma]",
    "test_named_cases_equal_the_oracle[window, stride and dilation-float16-tiled]",
    "test_out_may_be_an_input",
    "test_work_comes_after_what_its_stream_was_given_before[tiled]",
    "test_another_device_than_the_current_one_answers_for_its_arrays[direct]",
    "test_a_captured_call_answers_for_new_data_at_every_replay[mma]",
    "test_bfloat16_arrays_of_cupy_are_known",
)


def test_the_table_of_devices_has_the_bandwidths_that_nvidia_publishes():
    published = {"H200": 4917, "A100": 2039, "T4": 320, "V100": 898, "RTX 5090": 1792}  # GB/s; the H200's at its memory clock
    for name, device in devices.DEVICES.items():
        assert round(2 * device.memory_clock_mhz * device.bus_bits / 8 / 1000) == published[name]
