"""Calls at the end of a program, in forked children, and where no thread can be started or no memory become executable."""

import sys
from functools import lru_cache

import llvmlite.binding
import numpy as np
import pytest
from processes import needs_fork, python

import cupycorr
from cupycorr import _dispatch, cli
from cupycorr._cpu import register_tile

CALLS = """
import atexit, hashlib, sys, threading
import numpy as np
import cupycorr
from cupycorr._cpu import workers

x1, x2 = np.random.default_rng(0).standard_normal((2, 2, 64, 48, 96), np.float32)
frame1, frame2 = np.random.default_rng(2).random((2, 120, 160))
team = workers.team_of(3)
team.__enter__()

def gradients(variant):
    g = np.random.default_rng(1).standard_normal((2, 9, 9, 48, 96), np.float32)
    return cupycorr.spatial_correlation_sample_vjp(g, x1, x2, patch_size=9, variant=variant)

def matched():
    field = cupycorr.match(frame1, frame2, window=7)
    return [field.dx, field.score]

WORK = {
    "forward simd": lambda: [cupycorr.spatial_correlation_sample(x1, x2, patch_size=9, variant="simd")],
    "forward blas": lambda: [cupycorr.spatial_correlation_sample(x1, x2, patch_size=9, variant="blas")],
    "vjp simd": lambda: gradients("simd"),
    "vjp blas": lambda: gradients("blas"),
    "match": matched,
}

def digests():
    for name, work in WORK.items():
        found = hashlib.sha256()
        for array in work():
            found.update(np.ascontiguousarray(array).tobytes())
        print(name, found.hexdigest(), flush=True)
"""

TORCH = """
import torch
from cupycorr.torch import spatial_correlation_sample

def through_torch():
    a, b = (torch.from_numpy(x).requires_grad_() for x in (x1, x2))
    out = spatial_correlation_sample(a, b, patch_size=9)
    out.square().sum().backward()
    return [out.detach().numpy(), a.grad.numpy(), b.grad.numpy()]

WORK = {"torch": through_torch}
"""

ENDS = {
    "a thread that outlives the main thread": """
def late():
    threading.main_thread().join()
    digests()

threading.Thread(target=late).start()
""",
    "a function of atexit": "atexit.register(digests)",
    "a thread and a function of atexit": """
def late():
    threading.main_thread().join()
    digests()

threading.Thread(target=late).start()
atexit.register(lambda: [work() for work in WORK.values()])
""",
    "a process that cannot start a thread": """
import resource

threading.stack_size(2**30)
workers._forget_helpers()
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**29,) * 2)
try:
    threading.Thread(target=print).start()
    sys.exit("a thread can be started: this shows nothing")
except RuntimeError:
    digests()
""",
}
FIRST = {"after a first call": "[work() for work in WORK.values()]\n", "as the first call": ""}
FRONT_ENDS = {"NumPy": CALLS, "torch": CALLS + TORCH}


@lru_cache
def digests(front_end):
    """Return the digests of every call in the main thread of a program that is not ending."""
    return python(FRONT_ENDS[front_end] + "digests()")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the programs know Linux")
