"""The U-Net that DDPM++, NCSN++ and ADM share, in the form of EDM (Karras et al. 2022, table 8).

    first convolution -> encoder: levels of residual blocks, halved between -> two blocks, the
    middle -> decoder: levels of blocks that also read the encoder's outputs, doubled between ->
    normalisation -> last convolution

`plan_unet` lists the blocks (models/unet_blocks.py) and `UNet` computes them. A mapping embeds what
is not an image into one vector [B, D] that every block reads.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fewstep.models.conditioning import (
    ZERO_EMBEDDERS,
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
from fewstep.models.unet_blocks import (
    GROUPS,
    LEAST_GROUP,
    InputResidual,
    Style,
    UNetBlock,
    convolution,
    normalization,
)

EMBEDDING_RATIO = 4  # width of the vector that blocks read, over the width of the network
TIME_MAX_PERIOD = 10000.0  # Vaswani et al. 2017


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
    guidance_interval: bool
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
    return built._replace(
        second_time=inputs.second_time,
        guidance_input=inputs.guidance_input,
        guidance_interval=inputs.guidance_interval,
    )


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
        ScalarEmbedder(width, zero=name in ZERO_EMBEDDERS, name=name)(scalar(t, s, condition))
        for name, scalar in scalars.items()
    )
