"""The command line: its files, its output, its errors, and the state in which it leaves the terminal."""

import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from configparser import ConfigParser
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import ROOT, assert_done, assert_refused, environment, program, read_flo, run, spawn
from fake_cupy import H100, CompileException, Fake
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from processes import python
from scipy.ndimage import gaussian_filter, shift
from waiting import INTERRUPTIBLE, STUCK, timer

import cupycorr
from cupycorr import _information, _pictures, _terminal, cli, motion
from cupycorr._cpu import llvm, workers
from cupycorr._files import results
from cupycorr._gpu import compiler, device, driver, source
from cupycorr._operators import builds

HEIGHT, WIDTH = 48, 60


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a.png and b.png; the content of b is 2 px right of and 1 px above that of a."""
    monkeypatch.chdir(tmp_path)
    save_pair(2, -1)
    return tmp_path


def texture():
    noise = gaussian_filter(np.random.default_rng(0).random((HEIGHT + 16, WIDTH + 16)), 1)
    return 255 * (noise - noise.min()) / np.ptp(noise)


def save_pair(dx, dy):
    whole = texture()
    for name, image in (("a.png", whole), ("b.png", shift(whole, (dy, dx), mode="wrap"))):
        Image.fromarray(image[8:-8, 8:-8].clip(0, 255).astype(np.uint8)).save(name)


def opened(path):
    with Image.open(path) as image:
        image.load()
        return image


def frames(first="a.png", second="b.png"):
    return np.asarray(opened(first)), np.asarray(opened(second))


def field_of(dx, dy, at_edge=False):
    """Return what the command uses of a `Match` with these displacements."""
    rows, columns = dx.shape
    return SimpleNamespace(
        dx=dx,
        dy=dy,
        score=np.where(np.isfinite(dx), 0.5, 0.0),
        x=np.arange(columns) + 5.0,
        y=np.arange(rows) + 5.0,
        at_edge=np.broadcast_to(at_edge, dx.shape),
        peak_ratio=np.full(dx.shape, 2.0),
        count=np.full(dx.shape, 121),
    )


@pytest.fixture
def matched(folder, monkeypatch):
    """A function that runs the command and returns the arguments of `match`, which computes nothing."""
    calls = []

    def match(frame1, frame2, window, search, step, subpixel, *, mask1, mask2, progress):
        calls.append(SimpleNamespace(frame1=frame1, frame2=frame2, subpixel=subpixel, mask1=mask1, mask2=mask2))
        return field_of(np.zeros((3, 4)), np.zeros((3, 4)))

    def matched(*words):
        assert_done(run("match", *words, "-o", "out.npy"))
        return calls.pop()

    monkeypatch.setattr(motion, "match", match)
    return matched


# match: files ---------------------------------------------------------------------------------------------------------

OPTIONS = {
    "defaults": ((), {}),
    "square window": (("--window", "9"), {"window": 9}),
    "window height x width": (("--window", "7x13"), {"window": (7, 13)}),
    "search both axes": (("--search", "3"), {"search": ((-3, 3), (-3, 3))}),
    "negative ranges": (("--dx", "-1", "5", "--dy", "-6", "-1"), {"search": ((-6, -1), (-1, 5))}),
    "one range and the default": (("--dx", "-5", "0"), {"search": ((-4, 4), (-5, 0))}),
    "one range and --search": (("--dy", "0", "0", "--search", "2"), {"search": ((0, 0), (-2, 2))}),
    "step": (("--step", "5"), {"step": 5}),
    "whole pixels": (("--no-subpixel",), {"subpixel": False}),
    "fit by a Gaussian": (("--fit", "gaussian"), {"subpixel": "gaussian"}),
    "fit by a parabola": (("--fit", "parabola"), {"subpixel": "parabola"}),
}


@pytest.mark.parametrize(("words", "arguments"), OPTIONS.values(), ids=OPTIONS)
def test_npy_holds_dx_dy_score_of_match_with_the_options_given(folder, words, arguments):
    assert_done(run("match", "a.png", "b.png", "-o", "out.npy", *words))
    expected = cupycorr.match(*frames(), **arguments)
    written = np.load("out.npy")
    assert written.dtype == np.float32
    np.testing.assert_array_equal(written, np.stack([expected.dx, expected.dy, expected.score], -1).astype(np.float32))


def test_flo_read_back_is_the_field(folder):
    assert_done(run("match", "a.png", "b.png", "-o", "out.flo", "--step", "3"))
    flow = read_flo("out.flo")
    np.testing.assert_array_equal(flow, cupycorr.match(*frames(), step=3).flow.astype(np.float32))
    np.testing.assert_allclose(np.median(flow, axis=(0, 1)), (2, -1), atol=0.05)


def test_flo_marks_windows_without_answer_as_unknown(folder):
    flat, moved = (image.copy() for image in frames())
    flat[10:35, 20:50] = 128
    Image.fromarray(flat).save("a.png")
    assert_done(run("match", "a.png", "b.png", "-o", "out.flo"))
    field = cupycorr.match(flat, moved)
    assert np.isnan(field.dx).any()
    flow = read_flo("out.flo")
    np.testing.assert_array_equal(flow > 1e9, np.isnan(field.flow))
    np.testing.assert_array_equal(flow[flow > 1e9], np.float32(1e10))


READABLE = {
    "grey 8 bit": ("png", lambda grey: grey),
    "grey 16 bit": ("png", lambda grey: grey.astype(np.uint16) * 257),
    "grey 16 bit TIFF": ("tif", lambda grey: grey.astype(np.uint16) * 257),
    "grey 16 bit big endian TIFF": ("tif", lambda grey: (grey.astype(np.uint16) * 257).astype(">u2")),
    "float TIFF": ("tif", lambda grey: grey.astype(np.float32)),
    "RGB": ("png", lambda grey: np.dstack([grey] * 3)),
    "RGB TIFF": ("tif", lambda grey: np.dstack([grey] * 3)),
    "translucent RGBA": ("png", lambda grey: np.dstack([grey] * 3 + [grey[::-1].clip(1)])),
    "translucent grey": ("png", lambda grey: np.dstack([grey, grey[::-1].clip(1)])),
}


@pytest.mark.parametrize(("ending", "convert"), READABLE.values(), ids=READABLE)
def test_every_kind_of_picture_gives_the_grey_ones_field(folder, ending, convert):
    for name, image in zip(("a", "b"), frames(), strict=True):
        Image.fromarray(convert(image)).save(f"{name}2.{ending}")
    assert_done(run("match", f"a2.{ending}", f"b2.{ending}", "-o", "out.npy", "--step", "4"))
    expected = cupycorr.match(*frames(), step=4)
    np.testing.assert_allclose(np.load("out.npy")[..., 0], expected.dx, atol=1e-4)
    np.testing.assert_allclose(np.load("out.npy")[..., 2], expected.score, atol=1e-5)


@pytest.mark.parametrize("transparency", [None, b"\x01\x80"], ids=["opaque", "translucent"])
def test_palette_pictures_are_read_as_the_colours_they_show(folder, transparency):
    options = {} if transparency is None else {"transparency": transparency}
    for name in ("a", "b"):
        opened(f"{name}.png").convert("P").save(f"{name}2.png", **options)
    assert opened("a2.png").mode == "P"
    assert_done(run("match", "a2.png", "b2.png", "-o", "out.npy"))
    np.testing.assert_allclose(np.load("out.npy")[..., 0], cupycorr.match(*frames()).dx, atol=1e-4)


def test_a_grey_picture_meets_a_coloured_one(folder):
    opened("b.png").convert("RGB").save("colour.png")
    assert_done(run("match", "a.png", "colour.png", "-o", "out.npy"))
    np.testing.assert_allclose(np.load("out.npy")[..., 0], cupycorr.match(*frames()).dx, atol=1e-4)


# match: missing pixels --------------------------------------------------------------------------------------------------

HOLE = np.zeros((HEIGHT, WIDTH), dtype=bool)
HOLE[10:25, 20:45] = True
HOLE[0, 0] = HOLE[-1, 3] = True


def grey_levels():
    """Return 8-bit grey values of a textured picture without 0, 7 and 255, which mark missing pixels."""
    return np.asarray(opened("a.png")).clip(8, 254)


def holed(dtype, value):
    """Return the picture in a dtype, with a value in the hole."""
    return np.where(HOLE, np.array(value, dtype), grey_levels().astype(dtype))


def save(ending, make, **options):
    """Return a function of a name that saves an array as a picture, and returns the name of the file."""

    def write(name):
        Image.fromarray(make()).save(f"{name}.{ending}", **options)
        return f"{name}.{ending}"

    return write


def tagged(make, tag):
    """Return a function that saves a TIFF with the tag GDAL_NODATA."""
    return save("tif", make, tiffinfo={42113: tag})


def with_alpha(count):
    """Return a picture of equal colours and alpha: 0 in the hole, and all other values outside."""
    alpha = np.where(HOLE, 0, np.arange(HOLE.size).reshape(HOLE.shape) % 255 + 1)
    return np.dstack([grey_levels()] * count + [alpha]).astype(np.uint8)


def with_near_misses():
    """Return a colour picture with 7 in all channels in the hole, and in only two of them in some pixels outside."""
    colours = np.dstack([holed(np.uint8, 7)] * 3)
    colours[30:40, :, 1:] = 7
    return colours


def save_palette(ending, **options):
    """Return a function that saves a palette picture whose index 7 is the hole."""

    def write(name):
        image = Image.fromarray(holed(np.uint8, 7)).convert("P")
        image.save(f"{name}.{ending}", **options)
        return f"{name}.{ending}"

    return write


MISSING_PIXELS = {
    "--nodata, 8 bit": (save("png", lambda: holed(np.uint8, 7)), "--nodata", "7"),
    "--nodata, 16 bit": (save("png", lambda: holed(np.uint16, 65535)), "--nodata", "65535"),
    "--nodata, 32 bit": (save("tif", lambda: holed(np.int32, -9999)), "--nodata", "-9999"),
    "--nodata, float": (save("tif", lambda: holed(np.float32, -3.4028235e38)), "--nodata", "-3.4028235e38"),
    "--nodata, a fraction as float": (save("tif", lambda: holed(np.float32, 0.1)), "--nodata", "0.1"),
    "--nodata, RGB": (save("png", with_near_misses), "--nodata", "7"),
    "--nodata, index of a palette": (save_palette("png"), "--nodata", "7"),
    "tag, 8 bit": (tagged(lambda: holed(np.uint8, 0), "0"),),
    "tag, 16 bit": (tagged(lambda: holed(np.uint16, 65535), "65535"),),
    "tag, 32 bit": (tagged(lambda: holed(np.int32, -32768), "-32768"),),
    "tag, float": (tagged(lambda: holed(np.float32, -9999), "-9999"),),
    "tag, the lowest float": (tagged(lambda: holed(np.float32, -3.4028235e38), "-3.4028234663852886e+38"),),
    "tag with spaces and NULs": (tagged(lambda: holed(np.float32, -9999), " -9999 \0\0"),),
    "tag, RGB": (tagged(with_near_misses, "7"),),
    "tag replaced by --nodata": (tagged(lambda: holed(np.uint8, 7), "100"), "--nodata", "7"),
    "alpha, RGBA": (save("png", lambda: with_alpha(3)),),
    "alpha, grey": (save("png", lambda: with_alpha(1)),),
    "alpha, TIFF": (save("tif", lambda: with_alpha(3)),),
    "alpha, palette": (save_palette("png", transparency=bytes(0 if index == 7 else 1 for index in range(256))),),
    "transparent index": (save_palette("png", transparency=7),),
    "transparent index, GIF": (save_palette("gif", transparency=7),),
    "transparent grey": (save("png", lambda: holed(np.uint8, 7), transparency=7),),
    "transparent 16 bit grey": (save("png", lambda: holed(np.uint16, 7), transparency=7),),
    "transparent colour": (save("png", with_near_misses, transparency=(7, 7, 7)),),
}


@pytest.mark.parametrize("side", [0, 1], ids=["A", "B"])
@pytest.mark.parametrize(("write", "words"), [(w, v) for w, *v in MISSING_PIXELS.values()], ids=MISSING_PIXELS)
def test_each_mark_of_missing_pixels_reaches_match_as_the_mask_of_its_picture(matched, side, write, words):
    Image.fromarray(grey_levels().clip(101)).save("plain.png")  # without a value that marks missing pixels
    pictures = ["plain.png", "plain.png"]
    pictures[side] = write("holed")
    call = matched(*pictures, *words)
    masks = (call.mask1, call.mask2)
    assert masks[1 - side] is None
    assert masks[side].dtype == bool
    np.testing.assert_array_equal(masks[side], ~HOLE)


MASKS = {
    "8 bit": lambda valid: Image.fromarray(np.where(valid, 1, 0).astype(np.uint8)),
    "1 bit": lambda valid: Image.fromarray(valid),
    "16 bit": lambda valid: Image.fromarray(np.where(valid, 256, 0).astype(np.uint16)),
    "RGB": lambda valid: Image.fromarray(np.dstack([np.zeros_like(valid), np.zeros_like(valid), valid]).astype(np.uint8)),
    "RGBA": lambda valid: Image.fromarray(np.dstack([np.full((*valid.shape, 3), 255), valid]).astype(np.uint8)),
    "palette": lambda valid: Image.fromarray(np.where(valid, 255, 0).astype(np.uint8)).convert("P"),
}


@pytest.mark.parametrize("side", [0, 1], ids=["A", "B"])
@pytest.mark.parametrize("make", MASKS.values(), ids=MASKS)
def test_a_mask_picture_marks_the_missing_pixels_of_its_picture(matched, side, make):
    make(~HOLE).save("mask.png")
    call = matched("a.png", "b.png", f"--mask{side + 1}", "mask.png")
    masks = (call.mask1, call.mask2)
    assert masks[1 - side] is None
    assert masks[side].dtype == bool
    np.testing.assert_array_equal(masks[side], ~HOLE)


def test_a_pixel_is_valid_if_no_mark_of_its_picture_says_that_it_is_missing(matched):
    rows, columns = np.indices(HOLE.shape)
    grey, transparent, masked = np.asarray(opened("a.png")).clip(8), rows < 5, columns > 50
    colours = np.where(HOLE[..., None], 7, np.dstack([grey] * 3))
    Image.fromarray(np.dstack([colours, np.where(transparent, 0, 255)]).astype(np.uint8)).save("holed.png")
    Image.fromarray(~masked).save("mask.png")
    call = matched("holed.png", "a.png", "--nodata", "7", "--mask1", "mask.png", "--mask2", "mask.png")
    np.testing.assert_array_equal(call.mask1, ~(HOLE | transparent | masked))
    np.testing.assert_array_equal(call.mask2, ~masked & (np.asarray(opened("a.png")) != 7))


def test_without_a_missing_pixel_match_gets_no_mask(matched):
    Image.new("1", (WIDTH, HEIGHT), 1).save("mask.png")
    Image.fromarray(np.dstack([grey_levels()] * 3 + [np.full(HOLE.shape, 255, np.uint8)])).save("opaque.png")
    for words in (("a.png", "b.png"), ("opaque.png", "b.png", "--mask1", "mask.png", "--nodata", "-9999")):
        call = matched(*words)
        assert call.mask1 is None
        assert call.mask2 is None


def test_the_pixels_of_a_holed_picture_reach_match_as_they_are(matched):
    pixels = holed(np.float32, np.nan)
    Image.fromarray(pixels).save("holed.tif")
    Image.fromarray(with_alpha(1)).save("holed.png")
    call = matched("holed.tif", "holed.png", "--nodata", "nan")
    assert call.frame1.dtype == np.float32
    np.testing.assert_array_equal(call.frame1, pixels)
    assert call.frame2.dtype == np.uint8
    np.testing.assert_array_equal(call.frame2, grey_levels())


FITS = {
    "default": ((), "gaussian"),
    "gaussian": (("--fit", "gaussian"), "gaussian"),
    "parabola": (("--fit", "parabola"), "parabola"),
    "parabola, on": (("--subpixel", "--fit", "parabola"), "parabola"),
    "off": (("--no-subpixel",), False),
    "parabola, off": (("--fit", "parabola", "--no-subpixel"), False),
}


@pytest.mark.parametrize(("words", "subpixel"), FITS.values(), ids=FITS)
def test_the_fit_reaches_match_unless_it_is_off(matched, words, subpixel):
    assert matched("a.png", "b.png", *words).subpixel == subpixel


def test_the_help_names_every_mark_of_missing_pixels():
    text = assert_done(run("match", "--help"))
    assert all(word in text for word in ("alpha is 0", "NaN", "GDAL_NODATA", "--nodata", "--mask1", "--mask2", "transparent"))


# The window of A, 11 x 11, is compared with B where at least half of its pixels are valid in both pictures.
WINDOW, MOVED = 11, (-1, 2)  # (dy, dx)


def save_moved_pair():
    """Save A and B, the same texture moved by whole pixels, with a hole in A and one in B; return the masks of valid pixels.

    The holes are black and stay where they are, so that they would hide the motion if they took part in the match.
    """
    whole, (dy, dx) = texture().clip(8, 255).astype(np.uint8), MOVED
    valid1, valid2 = ~HOLE, ~HOLE
    valid2[5:40, 10:14] = False
    for name, valid, (y, x) in (("a", valid1, (8, 8)), ("b", valid2, (8 - dy, 8 - dx))):
        Image.fromarray(np.where(valid, whole[y : y + HEIGHT, x : x + WIDTH], 0).astype(np.uint8)).save(f"{name}.png")
    return valid1, valid2


def compared_pixels(valid1, valid2):
    """Return for each window how many of its pixels are valid in A and, at the true displacement, in B."""
    dy, dx = MOVED
    around = np.pad(valid2, 8)
    both = valid1 & around[8 + dy : 8 + dy + HEIGHT, 8 + dx : 8 + dx + WIDTH]
    return sliding_window_view(both, (WINDOW, WINDOW)).sum((2, 3))


def write_alpha(valid1, valid2):
    for name, valid in (("a", valid1), ("b", valid2)):
        Image.fromarray(np.dstack([np.asarray(opened(f"{name}.png")), 255 * valid]).astype(np.uint8)).save(f"{name}.png")
    return ("a.png", "b.png")


def write_masks(valid1, valid2):
    Image.fromarray(valid1).save("mask1.png")
    Image.fromarray(valid2).save("mask2.png")
    return ("a.png", "b.png", "--mask1", "mask1.png", "--mask2", "mask2.png")


def write_nan(valid1, valid2):
    for name, valid in (("a", valid1), ("b", valid2)):
        Image.fromarray(np.where(valid, np.asarray(opened(f"{name}.png")), np.float32(np.nan)).astype(np.float32)).save(
            f"{name}.tif"
        )
    return ("a.tif", "b.tif")


def write_tags(*_):
    for name in ("a", "b"):
        opened(f"{name}.png").save(f"{name}.tif", tiffinfo={42113: "0"})
    return ("a.tif", "b.tif")


HOLED_PAIRS = {
    "--nodata": lambda *_: ("a.png", "b.png", "--nodata", "0"),
    "masks": write_masks,
    "alpha": write_alpha,
    "NaN": write_nan,
    "tags": write_tags,
}


@pytest.mark.parametrize("write", HOLED_PAIRS.values(), ids=HOLED_PAIRS)
def test_a_shift_is_found_in_every_window_with_enough_valid_pixels(folder, write):
    valid = save_moved_pair()
    assert_done(run("match", *write(*valid), "-o", "out.npy", "--no-subpixel", "--window", WINDOW))
    dx, dy, score = np.moveaxis(np.load("out.npy"), -1, 0)
    compared = 2 * compared_pixels(*valid) >= WINDOW**2
    assert 0.5 < compared.mean() < 0.95
    np.testing.assert_array_equal(np.stack([dy[compared], dx[compared]]).T - MOVED, 0)
    np.testing.assert_allclose(score[compared], 1, atol=1e-6)
    empty = 2 * sliding_window_view(valid[0], (WINDOW, WINDOW)).sum((2, 3)) < WINDOW**2
    assert empty.any()
    assert np.isnan(dx[empty]).all()
    assert (score[empty] == 0).all()


def test_the_holes_of_the_pair_hide_its_motion_if_nothing_marks_them(folder):
    valid = save_moved_pair()
    assert_done(run("match", "a.png", "b.png", "-o", "out.npy", "--no-subpixel", "--window", WINDOW))
    compared = 2 * compared_pixels(*valid) >= WINDOW**2
    assert (np.load("out.npy")[compared][:, 1::-1] != MOVED).any(axis=1).mean() > 0.1


# match: pictures ------------------------------------------------------------------------------------------------------


def prevailing_colour(path):
    """Return the most frequent colour that is neither white, black nor grey, and its share of the picture."""
    pixels = np.asarray(opened(path).convert("RGB")).reshape(-1, 3)
    pixels = pixels[np.ptp(pixels, axis=1) > 0]
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    return colours[counts.argmax()], counts.max()


# Motion at the scale -> its colour on Middlebury's wheel, from the description: 15 colours from red to yellow, 6 to green, 4 to
# cyan, 11 to blue, 13 to magenta, 6 back to red; rightward is colour 0, and clockwise on the screen 54 colours make the turn.
WHEEL_COLOURS = {
    "right": ((1, 0), (255, 0, 0)),
    "down": ((0, 1), (255, 229, 0)),  # colour 13.5: half way from (255, 221, 0) to (255, 238, 0)
    "left": ((-1, 0), (0, 209, 255)),  # colour 27: (0, 255 - 46, 255)
    "up": ((0, -1), (88, 0, 255)),  # colour 40.5: half way from (78, 0, 255) to (98, 0, 255)
}


@pytest.mark.parametrize(("motion", "colour"), WHEEL_COLOURS.values(), ids=WHEEL_COLOURS)
def test_flow_colours_follow_the_middlebury_wheel(motion, colour):
    np.testing.assert_allclose(_pictures.flow_colours(*map(np.float64, motion), 1.0), colour, atol=1)


def test_the_wheel_has_55_colours_each_hue_fully_saturated():
    wheel = _pictures.colour_wheel()
    assert wheel.shape == (55, 3)
    assert (wheel.max(axis=1) == 255).all()
    assert (wheel.min(axis=1) == 0).all()
    for position, hue in ((0, (1, 0, 0)), (15, (1, 1, 0)), (21, (0, 1, 0)), (25, (0, 1, 1)), (36, (0, 0, 1)), (49, (1, 0, 1))):
        np.testing.assert_array_equal(wheel[position], 255 * np.array(hue))


def test_rest_is_white_long_motion_dark_and_unknown_grey():
    colours = _pictures.flow_colours(np.array([0, 2, np.nan]), np.zeros(3), 1.0)
    np.testing.assert_array_equal(colours[0], 255)
    np.testing.assert_array_equal(colours[1], (191, 0, 0))
    assert np.ptp(colours[2]) == 0
    assert colours[2, 0] == round(255 * _pictures.NEUTRAL[0])


@pytest.mark.parametrize(
    ("lengths", "scale"),
    [([3.0] * 100, 3.0), ([3.01] * 100, 3.1), ([0.213] * 100, 0.22), ([41.2] * 100, 42), ([0.0] * 9, 0.1), ([np.nan] * 9, 0.1)],
    ids=["exact", "rounded up", "small", "large", "at rest", "unknown"],
)
def test_the_scale_covers_the_field_in_two_digits(lengths, scale):
    assert _pictures.motion_scale(np.array(lengths), np.zeros(len(lengths))) == pytest.approx(scale)


def test_one_outlier_does_not_set_the_scale():
    assert _pictures.motion_scale(np.array([2.0] * 999 + [64.0]), np.zeros(1000)) == 2


DIRECTIONS = {"right": ((3, 0), "r"), "down": ((0, 3), "rg"), "left": ((-3, 0), "gb"), "up": ((0, -3), "b")}


@pytest.mark.parametrize(("moved", "strong"), DIRECTIONS.values(), ids=DIRECTIONS)
def test_png_shows_a_known_motion_in_its_colour(folder, moved, strong):
    save_pair(*moved)
    assert_done(run("match", "a.png", "b.png", "-o", "out.png", "--no-subpixel"))
    colour, count = prevailing_colour("out.png")
    assert "".join(name for name, level in zip("rgb", colour, strict=True) if level > 150) == strong
    rows, columns = HEIGHT - 10, WIDTH - 10
    assert count >= 0.9 * rows * columns * (450 // columns) ** 2, "most windows, each drawn as a square of several pixels"
    width, height = opened("out.png").size
    assert width > 450
    assert height > 450 * rows // columns


def test_png_of_a_search_along_one_axis_has_a_colour_bar(folder):
    save_pair(-3, 0)
    assert_done(run("match", "a.png", "b.png", "-o", "out.png", "--dx", "-6", "0", "--dy", "0", "0", "--no-subpixel"))
    pixels = np.asarray(opened("out.png").convert("RGB")).astype(int)
    assert len(np.unique(pixels[:, -170:].reshape(-1, 3), axis=0)) > 100, "the bar's colours"
    _, count = prevailing_colour("out.png")
    assert count >= 0.5 * (HEIGHT - 10) * (WIDTH - 10), "the field has one colour"


FIELDS = {
    "one window": (1, 1, ((-1, 1), (-1, 1))),
    "one row": (1, 900, ((-1, 1), (-1, 1))),
    "one column": (700, 1, ((0, 0), (-1, 1))),
    "more windows than a screen": (900, 1300, ((-2, 2), (0, 0))),
}


@pytest.mark.parametrize(("rows", "columns", "search"), FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize(
    "ends", [(0, 0), (1.5, 1.5), (-2, 2), (np.nan, np.nan)], ids=["at rest", "moved", "both ways", "unknown"]
)
def test_every_size_of_field_can_be_drawn_with_a_pixel_for_each_window(rows, columns, search, ends):
    motions = np.linspace(*ends, rows * columns).reshape(rows, columns)
    field = field_of(motions, motions)
    file = io.BytesIO()
    _pictures.motion_picture(file, field, (11, 11), search)
    width, height = opened(file).size
    assert width > columns
    assert height > rows


# match: the summary, refusals, leaving --------------------------------------------------------------------------------


ORIGIN = "38 x 50 windows, first centre at x 5, y 5, step 1, "


def test_match_prints_one_line_of_grid_motion_score_and_time(folder):
    line = assert_done(run("match", "a.png", "b.png", "-o", "out.npy"))
    found = re.fullmatch(ORIGIN + r"median \|motion\| ([\d.]+) px, mean score ([\d.]+), [\d.]+ s: out\.npy\n", line)
    assert found, line
    assert float(found[1]) == pytest.approx(5**0.5, abs=0.02)
    assert 0.95 < float(found[2]) <= 1


@pytest.mark.parametrize(("edge", "said"), [(5, ", 5 at the edge of the search"), (0, "")], ids=["some", "none"])
def test_the_summary_counts_the_matches_at_the_edge_of_the_search(folder, monkeypatch, edge, said):
    dx = np.ones((4, 5))
    dx[0, :2] = np.nan
    at_edge = np.isnan(dx)  # no match, so not counted
    at_edge[2, :edge] = True
    monkeypatch.setattr(motion, "match", lambda *_, **__: field_of(dx, 0 * dx, at_edge))
    line = assert_done(run("match", "a.png", "b.png", "-o", "out.npy"))
    grid, origin = "4 x 5 windows (10.0% without a match)", "first centre at x 5, y 5, step 1"
    assert line.startswith(f"{grid}{said}, {origin}, median |motion| 1.00 px, mean score 0.500, ")
    assert line.endswith(" s: out.npy\n")


def test_match_of_a_flat_picture_says_that_nothing_has_an_answer(folder):
    Image.new("L", (WIDTH, HEIGHT), 7).save("a.png")
    assert "no matches" in assert_done(run("match", "a.png", "b.png", "-o", "out.png"))


def test_match_replaces_an_older_result_and_leaves_nothing_else(folder):
    Path("out.npy").write_text("old")
    assert_done(run("match", "a.png", "b.png", "-o", "out.npy"))
    assert np.load("out.npy").shape == (38, 50, 3)
    assert sorted(os.listdir()) == ["a.png", "b.png", "out.npy"]


def test_match_writes_through_a_link(folder):
    os.mkdir("elsewhere")
    os.symlink("elsewhere/real.npy", "out.npy")
    assert_done(run("match", "a.png", "b.png", "-o", "out.npy"))
    assert os.path.islink("out.npy")
    assert np.load("elsewhere/real.npy").shape == (38, 50, 3)


BAD_WORDS = {
    "empty output": (["match", "a.png", "b.png", "-o", ""], ["--output is empty"]),
    "a name that is too long": (["match", "a.png", "b.png", "-o", "n" * 300 + "/"], ["cannot use 'nnn", "File name too long"]),
    "no command": (["mach"], ["mach"]),
    "no pictures": (["match", "-o", "out.npy"], ["A B", "--pairs"]),
    "no output": (["match", "a.png", "b.png"], ["--output"]),
    "missing picture": (["match", "a.png", "gone.png", "-o", "out.npy"], ["gone.png"]),
    "a folder as a picture": (["match", "a.png", ".", "-o", "out.npy"], ["'.'"]),
    "no picture inside": (["match", "a.png", "text.png", "-o", "out.npy"], ["text.png", "cannot read"]),
    "truncated picture": (["match", "a.png", "half.png", "-o", "out.npy"], ["half.png", "cannot read"]),
    "sizes differ": (["match", "a.png", "small.png", "-o", "out.npy"], ["same size", "60 x 48", "20 x 16"]),
    "unknown extension": (["match", "a.png", "b.png", "-o", "out.jpg"], [".png, .npz, .csv, .npy, .flo", "out.jpg"]),
    "no extension": (["match", "a.png", "b.png", "-o", "out"], [".png, .npz, .csv, .npy, .flo"]),
    "no such folder": (["match", "a.png", "b.png", "-o", "nowhere/out.npy"], ["nowhere"]),
    "output is a folder": (["match", "a.png", "b.png", "-o", "folder.png"], ["folder.png"]),
    "output is an input": (["match", "a.png", "b.png", "-o", "./a.png"], ["overwrite", "a.png"]),
    "output into a file": (["match", "a.png", "b.png", "-o", "text.png/out.npy"], ["text.png"]),
    "window in words": (["match", "a.png", "b.png", "-o", "out.npy", "--window", "big"], ["--window", "'big'"]),
    "window of nothing": (["match", "a.png", "b.png", "-o", "out.npy", "--window", "0"], ["--window", "'0'"]),
    "window of three sides": (["match", "a.png", "b.png", "-o", "out.npy", "--window", "3x3x3"], ["--window"]),
    "window too large": (["match", "a.png", "b.png", "-o", "out.npy", "--window", "49"], ["window", "49"]),
    "range reversed": (["match", "a.png", "b.png", "-o", "out.npy", "--dx", "3", "-3"], ["search", "low to high"]),
    "range beyond the frame": (["match", "a.png", "b.png", "-o", "out.npy", "--search", "60"], ["search", "60"]),
    "half a range": (["match", "a.png", "b.png", "-o", "out.npy", "--dx", "3"], ["--dx"]),
    "range of fractions": (["match", "a.png", "b.png", "-o", "out.npy", "--dy", "0", "1.5"], ["--dy", "1.5"]),
    "search below zero": (["match", "a.png", "b.png", "-o", "out.npy", "--search", "-1"], ["--search"]),
    "no step": (["match", "a.png", "b.png", "-o", "out.npy", "--step", "0"], ["--step"]),
    "fit of another name": (["match", "a.png", "b.png", "-o", "out.npy", "--fit", "cubic"], ["--fit", "'cubic'", "gaussian"]),
    "nodata in words": (["match", "a.png", "b.png", "-o", "out.npy", "--nodata", "none"], ["--nodata", "'none'"]),
    "missing mask": (["match", "a.png", "b.png", "-o", "out.npy", "--mask1", "gone.png"], ["--mask1", "gone.png"]),
    "no mask inside": (["match", "a.png", "b.png", "-o", "out.npy", "--mask2", "text.png"], ["text.png", "cannot read"]),
    "size of mask 1": (["match", "a.png", "b.png", "-o", "o.npy", "--mask1", "small.png"], ["--mask1", "60 x 48", "20 x 16"]),
    "size of mask 2": (["match", "a.png", "b.png", "-o", "o.npy", "--mask2", "small.png"], ["--mask2", "60 x 48", "20 x 16"]),
    "output is a mask": (["match", "a.png", "b.png", "-o", "m.png", "--mask2", "m.png"], ["overwrite", "m.png"]),
    "unknown option": (["match", "a.png", "b.png", "-o", "out.npy", "--fast"], ["--fast"]),
    "demo into a .npy": (["demo", "-o", "demo.npy"], [".png", "demo.npy"]),
    "demo into no folder": (["demo", "-o", "nowhere/demo.png"], ["nowhere"]),
}


@pytest.mark.parametrize(("words", "said"), BAD_WORDS.values(), ids=BAD_WORDS)
def test_bad_input_is_one_clear_line_and_exit_code_2_and_no_file(folder, words, said):
    Path("text.png").write_text("no picture")
    Path("half.png").write_bytes(Path("a.png").read_bytes()[:1000])
    opened("a.png").resize((20, 16)).save("small.png")
    opened("a.png").save("m.png")
    os.mkdir("folder.png")
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    assert_refused(run(*words), *said)
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


UNREADABLE = {
    "missing picture": ["match", "a.png", "gone.png", "-o", "out.npy"],
    "damaged picture": ["match", "a.png", "text.png", "-o", "out.npy"],
    "unknown extension": ["match", "a.png", "b.png", "-o", "out.jpg"],
    "no such folder": ["match", "a.png", "b.png", "-o", "nowhere/out.npy"],
    "demo into no folder": ["demo", "-o", "nowhere/demo.png"],
}


@pytest.mark.parametrize("words", UNREADABLE.values(), ids=UNREADABLE)
def test_files_are_checked_before_anything_is_computed(folder, monkeypatch, words):
    Path("text.png").write_text("no picture")
    monkeypatch.setattr(motion, "match", lambda *_, **__: pytest.fail("computed"))
    assert_refused(run(*words))


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_computed(folder, monkeypatch):
    monkeypatch.setattr(motion, "match", lambda *_, **__: pytest.fail("computed"))

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("builtins.open", refuse)
    assert_refused(run("match", "a.png", "b.png", "-o", "out.npy"), "cannot write", "Permission denied", "out.npy")


def test_a_full_disk_leaves_the_older_result(folder, monkeypatch):
    def fail(file, *_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(results.WRITERS, ".npy", fail)
    Path("out.npy").write_text("old")
    assert_refused(run("match", "a.png", "b.png", "-o", "out.npy"), "No space left")
    assert Path("out.npy").read_text() == "old"
    assert sorted(os.listdir()) == ["a.png", "b.png", "out.npy"]


def test_too_little_memory_is_said_in_one_line(folder, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("Unable to allocate 80. TiB")

    monkeypatch.setattr(motion, "match", fail)
    assert_refused(run("match", "a.png", "b.png", "-o", "out.npy"), "not enough memory", "80. TiB")


def test_a_bad_thread_count_is_refused(folder, monkeypatch):
    monkeypatch.setenv("CUPYCORR_NUM_THREADS", "many")
    assert_refused(run("match", "a.png", "b.png", "-o", "out.npy"), "CUPYCORR_NUM_THREADS", "'many'")
    assert_refused(run("info"), "CUPYCORR_NUM_THREADS")


def test_an_interruption_exits_with_130_and_keeps_the_older_result(folder, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(motion, "match", interrupt)
    Path("out.npy").write_text("old")
    assert run("match", "a.png", "b.png", "-o", "out.npy").exit_code == 130
    assert Path("out.npy").read_text() == "old"
    assert sorted(os.listdir()) == ["a.png", "b.png", "out.npy"]


@contextmanager
def handled_by(handler):
    """Set how this process handles SIGINT; processes that it starts inherit that it is ignored."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to one process")
