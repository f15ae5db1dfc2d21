"""The gate that kernels must pass: they compile without a warning, a spill or a stack frame, and within their registers.

NVRTC compiles, which needs no GPU, with the options that CuPy passes on a device (`test_cuda.py` compares them with CuPy's).
"""

import os
import re
from concurrent.futures import ThreadPoolExecutor

import nvrtc

from cupycorr._gpu import compiler

ARCHITECTURES = nvrtc.architectures()
EVERY = os.environ.get("CUPYCORR_EVERY_BUILD") == "1"
ALWAYS = "sm_90"  # the architecture of the sample of the default run
SAMPLE = 16  # the default run compiles every sixteenth build

# NVRTC's warning about an architecture, not about a kernel.
DEPRECATED = re.compile(r"nvrtc: warning: Architectures prior to .* are deprecated.*")


def side_by_side(function, arguments):
    """Map a function over arguments in threads: NVRTC releases Python's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, arguments))


def complaints(kernel, architecture, ceiling=None):
    """Return what is wrong with a kernel's binary according to the logs of the compiler and the assembler."""
    try:
        _, log = compiler.cubin(kernel, architecture, "--ptxas-options=-v")
    except RuntimeError as error:
        return [str(error)]
    found = [line for line in log.splitlines() if re.search("warning|error", line, re.IGNORECASE) and not DEPRECATED.search(line)]
    if f"Compiling entry function '{kernel.entry}' for '{architecture}'" not in log:
        found.append(f"no entry point {kernel.entry}")
    memory = [(int(size), what) for size, what in re.findall(r"(\d+) bytes (stack frame|spill stores|spill loads)", log)]
    found += [f"{size} bytes {what}" for size, what in memory if size]
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", log)]
    found += [f"{number} registers, not more than {ceiling} wanted" for number in registers if ceiling and number > ceiling]
    if len(memory) != 3 or len(registers) != 1:
        found.append(f"the log is not understood: {log}")
    return found


def assert_compile(builds, architecture, ceiling):
    """Check builds, which have names, for an architecture; a thread may have so many registers."""
    found = side_by_side(lambda kernel: complaints(kernel, architecture, ceiling), builds.values())
    wrong = {name: each for name, each in zip(builds, found, strict=True) if each}
    assert not wrong, "\n".join(f"{name} for {architecture}: {'; '.join(each)}" for name, each in wrong.items())
