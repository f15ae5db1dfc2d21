"""The command ``cupycorr``: ``demo``, ``match`` and ``info``.

This module handles files, the terminal and exit codes (0 done, 2 refused with one line on stderr, 130 interrupted); `match` does
the work. Every package of the ``demo`` extra is imported where it is used, so that a missing one is reported in one line with the
remedy.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from . import __version__, _dispatch, _picture_files, _pictures, motion
from ._cpu import workers
from ._gpu import compiler, device, source
from ._motion import costs
from ._motion.geometry import Lattice
from ._motion.peaks import FITS
from ._operators import OPERATORS

if TYPE_CHECKING:
    import click

    from ._gpu.device import Device
    from .motion import Match

Range = tuple[int, int]

REFUSED, INTERRUPTED = 2, 130


class Refused(Exception):  # noqa: N818 - the outcome of a command, reported to its user
    """The command cannot do what its arguments say; the text tells the user why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments
        The words after ``cupycorr``; by default those of this process.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        _require("click")
        return _run(given or ["--help"])
    except Refused as error:
        return _complain(error)


def _run(arguments: list[str]) -> int:
    import click

    try:
        return int(_program().main(arguments, prog_name="cupycorr", standalone_mode=False) or 0)
    except click.ClickException as error:
        return _complain(error.format_message())
    except click.Abort:
        return INTERRUPTED


def _complain(reason: object) -> int:
    print("cupycorr: error:", " ".join(str(reason).split()), file=sys.stderr)
    return REFUSED


def _program() -> click.Group:
    """Return the commands and their options."""
    import click

    picture = click.Path(exists=True, dir_okay=False, path_type=Path)
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
        short_help="Displacement field between two pictures of the same size.",
        help=_MATCH_HELP,
        params=[
            click.Argument(["frame1"], metavar="A", type=picture),
            click.Argument(["frame2"], metavar="B", type=picture),
            click.Option(["-o", "--output"], type=target, required=True, help="File to write: .png, .npy or .flo."),
            click.Option(["--window"], default="11", show_default=True, metavar="N|HxW", help="Window height x width in px."),
            click.Option(["--search"], type=click.IntRange(0), default=4, show_default=True, help="Search +-N px in x and y."),
            _range_option("--dx", "Search these displacements along x instead, both ends included."),
            _range_option("--dy", "Search these displacements along y instead, both ends included."),
            click.Option(["--step"], type=click.IntRange(1), default=1, show_default=True, help="Pixels between windows."),
            click.Option(["--subpixel/--no-subpixel"], default=True, help="Refine to fractions of a pixel along each axis."),
            click.Option(["--fit"], type=click.Choice(FITS), default=FITS[0], show_default=True, help="Method of --subpixel."),
            click.Option(["--nodata"], type=float, metavar="VALUE", help="Pixels of A and B with this value are missing."),
            click.Option(["--mask1"], type=picture, metavar="FILE", help="Mask of A: 0 where a pixel is missing."),
            click.Option(["--mask2"], type=picture, metavar="FILE", help="Mask of B: 0 where a pixel is missing."),
        ],
    )
    info = click.Command(
        "info",
        callback=_info,
        short_help="Versions, devices, folders, and the variants that can run here.",
        help="Show versions, devices, folders and kernels, the variants that can run here, and why the others cannot.",
        params=[
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


def _range_option(name: str, help_text: str) -> click.Option:
    import click

    return click.Option([name], nargs=2, type=int, metavar="LO HI", help=help_text)


_MATCH_HELP = """Find the displacement of each window of picture A to picture B, in pixels, and write the field.

Pictures: 8 and 16 bit grey, RGB and RGBA, palette, floating TIFF and whatever else Pillow reads. Colour and alpha are read with 8
bits. Of a file with several pages, the first one is read.

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
      only one axis is searched
.npy  float32 array (rows, columns, 3) of dx, dy, score; dx and dy are
      NaN and score is 0 where no match was found (no texture, or too
      few pixels that are not missing)
.flo  Middlebury flow: float32 dx, dy interleaved; 1e10 where unknown

\b
Stereo, B seen from the right:  cupycorr match A B -o d.png --dx -64 0 --dy 0 0
PIV:                            cupycorr match A B -o v.npy --window 32 --step 16 --search 12
"""


# demo ----------------------------------------------------------------------------------------------------------------

_DEMO_WINDOW = 11
_DEMO_SEARCH = ((0, 0), (-64, 0))
_COUNTED_FROM = 80  # further left, the true match may be outside the right frame
_BAD = 2.0


def _demo(output: Path) -> None:
    _require("skimage", "matplotlib", "rich")
    from skimage import data

    _check_destination(output, (".png",))
    stereo_pair: Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]] = data.stereo_motorcycle
    left, right, truth = stereo_pair()
    with _new_file(output) as file:
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
        with _progress("drawing"):
            _pictures.stereo_picture(file, left, right, disparity, truth, _COUNTED_FROM, summary)
    print(*summary, f"picture: {output}", sep="\n")


