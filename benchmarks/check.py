"""``python -m benchmarks --device cuda --check``: check the kernels on this GPU against the definition, and time them.

The acceptance cases are timed, or those of ``--cases``. A step is a row of `STEPS`: a title, and a function that yields
findings. A step that fails is a finding itself, and the next step runs. The benchmark does not use the test suite's oracle.
Results are compared with those of `cupycorr.variants.check`, on its problems.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from cupycorr import explain, spatial_correlation_sample, spatial_correlation_sample_vjp
from cupycorr._correlation.gpu import planner
from cupycorr._cpu import workers
from cupycorr._gpu import compiler
from cupycorr._gpu.device import import_cupy
from cupycorr.variants._check import SMALL, Expected, Small, difference, expected

from . import cases, cuda, report, rivals, running
from .cases import DTYPES, TF32, array_dtype, precision

TIMED = ("float32", "bfloat16", TF32)  # rivals take part in the first only
POOL_UNIT = 512  # bytes; CuPy's pool allocates multiples of it


@dataclass(frozen=True, slots=True)
class Finding:
    """A check: its name, what is wrong, a text to print in any case, and numbers for the file."""

    what: str
    wrong: str | None = None
    told: str | None = None  # printed even if nothing is wrong
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Options:
    """The machine that is checked, the cases that are timed, and the seconds for each case, element type and pass."""

    header: report.Header
    timed: Sequence[cases.Case]
    budget: float


Step = Callable[[Options], Iterator[Finding]]


def run(arguments: Sequence[str], timed: Sequence[cases.Case], budget: float, json_file: Path | None) -> int:
    """Run every step and print its findings; return 1 where anything is wrong."""
    console, begin = report.wide_console(), time.perf_counter()
    header = cuda.header(arguments, TIMED)
    report.print_header(console, header)
    found: dict[str, list[Finding]] = {}
    for title, step in STEPS.items():
        found[title] = _findings(console, title, step, Options(header, timed, budget))
        if json_file is not None:
            _write(json_file, header, found)
    wrong = sum(finding.wrong is not None for findings in found.values() for finding in findings)
    console.print(f"{wrong} wrong, {time.perf_counter() - begin:.0f} s", style="bold red" if wrong else "bold")
    return 1 if wrong else 0


def _findings(console: Console, title: str, step: Step, options: Options) -> list[Finding]:
    """Return the findings of a step, each printed at once."""
    begin, findings = time.perf_counter(), []
    try:
        for finding in step(options):
            findings.append(finding)
            _print(console, finding)
    except Exception as error:  # a step that fails must not stop the others
        findings.append(Finding("the step itself", _first_line(error)))
        _print(console, findings[-1])
    wrong = sum(finding.wrong is not None for finding in findings)
    console.print(
        f"{title}: {len(findings)} checked, {wrong} wrong, {time.perf_counter() - begin:.1f} s",
        style="red" if wrong else "green",
    )
    return findings


def _print(console: Console, finding: Finding) -> None:
    if finding.wrong is not None:
        console.print(escape(f"  wrong: {finding.what}: {finding.wrong}"), style="bold red", soft_wrap=True)
    if finding.told is not None:
        console.print(escape(finding.told), soft_wrap=True)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {running.first_line(error)}"


def _write(path: Path, header: report.Header, found: dict[str, list[Finding]]) -> None:
    steps = {title: [asdict(finding) for finding in findings] for title, findings in found.items()}
    path.write_text(json.dumps({**asdict(header), "steps": steps}, indent=1) + "\n")


# Compiling ---------------------------------------------------------------------------------------------------------------------


def builds(options: Options) -> Iterator[Finding]:
    """Compile and load every kernel; kernels that another process has compiled come from CuPy's cache."""
    every = list(planner.builds(rivals.on_gpu().device))
    cached = len(list(compiler.cache_folder().glob("*.cubin")))
    begin = time.perf_counter()
    with ThreadPoolExecutor(workers.thread_count()) as pool:
        failures = list(pool.map(_failure, (kernel for _, kernel in every)))
    seconds = time.perf_counter() - begin
    yield from (Finding(name, failure) for (name, _), failure in zip(every, failures, strict=True))
    told = f"  {len(every)} builds in {seconds:.1f} s, {cached} kernels were in the cache before"
    yield Finding("all builds", told=told, numbers={"builds": len(every), "seconds": seconds, "cached_before": cached})


