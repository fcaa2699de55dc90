"""The U-Net that DDPM++, NCSN++ and ADM share, in the form of EDM (Karras et al. 2022, table 8).

    first convolution -> encoder: levels of residual blocks, halved between -> two blocks, the
    middle -> decoder: levels of blocks that also read the encoder's outputs, doubled between ->
    normalisation -> last convolution

`plan_unet` lists the blocks and `UNet` computes them. A `Style` is what the publications do
differently, and a mapping embeds what is not an image into one vector [B, D] that every block
reads.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fewstep.models.conditioning import (
    GUIDANCE_EMBEDDER,
    LossWeight,
    Scalar,
    ScalarEmbedder,
    read_condition,
)
from fewstep.models.network import (
    DTYPES,
    HIDDEN,
    SOWN,
    Array,
    Condition,
    Network,
    check_choice,
    check_integers,
    linen_network,
)
from fewstep.models.resampling import RESAMPLING, halve_inner

EMBEDDING_RATIO = 4  # width of the vector that blocks read, over the width of the network
GROUPS, LEAST_GROUP = 32, 4  # most groups of a normalisation, and the fewest channels of one
TIME_MAX_PERIOD = 10000.0  # Vaswani et al. 2017

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


class Stage(NamedTuple):
    """A block. resample: a key of RESAMPLING. joins: whether it reads an output of the encoder."""

    name: str
    width: int
    attention: bool = False
    resample: str = "keep"
    joins: bool = False


class Plan(NamedTuple):
    """The blocks of a U-Net in their order."""

    encoder: tuple[Stage, ...]
    decoder: tuple[Stage, ...]


def plan_unet(
    shape: Sequence[int],
    width: int,
    multipliers: Sequence[int],
    depth: int,
    attention_sides: Sequence[int],
    style: Style,
) -> Plan:
    """The blocks of a U-Net; arguments as of `models.song_unet.song_unet`.

    Raises ValueError for arguments out of range, and for sides that do not halve evenly.
    """
    check_unet(shape, width, multipliers, depth)
    widths = [width * multiplier for multiplier in multipliers]
    attends = [shape[0] >> level in attention_sides for level in range(len(widths))]
    last = len(widths) - 1
    encoder, decoder = [], []
    for level, own in enumerate(widths):
        if level > 0:
            encoder.append(Stage(f"encoder_{level}_halving", widths[level - 1], resample="halve"))
        for index in range(depth):
            encoder.append(Stage(f"encoder_{level}_block_{index}", own, attends[level]))
    for level in reversed(range(len(widths))):
        if level == last:
            decoder.append(Stage("middle_0", widths[level], attention=True))
            decoder.append(Stage("middle_1", widths[level]))
        else:
            decoder.append(Stage(f"decoder_{level}_doubling", widths[level + 1], resample="double"))
        for index in range(depth + 1):
            attention = attends[level] and (style.attention_throughout or index == depth)
            name = f"decoder_{level}_block_{index}"
            decoder.append(Stage(name, widths[level], attention, joins=True))
    return Plan(tuple(encoder), tuple(decoder))


def check_unet(shape: Sequence[int], width: int, multipliers: Sequence[int], depth: int) -> None:
    """Raises ValueError unless sides halve evenly, and normalisations have groups of one size."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"a U-Net takes images [height, width, channels], not {list(shape)}.")
    check_integers(1, width=width, depth=depth, levels=len(multipliers))
    for multiplier in multipliers:
        check_integers(1, multipliers=multiplier)
    factor = 2 ** (len(multipliers) - 1)
    if shape[0] % factor or shape[1] % factor:
        raise ValueError(
            f"{len(multipliers)} multipliers halve images {len(multipliers) - 1} times, and "
            f"{shape[0]} x {shape[1]} pixels are no multiple of {factor}; give fewer multipliers."
        )
    largest = 2 * width * max(multipliers)
    unit = GROUPS if largest > GROUPS * LEAST_GROUP else LEAST_GROUP
    if width % unit:
        raise ValueError(
            f"width={width} must be a multiple of {unit}, because up to {largest} channels are "
            "normalised in groups of one size."
        )


