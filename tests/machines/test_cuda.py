"""Source, compilation, launches and properties of devices, without a GPU: on a fake CuPy, and by NVRTC where it is installed."""

import configparser
import re
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import nvrtc
import pytest
from fake_cupy import CAPTURE_IMPLICIT, CAPTURE_UNSUPPORTED, H100, CompileException, CUDAError, Fake, Stream
from processes import ROOT, interrupted_everywhere, python
from waiting import STUCK

from cupycorr._gpu import compiler, device, launcher, plan, source
from cupycorr._gpu.source import Kernel

KERNEL = Kernel("add.cu", "add", (("INPUT", "float"), ("INDEX", "long long")))
OTHER = Kernel("add.cu", "add", (("INPUT", "double"), ("INDEX", "int")))

FILES = {
    "types.cuh": "#pragma once\ntypedef INDEX Index;\n",
    "maths.cuh": (
        '#pragma once\n#include "types.cuh"\n#include <cuda_fp16.h>\n\n__device__ INPUT twice(INPUT x) { return x + x; }\n'
    ),
    "add.cu": (
        '// Adds.\n  # include  "maths.cuh"\n#include "types.cuh"\n  #  include "elsewhere.hpp"\n\n'
        'extern "C" __global__ void add(INPUT* to, Index at) { to[at] = twice(to[at]); }\n'
    ),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of kernels in place of the package's own."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(source, "folder", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def install(monkeypatch, folder):
    """A function that puts a fake CuPy in the place of the real one and clears caches."""

    def install(*devices, **options):
        cupy = Fake(*devices, **options)
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        monkeypatch.setitem(sys.modules, "cupy._core._scalar", None)
        monkeypatch.setattr(compiler, "_functions", {})
        device.facts.cache_clear()
        return cupy

    yield install
    device.facts.cache_clear()


@pytest.fixture
def cupy(install):
    return install(H100, H100)


def raising(error):
    def fail():
        raise error

    return fail


def at_once(count, function):
    """Return the futures of ``count`` threads that call a function at the same moment."""
    ready = threading.Barrier(count)

    def call(_):
        ready.wait(STUCK)
        return function()

    with ThreadPoolExecutor(count) as pool:
        return [pool.submit(call, each) for each in range(count)]


# Source --------------------------------------------------------------------------------------------------------------


def test_macros_become_options():
    assert KERNEL.options() == ("-DINPUT=float", "-DINDEX=long long")
    assert Kernel("a.cu", "a").options() == ()


def test_headers_of_the_folder_are_put_in_once_and_others_stay(folder):
    lines = source.text("add.cu").splitlines()
    assert sum("typedef INDEX Index" in line for line in lines) == 1
    assert sum("twice(INPUT x)" in line for line in lines) == 1
    assert [line for line in lines if "include" in line] == ["#include <cuda_fp16.h>", '  #  include "elsewhere.hpp"']
    assert not any("pragma once" in line for line in lines)
    assert lines.index("typedef INDEX Index;") < lines.index("__device__ INPUT twice(INPUT x) { return x + x; }")


def placed_lines(text):
    """(file, line number, line) of each line of a text, by its #line directives."""
    for line in text.splitlines():
        if line.startswith("#line "):
            _, following, file = line.split(" ", 2)
            number, name = int(following), file.strip('"')
        else:
            yield name, number, line
            number += 1


OWN_FILES = source.files()


@pytest.mark.parametrize("file", OWN_FILES)
def test_every_line_of_the_text_is_the_line_of_the_file_that_its_directive_names(file):
    placed = list(placed_lines(source.text(file)))
    assert len({(name, number) for name, number, _ in placed}) == len(placed)
    for name, number, line in placed:
        original = (source.folder().parent / name).read_text().splitlines()[number - 1]
        assert line in (original, "")
        assert line == original or original.strip().startswith("#pragma once")


@pytest.mark.parametrize("file", OWN_FILES)
def test_the_text_is_the_same_on_every_machine(file):
    text = source.text(file)
    assert str(source.folder().parent) not in text
    assert text.isascii(), "CuPy writes it to a file in the encoding of the system's language"


def test_files_that_include_each_other_end(folder):
    (folder / "types.cuh").write_text('#include "maths.cuh"\n')
    assert source.text("add.cu").count("twice(INPUT x)") == 1


def test_a_file_that_is_not_there_is_named(folder):
    with pytest.raises(FileNotFoundError, match=r"no CUDA kernel file 'sub\.cu' in "):
        source.text("sub.cu")


PLACES = {"wheel": ["package/kernels_cu"], "checkout": ["kernels_cu"], "both": ["package/kernels_cu", "kernels_cu"]}


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
def test_the_folder_is_the_one_in_the_package_or_else_the_one_beside_it(tmp_path, monkeypatch, places):
    for place in places:
        (tmp_path / place).mkdir(parents=True)
    monkeypatch.setattr(source, "__file__", str(tmp_path / "package" / "_gpu" / "source.py"))
    assert source.folder() == (tmp_path / places[0]).resolve()


def test_no_folder_at_all_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "__file__", str(tmp_path / "package" / "_gpu" / "source.py"))
    with pytest.raises(FileNotFoundError, match="kernels are missing") as failure:
        source.folder()
    assert str(tmp_path / "package" / "kernels_cu") in str(failure.value)
    assert str(tmp_path / "kernels_cu") in str(failure.value)


