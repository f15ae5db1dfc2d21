"""Which variant was the fastest here: measured once, kept in a small file, known at every later call.

Knows devices and files, and of variants no more than their names and maps: whether a name that comes back can answer is for
the caller to check, for files outlive what wrote them. A call that works unmeasured must not fail by being measured: what goes
wrong here ends in the answer None.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ._correlation.problem import Axis, Question
from ._dtypes import element_type_called, named_dtype
from ._gpu import source
from ._gpu.device import Device, import_cupy, versions
from ._gpu.layout import ROWS

RUNS = 7  # of each variant, after one that compiles
HOPELESS = 2.0  # times the fastest first run: such a variant is not run again
NOISE = 2**16  # different numbers in the arrays that are measured with
FILLER = 2**26  # bytes written, `FILLS` times, before each run: the device is busy with it while the host asks for the run
FILLS = 4
SHARE = 0.5  # of the free memory, which the arrays may take
PATIENCE = 10.0  # seconds: how long other processes may keep the file
PAUSE = 0.01

# operating system -> the variable that names the users' cache folder, and where that is below the home folder
_CACHE_FOLDERS = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("", "Library/Caches")}
_CACHE_FOLDER_ELSEWHERE = ("XDG_CACHE_HOME", ".cache")

# device -> {"versions": what it was measured with, "fastest": {question: variant}}
Content = dict[str, dict[str, Any]]


class Row(Protocol):
    """As much of a variant as can be measured."""

    name: str
    forward: Callable[..., None]
    vjp: Callable[..., None]


# What is asked for by the environment -----------------------------------------------------------------------------------------


def known(question: Question, device: Device) -> str | None:
    """The name of the variant that was the fastest, None where that is not known or ``CUPYCORR_AUTOTUNE`` is 0.

    Raises
    ------
    ValueError
        The variable is neither unset nor 0 nor 1.
    """
    return None if _mode() == "0" else _store.answer(question, device)


def at_first_use() -> bool:
    """Whether what is not known is to be measured: ``CUPYCORR_AUTOTUNE`` is 1."""
    return _mode() == "1"


def _mode() -> str | None:
    mode = os.environ.get("CUPYCORR_AUTOTUNE")
    if mode not in (None, "0", "1"):
        raise ValueError(f"CUPYCORR_AUTOTUNE must be 0 or 1, got CUPYCORR_AUTOTUNE={mode!r}")
    return mode


def file() -> Path:
    """Where answers are kept between processes.

    Raises
    ------
    FileNotFoundError
        This user has no home folder.
    """
    chosen = os.environ.get("CUPYCORR_CACHE_DIR")
    return (Path(chosen) if chosen else _user_cache_folder() / "cupycorr") / "tuning.json"


def _user_cache_folder() -> Path:
    variable, below_home = _CACHE_FOLDERS.get(sys.platform, _CACHE_FOLDER_ELSEWHERE)
    chosen = os.environ.get(variable, "")
    if os.path.isabs(chosen):
        return Path(chosen)
    try:
        return Path.home() / below_home
    except RuntimeError as error:
        raise FileNotFoundError(f"{error} Name a folder by CUPYCORR_CACHE_DIR") from error


# Measuring --------------------------------------------------------------------------------------------------------------------

_measuring = threading.Lock()  # two at once would measure each other
_given_up: set[tuple[Question, Device]] = set()


def measure(question: Question, device: Device, rows: Sequence[Row]) -> str | None:
    """Find the fastest of the variants and keep its name; None where nothing can be measured now.

    What another process or thread has found in the meantime is taken. Runs on CuPy's current stream of the device, and waits
    for it. Nothing is measured while that is being captured; what else stops it is not tried again in this process.
    """
    if (question, device) in _given_up or _capturing(device):
        return None
    with _measuring:
        _store.read()
        name = _store.answer(question, device)
        if name in [row.name for row in rows]:
            return name
        taken = seconds(question, device, rows)
        if not taken:
            _given_up.add((question, device))
            return None
        name = min(taken, key=taken.__getitem__)
        record(question, device, name)
        return name


def record(question: Question, device: Device, name: str) -> None:
    """Keep an answer, in this process and in the file."""
    _store.keep(question, device, name)


def seconds(question: Question, device: Device, rows: Sequence[Row]) -> dict[str, float]:
    """The median time of each variant that runs, by name; of none where memory is short."""
    cupy = import_cupy()
    with cupy.cuda.Device(device.index):
        if _bytes(question) > SHARE * cupy.cuda.runtime.memGetInfo()[0]:
            return {}
        pool = cupy.cuda.MemoryPool()  # of its own: nothing of it is left in the pool that the caller's arrays come from
        try:
            with cupy.cuda.using_allocator(pool.malloc):
                return _race(_works(question, rows))
        except Exception:  # no memory after all, or no arrays of this dtype: there is no bfloat16 without `ml_dtypes`
            return {}
        finally:
            pool.free_all_blocks()


def _capturing(device: Device) -> bool:
    """Whether what is asked of the current stream is recorded and not done."""
    cuda = import_cupy().cuda
    try:
        with cuda.Device(device.index):
            return cuda.get_current_stream().is_capturing()
    except RuntimeError:  # CUDA's answer on the default stream while one that waits for it is being captured
        return True


def _bytes(question: Question) -> int:
    """Bytes of the arrays to measure with and of what is made of them, without the variants' workspaces."""
    itemsizes = [element_type_called("dtype", name).itemsize for name in (question.dtype, question.result_dtype)]
    gradients = question.problem.bytes(itemsizes[0], 0) if question.which == "vjp" else 0
    return question.problem.bytes(*itemsizes) + gradients + FILLER