def _timed_demo_match(left: np.ndarray, right: np.ndarray) -> tuple[Match[np.ndarray], float, str]:
    """Return the field, the seconds it took, and the variant that `match` chooses for frames of this size."""
    with _progress("matching") as report, _refusing():
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


def _displacements(search: tuple[Range, Range]) -> int:
    (dy_low, dy_high), (dx_low, dx_high) = search
    return (dy_high - dy_low + 1) * (dx_high - dx_low + 1)


# match ---------------------------------------------------------------------------------------------------------------


def _match(
    frame1: Path,
    frame2: Path,
    output: Path,
    window: str,
    search: int,
    dx: Range | None,
    dy: Range | None,
    step: int,
    subpixel: bool,
    fit: str,
    nodata: float | None,
    mask1: Path | None,
    mask2: Path | None,
) -> None:
    _require("PIL", "matplotlib", "rich")
    sides = _window_sides(window)
    ranges = (dy or (-search, search), dx or (-search, search))
    _check_destination(output, tuple(_WRITERS))
    if output.exists() and any(os.path.samefile(file, output) for file in (frame1, frame2, mask1, mask2) if file):
        raise Refused(f"--output would overwrite a picture that is read, got {str(output)!r}")
    with _new_file(output) as file:
        with _refusing():
            (first, valid1), (second, valid2) = (_picture_files.read_picture(frame, nodata) for frame in (frame1, frame2))
        first, second = _picture_files.same_channels(first, second)
        if first.shape != second.shape:
            raise Refused(f"both pictures must have the same size, got {_size(first)} and {_size(second)}")
        valid1 = _with_mask("--mask1", mask1, first, valid1)
        valid2 = _with_mask("--mask2", mask2, second, valid2)
        begin = time.perf_counter()
        with _progress("matching") as report, _refusing():
            refine = fit if subpixel else False
            field = motion.match(first, second, sides, ranges, step, refine, mask1=valid1, mask2=valid2, progress=report)
        seconds = time.perf_counter() - begin
        with _progress("writing"):
            _WRITERS[output.suffix.lower()](file, field, sides, ranges)
    print(f"{_field_summary(field)}, {seconds:.2f} s: {output}")


def _window_sides(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9][0-9]*)(?:x([1-9][0-9]*))?", text)
    if found is None:
        raise Refused(f"--window must be a number of pixels or HEIGHTxWIDTH, such as 11 or 11x9, got {text!r}")
    return int(found[1]), int(found[2] or found[1])


def _field_summary(field: Match[np.ndarray]) -> str:
    rows, columns = field.score.shape
    matched = np.isfinite(field.dx)
    if not matched.any():
        return f"{rows} x {columns} windows, no matches"
    length = np.median(np.hypot(field.dx[matched], field.dy[matched]))
    unmatched = "" if matched.all() else f" ({1 - matched.mean():.1%} without a match)"
    edge = np.count_nonzero(field.at_edge & matched)
    at_edge = f", {edge} at the edge of the search" if edge else ""
    motions = f"median |motion| {length:.2f} px, mean score {field.score[matched].mean():.3f}"
    return f"{rows} x {columns} windows{unmatched}{at_edge}, {motions}"


