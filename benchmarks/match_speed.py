"""``python -m benchmarks.match_speed``: the time of block matching, beside OpenCV and OpenPIV, interleaved in one run.

Every problem is solved by `cupycorr.match` with ``variant="auto"`` and with its forced variants, and by what people use instead:
a Python loop over OpenCV's matchTemplate with minMaxLoc, OpenPIV's extended search with the same search, one matchTemplate where
there is one template, and StereoBM for the stereo pair. The rivals' answers are compared with ours before anything is timed.
OpenPIV leaves out the windows whose search leaves the frame, and OpenCV's answers are whole pixels: both do less work than we do.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import cupycorr

from . import report
from .match_rivals import Grid, opencv, opencv_module, openpiv, ours
from .particles import Vectors, pair, uniform
from .timing import Timing, race

VARIANTS = ("operator", "fft", "simd")  # forced, beside auto
AUTO = "auto"
ROUNDS = 9
BUDGET = 20.0  # seconds for one problem; a contestant leaves the race once it has used its share and run twice
AGREED = 0.1  # pixels: the median of the differences that still counts as the same answer
DIFFERENT = 0.5  # pixels: a larger difference counts as another answer
SYNTHETIC = (1720, 2304)

Work = Callable[[], Vectors]


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem and the contestants that solve it.

    ``works`` return displacements, and ``compared`` picks those of the windows that all contestants have. Those in ``whole``
    find whole pixels only. ``agreed`` is the largest median difference that counts as the same answer.
    """

    name: str
    dtype: str
    works: Mapping[str, Work]
    compared: Callable[[Vectors], Vectors] = lambda found: found
    whole: tuple[str, ...] = ()
    agreed: float = AGREED


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one contestant on one problem."""

    problem: str
    dtype: str
    contestant: str
    timing: Timing | None = None
    ratio: float | None = None  # this contestant's time / that of auto
    difference: float | None = None  # median distance from auto's displacement in pixels
    different: float | None = None  # share of the windows that differ by more than `DIFFERENT`
    agrees: bool = True
    reason: str | None = None  # why it was not run

    @property
    def rival(self) -> bool:
        """True where the contestant is not ours."""
        return self.contestant not in (AUTO, *VARIANTS)

    @property
    def lost(self) -> bool:
        """True where the contestant is faster than auto, and it is a rival."""
        return self.rival and self.ratio is not None and self.ratio < 1

    @property
    def regretted(self) -> bool:
        """True where the contestant is a variant of ours that auto should have run."""
        return not self.rival and self.ratio is not None and self.ratio < 1 / report.REGRETTED


# Problems ---------------------------------------------------------------------------------------------------------------------


def experiment() -> tuple[np.ndarray, np.ndarray]:
    """Return the PIV pair that comes with OpenPIV, 369 x 511."""
    try:
        import openpiv as package
    except ImportError as error:
        raise ImportError("the PIV pair comes with OpenPIV: pip install openpiv") from error
    folder = Path(package.__file__).parent / "data" / "test1"
    cv2 = opencv_module()
    first, second = (cv2.imread(str(folder / f"exp1_001_{name}.bmp"), cv2.IMREAD_GRAYSCALE) for name in "ab")
    return first, second


@lru_cache(maxsize=1)
def synthetic(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return a pair of particle images that move by 1.7 pixels down and 3.4 to the left."""
    return pair(shape, 2.5, uniform(1.7, -3.4), noise=0.02)


def our_works(solve: Callable[..., Vectors]) -> dict[str, Work]:
    """Return auto and the forced variants of a call that takes ``variant``."""
    return {variant: partial(solve, variant=variant) for variant in (AUTO, *VARIANTS)}


def windows(
    name: str, dtype: str, frames: Callable[[], tuple[np.ndarray, np.ndarray]], window: int, search: int, step: int
) -> Problem:
    """Return a problem with a grid of windows."""
    frame1, frame2 = (frame.astype(dtype) for frame in frames())
    grid = Grid(frame1.shape, window, search, step)

    def inside(found: Vectors) -> Vectors:
        rows, columns = (range(*part.indices(part.stop)) for part in grid.inside)
        dy, dx = (each if each.shape == (len(rows), len(columns)) else each[grid.inside] for each in found)
        return dy, dx

    works = our_works(partial(ours, frame1, frame2, grid)) | {
        "matchTemplate loop": partial(opencv, frame1, frame2, grid),
        "OpenPIV": partial(openpiv, frame1, frame2, grid, vectorized=False),
        "OpenPIV vectorized": partial(openpiv, frame1, frame2, grid),
    }
    text = f"{name} {frame1.shape[0]}x{frame1.shape[1]}, window {window}, search {search}, step {step}"
    return Problem(text, dtype, works, inside, ("matchTemplate loop",))