def _works(question: Question, rows: Sequence[Row]) -> dict[str, Callable[[], Any]]:
    """What is timed of each variant, all of them on the same arrays."""
    problem, shapes = question.problem, (question.problem.shape1, question.problem.shape2)
    inputs = [_filled(shape, question.dtype, order) for shape, order in zip(shapes, question.orders, strict=True)]
    volume = _filled(problem.out_shape, question.result_dtype)
    if question.which == "forward":
        return {row.name: partial(row.forward, problem, *inputs, volume) for row in rows}
    empty, dtype = import_cupy().empty, named_dtype(question.dtype)
    gradients = tuple(empty(shape, dtype) if needed else None for shape, needed in zip(shapes, question.needs, strict=True))
    return {row.name: partial(row.vjp, problem, volume, *inputs, question.needs, gradients) for row in rows}


def _filled(shape: tuple[int, ...], dtype: str, order: str = ROWS) -> Any:
    """An array with numbers in it, drawn once: multiplying zeros takes less power, which lets a device run faster."""
    cupy = import_cupy()
    noise = cupy.asarray(np.random.default_rng(0).standard_normal(NOISE, np.float32).astype(named_dtype(dtype)))
    if order == ROWS:
        return cupy.resize(noise, shape)
    batch, channels, height, width = shape
    return cupy.resize(noise, (batch, height, width, channels)).transpose(0, 3, 1, 2)


def _race(works: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """The median of each work's runs, taken in turn: whatever slows the device down slows all of them down.

    A first one compiles and is not counted.
    """
    filler = import_cupy().empty(FILLER, np.uint8)
    racing = {name: work for name, work in works.items() if _timed(work, filler) < math.inf}
    taken = {name: [] for name in racing}
    for _ in range(RUNS):
        for name, work in racing.items():
            taken[name].append(_timed(work, filler))
        fastest = min((runs[0] for runs in taken.values()), default=0.0)
        racing = {name: work for name, work in racing.items() if taken[name][0] <= HOPELESS * fastest}
    return {name: statistics.median(runs) for name, runs in taken.items() if math.inf not in runs}


def _timed(work: Callable[[], Any], filler: Any) -> float:
    """Seconds of one run on the device; infinite where it fails, unless for want of memory, of which others need less."""
    cuda = import_cupy().cuda
    begin, end = cuda.Event(), cuda.Event()
    for _ in range(FILLS):
        filler.data.memset_async(0, FILLER)
    try:
        work()  # not timed: meanwhile the caches write back what they hold of the filler
        begin.record()
        work()
        end.record()
        end.synchronize()
    except MemoryError:
        raise
    except Exception:
        return math.inf
    return cuda.get_elapsed_time(begin, end) * 1e-3


# Names in the file ------------------------------------------------------------------------------------------------------------


@lru_cache
def _machine(device: Device) -> tuple[str, str]:
    """The device and everything else that may make another variant the fastest."""
    cuda_of_driver, cuda_of_runtime = versions()
    parts = {
        "driver": cuda_of_driver,
        "runtime": cuda_of_runtime,
        "CuPy": import_cupy().__version__,
        "cupycorr": sys.modules[__package__].__version__,  # the package is above this module, and there when it is asked
        "kernels": _digest(),
    }
    name = "{}, compute capability {}.{}".format(device.name, *device.compute_capability)
    return name, ", ".join(f"{part} {version}" for part, version in parts.items())


def _digest() -> str:
    """Of the text of every kernel."""
    texts = [source.text(file) for file in source.files()]
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:16]


