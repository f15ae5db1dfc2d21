"""Many pairs: what is matched with what, broken files, interruptions, and the next start."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import tifffile
from command_line import assert_done, assert_refused, environment, program, run
from waiting import INTERRUPTIBLE, STUCK

import cupycorr
from cupycorr import _terminal, motion
from cupycorr._files import results

QUICK = ("--window", "8", "--step", "8", "--search", "2")
FRAMES = np.random.default_rng(0).integers(0, 250, (5, 24, 24)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the frames f_0.tif to f_4.tif, and with stack.tif, whose pages they are."""
    monkeypatch.chdir(tmp_path)
    for index, frame in enumerate(FRAMES):
        tifffile.imwrite(f"f_{index}.tif", frame)
    tifffile.imwrite("stack.tif", FRAMES, photometric="minisblack")
    return tmp_path


def written(folder="out"):
    """Return the names of the files in a folder."""
    return sorted(os.listdir(folder))


def assert_field(path, first, second):
    """Check that a file has the field of two frames."""
    expected = cupycorr.match(FRAMES[first], FRAMES[second], 8, ((-2, 2), (-2, 2)), 8)
    with np.load(path) as got:
        np.testing.assert_array_equal(got["dx"], expected.dx)
        np.testing.assert_array_equal(got["dy"], expected.dy)


# Pairs and formats ---------------------------------------------------------------------------------------------------


def test_each_file_is_matched_with_the_next_one(folder):
    lines = assert_done(run("match", "f_*.tif", "-o", "out/", *QUICK)).splitlines()
    assert written() == ["f_0-f_1.npz", "f_1-f_2.npz", "f_2-f_3.npz", "f_3-f_4.npz", "match.json"]
    for index in range(4):
        assert_field(f"out/f_{index}-f_{index + 1}.npz", index, index + 1)
        assert lines[index].startswith("3 x 3 windows")
        assert lines[index].endswith(f"s: out/f_{index}-f_{index + 1}.npz")
    assert lines[4:] == ["4 pairs matched, 0 kept, 0 failed: out/"]


def test_each_page_is_matched_with_the_next_one(folder):
    assert_done(run("match", "stack.tif", "-o", "new/out/", *QUICK))
    assert written("new/out") == ["match.json", *(f"stack.{page}-stack.{page + 1}.npz" for page in range(4))]
    for page in range(4):
        assert_field(f"new/out/stack.{page}-stack.{page + 1}.npz", page, page + 1)
        with np.load(f"new/out/stack.{page}-stack.{page + 1}.npz") as got:
            assert got["frame2"] == f"stack.tif[{page + 1}]"


def test_pairs_of_two_patterns_are_matched_and_more_pairs_added(folder):
    assert_done(run("match", "--pairs", "f_[01].tif", "f_[34].tif", "--pairs", "f_2.tif", "f_0.tif", "-o", "out/", *QUICK))
    assert written() == ["f_0-f_3.npz", "f_1-f_4.npz", "f_2-f_0.npz", "match.json"]
    for first, second in ((0, 3), (1, 4), (2, 0)):
        assert_field(f"out/f_{first}-f_{second}.npz", first, second)


def test_a_folder_that_is_there_needs_no_slash_and_takes_several_formats(folder):
    os.mkdir("out")
    assert_done(run("match", "f_0.tif", "f_1.tif", "-o", "out", "--format", "csv", "--format", "flo", "--format", "csv", *QUICK))
    assert written() == ["f_0-f_1.csv", "f_0-f_1.flo", "match.json"]


def test_a_mask_is_for_all_first_or_all_second_frames(folder, monkeypatch):
    masks = []
    real = motion.match

    def match(*frames, mask1, mask2, **options):
        masks.append((mask1, mask2))
        return real(*frames, mask1=mask1, mask2=mask2, **options)

    monkeypatch.setattr(motion, "match", match)
    valid = np.ones((24, 24), bool)
    valid[3:9] = False
    np.save("mask.npy", valid)
    assert_done(run("match", "f_*.tif", "-o", "out/", "--mask1", "mask.npy", *QUICK))
    assert len(masks) == 4
    for mask1, mask2 in masks:
        np.testing.assert_array_equal(mask1, valid)
        assert mask2 is None


def test_a_note_is_printed_once_for_each_file(folder):
    np.save("movie.npy", FRAMES)
    result = run("match", "movie.npy", "f_1.tif", "movie.npy", "-o", "out/", *QUICK)
    assert result.exit_code == 0
    assert result.stderr == "cupycorr: note: movie.npy: the file has 5 pages, and the first one is read\n"


