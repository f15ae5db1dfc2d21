"""Faults put into the path from an array to its kernels, one at a time: with each of them a device test must fail.

Each row is one change of one file of the package, and the device tests that should notice it. The tests run on the software CUDA,
in a process of their own and on a copy of the checkout with the fault in it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from waiting import STUCK

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("cupycorr", "kernels_cu", "tests", "benchmarks", "setup.cfg", "pyproject.toml", "README.md")
FAILED = 1  # the exit code of pytest where tests ran and some failed
DEVICES = "H200,H200"

ARRAYS, HOST = "tests/correlation/test_gpu.py", "tests/correlation/test_gpu_host_path.py"
TENSORS = "tests/torch/test_torch_gpu_path.py"


class Mutant(NamedTuple):
    """One change of one file: ``before``, which must occur once, becomes ``after``."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]  # as on pytest's command line

    def applied(self, text: str) -> str:
        """Return the text of the file with the fault in it.

        Raises
        ------
        ValueError
            The text to change occurs never or more than once.
        """
        found = text.count(self.before)
        if found != 1:
            raise ValueError(f"{self.file}: {self.name}: {self.before!r} must occur once, occurs {found} times")
        return text.replace(self.before, self.after)


# fmt: off
MUTANTS = (
    Mutant(
        "every launch goes to the null stream", "cupycorr/_gpu/launcher.py",
        "start(blocks, threads, arguments + constants, shared, stream)",
        "start(blocks, threads, arguments + constants, shared, devices.import_cupy().cuda.Stream.null)",
        (HOST, "-k", "nothing_of_a_call_is_on_the_default_stream and direct")),
    Mutant(
        "the workspace is not kept for the replays of a graph", "cupycorr/_gpu/plan.py",
        "    _captured.append(array)",
        "    pass",
        (HOST, "-k", "replays_write_to_no_memory and windows")),
    Mutant(
        "no kernel is allowed more than 48 KiB of shared memory", "cupycorr/_gpu/compiler.py",
        "        loaded.max_dynamic_shared_size_bytes = shared",
        "        return",
        (HOST, "-k", "more_shared_memory")),
    Mutant(
        "a block has half of its threads", "cupycorr/_gpu/launcher.py",
        "(block, 1, 1)",
        "(block // 2, 1, 1)",
        (ARRAYS, "-k", "named_cases and pwcnet and float32-tiled")),
    Mutant(
        "the device of the arrays is not made the current one", "cupycorr/_gpu/launcher.py",
        "            make_current(device)",
        "            pass",
        (HOST, "-k", "a_plan_runs_on_its_device and direct")),
    Mutant(
        "a scalar of 64 bits has 32", "cupycorr/_gpu/call.py",
        '"Sum": accumulator.type',
        '"Sum": np.float32',
        (HOST, "-k", "float64_scale and direct")),
    Mutant(
        "asynchronous copies are not waited for", "kernels_cu/common/platform.cuh",
        'asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");',
        'asm volatile("" ::"n"(pending) : "memory");',
        (ARRAYS, "-k", "named_cases and pwcnet and tiled")),
    Mutant(
        "the workspace is freed before the launches", "cupycorr/_gpu/plan.py",
        "        buffers[WORKSPACE], keeper = allocate(plan.workspace)",
        "        buffers[WORKSPACE] = allocate(plan.workspace)[0]",
        (HOST, "-k", "workspace_is_not_freed and windows")),
    Mutant(
        "the layouts of the inputs are exchanged", "cupycorr/_correlation/api.py",
        'layout("input1", input1), layout("input2", input2), output',
        'layout("input2", input2), layout("input1", input1), output',
        (HOST, "-k", "its_own_strides and direct-rows")),
    Mutant(
        "arrays of other libraries are taken without a stream", "cupycorr/_arrays.py",
        "import_cupy().from_dlpack(array)",
        "import_cupy().fromDlpack(array.__dlpack__())",
        (HOST, "-k", "arrays_of_another_library and direct")),
    Mutant(
        "tensors are launched on CuPy's stream instead of torch's", "cupycorr/torch/_tensors.py",
        "gpu.run(plan, addresses, allocate, Stream(current_stream(like.device.index)))",
        "gpu.run(plan, addresses, allocate)",
        (TENSORS, "-k", "stream_that_torch_is_on")),
    Mutant(
        "torch's workspace is freed before the launches", "cupycorr/torch/_tensors.py",
        "        return address(gpu.WORKSPACE, memory), memory",
        "        return address(gpu.WORKSPACE, memory), None",
        (TENSORS, "-k", "oracles_values and box")),
)
# fmt: on


def attempt(mutant: Mutant | None, folder: Path, tests: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run device tests in a copy of the checkout with a fault in it, or with none."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    if mutant is not None:
        file = folder / mutant.file
        file.write_text(mutant.applied(file.read_text("utf-8")), "utf-8")
    command = (sys.executable, "-m", "pytest", f"--software-cuda={DEVICES}", "-q", "-x", "-p", "no:cacheprovider", "-m", "gpu")
    return subprocess.run((*command, *tests), cwd=folder, capture_output=True, text=True, timeout=STUCK)
