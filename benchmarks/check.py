"""Whether the kernels are right on this GPU, and how fast, in one command: ``python -m benchmarks --device cuda --check``.

A step is a row of `STEPS`: a title, and a function that yields what it found. A step that fails is a finding, and the next runs.
The suite and its oracle are not in reach of the benchmark, so results are held against the ``reference`` variant, which is NumPy
on the CPU and shares nothing with the kernels: run in float64 on the same numbers, it gives the value, the sum of magnitudes and
the number of terms, and with them the error that a sum in the accumulator may have.
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
from cupycorr._correlation.problem import parameters, problem
from cupycorr._cpu import workers
from cupycorr._dtypes import ELEMENT_TYPES
from cupycorr._gpu import compiler
from cupycorr._gpu.device import import_cupy

from . import cases, cuda, report, rivals, running
from .cases import DTYPES, TF32, array_dtype, precision

BUDGET = 1.0  # seconds for one case and pass
TIMED = ("float32", "bfloat16", TF32)  # the first against whoever else is here, the others ours alone
POOL_UNIT = 512  # bytes; CuPy's pool hands out multiples of it

# dtype -> the distance of neighbouring numbers as a share of them, and the smallest number that does not count as zero
ROUNDING = {
    "float16": (2.0**-10, 2.0**-24),
    "bfloat16": (2.0**-7, 2.0**-126),
    "float32": (2.0**-23, 2.0**-126),
    TF32: (2.0**-23, 2.0**-126),
    "float64": (2.0**-52, 2.0**-1074),
}
FACTORS = {TF32: 1e-3}  # of the sum of magnitudes: how far off it may be for what is rounded before it is multiplied


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what is wrong with it, what to say even if nothing is, and numbers for the file."""

    what: str
    wrong: str | None = None
    told: str | None = None
    numbers: dict[str, Any] = field(default_factory=dict)


Step = Callable[[report.Header], Iterator[Finding]]


def run(arguments: Sequence[str], json_file: Path | None) -> int:
    """Take every step and say what it found; 1 where anything is wrong."""
    console, begin = report.wide_console(), time.perf_counter()
    header = cuda.header(arguments, TIMED)
    report.print_header(console, header)
    found: dict[str, list[Finding]] = {}
    for title, step in STEPS.items():
        found[title] = _taken(console, title, step, header)
        if json_file is not None:
            _write(json_file, header, found)
    wrong = sum(finding.wrong is not None for findings in found.values() for finding in findings)
    console.print(f"{wrong} wrong, {time.perf_counter() - begin:.0f} s", style="bold red" if wrong else "bold")
    return 1 if wrong else 0


def _taken(console: Console, title: str, step: Step, header: report.Header) -> list[Finding]:
    """The findings of a step, said as they come."""
    begin, findings = time.perf_counter(), []
    try:
        for finding in step(header):
            findings.append(finding)
            _say(console, finding)
    except Exception as error:  # whatever a step ends in, the others may still tell something
        findings.append(Finding("the step itself", _first_line(error)))
        _say(console, findings[-1])
    wrong = sum(finding.wrong is not None for finding in findings)
    console.print(
        f"{title}: {len(findings)} looked at, {wrong} wrong, {time.perf_counter() - begin:.1f} s",
        style="red" if wrong else "green",
    )
    return findings


def _say(console: Console, finding: Finding) -> None:
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


def builds(header: report.Header) -> Iterator[Finding]:
    """Every kernel compiles and loads; what another process compiled comes from CuPy's cache."""
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


@dataclass(frozen=True, slots=True)
class Small:
    """A problem that the reference answers at once."""

    shape1: tuple[int, ...]
    keywords: dict[str, Any]
    shape2: tuple[int, ...] | None = None

    def arrays(self, dtype: str) -> tuple[np.ndarray, ...]:
        """input1, input2 and a cotangent."""
        shape2 = self.shape2 or self.shape1
        out_shape = problem(parameters(**self.keywords), self.shape1, shape2).out_shape
        random = np.random.default_rng(0)
        return tuple(random.standard_normal(shape).astype(array_dtype(dtype)) for shape in (self.shape1, shape2, out_shape))


