"""``python -m benchmarks.match_accuracy``: the errors of block matching on synthetic particle images, beside OpenPIV and OpenCV.

The images come from `particles`: e^-2 diameters from 1.8 to 4 pixels, each spot integrated over the pixels, 8 bits, without noise
and with noise of 5 % of the full scale. The displacement is uniform and swept over one pixel in tenths, with dy and dx different,
or it is a shear or a rotation. All estimators search the same range around the same windows: those whose search stays inside the
frame and, where the displacement varies, which move by at least a pixel less than the search reaches.

An error of more than half a pixel in dy or dx, or no answer, is an outlier. The share of outliers is reported for each estimator.
Bias and rms leave out every window where any estimator has an outlier, so that all of them are judged by the same windows. The
bias is the mean error of one displacement and component, the largest of the sweep; the rms error is that of all windows and both
components. The standard error is that of the bias, as if windows that overlap were independent.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from . import plot, report
from .match_rivals import Estimator, Grid, opencv_gaussian, openpiv, ours
from .particles import Motion, displacement_from, pair, rotation, shear, uniform

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIAMETERS = (1.8, 2.3, 2.8, 4.0)
WINDOWS = (16, 32)
NOISES = (0.0, 0.05)
SEARCH, STEP = 4, 16
SWEEP = tuple(tenth / 10 for tenth in range(11))
APART = 5  # places in the sweep between dx and dy
UNIFORM = "uniform"
SHAPE = (1024, 1024)  # of images that move uniformly
VARYING: dict[str, Callable[[tuple[int, int]], Motion]] = {
    "shear 0.02": partial(shear, 0.02),
    "shear 0.05": partial(shear, 0.05),
    "rotation 1 degree": partial(rotation, 1.0),
}
VARYING_SHAPE, VARYING_PAIRS, VARYING_DIAMETER = (272, 272), 48, 2.3

OURS = "cupycorr gaussian"
ESTIMATORS: dict[str, Estimator] = {
    OURS: partial(ours, subpixel="gaussian"),
    "cupycorr parabola": partial(ours, subpixel="parabola"),
    "OpenPIV": openpiv,
    "OpenCV + gaussian": opencv_gaussian,
}
RIVALS = ("OpenPIV", "OpenCV + gaussian")

OUTLIER = 0.5  # pixels
MOST_BIAS = {1.8: 0.02, 2.3: 0.01, 2.8: 0.01, 4.0: 0.01}  # pixels, by diameter, of uniform displacement and the largest window
WORSE = 0.002  # pixels by which bias and rms may exceed those of a rival, and the share of outliers too


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of image pair and a window."""

    motion: str
    diameter: float
    noise: float
    window: int

    def __str__(self) -> str:
        return f"{self.motion}, diameter {self.diameter}, noise {self.noise:.0%}, window {self.window}"


@dataclass(frozen=True, slots=True)
class Errors:
    """The errors of one estimator in one case, in pixels."""

    case: Case
    estimator: str
    bias: float
    standard_error: float
    rms: float
    outliers: float  # share of the windows
    windows: int
    curve: tuple[float, ...]  # mean error of both components, by the true displacement in the order of the sweep


# Measuring --------------------------------------------------------------------------------------------------------------------


def pairs(case: Case) -> Iterator[tuple[Motion, np.ndarray, np.ndarray]]:
    """Yield the motion and both frames of every image pair of a case; they do not depend on the window."""
    seed = (round(10 * case.diameter), round(100 * case.noise))
    if case.motion == UNIFORM:
        for number, dx in enumerate(SWEEP):
            motion = uniform(SWEEP[(number + APART) % len(SWEEP)], dx)
            yield motion, *pair(SHAPE, case.diameter, motion, case.noise, (*seed, number))
        return
    motion = VARYING[case.motion](VARYING_SHAPE)
    for number in range(VARYING_PAIRS):
        yield motion, *pair(VARYING_SHAPE, case.diameter, motion, case.noise, (*seed, number))


def errors_of(motion: Motion, frame1: np.ndarray, frame2: np.ndarray, window: int) -> dict[str, np.ndarray]:
    """Return the errors in dy and dx of every estimator, (2, windows), NaN where it has no answer."""
    grid = Grid(frame1.shape, window, SEARCH, STEP)
    truth = np.stack(displacement_from(motion, *grid.centres()))
    searched = np.abs(truth).max(0) <= SEARCH - 1
    found = {}
    for name, estimate in ESTIMATORS.items():
        field = np.stack(estimate(frame1, frame2, grid))
        if field.shape != truth.shape:  # of all windows, also of those whose search leaves the frame
            rows, columns = grid.inside
            field = field[:, rows, columns]
        found[name] = (field - truth)[:, searched]
    return found


