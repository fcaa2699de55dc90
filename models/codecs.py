"""Codecs by name: published ones, whose weights weights/layouts reads, and our own."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fewstep.latents.codec import Codec, identity_codec
from fewstep.latents.linear import linear_codec
from fewstep.models.autoencoder import autoencoder
from fewstep.models.tiny_autoencoder import tiny_autoencoder


class NamedCodec(NamedTuple):
    """A codec with its numbers, an entry of CODECS.

    build: `build(shape, **fields)` -> Codec for images of that shape.
    fields: its numbers.
    scaling: key of SCALINGS (latents/scaling.py) that its latents are published with; None for one
        that is trained, whose latents have no fixed spread.
    """

    build: Callable[..., Codec]
    fields: Mapping[str, Any] = {}
    scaling: str | None = "none"


SIXTEEN = {"latent_channels": 16}
WITHOUT_QUANT = {**SIXTEEN, "quant_convolutions": False}

CODECS = {
    "pixels": NamedCodec(identity_codec),
    "linear": NamedCodec(linear_codec),
    # Of images of 28 or 32 pixels, to train on a CPU.
    "small": NamedCodec(
        autoencoder,
        {"widths": (32, 64), "blocks": 1, "groups": 8, "attention": False, "patch_size": 2},
        scaling=None,
    ),
    # sd-vae-ft-mse and sd-vae-ft-ema have the network of SD, 83,653,863 parameters.
    "sd": NamedCodec(autoencoder, scaling="sd"),
    "sdxl": NamedCodec(autoencoder, scaling="sdxl"),
    "sd3": NamedCodec(autoencoder, WITHOUT_QUANT, scaling="sd3"),
    "flux": NamedCodec(autoencoder, WITHOUT_QUANT, scaling="flux"),
    # Their latents are those of the large ones after the scale.
    "taesd": NamedCodec(tiny_autoencoder),
    "taesdxl": NamedCodec(tiny_autoencoder),
    "taesd3": NamedCodec(tiny_autoencoder, SIXTEEN),
    "taef1": NamedCodec(tiny_autoencoder, SIXTEEN),
}
