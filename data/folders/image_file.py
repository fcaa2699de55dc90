"""Reads an image file as 8-bit grey or RGB.

It reads the first frame, turns it upright by its orientation tag (EXIF, XMP), scales integers by
their depth, and composites transparent pixels on a background. It ignores color profiles: RGB
counts as sRGB, and Pillow converts CMYK, LAB, HSV and YCbCr.
"""

import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageColor

Color = tuple[int, int, int]

# Pillow warns about unreadable tags and 89 million pixels, and refuses twice as many pixels.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module="PIL")

# Facts about an image, beside its pixels.
TRANSPARENT, ROTATED, DEEP, FRAMES = "transparent", "rotated", "16 bits", "several frames"
# An image longer than this many times its width is cropped before it is resized: a line of pixels,
# enlarged until its shorter side fits, would fill the memory.
LONGEST = 16
SIXTEEN_BITS, TWELVE_BITS = 2**16 - 1, 2**12 - 1
# TIFF tags: BitsPerSample, PhotometricInterpretation and SampleFormat.
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
WHITE_IS_ZERO, SIGNED = 0, 2
# The transposition that undoes each EXIF orientation.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Decoded(NamedTuple):
    """An image in mode L or RGB, the facts about it, and its (width, height) in the file, upright.

    The image of a narrow file is cropped.
    """

    image: Image.Image
    facts: tuple[str, ...]
    size: tuple[int, int]


def parse_color(name: str) -> Color:
    """The RGB of a color name or #rrggbb. Raises ValueError that names the field."""
    try:
        rgb = ImageColor.getrgb(name)
    except ValueError:
        rgb = ()
    if len(rgb) != 3:
        raise ValueError(
            f"data.background={name!r} is not a color; give a name such as white, or #rrggbb"
        )
    return rgb


def read_image(file: Path | bytes, channels: int, background: Color) -> Decoded:
    """The image in a file, or in its bytes: mode L if channels is 1, else RGB.

    Raises ValueError for pixels without a defined range, and Pillow's exceptions for a file that it
    cannot read.
    """
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        if not all(image.size):
            raise ValueError(f"it has {image.width} x {image.height} pixels")
        frames = has_frames(image)
        rawmode, turned = raw_mode(image), orientation(image)
        image.load()
        eight, deep = to_eight_bits(image)
        alpha = alpha_channel(image, rawmode)
    if image.format != "TIFF":  # Pillow turns TIFF upright itself
        eight, alpha = (
            turn_upright(plane, turned or orientation(image)) for plane in (eight, alpha)
        )
    grey_or_rgb = eight if alpha is None else composite(eight, alpha, background)
    facts = {
        TRANSPARENT: alpha is not None and alpha.getextrema()[0] < 255,
        ROTATED: (turned or orientation(image)) in UPRIGHT,
        DEEP: deep or ";16" in rawmode,
        FRAMES: frames,
    }
    converted = crop_narrow(grey_or_rgb.convert("L" if channels == 1 else "RGB"))
    found = tuple(fact for fact, holds in facts.items() if holds)
    return Decoded(converted, found, grey_or_rgb.size)


def composite(image: Image.Image, alpha: Image.Image, background: Color) -> Image.Image:
    """Composite an image (L or RGB) with opacity alpha (L) on a background, in RGB."""
    over = Image.new("RGB", image.size, background)
    return Image.composite(image.convert("RGB"), over, alpha)


def composite_array(image: np.ndarray, background: Color) -> np.ndarray:
    """A uint8 array [H, W, C]; 2 or 4 channels are composited to [H, W, 3], others unchanged."""
    if image.shape[-1] not in (2, 4):
        return image
    *_, alpha = planes = [Image.fromarray(plane) for plane in np.moveaxis(image, -1, 0)]
    colors = Image.merge("RGB", planes[:3]) if len(planes) == 4 else planes[0]
    return np.asarray(composite(colors, alpha, background))


