"""Pixels of every mode and format that Pillow reads, as 8 bits on a background, upright."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from fewstep.data.folders.image_file import (
    DEEP,
    FRAMES,
    ROTATED,
    TRANSPARENT,
    UPRIGHT,
    composite_array,
    parse_color,
    read_image,
)

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
DEEP_RAMP = RAMP.astype(np.uint16) * 257  # the same greys, of 65535
RGB = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)
WHITE, BLUE = (255, 255, 255), (0, 0, 200)


def saved(image, kind, **options):
    """An image as a file of a format."""
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def chunk(name, content):
    """A chunk of a PNG."""
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def png(pixels, depth, kind, key=None):
    """A PNG whose lines are given as stored; key: the color that tRNS makes transparent."""
    pixels = np.asarray(pixels)
    stored = pixels if pixels.dtype.itemsize == 2 else pixels.astype(np.uint8)
    lines = [line.tobytes() for line in stored]
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    width = len(lines[0]) * 8 // depth // channels
    header = struct.pack(">IIBBBBB", width, len(lines), depth, kind, 0, 0, 0)
    transparent = b"" if key is None else chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    data = zlib.compress(b"".join(b"\0" + line for line in lines))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), transparent, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    )


def tiff(data, bits, width, height=1, photometric=1, kind=1):
    """A TIFF of these bytes; kind: 1 for unsigned, 2 for signed, 3 for floating-point numbers."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1}
    tags |= {278: height, 279: len(data), 339: kind}
    data += b"\0" * (len(data) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags.items())
    start = struct.pack("<I", 8 + len(data))
    return b"II*\0" + start + data + struct.pack("<H", len(tags)) + entries + b"\0" * 4


def pixels(content, channels=3, background=WHITE):
    """The array of a file's image; images of several formats lose a little to compression."""
    return np.asarray(read_image(content, channels, background).image).astype(int)


def lab(image):
    """An image in CIE L*a*b*."""
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    return ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "RGB", "LAB"))


GREY = {
    "PNG of 16 bits": saved(Image.fromarray(DEEP_RAMP), "PNG"),
    "TIFF of 16 bits": saved(Image.fromarray(DEEP_RAMP), "TIFF"),
    "TIFF of 16 bits, big-endian": saved(Image.fromarray(DEEP_RAMP.astype(">u2")), "TIFF"),
    "TIFF of 16 bits, compressed": saved(
        Image.fromarray(DEEP_RAMP), "TIFF", compression="tiff_lzw"
    ),
    "JPEG 2000 of 16 bits": saved(Image.fromarray(DEEP_RAMP), "JPEG2000"),
    "PGM of 16 bits": b"P5\n16 16\n65535\n" + DEEP_RAMP.astype(">u2").tobytes(),
    "PGM of 10 bits": b"P5\n16 16\n1020\n" + (RAMP.astype(np.uint16) * 4).astype(">u2").tobytes(),
    "PPM of 16 bits": b"P6\n16 16\n65535\n" + DEEP_RAMP.astype(">u2").repeat(3).tobytes(),
    "PNG of 16 bits, RGB": png(DEEP_RAMP.astype(">u2").repeat(3, axis=1), 16, 2),
    "PNG of 16 bits, grey and alpha": png(
        np.stack([DEEP_RAMP, np.full_like(DEEP_RAMP, 65535)], -1).astype(">u2"), 16, 4
    ),
    "TIFF of 16 bits, white is zero": tiff(
        (65535 - DEEP_RAMP).astype("<u2").tobytes(), 16, 16, 16, photometric=0
    ),
    "TIFF of 8 bits, white is zero": tiff((255 - RAMP).tobytes(), 8, 16, 16, photometric=0),
    "PNG of 8 bits": saved(Image.fromarray(RAMP), "PNG"),
    "GIF": saved(Image.fromarray(RAMP), "GIF"),
    "P": saved(Image.fromarray(RAMP).convert("P"), "PNG"),
    "LA": saved(Image.fromarray(RAMP).convert("LA"), "PNG"),
    "BMP": saved(Image.fromarray(RAMP), "BMP"),
    "WebP": saved(Image.fromarray(RAMP), "WEBP", lossless=True),
}


