"""TAESD, the tiny autoencoder of latents of Stable Diffusion (Boer Bohan 2023).

    encoder: conv -> blocks -> (halved -> blocks) per further level -> conv
    decoder: 3 tanh(z / 3) -> conv, ReLU -> (blocks -> doubled -> conv) per level -> blocks -> conv

Its latents are those of the large autoencoder after its scale, 0.18215 z for SD, so they need none.
It has no normalisations and no attention, and decodes at a twentieth of the large one's cost. That
suits pictures during training, and not numbers that are reported.

Traps of the published weights:
- Halving pads all sides by one pixel, unlike the large autoencoder's.
- Convolutions that halve, and those after doubling, have no bias.
- Pixels lie in [0, 1] inside. This module takes and gives [-1, 1].
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewstep.latents.codec import Array, Codec, Key, Moments, Params, Shape, checked, latent_shape
from fewstep.models.autoencoder import convolution, double
from fewstep.models.network import check_integers

LARGEST_LATENT = 3.0  # where tanh saturates
CONVOLUTIONS = 3  # of a block


def tiny_autoencoder(
    shape: Shape,
    *,
    width: int = 64,
    blocks: tuple[int, ...] = (1, 3, 3, 3),
    latent_channels: int = 4,
) -> Codec:
    """A tiny autoencoder of images of that shape; by default the numbers of TAESD.

    width: channels of all levels. blocks: in each level of the encoder; the decoder has them in the
    opposite order. Sides shrink by 2^(levels - 1). latent_channels: of a latent.

    Its posteriors have no deviation. Raises ValueError for a field out of its range, and for sides
    that do not shrink evenly.
    """
    check_integers(1, width=width, latent_channels=latent_channels, levels=len(blocks))
    check_integers(1, **{f"blocks[{index}]": count for index, count in enumerate(blocks)})
    latent = latent_shape(shape, 2 ** (len(blocks) - 1), latent_channels)
    encoder = TinyEncoder(width, blocks, latent_channels)
    decoder = TinyDecoder(width, blocks[::-1], shape[-1])

    def init(key: Key) -> Params:
        keys = jax.random.split(key)
        return {
            "encoder": encoder.init(keys[0], jnp.zeros((1, *shape)))["params"],
            "decoder": decoder.init(keys[1], jnp.zeros((1, *latent)))["params"],
        }

    def encode(params: Params, images: Array) -> Moments:
        mean = encoder.apply({"params": params["encoder"]}, 0.5 * (images + 1.0))
        return Moments(mean, jnp.zeros_like(mean))

    def decode(params: Params, latents: Array) -> Array:
        return 2.0 * decoder.apply({"params": params["decoder"]}, latents) - 1.0

    return checked(Codec(init, encode, decode, shape, latent))


class TinyEncoder(nn.Module):
    """Pixels [B, H, W, C] in [0, 1] -> latents [B, h, w, latent_channels]."""

    width: int
    blocks: tuple[int, ...]
    latent_channels: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = convolution(self.width, "conv_in")(x)
        for index, count in enumerate(self.blocks):
            if index > 0:
                x = nn.Conv(
                    self.width,
                    (3, 3),
                    strides=2,
                    padding=1,
                    use_bias=False,
                    name=f"halving_{index}",
                )(x)
            x = TinyLevel(self.width, count, name=f"level_{index}")(x)
        return convolution(self.latent_channels, "conv_out")(x)


class TinyDecoder(nn.Module):
    """Latents [B, h, w, c] -> pixels [B, H, W, channels] in [0, 1].

    Its level_0 has the fewest pixels.
    """

    width: int
    blocks: tuple[int, ...]
    channels: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = LARGEST_LATENT * jnp.tanh(x / LARGEST_LATENT)
        x = nn.relu(convolution(self.width, "conv_in")(x))
        for index, count in enumerate(self.blocks):
            if index > 0:
                x = nn.Conv(
                    self.width, (3, 3), padding=1, use_bias=False, name=f"doubling_{index}"
                )(double(x))
            x = TinyLevel(self.width, count, name=f"level_{index}")(x)
        return convolution(self.channels, "conv_out")(x)


class TinyLevel(nn.Module):
    """Blocks at one number of pixels: [B, H, W, width], the same."""

    width: int
    blocks: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for index in range(self.blocks):
            x = TinyBlock(self.width, name=f"block_{index}")(x)
        return x


class TinyBlock(nn.Module):
    """ReLU(x + conv(ReLU(conv(ReLU(conv(x)))))): [B, H, W, width], the same."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        change = convolution(self.width, "conv_0")(x)
        for index in range(1, CONVOLUTIONS):
            change = convolution(self.width, f"conv_{index}")(nn.relu(change))
        return nn.relu(x + change)