def errors_of_case(case: Case, measured: Sequence[dict[str, np.ndarray]]) -> list[Errors]:
    """Return the errors of every estimator in a case, from those of each of its image pairs."""
    groups = measured if case.motion == UNIFORM else [_joined(measured)]
    wild = [{name: ~(np.abs(errors).max(0) <= OUTLIER) for name, errors in group.items()} for group in groups]
    rows = []
    for name in groups[0]:
        kept = [group[name][:, ~np.any([*lost.values()], axis=0)] for group, lost in zip(groups, wild, strict=True)]
        means = np.array([errors.mean(1) for errors in kept])  # (displacements, 2)
        spread = [errors.std(1).max() / errors.shape[1] ** 0.5 for errors in kept]
        every = np.concatenate(kept, axis=1)
        outliers = np.concatenate([lost[name] for lost in wild])
        # The displacement of index k along x has index k + APART along y.
        curve = (means[:, 1] + np.roll(means[:, 0], APART)) / 2 if len(means) == len(SWEEP) else ()
        rows.append(
            Errors(
                case=case,
                estimator=name,
                bias=float(np.abs(means).max()),
                standard_error=float(max(spread)),
                rms=float(np.sqrt((every**2).mean())),
                outliers=float(outliers.mean()),
                windows=len(outliers),
                curve=tuple(map(float, curve)),
            )
        )
    return rows


def _joined(measured: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([each[name] for each in measured], axis=1) for name in measured[0]}


def kinds() -> list[tuple[str, float, float]]:
    """Return the motion, diameter and noise of all kinds of images."""
    uniform_kinds = [(UNIFORM, diameter, noise) for noise, diameter in product(NOISES, DIAMETERS)]
    return uniform_kinds + [(motion, VARYING_DIAMETER, 0.0) for motion in VARYING]


def measure(kind: tuple[str, float, float]) -> list[Errors]:
    """Return the errors of every window and estimator on images of one kind; both windows see the same images."""
    cases = [Case(*kind, window) for window in WINDOWS]
    measured: dict[Case, list[dict[str, np.ndarray]]] = {case: [] for case in cases}
    for motion, frame1, frame2 in pairs(cases[0]):
        for case, errors in measured.items():
            errors.append(errors_of(motion, frame1, frame2, case.window))
    return [row for case in cases for row in errors_of_case(case, measured[case])]


# Acceptance -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Promise:
    """A limit for our default estimator, and the largest number found with the case where it was found."""

    text: str
    limit: float
    found: float
    where: str

    @property
    def kept(self) -> bool:
        """True where the limit holds."""
        return self.found <= self.limit


def promises(rows: Sequence[Errors]) -> list[Promise]:
    """Return the limits on the bias, by diameter, and on how far any number may exceed that of a rival."""
    found = []
    for diameter in DIAMETERS:
        place = (UNIFORM, diameter, max(WINDOWS))
        mine = [row for row in rows if row.estimator == OURS and (row.case.motion, row.case.diameter, row.case.window) == place]
        if mine:
            worst = max(mine, key=lambda row: row.bias)
            text = f"bias at window {max(WINDOWS)}, diameter {diameter}"
            found.append(Promise(text, MOST_BIAS[diameter], worst.bias, str(worst.case)))
    table = {(row.case, row.estimator): row for row in rows}
    for rival, (name, number) in product(RIVALS, _COMPARED.items()):
        excess = {row.case: number(table[row.case, OURS]) - number(row) for row in rows if row.estimator == rival}
        if excess:
            worst_case = max(excess, key=excess.__getitem__)
            found.append(Promise(f"{name} above that of {rival}", WORSE, excess[worst_case], str(worst_case)))
    return found


_COMPARED: Mapping[str, Callable[[Errors], float]] = {
    "bias": lambda row: row.bias,
    "rms": lambda row: row.rms,
    "outliers": lambda row: row.outliers,
}


# Report -----------------------------------------------------------------------------------------------------------------------

COLUMNS: tuple[tuple[str, Callable[[Errors], str]], ...] = (
    ("motion", lambda row: row.case.motion),
    ("diameter", lambda row: f"{row.case.diameter}"),
    ("noise", lambda row: f"{row.case.noise:.0%}"),
    ("window", lambda row: f"{row.case.window}"),
    ("estimator", lambda row: row.estimator),
    ("bias", lambda row: f"{row.bias:.4f}"),
    ("+-", lambda row: f"{row.standard_error:.4f}"),
    ("rms", lambda row: f"{row.rms:.4f}"),
    ("outliers", lambda row: f"{row.outliers:.2%}"),
    ("windows", lambda row: f"{row.windows}"),
)
LEFT = ("motion", "estimator")