# Compilation ---------------------------------------------------------------------------------------------------------


def test_the_inlined_text_and_the_macros_are_what_nvrtc_gets(cupy):
    compiler.function(KERNEL, 0)
    assert cupy.modules == [(0, source.text("add.cu"), ("--std=c++17", *KERNEL.options()), "nvrtc")]


def test_a_kernel_is_compiled_once_for_each_device(cupy):
    loaded = [compiler.function(KERNEL, index) for index in (0, 1, 0, 1)]
    assert loaded[0] is loaded[2] is not loaded[1] is loaded[3]
    assert [module[0] for module in cupy.modules] == [0, 1]


def test_compiling_for_another_device_leaves_the_current_one(cupy):
    cupy.switch(1)
    assert compiler.function(KERNEL, 0).home == 0
    assert cupy.cuda.runtime.getDevice() == 1
    cupy.while_compiling = raising(CompileException("no"))
    with pytest.raises(RuntimeError):
        compiler.function(OTHER, 0)
    assert cupy.cuda.runtime.getDevice() == 1


def test_threads_that_ask_at_once_compile_once(cupy, monkeypatch):
    asked = threading.Barrier(8, timeout=STUCK)

    class Table(dict):
        def get(self, key):
            found = super().get(key)
            asked.wait()  # all have seen that the kernel is not there
            return found

    monkeypatch.setattr(compiler, "_functions", Table())
    loaded = {id(each.result()) for each in at_once(8, lambda: compiler.function(KERNEL, 0))}
    assert len(loaded) == len(cupy.modules) == 1


def test_different_kernels_compile_side_by_side(cupy):
    together = threading.Barrier(2, timeout=STUCK)
    cupy.while_compiling = together.wait  # fails unless both are compiling at the same time
    with ThreadPoolExecutor(2) as pool:
        assert len(list(pool.map(lambda kernel: compiler.function(kernel, 0), (KERNEL, OTHER)))) == 2


LOG = """kernels_cu/add.cu(1): warning #177-D: variable "x" was declared but never referenced
kernels_cu/maths.cuh(5): error: identifier "INPUT" is undefined
  __device__ INPUT twice(INPUT x) { return x + x; }
             ^

1 error detected in the compilation of "/tmp/some/where.cu".
\x00"""


def test_a_compile_error_says_kernel_architecture_file_line_and_options(cupy):
    cupy.while_compiling = raising(CompileException(LOG))
    with pytest.raises(RuntimeError) as failure:
        compiler.function(KERNEL, 0)
    lines = str(failure.value).splitlines()
    assert lines[0] == "cannot compile kernel add of add.cu for sm_90:"
    assert lines[1] == 'kernels_cu/maths.cuh(5): error: identifier "INPUT" is undefined'
    assert "return x + x" in lines[2]
    assert lines[-1] == "options: --std=c++17 -DINPUT=float '-DINDEX=long long'"


def test_only_the_first_of_many_errors_are_shown(cupy):
    cupy.while_compiling = raising(CompileException("\n".join(f"kernels_cu/add.cu({line}): error: no" for line in range(40))))
    with pytest.raises(RuntimeError) as failure:
        compiler.function(KERNEL, 0)
    assert str(failure.value).count("error: no") == 5
    assert "... 35 more errors" in str(failure.value)


