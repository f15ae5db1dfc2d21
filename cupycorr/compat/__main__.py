"""The command ``python -m cupycorr.compat run``: run a script as Python would, after installing the adapters.

The script gets the ``sys.argv``, ``sys.path`` and ``__main__`` that Python would give it, and exit codes and tracebacks are its
own. What the command refuses is one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import atexit
import builtins
import os
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType, TracebackType
from typing import NoReturn

from . import _install

REFUSED = 2

_USAGE = "python -m cupycorr.compat run [--as NAME]... [--force] (SCRIPT | -m MODULE) [ARGUMENT]..."
_ABOUT = "Run a script or a module whose imports of other packages' correlations lead to cupycorr's."
_NAMES = f"Neighbours: {', '.join(_install.NEIGHBOURS)}."


def main() -> None:
    """Run the script or module that the command line names, as ``__main__``."""
    own, target = _split(sys.argv[1:])
    parser = _parser()
    options = parser.parse_args(own)
    if not target:
        parser.error("a script or -m and a module must be given")
    if target == ["-m"]:
        parser.error("-m must be followed by a module")
    sys.excepthook = _from_the_script_on(sys.excepthook)
    if target[0] == "-m":
        _run_module(target[1], target[2:], options)
    else:
        _run_script(target[0], target[1:], options)


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the command's own words, and those from the script or ``-m`` on, which argparse must not read."""
    end = 1
    while end < len(words) and words[end].startswith("-") and words[end] != "-m":
        end += 2 if words[end] == "--as" else 1
    return words[:end], words[end:]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m cupycorr.compat", _USAGE, _ABOUT, _NAMES, allow_abbrev=False)
    parser.add_argument("command", choices=["run"], help="the only command")
    parser.add_argument(
        "--as",
        dest="names",
        metavar="NAME",
        action="append",
        help="install this neighbour's adapter; may be repeated; default: all whose packages are not really installed",
    )
    parser.add_argument("--force", action="store_true", help="displace packages that are really installed")
    return parser


def _run_script(path: str, arguments: list[str], options: argparse.Namespace) -> None:
    """Run a file; `runpy.run_path` would change ``sys.argv[0]``, ``__loader__`` and ``__package__``."""
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        _stop(f"cannot read the script {path!r}: {error.strerror}")
    sys.argv = [path, *arguments]
    _prepare(os.path.dirname(os.path.realpath(path)), options)
    file, module = os.path.abspath(path), ModuleType("__main__")
    code = compile(source, file, "exec", dont_inherit=True)
    vars(module).update(__file__=file, __cached__=None, __loader__=SourceFileLoader("__main__", file), __builtins__=builtins)
    sys.modules["__main__"] = module
    exec(code, vars(module))


def _run_module(name: str, arguments: list[str], options: argparse.Namespace) -> None:
    sys.argv = ["-m", *arguments]
    _prepare(os.getcwd(), options)
    try:
        names = runpy.run_module(name, run_name="__main__", alter_sys=True)
    except ImportError as error:
        if _scripts_part(error.__traceback__):
            raise
        _stop(f"cannot run the module {name}: {error}")
    # `runpy` has put back what was there. Functions of `atexit` expect the module's names, as after ``python -m``.
    module = ModuleType("__main__")
    vars(module).update(names)
    sys.modules["__main__"], sys.argv[0] = module, names["__file__"]


def _prepare(first: str, options: argparse.Namespace) -> None:
    """Give the script its ``sys.path``, the adapters, and the shims by which its child processes find them."""
    after = 0 if getattr(sys.flags, "safe_path", sys.flags.isolated) else 1  # in safe mode no folder comes first
    if after:
        sys.path[0] = first
    try:
        names = _install_for(options)
    except (ImportError, ValueError) as error:
        _stop(str(error))
    if _install.search("cupycorr") is None:  # it was found in the folder that `first` has replaced
        sys.path.append(str(Path(__file__).resolve().parents[2]))
    if names:
        # Only the script's folder comes before the shims: what is displaced in this process is displaced in its children too.
        sys.path.insert(after, _folder_of_shims(names))


def _install_for(options: argparse.Namespace) -> tuple[str, ...]:
    """Install the neighbours that the options name, or all that are missing, and return their names."""
    names = tuple(options.names or _install.DEFAULT)
    if not (options.names or options.force):
        found = {name: real for name in names if (real := _install.whereabouts(name))}
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

    @atexit.register
    def remove() -> None:
        if os.getpid() == maker:  # a forked child must not remove the folder
            shutil.rmtree(folder, ignore_errors=True)

    return folder


def _from_the_script_on(show: Callable[..., object]) -> Callable[..., None]:
    """Return an excepthook whose tracebacks begin where the script does."""

    def shorter(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        rest = _scripts_part(traceback)
        show(kind, error.with_traceback(rest), rest)

    return shorter


def _scripts_part(traceback: TracebackType | None) -> TracebackType | None:
    """Return the traceback after this command's frames, None where the script has no frame; others stay whole."""
    rest = traceback
    while rest is not None and not _is_before_the_script(rest):
        rest = rest.tb_next
    if rest is None:
        return traceback
    while rest is not None and _is_before_the_script(rest):
        rest = rest.tb_next
    return rest


def _is_before_the_script(traceback: TracebackType) -> bool:
    return traceback.tb_frame.f_code.co_filename in (__file__, runpy.run_module.__code__.co_filename)


def _tell(text: str) -> None:
    print(f"cupycorr.compat: {text}", file=sys.stderr)


def _stop(text: str) -> NoReturn:
    _tell(text)
    sys.exit(REFUSED)


if __name__ == "__main__":
    main()
