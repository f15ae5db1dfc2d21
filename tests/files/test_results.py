"""Files with results: what they hold, which pixel a vector belongs to, and pictures of arrows."""

import io
import os
import sys

import numpy as np
import pytest
from command_line import assert_done, assert_refused, read_flo, run, spawn
from PIL import Image

import cupycorr
from cupycorr import _pictures
from cupycorr._files import results

FORMATS = tuple(results.WRITERS)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a.npy and b.npy; what is in b is 2 px right of and 1 px above where it is in a."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 250, (60, 70)).astype(np.uint8)
    for name, (y, x) in (("a", (4, 4)), ("b", (5, 2))):
        np.save(name, noise[y : y + 50, x : x + 60])
    return tmp_path


def field(**options):
    return cupycorr.match(np.load("a.npy"), np.load("b.npy"), **options)


def with_a_flat_part():
    """Write a frame with a part that has no texture."""
    flat = np.load("a.npy")
    flat[:30, :30] = 7
    np.save("a.npy", flat)


# Numbers -------------------------------------------------------------------------------------------------------------


def test_npz_holds_the_field_as_match_returns_it_and_the_options(folder):
    with_a_flat_part()
    words = ("--window", "9x11", "--step", "3", "--dx", "-1", "4", "--fit", "parabola", "--nodata", "255")
    assert_done(run("match", "a.npy", "b.npy", "-o", "out.npz", *words))
    expected = field(window=(9, 11), search=((-4, 4), (-1, 4)), step=3, subpixel="parabola")
    assert np.isnan(expected.dx).any()
    with np.load("out.npz") as written:
        for name in ("x", "y", "dx", "dy", "score", "peak_ratio", "at_edge", "count"):
            np.testing.assert_array_equal(written[name], getattr(expected, name), err_msg=name)
        options = {name: written[name].tolist() for name in written.files[8:]}
    assert options == {
        "window": [9, 11],
        "search": [[-4, 4], [-1, 4]],
        "step": 3,
        "subpixel": "parabola",
        "nodata": 255,
        "frame1": "a.npy",
        "frame2": "b.npy",
        "cupycorr": cupycorr.__version__,
    }


def test_csv_has_a_line_for_each_window(folder):
    with_a_flat_part()
    assert_done(run("match", "a.npy", "b.npy", "-o", "out.csv", "--window", "10", "--step", "7"))
    header, *lines = (folder / "out.csv").read_text().splitlines()
    assert header == "x,y,dx,dy,score"
    table = np.array([[float(number) for number in line.split(",")] for line in lines])
    expected = field(window=10, step=7)
    rows, columns = expected.dx.shape
    assert table.shape == (rows * columns, 5)
    np.testing.assert_array_equal(table[:, 0], np.tile(expected.x, rows))
    np.testing.assert_array_equal(table[:, 1], np.repeat(expected.y, columns))
    for column, name in enumerate(("dx", "dy", "score"), 2):
        np.testing.assert_allclose(table[:, column], getattr(expected, name).ravel(), atol=5.1e-7, err_msg=name)


def test_the_summary_says_which_pixel_the_first_vector_of_a_grid_belongs_to(folder):
    words = ("--window", "8x15", "--step", "6", "--no-subpixel")
    line = assert_done(run("match", "a.npy", "b.npy", "-o", "out.flo", *words))
    assert "first centre at x 7, y 3.5, step 6" in line
    first, second = np.load("a.npy"), np.load("b.npy")
    flow = read_flo("out.flo")
    for i, j in ((1, 0), (2, 5), (6, 7)):
        y, x = 3.5 + 6 * i, 7 + 6 * j  # centres as the help says, of 8 x 15 pixels
        window = first[int(y - 3.5) : int(y + 4.5), int(x - 7) : int(x + 8)]
        dx, dy = flow[i, j].astype(int)
        assert (dx, dy) == (2, -1)
        np.testing.assert_array_equal(window, second[int(y - 3.5) + dy :, int(x - 7) + dx :][:8, :15])


def test_the_help_says_where_vectors_are():
    text = assert_done(run("match", "--help"))
    assert "x = j * step + (window width - 1) / 2" in text
    assert "y = i * step + (window height - 1) / 2" in text


# Packages and disks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [each for each in FORMATS if each != ".png"])
def test_only_pictures_need_matplotlib(folder, monkeypatch, ending):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert_done(run("match", "a.npy", "b.npy", "-o", f"out{ending}", "--step", "9"))


@pytest.mark.parametrize("ending", [".npz", ".png"])
def test_a_bad_backend_of_matplotlib_is_one_line_and_matters_only_for_pictures(folder, monkeypatch, ending):
    monkeypatch.setenv("MPLBACKEND", "nonsense")
    result = spawn("match", "a.npy", "b.npy", "-o", f"out{ending}", "--step", "9")
    if ending == ".npz":
        assert (result.returncode, result.stderr) == (0, "")
    else:
        assert_refused(result, "matplotlib", "nonsense")
        assert sorted(os.listdir()) == ["a.npy", "b.npy"]


