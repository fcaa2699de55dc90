"""The blocks of U-Nets, of Song et al. 2021 and of Dhariwal & Nichol 2021 (ADM), as EDM has them.

A `Style` is what the publications do differently. Parameters are float32. `dtype` is the type of
convolutions and attention; sums, statistics and the vector c are float32 for every `dtype`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from fewstep.models.network import Array
from fewstep.models.resampling import RESAMPLING, halve_inner

GROUPS, LEAST_GROUP = 32, 4  # most groups of a normalisation, and the fewest channels of one

Initializer = nn.initializers.Initializer


class Style(NamedTuple):
    """What publications do differently.

    taps: filter of halving and doubling along an axis.
    skip_scale: factor of each sum of a branch and its input.
    epsilon: of the normalisations.
    modulated: whether c scales and shifts the second normalisation, or is added before it.
    projected: whether a 1 x 1 convolution follows the resampling of a block's input in any case.
    head_width: channels of an attention head, 0 for a single head.
    attention_throughout: whether all blocks of a decoder's level attend, or only the last.
    residual_input: whether the halved input is added to each level of the encoder, as in NCSN++.
    weights, last_weights, attention_weights: initial values of convolutions and matrices; of those
        that end a branch or the network; and of queries, keys and values.
    """

    taps: tuple[int, ...]
    skip_scale: float
    epsilon: float
    modulated: bool
    projected: bool
    head_width: int
    attention_throughout: bool
    residual_input: bool
    weights: Initializer
    last_weights: Initializer
    attention_weights: Initializer


class UNetBlock(nn.Module):
    """A residual block, then self-attention: x [B, H, W, C], c [B, D] -> [B, H', W', width].

    scale (x + conv(SiLU(norm(conv(SiLU(norm(x))), c)))), where both x are resampled, and the outer
    one passes a 1 x 1 convolution if its channels change. Convolutions and attention compute in
    `dtype`; sums and normalisations are float32.
    """

    width: int
    attention: bool
    resample: str
    style: Style
    dtype: str
    dropout: float

    @nn.compact
    def __call__(self, x: Array, c: Array) -> Array:
        style, inputs = self.style, x.shape[-1]
        resampled = RESAMPLING[self.resample]
        h = resampled(nn.silu(normalization(x, "norm_in", style.epsilon)), style.taps)
        h = convolution(self.width, "conv_in", style.weights, self.dtype)(h).astype(jnp.float32)
        h = self.conditioned(h, c)
        h = nn.Dropout(self.dropout, deterministic=False)(nn.silu(h))
        h = convolution(self.width, "conv_out", style.last_weights, self.dtype)(h)
        x = resampled(x, style.taps)
        if inputs != self.width or (style.projected and self.resample != "keep"):
            x = pointwise(self.width, "skip", style.weights, self.dtype)(x)
        x = (x.astype(jnp.float32) + h) * style.skip_scale
        if not self.attention:
            return x
        return (x + PixelAttention(style, self.dtype, name="attention")(x)) * style.skip_scale

    def conditioned(self, h: Array, c: Array) -> Array:
        """The second normalisation of h, which c shifts, and scales if the style says so."""
        style = self.style
        outputs = self.width * (2 if style.modulated else 1)
        affine = pointwise(outputs, "affine", style.weights)(c)[:, None, None]
        if not style.modulated:
            return normalization(h + affine, "norm_out", style.epsilon)
        scale, shift = jnp.split(affine, 2, axis=-1)
        return normalization(h, "norm_out", style.epsilon) * (1.0 + scale) + shift


class PixelAttention(nn.Module):
    """proj(softmax(q k^T / sqrt(d)) v) over all pixels of the normalised x: [B, H, W, C] -> same.

    A head has d = style.head_width channels, or as many more as are left over.
    """

    style: Style
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        style, (batch, height, width, channels) = self.style, x.shape
        heads = max(1, channels // style.head_width) if style.head_width else 1
        normed = normalization(x, "norm", style.epsilon)
        qkv = pointwise(3 * channels, "qkv", style.attention_weights, self.dtype)(normed)
        parts = qkv.reshape(batch, height * width, 3, heads, channels // heads)
        mixed = jax.nn.dot_product_attention(*jnp.moveaxis(parts, 2, 0)).reshape(x.shape)
        return pointwise(channels, "projection", style.last_weights, self.dtype)(mixed)


class InputResidual(nn.Module):
    """A 3 x 3 convolution of the encoder's input, halved: [B, H, W, C] -> [B, H/2, W/2, width].

    The filter reads the convolution one pixel outside of the image too, as published.
    """

    width: int
    style: Style
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        border = 1 + (len(self.style.taps) - 1) // 2
        wide = convolution(self.width, "conv", self.style.weights, self.dtype, border)(x)
        return halve_inner(wide.astype(jnp.float32), self.style.taps)


def convolution(
    width: int, name: str, weights: Initializer, dtype: str = "float32", border: int = 1
) -> nn.Conv:
    """3 x 3 with a border of zeros; with one of 1 it keeps the number of pixels."""
    kind = jnp.dtype(dtype)
    return nn.Conv(width, (3, 3), padding=border, kernel_init=weights, dtype=kind, name=name)


def pointwise(width: int, name: str, weights: Initializer, dtype: str = "float32") -> nn.Dense:
    """An affine map of channels."""
    return nn.Dense(width, kernel_init=weights, dtype=jnp.dtype(dtype), name=name)


def normalization(x: Array, name: str, epsilon: float) -> Array:
    """Group normalisation in float32, with groups of at least LEAST_GROUP channels."""
    groups = min(GROUPS, x.shape[-1] // LEAST_GROUP)
    return nn.GroupNorm(groups, epsilon=epsilon, use_fast_variance=False, name=name)(x)
