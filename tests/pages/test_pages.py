"""The code of the pages runs, and their links lead somewhere.

Both calls of a row of docs/migrating.md give the same, and the version is the same everywhere.
"""

import importlib
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
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/**/*.md"))),
)


def text(page):
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own, of its compiler
@pytest.mark.parametrize("page", ["README.md", "docs/migrating.md", "docs/export.md"])
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
