"""The report on this machine: what cupycorr can do here, what is missing, and the facts that a bug report needs.

`report` gathers everything into one dictionary of plain values, which is also the JSON of ``cupycorr info --json``: its keys are
public. `summary` and `details` put it into lines for people. Nothing here imports torch or Dask, which would take seconds: their
versions are those that pip recorded.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from . import _dispatch, _terminal, _tuning
from ._cpu import llvm, object_cache, workers
from ._gpu import compiler, device, driver, source, sum_parts
from ._operators import OPERATORS, builds
from ._versions import older

VERSION_OF_KEYS = 1  # rises when a key is renamed or removed, or means something else

# Packages that the extras of setup.cfg bring, and the oldest version of each that will do, also as there.
FULL_SPEED = {"llvmlite": "0.44", "threadpoolctl": "3.5"}
TORCH = {"torch": "2.11"}
COMMAND_LINE = {"matplotlib": "3.9", "pillow": "10.4", "rich": "13", "scikit-image": "0.24", "tifffile": "2024.8.10"}
DASK = {"dask": "2025.5", "distributed": "2025.5"}

# Those, and what else the results or their speed depend on.
_REPORTED = (
    *("click", "ml_dtypes", *FULL_SPEED, *TORCH, "cupy", "cupy-cuda12x", "cupy-cuda13x"),
    *("nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime", *DASK, *COMMAND_LINE),
)
_VARIABLES = ("CUPYCORR_", "CUPY_", "CUDA_", "OMP_", "OPENBLAS_", "MKL_")  # beginnings of names of environment variables

YES, SLOWLY, NO = "yes", "slowly", "no"

# The keys of what can run, with their names for people.
_NAMES = {
    "numpy": "NumPy arrays",
    "cupy": "CuPy arrays",
    "torch": "torch tensors",
    "command_line": "command line",
    "dask": "Dask arrays",
}
_WIDTH = 80  # columns of the summary


@dataclass(frozen=True, slots=True)
class _Ability:
    """One thing that users do, and whether it can be done here.

    Attributes
    ----------
    runs
        `YES`, `SLOWLY` or `NO`.
    told
        A text that says on what it runs, or why it does not.
    install
        The command that brings what is missing; None where nothing is, or where no package would help.
    """

    runs: str
    told: str
    install: str | None = None


@dataclass(frozen=True, slots=True)
class _Gpus:
    """The devices that CuPy finds, and whether kernels run on them.

    Attributes
    ----------
    devices
        Their facts.
    driver, runtime
        The CUDA versions of the driver and of CuPy's runtime, None where they are not known.
    why_none
        The error of looking for devices, None where some are found.
    why_not
        A short reason why no kernel can run, or None.
    install
        The command that helps against this reason, or None.
    """

    devices: tuple[device.Device, ...] = ()
    driver: str | None = None
    runtime: str | None = None
    why_none: str | None = None
    why_not: str | None = None
    install: str | None = None


# The report ----------------------------------------------------------------------------------------------------------


def report(version: str) -> dict[str, Any]:
    """Return everything that matters to cupycorr on this machine, as plain values.

    Parameters
    ----------
    version
        The version of cupycorr.

    Raises
    ------
    ValueError
        ``CUPYCORR_NUM_THREADS`` is set to something that is not a positive integer.
    """
    threads, rule = workers.thread_count(), workers.thread_rule()
    gpus = _gpus()
    return {
        "keys": VERSION_OF_KEYS,
        "cupycorr": version,
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "system": {"name": platform.system(), "release": platform.release(), "machine": platform.machine()},
        "numpy": {"version": np.__version__, "blas": _blas()},
        "cpu": {"cores": os.cpu_count(), "threads": threads, "thread_rule": rule},
        "cuda": {
            "driver": gpus.driver,
            "runtime": gpus.runtime,
            "devices": [{**asdict(each), "architecture": each.architecture} for each in gpus.devices],
            "why_no_device": gpus.why_none,
        },
        "can_run": {key: asdict(ability) for key, ability in _abilities(gpus, threads).items()},
        "packages": {name: _installed_version(name) for name in _REPORTED},
        "kernels": _kernels(),
        "cache": _cache(),
        "environment": {name: _below_home(os.environ[name]) for name in sorted(os.environ) if name.startswith(_VARIABLES)},
        "variants": list(_variants(gpus)),
    }


def _blas() -> str:
    found = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return f"{found.get('name', 'unknown BLAS')} {found.get('version', '')}".strip()


def _kernels() -> dict[str, Any]:
    """Return the folder of the CUDA sources and the number of kernels that are compiled from them, or why there is none."""
    try:
        folder = source.folder()
    except FileNotFoundError as error:
        return {"folder": None, "builds": 0, "why_none": str(error)}
    return {"folder": _below_home(folder), "builds": sum(1 for _ in builds()), "why_none": None}


def _cache() -> dict[str, dict[str, Any]]:
    """Return the folders of kernels compiled for GPUs and for this CPU, and of measured choices, with their numbers of files."""
    return {
        "gpu": _files(compiler.cache_folder, "*.cubin"),
        "cpu": _files(object_cache.folder, "*.o"),
        "measured": _files(_tuning.folder, "*.json"),
    }


def _files(folder_of: Callable[[], Path], pattern: str) -> dict[str, Any]:
    try:
        folder = folder_of()
    except FileNotFoundError:
        return {"folder": None, "files": 0}
    return {"folder": _below_home(folder), "files": len(list(folder.glob(pattern)))}


def _below_home(path: str | Path) -> str:
    """Return a path with the home folder, whose name is often a person's, as ``~``; other texts stay as they are."""
    try:
        return str("~" / Path(path).relative_to(Path.home()))
    except (ValueError, RuntimeError):  # it is elsewhere, or this user has no home folder
        return str(path)


