"""The examples of docs/guide/ and docs/tutorials/ print what the pages say, and a script draws their pictures."""

import contextlib
import importlib
import io
import re
from pathlib import Path

import numpy as np
import oracle
import pytest

import cupycorr
from benchmarks import cases, tables
from cupycorr._correlation.problem import parameters

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "guide"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md"))}
TUTORIALS = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "tutorials").glob("*.md"))}
WORKSPACE = 64 * 2**20  # bytes that the page promises not to exceed
LARGEST_PICTURE = 60_000  # bytes

# Examples ----------------------------------------------------------------------------------------------------------------------


def sections(text):
    """Return the examples of every heading of a page as (code, printed text), by the title of the heading."""
    found = {}
    for section in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]:
        title, body = section.split("\n", 1)
        examples = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", body, re.MULTILINE | re.DOTALL)
        if examples:
            found[title] = examples
    return found


def runs():
    """Return the examples that share a namespace: of a guide's page its first lines and those of a section; of a tutorial all."""
    found = {}
    for page, text in PAGES.items():
        for number, (title, examples) in enumerate(sections(text).items()):
            start = next(iter(sections(text).values()))[:1] if number else []
            found[f"{page}: {title}"] = [*start, *examples]
    for page, text in TUTORIALS.items():
        found[f"tutorial {page}"] = [example for examples in sections(text).values() for example in examples]
    return found


RUNS = runs()


