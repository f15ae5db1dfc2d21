"""``python -m benchmarks.match_cliffs``: search for problems of block matching that take far longer than they need to on the CPU.

Random problems, some of them extreme (windows of two pixels or of most of the frame, steps beyond the window, a search along one
axis only, one template in an image), are solved with ``variant="auto"`` and with each variant forced. The search prints the
problems where auto took more than `LIMIT` times the fastest variant and `SLACK` seconds, and records the worst of them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import cupycorr
from cupycorr._cpu import workers

from . import report
from .cliffs import CPU_TIME, LIMIT, LONGEST, REPEATS, WALL, Clock, fastest

VARIANTS = ("operator", "fft", "simd")
SLACK = 5e-3  # seconds that auto may take on top of `LIMIT` times the fastest variant
MOST_SCORES = 2**22  # windows times displacements
MOST_PRODUCTS = 2**32  # multiply-adds of the definition, so that most problems take less than half a second
MOST_PIXELS = 2**20  # of a frame
DTYPES = ("uint8", "uint8", "uint16", "float32", "float64")

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A random problem: the frames' shapes and dtype, and the arguments of `cupycorr.match`."""

    shape1: Pair
    shape2: Pair
    dtype: str
    window: Pair
    search: tuple[Pair, Pair] | None
    step: Pair

    @property
    def counts(self) -> Pair:
        """The number of windows down and across."""
        rows, columns = ((n - w) // s + 1 for n, w, s in zip(self.shape1, self.window, self.step, strict=True))
        return rows, columns

    @property
    def windows(self) -> int:
        """The number of windows."""
        return math.prod(self.counts)

    @property
    def tried(self) -> int:
        """The number of displacements of a window."""
        if self.search is None:
            return math.prod(size2 - size1 + 1 for size1, size2 in zip(self.shape1, self.shape2, strict=True))
        return math.prod(high - low + 1 for low, high in self.search)

    @property
    def products(self) -> int:
        """The multiply-adds of the definition."""
        return self.windows * self.tried * math.prod(self.window)

    @property
    def reaches(self) -> bool:
        """True where every displacement leaves a pixel of some window inside frame 2, without which `cupycorr.match` refuses."""
        if self.search is None:
            return True
        axes = zip(self.counts, self.step, self.window, self.shape2, self.search, strict=True)
        return all((n - 1) * s + w - 1 + low >= 0 and high < size for n, s, w, size, (low, high) in axes)

    def frames(self) -> tuple[np.ndarray, np.ndarray]:
        """Return both frames, of noise."""
        rng = np.random.default_rng(0)
        first, second = ((rng.random(shape) * 255).astype(self.dtype) for shape in (self.shape1, self.shape2))
        return first, second

    def call(self, variant: str = "auto") -> Callable[[np.ndarray, np.ndarray], Any]:
        """Return the call of `cupycorr.match`."""
        given: dict[str, Any] = dict(window=self.window, search=self.search, step=self.step, variant=variant)
        return lambda frame1, frame2: cupycorr.match(frame1, frame2, **given)


@dataclass(frozen=True, slots=True)
class Finding:
    """The seconds of auto and of the variants that took less."""

    drawn: Drawn
    seconds: float
    variants: dict[str, float]

    @property
    def ratio(self) -> float:
        """The seconds of auto minus the slack, over those of the fastest variant."""
        return max(self.seconds - SLACK, 0.0) / min([*self.variants.values(), self.seconds])

    @property
    def is_cliff(self) -> bool:
        """True where auto took too long."""
        return self.ratio > LIMIT

    def __str__(self) -> str:
        drawn, fastest_first = self.drawn, sorted(self.variants.items(), key=lambda item: item[1])
        variants = ", ".join(f"{name} {seconds * 1e3:.3g} ms" for name, seconds in fastest_first)
        search = "search=None" if drawn.search is None else f"search={drawn.search}"
        return (
            f"{self.ratio:.3g}x {self.seconds * 1e3:.3g} ms ({variants}): {drawn.shape1} x {drawn.shape2} {drawn.dtype}, "
            f"window={drawn.window}, {search}, step={drawn.step}: {drawn.windows} windows x {drawn.tried} displacements"
        )


# Drawing ----------------------------------------------------------------------------------------------------------------------


def draw(rng: np.random.Generator, most_products: int = MOST_PRODUCTS) -> Drawn:
    """Draw a problem whose definition takes at most ``most_products`` multiply-adds."""
    while True:
        drawn = _candidate(rng)
        if drawn.reaches and drawn.windows * drawn.tried <= MOST_SCORES and drawn.products <= most_products:
            return drawn


def _candidate(rng: np.random.Generator) -> Drawn:
    def log_uniform(low: int, high: int) -> int:
        return min(int(math.exp(rng.uniform(math.log(low), math.log(high + 1)))), high)

    def two(draw_one: Callable[[int], int], bounds: Pair, square: float = 0.6) -> Pair:
        """Draw one number for each axis, often the same."""
        first, second = draw_one(bounds[0]), draw_one(bounds[1])
        return (min(first, bounds[1]), min(first, bounds[1])) if rng.random() < square and first <= bounds[0] else (first, second)

    height = log_uniform(16, 4096)
    shape2 = height, log_uniform(16, max(min(MOST_PIXELS // height, 4096), 16))
    dtype = str(rng.choice(DTYPES))
    if rng.random() < 0.25:  # one template wherever it fits, or some windows of a smaller frame
        shape1 = two(lambda bound: log_uniform(2, bound), shape2)
        window = shape1 if rng.random() < 0.7 else two(lambda bound: log_uniform(2, bound), shape1)
        search = None
    else:
        shape1 = shape2
        window = two(lambda bound: log_uniform(2, bound), shape1)
        search = _range(rng, log_uniform, shape1[0]), _range(rng, log_uniform, shape1[1])
    step = two(lambda bound: 1 if rng.random() < 0.3 else log_uniform(1, bound), (2 * window[0], 2 * window[1]))
    return Drawn(shape1, shape2, dtype, window, search, step)


def _range(rng: np.random.Generator, log_uniform: Callable[[int, int], int], size: int) -> Pair:
    """Draw a search range along one axis: symmetric, one-sided, or a single displacement."""
    reach = log_uniform(1, min(size - 1, 64))
    kind = rng.random()
    return (-reach, reach) if kind < 0.7 else (-reach, 0) if kind < 0.85 else (0, 0)


# Running ----------------------------------------------------------------------------------------------------------------------


def measure(drawn: Drawn, clock: Clock = WALL) -> Finding:
    """Time auto and the variants of a problem; a variant that takes longer than auto is given up."""
    frames = drawn.frames()

    def time_of(variant: str, longest: float) -> float:
        call = drawn.call(variant)
        return fastest(lambda: call(*frames), longest, clock)

    seconds = min(time_of("auto", LONGEST), LONGEST)
    variants = {}
    for variant in VARIANTS if seconds > SLACK else ():  # otherwise nothing can be too slow
        try:
            variants[variant] = time_of(variant, seconds)
        except NotImplementedError:
            continue
    for _ in range(REPEATS):
        # Other work may have disturbed the call of auto alone, so a cliff is measured again.
        if max(seconds - SLACK, 0) > LIMIT * min(variants.values(), default=seconds) and seconds < LONGEST:
            seconds = min(seconds, time_of("auto", LONGEST))
    return Finding(drawn, seconds, {name: time for name, time in variants.items() if time < seconds})


def search(problems: int, rng: np.random.Generator, clock: Clock) -> Iterator[Finding]:
    """Draw and measure problems, and print the cliffs."""
    for number in range(problems):
        found = measure(draw(rng), clock)
        if found.is_cliff:
            print(number, found, flush=True)
        yield found


def main(arguments: Sequence[str] | None = None) -> int:
    """Search and print the cliffs; return 1 where there are any."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser("python -m benchmarks.match_cliffs", description=__doc__.partition("\n")[0])
    parser.add_argument("--problems", type=int, default=500, help="number of random problems (default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random problems (default: 0)")
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time of one thread, which other work disturbs less")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the worst problems to this file")
    options = parser.parse_args(arguments)
    if options.problems < 1:
        parser.error(f"--problems must be positive, got {options.problems}")
    clock, team = (CPU_TIME, workers.team_of(1)) if options.cpu_time else (WALL, nullcontext())
    with team:
        threads = workers.thread_count()
        findings = list(search(options.problems, np.random.default_rng(options.seed), clock))
    cliffs = [found for found in findings if found.is_cliff]
    worst = sorted(findings, key=lambda found: -found.ratio)[:20]
    print(f"{options.problems} problems, {len(cliffs)} cliffs; worst ratio {worst[0].ratio:.3g}")
    if options.json is not None:
        record = dict(
            command=report.command_line(arguments, "benchmarks.match_cliffs"),
            processor=report.cpu_model(),
            versions=report.versions(),
            threads=threads,
            problems=options.problems,
            cliffs=len(cliffs),
            worst_ratio=worst[0].ratio,
            worst=[asdict(found) | {"ratio": found.ratio} for found in worst],
        )
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if cliffs else 0


if __name__ == "__main__":
    sys.exit(main())