@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST.keys())
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_calls_compute_the_same_bits_at_the_end_of_a_program_and_where_no_thread_can_be_started(end, first, front_end):
    if front_end == "torch" and first:
        pytest.skip("tried with NumPy; importing torch takes long")
    # BLAS and torch start threads of their own, which they do not do without.
    program = FRONT_ENDS[front_end] + first + end
    assert python(program, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1") == digests(front_end)


# Forks ---------------------------------------------------------------------------------------------------------------

CHILDREN = """
    import os, sys, threading, time
    import numpy as np
    from cupycorr import spatial_correlation_sample, spatial_correlation_sample_vjp
    from cupycorr._cpu import blas_limits, register_tile, workers

    team = workers.team_of(2)
    team.__enter__()
    x1, x2 = np.random.default_rng(0).integers(-4, 5, (2, 1, 16, 20, 40)).astype(np.float32)

    def call():
        out = spatial_correlation_sample(x1, x2, patch_size=5, variant=VARIANT)
        gradients = spatial_correlation_sample_vjp(out, x1, x2, patch_size=5, variant=VARIANT)
        return b"".join(array.tobytes() for array in (out, *gradients))

    VARIANT = "blas"
    wanted = call()  # whole numbers: sums are exact, in any order
    stop = threading.Event()
    BUSY
    thread = threading.Thread(target=busy)
    thread.start()
    statuses = []
    for VARIANT in CHILDREN:
        child = os.fork()
        if not child:
            os._exit(0 if call() == wanted else 1)
        limit = time.monotonic() + 120
        ended, status = 0, None
        while not ended:
            ended, status = os.waitpid(child, os.WNOHANG)
            if not ended and time.monotonic() > limit:
                os.kill(child, 9)
                os.waitpid(child, 0)
                status = "stuck"
                break
            time.sleep(0.001)
        statuses.append({0: "right", "stuck": "stuck"}.get(status, "wrong"))
        if status:
            break
    stop.set()
    thread.join()
    print(*sorted(set(statuses)))
"""

WARM = """
    VARIANT = "simd"
    call()
    CHILDREN = ("simd", "blas") * 15
"""
COLD = """
    CHILDREN = ["simd"] * 10
"""

BUSY = {
    "compiles": COLD
    + """
    def busy():
        while not stop.is_set():
            with register_tile._lock:
                register_tile._compiled.cache_clear()
            for width in range(1, 7):
                register_tile.kernel(1, width, np.float32)
    """,
    "compiles for the first time, imports included": COLD
    + """
    def busy():
        register_tile.kernel(1, 1, np.float32)
        spatial_correlation_sample(x1, x2, patch_size=5, variant="simd")
    """,
    "takes scratch memory and shares work": WARM
    + """
    def busy():
        def task(item):
            with workers.scratch((1000,), np.dtype(np.float32)):
                pass

        while not stop.is_set():
            workers.run(task, range(50), 3)
    """,
    "holds BLAS": WARM
    + """
    def busy():
        while not stop.is_set():
            blas_limits.with_one_blas_thread(int)
    """,
}


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize("busy", BUSY.values(), ids=BUSY.keys())
def test_children_that_are_forked_while_a_thread_works_compute_the_right_values(busy):
    assert python(CHILDREN.replace("BUSY\n", busy.strip("\n ") + "\n")) == "right"


def test_kernels_can_be_dropped_one_after_the_other():
    program = """
        import gc
        import numpy as np
        from cupycorr._cpu import register_tile

        kernels = [register_tile.kernel(1, width, np.float32) for width in (1, 2, 3)]
        register_tile._compiled.cache_clear()
        while kernels:
            kernels.pop()
            gc.collect()
        print("alive")
    """
    assert python(program) == "alive"


# No executable memory ------------------------------------------------------------------------------------------------

WHY = "this system does not let memory become executable, so code that LLVM compiles cannot run"


@pytest.fixture
def no_execution(monkeypatch):
    """Make llvmlite find that memory cannot become executable on this system."""

    def refuse():
        raise OSError(13, "cannot allocate executable memory")

    monkeypatch.setattr(llvmlite.binding, "check_jit_execution", refuse)
    _dispatch._planned.cache_clear()
    yield
    _dispatch._planned.cache_clear()


def test_where_memory_cannot_become_executable_blas_answers_and_simd_says_why(no_execution):
    x = np.ones((1, 64, 48, 64), np.float32)
    assert register_tile.why_not() == WHY
    told = cupycorr.explain(x, x, patch_size=9)
    assert told.variant == "blas"
    assert f"not run    simd: {WHY}" in str(told)
    assert cupycorr.spatial_correlation_sample(x, x, patch_size=9)[0, 4, 4, 3, 3] == 64
    with pytest.raises(NotImplementedError, match=f"simd: {WHY}"):
        cupycorr.spatial_correlation_sample(x, x, patch_size=3, variant="simd")


def test_info_says_why_simd_cannot_run(no_execution, capsys):
    assert cli.main(["info", "--verbose"]) == 0
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert ["variant", "simd", f"spatial_correlation_sample, NumPy arrays: {WHY}"] in lines


def test_no_kernel_is_compiled_once_memory_cannot_become_executable(no_execution):
    with pytest.raises(NotImplementedError, match=WHY):
        register_tile._compiled.__wrapped__(1, 1, 4)


DENIED = """
    import ctypes
    import numpy as np
    from cupycorr import explain, match, spatial_correlation_sample, spatial_correlation_sample_vjp

    PR_SET_MDWE = 65
    if ctypes.CDLL(None).prctl(PR_SET_MDWE, 1, 0, 0, 0):
        raise SystemExit("the kernel knows no such denial")
    x1, x2 = np.random.default_rng(0).integers(-4, 5, (2, 1, 16, 20, 40)).astype(np.float32)
    results = [spatial_correlation_sample(x1, x2, patch_size=5, variant=variant) for variant in ("auto", "reference")]
    gradients = [spatial_correlation_sample_vjp(results[0], x1, x2, patch_size=5, variant=v) for v in ("auto", "reference")]
    match(x1[0, 0], x2[0, 0], window=5)
    same = np.array_equal(*results) and all(map(np.array_equal, *gradients))
    print(same, explain(x1, x2, patch_size=5).reasons["simd"], sep="; ")
"""


def denies():
    """Return whether this Linux kernel can deny executable memory to a process."""
    program = "import ctypes; print(ctypes.CDLL(None).prctl(65, 1, 0, 0, 0))"
    return sys.platform == "linux" and python(program) == "0"


def test_a_process_that_is_denied_executable_memory_computes_through_blas():
    if not denies():
        pytest.skip("this kernel cannot deny a process executable memory")
    assert python(DENIED) == f"True; {WHY}"