FAILURES = {
    "compiling": (CompileException("nvrtc: error: invalid value for --gpu-architecture"), "cannot compile.*\n.*invalid value"),
    "loading": (
        RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
        "cannot load kernel add of add.cu for sm_90: .*out of memory",
    ),
    "storing": (
        PermissionError(13, "Permission denied", "/home/nobody/.cupy"),
        "cannot store kernel add of add.cu for sm_90: .*'/home/nobody/.cupy'.*CUPY_CACHE_DIR",
    ),
    "interruption": (KeyboardInterrupt(), "^$"),
}


@pytest.mark.parametrize(("error", "said"), FAILURES.values(), ids=FAILURES)
def test_a_failure_is_not_kept_and_the_next_call_works(cupy, error, said):
    cupy.while_compiling = raising(error)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else RuntimeError, match=said):
        compiler.function(KERNEL, 0)
    cupy.while_compiling = lambda: None
    assert compiler.function(KERNEL, 0).entry == "add"


def test_threads_that_wait_for_a_kernel_that_fails_all_get_the_error(cupy):
    def fail():
        threading.Event().wait(0.05)
        raise CompileException("no")

    cupy.while_compiling = fail
    for each in at_once(4, lambda: compiler.function(KERNEL, 0)):
        assert "cannot compile" in str(each.exception())


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_of_the_thread_that_compiles_stays_in_it_and_a_thread_that_waits_compiles_instead(cupy, interrupt):
    begun, waiting = threading.Event(), threading.Event()

    def interrupted():
        cupy.while_compiling = lambda: None
        begun.set()
        assert waiting.wait(STUCK)
        raise interrupt

    class Watched(compiler.Future):
        def result(self):
            waiting.set()
            return super().result()

    cupy.while_compiling = interrupted
    with pytest.MonkeyPatch.context() as patched, ThreadPoolExecutor(4) as pool:
        patched.setattr(compiler, "Future", Watched)
        first = pool.submit(compiler.function, KERNEL, 0)
        assert begun.wait(STUCK)
        others = [pool.submit(compiler.function, KERNEL, 0) for _ in range(3)]
        assert type(first.exception(STUCK)) is interrupt
        assert len({id(other.result(STUCK)) for other in others}) == 1


def test_control_c_at_any_place_leaves_no_kernel_that_nobody_compiles(cupy):
    interrupted = 0
    for _ in interrupted_everywhere(lambda: compiler.function(KERNEL, 0), compiler):
        interrupted += 1
        assert all(entry.done() for entry in compiler._functions.values())
        compiler._functions.clear()
    assert interrupted > 10


def test_shared_memory_beyond_48_kib_is_opted_in_to_and_never_taken_back(cupy):
    for size in (0, 1024, 48 * 1024, 100_000, 60_000, 100_000, 120_000):
        compiler.function(KERNEL, 1, size)
    assert cupy.opted_in == [100_000, 120_000]
    assert len(cupy.modules) == 1
    assert cupy.cuda.runtime.getDevice() == 0


def test_static_shared_memory_counts_too(install):
    cupy = install(H100, static_shared=1000)
    compiler.function(KERNEL, 0, 48 * 1024 - 1000)
    assert cupy.opted_in == []
    compiler.function(KERNEL, 0, 227 * 1024 - 1000)
    assert cupy.opted_in == [227 * 1024 - 1000]


def test_too_little_shared_memory_names_what_is_needed_and_what_there_is(install):
    cupy = install(H100, static_shared=1000)
    with pytest.raises(RuntimeError) as failure:
        compiler.function(KERNEL, 0, 232_000)
    expected = "kernel add of add.cu needs 233000 bytes of shared memory in a block, device 0 (NVIDIA H100) has 232448"
    assert str(failure.value) == expected
    compiler.function(KERNEL, 0, 100_000)
    assert cupy.opted_in == [100_000]


# Launches ------------------------------------------------------------------------------------------------------------


def test_a_launch_passes_on_grid_block_shared_memory_pointers_and_scalars(cupy):
    scalars = (np.int32(7), np.float32(0.5))
    launcher.bind(KERNEL, 0, 10, 256, 4096, scalars)((1 << 40, 2 << 40))
    launched = (0, "default stream of 0", "add", (10, 1, 1), (256, 1, 1), (1 << 40, 2 << 40, *scalars), 4096)
    assert cupy.launches == [launched]


