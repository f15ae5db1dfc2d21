"""Each script in docs/examples runs as a user runs it, draws the picture of the gallery, and prints a result that is good.

Every script runs in a process and a folder of its own. The results are bounds on errors that the scripts measure against known
motion or ground truth; the field of piv.py, which has none, is compared with OpenPIV's own.
"""

import importlib.util
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from waiting import STUCK

Image = pytest.importorskip("PIL.Image")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "examples"
PAGE = (FOLDER / "index.md").read_text(encoding="utf-8")
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))
LARGEST_PICTURE = 200_000  # bytes

# torchvision's wheels beside a torch without CUDA cannot be imported as they are; the benchmarks know the remedy.
WITH_TORCHVISION = """
import runpy, sys
from benchmarks.lookup_rivals import torchvision_raft
torchvision_raft()
runpy.run_path(sys.argv[1], run_name="__main__")
"""
SOFTWARE_CUDA = ("-m", "tests.software_cuda", "run", "--", "python")


def run(name, folder, before=(), **variables):
    """Run a script in a folder, with one thread and no GPU, and return what it prints."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    command = [sys.executable, *before, str(FOLDER / f"{name}.py")]
    done = subprocess.run(
        command, cwd=folder, env=environment | variables, capture_output=True, text=True, timeout=STUCK, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def skip_without_packages(name):
    """Skip the test where a package is missing that the script imports."""
    for package in re.findall(r"^(?:from|import) (\w+)", (FOLDER / f"{name}.py").read_text(encoding="utf-8"), re.MULTILINE):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def number(pattern, printed):
    """Return the number in the only place where a pattern matches; "#" in the pattern stands for the number."""
    (found,) = re.findall(pattern.replace("#", r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)"), printed)
    return float(found)


def assert_is_the_picture_of_the_gallery(name, folder):
    """Assert that a picture is that of the gallery, if the same matplotlib drew it, or that it has the same size at least."""
    with Image.open(FOLDER / f"{name}.png") as committed, Image.open(folder / f"{name}.png") as drawn:
        assert drawn.size == committed.size
        if drawn.info["Software"] == committed.info["Software"]:
            one, other = (np.asarray(each.convert("L"), float) for each in (committed, drawn))
            assert abs(one - other).mean() < 5, "of 255; training and times differ a little from machine to machine"


# The results -------------------------------------------------------------------------------------------------------------------


def check_cupy_arrays(printed):
    assert number("median error # px", printed) < 0.25
    assert number("displacements up to # px", printed) > 6


def check_stereo(printed):
    everywhere, consistent = printed.splitlines()
    assert number("median error # px", everywhere) < 0.25
    assert number("#% off", consistent) < number("#% off", everywhere) / 1.5
    assert number(r"\(#%\)", consistent) > 80


def check_piv(printed):
    from openpiv.pyprocess import extended_search_area_piv

    coarse, fine, _ = printed.splitlines()
    assert number("#% of", coarse) > 98
    assert number("#% of", fine) > 90
    folder = files("openpiv") / "data" / "test1"
    frames = (np.asarray(Image.open(folder / f"exp1_001_{name}.bmp"), np.int32) for name in "ab")
    dx, dy, _ = extended_search_area_piv(*frames, window_size=32, overlap=16)
    assert abs(number("dx=# px", printed) - np.median(dx)) < 0.1
    assert abs(number("dy=# px", printed) - np.median(dy)) < 0.2


def check_track_template(printed):
    assert number("# frames", printed) == 80
    assert number("largest # px", printed) < 0.5


def check_train_torch(printed):
    assert number("gravel: mean error # px", printed) < 0.7  # about 2 at first
    assert number("grass: median error # px", printed) < 1


def check_raft_lookup(printed):
    assert number("flows of up to # px", printed) > 1
    assert number("differ by at most # px", printed) < 1e-3
    assert number("memory at .*: # MiB by torchvision", printed) > 10 * number("memory .* # MiB by cupycorr", printed)


def check_dlpack(printed):
    assert "the memory is the same" in printed
    assert number("median error # px", printed) < 0.3
    assert number("with the motion undone #", printed) < number("difference of the frames #", printed) / 4


CHECKS = {
    "cupy_arrays": check_cupy_arrays,
    "stereo": check_stereo,
    "piv": check_piv,
    "track_template": check_track_template,
    "train_torch": check_train_torch,
    "raft_lookup": check_raft_lookup,
    "dlpack": check_dlpack,
}


@pytest.mark.parametrize("name", CHECKS)
def test_an_example_has_a_good_result_and_draws_its_picture(name, tmp_path):
    skip_without_packages(name)
    printed = run(name, tmp_path, ("-c", WITH_TORCHVISION) if name == "raft_lookup" else ())
    CHECKS[name](printed)
    assert_is_the_picture_of_the_gallery(name, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.png"]


# On a GPU ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("software_cuda_prepared")
def test_the_example_of_arrays_runs_on_cupy_with_the_result_of_numpy(tmp_path):
    skip_without_packages("cupy_arrays")
    printed = run("cupy_arrays", tmp_path, SOFTWARE_CUDA)
    assert printed.startswith("cupy:")
    check_cupy_arrays(printed)
    assert_is_the_picture_of_the_gallery("cupy_arrays", tmp_path)  # which NumPy drew


@pytest.mark.usefixtures("software_cuda_prepared")
def test_every_replay_of_the_graph_equals_a_call_and_finds_the_drift(tmp_path):
    skip_without_packages("cuda_graph")
    printed = run("cuda_graph", tmp_path, SOFTWARE_CUDA)
    frames = number("of # replays", printed)
    assert frames > 10
    assert number("# of .* replays equal a call", printed) == number("# medians equal the true", printed) == frames
    assert_is_the_picture_of_the_gallery("cuda_graph", tmp_path)


def test_the_example_of_a_graph_says_that_there_is_no_gpu_and_claims_nothing(tmp_path):
    skip_without_packages("cuda_graph")
    printed = run("cuda_graph", tmp_path)
    assert len(printed.splitlines()) == 1
    assert not re.search(r"\d", printed)
    assert not list(tmp_path.iterdir())


# The gallery -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_read_on_a_screen(name):
    lines = (FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert 20 <= len(lines) <= 60
    assert f"    python {name}.py" in lines  # how to run it


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_gallery_shows_a_script_and_its_picture(name):
    assert f'```python\n--8<-- "docs/examples/{name}.py"\n```' in PAGE
    assert f"[{name}.py]({name}.py)" in PAGE
    assert f"]({name}.png)" in PAGE
    assert (FOLDER / f"{name}.png").stat().st_size < LARGEST_PICTURE


def test_the_gallery_shows_nothing_that_is_not_there():
    assert set(re.findall(r"[(/](\w+\.(?:py|png))[)\"]", PAGE)) == {
        f"{name}.{ending}" for name in SCRIPTS for ending in ("py", "png")
    }
    anchors = {title.lower().replace(" ", "-") for title in re.findall(r"^## (.*)$", PAGE, re.MULTILINE)}
    assert set(re.findall(r"\(#([\w-]+)\)", PAGE)) == anchors
