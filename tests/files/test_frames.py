"""Pictures as they are read: the dtype of their values, and every rule for a missing pixel, at its limits."""

import warnings

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin, TiffTags

from cupycorr._files.frames import Frame, FrameReader, read_mask, same_channels

GDAL_NODATA = 42113
GREY = np.array([[0, 1, 2, 3], [100, 200, 254, 255]], dtype=np.uint8)


@pytest.fixture
def saved(tmp_path):
    """A function that saves an array or an image as a picture, and returns its path."""

    def save(pixels, ending="tif", **options):
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        image.save(tmp_path / f"picture.{ending}", **options)
        return tmp_path / f"picture.{ending}"

    return save


def read(path, nodata=None, page=None):
    """Read one frame."""
    with FrameReader(nodata) as reader:
        (picture,) = reader.read(Frame(path, page))
    return picture


def read_picture(path, nodata=None):
    """Return the pixels of a frame and its mask of valid pixels."""
    picture = read(path, nodata)
    return picture.pixels, picture.valid


def tag(value):
    return {"tiffinfo": {GDAL_NODATA: value}}


def missing(picture, nodata=None):
    """Return the mask of missing pixels; all False if `read_picture` has no mask."""
    pixels, valid = read_picture(picture, nodata)
    assert valid is None or (valid.shape == pixels.shape[:2] and valid.dtype == bool and not valid.all())
    return np.zeros(pixels.shape[:2], bool) if valid is None else ~valid


# Values --------------------------------------------------------------------------------------------------------------

VALUES = {
    "8 bit": (GREY, GREY),
    "16 bit": (GREY.astype(np.uint16) * 257, GREY.astype(np.uint16) * 257),
    "16 bit, big endian": ((GREY.astype(np.uint16) * 257).astype(">u2"), GREY.astype(np.uint16) * 257),
    "32 bit": (GREY.astype(np.int32) - 70000, GREY.astype(np.int32) - 70000),
    "float": (GREY.astype(np.float32) / 7, GREY.astype(np.float32) / 7),
    "1 bit": (GREY > 2, np.where(GREY > 2, 255, 0).astype(np.uint8)),
    "RGB": (np.dstack([GREY, GREY[::-1], GREY]), np.dstack([GREY, GREY[::-1], GREY])),
    "RGBA": (np.dstack([GREY, GREY[::-1], GREY, GREY]), np.dstack([GREY, GREY[::-1], GREY])),
    "grey and alpha": (np.dstack([GREY, GREY[::-1]]), GREY),
}


@pytest.mark.parametrize(("written", "read"), VALUES.values(), ids=VALUES)
def test_values_keep_their_dtype_in_native_byte_order_and_lose_alpha(saved, written, read):
    pixels, _ = read_picture(saved(written))
    assert pixels.dtype == read.dtype
    assert pixels.dtype.isnative
    np.testing.assert_array_equal(pixels, read)


def test_nan_stays_in_a_floating_picture(saved):
    written = np.array([[1, np.nan], [np.nan, 2]], np.float32)
    pixels, _ = read_picture(saved(written))
    np.testing.assert_array_equal(pixels, written)


def test_palette_colours_are_looked_up(saved):
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    pixels, _ = read_picture(saved(image, "png"))
    np.testing.assert_array_equal(pixels, [[(10, 20, 30), (40, 50, 60)]])


def test_only_the_first_page_is_read(saved):
    pixels, valid = read_picture(saved(GREY, save_all=True, append_images=[Image.new("L", (9, 9))]))
    np.testing.assert_array_equal(pixels, GREY)
    assert valid is None


def test_a_grey_picture_gets_three_equal_channels_beside_a_coloured_one():
    colour = np.dstack([GREY, GREY, GREY[::-1]])
    for first, second in ((GREY, colour), (colour, GREY), (GREY, GREY), (colour, colour)):
        ndim = max(first.ndim, second.ndim)
        for given, got in zip((first, second), same_channels(first, second), strict=True):
            np.testing.assert_array_equal(got, given if given.ndim == ndim else np.dstack([given] * 3))


# Missing pixels ------------------------------------------------------------------------------------------------------

UNREPRESENTABLE = {
    "negative, 8 bit": (GREY, -9999),
    "too large, 8 bit": (GREY, 256),
    "wraps to 255, 8 bit": (GREY, -1),
    "wraps to 0, 16 bit": (GREY.astype(np.uint16), 65536),
    "fraction, 8 bit": (GREY, 2.5),
    "NaN, 8 bit": (GREY, np.nan),
    "infinity, 32 bit": (GREY.astype(np.int32), np.inf),
    "lowest float, 32 bit": (np.full((1, 1), -(2**31), np.int32), -3.4028235e38),
    "colour": (np.dstack([GREY] * 3), 256),
}


@pytest.mark.parametrize(("pixels", "value"), UNREPRESENTABLE.values(), ids=UNREPRESENTABLE)
@pytest.mark.parametrize("by", ["nodata", "tag"])
def test_a_value_that_the_picture_cannot_have_marks_nothing(saved, pixels, value, by):
    assert not missing(saved(pixels, **(tag(str(value)) if by == "tag" else {})), value if by == "nodata" else None).any()