def test_a_grid_and_its_blocks_may_have_three_axes(cupy):
    launcher.bind(KERNEL, 0, (10, 65535, 3), (8, 4, 2), 0)(())
    ((_, _, _, grid, block, _, _),) = cupy.launches
    assert (grid, block) == ((10, 65535, 3), (8, 4, 2))


def test_a_launch_may_ask_for_more_than_48_kib_of_shared_memory(cupy):
    launch, other = launcher.bind(KERNEL, 1, 1, 32, 200_000), launcher.bind(KERNEL, 1, 1, 32, 100_000)
    other(())
    launch(())
    assert [launched[-1] for launched in cupy.launches] == [100_000, 200_000]


def test_the_current_stream_is_asked_for_at_every_launch(cupy):
    launch = launcher.bind(KERNEL, 1, 1, 32, 0)
    for stream in ("a", "b", "a"):
        cupy.streams[1] = stream
        launch(())
    assert [launched[1] for launched in cupy.launches] == ["a", "b", "a"]


def test_a_launch_makes_its_device_current_and_the_one_before_it_again(cupy):
    launch = launcher.bind(KERNEL, 1, 1, 32, 0)
    cupy.switches.clear()
    launch(())
    assert cupy.launches[0][0] == 1
    assert cupy.switches == [1, 0]


def test_on_the_current_device_nothing_is_switched(cupy):
    launch = launcher.bind(KERNEL, 0, 1, 32, 0)
    cupy.switches.clear()
    launch(())
    assert cupy.switches == []


def test_binding_compiles_and_launches_do_not(cupy):
    launch = launcher.bind(KERNEL, 0, 1, 32, 0)
    assert len(cupy.modules) == 1
    launch(())
    launch(())
    assert len(cupy.modules) == 1


def test_a_refused_launch_says_what_it_was_restores_the_device_and_the_next_one_works(cupy):
    launch = launcher.bind(KERNEL, 1, 12, 2048, 64)
    cupy.while_launching = raising(RuntimeError("CUDA_ERROR_INVALID_VALUE: invalid argument"))
    with pytest.raises(RuntimeError) as failure:
        launch(())
    size = "grid 12, block 2048, 64 bytes of dynamic shared memory"
    assert str(failure.value) == (
        f"cannot launch kernel add of add.cu on device 1 ({size}): CUDA_ERROR_INVALID_VALUE: invalid argument"
    )
    assert cupy.cuda.runtime.getDevice() == 0
    cupy.while_launching = lambda: None
    launch(())
    assert len(cupy.launches) == 1


def test_a_launch_that_would_end_a_capture_says_what_to_do(cupy):
    launch = launcher.bind(KERNEL, 0, 1, 32, 0)
    cupy.while_launching = raising(CAPTURE_IMPLICIT)
    with pytest.raises(RuntimeError, match=r"depend on a capturing blocking stream.*capture a non-blocking stream"):
        launch(())


FIRST_CALL = r"not permitted when stream is capturing.*make one such call before the capture begins"


def test_a_kernel_that_a_capture_forbids_to_load_says_what_to_do_and_the_next_call_works(cupy):
    cupy.while_compiling = raising(CAPTURE_UNSUPPORTED)
    with pytest.raises(RuntimeError, match=f"cannot load kernel add of add.cu for sm_90: .*{FIRST_CALL}"):
        compiler.function(KERNEL, 0)
    cupy.while_compiling = lambda: None
    assert compiler.function(KERNEL, 0).entry == "add"


def test_a_launch_that_a_capture_does_not_permit_says_what_to_do(cupy):
    launch = launcher.bind(KERNEL, 0, 1, 32, 0)
    cupy.while_launching = raising(CAPTURE_UNSUPPORTED)
    with pytest.raises(RuntimeError, match=f"cannot launch kernel add of add.cu on device 0 .*{FIRST_CALL}"):
        launch(())


def test_a_workspace_beside_a_capture_is_refused_with_what_to_do_before_anything_is_launched(cupy, monkeypatch):
    monkeypatch.setattr(Stream, "is_capturing", lambda self: raising(CAPTURE_IMPLICIT)())
    with pytest.raises(RuntimeError, match=r"depend on a capturing blocking stream.*capture a non-blocking stream"):
        plan.allocate_from_cupy(1024)


