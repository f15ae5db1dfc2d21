"""Matches pairs of frames one after the other and writes the results; one pair that fails does not stop the others.

A folder of results holds `RECORD`, the options of its job and the frames of each result, so that a later start cannot mix the
results of different options, or take a result for that of other frames with the same names.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from .. import motion
from .frames import FrameReader, Picture, read_mask, same_channels
from .pairs import Pair, check_names
from .results import NotWritten, Result, new_file, summary, write
from .schedulers import MatchFrames
from .settings import Settings

RECORD = "match.json"

# The errors that reading and matching raise for files and options that do not fit.
PROBLEMS = (ValueError, TypeError, NotImplementedError, MemoryError)


def in_words(error: Exception) -> str:
    """Return the text that tells a user about one of `PROBLEMS`."""
    return f"not enough memory: {error}" if isinstance(error, MemoryError) else str(error)


@dataclass(frozen=True)
class Task:
    """A pair and the files that its result is written to."""

    pair: Pair
    targets: tuple[Path, ...]

    def is_finished(self) -> bool:
        """Return whether all files are there."""
        return all(target.exists() for target in self.targets)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a task.

    Attributes
    ----------
    task
        The task.
    told
        The description of its field, or of the problem.
    failed
        Whether there was a problem; then nothing was written.
    notes
        What was not read as it is, in whole sentences that name the file.
    """

    task: Task
    told: str
    failed: bool = False
    notes: tuple[str, ...] = ()


def tasks_of(pairs: Sequence[Pair], folder: Path, endings: Sequence[str]) -> list[Task]:
    """Return the tasks of pairs whose results are written into a folder.

    Raises
    ------
    ValueError
        Two pairs have the same name, or results would be next to frames with the same ending: patterns would take them for
        frames at the next start.
    """
    check_names(pairs)
    for path in dict.fromkeys(frame.path for pair in pairs for frame in pair):
        if path.suffix.lower() in endings and path.resolve().parent == folder.resolve():
            taken = f"results that end in {path.suffix.lower()} would be next to the frames, such as {str(path)!r}"
            raise ValueError(f"{taken}: choose another --output")
    return [Task(pair, tuple(folder / f"{pair.name}{ending}" for ending in endings)) for pair in pairs]


def check_targets(tasks: Sequence[Task], settings: Settings) -> None:
    """Refuse results that would replace a file that is read.

    Raises
    ------
    ValueError
        A result has the path of a frame or a mask.
    """
    read = {frame.path for task in tasks for frame in task.pair} | {settings.mask1, settings.mask2} - {None}
    known = {_identity(path) for path in read if path is not None and path.exists()}
    for target in (target for task in tasks for target in task.targets):
        if target.exists() and _identity(target) in known:
            raise ValueError(f"--output would overwrite a picture that is read, got {str(target)!r}")