def test_a_value_is_rounded_to_float32_like_the_pixels(saved):
    pixels = np.array([[0.1, np.nextafter(np.float32(0.1), np.float32(1)), -3.4028235e38, np.inf]], np.float32)
    for value, marked in ((0.1, 0), (-3.4028235e38, 2), (-3.40282346638528860e38, 2), (1e300, 3)):
        np.testing.assert_array_equal(missing(saved(pixels), value), np.arange(4)[None] == marked)
        np.testing.assert_array_equal(missing(saved(pixels, **tag(repr(value)))), np.arange(4)[None] == marked)


def test_large_integers_are_compared_exactly(saved):
    pixels = np.array([[2**31 - 1, 2**31 - 2, 2**24, 2**24 + 1]], np.int32)
    np.testing.assert_array_equal(missing(saved(pixels), 2.0**31 - 1), [[True, False, False, False]])
    np.testing.assert_array_equal(missing(saved(pixels), 2.0**24 + 1), [[False, False, False, True]])


@pytest.mark.parametrize("text", ["", "none", "0 0", "0,5", "\0", "nan", "-nan", "0x1"])
def test_a_tag_that_is_no_number_of_a_pixel_is_ignored(saved, text):
    assert not missing(saved(GREY, **tag(text))).any()


@pytest.mark.parametrize("text", ["3", "3.0", " 3", "3 ", "3\0", "3 \0", "3\0\0", "+3", "3e0"])
def test_a_tag_may_be_written_in_every_usual_way(saved, text):
    np.testing.assert_array_equal(missing(saved(GREY, **tag(text))), GREY == 3)


def test_a_tag_that_is_not_text_stops_nothing(saved):
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory.tagtype[GDAL_NODATA] = TiffTags.SHORT
    directory[GDAL_NODATA] = (3, 4)
    assert not missing(saved(GREY, tiffinfo=directory)).any()


def test_nodata_takes_the_place_of_the_tag(saved):
    np.testing.assert_array_equal(missing(saved(GREY, **tag("3")), 100), GREY == 100)
    assert not missing(saved(GREY, **tag("3")), np.nan).any()


def test_nodata_of_a_picture_of_one_bit_is_0_or_1(saved):
    np.testing.assert_array_equal(missing(saved(GREY > 2), 1), GREY > 2)
    np.testing.assert_array_equal(missing(saved(GREY > 2, **tag("0"))), GREY <= 2)
    assert not missing(saved(GREY > 2), 255).any()


def test_nodata_of_a_palette_picture_is_an_index_and_not_a_colour(saved):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette([2, 2, 2, 0, 0, 0, 1, 1, 1])
    for picture, value in ((saved(image, "png"), 2), (saved(image, **tag("2")), None)):
        np.testing.assert_array_equal(missing(picture, value), [[False, False, True]])


def test_nodata_is_compared_with_the_colours_only_and_not_with_alpha(saved):
    for channels in (1, 3):
        pixels = np.dstack([GREY] * channels + [np.full_like(GREY, 200)])
        np.testing.assert_array_equal(missing(saved(pixels), 3), GREY == 3)


ALPHA = np.array([[0, 1, 127, 255], [255, 0, 128, 0]], np.uint8)
WITH_ALPHA = {
    "RGBA, png": ("RGBA", "png"),
    "RGBA, TIFF": ("RGBA", "tif"),
    "grey, png": ("LA", "png"),
    "grey, TIFF": ("LA", "tif"),
    "palette and alpha, TIFF": ("PA", "tif"),
}


@pytest.mark.parametrize(("mode", "ending"), WITH_ALPHA.values(), ids=WITH_ALPHA)
def test_only_alpha_0_is_missing(saved, mode, ending):
    image = Image.fromarray(GREY).convert(mode)
    image.putalpha(Image.fromarray(ALPHA))
    assert image.mode == mode
    np.testing.assert_array_equal(missing(saved(image, ending)), ALPHA == 0)


# Masks ---------------------------------------------------------------------------------------------------------------


def test_a_mask_is_valid_where_a_channel_is_not_0(saved):
    for written in (GREY, GREY.astype(np.uint16) * 256, GREY.astype(np.int32) * -70000, GREY.astype(np.float32) / 1000, GREY > 0):
        np.testing.assert_array_equal(read_mask(saved(written)), GREY > 0)
    for channel in range(3):
        written = np.zeros((*GREY.shape, 3), np.uint8)
        written[..., channel] = GREY
        np.testing.assert_array_equal(read_mask(saved(written)), GREY > 0)


def test_nan_and_transparent_pixels_of_a_mask_are_missing(saved):
    np.testing.assert_array_equal(read_mask(saved(np.array([[np.nan, -1, 0]], np.float32))), [[False, True, False]])
    np.testing.assert_array_equal(read_mask(saved(np.dstack([GREY, ALPHA]), "png")), (GREY > 0) & (ALPHA > 0))


def test_the_tag_of_a_mask_is_ignored(saved):
    np.testing.assert_array_equal(read_mask(saved(GREY, **tag("255"))), GREY > 0)


# Errors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [read_picture, read_mask])
def test_a_file_that_is_no_picture_is_named(tmp_path, read):
    path = tmp_path / "text.png"
    path.write_text("no picture")
    with pytest.raises(ValueError, match=r"cannot read '.*text\.png' as a picture: "):
        read(path)


def test_warnings_of_a_decoder_are_not_shown(saved, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", GREY.size - 1)  # the next picture is said to be a possible attack
    path = saved(GREY)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(path).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels, _ = read_picture(path)
    assert pixels.shape == GREY.shape
