"""Codecs by name: published ones, whose weights weights/layouts reads, and our own."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fewstep.latents.codec import Codec, Params, Shape, identity_codec
from fewstep.latents.linear import fit_linear_codec, linear_codec
from fewstep.models.autoencoder import autoencoder
from fewstep.models.small_autoencoder import fit_small_autoencoder, small_autoencoder
from fewstep.models.tiny_autoencoder import tiny_autoencoder


class NamedCodec(NamedTuple):
    """A codec with its numbers, an entry of CODECS.

    build: `build(shape, **fields)` -> Codec for images of that shape.
    fields: its numbers.
    scaling: key of SCALINGS (latents/scaling.py) that its latents are published with; None for one
        without published weights, whose latents have no fixed spread.
    fit: (images uint8 [N, H, W, C], **fields) -> parameters that are fitted to images, or those of
        a part; None if all are random before training.
    trained: whether its posterior can be trained (objectives/autoencoder.py).
    """

    build: Callable[..., Codec]
    fields: Mapping[str, Any] = {}
    scaling: str | None = "none"
    fit: Callable[..., Params] | None = None
    trained: bool = False


FITTED_IMAGES = 10_000  # spread evenly over the training images
SIXTEEN = {"latent_channels": 16}
SMALL = {"scaling": None, "fit": fit_small_autoencoder, "trained": True}
WITHOUT_QUANT = {**SIXTEEN, "quant_convolutions": False}

CODECS = {
    "pixels": NamedCodec(identity_codec),
    "linear": NamedCodec(linear_codec, fit=fit_linear_codec),
    # Of images of 28 or 32 pixels, to train on a CPU: by the factor of sides, 4, 7 or 8.
    "f4": NamedCodec(small_autoencoder, {"patch_size": 4, "widths": (64,)}, **SMALL),
    "f7": NamedCodec(small_autoencoder, {"patch_size": 7, "latent_channels": 6}, **SMALL),
    "f8": NamedCodec(small_autoencoder, {"patch_size": 8, **SIXTEEN}, **SMALL),
    # sd-vae-ft-mse and sd-vae-ft-ema have the network of SD, 83,653,863 parameters.
    "sd": NamedCodec(autoencoder, scaling="sd", trained=True),
    "sdxl": NamedCodec(autoencoder, scaling="sdxl", trained=True),
    "sd3": NamedCodec(autoencoder, WITHOUT_QUANT, scaling="sd3", trained=True),
    "flux": NamedCodec(autoencoder, WITHOUT_QUANT, scaling="flux", trained=True),
    # Their latents are those of the large ones after the scale.
    "taesd": NamedCodec(tiny_autoencoder),
    "taesdxl": NamedCodec(tiny_autoencoder),
    "taesd3": NamedCodec(tiny_autoencoder, SIXTEEN),
    "taef1": NamedCodec(tiny_autoencoder, SIXTEEN),
}


def codec_by_name(name: str, shape: Shape) -> Codec:
    """The codec of that name for images of that shape. Raises ValueError, KeyError for a name."""
    return CODECS[name].build(shape, **CODECS[name].fields)


def fit_codec(name: str, images: np.ndarray) -> Params:
    """What a codec has fitted to images, uint8 [N, H, W, C]. Raises ValueError."""
    rows = np.linspace(0, len(images) - 1, min(len(images), FITTED_IMAGES)).astype(int)
    return CODECS[name].fit(images[rows], **CODECS[name].fields)
