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
        "blocks, threads = _three(grid), _three(block)",
        "blocks, threads = _three(grid), _three(block // 2)",
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
        "        workspace, keeper = allocate(plan.workspace)",
        "        workspace = allocate(plan.workspace)[0]",
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
        "gpu.run(plan, addresses(tensors), allocate, stream_at(current_stream(plan.device)))",
        "gpu.run(plan, addresses(tensors), allocate)",
        (TENSORS, "-k", "stream_that_torch_is_on")),
    Mutant(
        "torch's workspace is freed before the launches", "cupycorr/torch/_tensors.py",
        "        return addresses((memory,))[0], memory",
        "        return addresses((memory,))[0], None",
        (TENSORS, "-k", "oracles_values and box")),
    Mutant(
        "strides are not in the key of a call", "cupycorr/_repeats.py",
        "(x.shape, x.strides, x.dtype, x.data.device_id)",
        "(x.shape, x.dtype, x.data.device_id)",
        (HOST, "-k", "differs_in_one_thing and channels")),
    Mutant(
        "dtypes are not in the key of a call", "cupycorr/_repeats.py",
        "(x.shape, x.strides, x.dtype, x.data.device_id)",
        "(x.shape, x.data.device_id)",
        (HOST, "-k", "differs_in_one_thing and float64")),
    Mutant(
        "devices are not in the key of a call", "cupycorr/_repeats.py",
        "(x.shape, x.strides, x.dtype, x.data.device_id)",
        "(x.shape, x.strides, x.dtype)",
        (HOST, "-k", "two_devices_are_refused_in_a_repeated_call")),
    Mutant(
        "types are not in the key of a call", "cupycorr/_repeats.py",
        "(values, types, dtype)",
        "(values, dtype)",
        (HOST, "-k", "equal_those_of_an_earlier_call")),
    Mutant(
        "the dtype of the result is not in the key of a call", "cupycorr/_repeats.py",
        "(values, types, dtype)",
        "(values, types)",
        (HOST, "-k", "gradient_and_dtype_that_is_asked_for")),
    Mutant(
        "the needs are not in the key of a call", "cupycorr/_repeats.py",
        "    values = (*values, *needs) if type(needs) is tuple else (*values, needs)",
        "",
        (HOST, "-k", "gradient_and_dtype_that_is_asked_for")),
    Mutant(
        "a repeated call runs on the device that is current", "cupycorr/_repeats.py",
        "if cupy.cuda.runtime.getDevice() != self.plan.device:",
        "if False:",
        (HOST, "-k", "repeated_call_runs_on_the_device and direct")),
    Mutant(
        "an output that overlaps an input is written at once in a repeated call", "cupycorr/_repeats.py",
        "if out is not None and may_share_memory(out, *arrays):",
        "if False:",
        (HOST, "-k", "repeated_call_whose_output_overlaps")),
    Mutant(
        "a repeated call does not notice that the table of variants has changed", "cupycorr/_repeats.py",
        "found is not None and found.variants is operator.variants",
        "found is not None",
        (HOST, "-k", "variant_that_is_added_later")),
    Mutant(
        "plans of an earlier table of variants are used", "cupycorr/_dispatch.py",
        "if found.variants is not operator.variants:",
        "if False:",
        (HOST, "-k", "variant_that_is_added_later")),
    Mutant(
        "a repeated call does not notice a measured answer", "cupycorr/_tuning.py",
        "    _last_change = object()\n\n\ndef",
        "\n\n\ndef",
        (HOST, "-k", "measured_answer_counts")),
    Mutant(
        "a repeated call does not notice that tuning is off", "cupycorr/_tuning.py",
        "return _variables.get(_variable), _last_change",
        "return None, _last_change",
        (HOST, "-k", "measured_answer_counts")),
    Mutant(
        "a choice that is to be measured is kept", "cupycorr/_repeats.py",
        "if key is None or not choice.settled or",
        "if key is None or",
        (HOST, "-k", "could_not_be_measured")),
    Mutant(
        "the calls that are kept have no bound", "cupycorr/_repeats.py",
        "if len(_calls) >= LIMIT:",
        "if False:",
        (HOST, "-k", "kept_are_bounded")),
    Mutant(
        "alignment is not looked at", "cupycorr/_gpu/plan.py",
        "if any(map(mod, addresses, plan.itemsizes.values())):",
        "if False:",
        (HOST, "-k", "not_aligned_is_refused_in_a_repeated_call")),
    Mutant(
        "no call is found again", "cupycorr/_repeats.py",
        "found = _calls.get(key)",
        "found = None",
        (HOST, "-k", "same_bits_and_checks_and_plans_nothing and forward")),
    Mutant(
        "a call keeps its arrays", "cupycorr/_repeats.py",
        "kinds = tuple([(x.shape,",
        "kinds = tuple([((_calls.setdefault(0, []).append(x), x.shape)[1],",
        (HOST, "-k", "keeps_no_array")),
    Mutant(
        "tensors of other strides are found", "cupycorr/torch/_tensors.py",
        "(x.shape, x.stride(), x.dtype, x.device)",
        "(x.shape, x.dtype, x.device)",
        (TENSORS, "-k", "differs_in_one_thing")),
    Mutant(
        "torch's precision is not in the key of a call", "cupycorr/torch/_tensors.py",
        "(values, precision(None, tensors[0]))",
        "(values, None)",
        (TENSORS, "-k", "torchs_precision_of_its_moment")),
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