SMALL = {
    "one pixel": Small((1, 1, 1, 1), {}),
    "flownetc": Small((2, 40, 10, 14), {"patch_size": 21, "dilation_patch": 2}),
    "pwcnet": Small((1, 131, 6, 34), {"patch_size": 9}),
    "one-sided": Small((1, 9, 4, 70), {"patch_size": (1, 33), "patch_offset": (0, -16)}),
    "template": Small(
        (1, 3, 5, 6), {"kernel_size": (5, 6), "patch_size": (16, 25), "patch_offset": (7, 12)}, shape2=(1, 3, 20, 30)
    ),
    "even patch": Small((1, 4, 9, 9), {"patch_size": (2, 4), "dilation_patch": 2}),
    "everything": Small((2, 3, 19, 23), {"kernel_size": 3, "patch_size": 5, "stride": 2, "padding": 1, "dilation": 2}),
    "many taps": Small((1, 1, 12, 44), {"kernel_size": (5, 16), "patch_size": (1, 3)}),
    "windows apart": Small((1, 5, 31, 33), {"kernel_size": 2, "patch_size": 3, "stride": 7}),
    "coprime": Small((1, 6, 25, 27), {"patch_size": 5, "stride": 2, "dilation_patch": 3}),
    "cropped": Small((1, 6, 12, 15), {"patch_size": 3, "padding": (-2, -4)}),
    "outside": Small((1, 6, 5, 6), {"patch_size": 3, "patch_offset": (9, -20)}),
    "scaled": Small((1, 6, 8, 9), {"patch_size": 3, "scale": -0.125}),
    "no channels": Small((2, 0, 8, 9), {"patch_size": 3}),
    "empty batch": Small((0, 3, 8, 9), {"patch_size": 3}),
    "many channels": Small((1, 700, 5, 7), {"kernel_size": (1, 2), "patch_size": 3}),
}
Arrays = tuple[Any, ...]
Answer = dict[str, Any]


def _answer(small: Small, arrays: Arrays, variant: str, **changed: Any) -> Answer:
    """Output and both gradients by name, without those that the variant does not have for this problem."""
    input1, input2, cotangent = arrays
    options = {**small.keywords, **changed, "variant": variant}
    results: Answer = {}
    with suppress(NotImplementedError):
        results["output"] = spatial_correlation_sample(input1, input2, **options)
    with suppress(NotImplementedError):
        gradients = spatial_correlation_sample_vjp(cotangent, input1, input2, **options)
        results |= zip(("g1", "g2"), gradients, strict=True)
    return results


def _answers(small: Small, arrays: Arrays, dtype: str) -> Iterator[tuple[str, Answer]]:
    """What every variant answers that has something to answer."""
    answers = ((variant, _answer(small, arrays, variant, precision=precision(dtype))) for variant in rivals.cuda_variants())
    yield from ((variant, answer) for variant, answer in answers if answer)


