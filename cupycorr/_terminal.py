"""Terminal manners of commands: refusals in one line, a progress bar, and an orderly end when a signal comes.

This module must not know any command.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from types import FrameType
from typing import TextIO

FAILED, REFUSED, INTERRUPTED = 1, 2, 130  # exit codes
_STOPPED = 128  # plus the signal's number, as shells count


class Refused(Exception):  # noqa: N818 - the outcome of a command, reported to its user
    """The command cannot do what its arguments say; the text tells the user why."""


class Stopped(BaseException):
    """A signal asked the process to end; like KeyboardInterrupt, no `except Exception` catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = _STOPPED + number


def complain(reason: object) -> None:
    """Print an error in one line on stderr."""
    _print_on_stderr(f"cupycorr: error: {one_line(reason)}")


def remark(note: object) -> None:
    """Print a note in one line on stderr."""
    _print_on_stderr(f"cupycorr: note: {one_line(note)}")


def _print_on_stderr(line: str) -> None:
    """Print a line; it is lost if stderr is closed, its reader has gone or its disk is full, and the work goes on."""
    if sys.stderr is None:
        return
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        forget(sys.stderr)


def forget(stream: TextIO | None) -> None:
    """Send what a standard stream still holds nowhere, because Python would try to write it again when the process ends."""
    with suppress(OSError, AttributeError):  # a stream that is not there, or that is no file
        descriptor = stream.fileno()  # type: ignore[union-attr]
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def one_line(text: object) -> str:
    """Return a text with each run of blanks and line ends as one space."""
    return " ".join(str(text).split())


def first_line(error: Exception) -> str:
    """Return the first line of an error's text; without a text, the error's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# import name -> what pip calls it, where the two differ
_DISTRIBUTIONS = {"PIL": "pillow", "skimage": "scikit-image"}


def require(*modules: str) -> None:
    """Refuse the command before any work if a package of the ``demo`` extra is missing or cannot be imported."""
    for module in modules:
        name = _DISTRIBUTIONS.get(module, module)
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise Refused(f'this needs {name} ({first_line(error)}): pip install "cupycorr[demo]"') from error
        except Exception as error:  # matplotlib refuses a backend of MPLBACKEND that it does not know
            raise Refused(f"this needs {name}, which cannot be imported: {error}") from error


@contextmanager
def refusing() -> Iterator[None]:
    """Turn errors of the library into refusals with the same text."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError) as error:
        raise Refused(error) from error
    except MemoryError as error:
        raise Refused(f"not enough memory: {error}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Show no warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def say(*lines: object) -> None:
    """Print lines on stdout at once; lines to a reader that has gone, such as ``head``, are lost without an error.

    Characters that the encoding of stdout lacks are printed as escapes.

    Raises
    ------
    Refused
        They cannot be written, such as on a full disk.
    """
    text = "\n".join(map(str, lines))
    try:
        try:
            print(text, flush=True)
        except UnicodeEncodeError as error:
            print(text.encode(error.encoding, "backslashreplace").decode(error.encoding), flush=True)
    except BrokenPipeError:
        forget(sys.stdout)
    except OSError as error:
        forget(sys.stdout)
        raise Refused(f"cannot write to standard output: {error.strerror or error}") from error


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise `Stopped` where a signal would end the process at once, so that files that are not complete are removed.

    Signals that the process was started to ignore, such as SIGHUP under nohup, stay ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in ours:
            signal.signal(each, signal.SIG_IGN)  # a second one must not disturb the removal of files
        raise Stopped(number)

    try:
        for number in ours:
            signal.signal(number, stop)
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _is_terminal(stream: TextIO | None) -> bool:
    """Return whether a standard stream is a terminal; the stream is None if the process was started without it."""
    return stream is not None and stream.isatty()


@contextmanager
def progress(doing: str, tasks: int = 1) -> Iterator[Callable[[float], None]]:
    """Show a progress bar with the elapsed time on a terminal, if the work takes longer than a second and rich is installed.

    Yields a function to call with the number of tasks that are done, and fractions of one. Until it is called, the bar moves
    without a length. For several tasks, the bar says how many are done.
    """
    if not _is_terminal(sys.stderr) or find_spec("rich") is None:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    several = (MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left,")) if tasks > 1 else ()
    columns = (TextColumn("{task.description}"), BarColumn(), *several, TimeElapsedColumn())
    # rich prints what goes to stdout above the bar, to stderr: that is right only where both are the terminal.
    redirect = _is_terminal(sys.stdout)
    bar = Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=redirect)
    task = bar.add_task(doing, total=None)
    delayed_start = threading.Timer(1.0, bar.start)
    try:
        delayed_start.start()
    except RuntimeError:  # no thread can be started, and rich's bar needs one too
        yield lambda done: None
        return
    try:
        yield lambda done: bar.update(task, total=tasks, completed=done)
    finally:
        delayed_start.cancel()
        delayed_start.join()
        bar.stop()