def _failure(kernel: Any) -> str | None:
    try:
        compiler.function(kernel, cuda.INDEX)
    except Exception as error:  # any error is the finding
        return _first_line(error)
    return None


# The definition ----------------------------------------------------------------------------------------------------------------


Arrays = tuple[Any, ...]
Results = dict[str, Any]  # output and gradients by name


def _computed(small: Small, arrays: Arrays, variant: str, **changed: Any) -> Results:
    """Return the output and both gradients by name, without those that the variant cannot compute."""
    input1, input2, cotangent = arrays
    options = {**small.keywords, **changed, "variant": variant}
    results: Results = {}
    with suppress(NotImplementedError):
        results["output"] = spatial_correlation_sample(input1, input2, **options)
    with suppress(NotImplementedError):
        gradients = spatial_correlation_sample_vjp(cotangent, input1, input2, **options)
        results |= zip(("g1", "g2"), gradients, strict=True)
    return results


def _by_variant(small: Small, arrays: Arrays, dtype: str) -> Iterator[tuple[str, Results]]:
    """Yield the results of every variant that can compute any."""
    for variant in rivals.cuda_variants():
        if results := _computed(small, arrays, variant, precision=precision(dtype)):
            yield variant, results


def _differences(results: Results, wanted: Expected) -> str | None:
    """Return what is wrong with results, None where nothing is."""
    found = (difference(name, import_cupy().asnumpy(result), wanted) for name, result in results.items())
    return next(filter(None, found), None)


def _changed(results: Results, others: Results) -> str | None:
    """Return which of two results differ in any bit, None where none does."""
    back = import_cupy().asnumpy
    names = [name for name, result in results.items() if back(result).tobytes() != back(others[name]).tobytes()]
    return f"the bits of {', '.join(names)} differ" if names else None


def definition(options: Options) -> Iterator[Finding]:
    """Check every variant, element type and pass on the small problems, and that the next call gives the same bits."""
    for dtype in DTYPES:
        for name, small in SMALL.items():
            arrays = small.arrays(array_dtype(dtype))
            wanted, there = expected(small, arrays, precision(dtype)), tuple(map(import_cupy().asarray, arrays))
            for variant, results in _by_variant(small, there, dtype):
                again = _computed(small, there, variant, precision=precision(dtype))
                wrong = _differences(results, wanted) or _changed(results, again)
                yield Finding(f"{name}, {dtype}, {variant}", wrong)


# The parameters for inputs in other memory orders.
ORDERED = {
    "pixels": {"patch_size": (3, 4), "dilation_patch": 2, "padding": 1},
    "windows": {"kernel_size": (2, 3), "patch_size": (3, 4), "stride": (1, 2), "padding": 1},
}