def template(size: tuple[int, int], shape: tuple[int, int], dtype: str = "uint8") -> Problem:
    """Return the problem of finding one template wherever it fits into an image."""
    cv2 = opencv_module()
    image = synthetic(shape)[0]
    corner = tuple((length - part) * 2 // 3 for length, part in zip(shape, size, strict=True))
    part = image[corner[0] :, corner[1] :][: size[0], : size[1]]
    noisy = part + np.random.default_rng(1).normal(0, 5, size)
    wanted = np.rint(noisy).clip(0, 255).astype(dtype)
    image = image.astype(dtype)

    def solve(variant: str) -> Vectors:
        found = cupycorr.match(wanted, image, window=size, search=None, variant=variant)
        return found.dy, found.dx

    def match_template() -> Vectors:
        _, _, _, (column, row) = cv2.minMaxLoc(cv2.matchTemplate(image, wanted, cv2.TM_CCOEFF_NORMED))
        return np.array([[float(row)]]), np.array([[float(column)]])

    name = f"template {size[0]}x{size[1]} in {shape[0]}x{shape[1]}"
    return Problem(name, dtype, our_works(solve) | {"matchTemplate": match_template}, whole=("matchTemplate",))


STEREO_WINDOW, STEREO_SEARCH, STEREO_DISPARITIES = 11, ((0, 0), (-64, 0)), 80
STEREO_UNIT = 16  # StereoBM's disparities are in sixteenths of a pixel


def stereo() -> Problem:
    """Return the stereo demo: colour frames for us, grey frames for StereoBM, which filters them and rejects doubtful matches."""
    cv2 = opencv_module()
    from skimage import data

    demo: Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]] = data.stereo_motorcycle
    left, right, _ = demo()
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (left, right)]
    matcher = cv2.StereoBM_create(numDisparities=STEREO_DISPARITIES, blockSize=STEREO_WINDOW)

    def solve(variant: str) -> Vectors:
        found = cupycorr.match(left, right, STEREO_WINDOW, STEREO_SEARCH, variant=variant)
        return found.dy, found.dx

    def stereo_bm() -> Vectors:
        border = STEREO_WINDOW // 2
        disparity = matcher.compute(*grey)[border:-border, border:-border]
        return np.zeros(disparity.shape), np.where(disparity >= 0, -disparity / STEREO_UNIT, np.nan)

    text = f"stereo {left.shape[0]}x{left.shape[1]}, window {STEREO_WINDOW}, 65 disparities, step 1"
    # StereoBM minimises the sum of absolute differences and keeps 2 of 3 windows, so the answers only resemble each other.
    return Problem(text, "uint8", our_works(solve) | {"StereoBM": stereo_bm}, agreed=DIFFERENT)


def problems() -> dict[str, Callable[[], Problem]]:
    """Return the problems by a short name; each is made when it is needed."""
    grids: dict[str, tuple[Any, ...]] = {
        "piv-32": (experiment, 32, 12, 16),
        "piv-24": (experiment, 24, 12, 12),
        "piv-64": (experiment, 64, 16, 16),
        "piv-large": (partial(synthetic, SYNTHETIC), 32, 12, 32),
    }
    made: dict[str, Callable[[], Problem]] = {
        f"{name}-{dtype}": partial(windows, "PIV", dtype, *arguments)
        for (name, arguments), dtype in product(grids.items(), ("uint8", "float32"))
    }
    square = partial(synthetic, (500, 500))
    return made | {
        "step-32": partial(windows, "frame", "uint8", square, 32, 4, 32),
        "step-33": partial(windows, "frame", "uint8", square, 32, 4, 33),
        "template-60x70": partial(template, (60, 70), (512, 512)),
        "template-480": partial(template, (480, 480), (512, 512)),
        "template-128": partial(template, (128, 128), (2048, 2048)),
        "stereo": stereo,
    }


# Running ----------------------------------------------------------------------------------------------------------------------


def run(problem: Problem, rounds: int, budget: float = BUDGET) -> list[Result]:
    """Compare all answers with auto's, then time the contestants in turn."""
    works: dict[str, Work] = {}
    warm: dict[str, tuple[float, ...]] = {}
    results: dict[str, dict[str, Any]] = {}
    want: Vectors | None = None
    for name, work in problem.works.items():
        try:
            answer, first = _clocked(work)
        except (NotImplementedError, ImportError) as error:
            results[name] = {"reason": str(error)}
            continue
        compared = problem.compared(answer)
        want = compared if want is None else want  # auto comes first
        results[name] = comparison(compared, want, name in problem.whole, problem.agreed)
        # The first call of ours may compile, but a call that exceeds the budget is not repeated.
        works[name], warm[name] = work, (_clocked(work)[1] if first < budget else first,)
    timings = race(works, warm, budget, most_runs=rounds)
    auto = timings[AUTO].median if AUTO in timings else None
    return [
        Result(problem.name, problem.dtype, name, timings.get(name), _ratio(timings.get(name), auto), **found)
        for name, found in results.items()
    ]


def _clocked(work: Work) -> tuple[Vectors, float]:
    begin = time.perf_counter()
    answer = work()
    return answer, time.perf_counter() - begin


def _ratio(timing: Timing | None, auto: float | None) -> float | None:
    return timing.median / auto if timing and auto else None