def test_the_progress_is_that_of_all_pairs(folder, monkeypatch):
    reported = []

    @contextmanager
    def progress(doing, tasks):
        assert (doing, tasks) == ("matching", 4)
        yield reported.append

    monkeypatch.setattr(_terminal, "progress", progress)
    assert_done(run("match", "f_*.tif", "-o", "out/", *QUICK))
    assert reported == sorted(reported)
    assert {1, 2, 3, 4} <= set(reported)
    assert reported[-1] == 4


# Refusals ------------------------------------------------------------------------------------------------------------

BAD = {
    "one frame": (["f_0.tif", "-o", "out/"], ["two pictures", "f_0.tif"]),
    "a damaged file": (["broken.tif", "-o", "out/"], ["cannot read 'broken.tif'"]),
    "no frame": (["g_*.tif", "-o", "out/"], ["g_*.tif"]),
    "a file for many pairs": (["f_*.tif", "-o", "out.npz"], ["folder", "4 pairs", "out.npz"]),
    "frames and pairs": (["f_*.tif", "--pairs", "f_0.tif", "f_1.tif", "-o", "out/"], ["--pairs"]),
    "pairs of different length": (["--pairs", "f_*.tif", "f_[01].tif", "-o", "out/"], ["5 and 2"]),
    "pairs of one name": (["f_0.tif", "f_1.tif", "f_0.tif", "f_1.tif", "-o", "out/"], ["same name", "f_0-f_1"]),
    "a broken stack": (["broken.tif", "-o", "out/"], ["cannot read", "broken.tif"]),
    "no mask": (["f_*.tif", "-o", "out/", "--mask1", "broken.tif"], ["cannot read", "broken.tif"]),
    "a file in the place of the folder": (["f_*.tif", "-o", "f_0.tif/"], ["cannot make the folder", "f_0.tif"]),
    "a result over a frame": (["x-y.npy", "f_0.tif", "--format", "npy", "-o", "old"], ["overwrite", "x-y-f_0.npy"]),
    "results among the frames": (["x-y.npy", "f_0.tif", "--format", "npy", "-o", "old/.."], ["next to the frames", "x-y.npy"]),
    "threads": (["f_*.tif", "-o", "out/"], ["CUPYCORR_NUM_THREADS"]),
}


@pytest.mark.parametrize("name", BAD)
def test_a_job_that_cannot_begin_is_refused_in_one_line(folder, monkeypatch, name):
    words, said = BAD[name]
    (folder / "broken.tif").write_bytes(b"II*\0nothing")
    np.save("x-y.npy", FRAMES[0])
    os.mkdir("old")
    os.link("x-y.npy", "old/x-y-f_0.npy")
    if name == "threads":
        monkeypatch.setenv("CUPYCORR_NUM_THREADS", "many")
    assert_refused(run("match", *words, *QUICK), *said)
    assert not list(folder.glob("**/*.npz"))
    assert not list(folder.glob("**/*.part"))


def test_a_full_disk_ends_the_job(folder, monkeypatch):
    def full(file, result):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(results.WRITERS, ".npz", full)
    result = run("match", "f_*.tif", "-o", "out/", *QUICK)
    assert_refused(result, "cannot write 'out/f_0-f_1.npz': No space left on device")
    assert written() == ["match.json"]


# Pairs that fail -----------------------------------------------------------------------------------------------------


def test_a_pair_that_fails_is_reported_and_the_others_go_on(folder):
    (folder / "f_1.tif").write_bytes(b"II*\0nothing")
    tifffile.imwrite("f_4.tif", FRAMES[4, :20])
    result = run("match", "f_*.tif", "-o", "out/", *QUICK)
    assert result.exit_code == 1
    assert written() == ["f_2-f_3.npz", "match.json"]
    first, second, third = result.stderr.splitlines()
    assert first.startswith("cupycorr: error: f_0-f_1: cannot read 'f_1.tif' as a picture: ")
    assert second.startswith("cupycorr: error: f_1-f_2: cannot read 'f_1.tif' as a picture: ")
    assert third == "cupycorr: error: f_3-f_4: both pictures must have the same size, got 24 x 24 and 24 x 20"
    assert result.stdout.splitlines()[-1] == "1 pairs matched, 0 kept, 3 failed: out/"


def test_too_little_memory_for_a_pair_is_its_problem_alone(folder, monkeypatch):
    real, calls = motion.match, []

    def match(*frames, **options):
        calls.append(frames)
        if len(calls) == 2:
            raise MemoryError("Unable to allocate 80. TiB")
        return real(*frames, **options)

    monkeypatch.setattr(motion, "match", match)
    result = run("match", "f_*.tif", "-o", "out/", *QUICK)
    assert result.exit_code == 1
    assert result.stderr == "cupycorr: error: f_1-f_2: not enough memory: Unable to allocate 80. TiB\n"
    assert len(written()) == 4


# The next start ------------------------------------------------------------------------------------------------------


