"""``python -m benchmarks.cliffs``: search for problems that take far longer than they need to on the CPU.

Random problems, some of them extreme (strides beyond the patch or the image, windows with gaps, steps beyond the image, many
channels, displacements outside the image), are computed by a plain call and by every other plan that the package has, which are
called routes here. The search prints the problems where a call took more than `LIMIT` times the fastest route and `SLACK`
seconds, or held more memory than the result and the workspace, and records the worst of them.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import signal
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cupycorr import spatial_correlation_sample, spatial_correlation_sample_vjp
from cupycorr._correlation.cpu import blas, planner, simd
from cupycorr._correlation.cpu import forward as cpu_forward
from cupycorr._correlation.cpu import gradient as cpu_gradient
from cupycorr._correlation.cpu.engine import Engine
from cupycorr._correlation.problem import Problem, parameters, problem
from cupycorr._cpu import workers

LIMIT, SLACK = 3.0, 1e-3  # a call may take the fastest route's time this many times, and this many seconds more
PLAUSIBLE = 20  # a plan is not run where its estimate is this many times that of the engine's best plan
REPEATS = 3  # more runs of a call that seems to take too long
ENOUGH = 0.05  # seconds of runs after which the fastest counts
LONGEST = 2.0  # seconds after which a route is given up
PROMISED = 64 * 2**20  # bytes that a call may hold beside its result
MOST_PRODUCTS = 2**26  # multiply-adds of the definition, so that most problems take less than a tenth of a second
MOST_ELEMENTS = 2**20  # elements of each input and of the output
PASSES = ("forward", "gradient1", "gradient2")

Map = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]  # (cotangent, input1, input2) -> the results of a pass


@dataclass(frozen=True)
class Drawn:
    """A random problem: its shapes, parameters and element type."""

    shape1: tuple[int, int, int, int]
    shape2: tuple[int, int, int, int]
    parameters: dict[str, Any] = field(hash=False)
    dtype: str = "float32"

    def problem(self) -> Problem:
        """Return the problem as the package's planners take it."""
        return problem(parameters(**self.parameters), self.shape1, self.shape2)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a cotangent and both inputs."""
        rng = np.random.default_rng(0)
        shapes = self.problem().out_shape, self.shape1, self.shape2
        return tuple(rng.random(shape, np.float32).astype(self.dtype) for shape in shapes)


@dataclass(frozen=True)
class Finding:
    """The cost of a pass of a problem: seconds of the call and of its routes, and the most bytes beside the result."""

    drawn: Drawn
    which: str
    seconds: float
    routes: dict[str, float]  # seconds of the routes that took less than the call
    extra_bytes: int

    @property
    def ratio(self) -> float:
        """The call's seconds minus the slack, over those of the fastest route."""
        return max(self.seconds - SLACK, 0.0) / min([*self.routes.values(), self.seconds])

    @property
    def is_cliff(self) -> bool:
        """True where the call took too long or too much memory."""
        return self.ratio > LIMIT or self.extra_bytes > PROMISED


# Drawing ----------------------------------------------------------------------------------------------------------------------


def draw(rng: np.random.Generator, most_products: int = MOST_PRODUCTS) -> Drawn:
    """Draw a problem whose definition takes at most ``most_products`` multiply-adds."""
    while True:
        drawn = _candidate(rng)
        try:
            found = drawn.problem()
        except ValueError:
            continue
        height, width = drawn.shape2[2:]
        if found.flops // 2 <= most_products and max(found.outputs, found.channels * height * width) <= MOST_ELEMENTS:
            return drawn


