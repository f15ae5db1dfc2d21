"""``python -m benchmarks --tune``: the fastest variant for each case on this GPU, kept where every later call finds it.

Beside it stands what the dispatch chooses by count where nothing was measured: another one is a fault in how it counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cupycorr import _dispatch, _tuning
from cupycorr._correlation.problem import Question
from cupycorr._gpu.device import Device, facts

from . import cuda, report
from .cases import Case, array_dtype, precision


@dataclass(frozen=True, slots=True)
class Tuned:
    """One question and its answer: the seconds of every variant that ran, and the one that takes least by count."""

    case: str
    which: str
    dtype: str
    seconds: dict[str, float]
    by_count: str

    @property
    def fastest(self) -> str:
        """The variant that took the least time."""
        return min(self.seconds, key=self.seconds.__getitem__)

    @property
    def regret(self) -> float | None:
        """The time of the one chosen by count over that of the fastest; None where that one did not run."""
        return self.seconds[self.by_count] / self.seconds[self.fastest] if self.by_count in self.seconds else None

    def __str__(self) -> str:
        return f"{self.case} {self.which} {self.dtype}"


def run(cases: Sequence[Case], dtypes: Sequence[str], passes: Sequence[str]) -> int:
    """Measure every case, dtype and pass, keep the answers and print them; 1 where something could not be measured."""
    console, errors = report.wide_console(), Console(stderr=True)
    device, found = facts(cuda.INDEX), []
    for case in cases:
        for dtype in dtypes:
            for which in passes:
                with errors.status(f"{case.name} {which} {dtype}"):
                    found.append(_tuned(case, which, dtype, device))
    measured = [each for each in found if each.seconds]
    console.print(escape(device.name), style="bold")
    console.print(_table(measured))
    for line in _told(measured):
        console.print(escape(line), soft_wrap=True)
    for each in found:
        if not each.seconds:
            message = f"not measured: {each}: there is too little memory, or no variant runs"
            console.print(escape(message), style="bold red", soft_wrap=True)
    return 0 if len(measured) == len(found) else 1


def _tuned(case: Case, which: str, dtype: str, device: Device) -> Tuned:
    stored, where = array_dtype(dtype).name, _dispatch.gpu(device.index)
    question = Question(which, case.problem, stored, stored, precision=precision(dtype))
    rows = [row for row in _dispatch.VARIANTS if row.can_run(question, where) is None]
    by_count = min(rows, key=lambda row: row.seconds(question, device)).name
    tuned = Tuned(case.name, which, dtype, _tuning.seconds(question, device, rows), by_count)
    if tuned.seconds:
        _tuning.record(question, device, tuned.fastest)
    return tuned


def _table(measured: Sequence[Tuned]) -> Table:
    names = [row.name for row in _dispatch.VARIANTS if any(row.name in each.seconds for each in measured)]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("case", "pass", "dtype"):
        table.add_column(name, no_wrap=True)
    for name in names:
        table.add_column(f"{name} ms", justify="right", no_wrap=True)
    for name in ("fastest", "by count"):
        table.add_column(name, no_wrap=True)
    for each in measured:
        times = [report.milliseconds(each.seconds[name]) if name in each.seconds else "-" for name in names]
        table.add_row(each.case, each.which, each.dtype, *times, each.fastest, _by_count(each))
    return table


def _by_count(each: Tuned) -> str:
    return f"{each.by_count} ({'failed' if each.regret is None else f'{each.regret:.2f}x'})"


def _told(measured: Sequence[Tuned]) -> Iterator[str]:
    """How often and how badly the count is wrong, in words."""
    wrong = [each for each in measured if each.by_count != each.fastest]
    yield f"by count the fastest is found in {len(measured) - len(wrong)} of {len(measured)}"
    known = [each for each in wrong if each.regret is not None]
    if known:
        worst = max(known, key=lambda each: each.regret)
        yield f"worst: {worst}: {worst.by_count} takes {worst.regret:.2f} times as long as {worst.fastest}"
