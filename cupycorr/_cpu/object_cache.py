"""Machine code that LLVM compiled, kept in the user's cache folder for later processes.

A file is named by a digest of everything that the code depends on, and begins with a digest of the code: a file that is damaged
or incomplete counts as none. Code is read and kept only in a folder that nobody else can write to. Where there is no such folder,
or its disk is full, each process compiles for itself. This module knows no kernel.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from .. import _cached_files

_DIGEST_BYTES = hashlib.sha256().digest_size


def read(key: str) -> bytes | None:
    """Return the code that was kept for a key, or None."""
    try:
        path = _file(key)
        content = path.read_bytes() if _is_private(path.parent) and path.is_file() else b""
    except OSError:
        return None
    code = content[_DIGEST_BYTES:]
    return code if code and content[:_DIGEST_BYTES] == hashlib.sha256(code).digest() else None


def keep(key: str, code: bytes) -> None:
    """Keep the code of a key for later processes, if that is possible."""
    try:
        path = _file(key)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_private(path.parent):
            _cached_files.replace(path, hashlib.sha256(code).digest() + code)
    except OSError:
        pass


def folder() -> Path:
    """Return the folder that holds the code.

    Raises
    ------
    FileNotFoundError
        This user has no home folder.
    """
    return _cached_files.folder("objects")


def _file(key: str) -> Path:
    return folder() / f"{_cached_files.digest(key)}.o"


def _is_private(place: Path) -> bool:
    """Return whether a folder belongs to this user and nobody else can write to it.

    On Windows, access lists say so by default, which this does not read.
    """
    if not hasattr(os, "getuid"):
        return True
    found = place.stat()
    return found.st_uid == os.getuid() and not found.st_mode & 0o022
