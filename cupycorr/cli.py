"""The command ``cupycorr``: ``demo``, ``match`` and ``info``.

This module has the arguments and exit codes (0 done, 1 some pairs failed, 2 refused with one line on stderr, 130 interrupted, 128
plus its number for another signal). `_files` reads, matches and writes; `_terminal` prints. Every package of the ``demo`` extra
is imported where it is used, so that a missing one is reported in one line with the remedy.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import __version__, _information, _pictures, _terminal, motion
from ._arguments import Pair
from ._cpu import workers
from ._files import job, pairs, results, schedulers
from ._files.frames import page_count
from ._files.page import number
from ._files.settings import Settings
from ._gpu import compiler, device
from ._motion import costs
from ._motion.geometry import Lattice
from ._motion.peaks import FITS
from ._operators import builds
from ._terminal import Refused

if TYPE_CHECKING:
    import click

    from ._gpu.source import Kernel
    from .motion import Match


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments
        The words after ``cupycorr``; by default those of this process.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        with _terminal.stopped_by_signals():
            _terminal.require("click")
            return _run(given or ["--help"])
    except _terminal.Stopped as stopped:
        return stopped.code
    except KeyboardInterrupt:
        return _terminal.INTERRUPTED
    except (Refused, results.NotWritten) as error:
        return _refuse(error)
    except OSError as error:
        # An error of a path names it, such as of a folder that may not be looked into. Click prints the help by itself.
        if error.filename is not None:
            return _refuse(f"cannot use {error.filename!r}: {error.strerror or error}")
        _terminal.forget(sys.stdout)
        return _refuse(f"cannot write to standard output: {error.strerror or error}")


def _run(arguments: list[str]) -> int:
    import click

    try:
        return int(_program().main(arguments, prog_name="cupycorr", standalone_mode=False) or 0)
    except click.ClickException as error:
        return _refuse(error.format_message())
    except click.Abort:
        return _terminal.INTERRUPTED


def _refuse(reason: object) -> int:
    _terminal.complain(reason)
    return _terminal.REFUSED


def _program() -> click.Group:
    """Return the commands and their options."""
    import click

    target = click.Path(dir_okay=False, path_type=Path)
    demo = click.Command(
        "demo",
        callback=_demo,
        short_help="Disparity of a real stereo pair, against its ground truth.",
        help="Match scikit-image's Middlebury motorcycle stereo pair and draw the disparity next to its ground truth.",
        params=[
            click.Option(["-o", "--output"], type=target, default="cupycorr-demo.png", show_default=True, help="PNG to write."),
        ],
    )
    match = click.Command(
        "match",
        callback=_match,
        short_help="Displacement fields between pictures of the same size.",
        help=_MATCH_HELP,
        params=_match_parameters(),
    )
    info = click.Command(
        "info",
        callback=_info,
        short_help="What can run here, and the command that installs what is missing.",
        help="Show what can run here, and the command that installs what is missing.",
        params=[
            click.Option(
                ["--verbose"],
                is_flag=True,
                help="Show versions, devices, folders, variants and why some of them cannot run, too.",
            ),
            click.Option(["--json", "as_json"], is_flag=True, help="Print all of it as JSON, for a bug report."),
            click.Option(
                ["--compile", "ahead"],
                is_flag=True,
                help="Compile every kernel for every device now instead of at its first use.",
            ),
        ],
    )
    version = click.version_option(__version__, message="cupycorr %(version)s")
    about = "Find the displacement of each window between two pictures: spatial correlation for flow, stereo, tracking and PIV."
    return version(click.Group("cupycorr", {"demo": demo, "match": match, "info": info}, help=about))


def _match_parameters() -> list[click.Parameter]:
    import click

    mask = click.Path(exists=True, dir_okay=False, path_type=Path)
    formats = click.Choice([ending.removeprefix(".") for ending in results.WRITERS])
    return [
        click.Argument(["frames"], nargs=-1, metavar="A B | FRAMES..."),
        click.Option(["--pairs", "patterns"], nargs=2, multiple=True, metavar="A B", help="Match the files A with the files B."),
        click.Option(["-o", "--output"], required=True, help=f"File to write ({_ENDINGS}), or a folder/ for many pairs."),
        click.Option(["--format", "formats"], type=formats, multiple=True, help="Format in a folder; npz if not given."),
        click.Option(["--resume"], is_flag=True, help="Keep the results that are in the folder, and make the others."),
        click.Option(["--window"], default="11", show_default=True, metavar="N|HxW", help="Window height x width in px."),
        click.Option(["--search"], type=click.IntRange(0), default=4, show_default=True, help="Search +-N px in x and y."),
        _range_option("--dx", "Search these displacements along x instead, both ends included."),
        _range_option("--dy", "Search these displacements along y instead, both ends included."),
        click.Option(["--step"], type=click.IntRange(1), default=1, show_default=True, help="Pixels between windows."),
        click.Option(["--subpixel/--no-subpixel"], default=True, help="Refine to fractions of a pixel along each axis."),
        click.Option(["--fit"], type=click.Choice(FITS), default=FITS[0], show_default=True, help="Method of --subpixel."),
        click.Option(["--nodata"], metavar="VALUE", help="Pixels of A and B with this value are missing."),
        click.Option(["--mask1"], type=mask, metavar="FILE", help="Mask of A: 0 where a pixel is missing."),
        click.Option(["--mask2"], type=mask, metavar="FILE", help="Mask of B: 0 where a pixel is missing."),
        click.Option(["--arrows"], is_flag=True, help="Draw arrows over A instead of colours (.png)."),
        click.Option(
            ["--scheduler"],
            metavar="ADDRESS|processes|threads",
            help="Match chunk by chunk with Dask: on the cluster of this address, or in processes or threads here.",
        ),
    ]


def _range_option(name: str, help_text: str) -> click.Option:
    import click

    return click.Option([name], nargs=2, type=int, metavar="LO HI", help=help_text)


_ENDINGS = ", ".join(results.WRITERS)
_MATCH_HELP = """Find the displacement of each window of picture A to picture B, in pixels, and write the field.