def _with_mask(option: str, mask: Path | None, pixels: np.ndarray, valid: np.ndarray | None) -> np.ndarray | None:
    """Return which pixels are valid for the picture and for the mask; None if all are."""
    if mask is None:
        return valid
    with _refusing():
        given = _picture_files.read_mask(mask)
    if given.shape != pixels.shape[:2]:
        raise Refused(f"{option} must have the size of its picture, {_size(pixels)}, got {_size(given)}")
    both = given if valid is None else given & valid
    return None if both.all() else both


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


# Writers: one for each extension -------------------------------------------------------------------------------------


def _write_npy(file: BinaryIO, field: Match[np.ndarray], _window: Any, _search: Any) -> None:
    np.save(file, np.stack([field.dx, field.dy, field.score], axis=-1).astype(np.float32))


_FLO_MAGIC = 202021.25  # its four bytes read PIEH
_FLO_UNKNOWN = 1e10  # readers take anything above 1e9 as unknown


def _write_flo(file: BinaryIO, field: Match[np.ndarray], _window: Any, _search: Any) -> None:
    flow = np.stack([field.dx, field.dy], axis=-1)
    known = np.isfinite(flow).all(axis=-1, keepdims=True)
    rows, columns = flow.shape[:2]
    file.write(np.array(_FLO_MAGIC, "<f4").tobytes())
    file.write(np.array([columns, rows], "<i4").tobytes())
    file.write(np.where(known, flow, _FLO_UNKNOWN).astype("<f4").tobytes())


_WRITERS: dict[str, Callable[[BinaryIO, Match[np.ndarray], tuple[int, int], tuple[Range, Range]], None]] = {
    ".png": _pictures.motion_picture,
    ".npy": _write_npy,
    ".flo": _write_flo,
}


