"""A small KL autoencoder that adds to a linear codec.

    mean = linear mean + network's mean,    image = linear image + network's image

The last convolutions of encoder and decoder start at zero. Training therefore starts from principal
components of patches, which already reconstruct well and whose latents are white, and the network
learns only what they miss. A fresh codec has a random linear part; `fit_small_autoencoder` fits it
to images in seconds.
"""

import jax.numpy as jnp
import numpy as np

from fewstep.latents.codec import Array, Codec, Key, Moments, Params, Shape, checked
from fewstep.latents.linear import fit_linear_codec, linear_codec
from fewstep.models.autoencoder import autoencoder

LINEAR, NETWORK = "linear", "network"
FIRST_LOG_VARIANCE = -6.0  # of the posterior before training: a deviation of 0.05


def small_autoencoder(
    shape: Shape,
    *,
    patch_size: int = 4,
    widths: tuple[int, ...] = (128,),
    blocks: int = 1,
    latent_channels: int = 4,
    groups: int = 8,
) -> Codec:
    """A KL autoencoder of small images that trains in minutes on a CPU.

    The fields are those of `autoencoder`. It has no attention and no quant convolutions. Its linear
    part sees patches whose sides are as many times shorter as those of the latents. Raises
    ValueError as `autoencoder` does.
    """
    network = autoencoder(
        shape,
        widths=widths,
        blocks=blocks,
        latent_channels=latent_channels,
        groups=groups,
        patch_size=patch_size,
        quant_convolutions=False,
        attention=False,
    )
    linear = linear_codec(shape, **linear_fields(widths, patch_size, latent_channels))

    def init(key: Key) -> Params:
        parts = {LINEAR: linear.init(key), NETWORK: start_at_zero(network.init(key))}
        return {
            half: {name: parts[name][half] for name in parts} for half in ("encoder", "decoder")
        }

    def encode(params: Params, images: Array) -> Moments:
        mean = linear.encode(part_of(params, LINEAR), images).mean
        change, std = network.encode(part_of(params, NETWORK), images)
        return Moments(mean + change, std)

    def decode(params: Params, latents: Array) -> Array:
        image = linear.decode(part_of(params, LINEAR), latents)
        return image + network.decode(part_of(params, NETWORK), latents)

    return checked(Codec(init, encode, decode, shape, network.latent_shape))


def fit_small_autoencoder(
    images: np.ndarray,
    *,
    patch_size: int = 4,
    widths: tuple[int, ...] = (128,),
    latent_channels: int = 4,
    **others: int,
) -> Params:
    """The linear part of a `small_autoencoder` with these fields, fitted to images.

    images: uint8 [N, H, W, C]. Raises ValueError as `fit_linear_codec` does.
    """
    fitted = fit_linear_codec(images, **linear_fields(widths, patch_size, latent_channels))
    return {name: {LINEAR: part} for name, part in fitted.items()}


def linear_fields(widths: tuple[int, ...], patch_size: int, latent_channels: int) -> dict[str, int]:
    """The fields of the linear codec whose latents have the same shape."""
    return {"patch_size": patch_size * 2 ** (len(widths) - 1), "channels": latent_channels}


def part_of(params: Params, part: str) -> Params:
    """The parameters of one of the two codecs, of the halves that are there."""
    return {name: parts[part] for name, parts in params.items()}


def start_at_zero(params: Params) -> Params:
    """An autoencoder's parameters, with last convolutions that give 0, and a narrow posterior."""
    encoder, decoder = params["encoder"], params["decoder"]
    bias = jnp.zeros_like(encoder["conv_out"]["bias"])
    log_variance = bias.at[bias.size // 2 :].set(FIRST_LOG_VARIANCE)
    last = {
        "encoder": {"kernel": jnp.zeros_like(encoder["conv_out"]["kernel"]), "bias": log_variance},
        "decoder": {name: jnp.zeros_like(leaf) for name, leaf in decoder["conv_out"].items()},
    }
    return {name: {**part, "conv_out": last[name]} for name, part in params.items()}