\b
cupycorr match A B -o field.npz
cupycorr match 'frames/*.tif' -o fields/      each frame with the next one
cupycorr match movie.tif -o fields/           each page with the next one
cupycorr match --pairs 'left/*.png' 'right/*.png' -o fields/ --format csv

Quote patterns: their files are then sorted by the numbers in their names, frame 2 before frame 10. Files that are named one by
one stay in their order. --pairs and --format may be given several times. A pair that fails is reported and the others go on; the
exit code is then 1. After an interruption, the same command with --resume makes what is missing.

Pictures: TIFF and .npy of any integer or floating type, grey or colour, and whatever else Pillow reads: 8 and 16 bit grey, RGB
and RGBA, palette. Colour in other formats than TIFF and .npy is read with 8 bits. A picture with an EXIF orientation is turned
upright. If a file with several pages is not the only one, its first page is read.

Missing pixels do not take part in the match. A pixel is missing if any of these says so:

\b
alpha     the pixel is transparent: alpha is 0
NaN       its value in a floating picture is NaN
a tag     its value is the number in the TIFF tag GDAL_NODATA
--nodata  its value is VALUE, such as -9999 or -3.4028235e38, in A or in
          B; this takes the place of the tags
--mask1, --mask2
          its pixel in the mask FILE is 0; any other value is valid. In a
          mask with colours, a pixel is 0 if all its channels are 0 or
          if it is transparent. A mask has the size of its picture.

A colour has VALUE, or the number in a tag, if all its channels have it; a palette colour has it if its index in the palette is
this number. VALUE is rounded to the precision of a floating picture. In a picture that cannot have it, such as -9999 with 8 bits,
no pixel has it.

