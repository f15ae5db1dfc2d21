"""Pictures as they are read: the dtype of their values, and every rule for a missing pixel, at its limits."""

import struct
import warnings
import zlib
from importlib.util import find_spec

import numpy as np
import pytest
import tifffile
from PIL import Image, TiffImagePlugin, TiffTags

from cupycorr._files import frames
from cupycorr._files.frames import Frame, FrameReader, page_count, read_mask, same_channels
from cupycorr._files.npy import NpyFile
from cupycorr._files.page import number

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


def test_a_grey_picture_gets_three_equal_channels_beside_a_coloured_one():
    colour = np.dstack([GREY, GREY, GREY[::-1]])
    for first, second in ((GREY, colour), (colour, GREY), (GREY, GREY), (colour, colour)):
        ndim = max(first.ndim, second.ndim)
        for given, got in zip((first, second), same_channels(first, second), strict=True):
            np.testing.assert_array_equal(got, given if given.ndim == ndim else np.dstack([given] * 3))


# Every kind of file --------------------------------------------------------------------------------------------------

RAMP = np.arange(6 * 7).reshape(6, 7) * 3 % 41
COLOURS = np.dstack([RAMP, RAMP[::-1], 40 - RAMP])
BEYOND_53_BITS = RAMP.astype(np.uint64) + np.uint64(2**63 + 1)


def by_tifffile(path, array, **options):
    options = options if "imagej" in options else {"photometric": "minisblack", **options}
    tifffile.imwrite(path, array, **options)


def by_numpy(path, array):
    with open(path, "wb") as file:
        np.save(file, array)


def by_pillow(path, array, **options):
    Image.fromarray(array).save(path, **options)


RGB = {"photometric": "rgb"}
KINDS = {
    "float16 TIFF": (by_tifffile, "tif", (RAMP / 8).astype(np.float16), {}),
    "float32 TIFF": (by_tifffile, "tif", (RAMP / 7).astype(np.float32), {}),
    "float64 TIFF": (by_tifffile, "tif", RAMP / 7, {}),
    "int8 TIFF": (by_tifffile, "tif", (RAMP - 20).astype(np.int8), {}),
    "int16 TIFF": (by_tifffile, "tif", (RAMP * 1000 - 20000).astype(np.int16), {}),
    "uint32 TIFF": (by_tifffile, "tif", RAMP.astype(np.uint32) + np.uint32(2**31), {}),
    "int64 TIFF": (by_tifffile, "tif", RAMP.astype(np.int64) - 2**62, {}),
    "uint64 TIFF": (by_tifffile, "tif", BEYOND_53_BITS, {}),
    "big endian float64 TIFF": (by_tifffile, "tif", RAMP / 7, {"byteorder": ">"}),
    "BigTIFF": (by_tifffile, "tif", RAMP.astype(np.uint16), {"bigtiff": True}),
    "deflated TIFF in strips": (by_tifffile, "tif", RAMP / 7, {"compression": "zlib", "rowsperstrip": 2}),
    "TIFF in tiles": (by_tifffile, "tif", RAMP.astype(np.float16), {"tile": (16, 16)}),
    "8-bit RGB TIFF": (by_tifffile, "tif", COLOURS.astype(np.uint8), RGB),
    "16-bit RGB TIFF": (by_tifffile, "tif", COLOURS.astype(np.uint16) * 1500, RGB),
    "float32 RGB TIFF": (by_tifffile, "tif", (COLOURS / 7).astype(np.float32), RGB),
    "float64 RGB TIFF": (by_tifffile, "tif", COLOURS / 7, RGB),
    "RGB TIFF in planes": (by_tifffile, "tif", (COLOURS.astype(np.uint16) * 1500), {**RGB, "planes": True}),
    "LZW TIFF": (by_pillow, "tif", RAMP.astype(np.uint8), {"compression": "tiff_lzw"}),
    "16-bit LZW TIFF": (by_pillow, "tif", RAMP.astype(np.uint16) * 1500, {"compression": "tiff_lzw"}),
    "float32 LZW TIFF": (by_pillow, "tif", (RAMP / 7).astype(np.float32), {"compression": "tiff_lzw"}),
    "16-bit PNG": (by_pillow, "png", RAMP.astype(np.uint16) * 1500, {}),
    "BMP": (by_pillow, "bmp", COLOURS.astype(np.uint8), {}),
    **{
        f"{dtype} .npy": (by_numpy, "npy", RAMP.astype(dtype), {})
        for dtype in ("uint8", "int16", "float16", "float32", "float64", ">u2", ">f8")
    },
    "uint64 .npy": (by_numpy, "npy", BEYOND_53_BITS, {}),
    "float32 RGB .npy": (by_numpy, "npy", (COLOURS / 7).astype(np.float32), {}),
    "16-bit RGB .npy": (by_numpy, "npy", COLOURS.astype(np.uint16) * 1500, {}),
    ".npy of another name": (by_numpy, "dat", RAMP / 7, {}),
    "TIFF of another name": (by_tifffile, "dat", RAMP / 7, {}),
}


