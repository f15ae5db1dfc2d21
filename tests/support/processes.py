"""Programs in processes of their own, and Control-C at every place of a call, for tests of threads."""

import dis
import os
import subprocess
import sys
import textwrap
from itertools import count
from pathlib import Path

import pytest
from waiting import STUCK

ROOT = Path(__file__).resolve().parents[2]

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")


def python(program, **environment):
    """Return what a program prints; a variable of the environment that is None is not set."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    variables = {name: value for name, value in variables.items() if value is not None}
    # Python 3.12 warns of forks in processes with threads, which is what some of the programs are about.
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)]
    options = dict(env=variables, capture_output=True, text=True, timeout=STUCK, check=False)
    done = subprocess.run(command, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# The interpreter runs signal handlers as a function begins, after a call and at a jump, and nowhere else: `with lock:` is safe.
_LOOKS_FOR_SIGNALS = ("RESUME", "CALL", "JUMP", "POP_JUMP")


class _Code:
    """The places where the code of a function can be interrupted."""

    def __init__(self, code):
        self._names = [dis.opname[each] for each in code.co_code]
        self._protected = getattr(dis.Bytecode(code), "exception_entries", ())  # none before Python 3.11

    def is_place(self, before, now):
        """Return whether a signal's exception after one instruction can be raised before the next.

        One that belongs to the last instruction of a `try` or `with` would wrongly be raised behind it, unprotected.
        """
        return self._names[before].startswith(_LOOKS_FOR_SIGNALS) and self._handler(before) == self._handler(now)

    def _handler(self, offset):
        return next((entry.target for entry in self._protected if entry.start <= offset < entry.end), None)


def steps(call, module, stop_at=None):
    """Make a call and return at how many places in a module Control-C could be raised; raise KeyboardInterrupt at one of them."""
    ran = 0

    def each_frame(frame, event, argument):
        if frame.f_code.co_filename != module.__file__:
            return None
        frame.f_trace_opcodes = True
        code, last = _Code(frame.f_code), None

        def each_step(frame, event, argument):
            nonlocal ran, last
            if event == "opcode":
                before, last = last, frame.f_lasti
                if before is None or code.is_place(before, last):
                    ran += 1
                    if ran == stop_at:
                        raise KeyboardInterrupt
            return each_step

        return each_step

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 looks for it when tracing begins
    sys.settrace(each_frame)
    try:
        call()
    finally:
        sys.settrace(before)
    return ran


def interrupted_everywhere(call, module):
    """Make a call again and again, interrupted at each place of a module in turn; yield after each interrupt."""
    for stop_at in count(1):
        try:
            steps(call, module, stop_at)
        except KeyboardInterrupt:
            yield stop_at
        else:
            return