@lru_cache(1024)
def _text(question: Question) -> str:
    """A question without what takes no time: the scale, and whether a patch_offset of 0 was passed."""
    asked = question.problem
    gradients = [f"gradient{operand}" for operand, needed in enumerate(question.needs, 1) if needed]
    return ", ".join(
        (
            " ".join([question.which, *(gradients if question.which == "vjp" else [])]),
            f"{question.dtype} -> {question.result_dtype}",
            f"precision={question.precision}",
            " and ".join(question.orders),
            f"batch={asked.batch} channels={asked.channels}",
            f"y: {_named(asked.vertical)}",
            f"x: {_named(asked.horizontal)}",
        )
    )


def _named(axis: Axis) -> str:
    return " ".join(f"{name}={value}" for name, value in asdict(axis).items())


# The file ---------------------------------------------------------------------------------------------------------------------


class Store:
    """What the file said when it was last read, and what this process has found since.

    The file is read at the first question and before a question is measured: what others add to it matters at no other time. It
    is only ever replaced whole, by who holds its lock, with what is in it at that moment and what was found here.
    """

    def __init__(self) -> None:
        self._on_disk: Content | None = None
        self._found: Content = {}
        self._writable = True
        self._told_of_damage = False
        self.renew_lock()

    def renew_lock(self) -> None:
        """Forget who holds the lock."""
        self._lock = threading.Lock()

    def answer(self, question: Question, device: Device) -> str | None:
        """The name that is known."""
        on_disk = self.read() if self._on_disk is None else self._on_disk
        if not on_disk and not self._found:
            return None  # without having asked for a version of anything
        machine, text = _machine(device), _text(question)
        return _looked_up(self._found, machine, text) or _looked_up(on_disk, machine, text)

    def read(self) -> Content:
        """Take in what the file says now; nothing where there is none or it is damaged."""
        content, damage = {}, None
        try:
            content = _checked(json.loads(file().read_text("utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError, RecursionError) as error:
            damage = error
        self._on_disk = content
        if damage is not None and not self._told_of_damage:
            self._told_of_damage = True
            _warn(f"what was measured before is not known, {file()} cannot be read: {damage}")
        return content

    def keep(self, question: Question, device: Device, name: str) -> None:
        """Add an answer, here and, as long as that works, in the file."""
        machine, versions = _machine(device)
        with self._lock:
            entry = self._found.setdefault(machine, {"versions": versions, "fastest": {}})
            entry["fastest"][_text(question)] = name
            if self._writable:
                self._write()

    def _write(self) -> None:
        try:
            path = file()
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_name(f"{path.name}.lock")):
                _replace(path, json.dumps(_merged(self.read(), self._found), indent=1))
        except OSError as error:
            self._writable = False
            _warn(f"what was measured is known in this process only, it cannot be kept: {error}")


_store = Store()


def _renew_locks() -> None:
    """A forked child may have inherited a lock that a thread it does not have holds; what they guard is whole at any time."""
    global _measuring
    _measuring = threading.Lock()
    _store.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


def _looked_up(content: Content, machine: tuple[str, str], text: str) -> str | None:
    name, versions = machine
    entry = content.get(name)
    return entry["fastest"].get(text) if entry is not None and entry["versions"] == versions else None


def _merged(content: Content, found: Content) -> Content:
    """Both; what was found on a device replaces what was measured there with other versions."""
    merged = dict(content)
    for device, entry in found.items():
        before = content.get(device)
        same = before is not None and before["versions"] == entry["versions"]
        merged[device] = {**entry, "fastest": {**(before["fastest"] if same else {}), **entry["fastest"]}}
    return merged


def _checked(content: Any) -> Content:
    """What was read, if it is what `Store` writes."""
    if not isinstance(content, dict) or not all(map(_is_entry, content.values())):
        raise ValueError("it is not what cupycorr writes")
    return content


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"versions", "fastest"} or not isinstance(entry["fastest"], dict):
        return False
    return all(isinstance(text, str) for text in (entry["versions"], *entry["fastest"].values()))


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def _replace(path: Path, text: str) -> None:
    """Put a text in a file's place: who reads sees all of it or what was there before."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8") as new:
            new.write(text)
        _patiently(partial(os.replace, name, path), path)
    except BaseException:
        os.unlink(name)
        raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """While it is entered no other process, and no other thread, is in it. The lock ends with the process that has it.

    It is released before the file is closed: a child that was forked meanwhile has the file open, too.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _patiently(partial(_lock_now, handle), path)
        try:
            yield
        finally:
            _unlock(handle)
    finally:
        os.close(handle)


def _lock_now(handle: int) -> None:
    """Lock an open file, or raise at once."""
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _unlock(handle: int) -> None:
    """Unlock an open file."""
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_UN)


def _patiently(action: Callable[[], None], path: Path) -> None:
    """Do what another process may be in the way of for a moment."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return action()
        except (BlockingIOError, PermissionError) as error:
            if time.monotonic() > end:
                raise TimeoutError(f"{path} is not free after {PATIENCE:g} s: {error}") from error
            time.sleep(PAUSE)