def _check_destination(path: Path, endings: tuple[str, ...]) -> None:
    if path.suffix.lower() not in endings:
        raise Refused(f"--output must end in {' or '.join(endings)}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise Refused(f"there is no folder {str(path.parent)!r} to write {path.name!r} to")


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces ``path`` when it is complete, and is removed if anything goes wrong.

    It is opened in the same folder before any work, so that a folder that cannot be written to is reported at once.
    """
    path = Path(os.path.realpath(path))  # a link is kept, and the file it leads to is replaced
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)
    except OSError as error:
        raise Refused(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


# info ----------------------------------------------------------------------------------------------------------------

_REPORTED = ("llvmlite", "threadpoolctl", "torch", "cupy-cuda12x", "cupy-cuda13x")


def _info(ahead: bool) -> None:
    if ahead:
        _compile_ahead()
        return
    with _progress("looking for devices"):
        gpus, why_none = _gpus()
    with _refusing():
        rule = workers.thread_rule()
    rows = [
        ("cupycorr", __version__),
        ("python", f"{platform.python_version()} ({platform.system()} {platform.machine()})"),
        ("numpy", f"{np.__version__} with {_blas()}"),
        *((name, _version(name)) for name in _REPORTED),
        ("cores", str(os.cpu_count())),
        ("threads", rule),
        *([("device", f"none: {why_none}")] if why_none else _device_rows(gpus)),
        ("kernel folder", _kernel_folder()),
        ("cache folder", _kernel_cache()),
        *_abilities(why_none),
    ]
    widest = max(len(name) for name, _ in rows)
    print(*(f"{name:<{widest}}  {value}" for name, value in rows), sep="\n")


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _blas() -> str:
    found = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    return f"{found.get('name', 'unknown BLAS')} {found.get('version', '')}".strip()


def _gpus() -> tuple[list[Device], str]:
    """Return the CUDA devices that CuPy finds, and the reason if there are none."""
    try:
        with _quiet():  # CuPy's import warns about a missing toolkit, which matters only if no device is found
            return [device.facts(index) for index in range(device.count())], ""
    except (ImportError, RuntimeError) as error:
        return [], _first_line(error)


def _device_rows(gpus: list[Device]) -> Iterator[tuple[str, str]]:
    yield "CUDA", "driver for {}, runtime {}".format(*device.versions())
    for gpu in gpus:
        speed = "" if gpu.bandwidth is None else f" at {gpu.bandwidth / 1e9:.0f} GB/s"
        memory = f"{gpu.memory / 2**30:.0f} GiB{speed}, {gpu.shared_memory // 1024} KiB shared memory per block"
        yield "device", f"{gpu.index}: {gpu.name}, {gpu.architecture}, {gpu.multiprocessors} multiprocessors, {memory}"


def _kernel_folder() -> str:
    try:
        folder = source.folder()
    except FileNotFoundError as error:
        return f"none: {error}"
    return f"{folder} ({len(list(_builds()))} kernels, each compiled at its first use)"


def _kernel_cache() -> str:
    folder = compiler.cache_folder()
    return f"{folder} ({len(list(folder.glob('*.cubin')))} kernels, including those of other programs)"


def _abilities(no_gpu: str) -> Iterator[tuple[str, str]]:
    """Yield for each variant and kind of array whether it can run an everyday problem, or why not."""
    for operator in OPERATORS:
        request = operator.example()
        for row in operator.variants:
            for kind, name, lacking in (("numpy", "NumPy", ""), ("cupy", "CuPy", "there is no device" if no_gpu else "")):
                reason = row.why_not_at(_dispatch.Place(kind, None), request) or lacking or "can run"
                yield f"variant {row.name}", f"{operator.name}, {name} arrays: {reason}"


def _builds(there: Device | None = None) -> Iterator[tuple[str, source.Kernel]]:
    """Yield the kernels of every operator, each once: some are common to several."""
    yield from {name: kernel for operator in OPERATORS for name, kernel in operator.builds(there)}.items()


def _compile_ahead() -> None:
    """Compile and load every kernel on every device; CuPy stores the binaries for later processes."""
    with _refusing():
        threads = workers.thread_count()
    try:
        with _quiet():
            jobs = [(kernel, index) for index in range(device.count()) for _, kernel in _builds(device.facts(index))]
        begin = time.perf_counter()
        with _progress("compiling") as report:
            done, reporting = count(1), threading.Lock()

            def compile_one(job: tuple[source.Kernel, int]) -> None:
                compiler.function(*job)
                with reporting:
                    report(next(done) / len(jobs))

            workers.run(compile_one, jobs, threads)
    except (ImportError, RuntimeError) as error:
        raise Refused(error) from error
    print(f"{len(jobs)} kernels, {time.perf_counter() - begin:.1f} s: {compiler.cache_folder()}")


# The terminal --------------------------------------------------------------------------------------------------------

# import name -> what pip calls it, where the two differ
_DISTRIBUTIONS = {"PIL": "pillow", "skimage": "scikit-image"}


def _require(*modules: str) -> None:
    """Refuse the command before any work if a package of the ``demo`` extra is missing."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            name = _DISTRIBUTIONS.get(module, module)
            raise Refused(f'this needs {name} ({_first_line(error)}): pip install "cupycorr[demo]"') from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn errors of the library into refusals with the same text."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError) as error:
        raise Refused(error) from error
    except MemoryError as error:
        raise Refused(f"not enough memory: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _progress(doing: str) -> Iterator[Callable[[float], None]]:
    """Show a progress bar with the elapsed time on a terminal, if the work takes longer than a second.

    Yields a function to call with the fraction of the work that is done. Until it is called, the bar moves without a length.
    """
    if not sys.stderr.isatty():
        yield lambda fraction: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(doing, total=None)
    delayed_start = threading.Timer(1.0, bar.start)
    try:
        delayed_start.start()
    except RuntimeError:  # no thread can be started, and rich's bar needs one too
        yield lambda fraction: None
        return
    try:
        yield lambda fraction: bar.update(task, total=1.0, completed=fraction)
    finally:
        delayed_start.cancel()
        delayed_start.join()
        bar.stop()


if __name__ == "__main__":
    sys.exit(main())
