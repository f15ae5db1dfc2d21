"""``python -m benchmarks --tune``: find the fastest variant for each case on this GPU, and keep it for later calls.

The table also shows the variant that the cost model chooses. Where that is another one, the cost model is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cupycorr import _dispatch, _tuning
from cupycorr._correlation.variants import OPERATOR
from cupycorr._gpu.device import Device, facts

from . import cuda, report, rivals
from .cases import Case


@dataclass(frozen=True, slots=True)
class Tuned:
    """A request and its answer: the seconds of every variant that ran, and the variant that the cost model chooses."""

    case: str
    which: str
    dtype: str
    seconds: dict[str, float]
    by_cost_model: str

    @property
    def fastest(self) -> str:
        """The fastest variant."""
        return min(self.seconds, key=self.seconds.__getitem__)

    @property
    def regret(self) -> float | None:
        """The time of the cost model's choice over that of the fastest variant, None where the choice did not run."""
        return self.seconds[self.by_cost_model] / self.seconds[self.fastest] if self.by_cost_model in self.seconds else None

    def __str__(self) -> str:
        return f"{self.case} {self.which} {self.dtype}"


def run(cases: Sequence[Case], dtypes: Sequence[str], passes: Sequence[str]) -> int:
    """Measure every case, dtype and pass, keep and print the answers; return 1 where something could not be measured."""
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
    for line in _summary(measured):
        console.print(escape(line), soft_wrap=True)
    for each in found:
        if not each.seconds:
            message = f"not measured: {each}: memory is short, or no variant runs"
            console.print(escape(message), style="bold red", soft_wrap=True)
    return 0 if len(measured) == len(found) else 1


def _tuned(case: Case, which: str, dtype: str, device: Device) -> Tuned:
    where = _dispatch.gpu(device.index)
    request = rivals.request(case, dtype, which, where)
    rows = [row for row in OPERATOR.named("auto") if row.why_not_at(where, request) is None]
    plans = {row.name: row.plan(request, device) for row in rows}
    by_cost_model = min(plans, key=lambda name: plans[name].seconds)
    workload = _dispatch.Workload(OPERATOR, request, rows)
    tuned = Tuned(case.name, which, dtype, _tuning.seconds(workload, device, plans), by_cost_model)
    if tuned.seconds:
        _tuning.record(workload, device, tuned.fastest, tuned.seconds)
    return tuned


def _table(measured: Sequence[Tuned]) -> Table:
    names = [row.name for row in OPERATOR.variants if any(row.name in each.seconds for each in measured)]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("case", "pass", "dtype"):
        table.add_column(name, no_wrap=True)
    for name in names:
        table.add_column(f"{name} ms", justify="right", no_wrap=True)
    for name in ("fastest", "cost model"):
        table.add_column(name, no_wrap=True)
    for each in measured:
        times = [report.milliseconds(each.seconds[name]) if name in each.seconds else "-" for name in names]
        table.add_row(each.case, each.which, each.dtype, *times, each.fastest, _choice(each))
    return table


def _choice(each: Tuned) -> str:
    return f"{each.by_cost_model} ({'failed' if each.regret is None else f'{each.regret:.2f}x'})"


def _summary(measured: Sequence[Tuned]) -> Iterator[str]:
    """Yield lines that say how often and how badly the cost model is wrong."""
    wrong = [each for each in measured if each.by_cost_model != each.fastest]
    yield f"the cost model chooses the fastest variant in {len(measured) - len(wrong)} of {len(measured)}"
    known = [each for each in wrong if each.regret is not None]
    if known:
        worst = max(known, key=lambda each: each.regret)
        yield f"worst: {worst}: {worst.by_cost_model} takes {worst.regret:.2f} times as long as {worst.fastest}"