def test_results_that_are_there_are_kept_only_with_resume_and_the_same_options(folder):
    words = ("match", "f_*.tif", "-o", "out/")
    assert_done(run(*words, *QUICK, "--nodata", "nan"))
    os.remove("out/f_1-f_2.npz")
    before = {name: os.stat(f"out/{name}").st_mtime_ns for name in written() if name.endswith(".npz")}
    assert_refused(run(*words, *QUICK, "--nodata", "nan"), "'out' has 3 of these results", "--resume")
    assert_refused(run(*words, "--resume", "--window", "9"), "window [8, 8]", "window [9, 9]")
    assert_refused(run(*words, *QUICK, "--resume"), "nodata nan", "nodata not given")
    lines = assert_done(run(*words, *QUICK, "--nodata", "nan", "--resume")).splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["out/f_1-f_2.npz", "out/"]
    assert lines[-1] == "1 pairs matched, 3 kept, 0 failed: out/"
    assert {name: os.stat(f"out/{name}").st_mtime_ns for name in before} == before


def test_results_of_other_options_are_not_mixed_with_those_of_other_frames(folder):
    assert_done(run("match", "f_[012].tif", "-o", "out/", *QUICK))
    assert_refused(run("match", "f_[34].tif", "-o", "out/"), "'out'", "window [8, 8], ", "got window [11, 11], ")


def test_options_of_a_job_without_results_do_not_matter(folder):
    (folder / "broken.tif").write_bytes(b"II*\0nothing")
    assert run("match", "f_*.tif", "-o", "out/", *QUICK, "--mask1", "broken.tif").exit_code == 2
    assert written() == ["match.json"]
    assert_done(run("match", "f_*.tif", "-o", "out/", *QUICK, "--resume"))


def test_a_folder_may_have_the_name_of_a_result(folder):
    assert_done(run("match", "f_*.tif", "-o", "out.npz/", *QUICK))
    assert len(written("out.npz")) == 5


def test_new_frames_are_matched_when_a_job_is_resumed(folder):
    assert_done(run("match", "f_[012].tif", "-o", "out/", *QUICK, "--resume"))
    lines = assert_done(run("match", "f_*.tif", "-o", "out/", *QUICK, "--resume")).splitlines()
    assert lines[-1] == "2 pairs matched, 2 kept, 0 failed: out/"


def test_a_pair_is_finished_when_all_its_formats_are_there(folder):
    assert_done(run("match", "f_*.tif", "-o", "out/", *QUICK))
    words = ("match", "f_*.tif", "-o", "out/", *QUICK, "--format", "npz", "--format", "csv", "--resume")
    assert assert_done(run(*words)).splitlines()[-1] == "4 pairs matched, 0 kept, 0 failed: out/"
    assert assert_done(run(*words)).splitlines()[-1] == "0 pairs matched, 4 kept, 0 failed: out/"


def test_a_result_is_not_kept_for_other_frames_of_the_same_name(folder):
    os.mkdir("other")
    for index in range(3):
        os.link(f"f_{index}.tif", f"other/f_{index}.tif")
    assert_done(run("match", "f_[012].tif", "-o", "out/", *QUICK))
    words = ("match", "other/*.tif", "-o", "out/", *QUICK, "--resume")
    told = "'f_0-f_1' in 'out' was made from other frames: f_0.tif with f_1.tif; got other/f_0.tif with other/f_1.tif"
    assert_refused(run(*words), told)
    assert_done(run("match", "f_[34].tif", "-o", "out/", *QUICK, "--resume"))
    assert_refused(run(*words), told)
    os.remove("out/f_0-f_1.npz")
    os.remove("out/f_1-f_2.npz")
    assert assert_done(run(*words)).splitlines()[-1] == "2 pairs matched, 0 kept, 0 failed: out/"
    assert assert_done(run(*words)).splitlines()[-1] == "0 pairs matched, 2 kept, 0 failed: out/"


def test_the_options_and_frames_of_a_folder_are_in_it(folder):
    assert_done(run("match", "f_[012].tif", "-o", "out/", *QUICK, "--fit", "parabola", "--mask2", "f_0.tif"))
    assert json.loads((folder / "out" / "match.json").read_text()) == {
        "window": [8, 8],
        "search": [[-2, 2], [-2, 2]],
        "step": 8,
        "subpixel": "parabola",
        "mask2": "f_0.tif",
        "arrows": False,
        "pairs": {"f_0-f_1": ["f_0.tif", "f_1.tif"], "f_1-f_2": ["f_1.tif", "f_2.tif"]},
    }


@pytest.mark.parametrize("text", ["{", "[]", '"text"', "null"])
def test_options_that_cannot_be_read_are_refused(folder, text):
    assert_done(run("match", "f_*.tif", "-o", "out/", *QUICK))
    (folder / "out" / "match.json").write_text(text)
    assert_refused(run("match", "f_*.tif", "-o", "out/", *QUICK, "--resume"), "match.json")