def _candidate(rng: np.random.Generator) -> Drawn:
    def log_uniform(low: int, high: int) -> int:
        return min(int(math.exp(rng.uniform(math.log(low), math.log(high + 1)))), high)

    def rarely(common: int, low: int, high: int, probability: float = 0.5) -> int:
        return log_uniform(low, high) if high > low and rng.random() < probability else common

    channels = log_uniform(1, 1024) if rng.random() < 0.7 else 1
    area = max(MOST_ELEMENTS // channels, 1)
    height = log_uniform(1, min(area, 4096))
    size = height, log_uniform(1, max(min(area // height, 8192), 1))
    kernel = tuple(rarely(1, 2, min(length, 100), 0.7) for length in size) if rng.random() < 0.6 else (1, 1)
    dilation = tuple(rarely(1, 1, max((length - 1) // max(taps - 1, 1), 1)) for length, taps in zip(size, kernel, strict=True))
    stride = tuple(rarely(1, 1, 2 * length) for length in size)
    patch = tuple(rarely(1, 1, 100, 0.8) for _ in size)
    step = tuple(rarely(1, 1, max(2 * length // patches, 2), 0.3) for length, patches in zip(size, patch, strict=True))
    padding = tuple(int(rng.integers(-(length // 4), length // 4 + 2)) if rng.random() < 0.2 else 0 for length in size)
    given: dict[str, Any] = dict(
        kernel_size=kernel, patch_size=patch, stride=stride, padding=padding, dilation=dilation, dilation_patch=step
    )
    size2 = size
    if rng.random() < 0.3:
        given["patch_offset"] = tuple(int(rng.integers(-length, length + 1)) for length in size)
        size2 = tuple(log_uniform(1, 4 * length) for length in size) if rng.random() < 0.7 else size
    dtype = str(rng.choice(["float32", "float32", "float64", "float16"]))
    return Drawn((1, channels, *size), (1, channels, *size2), given, dtype)


# Running ----------------------------------------------------------------------------------------------------------------------


def call_of(drawn: Drawn, which: str, variant: str = "auto") -> Map:
    """Return a plain call of a pass."""
    given = dict(**drawn.parameters, variant=variant)
    if which == "forward":
        return lambda g, x1, x2: spatial_correlation_sample(x1, x2, **given)
    needs = which == "gradient1", which == "gradient2"
    return lambda g, x1, x2: spatial_correlation_sample_vjp(g, x1, x2, **given, needs=needs)


def routes_of(drawn: Drawn, which: str) -> dict[str, Map]:
    """Return the reference, and the plausible plans of every engine that stay within the workspace, by name."""
    routes = {"reference": call_of(drawn, which, "reference")}
    for name, engine in (("simd", simd.ENGINE), ("blas", blas.ENGINE)):
        planned = [(number, plan, route) for number, (plan, route) in enumerate(_planned(engine, drawn, which)) if plan.fits]
        longest = PLAUSIBLE * min((plan.seconds for _, plan, _ in planned), default=0.0)
        routes.update({f"{name} {number}": route for number, plan, route in planned if plan.seconds <= longest})
    return routes


def _planned(engine: Engine, drawn: Drawn, which: str) -> Iterator[tuple[Any, Map]]:
    dtype, request = np.dtype(drawn.dtype), drawn.problem()
    if which == "forward":
        for plan in planner.forward_plans(engine, request, dtype, dtype):

            def forward(g: np.ndarray, x1: np.ndarray, x2: np.ndarray, plan: Any = plan) -> np.ndarray:
                out = np.empty(request.out_shape, dtype)
                cpu_forward.run(plan, x1, x2, out)
                return out

            yield plan, forward
        return
    side = int(which == "gradient2")
    for plan in planner.gradient_plans(engine, request, dtype, side):

        def gradient(g: np.ndarray, x1: np.ndarray, x2: np.ndarray, plan: Any = plan) -> np.ndarray:
            result = np.empty((x1, x2)[side].shape, dtype)
            cpu_gradient.run(plan, g, (x2, x1)[side], result, engine.threads())
            return result

        yield plan, gradient


@dataclass(frozen=True)
class Clock:
    """A clock, and how many seconds of wall time may pass for each second of the clock before work is given up."""

    now: Callable[[], float]
    patience: float


WALL = Clock(time.perf_counter, 1.0)
CPU_TIME = Clock(time.process_time, 4.0)  # for a machine that also does other work


class _TooLong(BaseException):
    """The exception that ends a route that takes too long."""


@contextmanager
def _at_most(seconds: float, clock: Clock) -> Iterator[None]:
    """Raise `_TooLong` inside a ``with`` block that takes longer."""

    def give_up(*_: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, give_up)
    # The timer repeats, because an exception within a finalizer is lost.
    signal.setitimer(signal.ITIMER_REAL, clock.patience * seconds, 0.1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fastest(work: Callable[[], Any], longest: float, clock: Clock) -> float:
    """Return the seconds of the fastest of some runs, infinity where the first takes longer than ``longest``."""
    best, runs = math.inf, 0
    try:
        while runs == 0 or (runs < 6 and runs * best < ENOUGH):
            runs += 1
            with _at_most(min(longest, LONGEST) + 0.01, clock):
                begin = clock.now()
                work()
                best = min(best, clock.now() - begin)
    except _TooLong:
        pass
    return best


def measure(drawn: Drawn, which: str, clock: Clock = WALL) -> Finding:
    """Time a call and the routes of a problem; a route that takes longer than the call is given up."""
    arrays = drawn.arrays()
    call = call_of(drawn, which)
    seconds = min(fastest(lambda: call(*arrays), LONGEST, clock), LONGEST)
    routes = {
        name: fastest(lambda route=route: route(*arrays), seconds, clock)
        for name, route in routes_of(drawn, which).items()
        if seconds > SLACK  # otherwise nothing can be too slow
    }
    for _ in range(REPEATS):
        # Other work may have disturbed the call alone, so a cliff is measured again.
        if max(seconds - SLACK, 0) > LIMIT * min(routes.values(), default=seconds) and seconds < LONGEST:
            seconds = min(seconds, fastest(lambda: call(*arrays), LONGEST, clock))
    extra = _extra_bytes(lambda: call(*arrays)) if seconds < LONGEST else 0
    return Finding(drawn, which, seconds, {name: time for name, time in routes.items() if time < seconds}, extra)


def _extra_bytes(work: Callable[[], Any]) -> int:
    """Return the most bytes that a call holds beside its result."""
    workers._free.clear()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        results = work()
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    return peak - sum(array.nbytes for array in (results if isinstance(results, tuple) else (results,)) if array is not None)


# Report -----------------------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Search and print the cliffs; return 1 where there are any."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cliffs", description=__doc__.partition("\n")[0])
    parser.add_argument("--problems", type=int, default=2000, help="number of random problems (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random problems (default: 0)")
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time of one thread, which other work disturbs less")
    parser.add_argument("--json", type=Path, help="write the worst problems to this file")
    options = parser.parse_args(arguments)
    clock, team = (CPU_TIME, workers.team_of(1)) if options.cpu_time else (WALL, nullcontext())
    with team:
        threads = workers.thread_count()
        findings = list(_search(options.problems, np.random.default_rng(options.seed), clock))
    cliffs = [found for found in findings if found.is_cliff]
    worst = sorted(findings, key=lambda found: -found.ratio)[:20]
    memory = max(found.extra_bytes for found in findings)
    summary = f"{options.problems} problems, {len(cliffs)} cliffs; worst ratio {worst[0].ratio:.3g}"
    print(f"{summary}, at most {memory / 2**20:.1f} MiB beside the result")
    if options.json:
        record = dict(
            command=" ".join(["python -m benchmarks.cliffs", *(sys.argv[1:] if arguments is None else arguments)]),
            processor=platform.processor() or platform.machine(),
            numpy=np.__version__,
            threads=threads,
            problems=options.problems,
            cliffs=len(cliffs),
            worst_ratio=worst[0].ratio,
            most_bytes_beside_the_result=memory,
            worst=[dict(asdict(found), ratio=found.ratio) for found in worst],
        )
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if cliffs else 0


def _search(problems: int, rng: np.random.Generator, clock: Clock) -> Iterator[Finding]:
    for number in range(problems):
        drawn = draw(rng)
        for which in PASSES:
            found = measure(drawn, which, clock)
            if found.is_cliff:
                print(number, _line(found), flush=True)
            yield found


def _line(found: Finding) -> str:
    fastest_first = sorted(found.routes.items(), key=lambda item: item[1])
    routes = ", ".join(f"{name} {seconds * 1e3:.3g} ms" for name, seconds in fastest_first)
    drawn = found.drawn
    return (
        f"{found.ratio:.3g}x {found.which} {found.seconds * 1e3:.3g} ms ({routes}), {found.extra_bytes / 2**20:.1f} MiB: "
        f"{drawn.shape1} x {drawn.shape2} {drawn.dtype} {drawn.parameters}"
    )


if __name__ == "__main__":
    sys.exit(main())
