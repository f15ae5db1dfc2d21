"""The code of the pages runs, their numbers are those of the results that they name, and their links lead somewhere.

Both calls of a row of docs/migrating.md give the same, and the version is the same everywhere.
"""

import importlib
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

import cupycorr.compat  # noqa: E402
import cupycorr.torch  # noqa: E402
from cupycorr import cli  # noqa: E402
from cupycorr.compat import _install  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))


def text(page):
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own, of its compiler
@pytest.mark.parametrize("page", ["README.md", "docs/migrating.md"])
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
        cupycorr.compat.uninstall()


# Command lines -----------------------------------------------------------------------------------------------------------------


def match_commands(page):
    """Return the words of each `cupycorr match` in the blocks of a page."""
    return [shlex.split(line)[2:] for line in re.findall(r"^ *(cupycorr match .*)$", text(page), re.MULTILINE)]


@pytest.mark.parametrize("words", [words for page in PAGES for words in match_commands(page)], ids=" ".join)
def test_the_options_of_every_command_exist(words):
    command = cli._program().commands["match"]
    values = command.make_context("match", list(words)).params
    assert values["output"]
    assert values["frames"] or values["patterns"]


def test_the_picture_of_arrows_is_what_its_command_draws(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = (block for block in re.findall(r"^```python\n(.*?)^```", text("README.md"), re.M | re.S) if "swirl" in block)
    exec(compile(block, "README.md", "exec"), {"np": np})
    (words,) = (words for words in match_commands("README.md") if "--arrows" in words)
    assert cli.main(["match", *words]) == 0
    paths = (tmp_path / "arrows.png", ROOT / "docs" / "arrows.png")
    drawn, shown = (np.asarray(Image.open(path).convert("RGB")).astype(int) for path in paths)
    assert drawn.shape == shown.shape
    assert abs(drawn - shown).mean() < 3, "of 255; other versions of matplotlib draw other letters"


def heading_anchors(page):
    """Return the names of a page's headings as targets of links."""
    titles = re.findall(r"^#+ (.*)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if not target.startswith("https://"):
            path, _, anchor = target.partition("#")
            found = (ROOT / page).parent / path if path else ROOT / page
            assert found.exists(), target
            assert not anchor or anchor in heading_anchors(found.relative_to(ROOT)), target


# The README's table of times ---------------------------------------------------------------------------------------------------

RESULTS = ("cpu-acceptance.json", "cpu-windows.json")
CASES = {
    "FlowNetC (4,256,48,64), P 21, e 2": "flownetc-headline",
    "PWC-Net (1,96,28,64), P 9": "pwcnet-L4-sintel",
    "PWC-Net (1,32,96,256), P 9": "pwcnet-L2-384x1024",
    "MM-Tracker (1,512,19,34), P 9": "mmtracker-headline",
    "the extension's default (16,64,100,100), k 3": "extension-default",
    "PIV (1,1,369,511), k 32, P 25, s 16": "piv",
    "the same PIV windows, s 1": "piv-dense",
}
PASSES = {"forward": "forward", "both gradients": "vjp"}
UNITS = {"ms": 1e-3, "s": 1.0, "MiB": 2**20, "GiB": 2**30}


def measured():
    """Return the rows of the results by (case, pass, contestant), from the later file where both have one."""
    rows = {}
    for name in RESULTS:
        for row in json.loads(text(f"benchmarks/results/{name}"))["rows"]:
            if "median_s" in row:
                rows[row["case"], row["pass"], row["contestant"]] = row
    return rows


def table_of_times():
    page = text("README.md")
    lines = re.search(r"^\| \| cupycorr \|.*\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE)[1].splitlines()
    return {name: cells for name, *cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}


def assert_rounded(written, value):
    number, unit = written.split()
    digits = len(number.replace(".", "").lstrip("0"))
    assert float(number) == pytest.approx(
        value / UNITS[unit], abs=0.51 * 10.0 ** -len(number.partition(".")[2]), rel=0.6 * 10.0**-digits
    )


@pytest.mark.parametrize(("name", "cells"), table_of_times().items(), ids=table_of_times())
def test_the_readmes_times_are_those_of_the_results_it_names(name, cells):
    case, which = name.rsplit(": ", 1)
    rows = {contestant: row for (*key, contestant), row in measured().items() if key == [CASES[case], PASSES[which]]}
    (ours,) = (row for row in rows.values() if row["auto"])
    time, peak, *others = cells
    assert_rounded(time, ours["median_s"])
    assert_rounded(peak, ours["peak_bytes"])
    rivals = {"unfold+einsum": others[0], "shift-loop": others[2], "cpp-extension": others[3]}
    assert_rounded_or_none(others[1], rows.get("unfold+einsum", {}).get("peak_bytes"))
    for rival, cell in rivals.items():
        told, _, ratio = cell.rstrip("x)").partition(" (")
        assert_rounded_or_none(told, rows.get(rival, {}).get("median_s"))
        if ratio:
            assert float(ratio) == pytest.approx(rows[rival]["median_s"] / ours["median_s"], rel=0.1, abs=0.051)


def assert_rounded_or_none(written, value):
    assert (written == "-") == (value is None)
    if value is not None:
        assert_rounded(written, value)


# The README's table of times of lookups -----------------------------------------------------------------------------------------

LOOKUP_FILES = "cpu-lookup.json", "cpu-lookup-on-demand.json", "cpu-lookup-training.json", "cpu-lookup-1080p.json"
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


def table_of_lookups():
    lines = re.search(r"^\| \| CorrBlock \|.*\n\|[-|]+\n((?:\|.*\n)+)", text("README.md"), re.MULTILINE)[1].splitlines()
    return {name: cells for name, *cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}


@pytest.mark.parametrize(("name", "cells"), table_of_lookups().items(), ids=table_of_lookups())
def test_the_readmes_times_of_lookups_are_those_of_their_results(name, cells):
    *task, keep = LOOKUPS[name]
    rows = {}
    for file in LOOKUP_FILES:
        for row in json.loads(text(f"benchmarks/results/{file}"))["rows"]:
            if [row["size"], row["task"], row["flow"]] == task and "median_s" in row:
                rows.setdefault(file, {})[row["contestant"]] = row
    time, peak, volume, volume_peak, on_demand = cells
    main = next(rows[file] for file in LOOKUP_FILES if file in rows)
    ours = main[keep]
    assert_rounded(time, ours["median_s"])
    assert_rounded_or_none(peak, ours["peak_bytes"])
    # A ratio is that of one run, whose file has our time in it too.
    for told, contestant in ((volume, "torchvision"), (on_demand, "on demand")):
        run = next((each for each in rows.values() if contestant in each), None)
        assert (told == "-") == (run is None)
        if run is not None:
            ratio = run[contestant]["median_s"] / run[keep]["median_s"]
            assert float(told.partition("(")[2].rstrip("x)")) == pytest.approx(ratio, rel=0.05, abs=0.051)
            assert_rounded(told.partition(" (")[0], run[contestant]["median_s"])
    assert_rounded_or_none(volume_peak, main.get("torchvision", {}).get("peak_bytes"))


# The README's table of times of match -------------------------------------------------------------------------------------------

RIVALS = (("matchTemplate loop", "matchTemplate", "StereoBM"), ("OpenPIV", "OpenPIV vectorized"))


def table_of_match():
    lines = re.search(r"^\| \| cupycorr.match \|.*\n\|[-|]+\n((?:\|.*\n)+)", text("README.md"), re.MULTILINE)[1].splitlines()
    return {name: cells for name, *cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}


@pytest.mark.parametrize(("name", "cells"), table_of_match().items(), ids=table_of_match())
def test_the_readmes_times_of_match_are_those_of_its_results(name, cells):
    rows = json.loads(text("benchmarks/results/match-speed.json"))["rows"]
    medians = {row["contestant"]: row["median_s"] for row in rows if name == f"{row['problem']} ({row['dtype']})"}
    assert_rounded(cells[0], medians["auto"])
    for contestants, cell in zip(RIVALS, cells[1:], strict=True):
        best = min((medians[each] for each in contestants if each in medians), default=None)
        told, _, ratio = cell.rstrip("x)").partition(" (")
        assert_rounded_or_none(told, best)
        if ratio:
            assert float(ratio) == pytest.approx(best / medians["auto"], rel=0.06)


# Migrating ---------------------------------------------------------------------------------------------------------------------

# Some adapters have no row of their own: copies of the Python code of another package import them.
COMPILED_HALVES = {"correlation_cuda", "spatial_correlation_sampler_backend"}
ADAPTERS = {path.stem for path in (ROOT / "cupycorr" / "compat").glob("[a-z]*.py")} - COMPILED_HALVES


def rows():
    """Return (adapter, old call, new call) of the rows of the table by their names."""
    cells = (line.strip("| ").split(" | ") for line in text("docs/migrating.md").splitlines() if line.startswith("| `"))
    cells = (row for row in cells if len(row) == 4)
    return {source: (source.split("`")[1], old.strip("`"), new.strip("`")) for source, old, new, _ in cells}


ROWS = rows()


@pytest.mark.parametrize(("adapter", "old", "new"), ROWS.values(), ids=ROWS)
def test_old_and_new_call_give_the_same(adapter, old, new):
    module = importlib.import_module(f"cupycorr.compat.{adapter}")
    x1, x2 = torch.randn(2, 2, 6, 13, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    names = {"x1": x1, "x2": x2, "C": 6, **lookups(x1, x2)}
    before, after = eval(old, {**vars(module), **names}), eval(new, {**vars(cupycorr.torch), **names})
    assert before.abs().max() > 0.1
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


def lookups(x1, x2):
    """Return the names that the rows of lookups use besides the maps."""
    y, x = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in x1.shape[2:]), indexing="ij")
    flow = 5 * torch.randn(len(x1), 2, *x1.shape[2:], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return {
        "flow": flow,
        "args": SimpleNamespace(corr_levels=4, corr_radius=4),
        "xy": torch.stack((x, y)) + flow,
        "ii": torch.tensor([0, 1, 1]),
        "jj": torch.tensor([1, 0, 1]),
        "volume": torch.einsum("bchi,bchj->bhij", x1, x2),
        "volumes": torch.einsum("bchw,bcyx->bhwyx", x1, x2),
    }


def test_every_adapter_has_its_row():
    assert {adapter for adapter, _, _ in ROWS.values()} == ADAPTERS


def test_every_name_to_install_is_listed_with_the_imports_that_it_answers_to():
    page = text("docs/migrating.md")
    lines = re.search(r"^\| name \| imports.*\n\|[-|]+\n((?:\|.*\n)+)", page, re.MULTILINE)[1].splitlines()
    listed = {re.findall(r"`(.*?)`", line)[0]: set(re.findall(r"`(.*?)`", line)[1:]) for line in lines}
    assert set(listed) == set(_install.NEIGHBOURS)
    for name, imports in listed.items():
        packages = _install.NEIGHBOURS[name].packages
        full = {*packages, *(f"{root}.{sub}" for root, package in packages.items() for sub in package.submodules)}
        assert all(any(found in (whole, whole.partition(".")[2]) for whole in full) for found in imports), name


# Versions ----------------------------------------------------------------------------------------------------------------------


def test_the_citation_names_this_version():
    assert re.search(r"^version: (.*)$", text("CITATION.cff"), re.M)[1] == cupycorr.__version__


def test_the_changelog_begins_with_what_is_not_released_or_with_this_version():
    newest = re.search(r"^## \[(.*?)\]", text("CHANGELOG.md"), re.M)[1]
    assert newest in ("Unreleased", cupycorr.__version__)