def _identity(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def begin(folder: Path, tasks: Sequence[Task], settings: Settings, resume: bool) -> list[Task]:
    """Make the folder of a job, note its options and frames there, and return the tasks that are left to do.

    Raises
    ------
    ValueError
        The folder has results of these pairs and ``resume`` is False, or it has results of other options, or of other frames
        with the names of these.
    NotWritten
        The folder cannot be made or written to.
    """
    finished = [task.is_finished() for task in tasks]
    left, kept = ([task for task, there in zip(tasks, finished, strict=True) if there is wanted] for wanted in (False, True))
    record, options = folder / RECORD, {**settings.parameters(), "arrows": settings.arrows}
    if kept and not resume:
        raise ValueError(f"{str(folder)!r} has {len(kept)} of these results: --resume keeps them, or choose another --output")
    frames = {task.pair.name: [str(frame) for frame in task.pair] for task in tasks}
    if record.exists() and any(path.name != RECORD for path in folder.iterdir()):
        before, frames_before = _recorded(record)
        _check_same(folder, before, options)
        _check_kept(folder, frames_before, {task.pair.name: frames[task.pair.name] for task in kept})
        frames = {**frames_before, **frames}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotWritten(f"cannot make the folder {str(folder)!r}: {error.strerror or error}") from error
    with new_file(record) as file:
        file.write(f"{json.dumps({**options, _FRAMES: frames}, indent=1)}\n".encode())
    return left


_FRAMES = "pairs"  # the key in the record for the frames of each result, by its name


def _recorded(record: Path) -> tuple[dict[str, object], dict[str, list[str]]]:
    """Return the options of earlier jobs in a folder, and the frames of their results."""
    try:
        options = json.loads(record.read_text(encoding="utf-8"))
        frames = dict(options.pop(_FRAMES, {}))
    except (ValueError, OSError, AttributeError, TypeError) as error:
        raise ValueError(f"cannot read {str(record)!r}, the options of the results: {error}") from error
    return options, frames


def _check_same(folder: Path, before: dict[str, object], options: dict[str, object]) -> None:
    # The texts are compared: NaN is equal to no number.
    names = [name for name in {**before, **options} if json.dumps(before.get(name)) != json.dumps(options.get(name))]
    if names:
        then, now = (", ".join(f"{name} {given.get(name, 'not given')}" for name in names) for given in (before, options))
        raise ValueError(f"the results in {str(folder)!r} were made with other options: {then}; got {now}")


def _check_kept(folder: Path, before: dict[str, list[str]], kept: dict[str, list[str]]) -> None:
    for name, frames in kept.items():
        if before.get(name, frames) != frames:
            then, now = (" with ".join(map(str, each)) for each in (before[name], frames))
            raise ValueError(f"the result {name!r} in {str(folder)!r} was made from other frames: {then}; got {now}")


def run(
    tasks: Sequence[Task], settings: Settings, report: Callable[[float], object], match: MatchFrames | None = None
) -> Iterator[Outcome]:
    """Match the pairs of tasks in their order, and yield each outcome after its files are complete.

    Parameters
    ----------
    tasks, settings
        What to do.
    report
        Called with the number of tasks that are done, and fractions of one.
    match
        The function that matches two frames; `cupycorr.match` by default.

    Raises
    ------
    ValueError
        A mask cannot be read.
    NotWritten
        A result cannot be written; the tasks after it would fail in the same way.
    """
    masks = [None if path is None else read_mask(path) for path in (settings.mask1, settings.mask2)]
    with FrameReader(settings.nodata) as reader:
        for done, task in enumerate(tasks):
            matched = partial(match or motion.match, progress=partial(_reported_part, report, done))
            yield _outcome(reader, task, settings, masks, matched)
            report(done + 1)


def _reported_part(report: Callable[[float], object], done: int, part: float) -> None:
    report(done + part)


_Masks = Sequence[np.ndarray | None]


def _outcome(reader: FrameReader, task: Task, settings: Settings, masks: _Masks, match: MatchFrames) -> Outcome:
    try:
        with ExitStack() as files:
            opened = [files.enter_context(new_file(target)) for target in task.targets]
            pictures = reader.read(*task.pair)
            begin = time.perf_counter()
            result = _result(pictures, task.pair, settings, masks, match)
            seconds = time.perf_counter() - begin
            for target, file in zip(task.targets, opened, strict=True):
                write(target, file, result)
    except PROBLEMS as error:
        return Outcome(task, in_words(error), failed=True)
    notes = tuple(f"{frame}: {note}" for frame, picture in zip(task.pair, pictures, strict=True) for note in picture.notes)
    return Outcome(task, f"{summary(result)}, {seconds:.2f} s", notes=notes)


def _result(pictures: Sequence[Picture], pair: Pair, settings: Settings, masks: _Masks, match: MatchFrames) -> Result:
    first, second = same_channels(*(picture.pixels for picture in pictures))
    if first.shape != second.shape:
        raise ValueError(f"both pictures must have the same size, got {_size(first)} and {_size(second)}")
    valid1, valid2 = (
        _with_mask(f"--mask{index}", mask, picture) for index, (mask, picture) in enumerate(zip(masks, pictures, strict=True), 1)
    )
    fit, window, search, step = settings.fit or False, settings.window, settings.search, settings.step
    field = match(first, second, window, search, step, fit, mask1=valid1, mask2=valid2)
    return Result(field, pair, Picture(pictures[0].pixels, valid1), settings)


def _with_mask(option: str, mask: np.ndarray | None, picture: Picture) -> np.ndarray | None:
    """Return which pixels are valid for the picture and for the mask; None if all are."""
    if mask is None:
        return picture.valid
    if mask.shape != picture.pixels.shape[:2]:
        raise ValueError(f"{option} must have the size of its picture, {_size(picture.pixels)}, got {_size(mask)}")
    both = mask if picture.valid is None else mask & picture.valid
    return None if both.all() else both


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
