"""The tables and figures of the pages, made from the results of runs: `cog` writes them into the pages.

``python -m cogapp -r README.md docs/benchmarks.md ...`` writes them again after a new run, and a test compares. A table has what
its files have, and nothing else: a row without a time of ours, and a column without any time, are left out. A factor in brackets
is a rival's time divided by ours, of the same run. Where several files have the same row, the newest run counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import product
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any, NamedTuple

from .cases import CASES, Case

RESULTS = Path(__file__).parent / "results"
Record = dict[str, Any]
NONE = "-"  # the cell of a contestant that did not run
WIDTH = 130  # columns of a paragraph


@lru_cache
def content(name: str) -> Any:
    """Return the content of a file of results, by its name without the ending."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


# Figures -----------------------------------------------------------------------------------------------------------------------


def seconds(value: float) -> str:
    """Return a time with three digits, in ms or s."""
    return f"{value:.3g} s" if value >= 0.9995 else f"{value * 1e3:.3g} ms"


def memory(count: float) -> str:
    """Return a number of bytes in MiB or GiB."""
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


def factor(ratio: float) -> str:
    """Return a ratio of times with two digits, or whole from 10 on."""
    return f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.2g}"


def millions(value: float, unit: str) -> str:
    """Return a number in millions of a unit, with three digits."""
    return f"{float(f'{value / 1e6:.3g}'):,g} {unit}"


def machine(*names: str) -> str:
    """Return the machines, the versions of torch and the dates of the runs of some files, as words."""
    return "; ".join(dict.fromkeys(map(_machine, names)))


def _machine(name: str) -> str:
    run = content(name)
    torch = run["versions"].get("torch", "").partition("+")[0]
    date = datetime.fromisoformat(run["date"])
    device = run["device"]
    cores = device["cores_used"]
    words = [f"{cores} core{'s' * (cores != 1)} of {device['model'].replace('(R)', '')}", *([f"torch {torch}"] if torch else [])]
    return ", ".join([*words, f"{date.day} {date:%B %Y}"])


# Tables ------------------------------------------------------------------------------------------------------------------------


class Rival(NamedTuple):
    """The time of a rival, that time divided by ours in the same run, and the peak memory, if it was measured."""

    seconds: float
    ratio: float
    peak_bytes: int | None

    @classmethod
    def of(cls, row: Record, ours: Record) -> Rival:
        """Return the rival of two records of one run."""
        return cls(row["median_s"], row["median_s"] / ours["median_s"], row.get("peak_bytes"))


class Comparison(NamedTuple):
    """The contestants of one row of a table: our record, and the rivals by the headings of their columns."""

    title: str
    ours: Record
    rivals: dict[str, Rival]

    @property
    def fastest(self) -> float:
        """The factor of the fastest rival."""
        return min(rival.ratio for rival in self.rivals.values())


def comparison_table(comparisons: Sequence[Comparison], ours: str, rivals: Sequence[str], peaks: Sequence[str] = ()) -> str:
    """Return a table of times with a column for each rival that has one; some columns have their peak memory beside them."""
    shown = [rival for rival in rivals if any(rival in each.rivals for each in comparisons)]
    heads = [ours, *shown]
    heading = [word for head in heads for word in ([head, "peak"] if head in peaks else [head])]
    lines = []
    for each in comparisons:
        cells = [seconds(each.ours["median_s"]), *([memory(each.ours["peak_bytes"])] if ours in peaks else [])]
        for rival in shown:
            cells += _cells(each.rivals.get(rival), rival in peaks)
        lines.append([each.title, *cells])
    return table(["", *heading], lines)


def _cells(rival: Rival | None, with_peak: bool) -> list[str]:
    """Return the time of a rival with its factor, and its peak memory."""
    if rival is None:
        return [NONE, NONE] if with_peak else [NONE]
    time = f"{seconds(rival.seconds)} ({factor(rival.ratio)}x)"
    return [time, NONE if rival.peak_bytes is None else memory(rival.peak_bytes)] if with_peak else [time]


