"""DINOv2's vision transformers, whose features turn a Frechet distance into FD-DINOv2.

Oquab et al. 2023 (arXiv:2304.07193), with patches of 14 x 14 and no registers, as in the evaluation
of Stein et al. 2023 (arXiv:2306.04675). The features are the class token after the last
normalisation. FD-DINOv2 in papers uses the 1024 features of ViT-L/14. ViT-S and ViT-B are cheaper,
and their distances are different ones.

    resize to 224 x 224 -> (x / 255 - mean) / std -> patches -> blocks -> norm -> class token

    x <- x + gamma_1 attention(norm_1(x)),    x <- x + gamma_2 mlp(norm_2(x))

Traps of the protocol:
- Images are resized as Pillow resizes bytes: bicubic with a = -1/2, blurred when they shrink, along
  the width first, rounded and clipped to bytes after each of the two passes. This module uses
  Pillow's integer weights and gets the same bytes. EDM2 (Karras et al. 2024, arXiv:2312.02696)
  keeps floating point. Its values differ by up to 1.1 of 255 where nothing is clipped, and by up
  to 50 in enlarged noise.
- The position embeddings were learned on 37 x 37 patches. The published code resamples them to
  16 x 16 with a = -3/4, no blur and an offset that moves every place: see
  eval/features/dinov2_weights.py.
- GELU is the exact one, with erf. Normalisations have an epsilon of 1e-6.
- Matrix products are in full float32: the faster modes of accelerators change the features.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fewstep.eval.features.feature_network import check_colours

Array = jax.Array

SIDE = 224  # side of the network's input, pixels
PATCH = 14
GRID = SIDE // PATCH  # patches along a side
HEAD = 64  # channels of an attention head, in every size
EPSILON = 1e-6  # of the normalisations, as published
PILLOW_BITS = 22  # fractional bits of Pillow's weights
PILLOW_CUBIC = -0.5  # the coefficient a of Keys 1981
# Mean and standard deviation of ImageNet's RGB values in [0, 1].
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


class Linear(NamedTuple):
    """An affine map: kernel [in, out], bias [out]."""

    kernel: Array
    bias: Array


class Norm(NamedTuple):
    """Scale and offset of a layer normalisation: [D]."""

    scale: Array
    bias: Array


class BlockParams(NamedTuple):
    """One block, or all of them stacked along a leading axis. gamma: LayerScale's [D]."""

    norm1: Norm
    qkv: Linear
    projection: Linear
    gamma1: Array
    norm2: Norm
    expand: Linear
    contract: Linear
    gamma2: Array


class Params(NamedTuple):
    """patches: kernel [14 14 3, D]. token: [D]. positions: [1 + 16 16, D], class token first."""

    patches: Linear
    token: Array
    positions: Array
    blocks: BlockParams
    norm: Norm


matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def apply(params: Params, images: Array) -> Array:
    """uint8 images [B, H, W, 1 or 3] -> features [B, D], float32.

    Pure, can be jitted. One channel counts as three equal ones. Raises ValueError for images of
    another type or shape.
    """
    check_colours(images)
    x = (resize_bicubic(jnp.asarray(images)) / 255.0 - MEAN) / STD
    x, _ = jax.lax.scan(
        lambda x, weights: (apply_block(weights, x), None), embed(params, x), params.blocks
    )
    return layer_norm(params.norm, x[:, 0])


def resize_bicubic(images: Array) -> Array:
    """Bit for bit as Pillow: uint8 [B, H, W, C] -> int32 [B, 224, 224, C] in [0, 255]."""
    _, height, width, _ = images.shape
    x = jnp.einsum("jw,bhwc->bhjc", pillow_matrix(width), images.astype(jnp.int32))
    x = jnp.einsum("ih,bhjc->bijc", pillow_matrix(height), to_bytes(x))
    return to_bytes(x)


def to_bytes(x: Array) -> Array:
    """Round int32 fixed-point numbers in units of 2^-22, halves up, and clip them to [0, 255]."""
    return jnp.clip((x + (1 << (PILLOW_BITS - 1))) >> PILLOW_BITS, 0, 255)


def pillow_matrix(size: int) -> np.ndarray:
    """Weights int32 [224, size] that resize one side, in units of 2^-22.

    If the image shrinks, the kernel is wider by the same factor, which blurs.
    """
    step = size / SIDE
    centres = (np.arange(SIDE) + 0.5) * step
    distances = np.abs(np.arange(size) + 0.5 - centres[:, None]) / max(step, 1.0)
    weights = cubic(distances, PILLOW_CUBIC)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.round(weights * (1 << PILLOW_BITS)).astype(np.int32)


def cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """The kernel of cubic convolution with coefficient a (Keys 1981, equation 4)."""
    d = np.minimum(distance, 2.0)  # from there on the kernel is 0
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, far)


def embed(params: Params, x: Array) -> Array:
    """Images [B, 224, 224, 3] -> class token, then patches row by row: [B, 1 + 16 16, D]."""
    x = x.reshape(-1, GRID, PATCH, GRID, PATCH, 3).swapaxes(2, 3)
    patches = apply_linear(params.patches, x.reshape(len(x), GRID * GRID, -1))
    token = jnp.broadcast_to(params.token, (len(x), 1, patches.shape[-1]))
    return jnp.concatenate([token, patches], axis=1) + params.positions


def apply_block(weights: BlockParams, x: Array) -> Array:
    """A block on tokens [B, N, D], with LayerScale (Touvron et al. 2021)."""
    heads = attention(apply_linear(weights.qkv, layer_norm(weights.norm1, x)))
    x = x + weights.gamma1 * apply_linear(weights.projection, heads)
    hidden = jax.nn.gelu(
        apply_linear(weights.expand, layer_norm(weights.norm2, x)), approximate=False
    )
    return x + weights.gamma2 * apply_linear(weights.contract, hidden)


def attention(qkv: Array) -> Array:
    """softmax(q k^T / sqrt(64)) v per head: [B, N, 3 D] -> [B, N, D]."""
    batch, tokens, width = qkv.shape
    q, k, v = jnp.moveaxis(qkv.reshape(batch, tokens, 3, width // (3 * HEAD), HEAD), 2, 0)
    weights = jax.nn.softmax(einsum("bnhd,bmhd->bhnm", q, k) / HEAD**0.5)
    return einsum("bhnm,bmhd->bnhd", weights, v).reshape(batch, tokens, -1)


def layer_norm(weights: Norm, x: Array) -> Array:
    """Layer normalisation over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + EPSILON) * weights.scale + weights.bias


def apply_linear(weights: Linear, x: Array) -> Array:
    return matmul(x, weights.kernel) + weights.bias