def test_other_errors_of_a_stream_are_passed_on(cupy, monkeypatch):
    monkeypatch.setattr(Stream, "is_capturing", lambda self: raising(CUDAError(700, "illegal address"))())
    with pytest.raises(CUDAError, match=r"^illegal address$"):
        plan.allocate_from_cupy(1024)


@pytest.mark.parametrize(
    ("grid", "block"), [(0, 32), (-1, 32), (2**31, 32), (1, 0), ((1, 65536, 1), 32), ((1, 1, 0), 32), (1, (8, 0, 1))]
)
def test_what_cupy_would_launch_as_something_else_is_refused(cupy, grid, block):
    with pytest.raises(ValueError, match=re.escape(f"grid={grid}, block={block}")):
        launcher.bind(KERNEL, 0, grid, block, 0)
    assert cupy.modules == []


def test_launches_of_several_threads_keep_to_their_devices(cupy):
    launches = [launcher.bind(KERNEL, index, 1, 32, 0) for index in (0, 1)]

    def work(thread):
        cupy.switch(thread % 2)
        for _ in range(50):
            launches[0](())
            launches[1](())
        return cupy.cuda.runtime.getDevice()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [0, 1, 0, 1]
    assert len(cupy.launches) == 400


def test_prepared_scalars_are_what_cupy_makes_of_them_itself():
    function = pytest.importorskip("cupy").cuda.function
    scalars = (np.int32(-7), np.int64(1 << 40), np.float32(0.1), np.float64(0.1))
    prepared = launcher._prepared(scalars)
    assert [(each.dtype, each.value) for each in prepared] == [(each.dtype, each) for each in scalars]
    assert all(isinstance(each, function.CPointer) for each in prepared), "what CuPy's launch passes on as it is"


# Facts ---------------------------------------------------------------------------------------------------------------


def test_facts_are_the_drivers_and_the_programming_guides(cupy):
    found = device.facts(1)
    assert (found.index, found.name, found.compute_capability, found.architecture) == (1, "NVIDIA H100", (9, 0), "sm_90")
    assert (found.multiprocessors, found.memory, found.shared_memory) == (132, 80 * 2**30, 227 * 2**10)
    # The data sheet of the SXM5 board: 3.35 TB/s, 67 and 34 Tflop/s.
    assert found.bandwidth == pytest.approx(3.352e12, rel=1e-3)
    assert found.float32_rate == pytest.approx(66.9e12, rel=1e-3)
    assert found.float64_rate == pytest.approx(33.45e12, rel=1e-3)
    assert hash(found) == hash(device.facts(1))


def changed(capability=(9, 0), **attributes):
    major, minor = capability
    kept = {name: value for name, value in {**H100["attributes"], **attributes}.items() if value is not None}
    return {"properties": {**H100["properties"], "major": major, "minor": minor}, "attributes": kept}


def test_what_the_driver_does_not_tell_is_not_made_up(install):
    install(changed(ClockRate=None, MemoryClockRate=0, MaxSharedMemoryPerBlockOptin=None))
    found = device.facts(0)
    assert (found.bandwidth, found.float32_rate, found.float64_rate) == (None, None, None)
    assert found.shared_memory == 48 * 2**10


CAPABILITIES = {"turing": ((7, 5), 64, 2), "ampere": ((8, 0), 64, 32), "ada": ((8, 9), 128, 2), "unknown": ((13, 7), 128, 64)}


@pytest.mark.parametrize(("capability", "float32", "float64"), CAPABILITIES.values(), ids=CAPABILITIES)
def test_rates_follow_the_compute_capability(install, capability, float32, float64):
    install(changed(capability))
    found = device.facts(0)
    begun = 132 * 1.98e9
    assert found.float32_rate == pytest.approx(2 * float32 * begun)
    assert found.float64_rate == pytest.approx(2 * float64 * begun)


# Multiply-adds that a multiprocessor's tensor cores begin per clock: of float16, bfloat16, and float32 as TF32.
TENSOR_CORES = {
    "volta": ((7, 0), None, None, None),
    "turing": ((7, 5), 256, None, None),
    "ampere": ((8, 0), 1024, 1024, 512),
    "ampere at home": ((8, 6), 512, 512, 256),
    "hopper": ((9, 0), 1024, 1024, 512),
    "blackwell": ((10, 0), 1024, 1024, 512),
    "blackwell at home": ((12, 0), 512, 512, 256),
    "unknown": ((13, 7), 512, 512, 256),
}


