"""The space of pixels: a network sees floats in [-1, 1], everything else sees bytes."""

import numpy as np
from PIL import Image

from fewstep.data.arrays.pixels import to_float, to_uint8
from fewstep.data.spaces.grid import comparison, grid_picture
from fewstep.data.spaces.space import Example, Shape, Space

ROUNDING = "127.5 (x + 1), clipped to [0, 255], to the nearest integer, halves upwards"
FEATURES = ("classifier", "pixels", "inception", "dinov2")
SHOWN, COMPARED = 100, 10


def pixel_space(shape: Shape) -> Space:
    """The space of images of shape [height, width, channels]. Samples finish as bytes."""
    return Space(
        name="pixels",
        shape=shape,
        example=Example(shape, np.dtype(np.uint8)),
        start=to_float,
        finish=to_uint8,
        rounding=ROUNDING,
        features=FEATURES,
        image=to_image,
        show=grid_picture,
        compare=comparison,
        shown=SHOWN,
        compared=COMPARED,
    )


def to_image(pixels: np.ndarray) -> Image.Image:
    """The picture of one image, uint8 [H, W, C] with C 1 or 3."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