def _expected(small: Small, arrays: tuple[np.ndarray, ...], dtype: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What `_answer` should give, and by how much it may differ: a rounding, and 4 sqrt(terms) eps of the sum of magnitudes."""
    exact = [array.astype(np.float64) for array in arrays]
    scale = abs(small.keywords.get("scale", 1.0))
    values = _answer(small, exact, "reference")
    magnitudes = _answer(small, [abs(array) for array in exact], "reference", scale=scale)
    terms = _answer(small, [np.ones_like(array) for array in exact], "reference", scale=1.0)
    apart, smallest = ROUNDING[dtype]
    epsilon = ROUNDING[ELEMENT_TYPES[array_dtype(dtype).name].accumulator][0]
    sums = 2 if dtype == "float64" else 1  # there the reference rounds as much
    rounded = {name: FACTORS.get(dtype, 0.0) + sums * 4 * np.sqrt(terms[name]) * epsilon for name in values}
    allowed = {
        name: np.maximum(abs(value) * apart, smallest) + rounded[name] * magnitudes[name] for name, value in values.items()
    }
    return {name: (value, allowed[name]) for name, value in values.items()}


def _differences(results: Answer, expected: dict[str, tuple[np.ndarray, np.ndarray]]) -> str | None:
    """What is wrong with an answer."""
    for name, result in results.items():
        got, (value, allowed) = import_cupy().asnumpy(result).astype(np.float64), expected[name]
        if got.shape != value.shape:
            return f"{name} has shape {got.shape}, the reference {value.shape}"
        share = (abs(got - value) / allowed).max(initial=0)
        if not share <= 1:  # NaN is a difference
            return f"{name} is {share:.3g} times as far from the reference as it may be"
    return None


def _changed(results: Answer, others: Answer) -> str | None:
    """Which parts of two answers have other bits."""
    back = import_cupy().asnumpy
    parts = [name for name, result in results.items() if back(result).tobytes() != back(others[name]).tobytes()]
    return f"other bits of {', '.join(parts)}" if parts else None


def definition(header: report.Header) -> Iterator[Finding]:
    """Each variant, element type and pass of each small problem, and the same bits at the next call."""
    for dtype in DTYPES:
        for name, small in SMALL.items():
            arrays = small.arrays(dtype)
            expected, there = _expected(small, arrays, dtype), tuple(map(import_cupy().asarray, arrays))
            for variant, results in _answers(small, there, dtype):
                again = _answer(small, there, variant, precision=precision(dtype))
                wrong = _differences(results, expected) or _changed(results, again)
                yield Finding(f"{name}, {dtype}, {variant}", wrong)


# What is asked of inputs in other orders in memory.
ORDERED = {
    "pixels": {"patch_size": (3, 4), "dilation_patch": 2, "padding": 1},
    "windows": {"kernel_size": (2, 3), "patch_size": (3, 4), "stride": (1, 2), "padding": 1},
}

# From the host to the device, there in another order in memory.
ORDERS: dict[str, Callable[[np.ndarray], Any]] = {
    "channels last": lambda x: import_cupy().asarray(np.ascontiguousarray(x.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2),
    "columns reversed": lambda x: import_cupy().asarray(np.ascontiguousarray(x[..., ::-1]))[..., ::-1],
    "every other column": lambda x: import_cupy().asarray(np.repeat(x, 2, axis=3))[..., ::2],
    "one element off": lambda x: import_cupy().asarray(np.append(x.ravel()[:1], x))[1:].reshape(x.shape),
}


def orders(header: report.Header) -> Iterator[Finding]:
    """Inputs in other orders in memory."""
    for dtype, channels, (name, keywords) in product(DTYPES, (35, 64), ORDERED.items()):
        small = Small((2, channels, 6, 9), keywords)
        *inputs, cotangent = small.arrays(dtype)
        expected = _expected(small, (*inputs, cotangent), dtype)
        for order, lay in ORDERS.items():
            there = (*map(lay, inputs), import_cupy().asarray(cotangent))
            for variant, results in _answers(small, there, dtype):
                yield Finding(f"{order}, {name}, {channels} channels, {dtype}, {variant}", _differences(results, expected))


# Streams, graphs, memory -------------------------------------------------------------------------------------------------------

# Of SMALL: windows of one pixel, also where tensor cores multiply them, and a larger one.
CALLED = (("flownetc", "float32"), ("flownetc", "float16"), ("everything", "float32"))


def _called() -> Iterator[tuple[str, str, Small, Arrays, Answer]]:
    """What is looked at, by name: a variant, a problem, arrays of its own, and what it answers."""
    for name, dtype in CALLED:
        small = SMALL[name]
        arrays = tuple(map(import_cupy().asarray, small.arrays(dtype)))
        for variant, results in _answers(small, arrays, dtype):
            yield f"{name}, {dtype}, {variant}", variant, small, tuple(array.copy() for array in arrays), results


def streams(header: report.Header) -> Iterator[Finding]:
    """A stream of its own: the bits of the default stream, also when a graph of the call is replayed with other numbers."""
    cupy = import_cupy()
    for what, variant, small, arrays, want in _called():
        others = tuple(array[::-1].copy() for array in arrays)
        want_others = _answer(small, others, variant)
        cuda.finish()
        with cupy.cuda.Stream(non_blocking=True) as stream:
            got = _answer(small, arrays, variant)
            stream.synchronize()
            yield Finding(f"{what} on a stream", _changed(got, want))
            del got
            stream.begin_capture()
            got = _answer(small, arrays, variant)
            graph = stream.end_capture()
            for numbers, wanted in ((arrays, want), (others, want_others)):
                for array, other in zip(arrays, numbers, strict=True):
                    array[...] = other
                for result in got.values():
                    result.fill(0)
                graph.launch(stream)
                stream.synchronize()
                yield Finding(f"{what} replayed", _changed(got, wanted))


def memory(header: report.Header) -> Iterator[Finding]:
    """What a forward call takes from CuPy's pool beside its result: nothing, or a workspace that it gives back."""
    for what, variant, small, arrays, results in _called():
        if "output" not in results:
            continue
        workspace = explain(*arrays[:2], **small.keywords, variant=variant).workspace
        with cuda.accounted() as account:
            out = spatial_correlation_sample(*arrays[:2], **small.keywords, variant=variant)
        held, beside = account.held, account.most - account.held
        size = -(-out.nbytes // POOL_UNIT) * POOL_UNIT
        yield Finding(f"{what}: kept after the call", None if held == size else f"{held} bytes, the result has {size}")
        most = workspace + (POOL_UNIT if workspace else 0)
        yield Finding(f"{what}: workspace", None if beside <= most else f"{beside} bytes, explained as {workspace}")


# Times -------------------------------------------------------------------------------------------------------------------------


def times(header: report.Header) -> Iterator[Finding]:
    """The acceptance cases against the bound: float32 with whoever else is here, bfloat16 ours alone."""
    console, yardstick = report.wide_console(), cuda.yardstick(header)
    everybody = rivals.cuda_contestants()
    for dtype in TIMED:
        contestants, rows = [c for c in everybody if c.ours or dtype == TIMED[0]], []
        settings = running.Settings(dtype, BUDGET, machine=cuda.MACHINE)
        for case in cases.select("acceptance"):
            for which in cases.PASSES:
                try:
                    rows += running.run(case, which, contestants, settings)
                except (MemoryError, RuntimeError) as error:
                    yield Finding(f"{case.name} {which} {dtype}", _first_line(error))
        cuda.measure_rates(header)
        report.print_rows(console, rows, yardstick)
        for row in rows:
            wrong = row.wrong if row.ours else None  # a rival may compute what it likes
            what = f"{row.case} {row.which} {dtype} {row.contestant}"
            yield Finding(what, wrong, numbers=report.record(row, yardstick))


TOOLS = {
    "compute-sanitizer": "compute-sanitizer --tool memcheck python -m pytest -m gpu tests/correlation/test_gpu.py -k named",
    "ncu": (
        "ncu --set full python -m benchmarks --device cuda --cases flownetc-headline --dtype float32 --rivals none --no-memory "
        "--budget 0.1"
    ),
}


def tools(header: report.Header) -> Iterator[Finding]:
    """Programs that look closer, where they are installed."""
    for name, command in TOOLS.items():
        if shutil.which(name):
            yield Finding(name, told=f"  {name} is here: {command}")


STEPS: dict[str, Step] = {
    "builds": builds,
    "definition": definition,
    "orders in memory": orders,
    "streams and graphs": streams,
    "memory": memory,
    "times": times,
    "tools": tools,
}