def _variants(gpus: _Gpus) -> Iterator[dict[str, str | None]]:
    """Yield for each variant of each operator why it cannot run an everyday problem, None if it can."""
    for operator in OPERATORS:
        request = operator.example()
        for row in operator.variants:
            why_not = row.why_not_at(_dispatch.Place(row.kind, None), request)
            if why_not is None and row.kind == "cupy" and not gpus.devices:
                why_not = "there is no device"
            yield {"operator": operator.name, "variant": row.name, "arrays": row.kind, "why_not": why_not}


# What can run --------------------------------------------------------------------------------------------------------


def _abilities(gpus: _Gpus, threads: int) -> dict[str, _Ability]:
    return {
        "numpy": _numpy_arrays(threads),
        "cupy": _cupy_arrays(gpus),
        "torch": _torch_tensors(gpus),
        "command_line": _with_packages(COMMAND_LINE, "demo", "match and demo"),
        "dask": _with_packages(DASK, "dask", f"Dask {_installed_version('dask')}"),
    }


def _numpy_arrays(threads: int) -> _Ability:
    lacking = _lacking(FULL_SPEED)
    if lacking:
        return _Ability(SLOWLY, lacking, _pip("cpu"))
    why_not = llvm.why_not()
    if why_not:
        return _Ability(SLOWLY, why_not)
    return _Ability(YES, f"at full speed, on {threads} thread{'s' * (threads > 1)}")


def _cupy_arrays(gpus: _Gpus) -> _Ability:
    if gpus.why_not:
        return _Ability(NO, gpus.why_not, gpus.install)
    counts = Counter(f"{each.name} ({each.architecture})" for each in gpus.devices)
    return _Ability(YES, "on " + ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.items()))


def _torch_tensors(gpus: _Gpus) -> _Ability:
    lacking = _lacking(TORCH)
    if lacking:
        return _Ability(NO, lacking, _pip("torch"))
    version = str(_installed_version("torch"))
    if version.endswith("+cpu"):
        return _Ability(YES, f"torch {version} on the CPU; it is built without CUDA")
    if gpus.why_not:
        return _Ability(YES, f"torch {version} on the CPU; on a GPU when CuPy arrays run")
    return _Ability(YES, f"torch {version} on the CPU; on a GPU if it is built for CUDA")


def _with_packages(needed: dict[str, str], extra: str, told: str) -> _Ability:
    lacking = _lacking(needed)
    return _Ability(NO, lacking, _pip(extra)) if lacking else _Ability(YES, told)


def _lacking(needed: dict[str, str]) -> str:
    """Return a text that says which packages are missing or too old; it is empty if all of them will do."""
    versions = {name: _installed_version(name) for name in needed}
    absent = [name for name, version in versions.items() if version is None]
    old = [name for name, version in versions.items() if version is not None and older(version, needed[name])]
    missing = [f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} missing"] if absent else []
    return "; ".join(missing + [f"{name} {versions[name]} is older than {needed[name]}" for name in old])


