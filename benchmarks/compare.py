"""``python -m benchmarks compare A.json B.json``: the rows of a benchmark that became slower or faster from one file to another.

A row counts as slower or faster only outside the noise: where the spreads of its runs do not overlap. The spread is the middle
half, from the first quartile to the third; of fewer than 8 runs it is the whole range, and of fewer than 3 nothing is said. The
ratio is that of the medians. Runs of one process do not show how much the next process differs: ``--base`` runs several.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from . import report
from .timing import Timing

NAMES = ("case", "problem", "size", "task", "flow", "dtype", "pass", "contestant")  # of a row, as far as its file has them
SLOWER, FASTER, SAME, UNKNOWN = "slower", "faster", "same", "too few runs"
FEWEST, FEW = 3, 8  # runs: with fewer than these nothing is said, and the spread is the whole range
THRESHOLD = 1.1
STYLES = {SLOWER: "red", FASTER: "green", SAME: None, UNKNOWN: "dim"}
# Numbers of a row that follow from its runs and from those of other rows.
DERIVED = (
    "runs_s",
    "cut_short",
    "disturbed",
    "ratio",
    "regret",
    "gflops",
    "share_of_gemm",
    "share_of_bound",
    "host_s",
    "host_unknown",
)
MACHINE = ("model", "cores_used", "cores")  # of the header; the others may differ from run to run

Key = tuple[str, ...]  # the values of `NAMES`


@dataclass(frozen=True, slots=True)
class Results:
    """The rows of a file.

    Attributes
    ----------
    file
        The name that messages have.
    device
        The machine.
    timed
        The runs of each row that was timed.
    untimed
        Of each other row, the reason.
    wrong
        The rows whose results were wrong.
    automatic
        The contestant that ``"auto"`` ran, by the names before it.
    """

    file: str
    device: dict[str, Any]
    timed: dict[Key, Timing]
    untimed: dict[Key, str]
    wrong: frozenset[Key]
    automatic: dict[Key, str]


@dataclass(frozen=True, slots=True)
class Compared:
    """A row of both files."""

    names: Key
    before: Timing
    after: Timing

    @property
    def ratio(self) -> float:
        """The median after over the median before."""
        return self.after.median / self.before.median

    @property
    def verdict(self) -> str:
        """The row became slower or faster if the spreads do not overlap."""
        if min(len(self.before.seconds), len(self.after.seconds)) < FEWEST:
            return UNKNOWN
        (low, high), (new_low, new_high) = spread(self.before), spread(self.after)
        return SLOWER if new_low > high else FASTER if new_high < low else SAME


def spread(timing: Timing) -> tuple[float, float]:
    """Return between which seconds most of the runs are."""
    return (min(timing.seconds), max(timing.seconds)) if len(timing.seconds) < FEW else timing.quartiles


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return 1 where a row became slower by more than the threshold, or wrong."""
    parser = argparse.ArgumentParser("python -m benchmarks compare", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("before", type=Path, metavar="A.json", help="a file that --json has written")
    parser.add_argument("after", type=Path, metavar="B.json", help="the file that is compared with it")
    parser.add_argument(
        "--threshold",
        type=ratio,
        default=THRESHOLD,
        metavar="RATIO",
        help=f"exit with 1 if a row became slower, outside the noise, by more than this ratio (default: {THRESHOLD})",
    )
    options = parser.parse_args(arguments)
    try:
        before, after = read(options.before), read(options.after)
        return print_comparison(before, after, options.threshold)
    except ValueError as error:
        parser.error(str(error))


def ratio(text: str) -> float:
    """Return the ratio that an option has."""
    value = float(text)
    if not value >= 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


# Files -------------------------------------------------------------------------------------------------------------------------


def read(path: Path) -> Results:
    """Return the rows of a file.

    Raises
    ------
    ValueError
        It is no file that a benchmark has written.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"results must be a JSON file that a benchmark has written, got {str(path)!r}: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise ValueError(f"results must be a JSON file that a benchmark has written, got {str(path)!r}, which has no rows")
    return results(str(path), content)


def results(file: str, content: Mapping[str, Any]) -> Results:
    """Return the rows of a file's content; ``file`` is the name that messages have.

    Raises
    ------
    ValueError
        Two rows have the same names.
    """
    rows: dict[Key, Mapping[str, Any]] = {}
    for row in content["rows"]:
        if (names := _names(row, content)) in rows:
            raise ValueError(f"rows of {file!r} must have different names, got two of {shown(names)!r}")
        rows[names] = row
    timed = {names: Timing(tuple(row["runs_s"])) for names, row in rows.items() if row.get("runs_s")}
    reasons = {names: str(row.get("wrong") or row.get("reason") or "not timed") for names, row in rows.items()}
    return Results(
        file,
        content.get("device", {}),
        timed,
        {names: reason for names, reason in reasons.items() if names not in timed},
        frozenset(names for names, row in rows.items() if row.get("wrong")),
        {names[:-1]: names[-1] for names, row in rows.items() if row.get("auto")},
    )


def joined(contents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the content of one file for several runs of the same benchmark: each row has the runs of all of them."""
    rows: dict[Key, dict[str, Any]] = {}
    for content in contents:
        for row in content["rows"]:
            kept = rows.setdefault(_names(row, content), {name: value for name, value in row.items() if name not in DERIVED})
            kept["runs_s"] = [*kept.get("runs_s", []), *row.get("runs_s", [])]
            kept["wrong"] = kept.get("wrong") or row.get("wrong")
    for row in rows.values():
        if row["runs_s"]:
            timing = Timing(tuple(row["runs_s"]))
            row |= {"median_s": timing.median, "minimum_s": timing.minimum, "quartiles_s": list(timing.quartiles)}
    return {**contents[0], "rows": [*rows.values()]}


def _names(row: Mapping[str, Any], content: Mapping[str, Any]) -> Key:
    """Return the names of a row; older files have the dtype of all rows in their header."""
    found = {"dtype": content.get("dtype"), **row}
    return tuple(str(found.get(name) or "") for name in NAMES)


def shown(names: Key) -> str:
    """Return the names of a row as text."""
    return " ".join(filter(None, names))


# The comparison ----------------------------------------------------------------------------------------------------------------


def compared(before: Results, after: Results) -> list[Compared]:
    """Return the rows that both have, and for each problem where auto runs another variant than before, a row of both.

    Raises
    ------
    ValueError
        There is none.
    """
    rows = [Compared(names, before.timed[names], timing) for names, timing in after.timed.items() if names in before.timed]
    for problem, name in after.automatic.items():
        old = before.automatic.get(problem, name)
        if old != name and (*problem, old) in before.timed and (*problem, name) in after.timed:
            names = (*problem, f"auto: {old}, now {name}")
            rows.append(Compared(names, before.timed[(*problem, old)], after.timed[(*problem, name)]))
    if not rows:
        raise ValueError(f"the files must have timed rows with the same names, got none in {before.file!r} and {after.file!r}")
    return rows


def print_comparison(before: Results, after: Results, threshold: float) -> int:
    """Print the rows of both; return 1 where one became slower by more than the threshold, or wrong."""
    rows, console = compared(before, after), report.wide_console()
    different = [name for name in MACHINE if before.device.get(name) != after.device.get(name)]
    if different:
        told = "; ".join(f"{name}: {before.device.get(name)} and {after.device.get(name)}" for name in different)
        console.print(escape(f"warning: the files are from different machines, {told}"), style="bold red", soft_wrap=True)
    console.print(_table(rows, threshold))
    broken = sorted(after.wrong - before.wrong)
    for names in broken:
        console.print(escape(f"wrong: {shown(names)}: {after.untimed.get(names)}"), style="bold red", soft_wrap=True)
    for names in sorted(before.timed.keys() - after.timed.keys() - set(broken)):
        console.print(escape(f"only in {before.file}: {shown(names)}: {after.untimed.get(names, 'no such row')}"), soft_wrap=True)
    for names in sorted(after.timed.keys() - before.timed.keys()):
        console.print(escape(f"only in {after.file}: {shown(names)}"), soft_wrap=True)
    console.print(
        f"slower, faster: the spreads of the runs do not overlap (quartiles; the range of fewer than {FEW}); same: they do"
    )
    failed = [row for row in rows if _failed(row, threshold)]
    counts = Counter(row.verdict for row in rows)
    worst = max(rows, key=lambda row: row.ratio)
    console.print(
        escape(
            f"{counts[SLOWER]} slower ({len(failed)} of them by more than {threshold:g}), {counts[FASTER]} faster, "
            f"{counts[SAME]} same, {counts[UNKNOWN]} with too few runs; largest ratio {worst.ratio:.2f}: {shown(worst.names)}"
        ),
        style="bold red" if failed or broken else "bold",
        soft_wrap=True,
    )
    return 1 if failed or broken else 0


def _failed(row: Compared, threshold: float) -> bool:
    return row.verdict == SLOWER and row.ratio > threshold


def _table(rows: Sequence[Compared], threshold: float) -> Table:
    table, columns = Table(box=None, header_style="bold", pad_edge=False), _used(rows)
    for name in (NAMES[column] for column in columns):
        table.add_column(name, no_wrap=True)
    for name in ("before ms", "spread", "after ms", "spread", "ratio", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        times = (cell for timing in (row.before, row.after) for cell in (report.milliseconds(timing.median), _spread(timing)))
        verdict = f"{row.verdict}{' !' if _failed(row, threshold) else ''}"
        cells = (*(row.names[column] for column in columns), *times, f"{row.ratio:.2f}", verdict)
        table.add_row(*map(escape, cells), style=STYLES[row.verdict])
    return table


def _used(rows: Sequence[Compared]) -> list[int]:
    """Return the places of the names that any row has."""
    return [place for place in range(len(NAMES)) if any(row.names[place] for row in rows)]


def _spread(timing: Timing) -> str:
    return " to ".join(map(report.milliseconds, spread(timing)))