@pytest.mark.parametrize(("capability", "float16", "bfloat16", "float32"), TENSOR_CORES.values(), ids=TENSOR_CORES)
def test_tensor_cores_follow_the_compute_capability(install, capability, float16, bfloat16, float32):
    install(changed(capability))
    found = device.facts(0)
    begun = 132 * 1.98e9
    for dtype, lanes in {"float16": float16, "bfloat16": bfloat16, "float32": float32, "float64": None}.items():
        assert found.has_matrix_product(dtype) == (lanes is not None)
        assert found.matrix_rate(dtype) == (lanes and pytest.approx(2 * lanes * begun))


def test_tensor_cores_without_a_clock_have_no_rate(install):
    install(changed(ClockRate=None))
    found = device.facts(0)
    assert found.has_matrix_product("float16")
    assert found.matrix_rate("float16") is None


def test_facts_are_asked_once(cupy):
    first = device.facts(0)
    cupy.devices = ()
    assert device.facts(0) is first


def test_versions_are_written_as_cuda_writes_them(cupy):
    assert device.versions() == ("13.0", "12.9")


# What is missing -----------------------------------------------------------------------------------------------------

ASKED = {
    "function": lambda: compiler.function(KERNEL, 0),
    "bind": lambda: launcher.bind(KERNEL, 0, 1, 32, 0),
    "facts": lambda: device.facts(0),
    "count": device.count,
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_without_cupy_the_pip_command_is_named(install, monkeypatch, ask):
    install()
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match=r'pip install "cupycorr\[cuda12\]".*cupycorr\[cuda13\]'):
        ask()


@pytest.fixture
def failing_import(install, monkeypatch):
    """A function that lets every import of CuPy raise an error."""

    def fail(error):
        class Finder:
            def find_spec(self, name, *_):
                if name == "cupy":
                    raise error

        install()
        monkeypatch.delitem(sys.modules, "cupy")
        monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])

    return fail


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_cupy_that_cannot_make_its_folder_is_told_with_the_variable(failing_import, ask):
    failing_import(PermissionError(13, "Permission denied", "/home/nobody/.cupy"))
    with pytest.raises(ImportError, match=r"Permission denied: '/home/nobody/.cupy'\).*CUPY_CACHE_DIR"):
        ask()


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_library_of_cupy_that_cannot_be_loaded_is_told_with_the_pip_command(failing_import, ask):
    failing_import(OSError("libcudart.so.12: cannot open shared object file"))
    with pytest.raises(ImportError, match=r'libcudart\.so\.12: cannot open.*pip install "cupycorr\[cuda12\]"') as failure:
        ask()
    assert "CUPY_CACHE_DIR" not in str(failure.value)


@pytest.mark.skipif(find_spec("cupy") is None, reason="CuPy is not installed")
def test_the_real_cupy_that_cannot_make_its_folder_is_told_with_the_variable(tmp_path):
    (tmp_path / "file").touch()
    told = python(
        """
        from cupycorr._gpu import device

        try:
            device.import_cupy()
        except ImportError as error:
            print(error)
        """,
        CUPY_CACHE_DIR=str(tmp_path / "file" / "folder"),
    )
    assert "this needs CuPy, which cannot be imported" in told
    assert "CUPY_CACHE_DIR" in told


REFUSED_VERSIONS = {
    "13.6.0": "too old",
    "9.99": "too old",
    "14.0.0": "too old",
    "14.0.1rc1": "too old",
    "14.0.1.dev5": "too old",
    "14.1.0": "known not to work",
    "14.1.0+local": "known not to work",
}


@pytest.mark.parametrize(("version", "why"), REFUSED_VERSIONS.items())
@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_cupy_that_pip_would_not_install_is_refused_with_the_pip_command(cupy, ask, version, why):
    cupy.__version__ = version
    with pytest.raises(ImportError) as failure:
        ask()
    told = f'this needs CuPy 14.0.1 or later, got CuPy {version}, which is {why}: pip install "cupycorr[cuda12]"'
    assert str(failure.value).startswith(told)
    assert cupy.modules == []