\b
.png  colours: Middlebury's wheel with its scale, or a colour bar if
      only one axis is searched; with --arrows, arrows over picture A
.npz  NumPy arrays x (columns), y (rows) of the window centres; dx, dy,
      score, peak_ratio, at_edge, count (rows, columns) as cupycorr.match
      returns them; the options window, search, step, ...
.csv  a line x,y,dx,dy,score for each window
.npy  float32 array (rows, columns, 3) of dx, dy, score
.flo  Middlebury flow: float32 dx, dy interleaved; 1e10 where unknown

\b
Where no match was found (no texture, or too few pixels that are not
missing), dx and dy are NaN and score is 0. Positive is to the right and
down. The vector in row i and column j of a grid belongs to this pixel of
picture A, counted from 0; .flo and .npy do not contain it:
      x = j * step + (window width - 1) / 2
      y = i * step + (window height - 1) / 2

\b
Stereo, B seen from the right:  cupycorr match A B -o d.png --dx -64 0 --dy 0 0
PIV:                            cupycorr match A B -o v.npz --window 32 --step 16 --search 12
"""


# demo ----------------------------------------------------------------------------------------------------------------

_DEMO_WINDOW = 11
_DEMO_SEARCH = ((0, 0), (-64, 0))
_COUNTED_FROM = 80  # further left, the true match may be outside the right frame
_BAD = 2.0


def _demo(output: Path) -> None:
    _terminal.require("skimage", "matplotlib", "rich")
    from skimage import data

    if output.suffix.lower() != ".png":
        raise Refused(f"--output must end in .png, got {str(output)!r}")
    _check_folder_of(output)
    stereo_pair: Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]] = data.stereo_motorcycle
    left, right, truth = stereo_pair()
    with results.new_file(output) as file:
        truth = np.where(np.isfinite(truth), truth, np.nan)
        field, seconds, variant = _timed_demo_match(left, right)
        disparity = np.full(truth.shape, np.nan)
        rows, columns = (np.round(centres).astype(int) for centres in (field.y, field.x))
        windows = np.ix_(rows, columns)
        disparity[windows] = -field.dx
        counted = np.isfinite(truth[windows]) & (columns >= _COUNTED_FROM)
        bad, median = _score(-field.dx[counted], truth[windows][counted])
        rate = _displacements(_DEMO_SEARCH) * field.score.size / seconds / 1e6
        summary = [
            f"bad-{_BAD:.1f}: {bad:.1%} of {counted.sum()} pixels with ground truth",
            f"median error: {median:.3f} px",
            f"time: {seconds:.2f} s after a warm-up, {rate:.0f} Mpixel-displacements/s",
            f"variant: {variant}, {workers.thread_count()} threads",
        ]
        with _terminal.progress("drawing"):
            _pictures.stereo_picture(file, left, right, disparity, truth, _COUNTED_FROM, summary)
    _terminal.say(*summary, f"picture: {output}")


def _timed_demo_match(left: np.ndarray, right: np.ndarray) -> tuple[Match[np.ndarray], float, str]:
    """Return the field, the seconds it took, and the variant that `match` chooses for frames of this size."""
    with _terminal.progress("matching") as report, _terminal.refusing():
        # The work that is done once per process (starting threads, compiling or loading kernels) is not counted.
        motion.match(left[:64], right[:64], window=_DEMO_WINDOW, search=_DEMO_SEARCH)
        begin = time.perf_counter()
        field = motion.match(left, right, window=_DEMO_WINDOW, search=_DEMO_SEARCH, progress=report)
        seconds = time.perf_counter() - begin
    (dy, dx), counts = _DEMO_SEARCH, field.score.shape
    tried = dy[1] - dy[0] + 1, dx[1] - dx[0] + 1
    windows = Lattice((0, 0), (1, 1), (counts[0], counts[1]))
    request = costs.Request(left, (_DEMO_WINDOW, _DEMO_WINDOW), tried, windows)
    return field, seconds, costs.cheapest(request, "auto").variant


def _score(found: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Return the fraction of pixels that are off by more than 2 px, and the median error; no match counts as the worst one."""
    error = np.nan_to_num(abs(found - truth), nan=np.inf)
    return float(np.mean(error > _BAD)), float(np.median(error))