# Functions that copy an array to the device in another memory order.
ORDERS: dict[str, Callable[[np.ndarray], Any]] = {
    "channels last": lambda x: import_cupy().asarray(np.ascontiguousarray(x.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2),
    "columns reversed": lambda x: import_cupy().asarray(np.ascontiguousarray(x[..., ::-1]))[..., ::-1],
    "every other column": lambda x: import_cupy().asarray(np.repeat(x, 2, axis=3))[..., ::2],
    "one element off": lambda x: import_cupy().asarray(np.append(x.ravel()[:1], x))[1:].reshape(x.shape),
}


def orders(options: Options) -> Iterator[Finding]:
    """Check inputs in other memory orders."""
    for dtype, channels, (name, keywords) in product(DTYPES, (35, 64), ORDERED.items()):
        small = Small((2, channels, 6, 9), keywords)
        *inputs, cotangent = small.arrays(array_dtype(dtype))
        wanted = expected(small, (*inputs, cotangent), precision(dtype))
        for order, lay in ORDERS.items():
            there = (*map(lay, inputs), import_cupy().asarray(cotangent))
            for variant, results in _by_variant(small, there, dtype):
                yield Finding(f"{order}, {name}, {channels} channels, {dtype}, {variant}", _differences(results, wanted))


# Streams, graphs, memory -------------------------------------------------------------------------------------------------------

# Names in SMALL and dtypes: windows of one pixel, without and with tensor cores, and a larger window.
CALLED = (("flownetc", "float32"), ("flownetc", "float16"), ("everything", "float32"))


def _called() -> Iterator[tuple[str, str, Small, Arrays, Results]]:
    """Yield a name, a variant, a problem, its own arrays, and the results for them."""
    for name, dtype in CALLED:
        small = SMALL[name]
        arrays = tuple(map(import_cupy().asarray, small.arrays(array_dtype(dtype))))
        for variant, results in _by_variant(small, arrays, dtype):
            yield f"{name}, {dtype}, {variant}", variant, small, tuple(array.copy() for array in arrays), results


def streams(options: Options) -> Iterator[Finding]:
    """Check that a separate stream and the replay of a graph with other inputs give the bits of the default stream."""
    cupy = import_cupy()
    for what, variant, small, arrays, want in _called():
        others = tuple(array[::-1].copy() for array in arrays)
        want_others = _computed(small, others, variant)
        cuda.finish()
        with cupy.cuda.Stream(non_blocking=True) as stream:
            got = _computed(small, arrays, variant)
            stream.synchronize()
            yield Finding(f"{what} on a stream", _changed(got, want))
            del got
            stream.begin_capture()
            got = _computed(small, arrays, variant)
            graph = stream.end_capture()
            for numbers, expected in ((arrays, want), (others, want_others)):
                for array, other in zip(arrays, numbers, strict=True):
                    array[...] = other
                for result in got.values():
                    result.fill(0)
                graph.launch(stream)
                stream.synchronize()
                yield Finding(f"{what} replayed", _changed(got, expected))


def memory(options: Options) -> Iterator[Finding]:
    """Check that a forward call allocates no more than its result and the explained workspace, and frees the workspace."""
    for what, variant, small, arrays, results in _called():
        if "output" not in results:
            continue
        workspace = explain(*arrays[:2], **small.keywords, variant=variant).workspace
        with cuda.accounted() as account:
            out = spatial_correlation_sample(*arrays[:2], **small.keywords, variant=variant)
        held, beside = account.held, account.most - account.held
        size = -(-out.nbytes // POOL_UNIT) * POOL_UNIT
        yield Finding(f"{what}: kept after the call", None if held == size else f"{held} bytes are kept, the result has {size}")
        most = workspace + (POOL_UNIT if workspace else 0)
        yield Finding(f"{what}: workspace", None if beside <= most else f"{beside} bytes, explained as {workspace}")


# Times -------------------------------------------------------------------------------------------------------------------------


def times(options: Options) -> Iterator[Finding]:
    """Time cases; rivals take part in float32 only."""
    console, yardstick = report.wide_console(), cuda.yardstick(options.header)
    everybody = rivals.cuda_contestants()
    for dtype in TIMED:
        contestants, rows = [c for c in everybody if c.ours or dtype == TIMED[0]], []
        settings = running.Settings(dtype, options.budget, machine=cuda.MACHINE)
        for case in options.timed:
            for which in cases.PASSES:
                try:
                    rows += running.run(case, which, contestants, settings)
                except (MemoryError, RuntimeError) as error:
                    yield Finding(f"{case.name} {which} {dtype}", _first_line(error))
        cuda.measure_rates(options.header)
        report.print_rows(console, rows, yardstick)
        for row in rows:
            wrong = row.wrong if row.ours else None  # a rival's wrong result is no finding about this package
            what = f"{row.case} {row.which} {dtype} {row.contestant}"
            yield Finding(what, wrong, numbers=report.record(row, yardstick))


TOOLS = {
    "compute-sanitizer": "compute-sanitizer --tool memcheck python -m pytest -m gpu tests/correlation/test_gpu.py -k named",
    "ncu": (
        "ncu --set full python -m benchmarks --device cuda --cases flownetc-headline --dtype float32 --rivals none --no-memory "
        "--budget 0.1"
    ),
}


def tools(options: Options) -> Iterator[Finding]:
    """Name the installed programs that inspect kernels more closely, with a command for each."""
    for name, command in TOOLS.items():
        if shutil.which(name):
            yield Finding(name, told=f"  {name} is installed: {command}")


STEPS: dict[str, Step] = {
    "builds": builds,
    "definition": definition,
    "orders in memory": orders,
    "streams and graphs": streams,
    "memory": memory,
    "times": times,
    "tools": tools,
}