@pytest.mark.parametrize(
    "version", ["14.0.1", "14.0.2", "14.1.1", "14.1.1rc1", "14.2.0", "15.0.0a1", "15.0", "100.0.0", "unknown"]
)
def test_every_other_cupy_is_taken(cupy, version):
    cupy.__version__ = version
    assert device.import_cupy() is cupy


def test_the_refused_versions_are_those_of_the_requirements():
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(ROOT / "setup.cfg")
    every = [line.partition(";")[0] for extra in setup["options.extras_require"].values() for line in extra.split()]
    lines = [line for line in every if line.startswith("cupy-")]
    bounds = ",".join([f">={device.CUPY_OLDEST}", *(f"!={version}" for version in device.CUPY_REFUSED)])
    assert len(lines) >= 3
    assert all(line.partition("[ctk]")[2] == bounds or line.endswith(f"x{bounds}") for line in lines)


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_without_a_device_it_is_said_that_there_is_none(install, ask):
    install()
    with pytest.raises(RuntimeError, match=r"no CUDA driver with a device \(cudaErrorNoDevice"):
        ask()


def test_a_device_that_is_not_there_is_named(cupy):
    for index in (-1, 2):
        with pytest.raises(RuntimeError, match=f"no CUDA device {index}, only 2 of them"):
            compiler.function(KERNEL, index)
    assert compiler.function(KERNEL, 1).home == 1


# NVRTC ---------------------------------------------------------------------------------------------------------------


@nvrtc.needed
def test_an_error_in_a_header_names_the_header_and_its_line(folder):
    (folder / "maths.cuh").write_text(FILES["maths.cuh"].replace("x + x", "x + y"))
    with pytest.raises(RuntimeError) as failure:
        compiler.cubin(Kernel("add.cu", "add", (("INPUT", "float"), ("INDEX", "int"))), "sm_80")
    lines = str(failure.value).splitlines()
    assert lines[0] == "cannot compile kernel add of add.cu for sm_80:"
    assert lines[1] == 'kernels_cu/maths.cuh(5): error: identifier "y" is undefined'


@nvrtc.needed
def test_an_error_after_a_header_names_the_files_own_line(folder):
    (folder / "add.cu").write_text('#include "maths.cuh"\n#include "types.cuh"\n\nsurely not\n')
    with pytest.raises(RuntimeError, match=r"kernels_cu/add\.cu\(4\): error"):
        compiler.cubin(KERNEL, "sm_80")


@nvrtc.needed
def test_cuda_headers_are_found(folder):
    (folder / "add.cu").write_text(FILES["add.cu"].replace('  #  include "elsewhere.hpp"\n', ""))
    binary, log = compiler.cubin(KERNEL, "sm_80", "--ptxas-options=-v")
    assert binary.startswith(b"\x7fELF")
    assert "entry function 'add' for 'sm_80'" in log
    assert "atom" not in compiler.ptx(KERNEL, "sm_80")
    assert ".visible .entry add(" in compiler.ptx(KERNEL, "sm_80")


@nvrtc.needed
def test_without_a_device_the_options_are_those_that_cupy_adds_on_one(folder, monkeypatch):
    from cupy._core import core
    from cupy.cuda import compiler as of_cupy

    seen = []

    class Program:
        def __init__(self, text, *_, method="ptx", **__):
            self.text, self.method = text, method

        def compile(self, options, log=None):
            if "add" in self.text:  # CuPy also compiles nothing at all, to learn the compiler's version
                seen.append((self.method, tuple(options)))
                raise of_cupy.CompileException("seen", self.text, "", options)
            return b"", None

    monkeypatch.setattr(of_cupy, "_NVRTCProgram", Program)
    monkeypatch.setattr(of_cupy, "_get_arch", lambda: "90")
    monkeypatch.setattr(of_cupy, "_get_arch_for_options_for_nvrtc", of_cupy._get_arch_for_options_for_nvrtc.__wrapped__)
    never_cached = f"{source.text('add.cu')}// {uuid.uuid4()}"
    with pytest.raises(of_cupy.CompileException):
        core.compile_with_cache(never_cached, ("--std=c++17", *KERNEL.options()), prepend_cupy_headers=False)
    with pytest.raises(RuntimeError):
        compiler.cubin(KERNEL, "sm_90")
    on_a_device, without = seen
    assert without == on_a_device