def comparison(found: Vectors, want: Vectors, whole: bool, agreed: float) -> dict[str, Any]:
    """Return how far displacements are from those of auto, which are rounded where the contestant's are whole pixels."""
    ours_y, ours_x = (np.rint(each) if whole else each for each in want)
    distance = np.hypot(found[0] - ours_y, found[1] - ours_x)
    distance = distance[np.isfinite(distance)]
    if not distance.size:
        return {"agrees": False}
    difference = float(np.median(distance))
    return {"difference": difference, "different": float((distance > DIFFERENT).mean()), "agrees": difference <= agreed}


# Report -----------------------------------------------------------------------------------------------------------------------

COLUMNS: tuple[tuple[str, Callable[[Result], str]], ...] = (
    ("problem", lambda row: row.problem),
    ("dtype", lambda row: row.dtype),
    ("contestant", lambda row: row.contestant),
    ("ms", lambda row: _timed(row, lambda timing: report.milliseconds(timing.median))),
    ("min", lambda row: _timed(row, lambda timing: report.milliseconds(timing.minimum))),
    ("runs", lambda row: _timed(row, lambda timing: f"{len(timing.seconds)}{'*' * timing.cut_short}{'?' * timing.disturbed}")),
    ("x ours", lambda row: "" if row.ratio is None else f"{row.ratio:.2f}"),
    ("median px", lambda row: "" if row.difference is None else f"{row.difference:.3f}"),
    ("differ", lambda row: "" if row.different is None else f"{row.different:.1%}"),
    ("", lambda row: remark(row)),
)
LEFT = ("problem", "dtype", "contestant", "")


def remark(row: Result) -> str:
    """Return the remark on a row: a lost race, a bad choice of auto, an answer that differs, or why it was not run."""
    if row.reason is not None:
        return f"not run: {row.reason}"
    return ", ".join(["LOST"] * row.lost + ["AUTO REGRETS"] * row.regretted + ["DIFFERS"] * (not row.agrees))


def _timed(row: Result, text: Callable[[Timing], str]) -> str:
    return "-" if row.timing is None else text(row.timing)


def table_of(rows: Sequence[Result]) -> Table:
    """Return the table of times."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, _ in COLUMNS:
        table.add_column(name, justify="left" if name in LEFT else "right", no_wrap=True)
    for row in rows:
        style = "bold red" if row.lost or row.regretted or not row.agrees else "bold" if row.contestant == AUTO else None
        table.add_row(*(escape(cell(row)) for _, cell in COLUMNS), style=style)
    return table


def record(row: Result) -> dict[str, Any]:
    """Return a row of the file."""
    names = {"problem": row.problem, "dtype": row.dtype, "contestant": row.contestant}
    if row.timing is None:
        return names | {"reason": row.reason}
    return names | {
        "median_s": row.timing.median,
        "minimum_s": row.timing.minimum,
        "runs_s": [round(seconds, 9) for seconds in row.timing.seconds],
        "cut_short": row.timing.cut_short,
        "disturbed": row.timing.disturbed,
        "ratio": row.ratio,
        "lost": row.lost,
        "median_difference_px": row.difference,
        "different_share": row.different,
        "agrees": row.agrees,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the problems and print the table; return 1 where a rival wins or an answer differs, 2 where something is missing."""
    arguments = sys.argv[1:] if arguments is None else arguments
    made = problems()
    parser = argparse.ArgumentParser("python -m benchmarks.match_speed", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file too")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"most runs of each contestant (default: {ROUNDS})")
    parser.add_argument("--problems", default="all", help=f"names separated by commas: {', '.join(made)}, or 'all' (default)")
    options = parser.parse_args(arguments)
    chosen = [*made] if options.problems == "all" else options.problems.split(",")
    if options.rounds < 1:
        parser.error(f"--rounds must be positive, got {options.rounds}")
    if unknown := [name for name in chosen if name not in made]:
        parser.error(f"--problems must be 'all' or of {', '.join(made)}, got {unknown[0]!r}")
    header = report.cpu_header(arguments, ("uint8", "float32"), "benchmarks.match_speed", ("scipy", "skimage", "openpiv", "cv2"))
    console, errors = report.wide_console(), Console(stderr=True)
    rows: list[Result] = []
    for name in chosen:
        try:
            with errors.status(name):
                rows += run(made[name](), options.rounds)
        except ImportError as error:
            print(f"python -m benchmarks.match_speed: {error}", file=sys.stderr)
            return 2
        if options.json is not None:
            report.write_content(options.json, report.content(header, [*map(record, rows)]))
    report.print_header(console, header)
    console.print(table_of(rows))
    console.print(
        f"x ours: this contestant's median over that of auto; median px: the median distance from auto's displacements; differ: "
        f"windows that are over {DIFFERENT} px apart; * longer than its budget, only warmed up; ? disturbed",
        soft_wrap=True,
    )
    lost, wrong = sum(row.lost for row in rows), sum(not row.agrees for row in rows)
    console.print(f"{lost} races lost, {wrong} answers differ", style="bold red" if lost or wrong else "bold")
    return 1 if lost or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