@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "background"])
def test_control_c_ends_with_130_and_leaves_no_file_wherever_the_suite_runs(folder, handler):
    slow = f"m.match = lambda *a, **k: (print('started', flush=True), time.sleep({STUCK}))"
    line = program(f"{INTERRUPTIBLE}import time, cupycorr.motion as m\n{slow}")
    words = [sys.executable, "-c", line, "match", "a.png", "b.png", "-o", "out.npy"]
    options = dict(env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with handled_by(handler), subprocess.Popen(words, **options) as process:
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=STUCK)
    assert process.returncode == 130
    assert error.strip() == ""
    assert sorted(os.listdir()) == ["a.png", "b.png"]


# The terminal ---------------------------------------------------------------------------------------------------------


def a_second(*, over):
    """Return lines of Python that end the second before a progress bar at once, or never."""
    support = str(ROOT / "tests" / "support")
    return f"sys.path.insert(0, {support!r})\nimport threading, waiting\nthreading.Timer = waiting.timer({over=})"


def on_terminal(*words, before):
    """Return the text that a terminal receives from the command, and the exit code."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", program(f"sys.path.insert(0, {str(ROOT)!r})\n{before}"), *words]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        received = b"".join(iter(lambda: read_to_the_end(ours), b""))
    os.close(ours)
    return received.decode(), process.returncode


def read_to_the_end(descriptor):
    """Return bytes that a terminal has received; none after the last process with the terminal has ended."""
    try:
        return os.read(descriptor, 65536)
    except OSError:  # Linux's way to say so
        return b""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("over", [True, False], ids=["long", "short"])
def test_a_bar_shows_on_a_terminal_only_after_a_second(folder, monkeypatch, over):
    monkeypatch.setenv("TERM", "xterm")
    received, code = on_terminal("match", "a.png", "b.png", "-o", "out.npy", before=a_second(over=over))
    assert code == 0, received
    assert ("\x1b" in received) == over
    assert ("matching" in received) == over
    assert "38 x 50 windows" in received


PRINTING = {
    "match": ("match", "a.png", "b.png", "-o", "out.npy", "--step", "9"),
    "info": ("info",),
    "help": ("--help",),
}


def printing_to(target, words):
    """Run the command with stdout open for writing on a file descriptor; return its exit code and stderr."""
    command = [sys.executable, "-c", program(), *words]
    options = dict(env=environment(), stdout=target, stderr=subprocess.PIPE, text=True, timeout=STUCK, check=False)
    done = subprocess.run(command, **options)
    return done.returncode, done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no disk that is always full")
@pytest.mark.parametrize("words", PRINTING.values(), ids=PRINTING)
def test_output_to_a_full_disk_is_refused_in_one_line(folder, words):
    with open("/dev/full", "wb") as full:
        told = printing_to(full, words)
    assert told == (2, "cupycorr: error: cannot write to standard output: No space left on device\n")


@pytest.mark.skipif(os.name != "posix", reason="closes a pipe")
@pytest.mark.parametrize("words", [PRINTING["match"], PRINTING["info"]], ids=["match", "info"])
def test_output_to_a_reader_that_has_gone_is_no_error(folder, words):
    ours, theirs = os.pipe()
    os.close(ours)
    assert printing_to(theirs, words) == (0, "")
    os.close(theirs)
    assert words[0] == "info" or Path("out.npy").exists()


# A pair that fails and a pair that does not.
ONE_BAD = ("match", "--pairs", "a.png", "bad.png", "--pairs", "a.png", "b.png", "-o", "out/", "--step", "9")


@contextmanager
def lost(way):
    """Yield the options of a process whose lines on stderr are lost."""
    if way == "closed":
        yield {"preexec_fn": lambda: os.close(2)}
    elif way == "full":
        with open("/dev/full", "wb") as full:
            yield {"stderr": full}
    else:
        ours, theirs = os.pipe()
        os.close(ours)
        yield {"stderr": theirs}
        os.close(theirs)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no disk that is always full")
@pytest.mark.parametrize("way", ["closed", "full", "reader gone"])
def test_an_error_that_cannot_be_printed_does_not_stop_the_other_pairs(folder, way):
    Path("bad.png").touch()
    command = [sys.executable, "-c", program(), *ONE_BAD]
    with lost(way) as options:
        options = dict(env=environment(), stdout=subprocess.PIPE, text=True, timeout=STUCK, **options)
        done = subprocess.run(command, check=False, **options)
    assert done.returncode == 1
    summary, last = done.stdout.splitlines()
    assert summary.endswith("out/a-b.npz")
    assert last == "1 pairs matched, 0 kept, 1 failed: out/"


@pytest.mark.skipif(os.name != "posix", reason="starts a process without stdout")
def test_a_process_without_stdout_writes_its_result(folder):
    command = [sys.executable, "-c", program(), *PRINTING["match"]]
    closed = {"preexec_fn": lambda: os.close(1), "stderr": subprocess.PIPE}
    done = subprocess.run(command, env=environment(), text=True, timeout=STUCK, check=False, **closed)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path("out.npy").exists()


@pytest.mark.parametrize(("name", "shown"), [("\u00e9.npy", "\\xe9.npy"), (os.fsdecode(b"\xff.npy"), "\\udcff.npy")])
def test_a_name_that_stdout_cannot_print_is_printed_with_escapes(folder, name, shown):
    command = [sys.executable, "-c", program(), "match", "a.png", "b.png", "-o", name, "--step", "9"]
    strict = {**environment(), "PYTHONIOENCODING": "ascii:strict"}
    done = subprocess.run(command, env=strict, capture_output=True, text=True, timeout=STUCK, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"s: {shown}\n")
    assert Path(name).exists()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_is_wiped_away_even_when_the_work_fails(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(threading, "Timer", second := timer(over=True))
    with pytest.raises(ValueError, match="the work"), _terminal.progress("matching"):
        raise ValueError("the work")
    text = sys.stderr.getvalue()
    assert second.seconds == 1.0
    assert "matching" in text
    assert text.rstrip().endswith("\x1b[2K"), "the last thing done is to erase the line"
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l"), "the cursor is shown again"


def test_the_bar_needs_no_stdout(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", screen)
    with _terminal.progress("matching") as report:
        report(0.5)


def test_the_bar_of_several_tasks_says_how_many_are_done(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(threading, "Timer", timer(over=True))
    with _terminal.progress("matching", 3) as report:
        report(2.5)
    assert "2/3" in sys.stderr.getvalue()


def test_nothing_but_the_summary_is_printed_when_piped_however_long_it_takes(folder):
    result = spawn("match", "a.png", "b.png", "-o", "out.npy", before=a_second(over=True))
    assert result.returncode == 0
    assert result.stderr == ""
    assert re.fullmatch(r"38 x 50 windows[^\x1b\r\n]*\n", result.stdout)


MISSING = {
    "match without Pillow": ("PIL", "pillow", ("match", "a.png", "b.png", "-o", "out.npy")),
    "match without tifffile": ("tifffile", "tifffile", ("match", "a.png", "b.png", "-o", "out.npy")),
    "match without rich": ("rich", "rich", ("match", "a.png", "b.png", "-o", "out.npy")),
    "match without matplotlib": ("matplotlib", "matplotlib", ("match", "a.png", "b.png", "-o", "out.png")),
    "demo without scikit-image": ("skimage", "scikit-image", ("demo",)),
    "demo without matplotlib": ("matplotlib", "matplotlib", ("demo",)),
}


@pytest.mark.parametrize(("module", "package", "words"), MISSING.values(), ids=MISSING)
def test_a_missing_extra_names_the_pip_command(folder, monkeypatch, module, package, words):
    monkeypatch.setitem(sys.modules, module, None)
    assert_refused(run(*words), package, 'pip install "cupycorr[demo]"')
    assert sorted(os.listdir()) == ["a.png", "b.png"]


def test_a_missing_click_names_the_pip_command():
    blocked = "sys.modules.update(dict.fromkeys(['click', 'rich', 'PIL', 'matplotlib', 'skimage']))"
    assert_refused(spawn("info", before=blocked), "click", 'pip install "cupycorr[demo]"')


def test_the_module_runs_as_a_program(folder):
    words = [sys.executable, "-m", "cupycorr.cli", "match", "a.png", "gone.png", "-o", "out.npy"]
    assert_refused(subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=STUCK), "gone.png")


def test_asking_for_help_or_nothing_shows_the_commands():
    for words in ([], ["--help"]):
        text = assert_done(run(*words))
        assert all(name in text for name in ("demo", "match", "info"))


def test_the_version_is_the_packages():
    assert assert_done(run("--version")) == f"cupycorr {cupycorr.__version__}\n"


# info -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpus(monkeypatch):
    """A function that puts a fake CuPy with some devices in the place of the real one."""

    def install(*devices):
        cupy = Fake(*devices)
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        monkeypatch.setattr(compiler, "_functions", {})
        device.facts.cache_clear()
        return cupy

    yield install
    device.facts.cache_clear()


def info_rows():
    """Return the rows of `cupycorr info --verbose` that follow the summary, which ends with the second empty line."""
    _, _, details = assert_done(run("info", "--verbose")).partition("\n\n")[2].partition("--json.\n\n")
    rows = [re.split(r"\s{2,}", line, maxsplit=1) for line in details.splitlines()]
    assert all(len(row) == 2 for row in rows)
    return rows


def info_json():
    return json.loads(assert_done(run("info", "--json")))


def installed(monkeypatch, versions):
    """Let these distributions have these versions, None for one that is missing; the others are as they are."""
    real = metadata.version

    def version(name):
        if versions.get(name, "") is None:
            raise metadata.PackageNotFoundError(name)
        return versions.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)


@pytest.fixture
def no_driver(monkeypatch):
    monkeypatch.setattr(driver, "installed", lambda: None)


@pytest.fixture
def nothing_optional(monkeypatch, no_driver):
    """An environment with NumPy and click alone."""
    monkeypatch.setitem(sys.modules, "cupy", None)
    needed = (_information.FULL_SPEED, _information.TORCH, _information.COMMAND_LINE, _information.DASK)
    installed(monkeypatch, dict.fromkeys(name for table in needed for name in table))


NOTHING_OPTIONAL = {
    "numpy": ("slowly", "llvmlite, threadpoolctl are missing", "cpu"),
    "cupy": ("no", "CuPy is missing, and there is no NVIDIA driver", "cuda12"),
    "torch": ("no", "torch is missing", "torch"),
    "command_line": ("no", "matplotlib, pillow, rich, scikit-image, tifffile are missing", "demo"),
    "dask": ("no", "dask, distributed are missing", "dask"),
}


def test_info_with_numpy_alone_says_in_15_lines_of_80_columns_what_is_missing_and_how_to_install_it(nothing_optional):
    text = assert_done(run("info"))
    assert len(text.splitlines()) <= 15
    assert max(map(len, text.splitlines())) <= 80
    for runs, told, extra in NOTHING_OPTIONAL.values():
        assert re.search(rf'{runs}: {told}\n +pip install "cupycorr\[{extra}\]"\n', text)


def test_the_json_says_the_same(nothing_optional):
    assert {key: tuple(can.values()) for key, can in info_json()["can_run"].items()} == {
        key: (runs, told, f'pip install "cupycorr[{extra}]"') for key, (runs, told, extra) in NOTHING_OPTIONAL.items()
    }


def test_info_where_nothing_is_missing_names_no_command_and_the_gpu(gpus, monkeypatch):
    gpus(H100, H100, {**H100, "properties": {**H100["properties"], "name": b"Other"}})
    installed(monkeypatch, {"torch": "2.13.0", "dask": "2026.8.0"})
    with workers.team_of(2):
        text = assert_done(run("info"))
    assert "pip install" not in text
    assert dict(re.split(r"\s{2,}", line) for line in text.splitlines() if "  " in line) == {
        "NumPy arrays": "yes, at full speed, on 2 threads",
        "CuPy arrays": "yes, on 2 x NVIDIA H100 (sm_90), Other (sm_90)",
        "torch tensors": "yes, torch 2.13.0 on the CPU; on a GPU if it is built for CUDA",
        "command line": "yes, match and demo",
        "Dask arrays": "yes, Dask 2026.8.0",
    }


# Key of what can run -> versions of packages, the text, the extra that helps.
NOT_AS_NEEDED = {
    "llvmlite is missing": ("numpy", {"llvmlite": None}, "llvmlite is missing", "cpu"),
    "llvmlite is old": ("numpy", {"llvmlite": "0.43.9"}, "llvmlite 0.43.9 is older than 0.44", "cpu"),
    "torch is old": ("torch", {"torch": "2.9.1+cu128"}, "torch 2.9.1+cu128 is older than 2.11", "torch"),
    "one is missing, one old": (
        "dask",
        {"dask": "2024.1.0", "distributed": None},
        "distributed is missing; dask 2024.1.0",
        "dask",
    ),
    "pillow is missing": ("command_line", {"pillow": None}, "pillow is missing", "demo"),
}


@pytest.mark.parametrize(("key", "versions", "told", "extra"), NOT_AS_NEEDED.values(), ids=NOT_AS_NEEDED)
def test_info_names_the_package_that_is_missing_or_too_old(monkeypatch, key, versions, told, extra):
    installed(monkeypatch, versions)
    can = info_json()["can_run"][key]
    assert can["runs"] == ("slowly" if key == "numpy" else "no")
    assert told in can["told"]
    assert can["install"] == f'pip install "cupycorr[{extra}]"'


@pytest.mark.parametrize("versions", [{"torch": "2.13.0+cpu"}, {"torch": "2.13.0"}], ids=["without CUDA", "with CUDA"])
def test_info_says_that_tensors_run_on_the_cpu_without_a_device(gpus, monkeypatch, versions):
    gpus()
    installed(monkeypatch, versions)
    told = info_json()["can_run"]["torch"]
    assert (told["runs"], told["install"]) == ("yes", None)
    assert told["told"].startswith(f"torch {versions['torch']} on the CPU; ")
    assert ("on a GPU when CuPy arrays run" in told["told"]) == ("+cpu" not in versions["torch"])


def test_info_says_that_llvm_may_not_make_code(monkeypatch):
    monkeypatch.setattr(llvm, "why_not", lambda: "no memory may become executable")
    assert info_json()["can_run"]["numpy"] == {"runs": "slowly", "told": "no memory may become executable", "install": None}


DRIVERS = {
    "CUDA 13": (driver.Driver((13, 0), ((9, 0), (12, 0))), "CuPy is missing", "cuda13"),
    "CUDA 13, a device that it no longer supports": (driver.Driver((13, 0), ((9, 0), (7, 0))), "CuPy is missing", "cuda12"),
    "CUDA 12": (driver.Driver((12, 4), ((9, 0),)), "CuPy is missing", "cuda12"),
    "too old": (driver.Driver((11, 8), ((7, 0),)), "CuPy is missing, and the NVIDIA driver is only for CUDA 11.8", None),
}


@pytest.mark.parametrize(("there", "told", "extra"), DRIVERS.values(), ids=DRIVERS)
def test_without_cupy_info_names_the_cupy_for_the_driver(monkeypatch, there, told, extra):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(driver, "installed", lambda: there)
    install = extra and f'pip install "cupycorr[{extra}]"'
    assert info_json()["can_run"]["cupy"] == {"runs": "no", "told": told, "install": install}
    assert dict(info_rows())["CUDA"] == "driver for {}.{}".format(*there.cuda)


def test_info_says_that_kernels_cannot_be_compiled(gpus, no_driver):
    def fail():
        raise RuntimeError("libnvrtc.so.12 is not there")

    gpus(H100).while_compiling = fail
    report = info_json()
    can = report["can_run"]["cupy"]
    assert (can["runs"], can["install"]) == ("no", 'pip install "cupycorr[cuda12]"')
    assert can["told"].startswith("cannot load kernel sum_parts of common/sum_parts.cu for sm_90: libnvrtc.so.12 is not there")
    assert [each["name"] for each in report["cuda"]["devices"]] == ["NVIDIA H100"]
    assert max(map(len, assert_done(run("info")).splitlines())) <= 80


def test_the_keys_of_the_json_stay(gpus):
    """Tools read bug reports: whoever renames or removes a key raises `VERSION_OF_KEYS`."""
    gpus(H100)
    report = info_json()
    assert report["keys"] == 1
    assert {key: sorted(value) if isinstance(value, dict) else type(value).__name__ for key, value in report.items()} == {
        "keys": "int",
        "cupycorr": "str",
        "python": ["implementation", "version"],
        "system": ["machine", "name", "release"],
        "numpy": ["blas", "version"],
        "cpu": ["cores", "thread_rule", "threads"],
        "cuda": ["devices", "driver", "runtime", "why_no_device"],
        "can_run": ["command_line", "cupy", "dask", "numpy", "torch"],
        "packages": sorted(report["packages"]),
        "kernels": ["builds", "folder", "why_none"],
        "cache": ["cpu", "gpu", "measured"],
        "environment": sorted(report["environment"]),
        "variants": "list",
    }
    assert {"llvmlite", "torch", "cupy-cuda12x", "cupy-cuda13x", "dask"} <= report["packages"].keys()
    assert report["cuda"]["devices"][0]["compute_capability"] == [9, 0]
    assert {tuple(sorted(row)) for row in report["variants"]} == {("arrays", "operator", "variant", "why_not")}


def test_the_json_has_the_variables_that_matter_and_no_name_of_a_person(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "ada"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "ada"))
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "ada" / "kernels"))
    monkeypatch.setenv("CUPYCORR_AUTOTUNE", "0")
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    text = assert_done(run("info", "--json"))
    variables = json.loads(text)["environment"]
    assert (variables["CUPYCORR_AUTOTUNE"], variables["CUPY_CACHE_DIR"]) == ("0", str(Path("~", "kernels")))
    assert "hunter2" not in text
    assert "ada" not in re.split(r"\W", text)


@pytest.mark.parametrize("words", [("--json", "--verbose"), ("--json", "--compile"), ("--verbose", "--compile")], ids=" ".join)
def test_info_takes_one_of_its_options(words):
    assert_refused(run("info", *words), "give one of --verbose, --json and --compile")


def test_the_packages_and_versions_of_info_are_those_of_the_extras():
    extras = ConfigParser(interpolation=None)
    extras.read(ROOT / "setup.cfg")
    extras = {name: dict(re.match(r"([\w-]+).*>=([\w.]+)", line).groups() for line in text.split("\n") if ">=" in line)
              for name, text in extras["options.extras_require"].items()}  # fmt: skip
    assert {"click": extras["cpu"]["click"], **_information.FULL_SPEED} == extras["cpu"]
    assert {"click": extras["cpu"]["click"], **_information.FULL_SPEED, **_information.COMMAND_LINE} == extras["demo"]
    assert _information.TORCH.items() <= extras["torch"].items()
    assert set(_information.DASK.values()) == set(extras["dask"].values())


@pytest.mark.skipif(os.name != "posix", reason="opens a pseudo-terminal")
def test_info_on_a_terminal_does_not_need_rich():
    received, code = on_terminal("info", before="sys.modules['rich'] = None")
    assert code == 0, received
    assert "NumPy arrays" in received


def test_info_reports_versions_threads_and_folders(monkeypatch, tmp_path):
    for name in ("a.cubin", "b.cubin", "c.txt"):
        (tmp_path / name).touch()
    monkeypatch.setenv("CUPYCORR_NUM_THREADS", "1")
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CUPYCORR_CACHE_DIR", str(tmp_path))
    for name in ("objects/a.o", "objects/b.o", "objects/c.o", "tuning/a.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert assert_done(run("info")).startswith(f"cupycorr {cupycorr.__version__}, Python {platform.python_version()}, ")
    rows = dict(info_rows())
    assert rows["cores"] == str(os.cpu_count())
    assert rows["threads"] == "1: CUPYCORR_NUM_THREADS"
    assert rows["GPU cache"].startswith(f"{tmp_path} (2 kernels")
    assert rows["CPU cache"] == f"{tmp_path / 'objects'} (3 kernels)"
    assert rows["tuning"] == f"{tmp_path / 'tuning'} (1 measured choices)"
    assert rows["kernel folder"].startswith(f"{ROOT / 'kernels_cu'} ({len(list(builds()))} kernels")
    assert {"python", "BLAS", "llvmlite", "threadpoolctl", "torch", "cupy-cuda12x", "cupy-cuda13x", "device"} <= rows.keys()


def test_info_knows_cupys_own_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("CUPY_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert dict(info_rows())["GPU cache"].startswith(f"{Path('~', '.cupy', 'kernel_cache')} (0 kernels")


def test_info_says_what_is_not_installed(monkeypatch):
    installed(monkeypatch, {"llvmlite": None})
    assert dict(info_rows())["llvmlite"] == "not installed"


def test_info_says_that_the_kernels_are_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(source, "__file__", str(tmp_path / "cupycorr" / "_gpu" / "source.py"))
    assert dict(info_rows())["kernel folder"].startswith("none: cupycorr's CUDA kernels are missing")


@pytest.mark.parametrize("there", [True, False], ids=["device", "no device"])
def test_info_says_for_every_variant_whether_it_can_run_or_why_not(gpus, there):
    gpus(*[H100] * there)
    rows = info_rows()
    lines = {name: [value for other, value in rows if other == f"variant {name}"] for name in ("reference", "direct")}
    operators = (
        "spatial_correlation_sample",
        "correlation_lookup",
        "volume_lookup",
        "correlation_argmax",
        "correlation_soft_argmax",
    )
    for operator in operators:
        assert f"{operator}, NumPy arrays: can run" in lines["reference"]
    assert lines["direct"][0] == f"spatial_correlation_sample, CuPy arrays: {'can run' if there else 'there is no device'}"


def test_info_lists_the_facts_of_every_device(gpus):
    slow = {"properties": {**H100["properties"], "name": b"Other"}, "attributes": {"MaxSharedMemoryPerBlockOptin": 64 * 2**10}}
    gpus(H100, slow)
    rows = info_rows()
    assert [value for name, value in rows if name == "device"] == [
        "0: NVIDIA H100, sm_90, 132 multiprocessors, 80 GiB at 3352 GB/s, 227 KiB shared memory per block",
        "1: Other, sm_90, 132 multiprocessors, 80 GiB, 64 KiB shared memory per block",
    ]
    assert dict(rows)["CUDA"] == "driver for 13.0, runtime 12.9"


def test_without_cupy_info_names_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    told = dict(info_rows())["device"]
    assert told.startswith("none: this needs CuPy")
    assert_refused(run("info", "--compile"), "this needs CuPy", 'pip install "cupycorr[cuda12]"')


def test_info_refuses_a_cupy_that_is_too_old_with_the_pip_command(gpus):
    gpus(H100).__version__ = "13.6.0"
    told = "this needs CuPy 14.0.1 or later, got CuPy 13.6.0, which is too old"
    assert dict(info_rows())["device"].startswith(f'none: {told}: pip install "cupycorr[cuda12]"')
    assert_refused(run("info", "--compile"), told)


def test_info_says_that_cupy_cannot_make_its_folder(tmp_path):
    (tmp_path / "file").touch()
    folder = dict(CUPY_CACHE_DIR=str(tmp_path / "file" / "folder"))
    told = python("from cupycorr.cli import main; main(['info', '--verbose'])", **folder)
    if find_spec("cupy") and python("try: import cupy\nexcept OSError: print('refused')", **folder):  # old ones make it later
        assert re.search(r"device +none: this needs CuPy, which cannot be imported .* CUPY_CACHE_DIR", told)
    assert re.search(r"GPU cache +\S+folder \(0 kernels", told)


def test_without_a_device_info_says_so(gpus):
    gpus()
    assert dict(info_rows())["device"].startswith("none: CuPy finds no CUDA driver with a device")
    assert_refused(run("info", "--compile"), "CuPy finds no CUDA driver with a device")


def test_info_compiles_every_kernel_that_a_device_can_run_for_every_device_ahead(gpus, monkeypatch):
    monkeypatch.setenv("CUPY_CACHE_DIR", "some/cache")
    cupy = gpus(H100, {**H100, "properties": {**H100["properties"], "major": 7, "minor": 0}})  # without our tensor cores
    line = assert_done(run("info", "--compile"))
    wanted = Counter((index, kernel.options()) for index in (0, 1) for _, kernel in builds(device.facts(index)))
    assert Counter((index, options[1:]) for index, _, options, _ in cupy.modules) == wanted
    assert len(list(builds())) < wanted.total() < 2 * len(list(builds()))
    assert re.fullmatch(rf"{wanted.total()} kernels, [\d.]+ s: some/cache\n", line)


def test_info_compiles_on_as_many_threads_as_are_allowed(gpus, monkeypatch):
    monkeypatch.setattr(
        cli, "builds", lambda there: iter([(str(n), source.Kernel("correlation/box_filter.cu", str(n))) for n in range(6)])
    )
    together = threading.Barrier(3, timeout=STUCK)
    gpus(H100).while_compiling = together.wait  # fails unless three are compiling at the same time
    with workers.team_of(3):
        assert_done(run("info", "--compile"))


def test_a_kernel_that_does_not_compile_is_one_clear_line(gpus):
    def fail():
        raise CompileException("kernels_cu/numeric.cuh(12): error: no such thing\n  there\n  ^")

    gpus(H100).while_compiling = fail
    assert_refused(run("info", "--compile"), "cannot compile kernel", "sm_90", "kernels_cu/numeric.cuh(12)", "--std=c++17")


def test_compiling_ahead_shows_how_far_it_is(gpus, monkeypatch):
    shares = []

    @contextmanager
    def progress(doing):
        assert doing == "compiling"
        yield shares.append

    monkeypatch.setattr(_terminal, "progress", progress)
    gpus(H100)
    assert_done(run("info", "--compile"))
    assert shares == sorted(shares)
    assert (len(shares), shares[-1]) == (len(list(builds())), 1)


def test_info_does_not_import_torch_and_warns_about_nothing():
    before = "import atexit\natexit.register(lambda: print('torch' in sys.modules))"
    result = spawn("info", before=before)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith("False\n")


# demo -----------------------------------------------------------------------------------------------------------------


def test_demo_reaches_the_promised_numbers_and_writes_its_picture(folder):
    text = assert_done(run("demo"))
    number = {name: float(value) for name, value in re.findall(r"^(bad-2\.0|median error|time): ([\d.]+)", text, re.MULTILINE)}
    assert 5 < number["bad-2.0"] <= 16
    assert 0.1 < number["median error"] <= 0.25
    assert number["time"] > 0
    assert re.search(r"[1-9]\d* Mpixel-displacements/s", text)
    assert re.search(r"^variant: \w+, \d+ threads$", text, re.MULTILINE)
    assert text.endswith("picture: cupycorr-demo.png\n")
    picture = opened("cupycorr-demo.png")
    assert picture.size == (1760, 800)
    colours = len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0))
    assert colours > 10000, "photographs and colour maps"


def test_demo_counts_a_pixel_without_answer_as_the_worst():
    truth = np.array([10.0, 10.0, 10.0, 10.0])
    assert cli._score(np.array([10.0, 12.0, 12.5, np.nan]), truth) == (0.5, 2.25)