@pytest.mark.parametrize(("write", "ending", "array", "options"), KINDS.values(), ids=KINDS)
def test_every_kind_of_file_reads_to_its_values_and_dtype(tmp_path, write, ending, array, options):
    path = tmp_path / f"frame.{ending}"
    written = np.moveaxis(array, -1, 0) if options.pop("planes", False) else array
    write(path, written, **options, **({"planarconfig": "separate"} if written is not array else {}))
    picture = read(path)
    assert picture.pixels.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(picture.pixels, array)
    assert picture.valid is None
    assert picture.notes == ()


def lzw(data):
    """Return an LZW stream of literals: 9 bits each, and the table is cleared (256) before it needs longer codes."""
    codes = [code for at in range(0, len(data), 250) for code in (256, *data[at : at + 250])]
    bits = "".join(f"{code:09b}" for code in (*codes, 257))
    return b"".join(int(bits[at : at + 8].ljust(8, "0"), 2).to_bytes(1, "big") for at in range(0, len(bits), 8))


def save_lzw(path, array):
    """Save an array as TIFF with a compression that tifffile leaves to Pillow."""
    options = {"shape": array.shape, "dtype": array.dtype, "rowsperstrip": len(array), "photometric": "minisblack"}
    order = ">" if array.dtype.byteorder == ">" else "<"
    tifffile.imwrite(path, iter([lzw(array.tobytes())]), byteorder=order, compression="zlib", **options)
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["Compression"].overwrite(5)


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<i2", "<i4", "<f4"])
def test_pillow_reads_a_dtype_right_in_a_compression_that_tifffile_does_not_know(tmp_path, dtype):
    array = (RAMP * 5).astype(dtype)
    save_lzw(tmp_path / "a.tif", array)
    np.testing.assert_array_equal(read(tmp_path / "a.tif").pixels, array)


@pytest.mark.skipif(find_spec("imagecodecs") is not None, reason="tifffile knows the compression")
@pytest.mark.parametrize("dtype", ["i1", ">i2", ">i4", ">f4", "<u4", ">u4", "<f8", "<f2"])
def test_a_dtype_that_pillow_misreads_is_refused_with_the_package_that_reads_it(tmp_path, dtype):
    save_lzw(tmp_path / "a.tif", RAMP.astype(dtype))
    with pytest.raises(ValueError, match="LZW: 5> requires the 'imagecodecs' package"):
        read(tmp_path / "a.tif")


