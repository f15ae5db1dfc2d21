"""Files that are kept for later processes, in the user's cache folder.

Several processes read and write them without a lock: a file is put in place by one atomic replacement, and its name is a digest
of everything that its content depends on. This module does not know what the files hold.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path

# operating system -> the variable that names the users' cache folder, and that folder's place below the home folder
_FOLDERS = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("", "Library/Caches")}
_FOLDER_ELSEWHERE = ("XDG_CACHE_HOME", ".cache")


def folder(name: str) -> Path:
    """Return the folder of this name below the one that ``CUPYCORR_CACHE_DIR`` names, or else below the user's cache folder.

    Raises
    ------
    FileNotFoundError
        This user has no home folder.
    """
    chosen = os.environ.get("CUPYCORR_CACHE_DIR")
    return (Path(chosen) if chosen else _user_cache_folder() / "cupycorr") / name


def _user_cache_folder() -> Path:
    variable, below_home = _FOLDERS.get(sys.platform, _FOLDER_ELSEWHERE)
    chosen = os.environ.get(variable, "")
    if os.path.isabs(chosen):
        return Path(chosen)
    try:
        return Path.home() / below_home
    except RuntimeError as error:
        raise FileNotFoundError(f"{error} Name a folder by CUPYCORR_CACHE_DIR") from error


def digest(text: str) -> str:
    """Return the digest of a text, 32 characters that are safe in the name of a file."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def replace(path: Path, content: bytes) -> None:
    """Write a file atomically: a reader sees all of it or the file that was there before.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.")
    try:
        with open(handle, "wb") as new:
            new.write(content)
        _replace_patiently(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _replace_patiently(name: str, path: Path) -> None:
    """Put a file in place of another, which on Windows must wait while another process has that one open."""
    for pause in (0.01, 0.1, 1.0):
        try:
            os.replace(name, path)
            return
        except PermissionError:
            time.sleep(pause)
    os.replace(name, path)
