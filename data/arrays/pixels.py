"""Pixels: uint8 to and from [-1, 1], and images of any size to squares of one size."""

import numpy as np
from PIL import Image

LARGEST_SIZE = 4096  # pixels of a side; a mistyped size would fill the memory
MODES = {1: "L", 3: "RGB"}  # PIL's mode by number of channels


def to_float(images: np.ndarray) -> np.ndarray:
    """x / 127.5 - 1 as float32: 0 -> -1, 255 -> 1."""
    x = images.astype(np.float32)
    x /= np.float32(127.5)  # in place, since the batch of a pod host is large
    x -= np.float32(1)
    return x


def to_uint8(x: np.ndarray) -> np.ndarray:
    """127.5 (x + 1), clipped to [0, 255] and rounded to the nearest integer, halves up.

    Inverts `to_float`. Raises ValueError if x has a NaN.
    """
    x = np.asarray(x, np.float32)
    if np.isnan(x).any():
        raise ValueError("images have NaN, which cannot become pixels")
    return np.floor(np.clip(127.5 * (x + 1), 0, 255) + 0.5).astype(np.uint8)


def check_size(image_size: int, channels: int) -> None:
    """Raises ValueError for an image size out of range, or channels other than 0, 1 and 3.

    0 is the data set's own.
    """
    if not 0 <= image_size <= LARGEST_SIZE:
        raise ValueError(
            f"data.image_size={image_size} must be 1 to {LARGEST_SIZE}, or 0 for the data set's own"
        )
    if channels not in (0, *MODES):
        raise ValueError(f"data.channels={channels} must be 1 or 3, or 0 for the data set's own")


def fit(image: Image.Image, image_size: int, channels: int) -> np.ndarray:
    """The centre square of an image, resized to S = image_size: uint8 [S, S, C].

    As in ADM (Dhariwal & Nichol 2021): box averages halve the image while its shorter side is at
    least 2 S, a bicubic filter resizes that side to S, and the centre is cropped. Pillow converts
    modes other than L and RGB; data/folders/image_file.py reads files with more care.
    """
    image = image.convert(MODES[channels])
    while min(image.size) >= 2 * image_size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = image_size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    left, top = (width - image_size) // 2, (height - image_size) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    image = image.crop((left, top, left + image_size, top + image_size))
    return np.asarray(image, np.uint8).reshape(image_size, image_size, channels)


def fit_array(image: np.ndarray, image_size: int, channels: int) -> np.ndarray:
    """`fit` for a uint8 array [H, W, C] of 1 to 4 channels; unchanged if it already fits.

    Drops an alpha channel.
    """
    if image.shape == (image_size, image_size, channels):
        return image
    squeezed = image[..., 0] if image.shape[-1] == 1 else image
    return fit(Image.fromarray(squeezed), image_size, channels)


def check_images(images: np.ndarray, name: str = "images") -> None:
    """Raises ValueError unless `images` are uint8 [N, H, W, C]."""
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"{name} must be uint8 [N, H, W, C], not {images.dtype} {list(images.shape)}; "
            "convert from [-1, 1] to bytes first"
        )