FULL_DISK = """
import contextlib, io, os, resource, signal
import matplotlib.font_manager, matplotlib.backends.backend_agg
from cupycorr._files import results
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
from cupycorr.cli import main as command
for ending in results.WRITERS:
    told = io.StringIO()
    with contextlib.redirect_stderr(told):
        code = command(["match", "a.npy", "b.npy", "-o", "out" + ending])
    print(ending, code, told.getvalue().replace("\\n", "|"))
sys.exit()
"""


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files")
def test_a_full_disk_is_one_line_for_every_format_and_leaves_the_older_result(folder):
    for ending in FORMATS:
        (folder / f"out{ending}").write_text("old")
    result = spawn(before=FULL_DISK)
    assert (result.returncode, result.stderr) == (0, "")
    lines = [f"{ending} 2 cupycorr: error: cannot write 'out{ending}': File too large|" for ending in FORMATS]
    assert result.stdout.splitlines() == lines
    assert {path.name: path.read_text() for path in folder.iterdir() if path.stem == "out"} == {
        f"out{ending}": "old" for ending in FORMATS
    }
    assert len(os.listdir()) == 2 + len(FORMATS)


# Arrows --------------------------------------------------------------------------------------------------------------


def of_one_window(dx, dy, size):
    """Return the field of a window that fills a frame."""
    one = np.ones((1, 1))
    middle = np.array([(size - 1) / 2])
    return cupycorr.motion.Match(dx * one, dy * one, one, middle, middle, one < 0, one, one.astype(int))


def drawn(found, frame, valid=None, window=(11, 11), step=1):
    """Return the picture of arrows as an array (H, W, 3) of ints."""
    file = io.BytesIO()
    _pictures.arrow_picture(file, found, frame, valid, window, step)
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def inside(picture, size):
    """Return the part of the picture of a square frame that shows the frame, without its border."""
    side = _pictures._ACROSS
    begin = _pictures._TOP, _pictures._LEFT
    return picture[begin[0] + 2 : begin[0] + side - 2, begin[1] + 2 : begin[1] + side - 2]


DIRECTIONS = {"right": (30, 0), "down": (0, 30), "left": (-30, 0), "up": (0, -30)}


@pytest.mark.parametrize(("dx", "dy"), DIRECTIONS.values(), ids=DIRECTIONS)
def test_an_arrow_begins_at_the_centre_of_its_window_and_has_the_direction_of_its_displacement(dx, dy):
    size = 165  # four pixels of the picture for each of the frame
    part = inside(drawn(of_one_window(dx, dy, size), np.full((size, size), 9), step=30), size)
    coloured = np.argwhere(np.ptp(part, axis=2) > 20)
    middle = 4 * size / 2 - 2
    (top, left), (bottom, right) = coloured.min(axis=0), coloured.max(axis=0)
    spans = {"x": (left - middle, right - middle), "y": (top - middle, bottom - middle)}
    along, across = ("x", "y") if dx else ("y", "x")
    ends = sorted(spans[along], key=abs)
    assert abs(ends[0]) <= 2
    assert ends[1] == pytest.approx(4 * (dx + dy), abs=3)  # its length is one step, so that it is not scaled
    assert spans[across][0] == pytest.approx(-spans[across][1], abs=2)


def test_arrows_lie_on_frame_1_in_grey_with_its_missing_pixels():
    frame = np.zeros((165, 165, 3), np.uint8)
    frame[:, :80] = 200
    valid = np.ones((165, 165), bool)
    valid[100:, 90:] = False
    part = inside(drawn(of_one_window(3, 0, 165), frame, valid), 165)
    bright, dark, missing = part[100, 100], part[100, 600], part[600, 600]
    assert bright.min() > dark.max() > round(255 * _pictures.NEUTRAL[0])
    np.testing.assert_array_equal(missing, [round(255 * each) for each in _pictures.NEUTRAL])


SIZES = {"one window": (1, 1, 1), "a row": (1, 700, 1), "a column": (500, 1, 3), "many": (400, 300, 1), "apart": (7, 9, 40)}


@pytest.mark.parametrize(("rows", "columns", "step"), SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("ends", [(0, 0), (1.5, 80), (np.nan, np.nan)], ids=["at rest", "moved", "unknown"])
def test_arrows_of_every_size_of_field_can_be_drawn(rows, columns, step, ends):
    motions = np.linspace(*ends, rows * columns).reshape(rows, columns)
    x, y = (np.arange(n) * step + 5.0 for n in (columns, rows))
    found = cupycorr.motion.Match(motions, motions, motions, x, y, motions > 0, motions, motions)
    frame = np.random.default_rng(0).random(((rows - 1) * step + 11, (columns - 1) * step + 11))
    picture = drawn(found, frame, step=step)
    assert max(picture.shape) >= _pictures._ACROSS


def test_the_command_draws_arrows_over_the_first_picture(folder):
    assert_done(run("match", "a.npy", "b.npy", "-o", "out.png", "--arrows", "--window", "16", "--step", "8"))
    with Image.open("out.png") as image:
        picture = np.asarray(image.convert("RGB")).astype(int)
    part = picture[60:500, 80:600]
    assert 0.01 < (np.ptp(part, axis=2) > 20).mean() < 0.3, "arrows on grey"
    assert len(np.unique(part[np.ptp(part, axis=2) == 0])) > 50, "the greys of the frame"


BAD = {
    "arrows without a picture": (["-o", "out.npz", "--arrows"], ["--arrows", ".png"]),
    "a format beside a name": (["-o", "out.npz", "--format", "csv"], ["--format", "out.npz"]),
    "an unknown format": (["-o", "out/", "--format", "jpg"], ["--format", "jpg"]),
    "resume of a file": (["-o", "out.npz", "--resume"], ["--resume", "folder"]),
}


@pytest.mark.parametrize(("words", "said"), BAD.values(), ids=BAD)
def test_options_that_do_not_fit_together_are_refused(folder, words, said):
    assert_refused(run("match", "a.npy", "b.npy", *words), *said)
    assert sorted(os.listdir()) == ["a.npy", "b.npy"]