@pytest.mark.parametrize("name", GREY)
@pytest.mark.parametrize("channels", [1, 3])
def test_greys_are_scaled_by_their_depth(name, channels):
    expected = RAMP if channels == 1 else np.stack([RAMP] * 3, -1)
    np.testing.assert_array_equal(
        pixels(GREY[name], channels).reshape(expected.shape), expected.astype(int)
    )
    deep = DEEP in read_image(GREY[name], channels, WHITE).facts
    assert deep == ("bits" in name and " 8 bits" not in name and not name.startswith("PPM"))


def test_integers_of_12_bits_are_scaled_by_4095():
    np.testing.assert_array_equal(pixels(tiff(b"\xff\xf8\x00", 12, 2), 1), [[255, 128]])


@pytest.mark.parametrize(
    ("name", "content", "tolerance"),
    [
        ("CMYK JPEG", saved(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=100), 3),
        ("CMYK TIFF", saved(Image.fromarray(RGB).convert("CMYK"), "TIFF"), 0),
        ("YCbCr TIFF", saved(Image.fromarray(RGB).convert("YCbCr"), "TIFF"), 4),
        ("LAB TIFF", saved(lab(Image.fromarray(RGB)), "TIFF"), 40),
        ("RGB TGA", saved(Image.fromarray(RGB), "TGA"), 0),
        ("RGB QOI", saved(Image.fromarray(RGB), "QOI"), 0),
        ("RGBX", saved(Image.fromarray(RGB).convert("RGBX"), "TIFF"), 0),
        ("AVIF", saved(Image.fromarray(RGB), "AVIF", quality=100, subsampling="4:4:4"), 6),
        ("JPEG", saved(Image.fromarray(RGB), "JPEG", quality=100, subsampling=0), 6),
    ],
)
def test_colors_become_rgb(name, content, tolerance):
    assert np.abs(pixels(content) - RGB).max() <= tolerance, name
    assert read_image(content, 1, WHITE).image.mode == "L"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (saved(Image.fromarray(RAMP.astype(np.float32)), "TIFF"), "floating-point"),
        (b"Pf\n16 16\n-1.0\n" + RAMP.astype("<f4").tobytes(), "floating-point"),
        (saved(Image.fromarray(RAMP.astype(np.int32)), "TIFF"), "signed"),
        (tiff(struct.pack("<II", 0, 2**32 - 1), 32, 2), "32-bit"),
        (tiff(struct.pack("<hh", -5, 5), 16, 2, kind=2), "signed"),
        (tiff(b"\x80\x7f", 8, 2, kind=2), "signed"),
        (b"", "cannot identify"),
        (b"GIF89a", "cannot identify"),
    ],
)
def test_pixels_without_a_range_are_refused(content, why):
    with pytest.raises(Exception, match=why):
        read_image(content, 3, WHITE)


def test_an_enormous_image_is_refused_unread():
    # 40,000 x 40,000 pixels in the header alone.
    huge = b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    )
    with pytest.raises(Image.DecompressionBombError):
        read_image(huge + chunk(b"IDAT", b""), 3, WHITE)


HALF = np.array([[0, 128, 255]], np.uint8)  # alpha
FORE = np.full((1, 3), 100, np.uint8)
COLORS = np.stack([FORE] * 3, -1)
RGBA = Image.fromarray(np.dstack([COLORS, HALF]))
KEYED = {
    "RGBA PNG": saved(RGBA, "PNG"),
    "RGBA TIFF": saved(RGBA, "TIFF"),
    "RGBA WebP": saved(RGBA, "WEBP", lossless=True),
    "RGBA TGA": saved(RGBA, "TGA"),
    "RGBA QOI": saved(RGBA, "QOI"),
    "LA PNG": saved(Image.merge("LA", [Image.fromarray(FORE), Image.fromarray(HALF)]), "PNG"),
    "P with alpha": saved(RGBA.quantize(3), "PNG"),
    "RGBA of 16 bits": png((np.dstack([COLORS, HALF]).astype(">u2") * 257), 16, 6),
    "LA of 16 bits": png((np.dstack([FORE, HALF]).astype(">u2") * 257), 16, 4),
}