def table(heading: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown, after a blank line."""
    first, *others = (f"| {' | '.join(line)} |\n" for line in (heading, *lines))
    return "\n" + "".join([first, "|---" * len(heading), "|\n", *others])


def lost(comparisons: Iterable[Comparison]) -> str:
    """Return a sentence about the rows in which a rival is faster."""
    compared = [each for each in comparisons if each.rivals]
    slower = [each for each in compared if each.fastest < 1]
    if not slower:
        return f"cupycorr is the fastest in all {len(compared)} rows."
    excess = sorted(1 / each.fastest for each in slower)
    span = dict.fromkeys(f"{each:.3g}" for each in (excess[0], excess[-1]))
    which = f": {slower[0].title}" if len(slower) == 1 else ""
    return f"A rival is faster in {len(slower)} of {len(compared)} rows, by a factor of {' to '.join(span)}{which}."


def paragraph(*sentences: str) -> str:
    """Return sentences as a paragraph of lines of at most `WIDTH` columns, after a blank line."""
    return f"\n{fill(' '.join(sentences), WIDTH, break_long_words=False, break_on_hyphens=False)}\n"


def measured(*names: str) -> str:
    """Return where and when the runs of some files were made, in a sentence."""
    return paragraph(f"Measured on {machine(*names)}.")


# The operator ------------------------------------------------------------------------------------------------------------------

OPERATOR = ("cpu-acceptance", "cpu-stereo")
TITLES = {
    "flownetc-headline": "FlowNetC (4,256,48,64), P 21, e 2",
    "pwcnet-L6-sintel": "PWC-Net (1,196,7,16), P 9",
    "pwcnet-L4-sintel": "PWC-Net (1,96,28,64), P 9",
    "pwcnet-L2-384x1024": "PWC-Net (1,32,96,256), P 9",
    "liteflownet-L5-sintel": "LiteFlowNet (1,128,28,64), P 7",
    "mmtracker-headline": "MM-Tracker (1,512,19,34), P 9",
    "stereo-full": "stereo (1,32,500,741), 64 disparities",
    "extension-default": "the extension's default (16,64,100,100), k 3",
    "piv": "PIV (1,1,369,511), k 32, P 25, s 16",
    "piv-dense": "the same PIV windows, s 1",
}
PASSES = {"forward": "forward", "vjp": "both gradients"}
OPERATOR_RIVALS = {"shift-loop": "shift loop", "unfold+einsum": "unfold + einsum", "cpp-extension": "C++ extension"}


def _operator_runs() -> dict[tuple[str, str], tuple[str, list[Record]]]:
    """Return, by case and pass, the newest file that has them, and the rows of the contestants that it timed."""
    found: dict[tuple[str, str], tuple[str, list[Record]]] = {}
    for name in sorted(OPERATOR, key=lambda name: content(name)["date"]):
        timed: dict[tuple[str, str], list[Record]] = {}
        for row in content(name)["rows"]:
            if "median_s" in row:
                timed.setdefault((row["case"], row["pass"]), []).append(row)
        found |= {key: (name, rows) for key, rows in timed.items() if any(row["auto"] for row in rows)}
    return found


def operator_comparisons() -> list[Comparison]:
    """Return the rows of the operator's table."""
    runs, found = _operator_runs(), []
    for (case, title), (which, words) in product(TITLES.items(), PASSES.items()):
        if (case, which) in runs:
            _, rows = runs[case, which]
            ours = next(row for row in rows if row["auto"])
            rivals = {heading: Rival.of(row, ours) for row in rows if (heading := OPERATOR_RIVALS.get(row["contestant"]))}
            found.append(Comparison(f"{title}: {words}", ours, rivals))
    return found


def operator() -> str:
    """Return the table of the operator, with the shift loop as the first rival."""
    return comparison_table(operator_comparisons(), "cupycorr", [*OPERATOR_RIVALS.values()], ["cupycorr", "unfold + einsum"])


def operator_summary() -> str:
    """Return what the operator's table shows, in sentences."""
    rows = operator_comparisons()
    ratios = [each.fastest for each in rows if each.rivals]
    return paragraph(
        f"Measured on {machine(*(name for name, _ in _operator_runs().values()))}.",
        f"The fastest rival of a row takes {factor(min(ratios))} to {factor(max(ratios))} times as long as cupycorr;",
        f"the median is {factor(median(ratios))} times.",
        lost(rows),
    )


def cpu_profile() -> str:
    """Return the table of the steps of calls on a CPU, in milliseconds, and the floor of each call."""
    rows = content("cpu-profile")["rows"]
    heading = ("case", "all threads", "one thread", *rows[0]["steps_ms"], "rest", "floor", "floor / all threads")
    return table(heading, map(_profile_line, rows))


def _profile_line(row: Record) -> list[str]:
    times = (row["all_threads_ms"], row["one_thread_ms"], *row["steps_ms"].values(), row["rest_ms"], row["floor_ms"])
    cells = ("-" if time == 0 else f"{time:.2g}" for time in times)
    return [f"{row['case']}: {PASSES[row['pass']]}", *cells, f"{row['floor_ms'] / row['all_threads_ms']:.0%}"]


# Recipes -----------------------------------------------------------------------------------------------------------------------

RECIPES = {
    "tracking": "mmtracker-headline",
    "FlowNetC": "flownetc-headline",
    "template in an image": "template",
    "one-sided stereo": "stereo-quarter",
    "PIV": "piv",
}


def recipes() -> str:
    """Return the table of the memory and the time of the guide's recipes in float32."""
    cases = {case.name: case for case in CASES}
    heading = ("recipe", "inputs", "result", "unfolded", "multiply-adds", "time", "with gradients", "peak")
    return table(heading, ([name, *_recipe(cases[wanted])] for name, wanted in RECIPES.items()))


def _recipe(case: Case) -> Iterator[str]:
    timed = {row["pass"]: row for row in content("cpu-recipes")["rows"] if row["case"] == case.name and row["auto"]}
    forward, gradients = timed["forward"], timed["vjp"]
    result = case.result_bytes("float32", "forward")
    terms = case.shape[1] * case.problem.vertical.kernel * case.problem.horizontal.kernel
    yield millions(case.result_bytes("float32", "vjp"), "MB")  # the gradients are as large as the inputs
    yield millions(result, "MB")
    yield millions(result * terms, "MB")
    yield millions(case.problem.outputs * terms, "million")
    yield f"{forward['median_s'] * 1e3:.3g} ms"
    yield f"{(forward['median_s'] + gradients['median_s']) * 1e3:.3g} ms"
    yield millions(forward["peak_bytes"], "MB")


def recipes_machine() -> str:
    """Return where the recipes were measured, in a sentence."""
    return paragraph(
        "Time and peak memory (beyond the inputs, the result included) are medians that `python -m benchmarks` measured on",
        f"{machine('cpu-recipes')}.",
    )


# Lookups -----------------------------------------------------------------------------------------------------------------------

LOOKUP_FILES = ("cpu-lookup", "cpu-lookup-on-demand", "cpu-lookup-training", "cpu-lookup-1080p")
# The size, the task, the flow, and what our block keeps, of each row.
LOOKUPS = {
    **{f"one lookup, {flow} flow": ("sintel", "lookup", flow, "maps") for flow in ("zero", "smooth", "edges", "noise")},
    "the block and one lookup": ("sintel", "block and lookup", "smooth", "maps"),
    **{
        f"gradient of {name}, {flow} flow": ("sintel", f"gradient of {name}", flow, "maps")
        for name in ("fmap1", "fmap2", "coords")
        for flow in ("smooth", "noise")
    },
    "32 lookups of a converging flow": ("sintel", "32 lookups", "converging", "windows"),
    "training step of 12 lookups, 46 x 62": ("chairs", "training, 12 lookups", "converging", "auto"),
    "the block and one lookup, 136 x 240": ("1080p", "block and lookup", "smooth", "windows"),
}
LOOKUP_RIVALS = {"torchvision": "torchvision", "on demand": "on demand in torch"}


def lookup_comparisons() -> list[Comparison]:
    """Return the rows of the table of lookups; a rival that was timed in another file is compared with our time in that file."""
    return [found for title, (*task, keep) in LOOKUPS.items() if (found := _lookup(title, task, keep)) is not None]


def _lookup(title: str, task: Sequence[str], keep: str) -> Comparison | None:
    files = (
        {
            row["contestant"]: row
            for row in content(name)["rows"]
            if [row["size"], row["task"], row["flow"]] == task and "median_s" in row
        }
        for name in LOOKUP_FILES
    )
    runs = [run for run in files if keep in run]
    if not runs:
        return None
    rivals = {}
    for contestant, heading in LOOKUP_RIVALS.items():
        run = next((run for run in runs if contestant in run), None)
        if run is not None:
            rivals[heading] = Rival.of(run[contestant], run[keep])
    return Comparison(title, runs[0][keep], rivals)


def lookups() -> str:
    """Return the table of lookups."""
    return comparison_table(lookup_comparisons(), "CorrBlock", [*LOOKUP_RIVALS.values()], ["CorrBlock", "torchvision"])


def lookups_summary() -> str:
    """Return what the table of lookups shows, in sentences."""
    repeated = {row["contestant"]: row["median_s"] for row in content("cpu-lookup")["rows"] if row["task"] == "32 lookups"}
    return paragraph(
        f"Measured on {machine(*LOOKUP_FILES)}.",
        lost(lookup_comparisons()),
        'One lookup is that of `keep="maps"`, out of a block that is ready; torchvision\'s volume was made before, too.',
        "32 lookups are those of a block that keeps windows; `correlation_lookup` takes",
        f"{factor(repeated['array function'] / repeated['windows'])} times as long for them.",
    )


# The best and the mean displacement ------------------------------------------------------------------------------------------

MATCHING_SIZES = {
    "flownetc": "FlowNetC (4,256,48,64), P 21, e 2",
    "pwcnet": "PWC-Net (1,32,96,256), P 9",
    "stereo": "stereo (1,32,500,741), P (1, 64)",
}
MATCHING_TASKS = {"argmax": "best", "soft argmax": "mean"}
MATCHING_RIVALS = {"our volume": "our volume, reduced by torch", "shifts": "shift loop", "unfold": "unfold + einsum"}


def matching() -> str:
    """Return the table of the best and the mean displacement without a volume."""
    comparisons = []
    for size, title in MATCHING_SIZES.items():
        for task, words in MATCHING_TASKS.items():
            rows = [row for row in content("cpu-matching")["rows"] if (row["size"], row["task"]) == (size, task)]
            run = {row["contestant"]: row for row in rows if "median_s" in row}
            rivals = {heading: Rival.of(run[name], run["ours"]) for name, heading in MATCHING_RIVALS.items() if name in run}
            comparisons.append(Comparison(f"{title}: {words}", run["ours"], rivals))
    headings = [*MATCHING_RIVALS.values()]
    return comparison_table(comparisons, "cupycorr", headings, ["cupycorr", *headings])


# Groups of channels ------------------------------------------------------------------------------------------------------------

GROUPS_PASSES = {"forward": "the volume", "training": "the volume and both gradients"}


def groups() -> str:
    """Return the table of group-wise correlation."""
    comparisons = []
    for which, title in GROUPS_PASSES.items():
        run = {row["contestant"]: row for row in content("cpu-groups")["rows"] if row["pass"] == which}
        ours = run["build_gwc_volume"]
        comparisons.append(Comparison(title, ours, {"loop over disparities": Rival.of(run["disparity loop"], ours)}))
    return comparison_table(comparisons, "build_gwc_volume", ["loop over disparities"])


# Export ------------------------------------------------------------------------------------------------------------------------


def exported() -> str:
    """Return the table of exported operators: their nodes, and their times in one thread."""
    heading = "what, maps (B, C, H, W)", "ONNX nodes", "ATen nodes", "onnxruntime", "cupycorr"
    lines = []
    for row in content("cpu-export")["rows"]:
        title = f"{row['case']} ({', '.join(map(str, row['shape']))})"
        nodes = str(row["onnx_nodes"]), str(row["aten_nodes"])
        lines.append((title, *nodes, seconds(row["onnxruntime_s"]), seconds(row["eager_s"])))
    return table(heading, lines)


# match -------------------------------------------------------------------------------------------------------------------------

MATCH_RIVALS = {"OpenCV": ("matchTemplate loop", "matchTemplate", "StereoBM"), "OpenPIV": ("OpenPIV", "OpenPIV vectorized")}


def match_comparisons() -> list[Comparison]:
    """Return the rows of the table of `match`; of each rival the fastest of its ways counts."""
    runs: dict[str, dict[str, Record]] = {}
    for row in content("match-speed")["rows"]:
        runs.setdefault(f"{row['problem']} ({row['dtype']})", {})[row["contestant"]] = row
    found = []
    for title, run in runs.items():
        ours = run["auto"]
        ways = {heading: [run[name] for name in names if name in run] for heading, names in MATCH_RIVALS.items()}
        fastest = {heading: min(rows, key=lambda row: row["median_s"]) for heading, rows in ways.items() if rows}
        found.append(Comparison(title, ours, {heading: Rival.of(row, ours) for heading, row in fastest.items()}))
    return found


def match() -> str:
    """Return the table of `match`."""
    return comparison_table(match_comparisons(), "cupycorr.match", [*MATCH_RIVALS])


def match_summary() -> str:
    """Return what the table of `match` shows, in sentences."""
    return paragraph(f"Measured on {machine('match-speed')}.", lost(match_comparisons()))


def match_accuracy() -> str:
    """Return the largest mean errors of `match` on synthetic particle images, in a sentence."""
    rows = [
        row for row in content("match-accuracy")["rows"] if row["estimator"] == "cupycorr gaussian" and row["motion"] == "uniform"
    ]
    worst = {window: max(row["bias"] for row in rows if row["window"] == window) for window in (32, 16)}
    smallest, *_, largest = sorted({row["diameter"] for row in rows})
    noise = max(row["noise"] for row in rows)
    return paragraph(
        f"On synthetic particle images, the mean error is at most {worst[32]:.3f} px for windows of 32 pixels and",
        f"{worst[16]:.3f} px for 16, over particle diameters from {smallest:g} to {largest:g} pixels, without noise and",
        f"with {noise:.0%}; OpenPIV's extended search has the same, with more outliers.",
    )


# Scaling -----------------------------------------------------------------------------------------------------------------------

COSTS = ("windows", "tasks", "graph MB", "graph s", "s", "CPU s of the workers", "peak GiB of a worker")
SCALING = {
    "scaling": ("size", "chunk", *COSTS),
    "scaling-lost-worker": ("size", "chunk", *COSTS, "workers killed", "missing"),
    "scaling-tenfold": ("size", "chunk", *COSTS),
    "scaling-chunks": ("chunk", "chunks of the result", "tasks", "graph MB", "graph s", "s", "CPU s"),
}


def scaling(name: str) -> str:
    """Return the table of one file of `benchmarks.scaling`."""
    return table(SCALING[name], ([str(row[column]) for column in SCALING[name]] for row in content(name)))


def scaling_peak() -> str:
    """Return the memory that the largest frames took, in a sentence."""
    largest = max(content("scaling"), key=lambda row: row["size"])
    size, peak = largest["size"], largest["peak GiB of a worker"]
    return paragraph(
        f"Two scenes of {size} x {size} took two processes of {peak:.1f} GiB each;",
        "[docs/scaling.md](docs/scaling.md) has the lines for a laptop, a cluster and many GPUs.",
    )


def scaling_chunks() -> str:
    """Return what a chunk costs, in sentences."""
    rows = {row["chunks of the result"]: row for row in content("scaling-chunks")}
    _, few, many, _ = sorted(rows)
    processors = (rows[many]["CPU s"] - rows[few]["CPU s"]) / (many - few)
    tasks, graph = rows[many]["tasks"] / many, rows[many]["graph MB"] / many
    return paragraph(
        f"A chunk costs {tasks:.0f} tasks: one that reads it from each frame, one that matches, and one for each field.",
        f"From {few} chunks to {many}, the processors take {processors * 1e3:.0f} ms more for each chunk, and the graph grows in",
        f"proportion, to {graph * 1e3:.1f} kB for each chunk.",
    )
