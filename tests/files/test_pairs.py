"""The frames that a command's words name, the order in which they are matched, and the names of their results."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from cupycorr._files.frames import Frame
from cupycorr._files.pairs import Pair, check_names, consecutive, frames_of, joined


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with pictures of one pixel and a stack of 12 pages."""
    monkeypatch.chdir(tmp_path)
    for name in ("f1", "f2", "f10", "f9b", "f9a", "a[1]", "a1", "left/1", "left/2", "right/1", "right/2", "deep/er/1"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (1, 1)).save(path)
    (tmp_path / "f3.png").mkdir()
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((12, 5, 6), np.uint16), photometric="minisblack")
    return tmp_path


def names(*patterns):
    return [frame.path.as_posix() for frame in frames_of(patterns)]


def test_the_files_of_a_pattern_are_sorted_by_the_values_of_numbers(folder):
    assert names("f*.png") == ["f1.png", "f2.png", "f9a.png", "f9b.png", "f10.png"]


def test_files_that_are_named_one_by_one_keep_their_order(folder):
    assert names("f2.png", "f10.png", "f1.png") == ["f2.png", "f10.png", "f1.png"]
    assert names("f10.png", "f[12].png") == ["f10.png", "f1.png", "f2.png"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder):
    assert names("a[1].png", "f1.png") == ["a[1].png", "f1.png"]


def test_a_pattern_reaches_into_a_folder_whose_name_has_brackets(folder):
    (folder / "left").rename(folder / "left [1]")
    assert names("left [1]/*.png") == ["left [1]/1.png", "left [1]/2.png"]


def test_a_pattern_reaches_into_folders(folder):
    assert names("left/*.png") == ["left/1.png", "left/2.png"]
    assert names("deep/**/*.png", "f1.png") == ["deep/er/1.png", "f1.png"]


@pytest.mark.parametrize(("word", "said"), [("gone.png", "no file 'gone.png'"), ("*.bmp", "no file"), ("left", "is a folder")])
def test_a_word_without_a_file_is_refused(folder, word, said):
    with pytest.raises(ValueError, match=said):
        frames_of(["f1.png", word])


def test_each_frame_is_paired_with_the_next_one(folder):
    assert [pair.name for pair in consecutive(frames_of(["f*.png"]))] == ["f1-f2", "f2-f9a", "f9a-f9b", "f9b-f10"]


def test_a_number_that_ends_a_name_is_kept(folder):
    for name in ("run.0009", "run.0010", "run.0011"):
        Image.new("L", (1, 1)).save(name, format="png")
    assert [pair.name for pair in consecutive(frames_of(["run.*"]))] == ["run.0009-run.0010", "run.0010-run.0011"]


def test_the_pages_of_a_single_file_are_its_frames(folder):
    frames = frames_of(["stack.tif"])
    assert [frame.page for frame in frames] == list(range(12))
    assert [pair.name for pair in consecutive(frames)][::10] == ["stack.00-stack.01", "stack.10-stack.11"]
    assert str(frames[3]) == "stack.tif[3]"


def test_of_a_file_beside_others_the_first_page_is_the_frame(folder):
    assert [(frame.path.name, frame.page) for frame in frames_of(["stack.tif", "f1.png"])] == [
        ("stack.tif", None),
        ("f1.png", None),
    ]


def test_two_patterns_are_joined_in_their_order(folder):
    pairs = joined(frames_of(["left/*.png"]), frames_of(["right/*.png"]))
    assert [(pair.first.path.as_posix(), pair.second.path.as_posix(), pair.name) for pair in pairs] == [
        ("left/1.png", "right/1.png", "1-1"),
        ("left/2.png", "right/2.png", "2-2"),
    ]


def test_patterns_of_different_length_are_refused_with_both_ends(folder):
    with pytest.raises(
        ValueError, match=r"got 5 and 2: the first are f1\.png to f10\.png, the second left/1\.png to left/2\.png"
    ):
        joined(frames_of(["f*.png"]), frames_of(["left/*.png"]))


def test_pairs_of_one_name_are_refused(folder):
    same = [
        Pair(*(Frame(folder / side / "1.png", None, "1") for side in sides)) for sides in (("left", "right"), ("right", "left"))
    ]
    with pytest.raises(ValueError, match=r"the same name, '1-1': got .*left.*1\.png with .*right.*1\.png and .*right.*1\.png"):
        check_names(same)
    check_names(same[:1])