@pytest.mark.parametrize("name", KEYED)
def test_transparent_pixels_show_the_background(name):
    decoded = read_image(KEYED[name], 3, BLUE)
    mixed = [50, 50, 150]  # half of grey 100 and of the background
    assert (
        np.abs(np.asarray(decoded.image).astype(int) - [[BLUE, mixed, (100, 100, 100)]]).max() <= 1
    )
    assert TRANSPARENT in decoded.facts


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png([[1, 2]], 8, 0, key=(1,)), [200, 2]),
        (png(np.array([[257, 514]], ">u2"), 16, 0, key=(257,)), [200, 2]),
        (png([[0b00011011]], 2, 0, key=(1,)), [0, 200, 170, 255]),
        (png([[0x3F]], 4, 0, key=(3,)), [200, 255]),
        (png([[0b01111111]], 1, 0, key=(0,)), [200, *[255] * 7]),
        (png([[0b01111111]], 1, 0, key=(1,)), [0, *[200] * 7]),
        (png([[1, 1, 1, 4, 4, 4]], 8, 2, key=(1, 1, 1)), [200, 4]),
        (png(np.array([[257] * 3 + [1028] * 3], ">u2"), 16, 2, key=(257,) * 3), [200, 4]),
    ],
    ids=range(8),
)
def test_a_transparent_color_shows_the_background(content, expected):
    shown = pixels(content, 1, (200, 200, 200))
    np.testing.assert_array_equal(shown[0, : len(expected)], expected)


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_a_transparent_entry_of_a_palette_shows_the_background(kind):
    palette = Image.fromarray(RAMP).convert("P")
    shown = pixels(saved(palette, kind, transparency=3), 1, (200, 200, 200))
    np.testing.assert_array_equal(shown, np.where(RAMP == 3, 200, RAMP))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
    ],
)
@pytest.mark.parametrize("turned", range(1, 9))
def test_an_image_is_turned_upright(kind, options, turned):
    # Corners that differ, in blocks that survive compression.
    corners = np.array([[0, 80], [160, 240], [40, 120]], np.uint8).repeat(8, 0).repeat(8, 1)
    exif = Image.Exif()
    exif[0x0112] = turned
    image = Image.fromarray(corners)
    decoded = read_image(saved(image.convert("RGB"), kind, exif=exif, **options), 1, WHITE)
    expected = image.transpose(UPRIGHT[turned]) if turned > 1 else image
    assert np.abs(np.asarray(decoded.image).astype(int) - np.asarray(expected)).max() <= 2
    assert (ROTATED in decoded.facts) == (turned > 1)


@pytest.mark.parametrize("image", [RGBA, Image.fromarray(DEEP_RAMP[:2]), RGBA.quantize(3)])
def test_any_mode_is_turned(image):
    exif = Image.Exif()
    exif[0x0112] = 6
    width, height = image.size
    assert read_image(saved(image, "PNG", exif=exif), 3, WHITE).image.size == (height, width)


def test_a_damaged_orientation_is_no_error():
    content = saved(Image.fromarray(RGB), "JPEG", exif=b"Exif\0\0damaged")
    assert read_image(content, 3, WHITE).facts == ()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_the_first_frame_is_read(kind):
    first, *rest = [Image.new("RGB", (8, 8), name) for name in ("red", "lime", "blue")]
    content = saved(first, kind, save_all=True, append_images=rest)
    decoded = read_image(content, 3, WHITE)
    assert decoded.image.getpixel((4, 4))[0] > 250 and FRAMES in decoded.facts


def test_a_line_of_pixels_is_cropped_before_it_is_enlarged():
    decoded = read_image(saved(Image.new("L", (5000, 1)), "PNG"), 1, WHITE)
    assert decoded.image.size == (16, 1)


def test_colors():
    assert parse_color("white") == WHITE and parse_color("#0000c8") == BLUE
    for name in ("", "whit", "#ffffff00", "1"):
        with pytest.raises(ValueError, match=r"data.background=.* is not a color"):
            parse_color(name)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_arrays_with_alpha_are_composited(channels):
    array = np.dstack([*[FORE] * (channels - 1), HALF] if channels in (2, 4) else [FORE] * channels)
    shown = composite_array(array, BLUE)
    if channels in (1, 3):
        assert shown is array
    else:
        assert np.abs(shown.astype(int) - [[BLUE, (50, 50, 150), (100, 100, 100)]]).max() <= 1