class Inputs(NamedTuple):
    """Fields of a network's inputs and of how it computes, as of `models.song_unet.song_unet`."""

    second_time: str
    guidance_input: bool
    loss_weight: bool
    time_scale: float
    dropout: float
    dtype: str
    remat: bool


def build_unet(
    shape: Sequence[int], stem: int, plan: Plan, style: Style, mapping: nn.Module, inputs: Inputs
) -> Network:
    """The network of a plan. stem: channels of the first convolution. Raises ValueError."""
    check_choice("dtype", inputs.dtype, DTYPES)
    if not 0.0 <= inputs.dropout < 1.0:
        raise ValueError(f"dropout={inputs.dropout!r} must be in [0, 1).")
    module = UNet(stem, plan, style, mapping, inputs.dtype, inputs.remat)
    training = module.clone(dropout=inputs.dropout) if inputs.dropout > 0.0 else None
    weight = LossWeight(inputs.time_scale) if inputs.loss_weight else None
    hidden = tuple(stage.name for stage in (*plan.encoder, *plan.decoder))
    built = linen_network(module, tuple(shape), training=training, weight=weight, hidden=hidden)
    return built._replace(second_time=inputs.second_time, guidance_input=inputs.guidance_input)


class UNet(nn.Module):
    """x [B, H, W, C], t, s [B], condition -> [B, H, W, C], float32."""

    stem: int
    plan: Plan
    style: Style
    mapping: nn.Module
    dtype: str
    remat: bool
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, t: Array, s: Array, condition: Condition) -> Array:
        style, hidden = self.style, {}
        kind = nn.remat(UNetBlock) if self.remat else UNetBlock
        c = self.mapping(t, s, condition)
        rest = x = x.astype(jnp.float32)

        def block(stage: Stage, h: Array) -> Array:
            fields = stage.width, stage.attention, stage.resample, style, self.dtype, self.dropout
            return kind(*fields, name=stage.name)(h, c)

        h = convolution(self.stem, "first", style.weights, self.dtype)(x).astype(jnp.float32)
        skips = [h]
        for stage in self.plan.encoder:
            h = block(stage, h)
            if style.residual_input and stage.resample == "halve":
                name = stage.name.replace("halving", "residual")
                h = rest = (h + InputResidual(stage.width, style, self.dtype, name=name)(rest)) * (
                    style.skip_scale
                )
            hidden[stage.name] = h
            skips.append(h)
        for stage in self.plan.decoder:
            h = jnp.concatenate([h, skips.pop()], axis=-1) if stage.joins else h
            h = hidden[stage.name] = block(stage, h)
        self.sow(SOWN, HIDDEN, hidden)
        h = nn.silu(normalization(h, "norm", style.epsilon))
        return convolution(x.shape[-1], "last", style.last_weights)(h)


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


def time_frequencies(count: int, last: int) -> np.ndarray:
    """f_k = 10000^(-k / last), k = 0 ... count - 1, float32."""
    return (TIME_MAX_PERIOD ** (-np.arange(count) / last)).astype(np.float32)


def label_rows(table: Array, condition: Condition, t: Array) -> Array:
    """The row of each label, and zeros for the null class: [B, D]. NaN past the table."""
    label = read_condition(condition, "label", t, jnp.integer)
    rows = jnp.asarray(table).at[label].get(mode="fill", fill_value=jnp.nan)
    return jnp.where(label[:, None] < 0, 0.0, rows)


def embedded_scalars(
    width: int, scalars: Mapping[str, Scalar], t: Array, s: Array, condition: Condition
) -> Any:
    """The sum of the embeddings of scalars, [B, width], or 0; for use inside a module."""
    return sum(
        ScalarEmbedder(width, zero=name == GUIDANCE_EMBEDDER, name=name)(scalar(t, s, condition))
        for name, scalar in scalars.items()
    )