def table_of(rows: Sequence[Errors]) -> Table:
    """Return the table of errors."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, _ in COLUMNS:
        table.add_column(name, justify="left" if name in LEFT else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(cell(row) for _, cell in COLUMNS), style="bold" if row.estimator == OURS else None)
    return table


def print_promises(console: Console, found: Sequence[Promise]) -> None:
    """Print a line for each promise."""
    for promise in found:
        verdict = "PASS" if promise.kept else "FAIL"
        line = f"{verdict} {promise.text}: {promise.found:.4f}, limit {promise.limit} ({promise.where})"
        console.print(line, style=None if promise.kept else "bold red", highlight=False)


def record(row: Errors) -> dict[str, object]:
    """Return a row of the file."""
    fields = asdict(row)
    case: dict[str, object] = fields.pop("case")
    return case | fields


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and the promises; return 1 where one is broken, 2 where something is missing."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser("python -m benchmarks.match_accuracy", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to this file too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the bias against the displacement into this file")
    options = parser.parse_args(arguments)
    try:
        if options.plot is not None:
            plot.check(options.plot)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    others = ("scipy", "openpiv", "cv2")
    header = report.cpu_header(arguments, ("uint8",), "benchmarks.match_accuracy", others)
    console, errors = report.wide_console(), Console(stderr=True)
    rows: list[Errors] = []
    try:
        for kind in kinds():
            with errors.status(", ".join(map(str, kind))):
                rows += measure(kind)
            if options.json is not None:
                report.write_content(options.json, report.content(header, [*map(record, rows)]))
    except ImportError as error:
        print(f"python -m benchmarks.match_accuracy: {error}", file=sys.stderr)
        return 2
    found = promises(rows)
    report.print_header(console, header)
    console.print(f"pixels; search +-{SEARCH}, step {STEP}; bias and rms without the windows where any estimator is an outlier")
    console.print(table_of(rows))
    print_promises(console, found)
    if options.json is not None:
        kept = [asdict(promise) | {"kept": promise.kept} for promise in found]
        report.write_content(options.json, report.content(header, [*map(record, rows)]) | {"promises": kept})
    if options.plot is not None:
        draw(header, rows).savefig(options.plot, dpi=plot.DOTS_PER_INCH)
    return 0 if all(promise.kept for promise in found) else 1


# Picture ----------------------------------------------------------------------------------------------------------------------

PANEL = (2.9, 2.1)  # inches
STYLES: dict[str, dict[str, Any]] = {
    OURS: {"color": plot.COLOURS[0], "linewidth": 2.2, "marker": "o", "markersize": 4},
    "cupycorr parabola": {"color": plot.COLOURS[1], "marker": "s", "markersize": 3},
    "OpenPIV": {"color": plot.COLOURS[2], "marker": "D", "markersize": 3},
    "OpenCV + gaussian": {"color": "black", "linestyle": "--", "linewidth": 1, "marker": "x", "markersize": 4},
}


def draw(header: report.Header, rows: Sequence[Errors]) -> Figure:
    """Return the picture: the bias against the true displacement, a panel for each diameter, noise and window."""
    from matplotlib.figure import Figure

    swept = [row for row in rows if row.curve]
    diameters = sorted({row.case.diameter for row in swept})
    lines = sorted({(row.case.window, row.case.noise) for row in swept})
    size = (PANEL[0] * len(diameters) + 0.6, PANEL[1] * len(lines) + 1)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(lines), len(diameters), squeeze=False, sharex=True, sharey="row")
    for (window, noise), line in zip(lines, panels, strict=True):
        for diameter, panel in zip(diameters, line, strict=True):
            panel.set_title(f"window {window}, diameter {diameter} px, noise {noise:.0%}", fontsize="small")
            place = (diameter, window, noise)
            _draw_panel(panel, [row for row in swept if (row.case.diameter, row.case.window, row.case.noise) == place])
        line[0].set_ylabel("bias (px)")
    for panel in panels[-1]:
        panel.set_xlabel("true displacement (px)")
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    figure.suptitle(f"Mean error of block matching, cupycorr {header.versions['cupycorr']}, search +-{SEARCH} px")
    return figure


def _draw_panel(panel: Axes, rows: Sequence[Errors]) -> None:
    panel.axhline(0, color="0.6", linewidth=0.8)
    for row in rows:
        panel.plot(SWEEP, row.curve, label=row.estimator, **STYLES[row.estimator])
    panel.grid(color="0.92")
    panel.margins(x=0.04, y=0.08)
    panel.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])


if __name__ == "__main__":
    sys.exit(main())