def test_a_compression_of_newer_pythons_names_the_package_that_has_it(tmp_path, monkeypatch):
    by_tifffile(tmp_path / "a.tif", RAMP / 7, compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        file.pages[0].tags["Compression"].overwrite(50000)

    def fail(page):
        raise ModuleNotFoundError("No module named 'compression'")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", fail)
    with pytest.raises(ValueError, match=r"ZSTD: 50000> requires the 'imagecodecs' package"):
        read(tmp_path / "a.tif")


def test_bools_are_black_and_white(tmp_path):
    for name, write in (("a.npy", by_numpy), ("a.tif", by_tifffile), ("a.png", by_pillow)):
        write(tmp_path / name, RAMP > 9)
        picture = read(tmp_path / name)
        assert picture.pixels.dtype == np.uint8
        np.testing.assert_array_equal(picture.pixels, np.where(RAMP > 9, 255, 0))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_tiff_whose_zero_is_white_is_turned_to_black_and_its_tag_has_the_stored_value(tmp_path, dtype):
    by_tifffile(tmp_path / "a.tif", RAMP.astype(dtype), photometric="miniswhite", extratags=[(GDAL_NODATA, 2, 0, "3", True)])
    picture = read(tmp_path / "a.tif")
    white = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 0
    np.testing.assert_array_equal(picture.pixels, white - RAMP.astype(dtype))
    np.testing.assert_array_equal(picture.valid, RAMP != 3)


def test_one_bit_whose_zero_is_white(tmp_path):
    by_tifffile(tmp_path / "a.tif", RAMP > 9, photometric="miniswhite")
    np.testing.assert_array_equal(read(tmp_path / "a.tif").pixels, np.where(RAMP > 9, 0, 255))


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_alpha_of_a_tiff_marks_missing_pixels_and_colours_are_no_longer_multiplied_by_it(tmp_path, kind, dtype):
    opaque = 65535 if dtype == np.uint16 else 1
    alpha = np.where(RAMP == 0, 0, opaque / 2)
    colours = COLOURS * (1000 if dtype == np.uint16 else 1)
    stored = colours * alpha[..., None] / opaque if kind == "assocalpha" else colours
    by_tifffile(tmp_path / "a.tif", np.dstack([stored, alpha]).astype(dtype), photometric="rgb", extrasamples=[kind])
    picture = read(tmp_path / "a.tif")
    assert picture.pixels.dtype == dtype
    seen = RAMP != 0
    np.testing.assert_allclose(picture.pixels[seen], colours[seen], atol=1.01 if dtype == np.uint16 else 1e-5)
    np.testing.assert_array_equal(picture.valid, seen)


def test_alpha_of_an_array_marks_missing_pixels(tmp_path):
    by_numpy(tmp_path / "a.npy", np.dstack([COLOURS, RAMP]))
    picture = read(tmp_path / "a.npy")
    np.testing.assert_array_equal(picture.pixels, COLOURS)
    np.testing.assert_array_equal(picture.valid, RAMP != 0)


BANDS = {
    "grey": (np.dstack([RAMP] * 4).astype(np.uint16), {"photometric": "minisblack", "planarconfig": "contig"}, RAMP),
    "RGB": (np.dstack([COLOURS, RAMP]).astype(np.uint16), {"photometric": "rgb", "extrasamples": ["unspecified"]}, COLOURS),
}


@pytest.mark.parametrize(("array", "options", "wanted"), BANDS.values(), ids=BANDS)
def test_further_bands_of_a_tiff_are_left_out_with_a_note(tmp_path, array, options, wanted):
    by_tifffile(tmp_path / "a.tif", array, **options)
    picture = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.pixels, wanted)
    assert picture.valid is None
    assert picture.notes == ("the picture has further bands, which are not read",)


def test_large_integers_are_missing_where_they_are_exactly_nodata(tmp_path):
    values = np.array([[2**64 - 1, 2**64 - 2, 2**63, 2**53 + 1]], np.uint64)
    by_tifffile(tmp_path / "a.tif", values, extratags=[(GDAL_NODATA, 2, 0, str(2**64 - 1), True)])
    np.testing.assert_array_equal(missing(tmp_path / "a.tif"), [[True, False, False, False]])
    np.testing.assert_array_equal(missing(tmp_path / "a.tif", number(str(2**53 + 1))), [[False, False, False, True]])


@pytest.mark.parametrize("text", ["18446744073709551616", "-9223372036854775809", "9" * 400])
def test_an_integer_beyond_64_bits_is_a_float(text):
    assert isinstance(number(text), float)
    assert number(text) == float(text)


# Colours of 16 bits --------------------------------------------------------------------------------------------------