def _displacements(search: tuple[Pair, Pair]) -> int:
    (dy_low, dy_high), (dx_low, dx_high) = search
    return (dy_high - dy_low + 1) * (dx_high - dx_low + 1)


# match ---------------------------------------------------------------------------------------------------------------


def _match(
    frames: tuple[str, ...],
    patterns: tuple[tuple[str, str], ...],
    output: str,
    formats: tuple[str, ...],
    resume: bool,
    window: str,
    search: int,
    dx: Pair | None,
    dy: Pair | None,
    step: int,
    subpixel: bool,
    fit: str,
    nodata: str | None,
    mask1: Path | None,
    mask2: Path | None,
    arrows: bool,
    scheduler: str | None,
) -> int:
    _terminal.require("PIL", "tifffile", "rich")
    ranges = (dy or (-search, search), dx or (-search, search))
    refinement = fit if subpixel else None
    settings = Settings(_window_sides(window), ranges, step, refinement, _nodata(nodata), mask1, mask2, arrows)
    if not output:
        raise Refused("--output is empty")
    path, is_folder = Path(output), _is_folder(output)
    endings = _endings(path, is_folder, formats)
    if arrows and results.PICTURE not in endings:
        raise Refused(f"--arrows draws a {results.PICTURE}, which is not written")
    if results.PICTURE in endings:
        _terminal.require("matplotlib")
    with _terminal.refusing():
        workers.thread_count()
        every = _pairs(frames, patterns)
        with _matching(scheduler) as match:
            if not is_folder:
                return _match_into_file(every, path, resume, settings, match)
            tasks = job.tasks_of(every, path, endings)
            job.check_targets(tasks, settings)
            left = job.begin(path, tasks, settings, resume)
            return _match_into_folder(path, left, len(tasks) - len(left), settings, match)


def _matching(scheduler: str | None) -> AbstractContextManager[schedulers.MatchFrames | None]:
    """Return a context with the function that matches frames by a scheduler; None without one."""
    if scheduler is None:
        return nullcontext()
    try:
        importlib.import_module("cupycorr.dask")
    except ImportError as error:
        raise Refused(error) from error
    return schedulers.matching(scheduler)


def _match_into_file(
    every: Sequence[pairs.Pair], path: Path, resume: bool, settings: Settings, match: schedulers.MatchFrames | None
) -> int:
    if len(every) > 1:
        raise Refused(f"--output must be a folder for {len(every)} pairs, such as fields/, got {str(path)!r}")
    if resume:
        raise Refused("--resume needs a folder as --output")
    _check_folder_of(path)
    task = job.Task(every[0], (path,))
    job.check_targets([task], settings)
    with _terminal.progress("matching") as report:
        (outcome,) = job.run([task], settings, report, match)
    if outcome.failed:
        raise Refused(outcome.told)
    for note in outcome.notes:
        _terminal.remark(note)
    _terminal.say(f"{outcome.told}: {path}")
    return 0


def _match_into_folder(
    folder: Path, left: Sequence[job.Task], kept: int, settings: Settings, match: schedulers.MatchFrames | None
) -> int:
    """Do the tasks that are left, report each of them, and return the exit code."""
    failed, told = 0, set[str]()
    with _terminal.progress("matching", len(left)) as report:
        for outcome in job.run(left, settings, report, match):
            targets = ", ".join(map(str, outcome.task.targets))
            if outcome.failed:
                failed += 1
                _terminal.complain(f"{outcome.task.pair.name}: {outcome.told}")
            else:
                _terminal.say(f"{_terminal.one_line(outcome.told)}: {targets}")
            for note in outcome.notes:
                if note not in told:
                    _terminal.remark(note)
            told.update(outcome.notes)
    _terminal.say(f"{len(left) - failed} pairs matched, {kept} kept, {failed} failed: {folder}{os.sep}")
    return _terminal.FAILED if failed else 0