def to_eight_bits(image: Image.Image) -> tuple[Image.Image, bool]:
    """The colors of an image in mode L or RGB, and whether they were scaled from more bits.

    Raises ValueError for pixel types whose range the file does not define.
    """
    if tiff_tag(image, SAMPLE_FORMAT) == SIGNED:
        raise ValueError(
            "its pixels are signed numbers, whose black and white are not defined; "
            "save it with 8 or 16 unsigned bits"
        )
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return scale_to_eight_bits(image), True
    if image.mode in ("I", "F"):
        raise ValueError(
            f"its pixels are {'floating-point' if image.mode == 'F' else '32-bit'} numbers, whose "
            "black and white are not defined; save it with 8 or 16 bits"
        )
    if image.mode in ("L", "1", "LA", "La"):
        straight = image.convert("LA") if image.mode == "La" else image
        return straight.convert("L"), False
    if image.mode in ("RGBa", "PA") or (image.mode == "P" and image.has_transparency_data):
        image = image.convert("RGBA")  # Pillow cannot convert these to RGB directly
    return image.convert("RGB"), False


def scale_to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit integers, or 12-bit ones of a TIFF, to 8 bits: the largest becomes 255."""
    largest = TWELVE_BITS if tiff_tag(image, BITS) == 12 else SIXTEEN_BITS
    values = np.asarray(image).astype(np.int64).clip(0, largest)
    if tiff_tag(image, PHOTOMETRIC) == WHITE_IS_ZERO:
        values = largest - values
    return Image.fromarray(((values * 255 + largest // 2) // largest).astype(np.uint8))


def alpha_channel(image: Image.Image, rawmode: str) -> Image.Image | None:
    """The opacity of each pixel, in mode L; None for an image without transparency."""
    if not image.has_transparency_data:
        return None
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("LA", "RGBA"):
        return image.getchannel("A")
    if image.mode in ("P", "PA", "RGBa"):
        return image.convert("RGBA").getchannel("A")
    return alpha_from_key(image, image.info["transparency"], rawmode)


def alpha_from_key(image: Image.Image, key: int | Color, rawmode: str) -> Image.Image | None:
    """The opacity of an image with one transparent color `key`, given in the file's depth."""
    pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
    key = np.asarray(key, np.int64)
    if key.shape != pixels.shape[2:]:
        return None
    depth = rawmode.partition(";")[2]
    if depth in ("2", "4"):
        key = key * 255 // (2 ** int(depth) - 1)
    elif depth.startswith("16") and pixels.dtype == np.uint8:
        key = key >> 8
    same = (pixels == key).reshape(*pixels.shape[:2], -1).all(-1)
    return Image.fromarray(np.where(same, 0, 255).astype(np.uint8))


def turn_upright(image: Image.Image | None, turned: int) -> Image.Image | None:
    """An image turned upright from EXIF orientation `turned`; None stays None."""
    return image.transpose(UPRIGHT[turned]) if image and turned in UPRIGHT else image


def orientation(image: Image.Image) -> int:
    """The orientation tag of an image; 0 if it is missing or unreadable."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 0)
    except Exception:  # a damaged tag is no reason to refuse the pixels
        return 0


def has_frames(image: Image.Image) -> bool:
    """Whether an image has more frames or pages than the first."""
    try:
        return getattr(image, "is_animated", False)
    except Exception:  # the damaged second frame is not read
        return True


def raw_mode(image: Image.Image) -> str:
    """The format of stored pixels, such as RGB;16B, before loading; "" if unknown."""
    for tile in image.tile:
        first = tile.args if isinstance(tile.args, str) else next(iter(tile.args or ()), "")
        return first if isinstance(first, str) else ""
    return ""


def tiff_tag(image: Image.Image, number: int) -> int | None:
    """The first value of a TIFF tag; None for other formats."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) else value


def crop_narrow(image: Image.Image) -> Image.Image:
    """The middle of an image more than LONGEST times as long as wide; others unchanged."""
    longest = LONGEST * min(image.size)
    if max(image.size) <= longest:
        return image
    width, height = (min(side, longest) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