def _installed_version(distribution: str) -> str | None:
    """Return the version of a package as pip recorded it, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pip(extra: str | None) -> str | None:
    return None if extra is None else f'pip install "cupycorr[{extra}]"'


def _gpus() -> _Gpus:
    try:
        with _terminal.quiet():  # CuPy's import warns about a missing toolkit, which matters only if no kernel can be compiled
            found = tuple(device.facts(index) for index in range(device.count()))
            versions = device.versions()
    except (ImportError, RuntimeError) as error:
        return _no_gpus(error)
    try:
        _, kernel = next(sum_parts.builds())  # a small one, which many calls need
        compiler.function(kernel, found[0].index)
    except RuntimeError as error:
        return _Gpus(found, *versions, why_not=_terminal.first_line(error), install=_pip(driver.extra(driver.installed())))
    return _Gpus(found, *versions)


def _no_gpus(error: Exception) -> _Gpus:
    """Return why there is no device, and what to install if that helps; the error is that of looking for one."""
    there = driver.installed()
    error_text, remedy = _terminal.first_line(error), f": {device.PIP_COMMAND}"
    why_not = "CuPy is missing" if find_spec("cupy") is None else error_text.removesuffix(remedy)
    if there is None and isinstance(error, RuntimeError):
        why_not = "there is no NVIDIA driver"
    elif there is None:
        why_not += ", and there is no NVIDIA driver"
    elif there.cuda < driver.OLDEST_CUDA:
        why_not += ", and the NVIDIA driver is only for CUDA {}.{}".format(*there.cuda)
    return _Gpus(
        driver="{}.{}".format(*there.cuda) if there else None,
        why_none=error_text,
        why_not=why_not,
        install=_pip(driver.extra(there)) if error_text.endswith(remedy) else None,
    )


# For people ----------------------------------------------------------------------------------------------------------


def summary(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines of at most 80 columns that say what can run, and the commands that bring what is missing."""
    versions = f"cupycorr {facts['cupycorr']}, Python {facts['python']['version']}, NumPy {facts['numpy']['version']}"
    yield f"{versions}, {facts['system']['name']} {facts['system']['machine']}"
    yield ""
    margin = max(map(len, _NAMES.values())) + 2
    for key, name in _NAMES.items():
        ability = facts["can_run"][key]
        text = f"{ability['runs']}{', ' if ability['runs'] == YES else ': '}{ability['told']}"
        yield from textwrap.wrap(text, _WIDTH, initial_indent=name.ljust(margin), subsequent_indent=" " * margin)
        if ability["install"]:
            yield " " * margin + ability["install"]
    yield ""
    yield "More: cupycorr info --verbose. For a bug report: cupycorr info --json."


def details(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for every other fact of a report."""
    rows = list(_rows(facts))
    widest = max(len(name) for name, _ in rows)
    yield from (f"{name:<{widest}}  {value}" for name, value in rows)


def _rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    python, cuda, kernels, cache = facts["python"], facts["cuda"], facts["kernels"], facts["cache"]
    yield "python", f"{python['implementation']} {python['version']}"
    yield "system", " ".join(facts["system"].values())
    yield "BLAS", facts["numpy"]["blas"]
    yield from ((name, version or "not installed") for name, version in facts["packages"].items())
    yield "cores", str(facts["cpu"]["cores"])
    yield "threads", facts["cpu"]["thread_rule"]
    if cuda["driver"]:
        yield "CUDA", f"driver for {cuda['driver']}" + (f", runtime {cuda['runtime']}" if cuda["runtime"] else "")
    yield from (("device", _device(each)) for each in cuda["devices"])
    if cuda["why_no_device"]:
        yield "device", f"none: {cuda['why_no_device']}"
    built = f"{kernels['folder']} ({kernels['builds']} kernels, each compiled at its first use)"
    yield "kernel folder", f"none: {kernels['why_none']}" if kernels["why_none"] else built
    yield "GPU cache", "{folder} ({files} kernels, including those of other programs)".format(**cache["gpu"])
    yield "CPU cache", "{folder} ({files} kernels)".format(**cache["cpu"])
    yield "tuning", "{folder} ({files} measured choices)".format(**cache["measured"])
    yield from facts["environment"].items()
    for row in facts["variants"]:
        yield f"variant {row['variant']}", f"{row['operator']}, {_NAMES[row['arrays']]}: {row['why_not'] or 'can run'}"


def _device(facts: Mapping[str, Any]) -> str:
    speed = "" if facts["bandwidth"] is None else f" at {facts['bandwidth'] / 1e9:.0f} GB/s"
    memory = f"{facts['memory'] / 2**30:.0f} GiB{speed}, {facts['shared_memory'] // 1024} KiB shared memory per block"
    return f"{facts['index']}: {facts['name']}, {facts['architecture']}, {facts['multiprocessors']} multiprocessors, {memory}"
