"""Runs the command line for tests, in this process or in one of its own, and reads what it writes."""

import os
import struct
import subprocess
import sys
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from click.testing import CliRunner
from waiting import STUCK

from cupycorr import cli

ROOT = Path(__file__).resolve().parents[2]


def environment():
    """Return the variables of a process that finds the package of this checkout, and whose Python buffers what it prints."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**kept, "PYTHONPATH": str(ROOT)}


def run(*words):
    """Run the command in this process; return exit code, stdout and stderr."""
    program = SimpleNamespace(name="cupycorr", main=lambda args, **_: sys.exit(cli.main(args)))
    apart = {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}  # click 8.1 mixes stderr into stdout
    return CliRunner(**apart).invoke(program, [str(word) for word in words])


def program(before=""):
    """Return the command as a program that runs some lines of Python first."""
    return f"import sys\n{before}\nfrom cupycorr.cli import main\nsys.exit(main(sys.argv[1:]))"


def spawn(*words, before=""):
    """Run the command in a process of its own, after some lines of Python."""
    command = [sys.executable, "-c", program(before), *words]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=STUCK)


def assert_done(result):
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return result.stdout


def assert_refused(result, *words):
    code, text = (result.exit_code, result.stderr) if hasattr(result, "exit_code") else (result.returncode, result.stderr)
    assert code == 2, text
    assert result.stdout == ""
    assert text.startswith("cupycorr: error: ")
    assert text.count("\n") == 1, text
    for word in words:
        assert word in text


def read_flo(path):
    """Read Middlebury's format byte by byte, as its description says."""
    data = Path(path).read_bytes()
    magic, width, height = struct.unpack_from("<4sii", data)
    assert magic == b"PIEH"
    assert len(data) == 12 + 8 * width * height
    return np.array(struct.unpack_from(f"<{2 * width * height}f", data, 12)).reshape(height, width, 2)