def png_of_16_bits(array, colour_type):
    """Return a PNG byte by byte, as its specification says: Pillow writes no colours of 16 bits."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


OF_16_BITS = {
    "RGB PNG": lambda: png_of_16_bits(COLOURS * 1500, 2),
    "RGBA PNG": lambda: png_of_16_bits(np.dstack([COLOURS, RAMP + 1]) * 1500, 6),
    "grey PNG with alpha": lambda: png_of_16_bits(np.dstack([RAMP, RAMP + 1]) * 1500, 4),
    "SGI": lambda: (
        struct.pack(">hbbHHHH", 474, 0, 2, 3, 7, 6, 3).ljust(512, b"\0")
        + (COLOURS[::-1] * 1500).transpose(2, 0, 1).astype(">u2").tobytes()
    ),
    "PPM": lambda: b"P6 7 6 65535\n" + (COLOURS * 1500).astype(">u2").tobytes(),
}


@pytest.mark.parametrize("make", OF_16_BITS.values(), ids=OF_16_BITS)
def test_a_note_says_that_16_bit_colours_are_read_with_8(tmp_path, make):
    (tmp_path / "a").write_bytes(make())
    picture = read(tmp_path / "a")
    assert picture.pixels.dtype == np.uint8
    assert picture.notes == ("16-bit colours are read with 8 bits; .npy and uncompressed TIFF keep them",)
    assert abs(picture.pixels[..., 0].astype(int) - RAMP * 1500 // 256).max() <= 1


def test_a_value_of_missing_pixels_is_refused_in_colours_that_lose_bits(tmp_path):
    (tmp_path / "a.png").write_bytes(png_of_16_bits(COLOURS * 1500, 2))
    with pytest.raises(ValueError, match="missing pixels 65535 cannot be found, because its 16-bit colours are read with 8 bits"):
        read(tmp_path / "a.png", nodata=65535)


def test_8_bit_colours_and_16_bit_grey_values_need_no_note(tmp_path):
    (tmp_path / "grey.png").write_bytes(png_of_16_bits(RAMP * 1500, 0))
    (tmp_path / "rgb.ppm").write_bytes(b"P6 7 6 255\n" + COLOURS.astype(np.uint8).tobytes())
    assert read(tmp_path / "grey.png").notes == read(tmp_path / "rgb.ppm").notes == ()
    np.testing.assert_array_equal(read(tmp_path / "grey.png").pixels, RAMP * 1500)


# Orientation ---------------------------------------------------------------------------------------------------------

ORIENTATION = 274
# The stored picture by the orientation that EXIF gives it, as slices of the upright one.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],  # the first stored row is the right side, its begin is the top
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],  # the first stored row is the left side, its begin is the bottom
}


def exif(orientation):
    found = Image.Exif()
    found[ORIENTATION] = orientation
    return found


def save_turned(path, stored, orientation):
    if path.suffix == ".tif":
        tifffile.imwrite(path, stored, extratags=[(ORIENTATION, 3, 1, orientation, True)])
    elif path.suffix == ".tiff":
        Image.fromarray(stored).save(path, compression="tiff_lzw", tiffinfo={ORIENTATION: orientation})
    else:
        Image.fromarray(stored).save(path, exif=exif(orientation), lossless=True)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("ending", ["png", "webp", "tif", "tiff"])
def test_a_picture_with_an_orientation_is_turned_upright_with_its_missing_pixels(tmp_path, ending, orientation):
    path = tmp_path / f"a.{ending}"
    upright = RAMP.astype(np.uint8) if ending != "webp" else COLOURS.astype(np.uint8)
    save_turned(path, np.ascontiguousarray(STORED[orientation](upright)), orientation)
    picture = read(path, nodata=3)
    if ending == "webp":
        np.testing.assert_array_equal(read(path).pixels, upright)
        return
    np.testing.assert_array_equal(picture.pixels, upright)
    np.testing.assert_array_equal(picture.valid, upright != 3)
    np.testing.assert_array_equal(read_mask(path), upright != 0)


def test_exif_of_a_jpeg_turns_it(tmp_path):
    Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 16, axis=1).repeat(8, axis=0)).save(
        tmp_path / "a.jpg", exif=exif(6), quality=100
    )
    pixels = read(tmp_path / "a.jpg").pixels
    assert pixels.shape == (32, 8)
    assert pixels[:12].max() < 20 < 235 < pixels[20:].min()


# Pages ---------------------------------------------------------------------------------------------------------------

PAGES = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1], RAMP + 1])


def tiff_with_overviews(path, array):
    """Write each page with a reduced copy and a mask behind it, as GDAL does."""
    with tifffile.TiffWriter(path) as writer:
        for page in array:
            writer.write(page, contiguous=False)
            writer.write(page[::2, ::2], subfiletype=1, contiguous=False)
            writer.write(page > 0, subfiletype=4, photometric="mask", contiguous=False)


STACKS = {
    "TIFF": lambda path: by_tifffile(path, PAGES.astype(np.uint16)),
    "float64 TIFF": lambda path: by_tifffile(path, PAGES / 7),
    "ImageJ's TIFF": lambda path: by_tifffile(path, PAGES.astype(np.uint16), imagej=True),
    "ImageJ's TIFF with one page": lambda path: by_tifffile(path, PAGES.astype(np.uint16), imagej=True, truncate=True),
    "TIFF with overviews and masks": lambda path: tiff_with_overviews(path, PAGES.astype(np.uint16)),
    "LZW TIFF": lambda path: Image.fromarray(PAGES[0].astype(np.uint8)).save(
        path,
        "TIFF",
        compression="tiff_lzw",
        save_all=True,
        append_images=[Image.fromarray(page.astype(np.uint8)) for page in PAGES[1:]],
    ),
    ".npy": lambda path: by_numpy(path, PAGES),
    "GIF": lambda path: Image.fromarray(PAGES[0].astype(np.uint8)).save(
        path, "GIF", save_all=True, append_images=[Image.fromarray(page.astype(np.uint8)) for page in PAGES[1:]]
    ),
}


@pytest.mark.parametrize("write", STACKS.values(), ids=STACKS)
def test_pages_are_counted_and_read_in_any_order(tmp_path, write):
    path = tmp_path / "stack"
    write(path)
    assert page_count(path) == 4
    with FrameReader() as reader:
        first, second = reader.read(Frame(path, 2), Frame(path, 0))
        (third,) = reader.read(Frame(path, 1))
    for picture, page in ((first, 2), (second, 0), (third, 1)):
        pixels = picture.pixels if picture.pixels.ndim == 2 else picture.pixels[..., 0]
        scale = 7 if pixels.dtype == np.float64 else 1
        np.testing.assert_allclose(pixels * scale, PAGES[page], rtol=1e-12)
        assert picture.notes == ()


def test_colours_of_several_frames_in_one_array(tmp_path):
    by_numpy(tmp_path / "a.npy", np.stack([COLOURS, COLOURS[::-1]]))
    assert page_count(tmp_path / "a.npy") == 2
    np.testing.assert_array_equal(read(tmp_path / "a.npy", page=1).pixels, COLOURS[::-1])


def test_a_note_says_that_only_the_first_of_several_pages_is_read(tmp_path):
    by_tifffile(tmp_path / "a.tif", PAGES.astype(np.uint16))
    picture = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.pixels, PAGES[0])
    assert picture.notes == ("the file has 4 pages, and the first one is read",)


def test_a_frame_that_two_pairs_share_is_read_once(tmp_path, monkeypatch):
    done, read_page = [], NpyFile.read
    for name in "abc":
        by_numpy(tmp_path / f"{name}.npy", RAMP)

    def counted(file, index):
        done.append(file.name)
        return read_page(file, index)

    def named(path):
        file = NpyFile(path)
        file.name = path.name
        return file

    monkeypatch.setattr(NpyFile, "read", counted)
    monkeypatch.setitem(frames._OPENERS, b"\x93NUMPY", named)
    a, b, c = (Frame(tmp_path / f"{name}.npy") for name in "abc")
    with FrameReader() as reader:
        for pair in ((a, b), (b, c), (c, a)):
            reader.read(*pair)
    assert done == ["a.npy", "b.npy", "c.npy", "a.npy"]


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


DAMAGED = {
    "TIFF": (by_tifffile, {}),
    "TIFF in strips": (by_tifffile, {"rowsperstrip": 8}),
    "deflated TIFF": (by_tifffile, {"compression": "zlib", "rowsperstrip": 8}),
    "TIFF in tiles": (by_tifffile, {"tile": (16, 16)}),
    "LZW TIFF": (by_pillow, {"format": "TIFF", "compression": "tiff_lzw"}),
    "PNG": (by_pillow, {"format": "PNG"}),
    ".npy": (by_numpy, {}),
}


@pytest.mark.parametrize(("write", "options"), DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("kept", [0.03, 0.5, 0.95])
def test_a_file_without_its_end_is_refused(tmp_path, write, options, kept):
    path = tmp_path / "a"
    write(path, np.random.default_rng(0).integers(0, 60000, (64, 80)).astype(np.uint16), **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"cannot read '.*a' as a picture: \S"):
        read(path)


REFUSED = {
    "complex .npy": (by_numpy, np.zeros((4, 5), complex), "dtype must be bool, integer or floating, got complex128"),
    "complex TIFF": (by_tifffile, np.zeros((4, 5), np.complex64), "values must be integers or floating, got complex64"),
    "text": (by_numpy, np.zeros((4, 5), "U3"), "dtype must be bool, integer or floating, got <U3"),
    "objects": (by_numpy, np.array([[None]]), "Python objects"),
    "one axis": (by_numpy, np.zeros(5), r"shape must be \(H, W\).*got \(5,\)"),
    "five axes": (by_numpy, np.zeros((1, 1, 1, 4, 3)), r"shape must be \(H, W\).*got \(1, 1, 1, 4, 3\)"),
    "nothing": (by_numpy, np.zeros((0, 5)), "with pixels"),
}


@pytest.mark.parametrize(("write", "array", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_frame_is_refused(tmp_path, write, array, text):
    write(tmp_path / "a", array)
    with pytest.raises(ValueError, match=rf"cannot read '.*a' as a picture: .*{text}"):
        read(tmp_path / "a")


def test_a_volume_is_refused(tmp_path):
    by_tifffile(tmp_path / "a.tif", np.zeros((16, 16, 16), np.uint8), volumetric=True, tile=(16, 16, 16))
    with pytest.raises(ValueError, match="axes must be YX, YXS or SYX, got ZYX"):
        read(tmp_path / "a.tif")


def test_too_little_memory_is_not_taken_for_damage(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("Unable to allocate 80. TiB")

    by_tifffile(tmp_path / "a.tif", RAMP / 7)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", fail)
    with pytest.raises(MemoryError, match="80"):
        read(tmp_path / "a.tif")


def test_a_file_that_cannot_be_opened_is_named_with_the_reason(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read '.*gone\.tif' as a picture: No such file or directory"):
        read(tmp_path / "gone.tif")


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_picture_of_any_size_is_read_and_pillows_limit_is_left_as_it_was(saved, monkeypatch, ending):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", GREY.size // 3)
    path = saved(GREY, ending, **({"compression": "tiff_lzw"} if ending == "tif" else {}))
    with pytest.raises(Image.DecompressionBombError):
        Image.open(path).close()
    np.testing.assert_array_equal(read(path).pixels, GREY)
    assert GREY.size // 3 == Image.MAX_IMAGE_PIXELS


@pytest.mark.slow
def test_more_than_179_megapixels_are_read(tmp_path):
    size = 13400
    Image.new("L", (size, size), 7).save(tmp_path / "a.png", compress_level=1)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "a.png").close()
    pixels = read(tmp_path / "a.png").pixels
    assert pixels.shape == (size, size)
    assert (pixels == 7).all()


def test_remarks_of_tifffile_are_not_shown(tmp_path, caplog):
    by_tifffile(tmp_path / "a.tif", RAMP.astype(np.uint16))
    content = bytearray((tmp_path / "a.tif").read_bytes())
    at = content.find(struct.pack("<HH", 305, 2))  # the tag Software, a text
    content[at + 2 : at + 4] = struct.pack("<H", 99)  # of a type that does not exist
    (tmp_path / "a.tif").write_bytes(content)
    tifffile.imread(tmp_path / "a.tif")
    assert caplog.records
    caplog.clear()
    np.testing.assert_array_equal(read(tmp_path / "a.tif").pixels, RAMP)
    assert not caplog.records


def test_warnings_of_a_decoder_are_not_shown(saved, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", GREY.size - 1)  # the next picture is said to be a possible attack
    path = saved(GREY)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(path).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels, _ = read_picture(path)
    assert pixels.shape == GREY.shape
