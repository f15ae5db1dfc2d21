"""The command ``python -m cupycorr.compat run``: a script as Python would run it, with the adapters installed before.

Knows what Python does for a script (``sys.argv``, ``sys.path``, a fresh ``__main__``) and does the same; exit codes and
tracebacks are the script's. Refusals are one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import atexit
import builtins
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any, NoReturn

from . import _install

REFUSED = 2

_USAGE = "python -m cupycorr.compat run [--as NAME]... [--force] (SCRIPT | -m MODULE) [ARGUMENT]..."
_ABOUT = "Run a script or a module whose imports of other packages' correlations lead to cupycorr's."
_NAMES = f"Neighbours: {', '.join(_install.NEIGHBOURS)}."


def main() -> None:
    """Run what the command line names, as ``__main__``."""
    own, target = _split(sys.argv[1:])
    parser = _parser()
    options = parser.parse_args(own)
    if target[:1] == ["-m"]:
        if len(target) == 1:
            parser.error("-m must be followed by a module")
        _run_module(target[1], target[2:], options)
    elif target:
        _run_script(target[0], target[1:], options)
    else:
        parser.error("a script or -m and a module must be given")


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """The command's own words, and those from the script or ``-m`` on, which no parser of ours may read."""
    end = 1
    while end < len(words) and words[end].startswith("-") and words[end] != "-m":
        end += 2 if words[end] == "--as" else 1
    return words[:end], words[end:]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m cupycorr.compat", _USAGE, _ABOUT, _NAMES, allow_abbrev=False)
    parser.add_argument("command", choices=["run"], help="the one command")
    parser.add_argument(
        "--as",
        dest="names",
        metavar="NAME",
        action="append",
        help="install this neighbour's adapter, may be repeated; without it, all whose packages are not really installed",
    )
    parser.add_argument("--force", action="store_true", help="displace packages that are really installed")
    return parser


def _run_script(path: str, arguments: list[str], options: argparse.Namespace) -> None:
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        _stop(f"cannot read the script {path!r}: {error.strerror}")
    sys.argv = [path, *arguments]
    _prepare(os.path.dirname(os.path.realpath(path)), options)
    file = os.path.abspath(path)
    code = compile(source, file, "exec", dont_inherit=True)
    _execute(code, __file__=file, __cached__=None, __loader__=SourceFileLoader("__main__", file), __package__=None, __spec__=None)


def _run_module(name: str, arguments: list[str], options: argparse.Namespace) -> None:
    sys.argv = ["-m", *arguments]  # what Python has there while it imports the parents
    _prepare(os.getcwd(), options)
    spec, code = _code_of(name)
    sys.argv[0] = spec.origin
    names = dict(__file__=spec.origin, __cached__=spec.cached, __loader__=spec.loader, __package__=spec.parent, __spec__=spec)
    _execute(code, **names)


def _code_of(name: str) -> tuple[ModuleSpec, CodeType]:
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            name = f"{name}.__main__"
            spec = importlib.util.find_spec(name)
    except ImportError as error:
        _stop(f"cannot find the module {name}: {error}")
    if spec is None:
        _stop(f"cannot find the module {name}")
    code = spec.loader.get_code(spec.name) if hasattr(spec.loader, "get_code") else None
    if code is None:
        _stop(f"the module {name} has no Python code")
    return spec, code


def _execute(code: CodeType, **names: Any) -> None:
    module = ModuleType("__main__")
    vars(module).update(names, __builtins__=builtins)
    sys.modules["__main__"] = module
    exec(code, vars(module))


def _prepare(first: str, options: argparse.Namespace) -> None:
    """``sys.path`` as the script is to find it, the adapters, and what its child processes find them by."""
    sys.excepthook = _without_our_frames(sys.excepthook)
    after = 0 if getattr(sys.flags, "safe_path", sys.flags.isolated) else 1  # in safe mode no folder comes first
    if after:
        sys.path[0] = first
    try:
        names = _install_for(options)
    except (ImportError, ValueError) as error:
        _stop(str(error))
    if _install.search("cupycorr") is None:  # it was found in the folder that had been first
        sys.path.append(str(Path(__file__).resolve().parents[2]))
    if names:
        # Before all but the script's folder: what is displaced in this process is so in its children.
        sys.path.insert(after, _folder_of_shims(names))


def _install_for(options: argparse.Namespace) -> tuple[str, ...]:
    """Install what is asked for, or what is missing; the names of it."""
    names = tuple(options.names or _install.DEFAULT)
    if not (options.names or options.force):
        found = {name: place for name in names if (place := _install.whereabouts(name))}
        for name, (root, place) in found.items():
            _tell(f"{name} is left alone: {root} is really installed, at {place}")
        names = tuple(name for name in names if name not in found)
    if names:
        _install.install(*names, force=options.force)
    return names


def _folder_of_shims(names: Iterable[str]) -> str:
    folder = tempfile.mkdtemp(prefix="cupycorr-compat-")
    _install.write_shims(folder, names)
    maker = os.getpid()
    atexit.register(lambda: os.getpid() == maker and shutil.rmtree(folder, ignore_errors=True))  # not by its forks
    return folder


def _without_our_frames(show: Callable[..., object]) -> Callable[..., None]:
    """Tracebacks that begin where the script does."""

    def shorter(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        rest = frame = traceback
        while frame is not None:
            rest = frame.tb_next if frame.tb_frame.f_code.co_filename == __file__ else rest
            frame = frame.tb_next
        show(kind, error.with_traceback(rest), rest)

    return shorter


def _tell(text: str) -> None:
    print(f"cupycorr.compat: {text}", file=sys.stderr)


def _stop(text: str) -> NoReturn:
    _tell(text)
    sys.exit(REFUSED)


if __name__ == "__main__":
    main()