# Interruptions -------------------------------------------------------------------------------------------------------

COUNT, BROKEN, STOP = 201, 50, 100
# Lines of Python that note each call of match, and never return from the call after so many results are there.
NOTED = """
import glob, time
import cupycorr.motion as m
real = m.match
def match(first, second, *arguments, **options):
    if len(glob.glob("out/*.npz")) == {stop}:
        print("stuck", flush=True)
        time.sleep({stuck})
    with open("calls", "a") as calls:
        print(first[0, 0], second[0, 0], file=calls)
    return real(first, second, *arguments, **options)
m.match = match
"""
SIGNALS = [
    pytest.param(signal.SIGINT, INTERRUPTIBLE, 130, id="SIGINT", marks=pytest.mark.slow),
    pytest.param(signal.SIGTERM, "", 143, id="SIGTERM"),
]


@pytest.mark.skipif(os.name != "posix", reason="sends signals to one process")
@pytest.mark.parametrize(("number", "before", "code"), SIGNALS)
def test_a_job_of_200_pairs_with_a_broken_file_is_interrupted_and_resumed_and_computes_each_pair_once(
    tmp_path, monkeypatch, number, before, code
):
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 250, (24, 24)).astype(np.uint16)
    for index in range(COUNT):
        noise[0, 0] = index  # which frame it is
        tifffile.imwrite(f"f{index}.tif", noise)
    good = (tmp_path / f"f{BROKEN}.tif").read_bytes()
    (tmp_path / f"f{BROKEN}.tif").write_bytes(good[:100])
    pairs = {f"f{index}-f{index + 1}.npz" for index in range(COUNT - 1)}
    broken = {f"f{index}-f{index + 1}.npz" for index in (BROKEN - 1, BROKEN)}

    def command(stop):
        lines = program(before + NOTED.format(stop=stop, stuck=STUCK))
        return [sys.executable, "-c", lines, "match", "f*.tif", "-o", "out/", "--resume", *QUICK]

    options = dict(env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command(STOP), **options) as process:
        assert any(line == "stuck\n" for line in process.stdout)
        process.send_signal(number)
        _, error = process.communicate(timeout=STUCK)
    assert process.returncode == code
    problems = error.split("\n")[:2]
    assert all(f"cannot read 'f{BROKEN}.tif'" in problem for problem in problems)
    assert error.split("\n")[2:] in ([""], ["", ""])  # click ends the line in which Control-C was typed
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir() if path.suffix != ".json"}
    assert finished.keys() < pairs
    assert len(finished) == STOP

    done = subprocess.run(command(-1), **options, timeout=STUCK)
    assert done.returncode == 1
    assert done.stderr.splitlines() == problems
    assert done.stdout.splitlines()[-1] == f"{COUNT - 1 - 2 - STOP} pairs matched, {STOP} kept, 2 failed: out/"
    assert set(written()) == (pairs - broken) | {"match.json"}
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in finished} == finished
    calls = (tmp_path / "calls").read_text().splitlines()
    assert sorted(calls) == sorted(f"{i} {i + 1}" for i in range(COUNT - 1) if f"f{i}-f{i + 1}.npz" not in broken)

    (tmp_path / f"f{BROKEN}.tif").write_bytes(good)
    assert assert_done(run(*command(-1)[3:])).splitlines()[-1] == f"2 pairs matched, {COUNT - 3} kept, 0 failed: out/"
    assert set(written()) == pairs | {"match.json"}


# Signals -------------------------------------------------------------------------------------------------------------

ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


@pytest.fixture
def default_signals():
    """Set the handling of these signals to the default; a suite in the background may have them ignored."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_signal_ends_a_match_with_its_exit_code_and_leaves_no_file(folder, monkeypatch, default_signals, number):
    seen = []

    def match(*_, **__):
        seen.extend(folder.glob(".*.part"))
        os.kill(os.getpid(), number)

    monkeypatch.setattr(motion, "match", match)
    result = run("match", "f_0.tif", "f_1.tif", "-o", "out.npz")
    assert (result.exit_code, result.output) == (128 + number, "")
    assert len(seen) == 1
    assert not list(folder.glob(".*"))
    assert not list(folder.glob("out*"))
    assert signal.getsignal(number) is signal.SIG_DFL


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_a_second_signal_does_not_disturb_the_removal_of_files(default_signals):
    removed = []

    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            for number in ENDING:
                os.kill(os.getpid(), number)
            removed.append(True)

    with _terminal.stopped_by_signals(), pytest.raises(_terminal.Stopped) as stopped:
        work()
    assert removed == [True]
    assert stopped.value.code == 143


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no such signal")
def test_a_signal_that_is_ignored_stays_ignored(default_signals):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with _terminal.stopped_by_signals():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