def _pairs(frames: tuple[str, ...], patterns: tuple[tuple[str, str], ...]) -> list[pairs.Pair]:
    """Return the pairs that the arguments name."""
    if bool(frames) == bool(patterns):
        raise Refused("give either pictures, such as A B or 'frames/*.tif', or --pairs A B")
    if patterns:
        return [pair for first, second in patterns for pair in pairs.joined(pairs.frames_of([first]), pairs.frames_of([second]))]
    found = pairs.frames_of(frames)
    if len(found) < 2:
        page_count(found[0].path)  # says why a damaged file has no pages
        raise Refused(f"two pictures are needed, got only {str(found[0])!r}")
    return pairs.consecutive(found)


def _is_folder(output: str) -> bool:
    path = Path(output)
    return output.endswith((os.sep, "/")) or (path.is_dir() and path.suffix.lower() not in results.WRITERS)


def _endings(path: Path, is_folder: bool, formats: tuple[str, ...]) -> tuple[str, ...]:
    """Return the endings of the files to write."""
    if is_folder:
        return tuple(f".{each}" for each in dict.fromkeys(formats or ("npz",)))
    if path.suffix.lower() not in results.WRITERS:
        raise Refused(f"--output must end in {_ENDINGS}, or in / for a folder, got {str(path)!r}")
    if formats:
        raise Refused(f"--format is for a folder; --output {str(path)!r} has its format in its name")
    return (path.suffix.lower(),)


def _check_folder_of(path: Path) -> None:
    if not path.parent.is_dir():
        raise Refused(f"there is no folder {str(path.parent)!r} to write {path.name!r} to")


def _window_sides(text: str) -> Pair:
    found = re.fullmatch(r"([1-9][0-9]*)(?:x([1-9][0-9]*))?", text)
    if found is None:
        raise Refused(f"--window must be a number of pixels or HEIGHTxWIDTH, such as 11 or 11x9, got {text!r}")
    return int(found[1]), int(found[2] or found[1])


def _nodata(text: str | None) -> float | None:
    try:
        return None if text is None else number(text)
    except ValueError as error:
        raise Refused(f"--nodata must be a number, got {text!r}") from error


# info ----------------------------------------------------------------------------------------------------------------


def _info(verbose: bool, as_json: bool, ahead: bool) -> None:
    if verbose + as_json + ahead > 1:
        raise Refused("give one of --verbose, --json and --compile")
    if ahead:
        _compile_ahead()
        return
    with _terminal.progress("looking for devices"), _terminal.refusing():
        facts = _information.report(__version__)
    if as_json:
        _terminal.say(json.dumps(facts, indent=2))
    else:
        _terminal.say(*_information.summary(facts), *(("", *_information.details(facts)) if verbose else ()))


def _compile_ahead() -> None:
    """Compile and load every kernel on every device; CuPy stores the binaries for later processes."""
    with _terminal.refusing():
        threads = workers.thread_count()
    try:
        with _terminal.quiet():
            jobs = [(kernel, index) for index in range(device.count()) for _, kernel in builds(device.facts(index))]
        begin = time.perf_counter()
        with _terminal.progress("compiling") as report:
            done, reporting = count(1), threading.Lock()

            def compile_one(job: tuple[Kernel, int]) -> None:
                compiler.function(*job)
                with reporting:
                    report(next(done) / len(jobs))

            workers.run(compile_one, jobs, threads)
    except (ImportError, RuntimeError) as error:
        raise Refused(error) from error
    _terminal.say(f"{len(jobs)} kernels, {time.perf_counter() - begin:.1f} s: {compiler.cache_folder()}")


if __name__ == "__main__":
    sys.exit(main())
