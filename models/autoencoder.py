"""The convolutional KL autoencoder of latent diffusion (Rombach et al. 2022, arXiv:2112.10752).

    encoder: conv_in -> levels (residual blocks, then halved but in the last) -> middle -> moments
    decoder: conv_in -> middle -> levels (residual blocks, then doubled but in the last) -> pixels

The middle is a residual block, self-attention of one head over all pixels, and a residual block.
SD, SDXL, SD3 and Flux are this network with other numbers (models/codecs.py). With `patch_size`
above 1 it sees patches of pixels as channels, which makes a small one cheap.

Traps of the published weights:
- Halving pads the right and the bottom by one pixel and the other sides not at all.
- No 3 x 3 convolution halves an even side symmetrically. Latents of a mirrored image are therefore
  not the mirrored latents.
- Normalisations have an epsilon of 1e-6. Activations may be many deviations from 0, so variances
  are computed around the mean; E[x^2] - E[x]^2 loses all digits at 1000 deviations.
- The decoder has one residual block per level more than the encoder.
- The log-variance is cut to [-30, 20], and the pixels are not cut.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewstep.latents.codec import Array, Codec, Key, Moments, Params, Shape, checked, latent_shape
from fewstep.latents.patches import depth_to_space, space_to_depth
from fewstep.models.network import check_integers

EPSILON = 1e-6
LOG_VARIANCE_RANGE = (-30.0, 20.0)


def autoencoder(
    shape: Shape,
    *,
    widths: tuple[int, ...] = (128, 256, 512, 512),
    blocks: int = 2,
    latent_channels: int = 4,
    groups: int = 32,
    quant_convolutions: bool = True,
    attention: bool = True,
    patch_size: int = 1,
) -> Codec:
    """A KL autoencoder of images of that shape; by default the numbers of Stable Diffusion.

    widths: channels of each level, from the image to the latents. Sides shrink by
        patch_size 2^(levels - 1).
    blocks: residual blocks in a level of the encoder; the decoder has one more.
    latent_channels: of a latent; the encoder gives twice as many, mean and log-variance.
    groups: of the group normalisations; they divide all widths.
    quant_convolutions: whether a 1 x 1 convolution follows the encoder and precedes the decoder.
    attention: whether the middle has self-attention.
    patch_size: side of the patches of pixels that the network sees as channels.

    Raises ValueError for a field out of its range, and for sides that do not shrink evenly.
    """
    check_integers(1, blocks=blocks, latent_channels=latent_channels, groups=groups)
    check_integers(1, patch_size=patch_size, levels=len(widths))
    for width in widths:
        if width < 1 or width % groups:
            raise ValueError(f"groups={groups} must divide every width, and does not {width}")
    latent = latent_shape(shape, patch_size * 2 ** (len(widths) - 1), latent_channels)
    depth = shape[-1] * patch_size**2
    encoder = Encoder(widths, blocks, latent_channels, groups, quant_convolutions, attention)
    decoder = Decoder(widths, blocks, depth, groups, quant_convolutions, attention)
    door = (1, shape[0] // patch_size, shape[1] // patch_size, depth)

    def init(key: Key) -> Params:
        keys = jax.random.split(key)
        return {
            "encoder": encoder.init(keys[0], jnp.zeros(door))["params"],
            "decoder": decoder.init(keys[1], jnp.zeros((1, *latent)))["params"],
        }

    def encode(params: Params, images: Array) -> Moments:
        x = space_to_depth(images, patch_size)
        mean, log_variance = jnp.split(encoder.apply({"params": params["encoder"]}, x), 2, axis=-1)
        return Moments(mean, jnp.exp(0.5 * jnp.clip(log_variance, *LOG_VARIANCE_RANGE)))

    def decode(params: Params, latents: Array) -> Array:
        x = decoder.apply({"params": params["decoder"]}, latents)
        return depth_to_space(x, patch_size)

    return checked(Codec(init, encode, decode, shape, latent))


class Encoder(nn.Module):
    """Pixels [B, H, W, C] -> mean and log-variance [B, h, w, 2 latent_channels]."""

    widths: tuple[int, ...]
    blocks: int
    latent_channels: int
    groups: int
    quant_convolutions: bool
    attention: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = convolution(self.widths[0], "conv_in")(x)
        for index, width in enumerate(self.widths):
            if index > 0:
                x = halving(x.shape[-1], f"halving_{index}")(x)
            x = Level(width, self.blocks, self.groups, name=f"level_{index}")(x)
        x = Middle(self.groups, self.attention, name="middle")(x)
        x = nn.silu(normalization(self.groups, "norm_out")(x))
        x = convolution(2 * self.latent_channels, "conv_out")(x)
        return pointwise(x.shape[-1], "quant_conv")(x) if self.quant_convolutions else x


class Decoder(nn.Module):
    """Latents [B, h, w, c] -> pixels [B, H, W, channels]. Its level_0 has the fewest pixels."""

    widths: tuple[int, ...]
    blocks: int
    channels: int
    groups: int
    quant_convolutions: bool
    attention: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.quant_convolutions:
            x = pointwise(x.shape[-1], "quant_conv")(x)
        x = convolution(self.widths[-1], "conv_in")(x)
        x = Middle(self.groups, self.attention, name="middle")(x)
        for index, width in enumerate(reversed(self.widths)):
            if index > 0:
                x = convolution(x.shape[-1], f"doubling_{index}")(double(x))
            x = Level(width, self.blocks + 1, self.groups, name=f"level_{index}")(x)
        x = nn.silu(normalization(self.groups, "norm_out")(x))
        return convolution(self.channels, "conv_out")(x)


class Level(nn.Module):
    """Residual blocks at one number of pixels: [B, H, W, C] -> [B, H, W, width]."""

    width: int
    blocks: int
    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for index in range(self.blocks):
            x = ResidualBlock(self.width, self.groups, name=f"block_{index}")(x)
        return x


class Middle(nn.Module):
    """A residual block, self-attention if there is any, a residual block; keeps the shape."""

    groups: int
    attention: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = ResidualBlock(x.shape[-1], self.groups, name="block_0")(x)
        if self.attention:
            x = Attention(self.groups, name="attention")(x)
        return ResidualBlock(x.shape[-1], self.groups, name="block_1")(x)


class ResidualBlock(nn.Module):
    """x + conv(SiLU(norm(conv(SiLU(norm(x)))))); where the width changes, x by a 1 x 1 map."""

    width: int
    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        change = x
        for index in (1, 2):
            change = nn.silu(normalization(self.groups, f"norm_{index}")(change))
            change = convolution(self.width, f"conv_{index}")(change)
        if x.shape[-1] != self.width:
            x = pointwise(self.width, "shortcut")(x)
        return x + change


class Attention(nn.Module):
    """x + output(softmax(q k^T / sqrt(C)) v), over all pixels, in one head of C channels."""

    groups: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        pixels = normalization(self.groups, "norm")(x).reshape(batch, height * width, 1, channels)
        query, key, value = (
            nn.Dense(channels, name=name)(pixels) for name in ("query", "key", "value")
        )
        mixed = jax.nn.dot_product_attention(query, key, value)
        return x + nn.Dense(channels, name="output")(mixed).reshape(x.shape)


def convolution(width: int, name: str) -> nn.Conv:
    """3 x 3, keeps the number of pixels."""
    return nn.Conv(width, (3, 3), padding=1, name=name)


def halving(width: int, name: str) -> nn.Conv:
    """3 x 3 with stride 2 on even sides; pads after the last row and column, as published."""
    return nn.Conv(width, (3, 3), strides=2, padding=[(0, 1), (0, 1)], name=name)


def pointwise(width: int, name: str) -> nn.Conv:
    """An affine map of the channels of each pixel."""
    return nn.Conv(width, (1, 1), name=name)


def normalization(groups: int, name: str) -> nn.GroupNorm:
    return nn.GroupNorm(groups, epsilon=EPSILON, use_fast_variance=False, name=name)


def double(x: Array) -> Array:
    """Each pixel as 2 x 2: [B, H, W, C] -> [B, 2 H, 2 W, C]."""
    return x.repeat(2, axis=1).repeat(2, axis=2)