@pytest.mark.parametrize("title", RUNS)
def test_the_examples_print_what_the_page_says(title, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for needed in ("torch", "skimage"):
        if any(re.search(rf"^(import|from) {needed}\b", code, re.MULTILINE) for code, _ in RUNS[title]):
            pytest.importorskip(needed)
    names = {}
    for code, said in RUNS[title]:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert printed.getvalue() == said, code


@pytest.mark.parametrize("text", [*PAGES.values(), *TUTORIALS.values()], ids=[*PAGES, *TUTORIALS])
def test_every_block_of_python_and_every_result_is_run_by_the_suite(text):
    examples = [example for each in sections(text).values() for example in each]
    assert text.count("```python") == len(examples)
    assert text.count("```text") == sum(bool(said) for _, said in examples)


# Tables ------------------------------------------------------------------------------------------------------------------------


def table(page, heading):
    """Return the rows of the table whose first column has this heading: the other cells by the first."""
    lines = re.search(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGES[page], re.MULTILINE)[1].splitlines()
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {name: cells for name, *cells in rows}


def numbers(text):
    """Return the ints of a shape that the page writes."""
    assert re.fullmatch(r"\(\d+(, \d+)*\)", text), text
    return tuple(map(int, re.findall(r"\d+", text)))


CONFIGURATIONS = table("parameters", "configuration")


def configuration(name):
    """Return inputs, parameters and promised output shape of a row of the table of shapes."""
    first, second, call, out = CONFIGURATIONS[name]
    shapes = numbers(first), numbers(first if second == "same" else second)
    return [np.zeros(shape, np.float32) for shape in shapes], eval(f"dict({call.strip('`')})", {}), numbers(out)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_operator_gives_the_shapes_of_the_table(name):
    inputs, keywords, shape = configuration(name)
    assert cupycorr.spatial_correlation_sample(*inputs, **keywords).shape == shape


@pytest.mark.parametrize("name", tables.RECIPES)
def test_explain_gives_the_costs_of_a_recipe_by_their_formulas(name):
    inputs, keywords, shape = configuration(name)
    vertical, horizontal = np.broadcast_to(keywords.get("kernel_size", 1), 2).tolist()
    told = cupycorr.explain(*inputs, **keywords)
    assert told.flops == 2 * np.prod(shape) * inputs[0].shape[1] * vertical * horizontal
    assert told.bytes == sum(each.nbytes for each in inputs) + 4 * np.prod(shape)
    assert told.workspace <= WORKSPACE


@pytest.mark.parametrize(("name", "case"), tables.RECIPES.items(), ids=tables.RECIPES)
def test_the_recipe_that_was_measured_is_that_of_the_page(name, case):
    measured = next(each for each in cases.CASES if each.name == case)
    (first, second), keywords, _ = configuration(name)
    assert (measured.shape, measured.shape2) == (first.shape, second.shape)
    assert parameters(**measured.keywords) == parameters(**{**keywords, "scale": 1.0})


# Pictures ----------------------------------------------------------------------------------------------------------------------

SHOWN = [shown for text in PAGES.values() for shown in re.findall(r'<img src="(\w+)\.png" width="(\d+)" alt="([^"]+)">', text)]
pictures = pytest.mark.parametrize("name", [name for name, _, _ in SHOWN])


@pytest.fixture(scope="module")
def script():
    """The module docs/draw_guide.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER.parent)
        return importlib.import_module("draw_guide")


def test_the_guide_shows_each_picture_of_the_script_once_and_no_other_is_there(script):
    names = [name for name, _, _ in SHOWN]
    assert sum(text.count("<img") + text.count("![") for text in PAGES.values()) == len(names)
    assert sorted(names) == sorted(script.PICTURES)
    assert {path.name for path in FOLDER.glob("*.png")} == {f"{name}.png" for name in names}


@pytest.fixture(scope="module")
def drawn(script, tmp_path_factory):
    """A folder into which every picture is drawn again."""
    pytest.importorskip("skimage")
    folder = tmp_path_factory.mktemp("guide")
    script.draw(folder)
    return folder


def picture(name, folder=FOLDER):
    """Return a picture that is committed, or drawn into another folder."""
    with Image.open(folder / f"{name}.png") as opened:
        opened.load()
    return opened


def largest_difference(one, other):
    """Return the largest difference of two pictures, averaged over squares of 8 by 8 pixels, which no letter fills."""
    one, other = (np.asarray(each.reduce(8), int) for each in (one, other))
    return np.abs(one - other).max()


@pictures
def test_the_committed_picture_is_what_the_script_draws(drawn, name):
    committed, again = picture(name), picture(name, drawn)
    assert again.size == committed.size
    if again.info["Software"] == committed.info["Software"]:
        assert np.mean(np.asarray(again) != np.asarray(committed)) < 1e-4
    else:
        assert largest_difference(again, committed) < 110


@pictures
def test_the_committed_picture_was_drawn_by_a_matplotlib_of_the_constraints(name):
    pinned = re.findall(r"^(matplotlib)==([\d.]+)", (ROOT / "tests" / "constraints.txt").read_text(), re.MULTILINE)
    assert picture(name).info["Software"] in {" ".join(pin) for pin in pinned}


@pytest.mark.parametrize(("name", "width"), [(name, int(width)) for name, width, _ in SHOWN])
def test_a_picture_is_small_white_and_not_enlarged(name, width):
    assert (FOLDER / f"{name}.png").stat().st_size < LARGEST_PICTURE
    shown = picture(name)
    assert 300 <= width <= min(shown.width, 700)
    assert shown.mode == "RGB"
    assert shown.getpixel((0, 0)) == (255, 255, 255)


READ = {
    "window": ((8, 8), (2, 1), (1, 3), None, {"kernel_size": 3, "patch_size": 7}),
    "dilated": ((8, 9), (0, 1), (0, 0), None, {"kernel_size": 3, "dilation": (1, 2)}),
    "padded corner": ((5, 6), (0, 0), (0, 0), None, {"kernel_size": 3, "padding": 1}),
    "strided": ((8, 9), (2, 1), (-2, 2), None, {"patch_size": 3, "dilation_patch": 2, "stride": (2, 3)}),
    "template": ((3, 3), (0, 0), (3, 5), (7, 9), {"kernel_size": 3, "patch_size": (5, 7), "patch_offset": (2, 3)}),
}


def taps(size, size2, keywords):
    """Yield (output, position in input1, position in input2) of each axis, by the oracle."""
    names = {"kernel_size": 1, "patch_size": 1, "stride": 1, "padding": 0, "dilation": 1, "dilation_patch": 1, "patch_offset": 0}
    values = [oracle.pair(keywords.get(name, default)) for name, default in names.items()]
    for axis, sizes in enumerate(zip(size, size2 or size, strict=True)):
        yield [(i, y, y2) for i, _, y, y2 in oracle.pairs(*sizes, *(pair[axis] for pair in values))]


@pytest.mark.parametrize(("size", "output", "displacement", "size2", "keywords"), READ.values(), ids=READ)
def test_the_pixels_drawn_are_those_that_the_operator_reads(script, size, output, displacement, size2, keywords):
    axes = zip(taps(size, size2, keywords), output, displacement, strict=True)
    rows, columns = ([(y, y2) for i, y, y2 in axis if i == wanted and y2 - y == moved] for axis, wanted, moved in axes)
    one = [(y, x) for y, _ in rows for x, _ in columns]
    other = [(y, x) for _, y in rows for _, x in columns]
    assert one
    assert script.reads(size, output, displacement, size2, **keywords) == (one, other)
    assert set(other) <= set(script.read_anywhere(size, output, size2, **keywords))


@pytest.mark.parametrize("name", ["window", "dilated", "strided"])
def test_a_dot_is_drawn_in_the_middle_of_the_pixels_that_an_output_reads(script, name):
    size, *_, keywords = READ[name]
    middles = []
    for axis in taps(size, None, keywords):
        read = {}
        for i, y, _ in axis:
            read.setdefault(i, set()).add(y)
        middles.append([sum(each) / len(each) for each in read.values()])
    assert script.positions(script.geometry_of(size, **keywords)) == [(y, x) for y in middles[0] for x in middles[1]]
